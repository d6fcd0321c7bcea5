use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use skep_model::condition::{Condition, Field, Scalar, Test};
use skep_model::env::SeededEntropy;
use skep_model::id::{Digest, Incarnation, RequestId};
use skep_model::limits::{EMITS_MAX, HEADERS_BYTES_MAX, HEADERS_MAX, KEY_BYTES_MAX, PAYLOAD_BYTES_MAX};
use skep_model::message::Request;
use skep_model::name::TenantId;
use skep_model::scope::Scope;
use skep_model::step::{Disposition, Emit, Outcome, Processed, StateWrite};
use skep_model::swarm::{BatchPolicy, Bound, GuestClock, Instances, Keep, KeySource, Stage};
use skep_topic::TopicSpec;
use skep_topic::lane::Lane;

use super::*;
use crate::bee::Bee;

pub(super) struct NoBee;

#[async_trait::async_trait]
impl Bee for NoBee {
    async fn process(&self, _: Batch) -> Processed {
        Processed {
            result: Ok(Vec::new()),
            log: Vec::new(),
        }
    }
}

pub(super) fn bound() -> Bound {
    Bound {
        messages: 1_000,
        bytes: 1 << 20,
    }
}

pub(super) fn stage(key: Option<KeySource>, order: Order) -> Stage {
    let bound = bound();
    Stage {
        name: "s".parse().unwrap(),
        module: "m".to_owned(),
        bee: "b".parse().unwrap(),
        inputs: Vec::new(),
        state: key.is_some(),
        keep: Keep::default(),
        key,
        order,
        retry: RetryPolicy {
            attempts: 3,
            first_ms: 100,
            max_ms: 1_000,
            ..RetryPolicy::default()
        },
        timeout_ms: 1_000,
        batch: BatchPolicy::default(),
        partitions: 1,
        concurrency: 1,
        inbox: bound,
        dead_letters: bound,
        instances: Instances::Fresh,
        memory_bytes: 1 << 20,
        config: BTreeMap::new(),
        secrets: BTreeSet::new(),
        http: BTreeSet::new(),
        models: BTreeSet::new(),
        clock: GuestClock::Recorded,
        exit: None,
        skip: None,
        join: None,
        place: None,
        builtin: None,
        ends: None,
    }
}

pub(super) fn plan_of(key: Option<KeySource>, order: Order, readers: Vec<Option<KeySource>>) -> Plan {
    let swarm = Scope::of(TenantId::default_tenant()).swarm(&"w".parse().unwrap(), Incarnation([1; 16]));
    let bound = Bound {
        messages: 1_000,
        bytes: 1 << 20,
    };
    let spec = |name: &str| {
        Arc::new(TopicSpec {
            id: swarm.topic(&name.parse().unwrap()),
            born: 1,
            partitions: 1,
            inbox: bound,
            dead_letters: bound,
        })
    };
    let destination = |(i, key): (usize, Option<KeySource>)| Destination {
        stage: format!("r{i}").parse().unwrap(),
        topic: spec(&format!("r{i}")),
        key,
        lane: Lane::new(),
        when: None,
        laps: None,
    };
    Plan {
        stage: stage(key, order),
        topic: spec("s"),
        module: Digest::of(b"m"),
        bee: Arc::new(NoBee),
        unnamed: readers.into_iter().enumerate().map(destination).collect(),
        named: BTreeMap::new(),
        door: None,
        bounded: false,
    }
}

pub(super) fn message(n: u8, key: Option<&str>) -> Message {
    Message {
        uid: Uid([n; 16]),
        key: key.map(str::to_owned),
        headers: Vec::new(),
        payload: Bytes::from(vec![n]),
        accepted_ms: 1_000,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    }
}

pub(super) fn fetched(messages: Vec<Message>) -> Fetched {
    let unread = messages.into_iter().enumerate().map(|(i, message)| Unread {
        message,
        after: Cursor {
            entry: 1,
            index: u32::try_from(i).unwrap() + 1,
        },
        entry: 1,
        entry_uid: Uid([9; 16]),
    });
    Fetched {
        messages: unread.collect(),
        now_ms: 5_000,
        ..Fetched::default()
    }
}

pub(super) fn done(publish: Vec<Emit>) -> Step {
    Step {
        outcome: Outcome {
            publish,
            respond: Vec::new(),
            disposition: Disposition::Done,
        },
        state: Vec::new(),
        timers: Vec::new(),
    }
}

pub(super) fn with(disposition: Disposition) -> Step {
    Step {
        outcome: Outcome {
            publish: Vec::new(),
            respond: Vec::new(),
            disposition,
        },
        state: Vec::new(),
        timers: Vec::new(),
    }
}

fn emit(bytes: usize) -> Emit {
    Emit {
        to: None,
        key: None,
        headers: Vec::new(),
        payload: Bytes::from(vec![0; bytes]),
    }
}

pub(super) fn failing() -> Step {
    with(Disposition::Fail {
        reason: "no".to_owned(),
        detail: "because".to_owned(),
    })
}

const STAMP: Stamp = Stamp {
    id: CommitId([5; 16]),
    seq: 7,
    base: CommitId([4; 16]),
    from: Cursor { entry: 1, index: 0 },
};
pub(super) const RAN: Ran = Ran {
    started_us: 0,
    took_us: 1,
    batch: 1,
    parts_left: false,
    span: None,
};

pub(super) fn decided(plan: &Plan, fetched: Fetched, steps: impl FnMut(&Input) -> Result<Step, Trap>) -> Decision {
    let (taken, batch) = arrange(plan, fetched, |_| false);
    let steps = batch.inputs.iter().map(steps).collect();
    decide(plan, &taken, steps, STAMP, RAN, &SeededEntropy::new(1))
}

#[test]
fn what_is_done_is_published_to_every_reader_under_the_childs_uid_and_consumed() {
    let plan = plan_of(None, Order::Hold, vec![None, None]);
    let decision = decided(&plan, fetched(vec![message(1, None), message(2, None)]), |_| {
        Ok(done(vec![emit(3)]))
    });
    let commit = decision.commit;
    assert_eq!((decision.consumed, decision.done, decision.failed), (2, 2, 0));
    assert_eq!(commit.outputs.len(), 4);
    assert_eq!(commit.outputs[0].message.uid, Uid([1; 16]).child("s", 0));
    assert_eq!(commit.outputs[0].message.uid, commit.outputs[1].message.uid);
    assert_ne!(commit.outputs[0].to.id, commit.outputs[1].to.id);
    let span = commit.span.unwrap();
    assert_eq!((span.from, span.to), (STAMP.from, Cursor { entry: 1, index: 2 }));
    assert_eq!((commit.seq, commit.base, commit.id), (STAMP.seq, STAMP.base, STAMP.id));
}

#[test]
fn a_failure_parks_its_key_and_what_follows_of_that_key_waits_behind_it_with_its_effects_discarded() {
    let plan = plan_of(Some(KeySource::Message), Order::Hold, vec![None]);
    let input = fetched(vec![
        message(1, Some("a")),
        message(2, Some("a")),
        message(3, Some("b")),
    ]);
    let decision = decided(&plan, input, |input| {
        Ok(if input.uid() == Uid([1; 16]) {
            failing()
        } else {
            done(vec![emit(1)])
        })
    });
    let commit = decision.commit;
    assert_eq!((decision.consumed, decision.done, decision.failed), (3, 1, 1));
    assert_eq!(commit.park.len(), 2);
    assert_eq!((commit.park[0].attempts, commit.park[1].attempts), (1, 0));
    assert_eq!((commit.park[0].lane.as_str(), commit.park[1].lane.as_str()), ("a", "a"));
    assert!(commit.park[0].due_ms > 5_000 && commit.park[0].due_ms <= 5_100);
    assert_eq!(commit.outputs.len(), 1, "only b's");

    let relaxed = plan_of(Some(KeySource::Message), Order::Relaxed, vec![None]);
    let input = fetched(vec![message(1, Some("a")), message(2, Some("a"))]);
    let decision = decided(&relaxed, input, |input| {
        Ok(if input.uid() == Uid([1; 16]) {
            failing()
        } else {
            done(vec![emit(1)])
        })
    });
    assert_eq!((decision.commit.park.len(), decision.commit.outputs.len()), (1, 1));
}

#[test]
fn a_key_held_in_the_store_parks_what_arrives_without_asking_the_bee() {
    let plan = plan_of(Some(KeySource::Message), Order::Hold, vec![]);
    let mut input = fetched(vec![message(1, Some("a")), message(2, Some("b"))]);
    input.held.insert("a".to_owned());
    let (taken, batch) = arrange(&plan, input, |_| false);
    assert_eq!(batch.inputs.len(), 1);
    let decision = decide(
        &plan,
        &taken,
        vec![Ok(done(vec![]))],
        STAMP,
        RAN,
        &SeededEntropy::new(1),
    );
    assert_eq!(
        (decision.commit.park.len(), decision.consumed, decision.done),
        (1, 2, 1)
    );
}

#[test]
fn the_last_attempt_and_a_reject_are_dead_letters_and_a_retry_keeps_its_place_before() {
    let plan = plan_of(None, Order::Hold, vec![]);
    let parked = |attempts| Parked {
        uid: Uid([77; 16]),
        lane: "lane".to_owned(),
        work: Work::Message(message(1, None)),
        attempts,
        due_ms: 0,
        cause: String::new(),
    };
    let retry = |attempts| Fetched {
        retries: vec![parked(attempts)],
        now_ms: 5_000,
        ..Fetched::default()
    };
    let decision = decided(&plan, retry(1), |input| {
        assert_eq!(input.attempt(), 2);
        Ok(failing())
    });
    let again = decision.commit.retries[0].again.as_ref().unwrap();
    assert_eq!((again.attempts, again.lane.as_str()), (2, "lane"));
    assert!(decision.commit.dead.is_empty() && decision.commit.span.is_none());

    let decision = decided(&plan, retry(2), |_| Ok(failing()));
    assert!(decision.commit.retries[0].again.is_none());
    assert_eq!(
        (
            decision.commit.dead[0].attempts,
            decision.commit.dead[0].reason.as_str()
        ),
        (3, "no")
    );

    let decision = decided(&plan, fetched(vec![message(1, None)]), |_| {
        Ok(with(Disposition::Reject("bad".to_owned())))
    });
    assert_eq!(
        (decision.commit.dead.len(), decision.commit.dead[0].detail.as_str()),
        (1, "bad")
    );

    let decision = decided(&plan, fetched(vec![message(1, None)]), |_| {
        Ok(with(Disposition::RetryAfter(60_000)))
    });
    assert_eq!(decision.commit.park[0].due_ms, 65_000);
}

#[test]
fn a_caller_learns_of_a_response_of_a_dead_letter_and_of_an_expired_deadline() {
    let plan = plan_of(None, Order::Hold, vec![]);
    let asking = |n, deadline_ms| Message {
        request: Some(Request {
            id: RequestId([n; 16]),
            deadline_ms,
            keyed: false,
            share: 0,
            streams: false,
        }),
        ..message(n, None)
    };
    let input = fetched(vec![asking(1, 9_000), asking(2, 9_000), asking(3, 4_000)]);
    let decision = decided(&plan, input, |input| {
        Ok(if input.uid() == Uid([1; 16]) {
            let mut step = done(vec![]);
            step.outcome.respond.push(Bytes::from_static(b"hi"));
            step
        } else {
            with(Disposition::Reject("no".to_owned()))
        })
    });
    let replies: Vec<&ReplyResult> = decision.commit.replies.iter().map(|r| &r.result).collect();
    assert!(matches!(replies[0], ReplyResult::Response(b) if b == "hi"));
    assert!(matches!(replies[1], ReplyResult::Failed { reason, .. } if reason == "reject"));
    assert!(matches!(replies[2], ReplyResult::Expired { .. }));
    assert_eq!(
        decision.commit.dead.len(),
        1,
        "an expired request is consumed with its outcome, not dead-lettered"
    );
    assert_eq!(decision.consumed, 3);
}

#[test]
fn a_batch_commits_the_longest_prefix_that_fits_and_one_message_over_its_bound_is_rejected() {
    let plan = plan_of(None, Order::Hold, vec![None]);
    let input = fetched((1..=5).map(|n| message(n, None)).collect());
    let decision = decided(&plan, input, |_| Ok(done(vec![emit(230 << 10); 3])));
    assert_eq!((decision.consumed, decision.commit.outputs.len()), (2, 6));
    assert_eq!(decision.commit.span.unwrap().to.index, 2);

    let decision = decided(&plan, fetched(vec![message(1, None)]), |_| {
        Ok(done(vec![emit(230 << 10); 6]))
    });
    assert_eq!(decision.commit.dead[0].reason, "effects-too-large");
    assert!(decision.commit.outputs.is_empty());
}

#[test]
fn a_reader_that_needs_a_key_gets_one_or_the_message_is_rejected_with_the_place() {
    let plan = plan_of(None, Order::Hold, vec![Some(KeySource::Message)]);
    let decision = decided(&plan, fetched(vec![message(1, None)]), |_| Ok(done(vec![emit(1)])));
    assert_eq!(decision.commit.dead[0].reason, "no-key");
    assert!(
        decision.commit.dead[0].detail.contains("r0"),
        "{}",
        decision.commit.dead[0].detail
    );
    let keyed = Emit {
        key: Some("k".to_owned()),
        ..emit(1)
    };
    let decision = decided(&plan, fetched(vec![message(1, None)]), |_| {
        Ok(done(vec![keyed.clone()]))
    });
    assert_eq!(decision.commit.outputs[0].message.key.as_deref(), Some("k"));
    let lost = Emit {
        to: Some("nobody".to_owned()),
        ..emit(1)
    };
    let decision = decided(&plan, fetched(vec![message(1, None)]), |_| Ok(done(vec![lost.clone()])));
    assert_eq!(decision.commit.dead[0].reason, "no-such-output");
}

#[test]
fn state_is_coalesced_to_the_last_write_of_each_name() {
    let plan = plan_of(Some(KeySource::Message), Order::Hold, vec![]);
    let input = fetched((1..=3).map(|n| message(n, Some("a"))).collect());
    let mut n = 0u8;
    let decision = decided(&plan, input, |_| {
        n += 1;
        let mut step = done(vec![]);
        step.state.push(StateWrite {
            name: "sum".to_owned(),
            value: Some(Bytes::from(vec![n])),
        });
        Ok(step)
    });
    assert_eq!(decision.commit.state.len(), 1);
    assert_eq!(decision.commit.state[0].value.as_deref(), Some(&[3u8][..]));
}

#[test]
fn the_writes_of_an_item_that_fails_here_do_not_leak_into_the_next_of_its_key() {
    let plan = plan_of(Some(KeySource::Message), Order::Hold, vec![]);
    let input = fetched(vec![
        message(1, Some("a")),
        message(2, Some("b")),
        message(3, Some("a")),
        message(4, Some("b")),
    ]);
    let decision = decided(&plan, input, |input| {
        // The Bee called all of them done; the first one publishes to an output that nobody reads.
        let lost = Emit {
            to: Some("nobody".to_owned()),
            ..emit(1)
        };
        let mut step = done(if input.uid() == Uid([1; 16]) {
            vec![lost]
        } else {
            vec![]
        });
        step.state.push(StateWrite {
            name: "n".to_owned(),
            value: Some(Bytes::from_static(b"1")),
        });
        Ok(step)
    });
    assert_eq!(
        (decision.consumed, decision.commit.dead.len()),
        (2, 1),
        "the third is fetched again, with the state as it is"
    );
    let keys: Vec<&str> = decision.commit.state.iter().map(|s| s.key.as_str()).collect();
    assert_eq!(keys, ["b"]);
}

#[test]
fn a_trouble_of_the_host_that_the_owner_hands_on_is_a_dead_letter_at_once() {
    let plan = plan_of(Some(KeySource::Message), Order::Hold, vec![]);
    let decision = decided(&plan, fetched(vec![message(1, Some("a"))]), |_| {
        Err(Trap {
            kind: TrapKind::Host,
            detail: "no slot".to_owned(),
            stderr: String::new(),
        })
    });
    let dead = &decision.commit.dead[0];
    assert_eq!((dead.reason.as_str(), dead.attempts), ("host", 1));
    assert!(decision.commit.park.is_empty());
}

#[test]
fn a_missing_step_leaves_its_item_and_what_follows_where_they_are() {
    let plan = plan_of(Some(KeySource::Message), Order::Hold, vec![]);
    let (taken, _) = arrange(
        &plan,
        fetched(vec![
            message(1, Some("a")),
            message(2, Some("b")),
            message(3, Some("c")),
        ]),
        |_| false,
    );
    let steps = vec![Ok(done(vec![]))];
    let decision = decide(&plan, &taken, steps, STAMP, RAN, &SeededEntropy::new(1));
    assert_eq!((decision.consumed, decision.commit.park.len()), (1, 0));
    assert_eq!(decision.commit.span.unwrap().to.index, 1);
}

#[test]
fn a_timer_waits_behind_an_earlier_failure_of_its_key() {
    let plan = plan_of(Some(KeySource::Message), Order::Hold, vec![]);
    let timer = |n| TimerDue {
        uid: Uid([n; 16]),
        key: "a".to_owned(),
        name: format!("t{n}"),
        at_ms: 4_000,
    };
    let input = Fetched {
        timers: vec![timer(1), timer(2)],
        now_ms: 5_000,
        ..Fetched::default()
    };
    let decision = decided(&plan, input, |input| {
        Ok(if input.uid() == Uid([1; 16]) {
            failing()
        } else {
            done(vec![])
        })
    });
    let attempts: Vec<u32> = decision.commit.park.iter().map(|p| p.attempts).collect();
    assert_eq!((attempts, decision.commit.timers.len()), (vec![1, 0], 2));
}

#[test]
fn what_a_bee_publishes_is_bounded_as_at_the_door() {
    let plan = plan_of(None, Order::Hold, vec![None]);
    for (emits, reason) in [
        (vec![emit(0); EMITS_MAX + 1], "too-many-emits"),
        (vec![emit(PAYLOAD_BYTES_MAX + 1)], "emit-too-large"),
        (
            vec![Emit {
                key: Some("k".repeat(KEY_BYTES_MAX + 1)),
                ..emit(1)
            }],
            "emit-too-large",
        ),
        (
            vec![Emit {
                headers: vec![(String::new(), String::new()); HEADERS_MAX + 1],
                ..emit(1)
            }],
            "emit-too-large",
        ),
        (
            vec![Emit {
                headers: vec![("h".to_owned(), "v".repeat(HEADERS_BYTES_MAX))],
                ..emit(1)
            }],
            "emit-too-large",
        ),
    ] {
        let decision = decided(&plan, fetched(vec![message(1, None)]), |_| Ok(done(emits.clone())));
        assert_eq!(decision.commit.dead[0].reason, reason);
        assert!(decision.commit.outputs.is_empty());
    }
}

proptest! {
    /// Whatever the outcomes: each item is consumed at most once, in order, and has exactly one fate.
    #[test]
    fn every_consumed_item_has_one_fate(
        keys in proptest::collection::vec(0u8..4, 1..40),
        fates in proptest::collection::vec(0u8..5, 40),
        held in proptest::collection::hash_set(0u8..4, 0..3),
        sizes in proptest::collection::vec(0usize..(256 << 10), 40),
    ) {
        let plan = plan_of(Some(KeySource::Message), Order::Hold, vec![None]);
        let messages: Vec<Message> =
            keys.iter().enumerate().map(|(i, k)| message(u8::try_from(i).unwrap(), Some(&k.to_string()))).collect();
        let mut input = fetched(messages);
        input.held = held.iter().map(ToString::to_string).collect();
        let decision = decided(&plan, input, |input| {
            let i = usize::from(input.uid().0[0]);
            Ok(match fates[i] {
                0 => failing(),
                1 => with(Disposition::Reject("r".to_owned())),
                2 => with(Disposition::RetryAfter(1)),
                _ => done(vec![emit(sizes[i]); 3]),
            })
        });
        let commit = &decision.commit;
        let mut seen: Vec<u8> = Vec::new();
        seen.extend(commit.outputs.iter().map(|o| o.message.lineage.as_ref().unwrap().parent.0[0]));
        seen.extend(commit.park.iter().map(|p| p.work.uid().0[0]));
        seen.extend(commit.dead.iter().map(|d| d.work.uid().0[0]));
        seen.sort_unstable();
        seen.dedup();
        let expected: Vec<u8> = (0..u8::try_from(decision.consumed).unwrap()).collect();
        prop_assert_eq!(seen, expected);
        prop_assert_eq!(commit.span.unwrap().to.index as usize, decision.consumed);
        // Order a key: once one is parked, none of its key after it is applied.
        for (i, key) in keys.iter().enumerate().take(decision.consumed) {
            let parked = |j: usize| commit.park.iter().any(|p| usize::from(p.work.uid().0[0]) == j);
            if held.contains(key) || (0..i).any(|j| keys[j] == *key && parked(j)) {
                prop_assert!(parked(i));
            }
        }
    }
}

fn json_is(pointer: &str, text: &str) -> Condition {
    Condition::Field {
        field: Field::Json(pointer.to_owned()),
        tests: vec![Test::Is(Scalar::Text(text.to_owned()))],
    }
}

fn says(n: u8, key: Option<&str>, what: &str) -> Message {
    Message {
        payload: Bytes::from(format!("{{\"do\": \"{what}\"}}")),
        request: Some(Request {
            id: RequestId([n; 16]),
            deadline_ms: 9_000,
            keyed: false,
            share: 0,
            streams: false,
        }),
        ..message(n, key)
    }
}

#[test]
fn a_branch_gets_what_its_condition_holds_for() {
    let mut plan = plan_of(None, Order::Hold, vec![None, None, None]);
    plan.unnamed[0].when = Some(json_is("/do", "a"));
    plan.unnamed[2].when = Some(Condition::Not(Box::new(json_is("/do", "a"))));
    let decision = decided(
        &plan,
        fetched(vec![says(1, None, "a"), says(2, None, "b"), message(3, None)]),
        |input| {
            let Input::Message { message, .. } = input else {
                panic!()
            };
            Ok(done(vec![Emit {
                payload: message.payload.clone(),
                ..emit(0)
            }]))
        },
    );
    let to: Vec<(u8, &str)> = decision
        .commit
        .outputs
        .iter()
        .map(|o| {
            (
                o.message.lineage.as_ref().unwrap().parent.0[0],
                o.to.id.stage().as_str(),
            )
        })
        .collect();
    assert_eq!(to, [(1, "r0"), (1, "r1"), (2, "r1"), (2, "r2"), (3, "r1"), (3, "r2")]);
}

#[test]
fn what_skips_exits_or_was_not_meant_is_consumed_without_its_bee() {
    let mut plan = plan_of(Some(KeySource::Message), Order::Hold, vec![None]);
    plan.stage.exit = Some(json_is("/do", "exit"));
    plan.stage.skip = Some(json_is("/do", "skip"));
    plan.door = Some(Condition::Not(Box::new(json_is("/do", "turn"))));
    let of_a_stage = Message {
        lineage: Some(skep_model::message::Lineage {
            parent: Uid([8; 16]),
            stage: "up".parse().unwrap(),
            module: Digest::of(b"m"),
            origin: Uid([8; 16]),
            laps: Vec::new(),
        }),
        ..says(5, Some("e"), "turn")
    };
    let messages = vec![
        says(1, Some("a"), "exit"),
        says(2, Some("b"), "skip"),
        says(3, Some("c"), "turn"),
        says(4, Some("d"), "run"),
        of_a_stage,
        says(6, Some("h"), "exit"),
    ];
    let mut input = fetched(messages);
    input.held.insert("h".to_owned());
    let mut asked = Vec::new();
    let decision = decided(&plan, input, |input| {
        asked.push(input.uid().0[0]);
        Ok(done(Vec::new()))
    });
    assert_eq!(asked, [4, 5], "a door is for what comes from a Gateway");
    let commit = &decision.commit;
    assert_eq!(
        (decision.consumed, decision.done, commit.park.len()),
        (6, 5, 1),
        "what is held waits"
    );
    assert_eq!(commit.replies.len(), 1);
    assert_eq!(commit.replies[0].request, RequestId([1; 16]));
    assert_eq!(
        commit.replies[0].result,
        ReplyResult::Response(Bytes::from_static(b"{\"do\": \"exit\"}"))
    );
    let [skipped] = commit.outputs.as_slice() else {
        panic!("{:?}", commit.outputs)
    };
    assert_eq!(skipped.message.payload, Bytes::from_static(b"{\"do\": \"skip\"}"));
    assert_eq!(skipped.message.key.as_deref(), Some("b"));
    assert_eq!(
        skipped.message.request.map(|r| r.id),
        Some(RequestId([2; 16])),
        "its caller still waits"
    );

    // Behind a retry too.
    let retry = Fetched {
        retries: vec![Parked {
            uid: Uid([77; 16]),
            lane: "h".to_owned(),
            work: Work::Message(says(6, Some("h"), "exit")),
            attempts: 0,
            due_ms: 0,
            cause: String::new(),
        }],
        now_ms: 5_000,
        ..Fetched::default()
    };
    let decision = decided(&plan, retry, |_| panic!("its Bee is not called"));
    assert!(decision.commit.retries[0].again.is_none());
    assert_eq!(decision.commit.replies.len(), 1);
}

#[test]
fn what_a_budget_does_not_allow_is_set_aside_at_once() {
    let plan = plan_of(Some(KeySource::Message), Order::Hold, vec![None]);
    let messages = vec![
        message(1, Some("a")),
        message(2, Some("b")),
        message(3, Some("c")),
        message(4, Some("c")),
        message(5, Some("d")),
    ];
    let (mut taken, batch) = arrange(&plan, fetched(messages), |_| false);
    taken.retries = Some(2);
    let steps = batch.inputs.iter().map(|input| match input.uid().0[0] {
        5 => Ok(with(Disposition::Reject("never".to_owned()))),
        2 => Err(Trap {
            kind: TrapKind::Trap,
            detail: "as ever".to_owned(),
            stderr: "why".to_owned(),
        }),
        _ => Ok(failing()),
    });
    let decision = decide(&plan, &taken, steps.collect(), STAMP, RAN, &SeededEntropy::new(1));
    let parked: Vec<&str> = decision.commit.park.iter().map(|p| p.lane.as_str()).collect();
    assert_eq!(parked, ["a", "b"]);
    // The key is free again, so the next of it has its turn.
    let dead: Vec<(u8, &str)> = decision
        .commit
        .dead
        .iter()
        .map(|letter| (letter.work.uid().0[0], letter.reason.as_str()))
        .collect();
    assert_eq!(dead, [(3, "retry-budget"), (4, "retry-budget"), (5, "reject")]);
    assert!(
        decision.commit.dead[0]
            .detail
            .starts_with("no: because; it is not tried again")
    );
    assert_eq!((decision.first, decision.retried, decision.failed), (5, 2, 5));
    assert_eq!(decision.error.as_deref(), Some("no: because"));
    // A retry is no new input, and costs the budget again.
    let retry = Parked {
        uid: Uid([9; 16]),
        lane: "a".to_owned(),
        work: Work::Message(message(1, Some("a"))),
        attempts: 1,
        due_ms: 0,
        cause: String::new(),
    };
    let again = Fetched {
        retries: vec![retry],
        ..fetched(Vec::new())
    };
    let (taken, _) = arrange(&plan, again, |_| false);
    let decision = decide(&plan, &taken, vec![Ok(failing())], STAMP, RAN, &SeededEntropy::new(1));
    assert_eq!((decision.first, decision.retried), (0, 1));
}
