//! The calls, as every kind of Gateway makes them.

mod check;
pub(crate) mod outcome;
pub mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skep_model::env::{Clock, Entropy};
use skep_model::error::{Certainty, ErrorKind};
use skep_model::id::{NodeId, RequestId, Uid};
use skep_model::limits::{
    BODY_TIMEOUT_MS, CONNECTIONS_MAX, DEDUP_WINDOW_MS_DEFAULT, HEADER_TIMEOUT_MS, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX,
    PART_WINDOW_BYTES, REQUEST_DEADLINE_MS_DEFAULT, REQUEST_DEADLINE_MS_MAX,
};
use skep_model::message::{Message, Reply, Request, TraceContext, shares};
use skep_model::scope::Scope;
use skep_model::span::{SpanKind, SpanRecord, SpanSink};
use skep_topic::lane::Travelling;
use skep_topic::{Accepted, Backend, Call, Gate, Once, TopicSpec, Waiters};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admit::{Admit, Load, Permit};
use crate::append::{Append, Pending};
use crate::call::{Answer, CallError, OutMessage, RequestCall, SubmitCall, Submitted, Traced};
use crate::purse::Purse;
use crate::route::{Open, Route, RouteTable};

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Share of new traces that are sampled, 0 to 1. A caller's own `traceparent` decides for itself.
    pub sample_ratio: f64,
    /// Calls under way at once, and their bytes.
    pub in_flight: usize,
    pub in_flight_bytes: usize,
    pub connections: usize,
    /// How long a client may take to send its headers, ms.
    pub header_timeout_ms: u64,
    /// How long it may take to send one message, whatever its deadline, ms.
    pub body_timeout_ms: u64,
    /// How long an idempotency key or a session is remembered, ms.
    pub dedup_window_ms: u64,
    /// The node that calls wait on: the first half of its request ids, by which replies find their way home.
    pub node: NodeId,
    /// Whether this node is a Gateway at all; else every call is sent elsewhere.
    pub takes_calls: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sample_ratio: 0.01,
            in_flight: IN_FLIGHT_MAX,
            in_flight_bytes: IN_FLIGHT_BYTES_MAX,
            connections: CONNECTIONS_MAX,
            header_timeout_ms: HEADER_TIMEOUT_MS,
            body_timeout_ms: BODY_TIMEOUT_MS,
            dedup_window_ms: DEDUP_WINDOW_MS_DEFAULT,
            node: NodeId([0; 8]),
            takes_calls: true,
        }
    }
}

/// The one core that all kinds use.
pub struct Core {
    backend: Arc<dyn Backend>,
    append: Arc<Append>,
    admit: Arc<Admit>,
    routes: watch::Receiver<Arc<RouteTable>>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    spans: Arc<dyn SpanSink>,
    settings: Settings,
    /// `sample_ratio` as a threshold for 32 random bits.
    sample_below: u64,
    ready: AtomicBool,
    stopping: CancellationToken,
}

/// A request that passed every check and is about to set out.
pub(crate) struct Prepared {
    pub route: Arc<Route>,
    pub request: RequestId,
    pub until: Instant,
    /// One a feed; `None` where the feed does not take it. At least one is there.
    messages: Vec<Option<Message>>,
    once: Once,
    pub lane: bool,
    pub way: Way,
    /// Held until the call ends.
    permit: Permit,
}

impl Prepared {
    /// Its append.
    fn call(&mut self) -> Call {
        let messages = std::mem::take(&mut self.messages);
        Call {
            to: (self.route.feeds.iter().zip(messages))
                .filter_map(|(feed, message)| Some((Arc::clone(&feed.topic), vec![message?])))
                .collect(),
            once: self.once.clone(),
        }
    }

    /// What is kept of a request once its messages are on their way.
    pub(crate) fn into_parts(self) -> (Instant, Way, Permit) {
        (self.until, self.way, self.permit)
    }
}

/// What is kept of a call until it ends: its trace and its times.
pub(crate) struct Way {
    /// Whose it is.
    purse: Arc<Purse>,
    trace: Option<TraceContext>,
    /// Set when this Gateway opened a span of the trace.
    span: Option<OpenSpan>,
}

/// A call of what is no subject: see [`Core::visit`].
pub(crate) struct Visit {
    since: Instant,
    way: Way,
    /// Held until the call ends.
    permit: Permit,
}

impl Visit {
    /// When it is to be over. `timeout_ms`: as its caller says.
    ///
    /// # Errors
    /// The timeout is no good one.
    pub(crate) fn until(&self, timeout_ms: Option<u64>) -> Result<Instant, CallError> {
        Ok(self.since + Duration::from_millis(check::timeout(timeout_ms)?))
    }

    /// What it takes in memory is more than what it came in with.
    pub(crate) fn cover(&mut self, bytes: usize) {
        self.permit.cover(bytes);
    }

    pub(crate) fn trace_id(&self) -> Option<[u8; 16]> {
        self.way.trace.map(|trace| trace.trace_id)
    }
}

struct OpenSpan {
    name: &'static str,
    parent: Option<[u8; 8]>,
    start_us: u64,
    since: Instant,
    /// What was called, as the span's attribute.
    of: (&'static str, String),
}

/// What goes to each inbox that a subject feeds.
type Inboxes = Vec<(Arc<TopicSpec>, Vec<Message>)>;

/// What the lists of [`Inboxes`] hold where a feed has a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// What the feed takes.
    Taken,
    /// Every message: a session's sequence numbers count each in every inbox.
    Aligned,
}

/// A streaming submit, bound to its subject.
#[derive(Debug, Clone)]
pub struct Session {
    scope: Scope,
    subject: String,
    id: Uid,
    trace: Option<TraceContext>,
}

impl Session {
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }
}

/// Who sends an append: see [`Append::call`] and [`Append::queue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    Caller,
    Task,
}

impl Core {
    #[must_use]
    pub fn new(
        backend: Arc<dyn Backend>,
        routes: watch::Receiver<Arc<RouteTable>>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        spans: Arc<dyn SpanSink>,
        settings: Settings,
    ) -> Arc<Self> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 2^32 after the clamp"
        )]
        let sample_below = (settings.sample_ratio.clamp(0.0, 1.0) * 2f64.powi(32)) as u64;
        Arc::new(Self {
            append: Append::new(Arc::clone(&backend)),
            admit: Admit::new(settings.in_flight, settings.in_flight_bytes),
            backend,
            routes,
            clock,
            entropy,
            spans,
            sample_below,
            settings,
            ready: AtomicBool::new(true),
            stopping: CancellationToken::new(),
        })
    }

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether calls are welcome: `readyz` and the gRPC health service say so.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.stopping.is_cancelled()
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Cancelled when the doors close: streams take nothing more and end what is under way.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    #[must_use]
    pub fn admit(&self) -> &Arc<Admit> {
        &self.admit
    }

    /// Who pays for what a caller's clients have not sent whole or not taken; `None`: its tenant has no subject here.
    pub(crate) fn purse(&self, scope: &Scope) -> Option<Arc<Purse>> {
        self.routes.borrow().purse(scope.tenant()).cloned()
    }

    pub(crate) fn waiters(&self) -> &Arc<Waiters> {
        self.backend.waiters()
    }

    // ------------------------------------------------------------------------------------------------------- request

    /// Sends one message and waits for the Swarm's first response, or for the deadline. Dropping the future is the cancellation.
    ///
    /// # Errors
    /// [`CallError`], which says whether a retry is safe.
    pub async fn request(self: &Arc<Self>, scope: &Scope, call: RequestCall) -> Result<Answer, CallError> {
        let prepared = self.prepare(scope, call)?;
        if prepared.lane {
            self.by_lane(prepared).await
        } else {
            self.durably(prepared, Sender::Caller).await
        }
    }

    /// All checks of a request, its messages, and its admission.
    pub(crate) fn prepare(&self, scope: &Scope, call: RequestCall) -> Result<Prepared, CallError> {
        let timeout_ms = check::timeout(call.timeout_ms)?;
        let size = check::message(&call.payload, &call.headers, call.key.as_deref())?;
        check::idempotency_key(call.idempotency_key.as_deref())?;
        let route = self.route(scope, &call.subject, true)?;
        let permit = self.admit.enter(
            &route.purse,
            &route.load,
            1,
            if call.streams { size + PART_WINDOW_BYTES } else { size },
        )?;

        let now_ms = self.clock.now_ms();
        let uid = Uid::random(&*self.entropy);
        let request = self.request_id(uid);
        let subject = || ("skep.subject", route.subject.to_string());
        let way = self.set_out("gateway request", &route.purse, subject, call.trace, uid);
        let once = match call.idempotency_key {
            None => Once::No,
            Some(key) => Once::Key {
                subject: route.subject.clone(),
                key,
                fingerprint: check::fingerprint(
                    "request",
                    [(&call.payload, call.headers.as_slice(), call.key.as_deref())],
                ),
                expires_ms: now_ms.saturating_add(self.settings.dedup_window_ms),
            },
        };
        let lane = once == Once::No && route.lanes().is_some();
        if !lane {
            permit.keep(1, size)?;
        }
        let keyed = once != Once::No;
        let sent = OutMessage {
            payload: call.payload,
            headers: call.headers,
            key: call.key,
        };
        let takes = check::takers(&route.feeds, &sent);
        let taken = |i: usize| takes.as_ref().is_none_or(|takes| takes[i]);
        let Some(last) = (0..route.feeds.len()).rfind(|i| taken(*i)) else {
            return Err(check::nobody_takes(&route));
        };
        let mut shares = shares(Request::WHOLE, (0..=last).filter(|i| taken(*i)).count());
        let mut sent = Some(sent);
        let mut messages = Vec::with_capacity(route.feeds.len());
        for (i, feed) in route.feeds.iter().enumerate() {
            if !taken(i) {
                messages.push(None);
                continue;
            }
            let out = if i == last { sent.take() } else { sent.clone() };
            let Some(out) = out else { break };
            messages.push(Some(Message {
                uid,
                key: check::key_of(feed, uid, &out)?,
                headers: out.headers,
                payload: out.payload,
                accepted_ms: now_ms,
                request: Some(Request {
                    id: request,
                    deadline_ms: now_ms.saturating_add(timeout_ms),
                    keyed,
                    share: shares.next().unwrap_or(0),
                    streams: call.streams,
                }),
                trace: way.trace,
                lineage: None,
                hops: Vec::new(),
            }));
        }
        Ok(Prepared {
            route,
            request,
            until: Instant::now() + Duration::from_millis(timeout_ms),
            messages,
            once,
            lane,
            way,
            permit,
        })
    }

    /// Puts a prepared request on the lanes of its feeds. The caller has registered for the reply.
    pub(crate) fn push(prepared: &mut Prepared) -> Result<(), CallError> {
        let Some(lanes) = prepared.route.lanes() else {
            return Ok(());
        };
        for ((feed, lane), message) in lanes.zip(std::mem::take(&mut prepared.messages)) {
            let Some(message) = message else { continue };
            // Where an earlier feed has its copy already, nobody will wait for that one: a pure Swarm keeps nothing of it.
            lane.push(Travelling { message, attempts: 0 })
                .map_err(|_| outcome::full(&feed.stage, "lane-full", "the in-memory lane"))?;
        }
        Ok(())
    }

    async fn by_lane(&self, mut prepared: Prepared) -> Result<Answer, CallError> {
        let waiter = self.waiters().wait(prepared.request);
        let result = match Self::push(&mut prepared) {
            Err(refused) => Err(refused),
            Ok(()) => match tokio::time::timeout_at(prepared.until, waiter).await {
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(_)) => Err(outcome::stopping(Certainty::NotDone)),
                Err(_) => Err(outcome::expired(Certainty::NotDone)),
            },
        };
        let (_, way, _permit) = prepared.into_parts();
        self.arrive(way, true, result)
    }

    pub(crate) async fn durably(self: &Arc<Self>, mut prepared: Prepared, sender: Sender) -> Result<Answer, CallError> {
        let result = self.append_and_wait(&mut prepared, sender).await;
        self.arrive(prepared.way, false, result)
    }

    async fn append_and_wait(self: &Arc<Self>, prepared: &mut Prepared, sender: Sender) -> Result<Reply, CallError> {
        let route = Arc::clone(&prepared.route);
        let call = prepared.call();
        let again = (prepared.once != Once::No).then(|| call.clone());
        let own = self.waiters().wait(prepared.request);
        let accepted = self
            .append(&route, Gate::Appended, call, prepared.until, sender)
            .await?;
        let waiter = match (accepted, again) {
            (Accepted::Appended { .. }, _) => own,
            (Accepted::Duplicate { reply: Some(reply), .. }, _) => return Ok(reply),
            (
                Accepted::Duplicate {
                    request: Some(running), ..
                },
                Some(call),
            ) => {
                let waiter = self.waiters().wait(running);
                // Its reply may have come between the answer and the registration: now it cannot, so ask once more.
                let now = self
                    .append(&route, Gate::Appended, call, prepared.until, sender)
                    .await?;
                match now {
                    Accepted::Duplicate { reply: Some(reply), .. } => return Ok(reply),
                    Accepted::Duplicate { .. } => waiter,
                    // The first one's window ended in between.
                    Accepted::Appended { .. } => own,
                }
            }
            (Accepted::Duplicate { .. }, _) => return Err(outcome::key_without_reply()),
        };
        match tokio::time::timeout_at(prepared.until, waiter).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(outcome::stopping(Certainty::Unknown)),
            Err(_) => Err(outcome::expired(Certainty::Unknown)),
        }
    }

    async fn append(
        &self,
        route: &Route,
        gate: Gate,
        call: Call,
        until: Instant,
        sender: Sender,
    ) -> Result<Accepted, CallError> {
        let done = match sender {
            Sender::Caller => self.append.call(&route.swarm, gate, call, until).await,
            Sender::Task => self.append.queue(&route.swarm, gate, call).wait(until).await,
        };
        done.map_err(outcome::of_append)
    }

    /// Ends a request: its answer or failure, its span.
    pub(crate) fn arrive(&self, way: Way, lane: bool, result: Result<Reply, CallError>) -> Result<Answer, CallError> {
        let sampled = way.trace.is_some_and(|t| t.sampled);
        let trace_id = way.trace.map(|t| t.trace_id);
        let purse = Arc::clone(&way.purse);
        let (result, hops) = match result {
            Ok(reply) => {
                let mut hops = if sampled { reply.hops } else { Vec::new() };
                // A stage tells when its batch started; a caller wants to know how long after its call.
                let arrived_us = way.span.as_ref().map_or(0, |s| s.start_us);
                for hop in &mut hops {
                    hop.started_us = hop.started_us.saturating_sub(arrived_us);
                }
                (outcome::of_reply(reply.result, lane), hops)
            }
            Err(error) => (Err(error), Vec::new()),
        };
        self.close(way, result.as_ref().err());
        match result {
            Ok(response) => {
                purse.answered(response.len());
                Ok(Answer {
                    response,
                    hops,
                    trace_id,
                })
            }
            Err(mut error) => {
                if trace_id.is_some() {
                    error.trace = Some(Box::new(Traced { hops, trace_id }));
                }
                Err(error)
            }
        }
    }

    pub(crate) fn expired_on_lane(&self, way: Way) -> CallError {
        self.arrive(way, true, Err(outcome::expired(Certainty::NotDone)))
            .expect_err("an error stays one")
    }

    // --------------------------------------------------------------------------------------------------------- visit

    /// Lets in a call of something on this node that is no subject, as a model is. `of`: what is called, as the span says it.
    ///
    /// # Errors
    /// Overloaded.
    pub(crate) fn visit(
        &self,
        purse: &Arc<Purse>,
        load: &Arc<Load>,
        bytes: usize,
        trace: Option<TraceContext>,
        of: impl FnOnce() -> (&'static str, String),
    ) -> Result<Visit, CallError> {
        let permit = self.admit.enter(purse, load, 1, bytes)?;
        let uid = Uid::random(&*self.entropy);
        Ok(Visit {
            since: Instant::now(),
            way: self.set_out("gateway model", purse, of, trace, uid),
            permit,
        })
    }

    /// Ends a visit: its span, what its tenant is told of it. `bytes`: of the answer.
    pub(crate) fn leave<T>(
        &self,
        visit: Visit,
        result: Result<T, CallError>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Result<T, CallError> {
        let trace_id = visit.way.trace.map(|trace| trace.trace_id);
        let purse = Arc::clone(&visit.way.purse);
        self.close(visit.way, result.as_ref().err());
        if let Ok(answer) = &result {
            purse.answered(bytes(answer));
        }
        result.map_err(|error| CallError {
            trace: trace_id.map(|id| {
                Box::new(Traced {
                    hops: Vec::new(),
                    trace_id: Some(id),
                })
            }),
            ..error
        })
    }

    // -------------------------------------------------------------------------------------------------------- submit

    /// Appends messages and waits until they are durable: all of them or none.
    ///
    /// # Errors
    /// [`CallError`], which says whether a retry is safe.
    pub async fn submit(
        self: &Arc<Self>,
        scope: &Scope,
        call: SubmitCall,
        timeout_ms: Option<u64>,
    ) -> Result<Submitted, CallError> {
        let timeout_ms = timeout_ms
            .unwrap_or(REQUEST_DEADLINE_MS_DEFAULT)
            .min(REQUEST_DEADLINE_MS_MAX);
        if timeout_ms == 0 {
            return Err(outcome::expired(Certainty::NotDone));
        }
        let until = Instant::now() + Duration::from_millis(timeout_ms);
        check::idempotency_key(call.idempotency_key.as_deref())?;
        let size = check::messages(&call.messages, "submit")?;
        let route = self.route(scope, &call.subject, false)?;
        let permit = self.admit.enter(&route.purse, &route.load, call.messages.len(), size)?;
        permit.keep(call.messages.len(), size)?;
        let now_ms = self.clock.now_ms();
        let subject = || ("skep.subject", route.subject.to_string());
        let uid = Uid::random(&*self.entropy);
        let way = self.set_out("gateway submit", &route.purse, subject, call.trace, uid);
        let once = match call.idempotency_key {
            None => Once::No,
            Some(key) => Once::Key {
                subject: route.subject.clone(),
                key,
                fingerprint: check::fingerprint(
                    "submit",
                    call.messages
                        .iter()
                        .map(|m| (&m.payload, m.headers.as_slice(), m.key.as_deref())),
                ),
                expires_ms: now_ms.saturating_add(self.settings.dedup_window_ms),
            },
        };
        let count = call.messages.len() as u64;
        let mut to = self.fan_out(&route, call.messages, now_ms, way.trace, Lists::Taken)?;
        to.retain(|(_, messages)| !messages.is_empty());
        if to.is_empty() {
            // By the manifest nobody wants them: that is all their effect.
            self.close(way, None);
            return Ok(Submitted {
                accepted: count,
                duplicate: false,
            });
        }
        let result = self
            .append(&route, Gate::Durable, Call { to, once }, until, Sender::Caller)
            .await;
        self.close(way, result.as_ref().err());
        Ok(match result? {
            Accepted::Appended { skipped } => Submitted {
                accepted: count.saturating_sub(skipped),
                duplicate: false,
            },
            Accepted::Duplicate { .. } => Submitted {
                accepted: 0,
                duplicate: true,
            },
        })
    }

    /// Starts or resumes a streaming submit. `session`: 16 bytes chosen by the client; empty: one that nobody can resume.
    ///
    /// # Errors
    /// Unknown subject; a session of another length.
    pub fn open_session(
        &self,
        scope: &Scope,
        subject: &str,
        session: &[u8],
        trace: Option<TraceContext>,
    ) -> Result<Session, CallError> {
        self.route(scope, subject, false)?;
        let id = if session.is_empty() {
            Uid::random(&*self.entropy)
        } else {
            Uid::from_slice(session).ok_or_else(|| {
                CallError::invalid(
                    "bad-session",
                    format!("a session has 16 bytes, this one has {}", session.len()),
                )
            })?
        };
        Ok(Session {
            scope: scope.clone(),
            subject: subject.to_owned(),
            id,
            trace,
        })
    }

    /// Queues one frame of a session, in order, and returns without waiting. `first` is the sequence number of its first message.
    /// `messages` are taken only when the frame is.
    ///
    /// # Errors
    /// Anything wrong with the frame; Overloaded: the caller may offer the same frame again once others are done.
    pub fn submit_frame(
        &self,
        session: &Session,
        first: u64,
        messages: &mut Vec<OutMessage>,
    ) -> Result<Frame, CallError> {
        let size = check::messages(messages, "frame")?;
        let last = match first.checked_add(messages.len() as u64 - 1) {
            Some(last) if first > 0 => last,
            _ => {
                return Err(CallError::invalid(
                    "bad-sequence",
                    format!("a session's first message has sequence 1, this frame starts at {first}"),
                ));
            }
        };
        // Looked up a frame: a Swarm deleted meanwhile takes no more.
        let route = self.route(&session.scope, &session.subject, false)?;
        let permit = self.admit.enter(&route.purse, &route.load, messages.len(), size)?;
        permit.keep(messages.len(), size)?;
        let now_ms = self.clock.now_ms();
        let to = self.fan_out(&route, std::mem::take(messages), now_ms, session.trace, Lists::Aligned)?;
        let once = Once::Session {
            id: session.id,
            first,
            again_max: u64::MAX,
            expires_ms: now_ms.saturating_add(self.settings.dedup_window_ms),
        };
        Ok(Frame {
            last,
            pending: self.append.queue(&route.swarm, Gate::Durable, Call { to, once }),
            _permit: permit,
        })
    }

    // -------------------------------------------------------------------------------------------------------- shared

    /// This node and half of the uid: unlike a uid it need be unique only among the calls that wait here.
    fn request_id(&self, uid: Uid) -> RequestId {
        let mut id = uid.0;
        id[..8].copy_from_slice(&self.settings.node.0);
        RequestId(id)
    }

    /// # Errors
    /// This node is no Gateway.
    pub(crate) fn takes_calls(&self) -> Result<(), CallError> {
        if self.settings.takes_calls {
            return Ok(());
        }
        Err(CallError::not_done(
            ErrorKind::Unavailable,
            "not-a-gateway",
            "this node has not the role `gateway`: call another (`skep nodes` lists them)",
        ))
    }

    /// A tenant's own subjects, sorted, with what their Swarms let in.
    pub(crate) fn subjects(&self, scope: &Scope) -> Vec<(String, Open)> {
        let table = self.routes.borrow();
        let tenant = scope.tenant();
        let all = table.subjects(tenant).into_iter();
        all.filter_map(|name| Some((name.to_owned(), table.get(tenant, name)?.open)))
            .collect()
    }

    /// `waits`: for an answer.
    pub(crate) fn route(&self, scope: &Scope, subject: &str, waits: bool) -> Result<Arc<Route>, CallError> {
        self.takes_calls()?;
        let found = {
            let table = self.routes.borrow();
            match table.get(scope.tenant(), subject) {
                Some(route) => Ok(Arc::clone(route)),
                None => Err(outcome::no_such_subject(subject, &table.subjects(scope.tenant()))),
            }
        };
        let route = found?;
        let closed = |reason, why: &str| {
            let message = format!("Swarm `{}` {why}", route.swarm.name());
            Err(CallError::not_done(ErrorKind::Unavailable, reason, message))
        };
        match route.open {
            Open::Deleting => return closed("deleting", "takes no more input: it is being deleted"),
            Open::Draining => return closed("paused", "takes no input until it is resumed: it is being drained"),
            Open::Paused if waits => {
                return closed(
                    "paused",
                    "is paused: nobody would answer before it is resumed; a submit is kept until then",
                );
            }
            Open::Paused | Open::Yes => {}
        }
        Ok(route)
    }

    fn fan_out(
        &self,
        route: &Route,
        messages: Vec<OutMessage>,
        now_ms: u64,
        trace: Option<TraceContext>,
        lists: Lists,
    ) -> Result<Inboxes, CallError> {
        let mut to: Vec<_> = route
            .feeds
            .iter()
            .map(|feed| (Arc::clone(&feed.topic), Vec::with_capacity(messages.len())))
            .collect();
        for (index, out) in messages.into_iter().enumerate() {
            let uid = Uid::random(&*self.entropy);
            let takes = check::takers(&route.feeds, &out);
            for (i, (feed, (_, list))) in route.feeds.iter().zip(&mut to).enumerate() {
                let key = match (takes.as_ref().is_none_or(|takes| takes[i]), lists) {
                    (true, _) => check::key_of(feed, uid, &out).map_err(|e| CallError {
                        message: format!("message {} of this call: {}", index + 1, e.message),
                        ..e
                    })?,
                    (false, Lists::Taken) => continue,
                    // The stage drops it where it reads it.
                    (false, Lists::Aligned) => None,
                };
                list.push(Message {
                    uid,
                    key,
                    headers: out.headers.clone(),
                    payload: out.payload.clone(),
                    accepted_ms: now_ms,
                    request: None,
                    trace,
                    lineage: None,
                    hops: Vec::new(),
                });
            }
        }
        Ok(to)
    }

    /// Head sampling: a caller's decision stands, a new trace is sampled by chance.
    fn set_out(
        &self,
        name: &'static str,
        purse: &Arc<Purse>,
        of: impl FnOnce() -> (&'static str, String),
        caller: Option<TraceContext>,
        uid: Uid,
    ) -> Way {
        let (trace_id, parent) = match caller {
            Some(trace) if !trace.sampled => {
                return Way {
                    purse: Arc::clone(purse),
                    trace: caller,
                    span: None,
                };
            }
            Some(trace) => (trace.trace_id, Some(trace.span_id)),
            None => {
                let chance = u32::from_le_bytes([uid.0[12], uid.0[13], uid.0[14], uid.0[15]]);
                if u64::from(chance) >= self.sample_below {
                    return Way {
                        purse: Arc::clone(purse),
                        trace: None,
                        span: None,
                    };
                }
                (self.entropy.bits128(), None)
            }
        };
        let bits = self.entropy.bits128();
        let mut span_id = [0; 8];
        span_id.copy_from_slice(&bits[..8]);
        Way {
            purse: Arc::clone(purse),
            trace: Some(TraceContext {
                trace_id,
                span_id,
                sampled: true,
            }),
            span: Some(OpenSpan {
                name,
                parent,
                start_us: self.clock.now_us(),
                since: Instant::now(),
                of: of(),
            }),
        }
    }

    fn close(&self, way: Way, error: Option<&CallError>) {
        if let (Some(context), Some(span)) = (way.trace, way.span) {
            let took_us = u64::try_from(span.since.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.spans.record(SpanRecord {
                context,
                parent: span.parent,
                links: Vec::new(),
                name: span.name.to_owned(),
                kind: SpanKind::Server,
                start_us: span.start_us,
                end_us: span.start_us.saturating_add(took_us),
                attributes: vec![span.of],
                error: error.map(|e| e.message.clone()),
            });
        }
    }
}

/// One queued frame of a session.
pub struct Frame {
    last: u64,
    pending: Pending,
    _permit: Permit,
}

impl Frame {
    /// The last sequence of the frame, once it and all before it are durable.
    ///
    /// # Errors
    /// [`CallError`]; later frames of the session are refused too, as they would leave a gap.
    pub async fn durable(self) -> Result<u64, CallError> {
        let until = Instant::now() + Duration::from_millis(REQUEST_DEADLINE_MS_DEFAULT);
        self.pending
            .wait(until)
            .await
            .map(|_| self.last)
            .map_err(outcome::of_append)
    }
}
