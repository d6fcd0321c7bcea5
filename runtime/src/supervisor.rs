//! Makes what runs on this node match the catalog: one task's worth of work under one lock, so that two applies never interleave.
//!
//! ```text
//!   catalog ──reconcile──► stages (started, replanned, stopped) ──► route table (what the Gateway sees)
//! ```
//! Order matters: a new stage starts before the routes that feed it appear, and a route disappears before its stages stop.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use skep_engine::{Artifact, ArtifactCache, BeeSettings, CompileError, Compiler, Engine, Module};
use skep_gateway::{Feed, Route, RouteTable};
use skep_model::id::Digest;
use skep_model::name::{StageName, SwarmName};
use skep_model::scope::SwarmId;
use skep_model::step::{Batch, Processed};
use skep_model::swarm::{Stage, StageInput, Swarm};
use skep_stage::{Bee, Destination, Plan, Running, Seams};
use skep_topic::TopicSpec;
use skep_topic::lane::Lane;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};

use crate::catalog::{Catalog, SwarmRecord};
use crate::stats::Stats;
use crate::store::ModuleStore;

/// How often a drain looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(50);

pub struct Supervisor {
    pub catalog: Catalog,
    store: ModuleStore,
    engine: Arc<Engine>,
    compiler: Compiler,
    cache: Arc<ArtifactCache>,
    seams: Arc<Seams>,
    stats: Arc<Stats>,
    routes: watch::Sender<Arc<RouteTable>>,
    swarms: Mutex<HashMap<SwarmName, Live>>,
    /// Loaded modules, as long as a stage holds them.
    modules: Mutex<HashMap<Digest, Weak<Module>>>,
    /// Why a Swarm does not run as it should; the last reconciliation's word.
    troubles: std::sync::Mutex<HashMap<SwarmName, String>>,
}

/// A Swarm as it runs here.
struct Live {
    id: SwarmId,
    revision: u64,
    swarm: Swarm,
    stages: BTreeMap<StageName, LiveStage>,
}

struct LiveStage {
    running: Running,
    lane: Arc<Lane>,
    topic: Arc<TopicSpec>,
}

/// Why an upload is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Load(#[from] skep_engine::Error),
}

/// Joins engine and stage.
struct WasmBee(skep_engine::Bee);

#[async_trait]
impl Bee for WasmBee {
    async fn process(&self, batch: Batch) -> Processed {
        self.0.process(batch).await
    }
}

impl Supervisor {
    #[must_use]
    #[expect(
        clippy::too_many_arguments,
        reason = "built once, by the node, from the parts that it owns"
    )]
    pub fn new(
        catalog: Catalog,
        store: ModuleStore,
        engine: Arc<Engine>,
        compiler: Compiler,
        cache: Arc<ArtifactCache>,
        seams: Arc<Seams>,
        stats: Arc<Stats>,
        routes: watch::Sender<Arc<RouteTable>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            catalog,
            store,
            engine,
            compiler,
            cache,
            seams,
            stats,
            routes,
            swarms: Mutex::default(),
            modules: Mutex::default(),
            troubles: std::sync::Mutex::default(),
        })
    }

    /// The module of a digest: as it is loaded, from the artifact cache, or compiled anew from the store.
    pub async fn load(&self, digest: Digest) -> anyhow::Result<Arc<Module>> {
        if let Some(module) = self.loaded(digest).await {
            return Ok(module);
        }
        if let Some(artifact) = self.cached(digest).await {
            match self.engine.load(digest, artifact).await {
                Ok(module) => return Ok(self.keep(digest, module).await),
                Err(e) => tracing::warn!(%digest, error = %e, "cached artifact does not load, compiling again"),
            }
        }
        let bytes = self.store.get(&digest).await?;
        Ok(self.admit(digest, bytes).await?)
    }

    /// Compiles a component, unless this node has, and loads it: an upload is accepted when this succeeds, so what was accepted runs.
    pub async fn admit(&self, digest: Digest, bytes: skep_model::Bytes) -> Result<Arc<Module>, Refused> {
        if let Some(module) = self.loaded(digest).await {
            return Ok(module);
        }
        let artifact = match self.cached(digest).await {
            Some(artifact) => artifact,
            None => {
                let artifact = self.compiler.compile(bytes).await?;
                let (cache, copy) = (Arc::clone(&self.cache), artifact.clone());
                let kept = tokio::task::spawn_blocking(move || cache.put(digest, &copy)).await;
                // The cache saves time, nothing else: a node that cannot write it still runs the module.
                if let Ok(Err(e)) = kept {
                    tracing::warn!(%digest, error = %e, "cannot keep a compiled module");
                }
                artifact
            }
        };
        let module = self.engine.load(digest, artifact).await?;
        Ok(self.keep(digest, module).await)
    }

    async fn loaded(&self, digest: Digest) -> Option<Arc<Module>> {
        self.modules.lock().await.get(&digest).and_then(Weak::upgrade)
    }

    async fn keep(&self, digest: Digest, module: Module) -> Arc<Module> {
        let mut modules = self.modules.lock().await;
        modules.retain(|_, weak| weak.strong_count() > 0);
        // Two loads of one module at once: the first one kept serves both.
        if let Some(first) = modules.get(&digest).and_then(Weak::upgrade) {
            return first;
        }
        let module = Arc::new(module);
        modules.insert(digest, Arc::downgrade(&module));
        module
    }

    async fn cached(&self, digest: Digest) -> Option<Artifact> {
        let cache = Arc::clone(&self.cache);
        match tokio::task::spawn_blocking(move || cache.get(digest)).await {
            Ok(Ok(found)) => found,
            Ok(Err(e)) => {
                tracing::warn!(%digest, error = %e, "cannot read the artifact cache");
                None
            }
            Err(_) => None,
        }
    }

    /// Brings every Swarm in line with the catalog. What cannot be is told in [`Supervisor::trouble`] and tried at the next call.
    pub async fn reconcile(&self) -> anyhow::Result<()> {
        let wanted = self.catalog.swarms().await?;
        let mut live = self.swarms.lock().await;
        let gone: Vec<SwarmName> = live
            .iter()
            .filter(|(name, l)| {
                wanted
                    .get(*name)
                    .is_none_or(|r| r.incarnation != l.id.incarnation().to_string())
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(gone) = live.remove(&name) {
                self.publish_routes(&live, &wanted);
                stop_all(gone).await;
            }
        }
        for (name, record) in &wanted {
            let result = self.bring_up(&mut live, name, record).await;
            let mut troubles = self.troubles.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match result {
                Ok(()) => troubles.remove(name),
                Err(e) => {
                    tracing::error!(swarm = %name, error = format!("{e:#}"), "Swarm cannot run");
                    troubles.insert(name.clone(), format!("{e:#}"))
                }
            };
        }
        self.publish_routes(&live, &wanted);
        Ok(())
    }

    #[must_use]
    pub fn trouble(&self, name: &SwarmName) -> Option<String> {
        self.troubles
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    async fn bring_up(
        &self,
        live: &mut HashMap<SwarmName, Live>,
        name: &SwarmName,
        record: &SwarmRecord,
    ) -> anyhow::Result<()> {
        if live.get(name).is_some_and(|l| l.revision == record.revision) {
            return Ok(());
        }
        // Load everything before anything changes: a module that is missing must not leave half a revision.
        let mut bees = BTreeMap::new();
        for stage in &record.swarm.stages {
            let digest = record.digest(&stage.name)?;
            let module = self
                .load(digest)
                .await
                .with_context(|| format!("stage `{}`", stage.name))?;
            let bee = module
                .bee(&stage.bee, BeeSettings::of(stage, digest))
                .with_context(|| format!("stage `{}`", stage.name))?;
            bees.insert(stage.name.clone(), (digest, Arc::new(WasmBee(bee)) as Arc<dyn Bee>));
        }
        let id = record.id(self.catalog.scope())?;
        let mut old = live.remove(name);
        let mut kept: BTreeMap<StageName, LiveStage> =
            old.as_mut().map(|o| std::mem::take(&mut o.stages)).unwrap_or_default();
        // Topics and lanes of all stages first, for plans name each other's.
        let ends: BTreeMap<StageName, (Arc<TopicSpec>, Arc<Lane>)> = record
            .swarm
            .stages
            .iter()
            .map(|stage| {
                let lane = kept.get(&stage.name).map_or_else(Lane::new, |k| Arc::clone(&k.lane));
                (stage.name.clone(), (Arc::new(topic_spec(&id, stage)), lane))
            })
            .collect();
        let mut stages = BTreeMap::new();
        for stage in &record.swarm.stages {
            let (topic, lane) = &ends[&stage.name];
            let (digest, bee) = bees.remove(&stage.name).context("every stage has its Bee")?;
            let plan = Arc::new(plan(&record.swarm, stage, topic, digest, bee, &ends));
            let running = match kept.remove(&stage.name) {
                Some(before) => {
                    before.running.replan(plan);
                    before.running
                }
                None => skep_stage::start(plan, lane, &self.seams),
            };
            stages.insert(
                stage.name.clone(),
                LiveStage {
                    running,
                    lane: Arc::clone(lane),
                    topic: Arc::clone(topic),
                },
            );
        }
        live.insert(
            name.clone(),
            Live {
                id,
                revision: record.revision,
                swarm: record.swarm.clone(),
                stages,
            },
        );
        // Stages that the revision no longer has drain before their inbox goes; nothing feeds them any more.
        for (_, removed) in kept {
            let seams = Arc::clone(&self.seams);
            tokio::spawn(async move { drain_removed(removed, &seams).await });
        }
        Ok(())
    }

    fn publish_routes(&self, live: &HashMap<SwarmName, Live>, wanted: &BTreeMap<SwarmName, SwarmRecord>) {
        let mut table = RouteTable::default();
        for (name, swarm) in live {
            let accepting = wanted
                .get(name)
                .is_some_and(|r| !r.deleting && r.incarnation == swarm.id.incarnation().to_string());
            for subject in swarm.swarm.subjects() {
                let pure = swarm.swarm.pure(&subject);
                let feeds = swarm
                    .swarm
                    .fed_by(&subject)
                    .filter_map(|stage| {
                        let live = swarm.stages.get(&stage.name)?;
                        Some(Feed {
                            topic: Arc::clone(&live.topic),
                            stage: stage.name.clone(),
                            key: stage.key.clone(),
                            lane: pure.then(|| Arc::clone(&live.lane)),
                        })
                    })
                    .collect();
                table.insert(
                    self.catalog.scope().tenant(),
                    Arc::new(Route {
                        swarm: swarm.id.clone(),
                        subject,
                        feeds,
                        pure,
                        accepting,
                    }),
                );
            }
        }
        self.routes.send_replace(Arc::new(table));
    }

    /// Waits until a Swarm that takes no new input has nothing unread and nothing parked, or until `timeout`. Tells what remains.
    pub async fn drain(&self, id: &SwarmId, timeout: Duration, mut tell: impl FnMut(u64)) -> anyhow::Result<u64> {
        let until = Instant::now() + timeout;
        loop {
            let remaining: u64 = self
                .seams
                .backend
                .status(id)
                .await?
                .iter()
                .map(|t| t.unread + t.parked)
                .sum();
            tell(remaining);
            if remaining == 0 || Instant::now() >= until {
                return Ok(remaining);
            }
            sleep(DRAIN_POLL).await;
        }
    }

    /// Stops a Swarm's stages and removes its rows. The catalog's record goes last, so that an interrupted deletion is found again.
    pub async fn remove(&self, name: &SwarmName, id: &SwarmId) -> anyhow::Result<()> {
        let stopped = self.swarms.lock().await.remove(name);
        if let Some(live) = stopped {
            stop_all(live).await;
        }
        self.seams.backend.remove_swarm(id).await?;
        self.stats.forget(id);
        Ok(())
    }

    /// Removes the rows of Swarm lives that the catalog does not know: what a crash left of a deletion.
    pub async fn sweep(&self) -> anyhow::Result<()> {
        let wanted = self.catalog.swarms().await?;
        for id in self.seams.backend.lives().await? {
            let known = id.tenant() != self.catalog.scope().tenant()
                || wanted
                    .get(id.name())
                    .is_some_and(|r| r.incarnation == id.incarnation().to_string());
            if !known {
                tracing::info!(swarm = %id, "removing what is left of a deleted Swarm");
                self.seams.backend.remove_swarm(&id).await?;
            }
        }
        Ok(())
    }

    /// Stops everything, after the batches under way.
    pub async fn stop(&self) {
        self.routes.send_replace(Arc::new(RouteTable::default()));
        let all: Vec<Live> = self.swarms.lock().await.drain().map(|(_, live)| live).collect();
        for live in all {
            stop_all(live).await;
        }
    }
}

async fn stop_all(live: Live) {
    futures::future::join_all(live.stages.into_values().map(|stage| stage.running.stop())).await;
}

async fn drain_removed(removed: LiveStage, seams: &Seams) {
    loop {
        match seams.backend.status(removed.topic.id.swarm()).await {
            Ok(topics) => {
                let left = topics.iter().find(|t| t.topic == removed.topic.id);
                if left.is_none_or(|t| t.unread + t.parked + t.timers == 0) {
                    break;
                }
            }
            Err(skep_topic::Error::Gone) => break,
            Err(e) => tracing::debug!(error = %e, "cannot see whether a removed stage is drained"),
        }
        sleep(Duration::from_millis(500)).await;
    }
    removed.running.stop().await;
    // Dead letters stay until they are discarded: a removed stage's failures are still somebody's.
    if let Ok(topics) = seams.backend.status(removed.topic.id.swarm()).await
        && topics.iter().any(|t| t.topic == removed.topic.id && t.dead == 0)
        && let Err(e) = seams.backend.remove_topic(&removed.topic.id).await
    {
        tracing::warn!(topic = %removed.topic.id, error = %e, "cannot remove the topic of a removed stage");
    }
}

fn topic_spec(id: &SwarmId, stage: &Stage) -> TopicSpec {
    TopicSpec {
        id: id.topic(&stage.name),
        partitions: stage.partitions,
        inbox: stage.inbox,
        dead_letters: stage.dead_letters,
    }
}

fn plan(
    swarm: &Swarm,
    stage: &Stage,
    topic: &Arc<TopicSpec>,
    module: Digest,
    bee: Arc<dyn Bee>,
    ends: &BTreeMap<StageName, (Arc<TopicSpec>, Arc<Lane>)>,
) -> Plan {
    let destination = |reader: &Stage| {
        let (topic, lane) = &ends[&reader.name];
        Destination {
            stage: reader.name.clone(),
            topic: Arc::clone(topic),
            key: reader.key.clone(),
            lane: Arc::clone(lane),
        }
    };
    let mut named: BTreeMap<String, Vec<Destination>> = BTreeMap::new();
    for reader in &swarm.stages {
        for input in &reader.inputs {
            if let StageInput::Bee {
                stage: from,
                output: Some(output),
            } = input
                && *from == stage.name
            {
                named.entry(output.to_string()).or_default().push(destination(reader));
            }
        }
    }
    Plan {
        stage: stage.clone(),
        topic: Arc::clone(topic),
        module,
        bee,
        unnamed: swarm.downstream(&stage.name, None).map(destination).collect(),
        named,
    }
}
