//! The callers that wait on this node for a reply.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use skep_model::id::{RequestId, Uid};
use skep_model::limits::{CANCELLED_MAX, RETURNS_MAX};
use skep_model::message::{Reply, ReplyResult, Request};
use tokio::sync::{mpsc, oneshot};

use crate::parts::Streams;

/// Joins replies to calls. Bounded by the Gateway's admission: a waiter exists only while its call is under way.
#[derive(Debug, Default)]
pub struct Waiters {
    waiting: Mutex<Waiting>,
    /// Responses that found nobody.
    late: AtomicU64,
    pub(crate) streams: Streams,
}

#[derive(Debug, Default)]
struct Waiting {
    by_request: HashMap<RequestId, Callers, BuildHasherDefault<RandomKey>>,
    /// Requests whose last caller went without an answer, the earliest first.
    cancelled: HashSet<RequestId, BuildHasherDefault<RandomKey>>,
    went: VecDeque<RequestId>,
    /// Never used twice: a request may be waited for again after its reply, before the first waiter is dropped.
    next_ticket: u64,
}

/// Several calls may wait for one request when an idempotency key is repeated while the first is running.
#[derive(Debug)]
struct Callers {
    first: (u64, Sink),
    more: Vec<(u64, Sink)>,
    /// The credit that came back, if any did: most requests are answered.
    returned: Option<Box<Returned>>,
}

#[derive(Debug, Default)]
struct Returned {
    /// What gave it back: a notice may come twice.
    by: HashSet<Uid>,
    share: u64,
}

impl Waiting {
    fn cancel(&mut self, request: RequestId) {
        if !self.cancelled.insert(request) {
            return;
        }
        self.went.push_back(request);
        if self.went.len() > CANCELLED_MAX
            && let Some(earliest) = self.went.pop_front()
        {
            self.cancelled.remove(&earliest);
        }
    }
}

impl Returned {
    /// Whether all of it is back.
    fn add(&mut self, by: Uid, share: u64) -> bool {
        if self.by.len() < RETURNS_MAX && self.by.insert(by) {
            self.share = self.share.saturating_add(share);
        }
        self.share >= Request::WHOLE
    }
}

#[derive(Debug)]
enum Sink {
    One(oneshot::Sender<Reply>),
    /// Unbounded by type, bounded by use: each registration brings at most one reply.
    Shared(mpsc::UnboundedSender<Reply>),
}

impl Sink {
    fn send(self, reply: Reply) -> bool {
        match self {
            Self::One(tx) => tx.send(reply).is_ok(),
            Self::Shared(tx) => tx.send(reply).is_ok(),
        }
    }
}

/// Request ids are random and made by this node, never by a caller, so their own bits serve as hash.
#[derive(Debug, Default, Clone, Copy)]
struct RandomKey(u64);

impl Hasher for RandomKey {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = self.0.rotate_left(29) ^ u64::from_le_bytes(word);
        }
    }

    /// The length that comes before a slice tells ids nothing apart.
    fn write_usize(&mut self, _: usize) {}
}

/// A future of one reply. Dropping it is the cancellation.
#[derive(Debug)]
pub struct Waiter {
    request: RequestId,
    ticket: u64,
    reply: oneshot::Receiver<Reply>,
    of: Arc<Waiters>,
}

/// Names one registration made by [`Waiters::wait_into`], to take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

impl Waiters {
    /// Register before the append, so that no reply can come too early.
    #[must_use]
    pub fn wait(self: &Arc<Self>, request: RequestId) -> Waiter {
        let (tx, rx) = oneshot::channel();
        let ticket = self.register(request, Sink::One(tx));
        Waiter {
            request,
            ticket,
            reply: rx,
            of: Arc::clone(self),
        }
    }

    /// As [`Self::wait`], for a caller with many requests under way: all its replies come by one channel, joined by
    /// [`Reply::request`]. Nobody cancels for it: it calls [`Self::forget`] for what it no longer waits for.
    pub fn wait_into(&self, request: RequestId, replies: &mpsc::UnboundedSender<Reply>) -> Ticket {
        Ticket(self.register(request, Sink::Shared(replies.clone())))
    }

    /// Takes a registration back. A reply may already lie in the channel.
    pub fn forget(&self, request: RequestId, ticket: Ticket) {
        self.remove(request, ticket.0);
    }

    fn register(&self, request: RequestId, sink: Sink) -> u64 {
        let mut waiting = self.lock();
        let ticket = waiting.next_ticket;
        waiting.next_ticket += 1;
        match waiting.by_request.entry(request) {
            Entry::Vacant(free) => {
                free.insert(Callers {
                    first: (ticket, sink),
                    more: Vec::new(),
                    returned: None,
                });
            }
            Entry::Occupied(mut taken) => taken.get_mut().more.push((ticket, sink)),
        }
        ticket
    }

    fn remove(&self, request: RequestId, ticket: u64) {
        let mut waiting = self.lock();
        let Some(callers) = waiting.by_request.get_mut(&request) else {
            return;
        };
        if callers.first.0 != ticket {
            callers.more.retain(|(t, _)| *t != ticket);
        } else if callers.more.is_empty() {
            waiting.by_request.remove(&request);
            waiting.cancel(request);
        } else {
            callers.first = callers.more.remove(0);
        }
    }

    /// The first response wins: later ones find nobody, and are counted. Returns whether somebody waited.
    ///
    /// A share of the credit that comes back is added up; with the last of it the callers hear that nobody is left who might answer.
    pub fn deliver(&self, mut reply: Reply) -> bool {
        let mut waiting = self.lock();
        let Entry::Occupied(mut found) = waiting.by_request.entry(reply.request) else {
            drop(waiting);
            if matches!(reply.result, ReplyResult::Response(_)) {
                self.late.fetch_add(1, Ordering::Relaxed);
            }
            return false;
        };
        if let ReplyResult::Returned { stage, by, share } = reply.result {
            if !found.get_mut().returned.get_or_insert_default().add(by, share) {
                return true;
            }
            reply.result = ReplyResult::no_response(stage);
        }
        let callers = found.remove();
        drop(waiting);
        for (_, waiter) in callers.more {
            // The caller may have gone meanwhile; that is its right.
            waiter.send(reply.clone());
        }
        callers.first.1.send(reply)
    }

    /// Whether the caller still waits: work for one that went away need not be done.
    #[must_use]
    pub fn is_waiting(&self, request: RequestId) -> bool {
        self.lock().by_request.contains_key(&request)
    }

    /// Whether somebody waited here, and everybody who did went away without an answer. Not of a request that was answered: what goes
    /// on behind an answer is wanted. Nor of those that other nodes wait for. Best effort: only the last
    /// [`CANCELLED_MAX`] are known.
    #[must_use]
    pub fn is_cancelled(&self, request: RequestId) -> bool {
        let waiting = self.lock();
        waiting.cancelled.contains(&request) && !waiting.by_request.contains_key(&request)
    }

    /// Responses after the first, and those whose caller had gone.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().by_request.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Future for Waiter {
    /// `Err` only if the node is stopping.
    type Output = Result<Reply, oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.reply).poll(cx)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.of.remove(self.request, self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use skep_model::Bytes;
    use skep_model::message::ReplyResult;

    use super::*;

    fn reply(request: RequestId) -> Reply {
        Reply {
            request,
            result: ReplyResult::Response(Bytes::from_static(b"x")),
            hops: Vec::new(),
        }
    }

    #[tokio::test]
    async fn everyone_who_waits_gets_it_and_nobody_else() {
        let waiters = Arc::new(Waiters::default());
        let (a, b) = (RequestId([1; 16]), RequestId([2; 16]));
        let (tx, mut rx) = mpsc::unbounded_channel();
        let first = waiters.wait(a);
        let second = waiters.wait(a);
        waiters.wait_into(a, &tx);
        let other = waiters.wait(b);
        assert_eq!(waiters.len(), 2);
        assert!(waiters.deliver(reply(a)));
        assert_eq!(first.await.unwrap().request, a);
        assert_eq!(second.await.unwrap().request, a);
        assert_eq!(rx.recv().await.unwrap().request, a);
        assert!(!waiters.deliver(reply(a)), "the first response wins");
        drop(other);
        assert!(waiters.is_empty());
    }

    #[tokio::test]
    async fn a_request_whose_credit_is_all_back_fails_and_a_notice_that_comes_twice_counts_once() {
        let waiters = Arc::new(Waiters::default());
        let id = RequestId([5; 16]);
        let back = |by, share| Reply {
            request: id,
            result: ReplyResult::Returned {
                stage: "s".parse().unwrap(),
                by: Uid([by; 16]),
                share,
            },
            hops: Vec::new(),
        };
        let mut waiter = waiters.wait(id);
        assert!(waiters.deliver(back(1, Request::WHOLE / 2)));
        assert!(waiters.deliver(back(1, Request::WHOLE / 2)), "the same again");
        assert!(waiters.deliver(back(2, Request::WHOLE / 4)));
        assert!(waiters.is_waiting(id));
        assert!(futures::poll!(&mut waiter).is_pending());
        assert!(waiters.deliver(back(3, Request::WHOLE / 4)));
        assert_eq!(
            waiter.await.unwrap().result,
            ReplyResult::no_response("s".parse().unwrap())
        );
        assert!(!waiters.deliver(back(4, 1)));
        assert_eq!(waiters.late(), 0, "a notice is no response");
        assert!(!waiters.deliver(reply(id)));
        assert_eq!(waiters.late(), 1);
    }

    #[tokio::test]
    async fn a_request_is_cancelled_when_its_last_caller_goes_without_an_answer() {
        let waiters = Arc::new(Waiters::default());
        let (gone, answered, back) = (RequestId([6; 16]), RequestId([7; 16]), RequestId([8; 16]));
        let (first, second) = (waiters.wait(gone), waiters.wait(gone));
        drop(first);
        assert!(!waiters.is_cancelled(gone), "somebody waits still");
        drop(second);
        assert!(waiters.is_cancelled(gone));
        let waiter = waiters.wait(answered);
        waiters.deliver(reply(answered));
        drop(waiter);
        assert!(!waiters.is_cancelled(answered));
        drop(waiters.wait(back));
        let _again = waiters.wait(back);
        assert!(!waiters.is_cancelled(back));
        for n in 0..=CANCELLED_MAX as u64 {
            let mut id = [9; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            drop(waiters.wait(RequestId(id)));
        }
        assert!(!waiters.is_cancelled(gone), "bounded: the earliest is forgotten");
        assert_eq!(waiters.lock().cancelled.len(), CANCELLED_MAX);
    }

    #[test]
    fn leaving_in_any_order_leaves_nothing() {
        let waiters = Arc::new(Waiters::default());
        let id = RequestId([3; 16]);
        let (tx, _rx) = mpsc::unbounded_channel();
        let first = waiters.wait(id);
        let shared = waiters.wait_into(id, &tx);
        let last = waiters.wait(id);
        drop(first);
        assert!(waiters.is_waiting(id));
        drop(last);
        let again = waiters.wait_into(id, &tx);
        waiters.forget(id, shared);
        assert!(waiters.is_waiting(id));
        waiters.forget(id, again);
        assert!(waiters.is_empty());
    }

    #[tokio::test]
    async fn a_waiter_dropped_after_its_reply_takes_nobody_else_along() {
        let waiters = Arc::new(Waiters::default());
        let id = RequestId([4; 16]);
        let mut answered = waiters.wait(id);
        waiters.deliver(reply(id));
        assert!((&mut answered).await.is_ok());
        let _later = waiters.wait(id);
        drop(answered);
        assert!(waiters.is_waiting(id));
    }
}
