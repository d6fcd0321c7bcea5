//! Streamed parts of a response.

use std::fmt;

/// Why a part of a response could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyError {
    /// Nobody waits: the message was submitted, not requested, or this kind of call takes no parts.
    NoCaller,
    /// There is no current message.
    NoStep,
    /// The caller went away.
    Closed,
    /// The part has more bytes than this.
    TooLarge(u64),
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCaller => f.write_str("no caller takes parts of a response: use `respond`"),
            Self::NoStep => f.write_str("there is no current message: send parts while a Bee runs"),
            Self::Closed => f.write_str("the caller went away"),
            Self::TooLarge(max) => write!(f, "a part of a response has at most {max} bytes: split it"),
        }
    }
}

impl std::error::Error for ReplyError {}
