//! The nodes that share a store: this one's heartbeat, what it hears of the others, and what follows from that.
//!
//! ```text
//!   beat (each second) ──► who is alive ──► placement of partitions (a hint to the stages' owners)
//!                    └───► the catalog's number ──► reconcile, when it changed
//! ```
//! There is no coordinator: everybody reads the same store. A node that is wrongly thought dead, or that does not know yet that another
//! came, costs time and nothing else, for leases decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_model::Bytes;
use skep_model::env::Clock;
use skep_model::id::NodeId;
use skep_stage::Workers;
use skep_topic::{Backend, Pulse};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::settings::Roles;
use crate::supervisor::Supervisor;

/// How often a node says that it is alive, and how long that holds: three beats may be lost.
const BEAT: Duration = Duration::from_millis(1_000);
const BEAT_TTL_MS: u64 = 4_000;
/// What nodes must agree on to share a store. Raised when an older node would misread what a newer one writes.
const FEATURES: u32 = 1;
/// A wish of a node that was away for so long is nobody's: it has another id when it starts again. Long, for one that only slept must not
/// come back to work.
const WISH_KEPT: Duration = Duration::from_secs(600);
/// Under it a node's wish to leave lies in the catalog, by node id.
const DRAINS: &str = "drain/";

/// What a node says of itself. Fields that an older node does not know are ignored by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub version: String,
    pub features: u32,
    pub url: String,
    pub roles: Vec<String>,
    pub started_ms: u64,
    #[serde(default)]
    pub draining: bool,
    /// The catalog that it follows.
    #[serde(default)]
    pub catalog: u64,
    /// What all nodes of a store must have in common, in words.
    #[serde(default)]
    pub common: BTreeMap<String, String>,
    /// Partitions that it owns, by Swarm and stage.
    #[serde(default)]
    pub owned: BTreeMap<String, Vec<u16>>,
}

impl Member {
    /// Whether Bees run there.
    #[must_use]
    pub fn works(&self) -> bool {
        self.roles.iter().any(|role| role == "worker")
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
    workers: watch::Sender<Arc<Workers>>,
    /// The catalog's number that the last reconciliation began with.
    followed: AtomicU64,
    draining: AtomicBool,
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
    ) -> anyhow::Result<(Arc<Self>, watch::Receiver<Arc<Workers>>)> {
        let works = about.works();
        let first = Workers {
            me,
            all: if works { vec![me] } else { Vec::new() },
        };
        let (workers, receiver) = watch::channel(Arc::new(first));
        let members = Arc::new(Self {
            me,
            backend,
            about,
            workers,
            followed: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            leaving: watch::Sender::new(false),
        });
        let pulse = members
            .beat(BTreeMap::new())
            .await
            .context("say that this node is alive")?;
        let refused = members.differs(&pulse);
        if let Some(why) = refused {
            members.backend.leave(me).await.ok();
            bail!(why);
        }
        members.place(&pulse);
        Ok((members, receiver))
    }

    /// What another node has otherwise, and what to do.
    fn differs(&self, pulse: &Pulse) -> Option<String> {
        for other in heard(pulse).iter().filter(|other| other.id != self.me) {
            let named = format!("node `{}` at {}", other.member.name, other.member.url);
            if other.member.features > FEATURES {
                return Some(format!(
                    "{named} (skep {}) writes what this skep {} cannot read: upgrade this node",
                    other.member.version, self.about.version
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
            catalog: self.followed.load(Ordering::Relaxed),
            owned,
            ..self.about.clone()
        };
        let record = serde_json::to_vec(&record).expect("plain data");
        self.backend.beat(self.me, Bytes::from(record), BEAT_TTL_MS).await
    }

    fn place(&self, pulse: &Pulse) {
        let mut all: Vec<NodeId> = heard(pulse)
            .into_iter()
            .filter(|n| n.member.works() && !n.member.draining)
            .map(|n| n.id)
            // What the store heard of this node last may be older than what it knows of itself.
            .filter(|id| *id != self.me)
            .collect();
        if self.about.works() && !self.draining.load(Ordering::Relaxed) {
            all.push(self.me);
        }
        all.sort_unstable();
        self.workers.send_if_modified(|now| {
            let changed = now.all != all;
            if changed {
                *now = Arc::new(Workers { me: self.me, all });
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
        supervisor.sweep(&alive(&pulse)).await?;
        supervisor.reconcile().await?;
        self.followed.store(pulse.catalog, Ordering::Relaxed);
        Ok(())
    }

    /// Whether this node is to leave, now and later.
    #[must_use]
    pub fn leaving(&self) -> watch::Receiver<bool> {
        self.leaving.subscribe()
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
        let wishes = self.wishes().await?;
        let leave = wishes.contains_key(&self.me);
        if self.draining.swap(leave, Ordering::Relaxed) != leave {
            tracing::info!(leave, "this node was told to leave, or to come back");
            self.leaving.send_replace(leave);
            // The others hear of it at the next beat; this node's owners at once.
            let pulse = self.beat(supervisor.owned().await).await?;
            self.place(&pulse);
        }
        supervisor.reconcile().await
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

/// Records that this node cannot read are of nodes that it need not know.
fn heard(pulse: &Pulse) -> Vec<Heard> {
    let read = pulse.nodes.iter().filter_map(|beat| {
        let member = serde_json::from_slice(&beat.record).ok()?;
        Some(Heard {
            id: beat.node,
            member,
            silent_ms: BEAT_TTL_MS.saturating_sub(beat.left_ms),
        })
    });
    read.collect()
}

/// What `clock` says, as a member's start.
#[must_use]
pub fn about(name: String, url: String, roles: Roles, clock: &dyn Clock, common: BTreeMap<String, String>) -> Member {
    Member {
        name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: FEATURES,
        url,
        roles: roles.to_string().split(',').map(str::to_owned).collect(),
        started_ms: clock.now_ms(),
        draining: false,
        catalog: 0,
        common,
        owned: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use skep_model::env::{ManualClock, SeededEntropy};
    use skep_topic::memory::Memory;

    use super::*;

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
