//! Models on a node: what an upload is, what runs it, which calls run together, and which models stay in memory.
//!
//! Nothing here knows WebAssembly, gRPC, HTTP or a catalog; those who do call it so:
//! - [`inspect`]: what an uploaded file is. Runs in a confined process, then [`prove`] in the same process loads and runs it there.
//! - [`backend`]: tract (in Rust, always there) and ONNX Runtime (where its library is found) behind one small trait; [`Model`], a loaded one.
//! - [`batch`]: concurrent calls become one run; fair between subjects, with deadlines and bounds.
//! - [`threads`]: the threads that run models; how many is the node's choice.
//! - [`shelf`]: models by digest, loaded once on first use, evicted by a memory budget.
//! - [`limits`]: every bound. [`measure`]: how fast all this is.
//!
//! ```text
//! Shelf::model(digest, …) ─► Lease ─derefs to─► Batcher::infer(subject, inputs, deadline) ─► Model::run ─► tract | onnxruntime
//! ```

pub mod backend;
pub mod batch;
pub mod inspect;
pub mod limits;
pub mod measure;
#[cfg(test)]
mod sample;
pub mod shelf;
pub mod threads;

use bytes::Bytes;

pub use backend::{Backend, InferError, Model, Named};
pub use batch::{Batcher, Bounds, Policy, Subject};
pub use inspect::{Described, Refusal, inspect};
pub use limits::Limits;
pub use shelf::{Lease, Shelf};
pub use threads::Threads;

/// The second look at an upload, after [`inspect`], in the same confined process: prepares the model and runs it, with all that this costs in memory
/// and time, under that process's limits. What is answered says of [`Described::batchable`] what was tried.
///
/// A backend's preparation computes what is constant in a model, which can be much more than the file. Since it depends on the file alone,
/// a node that loads what was proven with the same backend meets the same cost.
///
/// # Errors
/// Why the model is not taken.
pub fn prove(backend: &dyn Backend, bytes: &Bytes, limits: &Limits) -> Result<Described, Refusal> {
    Ok(Model::load(backend, bytes, limits)?.described().clone())
}
