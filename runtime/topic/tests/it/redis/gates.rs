//! What leaves waits for the replicas.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep_model::message::{Reply, ReplyResult};
use skep_topic::conformance::actors::World;
use skep_topic::guard::Guard;
use skep_topic::redis::{Gate, Redis, RedisOptions};
use skep_topic::{Backend as _, Call, Error, Lease, Once, Publish, Span, TopicSpec, Want};

use super::server::{Server, open_as, soon};

struct Stalled<'a>(&'a Server);

impl<'a> Stalled<'a> {
    fn new(server: &'a Server) -> Self {
        let pid = rustix::process::Pid::from_raw(server.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        Self(server)
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    }
}

async fn replicated(timeout_ms: u64) -> (Server, Server, Arc<Redis>) {
    let quick = [
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        "--repl-diskless-sync-delay",
        "0",
    ];
    let leader = Server::start(&quick);
    let port = leader.port.to_string();
    let mut of_replica = quick.to_vec();
    of_replica.extend(["--replicaof", "127.0.0.1", &port]);
    let replica = Server::start(&of_replica);
    soon("the replica is in step", async || {
        replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
            && leader.cli(&["INFO", "replication"]).contains("state=online")
    })
    .await;
    let mut options = RedisOptions::new(leader.url(), [1; 8]);
    options.gate = Gate::Wait {
        replicas: 1,
        timeout_ms,
    };
    let store = open_as(options).await.unwrap();
    (leader, replica, store)
}

fn publish(world: &World, to: &Arc<TopicSpec>, gate: skep_topic::Gate) -> Publish {
    let (_, message) = world.request("1", false);
    Publish {
        swarm: world.swarm.clone(),
        calls: vec![Call {
            to: vec![(Arc::clone(to), vec![message])],
            once: Once::No,
        }],
        gate,
    }
}

#[tokio::test]
async fn nothing_leaves_before_the_replica_has_it() {
    let (_leader, replica, store) = replicated(2_000).await;
    let world = World::new(Box::new(crate::harness::OnMemory::new(1)));
    let spec = world.spec("a", 1);
    let durable = || publish(&world, &spec, skep_topic::Gate::Durable);
    store.publish(durable()).await.unwrap();
    store.flushed().await.unwrap();
    assert!(store.counters().flushes > 0);
    let lease = Lease {
        partition: spec.id.partition(0),
        token: skep_model::id::Token([3; 16]),
    };
    let claim = store.claim(&spec, 0, lease.token, 60_000).await.unwrap().unwrap();
    let want = Want {
        from: claim.cursor,
        base: claim.last,
        messages: 1,
        bytes: 1 << 20,
        state: false,
        state_bytes: 0,
        timers_max: u64::MAX,
    };
    let fetched = store.fetch(&lease, want).await.unwrap();
    let unread = &fetched.messages[0];
    let request = unread.message.request.unwrap().id;
    let mut commit = skep_topic::Commit::empty(
        Arc::clone(&spec),
        skep_model::id::CommitId([5; 16]),
        claim.seq,
        claim.last,
    );
    commit.span = Some(Span {
        from: claim.cursor,
        to: unread.after,
        last_entry: unread.entry,
        last_entry_uid: unread.entry_uid,
    });
    commit.replies.push(Reply {
        request,
        result: ReplyResult::Response(Bytes::from_static(b"x")),
        hops: Vec::new(),
    });
    let mut waiter = store.waiters().wait(request);
    let commit = Arc::new(commit);
    {
        let _stalled = Stalled::new(&replica);
        let unsafe_yet = store.publish(durable()).await;
        assert!(matches!(unsafe_yet, Err(Error::Unknown(_))), "{unsafe_yet:?}");
        assert!(matches!(store.flushed().await, Err(Error::Unknown(_))));
        let marked = store.mark(&lease, skep_model::id::Uid([1; 16])).await;
        assert!(matches!(marked, Err(Error::Unknown(_))), "{marked:?}");
        let put = store.catalog_put("a", 0, Bytes::new()).await;
        assert!(matches!(put, Err(Error::Unknown(_))), "{put:?}");
        // What waits for nobody goes on, and so does the owner; the reply does not leave.
        store
            .publish(publish(&world, &spec, skep_topic::Gate::Appended))
            .await
            .unwrap();
        store.commit(&lease, Arc::clone(&commit)).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(500), &mut waiter).await;
        assert!(early.is_err(), "the reply left before it was safe");
    }
    // The same commit again, once the replica is back: its reply comes now.
    soon("the replica is back", async || store.flushed().await.is_ok()).await;
    assert_eq!(store.commit(&lease, commit).await, Ok(skep_topic::Committed::Done));
    tokio::time::timeout(Duration::from_secs(5), waiter)
        .await
        .expect("in time")
        .unwrap();
}

#[tokio::test]
async fn without_the_gate_an_early_acknowledgement_is_noticed() {
    let (_leader, replica, store) = replicated(2_000).await;
    store.guards().remove(Guard::Gate);
    let world = World::new(Box::new(crate::harness::OnMemory::new(1)));
    let spec = world.spec("a", 1);
    let _stalled = Stalled::new(&replica);
    let answer = store.publish(publish(&world, &spec, skep_topic::Gate::Durable)).await;
    assert!(answer.is_ok(), "the planted bug does nothing: {answer:?}");
}

#[tokio::test]
async fn what_is_acknowledged_outlives_the_leader() {
    let (mut leader, replica, store) = replicated(5_000).await;
    let world = World::new(Box::new(crate::harness::OnMemory::new(1)));
    let spec = world.spec("a", 1);
    let mut acked = 0;
    for _ in 0..50 {
        if store
            .publish(publish(&world, &spec, skep_topic::Gate::Durable))
            .await
            .is_ok()
        {
            acked += 1;
        }
    }
    leader.kill();
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    let next = open_as(RedisOptions::new(replica.url(), [2; 8])).await.unwrap();
    let status = next.status(&world.swarm).await.unwrap();
    assert_eq!(status[0].unread, acked, "each acknowledged one, once");
    assert_eq!(acked, 50);
}

/// Of several addresses the one that leads is found, at first and after it was replaced; of two that lead neither is believed.
#[tokio::test]
async fn the_address_that_leads_is_found() {
    let (mut leader, replica, first) = replicated(2_000).await;
    drop(first);
    let url = format!("redis://127.0.0.1:{},127.0.0.1:{}", replica.port, leader.port);
    let store = open_as(RedisOptions::new(&url, [2; 8])).await.unwrap();
    store.catalog_put("a", 0, "1".into()).await.unwrap().unwrap();
    soon("the replica has it", async || {
        replica.cli(&["HLEN", "sk:{catalog}"]).starts_with('1')
    })
    .await;
    leader.kill();
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    soon("the other leads", async || {
        store.catalog_put("a", 1, "2".into()).await.is_ok()
    })
    .await;
    // What was replaced comes back and leads as well.
    leader.run();
    let refused = open_as(RedisOptions::new(&url, [3; 8])).await.unwrap_err();
    assert!(refused.to_string().contains("2 of 2 addresses lead"), "{refused}");
    leader.cli(&["REPLICAOF", "127.0.0.1", &replica.port.to_string()]);
    soon("it follows", async || {
        open_as(RedisOptions::new(&url, [3; 8])).await.is_ok()
    })
    .await;
}

/// A replica that was behind leads now, and knows nothing of a Swarm that was begun since: it begins anew there, for every node that knew it.
#[tokio::test]
async fn a_swarm_that_a_failover_took_back_begins_anew() {
    let (mut leader, replica, _) = replicated(2_000).await;
    let both = format!("redis://127.0.0.1:{},127.0.0.1:{}", leader.port, replica.port);
    let store = open_as(RedisOptions::new(both, [1; 8])).await.unwrap();
    let world = World::new(Box::new(crate::harness::OnMemory::new(1)));
    let mut later = World::new(Box::new(crate::harness::OnMemory::new(2)));
    let scope = skep_model::scope::Scope::of(skep_model::name::TenantId::default_tenant());
    later.swarm = scope.swarm(&"later".parse().unwrap(), skep_model::id::Incarnation([8; 16]));
    let (spec, of_later) = (world.spec("a", 1), later.spec("a", 1));
    let first = || publish(&world, &spec, skep_topic::Gate::Appended);
    let second = || publish(&later, &of_later, skep_topic::Gate::Appended);
    store.publish(first()).await.unwrap();
    let known = format!("sk:{{{}}}:m", world.swarm);
    soon("the replica has the first", async || {
        replica.cli(&["EXISTS", &known]).starts_with('1')
    })
    .await;
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    store.publish(second()).await.unwrap();
    leader.kill();
    for publish in [&second as &dyn Fn() -> Publish, &first, &second] {
        soon("it is taken", async || match store.publish(publish()).await {
            Ok(_) => true,
            Err(why) => {
                assert!(!why.to_string().contains("lost the keys"), "{why}");
                false
            }
        })
        .await;
    }
    // From now on this is the history in which both are known: what goes missing in it was flushed.
    for swarm in [&later.swarm, &world.swarm] {
        assert!(replica.cli(&["DEL", &format!("sk:{{{swarm}}}:m")]).starts_with('1'));
    }
    let flushed = store.publish(first()).await.unwrap_err().to_string();
    assert!(flushed.contains("lost the keys"), "{flushed}");
}
