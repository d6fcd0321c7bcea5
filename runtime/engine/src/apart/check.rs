//! What a tenant's process answered, looked at as a guest's answer is: the process may have been taken over by one.

use std::collections::HashMap;

use bytes::Bytes;
use skep_model::limits;
use skep_model::step::{Batch, LogLine, Outcome, Processed, Step, Trap};

use super::codec::Broken;
use super::messages::Done;
use crate::effects::Effects;
use crate::host::HOSTCALL_BYTES_MAX;
use crate::log::{CONTEXT_BYTES_MAX, escape};
use crate::verdict::DETAIL_BYTES_MAX;

/// An escaped character is ten times as long at most (`\u{2028}` is one of three bytes).
const ESCAPED: usize = 10;

/// `granted`: the stage is keyed and has state.
pub(super) fn processed(batch: Batch, granted: bool, done: Done) -> Result<Processed, Broken> {
    let Done { result, log } = done;
    let inputs = batch.inputs.len();
    // The drops of a call are told in one more.
    if log.len() > limits::LOG_LINES_PER_CALL_MAX + 1 {
        return Err(Broken("more log lines than a call may say"));
    }
    let mut bytes = 0;
    let log = log
        .into_iter()
        .map(|said| line(said, inputs, &mut bytes))
        .collect::<Result<_, _>>()?;
    let result = match result {
        Ok(steps) => Ok(again(batch, granted, steps)?),
        Err(trap) => Err(Trap {
            kind: trap.kind,
            detail: clean(&trap.detail, 2 * DETAIL_BYTES_MAX, false),
            stderr: clean(&trap.stderr, ESCAPED * limits::STDERR_BYTES_MAX, true),
        }),
    };
    Ok(Processed { result, log })
}

fn line(said: LogLine, inputs: usize, bytes: &mut usize) -> Result<LogLine, Broken> {
    let LogLine {
        level,
        context,
        text,
        input,
    } = said;
    if input.is_some_and(|input| input as usize >= inputs) {
        return Err(Broken("a log line of an input that there is not"));
    }
    *bytes += text.len();
    if *bytes > limits::LOG_BYTES_PER_CALL_MAX + limits::LOG_LINE_BYTES_MAX {
        return Err(Broken("more bytes of log than a call may say"));
    }
    Ok(LogLine {
        level,
        context: clean(&context, CONTEXT_BYTES_MAX, false),
        text: clean(&text, limits::LOG_LINE_BYTES_MAX, false),
        input,
    })
}

/// An honest process has done that, so nothing changes.
fn clean(text: &str, most: usize, lines: bool) -> String {
    let mut out = String::new();
    if !lines {
        escape(text, most, &mut out);
        return out;
    }
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        escape(line, most.saturating_sub(out.len()), &mut out);
        if out.len() >= most {
            break;
        }
    }
    out
}

/// Makes the effects once more, by the rules that hold for a guest of this process: sizes, numbers, room, and that only what is granted, keyed
/// and done has any. What shrinks goes first: in that order nothing is refused that was allowed in the guest's.
fn again(batch: Batch, granted: bool, steps: Vec<Step>) -> Result<Vec<Step>, Broken> {
    if steps.len() != batch.inputs.len() {
        return Err(Broken("another number of steps than of inputs"));
    }
    // Lengths of values as the steps before have left them.
    let mut lengths: HashMap<(&str, String), i64> = HashMap::new();
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(steps.len());
    let mut writes = Vec::new();
    for (at, step) in steps.into_iter().enumerate() {
        let Step {
            outcome,
            mut state,
            timers,
        } = step;
        outcomes.push(outcome);
        if state.is_empty() && timers.is_empty() {
            continue;
        }
        let key = batch.inputs[at].key().unwrap_or_default();
        let length =
            |value: Option<&Bytes>| value.map_or(0, |value| i64::try_from(value.len()).unwrap_or(i64::MAX / 4));
        state.sort_by_cached_key(|write| {
            let stored = || length(batch.state.get(key).and_then(|values| values.get(&write.name)));
            let had = lengths.get(&(key, write.name.clone())).copied();
            let gone = i64::from(write.value.is_none()) * (i64::MAX / 2);
            length(write.value.as_ref()) - had.unwrap_or_else(stored) - gone
        });
        lengths.extend(
            state
                .iter()
                .map(|write| ((key, write.name.clone()), length(write.value.as_ref()))),
        );
        writes.push((at, state, timers));
    }
    drop(lengths);
    let mut effects = Effects::new(batch, granted, HOSTCALL_BYTES_MAX);
    let refused = |_| Broken("an effect that no guest could have had");
    for (at, state, timers) in writes {
        let index = u32::try_from(at).map_err(|_| Broken("a step of no number"))?;
        effects.begin(index).map_err(|_| Broken("a step of no input"))?;
        for write in state {
            let value = write.value.map(Vec::from);
            effects.write(write.name, value).map_err(refused)?;
        }
        for timer in timers {
            effects.timer(timer.name, timer.at_ms).map_err(refused)?;
        }
    }
    let steps = effects.finish(outcomes);
    steps.map_err(|_| Broken("effects of an input that is not done"))
}

#[cfg(test)]
mod tests;
