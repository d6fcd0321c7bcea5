//! The nodes that share a store: this one's heartbeat, what it hears of the others, and what follows from that.
//!
//! ```text
//!   beat (each second) ──► who is alive ──► placement of partitions (a hint to the stages' owners)
//!                    └───► the catalog's number ──► reconcile, when it changed
//! ```
//! There is no coordinator: everybody reads the same store. A node that is wrongly thought dead, or that does not know yet that another
//! came, costs time and nothing else, for leases decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_model::Bytes;
use skep_model::env::Clock;
use skep_model::id::NodeId;
use skep_model::name::{NodeLabel, TenantId};
use skep_stage::{Pins, Workers};
use skep_topic::{Backend, Beat, Pulse};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::StoreClock;
use crate::level::{self, Build, Feature};
use crate::settings::Roles;
use crate::supervisor::Supervisor;

/// How often a node says that it is alive, and how long that holds: three beats may be lost.
const BEAT: Duration = Duration::from_millis(1_000);
const BEAT_TTL_MS: u64 = 4_000;
/// A wish of a node that was away for so long is nobody's: it has another id when it starts again. Long, for one that only slept must not
/// come back to work.
const WISH_KEPT: Duration = Duration::from_secs(600);
/// How long a stopping node tries to say so.
const ANNOUNCE: Duration = Duration::from_millis(1_000);
/// Under it a node's wish to leave lies in the catalog, by node id.
const DRAINS: &str = "drain/";

/// What a node says of itself. Fields that an older node does not know are ignored by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub version: String,
    /// The build's level.
    pub features: u32,
    pub url: String,
    pub roles: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<NodeLabel>,
    pub started_ms: u64,
    #[serde(default)]
    pub draining: bool,
    /// It still loads what the catalog has: the others go on with what will be its own.
    #[serde(default)]
    pub starting: bool,
    /// The catalog that it follows.
    #[serde(default)]
    pub catalog: u64,
    /// What all nodes of a store must have in common, in words.
    #[serde(default)]
    pub common: BTreeMap<String, String>,
    /// Partitions that it owns, by Swarm and stage.
    #[serde(default)]
    pub owned: BTreeMap<String, Vec<u16>>,
    /// Messages a second that tenants with a rate offer to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub demands: BTreeMap<String, u64>,
}

impl Member {
    /// Whether Bees run there.
    #[must_use]
    pub fn works(&self) -> bool {
        self.roles.iter().any(|role| role == "worker")
    }

    /// Whether it is a Gateway.
    #[must_use]
    pub fn takes_calls(&self) -> bool {
        self.roles.iter().any(|role| role == "gateway")
    }
}

/// A member as this node heard of it.
#[derive(Debug, Clone)]
pub struct Heard {
    pub id: NodeId,
    pub member: Member,
    pub silent_ms: u64,
}

/// The heartbeat. Cloned by whoever asks.
pub struct Members {
    pub me: NodeId,
    backend: Arc<dyn Backend>,
    about: Member,
    /// Told by each beat.
    clock: Arc<StoreClock>,
    workers: watch::Sender<Arc<Workers>>,
    /// The catalog's number that the last reconciliation began with.
    followed: AtomicU64,
    draining: AtomicBool,
    starting: AtomicBool,
    /// The others, as of the last beat.
    others: Mutex<Vec<Heard>>,
    /// Said with the next beat.
    demands: Mutex<BTreeMap<String, u64>>,
    /// Who is asked to leave. Read by everybody, so that the next owners are as quick to know as the one that goes.
    leavers: Mutex<BTreeSet<NodeId>>,
    /// Which tenants are pinned, as the catalog says.
    pinned: Mutex<BTreeMap<TenantId, NodeLabel>>,
    /// The store's level, as this node heard of it last.
    level: AtomicU32,
    /// Who was there at the last beat and is not at this build's level, by name and version.
    below: Mutex<Below>,
    /// Why this node must not go on.
    outgrown: watch::Sender<Option<String>>,
    /// The catalog's number, at each beat that the store answered.
    beats: watch::Sender<u64>,
    /// Told when `draining` changes.
    leaving: watch::Sender<bool>,
}

impl Members {
    /// Joins: the first beat, and a look at who else is there.
    ///
    /// # Errors
    /// When the store cannot be reached, or when the others are set up in another way.
    pub async fn join(
        me: NodeId,
        backend: Arc<dyn Backend>,
        about: Member,
        clock: Arc<StoreClock>,
    ) -> anyhow::Result<(Arc<Self>, watch::Receiver<Arc<Workers>>)> {
        let works = about.works();
        let first = Workers {
            me,
            all: if works { vec![me] } else { Vec::new() },
            pins: Pins::default(),
        };
        let (workers, receiver) = watch::channel(Arc::new(first));
        let members = Arc::new(Self {
            me,
            backend,
            about,
            clock,
            workers,
            followed: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            starting: AtomicBool::new(true),
            others: Mutex::default(),
            demands: Mutex::default(),
            leavers: Mutex::default(),
            pinned: Mutex::default(),
            level: AtomicU32::new(level::FIRST),
            below: Mutex::default(),
            outgrown: watch::Sender::new(None),
            beats: watch::Sender::new(0),
            leaving: watch::Sender::new(false),
        });
        let pulse = members
            .beat(BTreeMap::new())
            .await
            .context("say that this node is alive")?;
        // Behind the beat: who raises the level meanwhile has heard of this node, or this node reads what was raised.
        let refused = match level::of_store(members.backend.as_ref()).await {
            Ok(level) => {
                members.level.store(level, Ordering::Relaxed);
                Build::current().refuses(level).or_else(|| members.differs(&pulse))
            }
            Err(e) => Some(format!("{e:#}")),
        };
        if let Some(why) = refused {
            members.backend.leave(me).await.ok();
            bail!(why);
        }
        members.place(&pulse);
        Ok((members, receiver))
    }

    /// What another node has otherwise, and what to do.
    fn differs(&self, pulse: &Pulse) -> Option<String> {
        if let Some(beat) = pulse.nodes.iter().find(|beat| read(beat).is_none()) {
            return Some(format!(
                "node {} says of itself what this skep {} cannot read: it is of a newer skep, or no skep; upgrade this node",
                beat.node, self.about.version
            ));
        }
        for other in heard(pulse).iter().filter(|other| other.id != self.me) {
            let named = format!("node `{}` at {}", other.member.name, other.member.url);
            if let Some(what) = Build::current().avoids(other.member.features) {
                return Some(format!(
                    "this skep {} (level {}) must not work beside {named}: skep {} (level {}) {what}",
                    self.about.version, self.about.features, other.member.version, other.member.features
                ));
            }
            for (what, mine) in &self.about.common {
                if let Some(theirs) = other.member.common.get(what)
                    && theirs != mine
                {
                    return Some(format!(
                        "{named} has {what} `{theirs}` and this node `{mine}`: nodes that share a store must agree; change one of them"
                    ));
                }
            }
        }
        None
    }

    async fn beat(&self, owned: BTreeMap<String, Vec<u16>>) -> Result<Pulse, skep_topic::Error> {
        let record = Member {
            draining: self.draining.load(Ordering::Relaxed),
            starting: self.starting.load(Ordering::Relaxed),
            catalog: self.followed.load(Ordering::Relaxed),
            owned,
            demands: self.demands.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..self.about.clone()
        };
        let record = serde_json::to_vec(&record).expect("plain data");
        let sent = self.clock.machine_ms();
        let pulse = self.backend.beat(self.me, Bytes::from(record), BEAT_TTL_MS).await?;
        self.clock.learn(pulse.now_ms, sent, self.clock.machine_ms());
        Ok(pulse)
    }

    fn place(&self, pulse: &Pulse) {
        let leavers = self.leavers().clone();
        let heard = heard(pulse);
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let labelled = heard.iter().map(|n| (n.id, &n.member.labels));
        let labels = labelled
            .chain([(self.me, &self.about.labels)])
            .filter(|(_, labels)| !labels.is_empty())
            .map(|(id, labels)| (id, labels.clone()));
        let pins = Pins {
            labels: labels.collect(),
            tenants: pinned,
        };
        let others = heard.iter().filter(|n| n.id != self.me).cloned().collect();
        *self.others.lock().unwrap_or_else(PoisonError::into_inner) = others;
        let mut all: Vec<NodeId> = heard
            .into_iter()
            .filter(|n| n.member.works() && !n.member.draining && !n.member.starting)
            .map(|n| n.id)
            // What the store heard of this node last may be older than what it knows of itself.
            .filter(|id| *id != self.me && !leavers.contains(id))
            .collect();
        if self.about.works() && !self.draining.load(Ordering::Relaxed) {
            all.push(self.me);
        }
        all.sort_unstable();
        self.workers.send_if_modified(|now| {
            let changed = now.all != all || now.pins != pins;
            if changed {
                *now = Arc::new(Workers { me: self.me, all, pins });
            }
            changed
        });
    }

    /// Brings up what the catalog has, before the doors open.
    ///
    /// # Errors
    /// When the store cannot be reached, or what it holds cannot be read.
    pub async fn begin(&self, supervisor: &Arc<Supervisor>) -> anyhow::Result<()> {
        let pulse = self.beat(BTreeMap::new()).await?;
        supervisor
            .catalogs
            .keep()
            .await
            .context("look at the copy of the catalog")?;
        supervisor.sweep(&alive(&pulse)).await?;
        self.look_at_pins(supervisor).await?;
        self.place(&pulse);
        supervisor.reconcile().await?;
        self.followed.store(pulse.catalog, Ordering::Relaxed);
        // Nobody else is there, and nothing was written that another could miss.
        let alone = heard(&pulse).iter().all(|other| other.id == self.me);
        if alone && (!self.shares() || is_new(supervisor).await?) {
            self.rise().await?;
        }
        self.starting.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Whether other nodes may have the same store: only those must have anything in common.
    #[must_use]
    pub fn shares(&self) -> bool {
        !self.about.common.is_empty()
    }

    /// The store's level becomes this build's.
    async fn rise(&self) -> anyhow::Result<()> {
        if self.level() < self.about.features {
            level::raise(self.backend.as_ref(), self.about.features).await?;
            self.look_at_level().await?;
        }
        Ok(())
    }

    /// # Errors
    /// When the store cannot be read.
    async fn look_at_level(&self) -> anyhow::Result<()> {
        let level = level::of_store(self.backend.as_ref()).await?;
        self.level.store(level, Ordering::Relaxed);
        if let Some(why) = Build::current().refuses(level) {
            tracing::error!("{why}");
            self.outgrown.send_replace(Some(why));
        }
        Ok(())
    }

    /// This node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.about.name
    }

    /// The store's level.
    #[must_use]
    pub fn level(&self) -> u32 {
        self.level.load(Ordering::Relaxed)
    }

    /// Why what a Swarm uses cannot be applied yet, by name; with whom it waits for.
    #[must_use]
    pub fn not_yet(&self, features: &[&Feature]) -> Option<String> {
        let names: Vec<String> = features.iter().map(|f| format!("`{}`", f.name)).collect();
        let highest = features.iter().map(|f| f.level).max()?;
        let below = self.below.lock().unwrap_or_else(PoisonError::into_inner).nodes.clone();
        let (names, now) = (names.join(", "), self.level());
        Some(if below.is_empty() {
            format!(
                "{names} needs the store at level {highest}, and it is at {now}: every node has it, so it follows within {} s; apply again \
                 then",
                level::SETTLES.as_secs() + BEAT.as_secs()
            )
        } else {
            format!(
                "{names} needs every node at level {highest}, and the store is at {now}: upgrade {} first, then apply again",
                below.join(", ")
            )
        })
    }

    /// Waits until this node must not go on, and tells why: the others raised the store's level above what it reads.
    pub async fn outgrown(&self) -> String {
        let mut outgrown = self.outgrown.subscribe();
        loop {
            if let Some(why) = outgrown.borrow_and_update().clone() {
                return why;
            }
            if outgrown.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Notes who keeps the store's level down. Returns whether all have been at this build's level for long enough.
    fn settled(&self, pulse: &Pulse, now: Instant) -> bool {
        let nodes = heard(pulse)
            .into_iter()
            .filter(|n| n.member.features < self.about.features);
        let nodes: Vec<String> = nodes
            .map(|n| format!("node `{}` (skep {})", n.member.name, n.member.version))
            .collect();
        let mut below = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        let all = nodes.is_empty() && heard(pulse).len() == pulse.nodes.len();
        below.nodes = nodes;
        if !all {
            below.none_since = None;
            return false;
        }
        now.duration_since(*below.none_since.get_or_insert(now)) >= level::SETTLES
    }

    /// What each beat told of the catalog: its number.
    #[must_use]
    pub fn beats(&self) -> watch::Receiver<u64> {
        self.beats.subscribe()
    }

    /// Whether this node is to leave, now and later.
    #[must_use]
    pub fn leaving(&self) -> watch::Receiver<bool> {
        self.leaving.subscribe()
    }

    /// What the others are told of tenants' offers.
    pub fn say_demands(&self, demands: BTreeMap<String, u64>) {
        *self.demands.lock().unwrap_or_else(PoisonError::into_inner) = demands;
    }

    /// The nodes beside this one, as of its last beat.
    #[must_use]
    pub fn others(&self) -> Vec<Heard> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everyone that is alive, by name.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn all(&self, supervisor: &Supervisor) -> anyhow::Result<(Vec<Heard>, u64)> {
        let pulse = self.beat(supervisor.owned().await).await?;
        let mut all = heard(&pulse);
        all.sort_by(|a, b| (&a.member.name, a.id).cmp(&(&b.member.name, b.id)));
        Ok((all, pulse.catalog))
    }

    /// Asks a node to leave, or to come back. Its next look at the catalog tells it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn ask(&self, node: NodeId, leave: bool) -> anyhow::Result<()> {
        let key = format!("{DRAINS}{node}");
        for _ in 0..8 {
            let version = self.wishes().await?.get(&node).copied();
            let done = match (leave, version) {
                (true, None) => self.backend.catalog_put(&key, 0, Bytes::new()).await?.is_ok(),
                (false, Some(version)) => self.backend.catalog_delete(&key, version).await?.is_ok(),
                _ => true,
            };
            if done {
                return Ok(());
            }
        }
        bail!("node {node} is being told by too many at once: try again")
    }

    async fn wishes(&self) -> anyhow::Result<BTreeMap<NodeId, u64>> {
        Ok(wishes(self.backend.as_ref()).await?)
    }

    /// Beats, and follows what the others do, until `stop`.
    pub fn follow(self: &Arc<Self>, supervisor: &Arc<Supervisor>, tasks: &TaskTracker, stop: &CancellationToken) {
        let (news, heard_of) = watch::channel(News::default());
        let (this, its, end) = (Arc::clone(self), Arc::clone(supervisor), stop.clone());
        tasks.spawn(async move {
            let bell = this.backend.catalog_bell();
            let mut troubled = false;
            while !end.is_cancelled() {
                match this.beat(its.owned().await).await {
                    Ok(pulse) => {
                        troubled = false;
                        this.place(&pulse);
                        this.beats.send_replace(pulse.catalog);
                        if this.settled(&pulse, Instant::now())
                            && let Err(error) = this.rise().await
                        {
                            tracing::debug!(error = format!("{error:#}"), "the store's level stays for now");
                        }
                        let next = News {
                            catalog: pulse.catalog,
                            alive: alive(&pulse),
                        };
                        news.send_if_modified(|now| {
                            let changed = *now != next;
                            *now = next;
                            changed
                        });
                    }
                    Err(error) => {
                        // Said once a trouble: the others take over what this node owned, if it lasts.
                        if !std::mem::replace(&mut troubled, true) {
                            tracing::warn!(%error, "cannot say that this node is alive");
                        }
                    }
                }
                tokio::select! {
                    () = end.cancelled() => {}
                    () = bell.notified() => {}
                    () = sleep(BEAT) => {}
                }
            }
        });
        // Beside the beats: a module may take long to compile.
        let (this, its, end) = (Arc::clone(self), Arc::clone(supervisor), stop.clone());
        tasks.spawn(async move {
            let work = this.follow_catalog(&its, heard_of);
            tokio::select! {
                () = end.cancelled() => {}
                () = work => {}
            }
        });
    }

    async fn follow_catalog(&self, supervisor: &Arc<Supervisor>, mut heard_of: watch::Receiver<News>) {
        let mut known = BTreeSet::new();
        let mut away = BTreeMap::new();
        // Also when nothing changes: who is away stays so.
        while timeout(WISH_KEPT, heard_of.changed()).await.unwrap_or(Ok(())).is_ok() {
            let news = heard_of.borrow_and_update().clone();
            let gone = known.difference(&news.alive).next().is_some();
            let done = async {
                if gone || news.catalog != self.followed.load(Ordering::Relaxed) {
                    // Before anything is done by it: it may be one that was taken back.
                    supervisor.catalogs.follow().await?;
                }
                if gone {
                    supervisor.sweep(&news.alive).await?;
                }
                if gone || news.catalog != self.followed.load(Ordering::Relaxed) {
                    self.catch_up(supervisor).await?;
                }
                anyhow::Ok(())
            };
            match done.await {
                Ok(()) => {
                    self.followed.store(news.catalog, Ordering::Relaxed);
                    let wishes = forget_wishes(self.backend.as_ref(), &news.alive, &mut away, Instant::now());
                    if let Err(error) = wishes.await {
                        tracing::debug!(%error, "wishes of nodes that are gone stay for now");
                    }
                    known = news.alive;
                }
                Err(e) => {
                    tracing::warn!(error = format!("{e:#}"), "cannot follow the catalog, trying again");
                    sleep(BEAT).await;
                    heard_of.mark_changed();
                }
            }
        }
    }

    async fn catch_up(&self, supervisor: &Arc<Supervisor>) -> anyhow::Result<()> {
        self.look_at_level().await?;
        let wishes: BTreeSet<NodeId> = self.wishes().await?.into_keys().collect();
        let leave = wishes.contains(&self.me);
        let told = self.draining.swap(leave, Ordering::Relaxed) != leave;
        if told {
            tracing::info!(leave, "this node was told to leave, or to come back");
            self.leaving.send_replace(leave);
        }
        let before = std::mem::replace(&mut *self.leavers(), wishes.clone());
        // Before Swarms are looked at: whether one runs here is asked then.
        let moved = self.look_at_pins(supervisor).await?;
        if told || moved || before != wishes {
            // Not at the next beat: who goes gives back at once, and who comes must not leave it to a node that goes.
            let pulse = self.beat(supervisor.owned().await).await?;
            self.place(&pulse);
        }
        supervisor.reconcile().await
    }

    /// Reads which tenants are pinned. Whether that changed.
    async fn look_at_pins(&self, supervisor: &Supervisor) -> anyhow::Result<bool> {
        let tenants = supervisor.catalogs.tenants().await?.into_iter();
        let next: BTreeMap<TenantId, NodeLabel> = tenants
            .filter_map(|(tenant, found)| Some((tenant, found.record.nodes?)))
            .collect();
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *pinned != next;
        *pinned = next;
        Ok(changed)
    }

    fn leavers(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.leavers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that this node is about to stop, so that the others take over what it gives back. That it cannot be said keeps nobody from
    /// stopping: they notice by themselves.
    pub async fn announce(&self) {
        let said = async {
            let pulse = self.beat(BTreeMap::new()).await?;
            if heard(&pulse).iter().all(|other| other.id == self.me) {
                return Ok(());
            }
            self.ask(self.me, true).await?;
            self.draining.store(true, Ordering::Relaxed);
            self.leaving.send_replace(true);
            let pulse = self.beat(BTreeMap::new()).await?;
            self.place(&pulse);
            anyhow::Ok(())
        };
        match timeout(ANNOUNCE, said).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the others were not told that this node stops"),
            Err(_) => tracing::debug!("the others were not told in time that this node stops"),
        }
    }

    /// Gives the place up, so that the others need not wait for it to run out. Whoever comes next under this id is nobody.
    pub async fn leave(&self) {
        if let Err(error) = self.backend.leave(self.me).await {
            tracing::debug!(%error, "the others will notice by themselves that this node is gone");
        }
        let _ = self.ask(self.me, false).await;
    }
}

/// Who is asked to leave, with the versions of the records.
async fn wishes(backend: &dyn Backend) -> Result<BTreeMap<NodeId, u64>, skep_topic::Error> {
    let records = backend.catalog_list(DRAINS).await?;
    let named = records.into_iter().filter_map(|(key, record)| {
        let id = key.strip_prefix(DRAINS)?.parse().ok()?;
        Some((id, record.version))
    });
    Ok(named.collect())
}

/// Takes wishes away whose nodes have been `away` for long, as far as this node saw.
async fn forget_wishes(
    backend: &dyn Backend,
    alive: &BTreeSet<NodeId>,
    away: &mut BTreeMap<NodeId, Instant>,
    now: Instant,
) -> Result<(), skep_topic::Error> {
    let wishes = wishes(backend).await?;
    away.retain(|id, _| wishes.contains_key(id) && !alive.contains(id));
    for (id, version) in wishes.into_iter().filter(|(id, _)| !alive.contains(id)) {
        let since = *away.entry(id).or_insert(now);
        if now.duration_since(since) >= WISH_KEPT {
            // Whoever changed it meanwhile looks at it again.
            let _ = backend.catalog_delete(&format!("{DRAINS}{id}"), version).await?;
        }
    }
    Ok(())
}

/// What a beat brought that there may be something to do about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct News {
    catalog: u64,
    alive: BTreeSet<NodeId>,
}

fn alive(pulse: &Pulse) -> BTreeSet<NodeId> {
    pulse.nodes.iter().map(|beat| beat.node).collect()
}

/// Whether nobody applied or pushed anything yet.
async fn is_new(supervisor: &Supervisor) -> anyhow::Result<bool> {
    let catalog = &supervisor.catalogs;
    Ok(catalog.swarms().await?.is_empty() && catalog.modules().await?.is_empty())
}

/// Who is there and can be understood. Who cannot is refused, or refuses, when one of the two joins.
fn heard(pulse: &Pulse) -> Vec<Heard> {
    pulse.nodes.iter().filter_map(read).collect()
}

fn read(beat: &Beat) -> Option<Heard> {
    Some(Heard {
        id: beat.node,
        member: serde_json::from_slice(&beat.record).ok()?,
        silent_ms: BEAT_TTL_MS.saturating_sub(beat.left_ms),
    })
}

/// Nodes that are not at this build's level, in words, and since when there is none.
#[derive(Debug, Default)]
struct Below {
    nodes: Vec<String>,
    none_since: Option<Instant>,
}

/// What `clock` says, as a member's start.
#[must_use]
pub fn about(
    name: String,
    url: String,
    (roles, labels): (Roles, BTreeSet<NodeLabel>),
    clock: &dyn Clock,
    common: BTreeMap<String, String>,
) -> Member {
    Member {
        name,
        version: Build::current().version.to_owned(),
        features: Build::current().level,
        url,
        roles: roles.to_string().split(',').map(str::to_owned).collect(),
        labels,
        started_ms: clock.now_ms(),
        draining: false,
        starting: true,
        catalog: 0,
        common,
        owned: BTreeMap::new(),
        demands: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use skep_model::env::{ManualClock, SeededEntropy};
    use skep_topic::memory::Memory;

    use super::*;

    #[tokio::test]
    async fn who_starts_or_is_to_leave_owns_nothing_in_the_eyes_of_the_others() {
        let backend = Memory::new(Arc::new(ManualClock::at(1)), Arc::new(SeededEntropy::new(1)));
        let [first, second] = [NodeId([1; 8]), NodeId([2; 8])];
        let member = |name: &str| {
            let clock = ManualClock::at(1);
            let does = (Roles::ALL, BTreeSet::new());
            about(name.to_owned(), String::new(), does, &clock, BTreeMap::new())
        };
        let join = async |me, name| {
            let backend = Arc::clone(&backend) as Arc<dyn Backend>;
            Members::join(me, backend, member(name), Arc::default()).await.unwrap()
        };
        let (one, _) = join(first, "one").await;
        let (two, workers) = join(second, "two").await;
        assert_eq!(workers.borrow().all, [second], "the first still loads its modules");
        one.starting.store(false, Ordering::Relaxed);
        one.beat(BTreeMap::new()).await.unwrap();
        let pulse = two.beat(BTreeMap::new()).await.unwrap();
        two.place(&pulse);
        assert_eq!(workers.borrow().all, [first, second]);
        // What it says of itself is older than the wish.
        *two.leavers() = [first].into();
        two.place(&pulse);
        assert_eq!(workers.borrow().all, [second]);
    }

    #[tokio::test]
    async fn wishes_of_nodes_that_are_gone_are_forgotten_and_those_of_sleepers_are_not() {
        let backend = Memory::new(Arc::new(ManualClock::at(1)), Arc::new(SeededEntropy::new(1)));
        let ids = [NodeId([1; 8]), NodeId([2; 8]), NodeId([3; 8])];
        for id in ids {
            let key = format!("{DRAINS}{id}");
            backend.catalog_put(&key, 0, Bytes::new()).await.unwrap().unwrap();
        }
        let [here, sleeper, _] = ids;
        let mut away = BTreeMap::new();
        let begin = Instant::now();
        let mut look = async |alive: &[NodeId], after: Duration| {
            let alive = alive.iter().copied().collect();
            forget_wishes(backend.as_ref(), &alive, &mut away, begin + after)
                .await
                .unwrap();
            wishes(backend.as_ref()).await.unwrap().into_keys().collect::<Vec<_>>()
        };
        assert_eq!(look(&[here], Duration::ZERO).await, ids);
        assert_eq!(look(&[here, sleeper], WISH_KEPT / 2).await, ids);
        assert_eq!(
            look(&[here], WISH_KEPT).await,
            [here, sleeper],
            "away since it was heard last"
        );
        assert_eq!(look(&[here], WISH_KEPT * 3 / 2).await, [here, sleeper]);
        assert_eq!(look(&[here], WISH_KEPT * 2).await, [here]);
    }
}
