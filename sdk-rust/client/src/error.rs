//! What went wrong, and what may be done about it.

use std::time::Duration;

use skep_proto::v1;
use tonic::{Code, Status};

/// A failed call.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct Error {
    pub kind: Kind,
    /// Whether the work was done: decides whether a retry is safe.
    pub outcome: Outcome,
    pub message: String,
    /// A short stable word: `unknown-subject`, `too-large`, `inbox-full`, or the Bee's own; empty when the failure is the network's.
    pub reason: String,
    /// When to try again, if the node gave a hint.
    pub retry_after: Option<Duration>,
    /// The node asks not to repeat the call (gRFC A6's negative pushback): this client does not.
    pub no_retry: bool,
    /// Where the message lies, if it was dead-lettered.
    pub dead_letter: Option<u64>,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The input is wrong and stays wrong: mend it.
    Invalid,
    /// No such subject.
    NotFound,
    /// E.g. an idempotency key used with another payload.
    Conflict,
    /// A bound is reached: try again later.
    Overloaded,
    DeadlineExceeded,
    /// The node cannot be reached or cannot serve now.
    Unavailable,
    /// The Swarm looked at the message and rejected it: mend the message. Another attempt would end the same way.
    Rejected,
    /// The Swarm did the work and failed for good, after all attempts of its stage.
    Failed,
    /// The token is missing, wrong, expired or revoked; or it may not do this.
    Denied,
    /// A defect.
    Internal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Certainly not done: a retry is safe.
    NotDone,
    /// Perhaps done: retry with the same idempotency key only.
    Unknown,
}

impl Error {
    pub(crate) fn new(kind: Kind, outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            kind,
            outcome,
            message: message.into(),
            reason: String::new(),
            retry_after: None,
            no_retry: false,
            dead_letter: None,
        }
    }

    pub(crate) fn deadline(outcome: Outcome) -> Self {
        Self::new(
            Kind::DeadlineExceeded,
            outcome,
            "the deadline passed before the answer came",
        )
    }

    pub(crate) fn broken() -> Self {
        Self::new(Kind::Unavailable, Outcome::Unknown, "the stream to the node broke")
    }
}

fn kind_of(code: Code, outcome: Outcome) -> Kind {
    match code {
        // What the door refuses was not done; what a Bee refuses was.
        Code::InvalidArgument if outcome == Outcome::Done => Kind::Rejected,
        Code::InvalidArgument | Code::OutOfRange => Kind::Invalid,
        Code::NotFound | Code::Unimplemented => Kind::NotFound,
        Code::AlreadyExists | Code::Aborted => Kind::Conflict,
        Code::ResourceExhausted => Kind::Overloaded,
        Code::DeadlineExceeded | Code::Cancelled => Kind::DeadlineExceeded,
        Code::Unavailable => Kind::Unavailable,
        Code::FailedPrecondition => Kind::Failed,
        Code::Unauthenticated | Code::PermissionDenied => Kind::Denied,
        _ => Kind::Internal,
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let text = |name: &str| status.metadata().get(name).and_then(|v| v.to_str().ok());
        let outcome = match text("skep-outcome") {
            Some("done") => Outcome::Done,
            Some("not-done") => Outcome::NotDone,
            Some(_) => Outcome::Unknown,
            // Not an answer of the Gateway: the network, or the gRPC layer before it.
            None if never_sent(&status) => Outcome::NotDone,
            None => match status.code() {
                Code::InvalidArgument
                | Code::OutOfRange
                | Code::NotFound
                | Code::Unimplemented
                | Code::Unauthenticated
                | Code::PermissionDenied => Outcome::NotDone,
                _ => Outcome::Unknown,
            },
        };
        // A connection that ends shows as any of several codes; ours always come with an outcome.
        let kind = match (text("skep-outcome"), status.code()) {
            (None, Code::Unknown | Code::Internal | Code::Cancelled) => Kind::Unavailable,
            (_, code) => kind_of(code, outcome),
        };
        // Below zero, or no number at all, means: do not.
        let pushback = text("grpc-retry-pushback-ms").map(|ms| ms.parse().map(Duration::from_millis));
        Self {
            kind,
            outcome,
            reason: text("skep-reason").unwrap_or_default().to_owned(),
            no_retry: matches!(pushback, Some(Err(_))),
            retry_after: pushback.and_then(Result::ok),
            dead_letter: text("skep-dead-letter").and_then(|id| id.parse().ok()),
            message: match status.message() {
                "" => status.to_string(),
                message => message.to_owned(),
            },
        }
    }
}

/// Nobody listened, so nothing was sent.
fn never_sent(status: &Status) -> bool {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        cause = error.source();
    }
    false
}

impl From<v1::Failure> for Error {
    fn from(failure: v1::Failure) -> Self {
        let outcome = match failure.outcome() {
            v1::Outcome::Done => Outcome::Done,
            v1::Outcome::NotDone => Outcome::NotDone,
            v1::Outcome::Unknown | v1::Outcome::Unspecified => Outcome::Unknown,
        };
        Self {
            kind: kind_of(Code::from_i32(failure.code), outcome),
            outcome,
            no_retry: false,
            retry_after: (failure.retry_after_ms > 0).then(|| Duration::from_millis(failure.retry_after_ms)),
            dead_letter: failure.dead_letter,
            message: failure.message,
            reason: failure.reason,
        }
    }
}
