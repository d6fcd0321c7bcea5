//! Joins and requests that nobody answers, against real nodes: the sample, the outcomes of a missing side, the bound, and kills.

use std::time::{Duration, Instant};

use skep_proto::v1;

use crate::kills::{SESSION, message, stream};
use crate::node::{Node, SOON, Start, apply, drained, ensemble, push, request, response, root, state, test_bees};
use crate::redis_server::{ALWAYS, Server};

pub fn on_redis(dir: &std::path::Path, redis: &Server) -> Start {
    Start::new(dir)
        .env("SKEP_BACKEND", redis.url())
        .env("SKEP_ARTIFACTS", dir.join("artifacts").to_str().unwrap())
}

/// What a call came to, for people.
pub async fn told(node: &Node, subject: &str, payload: &str, to: &str) -> String {
    let call = v1::RequestCall {
        subject: subject.to_owned(),
        payload: payload.as_bytes().to_vec().into(),
        headers: vec![v1::Header {
            name: "to".to_owned(),
            value: to.to_owned(),
        }],
        ..v1::RequestCall::default()
    };
    match node.gateway().await.request(call).await {
        Err(status) => format!("{status:?}"),
        Ok(reply) => match reply.into_inner().result {
            Some(v1::reply::Result::Response(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            other => format!("{other:?}"),
        },
    }
}

async fn judged(node: &Node) {
    let mut keeper = node.keeper().await;
    push(&mut keeper, "ensemble", "latest", ensemble()).await.unwrap();
    let sample = root().join("samples/ensemble");
    let read = |name: &str| std::fs::read_to_string(sample.join(name)).unwrap();
    apply(&mut keeper, &read("swarm.yaml")).await.unwrap();
    let mut gateway = node.gateway().await;
    let (texts, expected) = (read("texts.jsonl"), read("expected.jsonl"));
    assert_eq!(texts.lines().count(), expected.lines().count());
    for (text, expected) in texts.lines().zip(expected.lines()) {
        let reply = request(&mut gateway, "texts", text).await.unwrap();
        assert_eq!(response(&reply), expected, "{text}");
    }
    let refused = told(node, "texts", r#"{"text": " "}"#, "").await;
    assert!(refused.contains("no word in the text"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ensemble_sample_says_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    judged(&Start::new(&dir.path().join("data")).start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ensemble_sample_says_it_on_redis_too() {
    let redis = Server::start(ALWAYS);
    let dir = tempfile::tempdir().unwrap();
    judged(&on_redis(dir.path(), &redis).start()).await;
}

/// One Swarm an outcome. `right` hears only what is meant for it.
fn outcomes(missing: &str, more: &str) -> String {
    format!(
        "
name: {missing}
bees:
  - {{ name: left, bee: pass, module: test-bees, input: {{ gateway: {missing} }} }}
  - {{ name: right, bee: pass, module: test-bees, input: {{ gateway: {missing}, when: {{ header: to, is: both }} }} }}
  - name: both
    module: test-bees
    partitions: 1
    input: {{ join: [left, right], missing: {missing}, {more} }}
"
    )
}

async fn missed(node: &Node) {
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    for missing in ["fail", "partial", "drop"] {
        apply(&mut keeper, &outcomes(missing, "within: 300ms")).await.unwrap();
    }
    let asked = Instant::now();
    for (subject, alone) in [
        ("fail", "nothing came from `right`"),
        ("partial", "left=hello"),
        ("drop", "no-response"),
    ] {
        assert_eq!(told(node, subject, "hello", "both").await, "left=hello right=hello");
        let got = told(node, subject, "hello", "left").await;
        assert!(got.contains(alone), "{subject}: {got}");
        // The part is a dead letter where that is the outcome, and gone in any case.
        let told = drained(&mut keeper, subject).await;
        let both = told.stages.iter().find(|s| s.name == "both").unwrap();
        let dead = u64::from(subject == "fail");
        assert_eq!((both.dead, both.timers, both.keys), (dead, 0, 0), "{both:?}");
    }
    assert!(asked.elapsed() < Duration::from_secs(30), "a deadline passed");

    // Of more that wait than may, those that waited longest end as if their time were over.
    let bounded = outcomes("fail", "within: 1h, pending: 3")
        .replace("fail\n", "bounded\n")
        .replace("gateway: fail", "gateway: bounded");
    apply(&mut keeper, &bounded).await.unwrap();
    for n in 0..10 {
        node.cli_ok(&["submit", "bounded", &n.to_string()]);
    }
    let until = Instant::now() + SOON;
    loop {
        let told = drained(&mut keeper, "bounded").await;
        let both = told.stages.iter().find(|s| s.name == "both").unwrap();
        if (both.dead, both.timers) == (7, 3) {
            break;
        }
        assert!(Instant::now() < until, "{both:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let letters = node.cli_ok(&["dlq", "bounded"]);
    assert!(letters.contains("join-incomplete"), "{letters}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_side_has_the_outcome_that_the_manifest_says() {
    let dir = tempfile::tempdir().unwrap();
    missed(&Start::new(&dir.path().join("data")).start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_side_has_that_outcome_on_redis_too() {
    let redis = Server::start(ALWAYS);
    let dir = tempfile::tempdir().unwrap();
    missed(&on_redis(dir.path(), &redis).start()).await;
}

/// On the durable path and in memory, in one branch and in several.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_is_left_to_answer_fails_at_once() {
    const ENDS: &str = "
name: ends
bees:
  - { name: a, bee: pass, module: test-bees, input: { gateway: ends } }
  - { name: b, bee: pass, module: test-bees, input: { bee: a } }
  - { name: c, bee: tally, module: test-bees, input: { bee: a }, key: json:/k, state: true }
  - { name: d, bee: pass, module: test-bees, input: { gateway: ends } }
---
name: light
bees:
  - { name: a, bee: pass, module: test-bees, input: { gateway: light } }
  - { name: b, bee: pass, module: test-bees, input: { bee: a } }
  - { name: c, bee: pass, module: test-bees, input: { bee: a } }
---
name: answered
bees:
  - { name: a, bee: pass, module: test-bees, input: { gateway: answered } }
  - { name: b, bee: echo, module: test-bees, input: { bee: a } }
  - { name: c, bee: echo, module: test-bees, input: { bee: a } }
  - { name: d, bee: pass, module: test-bees, input: { bee: a } }
";
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    for manifest in ENDS.split("---") {
        apply(&mut keeper, manifest).await.unwrap();
    }
    for subject in ["ends", "light"] {
        for _ in 0..20 {
            let asked = Instant::now();
            let got = told(&node, subject, r#"{"k": 1}"#, "").await;
            assert!(got.contains("no-response"), "{subject}: {got}");
            assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        }
    }
    for _ in 0..20 {
        assert_eq!(told(&node, "answered", "yes", "").await, "yes");
    }
    let graph = node.cli_ok(&["describe", "ends", "--graph", "mermaid"]);
    assert_eq!(graph.matches("-->").count(), 4, "{graph}");
    let svg = node.cli_ok(&["describe", "ends", "--graph", "svg"]);
    assert!(svg.starts_with("<svg") && svg.contains(">ends</text>"), "{svg}");
}

/// As `kills.rs` has it, with a join in the middle: what was acknowledged met its other sides exactly once.
const LEDGER: &str = "
name: ledger
bees:
  - { name: left, bee: pass, module: test-bees, input: { gateway: ledger }, retry: { crashes: 1000 } }
  - { name: right, bee: pass, module: test-bees, input: { bee: left }, retry: { crashes: 1000 } }
  - name: both
    module: test-bees
    input: { join: [left, right, { gateway: ledger }], within: 1h }
    retry: { crashes: 1000 }
  - { name: effect, module: test-bees, input: { bee: both }, key: message, state: true, retry: { crashes: 1000 } }
";

/// A stream into the Swarm `ledger` while its node is killed again and again; returns the last node, drained, and how many messages
/// there were.
pub async fn killed(manifest: &str, rounds: u64, start: impl Fn(u16) -> Node) -> (Node, u64) {
    assert_eq!(SESSION.len(), 16);
    let node = start(0);
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    apply(&mut keeper, manifest).await.unwrap();
    let port = node.port();
    let mut node = Some(node);
    let (mut durable, mut sent) = (0, 0);
    for round in 0..rounds {
        let up = node.take().unwrap_or_else(|| start(port));
        let mut gateway = up.gateway().await;
        let to = durable + 1_500;
        sent = sent.max(to);
        let pause = Duration::from_millis(20 + 37 * round % 400);
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(pause);
            up.kill();
        });
        stream(&mut gateway, durable + 1, to, &mut durable).await;
        killer.await.unwrap();
    }
    let node = start(port);
    // What the last kills cut off comes once more, in the same session.
    let mut gateway = node.gateway().await;
    while durable < sent {
        let from = durable + 1;
        stream(&mut gateway, from, sent, &mut durable).await;
    }
    drained(&mut node.keeper().await, "ledger").await;
    (node, sent)
}

async fn joined(rounds: u64, start: impl Fn(u16) -> Node) {
    let (node, sent) = killed(LEDGER, rounds, start).await;
    let mut keeper = node.keeper().await;
    let told = drained(&mut keeper, "ledger").await;
    for stage in &told.stages {
        assert_eq!((stage.dead, stage.timers), (0, 0), "{stage:?}");
    }
    let both = told.stages.iter().find(|s| s.name == "both").unwrap();
    assert_eq!(both.keys, 0, "nothing waits: {both:?}");
    for i in 1..=sent {
        let id: serde_json::Value = serde_json::from_slice(&message(i).payload).unwrap();
        let id = id["id"].as_str().unwrap();
        let times = state(&mut keeper, "ledger", "effect", id).await.remove("times");
        assert_eq!(times.as_deref(), Some("1"), "message {i} of {sent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_survives_kills_and_brings_each_together_once() {
    let dir = tempfile::tempdir().unwrap();
    joined(8, |port| {
        Start {
            port,
            ..Start::new(dir.path())
        }
        .start()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_survives_kills_on_redis_too() {
    let redis = Server::start(ALWAYS);
    let dir = tempfile::tempdir().unwrap();
    joined(4, |port| {
        let start = on_redis(dir.path(), &redis);
        Start { port, ..start }.start()
    })
    .await;
}
