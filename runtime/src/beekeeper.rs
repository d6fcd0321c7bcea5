//! The Beekeeper: uploads, applies, deletions, logs and dead letters, over gRPC.

mod deletion;
mod uploads;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use skep_model::env::{Clock, Entropy};
use skep_model::id::{Digest, Incarnation};
use skep_model::limits::{
    KEEPER_REPLY_BYTES_MAX, MANIFEST_BYTES_MAX, MODULE_LOOSE_VERSIONS_MAX, MODULE_TAGS_MAX, MODULES_MAX,
    SWARM_PARTITIONS_MAX, SWARMS_MAX,
};
use skep_model::manifest::{self, Modules};
use skep_model::name::{BeeName, ModuleName, ModuleRef, ModuleVersion as Wanted, StageName, SwarmName};
use skep_model::scope::SwarmId;
use skep_model::swarm::{Stage, StageInput, Swarm};
use skep_model::{Bytes, diff};
use skep_proto::v1;
use skep_proto::v1::beekeeper_server::{Beekeeper, BeekeeperServer};
use skep_topic::{Backend, Work};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::catalog::{ModuleRecord, ModuleVersion, SwarmRecord, Versioned};
use crate::logs::Kept;
use crate::stats::Stats;
use crate::store::ModuleStore;
use crate::supervisor::{Refused, Supervisor};
use deletion::{Deletions, Order};

const DELETE_TIMEOUT_MS_DEFAULT: u64 = 30_000;
const DELETE_TIMEOUT_MS_MAX: u64 = 3_600_000;
const DEAD_LETTERS_PAGE_DEFAULT: u32 = 100;
const DEAD_LETTERS_PAGE_MAX: u32 = 1_000;
/// Uploads received at once: each may hold [`UPLOAD_BYTES_MAX`] in memory.
const UPLOADS_MAX: usize = 4;
/// Dead letters read in one step of the backend while a page is filled.
const DEAD_LETTERS_STEP: u32 = 16;
/// Log lines that wait for a slow client.
const FOLLOW_LINES_MAX: usize = 16;

static UPLOADS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(UPLOADS_MAX);

#[derive(Clone)]
pub struct Keeper(Arc<Parts>, Deletions);

impl std::ops::Deref for Keeper {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What a Beekeeper works with.
pub struct Parts {
    pub supervisor: Arc<Supervisor>,
    pub backend: Arc<dyn Backend>,
    pub store: ModuleStore,
    pub stats: Arc<Stats>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub data: String,
    pub started_ms: u64,
    /// Ends the streams that would keep a stopping node waiting.
    pub stop: CancellationToken,
}

impl Keeper {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts), Deletions::default())
    }

    #[must_use]
    pub fn routes(self) -> tonic::service::Routes {
        tonic::service::Routes::new(
            BeekeeperServer::new(self).max_decoding_message_size(MANIFEST_BYTES_MAX + (64 << 10)),
        )
    }

    async fn find(&self, name: &str) -> Result<(SwarmName, Versioned<SwarmRecord>, SwarmId), Status> {
        let name: SwarmName = name.parse().map_err(invalid)?;
        let Some(found) = self.supervisor.catalog.swarm(&name).await.map_err(internal)? else {
            return Err(self.no_such_swarm(&name).await);
        };
        let id = found.record.id(self.supervisor.catalog.scope()).map_err(internal)?;
        Ok((name, found, id))
    }

    async fn no_such_swarm(&self, name: &SwarmName) -> Status {
        let known = self.supervisor.catalog.swarms().await.unwrap_or_default();
        let names: Vec<&str> = known.keys().map(SwarmName::as_str).collect();
        let hint = if names.is_empty() {
            "there is none yet: apply one".to_owned()
        } else {
            format!("there are: {}", names.join(", "))
        };
        Status::not_found(format!("no Swarm `{name}`; {hint}"))
    }

    async fn summary(&self, name: &SwarmName, record: &SwarmRecord) -> v1::SwarmSummary {
        let topics = match record.id(self.supervisor.catalog.scope()) {
            Ok(id) => self.backend.status(&id).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let status = if record.deleting {
            "deleting".to_owned()
        } else if let Some(trouble) = self.supervisor.trouble(name) {
            format!("degraded: {trouble}")
        } else {
            "running".to_owned()
        };
        v1::SwarmSummary {
            name: name.to_string(),
            revision: record.revision,
            stages: record.swarm.stages.len() as u64,
            subjects: record.swarm.subjects().iter().map(ToString::to_string).collect(),
            status,
            created_ms: record.created_ms,
            applied_ms: record.applied_ms,
            unread: topics.iter().map(|t| t.unread + t.parked).sum(),
            dead: topics.iter().map(|t| t.dead).sum(),
        }
    }
}

/// The catalog's modules, as the manifest's reader wants to see them.
struct Known<'a>(&'a BTreeMap<ModuleName, ModuleRecord>);

impl Known<'_> {
    fn resolve(&self, wanted: &ModuleRef) -> Option<(Digest, &ModuleVersion)> {
        let record = self.0.get(&wanted.name)?;
        let hex = match &wanted.version {
            Wanted::Tag(tag) => record.tags.get(tag.as_str())?.clone(),
            Wanted::Digest(digest) => digest.to_hex(),
        };
        Some((hex.parse().ok()?, record.versions.get(&hex)?))
    }
}

impl Modules for Known<'_> {
    fn bees(&self, module: &ModuleRef) -> Option<Vec<BeeName>> {
        let (_, version) = self.resolve(module)?;
        Some(version.bees.iter().filter_map(|b| b.parse().ok()).collect())
    }

    fn names(&self) -> Vec<String> {
        self.0
            .iter()
            .flat_map(|(name, record)| record.tags.keys().map(move |tag| format!("{name}:{tag}")))
            .collect()
    }
}

type Reply<T> = Result<Response<T>, Status>;
type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Beekeeper for Keeper {
    async fn push_module(&self, request: Request<Streaming<v1::PushModuleRequest>>) -> Reply<v1::PushModuleReply> {
        let place = UPLOADS.try_acquire().map_err(|_| {
            Status::resource_exhausted(format!(
                "{UPLOADS_MAX} uploads are under way, no more fit: try again soon"
            ))
        })?;
        let upload = uploads::receive(request.into_inner()).await?;
        let this = self.clone();
        detached(async move {
            let _place = place;
            this.push(upload).await
        })
        .await
    }

    async fn list_modules(&self, _: Request<v1::ListModulesRequest>) -> Reply<v1::ListModulesReply> {
        let modules = self.supervisor.catalog.modules().await.map_err(internal)?;
        let swarms = self.supervisor.catalog.swarms().await.map_err(internal)?;
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
                });
            }
        }
        Ok(Response::new(v1::ListModulesReply { modules: out }))
    }

    async fn delete_module(&self, request: Request<v1::DeleteModuleRequest>) -> Reply<v1::DeleteModuleReply> {
        let this = self.clone();
        detached(async move { this.remove_module(request.into_inner()).await }).await
    }

    async fn apply_swarm(&self, request: Request<v1::ApplySwarmRequest>) -> Reply<v1::ApplySwarmReply> {
        let this = self.clone();
        detached(async move { this.apply(request.into_inner()).await }).await
    }

    async fn list_swarms(&self, _: Request<v1::ListSwarmsRequest>) -> Reply<v1::ListSwarmsReply> {
        let mut swarms = Vec::new();
        for (name, record) in self.supervisor.catalog.swarms().await.map_err(internal)? {
            swarms.push(self.summary(&name, &record).await);
        }
        Ok(Response::new(v1::ListSwarmsReply { swarms }))
    }

    async fn describe_swarm(&self, request: Request<v1::DescribeSwarmRequest>) -> Reply<v1::DescribeSwarmReply> {
        let (name, found, id) = self.find(&request.into_inner().name).await?;
        let record = found.record;
        let topics = depths(self.backend.as_ref(), &id).await?;
        let mut keys = BTreeMap::new();
        for stage in record.swarm.stages.iter().filter(|s| s.state) {
            let count = self.backend.keys(&id.topic(&stage.name)).await.unwrap_or_default();
            keys.insert(stage.name.clone(), count);
        }
        let stages = record
            .swarm
            .stages
            .iter()
            .map(|stage| {
                let topic = id.topic(&stage.name);
                let depth = topics.iter().find(|t| t.topic == topic);
                let numbers = self.stats.numbers(&topic);
                v1::StageStatus {
                    name: stage.name.to_string(),
                    module: stage.module.clone(),
                    digest: format!("sha256:{}", record.modules.get(&stage.name).map_or("", String::as_str)),
                    bee: stage.bee.to_string(),
                    inputs: stage.inputs.iter().map(input_text).collect(),
                    partitions: u64::from(stage.partitions),
                    unread: depth.map_or(0, |d| d.unread),
                    parked: depth.map_or(0, |d| d.parked),
                    timers: depth.map_or(0, |d| d.timers),
                    dead: depth.map_or(0, |d| d.dead),
                    keys: keys.get(&stage.name).copied().unwrap_or_default(),
                    processed: numbers.processed,
                    failed: numbers.failed,
                    batches: numbers.batches,
                    busy_us: numbers.busy_us,
                    status: numbers.state.map_or_else(|| "ok".to_owned(), |s| s.to_string()),
                    last_error: numbers.last_error.unwrap_or_default(),
                    pure: on_pure_path(&record.swarm, stage),
                }
            })
            .collect();
        Ok(Response::new(v1::DescribeSwarmReply {
            summary: Some(self.summary(&name, &record).await),
            manifest: record.manifest,
            stages,
        }))
    }

    type DeleteSwarmStream = Out<v1::DeleteSwarmProgress>;

    async fn delete_swarm(&self, request: Request<v1::DeleteSwarmRequest>) -> Reply<Self::DeleteSwarmStream> {
        let asked = request.into_inner();
        let this = self.clone();
        let told = detached(async move { this.begin_deletion(asked).await }).await?;
        // A number that a slow reader misses is replaced by the next.
        let stop = self.stop.clone();
        let stream = futures::stream::unfold(Some((told, None)), move |state| {
            let stop = stop.clone();
            async move {
                let (mut told, mut shown) = state?;
                loop {
                    let now = told.borrow_and_update().clone();
                    if let Some(end) = now.end {
                        return Some((end, None));
                    }
                    if shown != Some(now.remaining) {
                        shown = Some(now.remaining);
                        let progress = v1::DeleteSwarmProgress {
                            remaining: now.remaining,
                            ..v1::DeleteSwarmProgress::default()
                        };
                        return Some((Ok(progress), Some((told, shown))));
                    }
                    let left = tokio::select! {
                        changed = told.changed() => changed.is_err() && told.borrow().end.is_none(),
                        () = stop.cancelled() => true,
                    };
                    if left {
                        let status = Status::unavailable("the node stops: delete again once it is back");
                        return Some((Err(status), None));
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type LogsStream = Out<v1::LogEntry>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Reply<Self::LogsStream> {
        let asked = request.into_inner();
        let (name, found, id) = self.find(&asked.swarm).await?;
        let stage = stage_of(&name, &found.record, &asked.stage)?;
        let (kept, mut live) = self.stats.logs.read(&id, stage.as_ref(), asked.tail as usize);
        let past = futures::stream::iter(kept.into_iter().map(|k| Ok(entry(k))));
        if !asked.follow {
            return Ok(Response::new(Box::pin(past)));
        }
        let stop = self.stop.clone();
        let (tell, follow) = mpsc::channel(FOLLOW_LINES_MAX);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    () = stop.cancelled() => return,
                    () = tell.closed() => return,
                    next = live.recv() => next,
                };
                let line = match next {
                    Ok(kept) if kept.topic.swarm() == &id && stage.as_ref().is_none_or(|s| s == kept.topic.stage()) => {
                        entry(kept)
                    }
                    Ok(_) => continue,
                    Err(RecvError::Lagged(missed)) => v1::LogEntry {
                        level: "warn".to_owned(),
                        context: "skep".to_owned(),
                        text: format!("{missed} lines were not shown: this reader is too slow"),
                        ..v1::LogEntry::default()
                    },
                    Err(RecvError::Closed) => return,
                };
                if tell.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        });
        let follow = tokio_stream::wrappers::ReceiverStream::new(follow);
        Ok(Response::new(Box::pin(past.chain(follow))))
    }

    async fn list_dead_letters(&self, request: Request<v1::ListDeadLettersRequest>) -> Reply<v1::ListDeadLettersReply> {
        let asked = request.into_inner();
        let (_, _, id) = self.find(&asked.swarm).await?;
        // A removed stage's dead letters are still listed, so the name need not be in the manifest.
        let stage: Option<StageName> = match asked.stage.as_str() {
            "" => None,
            name => Some(name.parse().map_err(invalid)?),
        };
        let limit = match asked.limit {
            0 => DEAD_LETTERS_PAGE_DEFAULT,
            n => n.min(DEAD_LETTERS_PAGE_MAX),
        };
        let (mut letters, mut bytes, mut after) = (Vec::new(), 0, asked.after);
        'page: while (letters.len() as u64) < u64::from(limit) {
            let step = DEAD_LETTERS_STEP.min(limit.saturating_sub(u32::try_from(letters.len()).unwrap_or(u32::MAX)));
            let found = self
                .backend
                .dead_letters(&id, stage.as_ref(), after, step)
                .await
                .map_err(topic_error)?;
            let more = found.len() as u64 == u64::from(step);
            for stored in found {
                after = stored.id;
                let letter = dead_letter(stored);
                bytes += reply_len(&letter);
                // A short page: the client goes on after its last letter.
                if bytes > KEEPER_REPLY_BYTES_MAX && !letters.is_empty() {
                    break 'page;
                }
                letters.push(letter);
            }
            if !more {
                break;
            }
        }
        Ok(Response::new(v1::ListDeadLettersReply { letters }))
    }

    async fn discard_dead_letters(
        &self,
        request: Request<v1::DiscardDeadLettersRequest>,
    ) -> Reply<v1::DiscardDeadLettersReply> {
        let asked = request.into_inner();
        let (_, _, id) = self.find(&asked.swarm).await?;
        let discarded = self
            .backend
            .discard_dead_letters(&id, &asked.ids)
            .await
            .map_err(topic_error)?;
        self.supervisor.discarded(&id).await.map_err(internal)?;
        Ok(Response::new(v1::DiscardDeadLettersReply { discarded }))
    }

    async fn get_state(&self, request: Request<v1::GetStateRequest>) -> Reply<v1::GetStateReply> {
        let asked = request.into_inner();
        let (name, found, id) = self.find(&asked.swarm).await?;
        let Some(stage) = stage_of(&name, &found.record, &asked.stage)? else {
            return Err(invalid("name a stage"));
        };
        let values = self
            .backend
            .state(&id.topic(&stage), &asked.key)
            .await
            .map_err(topic_error)?;
        let mut values: Vec<v1::StateValue> = values
            .into_iter()
            .map(|(name, value)| v1::StateValue { name, value })
            .collect();
        values.sort_by(|a, b| a.name.cmp(&b.name));
        let bytes: usize = values.iter().map(|v| v.name.len() + v.value.len() + 16).sum();
        if bytes > KEEPER_REPLY_BYTES_MAX {
            return Err(Status::out_of_range(format!(
                "key `{}` has {} values of {bytes} bytes together, and one reply takes {KEEPER_REPLY_BYTES_MAX}: \
                 keep large things under several keys",
                asked.key,
                values.len()
            )));
        }
        Ok(Response::new(v1::GetStateReply { values }))
    }

    async fn node(&self, _: Request<v1::NodeRequest>) -> Reply<v1::NodeReply> {
        let counters = self.backend.counters();
        Ok(Response::new(v1::NodeReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: self.started_ms,
            data: self.data.clone(),
            backend: "embedded".to_owned(),
            flushes: counters.flushes,
            commits: counters.commits,
        }))
    }
}

impl Keeper {
    async fn push(&self, upload: uploads::Upload) -> Reply<v1::PushModuleReply> {
        let uploads::Upload {
            name,
            tag,
            digest,
            bytes,
        } = upload;
        let size = bytes.len() as u64;
        let began = std::time::Instant::now();
        let modules = &self.supervisor.modules;
        let module = modules.admit(digest, bytes.clone()).await.map_err(|e| refused(&e))?;
        let compile_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let bees: Vec<String> = module.bees().iter().map(ToString::to_string).collect();
        let (hex, pushed_ms) = (digest.to_hex(), self.clock.now_ms());
        let writes = self.supervisor.writes.lock().await;
        let known_names = self.supervisor.catalog.modules().await.map_err(internal)?;
        if !known_names.contains_key(&name) && known_names.len() >= MODULES_MAX {
            return Err(Status::resource_exhausted(format!(
                "there are {MODULES_MAX} modules, no more fit: remove one with `skep delete-module`"
            )));
        }
        // Bytes before the record: a crash between the two leaves bytes that nobody names, never a name without bytes.
        self.store.put(&digest, bytes).await.map_err(internal)?;
        let swarms = self.supervisor.catalog.swarms().await.map_err(internal)?;
        let mut dropped = Vec::new();
        let (known, replaced) = self
            .supervisor
            .catalog
            .change_module(&name, |record| {
                let known = record.versions.contains_key(&hex);
                record.versions.entry(hex.clone()).or_insert_with(|| ModuleVersion {
                    size,
                    bees: bees.clone(),
                    pushed_ms,
                });
                let replaced = record.tags.insert(tag.to_string(), hex.clone());
                if record.tags.len() > MODULE_TAGS_MAX {
                    return Err(TooMany(format!(
                        "module `{name}` has {MODULE_TAGS_MAX} tags, no more fit: remove one with `skep delete-module --tag`"
                    ))
                    .into());
                }
                dropped = superseded(record, &swarms);
                Ok((known, replaced))
            })
            .await
            .map_err(told)?;
        self.drop_bytes(dropped).await?;
        drop(writes);
        self.supervisor.pushed(digest).await.map_err(internal)?;
        let reference = ModuleRef {
            name,
            version: Wanted::Tag(tag),
        };
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
        }))
    }

    /// The bytes of versions that a record lost. The same bytes may have been pushed under another name. Under `writes`.
    async fn drop_bytes(&self, dropped: Vec<String>) -> Result<(), Status> {
        if dropped.is_empty() {
            return Ok(());
        }
        let left = self.supervisor.catalog.modules().await.map_err(internal)?;
        for hex in dropped {
            if left.values().any(|m| m.versions.contains_key(&hex)) {
                continue;
            }
            if let Ok(digest) = hex.parse() {
                self.store.remove(&digest).await.map_err(internal)?;
            }
        }
        Ok(())
    }

    async fn remove_module(&self, asked: v1::DeleteModuleRequest) -> Reply<v1::DeleteModuleReply> {
        let name: ModuleName = asked.name.parse().map_err(invalid)?;
        let _writes = self.supervisor.writes.lock().await;
        let swarms = self.supervisor.catalog.swarms().await.map_err(internal)?;
        let mut dropped = Vec::new();
        let removed = self
            .supervisor
            .catalog
            .change_module(&name, |record| {
                dropped.clear();
                let tags: Vec<String> = record
                    .tags
                    .keys()
                    .filter(|t| asked.tag.is_empty() || **t == asked.tag)
                    .cloned()
                    .collect();
                if tags.is_empty() {
                    return Err(NoSuch(format!("module `{name}` has no such tag")).into());
                }
                let untagged: Vec<String> = tags.iter().filter_map(|tag| record.tags.remove(tag)).collect();
                let loose: Vec<String> = record
                    .versions
                    .keys()
                    .filter(|hex| !record.tags.values().any(|d| d == *hex))
                    .cloned()
                    .collect();
                for hex in loose {
                    let used = users(&swarms, &hex);
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

    async fn apply(&self, asked: v1::ApplySwarmRequest) -> Reply<v1::ApplySwarmReply> {
        if asked.manifest.len() > MANIFEST_BYTES_MAX {
            return Err(invalid(format!(
                "the manifest has {} bytes, at most {MANIFEST_BYTES_MAX} are taken",
                asked.manifest.len()
            )));
        }
        let dry_run = asked.dry_run;
        let (name, revision, changes) = self.decide(asked).await?;
        if !dry_run {
            // Also when nothing changed: applying again is how people mend what could not run.
            self.supervisor.settle(&name).await.map_err(internal)?;
            if let Some(trouble) = self.supervisor.trouble(&name) {
                return Err(Status::internal(format!(
                    "revision {revision} of `{name}` is stored, but this node cannot run it: {trouble}"
                )));
            }
        }
        Ok(Response::new(v1::ApplySwarmReply {
            swarm: name.to_string(),
            revision,
            changes,
            dry_run,
        }))
    }

    /// Reads a manifest against the catalog and writes the new revision, unless nothing changes or it is a dry run. What the
    /// manifest refers to stays there until it is written.
    async fn decide(&self, asked: v1::ApplySwarmRequest) -> Result<(SwarmName, u64, Vec<v1::Change>), Status> {
        let catalog = &self.supervisor.catalog;
        let _writes = self.supervisor.writes.lock().await;
        let modules = catalog.modules().await.map_err(internal)?;
        let known = Known(&modules);
        let swarm = manifest::parse_with(&asked.manifest, &known).map_err(invalid)?;
        let mut digests = BTreeMap::new();
        for stage in &swarm.stages {
            let wanted: ModuleRef = stage.module.parse().map_err(invalid)?;
            let (digest, _) = known
                .resolve(&wanted)
                .ok_or_else(|| invalid(format!("stage `{}`: no module `{wanted}`: push it first", stage.name)))?;
            digests.insert(stage.name.clone(), digest.to_hex());
        }
        let now_ms = self.clock.now_ms();
        let name = swarm.name.clone();
        let swarms = catalog.swarms().await.map_err(internal)?;
        let current = catalog.swarm(&name).await.map_err(internal)?;
        check_subjects(&swarms, &swarm)?;
        if let Some(found) = &current
            && found.record.deleting
        {
            return Err(Status::failed_precondition(format!(
                "Swarm `{name}` is being deleted: wait until it is gone, or finish with `skep delete {name} --discard`"
            )));
        }
        if asked.expect_revision != 0 {
            let now = current.as_ref().map_or(0, |found| found.record.revision);
            if now == 0 {
                return Err(Status::aborted(format!(
                    "there is no Swarm `{name}`, so it is not at revision {}: apply without a revision to make it",
                    asked.expect_revision
                )));
            }
            if now != asked.expect_revision {
                return Err(Status::aborted(format!(
                    "Swarm `{name}` is at revision {now}, not {}: look at the difference, then apply again",
                    asked.expect_revision
                )));
            }
        }
        let (expect, record) = match &current {
            Some(found) => {
                let old = &found.record;
                let mut refusals = diff::refusals(&old.swarm, &swarm);
                for stage in &swarm.stages {
                    if let Some(left) = old.draining.get(&stage.name) {
                        refusals.extend(diff::misplaced(&left.stage, stage).into_iter().map(|why| {
                            format!(
                                "{why}; what is left of the removed `{}` still drains, or has dead letters",
                                stage.name
                            )
                        }));
                    }
                }
                if !refusals.is_empty() {
                    return Err(Status::failed_precondition(refusals.join("\n")));
                }
                let mut next = old.clone();
                next.revision += 1;
                next.applied_ms = now_ms;
                next.manifest = asked.manifest;
                next.draining = old.left_behind(&swarm);
                next.swarm = swarm;
                next.modules = digests;
                (found.version, next)
            }
            None if swarms.len() >= SWARMS_MAX => {
                return Err(Status::resource_exhausted(format!(
                    "there are {SWARMS_MAX} Swarms, no more fit: delete one"
                )));
            }
            None => (
                0,
                SwarmRecord {
                    incarnation: Incarnation::random(self.entropy.as_ref()).to_string(),
                    revision: 1,
                    created_ms: now_ms,
                    applied_ms: now_ms,
                    manifest: asked.manifest,
                    swarm,
                    modules: digests,
                    deleting: false,
                    draining: BTreeMap::new(),
                },
            ),
        };
        let partitions = record.partitions();
        if partitions > SWARM_PARTITIONS_MAX {
            return Err(Status::failed_precondition(format!(
                "the stages of `{name}` have {partitions} partitions together (removed stages that still drain included), \
                 at most {SWARM_PARTITIONS_MAX} are taken: lower `partitions`, or make two Swarms of it"
            )));
        }
        let changes = changes(current.as_ref().map(|c| &c.record), &record);
        match &current {
            // Nothing to do is not a revision.
            Some(found) if changes.is_empty() => return Ok((name, found.record.revision, changes)),
            _ if asked.dry_run => {}
            _ => {
                if let Err(now) = catalog.put_swarm(expect, &record).await.map_err(internal)? {
                    return Err(Status::aborted(format!(
                        "Swarm `{name}` was changed by somebody else meanwhile (record {now}): look again, then apply again"
                    )));
                }
            }
        }
        Ok((name, record.revision, changes))
    }

    async fn begin_deletion(
        &self,
        asked: v1::DeleteSwarmRequest,
    ) -> Result<tokio::sync::watch::Receiver<deletion::Told>, Status> {
        let id = {
            let _writes = self.supervisor.writes.lock().await;
            let (name, mut found, id) = self.find(&asked.name).await?;
            if !found.record.deleting {
                found.record.deleting = true;
                let put = self.supervisor.catalog.put_swarm(found.version, &found.record).await;
                if put.map_err(internal)?.is_err() {
                    return Err(Status::aborted(format!(
                        "Swarm `{name}` was changed meanwhile: try again"
                    )));
                }
            }
            id
        };
        // Closes the routes; the stages go on and drain.
        self.supervisor.settle(id.name()).await.map_err(internal)?;
        let timeout_ms = match asked.timeout_ms {
            0 => DELETE_TIMEOUT_MS_DEFAULT,
            ms => ms.min(DELETE_TIMEOUT_MS_MAX),
        };
        let order = Order {
            until: Instant::now() + Duration::from_millis(timeout_ms),
            discard: asked.discard,
        };
        Ok(self.1.start_or_join(&self.supervisor, &id, order))
    }
}

/// Runs to its end although the caller may go away: what is stored also takes effect.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(e) => Err(Status::internal(format!("the call ended without an answer: {e}"))),
    }
}

/// A subject feeds one Swarm.
fn check_subjects(swarms: &BTreeMap<SwarmName, SwarmRecord>, swarm: &Swarm) -> Result<(), Status> {
    let mine = swarm.subjects();
    for (name, other) in swarms.iter().filter(|(name, _)| **name != swarm.name) {
        if let Some(taken) = other.swarm.subjects().into_iter().find(|s| mine.contains(s)) {
            return Err(Status::already_exists(format!(
                "subject `{taken}` feeds Swarm `{name}` already, and a subject feeds one Swarm: choose another name"
            )));
        }
    }
    Ok(())
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

async fn depths(backend: &dyn Backend, id: &SwarmId) -> Result<Vec<skep_topic::TopicStatus>, Status> {
    match backend.status(id).await {
        // Deleted, but for its record.
        Err(skep_topic::Error::Gone) => Ok(Vec::new()),
        other => other.map_err(topic_error),
    }
}

/// About what a letter takes in a reply.
fn reply_len(letter: &v1::DeadLetter) -> usize {
    let headers: usize = letter.headers.iter().map(|h| h.name.len() + h.value.len() + 8).sum();
    let text = letter.reason.len() + letter.detail.len() + letter.stderr.len() + letter.stage.len();
    letter.payload.len() + headers + text + letter.key.as_ref().map_or(0, String::len) + 256
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TooMany(String);

fn told(e: anyhow::Error) -> Status {
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
struct NoSuch(String);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct InUse(String);

fn users(swarms: &BTreeMap<SwarmName, SwarmRecord>, hex: &str) -> Vec<String> {
    swarms
        .iter()
        .filter(|(_, record)| record.digests().any(|d| d == hex))
        .map(|(name, _)| name.to_string())
        .collect()
}

/// The manifest's changes, and those of what its tags mean.
fn changes(old: Option<&SwarmRecord>, new: &SwarmRecord) -> Vec<v1::Change> {
    let mut out: Vec<v1::Change> = diff::changes(old.map(|o| &o.swarm), &new.swarm)
        .into_iter()
        .map(|c| v1::Change {
            kind: match c.kind {
                diff::ChangeKind::Add => v1::change::Kind::Add,
                diff::ChangeKind::Remove => v1::change::Kind::Remove,
                diff::ChangeKind::Change => v1::change::Kind::Change,
            }
            .into(),
            what: c.what,
            before: c.before,
            after: c.after,
        })
        .collect();
    for (stage, after) in &new.modules {
        let before = old.and_then(|o| o.modules.get(stage));
        if let Some(before) = before
            && before != after
        {
            out.push(v1::Change {
                kind: v1::change::Kind::Change.into(),
                what: format!("stage {stage}: code"),
                before: format!("sha256:{}", &before[..12]),
                after: format!("sha256:{}", &after[..12]),
            });
        }
    }
    out
}

fn on_pure_path(swarm: &Swarm, stage: &Stage) -> bool {
    swarm
        .subjects()
        .iter()
        .any(|subject| swarm.pure(subject) && swarm.reachable(subject).iter().any(|s| s.name == stage.name))
}

fn input_text(input: &StageInput) -> String {
    match input {
        StageInput::Gateway(subject) => format!("gateway {subject}"),
        StageInput::Bee { stage, output: None } => format!("bee {stage}"),
        StageInput::Bee {
            stage,
            output: Some(output),
        } => format!("bee {stage}.{output}"),
    }
}

fn stage_of(swarm: &SwarmName, record: &SwarmRecord, name: &str) -> Result<Option<StageName>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    let name: StageName = name.parse().map_err(invalid)?;
    if record.swarm.stage(&name).is_none() {
        let stages: Vec<&str> = record.swarm.stages.iter().map(|s| s.name.as_str()).collect();
        return Err(Status::not_found(format!(
            "Swarm `{swarm}` has no stage `{name}`; it has: {}",
            stages.join(", ")
        )));
    }
    Ok(Some(name))
}

fn entry(kept: Kept) -> v1::LogEntry {
    v1::LogEntry {
        at_ms: kept.at_ms,
        stage: kept.topic.stage().to_string(),
        level: kept.line.level.as_str().to_owned(),
        context: kept.line.context,
        text: kept.line.text,
        message: kept.message.map(|m| m.to_string()).unwrap_or_default(),
    }
}

fn dead_letter(stored: skep_topic::StoredDeadLetter) -> v1::DeadLetter {
    let letter = stored.letter;
    let uid = letter.work.uid().to_string();
    let key = letter.work.key().map(str::to_owned);
    let (payload, headers, trace_id) = match letter.work {
        Work::Message(message) => (
            message.payload,
            message
                .headers
                .into_iter()
                .map(|(name, value)| v1::Header { name, value })
                .collect(),
            message
                .trace
                .map(|t| format!("{:032x}", u128::from_be_bytes(t.trace_id)))
                .unwrap_or_default(),
        ),
        Work::Timer { name, at_ms, .. } => (
            Bytes::from(format!("timer {name} due {at_ms}")),
            Vec::new(),
            String::new(),
        ),
    };
    v1::DeadLetter {
        id: stored.id,
        stage: stored.topic.stage().to_string(),
        reason: letter.reason,
        detail: letter.detail,
        stderr: letter.stderr,
        attempts: letter.attempts,
        at_ms: letter.at_ms,
        message: uid,
        key,
        payload,
        headers,
        module: letter.module.to_string(),
        trace_id,
    }
}

fn invalid(e: impl std::fmt::Display) -> Status {
    Status::invalid_argument(e.to_string())
}

fn internal(e: anyhow::Error) -> Status {
    if let Some(e) = e.downcast_ref::<skep_topic::Error>() {
        return topic_error(e.clone());
    }
    tracing::error!(error = format!("{e:#}"), "Beekeeper call failed");
    Status::internal(format!("{e:#}"))
}

fn topic_error(e: skep_topic::Error) -> Status {
    let code = match &e {
        skep_topic::Error::Unavailable(_) => Code::Unavailable,
        skep_topic::Error::Unknown(_) => Code::Unknown,
        skep_topic::Error::Gone => Code::NotFound,
        _ => Code::Internal,
    };
    Status::new(code, e.to_string())
}

/// A refused upload is the uploader's to mend; a compiler that could not run is ours.
fn refused(e: &Refused) -> Status {
    let status = match e {
        Refused::Compile(e) if e.code.is_permanent() => Status::invalid_argument(e.to_string()),
        Refused::Compile(_) => Status::unavailable(e.to_string()),
        Refused::Load(skep_engine::Error::Artifact(_) | skep_engine::Error::TooBig(_)) => {
            Status::invalid_argument(e.to_string())
        }
        Refused::Load(_) => Status::invalid_argument(e.to_string()),
    };
    let code = match e {
        Refused::Compile(e) => e.code.as_str(),
        Refused::Load(_) => "not-loadable",
    };
    let mut status = status;
    if let Ok(code) = code.parse() {
        status.metadata_mut().insert("skep-reason", code);
    }
    status
}
