//! Makes what runs on this node match the catalog, Swarm by Swarm.
//!
//! ```text
//!   catalog ──settle──► stages (started, replanned, left to drain) ──► route table (what the Gateway sees)
//! ```
//! Order matters: a new stage starts before the routes that feed it appear, and a route disappears before its stages stop.
//! Modules are made ready before the lock is taken and stages are stopped after it is given back, so one Swarm's compile or long
//! batch holds up no other. Lock order: `writes`, then `fleet`.

mod drain;
mod ends;
mod metrics;
mod modules;
mod plans;
mod residents;
mod tenant_bee;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context as _;
use skep_engine::egress::SystemResolver;
use skep_engine::{BeeSettings, Egress};
use skep_gateway::{Feed, Open, Route, RouteTable};
use skep_model::id::{CommitId, Digest};
use skep_model::name::{StageName, TenantId};
use skep_model::predict::Models;
use skep_model::scope::{Scope, SwarmId, SwarmPath};
use skep_model::swarm::{Stage, Swarm};
use skep_stage::{Bee, Running, Seams};
use skep_topic::lane::Lane;
use skep_topic::{Error, Rescaled, TopicSpec};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::builtin::BuiltinBee;
use crate::catalog::{Catalogs, Hold, SwarmRecord, swarm_of};
use crate::isolation::Isolation;
use crate::models::NodeModels;
use crate::quotas::{Account, Quotas};
use crate::secrets::Vault;
use crate::stats::Stats;
use plans::{End, Ends, Metered, Nobody, UnderWay, plan};

pub use drain::Remains;
pub use metrics::ModuleMetrics;
pub use modules::{Modules, Refused};
pub(crate) use plans::topic_spec;
pub(crate) use tenant_bee::TenantBee;

/// How often a Swarm that cannot run is tried again. Nothing is tried while all run.
const MEND_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whose processes are not needed any more.
const PROCESSES_LOOK: Duration = Duration::from_secs(2);

pub struct Supervisor {
    pub catalogs: Catalogs,
    pub modules: Arc<Modules>,
    pub models: Arc<NodeModels>,
    pub vault: Arc<Vault>,
    quotas: Arc<Quotas>,
    /// Held by whoever reads the catalog, decides and writes: apply, push, deletions, the end of a drain.
    pub writes: Mutex<()>,
    seams: Arc<Seams>,
    stats: Arc<Stats>,
    routes: watch::Sender<Arc<RouteTable>>,
    fleet: Mutex<Fleet>,
    /// Hashes of the records that reconciliations settled Swarms by: where there are many, a change of one is not to cost a look at each. Of
    /// their bytes, not of their versions, which a store that was taken back gives again.
    settled: Mutex<HashMap<SwarmPath, u64>>,
    hasher: RandomState,
    /// Why a Swarm does not run as it should; the last attempt's word.
    troubles: std::sync::Mutex<HashMap<SwarmPath, String>>,
    troubled: Notify,
    /// Of Swarms that can end and have not.
    ending: std::sync::Mutex<HashMap<SwarmPath, ends::Progress>>,
    /// Whether Bees run on this node, if not those of each tenant.
    works: bool,
    /// Stages that end, drains and mending.
    tasks: TaskTracker,
    end: CancellationToken,
}

/// What runs on this node.
#[derive(Default)]
struct Fleet {
    /// Set once: nothing starts any more.
    stopped: bool,
    swarms: HashMap<SwarmPath, Live>,
    /// Tells one removal of a stage from the next.
    removals: u64,
}

/// A Swarm as it runs here.
struct Live {
    id: SwarmId,
    revision: u64,
    swarm: Swarm,
    open: Open,
    /// Some stage is paused: what lies in memory cannot wait, so nothing new goes there.
    held: bool,
    /// Its Bees may run here.
    works: bool,
    /// All of its streams have ended, says the catalog.
    ended: bool,
    /// Topics have as many partitions as the revision says.
    scaled: bool,
    stages: BTreeMap<StageName, LiveStage>,
    draining: BTreeMap<StageName, Draining>,
    /// Removed stages that are drained but for dead letters, which stay until they are discarded. They do not run.
    kept: BTreeSet<StageName>,
}

struct LiveStage {
    running: Running,
    lane: Arc<Lane>,
    /// What writers hold. The stage's own plan has another one, so the count tells whether a writer is left.
    topic: Arc<TopicSpec>,
    /// Addresses of earlier revisions that a batch or call under way may still hold.
    past: Vec<Weak<TopicSpec>>,
    under_way: UnderWay,
}

impl Fleet {
    /// One count over all revisions of a stage: a batch of an earlier one may be under way.
    fn under_way(&self, name: &SwarmPath, stage: &StageName) -> UnderWay {
        let live = self.swarms.get(name);
        let at = live.and_then(|l| l.stages.get(stage).or_else(|| l.draining.get(stage).map(|d| &d.live)));
        at.map(|l| Arc::clone(&l.under_way)).unwrap_or_default()
    }
}

struct Draining {
    removal: u64,
    live: LiveStage,
}

impl LiveStage {
    /// Whether somebody may still write to it: a route, a plan, or a call or batch under way on an earlier one. `quiet`: so many that
    /// hold its address write nothing any more.
    fn has_writers_beside(&self, quiet: usize) -> bool {
        Arc::strong_count(&self.topic) > 1 + quiet || self.past.iter().any(|old| old.strong_count() > 0)
    }

    /// How often its plan holds an address.
    fn addresses_of(&self, topic: &Arc<TopicSpec>) -> usize {
        let plan = self.running.plan();
        plan.destinations().filter(|d| Arc::ptr_eq(&d.topic, topic)).count()
    }

    /// Calls on the in-memory lane that wait, and inputs that the Bee is busy with.
    fn in_memory(&self) -> (usize, usize) {
        let under_way = self.under_way.load(std::sync::atomic::Ordering::Relaxed);
        (self.lane.len(), under_way)
    }
}

impl Live {
    /// What of it runs and what it lets in, as the record says.
    fn hold(&mut self, record: &SwarmRecord) {
        self.open = match record.hold {
            _ if record.deleting => Open::Deleting,
            None => Open::Yes,
            Some(Hold::Draining) => Open::Draining,
            Some(Hold::Paused) => Open::Paused,
        };
        self.held = false;
        self.ended = record.ended_ms.is_some();
        for (name, stage) in &self.stages {
            let paused = record.is_paused(name);
            self.held |= paused;
            stage.running.pause(paused);
        }
    }

    fn into_stages(self) -> impl Iterator<Item = LiveStage> {
        let draining = self.draining.into_values().map(|d| d.live);
        self.stages.into_values().chain(draining)
    }

    fn all(&self) -> impl Iterator<Item = &LiveStage> {
        self.stages.values().chain(self.draining.values().map(|d| &d.live))
    }

    fn runs(&self, record: &SwarmRecord, works: bool) -> bool {
        let left = |name: &StageName| self.draining.contains_key(name) || self.kept.contains(name);
        record.is(&self.id)
            && self.revision == record.revision
            && self.works == works
            && record.draining.keys().all(left)
    }
}

/// Which modules a settling found ready, or why one is not.
type Loaded = HashMap<Digest, Result<(), String>>;

impl Supervisor {
    #[must_use]
    pub fn new(
        catalogs: Catalogs,
        modules: Arc<Modules>,
        (vault, quotas, models): (Arc<Vault>, Arc<Quotas>, Arc<NodeModels>),
        seams: Arc<Seams>,
        stats: Arc<Stats>,
        routes: watch::Sender<Arc<RouteTable>>,
        works: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            catalogs,
            modules,
            vault,
            quotas,
            models,
            writes: Mutex::default(),
            seams,
            stats,
            routes,
            fleet: Mutex::default(),
            settled: Mutex::default(),
            hasher: RandomState::new(),
            troubles: std::sync::Mutex::default(),
            troubled: Notify::new(),
            ending: std::sync::Mutex::default(),
            works,
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
        })
    }

    /// Brings every Swarm in line with the catalog. What cannot be is told in [`Supervisor::trouble`] and tried again later.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn reconcile(self: &Arc<Self>) -> anyhow::Result<()> {
        self.vault.look().await?;
        self.look_at_models().await?;
        let mut settled = self.settled.lock().await;
        let mut stored = BTreeMap::new();
        for (key, record) in self.catalogs.stored_swarms().await? {
            stored.insert(swarm_of(&key)?, self.hasher.hash_one(&record.value));
        }
        let troubled = self.troubled_swarms();
        let mut names: BTreeSet<SwarmPath> = stored.keys().cloned().collect();
        {
            let fleet = self.fleet.lock().await;
            names.extend(fleet.swarms.keys().cloned());
            names.retain(|name| {
                let same = stored.get(name).is_some_and(|hash| settled.get(name) == Some(hash));
                let live = fleet.swarms.get(name);
                let runs = live.is_some_and(|live| live.scaled && live.works == self.works_for(name.tenant()));
                !same || !runs || troubled.contains(name)
            });
        }
        for name in names {
            // What it said before it was looked at: if that is old by now, it is looked at again.
            settled.remove(&name);
            self.settle(&name).await?;
            if let Some(hash) = stored.get(&name) {
                settled.insert(name, *hash);
            }
        }
        Ok(())
    }

    /// Follows what names of models mean, and who has models.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn look_at_models(&self) -> anyhow::Result<()> {
        if self.models.look().await? {
            let fleet = self.fleet.lock().await;
            if !fleet.stopped {
                self.publish_models();
            }
        }
        Ok(())
    }

    /// Brings one Swarm in line with the catalog.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn settle(self: &Arc<Self>, name: &SwarmPath) -> anyhow::Result<()> {
        let mut loaded = Loaded::new();
        let catalog = self.catalogs.of(name.tenant());
        loop {
            let isolation = self.look_at_isolation(name.tenant()).await?;
            // What may take long comes first, without the lock.
            let works = self.works_for(name.tenant());
            if works
                && let Some(found) = catalog.swarm(name.name()).await?
                && !self.is_running(name, &found.record, works).await
            {
                for hex in found.record.digests() {
                    let Ok(digest) = hex.parse::<Digest>() else { continue };
                    if let Entry::Vacant(empty) = loaded.entry(digest) {
                        empty.insert(
                            self.modules
                                .ready(name.tenant(), isolation, digest)
                                .await
                                .map_err(|e| format!("{e:#}")),
                        );
                    }
                }
            }
            let mut fleet = self.fleet.lock().await;
            if fleet.stopped {
                return Ok(());
            }
            // Read again under the lock: whoever swaps last has read last, so a revision never gives way to an older one.
            let Some(found) = catalog.swarm(name.name()).await? else {
                let gone = fleet.swarms.remove(name);
                self.publish_routes(&fleet, name.tenant());
                drop(fleet);
                self.end_stages(gone.into_iter().flat_map(Live::into_stages));
                self.say(name, None);
                return Ok(());
            };
            let record = found.record;
            // A Swarm that is being deleted takes no input, whatever else is in its way.
            if let Some(live) = fleet.swarms.get_mut(name)
                && record.is(&live.id)
            {
                live.hold(&record);
            }
            if fleet.swarms.get(name).is_some_and(|live| live.runs(&record, works)) {
                self.publish_routes(&fleet, name.tenant());
                let scaled = self.scale(&mut fleet, name).await;
                drop(fleet);
                self.say(name, scaled.err().map(|e| format!("{e:#}")));
                return Ok(());
            }
            let new = |hex: &str| hex.parse::<Digest>().is_ok_and(|d| !loaded.contains_key(&d));
            if works && record.digests().any(new) {
                // Another revision came meanwhile.
                continue;
            }
            let before = match fleet.swarms.get(name) {
                Some(live) if !record.is(&live.id) => fleet.swarms.remove(name),
                _ => None,
            };
            let mut result = self.swap(&mut fleet, name, &record, &loaded, works);
            self.publish_routes(&fleet, name.tenant());
            if result.is_ok() {
                result = self.scale(&mut fleet, name).await;
            }
            drop(fleet);
            self.end_stages(before.into_iter().flat_map(Live::into_stages));
            if let Err(e) = &result {
                tracing::error!(swarm = %name, error = format!("{e:#}"), "Swarm cannot run");
            }
            self.say(name, result.err().map(|e| format!("{e:#}")));
            return Ok(());
        }
    }

    async fn is_running(&self, name: &SwarmPath, record: &SwarmRecord, works: bool) -> bool {
        let fleet = self.fleet.lock().await;
        fleet.swarms.get(name).is_some_and(|l| l.runs(record, works))
    }

    /// Whether a tenant's Bees run on this node: see [`skep_stage::Pins`].
    #[must_use]
    pub fn works_for(&self, tenant: &TenantId) -> bool {
        let workers = self.seams.workers.borrow();
        self.works && workers.pins.fits(&workers.me, tenant)
    }

    /// Why no node runs what a tenant has, if so.
    #[must_use]
    pub fn homeless(&self, tenant: &TenantId) -> Option<String> {
        let workers = self.seams.workers.borrow();
        let mut all = workers.all.iter();
        if workers.pins.tenants.is_empty() || all.any(|node| workers.pins.fits(node, tenant)) {
            return None;
        }
        Some(match workers.pins.tenants.get(tenant) {
            Some(label) => format!("no node here has the label {label}, to which the tenant is pinned"),
            None => "all nodes here are for tenants that are pinned to them".to_owned(),
        })
    }

    /// Where a tenant's Bees run, from its record: what is told of tenants may come later than their first Swarm.
    pub async fn look_at_isolation(&self, tenant: &TenantId) -> anyhow::Result<Isolation> {
        let account = self.quotas.of(tenant);
        if let Some(found) = self.catalogs.tenant(tenant).await? {
            account.isolate(found.record.isolation);
            account.share.bear(found.record.created_ms);
        }
        Ok(account.isolation())
    }

    fn say(&self, name: &SwarmPath, trouble: Option<String>) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble {
            None => {
                troubles.remove(name);
            }
            Some(why) => {
                troubles.insert(name.clone(), why);
                self.troubled.notify_one();
            }
        }
    }

    #[must_use]
    pub fn trouble(&self, name: &SwarmPath) -> Option<String> {
        self.troubles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    fn troubled_swarms(&self) -> Vec<SwarmPath> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.keys().cloned().collect()
    }

    /// A tenant pushed a module: Swarms of it that cannot run may have waited for it.
    pub async fn pushed(self: &Arc<Self>, tenant: &TenantId, digest: Digest) -> anyhow::Result<()> {
        self.modules.forgive(tenant, digest);
        for name in self
            .troubled_swarms()
            .into_iter()
            .filter(|name| name.tenant() == tenant)
        {
            self.settle(&name).await?;
        }
        Ok(())
    }

    /// Lets go of modules that nobody calls, and of processes whose tenants have none any more, until the node stops.
    pub fn tidy(self: &Arc<Self>) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let modules = async {
                loop {
                    sleep(residents::SWEEP_EVERY).await;
                    this.modules.residents().sweep();
                }
            };
            let processes = async {
                loop {
                    sleep(PROCESSES_LOOK).await;
                    let apart = |tenant: &TenantId| this.quotas.isolation(tenant) == Isolation::Process;
                    this.modules.processes().retain(apart);
                }
            };
            let work = async {
                tokio::join!(modules, processes);
            };
            tokio::select! {
                () = this.end.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Tries Swarms that cannot run again and again, until the node stops.
    pub fn mend(self: &Arc<Self>) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let work = async {
                loop {
                    this.troubled.notified().await;
                    loop {
                        let names = this.troubled_swarms();
                        if names.is_empty() {
                            break;
                        }
                        sleep(MEND_EVERY).await;
                        for name in names {
                            if let Err(e) = this.settle(&name).await {
                                tracing::warn!(swarm = %name, error = format!("{e:#}"), "cannot look after a Swarm");
                            }
                        }
                    }
                }
            };
            tokio::select! {
                () = this.end.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Starts, replans and sets aside; the caller publishes the routes. An error after the swap tells what does not drain.
    fn swap(
        self: &Arc<Self>,
        fleet: &mut Fleet,
        name: &SwarmPath,
        record: &SwarmRecord,
        loaded: &Loaded,
        works: bool,
    ) -> anyhow::Result<()> {
        // Every Bee before anything changes: a module that is missing must not leave half a revision.
        let mut bees = BTreeMap::new();
        for stage in here(&record.swarm) {
            let digest = record.digest(&stage.name)?;
            let under_way = fleet.under_way(name, &stage.name);
            let read = !record.swarm.readers(&stage.name).is_empty();
            let bee = self.bee_of(name, (stage, read), digest, loaded, (under_way, works))?;
            bees.insert(stage.name.clone(), bee);
        }
        let id = record.id(&Scope::of(name.tenant().clone()))?;
        let old = match fleet.swarms.remove(name) {
            Some(live) if live.revision > record.revision => {
                fleet.swarms.insert(name.clone(), live);
                return Ok(());
            }
            other => other,
        };
        let (mut before, mut draining, mut kept) = old.map(|o| (o.stages, o.draining, o.kept)).unwrap_or_default();
        // A stage that came back before it was drained is taken back with all that it has.
        for stage in here(&record.swarm) {
            kept.remove(&stage.name);
            if let Some(back) = draining.remove(&stage.name) {
                before.insert(stage.name.clone(), back.live);
            }
        }
        // Addresses of all stages first, for plans name each other's.
        let mut ends: Ends = here(&record.swarm)
            .map(|stage| {
                let born = record.born(&stage.name);
                (stage.name.clone(), end_of(&id, stage, born, before.get(&stage.name)))
            })
            .collect();
        for (name, left) in &record.draining {
            let at = draining.get(name).map(|d| &d.live).or_else(|| before.get(name));
            ends.insert(name.clone(), end_of(&id, &left.stage, record.born(name), at));
        }
        let mut stages = BTreeMap::new();
        for stage in here(&record.swarm) {
            let (digest, bee, under_way) = bees.remove(&stage.name).context("every stage has its Bee")?;
            let born = record.born(&stage.name);
            let plan = plan(
                stage,
                born,
                digest,
                bee,
                (&record.swarm.readers(&stage.name), record.swarm.door(stage)),
                (&id, record.swarm.bounded()),
                &ends,
            );
            let (was, paused) = (before.remove(&stage.name), record.is_paused(&stage.name));
            let live = self.start_or_replan(was, plan, &ends[&stage.name], under_way, paused);
            stages.insert(stage.name.clone(), live);
        }
        // What the revision no longer has goes on as it was, and drains.
        let mut trouble = None;
        let mut removals = Vec::new();
        for (name, left) in &record.draining {
            if draining.contains_key(name) || kept.contains(name) {
                continue;
            }
            let live = match before.remove(name) {
                Some(live) => live,
                None => match left.digest().and_then(|digest| {
                    let stage = (&left.stage, !left.readers.is_empty());
                    self.bee_of(&id.path(), stage, digest, loaded, (UnderWay::default(), works))
                }) {
                    Ok((digest, bee, under_way)) => {
                        let plan = plan(
                            &left.stage,
                            record.born(name),
                            digest,
                            bee,
                            (&left.readers, left.door.clone()),
                            (&id, record.swarm.bounded()),
                            &ends,
                        );
                        self.start_or_replan(None, plan, &ends[name], under_way, false)
                    }
                    Err(e) => {
                        trouble = Some(e.context("a removed stage cannot drain"));
                        continue;
                    }
                },
            };
            fleet.removals += 1;
            let removal = fleet.removals;
            removals.push((name.clone(), removal));
            draining.insert(name.clone(), Draining { removal, live });
        }
        self.end_stages(before.into_values());
        let mut live = Live {
            id: id.clone(),
            revision: record.revision,
            swarm: record.swarm.clone(),
            open: Open::Yes,
            held: false,
            works,
            ended: false,
            scaled: false,
            stages,
            draining,
            kept,
        };
        live.hold(record);
        fleet.swarms.insert(name.clone(), live);
        // It may have ended before this node began.
        self.seams.rest.ring(name.clone());
        for (stage, removal) in removals {
            self.tasks
                .spawn(Arc::clone(self).drain_removed(id.clone(), stage, removal));
        }
        trouble.map_or(Ok(()), Err)
    }

    fn bee_of(
        &self,
        swarm: &SwarmPath,
        (stage, read): (&Stage, bool),
        digest: Digest,
        loaded: &Loaded,
        (under_way, works): (UnderWay, bool),
    ) -> anyhow::Result<(Digest, Arc<dyn Bee>, UnderWay)> {
        if !works {
            return Ok((digest, Arc::new(Nobody), under_way));
        }
        let account = self.quotas.of(swarm.tenant());
        let meter = account.meter(&format!("{}/{}", swarm.name(), stage.name));
        let models = Arc::clone(&self.models) as Arc<dyn Models>;
        let clock = Arc::clone(&self.seams.clock);
        if let Some(builtin) = BuiltinBee::of(stage, swarm.tenant(), read, models, clock) {
            let bee = Metered {
                bee: builtin,
                under_way: Arc::clone(&under_way),
                meter,
                account,
            };
            return Ok((digest, Arc::new(bee), under_way));
        }
        let settings = BeeSettings {
            secrets: self.vault.grant(swarm.tenant(), &stage.secrets),
            http: egress(swarm.tenant(), stage, &account),
            models: self.models.grant(swarm.tenant(), &stage.models),
            share: Arc::clone(&account.share),
            meter: Arc::clone(&meter.engine),
            ..BeeSettings::of(stage, digest)
        };
        match loaded.get(&digest) {
            Some(Ok(())) => {}
            Some(Err(why)) => anyhow::bail!("stage `{}`: {why}", stage.name),
            None => anyhow::bail!("stage `{}`: module {digest} was not looked for", stage.name),
        }
        self.modules
            .check(&settings)
            .with_context(|| format!("stage `{}`", stage.name))?;
        let bee = Metered {
            bee: TenantBee::new(
                &self.modules,
                Arc::clone(&account),
                swarm.tenant(),
                &stage.bee,
                settings,
            ),
            under_way: Arc::clone(&under_way),
            meter,
            account,
        };
        Ok((digest, Arc::new(bee), under_way))
    }

    fn start_or_replan(
        &self,
        before: Option<LiveStage>,
        plan: Arc<skep_stage::Plan>,
        end: &End,
        under_way: UnderWay,
        paused: bool,
    ) -> LiveStage {
        let Some(mut live) = before else {
            return LiveStage {
                running: skep_stage::start(plan, &end.lane, &self.seams, paused),
                lane: Arc::clone(&end.lane),
                topic: Arc::clone(&end.topic),
                past: Vec::new(),
                under_way,
            };
        };
        live.running.replan(plan);
        live.past.retain(|old| old.strong_count() > 0);
        if !Arc::ptr_eq(&live.topic, &end.topic) {
            live.past.push(Arc::downgrade(&live.topic));
            live.topic = Arc::clone(&end.topic);
        }
        live.under_way = under_way;
        live
    }

    /// What a tenant's subjects feed, from now on. Under the fleet's lock, so that no older table comes last.
    fn publish_routes(&self, fleet: &Fleet, tenant: &TenantId) {
        let mut table = RouteTable::clone(&self.routes.borrow());
        let mut routes = Vec::new();
        for live in fleet.swarms.values().filter(|live| live.id.tenant() == tenant) {
            for subject in live.swarm.subjects() {
                // An edge's door, and nobody's here.
                if live.swarm.placed_door(&subject).is_some() {
                    continue;
                }
                // Lanes lie in memory: without Bees here there is nobody to read them.
                let pure = live.swarm.pure(&subject) && live.works && !live.held;
                let feeds = live
                    .swarm
                    .fed_by(&subject)
                    .into_iter()
                    .filter_map(|(stage, when)| {
                        let at = live.stages.get(&stage.name)?;
                        Some(Feed {
                            topic: Arc::clone(&at.topic),
                            stage: stage.name.clone(),
                            key: stage.key.clone(),
                            lane: pure.then(|| Arc::clone(&at.lane)),
                            when,
                        })
                    })
                    .collect();
                let before = table.get(tenant, subject.as_str());
                let load = before.map(|route| Arc::clone(&route.load)).unwrap_or_default();
                routes.push(Arc::new(Route {
                    swarm: live.id.clone(),
                    subject,
                    feeds,
                    pure,
                    open: live.open,
                    load,
                    purse: Arc::clone(&self.quotas.of(tenant).purse),
                }));
            }
        }
        table.put(tenant, routes);
        self.routes.send_replace(Arc::new(table));
    }

    /// Who may call models. Under the fleet's lock, as above.
    fn publish_models(&self) {
        let mut table = RouteTable::clone(&self.routes.borrow());
        let purse = |tenant: TenantId| {
            let purse = Arc::clone(&self.quotas.of(&tenant).purse);
            (tenant, purse)
        };
        table.welcome(self.models.tenants().into_iter().map(purse));
        self.routes.send_replace(Arc::new(table));
    }

    /// Stages end after their batches under way; nobody waits for them but the node's stop.
    fn end_stages(&self, stages: impl Iterator<Item = LiveStage>) {
        for stage in stages {
            let stats = Arc::clone(&self.stats);
            self.tasks.spawn(async move {
                stage.running.stop().await;
                stats.forget(&stage.topic.id);
            });
        }
    }

    /// Gives topics the number of partitions that the revision wants, and owners to those that were before, which work off what is
    /// there. Any node may do it, so it is done whoever dies after the apply.
    async fn scale(&self, fleet: &mut Fleet, name: &SwarmPath) -> anyhow::Result<()> {
        let Some(live) = fleet.swarms.get_mut(name).filter(|live| !live.scaled) else {
            return Ok(());
        };
        let backend = &self.seams.backend;
        for (stage, its) in &live.stages {
            let id = CommitId::random(self.seams.entropy.as_ref());
            let mut layout = match backend.layout(&its.topic.id).await {
                Ok(Some(layout)) => layout,
                Ok(None) | Err(Error::Gone) => continue,
                Err(e) => return Err(e.into()),
            };
            if layout.partitions != its.topic.partitions {
                match backend.rescale(&its.topic, id).await {
                    Ok(Rescaled::Begun) => tracing::info!(
                        swarm = %name, %stage, from = layout.partitions, to = its.topic.partitions, "a rescale begins"
                    ),
                    Ok(Rescaled::Already) | Err(Error::Gone) => {}
                    // Another node may have begun it between the two.
                    Ok(Rescaled::Busy) => {
                        let now = backend.layout(&its.topic.id).await?;
                        match now.filter(|now| now.partitions == its.topic.partitions) {
                            Some(begun) => layout = begun,
                            None => anyhow::bail!("stage `{stage}` is still being rescaled; the next number follows"),
                        }
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            its.running.own(layout.owners.max(its.topic.partitions));
        }
        live.scaled = true;
        Ok(())
    }

    /// The partitions that this node owns at this moment, by `swarm/stage`.
    pub async fn owned(&self) -> BTreeMap<String, Vec<u16>> {
        let fleet = self.fleet.lock().await;
        let stages = fleet.swarms.values().flat_map(Live::all);
        let owned = stages.map(|live| (&live.topic.id, live.running.owned()));
        owned
            .filter(|(_, partitions)| !partitions.is_empty())
            .map(|(id, partitions)| (format!("{}/{}", id.swarm().path(), id.stage()), partitions))
            .collect()
    }

    /// Stops everything, after the batches under way.
    pub async fn stop(&self) {
        let swarms = {
            let mut fleet = self.fleet.lock().await;
            fleet.stopped = true;
            std::mem::take(&mut fleet.swarms)
        };
        self.end.cancel();
        self.modules.processes().stopping();
        self.routes.send_replace(Arc::new(RouteTable::default()));
        self.end_stages(swarms.into_values().flat_map(Live::into_stages));
        self.tasks.close();
        self.tasks.wait().await;
        self.modules.processes().stop().await;
    }
}

/// The stages that run on full nodes; the others run on edges.
fn here(swarm: &Swarm) -> impl Iterator<Item = &Stage> {
    swarm.stages.iter().filter(|stage| stage.place.is_none())
}

/// Where a stage is reached: the address that writers have, if it says the same, and its lane.
fn end_of(id: &SwarmId, stage: &Stage, born: u64, live: Option<&LiveStage>) -> End {
    let spec = topic_spec(id, stage, born);
    let topic = live.filter(|l| *l.topic == spec).map(|l| Arc::clone(&l.topic));
    End {
        topic: topic.unwrap_or_else(|| Arc::new(spec)),
        lane: live.map_or_else(Lane::new, |l| Arc::clone(&l.lane)),
        key: stage.key.clone(),
    }
}

/// Where a stage's Bee may send requests. What is private is the operator's network, which no other tenant's manifest opens.
fn egress(tenant: &TenantId, stage: &Stage, account: &Account) -> Option<Arc<Egress>> {
    let grants: Vec<_> = stage.http.iter().cloned().collect();
    let own = *tenant == TenantId::default_tenant();
    (!grants.is_empty()).then(|| {
        let resolver = Arc::new(SystemResolver);
        Egress::new(grants, own, resolver, Arc::clone(&account.share))
    })
}
