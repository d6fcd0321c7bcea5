//! Bounds: who is refused at what, that nothing is written then, and who is told of room.

use std::time::Duration;

use super::actors::{Reason, World, output};
use super::{Harness, Verdict, holds, refused, same};
use crate::{Call, Error, Once, Refused, Room};

pub(super) async fn a_full_inbox_refuses_and_writes_nothing(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (a, b, c) = (world.spec("a", 1), world.bounded("b", 1, 2, 10), world.spec("c", 1));
    world.words(&a, Some("k"), &["1", "2", "3"]).await?;
    let mut owner = world.own(&a, 0).await?;
    let fetched = owner.fetch(1).await?;
    // Starts below the bound, so it is taken whole although it ends above.
    let mut commit = world.consuming(&owner, &fetched, 1);
    for word in ["x", "y", "z"] {
        commit.outputs.push(output(&b, world.message(None, word)));
    }
    owner.must(commit).await?;
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.outputs.push(output(&c, world.message(None, "other")));
    commit.outputs.push(output(&b, world.message(None, "more")));
    commit.state.push(super::actors::put("k", "n", "v"));
    match owner.send(commit.clone()).await {
        Err(Error::Full {
            stage,
            what: Room::Inbox,
        }) => same!(stage.as_str(), "b", "which stage"),
        other => return Err(format!("a full inbox: got {other:?}")),
    }
    same!(owner.payloads().await?, ["2", "3"], "nothing was consumed");
    holds!(world.backend().state(&a.id, "k").await.why()?.is_empty(), "no state");
    same!(world.own(&c, 0).await?.payloads().await?, [""; 0], "no other output");
    // The same commit is taken once there is room.
    let mut next = world.own(&b, 0).await?;
    let read = next.fetch(9).await?;
    next.must(world.consuming(&next, &read, 3)).await?;
    owner.must(commit).await?;
    same!(next.payloads().await?, ["more"], "taken");
    Ok(())
}

pub(super) async fn a_full_dead_letter_topic_refuses(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let a = world.bounded("a", 1, 100, 2);
    world.words(&a, Some("k"), &["1", "2", "3"]).await?;
    let mut owner = world.own(&a, 0).await?;
    for _ in 0..2 {
        let fetched = owner.fetch(1).await?;
        let mut commit = world.consuming(&owner, &fetched, 1);
        commit
            .dead
            .push(world.letter(crate::Work::Message(fetched.messages[0].message.clone())));
        owner.must(commit).await?;
    }
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit
        .dead
        .push(world.letter(crate::Work::Message(fetched.messages[0].message.clone())));
    refused!(
        owner.send(commit.clone()).await,
        Error::Full {
            what: Room::DeadLetters,
            ..
        },
        "a full dead-letter topic"
    );
    let bell = world.backend().room(&a.id);
    let letters = world.backend().dead_letters(&world.swarm, None, 0, 10).await.why()?;
    same!(letters.len(), 2, "as many as may be");
    let ids: Vec<u64> = letters.iter().map(|l| l.id).collect();
    let room = bell.notified();
    same!(
        world.backend().discard_dead_letters(&world.swarm, &ids).await.why()?,
        2,
        "discarded"
    );
    holds!(
        tokio::time::timeout(Duration::from_secs(2), room).await.is_ok(),
        "the room bell rings"
    );
    owner.must(commit).await
}

pub(super) async fn doors_stop_before_stages(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (a, b) = (world.spec("a", 1), world.bounded("b", 1, 10, 10));
    for word in ["1", "2", "3", "4", "5", "6", "7", "8"] {
        world.words(&b, None, &[word]).await?;
    }
    refused!(
        world.call(&b, vec![world.message(None, "9")], Once::No).await?,
        Refused::Full { .. },
        "a door at 80 percent"
    );
    // A call to two stages is taken by both or by none.
    let both = vec![
        (std::sync::Arc::clone(&a), vec![world.message(None, "x")]),
        (std::sync::Arc::clone(&b), vec![world.message(None, "x")]),
    ];
    let results = world
        .calls(vec![Call {
            to: both,
            once: Once::No,
        }])
        .await?;
    refused!(results[0].clone(), Refused::Full { .. }, "one of two is full");
    same!(
        world.own(&a, 0).await?.payloads().await?,
        [""; 0],
        "nothing reached the other"
    );
    // A stage goes on to the bound.
    world.words(&a, None, &["go"]).await?;
    let mut owner = world.try_own(&a, 0, 5).await?;
    if owner.is_err() {
        world.let_leases_end().await;
        owner = world.try_own(&a, 0, 5).await?;
    }
    let mut owner = owner.why()?;
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.outputs.push(output(&b, world.message(None, "from a stage")));
    owner.must(commit).await
}

pub(super) async fn bytes_count_too(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let a = world.spec("a", 1);
    let large = "x".repeat(200 << 10);
    for _ in 0..5 {
        world.words(&a, None, &[&large]).await?;
    }
    refused!(
        world.call(&a, vec![world.message(None, "1")], Once::No).await?,
        Refused::Full { .. },
        "bytes reached"
    );
    let mut owner = world.own(&a, 0).await?;
    let fetched = owner.fetch(2).await?;
    owner.must(world.consuming(&owner, &fetched, 2)).await?;
    world.words(&a, None, &["1"]).await
}

pub(super) async fn the_room_bell_rings_under_half(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let a = world.bounded("a", 1, 10, 10);
    for word in ["1", "2", "3", "4", "5", "6", "7", "8"] {
        world.words(&a, None, &[word]).await?;
    }
    let bell = world.backend().room(&a.id);
    refused!(
        world.call(&a, vec![world.message(None, "9")], Once::No).await?,
        Refused::Full { .. },
        "full for a door"
    );
    let mut owner = world.own(&a, 0).await?;
    let fetched = owner.fetch(3).await?;
    owner.must(world.consuming(&owner, &fetched, 3)).await?;
    let early = tokio::time::timeout(Duration::from_millis(20), bell.notified()).await;
    holds!(early.is_err(), "half is not under half");
    let room = bell.notified();
    let fetched = owner.fetch(1).await?;
    owner.must(world.consuming(&owner, &fetched, 1)).await?;
    holds!(
        tokio::time::timeout(Duration::from_secs(2), room).await.is_ok(),
        "it rings under half"
    );
    Ok(())
}

pub(super) async fn parking_never_fails(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let a = world.bounded("a", 1, 4, 10);
    world.words(&a, Some("k"), &["1", "2", "3", "4", "5", "6"]).await?;
    let mut owner = world.own(&a, 0).await?;
    let fetched = owner.fetch(9).await?;
    let mut commit = world.consuming(&owner, &fetched, 6);
    for (i, unread) in (0u32..).zip(&fetched.messages) {
        commit
            .park
            .push(world.parked(&unread.message, u32::from(i == 0), u64::MAX / 4));
    }
    owner.must(commit).await?;
    let status = world.backend().status(&world.swarm).await.why()?;
    same!((status[0].unread, status[0].parked), (0, 6), "moved inside the bound");
    refused!(
        world.call(&a, vec![world.message(None, "7")], Once::No).await?,
        Refused::Full { .. },
        "parked messages count"
    );
    Ok(())
}
