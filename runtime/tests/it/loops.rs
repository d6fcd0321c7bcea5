//! Loops against real nodes: the sample, how often a message goes round, kills meanwhile, and the end of a removed circle.

use std::time::Instant;

use crate::joins::{killed, on_redis, told};
use crate::kills::message;
use crate::node::{Node, SOON, Start, apply, drained, push, refine, request, response, root, state, test_bees};
use crate::redis_server::{ALWAYS, Server};

async fn refined(node: &Node) {
    let mut keeper = node.keeper().await;
    push(&mut keeper, "refine", "latest", refine()).await.unwrap();
    let sample = root().join("samples/refine");
    let read = |name: &str| std::fs::read_to_string(sample.join(name)).unwrap();
    apply(&mut keeper, &read("swarm.yaml")).await.unwrap();
    let mut gateway = node.gateway().await;
    let (asked, expected) = (read("questions.jsonl"), read("expected.jsonl"));
    assert_eq!(asked.lines().count(), expected.lines().count());
    for (asked, expected) in asked.lines().zip(expected.lines()) {
        let reply = request(&mut gateway, "roots", asked).await.unwrap();
        assert_eq!(response(&reply), expected, "{asked}");
    }
    let never = r#"{"of": 2, "within": 0}"#;
    let failed = told(node, "roots", never, "").await;
    assert!(failed.contains("loop-bound") && failed.contains("20 times"), "{failed}");
    // A submit takes the durable path, where the same becomes a dead letter.
    node.cli_ok(&["submit", "roots", never]);
    let until = Instant::now() + SOON;
    while !node.cli_ok(&["dlq", "refine"]).contains("loop-bound") {
        assert!(Instant::now() < until, "no dead letter");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let shown = node.cli_ok(&["describe", "refine"]);
    assert!(shown.contains("bee judge.again loop 20"), "{shown}");
    let graph = node.cli_ok(&["describe", "refine", "--graph", "mermaid"]);
    assert!(graph.contains("-.->|\"again loop 20\"|"), "{graph}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_refine_sample_says_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    refined(&Start::new(&dir.path().join("data")).start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_refine_sample_says_it_on_redis_too() {
    let redis = Server::start(ALWAYS);
    let dir = tempfile::tempdir().unwrap();
    refined(&on_redis(dir.path(), &redis).start()).await;
}

const LEDGER: &str = "
name: ledger
bees:
  - name: round
    module: test-bees
    input: [{ gateway: ledger }, { bee: back, loop: 3 }]
    key: json:/id
    state: true
    batch: { messages: 32 }
    retry: { crashes: 1000 }
  - name: back
    bee: pass
    module: test-bees
    input: { bee: round }
    batch: { messages: 32 }
    dead_letters: { messages: 100000 }
    retry: { crashes: 1000 }
";

async fn counted(rounds: u64, start: impl Fn(u16) -> Node) {
    let (node, sent) = killed(LEDGER, rounds, start).await;
    let mut keeper = node.keeper().await;
    let told = drained(&mut keeper, "ledger").await;
    let dead: Vec<u64> = told.stages.iter().map(|s| s.dead).collect();
    assert_eq!(dead, [0, sent], "each ends at its bound, once");
    for i in 1..=sent {
        let id: serde_json::Value = serde_json::from_slice(&message(i).payload).unwrap();
        let id = id["id"].as_str().unwrap();
        let times = state(&mut keeper, "ledger", "round", id).await.remove("times");
        assert_eq!(
            times.as_deref(),
            Some("4"),
            "message {i} of {sent}: when it came, and three times round"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_goes_round_exactly_as_often_as_said_whatever_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    counted(5, |port| {
        Start {
            port,
            ..Start::new(dir.path())
        }
        .start()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_on_redis() {
    let redis = Server::start(ALWAYS);
    let dir = tempfile::tempdir().unwrap();
    counted(3, |port| {
        let start = on_redis(dir.path(), &redis);
        Start { port, ..start }.start()
    })
    .await;
}

/// Its stages write to each other, so none can wait until nobody has its address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_that_is_removed_works_off_what_goes_round_and_goes() {
    const CIRCLE: &str = "
  - { name: head, bee: pass, module: test-bees, input: [{ gateway: circle }, { bee: tail, loop: 20 }, { bee: head, output: x, loop: 2 }] }
  - { name: tail, bee: pass, module: test-bees, input: { bee: head }, dead_letters: { messages: 100000 } }
";
    let rest = "name: circle\nbees:\n  - { name: other, bee: pass, module: test-bees, input: { gateway: other } }\n";
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    apply(&mut keeper, &format!("{rest}{CIRCLE}")).await.unwrap();
    let lines: String = (0..300).map(|n| format!("{n}\n")).collect();
    let file = dir.path().join("lines");
    std::fs::write(&file, lines).unwrap();
    node.cli_ok(&["submit", "circle", "--file", file.to_str().unwrap()]);
    apply(&mut keeper, rest).await.unwrap();
    let until = Instant::now() + SOON;
    loop {
        let letters = node.cli_ok(&["dlq", "circle", "export", "--reason", "loop-bound"]);
        if letters.lines().count() == 300 {
            assert!(letters.contains("20 times"), "{letters}");
            break;
        }
        assert!(Instant::now() < until, "what went round is lost: {letters}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    node.cli_ok(&["dlq", "circle", "discard", "--all"]);
    // Gone, it is forgotten: the same names may begin anew, in another shape.
    let anew = format!("{rest}{CIRCLE}").replace("bee: pass", "bee: pass, partitions: 3");
    let until = Instant::now() + SOON;
    while let Err(e) = apply(&mut keeper, &anew.replacen(", partitions: 3", "", 1)).await {
        assert!(
            e.code() == tonic::Code::FailedPrecondition && Instant::now() < until,
            "{e}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
