//! The in-memory lane: requests on pure Swarms, without cursor or lease.
//!
//! A pure Swarm keeps nothing, so a request on it is as durable as its caller's patience: it travels from stage to stage in
//! memory, is retried within its deadline, and is lost by a crash, which the caller sees as "safe to retry". What goes through a
//! lane never touches the disk. Each stage has one [`Lane`]; a full one refuses, and the refusal reaches the caller as overload.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use skep_model::limits::LANE_MESSAGES_MAX;
use skep_model::message::Message;

/// One message on a lane.
#[derive(Debug, Clone)]
pub struct Travelling {
    pub message: Message,
    /// Attempts made so far at this stage.
    pub attempts: u32,
}

type Ready = Box<dyn Fn() + Send + Sync>;

/// The in-memory inbox of one stage, bounded by [`LANE_MESSAGES_MAX`].
#[derive(Default)]
pub struct Lane {
    queue: Mutex<VecDeque<Travelling>>,
    ready: OnceLock<Ready>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The lane is full: certainly not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the in-memory lane is full")]
pub struct LaneFull;

impl Lane {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The consumer's call, made after each push: it starts work or leaves it to the work under way. Set once.
    pub fn on_ready(&self, ready: impl Fn() + Send + Sync + 'static) {
        // A second consumer would be a defect of the caller; the first one stays.
        let _ = self.ready.set(Box::new(ready));
    }

    /// # Errors
    /// [`LaneFull`] at [`LANE_MESSAGES_MAX`].
    pub fn push(&self, travelling: Travelling) -> Result<(), LaneFull> {
        {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.len() >= LANE_MESSAGES_MAX {
                return Err(LaneFull);
            }
            queue.push_back(travelling);
        }
        if let Some(ready) = self.ready.get() {
            ready();
        }
        Ok(())
    }

    /// Takes up to `messages` and `bytes` of payload, at least one if there is any.
    #[must_use]
    pub fn take(&self, messages: usize, bytes: u64) -> Vec<Travelling> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        let mut size = 0u64;
        while let Some(next) = queue.front() {
            size += next.message.payload.len() as u64;
            if taken.len() >= messages || (size > bytes && !taken.is_empty()) {
                break;
            }
            taken.extend(queue.pop_front());
        }
        taken
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
