//! A message that kills the node that runs it. No count in memory survives that, so an attempt mark is made durable first.

use std::time::Instant;

use skep_proto::v1;

use crate::node::{Node, SOON, Start, apply, drained, push, state, test_bees};

const SWARM: &str = "
name: poison
bees:
  - name: effect
    module: test-bees
    input: { gateway: poison }
    key: message
    state: true
    partitions: 1
";

/// One frame with the poison in the middle of it; whether it was acknowledged.
async fn submit(node: &Node, words: &[&str]) -> bool {
    let messages = words.iter().map(|word| v1::OutMessage {
        payload: (*word).to_owned().into(),
        key: Some((*word).to_owned()),
        ..v1::OutMessage::default()
    });
    let frame = v1::SubmitFrame {
        subject: "poison".to_owned(),
        session: vec![7; 16].into(),
        first: 1,
        messages: messages.collect(),
        traceparent: None,
    };
    let stream = tokio_stream::iter([frame]);
    // The node may die before it answers.
    let Ok(acks) = node.gateway().await.submit_stream(stream).await else {
        return false;
    };
    let mut acks = acks.into_inner();
    let Ok(Some(ack)) = acks.message().await else {
        return false;
    };
    assert_eq!(ack.durable, words.len() as u64, "{ack:?}");
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_its_node_is_set_aside_after_three_crashes_and_its_neighbours_take_effect_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    apply(&mut keeper, SWARM).await.expect("apply");
    drop(keeper);
    assert!(node.stop().success());

    let words = ["a", "b", "bomb", "c", "d"];
    let start = || Start::new(dir.path()).env("SKEP_FAILPOINT", "input-bomb=abort");
    let (mut acked, mut deaths) = (false, 0);
    let until = Instant::now() + 4 * SOON;
    let node = loop {
        assert!(Instant::now() < until, "it is never set aside");
        // A node that dies while it starts has met the message already.
        let Ok(mut node) = start().try_start() else {
            deaths += 1;
            continue;
        };
        // The session is the same: what was appended is recognised.
        acked = acked || submit(&node, &words).await;
        let mut lived = true;
        while Instant::now() < until {
            if node.wait_for_end(std::time::Duration::from_millis(50)) {
                lived = false;
                break;
            }
            let letters = node.cli(&["dlq", "poison", "-o", "json"]);
            if letters.status.success() && String::from_utf8_lossy(&letters.stdout).contains("crash") {
                break;
            }
        }
        if lived {
            break node;
        }
        deaths += 1;
    };
    // The first may have come before the message was durable.
    assert!((3..=4).contains(&deaths), "{deaths} deaths");
    let mut keeper = node.keeper().await;
    drained(&mut keeper, "poison").await;
    for word in ["a", "b", "c", "d"] {
        let times = state(&mut keeper, "poison", "effect", word).await.remove("times");
        assert_eq!(times.as_deref(), Some("1"), "{word}");
    }
    assert!(state(&mut keeper, "poison", "effect", "bomb").await.is_empty());
    drop(keeper);
    assert!(node.stop().success());
}
