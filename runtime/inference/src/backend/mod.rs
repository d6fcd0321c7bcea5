//! What runs models, behind one small trait, and a model that was loaded.
//!
//! Two backends: [`tract`], in Rust and always there, and [`onnxruntime`], where its library is found. Who uses them sees [`Model`], which
//! does for both what must not depend on which it is: inspection before anything is loaded, checks of what goes in and comes out, and
//! a panic that ends a model, not a node.

#[cfg(test)]
mod conformance;
pub mod onnxruntime;
pub mod tract;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skep_model::error::ErrorKind;
use skep_model::tensor::{Port, Signature, Tensor, TensorError, TensorType};
use thiserror::Error;

use crate::inspect::{Described, Refusal, inspect};
use crate::limits::{Limits, RUN_TIME_MAX};

/// Which backend a node uses, as its settings say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// ONNX Runtime, if a library is named; else tract.
    #[default]
    Auto,
    Tract,
    OnnxRuntime,
}

/// The backend of a node. `library`: the path of libonnxruntime, from settings or from [`onnxruntime::PATH_VARIABLE`]; it is not looked for
/// elsewhere, since a library is code that this process runs. `threads`: how many one run of ONNX Runtime may use.
///
/// # Errors
/// ONNX Runtime is wanted, or a library is named, and it cannot be opened: tract in its stead would be a surprise.
pub fn choose(choice: Choice, library: Option<&Path>, threads: usize) -> Result<Arc<dyn Backend>, String> {
    match (choice, library) {
        (Choice::Tract, _) | (Choice::Auto, None) => Ok(Arc::new(tract::Tract::new())),
        (_, Some(path)) => Ok(Arc::new(onnxruntime::OnnxRuntime::open(path, threads)?)),
        (Choice::OnnxRuntime, None) => Err(format!(
            "ONNX Runtime is wanted, but no library is named: set its path, or {}",
            onnxruntime::PATH_VARIABLE
        )),
    }
}

/// The tensors of a call, in or out, by name.
pub type Named = Vec<(String, Tensor)>;

/// What can load models.
///
/// Contract, which `conformance` holds every backend to:
/// - `load` is given bytes that [`inspect`] took, and what it said. It reads no file and no network, and keeps no reference to the bytes.
/// - It refuses what it cannot run by the operator's and the node's name, before anything is run.
/// - It takes memory in proportion to the file, or refuses.
/// - It may panic; [`Model`] catches that.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// `tract`, `onnxruntime`: as in settings, metrics and metadata.
    fn name(&self) -> &'static str;

    /// Which version of it this is, for people.
    fn version(&self) -> String;

    /// # Errors
    /// Why this model cannot be run here.
    fn load(&self, bytes: &Bytes, described: &Described, limits: &Limits) -> Result<Box<dyn Loaded>, Refusal>;
}

/// A model that is ready to run.
///
/// Contract:
/// - `run` is given one tensor for each input of the signature, in its order, of its type and shape, and answers one for each output
///   in its order. The same inputs give the same outputs, on every thread.
/// - Calls may come from several threads at once; if [`Loaded::parallel`] is false they wait for each other.
/// - A run whose values together would be larger than the limit that it was loaded with is refused before it begins.
/// - A run that is not done at `until` ends with [`RunError::Late`], at the latest when the operator that is under way is done.
/// - After an error it is as it was before the call.
pub trait Loaded: Send + Sync {
    /// # Errors
    /// See [`RunError`].
    fn run(&self, inputs: &[&Tensor], until: Instant) -> Result<Vec<Tensor>, RunError>;

    /// What it holds in memory, about, in bytes.
    fn memory_bytes(&self) -> u64;

    /// Whether runs go on beside each other.
    fn parallel(&self) -> bool;
}

/// Why a run gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunError {
    /// Why it could not be run, in one line.
    Failed(String),
    /// It was stopped.
    Late,
}

impl From<String> for RunError {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// Why a call of a model has no answer. Everything but [`InferError::Failed`] and [`InferError::Panicked`] is certainly not done; since a
/// model has no effects, all of them may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InferError {
    #[error(transparent)]
    Input(#[from] TensorError),
    #[error("the model failed: {0}")]
    Failed(String),
    #[error("the model failed and was unloaded: {0}. The next call loads it anew")]
    Panicked(String),
    #[error("the model was not run: its deadline passed while it waited")]
    Deadline,
    #[error("the model was stopped in the middle of a run: its call's deadline passed")]
    Late,
    #[error(
        "the model is busy: {waiting_rows} rows ({waiting_bytes} bytes) wait for it, of which {max_rows} ({max_bytes} bytes) may; try again later"
    )]
    Busy {
        waiting_rows: usize,
        waiting_bytes: usize,
        max_rows: usize,
        max_bytes: usize,
    },
    #[error("{calls} calls wait for models to be loaded already; try again later")]
    Loading { calls: usize },
    #[error("a call of {rows} rows: {max} are allowed; send them in parts")]
    Rows { rows: u64, max: u64 },
    #[error(
        "the model needs {need} bytes, where models may have {budget} together and {in_use} are in use; try again later, or raise the budget"
    )]
    OverBudget { need: u64, budget: u64, in_use: u64 },
    #[error("the model cannot be loaded: {0}")]
    Refused(#[from] Refusal),
    #[error("the model cannot be read: {0}")]
    Unreadable(String),
    #[error("this node stops")]
    Stopping,
}

impl InferError {
    /// What the caller should do, as the doors say it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Input(_) | Self::Rows { .. } => ErrorKind::Invalid,
            Self::Failed(_) | Self::Panicked(_) => ErrorKind::Failed,
            Self::Deadline | Self::Late => ErrorKind::DeadlineExceeded,
            Self::Busy { .. } | Self::Loading { .. } | Self::OverBudget { .. } => ErrorKind::Overloaded,
            Self::Refused(_) => ErrorKind::Rejected,
            Self::Unreadable(_) | Self::Stopping => ErrorKind::Unavailable,
        }
    }
}

/// A model in memory, whatever runs it.
pub struct Model {
    loaded: Box<dyn Loaded>,
    backend: &'static str,
    described: Described,
    /// What it said when it panicked: then it runs no more.
    panicked: OnceLock<String>,
    /// How long a row took when it was tried out.
    tried: Duration,
    /// Whether rows together take less than each alone.
    pays: bool,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (inputs, outputs) = (
            self.described.signature.inputs.len(),
            self.described.signature.outputs.len(),
        );
        write!(f, "model of {inputs} inputs and {outputs} outputs on {}", self.backend)
    }
}

impl Model {
    /// Inspects, loads and runs once: what is answered works, and its first call is as fast as others. Blocks as long as that takes, and
    /// needs a stack of [`crate::limits::THREAD_STACK_BYTES`].
    ///
    /// [`Described::batchable`] then says what was tried: whether two rows together give what each gives alone. A model whose rows
    /// depend on each other would mix the answers of callers.
    ///
    /// # Errors
    /// Why it is not taken, a panic of the backend among it.
    pub fn load(backend: &dyn Backend, bytes: &Bytes, limits: &Limits) -> Result<Self, Refusal> {
        let described = inspect(bytes, limits)?;
        let loaded = catch_unwind(AssertUnwindSafe(|| backend.load(bytes, &described, limits)));
        let loaded = loaded.map_err(|panic| Refusal::Load(told(&*panic)))??;
        let mut model = Self {
            loaded,
            backend: backend.name(),
            described,
            panicked: OnceLock::new(),
            tried: Duration::ZERO,
            pays: false,
        };
        let (batchable, length) = model.try_out()?;
        model.described.batchable = batchable;
        model.tried = model.time(1, length);
        model.pays = batchable && (model.tried > LONG || model.time(FEW, length) < model.tried * FEW as u32 * 9 / 10);
        // What panicked was made up here; what callers send may be better.
        model.panicked.take();
        Ok(model)
    }

    #[must_use]
    pub fn described(&self) -> &Described {
        &self.described
    }

    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.described.signature
    }

    /// Whether calls can be put together by rows; tried, see [`Model::load`].
    #[must_use]
    pub fn batchable(&self) -> bool {
        self.described.batchable
    }

    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// What it holds in memory, about.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.loaded.memory_bytes()
    }

    /// Whether runs go on beside each other.
    #[must_use]
    pub fn parallel(&self) -> bool {
        self.loaded.parallel()
    }

    /// What it said when it panicked. It answers no call any more and is to be loaded anew.
    #[must_use]
    pub fn panicked(&self) -> Option<&str> {
        self.panicked.get().map(String::as_str)
    }

    /// That a call fits this model: see [`Signature::check`]. Answers its rows.
    ///
    /// # Errors
    /// The input that does not fit.
    pub fn check(&self, inputs: &[(String, Tensor)]) -> Result<u64, TensorError> {
        let rows = self.signature().check(inputs)?;
        Ok(if self.described.batchable { rows } else { 1 })
    }

    /// One run, on this thread.
    ///
    /// # Errors
    /// An input does not fit; the model failed or panicked; it gave something else than it says.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Named, InferError> {
        self.signature().check(inputs)?;
        self.run_checked(inputs, Instant::now() + RUN_TIME_MAX)
    }

    /// As [`Model::run`], for inputs that [`Model::check`] took, until a moment.
    pub(crate) fn run_checked(&self, inputs: &[(String, Tensor)], until: Instant) -> Result<Named, InferError> {
        match self.panicked.get() {
            Some(why) => Err(InferError::Panicked(why.clone())),
            None => self.run_once_more(inputs, until),
        }
    }

    /// As [`Model::run_checked`], though it may have panicked in a run of which this call was a part: plans are not changed by runs.
    pub(crate) fn run_once_more(&self, inputs: &[(String, Tensor)], until: Instant) -> Result<Named, InferError> {
        let ports = &self.signature().inputs;
        let mut ordered = Vec::with_capacity(ports.len());
        for port in ports {
            let Some((_, tensor)) = inputs.iter().find(|(name, _)| *name == port.name) else {
                return Err(TensorError::Missing {
                    name: port.name.clone(),
                    expected: port.to_string(),
                }
                .into());
            };
            ordered.push(tensor);
        }
        let run = catch_unwind(AssertUnwindSafe(|| self.loaded.run(&ordered, until)));
        let outputs = match run {
            Ok(Ok(outputs)) => outputs,
            Ok(Err(RunError::Failed(why))) => return Err(InferError::Failed(why)),
            Ok(Err(RunError::Late)) => return Err(InferError::Late),
            Err(panic) => {
                let why = self.panicked.get_or_init(|| told(&*panic));
                return Err(InferError::Panicked(why.clone()));
            }
        };
        let ports = &self.signature().outputs;
        if outputs.len() != ports.len() {
            return Err(InferError::Failed(format!(
                "it gave {} outputs, where it has {}",
                outputs.len(),
                ports.len()
            )));
        }
        if let Some((port, got)) = ports
            .iter()
            .zip(&outputs)
            .find(|(port, got)| !port.fits(got.kind(), got.shape()))
        {
            return Err(InferError::Failed(format!(
                "its output {:?} is {got:?}, where it says {port}",
                port.name
            )));
        }
        Ok(ports.iter().map(|port| port.name.clone()).zip(outputs).collect())
    }

    /// Runs what was made up. Answers whether calls may be put together, and what length it worked with.
    fn try_out(&mut self) -> Result<(bool, u64), Refusal> {
        let mut failed = String::new();
        // Sizes other than rows are the caller's: a model of texts may need some length to work at all.
        for length in [1, 8, 32] {
            match self.run(&self.made_up(1, length, 1)) {
                Ok(first) => {
                    let batchable = self.signature().batchable() && self.rows_are_apart(&first, length);
                    return Ok((batchable, length));
                }
                // An image of one pixel is too small for most: a backend may panic where it should say so.
                Err(InferError::Failed(why) | InferError::Panicked(why)) => failed = why,
                Err(other) => return Err(Refusal::Run(other.to_string())),
            }
            self.panicked.take();
            if self
                .signature()
                .inputs
                .iter()
                .all(|port| !port.shape.iter().skip(1).any(Option::is_none))
            {
                break;
            }
        }
        // Numbers may mean something (words, positions), so that what is made up is refused rightly. Of numbers with fractions any will do.
        let any_will_do = self
            .signature()
            .inputs
            .iter()
            .all(|port| matches!(port.kind, TensorType::Fp32 | TensorType::Fp64));
        let fixed = self
            .signature()
            .inputs
            .iter()
            .all(|port| !port.shape.iter().skip(1).any(Option::is_none));
        if any_will_do && fixed {
            Err(Refusal::Run(failed))
        } else {
            Ok((false, 1))
        }
    }

    /// How long a row takes, once it was run before.
    pub(crate) fn tried(&self) -> Duration {
        self.tried
    }

    /// Whether rows together take a tenth less than each alone, as it was measured at load. For tract's convolutions they take more.
    #[must_use]
    pub fn batching_pays(&self) -> bool {
        self.pays
    }

    /// The shortest of five: what disturbs a run only makes it longer.
    fn time(&self, rows: u64, length: u64) -> Duration {
        let inputs = self.made_up(rows, length, 1);
        let runs = (0..5).map(|_| {
            let begun = Instant::now();
            // What it says does not matter: it was tried.
            let _ = self.run(&inputs);
            begun.elapsed()
        });
        runs.min().unwrap_or_default()
    }

    /// Whether two rows together give what each gives alone.
    fn rows_are_apart(&self, first: &Named, length: u64) -> bool {
        let Ok(second) = self.run(&self.made_up(1, length, 2)) else {
            return false;
        };
        let both: Option<Named> = self
            .made_up(1, length, 1)
            .iter()
            .zip(&self.made_up(1, length, 2))
            .map(|((name, one), (_, other))| Some((name.clone(), Tensor::join(&[one, other]).ok()?)))
            .collect();
        let Some(Ok(both)) = both.map(|both| self.run(&both)) else {
            return false;
        };
        both.iter()
            .zip(first.iter().zip(&second))
            .all(|((_, both), ((_, first), (_, second)))| {
                let halves = (both.rows() == 2).then(|| (both.slice(0, 1), both.slice(1, 1)));
                matches!(halves, Some((Ok(one), Ok(two))) if alike(&one, first) && alike(&two, second))
            })
    }

    fn made_up(&self, rows: u64, length: u64, seed: u64) -> Named {
        let made = |port: &Port| {
            let free = |(at, dim): (usize, &Option<u64>)| dim.unwrap_or(if at == 0 { rows } else { length });
            let shape: Vec<u64> = port.shape.iter().enumerate().map(free).collect();
            (port.name.clone(), made_up(port.kind, shape, seed))
        };
        self.signature().inputs.iter().map(made).collect()
    }
}

/// Rows by which it is measured whether batching pays, and what a model may take to be measured so: a slow one would make its load slow, and
/// gains what its policy says.
const FEW: u64 = 16;
const LONG: Duration = Duration::from_millis(2);

/// Numbers of no meaning, between 0 and 1: the same for the same seed. What a shape too large for a tensor is made of is empty, and refused.
fn made_up(kind: TensorType, shape: Vec<u64>, seed: u64) -> Tensor {
    let elements = shape.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim));
    let elements = elements
        .unwrap_or(u64::MAX)
        .min(skep_model::limits::TENSOR_BYTES_MAX as u64);
    let part = |at: u64| {
        (at.wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_mul(seed)
            >> 40) as f32
            / (1u32 << 24) as f32
    };
    let bytes: Bytes = match kind {
        TensorType::Fp32 => (0..elements).flat_map(|at| part(at).to_le_bytes()).collect(),
        TensorType::Fp64 => (0..elements).flat_map(|at| f64::from(part(at)).to_le_bytes()).collect(),
        TensorType::Fp16 => (0..elements)
            .flat_map(|at| half::f16::from_f32(part(at)).to_le_bytes())
            .collect(),
        TensorType::Bytes => (0..elements).flat_map(|_| [1, 0, 0, 0, b'a' + seed as u8]).collect(),
        kind => {
            let size = kind.size().unwrap_or(1) as u64;
            (0..elements * size)
                .map(|at| u8::from(at % size == 0 && part(at / size) > 0.5))
                .collect()
        }
    };
    let none = || Tensor::new(kind, vec![0], Bytes::new());
    Tensor::new(kind, shape, bytes)
        .or_else(|_| none())
        .expect("a tensor without elements is one")
}

/// Equal up to what the order of additions makes.
fn alike(one: &Tensor, other: &Tensor) -> bool {
    match (one.to_f32(), other.to_f32()) {
        (Some(one), Some(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(&other)
                    .all(|(a, b)| a == b || (a - b).abs() <= 1e-3 * (1.0 + a.abs().max(b.abs())))
        }
        _ => one == other,
    }
}

/// What a panic said, in one line that is not too long.
fn told(panic: &(dyn std::any::Any + Send)) -> String {
    let said = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    one_line(said.unwrap_or("a panic without words"))
}

/// Errors of backends have many lines, and names that were uploaded.
pub(crate) fn one_line(text: &str) -> String {
    let flat: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(480)
        .collect();
    flat.split_whitespace().collect::<Vec<_>>().join(" ")
}
