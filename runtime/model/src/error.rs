//! What a caller must do about a failure. Precise errors live in each crate; these kinds are what crosses a door.

use std::fmt;

/// Prescriptive: each kind says what to do next. One file per door maps them to status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The input is wrong and stays wrong: mend it.
    Invalid,
    /// The thing named does not exist in this scope.
    NotFound,
    /// The thing is there already in another form, or changed underneath: look again, then decide.
    Conflict,
    /// A bound is reached. Certainly not done: try again after the hint.
    Overloaded,
    /// The deadline passed. Whether it was done is said by [`Certainty`].
    DeadlineExceeded,
    /// This node cannot serve now: try again, or another node.
    Unavailable,
    /// The Swarm looked at the message and will not take it, now or later: mend it.
    Rejected,
    /// The work was done and failed for good: see the cause and the dead letter.
    Failed,
    /// Who calls is not known here: show a valid token.
    Unauthenticated,
    /// Who calls is known and may not do this.
    Forbidden,
    /// A defect of skep or of the disk under it.
    Internal,
}

/// The three outcomes of a call, visible in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    Done,
    /// Certainly not done: a retry is safe.
    NotDone,
    /// Perhaps done: retry with the same idempotency key only.
    Unknown,
}

impl Certainty {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NotDone => "not-done",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Certainty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
