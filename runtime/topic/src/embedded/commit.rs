//! The one atomic commit: all checks in DELIVERY's order, then all writes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rusqlite::{OptionalExtension, params};
use skep_model::id::{RequestId, Token, Uid};
use skep_model::limits;
use skep_model::message::{Reply, ReplyResult};
use skep_model::scope::{PartitionId, TopicId};

use super::lease::holds;
use super::publish::{Bundle, Filling};
use super::store::{Fault, Held, Store, db, un, write_part};
use super::window;
use super::writer::Answer;
use crate::guard::Guard;
use crate::record::{self, message_bytes};
use crate::{Commit, Committed, Cursor, Error, Parked, Retry, Room, Span, Work};

/// A commit whose outputs are encoded and sorted.
#[derive(Debug)]
pub(super) struct Prepared {
    commit: Arc<Commit>,
    outputs: Vec<Bundle>,
    bytes: u64,
}

impl From<Arc<Commit>> for Prepared {
    fn from(commit: Arc<Commit>) -> Self {
        let mut outputs: Vec<Bundle> = Vec::new();
        let mut bytes = 0;
        for output in &commit.outputs {
            bytes += message_bytes(&output.message);
            let at = match outputs.iter().position(|b| b.to.id == output.to.id) {
                Some(at) => at,
                None => {
                    outputs.push(Bundle::new(Arc::clone(&output.to)));
                    outputs.len() - 1
                }
            };
            outputs[at].push(&output.message);
        }
        for put in &commit.state {
            bytes += (put.key.len() + put.name.len() + put.value.as_ref().map_or(0, Bytes::len)) as u64;
        }
        for reply in &commit.replies {
            if let ReplyResult::Response(body) = &reply.result {
                bytes += body.len() as u64;
            }
        }
        Self { commit, outputs, bytes }
    }
}

pub(super) fn commit(
    store: &mut Store,
    partition: &PartitionId,
    token: Token,
    prepared: Prepared,
) -> Result<Answer<Committed>, Fault> {
    let answer = check(store, partition, token, &prepared);
    match answer {
        Ok(Some(done)) => return Answer::now(done),
        Ok(None) => {}
        Err(fault) => {
            if let Fault::Refused(Error::Full { .. }) = &fault {
                refused(store, partition.topic(), &prepared);
            }
            store.shared.refused.fetch_add(1, Ordering::Relaxed);
            return Err(fault);
        }
    }
    apply(store, partition, token, prepared)?;
    store.shared.commits.fetch_add(1, Ordering::Relaxed);
    Answer::now(Committed::Ok)
}

fn check(
    store: &Store,
    partition: &PartitionId,
    token: Token,
    prepared: &Prepared,
) -> Result<Option<Committed>, Fault> {
    let commit = &prepared.commit;
    let id = partition.topic();
    match holds(store, partition, token) {
        Err(Error::Fenced) if !store.guards.on(Guard::Token) => {}
        other => other?,
    }
    let Some(topic) = store.topics.get(id) else {
        return Err(Error::Fenced.into());
    };
    let part = topic.parts.get(usize::from(partition.index())).ok_or(Error::Fenced)?;
    if part.at.last == commit.id {
        return Ok(Some(Committed::Done));
    }
    if store.guards.on(Guard::Base) && part.at.last != commit.base {
        return Err(Error::Stale.into());
    }
    if store.guards.on(Guard::Seq) && part.at.seq != commit.seq {
        return Err(Error::Stale.into());
    }
    if let Some(span) = &commit.span {
        if store.guards.on(Guard::Cursor) && part.at.cursor != span.from {
            return Err(Error::Stale.into());
        }
        if !consumable(part, span, store.guards.on(Guard::EntryUid)) {
            return Err(Error::InputGone.into());
        }
    }
    let now = store.now();
    let row = part.row.unwrap_or(-1);
    for timer in &commit.timers {
        let found: Option<(i64, Vec<u8>)> = store
            .conn
            .prepare_cached("SELECT at, body FROM timer WHERE part = ?1 AND key = ?2 AND name = ?3")?
            .query_row(params![row, timer.key, timer.name], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?;
        let there = match found {
            Some((at, body)) if un(at) <= now => record::decode_timer(Bytes::from(body))?.uid == timer.uid,
            _ => false,
        };
        if !there && store.guards.on(Guard::TimerUid) {
            return Err(Error::InputGone.into());
        }
    }
    for retry in &commit.retries {
        let there = head(store, row, &retry.lane)?.is_some_and(|h| h.uid == retry.uid && h.due <= now);
        if !there && store.guards.on(Guard::RetryUid) {
            return Err(Error::InputGone.into());
        }
    }
    if prepared.outputs.iter().any(|bundle| store.is_removed(&bundle.to)) {
        return Err(Error::Stale.into());
    }
    if store.guards.on(Guard::Room) {
        for bundle in &prepared.outputs {
            if store
                .topics
                .get(&bundle.to.id)
                .is_some_and(|topic| topic.full(bundle.to.inbox, 100))
            {
                return Err(Error::Full {
                    stage: bundle.to.id.stage().clone(),
                    what: Room::Inbox,
                }
                .into());
            }
        }
        let bound = commit.own.dead_letters;
        if !commit.dead.is_empty() && (topic.dead >= bound.messages || topic.dead_bytes >= bound.bytes) {
            return Err(Error::Full {
                stage: id.stage().clone(),
                what: Room::DeadLetters,
            }
            .into());
        }
    }
    if prepared.bytes > limits::COMMIT_BYTES_MAX as u64 {
        return Err(Error::TooLarge(format!(
            "the effects of one commit are {} bytes, at most {} may be",
            prepared.bytes,
            limits::COMMIT_BYTES_MAX
        ))
        .into());
    }
    Ok(None)
}

/// Whether the last consumed entry is there, and the span ends in it or right behind it.
fn consumable(part: &super::store::Part, span: &Span, proof: bool) -> bool {
    let at = part.frames.binary_search_by_key(&span.last_entry, |f| f.entry);
    let Some(frame) = at.ok().map(|i| &part.frames[i]) else {
        return false;
    };
    let behind = Cursor {
        entry: frame.entry + 1,
        index: 0,
    };
    let ends = span.to == behind || (span.to.entry == frame.entry && span.to.index < frame.messages);
    ends && span.to > span.from && (!proof || frame.uid == span.last_entry_uid)
}

/// Remembers who was refused, so that the room bell knows whom to ring.
fn refused(store: &mut Store, own: &TopicId, prepared: &Prepared) {
    for bundle in &prepared.outputs {
        if let Some(topic) = store.topics.get_mut(&bundle.to.id)
            && topic.full(bundle.to.inbox, 100)
        {
            topic.refused_inbox = Some(bundle.to.inbox);
        }
    }
    if let Some(topic) = store.topics.get_mut(own)
        && !prepared.commit.dead.is_empty()
    {
        let bound = prepared.commit.own.dead_letters;
        if topic.dead >= bound.messages || topic.dead_bytes >= bound.bytes {
            topic.refused_dead = Some(bound);
        }
    }
}

struct Head {
    ord: i64,
    uid: Uid,
    due: u64,
    bytes: u64,
}

/// The first parked entry of a lane.
fn head(store: &Store, row: i64, lane: &str) -> Result<Option<Head>, Fault> {
    Ok(store
        .conn
        .prepare_cached("SELECT ord, uid, due, bytes FROM parked WHERE part = ?1 AND lane = ?2 ORDER BY ord LIMIT 1")?
        .query_row(params![row, lane], |r| {
            Ok(Head {
                ord: r.get(0)?,
                uid: Uid(r.get(1)?),
                due: un(r.get(2)?),
                bytes: un(r.get(3)?),
            })
        })
        .optional()?)
}

/// When an entry that is first of its lane falls due: at once if it only waited behind another.
fn due(parked: &Parked) -> u64 {
    if parked.attempts == 0 { 0 } else { parked.due_ms }
}

pub(super) fn work_bytes(work: &Work) -> u64 {
    match work {
        Work::Message(message) => message_bytes(message),
        Work::Timer { key, name, .. } => (key.len() + name.len()) as u64,
    }
}

fn apply(store: &mut Store, partition: &PartitionId, token: Token, prepared: Prepared) -> Result<(), Fault> {
    let Prepared { commit, outputs, .. } = prepared;
    let (id, index) = (partition.topic(), partition.index());
    let now = store.now();
    store.begin()?;
    let row = store.part_row(id, index)?;
    if let Some(span) = &commit.span {
        store.consume(id, index, span.to)?;
        store.topics.get_mut(id).expect("checked").parts[usize::from(index)]
            .at
            .cursor = span.to;
    }
    for retry in &commit.retries {
        settle(store, id, index, row, retry)?;
    }
    for parked in &commit.park {
        park(store, id, index, row, parked)?;
    }
    timers(store, id, index, row, &commit)?;
    let topic_row = store.topics[id].row;
    for put in &commit.state {
        store.keys.put(&store.conn, topic_row, put)?;
        store.grew(put.value.as_ref().map_or(0, Bytes::len));
    }
    let mut filling = Filling::default();
    for bundle in &outputs {
        store.topic(&bundle.to)?;
        filling.add(store, bundle, 0)?;
    }
    filling.finish(store)?;
    let letters = dead(store, id, topic_row, &commit)?;
    for reply in &commit.replies {
        let mut reply = reply.clone();
        name_letter(&mut reply, &letters);
        window::store_reply(store, id.swarm(), &reply)?;
        store.outbox.push(reply);
    }
    store.outbox.extend(commit.returned.iter().cloned());
    let part = &mut store.topics.get_mut(id).expect("checked").parts[usize::from(index)];
    part.at.seq += 1;
    part.at.last = commit.id;
    part.at.unclean = 0;
    part.at.marked = None;
    part.lease = Some(Held {
        token,
        until_ms: now.saturating_add(limits::LEASE_TTL_MS),
    });
    write_part(&store.conn, row, &part.at)?;
    store.ring_room(id);
    Ok(())
}

fn settle(store: &mut Store, id: &TopicId, index: u16, row: i64, retry: &Retry) -> Result<(), Fault> {
    let Some(first) = head(store, row, &retry.lane)? else {
        return Ok(());
    };
    let in_place = store.guards.on(Guard::InPlace);
    let wake = store.guards.on(Guard::Wake);
    let topic = store.topics.get_mut(id).expect("checked");
    let part = &mut topic.parts[usize::from(index)];
    if let Some(again) = &retry.again
        && in_place
    {
        let bytes = work_bytes(&again.work);
        store
            .conn
            .prepare_cached("UPDATE parked SET uid = ?2, due = ?3, bytes = ?4, body = ?5 WHERE ord = ?1")?
            .execute(params![
                first.ord,
                again.uid.0,
                db(due(again)),
                db(bytes),
                record::encode_parked(again)
            ])?;
        topic.parked_bytes = topic.parked_bytes + bytes - first.bytes;
        part.bell.notify_one();
        return Ok(());
    }
    store
        .conn
        .prepare_cached("DELETE FROM parked WHERE ord = ?1")?
        .execute([first.ord])?;
    part.parked -= 1;
    topic.parked -= 1;
    topic.parked_bytes -= first.bytes;
    if wake {
        store
            .conn
            .prepare_cached(
                "UPDATE parked SET head = 1 WHERE ord =
                 (SELECT ord FROM parked WHERE part = ?1 AND lane = ?2 ORDER BY ord LIMIT 1)",
            )?
            .execute(params![row, retry.lane])?;
        part.bell.notify_one();
    }
    if let Some(again) = &retry.again {
        park(store, id, index, row, again)?;
    }
    Ok(())
}

pub(super) fn park(store: &mut Store, id: &TopicId, index: u16, row: i64, parked: &Parked) -> Result<(), Fault> {
    let bytes = work_bytes(&parked.work);
    let body = record::encode_parked(parked);
    store
        .conn
        .prepare_cached(
            "INSERT INTO parked (part, lane, head, due, bytes, uid, body)
             VALUES (?1, ?2, NOT EXISTS (SELECT 1 FROM parked WHERE part = ?1 AND lane = ?2), ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            row,
            parked.lane,
            db(due(parked)),
            db(bytes),
            parked.uid.0,
            body
        ])?;
    store.grew(body.len());
    let topic = store.topics.get_mut(id).expect("checked");
    let part = &mut topic.parts[usize::from(index)];
    part.parked += 1;
    topic.parked += 1;
    topic.parked_bytes += bytes;
    part.bell.notify_one();
    Ok(())
}

fn timers(store: &mut Store, id: &TopicId, index: u16, row: i64, commit: &Commit) -> Result<(), Fault> {
    let (mut gone, mut made) = (0u64, 0u64);
    let mut delete = store
        .conn
        .prepare_cached("DELETE FROM timer WHERE part = ?1 AND key = ?2 AND name = ?3")?;
    for timer in &commit.timers {
        gone += delete.execute(params![row, timer.key, timer.name])? as u64;
    }
    for set in &commit.set_timers {
        gone += delete.execute(params![row, set.key, set.name])? as u64;
        let Some(at_ms) = set.at_ms else { continue };
        let body = record::encode_timer(&crate::TimerDue {
            uid: set.uid,
            key: set.key.clone(),
            name: set.name.clone(),
            at_ms,
        });
        store
            .conn
            .prepare_cached("INSERT INTO timer (part, key, name, at, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![row, set.key, set.name, db(at_ms), body])?;
        made += 1;
    }
    drop(delete);
    let part = &mut store.topics.get_mut(id).expect("checked").parts[usize::from(index)];
    part.timers = part.timers + made - gone;
    if made > 0 {
        part.bell.notify_one();
    }
    Ok(())
}

/// Writes the dead letters; returns the id of each that answers a request.
fn dead(store: &mut Store, id: &TopicId, topic_row: i64, commit: &Commit) -> Result<Vec<(RequestId, u64)>, Fault> {
    let mut letters = Vec::new();
    for letter in &commit.dead {
        let body = record::encode_dead_letter(letter);
        let bytes = body.len() as u64;
        store
            .conn
            .prepare_cached("INSERT INTO dead (topic, bytes, body) VALUES (?1, ?2, ?3)")?
            .execute(params![topic_row, db(bytes), body])?;
        if let Work::Message(message) = &letter.work
            && let Some(request) = &message.request
        {
            letters.push((request.id, un(store.conn.last_insert_rowid())));
        }
        store.grew(body.len());
        let topic = store.topics.get_mut(id).expect("checked");
        topic.dead += 1;
        topic.dead_bytes += bytes;
    }
    Ok(letters)
}

/// A failed request's reply names its dead letter, whose id is known here only.
fn name_letter(reply: &mut Reply, letters: &[(RequestId, u64)]) {
    if let ReplyResult::Failed { dead_letter, .. } = &mut reply.result
        && dead_letter.is_none()
    {
        *dead_letter = letters
            .iter()
            .find(|(request, _)| *request == reply.request)
            .map(|(_, letter)| *letter);
    }
}
