//! More than a Swarm can do: memory stays flat, what is refused is refused early and says when to come again, nothing that was accepted
//! is lost, and no subject starves another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use skep_client::{Gateway, Kind, Outcome};
use skep_proto::v1;

use crate::node::{Node, Start, apply, drained, push, state, test_bees};

/// The last stage does a hundred messages a second. What waits before it is bounded twice.
const SLOW: &str = "
name: slow
bees:
  - { name: pass, module: test-bees, input: { gateway: slow }, key: message, inbox: { messages: 200, bytes: 1MiB } }
  - name: plodder
    module: test-bees
    input: { bee: pass }
    key: message
    state: true
    inbox: { messages: 100, bytes: 1MiB }
    batch: { messages: 8 }
";
const INBOXES: u64 = 200 + 100;

const OTHERS: &[&str] = &[
    "
name: sleepy
bees:
  - { name: rascal, module: test-bees, input: { gateway: sleepy }, batch: { messages: 1 } }
",
    "
name: busy
bees:
  - { name: rascal, module: test-bees, input: { gateway: busy }, batch: { messages: 1 } }
",
    "
name: brisk
bees:
  - { name: echo, module: test-bees, input: { gateway: brisk } }
",
    "
name: kept
bees:
  - { name: effect, module: test-bees, input: { gateway: kept }, key: message, state: true }
",
];

async fn prepare(node: &Node, swarms: &[&str]) {
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    for swarm in swarms {
        apply(&mut keeper, swarm).await.expect("apply");
    }
}

fn resident(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_slow_last_stage_the_gateway_refuses_early_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    prepare(&node, &[SLOW]).await;
    let mut keeper = node.keeper().await;
    let warm = resident(&node);
    let (mut accepted, mut refused) = (0, 0);
    let mut gateway = node.gateway().await;
    let call = |i: u64| v1::SubmitCall {
        subject: "slow".to_owned(),
        messages: vec![v1::OutMessage {
            payload: vec![b'x'; 1_000].into(),
            key: Some(format!("k{}", i % 4)),
            ..v1::OutMessage::default()
        }],
        ..v1::SubmitCall::default()
    };
    for i in 0..3_000 {
        match gateway.submit(call(i)).await {
            Ok(_) => accepted += 1,
            Err(status) => {
                refused += 1;
                assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
                let said = |name: &str| status.metadata().get(name).map(|v| v.to_str().unwrap().to_owned());
                assert_eq!(said("skep-outcome").as_deref(), Some("not-done"));
                let pushback: u64 = said("grpc-retry-pushback-ms").expect("a hint").parse().unwrap();
                assert!(pushback > 0, "{status:?}");
            }
        }
        if i % 500 == 499 {
            let told = keeper
                .describe_swarm(v1::DescribeSwarmRequest {
                    name: "slow".to_owned(),
                    count_keys: false,
                })
                .await
                .unwrap();
            let unread: u64 = told.into_inner().stages.iter().map(|s| s.unread).sum();
            assert!(unread <= INBOXES + 256, "{unread} unread");
        }
    }
    assert!(refused > 0 && accepted >= 160, "{accepted} accepted, {refused} refused");
    let over_http = std::process::Command::new("curl")
        .args(["-s", "-i", "-d", "x", "-H", "skep-key: k0"])
        .arg(format!("{}/v1/slow:submit", node.url))
        .output();
    if let Ok(answer) = over_http {
        let text = String::from_utf8_lossy(&answer.stdout).to_ascii_lowercase();
        if text.starts_with("http/1.1 202") {
            accepted += 1;
        } else {
            assert!(
                text.starts_with("http/1.1 429") && text.contains("retry-after:"),
                "{text}"
            );
        }
    }
    let grown = resident(&node).saturating_sub(warm);
    assert!(grown < 128 << 20, "{grown} bytes more than before");
    drained(&mut keeper, "slow").await;
    let mut counted = 0;
    for key in 0..4 {
        let kept = state(&mut keeper, "slow", "plodder", &format!("k{key}")).await;
        counted += kept.get("count").map_or(0, |n| n.parse::<u64>().unwrap());
    }
    assert_eq!(
        counted, accepted,
        "what was accepted took effect once, what was refused did not"
    );
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooded_subject_leaves_others_their_share_of_places_threads_and_commits() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    prepare(&node, OTHERS).await;
    let gateway = Gateway::connect(node.url.clone()).await.unwrap();
    // As many calls as the node takes, and more: of Bees that sleep, and of Bees that compute until their time is over.
    let (done, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut flood = tokio::task::JoinSet::new();
    for (subject, payload, calls) in [("sleepy", "slow", 4_096), ("busy", "loop", 64)] {
        let stream = Gateway::connect(node.url.clone()).await.unwrap().requests();
        for _ in 0..calls {
            let call = stream.request(subject, payload).timeout(Duration::from_secs(60));
            let (done, refused) = (Arc::clone(&done), Arc::clone(&refused));
            flood.spawn(async move {
                match call.await {
                    Err(e) if e.kind == Kind::Overloaded => {
                        assert_eq!(
                            (e.outcome, e.reason.as_str()),
                            (Outcome::NotDone, "subject-share"),
                            "{e}"
                        );
                        refused.fetch_add(1, Ordering::SeqCst);
                    }
                    _ => {
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    }
    while refused.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Counted in what the flood gets done meanwhile, not in time.
    let before = done.load(Ordering::SeqCst);
    for n in 0..50u32 {
        assert_eq!(
            gateway.request("brisk", n.to_string()).await.expect("in memory").text(),
            n.to_string()
        );
        let kept = gateway.request("kept", "").key("k").await.expect("durable");
        assert_eq!(kept.text(), (n + 1).to_string());
        gateway
            .submit("kept", [skep_client::Message::new("").key("other")])
            .await
            .expect("submit");
    }
    let meanwhile = done.load(Ordering::SeqCst) - before;
    assert!(
        meanwhile < 2_000,
        "150 calls of others waited for {meanwhile} of the flood"
    );
    flood.abort_all();
    while flood.join_next().await.is_some() {}
    assert!(node.stop().success());
}
