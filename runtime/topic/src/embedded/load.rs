//! Building the mirror from the tables, at open.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rusqlite::Connection;
use skep_model::id::{Incarnation, Uid};
use skep_model::scope::{Scope, SwarmId, TopicId};

use super::schema::ENTRY_BITS;
use super::store::{Fault, Frame, Life, Store, Topic, Window, prefix_bytes, un, write_part};
use crate::record::Layout;
use crate::{Error, record};

impl Store {
    pub(super) fn load(&mut self) -> Result<(), Fault> {
        let mut swarms = HashMap::new();
        for (row, swarm) in lives_in(&self.conn, "SELECT id, tenant, name, incarnation FROM swarm")? {
            swarms.insert(row, swarm);
        }
        self.gone = lives_in(&self.conn, "SELECT id, tenant, name, incarnation FROM gone")?
            .into_iter()
            .map(|(_, swarm)| swarm)
            .collect();
        for (row, swarm) in &swarms {
            // A life whose removal was interrupted stays in its table for `lives` to find, and is not served.
            if !self.gone.contains(swarm) {
                self.lives.insert(
                    swarm.clone(),
                    Life {
                        row: *row,
                        ..Life::default()
                    },
                );
            }
        }
        self.load_removed(&swarms)?;
        self.load_aside()?;
        let topics = self.load_topics(&swarms)?;
        let parts = self.load_parts(&topics)?;
        self.load_frames(&parts)?;
        self.keys.load(&self.conn, |row| topics.contains_key(&row))?;
        self.load_counts(&topics, &parts)?;
        self.load_windows(&swarms)
    }

    fn load_removed(&mut self, swarms: &HashMap<i64, SwarmId>) -> Result<(), Fault> {
        let mut query = self.conn.prepare("SELECT swarm, stage, born FROM removed")?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            let Some(life) = swarms.get(&r.get(0)?).and_then(|s| self.lives.get_mut(s)) else {
                continue;
            };
            let stage: String = r.get(1)?;
            let stage = stage.parse().map_err(|e| damaged("removed stage", &e))?;
            life.removed.insert(stage, un(r.get(2)?));
        }
        Ok(())
    }

    fn load_topics(&mut self, swarms: &HashMap<i64, SwarmId>) -> Result<HashMap<i64, TopicId>, Fault> {
        let mut by_row = HashMap::new();
        let mut query = self.conn.prepare("SELECT id, swarm, stage, layout FROM topic")?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            let (row, swarm_row): (i64, i64) = (r.get(0)?, r.get(1)?);
            let stage: String = r.get(2)?;
            // A removal that was interrupted: no stage is named so.
            if stage.ends_with(".gone") {
                continue;
            }
            let Some(swarm) = swarms.get(&swarm_row).filter(|s| self.lives.contains_key(s)) else {
                continue;
            };
            let stage = stage.parse().map_err(|e| damaged("topic", &e))?;
            let id = swarm.topic(&stage);
            let layout = match r.get::<_, Option<Vec<u8>>>(3)? {
                Some(layout) => record::decode_layout(Bytes::from(layout))?,
                // Of an earlier schema.
                None => Layout::default(),
            };
            self.topics.insert(id.clone(), Topic::new(row, layout));
            by_row.insert(row, id);
        }
        Ok(by_row)
    }

    fn load_parts(&mut self, topics: &HashMap<i64, TopicId>) -> Result<HashMap<i64, (TopicId, u16)>, Fault> {
        let mut by_row = HashMap::new();
        let mut query = self.conn.prepare("SELECT id, topic, idx, body FROM part")?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            let (row, topic_row, index): (i64, i64, u16) = (r.get(0)?, r.get(1)?, r.get(2)?);
            let Some(id) = topics.get(&topic_row) else { continue };
            let at = record::decode_partition(Bytes::from(r.get::<_, Vec<u8>>(3)?))?;
            let topic = self.topics.get_mut(id).expect("loaded before");
            let part = Self::part(topic, id, index, &self.shared);
            part.row = Some(row);
            part.next_entry = at.cursor.entry + u64::from(at.cursor.index > 0);
            part.at = at;
            by_row.insert(row, (id.clone(), index));
        }
        Ok(by_row)
    }

    fn load_frames(&mut self, parts: &HashMap<i64, (TopicId, u16)>) -> Result<(), Fault> {
        let mut query = self.conn.prepare("SELECT id, n, bytes, uid FROM frame ORDER BY id")?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            let id: i64 = r.get(0)?;
            let row = id >> ENTRY_BITS;
            let Some((topic_id, index)) = parts.get(&row) else {
                continue;
            };
            let topic = self.topics.get_mut(topic_id).expect("loaded before");
            let part = &mut topic.parts[usize::from(*index)];
            let frame = Frame {
                entry: un(id & ((1 << ENTRY_BITS) - 1)),
                messages: r.get(1)?,
                bytes: un(r.get(2)?),
                uid: Uid(r.get(3)?),
                body: None,
                stored: true,
            };
            let (mut unread, mut bytes) = (u64::from(frame.messages), frame.bytes);
            if frame.entry == part.at.cursor.entry && part.at.cursor.index > 0 {
                let read = part.at.cursor.index;
                unread -= u64::from(read.min(frame.messages));
                let body = Self::body(&self.conn, row, &frame)?;
                bytes = bytes.saturating_sub(prefix_bytes(body, 0, read)?);
            }
            part.next_entry = frame.entry + 1;
            part.unread += unread;
            topic.unread += unread;
            topic.unread_bytes += bytes;
            part.bell.notify_one();
            part.frames.push_back(frame);
        }
        Ok(())
    }

    fn load_counts(
        &mut self,
        topics: &HashMap<i64, TopicId>,
        parts: &HashMap<i64, (TopicId, u16)>,
    ) -> Result<(), Fault> {
        let counts = |sql: &str, each: &mut dyn FnMut(i64, u64, u64)| -> Result<(), Fault> {
            let mut query = self.conn.prepare(sql)?;
            let mut rows = query.query([])?;
            while let Some(r) = rows.next()? {
                each(r.get(0)?, un(r.get(1)?), un(r.get(2)?));
            }
            Ok(())
        };
        let all = &mut self.topics;
        counts(
            "SELECT part, count(*), sum(bytes) FROM parked GROUP BY part",
            &mut |row, n, bytes| {
                if let Some((id, index)) = parts.get(&row) {
                    let topic = all.get_mut(id).expect("loaded before");
                    let part = &mut topic.parts[usize::from(*index)];
                    part.parked = n;
                    part.bell.notify_one();
                    topic.parked += n;
                    topic.parked_bytes += bytes;
                }
            },
        )?;
        counts("SELECT part, count(*), 0 FROM timer GROUP BY part", &mut |row, n, _| {
            if let Some((id, index)) = parts.get(&row) {
                let part = &mut all.get_mut(id).expect("loaded before").parts[usize::from(*index)];
                part.timers = n;
                part.bell.notify_one();
            }
        })?;
        counts(
            "SELECT topic, count(*), sum(bytes) FROM dead GROUP BY topic",
            &mut |row, n, bytes| {
                if let Some(topic) = topics.get(&row).and_then(|id| all.get_mut(id)) {
                    topic.dead = n;
                    topic.dead_bytes = bytes;
                }
            },
        )
    }

    fn load_windows(&mut self, swarms: &HashMap<i64, SwarmId>) -> Result<(), Fault> {
        let mut query = self.conn.prepare(
            "SELECT swarm, subject, count(*), sum(coalesce(length(reply), 0)) FROM dedup GROUP BY swarm, subject",
        )?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            let Some(life) = swarms.get(&r.get(0)?).and_then(|s| self.lives.get_mut(s)) else {
                continue;
            };
            let subject: String = r.get(1)?;
            let subject = subject.parse().map_err(|e| damaged("idempotency key", &e))?;
            life.windows.insert(
                subject,
                Window {
                    keys: un(r.get(2)?),
                    reply_bytes: un(r.get(3)?),
                },
            );
        }
        let mut query = self
            .conn
            .prepare("SELECT swarm, count(*) FROM session GROUP BY swarm")?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            if let Some(life) = swarms.get(&r.get(0)?).and_then(|s| self.lives.get_mut(s)) {
                life.sessions = un(r.get(1)?);
            }
        }
        let next: Option<i64> = self
            .conn
            .query_row("SELECT min(expires) FROM dedup", [], |r| r.get(0))?;
        self.next_expiry = next.map_or(u64::MAX, un);
        Ok(())
    }

    /// Whether the last close was clean; takes the mark away, counts every partition as unclean if it was absent, and notes
    /// this boot.
    pub(super) fn note_open(&mut self) -> Result<bool, Fault> {
        self.begin()?;
        let clean = self.conn.execute("DELETE FROM meta WHERE name = 'clean'", [])? > 0;
        self.conn.execute(
            "INSERT OR REPLACE INTO meta VALUES ('boot', ?1)",
            [self.entropy.bits128()],
        )?;
        if !clean {
            self.shared.after_unclean.store(true, Ordering::Relaxed);
            for topic in self.topics.values_mut() {
                for part in &mut topic.parts {
                    part.at.unclean += 1;
                    let Some(row) = part.row else { continue };
                    write_part(&self.conn, row, &part.at)?;
                }
            }
        }
        self.commit_tx()?;
        Ok(clean)
    }
}

/// A name as stored.
pub(super) fn named<T: std::str::FromStr<Err = skep_model::name::BadName>>(what: &str, name: &str) -> Result<T, Fault> {
    name.parse().map_err(|e| damaged(what, &e))
}

fn damaged(what: &str, e: &dyn std::fmt::Display) -> Fault {
    Fault::Refused(Error::Corrupt(format!("{what}: {e}")))
}

/// Every life of a table with columns id, tenant, name, incarnation.
pub(super) fn lives_in(conn: &Connection, sql: &str) -> Result<Vec<(i64, SwarmId)>, Fault> {
    let mut query = conn.prepare(sql)?;
    let mut rows = query.query([])?;
    let mut out = Vec::new();
    while let Some(r) = rows.next()? {
        let (tenant, name): (String, String) = (r.get(1)?, r.get(2)?);
        let tenant = tenant.parse().map_err(|e| damaged("swarm", &e))?;
        let name = name.parse().map_err(|e| damaged("swarm", &e))?;
        out.push((r.get(0)?, Scope::of(tenant).swarm(&name, Incarnation(r.get(3)?))));
    }
    Ok(out)
}
