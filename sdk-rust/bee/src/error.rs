//! Why a Bee did not do what it was asked, and what should happen now.

use std::fmt;
use std::time::Duration;

use crate::wire;

/// What a Bee returns when it could not handle a message. The message's effects are dropped, those of its neighbours
/// are not.
///
/// Any `std::error::Error` becomes one by `?`: it then *fails*, which means another attempt after the stage's backoff
/// and a dead letter after the last. The other two ways are said explicitly:
///
/// ```
/// use std::time::Duration;
/// # fn f() -> skep::Result {
/// return Err(skep::Error::reject("no such account"));                  // never try again
/// # }
/// # fn g() -> skep::Result {
/// return Err(skep::Error::retry_after(Duration::from_secs(30)));      // try again, not before
/// # }
/// # fn h() -> skep::Result {
/// return Err(skep::Error::fail("upstream", "answered 503"));          // the stage's policy decides
/// # }
/// ```
///
/// Like other errors that take any cause, it does not implement `std::error::Error` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Failure);

/// How an [`Error`] ends the message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// Another attempt, not before this time has passed. It counts as an attempt.
    RetryAfter(Duration),
    /// No further attempt: a dead letter at once, with this cause.
    Reject(String),
    /// The stage's retry policy, then a dead letter.
    Fail {
        /// A short, stable word for grouping, such as `upstream`.
        reason: String,
        /// What happened, for people.
        detail: String,
    },
}

impl Error {
    /// Another attempt, not before `wait` has passed (in whole milliseconds, rounded up). It counts as an attempt.
    #[must_use]
    pub fn retry_after(wait: Duration) -> Self {
        Self(Failure::RetryAfter(wait))
    }

    /// No further attempt, because none can succeed: a dead letter at once.
    #[must_use]
    pub fn reject(why: impl Into<String>) -> Self {
        Self(Failure::Reject(why.into()))
    }

    /// The stage's retry policy, then a dead letter. `reason` is a short, stable word for grouping, `detail` is for
    /// people.
    #[must_use]
    pub fn fail(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self(Failure::Fail {
            reason: reason.into(),
            detail: detail.into(),
        })
    }

    /// How this error ends the message.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.0
    }

    /// None for what is done.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn from_wire(disposition: wire::Disposition) -> Option<Self> {
        Some(match disposition {
            wire::Disposition::Done => return None,
            wire::Disposition::RetryAfter(ms) => Self::retry_after(Duration::from_millis(ms)),
            wire::Disposition::Reject(why) => Self::reject(why),
            wire::Disposition::Fail(wire::Failure { reason, detail }) => Self::fail(reason, detail),
        })
    }

    pub(crate) fn into_wire(self) -> wire::Disposition {
        match self.0 {
            Failure::RetryAfter(wait) => {
                // Rounded up, so that 1 ns does not become "at once".
                let ms = wait.as_nanos().div_ceil(1_000_000);
                wire::Disposition::RetryAfter(u64::try_from(ms).unwrap_or(u64::MAX))
            }
            Failure::Reject(why) => wire::Disposition::Reject(why),
            Failure::Fail { reason, detail } => wire::Disposition::Fail(wire::Failure { reason, detail }),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Failure::RetryAfter(wait) => write!(f, "retry after {wait:?}"),
            Failure::Reject(why) => write!(f, "rejected: {why}"),
            Failure::Fail { reason, detail } => write!(f, "{reason}: {detail}"),
        }
    }
}

/// The detail is the error and its sources, joined by `: `.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut detail = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many errors print their source already.
            if !detail.ends_with(&text) {
                detail.push_str(": ");
                detail.push_str(&text);
            }
            source = cause.source();
        }
        Self::fail("error", detail)
    }
}

/// What a Bee may return.
#[diagnostic::on_unimplemented(
    message = "a Bee returns nothing or `skep::Result`, not `{Self}`",
    label = "write `-> skep::Result` and end with `Ok(())`",
    note = "the error of a `Result<(), E>` may be any `std::error::Error` or `skep::Error`"
)]
pub trait IntoResult {
    /// As the one form that skep works with.
    fn into_result(self) -> crate::Result;
}

impl IntoResult for () {
    fn into_result(self) -> crate::Result {
        Ok(())
    }
}

impl<E: Into<Error>> IntoResult for Result<(), E> {
    fn into_result(self) -> crate::Result {
        self.map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::num::ParseIntError);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("no count")
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn any_error_fails_with_its_chain() {
        let parse = || -> crate::Result { Err(Outer("x".parse::<u8>().unwrap_err()).into()) };
        let error = parse().unwrap_err();
        assert_eq!(error.to_string(), "error: no count: invalid digit found in string");
        assert_eq!(
            IntoResult::into_result(Err::<(), _>("x".parse::<u8>().unwrap_err()))
                .unwrap_err()
                .failure(),
            &Failure::Fail {
                reason: "error".into(),
                detail: "invalid digit found in string".into(),
            }
        );
    }

    #[test]
    fn each_failure_has_its_disposition() {
        use wire::Disposition;
        let cases = [
            (Error::retry_after(Duration::from_nanos(1)), Disposition::RetryAfter(1)),
            (
                Error::retry_after(Duration::from_secs(2)),
                Disposition::RetryAfter(2_000),
            ),
            (Error::retry_after(Duration::MAX), Disposition::RetryAfter(u64::MAX)),
            (Error::reject("no"), Disposition::Reject("no".into())),
            (
                Error::fail("a", "b"),
                Disposition::Fail(wire::Failure {
                    reason: "a".into(),
                    detail: "b".into(),
                }),
            ),
        ];
        for (error, disposition) in cases {
            assert_eq!(error.into_wire(), disposition);
        }
    }
}
