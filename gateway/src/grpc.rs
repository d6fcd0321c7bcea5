//! The gRPC kind.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use skep_model::error::ErrorKind;
use skep_model::limits::{GATEWAY_MESSAGE_BYTES_MAX, REQUEST_DEADLINE_MS_MAX};
use skep_model::message::{Hop, TraceContext};
use skep_model::scope::Scope;
use skep_proto::v1;
use skep_proto::v1::gateway_server::{Gateway, GatewayServer};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::body::{Bounded, Held};
use crate::call::{Answer, CallError, OutMessage, RequestCall, SubmitCall};
use crate::core::Core;
use crate::core::stream::Event;
use crate::pipeline::Pipeline;
use crate::{door, error, session};

/// The methods that take one message.
const UNARY: &[&str] = &[
    "/skep.v1.Gateway/Request",
    "/skep.v1.Gateway/RequestStream",
    "/skep.v1.Gateway/Submit",
];

/// The service, within the bounds of the node.
#[must_use]
pub fn service(core: &Arc<Core>) -> Bounded<GatewayServer<Door>> {
    let door = Door { core: Arc::clone(core) };
    let server = GatewayServer::new(door)
        .max_decoding_message_size(GATEWAY_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GATEWAY_MESSAGE_BYTES_MAX);
    Bounded::new(server, core, UNARY)
}

/// Serves `skep.v1.Gateway`.
pub struct Door {
    core: Arc<Core>,
}

#[tonic::async_trait]
impl Gateway for Door {
    async fn request(&self, request: Request<v1::RequestCall>) -> Result<Response<v1::Reply>, Status> {
        let scope = scope(request.extensions())?;
        let (metadata, _, call) = request.into_parts();
        let id = call.id;
        let mut call = request_call(call);
        call.trace = call.trace.or_else(|| trace(&metadata));
        call.timeout_ms = sooner(call.timeout_ms, grpc_timeout_ms(&metadata));
        let keyed = call.idempotency_key.is_some();
        match self.core.request(&scope, call).await {
            Ok(answer) => {
                let held = Held::new(&self.core, &scope, answer.response.len());
                let mut response = Response::new(reply(id, Ok(answer)));
                response.extensions_mut().insert(held);
                Ok(response)
            }
            Err(e) => Err(error::status(&e, keyed)),
        }
    }

    type RequestsStream = Pipeline<Streaming<v1::RequestCall>>;

    async fn requests(
        &self,
        request: Request<Streaming<v1::RequestCall>>,
    ) -> Result<Response<Self::RequestsStream>, Status> {
        let scope = scope(request.extensions())?;
        // Its answers hold their own permits until they are encoded; from then on they are counted as they leave.
        let held = Held::frames(&self.core, &scope);
        let answers = Pipeline::new(Arc::clone(&self.core), scope, request.into_inner());
        let mut response = Response::new(answers);
        response.extensions_mut().insert(held);
        Ok(response)
    }

    type RequestStreamStream = BoxStream<'static, Result<v1::StreamPart, Status>>;

    async fn request_stream(
        &self,
        request: Request<v1::RequestCall>,
    ) -> Result<Response<Self::RequestStreamStream>, Status> {
        let scope = scope(request.extensions())?;
        let (metadata, _, call) = request.into_parts();
        let mut call = request_call(call);
        call.trace = call.trace.or_else(|| trace(&metadata));
        call.timeout_ms = sooner(call.timeout_ms, grpc_timeout_ms(&metadata));
        let failed = |e: CallError| error::status(&e, false);
        let answer = self.core.stream(&scope, call).await.map_err(failed)?;
        // What was taken from the window and has not left yet.
        let held = Held::frames(&self.core, &scope);
        let parts = futures::stream::unfold(answer, |mut answer| async move {
            let kind = match answer.next().await? {
                Event::Part(part) => v1::stream_part::Kind::Part(part),
                Event::End(Ok(end)) => v1::stream_part::Kind::End(v1::StreamEnd {
                    response: end.response,
                    parts: end.parts,
                    hops: hops(end.hops),
                    trace_id: end.trace_id.map(error::trace_hex),
                }),
                Event::End(Err(e)) => return Some((Err(error::status(&e, false)), answer)),
            };
            Some((Ok(v1::StreamPart { kind: Some(kind) }), answer))
        });
        let mut response = Response::new(parts.boxed());
        response.extensions_mut().insert(held);
        Ok(response)
    }

    async fn submit(&self, request: Request<v1::SubmitCall>) -> Result<Response<v1::SubmitReply>, Status> {
        let scope = scope(request.extensions())?;
        let (metadata, _, call) = request.into_parts();
        let call = SubmitCall {
            trace: call
                .traceparent
                .as_deref()
                .and_then(TraceContext::parse)
                .or_else(|| trace(&metadata)),
            subject: call.subject,
            messages: call.messages.into_iter().map(out_message).collect(),
            idempotency_key: call.idempotency_key,
        };
        let keyed = call.idempotency_key.is_some();
        match self.core.submit(&scope, call, grpc_timeout_ms(&metadata)).await {
            Ok(done) => Ok(Response::new(v1::SubmitReply {
                accepted: done.accepted,
                duplicate: done.duplicate,
            })),
            Err(e) => Err(error::status(&e, keyed)),
        }
    }

    type SubmitStreamStream = ReceiverStream<Result<v1::SubmitAck, Status>>;

    async fn submit_stream(
        &self,
        request: Request<Streaming<v1::SubmitFrame>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        let scope = scope(request.extensions())?;
        let trace = trace(request.metadata());
        let acks = session::start(Arc::clone(&self.core), scope, request.into_inner(), trace);
        Ok(Response::new(ReceiverStream::new(acks)))
    }
}

pub(crate) fn request_call(call: v1::RequestCall) -> RequestCall {
    RequestCall {
        subject: call.subject,
        payload: call.payload,
        headers: headers(call.headers),
        key: call.key,
        timeout_ms: (call.timeout_ms > 0).then_some(call.timeout_ms),
        idempotency_key: call.idempotency_key,
        trace: call.traceparent.as_deref().and_then(TraceContext::parse),
        streams: false,
    }
}

pub(crate) fn out_message(message: v1::OutMessage) -> OutMessage {
    OutMessage {
        payload: message.payload,
        headers: headers(message.headers),
        key: message.key,
    }
}

fn headers(headers: Vec<v1::Header>) -> Vec<(String, String)> {
    headers.into_iter().map(|h| (h.name, h.value)).collect()
}

pub(crate) fn reply(id: u64, answer: Result<Answer, CallError>) -> v1::Reply {
    let (result, hops, trace_id) = match answer {
        Ok(answer) => (
            v1::reply::Result::Response(answer.response),
            answer.hops,
            answer.trace_id,
        ),
        Err(mut e) => {
            let (hops, trace_id) = e.trace.take().map_or_else(Default::default, |t| (t.hops, t.trace_id));
            (v1::reply::Result::Failure(error::failure(e)), hops, trace_id)
        }
    };
    v1::Reply {
        id,
        result: Some(result),
        hops: self::hops(hops),
        trace_id: trace_id.map(error::trace_hex),
    }
}

fn hops(hops: Vec<Hop>) -> Vec<v1::Hop> {
    hops.into_iter()
        .map(|hop| v1::Hop {
            stage: hop.stage.as_str().to_owned(),
            started_us: hop.started_us,
            took_us: hop.took_us,
            batch: hop.batch,
        })
        .collect()
}

fn trace(metadata: &MetadataMap) -> Option<TraceContext> {
    TraceContext::parse(metadata.get("traceparent")?.to_str().ok()?)
}

/// Whose call it is, as the door found out.
pub(crate) fn scope(extensions: &tonic::Extensions) -> Result<Scope, Status> {
    door::scope(extensions).map_err(|e| error::status(&e, false))
}

pub(crate) fn sooner(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// gRPC's own deadline: up to eight digits and a unit. Rounded down to ms; longer than allowed counts as the longest.
pub(crate) fn grpc_timeout_ms(metadata: &MetadataMap) -> Option<u64> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    let ms = match unit {
        "H" => value * 3_600_000,
        "M" => value * 60_000,
        "S" => value * 1_000,
        "m" => value,
        "u" => value / 1_000,
        "n" => value / 1_000_000,
        _ => return None,
    };
    Some(ms.min(REQUEST_DEADLINE_MS_MAX))
}

/// A method that is not offered, in gRPC's words.
#[must_use]
pub(crate) fn unknown_method(path: &str) -> Status {
    let shown: String = path.chars().take(200).collect();
    let unknown = CallError::not_done(ErrorKind::NotFound, "unknown-method", format!("no method `{shown}`"));
    let told = error::status(&unknown, false);
    // The code by which gRPC's own libraries know it.
    Status::with_details_and_metadata(
        tonic::Code::Unimplemented,
        told.message(),
        told.details().to_vec().into(),
        told.metadata().clone(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_grpc_writes_them() {
        let of = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout_ms(&metadata)
        };
        assert_eq!(of("250m"), Some(250));
        assert_eq!(of("3S"), Some(3_000));
        assert_eq!(of("1n"), Some(0));
        assert_eq!(of("99999999H"), Some(REQUEST_DEADLINE_MS_MAX));
        for bad in ["m", "1", "1x", "-1m", "123456789m", "1.5S"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
