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
        if self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > self.bytes_max {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(CallError::overloaded(
                "in-flight-bytes",
                format!(
                    "{} bytes of calls are under way on this node, as many as it takes",
                    self.bytes_max
                ),
            ));
        }
        Ok(Permit {
            of: Arc::clone(self),
            bytes,
        })
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

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.of.calls.fetch_sub(1, Ordering::Relaxed);
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
}
