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
    ///
    /// # Errors
    /// [`LaneFull`] when the lane was closed meanwhile; its place is given up.
    pub fn wake(mut self) -> Result<(), LaneFull> {
        {
            let mut queue = self.lane.lock();
            if queue.closed {
                drop(queue);
                return Err(LaneFull);
            }
            if let Some(travelling) = self.travelling.take() {
                queue.asleep -= 1;
                queue.messages.push_back(travelling);
            }
        }
        self.lane.ring();
        Ok(())
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

    /// Calls the consumer, as after a push.
    pub fn ring(&self) {
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

    /// Takes up to `messages` and `bytes` of payload, at least one if there is any. One whose caller takes parts comes alone: nobody
    /// else should wait for its end.
    #[must_use]
    pub fn take(&self, messages: usize, bytes: u64) -> Vec<Travelling> {
        let mut queue = self.lock();
        let mut taken = Vec::new();
        let mut size = 0u64;
        while let Some(next) = queue.messages.front() {
            let next_bytes = next.bytes();
            let alone = next.message.streams();
            size += next_bytes as u64;
            if taken.len() >= messages || ((size > bytes || alone) && !taken.is_empty()) {
                break;
            }
            queue.bytes -= next_bytes;
            taken.extend(queue.messages.pop_front());
            if alone {
                break;
            }
        }
        taken
    }

    /// Takes no more, and gives back what is queued. Retries that sleep find it closed when they wake.
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skep_model::id::Uid;

    use super::*;

    fn travelling(bytes: usize) -> Travelling {
        Travelling {
            message: Message {
                uid: Uid([1; 16]),
                key: None,
                headers: Vec::new(),
                payload: Bytes::from(vec![0; bytes]),
                accepted_ms: 0,
                request: None,
                trace: None,
                lineage: None,
                hops: Vec::new(),
            },
            attempts: 0,
        }
    }

    #[test]
    fn bytes_and_messages_bound_it_and_what_is_taken_makes_room() {
        let lane = Lane::new();
        lane.push(travelling(LANE_BYTES_MAX - 1)).unwrap();
        assert_eq!(lane.push(travelling(2)), Err(LaneFull));
        lane.push(travelling(1)).unwrap();
        assert_eq!(lane.take(1, u64::MAX).len(), 1);
        for _ in 0..LANE_MESSAGES_MAX - 1 {
            lane.push(travelling(1)).unwrap();
        }
        assert_eq!(lane.push(travelling(0)), Err(LaneFull));
        assert_eq!(lane.len(), LANE_MESSAGES_MAX);
    }

    #[test]
    fn a_sleeping_retry_keeps_its_place_until_it_wakes_or_is_dropped() {
        let lane = Lane::new();
        let asleep = lane.sleep(travelling(LANE_BYTES_MAX)).unwrap();
        assert!(lane.is_empty());
        assert_eq!((lane.len(), lane.push(travelling(1))), (1, Err(LaneFull)));
        asleep.wake().unwrap();
        assert_eq!((lane.len(), lane.take(1, 0).len()), (1, 1));
        drop(lane.sleep(travelling(LANE_BYTES_MAX)).unwrap());
        assert_eq!(lane.len(), 0);
        lane.push(travelling(LANE_BYTES_MAX)).unwrap();
    }

    #[test]
    fn a_closed_lane_gives_back_what_is_queued_and_takes_nothing() {
        let lane = Lane::new();
        lane.push(travelling(1)).unwrap();
        let asleep = lane.sleep(travelling(1)).unwrap();
        assert_eq!(lane.close().len(), 1);
        assert_eq!(lane.push(travelling(1)), Err(LaneFull));
        assert_eq!((asleep.wake(), lane.len()), (Err(LaneFull), 0));
        assert!(lane.take(1, 1).is_empty());
    }
}
