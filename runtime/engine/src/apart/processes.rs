//! The processes of all tenants on this node that have one: started by a tenant's first call, ended when nobody calls, or to make room.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use skep_model::limits::{
    APART_BACKOFF_FIRST_MS, APART_BACKOFF_MAX_MS, APART_IDLE_MS, APART_PROCESSES_MAX, APART_START_MS, MODULE_IDLE_MS,
    MODULES_BYTES_DEFAULT,
};
use skep_model::name::TenantId;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::messages::Hello;
use super::process::{Process, Start, streams};
use crate::settings::Settings;
use crate::share::Share;

/// One that lived for so long died of something else than its start.
const LIVED: Duration = Duration::from_secs(30);
/// Instances of one tenant at once in a process of its own, and those that wait warm: a node has 128 and 64 for all.
const RUNNING: u32 = 64;
const SPARE: u32 = 16;

/// What is counted of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub processes: u64,
    pub starts: u64,
    /// Those that ended by themselves, or had to be killed.
    pub deaths: u64,
}

/// All of a node. One owner of each: the task that waits for its end.
pub struct Processes {
    exe: PathBuf,
    args: Vec<OsString>,
    memory_bytes_max: u64,
    slots: Mutex<HashMap<TenantId, Arc<Slot>>>,
    /// For as many as there may be, those that start and those that end included.
    places: Arc<Semaphore>,
    counts: Mutex<Counts>,
    /// The node's own runtime: calls come from others, which may end.
    runtime: Handle,
    starter: Starter,
    /// The node stops.
    pub(super) stopping: CancellationToken,
}

/// One tenant's.
#[derive(Default)]
struct Slot {
    /// Held while one is started.
    process: Arc<tokio::sync::Mutex<Option<Arc<Process>>>>,
    /// The same for those who only look.
    last: Mutex<Weak<Process>>,
    deaths: Mutex<Deaths>,
}

/// Those that died soon after their start, in a row.
#[derive(Default)]
struct Deaths {
    in_a_row: u32,
    again: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processes")
            .field("exe", &self.exe)
            .finish_non_exhaustive()
    }
}

impl Processes {
    /// `exe` with `args`, and this process's id as the last of them, must call [`super::child_main`]. To be called on the runtime that is to
    /// look after them. `engine`: as the node's own, for what fits one fits the other.
    ///
    /// # Errors
    /// The machine gives no thread.
    pub fn new(exe: PathBuf, args: Vec<OsString>, engine: &Settings) -> std::io::Result<Arc<Self>> {
        let this = Arc::new(Self {
            exe,
            args,
            memory_bytes_max: engine.memory_bytes_max as u64,
            slots: Mutex::default(),
            places: Arc::new(Semaphore::new(APART_PROCESSES_MAX)),
            counts: Mutex::default(),
            runtime: Handle::current(),
            starter: Starter::new(Handle::current())?,
            stopping: CancellationToken::new(),
        });
        tokio::spawn(sweep(Arc::downgrade(&this), this.stopping.clone()));
        Ok(this)
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        let live = slots.iter().filter(|slot| slot.live().is_some()).count();
        Counts {
            processes: live as u64,
            ..*lock(&self.counts)
        }
    }

    /// The tenant's process id on this node, where it has one now.
    #[must_use]
    pub fn pid(&self, tenant: &TenantId) -> Option<u32> {
        let slot = lock(&self.slots).get(tenant).cloned()?;
        slot.live().map(|process| process.pid)
    }

    /// Ends those of tenants of whom `keeps` does not hold, once nothing is under way in them.
    pub fn retain(&self, keeps: impl Fn(&TenantId) -> bool) {
        let all: Vec<_> = lock(&self.slots)
            .iter()
            .map(|(t, slot)| (t.clone(), Arc::clone(slot)))
            .collect();
        for (tenant, slot) in all {
            if let Some(process) = slot.live().filter(|process| process.idle().is_some())
                && !keeps(&tenant)
            {
                process.end("its tenant has no process of its own any more");
            }
        }
    }

    /// Ends a tenant's: it has none any more, or is gone.
    pub fn end(&self, tenant: &TenantId) {
        let slot = lock(&self.slots).get(tenant).cloned();
        if let Some(process) = slot.and_then(|slot| slot.live()) {
            process.end("its tenant has no process of its own any more");
        }
    }

    /// The node stops: what is under way has a while left, and nothing starts any more.
    pub fn stopping(&self) {
        self.stopping.cancel();
    }

    /// Ends all. After the last call.
    pub async fn stop(&self) {
        self.stopping.cancel();
        let slots: Vec<_> = lock(&self.slots).drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            // One that is being started ends by itself, for the node stops, but not before that is known.
            let _started = slot.process.lock().await;
            if let Some(process) = slot.last() {
                process.end("the node stops");
                // Its task reaps it; nobody else is left to wait for.
                process.reaped.cancelled().await;
            }
        }
    }

    /// Takes one that a test made.
    #[cfg(test)]
    pub(super) fn adopt(&self, process: &Arc<Process>) {
        *lock(&self.slot(&process.tenant).last) = Arc::downgrade(process);
    }

    fn slot(&self, tenant: &TenantId) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        Arc::clone(slots.entry(tenant.clone()).or_default())
    }

    /// The tenant's process, started now if there is none.
    ///
    /// # Errors
    /// Why there is none: in words, for whoever's call it was.
    pub(super) async fn of(self: &Arc<Self>, tenant: &TenantId, share: &Arc<Share>) -> Result<Arc<Process>, String> {
        let slot = self.slot(tenant);
        match slot.live() {
            Some(process) if process.born == share.born() => return Ok(process),
            // A tenant that was deleted and made anew has nothing of the one before.
            Some(process) => process.end("its tenant is another one of that name"),
            None => {}
        }
        // On the node's runtime, whatever runtime this call comes from; and to its end, also when the call is given up: one that was started has
        // an owner from the first moment on.
        let begun = self
            .runtime
            .spawn(Arc::clone(self).begin(tenant.clone(), Arc::clone(share), slot));
        begun.await.map_err(|e| e.to_string())?
    }

    async fn begin(
        self: Arc<Self>,
        tenant: TenantId,
        share: Arc<Share>,
        slot: Arc<Slot>,
    ) -> Result<Arc<Process>, String> {
        let mut place = Arc::clone(&slot.process).lock_owned().await;
        if let Some(process) = place.as_ref().filter(|process| !process.gone.is_cancelled()) {
            return Ok(Arc::clone(process));
        }
        if let Some(dead) = place.take() {
            self.died(&slot, &dead);
        }
        let again = lock(&slot.deaths).again;
        if let Some(wait) = again.map(|again| again.saturating_duration_since(Instant::now())) {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stopping.cancelled() => {}
            }
        }
        if self.stopping.is_cancelled() {
            return Err("the node stops".to_owned());
        }
        let room = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(room) => room,
            Err(_) => self.make_room(&tenant).await?,
        };
        let started = tokio::select! {
            started = self.start(&tenant, &share, room) => started,
            () = self.stopping.cancelled() => return Err("the node stops".to_owned()),
        };
        match started {
            Ok(process) => {
                lock(&self.counts).starts += 1;
                *lock(&slot.last) = Arc::downgrade(&process);
                *place = Some(Arc::clone(&process));
                if self.stopping.is_cancelled() {
                    process.end("the node stops");
                    return Err("the node stops".to_owned());
                }
                Ok(process)
            }
            Err(why) => {
                slot.back_off();
                tracing::warn!(%tenant, why, "a tenant's process cannot be started");
                Err(why)
            }
        }
    }

    fn died(&self, slot: &Slot, dead: &Process) {
        if dead.ended_well() {
            return;
        }
        lock(&self.counts).deaths += 1;
        if dead.began.elapsed() < LIVED {
            slot.back_off();
        } else {
            *lock(&slot.deaths) = Deaths::default();
        }
    }

    /// Ends the one that nobody called for longest, for there are as many as there may be.
    async fn make_room(&self, tenant: &TenantId) -> Result<OwnedSemaphorePermit, String> {
        let live: Vec<_> = {
            let slots = lock(&self.slots);
            let others = slots.iter().filter(|(other, _)| *other != tenant);
            others.filter_map(|(_, slot)| slot.live()).collect()
        };
        let idle = live.iter().filter_map(|process| Some((process.idle()?, process)));
        let Some((_, oldest)) = idle.max_by_key(|(idle, _)| *idle) else {
            return Err(format!(
                "this node runs {APART_PROCESSES_MAX} processes of tenants, which are as many as it may, and all are busy: try again, or add a node"
            ));
        };
        oldest.end("another tenant's is needed more");
        let freed = Arc::clone(&self.places).acquire_owned();
        let freed = tokio::time::timeout(Duration::from_millis(APART_START_MS), freed).await;
        let freed = freed.map_err(|_| "no process of another tenant ended to make room".to_owned())?;
        freed.map_err(|e| e.to_string())
    }

    async fn start(
        &self,
        tenant: &TenantId,
        share: &Arc<Share>,
        place: OwnedSemaphorePermit,
    ) -> Result<Arc<Process>, String> {
        let not = |e: std::io::Error| format!("a process for tenant `{tenant}` cannot be started: {e}");
        let (own, its) = StdStream::pair().map_err(not)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        // No more threads than its limit can keep busy: where the limit is one core, others find the rest free.
        let threads = share.cap().map_or(cores, |cap| cap.div_ceil(1_000).clamp(1, cores));
        let start = Start {
            hello: Hello {
                tenant: tenant.clone(),
                threads: u32::try_from(threads).unwrap_or(1),
                running: RUNNING,
                spare: SPARE,
                memory_bytes_max: self.memory_bytes_max,
                modules_bytes: MODULES_BYTES_DEFAULT,
                idle_ms: MODULE_IDLE_MS,
                limits: share.told(),
            },
            share: Arc::clone(share),
            memory_bytes: self
                .memory_bytes_max
                .saturating_mul((RUNNING + RUNNING / 4 + SPARE).into()),
            place,
        };
        let mut command = Command::new(&self.exe);
        command
            .args(&self.args)
            .arg(std::process::id().to_string())
            .env_clear()
            .current_dir("/");
        streams(&mut command, its);
        let child = self.starter.start(command).await.map_err(not)?;
        Process::new(child, own, start).await.map_err(not)
    }
}

impl Slot {
    fn last(&self) -> Option<Arc<Process>> {
        lock(&self.last).upgrade()
    }

    fn live(&self) -> Option<Arc<Process>> {
        self.last().filter(|process| !process.gone.is_cancelled())
    }

    fn back_off(&self) {
        let mut deaths = lock(&self.deaths);
        let doubled = APART_BACKOFF_FIRST_MS.saturating_mul(1 << deaths.in_a_row.min(16));
        deaths.in_a_row = deaths.in_a_row.saturating_add(1);
        deaths.again = Some(Instant::now() + Duration::from_millis(doubled.min(APART_BACKOFF_MAX_MS)));
    }
}

/// Ends those that nobody calls.
async fn sweep(processes: Weak<Processes>, stopping: CancellationToken) {
    let idle = Duration::from_millis(APART_IDLE_MS);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(idle / 8) => {}
        }
        let Some(processes) = processes.upgrade() else { return };
        let slots: Vec<_> = {
            let mut slots = lock(&processes.slots);
            slots.retain(|_, slot| slot.live().is_some() || Arc::strong_count(slot) > 1);
            slots.values().cloned().collect()
        };
        for process in slots.iter().filter_map(|slot| slot.live()) {
            if process.idle().is_some_and(|its| its >= idle) {
                process.end("nobody called it for a while");
            }
        }
    }
}

/// A command, and where the child goes.
type Job = (Command, oneshot::Sender<std::io::Result<Child>>);

/// The thread that starts them. A child is killed with the thread that started it, so that must not be one that a runtime ends when it is idle.
struct Starter(std::sync::mpsc::Sender<Job>);

impl Starter {
    fn new(runtime: Handle) -> std::io::Result<Self> {
        let (jobs, given) = std::sync::mpsc::channel::<Job>();
        std::thread::Builder::new().name("skep-starter".into()).spawn(move || {
            let _runtime = runtime.enter();
            while let Ok((mut command, started)) = given.recv() {
                let _ = started.send(command.spawn());
            }
        })?;
        Ok(Self(jobs))
    }

    async fn start(&self, command: Command) -> std::io::Result<Child> {
        let ended = || std::io::Error::other("the thread that starts processes has ended");
        let (started, child) = oneshot::channel();
        self.0.send((command, started)).map_err(|_| ended())?;
        child.await.map_err(|_| ended())?
    }
}
