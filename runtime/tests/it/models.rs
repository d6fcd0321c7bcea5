//! Models: pushed, described, called without code, switched by tag, deleted, kept through restarts and backups; and whatever is wrong with one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_proto::v1;
use skep_proto::v1::models_client::ModelsClient;
use skep_proto::v1::push_model_request::Part;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::access::{reqwest_text, with};
use crate::cluster::{Cluster, in_step};
use crate::lifecycle::submit;
use crate::node::{Node, SOON, Start, apply, drained, request, response, root};

fn file(name: &str) -> PathBuf {
    root().join("samples/models").join(format!("{name}.onnx"))
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(file(name)).expect("a sample model")
}

/// A model's first rows of real data, what it says of them in tract, and the name of its input.
struct Expected {
    input: String,
    rows: Vec<Value>,
    labels: Vec<i64>,
    probabilities: Vec<f64>,
}

fn expected(name: &str) -> Expected {
    let all = std::fs::read_to_string(root().join("samples/models/expected.json")).expect("expected.json");
    let all: Value = serde_json::from_str(&all).expect("JSON");
    let of = &all[name];
    let shape: Vec<usize> = of["shape"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d.as_u64().unwrap() as usize)
        .collect();
    let data = of["data"].as_array().unwrap();
    let row = data.len() / shape[0];
    Expected {
        input: of["input"].as_str().unwrap().to_owned(),
        rows: data.chunks(row).map(|row| nested(row, &shape[1..])).collect(),
        labels: of["label"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l.as_i64().unwrap())
            .collect(),
        probabilities: of["probabilities"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p.as_f64().unwrap())
            .collect(),
    }
}

fn nested(values: &[Value], shape: &[usize]) -> Value {
    match shape {
        [_] => Value::Array(values.to_vec()),
        [first, rest @ ..] => {
            let parts = values.chunks(values.len() / first);
            Value::Array(parts.map(|part| nested(part, rest)).collect())
        }
        [] => values[0].clone(),
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().expect("a number")],
    }
}

fn near(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
}

async fn models(node: &Node) -> ModelsClient<Channel> {
    ModelsClient::new(node.channel().await)
}

fn upload(name: &str, tag: &str, bytes: &[u8], size: u64, digest: &str) -> Vec<v1::PushModelRequest> {
    let header = v1::ModelHeader {
        name: name.to_owned(),
        tag: tag.to_owned(),
        digest: digest.to_owned(),
        size,
        batching: None,
    };
    let chunks = bytes.chunks(256 << 10).map(|chunk| Part::Chunk(chunk.to_vec().into()));
    std::iter::once(Part::Header(header))
        .chain(chunks)
        .map(|part| v1::PushModelRequest { part: Some(part) })
        .collect()
}

async fn push(
    client: &mut ModelsClient<Channel>,
    name: &str,
    tag: &str,
    bytes: &[u8],
) -> Result<v1::PushModelReply, Status> {
    let parts = upload(name, tag, bytes, bytes.len() as u64, "");
    let pushed = client.push_model(tokio_stream::iter(parts)).await;
    pushed.map(tonic::Response::into_inner)
}

async fn tag(client: &mut ModelsClient<Channel>, name: &str, version: &str, tag: &str) -> v1::TagModelReply {
    let asked = v1::TagModelRequest {
        name: name.to_owned(),
        tag: tag.to_owned(),
        version: version.to_owned(),
    };
    client.tag_model(asked).await.expect("a tag").into_inner()
}

fn swarm_of(model: &str, subject: &str) -> String {
    format!(
        "name: {subject}\nbees:\n  - {{ name: {subject}, model: '{model}', input: {{ gateway: {subject} }}, retry: {{ attempts: 1 }} }}\n"
    )
}

/// The answer to a plain call.
async fn predict(node: &Node, subject: &str, payload: &Value) -> Result<Value, Status> {
    let reply = request(&mut node.gateway().await, subject, payload.to_string()).await?;
    Ok(serde_json::from_str(&response(&reply)).expect("JSON"))
}

/// What a metric says, of all models together.
fn metric(node: &Node, name: &str) -> u64 {
    let text = reqwest_text(&format!("{}/metrics", node.admin));
    let of = text
        .lines()
        .filter(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']));
    of.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sample_model_answers_as_its_trainer_says_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let names = [
        "iris",
        "wine",
        "cancer-linear",
        "cancer-forest",
        "cancer-mlp",
        "digits-mlp",
        "digits-cnn",
    ];
    let mut node = Start::new(&data).start();
    for name in names {
        let said = node.cli_ok(&["model", "push", file(name).to_str().unwrap()]);
        assert!(
            said.contains(&format!("{name}:latest is sha256:")) && said.contains("output probabilities FP32"),
            "{said}"
        );
        apply(&mut node.keeper().await, &swarm_of(name, name)).await.unwrap();
    }
    for round in 0..2 {
        for name in names {
            let of = expected(name);
            let all = json!({ &of.input: of.rows });
            let said = predict(&node, name, &all).await.unwrap();
            assert_eq!(said["label"], json!(of.labels), "{name}");
            assert!(
                near(&numbers(&said["probabilities"]), &of.probabilities),
                "{name}: {said}"
            );
            // One row, without the dimension of the batch; and the value alone.
            let one = predict(&node, name, &json!({ &of.input: of.rows[0] })).await.unwrap();
            let bare = predict(&node, name, &json!(of.rows[0])).await.unwrap();
            assert_eq!(one, bare);
            assert_eq!(one["label"], json!([of.labels[0]]), "{name}");
        }
        if round == 0 {
            node.kill();
            node = Start::new(&data).start();
        }
    }
    let listed: Value = serde_json::from_str(&node.cli_ok(&["model", "list", "-o", "json"])).unwrap();
    assert_eq!(listed["models"].as_array().unwrap().len(), names.len());
    let iris = listed["models"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["name"] == "iris")
        .unwrap();
    let version = &iris["versions"][0];
    assert_eq!(
        version["inputs"],
        json!([{ "name": "features", "datatype": "FP32", "shape": [-1, 4] }])
    );
    assert_eq!(
        (&version["granted"], &version["loaded"]),
        (&json!(["iris/iris"]), &json!(true))
    );
    let shown = node.cli_ok(&["model", "show", "iris:latest"]);
    assert!(
        shown.contains("input  features FP32 [any, 4]") && shown.contains("granted to iris/iris"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_switched_and_rolled_back_by_tag_while_calls_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let mut client = models(&node).await;
    push(&mut client, "cancer", "latest", &bytes("cancer-linear"))
        .await
        .unwrap();
    apply(&mut node.keeper().await, &swarm_of("cancer", "cancer"))
        .await
        .unwrap();
    let second = push(&mut client, "cancer", "v2", &bytes("cancer-mlp")).await.unwrap();
    assert!(second.replaced.is_empty() && second.changes.is_empty(), "{second:?}");
    let of = expected("cancer-linear");
    let payload = json!({ &of.input: of.rows });
    let said = async || numbers(&predict(&node, "cancer", &payload).await.unwrap()["probabilities"]);
    let (linear, mlp) = (of.probabilities.clone(), expected("cancer-mlp").probabilities);
    assert!(
        near(&said().await, &linear),
        "a new tag changes nothing for who follows another"
    );
    let first = tag(&mut client, "cancer", "v2", "latest").await;
    assert!(near(&said().await, &mlp), "the next call is the new version's");
    let back = tag(&mut client, "cancer", &first.replaced, "latest").await;
    assert_eq!(back.replaced, first.digest);
    assert!(near(&said().await, &linear), "and back");

    // Each call is wholly one version's, and none fails.
    let switching = async {
        for n in 0..20 {
            let version = if n % 2 == 0 { &first.digest } else { &first.replaced };
            tag(&mut client, "cancer", version, "latest").await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let switched = std::cell::Cell::new(false);
    let switching = async {
        switching.await;
        switched.set(true);
    };
    let calling = async {
        let mut seen = [0, 0];
        while !switched.get() {
            let said = said().await;
            let which = [near(&said, &linear), near(&said, &mlp)];
            assert!(which[0] != which[1], "{said:?}");
            seen[usize::from(which[1])] += 1;
        }
        seen
    };
    let ((), seen) = tokio::join!(switching, calling);
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_model_is_refused_by_name_and_what_was_there_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let mut client = models(&node).await;
    let good = bytes("iris");
    push(&mut client, "iris", "latest", &good).await.unwrap();
    apply(&mut node.keeper().await, &swarm_of("iris", "iris"))
        .await
        .unwrap();
    let row = json!(expected("iris").rows[0]);
    let before = predict(&node, "iris", &row).await.unwrap();
    let wasm = b"\0asm\x0d\0\x01\0".to_vec();
    let half = good[..good.len() / 2].to_vec();
    for (what, bytes, says) in [
        ("nothing", Vec::new(), "empty"),
        ("WebAssembly", wasm, "no ONNX model"),
        ("half a model", half, "ends inside a field"),
        ("text", b"a model, honestly".repeat(50), "ONNX"),
        ("zeros", vec![0; 100_000], "ONNX"),
    ] {
        let refused = push(&mut client, "iris", "latest", &bytes).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
        assert!(refused.message().contains(says), "{what}: {}", refused.message());
    }
    let stream = |parts: Vec<v1::PushModelRequest>| tokio_stream::iter(parts);
    let len = good.len() as u64;
    for (what, parts, says) in [
        (
            "more than was announced",
            upload("iris", "", &good, len - 1, ""),
            "more came",
        ),
        (
            "less than was announced",
            upload("iris", "", &good, len + 1, ""),
            "truncated",
        ),
        (
            "another digest",
            upload("iris", "", &good, len, &"0".repeat(64)),
            "wrong digest",
        ),
        ("a bad name", upload("Iris", "", &good, len, ""), "model name"),
        ("a bad tag", upload("iris", "V 1", &good, len, ""), "tag"),
        ("too large", upload("iris", "", &good, 1 << 40, ""), "at most"),
        ("no header", upload("iris", "", &good, len, "").split_off(1), "header"),
        (
            "two headers",
            [upload("iris", "", &good, 0, ""), upload("iris", "", &good, 0, "")].concat(),
            "second header",
        ),
        ("no parts", Vec::new(), "empty upload"),
        (
            "a part of nothing",
            vec![v1::PushModelRequest { part: None }],
            "empty upload",
        ),
    ] {
        let refused = client.push_model(stream(parts)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
        assert!(refused.message().contains(says), "{what}: {}", refused.message());
    }
    assert_eq!(predict(&node, "iris", &row).await.unwrap(), before);
    // Calls that do not fit are told what would.
    for (payload, says) in [
        (json!([1, 2, 3]), "FP32 [any, 4]"),
        (json!({ "features": [["x", 1, 2, 3]] }), "features"),
        (json!({ "feature": [1, 2, 3, 4] }), "features"),
        (json!({ "features": [] }), "features"),
        (json!({}), "features"),
        (
            json!({ "inputs": [{ "name": "features", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4] }] }),
            "expected FP32 [any, 4]",
        ),
        (
            json!({ "inputs": [{ "name": "features", "datatype": "FP32", "shape": [0, 4], "data": [] }] }),
            "at least one row",
        ),
        (
            json!({ "inputs": [{ "name": "features", "datatype": "FP32", "shape": [1, 18446744073709551615u64], "data": [1] }] }),
            "features",
        ),
    ] {
        let told = predict(&node, "iris", &payload).await.unwrap_err();
        assert!(told.message().contains(says), "{payload}: {}", told.message());
    }
    assert_eq!(predict(&node, "iris", &row).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granted_model_stays_and_one_that_was_taken_away_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let mut keeper = node.keeper().await;
    let refused = apply(&mut keeper, &swarm_of("iris", "iris")).await.unwrap_err();
    assert!(refused.message().contains("skep model push"), "{}", refused.message());
    let mut client = models(&node).await;
    push(&mut client, "iris", "v1", &bytes("iris")).await.unwrap();
    let refused = apply(&mut keeper, &swarm_of("iris:v3", "iris")).await.unwrap_err();
    assert!(refused.message().contains("no tag `v3`"), "{}", refused.message());
    apply(&mut keeper, &swarm_of("iris:v1", "iris")).await.unwrap();
    for typed in ["iris", "iris:v1"] {
        let refused = node.cli(&["model", "delete", typed]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains("granted to iris/iris"),
            "{said}"
        );
    }
    let refused = node.cli(&["model", "delete", "iris:v7"]);
    assert_eq!(refused.status.code(), Some(4), "there is no such tag");
    let row = json!(expected("iris").rows[0]);
    let before = predict(&node, "iris", &row).await.unwrap();
    node.cli_ok(&["model", "delete", "iris", "--force"]);
    let told = predict(&node, "iris", &row).await.unwrap_err();
    assert!(told.message().contains("no model `iris`"), "{}", told.message());
    push(&mut client, "iris", "v1", &bytes("iris")).await.unwrap();
    assert_eq!(predict(&node, "iris", &row).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ensemble_without_code_is_the_weighted_mean_of_its_models() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let mut client = models(&node).await;
    for name in ["cancer-linear", "cancer-forest", "cancer-mlp"] {
        push(&mut client, name, "latest", &bytes(name)).await.unwrap();
    }
    let sample = root().join("samples/ensemble-models");
    let read = |name: &str| std::fs::read_to_string(sample.join(name)).expect("a file of the sample");
    apply(&mut node.keeper().await, &read("swarm.yaml")).await.unwrap();
    let lines = |name: &str| -> Vec<Value> { read(name).lines().map(|l| serde_json::from_str(l).unwrap()).collect() };
    for (patient, answer) in lines("patients.jsonl").iter().zip(lines("expected.jsonl")) {
        let said = predict(&node, "tumour", patient).await.unwrap();
        assert!(
            near(&numbers(&said["probabilities"]), &numbers(&answer["probabilities"])),
            "{said}"
        );
    }
    let of = expected("cancer-linear");
    let said = predict(&node, "tumour", &json!({ &of.input: of.rows })).await.unwrap();
    let sides = [("cancer-linear", 2.0), ("cancer-forest", 1.0), ("cancer-mlp", 2.0)];
    let mean: Vec<f64> = (0..of.probabilities.len())
        .map(|at| {
            sides
                .iter()
                .map(|(name, w)| expected(name).probabilities[at] * w)
                .sum::<f64>()
                / 5.0
        })
        .collect();
    assert!(near(&numbers(&said["probabilities"]), &mean), "{said} is not {mean:?}");
    assert!(said.get("label").is_none(), "the mean of labels means nothing: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_without_code_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let manifest = "
name: gather
bees:
  - { name: gather, type: batch, size: 3, wait: 1h, input: { gateway: gather } }
";
    let node = Start::new(&data).start();
    apply(&mut node.keeper().await, manifest).await.unwrap();
    let two = [
        (String::new(), "1".to_owned()),
        (String::new(), "{\"two\":2}".to_owned()),
    ];
    let mut gateway = node.gateway().await;
    for (_, payload) in &two {
        let call = v1::SubmitCall {
            subject: "gather".to_owned(),
            messages: vec![v1::OutMessage {
                payload: payload.clone().into(),
                ..v1::OutMessage::default()
            }],
            ..v1::SubmitCall::default()
        };
        gateway.submit(call).await.unwrap();
    }
    drained(&mut node.keeper().await, "gather").await;
    node.kill();
    let node = Start::new(&data).start();
    let reply = request(&mut node.gateway().await, "gather", "[3]").await.unwrap();
    assert_eq!(response(&reply), "[1,{\"two\":2},[3]]");
    submit(
        &mut node.gateway().await,
        "gather",
        &[("k".to_owned(), "nonsense".to_owned())],
    )
    .await;
    let told = drained(&mut node.keeper().await, "gather").await;
    assert_eq!(told.stages[0].dead, 1, "what is no JSON is set aside, alone: {told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_become_fewer_runs_unless_that_is_off() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let mut client = models(&node).await;
    push(&mut client, "digits", "latest", &bytes("digits-mlp"))
        .await
        .unwrap();
    apply(&mut node.keeper().await, &swarm_of("digits", "digits"))
        .await
        .unwrap();
    let of = expected("digits-mlp");
    let rows: Vec<Value> = of.rows.iter().map(|row| json!({ &of.input: row })).collect();
    let ask = async |times: usize| {
        let calls = (0..times).map(|n| {
            let (node, row, label) = (&node, &rows[n % rows.len()], of.labels[n % rows.len()]);
            async move {
                let said = predict(node, "digits", row).await.unwrap();
                assert_eq!(said["label"], json!([label]));
            }
        });
        futures::future::join_all(calls).await;
    };
    ask(1).await;
    let (calls, runs) = (
        metric(&node, "skep_model_calls_total"),
        metric(&node, "skep_model_runs_total"),
    );
    ask(200).await;
    let (more, ran) = (
        metric(&node, "skep_model_calls_total") - calls,
        metric(&node, "skep_model_runs_total") - runs,
    );
    assert_eq!(more, 200);
    assert!(ran < more, "{ran} runs of {more} calls");
    node.cli_ok(&["model", "batching", "digits", "--no-batching"]);
    let (calls, runs) = (
        metric(&node, "skep_model_calls_total"),
        metric(&node, "skep_model_runs_total"),
    );
    ask(50).await;
    assert_eq!(metric(&node, "skep_model_calls_total") - calls, 50);
    assert_eq!(metric(&node, "skep_model_runs_total") - runs, 50);
    let refused = node.cli(&["model", "batching", "digits", "--rows", "100000"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("4096"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_two_tenants_share_a_run_where_both_chose_so_and_answers_stay_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let operator = node.bootstrap();
    let tokens = ["a", "b"].map(|tenant| node.token(&operator, tenant, "deploy"));
    let of = expected("digits-mlp");
    for token in &tokens {
        let parts = upload("digits", "latest", &bytes("digits-mlp"), 0, "");
        let pushed = models(&node)
            .await
            .push_model(with(token, tokio_stream::iter(parts)))
            .await;
        pushed.unwrap();
        let call = v1::ApplySwarmRequest {
            manifest: swarm_of("digits", "digits"),
            ..v1::ApplySwarmRequest::default()
        };
        node.keeper().await.apply_swarm(with(token, call)).await.unwrap();
    }
    let counted = || {
        (
            metric(&node, "skep_model_calls_total"),
            metric(&node, "skep_model_runs_total"),
        )
    };
    // One of each tenant at once, each with a row of its own. They wait for each other for so long that a busy machine lets both come.
    let pair = async |n: usize| {
        let (before_calls, before_runs) = counted();
        let calls = tokens.iter().enumerate().map(|(at, token)| {
            let (node, row) = (&node, (2 * n + at) % of.rows.len());
            let payload = json!({ &of.input: &of.rows[row] });
            let label = of.labels[row];
            async move {
                let call = v1::RequestCall {
                    subject: "digits".to_owned(),
                    payload: payload.to_string().into_bytes().into(),
                    ..v1::RequestCall::default()
                };
                let reply = node
                    .gateway()
                    .await
                    .request(with(token, call))
                    .await
                    .unwrap()
                    .into_inner();
                let said: Value = serde_json::from_str(&response(&reply)).unwrap();
                assert_eq!(said["label"], json!([label]), "another's answer");
            }
        });
        futures::future::join_all(calls).await;
        let (calls, runs) = counted();
        assert_eq!(calls - before_calls, 2);
        runs - before_runs
    };
    let wait = ["model", "batching", "digits", "--wait", "200ms", "--rows", "2"];
    let joint = [&wait[..], &["--with-other-tenants"]].concat();
    // Loads them, so that it takes no part in what is counted.
    pair(0).await;

    for token in &tokens {
        node.cli_ok_as(token, &wait);
    }
    for n in 0..3 {
        assert_eq!(pair(n).await, 2, "nobody asked for runs with others");
    }
    node.cli_ok_as(&tokens[0], &joint);
    for n in 0..3 {
        assert_eq!(pair(n).await, 2, "one of the two did not ask for it");
    }
    node.cli_ok_as(&tokens[1], &joint);
    let mut runs = 0;
    for n in 0..4 {
        runs += pair(n).await;
    }
    assert!(runs < 8, "{runs} runs of four pairs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_go_when_others_need_their_memory_and_one_that_cannot_fit_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data"))
        .env("SKEP_MODEL_MEMORY", "3MiB")
        .start();
    let mut client = models(&node).await;
    let mut keeper = node.keeper().await;
    // Not the same bytes, for those are loaded once: each with a property of its own (`metadata_props`, a key and a value).
    for (name, text) in [("a", b'1'), ("b", b'2')] {
        let mut model = bytes("digits-mlp");
        model.extend([0x72, 6, 0x0a, 1, b'k', 0x12, 1, text]);
        push(&mut client, name, "latest", &model).await.unwrap();
        apply(&mut keeper, &swarm_of(name, name)).await.unwrap();
    }
    let of = expected("digits-mlp");
    let row = json!({ &of.input: of.rows[0] });
    for _ in 0..3 {
        for name in ["a", "b"] {
            assert_eq!(
                predict(&node, name, &row).await.unwrap()["label"],
                json!([of.labels[0]])
            );
        }
    }
    assert!(metric(&node, "skep_models_evictions_total") >= 4);
    drop(node);
    let node = Start::new(&dir.path().join("data"))
        .env("SKEP_MODEL_MEMORY", "1MiB")
        .start();
    let told = predict(&node, "a", &row).await.unwrap_err();
    assert!(told.message().contains("raise the budget"), "{}", told.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tenant_sees_or_calls_anothers_models() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let operator = node.bootstrap();
    let (a, b) = (
        node.token(&operator, "a", "deploy"),
        node.token(&operator, "b", "deploy"),
    );
    let invoke = node.token(&operator, "a", "invoke");
    let mut client = models(&node).await;
    let parts = || upload("iris", "latest", &bytes("iris"), 0, "");
    let pushed = client
        .push_model(with(&a, tokio_stream::iter(parts())))
        .await
        .unwrap()
        .into_inner();
    let digest = pushed.version.unwrap().digest;
    for token in [&invoke, "nonsense"] {
        let refused = client
            .push_model(with(token, tokio_stream::iter(parts())))
            .await
            .unwrap_err();
        assert!(
            matches!(refused.code(), Code::PermissionDenied | Code::Unauthenticated),
            "{refused}"
        );
    }
    let listed = client
        .list_models(with(&b, v1::ListModelsRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert!(listed.models.is_empty(), "{listed:?}");
    for name in ["iris", "none"] {
        let asked = v1::TagModelRequest {
            name: name.to_owned(),
            tag: "mine".to_owned(),
            version: digest.clone(),
        };
        let refused = client.tag_model(with(&b, asked)).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (
                Code::NotFound,
                &*format!("no model `{name}`; there is none yet: `skep model push FILE.onnx --name NAME`")
            )
        );
    }
    for model in ["iris", &format!("iris@{digest}")] {
        let call = v1::ApplySwarmRequest {
            manifest: swarm_of(model, "iris"),
            ..v1::ApplySwarmRequest::default()
        };
        let refused = node.keeper().await.apply_swarm(with(&b, call)).await.unwrap_err();
        assert!(refused.message().contains("no model `iris`"), "{}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_nodes_follow_a_tag_soon() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.start(1), cluster.start(2));
    in_step(&one, 2).await;
    let mut client = models(&one).await;
    push(&mut client, "cancer", "latest", &bytes("cancer-linear"))
        .await
        .unwrap();
    push(&mut client, "cancer", "v2", &bytes("cancer-mlp")).await.unwrap();
    apply(&mut one.keeper().await, &swarm_of("cancer", "cancer"))
        .await
        .unwrap();
    let of = expected("cancer-linear");
    let payload = json!({ &of.input: of.rows });
    let until = Instant::now() + SOON;
    for (version, wanted) in [
        ("latest", &of.probabilities),
        ("v2", &expected("cancer-mlp").probabilities),
    ] {
        tag(&mut client, "cancer", version, "latest").await;
        for node in [&one, &two] {
            loop {
                let said = predict(node, "cancer", &payload).await;
                if said
                    .as_ref()
                    .is_ok_and(|said| near(&numbers(&said["probabilities"]), wanted))
                {
                    break;
                }
                assert!(Instant::now() < until, "{said:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_has_models_with_their_tags_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    let mut client = models(&node).await;
    push(&mut client, "cancer", "latest", &bytes("cancer-linear"))
        .await
        .unwrap();
    push(&mut client, "cancer", "v2", &bytes("cancer-mlp")).await.unwrap();
    apply(&mut node.keeper().await, &swarm_of("cancer:v2", "cancer"))
        .await
        .unwrap();
    let of = expected("cancer-mlp");
    let payload = json!({ &of.input: of.rows });
    let before = predict(&node, "cancer", &payload).await.unwrap();
    let listed = |node: &Node| -> Value {
        let mut listed: Value = serde_json::from_str(&node.cli_ok(&["model", "list", "-o", "json"])).unwrap();
        for version in listed["models"][0]["versions"].as_array_mut().unwrap() {
            version["loaded"] = Value::Null;
        }
        listed
    };
    let had = listed(&node);
    let file = dir.path().join("backup");
    let told: Value = serde_json::from_str(&node.cli_ok(&["backup", "-o", "json", file.to_str().unwrap()])).unwrap();
    assert_eq!((&told["models"], &told["modules"]), (&json!(2), &json!(0)), "{told}");
    let other = Start::new(&dir.path().join("other")).start();
    let told: Value = serde_json::from_str(&other.cli_ok(&["restore", "-o", "json", file.to_str().unwrap()])).unwrap();
    assert_eq!((&told["models"], &told["modules"]), (&json!(2), &json!(0)), "{told}");
    assert_eq!(listed(&other), had);
    assert_eq!(predict(&other, "cancer", &payload).await.unwrap(), before);
    let refused = other.cli(&["restore", file.to_str().unwrap()]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("2 models")
            || String::from_utf8_lossy(&refused.stderr).contains("1 model")
    );
}

/// One HTTP call, by hand: what the door says, head and body.
fn post(node: &Node, path: &str, body: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(node.url.trim_start_matches("http://")).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_needs_no_swarm_to_be_called_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut node = Start::new(&data).start();
    node.cli_ok(&["model", "push", file("iris").to_str().unwrap()]);
    let of = expected("iris");
    let data_of = json!({ "inputs": [{ "name": of.input, "datatype": "FP32", "shape": [1, 4], "data": of.rows[0] }] });
    for _ in 0..2 {
        let said = post(&node, "/v2/models/iris/infer", &data_of.to_string());
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        assert!(said.contains(&format!("\"data\":[{}]", of.labels[0])), "{said}");
        node.kill();
        node = Start::new(&data).start();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_that_was_in_service_is_kept_for_a_way_back_and_no_refused_push_leaves_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Start::new(&data).start();
    let mut client = models(&node).await;
    let version = |n: u8| {
        let mut model = bytes("iris");
        model.extend([0x72, 6, 0x0a, 1, b'k', 0x12, 1, n]);
        model
    };
    let mut digests = Vec::new();
    for n in 0..4 {
        let pushed = push(&mut client, "iris", "latest", &version(b'a' + n)).await.unwrap();
        digests.push(pushed.version.unwrap().digest);
    }
    // The oldest is in service again, and is then replaced: it is what somebody wants back.
    tag(&mut client, "iris", &digests[0], "latest").await;
    push(&mut client, "iris", "latest", &version(b'x')).await.unwrap();
    tag(&mut client, "iris", &digests[0], "latest").await;
    let files = || std::fs::read_dir(data.join("modules/models/default")).unwrap().count();
    for n in 0..99 {
        tag(&mut client, "iris", "latest", &format!("t{n}")).await;
    }
    let before = files();
    let refused = push(&mut client, "iris", "one-more", &version(b'y')).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(files(), before, "what was refused is nowhere");
}
