//! The in-memory lane: requests on pure Swarms, without cursor or lease.
//!
//! A pure Swarm keeps nothing, so a request on it is as durable as its caller's patience: it travels from stage to stage in
//! memory, is retried within its deadline, and is lost by a crash, which the caller sees as "safe to retry". What goes through a
//! lane never touches the disk. Each stage has one [`Lane`]; a full one refuses, and the refusal reaches the caller as overload.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use skep_model::limits::{LANE_BYTES_MAX, LANE_MESSAGES_MAX};
use skep_model::message::Message;

/// One message on a lane.
#[derive(Debug, Clone)]
pub struct Travelling {
    pub message: Message,
    /// Attempts made so far at this stage.
    pub attempts: u32,
}

impl Travelling {
    fn bytes(&self) -> usize {
        let headers: usize = self
            .message
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        self.message.payload.len() + headers + self.message.key.as_ref().map_or(0, String::len)
    }
}

type Ready = Box<dyn Fn() + Send + Sync>;

/// The in-memory inbox of one stage, bounded by [`LANE_MESSAGES_MAX`] and [`LANE_BYTES_MAX`], what waits for a retry included.
#[derive(Default)]
pub struct Lane {
    queue: Mutex<Queue>,
    ready: OnceLock<Ready>,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Travelling>,
    /// Retries that sleep: they keep their place.
    asleep: usize,
    bytes: usize,
    closed: bool,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The lane is full or closed: certainly not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the in-memory lane is full")]
pub struct LaneFull;

/// A retry that sleeps in its place. Dropped, it gives the place up.
#[derive(Debug)]
pub struct Asleep {
    lane: Arc<Lane>,
    travelling: Option<Travelling>,
}

impl Asleep {
    /// Its time has come: back into the queue.
    pub fn wake(mut self) {
        let Some(travelling) = self.travelling.take() else {
            return;
        };
        {
            let mut queue = self.lane.lock();
            queue.asleep -= 1;
            queue.messages.push_back(travelling);
        }
        self.lane.ring();
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        if let Some(travelling) = self.travelling.take() {
            let mut queue = self.lane.lock();
            queue.asleep -= 1;
            queue.bytes -= travelling.bytes();
        }
    }
}

impl Lane {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The consumer's call, made after each push: it starts work or leaves it to the work under way. Set once.
    pub fn on_ready(&self, ready: impl Fn() + Send + Sync + 'static) {
        // A second consumer would be a defect of the caller; the first one stays.
        let _ = self.ready.set(Box::new(ready));
    }

    fn ring(&self) {
        if let Some(ready) = self.ready.get() {
            ready();
        }
    }

    /// # Errors
    /// [`LaneFull`] at a bound, or when the lane is closed.
    pub fn push(&self, travelling: Travelling) -> Result<(), LaneFull> {
        self.lock().admit(&travelling)?.push_back(travelling);
        self.ring();
        Ok(())
    }

    /// A place for a retry that sleeps first.
    ///
    /// # Errors
    /// Like [`Lane::push`].
    pub fn sleep(self: &Arc<Self>, travelling: Travelling) -> Result<Asleep, LaneFull> {
        let mut queue = self.lock();
        queue.admit(&travelling)?;
        queue.asleep += 1;
        drop(queue);
        Ok(Asleep {
            lane: Arc::clone(self),
            travelling: Some(travelling),
        })
    }

    /// Takes up to `messages` and `bytes` of payload, at least one if there is any.
    #[must_use]
    pub fn take(&self, messages: usize, bytes: u64) -> Vec<Travelling> {
        let mut queue = self.lock();
        let mut taken = Vec::new();
        let mut size = 0u64;
        while let Some(next) = queue.messages.front() {
            let next_bytes = next.bytes();
            size += next_bytes as u64;
            if taken.len() >= messages || (size > bytes && !taken.is_empty()) {
                break;
            }
            queue.bytes -= next_bytes;
            taken.extend(queue.messages.pop_front());
        }
        taken
    }

    /// Takes no more, and gives back what is queued.
    #[must_use]
    pub fn close(&self) -> Vec<Travelling> {
        let mut queue = self.lock();
        queue.closed = true;
        let left: Vec<Travelling> = queue.messages.drain(..).collect();
        queue.bytes -= left.iter().map(Travelling::bytes).sum::<usize>();
        left
    }

    /// What is queued and what sleeps.
    #[must_use]
    pub fn len(&self) -> usize {
        let queue = self.lock();
        queue.messages.len() + queue.asleep
    }

    /// Whether nothing is queued; retries may sleep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().messages.is_empty()
    }
}

impl Queue {
    fn admit(&mut self, travelling: &Travelling) -> Result<&mut VecDeque<Travelling>, LaneFull> {
        let bytes = travelling.bytes();
        let full = self.messages.len() + self.asleep >= LANE_MESSAGES_MAX || self.bytes + bytes > LANE_BYTES_MAX;
        if self.closed || full {
            return Err(LaneFull);
        }
        self.bytes += bytes;
        Ok(&mut self.messages)
    }
}
