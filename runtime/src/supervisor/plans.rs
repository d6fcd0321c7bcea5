//! What stages are told, made from a revision.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use skep_model::condition::Condition;
use skep_model::id::Digest;
use skep_model::scope::SwarmId;
use skep_model::step::{Batch, Processed, Trap, TrapKind};
use skep_model::swarm::{Reader, Stage};
use skep_stage::plan::destinations;
use skep_stage::{Bee, Plan};
use skep_topic::TopicSpec;

use crate::quotas::Account;
use crate::usage::BeeMeter;

pub(super) use skep_stage::plan::{End, Ends};

/// Inputs that a stage's Bee is busy with.
pub(super) type UnderWay = Arc<AtomicUsize>;

/// Counts what a Bee takes and gives, for its stage and its tenant.
pub(super) struct Metered<B> {
    pub bee: B,
    pub under_way: UnderWay,
    pub meter: Arc<BeeMeter>,
    /// Its tenant's.
    pub account: Arc<Account>,
}

/// Counts down also when the work is dropped.
struct Busy<'a>(&'a AtomicUsize, usize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[async_trait]
impl<B: Bee> Bee for Metered<B> {
    async fn process(&self, mut batch: Batch) -> Processed {
        let inputs = batch.inputs.len();
        batch.room.bytes = batch.room.bytes.min(self.account.state_room());
        self.under_way.fetch_add(inputs, Ordering::Relaxed);
        let _busy = Busy(&self.under_way, inputs);
        self.meter.took(&batch);
        let before = self.account.before(&batch);
        let mut processed = self.bee.process(batch).await;
        self.meter.gave(&processed);
        self.account.note(before, &mut processed);
        processed
    }
}

/// Of a node without workers, or of a tenant that is not for this node: it knows the stages for their addresses, owns no partition, and loads no module.
pub(super) struct Nobody;

#[async_trait]
impl Bee for Nobody {
    async fn process(&self, _: Batch) -> Processed {
        Processed {
            result: Err(Trap {
                kind: TrapKind::Host,
                detail: "this node runs no Bees".to_owned(),
                stderr: String::new(),
            }),
            log: Vec::new(),
        }
    }
}

/// Where a stage is written to.
pub(crate) fn topic_spec(id: &SwarmId, stage: &Stage, born: u64) -> TopicSpec {
    TopicSpec {
        id: id.topic(&stage.name),
        born,
        partitions: stage.partitions,
        inbox: stage.inbox,
        dead_letters: stage.dead_letters,
    }
}

/// A stage's own address is not the one that writers hold, so that a count of the latter tells whether any writer is left.
pub(super) fn plan(
    stage: &Stage,
    born: u64,
    module: Digest,
    bee: Arc<dyn Bee>,
    (readers, door): (&[Reader], Option<Condition>),
    (id, bounded): (&SwarmId, bool),
    ends: &Ends,
) -> Arc<Plan> {
    let (unnamed, named) = destinations(&stage.name, readers, ends);
    Arc::new(Plan {
        stage: stage.clone(),
        topic: Arc::new(topic_spec(id, stage, born)),
        module,
        bee,
        unnamed,
        named,
        door,
        bounded,
    })
}
