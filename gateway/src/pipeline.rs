//! Many requests on one stream, answered as they finish.
//!
//! The answer stream drives everything: no task and no channel a call. Requests of pure Swarms go straight onto their lanes and
//! their replies come back by one channel; only durable ones are futures. A client that does not read its answers is not read
//! either, and at most [`STREAM_WINDOW_MAX`] calls are under way.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use skep_model::id::RequestId;
use skep_model::limits::STREAM_WINDOW_MAX;
use skep_model::message::Reply;
use skep_model::scope::Scope;
use skep_proto::v1;
use skep_topic::Ticket;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use crate::admit::Permit;
use crate::call::{Answer, CallError};
use crate::core::{Core, Sender, Way};
use crate::grpc;

/// Requests taken at one go before others on this thread get their turn.
const TAKE_MAX: usize = 256;

/// An answer that its client has not taken yet, and its place.
struct Out {
    reply: v1::Reply,
    _permit: Option<Permit>,
}

impl Out {
    /// At most [`TAKE_MAX`] of them wait, and they are small.
    fn refused(reply: v1::Reply) -> Self {
        Self { reply, _permit: None }
    }

    fn holding(reply: v1::Reply, mut permit: Permit) -> Self {
        if let Some(v1::reply::Result::Response(response)) = &reply.result {
            permit.cover(response.len());
        }
        Self {
            reply,
            _permit: Some(permit),
        }
    }
}

type Durable = BoxFuture<'static, (u64, Result<Answer, CallError>)>;

pub struct Pipeline<S> {
    core: Arc<Core>,
    scope: Scope,
    calls: S,
    /// No more calls are taken: the client closed its side, or the node is stopping.
    ended: bool,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    replies: mpsc::UnboundedSender<Reply>,
    arrived: mpsc::UnboundedReceiver<Reply>,
    batch: Vec<Reply>,
    on_lanes: HashMap<RequestId, OnLane>,
    durable: FuturesUnordered<Durable>,
    out: VecDeque<Out>,
    timer: Pin<Box<Sleep>>,
    /// When `timer` rings; none: it is not needed.
    rings_at: Option<Instant>,
}

struct OnLane {
    id: u64,
    ticket: Ticket,
    until: Instant,
    way: Way,
    permit: Permit,
}

impl<S> Pipeline<S>
where
    S: Stream<Item = Result<v1::RequestCall, Status>> + Unpin,
{
    pub(crate) fn new(core: Arc<Core>, scope: Scope, calls: S) -> Self {
        let (replies, arrived) = mpsc::unbounded_channel();
        Self {
            stopping: Box::pin(core.stopping().clone().cancelled_owned()),
            core,
            scope,
            calls,
            ended: false,
            replies,
            arrived,
            batch: Vec::new(),
            on_lanes: HashMap::new(),
            durable: FuturesUnordered::new(),
            out: VecDeque::new(),
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
            rings_at: None,
        }
    }

    fn start(&mut self, call: v1::RequestCall) {
        let id = call.id;
        let mut prepared = match self.core.prepare(&self.scope, grpc::request_call(call)) {
            Ok(prepared) => prepared,
            Err(error) => return self.out.push_back(Out::refused(grpc::reply(id, Err(error)))),
        };
        if !prepared.lane {
            let core = Arc::clone(&self.core);
            self.durable.push(Box::pin(
                async move { (id, core.durably(prepared, Sender::Task).await) },
            ));
            return;
        }
        let request = prepared.request;
        let ticket = self.core.waiters().wait_into(request, &self.replies);
        let pushed = Core::push(&mut prepared);
        let (until, way, permit) = prepared.into_parts();
        if let Err(refused) = pushed {
            self.core.waiters().forget(request, ticket);
            let refused = self.core.arrive(way, true, Err(refused));
            return self.out.push_back(Out::refused(grpc::reply(id, refused)));
        }
        self.on_lanes.insert(
            request,
            OnLane {
                id,
                ticket,
                until,
                way,
                permit,
            },
        );
        if self.rings_at.is_none_or(|at| until < at) {
            self.rings_at = Some(until);
            self.timer.as_mut().reset(until);
        }
    }

    /// Answers what is past its deadline. The timer may ring for calls that were answered long ago: then it is only set anew.
    fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<RequestId> = self
            .on_lanes
            .iter()
            .filter(|(_, call)| call.until <= now)
            .map(|(request, _)| *request)
            .collect();
        for request in late {
            if let Some(call) = self.on_lanes.remove(&request) {
                self.core.waiters().forget(request, call.ticket);
                let error = self.core.expired_on_lane(call.way);
                let reply = grpc::reply(call.id, Err(error));
                self.out.push_back(Out::holding(reply, call.permit));
            }
        }
        self.rings_at = self.on_lanes.values().map(|call| call.until).min();
        if let Some(at) = self.rings_at {
            self.timer.as_mut().reset(at);
        }
    }

    fn collect(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(n) = self.arrived.poll_recv_many(cx, &mut self.batch, TAKE_MAX) {
            if n == 0 {
                break;
            }
            for reply in self.batch.drain(..) {
                // One that expired meanwhile was answered already.
                if let Some(call) = self.on_lanes.remove(&reply.request) {
                    let answer = self.core.arrive(call.way, true, Ok(reply));
                    let reply = grpc::reply(call.id, answer);
                    self.out.push_back(Out::holding(reply, call.permit));
                }
            }
        }
        while let Poll::Ready(Some((id, answer))) = Pin::new(&mut self.durable).poll_next(cx) {
            // Its own permit ended with it.
            let permit = self.core.admit().hold(self.core.purse(&self.scope).as_ref(), 1, 0);
            self.out.push_back(Out::holding(grpc::reply(id, answer), permit));
        }
        while self.rings_at.is_some() && self.timer.as_mut().poll(cx).is_ready() {
            self.expire();
        }
    }
}

impl<S> Stream for Pipeline<S>
where
    S: Stream<Item = Result<v1::RequestCall, Status>> + Unpin,
{
    type Item = Result<v1::Reply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(out) = this.out.pop_front() {
            return Poll::Ready(Some(Ok(out.reply)));
        }
        this.collect(cx);
        if !this.ended && this.stopping.as_mut().poll(cx).is_ready() {
            this.ended = true;
        }
        let mut taken = 0;
        while !this.ended && this.on_lanes.len() + this.durable.len() < STREAM_WINDOW_MAX {
            if taken == TAKE_MAX {
                cx.waker().wake_by_ref();
                break;
            }
            match Pin::new(&mut this.calls).poll_next(cx) {
                Poll::Ready(Some(Ok(call))) => {
                    taken += 1;
                    this.start(call);
                }
                // The client broke off, or sent what is no call: nobody is left to answer.
                Poll::Ready(Some(Err(status))) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
                Poll::Ready(None) => this.ended = true,
                Poll::Pending => break,
            }
        }
        if taken > 0 {
            // What was started must be polled once, to be heard of.
            this.collect(cx);
        }
        if let Some(out) = this.out.pop_front() {
            return Poll::Ready(Some(Ok(out.reply)));
        }
        if this.ended && this.on_lanes.is_empty() && this.durable.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

impl<S> Drop for Pipeline<S> {
    fn drop(&mut self) {
        // The cancellation of everything under way.
        for (request, call) in self.on_lanes.drain() {
            self.core.waiters().forget(request, call.ticket);
        }
    }
}
