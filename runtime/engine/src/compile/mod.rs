//! From an upload to an artifact, in a separate, limited process.
//!
//! The node never parses an upload: see [`crate::confined`]. [`child_main`] is the body of the process that does; whatever happens to it
//! becomes a [`CompileError`].

mod child;
mod inspect;
pub(crate) mod libraries;
mod parent;
mod refusal;

pub use child::child_main;
pub use parent::Compiler;
pub use refusal::{Code, CompileError};

use crate::settings::CompilerLimits;

/// The child's limits, as JSON, in its environment. Nothing else is there.
const LIMITS_VARIABLE: &str = "SKEP_COMPILER_LIMITS";
/// What the child is to compile: see [`Part`].
const PART_VARIABLE: &str = "SKEP_COMPILER_PART";

/// The processor that it compiles for, as JSON; without it, this one.
const TARGET_VARIABLE: &str = "SKEP_COMPILER_TARGET";

/// What a child makes of what it is given.
///
/// The libraries of a component (all of CPython, of a Bee in Python) are compiled apart, once for all uploads that were made of them.
/// That must not let one upload reach another: a child that a hostile upload has taken over can answer with any native code. So the code
/// of libraries is compiled by a child of its own, that is given nothing but those libraries, and is kept under the digest that the
/// *node* takes of what it gave. Who gets that code has sent the same bytes, and so would have been taken over the same way alone; no
/// upload decides what is kept under a digest of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A component: answers with its native code, but for that of its libraries, of which it hands back the WebAssembly.
    Frame,
    /// Those libraries: answers with their native code.
    Code,
    /// A component with all that is in it, for where the libraries cannot be had apart.
    Whole,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Code => "code",
            Self::Whole => "whole",
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "frame" => Self::Frame,
            "code" => Self::Code,
            _ => Self::Whole,
        }
    }
}

/// An answer is `length of the libraries (8, little-endian) | libraries | native code`.
const ANSWER_HEAD_BYTES: usize = 8;

/// For a fuzzer: the look at an upload that comes before any compiler, and the linking of libraries, which reads and writes modules by code of our
/// own. Whether the upload was let through to the compiler, valid or not.
///
/// # Panics
/// Libraries of a valid component were linked to something that is not valid.
#[must_use]
pub fn fuzz(upload: &[u8], limits: &CompilerLimits) -> bool {
    if inspect::inspect(upload, limits).is_err() {
        return false;
    }
    // Linked also where it is not valid: the child validates what came out of it, not what went in.
    if let Ok(linked) = libraries::link(upload)
        && wasmparser::Validator::new().validate_all(upload).is_ok()
    {
        for part in [&linked.frame, &linked.code, &linked.stub] {
            let wrong = wasmparser::Validator::new().validate_all(part).err();
            assert!(
                wrong.is_none(),
                "a valid component was linked to what is not: {wrong:?}"
            );
        }
    }
    true
}
