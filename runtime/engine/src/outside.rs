//! What a guest waits for and does not do itself: a model's run.
//!
//! ```text
//! guest ─► host call ─puts work here─► pending ─► the turn ends ─► `guarded` takes the work and polls it between turns ─► the guest goes on
//! ```
//! Polled where it is asked for, within the guest's turn, a model that runs on this very thread would count as CPU time of the Bee, and would
//! keep the turn of its tenant from others as long.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

/// Begun with the time at which the call's own time is over.
type Work = Box<dyn FnOnce(Instant) -> Begun + Send>;
type Begun = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One instance's. A guest waits for one thing at a time, so there is room for one.
#[derive(Clone, Default)]
pub(crate) struct Outside(Arc<Mutex<Option<Work>>>);

impl Outside {
    /// Waits for work that is done outside of the guest's turns. Dropping the call drops the work.
    ///
    /// # Errors
    /// Nobody did it.
    pub(crate) async fn run<T, F>(&self, work: impl FnOnce(Instant) -> F + Send + 'static) -> wasmtime::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (done, answer) = oneshot::channel();
        let work: Work = Box::new(move |end| {
            Box::pin(async move {
                // Whoever asked may have gone.
                let _ = done.send(work(end).await);
            })
        });
        *self.lock() = Some(work);
        answer
            .await
            .map_err(|_| wasmtime::format_err!("what the guest waited for was dropped"))
    }

    /// What the guest waits for since its last turn, begun.
    pub(crate) fn begin(&self, end: impl FnOnce() -> Instant) -> Option<Begun> {
        let work = self.lock().take()?;
        Some(work(end()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Work>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
