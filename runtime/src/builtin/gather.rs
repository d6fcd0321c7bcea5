//! A stage that puts messages together: so many of them, or what came within a time, become one whose payload is the JSON list of theirs.
//!
//! What waits is state of the stage's key, a value a message, so it survives whatever happens to a node, and a timer ends the wait.

use std::collections::{BTreeMap, HashMap};

use serde_json::value::RawValue;
use skep_model::Bytes;
use skep_model::limits::PAYLOAD_BYTES_MAX;
use skep_model::message::Message;
use skep_model::step::{Batch, Disposition, Input, StateWrite, Step, TimerWrite};

use super::{Exit, done, ended, reject, step};

/// Ends the wait.
const TIMER: &str = "gather";
/// Before each payload's number. Numbers are as wide as the largest, so names are in the order of arrival.
const ITEM: &str = "item/";

/// What waits for one key, by name.
type Waiting = BTreeMap<String, Bytes>;

pub(super) fn gather(batch: &Batch, size: u32, wait_ms: u64, exit: Exit) -> Vec<Step> {
    let mut keys: HashMap<String, Waiting> = HashMap::new();
    let mut room = batch.room.bytes;
    let mut steps = Vec::with_capacity(batch.inputs.len());
    for input in &batch.inputs {
        let key = input.key().unwrap_or_default().to_owned();
        let waiting = keys.entry(key).or_insert_with_key(|key| {
            let stored = batch.state.get(key).into_iter().flatten();
            let items = stored.filter(|(name, _)| name.starts_with(ITEM));
            items.map(|(name, value)| (name.clone(), value.clone())).collect()
        });
        steps.push(match input {
            Input::Joined(_) => step(reject("a built-in batch takes messages only")),
            Input::Timer(_) => flushed(waiting, exit),
            Input::Message { message, .. } => took(waiting, message, (size, wait_ms), exit, &mut room),
        });
    }
    steps
}

fn took(waiting: &mut Waiting, message: &Message, (size, wait_ms): (u32, u64), exit: Exit, room: &mut u64) -> Step {
    let payload = &message.payload;
    if serde_json::from_slice::<&RawValue>(payload).is_err() {
        return step(reject(
            "the payload is not JSON, and a built-in batch makes a JSON list of payloads",
        ));
    }
    if list_bytes(waiting, 0) + payload.len() > PAYLOAD_BYTES_MAX && waiting.is_empty() {
        return step(reject(format!(
            "a list of this payload alone has more than {PAYLOAD_BYTES_MAX} bytes"
        )));
    }
    if payload.len() as u64 > *room {
        return step(ended(Disposition::Fail {
            reason: "quota".to_owned(),
            detail: "the messages that wait have used up what this stage, or its tenant, may keep".to_owned(),
        }));
    }
    // One more would be too many bytes for a message: those that wait go now.
    let early = list_bytes(waiting, 1) + payload.len() > PAYLOAD_BYTES_MAX;
    let mut out = match early {
        true => flushed(waiting, exit),
        false => step(done()),
    };
    let number = waiting
        .keys()
        .next_back()
        .and_then(|name| name[ITEM.len()..].parse::<u64>().ok());
    let name = format!("{ITEM}{:020}", number.map_or(0, |last| last + 1));
    waiting.insert(name.clone(), payload.clone());
    if waiting.len() >= size as usize && !early {
        // What was stored goes, and this one never was.
        waiting.remove(&name);
        let mut items: Vec<Bytes> = waiting.values().cloned().collect();
        items.push(payload.clone());
        out = cleared(waiting);
        out.outcome = exit.outcome(Vec::new(), list(&items));
        return out;
    }
    *room -= payload.len() as u64;
    if waiting.len() == 1 {
        out.timers.push(TimerWrite {
            name: TIMER.to_owned(),
            at_ms: Some(message.accepted_ms.saturating_add(wait_ms)),
        });
    }
    out.state.push(StateWrite {
        name,
        value: Some(payload.clone()),
    });
    out
}

/// All that waits, as one message.
fn flushed(waiting: &mut Waiting, exit: Exit) -> Step {
    if waiting.is_empty() {
        return step(done());
    }
    let items: Vec<Bytes> = waiting.values().cloned().collect();
    let mut out = cleared(waiting);
    out.outcome = exit.outcome(Vec::new(), list(&items));
    out
}

fn cleared(waiting: &mut Waiting) -> Step {
    let mut out = step(done());
    let gone = std::mem::take(waiting);
    out.state = gone.into_keys().map(|name| StateWrite { name, value: None }).collect();
    out.timers.push(TimerWrite {
        name: TIMER.to_owned(),
        at_ms: None,
    });
    out
}

/// Of a list of what waits and so many more.
fn list_bytes(waiting: &Waiting, more: usize) -> usize {
    let commas = (waiting.len() + more).saturating_sub(1);
    waiting.values().map(Bytes::len).sum::<usize>() + commas + 2
}

fn list(items: &[Bytes]) -> Bytes {
    let mut out = Vec::with_capacity(items.iter().map(|item| item.len() + 1).sum::<usize>() + 1);
    for (at, item) in items.iter().enumerate() {
        out.push(if at == 0 { b'[' } else { b',' });
        out.extend_from_slice(item);
    }
    out.push(b']');
    out.into()
}

#[cfg(test)]
mod tests {
    use skep_model::id::Uid;
    use skep_model::step::{Due, StateMap};

    use super::*;

    fn message(n: u8, key: &str, payload: &str) -> Input {
        Input::Message {
            message: Message {
                uid: Uid([n; 16]),
                key: Some(key.to_owned()),
                headers: Vec::new(),
                payload: Bytes::copy_from_slice(payload.as_bytes()),
                accepted_ms: 1_000 + u64::from(n),
                request: None,
                trace: None,
                lineage: None,
                hops: Vec::new(),
            },
            attempt: 1,
        }
    }

    fn timer(key: &str) -> Input {
        Input::Timer(Due {
            uid: Uid([9; 16]),
            key: key.to_owned(),
            name: TIMER.to_owned(),
            at_ms: 2_000,
            attempt: 1,
        })
    }

    /// Applies steps as a commit does.
    fn run(state: &mut StateMap, inputs: Vec<Input>, size: u32) -> (Vec<String>, Vec<Step>) {
        let keys: Vec<String> = inputs.iter().map(|i| i.key().unwrap_or_default().to_owned()).collect();
        let batch = Batch {
            inputs,
            state: state.clone(),
            ..Batch::default()
        };
        let steps = gather(&batch, size, 500, Exit::Readers);
        let mut out = Vec::new();
        for (key, step) in keys.iter().zip(&steps) {
            for write in &step.state {
                let of = state.entry(key.clone()).or_default();
                match &write.value {
                    Some(value) => of.insert(write.name.clone(), value.clone()),
                    None => of.remove(&write.name),
                };
            }
            out.extend(
                step.outcome
                    .publish
                    .iter()
                    .map(|e| String::from_utf8_lossy(&e.payload).into_owned()),
            );
        }
        (out, steps)
    }

    #[test]
    fn so_many_become_one_by_key_also_over_batches() {
        let mut state = StateMap::new();
        let (out, steps) = run(&mut state, vec![message(1, "a", "1"), message(2, "b", "\"x\"")], 3);
        assert!(out.is_empty());
        assert_eq!(steps[0].timers[0].at_ms, Some(1_501));
        let inputs = vec![message(3, "a", "{}"), message(4, "a", "[2]"), message(5, "a", "null")];
        let (out, steps) = run(&mut state, inputs, 3);
        assert_eq!(out, ["[1,{},[2]]"]);
        assert!(steps[0].timers.is_empty(), "the first of a list sets the timer, once");
        assert_eq!(steps[1].timers[0].at_ms, None);
        assert_eq!(steps[2].timers[0].at_ms, Some(1_505), "the next list begins");
        let (out, _) = run(&mut state, vec![timer("a"), timer("b"), timer("b")], 3);
        assert_eq!(out, ["[null]", "[\"x\"]"]);
        assert!(state.values().all(BTreeMap::is_empty), "{state:?}");
    }

    #[test]
    fn one_is_a_list_too_and_stores_nothing() {
        let mut state = StateMap::new();
        let (out, steps) = run(&mut state, vec![message(1, "a", "1"), message(2, "a", "2")], 1);
        assert_eq!(out, ["[1]", "[2]"]);
        assert!(steps.iter().all(|step| step.state.is_empty()));
    }

    #[test]
    fn a_list_never_outgrows_a_message() {
        let mut state = StateMap::new();
        let large = format!("\"{}\"", "x".repeat(100 << 10));
        let inputs = (1..=5).map(|n| message(n, "a", &large)).collect();
        let (out, _) = run(&mut state, inputs, 100);
        assert_eq!(out.len(), 2);
        assert!(
            out.iter()
                .all(|list| list.len() <= PAYLOAD_BYTES_MAX && list.len() > 200 << 10)
        );
        let (out, _) = run(&mut state, vec![timer("a")], 100);
        assert_eq!(out.len(), 1);
        let whole = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES_MAX - 2));
        let (_, steps) = run(
            &mut state,
            vec![message(1, "a", &whole), message(2, "a", "not JSON")],
            2,
        );
        for (step, says) in steps.iter().zip(["alone", "not JSON"]) {
            assert!(
                matches!(&step.outcome.disposition, Disposition::Reject(why) if why.contains(says)),
                "{step:?}"
            );
        }
    }

    #[test]
    fn there_is_no_more_room_than_there_is() {
        let batch = Batch {
            inputs: vec![message(1, "a", "12345"), message(2, "a", "12345")],
            room: skep_model::step::StateRoom { keys: 1, bytes: 7 },
            ..Batch::default()
        };
        let steps = gather(&batch, 10, 500, Exit::Readers);
        assert_eq!(steps[0].outcome.disposition, Disposition::Done);
        assert!(matches!(&steps[1].outcome.disposition, Disposition::Fail { reason, .. } if reason == "quota"));
    }
}
