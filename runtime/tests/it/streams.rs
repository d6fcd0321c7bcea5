//! Answers in parts: on one node and between nodes, in memory and durable; readers who are slow, readers who go, and nodes that are killed.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use skep_client::{Error, Gateway, Kind, Outcome, Parts};
use skep_proto::v1;

use crate::cluster::{Cluster, in_step};
use crate::node::{Node, SOON, Start, apply, drained, push, root, streaming_tokens, test_bees};

/// `spoken` keeps nothing, so its requests travel in memory; those of `kept` are durable.
const SWARMS: &[&str] = &[
    "
name: spoken
bees:
  - { name: parrot, module: test-bees, input: { gateway: spoken } }
",
    "
name: kept
bees:
  - { name: parrot, module: test-bees, input: { gateway: kept }, key: message, state: true, retry: { backoff: { first: 10ms, max: 20ms } } }
",
    "
name: chain
bees:
  - { name: parrot, module: test-bees, input: { gateway: chain } }
  - { name: last, module: test-bees, bee: echo, input: { bee: parrot } }
",
];

async fn prepare(node: &Node) {
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    for swarm in SWARMS {
        apply(&mut keeper, swarm).await.expect("apply");
    }
}

async fn open(node: &Node, subject: &str, payload: &str) -> Result<Parts, Error> {
    let gateway = Gateway::connect(node.url.clone()).await.expect("connect");
    gateway
        .request(subject, payload.to_owned())
        .key("k")
        .timeout(SOON)
        .stream()
        .await
}

/// The numbers of the parts, and how it ended.
async fn all(parts: &mut Parts) -> (Vec<u64>, Result<Option<String>, Error>) {
    let mut numbers = Vec::new();
    loop {
        match parts.next().await {
            Ok(Some(part)) => {
                let text = String::from_utf8(part.to_vec()).expect("text");
                numbers.push(text.split(';').next().and_then(|n| n.parse().ok()).expect("a number"));
            }
            Ok(None) => return (numbers, Ok(parts.response().map(|r| r.text().into_owned()))),
            Err(e) => return (numbers, Err(e)),
        }
    }
}

async fn streamed(node: &Node, subject: &str, payload: &str) -> (Vec<u64>, Result<Option<String>, Error>) {
    match open(node, subject, payload).await {
        Ok(mut parts) => all(&mut parts).await,
        Err(e) => (Vec::new(), Err(e)),
    }
}

/// What every way of a stream promises.
async fn promises(node: &Node, subject: &str) {
    let (parts, end) = streamed(node, subject, r#"{"parts":50}"#).await;
    assert_eq!((parts, end.unwrap()), ((0..50).collect(), None), "{subject}");
    let (parts, end) = streamed(node, subject, r#"{"parts":2,"then":"respond"}"#).await;
    assert_eq!((parts.len(), end.unwrap().as_deref()), (2, Some("that was all")));
    // Without a part the rules are those of any request.
    let (parts, end) = streamed(node, subject, r#"{"parts":0,"then":"respond"}"#).await;
    assert_eq!((parts.len(), end.unwrap().as_deref()), (0, Some("that was all")));
    let (_, end) = streamed(node, subject, r#"{"parts":0}"#).await;
    assert_eq!(end.unwrap_err().reason, "no-response");
    // An attempt that failed before its first part is made again; one that has sent some is not.
    let (parts, end) = streamed(node, subject, r#"{"parts":2,"then":"retry-first"}"#).await;
    assert_eq!((parts, end.unwrap()), (vec![0, 1], None));
    for (then, reason) in [("fail", "told-to"), ("retry", "retry-after"), ("panic", "trap")] {
        let (parts, end) = streamed(node, subject, &format!(r#"{{"parts":3,"then":"{then}"}}"#)).await;
        let error = end.unwrap_err();
        assert_eq!(parts, [0, 1, 2], "{subject} {then}: each part once");
        assert_eq!(
            (error.reason.as_str(), error.kind, error.outcome),
            (reason, Kind::Failed, Outcome::Done)
        );
    }
    // More than any window, read as it comes: in order, and whole.
    let (parts, end) = streamed(node, subject, r#"{"parts":200,"bytes":20000}"#).await;
    assert_eq!((parts, end.unwrap()), ((0..200).collect(), None));
    // A part that is as large as may be, and one that is larger.
    let (parts, end) = streamed(node, subject, r#"{"parts":3,"bytes":262144}"#).await;
    assert_eq!((parts, end.unwrap()), (vec![0, 1, 2], None));
    let (parts, end) = streamed(node, subject, r#"{"parts":3,"bytes":262145}"#).await;
    let error = end.unwrap_err();
    assert!(
        parts.is_empty() && error.message.contains("262144 bytes: split it"),
        "{error}"
    );
    // Who takes no parts gets them joined.
    let gateway = Gateway::connect(node.url.clone()).await.unwrap();
    let whole = |payload: &str| gateway.request(subject, payload.to_owned()).key("k").into_future();
    assert_eq!(whole(r#"{"parts":3}"#).await.unwrap().text(), "0;1;2;");
    assert_eq!(
        whole(r#"{"parts":3,"then":"respond"}"#).await.unwrap().text(),
        "that was all"
    );
    let error = whole(r#"{"parts":3,"bytes":262144}"#).await.unwrap_err();
    assert!(error.message.contains("524288 bytes"), "{error}");
    let refused = gateway
        .request(subject, "{}")
        .idempotency_key("once")
        .stream()
        .await
        .unwrap_err();
    assert_eq!(
        (refused.reason.as_str(), refused.outcome),
        ("bad-idempotency-key", Outcome::NotDone)
    );
    let late = gateway
        .request(subject, r#"{"parts":1000,"sleep_ms":50}"#)
        .key("late")
        .timeout(Duration::from_millis(600))
        .stream();
    let (parts, end) = all(&mut late.await.unwrap()).await;
    let error = end.unwrap_err();
    assert!(!parts.is_empty() && parts.len() < 20, "{parts:?}");
    assert_eq!((error.kind, error.outcome), (Kind::DeadlineExceeded, Outcome::Unknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_come_as_they_are_made_in_memory_and_durably() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    prepare(&node).await;
    promises(&node, "spoken").await;
    promises(&node, "kept").await;
    // What goes on may answer behind the parts.
    let (parts, end) = streamed(&node, "chain", r#"{"parts":2,"then":"publish"}"#).await;
    assert_eq!(
        (parts, end.unwrap().as_deref()),
        (vec![0, 1], Some("the next one goes on"))
    );
    // The first part is there long before the last is made.
    for subject in ["spoken", "kept"] {
        let begun = Instant::now();
        let mut parts = open(&node, subject, r#"{"parts":2,"sleep_ms":3000}"#).await.unwrap();
        assert!(parts.next().await.unwrap().is_some());
        assert!(begun.elapsed() < Duration::from_secs(3), "{subject}");
        assert_eq!(all(&mut parts).await.0, [1]);
    }
    let shown = node.cli_ok(&["request", "spoken", r#"{"parts":3,"then":"respond"}"#, "--stream"]);
    assert_eq!(shown, "0;1;2;\nthat was all\n");
    let raw = node.cli_ok(&["request", "spoken", r#"{"parts":3}"#, "--stream", "--raw"]);
    assert_eq!(raw, "0;1;2;");
    let failed = node.cli(&["request", "spoken", r#"{"parts":1,"then":"fail"}"#, "--stream"]);
    assert!(
        !failed.status.success() && failed.stdout.starts_with(b"0;"),
        "{failed:?}"
    );
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_its_bee_and_nobody_else_and_one_that_goes_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    prepare(&node).await;
    for subject in ["spoken", "kept"] {
        // 64 MiB, more than what the window, the connection and the client hold together.
        let mut slow = open(&node, subject, r#"{"parts":1024,"bytes":65536}"#).await.unwrap();
        assert!(slow.next().await.unwrap().is_some());
        // The node answers others meanwhile, also of the same Bee.
        for n in 0..20 {
            let gateway = Gateway::connect(node.url.clone()).await.unwrap();
            let call = gateway.request("spoken", r#"{"parts":1}"#).key(format!("other-{n}"));
            assert_eq!(call.await.unwrap().text(), "0;");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let bytes = resident(&node);
        let (parts, end) = all(&mut slow).await;
        assert_eq!(
            (parts, end.unwrap()),
            ((1..1024).collect(), None),
            "nothing was lost while nobody read"
        );
        assert!(bytes < 400 << 20, "{bytes} bytes resident");

        let mut gone = open(&node, subject, r#"{"parts":1000000,"bytes":1000}"#).await.unwrap();
        assert!(gone.next().await.unwrap().is_some());
        drop(gone);
        // Its key is free again, so the Bee has ended.
        let (parts, end) = streamed(&node, subject, r#"{"parts":1}"#).await;
        assert_eq!((parts, end.unwrap()), (vec![0], None));
    }
    let mut keeper = node.keeper().await;
    for swarm in ["spoken", "kept"] {
        let told = drained(&mut keeper, swarm).await;
        assert!(
            told.stages.iter().all(|s| s.dead == 0),
            "nobody is left to hear of it: {told:?}"
        );
    }
    assert!(node.stop().success());
}

fn resident(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Sends a request as it stands, and reads until the other end closes.
fn http(node: &Node, subject: &str, accept: &str, body: &str) -> String {
    let address = node.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(
        stream,
        "POST /v1/{subject} HTTP/1.1\r\nhost: {address}\r\naccept: {accept}\r\nskep-key: k\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_server_sent_events_over_http() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    prepare(&node).await;
    for subject in ["spoken", "kept"] {
        let answer = http(&node, subject, "text/event-stream", r#"{"parts":2,"then":"respond"}"#);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("content-type: text/event-stream"),
            "{answer}"
        );
        for event in [
            "data: 0;\n\n",
            "data: 1;\n\n",
            "event: response\ndata: that was all\n\n",
            r#"event: end
data: {"outcome":"done","parts":2"#,
        ] {
            assert!(answer.contains(event), "{event:?} in {answer}");
        }
        let answer = http(&node, subject, "text/event-stream", r#"{"parts":1,"then":"fail"}"#);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("data: 0;\n\n"),
            "{answer}"
        );
        let error = answer.split("event: error\ndata: ").nth(1).expect("an error");
        let error: serde_json::Value = serde_json::from_str(error.lines().next().unwrap()).unwrap();
        assert_eq!(
            (&error["reason"], &error["outcome"]),
            (&"told-to".into(), &"done".into()),
            "{error}"
        );
        // Before its first part a failure has a status of its own.
        let answer = http(&node, subject, "text/event-stream", "no JSON");
        assert!(answer.starts_with("HTTP/1.1 422"), "{answer}");
    }
    let answer = http(&node, "nobody", "text/event-stream", "{}");
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains("application/problem+json"),
        "{answer}"
    );
    let answer = http(&node, "spoken", "application/json", r#"{"parts":2}"#);
    assert!(answer.ends_with("0;1;"), "{answer}");
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_node_is_killed_is_never_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new(dir.path()).start();
    prepare(&node).await;
    for round in 1..=3u64 {
        let mut parts = open(&node, "kept", r#"{"parts":1000,"sleep_ms":100}"#).await.unwrap();
        for n in 0..round {
            let part = parts.next().await.unwrap().expect("a part");
            assert!(part.starts_with(format!("{n};").as_bytes()));
        }
        node.kill();
        let error = loop {
            match parts.next().await {
                Ok(part) => assert!(part.is_some(), "a stream that breaks has no end"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.outcome, Outcome::Unknown, "{error}");
        node = Start::new(dir.path()).start();
        let mut keeper = node.keeper().await;
        let told = drained(&mut keeper, "kept").await;
        assert_eq!(told.stages[0].dead, round, "set aside, not run again: {told:?}");
        let letters = v1::ListDeadLettersRequest {
            swarm: "kept".to_owned(),
            ..v1::ListDeadLettersRequest::default()
        };
        let letters = keeper.list_dead_letters(letters).await.unwrap().into_inner().letters;
        assert!(
            letters.iter().all(|l| l.reason == "interrupted" && l.attempts == 1),
            "{letters:?}"
        );
        // Its key goes on.
        let (parts, end) = streamed(&node, "kept", r#"{"parts":1}"#).await;
        assert_eq!((parts, end.unwrap()), (vec![0], None));
    }
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_find_their_way_between_nodes_and_a_killed_one_leaves_its_callers_an_unknown_outcome() {
    let cluster = Cluster::new();
    let gate = Start {
        args: vec!["--roles", "gateway,beekeeper"],
        ..cluster.prepared(1)
    }
    .start();
    let worker = Start {
        args: vec!["--roles", "worker,beekeeper"],
        ..cluster.prepared(2)
    }
    .start();
    prepare(&worker).await;
    in_step(&gate, 2).await;
    promises(&gate, "kept").await;
    let mut slow = open(&gate, "kept", r#"{"parts":256,"bytes":65536}"#).await.unwrap();
    assert!(slow.next().await.unwrap().is_some());
    // Longer than a stage waits before it asks.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (parts, end) = all(&mut slow).await;
    assert_eq!((parts, end.unwrap()), ((1..256).collect(), None));
    let mut gone = open(&gate, "kept", r#"{"parts":1000000,"bytes":1000}"#).await.unwrap();
    assert!(gone.next().await.unwrap().is_some());
    drop(gone);
    let (parts, end) = streamed(&gate, "kept", r#"{"parts":1}"#).await;
    assert_eq!((parts, end.unwrap()), (vec![0], None));

    let third = Start {
        args: vec!["--roles", "worker,beekeeper"],
        ..cluster.prepared(3)
    };
    let mut parts = open(&gate, "kept", r#"{"parts":1000,"sleep_ms":100}"#).await.unwrap();
    for _ in 0..3 {
        assert!(parts.next().await.unwrap().is_some());
    }
    worker.kill();
    let third = third.start();
    let (more, end) = all(&mut parts).await;
    let error = end.unwrap_err();
    assert_eq!(
        (error.outcome, error.reason.as_str()),
        (Outcome::Unknown, "interrupted"),
        "{error}"
    );
    assert!(
        error.dead_letter.is_some() && more.iter().all(|n| *n >= 3),
        "no part came twice: {more:?}"
    );
    let (parts, end) = streamed(&gate, "kept", r#"{"parts":1}"#).await;
    assert_eq!((parts, end.unwrap()), (vec![0], None));
    assert!(third.stop().success() && gate.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_streaming_sample_says_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let sample = root().join("samples/streaming-tokens");
    let read = |name: &str| std::fs::read_to_string(sample.join(name)).unwrap();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "streaming-tokens", "latest", streaming_tokens())
        .await
        .unwrap();
    apply(&mut keeper, &read("swarm.yaml")).await.unwrap();
    let gateway = Gateway::connect(node.url.clone()).await.unwrap();
    for (prompt, expected) in read("prompts.jsonl").lines().zip(read("expected.jsonl").lines()) {
        let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
        let mut parts = gateway.request("chat", prompt.to_owned()).stream().await.unwrap();
        let (mut text, mut count) = (String::new(), 0);
        while let Some(part) = parts.next().await.unwrap() {
            text.push_str(std::str::from_utf8(&part).unwrap());
            count += 1;
        }
        assert_eq!(
            (expected["text"].as_str().unwrap(), &expected["parts"]),
            (text.as_str(), &count.into())
        );
        let usage = serde_json::json!({ "tokens": count }).to_string();
        assert_eq!(parts.response().unwrap().text(), usage);
        assert_eq!(gateway.request("chat", prompt.to_owned()).await.unwrap().text(), usage);
    }
    assert!(node.stop().success());
}
