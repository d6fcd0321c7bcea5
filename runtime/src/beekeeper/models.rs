//! The service of models: pushing, listing, tagging and removing them, and how their calls run together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use skep_inference::Policy;
use skep_inference::limits::{BATCH_ROWS_DEFAULT, BATCH_ROWS_MAX, BATCH_WAIT_US_MAX};
use skep_model::access::Role;
use skep_model::id::Digest;
use skep_model::limits::{MODEL_LOOSE_VERSIONS_MAX, MODEL_TAGS_MAX, MODEL_UPLOADS_MAX, MODELS_MAX};
use skep_model::name::{ModelName, ModelRef, SwarmName, Tag, TenantId, Version};
use skep_model::swarm::Swarm;
use skep_model::tensor::{Port, Signature};
use skep_proto::v1;
use skep_proto::v1::models_server::Models;
use tonic::{Request, Response, Status, Streaming};

use super::failure::{internal, invalid};
use super::modules::{InUse, NoSuch, TooMany, told};
use super::uploads::{self, Upload};
use super::{Desk, Keeper, Reply, detached};
use crate::catalog::{ModelKept, ModelRecord, SwarmRecord};
use crate::wording::instead;

static UPLOADS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(MODEL_UPLOADS_MAX);

/// Who uploads: one at a time of a tenant, so that none keeps the others out.
static UPLOADING: Mutex<BTreeSet<TenantId>> = Mutex::new(BTreeSet::new());

/// Since when a store may have models: a node below it would leave them behind when their tenant goes.
const LEVEL: u32 = 2;

/// A tenant's place among those who upload.
struct Uploading(TenantId);

impl Uploading {
    fn of(tenant: &TenantId) -> Option<Self> {
        let mut all = UPLOADING.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(tenant.clone()).then(|| Self(tenant.clone()))
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        let mut all = UPLOADING.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.0);
    }
}

#[tonic::async_trait]
impl Models for Desk {
    async fn push_model(&self, request: Request<Streaming<v1::PushModelRequest>>) -> Reply<v1::PushModelReply> {
        let this = self.of(&request)?;
        let own = Uploading::of(this.catalog.tenant()).ok_or_else(|| {
            Status::resource_exhausted("your tenant uploads a model already: try again when that is done")
        })?;
        let place = UPLOADS.try_acquire().map_err(|_| {
            Status::resource_exhausted(format!(
                "{MODEL_UPLOADS_MAX} uploads of models are under way, no more fit: try again soon"
            ))
        })?;
        let upload = uploads::receive(request.into_inner(), this.upload).await?;
        let pushed = detached(async move {
            let _places = (place, own);
            this.push_model(upload).await
        });
        pushed.await.map(Response::new)
    }

    async fn list_models(&self, request: Request<v1::ListModelsRequest>) -> Reply<v1::ListModelsReply> {
        let this = self.of(&request)?;
        this.list_models(&request.into_inner().name).await.map(Response::new)
    }

    async fn tag_model(&self, request: Request<v1::TagModelRequest>) -> Reply<v1::TagModelReply> {
        let this = self.of(&request)?;
        let tagged = detached(async move { this.tag_model(request.into_inner()).await });
        tagged.await.map(Response::new)
    }

    async fn delete_model(&self, request: Request<v1::DeleteModelRequest>) -> Reply<v1::DeleteModelReply> {
        let this = self.of(&request)?;
        let gone = detached(async move { this.delete_model(request.into_inner()).await });
        gone.await.map(Response::new)
    }

    async fn set_batching(&self, request: Request<v1::SetBatchingRequest>) -> Reply<v1::Model> {
        let this = self.of(&request)?;
        let set = detached(async move { this.set_batching(request.into_inner()).await });
        set.await.map(Response::new)
    }
}

impl Keeper {
    async fn push_model(&self, upload: Upload<v1::ModelHeader>) -> Result<v1::PushModelReply, Status> {
        let Upload { header, digest, bytes } = upload;
        let name: ModelName = header.name.parse().map_err(invalid)?;
        let tag = uploads::tag(&header)?;
        let batching = header.batching.map(policy).transpose()?;
        let (size, hex) = (bytes.len() as u64, digest.to_hex());
        if self.members.level() < LEVEL {
            return Err(Status::failed_precondition(format!(
                "models need a store of level {LEVEL}, and this one is at {}: it rises once all nodes have been upgraded",
                self.members.level()
            )));
        }
        // Before the work, and again where nobody else can come between.
        self.room_for(&hex, size).await?;
        let began = Instant::now();
        let looked = self.lookout.look(&bytes).await;
        let described = looked.map_err(|e| match e.permanent {
            true => Status::invalid_argument(e.to_string()),
            false => Status::unavailable(e.to_string()),
        })?;
        let looked_at_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let pushed_ms = self.clock.now_ms();
        let writes = self.supervisor.writes.lock().await;
        self.room_for(&hex, size).await?;
        let known_names = self.catalog.models().await.map_err(internal)?;
        if !known_names.contains_key(&name) && known_names.len() >= MODELS_MAX {
            return Err(Status::resource_exhausted(format!(
                "there are {MODELS_MAX} models, no more fit: remove one with `skep model delete`"
            )));
        }
        let store = self.store.models();
        // Bytes before the record: a crash between the two leaves bytes that nobody names, never a name without bytes.
        store.put(&digest, bytes.clone()).await.map_err(internal)?;
        let mut dropped = Vec::new();
        let changed = self.catalog.change_model(&name, |record, swarms| {
            let known = record.versions.contains_key(&hex);
            record.versions.entry(hex.clone()).or_insert_with(|| ModelKept {
                size,
                pushed_ms,
                left_ms: 0,
                described: described.clone(),
            });
            let replaced = record.tags.insert(tag.to_string(), hex.clone());
            left(record, replaced.as_ref(), pushed_ms);
            let changes = replaced
                .as_ref()
                .and_then(|before| record.versions.get(before))
                .map(|before| changes(&before.described.signature, &described.signature))
                .unwrap_or_default();
            if let Some(batching) = batching {
                record.batching = batching;
            }
            if record.tags.len() > MODEL_TAGS_MAX {
                return Err(TooMany(format!(
                    "model `{name}` has {MODEL_TAGS_MAX} tags, no more fit: remove one with `skep model delete {name}:TAG`"
                ))
                .into());
            }
            dropped = superseded(&name, record, swarms);
            Ok((known, replaced, changes))
        });
        let (known, replaced, changes) = match changed.await {
            Ok(changed) => changed,
            Err(e) => {
                // Nobody names what was stored. Should that fail as well, the reason why is still the first one.
                if let Err(left) = self.drop_model_bytes(vec![hex]).await {
                    tracing::warn!(
                        error = left.message(),
                        "the file of a model that was not taken stays in the store"
                    );
                }
                return Err(told(e));
            }
        };
        // Another node may have dropped the same bytes before it could see the record: see `drop_bytes`.
        if !store.has(&digest).await.map_err(internal)? {
            store.put(&digest, bytes).await.map_err(internal)?;
        }
        self.drop_model_bytes(dropped).await?;
        drop(writes);
        self.look_at_models().await;
        let model = self.one_model(&name).await?;
        let version = model.versions.into_iter().find(|v| v.digest == digest.to_string());
        Ok(v1::PushModelReply {
            version,
            known,
            replaced: replaced
                .filter(|old| *old != hex)
                .map(|old| format!("sha256:{old}"))
                .unwrap_or_default(),
            looked_at_ms,
            changes,
        })
    }

    async fn list_models(&self, name: &str) -> Result<v1::ListModelsReply, Status> {
        let backend = self.supervisor.models.shelf().backend().name().to_owned();
        let models = if name.is_empty() {
            let swarms = self.catalog.swarms().await.map_err(internal)?;
            let models = self.catalog.models().await.map_err(internal)?;
            let shown = models.iter().map(|(name, record)| self.shown(name, record, &swarms));
            shown.collect()
        } else {
            vec![self.one_model(&name.parse().map_err(invalid)?).await?]
        };
        Ok(v1::ListModelsReply { models, backend })
    }

    async fn one_model(&self, name: &ModelName) -> Result<v1::Model, Status> {
        let swarms = self.catalog.swarms().await.map_err(internal)?;
        match self.catalog.model(name).await.map_err(internal)? {
            Some(found) => Ok(self.shown(name, &found.record, &swarms)),
            None => Err(Status::not_found(self.no_such_model(name).await?)),
        }
    }

    async fn no_such_model(&self, name: &ModelName) -> Result<String, Status> {
        let known = self.catalog.models().await.map_err(internal)?;
        let names: Vec<&str> = known.keys().map(ModelName::as_str).collect();
        let none = "there is none yet: `skep model push FILE.onnx --name NAME`";
        Ok(format!("no model `{name}`; {}", instead(name.as_str(), &names, none)))
    }

    fn shown(&self, name: &ModelName, record: &ModelRecord, swarms: &BTreeMap<SwarmName, SwarmRecord>) -> v1::Model {
        let mut versions: Vec<_> = record.versions.iter().collect();
        versions.sort_by_key(|(_, kept)| std::cmp::Reverse(kept.pushed_ms));
        let versions = versions.into_iter().map(|(hex, kept)| {
            let tags = || record.tags.iter().filter(move |(_, to)| *to == hex).map(|(tag, _)| tag);
            let digest: Option<Digest> = hex.parse().ok();
            let granted = granted(swarms, |model| {
                model.name == *name
                    && match &model.version {
                        Version::Tag(tag) => tags().any(|t| t == tag.as_str()),
                        Version::Digest(wanted) => digest == Some(*wanted),
                    }
            });
            let described = &kept.described;
            v1::ModelVersion {
                digest: format!("sha256:{hex}"),
                tags: tags().cloned().collect(),
                size: kept.size,
                pushed_ms: kept.pushed_ms,
                inputs: described.signature.inputs.iter().map(tensor).collect(),
                outputs: described.signature.outputs.iter().map(tensor).collect(),
                opset: described.opset,
                producer: described.producer.clone(),
                nodes: described.nodes as u64,
                weights: described.weights_bytes,
                batchable: described.batchable,
                // Whether others use the same bytes is no tenant's to know.
                loaded: self.caller.role.covers(Role::Operator)
                    && digest.is_some_and(|digest| self.supervisor.models.is_loaded(digest, record.batching)),
                granted,
            }
        });
        let batching = record.batching.clamped();
        v1::Model {
            name: name.to_string(),
            batching: Some(v1::Batching {
                off: batching.off,
                together: batching.together,
                max_rows: u32::try_from(batching.max_rows).unwrap_or(u32::MAX),
                max_wait_us: u32::try_from(batching.max_wait_us).unwrap_or(u32::MAX),
            }),
            versions: versions.collect(),
        }
    }

    async fn tag_model(&self, asked: v1::TagModelRequest) -> Result<v1::TagModelReply, Status> {
        let name: ModelName = asked.name.parse().map_err(invalid)?;
        let tag: Tag = asked.tag.parse().map_err(|e| invalid(format!("tag: {e}")))?;
        let wanted = version(&asked.version)?;
        let absent = self.no_such_model(&name).await?;
        let now_ms = self.clock.now_ms();
        let _writes = self.supervisor.writes.lock().await;
        let changed = self.catalog.change_model(&name, |record, _| {
            if record.versions.is_empty() {
                return Err(NoSuch(absent.clone()).into());
            }
            let hex = match &wanted {
                Version::Tag(from) => record.tags.get(from.as_str()).cloned(),
                Version::Digest(digest) => Some(digest.to_hex()).filter(|hex| record.versions.contains_key(hex)),
            };
            let Some(hex) = hex else {
                return Err(NoSuch(no_version(&name, &asked.version, record)).into());
            };
            let replaced = record.tags.insert(tag.to_string(), hex.clone());
            if record.tags.len() > MODEL_TAGS_MAX {
                return Err(TooMany(format!(
                    "model `{name}` has {MODEL_TAGS_MAX} tags, no more fit: remove one with `skep model delete {name}:TAG`"
                ))
                .into());
            }
            left(record, replaced.as_ref(), now_ms);
            Ok((hex, replaced))
        });
        let (hex, replaced) = changed.await.map_err(told)?;
        self.look_at_models().await;
        Ok(v1::TagModelReply {
            digest: format!("sha256:{hex}"),
            replaced: replaced.map(|hex| format!("sha256:{hex}")).unwrap_or_default(),
        })
    }

    async fn delete_model(&self, asked: v1::DeleteModelRequest) -> Result<v1::DeleteModelReply, Status> {
        let name: ModelName = asked.name.parse().map_err(invalid)?;
        let absent = self.no_such_model(&name).await?;
        let _writes = self.supervisor.writes.lock().await;
        let changed = self.catalog.change_model(&name, |record, swarms| {
            if record.versions.is_empty() {
                return Err(NoSuch(absent.clone()).into());
            }
            let all = asked.tag.is_empty();
            let tags: Vec<String> = match all {
                true => record.tags.keys().cloned().collect(),
                false if record.tags.contains_key(&asked.tag) => vec![asked.tag.clone()],
                false => return Err(NoSuch(no_version(&name, &asked.tag, record)).into()),
            };
            let by = |hex: &String| granted(swarms, |model| names(model, &name, hex));
            let users = granted(swarms, |model| {
                model.name == name && (all || matches!(&model.version, Version::Tag(tag) if tag.as_str() == asked.tag))
            });
            if !users.is_empty() && !asked.force {
                return Err(InUse(format!(
                    "model `{name}` is granted to {}: apply them without it first, or delete it with --force",
                    users.join(", ")
                ))
                .into());
            }
            let named: Vec<String> = tags.iter().filter_map(|tag| record.tags.remove(tag)).collect();
            let gone = |hex: &String| {
                let tagged = record.tags.values().any(|to| to == hex);
                all || (named.contains(hex) && !tagged && (asked.force || by(hex).is_empty()))
            };
            let gone: Vec<String> = record.versions.keys().filter(|hex| gone(hex)).cloned().collect();
            for hex in &gone {
                record.versions.remove(hex);
            }
            Ok((tags, gone, record.batching))
        });
        let (removed_tags, removed, batching) = changed.await.map_err(told)?;
        self.look_at_models().await;
        for digest in removed.iter().filter_map(|hex| hex.parse().ok()) {
            self.supervisor.models.forget(digest, batching);
        }
        self.drop_model_bytes(removed.clone()).await?;
        Ok(v1::DeleteModelReply {
            removed_tags,
            removed: removed.iter().map(|hex| format!("sha256:{hex}")).collect(),
        })
    }

    async fn set_batching(&self, asked: v1::SetBatchingRequest) -> Result<v1::Model, Status> {
        let name: ModelName = asked.name.parse().map_err(invalid)?;
        let batching = policy(asked.batching.unwrap_or_default())?;
        let absent = self.no_such_model(&name).await?;
        let changed = self.catalog.change_model(&name, |record, _| {
            if record.versions.is_empty() {
                return Err(NoSuch(absent.clone()).into());
            }
            record.batching = batching;
            Ok(())
        });
        changed.await.map_err(told)?;
        self.look_at_models().await;
        self.one_model(&name).await
    }

    /// So that the next call here meets what was written. If the catalog cannot be read now, this node hears of it as the others do.
    async fn look_at_models(&self) {
        if let Err(error) = self.supervisor.look_at_models().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "what models are named by is looked at later"
            );
        }
    }

    /// The bytes of versions that a record lost, as [`Keeper::drop_bytes`]. Under `writes`.
    pub(super) async fn drop_model_bytes(&self, dropped: Vec<String>) -> Result<(), Status> {
        self.drop_files(&self.store.models(), dropped).await
    }

    /// Every model that a manifest grants has to be there.
    pub(super) async fn check_models(&self, swarm: &Swarm) -> Result<(), Status> {
        if !swarm.calls_models() {
            return Ok(());
        }
        let known = self.catalog.models().await.map_err(internal)?;
        let names: Vec<&str> = known.keys().map(ModelName::as_str).collect();
        let mut missing = Vec::new();
        for (stage, model) in swarm.stages.iter().flat_map(|s| s.models.iter().map(move |m| (s, m))) {
            let hint = match known.get(&model.name) {
                Some(record) if is_version(record, &model.version) => continue,
                Some(record) => no_version(&model.name, &model.version.to_string(), record),
                None => {
                    let name = &model.name;
                    let push = format!("push it first: `skep model push FILE.onnx --name {name}`");
                    format!("no model `{name}`; {}", instead(name.as_str(), &names, &push))
                }
            };
            missing.push(format!("Bee `{}` is granted the model `{model}`: {hint}", stage.name));
        }
        match missing.is_empty() {
            true => Ok(()),
            false => Err(Status::failed_precondition(missing.join("\n"))),
        }
    }
}

fn is_version(record: &ModelRecord, wanted: &Version) -> bool {
    match wanted {
        Version::Tag(tag) => record.tags.contains_key(tag.as_str()),
        Version::Digest(digest) => record.versions.contains_key(&digest.to_hex()),
    }
}

/// Whether a grant names this very version by its digest.
fn names(model: &ModelRef, name: &ModelName, hex: &str) -> bool {
    model.name == *name && matches!(&model.version, Version::Digest(digest) if digest.to_hex() == hex)
}

/// The stages that are granted such a model, as `SWARM/STAGE`.
fn granted(swarms: &BTreeMap<SwarmName, SwarmRecord>, such: impl Fn(&ModelRef) -> bool) -> Vec<String> {
    let stages = swarms.values().flat_map(|record| {
        let of = &record.swarm.name;
        let draining = record.draining.values().map(|left| &left.stage);
        let stages = record.swarm.stages.iter().chain(draining);
        let stages = stages.filter(|stage| stage.models.iter().any(&such));
        stages.map(move |stage| format!("{of}/{}", stage.name))
    });
    stages.collect()
}

/// A tag has gone from a version, which is what somebody may want back: it counts as new.
fn left(record: &mut ModelRecord, hex: Option<&String>, now_ms: u64) {
    if let Some(kept) = hex.and_then(|hex| record.versions.get_mut(hex)) {
        kept.left_ms = now_ms;
    }
}

/// Takes out versions that nobody names, all but the newest few.
fn superseded(name: &ModelName, record: &mut ModelRecord, swarms: &BTreeMap<SwarmName, SwarmRecord>) -> Vec<String> {
    let mut loose: Vec<(u64, String)> = record
        .versions
        .iter()
        .filter(|(hex, _)| !record.tags.values().any(|to| to == *hex))
        .filter(|(hex, _)| granted(swarms, |model| names(model, name, hex)).is_empty())
        .map(|(hex, kept)| (kept.pushed_ms.max(kept.left_ms), hex.clone()))
        .collect();
    loose.sort();
    loose.truncate(loose.len().saturating_sub(MODEL_LOOSE_VERSIONS_MAX));
    loose
        .into_iter()
        .map(|(_, hex)| {
            record.versions.remove(&hex);
            hex
        })
        .collect()
}

fn no_version(name: &ModelName, wanted: &str, record: &ModelRecord) -> String {
    let tags: Vec<&str> = record.tags.keys().map(String::as_str).collect();
    let what = if wanted.starts_with("sha256:") {
        "version"
    } else {
        "tag"
    };
    format!(
        "model `{name}` has no {what} `{wanted}`; {}",
        instead(wanted, &tags, "it has no tags")
    )
}

fn version(text: &str) -> Result<Version, Status> {
    match text.starts_with("sha256:") {
        true => {
            let digest = text.trim_start_matches("sha256:").parse();
            digest
                .map(Version::Digest)
                .map_err(|e| invalid(format!("version: {e}; write a tag or sha256:DIGEST")))
        }
        false => text
            .parse()
            .map(Version::Tag)
            .map_err(|e| invalid(format!("version: {e}; write a tag or sha256:DIGEST"))),
    }
}

fn policy(batching: v1::Batching) -> Result<Policy, Status> {
    let max_rows = match batching.max_rows as usize {
        0 => BATCH_ROWS_DEFAULT,
        rows if rows <= BATCH_ROWS_MAX => rows,
        rows => {
            return Err(invalid(format!(
                "a run of {rows} rows: at most {BATCH_ROWS_MAX} are put together"
            )));
        }
    };
    let max_wait_us = u64::from(batching.max_wait_us);
    if max_wait_us > BATCH_WAIT_US_MAX {
        return Err(invalid(format!(
            "a wait of {max_wait_us} us: calls are made to wait for at most {BATCH_WAIT_US_MAX} us"
        )));
    }
    Ok(Policy {
        max_rows,
        max_wait_us,
        off: batching.off,
        together: batching.together,
    })
}

fn tensor(port: &Port) -> v1::Tensor {
    v1::Tensor {
        name: port.name.clone(),
        datatype: port.kind.to_string(),
        shape: port.dims(),
    }
}

/// What callers have to know of a version that takes another's place.
fn changes(before: &Signature, after: &Signature) -> Vec<String> {
    let mut out = Vec::new();
    for (side, before, after) in [
        ("input", &before.inputs, &after.inputs),
        ("output", &before.outputs, &after.outputs),
    ] {
        for port in after {
            match before.iter().find(|old| old.name == port.name) {
                Some(old) if old == port => {}
                Some(old) => out.push(format!("{side} `{}` is {port}, was {old}", port.name)),
                None => out.push(format!("{side} `{}` is new: {port}", port.name)),
            }
        }
        let gone = before
            .iter()
            .filter(|old| after.iter().all(|port| port.name != old.name));
        out.extend(gone.map(|old| format!("{side} `{}` is gone, was {old}", old.name)));
    }
    out
}

#[cfg(test)]
mod tests {
    use skep_model::tensor::TensorType;

    use super::*;

    #[test]
    fn what_changes_for_callers_is_said() {
        let port = |name: &str, kind, shape: &[Option<u64>]| Port {
            name: name.into(),
            kind,
            shape: shape.to_vec(),
        };
        let before = Signature {
            inputs: vec![port("x", TensorType::Fp32, &[None, Some(64)])],
            outputs: vec![port("label", TensorType::I64, &[None])],
        };
        let after = Signature {
            inputs: vec![port("x", TensorType::Fp32, &[None, Some(784)])],
            outputs: vec![port("class", TensorType::I64, &[None])],
        };
        assert!(changes(&before, &before).is_empty());
        assert_eq!(
            changes(&before, &after),
            [
                "input `x` is FP32 [any, 784], was FP32 [any, 64]",
                "output `class` is new: INT64 [any]",
                "output `label` is gone, was INT64 [any]"
            ]
        );
    }

    #[test]
    fn batching_has_bounds() {
        let asked = |max_rows, max_wait_us| v1::Batching {
            off: false,
            max_rows,
            max_wait_us,
            together: false,
        };
        assert_eq!(policy(asked(0, 0)).unwrap(), Policy::default());
        assert_eq!(policy(asked(7, 2_000)).unwrap().max_rows, 7);
        assert!(policy(asked(4_097, 0)).is_err());
        assert!(policy(asked(1, 1_000_001)).is_err());
    }

    #[test]
    fn versions_are_tags_or_digests() {
        let digest = Digest::of(b"x");
        assert_eq!(version(&digest.to_string()).unwrap(), Version::Digest(digest));
        assert_eq!(version("v1").unwrap().to_string(), "v1");
        for bad in ["", "sha256:", "sha256:12", "V1", "md5:1"] {
            assert!(version(bad).unwrap_err().message().contains("write a tag"), "{bad}");
        }
    }
}
