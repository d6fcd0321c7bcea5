//! Modules: pushing, listing and removing them, with their bytes.

use std::collections::BTreeMap;

use skep_model::id::Digest;
use skep_model::limits::{MODULE_LOOSE_VERSIONS_MAX, MODULE_TAGS_MAX, MODULES_MAX};
use skep_model::name::{ModuleName, ModuleRef, SwarmName, Version as Wanted};
use skep_model::quota::Quota;
use skep_proto::v1;
use tonic::{Response, Status};

use super::failure::{internal, invalid, refused};
use super::uploads::Upload;
use super::{Keeper, Reply, uploads};
use crate::catalog::{ModuleRecord, ModuleVersion, SwarmRecord};
use crate::signatures::{SIGNERS_MAX, Signature};
use crate::store::ModuleStore;
use crate::wording::instead;

/// As a manifest names them.
fn needs(http: bool) -> Vec<String> {
    http.then(|| "http".to_owned()).into_iter().collect()
}

impl Keeper {
    pub(super) async fn modules(&self) -> Result<Vec<v1::Module>, Status> {
        let modules = self.catalog.modules().await.map_err(internal)?;
        let swarms = self.catalog.swarms().await.map_err(internal)?;
        let mut out = Vec::new();
        for (name, record) in &modules {
            for (hex, version) in &record.versions {
                out.push(v1::Module {
                    name: name.to_string(),
                    digest: format!("sha256:{hex}"),
                    tags: record
                        .tags
                        .iter()
                        .filter(|(_, d)| *d == hex)
                        .map(|(t, _)| t.clone())
                        .collect(),
                    bees: version.bees.clone(),
                    size: version.size,
                    pushed_ms: version.pushed_ms,
                    used_by: users(&swarms, hex),
                    signed_by: version
                        .signatures
                        .iter()
                        .map(|signature| signature.key.to_string())
                        .collect(),
                });
            }
        }
        Ok(out)
    }

    pub(super) async fn push(&self, upload: Upload<v1::PushHeader>) -> Reply<v1::PushModuleReply> {
        let Upload { header, digest, bytes } = upload;
        let name: ModuleName = header.name.parse().map_err(invalid)?;
        let tag = uploads::tag(&header)?;
        let size = bytes.len() as u64;
        let began = std::time::Instant::now();
        let signature = match header.signature.as_str() {
            "" => None,
            text => Some(text.parse::<Signature>().map_err(invalid)?),
        };
        if let Some(signature) = &signature {
            signature.verify(&name, &digest).map_err(invalid)?;
        }
        self.check_signed(&name, &digest, signature.as_slice()).await?;
        // Before the work, and again where nobody else can come between.
        self.room_for(&digest.to_hex(), size).await?;
        let modules = &self.supervisor.modules;
        // As the record has it: nodes are told a while later.
        let looked = self.supervisor.look_at_isolation(self.catalog.tenant()).await;
        looked.map_err(internal)?;
        let account = self.registry.quotas.of(self.catalog.tenant());
        let module = modules
            .admit(self.catalog.tenant(), &account, digest, bytes.clone())
            .await
            .map_err(|e| refused(&e))?;
        let compile_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let bees: Vec<String> = module.bees.iter().map(ToString::to_string).collect();
        let (hex, pushed_ms) = (digest.to_hex(), self.clock.now_ms());
        let writes = self.supervisor.writes.lock().await;
        self.room_for(&hex, size).await?;
        let known_names = self.catalog.modules().await.map_err(internal)?;
        if !known_names.contains_key(&name) && known_names.len() >= MODULES_MAX {
            return Err(Status::resource_exhausted(format!(
                "there are {MODULES_MAX} modules, no more fit: remove one with `skep delete-module`"
            )));
        }
        // Bytes before the record: a crash between the two leaves bytes that nobody names, never a name without bytes.
        self.store.put(&digest, bytes.clone()).await.map_err(internal)?;
        let mut dropped = Vec::new();
        let sends_http = module.sends_http;
        let mut sent_before = false;
        let changed = self.catalog.change_module(&name, |record, swarms| {
                let known = record.versions.contains_key(&hex);
                let version = record.versions.entry(hex.clone()).or_insert_with(|| ModuleVersion {
                    size,
                    bees: bees.clone(),
                    pushed_ms,
                    sends_http,
                    signatures: Vec::new(),
                });
                if let Some(signature) = &signature {
                    // One a key, so that who has it need not say it twice; the newest, should there be too many.
                    version.signatures.retain(|other| other.key != signature.key);
                    if version.signatures.len() >= SIGNERS_MAX {
                        version.signatures.remove(0);
                    }
                    version.signatures.push(signature.clone());
                }
                let replaced = record.tags.insert(tag.to_string(), hex.clone());
                let before = replaced.as_ref().and_then(|before| record.versions.get(before));
                sent_before = before.is_some_and(|before| before.sends_http);
                if record.tags.len() > MODULE_TAGS_MAX {
                    return Err(TooMany(format!(
                        "module `{name}` has {MODULE_TAGS_MAX} tags, no more fit: remove one with `skep delete-module --tag`"
                    ))
                    .into());
                }
                dropped = superseded(record, swarms);
                Ok((known, replaced))
            })
            .await;
        let (known, replaced) = match changed {
            Ok(changed) => changed,
            Err(e) => {
                // Nobody names what was stored. Should that fail as well, the reason why is still the first one.
                if let Err(left) = self.drop_bytes(vec![hex]).await {
                    tracing::warn!(
                        error = left.message(),
                        "the file of a module that was not taken stays in the store"
                    );
                }
                return Err(told(e));
            }
        };
        // Another node may have dropped the same bytes before it could see the record: see `drop_bytes`.
        if !self.store.has(&digest).await.map_err(internal)? {
            self.store.put(&digest, bytes).await.map_err(internal)?;
        }
        self.drop_bytes(dropped).await?;
        drop(writes);
        self.supervisor
            .pushed(self.catalog.tenant(), digest)
            .await
            .map_err(internal)?;
        let reference = ModuleRef {
            name,
            version: Wanted::Tag(tag),
        };
        let swarms = self.catalog.swarms().await.map_err(internal)?;
        let followers = swarms
            .iter()
            .filter(|(_, record)| {
                record
                    .swarm
                    .stages
                    .iter()
                    .any(|s| s.module.parse::<ModuleRef>().is_ok_and(|m| m == reference))
            })
            .map(|(name, _)| name.to_string())
            .collect();
        Ok(Response::new(v1::PushModuleReply {
            digest: digest.to_string(),
            bees,
            known,
            replaced: replaced
                .filter(|old| *old != hex)
                .map(|old| format!("sha256:{old}"))
                .unwrap_or_default(),
            compile_ms,
            followers,
            needs: needs(sends_http),
            new_needs: needs(sends_http && !sent_before),
        }))
    }

    /// Whether the tenant's signers let a version be used.
    pub(super) async fn check_signed(
        &self,
        name: &ModuleName,
        digest: &Digest,
        signatures: &[Signature],
    ) -> Result<(), Status> {
        let tenant = self
            .supervisor
            .catalogs
            .tenant(self.catalog.tenant())
            .await
            .map_err(internal)?;
        let Some(tenant) = tenant else { return Ok(()) };
        let checked = tenant.record.signers.check(name, digest, signatures);
        checked.map_err(Status::permission_denied)
    }

    /// Whether the tenant may have so much more of modules and models. What it has under any name already takes no more room.
    pub(super) async fn room_for(&self, hex: &str, size: u64) -> Result<(), Status> {
        let limits = self.registry.quotas.of(self.catalog.tenant()).limits();
        let Some(most) = limits.get(Quota::Modules) else {
            return Ok(());
        };
        let modules = self.catalog.modules().await.map_err(internal)?;
        let models = self.catalog.models().await.map_err(internal)?;
        let files = || {
            let modules = modules.values().flat_map(|module| &module.versions);
            let models = models.values().flat_map(|model| &model.versions);
            let modules = modules.map(|(known, version)| (known, version.size));
            modules.chain(models.map(|(known, version)| (known, version.size)))
        };
        let has: u64 = files().map(|(_, size)| size).sum();
        if files().any(|(known, _)| known == hex) || has.saturating_add(size) <= most {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "tenant `{}` has reached its limit `{}` of {}: its modules and models have {has} bytes, and this one has {size}; remove one with \
             `skep delete-module` or `skep model delete`",
            self.catalog.tenant(),
            Quota::Modules,
            Quota::Modules.show(most),
        )))
    }

    /// The bytes of versions that a record lost. The same bytes may have been pushed under another name. Under `writes`.
    ///
    /// Other nodes share catalog and store and not `writes`. Whoever pushes writes the record and then looks for the bytes; whoever drops
    /// removes the bytes and then looks for a record: one of the two sees the other and puts them back.
    pub(super) async fn drop_bytes(&self, dropped: Vec<String>) -> Result<(), Status> {
        self.drop_files(&self.store, dropped).await
    }

    /// Files that a record of a module or a model lost, and none names.
    pub(super) async fn drop_files(&self, store: &ModuleStore, dropped: Vec<String>) -> Result<(), Status> {
        for hex in dropped {
            let Ok(digest) = hex.parse() else {
                continue;
            };
            if self.is_named(&hex).await? {
                continue;
            }
            let bytes = store.get(&digest).await.ok();
            store.remove(&digest).await.map_err(internal)?;
            if let Some(bytes) = bytes
                && self.is_named(&hex).await?
            {
                store.put(&digest, bytes).await.map_err(internal)?;
            }
        }
        Ok(())
    }

    async fn is_named(&self, hex: &str) -> Result<bool, Status> {
        let modules = self.catalog.modules().await.map_err(internal)?;
        let models = self.catalog.models().await.map_err(internal)?;
        Ok(modules.values().any(|module| module.versions.contains_key(hex))
            || models.values().any(|model| model.versions.contains_key(hex)))
    }

    pub(super) async fn remove_module(&self, asked: v1::DeleteModuleRequest) -> Reply<v1::DeleteModuleReply> {
        let name: ModuleName = asked.name.parse().map_err(invalid)?;
        let _writes = self.supervisor.writes.lock().await;
        let known = self.catalog.modules().await.map_err(internal)?;
        let mut dropped = Vec::new();
        let removed = self
            .catalog
            .change_module(&name, |record, swarms| {
                dropped.clear();
                let tags: Vec<String> = record
                    .tags
                    .keys()
                    .filter(|t| asked.tag.is_empty() || **t == asked.tag)
                    .cloned()
                    .collect();
                if tags.is_empty() {
                    return Err(NoSuch(no_such(&name, &asked.tag, record, &known)).into());
                }
                let untagged: Vec<String> = tags.iter().filter_map(|tag| record.tags.remove(tag)).collect();
                let loose: Vec<String> = record
                    .versions
                    .keys()
                    .filter(|hex| !record.tags.values().any(|d| d == *hex))
                    .cloned()
                    .collect();
                for hex in loose {
                    let used = users(swarms, &hex);
                    // A version that lost its tag earlier and is in use is not what was asked about, unless all goes.
                    if !used.is_empty() && !asked.tag.is_empty() && !untagged.contains(&hex) {
                        continue;
                    }
                    if !used.is_empty() {
                        return Err(InUse(format!(
                            "module `{name}` ({}) is used by {}: delete or re-apply those Swarms first",
                            &hex[..12],
                            used.join(", ")
                        ))
                        .into());
                    }
                    record.versions.remove(&hex);
                    dropped.push(hex);
                }
                Ok(tags)
            })
            .await
            .map_err(told)?;
        self.drop_bytes(dropped).await?;
        Ok(Response::new(v1::DeleteModuleReply { removed_tags: removed }))
    }
}

/// What there is instead of a module or tag that is not there.
fn no_such(name: &ModuleName, tag: &str, record: &ModuleRecord, known: &BTreeMap<ModuleName, ModuleRecord>) -> String {
    if record.versions.is_empty() {
        let names: Vec<&str> = known.keys().map(ModuleName::as_str).collect();
        return format!(
            "no module `{name}`; {}",
            instead(name.as_str(), &names, "there is none")
        );
    }
    let tags: Vec<&str> = record.tags.keys().map(String::as_str).collect();
    format!(
        "module `{name}` has no tag `{tag}`; {}",
        instead(tag, &tags, "it has none: it goes with its last Swarm")
    )
}

/// Takes old versions out that have no tag and no user, all but the newest few.
fn superseded(record: &mut ModuleRecord, swarms: &BTreeMap<SwarmName, SwarmRecord>) -> Vec<String> {
    let mut loose: Vec<(u64, String)> = record
        .versions
        .iter()
        .filter(|(hex, _)| !record.tags.values().any(|d| d == *hex) && users(swarms, hex).is_empty())
        .map(|(hex, version)| (version.pushed_ms, hex.clone()))
        .collect();
    loose.sort();
    loose.truncate(loose.len().saturating_sub(MODULE_LOOSE_VERSIONS_MAX));
    loose
        .into_iter()
        .map(|(_, hex)| {
            record.versions.remove(&hex);
            hex
        })
        .collect()
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TooMany(pub String);

pub(super) fn told(e: anyhow::Error) -> Status {
    if let Some(no) = e.downcast_ref::<NoSuch>() {
        return Status::not_found(no.to_string());
    }
    if let Some(used) = e.downcast_ref::<InUse>() {
        return Status::failed_precondition(used.to_string());
    }
    if let Some(many) = e.downcast_ref::<TooMany>() {
        return Status::resource_exhausted(many.to_string());
    }
    internal(e)
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoSuch(pub String);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct InUse(pub String);

fn users(swarms: &BTreeMap<SwarmName, SwarmRecord>, hex: &str) -> Vec<String> {
    swarms
        .iter()
        .filter(|(_, record)| record.digests().any(|d| d == hex))
        .map(|(name, _)| name.to_string())
        .collect()
}
