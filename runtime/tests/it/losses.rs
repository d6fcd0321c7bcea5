//! Nothing that a user may want is lost without being asked for: applies and deletions that would lose state are refused or
//! withdrawn, and the Swarm serves on.

use std::time::{Duration, Instant};

use skep_proto::v1;
use tonic::Code;

use crate::lifecycle::{delete, messages, node_with_bees, quiet, submit, summary};
use crate::node::{SOON, Start, apply, drained, request, state};

const COUNTING: &str = "
name: counting
bees:
  - { name: echo, module: test-bees, input: { gateway: echo } }
  - { name: effect, module: test-bees, input: { gateway: counting }, key: message, state: true }
";

const WITHOUT: &str = "
name: counting
bees:
  - { name: echo, module: test-bees, input: { gateway: echo } }
";

async fn apply_as(
    node: &crate::node::Node,
    manifest: &str,
    dry_run: bool,
    discard_state: bool,
) -> Result<v1::ApplySwarmReply, tonic::Status> {
    let call = v1::ApplySwarmRequest {
        manifest: manifest.to_owned(),
        dry_run,
        discard_state,
        rescale: false,
        ..v1::ApplySwarmRequest::default()
    };
    let mut keeper = node.keeper().await;
    keeper.apply_swarm(call).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apply_that_loses_state_is_shown_refused_and_taken_when_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    apply(&mut keeper, COUNTING).await.unwrap();
    // Without state there is nothing to lose.
    apply(&mut keeper, WITHOUT).await.unwrap();
    let until = Instant::now() + SOON;
    while apply(&mut keeper, COUNTING).await.is_err() {
        assert!(Instant::now() < until, "the removed stage does not drain");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    submit(&mut node.gateway().await, "counting", &messages(0, 3, "x")).await;
    drained(&mut keeper, "counting").await;

    let plan = apply_as(&node, WITHOUT, true, false).await.unwrap();
    assert_eq!((plan.lost_state.len(), plan.lost_state[0].keys), (1, 3), "{plan:?}");
    assert!(
        plan.changes
            .iter()
            .any(|c| c.what == "stage effect: its state" && c.before == "3 keys")
    );
    let refused = apply_as(&node, WITHOUT, false, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    for word in ["`effect`", "3 keys", "--discard-state"] {
        assert!(refused.message().contains(word), "{word}: {refused}");
    }
    assert_eq!(state(&mut keeper, "counting", "effect", "k1").await["times"], "1");
    assert_eq!(
        request(&mut node.gateway().await, "echo", "x").await.is_ok(),
        summary(&mut keeper, "counting").await.is_some()
    );

    // By hand, as in a pipeline: stdin is no terminal and the manifest comes through it.
    let manifest = dir.path().join("without.yaml");
    std::fs::write(&manifest, WITHOUT).unwrap();
    let manifest = manifest.to_str().unwrap();
    let dry = node.cli_ok(&["apply", manifest, "--dry-run"]);
    assert!(
        dry.contains("- stage effect: its state: 3 keys") && dry.contains("--discard-state"),
        "{dry}"
    );
    let refused = node.cli(&["apply", manifest, "--yes"]);
    assert_eq!(
        refused.status.code(),
        Some(5),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
    node.cli_ok(&["apply", manifest, "--discard-state"]);
    quiet(&mut keeper, "counting").await;
    // It is gone once it is drained: what comes by the same name begins anew.
    for wait in 1.. {
        tokio::time::sleep(Duration::from_millis(400 * wait)).await;
        apply(&mut keeper, COUNTING).await.unwrap();
        if state(&mut keeper, "counting", "effect", "k1").await.is_empty() {
            break;
        }
        assert!(wait < 12, "the state is still there");
        apply_as(&node, WITHOUT, false, true).await.unwrap();
    }
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_would_lose_state_leaves_the_swarm_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    apply(&mut keeper, COUNTING).await.unwrap();
    submit(&mut node.gateway().await, "counting", &messages(0, 2, "x")).await;
    drained(&mut keeper, "counting").await;
    let told = delete(&mut keeper, "counting", 10_000, false).await.unwrap();
    assert!(!told.done && told.note.contains("the state of 2 keys"), "{told:?}");
    let by_hand = node.cli(&["delete", "counting", "-o", "json"]);
    assert_eq!(by_hand.status.code(), Some(5));
    let error: serde_json::Value = serde_json::from_slice(&by_hand.stderr).unwrap();
    assert_eq!(error["error"]["code"], "conflict");
    assert!(
        error["error"]["remedy"]
            .as_str()
            .unwrap()
            .contains("skep delete counting --discard"),
        "{error}"
    );
    assert_eq!(summary(&mut keeper, "counting").await.unwrap().status, "running");
    submit(&mut node.gateway().await, "counting", &messages(0, 1, "x")).await;
    drained(&mut keeper, "counting").await;
    assert_eq!(state(&mut keeper, "counting", "effect", "k0").await["times"], "2");
    let told = delete(&mut keeper, "counting", 10_000, true).await.unwrap();
    assert!(told.done && told.note.contains("the state of 2 keys"), "{told:?}");
    assert!(summary(&mut keeper, "counting").await.is_none());
}

const SLOW: &str = "
name: slow
bees:
  - { name: rascal, module: test-bees, input: { gateway: slow }, batch: { messages: 1 }, partitions: 1 }
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_runs_out_of_time_or_is_killed_is_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    apply(&mut keeper, SLOW).await.unwrap();
    let mut gateway = node.gateway().await;
    submit(&mut gateway, "slow", &messages(0, 20, "slow")).await;
    let (mut other, mut third) = (node.keeper().await, node.gateway().await);
    let going = tokio::spawn(async move { delete(&mut other, "slow", 1_000, false).await });
    // While it drains it takes no input: a program may try again, a person is told to look.
    let until = Instant::now() + SOON;
    loop {
        match request(&mut third, "slow", "x").await {
            Err(refused) if refused.code() == Code::Unavailable => break,
            other => assert!(Instant::now() < until, "{other:?}"),
        }
    }
    let by_hand = node.cli(&["submit", "slow", "x"]);
    assert_eq!(
        by_hand.status.code(),
        Some(5),
        "{}",
        String::from_utf8_lossy(&by_hand.stderr)
    );
    let refused = apply(&mut keeper, SLOW).await.unwrap_err();
    assert!(refused.message().contains("being deleted"), "{refused}");
    let told = going.await.unwrap().unwrap();
    assert!(!told.done && told.note.contains("serves on"), "{told:?}");
    assert_eq!(summary(&mut keeper, "slow").await.unwrap().status, "running");
    submit(&mut gateway, "slow", &messages(0, 1, "fine")).await;

    // Killed while it drains: it was not deleted, so it serves again after the start.
    submit(&mut gateway, "slow", &messages(0, 20, "slow")).await;
    let mut other = node.keeper().await;
    let going = tokio::spawn(async move { delete(&mut other, "slow", 60_000, false).await });
    let until = Instant::now() + SOON;
    while summary(&mut keeper, "slow").await.unwrap().status != "deleting" {
        assert!(Instant::now() < until, "the deletion does not begin");
    }
    node.kill();
    assert!(going.await.unwrap().is_err());
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    assert_eq!(summary(&mut keeper, "slow").await.unwrap().status, "running");
    submit(&mut node.gateway().await, "slow", &messages(0, 1, "fine")).await;
    let told = delete(&mut keeper, "slow", 60_000, false).await.unwrap();
    assert!(told.done, "{told:?}");
    assert!(node.stop().success());
}
