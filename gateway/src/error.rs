//! Failures as status codes: the one place that knows them.

use std::time::Duration;

use axum::http::StatusCode;
use skep_model::error::{Certainty, ErrorKind};
use skep_proto::v1;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::call::{BAD_ENCODING, CallError, KEY_REUSED, TOO_LARGE, UNSUPPORTED};

/// The domain of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "skep";

#[must_use]
pub fn grpc_code(error: &CallError) -> Code {
    match error.kind {
        // A rejected message is wrong whatever the state of the system: gRPC's rule for this code. The outcome tells a Bee's
        // refusal (done) from the door's (not done).
        ErrorKind::Invalid if error.reason == UNSUPPORTED => Code::Unimplemented,
        ErrorKind::Invalid | ErrorKind::Rejected => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict => Code::AlreadyExists,
        ErrorKind::Overloaded => Code::ResourceExhausted,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Unavailable => Code::Unavailable,
        // gRPC's own rule: do not retry until the state of the system was mended.
        ErrorKind::Failed => Code::FailedPrecondition,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::Forbidden => Code::PermissionDenied,
        ErrorKind::Internal => Code::Internal,
    }
}

#[must_use]
pub fn http_status(error: &CallError) -> StatusCode {
    match (error.kind, error.reason.as_str()) {
        (ErrorKind::Invalid, TOO_LARGE) => StatusCode::PAYLOAD_TOO_LARGE,
        (ErrorKind::Invalid, UNSUPPORTED) => StatusCode::NOT_IMPLEMENTED,
        (ErrorKind::Invalid, BAD_ENCODING) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        (ErrorKind::Invalid, _) => StatusCode::BAD_REQUEST,
        (ErrorKind::NotFound, _) => StatusCode::NOT_FOUND,
        (ErrorKind::Unauthenticated, _) => StatusCode::UNAUTHORIZED,
        (ErrorKind::Forbidden, _) => StatusCode::FORBIDDEN,
        // What the idempotency-key draft of the IETF asks for.
        (ErrorKind::Conflict, KEY_REUSED) => StatusCode::UNPROCESSABLE_ENTITY,
        // Well formed, understood and refused by the Bee.
        (ErrorKind::Rejected, _) => StatusCode::UNPROCESSABLE_ENTITY,
        (ErrorKind::Conflict, _) => StatusCode::CONFLICT,
        (ErrorKind::Overloaded, _) => StatusCode::TOO_MANY_REQUESTS,
        (ErrorKind::DeadlineExceeded, _) => StatusCode::GATEWAY_TIMEOUT,
        (ErrorKind::Unavailable, _) if error.certainty == Certainty::NotDone => StatusCode::SERVICE_UNAVAILABLE,
        // Not 502 or 503: proxies repeat those, and this work was done, or perhaps.
        (ErrorKind::Unavailable | ErrorKind::Failed | ErrorKind::Internal, _) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The `title` of a problem, one a kind.
#[must_use]
pub fn title(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Invalid => "the input is wrong",
        ErrorKind::NotFound => "no such thing",
        ErrorKind::Conflict => "in conflict with what is there",
        ErrorKind::Overloaded => "overloaded",
        ErrorKind::DeadlineExceeded => "the deadline passed",
        ErrorKind::Unavailable => "not available now",
        ErrorKind::Rejected => "the Bee rejected the message",
        ErrorKind::Failed => "the work failed for good",
        ErrorKind::Unauthenticated => "no valid token",
        ErrorKind::Forbidden => "not allowed",
        ErrorKind::Internal => "a defect",
    }
}

fn outcome(certainty: Certainty) -> v1::Outcome {
    match certainty {
        Certainty::Done => v1::Outcome::Done,
        Certainty::NotDone => v1::Outcome::NotDone,
        Certainty::Unknown => v1::Outcome::Unknown,
    }
}

/// A failure inside a stream.
#[must_use]
pub fn failure(error: CallError) -> v1::Failure {
    v1::Failure {
        code: grpc_code(&error) as i32,
        outcome: outcome(error.certainty).into(),
        retry_after_ms: error.retry_after_ms,
        dead_letter: error.dead_letter,
        reason: error.reason,
        message: error.message,
    }
}

/// A failure of a whole gRPC call. What generic clients understand goes into `grpc-status-details-bin` (RetryInfo, ErrorInfo)
/// and `grpc-retry-pushback-ms`; what is ours into `skep-…` trailers. `keyed`: the call carried an idempotency key, so it may be
/// repeated even where its outcome is unknown.
#[must_use]
pub fn status(error: &CallError, keyed: bool) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(
        "skep-outcome",
        AsciiMetadataValue::from_static(error.certainty.as_str()),
    );
    // A Bee chooses its reasons, so one may not be ASCII; it is in ErrorInfo all the same.
    if let Ok(reason) = AsciiMetadataValue::try_from(&error.reason) {
        metadata.insert("skep-reason", reason);
    }
    if let Some(id) = error.dead_letter {
        metadata.insert("skep-dead-letter", id.into());
    }
    if let Some(id) = error.trace.as_ref().and_then(|t| t.trace_id)
        && let Ok(id) = AsciiMetadataValue::try_from(trace_hex(id))
    {
        metadata.insert("skep-trace-id", id);
    }
    let mut details = ErrorDetails::new();
    details.set_error_info(
        error.reason.clone(),
        DOMAIN,
        [("outcome".to_owned(), error.certainty.as_str().to_owned())],
    );
    if error.retry_after_ms > 0 {
        metadata.insert("grpc-retry-pushback-ms", error.retry_after_ms.into());
        details.set_retry_info(Some(Duration::from_millis(error.retry_after_ms)));
    } else if error.certainty == Certainty::Done || (error.certainty == Certainty::Unknown && !keyed) {
        // Negative: do not retry (gRFC A6).
        metadata.insert("grpc-retry-pushback-ms", AsciiMetadataValue::from_static("-1"));
    }
    Status::with_error_details_and_metadata(grpc_code(error), error.message.clone(), details, metadata)
}

pub(crate) fn trace_hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}
