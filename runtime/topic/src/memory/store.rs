//! The whole of the reference backend as a value. Everything is looked up by walking; nothing is counted twice.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;

use bytes::Bytes;
use skep_model::env::Entropy;
use skep_model::id::{CommitId, Digest, RequestId, Token, Uid};
use skep_model::limits;
use skep_model::message::{Message, Reply};
use skep_model::name::{StageName, Subject};
use skep_model::scope::{PartitionId, SwarmId, TopicId};
use skep_model::swarm::Bound as Most;

use crate::beats::Beats;
use crate::guard::{Guard, Guards};
use crate::record::message_bytes;
use crate::{
    CatalogRecord, Claim, Cursor, DeadLetter, Error, Fetched, Held, Lease, Parked, StatePage, StateSize, TimerDue,
    TopicSpec, TopicStatus, Unread, Want, Work, key_group, marked_again, partition_of_group,
};

#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    pub lives: BTreeMap<SwarmId, Life>,
    /// The last stop was a crash.
    pub crashed: bool,
    pub gone: BTreeSet<SwarmId>,
    /// Lives that were imported and that nobody has used yet.
    pub aside: BTreeMap<SwarmId, Aside>,
    pub catalog: BTreeMap<String, CatalogRecord>,
    pub catalog_number: u64,
    pub beats: Beats,
    pub last_letter: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Aside {
    /// Tells one import from the next.
    pub number: u64,
    pub whole: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Life {
    pub topics: BTreeMap<StageName, Topic>,
    pub keys: BTreeMap<(Subject, String), Known>,
    pub sessions: BTreeMap<Uid, Session>,
    /// Stages that were removed, and which birth of them was last.
    pub removed: BTreeMap<StageName, u64>,
}

#[derive(Debug, Clone)]
pub(super) struct Known {
    pub fingerprint: Digest,
    pub request: Option<RequestId>,
    pub reply: Option<Reply>,
    pub expires_ms: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    pub high: u64,
    pub expires_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Topic {
    pub born: u64,
    pub partitions: u16,
    /// Partitions before the last rescale.
    pub former: u16,
    pub generation: u64,
    pub parts: BTreeMap<u16, Part>,
    pub dead: BTreeMap<u64, DeadLetter>,
    pub state: BTreeMap<String, BTreeMap<String, Bytes>>,
    pub refused_inbox: Option<Most>,
    pub refused_dead: Option<Most>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    pub lease: Option<(Token, u64)>,
    pub seq: u64,
    pub last: CommitId,
    pub cursor: Cursor,
    pub unclean: u32,
    /// A lease that ran out or an attempt mark was noted: a disk knows the partition since.
    pub noted: bool,
    /// The attempt mark, and how often in a row.
    pub marked: Option<(Uid, u32)>,
    pub next_entry: u64,
    /// Entries from here on came after the rescale that is under way.
    pub seal: Option<u64>,
    pub frames: BTreeMap<u64, Frame>,
    pub parked: Vec<Slot>,
    pub timers: BTreeMap<(String, String), TimerDue>,
}

#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub uid: Uid,
    pub messages: Vec<Message>,
}

/// A parked entry. `head`: it is the first of its lane, so its time may come.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub parked: Parked,
    pub head: bool,
}

impl Slot {
    /// One that only waited behind another is due as soon as it is first.
    pub fn due_ms(&self) -> u64 {
        if self.parked.attempts == 0 {
            0
        } else {
            self.parked.due_ms
        }
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
    pub fn unborn(crashed: bool) -> Self {
        Self {
            unclean: u32::from(crashed),
            ..Self::default()
        }
    }

    /// Messages after the cursor, with their place.
    pub fn unread(&self) -> impl Iterator<Item = (u64, u32, &Frame)> {
        self.frames.iter().flat_map(move |(entry, frame)| {
            let count = u32::try_from(frame.messages.len()).expect("a frame is small");
            let place = move |index| Cursor { entry: *entry, index };
            (0..count)
                .filter(move |i| place(*i) >= self.cursor)
                .map(move |i| (*entry, i, frame))
        })
    }

    pub fn messages_and_bytes(&self) -> (u64, u64) {
        self.unread().fold((0, 0), |(n, bytes), (_, i, frame)| {
            (n + 1, bytes + message_bytes(&frame.messages[i as usize]))
        })
    }

    pub fn held(&self, lane: &str) -> bool {
        self.parked.iter().any(|s| s.parked.lane == lane)
    }

    pub fn head(&self, lane: &str) -> Option<usize> {
        self.parked.iter().position(|s| s.parked.lane == lane)
    }

    pub fn park(&mut self, parked: Parked) {
        let head = !self.held(&parked.lane);
        self.parked.push(Slot { parked, head });
    }

    /// Takes the head of a lane away and lets the next fall due.
    pub fn leave(&mut self, lane: &str, guards: &Guards) {
        let Some(at) = self.head(lane) else { return };
        self.parked.remove(at);
        if guards.on(Guard::Wake)
            && let Some(next) = self.head(lane)
        {
            self.parked[next].head = true;
        }
    }

    /// The node died: leases are gone, and whoever comes next should suspect what the last owner was doing. Of a partition that a
    /// disk knows nothing of, only that.
    pub fn crash(&mut self) {
        self.lease = None;
        let known = self.seq > 0 || self.next_entry > 0 || self.noted;
        self.unclean = if known { self.unclean + 1 } else { 1 };
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
    pub fn rescaling(&self) -> bool {
        self.parts.values().any(|part| part.seal.is_some())
    }

    /// Whether anything is, or may come, in a partition.
    pub fn has(&self, index: u16) -> bool {
        index < self.partitions || self.parts.get(&index).is_some_and(|part| part.seal.is_some())
    }

    pub fn owners(&self) -> u16 {
        if self.rescaling() {
            self.partitions.max(self.former)
        } else {
            self.partitions
        }
    }

    pub fn unread(&self) -> (u64, u64) {
        self.parts
            .values()
            .map(Part::messages_and_bytes)
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    pub fn parked(&self) -> (u64, u64) {
        let all = self.parts.values().flat_map(|p| &p.parked);
        all.fold((0, 0), |(n, bytes), s| (n + 1, bytes + work_bytes(&s.parked.work)))
    }

    /// Unread and parked together have reached `percent` of the bound.
    pub fn full(&self, bound: Most, percent: u64) -> bool {
        let ((a, b), (c, d)) = (self.unread(), self.parked());
        (a + c) * 100 >= bound.messages * percent || (b + d) * 100 >= bound.bytes * percent
    }

    pub fn dead_size(&self) -> (u64, u64) {
        let bytes = self
            .dead
            .values()
            .map(|d| crate::record::encode_dead_letter(d).len() as u64);
        (self.dead.len() as u64, bytes.sum())
    }

    pub fn dead_full(&self, bound: Most) -> bool {
        let (n, bytes) = self.dead_size();
        n >= bound.messages || bytes >= bound.bytes
    }

    pub fn shortest(&self, partitions: u16) -> u16 {
        let len = |p: &u16| {
            self.parts
                .get(p)
                .map_or(0, |part| part.messages_and_bytes().0 + part.parked.len() as u64)
        };
        (0..partitions).min_by_key(len).unwrap_or(0)
    }

    pub fn state_page(&self, after: &str) -> StatePage {
        let mut page = StatePage::default();
        let mut bytes = 0;
        let from = if after.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(after.to_owned())
        };
        for (key, values) in self.state.range::<String, _>((from, Bound::Unbounded)) {
            if page.keys.len() >= limits::STATE_PAGE_KEYS as usize || bytes >= limits::STATE_PAGE_BYTES as u64 {
                page.next = page.keys.last().map(|(last, _)| last.clone());
                break;
            }
            bytes += StateSize::of(key, values).bytes;
            page.keys.push((key.clone(), values.clone()));
        }
        page
    }

    pub fn state_size(&self) -> StateSize {
        let each = self.state.iter().map(|(key, values)| StateSize::of(key, values));
        each.fold(StateSize::default(), |a, b| StateSize {
            keys: a.keys + b.keys,
            bytes: a.bytes + b.bytes,
        })
    }

    /// Whether those who were refused should be told of room.
    pub fn frees(&mut self) -> bool {
        let mut ring = false;
        if self.refused_inbox.is_some_and(|bound| !self.full(bound, 50)) {
            self.refused_inbox = None;
            ring = true;
        }
        let (n, bytes) = self.dead_size();
        if self
            .refused_dead
            .is_some_and(|b| n * 2 < b.messages && bytes * 2 < b.bytes)
        {
            self.refused_dead = None;
            ring = true;
        }
        ring
    }
}

impl Store {
    pub fn topic(&self, id: &TopicId) -> Option<&Topic> {
        self.lives.get(id.swarm())?.topics.get(id.stage())
    }

    pub fn topic_mut(&mut self, id: &TopicId) -> Option<&mut Topic> {
        self.lives.get_mut(id.swarm())?.topics.get_mut(id.stage())
    }

    pub fn make_topic(&mut self, spec: &TopicSpec) -> &mut Topic {
        let life = self.lives.entry(spec.id.swarm().clone()).or_default();
        let topic = life.topics.entry(spec.id.stage().clone()).or_default();
        topic.born = topic.born.max(spec.born);
        if topic.partitions == 0 {
            topic.partitions = spec.partitions;
        }
        topic
    }

    /// Whether the stage was removed, as this writer knows it.
    pub fn is_removed(&self, spec: &TopicSpec, guards: &Guards) -> bool {
        let removed = self.lives.get(spec.id.swarm()).map(|life| &life.removed);
        let last = removed.and_then(|stages| stages.get(spec.id.stage()));
        guards.on(Guard::Birth) && last.is_some_and(|last| spec.born <= *last)
    }

    /// Removes a topic in which nothing is, and remembers its birth.
    pub fn remove_topic(&mut self, spec: &TopicSpec) -> bool {
        let mut topics = self.status(spec.id.swarm()).into_iter();
        let life = self.lives.entry(spec.id.swarm().clone()).or_default();
        let stage = spec.id.stage();
        let lives_on = life.topics.get(stage).is_some_and(|topic| topic.born > spec.born)
            || life.removed.get(stage).is_some_and(|last| *last >= spec.born);
        if !lives_on {
            if topics.any(|t| t.topic == spec.id && t.unread + t.parked + t.timers + t.dead > 0) {
                return false;
            }
            life.topics.remove(stage);
        }
        let last = life.removed.entry(stage.clone()).or_default();
        *last = spec.born.max(*last);
        if life.removed.len() as u64 > limits::REMOVED_STAGES_MAX {
            let earliest = life.removed.iter().min_by_key(|(stage, born)| (**born, *stage));
            let earliest = earliest.map(|(stage, _)| stage.clone()).expect("more than none");
            life.removed.remove(&earliest);
        }
        true
    }

    /// Appends messages to their partitions: one frame a partition, unless it would be too large. Loose ones stay together.
    pub fn append(&mut self, to: &TopicSpec, messages: Vec<Message>, with: &With<'_>, rings: &mut Rings) {
        let crashed = self.crashed;
        let topic = self.make_topic(to);
        let partitions = topic.partitions;
        let loose = topic.shortest(partitions);
        let mut by_part: BTreeMap<u16, Vec<Message>> = BTreeMap::new();
        for message in messages {
            let index = message
                .key
                .as_deref()
                .map_or(loose, |key| partition_of_group(key_group(key), partitions));
            by_part.entry(index).or_default().push(message);
        }
        for (index, messages) in by_part {
            let part = topic.parts.entry(index).or_insert_with(|| Part::unborn(crashed));
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

    // ----------------------------------------------------------------------------------------------- lease

    pub fn claim(
        &mut self,
        spec: &TopicSpec,
        index: u16,
        token: Token,
        ttl_ms: u64,
        with: &With<'_>,
    ) -> Result<Result<Claim, Held>, Error> {
        if self.gone.contains(spec.id.swarm()) || self.is_removed(spec, with.guards) {
            return Err(Error::Gone);
        }
        self.adopt(spec.id.swarm())?;
        let (crashed, now) = (self.crashed, with.now);
        let topic = self.make_topic(spec);
        if !topic.has(index) {
            return Err(Error::Gone);
        }
        let part = topic.parts.entry(index).or_insert_with(|| Part::unborn(crashed));
        if let Some((other, until)) = part.lease
            && other != token
        {
            if until > now {
                return Ok(Err(Held { ms_left: until - now }));
            }
            part.unclean += 1;
            part.noted = true;
        }
        part.lease = Some((token, now + ttl_ms));
        Ok(Ok(Claim {
            seq: part.seq,
            last: part.last,
            cursor: part.cursor,
            unclean: part.unclean,
            marked: part.marked,
        }))
    }

    /// The partition, if the lease is still the store's.
    pub fn owned(&self, lease: &Lease) -> Result<&Part, Error> {
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

    pub fn mark(&mut self, lease: &Lease, uid: Uid) -> Result<u32, Error> {
        self.owned(lease)?;
        let part = self.part_mut(&lease.partition).expect("owned");
        let times = marked_again(part.marked, uid);
        part.marked = Some((uid, times));
        part.noted = true;
        Ok(times)
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
        let topic = self.topic(lease.partition.topic()).expect("owned");
        if !topic.has(lease.partition.index()) {
            return Err(Error::Gone);
        }
        let seals = with.guards.on(Guard::Seal);
        if seals && part.seal.is_some_and(|seal| part.cursor.entry >= seal) {
            fetched.at_seal = true;
            return Ok(fetched);
        }
        if seals && part.seal.is_none() && topic.rescaling() {
            return Ok(fetched);
        }
        let until = part.seal.filter(|_| seals).unwrap_or(u64::MAX);
        let mut bytes = 0;
        for (entry, i, frame) in part.unread().take_while(|(entry, ..)| *entry < until) {
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
        for slot in heads
            .iter()
            .filter(|s| s.due_ms() <= with.now)
            .take(want.messages as usize)
        {
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
        let early = timers.iter().filter(|t| t.at_ms > with.now);
        let due = timers.len() - early.clone().count();
        let over = (timers.len() as u64).saturating_sub(want.timers_max.saturating_add(due as u64));
        let over = over.min(want.messages.into());
        fetched.early = early
            .take(usize::try_from(over).unwrap_or(usize::MAX))
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
            fetched.state_size = topic.state_size();
            fetched.load_state(want.state_bytes, |key| {
                Ok::<_, Error>(topic.state.get(key).cloned().unwrap_or_default())
            })?;
        }
        Ok(fetched)
    }

    // ----------------------------------------------------------------------------------------------- views

    pub fn status(&self, swarm: &SwarmId) -> Vec<TopicStatus> {
        let Some(life) = self.lives.get(swarm) else {
            return Vec::new();
        };
        let status = life.topics.iter().map(|(stage, topic)| {
            let (unread, unread_bytes) = topic.unread();
            let (parked, parked_bytes) = topic.parked();
            let (dead, dead_bytes) = topic.dead_size();
            TopicStatus {
                topic: swarm.topic(stage),
                unread,
                unread_bytes,
                parked,
                parked_bytes,
                timers: topic.parts.values().map(|p| p.timers.len() as u64).sum(),
                dead,
                dead_bytes,
            }
        });
        status.collect()
    }
}
