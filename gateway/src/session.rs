//! A streaming submit: frames in, acknowledgements of what is durable out.

use std::sync::Arc;

use futures::stream::{FuturesOrdered, Stream, StreamExt as _};
use skep_model::error::ErrorKind;
use skep_model::limits::{RETRY_HINT_MS, SUBMIT_FRAMES_MAX};
use skep_model::message::TraceContext;
use skep_model::scope::Scope;
use skep_proto::v1;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until};
use tonic::Status;

use crate::admit::Permit;
use crate::call::{CallError, OutMessage};
use crate::core::{Core, Frame, Session};
use crate::{error, grpc};

/// Acknowledgements that a client has not read yet. Each covers all before it, so few are enough.
const ACKS_WAITING: usize = 16;

type Ack = Result<v1::SubmitAck, Status>;

/// Drives one stream in a task of its own; the returned receiver is the answer stream.
pub(crate) fn start<S>(core: Arc<Core>, scope: Scope, frames: S, trace: Option<TraceContext>) -> mpsc::Receiver<Ack>
where
    S: Stream<Item = Result<v1::SubmitFrame, Status>> + Send + Unpin + 'static,
{
    let (acks, answer) = mpsc::channel(ACKS_WAITING);
    tokio::spawn(run(core, scope, frames, trace, acks));
    answer
}

async fn run<S>(core: Arc<Core>, scope: Scope, mut frames: S, trace: Option<TraceContext>, acks: mpsc::Sender<Ack>)
where
    S: Stream<Item = Result<v1::SubmitFrame, Status>> + Unpin,
{
    let mut session: Option<Session> = None;
    let mut durable = 0;
    let mut under_way = FuturesOrdered::new();
    // What an overloaded node did not take yet. The stream's own frames may be what fills the node: they go on meanwhile.
    let mut waiting: Option<Waiting> = None;
    let mut open = true;
    // The failure that ends the stream once everything before it is settled.
    let mut refused: Option<CallError> = None;
    while open || !under_way.is_empty() || waiting.is_some() {
        tokio::select! {
            biased;
            // The client is gone: what was queued may go on, nobody is to be told.
            () = acks.closed() => return,
            Some(done) = under_way.next(), if !under_way.is_empty() => {
                let mut done: Option<Result<u64, CallError>> = Some(done);
                // One group makes many frames durable at once: one acknowledgement says so.
                while let Some(result) = done.take() {
                    match result {
                        Ok(last) => {
                            durable = last;
                            done = futures::FutureExt::now_or_never(under_way.next()).flatten();
                        }
                        Err(failure) => {
                            // All later frames leave a gap and are refused by themselves.
                            let _ = acks.send(Ok(ack(durable, Some(failure)))).await;
                            return;
                        }
                    }
                }
                if acks.send(Ok(ack(durable, None))).await.is_err() {
                    return;
                }
                if let Some(waiting) = &mut waiting {
                    waiting.next = Instant::now();
                }
            }
            () = core.stopping().cancelled(), if open || waiting.is_some() => {
                open = false;
                waiting = None;
                refused = Some(CallError::not_done(
                    ErrorKind::Unavailable,
                    "stopping",
                    "the node is stopping: resume the session",
                ));
            }
            () = sleep_until(waiting.as_ref().map_or_else(Instant::now, |w| w.next)), if waiting.is_some() => {
                if let (Some(frame), Some(session)) = (waiting.take(), &session) {
                    match frame.offer(&core, session) {
                        Ok(Offered::Taken(frame)) => under_way.push_back(frame.durable()),
                        Ok(Offered::Later(frame)) => waiting = Some(frame),
                        Err(failure) => {
                            open = false;
                            refused = Some(failure);
                        }
                    }
                }
            }
            next = frames.next(), if open && waiting.is_none() && under_way.len() < SUBMIT_FRAMES_MAX => match next {
                None => open = false,
                Some(Err(status)) => {
                    // Broken off, or no frame at all. What was acknowledged stands.
                    let _ = acks.send(Err(status)).await;
                    return;
                }
                Some(Ok(frame)) => match read(&core, &scope, &mut session, frame, trace) {
                    Ok(frame) => waiting = frame,
                    Err(failure) => {
                        open = false;
                        refused = Some(failure);
                    }
                },
            },
        }
    }
    if let Some(failure) = refused {
        let _ = acks.send(Ok(ack(durable, Some(failure)))).await;
    }
}

/// A frame and its patience.
struct Waiting {
    first: u64,
    messages: Vec<OutMessage>,
    next: Instant,
    until: Instant,
    /// Its bytes, while it waits: no call holds them yet.
    held: Option<Permit>,
}

enum Offered {
    Taken(Frame),
    Later(Waiting),
}

impl Waiting {
    /// A streaming client is slowed down rather than refused: while its frame waits, nothing is read from it.
    fn offer(mut self, core: &Arc<Core>, session: &Session) -> Result<Offered, CallError> {
        self.held = None;
        match core.submit_frame(session, self.first, &mut self.messages) {
            Ok(frame) => Ok(Offered::Taken(frame)),
            Err(e) if e.kind == ErrorKind::Overloaded && Instant::now() < self.until => {
                self.next = Instant::now() + Duration::from_millis(RETRY_HINT_MS);
                let bytes = self.messages.iter().map(OutMessage::size).sum();
                self.held = Some(core.admit().hold(core.purse(session.scope()).as_ref(), 0, bytes));
                Ok(Offered::Later(self))
            }
            Err(e) => Err(e),
        }
    }
}

/// Opens the session with the first frame.
fn read(
    core: &Arc<Core>,
    scope: &Scope,
    session: &mut Option<Session>,
    frame: v1::SubmitFrame,
    trace: Option<TraceContext>,
) -> Result<Option<Waiting>, CallError> {
    if session.is_none() {
        let trace = frame.traceparent.as_deref().and_then(TraceContext::parse).or(trace);
        *session = Some(core.open_session(scope, &frame.subject, &frame.session, trace)?);
    }
    if frame.messages.is_empty() {
        // The first frame may only open the session.
        return Ok(None);
    }
    let now = Instant::now();
    Ok(Some(Waiting {
        first: frame.first,
        messages: frame.messages.into_iter().map(grpc::out_message).collect(),
        next: now,
        until: now + PATIENCE,
        held: None,
    }))
}

/// How long a frame waits before an overloaded node refuses it after all.
const PATIENCE: Duration = Duration::from_secs(3);

fn ack(durable: u64, failure: Option<CallError>) -> v1::SubmitAck {
    v1::SubmitAck {
        durable,
        failure: failure.map(error::failure),
    }
}
