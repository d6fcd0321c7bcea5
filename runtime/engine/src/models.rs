//! Models as a Bee calls them: which it may, and `skep:bee/models`. `wasi:nn` is beside it, in `nn.rs`.
//!
//! A tensor is copied once on its way out of the guest, into the buffer that the model reads, and once on its way in.

use std::sync::Arc;

use bytes::Bytes;
use skep_model::error::ErrorKind;
use skep_model::limits::TENSOR_NAME_BYTES_MAX;
use skep_model::name::ModelRef;
use skep_model::predict::{ModelAccess, ModelVersion, PredictError, Tensors, not_granted};
use skep_model::tensor::{Port, Tensor};
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, LinkerInstance, Lower};

use crate::host::Host;

#[derive(ComponentType, Lift)]
#[component(record)]
struct TensorParam {
    kind: String,
    shape: Vec<u64>,
    data: Vec<u8>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct TensorResult {
    kind: &'static str,
    shape: Vec<u64>,
    data: Vec<u8>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct PortResult {
    name: String,
    kind: &'static str,
    shape: Vec<Option<u64>>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct SignatureResult {
    inputs: Vec<PortResult>,
    outputs: Vec<PortResult>,
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
enum Trouble {
    #[component(name = "not-granted")]
    NotGranted,
    #[component(name = "not-found")]
    NotFound,
    #[component(name = "invalid")]
    Invalid,
    #[component(name = "busy")]
    Busy,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "unavailable")]
    Unavailable,
    #[component(name = "failed")]
    Failed,
    #[component(name = "no-step")]
    NoStep,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct ErrorResult {
    kind: Trouble,
    text: String,
}

/// Why a model gives a Bee nothing.
pub(crate) enum Refusal {
    /// No input is current.
    NoStep,
    Told(PredictError),
}

impl From<PredictError> for Refusal {
    fn from(error: PredictError) -> Self {
        Self::Told(error)
    }
}

impl Refusal {
    pub(crate) fn text(self) -> String {
        match self {
            Self::NoStep => String::from(
                "models are called while a message is handled: not when the module starts or names its Bees, nor after an `abandon`",
            ),
            Self::Told(error) => error.text,
        }
    }
}

impl From<Refusal> for ErrorResult {
    fn from(refusal: Refusal) -> Self {
        let kind = match &refusal {
            Refusal::NoStep => Trouble::NoStep,
            Refusal::Told(error) => match error.kind {
                ErrorKind::Forbidden | ErrorKind::Unauthenticated => Trouble::NotGranted,
                ErrorKind::NotFound => Trouble::NotFound,
                ErrorKind::Invalid => Trouble::Invalid,
                ErrorKind::Overloaded => Trouble::Busy,
                ErrorKind::DeadlineExceeded => Trouble::Timeout,
                ErrorKind::Unavailable | ErrorKind::Conflict => Trouble::Unavailable,
                ErrorKind::Failed | ErrorKind::Rejected | ErrorKind::Internal => Trouble::Failed,
            },
        };
        Self {
            kind,
            text: refusal.text(),
        }
    }
}

/// A model that the Bee may call now.
pub(crate) struct Granted {
    access: Arc<ModelAccess>,
    model: ModelRef,
}

impl Granted {
    /// # Errors
    /// It is not granted, its name may mean several, or no message is handled.
    pub(crate) fn of(host: &Host, name: &str) -> Result<Self, Refusal> {
        let access = host.models.as_ref().ok_or_else(|| not_granted(name, ""))?;
        if host.effects.current().is_none() {
            return Err(Refusal::NoStep);
        }
        Ok(Self {
            model: access.named(name)?.clone(),
            access: Arc::clone(access),
        })
    }

    /// The version that its name means now.
    pub(crate) async fn find(&self) -> Result<Arc<ModelVersion>, PredictError> {
        self.access.models.find(&self.access.tenant, &self.model).await
    }

    /// Whose models they are, for a version that was found.
    pub(crate) fn access(self) -> Arc<ModelAccess> {
        self.access
    }
}

type Context<'a> = StoreContextMut<'a, Host>;

pub(crate) fn link(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    to.func_wrap_async("describe", |store: Context<'_>, (name,): (String,)| {
        let granted = Granted::of(store.data(), &name);
        let outside = store.data().outside.clone();
        Box::new(async move {
            let found = match granted {
                Ok(granted) => {
                    let found = outside.run(move |_| async move { granted.find().await }).await?;
                    found.map_err(Refusal::from)
                }
                Err(refusal) => Err(refusal),
            };
            Ok((found.map(|found| signature(&found)).map_err(ErrorResult::from),))
        })
    })?;
    to.func_wrap_async(
        "predict",
        |store: Context<'_>, (name, inputs): (String, Vec<(String, TensorParam)>)| {
            let granted = Granted::of(store.data(), &name);
            let outside = store.data().outside.clone();
            Box::new(async move {
                let inputs = granted.and_then(|granted| Ok((granted, tensors(inputs)?)));
                let predicted = match inputs {
                    Ok((granted, inputs)) => {
                        let predicted = outside.run(move |end| async move {
                            let found = granted.find().await?;
                            let Granted { access, .. } = &granted;
                            access.models.predict(&access.tenant, &found, inputs, Some(end)).await
                        });
                        predicted.await?.map_err(Refusal::from)
                    }
                    Err(refusal) => Err(refusal),
                };
                let outputs = predicted.map(|outputs| outputs.into_iter().map(output).collect::<Vec<_>>());
                Ok((outputs.map_err(ErrorResult::from),))
            })
        },
    )
}

/// A name that stands in errors: the guest chooses its length.
pub(crate) fn check_name(name: &str) -> Result<(), PredictError> {
    if name.len() <= TENSOR_NAME_BYTES_MAX {
        return Ok(());
    }
    let shown = &name[..name.floor_char_boundary(32)];
    Err(PredictError::new(
        ErrorKind::Invalid,
        format!(
            "an input's name, {shown:?}…, has {} bytes: a model's inputs have {TENSOR_NAME_BYTES_MAX} at most",
            name.len()
        ),
    ))
}

fn tensors(inputs: Vec<(String, TensorParam)>) -> Result<Tensors, PredictError> {
    let made = |(name, TensorParam { kind, shape, data }): (String, TensorParam)| {
        check_name(&name)?;
        let tensor = kind
            .parse()
            .and_then(|kind| Tensor::new(kind, shape, Bytes::from(data)));
        let tensor =
            tensor.map_err(|wrong| PredictError::new(ErrorKind::Invalid, format!("input {name:?}: {wrong}")))?;
        Ok((name, tensor))
    };
    inputs.into_iter().map(made).collect()
}

fn output((name, tensor): (String, Tensor)) -> (String, TensorResult) {
    let result = TensorResult {
        kind: tensor.kind().name(),
        shape: tensor.shape().to_vec(),
        // Without a copy, but for rows of a run for several callers.
        data: tensor.into_bytes().into(),
    };
    (name, result)
}

fn signature(version: &ModelVersion) -> SignatureResult {
    let ports = |ports: &[Port]| ports.iter().map(port).collect();
    SignatureResult {
        inputs: ports(&version.signature.inputs),
        outputs: ports(&version.signature.outputs),
    }
}

fn port(port: &Port) -> PortResult {
    PortResult {
        name: port.name.clone(),
        kind: port.kind.name(),
        shape: port.shape.clone(),
    }
}
