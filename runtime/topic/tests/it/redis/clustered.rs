//! The backend on a Redis Cluster: the same suite, slots that move, servers that are replaced, servers that lose their data.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use skep_model::id::Uid;
use skep_model::limits::LEASE_TTL_MS;
use skep_model::scope::PartitionId;
use skep_topic::conformance::actors::World;
use skep_topic::conformance::histories::{Faults, Shape, run};
use skep_topic::conformance::{self, Harness, Stop};
use skep_topic::guard::Guard;
use skep_topic::redis::{Gate, Redis, RedisOptions, Severity, StoreClock, probe};
use skep_topic::{Backend, Call, Error, Once, Publish};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::faults::all_is_applied_once;
use super::process::{ALWAYS, Servers};
use super::server::{open, open_as, soon};

/// A fresh store on a cluster that others used before.
struct OnCluster {
    cluster: OwnedMutexGuard<Servers>,
    ahead: Arc<AtomicU64>,
    redis: Option<Arc<Redis>>,
    opened: u8,
}

impl OnCluster {
    async fn new(cluster: &Arc<Mutex<Servers>>) -> Self {
        let cluster = Arc::clone(cluster).lock_owned().await;
        cluster.flush();
        let mut on = Self {
            cluster,
            ahead: Arc::default(),
            redis: None,
            opened: 0,
        };
        on.open().await;
        on
    }

    async fn open(&mut self) {
        self.opened += 1;
        let clock = StoreClock::Ahead(Arc::clone(&self.ahead));
        self.redis = Some(open(&self.cluster.url(), self.opened, &clock).await);
    }
}

#[async_trait]
impl Harness for OnCluster {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(self.redis.as_ref().expect("it is open")) as Arc<dyn Backend>
    }

    async fn advance(&self, ms: u64) {
        self.ahead.fetch_add(ms, Ordering::SeqCst);
    }

    async fn reopen(&mut self, stop: Stop) -> bool {
        let redis = self.redis.take().expect("it is open");
        if stop == Stop::Clean {
            redis.close().await.expect("it closes");
        } else {
            self.cluster.restart();
            self.advance(LEASE_TTL_MS).await;
        }
        drop(redis);
        self.open().await;
        true
    }
}

#[async_trait]
impl Faults for OnCluster {
    fn mark(&mut self) {}

    async fn fail_over(&mut self) {
        self.reopen(Stop::Kill).await;
    }

    fn operator_takes(&mut self, _: &PartitionId) -> Option<Uid> {
        None
    }
}

fn three() -> Arc<Mutex<Servers>> {
    Arc::new(Mutex::new(Servers::start(3, 0, ALWAYS)))
}

#[tokio::test]
async fn a_cluster_keeps_every_rule() {
    let cluster = three();
    let broken = conformance::run(async || Box::new(OnCluster::new(&cluster).await) as Box<dyn Harness>).await;
    let told: Vec<String> = broken.iter().map(|(rule, why)| format!("{rule}: {why}")).collect();
    assert!(broken.is_empty(), "{}", told.join("\n"));
}

#[tokio::test]
async fn a_cluster_survives_kills() {
    let cluster = three();
    let shape = Shape {
        messages: 20,
        keys: 3,
        steps: 150,
        fault_percent: 2,
        ..Shape::SMALL
    };
    for seed in 0..2 {
        run(seed, shape, &mut OnCluster::new(&cluster).await).await.unwrap();
    }
}

/// Scripts find all of their keys or none: nothing is done in part while a slot is on its way, and nothing is lost or done twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_while_messages_flow() {
    let cluster = Servers::start(3, 0, ALWAYS);
    let store = open(&cluster.url(), 1, &StoreClock::Server).await;
    all_is_applied_once(Arc::clone(&store), async |swarm| {
        let slot = cluster.slot_of(&format!("sk:{{{swarm}}}:m"));
        for round in 0..6u64 {
            tokio::time::sleep(Duration::from_millis(150 + round * 37)).await;
            let to = (cluster.leader_of(slot) + 1) % 3;
            // Slowly at times, so that much is tried in the middle.
            let moved = cluster.migrate(slot, to, Duration::from_millis(round % 3 * 40));
            assert!(moved > 5, "only {moved} keys went over");
        }
    })
    .await;
    // Desired state moves as well.
    let slot = cluster.slot_of("sk:{catalog}");
    store.catalog_put("a", 0, "1".into()).await.unwrap().unwrap();
    cluster.migrate(slot, (cluster.leader_of(slot) + 1) % 3, Duration::ZERO);
    assert_eq!(store.catalog_put("a", 1, "2".into()).await.unwrap(), Ok(2));
    assert_eq!(store.catalog_list("").await.unwrap().len(), 1);
}

/// With a part of a life elsewhere nothing is begun; a script that did would end in its middle.
#[tokio::test]
async fn nothing_is_done_in_a_slot_that_is_on_its_way() {
    let cluster = three();
    for guarded in [true, false] {
        let on = OnCluster::new(&cluster).await;
        let (servers, redis) = (&*on.cluster, on.redis.clone().unwrap());
        let world = World::new(Box::new(crate::harness::OnMemory::new(1)));
        let spec = world.spec("a", 1);
        let publish = || Publish {
            swarm: world.swarm.clone(),
            calls: vec![Call {
                to: vec![(Arc::clone(&spec), vec![world.message(None, "x")])],
                once: Once::No,
            }],
            gate: skep_topic::Gate::Durable,
        };
        redis.publish(publish()).await.unwrap();
        let slot = servers.slot_of(&format!("sk:{{{}}}:m", world.swarm));
        let to = (servers.leader_of(slot) + 1) % 3;
        servers.migrate_one(slot, to, &format!("sk:{{{}}}:t:a", world.swarm));
        if !guarded {
            redis.guards().remove(Guard::Slot);
        }
        let begun = std::time::Instant::now();
        let refused = redis.publish(publish()).await.unwrap_err();
        // It waits for a while, then says that nothing was done.
        assert_eq!(matches!(refused, Error::Unavailable(_)), guarded, "{refused}");
        assert_eq!(
            begun.elapsed() > Duration::from_secs(3),
            guarded,
            "{:?}",
            begun.elapsed()
        );
        servers.migrate(slot, to, Duration::ZERO);
        redis.publish(publish()).await.unwrap();
        let status = redis.status(&world.swarm).await.unwrap();
        assert_eq!(status[0].unread, 2, "{status:?}");
        drop(redis);
        drop(on);
    }
}

/// A leader dies and its replica takes over, again and again; what is acknowledged is there, since it waited for the replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_take_over_in_a_cluster() {
    let quick = ["--appendonly", "yes", "--appendfsync", "everysec"];
    let mut cluster = Servers::start(3, 1, &quick);
    let mut options = RedisOptions::new(cluster.url(), [1; 8]);
    options.gate = Gate::Wait {
        replicas: 1,
        timeout_ms: 2_000,
    };
    let store = open_as(options).await.unwrap();
    all_is_applied_once(store, async |swarm| {
        let slot = cluster.slot_of(&format!("sk:{{{swarm}}}:m"));
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let leader = cluster.leader_of(slot);
            cluster.servers[leader].kill();
            soon("the replica leads", async || cluster.leads(slot).is_some()).await;
            // It comes back as a replica, and the gate opens again.
            cluster.servers[leader].run();
            soon("it follows", async || {
                cluster.servers[leader]
                    .cli(&["INFO", "replication"])
                    .contains("master_link_status:up")
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_of_a_cluster_that_lost_its_data_is_noticed() {
    for key in ["sk:store", "sk:{catalog}"] {
        let cluster = Servers::start(3, 0, ALWAYS);
        let store = open(&cluster.url(), 1, &StoreClock::Server).await;
        store.catalog_put("a", 0, "1".into()).await.unwrap().unwrap();
        cluster.servers[cluster.leader_of(cluster.slot_of(key))].cli(&["FLUSHALL"]);
        soon("it is noticed", async || {
            let put = store.catalog_put("b", 0, "1".into()).await;
            matches!(&put, Err(Error::Unavailable(why)) if why.contains("lost the store"))
        })
        .await;
        // Nor does another process begin with a part.
        let again = open_as(RedisOptions::new(cluster.url(), [2; 8])).await;
        assert!(matches!(again, Err(Error::Corrupt(_))), "{key}: {again:?}");
    }
}

#[tokio::test]
async fn a_cluster_is_looked_at_as_a_whole() {
    let cluster = Servers::start(3, 0, ALWAYS);
    let told = async |url: &str| {
        let (findings, _) = probe(&RedisOptions::new(url, [1; 8])).await.unwrap();
        let worst = findings.iter().map(|f| f.severity).max().unwrap();
        let all: Vec<String> = findings.into_iter().map(|f| f.what).collect();
        (worst, all.join("\n"))
    };
    let (worst, all) = told(&cluster.url()).await;
    assert!(worst < Severity::Refuse, "{all}");
    assert!(all.contains("3 servers lead, 16384 of 16384 slots are served"), "{all}");
    // Taken for what it is not, either way.
    let (worst, all) = told(&cluster.servers[0].url()).await;
    assert!(
        worst == Severity::Refuse && all.contains("is a server of a cluster"),
        "{all}"
    );
    let alone = super::server::Server::start(ALWAYS);
    let (worst, all) = told(&alone.url().replace("redis:", "redis+cluster:")).await;
    assert!(worst == Severity::Refuse && all.contains("it is no cluster"), "{all}");
    // One that evicts, of three.
    cluster.servers[1].cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let (worst, all) = told(&cluster.url()).await;
    let named = format!("127.0.0.1:{}: maxmemory-policy", cluster.servers[1].port);
    assert!(worst == Severity::Refuse && all.contains(&named), "{all}");
    assert!(open_as(RedisOptions::new(cluster.url(), [1; 8])).await.is_err());
    cluster.servers[1].cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    // A slot that nobody serves.
    cluster.servers[0].cli(&["CLUSTER", "DELSLOTS", "7"]);
    soon("a hole is told", async || {
        told(&cluster.url()).await.0 == Severity::Refuse
    })
    .await;
}
