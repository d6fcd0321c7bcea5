//! The models of this node: what names mean for a tenant, loaded on first use, called by whoever may.
//!
//! What a tenant's names mean is read from the catalog once, all of them together, and forgotten whenever the catalog changes: so a name that
//! is none costs no read, however often it is asked for. Files and memory are by
//! digest, so tenants that pushed the same bytes share what is loaded, and their calls run together. How calls run together is each tenant's own
//! choice though, and one must not be made to wait for another's, nor run with one that did not choose so: a model whose batching is not the
//! default is loaded for that choice apart.

mod child;
mod look;
mod metrics;
mod near;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use skep_inference::{InferError, Lease, Policy, Shelf, Subject};
use skep_model::error::ErrorKind;
use skep_model::id::Digest;
use skep_model::limits::MODEL_NAMES_KEPT_MAX;
use skep_model::name::{ModelName, ModelRef, TenantId, Version};
use skep_model::predict::{Later, ModelAccess, ModelVersion, Models, PredictError, Tensors};

use crate::catalog::{Catalogs, ModelRecord};
use crate::store::ModuleStore;
use crate::wording::instead;

pub use child::child_main;
pub use look::{LookError, Lookout};
pub use metrics::ModelMetrics;
pub use near::Near;

/// The models of all tenants, as this node has them.
pub struct NodeModels {
    catalogs: Catalogs,
    /// Of whatever tenant: [`ModuleStore::of`].
    store: ModuleStore,
    shelf: Arc<Shelf>,
    known: Mutex<Known>,
    /// Who has models, as of the last look.
    tenants: Mutex<BTreeSet<TenantId>>,
}

/// As of one state of the catalog.
#[derive(Default)]
struct Known {
    /// Another each time that all is forgotten: what was read before is not remembered after.
    look: u64,
    /// None: nobody has looked.
    number: Option<u64>,
    models: HashMap<TenantId, Arc<Meanings>>,
    count: usize,
}

/// What the names of one tenant mean.
type Meanings = BTreeMap<ModelName, Meaning>;

/// What a name means.
struct Meaning {
    tags: HashMap<String, Arc<ModelVersion>>,
    versions: HashMap<Digest, Arc<ModelVersion>>,
    newest: Option<Arc<ModelVersion>>,
    batching: Policy,
}

impl Meaning {
    fn of(name: &ModelName, record: &ModelRecord) -> Self {
        let mut versions = HashMap::new();
        let mut newest: Option<(u64, Arc<ModelVersion>)> = None;
        for (hex, kept) in &record.versions {
            let Ok(digest) = hex.parse() else { continue };
            let tags = record.tags.iter().filter(|(_, to)| *to == hex);
            let version = Arc::new(ModelVersion {
                name: name.clone(),
                digest,
                tags: tags.map(|(tag, _)| tag.clone()).collect(),
                signature: kept.described.signature.clone(),
            });
            if newest.as_ref().is_none_or(|(at, _)| *at <= kept.pushed_ms) {
                newest = Some((kept.pushed_ms, Arc::clone(&version)));
            }
            versions.insert(digest, version);
        }
        let tags = record.tags.iter().filter_map(|(tag, hex)| {
            let version = versions.get(&hex.parse().ok()?)?;
            Some((tag.clone(), Arc::clone(version)))
        });
        Self {
            tags: tags.collect(),
            newest: newest.map(|(_, version)| version),
            batching: record.batching.clamped(),
            versions,
        }
    }

    fn version(&self, wanted: &Version) -> Option<&Arc<ModelVersion>> {
        match wanted {
            Version::Tag(tag) => self.tags.get(tag.as_str()),
            Version::Digest(digest) => self.versions.get(digest),
        }
    }

    fn presented(&self) -> Option<&Arc<ModelVersion>> {
        self.version(&Version::default()).or(self.newest.as_ref())
    }
}

impl fmt::Debug for NodeModels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shelf)
    }
}

/// What a model is under on the shelf: its digest, or, where its calls are put together in a way of their own, one of both.
fn place(digest: Digest, batching: Policy) -> Digest {
    if batching == Policy::default() {
        return digest;
    }
    let mut both = digest.0.to_vec();
    both.extend_from_slice(&(batching.max_rows as u64).to_le_bytes());
    both.extend_from_slice(&batching.max_wait_us.to_le_bytes());
    both.extend([u8::from(batching.off), u8::from(batching.together)]);
    Digest::of(&both)
}

fn told(error: &InferError) -> PredictError {
    PredictError::new(error.kind(), error.to_string())
}

impl NodeModels {
    #[must_use]
    pub fn new(catalogs: Catalogs, store: ModuleStore, shelf: Arc<Shelf>) -> Arc<Self> {
        Arc::new(Self {
            catalogs,
            store,
            shelf,
            known: Mutex::default(),
            tenants: Mutex::default(),
        })
    }

    #[must_use]
    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// Whether a version is in memory here.
    #[must_use]
    pub fn is_loaded(&self, digest: Digest, batching: Policy) -> bool {
        let place = place(digest, batching.clamped());
        self.shelf.stats().models.iter().any(|model| model.digest == place)
    }

    /// Forgets what names mean, if the catalog has changed. Answers whether other tenants have models than before.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn look(&self) -> anyhow::Result<bool> {
        let number = self.catalogs.number().await?;
        if self.known().number == Some(number) {
            return Ok(false);
        }
        let records = self.catalogs.stored_models().await?;
        {
            let mut known = self.known();
            let look = known.look + 1;
            *known = Known {
                look,
                number: Some(number),
                ..Known::default()
            };
        }
        let tenant = |key: &str| key.split('/').nth(1)?.parse().ok();
        let now: BTreeSet<TenantId> = records.iter().filter_map(|(key, _)| tenant(key)).collect();
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *tenants != now;
        *tenants = now;
        Ok(changed)
    }

    /// Who has models.
    #[must_use]
    pub fn tenants(&self) -> BTreeSet<TenantId> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of a version that nobody of this tenant can name any more.
    pub fn forget(&self, digest: Digest, batching: Policy) {
        self.shelf.forget(place(digest, batching.clamped()));
    }

    /// What a stage may call. `None`: nothing.
    #[must_use]
    pub fn grant(self: &Arc<Self>, tenant: &TenantId, granted: &BTreeSet<ModelRef>) -> Option<Arc<ModelAccess>> {
        (!granted.is_empty()).then(|| {
            Arc::new(ModelAccess {
                models: Arc::clone(self) as Arc<dyn Models>,
                tenant: tenant.clone(),
                granted: granted.clone(),
            })
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn meanings(&self, tenant: &TenantId) -> Result<Arc<Meanings>, PredictError> {
        let look = {
            let known = self.known();
            if let Some(meanings) = known.models.get(tenant) {
                return Ok(Arc::clone(meanings));
            }
            known.look
        };
        let found = self.catalogs.of(tenant).models().await;
        let found = found.map_err(|e| unavailable(&format!("the catalog cannot be read: {e:#}")))?;
        let meaning = |(name, record): (ModelName, ModelRecord)| (name.clone(), Meaning::of(&name, &record));
        let meanings: Arc<Meanings> = Arc::new(found.into_iter().map(meaning).collect());
        let mut known = self.known();
        if known.look == look {
            // A tenant's own models are bounded by its quota, so one cannot push out all others by what it asks for.
            if known.count + meanings.len() > MODEL_NAMES_KEPT_MAX || known.models.len() >= MODEL_NAMES_KEPT_MAX {
                known.models.clear();
                known.count = 0;
            }
            let before = known.models.insert(tenant.clone(), Arc::clone(&meanings));
            known.count += meanings.len();
            known.count -= before.map_or(0, |before| before.len());
        }
        Ok(meanings)
    }

    /// The right to call a version, which is loaded now if it is not.
    async fn lease(&self, tenant: &TenantId, model: &ModelVersion) -> Result<Lease, PredictError> {
        let meanings = self.meanings(tenant).await?;
        let known = meanings.get(&model.name);
        let Some(meaning) = known.filter(|meaning| meaning.versions.contains_key(&model.digest)) else {
            return Err(PredictError::new(
                ErrorKind::NotFound,
                format!("this version of model `{}` was deleted ({})", model.name, model.digest),
            ));
        };
        let place = place(model.digest, meaning.batching);
        if let Some(lease) = self.shelf.loaded(place) {
            return Ok(lease);
        }
        let (store, digest) = (self.store.of(tenant), model.digest);
        let read = move || async move { store.get(&digest).await.map_err(|e| format!("{e:#}")) };
        let loaded = self.shelf.model(place, meaning.batching, read).await;
        loaded.map_err(|e| told(&e))
    }
}

fn absent(model: &ModelRef, known: &Meanings) -> PredictError {
    let text = match (known.get(&model.name), &model.version) {
        (None, _) => {
            let names: Vec<&str> = known.keys().map(ModelName::as_str).collect();
            let hint = instead(
                model.name.as_str(),
                &names,
                "there is none yet: `skep model push FILE.onnx --name NAME`",
            );
            format!("no model `{}`; {hint}", model.name)
        }
        (Some(meaning), Version::Tag(tag)) => {
            let mut tags: Vec<&str> = meaning.tags.keys().map(String::as_str).collect();
            tags.sort_unstable();
            let hint = instead(tag.as_str(), &tags, "it has none: `skep model tag`");
            format!("model `{}` has no tag `{tag}`; {hint}", model.name)
        }
        (Some(_), Version::Digest(digest)) => {
            format!(
                "model `{}` has no version {digest}: it was deleted, or never pushed",
                model.name
            )
        }
    };
    PredictError::new(ErrorKind::NotFound, text)
}

fn unavailable(text: &str) -> PredictError {
    PredictError::new(ErrorKind::Unavailable, text)
}

impl Models for NodeModels {
    fn find<'a>(&'a self, tenant: &'a TenantId, model: &'a ModelRef) -> Later<'a, Arc<ModelVersion>> {
        Box::pin(async move {
            let meanings = self.meanings(tenant).await?;
            let meaning = meanings.get(&model.name);
            match meaning.and_then(|meaning| meaning.version(&model.version)) {
                Some(version) => Ok(Arc::clone(version)),
                None => Err(absent(model, &meanings)),
            }
        })
    }

    fn list<'a>(&'a self, tenant: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>> {
        Box::pin(async move {
            let meanings = self.meanings(tenant).await?;
            Ok(meanings
                .values()
                .filter_map(|meaning| meaning.presented().cloned())
                .collect())
        })
    }

    fn load<'a>(&'a self, tenant: &'a TenantId, model: &'a ModelVersion) -> Later<'a, ()> {
        Box::pin(async move { self.lease(tenant, model).await.map(drop) })
    }

    fn predict<'a>(
        &'a self,
        tenant: &'a TenantId,
        model: &'a ModelVersion,
        inputs: Tensors,
        deadline: Option<Instant>,
    ) -> Later<'a, Tensors> {
        Box::pin(async move {
            // Before it may have to be loaded.
            model
                .signature
                .check(&inputs)
                .map_err(|e| told(&InferError::Input(e)))?;
            let lease = self.lease(tenant, model).await?;
            let answer = lease.infer(Subject::named(tenant.as_str()), inputs, deadline).await;
            answer.map_err(|e| told(&e))
        })
    }
}
