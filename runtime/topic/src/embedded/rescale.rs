//! Another number of partitions, while messages flow. Each operation here is one step of the store's only history.

use bytes::Bytes;
use rusqlite::params;
use skep_model::id::CommitId;
use skep_model::limits;
use skep_model::scope::{PartitionId, TopicId};

use super::commit::{park, work_bytes};
use super::lease::holds;
use super::store::{Fault, Held, Store, db, write_layout, write_part};
use super::writer::Answer;
use crate::guard::Guard;
use crate::record;
use crate::{
    Error, Layout, Lease, Rescaled, TopicSpec, derived, failpoint, key_group, partition_of_group, partition_of_work,
};

pub(super) fn layout(store: &mut Store, id: &TopicId) -> Result<Answer<Option<Layout>>, Fault> {
    if store.gone.contains(id.swarm()) {
        return Err(Error::Gone.into());
    }
    let topic = store.topics.get(id).filter(|topic| topic.layout.partitions > 0);
    Answer::now(topic.map(|topic| Layout {
        partitions: topic.layout.partitions,
        generation: topic.layout.generation,
        rescaling: topic.rescaling(),
        owners: topic.owners(),
    }))
}

pub(super) fn rescale(store: &mut Store, spec: &TopicSpec, id: CommitId) -> Result<Answer<Rescaled>, Fault> {
    let topic_id = &spec.id;
    if store.gone.contains(topic_id.swarm()) || store.is_removed(spec) {
        return Err(Error::Gone.into());
    }
    let topic = store.topic(spec)?;
    if topic.rescaling() {
        return Answer::gated(Rescaled::Busy);
    }
    if topic.layout.partitions == spec.partitions {
        return Answer::gated(Rescaled::Already);
    }
    topic.layout.former = std::mem::replace(&mut topic.layout.partitions, spec.partitions);
    topic.layout.generation += 1;
    let owners = topic.layout.partitions.max(topic.layout.former);
    let parts = topic.parts.len();
    store.begin()?;
    write_layout(&store.conn, &store.topics[topic_id])?;
    for index in (0..).take(parts) {
        let part = &store.topics[topic_id].parts[usize::from(index)];
        if part.row.is_none() && part.lease.is_none() {
            continue;
        }
        let row = store.part_row(topic_id, index)?;
        let part = &mut store.topics.get_mut(topic_id).expect("made above").parts[usize::from(index)];
        part.at.last = derived(id, index);
        if part.unread + part.parked + part.timers > 0 {
            part.at.seal = Some(part.next_entry);
            part.handed = Default::default();
        }
        write_part(&store.conn, row, &part.at)?;
    }
    failpoint::hit("inside-rescale");
    ring(store, topic_id, owners);
    Answer::gated(Rescaled::Begun)
}

fn ring(store: &Store, id: &TopicId, owners: u16) {
    for index in 0..owners {
        store.shared.bell(&id.partition(index)).notify_one();
    }
}

pub(super) fn hand_over(store: &mut Store, lease: &Lease, base: CommitId, new: CommitId) -> Result<Answer<()>, Fault> {
    holds(store, &lease.partition, lease.token)?;
    let (id, index) = (lease.partition.topic(), lease.partition.index());
    let part = &store.topics[id].parts[usize::from(index)];
    if part.at.last == new {
        return Answer::now(());
    }
    let sealed = part.at.seal.is_some_and(|seal| part.at.cursor.entry >= seal);
    if part.at.last != base || !sealed {
        return Err(Error::Stale.into());
    }
    let row = store.part_row(id, index)?;
    let done = parked(store, &lease.partition, row, new)? && timers(store, &lease.partition, row, new)?;
    failpoint::hit("inside-hand-over");
    let until_ms = store.now().saturating_add(limits::LEASE_TTL_MS);
    let topic = store.topics.get_mut(id).expect("held");
    let part = &mut topic.parts[usize::from(index)];
    part.at.last = new;
    part.lease = Some(Held {
        token: lease.token,
        until_ms,
    });
    if done {
        part.at.seal = None;
        part.handed = Default::default();
    }
    write_part(&store.conn, row, &part.at)?;
    part.bell.notify_one();
    if !topic.rescaling() {
        let owners = topic.layout.partitions.max(topic.layout.former);
        ring(store, id, owners);
    }
    Answer::now(())
}

/// The other partition gets something: its owner drops what it knows.
fn touch(store: &mut Store, id: &TopicId, index: u16, new: CommitId) -> Result<i64, Fault> {
    let row = store.part_row(id, index)?;
    let part = &mut store.topics.get_mut(id).expect("held").parts[usize::from(index)];
    part.at.last = derived(new, index);
    // What it got may lie before where its own hand-over stands.
    part.handed = Default::default();
    part.bell.notify_one();
    write_part(&store.conn, row, &part.at)?;
    Ok(row)
}

/// Moves a slice of the parked entries. Returns whether that was the last.
fn parked(store: &mut Store, from: &PartitionId, row: i64, new: CommitId) -> Result<bool, Fault> {
    let (id, own) = (from.topic(), from.index());
    let partitions = store.topics[id].layout.partitions;
    loop {
        let after = store.topics[id].parts[usize::from(own)].handed.0;
        let slice: Vec<(i64, Vec<u8>)> = store
            .conn
            .prepare_cached("SELECT ord, body FROM parked WHERE part = ?1 AND ord > ?2 ORDER BY ord LIMIT ?3")?
            .query_map(params![row, after, db(limits::HAND_OVER_MAX as u64)], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })?
            .collect::<Result<_, _>>()?;
        let (done, mut moved) = (slice.len() < limits::HAND_OVER_MAX, false);
        for (ord, body) in slice {
            let entry = record::decode_parked(Bytes::from(body))?;
            let index = partition_of_work(&entry.work, partitions, own);
            let topic = store.topics.get_mut(id).expect("held");
            topic.parts[usize::from(own)].handed.0 = ord;
            if index == own {
                continue;
            }
            moved = true;
            topic.parts[usize::from(own)].parked -= 1;
            topic.parked -= 1;
            topic.parked_bytes -= work_bytes(&entry.work);
            store
                .conn
                .prepare_cached("DELETE FROM parked WHERE ord = ?1")?
                .execute([ord])?;
            let to = touch(store, id, index, new)?;
            // All of a lane have one key, so they go over in their order, behind nothing of another partition.
            park(store, id, index, to, &entry)?;
        }
        // What stays is looked at once, unless the process ended meanwhile: a step must get on all the same.
        if moved || done {
            return Ok(done);
        }
    }
}

fn timers(store: &mut Store, from: &PartitionId, row: i64, new: CommitId) -> Result<bool, Fault> {
    let (id, own) = (from.topic(), from.index());
    let partitions = store.topics[id].layout.partitions;
    loop {
        let (key, name) = store.topics[id].parts[usize::from(own)].handed.1.clone();
        let slice: Vec<(String, String, i64, Vec<u8>)> = store
            .conn
            .prepare_cached(
                "SELECT key, name, at, body FROM timer WHERE part = ?1 AND (key, name) > (?2, ?3)
                 ORDER BY key, name LIMIT ?4",
            )?
            .query_map(params![row, key, name, db(limits::HAND_OVER_MAX as u64)], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))
            })?
            .collect::<Result<_, _>>()?;
        let (done, mut moved) = (slice.len() < limits::HAND_OVER_MAX, false);
        for (key, name, at, body) in slice {
            let index = partition_of_group(key_group(&key), partitions);
            if index != own {
                moved = true;
                store.topics.get_mut(id).expect("held").parts[usize::from(own)].timers -= 1;
                delete_timer(store, row, &key, &name)?;
                let to = touch(store, id, index, new)?;
                if store.guards.on(Guard::HandOver) {
                    let replaced = delete_timer(store, to, &key, &name)?;
                    store
                        .conn
                        .prepare_cached("INSERT INTO timer (part, key, name, at, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
                        .execute(params![to, key, name, at, body])?;
                    let target = &mut store.topics.get_mut(id).expect("held").parts[usize::from(index)];
                    target.timers = target.timers + 1 - replaced;
                }
            }
            store.topics.get_mut(id).expect("held").parts[usize::from(own)].handed.1 = (key, name);
        }
        if moved || done {
            return Ok(done);
        }
    }
}

fn delete_timer(store: &Store, row: i64, key: &str, name: &str) -> Result<u64, Fault> {
    let mut delete = store
        .conn
        .prepare_cached("DELETE FROM timer WHERE part = ?1 AND key = ?2 AND name = ?3")?;
    Ok(delete.execute(params![row, key, name])? as u64)
}
