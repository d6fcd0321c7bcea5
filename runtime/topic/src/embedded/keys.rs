//! Keyed state: rows at rest, a journal of what was written since, and the keys that are in use in memory.
//!
//! ```text
//!   commit ──► memory (the newest values) ──► flush: all writes of the transaction as one journal row
//!                                       └──► oldest journal rows, once there are too many: their keys' newest values ──► state rows
//! ```
//! One row a value was what bounded keyed stages: a read and an upsert of a B-tree a message. A key that is written often costs its
//! row once a journal's length instead. Only this process writes state, so a key that was read once is read from memory, and the
//! journal, replayed over the rows at open, is all that a crash needs. Replay is idempotent: rows may hold newer values than the
//! oldest journal rows, and those that follow set them right again, for the oldest go first.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use rusqlite::{Connection, params};
use skep_model::limits;

use super::store::{Fault, db, un};
use crate::record::{self, Kind};
use crate::{Error, StatePut, StateSize, key_group};

/// Bytes that a key, and a value, cost in memory beside their own: their places, and what the allocator rounds up.
const KEY_OVERHEAD: usize = 160;
const VALUE_OVERHEAD: usize = 128;

/// A row of a topic.
type TopicRow = i64;

/// A list, not a map: a key has one or two values mostly, and a map's first node is as large as ten of them.
#[derive(Debug, Default)]
struct Key {
    /// By name.
    values: Vec<Named>,
    /// The journal row that holds the oldest of the writes that the rows do not have.
    since: u64,
    /// Some row is behind.
    behind: bool,
    /// Read or written since memory was last full.
    used: bool,
    /// Only what the journal told at the open is here: the rows were not read yet.
    partial: bool,
}

#[derive(Debug)]
struct Named {
    name: Box<str>,
    /// `None`: deleted, and its row is still there.
    value: Option<Bytes>,
    /// Its row is behind.
    behind: bool,
}

impl Named {
    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, |value| self.name.len() + value.len())
    }

    fn weight(&self) -> usize {
        VALUE_OVERHEAD + self.name.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

impl Key {
    /// As its rows have it.
    fn stored(conn: &Connection, topic: TopicRow, name: &str) -> Result<Self, Fault> {
        Ok(Self {
            values: rows(conn, topic, name)?,
            ..Self::default()
        })
    }

    fn weight(&self, name: &str) -> usize {
        KEY_OVERHEAD + name.len() + self.values.iter().map(Named::weight).sum::<usize>()
    }

    /// What it counts for in its stage's state.
    fn size(&self, name: &str) -> StateSize {
        let bytes: usize = self.values.iter().map(Named::bytes).sum();
        let there = self.values.iter().any(|named| named.value.is_some());
        StateSize {
            keys: there.into(),
            bytes: if there { (name.len() + bytes) as u64 } else { 0 },
        }
    }

    fn to_map(&self) -> BTreeMap<String, Bytes> {
        let there = self.values.iter();
        there
            .filter_map(|named| Some((String::from(&*named.name), named.value.clone()?)))
            .collect()
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.values.binary_search_by(|named| (*named.name).cmp(name))
    }

    /// Reads the rows of what the journal did not tell.
    fn complete(&mut self, conn: &Connection, topic: TopicRow, name: &str) -> Result<(), Fault> {
        for stored in rows(conn, topic, name)? {
            if let Err(at) = self.find(&stored.name) {
                self.values.insert(at, stored);
            }
        }
        self.partial = false;
        Ok(())
    }

    fn write(&mut self, name: &str, value: Option<Bytes>) {
        match self.find(name) {
            Ok(at) => {
                let named = &mut self.values[at];
                named.value = value;
                named.behind = true;
            }
            Err(at) => {
                self.values.reserve_exact(1);
                let name = Box::from(name);
                let behind = true;
                self.values.insert(at, Named { name, value, behind });
            }
        }
    }
}

/// A journal row.
#[derive(Debug)]
struct Segment {
    id: u64,
    bytes: usize,
    /// Those whose oldest write that the rows do not have is here: each key that is behind is listed once.
    keys: Vec<(TopicRow, Box<str>)>,
}

/// The writes of the open transaction, as its journal row will have them.
#[derive(Debug, Default)]
struct Open {
    body: record::JournalBody,
    keys: Vec<(TopicRow, Box<str>)>,
}

#[derive(Debug)]
pub(super) struct Keys {
    journal_max: usize,
    memory_max: usize,
    topics: HashMap<TopicRow, HashMap<Box<str>, Key>>,
    /// What is held in memory, about; and of that, what the rows do not have.
    bytes: usize,
    behind: usize,
    journal: VecDeque<Segment>,
    journal_bytes: usize,
    open: Open,
    next: u64,
    sizes: HashMap<TopicRow, StateSize>,
    /// Whose size is another than its row says.
    resized: BTreeSet<TopicRow>,
}

impl Default for Keys {
    fn default() -> Self {
        Self::bounded(limits::STATE_JOURNAL_BYTES, limits::STATE_CACHE_BYTES_MAX)
    }
}

impl Keys {
    fn bounded(journal_max: usize, memory_max: usize) -> Self {
        Self {
            journal_max,
            memory_max,
            topics: HashMap::new(),
            bytes: 0,
            behind: 0,
            journal: VecDeque::new(),
            journal_bytes: 0,
            open: Open::default(),
            next: 0,
            sizes: HashMap::new(),
            resized: BTreeSet::new(),
        }
    }

    /// Rebuilds what the journal holds, without a look at the rows of its keys, so that a long journal costs a start little. Writes
    /// nothing, so that it can be done on a full disk.
    pub fn load(&mut self, conn: &Connection, lives: impl Fn(TopicRow) -> bool) -> Result<(), Fault> {
        let mut query = conn.prepare("SELECT id, body FROM journal ORDER BY id")?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            let (id, body) = (un(r.get(0)?), Bytes::from(r.get::<_, Vec<u8>>(1)?));
            let bytes = body.len();
            let mut keys = Vec::new();
            for write in record::decode_journal(body)? {
                // Of a topic that is being removed.
                if !lives(write.topic) {
                    continue;
                }
                let topic = self.topics.entry(write.topic).or_default();
                let key = topic.entry(Box::from(write.key.as_str())).or_insert_with(|| Key {
                    partial: true,
                    ..Key::default()
                });
                if !key.behind {
                    key.behind = true;
                    key.since = id;
                    keys.push((write.topic, Box::from(write.key.as_str())));
                }
                key.write(&write.name, write.value);
            }
            self.journal.push_back(Segment { id, bytes, keys });
            self.journal_bytes += bytes;
            self.next = id + 1;
        }
        self.bytes = self.weigh();
        self.behind = self.bytes;
        self.load_sizes(conn, lives)
    }

    /// All that is in memory.
    fn weigh(&self) -> usize {
        let all = self.topics.values().flatten();
        all.map(|(name, key)| key.weight(name)).sum()
    }

    fn load_sizes(&mut self, conn: &Connection, lives: impl Fn(TopicRow) -> bool) -> Result<(), Fault> {
        let mut query = conn.prepare("SELECT topic, keys, bytes FROM state_size")?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            let (topic, keys, bytes): (TopicRow, i64, i64) = (r.get(0)?, r.get(1)?, r.get(2)?);
            if !lives(topic) {
                continue;
            }
            let size = if keys < 0 {
                self.resized.insert(topic);
                self.count(conn, topic)?
            } else {
                StateSize {
                    keys: un(keys),
                    bytes: un(bytes),
                }
            };
            self.sizes.insert(topic, size);
        }
        Ok(())
    }

    /// Of a store that did not count yet, once: a look at each row, with what the journal makes of them.
    fn count(&mut self, conn: &Connection, topic: TopicRow) -> Result<StateSize, Fault> {
        let (keys, bytes): (i64, i64) = conn.query_row(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM (
                 SELECT length(CAST(key AS BLOB)) + sum(length(CAST(name AS BLOB)) + length(value) - ?2) AS bytes
                 FROM state WHERE topic = ?1 GROUP BY grp, key)",
            params![topic, db(record::HEAD as u64)],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )?;
        let mut size = StateSize {
            keys: un(keys),
            bytes: un(bytes),
        };
        for (name, key) in self.topics.get_mut(&topic).into_iter().flatten() {
            if key.partial {
                let before = key.weight(name);
                key.complete(conn, topic, name)?;
                let more = key.weight(name) - before;
                self.bytes += more;
                self.behind += if key.behind { more } else { 0 };
            }
            size.turn(Key::stored(conn, topic, name)?.size(name), key.size(name));
        }
        Ok(size)
    }

    /// Of all keys of a topic, as applied.
    pub fn size(&self, topic: TopicRow) -> StateSize {
        self.sizes.get(&topic).copied().unwrap_or_default()
    }

    /// A key's values, from memory or its rows.
    pub fn values(&mut self, conn: &Connection, topic: TopicRow, key: &str) -> Result<BTreeMap<String, Bytes>, Fault> {
        self.with(conn, topic, key, |found| found.to_map())
    }

    /// Finds a key, or reads it, and counts what `deed` makes of its weight.
    fn with<T>(
        &mut self,
        conn: &Connection,
        topic: TopicRow,
        name: &str,
        deed: impl FnOnce(&mut Key) -> T,
    ) -> Result<T, Fault> {
        let keys = self.topics.entry(topic).or_default();
        let key = match keys.get_mut(name) {
            Some(known) => known,
            None => {
                let found = Key::stored(conn, topic, name)?;
                self.bytes += found.weight(name);
                keys.entry(Box::from(name)).or_insert(found)
            }
        };
        let (was_behind, before) = (key.behind, key.weight(name));
        if key.partial {
            key.complete(conn, topic, name)?;
        }
        key.used = true;
        let done = deed(key);
        let after = key.weight(name);
        self.bytes = self.bytes + after - before;
        self.behind -= if was_behind { before } else { 0 };
        self.behind += if key.behind { after } else { 0 };
        Ok(done)
    }

    /// Applies a write of the open transaction.
    pub fn put(&mut self, conn: &Connection, topic: TopicRow, put: &StatePut) -> Result<(), Fault> {
        let segment = self.next;
        let (first, before, after) = self.with(conn, topic, &put.key, |key| {
            let before = key.size(&put.key);
            key.write(&put.name, put.value.clone());
            let first = !std::mem::replace(&mut key.behind, true);
            if first {
                key.since = segment;
            }
            (first, before, key.size(&put.key))
        })?;
        if first {
            self.open.keys.push((topic, Box::from(put.key.as_str())));
        }
        self.open.body.push(topic, put);
        if before != after {
            self.sizes.entry(topic).or_default().turn(before, after);
            self.resized.insert(topic);
        }
        Ok(())
    }

    /// At the flush: one row for all writes of the transaction, and room in journal and memory.
    pub fn flush(&mut self, conn: &Connection) -> Result<(), Fault> {
        self.write_journal(conn)?;
        // What is behind cannot be dropped. Kept to a half of memory it never has to be written all at once.
        self.fold(conn, self.journal_max, self.memory_max / 2)?;
        if self.bytes > self.memory_max {
            self.drop_clean(|key| key.used);
            // So much that few can be dropped soon again: what is used most is read back at once.
            if self.bytes > self.memory_max - self.memory_max / 4 {
                self.drop_clean(|_| false);
            }
        }
        Ok(())
    }

    /// Brings every row up to date.
    pub fn settle(&mut self, conn: &Connection) -> Result<(), Fault> {
        self.write_journal(conn)?;
        self.fold(conn, 0, 0)
    }

    fn write_journal(&mut self, conn: &Connection) -> Result<(), Fault> {
        if !self.open.body.is_empty() {
            let Open { body, keys } = std::mem::take(&mut self.open);
            let body = body.finish();
            conn.prepare_cached("INSERT INTO journal (id, body) VALUES (?1, ?2)")?
                .execute(params![db(self.next), body])?;
            self.journal.push_back(Segment {
                id: self.next,
                bytes: body.len(),
                keys,
            });
            self.journal_bytes += body.len();
            self.next += 1;
        }
        for topic in std::mem::take(&mut self.resized) {
            let size = self.size(topic);
            conn.prepare_cached("INSERT OR REPLACE INTO state_size (topic, keys, bytes) VALUES (?1, ?2, ?3)")?
                .execute(params![topic, db(size.keys), db(size.bytes)])?;
        }
        Ok(())
    }

    /// Brings rows up to date, oldest journal rows first, until at most `bytes` of journal are left, and keys that weigh at most
    /// `behind` are behind.
    fn fold(&mut self, conn: &Connection, bytes: usize, behind: usize) -> Result<(), Fault> {
        let mut last = None;
        while self.journal_bytes > bytes || self.behind > behind {
            let Some(segment) = self.journal.pop_front() else { break };
            self.journal_bytes -= segment.bytes;
            last = Some(segment.id);
            for (topic, name) in segment.keys {
                let Some(key) = self.topics.get_mut(&topic).and_then(|keys| keys.get_mut(&*name)) else {
                    continue;
                };
                if key.behind && key.since <= segment.id {
                    let before = key.weight(&name);
                    write_rows(conn, topic, &name, key)?;
                    self.behind -= before;
                    self.bytes = self.bytes + key.weight(&name) - before;
                }
            }
        }
        if let Some(last) = last {
            conn.prepare_cached("DELETE FROM journal WHERE id <= ?1")?
                .execute([db(last)])?;
        }
        Ok(())
    }

    /// Whether rows are behind.
    pub fn behind(&self) -> bool {
        !self.journal.is_empty() || !self.open.body.is_empty()
    }

    /// Drops what the rows have too, but for what `stays`.
    fn drop_clean(&mut self, stays: impl Fn(&Key) -> bool) {
        for keys in self.topics.values_mut() {
            keys.retain(|_, key| {
                let stays = key.behind || stays(key);
                key.used = false;
                stays
            });
        }
        self.topics.retain(|_, keys| !keys.is_empty());
        self.bytes = self.weigh();
    }

    /// A topic goes: its rows go by themselves, and nothing of it is to be written again.
    pub fn forget(&mut self, topic: TopicRow) {
        for (name, key) in self.topics.remove(&topic).into_iter().flatten() {
            let weight = key.weight(&name);
            self.bytes -= weight;
            self.behind -= if key.behind { weight } else { 0 };
        }
        self.sizes.remove(&topic);
        self.resized.remove(&topic);
    }
}

/// One key's rows.
fn rows(conn: &Connection, topic: TopicRow, key: &str) -> Result<Vec<Named>, Fault> {
    let mut query =
        conn.prepare_cached("SELECT name, value FROM state WHERE topic = ?1 AND grp = ?2 AND key = ?3 ORDER BY name")?;
    let mut rows = query.query(params![topic, key_group(key), key])?;
    let mut out = Vec::new();
    while let Some(r) = rows.next()? {
        let value = unsealed(key, r.get(1)?)?;
        out.push(Named {
            name: r.get::<_, String>(0)?.into(),
            value: Some(value),
            behind: false,
        });
    }
    Ok(out)
}

pub(super) fn unsealed(key: &str, stored: Vec<u8>) -> Result<Bytes, Fault> {
    let value = record::unseal(Kind::State, Bytes::from(stored)).map_err(|e| match e {
        Error::Corrupt(what) => Error::Corrupt(format!("key `{key}`: {what}")),
        other => other,
    });
    Ok(value?)
}

fn write_rows(conn: &Connection, topic: TopicRow, name: &str, key: &mut Key) -> Result<(), Fault> {
    let group = key_group(name);
    key.behind = false;
    for named in key.values.iter_mut().filter(|named| named.behind) {
        named.behind = false;
        match &named.value {
            Some(value) => conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO state (topic, grp, key, name, value) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    topic,
                    group,
                    name,
                    named.name,
                    record::seal(Kind::State, value)
                ])?,
            None => conn
                .prepare_cached("DELETE FROM state WHERE topic = ?1 AND grp = ?2 AND key = ?3 AND name = ?4")?
                .execute(params![topic, group, name, named.name])?,
        };
    }
    key.values.retain(|named| named.value.is_some());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::schema;
    use super::*;

    #[derive(Debug, Clone)]
    enum Deed {
        Put {
            topic: TopicRow,
            key: u8,
            name: u8,
            value: Option<u8>,
        },
        Read(TopicRow, u8),
        Flush,
        Settle,
        /// The open transaction is lost, and everything in memory with it.
        Crash,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            8 => (1..3i64, 0..6u8, 0..3u8, proptest::option::of(any::<u8>()))
                .prop_map(|(topic, key, name, value)| Deed::Put { topic, key, name, value }),
            2 => (1..3i64, 0..6u8).prop_map(|(topic, key)| Deed::Read(topic, key)),
            3 => Just(Deed::Flush),
            1 => Just(Deed::Settle),
            1 => Just(Deed::Crash),
        ]
    }

    type Model = BTreeMap<(TopicRow, String), BTreeMap<String, Bytes>>;

    proptest! {
        #[test]
        fn keys_are_as_a_plain_map_says_across_flushes_folds_and_crashes(
            deeds in proptest::collection::vec(deed(), 1..120),
            journal_max in 0..200usize,
            memory_max in 0..3_000usize,
        ) {
            let conn = Connection::open_in_memory().unwrap();
            conn.execute_batch(schema::TABLES).unwrap();
            let fresh = || {
                let mut keys = Keys::bounded(journal_max, memory_max);
                keys.load(&conn, |_| true).unwrap();
                keys
            };
            let mut keys = fresh();
            let (mut now, mut durable) = (Model::new(), Model::new());
            let mut in_tx = false;
            for deed in deeds {
                match deed {
                    Deed::Put { topic, key, name, value } => {
                        if !std::mem::replace(&mut in_tx, true) {
                            conn.execute_batch("BEGIN").unwrap();
                        }
                        let (key, name) = (format!("k{key}"), format!("n{name}"));
                        let value = value.map(|v| Bytes::from(vec![v; usize::from(v % 9)]));
                        let put = StatePut { key: key.clone(), name: name.clone(), value: value.clone() };
                        keys.put(&conn, topic, &put).unwrap();
                        let values = now.entry((topic, key)).or_default();
                        match value {
                            Some(value) => values.insert(name, value),
                            None => values.remove(&name),
                        };
                    }
                    Deed::Read(topic, key) => {
                        let key = format!("k{key}");
                        let expected = now.get(&(topic, key.clone())).cloned().unwrap_or_default();
                        prop_assert_eq!(keys.values(&conn, topic, &key).unwrap(), expected);
                    }
                    Deed::Flush | Deed::Settle => {
                        if !std::mem::take(&mut in_tx) {
                            conn.execute_batch("BEGIN").unwrap();
                        }
                        if matches!(deed, Deed::Settle) {
                            keys.settle(&conn).unwrap();
                        }
                        keys.flush(&conn).unwrap();
                        conn.execute_batch("COMMIT").unwrap();
                        durable = now.clone();
                        prop_assert!(keys.journal_bytes <= journal_max);
                        prop_assert!(keys.bytes <= memory_max && keys.behind <= memory_max / 2);
                        if matches!(deed, Deed::Settle) {
                            let stored: i64 = conn.query_row("SELECT count(*) FROM state", [], |r| r.get(0)).unwrap();
                            prop_assert_eq!(un(stored), durable.values().map(|v| v.len() as u64).sum::<u64>());
                        }
                    }
                    Deed::Crash => {
                        if std::mem::take(&mut in_tx) {
                            conn.execute_batch("ROLLBACK").unwrap();
                        }
                        keys = fresh();
                        now = durable.clone();
                    }
                }
            }
            for ((topic, key), expected) in &now {
                prop_assert_eq!(&keys.values(&conn, *topic, key).unwrap(), expected);
            }
            for topic in 1..3 {
                let mut size = StateSize::default();
                for (_, (key, values)) in now.iter().map(|((t, key), values)| (*t, (key, values))).filter(|(t, _)| *t == topic) {
                    size.turn(StateSize::default(), StateSize::of(key, values));
                }
                prop_assert_eq!(keys.size(topic), size);
                prop_assert_eq!(keys.count(&conn, topic).unwrap(), size, "as a store without a count is read");
            }
            let counted: usize = keys
                .topics
                .values()
                .flatten()
                .map(|(name, key)| key.weight(name))
                .sum();
            prop_assert_eq!(keys.bytes, counted);
            let all = || keys.topics.values().flatten();
            let behind: usize = all().filter(|(_, key)| key.behind).map(|(name, key)| key.weight(name)).sum();
            prop_assert_eq!(keys.behind, behind);
            let listed = keys.journal.iter().flat_map(|segment| &segment.keys).chain(&keys.open.keys).count();
            prop_assert_eq!(listed, all().filter(|(_, key)| key.behind).count(), "each that is behind, once");
        }
    }
}
