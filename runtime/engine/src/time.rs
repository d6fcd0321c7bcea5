//! The guest's clocks and random numbers: made from the input, so that attempts, shadows and replays compare.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand_core::TryRng;
use sha2::{Digest as _, Sha256};
use skep_model::env::Clock;
use skep_model::id::{Digest, Uid};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

/// What the wall clock shows before the first `begin`, ms since the Unix epoch: 2020-01-01T00:00:00Z. Late enough for
/// code that checks for a sane clock, and the same for all.
pub const BEFORE_BEGIN_MS: u64 = 1_577_836_800_000;

/// Clock and chance of one instance, shared with its WASI context.
#[derive(Clone)]
pub(crate) struct Sense(Arc<Inner>);

struct Inner {
    wall_ms: AtomicU64,
    real: Option<Arc<dyn Clock>>,
    started: Instant,
    chance: Mutex<Chance>,
}

struct Chance {
    seed: Seed,
    counter: u64,
    block: [u8; 32],
    used: usize,
}

#[derive(Clone, Copy)]
enum Seed {
    Stage(Digest),
    Input(Uid),
}

impl Sense {
    /// With `real`, both clock and random numbers are the machine's.
    pub(crate) fn new(stage: Digest, real: Option<Arc<dyn Clock>>) -> Self {
        Self(Arc::new(Inner {
            wall_ms: AtomicU64::new(BEFORE_BEGIN_MS),
            real,
            started: Instant::now(),
            chance: Mutex::new(Chance::new(Seed::Stage(stage))),
        }))
    }

    /// A new call of a reused instance.
    pub(crate) fn restart(&self, stage: Digest) {
        self.0.wall_ms.store(BEFORE_BEGIN_MS, Ordering::Relaxed);
        self.seed(Seed::Stage(stage));
    }

    pub(crate) fn begin(&self, uid: Uid, clock_ms: u64) {
        self.0.wall_ms.store(clock_ms, Ordering::Relaxed);
        self.seed(Seed::Input(uid));
    }

    fn seed(&self, seed: Seed) {
        *self.0.chance.lock().unwrap_or_else(PoisonError::into_inner) = Chance::new(seed);
    }
}

impl Chance {
    fn new(seed: Seed) -> Self {
        Self {
            seed,
            counter: 0,
            block: [0; 32],
            used: 32,
        }
    }

    /// SHA-256 of seed and counter: the same on every node and version of skep, for ever.
    fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            if self.used == self.block.len() {
                let mut hash = Sha256::new();
                hash.update(b"skep random 1");
                match &self.seed {
                    Seed::Stage(digest) => {
                        hash.update([0]);
                        hash.update(digest.0);
                    }
                    Seed::Input(uid) => {
                        hash.update([1]);
                        hash.update(uid.0);
                    }
                }
                hash.update(self.counter.to_le_bytes());
                self.block = hash.finalize().into();
                self.counter += 1;
                self.used = 0;
            }
            *byte = self.block[self.used];
            self.used += 1;
        }
    }
}

impl HostWallClock for Sense {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(match &self.0.real {
            Some(clock) => clock.now_ms(),
            None => self.0.wall_ms.load(Ordering::Relaxed),
        })
    }
}

/// Real time, but coarse: a fine clock is what timing attacks need.
impl HostMonotonicClock for Sense {
    fn resolution(&self) -> u64 {
        1_000_000
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis())
            .unwrap_or(u64::MAX)
            .saturating_mul(1_000_000)
    }
}

/// An infallible generator: `rand_core` makes an `Rng` of it.
impl TryRng for Sense {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        if self.0.real.is_some() {
            // Without random numbers there is nothing safe to go on with; the panic ends this call, not the node.
            getrandom::fill(out).expect("the operating system gives random bytes");
        } else {
            self.0.chance.lock().unwrap_or_else(PoisonError::into_inner).fill(out);
        }
        Ok(())
    }
}

/// The seed of WASI's insecure generator, which toolchains use for hash maps.
pub(crate) fn insecure_seed(stage: Digest) -> u128 {
    let mut bytes = [0; 16];
    Chance::new(Seed::Stage(stage)).fill(&mut bytes);
    u128::from_le_bytes(bytes)
}
