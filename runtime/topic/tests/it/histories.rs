//! Random histories on each backend, and what they find when a guard is taken away.

use async_trait::async_trait;
use skep_model::id::Uid;
use skep_model::scope::PartitionId;
use skep_topic::Backend;
use skep_topic::conformance::actors::World;
use skep_topic::conformance::histories::{Faults, Shape, run};
use skep_topic::conformance::{Harness, Stop};
use skep_topic::guard::Guard;
use skep_topic::memory::Mark;
use std::sync::Arc;

use crate::harness::{OnDisk, OnMemory};

/// Memory with its history: it fails over to marks, and restarts.
struct Fallible {
    on: OnMemory,
    marks: Vec<Mark>,
    flip: bool,
}

impl Fallible {
    fn new(seed: u64) -> Self {
        Self {
            on: OnMemory::new(seed),
            marks: Vec::new(),
            flip: false,
        }
    }
}

#[async_trait]
impl Harness for Fallible {
    fn backend(&self) -> Arc<dyn Backend> {
        self.on.backend()
    }

    async fn advance(&self, ms: u64) {
        self.on.advance(ms).await;
    }

    async fn reopen(&mut self, stop: Stop) -> bool {
        self.on.reopen(stop).await
    }
}

#[async_trait]
impl Faults for Fallible {
    fn mark(&mut self) {
        self.marks.push(self.on.memory.mark());
    }

    async fn fail_over(&mut self) {
        match self.marks.pop() {
            // A mark that the gate has passed may not come back, nor any before it.
            Some(mark) => {
                if self.on.memory.rollback(&mark).is_err() {
                    self.marks.clear();
                }
            }
            None => self.on.memory.restart(),
        }
    }

    fn operator_takes(&mut self, partition: &PartitionId) -> Option<Uid> {
        self.flip = !self.flip;
        let (parked, timers) = self.on.memory.waiting(partition);
        if self.flip {
            let parked = self.on.memory.take_parked(partition, parked.first()?.uid)?;
            Some(parked.work.uid())
        } else {
            let timer = timers.first()?;
            let timer = self.on.memory.take_timer(partition, &timer.key, &timer.name)?;
            timer.name.parse::<Uid>().ok().map(|uid| uid.child("timer", 0))
        }
    }
}

/// The disk cannot go back, but its process dies.
#[async_trait]
impl Faults for OnDisk {
    fn mark(&mut self) {}

    async fn fail_over(&mut self) {
        self.reopen(Stop::Kill).await;
    }

    fn operator_takes(&mut self, _: &PartitionId) -> Option<Uid> {
        None
    }
}

async fn on_memory(without: Option<Guard>, shape: Shape, seeds: std::ops::Range<u64>) -> Result<(), String> {
    for seed in seeds {
        let mut store = Fallible::new(seed);
        if let Some(guard) = without {
            store.on.memory.guards().remove(guard);
        }
        run(seed, shape, &mut store).await?;
    }
    Ok(())
}

#[tokio::test]
async fn memory_survives_restarts_and_failovers() {
    on_memory(None, Shape::SMALL, 0..4_000).await.unwrap();
}

#[tokio::test]
async fn memory_survives_operators() {
    let shape = Shape {
        operator: true,
        ..Shape::SMALL
    };
    on_memory(None, shape, 0..2_000).await.unwrap();
}

#[tokio::test]
async fn memory_survives_long_histories() {
    let shape = Shape {
        messages: 60,
        keys: 5,
        steps: 800,
        fault_percent: 4,
        ..Shape::SMALL
    };
    on_memory(None, shape, 0..100).await.unwrap();
}

#[tokio::test]
async fn embedded_survives_kills() {
    let shape = Shape {
        messages: 20,
        keys: 3,
        steps: 200,
        fault_percent: 3,
        ..Shape::SMALL
    };
    for seed in 0..6 {
        run(seed, shape, &mut OnDisk::new(seed)).await.unwrap();
    }
}

macro_rules! caught {
    ($($name:ident: $guard:ident),+ $(,)?) => {$(
        #[tokio::test]
        async fn $name() {
            let found = on_memory(Some(Guard::$guard), Shape::SMALL, 0..40_000).await;
            assert!(found.is_err(), "no history shows that {:?} is missing", Guard::$guard);
        }
    )+};
}

caught! {
    without_the_base_id_a_history_breaks: Base,
    without_the_uid_proof_a_history_breaks: EntryUid,
    without_the_gate_a_history_breaks: Gate,
    without_dedup_a_history_breaks: Dedup,
    without_the_hold_a_history_breaks: Hold,
    without_its_place_a_retry_breaks_a_history: InPlace,
    without_the_wake_a_history_breaks: Wake,
}

/// The chain guard is the operator's: without it an owner goes on from what the operator took away.
#[tokio::test]
async fn without_the_chain_an_owner_does_not_notice_an_operator() {
    for (without, noticed) in [(None, true), (Some(Guard::Chain), false)] {
        let on = OnMemory::new(1);
        if let Some(guard) = without {
            on.memory.guards().remove(guard);
        }
        let memory = Arc::clone(&on.memory);
        let world = World::new(Box::new(on));
        let spec = world.spec("a", 1);
        let mut owner = world.own(&spec, 0).await.unwrap();
        let mut commit = world.commit(&owner);
        commit.set_timers.push(world.timer("k", "t", 0));
        owner.must(commit).await.unwrap();
        memory.take_timer(&owner.lease.partition, "k", "t").unwrap();
        let commit = world.commit(&owner);
        assert_eq!(owner.send(commit).await.is_err(), noticed);
    }
}
