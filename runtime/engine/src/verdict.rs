//! From a wasmtime error to a [`Trap`] that people can act upon.

use skep_model::step::{Trap, TrapKind};
use wasmtime_wasi::I32Exit;

use crate::ceiling::Ceiling;
use crate::effects::{TooMuchWritten, Violation};
use crate::host::HOSTCALL_BYTES_MAX;
use crate::nn::TooMuchHeld;

/// Longest detail, bytes.
pub(crate) const DETAIL_BYTES_MAX: usize = 1 << 10;

/// Why the call ended without outcomes.
#[derive(Debug)]
pub(crate) enum Failure {
    Wasm(wasmtime::Error),
    /// The outcomes do not fit what was asked or written.
    Violation(Violation),
    /// The wall clock ran out, while the guest computed or while it waited.
    TimedOut {
        computing: bool,
        /// For what is done outside of its turns: a model.
        outside: bool,
    },
    /// A panic of ours.
    HostPanic(String),
}

/// The limits that the call ran under, for the text.
pub(crate) struct Limits<'a> {
    pub(crate) cpu_ms: u64,
    pub(crate) wall_ms: u64,
    pub(crate) ceiling: &'a Ceiling,
}

pub(crate) fn trap(failure: Failure, limits: &Limits<'_>, stderr: String) -> Trap {
    let (kind, detail) = match failure {
        Failure::Violation(violation) => (TrapKind::Contract, violation.to_string()),
        Failure::HostPanic(message) => (TrapKind::Host, format!("a host call panicked: {message}")),
        // Where CPU and wall limit are the same, a loop meets the wall first.
        Failure::TimedOut { computing: true, .. } => cpu(limits),
        Failure::TimedOut { outside, .. } => (
            TrapKind::WallTime,
            format!(
                "the call did not end within {} ms{}",
                limits.wall_ms,
                if outside { ": it waited for a model" } else { "" }
            ),
        ),
        Failure::Wasm(error) => wasm(&error, limits, &stderr),
    };
    Trap {
        kind,
        detail: cut(detail),
        stderr,
    }
}

fn cpu(limits: &Limits<'_>) -> (TrapKind, String) {
    (
        TrapKind::CpuTime,
        format!("the call used up its {} ms of CPU time", limits.cpu_ms),
    )
}

fn wasm(error: &wasmtime::Error, limits: &Limits<'_>, stderr: &str) -> (TrapKind, String) {
    if let Some(violation) = error.downcast_ref::<Violation>() {
        return (TrapKind::Contract, violation.to_string());
    }
    if let Some(too_much) = error.downcast_ref::<TooMuchWritten>() {
        return (TrapKind::Output, too_much.to_string());
    }
    if let Some(held) = error.downcast_ref::<TooMuchHeld>() {
        return (TrapKind::Memory, held.to_string());
    }
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return (
            TrapKind::Trap,
            format!("the Bee ended its program (exit status {code}); return an outcome instead"),
        );
    }
    if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
        return (TrapKind::Host, format!("the node has no free instance slot: {error}"));
    }
    let root = error.root_cause().to_string();
    // wasmtime keeps this error's type to itself.
    if root.contains("fuel allocated for hostcalls") {
        return (
            TrapKind::Output,
            format!(
                "the Bee returned or handed over more than {HOSTCALL_BYTES_MAX} bytes at once; use smaller batches or smaller outputs"
            ),
        );
    }
    let trap = error.downcast_ref::<wasmtime::Trap>();
    if trap == Some(&wasmtime::Trap::Interrupt) {
        return cpu(limits);
    }
    if let Some(wanted) = limits.ceiling.refused() {
        return (
            TrapKind::Memory,
            format!(
                "the Bee asked for {wanted} bytes of memory, its limit is {} ({})",
                limits.ceiling.max(),
                cause(&root, stderr)
            ),
        );
    }
    (TrapKind::Trap, cause(&root, stderr))
}

/// What Python's runtime, itself in Rust, panics with after it has printed the exception.
const PYTHON_PANIC: &str = "Python function threw an unexpected exception";

/// What JavaScript's runtime says at its end, after the error.
const JAVASCRIPT_END: &str = "Redirecting call to abort() to mozalloc_abort";

/// An exception of Python or JavaScript if stderr has one, or a panic's message; else the trap and the last line of stderr.
fn cause(trap: &str, stderr: &str) -> String {
    let panic = stderr.rfind("panicked at ");
    if panic.is_none_or(|at| stderr[at..].contains(PYTHON_PANIC))
        && let Some(exception) = exception(stderr)
    {
        return exception;
    }
    if let Some(at) = panic {
        let message = &stderr[at..];
        let end = message.find("\nnote: run with").unwrap_or(message.len());
        return message[..end].trim_end().replacen('\n', " ", 1);
    }
    if let Some(error) = thrown(stderr) {
        return error;
    }
    match stderr.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(last) => format!("{trap}; stderr ends: {}", last.trim()),
        None => trap.to_owned(),
    }
}

/// The last exception in a Python traceback, and where it was raised.
fn exception(stderr: &str) -> Option<String> {
    let (_, traceback) = stderr.rsplit_once("Traceback (most recent call last):\n")?;
    let mut at = "";
    for line in traceback.lines() {
        if let Some(frame) = line.strip_prefix("  File ") {
            at = frame;
        } else if !line.starts_with(' ') && !line.is_empty() {
            return Some(if at.is_empty() {
                line.to_owned()
            } else {
                format!("{line} ({at})")
            });
        }
    }
    None
}

/// The error that ended JavaScript, and where it was thrown.
fn thrown(stderr: &str) -> Option<String> {
    let said = stderr.trim_end().strip_suffix(JAVASCRIPT_END)?;
    let (error, stack) = said.rsplit_once("\nStack:\n").unwrap_or((said.trim_end(), ""));
    let error = error.lines().next_back()?;
    let at = stack.lines().next().unwrap_or("no stack").trim();
    Some(format!("{error} ({at})"))
}

fn cut(mut text: String) -> String {
    if text.len() > DETAIL_BYTES_MAX {
        text.truncate(text.floor_char_boundary(DETAIL_BYTES_MAX - 3));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_message_is_found_among_other_lines() {
        let stderr = "noise\n\nthread '<unnamed>' panicked at src/lib.rs:7:5:\nthe hive is on fire\nnote: run with `RUST_BACKTRACE=1`\n";
        assert_eq!(
            cause("unreachable", stderr),
            "panicked at src/lib.rs:7:5: the hive is on fire"
        );
        assert_eq!(
            cause("unreachable", &format!("Traceback (most recent call last):\n{stderr}")),
            "panicked at src/lib.rs:7:5: the hive is on fire"
        );
        assert_eq!(
            cause("unreachable", "Traceback\nValueError: no\n\n"),
            "unreachable; stderr ends: ValueError: no"
        );
        assert_eq!(cause("unreachable", ""), "unreachable");
    }

    #[test]
    fn an_error_of_javascript_is_found_before_its_stack() {
        let stderr = "noise\nthe hive is on fire: hi\nStack:\n  fling@bees.js:54:9\n  process@bees.js:87:12\n\
                      Redirecting call to abort() to mozalloc_abort\n";
        assert_eq!(
            cause("unreachable", stderr),
            "the hive is on fire: hi (fling@bees.js:54:9)"
        );
        assert_eq!(
            cause(
                "unreachable",
                "just this\nRedirecting call to abort() to mozalloc_abort\n"
            ),
            "just this (no stack)"
        );
    }

    #[test]
    fn a_python_exception_counts_more_than_the_panic_that_follows_it() {
        let stderr = "Traceback (most recent call last):\n  File \"/0/a.py\", line 1, in f\nKeyError: 1\n\n\
                      During handling of the above exception, another exception occurred:\n\n\
                      Traceback (most recent call last):\n  File \"/0/bees.py\", line 12, in process\n    raise it\n\
                      \u{20}   ~~~~~^^^\n  File \"/0/bees.py\", line 71, in throw\nValueError: the hive is on fire\nsecond line\n\n\
                      thread '<unnamed>' (1) panicked at runtime/src/lib.rs:1280:25:\n\
                      Python function threw an unexpected exception\nnote: run with `RUST_BACKTRACE=1`\n";
        assert_eq!(
            cause("unreachable", stderr),
            "ValueError: the hive is on fire (\"/0/bees.py\", line 71, in throw)"
        );
    }
}
