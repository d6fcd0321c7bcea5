//! One stage of a Swarm: fetch → process → decide → commit.
//!
//! ```text
//!   topic ──fetch──► Work ──process──► Bee ──steps──► decide (pure) ──► Commit ──► topic
//!   lane  ──take───► requests of pure Swarms take the same way, with answers instead of a commit
//! ```
//!
//! - [`plan`]: what a stage is told, replaced as a whole when a new revision is applied.
//! - [`bee`]: the seam to the engine.
//! - [`decide`]: inputs + steps + policy → one [`skep_topic::Commit`]. No I/O, no clock of its own.
//! - [`worker`]: the loop that owns a partition.
//! - `caution`: what follows a trap or a trouble of the host.
//! - [`lane`]: the in-memory path.
//! - `parts`: parts of responses while a batch works.
//! - `rest`: which Swarms may have come to their end.
//! - [`observe`]: what is told to logs, metrics and traces.

pub mod bee;
mod budget;
mod caution;
pub mod decide;
pub mod lane;
pub mod observe;
mod parts;
pub mod placement;
pub mod plan;
mod rest;
pub mod worker;

pub use bee::Bee;
pub use observe::{BatchReport, Observer, StageState};
pub use placement::{Pins, Place, Workers};
pub use plan::{Bypass, Destination, Plan};
pub use rest::Rest;
pub use worker::{Running, Seams, start};
