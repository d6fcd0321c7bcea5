//! A streamed answer as server-sent events.
//!
//! ```text
//! data: a part                         event: part-base64      a part that is no text, or holds a carriage return, in base64
//!                                      data: AAEC
//!
//! event: response                      the response behind the parts, if there is one; `response-base64` likewise
//! data: {"tokens":3}
//!
//! event: end                           the last; or `error` with the problem as JSON
//! data: {"outcome":"done","parts":3}
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use skep_model::Bytes;
use skep_model::error::Certainty;
use skep_model::limits::EVENTS_QUIET_MS;

use crate::admit::Admit;
use crate::body::counted;
use crate::call::CallError;
use crate::core::Core;
use crate::core::stream::{AnswerStream, Event};
use crate::purse::Purse;
use crate::{error, http};

const EVENTS: &str = "text/event-stream";

/// Whether the caller asks for events.
pub(crate) fn wanted(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|accept| {
            accept.split(',').any(|media| {
                let media = media.split(';').next().unwrap_or_default();
                media.trim().eq_ignore_ascii_case(EVENTS)
            })
        })
}

/// The answer of a call that set out. One that fails before its first part has its own status, as if it were no stream.
pub(crate) async fn response(core: &Arc<Core>, mut answer: AnswerStream) -> Result<Response, CallError> {
    let trace_id = answer.trace_id();
    let first = match answer.next().await {
        Some(Event::End(Err(error))) => return Err(error),
        Some(first) => vec![first],
        None => Vec::new(),
    };
    let admit = Arc::clone(core.admit());
    let state = (answer, first, admit);
    let body = futures::stream::unfold(state, |(mut answer, mut first, admit)| async move {
        let quiet = Duration::from_millis(EVENTS_QUIET_MS);
        let text = match first.pop() {
            Some(event) => encode(event),
            None => match tokio::time::timeout(quiet, answer.next()).await {
                Ok(event) => encode(event?),
                Err(_) => b": still here\n\n".to_vec(),
            },
        };
        let bytes = leaving(&admit, answer.purse(), text);
        Some((Ok::<_, std::convert::Infallible>(bytes), (answer, first, admit)))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENTS));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Or a proxy keeps the parts until the end.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    http::put_trace(headers, trace_id, &[]);
    Ok(response)
}

/// Counted until its last byte has left.
fn leaving(admit: &Arc<Admit>, purse: &Arc<Purse>, text: Vec<u8>) -> Bytes {
    counted(admit, Some(purse), 0, text.into())
}

fn encode(event: Event) -> Vec<u8> {
    let mut out = Vec::new();
    match event {
        Event::Part(part) => payload(&mut out, None, "part-base64", &part),
        Event::End(Ok(end)) => {
            if let Some(response) = &end.response {
                payload(&mut out, Some("response"), "response-base64", response);
            }
            let mut told = serde_json::json!({ "outcome": Certainty::Done.as_str(), "parts": end.parts });
            if let Some(id) = end.trace_id {
                told["trace_id"] = error::trace_hex(id).into();
            }
            field(&mut out, Some("end"), &told.to_string());
        }
        Event::End(Err(e)) => {
            let problem = http::problem_json(error::http_status(&e), &e);
            // JSON has no line ends of its own.
            field(&mut out, Some("error"), &String::from_utf8_lossy(&problem));
        }
    }
    out
}

/// Text as it is, in as many lines as it has; other bytes in base64. A carriage return would come out as a line feed.
fn payload(out: &mut Vec<u8>, text: Option<&str>, other: &str, data: &[u8]) {
    match std::str::from_utf8(data) {
        Ok(plain) if !plain.contains(['\r', '\0']) => field(out, text, plain),
        _ => field(out, Some(other), &BASE64.encode(data)),
    }
}

fn field(out: &mut Vec<u8>, event: Option<&str>, data: &str) {
    if let Some(event) = event {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(event.as_bytes());
        out.push(b'\n');
    }
    for line in data.split('\n') {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(data: &'static [u8]) -> String {
        String::from_utf8(encode(Event::Part(Bytes::from_static(data)))).unwrap()
    }

    #[test]
    fn text_stays_text_and_other_bytes_come_in_base64() {
        assert_eq!(part(b"a b"), "data: a b\n\n");
        assert_eq!(part(b" a\n\nb\n"), "data:  a\ndata: \ndata: b\ndata: \n\n");
        assert_eq!(part(b""), "data: \n\n");
        for odd in [b"a\rb".as_slice(), b"\xff", b"\0"] {
            let expected = format!("event: part-base64\ndata: {}\n\n", BASE64.encode(odd));
            assert_eq!(String::from_utf8(encode(Event::Part(odd.into()))).unwrap(), expected);
        }
        // What looks like a field of its own stays data.
        assert_eq!(part(b"x\nevent: end"), "data: x\ndata: event: end\n\n");
    }

    #[test]
    fn events_are_wanted_by_name() {
        let wants = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            wanted(&headers)
        };
        assert!(wants("text/event-stream") && wants("application/json;q=0.5, Text/Event-Stream; q=1"));
        assert!(!wants("*/*") && !wants("text/event-streams") && !wanted(&HeaderMap::new()));
    }
}
