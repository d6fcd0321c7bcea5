//! Lost answers, lost connections, a server that dies in the middle of work.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use skep_model::env::{Entropy as _, OsEntropy};
use skep_model::id::{CommitId, Token, Uid};
use skep_model::message::Message;
use skep_model::scope::SwarmId;
use skep_topic::conformance::actors::World;
use skep_topic::redis::{Redis, StoreClock};
use skep_topic::{
    Backend, Call, Commit, Committed, Error, Gate, Lease, Once, Output, Publish, Span, StatePut, TopicSpec, Want,
};

use super::proxy::Proxy;
use super::server::{ALWAYS, OnRedis, Server, open, soon};

fn world(on: OnRedis) -> World {
    World::new(Box::new(on))
}

fn one(world: &World, to: &Arc<TopicSpec>, word: &str, once: Once) -> Publish {
    Publish {
        swarm: world.swarm.clone(),
        calls: vec![Call {
            to: vec![(Arc::clone(to), vec![world.message(None, word)])],
            once,
        }],
        gate: Gate::Durable,
    }
}

#[tokio::test]
async fn a_lost_answer_is_an_unknown_outcome_and_a_repeat_is_done() {
    let on = OnRedis::new(None).await;
    let proxy = Proxy::to(on.server.port).await;
    let far = open(&proxy.url(), 77, &on.clock()).await;
    let world = world(on);
    let spec = world.spec("a", 1);
    far.publish(one(&world, &spec, "0", Once::No)).await.unwrap();
    let mut cut = 0;
    while cut < 3 {
        proxy.cut_next_reply();
        let before = proxy.cuts();
        let once = Once::Session {
            id: Uid([9; 16]),
            first: cut + 1,
            again_max: u64::MAX,
            expires_ms: u64::MAX / 4,
        };
        let publish = one(&world, &spec, &(cut + 1).to_string(), once);
        match far.publish(publish.clone()).await {
            Err(Error::Unknown(_)) => assert!(proxy.cuts() > before, "unknown without a cut"),
            // The cut met another connection of the node.
            Ok(_) | Err(Error::Unavailable(_)) => {}
            Err(other) => panic!("{other}"),
        }
        soon("a repeat gets through", async || {
            far.publish(publish.clone()).await.is_ok()
        })
        .await;
        proxy.pass();
        cut += 1;
    }
    let mut owner = world.own(&spec, 0).await.unwrap();
    assert_eq!(owner.payloads().await.unwrap(), ["0", "1", "2", "3"], "each once");
    // The same for commits: a lost answer, then the same commit again.
    let mut lost = 0;
    for _ in 0..4 {
        let fetched = owner.fetch(1).await.unwrap();
        let commit = Arc::new(world.consuming(&owner, &fetched, 1));
        proxy.cut_next_reply();
        let first = far.commit(&owner.lease, Arc::clone(&commit)).await;
        proxy.pass();
        match first {
            Err(Error::Unknown(_)) => {
                lost += 1;
                let mut answer = None;
                soon("a repeat gets through", async || {
                    answer = far.commit(&owner.lease, Arc::clone(&commit)).await.ok();
                    answer.is_some()
                })
                .await;
                assert_eq!(answer, Some(Committed::Done), "applied before its answer was lost");
            }
            Ok(Committed::Ok) => {}
            other => panic!("{other:?}"),
        }
        owner.claim.seq += 1;
        owner.claim.last = commit.id;
        owner.claim.cursor = commit.span.unwrap().to;
        soon("connected again", async || far.status(&world.swarm).await.is_ok()).await;
    }
    assert!(lost > 0, "no answer was lost");
    assert!(owner.payloads().await.unwrap().is_empty());
}

#[tokio::test]
async fn without_a_connection_nothing_was_done() {
    let on = OnRedis::new(None).await;
    let proxy = Proxy::to(on.server.port).await;
    let far = open(&proxy.url(), 77, &on.clock()).await;
    let world = world(on);
    let spec = world.spec("a", 1);
    far.publish(one(&world, &spec, "1", Once::No)).await.unwrap();
    proxy.refuse();
    soon("the loss is noticed", async || {
        matches!(far.status(&world.swarm).await, Err(Error::Unavailable(_)))
    })
    .await;
    for _ in 0..5 {
        let refused = far.publish(one(&world, &spec, "2", Once::No)).await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
    proxy.pass();
    soon("connected again", async || {
        far.publish(one(&world, &spec, "3", Once::No)).await.is_ok()
    })
    .await;
    let owner = world.own(&spec, 0).await.unwrap();
    assert_eq!(owner.payloads().await.unwrap(), ["1", "3"]);
}

const PUBLISHERS: u64 = 3;

fn numbered(number: u64) -> Message {
    Message {
        uid: Uid(u128::from(number).to_be_bytes()),
        key: Some(format!("k{}", number % PUBLISHERS)),
        headers: Vec::new(),
        payload: Bytes::from(number.to_string()),
        accepted_ms: 0,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    }
}

/// Publishes number after number without a way to repeat one, and notes what is acknowledged and what is unknown.
async fn publisher(
    store: Arc<Redis>,
    spec: Arc<TopicSpec>,
    which: u64,
    stop: Arc<AtomicBool>,
    notes: Arc<Mutex<(Vec<u64>, Vec<u64>)>>,
) {
    let mut i = 1;
    while !stop.load(Ordering::SeqCst) {
        let number = i * PUBLISHERS + which;
        let publish = Publish {
            swarm: spec.id.swarm().clone(),
            calls: vec![Call {
                to: vec![(Arc::clone(&spec), vec![numbered(number)])],
                once: Once::No,
            }],
            gate: Gate::Durable,
        };
        match store.publish(publish).await {
            Ok(results) => {
                assert!(results[0].is_ok(), "{results:?}");
                notes.lock().unwrap().0.push(number);
                i += 1;
            }
            Err(Error::Unknown(_)) => {
                notes.lock().unwrap().1.push(number);
                i += 1;
            }
            // Certainly not done: the same again.
            Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(other) => panic!("{other}"),
        }
    }
}

async fn claim(store: &Redis, spec: &TopicSpec, lease: &mut Lease) -> skep_topic::Claim {
    loop {
        lease.token = Token(OsEntropy.bits128());
        match store.claim(spec, lease.partition.index(), lease.token, 300).await {
            Ok(Ok(claim)) => return claim,
            Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn count(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().unwrap())
}

/// Moves everything from `a` to `sink`, counting each key in its state; begins anew with a claim whenever the store says so.
async fn owner(store: Arc<Redis>, spec: Arc<TopicSpec>, sink: Arc<TopicSpec>, stop: Arc<AtomicBool>) {
    let mut lease = Lease {
        partition: spec.id.partition(0),
        token: Token(OsEntropy.bits128()),
    };
    let mut claimed = claim(&store, &spec, &mut lease).await;
    loop {
        let want = Want {
            from: claimed.cursor,
            base: claimed.last,
            messages: 16,
            bytes: 1 << 20,
            state: true,
            state_bytes: 1 << 20,
            timers_max: u64::MAX,
        };
        let fetched = match store.fetch(&lease, want).await {
            Ok(fetched) => fetched,
            Err(Error::Unavailable(_)) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            Err(Error::Fenced | Error::Stale) => {
                claimed = claim(&store, &spec, &mut lease).await;
                continue;
            }
            Err(other) => panic!("{other}"),
        };
        let Some(last) = fetched.messages.last() else {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let bell = store.bell(&lease.partition);
            let _ = tokio::time::timeout(Duration::from_millis(20), bell.notified()).await;
            continue;
        };
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for unread in &fetched.messages {
            let key = unread.message.key.clone().unwrap();
            let stored = fetched.state[&key].get("n").map_or(0, |v| count(v));
            *counts.entry(key).or_insert(stored) += 1;
        }
        let id = CommitId(OsEntropy.bits128());
        let mut commit = Commit::empty(Arc::clone(&spec), id, claimed.seq, claimed.last);
        let span = Span {
            from: claimed.cursor,
            to: last.after,
            last_entry: last.entry,
            last_entry_uid: last.entry_uid,
        };
        commit.span = Some(span);
        commit.state = counts
            .into_iter()
            .map(|(key, n)| StatePut {
                key,
                name: "n".to_owned(),
                value: Some(Bytes::copy_from_slice(&n.to_le_bytes())),
            })
            .collect();
        commit.outputs = fetched
            .messages
            .iter()
            .map(|u| Output {
                to: Arc::clone(&sink),
                message: u.message.clone(),
            })
            .collect();
        let commit = Arc::new(commit);
        loop {
            match store.commit(&lease, Arc::clone(&commit)).await {
                Ok(_) => {
                    claimed.seq += 1;
                    claimed.last = id;
                    claimed.cursor = span.to;
                    break;
                }
                Err(Error::Unknown(_) | Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(Error::Fenced | Error::Stale | Error::InputGone) => {
                    claimed = claim(&store, &spec, &mut lease).await;
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

/// All that is in a partition of a store at rest.
async fn all_of(store: &Redis, spec: &TopicSpec) -> Vec<u64> {
    let mut lease = Lease {
        partition: spec.id.partition(0),
        token: Token(OsEntropy.bits128()),
    };
    let claimed = claim(store, spec, &mut lease).await;
    let want = Want {
        from: claimed.cursor,
        base: claimed.last,
        messages: u32::MAX,
        bytes: u64::MAX,
        state: false,
        state_bytes: 0,
        timers_max: u64::MAX,
    };
    let fetched = store.fetch(&lease, want).await.unwrap();
    let number = |m: &Message| std::str::from_utf8(&m.payload).unwrap().parse().unwrap();
    fetched.messages.iter().map(|u| number(&u.message)).collect()
}

/// Publishers and owners at work in the middle of `trouble`, which is told of the life that it meets: what is acknowledged is applied,
/// once, in the order of its key.
pub async fn all_is_applied_once(store: Arc<Redis>, trouble: impl AsyncFnOnce(&SwarmId)) {
    let shape = World::new(Box::new(crate::harness::OnMemory::new(1)));
    let bounded = |name| shape.bounded(name, 1, 1 << 30, 1 << 30);
    let large = |spec: Arc<TopicSpec>| {
        let mut spec = (*spec).clone();
        spec.inbox.bytes = 1 << 40;
        Arc::new(spec)
    };
    let (spec, sink) = (large(bounded("a")), large(bounded("sink")));
    let stop = Arc::new(AtomicBool::new(false));
    let notes = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|which| {
            let (store, spec, stop, notes) = (
                Arc::clone(&store),
                Arc::clone(&spec),
                Arc::clone(&stop),
                Arc::clone(&notes),
            );
            tokio::spawn(publisher(store, spec, which, stop, notes))
        })
        .collect();
    let drained = Arc::new(AtomicBool::new(false));
    // Two owners: one works, the other waits for its lease to run out.
    let owners: Vec<_> = (0..2)
        .map(|_| {
            let (store, spec, sink) = (Arc::clone(&store), Arc::clone(&spec), Arc::clone(&sink));
            tokio::spawn(owner(store, spec, sink, Arc::clone(&drained)))
        })
        .collect();
    soon("work is under way", async || notes.lock().unwrap().0.len() > 50).await;
    trouble(spec.id.swarm()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::SeqCst);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    // How much there is depends on how long the trouble took: it has to get less, however slowly.
    let mut least = u64::MAX;
    while least > 0 {
        soon("less is left", async || {
            let status = store.status(spec.id.swarm()).await.unwrap_or_default();
            let left = status.iter().find(|s| s.topic == spec.id).map(|s| s.unread);
            let less = left.is_some_and(|left| left < least);
            least = left.filter(|_| less).unwrap_or(least);
            less
        })
        .await;
    }
    drained.store(true, Ordering::SeqCst);
    for owner in owners {
        owner.abort();
    }
    let applied = all_of(&store, &sink).await;
    let distinct: HashSet<u64> = applied.iter().copied().collect();
    assert_eq!(distinct.len(), applied.len(), "something was applied twice");
    let (acked, unknown) = notes.lock().unwrap().clone();
    for number in &acked {
        assert!(distinct.contains(number), "{number} was acknowledged and is lost");
    }
    let known: HashSet<u64> = acked.iter().chain(&unknown).copied().collect();
    assert!(distinct.is_subset(&known), "something refused was applied");
    for which in 0..PUBLISHERS {
        let of_key: Vec<u64> = applied.iter().copied().filter(|n| n % PUBLISHERS == which).collect();
        assert!(of_key.is_sorted(), "the order of k{which} is broken");
        let mut state = None;
        // After a failover whoever looks first is told of it.
        soon("it is read", async || {
            state = store.state(&spec.id, &format!("k{which}")).await.ok();
            state.is_some()
        })
        .await;
        let state = state.unwrap();
        assert_eq!(
            state.get("n").map_or(0, |v| count(v)),
            of_key.len() as u64,
            "the count of k{which}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_in_the_middle_of_work_loses_nothing_acknowledged() {
    let mut server = Server::start(ALWAYS);
    let store = open(&server.url(), 1, &StoreClock::Server).await;
    all_is_applied_once(store, async |_| {
        for round in 0..6u64 {
            tokio::time::sleep(Duration::from_millis(120 + round * 37)).await;
            server.kill();
            server.run();
        }
    })
    .await;
}
