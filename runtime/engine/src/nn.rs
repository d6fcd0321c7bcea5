//! `wasi:nn`, for guests that are written for any host. Models have names here and no bytes: `load` is denied.
//!
//! What the standard leaves open: a name is an entry of the manifest's `models:`. A tensor is checked when it is given to a model, since its
//! constructor cannot fail. A graph is the version that its name meant when it was loaded. `unknown` is trouble that passes: busy, or not to
//! be had now. Types that the standard has not (BOOL, BYTES…) are `skep:bee/models`'s.
//!
//! What a guest holds here is counted: objects by number, and their bytes as memory of the instance ([`crate::ceiling::Ceiling::hold`]), which
//! the tenant's quota has paid for. A constructor cannot say that there is no room, so who goes too far ends its instance.

use std::sync::Arc;

use bytes::Bytes;
use skep_model::error::ErrorKind;
use skep_model::limits::NN_OBJECTS_MAX;
use skep_model::predict::{ModelAccess, ModelVersion, PredictError, Tensors};
use skep_model::tensor::{Tensor, TensorType};
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType};

use crate::host::Host;
use crate::models::{Granted, Refusal, check_name};

/// `errors.error`.
pub(crate) struct NnError {
    code: Code,
    text: String,
}

/// `tensor.tensor`, as it was given.
pub(crate) struct NnTensor {
    dimensions: Vec<u32>,
    ty: Type,
    /// Shared with a call that hands it to the guest: it is written there from here, without a copy between.
    data: Arc<Vec<u8>>,
}

/// `graph.graph`, and `inference.graph-execution-context`, which is no more.
#[derive(Clone)]
pub(crate) struct NnGraph {
    access: Arc<ModelAccess>,
    version: Arc<ModelVersion>,
}

pub(crate) struct NnContext(NnGraph);

/// More was held than one instance may hold. It ends the instance.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TooMuchHeld {
    #[error(
        "the Bee holds more than {NN_OBJECTS_MAX} tensors and other objects of wasi:nn: drop those that it needs no more"
    )]
    Objects,
    #[error(
        "the Bee has {bytes} bytes of tensors to hold, which with all that it holds is more than its memory limit, {max}: drop what it needs no more, or raise `memory:`"
    )]
    Bytes { bytes: usize, max: usize },
}

#[derive(ComponentType, Lift, Lower, Clone, Copy, PartialEq, Eq, Debug)]
#[component(enum)]
#[repr(u8)]
enum Type {
    #[component(name = "FP16")]
    Fp16,
    #[component(name = "FP32")]
    Fp32,
    #[component(name = "FP64")]
    Fp64,
    #[component(name = "BF16")]
    Bf16,
    #[component(name = "U8")]
    U8,
    #[component(name = "I32")]
    I32,
    #[component(name = "I64")]
    I64,
}

const TYPES: [(Type, TensorType); 7] = [
    (Type::Fp16, TensorType::Fp16),
    (Type::Fp32, TensorType::Fp32),
    (Type::Fp64, TensorType::Fp64),
    (Type::Bf16, TensorType::Bf16),
    (Type::U8, TensorType::U8),
    (Type::I32, TensorType::I32),
    (Type::I64, TensorType::I64),
];

impl Type {
    fn of(kind: TensorType) -> Option<Self> {
        TYPES.iter().find(|(_, known)| *known == kind).map(|(ty, _)| *ty)
    }

    fn kind(self) -> TensorType {
        TYPES[self as usize].1
    }
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "the type must have all cases of the WIT enum")]
enum Code {
    #[component(name = "invalid-argument")]
    InvalidArgument,
    #[component(name = "invalid-encoding")]
    InvalidEncoding,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "runtime-error")]
    RuntimeError,
    #[component(name = "unsupported-operation")]
    UnsupportedOperation,
    #[component(name = "too-large")]
    TooLarge,
    #[component(name = "not-found")]
    NotFound,
    #[component(name = "security")]
    Security,
    #[component(name = "unknown")]
    Unknown,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "lifting makes the cases from their numbers")]
enum Encoding {
    #[component(name = "openvino")]
    Openvino,
    #[component(name = "onnx")]
    Onnx,
    #[component(name = "tensorflow")]
    Tensorflow,
    #[component(name = "pytorch")]
    Pytorch,
    #[component(name = "tensorflowlite")]
    Tensorflowlite,
    #[component(name = "ggml")]
    Ggml,
    #[component(name = "autodetect")]
    Autodetect,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "lifting makes the cases from their numbers")]
enum Target {
    #[component(name = "cpu")]
    Cpu,
    #[component(name = "gpu")]
    Gpu,
    #[component(name = "tpu")]
    Tpu,
}

impl From<Refusal> for NnError {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::NoStep => Code::UnsupportedOperation,
            Refusal::Told(error) => match error.kind {
                ErrorKind::Forbidden | ErrorKind::Unauthenticated => Code::Security,
                ErrorKind::NotFound => Code::NotFound,
                ErrorKind::Invalid => Code::InvalidArgument,
                ErrorKind::DeadlineExceeded => Code::Timeout,
                ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::Conflict => Code::Unknown,
                ErrorKind::Failed | ErrorKind::Rejected | ErrorKind::Internal => Code::RuntimeError,
            },
        };
        Self {
            code,
            text: refusal.text(),
        }
    }
}

/// What a guest holds a handle to.
trait Held: Send + Sized + 'static {
    /// Beside a few words.
    fn bytes(&self) -> usize {
        0
    }
}

impl Held for NnError {
    fn bytes(&self) -> usize {
        self.text.len()
    }
}

impl Held for NnTensor {
    fn bytes(&self) -> usize {
        self.data.capacity() + 4 * self.dimensions.capacity()
    }
}

impl Held for NnGraph {}
impl Held for NnContext {}

fn hold<T: Held>(host: &mut Host, what: T) -> wasmtime::Result<Resource<T>> {
    if host.nn_held >= NN_OBJECTS_MAX {
        return Err(TooMuchHeld::Objects.into());
    }
    let bytes = what.bytes();
    if !host.ceiling.hold(bytes) {
        let max = host.ceiling.max();
        return Err(TooMuchHeld::Bytes { bytes, max }.into());
    }
    host.nn_held += 1;
    Ok(host.table.push(what)?)
}

/// Also what a handle is that was dropped, or is another's: wasmtime finds that before, and ends the call.
fn release<T: Held>(host: &mut Host, handle: Resource<T>) -> wasmtime::Result<T> {
    let what = host.table.delete(handle)?;
    host.nn_held -= 1;
    host.ceiling.release(what.bytes());
    Ok(what)
}

fn refused<T>(host: &mut Host, error: NnError) -> wasmtime::Result<(Result<T, Resource<NnError>>,)> {
    Ok((Err(hold(host, error)?),))
}

type Context<'a> = StoreContextMut<'a, Host>;

fn resource<T: Held>(to: &mut LinkerInstance<'_, Host>, name: &str) -> wasmtime::Result<()> {
    to.resource(name, ResourceType::host::<T>(), |mut store: Context<'_>, handle| {
        release::<T>(store.data_mut(), Resource::new_own(handle)).map(drop)
    })
}

pub(crate) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    errors(&mut linker.instance("wasi:nn/errors@0.2.0-rc-2024-10-28")?)?;
    tensor(&mut linker.instance("wasi:nn/tensor@0.2.0-rc-2024-10-28")?)?;
    graph(&mut linker.instance("wasi:nn/graph@0.2.0-rc-2024-10-28")?)?;
    inference(&mut linker.instance("wasi:nn/inference@0.2.0-rc-2024-10-28")?)
}

fn errors(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    resource::<NnError>(to, "error")?;
    to.func_wrap(
        "[method]error.code",
        |store: Context<'_>, (error,): (Resource<NnError>,)| Ok((store.data().table.get(&error)?.code,)),
    )?;
    to.func_wrap(
        "[method]error.data",
        |store: Context<'_>, (error,): (Resource<NnError>,)| Ok((store.data().table.get(&error)?.text.clone(),)),
    )
}

fn tensor(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    resource::<NnTensor>(to, "tensor")?;
    to.func_wrap(
        "[constructor]tensor",
        |mut store: Context<'_>, (dimensions, ty, data): (Vec<u32>, Type, Vec<u8>)| {
            let data = Arc::new(data);
            let tensor = NnTensor { dimensions, ty, data };
            Ok((hold(store.data_mut(), tensor)?,))
        },
    )?;
    to.func_wrap(
        "[method]tensor.dimensions",
        |store: Context<'_>, (tensor,): (Resource<NnTensor>,)| {
            Ok((store.data().table.get(&tensor)?.dimensions.clone(),))
        },
    )?;
    to.func_wrap(
        "[method]tensor.ty",
        |store: Context<'_>, (tensor,): (Resource<NnTensor>,)| Ok((store.data().table.get(&tensor)?.ty,)),
    )?;
    to.func_wrap(
        "[method]tensor.data",
        |store: Context<'_>, (tensor,): (Resource<NnTensor>,)| {
            Ok((Arc::clone(&store.data().table.get(&tensor)?.data),))
        },
    )
}

fn graph(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    resource::<NnGraph>(to, "graph")?;
    to.func_wrap(
        "[method]graph.init-execution-context",
        |mut store: Context<'_>, (graph,): (Resource<NnGraph>,)| {
            let graph = store.data().table.get(&graph)?.clone();
            let context = hold(store.data_mut(), NnContext(graph))?;
            Ok((Ok::<_, Resource<NnError>>(context),))
        },
    )?;
    to.func_wrap(
        "load",
        |mut store: Context<'_>, (_, _, _): (Vec<Vec<u8>>, Encoding, Target)| {
            let error = NnError {
                code: Code::Security,
                text: String::from(
                    "a Bee brings no models of its own: push the file with `skep model push`, list its name under the Bee's `models:`, and `load-by-name`",
                ),
            };
            refused::<Resource<NnGraph>>(store.data_mut(), error)
        },
    )?;
    to.func_wrap_async("load-by-name", |mut store: Context<'_>, (name,): (String,)| {
        Box::new(async move {
            let granted = Granted::of(store.data(), &name);
            let outside = store.data().outside.clone();
            let found = match granted {
                Ok(granted) => {
                    let found = outside.run(move |_| async move {
                        let version = granted.find().await?;
                        Ok::<_, PredictError>(NnGraph {
                            access: granted.access(),
                            version,
                        })
                    });
                    found
                        .await?
                        .map_err(|error| NnError::from(Refusal::Told(error)))
                        .and_then(has_types)
                }
                Err(refusal) => Err(refusal.into()),
            };
            let host = store.data_mut();
            match found {
                Ok(graph) => Ok((Ok(hold(host, graph)?),)),
                Err(error) => refused(host, error),
            }
        })
    })
}

/// That the standard has a type for each input and output.
fn has_types(graph: NnGraph) -> Result<NnGraph, NnError> {
    let signature = &graph.version.signature;
    let inputs = signature.inputs.iter().map(|port| ("input", port));
    let mut all = inputs.chain(signature.outputs.iter().map(|port| ("output", port)));
    match all.find(|(_, port)| Type::of(port.kind).is_none()) {
        None => Ok(graph),
        Some((what, port)) => Err(NnError {
            code: Code::UnsupportedOperation,
            text: format!(
                "the {what} {:?} of model `{}` is {port}, and wasi:nn has no type {}: call it through skep:bee/models, as the SDKs do",
                port.name, graph.version.name, port.kind
            ),
        }),
    }
}

fn inference(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    resource::<NnContext>(to, "graph-execution-context")?;
    to.func_wrap_async(
        "[method]graph-execution-context.compute",
        |mut store: Context<'_>, (context, inputs): (Resource<NnContext>, Vec<(String, Resource<NnTensor>)>)| {
            Box::new(async move {
                let host = store.data_mut();
                let NnGraph { access, version } = host.table.get(&context)?.0.clone();
                // They are the host's now, whatever comes of it.
                let mut given = Vec::with_capacity(inputs.len());
                for (name, tensor) in inputs {
                    given.push((name, release(host, tensor)?));
                }
                let ready = match host.effects.current() {
                    None => Err(Refusal::NoStep),
                    Some(_) => tensors(given).map_err(Refusal::Told),
                };
                let outside = host.outside.clone();
                let computed = match ready {
                    Ok(inputs) => {
                        let predicted = outside.run(move |end| async move {
                            access.models.predict(&access.tenant, &version, inputs, Some(end)).await
                        });
                        predicted.await?.map_err(Refusal::Told).map_err(NnError::from)
                    }
                    Err(refusal) => Err(refusal.into()),
                };
                let host = store.data_mut();
                let outputs =
                    match computed.and_then(|outputs| outputs.into_iter().map(output).collect::<Result<Vec<_>, _>>()) {
                        Ok(outputs) => outputs,
                        Err(error) => return refused(host, error),
                    };
                let mut held = Vec::with_capacity(outputs.len());
                for (name, tensor) in outputs {
                    held.push((name, hold(host, tensor)?));
                }
                Ok((Ok(held),))
            })
        },
    )
}

fn tensors(given: Vec<(String, NnTensor)>) -> Result<Tensors, PredictError> {
    let made = |(name, NnTensor { dimensions, ty, data }): (String, NnTensor)| {
        check_name(&name)?;
        let shape = dimensions.into_iter().map(u64::from).collect();
        let data = Arc::unwrap_or_clone(data);
        let tensor = Tensor::new(ty.kind(), shape, Bytes::from(data));
        let tensor =
            tensor.map_err(|wrong| PredictError::new(ErrorKind::Invalid, format!("input {name:?}: {wrong}")))?;
        Ok((name, tensor))
    };
    given.into_iter().map(made).collect()
}

fn output((name, tensor): (String, Tensor)) -> Result<(String, NnTensor), NnError> {
    let wrong = |why: &str| NnError {
        code: Code::TooLarge,
        text: format!("output {name:?} is {tensor:?}, which {why}"),
    };
    let ty = Type::of(tensor.kind()).ok_or_else(|| wrong("is of no type of wasi:nn"))?;
    let dimensions: Result<Vec<u32>, _> = tensor.shape().iter().map(|dim| u32::try_from(*dim)).collect();
    let dimensions = dimensions.map_err(|_| wrong("has dimensions beyond 32 bits"))?;
    // Rows of a run for several callers are parts of one buffer: who keeps one would keep all, and pay for one. They are copied here.
    let mut data = Vec::from(tensor.into_bytes());
    data.shrink_to_fit();
    let data = Arc::new(data);
    Ok((name, NnTensor { dimensions, ty, data }))
}
