//! Named points at which a test makes the process die or stall.
//!
//! Off unless `SKEP_FAILPOINT` is set when the process first passes one, e.g. `after-apply-before-flush=abort`,
//! `inside-publish=abort@12` (the twelfth time),
//! `inside-publish=abort@12+100` (then, after a hundred milliseconds in which others may act) or `before-apply=sleep:50` (milliseconds, each time).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every point of this crate, in the order of a write's life.
pub const NAMES: [&str; 6] = [
    "before-apply",
    "inside-publish",
    "after-apply-before-flush",
    "after-flush-before-ack",
    "in-checkpoint",
    "in-reopen",
];

#[derive(Debug)]
struct Armed {
    name: String,
    action: Action,
    passed: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// As kill -9 would: nothing is written or closed on the way out.
    Abort {
        at: u64,
        after_ms: u64,
    },
    Sleep {
        ms: u64,
    },
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

fn parse(spec: &str) -> Option<Armed> {
    let (name, action) = spec.split_once('=')?;
    let action = match action.split_once(['@', ':']) {
        None if action == "abort" => Action::Abort { at: 1, after_ms: 0 },
        Some(("abort", nth)) => {
            let (nth, after) = nth.split_once('+').unwrap_or((nth, "0"));
            Action::Abort {
                at: nth.parse().ok()?,
                after_ms: after.parse().ok()?,
            }
        }
        Some(("sleep", ms)) => Action::Sleep { ms: ms.parse().ok()? },
        _ => return None,
    };
    Some(Armed {
        name: name.to_owned(),
        action,
        passed: AtomicU64::new(0),
    })
}

/// Whether any point is armed, for callers whose point's name costs something to make.
#[must_use]
pub fn armed() -> bool {
    std::env::var_os("SKEP_FAILPOINT").is_some()
}

/// Passes the point `name`: nothing happens unless a test armed it.
pub fn hit(name: &str) {
    let armed = ARMED.get_or_init(|| {
        let spec = std::env::var("SKEP_FAILPOINT").ok()?;
        let armed = parse(&spec);
        tracing::warn!(spec, understood = armed.is_some(), "a failpoint is set: this is a test");
        armed
    });
    let Some(armed) = armed else { return };
    if armed.name != name {
        return;
    }
    let passed = armed.passed.fetch_add(1, Ordering::SeqCst) + 1;
    match armed.action {
        Action::Abort { at, after_ms } if at == passed => {
            std::thread::sleep(std::time::Duration::from_millis(after_ms));
            std::process::abort();
        }
        Action::Abort { .. } => {}
        Action::Sleep { ms } => std::thread::sleep(std::time::Duration::from_millis(ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_and_nonsense_is_not() {
        assert_eq!(
            parse("a=abort").map(|a| a.action),
            Some(Action::Abort { at: 1, after_ms: 0 })
        );
        assert_eq!(
            parse("a=abort@7").map(|a| a.action),
            Some(Action::Abort { at: 7, after_ms: 0 })
        );
        assert_eq!(
            parse("a=abort@7+9").map(|a| a.action),
            Some(Action::Abort { at: 7, after_ms: 9 })
        );
        assert_eq!(parse("a=sleep:5").map(|a| a.action), Some(Action::Sleep { ms: 5 }));
        for bad in ["", "a", "a=", "a=die", "a=abort@x"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
