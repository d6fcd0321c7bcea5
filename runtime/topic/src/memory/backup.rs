//! A life as pieces, and back.

use skep_model::id::CommitId;
use skep_model::scope::SwarmId;

use super::store::{Aside, Frame, Known, Life, Part, Session, Store, Topic, With};
use crate::record::{Layout, Piece};
use crate::{Cursor, Error};

impl Life {
    pub fn pieces(self) -> impl Iterator<Item = Piece> {
        let topics = self.topics.into_iter().flat_map(|(stage, topic)| {
            let mut out = vec![Piece::Topic {
                stage: stage.clone(),
                layout: Layout {
                    born: topic.born,
                    partitions: topic.partitions,
                    former: topic.former,
                    generation: topic.generation,
                },
            }];
            for (index, part) in topic.parts {
                out.push(Piece::Partition {
                    stage: stage.clone(),
                    index,
                    unclean: part.unclean,
                    marked: part.marked,
                    sealed: part.seal.is_some(),
                });
                for (entry, frame) in part.frames {
                    let read = if entry == part.cursor.entry {
                        part.cursor.index
                    } else {
                        0
                    };
                    out.push(Piece::Messages {
                        stage: stage.clone(),
                        index,
                        behind: part.seal.is_some_and(|seal| entry >= seal),
                        messages: frame.messages.into_iter().skip(read as usize).collect(),
                    });
                }
                out.extend(part.parked.into_iter().map(|slot| Piece::Parked {
                    stage: stage.clone(),
                    index,
                    parked: slot.parked,
                }));
                out.extend(part.timers.into_values().map(|timer| Piece::Timer {
                    stage: stage.clone(),
                    index,
                    timer,
                }));
            }
            for (key, values) in topic.state {
                out.extend(values.into_iter().map(|(name, value)| Piece::State {
                    stage: stage.clone(),
                    key: key.clone(),
                    name,
                    value,
                }));
            }
            out.extend(topic.dead.into_iter().map(|(id, letter)| Piece::DeadLetter {
                stage: stage.clone(),
                id,
                letter,
            }));
            out
        });
        let keys = self.keys.into_iter().map(|((subject, key), known)| Piece::Key {
            subject,
            key,
            fingerprint: known.fingerprint,
            request: known.request,
            expires_ms: known.expires_ms,
            reply: known.reply,
        });
        let sessions = self.sessions.into_iter().map(|(id, session)| Piece::Session {
            id,
            high: session.high,
            expires_ms: session.expires_ms,
        });
        let removed = self
            .removed
            .into_iter()
            .map(|(stage, born)| Piece::Removed { stage, born });
        topics.chain(keys).chain(sessions).chain(removed)
    }
}

impl Store {
    /// The life comes in service, if it was set aside and is whole.
    pub fn adopt(&mut self, swarm: &SwarmId) -> Result<(), Error> {
        match self.aside.get(swarm) {
            None => Ok(()),
            Some(Aside { whole: false, .. }) => Err(half(swarm)),
            Some(_) => {
                self.aside.remove(swarm);
                Ok(())
            }
        }
    }

    pub fn begin_import(&mut self, swarm: &SwarmId, number: u64) -> Result<bool, Error> {
        if self.gone.contains(swarm) {
            return Err(Error::Gone);
        }
        if self.lives.contains_key(swarm) {
            return Ok(false);
        }
        self.lives.insert(swarm.clone(), Life::default());
        self.aside.insert(swarm.clone(), Aside { number, whole: false });
        Ok(true)
    }

    /// The life that import `number` fills.
    fn filled(&mut self, swarm: &SwarmId, number: u64) -> Result<&mut Life, Error> {
        let ours = self.aside.get(swarm).is_some_and(|a| a.number == number && !a.whole);
        self.lives.get_mut(swarm).filter(|_| ours).ok_or(Error::Fenced)
    }

    pub fn end_import(&mut self, swarm: &SwarmId, number: u64) -> Result<(), Error> {
        self.filled(swarm, number)?;
        self.aside.insert(swarm.clone(), Aside { number, whole: true });
        Ok(())
    }

    pub fn discard_import(&mut self, swarm: &SwarmId) {
        if self.aside.remove(swarm).is_some() {
            self.lives.remove(swarm);
        }
    }

    pub fn import(
        &mut self,
        swarm: &SwarmId,
        number: u64,
        offset: &mut Option<u64>,
        piece: Piece,
        with: &With<'_>,
    ) -> Result<(), Error> {
        let last_letter = self.last_letter;
        let life = self.filled(swarm, number)?;
        match piece {
            Piece::Topic { stage, layout } => {
                let topic = Topic {
                    born: layout.born,
                    partitions: layout.partitions,
                    former: layout.former,
                    generation: layout.generation,
                    ..Topic::default()
                };
                life.topics.insert(stage, topic);
            }
            Piece::Partition {
                stage,
                index,
                unclean,
                marked,
                sealed,
            } => {
                let part = Part {
                    unclean,
                    marked,
                    noted: true,
                    last: CommitId::random(with.entropy),
                    seal: sealed.then_some(0),
                    ..Part::default()
                };
                topic(life, &stage)?.parts.insert(index, part);
            }
            Piece::Messages {
                stage,
                index,
                behind,
                messages,
            } => {
                let part = partition(life, &stage, index)?;
                let uid = skep_model::id::Uid::random(with.entropy);
                part.frames.insert(part.next_entry, Frame { uid, messages });
                part.next_entry += 1;
                if part.seal.is_some() && !behind {
                    part.seal = Some(part.next_entry);
                }
                part.cursor = Cursor::default();
            }
            Piece::Parked { stage, index, parked } => partition(life, &stage, index)?.park(parked),
            Piece::Timer { stage, index, timer } => {
                let place = (timer.key.clone(), timer.name.clone());
                partition(life, &stage, index)?.timers.insert(place, timer);
            }
            Piece::State {
                stage,
                key,
                name,
                value,
            } => {
                let state = &mut topic(life, &stage)?.state;
                state.entry(key).or_default().insert(name, value);
            }
            Piece::DeadLetter { stage, id, letter } => {
                let offset = *offset.get_or_insert_with(|| crate::letter_offset(id, last_letter));
                let id = id.saturating_add(offset);
                topic(life, &stage)?.dead.insert(id, letter);
                self.last_letter = last_letter.max(id);
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
                    crate::move_letter(reply, offset.unwrap_or(0));
                }
                let known = Known {
                    fingerprint,
                    request,
                    reply,
                    expires_ms,
                };
                life.keys.insert((subject, key), known);
            }
            Piece::Session { id, high, expires_ms } => {
                life.sessions.insert(id, Session { high, expires_ms });
            }
            Piece::Removed { stage, born } => {
                life.removed.insert(stage, born);
            }
        }
        Ok(())
    }
}

pub(super) fn half(swarm: &SwarmId) -> Error {
    Error::Unavailable(format!("{swarm} is being restored"))
}

fn topic<'a>(life: &'a mut Life, stage: &skep_model::name::StageName) -> Result<&'a mut Topic, Error> {
    life.topics.get_mut(stage).ok_or_else(|| crate::out_of_order("topic"))
}

fn partition<'a>(life: &'a mut Life, stage: &skep_model::name::StageName, index: u16) -> Result<&'a mut Part, Error> {
    let part = topic(life, stage)?.parts.get_mut(&index);
    part.ok_or_else(|| crate::out_of_order("partition"))
}
