//! Dead letters: gone for good, or back.

use rusqlite::{OptionalExtension as _, params};
use skep_model::id::CommitId;
use skep_model::scope::{SwarmId, TopicId};

use super::store::{Fault, Store, db, un, write_part};
use super::writer::Answer;
use crate::guard::Guard;
use crate::{Error, Refused, TimerDue, TopicSpec, key_group, partition_of_group, record};

/// What a letter takes of its topic's bound. `None`: the topic has no such letter.
fn weight(store: &Store, topic: i64, id: u64) -> Result<Option<u64>, Fault> {
    let mut find = store
        .conn
        .prepare_cached("SELECT bytes FROM dead WHERE id = ?1 AND topic = ?2")?;
    let bytes: Option<i64> = find.query_row(params![db(id), topic], |r| r.get(0)).optional()?;
    Ok(bytes.map(un))
}

fn remove(store: &mut Store, of: &TopicId, id: u64, bytes: u64) -> Result<(), Fault> {
    store.begin()?;
    store
        .conn
        .prepare_cached("DELETE FROM dead WHERE id = ?1")?
        .execute([db(id)])?;
    if let Some(topic) = store.topics.get_mut(of) {
        topic.dead -= 1;
        topic.dead_bytes -= bytes;
    }
    store.ring_room(of);
    Ok(())
}

pub(super) fn discard(store: &mut Store, swarm: &SwarmId, ids: &[u64]) -> Result<Answer<u64>, Fault> {
    if store.gone.contains(swarm) {
        return Err(Error::Gone.into());
    }
    let topics = store.topics.iter().filter(|(id, _)| id.swarm() == swarm);
    let topics: Vec<(TopicId, i64)> = topics.map(|(id, topic)| (id.clone(), topic.row)).collect();
    let mut discarded = 0;
    for (of, row) in topics {
        for id in ids {
            if let Some(bytes) = weight(store, row, *id)? {
                remove(store, &of, *id, bytes)?;
                discarded += 1;
            }
        }
    }
    Answer::gated(discarded)
}

/// Whether a letter may come back.
pub(super) fn there(
    store: &Store,
    spec: &TopicSpec,
    id: u64,
    timer: Option<&TimerDue>,
) -> Result<Result<(), Refused>, Fault> {
    let stage = spec.id.stage().clone();
    if store.is_removed(spec) {
        return Ok(Err(Refused::StageGone { stage }));
    }
    let topic = store.topics.get(&spec.id);
    let found = match topic {
        Some(topic) => weight(store, topic.row, id)?.is_some(),
        None => false,
    };
    if !found && store.guards.on(Guard::Letter) {
        return Ok(Err(Refused::NoLetter));
    }
    let (Some(timer), Some(topic)) = (timer, topic) else {
        return Ok(Ok(()));
    };
    if topic.rescaling() {
        return Ok(Err(Refused::Rescaling { stage }));
    }
    let place = partition_of_group(key_group(&timer.key), topic.layout.partitions);
    let Some(row) = topic.parts.get(usize::from(place)).and_then(|part| part.row) else {
        return Ok(Ok(()));
    };
    let set: bool = store
        .conn
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM timer WHERE part = ?1 AND key = ?2 AND name = ?3)")?
        .query_row(params![row, timer.key, timer.name], |r| r.get(0))?;
    Ok(if set { Err(Refused::TimerSet) } else { Ok(()) })
}

/// It goes with the append of its message, or its timer is set anew.
pub(super) fn back(store: &mut Store, spec: &TopicSpec, id: u64, timer: Option<&TimerDue>) -> Result<(), Fault> {
    let of = &spec.id;
    let row = store.topic(spec)?.row;
    if let Some(bytes) = weight(store, row, id)? {
        remove(store, of, id, bytes)?;
    }
    let Some(timer) = timer else { return Ok(()) };
    let place = partition_of_group(key_group(&timer.key), store.topics[of].layout.partitions);
    let row = store.part_row(of, place)?;
    store
        .conn
        .prepare_cached("INSERT INTO timer (part, key, name, at, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            row,
            timer.key,
            timer.name,
            db(timer.at_ms),
            record::encode_timer(timer)
        ])?;
    let fresh = CommitId::random(&*store.entropy);
    let part = &mut store.topics.get_mut(of).expect("made above").parts[usize::from(place)];
    part.timers += 1;
    part.at.last = fresh;
    part.bell.notify_one();
    write_part(&store.conn, row, &part.at)?;
    Ok(())
}
