//! What one call of a Bee does to state and timers, input by input. A value: nothing happens until the host commits.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use bytes::Bytes;
use skep_model::limits;
use skep_model::step::{Batch, Disposition, Input, Outcome, StateMap, StateRoom, StateWrite, Step, TimerWrite};

/// The guest broke the ABI. It ends the instance.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Violation(pub(crate) String);

/// More was written than one call may write. It ends the instance.
#[derive(Debug, thiserror::Error)]
#[error("the Bee {did} more than {max} bytes of {what} in one call; use smaller batches or smaller values")]
pub(crate) struct TooMuchWritten {
    did: &'static str,
    what: &'static str,
    max: usize,
}

impl TooMuchWritten {
    fn effects(max: usize) -> Self {
        let (did, what) = ("wrote", "state and timers");
        Self { did, what, max }
    }

    pub(crate) fn parts(max: usize) -> Self {
        let (did, what) = ("sent", "parts of responses to callers who take them as one");
        Self { did, what, max }
    }
}

/// Why a host call on state or timers did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Unkeyed,
    NoStep,
    /// The bound, bytes.
    TooLarge(u64),
    Quota,
}

/// Either the guest is told, or the call ends.
#[derive(Debug)]
pub(crate) enum Fault {
    Refused(Refusal),
    TooMuch(TooMuchWritten),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

#[derive(Default)]
pub(crate) struct Effects {
    inputs: Arc<Vec<Input>>,
    /// With the writes of all steps begun so far.
    state: StateMap,
    /// The stage is keyed and grants state.
    granted: bool,
    /// The current step. None before the first `begin` and after an `abandon`.
    current: Option<usize>,
    /// The highest index begun.
    last: Option<usize>,
    steps: Vec<StepEffects>,
    /// Bytes written by all steps, abandoned ones too.
    bytes: usize,
    bytes_max: usize,
    /// By how much the stage's state may grow, and by how much the steps made it grow.
    room: StateRoom,
    grown: Grown,
}

#[derive(Default)]
struct StepEffects {
    writes: BTreeMap<String, Write>,
    timers: BTreeMap<String, Option<u64>>,
    bytes: usize,
    /// Bytes of all state of the step's key, names and values. Counted at the first write.
    held: Option<usize>,
    grown: Grown,
}

/// Below zero: it shrank.
#[derive(Debug, Clone, Copy, Default)]
struct Grown {
    keys: i64,
    bytes: i64,
}

impl Grown {
    fn by(self, more: Self) -> Self {
        Self {
            keys: self.keys + more.keys,
            bytes: self.bytes + more.bytes,
        }
    }

    fn fits(self, room: StateRoom) -> bool {
        let fits = |grown: i64, room: u64| u64::try_from(grown).unwrap_or(0) <= room;
        fits(self.keys, room.keys) && fits(self.bytes, room.bytes)
    }
}

struct Write {
    before: Option<Bytes>,
    after: Option<Bytes>,
}

impl Effects {
    /// `bytes_max` bounds what all steps together may write.
    pub(crate) fn new(batch: Batch, granted: bool, bytes_max: usize) -> Self {
        let mut steps = Vec::new();
        if granted {
            steps.resize_with(batch.inputs.len(), StepEffects::default);
        }
        Self {
            inputs: Arc::new(batch.inputs),
            state: batch.state,
            granted,
            current: None,
            last: None,
            steps,
            bytes: 0,
            bytes_max,
            room: batch.room,
            grown: Grown::default(),
        }
    }

    /// The index of the current input.
    pub(crate) fn current(&self) -> Option<usize> {
        self.current
    }

    pub(crate) fn inputs(&self) -> &Arc<Vec<Input>> {
        &self.inputs
    }

    /// Makes `index` the current input.
    pub(crate) fn begin(&mut self, index: u32) -> Result<&Input, Violation> {
        let i = index as usize;
        if i >= self.inputs.len() {
            return Err(Violation(format!(
                "step.begin({index}), but the batch has {} inputs",
                self.inputs.len()
            )));
        }
        if let Some(last) = self.last
            && i <= last
        {
            return Err(Violation(format!(
                "step.begin({index}) after step.begin({last}): begin goes upward"
            )));
        }
        self.current = Some(i);
        self.last = Some(i);
        Ok(&self.inputs[i])
    }

    /// Undoes the writes of the current input, which `index` must name, and ends its step.
    pub(crate) fn abandon(&mut self, index: u32) -> Result<(), Violation> {
        let i = index as usize;
        if self.current != Some(i) {
            let current = self.current.map_or_else(|| "none".to_owned(), |c| c.to_string());
            return Err(Violation(format!(
                "step.abandon({index}), but the current step is {current}"
            )));
        }
        self.current = None;
        if let Some(step) = self.steps.get_mut(i) {
            let step = std::mem::take(step);
            self.grown.keys -= step.grown.keys;
            self.grown.bytes -= step.grown.bytes;
            if let Some(key) = self.inputs[i].key()
                && let Some(values) = self.state.get_mut(key)
            {
                for (name, write) in step.writes {
                    match write.before {
                        Some(value) => values.insert(name, value),
                        None => values.remove(&name),
                    };
                }
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<&Bytes>, Refusal> {
        let (_, key) = self.key()?;
        if name.len() > limits::STATE_NAME_BYTES_MAX {
            return Err(Refusal::TooLarge(limits::STATE_NAME_BYTES_MAX as u64));
        }
        Ok(self.state.get(key).and_then(|values| values.get(name)))
    }

    /// `None` deletes.
    pub(crate) fn write(&mut self, name: String, value: Option<Vec<u8>>) -> Result<(), Fault> {
        let (index, _) = self.key()?;
        let inputs = Arc::clone(&self.inputs);
        // `key()` has just found it.
        let key = inputs[index].key().unwrap_or_default();
        if name.len() > limits::STATE_NAME_BYTES_MAX {
            return Err(Refusal::TooLarge(limits::STATE_NAME_BYTES_MAX as u64).into());
        }
        if value.as_ref().is_some_and(|v| v.len() > limits::STATE_VALUE_BYTES_MAX) {
            return Err(Refusal::TooLarge(limits::STATE_VALUE_BYTES_MAX as u64).into());
        }
        if !self.state.contains_key(key) {
            self.state.insert(key.to_owned(), BTreeMap::new());
        }
        let (Some(values), Some(step)) = (self.state.get_mut(key), self.steps.get_mut(index)) else {
            return Err(Refusal::NoStep.into());
        };
        let adds = value.as_ref().map_or(0, |v| name.len() + v.len());
        let replaced = values.get(&name).map(|v| name.len() + v.len());
        let full = value.is_some() && replaced.is_none() && values.len() >= limits::STATE_NAMES_MAX;
        let held = *step
            .held
            .get_or_insert_with(|| values.iter().map(|(name, value)| name.len() + value.len()).sum());
        let will_hold = held - replaced.unwrap_or(0) + adds;
        // State may be there that is larger than what may be made now: it can shrink step by step.
        let large = will_hold > limits::STATE_KEY_BYTES_MAX && will_hold > held;
        // A step may touch as many names as a key may have, twice over: all deleted, all made anew.
        let wide = step.writes.len() >= 2 * limits::STATE_NAMES_MAX && !step.writes.contains_key(&name);
        // Keys count with their values: the first makes one, the last takes it along.
        let there = i64::from(!values.is_empty());
        let left = values.len() + usize::from(value.is_some() && replaced.is_none())
            - usize::from(value.is_none() && replaced.is_some());
        let keys = i64::from(left > 0) - there;
        let of_key = keys * signed(key.len());
        let grows = Grown {
            keys,
            bytes: signed(will_hold) - signed(held) + of_key,
        };
        let grown = self.grown.by(grows);
        let crowded = (grows.keys > 0 || grows.bytes > 0) && !grown.fits(self.room);
        if full || large || wide || crowded {
            return Err(Refusal::Quota.into());
        }
        let cost = name.len() + value.as_ref().map_or(0, Vec::len);
        // What an earlier write of the same name in this step cost is given back.
        let earlier = step
            .writes
            .get(&name)
            .map_or(0, |w| name.len() + w.after.as_ref().map_or(0, Bytes::len));
        let bytes = step.bytes - earlier + cost;
        if bytes > limits::EFFECTS_BYTES_MAX {
            return Err(Refusal::Quota.into());
        }
        self.bytes += cost;
        if self.bytes > self.bytes_max {
            return Err(Fault::TooMuch(TooMuchWritten::effects(self.bytes_max)));
        }
        self.bytes -= earlier;
        step.bytes = bytes;
        step.held = Some(will_hold);
        step.grown = step.grown.by(grows);
        self.grown = grown;

        let after = value.map(Bytes::from);
        let before = match &after {
            Some(value) => values.insert(name.clone(), value.clone()),
            None => values.remove(&name),
        };
        match step.writes.entry(name) {
            Entry::Occupied(mut earlier) => earlier.get_mut().after = after,
            Entry::Vacant(first) => {
                first.insert(Write { before, after });
            }
        }
        Ok(())
    }

    /// `None` cancels.
    pub(crate) fn timer(&mut self, name: String, at_ms: Option<u64>) -> Result<(), Fault> {
        let (index, _) = self.key()?;
        let Some(step) = self.steps.get_mut(index) else {
            return Err(Refusal::NoStep.into());
        };
        let known = step.timers.contains_key(&name);
        if name.len() > limits::STATE_NAME_BYTES_MAX || (!known && step.timers.len() >= limits::TIMERS_PER_KEY_MAX) {
            return Err(Refusal::Quota.into());
        }
        if !known {
            let cost = name.len() + 8;
            if step.bytes + cost > limits::EFFECTS_BYTES_MAX {
                return Err(Refusal::Quota.into());
            }
            step.bytes += cost;
            self.bytes += cost;
            if self.bytes > self.bytes_max {
                return Err(Fault::TooMuch(TooMuchWritten::effects(self.bytes_max)));
            }
        }
        step.timers.insert(name, at_ms);
        Ok(())
    }

    fn key(&self) -> Result<(usize, &str), Refusal> {
        let index = self.current.ok_or(Refusal::NoStep)?;
        let key = self.inputs[index].key().filter(|_| self.granted);
        key.map(|key| (index, key)).ok_or(Refusal::Unkeyed)
    }

    /// Joins what the Bee returned with what it wrote.
    pub(crate) fn finish(self, outcomes: Vec<Outcome>) -> Result<Vec<Step>, Violation> {
        if outcomes.len() != self.inputs.len() {
            return Err(Violation(format!(
                "the Bee returned {} outcomes for {} inputs: one an input is due",
                outcomes.len(),
                self.inputs.len()
            )));
        }
        let mut written = self.steps.into_iter();
        let mut steps = Vec::with_capacity(outcomes.len());
        for (i, outcome) in outcomes.into_iter().enumerate() {
            let effects = written.next().unwrap_or_default();
            let wrote = !effects.writes.is_empty() || !effects.timers.is_empty();
            if wrote && outcome.disposition != Disposition::Done {
                return Err(Violation(format!(
                    "input {i} wrote state or timers and is not `done`: call step.abandon({i}) before the next step begins"
                )));
            }
            steps.push(Step {
                outcome,
                state: effects
                    .writes
                    .into_iter()
                    .map(|(name, write)| StateWrite {
                        name,
                        value: write.after,
                    })
                    .collect(),
                timers: effects
                    .timers
                    .into_iter()
                    .map(|(name, at_ms)| TimerWrite { name, at_ms })
                    .collect(),
            });
        }
        Ok(steps)
    }
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use skep_model::id::Uid;
    use skep_model::step::Due;

    use super::*;

    const KEY_MAX: usize = limits::STATE_KEY_BYTES_MAX;
    const VALUE: usize = limits::STATE_VALUE_BYTES_MAX - 1;

    /// One key with `values` of the largest size, each one byte of name included.
    fn holding(values: u8) -> Effects {
        let input = Input::Timer(Due {
            uid: Uid([0; 16]),
            key: "k".into(),
            name: "t".into(),
            at_ms: 0,
            attempt: 1,
        });
        let named = (0..values).map(|n| (char::from(b'a' + n).to_string(), Bytes::from(vec![0; VALUE])));
        let batch = Batch {
            inputs: vec![input.clone(), input],
            state: [("k".to_owned(), named.collect())].into(),
            ..Batch::default()
        };
        let mut effects = Effects::new(batch, true, usize::MAX);
        effects.begin(0).unwrap();
        effects
    }

    fn put(effects: &mut Effects, name: &str, bytes: usize) -> Result<(), Refusal> {
        match effects.write(name.into(), Some(vec![0; bytes])) {
            Ok(()) => Ok(()),
            Err(Fault::Refused(refusal)) => Err(refusal),
            Err(Fault::TooMuch(fault)) => panic!("{fault}"),
        }
    }

    #[test]
    fn a_key_holds_so_much_and_no_more() {
        let mut effects = holding(15);
        assert_eq!(15 * (VALUE + 1) + limits::STATE_VALUE_BYTES_MAX, KEY_MAX);
        assert_eq!(put(&mut effects, "z", VALUE + 1), Err(Refusal::Quota));
        assert_eq!(put(&mut effects, "z", VALUE), Ok(()));
        assert_eq!(put(&mut effects, "y", 0), Err(Refusal::Quota));
        // What is refused changes nothing, and what goes makes room.
        assert!(effects.get("y").unwrap().is_none());
        effects.write("z".into(), None).unwrap();
        assert_eq!(put(&mut effects, "y", VALUE), Ok(()));
        // The next input counts anew what the one before it left, an abandoned one's not.
        effects.abandon(0).unwrap();
        effects.begin(1).unwrap();
        assert_eq!(put(&mut effects, "x", VALUE), Ok(()));
        assert_eq!(put(&mut effects, "y", 0), Err(Refusal::Quota));
    }

    #[test]
    fn a_stage_holds_so_much_and_no_more() {
        let mut effects = holding(1);
        effects.room = StateRoom { keys: 0, bytes: 10 };
        assert_eq!(put(&mut effects, "z", 10), Err(Refusal::Quota));
        assert_eq!(put(&mut effects, "z", 9), Ok(()));
        assert_eq!(put(&mut effects, "z", 9), Ok(()), "no more than before");
        assert_eq!(put(&mut effects, "y", 0), Err(Refusal::Quota));
        // What goes makes room, and what is abandoned was never there.
        effects.write("a".into(), None).unwrap();
        assert_eq!(put(&mut effects, "y", 100), Ok(()));
        effects.abandon(0).unwrap();
        effects.begin(1).unwrap();
        assert_eq!(put(&mut effects, "y", 10), Err(Refusal::Quota));
        assert_eq!(put(&mut effects, "y", 9), Ok(()));
        // The last value takes its key along, which may not come back where no key has room.
        effects.write("y".into(), None).unwrap();
        effects.write("a".into(), None).unwrap();
        assert_eq!(put(&mut effects, "a", 1), Ok(()), "it was one of them");
        let mut effects = holding(0);
        effects.room = StateRoom { keys: 0, bytes: 10 };
        assert_eq!(put(&mut effects, "a", 1), Err(Refusal::Quota), "a key more");
        effects.room = StateRoom { keys: 1, bytes: 2 };
        assert_eq!(put(&mut effects, "a", 1), Err(Refusal::Quota), "its own name counts");
        assert_eq!(put(&mut effects, "a", 0), Ok(()));
    }

    #[test]
    fn a_key_that_holds_more_already_can_be_read_and_shrunk() {
        let mut effects = holding(20);
        assert_eq!(effects.get("a").unwrap().map(Bytes::len), Some(VALUE));
        assert_eq!(put(&mut effects, "z", 0), Err(Refusal::Quota));
        assert_eq!(put(&mut effects, "a", VALUE + 1), Err(Refusal::Quota));
        assert_eq!(put(&mut effects, "a", VALUE), Ok(()));
        assert_eq!(put(&mut effects, "a", 1), Ok(()));
        assert_eq!(put(&mut effects, "a", 2), Err(Refusal::Quota));
        for name in ["b", "c", "d", "e"] {
            effects.write(name.into(), None).unwrap();
        }
        assert_eq!(put(&mut effects, "a", VALUE - 1), Ok(()));
    }
}
