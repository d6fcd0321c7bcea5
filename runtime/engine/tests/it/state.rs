use std::collections::BTreeMap;

use skep_model::Bytes;
use skep_model::step::{Batch, StateWrite, TimerWrite, TrapKind};

use crate::zoo::{answers, batch, bee, due, keyed, message, plain, stateful, steps, trap};

fn stored(key: &str, name: &str, value: &'static str) -> (String, BTreeMap<String, Bytes>) {
    (key.to_owned(), BTreeMap::from([(name.to_owned(), Bytes::from(value))]))
}

fn write(name: &str, value: Option<&'static str>) -> StateWrite {
    StateWrite {
        name: name.into(),
        value: value.map(Bytes::from),
    }
}

#[tokio::test]
async fn reads_see_what_is_stored_and_what_was_written_for_the_same_key() {
    let call = Batch {
        inputs: vec![
            keyed(1, "a", "1"),
            keyed(2, "b", "2"),
            keyed(3, "a", "3"),
            keyed(4, "a", "delete"),
            keyed(5, "a", "5"),
        ],
        state: [stored("b", "n", "stored")].into(),
        ..Batch::default()
    };
    let processed = bee("state", stateful()).await.process(call).await;
    let steps = steps(processed);
    let said: Vec<_> = steps
        .iter()
        .map(|s| String::from_utf8_lossy(&s.outcome.respond[0]))
        .collect();
    assert_eq!(said, ["none -> 1", "stored -> 2", "1 -> 3", "3 -> none", "none -> 5"]);
    let writes: Vec<_> = steps.into_iter().map(|s| s.state).collect();
    let expected = ["1", "2", "3", "", "5"].map(|v| vec![write("n", Some(v).filter(|v| !v.is_empty()))]);
    assert_eq!(writes, expected);
}

#[tokio::test]
async fn without_key_or_grant_or_step_there_is_no_state() {
    let state = bee("state", stateful()).await;
    assert_eq!(
        answers(state.process(batch(vec![message(1, "x")])).await),
        ["Error::Unkeyed"]
    );
    // The message has a key, but the stage grants nothing.
    let state = bee("state", plain()).await;
    assert_eq!(
        answers(state.process(batch(vec![keyed(1, "k", "x")])).await),
        ["Error::Unkeyed"]
    );
    let early = bee("no-step", stateful()).await;
    assert_eq!(
        answers(early.process(batch(vec![keyed(1, "k", "x")])).await),
        ["Err(Error::NoStep)"]
    );
}

#[tokio::test]
async fn abandon_undoes_one_input_only() {
    let inputs = vec![keyed(1, "a", "one"), keyed(2, "a", "bad"), keyed(3, "a", "three")];
    let steps = steps(bee("abandon", stateful()).await.process(batch(inputs)).await);
    assert_eq!(steps[0].state, [write("n", Some("one"))]);
    assert!(steps[1].state.is_empty() && steps[1].timers.is_empty());
    assert_eq!(steps[2].state, [write("n", Some("three"))]);

    // What was undone is not seen by the next.
    let call = Batch {
        inputs: vec![keyed(1, "a", "bad"), keyed(2, "b", "bad")],
        state: [stored("a", "n", "old")].into(),
        ..Batch::default()
    };
    let steps = crate::zoo::steps(bee("abandon", stateful()).await.process(call).await);
    assert!(steps.iter().all(|s| s.state.is_empty() && s.timers.is_empty()));
}

#[tokio::test]
async fn timers_are_set_replaced_and_cancelled() {
    let steps = steps(
        bee("timer", stateful())
            .await
            .process(batch(vec![due(1, "k", "t", 5)]))
            .await,
    );
    assert_eq!(
        steps[0].timers,
        [
            TimerWrite {
                name: "old".into(),
                at_ms: None
            },
            TimerWrite {
                name: "wake".into(),
                at_ms: Some(2_000)
            },
        ]
    );
}

#[tokio::test]
async fn breaches_of_the_step_contract_trap() {
    for (name, text) in [
        ("write-then-fail", "not `done`"),
        ("begin-down", "begin goes upward"),
        ("begin-far", "the batch has 2 inputs"),
        ("abandon-other", "the current step is 0"),
    ] {
        let inputs = vec![keyed(1, "a", "x"), keyed(2, "a", "x")];
        let trap = trap(bee(name, stateful()).await.process(batch(inputs)).await);
        assert_eq!(trap.kind, TrapKind::Contract, "{name}: {trap}");
        assert!(trap.detail.contains(text), "{name}: {trap}");
    }
}

#[tokio::test]
async fn quotas_are_errors_that_the_bee_can_handle() {
    let inputs = vec![keyed(1, "a", "x")];
    let answers = answers(bee("quota", stateful()).await.process(batch(inputs)).await);
    assert_eq!(
        answers,
        ["Err(Error::TooLarge(256)); Err(Error::TooLarge(262144)); Err(Error::Quota); Some(1000); Some(1000)"]
    );
}

#[tokio::test]
async fn a_key_that_is_full_takes_no_more_but_can_shrink() {
    let state = |values| {
        let old = (0..values).map(|n| (format!("v{n}"), Bytes::from(vec![0; 250 << 10])));
        let old = old.chain([("old".to_owned(), Bytes::from(vec![0; 1 << 10]))]);
        [("k".to_owned(), old.collect())].into()
    };
    let hoard = bee("hoard", stateful()).await;
    let call = |values| Batch {
        inputs: vec![keyed(1, "k", "")],
        state: state(values),
        ..Batch::default()
    };
    let room = "[Ok(()), Ok(()), Ok(())]; Ok(()); 0";
    assert_eq!(answers(hoard.process(call(1)).await), [room]);
    let quota = "Err(\"Error::Quota\")";
    let one = format!("[Ok(()), {quota}, {quota}]; Ok(()); 0");
    assert_eq!(answers(hoard.process(call(15)).await), [one]);
    let none = format!("[{quota}, {quota}, {quota}]; Ok(()); 0");
    assert_eq!(answers(hoard.process(call(30)).await), [none]);
}
