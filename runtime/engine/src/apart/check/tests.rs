use std::collections::BTreeMap;

use proptest::prelude::*;
use skep_model::id::Uid;
use skep_model::message::Message;
use skep_model::step::{Disposition, Emit, Input, LogLevel, StateRoom, StateWrite, TimerWrite, TrapKind};

use super::*;

fn input(key: Option<&str>) -> Input {
    Input::Message {
        message: Message {
            uid: Uid([7; 16]),
            key: key.map(str::to_owned),
            headers: Vec::new(),
            payload: Bytes::from_static(b"it"),
            accepted_ms: 1,
            request: None,
            trace: None,
            lineage: None,
            hops: Vec::new(),
        },
        attempt: 1,
    }
}

fn outcome(disposition: Disposition) -> Outcome {
    Outcome {
        publish: vec![Emit {
            to: None,
            key: None,
            headers: Vec::new(),
            payload: Bytes::from_static(b"out"),
        }],
        respond: Vec::new(),
        disposition,
    }
}

/// What a guest does to one name of its key.
#[derive(Debug, Clone)]
enum Act {
    Put(u8, usize),
    Delete(u8),
    Timer(u8, Option<u64>),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0_u8..6, prop_oneof![0_usize..40, Just(200 << 10)]).prop_map(|(name, size)| Act::Put(name, size)),
        (0_u8..6).prop_map(Act::Delete),
        (0_u8..6, any::<Option<u64>>()).prop_map(|(name, at)| Act::Timer(name, at)),
    ]
}

proptest! {
    /// Whatever the order was in which a guest did it, and however little room it had: what was allowed there is allowed here, and is the same.
    #[test]
    fn what_a_guest_did_is_taken_as_it_is(
        had in prop::collection::vec((0_u8..3, 0_u8..6, 0_usize..60), 0..12),
        steps in prop::collection::vec((prop::option::of(0_u8..3), prop::collection::vec(act(), 0..12)), 1..8),
        keys in 0_u64..4,
        bytes in prop_oneof![0_u64..300, Just(u64::MAX)],
    ) {
        let mut batch = Batch { room: StateRoom { keys, bytes }, ..Batch::default() };
        for (key, name, size) in had {
            let values: &mut BTreeMap<String, Bytes> = batch.state.entry(format!("key{key}")).or_default();
            values.insert(format!("name{name}"), vec![1; size].into());
        }
        batch.inputs = steps.iter().map(|(key, _)| input(key.map(|key| format!("key{key}")).as_deref())).collect();
        let mut guest = Effects::new(batch.clone(), true, HOSTCALL_BYTES_MAX);
        let mut outcomes = Vec::new();
        for (at, (_, acts)) in steps.iter().enumerate() {
            guest.begin(u32::try_from(at).unwrap()).unwrap();
            for act in acts.clone() {
                let _ = match act {
                    Act::Put(name, size) => guest.write(format!("name{name}"), Some(vec![2; size])),
                    Act::Delete(name) => guest.write(format!("name{name}"), None),
                    Act::Timer(name, at_ms) => guest.timer(format!("name{name}"), at_ms),
                };
            }
            outcomes.push(outcome(Disposition::Done));
        }
        let made = guest.finish(outcomes).unwrap();
        let done = Done { result: Ok(made.clone()), log: Vec::new() };
        prop_assert_eq!(processed(batch, true, done).unwrap().result, Ok(made));
    }
}

#[test]
fn what_no_guest_could_have_done_is_refused() {
    let batch = || Batch {
        inputs: vec![input(Some("a")), input(None)],
        room: StateRoom { keys: 1, bytes: 100 },
        ..Batch::default()
    };
    let step = |disposition, state: Vec<StateWrite>, timers: Vec<TimerWrite>| Step {
        outcome: outcome(disposition),
        state,
        timers,
    };
    let plain = || step(Disposition::Done, Vec::new(), Vec::new());
    let write = |name: &str, size: usize| StateWrite {
        name: name.to_owned(),
        value: Some(vec![0; size].into()),
    };
    let timer = |name: &str| TimerWrite {
        name: name.to_owned(),
        at_ms: Some(1),
    };
    let done = |steps: Vec<Step>| Done {
        result: Ok(steps),
        log: Vec::new(),
    };
    let wrote = |state, timers| done(vec![step(Disposition::Done, state, timers), plain()]);
    assert!(processed(batch(), true, wrote(vec![write("n", 50)], vec![timer("t")])).is_ok());
    let reject = Disposition::Reject("no".to_owned());
    let cases = [
        ("too few steps", true, done(vec![plain()])),
        ("too many", true, done(vec![plain(), plain(), plain()])),
        (
            "state that is not granted",
            false,
            wrote(vec![write("n", 1)], Vec::new()),
        ),
        (
            "timers that are not granted",
            false,
            wrote(Vec::new(), vec![timer("t")]),
        ),
        (
            "more than there is room for",
            true,
            wrote(vec![write("n", 101)], Vec::new()),
        ),
        (
            "a long name",
            true,
            wrote(
                vec![write(&"n".repeat(limits::STATE_NAME_BYTES_MAX + 1), 1)],
                Vec::new(),
            ),
        ),
        (
            "a long timer",
            true,
            wrote(Vec::new(), vec![timer(&"t".repeat(limits::STATE_NAME_BYTES_MAX + 1))]),
        ),
        (
            "of no key",
            true,
            done(vec![plain(), step(Disposition::Done, vec![write("n", 1)], Vec::new())]),
        ),
        (
            "of what was rejected",
            true,
            done(vec![step(reject, vec![write("n", 1)], Vec::new()), plain()]),
        ),
    ];
    for (what, granted, done) in cases {
        assert!(processed(batch(), granted, done).is_err(), "{what}");
    }
}

#[test]
fn what_it_says_is_cut_and_cleaned() {
    let batch = Batch {
        inputs: vec![input(None)],
        ..Batch::default()
    };
    let line = |text: String, input| LogLine {
        level: LogLevel::Info,
        context: "\u{1b}[31m".repeat(1_000),
        text,
        input,
    };
    let trap = || {
        Err(Trap {
            kind: TrapKind::Trap,
            detail: "\u{1b}]0;title\u{7}".repeat(1_000),
            stderr: "a\n\u{202e}b".repeat(10_000),
        })
    };
    let said = |log| {
        let done = Done { result: trap(), log };
        processed(batch.clone(), false, done)
    };
    let told = said(vec![line("\u{9b}2J".repeat(9_000), Some(0))]).unwrap();
    let trap = told.result.unwrap_err();
    assert!(trap.detail.len() <= 2 * DETAIL_BYTES_MAX && !trap.detail.contains(char::is_control));
    assert!(trap.stderr.len() <= ESCAPED * limits::STDERR_BYTES_MAX && !trap.stderr.contains('\u{202e}'));
    assert!(trap.stderr.starts_with("a\n"));
    assert!(told.log[0].text.len() <= limits::LOG_LINE_BYTES_MAX && !told.log[0].text.contains(char::is_control));
    assert!(told.log[0].context.len() <= CONTEXT_BYTES_MAX);
    assert!(
        said(vec![line("x".to_owned(), Some(1))]).is_err(),
        "an input that there is not"
    );
    let many = (0..limits::LOG_LINES_PER_CALL_MAX + 2).map(|_| line(String::new(), None));
    assert!(said(many.collect()).is_err());
    let much = (0..9).map(|_| line("x".repeat(limits::LOG_LINE_BYTES_MAX), None));
    assert!(said(much.collect()).is_err());
}
