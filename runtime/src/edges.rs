//! Edges, as their hub sees them: who they are, what they are to run, and the code for it. See `skep_edge` for their own side.
//!
//! ```text
//! catalog ──► orders of one edge (revision by revision) ──signed──► attach.rs ══ stream ══ edge
//! modules ──► code for its processor, signed, kept on disk ──────────┘   └──► topics, each message once
//! ```

mod attach;
mod code;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use skep_edge::keys::{Key, Public};
use skep_edge::limits::{DISCARDS_MAX, EDGES_MAX, INVITATION_MS, LABELS_MAX, REVISION_MAX, SWARMS_KNOWN_MAX};
use skep_edge::orders::{self, CodeOrder, Discard, DoorOrder, FORMAT, Orders, SwarmOrder};
use skep_engine::Target;
use skep_model::env::{Clock, Entropy};
use skep_model::id::{Digest, Incarnation};
use skep_model::name::{NodeLabel, StageName, SwarmName, TenantId};
use skep_model::scope::{Scope, SwarmId};
use skep_model::swarm::{InputSource, Stage, StageInput};
use skep_topic::{Backend, CatalogRecord, TopicSpec};
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::catalog::{Catalogs, Hold, RACES_MAX, SwarmRecord, Versioned};
use crate::members::Members;
use crate::quotas::Quotas;
use crate::secrets::{HUB_KEY, Vault};
use crate::supervisor::{Modules, topic_spec};
use code::Codes;

/// An edge in the catalog, by its tenant and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeRecord {
    /// Hex. Another one with each invitation of the name that followed a revocation.
    pub id: String,
    pub labels: BTreeSet<NodeLabel>,
    pub invited_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invitation: Option<InvitationRecord>,
    /// The public half of its key, hex, once it has enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default)]
    pub enrolled_ms: u64,
    /// Of the orders that were given last.
    pub revision: u64,
    pub epoch: u64,
    /// Of what those say, hex: the same gets no other revision.
    #[serde(default)]
    pub content: String,
    /// The highest revision that it said it follows.
    #[serde(default)]
    pub follows: u64,
    /// `NAME@INCARNATION` of each Swarm that its orders ever had a part of: what waits there for one of them is taken, whatever became of labels
    /// and stages since.
    #[serde(default)]
    pub swarms: BTreeSet<String>,
    /// The kinds of processor that code was asked for.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// What is to be let go of there, the newest last.
    #[serde(default)]
    pub discards: Vec<Discard>,
    /// Of the secret with which it enrolled, as in [`InvitationRecord`]: the same machine may ask again, if the answer was lost.
    #[serde(default)]
    pub enrolled_with: String,
}

/// A secret that lets an edge enrol once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationRecord {
    /// SHA-256 of the secret, hex.
    pub hash: String,
    pub expires_ms: u64,
    /// Those of the edge once it has enrolled with it. One of that name that is there goes on with its own until then.
    pub labels: BTreeSet<NodeLabel>,
}

/// What an edge said last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SeenRecord {
    pub seen_ms: u64,
    /// The node that it is attached to: another's word counts while that node is there.
    #[serde(default)]
    pub node: String,
    pub attached: bool,
    pub target: Option<Target>,
    pub version: String,
    pub follows: u64,
    /// The edge's word.
    pub trouble: String,
    /// Why it gets no orders.
    #[serde(default)]
    pub no_orders: String,
    pub runs: Vec<String>,
    pub waiting: Vec<WaitingRecord>,
    /// In the inboxes of what runs there.
    #[serde(default)]
    pub inboxes: Vec<WaitingRecord>,
}

/// What waits at an edge for one stage of the hub's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WaitingRecord {
    /// `SWARM/STAGE`.
    pub stage: String,
    pub messages: u64,
    pub bytes: u64,
    pub handed_over: u64,
    pub dropped: u64,
    pub trouble: String,
}

/// An edge that may have messages of a Swarm.
#[derive(Debug)]
pub struct Holds {
    edge: String,
    /// 0: it is away, and nobody knows.
    waits: u64,
}

impl std::fmt::Display for Holds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.waits {
            0 => write!(f, "edge `{}` is away, and may have messages for it", self.edge),
            n => write!(
                f,
                "edge `{}` has {} for it",
                self.edge,
                crate::wording::count(n, "message")
            ),
        }
    }
}

/// Of some, for a refusal.
#[must_use]
pub fn listed(holds: &[Holds]) -> String {
    holds.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The caller's mistake.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What edges need of a node.
pub struct Edges {
    pub(crate) catalogs: Catalogs,
    vault: Arc<Vault>,
    modules: Arc<Modules>,
    backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    audit: Arc<Audit>,
    quotas: Arc<Quotas>,
    members: Arc<Members>,
    codes: Arc<Codes>,
    /// Once there is one it stays.
    key: OnceCell<Arc<Key>>,
    /// Tenants' Swarms, with the catalog's number from before they were read: one reading for all edges of a tenant.
    swarms: Mutex<HashMap<TenantId, (u64, Arc<Swarms>)>>,
    /// Frames of a tenant's edges that are looked at and appended at once.
    frames: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
    stop: CancellationToken,
    /// Those attached here.
    live: Mutex<HashMap<EdgeName, Live>>,
    /// When each came last, and when what it says of itself was written down last.
    came: Mutex<HashMap<EdgeName, Came>>,
    /// Connections that have not proven yet who they are; and all.
    greeting: Semaphore,
    places: Arc<Semaphore>,
}

pub type EdgeName = (TenantId, String);

/// So that nobody writes to the catalog as fast as they can call.
#[derive(Debug, Clone, Copy)]
struct Came {
    at: tokio::time::Instant,
    written: Option<tokio::time::Instant>,
}

/// A connection.
#[derive(Clone)]
struct Live {
    /// Another for each connection.
    number: u64,
    end: CancellationToken,
    seen: SeenRecord,
}

type Swarms = BTreeMap<SwarmName, SwarmRecord>;

/// What an edge may hand over, by Swarm, incarnation and stage.
type Doors = HashMap<(SwarmName, Incarnation, StageName), DoorOf>;

/// A stage of the hub that takes messages of an edge.
#[derive(Clone)]
struct DoorOf {
    topic: Arc<TopicSpec>,
    /// Its messages have keys: the stage that publishes one gives it its key.
    keyed: bool,
}

impl Edges {
    /// `data`: the node's folder.
    ///
    /// # Errors
    /// The folder for code cannot be made.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of the node, and all are needed"
    )]
    pub fn new(
        catalogs: Catalogs,
        vault: Arc<Vault>,
        modules: Arc<Modules>,
        backend: Arc<dyn Backend>,
        (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>),
        audit: Arc<Audit>,
        quotas: Arc<Quotas>,
        members: Arc<Members>,
        data: &Path,
        stop: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            catalogs,
            vault,
            modules,
            backend,
            clock,
            entropy,
            audit,
            quotas,
            members,
            codes: Codes::open(&data.join("edge-code"))?,
            key: OnceCell::new(),
            swarms: Mutex::default(),
            frames: Mutex::default(),
            stop,
            live: Mutex::default(),
            came: Mutex::default(),
            greeting: Semaphore::new(skep_edge::limits::GREETING_MAX),
            places: Arc::new(Semaphore::new(skep_edge::limits::ATTACHED_MAX)),
        }))
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<EdgeName, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key by which edges know this hub. Made by the first invitation, and by nobody else.
    ///
    /// # Errors
    /// There is none, or it cannot be opened here.
    pub async fn key(&self) -> anyhow::Result<Arc<Key>> {
        let read = async {
            let found = self.vault.hub_key().await?;
            let found = found.context("no edge was ever invited here: it is another platform than the edge's, or was restored without its edges")?;
            anyhow::Ok(Arc::new(Key::read(found.expose())?))
        };
        self.key.get_or_try_init(|| read).await.cloned()
    }

    /// Invites an edge: its record, and the secret that lets it enrol, which is kept nowhere.
    ///
    /// # Errors
    /// [`Refused`], or the store cannot be written.
    pub async fn invite(
        &self,
        tenant: &TenantId,
        name: &str,
        labels: BTreeSet<NodeLabel>,
    ) -> anyhow::Result<(EdgeRecord, String, Public)> {
        let name = named(name)?;
        if labels.len() > LABELS_MAX {
            bail!(Refused(format!(
                "an edge has at most {LABELS_MAX} labels, these are {}",
                labels.len()
            )));
        }
        self.vault.make_hub_key(self.clock.now_ms()).await?;
        let hub = self.key().await?.public();
        let secret = Incarnation(self.entropy.bits128()).to_string() + &Incarnation(self.entropy.bits128()).to_string();
        let now_ms = self.clock.now_ms();
        let invitation = InvitationRecord {
            hash: hash(&secret),
            expires_ms: now_ms.saturating_add(INVITATION_MS),
            labels: labels.clone(),
        };
        let key = path(tenant, &name);
        for _ in 0..RACES_MAX {
            let found = self.catalogs.get::<EdgeRecord>(&key).await?;
            if found.is_none() && self.list(tenant).await?.len() >= EDGES_MAX {
                bail!(Refused(format!("a tenant has at most {EDGES_MAX} edges: revoke one")));
            }
            let (expect, before) = found.map_or((0, None), |f| (f.version, Some(f.record)));
            let record = match before {
                // Until the new invitation is used the edge goes on as it is.
                Some(before) => EdgeRecord {
                    invitation: Some(invitation.clone()),
                    ..before
                },
                None => EdgeRecord {
                    id: Incarnation(self.entropy.bits128()).to_string(),
                    labels: labels.clone(),
                    invited_ms: now_ms,
                    invitation: Some(invitation.clone()),
                    key: None,
                    enrolled_ms: 0,
                    revision: 0,
                    epoch: 0,
                    content: String::new(),
                    follows: 0,
                    swarms: BTreeSet::new(),
                    targets: Vec::new(),
                    discards: Vec::new(),
                    enrolled_with: String::new(),
                },
            };
            if self.catalogs.put(&key, expect, None, &record).await?.is_ok() {
                return Ok((record, secret, hub));
            }
        }
        bail!("edge `{name}` is being changed by too many at once: try again")
    }

    /// Takes an edge in that shows its invitation's secret. It gets a fresh id: what an edge of that name handed over before is another's.
    ///
    /// # Errors
    /// [`Refused`], in the same words whatever is wrong with name or secret.
    pub async fn enrol(
        &self,
        tenant: &str,
        name: &str,
        secret: &str,
        public: &[u8],
    ) -> anyhow::Result<([u8; 16], [u8; 64])> {
        let unknown = || {
            Refused(
                "no such invitation: it was used, it ran out, or it is mistyped; `skep edge enroll NAME` at the hub makes another".to_owned(),
            )
        };
        let public: Public = public
            .try_into()
            .map_err(|_| Refused("an edge's key has 32 bytes".to_owned()))?;
        let tenant: TenantId = tenant.parse().map_err(|_| unknown())?;
        let name = named(name).map_err(|_| unknown())?;
        let hub = self.key().await?;
        let key = path(&tenant, &name);
        for _ in 0..RACES_MAX {
            let Some(Versioned { version, record }) = self.catalogs.get::<EdgeRecord>(&key).await? else {
                bail!(unknown());
            };
            let now_ms = self.clock.now_ms();
            let shown = hash(secret);
            let same_key = record.key.as_deref() == Some(Digest(public).to_hex().as_str());
            if same_key && record.enrolled_with == shown {
                let id: Incarnation = record.id.parse().context("the id of an edge in the catalog")?;
                let words = skep_edge::hello::enrolled(tenant.as_str(), &name, &id.0, &public);
                return Ok((id.0, hub.sign(&words)));
            }
            let good = |i: &InvitationRecord| i.hash == shown && i.expires_ms > now_ms;
            let Some(invitation) = record.invitation.clone().filter(good) else {
                bail!(unknown());
            };
            let id = self.entropy.bits128();
            let taken = EdgeRecord {
                id: orders::hex(&id),
                labels: invitation.labels,
                invitation: None,
                key: Some(Digest(public).to_hex()),
                enrolled_ms: now_ms,
                content: String::new(),
                follows: 0,
                swarms: BTreeSet::new(),
                targets: Vec::new(),
                discards: Vec::new(),
                enrolled_with: shown,
                ..record
            };
            if self.catalogs.put(&key, version, None, &taken).await?.is_ok() {
                // Who was attached by that name before is another machine now.
                self.end(&tenant, &name);
                self.audit
                    .note(&format!("edge `{name}` of tenant `{tenant}` has enrolled"));
                let words = skep_edge::hello::enrolled(tenant.as_str(), &name, &id, &public);
                return Ok((id, hub.sign(&words)));
            }
        }
        bail!("edge `{name}` is being changed by too many at once: try again")
    }

    /// All of a tenant, with what each said last.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(&self, tenant: &TenantId) -> anyhow::Result<Vec<(String, EdgeRecord, SeenRecord)>> {
        let mut seen: BTreeMap<String, SeenRecord> = BTreeMap::new();
        let others: BTreeSet<String> = self.members.others().iter().map(|heard| heard.id.to_string()).collect();
        for (name, read) in self.catalogs.list_each::<SeenRecord>(&seen_path(tenant, "")).await? {
            let mut read = read?.record;
            // Its node may have gone without a word.
            read.attached &= others.contains(&read.node);
            seen.insert(name, read);
        }
        let mut out = Vec::new();
        for (name, read) in self.catalogs.list_each::<EdgeRecord>(&path(tenant, "")).await? {
            let here = self
                .live()
                .get(&(tenant.clone(), name.clone()))
                .map(|live| live.seen.clone());
            let seen = here.or_else(|| seen.remove(&name)).unwrap_or_default();
            out.push((name, read?.record, seen));
        }
        Ok(out)
    }

    /// Takes an edge's word from it: its connection ends, here at once and elsewhere when the catalog is heard of.
    ///
    /// # Errors
    /// When the store cannot be written. `false`: there was none.
    pub async fn revoke(&self, tenant: &TenantId, name: &str) -> anyhow::Result<bool> {
        for _ in 0..RACES_MAX {
            let Some(found) = self.catalogs.get::<EdgeRecord>(&path(tenant, name)).await? else {
                return Ok(false);
            };
            if self.catalogs.delete(&path(tenant, name), found.version).await?.is_ok() {
                self.end(tenant, name);
                if let Some(seen) = self.catalogs.get::<SeenRecord>(&seen_path(tenant, name)).await? {
                    let _ = self.catalogs.delete(&seen_path(tenant, name), seen.version).await?;
                }
                return Ok(true);
            }
        }
        bail!("edge `{name}` is being changed by too many at once: try again")
    }

    /// A tenant goes. Whether it had any.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn forget(&self, tenant: &TenantId) -> anyhow::Result<bool> {
        let all = self.list(tenant).await?;
        for (name, ..) in &all {
            self.revoke(tenant, name).await?;
        }
        Ok(!all.is_empty())
    }

    /// Goes on with an edge that knows of more than this hub does. Returns the revision that its next orders are above.
    ///
    /// # Errors
    /// [`Refused`]: no such edge; or the store cannot be written.
    pub async fn resume(&self, tenant: &TenantId, name: &str) -> anyhow::Result<u64> {
        let seen = self.list(tenant).await?.into_iter().find(|(found, ..)| found == name);
        let follows = seen.map_or(0, |(_, _, seen)| seen.follows.min(REVISION_MAX));
        let revision = self
            .change(tenant, name, |record| {
                record.revision = record.revision.max(record.follows).max(follows) + 1;
                // Not one more than the last: a hub that was restored may have given that number before.
                record.epoch = record.revision;
                record.content = String::new();
                record.revision
            })
            .await?;
        revision.ok_or_else(|| none(name).into())
    }

    /// Other labels from now on. What runs there by the old ones stops, and what waits there is handed over all the same.
    ///
    /// # Errors
    /// [`Refused`]: no such edge, or too many; or the store cannot be written.
    pub async fn label(&self, tenant: &TenantId, name: &str, labels: &BTreeSet<NodeLabel>) -> anyhow::Result<()> {
        if labels.len() > LABELS_MAX {
            bail!(Refused(format!(
                "an edge has at most {LABELS_MAX} labels, these are {}",
                labels.len()
            )));
        }
        let set = |record: &mut EdgeRecord| record.labels.clone_from(labels);
        self.change(tenant, name, set).await?.ok_or_else(|| none(name).into())
    }

    /// Lets go of what waits there: all of it, or the first message.
    ///
    /// # Errors
    /// [`Refused`]: no such edge, or `what` is no name as its status shows them; or the store cannot be written.
    pub async fn discard(&self, tenant: &TenantId, name: &str, what: &str, first: bool) -> anyhow::Result<()> {
        if what.len() > 300 || !what.contains('/') {
            bail!(Refused(
                "say what as `skep edge status` shows it: SWARM/STAGE".to_owned()
            ));
        }
        let add = |record: &mut EdgeRecord| {
            record.revision = record.revision.max(record.follows) + 1;
            record.content = String::new();
            record.discards.push(Discard {
                id: record.revision,
                what: what.to_owned(),
                first,
            });
            let over = record.discards.len().saturating_sub(DISCARDS_MAX);
            record.discards.drain(..over);
        };
        self.change(tenant, name, add).await?.ok_or_else(|| none(name).into())
    }

    /// Edges that may hold what is for a Swarm, or for some stages of it: for who is about to take that away. An edge that is away may hold more than it
    /// said last.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn may_hold(
        &self,
        tenant: &TenantId,
        id: &SwarmId,
        stages: Option<&BTreeSet<StageName>>,
    ) -> anyhow::Result<Vec<Holds>> {
        let life = life(id);
        let mut out = Vec::new();
        for (name, record, seen) in self.list(tenant).await? {
            if !record.swarms.contains(&life) {
                continue;
            }
            let of_it = |w: &&WaitingRecord| {
                // By its name while it runs there, else by its life.
                let (swarm, left) = (format!("{}/", id.name()), format!("{life}/"));
                let stage = w.stage.strip_prefix(&swarm).or_else(|| w.stage.strip_prefix(&left));
                stage.is_some_and(|stage| stages.is_none_or(|all| all.iter().any(|s| s.as_str() == stage)))
            };
            let all = seen.waiting.iter().chain(&seen.inboxes);
            let waits: u64 = all.filter(of_it).fold(0, |sum, w| sum.saturating_add(w.messages));
            if waits > 0 || !seen.attached {
                out.push(Holds { edge: name, waits });
            }
        }
        Ok(out)
    }

    /// Whether all that attached edges took for a Swarm that is being deleted is here: each has closed its doors, as its orders say by now, and has
    /// told since that nothing is left. Those that are away are not waited for.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn are_drained(&self, id: &SwarmId) -> anyhow::Result<bool> {
        let tenant = id.tenant();
        let (life, swarms) = (life(id), self.swarms_of(tenant).await?);
        for (name, record, seen) in self.list(tenant).await? {
            let Some(target) = seen
                .target
                .as_ref()
                .filter(|_| seen.attached && record.swarms.contains(&life))
            else {
                continue;
            };
            let edge = (tenant.clone(), name);
            let told = match self.orders(&edge, &record, target, &swarms).await? {
                Some(orders) => seen.follows >= orders.revision,
                // Its code is being compiled; it hears of it then.
                None => false,
            };
            if !told {
                return Ok(false);
            }
        }
        Ok(self
            .may_hold(tenant, id, None)
            .await?
            .iter()
            .all(|holds| holds.waits == 0))
    }

    /// All edges' records and the hub's key, as stored.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn stored(&self) -> anyhow::Result<Vec<(String, CatalogRecord)>> {
        let mut all = self.catalogs.stored(PREFIX).await?;
        let key = self.catalogs.stored(HUB_KEY).await?;
        all.extend(key.into_iter().filter(|(key, _)| key == HUB_KEY));
        Ok(all)
    }

    /// Puts a record back as it was stored, unless there is one of its name.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn restore(&self, tenant: &TenantId, name: &str, record: &EdgeRecord) -> anyhow::Result<()> {
        let _ = self.catalogs.put(&path(tenant, name), 0, None, record).await?;
        Ok(())
    }

    /// Changes a record until no other write came between. `None`: there is none.
    async fn change<T>(
        &self,
        tenant: &TenantId,
        name: &str,
        mut change: impl FnMut(&mut EdgeRecord) -> T,
    ) -> anyhow::Result<Option<T>> {
        let key = path(tenant, name);
        for _ in 0..RACES_MAX {
            let Some(mut found) = self.catalogs.get::<EdgeRecord>(&key).await? else {
                return Ok(None);
            };
            let before = found.record.clone();
            let told = change(&mut found.record);
            if found.record == before
                || self
                    .catalogs
                    .put(&key, found.version, None, &found.record)
                    .await?
                    .is_ok()
            {
                return Ok(Some(told));
            }
        }
        bail!("edge `{name}` is being changed by too many at once: try again")
    }

    fn end(&self, tenant: &TenantId, name: &str) {
        if let Some(live) = self.live().remove(&(tenant.clone(), name.to_owned())) {
            live.end.cancel();
        }
    }

    /// A tenant's Swarms, read once for all who ask at the same number of the catalog.
    async fn swarms_of(&self, tenant: &TenantId) -> anyhow::Result<Arc<Swarms>> {
        // Before they are read: what is written meanwhile has another number, and is read again.
        let number = self.catalogs.number().await?;
        let all = || self.swarms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, found)) = all().get(tenant)
            && *of == number
        {
            return Ok(Arc::clone(found));
        }
        let read = Arc::new(self.catalogs.of(tenant).swarms().await?);
        all().insert(tenant.clone(), (number, Arc::clone(&read)));
        Ok(read)
    }

    /// What an edge with this record may hand over, by the catalog alone: no compiler is asked, so that nothing of it keeps messages waiting.
    fn doors(&self, tenant: &TenantId, record: &EdgeRecord, swarms: &Swarms) -> anyhow::Result<Doors> {
        let scope = Scope::of(tenant.clone());
        let mut doors = Doors::new();
        for found in swarms.values() {
            let id = found.id(&scope)?;
            if !record.swarms.contains(&life(&id)) {
                continue;
            }
            let reads = |stage: &&Stage| {
                let from_a_bee = |input: &StageInput| matches!(input.source, InputSource::Bee { .. });
                stage.place.is_none() && stage.inputs.iter().any(from_a_bee)
            };
            let now = found.swarm.stages.iter().filter(reads);
            let left = found
                .draining
                .values()
                .map(|left| &left.stage)
                .filter(|stage| stage.place.is_none());
            for stage in now.chain(left) {
                let door = DoorOf {
                    topic: Arc::new(topic_spec(&id, stage, found.born(&stage.name))),
                    keyed: stage.key.is_some(),
                };
                doors.insert((id.name().clone(), id.incarnation(), stage.name.clone()), door);
            }
        }
        Ok(doors)
    }

    /// The modules that an edge needs code of.
    fn wanted(record: &EdgeRecord, target: &Target, swarms: &Swarms) -> anyhow::Result<Vec<Wanted>> {
        let mut wanted = Vec::new();
        for found in swarms.values() {
            for stage in here(record, found) {
                wanted.push(Wanted {
                    of: (found.digest(&stage)?, target.clone()),
                    swarm: found.swarm.name.clone(),
                    stage,
                });
            }
        }
        Ok(wanted)
    }

    /// Compiles what is not at hand, one module after the other.
    async fn compile(&self, tenant: &TenantId, wanted: Vec<Wanted>) -> anyhow::Result<()> {
        let key = self.key().await?;
        for Wanted { of, swarm, stage } in wanted {
            let cpu = of.1.cpu;
            let made = self.codes.of(&self.modules, tenant, of, &key).await;
            made.with_context(|| format!("stage `{stage}` of Swarm `{swarm}` cannot be compiled for {cpu}"))?;
        }
        Ok(())
    }

    /// What an edge is to do. The same says the same: the revision rises only when something changes. `None`: some code is not at hand yet.
    async fn orders(
        &self,
        (tenant, name): &EdgeName,
        record: &EdgeRecord,
        target: &Target,
        swarms: &Swarms,
    ) -> anyhow::Result<Option<Orders>> {
        let scope = Scope::of(tenant.clone());
        let mut parts = Vec::new();
        let mut lives = BTreeSet::new();
        for found in swarms.values() {
            let here = here(record, found);
            if here.is_empty() {
                continue;
            }
            let mut code = BTreeMap::new();
            for stage in &here {
                let module = found.digest(stage)?;
                let Some(native) = self.codes.known(&(module, target.clone())) else {
                    return Ok(None);
                };
                code.insert(stage.clone(), CodeOrder { module, native });
            }
            lives.insert(life(&found.id(&scope)?));
            parts.push(SwarmOrder {
                swarm: found.swarm.clone(),
                incarnation: found.incarnation.clone(),
                revision: found.revision,
                born: found
                    .swarm
                    .stages
                    .iter()
                    .map(|s| (s.name.clone(), found.born(&s.name)))
                    .collect(),
                code,
                paused: here.iter().filter(|stage| found.is_paused(stage)).cloned().collect(),
                door: match (found.deleting, found.hold) {
                    (false, None) => DoorOrder::Open,
                    (false, Some(Hold::Paused)) => DoorOrder::Paused,
                    (false, Some(Hold::Draining)) => DoorOrder::Draining,
                    (true, _) => DoorOrder::Deleting,
                },
                here,
            });
        }
        let mut gone = record.swarms.clone();
        for found in swarms.values() {
            gone.remove(&life(&found.id(&scope)?));
        }
        let mut orders = Orders {
            format: FORMAT,
            edge: record.id.clone(),
            tenant: tenant.to_string(),
            revision: 0,
            epoch: record.epoch,
            swarms: parts,
            gone,
            discards: record.discards.clone(),
        };
        let content = Digest::of(&serde_json::to_vec(&orders)?).to_hex();
        let given = self
            .change(tenant, name, |now| {
                if now.content != content && now.id == record.id {
                    now.content.clone_from(&content);
                    now.revision += 1;
                    now.swarms.extend(lives.iter().cloned());
                    // By name, so not the oldest; nobody has a thousand whose messages still wait.
                    while now.swarms.len() > SWARMS_KNOWN_MAX {
                        let gone = now.swarms.iter().find(|life| !lives.contains(*life)).cloned();
                        let Some(gone) = gone else { break };
                        now.swarms.remove(&gone);
                    }
                }
                now.revision
            })
            .await?;
        orders.revision = given.context("the edge was revoked")?;
        Ok(Some(orders))
    }
}

/// Code that an edge needs.
struct Wanted {
    of: code::Of,
    swarm: SwarmName,
    stage: StageName,
}

/// A Swarm's stages that run on an edge with this record.
fn here(record: &EdgeRecord, found: &SwarmRecord) -> BTreeSet<StageName> {
    let fits = |stage: &&Stage| {
        let label = stage.place.as_ref().map(|place| &place.label);
        label.is_some_and(|label| orders::fits(label, &record.labels))
    };
    found.swarm.stages.iter().filter(fits).map(|s| s.name.clone()).collect()
}

/// A Swarm's life, as an edge's record names it.
fn life(id: &SwarmId) -> String {
    format!("{}@{}", id.name(), id.incarnation())
}

fn none(name: &str) -> Refused {
    Refused(format!("no edge `{name}`: look at `skep edge list`"))
}

fn named(name: &str) -> Result<String, Refused> {
    match name.parse::<SwarmName>() {
        Ok(good) => Ok(good.as_str().to_owned()),
        Err(e) => Err(Refused(format!("the edge's name: {e}"))),
    }
}

const PREFIX: &str = "edge/";

fn path(tenant: &TenantId, name: &str) -> String {
    format!("{PREFIX}{tenant}/{name}")
}

fn seen_path(tenant: &TenantId, name: &str) -> String {
    format!("edge-seen/{tenant}/{name}")
}

/// Of a secret with 256 random bits, which needs no salt and no slow hash.
fn hash(secret: &str) -> String {
    Digest(Sha256::digest(secret.as_bytes()).into()).to_hex()
}
