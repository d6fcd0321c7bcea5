//! The end of a key's stream, as a batch meets it.
//!
//! Once all that a stage reads from has ended, its owners set a timer named [`END`] for each key that has state (`worker/ends.rs`). It is
//! an ordinary timer: one commit consumes it, tried again and dead-lettered as any other. What is particular is here:
//!
//! - **Told once.** The commit that follows the Bee's call leaves a value by that name with the key, unless nothing is left of the key. A
//!   timer that finds the value, or a key without state, is consumed and nobody called. So setting it twice does no harm, and whoever
//!   sets it need not know what others set.
//! - **Set aside.** A key whose end is a dead letter has the value too, with another content: it is not told again by itself, and a
//!   redriven letter is.
//! - **Alive again.** A message of the key takes the value away in its own commit: another end will be told. Where a stream ends once, none
//!   comes.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use skep_model::step::StateMap;
use skep_model::swarm::{END, Ends};
use skep_topic::{Fetched, StatePut, Unread, Work};

use super::{Part, Source};
use crate::plan::Plan;

/// The content of the value: its Bee was told.
const TOLD: &[u8] = b"1";
/// The end is a dead letter.
const ASIDE: &[u8] = b"2";

/// Whether a timer is the end's.
pub(super) fn is_end(name: &str) -> bool {
    name == END
}

/// Whether a key of a stage whose keys are told was told, or set aside, or is one that said so itself.
pub(crate) fn has_ended<V>(values: &std::collections::BTreeMap<String, V>) -> bool {
    values.contains_key(END)
}

/// The keys of a batch that the end is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tidings {
    /// The stage's keys are told.
    tells: bool,
    /// Keys with the value, as fetched.
    marked: HashMap<String, Bytes>,
    /// The names of all else that is kept of keys that are to be told.
    names: HashMap<String, HashSet<String>>,
}

impl Tidings {
    /// Takes the value out of what the Bees of a stage whose keys are told are given.
    pub(super) fn open(plan: &Plan, fetched: &mut Fetched) -> Self {
        let mut tidings = Self::default();
        if plan.stage.ends != Some(Ends::Told) {
            return tidings;
        }
        tidings.tells = true;
        for (key, values) in &mut fetched.state {
            if let Some(mark) = values.remove(END) {
                tidings.marked.insert(key.clone(), mark);
            }
        }
        let parked = fetched.retries.iter().filter_map(|parked| match &parked.work {
            Work::Timer { key, name, .. } if is_end(name) => Some(key),
            _ => None,
        });
        let timers = fetched
            .timers
            .iter()
            .filter(|timer| is_end(&timer.name))
            .map(|timer| &timer.key);
        for key in parked.chain(timers) {
            let names = fetched.state.get(key).map(|values| values.keys().cloned().collect());
            tidings.names.insert(key.clone(), names.unwrap_or_default());
        }
        tidings
    }

    /// Whether there is nothing to tell: the key was told, nothing is kept of it, or the stage tells none any more.
    pub(super) fn needless(&self, state: &StateMap, key: &str) -> bool {
        !self.tells
            || self.marked.get(key).is_some_and(|mark| mark[..] == *TOLD)
            || state.get(key).is_none_or(std::collections::BTreeMap::is_empty)
    }

    /// What an item does to the value, besides what it did itself. `done`: it neither failed nor waits.
    pub(super) fn note(&mut self, source: &Source, key: &str, done: bool, part: &mut Part<'_>) {
        if self.marked.is_empty() && self.names.is_empty() {
            return;
        }
        if let Some(names) = self.names.get_mut(key) {
            for put in &part.state {
                match put.value {
                    Some(_) => names.insert(put.name.clone()),
                    None => names.remove(&put.name),
                };
            }
        }
        match source {
            Source::Message(Unread { .. }) => self.revived(key, done, part),
            Source::Retry(parked) => match &parked.work {
                Work::Message(_) => self.revived(key, done, part),
                Work::Timer { name, .. } if is_end(name) => self.told(key, done, part),
                Work::Timer { .. } => {}
            },
            Source::Timer(timer) if is_end(&timer.name) => self.told(key, done, part),
            Source::Timer(_) => {}
        }
    }

    fn revived(&mut self, key: &str, done: bool, part: &mut Part<'_>) {
        if done && self.marked.remove(key).is_some() {
            put(part, key, None);
        }
    }

    fn told(&mut self, key: &str, done: bool, part: &mut Part<'_>) {
        let aside = !part.dead.is_empty();
        if !done && !aside {
            return;
        }
        let left = self.names.get(key).is_some_and(|names| !names.is_empty());
        let mark = match (left, aside) {
            (false, _) => None,
            (true, false) => Some(Bytes::from_static(TOLD)),
            (true, true) => Some(Bytes::from_static(ASIDE)),
        };
        if mark.as_ref() != self.marked.get(key) {
            put(part, key, mark.clone());
        }
        match mark {
            Some(mark) => self.marked.insert(key.to_owned(), mark),
            None => self.marked.remove(key),
        };
    }
}

fn put(part: &mut Part<'_>, key: &str, value: Option<Bytes>) {
    part.bytes += key.len() + END.len() + value.as_ref().map_or(0, Bytes::len);
    part.state.push(StatePut {
        key: key.to_owned(),
        name: END.to_owned(),
        value,
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use skep_model::id::Uid;
    use skep_model::step::{Disposition, Input, StateWrite, Step, TimerWrite};
    use skep_model::swarm::{KeySource, Order};
    use skep_topic::{Parked, TimerDue};

    use super::super::tests::{decided, done, failing, fetched, message, plan_of, with};
    use super::super::{Decision, visible};
    use super::*;

    fn plan(ends: Option<Ends>) -> Plan {
        let mut plan = plan_of(Some(KeySource::Message), Order::Hold, vec![]);
        plan.stage.ends = ends;
        plan
    }

    fn timer(key: &str, name: &str) -> TimerDue {
        TimerDue {
            uid: Uid([7; 16]),
            key: key.to_owned(),
            name: name.to_owned(),
            at_ms: 1,
        }
    }

    fn state(of: &[(&str, &[(&str, &str)])]) -> StateMap {
        let values = |values: &[(&str, &str)]| -> BTreeMap<String, Bytes> {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), Bytes::from((*value).to_owned()));
            values.iter().map(owned).collect()
        };
        of.iter().map(|(key, of)| ((*key).to_owned(), values(of))).collect()
    }

    fn writing(writes: &[(&str, Option<&str>)]) -> Step {
        let mut step = done(Vec::new());
        step.state = writes
            .iter()
            .map(|(name, value)| StateWrite {
                name: (*name).to_owned(),
                value: value.map(|v| Bytes::from(v.to_owned())),
            })
            .collect();
        step
    }

    /// Key, name and value of each write, those of ends only.
    fn marks(decision: &Decision) -> Vec<(String, Option<String>)> {
        let marks = decision.commit.state.iter().filter(|put| put.name == END);
        let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
        marks
            .map(|put| (put.key.clone(), put.value.as_ref().map(text)))
            .collect()
    }

    fn some(key: &str, value: Option<&str>) -> Vec<(String, Option<String>)> {
        vec![(key.to_owned(), value.map(str::to_owned))]
    }

    #[test]
    fn a_key_is_told_once_and_what_is_left_of_it_says_so() {
        let plan = plan(Some(Ends::Told));
        let told = |kept: StateMap, step: Step| {
            let mut input = fetched(vec![]);
            input.timers = vec![timer("a", END)];
            input.state = kept;
            let mut called = 0;
            let decision = decided(&plan, input, |input| {
                assert!(matches!(input, Input::Timer(due) if due.name == END && due.key == "a"));
                called += 1;
                Ok(step.clone())
            });
            assert_eq!(
                decision.commit.timers.len(),
                1,
                "consumed, whether or not anybody is called"
            );
            (called, decision)
        };
        let (called, decision) = told(state(&[("a", &[("n", "1")])]), done(vec![]));
        assert_eq!((called, marks(&decision)), (1, some("a", Some("1"))));
        // Nothing is left of it, so nothing says so.
        let (called, decision) = told(state(&[("a", &[("n", "1")])]), writing(&[("n", None)]));
        assert_eq!((called, marks(&decision)), (1, vec![]));
        let (called, decision) = told(
            state(&[("a", &[("n", "1")])]),
            writing(&[("n", None), ("m", Some("2"))]),
        );
        assert_eq!((called, marks(&decision)), (1, some("a", Some("1"))));
        // It was told; there is nothing to tell.
        for kept in [
            state(&[("a", &[("n", "1"), (END, "1")])]),
            state(&[("a", &[])]),
            state(&[]),
        ] {
            let (called, decision) = told(kept, done(vec![]));
            assert_eq!((called, marks(&decision), decision.consumed), (0, vec![], 1));
        }
        // Set aside before, and tried once more by somebody.
        let (called, decision) = told(state(&[("a", &[("n", "1"), (END, "2")])]), done(vec![]));
        assert_eq!((called, marks(&decision)), (1, some("a", Some("1"))));
        let (called, decision) = told(state(&[("a", &[("n", "1"), (END, "2")])]), writing(&[("n", None)]));
        assert_eq!((called, marks(&decision)), (1, some("a", None)));
    }

    #[test]
    fn an_end_that_fails_is_tried_again_and_set_aside_at_last() {
        let plan = plan(Some(Ends::Told));
        let mut input = fetched(vec![]);
        input.timers = vec![timer("a", END)];
        input.state = state(&[("a", &[("n", "1")])]);
        let decision = decided(&plan, input, |_| Ok(failing()));
        assert_eq!((marks(&decision), decision.commit.park.len()), (vec![], 1));
        let last = |step: Step| {
            let mut input = fetched(vec![]);
            let TimerDue { uid, key, name, at_ms } = timer("a", END);
            input.retries = vec![Parked {
                uid: Uid([8; 16]),
                lane: "a".to_owned(),
                work: Work::Timer { uid, key, name, at_ms },
                attempts: 2,
                due_ms: 1,
                cause: String::new(),
            }];
            input.state = state(&[("a", &[("n", "1")])]);
            decided(&plan, input, |_| Ok(step.clone()))
        };
        let decision = last(failing());
        assert_eq!(
            (marks(&decision), decision.commit.dead.len()),
            (some("a", Some("2")), 1)
        );
        let decision = last(with(Disposition::Reject("no".to_owned())));
        assert_eq!(
            (marks(&decision), decision.commit.dead.len()),
            (some("a", Some("2")), 1)
        );
        let decision = last(done(vec![]));
        assert_eq!(
            (marks(&decision), decision.commit.dead.len()),
            (some("a", Some("1")), 0)
        );
    }

    #[test]
    fn a_message_makes_a_key_live_again_if_it_is_done() {
        let plan = plan(Some(Ends::Told));
        let kept = state(&[("a", &[("n", "1"), (END, "1")]), ("b", &[("n", "1")])]);
        let mut input = fetched(vec![
            message(1, Some("a")),
            message(2, Some("a")),
            message(3, Some("b")),
        ]);
        input.state = kept.clone();
        let decision = decided(&plan, input, |input| {
            assert!(matches!(input, Input::Message { .. }));
            Ok(done(vec![]))
        });
        assert_eq!(
            marks(&decision),
            some("a", None),
            "once, and of no key that was not told"
        );
        let mut input = fetched(vec![message(1, Some("a"))]);
        input.state = kept;
        assert_eq!(marks(&decided(&plan, input, |_| Ok(failing()))), vec![]);
        // Another timer of the key before its end in one batch: what it keeps counts.
        let mut input = fetched(vec![]);
        input.timers = vec![timer("a", "next"), timer("a", END)];
        input.state = state(&[("a", &[("n", "1")])]);
        let decision = decided(&plan, input, |input| match input {
            Input::Timer(due) if due.name == "next" => Ok(writing(&[("n", None)])),
            _ => Ok(done(vec![])),
        });
        assert_eq!((marks(&decision), decision.consumed), (vec![], 2));
    }

    #[test]
    fn bees_do_not_see_the_mark_and_may_not_use_its_name_but_to_say_that_a_stream_ends() {
        let told = plan(Some(Ends::Told));
        let mut input = fetched(vec![message(1, Some("a"))]);
        input.state = state(&[("a", &[("n", "1"), (END, "1")])]);
        let (_, batch) = super::super::arrange(&told, input, |_| false);
        assert_eq!(batch.state["a"].keys().collect::<Vec<_>>(), ["n"]);
        let mut values = state(&[("a", &[("n", "1"), (END, "1")])]).remove("a").unwrap();
        visible(&mut values, None, 0);
        assert_eq!(values.len(), 1);
        let source = plan(Some(Ends::Keys(["a".to_owned()].into())));
        for (plan, may) in [(&told, false), (&plan(None), false), (&source, true)] {
            let decision = decided(plan, fetched(vec![message(1, Some("a"))]), |_| {
                Ok(writing(&[(END, Some("1"))]))
            });
            assert_eq!(
                (marks(&decision).len(), decision.commit.dead.len()),
                (usize::from(may), usize::from(!may))
            );
            let decision = decided(plan, fetched(vec![message(1, Some("a"))]), |_| {
                let mut step = done(vec![]);
                step.timers.push(TimerWrite {
                    name: END.to_owned(),
                    at_ms: Some(1),
                });
                Ok(step)
            });
            assert_eq!(decision.commit.dead[0].reason, "reserved-name");
        }
        // A source sees what it said.
        let mut input = fetched(vec![message(1, Some("a"))]);
        input.state = state(&[("a", &[(END, "1")])]);
        let (_, batch) = super::super::arrange(&source, input, |_| false);
        assert!(batch.state["a"].contains_key(END));
        // Where the manifest says nothing of an end any more, one that was on its way ends nothing.
        let mut input = fetched(vec![]);
        input.timers = vec![timer("a", END)];
        input.state = state(&[("a", &[("n", "1")])]);
        let decision = decided(&plan(None), input, |_| unreachable!("nobody is told"));
        assert_eq!((marks(&decision), decision.consumed), (vec![], 1));
    }
}
