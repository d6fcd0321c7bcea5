//! The seam between a stage and what runs its code.

use async_trait::async_trait;
use skep_model::step::{Batch, Processed};

/// Runs one Bee. The engine's is WebAssembly; tests use plain functions.
///
/// Contract: as many steps as inputs, in order, or a trap; nothing outside changes; bounded in time by the stage's timeout;
/// dropping the future ends the work.
#[async_trait]
pub trait Bee: Send + Sync + 'static {
    async fn process(&self, batch: Batch) -> Processed;
}
