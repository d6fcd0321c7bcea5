//! Deletion: of dead letters one by one, of topics and lives in slices so that others are not held up.
//!
//! A life is marked as gone first, which is what everybody sees; its rows follow. A node that dies between finds the life in
//! `lives` and removes it again.

use rusqlite::{OptionalExtension, params};
use skep_model::limits;
use skep_model::scope::{SwarmId, TopicId};

use super::load::lives_in;
use super::schema::ENTRY_BITS;
use super::store::{Fault, Store, db};
use super::writer::Answer;
use crate::{Error, TopicSpec};

/// Marks the life as gone; returns the rows of its topics, or `None` when it was to be empty and is not.
pub(super) fn forget_swarm(
    store: &mut Store,
    swarm: &SwarmId,
    if_empty: bool,
) -> Result<Answer<Option<Vec<i64>>>, Fault> {
    let mut topics = store.topics.iter().filter(|(id, _)| id.swarm() == swarm);
    if if_empty && topics.any(|(_, t)| t.unread + t.parked + t.dead > 0) {
        return Answer::now(None);
    }
    store.begin()?;
    let names = params![swarm.tenant().as_str(), swarm.name().as_str(), swarm.incarnation().0];
    store.conn.execute(
        "INSERT OR IGNORE INTO gone (tenant, name, incarnation) VALUES (?1, ?2, ?3)",
        names,
    )?;
    store.conn.execute(
        "DELETE FROM gone WHERE id <= (SELECT max(id) FROM gone) - ?1",
        [db(limits::GONE_SWARMS_MAX)],
    )?;
    store.gone.insert(swarm.clone());
    store.forget_aside(swarm)?;
    if store.gone.len() as u64 > limits::GONE_SWARMS_MAX {
        let kept = lives_in(&store.conn, "SELECT id, tenant, name, incarnation FROM gone")?;
        store.gone = kept.into_iter().map(|(_, swarm)| swarm).collect();
    }
    store.lives.remove(swarm);
    let topics: Vec<TopicId> = store.topics.keys().filter(|id| id.swarm() == swarm).cloned().collect();
    for id in &topics {
        store.forget_topic(id);
    }
    store.shared.forget(swarm);
    let mut query = store.conn.prepare(
        "SELECT t.id FROM topic t JOIN swarm s ON s.id = t.swarm
         WHERE s.tenant = ?1 AND s.name = ?2 AND s.incarnation = ?3",
    )?;
    let rows = query.query_map(names, |r| r.get(0))?.collect::<Result<_, _>>()?;
    Answer::gated(Some(rows))
}

/// Takes one empty topic out of service; returns its row, if there is one. `None`: it is not empty.
pub(super) fn forget_topic(store: &mut Store, spec: &TopicSpec) -> Result<Answer<Option<Option<i64>>>, Fault> {
    let id = &spec.id;
    if store.gone.contains(id.swarm()) {
        return Err(Error::Gone.into());
    }
    let life = store.life(id.swarm())?;
    let removed = life.removed.get(id.stage()).copied();
    if removed.is_some_and(|last| last >= spec.born) {
        return Answer::now(Some(None));
    }
    if store.topics.get(id).is_some_and(|topic| topic.layout.born > spec.born) {
        remember(store, spec)?;
        return Answer::now(Some(None));
    }
    if let Some(topic) = store.topics.get(id)
        && topic.unread + topic.parked + topic.dead + topic.parts.iter().map(|p| p.timers).sum::<u64>() > 0
    {
        return Answer::now(None);
    }
    let row = store.forget_topic(id).map(|topic| topic.row);
    store.shared.ring_topic(id);
    if let Some(row) = row {
        // Renamed at once, so that a topic of the same name may begin anew while the rows go.
        store.begin()?;
        store
            .conn
            .execute("UPDATE topic SET stage = id || '.gone' WHERE id = ?1", [row])?;
    }
    remember(store, spec)?;
    Answer::now(Some(row))
}

/// That this birth of a stage was removed.
fn remember(store: &mut Store, spec: &TopicSpec) -> Result<(), Fault> {
    store.begin()?;
    let life = store.lives.get_mut(spec.id.swarm()).expect("it has its row");
    store
        .conn
        .prepare_cached("INSERT OR REPLACE INTO removed (swarm, stage, born) VALUES (?1, ?2, ?3)")?
        .execute(params![life.row, spec.id.stage().as_str(), db(spec.born)])?;
    life.removed.insert(spec.id.stage().clone(), spec.born);
    if life.removed.len() as u64 > limits::REMOVED_STAGES_MAX {
        let earliest = life.removed.iter().min_by_key(|(stage, born)| (**born, *stage));
        let earliest = earliest.map(|(stage, _)| stage.clone()).expect("more than none");
        store.conn.execute(
            "DELETE FROM removed WHERE swarm = ?1 AND stage = ?2",
            params![life.row, earliest.as_str()],
        )?;
        life.removed.remove(&earliest);
    }
    Ok(())
}

/// Finishes the removal of topics that a stop interrupted.
pub(super) fn finish_removals(store: &mut Store) -> Result<(), Fault> {
    let rows: Vec<i64> = store
        .conn
        .prepare("SELECT id FROM topic WHERE stage LIKE '%.gone'")?
        .query_map([], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    for row in rows {
        while remove_rows(store, row)?.value {}
        store.commit_tx()?;
    }
    Ok(())
}

/// Deletes a slice of a topic's rows. Returns whether there are more.
pub(super) fn remove_rows(store: &mut Store, topic: i64) -> Result<Answer<bool>, Fault> {
    store.begin()?;
    let max = db(limits::REMOVE_ROWS_MAX as u64);
    let part: Option<i64> = store
        .conn
        .prepare_cached("SELECT id FROM part WHERE topic = ?1 LIMIT 1")?
        .query_row([topic], |r| r.get(0))
        .optional()?;
    if let Some(part) = part {
        let (from, to) = (part << ENTRY_BITS, ((part + 1) << ENTRY_BITS) - 1);
        let mut gone = store
            .conn
            .prepare_cached(
                "DELETE FROM frame WHERE id IN (SELECT id FROM frame WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3)",
            )?
            .execute(params![from, to, max])?;
        gone += store
            .conn
            .prepare_cached("DELETE FROM parked WHERE ord IN (SELECT ord FROM parked WHERE part = ?1 LIMIT ?2)")?
            .execute(params![part, max])?;
        gone += store
            .conn
            .prepare_cached(
                "DELETE FROM timer WHERE part = ?1 AND (key, name) IN
                 (SELECT key, name FROM timer WHERE part = ?1 LIMIT ?2)",
            )?
            .execute(params![part, max])?;
        if gone == 0 {
            store.conn.execute("DELETE FROM part WHERE id = ?1", [part])?;
        }
        return Answer::now(true);
    }
    let mut gone = store
        .conn
        .prepare_cached(
            "DELETE FROM state WHERE topic = ?1 AND (grp, key, name) IN
             (SELECT grp, key, name FROM state WHERE topic = ?1 LIMIT ?2)",
        )?
        .execute(params![topic, max])?;
    gone += store
        .conn
        .prepare_cached("DELETE FROM dead WHERE id IN (SELECT id FROM dead WHERE topic = ?1 LIMIT ?2)")?
        .execute(params![topic, max])?;
    if gone == 0 {
        store.conn.execute("DELETE FROM state_size WHERE topic = ?1", [topic])?;
        store.conn.execute("DELETE FROM topic WHERE id = ?1", [topic])?;
    }
    Answer::now(gone > 0)
}

/// The last rows of a life, after its topics'.
pub(super) fn remove_life(store: &mut Store, swarm: &SwarmId) -> Result<Answer<()>, Fault> {
    store.begin()?;
    let names = params![swarm.tenant().as_str(), swarm.name().as_str(), swarm.incarnation().0];
    let row: Option<i64> = store
        .conn
        .query_row(
            "SELECT id FROM swarm WHERE tenant = ?1 AND name = ?2 AND incarnation = ?3",
            names,
            |r| r.get(0),
        )
        .optional()?;
    if let Some(row) = row {
        store.conn.execute("DELETE FROM dedup WHERE swarm = ?1", [row])?;
        store.conn.execute("DELETE FROM session WHERE swarm = ?1", [row])?;
        store.conn.execute("DELETE FROM removed WHERE swarm = ?1", [row])?;
        store.conn.execute("DELETE FROM swarm WHERE id = ?1", [row])?;
    }
    store.lives.remove(swarm);
    store.forget_aside(swarm)?;
    Answer::gated(())
}
