//! A Bee as a stage calls it: batch in, outcomes out.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use skep_model::env::SystemClock;
use skep_model::id::Digest;
use skep_model::limits;
use skep_model::name::BeeName;
use skep_model::predict::ModelAccess;
use skep_model::step::{Batch, Processed, Trap, TrapKind};
use skep_model::swarm::{GuestClock, Instances, Stage};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::egress::Egress;
use crate::engine::Engine;
use crate::error::Error;
use crate::guests::Load;
use crate::host::Host;
use crate::instance::{Call, Code, Instance, Time, failed, message};
use crate::places::Place;
use crate::secret::{Granted, Secrets};
use crate::share::{Meter, Share};
use crate::time::Sense;
use crate::turns::Turn;

/// Warm instances of one pooled Bee.
const POOLED_PER_BEE_MAX: usize = 16;
/// A pooled instance that has grown to this share of its memory limit is not used again: memory never shrinks inside.
const POOLED_MEMORY_PERCENT_MAX: usize = 75;

/// The smallest memory that a Bee can be given.
const MEMORY_BYTES_MIN: usize = 1 << 20;

/// How a stage runs its Bee.
#[derive(Debug, Clone)]
pub struct BeeSettings {
    pub memory_bytes: usize,
    /// CPU time of one call, ms, measured in epoch_ticks.
    pub cpu_ms: u64,
    /// Wall time of one call, ms; waiting for a free place on the node is not counted.
    pub wall_ms: u64,
    /// The stage has a `key:`.
    pub keyed: bool,
    /// The stage grants state and timers. Without `keyed` it grants nothing.
    pub state: bool,
    /// Read by the Bee through `wasi:config`.
    pub config: BTreeMap<String, String>,
    /// `None`: the stage grants none.
    pub secrets: Option<Arc<dyn Secrets>>,
    /// `None`: it sends no HTTP requests.
    pub http: Option<Arc<Egress>>,
    /// `None`: it calls no models.
    pub models: Option<Arc<ModelAccess>>,
    pub clock: GuestClock,
    pub instances: Instances,
    /// Seeds the guest's random numbers until the first `begin`.
    pub stage_digest: Digest,
    /// What the tenant has of the engine. By default it is one of the Bee's own.
    pub share: Arc<Share>,
    /// What the Bee uses.
    pub meter: Arc<Meter>,
}

impl BeeSettings {
    /// As the manifest says, but for its secrets, requests and models, which are the node's to give.
    #[must_use]
    pub fn of(stage: &Stage, stage_digest: Digest) -> Self {
        Self {
            memory_bytes: usize::try_from(stage.memory_bytes).unwrap_or(usize::MAX),
            cpu_ms: stage.timeout_ms,
            wall_ms: stage.timeout_ms,
            keyed: stage.key.is_some(),
            state: stage.state,
            config: stage.config.clone(),
            secrets: None,
            http: None,
            models: None,
            clock: stage.clock,
            instances: stage.instances,
            stage_digest,
            share: Arc::default(),
            meter: Arc::default(),
        }
    }

    /// Whether an engine can give that.
    ///
    /// # Errors
    /// The first setting that is outside of it.
    pub fn check(&self, engine: &crate::Settings) -> Result<(), Error> {
        within(
            "memory (bytes)",
            self.memory_bytes as u64,
            MEMORY_BYTES_MIN as u64,
            engine.memory_bytes_max as u64,
        )?;
        for (what, ms) in [("CPU time (ms)", self.cpu_ms), ("wall time (ms)", self.wall_ms)] {
            within(what, ms, 1, limits::STAGE_TIMEOUT_MS_MAX)?;
        }
        Ok(())
    }

    /// No key, no state, no configuration, and the defaults of a manifest.
    #[must_use]
    pub fn plain(stage_digest: Digest) -> Self {
        Self {
            memory_bytes: limits::MEMORY_BYTES_DEFAULT,
            cpu_ms: limits::STAGE_TIMEOUT_MS_DEFAULT,
            wall_ms: limits::STAGE_TIMEOUT_MS_DEFAULT,
            keyed: false,
            state: false,
            config: BTreeMap::new(),
            secrets: None,
            http: None,
            models: None,
            clock: GuestClock::Recorded,
            instances: Instances::Fresh,
            stage_digest,
            share: Arc::default(),
            meter: Arc::default(),
        }
    }
}

fn within(what: &'static str, found: u64, min: u64, max: u64) -> Result<(), Error> {
    if (min..=max).contains(&found) {
        Ok(())
    } else {
        Err(Error::BadSetting { what, found, min, max })
    }
}

/// What one call may use beside its batch.
#[derive(Default)]
pub(crate) struct Grants {
    pub(crate) secrets: Arc<Granted>,
    /// `None`: what its stage has.
    pub(crate) http: Option<Arc<Egress>>,
    pub(crate) models: Option<Arc<ModelAccess>>,
}

/// One stage's Bee. Cheap to clone. Its instances are shared with no other stage.
#[derive(Clone)]
pub struct Bee(Arc<Inner>);

pub(crate) struct Inner {
    engine: Arc<Engine>,
    code: Arc<Code>,
    name: BeeName,
    settings: BeeSettings,
    config: Arc<BTreeMap<String, String>>,
    spares: Mutex<Spares>,
    /// The least CPU time that preparing an instance took, us: what one took longer, it had cold caches. At first the greatest number there is.
    made_us: AtomicU32,
}

/// Instances that wait for a call: untouched ones, or warm ones of a pooled Bee.
#[derive(Default)]
struct Spares {
    waiting: VecDeque<Instance>,
    preparing: usize,
    /// The engine looks after this Bee's idle spares.
    watched: bool,
}

/// What a call leaves.
struct Used {
    /// And whether it may be used again.
    instance: Option<(Instance, bool)>,
    place: Place,
}

/// Stops the guest when the caller loses interest.
struct StopOnDrop(Option<AbortHandle>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

impl Bee {
    pub(crate) fn new(engine: Arc<Engine>, code: Arc<Code>, name: BeeName, settings: BeeSettings) -> Self {
        let config = Arc::new(settings.config.clone());
        Self(Arc::new(Inner {
            engine,
            code,
            name,
            settings,
            config,
            spares: Mutex::default(),
            made_us: AtomicU32::new(u32::MAX),
        }))
    }

    #[must_use]
    pub fn name(&self) -> &BeeName {
        &self.0.name
    }

    /// Calls the Bee once, with all inputs.
    ///
    /// The guest runs on the engine's own threads, so this may be called from any tokio runtime; from one of [`Engine::seats`]
    /// it runs where it is called, unless another thread has less to do. Dropping the future stops the guest within an epoch_tick.
    /// More calls than [`crate::Settings::running`] at once wait here.
    pub async fn process(&self, batch: Batch) -> Processed {
        let secrets = self.0.settings.secrets.as_ref();
        let grants = Grants {
            secrets: secrets.map(|secrets| secrets.granted()).unwrap_or_default(),
            ..Grants::default()
        };
        self.process_granted(batch, grants).await
    }

    /// The same with what is granted to this call and to no other.
    pub(crate) async fn process_granted(&self, batch: Batch, grants: Grants) -> Processed {
        match self.0.engine.guests().here() {
            Some(load) => self.right_here(batch, grants, load).await,
            None => self.elsewhere(batch, grants).await,
        }
    }

    async fn right_here(&self, batch: Batch, grants: Grants, load: Load) -> Processed {
        let run = Arc::clone(&self.0).run(batch, grants);
        let ran = AssertUnwindSafe(run).catch_unwind().await;
        drop(load);
        match ran {
            Ok(Ok((processed, used))) => {
                // Off the caller's path: it takes place when the caller waits next. Whoever lives on this thread would wait for it then, so
                // what takes longer goes to a thread that has nothing to do.
                let after = Arc::clone(&self.0).after(used);
                let here = match self.0.makes_slowly() {
                    true => self.0.engine.guests().spawn_aside(after).err(),
                    false => Some(after),
                };
                if let Some(after) = here {
                    tokio::spawn(after);
                }
                processed
            }
            Ok(Err(processed)) => *processed,
            Err(panic) => lost(format!("the host panicked: {}", message(&*panic))),
        }
    }

    async fn elsewhere(&self, batch: Batch, grants: Grants) -> Processed {
        let (answer, answered) = oneshot::channel();
        let task = self.0.engine.guests().spawn(|load| {
            let bee = Arc::clone(&self.0);
            async move {
                let (processed, used) = match Arc::clone(&bee).run(batch, grants).await {
                    Ok(ran) => ran,
                    Err(processed) => {
                        drop(load);
                        let _ = answer.send(*processed);
                        return;
                    }
                };
                // The next call should come to this same thread and find its instance made, rather than wake another thread to
                // make one; unless it would wait for that longer than for a thread to wake.
                let busy = bee.makes_slowly().then_some(load);
                // The caller may be gone: then nobody minds.
                let _ = answer.send(processed);
                bee.after(used).await;
                drop(busy);
            }
        });
        let mut stop = StopOnDrop(Some(task.abort_handle()));
        match answered.await {
            Ok(processed) => {
                // What follows the answer is the making of the next instance: let it.
                stop.0 = None;
                processed
            }
            Err(_) => {
                let detail = match task.await {
                    Err(end) if end.is_panic() => format!("the host panicked: {}", message(&*end.into_panic())),
                    _ => "the engine is shutting down".to_owned(),
                };
                lost(detail)
            }
        }
    }

    /// Instances that wait for a call.
    #[must_use]
    pub fn spares(&self) -> usize {
        self.0.spares().waiting.len()
    }
}

/// A call that the host could not make.
fn lost(detail: String) -> Processed {
    Processed {
        result: Err(Trap {
            kind: TrapKind::Host,
            detail,
            stderr: String::new(),
        }),
        log: Vec::new(),
    }
}

impl Inner {
    fn spares(&self) -> MutexGuard<'_, Spares> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time(&self) -> Time {
        Time {
            cpu_ms: self.settings.cpu_ms,
            wall_ms: self.settings.wall_ms,
        }
    }

    /// One call.
    ///
    /// # Errors
    /// It had no place.
    async fn run(self: Arc<Self>, batch: Batch, grants: Grants) -> Result<(Processed, Used), Box<Processed>> {
        let Some(place) = self.engine.places().take(&self.settings.share, self.memory()).await else {
            return Err(Box::new(lost(format!(
                "too many calls wait for an instance: this node holds {} of them, and one tenant has its share of that",
                limits::GUEST_CALLS_WAITING_MAX
            ))));
        };
        let instance = match self.take_spare() {
            Some(spare) => Ok(spare),
            None => self.make().await,
        };
        if self.settings.share.is_over() {
            self.engine.evict(&self.settings.share);
        }
        let mut instance = match instance {
            Ok(instance) => instance,
            Err(processed) => {
                let used = Used { instance: None, place };
                return Ok((*processed, used));
            }
        };
        let call = Call {
            bee: self.name.as_str(),
            batch,
            state: self.settings.keyed && self.settings.state,
            secrets: grants.secrets,
            http: grants.http,
            models: grants.models,
        };
        let call = instance.call(call, self.engine.ticker(), self.time(), self.turn());
        let (processed, sound) = Box::pin(call).await;
        let instance = Some((instance, sound));
        Ok((processed, Used { instance, place }))
    }

    /// What follows a call and its caller need not wait for.
    async fn after(self: Arc<Self>, used: Used) {
        let Used { instance, place } = used;
        let Some((instance, sound)) = instance else { return };
        if sound && matches!(self.settings.instances, Instances::Pooled { .. }) {
            self.keep(instance);
        } else {
            self.end(instance);
        }
        drop(place);
        if matches!(self.settings.instances, Instances::Fresh) {
            self.prepare().await;
        }
    }

    /// Whether what follows a call takes its time. A warm instance is only put back, and the next call should find it there.
    fn makes_slowly(&self) -> bool {
        let made = self.made_us.load(Ordering::Relaxed);
        let slow = made < u32::MAX && Duration::from_micros(made.into()) > self.engine.settings().slow_to_make;
        slow && matches!(self.settings.instances, Instances::Fresh)
    }

    async fn make(&self) -> Result<Instance, Box<Processed>> {
        let time = self.time();
        let made = Box::pin(Instance::make(
            &self.code,
            self.host(),
            self.engine.ticker(),
            time,
            self.turn(),
        ))
        .await;
        made.map_err(|(failure, store)| Box::new(failed(failure, store.data(), time)))
    }

    async fn warm(&self, instance: &mut Instance) -> bool {
        let warmed = instance.warm(
            self.settings.stage_digest,
            self.engine.ticker(),
            self.time(),
            self.turn(),
        );
        Box::pin(warmed).await
    }

    fn host(&self) -> Host {
        let real = match self.settings.clock {
            GuestClock::Recorded => None,
            GuestClock::Real => Some(Arc::new(SystemClock) as Arc<dyn skep_model::env::Clock>),
        };
        let sense = Sense::new(self.settings.stage_digest, real);
        Host::new(
            self.settings.stage_digest,
            sense,
            self.settings.share.memory_of(self.settings.memory_bytes),
            Arc::clone(&self.config),
            self.settings.http.clone(),
            self.settings.models.clone(),
        )
    }

    pub(crate) fn is_of(&self, share: &Arc<Share>) -> bool {
        Arc::ptr_eq(&self.settings.share, share)
    }

    /// What an instance may grow to.
    fn memory(&self) -> u64 {
        self.settings.share.memory_of(self.settings.memory_bytes) as u64
    }

    fn turn(&self) -> Turn {
        Turn::new(&self.settings.share, &self.settings.meter)
    }

    /// Drops an instance, and counts how long it had its memory.
    fn end(&self, instance: Instance) {
        let (bytes, lived) = (instance.memory(), instance.made.elapsed());
        self.settings.meter.lived(bytes, lived);
        self.settings.share.used().lived(bytes, lived);
        drop(instance);
    }

    fn take_spare(&self) -> Option<Instance> {
        let mut spares = self.spares();
        let mut instance = match self.settings.instances {
            // The oldest, so that none grows old.
            Instances::Fresh => spares.waiting.pop_front()?,
            // The warmest, so that the rest can be let go.
            Instances::Pooled { .. } => loop {
                let instance = spares.waiting.pop_back()?;
                if !self.worn(&instance) {
                    break instance;
                }
                self.end(instance);
            },
        };
        drop(spares);
        instance.place = None;
        if instance.calls > 0 {
            instance.restart(self.settings.stage_digest);
        }
        Some(instance)
    }

    fn worn(&self, instance: &Instance) -> bool {
        match self.settings.instances {
            Instances::Fresh => instance.calls > 0,
            Instances::Pooled { calls, age_s } => {
                instance.calls >= calls
                    || instance.made.elapsed() >= Duration::from_secs(age_s.into())
                    || instance.memory_percent() >= POOLED_MEMORY_PERCENT_MAX
            }
        }
    }

    /// Puts a warm instance back.
    fn keep(self: &Arc<Self>, mut instance: Instance) {
        if self.worn(&instance) {
            return self.end(instance);
        }
        // Without room for a spare it is dropped: a call that needs a place must never wait for an idle instance.
        let Some(place) = self.engine.places().spare(&self.settings.share, self.memory()) else {
            return self.end(instance);
        };
        instance.place = Some(place);
        let mut spares = self.spares();
        if spares.waiting.len() < POOLED_PER_BEE_MAX {
            spares.waiting.push_back(instance);
            self.watch(spares);
        }
    }

    /// Makes the instance for a later call.
    async fn prepare(self: &Arc<Self>) {
        let target = self.engine.settings().spare_per_bee as usize;
        loop {
            let Some(place) = self.engine.places().spare(&self.settings.share, self.memory()) else {
                return;
            };
            {
                let mut spares = self.spares();
                if spares.waiting.len() + spares.preparing >= target {
                    return;
                }
                spares.preparing += 1;
            }
            let _preparing = Preparing(self);
            // An instance that cannot be made is not a matter for now: the next call will tell its caller.
            let Ok(mut instance) = self.make().await else { return };
            if !self.warm(&mut instance).await {
                return self.end(instance);
            }
            let cost = u32::try_from(instance.cost.as_micros()).unwrap_or(u32::MAX);
            self.made_us.fetch_min(cost, Ordering::Relaxed);
            instance.place = Some(place);
            let mut spares = self.spares();
            spares.waiting.push_back(instance);
            self.watch(spares);
        }
    }

    fn watch(self: &Arc<Self>, mut spares: MutexGuard<'_, Spares>) {
        let first = !std::mem::replace(&mut spares.watched, true);
        drop(spares);
        if first {
            self.engine.watch(Arc::downgrade(self));
        }
    }

    /// Drops the spares that nobody used of late. Whether the Bee still has some.
    pub(crate) fn drop_idle(&self, idle: Duration) -> bool {
        let now = Instant::now();
        let mut old = Vec::new();
        let mut spares = self.spares();
        let mut i = 0;
        while i < spares.waiting.len() {
            let instance = &spares.waiting[i];
            if now.duration_since(instance.used) >= idle || (instance.calls > 0 && self.worn(instance)) {
                old.extend(spares.waiting.remove(i));
            } else {
                i += 1;
            }
        }
        let some = !spares.waiting.is_empty();
        spares.watched = some;
        drop(spares);
        // Unmapping takes a while; nobody waits for the lock meanwhile.
        old.into_iter().for_each(|instance| self.end(instance));
        some
    }
}

/// Counts an instance in the making, also when its making is stopped half-way.
struct Preparing<'a>(&'a Inner);

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        self.0.spares().preparing -= 1;
    }
}
