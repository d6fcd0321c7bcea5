//! A streaming submit: frames in, acknowledgements of what is durable out.

use std::sync::Arc;

use futures::stream::{FuturesOrdered, Stream, StreamExt as _};
use skep_model::error::ErrorKind;
use skep_model::limits::{RETRY_HINT_MS, SUBMIT_FRAMES_MAX};
use skep_model::message::TraceContext;
use skep_model::scope::Scope;
use skep_proto::v1;
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep};
use tonic::Status;

use crate::call::{CallError, OutMessage};
use crate::core::{Core, Session};
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
    let mut open = true;
    // The failure that ends the stream once everything before it is settled.
    let mut refused: Option<CallError> = None;
    while open || !under_way.is_empty() {
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
            }
            () = core.stopping().cancelled(), if open => {
                open = false;
                refused = Some(CallError::not_done(
                    ErrorKind::Unavailable,
                    "stopping",
                    "the node is stopping: resume the session",
                ));
            }
            next = frames.next(), if open && under_way.len() < SUBMIT_FRAMES_MAX => match next {
                None => open = false,
                Some(Err(status)) => {
                    // Broken off, or no frame at all. What was acknowledged stands.
                    let _ = acks.send(Err(status)).await;
                    return;
                }
                Some(Ok(frame)) => match take(&core, &scope, &mut session, frame, trace).await {
                    Ok(None) => {}
                    Ok(Some(frame)) => under_way.push_back(frame.durable()),
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

async fn take(
    core: &Arc<Core>,
    scope: &Scope,
    session: &mut Option<Session>,
    frame: v1::SubmitFrame,
    trace: Option<TraceContext>,
) -> Result<Option<crate::core::Frame>, CallError> {
    let session = match session {
        Some(session) => session,
        None => {
            let trace = frame.traceparent.as_deref().and_then(TraceContext::parse).or(trace);
            session.insert(core.open_session(scope, &frame.subject, &frame.session, trace)?)
        }
    };
    if frame.messages.is_empty() {
        // The first frame may only open the session.
        return Ok(None);
    }
    let messages: Vec<OutMessage> = frame.messages.into_iter().map(grpc::out_message).collect();
    // A streaming client is slowed down rather than refused: while this waits, nothing is read from it.
    for _ in 0..WAITS_MAX {
        match core.submit_frame(session, frame.first, messages.clone()) {
            Err(e) if e.kind == ErrorKind::Overloaded => sleep(Duration::from_millis(RETRY_HINT_MS)).await,
            other => return other.map(Some),
        }
    }
    core.submit_frame(session, frame.first, messages).map(Some)
}

/// Tries before an overloaded node refuses a frame after all: three seconds.
const WAITS_MAX: u32 = 30;

fn ack(durable: u64, failure: Option<CallError>) -> v1::SubmitAck {
    v1::SubmitAck {
        durable,
        failure: failure.map(error::failure),
    }
}
