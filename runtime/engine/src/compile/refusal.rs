//! Why an upload was not compiled.

use serde::{Deserialize, Serialize};

/// Stable codes for programs. They are part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    NotWasm,
    TextForm,
    CoreModule,
    /// Cut off, or longer than it says.
    Truncated,
    NoExport,
    ImportNotOffered,
    TooLarge,
    /// A bound on structure is exceeded.
    TooComplex,
    /// Not valid WebAssembly, or it uses a feature that is switched off.
    Invalid,
    /// The compiler needed more memory than it may have.
    OutOfMemory,
    /// The compiler needed more CPU time than it may have.
    CpuTime,
    /// The compiler did not end in time.
    Timeout,
    /// The compiler was ended from outside, or crashed.
    CompilerKilled,
    /// The node could not run the compiler. Not the upload's fault.
    Node,
}

impl Code {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotWasm => "not-wasm",
            Self::TextForm => "text-form",
            Self::CoreModule => "core-module",
            Self::Truncated => "truncated",
            Self::NoExport => "no-export",
            Self::ImportNotOffered => "import-not-offered",
            Self::TooLarge => "too-large",
            Self::TooComplex => "too-complex",
            Self::Invalid => "invalid",
            Self::OutOfMemory => "out-of-memory",
            Self::CpuTime => "cpu-time",
            Self::Timeout => "timeout",
            Self::CompilerKilled => "compiler-killed",
            Self::Node => "node",
        }
    }

    /// The upload is at fault: it will fail again. Otherwise another try may succeed.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        !matches!(self, Self::Timeout | Self::CompilerKilled | Self::Node)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an upload was not compiled: a code for programs, a text with the remedy for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct CompileError {
    pub code: Code,
    pub message: String,
}

impl CompileError {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(super) fn too_complex(what: &str, found: u64, limit: u64, remedy: &str) -> Self {
        Self::new(
            Code::TooComplex,
            format!("the module is too complex: {what} is {found}, the limit is {limit}; {remedy}"),
        )
    }
}
