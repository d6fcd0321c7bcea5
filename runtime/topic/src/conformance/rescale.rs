//! Another number of partitions while messages flow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_model::id::{CommitId, Token};
use skep_model::limits::HAND_OVER_MAX;

use super::actors::{Owner, Reason, World, finished, put, text};
use super::{Harness, Stop, Verdict, holds, refused, same};
use crate::{Call, Claim, Error, Fetched, Lease, Once, Rescaled, TopicSpec, partition_of_group};

/// The owners of a topic, one a partition, who count each key in its state and keep what they saw.
struct Owners {
    spec: Arc<TopicSpec>,
    owners: BTreeMap<u16, Owner>,
    /// What was given of each key, in order.
    seen: BTreeMap<String, Vec<String>>,
}

fn with(spec: &Arc<TopicSpec>, partitions: u16) -> Arc<TopicSpec> {
    let mut spec = TopicSpec::clone(spec);
    spec.partitions = partitions;
    Arc::new(spec)
}

impl Owners {
    fn new(spec: &Arc<TopicSpec>) -> Self {
        Self {
            spec: Arc::clone(spec),
            owners: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Claims a partition that has no owner here.
    async fn own(&mut self, world: &World, index: u16) -> Result<bool, String> {
        if self.owners.contains_key(&index) {
            return Ok(true);
        }
        let lease = Lease {
            partition: self.spec.id.partition(index),
            token: Token::random(&world.entropy),
        };
        let claim = world.backend().claim(&self.spec, index, lease.token, 1_000_000).await;
        let claim: Claim = match claim {
            Ok(claim) => claim.why()?,
            Err(Error::Gone) => return Ok(false),
            Err(e) => return Err(format!("claim: {e}")),
        };
        let owner = Owner {
            backend: world.backend(),
            spec: Arc::clone(&self.spec),
            lease,
            claim,
        };
        self.owners.insert(index, owner);
        Ok(true)
    }

    /// One batch or step of a partition. Returns whether there was anything to do.
    async fn step(&mut self, world: &World, index: u16) -> Result<bool, String> {
        if !self.own(world, index).await? {
            return Ok(false);
        }
        let owner = self.owners.get_mut(&index).ok_or("just claimed")?;
        let fetched = match owner.backend.fetch(&owner.lease, owner.want(3)).await {
            Ok(fetched) => fetched,
            // It drops what it knows, and looks again.
            Err(e @ (Error::Gone | Error::Stale)) => {
                owner.backend.release(&owner.lease).await.why()?;
                self.owners.remove(&index);
                return Ok(e == Error::Stale);
            }
            Err(e) => return Err(format!("fetch: {e}")),
        };
        if fetched.at_seal {
            let id = CommitId::random(&world.entropy);
            owner
                .backend
                .hand_over(&owner.lease, owner.claim.last, id)
                .await
                .why()?;
            owner.claim.last = id;
            return Ok(true);
        }
        if fetched.messages.is_empty() && fetched.retries.is_empty() && fetched.timers.is_empty() {
            return Ok(false);
        }
        let mut commit = world.consuming(owner, &fetched, fetched.messages.len());
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let mut saw = Vec::new();
        for parked in &fetched.retries {
            saw.push((parked.work.key().unwrap_or("-").to_owned(), parked.cause.clone()));
            commit.retries.push(finished(parked));
        }
        for timer in &fetched.timers {
            saw.push((timer.key.clone(), format!("timer {}", timer.name)));
        }
        commit.timers.clone_from(&fetched.timers);
        for unread in &fetched.messages {
            let key = unread.message.key.clone().unwrap_or("-".to_owned());
            saw.push((key, text(&unread.message)));
        }
        for (key, what) in saw {
            if key != "-" {
                let count = counts.entry(key.clone()).or_insert_with(|| count_of(&fetched, &key));
                *count += 1;
            }
            self.seen.entry(key).or_default().push(what);
        }
        for (key, count) in counts {
            commit.state.push(put(&key, "n", &count.to_string()));
        }
        owner.must(commit).await?;
        Ok(true)
    }

    /// Until nobody has anything to do.
    async fn work(&mut self, world: &World) -> Verdict {
        for _ in 0..10_000 {
            let layout = world.backend().layout(&self.spec.id).await.why()?;
            let owners = layout.ok_or("it was used")?.owners;
            let mut worked = false;
            for index in 0..owners {
                worked |= self.step(world, index).await?;
            }
            if !worked {
                return Ok(());
            }
        }
        Err("it does not end".to_owned())
    }

    /// Each key saw all of its messages once, in order, and its state counts them.
    async fn judge(&self, world: &World, keys: &BTreeMap<String, u64>) -> Verdict {
        for (key, sent) in keys {
            let expected: Vec<String> = (0..*sent).map(|n| n.to_string()).collect();
            same!(self.seen.get(key), Some(&expected), key);
            let state = world.backend().state(&self.spec.id, key).await.why()?;
            let counted = state.get("n").map(|n| String::from_utf8_lossy(n).into_owned());
            same!(counted, Some(sent.to_string()), key);
        }
        let status = world.backend().status(&world.swarm).await.why()?;
        same!(
            (status[0].unread, status[0].parked, status[0].timers),
            (0, 0, 0),
            "counts"
        );
        Ok(())
    }
}

fn count_of(fetched: &Fetched, key: &str) -> u64 {
    let value = fetched.state.get(key).and_then(|values| values.get("n"));
    value.and_then(|n| String::from_utf8_lossy(n).parse().ok()).unwrap_or(0)
}

/// Publishes the next of each of forty keys.
async fn more(world: &World, spec: &Arc<TopicSpec>, sent: &mut BTreeMap<String, u64>) -> Verdict {
    let mut messages = Vec::new();
    for key in 0..40 {
        let key = format!("k{key}");
        let n = sent.entry(key.clone()).or_default();
        messages.push(world.message(Some(&key), &n.to_string()));
        *n += 1;
    }
    world.put(spec, messages).await
}

async fn begin(world: &World, spec: &Arc<TopicSpec>, partitions: u16) -> Result<Rescaled, String> {
    let id = CommitId::random(&world.entropy);
    world.backend().rescale(&with(spec, partitions), id).await.why()
}

/// 4, 16, 8 and back, under writers that believe the one and the other.
pub(super) async fn keys_keep_their_order_while_messages_flow(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let four = world.spec("a", 4);
    let mut sent = BTreeMap::new();
    let mut owners = Owners::new(&four);
    for _ in 0..3 {
        more(&world, &four, &mut sent).await?;
    }
    for index in 0..4 {
        owners.step(&world, index).await?;
    }
    for (n, partitions) in [16, 8, 4, 5, 4].into_iter().enumerate() {
        same!(begin(&world, &four, partitions).await?, Rescaled::Begun, "it begins");
        more(&world, &four, &mut sent).await?;
        more(&world, &with(&four, partitions), &mut sent).await?;
        // Some are faster than others.
        for index in [15, 3, 2, 3, 7] {
            owners.step(&world, index).await?;
        }
        more(&world, &with(&four, 16), &mut sent).await?;
        if n % 2 == 0 {
            owners.work(&world).await?;
            owners.judge(&world, &sent).await?;
        } else {
            while world
                .backend()
                .layout(&four.id)
                .await
                .why()?
                .is_some_and(|l| l.rescaling)
            {
                for index in 0..16 {
                    owners.step(&world, index).await?;
                }
            }
        }
    }
    owners.work(&world).await?;
    owners.judge(&world, &sent).await
}

/// While a seal is not passed, nobody gets what lies behind one.
pub(super) async fn nothing_behind_a_seal_is_given_early(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let two = world.spec("a", 2);
    let key = |partition: u16| -> Result<String, String> {
        let mut keys = (0..1_000).map(|n| format!("k{n}"));
        let found = keys.find(|key| {
            two.partition_of_key(key) == partition && with(&two, 8).partition_of_key(key) == 4 * partition + 3
        });
        found.ok_or("a key".to_owned())
    };
    let (low, high) = (key(0)?, key(1)?);
    world.words(&two, Some(&low), &["0"]).await?;
    world.words(&two, Some(&high), &["0"]).await?;
    let before = world.own(&two, 0).await?;
    same!(before.payloads().await?, ["0"], "as ever");
    same!(begin(&world, &two, 8).await?, Rescaled::Begun, "it begins");
    refused!(
        before.backend.fetch(&before.lease, before.want(1)).await,
        Error::Stale,
        "owners drop what they know"
    );
    before.backend.release(&before.lease).await.why()?;
    for (word, spec) in [("1", &two), ("2", &with(&two, 8))] {
        world.words(spec, Some(&low), &[word]).await?;
        world.words(spec, Some(&high), &[word]).await?;
    }
    same!(
        world.backend().status(&world.swarm).await.why()?[0].unread,
        6,
        "all counted"
    );
    let eight = with(&two, 8);
    let new = world.own(&eight, 3).await?;
    same!(new.payloads().await?, [""; 0], "not before the seal is passed");
    let mut first = world.own(&two, 0).await?;
    let fetched = first.fetch(9).await?;
    same!(fetched.messages.len(), 1, "up to the seal");
    holds!(!fetched.at_seal, "not yet");
    refused!(
        first
            .backend
            .hand_over(&first.lease, first.claim.last, CommitId::random(&world.entropy))
            .await,
        Error::Stale,
        "it is not at its seal"
    );
    let commit = world.consuming(&first, &fetched, 1);
    first.must(commit).await?;
    let at = first.fetch(9).await?;
    holds!(at.at_seal && at.messages.is_empty(), "at the seal");
    let id = CommitId::random(&world.entropy);
    first
        .backend
        .hand_over(&first.lease, first.claim.last, id)
        .await
        .why()?;
    first
        .backend
        .hand_over(&first.lease, first.claim.last, id)
        .await
        .why()?;
    first.claim.last = id;
    same!(first.payloads().await?, [""; 0], "nor do those who passed get more");
    same!(new.payloads().await?, [""; 0], "another seal is not passed");
    let mut other = world.own(&two, 1).await?;
    let bell = world.backend().bell(&eight.id.partition(7));
    let fetched = other.fetch(9).await?;
    same!(fetched.messages.len(), 1, "only what came before");
    let commit = world.consuming(&other, &fetched, 1);
    other.must(commit).await?;
    let _ = tokio::time::timeout(std::time::Duration::from_millis(1), bell.notified()).await;
    let id = CommitId::random(&world.entropy);
    other
        .backend
        .hand_over(&other.lease, other.claim.last, id)
        .await
        .why()?;
    other.claim.last = id;
    let rings = tokio::time::timeout(std::time::Duration::from_secs(5), bell.notified()).await;
    holds!(rings.is_ok(), "the last one rings for all");
    same!(other.payloads().await?, [""; 0], "nothing of its own");
    same!(new.payloads().await?, ["1", "2"], "in order");
    let high = world.own(&eight, 7).await?;
    same!(high.payloads().await?, ["1", "2"], "in order");
    Ok(())
}

pub(super) async fn a_rescale_is_told(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let four = world.spec("a", 4);
    let layout = async |world: &World| world.backend().layout(&four.id).await.why();
    world.words(&world.spec("b", 1), None, &["1"]).await?;
    same!(layout(&world).await?, None, "never used");
    same!(begin(&world, &four, 4).await?, Rescaled::Already, "its first use");
    same!(begin(&world, &four, 2).await?, Rescaled::Begun, "empty: at once");
    let now = layout(&world).await?.ok_or("it is there")?;
    same!(
        (now.partitions, now.generation, now.rescaling, now.owners),
        (2, 1, false, 2),
        "two"
    );
    let gone = world.try_own(&four, 3, 1).await;
    holds!(gone.is_err_and(|e| e.contains("Gone")), "there is no such partition");
    world.words(&four, None, &["1"]).await?;
    same!(begin(&world, &four, 6).await?, Rescaled::Begun, "six");
    world.backend().flushed().await.why()?;
    for _ in 0..2 {
        same!(begin(&world, &four, 6).await?, Rescaled::Busy, "one at a time");
        same!(begin(&world, &four, 3).await?, Rescaled::Busy, "one at a time");
        let now = layout(&world).await?.ok_or("it is there")?;
        same!(
            (now.partitions, now.generation, now.rescaling, now.owners),
            (6, 2, true, 6),
            "six"
        );
        world.harness.reopen(Stop::Kill).await;
    }
    let mut owners = Owners::new(&four);
    owners.work(&world).await?;
    same!(begin(&world, &four, 6).await?, Rescaled::Already, "it is done");
    // An owner of a partition that is no more learns it.
    owners.own(&world, 5).await?;
    same!(begin(&world, &four, 1).await?, Rescaled::Begun, "one");
    let last = &owners.owners[&5];
    holds!(last.fetch(1).await.is_err(), "it ends");
    drop(owners);
    world.backend().remove_swarm(&world.swarm, false).await.why()?;
    refused!(world.backend().layout(&four.id).await, Error::Gone, "gone");
    refused!(
        world.backend().rescale(&four, CommitId([1; 16])).await,
        Error::Gone,
        "gone"
    );
    Ok(())
}

/// A gateway hears of another number while calls wait: those that came before were made for the former one, and all go in one publish.
pub(super) async fn calls_made_for_different_numbers_go_by_the_store_s(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let four = world.spec("a", 4);
    let keys: Vec<String> = (0..24).map(|n| format!("k{n}")).collect();
    for key in &keys {
        world.words(&four, Some(key), &["0"]).await?;
    }
    let mut calls = Vec::new();
    for (word, partitions) in [("1", 4), ("2", 16), ("3", 2), ("4", 4)] {
        let messages = keys.iter().map(|key| world.message(Some(key), word)).collect();
        calls.push(Call {
            to: vec![(with(&four, partitions), messages)],
            once: Once::No,
        });
    }
    for result in world.calls(calls).await? {
        result.why()?;
    }
    let layout = world.backend().layout(&four.id).await.why()?.ok_or("it is there")?;
    same!(layout.partitions, 4, "nobody rescaled it");
    let mut owners = Owners::new(&four);
    owners.work(&world).await?;
    for key in &keys {
        let seen: Vec<&str> = owners.seen.get(key).into_iter().flatten().map(String::as_str).collect();
        same!(seen, ["0", "1", "2", "3", "4"], "in order");
        let own = owners.owners.get(&four.partition_of_key(key));
        holds!(own.is_some(), "by the owner of its partition");
    }
    Ok(())
}

pub(super) async fn timers_go_with_their_keys(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let one = world.spec("a", 1);
    let mut owner = world.own(&one, 0).await?;
    let mut commit = world.commit(&owner);
    let keys: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
    for key in &keys {
        commit.set_timers.push(world.timer(key, "t", 0));
    }
    owner.must(commit).await?;
    owner.backend.release(&owner.lease).await.why()?;
    same!(begin(&world, &one, 4).await?, Rescaled::Begun, "it begins");
    let mut owners = Owners::new(&with(&one, 4));
    owners.work(&world).await?;
    for key in &keys {
        same!(
            owners.seen.get(key).map(Vec::as_slice),
            Some(&["timer t".to_owned()][..]),
            key
        );
    }
    let status = world.backend().status(&world.swarm).await.why()?;
    same!(status[0].timers, 0, "counts");
    Ok(())
}

/// Parked entries and timers of all kinds, more than one step takes, with kills between the steps.
pub(super) async fn what_waits_goes_to_its_new_partition(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let two = world.spec("a", 2);
    let mut owner = world.own(&two, 0).await?;
    let now = owner.fetch(1).await?.now_ms;
    let keys: Vec<String> = (0..1_200).map(|n| format!("k{n}")).collect();
    let keys: Vec<String> = keys.into_iter().filter(|key| two.partition_of_key(key) == 0).collect();
    holds!(keys.len() > HAND_OVER_MAX * 3 / 2, "more than one step");
    let mut commit = world.commit(&owner);
    let mut loose = 0;
    for key in &keys {
        commit.set_timers.push(world.timer(key, "t", now + 5_000));
        for n in 0..2 {
            // The first waits for its time, the second behind it.
            let mut parked = world.parked(&world.message(Some(key), ""), 1 - n, now + 4_000);
            parked.cause = n.to_string();
            commit.park.push(parked);
        }
    }
    for _ in 0..3 {
        let mut parked = world.parked(&world.message(None, ""), 1, now + 4_000);
        parked.cause = "loose".to_owned();
        commit.park.push(parked);
        loose += 1;
    }
    owner.must(commit).await?;
    world.backend().flushed().await.why()?;
    let counts = |status: &[crate::TopicStatus]| (status[0].parked, status[0].timers);
    let all = (2 * keys.len() as u64 + loose, keys.len() as u64);
    same!(
        counts(&world.backend().status(&world.swarm).await.why()?),
        all,
        "before"
    );
    drop(owner);
    same!(begin(&world, &two, 7).await?, Rescaled::Begun, "seven");
    let mut steps = 0;
    while world
        .backend()
        .layout(&two.id)
        .await
        .why()?
        .is_some_and(|l| l.rescaling)
    {
        world.let_leases_end().await;
        let mut owner = world.own(&two, 0).await?;
        let fetched = owner.fetch(5).await?;
        holds!(fetched.at_seal && fetched.retries.is_empty(), "at its seal");
        let id = CommitId::random(&world.entropy);
        owner
            .backend
            .hand_over(&owner.lease, owner.claim.last, id)
            .await
            .why()?;
        owner.claim.last = id;
        steps += 1;
        holds!(steps < 50, "it ends");
        same!(
            counts(&world.backend().status(&world.swarm).await.why()?),
            all,
            "meanwhile"
        );
        world.backend().flushed().await.why()?;
        drop(owner);
        world.harness.reopen(Stop::Kill).await;
        same!(
            counts(&world.backend().status(&world.swarm).await.why()?),
            all,
            "after a kill"
        );
    }
    holds!(steps > 1, "in steps");
    world.let_leases_end().await;
    world.harness.advance(6_000).await;
    let seven = with(&two, 7);
    let mut owners = Owners::new(&seven);
    let mut where_seen = BTreeSet::new();
    for index in 0..7 {
        let before: BTreeSet<String> = owners.seen.keys().cloned().collect();
        while owners.step(&world, index).await? {}
        for key in owners.seen.keys().filter(|key| !before.contains(*key) && *key != "-") {
            same!(seven.partition_of_key(key), index, "who owns it");
            where_seen.insert(index);
        }
    }
    same!(
        where_seen.len(),
        4,
        "half of the key groups, in more than half of seven"
    );
    for key in &keys {
        let mut seen = owners.seen.get(key).cloned().unwrap_or_default();
        seen.sort();
        same!(seen, ["0", "1", "timer t"], "each once");
        let order = &owners.seen[key];
        holds!(
            order.iter().position(|what| what == "0") < order.iter().position(|what| what == "1"),
            "in the order of its lane"
        );
    }
    same!(owners.seen["-"].len() as u64, loose, "without key");
    same!(
        counts(&world.backend().status(&world.swarm).await.why()?),
        (0, 0),
        "afterwards"
    );
    same!(partition_of_group(255, 7), 6, "the last group");
    Ok(())
}

/// A life that was copied in the middle of a rescale brings it to its end.
pub(super) async fn a_copy_goes_on_with_it(harness: Box<dyn Harness>) -> Verdict {
    let mut world = World::new(harness);
    let four = world.spec("a", 4);
    let mut sent = BTreeMap::new();
    let mut owners = Owners::new(&four);
    for _ in 0..3 {
        more(&world, &four, &mut sent).await?;
    }
    for index in 0..2 {
        owners.step(&world, index).await?;
    }
    same!(begin(&world, &four, 10).await?, Rescaled::Begun, "it begins");
    for _ in 0..2 {
        more(&world, &with(&four, 10), &mut sent).await?;
    }
    for index in [1, 0, 1, 2] {
        owners.step(&world, index).await?;
    }
    let taken = super::backups::pieces(&*world.backend(), &world.swarm).await?;
    let scope = skep_model::scope::Scope::of(skep_model::name::TenantId::default_tenant());
    world.swarm = scope.swarm(&"suite".parse().why()?, skep_model::id::Incarnation([8; 16]));
    let backend = world.backend();
    holds!(
        backend
            .import(&world.swarm, super::backups::stream(taken))
            .await
            .why()?,
        "there is none"
    );
    let mut copied = Owners::new(&world.spec("a", 10));
    copied.seen = owners.seen;
    let layout = backend.layout(&copied.spec.id).await.why()?.ok_or("it is there")?;
    holds!(layout.rescaling && layout.partitions == 10, format!("{layout:?}"));
    copied.work(&world).await?;
    copied.judge(&world, &sent).await
}
