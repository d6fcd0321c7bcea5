//! From an upload to an artifact, in a separate, limited process.
//!
//! An upload is hostile until it is compiled: a kilobyte can overflow a stack while it is parsed, exhaust memory while it
//! is validated, or compile for minutes. So the node never parses one. It hands the bytes to a child (its own binary,
//! run again with a hidden subcommand whose body is [`child_main`]), which limits itself first, checks, compiles, and
//! answers. Whatever happens to the child becomes a [`CompileError`].

mod child;
mod confine;
mod inspect;
mod parent;
mod refusal;
mod syscalls;

pub use child::child_main;
pub use parent::Compiler;
pub use refusal::{Code, CompileError};

/// The child's limits, as JSON, in its environment. Nothing else is there.
const LIMITS_VARIABLE: &str = "SKEP_COMPILER_LIMITS";
/// The child's exit status when it has refused the upload and said why on its standard output.
const REFUSED_STATUS: i32 = 3;
/// … and when it could not limit itself, and so has not looked at the upload.
const UNCONFINED_STATUS: u8 = 4;
