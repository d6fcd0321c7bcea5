//! kill -9 in the middle of everything. Every acknowledged submit has taken effect exactly once: checked message by message by
//! effect id, by the order of each key, and by keyed sums.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::node::{Node, SOON, Start, apply, drained, hello_world, push, state, test_bees, upload};

/// Nodes are killed so often here, and so soon after their start, that the message which happens to be alone then would be blamed.
pub const LEDGER: &str = "
name: ledger
bees:
  - name: ledger
    module: test-bees
    input: { gateway: ledger }
    key: json:/key
    state: true
    batch: { messages: 32 }
    retry: { crashes: 1000 }
  - name: effect
    module: test-bees
    input: { bee: ledger }
    key: message
    state: true
    batch: { messages: 64 }
    retry: { crashes: 1000 }
";

const KEYS: usize = 5;
pub const SESSION: [u8; 16] = [42; 16];

/// The `i`th message of the whole stream, from 1: entry `n` of its key.
fn entry(i: u64) -> (String, u64, String) {
    let key = format!("k{}", i % KEYS as u64);
    let n = (i - 1) / KEYS as u64 + 1;
    (key, n, format!("e{i}"))
}

pub fn message(i: u64) -> v1::OutMessage {
    let (key, n, id) = entry(i);
    v1::OutMessage {
        payload: serde_json::json!({ "key": key, "n": n, "id": id }).to_string().into(),
        ..v1::OutMessage::default()
    }
}

/// Streams messages from `from` on until the node dies, or until `to` is durable. Returns the last durable sequence.
pub async fn stream(gateway: &mut GatewayClient<Channel>, from: u64, to: u64, durable: &mut u64) {
    let (tx, rx) = mpsc::channel(64);
    let feeder = tokio::spawn(async move {
        let mut i = from;
        while i <= to {
            let until = (i + 16).min(to + 1);
            let frame = v1::SubmitFrame {
                subject: if i == from { "ledger".to_owned() } else { String::new() },
                session: if i == from {
                    SESSION.to_vec().into()
                } else {
                    Vec::new().into()
                },
                first: i,
                messages: (i..until).map(message).collect(),
                traceparent: None,
            };
            if tx.send(frame).await.is_err() {
                return;
            }
            i = until;
        }
    });
    let acks = gateway
        .submit_stream(tokio_stream::wrappers::ReceiverStream::new(rx))
        .await;
    if let Ok(acks) = acks {
        let mut acks = acks.into_inner();
        while let Ok(Some(ack)) = acks.message().await {
            assert!(ack.durable <= to, "durable {} of {to}", ack.durable);
            *durable = (*durable).max(ack.durable);
            if let Some(failure) = ack.failure {
                // A full inbox sheds, and a store may be away: the client resumes from the last durable message.
                let known = [tonic::Code::ResourceExhausted, tonic::Code::Unavailable];
                assert!(known.map(i32::from).contains(&failure.code), "{failure:?}");
                break;
            }
            if *durable == to {
                break;
            }
        }
    }
    feeder.abort();
}

pub async fn prepare(node: &Node) {
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    apply(&mut keeper, LEDGER).await.expect("apply");
}

/// Every message up to `sent` took effect exactly once; none above `sent` did.
pub async fn check(node: &Node, acked: u64, sent: u64) -> u64 {
    let mut keeper = node.keeper().await;
    let told = drained(&mut keeper, "ledger").await;
    let dead: u64 = told.stages.iter().map(|s| s.dead).sum();
    if dead > 0 {
        // The first refusals tell where it began.
        let call = v1::ListDeadLettersRequest {
            swarm: "ledger".to_owned(),
            limit: 12,
            ..v1::ListDeadLettersRequest::default()
        };
        let letters = keeper
            .list_dead_letters(call)
            .await
            .expect("dead letters")
            .into_inner()
            .letters;
        let first: Vec<_> = letters.iter().map(|letter| (letter.at_ms, &letter.detail)).collect();
        panic!("lost, repeated or swapped: {first:?} {:?}", told.stages);
    }
    let mut last = 0;
    for i in 1..=sent {
        let (_, _, id) = entry(i);
        let times = state(&mut keeper, "ledger", "effect", &id).await.remove("times");
        match times.as_deref() {
            Some("1") => {
                assert_eq!(last, i - 1, "message {i} took effect and {} did not", last + 1);
                last = i;
            }
            None => assert!(i > acked, "message {i} was acknowledged (up to {acked}) and is lost"),
            Some(more) => panic!("message {i} took effect {more} times"),
        }
    }
    let mut expected = BTreeMap::<String, (u64, u64)>::new();
    for i in 1..=last {
        let (key, n, _) = entry(i);
        let e = expected.entry(key).or_default();
        *e = (n, e.1 + n);
    }
    for (key, (n, sum)) in expected {
        let values = state(&mut keeper, "ledger", "ledger", &key).await;
        assert_eq!(values["last"], n.to_string(), "{key}");
        assert_eq!(values["sum"], sum.to_string(), "{key}");
    }
    last
}

/// At least 20 kills, each at another moment of a running stream: while receiving, processing and committing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_submit_takes_effect_exactly_once_whenever_the_node_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    prepare(&node).await;
    let port = node.port();
    let mut node = Some(node);
    let rounds: u64 = std::env::var("SKEP_TEST_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    let (mut durable, mut sent) = (0, 0);
    for round in 0..rounds {
        let up = match node.take() {
            Some(node) => node,
            None => Start {
                port,
                ..Start::new(dir.path())
            }
            .start(),
        };
        let mut gateway = up.gateway().await;
        let to = durable + 4_000;
        sent = sent.max(to);
        // 3 to 200 ms: from before the first append to the middle of the work. Not random, so that a failure repeats.
        let pause = Duration::from_millis(3 + round * round % 197);
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(pause);
            up.kill();
        });
        stream(&mut gateway, durable + 1, to, &mut durable).await;
        killer.await.unwrap();
    }
    let last = Start {
        port,
        ..Start::new(dir.path())
    }
    .start();
    let applied = check(&last, durable, sent).await;
    // The same session goes on where it stopped; what was appended and not acknowledged is recognised.
    let mut gateway = last.gateway().await;
    let to = sent + 100;
    while durable < to {
        let from = durable + 1;
        stream(&mut gateway, from, to, &mut durable).await;
    }
    assert_eq!(check(&last, to, to).await, to);
    assert!(durable >= applied);
    assert!(last.stop().success());
}

/// Ends itself at named points: before a transaction is applied, between apply and flush, between flush and acknowledgement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_each_named_point_of_a_commit_loses_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    prepare(&node).await;
    let port = node.port();
    assert!(node.stop().success());
    let (mut durable, mut sent) = (0, 0);
    // How often each is passed differs: once a publish, an operation, a flush. Starting up passes some of them already.
    for (point, hits) in [
        ("inside-publish", [1, 3]),
        ("before-apply", [40, 200]),
        ("after-apply-before-flush", [3, 9]),
        ("after-flush-before-ack", [3, 9]),
    ] {
        for hit in hits {
            let spec = format!("{point}=abort@{hit}");
            let mut node = Start {
                port,
                ..Start::new(dir.path())
            }
            .env("SKEP_FAILPOINT", spec)
            .start();
            let mut gateway = node.gateway().await;
            let to = durable + 20_000;
            sent = sent.max(to);
            let until = Instant::now() + SOON;
            while !node.wait_for_end(Duration::from_millis(1)) {
                assert!(Instant::now() < until, "failpoint {point} was not reached");
                let from = durable + 1;
                stream(&mut gateway, from, to, &mut durable).await;
                if durable == to {
                    assert!(node.wait_for_end(SOON), "failpoint {point} was not reached");
                }
            }
        }
        // A third death in a row would be blamed on the message that was alone each time.
        let node = Start {
            port,
            ..Start::new(dir.path())
        }
        .start();
        drained(&mut node.keeper().await, "ledger").await;
        assert!(node.stop().success());
    }
    let node = Start {
        port,
        ..Start::new(dir.path())
    }
    .start();
    check(&node, durable, sent).await;
}

/// An orderly stop that dies after its last word and before the log is folded into the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_the_store_closes_loses_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    prepare(&node).await;
    let port = node.port();
    assert!(node.stop().success());
    let mut durable = 0;
    for to in [2_000, 4_000] {
        let node = Start {
            port,
            ..Start::new(dir.path())
        }
        .env("SKEP_FAILPOINT", "in-checkpoint=abort")
        .start();
        let mut gateway = node.gateway().await;
        while durable < to {
            let from = durable + 1;
            stream(&mut gateway, from, to, &mut durable).await;
        }
        assert!(!node.stop().success(), "the failpoint was not reached");
    }
    let node = Start {
        port,
        ..Start::new(dir.path())
    }
    .start();
    assert_eq!(check(&node, durable, durable).await, durable);
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_cut_by_a_kill_leaves_nothing_and_what_was_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new(dir.path()).start();
    let port = node.port();
    push(&mut node.keeper().await, "hello", "v1", hello_world())
        .await
        .expect("push");
    for round in 0..4u64 {
        let mut keeper = node.keeper().await;
        let (tx, rx) = mpsc::channel(1);
        let parts = upload("test-bees", "v1", test_bees(), test_bees().len() as u64, "");
        let whole = round == 3;
        let feeder = tokio::spawn(async move {
            for part in parts.into_iter().take(if whole { usize::MAX } else { 1 }) {
                if tx.send(part).await.is_err() {
                    return;
                }
            }
            if !whole {
                // Held open: the node waits for the rest when it dies.
                tokio::time::sleep(SOON).await;
            }
        });
        let call = tokio::spawn(async move {
            keeper
                .push_module(tokio_stream::wrappers::ReceiverStream::new(rx))
                .await
        });
        tokio::time::sleep(Duration::from_millis(20 + 40 * round)).await;
        node.kill();
        feeder.abort();
        let _ = call.await;
        node = Start {
            port,
            ..Start::new(dir.path())
        }
        .start();
        let modules = node
            .keeper()
            .await
            .list_modules(v1::ListModulesRequest {})
            .await
            .unwrap()
            .into_inner()
            .modules;
        assert!(modules.iter().any(|m| m.name == "hello"), "{modules:?}");
        if !whole {
            assert_eq!(modules.len(), 1, "{modules:?}");
        }
    }
    // Whatever the last kill left, the same push again makes it whole.
    push(&mut node.keeper().await, "test-bees", "v1", test_bees())
        .await
        .expect("push again");
    apply(
        &mut node.keeper().await,
        LEDGER.replace("module: test-bees", "module: test-bees:v1").as_str(),
    )
    .await
    .expect("apply");
}
