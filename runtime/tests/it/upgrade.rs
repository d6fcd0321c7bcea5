//! From one build to the next, node by node: two real programs, of which the second is a level ahead (`examples/skep-next.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, in_step};
use crate::kills::{check, prepare, stream};
use crate::node::{SKEP, SOON, apply, drained, root};

/// What only the next build takes.
const WIDE: &str = "
name: wide
bees:
  - name: effect
    module: test-bees
    input: { gateway: wide }
    key: message
    state: true
    partitions: 40
";

fn next_build() -> &'static Path {
    static NEXT: OnceLock<PathBuf> = OnceLock::new();
    NEXT.get_or_init(|| {
        // As all of the tests are built, so that there is nothing to do where they were built all at once.
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--workspace", "--example", "skep-next"]);
        if SKEP.contains("/release/") {
            build.arg("--release");
        }
        let status = build.current_dir(root()).status().expect("run cargo");
        assert!(status.success(), "the next build does not build: {status}");
        Path::new(SKEP).with_file_name("examples").join("skep-next")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_go_to_the_next_build_one_after_the_other_while_a_keyed_stream_runs() {
    let next = next_build();
    let cluster = Cluster::new();
    let mut nodes: Vec<_> = (1..=3).map(|n| cluster.start(n)).collect();
    prepare(&nodes[0]).await;
    in_step(&nodes[0], 3).await;
    let (mut durable, mut to) = (0, 0);
    for round in 1..=3u8 {
        to += 4_000;
        let old = nodes.remove(0);
        let mut gateway = nodes[0].gateway().await;
        let streaming = async {
            while durable < to {
                let from = durable + 1;
                stream(&mut gateway, from, to, &mut durable).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let upgrade = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(old.stop().success());
            let mut start = cluster.prepared(round);
            start.program = next.to_owned();
            start.start()
        };
        let ((), upgraded) = tokio::join!(streaming, upgrade);
        if round == 1 {
            // One of the former build may come back, as after a crash in the middle of it.
            assert!(cluster.start(9).stop().success());
        }
        if round < 3 {
            // By name, with whom it waits for; at a node of the former build it is nothing new.
            let refused = apply(&mut upgraded.keeper().await, WIDE).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
            let why = refused.message();
            assert!(
                why.contains("`more than 32 partitions`") && why.contains("node `n3`"),
                "{why}"
            );
        }
        nodes.push(upgraded);
    }
    // Once every node has been there for a while.
    let until = Instant::now() + SOON;
    loop {
        match apply(&mut nodes[1].keeper().await, WIDE).await {
            Ok(_) => break,
            Err(refused) => assert!(refused.message().contains("follows within"), "{refused}"),
        }
        assert!(Instant::now() < until, "the store's level does not rise");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    in_step(&nodes[0], 3).await;
    let refused = cluster
        .prepared(4)
        .try_start()
        .err()
        .expect("the former build is refused");
    assert!(
        refused.contains("the store is at level 3") && refused.contains("upgrade this node"),
        "{refused}"
    );
    assert_eq!(check(&nodes[0], durable, durable).await, to);
    let told = drained(&mut nodes[0].keeper().await, "ledger").await;
    assert_eq!(told.stages.iter().map(|s| s.dead).sum::<u64>(), 0);
    for node in nodes {
        assert!(node.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_be_understood_is_a_reason_not_to_join() {
    let cluster = Cluster::new();
    let first = cluster.start(1);
    // Who, until when, and what it says of itself.
    cluster
        .redis
        .cli(&["HSET", "sk:{catalog}:nodes", "stranger", "zzzzzzzz{\"name\":1}"]);
    let refused = cluster.prepared(2).try_start().err().expect("it is refused");
    assert!(
        refused.contains("cannot read") && refused.contains("upgrade"),
        "{refused}"
    );
    cluster.redis.cli(&["HDEL", "sk:{catalog}:nodes", "stranger"]);
    let second = cluster.start(2);
    in_step(&first, 2).await;
    for node in [first, second] {
        assert!(node.stop().success());
    }
}
