//! Requests whose callers take parts of the response as they come.

use std::sync::Arc;

use skep_model::Bytes;
use skep_model::error::Certainty;
use skep_model::message::{Hop, NO_RESPONSE, ReplyResult};
use skep_model::scope::Scope;
use skep_topic::Gate;
use skep_topic::parts::{Heard, Listener};
use tokio::time::Instant;

use super::{Core, Sender, Way, outcome};
use crate::admit::Permit;
use crate::call::{CallError, RequestCall};
use crate::purse::Purse;

/// What a caller gets. After the end nothing comes.
#[derive(Debug)]
pub enum Event {
    Part(Bytes),
    End(Result<End, CallError>),
}

/// How a stream ended that ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// `None`: the parts are all of it.
    pub response: Option<Bytes>,
    pub parts: u64,
    /// Only when the trace is sampled.
    pub hops: Vec<Hop>,
    pub trace_id: Option<[u8; 16]>,
}

/// A streamed answer. Dropping it is the cancellation.
pub struct AnswerStream {
    core: Arc<Core>,
    listener: Listener,
    lane: bool,
    until: Instant,
    /// Until the end.
    way: Option<Way>,
    purse: Arc<Purse>,
    /// For the call and its window.
    _permit: Permit,
}

impl Core {
    /// As [`Core::request`], for a caller who takes parts.
    ///
    /// # Errors
    /// [`CallError`] where the call did not set out: nothing was done, or perhaps.
    pub async fn stream(self: &Arc<Self>, scope: &Scope, call: RequestCall) -> Result<AnswerStream, CallError> {
        if call.idempotency_key.is_some() {
            return Err(CallError::invalid(
                "bad-idempotency-key",
                "a streamed request takes no idempotency key, for its parts are not kept: make it a plain request, which gets them joined",
            ));
        }
        let mut prepared = self.prepare(scope, RequestCall { streams: true, ..call })?;
        let listener = self.waiters().listen(prepared.request);
        let (lane, route) = (prepared.lane, Arc::clone(&prepared.route));
        let set_out = if lane {
            Self::push(&mut prepared)
        } else {
            let call = prepared.call();
            self.append(&route, Gate::Appended, call, prepared.until, Sender::Caller)
                .await
                .map(|_| ())
        };
        let (until, way, permit) = prepared.into_parts();
        if let Err(error) = set_out {
            return Err(self.arrive(way, lane, Err(error)).expect_err("an error stays one"));
        }
        Ok(AnswerStream {
            core: Arc::clone(self),
            listener,
            lane,
            until,
            way: Some(way),
            purse: Arc::clone(&route.purse),
            _permit: permit,
        })
    }
}

impl AnswerStream {
    #[must_use]
    pub fn trace_id(&self) -> Option<[u8; 16]> {
        Some(self.way.as_ref()?.trace?.trace_id)
    }

    /// Who pays for what of it has not left yet.
    pub(crate) fn purse(&self) -> &Arc<Purse> {
        &self.purse
    }

    /// `None` after the end. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Event> {
        self.way.as_ref()?;
        let heard = tokio::time::timeout_at(self.until, self.listener.next()).await;
        let parts = self.listener.parts();
        // What travels in memory is safe to repeat; but who has seen a part of it should know that it was begun.
        let lane = self.lane && parts == 0;
        let certainty = if lane { Certainty::NotDone } else { Certainty::Unknown };
        let result = match heard {
            Ok(Heard::Part(part)) => {
                self.purse.answered(part.len());
                return Some(Event::Part(part));
            }
            Ok(Heard::End(Ok(reply))) => Ok(reply),
            Ok(Heard::End(Err(_))) => Err(outcome::stopping(certainty)),
            Err(_) => Err(outcome::expired(certainty)),
        };
        let mut whole = false;
        let result = result.map(|mut reply| {
            // Every Bee has ended, and some of them said something.
            if parts > 0 && matches!(&reply.result, ReplyResult::Failed { reason, .. } if reason == NO_RESPONSE) {
                reply.result = ReplyResult::Response(Bytes::new());
                whole = true;
            }
            reply
        });
        let way = self.way.take()?;
        let end = self.core.arrive(way, lane, result).map(|answer| End {
            response: (!whole).then_some(answer.response),
            parts,
            hops: answer.hops,
            trace_id: answer.trace_id,
        });
        Some(Event::End(end))
    }
}
