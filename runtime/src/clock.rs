//! The store's clock, as this node knows it: its own machine's, moved by what the last beat told. Deadlines travel with messages and are
//! compared at other nodes, so they go by the one clock that all have.

use std::sync::atomic::{AtomicI64, Ordering};

use skep_model::env::{Clock, SystemClock};

/// Less is what a beat takes on the way, and no reason to move.
const NOISE_MS: u64 = 50;
/// A beat that took longer does not tell the time.
const SLOW_MS: u64 = 1_000;

#[derive(Debug, Default)]
pub struct StoreClock {
    machine: SystemClock,
    ahead_ms: AtomicI64,
}

impl StoreClock {
    /// What the machine says.
    #[must_use]
    pub fn machine_ms(&self) -> u64 {
        self.machine.now_ms()
    }

    /// The store said `store_ms` somewhere between two moments of the machine's clock.
    pub fn learn(&self, store_ms: u64, sent_ms: u64, answered_ms: u64) {
        let took = answered_ms.saturating_sub(sent_ms);
        if took > SLOW_MS || answered_ms < sent_ms {
            return;
        }
        let ahead = store_ms.checked_signed_diff(sent_ms + took / 2).unwrap_or_default();
        if ahead.abs_diff(self.ahead_ms.load(Ordering::Relaxed)) > NOISE_MS {
            self.ahead_ms.store(ahead, Ordering::Relaxed);
        }
    }
}

impl Clock for StoreClock {
    fn now_ms(&self) -> u64 {
        let ahead = self.ahead_ms.load(Ordering::Relaxed);
        self.machine.now_ms().saturating_add_signed(ahead)
    }

    fn now_us(&self) -> u64 {
        let ahead = self.ahead_ms.load(Ordering::Relaxed).saturating_mul(1_000);
        self.machine.now_us().saturating_add_signed(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_store_and_not_the_noise() {
        let clock = StoreClock::default();
        let apart = |clock: &StoreClock| clock.machine_ms().abs_diff(clock.now_ms());
        let now = clock.machine_ms();
        clock.learn(now + 20, now, now + 10);
        assert!(apart(&clock) < 10, "noise");
        clock.learn(now - 3_600_000, now, now + 5_000);
        assert!(apart(&clock) < 10, "too slow to tell");
        clock.learn(now - 3_600_000, now, now + 10);
        assert!(apart(&clock).abs_diff(3_600_005) < 10, "{}", apart(&clock));
        assert!(clock.now_us().abs_diff(clock.now_ms() * 1_000) < 100_000);
        clock.learn(now + 7_000, now, now);
        assert!(apart(&clock).abs_diff(7_000) < 10);
    }
}
