//! In the tenant's process: one socket, on which one call comes after the other.

use std::collections::HashMap;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use skep_model::id::Digest;
use skep_model::limits::{APART_TOLD_BYTES_MAX, MODULE_BESIDE_BYTES};
use skep_model::name::TenantId;
use skep_model::predict::{ModelAccess, Models};
use skep_model::step::{Processed, Trap, TrapKind};
use tokio::sync::Notify;

use super::asks::Asks;
use super::link::{Bounds, Link, Room};
use super::messages::{Answer, CallIn, Done, News, ToGuest, ToHost, Told, Used};
use crate::artifact::Artifact;
use crate::bee::{Bee, BeeSettings, Grants};
use crate::egress::{Dialler, Egress};
use crate::engine::Engine;
use crate::module::Module;
use crate::secret::{Granted, SecretValue};
use crate::share::{Meter, Share};

/// What this process has of its tenant.
pub(super) struct House {
    engine: Arc<Engine>,
    tenant: TenantId,
    pub(super) share: Arc<Share>,
    modules_bytes: u64,
    idle: Duration,
    kept: Mutex<Kept>,
    /// A call began, or something lives still: there may be something to tell. Else there is no reason to wake.
    stirs: AtomicBool,
    stirred: Notify,
    /// One module is loaded at a time: whoever comes meanwhile may find it there.
    loading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Kept {
    modules: HashMap<Digest, Loaded>,
    bees: HashMap<u64, Lodger>,
    meters: HashMap<u64, Count>,
}

struct Loaded {
    module: Module,
    bytes: u64,
    used: Instant,
}

/// A Bee that this process keeps.
#[derive(Clone)]
struct Lodger {
    bee: Bee,
    told: Arc<Told>,
    used: Instant,
}

/// What a Bee used, and what of it the node knows.
struct Count {
    meter: Arc<Meter>,
    cpu_ns: u64,
    byte_ms: u64,
}

impl House {
    pub(super) fn new(engine: Arc<Engine>, tenant: TenantId, modules_bytes: u64, idle: Duration) -> Arc<Self> {
        Arc::new(Self {
            engine,
            tenant,
            share: Arc::default(),
            modules_bytes,
            idle,
            kept: Mutex::default(),
            stirs: AtomicBool::new(false),
            stirred: Notify::new(),
            loading: tokio::sync::Mutex::default(),
        })
    }

    /// When there may be something to tell: a while from now, or after the next call where nothing goes on.
    pub(super) async fn due(&self, every: Duration) {
        while !self.stirs.load(Ordering::Relaxed) {
            self.stirred.notified().await;
        }
        tokio::time::sleep(every).await;
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bee(&self, id: u64) -> Option<Lodger> {
        let mut kept = self.kept();
        let found = kept.bees.get_mut(&id)?;
        found.used = Instant::now();
        let found = found.clone();
        if let Some(module) = kept.modules.get_mut(&found.told.module) {
            module.used = found.used;
        }
        Some(found)
    }

    fn module(&self, digest: Digest) -> Option<Module> {
        let mut kept = self.kept();
        let found = kept.modules.get_mut(&digest)?;
        found.used = Instant::now();
        Some(found.module.clone())
    }

    fn keep(&self, digest: Digest, module: &Module, code_bytes: u64) {
        let mut kept = self.kept();
        let loaded = Loaded {
            module: module.clone(),
            bytes: code_bytes + MODULE_BESIDE_BYTES,
            used: Instant::now(),
        };
        kept.modules.insert(digest, loaded);
        // The one that was called longest ago goes first, with its Bees; what is under way holds what it uses.
        while kept.modules.values().map(|module| module.bytes).sum::<u64>() > self.modules_bytes {
            let others = kept.modules.iter().filter(|(other, _)| **other != digest);
            let Some(oldest) = others.min_by_key(|(_, module)| module.used).map(|(digest, _)| *digest) else {
                break;
            };
            kept.modules.remove(&oldest);
            kept.bees.retain(|_, bee| bee.told.module != oldest);
        }
    }

    /// Lets go what nobody called of late.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut kept = self.kept();
        kept.bees.retain(|_, bee| now.duration_since(bee.used) < self.idle);
        kept.modules
            .retain(|_, module| now.duration_since(module.used) < self.idle);
    }

    /// What was used since the last time, if anything was or lives.
    pub(super) fn news(&self, before: &mut (u64, u64)) -> Option<News> {
        self.stirs.store(false, Ordering::Relaxed);
        let mut kept = self.kept();
        let mut bees = Vec::new();
        kept.meters.retain(|id, count| {
            let (cpu_ns, byte_ms) = (count.meter.cpu_ns(), count.meter.byte_ms());
            if (cpu_ns, byte_ms) != (count.cpu_ns, count.byte_ms) {
                bees.push(Used {
                    bee: *id,
                    cpu_ns: cpu_ns - count.cpu_ns,
                    byte_ms: byte_ms - count.byte_ms,
                });
                (count.cpu_ns, count.byte_ms) = (cpu_ns, byte_ms);
            }
            // Its Bee may hold it, and each of its instances.
            Arc::strong_count(&count.meter) > 1
        });
        let live = self.share.live();
        if !bees.is_empty() || live.0 > 0 {
            self.stirs.store(true, Ordering::Relaxed);
        }
        if bees.is_empty() && live == *before {
            return None;
        }
        *before = live;
        Some(News::Used {
            bees,
            instances: live.0,
            memory: live.1,
        })
    }

    fn settle(&self, id: u64, told: Told, module: &Module) -> Result<Lodger, crate::Error> {
        let meter = Arc::<Meter>::default();
        let settings = BeeSettings {
            memory_bytes: usize::try_from(told.memory_bytes).unwrap_or(usize::MAX),
            cpu_ms: told.cpu_ms,
            wall_ms: told.wall_ms,
            keyed: told.keyed,
            state: told.state,
            config: told.config.clone(),
            clock: told.clock(),
            instances: told.instances(),
            share: Arc::clone(&self.share),
            meter: Arc::clone(&meter),
            ..BeeSettings::plain(told.stage_digest)
        };
        let lodger = Lodger {
            bee: module.bee(&told.name, settings)?,
            told: Arc::new(told),
            used: Instant::now(),
        };
        let mut kept = self.kept();
        kept.bees.insert(id, lodger.clone());
        let count = Count {
            meter,
            cpu_ns: 0,
            byte_ms: 0,
        };
        kept.meters.insert(id, count);
        Ok(lodger)
    }
}

/// The node is gone, or gave this call up: there is nobody to tell.
struct Gone;

impl From<std::io::Error> for Gone {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

/// Serves calls until the node closes the socket.
pub(super) async fn serve(house: Arc<House>, socket: StdStream) {
    let bounds = Bounds {
        frame: APART_TOLD_BYTES_MAX,
        lists: APART_TOLD_BYTES_MAX,
        room: Room::endless(),
        queue: usize::MAX,
        descriptors: true,
    };
    let Ok(mut link) = Link::new(socket, bounds) else {
        return;
    };
    while let Ok(Some(said)) = link.next::<ToGuest>().await {
        let served = match said {
            ToGuest::Call(call) => Box::pin(house.call(&mut link, *call)).await,
            ToGuest::Look(digest) => Box::pin(house.look(&mut link, digest)).await,
            ToGuest::Bee(_) | ToGuest::Code { .. } => return,
            // To what was asked in a call that is over.
            ToGuest::Answer(_, Answer::Dialled(Ok(()))) => link.descriptor().map(drop).map_err(Gone::from),
            ToGuest::Answer(..) => Ok(()),
        };
        if served.is_err() {
            return;
        }
    }
}

impl House {
    async fn look(&self, link: &mut Link, digest: Digest) -> Result<(), Gone> {
        let looked = match self.load(link, digest).await? {
            Ok(module) => Ok((
                module.bees().iter().map(ToString::to_string).collect(),
                module.sends_http(),
            )),
            Err(e) => Err(e.to_string()),
        };
        link.put(&ToHost::Looked(looked), Vec::new())?;
        Ok(link.flushed().await?)
    }

    async fn load(&self, link: &mut Link, digest: Digest) -> Result<Result<Module, crate::Error>, Gone> {
        if let Some(module) = self.module(digest) {
            return Ok(Ok(module));
        }
        // Before the lock, for the node may have to compile it first.
        link.put(&ToHost::NeedCode(digest), Vec::new())?;
        let Some(ToGuest::Code { shared }) = link.next().await? else {
            return Err(Gone);
        };
        let own = link.descriptor()?;
        let code = match shared {
            Some(digest) => Some((digest, link.descriptor()?)),
            None => None,
        };
        let _one = self.loading.lock().await;
        if let Some(module) = self.module(digest) {
            return Ok(Ok(module));
        }
        let artifact = Artifact::received(own, code)?;
        let bytes = artifact.len();
        let loaded = self.engine.load(digest, artifact).await;
        if let Ok(module) = &loaded {
            self.keep(digest, module, bytes);
        }
        Ok(loaded)
    }

    async fn lodger(&self, link: &mut Link, id: u64) -> Result<Result<Lodger, crate::Error>, Gone> {
        if let Some(found) = self.bee(id) {
            return Ok(Ok(found));
        }
        link.put(&ToHost::NeedBee, Vec::new())?;
        let Some(ToGuest::Bee(told)) = link.next().await? else {
            return Err(Gone);
        };
        Ok(match self.load(link, told.module).await? {
            Ok(module) => self.settle(id, *told, &module),
            Err(e) => Err(e),
        })
    }

    async fn call(&self, link: &mut Link, call: CallIn) -> Result<(), Gone> {
        self.stirs.store(true, Ordering::Relaxed);
        self.stirred.notify_one();
        let CallIn {
            bee,
            secrets,
            mut batch,
            parts,
        } = call;
        let processed = match self.lodger(link, bee).await? {
            Err(e) => Processed {
                result: Err(Trap {
                    kind: TrapKind::Host,
                    detail: format!("its module cannot be loaded: {e}"),
                    stderr: String::new(),
                }),
                log: Vec::new(),
            },
            Ok(lodger) => {
                let (asks, mut asked) = Asks::new();
                if parts {
                    batch.parts = Some(Arc::new(asks.clone()));
                }
                let grants = self.grants(&lodger.told, &asks, secrets);
                let mut work = pin!(lodger.bee.process_granted(batch, grants));
                loop {
                    tokio::select! {
                        biased;
                        processed = &mut work => break processed,
                        Some((number, ask)) = asked.recv() => link.put(&ToHost::Ask(number, ask), Vec::new())?,
                        said = link.next() => match said? {
                            Some(ToGuest::Answer(number, answer)) => {
                                let socket = match &answer {
                                    Answer::Dialled(Ok(())) => Some(link.descriptor()?),
                                    _ => None,
                                };
                                asks.answer(number, answer, socket);
                            }
                            _ => return Err(Gone),
                        },
                    }
                }
            }
        };
        let Processed { result, log } = processed;
        link.put(&ToHost::Done(Box::new(Done { result, log })), Vec::new())?;
        Ok(link.flushed().await?)
    }

    fn grants(&self, told: &Told, asks: &Asks, secrets: std::collections::BTreeMap<String, Option<Vec<u8>>>) -> Grants {
        let values = secrets
            .into_iter()
            .map(|(name, value)| (name, value.map(SecretValue::new)));
        Grants {
            secrets: Arc::new(Granted::new(values.collect())),
            http: told
                .http
                .clone()
                .map(|grants| Egress::through(grants, Arc::new(asks.clone()) as Arc<dyn Dialler>)),
            models: told.models.as_ref().map(|granted| {
                Arc::new(ModelAccess {
                    models: Arc::new(asks.clone()) as Arc<dyn Models>,
                    tenant: self.tenant.clone(),
                    granted: granted.iter().cloned().collect(),
                })
            }),
        }
    }
}
