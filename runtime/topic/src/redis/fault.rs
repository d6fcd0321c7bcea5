//! What an error of Redis says about the write that met it.

use redis::{ErrorKind, RedisError};

use super::options::RedisOptions;
use crate::Error;

/// What to do about a connection after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Keep,
    /// Load the scripts and send again: the server certainly did nothing.
    Load,
    /// This connection is of no more use, or leads to a server that no longer leads.
    Replace,
}

/// Sorts an error of a command that was sent.
pub(super) fn sort(error: &RedisError, options: &RedisOptions) -> (Error, After) {
    let text = options.scrub(&error.to_string());
    let at = options.shown();
    let not_done = |why: String, after| (Error::Unavailable(format!("Redis at {at}: {why}")), after);
    match error.code() {
        Some("NOSCRIPT") => not_done("the scripts are not loaded".to_owned(), After::Load),
        Some("READONLY") => not_done(
            "this server is a replica now; looking for the one that leads".to_owned(),
            After::Replace,
        ),
        Some("OOM") => not_done(
            "its memory is full (maxmemory): queued work drains, new work is refused; raise maxmemory".to_owned(),
            After::Keep,
        ),
        Some("MISCONF") => not_done(
            "it cannot write its append-only file or snapshot (disk full?) and refuses writes".to_owned(),
            After::Keep,
        ),
        Some("LOADING") => not_done("it is loading its data".to_owned(), After::Keep),
        Some("NOREPLICAS") => not_done(
            "fewer replicas than min-replicas-to-write are in reach".to_owned(),
            After::Keep,
        ),
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => not_done(text, After::Replace),
        Some("TRYAGAIN" | "MOVED" | "ASK" | "CLUSTERDOWN" | "MASTERDOWN" | "BUSY") => not_done(text, After::Keep),
        Some(_) => (
            Error::Corrupt(format!("Redis at {at} refused a script: {text}")),
            After::Keep,
        ),
        None if error.kind() == ErrorKind::AuthenticationFailed => not_done(text, After::Replace),
        // Sent, and no answer: perhaps done.
        None => (Error::Unknown(format!("Redis at {at}: {text}")), After::Replace),
    }
}

/// For what changes nothing: an unknown outcome of a look is just no answer.
pub(super) fn of_a_look(error: Error) -> Error {
    match error {
        Error::Unknown(why) => Error::Unavailable(why),
        other => other,
    }
}
