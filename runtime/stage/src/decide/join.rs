//! Joins: messages that belong together have one key, and wait in its state, a value a side; a timer of the key ends the wait.
//!
//! Invariants:
//! - Parts become the Bee's when the last side comes, or at the end of the wait; until that input is settled they stay in the state, so
//!   a failed attempt finds them again. Whatever ends a join takes its parts out in the same commit.
//! - A join's own key is held while its input is retried: what belongs to it and comes meanwhile begins the next one.
//! - A part that comes a second time replaces the first, as it would replace any other value of its side.

use std::collections::HashMap;

use bytes::Bytes;
use skep_model::env::Entropy;
use skep_model::id::Uid;
use skep_model::limits::JOIN_BYTES_MAX;
use skep_model::message::{Message, Reply, ReplyResult, Request};
use skep_model::step::{Input, Joined, StateMap};
use skep_model::swarm::{InputSource, Join, Missing, Stage, StageInput};
use skep_topic::record::{FrameBuilder, Run, decode_frame, message_bytes};
use skep_topic::{StatePut, TimerDue, TimerSet};

use super::{Again, Failure, Fate, Origin, Part};
use crate::plan::Plan;

/// What lies in the state and timers of a join's key begins so.
const PREFIX: &str = "join:";
const TIMER: &str = "join:end";

/// What stands together at one input of a join.
#[derive(Debug, Clone, PartialEq)]
pub struct Gathered {
    /// In the manifest's order.
    pub(super) parts: Vec<(String, Message)>,
    /// Whose coming made this input; of a timer the first part.
    lead: usize,
    /// Names in the state that go when the join ends.
    stored: Vec<String>,
    end: End,
}

#[derive(Debug, Clone, PartialEq)]
enum End {
    /// Not yet.
    Waits {
        first: bool,
        replaced: Option<Box<Message>>,
    },
    Whole,
    /// Its time is over.
    Missing,
    /// A timer of a join that has ended.
    Nothing,
    TooLarge(u64),
    /// What is stored cannot be read.
    Broken(String),
}

impl Gathered {
    pub(super) fn lead(&self) -> Option<&Message> {
        self.parts.get(self.lead).map(|(_, message)| message)
    }

    #[cfg(test)]
    pub(super) fn waits(&self) -> bool {
        matches!(self.end, End::Waits { .. } | End::Nothing)
    }

    /// Every caller that waits for one of the parts, the lead's first, with all the credit that they carry of its request.
    pub(super) fn callers(&self) -> Vec<Request> {
        let mut out: Vec<Request> = Vec::new();
        let rest = self.parts.iter().map(|(_, message)| message);
        let lead = self.lead().and_then(|m| m.request).map(|r| Request { share: 0, ..r });
        for request in lead.into_iter().chain(rest.filter_map(|m| m.request)) {
            match out.iter_mut().find(|r| r.id == request.id) {
                Some(known) => known.share = known.share.saturating_add(request.share),
                None => out.push(request),
            }
        }
        out
    }

    /// Takes the parts out of the state, and the end of the wait with them.
    pub(super) fn clear(&self, key: &str, by_timer: bool, part: &mut Part<'_>, entropy: &dyn Entropy) {
        part.state.extend(self.stored.iter().map(|name| StatePut {
            key: key.to_owned(),
            name: name.clone(),
            value: None,
        }));
        part.bytes += self.stored.iter().map(|name| key.len() + name.len()).sum::<usize>();
        if !by_timer && !self.stored.is_empty() {
            part.timers.push(TimerSet {
                key: key.to_owned(),
                name: TIMER.to_owned(),
                at_ms: None,
                uid: Uid::random(entropy),
            });
        }
    }
}

/// The side that a message is of: the Bee that published it, or the subject.
fn side_of(stage: &Stage, message: &Message) -> String {
    match &message.lineage {
        Some(lineage) => lineage.stage.to_string(),
        None => stage
            .inputs
            .iter()
            .find(|i| matches!(i.source, InputSource::Gateway(_)))
            .map_or_else(|| "gateway".to_owned(), side),
    }
}

fn side(input: &StageInput) -> String {
    match &input.source {
        InputSource::Gateway(subject) => subject.to_string(),
        InputSource::Bee { stage, .. } => stage.to_string(),
    }
}

/// Where the joins of a batch stand: what is stored, and what earlier inputs of the batch made of it.
pub(super) struct Desk<'p> {
    stage: &'p Stage,
    join: Join,
    now_ms: u64,
    state: StateMap,
    open: HashMap<String, Vec<(String, Message)>>,
}

impl<'p> Desk<'p> {
    /// `None`: the stage joins nothing. Takes the state, for it is not the Bee's.
    pub(super) fn of(plan: &'p Plan, state: &mut StateMap, now_ms: u64) -> Option<Self> {
        Some(Self {
            stage: &plan.stage,
            join: plan.stage.join?,
            now_ms,
            state: std::mem::take(state),
            open: HashMap::new(),
        })
    }

    fn parts(&mut self, key: &str) -> Result<&mut Vec<(String, Message)>, String> {
        if !self.open.contains_key(key) {
            let mut parts = Vec::new();
            for (name, value) in self.state.get(key).into_iter().flatten() {
                let Some(side) = name.strip_prefix(PREFIX) else {
                    continue;
                };
                let read = decode_frame(value.clone()).map_err(|e| format!("side `{side}`: {e}"))?;
                parts.extend(read.into_iter().map(|message| (side.to_owned(), message)));
            }
            self.open.insert(key.to_owned(), parts);
        }
        Ok(self.open.entry(key.to_owned()).or_default())
    }

    /// One more message of a join.
    pub(super) fn take(&mut self, inputs: &mut Vec<Input>, message: &Message, attempt: u32) -> (Fate, Box<Gathered>) {
        let stage = self.stage;
        let key = message.key.as_deref().unwrap_or_default();
        let side = side_of(stage, message);
        let parts = match self.parts(key) {
            Ok(parts) => parts,
            Err(what) => return broken(vec![(side, message.clone())], what),
        };
        let mut stored: Vec<String> = parts.iter().map(|(side, _)| format!("{PREFIX}{side}")).collect();
        let first = parts.is_empty();
        let replaced = parts
            .iter()
            .position(|(known, _)| *known == side)
            .map(|at| Box::new(parts.remove(at).1));
        parts.push((side.clone(), message.clone()));
        parts.sort_by_key(|(side, _)| place(stage, side));
        let bytes: u64 = parts.iter().map(|(_, m)| message_bytes(m)).sum();
        let whole = stage
            .inputs
            .iter()
            .all(|input| parts.iter().any(|(known, _)| *known == self::side(input)));
        let end = if bytes > JOIN_BYTES_MAX as u64 {
            End::TooLarge(bytes)
        } else if whole {
            End::Whole
        } else {
            End::Waits { first, replaced }
        };
        let mut gathered = Box::new(Gathered {
            lead: parts.iter().position(|(known, _)| *known == side).unwrap_or(0),
            parts: parts.clone(),
            stored: Vec::new(),
            end,
        });
        if let End::Waits { .. } = gathered.end {
            // Only what is put aside is written.
            gathered.parts = vec![(side, message.clone())];
            gathered.lead = 0;
            return (Fate::Aside, gathered);
        }
        // Ended, if the input is settled as done or dead. If it parks instead, the key is held and nothing behind it counts.
        parts.clear();
        std::mem::swap(&mut gathered.stored, &mut stored);
        if gathered.end != End::Whole {
            return (Fate::Aside, gathered);
        }
        inputs.push(Input::Joined(Joined {
            uid: message.uid,
            parts: gathered.parts.clone(),
            attempt,
        }));
        (Fate::Run(inputs.len() - 1), gathered)
    }

    /// The end of a wait.
    pub(super) fn end(&mut self, inputs: &mut Vec<Input>, key: &str, uid: Uid, attempt: u32) -> (Fate, Box<Gathered>) {
        let (missing, now_ms) = (self.join.missing, self.now_ms);
        let parts = match self.parts(key) {
            Ok(parts) => std::mem::take(parts),
            Err(what) => return broken(Vec::new(), what),
        };
        let wanted = parts.iter().any(|(_, m)| is_wanted(m, now_ms));
        let gathered = Box::new(Gathered {
            stored: parts.iter().map(|(side, _)| format!("{PREFIX}{side}")).collect(),
            lead: 0,
            end: if parts.is_empty() { End::Nothing } else { End::Missing },
            parts,
        });
        if missing != Missing::Partial || !wanted {
            return (Fate::Aside, gathered);
        }
        inputs.push(Input::Joined(Joined {
            uid,
            parts: gathered.parts.clone(),
            attempt,
        }));
        (Fate::Run(inputs.len() - 1), gathered)
    }
}

fn broken(parts: Vec<(String, Message)>, what: String) -> (Fate, Box<Gathered>) {
    let end = End::Broken(what);
    let gathered = Gathered {
        parts,
        lead: 0,
        stored: Vec::new(),
        end,
    };
    (Fate::Aside, Box::new(gathered))
}

fn place(stage: &Stage, name: &str) -> usize {
    let at = stage.inputs.iter().position(|input| side(input) == name);
    // A side that the manifest has no more comes last.
    at.unwrap_or(stage.inputs.len())
}

fn is_wanted(message: &Message, now_ms: u64) -> bool {
    message.request.is_none_or(|r| r.deadline_ms >= now_ms)
}

/// What an input of a join does whose Bee is not called.
pub(super) fn aside(
    plan: &Plan,
    origin: &Origin<'_>,
    gathered: &Gathered,
    join: Join,
    now_ms: u64,
    entropy: &dyn Entropy,
) -> Result<Part<'static>, Failure> {
    let mut part = Part::default();
    let key = origin.key().unwrap_or_default();
    let fail = |reason: &str, detail: String, again| {
        Err(Failure {
            reason: reason.to_owned(),
            detail,
            stderr: String::new(),
            again,
        })
    };
    let stage = &plan.stage;
    match &gathered.end {
        End::Waits { first, replaced } => {
            for (side, message) in &gathered.parts {
                let value = encoded(message);
                part.bytes += key.len() + PREFIX.len() + side.len() + value.len();
                part.state.push(StatePut {
                    key: key.to_owned(),
                    name: format!("{PREFIX}{side}"),
                    value: Some(value),
                });
            }
            if *first {
                part.timers.push(TimerSet {
                    key: key.to_owned(),
                    name: TIMER.to_owned(),
                    at_ms: Some(now_ms.saturating_add(join.within_ms)),
                    uid: Uid::random(entropy),
                });
            }
            if let Some(replaced) = replaced
                && let Some(request) = replaced.request
            {
                part.ends(&stage.name, replaced.uid, request);
            }
        }
        End::Missing if !gathered.parts.iter().any(|(_, m)| is_wanted(m, now_ms)) => {
            gathered.clear(key, true, &mut part, entropy);
            part.replies.extend(gathered.callers().into_iter().map(|request| Reply {
                request: request.id,
                result: ReplyResult::Expired {
                    stage: stage.name.clone(),
                },
                hops: Vec::new(),
            }));
        }
        End::Missing if join.missing == Missing::Drop => {
            gathered.clear(key, true, &mut part, entropy);
            for request in gathered.callers() {
                part.ends(&stage.name, origin.uid, request);
            }
        }
        End::Missing => {
            let list = |names: Vec<String>| names.join("`, `");
            let came = |name: &String| gathered.parts.iter().any(|(side, _)| side == name);
            let missing: Vec<String> = stage.inputs.iter().map(side).filter(|name| !came(name)).collect();
            let there = gathered.parts.iter().map(|(side, _)| side.clone()).collect();
            return fail(
                "join-incomplete",
                format!(
                    "nothing came from `{}` to join with what came from `{}`",
                    list(missing),
                    list(there)
                ),
                Again::Never,
            );
        }
        End::TooLarge(bytes) => {
            return fail(
                "join-too-large",
                format!("the parts of the join have {bytes} bytes, at most {JOIN_BYTES_MAX} fit"),
                Again::Never,
            );
        }
        End::Broken(what) => {
            return fail(
                "join-state",
                format!("what waits to be joined cannot be read: {what}"),
                Again::ByPolicy,
            );
        }
        End::Nothing | End::Whole => {}
    }
    Ok(part)
}

/// Waits that end before their time, for there are too many: their timers, set to now.
pub(super) fn early(timers: &[TimerDue], now_ms: u64, entropy: &dyn Entropy) -> impl Iterator<Item = TimerSet> {
    let own = timers.iter().filter(|timer| timer.name == TIMER);
    own.map(move |timer| TimerSet {
        key: timer.key.clone(),
        name: timer.name.clone(),
        at_ms: Some(now_ms),
        uid: Uid::random(entropy),
    })
}

/// As a frame of one, which has a format and a checksum.
fn encoded(message: &Message) -> Bytes {
    let mut run = Run::default();
    run.push(message);
    let mut frame = FrameBuilder::default();
    for (piece, size) in run.pieces(0) {
        frame.push(piece, size);
    }
    frame.finish()
}
