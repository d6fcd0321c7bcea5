//! What crosses the boundary between a stage and a Bee. A Bee's effects are a value: nothing happens until the host commits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::id::Uid;
use crate::message::{INTERRUPTED, Message};
use crate::part::Parts;

/// One thing that a Bee is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly every input is a message")]
pub enum Input {
    Message { message: Message, attempt: u32 },
    Timer(Due),
    Joined(Joined),
}

/// Messages that belong together, one a side of a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Of the message that came last, or of the timer that ended the wait.
    pub uid: Uid,
    /// Each with the name of its side, in the manifest's order.
    pub parts: Vec<(String, Message)>,
    /// From 1.
    pub attempt: u32,
}

/// A timer that fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub uid: Uid,
    pub key: String,
    pub name: String,
    pub at_ms: u64,
    /// From 1.
    pub attempt: u32,
}

impl Input {
    #[must_use]
    pub fn uid(&self) -> Uid {
        match self {
            Self::Message { message, .. } => message.uid,
            Self::Timer(due) => due.uid,
            Self::Joined(joined) => joined.uid,
        }
    }

    /// The key whose state and timers the input may touch. That of a join holds its parts, and is not the Bee's.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Message { message, .. } => message.key.as_deref(),
            Self::Timer(due) => Some(&due.key),
            Self::Joined(_) => None,
        }
    }

    /// What the guest's wall clock shows while this input is current.
    #[must_use]
    pub fn clock_ms(&self) -> u64 {
        match self {
            Self::Message { message, .. } => message.accepted_ms,
            Self::Timer(due) => due.at_ms,
            Self::Joined(joined) => joined.parts.iter().map(|(_, m)| m.accepted_ms).max().unwrap_or(0),
        }
    }

    #[must_use]
    pub fn attempt(&self) -> u32 {
        match self {
            Self::Message { attempt, .. } => *attempt,
            Self::Timer(due) => due.attempt,
            Self::Joined(joined) => joined.attempt,
        }
    }

    /// The messages of it: one, none of a timer, or the parts of a join.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        let (one, parts) = match self {
            Self::Message { message, .. } => (Some(message), &[][..]),
            Self::Timer(_) => (None, &[][..]),
            Self::Joined(joined) => (None, joined.parts.as_slice()),
        };
        one.into_iter().chain(parts.iter().map(|(_, message)| message))
    }
}

/// Key to (name to value): the stored state of the keys that a batch touches.
pub type StateMap = HashMap<String, BTreeMap<String, Bytes>>;

/// One call of a Bee.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub inputs: Vec<Input>,
    /// The state of every key in `inputs`, as committed. Empty for a stage without state.
    pub state: StateMap,
    /// How much state the batch may add.
    pub room: StateRoom,
    /// Where parts of responses go. `None`: no caller waits for any input.
    pub parts: Option<Arc<dyn Parts>>,
}

/// Keys and bytes that a stage's state may still grow by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateRoom {
    pub keys: u64,
    pub bytes: u64,
}

impl Default for StateRoom {
    /// Where nobody counts.
    fn default() -> Self {
        Self {
            keys: u64::MAX,
            bytes: u64::MAX,
        }
    }
}

/// A message that a Bee publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emit {
    /// A named output; none means every unnamed one.
    pub to: Option<String>,
    pub key: Option<String>,
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
}

/// How an input ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    Done,
    /// Milliseconds. Counts as an attempt.
    RetryAfter(u64),
    /// No retry, dead letter at once.
    Reject(String),
    /// The stage's retry policy, then dead letter.
    Fail {
        reason: String,
        detail: String,
    },
}

/// What a Bee returned for one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub publish: Vec<Emit>,
    pub respond: Vec<Bytes>,
    pub disposition: Disposition,
}

/// An outcome with the host calls made for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub outcome: Outcome,
    /// In order; last write of a name wins. The key is the input's.
    pub state: Vec<StateWrite>,
    pub timers: Vec<TimerWrite>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateWrite {
    pub name: String,
    /// `None` deletes.
    pub value: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimerWrite {
    pub name: String,
    /// `None` cancels. The same name replaces.
    pub at_ms: Option<u64>,
}

/// What came of one call.
#[derive(Debug)]
pub struct Processed {
    /// As many steps as inputs, or the trap that ended the instance.
    pub result: Result<Vec<Step>, Trap>,
    /// What the Bee logged or wrote to stdout and stderr, bounded.
    pub log: Vec<LogLine>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub level: LogLevel,
    /// The logging context the guest gave, `stdout` or `stderr`.
    pub context: String,
    /// Control characters escaped, at most [`crate::limits::LOG_LINE_BYTES_MAX`].
    pub text: String,
    /// Index of the current input, if a step had begun.
    pub input: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Critical,
}

impl LogLevel {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// Why an instance ended. It ends the instance, never the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Trap {
    pub kind: TrapKind,
    /// For people; includes a panic's message when the guest wrote one to stderr.
    pub detail: String,
    /// The last of what the guest wrote to stderr, bounded.
    pub stderr: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapKind {
    /// A wasm trap: panic, unreachable, out of bounds, stack overflow, exit.
    Trap,
    /// CPU time, measured in epoch_ticks.
    CpuTime,
    /// Wall time.
    WallTime,
    Memory,
    /// More bytes returned than one commit may hold.
    Output,
    /// The guest broke the ABI: wrong number of outcomes, a write without `done`, `begin` going down.
    Contract,
    /// The host could not run it (pool exhausted, a host panic). Not the Bee's fault.
    Host,
    /// It was not run: the node died each time it ran this input alone.
    Crash,
    /// It was not run again: an earlier attempt had sent parts of its response, and did not come to its end.
    Interrupted,
}

impl TrapKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::CpuTime => "cpu-time",
            Self::WallTime => "wall-time",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Contract => "contract",
            Self::Host => "host",
            Self::Crash => "crash",
            Self::Interrupted => INTERRUPTED,
        }
    }
}

impl std::fmt::Display for TrapKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
