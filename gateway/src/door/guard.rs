//! The door as a service in front of all others.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, Request, Response};
use axum::routing::future::RouteFuture;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Either};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use skep_model::Bytes;
use skep_model::error::ErrorKind;
use tonic::codegen::Service;

use super::deed::{Act, method};
use super::needs::Asked;
use super::oidc::NotRead;
use super::{Deed, Door, End, Entered, Refused, Who, Witness, needs, unknown};
use crate::call::CallError;
use crate::{error, events, http, oip};

#[derive(Clone)]
pub(crate) struct Guarded {
    app: Router,
    door: Arc<Door>,
    witness: Option<Arc<dyn Witness>>,
    /// The other end of the connection.
    from: SocketAddr,
}

impl Guarded {
    pub(crate) fn new(app: Router, door: Arc<Door>, witness: Option<Arc<dyn Witness>>) -> Self {
        Self {
            app,
            door,
            witness,
            from: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        }
    }

    pub(crate) fn of(&self, from: SocketAddr) -> Self {
        Self { from, ..self.clone() }
    }
}

type Answer = Result<Response<Body>, Infallible>;

impl Service<Request<Incoming>> for Guarded {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<RouteFuture<Infallible>, BoxFuture<'static, Answer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Incoming>>::poll_ready(&mut self.app, cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let path = request.uri().path();
        let asked = needs::of(path, events::wanted(request.headers()));
        let mut entered = self.door.enter(asked.need, path, request.headers());
        let unsure = entered.as_mut().err().and_then(|refused| refused.unsure.take());
        let Some(provider) = unsure else {
            return self.answer(request, asked, entered);
        };
        let mut this = self.clone();
        let again = async move {
            let entered = match provider.fresh().await {
                // Now its key is known, or nobody's.
                Ok(()) => this.door.enter(asked.need, request.uri().path(), request.headers()),
                Err(NotRead) => Err(unread().into()),
            };
            this.answer(request, asked, entered).await
        };
        Either::Right(again.boxed())
    }
}

impl Guarded {
    /// The call, or its refusal.
    fn answer(
        &mut self,
        mut request: Request<Incoming>,
        asked: Asked,
        entered: Result<Entered, Refused>,
    ) -> Either<RouteFuture<Infallible>, BoxFuture<'static, Answer>> {
        let path = request.uri().path();
        let entered = match entered {
            Ok(entered) => entered,
            Err(refused) => {
                if let Some(witness) = &self.witness {
                    let deed = Deed {
                        who: refused.who.map(|who| *who),
                        method: method(path),
                        objects: Vec::new(),
                        from: self.from,
                    };
                    witness.denied(&deed, &refused.why.reason);
                }
                let refusal = refusal(Words::of(&request), &refused.why);
                return Either::Right(std::future::ready(Ok(refusal)).boxed());
            }
        };
        let act = self.witness.as_ref().filter(|_| asked.changes).map(|witness| {
            let who = entered.caller.clone().map(|caller| Who {
                caller,
                name: entered.name,
            });
            Act::new(Arc::clone(witness), path, who, self.from)
        });
        if let Some(caller) = entered.caller {
            request.extensions_mut().insert(caller);
        }
        let words = Words::of(&request);
        let end = entered.end.filter(|_| asked.streams);
        let Some(act) = act else {
            let answer = self.app.call(request);
            return match end {
                None => Either::Left(answer),
                Some(end) => Either::Right(as_long_as(end, words, answer).boxed()),
            };
        };
        let answer = self.app.call(request.map(|body| act.request(body)));
        Either::Right(
            async move {
                let response = match end {
                    None => answer.await?,
                    Some(end) => as_long_as(end, words, answer).await?,
                };
                Ok(act.response(response))
            }
            .boxed(),
        )
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// In whose words a refusal is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    Grpc,
    Http,
    Oip,
}

impl Words {
    fn of<B>(request: &Request<B>) -> Self {
        if is_grpc(request.headers()) {
            Self::Grpc
        } else if oip::http::is_own(request.uri().path()) {
            Self::Oip
        } else {
            Self::Http
        }
    }
}

/// Nobody can tell now whether a token is good.
fn unread() -> CallError {
    CallError::not_done(
        ErrorKind::Unavailable,
        "keys-unread",
        "this token is signed by a key that is not known here, and the OpenID provider's keys cannot be read now: try again later",
    )
}

fn refusal(words: Words, refused: &CallError) -> Response<Body> {
    let mut response = match words {
        Words::Grpc => return error::status(refused, false).into_http(),
        Words::Http => http::problem(refused),
        Words::Oip => oip::http::failure(refused),
    };
    if refused.kind == ErrorKind::Unauthenticated {
        let how = HeaderValue::from_static("Bearer realm=\"skep\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, how);
    }
    response
}

/// Ends an upload, or an answer that goes on, when its token is no longer good.
async fn as_long_as(end: End, words: Words, answer: RouteFuture<Infallible>) -> Answer {
    let mut end = end.come().boxed();
    let response = tokio::select! {
        biased;
        () = &mut end => return Ok(refusal(words, &unknown())),
        answer = answer => answer?,
    };
    Ok(response.map(|body| {
        Body::new(Ending {
            body,
            end,
            grpc: words == Words::Grpc,
            ended: false,
        })
    }))
}

struct Ending {
    body: Body,
    end: BoxFuture<'static, ()>,
    grpc: bool,
    ended: bool,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.end.as_mut().poll(cx).is_ready() {
            self.ended = true;
            // What it was made of goes with it.
            self.body = Body::empty();
            let why = unknown();
            if !self.grpc {
                return Poll::Ready(Some(Err(axum::Error::new(why))));
            }
            let mut trailers = HeaderMap::new();
            let _ = error::status(&why, false).add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    /// Told on, or a refusal, which is only trailers, would leave as headers and an empty frame of data: grpc-core takes that for a
    /// broken stream.
    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn ending(body: Body, end: &CancellationToken) -> Ending {
        Ending {
            body,
            end: End::from(end.clone()).come().boxed(),
            grpc: true,
            ended: false,
        }
    }

    #[test]
    fn a_body_tells_that_nothing_follows() {
        let end = CancellationToken::new();
        assert!(ending(Body::empty(), &end).is_end_stream());
        assert_eq!(ending(Body::from("four"), &end).size_hint().exact(), Some(4));

        let mut goes_on = ending(Body::from("four"), &end);
        assert!(!goes_on.is_end_stream());
        end.cancel();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let frame = Pin::new(&mut goes_on).poll_frame(&mut cx);
        let Poll::Ready(Some(Ok(frame))) = frame else {
            panic!("{frame:?}")
        };
        assert!(frame.is_trailers() && goes_on.is_end_stream());
    }
}
