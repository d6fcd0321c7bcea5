//! Desired state: which modules exist and which Swarms run what. Records of the backend's catalog, always gated.
//!
//! Every write names the version it builds on; whoever loses a race reads again and decides again. Records are JSON with a
//! format version in front: newer is refused.

mod all;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_inference::{Described, Policy};
use skep_model::condition::Condition;
use skep_model::id::{Digest, Incarnation};
use skep_model::name::{ModelName, ModuleName, NodeLabel, SecretName, StageName, SwarmName, TenantId};
use skep_model::quota::Limits;
use skep_model::scope::{Scope, SwarmId};
use skep_model::swarm::{Reader, Stage, Swarm};
use skep_topic::CatalogRecord;

use crate::edges::EdgeRecord;
use crate::isolation::Isolation;
use crate::secrets::SecretRecord;
use crate::signatures::{Signature, Signers};
pub use all::{Catalogs, read, swarm_of};

/// Format of every catalog record.
const FORMAT: u32 = 1;
/// Lost races after which a write gives up: with eight writers at once this is never seen.
pub const RACES_MAX: usize = 64;

/// A module name with its tags and everything that was pushed under it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRecord {
    pub tags: BTreeMap<String, String>,
    /// By lower-case hex digest.
    pub versions: BTreeMap<String, ModuleVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleVersion {
    pub size: u64,
    pub bees: Vec<String>,
    pub pushed_ms: u64,
    /// It imports what sends HTTP requests: a Bee of it needs a grant. Builds that did not say so took no such module.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sends_http: bool,
    /// Verified as they came, for the name that this is under.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
}

/// A model's name with its tags and the versions of it that are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    pub tags: BTreeMap<String, String>,
    /// By lower-case hex digest.
    pub versions: BTreeMap<String, ModelKept>,
    #[serde(default)]
    pub batching: Policy,
}

/// One version of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelKept {
    pub size: u64,
    pub pushed_ms: u64,
    /// When a tag last went from it; 0: none did.
    #[serde(default)]
    pub left_ms: u64,
    /// As the confined process found it.
    pub described: Described,
}

/// A Swarm's current revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmRecord {
    /// Hex.
    pub incarnation: String,
    pub revision: u64,
    pub created_ms: u64,
    pub applied_ms: u64,
    pub manifest: String,
    pub swarm: Swarm,
    /// What each stage's module reference meant when it was applied, as hex digest: a revision is immutable, a tag is not. Of a built-in
    /// stage, the digest of what it is.
    pub modules: BTreeMap<StageName, String>,
    pub deleting: bool,
    /// The node that deletes it. Once that one is gone another brings the deletion to an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_by: Option<String>,
    /// The revision at which each stage came, or came back, draining ones included. Where it is not said, before all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub born: BTreeMap<StageName, u64>,
    /// Stages that the revision no longer has and whose topics are not gone yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub draining: BTreeMap<StageName, DrainingStage>,
    /// What an operator holds the whole Swarm in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Stages that an operator paused one by one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub paused: BTreeSet<StageName>,
    /// When all streams of this revision had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// Doors are closed, stages work off what there is.
    Draining,
    /// No stage reads.
    Paused,
}

/// A stage that was removed from its Swarm and still has something in its topic. It runs as it did in its last revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainingStage {
    pub stage: Stage,
    /// Hex digest.
    pub module: String,
    /// Who read what it publishes, by output. Each is a stage of the revision or drains too: nobody is removed before who feeds it.
    pub readers: Vec<Reader>,
    /// What a message from a Gateway had to be for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<Condition>,
}

impl DrainingStage {
    /// # Errors
    /// Only if the record was damaged.
    pub fn digest(&self) -> anyhow::Result<Digest> {
        self.module.parse().context("the digest in the catalog")
    }
}

impl SwarmRecord {
    /// Every module that the Swarm runs, as hex digest.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        let draining = self.draining.values().filter(|d| d.stage.builtin.is_none());
        let draining = draining.map(|d| d.module.as_str());
        let builtin = |name: &StageName| self.swarm.stage(name).is_some_and(|stage| stage.builtin.is_some());
        let modules = self.modules.iter().filter(move |(name, _)| !builtin(name));
        modules.map(|(_, hex)| hex.as_str()).chain(draining)
    }

    /// Of all stages, draining ones included.
    #[must_use]
    pub fn partitions(&self) -> u64 {
        let draining = self.draining.values().map(|d| &d.stage);
        self.swarm
            .stages
            .iter()
            .chain(draining)
            .map(|s| u64::from(s.partitions))
            .sum()
    }

    /// What becomes of the stages of `self` when `next` takes its place: `draining` of the new record.
    #[must_use]
    pub fn left_behind(&self, next: &Swarm) -> BTreeMap<StageName, DrainingStage> {
        // What ran at edges is theirs to drain.
        let here = self.swarm.stages.iter().filter(|stage| stage.place.is_none());
        let removed = here.map(|stage| {
            let left = DrainingStage {
                stage: stage.clone(),
                module: self.modules.get(&stage.name).cloned().unwrap_or_default(),
                readers: self.swarm.readers(&stage.name),
                door: self.swarm.door(stage),
            };
            (stage.name.clone(), left)
        });
        let earlier = self.draining.iter().map(|(name, left)| (name.clone(), left.clone()));
        earlier
            .chain(removed)
            .filter(|(name, _)| next.stage(name).is_none())
            .collect()
    }

    /// Whether a stage does not read. A deletion has to drain, whatever was held before.
    #[must_use]
    pub fn is_paused(&self, stage: &StageName) -> bool {
        !self.deleting && (self.hold == Some(Hold::Paused) || self.paused.contains(stage))
    }

    #[must_use]
    pub fn born(&self, stage: &StageName) -> u64 {
        self.born.get(stage).copied().unwrap_or(0)
    }

    /// `born` of the record of revision `revision`, which takes the place of `self`. A stage that comes back is born anew even where it
    /// drains still: a node that is late with its removal must not take away what works again.
    #[must_use]
    pub fn born_next(&self, next: &Swarm, revision: u64) -> BTreeMap<StageName, u64> {
        let stays = |name: &StageName| self.swarm.stage(name).is_some();
        let stages = next.stages.iter().map(|stage| {
            let name = &stage.name;
            (name.clone(), if stays(name) { self.born(name) } else { revision })
        });
        let left = self.left_behind(next).into_keys();
        let left = left.map(|name| {
            let born = self.born(&name);
            (name, born)
        });
        stages.chain(left).collect()
    }

    /// # Errors
    /// Only if the record was damaged.
    pub fn id(&self, scope: &Scope) -> anyhow::Result<SwarmId> {
        let incarnation: Incarnation = self.incarnation.parse().context("the incarnation in the catalog")?;
        Ok(scope.swarm(&self.swarm.name, incarnation))
    }

    /// Whether this is the record of that life.
    #[must_use]
    pub fn is(&self, id: &SwarmId) -> bool {
        self.incarnation == id.incarnation().to_string()
    }

    /// # Errors
    /// Only if the record was damaged.
    pub fn digest(&self, stage: &StageName) -> anyhow::Result<Digest> {
        let hex = self
            .modules
            .get(stage)
            .with_context(|| format!("the catalog names no module for stage `{stage}`"))?;
        hex.parse().context("the digest in the catalog")
    }
}

/// A restore that is under way, or was when its node died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restoring {
    /// The node that does it.
    pub node: String,
    /// Which backup.
    pub backup: String,
    /// All is there; Swarms come in service one by one.
    pub whole: bool,
}

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    format: u32,
    record: T,
}

/// A tenant other than the default one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    pub created_ms: u64,
    /// It is being taken away with all that it has: nobody comes in any more.
    #[serde(default)]
    pub deleting: bool,
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "Signers::is_empty")]
    pub signers: Signers,
    /// It runs on nodes with this label, and those run nobody else: see [`skep_stage::Pins`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeLabel>,
    /// Of the level at which there are tenants: a node that knows of tenants knows of it.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
}

/// A record that was stored.
#[derive(Debug)]
pub enum Read {
    Swarm(TenantId, Box<SwarmRecord>),
    Module(TenantId, ModuleName, ModuleRecord),
    Model(TenantId, ModelName, ModelRecord),
    Secret(TenantId, SecretName, SecretRecord),
    Tenant(TenantId, TenantRecord),
    /// With its name.
    Edge(TenantId, String, Box<EdgeRecord>),
    /// By which edges know this store's nodes; sealed.
    HubKey(SecretRecord),
}

/// What was read, and the version to build on.
#[derive(Debug, Clone)]
pub struct Versioned<T> {
    pub version: u64,
    pub record: T,
}

/// The catalog of one tenant. Keys are made from the scope, so no tenant can name another's.
#[derive(Clone)]
pub struct Catalog {
    all: Catalogs,
    scope: Scope,
}

impl Catalog {
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        self.scope.tenant()
    }

    fn module_key(&self, name: &str) -> String {
        format!("module/{}/{name}", self.tenant())
    }

    fn model_key(&self, name: &str) -> String {
        format!("model/{}/{name}", self.tenant())
    }

    fn swarm_key(&self, name: &str) -> String {
        format!("swarm/{}/{name}", self.tenant())
    }

    pub async fn modules(&self) -> anyhow::Result<BTreeMap<ModuleName, ModuleRecord>> {
        self.named(&self.module_key("")).await
    }

    pub async fn models(&self) -> anyhow::Result<BTreeMap<ModelName, ModelRecord>> {
        self.named(&self.model_key("")).await
    }

    pub async fn model(&self, name: &ModelName) -> anyhow::Result<Option<Versioned<ModelRecord>>> {
        self.all.get(&self.model_key(name.as_str())).await
    }

    pub async fn swarms(&self) -> anyhow::Result<BTreeMap<SwarmName, SwarmRecord>> {
        self.named(&self.swarm_key("")).await
    }

    pub async fn module(&self, name: &ModuleName) -> anyhow::Result<Option<Versioned<ModuleRecord>>> {
        self.all.get(&self.module_key(name.as_str())).await
    }

    pub async fn swarm(&self, name: &SwarmName) -> anyhow::Result<Option<Versioned<SwarmRecord>>> {
        self.all.get(&self.swarm_key(name.as_str())).await
    }

    /// See [`Catalogs::number`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn number(&self) -> anyhow::Result<u64> {
        self.all.number().await
    }

    /// Reads, changes and writes one module record until no other write came between, to Swarms neither: what they run stays. `change`
    /// may be called several times.
    pub async fn change_module<T>(
        &self,
        name: &ModuleName,
        change: impl FnMut(&mut ModuleRecord, &BTreeMap<SwarmName, SwarmRecord>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let key = self.module_key(name.as_str());
        self.change(&key, |record| record.versions.is_empty(), change).await
    }

    /// The same of a model.
    pub async fn change_model<T>(
        &self,
        name: &ModelName,
        change: impl FnMut(&mut ModelRecord, &BTreeMap<SwarmName, SwarmRecord>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let key = self.model_key(name.as_str());
        self.change(&key, |record| record.versions.is_empty(), change).await
    }

    async fn change<R, T>(
        &self,
        key: &str,
        is_empty: impl Fn(&R) -> bool,
        mut change: impl FnMut(&mut R, &BTreeMap<SwarmName, SwarmRecord>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T>
    where
        R: Default + Serialize + for<'a> Deserialize<'a>,
    {
        for _ in 0..RACES_MAX {
            let seen = self.number().await?;
            let swarms = self.swarms().await?;
            let (version, mut record) = match self.all.get::<R>(key).await? {
                Some(found) => (found.version, found.record),
                None => (0, R::default()),
            };
            let told = change(&mut record, &swarms)?;
            let lost = if is_empty(&record) {
                let delete = self.all.backend.catalog_delete_if(key, version, Some(seen));
                version != 0 && self.all.kept(delete.await?).await?.is_err()
            } else {
                self.all.put(key, version, Some(seen), &record).await?.is_err()
            };
            if !lost {
                return Ok(told);
            }
        }
        bail!("`{key}` is being changed by too many at once: try again")
    }

    /// `Err(current)` when the record is not at version `expect` any more.
    pub async fn put_swarm(&self, expect: u64, record: &SwarmRecord) -> anyhow::Result<Result<u64, u64>> {
        self.all
            .put(&self.swarm_key(record.swarm.name.as_str()), expect, None, record)
            .await
    }

    /// The same of a decision that read other records as well, from `seen` on. `Err(expect)`: one of those may have changed.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_swarm_if(&self, expect: u64, seen: u64, record: &SwarmRecord) -> anyhow::Result<Result<u64, u64>> {
        self.all
            .put(&self.swarm_key(record.swarm.name.as_str()), expect, Some(seen), record)
            .await
    }

    /// Removes the record of one life of a Swarm, whatever else was written to it. Does nothing if it is gone or another life's.
    pub async fn delete_swarm(&self, id: &SwarmId) -> anyhow::Result<()> {
        let key = self.swarm_key(id.name().as_str());
        for _ in 0..RACES_MAX {
            let Some(found) = self.swarm(id.name()).await? else {
                return Ok(());
            };
            if !found.record.is(id) {
                return Ok(());
            }
            if self.all.delete(&key, found.version).await?.is_ok() {
                return Ok(());
            }
        }
        bail!("Swarm `{}` is being changed by too many at once: try again", id.name())
    }

    /// A Swarm's record, as stored.
    pub async fn stored_swarm(&self, name: &SwarmName) -> anyhow::Result<Option<(String, CatalogRecord)>> {
        let key = self.swarm_key(name.as_str());
        let found = self.all.backend.catalog_list(&key).await?;
        Ok(found.into_iter().find(|(found, _)| *found == key))
    }

    /// Writes a module's record over whatever is there.
    pub async fn restore_module(&self, name: &ModuleName, restored: &ModuleRecord) -> anyhow::Result<()> {
        self.change_module(name, |record, _| {
            record.clone_from(restored);
            Ok(())
        })
        .await
    }

    /// The same of a model.
    pub async fn restore_model(&self, name: &ModelName, restored: &ModelRecord) -> anyhow::Result<()> {
        self.change_model(name, |record, _| {
            record.clone_from(restored);
            Ok(())
        })
        .await
    }

    fn restore_key(&self) -> String {
        format!("restore/{}", self.tenant())
    }

    pub async fn restoring(&self) -> anyhow::Result<Option<Versioned<Restoring>>> {
        self.all.get(&self.restore_key()).await
    }

    /// `Err(current)` when the record is not at version `expect` any more.
    pub async fn put_restoring(&self, expect: u64, record: &Restoring) -> anyhow::Result<Result<u64, u64>> {
        self.all.put(&self.restore_key(), expect, None, record).await
    }

    pub async fn delete_restoring(&self, expect: u64) -> anyhow::Result<Result<(), u64>> {
        Ok(self.all.backend.catalog_delete(&self.restore_key(), expect).await?)
    }

    async fn named<K, T>(&self, prefix: &str) -> anyhow::Result<BTreeMap<K, T>>
    where
        K: std::str::FromStr<Err = skep_model::name::BadName> + Ord,
        T: for<'a> Deserialize<'a>,
    {
        let mut out = BTreeMap::new();
        for (key, record) in self.all.backend.catalog_list(prefix).await? {
            let name = key.strip_prefix(prefix).unwrap_or(&key).parse()?;
            out.insert(name, decode(&key, &record.value)?);
        }
        Ok(out)
    }
}

/// Reads the format alone first: a newer record need not have today's fields.
fn decode<T: for<'a> Deserialize<'a>>(key: &str, bytes: &[u8]) -> anyhow::Result<T> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let head: Head = serde_json::from_slice(bytes).with_context(|| format!("catalog record `{key}` is damaged"))?;
    if head.format > FORMAT {
        bail!(
            "catalog record `{key}` has format {}, this skep reads up to {FORMAT}: it was written by a newer skep; upgrade this one",
            head.format
        );
    }
    let stored: Stored<T> =
        serde_json::from_slice(bytes).with_context(|| format!("catalog record `{key}` is damaged"))?;
    Ok(stored.record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_record_is_refused_and_a_damaged_one_is_named() {
        let newer = decode::<ModuleRecord>("module/default/x", br#"{"format":2,"other":true}"#).unwrap_err();
        assert!(newer.to_string().contains("format 2"), "{newer}");
        let damaged = decode::<ModuleRecord>("module/default/x", br#"{"format":1,"rec"#).unwrap_err();
        assert!(damaged.to_string().contains("module/default/x"), "{damaged}");
    }

    #[test]
    fn stages_keep_their_birth_and_come_back_born_anew() {
        let golden = include_bytes!("../tests/golden/swarm-record-1.json");
        let mut record: SwarmRecord = decode("swarm/default/hello-world", golden).unwrap();
        let with = |names: &[&str]| {
            let mut swarm = record.swarm.clone();
            let stage = swarm.stages[0].clone();
            swarm.stages = names
                .iter()
                .map(|name| Stage {
                    name: name.parse().unwrap(),
                    ..stage.clone()
                })
                .collect();
            swarm
        };
        let (both, one, other) = (with(&["a", "b"]), with(&["a"]), with(&["b"]));
        let names = |born: &BTreeMap<StageName, u64>| -> Vec<(String, u64)> {
            born.iter().map(|(name, born)| (name.to_string(), *born)).collect()
        };
        let at = |name: &str, born| (name.to_owned(), born);
        let mut apply = |swarm: &Swarm, revision| {
            let next = record.born_next(swarm, revision);
            record.draining = record.left_behind(swarm);
            (record.swarm, record.born) = (swarm.clone(), next);
            names(&record.born)
        };
        // What an earlier skep wrote says nothing of births.
        apply(&one, 4);
        assert_eq!(
            apply(&both, 5)[..],
            [at("a", 4), at("b", 5), at("goodbye", 0), at("hello", 0)]
        );
        assert_eq!(
            apply(&other, 6)[..],
            [at("a", 4), at("b", 5), at("goodbye", 0), at("hello", 0)],
            "draining"
        );
        assert_eq!(
            apply(&both, 7)[..],
            [at("a", 7), at("b", 5), at("goodbye", 0), at("hello", 0)],
            "it is back"
        );
    }

    #[test]
    fn the_golden_record_reads() {
        let golden = include_bytes!("../tests/golden/swarm-record-1.json");
        let record: SwarmRecord = decode("swarm/default/hello-world", golden).unwrap();
        assert_eq!(record.revision, 3);
        let again = serde_json::to_value(Stored { format: FORMAT, record }).unwrap();
        assert_eq!(again, serde_json::from_slice::<serde_json::Value>(golden).unwrap());
    }
}
