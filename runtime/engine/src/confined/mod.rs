//! Processes that look at what was uploaded, and can do nothing else.
//!
//! An upload is hostile until it was looked at: a kilobyte can overflow a stack while it is parsed, exhaust memory, or take minutes. So the
//! node never does that itself. It starts its own binary again with a hidden subcommand; that process calls [`confine`] before it reads
//! a byte, then reads the upload from its standard input and writes an answer to its standard output. Both are memory files: no pipe can
//! be filled or closed by either side. Whatever happens to the process becomes an [`End`].

mod confine;
mod syscalls;
pub(crate) mod tenant;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Once;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::artifact::{Sealed, memory_file, seal};

pub use confine::{confine, missing};

/// How much of the process's standard error is read. It holds at most a panic's message.
const STDERR_BYTES_MAX: u64 = 16 << 10;
/// The exit status of a process that has refused the upload and said why in its answer.
pub const REFUSED_STATUS: u8 = 3;
/// … and of one that could not limit itself, and so has not looked at the upload.
pub const UNCONFINED_STATUS: u8 = 4;

/// What such a process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Address space.
    pub memory_bytes: u64,
    pub cpu_s: u64,
    /// The CPU time bounds the work; this one only ends a process that waits in vain, so a busy node is given time.
    pub wall_s: u64,
    pub answer_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            memory_bytes: 3 << 29,
            cpu_s: 60,
            wall_s: 180,
            answer_bytes: 256 << 20,
        }
    }
}

/// What to start: a program that limits itself.
#[derive(Debug, Clone)]
pub struct Program {
    exe: PathBuf,
    args: Vec<OsString>,
}

impl Program {
    /// `exe` with `args` must call [`confine`] first: `skep compile-module` and the like, as a rule of the running binary itself.
    #[must_use]
    pub fn new(exe: PathBuf, args: Vec<OsString>) -> Self {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| {
            if let Some(missing) = confine::missing() {
                tracing::warn!("{missing}");
            }
        });
        Self { exe, args }
    }

    /// Gives a process `input` and waits for its end. Its environment is `variables` and what its allocator needs. Dropping the future kills it.
    ///
    /// # Errors
    /// The node cannot run processes now: what it could not do.
    pub async fn run(&self, variables: &[(&str, &str)], input: &[u8], bounds: &Bounds) -> Result<End, NotRun> {
        let not = |what: &'static str| move |error: io::Error| NotRun { what, error };
        let input = Sealed::of("skep-upload", input).map_err(not("hold the upload in memory"))?;
        let output = memory_file("skep-answer").map_err(not("make room for the answer"))?;
        let output_fd = output.try_clone().map_err(not("make room for the answer"))?;
        let mut child = Command::new(&self.exe)
            .args(&self.args)
            .env_clear()
            .envs(variables.iter().copied())
            // Each thread's arena reserves 64 MiB of the address space that is limited; each thread adds a stack.
            .env("MALLOC_ARENA_MAX", "2")
            .env("RAYON_NUM_THREADS", "2")
            .env("RUST_MIN_STACK", (8 << 20).to_string())
            .current_dir("/")
            .stdin(Stdio::from(input.reader().map_err(not("hand over the upload"))?))
            .stdout(Stdio::from(OwnedFd::from(output_fd)))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(not("start a process"))?;
        let stderr = child.stderr.take();
        let waited = tokio::time::timeout(Duration::from_secs(bounds.wall_s), async {
            let said = read_bounded(stderr).await;
            (child.wait().await, said)
        })
        .await;
        let Ok((status, said)) = waited else {
            // The kill is sent by the drop as well; this one also reaps.
            let _ = child.kill().await;
            return Ok(End::TimedOut);
        };
        let status = status.map_err(not("wait for a process"))?;
        if status.success() {
            return Ok(End::Answered(seal(output).map_err(not("seal the answer"))?));
        }
        if status.code() == Some(REFUSED_STATUS.into())
            && let Ok(sealed) = seal(output)
        {
            return Ok(End::Refused(sealed));
        }
        Ok(End::Died(Death::of(status, &said)))
    }
}

/// The node could not run the process. Not the upload's fault.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {error}; try again")]
pub struct NotRun {
    what: &'static str,
    error: io::Error,
}

/// What became of a process.
#[derive(Debug)]
pub enum End {
    Answered(Sealed),
    /// It refused the upload and said why.
    Refused(Sealed),
    /// It was killed when its time was over.
    TimedOut,
    Died(Death),
}

/// Of what a process died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Death {
    /// It did not look at the upload: the reason.
    Unconfined(String),
    /// What it looked at is nested too deeply.
    Stack,
    Memory,
    Cpu,
    /// Its answer was larger than it may be.
    Answer,
    /// By an operator, or because the machine ran out of memory.
    Killed,
    /// It asked for a system call that only somebody asks for who has taken the process over.
    ForbiddenCall,
    /// Of something else: in words.
    Other(String),
}

impl Death {
    fn of(status: ExitStatus, said: &str) -> Self {
        const SIGKILL: i32 = 9;
        const SIGXCPU: i32 = 24;
        const SIGXFSZ: i32 = 25;
        const SIGSYS: i32 = 31;
        if said.contains("has overflowed its stack") {
            return Self::Stack;
        }
        // What the allocator, and wasmtime's own mappings, say when the address space is used up.
        if said.contains("memory allocation of")
            || said.contains("Cannot allocate memory")
            || said.contains("failed to spawn thread")
        {
            return Self::Memory;
        }
        if status.code() == Some(UNCONFINED_STATUS.into()) {
            return Self::Unconfined(last_line(said).to_owned());
        }
        match status.signal() {
            Some(SIGXCPU) => Self::Cpu,
            Some(SIGXFSZ) => Self::Answer,
            // At its hard limit of CPU time a process is killed this way too, but the soft one comes first.
            Some(SIGKILL) => Self::Killed,
            // Only code that was brought in from outside asks for what ends it this way; see `syscalls`.
            Some(SIGSYS) => Self::ForbiddenCall,
            Some(signal) => Self::Other(format!("it died of signal {signal}: {}", last_line(said))),
            None => Self::Other(format!("it failed ({status}): {}", last_line(said))),
        }
    }
}

impl Sealed {
    /// At most so many bytes of it, from its start.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::from(self.reader()?).take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
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
