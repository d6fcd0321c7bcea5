//! wasmtime narrowed: uploads in, Bees out. Nothing else in the workspace links wasmtime.
//!
//! The way of a module, and where to look:
//! 1. [`Compiler::compile`] hands an upload to a separate, limited process, which checks and compiles it
//!    ([`child_main`] is that process's body). The node itself never parses an upload.
//! 2. [`ArtifactCache`] keeps the native code on disk under a MAC, and gives back only what verifies.
//! 3. [`Engine::load`] maps an [`Artifact`] into the process and reads the Bees' names from the module.
//! 4. [`Module::bee`] binds a Bee to one stage's [`BeeSettings`].
//! 5. [`Bee::process`] runs a batch in a fresh instance (or a warm one, if the stage asks for that) and gives
//!    a [`skep_model::step::Processed`]: one step an input, or the trap that ended the instance.
//!
//! Where there is no compiler (without the feature `compiler`), a [`signed`] artifact takes the place of the first two: a hub has compiled it.
//!
//! Every bound is in [`Settings`], [`CompilerLimits`] or `skep_model::limits`. All guest code runs on threads named
//! `skep-guest-N`; futures of this crate may be polled on any tokio runtime.

#![cfg_attr(
    not(feature = "compiler"),
    allow(
        dead_code,
        unused_imports,
        reason = "what only the compiler and processes of tenants use lies beside what all use"
    )
)]

mod abi;
#[cfg(feature = "compiler")]
pub mod apart;
mod artifact;
mod bee;
mod cache;
mod ceiling;
#[cfg(feature = "compiler")]
mod compile;
#[cfg(feature = "compiler")]
pub mod confined;
mod effects;
pub mod egress;
mod engine;
mod error;
mod guests;
mod host;
mod instance;
mod log;
mod models;
mod module;
mod nn;
mod outside;
mod places;
#[cfg(test)]
mod planted;
mod secret;
mod settings;
mod share;
pub mod signed;
mod target;
mod ticker;
mod time;
mod turns;
mod verdict;

pub use artifact::Artifact;
pub use bee::{Bee, BeeSettings};
pub use cache::ArtifactCache;
#[cfg(feature = "compiler")]
pub use compile::{Code, CompileError, Compiler, child_main, fuzz};
pub use egress::Egress;
pub use engine::{Engine, OPEN_FILES_WANTED};
pub use error::Error;
pub use module::Module;
pub use secret::{Granted, SecretValue, Secrets};
pub use settings::{CompilerLimits, Settings, config};
pub use share::{Meter, Share};
pub use target::{BadTarget, Cpu, Target};
pub use time::BEFORE_BEGIN_MS;
