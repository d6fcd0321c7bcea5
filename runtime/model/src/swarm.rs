//! The graph that a manifest describes, validated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::condition::{self, Condition, Take};
use crate::egress::HttpGrant;
use crate::limits;
use crate::manifest::units::show_duration;
use crate::name::{BeeName, ModelRef, NodeLabel, OutputName, SecretName, StageName, Subject, SwarmName};

/// A validated Swarm: names are unique, inputs exist, and each circle is closed by an input that is marked as a loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swarm {
    pub name: SwarmName,
    /// In manifest order.
    pub stages: Vec<Stage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    pub name: StageName,
    /// As written: `name`, `name:tag`, `name@sha256:…` or, in `skep up` only, a local path. Of a built-in stage, what it is, which is no
    /// such reference.
    pub module: String,
    pub bee: BeeName,
    pub inputs: Vec<StageInput>,
    pub key: Option<KeySource>,
    /// Grants state and timers. Needs `key`.
    pub state: bool,
    #[serde(default, skip_serializing_if = "Keep::is_default")]
    pub keep: Keep,
    pub order: Order,
    pub retry: RetryPolicy,
    /// CPU and wall time of one batch, milliseconds.
    pub timeout_ms: u64,
    pub batch: BatchPolicy,
    pub partitions: u16,
    /// Batches of this stage under way at once on the in-memory lane.
    pub concurrency: u16,
    pub inbox: Bound,
    pub dead_letters: Bound,
    pub instances: Instances,
    pub memory_bytes: u64,
    /// Read by the Bee through `wasi:config`.
    pub config: BTreeMap<String, String>,
    /// Secrets of the tenant that the Bee may read.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub secrets: BTreeSet<SecretName>,
    /// Where the Bee may send HTTP requests.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub http: BTreeSet<HttpGrant>,
    /// Models of the tenant that the Bee may call.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub models: BTreeSet<ModelRef>,
    pub clock: GuestClock,
    /// A message for which it holds is not given to the Bee: its payload is the caller's answer, and it goes no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Condition>,
    /// A message for which it holds passes the Bee by: it goes to the readers of what is published to no name, as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip: Option<Condition>,
    /// The Bee gets one message of each input together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
    /// It runs on edges, and not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Placed>,
    /// It runs no module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<Builtin>,
    /// What the end of its stream means to it. `None`: nothing, to its Bee.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<Ends>,
}

/// What of a key is the end's own: the name of the timer by which its Bee is told, and of the value that says it was, or, at a stage where
/// the stream begins, that nothing more will come of the key.
pub const END: &str = "\0end";

/// The end of a stage's stream. See `docs/ends.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ends {
    /// Each key that has state is told, once all that the stage reads from has ended.
    Told,
    /// The stage is where a stream begins. It ends when each of these keys has said so.
    Keys(BTreeSet<String>),
}

/// Which edges a stage runs on, and what may wait there for stages of the hub that read from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// All of the tenant's edges that have it.
    pub label: NodeLabel,
    /// Of one reader.
    pub outbox_bytes: u64,
    pub when_full: WhenFull,
}

/// What becomes of messages for the hub for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The stage waits, and at last the edge's door refuses.
    #[default]
    Refuse,
    /// The oldest go, and are counted.
    DropOldest,
}

impl WhenFull {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::DropOldest => "drop-oldest",
        }
    }
}

/// What a stage does that runs no module. What it gives goes to the stage's readers, or answers the caller where there are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Builtin {
    /// Calls a model with each message.
    Model(ModelRef),
    /// Puts messages together: their payloads as one JSON list.
    Batch {
        /// So many at most.
        size: u32,
        /// How long the first waits for the last, milliseconds.
        wait_ms: u64,
    },
    /// Answers the caller with the message's payload.
    Respond,
    /// The mean of what models gave, of a join.
    WeightedAverage {
        /// Of sides of the join, in thousandths. A side that is not here weighs one.
        weights: BTreeMap<String, u32>,
    },
}

impl fmt::Display for Builtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model(model) => write!(f, "built-in model {model}"),
            Self::Batch { size, wait_ms } => write!(f, "built-in batch of {size} within {}", show_duration(*wait_ms)),
            Self::Respond => f.write_str("built-in respond"),
            Self::WeightedAverage { weights } => {
                f.write_str("built-in weighted average")?;
                for (at, (side, weight)) in weights.iter().enumerate() {
                    let between = if at == 0 { " with" } else { "," };
                    write!(f, "{between} {side} {}", f64::from(*weight) / 1_000.0)?;
                }
                Ok(())
            }
        }
    }
}

/// How long, and how much, a stage keeps in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// Keys that have any value.
    pub keys: u64,
    /// Of keys, names and values.
    pub bytes: u64,
}

impl Keep {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            ttl: None,
            keys: limits::STATE_KEYS_DEFAULT,
            bytes: limits::STATE_BYTES_DEFAULT,
        }
    }
}

/// When a value goes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ttl {
    /// Milliseconds since the value was last refreshed.
    pub ms: u64,
    #[serde(default)]
    pub refresh: Refresh,
}

/// What makes a value young again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Refresh {
    /// A write of it.
    #[default]
    Write,
    /// Each input of its key that the Bee is given, for the Bee may read it then.
    Read,
}

impl Refresh {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
        }
    }
}

/// How a stage waits for one message of each of its inputs: its *sides*. What belongs together has the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// How long the first waits for the last, milliseconds.
    pub within_ms: u64,
    pub missing: Missing,
    /// Joins that wait at once, in the whole stage. Of more, those that waited longest end as if their time were over.
    pub pending: u64,
}

/// What becomes of the parts when a side is missing at the end of the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// Each is a dead letter, and its caller hears of it.
    #[default]
    Fail,
    /// The Bee gets those that came.
    Partial,
    /// They end here.
    Drop,
}

impl Missing {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Partial => "partial",
            Self::Drop => "drop",
        }
    }
}

/// One input of a stage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageInput {
    #[serde(flatten)]
    pub source: InputSource,
    /// Which of its messages.
    #[serde(default, skip_serializing_if = "Take::is_all")]
    pub take: Take,
    /// It closes a circle: how often a message, or what it came of, may go this way. `None`: it closes none.
    #[serde(default, rename = "loop", skip_serializing_if = "Option::is_none")]
    pub laps: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputSource {
    Gateway(Subject),
    Bee {
        stage: StageName,
        /// Only what was published to this named output; none: what was published to no name.
        output: Option<OutputName>,
    },
}

/// Where a keyed stage takes the key of a message from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySource {
    /// The key that the publisher set.
    Message,
    /// The uid of the message that a client sent: what comes of one message has one key. Of joins only.
    Origin,
    /// All messages have one key. Of built-in stages only.
    All,
    Header(String),
    /// A JSON pointer (RFC 6901) into the payload.
    Json(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Later messages of a key wait behind a parked one.
    #[default]
    Hold,
    /// They pass it.
    Relaxed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts in all, the first included. At least 1.
    pub attempts: u32,
    pub first_ms: u64,
    pub max_ms: u64,
    /// Crashes of its node, in a row, with which a message that was alone under way is set aside. At least 1.
    #[serde(default = "crashes_default", skip_serializing_if = "is_crashes_default")]
    pub crashes: u32,
    /// How much of a stage's work may be retries. `None`: as much as the attempts make it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudget>,
}

/// A share of the inputs that came in the last [`limits::RETRY_BUDGET_SECONDS`], and some that are always allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryBudget {
    pub percent: u32,
    pub per_second: u32,
}

fn crashes_default() -> u32 {
    limits::CRASHES_DEFAULT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_crashes_default(crashes: &u32) -> bool {
    *crashes == limits::CRASHES_DEFAULT
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: limits::ATTEMPTS_DEFAULT,
            first_ms: limits::BACKOFF_FIRST_MS_DEFAULT,
            max_ms: limits::BACKOFF_MAX_MS_DEFAULT,
            crashes: limits::CRASHES_DEFAULT,
            budget: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPolicy {
    pub messages: u32,
    pub bytes: u64,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            messages: limits::BATCH_MESSAGES_DEFAULT,
            bytes: limits::BATCH_BYTES_DEFAULT,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub messages: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Instances {
    /// A new instance for each batch: nothing leaks from batch to batch.
    #[default]
    Fresh,
    /// Warm reuse, bounded in calls and age (seconds).
    Pooled { calls: u32, age_s: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum GuestClock {
    /// The current input's accept time, so that attempts and replays compare.
    #[default]
    Recorded,
    Real,
}

/// A stage that reads from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ReaderForm", into = "ReaderForm")]
pub struct Reader {
    /// `None`: what is published to no name.
    pub output: Option<OutputName>,
    pub stage: StageName,
    /// What a message must be for it; `None`: nothing.
    pub when: Option<Condition>,
    /// See [`StageInput::laps`].
    pub laps: Option<u32>,
}

/// As the catalog keeps it: a pair, as it was before there were conditions, a triple, or with the bound of a loop.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ReaderForm {
    Pair(Option<OutputName>, StageName),
    Triple(Option<OutputName>, StageName, Condition),
    Loop(Option<OutputName>, StageName, Option<Condition>, u32),
}

impl From<ReaderForm> for Reader {
    fn from(form: ReaderForm) -> Self {
        let (output, stage, when, laps) = match form {
            ReaderForm::Pair(output, stage) => (output, stage, None, None),
            ReaderForm::Triple(output, stage, when) => (output, stage, Some(when), None),
            ReaderForm::Loop(output, stage, when, laps) => (output, stage, when, Some(laps)),
        };
        Self {
            output,
            stage,
            when,
            laps,
        }
    }
}

impl From<Reader> for ReaderForm {
    fn from(reader: Reader) -> Self {
        let Reader {
            output,
            stage,
            when,
            laps,
        } = reader;
        match (when, laps) {
            (None, None) => Self::Pair(output, stage),
            (Some(when), None) => Self::Triple(output, stage, when),
            (when, Some(laps)) => Self::Loop(output, stage, when, laps),
        }
    }
}

impl Bound {
    /// What comes by a loop may lie beyond the bound, as much again. So who feeds a circle stops at the bound, and what goes round in it
    /// finds room.
    #[must_use]
    pub fn of_loops(self) -> Self {
        Self {
            messages: self.messages.saturating_mul(2),
            bytes: self.bytes.saturating_mul(2),
        }
    }
}

impl StageInput {
    /// As people read it, with the output's name set off by `mark`.
    #[must_use]
    pub fn shown(&self, mark: &str) -> String {
        let mut out = match &self.source {
            InputSource::Gateway(subject) => format!("gateway {subject}"),
            InputSource::Bee { stage, output: None } => format!("bee {stage}"),
            InputSource::Bee {
                stage,
                output: Some(output),
            } => format!("bee {stage}{mark}{output}"),
        };
        out += &self.take.to_string();
        if let Some(laps) = self.laps {
            out += &format!(" loop {laps}");
        }
        out
    }
}

impl Swarm {
    #[must_use]
    pub fn stage(&self, name: &StageName) -> Option<&Stage> {
        self.stages.iter().find(|s| &s.name == name)
    }

    /// Every subject that the Swarm listens to, in order of first mention.
    #[must_use]
    pub fn subjects(&self) -> Vec<Subject> {
        let mut out = Vec::new();
        for input in self.stages.iter().flat_map(|s| &s.inputs) {
            if let InputSource::Gateway(subject) = &input.source
                && !out.contains(subject)
            {
                out.push(subject.clone());
            }
        }
        out
    }

    /// The stages that a subject feeds, each with what a message must be for it.
    #[must_use]
    pub fn fed_by(&self, subject: &Subject) -> Vec<(&Stage, Option<Condition>)> {
        self.takers(|source| matches!(source, InputSource::Gateway(g) if g == subject))
    }

    /// Who reads what `stage` publishes.
    #[must_use]
    pub fn readers(&self, stage: &StageName) -> Vec<Reader> {
        let mut outputs: Vec<&Option<OutputName>> = Vec::new();
        for input in self.stages.iter().flat_map(|s| &s.inputs) {
            if let InputSource::Bee { stage: from, output } = &input.source
                && from == stage
                && !outputs.contains(&output)
            {
                outputs.push(output);
            }
        }
        let mut out = Vec::new();
        for named in outputs {
            let takers = self.takers(
                |source| matches!(source, InputSource::Bee { stage: from, output } if from == stage && output == named),
            );
            out.extend(takers.into_iter().map(|(reader, when)| {
                let source = |i: &&StageInput| {
                    matches!(&i.source, InputSource::Bee { stage: from, output } if from == stage && output == named)
                };
                Reader {
                    output: named.clone(),
                    stage: reader.name.clone(),
                    when,
                    laps: reader.inputs.iter().find(source).and_then(|i| i.laps),
                }
            }));
        }
        out
    }

    /// What a message from a Gateway must be for `stage` to take it; `None`: nothing. Only for a stage that one subject feeds: nothing
    /// else tells of a message which subject it came by.
    #[must_use]
    pub fn door(&self, stage: &Stage) -> Option<Condition> {
        let subject = stage.inputs.iter().find_map(|input| match &input.source {
            InputSource::Gateway(subject) => Some(subject),
            InputSource::Bee { .. } => None,
        })?;
        let fed = self.fed_by(subject).into_iter().find(|(s, _)| s.name == stage.name);
        fed.and_then(|(_, when)| when)
    }

    fn takers(&self, of: impl Fn(&InputSource) -> bool) -> Vec<(&Stage, Option<Condition>)> {
        let inputs = |s: &'_ Stage| s.inputs.iter().position(|i| of(&i.source));
        let found: Vec<(&Stage, &Take)> = self
            .stages
            .iter()
            .filter_map(|stage| Some((stage, &stage.inputs[inputs(stage)?].take)))
            .collect();
        let takes: Vec<&Take> = found.iter().map(|(_, take)| *take).collect();
        found
            .into_iter()
            .map(|(stage, _)| stage)
            .zip(condition::resolve(&takes))
            .collect()
    }

    /// All stages that a message of this subject can reach.
    #[must_use]
    pub fn reachable(&self, subject: &Subject) -> Vec<&Stage> {
        let mut found: Vec<&Stage> = self.fed_by(subject).into_iter().map(|(stage, _)| stage).collect();
        let mut next = 0;
        while next < found.len() {
            let from = found[next];
            next += 1;
            for stage in &self.stages {
                let reads = stage
                    .inputs
                    .iter()
                    .any(|i| matches!(&i.source, InputSource::Bee { stage: s, .. } if *s == from.name));
                if reads && !found.iter().any(|f| f.name == stage.name) {
                    found.push(stage);
                }
            }
        }
        found
    }

    /// Whether some of its inputs close a circle.
    #[must_use]
    pub fn loops(&self) -> bool {
        self.stages.iter().flat_map(|s| &s.inputs).any(|i| i.laps.is_some())
    }

    /// Whether it can end: some stage says when its stream does.
    #[must_use]
    pub fn bounded(&self) -> bool {
        self.stages
            .iter()
            .any(|stage| matches!(stage.ends, Some(Ends::Keys(_))))
    }

    /// Whether some of its stages say anything of an end.
    #[must_use]
    pub fn ends(&self) -> bool {
        self.stages.iter().any(|stage| stage.ends.is_some())
    }

    /// Whether some of its Bees are granted secrets.
    #[must_use]
    pub fn reads_secrets(&self) -> bool {
        self.stages.iter().any(|stage| !stage.secrets.is_empty())
    }

    /// Whether some of its Bees may send HTTP requests.
    #[must_use]
    pub fn sends_http(&self) -> bool {
        self.stages.iter().any(|stage| !stage.http.is_empty())
    }

    /// Whether some of its Bees may call models.
    #[must_use]
    pub fn calls_models(&self) -> bool {
        self.stages.iter().any(|stage| !stage.models.is_empty())
    }

    /// Whether some of its stages run on edges.
    #[must_use]
    pub fn is_split(&self) -> bool {
        self.stages.iter().any(|stage| stage.place.is_some())
    }

    /// Whether a subject is an edge's door. Then all stages that it feeds run there.
    #[must_use]
    pub fn placed_door(&self, subject: &Subject) -> Option<&Placed> {
        self.fed_by(subject)
            .into_iter()
            .find_map(|(stage, _)| stage.place.as_ref())
    }

    /// Whether some of its stages run no module.
    #[must_use]
    pub fn has_builtins(&self) -> bool {
        self.stages.iter().any(|stage| stage.builtin.is_some())
    }

    /// A subject is *pure* when no stage on its path keeps anything or asks others for anything: its requests may travel the in-memory lane,
    /// where a crash loses them and their callers are told that they may try again.
    #[must_use]
    pub fn pure(&self, subject: &Subject) -> bool {
        self.reachable(subject).iter().all(|s| !s.state && s.http.is_empty())
    }
}
