//! Topics: durable inboxes with leases and one atomic commit.
//!
//! A topic is the inbox of one stage, split into partitions. A partition has one owner at a time; the owner reads after the
//! cursor, lets a Bee process what it read, and commits in order. Gateway and stage meet here and nowhere else.
//!
//! ```text
//!   publish ──► [ frame | frame | frame | frame ]        frame = a run of messages stored as one entry
//!                 └consumed┘ ▲cursor (entry, index)      read after the cursor, whole or part frames
//!                            └── fetch ──► process ──► commit(token, seq, base, span, effects)
//!   one commit = cursor + outputs + replies + state + timers + parked retries + dead letters, or nothing
//! ```
//!
//! [`Backend`] is the contract and `conformance` the suite that every backend runs. [`memory`] is the reference,
//! [`embedded`] the durable default. [`lane`] is the in-memory path of requests on pure Swarms.

mod beats;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod embedded;
pub mod failpoint;
pub mod guard;
pub mod lane;
pub mod memory;
pub mod parts;
pub mod record;
#[cfg(feature = "redis")]
pub mod redis;
mod waiters;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use skep_model::id::{CommitId, Digest, NodeId, RequestId, Token, Uid};
use skep_model::limits::{self, KEY_GROUPS};
use skep_model::message::{Message, Reply};
use skep_model::name::{StageName, Subject};
use skep_model::scope::{PartitionId, SwarmId, TopicId};
use skep_model::step::StateMap;
use skep_model::swarm::Bound;
use tokio::sync::Notify;

use parts::Speaker;
use record::Piece;
pub use waiters::{Ticket, Waiter, Waiters};

/// What a publisher and a commit need to know of a destination. Carried by the caller, so a backend keeps no registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    pub id: TopicId,
    /// The Swarm's revision at which the stage came, or came back: what [`Backend::remove_topic`] removed takes nothing any more,
    /// though a node that has not heard of it may still write there.
    pub born: u64,
    /// How many the caller believes. The store knows: it was told at the topic's first use, and by [`Backend::rescale`].
    pub partitions: u16,
    /// Unread and parked messages together, over all partitions.
    pub inbox: Bound,
    pub dead_letters: Bound,
}

impl TopicSpec {
    /// The partition that owns a key: each owns a run of the [`KEY_GROUPS`] groups.
    #[must_use]
    pub fn partition_of_key(&self, key: &str) -> u16 {
        partition_of_group(key_group(key), self.partitions)
    }
}

/// The partition of `partitions` that owns a key group.
#[must_use]
pub fn partition_of_group(group: u16, partitions: u16) -> u16 {
    u16::try_from(u32::from(group) * u32::from(partitions) / u32::from(KEY_GROUPS)).expect("less than `partitions`")
}

/// How a topic is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub partitions: u16,
    /// Rises with each rescale.
    pub generation: u64,
    /// A rescale is under way: some partition still has what came before it.
    pub rescaling: bool,
    /// Partitions that need an owner: those that are, and while it rescales those that were.
    pub owners: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescaled {
    Begun,
    /// There are as many.
    Already,
    /// An earlier one is under way.
    Busy,
}

/// The last commit id of partition `index` when an operation on several partitions bears `id`: one for each, since a base names one
/// history of one partition.
fn derived(id: CommitId, index: u16) -> CommitId {
    let mut id = id.0;
    for (byte, mask) in id[14..].iter_mut().zip((index + 1).to_be_bytes()) {
        *byte ^= mask;
    }
    CommitId(id)
}

/// What is added to the ids of imported dead letters, the first of which has the id `first`, so that they rise above `last`, the last
/// that the store gave; nothing where they do.
fn letter_offset(first: u64, last: u64) -> u64 {
    last.saturating_add(1).saturating_sub(first)
}

/// A stored reply names its dead letter, which has another id now.
fn move_letter(reply: &mut Reply, offset: u64) {
    if let skep_model::message::ReplyResult::Failed {
        dead_letter: Some(id), ..
    } = &mut reply.result
    {
        *id = id.saturating_add(offset);
    }
}

/// As many pieces as one step of an import takes. A step on a single writer, or a script, holds up others.
async fn next_pieces(pieces: &mut Pieces) -> Result<Option<Vec<Piece>>, Error> {
    let (mut out, mut bytes) = (Vec::new(), 0);
    while out.len() < limits::IMPORT_PIECES_MAX && bytes < limits::IMPORT_BYTES {
        let Some(piece) = pieces.next().await else { break };
        let piece = piece?;
        bytes += piece.weight();
        out.push(piece);
    }
    Ok((!out.is_empty()).then_some(out))
}

/// Not damage of the store: it goes on, and the life stays set aside.
fn out_of_order(what: &str) -> Error {
    Error::Unavailable(format!("backup: a piece comes before its {what}"))
}

/// The partition that a parked entry belongs to.
fn partition_of_work(work: &Work, partitions: u16, now: u16) -> u16 {
    match work.key() {
        Some(key) => partition_of_group(key_group(key), partitions),
        None => now % partitions,
    }
}

/// The key group of a key, `0..KEY_GROUPS`. Fixed for life: state lies under it. First byte of sha256 of the key.
#[must_use]
pub fn key_group(key: &str) -> u16 {
    u16::from(Digest::of(key.as_bytes()).0[0])
}

/// A place in a partition: after `index` messages of entry `entry`. `(e, 0)` is before the first message of `e`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cursor {
    pub entry: u64,
    pub index: u32,
}

// ------------------------------------------------------------------------------------------------------- publish

/// Calls that a Gateway groups into one step. Each is accepted or refused alone; each accepted one is atomic over all its topics.
#[derive(Debug, Clone)]
pub struct Publish {
    pub swarm: SwarmId,
    pub calls: Vec<Call>,
    /// Whether the answer waits for durability. A request's append is acknowledged to nobody, so it does not: it shares the
    /// flush of the commit that consumes it.
    pub gate: Gate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Answer once durable.
    Durable,
    /// Answer once appended. A crash may take it back; nothing that left depends on it.
    Appended,
}

#[derive(Debug, Clone)]
pub struct Call {
    /// Every stage that the subject feeds, with the messages for it (their keys differ by stage).
    pub to: Vec<(Arc<TopicSpec>, Vec<Message>)>,
    pub once: Once,
}

/// How a repeated call is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Once {
    /// Not at all.
    No,
    /// An idempotency key of a subject. `fingerprint` is of the payload: the same key with another one is [`Refused::KeyReused`].
    Key {
        subject: Subject,
        key: String,
        fingerprint: Digest,
        /// Ms since the Unix epoch.
        expires_ms: u64,
    },
    /// A streaming submit: `first` is the sequence number of the first message, counted from 1; one high-water mark a session.
    /// Messages at or below it were appended before and are skipped. A `first` of 0 is refused as a gap.
    Session {
        id: Uid,
        first: u64,
        /// How many may have been appended before, as the caller knows: of more, nothing is taken, since these cannot be what it sent
        /// then. `u64::MAX` where the caller sends again from wherever it likes.
        again_max: u64,
        expires_ms: u64,
    },
    /// A dead letter once more: taken while the stage of `to`'s only topic has the letter, which goes with the append, so that it
    /// comes back once however often it is asked for. `to` has the message, or none and `timer` is set anew. Its key's order
    /// begins afresh: it is behind what is unread.
    Letter { id: u64, timer: Option<TimerDue> },
}

/// The answer to one call.
pub type CallResult = Result<Accepted, Refused>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// `skipped`: how many messages (of each topic) a session's high-water mark showed to be repeats.
    Appended { skipped: u64 },
    /// A call with this idempotency key was accepted before. `reply` if it is finished, else wait for `request`.
    Duplicate {
        request: Option<RequestId>,
        reply: Option<Reply>,
    },
}

/// Certainly not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the inbox of stage `{stage}` is full")]
    Full { stage: StageName },
    #[error("the idempotency key was used before with another payload")]
    KeyReused,
    #[error("subject `{subject}` remembers as many idempotency keys as it may")]
    TooManyKeys { subject: Subject },
    #[error("session sequence jumps from {high} to {first}: a part of the stream is missing")]
    SessionGap { high: u64, first: u64 },
    #[error(
        "session sequence has {high} already, and {first} was never sent: its sender is a copy, or was put back to an earlier state"
    )]
    SessionAhead { high: u64, first: u64 },
    /// The stage was removed, and the caller did not know it yet.
    #[error("stage `{stage}` was removed from the Swarm")]
    StageGone { stage: StageName },
    /// It was discarded, or is back already.
    #[error("the dead letter is not there")]
    NoLetter,
    /// The Bee set a timer of that name since: one of both would be lost.
    #[error("the timer was set again since")]
    TimerSet,
    /// Timers are on their way between partitions.
    #[error("stage `{stage}` gets another number of partitions just now")]
    Rescaling { stage: StageName },
    /// The Swarm was deleted.
    #[error("the Swarm is gone")]
    Gone,
}

// --------------------------------------------------------------------------------------------------------- lease

/// Ownership of a partition, as its owner holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub partition: PartitionId,
    pub token: Token,
}

/// What a claim finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub seq: u64,
    /// The id of the last commit, which the next one must name as its base.
    pub last: CommitId,
    pub cursor: Cursor,
    /// How many times a lease ran out, or the node died, since the last commit: the owner goes into suspect mode.
    pub unclean: u32,
    /// The last attempt mark, and how many times in a row: see [`Backend::mark`].
    pub marked: Option<(Uid, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the partition is held for another {ms_left} ms")]
pub struct Held {
    pub ms_left: u64,
}

// --------------------------------------------------------------------------------------------------------- fetch

/// What an owner wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The owner's own position and base; [`Error::Fenced`] or [`Error::Stale`] if the store's differ.
    pub from: Cursor,
    pub base: CommitId,
    pub messages: u32,
    /// Payload and header bytes. One message is always given, however large.
    pub bytes: u64,
    /// Load the state of the touched keys.
    pub state: bool,
    /// No further input is given once the state of the keys so far has reached this many bytes, names and values. One key is
    /// always loaded whole.
    pub state_bytes: u64,
    /// Of more timers than this, [`Fetched::early`] names those that are due first.
    pub timers_max: u64,
}

/// One consistent read of everything that a batch needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fetched {
    /// Messages after the cursor, in order.
    pub messages: Vec<Unread>,
    /// The first parked message of each key (or lane) whose time has come, at most `messages` of them.
    pub retries: Vec<Parked>,
    /// Timers whose time has come and whose key has no parked message, by due time, at most `messages` of them.
    pub timers: Vec<TimerDue>,
    /// Where the partition has more than [`Want::timers_max`] timers: as many as are too many, the first of those that are not yet due,
    /// at most `messages` of them. They are no input: whoever wants one sooner sets it anew.
    pub early: Vec<TimerDue>,
    /// Lanes of `messages` (see [`Parked::lane`]) that have parked entries: what is read of them must park behind.
    pub held: HashSet<String>,
    /// State of every key in `messages`, `retries` and `timers`.
    pub state: StateMap,
    /// Of all keys of the stage, at this read; with [`Want::state`] only.
    pub state_size: StateSize,
    /// The store's clock at this read, ms since the Unix epoch.
    pub now_ms: u64,
    /// When the next parked message or timer that is not yet due falls due.
    pub next_due_ms: Option<u64>,
    /// The topic gets another number of partitions, and all that came before is read: nothing else is given, and
    /// [`Backend::hand_over`] is due.
    pub at_seal: bool,
}

impl Fetched {
    /// Loads the state of each key, in the order in which inputs are taken (retries, timers, messages), and drops the inputs from
    /// where `bytes` is reached. One is always kept.
    fn load_state<E>(
        &mut self,
        bytes: u64,
        mut load: impl FnMut(&str) -> Result<BTreeMap<String, Bytes>, E>,
    ) -> Result<(), E> {
        let retries = self.retries.iter().map(|p| p.work.key());
        let timers = self.timers.iter().map(|t| Some(t.key.as_str()));
        let messages = self.messages.iter().map(|u| u.message.key.as_deref());
        let (mut taken, mut loaded) = (0, 0);
        for key in retries.chain(timers).chain(messages) {
            if let Some(key) = key
                && !self.state.contains_key(key)
            {
                if loaded >= bytes && taken > 0 {
                    break;
                }
                let values = load(key)?;
                loaded += values
                    .iter()
                    .map(|(name, value)| (name.len() + value.len()) as u64)
                    .sum::<u64>();
                self.state.insert(key.to_owned(), values);
            }
            taken += 1;
        }
        self.keep(taken);
        Ok(())
    }

    /// Keeps the first input only, if its caller takes parts of the response, and else those before the first of that kind: nobody else
    /// should wait for its end, and what left is told by a mark, of which there is one.
    pub fn keep_streams_alone(&mut self) {
        let retries = self.retries.iter().map(|p| match &p.work {
            Work::Message(message) => message.streams(),
            Work::Timer { .. } => false,
        });
        let timers = self.timers.iter().map(|_| false);
        let messages = self.messages.iter().map(|unread| unread.message.streams());
        if let Some(at) = retries.chain(timers).chain(messages).position(|streams| streams) {
            self.keep(at.max(1));
        }
    }

    /// Nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.retries.is_empty() && self.timers.is_empty() && self.early.is_empty()
    }

    /// Keeps the first inputs only: retries, then timers, then messages.
    pub fn keep(&mut self, mut inputs: usize) {
        self.retries.truncate(inputs);
        inputs -= self.retries.len();
        self.timers.truncate(inputs);
        inputs -= self.timers.len();
        self.messages.truncate(inputs);
    }
}

/// How many times in a row an input is marked, when it is marked once more.
fn marked_again(former: Option<(Uid, u32)>, uid: Uid) -> u32 {
    former
        .filter(|(last, _)| *last == uid)
        .map_or(1, |(_, times)| times.saturating_add(1))
}

#[derive(Debug, Clone, PartialEq)]
pub struct Unread {
    pub message: Message,
    /// The cursor that consumes up to and with this message.
    pub after: Cursor,
    /// Its frame's entry and uid, the proof that a commit gives.
    pub entry: u64,
    pub entry_uid: Uid,
}

/// A message waiting for a retry, or waiting behind one.
#[derive(Debug, Clone, PartialEq)]
pub struct Parked {
    /// Fresh for each parking: the proof that a commit gives.
    pub uid: Uid,
    /// What waits in order: the key under `order: hold`, else the message's own uid.
    pub lane: String,
    pub work: Work,
    /// Attempts made so far. 0: it only waits behind another, and is due when it is first of its lane.
    pub attempts: u32,
    pub due_ms: u64,
    /// Why it waits, for people.
    pub cause: String,
}

/// What can be parked: a message, or a timer that fired and failed.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of it is messages")]
pub enum Work {
    Message(Message),
    Timer {
        uid: Uid,
        key: String,
        name: String,
        at_ms: u64,
    },
}

impl Work {
    #[must_use]
    pub fn uid(&self) -> Uid {
        match self {
            Self::Message(m) => m.uid,
            Self::Timer { uid, .. } => *uid,
        }
    }

    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Message(m) => m.key.as_deref(),
            Self::Timer { key, .. } => Some(key),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimerDue {
    /// Fresh for each setting: the proof that a commit gives.
    pub uid: Uid,
    pub key: String,
    pub name: String,
    pub at_ms: u64,
}

// -------------------------------------------------------------------------------------------------------- commit

/// The whole effect of a batch, as a value.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The topic whose input it consumes: its bounds hold for the dead letters.
    pub own: Arc<TopicSpec>,
    pub id: CommitId,
    /// The sequence and the commit that it builds on.
    pub seq: u64,
    pub base: CommitId,
    pub span: Option<Span>,
    /// Timers that it consumes. An [`TimerSet`] of the same key and name comes after and replaces.
    pub timers: Vec<TimerDue>,
    /// Parked entries that it consumes or replaces.
    pub retries: Vec<Retry>,
    /// Messages parked behind the last of their lane.
    pub park: Vec<Parked>,
    pub outputs: Vec<Output>,
    pub state: Vec<StatePut>,
    pub set_timers: Vec<TimerSet>,
    /// A `Failed` one without a dead letter's id gets that of the letter in `dead` whose message carries its request.
    pub replies: Vec<Reply>,
    /// [`skep_model::message::ReplyResult::Returned`] only: they go the way of replies, and nothing is kept of them.
    pub returned: Vec<Reply>,
    pub dead: Vec<DeadLetter>,
}

impl Commit {
    /// One without effects, on top of what the owner knows.
    #[must_use]
    pub fn empty(own: Arc<TopicSpec>, id: CommitId, seq: u64, base: CommitId) -> Self {
        Self {
            own,
            id,
            seq,
            base,
            span: None,
            timers: Vec::new(),
            retries: Vec::new(),
            park: Vec::new(),
            outputs: Vec::new(),
            state: Vec::new(),
            set_timers: Vec::new(),
            replies: Vec::new(),
            returned: Vec::new(),
            dead: Vec::new(),
        }
    }
}

/// The part of the inbox that a commit consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: Cursor,
    pub to: Cursor,
    /// The entry that holds the last consumed message, and its uid.
    pub last_entry: u64,
    pub last_entry_uid: Uid,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// The parked entry's uid and lane.
    pub uid: Uid,
    pub lane: String,
    /// `None`: it leaves (done or dead-lettered) and the next of its lane falls due. `Some`: it failed again and keeps its place.
    pub again: Option<Parked>,
}

#[derive(Debug, Clone)]
pub struct Output {
    pub to: Arc<TopicSpec>,
    pub message: Message,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePut {
    pub key: String,
    pub name: String,
    /// `None` deletes.
    pub value: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimerSet {
    pub key: String,
    pub name: String,
    /// `None` cancels. The same name replaces.
    pub at_ms: Option<u64>,
    pub uid: Uid,
}

/// A message set aside after its last attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    pub work: Work,
    pub attempts: u32,
    /// A short stable word: `fail`, `reject`, `trap`, `cpu-time`, `expired`…
    pub reason: String,
    pub detail: String,
    /// The end of what the guest wrote to stderr.
    pub stderr: String,
    pub module: Digest,
    pub at_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    Ok,
    /// This very commit was applied before.
    Done,
}

/// Why nothing of a commit was applied. The order of the checks is DELIVERY.md's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("fenced: another owner holds the partition")]
    Fenced,
    #[error("stale: the partition moved on underneath")]
    Stale,
    #[error("input gone: what the batch consumed is no longer there")]
    InputGone,
    /// Keep the batch and wait for the room bell.
    #[error("full: the {what} of stage `{stage}`")]
    Full { stage: StageName, what: Room },
    #[error("too large: {0}")]
    TooLarge(String),
    /// The Swarm was deleted, or the stage removed.
    #[error("the Swarm or its stage is gone")]
    Gone,
    /// Certainly not done; the backend cannot serve now.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// Perhaps done. Ask again with the same commit id.
    #[error("unknown outcome: {0}")]
    Unknown(String),
    /// Something stored cannot be read: a newer format version, or damage.
    #[error("damaged or newer record: {0}")]
    Corrupt(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Inbox,
    DeadLetters,
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inbox => "inbox",
            Self::DeadLetters => "dead-letter topic",
        })
    }
}

// --------------------------------------------------------------------------------------------------------- views

/// How much keyed state there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateSize {
    /// Keys that have any value.
    pub keys: u64,
    /// Of those keys, of the names of their values, and of the values.
    pub bytes: u64,
}

impl StateSize {
    /// What one key counts for.
    #[must_use]
    pub fn of(key: &str, values: &BTreeMap<String, Bytes>) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let values = values.iter().map(|(name, value)| name.len() + value.len());
        Self {
            keys: 1,
            bytes: (key.len() + values.sum::<usize>()) as u64,
        }
    }

    /// One part of it was `before` and is `after`.
    fn turn(&mut self, before: Self, after: Self) {
        self.keys = (self.keys + after.keys).saturating_sub(before.keys);
        self.bytes = (self.bytes + after.bytes).saturating_sub(before.bytes);
    }
}

/// A part of a stage's keyed state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatePage {
    pub keys: Vec<(String, BTreeMap<String, Bytes>)>,
    /// Where the next page begins; `None`: there is none.
    pub next: Option<String>,
}

/// How full a topic is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicStatus {
    pub topic: TopicId,
    pub unread: u64,
    pub unread_bytes: u64,
    pub parked: u64,
    pub parked_bytes: u64,
    pub timers: u64,
    pub dead: u64,
    pub dead_bytes: u64,
}

/// A dead letter as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDeadLetter {
    /// Unique in its backend, rising.
    pub id: u64,
    pub topic: TopicId,
    pub letter: DeadLetter,
}

/// A record of desired state. `version` rises by one at each write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogRecord {
    pub version: u64,
    pub value: Bytes,
}

/// One of several changes that are made together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogChange {
    pub key: String,
    /// The stored version; 0: it must not exist.
    pub expect: u64,
    /// `None` deletes.
    pub value: Option<Bytes>,
}

/// A node that is there, as it said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    pub node: NodeId,
    pub record: Bytes,
    /// When it counts as gone unless it says more, by the store's clock.
    pub left_ms: u64,
}

/// What a beat tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulse {
    /// Every node that is there, by id, the caller too.
    pub nodes: Vec<Beat>,
    /// Another number after each write to the catalog. Only for comparison: it need not rise, since one that a failover took back
    /// must not come again.
    pub catalog: u64,
    /// The store's clock, ms since the Unix epoch.
    pub now_ms: u64,
}

/// Counts since the backend was opened, for reports and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub commits: u64,
    pub publishes: u64,
    /// Transactions made durable: each is one flush.
    pub flushes: u64,
    pub refused: u64,
}

/// A life, piece by piece. The first error is the last item.
pub type Pieces = BoxStream<'static, Result<Piece, Error>>;

/// Rung when there may be work. A bell may be lost only where the backend says so; permits do not add up.
pub type Bell = Arc<Notify>;

/// The contract.
///
/// Rules that every implementation keeps, and the suite checks:
/// 1. **Atomic.** A call or a commit is applied whole or not at all; all its checks come before its first write.
/// 2. **Order of a commit's checks**: token, else `Fenced`; last commit id equals own, then `Done`; last commit id equals base
///    and seq equal, else `Stale`; cursor equals `span.from`, else `Stale`; the last consumed entry and each consumed timer and
///    retry exist with their uid, due by the store's clock, else `InputGone`; no destination was removed, else `Stale` (the owner's
///    plan is old); every destination has room, else `Full`; sizes.
/// 3. **One history.** A crash keeps a prefix of what was applied, and everything that left depends on that prefix only:
///    publish acks under [`Gate::Durable`], replies, catalog answers. Commits are answered when applied: they need no flush of
///    their own, for whoever builds on one is rolled back with it.
/// 4. Any other operation that changes state, timers, retries or a cursor writes a fresh last commit id.
/// 5. A cursor moves forward only, and what is consumed is deleted.
/// 6. Publishes see an inbox as full at [`skep_model::limits::INBOX_GATEWAY_PERCENT`], commits at 100 % (a commit that starts
///    below is taken whole). Parking moves a message inside its inbox's bound and never fails.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// # Errors
    /// [`Error::Unavailable`] (nothing appended) or [`Error::Unknown`]; refusals of single calls are in the result, in order.
    async fn publish(&self, publish: Publish) -> Result<Vec<CallResult>, Error>;

    /// Takes a free or run-out partition for `ttl_ms`, under a fresh random token that the caller made.
    ///
    /// # Errors
    /// `Ok(Err(Held))` while another lease runs. [`Error::Gone`] of a stage that was removed.
    async fn claim(
        &self,
        topic: &TopicSpec,
        partition: u16,
        token: Token,
        ttl_ms: u64,
    ) -> Result<Result<Claim, Held>, Error>;

    /// Prolongs. A commit does so too.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease is another's.
    async fn renew(&self, lease: &Lease, ttl_ms: u64) -> Result<(), Error>;

    /// Gives the partition back, clean. Does nothing if it is another's by now.
    async fn release(&self, lease: &Lease) -> Result<(), Error>;

    /// # Errors
    /// [`Error::Fenced`], [`Error::Stale`] as in [`Want`]; the owner then drops everything it knows and claims anew.
    async fn fetch(&self, lease: &Lease, want: Want) -> Result<Fetched, Error>;

    /// Applies a batch's effects. Prolongs the lease by [`skep_model::limits::LEASE_TTL_MS`]. Replies are delivered to
    /// [`Backend::waiters`] after the gate.
    ///
    /// # Errors
    /// See [`Error`]. After `Fenced`, `Stale` or `InputGone` the owner drops every cache and claims anew; it never re-stamps a
    /// batch. On `Full` it keeps the batch and sends the same commit again.
    async fn commit(&self, lease: &Lease, commit: Arc<Commit>) -> Result<Committed, Error>;

    /// Whether the commit `last` of this lease, as it was applied, left nothing to fetch: nothing unread, parked or timed. Whoever asks
    /// right behind the commit may wait for the bell without a fetch that would find nothing. `false` where it is not known.
    fn drained(&self, _lease: &Lease, _last: CommitId) -> bool {
        false
    }

    /// Suspect mode's attempt mark: notes, durably, that the owner is about to run the input `uid` alone, and returns how many
    /// times in a row this very input was marked, this one included. Another input begins at 1; a commit clears it. So the count
    /// survives the crash that the input may cause, at no cost on the normal path.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease is another's; else as [`Backend::commit`] fails.
    async fn mark(&self, lease: &Lease, uid: Uid) -> Result<u32, Error>;

    /// Gives a topic another number of partitions, `topic.partitions`, while messages flow. Appends go by the new number at once. What
    /// is there already is *sealed* in its partition, whose owner works it off first; until all seals are passed nothing behind one is
    /// given to anybody, so that keys keep their order. State lies by key, so it stays where it is. `id` must be fresh: every owner
    /// drops what it knows (rule 4).
    ///
    /// # Errors
    /// [`Error::Gone`] of a stage that was removed.
    async fn rescale(&self, topic: &TopicSpec, id: CommitId) -> Result<Rescaled, Error>;

    /// One bounded step of an owner at its seal: parked entries and timers go to the partitions that own their keys now; with the last
    /// of them the seal is passed. Afterwards `id`, which must be fresh, is the partition's last commit. Prolongs the lease as a commit
    /// does. A partition that the topic has no longer is [`Error::Gone`] from then on.
    ///
    /// # Errors
    /// [`Error::Fenced`]; [`Error::Stale`] where `base` is not the last commit or the partition is not at its seal.
    async fn hand_over(&self, lease: &Lease, base: CommitId, id: CommitId) -> Result<(), Error>;

    /// `None` of a topic that was never used.
    async fn layout(&self, topic: &TopicId) -> Result<Option<Layout>, Error>;

    /// Returns once everything applied before this call is durable.
    async fn flushed(&self) -> Result<(), Error>;

    /// Rung when a partition may have work: appended, or a parked message or timer set. Due times are the owner's to wait for.
    fn bell(&self, partition: &PartitionId) -> Bell;

    /// Make the `notified()` future before the call that may be refused, so that no ring falls between the two.
    /// Rung (all waiters) when a consumer freed a topic's inbox or dead letters to under half of a bound that refused somebody.
    fn room(&self, topic: &TopicId) -> Bell;

    /// The callers waiting on this node.
    fn waiters(&self) -> &Arc<Waiters>;

    /// The way of an input's parts to the caller of its request, wherever that one waits.
    fn speaker(&self, request: RequestId, source: Uid) -> Arc<dyn Speaker> {
        self.waiters().speaker(request, source)
    }

    /// How often an owner scans although no bell rang. Embedded bells are never lost, so its scan is slow.
    fn scan_every_ms(&self) -> u64;

    /// Cheap: what was applied so far, durable or not.
    async fn status(&self, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error>;

    /// The same once what it says can't be taken back: for whoever goes by it and tells others.
    ///
    /// All topics at one moment of one history, so where nothing is unread, parked or timed in any of them, nothing is under way: a commit takes
    /// its input and leaves what came of it in one step.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also where a failover came between.
    async fn durable_status(&self, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error>;

    /// Which of the histories that this node met a Swarm's store is in. Another number: a failover or a restart came between, and a place
    /// in a list of keys from before it may be none.
    fn history(&self, _swarm: &SwarmId) -> u64 {
        0
    }

    /// How much keyed state a stage has. Counted as it is written, so asking costs nothing.
    async fn state_size(&self, topic: &TopicId) -> Result<StateSize, Error>;

    /// Every Swarm life that has rows, so that a node can finish a deletion that was interrupted.
    async fn lives(&self) -> Result<Vec<SwarmId>, Error>;

    /// Removes everything of a Swarm's life. Later calls on it answer `Gone`. With `if_empty` only if nothing is unread, parked or
    /// dead-lettered at that very moment; `false`: nothing was removed. Removing what is gone is no error.
    async fn remove_swarm(&self, swarm: &SwarmId, if_empty: bool) -> Result<bool, Error>;

    /// Removes everything of one stage's topic, e.g. after its removal from the manifest and its drain.
    /// Only if nothing is unread, parked, dead-lettered or waiting for its time; `false`: nothing was removed.
    ///
    /// From then on writes to it as it was born then, or earlier, are refused, and its owners find it gone; born later it is new. A
    /// later birth that lives already is left alone.
    async fn remove_topic(&self, topic: &TopicSpec) -> Result<bool, Error>;

    /// Everything of a life at one moment, for a backup: what is unread, parked, timed, kept by key, dead-lettered, and how repeated
    /// calls are recognised. Not who owns what, nor replies that wait for a caller's connection. Nothing of a life without rows. The
    /// store may refuse commits and publishes of this life as [`Error::Unavailable`] until the stream has ended or is dropped.
    ///
    /// # Errors
    /// [`Error::Gone`]; [`Error::Unavailable`], also while another one reads the same life. In the stream also [`Error::Stale`]: the life
    /// moved on underneath, and what came so far is worth nothing.
    async fn export(&self, swarm: &SwarmId) -> Result<Pieces, Error>;

    /// Makes a life from its pieces, durably, under fresh commit ids. `false`: there are rows of it, and nothing was written.
    ///
    /// The life is *set aside* until its first publish or claim: [`Backend::lives`] does not name it. One that is not whole, since the
    /// stream ended with an error or the process died, is refused to everybody, and stays set aside.
    ///
    /// # Errors
    /// [`Error::Gone`] of a life that was removed here; the stream's; [`Error::Fenced`] when it was discarded meanwhile.
    async fn import(&self, swarm: &SwarmId, pieces: Pieces) -> Result<bool, Error>;

    /// Lives that are set aside.
    async fn imports(&self) -> Result<Vec<SwarmId>, Error>;

    /// Removes a life that is set aside, as if it had never been. Does nothing to any other.
    async fn discard_import(&self, swarm: &SwarmId) -> Result<(), Error>;

    /// Some keys of a stage with their values, in an order of the backend's own: [`limits::STATE_PAGE_KEYS`] or
    /// [`limits::STATE_PAGE_BYTES`] of them, give or take. `after`: [`StatePage::next`] of the page before, or empty. What is there all
    /// the time comes in one of the pages, on Redis perhaps in two; what comes or goes meanwhile may be missed.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where `after` is nothing that a page said.
    async fn state_page(&self, topic: &TopicId, after: &str) -> Result<StatePage, Error>;

    /// One key's state, as committed.
    async fn state(&self, topic: &TopicId, key: &str) -> Result<HashMap<String, Bytes>, Error>;

    /// Dead letters of a Swarm (or one stage) with an id above `after`, oldest first.
    async fn dead_letters(
        &self,
        swarm: &SwarmId,
        stage: Option<&StageName>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredDeadLetter>, Error>;

    /// Returns how many of `ids` existed and are gone.
    async fn discard_dead_letters(&self, swarm: &SwarmId, ids: &[u64]) -> Result<u64, Error>;

    /// # Errors
    /// `Ok(Err(current))` when the stored version is not `expect` (0: must not exist).
    async fn catalog_put(&self, key: &str, expect: u64, value: Bytes) -> Result<Result<u64, u64>, Error> {
        self.catalog_put_if(key, expect, None, value).await
    }

    /// For who decides by more than the record itself: `seen` is [`Backend::catalog_number`] as it was before the first read, and
    /// nothing is written unless it is the number still.
    ///
    /// # Errors
    /// As [`Backend::catalog_put`]; `Ok(Err(expect))` when the record is as expected and something else in the catalog is not: read
    /// again, then decide again.
    async fn catalog_put_if(
        &self,
        key: &str,
        expect: u64,
        seen: Option<u64>,
        value: Bytes,
    ) -> Result<Result<u64, u64>, Error>;

    /// Every record whose key starts with `prefix`, by key.
    async fn catalog_list(&self, prefix: &str) -> Result<Vec<(String, CatalogRecord)>, Error>;

    /// # Errors
    /// `Ok(Err(current))` as for [`Backend::catalog_put`].
    async fn catalog_delete(&self, key: &str, expect: u64) -> Result<Result<(), u64>, Error> {
        self.catalog_delete_if(key, expect, None).await
    }

    /// # Errors
    /// As [`Backend::catalog_put_if`].
    async fn catalog_delete_if(&self, key: &str, expect: u64, seen: Option<u64>) -> Result<Result<(), u64>, Error>;

    /// [`Pulse::catalog`] of this moment.
    async fn catalog_number(&self) -> Result<u64, Error>;

    /// Where in the catalog's history a number stands: each write is one further. `None` where the catalog cannot lose its end, since
    /// nothing but the store's own file keeps it.
    fn catalog_place(&self, _number: u64) -> Option<u64> {
        None
    }

    /// Several records at once, all or none, durably, and the catalog's place is above `above` then. For a catalog that came back from an
    /// older state. `false`: one of them is not as expected.
    ///
    /// # Errors
    /// As [`Backend::catalog_put`]; [`Error::Unavailable`] where [`Backend::catalog_place`] is `None`.
    async fn catalog_replace(&self, _above: u64, _changes: &[CatalogChange]) -> Result<bool, Error> {
        Err(Error::Unavailable("this store's catalog has no places".to_owned()))
    }

    /// Rung here when anybody writes to the catalog. May be lost on the way; the next beat's [`Pulse::catalog`] tells as well.
    fn catalog_bell(&self) -> Bell;

    /// Says that a node is there for `ttl_ms` more, with its record, and tells who else is. Waits for no flush: a beat that is lost
    /// is made up for by the next, and a store that only one process can open keeps none of it.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for the record; [`Error::Unavailable`] when there are [`skep_model::limits::NODES_MAX`] others.
    async fn beat(&self, node: NodeId, record: Bytes, ttl_ms: u64) -> Result<Pulse, Error>;

    /// Says that a node is there no more. Does nothing if it was not.
    async fn leave(&self, node: NodeId) -> Result<(), Error>;

    fn counters(&self) -> Counters;

    /// Makes everything durable, writes the clean-shutdown mark and closes. Later calls answer `Unavailable`.
    async fn close(&self) -> Result<(), Error>;
}
