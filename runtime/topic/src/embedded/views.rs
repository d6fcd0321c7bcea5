//! What people look at. Answers are gated, so that nobody is shown what a crash may take back; all but counts, which are asked for often.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use rusqlite::params;
use skep_model::limits;
use skep_model::name::StageName;
use skep_model::scope::{SwarmId, TopicId};

use super::keys::unsealed;
use super::load::lives_in;
use super::store::{Fault, Store, db, un};
use super::writer::Answer;
use crate::{Error, StatePage, StateSize, StoredDeadLetter, TopicStatus, key_group, record};

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

/// In the order of the rows, from which it is read: so these must be up to date.
pub(super) fn state_page(store: &mut Store, id: &TopicId, after: &str) -> Result<Answer<StatePage>, Fault> {
    let Some(row) = store.topics.get(id).map(|topic| topic.row) else {
        return Answer::gated(StatePage::default());
    };
    if store.keys.behind() {
        store.begin()?;
        store.keys.settle(&store.conn)?;
    }
    let mut page = StatePage::default();
    // Before the first key there is no group.
    let group = if after.is_empty() {
        -1
    } else {
        i64::from(key_group(after))
    };
    let mut query = store.conn.prepare_cached(
        "SELECT key, name, value FROM state WHERE topic = ?1 AND (grp, key) > (?2, ?3) ORDER BY grp, key, name",
    )?;
    let mut rows = query.query(params![row, group, after])?;
    let mut bytes = 0;
    while let Some(r) = rows.next()? {
        let (key, name): (String, String) = (r.get(0)?, r.get(1)?);
        let last = page.keys.last();
        if last.is_none_or(|(last, _)| *last != key) {
            if page.keys.len() >= limits::STATE_PAGE_KEYS as usize || bytes >= limits::STATE_PAGE_BYTES {
                page.next = last.map(|(last, _)| last.clone());
                break;
            }
            page.keys.push((key.clone(), BTreeMap::new()));
        }
        let value = unsealed(&key, r.get(2)?)?;
        bytes += key.len() + name.len() + value.len();
        if let Some((_, values)) = page.keys.last_mut() {
            values.insert(name, value);
        }
    }
    Answer::gated(page)
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
