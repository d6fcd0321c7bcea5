//! The durable default: SQLite in a data folder, one row a frame, one writer.
//!
//! - `schema`: every table and row with its lifetime.
//! - `writer`: the desk at which operations run one by one, and the thread that groups their flushes.
//! - `store`, `load`: the connection and the mirror of the small rows, and how it is built.
//! - `publish`, `window`: appends, and how a repeated call is recognised.
//! - `lease`, `fetch`, `commit`: an owner's life. `rescale`: another number of partitions.
//! - `keys`: keyed state in memory, in its journal and in its rows.
//! - `catalog`, `views`, `removal`: desired state, what people look at, deletion.
//! - `export`, `import`: backups.
//! - `disk`: the file lock and the reserve.

mod catalog;
mod commit;
mod disk;
mod export;
mod fetch;
mod import;
mod keys;
mod lease;
mod letter;
mod load;
mod publish;
mod removal;
mod rescale;
mod schema;
mod store;
mod views;
mod window;
mod writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use rusqlite::Connection;
use skep_model::env::{Clock, Entropy};
use skep_model::id::{CommitId, NodeId, Token, Uid};
use skep_model::limits;
use skep_model::name::StageName;
use skep_model::scope::{PartitionId, SwarmId, TopicId};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use self::disk::{Lock, Reserve};
use self::store::{Fault, Store};
use self::writer::{Answer, Due, Job, Ran, Writer};
use crate::beats::Beats;
use crate::guard::Guards;
use crate::{
    Backend, Bell, CallResult, CatalogRecord, Claim, Commit, Committed, Counters, Error, Fetched, Held, Layout, Lease,
    Pieces, Publish, Pulse, Rescaled, StatePage, StateSize, StoredDeadLetter, TopicSpec, TopicStatus, Waiters, Want,
    next_pieces,
};

/// Why a data folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data folder {dir} is in use by another skep (pid {pid}): stop it, or choose another folder with --data")]
    InUse { dir: PathBuf, pid: String },
    #[error("data folder {dir}: {source}")]
    Folder { dir: PathBuf, source: std::io::Error },
    #[error("{path}: {source}: the file is damaged or not a skep database; restore it from a copy")]
    Database { path: PathBuf, source: rusqlite::Error },
    #[error("{path} has schema {found}, this skep reads {known}: upgrade skep")]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{path}: {source}")]
    Record { path: PathBuf, source: Error },
}

/// What the writer and the callers both see.
#[derive(Debug, Default)]
struct Shared {
    waiters: Arc<Waiters>,
    /// One a partition and one a topic; gone with them.
    bells: Mutex<HashMap<PartitionId, Bell>>,
    rooms: Mutex<HashMap<TopicId, Bell>>,
    catalog: Bell,
    /// Another after each write to the catalog, and after each that was taken back.
    catalog_number: AtomicU64,
    /// Not on disk: the folder is this process's alone.
    beats: Mutex<Beats>,
    commits: AtomicU64,
    publishes: AtomicU64,
    flushes: AtomicU64,
    refused: AtomicU64,
    disk_full: AtomicBool,
    /// The stop before this open was none.
    after_unclean: AtomicBool,
}

impl Shared {
    fn bell(&self, partition: &PartitionId) -> Bell {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bell) = bells.get(partition) {
            return Arc::clone(bell);
        }
        Arc::clone(
            bells
                .entry(partition.clone())
                .or_insert_with(|| Arc::new(Notify::new())),
        )
    }

    fn catalog_written(&self) {
        self.catalog_number.fetch_add(1, Ordering::Relaxed);
        self.catalog.notify_waiters();
        // For one who has not begun to wait yet.
        self.catalog.notify_one();
    }

    fn room(&self, topic: &TopicId) -> Bell {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(rooms.entry(topic.clone()).or_insert_with(|| Arc::new(Notify::new())))
    }

    fn ring_room(&self, topic: &TopicId) {
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bell) = rooms.get(topic) {
            bell.notify_waiters();
            // For one who was refused and has not begun to wait yet.
            bell.notify_one();
        }
    }

    /// Wakes the owners of a topic that is gone, so that they learn it. Their bells stay: the topic may begin anew.
    fn ring_topic(&self, topic: &TopicId) {
        let bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, bell) in bells.iter().filter(|(partition, _)| partition.topic() == topic) {
            bell.notify_one();
        }
    }

    /// Wakes whoever waits for anything of a life that is gone, and forgets its bells.
    fn forget(&self, swarm: &SwarmId) {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|partition, bell| {
            let stays = partition.topic().swarm() != swarm;
            if !stays {
                bell.notify_one();
            }
            stays
        });
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.retain(|topic, bell| {
            let stays = topic.swarm() != swarm;
            if !stays {
                bell.notify_waiters();
            }
            stays
        });
    }
}

/// What it takes to open the store anew.
struct Parts {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    guards: Arc<Guards>,
    /// The size at which the log is folded into the database.
    wal_bytes: u64,
}

fn open_store(parts: &Parts, shared: &Arc<Shared>) -> Result<Store, OpenError> {
    let path = parts.dir.join("skep.db");
    let conn = store::connect(&parts.dir, &*parts.entropy, parts.wal_bytes)?;
    Store::new(
        conn,
        parts.dir.clone(),
        Arc::clone(&parts.clock),
        Arc::clone(&parts.entropy),
        Arc::clone(&parts.guards),
        Arc::clone(shared),
    )
    .map_err(|fault| open_fault(path, fault))
}

fn open_fault(path: PathBuf, fault: Fault) -> OpenError {
    match fault {
        Fault::Refused(source) => OpenError::Record { path, source },
        Fault::Broken(source) => OpenError::Database { path, source },
    }
}

/// The embedded backend. Dropping it without [`Backend::close`] is as a crash: what was promised stays.
pub struct Embedded {
    desk: Arc<Mutex<Writer>>,
    queue: Mutex<Option<Sender<Job>>>,
    places: Arc<Semaphore>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    shared: Arc<Shared>,
    guards: Arc<Guards>,
    clock: Arc<dyn Clock>,
    clean: bool,
    /// Tells one import from the next.
    numbers: AtomicU64,
}

/// Whether a data folder could be opened now, without touching one that is not there.
///
/// # Errors
/// [`OpenError::InUse`] when another process has it open.
pub fn is_free(dir: &Path) -> Result<(), OpenError> {
    match dir.join("lock").exists().then(|| Lock::take(dir)) {
        Some(Err(held @ OpenError::InUse { .. })) => Err(held),
        _ => Ok(()),
    }
}

impl Embedded {
    /// Opens the data folder `dir`, making it if need be, and starts the writer.
    ///
    /// # Errors
    /// See [`OpenError`]: in use, not ours, damaged, or written by a newer skep.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Result<Arc<Self>, OpenError> {
        let folder = |source| OpenError::Folder {
            dir: dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(folder)?;
        let lock = Lock::take(dir)?;
        let reserve = Reserve::of(dir);
        // No reserve on a disk that is full already: what is queued may still drain into freed pages.
        let disk_full = !reserve.hold();
        let shared = Arc::new(Shared::default());
        shared.disk_full.store(disk_full, Ordering::Relaxed);
        let guards = Arc::new(Guards::default());
        let parts = Parts {
            dir: dir.to_owned(),
            clock: Arc::clone(&clock),
            entropy,
            guards: Arc::clone(&guards),
            wal_bytes: reserve.wal_bytes(),
        };
        let mut store = open_store(&parts, &shared)?;
        let clean = store
            .note_open()
            .and_then(|clean| removal::finish_removals(&mut store).map(|()| clean))
            .map_err(|fault| open_fault(dir.join("skep.db"), fault))?;
        let (send, jobs) = std::sync::mpsc::channel();
        let desk = Arc::new(Mutex::new(Writer::new(
            store,
            reserve,
            Arc::clone(&shared),
            parts,
            lock,
        )));
        let threads = Arc::clone(&desk);
        let thread = std::thread::Builder::new()
            .name("skep-topic".to_owned())
            .spawn(move || Writer::run(&threads, &jobs))
            .map_err(folder)?;
        if !clean {
            check_in_background(dir.join("skep.db"));
        }
        Ok(Arc::new(Self {
            desk,
            queue: Mutex::new(Some(send)),
            places: Arc::new(Semaphore::new(limits::WRITER_QUEUE_MAX)),
            thread: Mutex::new(Some(thread)),
            shared,
            guards,
            clock,
            clean,
            numbers: AtomicU64::new(0),
        }))
    }

    /// Whether the folder was closed cleanly before this open.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.clean
    }

    /// Which guards stand; only test builds can take one away.
    #[must_use]
    pub fn guards(&self) -> &Arc<Guards> {
        &self.guards
    }

    fn is_open(&self) -> Result<(), Error> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || Error::Unavailable("the store is closed".to_owned());
        queue.as_ref().map(|_| ()).ok_or_else(closed)
    }

    async fn submit(&self, run: writer::Run) -> Result<(), Error> {
        let closed = || Error::Unavailable("the store is closed".to_owned());
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| closed())?;
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queue.as_ref().ok_or_else(closed)?;
        queue.send(Job::Run { run, place }).map_err(|_| closed())
    }

    /// Runs a short operation here and now if nobody is at the desk or waits for it; gives it back otherwise.
    fn at_the_desk(&self, run: writer::Run) -> Result<(), writer::Run> {
        if self.places.available_permits() < limits::WRITER_QUEUE_MAX {
            return Err(run);
        }
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(queue), Ok(mut writer)) = (queue.as_ref(), self.desk.try_lock()) else {
            return Err(run);
        };
        let before = writer.due();
        writer.operate(run);
        let after = writer.due();
        drop(writer);
        if after > before || after == Due::Flush {
            // A thread that is gone needs no telling: the next operation meets a closed queue.
            let _ = queue.send(Job::Look);
        }
        Ok(())
    }

    /// Runs an operation on the writer's thread and waits for its answer, if it is gated for the flush too.
    async fn run<T: Send + 'static>(
        &self,
        op: impl FnOnce(&mut Store) -> Result<Answer<T>, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let (run, answer) = job(op);
        self.submit(run).await?;
        answered(answer).await
    }

    /// The same for an operation that is always short: where its caller is, if the desk is free.
    async fn run_short<T: Send + 'static>(
        &self,
        op: impl FnOnce(&mut Store) -> Result<Answer<T>, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let (run, answer) = job(op);
        if let Err(run) = self.at_the_desk(run) {
            self.submit(run).await?;
        }
        answered(answer).await
    }
}

async fn answered<T>(answer: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
    answer
        .await
        .unwrap_or_else(|_| Err(Error::Unknown("the store stopped before it answered".to_owned())))
}

/// An operation with its way back.
fn job<T: Send + 'static>(
    op: impl FnOnce(&mut Store) -> Result<Answer<T>, Fault> + Send + 'static,
) -> (writer::Run, oneshot::Receiver<Result<T, Error>>) {
    let (send, answer) = oneshot::channel::<Result<T, Error>>();
    // Whoever asked may have gone; the operation is done all the same.
    let run = move |store: Result<&mut Store, Error>| {
        let store = match store {
            Ok(store) => store,
            Err(e) => {
                let _ = send.send(Err(e));
                return Ran::Answered;
            }
        };
        store.wrote = false;
        match op(store) {
            Ok(Answer { value, gated }) if gated && store.dirty() => Ran::Waits(Box::new(move |flushed| {
                let _ = send.send(flushed.map(|()| value));
            })),
            Ok(Answer { value, .. }) => {
                let _ = send.send(Ok(value));
                Ran::Answered
            }
            Err(fault) => {
                let damage = fault.damage();
                match (fault, damage) {
                    // Only this reader is touched.
                    (_, Some(damage)) if !store.wrote => {
                        let _ = send.send(Err(damage));
                        Ran::Answered
                    }
                    (Fault::Refused(e), None) => {
                        let _ = send.send(Err(e));
                        Ran::Answered
                    }
                    (fault, damage) => Ran::Broken(
                        fault,
                        Box::new(move |lost| {
                            let unavailable = || Error::Unavailable("the store failed".to_owned());
                            let _ = send.send(Err(damage.or(lost.err()).unwrap_or_else(unavailable)));
                        }),
                    ),
                }
            }
        }
    };
    (Box::new(run), answer)
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        *self.queue.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(thread) = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic of the writer was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// After an unclean stop: SQLite recovers by itself, this finds what a disk did. It reads beside the writer and changes nothing.
fn check_in_background(path: PathBuf) {
    let check = move || {
        let opened = Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY);
        let found = opened.and_then(|conn| conn.query_row("PRAGMA quick_check(1)", [], |r| r.get::<_, String>(0)));
        match found {
            Ok(ok) if ok == "ok" => {
                tracing::info!(path = %path.display(), "the database is sound after an unclean stop")
            }
            Ok(found) => {
                tracing::error!(path = %path.display(), found, "the database is damaged: restore it from a copy")
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "the database could not be checked"),
        }
    };
    if let Err(error) = std::thread::Builder::new().name("skep-check".to_owned()).spawn(check) {
        tracing::warn!(%error, "the database is not checked: no thread");
    }
}

#[async_trait]
impl Backend for Embedded {
    async fn publish(&self, publish: Publish) -> Result<Vec<CallResult>, Error> {
        if self.shared.disk_full.load(Ordering::Relaxed) {
            // The writer looks for room each time it is asked anything.
            self.run(publish::room_on_disk).await?;
        }
        let prepared = publish::Prepared::from(publish);
        self.run_short(move |store| publish::publish(store, &prepared)).await
    }

    async fn claim(
        &self,
        topic: &TopicSpec,
        partition: u16,
        token: Token,
        ttl_ms: u64,
    ) -> Result<Result<Claim, Held>, Error> {
        let topic = topic.clone();
        self.run_short(move |store| lease::claim(store, &topic, partition, token, ttl_ms))
            .await
    }

    async fn renew(&self, lease: &Lease, ttl_ms: u64) -> Result<(), Error> {
        let lease = lease.clone();
        self.run_short(move |store| lease::renew(store, &lease, ttl_ms)).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), Error> {
        let lease = lease.clone();
        self.run_short(move |store| lease::release(store, &lease)).await
    }

    async fn fetch(&self, lease: &Lease, want: Want) -> Result<Fetched, Error> {
        let lease = lease.clone();
        self.run_short(move |store| fetch::fetch(store, &lease, want)).await
    }

    async fn commit(&self, lease: &Lease, commit: Arc<Commit>) -> Result<Committed, Error> {
        let partition = lease.partition.clone();
        let token = lease.token;
        let prepared = commit::Prepared::from(commit);
        self.run_short(move |store| commit::commit(store, &partition, token, prepared))
            .await
    }

    async fn mark(&self, lease: &Lease, uid: Uid) -> Result<u32, Error> {
        let lease = lease.clone();
        self.run_short(move |store| lease::mark(store, &lease, uid)).await
    }

    async fn rescale(&self, topic: &TopicSpec, id: CommitId) -> Result<Rescaled, Error> {
        let topic = topic.clone();
        self.run(move |store| rescale::rescale(store, &topic, id)).await
    }

    async fn hand_over(&self, lease: &Lease, base: CommitId, id: CommitId) -> Result<(), Error> {
        let lease = lease.clone();
        self.run(move |store| rescale::hand_over(store, &lease, base, id)).await
    }

    async fn layout(&self, topic: &TopicId) -> Result<Option<Layout>, Error> {
        let topic = topic.clone();
        self.run(move |store| rescale::layout(store, &topic)).await
    }

    async fn flushed(&self) -> Result<(), Error> {
        self.run(|_| Answer::gated(())).await
    }

    fn bell(&self, partition: &PartitionId) -> Bell {
        self.shared.bell(partition)
    }

    fn room(&self, topic: &TopicId) -> Bell {
        self.shared.room(topic)
    }

    fn waiters(&self) -> &Arc<Waiters> {
        &self.shared.waiters
    }

    fn scan_every_ms(&self) -> u64 {
        // Bells live in this process and are never lost; the scan is for what nobody thought of.
        30_000
    }

    async fn status(&self, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error> {
        let swarm = swarm.clone();
        self.run(move |store| views::status(store, &swarm)).await
    }

    async fn durable_status(&self, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error> {
        let swarm = swarm.clone();
        // In one operation: a flush that fails between two would take back what the first saw, and leave the second nothing to wait for.
        self.run(move |store| Answer::gated(views::status(store, &swarm)?.value))
            .await
    }

    async fn lives(&self) -> Result<Vec<SwarmId>, Error> {
        self.run(views::lives).await
    }

    async fn state_page(&self, topic: &TopicId, after: &str) -> Result<StatePage, Error> {
        let (topic, after) = (topic.clone(), after.to_owned());
        self.run(move |store| views::state_page(store, &topic, &after)).await
    }

    async fn state_size(&self, topic: &TopicId) -> Result<StateSize, Error> {
        let topic = topic.clone();
        self.run_short(move |store| views::state_size(store, &topic)).await
    }

    async fn remove_swarm(&self, swarm: &SwarmId, if_empty: bool) -> Result<bool, Error> {
        let life = swarm.clone();
        let forget = self.run(move |store| removal::forget_swarm(store, &life, if_empty));
        let Some(rows) = forget.await? else { return Ok(false) };
        for topic in rows {
            while self.run(move |store| removal::remove_rows(store, topic)).await? {}
        }
        let life = swarm.clone();
        self.run(move |store| removal::remove_life(store, &life)).await?;
        Ok(true)
    }

    async fn remove_topic(&self, topic: &TopicSpec) -> Result<bool, Error> {
        let topic = topic.clone();
        match self.run(move |store| removal::forget_topic(store, &topic)).await? {
            None => return Ok(false),
            Some(None) => {}
            Some(Some(row)) => while self.run(move |store| removal::remove_rows(store, row)).await? {},
        }
        self.flushed().await?;
        Ok(true)
    }

    async fn export(&self, swarm: &SwarmId) -> Result<Pieces, Error> {
        let life = swarm.clone();
        let alive = self.run(move |store| {
            if store.gone.contains(&life) {
                return Err(Error::Gone.into());
            }
            Answer::gated(store.dir.clone())
        });
        let (dir, life) = (alive.await?, swarm.clone());
        let (send, pieces) = mpsc::channel(limits::EXPORT_PIECES_MAX);
        tokio::task::spawn_blocking(move || export::Snapshot::read(&dir, life, send));
        let next = |mut pieces: mpsc::Receiver<_>| async move { pieces.recv().await.map(|piece| (piece, pieces)) };
        Ok(futures::stream::unfold(pieces, next).boxed())
    }

    async fn import(&self, swarm: &SwarmId, mut pieces: Pieces) -> Result<bool, Error> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let life = swarm.clone();
        if !self.run(move |store| import::begin(store, &life, number)).await? {
            return Ok(false);
        }
        let mut offset = None;
        while let Some(some) = next_pieces(&mut pieces).await? {
            let life = swarm.clone();
            let step = self.run(move |store| import::pieces(store, &life, number, offset, some));
            offset = step.await?;
        }
        let life = swarm.clone();
        self.run(move |store| import::end(store, &life, number)).await?;
        Ok(true)
    }

    async fn imports(&self) -> Result<Vec<SwarmId>, Error> {
        self.run(|store| Answer::now(store.aside.keys().cloned().collect()))
            .await
    }

    async fn discard_import(&self, swarm: &SwarmId) -> Result<(), Error> {
        let life = swarm.clone();
        let Some(rows) = self.run(move |store| import::discard(store, &life)).await? else {
            return Ok(());
        };
        for topic in rows {
            while self.run(move |store| removal::remove_rows(store, topic)).await? {}
        }
        let life = swarm.clone();
        self.run(move |store| removal::remove_life(store, &life)).await
    }

    async fn state(&self, topic: &TopicId, key: &str) -> Result<HashMap<String, Bytes>, Error> {
        let (topic, key) = (topic.clone(), key.to_owned());
        self.run(move |store| views::state(store, &topic, &key)).await
    }

    async fn dead_letters(
        &self,
        swarm: &SwarmId,
        stage: Option<&StageName>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredDeadLetter>, Error> {
        let (swarm, stage) = (swarm.clone(), stage.cloned());
        self.run(move |store| views::dead_letters(store, &swarm, stage.as_ref(), after, limit))
            .await
    }

    async fn discard_dead_letters(&self, swarm: &SwarmId, ids: &[u64]) -> Result<u64, Error> {
        let (swarm, ids) = (swarm.clone(), ids.to_vec());
        self.run(move |store| letter::discard(store, &swarm, &ids)).await
    }

    async fn catalog_put_if(
        &self,
        key: &str,
        expect: u64,
        seen: Option<u64>,
        value: Bytes,
    ) -> Result<Result<u64, u64>, Error> {
        let key = key.to_owned();
        self.run(move |store| catalog::put(store, &key, expect, seen, &value))
            .await
    }

    async fn catalog_list(&self, prefix: &str) -> Result<Vec<(String, CatalogRecord)>, Error> {
        let prefix = prefix.to_owned();
        self.run(move |store| catalog::list(store, &prefix)).await
    }

    async fn catalog_delete_if(&self, key: &str, expect: u64, seen: Option<u64>) -> Result<Result<(), u64>, Error> {
        let key = key.to_owned();
        self.run(move |store| catalog::delete(store, &key, expect, seen)).await
    }

    async fn catalog_number(&self) -> Result<u64, Error> {
        self.is_open()?;
        Ok(self.shared.catalog_number.load(Ordering::Relaxed))
    }

    fn catalog_bell(&self) -> Bell {
        Arc::clone(&self.shared.catalog)
    }

    async fn beat(&self, node: NodeId, record: Bytes, ttl_ms: u64) -> Result<Pulse, Error> {
        self.is_open()?;
        let now_ms = self.clock.now_ms();
        let mut beats = self.shared.beats.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Pulse {
            nodes: beats.beat(node, record, ttl_ms, now_ms)?,
            catalog: self.shared.catalog_number.load(Ordering::Relaxed),
            now_ms,
        })
    }

    async fn leave(&self, node: NodeId) -> Result<(), Error> {
        self.is_open()?;
        let mut beats = self.shared.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.leave(node);
        Ok(())
    }

    fn counters(&self) -> Counters {
        Counters {
            commits: self.shared.commits.load(Ordering::Relaxed),
            publishes: self.shared.publishes.load(Ordering::Relaxed),
            flushes: self.shared.flushes.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }

    async fn close(&self) -> Result<(), Error> {
        let (send, closed) = oneshot::channel();
        let run = move |_: Result<&mut Store, Error>| {
            Ran::Close(Box::new(move |result| {
                let _ = send.send(result);
            }))
        };
        self.submit(Box::new(run)).await?;
        let result = closed
            .await
            .unwrap_or_else(|_| Err(Error::Unknown("the store stopped while closing".to_owned())));
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It has answered, so this takes no time.
            let _ = thread.join();
        }
        result
    }
}
