//! Random histories: the server is killed in the middle of them.

use async_trait::async_trait;
use skep_model::id::Uid;
use skep_model::scope::PartitionId;
use skep_topic::conformance::histories::{Faults, Shape, run};
use skep_topic::conformance::{Harness as _, Stop};

use super::server::OnRedis;

/// The server keeps what it answered (its file is flushed before each answer), but it dies, and its nodes with it.
#[async_trait]
impl Faults for OnRedis {
    fn mark(&mut self) {}

    async fn fail_over(&mut self) {
        self.reopen(Stop::Kill).await;
    }

    fn operator_takes(&mut self, _: &PartitionId) -> Option<Uid> {
        None
    }
}

#[tokio::test]
async fn redis_survives_kills() {
    let shape = Shape {
        messages: 20,
        keys: 3,
        steps: 200,
        fault_percent: 3,
        ..Shape::SMALL
    };
    for seed in 0..6 {
        run(seed, shape, &mut OnRedis::new(None).await).await.unwrap();
    }
}
