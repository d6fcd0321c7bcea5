//! When to repeat a call by itself: only what is safe, only within the deadline, never in step with others.

use std::time::Duration;

use crate::{Error, Kind, Outcome};

/// Attempts in all, the first included.
pub(crate) const ATTEMPTS_MAX: u32 = 5;
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// Whether repeating can help and cannot harm. `keyed`: the call carries an idempotency key or a session.
pub(crate) fn may(error: &Error, keyed: bool) -> bool {
    let passing = matches!(error.kind, Kind::Overloaded | Kind::Unavailable);
    passing && !error.no_retry && (error.outcome == Outcome::NotDone || (keyed && error.outcome == Outcome::Unknown))
}

/// What several attempts together are known to have done. One whose outcome is unknown may have taken effect, so a later one that
/// was refused does not make the call "certainly not done".
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    unknown: bool,
}

impl Attempts {
    /// The error of the last attempt, as the caller of all of them must see it.
    pub(crate) fn told(&mut self, mut error: Error) -> Error {
        self.unknown |= error.outcome == Outcome::Unknown;
        if self.unknown && error.outcome == Outcome::NotDone {
            error.outcome = Outcome::Unknown;
        }
        error
    }
}

/// The pause before attempt `next` (from 2): the node's hint, and full jitter over a doubling span.
pub(crate) fn pause(error: Option<&Error>, next: u32) -> Duration {
    let span = FIRST.saturating_mul(1 << next.saturating_sub(2).min(10)).min(LONGEST);
    let hint = error.and_then(|e| e.retry_after).unwrap_or_default();
    hint + span.mul_f64(chance())
}

/// 0 to 1. Without random numbers the middle will do: this only spreads load.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
