//! What each node knows by itself, counts and log lines, asked of them all through one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use skep_proto::v1;
use tokio::time::timeout;

use crate::cluster::{Cluster, in_step};
use crate::node::{Node, SOON, Start, apply, hello_world, push};

/// So many partitions that each node owns some, whatever their ids are.
const GREETINGS: &str = "
name: greetings
bees:
  - name: hello
    module: hello
    input: { gateway: greetings }
    key: message
    partitions: 32
";

fn start(cluster: &Cluster, node: u8, roles: &str) -> Node {
    let start: Start = cluster.prepared(node).env("SKEP_ROLES", roles);
    start.start()
}

async fn described(node: &Node) -> v1::DescribeSwarmReply {
    let call = v1::DescribeSwarmRequest {
        name: "greetings".to_owned(),
        count_keys: false,
    };
    node.keeper()
        .await
        .describe_swarm(call)
        .await
        .expect("describe")
        .into_inner()
}

/// Calls a key of every partition, as likely as can be.
async fn greet(node: &Node, round: &str) {
    let mut gateway = node.gateway().await;
    for n in 0..64 {
        let call = v1::SubmitCall {
            subject: "greetings".to_owned(),
            messages: vec![v1::OutMessage {
                payload: format!("{{\"name\":\"{round}-{n}\"}}").into_bytes().into(),
                key: Some(n.to_string()),
                ..v1::OutMessage::default()
            }],
            ..v1::SubmitCall::default()
        };
        gateway.submit(call).await.expect("submit");
    }
}

async fn until_processed(node: &Node, count: u64) {
    let until = Instant::now() + SOON;
    while described(node).await.stages[0].processed != count {
        assert!(Instant::now() < until, "{:?}", described(node).await.stages);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_tells_what_all_counted_and_what_was_said_on_each() {
    let cluster = Cluster::new();
    let door = start(&cluster, 1, "gateway,beekeeper");
    let workers = [start(&cluster, 2, "worker"), start(&cluster, 3, "worker")];
    let mut keeper = door.keeper().await;
    push(&mut keeper, "hello", "latest", hello_world()).await.expect("push");
    apply(&mut keeper, GREETINGS).await.expect("apply");
    in_step(&door, 3).await;
    greet(&door, "first").await;
    until_processed(&door, 64).await;
    let told = described(&door).await;
    assert!(told.missing.is_empty(), "{:?}", told.missing);

    // Lines of both, each once, in the order of time, whoever is asked; the node that is asked ran none of them.
    let read = |args: &[&str]| -> Vec<Value> {
        let mut all = vec!["logs", "greetings", "-o", "json"];
        all.extend(args);
        let lines = door.cli_ok(&all);
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let lines = read(&[]);
    let greeted: Vec<&str> = lines.iter().map(|l| l["text"].as_str().unwrap()).collect();
    let distinct: BTreeSet<&str> = greeted.iter().copied().collect();
    assert_eq!((greeted.len(), distinct.len()), (64, 64), "{greeted:?}");
    let by: BTreeSet<&str> = lines.iter().map(|l| l["node"].as_str().unwrap()).collect();
    assert_eq!(by, ["n2", "n3"].into());
    assert!(lines.is_sorted_by_key(|l| l["at_ms"].as_u64()), "{lines:?}");
    assert_eq!(read(&["--tail", "5"]), lines[59..]);
    let shown = door.cli_ok(&["logs", "greetings", "--tail", "1"]);
    assert!(shown.contains(" hello@n"), "{shown}");

    // A follower hears of a node that came after it began.
    let asked = v1::LogsRequest {
        swarm: "greetings".to_owned(),
        follow: true,
        tail: 1,
        ..v1::LogsRequest::default()
    };
    let mut following = keeper.logs(asked).await.expect("follow").into_inner();
    let fourth = start(&cluster, 4, "worker");
    in_step(&door, 4).await;
    let mut heard = BTreeSet::new();
    let until = Instant::now() + SOON;
    for round in 0.. {
        if heard.contains("n4") && heard.len() == 3 {
            break;
        }
        assert!(Instant::now() < until, "{heard:?}");
        greet(&door, &format!("again-{round}")).await;
        while let Ok(line) = timeout(Duration::from_millis(500), following.message()).await {
            heard.insert(line.expect("a line").expect("goes on").node);
        }
    }

    // One that sleeps is named, and holds nobody up for longer than it is given.
    let asleep = Pid::from_raw(workers[0].pid()).unwrap();
    kill_process(asleep, Signal::STOP).unwrap();
    let began = Instant::now();
    let told = described(&door).await;
    let lines = read(&[]);
    let took = began.elapsed();
    kill_process(asleep, Signal::CONT).unwrap();
    // Unless the others took it for dead already, which a loaded machine may bring about.
    for missing in &told.missing {
        assert_eq!(missing.name, "n2");
        assert!(missing.why.contains("did not answer"), "{missing:?}");
    }
    assert!(!told.missing.is_empty() || took > Duration::from_secs(4), "{told:?}");
    assert!(lines.iter().any(|l| l["node"] == "n3"), "{lines:?}");
    if took < Duration::from_secs(4) {
        let named = |l: &&Value| l["text"].as_str().unwrap().contains("on node `n2` is missing");
        assert_eq!(lines.iter().filter(named).count(), 1, "{lines:?}");
    }
    for node in [fourth, door].into_iter().chain(workers) {
        assert!(node.stop().success());
    }
}
