//! How a repeated call is recognised: idempotency keys with their stored replies, and sessions of streaming submits.

use bytes::Bytes;
use rusqlite::{OptionalExtension, params};
use skep_model::id::{Digest, RequestId, Uid};
use skep_model::limits;
use skep_model::message::Reply;
use skep_model::name::Subject;
use skep_model::scope::SwarmId;

use super::store::{Fault, Store, db, un};
use crate::{Accepted, Refused, record};

/// An idempotency key as a call brings it.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub subject: Subject,
    pub key: String,
    pub fingerprint: Digest,
    pub request: Option<RequestId>,
    pub expires_ms: u64,
}

/// What is known of a key: nothing, or the answer to give.
pub(super) fn look(store: &mut Store, swarm: &SwarmId, key: &Key) -> Result<Option<Result<Accepted, Refused>>, Fault> {
    let now = store.now();
    collect(store, now)?;
    let Some(life) = store.lives.get(swarm) else {
        return Ok(None);
    };
    let row = life.row;
    let found = store
        .conn
        .prepare_cached(
            "SELECT fingerprint, request, expires, reply FROM dedup WHERE swarm = ?1 AND subject = ?2 AND key = ?3",
        )?
        .query_row(params![row, key.subject.as_str(), key.key], |r| {
            let fingerprint: [u8; 32] = r.get(0)?;
            let request: Option<[u8; 16]> = r.get(1)?;
            Ok((
                fingerprint,
                request,
                r.get::<_, i64>(2)?,
                r.get::<_, Option<Vec<u8>>>(3)?,
            ))
        })
        .optional()?;
    let Some((fingerprint, request, expires, reply)) = found else {
        let window = life.windows.get(&key.subject).copied().unwrap_or_default();
        if window.keys >= limits::DEDUP_KEYS_MAX || window.reply_bytes >= limits::REPLY_BYTES_MAX {
            return Ok(Some(Err(Refused::TooManyKeys {
                subject: key.subject.clone(),
            })));
        }
        return Ok(None);
    };
    if un(expires) <= now {
        forget(store, row, &key.subject, &key.key, reply.map_or(0, |r| r.len() as u64))?;
        return Ok(None);
    }
    if fingerprint != key.fingerprint.0 {
        return Ok(Some(Err(Refused::KeyReused)));
    }
    Ok(Some(Ok(Accepted::Duplicate {
        request: request.map(RequestId),
        reply: reply.map(|r| record::decode_reply(Bytes::from(r))).transpose()?,
    })))
}

pub(super) fn remember(store: &mut Store, swarm: &SwarmId, key: &Key) -> Result<(), Fault> {
    store.begin()?;
    let life = store.life(swarm)?;
    life.windows.entry(key.subject.clone()).or_default().keys += 1;
    let row = life.row;
    store
        .conn
        .prepare_cached(
            "INSERT INTO dedup (swarm, subject, key, fingerprint, request, expires) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            row,
            key.subject.as_str(),
            key.key,
            key.fingerprint.0,
            key.request.map(|r| r.0),
            db(key.expires_ms)
        ])?;
    store.next_expiry = store.next_expiry.min(key.expires_ms);
    Ok(())
}

/// Stores the reply beside its key, if it has one. The first reply stays.
pub(super) fn store_reply(store: &mut Store, swarm: &SwarmId, reply: &Reply) -> Result<(), Fault> {
    let Some(life) = store.lives.get_mut(swarm) else {
        return Ok(());
    };
    if life.windows.values().all(|w| w.keys == 0) {
        return Ok(());
    }
    let row = life.row;
    let found: Option<(String, String)> = store
        .conn
        .prepare_cached("SELECT subject, key FROM dedup WHERE swarm = ?1 AND request = ?2 AND reply IS NULL")?
        .query_row(params![row, reply.request.0], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    let Some((subject, key)) = found else { return Ok(()) };
    let body = record::encode_reply(reply);
    store
        .conn
        .prepare_cached("UPDATE dedup SET reply = ?4 WHERE swarm = ?1 AND subject = ?2 AND key = ?3")?
        .execute(params![row, subject, key, body])?;
    if let Ok(subject) = subject.parse::<Subject>() {
        life.windows.entry(subject).or_default().reply_bytes += body.len() as u64;
    }
    store.grew(body.len());
    Ok(())
}

fn forget(store: &mut Store, row: i64, subject: &Subject, key: &str, reply_bytes: u64) -> Result<(), Fault> {
    store.begin()?;
    store
        .conn
        .prepare_cached("DELETE FROM dedup WHERE swarm = ?1 AND subject = ?2 AND key = ?3")?
        .execute(params![row, subject.as_str(), key])?;
    if let Some(life) = store.lives.values_mut().find(|l| l.row == row)
        && let Some(window) = life.windows.get_mut(subject)
    {
        window.keys -= 1;
        window.reply_bytes = window.reply_bytes.saturating_sub(reply_bytes);
        if window.keys == 0 {
            life.windows.remove(subject);
        }
    }
    Ok(())
}

/// Deletes some expired keys: whoever writes one clears up for those before.
fn collect(store: &mut Store, now: u64) -> Result<(), Fault> {
    if store.next_expiry > now {
        return Ok(());
    }
    let expired: Vec<(i64, String, String, i64)> = store
        .conn
        .prepare_cached(
            "SELECT swarm, subject, key, coalesce(length(reply), 0) FROM dedup WHERE expires <= ?1 ORDER BY expires LIMIT ?2",
        )?
        .query_map(params![db(now), db(limits::EXPIRED_ROWS_MAX as u64)], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))
        })?
        .collect::<Result<_, _>>()?;
    for (row, subject, key, bytes) in expired {
        if let Ok(subject) = subject.parse() {
            forget(store, row, &subject, &key, un(bytes))?;
        }
    }
    let next: Option<i64> = store
        .conn
        .prepare_cached("SELECT min(expires) FROM dedup")?
        .query_row([], |r| r.get(0))?;
    store.next_expiry = next.map_or(u64::MAX, un);
    Ok(())
}

/// The high-water mark of a session; 0 when it is new or expired.
pub(super) fn high(store: &Store, swarm: &SwarmId, id: Uid) -> Result<u64, Fault> {
    let Some(life) = store.lives.get(swarm) else {
        return Ok(0);
    };
    let found: Option<(i64, i64)> = store
        .conn
        .prepare_cached("SELECT high, expires FROM session WHERE swarm = ?1 AND id = ?2")?
        .query_row(params![life.row, id.0], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    Ok(found.map_or(
        0,
        |(high, expires)| if un(expires) > store.now() { un(high) } else { 0 },
    ))
}

pub(super) fn set_high(store: &mut Store, swarm: &SwarmId, id: Uid, high: u64, expires_ms: u64) -> Result<(), Fault> {
    store.begin()?;
    let now = store.now();
    let row = store.life(swarm)?.row;
    let updated = store
        .conn
        .prepare_cached("UPDATE session SET high = ?3, expires = ?4 WHERE swarm = ?1 AND id = ?2")?
        .execute(params![row, id.0, db(high), db(expires_ms)])?;
    if updated > 0 {
        return Ok(());
    }
    let expired = store
        .conn
        .prepare_cached(
            "DELETE FROM session WHERE swarm = ?1 AND id IN
             (SELECT id FROM session WHERE swarm = ?1 AND expires <= ?2 ORDER BY expires LIMIT ?3)",
        )?
        .execute(params![row, db(now), db(limits::EXPIRED_ROWS_MAX as u64)])? as u64;
    let sessions = store.life(swarm)?.sessions.saturating_sub(expired);
    let mut removed = 0;
    if sessions >= limits::SESSIONS_MAX {
        removed = store
            .conn
            .prepare_cached(
                "DELETE FROM session WHERE swarm = ?1 AND id IN
                 (SELECT id FROM session WHERE swarm = ?1 ORDER BY expires LIMIT 1)",
            )?
            .execute([row])? as u64;
    }
    store
        .conn
        .prepare_cached("INSERT INTO session (swarm, id, high, expires) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![row, id.0, db(high), db(expires_ms)])?;
    store.life(swarm)?.sessions = sessions - removed + 1;
    Ok(())
}
