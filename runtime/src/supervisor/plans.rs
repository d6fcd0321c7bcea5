//! What stages are told, made from a revision.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use skep_model::condition::Condition;
use skep_model::id::Digest;
use skep_model::name::StageName;
use skep_model::scope::SwarmId;
use skep_model::step::{Batch, Processed, Trap, TrapKind};
use skep_model::swarm::{KeySource, Reader, Stage};
use skep_stage::{Bee, Destination, Plan};
use skep_topic::TopicSpec;
use skep_topic::lane::Lane;

use crate::quotas::Account;
use crate::usage::BeeMeter;

/// Where a stage is reached.
#[derive(Clone)]
pub(super) struct End {
    pub topic: Arc<TopicSpec>,
    pub lane: Arc<Lane>,
    pub key: Option<KeySource>,
}

pub(super) type Ends = BTreeMap<StageName, End>;

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
    let (mut unnamed, mut named) = (Vec::new(), BTreeMap::<String, Vec<Destination>>::new());
    for reader in readers {
        let Some(end) = ends.get(&reader.stage) else {
            tracing::error!(stage = %stage.name, reader = %reader.stage, "a reader of a stage is not there; what is published to it is lost");
            continue;
        };
        // An address of its own, which does not count as a writer's: what goes round in a removed circle is looked after in `drain.rs`.
        let topic = reader.laps.map_or_else(
            || Arc::clone(&end.topic),
            |_| {
                Arc::new(TopicSpec {
                    inbox: end.topic.inbox.of_loops(),
                    ..TopicSpec::clone(&end.topic)
                })
            },
        );
        let destination = Destination {
            stage: reader.stage.clone(),
            topic,
            key: end.key.clone(),
            lane: Arc::clone(&end.lane),
            when: reader.when.clone(),
            laps: reader.laps,
        };
        match &reader.output {
            None => unnamed.push(destination),
            Some(output) => named.entry(output.to_string()).or_default().push(destination),
        }
    }
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
