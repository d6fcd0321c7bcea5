//! What one step does: messages to its readers, responses, state and timers, within the bounds of one message's effects.

use bytes::Bytes;
use skep_model::condition::Facts;
use skep_model::env::Entropy;
use skep_model::id::Uid;
use skep_model::key;
use skep_model::limits::{
    EFFECTS_BYTES_MAX, EMITS_MAX, HEADERS_BYTES_MAX, HEADERS_MAX, HOPS_MAX, KEY_BYTES_MAX, OUTPUT_OVERHEAD_BYTES,
    PAYLOAD_BYTES_MAX,
};
use skep_model::message::{Hop, Lap, Lineage, Message, Reply, ReplyResult, Request, TraceContext, shares};
use skep_model::name::StageName;
use skep_model::step::{Disposition, Emit, Outcome, Step, Trap, TrapKind};
use skep_model::swarm::{END, Ends};
use skep_topic::{StatePut, TimerSet};

use super::{Again, Failure, Origin, Part, Ran, laps, ttl};
use crate::plan::{Bypass, Destination, Plan};

/// What a step that ended well does; anything else is a failure with its reason. `closed`: where nothing may go back to now.
pub(crate) fn effects<'p>(
    plan: &'p Plan,
    origin: &Origin<'_>,
    step: Result<Step, Trap>,
    ran: Ran,
    closed: &[StageName],
    entropy: &dyn Entropy,
) -> Result<Part<'p>, Failure> {
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
        .lead()
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
        let mut give = |reader: &'p Destination, emit: Emit| {
            let laps = laps::passed(&plan.stage.name, origin, reader, closed)
                .map_err(|(reason, why)| fail(reason, why, Again::Never))?;
            let message = child(plan, origin, uid, (emit, laps), reader, &hops, ran)
                .map_err(|why| fail("no-key", why, Again::Never))?;
            part.bytes += size_of_message(&message) + OUTPUT_OVERHEAD_BYTES;
            // Each time, so that what one emit expands to is bounded.
            if part.bytes > EFFECTS_BYTES_MAX {
                return Err(too_large(part.bytes));
            }
            part.outputs.push((reader, message));
            Ok(())
        };
        // The last reader gets the original, which for most is the only one.
        let mut last: Option<&Destination> = None;
        {
            let facts = Facts::new(&emit.headers, &emit.payload);
            for reader in readers {
                if reader.when.as_ref().is_none_or(|when| when.holds(&facts))
                    && let Some(earlier) = last.replace(reader)
                {
                    give(earlier, emit.clone())?;
                }
            }
        }
        if let Some(last) = last {
            give(last, emit)?;
        }
    }
    answer(plan, origin, step.outcome.respond, &hops, &mut part);
    if let Some(gathered) = origin.joined {
        let key = origin.key().unwrap_or_default();
        gathered.clear(key, origin.timer.is_some(), &mut part, entropy);
    }
    let key = origin.key().unwrap_or_default();
    let names = step.state.iter().map(|w| &w.name);
    if names
        .chain(step.timers.iter().map(|w| &w.name))
        .any(|name| name == ttl::NAME)
    {
        let why = "the name \"\\0ttl\" in state and timers is the stage's own: use another".to_owned();
        return Err(fail("reserved-name", why, Again::Never));
    }
    // Where a stream begins its Bee says which keys have ended, by the value of that name.
    let says = matches!(plan.stage.ends, Some(Ends::Keys(_)));
    if step.timers.iter().any(|w| w.name == END) || (!says && step.state.iter().any(|w| w.name == END)) {
        let why = "the name \"\\0end\" is the stage's own: a Bee puts a value of it where its stage has `ends: [KEY, …]`, to say that the key \
                   has ended"
            .to_owned();
        return Err(fail("reserved-name", why, Again::Never));
    }
    for write in step.state {
        part.bytes += key.len() + write.name.len() + write.value.as_ref().map_or(0, Bytes::len);
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

/// Responses to every caller that waits for the input, and what becomes of the credit that it carries: the messages that go on for the
/// first of them share it; where there are none, and no response, a branch has ended.
fn answer(plan: &Plan, origin: &Origin<'_>, responses: Vec<Bytes>, hops: &[Hop], part: &mut Part<'_>) {
    let (first, others) = origin.callers();
    let Some(first) = first else { return };
    if responses.is_empty() {
        if part.outputs.is_empty() {
            part.ends(&plan.stage.name, origin.uid, first);
        }
        for request in others {
            part.ends(&plan.stage.name, origin.uid, request);
        }
        let split = shares(first.share, part.outputs.len());
        for ((_, message), share) in part.outputs.iter_mut().zip(split) {
            message.request = Some(Request { share, ..first });
        }
        return;
    }
    // What goes on is not counted any more: the answer is there.
    for (_, message) in &mut part.outputs {
        message.request = Some(Request { share: 0, ..first });
    }
    for response in responses {
        for request in std::iter::once(&first).chain(&others) {
            part.bytes += response.len();
            part.replies.push(Reply {
                request: request.id,
                result: ReplyResult::Response(response.clone()),
                hops: hops.to_vec(),
            });
        }
    }
}

/// What a message does that is not given to its Bee.
pub(crate) fn passed(message: &Message, by: Bypass) -> Step {
    let mut outcome = Outcome {
        publish: Vec::new(),
        respond: Vec::new(),
        disposition: Disposition::Done,
    };
    match by {
        Bypass::Turn => {}
        Bypass::Exit => outcome.respond.push(message.payload.clone()),
        Bypass::Skip => outcome.publish.push(Emit {
            to: None,
            key: message.key.clone(),
            headers: message.headers.clone(),
            payload: message.payload.clone(),
        }),
    }
    Step {
        outcome,
        state: Vec::new(),
        timers: Vec::new(),
    }
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
    (emit, laps): (Emit, Vec<Lap>),
    reader: &Destination,
    hops: &[Hop],
    ran: Ran,
) -> Result<Message, String> {
    let key = match &reader.key {
        None => emit.key,
        Some(source) => Some(
            key::extract(source, origin.root(), emit.key.as_deref(), &emit.headers, &emit.payload)
                .map_err(|e| format!("stage `{}` needs a key: {e}", reader.stage))?,
        ),
    };
    Ok(Message {
        uid,
        key,
        headers: emit.headers,
        payload: emit.payload,
        accepted_ms: origin
            .lead()
            .map_or_else(|| origin.timer.map_or(0, |(_, _, at)| at), |m| m.accepted_ms),
        // Given with its share of the credit once it is known how many go on.
        request: None,
        trace: origin.lead().and_then(|m| m.trace).map(|trace| TraceContext {
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
            origin: origin.root(),
            laps,
        }),
        hops: hops.to_vec(),
    })
}

pub(super) fn with_hop(message: &Message, stage: &StageName, ran: Ran) -> Vec<Hop> {
    if !message.trace.is_some_and(|t| t.sampled) {
        return Vec::new();
    }
    let mut hops = message.hops.clone();
    if hops.len() >= HOPS_MAX {
        return hops;
    }
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
