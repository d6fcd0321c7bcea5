//! Over HTTP.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use skep_gateway::Settings;
use skep_model::limits::{CALL_BYTES_MAX, CALL_JSON_BYTES_MAX, PAYLOAD_BYTES_MAX};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::models;
use crate::fixture::{Node, Plain, close, http, node, quiet};
use crate::models::digest;

const DOUBLE: &str = "POST /v2/models/double/infer";

async fn get(node: &Node, path: &str) -> Plain {
    http(node, &format!("GET {path}"), &[], b"").await
}

fn x(data: &str) -> String {
    format!(r#"{{"id":"7","inputs":[{{"name":"x","datatype":"FP32","shape":[1,2],"data":{data}}}]}}"#)
}

/// Inputs in binary: the body, and the length of its JSON.
fn binary(more: &str, values: &[f32]) -> (Vec<u8>, String) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let shape = [values.len() / 2, 2];
    let json = format!(
        r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":{shape:?},"parameters":{{"binary_data_size":{}}}}}]{more}}}"#,
        bytes.len()
    );
    let length = json.len().to_string();
    ([json.into_bytes(), bytes].concat(), length)
}

#[tokio::test]
async fn the_server_and_its_models_say_what_they_are() {
    let (node, fake) = models(Settings::default()).await;
    let server = get(&node, "/v2").await.json();
    assert_eq!(
        (&server["name"], &server["extensions"]),
        (&json!("skep"), &json!(["binary_tensor_data"]))
    );
    assert!(server["version"].as_str().unwrap().starts_with(char::is_numeric));
    assert_eq!(get(&node, "/v2/").await.json(), server);
    assert_eq!(get(&node, "/v2/health/live").await.json(), json!({"live": true}));
    assert_eq!(get(&node, "/v2/health/ready").await.json(), json!({"ready": true}));
    let meta = get(&node, "/v2/models/double").await.json();
    assert_eq!(
        meta,
        json!({
            "name": "double", "versions": ["latest", "v1", digest("double")], "platform": "onnx_onnxv1",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}, {"name": "sum", "datatype": "INT64", "shape": [-1]}],
        })
    );
    for version in ["v1", "latest", &digest("double")] {
        let path = format!("/v2/models/double/versions/{version}");
        assert_eq!(get(&node, &path).await.json(), meta, "{version}");
    }
    assert_eq!(
        get(&node, "/v2/models/double/ready").await.json(),
        json!({"name": "double", "ready": true})
    );
    assert_eq!(get(&node, "/v2/models/double/versions/v1/ready").await.status, 200);
    assert_eq!(fake.loads.load(Ordering::SeqCst), 2);
    let cannot = get(&node, "/v2/models/unloadable/ready").await;
    assert_eq!((cannot.status, cannot.json()["ready"].as_bool()), (503, Some(false)));
    assert_eq!(get(&node, "/v2/models/nothing/ready").await.status, 404);
    assert_eq!(
        get(&node, "/v2/models/subject.echo").await.json(),
        json!({"name": "subject.echo", "versions": [], "platform": "skep-swarm", "inputs": [], "outputs": []})
    );
    assert_eq!(get(&node, "/v2/models/subject.echo/ready").await.status, 200);
    assert_eq!(get(&node, "/v2/models/subject.paused/ready").await.status, 503);
    assert_eq!(get(&node, "/v2/models/subject.nothing/ready").await.status, 404);

    let index = http(&node, "POST /v2/repository/index", &[], b"").await.json();
    let of = |index: &Value, name: &str| {
        index
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["name"] == name)
            .cloned()
    };
    assert_eq!(
        of(&index, "double").unwrap(),
        json!({"name": "double", "version": "latest", "state": "READY", "reason": ""})
    );
    assert_eq!(of(&index, "untagged").unwrap()["version"], digest("untagged"));
    assert_eq!(of(&index, "subject.paused").unwrap()["state"], "UNAVAILABLE");
    assert!(of(&index, "secret").is_none());
    let ready = http(&node, "POST /v2/repository/index", &[], br#"{"ready":true}"#)
        .await
        .json();
    assert!(of(&ready, "subject.paused").is_none() && of(&ready, "subject.echo").is_some());
    node.core.set_ready(false);
    let not = get(&node, "/v2/health/ready").await;
    assert_eq!((not.status, not.json()), (503, json!({"ready": false})));
}

#[tokio::test]
async fn a_model_is_called_in_json_and_in_binary() {
    let (node, _) = models(Settings {
        sample_ratio: 1.0,
        ..Settings::default()
    })
    .await;
    let answer = http(&node, DOUBLE, &[], x("[1, 2.5]").as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let outputs = json!([
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 5.0]},
        {"name": "sum", "datatype": "INT64", "shape": [1], "data": [7]},
    ]);
    assert_eq!(
        answer.json(),
        json!({"model_name": "double", "model_version": digest("double"), "id": "7", "outputs": outputs})
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("skep-outcome"), Some("done"));
    assert!(answer.header("skep-trace-id").is_some());
    for version in ["v1", &digest("double")] {
        let path = format!("POST /v2/models/double/versions/{version}/infer");
        assert_eq!(
            http(&node, &path, &[], x("[[1, 2.5]]").as_bytes()).await.json()["outputs"],
            outputs
        );
    }

    let (body, length) = binary(
        r#","parameters":{"binary_data_output":true}"#,
        &[1.0, 2.0, 3.0, f32::NAN],
    );
    let answer = http(&node, DOUBLE, &[("inference-header-content-length", &length)], &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    let at: usize = answer
        .header("inference-header-content-length")
        .unwrap()
        .parse()
        .unwrap();
    let head: Value = serde_json::from_slice(&answer.bytes[..at]).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 16);
    let numbers: Vec<f32> = answer.bytes[at..at + 16]
        .chunks(4)
        .map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap()))
        .collect();
    assert_eq!(numbers[..3], [2.0, 4.0, 6.0]);
    assert!(numbers[3].is_nan());
    assert_eq!(answer.bytes.len(), at + 16 + 16);

    // Some outputs, in another order, one of them in binary.
    let (body, length) = binary(
        r#","outputs":[{"name":"sum","parameters":{"binary_data":true}},{"name":"y"}]"#,
        &[1.0, 2.0],
    );
    let answer = http(&node, DOUBLE, &[("inference-header-content-length", &length)], &body).await;
    let at: usize = answer
        .header("inference-header-content-length")
        .unwrap()
        .parse()
        .unwrap();
    let head: Value = serde_json::from_slice(&answer.bytes[..at]).unwrap();
    assert_eq!(
        (&head["outputs"][0]["name"], &head["outputs"][1]["data"]),
        (&json!("sum"), &json!([2.0, 4.0]))
    );
    assert_eq!(answer.bytes[at..], 6i64.to_le_bytes());
    quiet(&node).await;
    assert_eq!(node.core.admit().bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_tensors_go_both_ways() {
    let (node, _) = models(Settings::default()).await;
    // JSON that is read and written on a thread of its own.
    let data = vec!["1.5"; 400_000].join(",");
    let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[400000],"data":[{data}]}}]}}"#);
    let answer = http(&node, "POST /v2/models/echo-fp32/infer", &[], body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{:.300}", answer.body);
    assert_eq!(answer.json()["outputs"][0]["data"].as_array().unwrap().len(), 400_000);
    // In binary, near the bound.
    let rows = 15 << 20;
    let json = format!(
        r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{rows}],"parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
        4 * rows
    );
    let length = json.len().to_string();
    let mut body = json.into_bytes();
    body.resize(body.len() + 4 * rows, 7);
    let answer = http(
        &node,
        "POST /v2/models/echo-fp32/infer",
        &[("inference-header-content-length", &length)],
        &body,
    )
    .await;
    assert_eq!((answer.status, answer.bytes.len() > 4 * rows), (200, true));
    assert!(answer.bytes.ends_with(&[7; 1_000]));
    quiet(&node).await;
    assert_eq!(node.core.admit().bytes(), 0);
}

#[tokio::test]
async fn what_is_wrong_is_said_in_the_protocol_s_words() {
    let (node, fake) = models(Settings::default()).await;
    let good = x("[1, 2]");
    let gzip = ("content-encoding", "gzip");
    let length = |text: &'static str| ("inference-header-content-length", text);
    let large = vec![b'x'; PAYLOAD_BYTES_MAX + 1];
    for (request, headers, body, status, says) in [
        (
            "POST /v2/models/nothing/infer",
            vec![],
            good.as_bytes(),
            404,
            "no model `nothing:latest`",
        ),
        (
            "POST /v2/models/secret/infer",
            vec![],
            good.as_bytes(),
            404,
            "no model `secret:latest`",
        ),
        (
            "POST /v2/models/Un%20named/infer",
            vec![],
            good.as_bytes(),
            404,
            "no model `Un named`",
        ),
        (
            "POST /v2/models/double:v1/infer",
            vec![],
            good.as_bytes(),
            404,
            "no model `double:v1`",
        ),
        ("POST /v2/models/%ff/infer", vec![], good.as_bytes(), 400, "UTF-8"),
        (
            "POST /v2/models/double/versions/v9/infer",
            vec![],
            good.as_bytes(),
            404,
            "no model `double:v9`",
        ),
        (
            "POST /v2/models/double/versions/V9/infer",
            vec![],
            good.as_bytes(),
            400,
            "`V9` is no version",
        ),
        (
            "POST /v2/models/double/versions/sha256:12/infer",
            vec![],
            good.as_bytes(),
            400,
            "64 hex digits",
        ),
        (
            "POST /v2/models/subject.echo/versions/1/infer",
            vec![],
            good.as_bytes(),
            400,
            "no versions",
        ),
        (
            "POST /v2/models/subject.nothing/infer",
            vec![],
            good.as_bytes(),
            404,
            "no subject `nothing`",
        ),
        (
            "POST /v2/models/subject.leaving/infer",
            vec![],
            good.as_bytes(),
            503,
            "being deleted",
        ),
        (
            "POST /v2/models/subject.echo/infer",
            vec![],
            b"[1]",
            400,
            "no JSON of an inference request",
        ),
        ("POST /v2/models/subject.echo/infer", vec![], &large, 413, "262144"),
        (DOUBLE, vec![], b"", 400, "no JSON of an inference request"),
        (DOUBLE, vec![], b"{\"inputs\":[]}", 400, "\"x\" is missing"),
        (DOUBLE, vec![], b"\xff\xfe", 400, "no JSON"),
        (
            DOUBLE,
            vec![],
            br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}"#,
            400,
            "expected FP32 [any, 2]",
        ),
        (
            DOUBLE,
            vec![],
            br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[0,2],"data":[]}]}"#,
            400,
            "zero",
        ),
        (
            DOUBLE,
            vec![],
            br#"{"inputs":[],"outputs":[{"name":"z"}]}"#,
            400,
            "there is no output \"z\": the outputs are y, sum",
        ),
        (
            DOUBLE,
            vec![],
            br#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":2}}]}"#,
            501,
            "classification",
        ),
        (
            DOUBLE,
            vec![],
            br#"{"inputs":[],"parameters":{"sequence_id":5}}"#,
            501,
            "sequence_id",
        ),
        (
            DOUBLE,
            vec![],
            br#"{"inputs":[],"parameters":{"timeout":"soon"}}"#,
            400,
            "microseconds",
        ),
        (
            DOUBLE,
            vec![],
            br#"{"inputs":[],"parameters":{"timeout":99999999999999}}"#,
            400,
            "at most 3600000 ms",
        ),
        (DOUBLE, vec![gzip], good.as_bytes(), 415, "compressed"),
        (
            DOUBLE,
            vec![("content-encoding", "deflate")],
            good.as_bytes(),
            415,
            "compressed",
        ),
        (DOUBLE, vec![length("-1")], good.as_bytes(), 400, "no number of bytes"),
        (DOUBLE, vec![length("+5")], good.as_bytes(), 400, "no number of bytes"),
        (
            DOUBLE,
            vec![length("99999999999999999999999")],
            good.as_bytes(),
            400,
            "no number of bytes",
        ),
        (
            DOUBLE,
            vec![length("5"), length("5")],
            good.as_bytes(),
            400,
            "more than once",
        ),
        (
            DOUBLE,
            vec![length("9999")],
            good.as_bytes(),
            400,
            "9999 bytes are JSON",
        ),
        (
            DOUBLE,
            vec![("skep-timeout-ms", "soon")],
            good.as_bytes(),
            400,
            "milliseconds",
        ),
        (
            DOUBLE,
            vec![("skep-timeout-ms", "0")],
            good.as_bytes(),
            504,
            "had passed",
        ),
        ("GET /v2/models/double/infer", vec![], b"", 405, "POST only"),
        ("POST /v2/models/double", vec![], b"", 405, "GET, HEAD only"),
        ("POST /v2/health/ready", vec![], b"", 405, "GET, HEAD only"),
        ("POST /v2/repository/index", vec![], b"[", 400, "index request"),
        ("GET /v2/nothing/here", vec![], b"", 404, "/v2/models/NAME/infer"),
        ("GET /v2/models/double/config", vec![], b"", 501, "configuration"),
        ("GET /v2/models/double/stats", vec![], b"", 501, "statistics"),
        ("POST /v2/repository/models/double/load", vec![], b"{}", 501, "loaded"),
        ("GET /v2/systemsharedmemory/status", vec![], b"", 501, "shared memory"),
        ("GET /v2/trace/setting", vec![], b"", 501, "traces"),
        (
            "POST /v2/models/broken/infer",
            vec![],
            br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}"#,
            500,
            "zero",
        ),
        (
            "POST /v2/models/busy/infer",
            vec![],
            br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}"#,
            429,
            "memory",
        ),
        (
            "POST /v2/models/unloadable/infer",
            vec![],
            br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}"#,
            500,
            "operator",
        ),
        (
            "POST /v2/models/nan/infer",
            vec![],
            br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}"#,
            400,
            "ask for binary data",
        ),
    ] {
        let answer = http(&node, request, &headers, body).await;
        let said = answer.json();
        let text = said["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{request}: {}", answer.body));
        assert_eq!(
            (answer.status, said.as_object().unwrap().len()),
            (status, 1),
            "{request}: {}",
            answer.body
        );
        assert!(text.contains(says), "{request}: {text}");
        assert_eq!(answer.header("skep-outcome"), Some("not-done"), "{request}");
        assert!(answer.header("skep-reason").is_some());
        assert_eq!(answer.header("retry-after").is_some(), status == 429, "{request}");
    }
    quiet(&node).await;
    assert_eq!((fake.running.load(Ordering::SeqCst), node.core.admit().bytes()), (0, 0));
    // Nobody has models: as if there were none of that name.
    let bare = node_without_models().await;
    assert_eq!(http(&bare, DOUBLE, &[], good.as_bytes()).await.status, 404);
    assert!(
        http(&bare, "POST /v2/repository/index", &[], b"")
            .await
            .body
            .contains("subject.echo")
    );
}

async fn node_without_models() -> Node {
    node(Settings::default()).await
}

#[tokio::test]
async fn bodies_are_bounded_and_what_breaks_off_leaves_nothing() {
    let (node, fake) = models(Settings {
        body_timeout_ms: 500,
        ..Settings::default()
    })
    .await;
    // A length that is too large is refused before anything is read.
    for (length, json_length, says) in [
        (CALL_BYTES_MAX + 1, None, "at most"),
        (1 << 40, None, "at most"),
        (CALL_JSON_BYTES_MAX + 1, Some(CALL_JSON_BYTES_MAX + 1), ""),
    ] {
        let mut socket = TcpStream::connect(node.address).await.unwrap();
        let json = json_length.map_or_else(String::new, |length| {
            format!("inference-header-content-length: {length}\r\n")
        });
        let head =
            format!("{DOUBLE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{json}\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        if says.is_empty() {
            socket.write_all(&vec![b' '; length]).await.unwrap();
        }
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains(says), "{answer}");
    }
    // Half a body, then nothing, or the end.
    for end in [true, false] {
        let mut socket = TcpStream::connect(node.address).await.unwrap();
        let head = format!("{DOUBLE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000000\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&[b'{'; 500_000]).await.unwrap();
        if end {
            drop(socket);
            continue;
        }
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.contains(" 504 ") && answer.contains("did not arrive"),
            "{answer}"
        );
    }
    // A caller that leaves while its model runs.
    let mut socket = TcpStream::connect(node.address).await.unwrap();
    let body = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}"#;
    let head = format!(
        "POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let running = |wanted| {
        let fake = &fake;
        async move {
            for _ in 0..500 {
                if fake.running.load(Ordering::SeqCst) == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("not {wanted} running");
        }
    };
    running(1).await;
    drop(socket);
    running(0).await;
    quiet(&node).await;
    assert_eq!(node.core.admit().bytes(), 0);
    // The same ends at its deadline, however it is said.
    for (headers, body) in [
        (vec![("skep-timeout-ms", "50")], body.to_owned()),
        (vec![], body.replacen('{', r#"{"parameters":{"timeout":50000},"#, 1)),
    ] {
        let late = http(&node, "POST /v2/models/slow/infer", &headers, body.as_bytes()).await;
        assert_eq!(late.status, 504, "{}", late.body);
        running(0).await;
    }
}

#[tokio::test]
async fn a_refused_caller_keeps_its_connection_or_is_told_that_it_does_not() {
    let (node, _) = models(Settings {
        body_timeout_ms: 500,
        ..Settings::default()
    })
    .await;
    let mut socket = TcpStream::connect(node.address).await.unwrap();
    // The body comes after the answer could have been given.
    for (request, status) in [
        ("POST /v2/models/nothing/infer", " 404 "),
        ("POST /v2/models/double/versions/No/infer", " 400 "),
        ("POST /v2/repository/models/m/load", " 501 "),
        ("POST /v2/models/double", " 405 "),
        ("POST /v2/nothing", " 404 "),
        (DOUBLE, " 200 "),
    ] {
        let body = x("[1, 2]");
        let head = format!(
            "{request} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        socket.write_all(body.as_bytes()).await.unwrap();
        let mut answer = vec![0; 64 << 10];
        let read = socket.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with(&format!("HTTP/1.1{status}")), "{request}: {answer}");
        assert!(!answer.contains("connection: close"), "{request}: {answer}");
    }
    // Too much to wait for; never whole.
    for (length, sent) in [(1_000_000, 10), (1_000, 10)] {
        let mut socket = TcpStream::connect(node.address).await.unwrap();
        let head = format!("POST /v2/models/nothing/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&vec![b' '; sent]).await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.contains(" 404 ") && answer.contains("connection: close"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_swarm_is_called_by_its_subject() {
    let (node, _) = models(Settings {
        sample_ratio: 1.0,
        ..Settings::default()
    })
    .await;
    let subject = |name: &str| format!("POST /v2/models/subject.{name}/infer");
    // What it answers is no inference response: one output of bytes.
    let sent = x("[1, 2]");
    let answer = http(&node, &subject("echo"), &[], sent.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.json(),
        json!({
            "model_name": "subject.echo", "id": "7",
            "outputs": [{"name": "response", "datatype": "BYTES", "shape": [1], "data": [sent]}],
        })
    );
    assert!(answer.header("skep-trace-id").is_some());
    // A request that is an inference response too, so that the echo answers with one; what it says is written as the caller asks.
    let both = r#"{"id":"9","inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}],
        "outputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}"#;
    let body = [both.as_bytes(), &1.5f32.to_le_bytes()].concat();
    let length = both.len().to_string();
    let length = ("inference-header-content-length", length.as_str());
    for name in ["echo", "durable"] {
        let answer = http(&node, &subject(name), &[length], &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(
            answer.json()["outputs"],
            json!([{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}])
        );
        assert_eq!(answer.json()["model_name"], format!("subject.{name}"));
    }
    // What a Bee sees beside the body.
    let (in_binary, in_binary_length) = binary("", &[1.0, 2.0]);
    let headers = [
        ("inference-header-content-length", in_binary_length.as_str()),
        ("skep-header-show-headers", "1"),
        ("skep-header-content-type", "x"),
    ];
    let shown = http(&node, &subject("echo"), &headers, &in_binary).await;
    let shown = shown.json()["outputs"][0]["data"][0].as_str().unwrap().to_owned();
    let mut headers: Vec<(String, String)> = serde_json::from_str(&shown).unwrap();
    headers.sort();
    let wanted = [
        ("content-type", "application/octet-stream"),
        ("inference-header-content-length", in_binary_length.as_str()),
        ("show-headers", "1"),
    ];
    assert_eq!(headers, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    // Another output is asked for than it gives; it fails; it is late.
    let other = sent.replacen('{', r#"{"outputs":[{"name":"y"}],"#, 1);
    let answer = http(&node, &subject("echo"), &[], other.as_bytes()).await;
    // An echo of what looks like a response and is none.
    assert_eq!(
        (answer.status, answer.header("skep-outcome")),
        (500, Some("done")),
        "{}",
        answer.body
    );
    assert!(
        answer.body.contains("looks like an inference response"),
        "{}",
        answer.body
    );
    let wanted = both.replace("\"outputs\"", r#""parameters":{"binary_data_output":true},"outputs""#);
    let body = [wanted.as_bytes(), &1.5f32.to_le_bytes()].concat();
    let length = wanted.len().to_string();
    let answer = http(
        &node,
        &subject("echo"),
        &[("inference-header-content-length", &length)],
        &body,
    )
    .await;
    assert_eq!(answer.bytes[answer.bytes.len() - 4..], 1.5f32.to_le_bytes());
    let late = http(&node, &subject("silent"), &[("skep-timeout-ms", "30")], sent.as_bytes()).await;
    assert_eq!(late.status, 504, "{}", late.body);
    let keyed = [("idempotency-key", "a")];
    let first = http(&node, &subject("durable"), &keyed, sent.as_bytes()).await;
    assert_eq!(first.status, 200, "{}", first.body);
    let reused = http(&node, &subject("durable"), &keyed, x("[3, 4]").as_bytes()).await;
    assert_eq!(reused.status, 422, "{}", reused.body);
}

#[tokio::test]
async fn a_tenant_sees_its_own_and_nobody_comes_in_without_a_token() {
    let (node, _) = models(Settings::default()).await;
    let [ours, acme, zeta, lone, new] = close(&node, ["default", "acme", "zeta", "lone", "new"]);
    let body = br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}"#;
    for path in [
        "GET /v2/models/double",
        "POST /v2/models/double/infer",
        "GET /v2",
        "POST /v2/repository/index",
    ] {
        let refused = http(&node, path, &[], body).await;
        assert_eq!(refused.status, 401, "{path}");
        assert!(refused.json()["error"].as_str().unwrap().contains("valid token"));
        assert!(refused.header("www-authenticate").is_some());
    }
    assert_eq!(get(&node, "/v2/health/live").await.status, 200);
    assert_eq!(get(&node, "/v2/health/ready").await.status, 200);
    let bearer = |token: &str| format!("Bearer {token}");
    let (ours, acme, zeta) = (bearer(&ours), bearer(&acme), bearer(&zeta));
    // Models alone are enough to be let in; until the node has heard of them a caller is told to try again.
    for (token, status) in [(lone, 200), (new, 503)] {
        let token = bearer(&token);
        let answer = http(&node, "POST /v2/models/only/infer", &[("authorization", &token)], body).await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
    let secret = "POST /v2/models/secret/infer";
    assert_eq!(http(&node, secret, &[("authorization", &acme)], body).await.status, 200);
    // Of another tenant, and of nobody.
    let hidden = http(&node, secret, &[("authorization", &zeta)], body).await;
    let absent = http(&node, "POST /v2/models/absent/infer", &[("authorization", &zeta)], body).await;
    assert_eq!(hidden.status, 404);
    assert_eq!(hidden.body.replace("secret", "absent"), absent.body);
    assert_eq!(http(&node, secret, &[("authorization", &ours)], body).await.status, 404);
    let index = http(&node, "POST /v2/repository/index", &[("authorization", &acme)], b"").await;
    let names: Vec<String> = index
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["secret", "subject.echo"]);
    let traffic = |tenant: &str| {
        let table = node.routes.borrow();
        table.purse(&tenant.parse().unwrap()).unwrap().traffic()
    };
    assert_eq!((traffic("acme").messages, traffic("zeta").messages), (1, 0));
    assert!(traffic("acme").bytes_in > 0 && traffic("acme").bytes_out > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_count_and_are_bounded_and_a_stop_lets_them_end() {
    let (node, fake) = models(Settings {
        in_flight: 10,
        ..Settings::default()
    })
    .await;
    let body = br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}"#;
    let calls = (0..20).map(|_| http(&node, "POST /v2/models/slow/infer", &[("skep-timeout-ms", "700")], body));
    let answers = futures::future::join_all(calls).await;
    let (late, busy): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 504);
    assert!((5..=10).contains(&late.len()), "{}", late.len());
    for refused in busy {
        assert_eq!(refused.status, 429, "{}", refused.body);
        assert!(refused.header("retry-after").is_some());
    }
    quiet(&node).await;
    // Many at once, all of them right.
    let calls = (0..200).map(|at| {
        let node = &node;
        async move {
            let body = x(&format!("[{at}, 1]"));
            loop {
                let answer = http(node, DOUBLE, &[], body.as_bytes()).await;
                if answer.status == 429 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                }
                assert_eq!(answer.json()["outputs"][0]["data"], json!([2.0 * f64::from(at), 2.0]));
                return;
            }
        }
    });
    futures::future::join_all(calls).await;
    // What is under way when the node stops ends; nothing else comes in.
    let last = http(&node, "POST /v2/models/slow/infer", &[("skep-timeout-ms", "500")], body);
    let stop = async {
        while fake.running.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.stop.cancel();
    };
    let (last, ()) = tokio::join!(last, stop);
    assert_eq!(last.status, 504, "{}", last.body);
}
