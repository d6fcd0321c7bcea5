//! How repeated calls are recognised, and how replies travel.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep_model::id::{Digest, RequestId, Uid};
use skep_model::message::{Reply, ReplyResult};

use super::actors::{Reason, World, stage};
use super::{Harness, Stop, Verdict, holds, refused, same};
use crate::{Accepted, Call, Once, Refused, TopicSpec, Work};

fn key(name: &str, payload: &str, expires_ms: u64) -> Once {
    Once::Key {
        subject: "door".parse().expect("a name"),
        key: name.to_owned(),
        fingerprint: Digest::of(payload.as_bytes()),
        expires_ms,
    }
}

const LATE: u64 = u64::MAX / 4;

pub(super) async fn a_key_is_remembered(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let a = world.spec("a", 1);
    let (id, message) = world.request("1", true);
    let first = world.call(&a, vec![message.clone()], key("x", "1", LATE)).await?;
    same!(first, Ok(Accepted::Appended { skipped: 0 }), "the first");
    let (_, again) = world.request("1", true);
    let running = Ok(Accepted::Duplicate {
        request: Some(id),
        reply: None,
    });
    same!(
        world.call(&a, vec![again.clone()], key("x", "1", LATE)).await?,
        running,
        "the same"
    );
    same!(
        world
            .call(&a, vec![world.message(None, "2")], key("x", "2", LATE))
            .await?,
        Err(Refused::KeyReused),
        "another payload"
    );
    let submit = world
        .call(&a, vec![world.message(None, "3")], key("y", "3", LATE))
        .await?;
    same!(submit, Ok(Accepted::Appended { skipped: 0 }), "another key");
    same!(
        world
            .call(&a, vec![world.message(None, "3")], key("y", "3", LATE))
            .await?,
        Ok(Accepted::Duplicate {
            request: None,
            reply: None
        }),
        "a submit again"
    );
    same!(world.own(&a, 0).await?.payloads().await?, ["1", "3"], "appended once");
    // Twice in one publish.
    let calls = ["4", "4"].map(|word| Call {
        to: vec![(Arc::clone(&a), vec![world.message(None, word)])],
        once: key("z", "4", LATE),
    });
    let results = world.calls(calls.to_vec()).await?;
    holds!(
        matches!(results[1], Ok(Accepted::Duplicate { .. })),
        "twice in one publish"
    );
    if world.harness.reopen(Stop::Kill).await {
        same!(
            world.call(&a, vec![again], key("x", "1", LATE)).await?,
            running,
            "after a crash"
        );
    }
    Ok(())
}

pub(super) async fn a_finished_key_answers_with_its_reply(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let a = world.spec("a", 1);
    let (id, message) = world.request("1", true);
    let waiter = world.backend().waiters().wait(id);
    holds!(
        world
            .call(&a, vec![message.clone()], key("x", "1", LATE))
            .await?
            .is_ok(),
        "taken"
    );
    let mut owner = world.own(&a, 0).await?;
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    let response = |word: &'static str| Reply {
        request: id,
        result: ReplyResult::Response(Bytes::from_static(word.as_bytes())),
        hops: Vec::new(),
    };
    commit.replies.push(response("first"));
    commit.replies.push(response("second"));
    owner.must(commit).await?;
    let got = tokio::time::timeout(Duration::from_secs(2), waiter)
        .await
        .why()?
        .why()?;
    same!(got, response("first"), "the waiter gets the first reply");
    let stored = Ok(Accepted::Duplicate {
        request: Some(id),
        reply: Some(response("first")),
    });
    same!(
        world.call(&a, vec![message.clone()], key("x", "1", LATE)).await?,
        stored,
        "stored"
    );
    drop(owner);
    if world.harness.reopen(Stop::Kill).await {
        same!(
            world.call(&a, vec![message], key("x", "1", LATE)).await?,
            stored,
            "stored, after a crash"
        );
    }
    Ok(())
}

pub(super) async fn keys_expire(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let a = world.spec("a", 1);
    let owner = world.own(&a, 0).await?;
    let now = owner.fetch(1).await?.now_ms;
    for (word, expires) in [("1", now + 100), ("2", now + 100_000)] {
        holds!(
            world
                .call(&a, vec![world.message(None, word)], key(word, word, expires))
                .await?
                .is_ok(),
            "taken"
        );
    }
    world.harness.advance(200).await;
    let again = world
        .call(&a, vec![world.message(None, "1")], key("1", "other", now + 900))
        .await?;
    same!(again, Ok(Accepted::Appended { skipped: 0 }), "an expired key is new");
    let other = world
        .call(&a, vec![world.message(None, "2")], key("2", "2", now + 900))
        .await?;
    holds!(matches!(other, Ok(Accepted::Duplicate { .. })), "the other is not");
    Ok(())
}

pub(super) async fn one_call_refused_leaves_the_others(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (a, full) = (world.spec("a", 1), world.bounded("full", 1, 1, 1));
    world.words(&full, None, &["1"]).await?;
    let call = |to: &Arc<TopicSpec>, word: &str| Call {
        to: vec![(Arc::clone(to), vec![world.message(None, word)])],
        once: Once::No,
    };
    let results = world
        .calls(vec![call(&a, "1"), call(&full, "2"), call(&a, "3")])
        .await?;
    holds!(results[0].is_ok() && results[2].is_ok(), "the others are taken");
    refused!(results[1].clone(), Refused::Full { .. }, "the full one is refused");
    same!(world.own(&a, 0).await?.payloads().await?, ["1", "3"], "in order");
    Ok(())
}

pub(super) async fn sessions_skip_repeats_and_refuse_gaps(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let (a, b) = (world.spec("a", 1), world.spec("b", 2));
    let id = Uid([9; 16]);
    let again = std::cell::Cell::new(u64::MAX);
    let part = |first: u64, words: &[&str]| {
        let messages = |keyed: bool| {
            words
                .iter()
                .map(|w| world.message(keyed.then_some(*w), w))
                .collect::<Vec<_>>()
        };
        vec![Call {
            to: vec![(Arc::clone(&a), messages(false)), (Arc::clone(&b), messages(true))],
            once: Once::Session {
                id,
                first,
                again_max: again.get(),
                expires_ms: LATE,
            },
        }]
    };
    let steps: [(u64, &[&str], crate::CallResult); 6] = [
        (2, &["2"], Err(Refused::SessionGap { high: 0, first: 2 })),
        (1, &["1", "2"], Ok(Accepted::Appended { skipped: 0 })),
        (1, &["1", "2"], Ok(Accepted::Appended { skipped: 2 })),
        (2, &["2", "3", "4"], Ok(Accepted::Appended { skipped: 1 })),
        (6, &["6"], Err(Refused::SessionGap { high: 4, first: 6 })),
        (0, &["0"], Err(Refused::SessionGap { high: 4, first: 0 })),
    ];
    for (first, words, expected) in steps {
        let results = world.calls(part(first, words)).await?;
        same!(results[0], expected, format!("from {first}"));
    }
    same!(
        world.own(&a, 0).await?.payloads().await?,
        ["1", "2", "3", "4"],
        "each once"
    );
    let mut keyed = world.own(&b, 0).await?.payloads().await?;
    keyed.extend(world.own(&b, 1).await?.payloads().await?);
    keyed.sort();
    same!(keyed, ["1", "2", "3", "4"], "each once for the other stage");
    // A sender that knows what it may have sent before: of more, nothing is taken.
    let steps: [(u64, u64, &[&str], crate::CallResult); 4] = [
        (0, 4, &["x"], Err(Refused::SessionAhead { high: 4, first: 4 })),
        (1, 3, &["x", "y", "z"], Err(Refused::SessionAhead { high: 4, first: 3 })),
        (2, 3, &["3", "4"], Ok(Accepted::Appended { skipped: 2 })),
        (0, 6, &["6"], Err(Refused::SessionGap { high: 4, first: 6 })),
    ];
    for (may, first, words, expected) in steps {
        again.set(may);
        let results = world.calls(part(first, words)).await?;
        same!(
            results[0],
            expected,
            format!("from {first}, of which {may} may be there")
        );
    }
    again.set(u64::MAX);
    let repeat = part(4, &["4", "5"]);
    if world.harness.reopen(Stop::Kill).await {
        let results = world.calls(repeat).await?;
        same!(results[0], Ok(Accepted::Appended { skipped: 1 }), "after a crash");
    }
    Ok(())
}

pub(super) async fn replies_reach_their_waiters(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let a = world.spec("a", 1);
    let (id, message) = world.request("1", false);
    let waiter = world.backend().waiters().wait(id);
    world.put(&a, vec![message.clone()]).await?;
    let mut owner = world.own(&a, 0).await?;
    let fetched = owner.fetch(1).await?;
    // A refused commit answers nobody.
    let mut stale = world.consuming(&owner, &fetched, 1);
    stale.seq += 1;
    let failed = |request: RequestId| Reply {
        request,
        result: ReplyResult::Failed {
            stage: stage("a"),
            reason: "fail".to_owned(),
            detail: "no".to_owned(),
            dead_letter: None,
        },
        hops: Vec::new(),
    };
    stale.replies.push(failed(id));
    refused!(owner.send(stale).await, crate::Error::Stale, "stale");
    holds!(world.backend().waiters().is_waiting(id), "still waiting");
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.dead.push(world.letter(Work::Message(message)));
    commit.replies.push(failed(id));
    owner.must(commit).await?;
    let reply = tokio::time::timeout(Duration::from_secs(2), waiter)
        .await
        .why()?
        .why()?;
    let letters = world.backend().dead_letters(&world.swarm, None, 0, 9).await.why()?;
    match reply.result {
        ReplyResult::Failed { dead_letter, .. } => same!(dead_letter, Some(letters[0].id), "the dead letter's id"),
        other => return Err(format!("got {other:?}")),
    }
    Ok(())
}
