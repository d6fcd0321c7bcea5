//! What one tenant may have of a node's doors, and what it had.
//!
//! Whoever knows the tenant's limits sets them here ([`Purse::limit`]); a call pays when it is admitted ([`crate::admit::Admit::enter`]). A
//! tenant without limits pays nothing but the counting.
//!
//! The rate is kept as the time at which all that was sent is paid for (GCRA): one atomic, no task that fills buckets. A call may be let in
//! as long as that time is not further ahead than [`RATE_BURST_MS`]; a submit of many messages may run it further into debt, so that no
//! call is too large to ever come in, and those after it wait until the debt is paid.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use skep_model::limits::{PAYLOAD_BYTES_MAX, RATE_BURST_MS};
use skep_model::name::TenantId;
use skep_model::quota::{Limits, Quota};

use crate::call::CallError;

const NONE: u64 = u64::MAX;
const BURST_NS: u64 = RATE_BURST_MS * 1_000_000;

#[derive(Debug)]
pub struct Purse {
    tenant: TenantId,
    born: Instant,
    /// What one message takes of the rate that this node has; 0: no rate.
    each_ns: AtomicU64,
    /// When all that was sent is paid for, since `born`.
    paid_ns: AtomicU64,
    /// The tenant's own rate, over all nodes, for people.
    rate: AtomicU64,
    calls_max: AtomicU64,
    bytes_max: AtomicU64,
    storage_max: AtomicU64,
    /// Bytes in its topics, as they were counted last, with what came since.
    stored: AtomicU64,
    calls: AtomicUsize,
    bytes: AtomicUsize,
    /// Answers that its clients have not taken yet.
    answers: AtomicUsize,
    /// Bytes of them, and of bodies that its clients have not sent whole yet.
    waiting: AtomicUsize,
    counted: Counted,
}

/// Since the node started.
#[derive(Debug, Default)]
struct Counted {
    /// Messages that it wanted to send, refused ones included.
    offered: AtomicU64,
    messages: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    refused: AtomicU64,
}

/// [`Counted`] at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub offered: u64,
    pub messages: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub refused: u64,
}

impl Purse {
    #[must_use]
    pub fn new(tenant: TenantId) -> Self {
        Self {
            tenant,
            born: Instant::now(),
            each_ns: AtomicU64::new(0),
            paid_ns: AtomicU64::new(0),
            rate: AtomicU64::new(NONE),
            calls_max: AtomicU64::new(NONE),
            bytes_max: AtomicU64::new(NONE),
            storage_max: AtomicU64::new(NONE),
            stored: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            counted: Counted::default(),
        }
    }

    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// `share`: the part of its rate that this node has, 0 to 1.
    pub fn limit(&self, limits: &Limits, share: f64) {
        let set = |at: &AtomicU64, quota| at.store(limits.get(quota).unwrap_or(NONE), Ordering::Relaxed);
        set(&self.rate, Quota::Rate);
        set(&self.calls_max, Quota::Concurrency);
        set(&self.bytes_max, Quota::InFlight);
        set(&self.storage_max, Quota::Storage);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rate is far under 2^52, and a cast of what is too large stays at the largest"
        )]
        let each = limits.get(Quota::Rate).map_or(0, |rate| {
            let own = rate as f64 * share.clamp(0.0, 1.0);
            // An hour a message is a node that has nothing of it.
            ((1e9 / own) as u64).clamp(1, 3_600_000_000_000)
        });
        let before = self.each_ns.swap(each, Ordering::Relaxed);
        if before == each {
            return;
        }
        // What was paid ahead is so many messages, whatever one costs from now on: a node whose part of the rate was small when a batch came
        // does not refuse for hours once its part is large.
        let now = self.now_ns();
        let _ = self.paid_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
            let ahead = u128::from(paid.saturating_sub(now)) * u128::from(each);
            let ahead = ahead.checked_div(u128::from(before)).unwrap_or(0);
            Some(now.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX)))
        });
    }

    /// Messages a second that this node lets in; `None`: as many as come.
    #[must_use]
    pub fn part_of_rate(&self) -> Option<u64> {
        let each = self.each_ns.load(Ordering::Relaxed);
        (each > 0).then(|| (1_000_000_000 + each / 2) / each)
    }

    /// Bytes in its topics, as somebody counted them.
    pub fn note_stored(&self, bytes: u64) {
        self.stored.store(bytes, Ordering::Relaxed);
    }

    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let at = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Traffic {
            offered: at(&self.counted.offered),
            messages: at(&self.counted.messages),
            bytes_in: at(&self.counted.bytes_in),
            bytes_out: at(&self.counted.bytes_out),
            refused: at(&self.counted.refused),
        }
    }

    /// Calls under way, and bytes: theirs, and what its clients have not sent whole or not taken yet.
    #[must_use]
    pub fn in_flight(&self) -> (usize, usize) {
        (self.calls.load(Ordering::Relaxed), self.bytes_held())
    }

    /// Calls under way, and answers that wait for their clients.
    pub(crate) fn calls_held(&self) -> usize {
        self.calls.load(Ordering::Relaxed) + self.answers.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes_held(&self) -> usize {
        self.bytes.load(Ordering::Relaxed) + self.waiting.load(Ordering::Relaxed)
    }

    /// More of a body that has brought `has` so far.
    ///
    /// # Errors
    /// Over the limit of bytes in flight, unless it is the only one. Nothing is taken then.
    pub(crate) fn arrive(&self, has: usize, more: usize) -> Result<(), CallError> {
        let most = self.bytes_max.load(Ordering::Relaxed);
        let all = self.waiting.fetch_add(more, Ordering::Relaxed);
        if all > has && (all as u64).saturating_add(more as u64) > most {
            self.waiting.fetch_sub(more, Ordering::Relaxed);
            self.counted.refused.fetch_add(1, Ordering::Relaxed);
            return Err(self.over(Quota::InFlight, most, &unsent(all)));
        }
        Ok(())
    }

    pub(crate) fn wait_for_client(&self, answers: usize, bytes: usize) {
        self.answers.fetch_add(answers, Ordering::Relaxed);
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn taken_by_client(&self, answers: usize, bytes: usize) {
        self.answers.fetch_sub(answers, Ordering::Relaxed);
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// # Errors
    /// Overloaded: the tenant has what it may have. Nothing is taken then.
    pub(crate) fn enter(&self, messages: u64, bytes: usize) -> Result<(), CallError> {
        self.counted.offered.fetch_add(messages, Ordering::Relaxed);
        let entered = self.take(messages, bytes, || self.now_ns());
        match &entered {
            Ok(()) => {
                self.counted.messages.fetch_add(messages, Ordering::Relaxed);
                self.counted.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(_) => {
                self.counted.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        entered
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn take(&self, messages: u64, bytes: usize, now_ns: impl Fn() -> u64) -> Result<(), CallError> {
        let most = self.calls_max.load(Ordering::Relaxed);
        let own = self.calls.fetch_add(1, Ordering::Relaxed) as u64;
        if own >= most {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(self.over(
                Quota::Concurrency,
                most,
                &format!("{own} of its calls are under way on this node"),
            ));
        }
        let most = self.bytes_max.load(Ordering::Relaxed);
        let waits = self.waiting.load(Ordering::Relaxed);
        // An answer is counted until its last byte has left, a moment after its client may have sent the next call: one more of the largest
        // bars nobody.
        if waits as u64 > most.saturating_add(PAYLOAD_BYTES_MAX as u64) {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            return Err(self.over(Quota::InFlight, most, &unsent(waits)));
        }
        let own = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // One call alone always fits.
        if own > 0 && (own as u64).saturating_add(bytes as u64) > most {
            self.give_back(bytes);
            let has = format!("{own} bytes of its calls are under way on this node");
            return Err(self.over(Quota::InFlight, most, &has));
        }
        if let Err(late) = self.pay(messages, now_ns) {
            self.give_back(bytes);
            return Err(late);
        }
        Ok(())
    }

    fn pay(&self, messages: u64, now_ns: impl Fn() -> u64) -> Result<(), CallError> {
        let each = self.each_ns.load(Ordering::Relaxed);
        if each == 0 {
            return Ok(());
        }
        let now = now_ns();
        let mut paid = self.paid_ns.load(Ordering::Relaxed);
        loop {
            if paid > now.saturating_add(BURST_NS) {
                let wait_ms = (paid - now - BURST_NS).div_ceil(1_000_000);
                let most = self.rate.load(Ordering::Relaxed);
                let mut late = self.over(
                    Quota::Rate,
                    most,
                    &format!("it sent so many; the next may come in {wait_ms} ms"),
                );
                late.retry_after_ms = wait_ms;
                return Err(late);
            }
            let next = paid.max(now).saturating_add(each.saturating_mul(messages));
            match self
                .paid_ns
                .compare_exchange_weak(paid, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(other) => paid = other,
            }
        }
    }

    /// A call that was admitted, and refused by the node: it is as if it had not come.
    pub(crate) fn undo(&self, messages: u64, bytes: usize) {
        self.give_back(bytes);
        self.unpay(messages, bytes);
    }

    /// The same for one whose permit gives back the rest.
    pub(crate) fn unpay(&self, messages: u64, bytes: usize) {
        let each = self.each_ns.load(Ordering::Relaxed).saturating_mul(messages);
        let _ = self.paid_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
            Some(paid.saturating_sub(each))
        });
        self.counted.messages.fetch_sub(messages, Ordering::Relaxed);
        self.counted.bytes_in.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Asked by what is to lie in a topic: what travels in memory keeps nothing.
    ///
    /// # Errors
    /// Its topics are full.
    pub(crate) fn keep(&self, bytes: usize) -> Result<(), CallError> {
        let most = self.storage_max.load(Ordering::Relaxed);
        if most == NONE {
            return Ok(());
        }
        let has = self.stored.fetch_add(bytes as u64, Ordering::Relaxed);
        if has.saturating_add(bytes as u64) <= most {
            return Ok(());
        }
        self.stored.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.counted.refused.fetch_add(1, Ordering::Relaxed);
        let has = format!("its topics hold {has} bytes; they go as its Bees work, and dead letters by `skep dlq`");
        Err(self.over(Quota::Storage, most, &has))
    }

    /// Messages that come by another way than a call, and are to lie in a topic: they count for rate and storage as a call's do.
    ///
    /// # Errors
    /// Overloaded: the tenant has what it may have. Nothing is taken then.
    pub fn pass(&self, messages: u64, bytes: usize) -> Result<(), CallError> {
        self.enter(messages, bytes)?;
        self.give_back(bytes);
        self.keep(bytes).inspect_err(|_| self.unpay(messages, bytes))
    }

    /// What [`Self::pass`] took was not appended after all.
    pub fn put_back(&self, messages: u64, bytes: usize) {
        self.unpay(messages, bytes);
        if self.storage_max.load(Ordering::Relaxed) != NONE {
            let _ = self.stored.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |has| {
                Some(has.saturating_sub(bytes as u64))
            });
        }
    }

    pub(crate) fn answered(&self, bytes: usize) {
        self.counted.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Names the tenant and its own number, and nothing of others.
    fn over(&self, quota: Quota, most: u64, has: &str) -> CallError {
        CallError::overloaded(
            &format!("tenant-{quota}"),
            format!(
                "tenant `{}` has reached its limit `{quota}` of {}: {has}",
                self.tenant,
                quota.show(most)
            ),
        )
    }
}

fn unsent(bytes: usize) -> String {
    format!("its clients have not read, or not sent whole, {bytes} bytes on this node")
}

impl Default for Purse {
    /// Of the default tenant, without limits.
    fn default() -> Self {
        Self::new(TenantId::default_tenant())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purse(limits: &[(Quota, u64)], share: f64) -> Purse {
        let purse = Purse::new("acme".parse().unwrap());
        let mut all = Limits::default();
        limits.iter().for_each(|(quota, value)| all.set(*quota, Some(*value)));
        purse.limit(&all, share);
        purse
    }

    /// Calls that come in within `seconds`, of `per_second` that are tried, `messages` each.
    fn come_in(purse: &Purse, from_ns: u64, seconds: u64, per_second: u64, messages: u64) -> u64 {
        let mut came = 0;
        for call in 0..seconds * per_second {
            let now = from_ns + call * 1_000_000_000 / per_second;
            if purse.take(messages, 1, || now).is_ok() {
                purse.give_back(1);
                came += messages;
            }
        }
        came
    }

    #[test]
    fn a_rate_is_kept_whatever_is_tried_and_however_it_is_cut() {
        for (rate, share, tried, messages) in [
            (1_000, 1.0, 5_000, 1),
            (1_000, 0.25, 5_000, 1),
            (1_000, 1.0, 50, 100),
            (7, 1.0, 1_000, 1),
            (100_000, 1.0, 300_000, 1),
        ] {
            let purse = purse(&[(Quota::Rate, rate)], share);
            let came = come_in(&purse, 0, 10, tried, messages);
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let (came, wanted) = (came as f64, rate as f64 * share * 10.0);
            assert!((came / wanted - 1.0).abs() < 0.05, "{came} of {wanted}");
        }
        // Under its rate nobody is refused.
        let purse = purse(&[(Quota::Rate, 1_000)], 1.0);
        assert_eq!(come_in(&purse, 0, 10, 900, 1), 9_000);
        // Nor does quiet time add up.
        let later = come_in(&purse, 3_600_000_000_000, 1, 10_000, 1);
        assert!((1_000..=1_101).contains(&later), "{later}");
    }

    #[test]
    fn what_was_sent_ahead_is_so_many_messages_whatever_the_node_s_part_becomes() {
        let purse = purse(&[(Quota::Rate, 100)], 0.01);
        // A hundred seconds of a hundredth of the rate; one of all of it.
        purse.enter(100, 1).unwrap();
        let mut all = Limits::default();
        all.set(Quota::Rate, Some(100));
        purse.limit(&all, 1.0);
        let late = purse.enter(1, 1).unwrap_err();
        assert!(late.retry_after_ms <= 1_000, "{}", late.retry_after_ms);
        // And back.
        purse.limit(&all, 0.01);
        let late = purse.enter(1, 1).unwrap_err();
        assert!(late.retry_after_ms > 50_000, "{}", late.retry_after_ms);
        // Without a rate nothing is owed.
        purse.limit(&Limits::default(), 1.0);
        purse.limit(&all, 1.0);
        purse.enter(1, 1).unwrap();
    }

    #[test]
    fn a_limit_refuses_by_its_name_with_the_tenant_s_own_number() {
        let purse = purse(
            &[(Quota::Rate, 10), (Quota::Concurrency, 2), (Quota::InFlight, 1 << 20)],
            0.5,
        );
        purse.enter(1, 1 << 21).expect("one call alone always fits");
        let full = purse.enter(1, 1).unwrap_err();
        assert_eq!(
            (full.reason.as_str(), full.retry_after_ms > 0),
            ("tenant-in-flight", true)
        );
        purse.give_back(1 << 21);
        let late = purse.enter(1, 1).unwrap_err();
        assert_eq!(late.reason, "tenant-rate");
        assert!(
            late.message.contains("`acme`") && late.message.contains("10/s"),
            "{}",
            late.message
        );
        assert!((1..=200).contains(&late.retry_after_ms), "{}", late.retry_after_ms);
        purse.limit(&Limits::default(), 1.0);
        purse.enter(1, 0).unwrap();
        purse.enter(1, 0).unwrap();
        let traffic = purse.traffic();
        assert_eq!((traffic.messages, traffic.offered, traffic.refused), (3, 5, 2));
        assert_eq!(purse.in_flight(), (2, 0));
    }

    #[test]
    fn what_the_node_refused_was_not_paid_for() {
        let purse = purse(&[(Quota::Rate, 10)], 1.0);
        for _ in 0..100 {
            purse.enter(1, 5).unwrap();
            purse.undo(1, 5);
        }
        assert_eq!((purse.in_flight(), purse.traffic().messages), ((0, 0), 0));
    }

    #[test]
    fn full_topics_take_nothing_until_they_were_counted_again() {
        let purse = purse(&[(Quota::Storage, 100)], 1.0);
        purse.note_stored(60);
        purse.keep(40).unwrap();
        assert_eq!(purse.keep(1).unwrap_err().reason, "tenant-storage");
        purse.note_stored(10);
        purse.keep(1).unwrap();
    }
}
