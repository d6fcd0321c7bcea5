//! Tenants' secrets: sealed in the catalog, open in the memory of nodes that hold the key, and read by Bees whose manifest grants them.
//!
//! Sealed with ChaCha20-Poly1305 under a key that is not in the store (RFC 8439; a nonce of 96 random bits, so one key is good for far more
//! than the 2^32 values after which two nonces might meet). Tenant, name and version are authenticated with the value, so that whoever
//! can write to the store cannot put one secret in another's place. They can put back an older record of the same secret.

mod keys;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_engine::{Granted, SecretValue};
use skep_model::limits::{SECRET_BYTES_MAX, SECRETS_PER_TENANT_MAX};
use skep_model::name::{SecretName, TenantId};
use skep_topic::CatalogRecord;

use crate::catalog::{Catalogs, RACES_MAX, Versioned};

pub use keys::{KeyPlace, Keys};

const PREFIX: &str = "secret/";
/// The record of the key by which edges know this store's nodes.
pub(crate) const HUB_KEY: &str = "hub-key";

/// A secret at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRecord {
    /// How often it was set, from 1.
    pub version: u64,
    pub set_ms: u64,
    /// Which key sealed it: see [`Keys`].
    pub key: String,
    /// Nonce and sealed value, hex.
    pub sealed: String,
}

/// What everybody may know of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub name: SecretName,
    pub version: u64,
    pub set_ms: u64,
    /// Why this node cannot open it.
    pub trouble: Option<String>,
}

type Id = (TenantId, SecretName);

#[derive(Clone)]
struct Held {
    record: SecretRecord,
    /// Or why it cannot be opened.
    value: Result<SecretValue, String>,
}

/// As of one look at the catalog.
#[derive(Default)]
struct Opened {
    /// Another at each change.
    look: u64,
    secrets: BTreeMap<Id, Held>,
}

/// The secrets of all tenants, as this node has them.
pub struct Vault {
    catalogs: Catalogs,
    keys: Keys,
    opened: RwLock<Arc<Opened>>,
    /// One look at a time: the later one must not be overtaken.
    looking: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault")
    }
}

impl Vault {
    #[must_use]
    pub fn new(catalogs: Catalogs, keys: Keys) -> Arc<Self> {
        Arc::new(Self {
            catalogs,
            keys,
            opened: RwLock::default(),
            looking: tokio::sync::Mutex::default(),
        })
    }

    fn opened(&self) -> Arc<Opened> {
        Arc::clone(&self.opened.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads what is new in the catalog. What cannot be opened stays with its reason: the others serve.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn look(&self) -> anyhow::Result<()> {
        let _one = self.looking.lock().await;
        let before = self.opened();
        let mut secrets = BTreeMap::new();
        for (path, read) in self.catalogs.list_each::<SecretRecord>(PREFIX).await? {
            let Some(id) = id(&path) else {
                tracing::error!(path, "a secret's record has no good name");
                continue;
            };
            let Versioned { record, .. } = match read {
                Ok(read) => read,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "a secret cannot be read");
                    continue;
                }
            };
            let held = match before.secrets.get(&id) {
                Some(held) if held.record == record && held.value.is_ok() => held.clone(),
                _ => {
                    let value = self.keys.open(&id.0, &id.1, &record).map_err(|e| format!("{e:#}"));
                    if let Err(why) = &value {
                        tracing::error!(tenant = %id.0, secret = %id.1, why, "a secret cannot be opened");
                    }
                    Held { record, value }
                }
            };
            secrets.insert(id, held);
        }
        let same = |(a, b): (&Held, &Held)| a.record == b.record && a.value.is_ok() == b.value.is_ok();
        let unchanged =
            secrets.keys().eq(before.secrets.keys()) && secrets.values().zip(before.secrets.values()).all(same);
        if !unchanged {
            let look = before.look + 1;
            *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Opened { look, secrets });
        }
        Ok(())
    }

    #[must_use]
    pub fn list(&self, tenant: &TenantId) -> Vec<Known> {
        let opened = self.opened();
        let of = opened.secrets.iter().filter(|((owner, _), _)| owner == tenant);
        of.map(|((_, name), held)| Known {
            name: name.clone(),
            version: held.record.version,
            set_ms: held.record.set_ms,
            trouble: held.value.as_ref().err().cloned(),
        })
        .collect()
    }

    #[must_use]
    pub fn has(&self, tenant: &TenantId, name: &SecretName) -> bool {
        self.opened().secrets.contains_key(&(tenant.clone(), name.clone()))
    }

    /// Sets a secret; it counts here when this returns, and on other nodes within a beat. Returns its version.
    ///
    /// # Errors
    /// Too long, too many, no key here, or the store cannot be written.
    pub async fn set(&self, tenant: &TenantId, name: &SecretName, value: Vec<u8>, now_ms: u64) -> anyhow::Result<u64> {
        let value = SecretValue::new(value);
        let bytes = value.expose().len();
        if bytes == 0 {
            bail!(Refused("an empty secret keeps nothing".to_owned()));
        }
        if bytes > SECRET_BYTES_MAX {
            bail!(Refused(format!(
                "a secret has at most {SECRET_BYTES_MAX} bytes, this one has {bytes}"
            )));
        }
        let key = path(tenant, name);
        for _ in 0..RACES_MAX {
            let found = self.catalogs.get::<SecretRecord>(&key).await?;
            let (expect, version) = found.map_or((0, 0), |f| (f.version, f.record.version));
            if expect == 0 && self.list(tenant).len() >= SECRETS_PER_TENANT_MAX {
                bail!(Refused(format!(
                    "a tenant has at most {SECRETS_PER_TENANT_MAX} secrets: delete one"
                )));
            }
            let record = self.keys.seal(tenant, name, version + 1, now_ms, &value)?;
            if self.catalogs.put(&key, expect, None, &record).await?.is_ok() {
                self.look().await?;
                return Ok(version + 1);
            }
        }
        bail!("secret `{name}` is being changed by too many at once: try again")
    }

    /// Whether there was one.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn delete(&self, tenant: &TenantId, name: &SecretName) -> anyhow::Result<bool> {
        let key = path(tenant, name);
        for _ in 0..RACES_MAX {
            let Some(found) = self.catalogs.get::<SecretRecord>(&key).await? else {
                return Ok(false);
            };
            if self.catalogs.delete(&key, found.version).await?.is_ok() {
                self.look().await?;
                return Ok(true);
            }
        }
        bail!("secret `{name}` is being changed by too many at once: try again")
    }

    /// All, as stored.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn stored(&self) -> anyhow::Result<Vec<(String, CatalogRecord)>> {
        self.catalogs.stored(PREFIX).await
    }

    /// Puts a record back as it was stored, unless there is one of its name.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn restore(&self, tenant: &TenantId, name: &SecretName, record: &SecretRecord) -> anyhow::Result<()> {
        let _ = self.catalogs.put(&path(tenant, name), 0, None, record).await?;
        self.look().await
    }

    /// A tenant goes. Whether it had any.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn forget(&self, tenant: &TenantId) -> anyhow::Result<bool> {
        self.look().await?;
        let all = self.list(tenant);
        for secret in &all {
            self.delete(tenant, &secret.name).await?;
        }
        Ok(!all.is_empty())
    }

    /// Seals with the first key whatever another one sealed. Returns how many.
    ///
    /// # Errors
    /// One cannot be opened, or the store cannot be written. Those before it are done.
    pub async fn reseal(&self) -> anyhow::Result<u64> {
        self.look().await?;
        let mut done = 0;
        for (tenant, name) in self.opened().secrets.keys() {
            done += u64::from(self.reseal_one(&path(tenant, name), tenant, name).await?);
        }
        let (tenant, name) = hub_key_names()?;
        done += u64::from(self.reseal_one(HUB_KEY, &tenant, &name).await?);
        self.look().await?;
        Ok(done)
    }

    /// Whether it had to be done.
    async fn reseal_one(&self, key: &str, tenant: &TenantId, name: &SecretName) -> anyhow::Result<bool> {
        for _ in 0..RACES_MAX {
            let Some(found) = self.catalogs.get::<SecretRecord>(key).await? else {
                return Ok(false);
            };
            if self.keys.is_newest(&found.record)? {
                return Ok(false);
            }
            let what = || match key {
                HUB_KEY => "the hub's key for edges".to_owned(),
                _ => format!("secret `{name}` of tenant `{tenant}`"),
            };
            let value = self.keys.open(tenant, name, &found.record).with_context(what)?;
            let again = self
                .keys
                .seal(tenant, name, found.record.version, found.record.set_ms, &value)?;
            if self.catalogs.put(key, found.version, None, &again).await?.is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The private key with which this store's nodes speak to edges, PKCS#8, sealed like a secret. It is nobody's secret: its version is one that
    /// no secret has. `None`: nobody has invited an edge yet.
    ///
    /// # Errors
    /// It cannot be opened here, or the store cannot be read.
    pub async fn hub_key(&self) -> anyhow::Result<Option<SecretValue>> {
        let Some(found) = self.catalogs.get::<SecretRecord>(HUB_KEY).await? else {
            return Ok(None);
        };
        let (tenant, name) = hub_key_names()?;
        let open = self.keys.open(&tenant, &name, &found.record);
        open.context("the hub's key for edges").map(Some)
    }

    /// The same, made if there is none. Only for who may invite an edge: who merely calls could make a second one behind a failover that took the
    /// first, and all edges would see another hub.
    ///
    /// # Errors
    /// No key to seal with here, or the store cannot be read or written.
    pub async fn make_hub_key(&self, now_ms: u64) -> anyhow::Result<SecretValue> {
        let (tenant, name) = hub_key_names()?;
        loop {
            if let Some(found) = self.hub_key().await? {
                return Ok(found);
            }
            let made = SecretValue::new(skep_edge::keys::Key::generate()?.to_vec());
            let record = self.keys.seal(&tenant, &name, 0, now_ms, &made)?;
            if self.catalogs.put(HUB_KEY, 0, None, &record).await?.is_ok() {
                return Ok(made);
            }
        }
    }

    /// Puts the hub's key back as it was stored, unless there is one.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn restore_hub_key(&self, record: &SecretRecord) -> anyhow::Result<()> {
        let _ = self.catalogs.put(HUB_KEY, 0, None, record).await?;
        Ok(())
    }

    /// What a stage may read.
    #[must_use]
    pub fn grant(
        self: &Arc<Self>,
        tenant: &TenantId,
        names: &BTreeSet<SecretName>,
    ) -> Option<Arc<dyn skep_engine::Secrets>> {
        if names.is_empty() {
            return None;
        }
        Some(Arc::new(Grant {
            vault: Arc::clone(self),
            tenant: tenant.clone(),
            names: names.clone(),
            last: Mutex::default(),
        }))
    }
}

/// What one stage may read, worked out once a look.
struct Grant {
    vault: Arc<Vault>,
    tenant: TenantId,
    names: BTreeSet<SecretName>,
    last: Mutex<Option<(u64, Arc<Granted>)>>,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grant").field(&self.names).finish()
    }
}

impl skep_engine::Secrets for Grant {
    fn granted(&self) -> Arc<Granted> {
        let opened = self.vault.opened();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((look, granted)) = &*last
            && *look == opened.look
        {
            return Arc::clone(granted);
        }
        let value = |name: &SecretName| {
            let held = opened.secrets.get(&(self.tenant.clone(), name.clone()))?;
            held.value.as_ref().ok().cloned()
        };
        let values = self.names.iter().map(|name| (name.to_string(), value(name)));
        let granted = Arc::new(Granted::new(values.collect()));
        *last = Some((opened.look, Arc::clone(&granted)));
        granted
    }
}

/// The caller's mistake.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// As whose it is sealed.
fn hub_key_names() -> anyhow::Result<(TenantId, SecretName)> {
    Ok((TenantId::default_tenant(), HUB_KEY.parse()?))
}

fn path(tenant: &TenantId, name: &SecretName) -> String {
    format!("{PREFIX}{tenant}/{name}")
}

fn id(path: &str) -> Option<Id> {
    let (tenant, name) = path.split_once('/')?;
    Some((tenant.parse().ok()?, name.parse().ok()?))
}
