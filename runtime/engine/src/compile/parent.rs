//! The node's side: starts the child, waits, and makes sense of its end.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::refusal::{Code, CompileError};
use super::{LIMITS_VARIABLE, REFUSED_STATUS, UNCONFINED_STATUS};
use crate::artifact::{Artifact, Sealed, memory_file, seal};
use crate::settings::CompilerLimits;

/// Compilers at once on a node: each may take 1.5 GiB.
const AT_ONCE: usize = 2;
/// How much of the child's standard error is read. It holds at most a panic's message.
const STDERR_BYTES_MAX: u64 = 16 << 10;
/// A refusal is a short JSON object.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;

/// Compiles uploads by running a child process for each.
#[derive(Debug)]
pub struct Compiler {
    exe: PathBuf,
    args: Vec<OsString>,
    limits: CompilerLimits,
    at_once: Semaphore,
}

impl Compiler {
    /// `exe` with `args` must end in [`super::child_main`]: `skep compile-module`, as a rule of the running binary itself.
    #[must_use]
    pub fn new(exe: PathBuf, args: Vec<OsString>, limits: CompilerLimits) -> Self {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| {
            if let Some(missing) = super::confine::missing() {
                tracing::warn!("{missing}");
            }
        });
        Self {
            exe,
            args,
            limits,
            at_once: Semaphore::new(AT_ONCE),
        }
    }

    /// Checks and compiles an upload. Dropping the future kills the child.
    ///
    /// # Errors
    /// The upload is refused, or the compiler did not survive it, or the node cannot run a compiler now.
    pub async fn compile(&self, upload: Bytes) -> Result<Artifact, CompileError> {
        self.cheap_checks(&upload)?;
        // Waits its turn; the wall clock starts afterwards.
        let _turn = self.at_once.acquire().await;
        let node = |what: &str, e: io::Error| CompileError::new(Code::Node, format!("cannot {what}: {e}; try again"));

        let input = Sealed::of("skep-upload", &upload).map_err(|e| node("hold the upload in memory", e))?;
        drop(upload);
        let output = memory_file("skep-artifact").map_err(|e| node("make room for the artifact", e))?;
        let output_fd = output.try_clone().map_err(|e| node("make room for the artifact", e))?;
        let limits = serde_json::to_string(&self.limits).unwrap_or_default();
        let mut child = Command::new(&self.exe)
            .args(&self.args)
            .env_clear()
            .env(LIMITS_VARIABLE, limits)
            // Each thread's arena reserves 64 MiB of the address space that is limited; each thread adds a stack.
            .env("MALLOC_ARENA_MAX", "2")
            .env("RAYON_NUM_THREADS", "2")
            .env("RUST_MIN_STACK", (8 << 20).to_string())
            .current_dir("/")
            .stdin(Stdio::from(
                input.reader().map_err(|e| node("hand over the upload", e))?,
            ))
            .stdout(Stdio::from(OwnedFd::from(output_fd)))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| node("start the compiler process", e))?;
        let stderr = child.stderr.take();
        let waited = tokio::time::timeout(Duration::from_secs(self.limits.wall_s), async {
            let said = read_bounded(stderr).await;
            (child.wait().await, said)
        })
        .await;
        let Ok((status, said)) = waited else {
            // The kill is sent by the drop as well; this one also reaps.
            let _ = child.kill().await;
            return Err(CompileError::new(
                Code::Timeout,
                format!(
                    "the compiler did not end within {} s; simplify the module, or try again when the node is less busy",
                    self.limits.wall_s
                ),
            ));
        };
        let status = status.map_err(|e| node("wait for the compiler process", e))?;
        if status.success() {
            let sealed = seal(output).map_err(|e| node("seal the artifact", e))?;
            if sealed.len() == 0 {
                return Err(CompileError::new(
                    Code::CompilerKilled,
                    "the compiler ended without an answer",
                ));
            }
            return Ok(Artifact::new(sealed));
        }
        if status.code() == Some(REFUSED_STATUS)
            && let Ok(sealed) = seal(output)
            && let Some(refusal) = read_refusal(&sealed)
        {
            return Err(refusal);
        }
        Err(self.post_mortem(status, &said))
    }

    /// What can be told without parsing anything.
    fn cheap_checks(&self, upload: &[u8]) -> Result<(), CompileError> {
        super::inspect::size(upload.len() as u64, &self.limits)?;
        super::inspect::preamble(upload)
    }

    fn post_mortem(&self, status: ExitStatus, said: &str) -> CompileError {
        const SIGKILL: i32 = 9;
        const SIGXCPU: i32 = 24;
        const SIGXFSZ: i32 = 25;
        const SIGSYS: i32 = 31;
        let limits = &self.limits;
        if said.contains("has overflowed its stack") {
            return CompileError::new(
                Code::TooComplex,
                "the module is too complex: its types, components or expressions are nested too deeply for the compiler",
            );
        }
        // What the allocator, and wasmtime's own mappings, say when the address space is used up.
        if said.contains("memory allocation of")
            || said.contains("Cannot allocate memory")
            || said.contains("failed to spawn thread")
        {
            return CompileError::new(
                Code::OutOfMemory,
                format!(
                    "the compiler ran out of memory: it may have {} MiB; split the module or simplify its largest functions",
                    limits.memory_bytes >> 20
                ),
            );
        }
        if status.code() == Some(UNCONFINED_STATUS.into()) {
            return CompileError::new(
                Code::Node,
                format!("the compiler did not look at the module: {}", last_line(said)),
            );
        }
        match status.signal() {
            Some(SIGXCPU) => CompileError::new(
                Code::CpuTime,
                format!(
                    "the compiler used up its {} s of CPU time; split the module or simplify its largest functions",
                    limits.cpu_s
                ),
            ),
            Some(SIGXFSZ) => CompileError::new(
                Code::TooLarge,
                format!(
                    "the module compiles to more than {} bytes of native code; split it into smaller modules",
                    limits.artifact_bytes
                ),
            ),
            // At its hard limit of CPU time a process is killed this way too, but the soft one comes first.
            Some(SIGKILL) => CompileError::new(
                Code::CompilerKilled,
                "the compiler process was killed from outside (by an operator, or because the machine ran out of memory); try again",
            ),
            // Only code that was brought in from outside asks for what ends it this way; see `syscalls`.
            Some(SIGSYS) => {
                tracing::error!(
                    "a compiler process asked for a forbidden system call and was ended: its upload may be an attack"
                );
                CompileError::new(
                    Code::CompilerKilled,
                    "the compiler process asked for a system call that no compiler needs, and was ended; report this upload",
                )
            }
            Some(signal) => CompileError::new(
                Code::CompilerKilled,
                format!("the compiler process died of signal {signal}: {}", last_line(said)),
            ),
            None => CompileError::new(
                Code::CompilerKilled,
                format!("the compiler process failed ({status}): {}", last_line(said)),
            ),
        }
    }
}

fn last_line(said: &str) -> &str {
    said.lines()
        .rev()
        .find(|l| !l.trim().is_empty())
        .unwrap_or("no message")
        .trim()
}

async fn read_bounded(stderr: Option<tokio::process::ChildStderr>) -> String {
    let Some(stderr) = stderr else { return String::new() };
    let mut kept = Vec::new();
    let mut bounded = stderr.take(STDERR_BYTES_MAX);
    // An error here only costs words.
    let _ = bounded.read_to_end(&mut kept).await;
    let mut rest = bounded.into_inner();
    let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

fn read_refusal(answer: &Sealed) -> Option<CompileError> {
    let mut json = Vec::new();
    let file = std::fs::File::from(answer.reader().ok()?);
    file.take(REFUSAL_BYTES_MAX).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}
