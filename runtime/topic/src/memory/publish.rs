//! Appends from doors, and how a repeated call is recognised.

use std::sync::Arc;

use skep_model::id::Digest;
use skep_model::limits;
use skep_model::message::Message;
use skep_model::name::Subject;
use skep_model::scope::{SwarmId, TopicId};

use super::store::{Known, Rings, Session, Store, With};
use crate::guard::Guard;
use crate::record::message_bytes;
use crate::{Accepted, Call, CallResult, Once, Refused, TimerDue, TopicSpec, key_group, partition_of_group};

impl Store {
    pub fn publish(
        &mut self,
        swarm: &SwarmId,
        calls: Vec<Call>,
        with: &With<'_>,
        rings: &mut Rings,
    ) -> Vec<CallResult> {
        if self.gone.contains(swarm) {
            return vec![Err(Refused::Gone); calls.len()];
        }
        let mut appends: Vec<(Arc<TopicSpec>, Vec<Message>)> = Vec::new();
        let mut results = Vec::new();
        for call in calls {
            let result = self.call(swarm, call, &mut appends, with, rings);
            results.push(result);
        }
        for (spec, messages) in appends {
            self.append(&spec, messages, with, rings);
        }
        results
    }

    fn call(
        &mut self,
        swarm: &SwarmId,
        call: Call,
        appends: &mut Vec<(Arc<TopicSpec>, Vec<Message>)>,
        with: &With<'_>,
        rings: &mut Rings,
    ) -> CallResult {
        let dedup = with.guards.on(Guard::Dedup);
        let longest = call.to.iter().map(|(_, m)| m.len() as u64).max().unwrap_or(0);
        let (mut skip, mut mark) = (0, 0);
        if dedup {
            match &call.once {
                Once::No => {}
                Once::Key {
                    subject,
                    key,
                    fingerprint,
                    ..
                } => {
                    if let Some(answer) = self.known(swarm, subject, key, *fingerprint, with.now) {
                        return answer;
                    }
                }
                Once::Session {
                    id, first, again_max, ..
                } => {
                    let high = self
                        .lives
                        .get(swarm)
                        .and_then(|l| l.sessions.get(id))
                        .filter(|s| s.expires_ms > with.now)
                        .map_or(0, |s| s.high);
                    if *first == 0 || *first > high + 1 {
                        return Err(Refused::SessionGap { high, first: *first });
                    }
                    skip = (high + 1 - first).min(longest);
                    if skip > *again_max {
                        return Err(Refused::SessionAhead { high, first: *first });
                    }
                    mark = high.max(first + longest - 1);
                }
                Once::Letter { .. } => {}
            }
        }
        if let Once::Letter { id, timer } = &call.once {
            self.letter_there(&call, *id, timer.as_ref(), with)?;
        }
        if skip < longest {
            for (spec, messages) in &call.to {
                if messages.is_empty() {
                    continue;
                }
                if self.is_removed(spec, with.guards) {
                    return Err(Refused::StageGone {
                        stage: spec.id.stage().clone(),
                    });
                }
                let pending = appends
                    .iter()
                    .find(|(s, _)| s.id == spec.id)
                    .map_or((0, 0), |(_, m)| (m.len() as u64, m.iter().map(message_bytes).sum()));
                if self.door_full(spec, pending) {
                    return Err(Refused::Full {
                        stage: spec.id.stage().clone(),
                    });
                }
            }
        }
        let request = call
            .to
            .iter()
            .flat_map(|(_, m)| m)
            .find_map(|m| m.request)
            .map(|r| r.id);
        let letter_of = call.to.first().map(|(spec, _)| spec.id.clone());
        for (spec, messages) in call.to {
            let new = messages.into_iter().skip(usize::try_from(skip).unwrap_or(usize::MAX));
            match appends.iter_mut().find(|(s, _)| s.id == spec.id) {
                Some((_, waiting)) => waiting.extend(new),
                None => {
                    let new: Vec<Message> = new.collect();
                    if !new.is_empty() {
                        appends.push((spec, new));
                    }
                }
            }
        }
        let life = self.lives.entry(swarm.clone()).or_default();
        match call.once {
            Once::Key {
                subject,
                key,
                fingerprint,
                expires_ms,
            } if dedup => {
                let known = Known {
                    fingerprint,
                    request,
                    reply: None,
                    expires_ms,
                };
                life.keys.insert((subject, key), known);
            }
            Once::Session { id, expires_ms, .. } if dedup => {
                life.sessions.insert(id, Session { high: mark, expires_ms });
            }
            Once::Letter { id, timer } => {
                if let Some(of) = letter_of {
                    self.letter_back(&of, id, timer, with, rings);
                }
            }
            _ => {}
        }
        Ok(Accepted::Appended { skipped: skip })
    }

    fn letter_there(&mut self, call: &Call, id: u64, timer: Option<&TimerDue>, with: &With<'_>) -> Result<(), Refused> {
        let spec = &call.to[0].0;
        let stage = spec.id.stage().clone();
        if self.is_removed(spec, with.guards) {
            return Err(Refused::StageGone { stage });
        }
        let topic = self.topic(&spec.id);
        if with.guards.on(Guard::Letter) && !topic.is_some_and(|t| t.dead.contains_key(&id)) {
            return Err(Refused::NoLetter);
        }
        let (Some(timer), Some(topic)) = (timer, topic) else {
            return Ok(());
        };
        if topic.rescaling() {
            return Err(Refused::Rescaling { stage });
        }
        let place = partition_of_group(key_group(&timer.key), topic.partitions);
        let set = (timer.key.clone(), timer.name.clone());
        if topic.parts.get(&place).is_some_and(|p| p.timers.contains_key(&set)) {
            return Err(Refused::TimerSet);
        }
        Ok(())
    }

    fn letter_back(&mut self, of: &TopicId, id: u64, timer: Option<TimerDue>, with: &With<'_>, rings: &mut Rings) {
        let Some(topic) = self.topic_mut(of) else { return };
        topic.dead.remove(&id);
        if topic.frees() {
            rings.rooms.push(of.clone());
        }
        let Some(timer) = timer else { return };
        let place = partition_of_group(key_group(&timer.key), topic.partitions);
        if let Some(part) = topic.parts.get_mut(&place) {
            part.timers.insert((timer.key.clone(), timer.name.clone()), timer);
            part.chain(with);
            rings.bells.push(of.partition(place));
        }
    }

    fn known(&mut self, swarm: &SwarmId, subject: &Subject, key: &str, print: Digest, now: u64) -> Option<CallResult> {
        let life = self.lives.get_mut(swarm)?;
        life.keys.retain(|_, known| known.expires_ms > now);
        if let Some(known) = life.keys.get(&(subject.clone(), key.to_owned())) {
            if known.fingerprint != print {
                return Some(Err(Refused::KeyReused));
            }
            return Some(Ok(Accepted::Duplicate {
                request: known.request,
                reply: known.reply.clone(),
            }));
        }
        let of_subject = life.keys.iter().filter(|((s, _), _)| s == subject);
        let (keys, bytes) = of_subject.fold((0, 0), |(n, bytes), (_, known)| {
            let reply = known
                .reply
                .as_ref()
                .map_or(0, |r| crate::record::encode_reply(r).len() as u64);
            (n + 1, bytes + reply)
        });
        (keys >= limits::DEDUP_KEYS_MAX || bytes >= limits::REPLY_BYTES_MAX).then(|| {
            Err(Refused::TooManyKeys {
                subject: subject.clone(),
            })
        })
    }

    fn door_full(&mut self, spec: &TopicSpec, pending: (u64, u64)) -> bool {
        let Some(topic) = self.topic_mut(&spec.id) else {
            return false;
        };
        let ((a, b), (c, d)) = (topic.unread(), topic.parked());
        let reached = |have: u64, max: u64| have * 100 >= max * limits::INBOX_GATEWAY_PERCENT;
        let full = reached(a + c + pending.0, spec.inbox.messages) || reached(b + d + pending.1, spec.inbox.bytes);
        if full {
            topic.refused_inbox = Some(spec.inbox);
        }
        full
    }
}
