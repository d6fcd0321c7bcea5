//! Modules as this node has them: in memory, compiled in the cache, or as bytes in the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use skep_engine::apart::{Codes, Processes};
use skep_engine::{Artifact, ArtifactCache, BeeSettings, CompileError, Compiler, Engine, Target};
use skep_model::id::Digest;
use skep_model::limits::{LOAD_BACKOFF_FIRST_MS, LOAD_BACKOFF_MAX_MS, LOAD_FAILURES_MAX, MODULE_LOADS_AT_ONCE};
use skep_model::name::{BeeName, TenantId};
use tokio::sync::Semaphore;

use super::residents::{Resident, Residents};
use crate::isolation::Isolation;
use crate::quotas::Account;
use crate::store::ModuleStore;

/// Why an upload is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Load(#[from] skep_engine::Error),
}

pub struct Modules {
    store: ModuleStore,
    engine: Arc<Engine>,
    compiler: Compiler,
    cache: Arc<ArtifactCache>,
    residents: Residents,
    /// Of tenants that have their own.
    processes: Arc<Processes>,
    /// A node that starts beside a backlog would otherwise read and check all files of all modules at once.
    loads: Semaphore,
    failed: Mutex<HashMap<(TenantId, Digest), Failure>>,
    /// Of tenants that compile now or wait to.
    turns: Mutex<HashMap<TenantId, Arc<tokio::sync::Mutex<()>>>>,
}

/// What an upload was found to be.
pub struct Admitted {
    /// In the module's order.
    pub bees: Vec<BeeName>,
    /// It imports what sends HTTP requests.
    pub sends_http: bool,
}

#[async_trait]
impl Codes for Modules {
    async fn code(&self, tenant: &TenantId, digest: Digest) -> Result<Artifact, String> {
        self.compiled(tenant, digest).await.map_err(|e| format!("{e:#}"))
    }
}

/// A module that could not be loaded is not compiled again at every look.
struct Failure {
    why: String,
    times: u32,
    again: Instant,
}

impl Modules {
    /// `memory_bytes`: what those in memory may take together.
    #[must_use]
    pub fn new(
        store: ModuleStore,
        engine: Arc<Engine>,
        compiler: Compiler,
        cache: Arc<ArtifactCache>,
        processes: Arc<Processes>,
        memory_bytes: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            engine,
            compiler,
            cache,
            residents: Residents::new(memory_bytes),
            processes,
            loads: Semaphore::new(MODULE_LOADS_AT_ONCE),
            failed: Mutex::default(),
            turns: Mutex::default(),
        })
    }

    #[must_use]
    pub fn residents(&self) -> &Residents {
        &self.residents
    }

    #[must_use]
    pub fn processes(&self) -> &Arc<Processes> {
        &self.processes
    }

    /// Whether this node's engine can run a Bee so.
    ///
    /// # Errors
    /// Which setting is outside what it can give.
    pub fn check(&self, settings: &BeeSettings) -> Result<(), skep_engine::Error> {
        settings.check(self.engine.settings())
    }

    /// Sees to it that the first call finds a module near: it is in memory, its native code is on disk, or it is loaded now; where its Bees
    /// run in another process, it is only compiled.
    ///
    /// # Errors
    /// As [`Modules::load`].
    pub async fn ready(&self, tenant: &TenantId, isolation: Isolation, digest: Digest) -> anyhow::Result<()> {
        if self.residents.has(digest) && isolation == Isolation::Shared {
            return Ok(());
        }
        let cache = Arc::clone(&self.cache);
        if tokio::task::spawn_blocking(move || cache.has(digest)).await? {
            return Ok(());
        }
        match isolation {
            Isolation::Shared => drop(self.load(tenant, digest).await?),
            Isolation::Process => drop(self.compiled(tenant, digest).await?),
        }
        Ok(())
    }

    /// A tenant's module as native code, which is not loaded here: from the artifact cache, or compiled anew.
    ///
    /// # Errors
    /// As [`Modules::load`].
    async fn compiled(&self, tenant: &TenantId, digest: Digest) -> anyhow::Result<Artifact> {
        if let Some(artifact) = self.cached(digest).await {
            return Ok(artifact);
        }
        if let Some(why) = self.failed_lately(tenant, digest) {
            anyhow::bail!("{why}");
        }
        let made = async {
            let bytes = self.store.of(tenant).get(&digest).await?;
            Ok::<_, anyhow::Error>(self.compile(tenant, digest, bytes).await?)
        };
        match made.await {
            Ok(artifact) => {
                self.forgive(tenant, digest);
                Ok(artifact)
            }
            Err(e) => {
                self.remember(tenant, digest, format!("{e:#}"));
                Err(e)
            }
        }
    }

    /// A tenant's module as native code for another machine, made now. Who asks keeps it.
    ///
    /// # Errors
    /// The module is not there, or cannot be compiled for that machine.
    pub async fn compiled_for(&self, tenant: &TenantId, digest: Digest, target: &Target) -> anyhow::Result<Artifact> {
        let turn = self.turn(tenant);
        let _turn = turn.lock().await;
        let bytes = self.store.of(tenant).get(&digest).await?;
        Ok(self.compiler.compile_for(target, bytes).await?)
    }

    /// A tenant's module: as it is in memory, from the artifact cache, or compiled anew from the tenant's own store. What is loaded or compiled
    /// is shared by tenants that have the very same bytes; who may name a digest was decided by the tenant's own records.
    ///
    /// # Errors
    /// Why it cannot be had. Until some time has passed, or the module was pushed again, the last failure is told again.
    pub async fn load(&self, tenant: &TenantId, digest: Digest) -> anyhow::Result<Arc<Resident>> {
        if let Some(module) = self.residents.get(digest) {
            return Ok(module);
        }
        if let Some(why) = self.failed_lately(tenant, digest) {
            anyhow::bail!("{why}");
        }
        match self.load_anew(tenant, digest).await {
            Ok(module) => {
                self.forgive(tenant, digest);
                Ok(module)
            }
            Err(e) => {
                self.remember(tenant, digest, format!("{e:#}"));
                Err(e)
            }
        }
    }

    async fn load_anew(&self, tenant: &TenantId, digest: Digest) -> anyhow::Result<Arc<Resident>> {
        let turn = self.loads.acquire().await?;
        // It may have been loaded meanwhile.
        if let Some(module) = self.residents.get(digest) {
            return Ok(module);
        }
        if let Some(artifact) = self.cached(digest).await {
            match self.map(digest, artifact).await {
                Ok(module) => return Ok(module),
                Err(e) => tracing::warn!(%digest, error = %e, "cached artifact does not load, compiling again"),
            }
        }
        // Compilers have a queue of their own, and take much longer.
        drop(turn);
        let bytes = self.store.of(tenant).get(&digest).await?;
        let artifact = self.compile(tenant, digest, bytes).await?;
        Ok(self.map(digest, artifact).await?)
    }

    /// Compiles a component, unless this node has, and loads it where its tenant's Bees run: an upload is accepted when this succeeds, so what
    /// was accepted runs.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub async fn admit(
        &self,
        tenant: &TenantId,
        account: &Account,
        digest: Digest,
        bytes: skep_model::Bytes,
    ) -> Result<Admitted, Refused> {
        if account.isolation() == Isolation::Process {
            let artifact = self.compile(tenant, digest, bytes).await?;
            let looked = self.processes.look(tenant, &account.share, digest, &artifact).await;
            let (bees, sends_http) = looked?;
            return Ok(Admitted { bees, sends_http });
        }
        let resident = match self.residents.get(digest) {
            Some(resident) => resident,
            None => {
                let artifact = self.compile(tenant, digest, bytes).await?;
                self.map(digest, artifact).await?
            }
        };
        Ok(Admitted {
            bees: resident.module.bees().to_vec(),
            sends_http: resident.module.sends_http(),
        })
    }

    /// Native code of a component: as it is in the cache, or made now and put there.
    async fn compile(
        &self,
        tenant: &TenantId,
        digest: Digest,
        bytes: skep_model::Bytes,
    ) -> Result<Artifact, CompileError> {
        // One at a time of a tenant, so that in front of the compiler there stands one of each: who uploads much waits for itself.
        let turn = self.turn(tenant);
        let _turn = turn.lock().await;
        if let Some(artifact) = self.cached(digest).await {
            return Ok(artifact);
        }
        let artifact = self.compiler.compile(bytes).await?;
        let (cache, copy) = (Arc::clone(&self.cache), artifact.clone());
        let kept = tokio::task::spawn_blocking(move || cache.put(digest, &copy)).await;
        // The cache saves time, nothing else: a node that cannot write it still runs the module.
        if let Ok(Err(e)) = kept {
            tracing::warn!(%digest, error = %e, "cannot keep a compiled module");
        }
        Ok(artifact)
    }

    async fn map(&self, digest: Digest, artifact: Artifact) -> Result<Arc<Resident>, skep_engine::Error> {
        let bytes = artifact.len();
        let module = self.engine.load(digest, artifact).await?;
        Ok(self.residents.put(digest, module, bytes))
    }

    /// Something changed that may mend it: the next load tries.
    pub fn forgive(&self, tenant: &TenantId, digest: Digest) {
        self.failures().remove(&(tenant.clone(), digest));
    }

    fn turn(&self, tenant: &TenantId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(tenant.clone()).or_default())
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

    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<(TenantId, Digest), Failure>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed_lately(&self, tenant: &TenantId, digest: Digest) -> Option<String> {
        let failures = self.failures();
        let failure = failures.get(&(tenant.clone(), digest))?;
        (Instant::now() < failure.again).then(|| failure.why.clone())
    }

    fn remember(&self, tenant: &TenantId, digest: Digest, why: String) {
        tracing::warn!(%tenant, %digest, error = why, "a module cannot be loaded");
        let mut failures = self.failures();
        let of = (tenant.clone(), digest);
        let times = failures.get(&of).map_or(0, |f| f.times).saturating_add(1);
        let wait_ms = LOAD_BACKOFF_FIRST_MS
            .saturating_mul(1 << (times - 1).min(16))
            .min(LOAD_BACKOFF_MAX_MS);
        let again = Instant::now() + Duration::from_millis(wait_ms);
        failures.insert(of, Failure { why, times, again });
        if failures.len() > LOAD_FAILURES_MAX
            && let Some(oldest) = failures.iter().min_by_key(|(_, f)| f.again).map(|(of, _)| of.clone())
        {
            failures.remove(&oldest);
        }
    }
}
