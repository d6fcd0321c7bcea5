//! One consistent read of everything that a batch needs. It sees what was appended and not flushed yet.

use std::collections::HashSet;

use bytes::Bytes;
use rusqlite::params;

use super::lease::holds;
use super::store::{Fault, Part, Store, db, un};
use super::writer::Answer;
use crate::guard::Guard;
use crate::record::{self, message_bytes};
use crate::{Cursor, Error, Fetched, Lease, Parked, TimerDue, Unread, Want};

pub(super) fn fetch(store: &mut Store, lease: &Lease, want: Want) -> Result<Answer<Fetched>, Fault> {
    holds(store, &lease.partition, lease.token)?;
    let now = store.now();
    let id = lease.partition.topic();
    let topic = &store.topics[id];
    let part = &topic.parts[usize::from(lease.partition.index())];
    if part.at.last != want.base || part.at.cursor != want.from {
        return Err(Error::Stale.into());
    }
    if !topic.has(lease.partition.index()) {
        return Err(Error::Gone.into());
    }
    let mut fetched = Fetched {
        now_ms: now,
        ..Fetched::default()
    };
    let seals = store.guards.on(Guard::Seal);
    if seals && part.at.seal.is_some_and(|seal| part.at.cursor.entry >= seal) {
        fetched.at_seal = true;
        return Answer::now(fetched);
    }
    if seals && part.at.seal.is_none() && topic.rescaling() {
        return Answer::now(fetched);
    }
    let until = part.at.seal.filter(|_| seals).unwrap_or(u64::MAX);
    fetched.messages = unread(store, part, want, until)?;
    if let Some(row) = part.row {
        if part.parked > 0 {
            fetched.retries = retries(store, row, now, want)?;
            if store.guards.on(Guard::Hold) {
                fetched.held = held(store, row, &fetched.messages)?;
            }
        }
        if part.timers > 0 {
            fetched.timers = timers(store, row, now, want.messages)?;
            if part.timers > want.timers_max {
                fetched.early = early(store, row, now, part.timers - want.timers_max, want.messages)?;
            }
        }
        if part.parked > 0 || part.timers > 0 {
            fetched.next_due_ms = next_due(store, row, now)?;
        }
    }
    if want.state {
        let row = topic.row;
        let (keys, conn) = (&mut store.keys, &store.conn);
        fetched.state_size = keys.size(row);
        fetched.load_state(want.state_bytes, |key| keys.values(conn, row, key))?;
    }
    Answer::now(fetched)
}

fn unread(store: &Store, part: &Part, want: Want, until: u64) -> Result<Vec<Unread>, Fault> {
    let mut out: Vec<Unread> = Vec::new();
    let mut bytes = 0;
    let Some(row) = part.row else { return Ok(out) };
    for frame in part.frames.iter().take_while(|frame| frame.entry < until) {
        let skip = if frame.entry == want.from.entry {
            want.from.index
        } else {
            0
        };
        let messages = record::decode_frame(Store::body(&store.conn, row, frame)?)?;
        for (i, message) in (0u32..).zip(messages).skip(skip as usize) {
            bytes += message_bytes(&message);
            if out.len() >= want.messages as usize || (bytes > want.bytes && !out.is_empty()) {
                return Ok(out);
            }
            let after = if i + 1 == frame.messages {
                Cursor {
                    entry: frame.entry + 1,
                    index: 0,
                }
            } else {
                Cursor {
                    entry: frame.entry,
                    index: i + 1,
                }
            };
            out.push(Unread {
                message,
                after,
                entry: frame.entry,
                entry_uid: frame.uid,
            });
        }
        if out.len() >= want.messages as usize {
            break;
        }
    }
    Ok(out)
}

fn retries(store: &Store, row: i64, now: u64, want: Want) -> Result<Vec<Parked>, Fault> {
    let mut query = store.conn.prepare_cached(
        "SELECT body, bytes FROM parked WHERE part = ?1 AND head = 1 AND due <= ?2 ORDER BY due, ord LIMIT ?3",
    )?;
    let mut rows = query.query(params![row, db(now), want.messages])?;
    let (mut out, mut bytes) = (Vec::new(), 0);
    while let Some(r) = rows.next()? {
        bytes += un(r.get(1)?);
        if bytes > want.bytes && !out.is_empty() {
            break;
        }
        out.push(record::decode_parked(Bytes::from(r.get::<_, Vec<u8>>(0)?))?);
    }
    Ok(out)
}

fn held(store: &Store, row: i64, messages: &[Unread]) -> Result<HashSet<String>, Fault> {
    let mut seen = HashSet::new();
    let mut out = HashSet::new();
    let mut query = store
        .conn
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM parked WHERE part = ?1 AND lane = ?2)")?;
    for key in messages.iter().filter_map(|u| u.message.key.as_deref()) {
        if seen.insert(key) && query.query_row(params![row, key], |r| r.get::<_, bool>(0))? {
            out.insert(key.to_owned());
        }
    }
    Ok(out)
}

fn timers(store: &Store, row: i64, now: u64, limit: u32) -> Result<Vec<TimerDue>, Fault> {
    let mut query = store.conn.prepare_cached(
        "SELECT body FROM timer t WHERE part = ?1 AND at <= ?2
         AND NOT EXISTS (SELECT 1 FROM parked p WHERE p.part = t.part AND p.lane = t.key)
         ORDER BY at, key, name LIMIT ?3",
    )?;
    let mut rows = query.query(params![row, db(now), limit])?;
    let mut out = Vec::new();
    while let Some(r) = rows.next()? {
        out.push(record::decode_timer(Bytes::from(r.get::<_, Vec<u8>>(0)?))?);
    }
    Ok(out)
}

/// The first timers to come, where there are `over` too many, those included that are due.
fn early(store: &Store, row: i64, now: u64, over: u64, limit: u32) -> Result<Vec<TimerDue>, Fault> {
    let due: i64 = store
        .conn
        .prepare_cached("SELECT count(*) FROM timer WHERE part = ?1 AND at <= ?2")?
        .query_row(params![row, db(now)], |r| r.get(0))?;
    let over = over.saturating_sub(un(due)).min(u64::from(limit));
    let mut query = store
        .conn
        .prepare_cached("SELECT body FROM timer WHERE part = ?1 AND at > ?2 ORDER BY at, key, name LIMIT ?3")?;
    let mut rows = query.query(params![row, db(now), db(over)])?;
    let mut out = Vec::new();
    while let Some(r) = rows.next()? {
        out.push(record::decode_timer(Bytes::from(r.get::<_, Vec<u8>>(0)?))?);
    }
    Ok(out)
}

fn next_due(store: &Store, row: i64, now: u64) -> Result<Option<u64>, Fault> {
    let next: Option<i64> = store
        .conn
        .prepare_cached(
            "SELECT min(due) FROM (
                SELECT min(due) AS due FROM parked WHERE part = ?1 AND head = 1 AND due > ?2
                UNION ALL SELECT min(at) FROM timer WHERE part = ?1 AND at > ?2)",
        )?
        .query_row(params![row, db(now)], |r| r.get(0))?;
    Ok(next.map(un))
}
