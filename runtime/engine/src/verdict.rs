//! From a wasmtime error to a [`Trap`] that people can act upon.

use skep_model::step::{Trap, TrapKind};
use wasmtime_wasi::I32Exit;

use crate::ceiling::Ceiling;
use crate::effects::{TooMuchWritten, Violation};
use crate::host::HOSTCALL_BYTES_MAX;

/// Longest detail, bytes.
const DETAIL_BYTES_MAX: usize = 1 << 10;

/// Why the call ended without outcomes.
#[derive(Debug)]
pub(crate) enum Failure {
    Wasm(wasmtime::Error),
    /// The outcomes do not fit what was asked or written.
    Violation(Violation),
    /// The wall clock ran out. Whether the guest computed or waited is told by its ticks.
    TimedOut,
    /// A panic of ours.
    HostPanic(String),
}

/// The limits that the call ran under, for the text.
pub(crate) struct Limits<'a> {
    pub(crate) cpu_ms: u64,
    pub(crate) wall_ms: u64,
    pub(crate) ticks: u64,
    pub(crate) ticks_max: u64,
    pub(crate) ceiling: &'a Ceiling,
}

pub(crate) fn trap(failure: Failure, limits: &Limits<'_>, stderr: String) -> Trap {
    let (kind, detail) = match failure {
        Failure::Violation(violation) => (TrapKind::Contract, violation.to_string()),
        Failure::HostPanic(message) => (TrapKind::Host, format!("a host call panicked: {message}")),
        // Where CPU and wall limit are the same, a loop meets the wall first.
        Failure::TimedOut if limits.ticks.saturating_mul(10) >= limits.ticks_max.saturating_mul(8) => cpu(limits),
        Failure::TimedOut => (
            TrapKind::WallTime,
            format!("the call did not end within {} ms", limits.wall_ms),
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

/// A panic's message if stderr has one; else the trap and the last line of stderr.
fn cause(trap: &str, stderr: &str) -> String {
    if let Some(at) = stderr.rfind("panicked at ") {
        let message = &stderr[at..];
        let end = message.find("\nnote: run with").unwrap_or(message.len());
        return message[..end].trim_end().replacen('\n', " ", 1);
    }
    match stderr.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(last) => format!("{trap}; stderr ends: {}", last.trim()),
        None => trap.to_owned(),
    }
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
            cause("unreachable", "Traceback\nValueError: no\n\n"),
            "unreachable; stderr ends: ValueError: no"
        );
        assert_eq!(cause("unreachable", ""), "unreachable");
    }
}
