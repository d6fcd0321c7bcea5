//! The one atomic commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use skep_model::limits;
use skep_model::message::{Message, ReplyResult};
use skep_model::scope::TopicId;

use super::store::{Rings, Store, With};
use crate::guard::Guard;
use crate::record::message_bytes;
use crate::{Commit, Committed, Cursor, Error, Lease, Room, TimerDue, TopicSpec, Work};

impl Store {
    /// All checks, in DELIVERY's order.
    fn check(&mut self, lease: &Lease, c: &Commit, with: &With<'_>) -> Result<Option<Committed>, Error> {
        let on = |guard| with.guards.on(guard);
        if self.gone.contains(lease.partition.topic().swarm()) {
            return Err(Error::Gone);
        }
        let part = self
            .topic(lease.partition.topic())
            .and_then(|t| t.parts.get(&lease.partition.index()))
            .ok_or(Error::Fenced)?;
        if on(Guard::Token) && part.lease.is_none_or(|(token, _)| token != lease.token) {
            return Err(Error::Fenced);
        }
        if part.last == c.id {
            return Ok(Some(Committed::Done));
        }
        if on(Guard::Base) && part.last != c.base || on(Guard::Seq) && part.seq != c.seq {
            return Err(Error::Stale);
        }
        if let Some(span) = &c.span {
            if on(Guard::Cursor) && part.cursor != span.from {
                return Err(Error::Stale);
            }
            let frame = part.frames.get(&span.last_entry).ok_or(Error::InputGone)?;
            if on(Guard::EntryUid) && frame.uid != span.last_entry_uid {
                return Err(Error::InputGone);
            }
            let behind = Cursor {
                entry: span.last_entry + 1,
                index: 0,
            };
            let inside = span.to.entry == span.last_entry && (span.to.index as usize) < frame.messages.len();
            if span.to != behind && !inside || span.to <= span.from {
                return Err(Error::InputGone);
            }
        }
        for timer in &c.timers {
            let found = part.timers.get(&(timer.key.clone(), timer.name.clone()));
            if on(Guard::TimerUid) && !found.is_some_and(|t| t.uid == timer.uid && t.at_ms <= with.now) {
                return Err(Error::InputGone);
            }
        }
        for retry in &c.retries {
            let found = part.head(&retry.lane).map(|at| &part.parked[at]);
            if on(Guard::RetryUid) && !found.is_some_and(|s| s.parked.uid == retry.uid && s.due_ms() <= with.now) {
                return Err(Error::InputGone);
            }
        }
        if c.outputs.iter().any(|o| self.is_removed(&o.to, with.guards)) {
            return Err(Error::Stale);
        }
        if on(Guard::Room) {
            self.check_room(lease.partition.topic(), c)?;
        }
        let state = c.state.iter();
        let state = state.map(|p| p.key.len() + p.name.len() + p.value.as_ref().map_or(0, Bytes::len));
        let replies = c.replies.iter().map(|r| match &r.result {
            ReplyResult::Response(body) => body.len(),
            _ => 0,
        });
        let outputs: u64 = c.outputs.iter().map(|o| message_bytes(&o.message)).sum();
        let bytes = outputs + state.chain(replies).sum::<usize>() as u64;
        if bytes > limits::COMMIT_BYTES_MAX as u64 {
            return Err(Error::TooLarge(format!(
                "the effects of one commit are {bytes} bytes, at most {} may be",
                limits::COMMIT_BYTES_MAX
            )));
        }
        Ok(None)
    }

    fn check_room(&mut self, own: &TopicId, c: &Commit) -> Result<(), Error> {
        let mut full = None;
        for output in &c.outputs {
            if let Some(topic) = self.topic_mut(&output.to.id)
                && topic.full(output.to.inbox, 100)
            {
                topic.refused_inbox = Some(output.to.inbox);
                full.get_or_insert((output.to.id.stage().clone(), Room::Inbox));
            }
        }
        if let Some(topic) = self.topic_mut(own)
            && !c.dead.is_empty()
            && topic.dead_full(c.own.dead_letters)
        {
            topic.refused_dead = Some(c.own.dead_letters);
            full.get_or_insert((own.stage().clone(), Room::DeadLetters));
        }
        match full {
            Some((stage, what)) => Err(Error::Full { stage, what }),
            None => Ok(()),
        }
    }

    pub fn commit(&mut self, lease: &Lease, c: Commit, with: &With<'_>, rings: &mut Rings) -> Result<Committed, Error> {
        if let Some(done) = self.check(lease, &c, with)? {
            return Ok(done);
        }
        let own = lease.partition.topic();
        let part = self.part_mut(&lease.partition).expect("checked");
        if let Some(span) = &c.span {
            part.cursor = span.to;
            part.frames.retain(|entry, _| *entry >= span.to.entry);
        }
        for retry in c.retries {
            match retry.again {
                Some(again) if with.guards.on(Guard::InPlace) => {
                    if let Some(at) = part.head(&retry.lane) {
                        part.parked[at].parked = again;
                    }
                }
                again => {
                    part.leave(&retry.lane, with.guards);
                    again.into_iter().for_each(|parked| part.park(parked));
                }
            }
        }
        c.park.into_iter().for_each(|parked| part.park(parked));
        for timer in c.timers {
            part.timers.remove(&(timer.key, timer.name));
        }
        for set in c.set_timers {
            let place = (set.key.clone(), set.name.clone());
            part.timers.remove(&place);
            if let Some(at_ms) = set.at_ms {
                let due = TimerDue {
                    uid: set.uid,
                    key: set.key,
                    name: set.name,
                    at_ms,
                };
                part.timers.insert(place, due);
            }
        }
        part.seq += 1;
        part.last = c.id;
        part.unclean = 0;
        part.marked = None;
        part.lease = Some((lease.token, with.now + limits::LEASE_TTL_MS));
        let topic = self.topic_mut(own).expect("checked");
        for put in c.state {
            let values = topic.state.entry(put.key.clone()).or_default();
            match put.value {
                Some(value) => values.insert(put.name, value),
                None => values.remove(&put.name),
            };
            if values.is_empty() {
                topic.state.remove(&put.key);
            }
        }
        let mut by_topic: Vec<(Arc<TopicSpec>, Vec<Message>)> = Vec::new();
        for output in c.outputs {
            match by_topic.iter_mut().find(|(spec, _)| spec.id == output.to.id) {
                Some((_, messages)) => messages.push(output.message),
                None => by_topic.push((output.to, vec![output.message])),
            }
        }
        for (spec, messages) in by_topic {
            self.append(&spec, messages, with, rings);
        }
        let mut letters = BTreeMap::new();
        for letter in c.dead {
            self.last_letter += 1;
            if let Work::Message(Message { request: Some(r), .. }) = &letter.work {
                letters.insert(r.id, self.last_letter);
            }
            let id = self.last_letter;
            self.topic_mut(own).expect("checked").dead.insert(id, letter);
        }
        let life = self.lives.get_mut(own.swarm()).expect("checked");
        for mut reply in c.replies {
            if let ReplyResult::Failed { dead_letter, .. } = &mut reply.result
                && dead_letter.is_none()
            {
                *dead_letter = letters.get(&reply.request).copied();
            }
            if let Some(known) = life.keys.values_mut().find(|k| k.request == Some(reply.request)) {
                known.reply.get_or_insert(reply.clone());
            }
            rings.replies.push(reply);
        }
        rings.replies.extend(c.returned);
        rings.bells.push(lease.partition.clone());
        if life.topics.get_mut(own.stage()).expect("checked").frees() {
            rings.rooms.push(own.clone());
        }
        Ok(Committed::Ok)
    }
}
