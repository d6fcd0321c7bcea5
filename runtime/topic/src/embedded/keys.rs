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
use crate::{Error, StatePut, key_group};

/// Bytes that a key in memory costs beside its own.
const ENTRY_OVERHEAD: usize = 200;

/// A row of a topic.
type TopicRow = i64;

#[derive(Debug, Default)]
struct Key {
    values: BTreeMap<String, Bytes>,
    /// Names whose rows are behind.
    behind: BTreeSet<String>,
    /// The journal row that holds the oldest of these writes.
    since: u64,
}

impl Key {
    fn bytes(&self) -> usize {
        self.values.iter().map(|(name, value)| name.len() + value.len()).sum()
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
        Ok(())
    }

    /// A key's values, from memory or its rows.
    pub fn values(&mut self, conn: &Connection, topic: TopicRow, key: &str) -> Result<&BTreeMap<String, Bytes>, Fault> {
        self.key(conn, topic, key).map(|found| &found.values)
    }

    fn key(&mut self, conn: &Connection, topic: TopicRow, key: &str) -> Result<&mut Key, Fault> {
        // Looked up twice, because a borrow that is returned early lasts for the whole function.
        let known = self.topics.get(&topic).is_some_and(|keys| keys.contains_key(key));
        if !known {
            let found = Key {
                values: rows(conn, topic, key)?,
                ..Key::default()
            };
            self.bytes += key.len() + found.bytes() + ENTRY_OVERHEAD;
            self.topics.entry(topic).or_default().insert(key.to_owned(), found);
        }
        let keys = self.topics.get_mut(&topic).expect("just made");
        Ok(keys.get_mut(key).expect("just made"))
    }

    /// Applies a write of the open transaction.
    pub fn put(&mut self, conn: &Connection, topic: TopicRow, put: &StatePut) -> Result<(), Fault> {
        self.key(conn, topic, &put.key)?;
        let write = record::StateWrite {
            topic,
            key: put.key.clone(),
            name: put.name.clone(),
            value: put.value.clone(),
        };
        self.apply(self.next, &write);
        self.open.push(write);
        Ok(())
    }

    /// The key must be in memory.
    fn apply(&mut self, segment: u64, write: &record::StateWrite) {
        let keys = self.topics.get_mut(&write.topic).expect("it is in memory");
        let key = keys.get_mut(&write.key).expect("it is in memory");
        if key.behind.is_empty() {
            key.since = segment;
        }
        if !key.behind.contains(&write.name) {
            key.behind.insert(write.name.clone());
        }
        let name = write.name.len();
        match &write.value {
            Some(value) => {
                self.bytes += name + value.len();
                // Replaced in place: the name is there almost always.
                let former = match key.values.get_mut(&write.name) {
                    Some(slot) => Some(std::mem::replace(slot, value.clone())),
                    None => key.values.insert(write.name.clone(), value.clone()),
                };
                self.bytes -= former.map_or(0, |former| name + former.len());
            }
            None => self.bytes -= key.values.remove(&write.name).map_or(0, |former| name + former.len()),
        }
    }

    /// At the flush: one row for all writes of the transaction, and room in journal and memory.
    pub fn flush(&mut self, conn: &Connection) -> Result<(), Fault> {
        self.write_journal(conn)?;
        self.fold(conn, self.journal_max)?;
        if self.bytes > self.memory_max {
            self.drop_clean();
            if self.bytes > self.memory_max {
                self.fold(conn, 0)?;
                self.drop_clean();
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
                if !key.behind.is_empty() && key.since <= segment.id {
                    write_rows(conn, topic, &name, key)?;
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

    fn drop_clean(&mut self) {
        let mut bytes = 0;
        for keys in self.topics.values_mut() {
            keys.retain(|name, key| {
                let stays = !key.behind.is_empty();
                if stays {
                    bytes += name.len() + key.bytes() + ENTRY_OVERHEAD;
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
            self.bytes -= name.len() + key.bytes() + ENTRY_OVERHEAD;
        }
    }
}

/// One key's rows.
fn rows(conn: &Connection, topic: TopicRow, key: &str) -> Result<BTreeMap<String, Bytes>, Fault> {
    let mut query = conn.prepare_cached("SELECT name, value FROM state WHERE topic = ?1 AND grp = ?2 AND key = ?3")?;
    let mut rows = query.query(params![topic, key_group(key), key])?;
    let mut out = BTreeMap::new();
    while let Some(r) = rows.next()? {
        let value = record::unseal(Kind::State, Bytes::from(r.get::<_, Vec<u8>>(1)?)).map_err(|e| match e {
            Error::Corrupt(what) => Error::Corrupt(format!("key `{key}`: {what}")),
            other => other,
        })?;
        out.insert(r.get(0)?, value);
    }
    Ok(out)
}

fn write_rows(conn: &Connection, topic: TopicRow, name: &str, key: &mut Key) -> Result<(), Fault> {
    let group = key_group(name);
    for behind in std::mem::take(&mut key.behind) {
        match key.values.get(&behind) {
            Some(value) => conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO state (topic, grp, key, name, value) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![topic, group, name, behind, record::seal(Kind::State, value)])?,
            None => conn
                .prepare_cached("DELETE FROM state WHERE topic = ?1 AND grp = ?2 AND key = ?3 AND name = ?4")?
                .execute(params![topic, group, name, behind])?,
        };
    }
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
                        prop_assert_eq!(keys.values(&conn, topic, &key).unwrap(), &expected);
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
                prop_assert_eq!(keys.values(&conn, *topic, key).unwrap(), expected);
            }
            let counted: usize = keys
                .topics
                .values()
                .flatten()
                .map(|(name, key)| name.len() + key.bytes() + ENTRY_OVERHEAD)
                .sum();
            prop_assert_eq!(keys.bytes, counted);
        }
    }
}
