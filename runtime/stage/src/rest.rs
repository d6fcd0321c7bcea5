//! Swarms that may have come to their end: rung by owners of partitions, taken by whoever looks.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_model::scope::SwarmPath;
use tokio::sync::Notify;

/// At most one entry for each Swarm that runs here.
#[derive(Debug, Default)]
pub struct Rest {
    rung: Mutex<BTreeSet<SwarmPath>>,
    bell: Notify,
}

impl Rest {
    /// A partition of a Swarm that can end has nothing to do, or something else was done that its end may have waited for.
    pub fn ring(&self, swarm: SwarmPath) {
        if self.lock().insert(swarm) {
            self.bell.notify_one();
        }
    }

    /// Waits for a Swarm to ring, and takes all that did. Nothing is taken by a call that is dropped.
    pub async fn rung(&self) -> BTreeSet<SwarmPath> {
        loop {
            let rung = std::mem::take(&mut *self.lock());
            if !rung.is_empty() {
                return rung;
            }
            self.bell.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<SwarmPath>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
