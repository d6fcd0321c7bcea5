//! Decide purely: what was fetched, what the Bee returned and the stage's policy become one commit, as a value.
//!
//! Invariants:
//! - Every item before the cut is consumed exactly once: applied, parked, dead-lettered or expired. What lies behind the cut is
//!   not mentioned, so it is fetched again at no attempt's cost.
//! - Under `order: hold` an item whose lane is held is parked behind it, and what it returned or wrote is discarded.
//! - A failed item's only effect is its parking or its dead letter. The Bee saw its own writes while it worked on later items of
//!   the same key, so where an item fails here although the Bee called it done, the prefix ends before the next of that key.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use skep_model::env::Entropy;
use skep_model::id::{CommitId, Uid};
use skep_model::key;
use skep_model::limits::{
    COMMIT_BYTES_MAX, EFFECTS_BYTES_MAX, EMITS_MAX, HEADERS_BYTES_MAX, HEADERS_MAX, KEY_BYTES_MAX,
    OUTPUT_OVERHEAD_BYTES, PAYLOAD_BYTES_MAX, RETRY_AFTER_MS_MAX,
};
use skep_model::message::{Hop, Lineage, Message, Reply, ReplyResult, TraceContext};
use skep_model::name::StageName;
use skep_model::step::{Batch, Disposition, Due, Emit, Input, Step, Trap, TrapKind};
use skep_model::swarm::{Order, RetryPolicy};
use skep_topic::{
    Commit, Cursor, DeadLetter, Fetched, Output, Parked, Retry, Span, StatePut, TimerDue, TimerSet, Unread, Work,
};

use crate::plan::{Destination, Plan};

/// One thing that a fetch gave, with what is to become of it before any Bee is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub source: Source,
    pub fate: Fate,
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
    /// Parks behind its lane at attempt 0.
    Hold,
    /// Its caller's deadline passed: consumed with that outcome, not run.
    Expire,
}

/// A batch as the stage works on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    pub items: Vec<Item>,
    pub held: HashSet<String>,
    pub now_ms: u64,
}

/// Retries first, for they are the oldest; then timers; then messages. Returns the items and the Bee's batch.
#[must_use]
pub fn arrange(plan: &Plan, fetched: Fetched) -> (Taken, Batch) {
    let now_ms = fetched.now_ms;
    let mut items = Vec::with_capacity(fetched.retries.len() + fetched.timers.len() + fetched.messages.len());
    let mut inputs = Vec::with_capacity(items.capacity());
    let expired = |m: &Message| m.request.is_some_and(|r| r.deadline_ms < now_ms);
    for parked in fetched.retries {
        let attempt = parked.attempts + 1;
        let fate = match &parked.work {
            Work::Message(message) if expired(message) => Fate::Expire,
            Work::Message(message) => run(
                &mut inputs,
                Input::Message {
                    message: message.clone(),
                    attempt,
                },
            ),
            Work::Timer { uid, key, name, at_ms } => run(
                &mut inputs,
                Input::Timer(Due {
                    uid: *uid,
                    key: key.clone(),
                    name: name.clone(),
                    at_ms: *at_ms,
                    attempt,
                }),
            ),
        };
        items.push(Item {
            source: Source::Retry(parked),
            fate,
        });
    }
    for timer in fetched.timers {
        let fate = run(
            &mut inputs,
            Input::Timer(Due {
                uid: timer.uid,
                key: timer.key.clone(),
                name: timer.name.clone(),
                at_ms: timer.at_ms,
                attempt: 1,
            }),
        );
        items.push(Item {
            source: Source::Timer(timer),
            fate,
        });
    }
    for unread in fetched.messages {
        let fate = if expired(&unread.message) {
            Fate::Expire
        } else if !fetched.held.is_empty() && fetched.held.contains(&lane_of(plan, &unread.message)) {
            Fate::Hold
        } else {
            run(
                &mut inputs,
                Input::Message {
                    message: unread.message.clone(),
                    attempt: 1,
                },
            )
        };
        items.push(Item {
            source: Source::Message(unread),
            fate,
        });
    }
    let work = Taken {
        items,
        held: fetched.held,
        now_ms,
    };
    let batch = Batch {
        inputs,
        state: fetched.state,
    };
    (work, batch)
}

fn run(inputs: &mut Vec<Input>, input: Input) -> Fate {
    inputs.push(input);
    Fate::Run(inputs.len() - 1)
}

/// Whether an item parks behind its lane instead of being settled. A retry is the first of its lane, so it never does.
fn waits(plan: &Plan, source: &Source, fate: Fate, held: &HashSet<String>) -> bool {
    let lane = match source {
        Source::Retry(_) => return false,
        Source::Message(unread) => unread.message.key.as_deref(),
        Source::Timer(timer) => Some(timer.key.as_str()),
    };
    fate == Fate::Hold || (!held.is_empty() && holds(plan) && lane.is_some_and(|lane| held.contains(lane)))
}

/// What waits in order behind a failure: the key under `order: hold`, else nothing but the message itself.
fn lane_of(plan: &Plan, message: &Message) -> String {
    match &message.key {
        Some(key) if holds(plan) => key.clone(),
        _ => message.uid.to_string(),
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
}

#[derive(Debug)]
pub struct Decision {
    pub commit: Commit,
    /// How many items it consumes.
    pub consumed: usize,
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
    let mut tainted: Vec<&str> = Vec::new();
    let mut sum = Sum::new(stamp);
    let mut decision = Tally::default();
    let mut bytes = 0usize;
    for item in &work.items {
        let step = match item.fate {
            Fate::Run(i) => steps.get_mut(i).and_then(Option::take),
            Fate::Hold | Fate::Expire => None,
        };
        let origin = Origin::of(&item.source);
        if origin.key().is_some_and(|key| tainted.contains(&key)) {
            break;
        }
        let wrote = matches!(&step, Some(Ok(step)) if !step.state.is_empty());
        let (part, failed) = match (&item.source, item.fate, step) {
            (source, Fate::Expire, _) => (expired(plan, source), None),
            (source, Fate::Run(_) | Fate::Hold, _) if waits(plan, source, item.fate, &held) => {
                (Part::park(parked_behind(plan, &origin, work.now_ms, entropy)), None)
            }
            (source, _, Some(step)) => settle(plan, source, step, work.now_ms, ran, entropy),
            // A step is missing: the engine broke its contract. Leave the item where it is.
            (_, _, None) => break,
        };
        if bytes + part.bytes > COMMIT_BYTES_MAX && decision.consumed > 0 {
            break;
        }
        bytes += part.bytes;
        if let Some(parked) = &part.park {
            held.to_mut().insert(parked.lane.clone());
        }
        if wrote && failed.is_some() {
            tainted.extend(origin.key());
        }
        decision.count(&part, failed);
        sum.add(&item.source, part);
    }
    Decision {
        commit: sum.into_commit(),
        consumed: decision.consumed,
        done: decision.done,
        failed: decision.failed,
        error: decision.error,
    }
}

#[derive(Default)]
struct Tally {
    consumed: usize,
    done: usize,
    failed: usize,
    error: Option<String>,
}

impl Tally {
    fn count(&mut self, part: &Part, failed: Option<String>) {
        self.consumed += 1;
        if let Some(error) = failed {
            self.failed += 1;
            self.error.get_or_insert(error);
        } else if part.park.is_none() {
            self.done += 1;
        }
    }
}

/// The effects of one item.
#[derive(Default)]
pub(crate) struct Part {
    pub outputs: Vec<(Destination, Message)>,
    pub replies: Vec<Reply>,
    pub state: Vec<StatePut>,
    pub timers: Vec<TimerSet>,
    pub park: Option<Parked>,
    pub dead: Option<DeadLetter>,
    pub bytes: usize,
}

impl Part {
    fn park(parked: Parked) -> Self {
        Self {
            park: Some(parked),
            ..Self::default()
        }
    }
}

/// Why an attempt failed and what the policy may do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub reason: String,
    pub detail: String,
    pub stderr: String,
    pub again: Again,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    ByPolicy,
    AfterMs(u64),
    Never,
}

fn settle(
    plan: &Plan,
    source: &Source,
    step: Result<Step, Trap>,
    now_ms: u64,
    ran: Ran,
    entropy: &dyn Entropy,
) -> (Part, Option<String>) {
    let origin = Origin::of(source);
    match effects(plan, &origin, step, ran, entropy) {
        Ok(part) => (part, None),
        Err(failure) => {
            let told = format!("{}: {}", failure.reason, failure.detail);
            let part = match retry_at(&plan.stage.retry, origin.attempt, failure.again, now_ms, entropy) {
                Some(due_ms) => Part::park(Parked {
                    uid: Uid::random(entropy),
                    lane: match source {
                        Source::Retry(parked) => parked.lane.clone(),
                        Source::Message(unread) => lane_of(plan, &unread.message),
                        Source::Timer(timer) if holds(plan) => timer.key.clone(),
                        Source::Timer(timer) => timer.uid.to_string(),
                    },
                    work: origin.work(),
                    attempts: origin.attempt,
                    due_ms,
                    cause: told.clone(),
                }),
                None => dead(plan, &origin, failure, now_ms, ran),
            };
            (part, Some(told))
        }
    }
}

/// An item, whatever it came from.
pub(crate) struct Origin<'a> {
    pub uid: Uid,
    pub attempt: u32,
    pub message: Option<&'a Message>,
    pub timer: Option<(&'a str, &'a str, u64)>,
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
                },
            },
            Source::Timer(due) => Self {
                uid: due.uid,
                attempt: 1,
                message: None,
                timer: Some((&due.key, &due.name, due.at_ms)),
            },
        }
    }

    pub(crate) fn message(message: &'a Message, attempt: u32) -> Self {
        Self {
            uid: message.uid,
            attempt,
            message: Some(message),
            timer: None,
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

/// What a step that ended well does; anything else is a failure with its reason.
pub(crate) fn effects(
    plan: &Plan,
    origin: &Origin<'_>,
    step: Result<Step, Trap>,
    ran: Ran,
    entropy: &dyn Entropy,
) -> Result<Part, Failure> {
    let step = step.map_err(|trap| Failure {
        reason: trap.kind.as_str().to_owned(),
        detail: trap.detail,
        stderr: trap.stderr,
        // More output than fits will not fit at the next attempt either.
        again: if trap.kind == TrapKind::Output {
            Again::Never
        } else {
            Again::ByPolicy
        },
    })?;
    let fail = |reason: &str, detail: String, again| Failure {
        reason: reason.to_owned(),
        detail,
        stderr: String::new(),
        again,
    };
    match step.outcome.disposition {
        Disposition::Done => {}
        Disposition::RetryAfter(ms) => {
            return Err(fail(
                "retry-after",
                format!("the Bee asked for another attempt after {ms} ms"),
                Again::AfterMs(ms),
            ));
        }
        Disposition::Reject(reason) => return Err(fail("reject", reason, Again::Never)),
        Disposition::Fail { reason, detail } => return Err(fail(&reason, detail, Again::ByPolicy)),
    }
    let mut part = Part::default();
    let hops = origin
        .message
        .map(|m| with_hop(m, &plan.stage.name, ran))
        .unwrap_or_default();
    if step.outcome.publish.len() > EMITS_MAX {
        let found = step.outcome.publish.len();
        return Err(fail(
            "too-many-emits",
            format!("{found} messages published for one, at most {EMITS_MAX} may be"),
            Again::Never,
        ));
    }
    let too_large = |bytes: usize| {
        fail(
            "effects-too-large",
            format!("the effects of one message take {bytes} bytes or more, at most {EFFECTS_BYTES_MAX} fit"),
            Again::Never,
        )
    };
    for (ordinal, emit) in step.outcome.publish.into_iter().enumerate() {
        bounded(&emit).map_err(|why| fail("emit-too-large", why, Again::Never))?;
        let readers = plan
            .readers(emit.to.as_deref())
            .map_err(|why| fail("no-such-output", why, Again::Never))?;
        let uid = origin
            .uid
            .child(plan.stage.name.as_str(), u32::try_from(ordinal).unwrap_or(u32::MAX));
        for reader in readers {
            let message =
                child(plan, origin, uid, &emit, reader, &hops, ran).map_err(|why| fail("no-key", why, Again::Never))?;
            part.bytes += size_of_message(&message) + OUTPUT_OVERHEAD_BYTES;
            if part.bytes > EFFECTS_BYTES_MAX {
                return Err(too_large(part.bytes));
            }
            part.outputs.push((reader.clone(), message));
        }
    }
    if let Some(request) = origin.message.and_then(|m| m.request) {
        for response in step.outcome.respond {
            part.bytes += response.len();
            part.replies.push(Reply {
                request: request.id,
                result: ReplyResult::Response(response),
                hops: hops.clone(),
            });
        }
    }
    let key = origin.key().unwrap_or_default();
    for write in step.state {
        part.bytes += key.len() + write.name.len() + write.value.as_ref().map_or(0, bytes::Bytes::len);
        part.state.push(StatePut {
            key: key.to_owned(),
            name: write.name,
            value: write.value,
        });
    }
    for write in step.timers {
        part.bytes += key.len() + write.name.len() + 8;
        part.timers.push(TimerSet {
            key: key.to_owned(),
            name: write.name,
            at_ms: write.at_ms,
            uid: Uid::random(entropy),
        });
    }
    if part.bytes > EFFECTS_BYTES_MAX {
        return Err(too_large(part.bytes));
    }
    Ok(part)
}

/// The bounds of one message, as at the door.
fn bounded(emit: &Emit) -> Result<(), String> {
    let over = |what: &str, found: usize, max: usize| {
        if found > max {
            Err(format!(
                "a published message has {found} {what}, at most {max} are allowed"
            ))
        } else {
            Ok(())
        }
    };
    over("bytes of payload", emit.payload.len(), PAYLOAD_BYTES_MAX)?;
    over("bytes of key", emit.key.as_ref().map_or(0, String::len), KEY_BYTES_MAX)?;
    over("headers", emit.headers.len(), HEADERS_MAX)?;
    let bytes = emit.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    over("bytes of headers", bytes, HEADERS_BYTES_MAX)
}

fn child(
    plan: &Plan,
    origin: &Origin<'_>,
    uid: Uid,
    emit: &Emit,
    reader: &Destination,
    hops: &[Hop],
    ran: Ran,
) -> Result<Message, String> {
    let key = match &reader.key {
        None => emit.key.clone(),
        Some(source) => Some(
            key::extract(source, emit.key.as_deref(), &emit.headers, &emit.payload)
                .map_err(|e| format!("stage `{}` needs a key: {e}", reader.stage))?,
        ),
    };
    Ok(Message {
        uid,
        key,
        headers: emit.headers.clone(),
        payload: emit.payload.clone(),
        accepted_ms: origin
            .message
            .map_or_else(|| origin.timer.map_or(0, |(_, _, at)| at), |m| m.accepted_ms),
        request: origin.message.and_then(|m| m.request),
        trace: origin.message.and_then(|m| m.trace).map(|trace| TraceContext {
            // In a batch of several traces the span belongs to one of them; the others keep their own parent.
            span_id: match ran.span {
                Some(span) if span.trace_id == trace.trace_id => span.span_id,
                _ => trace.span_id,
            },
            ..trace
        }),
        lineage: Some(Lineage {
            parent: origin.uid,
            stage: plan.stage.name.clone(),
            module: plan.module,
        }),
        hops: hops.to_vec(),
    })
}

fn with_hop(message: &Message, stage: &StageName, ran: Ran) -> Vec<Hop> {
    if !message.trace.is_some_and(|t| t.sampled) {
        return Vec::new();
    }
    let mut hops = message.hops.clone();
    hops.push(Hop {
        stage: stage.clone(),
        started_us: ran.started_us,
        took_us: ran.took_us,
        batch: ran.batch,
    });
    hops
}

fn size_of_message(message: &Message) -> usize {
    let headers: usize = message
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    message.payload.len() + headers + message.key.as_ref().map_or(0, String::len)
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
        lane: match origin.key() {
            Some(key) if holds(plan) => key.to_owned(),
            _ => origin.uid.to_string(),
        },
        work: origin.work(),
        attempts: 0,
        due_ms: now_ms,
        cause: "waits behind an earlier message of its key".to_owned(),
    }
}

fn dead(plan: &Plan, origin: &Origin<'_>, failure: Failure, now_ms: u64, ran: Ran) -> Part {
    let mut part = Part::default();
    if let Some(message) = origin.message
        && let Some(request) = message.request
    {
        part.replies.push(Reply {
            request: request.id,
            result: ReplyResult::Failed {
                stage: plan.stage.name.clone(),
                reason: failure.reason.clone(),
                detail: failure.detail.clone(),
                dead_letter: None,
            },
            hops: with_hop(message, &plan.stage.name, ran),
        });
    }
    part.dead = Some(DeadLetter {
        work: origin.work(),
        attempts: origin.attempt,
        reason: failure.reason,
        detail: failure.detail,
        stderr: failure.stderr,
        module: plan.module,
        at_ms: now_ms,
    });
    part
}

fn expired(plan: &Plan, source: &Source) -> Part {
    let mut part = Part::default();
    let origin = Origin::of(source);
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

/// The parts, added up into a commit.
struct Sum {
    commit: Commit,
    from: Cursor,
    /// Last write wins, so a hot key costs one row a commit.
    state: HashMap<(String, String), usize>,
    timers: BTreeMap<(String, String), usize>,
}

impl Sum {
    fn new(stamp: Stamp) -> Self {
        Self {
            commit: Commit {
                id: stamp.id,
                seq: stamp.seq,
                base: stamp.base,
                span: None,
                timers: Vec::new(),
                retries: Vec::new(),
                park: Vec::new(),
                outputs: Vec::new(),
                state: Vec::new(),
                set_timers: Vec::new(),
                replies: Vec::new(),
                dead: Vec::new(),
            },
            from: stamp.from,
            state: HashMap::new(),
            timers: BTreeMap::new(),
        }
    }

    fn add(&mut self, source: &Source, part: Part) {
        let Self {
            commit,
            from,
            state,
            timers,
        } = self;
        match source {
            Source::Message(unread) => {
                commit.span = Some(Span {
                    from: *from,
                    to: unread.after,
                    last_entry: unread.entry,
                    last_entry_uid: unread.entry_uid,
                });
                commit.park.extend(part.park);
            }
            Source::Timer(due) => {
                commit.timers.push(due.clone());
                commit.park.extend(part.park);
            }
            Source::Retry(parked) => commit.retries.push(Retry {
                uid: parked.uid,
                lane: parked.lane.clone(),
                again: part.park,
            }),
        }
        commit.outputs.extend(
            part.outputs
                .into_iter()
                .map(|(to, message)| Output { to: to.topic, message }),
        );
        commit.replies.extend(part.replies);
        commit.dead.extend(part.dead);
        for put in part.state {
            match state.entry((put.key.clone(), put.name.clone())) {
                std::collections::hash_map::Entry::Occupied(at) => commit.state[*at.get()] = put,
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(commit.state.len());
                    commit.state.push(put);
                }
            }
        }
        for set in part.timers {
            match timers.entry((set.key.clone(), set.name.clone())) {
                std::collections::btree_map::Entry::Occupied(at) => commit.set_timers[*at.get()] = set,
                std::collections::btree_map::Entry::Vacant(free) => {
                    free.insert(commit.set_timers.len());
                    commit.set_timers.push(set);
                }
            }
        }
    }

    fn into_commit(self) -> Commit {
        self.commit
    }
}

#[cfg(test)]
mod tests;
