//! How many calls, and how many bytes of them, are under way at once on a node, and whose.
//!
//! Three things are counted: calls, bodies that are not whole yet, and answers that their clients have not taken yet. All three belong to a
//! tenant, for a slow client is as dear as a busy one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use skep_model::limits::{SUBJECT_SHARE, TENANT_SHARE, UNROUTED_BYTES_MAX};

use crate::call::CallError;
use crate::purse::Purse;

/// Two counters with a bound each. Refuses, never queues: a queue in front of bounded inboxes would only add delay.
///
/// A tenant may take [`TENANT_SHARE`] times what is free. So one alone may have four fifths of a node, two that flood it four fifths and
/// four fifths of the rest, and however many do, there is room for one that just comes. A subject may take [`SUBJECT_SHARE`] times what is
/// free of that share.
///
/// An answer is never refused, so a tenant whose answers are larger than its calls can come to more than its share. What is beyond it is
/// counted for the tenant alone: it takes nothing from the room of others. It stays bounded, by the calls that it was let in with.
#[derive(Debug)]
pub struct Admit {
    calls_max: usize,
    bytes_max: usize,
    calls: AtomicUsize,
    bytes: AtomicUsize,
    /// Of answers beyond their tenants' shares; not among `bytes`.
    beyond: AtomicUsize,
    /// Of bodies from callers whose tenant has no subject here; among `bytes`.
    unrouted: AtomicUsize,
}

/// What one subject has under way.
#[derive(Debug, Default)]
pub struct Load {
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

/// A call's share, or an answer's, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    of: Arc<Admit>,
    calls: usize,
    /// Counted for the node.
    bytes: usize,
    /// Counted beyond its tenant's share.
    beyond: usize,
    tenant: Option<Arc<Purse>>,
    /// Of a call: its subject, and what it came in with.
    entered: Option<(Arc<Load>, usize)>,
    /// Of an answer, counted for the tenant: answers and bytes.
    waiting: (usize, usize),
}

/// Bytes of a body on its way in, given back when dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Admit>,
    tenant: Option<Arc<Purse>>,
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
            beyond: AtomicUsize::new(0),
            unrouted: AtomicUsize::new(0),
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
        let entered = self.enter_node(tenant, subject, bytes);
        if entered.is_err() {
            tenant.undo(messages as u64, bytes);
        }
        entered?;
        Ok(Permit {
            of: Arc::clone(self),
            calls: 1,
            bytes,
            beyond: 0,
            tenant: Some(Arc::clone(tenant)),
            entered: Some((Arc::clone(subject), bytes)),
            waiting: (0, 0),
        })
    }

    /// `tenant` counts this call already.
    fn enter_node(&self, tenant: &Purse, subject: &Load, bytes: usize) -> Result<(), CallError> {
        let free = (self.calls_max).saturating_sub(self.calls.fetch_add(1, Ordering::Relaxed));
        let whose = tenant.calls_held().saturating_sub(1);
        let own = subject.calls.load(Ordering::Relaxed);
        let added = if free == 0 {
            Err(self.too_many_calls())
        } else {
            within(tenant, "calls", whose, own, free)
                .and_then(|()| {
                    let free = self.free_bytes();
                    let whose = tenant.bytes_held().saturating_sub(bytes);
                    // A call without bytes needs none.
                    if free == 0 {
                        return Ok(());
                    }
                    within(tenant, "bytes", whose, subject.bytes.load(Ordering::Relaxed), free)
                })
                .and_then(|()| self.add(bytes))
        };
        if let Err(full) = added {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(full);
        }
        subject.calls.fetch_add(1, Ordering::Relaxed);
        subject.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// For an answer: the work is done, so it is never refused. It leaves the less to those who come next, of its tenant above all.
    #[must_use]
    pub fn hold(self: &Arc<Self>, tenant: Option<&Arc<Purse>>, calls: usize, bytes: usize) -> Permit {
        self.calls.fetch_add(calls, Ordering::Relaxed);
        if let Some(tenant) = tenant {
            tenant.wait_for_client(calls, 0);
        }
        let mut permit = Permit {
            of: Arc::clone(self),
            calls,
            bytes: 0,
            beyond: 0,
            tenant: tenant.cloned(),
            entered: None,
            waiting: (calls, 0),
        };
        permit.cover(bytes);
        permit
    }

    /// For a body that arrives, empty at first. `None`: its caller's tenant has no subject here.
    #[must_use]
    pub fn share(self: &Arc<Self>, tenant: Option<Arc<Purse>>) -> Share {
        Share {
            of: Arc::clone(self),
            tenant,
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

    fn free_bytes(&self) -> usize {
        self.bytes_max.saturating_sub(self.bytes.load(Ordering::Relaxed))
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
        self.bytes.load(Ordering::Relaxed) + self.beyond.load(Ordering::Relaxed)
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

/// `whose`, `own`: what the tenant and its subject have; `free`: what the node has left.
fn within(tenant: &Purse, what: &str, whose: usize, own: usize, free: usize) -> Result<(), CallError> {
    let left = left_to(whose, free);
    if left == 0 {
        return Err(too_many_of_tenant(tenant, what, whose));
    }
    if own >= SUBJECT_SHARE.saturating_mul(left) {
        return Err(CallError::overloaded(
            "subject-share",
            format!("{own} {what} of this subject are under way, its share of the node: what is left is for others"),
        ));
    }
    Ok(())
}

/// What a tenant that has `whose` may still take of what is `free`, as if it took all at once.
fn left_to(whose: usize, free: usize) -> usize {
    // It may have s/(s+1) of what is its own or nobody's.
    let most = (whose.saturating_add(free).saturating_mul(TENANT_SHARE)).div_ceil(TENANT_SHARE + 1);
    most.saturating_sub(whose)
}

fn too_many_of_tenant(tenant: &Purse, what: &str, whose: usize) -> CallError {
    CallError::overloaded(
        "tenant-share",
        format!(
            "tenant `{}` has {whose} {what} under way on this node, answers that its clients do not read and bodies that still arrive \
             included: its share of the node, and what is left is for others",
            tenant.tenant()
        ),
    )
}

impl Permit {
    /// Holds on for the call's answer.
    pub fn cover(&mut self, bytes: usize) {
        let more = bytes.saturating_sub(self.bytes + self.beyond);
        if more == 0 {
            return;
        }
        let fits = self.tenant.as_ref().is_none_or(|tenant| {
            let whose = tenant.bytes_held();
            tenant.wait_for_client(0, more);
            self.waiting.1 += more;
            more <= left_to(whose, self.of.free_bytes())
        });
        if fits {
            self.of.bytes.fetch_add(more, Ordering::Relaxed);
            self.bytes += more;
        } else {
            self.of.beyond.fetch_add(more, Ordering::Relaxed);
            self.beyond += more;
        }
    }

    /// Asked by what is to lie in a topic; see [`Purse::keep`]. Refused, its messages are as if they had not come: nothing of the rate is
    /// paid for them.
    ///
    /// # Errors
    /// The tenant's topics are full.
    pub(crate) fn keep(&self, messages: usize, bytes: usize) -> Result<(), CallError> {
        let Some(tenant) = &self.tenant else { return Ok(()) };
        tenant.keep(bytes).inspect_err(|_| tenant.unpay(messages as u64, bytes))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.of.beyond.fetch_sub(self.beyond, Ordering::Relaxed);
        self.of.calls.fetch_sub(self.calls, Ordering::Relaxed);
        let Some(tenant) = self.tenant.take() else { return };
        tenant.taken_by_client(self.waiting.0, self.waiting.1);
        if let Some((subject, bytes)) = self.entered.take() {
            tenant.give_back(bytes);
            subject.calls.fetch_sub(1, Ordering::Relaxed);
            subject.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Share {
    /// What has arrived and is not a call yet.
    ///
    /// # Errors
    /// Overloaded, as [`Admit::enter`]. What it had it keeps.
    pub fn set(&mut self, bytes: usize) -> Result<(), CallError> {
        if bytes <= self.bytes {
            self.give(self.bytes - bytes);
            self.bytes = bytes;
            return Ok(());
        }
        let more = bytes - self.bytes;
        match &self.tenant {
            Some(tenant) => {
                let whose = tenant.bytes_held();
                if left_to(whose, self.of.free_bytes()) == 0 {
                    return Err(too_many_of_tenant(tenant, "bytes", whose));
                }
                tenant.arrive(self.bytes, more)?;
                if let Err(full) = self.of.add(more) {
                    tenant.taken_by_client(0, more);
                    return Err(full);
                }
            }
            None => {
                let has = self.of.unrouted.fetch_add(more, Ordering::Relaxed);
                let added = if has.saturating_add(more) > UNROUTED_BYTES_MAX.min(self.of.bytes_max) {
                    Err(CallError::overloaded(
                        "unrouted-bytes",
                        format!(
                            "{has} bytes are on their way to this node from callers whose tenant has no subject, of the {UNROUTED_BYTES_MAX} \
                             that it takes from all of them"
                        ),
                    ))
                } else {
                    self.of.add(more)
                };
                if let Err(full) = added {
                    self.of.unrouted.fetch_sub(more, Ordering::Relaxed);
                    return Err(full);
                }
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    fn give(&self, bytes: usize) {
        self.of.bytes.fetch_sub(bytes, Ordering::Relaxed);
        match &self.tenant {
            Some(tenant) => tenant.taken_by_client(0, bytes),
            None => {
                self.of.unrouted.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use skep_model::quota::{Limits, Quota};

    use super::*;

    fn tenant(name: &str) -> Arc<Purse> {
        Arc::new(Purse::new(name.parse().unwrap()))
    }

    #[test]
    fn both_bounds_refuse_and_what_is_dropped_is_given_back() {
        let admit = Admit::new(2, 100);
        let (one, two) = ((tenant("one"), Arc::default()), (tenant("two"), Arc::default()));
        let a = admit.enter(&one.0, &one.1, 1, 60).unwrap();
        assert_eq!(
            admit.enter(&two.0, &two.1, 1, 41).unwrap_err().reason,
            "in-flight-bytes"
        );
        let b = admit.enter(&two.0, &two.1, 1, 40).unwrap();
        assert_eq!(admit.enter(&two.0, &two.1, 1, 0).unwrap_err().reason, "in-flight");
        assert!(admit.peek().is_err());
        drop((a, b));
        assert_eq!(admit.in_flight(), 0);
        assert_eq!((one.0.bytes_held(), two.0.calls_held()), (0, 0));
        assert!(admit.enter(&one.0, &one.1, 1, 100).is_ok());
    }

    #[test]
    fn what_arrives_and_what_leaves_count_for_its_tenant() {
        let admit = Admit::new(100, 1_000);
        let (one, load) = (tenant("one"), Arc::default());
        let mut share = admit.share(Some(Arc::clone(&one)));
        share.set(600).unwrap();
        assert!(share.set(1_001).is_err(), "refused, and what it had it keeps");
        assert_eq!((admit.bytes(), one.bytes_held()), (600, 600));
        share.set(100).unwrap();
        let mut call = admit.enter(&one, &load, 1, 300).unwrap();
        drop(share);
        call.cover(200);
        assert_eq!(admit.bytes(), 300);
        call.cover(350);
        assert_eq!((admit.bytes(), one.bytes_held()), (350, 350));
        // Answers are never refused, and shut the door to their tenant until they left; to nobody else.
        let answers = (admit.hold(Some(&one), 1, 10_000), admit.hold(Some(&one), 1, 500));
        assert_eq!((admit.bytes(), one.bytes_held()), (10_850, 10_850));
        let shut = admit.enter(&one, &load, 1, 1).unwrap_err();
        assert_eq!(shut.reason, "tenant-share");
        assert!(shut.message.contains("`one`"), "{}", shut.message);
        let two = tenant("two");
        let mut other = admit.share(Some(Arc::clone(&two)));
        other.set(400).unwrap();
        drop(other);
        assert!(admit.enter(&two, &Arc::default(), 1, 400).is_ok());
        drop((call, answers));
        assert_eq!((admit.bytes(), admit.in_flight()), (0, 0));
        assert_eq!((one.bytes_held(), one.calls_held()), (0, 0));
    }

    #[test]
    fn bodies_that_are_not_whole_leave_room_to_other_tenants() {
        let admit = Admit::new(100, 1_000_000);
        let mut held = Vec::new();
        let mut flood = |whose: Option<Arc<Purse>>| {
            let before = admit.bytes();
            let refused = loop {
                let mut share = admit.share(whose.clone());
                match share.set(1_000) {
                    Ok(()) => held.push(share),
                    Err(refused) => break refused.reason,
                }
            };
            (admit.bytes() - before, refused)
        };
        let (hostile, slow) = (tenant("hostile"), tenant("slow"));
        assert_eq!(flood(Some(Arc::clone(&hostile))), (800_000, "tenant-share".to_owned()));
        assert_eq!(flood(Some(slow)), (160_000, "tenant-share".to_owned()));
        // A tenant that just comes finds room, and the one that has most none.
        let two = tenant("two");
        admit.enter(&two, &Arc::default(), 1, 20_000).unwrap();
        assert_eq!(
            admit.enter(&hostile, &Arc::default(), 1, 1).unwrap_err().reason,
            "tenant-share"
        );
        drop(held);
        assert_eq!(admit.bytes(), 0);
        // Who has no subject here shares a little with all of that kind.
        let admit = Admit::new(100, 10 * UNROUTED_BYTES_MAX);
        let mut nobody = admit.share(None);
        nobody.set(UNROUTED_BYTES_MAX).unwrap();
        assert_eq!(admit.share(None).set(1).unwrap_err().reason, "unrouted-bytes");
        drop(nobody);
        admit.share(None).set(1).unwrap();
        assert_eq!(admit.bytes(), 0);
    }

    #[test]
    fn a_tenant_s_own_limit_of_bytes_counts_what_its_clients_hold() {
        let admit = Admit::new(100, 1 << 30);
        let (one, load) = (tenant("one"), Arc::default());
        let mut limits = Limits::default();
        limits.set(Quota::InFlight, Some(1 << 20));
        one.limit(&limits, 1.0);
        let mut first = admit.share(Some(Arc::clone(&one)));
        first.set(2 << 20).expect("one alone always fits");
        let refused = admit.share(Some(Arc::clone(&one))).set(1).unwrap_err();
        assert_eq!(refused.reason, "tenant-in-flight");
        drop(first);
        admit.share(Some(Arc::clone(&one))).set(1).unwrap();
        let answers: Vec<_> = (0..9).map(|_| admit.hold(Some(&one), 1, 200 << 10)).collect();
        assert_eq!(admit.enter(&one, &load, 1, 1).unwrap_err().reason, "tenant-in-flight");
        drop(answers);
        admit.enter(&one, &load, 1, 1).unwrap();
        // One that its client has not taken yet bars nobody.
        let _answer = admit.hold(Some(&one), 1, 1 << 20);
        admit.enter(&one, &load, 1, 1).unwrap();
    }

    #[test]
    fn what_full_topics_refuse_is_not_paid_for() {
        let admit = Admit::new(100, 1 << 20);
        let (one, load) = (tenant("one"), Arc::default());
        let mut limits = Limits::default();
        limits.set(Quota::Storage, Some(10));
        limits.set(Quota::Rate, Some(1));
        one.limit(&limits, 1.0);
        for _ in 0..10 {
            let permit = admit.enter(&one, &load, 3, 11).expect("nothing was paid");
            assert_eq!(permit.keep(3, 11).unwrap_err().reason, "tenant-storage");
        }
        let traffic = one.traffic();
        assert_eq!((traffic.messages, traffic.bytes_in, traffic.refused), (0, 0, 10));
    }

    #[test]
    fn however_many_flood_a_node_one_that_comes_finds_room() {
        let (admit, own) = (Admit::new(1_000, 1_000_000), tenant("one"));
        let mut held = Vec::new();
        let mut flood = |whose: &Arc<Purse>, subject: &Arc<Load>| {
            let before = held.len();
            let reason = loop {
                match admit.enter(whose, subject, 1, 0) {
                    Ok(permit) => held.push(permit),
                    Err(refused) => break refused.reason,
                }
            };
            (held.len() - before, reason)
        };
        let (first, second, third) = (Arc::default(), Arc::default(), Arc::default());
        let (all, why) = flood(&own, &first);
        assert!((630..=650).contains(&all), "four fifths of four fifths: {all}");
        assert_eq!(why, "subject-share");
        let (all, _) = flood(&own, &second);
        assert!(
            (120..=135).contains(&all),
            "four fifths of what is left to its tenant: {all}"
        );
        assert!(flood(&own, &third).0 > 15);
        // Of the node, the tenant leaves a fifth to others, who find it whatever it does.
        let (two, three) = (tenant("two"), tenant("three"));
        assert!(flood(&two, &Arc::default()).0 > 100 && flood(&three, &Arc::default()).0 > 15);
        // What the first gives back goes to those who have less.
        held.drain(..400);
        let mut more = Vec::new();
        while let Ok(permit) = admit.enter(&two, &second, 1, 0) {
            more.push(permit);
        }
        assert!(more.len() > 100, "{}", more.len());
        drop((held, more));
        let large = admit.enter(&own, &first, 1, 900_000).unwrap();
        assert_eq!(admit.enter(&own, &first, 1, 1).unwrap_err().reason, "tenant-share");
        assert!(admit.enter(&two, &second, 1, 70_000).is_ok());
        drop(large);
        assert_eq!((admit.bytes(), admit.in_flight()), (0, 0));
        assert_eq!(
            first.calls.load(Ordering::Relaxed) + first.bytes.load(Ordering::Relaxed),
            0
        );
    }
}
