//! What one tenant has of an engine: its part of guest time, a cap on it, places and memory; and what it used.
//!
//! Whoever knows tenants makes one [`Share`] for each and gives it to all of the tenant's Bees. Bees that were given none have one each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use skep_model::limits::GUEST_CPU_BURST_MS;
use skep_model::quota::{Limits, Quota};

const NONE: u64 = u64::MAX;
/// Virtual time of a nanosecond at weight 1: weights go up to a thousand.
const SCALE: u64 = 1_024;
/// How far behind the others a tenant may come back: about two turns, so that one that waits for its store between two batches gets its
/// part all the same, and one that slept does not come back with the right to all of it.
const LAG: u64 = 20_000_000 * SCALE;

/// Where the turns of this process are, in virtual time: the latest start of any.
static NOW: AtomicU64 = AtomicU64::new(0);

/// One tenant's.
#[derive(Debug)]
pub struct Share {
    weight: AtomicU64,
    /// Guest time by its weight; who has the least is next.
    spent: AtomicU64,
    /// Thousandths of a core; `NONE`: no cap.
    cap: AtomicU64,
    /// When the time that it used is paid for at its cap, ns since the process's first look.
    paid_ns: AtomicU64,
    pub(crate) instances_max: AtomicU64,
    pub(crate) memory_max: AtomicU64,
    /// Changed under the lock of `Places` only.
    pub(crate) instances: AtomicU64,
    pub(crate) memory: AtomicU64,
    /// The same of instances that wait for a call.
    pub(crate) spares: AtomicU64,
    pub(crate) spare_memory: AtomicU64,
    /// Connections and lookups of its Bees' requests. Changed under the lock of `egress::Lines` only.
    pub(crate) connections: AtomicU64,
    pub(crate) lookups: AtomicU64,
    /// Live in a process of its own: instances, and what they may grow to.
    apart: [AtomicU64; 2],
    born: AtomicU64,
    used: Meter,
}

/// What was used, by a tenant or by one of its Bees.
#[derive(Debug, Default)]
pub struct Meter {
    cpu_ns: AtomicU64,
    byte_ms: AtomicU64,
}

impl Meter {
    /// CPU time of guest code and of what the host does for it, measured.
    #[must_use]
    pub fn cpu_ns(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed)
    }

    /// Memory of instances, over the time that they lived: bytes times milliseconds. Counted when an instance ends.
    #[must_use]
    pub fn byte_ms(&self) -> u64 {
        self.byte_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn lived(&self, bytes: u64, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.byte_ms.fetch_add(bytes.saturating_mul(ms), Ordering::Relaxed);
    }

    pub(crate) fn ran(&self, ns: u64) {
        self.cpu_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What was used in another process.
    pub(crate) fn add(&self, cpu_ns: u64, byte_ms: u64) {
        self.ran(cpu_ns);
        self.byte_ms.fetch_add(byte_ms, Ordering::Relaxed);
    }
}

impl Default for Share {
    fn default() -> Self {
        Self {
            weight: AtomicU64::new(1),
            spent: AtomicU64::new(0),
            cap: AtomicU64::new(NONE),
            paid_ns: AtomicU64::new(0),
            instances_max: AtomicU64::new(NONE),
            memory_max: AtomicU64::new(NONE),
            instances: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            spares: AtomicU64::new(0),
            spare_memory: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            apart: Default::default(),
            born: AtomicU64::new(0),
            used: Meter::default(),
        }
    }
}

impl Share {
    pub fn limit(&self, limits: &Limits) {
        let set = |at: &AtomicU64, quota| at.store(limits.get(quota).unwrap_or(NONE), Ordering::Relaxed);
        self.weight
            .store(limits.get(Quota::Weight).unwrap_or(1).max(1), Ordering::Relaxed);
        set(&self.cap, Quota::Cpu);
        set(&self.instances_max, Quota::Instances);
        set(&self.memory_max, Quota::Memory);
    }

    #[must_use]
    pub fn used(&self) -> &Meter {
        &self.used
    }

    /// Its live instances, and the memory that they may grow to: those in a call, and those that wait for one.
    #[must_use]
    pub fn live(&self) -> (u64, u64) {
        let (here, apart) = (self.live_here(), &self.apart);
        (
            here.0.saturating_add(apart[0].load(Ordering::Relaxed)),
            here.1.saturating_add(apart[1].load(Ordering::Relaxed)),
        )
    }

    /// The same of this process alone.
    pub(crate) fn live_here(&self) -> (u64, u64) {
        let (calls, spares) = (self.called(), self.spared());
        (calls.0 + spares.0, calls.1 + spares.1)
    }

    /// Which tenant of its name it is: when that one was made, ms.
    pub fn bear(&self, created_ms: u64) {
        self.born.store(created_ms, Ordering::Relaxed);
    }

    pub(crate) fn born(&self) -> u64 {
        self.born.load(Ordering::Relaxed)
    }

    pub(crate) fn note_apart(&self, instances: u64, memory: u64) {
        self.apart[0].store(instances, Ordering::Relaxed);
        self.apart[1].store(memory, Ordering::Relaxed);
    }

    /// Its limits, for the tenant's own process: weight, cap, instances, memory.
    pub(crate) fn told(&self) -> [u64; 4] {
        [&self.weight, &self.cap, &self.instances_max, &self.memory_max].map(|at| at.load(Ordering::Relaxed))
    }

    pub(crate) fn tell(&self, told: [u64; 4]) {
        let places = [&self.weight, &self.cap, &self.instances_max, &self.memory_max];
        places
            .into_iter()
            .zip(told)
            .for_each(|(at, told)| at.store(told, Ordering::Relaxed));
    }

    /// Thousandths of a core, where they are limited.
    pub(crate) fn cap(&self) -> Option<u64> {
        Some(self.cap.load(Ordering::Relaxed)).filter(|cap| *cap != NONE)
    }

    /// What its instances may grow to together, where that is limited.
    pub(crate) fn memory_cap(&self) -> Option<u64> {
        Some(self.memory_max.load(Ordering::Relaxed)).filter(|most| *most != NONE)
    }

    pub(crate) fn called(&self) -> (u64, u64) {
        (
            self.instances.load(Ordering::Relaxed),
            self.memory.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn spared(&self) -> (u64, u64) {
        (
            self.spares.load(Ordering::Relaxed),
            self.spare_memory.load(Ordering::Relaxed),
        )
    }

    /// More instances or memory than its limits: spares must go.
    pub(crate) fn is_over(&self) -> bool {
        let (instances, memory) = self.live_here();
        let over =
            instances > self.instances_max.load(Ordering::Relaxed) || memory > self.memory_max.load(Ordering::Relaxed);
        over && self.spared().0 > 0
    }

    /// The most that one instance may have.
    pub(crate) fn memory_of(&self, wanted: usize) -> usize {
        let most = self.memory_max.load(Ordering::Relaxed);
        wanted.min(usize::try_from(most).unwrap_or(usize::MAX))
    }

    pub(crate) fn spent(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }

    /// A turn begins. Who was away does not come back with more than [`LAG`] of what the others used meanwhile.
    pub(crate) fn catch_up(&self) {
        let now = NOW.load(Ordering::Relaxed);
        let (least, spent) = (now.saturating_sub(LAG), self.spent());
        if spent < least {
            self.spent.fetch_max(least, Ordering::Relaxed);
        } else if spent > now {
            NOW.fetch_max(spent, Ordering::Relaxed);
        }
    }

    /// What a turn took.
    pub(crate) fn charge(&self, ns: u64, now_ns: u64) {
        self.used.ran(ns);
        let weighted = ns.saturating_mul(SCALE) / self.weight.load(Ordering::Relaxed);
        self.spent.fetch_add(weighted, Ordering::Relaxed);
        let cap = self.cap.load(Ordering::Relaxed);
        if cap != NONE {
            let cost = ns.saturating_mul(1_000) / cap.max(1);
            let _ = self.paid_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
                Some(paid.max(now_ns).saturating_add(cost))
            });
        }
    }

    /// How long it must wait for its cap.
    pub(crate) fn over_cap(&self, now_ns: impl Fn() -> u64) -> Option<Duration> {
        if self.cap.load(Ordering::Relaxed) == NONE {
            return None;
        }
        let ahead = self.paid_ns.load(Ordering::Relaxed).saturating_sub(now_ns());
        let burst = GUEST_CPU_BURST_MS * 1_000_000;
        (ahead > burst).then(|| Duration::from_nanos(ahead - burst))
    }

    pub(crate) fn is_capped(&self) -> bool {
        self.cap.load(Ordering::Relaxed) != NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_is_kept_over_time_and_does_not_gather_what_was_not_used() {
        let share = Share::default();
        assert_eq!(share.over_cap(|| 0), None);
        let mut limits = Limits::default();
        limits.set(Quota::Cpu, Some(250));
        share.limit(&limits);
        let (mut now, mut used) = (1_000_000_000_u64, 0);
        let end = now + 10_000_000_000;
        while now < end {
            match share.over_cap(|| now) {
                Some(wait) => now += u64::try_from(wait.as_nanos()).unwrap(),
                None => {
                    now += 10_000_000;
                    used += 10_000_000;
                    share.charge(10_000_000, now);
                }
            }
        }
        let part = used * 1_000 / 10_000_000_000;
        assert!((250..=265).contains(&part), "{part}");
        // An hour later: one burst.
        now += 3_600_000_000_000;
        let mut burst = 0;
        while share.over_cap(|| now).is_none() {
            share.charge(1_000_000, now);
            burst += 1;
        }
        assert!(burst <= 26, "{burst} ms");
        assert_eq!(share.used().cpu_ns(), used + burst * 1_000_000);
    }

    #[test]
    fn who_was_away_comes_back_a_little_behind() {
        let (busy, away) = (Share::default(), Share::default());
        for _ in 0..100 {
            busy.catch_up();
            busy.charge(10_000_000, 0);
        }
        away.catch_up();
        let behind = busy.spent() - away.spent();
        assert!((1..=LAG + 10_000_000 * SCALE).contains(&behind), "{behind}");
    }
}
