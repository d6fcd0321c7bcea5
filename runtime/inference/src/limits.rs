//! Every bound of this crate, named, with its reason. Those of tensors are in `skep_model::limits`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One model. Small language models are below it, quantised; a node's memory is what else it costs.
pub const MODEL_BYTES_MAX: usize = 512 << 20;
/// What a model's description takes when it is unpacked: each byte can become eight (packed numbers) or hundreds (empty messages).
pub const UNPACKED_BYTES_MAX: u64 = 2 << 30;
/// Nodes of all graphs together. ResNet-152 has 515, a large transformer some 20,000.
pub const NODES_MAX: usize = 100_000;
/// Graphs inside each other. A backend walks them by calling itself.
pub const GRAPHS_DEEP_MAX: usize = 8;
/// Tensors that a model carries, and attributes: some for each node.
pub const TENSORS_MAX: usize = 200_000;
pub const ATTRIBUTES_MAX: usize = 1_000_000;
/// Inputs or outputs of a model.
pub const PORTS_MAX: usize = 64;
/// A name inside a model: exporters write whole module paths.
pub const MODEL_NAME_BYTES_MAX: usize = 1 << 10;
/// Versions of ONNX's operators that are read: operators before the first are unlike what backends implement, and what came after the
/// last has not been held against them.
pub const OPSET_MIN: u64 = 7;
pub const OPSET_MAX: u64 = 21;
/// … and of `ai.onnx.ml`, scikit-learn's part of ONNX.
pub const OPSET_ML_MAX: u64 = 4;
/// All that one run holds beside the model: each value between operators at once, which is more than any backend needs.
pub const RUN_BYTES_MAX: u64 = 1 << 30;
/// One run, whatever its caller's deadline: an upload is tried for as long at most, so a model that needs longer was never taken.
pub const RUN_TIME_MAX: Duration = Duration::from_secs(120);
/// Sizes that a model is prepared for, other than rows: lengths of texts, mostly. The one used longest ago goes.
pub const PLANS_MAX: usize = 16;

/// Rows of one run.
pub const BATCH_ROWS_DEFAULT: usize = 64;
pub const BATCH_ROWS_MAX: usize = 4_096;
/// How long a first call may be made to wait for others.
pub const BATCH_WAIT_US_MAX: u64 = 1_000_000;
/// Rows and bytes of inputs that wait for one model. Beyond it a call is told that the model is busy.
pub const QUEUE_ROWS_MAX: usize = 4_096;
pub const QUEUE_BYTES_MAX: usize = 256 << 20;
/// A run that takes less, in microseconds, may be on a thread that serves connections: handing it over would cost a tenth of it, and more
/// in time.
pub const INLINE_US_MAX: u64 = 500;
/// Threads that run models, at most.
pub const THREADS_MAX: usize = 256;
/// Stack of a thread that runs or loads models: backends walk graphs by calling themselves.
pub const THREAD_STACK_BYTES: usize = 8 << 20;
/// Memory of all models that a node has loaded.
pub const MODELS_BYTES_DEFAULT: u64 = 2 << 30;
/// Calls that wait for models to be loaded, all models together.
pub const LOAD_WAITERS_MAX: usize = 4_096;
/// Models whose refusal is remembered.
pub const REFUSALS_KEPT_MAX: usize = 256;

/// What an upload may have. [`Limits::default`] is what a node uses; tests say less.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub bytes: usize,
    pub unpacked_bytes: u64,
    pub nodes: usize,
    pub graphs_deep: usize,
    pub tensors: usize,
    pub attributes: usize,
    pub run_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: MODEL_BYTES_MAX,
            unpacked_bytes: UNPACKED_BYTES_MAX,
            nodes: NODES_MAX,
            graphs_deep: GRAPHS_DEEP_MAX,
            tensors: TENSORS_MAX,
            attributes: ATTRIBUTES_MAX,
            run_bytes: RUN_BYTES_MAX,
        }
    }
}
