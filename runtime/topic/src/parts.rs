//! Parts of responses, from the stage that sends them to the caller who takes them.
//!
//! ```text
//!   stage ─Speaker::say─► window ─Listener::next─► caller          on one node
//!   stage ─say─► part, part, … ─► window ─next─► caller            between nodes: what was taken comes back as words, and a
//!              ◄─ taken so far ─┘                                   stage that hears none asks, and sends again
//! ```
//! Each stage that speaks to a caller has a window of its own, so one that does not read holds up only who speaks to it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use skep_model::id::{NodeId, RequestId, Uid};
use skep_model::limits::{PART_SOURCES_MAX, PART_WINDOW_BYTES, PART_WINDOW_PARTS};
use skep_model::message::Reply;
use tokio::sync::Notify;
use tokio::sync::oneshot::error::RecvError;

use crate::waiters::{Waiter, Waiters};

/// The caller is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller takes no more parts")]
pub struct Hung;

/// The way of one input's parts to its caller.
#[async_trait]
pub trait Speaker: Send + Sync {
    /// Waits while the caller's window is full.
    ///
    /// # Errors
    /// [`Hung`], also of parts that were said before and not taken.
    async fn say(&self, part: Bytes) -> Result<(), Hung>;

    /// Returns once every part is where its caller waits, so that the reply does not overtake them.
    ///
    /// # Errors
    /// As [`Speaker::say`].
    async fn all_heard(&self) -> Result<(), Hung>;
}

/// What became of parts that another node sent, for that node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    pub to: NodeId,
    pub request: RequestId,
    pub source: Uid,
    pub said: Said,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// How many parts are here, and how many the caller has taken. `again`: one is missing between those that came.
    So { heard: u64, taken: u64, again: bool },
    /// Nobody takes them.
    Gone,
}

type Tell = Box<dyn Fn(Word) + Send + Sync>;

/// The callers of this node who take parts. Bounded by the Gateway's admission.
#[derive(Default)]
pub(crate) struct Streams {
    by_request: Mutex<HashMap<RequestId, Arc<Stream>>>,
    tell: OnceLock<Tell>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Stream {
    held: Mutex<Held>,
    /// One reader.
    came: Notify,
    /// Those who wait for room.
    taken: Notify,
}

#[derive(Default)]
struct Held {
    /// What the caller has not taken, and the place of its source in `sources`.
    parts: VecDeque<(usize, Bytes)>,
    sources: Vec<Source>,
    closed: bool,
}

/// One input of one stage.
struct Source {
    id: Uid,
    /// Where it works, if not here.
    home: Option<NodeId>,
    /// Of its parts.
    waiting: usize,
    bytes: usize,
    heard: u64,
    taken: u64,
    /// The last that its node was told was taken; and the part that it was told is missing.
    told: u64,
    told_bytes: usize,
    missing: Option<u64>,
}

impl Source {
    fn has_room(&self) -> bool {
        self.waiting < PART_WINDOW_PARTS && self.bytes < PART_WINDOW_BYTES
    }

    fn word(&mut self, request: RequestId, to: NodeId, again: bool) -> Word {
        (self.told, self.told_bytes) = (self.taken, 0);
        Word {
            to,
            request,
            source: self.id,
            said: Said::So {
                heard: self.heard,
                taken: self.taken,
                again,
            },
        }
    }
}

impl Held {
    fn source(&mut self, id: Uid, home: Option<NodeId>) -> Option<usize> {
        if let Some(at) = self.sources.iter().position(|s| s.id == id) {
            return Some(at);
        }
        if self.sources.len() >= PART_SOURCES_MAX {
            return None;
        }
        self.sources.push(Source {
            id,
            home,
            waiting: 0,
            bytes: 0,
            heard: 0,
            taken: 0,
            told: 0,
            told_bytes: 0,
            missing: None,
        });
        Some(self.sources.len() - 1)
    }

    fn push(&mut self, at: usize, part: Bytes) {
        let source = &mut self.sources[at];
        source.waiting += 1;
        source.bytes += part.len();
        source.heard += 1;
        self.parts.push_back((at, part));
    }
}

impl Streams {
    fn open(&self, request: RequestId) -> Arc<Stream> {
        Arc::clone(lock(&self.by_request).entry(request).or_default())
    }

    fn find(&self, request: RequestId) -> Option<Arc<Stream>> {
        lock(&self.by_request).get(&request).cloned()
    }
}

impl Waiters {
    /// As [`Waiters::wait`], for a caller who takes parts. One listener a request: whoever repeats a call takes no parts.
    #[must_use]
    pub fn listen(self: &Arc<Self>, request: RequestId) -> Listener {
        Listener {
            request,
            stream: self.streams.open(request),
            waiter: self.wait(request),
            reply: None,
            parts: 0,
            of: Arc::clone(self),
        }
    }

    /// How nodes hear of what became of their parts. Set once, by a backend that several nodes share. Must not wait.
    pub fn on_words(&self, tell: impl Fn(Word) + Send + Sync + 'static) {
        // A second one would be a defect of the backend; the first one stays.
        let _ = self.streams.tell.set(Box::new(tell));
    }

    /// A speaker for a caller of this node.
    #[must_use]
    pub fn speaker(self: &Arc<Self>, request: RequestId, source: Uid) -> Arc<dyn Speaker> {
        Arc::new(Here {
            waiters: Arc::clone(self),
            request,
            source,
        })
    }

    /// A part that another node sent, the `number`th from 0 of its source. One that does not fit the order or the window is dropped, for
    /// it comes again.
    pub fn hear(&self, request: RequestId, source: Uid, home: NodeId, number: u64, part: Bytes) {
        self.heard_from(request, source, home, |held, at| {
            let from = &mut held.sources[at];
            if number < from.heard || (number == from.heard && !from.has_room()) {
                return None;
            }
            if number > from.heard {
                // Told once: all that is on its way will be too early as well.
                return (from.missing.replace(from.heard) != Some(from.heard)).then_some(true);
            }
            held.push(at, part);
            None
        });
    }

    /// Another node asks what became of its parts.
    pub fn asked(&self, request: RequestId, source: Uid, home: NodeId) {
        self.heard_from(request, source, home, |held, at| {
            held.sources[at].missing = None;
            Some(false)
        });
    }

    fn heard_from(
        &self,
        request: RequestId,
        source: Uid,
        home: NodeId,
        what: impl FnOnce(&mut Held, usize) -> Option<bool>,
    ) {
        let gone = Word {
            to: home,
            request,
            source,
            said: Said::Gone,
        };
        let word = match self.streams.find(request) {
            None => Some(gone),
            Some(stream) => {
                let mut held = lock(&stream.held);
                let before = held.parts.len();
                let place = if held.closed {
                    None
                } else {
                    held.source(source, Some(home))
                };
                let word = match place {
                    None => Some(gone),
                    Some(at) => what(&mut held, at).map(|again| held.sources[at].word(request, home, again)),
                };
                let came = held.parts.len() > before;
                drop(held);
                if came {
                    stream.came.notify_one();
                }
                word
            }
        };
        if let (Some(word), Some(tell)) = (word, self.streams.tell.get()) {
            tell(word);
        }
    }
}

/// The caller and the stage are of one node.
struct Here {
    waiters: Arc<Waiters>,
    request: RequestId,
    source: Uid,
}

#[async_trait]
impl Speaker for Here {
    async fn say(&self, part: Bytes) -> Result<(), Hung> {
        let stream = self.waiters.streams.find(self.request).ok_or(Hung)?;
        loop {
            let taken = stream.taken.notified();
            tokio::pin!(taken);
            // Before the look, so that no ring falls between the two.
            taken.as_mut().enable();
            {
                let mut held = lock(&stream.held);
                if held.closed {
                    return Err(Hung);
                }
                let at = held.source(self.source, None).ok_or(Hung)?;
                if held.sources[at].has_room() {
                    held.push(at, part);
                    drop(held);
                    stream.came.notify_one();
                    return Ok(());
                }
            }
            taken.await;
        }
    }

    async fn all_heard(&self) -> Result<(), Hung> {
        let stream = self.waiters.streams.find(self.request).ok_or(Hung)?;
        let closed = lock(&stream.held).closed;
        if closed { Err(Hung) } else { Ok(()) }
    }
}

/// What a [`Listener`] hears.
#[derive(Debug)]
pub enum Heard {
    Part(Bytes),
    /// The last: the request's reply. `Err` only if the node is stopping.
    End(Result<Reply, RecvError>),
}

/// A caller who takes parts. Dropping it is the cancellation.
pub struct Listener {
    request: RequestId,
    stream: Arc<Stream>,
    waiter: Waiter,
    reply: Option<Result<Reply, RecvError>>,
    parts: u64,
    of: Arc<Waiters>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl Listener {
    /// Parts taken so far.
    #[must_use]
    pub fn parts(&self) -> u64 {
        self.parts
    }

    /// The next part, or the end. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Heard {
        loop {
            if let Some(part) = self.take() {
                self.parts += 1;
                return Heard::Part(part);
            }
            if let Some(reply) = self.reply.take() {
                self.hang_up();
                return Heard::End(reply);
            }
            tokio::select! {
                biased;
                () = self.stream.came.notified() => {}
                // Parts that were said before it are here by now.
                reply = &mut self.waiter => self.reply = Some(reply),
            }
        }
    }

    fn take(&self) -> Option<Bytes> {
        let mut held = lock(&self.stream.held);
        let (at, part) = held.parts.pop_front()?;
        let source = &mut held.sources[at];
        source.waiting -= 1;
        source.bytes -= part.len();
        source.taken += 1;
        source.told_bytes += part.len();
        // Often enough that who reads steadily never holds up who speaks.
        let due =
            source.told_bytes >= PART_WINDOW_BYTES / 4 || source.taken - source.told >= PART_WINDOW_PARTS as u64 / 4;
        let word = match source.home {
            Some(home) if due => Some(source.word(self.request, home, false)),
            _ => None,
        };
        drop(held);
        self.stream.taken.notify_waiters();
        if let (Some(word), Some(tell)) = (word, self.of.streams.tell.get()) {
            tell(word);
        }
        Some(part)
    }

    fn hang_up(&self) {
        lock(&self.of.streams.by_request).remove(&self.request);
        let homes: Vec<(NodeId, Uid)> = {
            let mut held = lock(&self.stream.held);
            held.closed = true;
            held.parts.clear();
            let sources = std::mem::take(&mut held.sources);
            sources.iter().filter_map(|s| Some((s.home?, s.id))).collect()
        };
        self.stream.taken.notify_waiters();
        if let Some(tell) = self.of.streams.tell.get() {
            for (to, source) in homes {
                tell(Word {
                    to,
                    request: self.request,
                    source,
                    said: Said::Gone,
                });
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.hang_up();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skep_model::limits::PART_BYTES_MAX;
    use skep_model::message::ReplyResult;
    use tokio::sync::mpsc;

    use super::*;

    const CALL: RequestId = RequestId([1; 16]);
    const BEE: Uid = Uid([2; 16]);
    const NODE: NodeId = NodeId([3; 8]);

    fn reply() -> Reply {
        Reply {
            request: CALL,
            result: ReplyResult::Response(Bytes::from_static(b"end")),
            hops: Vec::new(),
        }
    }

    async fn part(listener: &mut Listener) -> Bytes {
        match listener.next().await {
            Heard::Part(part) => part,
            Heard::End(end) => panic!("{end:?}"),
        }
    }

    #[tokio::test]
    async fn parts_come_in_order_and_before_the_reply() {
        let waiters = Arc::new(Waiters::default());
        let mut listener = waiters.listen(CALL);
        let speaker = waiters.speaker(CALL, BEE);
        for n in 0..3u8 {
            speaker.say(vec![n].into()).await.unwrap();
        }
        speaker.all_heard().await.unwrap();
        assert!(waiters.deliver(reply()));
        for n in 0..3u8 {
            assert_eq!(part(&mut listener).await[..], [n]);
        }
        assert!(matches!(listener.next().await, Heard::End(Ok(reply)) if reply.request == CALL));
        assert_eq!(listener.parts(), 3);
        assert_eq!(speaker.say(Bytes::new()).await, Err(Hung), "the call has ended");
        assert!(lock(&waiters.streams.by_request).is_empty());
    }

    #[tokio::test]
    async fn a_full_window_holds_up_its_speaker_and_no_other_and_a_caller_who_goes_frees_all() {
        let waiters = Arc::new(Waiters::default());
        let mut listener = waiters.listen(CALL);
        let speaker = waiters.speaker(CALL, BEE);
        speaker.say(vec![0; PART_BYTES_MAX].into()).await.unwrap();
        let mut more = speaker.say(vec![1].into());
        assert!(futures::poll!(&mut more).is_pending());
        let other = waiters.speaker(CALL, Uid([9; 16]));
        for _ in 0..PART_WINDOW_PARTS {
            other.say(Bytes::new()).await.unwrap();
        }
        let mut empty = other.say(Bytes::new());
        assert!(
            futures::poll!(&mut empty).is_pending(),
            "empty parts are bounded as well"
        );
        assert_eq!(part(&mut listener).await.len(), PART_BYTES_MAX);
        assert_eq!(more.await, Ok(()));
        drop(listener);
        assert_eq!(empty.await, Err(Hung));
        assert_eq!(speaker.all_heard().await, Err(Hung));
    }

    #[tokio::test]
    async fn a_caller_hears_at_most_so_many_stages() {
        let waiters = Arc::new(Waiters::default());
        let _listener = waiters.listen(CALL);
        for n in 0..PART_SOURCES_MAX {
            let source = Uid([u8::try_from(n).unwrap(); 16]);
            waiters.speaker(CALL, source).say(Bytes::new()).await.unwrap();
        }
        let one_more = waiters.speaker(CALL, Uid([0xff; 16]));
        assert_eq!(one_more.say(Bytes::new()).await, Err(Hung));
    }

    #[tokio::test]
    async fn parts_of_another_node_are_put_in_order_and_it_hears_what_was_taken() {
        let waiters = Arc::new(Waiters::default());
        let (tx, mut words) = mpsc::unbounded_channel();
        waiters.on_words(move |word| tx.send(word).unwrap());
        let mut listener = waiters.listen(CALL);
        let said = |heard, taken, again| Said::So { heard, taken, again };
        let send = |n: u64| waiters.hear(CALL, BEE, NODE, n, Bytes::from(n.to_string()));
        send(0);
        send(2);
        send(3);
        assert_eq!(words.try_recv().unwrap().said, said(1, 0, true));
        assert!(words.try_recv().is_err(), "told once");
        for n in 0..4 {
            send(n);
        }
        waiters.asked(CALL, BEE, NODE);
        assert_eq!(words.try_recv().unwrap().said, said(4, 0, false));
        for n in 0..4 {
            assert_eq!(part(&mut listener).await, n.to_string());
        }
        waiters.asked(CALL, BEE, NODE);
        assert_eq!(words.try_recv().unwrap().said, said(4, 4, false));
        // Who reads steadily tells of it by itself.
        waiters.hear(CALL, BEE, NODE, 4, vec![0; PART_WINDOW_BYTES].into());
        waiters.hear(CALL, BEE, NODE, 5, Bytes::new());
        part(&mut listener).await;
        assert_eq!(
            words.try_recv().unwrap().said,
            said(5, 5, false),
            "what found no room comes again"
        );
        drop(listener);
        assert_eq!(words.try_recv().unwrap().said, Said::Gone);
        send(6);
        let gone = words.try_recv().unwrap();
        assert_eq!((gone.to, gone.source, gone.said), (NODE, BEE, Said::Gone));
    }

    #[tokio::test]
    async fn a_speaker_that_waits_is_woken_by_each_part_that_is_taken() {
        let waiters = Arc::new(Waiters::default());
        let mut listener = waiters.listen(CALL);
        let speaker = waiters.speaker(CALL, BEE);
        let said = tokio::spawn(async move {
            for n in 0..500u32 {
                speaker.say(vec![0; 1 + n as usize * 64].into()).await.unwrap();
            }
        });
        for n in 0..500usize {
            let next = tokio::time::timeout(Duration::from_secs(30), part(&mut listener));
            assert_eq!(next.await.unwrap().len(), 1 + n * 64);
        }
        said.await.unwrap();
    }
}
