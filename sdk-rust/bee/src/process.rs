//! One call of the node: a batch in, one outcome an input out.
//!
//! ```text
//! inputs ─► begin(i) ─► the user's function ─► settle ─┬─ Ok: what it published and responded, done
//!                                                      └─ Err: abandon(i) if it wrote; nothing, and the failure
//! ```

use crate::error::Error;
use crate::joined::Joined;
use crate::message::Message;
use crate::registry::{self, Bee, Form};
use crate::swarm::{Batch, Input, Swarm};
use crate::timer::Timer;
use crate::wire;

/// Runs the Bee of this name. An unknown name fails every input: a manifest that names it can be mended while the
/// messages wait for their next attempt.
pub(crate) fn process(name: &str, inputs: Vec<wire::Input>, swarm: &mut Swarm) -> Vec<wire::Outcome> {
    match registry::find(name) {
        Some(bee) => run(bee, inputs, swarm),
        None => {
            let detail = format!(
                "this module has no Bee `{name}`; it has: {}",
                registry::names().join(", ")
            );
            inputs
                .iter()
                .map(|_| failed(Error::fail("unknown-bee", detail.clone())))
                .collect()
        }
    }
}

pub(crate) fn run(bee: &Bee, inputs: Vec<wire::Input>, swarm: &mut Swarm) -> Vec<wire::Outcome> {
    match bee.form {
        Form::One(on_message) => inputs
            .into_iter()
            .zip(0..)
            .map(|(input, index)| match input {
                wire::Input::One(message) => {
                    swarm.one(about(&message, index), |swarm| on_message(swarm, Message(message)))
                }
                other => alone(bee, other, index, swarm),
            })
            .collect(),
        Form::Joined(_) => inputs
            .into_iter()
            .zip(0..)
            .map(|(input, index)| alone(bee, input, index, swarm))
            .collect(),
        Form::Batch(on_batch) => {
            let mut outcomes = Vec::with_capacity(inputs.len());
            // Messages until something else comes between them.
            let mut run = Vec::new();
            let mut messages = Vec::new();
            for (input, index) in inputs.into_iter().zip(0..) {
                match input {
                    wire::Input::One(message) => {
                        run.push(about(&message, index));
                        messages.push(Message(message));
                    }
                    other => {
                        let (run, messages) = (std::mem::take(&mut run), std::mem::take(&mut messages));
                        outcomes.append(&mut swarm.many(run, |swarm| on_batch(swarm, messages)));
                        outcomes.push(alone(bee, other, index, swarm));
                    }
                }
            }
            outcomes.append(&mut swarm.many(run, |swarm| on_batch(swarm, messages)));
            outcomes
        }
    }
}

/// Whatever is not a message.
fn alone(bee: &Bee, input: wire::Input, index: u32, swarm: &mut Swarm) -> wire::Outcome {
    match input {
        wire::Input::Timer(due) => {
            let input = Input {
                index,
                attempt: due.attempt,
                now_ms: due.at_ms,
                #[cfg(not(target_arch = "wasm32"))]
                key: Some(due.key.clone()),
                #[cfg(target_arch = "wasm32")]
                key: None,
            };
            match bee.timer {
                Some(on_timer) => swarm.one(input, |swarm| on_timer(swarm, Timer(due))),
                None => failed(Error::fail(
                    "no-timer-function",
                    format!(
                        "the timer `{}` fired and the Bee `{}` has no function for it: add `timer = FUNCTION` to \
                         `#[skep::bee]`",
                        due.name, bee.name
                    ),
                )),
            }
        }
        wire::Input::Joined(parts) => match bee.form {
            Form::Joined(on_joined) => {
                let input = Input {
                    index,
                    attempt: parts.first().map_or(1, |part| part.value.attempt),
                    now_ms: parts.iter().map(|part| part.value.accepted_ms).max().unwrap_or(0),
                    key: None,
                };
                swarm.one(input, |swarm| on_joined(swarm, Joined(parts)))
            }
            Form::One(_) | Form::Batch(_) => failed(Error::fail(
                "joined-input",
                format!(
                    "the Bee `{}` takes messages one by one, and its input is a join: write \
                     `fn(swarm: &mut Swarm, parts: Joined)`",
                    bee.name
                ),
            )),
        },
        wire::Input::One(_) => failed(Error::fail(
            "not-joined",
            format!(
                "the Bee `{}` takes joined messages, and its input is no join: write `input: {{ join: [...] }}`",
                bee.name
            ),
        )),
    }
}

fn about(message: &wire::Message, index: u32) -> Input {
    Input {
        index,
        attempt: message.attempt,
        now_ms: message.accepted_ms,
        // A copy for each message would be the costliest thing here, and a module's host knows the key.
        #[cfg(not(target_arch = "wasm32"))]
        key: message.key.clone(),
        #[cfg(target_arch = "wasm32")]
        key: None,
    }
}

fn failed(error: Error) -> wire::Outcome {
    wire::Outcome {
        publish: Vec::new(),
        respond: Vec::new(),
        disposition: error.into_wire(),
    }
}

impl Swarm {
    pub(crate) fn begin(&mut self, input: Input) {
        self.host.begin(input.index, input.key.as_deref());
        self.current = input;
        self.wrote = false;
    }

    /// Runs one input from begin to outcome.
    pub(crate) fn one(&mut self, input: Input, f: impl FnOnce(&mut Self) -> crate::Result) -> wire::Outcome {
        self.begin(input);
        let result = f(self);
        self.settle(result)
    }

    /// Runs messages of a batch Bee.
    pub(crate) fn many(
        &mut self,
        inputs: Vec<Input>,
        f: impl FnOnce(&mut Self) -> crate::Result,
    ) -> Vec<wire::Outcome> {
        if inputs.is_empty() {
            return Vec::new();
        }
        let count = inputs.len();
        self.batch = Batch {
            outcomes: Vec::with_capacity(count),
            position: 0,
            inputs,
        };
        self.begin_at(0);
        match f(self) {
            Ok(()) => self.settle_batch_until(count),
            Err(error) => {
                let outcome = self.settle(Err(error.clone()));
                self.batch.outcomes.push(outcome);
                self.batch.outcomes.resize_with(count, || failed(error.clone()));
            }
        }
        std::mem::take(&mut self.batch).outcomes
    }

    pub(crate) fn begin_at(&mut self, index: usize) {
        self.batch.position = index;
        let input = self.batch.inputs[index].clone();
        self.begin(input);
    }

    /// Settles the current message of a batch; those between it and `end` were passed over and are done.
    pub(crate) fn settle_batch_until(&mut self, end: usize) {
        let outcome = self.settle(Ok(()));
        self.batch.outcomes.push(outcome);
        self.batch.outcomes.resize_with(end, || wire::Outcome {
            publish: Vec::new(),
            respond: Vec::new(),
            disposition: wire::Disposition::Done,
        });
    }

    /// The current input's outcome. What it said is taken out, so that the next begins with nothing.
    fn settle(&mut self, result: crate::Result) -> wire::Outcome {
        let result = match self.failure.take() {
            Some(error) => Err(error),
            None => result,
        };
        match result {
            Ok(()) => wire::Outcome {
                // Wrappers of one field: the vectors are reused as they are.
                publish: std::mem::take(&mut self.publish)
                    .into_iter()
                    .map(|emit| emit.0)
                    .collect(),
                respond: std::mem::take(&mut self.respond)
                    .into_iter()
                    .map(crate::Payload::into_bytes)
                    .collect(),
                disposition: wire::Disposition::Done,
            },
            Err(error) => {
                self.publish.clear();
                self.respond.clear();
                if std::mem::take(&mut self.wrote) {
                    self.host.abandon(self.current.index);
                }
                failed(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Disposition;

    fn message(payload: &str, key: &str) -> wire::Input {
        wire::Input::One(
            Message::new(payload)
                .with_key(key)
                .with_accepted_ms(5_000)
                .with_attempt(2)
                .0,
        )
    }

    fn due(key: &str, name: &str) -> wire::Input {
        wire::Input::Timer(Timer::new(key, name, 9_000).0)
    }

    fn ends(outcomes: &[wire::Outcome]) -> Vec<&Disposition> {
        outcomes.iter().map(|outcome| &outcome.disposition).collect()
    }

    fn stored(swarm: &mut Swarm, key: &str) -> Option<Vec<u8>> {
        swarm.host.begin(0, Some(key));
        swarm.host.state_get("seen").unwrap()
    }

    #[test]
    fn an_error_drops_the_effects_of_its_message_and_no_other() {
        const BEE: Bee = Bee::one("b", |swarm, message| {
            assert_eq!((swarm.attempt(), swarm.now_ms()), (2, 5_000));
            let text = message.text()?.to_owned();
            swarm.publish(text.clone());
            swarm.respond(format!("re {text}"));
            swarm.state().put("seen", &text)?;
            match text.as_str() {
                "bad" => Err(Error::fail("bad", "as asked")),
                "no" => Err(Error::reject("no")),
                _ => Ok(()),
            }
        });
        let mut swarm = Swarm::default();
        let outcomes = run(
            &BEE,
            vec![
                message("a", "k"),
                message("bad", "k"),
                message("no", "l"),
                message("c", "m"),
            ],
            &mut swarm,
        );
        let fail = Disposition::Fail(wire::Failure {
            reason: "bad".into(),
            detail: "as asked".into(),
        });
        assert_eq!(
            ends(&outcomes),
            [
                &Disposition::Done,
                &fail,
                &Disposition::Reject("no".into()),
                &Disposition::Done
            ]
        );
        assert_eq!(outcomes[0].publish[0].payload, b"a");
        assert_eq!(outcomes[0].respond, [b"re a"]);
        for failed in &outcomes[1..3] {
            assert!(failed.publish.is_empty() && failed.respond.is_empty());
        }
        assert_eq!(outcomes[3].publish.len(), 1);
        assert_eq!(
            stored(&mut swarm, "k"),
            Some(b"a".to_vec()),
            "the second write was abandoned"
        );
        assert_eq!(stored(&mut swarm, "l"), None);
        assert_eq!(stored(&mut swarm, "m"), Some(b"c".to_vec()));
    }

    #[test]
    fn a_timer_goes_to_its_function_and_without_one_fails_with_the_remedy() {
        const PLAIN: Bee = Bee::one("plain", |_, _| Ok(()));
        const TIMED: Bee = PLAIN.with_timer(|swarm, timer| {
            assert_eq!(swarm.now_ms(), 9_000);
            swarm.publish(format!("{}/{}", timer.key(), timer.name()));
            Ok(())
        });
        let mut swarm = Swarm::default();
        let outcomes = run(&PLAIN, vec![message("a", "k"), due("k", "flush")], &mut swarm);
        assert_eq!(outcomes[0].disposition, Disposition::Done);
        let Disposition::Fail(failure) = &outcomes[1].disposition else {
            panic!("{:?}", outcomes[1]);
        };
        assert!(
            failure.detail.contains("`flush`") && failure.detail.contains("timer = FUNCTION"),
            "{failure:?}"
        );

        let outcomes = run(&TIMED, vec![due("k", "flush")], &mut swarm);
        assert_eq!(outcomes[0].publish[0].payload, b"k/flush");
    }

    const BATCH: Bee = Bee::batch("batch", |swarm, messages| {
        let count = messages.len();
        for (index, message) in messages.into_iter().enumerate() {
            if message.payload() == b"skip" {
                continue;
            }
            swarm.at(index);
            swarm.state().put("seen", message.payload())?;
            swarm.publish(format!("{}/{count}", message.text()?));
            if message.payload() == b"bad" {
                swarm.fail(Error::reject("bad"));
            }
            if message.payload() == b"stop" {
                return Err(Error::reject("stopped"));
            }
        }
        Ok(())
    })
    .with_timer(|_, _| Ok(()));

    #[test]
    fn a_batch_bee_keeps_its_messages_apart() {
        let mut swarm = Swarm::default();
        let inputs = ["skip", "a", "bad", "skip", "b", "skip"]
            .map(|text| message(text, text))
            .into();
        let outcomes = run(&BATCH, inputs, &mut swarm);
        let published: Vec<usize> = outcomes.iter().map(|outcome| outcome.publish.len()).collect();
        assert_eq!(published, [0, 1, 0, 0, 1, 0]);
        assert_eq!(outcomes[4].publish[0].payload, b"b/6");
        let rejected: Vec<bool> = outcomes
            .iter()
            .map(|outcome| outcome.disposition != Disposition::Done)
            .collect();
        assert_eq!(rejected, [false, false, true, false, false, false]);
        assert_eq!(stored(&mut swarm, "bad"), None);
        assert_eq!(stored(&mut swarm, "b"), Some(b"b".to_vec()));
    }

    #[test]
    fn an_error_of_a_batch_bee_fails_the_current_message_and_those_after_it() {
        let mut swarm = Swarm::default();
        let inputs = vec![
            message("a", "k"),
            message("stop", "k"),
            message("b", "k"),
            due("k", "t"),
            message("c", "l"),
        ];
        let outcomes = run(&BATCH, inputs, &mut swarm);
        let stopped = Disposition::Reject("stopped".into());
        let done = Disposition::Done;
        // A timer splits the batch, so the last message is of another run.
        assert_eq!(ends(&outcomes), [&done, &stopped, &stopped, &done, &done]);
        assert_eq!(outcomes[4].publish[0].payload, b"c/1");
        assert_eq!(stored(&mut swarm, "k"), Some(b"a".to_vec()));
        assert!(run(&BATCH, Vec::new(), &mut swarm).is_empty());
    }

    #[test]
    #[should_panic(expected = "go through a batch upwards")]
    fn a_batch_goes_upwards() {
        const DOWN: Bee = Bee::batch("down", |swarm, _| {
            swarm.at(1);
            swarm.at(0);
            Ok(())
        });
        run(&DOWN, vec![message("a", "k"), message("b", "k")], &mut Swarm::default());
    }

    #[test]
    fn what_a_join_brings_goes_to_its_function_and_to_no_other() {
        const JOINED: Bee = Bee::joined("vote", |swarm, parts| {
            assert_eq!((swarm.attempt(), swarm.now_ms(), parts.len()), (2, 5_000, 2));
            assert!(parts.get("b").is_some() && parts.get("c").is_none());
            let said: Vec<String> = parts
                .into_iter()
                .map(|(side, message)| Ok(format!("{side}={}", message.text()?)))
                .collect::<Result<_, Error>>()?;
            swarm.respond(said.join(" "));
            Ok(())
        });
        let joined = || {
            let part = |side, text| match message(text, "k") {
                wire::Input::One(message) => (side, Message(message)),
                _ => unreachable!(),
            };
            wire::Input::Joined(Joined::new([part("a", "1"), part("b", "2")]).0)
        };
        let mut swarm = Swarm::default();
        let outcomes = run(&JOINED, vec![joined(), message("x", "k")], &mut swarm);
        assert_eq!(outcomes[0].respond, [b"a=1 b=2"]);
        let reason = |outcome: &wire::Outcome| match &outcome.disposition {
            Disposition::Fail(failure) => failure.reason.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(&outcomes[1]), "not-joined");
        let outcomes = run(&BATCH, vec![joined()], &mut swarm);
        assert_eq!(reason(&outcomes[0]), "joined-input");
    }

    #[test]
    fn an_unknown_name_fails_every_message() {
        let outcomes = process(
            "nobody",
            vec![message("a", "k"), message("b", "k")],
            &mut Swarm::default(),
        );
        assert_eq!(outcomes.len(), 2);
        let Disposition::Fail(failure) = &outcomes[0].disposition else {
            panic!("{:?}", outcomes[0]);
        };
        assert!(failure.detail.contains("no Bee `nobody`"), "{failure:?}");
    }
}
