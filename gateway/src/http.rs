//! The HTTP/JSON kind: `POST /v1/SUBJECT` and `POST /v1/SUBJECT:submit`. Bodies are payloads as they are.
//!
//! | header | meaning |
//! | --- | --- |
//! | `idempotency-key` | a repeated call takes effect once |
//! | `skep-key` | the message's key |
//! | `skep-timeout-ms` | milliseconds to the deadline |
//! | `skep-header-NAME` | header NAME of the message |
//! | `traceparent` | W3C Trace Context |
//!
//! | `accept: text/event-stream` | parts of the response as they come (`events`) |
//!
//! The first three are query parameters too (`?skep-key=…`). Failures are `application/problem+json` (RFC 9457).

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{Request, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use skep_model::Bytes;
use skep_model::error::{Certainty, ErrorKind};
use skep_model::limits::{PAYLOAD_BYTES_MAX, SUBMIT_BYTES_MAX, SUBMIT_MESSAGES_MAX};
use skep_model::message::{Hop, TraceContext};
use skep_model::scope::Scope;

use crate::admit::Share;
use crate::body::{counted, slow};
use crate::call::{CallError, OutMessage, RequestCall, SubmitCall};
use crate::core::Core;
use crate::{door, error, events};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
const OUTCOME: HeaderName = HeaderName::from_static("skep-outcome");
const TRACE_ID: HeaderName = HeaderName::from_static("skep-trace-id");
const HOPS: HeaderName = HeaderName::from_static("skep-hops");
/// In front of a message's own headers.
const HEADER_PREFIX: &str = "skep-header-";
/// The longest list of hops that fits beside the other headers of an answer.
const HOPS_BYTES_MAX: usize = 8 << 10;

pub fn router(core: &Arc<Core>) -> Router {
    Router::new()
        .route("/v1/{subject}", post(call))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::clone(core))
}

async fn ready(State(core): State<Arc<Core>>) -> (StatusCode, &'static str) {
    if core.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// What query parameters may say instead of headers.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Options {
    idempotency_key: Option<String>,
    skep_key: Option<String>,
    skep_timeout_ms: Option<u64>,
}

async fn call(
    State(core): State<Arc<Core>>,
    target: Result<Path<String>, axum::extract::rejection::PathRejection>,
    query: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
    request: Request<Body>,
) -> Response {
    let target = match target {
        Ok(Path(target)) => target,
        Err(e) => return problem(&CallError::invalid("bad-path", e.body_text())),
    };
    let options = match query {
        Ok(Query(options)) => options,
        Err(e) => return problem(&CallError::invalid("bad-query", e.body_text())),
    };
    let done = match target.split_once(':') {
        None => ask(&core, target, options, request).await,
        Some((subject, "submit")) => submit(&core, subject.to_owned(), options, request).await,
        Some((_, verb)) => Err(CallError::not_done(
            ErrorKind::NotFound,
            "unknown-verb",
            format!(
                "no verb `:{}`; there is `:submit`",
                verb.chars().take(64).collect::<String>()
            ),
        )),
    };
    done.unwrap_or_else(|e| problem(&e))
}

async fn ask(
    core: &Arc<Core>,
    subject: String,
    options: Options,
    request: Request<Body>,
) -> Result<Response, CallError> {
    let scope = door::scope(request.extensions())?;
    let (parts, body) = request.into_parts();
    let said = Said::read(&parts.headers, options)?;
    let payload = read(core, &scope, &parts.headers, body, PAYLOAD_BYTES_MAX, "payload").await?;
    if said.json {
        check_json(&payload)?;
    }
    let streams = events::wanted(&parts.headers);
    let call = RequestCall {
        subject,
        payload,
        headers: said.headers,
        key: said.key,
        timeout_ms: said.timeout_ms,
        idempotency_key: said.idempotency_key,
        trace: said.trace,
        streams,
    };
    if streams {
        return events::response(core, core.stream(&scope, call).await?).await;
    }
    let answer = core.request(&scope, call).await?;
    let kind = if looks_like_json(&answer.response) { JSON } else { BYTES };
    let mut response = Response::new(Body::from(counted(
        core.admit(),
        core.purse(&scope).as_ref(),
        1,
        answer.response,
    )));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    // The answer is whatever a Bee made of whatever a caller sent: no browser should guess at it.
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(OUTCOME, HeaderValue::from_static(Certainty::Done.as_str()));
    put_trace(headers, answer.trace_id, &answer.hops);
    Ok(response)
}

async fn submit(
    core: &Arc<Core>,
    subject: String,
    options: Options,
    request: Request<Body>,
) -> Result<Response, CallError> {
    let scope = door::scope(request.extensions())?;
    let (parts, body) = request.into_parts();
    let said = Said::read(&parts.headers, options)?;
    let max = if said.lines {
        SUBMIT_BYTES_MAX
    } else {
        PAYLOAD_BYTES_MAX
    };
    let body = read(core, &scope, &parts.headers, body, max, "body").await?;
    if said.json {
        check_json(&body)?;
    }
    let messages = said.messages(body)?;
    let done = core
        .submit(
            &scope,
            SubmitCall {
                subject,
                messages,
                idempotency_key: said.idempotency_key,
                trace: said.trace,
            },
            said.timeout_ms,
        )
        .await?;
    let body = serde_json::json!({ "accepted": done.accepted, "duplicate": done.duplicate }).to_string();
    let mut response = (StatusCode::ACCEPTED, body).into_response();
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
        .headers_mut()
        .insert(OUTCOME, HeaderValue::from_static(Certainty::Done.as_str()));
    Ok(response)
}

/// What the headers and the query say of a call.
pub(crate) struct Said {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) key: Option<String>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) trace: Option<TraceContext>,
    json: bool,
    /// One message a line.
    lines: bool,
}

impl Said {
    /// One message, or one a line; each has the call's key and headers.
    fn messages(&self, body: Bytes) -> Result<Vec<OutMessage>, CallError> {
        let payloads = if self.lines { lines(&body)? } else { vec![body] };
        // Before they are copied: a large head times many short lines is more than a node has.
        let each = self.headers.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>()
            + self.key.as_ref().map_or(0, String::len);
        let bytes = payloads.iter().map(Bytes::len).sum::<usize>() + each * payloads.len();
        if bytes > SUBMIT_BYTES_MAX {
            return Err(CallError::too_large(format!(
                "the lines hold {bytes} bytes, each with the key and headers of the call, at most {SUBMIT_BYTES_MAX} are allowed: split it"
            )));
        }
        let message = |payload| OutMessage {
            payload,
            headers: self.headers.clone(),
            key: self.key.clone(),
        };
        Ok(payloads.into_iter().map(message).collect())
    }

    pub(crate) fn read(headers: &HeaderMap, options: Options) -> Result<Self, CallError> {
        let text = |name: &str| -> Result<Option<String>, CallError> {
            let mut values = headers.get_all(name).iter();
            let Some(value) = values.next() else {
                return Ok(None);
            };
            if values.next().is_some() {
                return Err(CallError::invalid(
                    "bad-header",
                    format!("header `{name}` is there more than once"),
                ));
            }
            utf8(name, value).map(Some)
        };
        let timeout_ms = match text("skep-timeout-ms")? {
            None => options.skep_timeout_ms,
            Some(ms) => Some(ms.parse().map_err(|_| {
                CallError::invalid(
                    "bad-timeout",
                    "header `skep-timeout-ms` is not a number of milliseconds",
                )
            })?),
        };
        let mut own = Vec::new();
        for (name, value) in headers {
            if let Some(short) = name.as_str().strip_prefix(HEADER_PREFIX) {
                own.push((short.to_owned(), utf8(name.as_str(), value)?));
            }
        }
        let content_type = text(CONTENT_TYPE.as_str())?.unwrap_or_default();
        let media = content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        Ok(Self {
            key: text("skep-key")?.or(options.skep_key),
            idempotency_key: text("idempotency-key")?.or(options.idempotency_key),
            trace: headers
                .get("traceparent")
                .and_then(|v| v.to_str().ok())
                .and_then(TraceContext::parse),
            headers: own,
            timeout_ms,
            json: media == "application/json",
            lines: media == "application/x-ndjson",
        })
    }
}

/// HTTP allows any bytes here; ours are text.
fn utf8(name: &str, value: &HeaderValue) -> Result<String, CallError> {
    std::str::from_utf8(value.as_bytes())
        .map(str::to_owned)
        .map_err(|_| CallError::invalid("bad-header", format!("header `{name}` is not UTF-8")))
}

/// Reads a body of at most `max` bytes. One that says beforehand that it is larger is not read at all.
async fn read(
    core: &Arc<Core>,
    scope: &Scope,
    headers: &HeaderMap,
    body: Body,
    max: usize,
    what: &str,
) -> Result<Bytes, CallError> {
    read_counted(core, scope, headers, body, max, what)
        .await
        .map(|(body, _)| body)
}

/// The same, with the share that counts it.
pub(crate) async fn read_counted(
    core: &Arc<Core>,
    scope: &Scope,
    headers: &HeaderMap,
    body: Body,
    max: usize,
    what: &str,
) -> Result<(Bytes, Share), CallError> {
    core.admit().peek()?;
    let said: Option<u64> = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse().ok());
    if let Some(bytes) = said.filter(|bytes| *bytes > max as u64) {
        return Err(CallError::too_large(format!(
            "the {what} has {bytes} bytes, at most {max} are allowed"
        )));
    }
    let patience = Duration::from_millis(core.settings().body_timeout_ms);
    tokio::time::timeout(patience, collect(core, scope, body, max, what))
        .await
        .unwrap_or_else(|_| Err(slow(what, patience)))
}

/// Copies what comes in pieces, so that a client cannot keep large buffers here by small pieces of them.
async fn collect(
    core: &Arc<Core>,
    scope: &Scope,
    mut body: Body,
    max: usize,
    what: &str,
) -> Result<(Bytes, Share), CallError> {
    let mut share = core.admit().share(core.purse(scope));
    let (mut first, mut all) = (Bytes::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| CallError::invalid("bad-body", format!("the {what} broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let bytes = first.len() + all.len() + data.len();
        if bytes > max {
            return Err(CallError::too_large(format!(
                "the {what} has more than the {max} bytes that are allowed"
            )));
        }
        share.set(bytes)?;
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    Ok((if all.is_empty() { first } else { all.into() }, share))
}

fn check_json(payload: &[u8]) -> Result<(), CallError> {
    let bad = |e: &dyn std::fmt::Display| {
        CallError::invalid(
            "not-json",
            format!("the content type is application/json, but the body is not: {e}"),
        )
    };
    let text = std::str::from_utf8(payload).map_err(|e| bad(&e))?;
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map(|_| ())
        .map_err(|e| bad(&e))
}

/// The non-empty lines of an `application/x-ndjson` body, each JSON.
fn lines(body: &Bytes) -> Result<Vec<Bytes>, CallError> {
    let mut found = Vec::new();
    for (index, line) in body.split(|b| *b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if found.len() == SUBMIT_MESSAGES_MAX {
            return Err(CallError::too_large(format!(
                "the body holds more than the {SUBMIT_MESSAGES_MAX} lines that are allowed: split it"
            )));
        }
        check_json(line).map_err(|_| CallError::invalid("not-json", format!("line {} is not JSON", index + 1)))?;
        found.push(body.slice_ref(line));
    }
    Ok(found)
}

/// A response that parses as JSON is called so. The first byte rules most others out.
fn looks_like_json(response: &[u8]) -> bool {
    let first = response.trim_ascii_start().first();
    first.is_some_and(|b| matches!(b, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n'))
        && check_json(response).is_ok()
}

pub(crate) fn put_trace(headers: &mut HeaderMap, trace_id: Option<[u8; 16]>, hops: &[Hop]) {
    if let Some(id) = trace_id
        && let Ok(id) = HeaderValue::try_from(error::trace_hex(id))
    {
        headers.insert(TRACE_ID, id);
    }
    if hops.is_empty() {
        return;
    }
    let hops: Vec<_> = hops
        .iter()
        .map(|h| {
            serde_json::json!({
                "stage": h.stage.as_str(), "started_us": h.started_us, "took_us": h.took_us, "batch": h.batch,
            })
        })
        .collect();
    let text = serde_json::Value::Array(hops).to_string();
    if text.len() <= HOPS_BYTES_MAX
        && let Ok(hops) = HeaderValue::try_from(text)
    {
        headers.insert(HOPS, hops);
    }
}

// -------------------------------------------------------------------------------------------------------- failures

/// RFC 9457.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    outcome: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter: Option<u64>,
}

pub(crate) fn problem(e: &CallError) -> Response {
    problem_as(error::http_status(e), e)
}

/// As one line.
pub(crate) fn problem_json(status: StatusCode, e: &CallError) -> Vec<u8> {
    let body = Problem {
        r#type: format!("urn:skep:{}", e.reason),
        title: error::title(e.kind),
        status: status.as_u16(),
        detail: &e.message,
        outcome: e.certainty.as_str(),
        reason: &e.reason,
        retry_after_ms: (e.retry_after_ms > 0).then_some(e.retry_after_ms),
        dead_letter: e.dead_letter,
    };
    serde_json::to_vec(&body).expect("plain strings and numbers are JSON")
}

fn problem_as(status: StatusCode, e: &CallError) -> Response {
    let mut response = (status, problem_json(status, e)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, PROBLEM);
    headers.insert(OUTCOME, HeaderValue::from_static(e.certainty.as_str()));
    if e.retry_after_ms > 0 {
        // Whole seconds, at least one.
        headers.insert(RETRY_AFTER, e.retry_after_ms.div_ceil(1_000).into());
    }
    if let Some(trace) = &e.trace {
        put_trace(headers, trace.trace_id, &trace.hops);
    }
    response
}

async fn wrong_method(uri: Uri) -> Response {
    let allow = if uri.path().starts_with("/v1/") {
        "POST"
    } else {
        "GET, HEAD"
    };
    let e = CallError::invalid("wrong-method", format!("this path takes {allow} only"));
    let mut response = problem_as(StatusCode::METHOD_NOT_ALLOWED, &e);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// A path that nothing serves: answered in the words of whoever asks.
pub(crate) async fn unknown_path(headers: HeaderMap, uri: Uri) -> Response {
    let grpc = headers
        .get(CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return crate::grpc::unknown_method(uri.path()).into_http();
    }
    problem(&CallError::not_done(
        ErrorKind::NotFound,
        "unknown-path",
        "no such path; there are POST /v1/SUBJECT, POST /v1/SUBJECT:submit, GET /v2/models/NAME, POST /v2/models/NAME/infer, GET /healthz and \
         GET /readyz",
    ))
}
