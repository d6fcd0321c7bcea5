//! Swarms that change, go and come back, with work under way, with kills in between, and with several operators at once.

use std::time::{Duration, Instant};

use skep_proto::v1;
use skep_proto::v1::beekeeper_client::BeekeeperClient;
use skep_proto::v1::gateway_client::GatewayClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::node::{Node, SOON, Start, apply, drained, push, request, response, state, test_bees};

pub async fn node_with_bees(dir: &std::path::Path) -> Node {
    let node = Start::new(dir).start();
    push(&mut node.keeper().await, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    node
}

/// `head` passes on to `count`, and with `slow` to a Bee that takes 200 ms for some messages.
fn chain(slow: bool) -> String {
    let mut text = "
name: chain
bees:
  - { name: head, module: test-bees, bee: pass, key: message, input: { gateway: chain } }
  - { name: count, module: test-bees, bee: effect, key: message, state: true, input: { bee: head } }
"
    .to_owned();
    if slow {
        text += "  - { name: slow, module: test-bees, bee: rascal, input: { bee: head }, batch: { messages: 1 }, partitions: 1 }\n";
    }
    text
}

pub async fn submit(gateway: &mut GatewayClient<Channel>, subject: &str, messages: &[(String, String)]) {
    let call = v1::SubmitCall {
        subject: subject.to_owned(),
        messages: messages
            .iter()
            .map(|(key, payload)| v1::OutMessage {
                payload: payload.clone().into(),
                key: Some(key.clone()),
                ..v1::OutMessage::default()
            })
            .collect(),
        ..v1::SubmitCall::default()
    };
    let accepted = gateway.submit(call).await.expect("submit").into_inner().accepted;
    assert_eq!(accepted, messages.len() as u64);
}

pub fn messages(from: usize, to: usize, payload: &str) -> Vec<(String, String)> {
    (from..to).map(|i| (format!("k{i}"), payload.to_owned())).collect()
}

pub async fn summary(keeper: &mut BeekeeperClient<Channel>, swarm: &str) -> Option<v1::SwarmSummary> {
    let swarms = keeper.list_swarms(v1::ListSwarmsRequest {}).await.expect("list");
    swarms.into_inner().swarms.into_iter().find(|s| s.name == swarm)
}

/// Until nothing of the Swarm is unread, removed stages included.
pub async fn quiet(keeper: &mut BeekeeperClient<Channel>, swarm: &str) {
    let until = Instant::now() + SOON;
    loop {
        let now = summary(keeper, swarm).await.expect("the Swarm");
        if now.unread == 0 {
            return;
        }
        assert!(Instant::now() < until, "{swarm} does not drain: {now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn delete(
    keeper: &mut BeekeeperClient<Channel>,
    name: &str,
    timeout_ms: u64,
    discard: bool,
) -> Result<v1::DeleteSwarmProgress, tonic::Status> {
    let call = v1::DeleteSwarmRequest {
        name: name.to_owned(),
        timeout_ms,
        discard,
    };
    let mut progress = keeper.delete_swarm(call).await?.into_inner();
    let mut last = None;
    while let Some(now) = progress.message().await? {
        last = Some(now);
    }
    Ok(last.expect("an end"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_goes_and_comes_back_under_load_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    apply(&mut keeper, &chain(true)).await.unwrap();
    let mut gateway = node.gateway().await;
    let feeder = tokio::spawn(async move {
        for batch in 0..60 {
            submit(&mut gateway, "chain", &messages(batch * 20, batch * 20 + 20, "x")).await;
        }
    });
    // Also the keyed one, whose state must be there when it is back.
    let without = "
name: chain
bees:
  - { name: head, module: test-bees, bee: pass, key: message, input: { gateway: chain } }
  - { name: other, module: test-bees, bee: echo, input: { bee: head } }
";
    let mut gone = 0;
    for _ in 0..6 {
        // With its state it may not go while another comes.
        let refused = apply(&mut keeper, without).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        apply(&mut keeper, &chain(false)).await.unwrap();
        apply(&mut keeper, &chain(true)).await.unwrap();
        gone += 1;
    }
    feeder.await.unwrap();
    assert_eq!(gone, 6);
    drained(&mut keeper, "chain").await;
    quiet(&mut keeper, "chain").await;
    for i in 0..1_200 {
        let values = state(&mut keeper, "chain", "count", &format!("k{i}")).await;
        assert_eq!(values.get("times").map(String::as_str), Some("1"), "k{i}");
    }
    let told = summary(&mut keeper, "chain").await.unwrap();
    assert_eq!((told.dead, told.revision), (0, 13), "{told:?}");

    // The inbox of one that comes back is the one that it had.
    let mut gateway = node.gateway().await;
    submit(&mut gateway, "chain", &messages(0, 8, "slow")).await;
    apply(&mut keeper, &chain(false)).await.unwrap();
    assert!(summary(&mut keeper, "chain").await.unwrap().unread > 0);
    let wider = chain(true).replace("partitions: 1 }", "partitions: 2 }");
    let refused = apply(&mut keeper, &wider).await.unwrap_err();
    assert!(refused.message().contains("still drains"), "{refused}");
    apply(&mut keeper, &chain(true)).await.unwrap();
    let told = drained(&mut keeper, "chain").await;
    let slow = told.stages.iter().find(|s| s.name == "slow").unwrap();
    assert_eq!(slow.failed, 0, "{slow:?}");
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_stage_goes_on_draining_after_a_restart_and_then_goes() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    // `mid` reads slowly and feeds `count`; without it `count` reads from the gateway alone.
    let with = "
name: relay
bees:
  - { name: mid, module: test-bees, bee: pass, key: message, input: { gateway: relay }, batch: { messages: 1 }, partitions: 1 }
  - { name: count, module: test-bees, bee: effect, key: message, state: true, input: [ { bee: mid }, { gateway: direct } ] }
";
    let without = "
name: relay
bees:
  - { name: count, module: test-bees, bee: effect, key: message, state: true, input: { gateway: direct } }
";
    apply(&mut keeper, with).await.unwrap();
    let mut gateway = node.gateway().await;
    submit(&mut gateway, "relay", &messages(0, 600, "x")).await;
    apply(&mut keeper, without).await.unwrap();
    let refused = request(&mut gateway, "relay", "x").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    // Its module is in use until it is drained.
    let call = v1::DeleteModuleRequest {
        name: "test-bees".to_owned(),
        tag: String::new(),
    };
    assert_eq!(
        keeper.delete_module(call).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    node.kill();

    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    quiet(&mut keeper, "relay").await;
    for i in 0..600 {
        let values = state(&mut keeper, "relay", "count", &format!("k{i}")).await;
        assert_eq!(values.get("times").map(String::as_str), Some("1"), "k{i}");
    }
    // Drained, it is forgotten: the same name may begin anew, in another shape.
    let anew = with.replace("partitions: 1", "partitions: 3");
    let until = Instant::now() + SOON;
    loop {
        match apply(&mut keeper, &anew).await {
            Ok(_) => break,
            Err(e) => assert!(e.code() == Code::FailedPrecondition && Instant::now() < until, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(node.stop().success());
}

const REJECTS: &str = "
name: rejects
bees:
  - { name: rejects, module: test-bees, bee: rascal, input: { gateway: rejects }, retry: { attempts: 1 } }
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_tells_what_remains_and_a_kill_ends_it_one_way_or_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    apply(&mut keeper, REJECTS).await.unwrap();
    let mut gateway = node.gateway().await;
    submit(&mut gateway, "rejects", &messages(0, 1, "reject")).await;
    quiet(&mut keeper, "rejects").await;
    // Dead letters keep it, and nothing is touched: it serves on.
    let told = delete(&mut keeper, "rejects", 10_000, false).await.unwrap();
    assert!(!told.done && told.note.contains("1 dead letter"), "{told:?}");
    assert!(told.note.contains("skep delete rejects --discard"), "{told:?}");
    apply(&mut keeper, REJECTS).await.unwrap();
    assert_eq!(summary(&mut keeper, "rejects").await.unwrap().status, "running");
    assert!(request(&mut gateway, "rejects", "fine").await.is_ok());

    // Two at once are one deletion, and the one that may discard decides.
    let mut other = node.keeper().await;
    let (a, b) = tokio::join!(
        delete(&mut keeper, "rejects", 10_000, true),
        delete(&mut other, "rejects", 10_000, true)
    );
    for told in [a, b] {
        match told {
            Ok(told) => assert!(told.done && told.note.contains("1 dead letter"), "{told:?}"),
            Err(e) => assert_eq!(e.code(), Code::NotFound, "{e}"),
        }
    }
    assert!(summary(&mut keeper, "rejects").await.is_none());

    // Killed at any moment of a deletion: it can always be finished.
    let port = node.port();
    let mut node = Some(node);
    for pause in [0, 1, 3, 6, 12] {
        let up = node.take().unwrap();
        let mut keeper = up.keeper().await;
        apply(&mut keeper, REJECTS).await.unwrap();
        let mut gateway = up.gateway().await;
        submit(&mut gateway, "rejects", &messages(0, 500, "reject")).await;
        quiet(&mut keeper, "rejects").await;
        let going = tokio::spawn(async move { delete(&mut keeper, "rejects", 10_000, true).await });
        tokio::time::sleep(Duration::from_millis(pause)).await;
        up.kill();
        let _ = going.await;
        let up = Start {
            port,
            ..Start::new(dir.path())
        }
        .start();
        let mut keeper = up.keeper().await;
        if let Some(there) = summary(&mut keeper, "rejects").await {
            // Not deleted, so withdrawn: nobody was told that it is gone.
            assert_eq!(there.status, "running");
            assert!(request(&mut up.gateway().await, "rejects", "fine").await.is_ok());
            let told = delete(&mut keeper, "rejects", 10_000, true).await.unwrap();
            assert!(told.done, "{told:?}");
        }
        assert!(summary(&mut keeper, "rejects").await.is_none());
        node = Some(up);
    }
    assert!(node.unwrap().stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_at_once_never_leave_half_of_anything() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let manifest = |name: &str, subject: &str| {
        format!("name: {name}\nbees:\n  - {{ name: echo, module: test-bees, input: {{ gateway: {subject} }} }}\n")
    };
    // One subject, two Swarms: exactly one wins.
    for round in 0..5 {
        let (mut a, mut b) = (node.keeper().await, node.keeper().await);
        let subject = format!("shared-{round}");
        let (first, second) = (
            manifest(&format!("first-{round}"), &subject),
            manifest(&format!("second-{round}"), &subject),
        );
        let (x, y) = tokio::join!(apply(&mut a, &first), apply(&mut b, &second));
        assert!(x.is_ok() != y.is_ok(), "{x:?} {y:?}");
        let lost = x.err().or(y.err()).unwrap();
        assert_eq!(lost.code(), Code::AlreadyExists, "{lost}");
        assert_eq!(
            response(&request(&mut node.gateway().await, &subject, "hi").await.unwrap()),
            "hi"
        );
    }
    // A revision of a Swarm that is not there.
    let mut keeper = node.keeper().await;
    let call = v1::ApplySwarmRequest {
        manifest: manifest("nobody", "nobody"),
        expect_revision: 3,
        ..v1::ApplySwarmRequest::default()
    };
    assert_eq!(keeper.apply_swarm(call).await.unwrap_err().code(), Code::Aborted);

    // Apply against delete: either the Swarm is there and runs, or it is not there.
    for round in 0..8u64 {
        apply(&mut keeper, &manifest("race", "race")).await.unwrap();
        let mut other = node.keeper().await;
        let config = format!(
            "name: race\nbees:\n  - name: echo\n    module: test-bees\n    input: {{ gateway: race }}\n    config: {{ round: \"{round}\" }}\n"
        );
        let (applied, deleted) = tokio::join!(apply(&mut keeper, &config), delete(&mut other, "race", 5_000, false));
        deleted.unwrap();
        if let Err(e) = applied {
            assert!(matches!(e.code(), Code::FailedPrecondition | Code::Aborted), "{e}");
        }
        let there = summary(&mut keeper, "race").await;
        let answer = request(&mut node.gateway().await, "race", "hi").await;
        assert_eq!(there.is_some(), answer.is_ok(), "{there:?} {answer:?}");
        if there.is_some() {
            delete(&mut keeper, "race", 5_000, false).await.unwrap();
        }
    }

    // An apply whose caller goes away takes effect whole, or not at all.
    for round in 0..6u64 {
        let name = format!("left-{round}");
        let text = manifest(&name, &name);
        let mut other = node.keeper().await;
        let call = tokio::spawn(async move { apply(&mut other, &text).await });
        tokio::time::sleep(Duration::from_micros(300 * round * round)).await;
        call.abort();
        let _ = call.await;
        let until = Instant::now() + SOON;
        // What the node was told before the caller left may still be under way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        loop {
            let there = summary(&mut keeper, &name).await.is_some();
            let runs = request(&mut node.gateway().await, &name, "hi").await.is_ok();
            if there == runs {
                break;
            }
            assert!(Instant::now() < until, "{name}: stored {there}, running {runs}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    // A push against the module's removal: what the catalog names has its bytes.
    for _ in 0..5 {
        push(&mut keeper, "again", "latest", test_bees()).await.unwrap();
        let mut other = node.keeper().await;
        let removal = v1::DeleteModuleRequest {
            name: "again".to_owned(),
            tag: String::new(),
        };
        let (pushed, _) = tokio::join!(
            push(&mut keeper, "again", "latest", test_bees()),
            other.delete_module(removal)
        );
        pushed.unwrap();
    }
    let call = v1::DeleteModuleRequest {
        name: "test-bees".to_owned(),
        tag: String::new(),
    };
    assert_eq!(
        keeper.delete_module(call).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert!(node.stop().success());
    std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
    let node = Start::new(dir.path()).start();
    assert!(request(&mut node.gateway().await, "shared-0", "hi").await.is_ok());
    for swarm in node
        .keeper()
        .await
        .list_swarms(v1::ListSwarmsRequest {})
        .await
        .unwrap()
        .into_inner()
        .swarms
    {
        assert_eq!(swarm.status, "running", "{swarm:?}");
    }
}
