//! Order, cursors, where messages go, bells.

use std::time::Duration;

use bytes::Bytes;
use skep_model::id::{Digest, RequestId, Uid};
use skep_model::message::{Hop, Lap, Lineage, Message, Request, TraceContext};

use super::actors::{Reason, World, output, stage, text};
use super::{Harness, Verdict, holds, same};
use crate::{Call, Cursor, Gate, Once, Publish};

pub(super) async fn order_and_cursor_inside_a_frame(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    world.words(&spec, None, &["1", "2", "3"]).await?;
    world.words(&spec, None, &["4", "5"]).await?;
    let mut owner = world.own(&spec, 0).await?;
    same!(owner.payloads().await?, ["1", "2", "3", "4", "5"], "order");
    // Two of the first three, then over the frame's border into the second.
    let fetched = owner.fetch(2).await?;
    same!(fetched.messages.len(), 2, "as many as wanted");
    owner.must(world.consuming(&owner, &fetched, 2)).await?;
    holds!(owner.claim.cursor.index == 2, "the cursor stands inside the frame");
    same!(owner.payloads().await?, ["3", "4", "5"], "the rest of the frame");
    let fetched = owner.fetch(2).await?;
    owner.must(world.consuming(&owner, &fetched, 2)).await?;
    same!(owner.payloads().await?, ["5"], "across frames");
    let fetched = owner.fetch(9).await?;
    owner.must(world.consuming(&owner, &fetched, 1)).await?;
    same!(owner.payloads().await?, [""; 0], "all consumed");
    same!(
        owner.claim.cursor,
        Cursor {
            entry: fetched.messages[0].entry + 1,
            index: 0
        },
        "behind the last frame"
    );
    world.words(&spec, None, &["6"]).await?;
    same!(owner.payloads().await?, ["6"], "new ones come after");
    Ok(())
}

pub(super) async fn bytes_end_a_batch_and_one_message_is_always_given(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let large = "x".repeat(1_000);
    world.words(&spec, None, &[&large, &large, "y"]).await?;
    let owner = world.own(&spec, 0).await?;
    let mut want = owner.want(10);
    want.bytes = 10;
    let fetched = owner.backend.fetch(&owner.lease, want).await.why()?;
    same!(fetched.messages.len(), 1, "one, however large");
    want.bytes = 2_000;
    let fetched = owner.backend.fetch(&owner.lease, want).await.why()?;
    same!(fetched.messages.len(), 2, "as many as fit");
    Ok(())
}

pub(super) async fn keys_go_to_their_partition(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 4);
    let keys: Vec<String> = (0..40).map(|i| format!("key-{i}")).collect();
    for key in &keys {
        world.put(&spec, vec![world.message(Some(key), key)]).await?;
    }
    let mut seen = 0;
    for index in 0..4 {
        let owner = world.own(&spec, index).await?;
        for unread in owner.fetch(100).await?.messages {
            let key = unread.message.key.clone().ok_or("the key is lost")?;
            same!(spec.partition_of_key(&key), index, "partition of its key");
            same!(text(&unread.message), key, "payload of its key");
            seen += 1;
        }
    }
    same!(seen, keys.len(), "all of them");
    Ok(())
}

pub(super) async fn loose_messages_go_where_the_inbox_is_shortest(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 2);
    world.words(&spec, None, &["1", "2", "3"]).await?;
    world.words(&spec, None, &["4"]).await?;
    world.words(&spec, None, &["5"]).await?;
    let mut lengths = Vec::new();
    for index in 0..2 {
        let owner = world.own(&spec, index).await?;
        lengths.push(owner.payloads().await?.len());
    }
    lengths.sort_unstable();
    same!(lengths, [2, 3], "calls stay together and go to the shorter inbox");
    Ok(())
}

pub(super) async fn outputs_reach_the_next_stage(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (a, b, c) = (world.spec("a", 1), world.spec("b", 1), world.spec("c", 2));
    world.words(&a, None, &["1", "2"]).await?;
    let mut owner = world.own(&a, 0).await?;
    let fetched = owner.fetch(10).await?;
    let mut commit = world.consuming(&owner, &fetched, 2);
    for word in ["x", "y"] {
        commit.outputs.push(output(&b, world.message(Some("k"), word)));
        commit.outputs.push(output(&c, world.message(Some("k"), word)));
    }
    owner.must(commit).await?;
    same!(
        world.own(&b, 0).await?.payloads().await?,
        ["x", "y"],
        "first destination"
    );
    let at = c.partition_of_key("k");
    same!(
        world.own(&c, at).await?.payloads().await?,
        ["x", "y"],
        "second destination"
    );
    Ok(())
}

pub(super) async fn an_appended_message_is_seen_at_once(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let owner = world.own(&spec, 0).await?;
    let publish = Publish {
        swarm: world.swarm.clone(),
        calls: vec![Call {
            to: vec![(spec, vec![world.message(None, "1")])],
            once: Once::No,
        }],
        gate: Gate::Appended,
    };
    let results = world.backend().publish(publish).await.why()?;
    holds!(results[0].is_ok(), "appended");
    same!(owner.payloads().await?, ["1"], "seen before it is durable");
    Ok(())
}

pub(super) async fn every_field_of_a_message_survives(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let spec = world.spec("a", 1);
    let message = Message {
        uid: Uid([1; 16]),
        key: Some(String::new()),
        headers: vec![("a".to_owned(), "b".to_owned()), (String::new(), "é".to_owned())],
        payload: Bytes::from_static(b"\0\xff"),
        accepted_ms: 77,
        request: Some(Request {
            id: RequestId([2; 16]),
            deadline_ms: 88,
            keyed: true,
            share: 0,
            streams: false,
        }),
        trace: Some(TraceContext {
            trace_id: [3; 16],
            span_id: [4; 8],
            sampled: true,
        }),
        lineage: Some(Lineage {
            parent: Uid([5; 16]),
            stage: stage("before"),
            module: Digest([6; 32]),
            origin: Uid([5; 16]),
            laps: vec![Lap {
                from: stage("before"),
                to: stage("again"),
                times: 4,
            }],
        }),
        hops: vec![Hop {
            stage: stage("before"),
            started_us: 1,
            took_us: 2,
            batch: 3,
        }],
    };
    world.put(&spec, vec![message.clone()]).await?;
    same!(
        world.own(&spec, 0).await?.fetch(1).await?.messages[0].message,
        message,
        "before"
    );
    if world.harness.reopen(super::Stop::Clean).await {
        same!(
            world.own(&spec, 0).await?.fetch(1).await?.messages[0].message,
            message,
            "after reopening"
        );
    }
    Ok(())
}

pub(super) async fn bells_ring(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (a, b) = (world.spec("a", 1), world.spec("b", 1));
    let ring = async |id| {
        tokio::time::timeout(Duration::from_secs(2), world.backend().bell(&id).notified())
            .await
            .is_ok()
    };
    world.words(&a, None, &["1"]).await?;
    holds!(ring(a.id.partition(0)).await, "a publish rings");
    let mut owner = world.own(&a, 0).await?;
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.outputs.push(output(&b, world.message(None, "x")));
    commit.set_timers.push(world.timer("k", "t", 5));
    owner.must(commit).await?;
    holds!(ring(b.id.partition(0)).await, "an output rings");
    holds!(ring(a.id.partition(0)).await, "a timer rings");
    let commit = world.commit(&owner);
    owner.must(commit).await?;
    Ok(())
}
