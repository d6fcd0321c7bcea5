//! The node's side: starts the child, waits, and makes sense of its end.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use skep_model::id::Digest;
use tokio::sync::Semaphore;

use super::refusal::{Code, CompileError};
use super::{ANSWER_HEAD_BYTES, LIMITS_VARIABLE, PART_VARIABLE, Part, TARGET_VARIABLE};
use crate::artifact::{Artifact, Sealed, Shared, memory_file, seal};
use crate::cache::ArtifactCache;
use crate::confined::{Death, End, Program};
use crate::settings::CompilerLimits;
use crate::target::Target;

/// Compilers at once on a node: each may take 1.5 GiB.
const AT_ONCE: usize = 2;
/// A refusal is a short JSON object.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;

/// Compiles uploads by running a child process for each.
#[derive(Debug)]
pub struct Compiler {
    program: Program,
    limits: CompilerLimits,
    at_once: Semaphore,
    /// Where code that modules share is looked for.
    cache: Option<Arc<ArtifactCache>>,
}

impl Compiler {
    /// `exe` with `args` must end in [`super::child_main`]: `skep compile-module`, as a rule of the running binary itself.
    #[must_use]
    pub fn new(exe: PathBuf, args: Vec<OsString>, limits: CompilerLimits) -> Self {
        Self {
            program: Program::new(exe, args),
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
        let (libraries, native) = self.child(Part::Frame, None, &upload).await?;
        if libraries.is_empty() {
            return Ok(Artifact::new(native, None));
        }
        match self.code(libraries).await {
            Ok(code) => Ok(Artifact::new(native, Some(code))),
            // Nothing that is wrong with the libraries is told of them: the user knows no such thing.
            Err(error) => {
                tracing::warn!(%error, "the libraries of a module cannot be compiled apart; compiling it whole");
                let (_, native) = self.child(Part::Whole, None, &upload).await?;
                Ok(Artifact::new(native, None))
            }
        }
    }

    /// Compiles a module that was uploaded, and so compiled for this node before, for another machine: whole, so that it is one file. Dropping
    /// the future kills the child.
    ///
    /// # Errors
    /// As [`Compiler::compile`]; and where this build has no compiler for that processor.
    pub async fn compile_for(&self, target: &Target, module: Bytes) -> Result<Artifact, CompileError> {
        target
            .check()
            .map_err(|e| CompileError::new(Code::Node, e.to_string()))?;
        self.cheap_checks(&module)?;
        let _turn = self.at_once.acquire().await;
        let (_, native) = self.child(Part::Whole, Some(target), &module).await?;
        Ok(Artifact::new(native, None))
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
        let (_, native) = self.child(Part::Code, None, &libraries).await?;
        Ok(Shared {
            digest,
            native: Arc::new(native),
        })
    }

    /// One child's work: what it hands back of WebAssembly, and its native code.
    async fn child(
        &self,
        part: Part,
        target: Option<&Target>,
        given: &[u8],
    ) -> Result<(Vec<u8>, Sealed), CompileError> {
        let limits = serde_json::to_string(&self.limits).unwrap_or_default();
        let target = target.map(|target| serde_json::to_string(target).unwrap_or_default());
        let mut variables = vec![(LIMITS_VARIABLE, limits.as_str()), (PART_VARIABLE, part.word())];
        variables.extend(target.iter().map(|target| (TARGET_VARIABLE, target.as_str())));
        let ended = self.program.run(&variables, given, &self.limits.bounds()).await;
        match ended.map_err(|e| CompileError::new(Code::Node, e.to_string()))? {
            End::Answered(answer) => read_answer(&answer, &self.limits)
                .map_err(|e| CompileError::new(Code::Node, format!("cannot read the artifact: {e}; try again")))?
                .ok_or_else(|| CompileError::new(Code::CompilerKilled, "the compiler ended without an answer")),
            End::Refused(refusal) => Err(read_refusal(&refusal).unwrap_or_else(|| {
                CompileError::new(Code::CompilerKilled, "the compiler refused the module without a reason")
            })),
            End::TimedOut => Err(CompileError::new(
                Code::Timeout,
                format!(
                    "the compiler did not end within {} s; simplify the module, or try again when the node is less busy",
                    self.limits.wall_s
                ),
            )),
            End::Died(death) => Err(self.post_mortem(death)),
        }
    }

    /// What can be told without parsing anything.
    fn cheap_checks(&self, upload: &[u8]) -> Result<(), CompileError> {
        super::inspect::size(upload.len() as u64, &self.limits)?;
        super::inspect::preamble(upload)
    }

    fn post_mortem(&self, death: Death) -> CompileError {
        let limits = &self.limits;
        match death {
            Death::Stack => CompileError::new(
                Code::TooComplex,
                "the module is too complex: its types, components or expressions are nested too deeply for the compiler",
            ),
            Death::Memory => CompileError::new(
                Code::OutOfMemory,
                format!(
                    "the compiler ran out of memory: it may have {} MiB; split the module or simplify its largest functions",
                    limits.memory_bytes >> 20
                ),
            ),
            Death::Unconfined(why) => {
                CompileError::new(Code::Node, format!("the compiler did not look at the module: {why}"))
            }
            Death::Cpu => CompileError::new(
                Code::CpuTime,
                format!(
                    "the compiler used up its {} s of CPU time; split the module or simplify its largest functions",
                    limits.cpu_s
                ),
            ),
            Death::Answer => CompileError::new(
                Code::TooLarge,
                format!(
                    "the module compiles to more than {} bytes of native code; split it into smaller modules",
                    limits.artifact_bytes
                ),
            ),
            Death::Killed => CompileError::new(
                Code::CompilerKilled,
                "the compiler process was killed from outside (by an operator, or because the machine ran out of memory); try again",
            ),
            Death::ForbiddenCall => {
                tracing::error!(
                    "a compiler process asked for a forbidden system call and was ended: its upload may be an attack"
                );
                CompileError::new(
                    Code::CompilerKilled,
                    "the compiler process asked for a system call that no compiler needs, and was ended; report this upload",
                )
            }
            Death::Other(how) => CompileError::new(Code::CompilerKilled, format!("the compiler process ended: {how}")),
        }
    }
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
    serde_json::from_slice(&answer.read(REFUSAL_BYTES_MAX).ok()?).ok()
}
