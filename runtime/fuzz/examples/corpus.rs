//! Writes the first inputs of every target: real files of the samples and tests, and calls as clients send them. What a fuzzer found lies beside them,
//! as `found-…`, and stays.
//!
//! `cargo run --release -p skep-fuzz --example corpus`

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;
use skep_fuzz::grpc::MESSAGES;
use skep_model::access::{PeerKey, Secret, TokenId};
use skep_model::env::SeededEntropy;
use skep_model::oip::{Request, Response};
use skep_model::tensor::Tensor;
use skep_proto::inference::ModelInferRequest;
use skep_proto::inference::model_infer_request::InferInputTensor;
use skep_proto::v1::{
    ApplySwarmRequest, CreateTokenRequest, Header, ModelHeader, OutMessage, PushHeader, PushModelRequest,
    PushModuleRequest, RequestCall, SubmitCall, SubmitFrame, push_model_request, push_module_request,
};

/// One target's inputs together: a fuzzer reads all of them before it begins.
const BYTES_MAX: usize = 64 << 10;

struct Corpus {
    folder: PathBuf,
    bytes: usize,
}

impl Corpus {
    /// Empties a target's folder, but for what was found.
    fn of(target: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&folder).expect("a folder for the corpus");
        for entry in fs::read_dir(&folder).expect("the folder just made").flatten() {
            if !entry.file_name().to_string_lossy().starts_with("found-") {
                fs::remove_file(entry.path()).expect("a file of an earlier corpus");
            }
        }
        Self { folder, bytes: 0 }
    }

    fn put(&mut self, name: &str, bytes: &[u8]) {
        self.bytes += bytes.len();
        assert!(
            self.bytes <= BYTES_MAX,
            "{} is larger than {BYTES_MAX} bytes with {name}",
            self.folder.display()
        );
        fs::write(self.folder.join(name), bytes).expect("a file of the corpus");
    }
}

/// Files below a folder of the repository that end in one of these.
fn files(folder: &str, ends: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let mut found: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.to_string_lossy().ends_with(ends))
        .collect();
    found.sort();
    let named = |path: PathBuf| {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, fs::read(path).expect("a file of the repository"))
    };
    found.into_iter().map(named).collect()
}

fn main() {
    models();
    tensors();
    manifests();
    units();
    frames();
    tokens();
    grpc();
    http();
    components();
}

fn models() {
    let mut corpus = Corpus::of("model");
    for folder in ["runtime/inference/tests/models", "samples/models"] {
        for (name, bytes) in files(folder, ".onnx") {
            // The forests and the larger networks are more of the same.
            if bytes.len() <= 4 << 10 {
                corpus.put(&name, &bytes);
            }
        }
    }
    corpus.put("no-model", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
}

fn tensors() {
    let mut corpus = Corpus::of("tensor");
    let call = |json: &str, binary: &[u8], said: bool| {
        let length = if said {
            u16::try_from(json.len()).expect("short")
        } else {
            u16::MAX
        };
        [&[0], &length.to_le_bytes()[..], json.as_bytes(), binary].concat()
    };
    let json = r#"{"id":"7","inputs":[{"name":"x","datatype":"FP32","shape":[2,2],"data":[1,2.5,-3e2,4]},
        {"name":"t","datatype":"BYTES","shape":[2],"data":["a","\u00e9"]}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
    corpus.put("json", &call(json, b"", false));
    let json = r#"{"inputs":[{"name":"x","datatype":"INT64","shape":[1,2],"parameters":{"binary_data_size":16}},
        {"name":"b","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":11}}],
        "parameters":{"binary_data_output":true,"timeout":1500,"priority":1}}"#;
    let binary = [
        &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..],
        b"\x03\0\0\0abc\0\0\0\0",
    ]
    .concat();
    corpus.put("binary", &call(json, &binary, true));
    corpus.put("binary-without-length", &call(json, &binary, false));
    corpus.put(
        "nested",
        &call(
            r#"{"inputs":[{"name":"x","datatype":"UINT8","shape":[2,1,2],"data":[[[1,2]],[[3,4]]]}]}"#,
            b"",
            false,
        ),
    );
    for (name, kind) in [
        ("fp64", "FP64"),
        ("fp16", "FP16"),
        ("bf16", "BF16"),
        ("bool", "BOOL"),
        ("u64", "UINT64"),
    ] {
        let json = format!(r#"{{"inputs":[{{"name":"x","datatype":"{kind}","shape":[2],"data":[0,1]}}]}}"#);
        corpus.put(name, &call(&json, b"", false));
    }
    let response = Response {
        model: "m".into(),
        version: "v1".into(),
        outputs: vec![
            (
                "y".to_owned(),
                Tensor::from_f32(vec![2, 1], &[0.5, -0.25]).expect("a tensor"),
            ),
            (
                "s".to_owned(),
                Tensor::from_contents(vec![1], [&b"text"[..]]).expect("a tensor"),
            ),
        ],
        ..Response::default()
    };
    for (name, binary) in [("answer", false), ("answer-binary", true)] {
        let body = response.write(|_| binary).expect("an answer");
        let length = body
            .json_length
            .map_or(u16::MAX, |length| u16::try_from(length).expect("short"));
        corpus.put(name, &[&[1], &length.to_le_bytes()[..], &body.bytes].concat());
    }
    let empty = Request {
        inputs: vec![("x".to_owned(), Tensor::from_i64(vec![0, 3], &[]).expect("a tensor"))],
        ..Request::default()
    };
    corpus.put(
        "no-rows",
        &[&[0, 255, 255], &empty.write(|_| false).expect("a call").bytes[..]].concat(),
    );
    for (name, json) in [
        ("plain-row", "[1, 2]"),
        ("plain-rows", "[[1, 2], [3, 4]]"),
        ("plain-object", r#"{"x": [1, 2, 3], "y": [[1], [2], [3]]}"#),
        ("plain-text", r#"["a", "b"]"#),
    ] {
        corpus.put(name, &[&[2], json.as_bytes()].concat());
    }
    // FP32, three dimensions; BYTES, one.
    let dims = |dims: &[u64]| -> Vec<u8> { dims.iter().flat_map(|dim| dim.to_le_bytes()).collect() };
    for (at, kind) in skep_model::tensor::TensorType::ALL.into_iter().enumerate() {
        let choice = 3 | u8::try_from(at << 2).expect("few types");
        match kind.size() {
            Some(size) => {
                let name = format!("raw-{kind}").to_lowercase();
                corpus.put(&name, &[&[choice, 2], &dims(&[2, 3])[..], &vec![1; 6 * size]].concat());
            }
            None => corpus.put(
                "raw-bytes",
                &[&[choice, 1], &dims(&[2])[..], b"\x01\0\0\0a\0\0\0\0"].concat(),
            ),
        }
    }
    corpus.put("raw-empty", &[&[3, 2][..], &dims(&[0, 1 << 20])].concat());
}

fn manifests() {
    let mut corpus = Corpus::of("manifest");
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples");
    let mut folders: Vec<PathBuf> = fs::read_dir(samples)
        .expect("the samples")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    folders.sort();
    for folder in folders {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        if let Ok(manifest) = fs::read(folder.join("swarm.yaml")) {
            corpus.put(&name, &manifest);
        }
    }
    corpus.put("much", MUCH.as_bytes());
    corpus.put(
        "json",
        br#"{"name":"s","bees":[{"name":"a","module":"m","input":{"gateway":"a"}}]}"#,
    );
    corpus.put("aliases", b"a: &a [x, x]\nb: &b [*a, *a]\nname: s\nbees: [*b, *b]\n");
    corpus.put("no-yaml", b"name: [\n  - {");
    corpus.put(
        "mistakes",
        b"name: S\nbees:\n- name: a\n  module: m\n  retry: { attempts: 0 }\n  inputs: b\n- name: a\n",
    );
}

/// Most of what a manifest may say.
const MUCH: &str = "name: much
bees:
- name: a
  module: m:v1
  bee: f
  input: { gateway: a }
  key: json:/user
  state: { ttl: 1h, keys: 1000 }
  order: relaxed
  retry: { attempts: 3, backoff: 100ms, max_backoff: 2s }
  timeout: 5s
  batch: { messages: 16, bytes: 1MiB, wait: 5ms }
  partitions: 8
  concurrency: 4
  inbox: { messages: 1000, bytes: 8MiB }
  dead_letters: { messages: 100, bytes: 1MiB }
  instances: pooled
  memory: 64MiB
  config: { a: b, c: \"1\" }
  secrets: [k]
  http: [api.example.com, 'http://*.example.com:8080']
  models: [iris, fraud:v2]
  clock: real
  exit: { header: kind, is: done }
- name: b
  module: m@sha256:0000000000000000000000000000000000000000000000000000000000000000
  inputs:
  - from: a
    when: { all: [{ json: /n, above: 3 }, { not: { json: /t, in: [x, y] } }] }
  - from: c
    loop: true
- name: c
  built-in: { model: iris }
  input: b
";

fn units() {
    let mut corpus = Corpus::of("units");
    for text in [
        "30s",
        "1500ms",
        "24h",
        "30d",
        "64MiB",
        "100KB",
        "10 B",
        "1TiB",
        "0.5",
        "1000/s",
        "40",
        "a-name",
        "m:v1",
        "t/s",
        "secret:k",
        "invoke",
        "m@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "https://api.example.com:8443",
        "http://*.example.com",
        "[::1]:80",
        "http:192.0.2.1",
        "model:iris:v2",
        "0x7f.1",
        "EXAMPLE.com.",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "18446744073709551615B",
        "-1s",
        "",
        "\u{0660}s",
    ] {
        let name: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        corpus.put(&format!("u-{}", &name[..name.len().min(40)]), text.as_bytes());
    }
}

fn frames() {
    let mut corpus = Corpus::of("frame");
    // The first byte of an input, by the kind's number.
    let kinds = [
        "frame",
        "parked",
        "timer",
        "dead-letter",
        "reply",
        "partition",
        "state",
        "catalog",
        "journal",
        "layout",
        "piece",
    ];
    for (name, record) in files("runtime/topic/tests/golden", ".bin") {
        let kind = kinds
            .iter()
            .rposition(|kind| name.starts_with(kind))
            .expect("a kind of record");
        let kind = u8::try_from(kind).expect("few kinds");
        corpus.put(&name, &[&[kind], &record[5..]].concat());
        corpus.put(&format!("{name}-whole"), &[&[kind | 0x80], &record[..]].concat());
        if name == "reply" {
            let mut other = record.clone();
            other[0] += 1;
            corpus.put("newer", &[&[kind | 0x80], &other[..]].concat());
            other[0] -= 1;
            other[7] ^= 1;
            corpus.put("damaged", &[&[kind | 0x80], &other[..]].concat());
        }
    }
}

fn tokens() {
    let mut corpus = Corpus::of("token");
    let entropy = SeededEntropy::new(1);
    let key = PeerKey::random(&entropy);
    let secret = Secret::random(TokenId::random(&entropy), &entropy);
    corpus.put("token", secret.text().as_bytes());
    corpus.put("id", secret.id.to_string().as_bytes());
    corpus.put("hash", secret.hash().to_string().as_bytes());
    corpus.put("key", key.to_hex().as_bytes());
    corpus.put("proof", key.proof("/p", 1_000_000).as_bytes());
    corpus.put(
        "proof-of-another",
        PeerKey::random(&entropy).proof("/p", 1_000_000).as_bytes(),
    );
    corpus.put("jwt-unsigned", b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.");
    for (name, ends) in [("jwt", ".jwt"), ("jwks", ".jwks")] {
        let (_, text) = files("gateway/src/door/oidc/tests", ends).remove(0);
        corpus.put(name, text.trim_ascii());
    }
    corpus.put("jwks-kinds", br#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","use":"sig","alg":"ES256","x":"AA","y":"AA"},{"kty":"OKP","crv":"Ed25519","kid":"b","x":"AA"},{"kty":"oct","k":"AA"}]}"#);
}

/// As clients send them, with the name of what each is of.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let header = || Header {
        name: "a".into(),
        value: "b".into(),
    };
    let out = || OutMessage {
        payload: "payload".into(),
        headers: vec![header()],
        key: Some("k".into()),
    };
    let input = InferInputTensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![1, 2],
        ..InferInputTensor::default()
    };
    vec![
        (
            "v1::RequestCall",
            RequestCall {
                id: 1,
                subject: "echo".into(),
                payload: "hello".into(),
                headers: vec![header()],
                key: Some("k".into()),
                timeout_ms: 5_000,
                idempotency_key: None,
                traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            }
            .encode_to_vec(),
        ),
        (
            "v1::SubmitCall",
            SubmitCall {
                subject: "durable".into(),
                messages: vec![out(), out()],
                idempotency_key: Some("once".into()),
                traceparent: None,
            }
            .encode_to_vec(),
        ),
        (
            "v1::SubmitFrame",
            SubmitFrame {
                subject: "durable".into(),
                session: vec![7; 16].into(),
                first: 1,
                messages: vec![out()],
                traceparent: None,
            }
            .encode_to_vec(),
        ),
        (
            "v1::ApplySwarmRequest",
            ApplySwarmRequest {
                manifest: MUCH.into(),
                dry_run: true,
                grant: vec!["secret:k".into()],
                ..ApplySwarmRequest::default()
            }
            .encode_to_vec(),
        ),
        (
            "v1::PushModuleRequest",
            PushModuleRequest {
                part: Some(push_module_request::Part::Header(PushHeader {
                    name: "m".into(),
                    tag: "v1".into(),
                    ..PushHeader::default()
                })),
            }
            .encode_to_vec(),
        ),
        (
            "v1::PushModelRequest",
            PushModelRequest {
                part: Some(push_model_request::Part::Header(ModelHeader {
                    name: "m".into(),
                    tag: "v1".into(),
                    ..ModelHeader::default()
                })),
            }
            .encode_to_vec(),
        ),
        (
            "v1::CreateTokenRequest",
            CreateTokenRequest {
                tenant: "t".into(),
                role: "invoke".into(),
                name: "n".into(),
                ttl_ms: 60_000,
            }
            .encode_to_vec(),
        ),
        (
            "inference::ModelInferRequest",
            ModelInferRequest {
                model_name: "echo".into(),
                inputs: vec![input],
                raw_input_contents: vec![vec![0; 8].into()],
                ..ModelInferRequest::default()
            }
            .encode_to_vec(),
        ),
    ]
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short");
    [&[0], &length.to_be_bytes()[..], message].concat()
}

fn grpc() {
    let mut corpus = Corpus::of("grpc");
    for (name, message) in messages() {
        let of = MESSAGES
            .iter()
            .position(|known| *known == name)
            .expect("a method takes it");
        let of = u8::try_from(of).expect("few methods");
        let file = name.replace("::", "-");
        corpus.put(&file, &[&[of, 0], &message[..]].concat());
        corpus.put(
            &format!("{file}-twice"),
            &[&[of, 1], &framed(&message)[..], &framed(&message)].concat(),
        );
        let length = 1 + 4 + message.len() / 2;
        corpus.put(
            &format!("{file}-cut"),
            &[&[of, 1], &framed(&message)[..length]].concat(),
        );
    }
    // Every other method, with an empty message, and with one that has a text in its first fields.
    for of in 0..u8::try_from(MESSAGES.len()).expect("few methods") {
        corpus.put(&format!("m{of}"), &[of, 0]);
        corpus.put(
            &format!("m{of}-texts"),
            &[&[of, 0][..], b"\x0a\x01a\x12\x01b\x1a\x01c"].concat(),
        );
    }
}

fn http() {
    let mut corpus = Corpus::of("http");
    let post = |path: &str, headers: &str, body: &[u8]| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    corpus.put(
        "echo",
        &post("/v1/echo", "content-type: application/json\r\n", b"{\"a\":1}"),
    );
    let headers = "idempotency-key: k\r\nskep-key: u\r\nskep-timeout-ms: 500\r\nskep-header-a: b\r\n\
                   traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    corpus.put("durable", &post("/v1/durable", headers, b"hello"));
    corpus.put(
        "submit",
        &post(
            "/v1/durable:submit",
            "content-type: application/x-ndjson\r\n",
            b"{\"a\":1}\n\n2\n",
        ),
    );
    corpus.put(
        "query",
        &post("/v1/echo?skep-key=a&skep-timeout-ms=9&idempotency-key=%41", "", b"x"),
    );
    // What follows is the beginning of another call, which never comes whole.
    let rest = b"POST /v1/echo HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\n\r\nx";
    corpus.put("rest", rest);
    corpus.put("events", &post("/v1/echo", "accept: text/event-stream\r\n", b"x"));
    corpus.put(
        "chunked",
        b"POST /v1/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
    );
    let two = [
        post("/v1/echo", "", b"1"),
        b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
    ]
    .concat();
    corpus.put("two", &two);
    corpus.put("expect", &post("/v1/echo", "expect: 100-continue\r\n", b"1"));
    corpus.put("cut", &post("/v1/echo", "", b"hello")[..50]);
    let body = br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}"#;
    corpus.put("infer", &post("/v2/models/echo/infer", "", body));
    let json = br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}"#;
    let said = format!("inference-header-content-length: {}\r\n", json.len());
    corpus.put(
        "infer-binary",
        &post("/v2/models/echo/infer", &said, &[&json[..], &[0; 8]].concat()),
    );
    corpus.put("infer-swarm", &post("/v2/models/subject.echo/infer", "", body));
    corpus.put("index", &post("/v2/repository/index", "", b"{\"ready\":true}"));
    for (name, path) in [
        ("live", "/v2/health/live"),
        ("model", "/v2/models/echo"),
        ("version", "/v2/models/echo/versions/latest/ready"),
        ("ready", "/readyz"),
        ("unknown", "/v3/%00%ff/.."),
    ] {
        corpus.put(name, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes());
    }
    let calls = messages();
    let of = |name: &str| framed(&calls.iter().find(|(known, _)| *known == name).expect("a message").1);
    for (name, path, body) in [
        ("h2-request", "/skep.v1.Gateway/Request", of("v1::RequestCall")),
        (
            "h2-requests",
            "/skep.v1.Gateway/Requests",
            [of("v1::RequestCall"), of("v1::RequestCall")].concat(),
        ),
        ("h2-stream", "/skep.v1.Gateway/RequestStream", of("v1::RequestCall")),
        ("h2-submit", "/skep.v1.Gateway/Submit", of("v1::SubmitCall")),
        ("h2-submits", "/skep.v1.Gateway/SubmitStream", of("v1::SubmitFrame")),
        (
            "h2-infer",
            "/inference.GRPCInferenceService/ModelInfer",
            of("inference::ModelInferRequest"),
        ),
        ("h2-health", "/grpc.health.v1.Health/Check", framed(b"")),
        ("h2-unknown", "/skep.v1.Beekeeper/Node", framed(b"")),
    ] {
        corpus.put(name, &http2(path, &body));
    }
}

/// A connection of HTTP/2 with one call (RFC 9113 §4.1; RFC 7541 §6.2.2: fields with names of their own, not kept, not compressed).
fn http2(path: &str, body: &[u8]) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let mut fields = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("grpc-timeout", "5S"),
    ] {
        for text in [name, value] {
            if text == name {
                fields.push(0);
            }
            fields.push(u8::try_from(text.len()).expect("short"));
            fields.extend_from_slice(text.as_bytes());
        }
    }
    [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(4, 0, 0, b""),
        // END_HEADERS; END_STREAM.
        &frame(1, 4, 1, &fields),
        &frame(0, 1, 1, body),
    ]
    .concat()
}

fn components() {
    let mut corpus = Corpus::of("component");
    for (name, text) in [
        ("empty", "(component)"),
        ("bee", BEE),
        ("libraries", LIBRARIES),
        ("core", "(module (func (export \"a\")))"),
        (
            "doubling",
            "(component (component $a (core module $m) (core instance (instantiate $m)) (core instance (instantiate $m))) (instance (instantiate $a)) (instance (instantiate $a)))",
        ),
        ("import", "(component (import \"wasi:sockets/tcp@0.2.0\" (instance)))"),
    ] {
        let bytes = wat::parse_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        corpus.put(name, &bytes);
    }
    corpus.put("text", b"(component)");
}

/// A component with the export of a module of Bees, which is all that the look at it asks for.
const BEE: &str = r#"(component
  (import "wasi:logging/logging@0.1.0-draft" (instance))
  (core module $m (memory (export "memory") 1) (table 4 funcref) (data (i32.const 0) "here")
    (func (export "f") (param i32) (result i32) (local i64 f32)
      (block (loop (br_if 1 (local.get 0)))) (local.get 0)))
  (core instance $i (instantiate $m))
  (type $t (func (param "n" u32) (result u32)))
  (func $f (type $t) (canon lift (core func $i "f")))
  (component $c (import "f" (func $f (param "n" u32) (result u32))) (export "process" (func $f)))
  (instance $h (instantiate $c (with "f" (func $f))))
  (export "skep:bee/handler@0.1.0" (instance $h)))"#;

/// Shared libraries, as the Python toolchain makes them: a main module and a library that shares its memory and table.
const LIBRARIES: &str = r#"(component
  (import "wasi:logging/logging@0.1.0-draft" (instance $log (export "n" (func (param "n" u32) (result u32)))))
  (alias export $log "n" (func $host))
  (core module $main
    (type $t (func (param i32) (result i32)))
    (table (export "__indirect_function_table") 8 funcref)
    (memory (export "memory") 1)
    (global (export "lib:table_base") i32 (i32.const 1))
    (global (export "__stack_pointer") (mut i32) (i32.const 65536))
    (data (i32.const 16) "here")
    (func (export "through") (type $t) (call_indirect (type $t) (local.get 0) (i32.const 1))))
  (core module $lib
    (@dylink.0 (mem-info (memory 4 0) (table 2 0)))
    (type $t (func (param i32) (result i32)))
    (import "env" "memory" (memory 0))
    (import "env" "__indirect_function_table" (table 0 funcref))
    (import "env" "__table_base" (global $base i32))
    (import "env" "__stack_pointer" (global $stack (mut i32)))
    (import "env" "through" (func $through (type $t)))
    (import "env" "host" (func $host (type $t)))
    (global $own i32 (i32.add (global.get $base) (i32.const 4)))
    (elem (global.get $base) func $twice)
    (func $twice (type $t) (i32.add (local.get 0) (i32.add (local.get 0) (global.get $own))))
    (func (export "run") (type $t) (call $host (call $through (local.get 0)))))
  (core instance $m (instantiate $main))
  (alias core export $m "memory" (core memory $memory))
  (alias core export $m "__indirect_function_table" (core table $table))
  (alias core export $m "lib:table_base" (core global $base))
  (alias core export $m "__stack_pointer" (core global $stack))
  (alias core export $m "through" (core func $through))
  (core func $lowered (canon lower (func $host)))
  (core instance $env
    (export "memory" (memory $memory))
    (export "__indirect_function_table" (table $table))
    (export "__table_base" (global $base))
    (export "__stack_pointer" (global $stack))
    (export "through" (func $through))
    (export "host" (func $lowered)))
  (core instance $l (instantiate $lib (with "env" (instance $env))))
  (alias core export $l "run" (core func $run))
  (type $ty (func (param "n" u32) (result u32)))
  (func $lifted (type $ty) (canon lift (core func $run) (memory $memory)))
  (component $c (import "f" (func $f (param "n" u32) (result u32))) (export "process" (func $f)))
  (instance $h (instantiate $c (with "f" (func $lifted))))
  (export "skep:bee/handler@0.1.0" (instance $h)))"#;
