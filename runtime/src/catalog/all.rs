//! The records of all tenants together.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_model::Bytes;
use skep_model::name::{ModelName, ModuleName, TenantId};
use skep_model::scope::{Scope, SwarmPath};
use skep_topic::{Backend, CatalogRecord};

use super::{Catalog, FORMAT, ModelRecord, ModuleRecord, Read, Stored, SwarmRecord, TenantRecord, Versioned, decode};
use crate::mirror::Mirror;
use crate::secrets::HUB_KEY;

/// The catalog of all tenants: for the node itself and its operators.
#[derive(Clone)]
pub struct Catalogs {
    pub(super) backend: Arc<dyn Backend>,
    /// Of a catalog that may lose its end.
    mirror: Option<Arc<Mirror>>,
}

const TENANT: &str = "tenant/";
const SWARM: &str = "swarm/";

impl Catalogs {
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, mirror: Option<Arc<Mirror>>) -> Self {
        Self { backend, mirror }
    }

    /// What one tenant sees of it.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> Catalog {
        Catalog {
            all: self.clone(),
            scope: Scope::of(tenant.clone()),
        }
    }

    /// Copies what was written, and writes back what was lost: see [`Mirror::keep`].
    ///
    /// # Errors
    /// As that.
    pub async fn keep(&self) -> anyhow::Result<()> {
        match &self.mirror {
            Some(mirror) => mirror.keep().await,
            None => Ok(()),
        }
    }

    /// The same for whoever follows what others write: without the copy it goes on, unless it knows better than the store.
    ///
    /// # Errors
    /// The catalog was taken back, and what it was cannot be read.
    pub async fn follow(&self) -> anyhow::Result<()> {
        let Some(mirror) = &self.mirror else { return Ok(()) };
        let Err(error) = mirror.keep().await else { return Ok(()) };
        if mirror.is_behind(self.number().await?) {
            return Err(error.context("the catalog came back from an older state, and its copy cannot be read"));
        }
        tracing::warn!(
            error = format!("{error:#}"),
            "the copy of the catalog is not looked at for now"
        );
        Ok(())
    }

    /// What was written counts once its copy is there as well.
    pub(super) async fn kept<T, E>(&self, written: Result<T, E>) -> anyhow::Result<Result<T, E>> {
        if written.is_ok() {
            self.keep().await.context(
                "it is written, and not yet copied to the module store, so a failover may take it back; do it again",
            )?;
        }
        Ok(written)
    }

    /// What a decision that reads more than one record builds on; taken before the first read.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn number(&self) -> anyhow::Result<u64> {
        Ok(self.backend.catalog_number().await?)
    }

    /// The Swarms of all tenants.
    ///
    /// # Errors
    /// When the store cannot be read, or holds what this skep cannot read.
    pub async fn swarms(&self) -> anyhow::Result<BTreeMap<SwarmPath, SwarmRecord>> {
        let mut out = BTreeMap::new();
        for (key, record) in self.stored_swarms().await? {
            if let Read::Swarm(tenant, swarm) = read(&key, &record.value)? {
                out.insert(Scope::of(tenant).path(&swarm.swarm.name), *swarm);
            }
        }
        Ok(out)
    }

    /// The modules of all tenants.
    ///
    /// # Errors
    /// As [`Catalogs::swarms`].
    pub async fn modules(&self) -> anyhow::Result<Vec<(TenantId, ModuleName, ModuleRecord)>> {
        let mut out = Vec::new();
        for (key, record) in self.stored_modules().await? {
            if let Read::Module(tenant, name, module) = read(&key, &record.value)? {
                out.push((tenant, name, module));
            }
        }
        Ok(out)
    }

    /// The models of all tenants.
    ///
    /// # Errors
    /// As [`Catalogs::swarms`].
    pub async fn models(&self) -> anyhow::Result<Vec<(TenantId, ModelName, ModelRecord)>> {
        let mut out = Vec::new();
        for (key, record) in self.stored_models().await? {
            if let Read::Model(tenant, name, model) = read(&key, &record.value)? {
                out.push((tenant, name, model));
            }
        }
        Ok(out)
    }

    pub(crate) async fn stored(&self, prefix: &str) -> anyhow::Result<Vec<(String, CatalogRecord)>> {
        Ok(self.backend.catalog_list(prefix).await?)
    }

    /// All Swarms' records, as stored.
    pub async fn stored_swarms(&self) -> anyhow::Result<Vec<(String, CatalogRecord)>> {
        Ok(self.backend.catalog_list(SWARM).await?)
    }

    /// All modules' records, as stored.
    pub async fn stored_modules(&self) -> anyhow::Result<Vec<(String, CatalogRecord)>> {
        Ok(self.backend.catalog_list("module/").await?)
    }

    /// All models' records, as stored.
    pub async fn stored_models(&self) -> anyhow::Result<Vec<(String, CatalogRecord)>> {
        Ok(self.backend.catalog_list("model/").await?)
    }

    /// All tenants' records, as stored.
    pub async fn stored_tenants(&self) -> anyhow::Result<Vec<(String, CatalogRecord)>> {
        Ok(self.backend.catalog_list(TENANT).await?)
    }

    /// Every tenant but the default one, which is there without a record.
    pub async fn tenants(&self) -> anyhow::Result<BTreeMap<TenantId, Versioned<TenantRecord>>> {
        let mut out = BTreeMap::new();
        for (key, record) in self.stored_tenants().await? {
            if let Read::Tenant(tenant, read) = read(&key, &record.value)? {
                let version = record.version;
                out.insert(tenant, Versioned { version, record: read });
            }
        }
        Ok(out)
    }

    pub async fn tenant(&self, tenant: &TenantId) -> anyhow::Result<Option<Versioned<TenantRecord>>> {
        self.get(&format!("{TENANT}{tenant}")).await
    }

    /// `Err(current)` when the record is not at version `expect` any more.
    pub async fn put_tenant(
        &self,
        tenant: &TenantId,
        expect: u64,
        record: &TenantRecord,
    ) -> anyhow::Result<Result<u64, u64>> {
        self.put(&format!("{TENANT}{tenant}"), expect, None, record).await
    }

    /// `Err`: it, or anything else in the catalog, was changed since `seen`.
    pub async fn delete_tenant(&self, tenant: &TenantId, expect: u64, seen: u64) -> anyhow::Result<Result<(), u64>> {
        let key = format!("{TENANT}{tenant}");
        let deleted = self.backend.catalog_delete_if(&key, expect, Some(seen)).await?;
        self.kept(deleted).await
    }

    /// What a write for a tenant builds on: that the tenant is there. A call that was under way when its tenant went must leave nothing
    /// to the next one of that name.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) async fn there(&self, tenant: &str, seen: Option<u64>) -> anyhow::Result<u64> {
        let seen = match seen {
            Some(seen) => seen,
            None => self.number().await?,
        };
        if self.get::<TenantRecord>(&format!("{TENANT}{tenant}")).await?.is_none() {
            bail!("tenant `{tenant}` is gone");
        }
        Ok(seen)
    }

    pub(crate) async fn put<T: Serialize>(
        &self,
        key: &str,
        expect: u64,
        seen: Option<u64>,
        record: &T,
    ) -> anyhow::Result<Result<u64, u64>> {
        let seen = match owner(key) {
            Some(tenant) => Some(self.there(tenant, seen).await?),
            None => seen,
        };
        let stored = Stored { format: FORMAT, record };
        let value = Bytes::from(serde_json::to_vec(&stored)?);
        let put = self.backend.catalog_put_if(key, expect, seen, value).await?;
        self.kept(put).await
    }

    /// For what may be lost, and changes often: no copy of the catalog is made for it.
    pub(crate) async fn put_passing<T: Serialize>(
        &self,
        key: &str,
        expect: u64,
        record: &T,
    ) -> anyhow::Result<Result<u64, u64>> {
        let seen = match owner(key) {
            Some(tenant) => Some(self.there(tenant, None).await?),
            None => None,
        };
        let stored = Stored { format: FORMAT, record };
        let value = Bytes::from(serde_json::to_vec(&stored)?);
        Ok(self.backend.catalog_put_if(key, expect, seen, value).await?)
    }

    pub(crate) async fn delete(&self, key: &str, expect: u64) -> anyhow::Result<Result<(), u64>> {
        let deleted = self.backend.catalog_delete(key, expect).await?;
        self.kept(deleted).await
    }

    pub(crate) async fn get<T: for<'a> Deserialize<'a>>(&self, key: &str) -> anyhow::Result<Option<Versioned<T>>> {
        for (found, record) in self.backend.catalog_list(key).await? {
            if found == key {
                return Ok(Some(Versioned {
                    version: record.version,
                    record: decode(key, &record.value)?,
                }));
            }
        }
        Ok(None)
    }

    /// Records of a kind, by what follows the prefix; each may be readable or not.
    pub(crate) async fn list_each<T: for<'a> Deserialize<'a>>(
        &self,
        prefix: &str,
    ) -> anyhow::Result<Vec<(String, anyhow::Result<Versioned<T>>)>> {
        let found = self.backend.catalog_list(prefix).await?;
        let read = |(key, record): (String, CatalogRecord)| {
            let versioned = decode(&key, &record.value).map(|read| Versioned {
                version: record.version,
                record: read,
            });
            (key[prefix.len()..].to_owned(), versioned)
        };
        Ok(found.into_iter().map(read).collect())
    }
}

/// Which Swarm a record's key names.
///
/// # Errors
/// None.
pub fn swarm_of(key: &str) -> anyhow::Result<SwarmPath> {
    let names = key.strip_prefix(SWARM).and_then(|rest| rest.split_once('/'));
    let (tenant, name) = names.with_context(|| format!("`{key}` names no Swarm"))?;
    Ok(Scope::of(tenant.parse()?).path(&name.parse()?))
}

/// Whose a record is, unless that tenant is always there.
fn owner(key: &str) -> Option<&str> {
    let (kind, rest) = key.split_once('/')?;
    let (tenant, _) = rest.split_once('/')?;
    let owned = matches!(kind, "module" | "model" | "swarm" | "secret" | "edge" | "edge-seen");
    (owned && tenant != TenantId::default_tenant().as_str()).then_some(tenant)
}

/// What a stored record says, of a Swarm, a module, a model, a secret or a tenant.
///
/// # Errors
/// It is damaged, newer than this skep, or none of these.
pub fn read(key: &str, value: &[u8]) -> anyhow::Result<Read> {
    let mut parts = key.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("swarm"), Some(tenant), Some(name)) => {
            let record: SwarmRecord = decode(key, value)?;
            if record.swarm.name.as_str() != name {
                bail!("catalog record `{key}` is of another Swarm");
            }
            Ok(Read::Swarm(tenant.parse()?, Box::new(record)))
        }
        (Some("module"), Some(tenant), Some(name)) => {
            Ok(Read::Module(tenant.parse()?, name.parse()?, decode(key, value)?))
        }
        (Some("model"), Some(tenant), Some(name)) => {
            Ok(Read::Model(tenant.parse()?, name.parse()?, decode(key, value)?))
        }
        (Some("secret"), Some(tenant), Some(name)) => {
            Ok(Read::Secret(tenant.parse()?, name.parse()?, decode(key, value)?))
        }
        (Some("edge"), Some(tenant), Some(name)) => Ok(Read::Edge(
            tenant.parse()?,
            name.to_owned(),
            Box::new(decode(key, value)?),
        )),
        (Some(HUB_KEY), None, None) => Ok(Read::HubKey(decode(key, value)?)),
        (Some("tenant"), Some(tenant), None) => Ok(Read::Tenant(tenant.parse()?, decode(key, value)?)),
        _ => bail!("`{key}` is no record of a module, a model, a Swarm, a secret, a tenant or an edge"),
    }
}
