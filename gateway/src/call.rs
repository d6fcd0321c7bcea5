//! What is asked and answered, as plain values that no kind of Gateway owns.

use skep_model::Bytes;
use skep_model::error::{Certainty, ErrorKind};
use skep_model::limits::RETRY_HINT_MS;
use skep_model::message::{Hop, TraceContext};

/// A call that waits for the Swarm's first response.
#[derive(Debug, Clone, Default)]
pub struct RequestCall {
    pub subject: String,
    pub payload: Bytes,
    pub headers: Vec<(String, String)>,
    pub key: Option<String>,
    /// Milliseconds from now. `None`: [`skep_model::limits::REQUEST_DEADLINE_MS_DEFAULT`].
    pub timeout_ms: Option<u64>,
    pub idempotency_key: Option<String>,
    /// The caller's, if it sent one.
    pub trace: Option<TraceContext>,
    /// Parts of the response are taken as they come: for [`crate::core::Core::stream`].
    pub streams: bool,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub response: Bytes,
    /// Only when the trace is sampled.
    pub hops: Vec<Hop>,
    pub trace_id: Option<[u8; 16]>,
}

/// A call that appends messages and is answered once they are durable.
#[derive(Debug, Clone, Default)]
pub struct SubmitCall {
    pub subject: String,
    pub messages: Vec<OutMessage>,
    pub idempotency_key: Option<String>,
    pub trace: Option<TraceContext>,
}

#[derive(Debug, Clone, Default)]
pub struct OutMessage {
    pub payload: Bytes,
    pub headers: Vec<(String, String)>,
    pub key: Option<String>,
}

impl OutMessage {
    /// Bytes that it holds.
    pub(crate) fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
        self.payload.len() + headers + self.key.as_ref().map_or(0, String::len)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// Messages made durable by this call.
    pub accepted: u64,
    /// The call was recognised as a repeat.
    pub duplicate: bool,
}

/// Why a call failed, and what may be done about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    pub kind: ErrorKind,
    pub certainty: Certainty,
    pub message: String,
    /// A short stable word: `unknown-subject`, `too-large`, `inbox-full`, or a Bee's own.
    pub reason: String,
    /// When to try again; 0: no hint.
    pub retry_after_ms: u64,
    pub dead_letter: Option<u64>,
    /// Boxed: an error should be small beside the answer.
    pub trace: Option<Box<Traced>>,
}

/// What is known of a failed call's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    pub hops: Vec<Hop>,
    pub trace_id: Option<[u8; 16]>,
}

impl CallError {
    /// A failure before anything happened.
    #[must_use]
    pub fn not_done(kind: ErrorKind, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            certainty: Certainty::NotDone,
            message: message.into(),
            reason: reason.to_owned(),
            retry_after_ms: if kind == ErrorKind::Overloaded {
                RETRY_HINT_MS
            } else {
                0
            },
            dead_letter: None,
            trace: None,
        }
    }

    #[must_use]
    pub fn invalid(reason: &str, message: impl Into<String>) -> Self {
        Self::not_done(ErrorKind::Invalid, reason, message)
    }

    /// A payload, key, header list or body over its bound.
    #[must_use]
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::invalid(TOO_LARGE, message)
    }

    #[must_use]
    pub fn overloaded(reason: &str, message: impl Into<String>) -> Self {
        Self::not_done(ErrorKind::Overloaded, reason, message)
    }

    #[must_use]
    pub fn with_certainty(mut self, certainty: Certainty) -> Self {
        self.certainty = certainty;
        self
    }
}

/// Reasons to which [`crate::error`] gives a status of their own.
pub(crate) const TOO_LARGE: &str = "too-large";
pub(crate) const KEY_REUSED: &str = "key-reused";
/// Known, and not done here.
pub(crate) const UNSUPPORTED: &str = "unsupported";
pub(crate) const BAD_ENCODING: &str = "bad-encoding";
