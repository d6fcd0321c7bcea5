//! Models of a node without an engine: arithmetic by hand, for what the doors do.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use skep_model::error::ErrorKind;
use skep_model::id::Digest;
use skep_model::name::{ModelRef, TenantId, Version};
use skep_model::predict::{Later, ModelVersion, Models, PredictError, Tensors};
use skep_model::tensor::{Port, Signature, Tensor, TensorType};

/// Of the tenant `default`: `double` (FP32 `x` of two columns to `y`, twice as much, and `sum`, INT64), `echo-TYPE` for each type (`x` to `y`),
/// `nan`, `slow` (never answers), `broken` (fails), `busy`, `unloadable`. Of `acme`: `secret`. Of `lone` and `new`: `only`.
#[derive(Debug, Default)]
pub struct Fake {
    /// Calls that run now.
    pub running: Arc<AtomicUsize>,
    pub loads: AtomicUsize,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn port(name: &str, kind: TensorType, shape: &[Option<u64>]) -> Port {
    Port {
        name: name.to_owned(),
        kind,
        shape: shape.to_vec(),
    }
}

fn versions(tenant: &str) -> Vec<ModelVersion> {
    let one = |kind| Signature {
        inputs: vec![port("x", kind, &[None])],
        outputs: vec![port("y", kind, &[None])],
    };
    let fp32 = || one(TensorType::Fp32);
    let model = |name: &str, tags: &[&str], signature: Signature| ModelVersion {
        name: name.parse().unwrap(),
        digest: Digest::of(name.as_bytes()),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        signature,
    };
    if tenant != "default" {
        return match tenant {
            "acme" => vec![model("secret", &["latest"], fp32())],
            "lone" | "new" => vec![model("only", &["latest"], fp32())],
            _ => Vec::new(),
        };
    }
    let double = Signature {
        inputs: vec![port("x", TensorType::Fp32, &[None, Some(2)])],
        outputs: vec![
            port("y", TensorType::Fp32, &[None, Some(2)]),
            port("sum", TensorType::I64, &[None]),
        ],
    };
    let mut all = vec![
        model("double", &["latest", "v1"], double),
        model("untagged", &[], fp32()),
    ];
    for name in ["nan", "slow", "broken", "busy", "unloadable"] {
        all.push(model(name, &["latest"], fp32()));
    }
    for kind in TensorType::ALL {
        let name = format!("echo-{}", kind.name().to_lowercase());
        all.push(model(&name, &["latest"], one(kind)));
    }
    all
}

pub fn digest(name: &str) -> String {
    Digest::of(name.as_bytes()).to_string()
}

fn error<T>(kind: ErrorKind, text: &str) -> Result<T, PredictError> {
    Err(PredictError::new(kind, text))
}

impl Models for Fake {
    fn find<'a>(&'a self, tenant: &'a TenantId, model: &'a ModelRef) -> Later<'a, Arc<ModelVersion>> {
        let found = versions(tenant.as_str()).into_iter().find(|version| {
            version.name == model.name
                && match &model.version {
                    Version::Tag(tag) => version.tags.iter().any(|own| own == tag.as_str()),
                    Version::Digest(digest) => version.digest == *digest,
                }
        });
        let found = found.map(Arc::new);
        Box::pin(ready(found.ok_or_else(|| {
            PredictError::new(ErrorKind::NotFound, format!("no model `{model}`"))
        })))
    }

    fn list<'a>(&'a self, tenant: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>> {
        Box::pin(ready(Ok(versions(tenant.as_str()).into_iter().map(Arc::new).collect())))
    }

    fn load<'a>(&'a self, _: &'a TenantId, model: &'a ModelVersion) -> Later<'a, ()> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        Box::pin(ready(match model.name.as_str() {
            "unloadable" => error(ErrorKind::Rejected, "an operator that there is not"),
            _ => Ok(()),
        }))
    }

    fn predict<'a>(
        &'a self,
        _: &'a TenantId,
        model: &'a ModelVersion,
        inputs: Tensors,
        _: Option<Instant>,
    ) -> Later<'a, Tensors> {
        Box::pin(async move {
            self.running.fetch_add(1, Ordering::SeqCst);
            let _running = Running(Arc::clone(&self.running));
            if let Err(bad) = model.signature.check(&inputs) {
                return error(ErrorKind::Invalid, &bad.to_string());
            }
            let (_, x) = &inputs[0];
            let y = match model.name.as_str() {
                "slow" => std::future::pending().await,
                "broken" => return error(ErrorKind::Failed, "it divided by zero"),
                "busy" => return error(ErrorKind::Overloaded, "no memory for it now"),
                "unloadable" => return error(ErrorKind::Rejected, "an operator that there is not"),
                "nan" => Tensor::from_f32(x.shape().to_vec(), &vec![f32::NAN; x.elements()]).unwrap(),
                "double" => {
                    let values: Vec<f32> = x.to_f32().unwrap().into_iter().map(|value| 2.0 * value).collect();
                    let sums: Vec<i64> = values.chunks(2).map(|row| row.iter().sum::<f32>() as i64).collect();
                    let y = Tensor::from_f32(x.shape().to_vec(), &values).unwrap();
                    let sum = Tensor::from_i64(vec![x.rows()], &sums).unwrap();
                    return Ok(vec![(String::from("y"), y), (String::from("sum"), sum)]);
                }
                _ => x.clone(),
            };
            Ok(vec![(String::from("y"), y)])
        })
    }
}
