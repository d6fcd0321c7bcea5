//! Models inside a Bee, through `skep:bee/models` and `wasi:nn`: real models on the real backend, and everything that is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use skep_engine::{Bee, BeeSettings, CompilerLimits, Meter, Module};
use skep_inference::backend::tract::Tract;
use skep_inference::{Limits, Policy, Shelf, Subject, Threads, inspect, shelf};
use skep_model::Bytes;
use skep_model::error::ErrorKind;
use skep_model::id::Digest;
use skep_model::limits::NN_OBJECTS_MAX;
use skep_model::name::{ModelRef, TenantId};
use skep_model::predict::{Later, ModelAccess, ModelVersion, Models, PredictError, Tensors};
use skep_model::step::TrapKind;
use skep_model::swarm::Instances;
use skep_model::tensor::{Port, Signature, Tensor, TensorType};
use tokio::sync::OnceCell;

use crate::built;
use crate::zoo::{answers, batch, compiler, engine, message, plain, trap};

/// The sample models on tract, and some that misbehave.
#[derive(Debug)]
struct Node {
    shelf: Arc<Shelf>,
    files: BTreeMap<String, (Bytes, Arc<ModelVersion>)>,
    under_way: AtomicUsize,
    most: AtomicUsize,
}

/// What models of these names do: no file is behind them.
const ODD: [(&str, TensorType); 7] = [
    ("echo", TensorType::U8),
    ("words", TensorType::Bytes),
    ("never", TensorType::Fp32),
    ("spins", TensorType::Fp32),
    ("panics", TensorType::Fp32),
    ("busy", TensorType::Fp32),
    ("breaks", TensorType::Fp32),
];
const SPINS: Duration = Duration::from_millis(300);

fn version(name: &str, digest: Digest, signature: Signature) -> Arc<ModelVersion> {
    Arc::new(ModelVersion {
        name: name.parse().unwrap(),
        digest,
        tags: vec![String::from("latest")],
        signature,
    })
}

impl Node {
    fn start() -> Arc<Self> {
        let threads = Threads::start(1).unwrap();
        let shelf = Shelf::new(Arc::new(Tract::new()), threads, shelf::Settings::default());
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../samples/models");
        let mut files = BTreeMap::new();
        for name in ["digits-mlp", "iris", "wine", "cancer-forest"] {
            let bytes = Bytes::from(std::fs::read(folder.join(format!("{name}.onnx"))).unwrap());
            let described = inspect(&bytes, &Limits::default()).unwrap();
            let version = version(name, Digest::of(&bytes), described.signature);
            files.insert(name.to_owned(), (bytes, version));
        }
        for (name, kind) in ODD {
            let port = |name: &str| Port {
                name: name.into(),
                kind,
                shape: vec![None],
            };
            let signature = Signature {
                inputs: vec![port("x")],
                outputs: vec![port("x")],
            };
            files.insert(
                name.to_owned(),
                (Bytes::new(), version(name, Digest::of(name.as_bytes()), signature)),
            );
        }
        Arc::new(Self {
            shelf,
            files,
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }
}

struct UnderWay<'a>(&'a Node);

impl<'a> UnderWay<'a> {
    fn new(node: &'a Node) -> Self {
        let now = node.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        node.most.fetch_max(now, Ordering::SeqCst);
        Self(node)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Models for Node {
    fn find<'a>(&'a self, tenant: &'a TenantId, model: &'a ModelRef) -> Later<'a, Arc<ModelVersion>> {
        Box::pin(async move {
            let found = self
                .files
                .get(model.name.as_str())
                .filter(|_| *tenant == TenantId::default_tenant());
            let missing = || PredictError::new(ErrorKind::NotFound, format!("there is no model `{model}`"));
            Ok(Arc::clone(&found.ok_or_else(missing)?.1))
        })
    }

    fn list<'a>(&'a self, _: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn load<'a>(&'a self, _: &'a TenantId, _: &'a ModelVersion) -> Later<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn predict<'a>(
        &'a self,
        tenant: &'a TenantId,
        model: &'a ModelVersion,
        inputs: Tensors,
        deadline: Option<Instant>,
    ) -> Later<'a, Tensors> {
        Box::pin(async move {
            let _counted = UnderWay::new(self);
            let bytes = self.files[model.name.as_str()].0.clone();
            let told = |error: skep_inference::InferError| PredictError::new(error.kind(), error.to_string());
            if bytes.is_empty() {
                let checked = model.signature.check(&inputs);
                checked.map_err(|wrong| PredictError::new(ErrorKind::Invalid, wrong.to_string()))?;
            }
            match model.name.as_str() {
                "echo" | "words" => return Ok(inputs),
                "never" => std::future::pending().await,
                // On this thread, as a small model runs.
                "spins" => {
                    let until = Instant::now() + SPINS;
                    while Instant::now() < until {}
                    return Ok(inputs);
                }
                "panics" => panic!("the model is on fire"),
                "busy" => return Err(PredictError::new(ErrorKind::Overloaded, "the model is busy")),
                "breaks" => return Err(PredictError::new(ErrorKind::Failed, "the model broke")),
                _ => {}
            }
            let read = move || async move { Ok(bytes) };
            let lease = self
                .shelf
                .model(model.digest, Policy::default(), read)
                .await
                .map_err(told)?;
            let subject = Subject::named(tenant.as_str());
            lease.infer(subject, inputs, deadline).await.map_err(told)
        })
    }
}

fn node() -> Arc<Node> {
    static NODE: OnceLock<Arc<Node>> = OnceLock::new();
    Arc::clone(NODE.get_or_init(Node::start))
}

fn access(granted: &[&str]) -> Arc<ModelAccess> {
    Arc::new(ModelAccess {
        models: node(),
        tenant: TenantId::default_tenant(),
        granted: granted.iter().map(|model| model.parse().unwrap()).collect(),
    })
}

/// Everything that the node has, and one that it has not.
fn granting() -> BeeSettings {
    let mut all: Vec<&str> = node()
        .files
        .keys()
        .map(String::as_str)
        .map(|name| &*name.to_owned().leak())
        .collect();
    all.push("nobody");
    BeeSettings {
        models: Some(access(&all)),
        ..plain()
    }
}

fn pooled() -> BeeSettings {
    BeeSettings {
        instances: Instances::Pooled {
            calls: 1_000,
            age_s: 60,
        },
        ..granting()
    }
}

async fn module() -> Module {
    static MODULE: OnceCell<Module> = OnceCell::const_new();
    MODULE
        .get_or_init(|| async {
            let wasm = Bytes::from(built::guest("predictor"));
            let digest = Digest::of(&wasm);
            let artifact = compiler(CompilerLimits::default()).compile(wasm).await.unwrap();
            engine().load(digest, artifact).await.unwrap()
        })
        .await
        .clone()
}

async fn bee(name: &str, settings: BeeSettings) -> Bee {
    module().await.bee(&name.parse().unwrap(), settings).unwrap()
}

async fn say(bee: &Bee, asked: &str) -> String {
    answers(bee.process(batch(vec![message(1, asked.to_owned())])).await).remove(0)
}

async fn ask(name: &str, asked: &str) -> String {
    say(&bee(name, granting()).await, asked).await
}

/// What Python's ONNX Runtime answers to three rows.
struct Expected {
    /// As a message asks it.
    asked: String,
    labels: Vec<i64>,
    probabilities: Vec<f32>,
}

fn expected(model: &str, rows: usize) -> Expected {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../samples/models/expected.json");
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let of = &all[model];
    let numbers = |name: &str| -> Vec<f64> {
        let list = of[name].as_array().unwrap().iter();
        list.flat_map(|n| n.as_array().cloned().unwrap_or_else(|| vec![n.clone()]))
            .map(|n| n.as_f64().unwrap())
            .collect()
    };
    let mut shape: Vec<usize> = of["shape"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap() as usize)
        .collect();
    let (data, probabilities) = (numbers("data"), numbers("probabilities"));
    let width = |all: &[f64]| all.len() / shape[0] * rows;
    let data = &data[..width(&data)];
    let probabilities = probabilities[..width(&probabilities)]
        .iter()
        .map(|n| *n as f32)
        .collect();
    shape[0] = rows;
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let hex: String = data
        .iter()
        .flat_map(|n| (*n as f32).to_le_bytes())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Expected {
        asked: format!(
            "{model}\n{} FP32 {} {hex}",
            of["input"].as_str().unwrap(),
            dims.join(",")
        ),
        labels: numbers("label")[..rows].iter().map(|n| *n as i64).collect(),
        probabilities,
    }
}

/// One output of an answer.
fn output(answer: &str, name: &str) -> Tensor {
    let line = answer
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap_or_else(|| panic!("no {name} in {answer}"));
    let [_, kind, dims, hex] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let shape = dims.split(',').map(|dim| dim.parse().unwrap()).collect();
    Tensor::new(kind.parse().unwrap(), shape, bytes.into()).unwrap()
}

fn check(answer: &str, expected: &Expected) {
    assert_eq!(output(answer, "label").to_i64().unwrap(), expected.labels);
    let found = output(answer, "probabilities").to_f32().unwrap();
    assert_eq!(found.len(), expected.probabilities.len());
    for (found, expected) in found.iter().zip(&expected.probabilities) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
}

#[tokio::test]
async fn a_bee_gets_what_the_model_gives() {
    for model in ["digits-mlp", "iris", "wine", "cancer-forest"] {
        for rows in [1, 3] {
            let expected = expected(model, rows);
            check(&ask("own", &expected.asked).await, &expected);
            check(&ask("standard", &expected.asked).await, &expected);
        }
    }
    let described = ask("describe", "iris").await;
    assert!(
        described.contains(r#"name: "features", kind: "FP32", shape: [None, Some(4)]"#)
            && described.contains(r#""INT64", shape: [None]"#),
        "{described}"
    );
}

/// A grant by tag is asked for by its whole name, or by the bare one if that is clear.
#[tokio::test]
async fn a_name_is_an_entry_of_the_manifest() {
    let with = |granted: &[&str]| BeeSettings {
        models: Some(access(granted)),
        ..plain()
    };
    let iris = expected("iris", 1);
    let tagged = bee("own", with(&["iris:latest", "wine"])).await;
    check(&say(&tagged, &iris.asked).await, &iris);
    check(
        &say(&tagged, &iris.asked.replacen("iris", "iris:latest", 1)).await,
        &iris,
    );
    let both = bee("own", with(&["iris:v1", "iris:v2"])).await;
    let said = say(&both, &iris.asked).await;
    assert!(
        said.starts_with("error Trouble::Invalid") && said.contains("`iris:v1`, `iris:v2`"),
        "{said}"
    );
    for settings in [plain(), with(&[]), with(&["wine"])] {
        let own = say(&bee("own", settings.clone()).await, &iris.asked).await;
        assert!(
            own.starts_with("error Trouble::NotGranted") && own.contains("add `models: [iris]`"),
            "{own}"
        );
        let describe = say(&bee("describe", settings.clone()).await, "iris").await;
        assert!(describe.contains("NotGranted"), "{describe}");
        let standard = say(&bee("standard", settings).await, &iris.asked).await;
        assert!(
            standard.starts_with("error ErrorCode::Security") && standard.contains("models: [iris]"),
            "{standard}"
        );
    }
    let other = BeeSettings {
        models: Some(Arc::new(ModelAccess {
            tenant: "other".parse().unwrap(),
            ..(*access(&["iris"])).clone()
        })),
        ..plain()
    };
    let said = say(&bee("own", other).await, &iris.asked).await;
    assert!(said.starts_with("error Trouble::NotFound"), "{said}");
}

#[tokio::test]
async fn what_does_not_fit_is_told_with_what_would() {
    let long = "n".repeat(100_000);
    for (asked, says) in [
        ("nobody\nx FP32 1 *4", "no model `nobody:latest`"),
        ("unheard\nx FP32 1 *4", "is not granted"),
        ("\nx FP32 1 *4", "is not granted"),
        ("iris\nfeatures FP32 1,5 *20", "is FP32 [1, 5]: expected FP32 [any, 4]"),
        ("iris\nfeatures FP32 4 *16", "is FP32 [4]: expected FP32 [any, 4]"),
        ("iris\nfeatures FP64 1,4 *32", "is FP64 [1, 4]: expected FP32"),
        ("iris\nfeatures FP32 0,4 *0", "a dimension of zero"),
        ("iris\nfeatures FP32 1,4 *15", "has 16 bytes, but 15 were given"),
        ("iris\nfeatures FP32 1,4 *17", "has 16 bytes, but 17 were given"),
        ("iris\nfeatures FP32 1,4 *0", "has 16 bytes, but 0 were given"),
        ("iris\nfeatures FP32 - *4", "is FP32 []: expected"),
        (
            "iris\nfeatures FP32 1,1,1,1,1,1,1,1,1 *4",
            "9 dimensions: 8 are allowed",
        ),
        ("iris\nfeatures FP32 4294967295,4294967295 *4", "make it smaller"),
        ("iris\nfeature FP32 1,4 *16", "the inputs are features"),
        ("iris", "input \"features\" is missing: expected FP32 [any, 4]"),
        ("iris\nfeatures FP32 1,4 *16\nfeatures FP32 1,4 *16", "given twice"),
        (
            "iris\nfeatures FP32 1,4 *16\nmore FP32 1,4 *16",
            "there is no input \"more\"",
        ),
        ("digits-mlp\nimage FP32 2000000,784 *4", "make it smaller"),
        (&format!("iris\n{long} FP32 1,4 *16"), "has 100000 bytes"),
    ] {
        for bee in ["own", "standard"] {
            let said = ask(bee, asked).await;
            assert!(
                said.starts_with("error") && said.contains(says),
                "{bee} {asked:.60}: {said}"
            );
            assert!(said.len() < 1_000, "{said}");
        }
    }
    for kind in ["fp32", "FLOAT", "", &long] {
        let said = ask("own", &format!("iris\nfeatures {kind} 1,4 *16")).await;
        assert!(
            said.starts_with("error Trouble::Invalid") && said.contains("unknown tensor type"),
            "{said:.200}"
        );
        assert!(said.len() < 300, "{}", said.len());
    }
    assert!(
        ask("own", "iris\nfeatures BOOL 18446744073709551615,2 *4")
            .await
            .contains("make it smaller")
    );
    assert!(ask("describe", &long).await.len() < 1_000);
    assert!(ask("describe", "nobody").await.starts_with("error Trouble::NotFound"));
}

/// Their results are the model's matter: here they only pass.
#[tokio::test]
async fn odd_numbers_go_in_and_come_out() {
    let nan = "iris\nfeatures FP32 1,4 0000c07f0000807f000080ff00000000";
    for bee in ["own", "standard"] {
        assert_eq!(output(&ask(bee, nan).await, "label").shape(), [1]);
    }
    assert_eq!(ask("own", "echo\nx UINT8 3 00ff7f").await, "x UINT8 3 00ff7f");
    assert_eq!(ask("standard", "echo\nx UINT8 3 00ff7f").await, "x UINT8 3 00ff7f");
}

#[tokio::test]
async fn types_that_the_standard_has_not_are_the_own_interface_s() {
    let words = "words\nx BYTES 2 02000000686900000000";
    assert_eq!(ask("own", words).await, words.split_once('\n').unwrap().1);
    let said = ask("standard", "words").await;
    assert!(
        said.starts_with("error ErrorCode::UnsupportedOperation")
            && said.contains("the input \"x\" of model `words` is BYTES [any]"),
        "{said}"
    );
    assert!(
        ask("own", "words\nx BYTES 2 0200000068")
            .await
            .contains("shorter than its length")
    );
}

#[tokio::test]
async fn a_bee_brings_no_models_of_its_own() {
    for bytes in ["0", "1000", "1000000"] {
        let said = ask("load", bytes).await;
        assert!(
            said.starts_with("error ErrorCode::Security") && said.contains("skep model push"),
            "{said}"
        );
    }
    let trapped = trap(
        bee("load", granting())
            .await
            .process(batch(vec![message(1, "5000000")]))
            .await,
    );
    assert_eq!(trapped.kind, TrapKind::Output, "{trapped}");
}

#[tokio::test]
async fn nobody_calls_a_model_before_a_message() {
    let early = bee("early", pooled()).await;
    let said = say(&early, "").await;
    assert!(
        said.contains("error Trouble::NoStep models are called while a message is handled"),
        "{said}"
    );
    let said = ask("abandoned", &expected("iris", 1).asked).await;
    assert!(said.starts_with("error Trouble::NoStep"), "{said}");
    // Its Bees' names are asked for when a fresh instance is prepared: then it has its grants, and no message yet.
    let early = bee("early", granting()).await;
    let mut said = say(&early, "").await;
    for _ in 0..500 {
        // Other tests may take its place meanwhile: then it is made for the call.
        if !said.starts_with("[]") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        said = say(&early, "").await;
    }
    let both = said.contains("error Trouble::NoStep") && said.contains("error ErrorCode::UnsupportedOperation");
    assert!(both && said.starts_with("[\"error"), "{said}");
}

#[tokio::test]
async fn trouble_has_its_kind() {
    for (model, own, standard) in [
        (
            "busy",
            "Trouble::Busy the model is busy",
            "ErrorCode::Unknown the model is busy",
        ),
        (
            "breaks",
            "Trouble::Failed the model broke",
            "ErrorCode::RuntimeError the model broke",
        ),
    ] {
        let asked = format!("{model}\nx FP32 1 *4");
        assert_eq!(ask("own", &asked).await, format!("error {own}"));
        assert_eq!(ask("standard", &asked).await, format!("error {standard}"));
    }
    let panicked = trap(
        bee("own", granting())
            .await
            .process(batch(vec![message(1, "panics\nx FP32 1 *4")]))
            .await,
    );
    assert_eq!(panicked.kind, TrapKind::Host);
    assert!(panicked.detail.contains("the model is on fire"), "{panicked}");
    let iris = expected("iris", 1);
    check(&ask("own", &iris.asked).await, &iris);
}

#[tokio::test]
async fn a_model_that_gives_no_answer_ends_with_the_call_s_time() {
    for name in ["own", "standard", "forever"] {
        let settings = BeeSettings {
            wall_ms: 200,
            ..granting()
        };
        let began = Instant::now();
        let slow = bee(name, settings).await;
        let ended = trap(slow.process(batch(vec![message(1, "never\nx FP32 1 *4")])).await);
        assert_eq!(
            (ended.kind, ended.detail.as_str()),
            (
                TrapKind::WallTime,
                "the call did not end within 200 ms: it waited for a model"
            )
        );
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    // One that answers at once, asked for ever.
    let settings = BeeSettings {
        wall_ms: 200,
        ..granting()
    };
    let forever = bee("forever", settings).await;
    for asked in ["echo\nx UINT8 1 *1", "unheard", &expected("iris", 1).asked] {
        let ended = trap(forever.process(batch(vec![message(1, asked.to_owned())])).await);
        assert!(matches!(ended.kind, TrapKind::WallTime | TrapKind::CpuTime), "{ended}");
    }
    assert_eq!(node().under_way.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_call_that_is_dropped_gives_its_model_up() {
    let own = bee("own", granting()).await;
    let before = node().under_way.load(Ordering::SeqCst);
    let asked = batch(vec![message(1, "never\nx FP32 1 *4")]);
    let calling = tokio::time::timeout(Duration::from_millis(100), own.process(asked)).await;
    assert!(calling.is_err());
    for _ in 0..500 {
        if node().under_way.load(Ordering::SeqCst) <= before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the model is still called");
}

/// The model's time is its own: a Bee that may compute for 60 ms calls one that takes 300.
#[tokio::test]
async fn a_model_s_time_is_no_cpu_time_of_the_bee() {
    let meter = Arc::new(Meter::default());
    let settings = BeeSettings {
        cpu_ms: 60,
        wall_ms: 10_000,
        meter: Arc::clone(&meter),
        ..granting()
    };
    let computes = bee("compute", settings).await;
    let began = Instant::now();
    assert_eq!(say(&computes, "spins\nx FP32 1 *4 5").await, "x FP32 1 00000000");
    assert!(began.elapsed() >= SPINS);
    let own = Duration::from_nanos(meter.cpu_ns());
    assert!(own < SPINS / 2, "{own:?} are the Bee's own");
}

#[tokio::test]
async fn what_is_held_is_bounded_and_given_back() {
    let hoard = bee("hoard", pooled()).await;
    let trapped = trap(hoard.process(batch(vec![message(1, "2000 1")])).await);
    assert_eq!(trapped.kind, TrapKind::Memory);
    assert!(
        trapped.detail.contains(&format!("more than {NN_OBJECTS_MAX} tensors")),
        "{trapped}"
    );
    let trapped = trap(hoard.process(batch(vec![message(1, "100 1000000")])).await);
    assert_eq!(trapped.kind, TrapKind::Memory);
    assert!(
        trapped.detail.contains("1000004 bytes of tensors to hold") && trapped.detail.contains("33554432"),
        "{trapped}"
    );
    assert_eq!(
        trap(
            bee("graphs", pooled())
                .await
                .process(batch(vec![message(1, "2000")]))
                .await
        )
        .kind,
        TrapKind::Memory
    );
    // What is dropped counts no more, refusals included.
    assert_eq!(ask("churn", "5000 1000").await, "done");
    assert_eq!(ask("churn", "100 3000000").await, "done");
    assert_eq!(ask("refused", "3000").await, "done");
    // From call to call of a warm instance it adds up: its bound is the instance's.
    let hoard = bee("hoard", pooled()).await;
    for n in 1..=4 {
        let said = say(&hoard, "200 10").await;
        // It is put back just after the answer.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(said, format!("holds {}", 200 * n));
    }
}

#[tokio::test]
async fn the_largest_tensor_is_what_one_call_may_hand_over() {
    assert_eq!(ask("largest", "4000000").await, "x UINT8 [4000000] 4000000");
    let trapped = trap(
        bee("largest", granting())
            .await
            .process(batch(vec![message(1, "5000000")]))
            .await,
    );
    assert_eq!(trapped.kind, TrapKind::Output, "{trapped}");
}

#[tokio::test]
async fn a_warm_instance_keeps_its_context() {
    let keep = bee("keep", pooled()).await;
    let iris = expected("iris", 3);
    for how in ["new", "kept", "kept"] {
        let said = say(&keep, &iris.asked).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(said.lines().next(), Some(how));
        check(&said, &iris);
    }
}

#[tokio::test]
async fn one_message_s_refusal_costs_no_other() {
    let own = bee("own", granting()).await;
    let iris = expected("iris", 1);
    let asked = [&iris.asked, "iris\nfeatures FP32 1,5 *20", &iris.asked];
    let inputs = (1..)
        .zip(asked)
        .map(|(n, asked)| message(n, asked.to_owned()))
        .collect();
    let said = answers(own.process(batch(inputs)).await);
    check(&said[0], &iris);
    assert!(said[1].starts_with("error Trouble::Invalid"));
    check(&said[2], &iris);
}

/// Calls of many instances meet in the model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_many_instances_are_put_together() {
    let wine = Arc::new(expected("wine", 1));
    let own = bee("own", pooled()).await;
    check(&say(&own, &wine.asked).await, &wine);
    let digest = node().files["wine"].1.digest;
    let runs = || {
        let reading = node().shelf.stats();
        let model = reading.models.into_iter().find(|model| model.digest == digest).unwrap();
        (model.calls.calls, model.calls.runs)
    };
    let before = runs();
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (own, wine) = (own.clone(), Arc::clone(&wine));
            tokio::spawn(async move {
                for _ in 0..50 {
                    check(&say(&own, &wine.asked).await, &wine);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let after = runs();
    let (calls, runs) = (after.0 - before.0, after.1 - before.1);
    assert_eq!(calls, 800);
    assert!(runs < calls, "{calls} calls in {runs} runs");
    assert!(node().most.load(Ordering::SeqCst) > 1);
}

#[tokio::test]
async fn every_model_that_is_granted_is_there() {
    let granted: BTreeSet<_> = granting()
        .models
        .unwrap()
        .granted
        .iter()
        .map(|model| model.name.to_string())
        .collect();
    for (name, kind) in ODD {
        assert!(granted.contains(name));
        let said = ask("describe", name).await;
        assert!(said.contains(&format!("{:?}", kind.name())), "{said}");
    }
}
