//! The body of the compiler process: component on standard input, artifact or refusal on standard output.

use std::io::{Read, Write};
use std::process::ExitCode;

use wasmtime::component::Component;

use super::refusal::{Code, CompileError};
use super::{LIMITS_VARIABLE, REFUSED_STATUS, UNCONFINED_STATUS, confine, inspect};
use crate::host;
use crate::settings::{CompilerLimits, compiler_config};

/// Parsers and compiler recurse by nesting. It is only address space until used; who overflows it is refused.
const STACK_BYTES: usize = 64 << 20;
/// Half of what the node's guest threads have.
const LINK_STACK_BYTES: usize = crate::guests::THREAD_STACK_BYTES / 2;

/// Runs the compiler. To be called by the binary's hidden subcommand and nothing else: it limits the whole process.
#[must_use]
pub fn child_main() -> ExitCode {
    let limits: CompilerLimits = std::env::var(LIMITS_VARIABLE)
        .ok()
        .and_then(|json| serde_json::from_str(&json).ok())
        .unwrap_or_default();
    if let Err(error) = confine::confine(&limits) {
        eprintln!("cannot limit the compiler process: {error}");
        return ExitCode::from(UNCONFINED_STATUS);
    }
    let worker = std::thread::Builder::new()
        .name("skep-compiler".into())
        .stack_size(STACK_BYTES)
        .spawn(move || work(&limits));
    // A panic has printed its message; the node reads it from our standard error.
    let Some(done) = worker.ok().and_then(|thread| thread.join().ok()) else {
        return ExitCode::FAILURE;
    };
    let (bytes, status) = match done {
        Ok(artifact) => (artifact, ExitCode::SUCCESS),
        Err(refusal) => (
            serde_json::to_vec(&refusal).unwrap_or_default(),
            ExitCode::from(u8::try_from(REFUSED_STATUS).unwrap_or(1)),
        ),
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(&bytes).and_then(|()| out.flush()) {
        Ok(()) => status,
        Err(error) => {
            eprintln!("cannot write the answer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(limits: &CompilerLimits) -> Result<Vec<u8>, CompileError> {
    let mut upload = Vec::new();
    std::io::stdin()
        .lock()
        .take(limits.upload_bytes + 1)
        .read_to_end(&mut upload)
        .map_err(|e| CompileError::new(Code::Node, format!("cannot read the upload: {e}")))?;
    inspect::inspect(&upload, limits)?;

    let invalid = |e: wasmtime::Error| CompileError::new(Code::Invalid, format!("the module is not valid: {e:#}"));
    let internal = |e: wasmtime::Error| CompileError::new(Code::Node, format!("cannot start the compiler: {e:#}"));
    let engine = wasmtime::Engine::new(&compiler_config()).map_err(internal)?;
    let artifact = engine.precompile_component(&upload).map_err(invalid)?;
    drop(upload);
    let len = artifact.len() as u64;
    if len > limits.artifact_bytes {
        return Err(CompileError::new(
            Code::TooLarge,
            format!(
                "the module compiles to {len} bytes of native code, the limit is {}; split it into smaller modules",
                limits.artifact_bytes
            ),
        ));
    }
    let linked = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(LINK_STACK_BYTES)
            .spawn_scoped(scope, || link(&engine, &artifact))
            .map(|thread| thread.join())
    });
    match linked {
        Ok(Ok(linked)) => linked?,
        Ok(Err(_)) => {
            return Err(CompileError::new(
                Code::Node,
                "the compiler panicked while it linked the module",
            ));
        }
        Err(e) => {
            return Err(CompileError::new(
                Code::Node,
                format!("cannot start a compiler thread: {e}"),
            ));
        }
    }
    Ok(artifact)
}

/// Does what the node will do with the artifact, on a smaller stack than the node has: what would overflow there
/// overflows here.
fn link(engine: &wasmtime::Engine, artifact: &[u8]) -> Result<(), CompileError> {
    let internal = |e: wasmtime::Error| CompileError::new(Code::Node, format!("cannot link the module: {e:#}"));
    // SAFETY: the artifact was made by this very process a moment ago.
    let component = unsafe { Component::deserialize(engine, artifact) }.map_err(internal)?;
    let linker = host::linker(engine).map_err(internal)?;
    match linker.instantiate_pre(&component) {
        Ok(_) => Ok(()),
        Err(e) => Err(CompileError::new(
            Code::ImportNotOffered,
            format!(
                "the module imports something in another form than it is offered: {e:#}; build against skep:bee@0.1.0 and WASI 0.2"
            ),
        )),
    }
}
