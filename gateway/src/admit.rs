//! How many calls, and how many bytes of them, are under way at once on a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::call::CallError;

/// Two counters with a bound each. Refuses, never queues: a queue in front of bounded inboxes would only add delay.
#[derive(Debug)]
pub struct Admit {
    calls_max: usize,
    bytes_max: usize,
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

/// A call's share, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    of: Arc<Admit>,
    calls: usize,
    bytes: usize,
}

/// Bytes of a body on its way in, given back when dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Admit>,
    bytes: usize,
}

impl Admit {
    #[must_use]
    pub fn new(calls_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            calls_max,
            bytes_max,
            calls: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        })
    }

    /// # Errors
    /// Overloaded: certainly not done, with a hint when to try again.
    pub fn enter(self: &Arc<Self>, bytes: usize) -> Result<Permit, CallError> {
        if self.calls.fetch_add(1, Ordering::Relaxed) >= self.calls_max {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(self.too_many_calls());
        }
        if let Err(full) = self.add(bytes) {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(full);
        }
        Ok(Permit {
            of: Arc::clone(self),
            calls: 1,
            bytes,
        })
    }

    /// For an answer: the work is done, so it is never refused. It leaves the less to those who come next.
    #[must_use]
    pub fn hold(self: &Arc<Self>, calls: usize, bytes: usize) -> Permit {
        self.calls.fetch_add(calls, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Permit {
            of: Arc::clone(self),
            calls,
            bytes,
        }
    }

    /// For a body that arrives, empty at first.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> Share {
        Share {
            of: Arc::clone(self),
            bytes: 0,
        }
    }

    fn add(&self, bytes: usize) -> Result<(), CallError> {
        if bytes == 0 || self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= self.bytes_max {
            return Ok(());
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(CallError::overloaded(
            "in-flight-bytes",
            format!(
                "{} bytes of calls are under way on this node, as many as it takes",
                self.bytes_max
            ),
        ))
    }

    /// Asked before a body is read: what would be refused anyway need not be parsed.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub fn peek(&self) -> Result<(), CallError> {
        if self.in_flight() >= self.calls_max {
            return Err(self.too_many_calls());
        }
        Ok(())
    }

    /// Bytes under way: calls, what arrives, answers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn too_many_calls(&self) -> CallError {
        CallError::overloaded(
            "in-flight",
            format!(
                "{} calls are under way on this node, as many as it takes",
                self.calls_max
            ),
        )
    }
}

impl Permit {
    /// Holds on for the call's answer.
    pub fn cover(&mut self, bytes: usize) {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            self.of.bytes.fetch_add(more, Ordering::Relaxed);
            self.bytes = bytes;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.of.calls.fetch_sub(self.calls, Ordering::Relaxed);
    }
}

impl Share {
    /// What has arrived and is not a call yet.
    ///
    /// # Errors
    /// Overloaded, as [`Admit::enter`].
    pub fn set(&mut self, bytes: usize) -> Result<(), CallError> {
        if bytes > self.bytes {
            self.of.add(bytes - self.bytes)?;
        } else {
            self.of.bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_refuse_and_what_is_dropped_is_given_back() {
        let admit = Admit::new(2, 100);
        let a = admit.enter(60).unwrap();
        assert_eq!(admit.enter(41).unwrap_err().reason, "in-flight-bytes");
        let b = admit.enter(40).unwrap();
        assert_eq!(admit.enter(0).unwrap_err().reason, "in-flight");
        assert!(admit.peek().is_err());
        drop((a, b));
        assert_eq!(admit.in_flight(), 0);
        assert!(admit.enter(100).is_ok());
    }

    #[test]
    fn what_arrives_and_what_leaves_count_too() {
        let admit = Admit::new(2, 100);
        let mut share = admit.share();
        share.set(60).unwrap();
        assert!(share.set(101).is_err(), "refused, and what it had it keeps");
        assert!(admit.enter(41).is_err());
        share.set(10).unwrap();
        let mut call = admit.enter(90).unwrap();
        drop(share);
        call.cover(50);
        assert_eq!(admit.bytes(), 90);
        call.cover(95);
        // Answers are never refused, and shut the door until they left.
        let answers = (admit.hold(1, 1_000), admit.hold(1, 0));
        assert_eq!(admit.bytes(), 1_095);
        assert!(admit.enter(0).is_err());
        drop((call, answers));
        assert_eq!((admit.bytes(), admit.in_flight()), (0, 0));
    }
}
