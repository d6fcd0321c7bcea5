//! What people look at. Answers are gated, so that nobody is shown what a crash may take back; all but counts, which are asked for often.

use std::collections::HashMap;

use bytes::Bytes;
use rusqlite::params;
use skep_model::name::StageName;
use skep_model::scope::{SwarmId, TopicId};

use super::load::lives_in;
use super::store::{Fault, Store, db, un};
use super::writer::Answer;
use crate::{Error, StateSize, StoredDeadLetter, TopicStatus, record};

pub(super) fn status(store: &mut Store, swarm: &SwarmId) -> Result<Answer<Vec<TopicStatus>>, Fault> {
    if store.gone.contains(swarm) {
        return Err(Error::Gone.into());
    }
    let mut out = Vec::new();
    for (id, topic) in store.topics.iter().filter(|(id, _)| id.swarm() == swarm) {
        out.push(TopicStatus {
            topic: id.clone(),
            unread: topic.unread,
            unread_bytes: topic.unread_bytes,
            parked_bytes: topic.parked_bytes,
            parked: topic.parked,
            timers: topic.parts.iter().map(|p| p.timers).sum(),
            dead: topic.dead,
            dead_bytes: topic.dead_bytes,
        });
    }
    out.sort_by(|a, b| a.topic.cmp(&b.topic));
    Answer::now(out)
}

pub(super) fn state_size(store: &mut Store, id: &TopicId) -> Result<Answer<StateSize>, Fault> {
    let topic = store.topics.get(id);
    Answer::now(topic.map(|topic| store.keys.size(topic.row)).unwrap_or_default())
}

pub(super) fn lives(store: &mut Store) -> Result<Answer<Vec<SwarmId>>, Fault> {
    let mut lives: Vec<SwarmId> = lives_in(&store.conn, "SELECT id, tenant, name, incarnation FROM swarm")?
        .into_iter()
        .map(|(_, swarm)| swarm)
        .filter(|swarm| !store.aside.contains_key(swarm))
        .collect();
    lives.sort();
    Answer::gated(lives)
}

pub(super) fn state(store: &mut Store, id: &TopicId, key: &str) -> Result<Answer<HashMap<String, Bytes>>, Fault> {
    if store.gone.contains(id.swarm()) {
        return Err(Error::Gone.into());
    }
    let found = match store.topics.get(id) {
        Some(topic) => store.keys.values(&store.conn, topic.row, key)?,
        None => return Answer::gated(HashMap::new()),
    };
    Answer::gated(found.into_iter().collect())
}

pub(super) fn dead_letters(
    store: &mut Store,
    swarm: &SwarmId,
    stage: Option<&StageName>,
    after: u64,
    limit: u32,
) -> Result<Answer<Vec<StoredDeadLetter>>, Fault> {
    if store.gone.contains(swarm) {
        return Err(Error::Gone.into());
    }
    let mut out = Vec::new();
    let topics = store
        .topics
        .iter()
        .filter(|(id, _)| id.swarm() == swarm && stage.is_none_or(|s| id.stage() == s));
    for (id, topic) in topics {
        let mut query = store
            .conn
            .prepare_cached("SELECT id, body FROM dead WHERE topic = ?1 AND id > ?2 ORDER BY id LIMIT ?3")?;
        let mut rows = query.query(params![topic.row, db(after), limit])?;
        while let Some(r) = rows.next()? {
            out.push(StoredDeadLetter {
                id: un(r.get(0)?),
                topic: id.clone(),
                letter: record::decode_dead_letter(Bytes::from(r.get::<_, Vec<u8>>(1)?))?,
            });
        }
    }
    out.sort_by_key(|letter| letter.id);
    out.truncate(limit as usize);
    Answer::gated(out)
}
