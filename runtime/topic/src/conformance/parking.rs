//! Retries that hold their key, timers, dead letters.

use super::actors::{Owner, Reason, World, finished, text, timer_work};
use super::{Harness, Stop, Verdict, holds, refused, same};
use std::sync::Arc;

use crate::{Call, Error, Fetched, Once, Parked, Refused, Retry, StoredDeadLetter, TimerDue, TopicSpec, Work};

/// Parks `1` (to be retried at once), `2` and `3` (behind it), all of key `k`.
async fn three(world: &World, spec: &Arc<TopicSpec>) -> Result<Owner, String> {
    world.words(spec, Some("k"), &["1", "2", "3"]).await?;
    let mut owner = world.own(spec, 0).await?;
    let fetched = owner.fetch(3).await?;
    let mut commit = world.consuming(&owner, &fetched, 3);
    for (i, unread) in (0u32..).zip(&fetched.messages) {
        commit.park.push(world.parked(&unread.message, u32::from(i == 0), 0));
    }
    owner.must(commit).await?;
    Ok(owner)
}

fn what(parked: &[Parked]) -> Vec<String> {
    parked
        .iter()
        .map(|p| match &p.work {
            Work::Message(message) => text(message),
            Work::Timer { name, .. } => format!("timer {name}"),
        })
        .collect()
}

async fn finish_first(world: &World, owner: &mut Owner) -> Result<Fetched, String> {
    let fetched = owner.fetch(10).await?;
    let mut commit = world.commit(owner);
    commit
        .retries
        .push(finished(fetched.retries.first().ok_or("nothing is due")?));
    owner.must(commit).await?;
    owner.fetch(10).await
}

pub(super) async fn a_lane_waits_in_order(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let mut owner = three(&world, &spec).await?;
    world.words(&spec, Some("k"), &["4"]).await?;
    world.words(&spec, Some("free"), &["5"]).await?;
    let fetched = owner.fetch(10).await?;
    same!(what(&fetched.retries), ["1"], "only the first of a lane");
    holds!(
        fetched.held.contains("k") && !fetched.held.contains("free"),
        "which lanes hold"
    );
    let mut commit = world.consuming(&owner, &fetched, 2);
    let behind = fetched.messages.iter().find(|u| u.message.key.as_deref() == Some("k"));
    commit
        .park
        .push(world.parked(&behind.ok_or("4 is missing")?.message, 0, 0));
    owner.must(commit).await?;
    let mut order = Vec::new();
    let mut fetched = owner.fetch(10).await?;
    while !fetched.retries.is_empty() {
        order.extend(what(&fetched.retries));
        fetched = finish_first(&world, &mut owner).await?;
    }
    same!(order, ["1", "2", "3", "4"], "in order");
    let status = world.backend().status(&world.swarm).await.why()?;
    same!((status[0].parked, status[0].unread), (0, 0), "all gone");
    Ok(())
}

pub(super) async fn a_failing_retry_keeps_its_place(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let spec = world.spec("a", 1);
    let mut owner = three(&world, &spec).await?;
    let fetched = owner.fetch(10).await?;
    let first = &fetched.retries[0];
    let again = Parked {
        uid: world.uid(),
        attempts: 2,
        due_ms: fetched.now_ms + 300,
        ..first.clone()
    };
    let mut commit = world.commit(&owner);
    commit.retries.push(Retry {
        uid: first.uid,
        lane: first.lane.clone(),
        again: Some(again.clone()),
    });
    owner.must(commit).await?;
    same!(what(&owner.fetch(10).await?.retries), [""; 0], "nothing passes it");
    same!(owner.fetch(10).await?.next_due_ms, Some(again.due_ms), "when it is due");
    let mut old = world.commit(&owner);
    old.retries.push(finished(first));
    refused!(owner.send(old).await, Error::InputGone, "the former parking's proof");
    world.harness.advance(400).await;
    let fetched = owner.fetch(10).await?;
    same!(fetched.retries, [again], "first of its lane");
    same!(
        what(&finish_first(&world, &mut owner).await?.retries),
        ["2"],
        "then the next"
    );
    drop(owner);
    if world.harness.reopen(Stop::Clean).await {
        let owner = world.own(&spec, 0).await?;
        same!(what(&owner.fetch(10).await?.retries), ["2"], "also after reopening");
    }
    Ok(())
}

pub(super) async fn the_next_falls_due_when_the_first_leaves(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let mut owner = three(&world, &spec).await?;
    let fetched = owner.fetch(10).await?;
    // Dead-lettered: this releases the key as well.
    let mut commit = world.commit(&owner);
    commit.retries.push(finished(&fetched.retries[0]));
    commit.dead.push(world.letter(fetched.retries[0].work.clone()));
    owner.must(commit).await?;
    same!(what(&owner.fetch(10).await?.retries), ["2"], "due at once");
    same!(
        what(&finish_first(&world, &mut owner).await?.retries),
        ["3"],
        "and the next"
    );
    Ok(())
}

pub(super) async fn timers_wait_while_their_key_is_parked(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    world.words(&spec, Some("k"), &["1"]).await?;
    let mut owner = world.own(&spec, 0).await?;
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.park.push(world.parked(&fetched.messages[0].message, 1, 0));
    commit.set_timers = vec![world.timer("k", "held", 0), world.timer("free", "t", 0)];
    owner.must(commit).await?;
    let names = |fetched: &Fetched| fetched.timers.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    same!(names(&owner.fetch(10).await?), ["t"], "the key's timer waits");
    let fetched = finish_first(&world, &mut owner).await?;
    same!(names(&fetched), ["t", "held"], "until the key is free");
    holds!(fetched.state.contains_key("free"), "state of a timer's key is loaded");
    Ok(())
}

pub(super) async fn a_failed_timer_is_parked_and_retried(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let mut owner = world.own(&spec, 0).await?;
    let mut commit = world.commit(&owner);
    commit.set_timers.push(world.timer("k", "t", 0));
    owner.must(commit).await?;
    let fetched = owner.fetch(1).await?;
    let timer = fetched.timers.first().ok_or("the timer is not due")?;
    let mut commit = world.commit(&owner);
    commit.timers.push(timer.clone());
    let parked = Parked {
        uid: world.uid(),
        lane: "k".to_owned(),
        work: timer_work(timer),
        attempts: 1,
        due_ms: 0,
        cause: String::new(),
    };
    commit.park.push(parked.clone());
    owner.must(commit).await?;
    let fetched = owner.fetch(1).await?;
    same!(fetched.timers, [], "it does not fire again");
    same!(fetched.retries, [parked], "it is retried");
    same!(
        what(&finish_first(&world, &mut owner).await?.retries),
        [""; 0],
        "and done"
    );
    Ok(())
}

pub(super) async fn timers_fire_replace_and_cancel(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let mut owner = world.own(&spec, 0).await?;
    let now = owner.fetch(1).await?.now_ms;
    let mut commit = world.commit(&owner);
    commit.set_timers = vec![
        world.timer("k", "late", now + 1_000),
        world.timer("k", "replaced", now + 10),
        world.timer("k", "cancelled", now + 10),
        world.timer("k", "early", now + 20),
    ];
    owner.must(commit).await?;
    let mut commit = world.commit(&owner);
    let mut cancel = world.timer("k", "cancelled", 0);
    cancel.at_ms = None;
    commit.set_timers = vec![world.timer("k", "replaced", now + 30), cancel];
    owner.must(commit).await?;
    world.harness.advance(100).await;
    let fetched = owner.fetch(10).await?;
    let fired: Vec<_> = fetched
        .timers
        .iter()
        .map(|t| (t.name.as_str(), t.at_ms - now))
        .collect();
    same!(fired, [("early", 20), ("replaced", 30)], "by due time");
    same!(fetched.next_due_ms, Some(now + 1_000), "the next");
    // Consumed and set again in one commit: what is set comes after.
    let mut commit = world.commit(&owner);
    commit.timers = fetched.timers.clone();
    commit.set_timers = vec![world.timer("k", "early", now + 50)];
    owner.must(commit).await?;
    let fetched = owner.fetch(10).await?;
    same!(
        fetched.timers.iter().map(|t| t.at_ms - now).collect::<Vec<_>>(),
        [50],
        "set anew"
    );
    let status = world.backend().status(&world.swarm).await.why()?;
    same!(status[0].timers, 2, "counted");
    Ok(())
}

pub(super) async fn dead_letters_are_kept_listed_and_discarded(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let (a, b) = (world.spec("a", 1), world.spec("b", 1));
    for spec in [&a, &b] {
        world.words(spec, Some("k"), &["1", "2"]).await?;
        let mut owner = world.own(spec, 0).await?;
        let fetched = owner.fetch(2).await?;
        let mut commit = world.consuming(&owner, &fetched, 2);
        for unread in &fetched.messages {
            commit.dead.push(world.letter(Work::Message(unread.message.clone())));
        }
        owner.must(commit).await?;
    }
    let backend = world.backend();
    let all = backend.dead_letters(&world.swarm, None, 0, 10).await.why()?;
    same!(all.len(), 4, "all stages");
    holds!(all.windows(2).all(|w| w[0].id < w[1].id), "oldest first");
    let only = backend
        .dead_letters(&world.swarm, Some(a.id.stage()), 0, 10)
        .await
        .why()?;
    same!(
        only,
        all.iter().filter(|l| l.topic == a.id).cloned().collect::<Vec<_>>(),
        "one stage"
    );
    same!(
        backend.dead_letters(&world.swarm, None, all[0].id, 2).await.why()?,
        all[1..3],
        "a page"
    );
    same!(
        backend
            .discard_dead_letters(&world.swarm, &[all[0].id, 99_999])
            .await
            .why()?,
        1,
        "discarded"
    );
    let rest: &[StoredDeadLetter] = &all[1..];
    same!(
        backend.dead_letters(&world.swarm, None, 0, 10).await.why()?,
        rest,
        "the rest"
    );
    drop(backend);
    if world.harness.reopen(Stop::Kill).await {
        same!(
            world.backend().dead_letters(&world.swarm, None, 0, 10).await.why()?,
            rest,
            "after a crash"
        );
    }
    Ok(())
}

/// What a redrive publishes of a letter.
fn once_more(spec: &Arc<TopicSpec>, letter: &StoredDeadLetter) -> Call {
    let (messages, timer) = match letter.letter.work.clone() {
        Work::Message(message) => (vec![message], None),
        Work::Timer { uid, key, name, at_ms } => (Vec::new(), Some(TimerDue { uid, key, name, at_ms })),
    };
    Call {
        to: vec![(Arc::clone(spec), messages)],
        once: Once::Letter { id: letter.id, timer },
    }
}

pub(super) async fn a_dead_letter_comes_back_once(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let (spec, other) = (world.bounded("a", 4, 10, 3), world.spec("b", 1));
    let place = spec.partition_of_key("k");
    world.words(&spec, Some("k"), &["1", "2"]).await?;
    let mut owner = world.own(&spec, place).await?;
    let fetched = owner.fetch(2).await?;
    let mut commit = world.consuming(&owner, &fetched, 2);
    for unread in &fetched.messages {
        commit.dead.push(world.letter(Work::Message(unread.message.clone())));
    }
    commit.dead.push(world.letter(Work::Timer {
        uid: world.uid(),
        key: "k".to_owned(),
        name: "t".to_owned(),
        at_ms: 5,
    }));
    owner.must(commit).await?;
    world.words(&spec, Some("k"), &["3"]).await?;
    // Full, so that the next dead letter waits for room.
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit
        .dead
        .push(world.letter(Work::Message(fetched.messages[0].message.clone())));
    let room = world.backend().room(&spec.id);
    let rung = room.notified();
    refused!(owner.send(commit.clone()).await, Error::Full { .. }, "dead letters");

    let letters = world.backend().dead_letters(&world.swarm, None, 0, 10).await.why()?;
    same!(letters.len(), 3, "letters");
    let again: Vec<Call> = letters.iter().map(|l| once_more(&spec, l)).collect();
    // Twice in one step, and of another stage.
    let asked = vec![again[0].clone(), again[0].clone(), once_more(&other, &letters[1])];
    let results = world.calls(asked).await?;
    holds!(results[0].is_ok(), "the first comes back");
    refused!(&results[1], Refused::NoLetter, "twice in one step");
    refused!(&results[2], Refused::NoLetter, "of another stage");
    same!(
        world.calls(vec![again[0].clone()]).await?,
        [Err(Refused::NoLetter)],
        "twice"
    );
    holds!(
        world.calls(vec![again[1].clone()]).await?[0].is_ok(),
        "the second comes back"
    );
    holds!(
        tokio::time::timeout(std::time::Duration::from_secs(5), rung)
            .await
            .is_ok(),
        "room is told"
    );
    owner.must(commit).await?;
    let fetched = owner.fetch(10).await?;
    let words: Vec<_> = fetched.messages.iter().map(|u| u.message.payload.clone()).collect();
    same!(words, ["1", "2"], "behind what was unread");
    same!(
        fetched.messages[0].message,
        match &letters[0].letter.work {
            Work::Message(message) => message.clone(),
            Work::Timer { .. } => return Err("the first is a message".to_owned()),
        },
        "as it was"
    );

    // A timer: its owner drops what it knows, and it fires.
    holds!(
        world.calls(vec![again[2].clone()]).await?[0].is_ok(),
        "the timer comes back"
    );
    same!(
        world.calls(vec![again[2].clone()]).await?,
        [Err(Refused::NoLetter)],
        "the timer twice"
    );
    let commit = world.commit(&owner);
    refused!(owner.send(commit).await, Error::Stale, "the owner's base is old");
    drop(owner);
    world.let_leases_end().await;
    let mut owner = world.own(&spec, place).await?;
    let fetched = owner.fetch(10).await?;
    same!(
        fetched
            .timers
            .iter()
            .map(|t| (t.name.as_str(), t.at_ms))
            .collect::<Vec<_>>(),
        [("t", 5)],
        "due at once"
    );
    let status = world.backend().status(&world.swarm).await.why()?;
    let status = status.iter().find(|s| s.topic == spec.id).ok_or("no status")?;
    same!((status.dead, status.timers, status.unread), (1, 1, 2), "counted");
    // Dead again while the Bee sets one of that name: neither may be lost.
    let mut commit = world.commit(&owner);
    commit.timers = fetched.timers.clone();
    commit.set_timers = vec![world.timer("k", "t", u64::MAX / 4)];
    commit.dead = vec![letters[2].letter.clone()];
    owner.must(commit).await?;
    let letters = world.backend().dead_letters(&world.swarm, None, 0, 10).await.why()?;
    let last = letters.last().ok_or("no letter")?;
    same!(
        world.calls(vec![once_more(&spec, last)]).await?,
        [Err(Refused::TimerSet)],
        "set since"
    );
    // A full inbox takes none, and the letter stays.
    world.words(&spec, Some("k"), &["4", "5", "6", "7", "8", "9"]).await?;
    refused!(
        &world.calls(vec![once_more(&spec, &letters[0])]).await?[0],
        Refused::Full { .. },
        "full"
    );
    drop(owner);
    if world.harness.reopen(Stop::Kill).await {
        let found = world.backend().dead_letters(&world.swarm, None, 0, 10).await.why()?;
        same!(found, letters, "as many after a crash");
    }
    Ok(())
}
