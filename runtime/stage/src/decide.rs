//! Decide purely: what was fetched, what the Bee returned and the stage's policy become one commit, as a value.
//!
//! Invariants:
//! - Every item before the cut is consumed exactly once: applied, parked, dead-lettered or expired. What lies behind the cut is
//!   not mentioned, so it is fetched again at no attempt's cost.
//! - Under `order: hold` an item whose lane is held is parked behind it, and what it returned or wrote is discarded.
//! - A failed item's only effect is its parking or its dead letter. The Bee saw its own writes while it worked on later items of
//!   the same key, so where an item fails here although the Bee called it done, the prefix ends before the next of that key.

mod effects;
mod ends;
mod join;
mod laps;
mod sum;
mod ttl;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use skep_model::env::Entropy;
use skep_model::id::{CommitId, Uid};
use skep_model::limits::{COMMIT_BYTES_MAX, RETRY_AFTER_MS_MAX};
use skep_model::message::{Message, Reply, ReplyResult, Request, TraceContext};
use skep_model::name::StageName;
use skep_model::step::{Batch, Due, Input, StateRoom, Step, Trap, TrapKind};
use skep_model::swarm::{Order, RetryPolicy};
use skep_topic::{Commit, Cursor, DeadLetter, Fetched, Parked, StatePut, TimerDue, TimerSet, Unread, Work};

use self::effects::with_hop;
use self::ends::Tidings;
use self::join::{Desk, Gathered};
use self::sum::Sum;
use self::ttl::Book;
pub use self::ttl::{replaced, visible};
use crate::plan::{Bypass, Destination, Plan};

pub(crate) use self::effects::{effects, passed};
pub(crate) use self::ends::has_ended;
pub(crate) use self::laps::is_jammed;

/// One thing that a fetch gave, with what is to become of it before any Bee is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub source: Source,
    pub fate: Fate,
    /// Of a stage that joins.
    pub join: Option<Box<Gathered>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    Retry(Parked),
    Timer(TimerDue),
    Message(Unread),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Goes to the Bee as this input of the batch.
    Run(usize),
    /// Its Bee is not called.
    Pass(Bypass),
    /// Parks behind its lane at attempt 0.
    Hold,
    /// Its caller's deadline passed, or its caller went away: consumed with that outcome, not run.
    Expire,
    /// An input of a join that does not go to the Bee: it waits for the others, or they are not to come.
    Aside,
    /// The stage's own timer, by which values go whose time is over.
    Sweep,
    /// The end of a key that was told of it, or of which nothing is left.
    Ended,
}

/// A batch as the stage works on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    pub items: Vec<Item>,
    pub held: HashSet<String>,
    /// See [`Fetched::early`].
    pub early: Vec<TimerDue>,
    /// Stages to which nothing may go back now, for it would wait for room that its own waiting keeps from coming.
    pub closed: Vec<StageName>,
    /// How many failed ones may be tried again, by the stage's budget; `None`: it has none.
    pub retries: Option<u64>,
    pub now_ms: u64,
    /// The ages of values that the stage does not keep for ever.
    pub ages: Book,
    /// Keys that were told of their end, or are to be.
    pub ends: Tidings,
}

impl Taken {
    /// Its one input's caller hung up: consumed as if it had been gone before.
    pub(crate) fn give_up(&mut self) {
        for item in &mut self.items {
            if matches!(item.fate, Fate::Run(_)) {
                item.fate = Fate::Expire;
            }
        }
    }
}

/// Retries first, for they are the oldest; then timers; then messages. `cancelled`: whether nobody waits for a request any more. Returns
/// the items and the Bee's batch.
#[must_use]
pub fn arrange(plan: &Plan, mut fetched: Fetched, cancelled: impl Fn(&Request) -> bool) -> (Taken, Batch) {
    let now_ms = fetched.now_ms;
    let mut items = Vec::with_capacity(fetched.retries.len() + fetched.timers.len() + fetched.messages.len());
    let mut inputs = Vec::with_capacity(items.capacity());
    let mut desk = Desk::of(plan, &mut fetched.state, now_ms);
    let ages = Book::open(&mut fetched.state, plan.stage.keep.ttl, now_ms);
    let ends = Tidings::open(plan, &mut fetched);
    // Who repeats a keyed call takes it up again, perhaps elsewhere: that one is done in any case.
    let gone = |r: &Request| r.deadline_ms < now_ms || (!r.keyed && cancelled(r));
    let expired = |m: &Message| m.request.as_ref().is_some_and(gone);
    for parked in fetched.retries {
        let attempt = parked.attempts + 1;
        let (fate, join) = match &parked.work {
            Work::Message(message) if expired(message) => (Fate::Expire, None),
            Work::Message(message) => offer(plan, &mut desk, &mut inputs, message, attempt),
            Work::Timer { name, .. } if name == ttl::NAME => (Fate::Sweep, None),
            Work::Timer { uid, key, .. } if let Some(desk) = &mut desk => {
                some(desk.end(&mut inputs, key, *uid, attempt))
            }
            Work::Timer { key, name, .. } if ends::is_end(name) && ends.needless(&fetched.state, key) => {
                (Fate::Ended, None)
            }
            Work::Timer { uid, key, name, at_ms } => {
                let due = Due {
                    uid: *uid,
                    key: key.clone(),
                    name: name.clone(),
                    at_ms: *at_ms,
                    attempt,
                };
                (run(&mut inputs, Input::Timer(due)), None)
            }
        };
        items.push(Item {
            source: Source::Retry(parked),
            fate,
            join,
        });
    }
    for timer in fetched.timers {
        let (fate, join) = match &mut desk {
            _ if timer.name == ttl::NAME => (Fate::Sweep, None),
            Some(desk) => some(desk.end(&mut inputs, &timer.key, timer.uid, 1)),
            None if ends::is_end(&timer.name) && ends.needless(&fetched.state, &timer.key) => (Fate::Ended, None),
            None => {
                let due = Due {
                    uid: timer.uid,
                    key: timer.key.clone(),
                    name: timer.name.clone(),
                    at_ms: timer.at_ms,
                    attempt: 1,
                };
                (run(&mut inputs, Input::Timer(due)), None)
            }
        };
        items.push(Item {
            source: Source::Timer(timer),
            fate,
            join,
        });
    }
    for unread in fetched.messages {
        let (fate, join) = if expired(&unread.message) {
            (Fate::Expire, None)
        } else if is_held(plan, unread.message.key.as_deref(), &fetched.held) {
            (Fate::Hold, None)
        } else {
            offer(plan, &mut desk, &mut inputs, &unread.message, 1)
        };
        items.push(Item {
            source: Source::Message(unread),
            fate,
            join,
        });
    }
    let work = Taken {
        items,
        held: fetched.held,
        early: if desk.is_some() { fetched.early } else { Vec::new() },
        closed: Vec::new(),
        retries: None,
        now_ms,
        ages,
        ends,
    };
    let (keep, size) = (plan.stage.keep, fetched.state_size);
    let batch = Batch {
        inputs,
        state: fetched.state,
        room: StateRoom {
            keys: keep.keys.saturating_sub(size.keys),
            bytes: keep.bytes.saturating_sub(size.bytes),
        },
        parts: None,
    };
    (work, batch)
}

fn offer(
    plan: &Plan,
    desk: &mut Option<Desk<'_>>,
    inputs: &mut Vec<Input>,
    message: &Message,
    attempt: u32,
) -> (Fate, Option<Box<Gathered>>) {
    if let Some(by) = plan.bypass(message) {
        return (Fate::Pass(by), None);
    }
    match desk {
        Some(desk) => some(desk.take(inputs, message, attempt)),
        None => {
            let message = message.clone();
            (run(inputs, Input::Message { message, attempt }), None)
        }
    }
}

fn some((fate, join): (Fate, Box<Gathered>)) -> (Fate, Option<Box<Gathered>>) {
    (fate, Some(join))
}

fn run(inputs: &mut Vec<Input>, input: Input) -> Fate {
    inputs.push(input);
    Fate::Run(inputs.len() - 1)
}

/// Whether an item parks behind its lane instead of being settled. A retry is the first of its lane, so it never does.
fn waits(plan: &Plan, item: &Item, origin: &Origin<'_>, held: &HashSet<String>) -> bool {
    match item.source {
        Source::Retry(_) => false,
        Source::Message(_) | Source::Timer(_) => item.fate == Fate::Hold || is_held(plan, origin.key(), held),
    }
}

/// Only keys are held: under any other order a message's lane is its own, and it waits behind nothing.
fn is_held(plan: &Plan, key: Option<&str>, held: &HashSet<String>) -> bool {
    !held.is_empty() && holds(plan) && key.is_some_and(|key| held.contains(key))
}

/// What waits in order behind a failure: the key under `order: hold`, else nothing but the item itself.
fn lane_of(plan: &Plan, origin: &Origin<'_>) -> String {
    match origin.key() {
        Some(key) if holds(plan) => key.to_owned(),
        _ => origin.uid.to_string(),
    }
}

fn holds(plan: &Plan) -> bool {
    plan.stage.key.is_some() && plan.stage.order == Order::Hold
}

/// What a commit builds on and is stamped with.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub id: CommitId,
    pub seq: u64,
    pub base: CommitId,
    pub from: Cursor,
}

/// When and how the batch ran, for hops and traces.
#[derive(Debug, Clone, Copy)]
pub struct Ran {
    /// Microseconds since the Unix epoch.
    pub started_us: u64,
    pub took_us: u64,
    pub batch: u32,
    /// The batch's own span, when any of its messages is sampled.
    pub span: Option<TraceContext>,
    /// Parts of its one input's response have left: whatever became of it, it is not run again.
    pub parts_left: bool,
}

#[derive(Debug)]
pub struct Decision {
    pub commit: Arc<Commit>,
    /// How many items it consumes.
    pub consumed: usize,
    /// Of those that the Bee was given, how many came for the first time; and how many are tried again.
    pub first: u64,
    pub retried: u64,
    pub done: usize,
    pub failed: usize,
    /// The first failure, for people.
    pub error: Option<String>,
}

/// The whole decision. `steps[i]` belongs to the item with `Fate::Run(i)`.
#[must_use]
pub fn decide(
    plan: &Plan,
    work: &Taken,
    steps: Vec<Result<Step, Trap>>,
    stamp: Stamp,
    ran: Ran,
    entropy: &dyn Entropy,
) -> Decision {
    let mut steps: Vec<Option<Result<Step, Trap>>> = steps.into_iter().map(Some).collect();
    let mut held: Cow<'_, HashSet<String>> = Cow::Borrowed(&work.held);
    let mut tainted: HashSet<&str> = HashSet::new();
    let mut sum = Sum::new(Arc::clone(&plan.topic), stamp);
    let mut decision = Tally::default();
    let mut bytes = 0usize;
    let mut ages = work.ages.clone();
    let mut ends = work.ends.clone();
    let ttl = plan.stage.keep.ttl;
    let mut left = work.retries;
    sum.hurry(join::early(&work.early, work.now_ms, entropy));
    for item in &work.items {
        let mut origin = Origin::of(&item.source);
        origin.joined = item.join.as_deref();
        let step = match item.fate {
            Fate::Run(i) => steps.get_mut(i).and_then(Option::take),
            Fate::Pass(by) => origin.message.map(|message| Ok(passed(message, by))),
            Fate::Hold | Fate::Expire | Fate::Aside | Fate::Sweep | Fate::Ended => None,
        };
        if origin.key().is_some_and(|key| tainted.contains(key)) {
            break;
        }
        let wrote = matches!(&step, Some(Ok(step)) if !step.state.is_empty());
        let (mut part, mut failure) = match step {
            _ if item.fate == Fate::Expire => (expired(plan, &origin), None),
            _ if waits(plan, item, &origin, &held) => {
                (Part::park(parked_behind(plan, &origin, work.now_ms, entropy)), None)
            }
            Some(step) => settle(plan, &item.source, &origin, step, work, ran, entropy),
            None if item.fate == Fate::Aside => match (&item.join, plan.stage.join) {
                (Some(gathered), Some(join)) => {
                    match join::aside(plan, &origin, gathered, join, work.now_ms, entropy) {
                        Ok(part) => (part, None),
                        Err(failure) => failed(plan, &item.source, &origin, failure, work.now_ms, ran, entropy),
                    }
                }
                _ => break,
            },
            None if matches!(item.fate, Fate::Sweep | Fate::Ended) => (Part::default(), None),
            // A step is missing: the engine broke its contract. Leave the item where it is.
            None => break,
        };
        let mut again = failure.is_some() && part.park.is_some();
        if again && left == Some(0) {
            failure = failure.map(spent);
            part = dead(
                plan,
                &origin,
                failure.clone().unwrap_or_default(),
                work.now_ms,
                ran,
                entropy,
            );
            again = false;
        }
        let done = failure.is_none() && part.park.is_none();
        if item.fate != Fate::Ended {
            ends.note(&item.source, origin.key().unwrap_or_default(), done, &mut part);
        }
        let key = origin.key().filter(|_| done).unwrap_or_default();
        if done && (ttl.is_some() || item.fate == Fate::Sweep) {
            part.bytes += ages.cost(key, &part.state);
        }
        if bytes + part.bytes > COMMIT_BYTES_MAX && decision.consumed > 0 {
            break;
        }
        decision.retried += u64::from(again);
        left = left.map(|left| left - u64::from(again));
        decision.first += u64::from(matches!(item.fate, Fate::Run(_)) && origin.attempt == 1);
        bytes += part.bytes;
        if item.fate == Fate::Sweep && done {
            ages.swept(key);
            decision.consumed += 1;
            sum.add(&item.source, part);
            continue;
        }
        if let Some(ttl) = ttl.filter(|_| done) {
            ages.touch(key, &part.state, matches!(item.fate, Fate::Run(_)), ttl, work.now_ms);
        }
        if holds(plan)
            && let Some(parked) = &part.park
        {
            held.to_mut().insert(parked.lane.clone());
        }
        if wrote && failure.is_some() {
            tainted.extend(origin.key());
        }
        decision.count(&part, failure);
        sum.add(&item.source, part);
    }
    let (puts, timers) = ages.close(ttl, work.now_ms, entropy);
    sum.age(puts, timers);
    Decision {
        commit: Arc::new(sum.into_commit()),
        consumed: decision.consumed,
        first: decision.first,
        retried: decision.retried,
        done: decision.done,
        failed: decision.failed,
        error: decision.error,
    }
}

#[derive(Default)]
struct Tally {
    consumed: usize,
    first: u64,
    retried: u64,
    done: usize,
    failed: usize,
    error: Option<String>,
}

impl Tally {
    fn count(&mut self, part: &Part<'_>, failed: Option<Failure>) {
        self.consumed += 1;
        if let Some(error) = failed {
            self.failed += 1;
            self.error.get_or_insert_with(|| error.told());
        } else if part.park.is_none() {
            self.done += 1;
        }
    }
}

/// The effects of one item.
#[derive(Default)]
pub(crate) struct Part<'p> {
    pub outputs: Vec<(&'p Destination, Message)>,
    pub replies: Vec<Reply>,
    pub state: Vec<StatePut>,
    pub timers: Vec<TimerSet>,
    pub park: Option<Parked>,
    pub returned: Vec<Reply>,
    pub dead: Vec<DeadLetter>,
    pub bytes: usize,
}

impl Part<'_> {
    fn park(parked: Parked) -> Self {
        Self {
            park: Some(parked),
            ..Self::default()
        }
    }

    /// A branch of a request ends here without an answer. The whole credit in one hand: no other branch is left.
    pub(crate) fn ends(&mut self, stage: &StageName, by: Uid, request: Request) {
        match request.share {
            0 => {}
            Request::WHOLE.. => self.replies.push(Reply {
                request: request.id,
                result: ReplyResult::no_response(stage.clone()),
                hops: Vec::new(),
            }),
            share => self.returned.push(Reply {
                request: request.id,
                result: ReplyResult::Returned {
                    stage: stage.clone(),
                    // The same message goes to several stages.
                    by: by.child(stage.as_str(), u32::MAX),
                    share,
                },
                hops: Vec::new(),
            }),
        }
    }
}

/// Why an attempt failed and what the policy may do about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Failure {
    pub reason: String,
    pub detail: String,
    pub stderr: String,
    pub again: Again,
}

impl Failure {
    pub(crate) fn told(&self) -> String {
        format!("{}: {}", self.reason, self.detail)
    }
}

/// One that might be tried again, if others had not been.
pub(crate) fn spent(failure: Failure) -> Failure {
    Failure {
        reason: "retry-budget".to_owned(),
        detail: format!(
            "{}; it is not tried again, for the stage's budget of retries is spent",
            failure.told()
        ),
        again: Again::Never,
        ..failure
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Again {
    #[default]
    ByPolicy,
    AfterMs(u64),
    Never,
}

fn settle<'p>(
    plan: &'p Plan,
    source: &Source,
    origin: &Origin<'_>,
    step: Result<Step, Trap>,
    work: &Taken,
    ran: Ran,
    entropy: &dyn Entropy,
) -> (Part<'p>, Option<Failure>) {
    // The owner has tried again as often as it may before it hands on a trouble of the host; what a caller has seen a part of is not run
    // again.
    let kinds = |kind| matches!(kind, TrapKind::Host | TrapKind::Crash | TrapKind::Interrupted);
    let never = ran.parts_left || matches!(&step, Err(trap) if kinds(trap.kind));
    match effects(plan, origin, step, ran, &work.closed, entropy) {
        Ok(part) => (part, None),
        Err(mut failure) => {
            if never {
                failure.again = Again::Never;
            }
            failed(plan, source, origin, failure, work.now_ms, ran, entropy)
        }
    }
}

/// Another attempt by the policy, or a dead letter; and what to tell people.
fn failed(
    plan: &Plan,
    source: &Source,
    origin: &Origin<'_>,
    failure: Failure,
    now_ms: u64,
    ran: Ran,
    entropy: &dyn Entropy,
) -> (Part<'static>, Option<Failure>) {
    let part = match retry_at(&plan.stage.retry, origin.attempt, failure.again, now_ms, entropy) {
        Some(due_ms) => Part::park(Parked {
            uid: Uid::random(entropy),
            lane: match source {
                Source::Retry(parked) => parked.lane.clone(),
                Source::Message(_) | Source::Timer(_) => lane_of(plan, origin),
            },
            work: origin.work(),
            attempts: origin.attempt,
            due_ms,
            cause: failure.told(),
        }),
        None => dead(plan, origin, failure.clone(), now_ms, ran, entropy),
    };
    (part, Some(failure))
}

/// An item, whatever it came from.
pub(crate) struct Origin<'a> {
    pub uid: Uid,
    pub attempt: u32,
    pub message: Option<&'a Message>,
    pub timer: Option<(&'a str, &'a str, u64)>,
    /// Of a stage that joins.
    pub joined: Option<&'a Gathered>,
}

impl<'a> Origin<'a> {
    fn of(source: &'a Source) -> Self {
        match source {
            Source::Message(unread) => Self::message(&unread.message, 1),
            Source::Retry(parked) => match &parked.work {
                Work::Message(message) => Self::message(message, parked.attempts + 1),
                Work::Timer { uid, key, name, at_ms } => Self {
                    uid: *uid,
                    attempt: parked.attempts + 1,
                    message: None,
                    timer: Some((key, name, *at_ms)),
                    joined: None,
                },
            },
            Source::Timer(due) => Self {
                uid: due.uid,
                attempt: 1,
                message: None,
                timer: Some((&due.key, &due.name, due.at_ms)),
                joined: None,
            },
        }
    }

    pub(crate) fn message(message: &'a Message, attempt: u32) -> Self {
        Self {
            uid: message.uid,
            attempt,
            message: Some(message),
            timer: None,
            joined: None,
        }
    }

    /// The message that its effects go on from: of a join, the one that came last.
    pub(crate) fn lead(&self) -> Option<&'a Message> {
        self.joined.and_then(Gathered::lead).or(self.message)
    }

    /// What all comes from: see [`Message::origin`]. A timer has no such message, so it is one.
    pub(crate) fn root(&self) -> Uid {
        self.lead().map_or(self.uid, Message::origin)
    }

    /// The callers that wait for it, first the one whose request goes on in what is published.
    pub(crate) fn callers(&self) -> (Option<Request>, Vec<Request>) {
        match self.joined {
            None => (self.message.and_then(|m| m.request), Vec::new()),
            Some(gathered) => {
                let mut others = gathered.callers();
                let first = (!others.is_empty()).then(|| others.remove(0));
                (first, others)
            }
        }
    }

    fn key(&self) -> Option<&'a str> {
        self.message
            .and_then(|m| m.key.as_deref())
            .or_else(|| self.timer.map(|(key, _, _)| key))
    }

    fn work(&self) -> Work {
        match (self.message, self.timer) {
            (Some(message), _) => Work::Message(message.clone()),
            (None, timer) => {
                let (key, name, at_ms) = timer.unwrap_or_default();
                Work::Timer {
                    uid: self.uid,
                    key: key.to_owned(),
                    name: name.to_owned(),
                    at_ms,
                }
            }
        }
    }
}

/// When the next attempt is due, or `None` when there is none. Exponential backoff with full jitter.
pub(crate) fn retry_at(
    policy: &RetryPolicy,
    attempts: u32,
    again: Again,
    now_ms: u64,
    entropy: &dyn Entropy,
) -> Option<u64> {
    if again == Again::Never || attempts >= policy.attempts {
        return None;
    }
    let wait_ms = match again {
        Again::AfterMs(ms) => ms.min(RETRY_AFTER_MS_MAX),
        Again::ByPolicy | Again::Never => {
            let doubled = policy
                .first_ms
                .saturating_mul(1u64.checked_shl(attempts - 1).unwrap_or(u64::MAX));
            let ceiling = doubled.min(policy.max_ms).max(1);
            let random = u64::from_le_bytes(entropy.bits128()[..8].try_into().expect("8 of 16 bytes"));
            1 + random % ceiling
        }
    };
    Some(now_ms.saturating_add(wait_ms))
}

fn parked_behind(plan: &Plan, origin: &Origin<'_>, now_ms: u64, entropy: &dyn Entropy) -> Parked {
    Parked {
        uid: Uid::random(entropy),
        lane: lane_of(plan, origin),
        work: origin.work(),
        attempts: 0,
        due_ms: now_ms,
        cause: "waits behind an earlier message of its key".to_owned(),
    }
}

fn dead(
    plan: &Plan,
    origin: &Origin<'_>,
    failure: Failure,
    now_ms: u64,
    ran: Ran,
    entropy: &dyn Entropy,
) -> Part<'static> {
    let mut part = Part::default();
    let (first, others) = origin.callers();
    part.replies.extend(first.into_iter().chain(others).map(|request| {
        Reply {
            request: request.id,
            result: ReplyResult::Failed {
                stage: plan.stage.name.clone(),
                reason: failure.reason.clone(),
                detail: failure.detail.clone(),
                dead_letter: None,
            },
            hops: origin
                .lead()
                .map(|m| with_hop(m, &plan.stage.name, ran))
                .unwrap_or_default(),
        }
    }));
    let letter = |work| DeadLetter {
        work,
        attempts: origin.attempt,
        reason: failure.reason.clone(),
        detail: failure.detail.clone(),
        stderr: failure.stderr.clone(),
        module: plan.module,
        at_ms: now_ms,
    };
    match origin.joined {
        Some(gathered) if !gathered.parts.is_empty() => {
            // Each on its own: brought back together they join again.
            for (_, message) in &gathered.parts {
                part.bytes += message.payload.len();
                part.dead.push(letter(Work::Message(message.clone())));
            }
            let key = origin.key().unwrap_or_default();
            gathered.clear(key, origin.timer.is_some(), &mut part, entropy);
        }
        _ => part.dead.push(letter(origin.work())),
    }
    part
}

fn expired(plan: &Plan, origin: &Origin<'_>) -> Part<'static> {
    let mut part = Part::default();
    if let Some(request) = origin.message.and_then(|m| m.request) {
        part.replies.push(Reply {
            request: request.id,
            result: ReplyResult::Expired {
                stage: plan.stage.name.clone(),
            },
            hops: Vec::new(),
        });
    }
    part
}

#[cfg(test)]
mod graphs;
#[cfg(test)]
mod tests;
