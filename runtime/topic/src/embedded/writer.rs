//! The one writer: whoever holds it runs operations one after another, and only its thread flushes.
//!
//! ```text
//!   caller, if the desk is free ─┐
//!                                ├─► run inside the open transaction ──► answered at once (fetch, claim, commit, publish without gate)
//!   queue ──► the thread ────────┘                                 └──► held (gated) ──► join what is queued ──► COMMIT = one flush ──► answer
//! ```
//! A short operation that finds the desk free and the queue empty runs where its caller is: handing it to the thread and back costs
//! two wake-ups, which on an idle machine is more than the operation. Nobody but the thread ever waits for the disk.
//! Writes that nobody waits for keep the transaction open a few milliseconds to share a flush, then it is closed too, so an idle
//! node writes nothing and nothing stays open.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use skep_model::limits;

use super::disk::{Lock, Reserve};
use super::store::{Fault, Store};
use super::{Shared, open_store};
use crate::guard::Guard;
use crate::{Error, failpoint};

/// An answer that waits for the flush.
pub(super) type Waiting = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// How an operation ended, as far as the writer cares.
pub(super) enum Ran {
    Answered,
    Waits(Waiting),
    /// It failed, perhaps half done: all of the transaction goes. The answer is given afterwards.
    Broken(Fault, Waiting),
    Close(Waiting),
}

pub(super) type Run = Box<dyn FnOnce(Result<&mut Store, Error>) -> Ran + Send>;

pub(super) enum Job {
    Run {
        run: Run,
        /// Its place in the queue, given back when it is taken out.
        place: tokio::sync::OwnedSemaphorePermit,
    },
    /// A caller ran something by itself: look what is to be done about it.
    Look,
}

/// What the thread has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Nothing,
    /// Close the transaction within the share time.
    Share,
    /// Somebody waits for the flush, or there is enough for one.
    Flush,
}

/// The value of an operation, and whether it may leave only once everything before it is durable.
pub(super) struct Answer<T> {
    pub value: T,
    pub gated: bool,
}

impl<T> Answer<T> {
    pub fn now(value: T) -> Result<Self, Fault> {
        Ok(Self { value, gated: false })
    }

    pub fn gated(value: T) -> Result<Self, Fault> {
        Ok(Self { value, gated: true })
    }
}

pub(super) struct Writer {
    store: Option<Store>,
    /// Why there is no store, when there is none.
    down: Error,
    retry_at: Instant,
    waiting: Vec<Waiting>,
    reserve: Reserve,
    reserve_at: Instant,
    shared: Arc<Shared>,
    parts: super::Parts,
    /// Last, so that it is dropped last: the folder is free only when nothing writes to it any more. Given up by a close.
    lock: Option<Lock>,
}

/// How long to wait between attempts to reopen, or to make the reserve again.
const RETRY: Duration = Duration::from_millis(500);

impl Writer {
    pub fn new(store: Store, reserve: Reserve, shared: Arc<Shared>, parts: super::Parts, lock: Lock) -> Self {
        Self {
            store: Some(store),
            down: Error::Unavailable("the store is not open".to_owned()),
            retry_at: Instant::now(),
            waiting: Vec::new(),
            reserve,
            reserve_at: Instant::now(),
            shared,
            parts,
            lock: Some(lock),
        }
    }

    /// Takes the desk, waiting for it. After a panic of whoever held it the store is opened anew: half an operation must not stay.
    pub fn take(desk: &Mutex<Self>) -> MutexGuard<'_, Self> {
        desk.lock().unwrap_or_else(|poisoned| {
            desk.clear_poison();
            let mut writer = poisoned.into_inner();
            let cause = Error::Unavailable("an operation panicked".to_owned());
            writer.abandon(&Fault::Refused(cause), false);
            writer
        })
    }

    /// Until the queue is closed or a close is asked for. What is not flushed then was promised to nobody.
    pub fn run(desk: &Mutex<Self>, queue: &Receiver<Job>) {
        loop {
            let open = Self::take(desk).store.as_ref().and_then(Store::open_since);
            let job = match open {
                None => match queue.recv() {
                    Ok(job) => job,
                    Err(_) => return,
                },
                Some((since, _)) => {
                    let left = SHARE.saturating_sub(since.elapsed());
                    match queue.recv_timeout(left) {
                        Ok(job) => job,
                        Err(RecvTimeoutError::Timeout) => {
                            Self::take(desk).flush();
                            continue;
                        }
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            };
            let mut writer = Self::take(desk);
            if writer.execute(job) {
                return;
            }
            if writer.must_flush() {
                let first = Instant::now();
                for _ in 0..limits::FLUSH_JOIN_MAX {
                    if writer.too_much() || first.elapsed() >= Duration::from_millis(limits::FLUSH_JOIN_MS) {
                        break;
                    }
                    let Ok(job) = queue.try_recv() else { break };
                    if writer.execute(job) {
                        return;
                    }
                }
                writer.flush();
            } else if writer.too_much() || open.is_some_and(|(since, _)| since.elapsed() >= SHARE) {
                writer.flush();
            }
        }
    }

    pub fn due(&self) -> Due {
        if self.must_flush() || self.too_much() {
            Due::Flush
        } else if self.store.as_ref().and_then(Store::open_since).is_some() {
            Due::Share
        } else {
            Due::Nothing
        }
    }

    fn must_flush(&self) -> bool {
        !self.waiting.is_empty() || self.store.as_ref().is_some_and(|s| !s.outbox.is_empty())
    }

    fn too_much(&self) -> bool {
        self.store
            .as_ref()
            .and_then(Store::open_since)
            .is_some_and(|(_, bytes)| bytes >= limits::FLUSH_SHARE_BYTES)
    }

    /// Returns whether it was the close.
    fn execute(&mut self, job: Job) -> bool {
        match job {
            Job::Run { run, place } => {
                drop(place);
                self.operate(run)
            }
            Job::Look => false,
        }
    }

    /// Runs one operation. Returns whether it was the close.
    pub fn operate(&mut self, run: Run) -> bool {
        failpoint::hit("before-apply");
        if self.store.is_none() {
            self.reopen();
        }
        self.hold_reserve();
        let ran = match self.store.as_mut() {
            Some(store) => run(Ok(store)),
            None => run(Err(self.down.clone())),
        };
        match ran {
            Ran::Answered => {}
            Ran::Waits(answer) => {
                // The planted bug: nobody waits for the flush, which comes all the same.
                if self.store.as_ref().is_some_and(|s| !s.guards.on(Guard::Gate)) {
                    answer(Ok(()));
                    self.waiting.push(Box::new(|_| ()));
                } else {
                    self.waiting.push(answer);
                }
            }
            Ran::Broken(e, answer) => {
                let error = self.abandon(&e, false);
                answer(Err(error));
            }
            Ran::Close(answer) => {
                answer(self.close());
                return true;
            }
        }
        false
    }

    fn flush(&mut self) {
        failpoint::hit("after-apply-before-flush");
        let Some(store) = self.store.as_mut() else { return };
        let dirty = store.dirty();
        match store.commit_tx() {
            Ok(()) => {
                if dirty {
                    self.shared.flushes.fetch_add(1, Ordering::Relaxed);
                }
                failpoint::hit("after-flush-before-ack");
                for answer in self.waiting.drain(..) {
                    answer(Ok(()));
                }
                let store = self.store.as_mut().expect("it was there");
                for reply in store.outbox.drain(..) {
                    self.shared.waiters.deliver(reply);
                }
            }
            Err(fault) => {
                self.abandon(&fault, true);
            }
        }
    }

    /// Throws the transaction and everything known of it away. Whether a failed flush happened cannot be known, so it is never
    /// tried again: the next operation opens the file anew, and every owner has to claim anew.
    fn abandon(&mut self, cause: &Fault, in_flush: bool) -> Error {
        let full = matches!(cause, Fault::Broken(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull));
        let dir = self.parts.dir.display();
        let error = if full {
            // Writing the log failed, so its end mark cannot be there: certainly not done.
            Error::Unavailable(format!(
                "the disk under {dir} is full: free some space; queued work keeps draining"
            ))
        } else if in_flush {
            Error::Unknown(format!("the flush of {dir} failed: {cause}"))
        } else {
            Error::Unavailable(format!("the database in {dir} failed: {cause}"))
        };
        tracing::error!(%cause, in_flush, "the transaction is lost; the store is opened anew");
        for answer in self.waiting.drain(..) {
            answer(Err(error.clone()));
        }
        // Closing the connection rolls back.
        self.store = None;
        if full {
            self.shared.disk_full.store(true, Ordering::Relaxed);
            self.reserve.free();
            self.reserve_at = Instant::now() + RETRY;
        }
        self.down = error.clone();
        self.retry_at = Instant::now();
        self.reopen();
        error
    }

    fn reopen(&mut self) {
        if Instant::now() < self.retry_at {
            return;
        }
        failpoint::hit("in-reopen");
        match open_store(&self.parts, &self.shared) {
            Ok(store) => {
                self.store = Some(store);
                // What was lost may have been a write to the catalog.
                self.shared.catalog_written();
            }
            Err(e) => {
                tracing::error!(error = %e, "the store cannot be opened anew; trying again");
                self.down = Error::Unavailable(e.to_string());
                self.retry_at = Instant::now() + RETRY;
            }
        }
    }

    /// Puts the reserve back once there is room for it, which ends the refusal of publishes.
    fn hold_reserve(&mut self) {
        if !self.shared.disk_full.load(Ordering::Relaxed) || Instant::now() < self.reserve_at {
            return;
        }
        self.reserve_at = Instant::now() + RETRY;
        let held = self.reserve.hold() || self.shrink() && self.reserve.hold();
        if held {
            tracing::info!("there is room on the disk again: publishes are taken");
            self.shared.disk_full.store(false, Ordering::Relaxed);
        }
    }

    /// Gives pages that drained work has freed back to the file system. Returns whether any were.
    fn shrink(&mut self) -> bool {
        let Some(store) = self.store.as_mut().filter(|s| !s.dirty()) else {
            return false;
        };
        let free = |store: &Store| {
            let count = store
                .conn
                .query_row("PRAGMA freelist_count", [], |r| r.get::<_, i64>(0));
            count.unwrap_or(0)
        };
        let before = free(store);
        for _ in 0..SHRINK_STEPS {
            // In steps, folding the log between them: the moved pages go through it, and the disk is full.
            let step = store
                .conn
                .execute_batch("PRAGMA incremental_vacuum(64); PRAGMA wal_checkpoint(TRUNCATE);");
            if step.is_err() || free(store) == 0 {
                break;
            }
        }
        free(store) < before
    }

    fn close(&mut self) -> Result<(), Error> {
        self.flush();
        let Some(mut store) = self.store.take() else {
            return Err(self.down.clone());
        };
        let marked = mark_clean(&mut store);
        self.down = Error::Unavailable("the store is closed".to_owned());
        marked.map_err(|e| Error::Unknown(format!("closing {}: {e}", self.parts.dir.display())))?;
        failpoint::hit("in-checkpoint");
        // The log is folded into the database when the last connection closes.
        let closed = store.conn.close();
        self.lock = None;
        closed.map_err(|(_, e)| Error::Unknown(format!("closing {}: {e}", self.parts.dir.display())))
    }
}

/// The last transaction of a clean close.
fn mark_clean(store: &mut Store) -> Result<(), Fault> {
    store.begin()?;
    store.keys.settle(&store.conn)?;
    store
        .conn
        .execute("INSERT OR REPLACE INTO meta VALUES ('clean', 1)", [])?;
    store.commit_tx()
}

/// Steps of half a MiB by which one attempt shrinks the database.
const SHRINK_STEPS: usize = 32;

const SHARE: Duration = Duration::from_millis(limits::FLUSH_SHARE_MS);
