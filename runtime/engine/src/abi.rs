//! The records of `skep:bee@0.1.0` as wasmtime lowers and lifts them.
//!
//! Inputs are lowered straight from the batch, which they borrow, so no field is copied twice. Outcomes are lifted
//! into buffers that become `Bytes` without another copy.

use skep_model::message::Message;
use skep_model::step::{Disposition, Due, Emit, Input, Outcome};
use wasmtime::component::{ComponentType, Lift, Lower};

#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct MessageParam<'a> {
    uid: &'a [u8],
    key: Option<&'a str>,
    headers: &'a [(String, String)],
    payload: &'a [u8],
    #[component(name = "accepted-ms")]
    accepted_ms: u64,
    attempt: u32,
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct DueParam<'a> {
    uid: &'a [u8],
    key: &'a str,
    name: &'a str,
    #[component(name = "at-ms")]
    at_ms: u64,
    attempt: u32,
}

#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct PartParam<'a> {
    source: &'a str,
    value: MessageParam<'a>,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
pub(crate) enum InputParam<'a> {
    #[component(name = "one")]
    One(MessageParam<'a>),
    #[component(name = "timer")]
    Timer(DueParam<'a>),
    #[component(name = "joined")]
    Joined(Vec<PartParam<'a>>),
}

impl<'a> From<&'a Input> for InputParam<'a> {
    fn from(input: &'a Input) -> Self {
        match input {
            Input::Message { message, attempt } => Self::One(message_param(message, *attempt)),
            Input::Timer(due) => Self::Timer(due_param(due)),
            Input::Joined(joined) => {
                let part = |(source, message): &'a (String, Message)| PartParam {
                    source,
                    value: message_param(message, joined.attempt),
                };
                Self::Joined(joined.parts.iter().map(part).collect())
            }
        }
    }
}

fn message_param(message: &Message, attempt: u32) -> MessageParam<'_> {
    MessageParam {
        uid: &message.uid.0,
        key: message.key.as_deref(),
        headers: &message.headers,
        payload: &message.payload,
        accepted_ms: message.accepted_ms,
        attempt,
    }
}

fn due_param(due: &Due) -> DueParam<'_> {
    DueParam {
        uid: &due.uid.0,
        key: &due.key,
        name: &due.name,
        at_ms: due.at_ms,
        attempt: due.attempt,
    }
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct EmitResult {
    to: Option<String>,
    key: Option<String>,
    headers: Vec<(String, String)>,
    payload: Vec<u8>,
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct FailureResult {
    reason: String,
    detail: String,
}

#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum DispositionResult {
    #[component(name = "done")]
    Done,
    #[component(name = "retry-after")]
    RetryAfter(u64),
    #[component(name = "reject")]
    Reject(String),
    #[component(name = "fail")]
    Fail(FailureResult),
}

#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct OutcomeResult {
    publish: Vec<EmitResult>,
    respond: Vec<Vec<u8>>,
    disposition: DispositionResult,
}

impl From<OutcomeResult> for Outcome {
    fn from(outcome: OutcomeResult) -> Self {
        Self {
            publish: outcome.publish.into_iter().map(Emit::from).collect(),
            respond: outcome.respond.into_iter().map(Into::into).collect(),
            disposition: match outcome.disposition {
                DispositionResult::Done => Disposition::Done,
                DispositionResult::RetryAfter(ms) => Disposition::RetryAfter(ms),
                DispositionResult::Reject(reason) => Disposition::Reject(reason),
                DispositionResult::Fail(f) => Disposition::Fail {
                    reason: f.reason,
                    detail: f.detail,
                },
            },
        }
    }
}

impl From<EmitResult> for Emit {
    fn from(emit: EmitResult) -> Self {
        Self {
            to: emit.to,
            key: emit.key,
            headers: emit.headers,
            payload: emit.payload.into(),
        }
    }
}

/// `record bee` of the handler interface.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct BeeResult {
    pub(crate) name: String,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
pub(crate) enum StateError {
    #[component(name = "unkeyed")]
    Unkeyed,
    #[component(name = "no-step")]
    NoStep,
    /// The bound, bytes.
    #[component(name = "too-large")]
    TooLarge(u64),
    #[component(name = "quota")]
    Quota,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
pub(crate) enum TimerError {
    #[component(name = "unkeyed")]
    Unkeyed,
    #[component(name = "no-step")]
    NoStep,
    #[component(name = "quota")]
    Quota,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
pub(crate) enum ReplyError {
    #[component(name = "no-caller")]
    NoCaller,
    #[component(name = "no-step")]
    NoStep,
    #[component(name = "closed")]
    Closed,
    #[component(name = "too-large")]
    TooLarge(u64),
}

#[derive(ComponentType, Lower)]
#[component(variant)]
pub(crate) enum SecretError {
    #[component(name = "not-granted")]
    NotGranted,
    #[component(name = "missing")]
    Missing,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
#[expect(dead_code, reason = "the type must have all cases of the WIT variant")]
pub(crate) enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "lifting makes the cases from their numbers")]
pub(crate) enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}
