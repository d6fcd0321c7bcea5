//! The whole of the reference backend as a value. Everything is looked up by walking; nothing is counted twice.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use skep_model::env::Entropy;
use skep_model::id::{CommitId, Digest, RequestId, Token, Uid};
use skep_model::limits;
use skep_model::message::{Message, Reply, ReplyResult};
use skep_model::name::{StageName, Subject};
use skep_model::scope::{PartitionId, SwarmId, TopicId};
use skep_model::swarm::Bound;

use crate::guard::{Guard, Guards};
use crate::record::message_bytes;
use crate::{
    Accepted, Call, CallResult, CatalogRecord, Claim, Commit, Committed, Cursor, DeadLetter, Error, Fetched, Held, Lease,
    Once, Parked, Refused, Room, TimerDue, TopicSpec, TopicStatus, Unread, Want, Work,
};

#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    pub lives: BTreeMap<SwarmId, Life>,
    pub gone: BTreeSet<SwarmId>,
    pub catalog: BTreeMap<String, CatalogRecord>,
    pub last_letter: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Life {
    pub topics: BTreeMap<StageName, Topic>,
    keys: BTreeMap<(Subject, String), Known>,
    sessions: BTreeMap<Uid, Session>,
}

#[derive(Debug, Clone)]
struct Known {
    fingerprint: Digest,
    request: Option<RequestId>,
    reply: Option<Reply>,
    expires_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    high: u64,
    expires_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Topic {
    pub parts: BTreeMap<u16, Part>,
    pub dead: BTreeMap<u64, DeadLetter>,
    dead_bound: Option<Bound>,
    pub state: BTreeMap<String, BTreeMap<String, Bytes>>,
    refused_inbox: Option<Bound>,
    refused_dead: Option<Bound>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    pub lease: Option<(Token, u64)>,
    seq: u64,
    pub last: CommitId,
    cursor: Cursor,
    pub unclean: u32,
    next_entry: u64,
    frames: BTreeMap<u64, Frame>,
    pub parked: Vec<Slot>,
    pub timers: BTreeMap<(String, String), TimerDue>,
}

#[derive(Debug, Clone)]
struct Frame {
    uid: Uid,
    messages: Vec<Message>,
}

/// A parked entry. `head`: it is the first of its lane, so its time may come.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub parked: Parked,
    head: bool,
}

impl Slot {
    /// One that only waited behind another is due as soon as it is first.
    fn due_ms(&self) -> u64 {
        if self.parked.attempts == 0 { 0 } else { self.parked.due_ms }
    }
}

/// What an operation rings once it is applied.
#[derive(Debug, Default)]
pub(super) struct Rings {
    pub bells: Vec<PartitionId>,
    pub rooms: Vec<TopicId>,
    pub replies: Vec<Reply>,
}

/// Time, chance and guards, as arguments.
pub(super) struct With<'a> {
    pub now: u64,
    pub entropy: &'a dyn Entropy,
    pub guards: &'a Guards,
}

fn work_bytes(work: &Work) -> u64 {
    match work {
        Work::Message(message) => message_bytes(message),
        Work::Timer { key, name, .. } => (key.len() + name.len()) as u64,
    }
}

impl Part {
    /// Messages after the cursor, with their place.
    fn unread(&self) -> impl Iterator<Item = (u64, u32, &Frame)> {
        self.frames.iter().flat_map(move |(entry, frame)| {
            let count = u32::try_from(frame.messages.len()).expect("a frame is small");
            let place = move |index| Cursor { entry: *entry, index };
            (0..count)
                .filter(move |i| place(*i) >= self.cursor)
                .map(move |i| (*entry, i, frame))
        })
    }

    fn messages_and_bytes(&self) -> (u64, u64) {
        self.unread().fold((0, 0), |(n, bytes), (_, i, frame)| {
            (n + 1, bytes + message_bytes(&frame.messages[i as usize]))
        })
    }

    fn held(&self, lane: &str) -> bool {
        self.parked.iter().any(|s| s.parked.lane == lane)
    }

    fn head(&self, lane: &str) -> Option<usize> {
        self.parked.iter().position(|s| s.parked.lane == lane)
    }

    fn park(&mut self, parked: Parked) {
        let head = !self.held(&parked.lane);
        self.parked.push(Slot { parked, head });
    }

    /// Takes the head of a lane away and lets the next fall due.
    fn leave(&mut self, lane: &str, guards: &Guards) {
        let Some(at) = self.head(lane) else { return };
        self.parked.remove(at);
        if guards.on(Guard::Wake)
            && let Some(next) = self.head(lane)
        {
            self.parked[next].head = true;
        }
    }

    pub fn chain(&mut self, with: &With<'_>) {
        if with.guards.on(Guard::Chain) {
            self.last = CommitId::random(with.entropy);
        }
    }

    /// Removes a parked entry, as an operator's redrive would.
    pub fn take_parked(&mut self, uid: Uid, with: &With<'_>) -> Option<Parked> {
        let slot = self.parked.iter().find(|s| s.parked.uid == uid)?.clone();
        if slot.head {
            self.leave(&slot.parked.lane, with.guards);
        } else {
            self.parked.retain(|s| s.parked.uid != uid);
        }
        self.chain(with);
        Some(slot.parked)
    }
}

impl Topic {
    fn unread(&self) -> (u64, u64) {
        self.parts
            .values()
            .map(Part::messages_and_bytes)
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    fn parked(&self) -> (u64, u64) {
        let all = self.parts.values().flat_map(|p| &p.parked);
        all.fold((0, 0), |(n, bytes), s| (n + 1, bytes + work_bytes(&s.parked.work)))
    }

    /// Unread and parked together have reached `percent` of the bound.
    fn full(&self, bound: Bound, percent: u64) -> bool {
        let ((a, b), (c, d)) = (self.unread(), self.parked());
        (a + c) * 100 >= bound.messages * percent || (b + d) * 100 >= bound.bytes * percent
    }

    fn dead_size(&self) -> (u64, u64) {
        let bytes = self.dead.values().map(|d| crate::record::encode_dead_letter(d).len() as u64);
        (self.dead.len() as u64, bytes.sum())
    }

    fn dead_bound(&self) -> Bound {
        self.dead_bound.unwrap_or(Bound {
            messages: limits::DEAD_LETTERS_DEFAULT,
            bytes: limits::DEAD_LETTER_BYTES_DEFAULT,
        })
    }

    fn dead_full(&self) -> bool {
        let ((n, bytes), bound) = (self.dead_size(), self.dead_bound());
        n >= bound.messages || bytes >= bound.bytes
    }

    fn shortest(&self, partitions: u16) -> u16 {
        let len = |p: &u16| {
            self.parts
                .get(p)
                .map_or(0, |part| part.messages_and_bytes().0 + part.parked.len() as u64)
        };
        (0..partitions).min_by_key(len).unwrap_or(0)
    }

    /// Whether those who were refused should be told of room.
    pub fn frees(&mut self) -> bool {
        let mut ring = false;
        if self.refused_inbox.is_some_and(|bound| !self.full(bound, 50)) {
            self.refused_inbox = None;
            ring = true;
        }
        let (n, bytes) = self.dead_size();
        if self.refused_dead.is_some_and(|b| n * 2 < b.messages && bytes * 2 < b.bytes) {
            self.refused_dead = None;
            ring = true;
        }
        ring
    }
}

impl Store {
    fn topic(&self, id: &TopicId) -> Option<&Topic> {
        self.lives.get(id.swarm())?.topics.get(id.stage())
    }

    pub fn topic_mut(&mut self, id: &TopicId) -> Option<&mut Topic> {
        self.lives.get_mut(id.swarm())?.topics.get_mut(id.stage())
    }

    fn make_topic(&mut self, id: &TopicId) -> &mut Topic {
        self.lives
            .entry(id.swarm().clone())
            .or_default()
            .topics
            .entry(id.stage().clone())
            .or_default()
    }

    /// Appends messages to their partitions: one frame a partition, unless it would be too large. Loose ones stay together.
    fn append(&mut self, to: &TopicSpec, messages: Vec<Message>, with: &With<'_>, rings: &mut Rings) {
        let topic = self.make_topic(&to.id);
        topic.dead_bound = Some(to.dead_letters);
        let loose = topic.shortest(to.partitions);
        let mut by_part: BTreeMap<u16, Vec<Message>> = BTreeMap::new();
        for message in messages {
            let index = message.key.as_deref().map_or(loose, |key| to.partition_of_key(key));
            by_part.entry(index).or_default().push(message);
        }
        for (index, messages) in by_part {
            let part = topic.parts.entry(index).or_default();
            let mut frame: Vec<Message> = Vec::new();
            let mut size = 0;
            let mut frames = Vec::new();
            for message in messages {
                let bytes = message_bytes(&message);
                let too_large = !frame.is_empty() && size + bytes > limits::FRAME_BYTES_MAX as u64;
                if frame.len() >= limits::FRAME_MESSAGES_MAX || too_large {
                    frames.push(std::mem::take(&mut frame));
                    size = 0;
                }
                size += bytes;
                frame.push(message);
            }
            frames.push(frame);
            for messages in frames {
                let uid = Uid::random(with.entropy);
                part.frames.insert(part.next_entry, Frame { uid, messages });
                part.next_entry += 1;
            }
            rings.bells.push(to.id.partition(index));
        }
    }

    // --------------------------------------------------------------------------------------------- publish

    pub fn publish(&mut self, swarm: &SwarmId, calls: Vec<Call>, with: &With<'_>, rings: &mut Rings) -> Vec<CallResult> {
        if self.gone.contains(swarm) {
            return vec![Err(Refused::Gone); calls.len()];
        }
        let mut appends: Vec<(std::sync::Arc<TopicSpec>, Vec<Message>)> = Vec::new();
        let mut results = Vec::new();
        for call in calls {
            let result = self.call(swarm, call, &mut appends, with);
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
        appends: &mut Vec<(std::sync::Arc<TopicSpec>, Vec<Message>)>,
        with: &With<'_>,
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
                Once::Session { id, first, .. } => {
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
                    mark = high.max(first + longest - 1);
                }
            }
        }
        if skip < longest {
            for (spec, messages) in &call.to {
                if messages.is_empty() {
                    continue;
                }
                let pending = appends.iter().find(|(s, _)| s.id == spec.id).map_or((0, 0), |(_, m)| {
                    (m.len() as u64, m.iter().map(message_bytes).sum())
                });
                if self.door_full(spec, pending) {
                    return Err(Refused::Full {
                        stage: spec.id.stage().clone(),
                    });
                }
            }
        }
        let request = call.to.iter().flat_map(|(_, m)| m).find_map(|m| m.request).map(|r| r.id);
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
            _ => {}
        }
        Ok(Accepted::Appended { skipped: skip })
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
            let reply = known.reply.as_ref().map_or(0, |r| crate::record::encode_reply(r).len() as u64);
            (n + 1, bytes + reply)
        });
        (keys >= limits::DEDUP_KEYS_MAX || bytes >= limits::REPLY_BYTES_MAX).then(|| {
            Err(Refused::TooManyKeys {
                subject: subject.clone(),
            })
        })
    }

    fn door_full(&mut self, spec: &TopicSpec, pending: (u64, u64)) -> bool {
        let Some(topic) = self.topic_mut(&spec.id) else { return false };
        let ((a, b), (c, d)) = (topic.unread(), topic.parked());
        let reached = |have: u64, max: u64| have * 100 >= max * limits::INBOX_GATEWAY_PERCENT;
        let full = reached(a + c + pending.0, spec.inbox.messages) || reached(b + d + pending.1, spec.inbox.bytes);
        if full {
            topic.refused_inbox = Some(spec.inbox);
        }
        full
    }

    // ----------------------------------------------------------------------------------------------- lease

    pub fn claim(&mut self, id: &PartitionId, token: Token, ttl_ms: u64, now: u64) -> Result<Result<Claim, Held>, Error> {
        if self.gone.contains(id.topic().swarm()) {
            return Err(Error::Gone);
        }
        let part = self.make_topic(id.topic()).parts.entry(id.index()).or_default();
        if let Some((other, until)) = part.lease
            && other != token
        {
            if until > now {
                return Ok(Err(Held { ms_left: until - now }));
            }
            part.unclean += 1;
        }
        part.lease = Some((token, now + ttl_ms));
        Ok(Ok(Claim {
            seq: part.seq,
            last: part.last,
            cursor: part.cursor,
            unclean: part.unclean,
        }))
    }

    /// The partition, if the lease is still the store's.
    fn owned(&self, lease: &Lease) -> Result<&Part, Error> {
        if self.gone.contains(lease.partition.topic().swarm()) {
            return Err(Error::Gone);
        }
        self.topic(lease.partition.topic())
            .and_then(|t| t.parts.get(&lease.partition.index()))
            .filter(|p| p.lease.is_some_and(|(token, _)| token == lease.token))
            .ok_or(Error::Fenced)
    }

    pub fn set_lease(&mut self, lease: &Lease, until: Option<u64>) -> Result<(), Error> {
        self.owned(lease)?;
        let part = self.part_mut(&lease.partition).expect("owned");
        part.lease = until.map(|until| (lease.token, until));
        Ok(())
    }

    pub fn part_mut(&mut self, id: &PartitionId) -> Option<&mut Part> {
        self.topic_mut(id.topic())?.parts.get_mut(&id.index())
    }

    pub fn fetch(&self, lease: &Lease, want: Want, with: &With<'_>) -> Result<Fetched, Error> {
        let part = self.owned(lease)?;
        if part.last != want.base || part.cursor != want.from {
            return Err(Error::Stale);
        }
        let mut fetched = Fetched {
            now_ms: with.now,
            ..Fetched::default()
        };
        let mut bytes = 0;
        for (entry, i, frame) in part.unread() {
            let message = frame.messages[i as usize].clone();
            bytes += message_bytes(&message);
            let many = fetched.messages.len() >= want.messages as usize;
            if many || (bytes > want.bytes && !fetched.messages.is_empty()) {
                break;
            }
            let last = i as usize + 1 == frame.messages.len();
            fetched.messages.push(Unread {
                message,
                after: if last {
                    Cursor {
                        entry: entry + 1,
                        index: 0,
                    }
                } else {
                    Cursor { entry, index: i + 1 }
                },
                entry,
                entry_uid: frame.uid,
            });
        }
        let mut heads: Vec<&Slot> = part.parked.iter().filter(|s| s.head).collect();
        heads.sort_by_key(|s| s.due_ms());
        let mut bytes = 0;
        for slot in heads.iter().filter(|s| s.due_ms() <= with.now).take(want.messages as usize) {
            bytes += work_bytes(&slot.parked.work);
            if bytes > want.bytes && !fetched.retries.is_empty() {
                break;
            }
            fetched.retries.push(slot.parked.clone());
        }
        let mut timers: Vec<&TimerDue> = part.timers.values().collect();
        timers.sort_by_key(|t| (t.at_ms, &t.key, &t.name));
        fetched.timers = timers
            .iter()
            .filter(|t| t.at_ms <= with.now && !part.held(&t.key))
            .take(want.messages as usize)
            .map(|t| (*t).clone())
            .collect();
        if with.guards.on(Guard::Hold) {
            let keys = fetched.messages.iter().filter_map(|u| u.message.key.clone());
            fetched.held = keys.filter(|key| part.held(key)).collect::<HashSet<_>>();
        }
        let later = heads.iter().map(|s| s.due_ms()).chain(timers.iter().map(|t| t.at_ms));
        fetched.next_due_ms = later.filter(|at| *at > with.now).min();
        if want.state {
            let topic = self.topic(lease.partition.topic()).expect("owned");
            let keys = fetched.messages.iter().filter_map(|u| u.message.key.as_deref());
            let keys = keys.chain(fetched.retries.iter().filter_map(|p| p.work.key()));
            for key in keys.chain(fetched.timers.iter().map(|t| t.key.as_str())) {
                let values = topic.state.get(key).cloned().unwrap_or_default();
                fetched.state.insert(key.to_owned(), values);
            }
        }
        Ok(fetched)
    }

    // ---------------------------------------------------------------------------------------------- commit

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
            && topic.dead_full()
        {
            topic.refused_dead = Some(topic.dead_bound());
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
        let mut by_topic: Vec<(std::sync::Arc<TopicSpec>, Vec<Message>)> = Vec::new();
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
        rings.bells.push(lease.partition.clone());
        if life.topics.get_mut(own.stage()).expect("checked").frees() {
            rings.rooms.push(own.clone());
        }
        Ok(Committed::Ok)
    }

    // ----------------------------------------------------------------------------------------------- views

    pub fn status(&self, swarm: &SwarmId) -> Vec<TopicStatus> {
        let Some(life) = self.lives.get(swarm) else { return Vec::new() };
        let status = life.topics.iter().map(|(stage, topic)| {
            let (unread, unread_bytes) = topic.unread();
            let (dead, dead_bytes) = topic.dead_size();
            TopicStatus {
                topic: swarm.topic(stage),
                unread,
                unread_bytes,
                parked: topic.parked().0,
                timers: topic.parts.values().map(|p| p.timers.len() as u64).sum(),
                dead,
                dead_bytes,
                keys: topic.state.len() as u64,
            }
        });
        status.collect()
    }
}
