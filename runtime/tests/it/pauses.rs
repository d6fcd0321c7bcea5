//! A Swarm and a stage that are held, and go on.

use std::time::{Duration, Instant};

use skep_proto::v1;
use skep_proto::v1::beekeeper_client::BeekeeperClient;

use crate::node::{SOON, Start, apply, drained, push, request, response, state, test_bees};
use crate::redis_server::{ALWAYS, Server};

const SWARM: &str = "
name: held
bees:
  - name: pass
    module: test-bees
    input: { gateway: held }
    key: message
  - name: effect
    module: test-bees
    input: { bee: pass }
    key: message
    state: true
---
name: light
bees:
  - { name: echo, module: test-bees, input: { gateway: light } }
";

fn depth(told: &v1::DescribeSwarmReply, stage: &str) -> (u64, String) {
    let stage = told.stages.iter().find(|s| s.name == stage).unwrap();
    (stage.unread, stage.status.clone())
}

async fn described(keeper: &mut BeekeeperClient<tonic::transport::Channel>) -> v1::DescribeSwarmReply {
    let name = "held".to_owned();
    let call = v1::DescribeSwarmRequest {
        name,
        count_keys: false,
    };
    keeper.describe_swarm(call).await.unwrap().into_inner()
}

/// Waits for a stage's depth.
async fn until(keeper: &mut BeekeeperClient<tonic::transport::Channel>, stage: &str, unread: u64) -> String {
    let until = Instant::now() + SOON;
    loop {
        let (now, status) = depth(&described(keeper).await, stage);
        if now == unread {
            return status;
        }
        assert!(Instant::now() < until, "{stage} has {now}, not {unread}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_for_a_paused_stage_waits_and_outlives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    for manifest in SWARM.split("---") {
        apply(&mut keeper, manifest).await.unwrap();
    }
    let words = |from: usize| {
        (from..from + 50)
            .map(|n| format!("{{\"id\": \"m{n}\"}}\n"))
            .collect::<String>()
    };
    let file = dir.path().join("words");
    let submit = |node: &crate::node::Node, from: usize| {
        std::fs::write(&file, words(from)).unwrap();
        node.cli(&["submit", "held", "--file", file.to_str().unwrap(), "--key-json", "/id"])
    };
    assert_eq!(node.cli_ok(&["pause", "held/effect"]).trim(), "held/effect is paused");
    assert_eq!(
        node.cli_ok(&["pause", "held/effect"]).trim(),
        "held/effect is already paused"
    );
    assert!(submit(&node, 0).status.success());
    assert_eq!(until(&mut keeper, "effect", 50).await, "paused: by an operator");
    assert_eq!(
        depth(&described(&mut keeper).await, "pass").0,
        0,
        "the other stage goes on"
    );
    assert!(node.cli_ok(&["swarms"]).contains("running, but for effect"));
    // An apply does not let it go on, nor does a restart.
    apply(
        &mut keeper,
        &SWARM
            .split("---")
            .next()
            .unwrap()
            .replace("state: true", "state: true\n    concurrency: 2"),
    )
    .await
    .unwrap();
    node.kill();
    node = Start::new(dir.path()).start();
    keeper = node.keeper().await;
    assert!(submit(&node, 50).status.success());
    assert_eq!(until(&mut keeper, "effect", 100).await, "paused: by an operator");
    let refused = node.cli(&["pause", "held", "--drain"]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert_eq!(node.cli_ok(&["resume", "held/effect"]).trim(), "held/effect is running");
    drained(&mut keeper, "held").await;

    // As a whole: requests are refused at once, what is submitted waits.
    node.cli_ok(&["pause", "held"]);
    let mut gateway = node.gateway().await;
    let began = Instant::now();
    let refused = request(&mut gateway, "held", "x").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(refused.message().contains("is paused"), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(submit(&node, 100).status.success());
    assert_eq!(until(&mut keeper, "pass", 50).await, "paused: by an operator");
    let refused = node.cli(&["resume", "held/pass"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("resume it before"),
        "{refused:?}"
    );
    node.cli_ok(&["resume", "held"]);
    drained(&mut keeper, "held").await;
    // Drained first: nothing is left, and nothing comes in.
    assert!(submit(&node, 150).status.success());
    node.cli_ok(&["pause", "held", "--drain"]);
    let told = described(&mut keeper).await;
    assert_eq!(
        (told.summary.unwrap().status.as_str(), told.stages[0].unread),
        ("paused", 0)
    );
    node.cli_ok(&["resume", "held"]);
    for n in 0..200 {
        let times = state(&mut keeper, "held", "effect", &format!("m{n}"))
            .await
            .remove("times");
        assert_eq!(times.as_deref(), Some("1"), "m{n}");
    }
    for (args, says) in [
        (&["pause", "nobody"][..], "no Swarm `nobody`"),
        (&["pause", "held/nobody"], "has no stage `nobody`"),
        (&["pause", "held/pass", "--drain"], "a whole Swarm"),
        (&["resume", "held/"], ""),
    ] {
        let said = String::from_utf8_lossy(&node.cli(args).stderr).into_owned();
        assert!(said.contains(says), "{args:?}: {said}");
    }
    // A pure Swarm too, whose requests travel in memory.
    assert_eq!(response(&request(&mut gateway, "light", "a").await.unwrap()), "a");
    node.cli_ok(&["pause", "light/echo"]);
    let call = v1::RequestCall {
        subject: "light".to_owned(),
        payload: b"b".to_vec().into(),
        timeout_ms: 20_000,
        ..v1::RequestCall::default()
    };
    let mut other = node.gateway().await;
    let waiting = tokio::spawn(async move { other.request(call).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    node.cli_ok(&["resume", "light"]);
    assert_eq!(response(&waiting.await.unwrap().unwrap().into_inner()), "b");
    // A paused Swarm can be deleted: it drains for that.
    node.cli_ok(&["pause", "light"]);
    node.cli_ok(&["submit", "light", "c"]);
    node.cli_ok(&["delete", "light"]);
    drop(keeper);
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_holds_what_one_was_told_to() {
    let redis = Server::start(ALWAYS);
    let dir = tempfile::tempdir().unwrap();
    let start = |name: &str| {
        Start::new(&dir.path().join(name))
            .env("SKEP_BACKEND", redis.url())
            .env("SKEP_ARTIFACTS", dir.path().join("artifacts").to_str().unwrap())
            .start()
    };
    let (one, two) = (start("one"), start("two"));
    let mut keeper = one.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    apply(&mut keeper, SWARM.split("---").next().unwrap()).await.unwrap();
    one.cli_ok(&["pause", "held/effect"]);
    let mut other = two.keeper().await;
    let told = Instant::now() + SOON;
    while depth(&described(&mut other).await, "effect").1 != "paused: by an operator" {
        assert!(Instant::now() < told, "the other node does not know");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The other's door hears of the subject a moment after its catalog does.
    while !two
        .cli(&["submit", "held", "a", "b", "c", "--key", "k"])
        .status
        .success()
    {
        assert!(Instant::now() < told, "the other node has no such subject");
    }
    until(&mut keeper, "effect", 3).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(depth(&described(&mut keeper).await, "effect").0, 3);
    two.cli_ok(&["resume", "held"]);
    drained(&mut keeper, "held").await;
    drop((keeper, other));
    assert!(one.stop().success());
    assert!(two.stop().success());
}
