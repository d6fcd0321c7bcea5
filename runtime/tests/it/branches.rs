//! Conditions in the manifest, against real nodes: what a branch takes, what skips, what exits, and what nobody takes.

use std::time::Duration;

use skep_proto::v1;

use crate::node::{Node, Start, apply, drained, fraud_scoring, push, request, response, root, test_bees};
use crate::redis_server::{ALWAYS, Server};

async fn scored(node: &Node) {
    let mut keeper = node.keeper().await;
    push(&mut keeper, "fraud-scoring", "latest", fraud_scoring())
        .await
        .unwrap();
    let sample = root().join("samples/fraud-scoring");
    let read = |name: &str| std::fs::read_to_string(sample.join(name)).unwrap();
    apply(&mut keeper, &read("swarm.yaml")).await.unwrap();
    let mut gateway = node.gateway().await;
    let (payments, expected) = (read("payments.jsonl"), read("expected.jsonl"));
    assert_eq!(payments.lines().count(), expected.lines().count());
    for (payment, expected) in payments.lines().zip(expected.lines()) {
        let reply = request(&mut gateway, "payments", payment).await.unwrap();
        assert_eq!(response(&reply), expected, "{payment}");
    }
    // One that its issuer vouches for is not scored: the card stays unknown, and the payment is approved.
    let call = v1::RequestCall {
        subject: "payments".to_owned(),
        payload: br#"{"card": "4444", "amount": 9000, "country": "IT", "at": 1}"#.to_vec().into(),
        headers: vec![v1::Header {
            name: "Issuer".to_owned(),
            value: "house".to_owned(),
        }],
        ..v1::RequestCall::default()
    };
    let reply = gateway.request(call).await.unwrap().into_inner();
    assert_eq!(response(&reply), r#"{"verdict":"approve","why":[]}"#);
    let told = drained(&mut keeper, "fraud-scoring").await;
    let of = |name: &str| told.stages.iter().find(|s| s.name == name).unwrap();
    assert_eq!((of("score").keys, of("score").dead), (3, 0));
    assert_eq!(
        (of("block").processed, of("review").processed, of("approve").processed),
        (1, 3, 5)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fraud_sample_says_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    scored(&node).await;
    let graph = node.cli_ok(&["describe", "fraud-scoring"]);
    assert!(graph.contains("choose json:/score at least 0.9"), "{graph}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_on_redis() {
    let redis = Server::start(ALWAYS);
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data"))
        .env("SKEP_BACKEND", redis.url())
        .env("SKEP_ARTIFACTS", dir.path().join("artifacts").to_str().unwrap())
        .start();
    scored(&node).await;
}

/// The door itself chooses: requests in memory, submits, and streams, whose messages lie in every inbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_door_lets_in_what_its_condition_holds_for() {
    const DOORS: &str = "
name: doors
bees:
  - { name: echo, module: test-bees, input: { gateway: door, when: { header: to, is: echo } } }
  - { name: tally, module: test-bees, input: { gateway: door, when: { json: /n, above: 10 } }, key: json:/n, state: true }
---
name: light
bees:
  - { name: echo, module: test-bees, input: { gateway: light, choose: { header: to, is: echo } } }
  - { name: pass, bee: echo, module: test-bees, input: { gateway: light, choose: { header: to, in: [echo, other] } } }
";
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    for manifest in DOORS.split("---") {
        apply(&mut keeper, manifest).await.unwrap();
    }
    let mut gateway = node.gateway().await;
    let to = |value: &str| {
        vec![v1::Header {
            name: "to".to_owned(),
            value: value.to_owned(),
        }]
    };
    for subject in ["door", "light"] {
        let call = |headers| v1::RequestCall {
            subject: subject.to_owned(),
            payload: b"{\"n\": 1}".to_vec().into(),
            headers,
            ..v1::RequestCall::default()
        };
        let reply = gateway.request(call(to("echo"))).await.unwrap().into_inner();
        assert_eq!(response(&reply), "{\"n\": 1}");
        // Nobody would answer: it is said at once, and not at the deadline.
        let asked = std::time::Instant::now();
        let refused = gateway.request(call(Vec::new())).await;
        let refused = match refused {
            Err(status) => format!("{status:?}"),
            Ok(reply) => format!("{:?}", reply.into_inner()),
        };
        assert!(
            refused.contains("no-branch") && refused.contains("otherwise"),
            "{refused}"
        );
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
    // Submitted: a file goes as a stream, one call as a call. What has no `n` has no key either, and needs none.
    let lines: String = (0..100).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    let file = dir.path().join("lines");
    std::fs::write(&file, lines + "no JSON\n").unwrap();
    node.cli_ok(&["submit", "door", "--file", file.to_str().unwrap()]);
    node.cli_ok(&["submit", "door", "{\"n\": 1000}"]);
    node.cli_ok(&["submit", "door", "{\"n\": 5}"]);
    let told = drained(&mut keeper, "doors").await;
    let tally = told.stages.iter().find(|s| s.name == "tally").unwrap();
    assert_eq!((tally.keys, tally.dead), (90, 0), "{told:?}");
    assert_eq!(told.stages[0].dead, 0);
}
