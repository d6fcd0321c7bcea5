//! How a command ends: the exit code, one line that says what is wrong, one that says what to do.

use std::fmt;
use std::process::ExitCode;

use serde_json::{Value, json};
use skep_proto::v1;
use tonic::{Code, Status};

use crate::settings::Wrong;
use crate::store::Trouble;

/// The exit codes. Programs rely on them: a number is never given another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    /// The work was done and failed, or the command could not do its part.
    Failed = 1,
    Usage = 2,
    /// The manifest, module or message is not acceptable as it is.
    Refused = 3,
    NotFound = 4,
    /// What is there forbids it.
    Conflict = 5,
    Overloaded = 6,
    Unavailable = 7,
    Deadline = 8,
    /// Perhaps done: only a retry with the same idempotency key is safe.
    Unknown = 9,
    Internal = 10,
}

impl Exit {
    /// As programs read it: `code` of a failure in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Deadline => "deadline",
            Self::Unknown => "unknown-outcome",
            Self::Internal => "internal",
        }
    }
}

/// Shown in `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
   0  ok
   1  failed: done with an error, or dead-lettered
   2  usage: flags or arguments
   3  refused: a manifest, module or message that is not valid
   4  not found: a Swarm, module, file…
   5  conflict: what is there forbids it
   6  overloaded: try again later
   7  unavailable: no node answers
   8  the deadline passed
   9  unknown outcome: retry with the same idempotency key only
  10  internal error";

#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    pub remedy: Option<String>,
    /// What holds for the work that was asked for, where something was asked for.
    pub outcome: v1::Outcome,
    /// The node's hint when to try again.
    pub retry_after_ms: Option<u64>,
    /// Where the message lies, if it was dead-lettered.
    pub dead_letter: Option<u64>,
}

pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            remedy: None,
            outcome: v1::Outcome::Unspecified,
            retry_after_ms: None,
            dead_letter: None,
        }
    }

    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The reader of our output went away, as `skep logs … | head` does: not worth a word.
    pub fn reader_gone() -> Self {
        Self::new(Exit::Ok, "")
    }

    /// Says it on stderr and gives the code for the process.
    pub fn report(&self, json: bool) -> ExitCode {
        match (self.exit, json) {
            (Exit::Ok, _) => {}
            (_, true) => eprintln!("{}", self.json()),
            (_, false) => eprintln!("{self}"),
        }
        ExitCode::from(self.exit as u8)
    }

    /// `{"error": {…}}`: what the text says, for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut error = json!({
            "code": self.exit.as_str(), "exit": self.exit as u8, "message": self.message.trim_end(), "retry": self.retry(),
        });
        let outcome = match self.outcome {
            v1::Outcome::Done => Some("done"),
            v1::Outcome::NotDone => Some("not-done"),
            v1::Outcome::Unknown => Some("unknown"),
            v1::Outcome::Unspecified => None,
        };
        for (name, value) in [
            ("outcome", outcome.map(Value::from)),
            ("remedy", self.remedy.clone().map(Value::from)),
            ("retry_after_ms", self.retry_after_ms.map(Value::from)),
            ("dead_letter", self.dead_letter.map(Value::from)),
        ] {
            if let Some(value) = value {
                error[name] = value;
            }
        }
        json!({ "error": error })
    }

    /// Whether the same call may help and cannot harm: `safe`, `same-key` (with the same idempotency key only) or `no`.
    fn retry(&self) -> &'static str {
        match (self.outcome, self.exit) {
            (v1::Outcome::Unknown, _) | (_, Exit::Unknown) => "same-key",
            (v1::Outcome::Done, _) => "no",
            (_, Exit::Overloaded | Exit::Unavailable | Exit::Deadline) => "safe",
            _ => "no",
        }
    }

    /// A failed call, after which `outcome` holds for the work that it asked for.
    pub fn of_call(code: Code, outcome: v1::Outcome, message: &str) -> Self {
        let exit = match (code, outcome) {
            (Code::DeadlineExceeded, _) => Exit::Deadline,
            (_, v1::Outcome::Unknown) => Exit::Unknown,
            (_, v1::Outcome::Done) => Exit::Failed,
            _ => exit_of(code),
        };
        let failure = Self {
            outcome,
            ..Self::new(exit, message)
        };
        match outcome {
            _ if code == Code::Unauthenticated => failure.remedy("log in with `skep login URL`, or set SKEP_TOKEN"),
            _ if code == Code::PermissionDenied => {
                failure.remedy("ask whoever gave you the token for one with that role; `skep whoami` shows yours")
            }
            v1::Outcome::NotDone => failure.remedy("certainly not done: a retry is safe"),
            v1::Outcome::Unknown => {
                failure.remedy("perhaps done: retry only with the same --idempotency-key, or look at the effects first")
            }
            v1::Outcome::Done | v1::Outcome::Unspecified => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message.trim_end())?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  remedy: {remedy}"),
            None => Ok(()),
        }
    }
}

pub fn exit_of(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Ok,
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Exit::Refused,
        Code::NotFound => Exit::NotFound,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => Exit::Conflict,
        Code::ResourceExhausted => Exit::Overloaded,
        Code::Unavailable => Exit::Unavailable,
        Code::DeadlineExceeded | Code::Cancelled => Exit::Deadline,
        Code::Unknown | Code::Internal | Code::DataLoss => Exit::Internal,
    }
}

/// What the Gateway says about the work, in a failed unary call's trailers.
pub fn outcome_in(status: &Status) -> v1::Outcome {
    match status.metadata().get("skep-outcome").and_then(|v| v.to_str().ok()) {
        Some("done") => v1::Outcome::Done,
        Some("not-done") => v1::Outcome::NotDone,
        Some("unknown") => v1::Outcome::Unknown,
        _ => v1::Outcome::Unspecified,
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if std::error::Error::source(&status).is_some() {
            // Not an answer: the connection's own words are about frames and sockets.
            return Self::new(Exit::Unavailable, "the connection to the node broke")
                .remedy("look whether `skep serve` still runs there, then try again");
        }
        let failure = Self::of_call(status.code(), outcome_in(&status), status.message());
        match status.code() {
            Code::ResourceExhausted if failure.remedy.is_none() => failure.remedy("wait a little, then try again"),
            Code::Unavailable if failure.remedy.is_none() => {
                failure.remedy("look whether the node still runs, then try again")
            }
            Code::Unimplemented => {
                failure.remedy("the node is of another version than this command: compare `skep version`")
            }
            _ => failure,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        if e.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::reader_gone();
        }
        Self::new(Exit::Failed, e.to_string())
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        Self::new(Exit::Usage, wrong.what).remedy(wrong.remedy)
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::new(Exit::Failed, trouble.what).remedy(trouble.remedy)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        let e = match e.downcast::<Self>() {
            Ok(failure) => return failure,
            Err(e) => e,
        };
        let e = match e.downcast::<Wrong>() {
            Ok(wrong) => return wrong.into(),
            Err(e) => e,
        };
        match e.downcast::<Trouble>() {
            Ok(trouble) => trouble.into(),
            Err(e) => Self::new(Exit::Failed, format!("{e:#}")),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_exit_code() {
        for (code, exit) in [
            (Code::InvalidArgument, 3),
            (Code::NotFound, 4),
            (Code::Aborted, 5),
            (Code::FailedPrecondition, 5),
            (Code::ResourceExhausted, 6),
            (Code::Unavailable, 7),
            (Code::DeadlineExceeded, 8),
            (Code::Internal, 10),
        ] {
            assert_eq!(Failure::from(Status::new(code, "x")).exit as u8, exit, "{code:?}");
        }
    }

    #[test]
    fn the_outcome_decides_before_the_code() {
        let call = |code, outcome| Failure::of_call(code, outcome, "x").exit;
        assert_eq!(call(Code::Unavailable, v1::Outcome::Unknown), Exit::Unknown);
        assert_eq!(call(Code::Aborted, v1::Outcome::Done), Exit::Failed);
        assert_eq!(call(Code::DeadlineExceeded, v1::Outcome::Unknown), Exit::Deadline);
        assert_eq!(call(Code::ResourceExhausted, v1::Outcome::NotDone), Exit::Overloaded);
        let mut status = Status::unavailable("x");
        status.metadata_mut().insert("skep-outcome", "unknown".parse().unwrap());
        assert_eq!(Failure::from(status).exit, Exit::Unknown);
    }

    #[test]
    fn every_code_is_in_the_help() {
        for code in 0..=10 {
            assert!(
                EXIT_CODES
                    .lines()
                    .any(|l| l.trim_start().starts_with(&format!("{code} "))),
                "{code}"
            );
        }
    }

    #[test]
    fn programs_get_it_as_json() {
        let failure = Failure {
            retry_after_ms: Some(100),
            ..Failure::of_call(Code::ResourceExhausted, v1::Outcome::NotDone, "full\n")
        };
        assert_eq!(
            failure.json(),
            json!({ "error": {
                "code": "overloaded", "exit": 6, "message": "full", "outcome": "not-done", "retry": "safe",
                "retry_after_ms": 100, "remedy": "certainly not done: a retry is safe",
            } })
        );
        let retry = |failure: Failure| failure.json()["error"]["retry"].clone();
        assert_eq!(
            retry(Failure::of_call(Code::Unavailable, v1::Outcome::Unknown, "x")),
            "same-key"
        );
        assert_eq!(
            retry(Failure::of_call(Code::FailedPrecondition, v1::Outcome::Done, "x")),
            "no"
        );
        assert_eq!(retry(Failure::new(Exit::Refused, "x")), "no");
    }

    #[test]
    fn an_error_names_its_remedy() {
        let failure = Failure::new(Exit::NotFound, "no Swarm `x`").remedy("look at `skep swarms`");
        assert_eq!(
            failure.to_string(),
            "error: no Swarm `x`\n  remedy: look at `skep swarms`"
        );
        let wrapped = Failure::from(anyhow::Error::new(failure));
        assert_eq!(wrapped.exit, Exit::NotFound);
    }
}
