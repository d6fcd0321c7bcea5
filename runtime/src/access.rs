//! Who may come in, as the catalog keeps it, and how this node's door hears of it.
//!
//! ```text
//!   access        the door was closed, and stays so                      mirrored
//!   token/ID      whose, which role, the hash of its secret, until when  mirrored
//!   tenant/NAME   a tenant                                               mirrored
//!   peers         by what nodes of this store know each other            not mirrored: the key does not lie beside the modules
//! ```
//! A change rings the catalog's bell; a node that does not hear it reads at its next beat. So what is revoked at one node ends at all within
//! two seconds, and within [`skep_model::limits::ACCESS_UNHEARD_MS`] at one that is cut off.

mod bootstrap;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_gateway::Door;
use skep_gateway::door::Pass;
use skep_model::access::{By, Caller, PeerKey, Role, Secret, SecretHash, TokenId};
use skep_model::env::{Clock, Entropy};
use skep_model::name::TenantId;
use skep_model::scope::Scope;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalogs, RACES_MAX, Versioned};
use crate::members::Members;
use crate::quotas::Quotas;

/// The store's level from which on all nodes know of tokens: an older one would let everybody in.
pub const LEVEL: u32 = 2;
const ACCESS: &str = "access";
const PEERS: &str = "peers";
const TOKEN: &str = "token/";
/// How often it is looked whose time is over.
const LOOK: Duration = Duration::from_millis(500);

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// `None`: an operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    pub role: Role,
    #[serde(default)]
    pub name: String,
    /// Hex.
    pub hash: String,
    pub created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Former>,
    /// It came from a file of a node, which may bring it again: revoked, it is kept as one that ran out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_file: bool,
}

/// The secret before the last rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    pub hash: String,
    pub until_ms: u64,
}

impl TokenRecord {
    /// Whom it lets in.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant.clone().unwrap_or_else(TenantId::default_tenant)
    }

    fn is_live(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|until| now_ms < until)
    }

    fn passes(&self, id: TokenId) -> anyhow::Result<Vec<Pass>> {
        let caller = Caller {
            scope: Scope::of(self.tenant()),
            role: self.role,
            by: By::Token(id),
        };
        let hash = |text: &str| text.parse::<SecretHash>().context("the hash of a token in the catalog");
        let mut passes = vec![Pass {
            hash: hash(&self.hash)?,
            until_ms: self.expires_ms,
            caller: caller.clone(),
            name: self.name.as_str().into(),
        }];
        if let Some(former) = &self.former {
            passes.push(Pass {
                hash: hash(&former.hash)?,
                until_ms: Some(self.expires_ms.map_or(former.until_ms, |e| e.min(former.until_ms))),
                caller,
                name: self.name.as_str().into(),
            });
        }
        Ok(passes)
    }
}

/// The door was closed: from then on everybody needs a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ClosedRecord {
    closed_ms: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct PeersRecord {
    key: String,
}

/// What is kept of tokens, and this node's door.
pub struct Registry {
    pub catalogs: Catalogs,
    pub door: Arc<Door>,
    /// Told with the door what tenants may have.
    pub quotas: Arc<Quotas>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// Held while the catalog is read and the door is told, so that nobody tells it of an older state afterwards.
    reading: Mutex<()>,
}

impl Registry {
    #[must_use]
    pub fn new(catalogs: Catalogs, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Arc<Self> {
        Arc::new(Self {
            catalogs,
            door: Door::open(Arc::clone(&clock)),
            quotas: Arc::default(),
            clock,
            entropy,
            reading: Mutex::default(),
        })
    }

    /// Tells the door what the catalog has.
    ///
    /// # Errors
    /// When the catalog cannot be read; the door stays as it is.
    pub async fn refresh(&self) -> anyhow::Result<()> {
        let _reading = self.reading.lock().await;
        let closed = self.catalogs.get::<ClosedRecord>(ACCESS).await?.is_some();
        if !closed && self.door.is_open() {
            return Ok(());
        }
        // Before anybody is let in by it: it may be a catalog that was taken back.
        self.catalogs.follow().await?;
        let tenants = self.catalogs.tenants().await?;
        self.quotas
            .bear(tenants.iter().map(|(tenant, found)| (tenant, found.record.created_ms)));
        self.quotas.tell(
            tenants
                .iter()
                .map(|(tenant, found)| (tenant, &found.record.limits, found.record.isolation)),
        );
        let mut passes = Vec::new();
        for (id, token) in self.tokens().await? {
            let known = token.record.tenant.as_ref().is_none_or(|tenant| {
                *tenant == TenantId::default_tenant() || tenants.get(tenant).is_some_and(|t| !t.record.deleting)
            });
            if known {
                passes.extend(token.record.passes(id)?);
            }
        }
        let peers = self.peers().await?;
        let there = tenants.into_iter().filter(|(_, found)| !found.record.deleting);
        self.door
            .close(passes, there.map(|(tenant, _)| tenant).collect(), peers);
        Ok(())
    }

    /// All tokens. One that cannot be read lets nobody in, and keeps nobody out.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn tokens(&self) -> anyhow::Result<BTreeMap<TokenId, Versioned<TokenRecord>>> {
        let mut out = BTreeMap::new();
        for (id, token) in self.catalogs.list_each::<TokenRecord>(TOKEN).await? {
            match (id.parse::<TokenId>(), token) {
                (Ok(id), Ok(token)) if token.record.hash.parse::<SecretHash>().is_ok() => {
                    out.insert(id, token);
                }
                (_, Err(error)) => tracing::error!(id, error = format!("{error:#}"), "a token lets nobody in"),
                _ => tracing::error!(id, "a token in the catalog is damaged and lets nobody in"),
            }
        }
        Ok(out)
    }

    /// What nodes show each other. The first that needs it makes it.
    async fn peers(&self) -> anyhow::Result<PeerKey> {
        for _ in 0..RACES_MAX {
            if let Some(found) = self.catalogs.get::<PeersRecord>(PEERS).await? {
                return PeerKey::parse(&found.record.key).context("the key of the nodes in the catalog is damaged");
            }
            let fresh = PeersRecord {
                key: PeerKey::random(self.entropy.as_ref()).to_hex(),
            };
            // Another node may be first.
            let _ = self.catalogs.put(PEERS, 0, None, &fresh).await?;
        }
        bail!("the key of the nodes in the catalog comes and goes")
    }

    /// Makes a token and tells it once.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn create(&self, mut record: TokenRecord) -> anyhow::Result<(TokenId, TokenRecord, String)> {
        for _ in 0..RACES_MAX {
            let id = TokenId::random(self.entropy.as_ref());
            let secret = Secret::random(id, self.entropy.as_ref());
            record.hash = secret.hash().to_string();
            // An id that is taken by chance is not taken over.
            if self.put(id, 0, &record).await? {
                return Ok((id, record, secret.text()));
            }
        }
        bail!("the catalog is being changed by too many at once: try again")
    }

    /// A new secret; the former one stays good until `former_until_ms`. `None`: somebody else changed it meanwhile.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn rotate(
        &self,
        id: TokenId,
        found: Versioned<TokenRecord>,
        former_until_ms: Option<u64>,
    ) -> anyhow::Result<Option<(TokenRecord, String)>> {
        let secret = Secret::random(id, self.entropy.as_ref());
        let mut record = found.record;
        let before = std::mem::replace(&mut record.hash, secret.hash().to_string());
        record.former = former_until_ms.map(|until_ms| Former { hash: before, until_ms });
        let put = self.put(id, found.version, &record).await?;
        Ok(put.then(|| (record, secret.text())))
    }

    async fn put(&self, id: TokenId, expect: u64, record: &TokenRecord) -> anyhow::Result<bool> {
        let seen = match &record.tenant {
            Some(tenant) if *tenant != TenantId::default_tenant() => {
                Some(self.catalogs.there(tenant.as_str(), None).await?)
            }
            _ => None,
        };
        let put = self.catalogs.put(&format!("{TOKEN}{id}"), expect, seen, record).await?;
        Ok(put.is_ok())
    }

    /// Ends it. `false`: somebody else changed it meanwhile.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn revoke(&self, id: TokenId, found: &Versioned<TokenRecord>) -> anyhow::Result<bool> {
        if !found.record.from_file {
            return self.remove(id, found.version).await;
        }
        let record = TokenRecord {
            // Not now: a clock that goes back would make it good again.
            expires_ms: Some(1),
            former: None,
            ..found.record.clone()
        };
        self.put(id, found.version, &record).await
    }

    /// `false`: somebody else changed it meanwhile.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn remove(&self, id: TokenId, version: u64) -> anyhow::Result<bool> {
        Ok(self.catalogs.delete(&format!("{TOKEN}{id}"), version).await?.is_ok())
    }

    /// Keeps the door in step with the catalog, until `stop`.
    pub async fn follow(self: Arc<Self>, members: Arc<Members>, stop: CancellationToken) {
        let mut beats = members.beats();
        let work = async {
            let mut known = None;
            loop {
                let mut look = None;
                tokio::select! {
                    changed = beats.changed() => match changed {
                        Ok(()) => look = Some(*beats.borrow_and_update()),
                        Err(_) => return,
                    },
                    () = tokio::time::sleep(LOOK) => {}
                }
                match look {
                    Some(number) if known == Some(number) => self.door.heard(),
                    Some(number) => match self.refresh().await {
                        Ok(()) => known = Some(number),
                        Err(error) => {
                            known = None;
                            tracing::warn!(
                                error = format!("{error:#}"),
                                "cannot read who may come in, trying again"
                            );
                        }
                    },
                    None => {}
                }
                if self.door.expire() {
                    known = None;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use skep_model::env::{ManualClock, SeededEntropy};
    use skep_model::quota::Limits;
    use skep_topic::Backend;
    use skep_topic::memory::Memory;

    use super::*;

    fn registry(backend: &Arc<Memory>, clock: &Arc<ManualClock>, seed: u64) -> Arc<Registry> {
        let backend = Arc::clone(backend) as Arc<dyn Backend>;
        let clock = Arc::clone(clock) as Arc<dyn Clock>;
        Registry::new(Catalogs::new(backend, None), clock, Arc::new(SeededEntropy::new(seed)))
    }

    fn store() -> (Arc<Memory>, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::at(1_000));
        let backend = Memory::new(Arc::clone(&clock) as Arc<dyn Clock>, Arc::new(SeededEntropy::new(1)));
        (backend, clock)
    }

    #[tokio::test]
    async fn the_file_s_token_is_an_operator_s_until_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let (backend, clock) = store();
        let (one, two) = (registry(&backend, &clock, 2), registry(&backend, &clock, 3));
        let file = dir.path().join("token");
        one.bootstrap_from(&file).await.unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&file).unwrap();
        let id = Secret::parse(text.trim()).unwrap().id;
        // Another node, another start: the same token, and no other file is written.
        two.bootstrap_from(&file).await.unwrap();
        two.bootstrap_from(&dir.path().join("unneeded")).await.unwrap();
        assert!(!dir.path().join("unneeded").exists());
        assert_eq!(two.tokens().await.unwrap().len(), 1);
        assert!(!one.door.is_open() && !two.door.is_open());
        // Lost: with another file one comes in again.
        let other = Secret::random(TokenId::random(&SeededEntropy::new(9)), &SeededEntropy::new(9));
        let second = dir.path().join("second");
        std::fs::write(&second, other.text()).unwrap();
        two.bootstrap_from(&second).await.unwrap();
        assert_eq!(two.tokens().await.unwrap().len(), 2);
        // Revoked, the first does not come back by its file.
        let found = one.tokens().await.unwrap().remove(&id).unwrap();
        assert!(one.revoke(id, &found).await.unwrap());
        one.bootstrap_from(&file).await.unwrap();
        let all = one.tokens().await.unwrap();
        assert!(!all[&id].record.is_live(one.now_ms()) && all[&other.id].record.is_live(one.now_ms()));
        // Nor where nothing else is left.
        assert!(one.revoke(other.id, &all[&other.id]).await.unwrap());
        let why = one.bootstrap_from(&file).await.unwrap_err().to_string();
        assert!(why.contains("skep token generate"), "{why}");
    }

    #[tokio::test]
    async fn nothing_is_written_for_a_tenant_that_went() {
        let (backend, clock) = store();
        let registry = registry(&backend, &clock, 2);
        let catalogs = &registry.catalogs;
        let acme: TenantId = "acme".parse().unwrap();
        let tenant = crate::catalog::TenantRecord {
            created_ms: 1,
            deleting: false,
            limits: Limits::default(),
            signers: crate::signatures::Signers::default(),
            nodes: None,
            isolation: crate::isolation::Isolation::default(),
        };
        let version = catalogs.put_tenant(&acme, 0, &tenant).await.unwrap().unwrap();
        let theirs = TokenRecord {
            tenant: Some(acme.clone()),
            ..registry.operator("theirs")
        };
        registry.create(theirs.clone()).await.unwrap();
        let path = "secret/acme/key";
        catalogs.put(path, 0, None, &1).await.unwrap().unwrap();
        // What was decided before, and is written after.
        let seen = catalogs.number().await.unwrap();
        catalogs.delete_tenant(&acme, version, seen).await.unwrap().unwrap();
        assert!(
            catalogs
                .put(path, 1, Some(seen), &2)
                .await
                .unwrap_err()
                .to_string()
                .contains("is gone")
        );
        assert!(catalogs.put("module/acme/m", 0, None, &2).await.is_err());
        assert!(
            registry
                .create(theirs)
                .await
                .unwrap_err()
                .to_string()
                .contains("is gone")
        );
        catalogs.put("secret/default/key", 0, None, &1).await.unwrap().unwrap();
        // One that comes in between is another's decision.
        catalogs.put_tenant(&acme, 0, &tenant).await.unwrap().unwrap();
        assert!(catalogs.put("module/acme/m", 0, Some(seen), &2).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_read_keeps_nobody_else_out() {
        let (backend, clock) = store();
        let registry = registry(&backend, &clock, 2);
        let (id, ..) = registry.bootstrap().await.unwrap().unwrap();
        assert!(registry.bootstrap().await.unwrap().is_none());
        for (key, value) in [
            ("token/0123456789ab", &b"{\"format\":9}"[..]),
            ("token/0123456789ac", b"{\"form"),
            ("token/no-id", b"{\"format\":1,\"record\":{}}"),
        ] {
            let value = skep_model::Bytes::from_static(value);
            backend.catalog_put(key, 0, value).await.unwrap().unwrap();
        }
        registry.refresh().await.unwrap();
        assert_eq!(registry.tokens().await.unwrap().into_keys().collect::<Vec<_>>(), [id]);
    }

    #[test]
    fn the_golden_record_reads() {
        let golden = include_str!("../tests/golden/token-record-1.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let record: TokenRecord = serde_json::from_value(golden["record"].clone()).unwrap();
        assert_eq!((record.role, record.tenant().as_str()), (Role::Deploy, "acme"));
        let again = serde_json::to_value(&record).unwrap();
        assert_eq!((again, &golden["format"]), (golden["record"].clone(), &1.into()));
    }
}
