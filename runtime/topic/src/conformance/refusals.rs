//! Each refusal of a commit, and that it leaves nothing behind.

use skep_model::id::{CommitId, Token};
use skep_model::limits::COMMIT_BYTES_MAX;

use super::actors::{Owner, Reason, World, finished, output, put};
use super::{Harness, Verdict, holds, refused, same};
use crate::{Committed, Cursor, Error, Lease, Retry, TimerDue};

/// A world in which one message is parked until 0 ms, one timer is set for 0 ms, and one message is unread.
async fn busy(world: &World) -> Result<(Owner, crate::Fetched), String> {
    let spec = world.spec("a", 1);
    world.words(&spec, Some("k"), &["1", "2"]).await?;
    let mut owner = world.own(&spec, 0).await?;
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.park.push(world.parked(&fetched.messages[0].message, 1, 0));
    commit.set_timers.push(world.timer("other", "t", 0));
    commit.state.push(put("k", "n", "before"));
    owner.must(commit).await?;
    let fetched = owner.fetch(10).await?;
    same_counts(&fetched)?;
    Ok((owner, fetched))
}

fn same_counts(fetched: &crate::Fetched) -> Verdict {
    same!(
        (fetched.messages.len(), fetched.retries.len(), fetched.timers.len()),
        (1, 1, 1),
        "one of each"
    );
    Ok(())
}

/// What every refusal must leave as it was.
async fn untouched(world: &World, owner: &Owner) -> Verdict {
    let spec = world.spec("a", 1);
    let fetched = owner.fetch(10).await?;
    same_counts(&fetched)?;
    let state = world.backend().state(&spec.id, "k").await.why()?;
    same!(state["n"], b"before"[..], "state as it was");
    let status = world.backend().status(&world.swarm).await.why()?;
    holds!(
        status.iter().all(|s| s.topic.stage().as_str() == "a"),
        "no output was written"
    );
    Ok(())
}

/// A commit with every effect there is.
fn everything(world: &World, owner: &Owner, fetched: &crate::Fetched) -> crate::Commit {
    let mut commit = world.consuming(owner, fetched, 1);
    commit.retries.push(finished(&fetched.retries[0]));
    commit.timers.push(fetched.timers[0].clone());
    commit
        .outputs
        .push(output(&world.spec("b", 1), world.message(None, "out")));
    commit.state.push(put("k", "n", "after"));
    commit
}

pub(super) async fn fenced_by_token(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (owner, fetched) = busy(&world).await?;
    let mut zombie = owner.clone();
    zombie.lease = Lease {
        partition: owner.lease.partition.clone(),
        token: Token::random(&world.entropy),
    };
    let commit = everything(&world, &owner, &fetched);
    refused!(zombie.send(commit).await, Error::Fenced, "a commit under another token");
    refused!(
        zombie.backend.fetch(&zombie.lease, zombie.want(1)).await,
        Error::Fenced,
        "a fetch under another token"
    );
    refused!(
        zombie.backend.renew(&zombie.lease, 5).await,
        Error::Fenced,
        "a renewal under another token"
    );
    untouched(&world, &owner).await?;
    // The owner before the owner: its lease ran out and another took over.
    world.let_leases_end().await;
    let taken = world.own(&world.spec("a", 1), 0).await?;
    let mut late = owner.clone();
    let commit = everything(&world, &owner, &fetched);
    refused!(late.send(commit).await, Error::Fenced, "a zombie's commit");
    untouched(&world, &taken).await
}

pub(super) async fn stale_by_base(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (mut owner, fetched) = busy(&world).await?;
    let mut commit = everything(&world, &owner, &fetched);
    commit.base = CommitId::random(&world.entropy);
    refused!(owner.send(commit).await, Error::Stale, "a commit on another base");
    untouched(&world, &owner).await?;
    let mut commit = everything(&world, &owner, &fetched);
    commit.base = CommitId::NONE;
    refused!(owner.send(commit).await, Error::Stale, "a commit on no base");
    untouched(&world, &owner).await
}

pub(super) async fn stale_by_seq(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (mut owner, fetched) = busy(&world).await?;
    for seq in [owner.claim.seq + 1, owner.claim.seq - 1] {
        let mut commit = everything(&world, &owner, &fetched);
        commit.seq = seq;
        refused!(owner.send(commit).await, Error::Stale, "a commit with another sequence");
    }
    untouched(&world, &owner).await
}

pub(super) async fn stale_by_cursor(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (mut owner, fetched) = busy(&world).await?;
    let mut commit = everything(&world, &owner, &fetched);
    if let Some(span) = &mut commit.span {
        span.from = Cursor::default();
    }
    refused!(owner.send(commit).await, Error::Stale, "a commit from another cursor");
    untouched(&world, &owner).await
}

pub(super) async fn done_when_repeated(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (owner, fetched) = busy(&world).await?;
    let commit = everything(&world, &owner, &fetched);
    let mut first = owner.clone();
    same!(first.send(commit.clone()).await.why()?, Committed::Ok, "the first time");
    let mut again = owner.clone();
    same!(
        again.send(commit.clone()).await.why()?,
        Committed::Done,
        "the same again"
    );
    same!(
        world.own(&world.spec("b", 1), 0).await?.payloads().await?,
        ["out"],
        "applied once"
    );
    // Once another commit is on top, the same one is stale, not done.
    let next = world.commit(&first);
    first.must(next).await?;
    refused!(
        owner.clone().send(commit).await,
        Error::Stale,
        "the same again, after the next"
    );
    Ok(())
}

pub(super) async fn input_gone_for_an_entry(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (mut owner, fetched) = busy(&world).await?;
    let mut commit = everything(&world, &owner, &fetched);
    if let Some(span) = &mut commit.span {
        span.last_entry_uid = world.uid();
    }
    refused!(owner.send(commit).await, Error::InputGone, "another uid");
    let mut commit = everything(&world, &owner, &fetched);
    if let Some(span) = &mut commit.span {
        span.last_entry += 1;
        span.to.entry += 1;
    }
    refused!(owner.send(commit).await, Error::InputGone, "an entry that is not there");
    untouched(&world, &owner).await
}

pub(super) async fn input_gone_for_a_timer(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (mut owner, fetched) = busy(&world).await?;
    let due = &fetched.timers[0];
    let others = [
        TimerDue {
            uid: world.uid(),
            ..due.clone()
        },
        TimerDue {
            name: "u".to_owned(),
            ..due.clone()
        },
    ];
    for timer in others {
        let mut commit = everything(&world, &owner, &fetched);
        commit.timers = vec![timer];
        refused!(owner.send(commit).await, Error::InputGone, "another timer");
    }
    untouched(&world, &owner).await
}

pub(super) async fn input_gone_for_a_retry(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (mut owner, fetched) = busy(&world).await?;
    let parked = &fetched.retries[0];
    let others = [
        Retry {
            uid: world.uid(),
            lane: parked.lane.clone(),
            again: None,
        },
        Retry {
            uid: parked.uid,
            lane: "nobody".to_owned(),
            again: None,
        },
    ];
    for retry in others {
        let mut commit = everything(&world, &owner, &fetched);
        commit.retries = vec![retry];
        refused!(owner.send(commit).await, Error::InputGone, "another retry");
    }
    untouched(&world, &owner).await
}

pub(super) async fn input_gone_before_its_time(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    world.words(&spec, Some("k"), &["1"]).await?;
    let mut owner = world.own(&spec, 0).await?;
    let fetched = owner.fetch(1).await?;
    let later = fetched.now_ms + 500;
    let mut commit = world.consuming(&owner, &fetched, 1);
    let parked = world.parked(&fetched.messages[0].message, 1, later);
    let timer = world.timer("o", "t", later);
    commit.park.push(parked.clone());
    commit.set_timers.push(timer.clone());
    owner.must(commit).await?;
    let fetched = owner.fetch(9).await?;
    same!((fetched.retries.len(), fetched.timers.len()), (0, 0), "nothing is due");
    same!(fetched.next_due_ms, Some(later), "when it will be");
    let mut commit = world.commit(&owner);
    commit.retries.push(finished(&parked));
    refused!(owner.send(commit).await, Error::InputGone, "a retry before its time");
    let mut commit = world.commit(&owner);
    commit.timers.push(TimerDue {
        uid: timer.uid,
        key: timer.key,
        name: timer.name,
        at_ms: later,
    });
    refused!(
        owner.send(commit.clone()).await,
        Error::InputGone,
        "a timer before its time"
    );
    world.harness.advance(501).await;
    commit.retries.push(finished(&parked));
    owner.must(commit).await
}

pub(super) async fn a_span_must_end_where_it_says(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    world.words(&spec, None, &["1", "2"]).await?;
    let mut owner = world.own(&spec, 0).await?;
    let fetched = owner.fetch(9).await?;
    for to in [
        Cursor { entry: 0, index: 0 },
        Cursor { entry: 0, index: 3 },
        Cursor { entry: 2, index: 0 },
        Cursor { entry: 1, index: 1 },
    ] {
        let mut commit = world.consuming(&owner, &fetched, 2);
        if let Some(span) = &mut commit.span {
            span.to = to;
        }
        refused!(
            owner.send(commit).await,
            Error::InputGone,
            format!("a span that ends at {to:?}")
        );
    }
    same!(owner.payloads().await?, ["1", "2"], "nothing was consumed");
    Ok(())
}

pub(super) async fn too_large_is_refused(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (mut owner, fetched) = busy(&world).await?;
    let mut commit = everything(&world, &owner, &fetched);
    let large = "x".repeat(COMMIT_BYTES_MAX / 4);
    for _ in 0..5 {
        commit
            .outputs
            .push(output(&world.spec("b", 1), world.message(None, &large)));
    }
    refused!(
        owner.send(commit).await,
        Error::TooLarge(_),
        "more than a commit may hold"
    );
    untouched(&world, &owner).await
}

pub(super) async fn a_fetch_proves_its_base(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let (owner, _) = busy(&world).await?;
    let mut want = owner.want(1);
    want.base = CommitId::NONE;
    refused!(
        owner.backend.fetch(&owner.lease, want).await,
        Error::Stale,
        "another base"
    );
    let mut want = owner.want(1);
    want.from = Cursor::default();
    refused!(
        owner.backend.fetch(&owner.lease, want).await,
        Error::Stale,
        "another cursor"
    );
    Ok(())
}
