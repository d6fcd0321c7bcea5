//! What became of a call, said so that its caller knows what to do.

use skep_model::Bytes;
use skep_model::error::{Certainty, ErrorKind};
use skep_model::limits::{FAILURE_DETAIL_BYTES_MAX, FAILURE_REASON_BYTES_MAX, RETRY_HINT_MS};
use skep_model::message::{INTERRUPTED, ReplyResult};
use skep_model::name::{NAME_BYTES_MAX, StageName};
use skep_topic::{Error, Refused};

use crate::append::Failed;
use crate::call::{CallError, KEY_REUSED, TOO_LARGE};

/// Subjects named in a hint.
const SHOWN_MAX: usize = 10;

/// The reason that the stage gives to what a Bee rejects.
const REJECT: &str = "reject";

/// Only subjects of the caller's own tenant are ever named.
pub(super) fn no_such_subject(subject: &str, known: &[&str]) -> CallError {
    let shown: String = subject.chars().take(NAME_BYTES_MAX).collect();
    let hint = match known {
        [] => "there is none yet: apply a Swarm with an `input: { gateway: … }`".to_owned(),
        few if few.len() <= SHOWN_MAX => format!("there are: {}", few.join(", ")),
        many => format!(
            "there are: {}, and {} more",
            many[..SHOWN_MAX].join(", "),
            many.len() - SHOWN_MAX
        ),
    };
    CallError::not_done(
        ErrorKind::NotFound,
        "unknown-subject",
        format!("no subject `{shown}`; {hint}"),
    )
}

pub(super) fn full(stage: &StageName, reason: &str, what: &str) -> CallError {
    CallError::overloaded(reason, format!("{what} of stage `{stage}` is full: try again later"))
}

pub(crate) fn expired(certainty: Certainty) -> CallError {
    let message = match certainty {
        Certainty::Unknown => "the deadline passed before the answer came: retry with the same idempotency key only",
        _ => "the deadline passed before the answer came: a retry is safe",
    };
    CallError::not_done(ErrorKind::DeadlineExceeded, "deadline", message).with_certainty(certainty)
}

pub(crate) fn stopping(certainty: Certainty) -> CallError {
    CallError::not_done(ErrorKind::Unavailable, "stopping", "the node is stopping").with_certainty(certainty)
}

/// The key was remembered by a call that waits for no reply.
pub(super) fn key_without_reply() -> CallError {
    CallError::not_done(
        ErrorKind::Conflict,
        KEY_REUSED,
        "the idempotency key was used before by a call without a reply",
    )
}

pub(super) fn of_append(failed: Failed) -> CallError {
    match failed {
        Failed::Refused(refused) => of_refused(&refused),
        Failed::Backend(error) => of_backend(error),
        Failed::Expired { sent: false } => expired(Certainty::NotDone),
        Failed::Expired { sent: true } => expired(Certainty::Unknown),
    }
}

fn of_refused(refused: &Refused) -> CallError {
    match refused {
        Refused::Full { stage } => full(stage, "inbox-full", "the inbox"),
        Refused::KeyReused => CallError::not_done(ErrorKind::Conflict, KEY_REUSED, refused.to_string()),
        Refused::TooManyKeys { .. } => CallError::overloaded("too-many-keys", refused.to_string()),
        Refused::SessionGap { .. } | Refused::SessionAhead { .. } => CallError::not_done(
            ErrorKind::Conflict,
            "session-gap",
            format!("{refused}: resume after the last acknowledged sequence"),
        ),
        // This node is about to learn of the revision that removed it.
        Refused::StageGone { .. } => CallError {
            retry_after_ms: RETRY_HINT_MS,
            ..CallError::not_done(
                ErrorKind::Unavailable,
                "stage-gone",
                format!("{refused}: its subject moves on to another revision"),
            )
        },
        // Of calls that no door makes.
        Refused::NoLetter | Refused::TimerSet | Refused::Rescaling { .. } => {
            CallError::not_done(ErrorKind::Unavailable, "not-taken", refused.to_string())
        }
        Refused::Gone => gone(),
    }
}

fn gone() -> CallError {
    CallError::not_done(ErrorKind::NotFound, "gone", "the Swarm was deleted")
}

fn of_backend(error: Error) -> CallError {
    let message = error.to_string();
    match error {
        Error::Full { stage, .. } => full(&stage, "inbox-full", "the inbox"),
        Error::Gone => gone(),
        Error::TooLarge(_) => CallError::invalid(TOO_LARGE, message),
        Error::Unavailable(_) => CallError {
            retry_after_ms: RETRY_HINT_MS,
            ..CallError::not_done(ErrorKind::Unavailable, "unavailable", message)
        },
        Error::Unknown(_) => {
            CallError::not_done(ErrorKind::Unavailable, "unknown", message).with_certainty(Certainty::Unknown)
        }
        Error::Fenced | Error::Stale | Error::InputGone | Error::Corrupt(_) => {
            CallError::not_done(ErrorKind::Internal, "internal", message).with_certainty(Certainty::Unknown)
        }
    }
}

/// `lane`: the request travelled in memory through stages that keep nothing, so whatever was not answered is safe to repeat.
pub(super) fn of_reply(result: ReplyResult, lane: bool) -> Result<Bytes, CallError> {
    match result {
        ReplyResult::Response(response) => Ok(response),
        ReplyResult::Failed {
            stage,
            reason,
            detail,
            dead_letter,
        } => {
            // A Bee may say as much as it likes, but a failure travels in trailers, which clients bound at 16 KiB.
            let (reason, detail) = (
                cut(reason, FAILURE_REASON_BYTES_MAX),
                cut(detail, FAILURE_DETAIL_BYTES_MAX),
            );
            Err(CallError {
                // A Bee's refusal has a reason of its own; every other one is a failure.
                kind: match reason.as_str() {
                    REJECT => ErrorKind::Rejected,
                    INTERRUPTED => ErrorKind::Unavailable,
                    _ => ErrorKind::Failed,
                },
                certainty: match reason.as_str() {
                    INTERRUPTED => Certainty::Unknown,
                    _ => Certainty::Done,
                },
                message: match dead_letter {
                    Some(id) => format!("stage `{stage}` failed ({reason}): {detail} (dead letter {id})"),
                    None => format!("stage `{stage}` failed ({reason}): {detail}"),
                },
                reason,
                retry_after_ms: 0,
                dead_letter,
                trace: None,
            })
        }
        ReplyResult::Expired { stage } => {
            // Stages before this one may have done their part and kept something of it.
            let certainty = if lane { Certainty::NotDone } else { Certainty::Unknown };
            let mut error = expired(certainty);
            error.message = format!("stage `{stage}`: {}", error.message);
            Err(error)
        }
        ReplyResult::Overloaded { stage } => Err(full(&stage, "lane-full", "the in-memory lane")),
        // Those who wait get what all of them come to.
        ReplyResult::Returned { stage, .. } => of_reply(ReplyResult::no_response(stage), lane),
    }
}

fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max - '…'.len_utf8()));
        text.push('…');
    }
    text
}
