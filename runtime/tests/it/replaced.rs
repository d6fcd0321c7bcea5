//! Nodes on more than one Redis: a cluster, and a server that a replica takes over from.

use std::path::Path;
use std::time::Duration;

use crate::cluster::in_step;
use crate::kills::{check, prepare, stream};
use crate::node::{Node, Start, drained};
use crate::redis_server::{ALWAYS, Server, Servers};

pub fn start(dir: &Path, backend: &str, gate: &str, node: u8) -> Node {
    let data = dir.join(format!("node-{node}"));
    Start::new(&data)
        .env("SKEP_BACKEND", backend)
        .env("SKEP_GATE", gate)
        .env("SKEP_ARTIFACTS", dir.join("artifacts").display().to_string())
        .env("SKEP_NODE_NAME", format!("n{node}"))
        .start()
}

/// A client streams to one node, and begins again where it was told that all is durable, in the middle of `trouble`.
async fn streamed(gate: &Node, durable: &mut u64, to: u64, trouble: impl Future<Output = ()>) {
    let mut gateway = gate.gateway().await;
    let streaming = async {
        while *durable < to {
            let from = *durable + 1;
            stream(&mut gateway, from, to, durable).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::join!(streaming, trouble);
}

async fn nothing_is_left(node: &Node) {
    let told = drained(&mut node.keeper().await, "ledger").await;
    assert_eq!(told.stages.iter().map(|s| s.dead).sum::<u64>(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_dies_and_slots_move_on_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Servers::start(3, 0, ALWAYS);
    let gate = start(dir.path(), &cluster.url(), "none", 1);
    let mut other = Some(start(dir.path(), &cluster.url(), "none", 2));
    prepare(&gate).await;
    in_step(&gate, 2).await;
    let doctor = gate.cli(&["doctor", "--backend", &cluster.url()]);
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(told.contains("3 servers lead"), "{told}");
    let (mut durable, mut to) = (0, 0);
    for round in 0..4u8 {
        to += 4_000;
        streamed(&gate, &mut durable, to, async {
            tokio::time::sleep(Duration::from_millis(50 + u64::from(round) * 37)).await;
            if round % 2 == 0 {
                other.take().expect("it runs").kill();
                tokio::time::sleep(Duration::from_millis(500)).await;
                other = Some(start(dir.path(), &cluster.url(), "none", 10 + round));
                return;
            }
            // The Swarm's slot, and that of what is desired.
            for slot in [cluster.slot_of_swarm("ledger"), cluster.slot_of("sk:{catalog}")] {
                cluster.migrate(slot, (cluster.leader_of(slot) + 1) % 3, Duration::from_millis(2));
            }
        })
        .await;
    }
    assert_eq!(check(&gate, durable, durable).await, to);
    nothing_is_left(&gate).await;
    assert!(other.expect("it runs").stop().success());
    assert!(gate.stop().success());
}

/// The nodes were given both addresses. What was acknowledged had reached the replica, so nothing is lost, and nothing is done twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_takes_over_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let quick = [
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        "--repl-diskless-sync-delay",
        "0",
    ];
    let mut leads = Server::start(&quick);
    let mut follows = Server::start(&quick);
    let follow = |replica: &Server, leader: &Server| {
        replica.cli(&["REPLICAOF", "127.0.0.1", &leader.port.to_string()]);
        until("the replica is in step", || {
            replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
                && leader.cli(&["INFO", "replication"]).contains("state=online")
        });
    };
    follow(&follows, &leads);
    let backend = format!("redis://127.0.0.1:{},127.0.0.1:{}", leads.port, follows.port);
    let (gate, other) = (
        start(dir.path(), &backend, "wait:1", 1),
        start(dir.path(), &backend, "wait:1", 2),
    );
    prepare(&gate).await;
    in_step(&gate, 2).await;
    let (mut durable, mut to) = (0, 0);
    for round in 0..3u64 {
        to += 4_000;
        streamed(&gate, &mut durable, to, async {
            tokio::time::sleep(Duration::from_millis(60 + round * 41)).await;
            leads.kill();
            follows.cli(&["REPLICAOF", "NO", "ONE"]);
            tokio::time::sleep(Duration::from_millis(300)).await;
            // What was replaced comes back, as a replica before anything else.
            leads.run_as_replica_of(follows.port);
            follow(&leads, &follows);
            std::mem::swap(&mut leads, &mut follows);
        })
        .await;
    }
    assert_eq!(check(&gate, durable, durable).await, to);
    nothing_is_left(&gate).await;
    for node in [other, gate] {
        assert!(node.stop().success());
    }
}

pub fn until(what: &str, holds: impl Fn() -> bool) {
    let until = std::time::Instant::now() + crate::node::SOON;
    while !holds() {
        assert!(std::time::Instant::now() < until, "it never came about: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
