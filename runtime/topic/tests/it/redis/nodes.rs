//! Several nodes on one server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep_model::id::{NodeId, RequestId};
use skep_model::message::{Reply, ReplyResult};
use skep_topic::conformance::actors::{Owner, World, output};
use skep_topic::redis::{Redis, RedisOptions};
use skep_topic::{Accepted, Backend as _, Call, Error, Gate, Once, Publish};

use super::server::{ALWAYS, OnRedis, Server, open, open_as, soon};

/// A world on the first node, and the second.
async fn two() -> (World, Arc<Redis>, Arc<Redis>) {
    let on = OnRedis::new(None).await;
    let first = Arc::clone(on.redis.as_ref().unwrap());
    let second = open(&on.server.url(), 200, &on.clock()).await;
    (World::new(Box::new(on)), first, second)
}

#[tokio::test]
async fn nodes_that_start_at_once_share_one_store() {
    for _ in 0..10 {
        let server = Server::start(ALWAYS);
        let opened = (1..=8).map(|node| open_as(RedisOptions::new(server.url(), [node; 8])));
        let opened: Vec<_> = futures::future::join_all(opened).await;
        let beats = opened.iter().zip(1u8..).map(async |(store, node)| {
            let store = store.as_ref().unwrap_or_else(|e| panic!("node {node}: {e}"));
            let me = NodeId([node; 8]);
            store.beat(me, Bytes::new(), 5_000).await.unwrap();
        });
        futures::future::join_all(beats).await;
    }
}

/// Many that are the first to use a life, at once: none of them may take it for one that was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_s_first_users_come_at_once() {
    let (world, first, second) = two().await;
    let spec = world.spec("a", 16);
    for n in 0..40u8 {
        let swarm = skep_model::scope::Scope::of(skep_model::name::TenantId::default_tenant())
            .swarm(&"many".parse().unwrap(), skep_model::id::Incarnation([n + 1; 16]));
        let spec = skep_topic::TopicSpec {
            id: swarm.topic(spec.id.stage()),
            ..(*spec).clone()
        };
        let claims = (0..16u16).map(|p| {
            let (spec, store) = (spec.clone(), Arc::clone(if p % 2 == 0 { &first } else { &second }));
            tokio::spawn(async move {
                let token = skep_model::id::Token([u8::try_from(p).unwrap() + 1; 16]);
                store.claim(&spec, p, token, 5_000).await
            })
        });
        for claim in futures::future::join_all(claims).await {
            claim.unwrap().unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_zombie_changes_nothing_when_it_wakes() {
    let (world, first, second) = two().await;
    let (spec, sink) = (world.spec("a", 1), world.spec("b", 1));
    world.words(&spec, Some("k"), &["1", "2"]).await.unwrap();
    let mut zombie = world.own(&spec, 0).await.unwrap();
    let fetched = zombie.fetch(1).await.unwrap();
    let mut late = world.consuming(&zombie, &fetched, 1);
    late.outputs.push(output(&sink, world.message(None, "late")));
    // It sleeps longer than its lease; the other node takes over and does the same work.
    world.let_leases_end().await;
    let token = skep_model::id::Token([7; 16]);
    let claim = second.claim(&spec, 0, token, 5_000).await.unwrap().unwrap();
    assert_eq!(claim.unclean, 1, "the former owner went away");
    let mut owner = Owner {
        backend: Arc::clone(&second) as Arc<dyn skep_topic::Backend>,
        spec: Arc::clone(&spec),
        lease: skep_topic::Lease {
            token,
            ..zombie.lease.clone()
        },
        claim,
    };
    let fetched = owner.fetch(1).await.unwrap();
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit.outputs.push(output(&sink, world.message(None, "once")));
    owner.must(commit).await.unwrap();
    assert_eq!(zombie.send(late).await, Err(Error::Fenced));
    assert_eq!(first.renew(&zombie.lease, 1_000).await, Err(Error::Fenced));
    let other = world.own(&sink, 0).await.unwrap();
    assert_eq!(other.payloads().await.unwrap(), ["once"]);
}

#[tokio::test]
async fn bells_reach_other_nodes() {
    let (world, _first, second) = two().await;
    let spec = world.bounded("a", 1, 10, 10);
    let partition = spec.id.partition(0);
    let (bell, room) = (second.bell(&partition), second.room(&spec.id));
    // What rings before a node listens is found by its look at the store, a second later at most.
    world.words(&spec, None, &["1"]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(4), bell.notified())
        .await
        .expect("the first ring");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = std::time::Instant::now();
    let mut fastest = Duration::MAX;
    for word in ["2", "3", "4", "5", "6", "7", "8"] {
        let ring = bell.notified();
        let from = std::time::Instant::now();
        world.words(&spec, None, &[word]).await.unwrap();
        tokio::time::timeout(Duration::from_secs(4), ring)
            .await
            .expect("a later ring");
        fastest = fastest.min(from.elapsed());
    }
    assert!(
        fastest < Duration::from_millis(500),
        "only the look rings: {:?}",
        began.elapsed()
    );
    // Room, for who was refused there.
    let full = Publish {
        swarm: world.swarm.clone(),
        calls: vec![Call {
            to: vec![(Arc::clone(&spec), vec![world.message(None, "9")])],
            once: Once::No,
        }],
        gate: Gate::Durable,
    };
    let ring = room.notified();
    assert!(second.publish(full).await.unwrap()[0].is_err());
    let mut owner = world.own(&spec, 0).await.unwrap();
    let fetched = owner.fetch(8).await.unwrap();
    owner.must(world.consuming(&owner, &fetched, 8)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(4), ring)
        .await
        .expect("room is told");
}

#[tokio::test]
async fn nodes_see_each_other_and_hear_of_the_catalog() {
    let (_world, first, second) = two().await;
    let (a, b) = (NodeId([1; 8]), NodeId([2; 8]));
    let before = first.beat(a, Bytes::from_static(b"a"), 60_000).await.unwrap();
    let pulse = second.beat(b, Bytes::from_static(b"b"), 60_000).await.unwrap();
    let seen: Vec<_> = pulse.nodes.iter().map(|n| (n.node, &n.record[..])).collect();
    assert_eq!(seen, [(a, &b"a"[..]), (b, &b"b"[..])]);
    assert_eq!(pulse.catalog, before.catalog);
    // The listener may not be subscribed yet: then it rings when it is.
    let bell = second.catalog_bell();
    tokio::time::timeout(Duration::from_secs(4), bell.notified())
        .await
        .expect("it listens");
    let ring = bell.notified();
    first
        .catalog_put("swarm/a", 0, Bytes::from_static(b"1"))
        .await
        .unwrap()
        .unwrap();
    tokio::time::timeout(Duration::from_secs(4), ring)
        .await
        .expect("another node's write");
    let after = second.beat(b, Bytes::from_static(b"b"), 60_000).await.unwrap();
    assert_ne!(after.catalog, before.catalog);
    first.leave(a).await.unwrap();
    let last = second.beat(b, Bytes::from_static(b"b"), 60_000).await.unwrap();
    assert_eq!(last.nodes.len(), 1, "{last:?}");
}

#[tokio::test]
async fn a_bell_that_nobody_sent_is_made_up_for() {
    let (world, _first, second) = two().await;
    let spec = world.spec("a", 1);
    world.words(&spec, None, &["1"]).await.unwrap();
    // This node begins to listen after the fact, as one that comes late or lost its connection.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let bell = second.bell(&spec.id.partition(0));
    tokio::time::timeout(Duration::from_secs(4), bell.notified())
        .await
        .expect("it looks by itself");
    // A timer in the future becomes work when its time comes.
    let mut owner = world.own(&spec, 0).await.unwrap();
    let fetched = owner.fetch(1).await.unwrap();
    let mut commit = world.consuming(&owner, &fetched, 1);
    commit
        .set_timers
        .push(world.timer("k", "t", fetched.now_ms + 3_600_000));
    owner.must(commit).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let _ = tokio::time::timeout(Duration::from_millis(10), bell.notified()).await;
    let early = tokio::time::timeout(Duration::from_millis(1_500), bell.notified()).await;
    assert!(early.is_err(), "nothing is due");
    world.harness.advance(3_600_001).await;
    tokio::time::timeout(Duration::from_secs(4), bell.notified())
        .await
        .expect("it is due");
}

fn home(node: u8, n: u8) -> RequestId {
    let mut id = [n; 16];
    id[..8].copy_from_slice(&[node; 8]);
    RequestId(id)
}

fn response(request: RequestId) -> Reply {
    Reply {
        request,
        result: ReplyResult::Response(Bytes::from_static(b"answer")),
        hops: Vec::new(),
    }
}

/// The second node asks; the first works and answers.
async fn ask(world: &World, second: &Redis, request: RequestId, once: Once) -> skep_topic::Waiter {
    let spec = world.spec("a", 1);
    let (_, mut message) = world.request("question", true);
    message.request.as_mut().unwrap().id = request;
    let waiter = second.waiters().wait(request);
    let publish = Publish {
        swarm: world.swarm.clone(),
        calls: vec![Call {
            to: vec![(spec, vec![message])],
            once,
        }],
        gate: Gate::Appended,
    };
    second.publish(publish).await.unwrap()[0].clone().unwrap();
    waiter
}

async fn work(world: &World) {
    let spec = world.spec("a", 1);
    let mut owner = world.own(&spec, 0).await.unwrap();
    let fetched = owner.fetch(1).await.unwrap();
    let mut commit = world.consuming(&owner, &fetched, 1);
    let request = fetched.messages[0].message.request.unwrap().id;
    commit.replies.push(response(request));
    owner.must(commit).await.unwrap();
    owner.backend.release(&owner.lease).await.unwrap();
}

#[tokio::test]
async fn a_reply_finds_its_caller_on_another_node() {
    let (world, _first, second) = two().await;
    let mut fastest = Duration::MAX;
    for n in 0..5 {
        let request = home(200, n);
        let waiter = ask(&world, &second, request, Once::No).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let began = std::time::Instant::now();
        work(&world).await;
        let reply = tokio::time::timeout(Duration::from_secs(5), waiter)
            .await
            .expect("in time")
            .unwrap();
        assert_eq!(reply, response(request));
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < Duration::from_millis(500), "no push arrived: {fastest:?}");
}

#[tokio::test]
async fn a_reply_whose_push_is_lost_is_fetched() {
    let (world, _first, second) = two().await;
    // Pushed to a node that is not there.
    let request = home(99, 1);
    let waiter = ask(&world, &second, request, Once::No).await;
    work(&world).await;
    let reply = tokio::time::timeout(Duration::from_secs(6), waiter)
        .await
        .expect("in time")
        .unwrap();
    assert_eq!(reply, response(request));
}

#[tokio::test]
async fn a_repeated_key_on_another_node_takes_effect_once_and_gets_the_same_reply() {
    let (world, first, second) = two().await;
    let once = || Once::Key {
        subject: "door".parse().unwrap(),
        key: "x".to_owned(),
        fingerprint: skep_model::id::Digest::of(b"question"),
        expires_ms: u64::MAX / 4,
    };
    let request = home(1, 1);
    let at_first = ask(&world, &first, request, once()).await;
    // The caller gave up on the first node and asks the second, under another request id.
    let spec = world.spec("a", 1);
    let (_, message) = world.request("question", true);
    let again = Publish {
        swarm: world.swarm.clone(),
        calls: vec![Call {
            to: vec![(spec, vec![message])],
            once: once(),
        }],
        gate: Gate::Durable,
    };
    let answer = second.publish(again.clone()).await.unwrap().remove(0);
    let running = Ok(Accepted::Duplicate {
        request: Some(request),
        reply: None,
    });
    assert_eq!(answer, running);
    let at_second = second.waiters().wait(request);
    work(&world).await;
    for waiter in [at_first, at_second] {
        let reply = tokio::time::timeout(Duration::from_secs(6), waiter)
            .await
            .expect("in time")
            .unwrap();
        assert_eq!(reply, response(request));
    }
    let finished = second.publish(again).await.unwrap().remove(0);
    let stored = Ok(Accepted::Duplicate {
        request: Some(request),
        reply: Some(response(request)),
    });
    assert_eq!(finished, stored);
}

#[tokio::test]
async fn a_removed_swarm_is_gone_for_every_node() {
    let (world, first, second) = two().await;
    let spec = world.spec("a", 1);
    world.words(&spec, None, &["1"]).await.unwrap();
    let bell = second.bell(&spec.id.partition(0));
    soon("it is rung", async || {
        tokio::time::timeout(Duration::from_millis(50), bell.notified())
            .await
            .is_ok()
    })
    .await;
    assert!(first.remove_swarm(&world.swarm, false).await.unwrap());
    tokio::time::timeout(Duration::from_secs(4), bell.notified())
        .await
        .expect("owners elsewhere are woken");
    assert_eq!(second.status(&world.swarm).await, Err(Error::Gone));
    assert_eq!(second.lives().await.unwrap(), []);
}

#[tokio::test]
async fn a_closed_node_leaves_no_lease_behind() {
    let on = OnRedis::new(None).await;
    let second = open(&on.server.url(), 200, &on.clock()).await;
    let world = World::new(Box::new(on));
    let spec = world.spec("a", 1);
    let token = skep_model::id::Token([7; 16]);
    second.claim(&spec, 0, token, 60_000).await.unwrap().unwrap();
    assert!(world.try_own(&spec, 0, 1_000).await.unwrap().is_err(), "held");
    second.close().await.unwrap();
    let owner = world.own(&spec, 0).await.unwrap();
    assert_eq!(owner.claim.unclean, 0, "given back in order");
    assert!(matches!(second.flushed().await, Err(Error::Unavailable(_))));
}
