//! What a newcomer does: the CLI against a real node, HTTP with curl's requests, a restart, and the client SDK.

use std::time::Duration;

use skep_client::{Gateway, Kind, Outcome};
use skep_proto::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::node::{Node, SOON, Start, apply, drained, hello_world, push, request, response, root, state, test_bees};

/// One HTTP/1.1 exchange: (status, headers, body).
async fn http(node: &Node, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", node.port()))
        .await
        .unwrap();
    let mut text = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(body);
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tutorial_by_hand_and_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let wasm = dir.path().join("hello.wasm");
    std::fs::write(&wasm, hello_world()).unwrap();
    let manifest = root().join("samples/hello-world/swarm.yaml");
    let manifest = manifest.to_str().unwrap();

    let node = Start::new(&data).start();
    let out = node.cli_ok(&["push", wasm.to_str().unwrap(), "--name", "hello", "--tag", "latest"]);
    assert!(out.contains("goodbye") && out.contains("sha256:"), "{out}");
    let dry = node.cli_ok(&["apply", manifest, "--dry-run"]);
    assert!(dry.contains("hello-world"), "{dry}");
    assert!(
        !node.cli_ok(&["swarms"]).contains("hello-world"),
        "a dry run changes nothing"
    );
    node.cli_ok(&["apply", manifest]);
    let answer = node.cli_ok(&["request", "hello-world", r#"{"name": "Bee"}"#]);
    assert!(answer.contains("Hello Bee, and goodbye!"), "{answer}");

    let (status, head, body) = http(&node, "POST", "/v1/hello-world", &[], r#"{"name":"Bee"}"#).await;
    assert_eq!(
        (status, body.trim()),
        (200, r#"{"message":"Hello Bee, and goodbye!"}"#),
        "{head}"
    );
    // A path that is none is refused in the same words as everything else.
    let (status, head, body) = http(&node, "POST", "/v1/%ff", &[], "{}").await;
    assert_eq!(status, 400, "{body}");
    assert!(
        head.contains("application/problem+json") && body.contains("bad-path"),
        "{head} {body}"
    );

    let lines = root().join("samples/hello-world/lines.txt");
    node.cli_ok(&["submit", "hello-world", "--file", lines.to_str().unwrap()]);
    let (status, _, body) = http(&node, "POST", "/v1/hello-world:submit", &[], r#"{"name":"Wasp"}"#).await;
    assert_eq!(status, 202, "{body}");
    drained(&mut node.keeper().await, "hello-world").await;

    let json: serde_json::Value = serde_json::from_str(&node.cli_ok(&["swarms", "-o", "json"])).expect("JSON");
    assert!(json.to_string().contains("hello-world"), "{json}");
    for view in [&["bees"][..], &["describe", "hello-world"], &["dlq", "hello-world"]] {
        node.cli_ok(view);
    }
    let logs = node.cli_ok(&["logs", "hello-world"]);
    assert!(logs.contains("greeting Bee"), "{logs}");
    let metrics = {
        let port = node.admin.rsplit(':').next().unwrap().parse::<u16>().unwrap();
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    assert!(
        metrics.contains(r#"skep_stage_inputs_total{tenant="default",swarm="hello-world",stage="hello"}"#),
        "{metrics}"
    );
    assert!(node.stop().success());

    // Everything is still there, and the artifact comes from the cache.
    let node = Start::new(&data).start();
    let answer = node.cli_ok(&["request", "hello-world", r#"{"name": "again"}"#]);
    assert!(answer.contains("Hello again"), "{answer}");
    node.cli_ok(&["delete", "hello-world"]);
    let gone = node.cli(&["request", "hello-world", "{}"]);
    assert_eq!(gone.status.code(), Some(4), "{}", String::from_utf8_lossy(&gone.stderr));
    node.cli_ok(&["delete-module", "hello"]);
    assert!(!node.cli_ok(&["bees"]).contains("goodbye"));
}

const STATEFUL: &str = "
name: effects
bees:
  - name: effect
    module: test-bees
    input: { gateway: effects }
    key: message
    state: true
";

const PURE: &str = "
name: echo
bees:
  - name: echo
    module: test-bees
    input: { gateway: echo }
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_submits_and_streams_with_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    apply(&mut keeper, PURE).await.unwrap();
    apply(&mut keeper, STATEFUL).await.unwrap();

    let gateway = Gateway::connect(&node.url).await.unwrap();
    assert_eq!(gateway.request("echo", "hi").await.unwrap().text(), "hi");
    let traced = gateway
        .request("echo", "hi")
        .traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .await
        .unwrap();
    assert_eq!(traced.hops.len(), 1);
    assert_eq!(traced.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));

    // Many at once: each caller gets its own answer.
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..1_000 {
        let gateway = gateway.clone();
        calls.spawn(async move {
            (
                i,
                gateway
                    .request("echo", format!("n{i}"))
                    .await
                    .unwrap()
                    .text()
                    .into_owned(),
            )
        });
    }
    while let Some(answer) = calls.join_next().await {
        let (i, text) = answer.unwrap();
        assert_eq!(text, format!("n{i}"));
    }
    let pipelined = gateway.requests();
    assert_eq!(pipelined.request("echo", "p").await.unwrap().text(), "p");

    // A keyed request takes effect once, and each repeat gets the first answer.
    for _ in 0..3 {
        let answer = gateway
            .request("effects", "x")
            .key("once")
            .idempotency_key("call-1")
            .await
            .unwrap();
        assert_eq!(answer.text(), "1");
    }
    let reused = gateway
        .request("effects", "y")
        .key("once")
        .idempotency_key("call-1")
        .await
        .unwrap_err();
    assert_eq!(
        (reused.kind, reused.outcome),
        (Kind::Conflict, Outcome::NotDone),
        "{reused}"
    );
    assert_eq!(gateway.request("effects", "x").key("once").await.unwrap().text(), "2");
    assert_eq!(state(&mut keeper, "effects", "effect", "once").await["times"], "2");

    let submitted = gateway
        .submit("effects", [skep_client::Message::new("s").key("sub")])
        .idempotency_key("sub-1")
        .await
        .unwrap();
    assert_eq!((submitted.accepted, submitted.duplicate), (1, false));
    let again = gateway
        .submit("effects", [skep_client::Message::new("s").key("sub")])
        .idempotency_key("sub-1")
        .await
        .unwrap();
    assert!(again.duplicate);

    let mut stream = gateway.submit_stream("effects");
    for i in 0..5_000 {
        stream
            .send(skep_client::Message::new("m").key(format!("s{}", i % 10)))
            .await
            .unwrap();
    }
    assert_eq!(stream.finish().await.unwrap().durable, 5_000);
    drained(&mut keeper, "effects").await;
    assert_eq!(state(&mut keeper, "effects", "effect", "sub").await["times"], "1");
    for key in 0..10 {
        assert_eq!(
            state(&mut keeper, "effects", "effect", &format!("s{key}")).await["times"],
            "500"
        );
    }
    assert!(node.stop().success());
}

/// A client whose node is killed and comes back goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_stream_outlives_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    apply(&mut keeper, STATEFUL).await.unwrap();
    let (url, port) = (node.url.clone(), node.port());
    let sender = tokio::spawn(async move {
        let gateway = Gateway::connect_lazy(url).unwrap();
        let mut stream = gateway.submit_stream("effects");
        for i in 0..20_000 {
            stream
                .send(skep_client::Message::new("m").key(format!("k{}", i % 7)))
                .await?;
            if i % 500 == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        stream.finish().await
    });
    let mut node = node;
    for pause in [100, 150, 80] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        node.kill();
        node = Start {
            port,
            ..Start::new(dir.path())
        }
        .start();
    }
    assert_eq!(sender.await.unwrap().unwrap().durable, 20_000);
    let mut keeper = node.keeper().await;
    drained(&mut keeper, "effects").await;
    let mut sum = 0;
    for key in 0..7 {
        let times: u64 = state(&mut keeper, "effects", "effect", &format!("k{key}")).await["times"]
            .parse()
            .unwrap();
        sum += times;
    }
    assert_eq!(sum, 20_000);
}

/// An edit of a module: pushed under the same tag, it runs from the next apply on, without losing what lies in the inbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_revision_takes_over_and_a_stateful_change_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    assert_eq!(apply(&mut keeper, PURE).await.unwrap().revision, 1);
    assert_eq!(
        apply(&mut keeper, PURE).await.unwrap().revision,
        1,
        "nothing to do is not a revision"
    );
    let renamed = PURE.replace("- name: echo", "- name: mirror\n    bee: echo");
    let reply = apply(&mut keeper, &renamed).await.unwrap();
    assert_eq!(reply.revision, 2);
    let mut gateway = node.gateway().await;
    assert_eq!(
        response(&request(&mut gateway, "echo", "still").await.unwrap()),
        "still"
    );

    apply(&mut keeper, STATEFUL).await.unwrap();
    let rescaled = format!("{STATEFUL}    partitions: 7\n");
    let refused = apply(&mut keeper, &rescaled).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    let stolen = PURE.replace("name: echo\nbees", "name: other\nbees");
    let refused = apply(&mut keeper, &stolen).await.unwrap_err();
    assert_eq!(
        refused.code(),
        tonic::Code::AlreadyExists,
        "a subject feeds one Swarm: {refused}"
    );
    let described = keeper
        .describe_swarm(v1::DescribeSwarmRequest {
            name: "effects".to_owned(),
            count_keys: false,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(described.summary.unwrap().revision, 1);
}
