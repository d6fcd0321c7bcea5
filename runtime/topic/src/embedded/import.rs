//! A life from pieces. It is in the tables and in memory like any other, and set aside: a row of `meta` says so until somebody uses it.

use rusqlite::params;
use skep_model::id::CommitId;
use skep_model::scope::SwarmId;
use skep_model::swarm::Bound;

use super::commit::park;
use super::store::{Fault, Store, db, un, write_layout, write_part};
use super::writer::Answer;
use crate::record::{self, FrameBuilder, Piece, Run};
use crate::{Error, StatePut, TopicSpec, letter_offset, move_letter, out_of_order};

/// A life that is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aside {
    /// By which import; `None`: by one that died.
    Filling(Option<u64>),
    Whole,
}

const FILLING: &[u8] = b"filling";
const WHOLE: &[u8] = b"whole";

fn mark(swarm: &SwarmId) -> String {
    format!("aside {swarm}")
}

impl Store {
    pub fn load_aside(&mut self) -> Result<(), Fault> {
        let mut query = self
            .conn
            .prepare("SELECT name, value FROM meta WHERE name LIKE 'aside %'")?;
        let mut rows = query.query([])?;
        let mut marks = Vec::new();
        while let Some(r) = rows.next()? {
            marks.push((r.get::<_, String>(0)?, r.get::<_, Vec<u8>>(1)?));
        }
        let marks: std::collections::HashMap<_, _> = marks.into_iter().collect();
        for swarm in self.lives.keys() {
            if let Some(value) = marks.get(&mark(swarm)) {
                let whole = value == WHOLE;
                let aside = if whole { Aside::Whole } else { Aside::Filling(None) };
                self.aside.insert(swarm.clone(), aside);
            }
        }
        Ok(())
    }

    /// The life comes in service, if it was set aside and is whole.
    pub fn adopt(&mut self, swarm: &SwarmId) -> Result<(), Fault> {
        match self.aside.get(swarm) {
            None => Ok(()),
            Some(Aside::Filling(_)) => Err(Error::Unavailable(format!("{swarm} is being restored")).into()),
            Some(Aside::Whole) => self.forget_aside(swarm),
        }
    }

    pub fn forget_aside(&mut self, swarm: &SwarmId) -> Result<(), Fault> {
        if self.aside.contains_key(swarm) {
            self.begin()?;
            self.conn.execute("DELETE FROM meta WHERE name = ?1", [mark(swarm)])?;
            self.aside.remove(swarm);
        }
        Ok(())
    }

    fn is_filled_by(&self, swarm: &SwarmId, number: u64) -> Result<(), Fault> {
        match self.aside.get(swarm) {
            Some(Aside::Filling(Some(by))) if *by == number => Ok(()),
            _ => Err(Error::Fenced.into()),
        }
    }
}

/// Returns whether it began.
pub(super) fn begin(store: &mut Store, swarm: &SwarmId, number: u64) -> Result<Answer<bool>, Fault> {
    if store.gone.contains(swarm) {
        return Err(Error::Gone.into());
    }
    if store.lives.contains_key(swarm) {
        return Answer::now(false);
    }
    store.begin()?;
    store
        .conn
        .execute("INSERT INTO meta VALUES (?1, ?2)", params![mark(swarm), FILLING])?;
    store.life(swarm)?;
    store.aside.insert(swarm.clone(), Aside::Filling(Some(number)));
    Answer::now(true)
}

pub(super) fn end(store: &mut Store, swarm: &SwarmId, number: u64) -> Result<Answer<()>, Fault> {
    store.is_filled_by(swarm, number)?;
    store.begin()?;
    store.conn.execute(
        "UPDATE meta SET value = ?2 WHERE name = ?1",
        params![mark(swarm), WHOLE],
    )?;
    store.aside.insert(swarm.clone(), Aside::Whole);
    Answer::gated(())
}

/// Takes a life that is set aside out of memory; returns the rows of its topics. Its mark goes last.
pub(super) fn discard(store: &mut Store, swarm: &SwarmId) -> Result<Answer<Option<Vec<i64>>>, Fault> {
    if !store.aside.contains_key(swarm) {
        return Answer::now(None);
    }
    store.begin()?;
    // Whoever fills it is told.
    store.aside.insert(swarm.clone(), Aside::Filling(None));
    store.conn.execute(
        "UPDATE meta SET value = ?2 WHERE name = ?1",
        params![mark(swarm), FILLING],
    )?;
    let Some(life) = store.lives.get(swarm).map(|life| life.row) else {
        return Answer::now(Some(Vec::new()));
    };
    let topics: Vec<_> = store.topics.keys().filter(|id| id.swarm() == swarm).cloned().collect();
    let mut rows = Vec::new();
    for id in topics {
        rows.extend(store.forget_topic(&id).map(|topic| topic.row));
    }
    // No stage is named so: a stop in between leaves them to the next start.
    store
        .conn
        .execute("UPDATE topic SET stage = id || '.gone' WHERE swarm = ?1", [life])?;
    Answer::now(Some(rows))
}

pub(super) fn pieces(
    store: &mut Store,
    swarm: &SwarmId,
    number: u64,
    mut offset: Option<u64>,
    pieces: Vec<Piece>,
) -> Result<Answer<Option<u64>>, Fault> {
    store.is_filled_by(swarm, number)?;
    store.begin()?;
    for piece in pieces {
        one(store, swarm, &mut offset, piece)?;
    }
    Answer::now(offset)
}

fn spec(swarm: &SwarmId, stage: &skep_model::name::StageName, layout: &record::Layout) -> TopicSpec {
    let none = Bound { messages: 0, bytes: 0 };
    TopicSpec {
        id: swarm.topic(stage),
        born: layout.born,
        partitions: layout.partitions,
        inbox: none,
        dead_letters: none,
    }
}

fn one(store: &mut Store, swarm: &SwarmId, offset: &mut Option<u64>, piece: Piece) -> Result<(), Fault> {
    let row_of = |store: &Store, id: &skep_model::scope::TopicId| match store.topics.get(id) {
        Some(topic) => Ok(topic.row),
        None => Err(Fault::from(out_of_order("topic"))),
    };
    match piece {
        Piece::Topic { stage, layout } => {
            store.topic(&spec(swarm, &stage, &layout))?.layout = layout;
            write_layout(&store.conn, &store.topics[&swarm.topic(&stage)])?;
        }
        Piece::Partition {
            stage,
            index,
            unclean,
            marked,
            sealed,
        } => {
            let id = swarm.topic(&stage);
            row_of(store, &id)?;
            let row = store.part_row(&id, index)?;
            let last = CommitId::random(&*store.entropy);
            let part = &mut store.topics.get_mut(&id).expect("looked up").parts[usize::from(index)];
            part.at = record::Partition {
                last,
                unclean,
                marked,
                seal: sealed.then_some(part.next_entry),
                ..record::Partition::default()
            };
            write_part(&store.conn, row, &part.at)?;
        }
        Piece::Messages {
            stage,
            index,
            behind,
            messages,
        } => {
            let id = swarm.topic(&stage);
            let row = partition(store, &id, index)?;
            let mut run = Run::default();
            messages.iter().for_each(|message| run.push(message));
            let mut frame = FrameBuilder::default();
            run.pieces(0).for_each(|(bytes, size)| frame.push(bytes, size));
            if frame.messages() > 0 {
                store.append(&id, index, frame)?;
            }
            let part = &mut store.topics.get_mut(&id).expect("looked up").parts[usize::from(index)];
            if part.at.seal.is_some() && !behind {
                part.at.seal = Some(part.next_entry);
                write_part(&store.conn, row, &part.at)?;
            }
        }
        Piece::Parked { stage, index, parked } => {
            let id = swarm.topic(&stage);
            let row = partition(store, &id, index)?;
            park(store, &id, index, row, &parked)?;
        }
        Piece::Timer { stage, index, timer } => {
            let id = swarm.topic(&stage);
            let row = partition(store, &id, index)?;
            let new = store
                .conn
                .prepare_cached("INSERT OR IGNORE INTO timer (part, key, name, at, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![
                    row,
                    timer.key,
                    timer.name,
                    db(timer.at_ms),
                    record::encode_timer(&timer)
                ])?;
            store.topics.get_mut(&id).expect("looked up").parts[usize::from(index)].timers += new as u64;
        }
        Piece::State {
            stage,
            key,
            name,
            value,
        } => {
            let row = row_of(store, &swarm.topic(&stage))?;
            store.grew(key.len() + name.len() + value.len());
            let put = StatePut {
                key,
                name,
                value: Some(value),
            };
            store.keys.put(&store.conn, row, &put)?;
        }
        Piece::DeadLetter { stage, id, letter } => {
            let topic = swarm.topic(&stage);
            let row = row_of(store, &topic)?;
            let offset = match offset {
                Some(offset) => *offset,
                None => {
                    let last: Option<i64> = store
                        .conn
                        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'dead'", [], |r| r.get(0))
                        .or_else(|e| match e {
                            rusqlite::Error::QueryReturnedNoRows => Ok(None),
                            e => Err(e),
                        })?;
                    *offset.insert(letter_offset(id, last.map_or(0, un)))
                }
            };
            let body = record::encode_dead_letter(&letter);
            let new = store
                .conn
                .prepare_cached("INSERT OR IGNORE INTO dead (id, topic, bytes, body) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![db(id.saturating_add(offset)), row, db(body.len() as u64), body])?;
            store.grew(body.len());
            let topic = store.topics.get_mut(&topic).expect("looked up");
            topic.dead += new as u64;
            topic.dead_bytes += (new * body.len()) as u64;
        }
        Piece::Key {
            subject,
            key,
            fingerprint,
            request,
            expires_ms,
            mut reply,
        } => {
            if let Some(reply) = &mut reply {
                move_letter(reply, offset.unwrap_or(0));
            }
            let reply = reply.map(|reply| record::encode_reply(&reply));
            let bytes = reply.as_ref().map_or(0, Vec::len);
            let life = store.lives.get_mut(swarm).expect("it is being filled");
            let new = store
                .conn
                .prepare_cached(
                    "INSERT OR IGNORE INTO dedup (swarm, subject, key, fingerprint, request, expires, reply)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    life.row,
                    subject.as_str(),
                    key,
                    fingerprint.0,
                    request.map(|r| r.0),
                    db(expires_ms),
                    reply
                ])?;
            let window = life.windows.entry(subject).or_default();
            window.keys += new as u64;
            window.reply_bytes += (new * bytes) as u64;
            store.grew(bytes);
            store.next_expiry = store.next_expiry.min(expires_ms);
        }
        Piece::Session { id, high, expires_ms } => {
            let life = store.lives.get_mut(swarm).expect("it is being filled");
            life.sessions += store
                .conn
                .prepare_cached("INSERT OR IGNORE INTO session (swarm, id, high, expires) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![life.row, id.0, db(high), db(expires_ms)])? as u64;
        }
        Piece::Removed { stage, born } => {
            let life = store.lives.get_mut(swarm).expect("it is being filled");
            let row = life.row;
            life.removed.insert(stage.clone(), born);
            store
                .conn
                .prepare_cached("INSERT OR REPLACE INTO removed (swarm, stage, born) VALUES (?1, ?2, ?3)")?
                .execute(params![row, stage.as_str(), db(born)])?;
        }
    }
    Ok(())
}

/// The row of a partition that came before.
fn partition(store: &Store, id: &skep_model::scope::TopicId, index: u16) -> Result<i64, Fault> {
    let topic = store.topics.get(id).ok_or_else(|| out_of_order("topic"))?;
    let row = topic.parts.get(usize::from(index)).and_then(|part| part.row);
    row.ok_or_else(|| out_of_order("partition").into())
}
