//! A life as pieces: read by a connection of its own, in one read transaction, after a flush, so that nobody waits for a backup.
//! What is written meanwhile gathers in the write-ahead log, which cannot be folded past what the reader sees.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use skep_model::id::{Digest, RequestId, Uid};
use skep_model::scope::SwarmId;
use tokio::sync::mpsc;

use super::load::named;
use super::schema::ENTRY_BITS;
use super::store::{Fault, frame_id, un};
use crate::Error;
use crate::record::{self, Kind, Layout, Piece};

/// A moment of the store.
pub(super) struct Snapshot {
    conn: Connection,
    swarm: SwarmId,
}

/// What the journal holds of one topic's state: the newest of each name; `None` is deleted.
type Newer = BTreeMap<(String, String), Option<Bytes>>;

/// Where pieces go. `Err`: nobody wants them any more.
struct Out(mpsc::Sender<Result<Piece, Error>>);

enum End {
    Unwanted,
    Fault(Fault),
}

impl<E: Into<Fault>> From<E> for End {
    fn from(e: E) -> Self {
        Self::Fault(e.into())
    }
}

impl Out {
    fn put(&self, piece: Piece) -> Result<(), End> {
        self.0.blocking_send(Ok(piece)).map_err(|_| End::Unwanted)
    }
}

impl Snapshot {
    fn open(dir: &Path, swarm: SwarmId) -> Result<Self, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(dir.join("skep.db"), flags)?;
        // The moment is that of its first read.
        conn.execute_batch("BEGIN")?;
        Ok(Self { conn, swarm })
    }

    /// What was durable at some moment after this call. Blocks.
    pub fn read(dir: &Path, swarm: SwarmId, to: mpsc::Sender<Result<Piece, Error>>) {
        let out = Out(to);
        let read = Self::open(dir, swarm).map_err(End::from);
        if let Err(End::Fault(fault)) = read.and_then(|snapshot| snapshot.life(&out)) {
            let error = match (fault.damage(), fault) {
                (Some(damage), _) | (None, Fault::Refused(damage)) => damage,
                (None, Fault::Broken(e)) => Error::Unavailable(e.to_string()),
            };
            let _ = out.0.blocking_send(Err(error));
        }
    }

    fn life(&self, out: &Out) -> Result<(), End> {
        let swarm = &self.swarm;
        let names = params![swarm.tenant().as_str(), swarm.name().as_str(), swarm.incarnation().0];
        let row = |table: &str| -> Result<Option<i64>, rusqlite::Error> {
            let query = format!("SELECT id FROM {table} WHERE tenant = ?1 AND name = ?2 AND incarnation = ?3");
            self.conn.query_row(&query, names, |r| r.get(0)).optional()
        };
        if row("gone")?.is_some() {
            return Err(Error::Gone.into());
        }
        let Some(row) = row("swarm")? else { return Ok(()) };
        let mut query = self
            .conn
            .prepare("SELECT id, stage, layout FROM topic WHERE swarm = ?1 AND stage NOT LIKE '%.gone'")?;
        let mut rows = query.query([row])?;
        while let Some(r) = rows.next()? {
            let layout: Option<Vec<u8>> = r.get(2)?;
            let layout = match layout {
                Some(layout) => record::decode_layout(layout.into())?,
                None => Layout::default(),
            };
            self.topic(r.get(0)?, &r.get::<_, String>(1)?, layout, out)?;
        }
        self.calls(row, out)?;
        let mut query = self.conn.prepare("SELECT stage, born FROM removed WHERE swarm = ?1")?;
        let mut rows = query.query([row])?;
        while let Some(r) = rows.next()? {
            out.put(Piece::Removed {
                stage: named("removed stage", &r.get::<_, String>(0)?)?,
                born: un(r.get(1)?),
            })?;
        }
        Ok(())
    }

    fn topic(&self, row: i64, name: &str, layout: Layout, out: &Out) -> Result<(), End> {
        let stage: skep_model::name::StageName = named("topic", name)?;
        out.put(Piece::Topic {
            stage: stage.clone(),
            layout,
        })?;
        let mut query = self
            .conn
            .prepare_cached("SELECT id, idx, body FROM part WHERE topic = ?1 ORDER BY idx")?;
        let mut rows = query.query([row])?;
        while let Some(r) = rows.next()? {
            let at = record::decode_partition(Bytes::from(r.get::<_, Vec<u8>>(2)?))?;
            self.partition(r.get(0)?, &stage, r.get(1)?, &at, out)?;
        }
        let mut query = self
            .conn
            .prepare_cached("SELECT key, name, value FROM state WHERE topic = ?1 ORDER BY grp, key, name")?;
        let mut rows = query.query([row])?;
        let newer = self.journal(row)?;
        while let Some(r) = rows.next()? {
            let place = (r.get(0)?, r.get(1)?);
            if newer.contains_key(&place) {
                continue;
            }
            out.put(Piece::State {
                stage: stage.clone(),
                key: place.0,
                name: place.1,
                value: record::unseal(Kind::State, Bytes::from(r.get::<_, Vec<u8>>(2)?))?,
            })?;
        }
        for ((key, name), value) in newer {
            if let Some(value) = value {
                out.put(Piece::State {
                    stage: stage.clone(),
                    key,
                    name,
                    value,
                })?;
            }
        }
        let mut query = self
            .conn
            .prepare_cached("SELECT id, body FROM dead WHERE topic = ?1 ORDER BY id")?;
        let mut rows = query.query([row])?;
        while let Some(r) = rows.next()? {
            out.put(Piece::DeadLetter {
                stage: stage.clone(),
                id: un(r.get(0)?),
                letter: record::decode_dead_letter(Bytes::from(r.get::<_, Vec<u8>>(1)?))?,
            })?;
        }
        Ok(())
    }

    /// As at an open: what follows sets right what came before. The journal's length bounds it.
    fn journal(&self, topic: i64) -> Result<Newer, Fault> {
        let mut query = self.conn.prepare_cached("SELECT body FROM journal ORDER BY id")?;
        let mut rows = query.query([])?;
        let mut newer = Newer::new();
        while let Some(r) = rows.next()? {
            for write in record::decode_journal(Bytes::from(r.get::<_, Vec<u8>>(0)?))? {
                if write.topic == topic {
                    newer.insert((write.key, write.name), write.value);
                }
            }
        }
        Ok(newer)
    }

    fn partition(
        &self,
        row: i64,
        stage: &skep_model::name::StageName,
        index: u16,
        at: &record::Partition,
        out: &Out,
    ) -> Result<(), End> {
        out.put(Piece::Partition {
            stage: stage.clone(),
            index,
            unclean: at.unclean,
            marked: at.marked,
            sealed: at.seal.is_some(),
        })?;
        let mut query = self
            .conn
            .prepare_cached("SELECT id, body FROM frame WHERE id BETWEEN ?1 AND ?2 ORDER BY id")?;
        let mut rows = query.query([frame_id(row, 0), frame_id(row + 1, 0) - 1])?;
        while let Some(r) = rows.next()? {
            let entry = un(r.get::<_, i64>(0)? & ((1 << ENTRY_BITS) - 1));
            let read = if entry == at.cursor.entry { at.cursor.index } else { 0 };
            let messages = record::decode_frame(Bytes::from(r.get::<_, Vec<u8>>(1)?))?;
            out.put(Piece::Messages {
                stage: stage.clone(),
                index,
                behind: at.seal.is_some_and(|seal| entry >= seal),
                messages: messages.into_iter().skip(read as usize).collect(),
            })?;
        }
        let mut query = self
            .conn
            .prepare_cached("SELECT body FROM parked WHERE part = ?1 ORDER BY ord")?;
        let mut rows = query.query([row])?;
        while let Some(r) = rows.next()? {
            out.put(Piece::Parked {
                stage: stage.clone(),
                index,
                parked: record::decode_parked(Bytes::from(r.get::<_, Vec<u8>>(0)?))?,
            })?;
        }
        let mut query = self.conn.prepare_cached("SELECT body FROM timer WHERE part = ?1")?;
        let mut rows = query.query([row])?;
        while let Some(r) = rows.next()? {
            out.put(Piece::Timer {
                stage: stage.clone(),
                index,
                timer: record::decode_timer(Bytes::from(r.get::<_, Vec<u8>>(0)?))?,
            })?;
        }
        Ok(())
    }

    /// How repeated calls are recognised.
    fn calls(&self, row: i64, out: &Out) -> Result<(), End> {
        let mut query = self
            .conn
            .prepare("SELECT subject, key, fingerprint, request, expires, reply FROM dedup WHERE swarm = ?1")?;
        let mut rows = query.query([row])?;
        while let Some(r) = rows.next()? {
            let reply: Option<Vec<u8>> = r.get(5)?;
            out.put(Piece::Key {
                subject: named("idempotency key", &r.get::<_, String>(0)?)?,
                key: r.get(1)?,
                fingerprint: Digest(r.get(2)?),
                request: r.get::<_, Option<[u8; 16]>>(3)?.map(RequestId),
                expires_ms: un(r.get(4)?),
                reply: reply
                    .map(|reply| record::decode_reply(Bytes::from(reply)))
                    .transpose()?,
            })?;
        }
        let mut query = self
            .conn
            .prepare("SELECT id, high, expires FROM session WHERE swarm = ?1")?;
        let mut rows = query.query([row])?;
        while let Some(r) = rows.next()? {
            out.put(Piece::Session {
                id: Uid(r.get(0)?),
                high: un(r.get(1)?),
                expires_ms: un(r.get(2)?),
            })?;
        }
        Ok(())
    }
}
