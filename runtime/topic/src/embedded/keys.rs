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
}

#[derive(Debug)]
struct Named {
    name: String,
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
            .filter_map(|named| Some((named.name.clone(), named.value.clone()?)))
            .collect()
    }
}

/// A journal row.
#[derive(Debug)]
struct Segment {
    id: u64,
    bytes: usize,
    keys: Vec<(TopicRow, String)>,
}

#[derive(Debug)]
pub(super) struct Keys {
    journal_max: usize,
    memory_max: usize,
    topics: HashMap<TopicRow, HashMap<String, Key>>,
    /// What is held in memory, about.
    bytes: usize,
    journal: VecDeque<Segment>,
    journal_bytes: usize,
    /// The writes of the open transaction, and whose they are.
    open: Vec<record::StateWrite>,
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
            journal: VecDeque::new(),
            journal_bytes: 0,
            open: Vec::new(),
            next: 0,
            sizes: HashMap::new(),
            resized: BTreeSet::new(),
        }
    }

    /// Rebuilds what the journal holds. Writes nothing, so that it can be done on a full disk.
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
                self.key(conn, write.topic, &write.key)?;
                keys.push((write.topic, write.key.clone()));
                self.apply(id, &write);
            }
            self.journal.push_back(Segment { id, bytes, keys });
            self.journal_bytes += bytes;
            self.next = id + 1;
        }
        self.load_sizes(conn, lives)
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
    fn count(&self, conn: &Connection, topic: TopicRow) -> Result<StateSize, Fault> {
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
        for (name, key) in self.topics.get(&topic).into_iter().flatten() {
            let stored = Key {
                values: rows(conn, topic, name)?,
                ..Key::default()
            };
            size.turn(stored.size(name), key.size(name));
        }
        Ok(size)
    }

    /// Of all keys of a topic, as applied.
    pub fn size(&self, topic: TopicRow) -> StateSize {
        self.sizes.get(&topic).copied().unwrap_or_default()
    }

    /// A key's values, from memory or its rows.
    pub fn values(&mut self, conn: &Connection, topic: TopicRow, key: &str) -> Result<BTreeMap<String, Bytes>, Fault> {
        self.key(conn, topic, key).map(|found| found.to_map())
    }

    fn key(&mut self, conn: &Connection, topic: TopicRow, key: &str) -> Result<&mut Key, Fault> {
        // Looked up twice, because a borrow that is returned early lasts for the whole function.
        let known = self.topics.get(&topic).is_some_and(|keys| keys.contains_key(key));
        if !known {
            let found = Key {
                values: rows(conn, topic, key)?,
                ..Key::default()
            };
            self.bytes += found.weight(key);
            self.topics.entry(topic).or_default().insert(key.to_owned(), found);
        }
        let keys = self.topics.get_mut(&topic).expect("just made");
        let found = keys.get_mut(key).expect("just made");
        found.used = true;
        Ok(found)
    }

    /// Applies a write of the open transaction.
    pub fn put(&mut self, conn: &Connection, topic: TopicRow, put: &StatePut) -> Result<(), Fault> {
        let before = self.key(conn, topic, &put.key)?.size(&put.key);
        let write = record::StateWrite {
            topic,
            key: put.key.clone(),
            name: put.name.clone(),
            value: put.value.clone(),
        };
        let after = self.apply(self.next, &write);
        self.open.push(write);
        if before != after {
            self.sizes.entry(topic).or_default().turn(before, after);
            self.resized.insert(topic);
        }
        Ok(())
    }

    /// The key must be in memory. Returns what it counts for now.
    fn apply(&mut self, segment: u64, write: &record::StateWrite) -> StateSize {
        let keys = self.topics.get_mut(&write.topic).expect("it is in memory");
        let key = keys.get_mut(&write.key).expect("it is in memory");
        if !key.behind {
            key.behind = true;
            key.since = segment;
        }
        let value = write.value.clone();
        match key
            .values
            .binary_search_by(|named| named.name.as_str().cmp(&write.name))
        {
            Ok(at) => {
                let named = &mut key.values[at];
                self.bytes -= named.weight();
                named.value = value;
                named.behind = true;
                self.bytes += named.weight();
            }
            Err(at) => {
                let named = Named {
                    name: write.name.clone(),
                    value,
                    behind: true,
                };
                self.bytes += named.weight();
                key.values.reserve_exact(1);
                key.values.insert(at, named);
            }
        }
        key.size(&write.key)
    }

    /// At the flush: one row for all writes of the transaction, and room in journal and memory.
    pub fn flush(&mut self, conn: &Connection) -> Result<(), Fault> {
        self.write_journal(conn)?;
        self.fold(conn, self.journal_max)?;
        if self.bytes > self.memory_max {
            self.drop_clean(|key| key.used);
            // So much that few can be dropped soon again: what is used most is read back at once.
            if self.bytes > self.memory_max - self.memory_max / 4 {
                self.drop_clean(|_| false);
            }
            if self.bytes > self.memory_max {
                self.fold(conn, 0)?;
                self.drop_clean(|_| false);
            }
        }
        Ok(())
    }

    /// Brings every row up to date.
    pub fn settle(&mut self, conn: &Connection) -> Result<(), Fault> {
        self.write_journal(conn)?;
        self.fold(conn, 0)
    }

    fn write_journal(&mut self, conn: &Connection) -> Result<(), Fault> {
        if !self.open.is_empty() {
            let writes = std::mem::take(&mut self.open);
            let body = record::encode_journal(&writes);
            conn.prepare_cached("INSERT INTO journal (id, body) VALUES (?1, ?2)")?
                .execute(params![db(self.next), body])?;
            let keys = writes.into_iter().map(|write| (write.topic, write.key)).collect();
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

    /// Brings rows up to date, oldest journal rows first, until at most `bytes` of journal are left.
    fn fold(&mut self, conn: &Connection, bytes: usize) -> Result<(), Fault> {
        let mut last = None;
        while self.journal_bytes > bytes {
            let Some(segment) = self.journal.pop_front() else { break };
            self.journal_bytes -= segment.bytes;
            last = Some(segment.id);
            for (topic, name) in segment.keys {
                let Some(key) = self.topics.get_mut(&topic).and_then(|keys| keys.get_mut(&name)) else {
                    continue;
                };
                if key.behind && key.since <= segment.id {
                    self.bytes -= key.weight(&name);
                    write_rows(conn, topic, &name, key)?;
                    self.bytes += key.weight(&name);
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
        !self.journal.is_empty() || !self.open.is_empty()
    }

    /// Drops what the rows have too, but for what `stays`.
    fn drop_clean(&mut self, stays: impl Fn(&Key) -> bool) {
        let mut bytes = 0;
        for keys in self.topics.values_mut() {
            keys.retain(|name, key| {
                let stays = key.behind || stays(key);
                if stays {
                    bytes += key.weight(name);
                    key.used = false;
                }
                stays
            });
        }
        self.topics.retain(|_, keys| !keys.is_empty());
        self.bytes = bytes;
    }

    /// A topic goes: its rows go by themselves, and nothing of it is to be written again.
    pub fn forget(&mut self, topic: TopicRow) {
        for (name, key) in self.topics.remove(&topic).into_iter().flatten() {
            self.bytes -= key.weight(&name);
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
            name: r.get(0)?,
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
                        prop_assert!(keys.bytes <= memory_max || keys.journal_bytes > 0);
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
        }
    }
}
