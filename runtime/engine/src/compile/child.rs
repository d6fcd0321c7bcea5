//! The body of the compiler process: component on standard input, artifact or refusal on standard output.

use std::io::{Read, Write};
use std::process::ExitCode;

use wasmtime::component::Component;

use super::libraries::{self, Linked};
use super::refusal::{Code, CompileError};
use super::{LIMITS_VARIABLE, PART_VARIABLE, Part, TARGET_VARIABLE, inspect};
use crate::artifact::CODE;
use crate::confined::{REFUSED_STATUS, UNCONFINED_STATUS, confine};
use crate::host;
use crate::settings::{CompilerLimits, compiler_config};
use crate::target::Target;

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
    let part = Part::of(&std::env::var(PART_VARIABLE).unwrap_or_default());
    let target: Option<Target> = match std::env::var(TARGET_VARIABLE).map(|json| serde_json::from_str(&json)) {
        Err(_) => None,
        Ok(Ok(target)) => Some(target),
        // Never for this machine instead.
        Ok(Err(error)) => {
            eprintln!("cannot read what to compile for: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = confine(&limits.bounds()) {
        eprintln!("cannot limit the compiler process: {error}");
        return ExitCode::from(UNCONFINED_STATUS);
    }
    let worker = std::thread::Builder::new()
        .name("skep-compiler".into())
        .stack_size(STACK_BYTES)
        .spawn(move || work(part, target.as_ref(), &limits));
    // A panic has printed its message; the node reads it from our standard error.
    let Some(done) = worker.ok().and_then(|thread| thread.join().ok()) else {
        return ExitCode::FAILURE;
    };
    let (said, status) = match done {
        Ok(answer) => {
            let head = (answer.libraries.len() as u64).to_le_bytes().to_vec();
            ([head, answer.libraries, answer.native], ExitCode::SUCCESS)
        }
        Err(refusal) => (
            [serde_json::to_vec(&refusal).unwrap_or_default(), Vec::new(), Vec::new()],
            ExitCode::from(REFUSED_STATUS),
        ),
    };
    let mut out = std::io::stdout().lock();
    match said
        .iter()
        .try_for_each(|bytes| out.write_all(bytes))
        .and_then(|()| out.flush())
    {
        Ok(()) => status,
        Err(error) => {
            eprintln!("cannot write the answer: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Answer {
    /// WebAssembly that the native code imports.
    libraries: Vec<u8>,
    native: Vec<u8>,
}

fn work(part: Part, target: Option<&Target>, limits: &CompilerLimits) -> Result<Answer, CompileError> {
    let mut given = Vec::new();
    std::io::stdin()
        .lock()
        .take(limits.upload_bytes + 1)
        .read_to_end(&mut given)
        .map_err(|e| CompileError::new(Code::Node, format!("cannot read the upload: {e}")))?;
    let internal = |e: wasmtime::Error| CompileError::new(Code::Node, format!("cannot start the compiler: {e:#}"));
    let mut config = compiler_config();
    if let Some(target) = target {
        target.set(&mut config).map_err(internal)?;
    }
    let engine = wasmtime::Engine::new(&config).map_err(internal)?;
    if part == Part::Code {
        // Its form was looked at as a part of the upload. Were that passed over, validation and this process's limits would hold.
        let native = engine.precompile_module(&given).map_err(invalid)?;
        fits(&native, limits)?;
        return Ok(Answer {
            libraries: Vec::new(),
            native,
        });
    }
    inspect::inspect(&given, limits)?;
    if part == Part::Frame
        && let Ok(linked) = libraries::link(&given)
        && let Ok(answer) = frame(&engine, linked, limits)
    {
        return Ok(answer);
    }
    // Without libraries, or with some that are not understood: also what is wrong with it is told of the upload as it came.
    let native = engine.precompile_component(&given).map_err(invalid)?;
    drop(given);
    fits(&native, limits)?;
    // Code for another processor cannot be tried here. The same component was, when it was uploaded.
    if target.is_none() {
        tried(&engine, &native, None)?;
    }
    Ok(Answer {
        libraries: Vec::new(),
        native,
    })
}

fn frame(engine: &wasmtime::Engine, linked: Linked, limits: &CompilerLimits) -> Result<Answer, CompileError> {
    let native = engine.precompile_component(&linked.frame).map_err(invalid)?;
    fits(&native, limits)?;
    tried(engine, &native, Some(&linked.stub))?;
    Ok(Answer {
        libraries: linked.code,
        native,
    })
}

fn invalid(e: wasmtime::Error) -> CompileError {
    CompileError::new(Code::Invalid, format!("the module is not valid: {e:#}"))
}

fn fits(native: &[u8], limits: &CompilerLimits) -> Result<(), CompileError> {
    let len = native.len() as u64;
    if len <= limits.artifact_bytes {
        return Ok(());
    }
    Err(CompileError::new(
        Code::TooLarge,
        format!(
            "the module compiles to {len} bytes of native code, the limit is {}; split it into smaller modules",
            limits.artifact_bytes
        ),
    ))
}

/// Does what the node will do with the artifact, on a smaller stack than the node has: what would overflow there
/// overflows here.
fn tried(engine: &wasmtime::Engine, native: &[u8], stub: Option<&[u8]>) -> Result<(), CompileError> {
    let linked = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(LINK_STACK_BYTES)
            .spawn_scoped(scope, || link(engine, native, stub))
            .map(|thread| thread.join())
    });
    match linked {
        Ok(Ok(linked)) => linked,
        Ok(Err(_)) => Err(CompileError::new(
            Code::Node,
            "the compiler panicked while it linked the module",
        )),
        Err(e) => Err(CompileError::new(
            Code::Node,
            format!("cannot start a compiler thread: {e}"),
        )),
    }
}

fn link(engine: &wasmtime::Engine, artifact: &[u8], stub: Option<&[u8]>) -> Result<(), CompileError> {
    let internal = |e: wasmtime::Error| CompileError::new(Code::Node, format!("cannot link the module: {e:#}"));
    // SAFETY: the artifact was made by this very process a moment ago.
    let component = unsafe { Component::deserialize(engine, artifact) }.map_err(internal)?;
    let mut linker = host::linker(engine).map_err(internal)?;
    if let Some(stub) = stub {
        let stub = wasmtime::Module::new(engine, stub).map_err(internal)?;
        linker.root().module(CODE, &stub).map_err(internal)?;
    }
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
