//! Bodies that an answer did not wait for.
//!
//! HTTP/1 has no way to stop a body: whoever answers before it came reads it all the same, or closes the connection. hyper does the latter
//! where not all of it has come yet, without a word of it in the answer, so a client that sends its body apart from its head finds the connection that it
//! was to keep gone under its next call. Here a short rest is read and thrown away, and where more would come the answer says `connection: close`.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Version;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use skep_model::Bytes;

/// What is read of a body that nobody wants: more is cheaper on another connection.
const REST_BYTES_MAX: u64 = 64 << 10;

/// A layer around handlers that may refuse before they read. The state: how long the rest may take.
pub(crate) async fn settle(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let left = Arc::new(Mutex::new(None));
    let lent = Body::new(Lent {
        body,
        left: Arc::clone(&left),
    });
    let mut response = next.run(Request::from_parts(parts, lent)).await;
    // Not there: it is being read still, by an answer that goes on.
    let unread = left.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(body) = unread
        && !discard(body, patience).await
    {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads to the end, if that is near.
async fn discard(mut body: Body, patience: Duration) -> bool {
    if body.size_hint().upper().is_none_or(|most| most > REST_BYTES_MAX) {
        return body.is_end_stream();
    }
    let rest = async {
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(patience, rest).await.unwrap_or(false)
}

/// A body that comes back when it is dropped.
struct Lent {
    body: Body,
    left: Arc<Mutex<Option<Body>>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let body = std::mem::take(&mut self.body);
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
