//! The node's side: starts the child, waits, and makes sense of its end.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use skep_model::id::Digest;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::refusal::{Code, CompileError};
use super::{ANSWER_HEAD_BYTES, LIMITS_VARIABLE, PART_VARIABLE, Part, REFUSED_STATUS, UNCONFINED_STATUS};
use crate::artifact::{Artifact, Sealed, Shared, memory_file, seal};
use crate::cache::ArtifactCache;
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
    /// Where code that modules share is looked for.
    cache: Option<Arc<ArtifactCache>>,
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
            cache: None,
        }
    }

    /// Looks in the cache for code of libraries that were compiled before. Who uses what this compiles puts it there.
    #[must_use]
    pub fn with(mut self, cache: Arc<ArtifactCache>) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Checks and compiles an upload. Dropping the future kills the child.
    ///
    /// # Errors
    /// The upload is refused, or the compiler did not survive it, or the node cannot run a compiler now.
    pub async fn compile(&self, upload: Bytes) -> Result<Artifact, CompileError> {
        self.cheap_checks(&upload)?;
        // Waits its turn; the wall clock starts afterwards.
        let _turn = self.at_once.acquire().await;
        let (libraries, native) = self.child(Part::Frame, &upload).await?;
        if libraries.is_empty() {
            return Ok(Artifact::new(native, None));
        }
        match self.code(libraries).await {
            Ok(code) => Ok(Artifact::new(native, Some(code))),
            // Nothing that is wrong with the libraries is told of them: the user knows no such thing.
            Err(error) => {
                tracing::warn!(%error, "the libraries of a module cannot be compiled apart; compiling it whole");
                let (_, native) = self.child(Part::Whole, &upload).await?;
                Ok(Artifact::new(native, None))
            }
        }
    }

    /// The native code of libraries: kept from another upload, or compiled now.
    async fn code(&self, libraries: Vec<u8>) -> Result<Shared, CompileError> {
        let libraries = Bytes::from(libraries);
        let digest = Digest::of(&libraries);
        if let Some(cache) = self.cache.clone() {
            let found = tokio::task::spawn_blocking(move || cache.code(digest)).await;
            match found {
                Ok(Ok(Some(code))) => return Ok(code),
                Ok(Err(error)) => tracing::warn!(%error, "cannot read the artifact cache; compiling again"),
                _ => {}
            }
        }
        let (_, native) = self.child(Part::Code, &libraries).await?;
        Ok(Shared {
            digest,
            native: Arc::new(native),
        })
    }

    /// One child's work: what it hands back of WebAssembly, and its native code.
    async fn child(&self, part: Part, given: &[u8]) -> Result<(Vec<u8>, Sealed), CompileError> {
        let node = |what: &str, e: io::Error| CompileError::new(Code::Node, format!("cannot {what}: {e}; try again"));

        let input = Sealed::of("skep-upload", given).map_err(|e| node("hold the upload in memory", e))?;
        let output = memory_file("skep-artifact").map_err(|e| node("make room for the artifact", e))?;
        let output_fd = output.try_clone().map_err(|e| node("make room for the artifact", e))?;
        let limits = serde_json::to_string(&self.limits).unwrap_or_default();
        let mut child = Command::new(&self.exe)
            .args(&self.args)
            .env_clear()
            .env(LIMITS_VARIABLE, limits)
            .env(PART_VARIABLE, part.word())
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
            return read_answer(&sealed, &self.limits)
                .map_err(|e| node("read the artifact", e))?
                .ok_or_else(|| CompileError::new(Code::CompilerKilled, "the compiler ended without an answer"));
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

/// `None`: the child has not said all that it should. What it says is no more trusted than what it was given: lengths are checked.
fn read_answer(answer: &Sealed, limits: &CompilerLimits) -> io::Result<Option<(Vec<u8>, Sealed)>> {
    let mut file = answer.open()?;
    let mut head = [0; ANSWER_HEAD_BYTES];
    if answer.len() <= head.len() as u64 {
        return Ok(None);
    }
    file.read_exact(&mut head)?;
    let len = u64::from_le_bytes(head);
    if len > limits.upload_bytes || len >= answer.len() - head.len() as u64 {
        return Ok(None);
    }
    let mut libraries = Vec::new();
    (&mut file).take(len).read_to_end(&mut libraries)?;
    let mut native = memory_file("skep-artifact")?;
    io::copy(&mut file, &mut native)?;
    Ok(Some((libraries, seal(native)?)))
}

fn read_refusal(answer: &Sealed) -> Option<CompileError> {
    let mut json = Vec::new();
    let file = std::fs::File::from(answer.reader().ok()?);
    file.take(REFUSAL_BYTES_MAX).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}
