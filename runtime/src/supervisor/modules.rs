//! Modules as this node has them: loaded, compiled in the cache, or as bytes in the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use skep_engine::{Artifact, ArtifactCache, CompileError, Compiler, Engine, Module};
use skep_model::id::Digest;
use skep_model::limits::{LOAD_BACKOFF_FIRST_MS, LOAD_BACKOFF_MAX_MS, LOAD_FAILURES_MAX};
use skep_model::name::TenantId;

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
    /// Loaded ones, as long as a stage holds them.
    loaded: Mutex<HashMap<Digest, Weak<Module>>>,
    failed: Mutex<HashMap<(TenantId, Digest), Failure>>,
    /// Of tenants that compile now or wait to.
    turns: Mutex<HashMap<TenantId, Arc<tokio::sync::Mutex<()>>>>,
}

/// A module that could not be loaded is not compiled again at every look.
struct Failure {
    why: String,
    times: u32,
    again: Instant,
}

impl Modules {
    #[must_use]
    pub fn new(store: ModuleStore, engine: Arc<Engine>, compiler: Compiler, cache: Arc<ArtifactCache>) -> Self {
        Self {
            store,
            engine,
            compiler,
            cache,
            loaded: Mutex::default(),
            failed: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    /// A tenant's module: as it is loaded, from the artifact cache, or compiled anew from the tenant's own store. What is loaded or compiled
    /// is shared by tenants that have the very same bytes; who may name a digest was decided by the tenant's own records.
    ///
    /// # Errors
    /// Why it cannot be had. Until some time has passed, or the module was pushed again, the last failure is told again.
    pub async fn load(&self, tenant: &TenantId, digest: Digest) -> anyhow::Result<Arc<Module>> {
        if let Some(module) = self.loaded(digest) {
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

    async fn load_anew(&self, tenant: &TenantId, digest: Digest) -> anyhow::Result<Arc<Module>> {
        if let Some(artifact) = self.cached(digest).await {
            match self.engine.load(digest, artifact).await {
                Ok(module) => return Ok(self.keep(digest, module)),
                Err(e) => tracing::warn!(%digest, error = %e, "cached artifact does not load, compiling again"),
            }
        }
        let bytes = self.store.of(tenant).get(&digest).await?;
        Ok(self.admit(tenant, digest, bytes).await?)
    }

    /// Compiles a component, unless this node has, and loads it: an upload is accepted when this succeeds, so what was accepted
    /// runs.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub async fn admit(
        &self,
        tenant: &TenantId,
        digest: Digest,
        bytes: skep_model::Bytes,
    ) -> Result<Arc<Module>, Refused> {
        if let Some(module) = self.loaded(digest) {
            return Ok(module);
        }
        // One at a time of a tenant, so that in front of the compiler there stands one of each: who uploads much waits for itself.
        let turn = self.turn(tenant);
        let _turn = turn.lock().await;
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
        Ok(self.keep(digest, module))
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

    fn loaded(&self, digest: Digest) -> Option<Arc<Module>> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.get(&digest).and_then(Weak::upgrade)
    }

    fn keep(&self, digest: Digest, module: Module) -> Arc<Module> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|_, weak| weak.strong_count() > 0);
        // Two loads of one module at once: the first one kept serves both.
        if let Some(first) = loaded.get(&digest).and_then(Weak::upgrade) {
            return first;
        }
        let module = Arc::new(module);
        loaded.insert(digest, Arc::downgrade(&module));
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

    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<(TenantId, Digest), Failure>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed_lately(&self, tenant: &TenantId, digest: Digest) -> Option<String> {
        let failures = self.failures();
        let failure = failures.get(&(tenant.clone(), digest))?;
        (Instant::now() < failure.again).then(|| failure.why.clone())
    }

    fn remember(&self, tenant: &TenantId, digest: Digest, why: String) {
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
