//! Measures what one inference inside a Bee costs beside the same model called natively.
//!
//! `cargo run --release --example models -- MODEL.onnx ROWS BEE=MODULE.wasm…` prints microseconds an inference as JSON. Each Bee takes a count (four
//! bytes, little-endian) and FP32 rows of 784, asks the model `digits` so often, and answers the last labels; what a call of the Bee itself costs is
//! taken off. All is measured in turns, in one process, and the medians are printed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_engine::{Bee, BeeSettings, Compiler, CompilerLimits, Engine, Settings};
use skep_inference::backend::tract::Tract;
use skep_inference::{Batcher, Bounds, Limits, Model, Policy, Subject, Threads};
use skep_model::Bytes;
use skep_model::error::ErrorKind;
use skep_model::id::{Digest, Uid};
use skep_model::message::Message;
use skep_model::name::{ModelRef, TenantId};
use skep_model::predict::{Later, ModelAccess, ModelVersion, Models, PredictError, Tensors};
use skep_model::step::{Batch, Input};
use skep_model::swarm::Instances;
use skep_model::tensor::{Tensor, TensorType};

const ROUNDS: usize = 9;
const SPAN: Duration = Duration::from_millis(150);
/// Inferences in one call of a Bee: componentize-py gives what a call handed over back when the call ends.
const PER_CALL: u32 = 128;

/// One model, loaded.
#[derive(Debug)]
struct One {
    batcher: Arc<Batcher>,
    version: Arc<ModelVersion>,
}

impl Models for One {
    fn find<'a>(&'a self, _: &'a TenantId, _: &'a ModelRef) -> Later<'a, Arc<ModelVersion>> {
        Box::pin(async { Ok(Arc::clone(&self.version)) })
    }

    fn list<'a>(&'a self, _: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>> {
        Box::pin(async { Ok(vec![Arc::clone(&self.version)]) })
    }

    fn load<'a>(&'a self, _: &'a TenantId, _: &'a ModelVersion) -> Later<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn predict<'a>(
        &'a self,
        tenant: &'a TenantId,
        _: &'a ModelVersion,
        inputs: Tensors,
        deadline: Option<Instant>,
    ) -> Later<'a, Tensors> {
        Box::pin(async move {
            let answer = self
                .batcher
                .infer(Subject::named(tenant.as_str()), inputs, deadline)
                .await;
            answer.map_err(|error| PredictError::new(error.kind(), error.to_string()))
        })
    }
}

struct Asked {
    bee: Bee,
    data: Vec<u8>,
}

impl Asked {
    async fn call(&self, count: u32) -> Duration {
        let mut payload = count.to_le_bytes().to_vec();
        payload.extend_from_slice(&self.data);
        let message = Message {
            uid: Uid([7; 16]),
            key: None,
            headers: Vec::new(),
            payload: payload.into(),
            accepted_ms: 1_700_000_000_000,
            request: None,
            trace: None,
            lineage: None,
            hops: Vec::new(),
        };
        let batch = Batch {
            inputs: vec![Input::Message { message, attempt: 1 }],
            ..Batch::default()
        };
        let began = Instant::now();
        let steps = self.bee.process(batch).await.result.expect("the Bee answers");
        let took = began.elapsed();
        let answer = steps.first().and_then(|step| step.outcome.respond.first());
        assert!(answer.is_some_and(|answer| answer.starts_with(b"[")), "{steps:?}");
        took
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: models MODEL.onnx ROWS BEE=MODULE.wasm...";
    let mut arguments = std::env::args().skip(1);
    let file = PathBuf::from(arguments.next().ok_or(usage)?);
    let rows: u64 = arguments.next().ok_or(usage)?.parse()?;
    let bytes = Bytes::from(std::fs::read(&file)?);
    let load = || Model::load(&Tract::new(), &bytes, &Limits::default());
    let native = load()?;
    let threads = Threads::start(1)?;
    let batcher = Batcher::new(load()?, Policy::default(), Bounds::default(), threads);
    let port = &native.signature().inputs[0];
    let elements = rows as usize * 784;
    let shape = port
        .shape
        .iter()
        .enumerate()
        .map(|(at, dim)| dim.unwrap_or(if at == 0 { rows } else { 1 }))
        .collect();
    let data: Vec<u8> = (0..elements)
        .flat_map(|n| ((n % 17) as f32 / 16.0).to_le_bytes())
        .collect();
    let tensor = Tensor::new(TensorType::Fp32, shape, data.clone().into())?;
    let inputs = vec![(port.name.clone(), tensor)];

    let dir = tempfile::tempdir()?;
    let engine = Engine::new(Settings::new(dir.path().join("cache")))?;
    let child = std::env::current_exe()?.with_file_name("../skep-compile-child");
    let compiler = Compiler::new(child, Vec::new(), CompilerLimits::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let version = Arc::new(ModelVersion {
        name: "digits".parse()?,
        digest: Digest::of(&bytes),
        tags: vec![String::from("latest")],
        signature: native.signature().clone(),
    });
    let access = Arc::new(ModelAccess {
        models: Arc::new(One {
            batcher: Arc::clone(&batcher),
            version,
        }),
        tenant: TenantId::default_tenant(),
        granted: ["digits".parse()?].into(),
    });
    let mut bees = Vec::new();
    for argument in arguments {
        let (name, module) = argument.split_once('=').ok_or(usage)?;
        let wasm = Bytes::from(std::fs::read(module)?);
        let digest = Digest::of(&wasm);
        let (label, name) = name.split_once(':').unwrap_or((name, name));
        let module = runtime.block_on(async {
            let artifact = compiler.compile(wasm).await.map_err(|error| error.to_string())?;
            engine.load(digest, artifact).await.map_err(|error| error.to_string())
        })?;
        let settings = BeeSettings {
            models: Some(Arc::clone(&access)),
            instances: Instances::Pooled {
                calls: 1_000_000,
                age_s: 3_600,
            },
            ..BeeSettings::plain(digest)
        };
        let bee = module.bee(&name.parse()?, settings)?;
        bees.push((
            label.to_owned(),
            Asked {
                bee,
                data: data.clone(),
            },
        ));
    }

    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        let mut found = Vec::new();
        let began = Instant::now();
        let mut count = 0u32;
        while began.elapsed() < SPAN {
            native.run(&inputs)?;
            count += 1;
        }
        found.push((String::from("native"), began.elapsed().as_secs_f64() / f64::from(count)));
        // As many inferences as one native span has, so that all see the machine alike.
        runtime.block_on(async {
            let began = Instant::now();
            for _ in 0..count {
                let answer = batcher.infer(Subject::named("default"), inputs.clone(), None).await;
                answer.map_err(|error| PredictError::new(ErrorKind::Failed, error.to_string()))?;
            }
            found.push((
                String::from("batcher"),
                began.elapsed().as_secs_f64() / f64::from(count),
            ));
            for (label, asked) in &bees {
                let (mut took, mut left) = (Duration::ZERO, count);
                while left > 0 {
                    let some = left.min(PER_CALL);
                    let nothing = asked.call(0).await;
                    took += asked.call(some).await.saturating_sub(nothing);
                    left -= some;
                }
                found.push((label.clone(), took.as_secs_f64() / f64::from(count)));
            }
            Ok::<_, PredictError>(())
        })?;
        // The first is for the caches.
        if round > 0 {
            found
                .into_iter()
                .for_each(|(label, took)| times.entry(label).or_default().push(took * 1e6));
        }
    }
    let medians: BTreeMap<String, f64> = times
        .iter_mut()
        .map(|(label, times)| (label.clone(), median(times)))
        .collect();
    println!("{}", serde_json::to_string(&medians)?);
    Ok(())
}
