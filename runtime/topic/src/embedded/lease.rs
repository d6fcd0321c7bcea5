//! Ownership of partitions. It lives in memory: the file lock proves that no other process owns any.

use std::sync::Arc;

use skep_model::id::{Token, Uid};
use skep_model::scope::PartitionId;

use super::store::{Fault, Held as LeaseHeld, Store, write_part};
use super::writer::Answer;
use crate::{Claim, Error, Held, Lease, TopicSpec, marked_again};

pub(super) fn claim(
    store: &mut Store,
    spec: &TopicSpec,
    index: u16,
    token: Token,
    ttl_ms: u64,
) -> Result<Answer<Result<Claim, Held>>, Fault> {
    let id = &spec.id;
    if store.gone.contains(id.swarm()) || store.is_removed(spec) {
        return Err(Error::Gone.into());
    }
    store.adopt(id.swarm())?;
    let now = store.now();
    let shared = Arc::clone(&store.shared);
    // A claim before the first message makes the topic's row, so that the lease has a place; it is one small write in a life.
    let topic = store.topic(spec)?;
    if !topic.has(index) {
        return Err(Error::Gone.into());
    }
    let part = Store::part(topic, id, index, &shared);
    let mut ran_out = false;
    if let Some(held) = part.lease
        && held.token != token
    {
        if held.until_ms > now {
            return Answer::now(Err(Held {
                ms_left: held.until_ms - now,
            }));
        }
        ran_out = true;
    }
    part.lease = Some(LeaseHeld {
        token,
        until_ms: now.saturating_add(ttl_ms),
    });
    if ran_out {
        part.at.unclean = part.at.unclean.saturating_add(1);
    }
    let claim = Claim {
        seq: part.at.seq,
        last: part.at.last,
        cursor: part.at.cursor,
        unclean: part.at.unclean,
        marked: part.at.marked,
    };
    if ran_out {
        let at = part.at.clone();
        let row = store.part_row(id, index)?;
        write_part(&store.conn, row, &at)?;
    }
    Answer::now(Ok(claim))
}

/// The lease's partition, if the lease is still the store's.
pub(super) fn holds(store: &Store, partition: &PartitionId, token: Token) -> Result<(), Error> {
    let id = partition.topic();
    if store.gone.contains(id.swarm()) {
        return Err(Error::Gone);
    }
    store
        .topics
        .get(id)
        .and_then(|topic| topic.parts.get(usize::from(partition.index())))
        .and_then(|part| part.lease)
        .filter(|held| held.token == token)
        .map(|_| ())
        .ok_or(Error::Fenced)
}

fn set(store: &mut Store, partition: &PartitionId, lease: Option<LeaseHeld>) {
    if let Some(part) = store
        .topics
        .get_mut(partition.topic())
        .and_then(|topic| topic.parts.get_mut(usize::from(partition.index())))
    {
        part.lease = lease;
    }
}

pub(super) fn renew(store: &mut Store, lease: &Lease, ttl_ms: u64) -> Result<Answer<()>, Fault> {
    holds(store, &lease.partition, lease.token)?;
    let until_ms = store.now().saturating_add(ttl_ms);
    let token = lease.token;
    set(store, &lease.partition, Some(LeaseHeld { token, until_ms }));
    Answer::now(())
}

/// Gated: the count must outlive the crash that it counts.
pub(super) fn mark(store: &mut Store, lease: &Lease, uid: Uid) -> Result<Answer<u32>, Fault> {
    holds(store, &lease.partition, lease.token)?;
    let (id, index) = (lease.partition.topic(), lease.partition.index());
    let row = store.part_row(id, index)?;
    let topic = store.topics.get_mut(id).expect("held");
    let part = &mut topic.parts[usize::from(index)];
    let times = marked_again(part.at.marked, uid);
    part.at.marked = Some((uid, times));
    write_part(&store.conn, row, &part.at)?;
    Answer::gated(times)
}

pub(super) fn release(store: &mut Store, lease: &Lease) -> Result<Answer<()>, Fault> {
    if holds(store, &lease.partition, lease.token).is_ok() {
        set(store, &lease.partition, None);
    }
    Answer::now(())
}
