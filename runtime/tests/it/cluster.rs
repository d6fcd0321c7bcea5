//! Several nodes on one Redis, with a folder that they share as artifact store: nodes come, go, die and sleep, and the store dies.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use skep_model::env::SeededEntropy;
use skep_model::id::NodeId;
use skep_proto::v1;
use tempfile::TempDir;

use crate::access::with;
use crate::kills::{check, prepare, stream};
use crate::node::{Node, SOON, Start, apply, drained, push, request, response, state, test_bees};
use crate::redis_server::{ALWAYS, Server};

pub struct Cluster {
    pub dir: TempDir,
    pub redis: Server,
}

impl Cluster {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            redis: Server::start(ALWAYS),
        }
    }

    fn data(&self, node: u8) -> PathBuf {
        self.dir.path().join(format!("node-{node}"))
    }

    pub fn start(&self, node: u8) -> Node {
        self.start_at(node, 0)
    }

    fn start_at(&self, node: u8, port: u16) -> Node {
        Start {
            port,
            ..self.prepared(node)
        }
        .start()
    }

    /// As it is to be started.
    pub fn prepared(&self, node: u8) -> Start {
        Start::new(&self.data(node))
            .env("SKEP_BACKEND", self.redis.url())
            .env(
                "SKEP_ARTIFACTS",
                self.dir.path().join("artifacts").display().to_string(),
            )
            .env("SKEP_NODE_NAME", format!("n{node}"))
    }
}

async fn nodes(node: &Node, token: Option<&str>) -> Vec<v1::NodeInfo> {
    let mut keeper = node.keeper().await;
    let request = match token {
        Some(token) => with(token, v1::ListNodesRequest {}),
        None => tonic::Request::new(v1::ListNodesRequest {}),
    };
    let nodes = keeper.list_nodes(request).await.expect("nodes");
    nodes.into_inner().nodes
}

/// Until every node follows the catalog.
pub async fn in_step(node: &Node, count: usize) -> Vec<v1::NodeInfo> {
    until_in_step(node, count, None).await
}

/// The same where a token is needed.
pub async fn in_step_as(node: &Node, count: usize, token: &str) -> Vec<v1::NodeInfo> {
    until_in_step(node, count, Some(token)).await
}

async fn until_in_step(node: &Node, count: usize, token: Option<&str>) -> Vec<v1::NodeInfo> {
    let until = Instant::now() + SOON;
    loop {
        let all = nodes(node, token).await;
        if all.len() == count && all.iter().all(|n| !n.behind) {
            return all;
        }
        assert!(Instant::now() < until, "not in step: {all:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn owned(of: &v1::NodeInfo) -> usize {
    of.owned.iter().map(|o| o.partitions.len()).sum()
}

pub const CALLS: &str = "
name: calls
bees:
  - name: effect
    module: test-bees
    input: { gateway: effect }
    key: message
    state: true
";

fn keyed(subject: &str, key: &str, idempotency_key: &str) -> v1::RequestCall {
    v1::RequestCall {
        subject: subject.to_owned(),
        payload: b"x".to_vec().into(),
        key: Some(key.to_owned()),
        idempotency_key: (!idempotency_key.is_empty()).then(|| idempotency_key.to_owned()),
        ..v1::RequestCall::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_at_one_and_applied_at_another_is_called_at_a_third() {
    let cluster = Cluster::new();
    let all = [cluster.start(1), cluster.start(2), cluster.start(3)];
    push(&mut all[0].keeper().await, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    apply(&mut all[1].keeper().await, CALLS).await.expect("apply");
    let told = in_step(&all[2], 3).await;
    let names: Vec<&str> = told.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);
    assert_eq!(told.iter().filter(|n| n.here).count(), 1);

    // Whoever is asked, the one owner of the key answers: the count rises by one a call.
    let mut gateways = Vec::new();
    for node in &all {
        gateways.push(node.gateway().await);
    }
    for round in 0..10u64 {
        for (i, gateway) in (0u64..).zip(&mut gateways) {
            let reply = gateway
                .request(keyed("effect", "k", ""))
                .await
                .expect("request")
                .into_inner();
            assert_eq!(response(&reply), (round * 3 + i + 1).to_string());
        }
    }
    // The same call at all three at once takes effect once, and all get its answer.
    for n in 0..10 {
        let (key, once) = (format!("key-{n}"), format!("once-{n}"));
        let mut calls = Vec::new();
        for mut gateway in gateways.clone() {
            let call = keyed("effect", &key, &once);
            calls.push(tokio::spawn(async move { gateway.request(call).await }));
        }
        for call in calls {
            assert_eq!(response(&call.await.unwrap().expect("request").into_inner()), "1");
        }
    }
    let shown = all[0].cli_ok(&["nodes"]);
    assert!(shown.contains("n2") && shown.contains("serving"), "{shown}");
    for node in all {
        assert!(node.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_hands_over_and_comes_back() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.start(1), cluster.start(2));
    prepare(&first).await;
    in_step(&first, 2).await;
    let mut gateway = first.gateway().await;
    let (mut durable, to) = (0, 3_000);
    stream(&mut gateway, 1, to, &mut durable).await;
    let told = second.cli_ok(&["drain", "n1"]);
    assert!(told.contains("owns nothing"), "{told}");
    let all = nodes(&second, None).await;
    assert_eq!(owned(&all[0]), 0);
    assert_eq!(all[0].state(), v1::node_info::State::Draining);
    // Its Gateway serves on, and the other node does the work.
    stream(&mut gateway, to + 1, 2 * to, &mut durable).await;
    assert_eq!(check(&second, durable, durable).await, 2 * to);
    // Nobody would be left.
    let refused = second.cli(&["drain", "n2"]);
    assert!(!refused.status.success());
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("no other node would run its Bees"), "{why}");
    let unknown = second.cli(&["drain", "n3"]);
    assert_eq!(unknown.status.code(), Some(4), "{unknown:?}");
    second.cli_ok(&["drain", "n1", "--undo"]);
    second.cli_ok(&["drain", "n2"]);
    assert!(second.stop().success());
    stream(&mut gateway, 2 * to + 1, 3 * to, &mut durable).await;
    assert_eq!(check(&first, durable, durable).await, 3 * to);
    assert!(first.stop().success());
}

fn signal(node: &Node, signal: Signal) {
    let pid = Pid::from_raw(node.pid()).expect("a pid");
    kill_process(pid, signal).expect("signal");
}

/// Nodes are killed, sent to sleep for longer than their leases, and started again, and so is Redis, all while a client streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_submit_takes_effect_exactly_once_whoever_dies_or_sleeps() {
    let mut cluster = Cluster::new();
    let gate = cluster.start(1);
    let mut others = vec![cluster.start(2), cluster.start(3)];
    prepare(&gate).await;
    in_step(&gate, 3).await;
    let (mut durable, mut to) = (0, 0);
    let asked = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let rounds = asked("SKEP_TEST_ROUNDS").unwrap_or(6);
    // For `ci/soak`: for so long, what happens and when drawn by chance.
    let until = asked("SKEP_TEST_MINUTES").map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let seeded = SeededEntropy::new(asked("SKEP_TEST_SEED").unwrap_or(0));
    let mut round = 0;
    while until.map_or(round < rounds, |until| Instant::now() < until) {
        let chance = u64::from_le_bytes(NodeId::random(&seeded).0);
        let (what, after) = match until {
            Some(_) => (chance % 3, chance / 3 % 500),
            None => (round % 3, 20 + round * 37),
        };
        to += 4_000;
        let mut gateway = gate.gateway().await;
        let streaming = async {
            while durable < to {
                let from = durable + 1;
                stream(&mut gateway, from, to, &mut durable).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let trouble = async {
            tokio::time::sleep(Duration::from_millis(after)).await;
            match what {
                0 => {
                    others.remove(0).kill();
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    let again = 10 + u8::try_from(round % 200).unwrap();
                    others.push(cluster.start(again));
                }
                1 => {
                    // Longer than a lease, so that another takes over; then it wakes and goes on as if nothing had been.
                    signal(&others[0], Signal::STOP);
                    tokio::time::sleep(Duration::from_millis(3_000)).await;
                    signal(&others[0], Signal::CONT);
                }
                _ => {
                    cluster.redis.kill();
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    cluster.redis.run();
                }
            }
        };
        tokio::join!(streaming, trouble);
        round += 1;
    }
    assert_eq!(check(&gate, durable, durable).await, to);
    // What is left over of it: nothing.
    let mut keeper = gate.keeper().await;
    let told = drained(&mut keeper, "ledger").await;
    assert_eq!(told.stages.iter().map(|s| s.dead).sum::<u64>(), 0);
    for node in others {
        assert!(node.stop().success());
    }
    assert!(gate.stop().success());
}

/// 4 partitions, then 16, then 8, asked of one node while a client streams to the other.
async fn rescaled(gate: &Node, asked: &Node) {
    let (mut durable, to) = (0, 12_000);
    let mut gateway = gate.gateway().await;
    let mut keeper = asked.keeper().await;
    let streaming = async {
        while durable < to {
            let from = durable + 1;
            stream(&mut gateway, from, to, &mut durable).await;
        }
    };
    let scaling = async {
        for partitions in [16, 8] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let until = Instant::now() + SOON;
            loop {
                let call = v1::ScaleStageRequest {
                    swarm: "ledger".to_owned(),
                    stage: "ledger".to_owned(),
                    partitions: Some(partitions),
                    ..v1::ScaleStageRequest::default()
                };
                match keeper.scale_stage(call).await {
                    Ok(_) => break,
                    // What came before works itself off first.
                    Err(busy) if busy.code() == tonic::Code::FailedPrecondition => {}
                    Err(other) => panic!("{other}"),
                }
                assert!(Instant::now() < until, "the first rescale never ended");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    tokio::join!(streaming, scaling);
    assert_eq!(check(asked, durable, durable).await, to);
    let told = drained(&mut keeper, "ledger").await;
    assert_eq!(told.stages[0].partitions, 8);
    let refused = asked.cli(&["scale", "ledger/nothing", "--partitions", "2"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    for (number, code) in [("0", 3), ("257", 3), ("70000", 2)] {
        let refused = asked.cli(&["scale", "ledger/ledger", "--partitions", number]);
        assert_eq!(refused.status.code(), Some(code), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_change_while_messages_flow() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.start(1), cluster.start(2));
    prepare(&first).await;
    in_step(&first, 2).await;
    rescaled(&first, &second).await;
    for node in [first, second] {
        assert!(node.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_change_while_messages_flow_on_one_node_too() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    prepare(&node).await;
    rescaled(&node, &node).await;
    assert!(node.stop().success());
}

/// The caller's node dies while the call is under way: the same call at another node is answered once, as if nothing had been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_gateway_s_keyed_calls_are_answered_elsewhere_once() {
    let cluster = Cluster::new();
    let (doomed, other) = (cluster.start(1), cluster.start(2));
    let mut keeper = other.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    apply(&mut keeper, CALLS).await.expect("apply");
    in_step(&other, 2).await;
    let mut calls = Vec::new();
    let gateway = doomed.gateway().await;
    for n in 0..200 {
        let mut gateway = gateway.clone();
        calls.push(tokio::spawn(async move {
            gateway
                .request(keyed("effect", &format!("k{n}"), &format!("i{n}")))
                .await
        }));
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    doomed.kill();
    let mut second = other.gateway().await;
    let mut broken = 0;
    for (n, call) in calls.into_iter().enumerate() {
        let first = call.await.unwrap();
        broken += usize::from(first.is_err());
        let again = second
            .request(keyed("effect", &format!("k{n}"), &format!("i{n}")))
            .await
            .unwrap_or_else(|e| panic!("call {n}: {e}"));
        assert_eq!(response(&again.into_inner()), "1", "call {n} took effect again");
    }
    assert!(broken > 0, "the node died too late for this test");
    for n in 0..200 {
        let times = state(&mut keeper, "calls", "effect", &format!("k{n}"))
            .await
            .remove("times");
        assert_eq!(times.as_deref(), Some("1"));
    }
    drop(keeper);
    assert!(other.stop().success());
}

/// A request without state or key, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_workers_sends_its_calls_to_those_that_have_them() {
    let cluster = Cluster::new();
    let worker = cluster.start(1);
    let data = cluster.data(2);
    let door = Start::new(&data)
        .env("SKEP_BACKEND", cluster.redis.url())
        .env(
            "SKEP_ARTIFACTS",
            cluster.dir.path().join("artifacts").display().to_string(),
        )
        .env("SKEP_ROLES", "gateway")
        .start();
    let mut keeper = worker.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    let echo = "
name: echo
bees:
  - name: echo
    module: test-bees
    input: { gateway: echo }
";
    apply(&mut keeper, echo).await.expect("apply");
    in_step(&worker, 2).await;
    let mut gateway = door.gateway().await;
    let reply = request(&mut gateway, "echo", "hello").await.expect("request");
    assert_eq!(response(&reply), "hello");
    // What it does not run it does not load either.
    let cached = std::fs::read_dir(data.join("cache")).map_or(0, Iterator::count);
    assert_eq!(cached, 0, "it compiled something");
    // It is no Beekeeper.
    let status = door
        .keeper()
        .await
        .list_swarms(v1::ListSwarmsRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented, "{status}");
    assert!(door.stop().success());
    assert!(worker.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_disagree_are_refused_with_the_reason() {
    let cluster = Cluster::new();
    let first = cluster.start(1);
    let data = cluster.data(2);
    let other = Start::new(&data)
        .env("SKEP_BACKEND", cluster.redis.url())
        .env(
            "SKEP_ARTIFACTS",
            cluster.dir.path().join("elsewhere").display().to_string(),
        )
        .try_start();
    let why = other.err().expect("it is refused");
    assert!(why.contains("artifacts") && why.contains("n1"), "{why}");
    // The data folder of a node that runs.
    let data = cluster.data(1);
    let twice = Start::new(&data).env("SKEP_BACKEND", cluster.redis.url()).try_start();
    let why = twice.err().expect("it is refused");
    assert!(why.contains("another skep uses the data folder"), "{why}");
    assert!(first.stop().success());
}
