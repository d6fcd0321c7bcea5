//! The nouns of skep: pure data, no I/O, no async.
//!
//! Everything else in the workspace depends on this crate and this crate depends on nothing of ours. What lives here:
//! - [`access`]: roles, tokens, and what is kept of a token.
//! - [`name`]: validated names; the only way to make one is to parse it.
//! - [`id`]: uids, tokens, commit ids, digests.
//! - [`env`]: time and chance, as arguments.
//! - [`scope`]: what one tenant may name; topic names can be made from a scope only.
//! - [`key`]: the key of a message, as a stage's `key:` takes it.
//! - [`message`]: what users send, and what a reply says.
//! - [`oip`]: calls of models as the Open Inference Protocol v2 writes them, and as plain JSON.
//! - [`part`]: parts of a response, sent while a Bee works.
//! - [`predict`]: how models are called, whoever has them.
//! - [`span`]: finished spans, as values.
//! - [`step`]: what crosses the boundary between a stage and a Bee, as values.
//! - [`swarm`]: the graph that a manifest describes.
//! - [`tensor`]: tensors, and what a model takes and gives.
//! - [`manifest`]: YAML to [`swarm::Swarm`], every mistake at once with line and column.
//! - [`condition`]: which messages an input takes, as the manifest says it.
//! - [`diff`]: what an apply would change, and what it refuses.
//! - [`limits`]: every bound and default of the system, named.
//! - [`error`]: what a caller must do about a failure.

pub mod access;
pub mod condition;
pub mod diff;
pub mod drawing;
pub mod egress;
pub mod env;
pub mod error;
pub mod id;
pub mod key;
pub mod limits;
pub mod manifest;
pub mod message;
pub mod name;
pub mod oip;
pub mod part;
pub mod permission;
pub mod predict;
pub mod quota;
pub mod scope;
pub mod span;
pub mod step;
pub mod swarm;
pub mod tensor;

pub use bytes::Bytes;
