//! The backends of this crate, as the suite wants them.

use std::sync::Arc;

use async_trait::async_trait;
use skep_model::env::{Clock, Entropy, ManualClock, SeededEntropy};
use skep_topic::Backend;
use skep_topic::conformance::{Harness, Stop};
use skep_topic::embedded::Embedded;
use skep_topic::memory::Memory;
use tempfile::TempDir;

/// Some time in 2024, so that clocks that start at zero hide nothing.
pub const NOW: u64 = 1_720_000_000_000;

pub struct OnMemory {
    pub memory: Arc<Memory>,
    pub clock: Arc<ManualClock>,
}

impl OnMemory {
    pub fn new(seed: u64) -> Self {
        let clock = Arc::new(ManualClock::at(NOW));
        let memory = Memory::new(Arc::clone(&clock) as Arc<dyn Clock>, Arc::new(SeededEntropy::new(seed)));
        Self { memory, clock }
    }
}

#[async_trait]
impl Harness for OnMemory {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.memory) as Arc<dyn Backend>
    }

    async fn advance(&self, ms: u64) {
        self.clock.advance(ms);
    }

    async fn reopen(&mut self, stop: Stop) -> bool {
        if stop == Stop::Kill {
            self.memory.restart();
        }
        stop == Stop::Kill
    }
}

pub struct OnDisk {
    pub embedded: Option<Arc<Embedded>>,
    pub clock: Arc<ManualClock>,
    pub dir: TempDir,
    pub entropy: Arc<SeededEntropy>,
}

impl OnDisk {
    pub fn new(seed: u64) -> Self {
        let mut new = Self {
            embedded: None,
            clock: Arc::new(ManualClock::at(NOW)),
            dir: tempfile::tempdir().expect("a temporary folder"),
            entropy: Arc::new(SeededEntropy::new(seed)),
        };
        new.open();
        new
    }

    pub fn open(&mut self) {
        let opened = Embedded::open(
            self.dir.path(),
            Arc::clone(&self.clock) as Arc<dyn Clock>,
            Arc::clone(&self.entropy) as Arc<dyn Entropy>,
        );
        self.embedded = Some(opened.expect("the folder opens"));
    }

    pub fn store(&self) -> &Arc<Embedded> {
        self.embedded.as_ref().expect("it is open")
    }
}

#[async_trait]
impl Harness for OnDisk {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(self.store()) as Arc<dyn Backend>
    }

    async fn advance(&self, ms: u64) {
        self.clock.advance(ms);
    }

    async fn reopen(&mut self, stop: Stop) -> bool {
        let store = self.embedded.take().expect("it is open");
        if stop == Stop::Clean {
            store.close().await.expect("it closes");
        }
        // Owners of the rule may hold it still; without a close, the last one gone is the crash.
        assert_eq!(Arc::strong_count(&store), 1, "the rule keeps a handle across a stop");
        drop(store);
        self.open();
        true
    }
}
