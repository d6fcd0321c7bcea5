//! The node's side of looking at a model that was uploaded.

use std::ffi::OsString;
use std::path::PathBuf;

use bytes::Bytes;
use skep_engine::confined::{Bounds, Death, End, Program};
use skep_inference::backend::Choice;
use skep_inference::{Described, Limits};
use tokio::sync::Semaphore;

use super::child::{TASK_VARIABLE, Task};

/// Each may take as much memory as the largest model that is let in.
const AT_ONCE: usize = 1;
/// What a model is, or why it is refused, is a short text.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Why an upload is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct LookError {
    /// The upload is at fault: it will fail again.
    pub permanent: bool,
    pub text: String,
}

/// Looks at uploads, each in a process of its own with the same backend as the node's.
#[derive(Debug)]
pub struct Lookout {
    program: Program,
    task: Task,
    at_once: Semaphore,
}

impl Lookout {
    /// `exe` is this program.
    #[must_use]
    pub fn new(exe: PathBuf, backend: Choice, library: Option<PathBuf>) -> Self {
        let bounds = Bounds {
            // The file, as it came and as it is prepared, beside what a run of it may take.
            memory_bytes: 5 << 30,
            cpu_s: 120,
            wall_s: 300,
            answer_bytes: ANSWER_BYTES_MAX,
        };
        let task = Task {
            backend,
            library,
            limits: Limits::default(),
            bounds,
        };
        Self {
            program: Program::new(exe, vec![OsString::from("inspect-model")]),
            task,
            at_once: Semaphore::new(AT_ONCE),
        }
    }

    /// What a model is, if it is one that this node can run.
    ///
    /// # Errors
    /// It is refused, or the process did not survive it, or the node cannot run one now.
    pub async fn look(&self, upload: &Bytes) -> Result<Described, LookError> {
        let _turn = self.at_once.acquire().await;
        let task = serde_json::to_string(&self.task).unwrap_or_default();
        let bounds = &self.task.bounds;
        let ended = self.program.run(&[(TASK_VARIABLE, &task)], upload, bounds).await;
        let refused = |text: String| LookError { permanent: true, text };
        let later = |text: String| LookError { permanent: false, text };
        match ended.map_err(|e| later(e.to_string()))? {
            End::Answered(said) => said
                .read(ANSWER_BYTES_MAX)
                .ok()
                .and_then(|json| serde_json::from_slice(&json).ok())
                .ok_or_else(|| later("the process that looked at the model ended without an answer; try again".into())),
            End::Refused(why) => {
                let why = why.read(ANSWER_BYTES_MAX).unwrap_or_default();
                Err(refused(String::from_utf8_lossy(&why).into_owned()))
            }
            End::TimedOut => Err(later(format!(
                "the model was not loaded and run once within {} s; make it smaller, or try again when the node is less busy",
                bounds.wall_s
            ))),
            End::Died(Death::Stack) => Err(refused(
                "the model is too complex: its graphs are nested too deeply to be prepared".into(),
            )),
            End::Died(Death::Memory) => Err(refused(format!(
                "the model takes too much memory to be prepared and run once: it may have {} MiB",
                bounds.memory_bytes >> 20
            ))),
            End::Died(Death::Cpu) => Err(refused(format!(
                "the model takes more than {} s of CPU time to be prepared and run once",
                bounds.cpu_s
            ))),
            End::Died(Death::Answer) => Err(refused("what the model says of itself is too long".into())),
            End::Died(Death::Unconfined(why)) => Err(later(format!("nobody looked at the model: {why}"))),
            End::Died(Death::Killed) => Err(later(
                "the process that looked at the model was killed from outside (by an operator, or because the machine ran out of \
                 memory); try again"
                    .into(),
            )),
            End::Died(Death::ForbiddenCall) => {
                tracing::error!("a process that looked at a model asked for a forbidden system call: the upload may be an attack");
                Err(later(
                    "the process that looked at the model asked for a system call that no model needs, and was ended; report this upload"
                        .into(),
                ))
            }
            End::Died(Death::Other(how)) => Err(later(format!("the process that looked at the model ended: {how}"))),
        }
    }
}
