//! The body of the process that looks at a model: file on standard input, what it is on standard output.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skep_engine::confined::{Bounds, REFUSED_STATUS, UNCONFINED_STATUS, confine};
use skep_inference::backend::{self, Choice};
use skep_inference::{Backend, Described, Limits, inspect, prove};

/// What the process is told, as JSON, in its environment.
pub(super) const TASK_VARIABLE: &str = "SKEP_MODEL_TASK";
/// Backends walk graphs by calling themselves. The node's threads of models have no less.
const STACK_BYTES: usize = 8 << 20;

/// What to look with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub backend: Choice,
    pub library: Option<PathBuf>,
    pub limits: Limits,
    pub bounds: Bounds,
}

/// Looks at a model. To be called by the binary's hidden subcommand and nothing else: it limits the whole process.
#[must_use]
pub fn child_main() -> ExitCode {
    let task = std::env::var(TASK_VARIABLE).ok();
    let Some(task) = task.and_then(|json| serde_json::from_str::<Task>(&json).ok()) else {
        eprintln!("this command is the node's own");
        return ExitCode::FAILURE;
    };
    // ONNX Runtime is a file, and no file can be opened afterwards. It has not seen a byte of the model.
    let backend = match backend::choose(task.backend, task.library.as_deref(), 1) {
        Ok(backend) => backend,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(UNCONFINED_STATUS);
        }
    };
    if let Err(error) = confine(&task.bounds) {
        eprintln!("cannot limit the process that looks at models: {error}");
        return ExitCode::from(UNCONFINED_STATUS);
    }
    let worker = std::thread::Builder::new()
        .name("skep-model-look".into())
        .stack_size(STACK_BYTES)
        .spawn(move || look(&backend, &task.limits));
    // A panic has printed its message; the node reads it from our standard error.
    let Some(done) = worker.ok().and_then(|thread| thread.join().ok()) else {
        return ExitCode::FAILURE;
    };
    let (said, status) = match done {
        Ok(described) => (serde_json::to_vec(&described), ExitCode::SUCCESS),
        Err(why) => (Ok(why.into_bytes()), ExitCode::from(REFUSED_STATUS)),
    };
    let mut out = std::io::stdout().lock();
    let wrote = said.is_ok_and(|said| out.write_all(&said).and_then(|()| out.flush()).is_ok());
    if wrote { status } else { ExitCode::FAILURE }
}

fn look(backend: &Arc<dyn Backend>, limits: &Limits) -> Result<Described, String> {
    let mut given = Vec::new();
    let most = limits.bytes as u64 + 1;
    if let Err(error) = std::io::stdin().lock().take(most).read_to_end(&mut given) {
        return Err(format!("cannot read the upload: {error}"));
    }
    let bytes = Bytes::from(given);
    inspect(&bytes, limits).map_err(|refusal| refusal.to_string())?;
    prove(&**backend, &bytes, limits).map_err(|refusal| refusal.to_string())
}
