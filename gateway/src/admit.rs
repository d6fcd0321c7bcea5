//! How many calls, and how many bytes of them, are under way at once on a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use skep_model::limits::SUBJECT_SHARE;

use crate::call::CallError;
use crate::purse::Purse;

/// Two counters with a bound each. Refuses, never queues: a queue in front of bounded inboxes would only add delay.
///
/// A subject may take [`SUBJECT_SHARE`] times what is free. So one alone may have four fifths of a node, two that flood it have four
/// ninths each, and however many do, there is room for one that just comes.
#[derive(Debug)]
pub struct Admit {
    calls_max: usize,
    bytes_max: usize,
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

/// What one subject has under way.
#[derive(Debug, Default)]
pub struct Load {
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

/// A call's share, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    of: Arc<Admit>,
    calls: usize,
    bytes: usize,
    /// Whose it is, and what it said that it needs; of an answer nobody's.
    subject: Option<(Arc<Purse>, Arc<Load>, usize)>,
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

    /// The tenant's own limits come first: who is over them is told so, however busy the node is with others.
    ///
    /// # Errors
    /// Overloaded: certainly not done, with a hint when to try again.
    pub fn enter(
        self: &Arc<Self>,
        tenant: &Arc<Purse>,
        subject: &Arc<Load>,
        messages: usize,
        bytes: usize,
    ) -> Result<Permit, CallError> {
        tenant.enter(messages as u64, bytes)?;
        let entered = self.enter_node(subject, bytes);
        if entered.is_err() {
            tenant.undo(messages as u64, bytes);
        }
        entered?;
        Ok(Permit {
            of: Arc::clone(self),
            calls: 1,
            bytes,
            subject: Some((Arc::clone(tenant), Arc::clone(subject), bytes)),
        })
    }

    fn enter_node(&self, subject: &Load, bytes: usize) -> Result<(), CallError> {
        let others = self.calls.fetch_add(1, Ordering::Relaxed);
        let own = subject.calls.load(Ordering::Relaxed);
        let free = self.calls_max.saturating_sub(others);
        if free == 0 || own >= SUBJECT_SHARE * free {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(if free == 0 {
                self.too_many_calls()
            } else {
                too_many_own("calls", own)
            });
        }
        let own = subject.bytes.load(Ordering::Relaxed);
        let free = self.bytes_max.saturating_sub(self.bytes());
        let added = if free > 0 && own >= SUBJECT_SHARE * free {
            Err(too_many_own("bytes of calls", own))
        } else {
            self.add(bytes)
        };
        if let Err(full) = added {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(full);
        }
        subject.calls.fetch_add(1, Ordering::Relaxed);
        subject.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
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
            subject: None,
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
        if let Some((tenant, subject, bytes)) = self.subject.take() {
            tenant.give_back(bytes);
            subject.calls.fetch_sub(1, Ordering::Relaxed);
            subject.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

fn too_many_own(what: &str, own: usize) -> CallError {
    CallError::overloaded(
        "subject-share",
        format!("{own} {what} of this subject are under way, its share of the node: what is left is for others"),
    )
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
        let (admit, one, purse) = (Admit::new(2, 100), Arc::default(), Arc::default());
        let a = admit.enter(&purse, &one, 1, 60).unwrap();
        assert_eq!(admit.enter(&purse, &one, 1, 41).unwrap_err().reason, "in-flight-bytes");
        let b = admit.enter(&purse, &one, 1, 40).unwrap();
        assert_eq!(admit.enter(&purse, &one, 1, 0).unwrap_err().reason, "in-flight");
        assert!(admit.peek().is_err());
        drop((a, b));
        assert_eq!(admit.in_flight(), 0);
        assert!(admit.enter(&purse, &one, 1, 100).is_ok());
    }

    #[test]
    fn what_arrives_and_what_leaves_count_too() {
        let (admit, one, purse) = (Admit::new(2, 100), Arc::default(), Arc::default());
        let mut share = admit.share();
        share.set(60).unwrap();
        assert!(share.set(101).is_err(), "refused, and what it had it keeps");
        assert!(admit.enter(&purse, &one, 1, 41).is_err());
        share.set(10).unwrap();
        let mut call = admit.enter(&purse, &one, 1, 90).unwrap();
        drop(share);
        call.cover(50);
        assert_eq!(admit.bytes(), 90);
        call.cover(95);
        // Answers are never refused, and shut the door until they left.
        let answers = (admit.hold(1, 1_000), admit.hold(1, 0));
        assert_eq!(admit.bytes(), 1_095);
        assert!(admit.enter(&purse, &one, 1, 0).is_err());
        drop((call, answers));
        assert_eq!((admit.bytes(), admit.in_flight()), (0, 0));
    }

    #[test]
    fn however_many_subjects_flood_a_node_one_that_comes_finds_room() {
        let (admit, purse) = (Admit::new(1_000, 1_000_000), Arc::default());
        let mut held = Vec::new();
        let mut flood = |subject: &Arc<Load>, bytes: usize| {
            let before = held.len();
            while let Ok(permit) = admit.enter(&purse, subject, 1, bytes) {
                held.push(permit);
            }
            held.len() - before
        };
        let (first, second, third) = (Arc::default(), Arc::default(), Arc::default());
        assert_eq!(flood(&first, 0), 800, "one alone has four fifths");
        assert_eq!(admit.enter(&purse, &first, 1, 0).unwrap_err().reason, "subject-share");
        assert_eq!(flood(&second, 0), 160, "four fifths of what is left");
        assert!(flood(&third, 0) > 20);
        // What the first gives back goes to those who have less.
        held.drain(..400);
        let mut more = Vec::new();
        while let Ok(permit) = admit.enter(&purse, &second, 1, 0) {
            more.push(permit);
        }
        assert!(more.len() > 250, "{}", more.len());
        let again = std::iter::from_fn(|| admit.enter(&purse, &first, 1, 0).ok())
            .take(100)
            .collect::<Vec<_>>();
        assert!(again.len() < 20, "{}", again.len());
        drop((held, more, again));
        let large = admit.enter(&purse, &first, 1, 900_000).unwrap();
        assert_eq!(admit.enter(&purse, &first, 1, 1).unwrap_err().reason, "subject-share");
        assert!(admit.enter(&purse, &second, 1, 90_000).is_ok());
        drop(large);
        assert_eq!((admit.bytes(), admit.in_flight()), (0, 0));
        assert_eq!(
            first.calls.load(Ordering::Relaxed) + first.bytes.load(Ordering::Relaxed),
            0
        );
    }
}
