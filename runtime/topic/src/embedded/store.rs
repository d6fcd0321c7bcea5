//! What the writer owns: the connection, and a mirror of the small rows in memory.
//!
//! The mirror (cursors, which frames exist, how full things are) makes the checks of a commit plain comparisons. It is built from
//! the tables at open and thrown away with the transaction when anything fails, so it never disagrees with them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use skep_model::env::{Clock, Entropy};
use skep_model::id::{CommitId, Token, Uid};
use skep_model::limits;
use skep_model::message::Reply;
use skep_model::name::{StageName, Subject};
use skep_model::scope::{SwarmId, TopicId};
use skep_model::swarm::Bound;

use super::import::Aside;
use super::keys::Keys;
use super::schema::{self, ENTRY_BITS};
use super::{OpenError, Shared};
use crate::guard::{Guard, Guards};
use crate::record::{self, FrameBuilder, Layout, Partition};
use crate::{Bell, Cursor, Error, TopicSpec};

/// Why an operation ended without a result.
#[derive(Debug)]
pub(super) enum Fault {
    /// Refused before its first write.
    Refused(Error),
    /// The database failed, perhaps in the middle: the transaction must go.
    Broken(rusqlite::Error),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::Refused(e)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Self {
        Self::Broken(e)
    }
}

impl Fault {
    /// What was read makes no sense: nothing is wrong with the transaction, and others can go on.
    pub(super) fn damage(&self) -> Option<Error> {
        match self {
            Self::Refused(e @ Error::Corrupt(_)) => Some(e.clone()),
            Self::Broken(
                e @ (rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)),
            ) => Some(Error::Corrupt(e.to_string())),
            _ => None,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(e) => e.fmt(f),
            Self::Broken(e) => e.fmt(f),
        }
    }
}

/// SQLite's integers are signed; ours never come near the difference.
pub(super) fn db(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn un(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub token: Token,
    pub until_ms: u64,
}

#[derive(Debug)]
pub(super) struct Frame {
    pub entry: u64,
    pub uid: Uid,
    pub messages: u32,
    pub bytes: u64,
    /// Kept between append and fetch while there is room for it.
    pub body: Option<Bytes>,
    /// It has its row. One that is consumed before the flush never gets one.
    pub stored: bool,
}

#[derive(Debug)]
pub(super) struct Part {
    /// None until its first row is written.
    pub row: Option<i64>,
    pub at: Partition,
    pub lease: Option<Held>,
    pub next_entry: u64,
    pub frames: VecDeque<Frame>,
    pub unread: u64,
    pub parked: u64,
    pub timers: u64,
    /// How far a hand-over has looked: parked entries by their order, timers by key and name. It begins anew with the process.
    pub handed: (i64, (String, String)),
    pub bell: Bell,
}

#[derive(Debug)]
pub(super) struct Topic {
    pub row: i64,
    pub layout: Layout,
    pub parts: Vec<Part>,
    pub unread: u64,
    pub unread_bytes: u64,
    pub parked: u64,
    pub parked_bytes: u64,
    pub dead: u64,
    pub dead_bytes: u64,
    /// Bounds that refused somebody since the room bell last rang.
    pub refused_inbox: Option<Bound>,
    pub refused_dead: Option<Bound>,
}

impl Topic {
    /// Unread and parked together have reached `percent` of the bound.
    pub fn full(&self, bound: Bound, percent: u64) -> bool {
        let reached = |have: u64, max: u64| u128::from(have) * 100 >= u128::from(max) * u128::from(percent);
        reached(self.unread + self.parked, bound.messages)
            || reached(self.unread_bytes + self.parked_bytes, bound.bytes)
    }

    pub fn rescaling(&self) -> bool {
        self.parts.iter().any(|part| part.at.seal.is_some())
    }

    /// Whether anything is, or may come, in a partition.
    pub fn has(&self, index: u16) -> bool {
        let part = self.parts.get(usize::from(index));
        index < self.layout.partitions || part.is_some_and(|part| part.at.seal.is_some())
    }

    pub fn owners(&self) -> u16 {
        if self.rescaling() {
            self.layout.partitions.max(self.layout.former)
        } else {
            self.layout.partitions
        }
    }

    /// The partition with the shortest inbox.
    pub fn shortest(&self) -> u16 {
        (0..self.layout.partitions)
            .min_by_key(|p| {
                self.parts
                    .get(usize::from(*p))
                    .map_or(0, |part| part.unread + part.parked)
            })
            .unwrap_or(0)
    }
}

/// What a subject remembers of idempotency keys.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Window {
    pub keys: u64,
    pub reply_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Life {
    pub row: i64,
    pub windows: HashMap<Subject, Window>,
    pub sessions: u64,
    /// Stages that were removed, and which birth of them was last.
    pub removed: HashMap<StageName, u64>,
}

#[derive(Debug)]
struct OpenTx {
    since: Instant,
    bytes: usize,
}

pub(super) struct Store {
    pub conn: Connection,
    pub dir: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub guards: Arc<Guards>,
    pub shared: Arc<Shared>,
    pub lives: HashMap<SwarmId, Life>,
    pub gone: HashSet<SwarmId>,
    /// Lives that were imported and that nobody has used yet.
    pub aside: HashMap<SwarmId, Aside>,
    pub topics: HashMap<TopicId, Topic>,
    pub keys: Keys,
    /// Replies of commits in the open transaction.
    pub outbox: Vec<Reply>,
    /// When the first idempotency key expires.
    pub next_expiry: u64,
    cached_bytes: usize,
    /// Frames appended in the open transaction, whose rows are not written yet. Bounded by the frame cache.
    pending: Vec<(TopicId, u16, u64)>,
    tx: Option<OpenTx>,
    /// Whether the operation under way has begun to write.
    pub wrote: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Opens the file and brings its tables to this skep's schema. Returns whether the last close was clean.
pub(super) fn connect(dir: &Path, entropy: &dyn Entropy, wal_bytes: u64) -> Result<Connection, OpenError> {
    let path = dir.join("skep.db");
    let sql = |source| OpenError::Database {
        path: path.clone(),
        source,
    };
    let conn = Connection::open(&path).map_err(sql)?;
    conn.execute_batch(schema::PRAGMAS).map_err(sql)?;
    conn.execute_batch(&format!(
        "PRAGMA cache_size = -{}; PRAGMA wal_autocheckpoint = {}; PRAGMA journal_size_limit = {};",
        limits::PAGE_CACHE_BYTES >> 10,
        wal_bytes / 8192,
        2 * wal_bytes,
    ))
    .map_err(sql)?;
    conn.set_prepared_statement_cache_capacity(128);
    let made: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_master WHERE name = 'meta'", [], |r| {
            r.get(0)
        })
        .map_err(sql)?;
    if made == 0 {
        conn.execute_batch("BEGIN IMMEDIATE").map_err(sql)?;
        conn.execute_batch(schema::TABLES).map_err(sql)?;
        conn.execute("INSERT INTO meta VALUES ('schema', ?1)", [schema::SCHEMA])
            .map_err(sql)?;
        conn.execute("INSERT INTO meta VALUES ('store', ?1)", [entropy.bits128()])
            .map_err(sql)?;
        conn.execute("INSERT INTO meta VALUES ('clean', 1)", []).map_err(sql)?;
        conn.execute_batch("COMMIT").map_err(sql)?;
    }
    let mut found: i64 = conn
        .query_row("SELECT value FROM meta WHERE name = 'schema'", [], |r| r.get(0))
        .map_err(sql)?;
    for (from, upgrade) in schema::UPGRADES {
        if found == *from {
            found += 1;
            conn.execute_batch(&format!(
                "BEGIN IMMEDIATE; {upgrade} UPDATE meta SET value = {found} WHERE name = 'schema'; COMMIT"
            ))
            .map_err(sql)?;
        }
    }
    if found != schema::SCHEMA {
        return Err(OpenError::Newer {
            path,
            found,
            known: schema::SCHEMA,
        });
    }
    Ok(conn)
}

impl Store {
    pub(super) fn new(
        conn: Connection,
        dir: PathBuf,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        guards: Arc<Guards>,
        shared: Arc<Shared>,
    ) -> Result<Self, Fault> {
        let mut store = Self {
            conn,
            dir,
            clock,
            entropy,
            guards,
            shared,
            lives: HashMap::new(),
            gone: HashSet::new(),
            aside: HashMap::new(),
            topics: HashMap::new(),
            keys: Keys::default(),
            outbox: Vec::new(),
            next_expiry: u64::MAX,
            cached_bytes: 0,
            pending: Vec::new(),
            tx: None,
            wrote: false,
        };
        store.load()?;
        Ok(store)
    }

    pub(super) fn now(&self) -> u64 {
        self.clock.now_ms()
    }

    // ------------------------------------------------------------------------------------------- transaction

    /// Opens a transaction if none is.
    pub(super) fn begin(&mut self) -> Result<(), rusqlite::Error> {
        self.wrote = true;
        if self.tx.is_none() {
            self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            self.tx = Some(OpenTx {
                since: Instant::now(),
                bytes: 0,
            });
        }
        Ok(())
    }

    /// Whether there is anything to flush.
    pub(super) fn dirty(&self) -> bool {
        self.tx.is_some()
    }

    /// Since when, and how many bytes, the open transaction has gathered.
    pub(super) fn open_since(&self) -> Option<(Instant, usize)> {
        self.tx.as_ref().map(|tx| (tx.since, tx.bytes))
    }

    pub(super) fn grew(&mut self, bytes: usize) {
        if let Some(tx) = &mut self.tx {
            tx.bytes += bytes;
        }
    }

    /// One flush of the disk.
    pub(super) fn commit_tx(&mut self) -> Result<(), Fault> {
        if self.tx.is_some() {
            self.store_pending()?;
            self.keys.flush(&self.conn)?;
            self.conn.prepare_cached("COMMIT")?.execute([])?;
            self.tx = None;
        }
        Ok(())
    }

    /// Writes the frames of this transaction that are still unread. Most are read and consumed before the flush under load, and
    /// then neither their row nor its deletion is ever written: appended and consumed in one transaction is nothing to the disk.
    fn store_pending(&mut self) -> Result<(), rusqlite::Error> {
        for (id, index, entry) in std::mem::take(&mut self.pending) {
            let Some(part) = self
                .topics
                .get_mut(&id)
                .and_then(|t| t.parts.get_mut(usize::from(index)))
            else {
                continue;
            };
            let at = part.frames.binary_search_by_key(&entry, |f| f.entry);
            let (Some(row), Some(frame)) = (part.row, at.ok().and_then(|at| part.frames.get_mut(at))) else {
                continue;
            };
            if let (false, Some(body)) = (frame.stored, &frame.body) {
                insert_frame(&self.conn, row, frame, body)?;
                frame.stored = true;
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------- rows

    /// The life's row, made if it is new.
    pub(super) fn life(&mut self, swarm: &SwarmId) -> Result<&mut Life, rusqlite::Error> {
        if !self.lives.contains_key(swarm) {
            self.begin()?;
            self.conn.execute(
                "INSERT INTO swarm (tenant, name, incarnation) VALUES (?1, ?2, ?3)",
                params![swarm.tenant().as_str(), swarm.name().as_str(), swarm.incarnation().0],
            )?;
            let row = self.conn.last_insert_rowid();
            self.lives.insert(swarm.clone(), Life { row, ..Life::default() });
        }
        Ok(self.lives.get_mut(swarm).expect("just made"))
    }

    /// The topic's row, made if it is new.
    pub(super) fn topic(&mut self, spec: &TopicSpec) -> Result<&mut Topic, rusqlite::Error> {
        let id = &spec.id;
        if !self.topics.contains_key(id) {
            let swarm_row = self.life(id.swarm())?.row;
            self.begin()?;
            let layout = Layout {
                born: spec.born,
                partitions: spec.partitions,
                ..Layout::default()
            };
            self.conn.execute(
                "INSERT INTO topic (swarm, stage, layout) VALUES (?1, ?2, ?3)",
                params![swarm_row, id.stage().as_str(), record::encode_layout(&layout)],
            )?;
            let topic = Topic::new(self.conn.last_insert_rowid(), layout);
            self.topics.insert(id.clone(), topic);
        } else if self.topics[id].layout.born < spec.born || self.topics[id].layout.partitions == 0 {
            self.begin()?;
            let topic = self.topics.get_mut(id).expect("it is there");
            topic.layout.born = topic.layout.born.max(spec.born);
            if topic.layout.partitions == 0 {
                topic.layout.partitions = spec.partitions;
            }
            write_layout(&self.conn, topic)?;
        }
        Ok(self.topics.get_mut(id).expect("just made"))
    }

    /// Whether the stage was removed, as this writer knows it.
    pub(super) fn is_removed(&self, spec: &TopicSpec) -> bool {
        let removed = self.lives.get(spec.id.swarm()).map(|life| &life.removed);
        let last = removed.and_then(|stages| stages.get(spec.id.stage()));
        self.guards.on(Guard::Birth) && last.is_some_and(|last| spec.born <= *last)
    }

    /// The partition in memory, made if it is new. Writes nothing.
    pub(super) fn part<'a>(topic: &'a mut Topic, id: &TopicId, index: u16, shared: &Shared) -> &'a mut Part {
        while topic.parts.len() <= usize::from(index) {
            let next = u16::try_from(topic.parts.len()).expect("at most u16::MAX partitions");
            let after_unclean = shared.after_unclean.load(Ordering::Relaxed);
            topic
                .parts
                .push(Part::unborn(shared.bell(&id.partition(next)), after_unclean));
        }
        &mut topic.parts[usize::from(index)]
    }

    /// The partition's row id, made if it is new.
    pub(super) fn part_row(&mut self, id: &TopicId, index: u16) -> Result<i64, rusqlite::Error> {
        self.begin()?;
        let shared = Arc::clone(&self.shared);
        let topic = self.topics.get_mut(id).expect("the topic was made before");
        let topic_row = topic.row;
        let part = Self::part(topic, id, index, &shared);
        if let Some(row) = part.row {
            return Ok(row);
        }
        self.conn
            .prepare_cached("INSERT INTO part (topic, idx, body) VALUES (?1, ?2, ?3)")?
            .execute(params![topic_row, index, record::encode_partition(&part.at)])?;
        let row = self.conn.last_insert_rowid();
        part.row = Some(row);
        Ok(row)
    }

    /// Appends a frame.
    pub(super) fn append(&mut self, id: &TopicId, index: u16, frame: FrameBuilder) -> Result<(), rusqlite::Error> {
        let row = self.part_row(id, index)?;
        let uid = Uid::random(&*self.entropy);
        let (messages, bytes, body) = (frame.messages(), frame.size(), frame.finish());
        let room = self.cached_bytes + body.len() <= limits::FRAME_CACHE_BYTES_MAX;
        let topic = self.topics.get_mut(id).expect("the topic was made before");
        let part = &mut topic.parts[usize::from(index)];
        let entry = part.next_entry;
        let len = body.len();
        let mut frame = Frame {
            entry,
            uid,
            messages,
            bytes,
            body: None,
            stored: !room,
        };
        if room {
            self.cached_bytes += len;
            frame.body = Some(body);
            self.pending.push((id.clone(), index, entry));
        } else {
            insert_frame(&self.conn, row, &frame, &body)?;
        }
        part.frames.push_back(frame);
        part.next_entry += 1;
        part.unread += u64::from(messages);
        topic.unread += u64::from(messages);
        topic.unread_bytes += bytes;
        part.bell.notify_one();
        self.grew(len);
        Ok(())
    }

    /// The bytes of a frame, from memory or from disk.
    pub(super) fn body(conn: &Connection, row: i64, frame: &Frame) -> Result<Bytes, Fault> {
        if let Some(body) = &frame.body {
            return Ok(body.clone());
        }
        let body: Option<Vec<u8>> = conn
            .prepare_cached("SELECT body FROM frame WHERE id = ?1")?
            .query_row([frame_id(row, frame.entry)], |r| r.get(0))
            .optional()?;
        body.map(Bytes::from)
            .ok_or_else(|| Error::Corrupt("frame: its row is missing".to_owned()).into())
    }

    /// Removes the frames of a partition that lie before `cursor`, and counts what `cursor` consumed.
    pub(super) fn consume(&mut self, id: &TopicId, index: u16, cursor: Cursor) -> Result<(), Fault> {
        let topic = self.topics.get_mut(id).expect("the commit was checked");
        let part = &mut topic.parts[usize::from(index)];
        let from = part.at.cursor;
        let row = part.row.unwrap_or_default();
        let mut first = None;
        let mut last = None;
        let mut counted = (0u64, 0u64);
        while let Some(frame) = part.frames.front() {
            let read = if frame.entry == from.entry { from.index } else { 0 };
            let until = match frame.entry.cmp(&cursor.entry) {
                std::cmp::Ordering::Less => frame.messages,
                std::cmp::Ordering::Equal => cursor.index,
                std::cmp::Ordering::Greater => break,
            };
            let bytes = if read == 0 && until == frame.messages {
                frame.bytes
            } else if until > read {
                prefix_bytes(Self::body(&self.conn, row, frame)?, read, until)?
            } else {
                0
            };
            counted.0 += u64::from(until.saturating_sub(read));
            counted.1 += bytes;
            if frame.entry >= cursor.entry {
                break;
            }
            self.cached_bytes -= frame.body.as_ref().map_or(0, Bytes::len);
            if frame.stored {
                first.get_or_insert(frame.entry);
                last = Some(frame.entry);
            }
            part.frames.pop_front();
        }
        part.unread -= counted.0;
        topic.unread -= counted.0;
        topic.unread_bytes = topic.unread_bytes.saturating_sub(counted.1);
        if let (Some(first), Some(last)) = (first, last) {
            self.conn
                .prepare_cached("DELETE FROM frame WHERE id BETWEEN ?1 AND ?2")?
                .execute([frame_id(row, first), frame_id(row, last)])?;
        }
        Ok(())
    }

    /// Rings those who were refused, once under half of what refused them.
    pub(super) fn ring_room(&mut self, id: &TopicId) {
        let Some(topic) = self.topics.get_mut(id) else { return };
        let mut ring = false;
        if let Some(bound) = topic.refused_inbox
            && !topic.full(bound, 50)
        {
            topic.refused_inbox = None;
            ring = true;
        }
        if let Some(bound) = topic.refused_dead
            && topic.dead * 2 < bound.messages
            && topic.dead_bytes * 2 < bound.bytes
        {
            topic.refused_dead = None;
            ring = true;
        }
        if ring {
            self.shared.ring_room(id);
        }
    }

    /// Takes everything of a topic out of memory. Owners that hold a lease find themselves fenced.
    pub(super) fn forget_topic(&mut self, id: &TopicId) -> Option<Topic> {
        let topic = self.topics.remove(id)?;
        let cached: usize = topic
            .parts
            .iter()
            .flat_map(|p| &p.frames)
            .filter_map(|f| f.body.as_ref().map(Bytes::len))
            .sum();
        self.cached_bytes -= cached;
        self.keys.forget(topic.row);
        self.shared.ring_room(id);
        Some(topic)
    }
}

fn insert_frame(conn: &Connection, part: i64, frame: &Frame, body: &Bytes) -> Result<(), rusqlite::Error> {
    conn.prepare_cached("INSERT INTO frame (id, n, bytes, uid, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            frame_id(part, frame.entry),
            frame.messages,
            db(frame.bytes),
            frame.uid.0,
            &body[..]
        ])?;
    Ok(())
}

impl Topic {
    pub(super) fn new(row: i64, layout: Layout) -> Self {
        Self {
            row,
            layout,
            parts: Vec::new(),
            unread: 0,
            unread_bytes: 0,
            parked: 0,
            parked_bytes: 0,
            dead: 0,
            dead_bytes: 0,
            refused_inbox: None,
            refused_dead: None,
        }
    }
}

impl Part {
    /// After an unclean stop it may be new only because what was in it never became durable: that is suspect as well.
    fn unborn(bell: Bell, after_unclean: bool) -> Self {
        Self {
            row: None,
            at: Partition {
                last: CommitId::NONE,
                unclean: u32::from(after_unclean),
                ..Partition::default()
            },
            lease: None,
            next_entry: 0,
            frames: VecDeque::new(),
            unread: 0,
            parked: 0,
            timers: 0,
            handed: Default::default(),
            bell,
        }
    }
}

pub(super) fn write_layout(conn: &Connection, topic: &Topic) -> Result<(), rusqlite::Error> {
    conn.prepare_cached("UPDATE topic SET layout = ?2 WHERE id = ?1")?
        .execute(params![topic.row, record::encode_layout(&topic.layout)])?;
    Ok(())
}

pub(super) fn write_part(conn: &Connection, row: i64, at: &Partition) -> Result<(), rusqlite::Error> {
    conn.prepare_cached("UPDATE part SET body = ?2 WHERE id = ?1")?
        .execute(params![row, record::encode_partition(at)])?;
    Ok(())
}

pub(super) fn frame_id(part_row: i64, entry: u64) -> i64 {
    part_row << ENTRY_BITS | db(entry)
}

/// What messages `from..to` of a frame count for.
pub(super) fn prefix_bytes(body: Bytes, from: u32, to: u32) -> Result<u64, Fault> {
    Ok(record::decode_frame(body)?
        .iter()
        .take(to as usize)
        .skip(from as usize)
        .map(record::message_bytes)
        .sum())
}
