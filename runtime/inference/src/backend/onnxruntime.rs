//! ONNX Runtime, where its shared library is found: several times faster than tract on convolutions and large matrices.
//!
//! It is C++ in this process, so a model must have passed inspection (nothing outside of the file, ONNX's own operators only), and must not let its
//! caller choose how large a value is: ONNX Runtime has no bound for it, and what tract proves by symbols is judged by [`Described::grows`] here.
//! Nor may a caller choose by what whole numbers are divided ([`Described::divides`]): that ends the process.
//!
//! Nothing is downloaded, at build or later. The library is opened by path; the Python wheel `onnxruntime` carries one.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError, Weak};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::tensor::{PrimitiveTensorElementType, TensorElementType};
use ort::value::{DynValue, Tensor as Owned, TensorRef};
use skep_model::tensor::{Signature, Tensor, TensorType};

use super::{Backend, Loaded, RunError, one_line, told};
use crate::inspect::{Described, Refusal};
use crate::limits::{Limits, THREADS_MAX};

/// The environment variable that says where the library is, where settings do not.
pub const PATH_VARIABLE: &str = "ORT_DYLIB_PATH";

/// The backend, once its library is open. It stays open as long as the process lives.
#[derive(Debug)]
pub struct OnnxRuntime {
    path: PathBuf,
    threads: usize,
}

impl OnnxRuntime {
    /// Opens the library at `path`. `threads`: how many one run may use.
    ///
    /// The first path that works is the process's: a second library cannot be opened beside it.
    ///
    /// # Errors
    /// There is no file, it is no ONNX Runtime, or one that is too old (1.22 is needed).
    pub fn open(path: &Path, threads: usize) -> Result<Self, String> {
        if !path.is_file() {
            return Err(format!(
                "there is no file {}: give the path of libonnxruntime.so, or leave it out to use tract",
                path.display()
            ));
        }
        let path = path
            .canonicalize()
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let text = path
            .to_str()
            .ok_or_else(|| format!("{}: the path is not UTF-8", path.display()))?;
        // The binding panics where a library cannot be opened, or is too old.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            ort::init_from(text).with_name("skep").with_telemetry(false).commit()
        }));
        match opened {
            Ok(Ok(_)) => Ok(Self {
                path,
                threads: threads.clamp(1, THREADS_MAX),
            }),
            Ok(Err(error)) => Err(one_line(&format!("{}: {error}", path.display()))),
            Err(panic) => Err(format!("{}: {}", path.display(), told(&*panic))),
        }
    }
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn version(&self) -> String {
        let info = ort::info();
        let branch = info
            .split(['=', ','])
            .find(|part| part.starts_with("rel-"))
            .map(|part| part.trim_start_matches("rel-"));
        format!("{} ({})", branch.unwrap_or("unknown"), self.path.display())
    }

    fn load(&self, bytes: &Bytes, described: &Described, limits: &Limits) -> Result<Box<dyn Loaded>, Refusal> {
        if let Some(node) = &described.grows {
            return Err(Refusal::Load(format!(
                "node {node} makes a tensor whose size depends on what is in another: a caller could choose any size"
            )));
        }
        if let Some(node) = &described.divides {
            return Err(Refusal::Load(format!(
                "node {node} divides whole numbers by what a caller may make 0 or -1, which would end the node under ONNX Runtime: \
                 divide by a constant, or run it on a node whose --inference is tract"
            )));
        }
        let session = Session::builder()
            .and_then(|builder| builder.with_intra_threads(self.threads))
            .and_then(|builder| builder.with_inter_threads(1))
            // Threads that wait by turning would take the cores of guests.
            .and_then(|builder| builder.with_intra_op_spinning(false))
            .and_then(|builder| builder.with_inter_op_spinning(false))
            .and_then(|builder| builder.with_optimization_level(GraphOptimizationLevel::Level3))
            .and_then(|builder| builder.commit_from_memory(bytes))
            .map_err(|error| refusal(&error))?;
        let order = |names: Vec<&str>, side: &str| {
            let wanted = if side == "input" {
                &described.signature.inputs
            } else {
                &described.signature.outputs
            };
            let all = wanted.iter().all(|port| names.contains(&port.name.as_str()));
            if all && names.len() == wanted.len() {
                Ok(())
            } else {
                Err(Refusal::Load(format!("ONNX Runtime sees other {side}s")))
            }
        };
        order(
            session.inputs.iter().map(|input| input.name.as_str()).collect(),
            "input",
        )?;
        order(
            session.outputs.iter().map(|output| output.name.as_str()).collect(),
            "output",
        )?;
        Ok(Box::new(Ready {
            session: Mutex::new(session),
            signature: described.signature.clone(),
            // Weights are copied, and some are kept in a second form that is faster.
            memory: described.weights_bytes.saturating_mul(2).saturating_add(1 << 20),
            run_bytes: limits.run_bytes,
        }))
    }
}

/// Operators that it does not have are named in a sentence of its own.
fn refusal(error: &ort::Error) -> Refusal {
    Refusal::Load(one_line(&error.to_string()))
}

struct Ready {
    /// The binding lets one run go at a time. Threads within the run use the cores.
    session: Mutex<Session>,
    signature: Signature,
    memory: u64,
    run_bytes: u64,
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a session of ONNX Runtime")
    }
}

impl Loaded for Ready {
    fn run(&self, inputs: &[&Tensor], until: Instant) -> Result<Vec<Tensor>, RunError> {
        let bytes: usize = inputs.iter().map(|tensor| tensor.bytes().len()).sum();
        if bytes as u64 > self.run_bytes {
            return Err(format!(
                "its inputs take {bytes} bytes, of which {} are allowed: send fewer rows",
                self.run_bytes
            )
            .into());
        }
        let ports = self.signature.inputs.iter().zip(inputs);
        let given = ports
            .map(|(port, tensor)| Ok((port.name.as_str(), to_ort(tensor)?)))
            .collect::<Result<Vec<_>, String>>()?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let options = RunOptions::new().map_err(|error| one_line(&error.to_string()))?;
        let watched = Watched::until(until, options);
        let outputs = session
            .run_with_options(given, &watched.options)
            .map_err(|error| match watched.ended() {
                true => RunError::Late,
                false => one_line(&error.to_string()).into(),
            })?;
        let mut made = Vec::with_capacity(self.signature.outputs.len());
        for port in &self.signature.outputs {
            let value = outputs
                .get(&port.name)
                .ok_or_else(|| format!("there is no output {:?}", port.name))?;
            made.push(from_ort(value)?);
        }
        Ok(made)
    }

    fn memory_bytes(&self) -> u64 {
        self.memory
    }

    fn parallel(&self) -> bool {
        false
    }
}

/// A run that is told to stop when its time is over, unless it is done.
struct Watched {
    watch: &'static Watch,
    options: Arc<RunOptions>,
    ended: Arc<AtomicBool>,
}

/// What one thread of the process waits for: the library has no clock of its own. As long as there are runs, which go one at a time a model, and
/// each takes itself out.
struct Watch {
    runs: Mutex<Vec<Run>>,
    changed: Condvar,
}

/// When it is over, how it is told, and that it was.
type Run = (Instant, Weak<RunOptions>, Arc<AtomicBool>);

impl Watched {
    fn until(until: Instant, options: RunOptions) -> Self {
        static WATCH: LazyLock<Arc<Watch>> = LazyLock::new(Watch::start);
        let (options, ended) = (Arc::new(options), Arc::new(AtomicBool::new(false)));
        let mut runs = WATCH.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let sooner = runs.iter().all(|(other, ..)| until < *other);
        runs.push((until, Arc::downgrade(&options), Arc::clone(&ended)));
        drop(runs);
        if sooner {
            WATCH.changed.notify_one();
        }
        Self {
            watch: &WATCH,
            options,
            ended,
        }
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let own = |run: &Weak<RunOptions>| std::ptr::eq(run.as_ptr(), Arc::as_ptr(&self.options));
        let mut runs = self.watch.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = runs.iter().position(|(_, run, _)| own(run)) {
            runs.swap_remove(at);
        }
    }
}

impl Watch {
    fn start() -> Arc<Self> {
        let watch = Arc::new(Self {
            runs: Mutex::default(),
            changed: Condvar::new(),
        });
        let shared = Arc::clone(&watch);
        // Without it runs are not stopped, which is what is so for an operator under way anyway.
        let _ = std::thread::Builder::new()
            .name(String::from("model-watch"))
            .spawn(move || shared.serve());
        watch
    }

    fn serve(&self) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            runs.retain(|(until, run, ended)| match run.upgrade() {
                Some(run) if *until <= now => {
                    ended.store(true, Ordering::Release);
                    let _ = run.terminate();
                    false
                }
                Some(_) => true,
                None => false,
            });
            let next = runs.iter().map(|(until, ..)| *until).min();
            runs = match next {
                Some(next) => {
                    let wait = next.saturating_duration_since(now);
                    self.changed
                        .wait_timeout(runs, wait)
                        .map_or_else(|poisoned| poisoned.into_inner().0, |(runs, _)| runs)
                }
                None => self.changed.wait(runs).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

fn to_ort(tensor: &Tensor) -> Result<SessionInputValue<'_>, String> {
    let shape: Vec<i64> = tensor
        .shape()
        .iter()
        .map(|dim| i64::try_from(*dim))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let failed = |error: ort::Error| one_line(&error.to_string());
    /// Where the bytes lie as the type needs them, they are lent; else they are copied to where they do.
    macro_rules! lent {
        ($type:ty) => {{
            // SAFETY: every pattern of bits is a value of the numbers that this is used for.
            let (before, values, after) = unsafe { tensor.bytes().align_to::<$type>() };
            if cfg!(target_endian = "little") && before.is_empty() && after.is_empty() && !values.is_empty() {
                TensorRef::from_array_view((shape, values)).map(Into::into)
            } else {
                let chunks = tensor.bytes().as_chunks::<{ size_of::<$type>() }>().0;
                let values: Vec<$type> = chunks.iter().map(|chunk| <$type>::from_le_bytes(*chunk)).collect();
                Owned::from_array((shape, values)).map(Into::into)
            }
        }};
    }
    let value: Result<SessionInputValue<'_>, ort::Error> = match tensor.kind() {
        TensorType::Bool => {
            let truths: Vec<bool> = tensor.bytes().iter().map(|byte| *byte != 0).collect();
            Owned::from_array((shape, truths)).map(Into::into)
        }
        TensorType::Bytes => {
            let texts = tensor.contents().map(|content| String::from_utf8(content.to_vec()));
            let texts: Vec<String> = texts.collect::<Result<_, _>>().map_err(|_| "a text is not UTF-8")?;
            // A text goes to C++ as one that ends with zero.
            if texts.iter().any(|text| text.contains('\0')) {
                return Err(String::from("a text has a zero in it"));
            }
            Owned::from_string_array((shape, &texts[..])).map(Into::into)
        }
        TensorType::U8 => lent!(u8),
        TensorType::U16 => lent!(u16),
        TensorType::U32 => lent!(u32),
        TensorType::U64 => lent!(u64),
        TensorType::I8 => lent!(i8),
        TensorType::I16 => lent!(i16),
        TensorType::I32 => lent!(i32),
        TensorType::I64 => lent!(i64),
        TensorType::Fp16 => lent!(f16),
        TensorType::Bf16 => lent!(bf16),
        TensorType::Fp32 => lent!(f32),
        TensorType::Fp64 => lent!(f64),
    };
    value.map_err(failed)
}

fn from_ort(value: &DynValue) -> Result<Tensor, String> {
    let failed = |error: ort::Error| one_line(&error.to_string());
    let kind = value.dtype().tensor_type().ok_or("an output is no tensor")?;
    fn numbers<T: PrimitiveTensorElementType + Copy>(
        value: &DynValue,
        kind: TensorType,
        put: impl Fn(&mut BytesMut, T),
    ) -> Result<Tensor, String> {
        let (shape, values) = value
            .try_extract_tensor::<T>()
            .map_err(|error| one_line(&error.to_string()))?;
        let mut bytes = BytesMut::with_capacity(size_of_val(values));
        values.iter().for_each(|value| put(&mut bytes, *value));
        let shape = shape.iter().map(|dim| u64::try_from(*dim).unwrap_or(0)).collect();
        Tensor::new(kind, shape, bytes.freeze()).map_err(|error| error.to_string())
    }
    match kind {
        TensorElementType::Float32 => numbers(value, TensorType::Fp32, |bytes, number: f32| bytes.put_f32_le(number)),
        TensorElementType::Float64 => numbers(value, TensorType::Fp64, |bytes, number: f64| bytes.put_f64_le(number)),
        TensorElementType::Float16 => numbers(value, TensorType::Fp16, |bytes, number: f16| {
            bytes.put_slice(&number.to_le_bytes())
        }),
        TensorElementType::Bfloat16 => numbers(value, TensorType::Bf16, |bytes, number: bf16| {
            bytes.put_slice(&number.to_le_bytes())
        }),
        TensorElementType::Int8 => numbers(value, TensorType::I8, |bytes, number: i8| bytes.put_i8(number)),
        TensorElementType::Int16 => numbers(value, TensorType::I16, |bytes, number: i16| bytes.put_i16_le(number)),
        TensorElementType::Int32 => numbers(value, TensorType::I32, |bytes, number: i32| bytes.put_i32_le(number)),
        TensorElementType::Int64 => numbers(value, TensorType::I64, |bytes, number: i64| bytes.put_i64_le(number)),
        TensorElementType::Uint8 => numbers(value, TensorType::U8, |bytes, number: u8| bytes.put_u8(number)),
        TensorElementType::Uint16 => numbers(value, TensorType::U16, |bytes, number: u16| bytes.put_u16_le(number)),
        TensorElementType::Uint32 => numbers(value, TensorType::U32, |bytes, number: u32| bytes.put_u32_le(number)),
        TensorElementType::Uint64 => numbers(value, TensorType::U64, |bytes, number: u64| bytes.put_u64_le(number)),
        TensorElementType::Bool => numbers(value, TensorType::Bool, |bytes, truth: bool| {
            bytes.put_u8(u8::from(truth))
        }),
        TensorElementType::String => {
            let (shape, texts) = value.try_extract_strings().map_err(failed)?;
            let shape = shape.iter().map(|dim| u64::try_from(*dim).unwrap_or(0)).collect();
            Tensor::from_contents(shape, texts.iter().map(String::as_bytes)).map_err(|error| error.to_string())
        }
        other => Err(format!(
            "an output has elements of kind {other:?}, which is not supported here"
        )),
    }
}
