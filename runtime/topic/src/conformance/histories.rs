//! Random histories: publishers that try again, owners that crash, wake late, restart and send twice, replies that get lost, and
//! stores that fail over to an earlier point. At the end all must be applied exactly once, in order, with the state to match.
//!
//! The steps are those of the checked model (one partition, any claim may succeed at any time, a commit stays on the wire to be
//! delivered late, again or never); here they are drawn at random from a seed instead of walked exhaustively, and run against the
//! real code. Small worlds and many seeds find more than long runs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use skep_model::env::{Entropy, SeededEntropy};
use skep_model::id::{CommitId, Digest, Incarnation, Token, Uid};
use skep_model::limits::LEASE_TTL_MS;
use skep_model::message::Message;
use skep_model::name::TenantId;
use skep_model::scope::{PartitionId, Scope, SwarmId};
use skep_model::swarm::Bound;

use super::actors::{finished, output, stage};
use super::{Harness, Verdict};
use crate::{
    Accepted, Backend, Call, Claim, Commit, Committed, DeadLetter, Error, Fetched, Gate, Lease, Once, Parked, Publish,
    Retry, Span, StatePut, TimerDue, TimerSet, TopicSpec, Want, Work,
};

/// A store that faults can be put into.
#[async_trait]
pub trait Faults: Harness {
    /// Names this point of the history. Does nothing where a store cannot go back.
    fn mark(&mut self);

    /// Falls back to the last mark, if nothing that left depends on what comes after, or does what else can go wrong.
    async fn fail_over(&mut self);

    /// An operator takes a parked message or a timer away. Returns the uid of what will have no effect.
    fn operator_takes(&mut self, partition: &PartitionId) -> Option<Uid>;
}

/// How large a history is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub messages: usize,
    pub keys: usize,
    pub steps: usize,
    /// Of a hundred messages, how many fail when they are tried.
    pub fail_percent: u64,
    /// Of a hundred steps, how many are faults of the store.
    pub fault_percent: u64,
    pub operator: bool,
}

impl Shape {
    /// A few messages and many faults.
    pub const SMALL: Self = Self {
        messages: 4,
        keys: 2,
        steps: 60,
        fail_percent: 30,
        fault_percent: 14,
        operator: false,
    };
}

#[derive(Debug)]
struct Sent {
    message: Message,
    acked: bool,
    /// When its last append was answered.
    appended: Option<u64>,
}

#[derive(Debug, Clone)]
struct View {
    lease: Lease,
    claim: Claim,
    /// Batches sent and not answered, oldest first.
    in_flight: Vec<Arc<Commit>>,
}

impl View {
    /// What the owner believes once everything that it sent is applied.
    fn ahead(&self) -> Claim {
        let mut claim = self.claim.clone();
        for commit in &self.in_flight {
            advance(&mut claim, commit);
        }
        claim
    }
}

fn advance(claim: &mut Claim, commit: &Commit) {
    claim.seq += 1;
    claim.last = commit.id;
    claim.cursor = commit.span.map_or(claim.cursor, |s| s.to);
}

#[derive(Debug, Clone)]
struct OnWire {
    owner: usize,
    lease: Lease,
    commit: Arc<Commit>,
}

struct History<'a> {
    faults: &'a mut dyn Faults,
    chance: SeededEntropy,
    shape: Shape,
    swarm: SwarmId,
    topic: Arc<TopicSpec>,
    sink: Arc<TopicSpec>,
    sent: Vec<Sent>,
    views: [Option<View>; 2],
    wire: Vec<OnWire>,
    taken: HashSet<Uid>,
    step: u64,
}

/// Runs one history.
///
/// # Errors
/// What it broke, with the seed.
pub async fn run(seed: u64, shape: Shape, faults: &mut dyn Faults) -> Verdict {
    let name = "history".parse().map_err(|e| format!("{e}"))?;
    let swarm = Scope::of(TenantId::default_tenant()).swarm(&name, Incarnation([1; 16]));
    let spec = |name: &str| {
        Arc::new(TopicSpec {
            id: swarm.topic(&stage(name)),
            born: 1,
            partitions: 1,
            inbox: Bound {
                messages: 10_000,
                bytes: 1 << 30,
            },
            dead_letters: Bound {
                messages: 10_000,
                bytes: 1 << 30,
            },
        })
    };
    let mut history = History {
        faults,
        chance: SeededEntropy::new(seed),
        shape,
        topic: spec("a"),
        sink: spec("sink"),
        swarm,
        sent: Vec::new(),
        views: [None, None],
        wire: Vec::new(),
        taken: HashSet::new(),
        step: 0,
    };
    history.all().await.map_err(|why| format!("seed {seed}: {why}"))
}

/// The effect of a timer that a message set.
fn timer_effect(uid: Uid) -> Uid {
    uid.child("timer", 0)
}

/// Some messages set a timer; which ones is part of them.
fn sets_timer(uid: Uid) -> bool {
    uid.0[3].is_multiple_of(4)
}

fn effects_in(value: &[u8]) -> Vec<Uid> {
    value.chunks_exact(16).filter_map(Uid::from_slice).collect()
}

/// What an owner knows of the keys in a read, with the effects of its batches so far.
struct Overlay {
    lists: BTreeMap<String, Vec<Uid>>,
    held: HashSet<String>,
}

impl Overlay {
    fn of(fetched: &Fetched, rest: &Fetched) -> Self {
        let mut lists: BTreeMap<String, Vec<Uid>> = BTreeMap::new();
        for unread in &rest.messages {
            lists.entry(unread.message.key.clone().unwrap_or_default()).or_default();
        }
        for (key, values) in &fetched.state {
            let list = values.get("l").map_or_else(Vec::new, |v| effects_in(v));
            lists.insert(key.clone(), list);
        }
        let held = fetched.held.clone();
        Self { lists, held }
    }
}

/// A batch while it is processed.
struct Draft<'a> {
    commit: Commit,
    overlay: &'a mut Overlay,
}

impl History<'_> {
    fn backend(&self) -> Arc<dyn Backend> {
        self.faults.backend()
    }

    fn below(&self, n: usize) -> usize {
        usize::try_from(self.chance.next_u64() % n.max(1) as u64).unwrap_or(0)
    }

    fn percent(&self, p: u64) -> bool {
        self.chance.next_u64() % 100 < p
    }

    async fn all(&mut self) -> Verdict {
        for _ in 0..self.shape.steps {
            self.step += 1;
            if self.percent(self.shape.fault_percent) {
                if self.percent(50) {
                    self.faults.mark();
                } else {
                    self.faults.fail_over().await;
                }
                continue;
            }
            match self.below(12) {
                0..3 => self.publish().await?,
                3 => self.claim().await?,
                4 => self.restart().await?,
                5 if self.shape.operator => {
                    let taken = self.faults.operator_takes(&self.topic.id.partition(0));
                    self.taken.extend(taken);
                }
                5..9 => self.build().await?,
                _ => self.deliver().await?,
            }
        }
        // Faults end: publishers get through, what is late arrives, a new owner drains.
        for i in 0..self.sent.len() {
            self.send(i, Gate::Durable).await?;
        }
        while !self.wire.is_empty() {
            self.deliver().await?;
        }
        self.drain().await?;
        self.judge().await
    }

    async fn publish(&mut self) -> Verdict {
        let gate = if self.percent(15) {
            Gate::Durable
        } else {
            Gate::Appended
        };
        if self.sent.len() < self.shape.messages && self.percent(70) {
            let key = format!("k{}", self.below(self.shape.keys));
            let message = Message {
                uid: Uid(self.chance.bits128()),
                key: Some(key),
                headers: Vec::new(),
                payload: Bytes::from_static(b"m"),
                accepted_ms: 0,
                request: None,
                trace: None,
                lineage: None,
                hops: Vec::new(),
            };
            self.sent.push(Sent {
                message,
                acked: false,
                appended: None,
            });
            self.send(self.sent.len() - 1, gate).await
        } else if self.sent.is_empty() {
            Ok(())
        } else {
            self.send(self.below(self.sent.len()), gate).await
        }
    }

    /// Publishers try again until they are acknowledged, under the same idempotency key.
    async fn send(&mut self, i: usize, gate: Gate) -> Verdict {
        if self.sent[i].acked {
            return Ok(());
        }
        let message = self.sent[i].message.clone();
        let once = Once::Key {
            subject: stage("door").as_str().parse().map_err(|e| format!("{e}"))?,
            key: message.uid.to_string(),
            fingerprint: Digest::of(&message.payload),
            expires_ms: u64::MAX / 4,
        };
        let publish = Publish {
            swarm: self.swarm.clone(),
            calls: vec![Call {
                to: vec![(Arc::clone(&self.topic), vec![message])],
                once,
            }],
            gate,
        };
        let results = self
            .backend()
            .publish(publish)
            .await
            .map_err(|e| format!("publish: {e}"))?;
        match results.first() {
            Some(Ok(Accepted::Appended { .. })) => {
                self.sent[i].appended = Some(self.step);
                self.sent[i].acked = gate == Gate::Durable;
            }
            Some(Ok(Accepted::Duplicate { .. })) => self.sent[i].acked = true,
            other => return Err(format!("publish: {other:?}")),
        }
        Ok(())
    }

    async fn claim(&mut self) -> Verdict {
        // A new owner takes a free place first, so that the former one lives on as a zombie.
        let owner = self
            .views
            .iter()
            .position(Option::is_none)
            .unwrap_or_else(|| self.below(2));
        self.faults.advance(LEASE_TTL_MS + 1).await;
        self.views[owner] = self.load(Token(self.chance.bits128())).await?;
        Ok(())
    }

    /// An owner gives up its batch and loads again under the token that it has.
    async fn restart(&mut self) -> Verdict {
        let owner = self.below(2);
        if let Some(view) = self.views[owner].take() {
            self.views[owner] = self.load(view.lease.token).await?;
        }
        Ok(())
    }

    async fn load(&self, token: Token) -> Result<Option<View>, String> {
        let lease = Lease {
            partition: self.topic.id.partition(0),
            token,
        };
        let claim = self.backend().claim(&self.topic, 0, token, LEASE_TTL_MS).await;
        Ok(claim.map_err(|e| format!("claim: {e}"))?.ok().map(|claim| View {
            lease,
            claim,
            in_flight: Vec::new(),
        }))
    }

    async fn build(&mut self) -> Verdict {
        let owner = self.below(2);
        let Some(view) = self.views[owner].clone() else {
            return Ok(());
        };
        if !view.in_flight.is_empty() {
            return Ok(());
        }
        let messages = 1 + u32::try_from(self.below(3)).unwrap_or(0);
        match self.fetch(&view, messages).await {
            Ok(mut fetched) => {
                // One read may make two batches in flight, the second on the overlay of the first.
                let at = self.below(fetched.messages.len() + 1);
                let rest = Fetched {
                    messages: fetched.messages.split_off(at),
                    ..Fetched::default()
                };
                let mut view = view;
                let mut overlay = Overlay::of(&fetched, &rest);
                for part in [fetched, rest] {
                    let commit = self.process(&view.ahead(), &part, &mut overlay, true);
                    let whole = part.messages.is_empty() || commit.as_ref().is_some_and(|c| c.span.is_some());
                    let Some(commit) = commit else { break };
                    view.in_flight.push(commit.clone());
                    self.wire.push(OnWire {
                        owner,
                        lease: view.lease.clone(),
                        commit,
                    });
                    // The next one starts where this one ended.
                    if !whole {
                        break;
                    }
                }
                self.views[owner] = Some(view);
            }
            Err(Error::Fenced | Error::Stale) => self.views[owner] = None,
            Err(e) => return Err(format!("fetch: {e}")),
        }
        Ok(())
    }

    async fn fetch(&self, view: &View, messages: u32) -> Result<Fetched, Error> {
        let want = Want {
            from: view.claim.cursor,
            base: view.claim.last,
            messages,
            bytes: 1 << 20,
            state: true,
            state_bytes: 1 << 20,
            timers_max: u64::MAX,
        };
        self.backend().fetch(&view.lease, want).await
    }

    fn process(&self, at: &Claim, fetched: &Fetched, overlay: &mut Overlay, failures: bool) -> Option<Arc<Commit>> {
        let before = overlay.lists.clone();
        let mut draft = Draft {
            commit: Commit::empty(
                Arc::clone(&self.topic),
                CommitId(self.chance.bits128()),
                at.seq,
                at.last,
            ),
            overlay,
        };
        // Faults are likelier to meet when a batch takes one kind of input; all kinds together come too.
        let kinds = if failures { 1 + self.below(7) } else { 7 };
        if kinds & 1 != 0 {
            for parked in fetched.retries.iter().take(2) {
                self.retry(&mut draft, parked, failures);
            }
        }
        if kinds & 2 != 0 {
            for timer in fetched.timers.iter().take(2) {
                draft.commit.timers.push(timer.clone());
                self.apply(&mut draft, timer_effect(uid_named(timer)), &timer.key);
            }
        }
        if kinds & 4 != 0 {
            for unread in &fetched.messages {
                self.take(&mut draft, &unread.message, failures);
                draft.commit.span = Some(Span {
                    from: at.cursor,
                    to: unread.after,
                    last_entry: unread.entry,
                    last_entry_uid: unread.entry_uid,
                });
            }
        }
        for (key, list) in &draft.overlay.lists {
            if before.get(key) != Some(list) {
                draft.commit.state.push(StatePut {
                    key: key.clone(),
                    name: "l".to_owned(),
                    value: Some(list.iter().flat_map(|uid| uid.0).collect()),
                });
            }
        }
        let c = draft.commit;
        (c.span.is_some() || !c.retries.is_empty() || !c.timers.is_empty()).then(|| Arc::new(c))
    }

    fn retry(&self, draft: &mut Draft<'_>, parked: &Parked, failures: bool) {
        let Work::Message(message) = &parked.work else { return };
        let key = message.key.clone().unwrap_or_default();
        if failures && self.percent(self.shape.fail_percent) {
            if parked.attempts >= 3 {
                draft.commit.retries.push(finished(parked));
                draft.commit.dead.push(DeadLetter {
                    work: parked.work.clone(),
                    attempts: parked.attempts + 1,
                    reason: "fail".to_owned(),
                    detail: String::new(),
                    stderr: String::new(),
                    module: Digest([0; 32]),
                    at_ms: 0,
                });
            } else {
                draft.commit.retries.push(Retry {
                    uid: parked.uid,
                    lane: parked.lane.clone(),
                    again: Some(Parked {
                        uid: Uid(self.chance.bits128()),
                        attempts: parked.attempts + 1,
                        ..parked.clone()
                    }),
                });
            }
        } else {
            draft.commit.retries.push(finished(parked));
            self.applied(draft, message.uid, &key);
        }
    }

    fn take(&self, draft: &mut Draft<'_>, message: &Message, failures: bool) {
        let key = message.key.clone().unwrap_or_default();
        let held = draft.overlay.held.contains(&key);
        let fails = !held && failures && self.percent(self.shape.fail_percent);
        if !held && !fails {
            return self.applied(draft, message.uid, &key);
        }
        draft.overlay.held.insert(key.clone());
        draft.commit.park.push(Parked {
            uid: Uid(self.chance.bits128()),
            lane: key,
            work: Work::Message(message.clone()),
            attempts: u32::from(fails),
            due_ms: 0,
            cause: String::new(),
        });
    }

    fn applied(&self, draft: &mut Draft<'_>, uid: Uid, key: &str) {
        self.apply(draft, uid, key);
        if sets_timer(uid) {
            draft.commit.set_timers.push(TimerSet {
                key: key.to_owned(),
                name: uid.to_string(),
                at_ms: Some(0),
                uid: Uid(self.chance.bits128()),
            });
        }
    }

    fn apply(&self, draft: &mut Draft<'_>, effect: Uid, key: &str) {
        draft.overlay.lists.entry(key.to_owned()).or_default().push(effect);
        let message = Message {
            uid: effect,
            key: Some(key.to_owned()),
            headers: Vec::new(),
            payload: Bytes::new(),
            accepted_ms: 0,
            request: None,
            trace: None,
            lineage: None,
            hops: Vec::new(),
        };
        draft.commit.outputs.push(output(&self.sink, message));
    }

    /// Some commit arrives: late, again, or with its answer lost.
    async fn deliver(&mut self) -> Verdict {
        if self.wire.is_empty() {
            return Ok(());
        }
        let at = self.below(self.wire.len());
        let sent = self.wire[at].clone();
        let again = self.percent(40) && self.step < self.shape.steps as u64;
        if !again {
            self.wire.swap_remove(at);
        }
        let answer = self.backend().commit(&sent.lease, sent.commit.clone()).await;
        let heard = self.percent(75);
        let place = |view: &View| view.in_flight.iter().position(|c| c.id == sent.commit.id);
        match answer {
            Ok(Committed::Ok | Committed::Done) => {
                // It answers every batch before it as well.
                if let Some(view) = self.views[sent.owner].as_mut().filter(|_| heard)
                    && let Some(at) = place(view)
                {
                    for commit in view.in_flight.drain(..=at) {
                        advance(&mut view.claim, &commit);
                    }
                }
            }
            Err(Error::Fenced | Error::Stale | Error::InputGone) => {
                // The owner drops every cache and every later batch; what is on the wire stays there.
                if heard && self.views[sent.owner].as_ref().is_some_and(|v| place(v).is_some()) {
                    self.views[sent.owner] = None;
                }
            }
            Err(e) => return Err(format!("commit: {e}")),
        }
        Ok(())
    }

    async fn drain(&mut self) -> Verdict {
        self.faults.advance(LEASE_TTL_MS + 1).await;
        let token = Token(self.chance.bits128());
        let mut view = self.load(token).await?.ok_or("drain: the partition is held")?;
        for _ in 0..10 * self.shape.messages + 50 {
            let fetched = self.fetch(&view, 10).await.map_err(|e| format!("drain: {e}"))?;
            let mut overlay = Overlay::of(&fetched, &Fetched::default());
            let Some(commit) = self.process(&view.claim, &fetched, &mut overlay, false) else {
                return Ok(());
            };
            let answer = self.backend().commit(&view.lease, commit.clone()).await;
            answer.map_err(|e| format!("drain: {e}"))?;
            advance(&mut view.claim, &commit);
        }
        Err("it does not drain".to_owned())
    }

    async fn judge(&self) -> Verdict {
        let backend = self.backend();
        let lease = Lease {
            partition: self.sink.id.partition(0),
            token: Token(self.chance.bits128()),
        };
        let claim = backend.claim(&self.sink, 0, lease.token, LEASE_TTL_MS).await;
        let claim = claim
            .map_err(|e| format!("sink: {e}"))?
            .map_err(|e| format!("sink: {e}"))?;
        let view = View {
            lease,
            claim,
            in_flight: Vec::new(),
        };
        let out = self
            .fetch(&view, u32::MAX)
            .await
            .map_err(|e| format!("sink: {e}"))?
            .messages;
        let letters = backend.dead_letters(&self.swarm, None, 0, u32::MAX).await;
        let letters = letters.map_err(|e| format!("dead letters: {e}"))?;
        let mut fates: HashMap<Uid, u32> = HashMap::new();
        let mut by_key: BTreeMap<String, Vec<Uid>> = BTreeMap::new();
        for unread in &out {
            *fates.entry(unread.message.uid).or_default() += 1;
            let key = unread.message.key.clone().unwrap_or_default();
            by_key.entry(key).or_default().push(unread.message.uid);
        }
        let applied: HashSet<Uid> = fates.keys().copied().collect();
        for letter in &letters {
            *fates.entry(letter.letter.work.uid()).or_default() += 1;
        }
        for sent in &self.sent {
            let uid = sent.message.uid;
            let fate = fates.remove(&uid).unwrap_or(0);
            let taken = u32::from(self.taken.contains(&uid));
            if fate > 1 || (fate == 0 && taken == 0) {
                return Err(format!("message {uid} took effect {fate} times"));
            }
            let fired = fates.remove(&timer_effect(uid)).unwrap_or(0);
            let expected = u32::from(sets_timer(uid) && applied.contains(&uid));
            if fired > expected || (fired < expected && !self.taken.contains(&timer_effect(uid))) {
                return Err(format!(
                    "the timer of message {uid} fired {fired} times and not {expected}"
                ));
            }
        }
        if let Some(uid) = fates.keys().next() {
            return Err(format!("effect {uid} without its input"));
        }
        for (key, effects) in &by_key {
            let state = backend
                .state(&self.topic.id, key)
                .await
                .map_err(|e| format!("state: {e}"))?;
            let list = state.get("l").map_or_else(Vec::new, |v| effects_in(v));
            if list != *effects {
                return Err(format!("the state of {key} is not its effects in order"));
            }
            let places = effects
                .iter()
                .filter_map(|uid| self.sent.iter().find(|s| s.message.uid == *uid))
                .filter_map(|sent| sent.appended);
            if !places.is_sorted() {
                return Err(format!("the order of {key} is broken"));
            }
        }
        Ok(())
    }
}

/// The uid of the message that set a timer: its name.
fn uid_named(timer: &TimerDue) -> Uid {
    timer.name.parse().unwrap_or_default()
}
