//! What a message must be before it may enter.

use skep_model::Bytes;
use skep_model::condition::Facts;
use skep_model::error::ErrorKind;
use skep_model::id::{Digest, Uid};
use skep_model::key;
use skep_model::limits::{
    HEADERS_BYTES_MAX, HEADERS_MAX, IDEMPOTENCY_KEY_BYTES_MAX, KEY_BYTES_MAX, PAYLOAD_BYTES_MAX,
    REQUEST_DEADLINE_MS_DEFAULT, REQUEST_DEADLINE_MS_MAX, SUBMIT_BYTES_MAX, SUBMIT_MESSAGES_MAX,
};

use crate::call::{CallError, OutMessage};
use crate::route::{Feed, Route};

/// How long a call may take, in ms. `None`: the default.
pub(super) fn timeout(asked_ms: Option<u64>) -> Result<u64, CallError> {
    match asked_ms.unwrap_or(REQUEST_DEADLINE_MS_DEFAULT) {
        0 => Err(CallError::not_done(
            ErrorKind::DeadlineExceeded,
            "deadline",
            "the deadline had passed when the call arrived",
        )),
        ms if ms > REQUEST_DEADLINE_MS_MAX => Err(CallError::invalid(
            "bad-timeout",
            format!("a timeout of {ms} ms is asked, at most {REQUEST_DEADLINE_MS_MAX} ms are allowed"),
        )),
        ms => Ok(ms),
    }
}

/// Checks one message's bounds. Returns its bytes.
pub(super) fn message(
    payload: &Bytes,
    headers: &[(String, String)],
    message_key: Option<&str>,
) -> Result<usize, CallError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(CallError::too_large(format!(
            "the payload has {} bytes, at most {PAYLOAD_BYTES_MAX} are allowed: keep larger things in object storage and send their name",
            payload.len()
        )));
    }
    let key_bytes = message_key.map_or(0, str::len);
    if key_bytes > KEY_BYTES_MAX {
        return Err(CallError::too_large(format!(
            "the key has {key_bytes} bytes, at most {KEY_BYTES_MAX} are allowed"
        )));
    }
    if headers.len() > HEADERS_MAX {
        return Err(CallError::too_large(format!(
            "the message has {} headers, at most {HEADERS_MAX} are allowed",
            headers.len()
        )));
    }
    let header_bytes: usize = headers.iter().map(|(n, v)| n.len() + v.len()).sum();
    if header_bytes > HEADERS_BYTES_MAX {
        return Err(CallError::too_large(format!(
            "the headers have {header_bytes} bytes, at most {HEADERS_BYTES_MAX} are allowed"
        )));
    }
    if headers.iter().any(|(name, _)| name.is_empty()) {
        return Err(CallError::invalid("bad-header", "a header has an empty name"));
    }
    Ok(payload.len() + key_bytes + header_bytes)
}

/// Checks all messages of one submit or frame. Returns their bytes.
pub(super) fn messages(messages: &[OutMessage], what: &str) -> Result<usize, CallError> {
    if messages.is_empty() {
        return Err(CallError::invalid("empty", format!("the {what} holds no message")));
    }
    if messages.len() > SUBMIT_MESSAGES_MAX {
        return Err(CallError::too_large(format!(
            "the {what} holds {} messages, at most {SUBMIT_MESSAGES_MAX} are allowed: split it, or stream it",
            messages.len()
        )));
    }
    let mut bytes = 0;
    for (index, m) in messages.iter().enumerate() {
        bytes += message(&m.payload, &m.headers, m.key.as_deref()).map_err(|e| CallError {
            message: format!("message {} of this {what}: {}", index + 1, e.message),
            ..e
        })?;
    }
    if bytes > SUBMIT_BYTES_MAX {
        return Err(CallError::too_large(format!(
            "the {what} holds {bytes} bytes, at most {SUBMIT_BYTES_MAX} are allowed: split it, or stream it"
        )));
    }
    Ok(bytes)
}

pub(super) fn idempotency_key(idempotency_key: Option<&str>) -> Result<(), CallError> {
    match idempotency_key.map(str::len) {
        Some(0) => Err(CallError::invalid(
            "bad-idempotency-key",
            "the idempotency key is empty",
        )),
        Some(n) if n > IDEMPOTENCY_KEY_BYTES_MAX => Err(CallError::too_large(format!(
            "the idempotency key has {n} bytes, at most {IDEMPOTENCY_KEY_BYTES_MAX} are allowed"
        ))),
        _ => Ok(()),
    }
}

/// Which feeds take a message. `None`: all, as none has a condition; then nothing is looked at or allocated.
pub(super) fn takers(feeds: &[Feed], out: &OutMessage) -> Option<Vec<bool>> {
    feeds.iter().any(|feed| feed.when.is_some()).then(|| {
        let facts = Facts::new(&out.headers, &out.payload);
        feeds.iter().map(|feed| feed.takes(&facts)).collect()
    })
}

/// A request that no branch would answer.
pub(super) fn nobody_takes(route: &Route) -> CallError {
    CallError::invalid(
        "no-branch",
        format!(
            "no Bee of Swarm `{}` takes this message: no condition on subject `{}` holds for it, and no input says `otherwise`",
            route.swarm.name(),
            route.subject
        ),
    )
}

/// The message's key for a stage: none for a stage without `key:`.
pub(super) fn key_of(feed: &Feed, origin: Uid, out: &OutMessage) -> Result<Option<String>, CallError> {
    let Some(source) = &feed.key else { return Ok(None) };
    key::extract(source, origin, out.key.as_deref(), &out.headers, &out.payload)
        .map(Some)
        .map_err(|e| CallError::invalid("bad-key", format!("stage `{}`: {e}", feed.stage)))
}

/// Tells a repeated call from another one under the same idempotency key. Every part goes in with its length, so that no two
/// calls look alike.
pub(super) fn fingerprint<'a>(
    call: &str,
    messages: impl IntoIterator<Item = (&'a Bytes, &'a [(String, String)], Option<&'a str>)>,
) -> Digest {
    let mut all = Vec::new();
    let mut part = |bytes: &[u8]| {
        all.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        all.extend_from_slice(bytes);
    };
    part(b"skep call 1");
    part(call.as_bytes());
    for (payload, headers, key) in messages {
        part(payload);
        part(&(headers.len() as u64).to_le_bytes());
        for (name, value) in headers {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(&[u8::from(key.is_some())]);
        part(key.unwrap_or_default().as_bytes());
    }
    Digest::of(&all)
}
