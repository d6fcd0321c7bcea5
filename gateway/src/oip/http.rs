//! The protocol over HTTP/REST: `GET /v2…` and `POST /v2/models/NAME[/versions/VERSION]/infer`. Failures are `{"error": "…"}`.
//!
//! Headers are those of `POST /v1/SUBJECT`, where they have a meaning: `skep-timeout-ms` and `traceparent` for all, `skep-key`, `idempotency-key`
//! and `skep-header-NAME` for Swarms.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{Extensions, Request, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use skep_model::error::{Certainty, ErrorKind};
use skep_model::limits::{CALL_BYTES_MAX, CALL_JSON_BESIDE_BYTES, PAYLOAD_BYTES_MAX};
use skep_model::message::Hop;
use skep_model::oip::{self, OipError};
use skep_model::scope::Scope;
use skep_model::tensor::Port;

use super::{
    Callee, EXTENSIONS, Found, MODEL_PLATFORM, Oip, SERVER, SUBJECT, SWARM_PLATFORM, Target, of_oip, unsupported,
};
use crate::body::counted;
use crate::call::{BAD_ENCODING, CallError};
use crate::core::Visit;
use crate::http::{Options, Said, put_trace, read_counted};
use crate::{door, error, unread};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
const OUTCOME: HeaderName = HeaderName::from_static("skep-outcome");
const REASON: HeaderName = HeaderName::from_static("skep-reason");
const JSON_LENGTH: HeaderName = HeaderName::from_static(oip::JSON_LENGTH_HEADER);
/// What a question that is no inference may bring along.
const QUESTION_BYTES_MAX: usize = 64 << 10;

pub(crate) fn router(oip: &Arc<Oip>) -> Router {
    let patience = Duration::from_millis(oip.core.settings().body_timeout_ms);
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(|| async { answer(json!({ "live": true })) }))
        .route("/v2/health/ready", get(server_ready))
        .route("/v2/repository/index", post(index))
        .route("/v2/models/{name}", get(metadata))
        .route("/v2/models/{name}/versions/{version}", get(metadata))
        .route("/v2/models/{name}/ready", get(ready))
        .route("/v2/models/{name}/versions/{version}/ready", get(ready))
        .route("/v2/models/{name}/infer", post(infer))
        .route("/v2/models/{name}/versions/{version}/infer", post(infer))
        .method_not_allowed_fallback(wrong_method)
        .route("/v2/{*rest}", axum::routing::any(unknown))
        // A call is refused before its body is read where it can be.
        .layer(axum::middleware::from_fn_with_state(patience, unread::settle))
        .with_state(Arc::clone(oip))
}

/// Whether a path is the protocol's: its failures are told in its words.
pub(crate) fn is_own(path: &str) -> bool {
    path.strip_prefix("/v2")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

// ------------------------------------------------------------------------------------------------------- questions

async fn server() -> Response {
    answer(json!({ "name": SERVER, "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS }))
}

async fn server_ready(State(oip): State<Arc<Oip>>) -> Response {
    let ready = oip.core.is_ready();
    let mut response = answer(json!({ "ready": ready }));
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// The name and version in a path.
#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    version: String,
}

type Target_ = Result<Path<Named>, axum::extract::rejection::PathRejection>;

fn target(named: Target_) -> Result<Target, CallError> {
    let Path(named) = named.map_err(|e| CallError::invalid("bad-path", e.body_text()))?;
    Target::parse(&named.name, &named.version)
}

async fn metadata(State(oip): State<Arc<Oip>>, named: Target_, extensions: Extensions) -> Response {
    let done = async {
        let scope = door::scope(&extensions)?;
        let target = target(named)?;
        Ok(match oip.find(&scope, target).await? {
            Found::Model(callee) => of_model(&callee),
            Found::Subject(name) => json!({
                "name": format!("{SUBJECT}{name}"), "versions": [], "platform": SWARM_PLATFORM, "inputs": [], "outputs": [],
            }),
        })
    };
    done.await.map_or_else(|e| failure(&e), answer)
}

fn of_model(callee: &Callee) -> Value {
    let ports = |ports: &[Port]| -> Vec<Value> {
        let port = |port: &Port| json!({ "name": port.name, "datatype": port.kind, "shape": port.dims() });
        ports.iter().map(port).collect()
    };
    let model = &callee.model;
    json!({
        "name": model.name.as_str(), "versions": callee.versions(), "platform": MODEL_PLATFORM,
        "inputs": ports(&model.signature.inputs), "outputs": ports(&model.signature.outputs),
    })
}

async fn ready(State(oip): State<Arc<Oip>>, named: Target_, headers: HeaderMap, extensions: Extensions) -> Response {
    let name = named.as_ref().map(|Path(named)| named.name.clone()).unwrap_or_default();
    let done = async {
        let scope = door::scope(&extensions)?;
        let said = Said::read(&headers, Options::default())?;
        oip.ready(&scope, target(named)?, &said).await
    };
    match done.await {
        Ok(ready) => {
            let mut response = answer(json!({ "name": name, "ready": ready }));
            if !ready {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
        Err(e) => failure(&e),
    }
}

#[derive(Default, Deserialize)]
struct IndexCall {
    #[serde(default)]
    ready: bool,
}

async fn index(State(oip): State<Arc<Oip>>, request: Request<Body>) -> Response {
    let done = async {
        let scope = door::scope(request.extensions())?;
        let (parts, body) = request.into_parts();
        let (body, _) = read_counted(&oip.core, &scope, &parts.headers, body, QUESTION_BYTES_MAX, "body").await?;
        let call: IndexCall = match body.trim_ascii() {
            [] => IndexCall::default(),
            json => serde_json::from_slice(json)
                .map_err(|e| CallError::invalid("not-json", format!("the body is no JSON of an index request: {e}")))?,
        };
        let entries = oip.index(&scope, call.ready).await?;
        let lines = entries.into_iter().map(|entry| {
            json!({
                "name": entry.name, "version": entry.version,
                "state": if entry.closed.is_none() { "READY" } else { "UNAVAILABLE" }, "reason": entry.closed.unwrap_or_default(),
            })
        });
        Ok(Value::Array(lines.collect()))
    };
    done.await.map_or_else(|e| failure(&e), answer)
}

// ----------------------------------------------------------------------------------------------------------- calls

async fn infer(State(oip): State<Arc<Oip>>, named: Target_, request: Request<Body>) -> Response {
    let done = async {
        let target = target(named)?;
        let scope = door::scope(request.extensions())?;
        let (parts, body) = request.into_parts();
        let said = Said::read(&parts.headers, Options::default())?;
        plain_body(&parts.headers)?;
        let json_length = json_length(&parts.headers)?;
        // Before the body is read: what is not there need not be sent.
        match oip.find(&scope, target).await? {
            Found::Model(callee) => model(&oip, &scope, callee, said, json_length, &parts.headers, body).await,
            Found::Subject(name) => swarm(&oip, &scope, name, said, json_length, &parts.headers, body).await,
        }
    };
    done.await.unwrap_or_else(|e| failure(&e))
}

async fn model(
    oip: &Arc<Oip>,
    scope: &Scope,
    callee: Callee,
    said: Said,
    json_length: Option<usize>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, CallError> {
    let (body, share) = read_counted(&oip.core, scope, headers, body, CALL_BYTES_MAX, "body").await?;
    // From here on it counts as a call.
    drop(share);
    let visit = oip.visit(&callee, body.len(), &said)?;
    let large = json_length.unwrap_or(body.len()) > CALL_JSON_BESIDE_BYTES;
    let (mut visit, read) = apart(visit, large, move || oip::Request::read(&body, json_length)).await?;
    let mut request = match read {
        Ok(request) => request,
        Err(e) => return oip.core.leave(visit, Err(e), |_| 0),
    };
    let response = match oip.predict(scope, &callee, &mut visit, &said, &mut request).await {
        Ok(response) => response,
        Err(e) => return oip.core.leave(visit, Err(e), |_| 0),
    };
    let as_json = (response.outputs.iter()).filter(|(name, _)| !request.binary(name));
    let large = as_json.map(|(_, tensor)| tensor.bytes().len()).sum::<usize>() > CALL_JSON_BESIDE_BYTES / 4;
    let write = move || response.write(|name| request.binary(name));
    let (mut visit, written) = apart(visit, large, write).await?;
    let trace_id = visit.trace_id();
    if let Ok(body) = &written {
        visit.cover(body.bytes.len());
    }
    let body = oip.core.leave(visit, written, |body| body.bytes.len())?;
    Ok(response_of(oip, scope, body, trace_id, &[]))
}

async fn swarm(
    oip: &Arc<Oip>,
    scope: &Scope,
    name: String,
    said: Said,
    json_length: Option<usize>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, CallError> {
    let (body, share) = read_counted(&oip.core, scope, headers, body, PAYLOAD_BYTES_MAX, "body").await?;
    let request = oip::Request::read(&body, json_length).map_err(of_oip)?;
    drop(share);
    // As it came: a Bee sees what the caller wrote, and nobody writes it anew.
    let body = oip::Body {
        bytes: body,
        json_length,
    };
    let (response, answer) = oip.ask(scope, name, said, &request, body).await?;
    let written = response.write(|name| request.binary(name));
    let body = written.map_err(|e| super::done(of_oip(e)))?;
    Ok(response_of(oip, scope, body, answer.trace_id, &answer.hops))
}

/// What may take milliseconds of a CPU has a thread of its own. The visit goes with it, so that what it holds is counted however soon the caller
/// is gone.
async fn apart<T: Send + 'static>(
    visit: Visit,
    large: bool,
    work: impl FnOnce() -> Result<T, OipError> + Send + 'static,
) -> Result<(Visit, Result<T, CallError>), CallError> {
    if !large {
        return Ok((visit, work().map_err(of_oip)));
    }
    let done = tokio::task::spawn_blocking(move || (visit, work().map_err(of_oip)));
    done.await.map_err(|e| {
        CallError::not_done(
            ErrorKind::Internal,
            "internal",
            format!("a thread that worked for this call failed: {e}"),
        )
    })
}

fn response_of(oip: &Oip, scope: &Scope, body: oip::Body, trace_id: Option<[u8; 16]>, hops: &[Hop]) -> Response {
    let bytes = counted(oip.core.admit(), oip.core.purse(scope).as_ref(), 1, body.bytes);
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, if body.json_length.is_some() { BYTES } else { JSON });
    if let Some(length) = body.json_length {
        headers.insert(JSON_LENGTH, length.into());
    }
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(OUTCOME, HeaderValue::from_static(Certainty::Done.as_str()));
    put_trace(headers, trace_id, hops);
    response
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, CallError> {
    let mut all = headers.get_all(JSON_LENGTH).iter();
    let Some(text) = all.next() else { return Ok(None) };
    let length = text
        .to_str()
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match (length.and_then(|text| text.parse().ok()), all.next()) {
        (Some(length), None) => Ok(Some(length)),
        _ => Err(CallError::invalid(
            "bad-header",
            "the header Inference-Header-Content-Length is no number of bytes, or there more than once",
        )),
    }
}

/// That the body is as it is: compressed ones are not read.
fn plain_body(headers: &HeaderMap) -> Result<(), CallError> {
    let encodings = headers.get_all(CONTENT_ENCODING).iter();
    if encodings
        .into_iter()
        .all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Ok(());
    }
    Err(CallError::invalid(
        BAD_ENCODING,
        "the body is compressed, which is not supported: send it as it is, tensors in binary where they are large",
    ))
}

// --------------------------------------------------------------------------------------------------------- answers

fn answer(value: Value) -> Response {
    let mut response = value.to_string().into_response();
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// As the protocol says it, with what it has no place for in headers.
pub(crate) fn failure(e: &CallError) -> Response {
    failure_as(error::http_status(e), e)
}

fn failure_as(status: StatusCode, e: &CallError) -> Response {
    let mut response = answer(json!({ "error": e.message }));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(OUTCOME, HeaderValue::from_static(e.certainty.as_str()));
    if let Ok(reason) = HeaderValue::try_from(&e.reason) {
        headers.insert(REASON, reason);
    }
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
    let posts = uri.path().ends_with("/infer") || uri.path().ends_with("/index");
    let allow = if posts { "POST" } else { "GET, HEAD" };
    let e = CallError::invalid("wrong-method", format!("this path takes {allow} only"));
    let mut response = failure_as(StatusCode::METHOD_NOT_ALLOWED, &e);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

async fn unknown(uri: Uri) -> Response {
    let e = asked(uri.path()).and_then(unsupported).unwrap_or_else(|| {
        CallError::not_done(
            ErrorKind::NotFound,
            "unknown-path",
            "no such path; there are /v2, /v2/health/live, /v2/health/ready, /v2/repository/index, /v2/models/NAME, /v2/models/NAME/ready and \
             /v2/models/NAME/infer, each also with /versions/VERSION behind NAME",
        )
    });
    failure(&e)
}

/// The word that says what an unknown path is about: behind what it names.
fn asked(path: &str) -> Option<&str> {
    let mut words = path.strip_prefix("/v2/")?.split('/').peekable();
    let first = words.next()?;
    // Of the repository only models are spoken of.
    if first == "repository" {
        words.next_if_eq(&"models")?;
    } else if first != "models" {
        return Some(first);
    }
    words.next()?;
    if words.next_if_eq(&"versions").is_some() {
        words.next()?;
    }
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_paths_are_told_by_their_words_and_not_by_names() {
        for (path, wanted) in [
            ("/v2/models/m/stats", Some("stats")),
            ("/v2/models/m/versions/stats/config", Some("config")),
            ("/v2/models/trace/other", Some("other")),
            ("/v2/models/trace", None),
            ("/v2/models/m/versions", None),
            ("/v2/repository/models/m/load", Some("load")),
            ("/v2/repository/other", None),
            ("/v2/systemsharedmemory/region/r/register", Some("systemsharedmemory")),
            ("/v2/trace/setting", Some("trace")),
            ("/v2/", Some("")),
            ("/v1/trace", None),
        ] {
            assert_eq!(asked(path), wanted, "{path}");
        }
        assert!(unsupported("trace").is_some() && unsupported("catalog").is_none() && unsupported("").is_none());
    }
}
