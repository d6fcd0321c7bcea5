//! Leases, the catalog, deletion, stops and starts.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use skep_model::id::NodeId;
use skep_model::limits::{LEASE_TTL_MS, REMOVED_STAGES_MAX};

use super::actors::{Reason, World, output, put, text};
use super::{Harness, Stop, Verdict, holds, refused, same};
use crate::{Error, Once, Refused, TimerSet};

pub(super) async fn a_lease_is_exclusive_and_ends_by_the_store_s_clock(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 2);
    let mut first = world.own(&spec, 0).await?;
    same!(first.claim.unclean, 0, "clean at first");
    match world.try_own(&spec, 0, 1_000).await? {
        Err(held) => holds!(held.ms_left > 0 && held.ms_left <= 1_000, "how long it is held"),
        Ok(_) => return Err("two owners".to_owned()),
    }
    world.own(&spec, 1).await?;
    world.harness.advance(800).await;
    first.backend.renew(&first.lease, 1_000).await.why()?;
    world.harness.advance(800).await;
    holds!(world.try_own(&spec, 0, 1).await?.is_err(), "a renewal prolongs");
    let commit = world.commit(&first);
    first.must(commit).await?;
    world.harness.advance(LEASE_TTL_MS - 500).await;
    holds!(world.try_own(&spec, 0, 1).await?.is_err(), "a commit prolongs");
    world.harness.advance(1_000).await;
    let second = world.own(&spec, 0).await?;
    same!(second.claim.unclean, 1, "the former lease ran out");
    same!(
        (second.claim.seq, second.claim.last),
        (first.claim.seq, first.claim.last),
        "where it stands"
    );
    refused!(
        first.backend.renew(&first.lease, 1_000).await,
        Error::Fenced,
        "the first is fenced"
    );
    world.let_leases_end().await;
    let mut third = world.own(&spec, 0).await?;
    same!(third.claim.unclean, 2, "twice");
    let commit = world.commit(&third);
    third.must(commit).await?;
    third.backend.release(&third.lease).await.why()?;
    same!(
        world.own(&spec, 0).await?.claim.unclean,
        0,
        "a commit and a release are clean"
    );
    Ok(())
}

pub(super) async fn release_is_clean(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let first = world.own(&spec, 0).await?;
    first.backend.release(&first.lease).await.why()?;
    let second = world.own(&spec, 0).await?;
    same!(second.claim.unclean, 0, "released");
    first.backend.release(&first.lease).await.why()?;
    second.fetch(1).await?;
    refused!(
        first.backend.fetch(&first.lease, first.want(1)).await,
        Error::Fenced,
        "given back"
    );
    // A claim that is sent twice is one claim.
    let again = second.backend.claim(&spec, 0, second.lease.token, 1_000).await.why()?;
    same!(again, Ok(second.claim.clone()), "the same claim again");
    Ok(())
}

pub(super) async fn a_catalog_write_names_what_it_was_decided_on(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let backend = world.backend();
    let value = || Bytes::from_static(b"v");
    let empty = backend.catalog_number().await.why()?;
    let put = backend.catalog_put_if("swarm/a", 0, Some(empty), value()).await.why()?;
    same!(put, Ok(1), "nothing came between");
    // Two decide on the same catalog, each about a record of its own.
    let seen = backend.catalog_number().await.why()?;
    holds!(seen != empty, "a write changes the number");
    let pulse = backend.beat(NodeId([1; 8]), Bytes::new(), 1_000).await.why()?;
    same!(pulse.catalog, seen, "a beat tells the same");
    let put = backend.catalog_put_if("swarm/b", 0, Some(seen), value()).await.why()?;
    same!(put, Ok(1), "the first");
    let put = backend.catalog_put_if("swarm/c", 0, Some(seen), value()).await.why()?;
    same!(put, Err(0), "the second");
    let gone = backend.catalog_delete_if("swarm/a", 1, Some(seen)).await.why()?;
    same!(gone, Err(1), "a deletion");
    same!(backend.catalog_list("").await.why()?.len(), 2, "neither did anything");
    let now = backend.catalog_number().await.why()?;
    let gone = backend.catalog_delete_if("swarm/a", 1, Some(now)).await.why()?;
    same!(gone, Ok(()), "decided anew");
    let put = backend.catalog_put_if("swarm/b", 1, Some(now), value()).await.why()?;
    same!(put, Err(1), "a deletion comes between as well");
    let put = backend.catalog_put_if("swarm/b", 1, None, value()).await.why()?;
    same!(put, Ok(2), "who decided by the record alone");
    Ok(())
}

pub(super) async fn the_catalog_compares_and_sets(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let backend = world.backend();
    let value = |s: &'static str| Bytes::from_static(s.as_bytes());
    same!(
        backend.catalog_put("swarm/a", 0, value("1")).await.why()?,
        Ok(1),
        "made"
    );
    same!(
        backend.catalog_put("swarm/a", 0, value("2")).await.why()?,
        Err(1),
        "exists"
    );
    same!(
        backend.catalog_put("swarm/a", 1, value("2")).await.why()?,
        Ok(2),
        "version 2"
    );
    same!(
        backend.catalog_put("swarm/b", 0, value("b")).await.why()?,
        Ok(1),
        "another"
    );
    same!(
        backend.catalog_put("swarm/é", 0, value("e")).await.why()?,
        Ok(1),
        "not ASCII"
    );
    same!(
        backend.catalog_put("swarn", 0, value("x")).await.why()?,
        Ok(1),
        "another prefix"
    );
    same!(
        backend.catalog_put("swarm/b", 7, value("b")).await.why()?,
        Err(1),
        "not the version"
    );
    same!(
        backend.catalog_delete("swarm/b", 2).await.why()?,
        Err(1),
        "not the version"
    );
    same!(backend.catalog_delete("swarm/b", 1).await.why()?, Ok(()), "deleted");
    same!(
        backend.catalog_put("swarm/b", 1, value("b")).await.why()?,
        Err(0),
        "gone"
    );
    drop(backend);
    for _ in 0..2 {
        let listed = world.backend().catalog_list("swarm/").await.why()?;
        let keys: Vec<_> = listed
            .iter()
            .map(|(k, r)| (k.as_str(), r.version, &r.value[..]))
            .collect();
        same!(
            keys,
            [("swarm/a", 2, &b"2"[..]), ("swarm/é", 1, &b"e"[..])],
            "by prefix"
        );
        same!(world.backend().catalog_list("").await.why()?.len(), 3, "all");
        world.harness.reopen(Stop::Kill).await;
    }
    Ok(())
}

pub(super) async fn a_removed_swarm_is_gone(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let spec = world.spec("a", 1);
    world.words(&spec, Some("k"), &["1", "2"]).await?;
    let mut owner = world.own(&spec, 0).await?;
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.state.push(put("k", "n", "v"));
    commit.park.push(world.parked(&fetched.messages[0].message, 1, 0));
    commit.set_timers.push(world.timer("k", "t", 0));
    owner.must(commit).await?;
    let backend = world.backend();
    same!(backend.lives().await.why()?, [world.swarm.clone()], "it lives");
    holds!(
        !backend.remove_swarm(&world.swarm, true).await.why()?,
        "it is not empty"
    );
    same!(backend.lives().await.why()?, [world.swarm.clone()], "it lives on");
    holds!(
        backend.remove_swarm(&world.swarm, false).await.why()?,
        "it goes all the same"
    );
    same!(backend.lives().await.why()?, [], "no rows are left");
    holds!(
        backend.remove_swarm(&world.swarm, true).await.why()?,
        "again is no error"
    );
    let next = world.commit(&owner);
    refused!(owner.send(next).await, Error::Gone, "a commit");
    refused!(backend.fetch(&owner.lease, owner.want(1)).await, Error::Gone, "a fetch");
    drop((backend, owner));
    for _ in 0..2 {
        let call = world.call(&spec, vec![world.message(None, "3")], Once::No).await?;
        same!(call, Err(Refused::Gone), "a publish");
        refused!(
            world.backend().state(&spec.id, "k").await,
            Error::Gone,
            "a look at state"
        );
        refused!(
            world.backend().status(&world.swarm).await,
            Error::Gone,
            "a look at status"
        );
        let claim = world.try_own(&spec, 0, 1).await;
        holds!(claim.is_err_and(|e| e.contains("Gone")), "a claim");
        world.harness.reopen(Stop::Kill).await;
    }
    Ok(())
}

pub(super) async fn a_removed_topic_begins_anew(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let (a, b) = (world.spec("a", 1), world.spec("b", 1));
    world.words(&a, Some("k"), &["1"]).await?;
    world.words(&b, Some("k"), &["1"]).await?;
    let mut owner = world.own(&a, 0).await?;
    let mut commit = world.commit(&owner);
    commit.state.push(put("k", "n", "v"));
    owner.must(commit).await?;
    holds!(!world.backend().remove_topic(&a).await.why()?, "something is unread");
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.set_timers.push(world.timer("k", "t", 0));
    owner.must(commit).await?;
    holds!(!world.backend().remove_topic(&a).await.why()?, "a timer is set");
    let mut commit = world.commit(&owner);
    commit.set_timers.push(TimerSet {
        at_ms: None,
        ..world.timer("k", "t", 0)
    });
    owner.must(commit).await?;
    holds!(world.backend().remove_topic(&a).await.why()?, "now it is empty");
    let next = world.commit(&owner);
    refused!(owner.send(next).await, Error::Fenced, "its owner");
    drop(owner);
    let a = world.reborn(&a, 2);
    for _ in 0..2 {
        holds!(world.backend().state(&a.id, "k").await.why()?.is_empty(), "its state");
        let owner = world.own(&a, 0).await?;
        same!(owner.payloads().await?, [""; 0], "its messages");
        owner.backend.release(&owner.lease).await.why()?;
        drop(owner);
        let other = world.own(&b, 0).await?;
        same!(other.payloads().await?, ["1"], "the neighbour's stay");
        other.backend.release(&other.lease).await.why()?;
        drop(other);
        world.harness.reopen(Stop::Kill).await;
    }
    Ok(())
}

/// One that has not heard of a removal may still write: nothing of it may be stranded, and the stage may come back.
pub(super) async fn a_removed_stage_takes_nothing_from_late_writers(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let (old, b) = (world.reborn(&world.spec("a", 1), 3), world.spec("b", 1));
    world.words(&old, None, &["1"]).await?;
    world.words(&b, None, &["x", "y"]).await?;
    let mut late = world.own(&old, 0).await?;
    let fetched = late.fetch(1).await?;
    let commit = world.consuming(&late, &fetched, 1);
    late.must(commit).await?;
    let once = Once::Key {
        subject: "door".parse().expect("a name"),
        key: "i".to_owned(),
        fingerprint: skep_model::id::Digest([1; 32]),
        expires_ms: u64::MAX / 4,
    };
    let known = world.call(&b, vec![world.message(None, "z")], once.clone()).await?;
    same!(known, Ok(crate::Accepted::Appended { skipped: 0 }), "a call with a key");
    holds!(world.backend().remove_topic(&old).await.why()?, "it is empty");
    holds!(world.backend().remove_topic(&old).await.why()?, "again is no error");
    let gone = Err(Refused::StageGone {
        stage: old.id.stage().clone(),
    });
    drop(late);
    for round in 0..2 {
        // A call is refused whole, its neighbour is not.
        let word = |text| vec![world.message(None, text)];
        let both = crate::Call {
            to: vec![
                (std::sync::Arc::clone(&b), word("whole")),
                (std::sync::Arc::clone(&old), word("whole")),
            ],
            once: Once::No,
        };
        let alone = crate::Call {
            to: vec![(std::sync::Arc::clone(&b), word("alone"))],
            once: Once::No,
        };
        let results = world.calls(vec![both, alone]).await?;
        same!(
            results,
            [gone.clone(), Ok(crate::Accepted::Appended { skipped: 0 })],
            "publishes"
        );
        let again = world.call(&old, vec![world.message(None, "z")], once.clone()).await?;
        holds!(
            matches!(again, Ok(crate::Accepted::Duplicate { .. })),
            "a repeat of what was done before"
        );
        let claim = world.try_own(&old, 0, 1).await;
        holds!(claim.is_err_and(|e| e.contains("Gone")), "a claim");
        let mut feeder = world.own(&b, 0).await?;
        let fetched = feeder.fetch(1).await?;
        let mut commit = world.consuming(&feeder, &fetched, 1);
        commit.outputs.push(output(&old, world.message(None, "late")));
        commit.state.push(put("k", "n", "v"));
        refused!(feeder.send(commit).await, Error::Stale, "an owner with an old plan");
        holds!(
            world.backend().state(&b.id, "k").await.why()?.is_empty(),
            "nothing of it"
        );
        let commit = world.consuming(&feeder, &fetched, 1);
        feeder.must(commit).await?;
        feeder.backend.release(&feeder.lease).await.why()?;
        let first = text(&fetched.messages[0].message);
        same!(first, ["x", "y"][round], "what it works on");
        world.backend().flushed().await.why()?;
        drop(feeder);
        world.harness.reopen(Stop::Kill).await;
    }
    // It comes back: the new birth is another, whatever those say who know of the old one only.
    let new = world.reborn(&old, 5);
    let mut owner = world.own(&new, 0).await?;
    let mut commit = world.commit(&owner);
    commit.state.push(put("k", "n", "new"));
    owner.must(commit).await?;
    same!(
        world.call(&old, vec![world.message(None, "late")], Once::No).await?,
        gone,
        "later"
    );
    holds!(
        world.backend().remove_topic(&old).await.why()?,
        "a removal that is late"
    );
    holds!(
        world.backend().remove_topic(&world.reborn(&old, 4)).await.why()?,
        "of a birth that never was used"
    );
    same!(
        world.backend().state(&new.id, "k").await.why()?.len(),
        1,
        "what is alive stays"
    );
    world.words(&new, None, &["new"]).await?;
    same!(owner.payloads().await?, ["new"], "it works as new");
    Ok(())
}

pub(super) async fn removed_stages_are_bounded(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = |n: u64| {
        let spec = world.spec(&format!("s{n}"), 1);
        world.reborn(&spec, n + 1)
    };
    for n in 0..=REMOVED_STAGES_MAX {
        holds!(
            world.backend().remove_topic(&spec(n)).await.why()?,
            "it never was in use"
        );
    }
    let message = || vec![world.message(None, "late")];
    let last = world.call(&spec(REMOVED_STAGES_MAX), message(), Once::No).await?;
    holds!(matches!(last, Err(Refused::StageGone { .. })), "the last is remembered");
    let second = world.call(&spec(1), message(), Once::No).await?;
    holds!(
        matches!(second, Err(Refused::StageGone { .. })),
        "the second is remembered"
    );
    let first = world.call(&spec(0), message(), Once::No).await?;
    holds!(first.is_ok(), "the first made room");
    Ok(())
}

pub(super) async fn attempt_marks_count_in_a_row_and_outlive_a_kill(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let spec = world.spec("a", 1);
    world.words(&spec, None, &["1", "2"]).await?;
    let owner = world.own(&spec, 0).await?;
    let fetched = owner.fetch(2).await?;
    let (first, second) = (fetched.messages[0].message.uid, fetched.messages[1].message.uid);
    let backend = world.backend();
    same!(backend.mark(&owner.lease, first).await.why()?, 1, "the first mark");
    same!(backend.mark(&owner.lease, first).await.why()?, 2, "the same again");
    same!(
        backend.mark(&owner.lease, second).await.why()?,
        1,
        "another begins anew"
    );
    same!(
        backend.mark(&owner.lease, first).await.why()?,
        1,
        "and so does the first"
    );
    let mut zombie = owner.lease.clone();
    zombie.token = skep_model::id::Token::random(&world.entropy);
    refused!(
        backend.mark(&zombie, first).await,
        Error::Fenced,
        "a mark under another token"
    );
    drop((backend, owner));
    world.harness.reopen(Stop::Kill).await;
    world.let_leases_end().await;
    let mut owner = world.own(&spec, 0).await?;
    same!(owner.claim.marked, Some((first, 1)), "the claim tells of it");
    same!(owner.backend.mark(&owner.lease, first).await.why()?, 2, "after a kill");
    let fetched = owner.fetch(1).await?;
    let commit = world.consuming(&owner, &fetched, 1);
    owner.must(commit).await?;
    drop(owner);
    world.let_leases_end().await;
    let owner = world.own(&spec, 0).await?;
    same!(owner.claim.marked, None, "a commit clears it");
    same!(
        owner.backend.mark(&owner.lease, first).await.why()?,
        1,
        "and the next begins anew"
    );
    Ok(())
}

pub(super) async fn a_clean_reopen_keeps_everything(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let (a, b) = (world.spec("a", 1), world.spec("b", 2));
    world.words(&a, Some("k"), &["1", "2", "3"]).await?;
    let mut owner = world.own(&a, 0).await?;
    let fetched = owner.fetch(2).await?;
    let mut commit = world.consuming(&owner, &fetched, 2);
    commit.outputs.push(output(&b, world.message(None, "x")));
    commit.park.push(world.parked(&fetched.messages[1].message, 1, 0));
    commit.set_timers.push(world.timer("o", "t", 0));
    commit
        .dead
        .push(world.letter(crate::Work::Message(fetched.messages[0].message.clone())));
    owner.must(commit).await?;
    let before = owner.fetch(9).await?;
    let status = world.backend().status(&world.swarm).await.why()?;
    let claim = owner.claim.clone();
    owner.backend.release(&owner.lease).await.why()?;
    drop(owner);
    if !world.harness.reopen(Stop::Clean).await {
        return Ok(());
    }
    let owner = world.own(&a, 0).await?;
    same!(owner.claim, claim, "the partition, clean");
    let mut after = owner.fetch(9).await?;
    after.now_ms = before.now_ms;
    same!(after, before, "what an owner sees");
    same!(world.backend().status(&world.swarm).await.why()?, status, "the counts");
    Ok(())
}

pub(super) async fn a_kill_keeps_what_was_promised_and_counts_unclean(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let spec = world.spec("a", 1);
    world.words(&spec, Some("k"), &["1", "2", "3"]).await?;
    let mut owner = world.own(&spec, 0).await?;
    let fetched = owner.fetch(2).await?;
    owner.must(world.consuming(&owner, &fetched, 2)).await?;
    owner.backend.flushed().await.why()?;
    let mut lease = owner.lease.clone();
    drop(owner);
    let empty = world.spec("empty", 1);
    drop(world.own(&empty, 0).await?);
    if !world.harness.reopen(Stop::Kill).await {
        return Ok(());
    }
    same!(
        world.own(&empty, 0).await?.claim.unclean,
        1,
        "what killed it may never have become durable"
    );
    let owner = world.own(&spec, 0).await?;
    same!(owner.claim.unclean, 1, "unclean");
    same!(owner.payloads().await?, ["3"], "what was flushed stays");
    refused!(
        world.backend().renew(&lease, 1_000).await,
        Error::Fenced,
        "the old lease"
    );
    lease.token = owner.lease.token;
    drop(owner);
    world.harness.reopen(Stop::Kill).await;
    same!(world.own(&spec, 0).await?.claim.unclean, 2, "twice");
    Ok(())
}

pub(super) async fn status_counts(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let spec = world.spec("a", 1);
    let messages = vec![world.message(Some("key"), "12345"), world.message(Some("key"), "1")];
    world.put(&spec, messages).await?;
    let status = |all: Vec<crate::TopicStatus>| all.into_iter().next().ok_or("no status".to_owned());
    let before = status(world.backend().status(&world.swarm).await.why()?)?;
    same!((before.unread, before.unread_bytes), (2, 12), "unread");
    let mut owner = world.own(&spec, 0).await?;
    let fetched = owner.fetch(1).await?;
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit
        .dead
        .push(world.letter(crate::Work::Message(fetched.messages[0].message.clone())));
    owner.must(commit).await?;
    let after = status(world.backend().status(&world.swarm).await.why()?)?;
    same!(
        (after.unread, after.unread_bytes, after.dead),
        (1, 4, 1),
        "one consumed, inside a frame"
    );
    holds!(after.dead_bytes > 0, "bytes of dead letters");
    Ok(())
}

/// Whoever looks for the end of streams goes by it: what moves from topic to topic is in one of them at each look.
pub(super) async fn a_look_is_of_one_moment(harness: Box<dyn Harness>) -> Verdict {
    const MANY: u32 = 60;
    let world = World::new(harness);
    let (a, b) = (world.spec("a", 1), world.spec("b", 2));
    let words: Vec<String> = (0..MANY).map(|n| n.to_string()).collect();
    let messages = words.iter().map(|word| world.message(Some("k"), word)).collect();
    world.put(&a, messages).await?;
    let mut owner = world.own(&a, 0).await?;
    let (backend, moved) = (world.backend(), AtomicBool::new(false));
    let moving = async {
        let result = async {
            for word in &words {
                let fetched = owner.fetch(1).await?;
                let mut commit = world.consuming(&owner, &fetched, 1);
                commit.outputs.push(output(&b, world.message(Some(word), word)));
                owner.must(commit).await?;
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        let result: Verdict = result.await;
        moved.store(true, Ordering::SeqCst);
        result
    };
    let looking = async {
        let mut looks = 0;
        loop {
            let last = moved.load(Ordering::SeqCst);
            let status = backend.durable_status(&world.swarm).await.why()?;
            same!(
                status.iter().map(|t| t.unread).sum::<u64>(),
                u64::from(MANY),
                "in one or the other"
            );
            looks += 1;
            tokio::task::yield_now().await;
            if last {
                return Ok::<_, String>((looks, status));
            }
        }
    };
    let (moved, looked) = futures::join!(moving, looking);
    moved?;
    let (looks, status) = looked?;
    holds!(looks > 1, "it was looked while they moved");
    same!(
        status,
        backend.status(&world.swarm).await.why()?,
        "at rest both are the same"
    );
    Ok(())
}
