//! Parts of responses on their way between nodes, by pub/sub: nothing is kept of them.
//!
//! A channel may lose what it carries. So a speaker keeps what its caller's node has not heard, sends it again when that node says that
//! one is missing, and asks when it waits and hears nothing. Who does not answer for [`limits::PART_SILENCE_MS`] is gone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use skep_model::id::{NodeId, RequestId, Uid};
use skep_model::limits;
use tokio::sync::{Notify, mpsc};

use super::{Core, lock, names};
use crate::parts::{Hung, Said, Speaker, Word};

/// What a node's channel for parts carries. Numbers are little endian.
const PART: u8 = b'p';
const ASKED: u8 = b'q';
const WORD: u8 = b'w';
const GONE: u8 = b'g';
/// Words in one pipeline.
const TOLD_AT_ONCE: usize = 64;

/// The caller waits on another node.
pub(super) struct There {
    core: Arc<Core>,
    at: (RequestId, Uid),
    sent: Arc<Sent>,
}

#[derive(Default)]
pub(super) struct Sent {
    window: Mutex<Window>,
    heard: Notify,
}

#[derive(Default)]
struct Window {
    /// The number of the next part.
    next: u64,
    /// Parts that the caller's node has not heard, the last of which is `next - 1`.
    unheard: VecDeque<Bytes>,
    /// Sizes of parts that the caller has not taken, the last of which is `next - 1`.
    untaken: VecDeque<usize>,
    bytes: usize,
    gone: bool,
    /// The first question without an answer.
    asked: Option<Instant>,
}

impl Window {
    fn has_room(&self) -> bool {
        self.untaken.len() < limits::PART_WINDOW_PARTS && self.bytes < limits::PART_WINDOW_BYTES
    }

    fn add(&mut self, part: &Bytes) -> u64 {
        self.unheard.push_back(part.clone());
        self.untaken.push_back(part.len());
        self.bytes += part.len();
        self.next += 1;
        self.next - 1
    }

    /// Words may come late and out of order: only what is news counts.
    fn hear(&mut self, heard: u64, taken: u64) {
        self.asked = None;
        while self.next - (self.unheard.len() as u64) < heard && self.unheard.pop_front().is_some() {}
        while self.next - (self.untaken.len() as u64) < taken {
            match self.untaken.pop_front() {
                Some(size) => self.bytes -= size,
                None => break,
            }
        }
    }
}

pub(super) fn speaker(core: &Arc<Core>, request: RequestId, source: Uid) -> Arc<dyn Speaker> {
    if request.0[..8] == core.link.options.node {
        return core.waiters.speaker(request, source);
    }
    let at = (request, source);
    let sent = Arc::new(Sent::default());
    // One attempt at an input speaks at a time; an earlier one's has ended.
    lock(&core.speakers).insert(at, Arc::clone(&sent));
    Arc::new(There {
        core: Arc::clone(core),
        at,
        sent,
    })
}

impl Drop for There {
    fn drop(&mut self) {
        let mut speakers = lock(&self.core.speakers);
        if speakers.get(&self.at).is_some_and(|sent| Arc::ptr_eq(sent, &self.sent)) {
            speakers.remove(&self.at);
        }
    }
}

#[async_trait]
impl Speaker for There {
    async fn say(&self, part: Bytes) -> Result<(), Hung> {
        let number = self
            .until(|window| window.has_room().then(|| window.add(&part)))
            .await?;
        // Lost on the way, it is asked for.
        let _ = self.core.link.send(&frame(&self.core, self.at, number, &part)).await;
        Ok(())
    }

    async fn all_heard(&self) -> Result<(), Hung> {
        if !lock(&self.sent.window).unheard.is_empty() {
            let _ = self.core.link.send(&question(&self.core, self.at)).await;
        }
        self.until(|window| window.unheard.is_empty().then_some(())).await
    }
}

impl There {
    /// Waits for words of the caller's node until `ready`.
    async fn until<T>(&self, mut ready: impl FnMut(&mut Window) -> Option<T> + Send) -> Result<T, Hung> {
        loop {
            let heard = self.sent.heard.notified();
            tokio::pin!(heard);
            heard.as_mut().enable();
            {
                let mut window = lock(&self.sent.window);
                if window.gone {
                    return Err(Hung);
                }
                if let Some(found) = ready(&mut window) {
                    return Ok(found);
                }
            }
            let patience = Duration::from_millis(limits::PART_ASK_MS);
            if tokio::time::timeout(patience, heard).await.is_err() {
                self.ask().await?;
            }
        }
    }

    /// No word for a while: what was not heard is sent again, and else a question.
    async fn ask(&self) -> Result<(), Hung> {
        let silent = {
            let mut window = lock(&self.sent.window);
            window.asked.get_or_insert_with(Instant::now).elapsed()
        };
        if silent > Duration::from_millis(limits::PART_SILENCE_MS) {
            lock(&self.sent.window).gone = true;
            return Err(Hung);
        }
        again(&self.core, self.at, &self.sent).await;
        let _ = self.core.link.send(&question(&self.core, self.at)).await;
        Ok(())
    }
}

async fn again(core: &Core, at: (RequestId, Uid), sent: &Sent) {
    let (first, parts) = {
        let window = lock(&sent.window);
        let unheard: Vec<Bytes> = window.unheard.iter().cloned().collect();
        (window.next - unheard.len() as u64, unheard)
    };
    let mut pipe = redis::pipe();
    for (number, part) in (first..).zip(&parts) {
        pipe.add_command(frame(core, at, number, part));
    }
    if !parts.is_empty() {
        let _ = core.link.send_all(&pipe).await;
    }
}

fn to_node(node: &[u8], payload: Vec<u8>) -> redis::Cmd {
    let mut command = redis::cmd("PUBLISH");
    command.arg(names::parts(node)).arg(payload);
    command
}

fn head(kind: u8, (request, source): (RequestId, Uid), more: usize) -> Vec<u8> {
    let mut payload = Vec::with_capacity(33 + more);
    payload.push(kind);
    payload.extend_from_slice(&request.0);
    payload.extend_from_slice(&source.0);
    payload
}

fn frame(core: &Core, at: (RequestId, Uid), number: u64, part: &[u8]) -> redis::Cmd {
    let mut payload = head(PART, at, 16 + part.len());
    payload.extend_from_slice(&core.link.options.node);
    payload.extend_from_slice(&number.to_le_bytes());
    payload.extend_from_slice(part);
    to_node(&at.0.0[..8], payload)
}

fn question(core: &Core, at: (RequestId, Uid)) -> redis::Cmd {
    let mut payload = head(ASKED, at, 8);
    payload.extend_from_slice(&core.link.options.node);
    to_node(&at.0.0[..8], payload)
}

fn word(word: Word) -> redis::Cmd {
    let at = (word.request, word.source);
    let payload = match word.said {
        Said::Gone => head(GONE, at, 0),
        Said::So { heard, taken, again } => {
            let mut payload = head(WORD, at, 17);
            payload.extend_from_slice(&heard.to_le_bytes());
            payload.extend_from_slice(&taken.to_le_bytes());
            payload.push(again.into());
            payload
        }
    };
    to_node(&word.to.0, payload)
}

/// Tells other nodes what became of their parts, for as long as the store is open.
pub(super) async fn tell(core: Arc<Core>) {
    let (send, mut words) = mpsc::channel(limits::PART_WORDS_MAX);
    core.waiters.on_words(move |word| {
        // Without room it is lost, and asked for again.
        let _ = send.try_send(word);
    });
    let mut some = Vec::new();
    while words.recv_many(&mut some, TOLD_AT_ONCE).await > 0 {
        let mut pipe = redis::pipe();
        for one in some.drain(..) {
            pipe.add_command(word(one));
        }
        let _ = core.link.send_all(&pipe).await;
    }
}

/// What came on this node's channel. Anything that is not of ours is passed over.
pub(super) fn came(core: &Arc<Core>, payload: &[u8]) {
    let mut rest = payload;
    let mut take = |n: usize| -> Option<&[u8]> {
        let (taken, after) = rest.split_at_checked(n)?;
        rest = after;
        Some(taken)
    };
    let (Some(&[kind]), Some(request), Some(source)) = (take(1), take(16), take(16)) else {
        return;
    };
    let (Some(request), Some(source)) = (RequestId::from_slice(request), Uid::from_slice(source)) else {
        return;
    };
    let mut number = || -> Option<u64> { Some(u64::from_le_bytes(take(8)?.try_into().ok()?)) };
    match kind {
        PART => {
            let (Some(home), Some(number)) = (number(), number()) else {
                return;
            };
            // A part outlives the message that brought it, so it is copied.
            let part = Bytes::copy_from_slice(rest);
            core.waiters
                .hear(request, source, NodeId(home.to_le_bytes()), number, part);
        }
        ASKED => {
            let Some(home) = number() else { return };
            core.waiters.asked(request, source, NodeId(home.to_le_bytes()));
        }
        WORD | GONE => {
            let said = (kind == WORD).then(|| Some((number()?, number()?)));
            let missing = rest.first().is_some_and(|byte| *byte != 0);
            let Some(sent) = lock(&core.speakers).get(&(request, source)).cloned() else {
                return;
            };
            match said {
                None => lock(&sent.window).gone = true,
                Some(None) => return,
                Some(Some((heard, taken))) => lock(&sent.window).hear(heard, taken),
            }
            sent.heard.notify_waiters();
            if missing && kind == WORD {
                let core = Arc::clone(core);
                tokio::spawn(async move { again(&core, (request, source), &sent).await });
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_count_once_and_late_ones_not_at_all() {
        let mut window = Window::default();
        let whole = Bytes::from(vec![0; limits::PART_WINDOW_BYTES]);
        for _ in 0..3 {
            window.add(&Bytes::from_static(b"x"));
        }
        window.add(&whole);
        assert!(!window.has_room());
        window.hear(2, 1);
        assert_eq!((window.unheard.len(), window.untaken.len()), (2, 3));
        window.hear(1, 0);
        assert_eq!((window.unheard.len(), window.untaken.len()), (2, 3));
        window.hear(4, 4);
        assert_eq!((window.unheard.len(), window.untaken.len(), window.bytes), (0, 0, 0));
        // More than was ever said.
        window.hear(u64::MAX, u64::MAX);
        assert!(window.has_room());
        assert_eq!(window.add(&whole), 4);
        window.hear(4, 4);
        assert_eq!((window.unheard.len(), window.untaken.len()), (1, 1));
    }
}
