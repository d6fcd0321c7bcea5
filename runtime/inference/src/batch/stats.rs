//! What is counted of a model's calls, as plain numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends of what a run had in rows.
pub const ROWS_BUCKETS: [u64; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096];
/// Upper ends of times, in microseconds: from what a small model takes to what nobody should wait for.
pub const TIME_BUCKETS_US: [u64; 16] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
];

/// How often a value fell up to each upper end; the last count is of those beyond.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    ends: &'static [u64; N],
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(ends: &'static [u64; N]) -> Self {
        Self {
            ends,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            beyond: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    fn add(&self, value: u64) {
        let at = self.ends.partition_point(|end| *end < value);
        self.counts
            .get(at)
            .unwrap_or(&self.beyond)
            .fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    fn read(&self) -> Counts {
        let counts = self
            .counts
            .iter()
            .chain([&self.beyond])
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        Counts {
            ends: self.ends,
            counts,
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

/// A histogram at one moment. `counts` has one entry more than `ends`: what was beyond the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    pub ends: &'static [u64],
    pub counts: Vec<u64>,
    pub sum: u64,
}

/// The counters of one model.
#[derive(Debug)]
pub struct Stats {
    pub(super) calls: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) busy: AtomicU64,
    runs: AtomicU64,
    run_rows: Histogram<13>,
    run_us: Histogram<16>,
    queue_us: Histogram<16>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            calls: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            run_rows: Histogram::new(&ROWS_BUCKETS),
            run_us: Histogram::new(&TIME_BUCKETS_US),
            queue_us: Histogram::new(&TIME_BUCKETS_US),
        }
    }
}

impl Stats {
    pub(super) fn ran(&self, rows: u64, took: Duration) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.run_rows.add(rows);
        self.run_us.add(took.as_micros() as u64);
    }

    pub(super) fn waited(&self, time: Duration) {
        self.queue_us.add(time.as_micros() as u64);
    }

    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {
            calls: self.calls.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
            busy: self.busy.load(Ordering::Relaxed),
            runs: self.runs.load(Ordering::Relaxed),
            run_rows: self.run_rows.read(),
            run_us: self.run_us.read(),
            queue_us: self.queue_us.read(),
        }
    }
}

/// The counters of one model at one moment. Each call is counted once in `calls`, and at most once in `failed`, `expired`, `busy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Calls whose inputs fitted.
    pub calls: u64,
    pub failed: u64,
    pub expired: u64,
    pub busy: u64,
    pub runs: u64,
    /// Rows of each run; their sum is all rows.
    pub run_rows: Counts,
    pub run_us: Counts,
    /// How long each call that was run waited for its run.
    pub queue_us: Counts,
}
