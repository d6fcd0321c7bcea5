//! Bytes that no call holds a permit for: what of a call has arrived so far, and answers that their clients have not taken yet.
//! Both count among the bytes under way of the caller's tenant, and so among the node's: what many open streams keep here is bounded together,
//! and no tenant's clients take the room of another's by sending or reading slowly.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{self, Either, Map, Ready};
use http_body::{Frame, SizeHint};
use skep_model::Bytes;
use skep_model::error::ErrorKind;
use skep_model::scope::Scope;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use crate::admit::{Admit, Permit, Share};
use crate::call::CallError;
use crate::core::Core;
use crate::purse::Purse;
use crate::{door, error};

/// A gRPC service whose bodies are counted, with the refusal of an overloaded node in front of the decoder.
#[derive(Clone)]
pub struct Bounded<S> {
    inner: S,
    admit: Arc<Admit>,
    /// Of a service whose callers are known by their tokens: whose bytes they are.
    core: Option<Arc<Core>>,
    patience: Duration,
    /// Bytes a second that a message may take beside that; 0: none.
    slowest: u32,
    /// Paths of the methods that take one message: it must come in time, however long a stream may be silent.
    unary: &'static [&'static str],
    /// See [`Self::announced`].
    announced: usize,
}

impl<S> Bounded<S> {
    pub(crate) fn new(inner: S, core: &Arc<Core>, unary: &'static [&'static str]) -> Self {
        Self {
            inner,
            admit: Arc::clone(core.admit()),
            core: Some(Arc::clone(core)),
            patience: Duration::from_millis(core.settings().body_timeout_ms),
            slowest: 0,
            unary,
            announced: 0,
        }
    }

    /// For a service that asks for no token: what arrives there has a bound of its own, `bytes_max`, and takes nothing of the room of those who showed
    /// one. A message of up to `announced` bytes counts as soon as its length is known, and comes within `patience` and its bytes at `slowest` a second.
    pub fn apart(
        inner: S,
        (bytes_max, announced): (usize, usize),
        (patience, slowest): (Duration, u32),
        unary: &'static [&'static str],
    ) -> Self {
        Self {
            inner,
            admit: Admit::new(usize::MAX, bytes_max),
            core: None,
            patience,
            slowest,
            unary,
            announced,
        }
    }

    /// A message of up to `max` bytes counts in full as soon as its length is known: the decoder takes memory for it then. For messages so
    /// large that callers who only announce them would take a node's.
    pub(crate) fn announced(self, max: usize) -> Self {
        Self { announced: max, ..self }
    }
}

impl<S: NamedService> NamedService for Bounded<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Result<http::Response<Body>, Infallible>;

impl<S> Service<http::Request<Body>> for Bounded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Answer>, Map<S::Future, fn(Answer) -> Answer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if let Err(overloaded) = self.admit.peek() {
            return Either::Left(future::ready(Ok(error::status(&overloaded, false).into_http())));
        }
        let awaited = self.unary.contains(&request.uri().path());
        let payer = door::scope(request.extensions()).ok();
        let payer = payer
            .zip(self.core.as_ref())
            .and_then(|(scope, core)| core.purse(&scope));
        let arriving = |body| {
            Body::new(Arriving {
                body,
                share: self.admit.share(payer),
                message: Framing::default(),
                announced: self.announced,
                awaited,
                patience: self.patience,
                slowest: self.slowest,
                timer: None,
            })
        };
        Either::Right(self.inner.call(request.map(arriving)).map(leaving))
    }
}

// ------------------------------------------------------------------------------------------------------------- in

/// A gRPC request's body. Bytes of a message that is not whole yet are counted, and bounded in time.
struct Arriving {
    body: Body,
    share: Share,
    message: Framing,
    announced: usize,
    /// No message has come, and one must.
    awaited: bool,
    patience: Duration,
    slowest: u32,
    /// Made only when a message does not come in one piece.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Where gRPC's messages begin and end: five bytes, the last four of which are the length, then as many bytes.
#[derive(Debug, Default)]
struct Framing {
    head: u8,
    length: u32,
    left: u32,
    /// Bytes of the message that is not whole yet.
    partial: usize,
    whole: u64,
}

impl Framing {
    /// Bytes that are held for the message that is not whole yet.
    fn held(&self, announced: usize) -> usize {
        if self.head == 5 && self.length as usize <= announced {
            self.length as usize + 5
        } else {
            self.partial
        }
    }

    fn pass(&mut self, mut data: &[u8]) {
        while let Some((first, rest)) = data.split_first() {
            if self.head < 5 {
                self.length = if self.head == 0 {
                    0
                } else {
                    self.length << 8 | u32::from(*first)
                };
                self.head += 1;
                self.partial += 1;
                data = rest;
                self.left = self.length;
            } else {
                let taken = data.len().min(self.left as usize);
                self.left -= u32::try_from(taken).unwrap_or(self.left);
                self.partial += taken;
                data = &data[taken..];
            }
            if self.head == 5 && self.left == 0 {
                (self.head, self.partial) = (0, 0);
                self.whole += 1;
            }
        }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let before = this.message.whole;
                    this.message.pass(data);
                    if this.message.whole > before {
                        this.awaited = false;
                        this.timer = None;
                    }
                    if let Err(overloaded) = this.share.set(this.message.held(this.announced)) {
                        return Poll::Ready(Some(Err(error::status(&overloaded, false))));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending if this.awaited || this.message.partial > 0 => {
                // Its length is known once its head is there; a slow link may take so long for it.
                let seconds = this.message.length.checked_div(this.slowest).unwrap_or(0);
                let patience = this.patience + Duration::from_secs(u64::from(seconds));
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(error::status(&slow("message", patience), false))))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pub(crate) fn slow(what: &str, patience: Duration) -> CallError {
    CallError::not_done(
        ErrorKind::DeadlineExceeded,
        "slow-body",
        format!("the {what} did not arrive within {} ms", patience.as_millis()),
    )
}

// ------------------------------------------------------------------------------------------------------------ out

/// Counts an answer from when it is made until its last byte has left or its client is gone. Put into a response's extensions.
#[derive(Clone)]
pub(crate) struct Held {
    core: Arc<Core>,
    scope: Scope,
    _permit: Option<Arc<Permit>>,
}

impl Held {
    /// Counts only what is encoded.
    pub(crate) fn frames(core: &Arc<Core>, scope: &Scope) -> Self {
        Self {
            _permit: None,
            core: Arc::clone(core),
            scope: scope.clone(),
        }
    }

    pub(crate) fn new(core: &Arc<Core>, scope: &Scope, bytes: usize) -> Self {
        let permit = core.admit().hold(core.purse(scope).as_ref(), 1, bytes);
        Self {
            _permit: Some(Arc::new(permit)),
            ..Self::frames(core, scope)
        }
    }
}

/// Bytes that are counted as long as anything refers to them, the queues of a connection included. `calls`: how many answers
/// they are.
pub(crate) fn counted(admit: &Arc<Admit>, tenant: Option<&Arc<Purse>>, calls: usize, bytes: Bytes) -> Bytes {
    let _permit = admit.hold(tenant, calls, bytes.len());
    Bytes::from_owner(Counted { bytes, _permit })
}

struct Counted {
    bytes: Bytes,
    _permit: Permit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn leaving(answer: Answer) -> Answer {
    answer.map(|mut response| match response.extensions_mut().remove::<Held>() {
        Some(held) => response.map(|body| Body::new(Leaving { body, held })),
        None => response,
    })
}

struct Leaving {
    body: Body,
    held: Held,
}

impl http_body::Body for Leaving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let Held { core, scope, .. } = &this.held;
        let count = |data| counted(core.admit(), core.purse(scope).as_ref(), 0, data);
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(count))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let mut all = Vec::new();
        for length in [0_u32, 1, 300, 70_000, 0, 5] {
            all.push(0);
            all.extend_from_slice(&length.to_be_bytes());
            all.extend(std::iter::repeat_n(7, length as usize));
        }
        for cut in [1, 2, 3, 7, 1_000, all.len()] {
            let mut framing = Framing::default();
            let mut most = 0;
            for piece in all.chunks(cut) {
                framing.pass(piece);
                most = most.max(framing.partial);
            }
            assert_eq!((framing.whole, framing.partial), (6, 0), "cut at {cut}");
            assert!(most <= 70_005, "{most}");
        }
        let mut framing = Framing::default();
        framing.pass(&[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert_eq!((framing.whole, framing.partial), (0, 8));
        assert_eq!(
            framing.held(1_000),
            8,
            "what is too long is refused behind us, before memory is taken for it"
        );
        let mut framing = Framing::default();
        framing.pass(&[0, 0, 0, 1]);
        assert_eq!(framing.held(1_000), 4);
        framing.pass(&[0, 7]);
        assert_eq!((framing.held(1_000), framing.held(0)), (261, 6));
    }
}
