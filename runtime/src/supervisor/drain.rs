//! How stages and Swarms go: what they still have is worked off first, and nothing is removed that somebody may still use.
//!
//! A stage that a revision no longer has goes on as it was. Three things must hold before its topic goes: nobody has its address
//! any more (no route, no plan, no call or batch under way on an earlier one), its topic is empty at several looks, and the
//! catalog, read under the lock, still does not have it. The backend then removes the topic only if it is empty at that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skep_model::id::NodeId;
use skep_model::name::StageName;
use skep_model::scope::{Scope, SwarmId, SwarmPath};
use skep_topic::Error;
use tokio::time::sleep;

use super::plans::topic_spec;
use super::{Draining, LiveStage, Supervisor};
use crate::catalog::SwarmRecord;

/// Looks in a row at which a removed stage must have nothing to do.
const EMPTY_LOOKS: u32 = 3;
/// The pause between two looks while there seems to be nothing to do; it doubles while something is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(2);

/// What a Swarm still has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remains {
    /// Unread and parked.
    pub messages: u64,
    /// Requests on in-memory lanes.
    pub calls: u64,
    pub timers: u64,
    pub dead: u64,
    /// With keyed state. Counting costs a look at each, so only [`Supervisor::remains_with_keys`] fills it in.
    pub keys: u64,
}

impl Remains {
    /// What a drain works off. Timers are part of the state: they may be due in a year.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.messages + self.calls
    }

    /// Whether a deletion would lose something that no drain works off.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.dead + self.keys + self.timers > 0
    }
}

/// A removed stage and, where a loop leads back to it, every removed stage from which a message may come to it.
fn circle(draining: &BTreeMap<StageName, Draining>, stage: &StageName) -> BTreeSet<StageName> {
    let leads = |from: &Draining, to: &BTreeSet<StageName>| {
        let plan = from.live.running.plan();
        plan.destinations().any(|d| to.contains(&d.stage))
    };
    let mut circle = BTreeSet::from([stage.clone()]);
    if !draining.values().any(|d| d.live.running.plan().goes_back_to(stage)) {
        return circle;
    }
    loop {
        let more: Vec<StageName> = draining
            .iter()
            .filter(|(name, from)| !circle.contains(*name) && leads(from, &circle))
            .map(|(name, _)| name.clone())
            .collect();
        if more.is_empty() {
            return circle;
        }
        circle.extend(more);
    }
}

enum Finish {
    Done,
    /// It is somebody's again, or has something to do again.
    NotYet,
}

impl Supervisor {
    /// What a life of a Swarm still has. A life that is gone has nothing.
    ///
    /// # Errors
    /// When the backend cannot tell.
    pub async fn remains(&self, id: &SwarmId) -> anyhow::Result<Remains> {
        let topics = match self.seams.backend.status(id).await {
            Ok(topics) => topics,
            Err(Error::Gone) => return Ok(Remains::default()),
            Err(e) => return Err(e.into()),
        };
        let mut remains = Remains::default();
        for topic in topics {
            remains.messages += topic.unread + topic.parked;
            remains.timers += topic.timers;
            remains.dead += topic.dead;
        }
        let fleet = self.fleet.lock().await;
        let live = fleet.swarms.get(&id.path()).filter(|live| live.id == *id);
        for (waiting, under_way) in live.into_iter().flat_map(|l| l.all().map(LiveStage::in_memory)) {
            remains.calls += waiting as u64;
            // A batch of the durable path is unread until its commit, so what is busy without anything unread came by the lane.
            if remains.messages == 0 {
                remains.calls += under_way as u64;
            }
        }
        Ok(remains)
    }

    /// As [`Supervisor::remains`], with the keys of all stages.
    ///
    /// # Errors
    /// When the backend cannot tell.
    pub async fn remains_with_keys(&self, id: &SwarmId) -> anyhow::Result<Remains> {
        let mut remains = self.remains(id).await?;
        let topics = match self.seams.backend.status(id).await {
            Ok(topics) => topics,
            Err(Error::Gone) => return Ok(Remains::default()),
            Err(e) => return Err(e.into()),
        };
        for topic in topics {
            remains.keys += match self.seams.backend.state_size(&topic.topic).await {
                Ok(size) => size.keys,
                Err(Error::Gone) => 0,
                Err(e) => return Err(e.into()),
            };
        }
        Ok(remains)
    }

    /// Takes a deletion back that has not removed anything: the Swarm serves again. Under `writes`, which the caller holds; to be
    /// followed by a settling.
    ///
    /// # Errors
    /// When the catalog cannot be read or written: the Swarm stays out of service until the next deletion or start.
    pub async fn withdraw_deletion(&self, id: &SwarmId) -> anyhow::Result<()> {
        let catalog = self.catalogs.of(id.tenant());
        let Some(mut found) = catalog.swarm(id.name()).await? else {
            return Ok(());
        };
        if !found.record.is(id) || !found.record.deleting {
            return Ok(());
        }
        found.record.deleting = false;
        found.record.deleted_by = None;
        if catalog.put_swarm(found.version, &found.record).await?.is_err() {
            anyhow::bail!("Swarm `{}` was changed meanwhile: delete it again", id.name());
        }
        Ok(())
    }

    /// Removes a life's rows and its record. With `if_empty` only if nothing is unread, parked or dead-lettered at that moment;
    /// `false`: nothing was removed. The record goes last, so that an interrupted deletion is found again.
    ///
    /// # Errors
    /// When backend or catalog cannot be written; the deletion can be asked for again.
    pub async fn remove(self: &Arc<Self>, id: &SwarmId, if_empty: bool) -> anyhow::Result<bool> {
        match self.seams.backend.remove_swarm(id, if_empty).await {
            Ok(true) | Err(Error::Gone) => {}
            Ok(false) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        {
            let _writes = self.writes.lock().await;
            self.catalogs.of(id.tenant()).delete_swarm(id).await?;
        }
        self.settle(&id.path()).await?;
        Ok(true)
    }

    /// Brings deletions whose node is not among `alive` to one of their two ends. Where the life is gone already, what is left of it goes;
    /// where it is not, nothing was lost yet and nobody was told that it is deleted, so it serves again.
    ///
    /// # Errors
    /// When backend or catalog cannot be read or written.
    pub async fn sweep(&self, alive: &BTreeSet<NodeId>) -> anyhow::Result<()> {
        let abandoned = |record: &SwarmRecord| {
            let by = record.deleted_by.as_deref().and_then(|by| by.parse().ok());
            record.deleting && by.is_none_or(|by: NodeId| !alive.contains(&by))
        };
        for (path, record) in self.catalogs.swarms().await? {
            if !abandoned(&record) {
                continue;
            }
            let id = record.id(&Scope::of(path.tenant().clone()))?;
            if matches!(self.seams.backend.status(&id).await, Err(Error::Gone)) {
                tracing::info!(swarm = %id, "finishing a deletion");
                self.seams.backend.remove_swarm(&id, false).await?;
                self.catalogs.of(id.tenant()).delete_swarm(&id).await?;
            } else {
                tracing::warn!(swarm = %id, "its deletion was interrupted and is withdrawn: it serves again");
                let _writes = self.writes.lock().await;
                self.withdraw_deletion(&id).await?;
            }
        }
        // In this order: a life that another node begins meanwhile has its record first.
        let lives = self.seams.backend.lives().await?;
        let wanted = self.catalogs.swarms().await?;
        for id in lives {
            let known = wanted.get(&id.path()).is_some_and(|r| r.is(&id));
            if !known {
                tracing::info!(swarm = %id, "removing what is left of a deleted Swarm");
                self.seams.backend.remove_swarm(&id, false).await?;
            }
        }
        Ok(())
    }

    /// Watches one removal of a stage until its topic is gone, the stage is back, or the node stops.
    pub(super) async fn drain_removed(self: Arc<Self>, id: SwarmId, stage: StageName, removal: u64) {
        let (mut empty, mut pause) = (0, LOOK_EVERY);
        loop {
            tokio::select! {
                () = self.end.cancelled() => return,
                () = sleep(pause) => {}
            }
            let used = self.is_used(&id, &stage, removal).await;
            let Some((used, circle)) = used else { return };
            let busy = match self.seams.backend.status(&id).await {
                Ok(topics) => topics
                    .iter()
                    .any(|t| circle.contains(t.topic.stage()) && t.unread + t.parked + t.timers > 0),
                Err(Error::Gone) => return,
                Err(e) => {
                    tracing::debug!(error = %e, "cannot see whether a removed stage is drained");
                    true
                }
            };
            if used || busy {
                empty = 0;
                pause = (pause * 2).min(LOOK_EVERY_MAX);
                continue;
            }
            empty += 1;
            pause = LOOK_EVERY;
            if empty >= EMPTY_LOOKS {
                self.take_out(id, stage, removal).await;
                return;
            }
        }
    }

    /// Whether somebody may still write to the stage or it works; and which stages must have nothing to do: itself, and those from which
    /// something may come round to it. `None` when this removal is over.
    async fn is_used(&self, id: &SwarmId, stage: &StageName, removal: u64) -> Option<(bool, BTreeSet<StageName>)> {
        let fleet = self.fleet.lock().await;
        let live = fleet.swarms.get(&id.path()).filter(|live| live.id == *id)?;
        let draining = &live.draining;
        draining.get(stage).filter(|d| d.removal == removal)?;
        let circle = circle(draining, stage);
        let used = circle.iter().filter_map(|name| draining.get(name)).any(|d| {
            // A removed stage that may send back to this one waits for it, so this one cannot wait for that one's address to be gone.
            let inside = circle
                .iter()
                .filter(|_| circle.len() > 1)
                .filter_map(|name| draining.get(name))
                .map(|writer| writer.live.addresses_of(&d.live.topic))
                .sum();
            d.live.has_writers_beside(inside) || d.live.in_memory() != (0, 0)
        });
        Some((used, circle))
    }

    /// Stops a drained stage and removes its topic.
    async fn take_out(self: Arc<Self>, id: SwarmId, stage: StageName, removal: u64) {
        let drained = {
            let mut fleet = self.fleet.lock().await;
            let live = fleet.swarms.get_mut(&id.path()).filter(|live| live.id == id);
            let Some(live) = live else { return };
            match live.draining.get(&stage) {
                Some(d) if d.removal == removal => {}
                _ => return,
            }
            // In `kept` from here on: a settling neither starts it again nor misses it, and an apply may take it back.
            live.kept.insert(stage.clone());
            live.draining.remove(&stage)
        };
        if let Some(drained) = drained {
            drained.live.running.stop().await;
        }
        match self.finish(&id, &stage).await {
            Ok(Finish::Done) => {}
            // Something came after all: it starts again and drains.
            Ok(Finish::NotYet) => self.settle_or_warn(&id.path()).await,
            Err(e) => {
                tracing::warn!(swarm = %id, %stage, error = format!("{e:#}"), "cannot remove the topic of a removed stage")
            }
        }
    }

    async fn settle_or_warn(self: &Arc<Self>, name: &SwarmPath) {
        if let Err(e) = self.settle(name).await {
            tracing::warn!(swarm = %name, error = format!("{e:#}"), "cannot look after a Swarm");
        }
    }

    /// Removes the topic of a drained stage, if it has no dead letters, and then its record. No revision: nothing changes for users.
    async fn finish(&self, id: &SwarmId, stage: &StageName) -> anyhow::Result<Finish> {
        let _writes = self.writes.lock().await;
        let mut fleet = self.fleet.lock().await;
        let Some(live) = fleet.swarms.get_mut(&id.path()).filter(|live| live.id == *id) else {
            return Ok(Finish::Done);
        };
        if !live.kept.contains(stage) {
            return Ok(Finish::Done);
        }
        let catalog = self.catalogs.of(id.tenant());
        let Some(mut found) = catalog.swarm(id.name()).await? else {
            return Ok(Finish::Done);
        };
        let record = &mut found.record;
        if !record.is(id) || record.swarm.stage(stage).is_some() {
            return Ok(Finish::Done);
        }
        let Some(left) = record.draining.get(stage) else {
            // Another look removed it.
            live.kept.remove(stage);
            return Ok(Finish::Done);
        };
        let spec = topic_spec(id, &left.stage, record.born(stage));
        let topic = spec.id.clone();
        match self.seams.backend.remove_topic(&spec).await {
            Ok(true) => {}
            Ok(false) => {
                let topics = self.seams.backend.status(id).await?;
                let work = topics
                    .iter()
                    .any(|t| t.topic == topic && t.unread + t.parked + t.timers > 0);
                if work {
                    live.kept.remove(stage);
                    return Ok(Finish::NotYet);
                }
                // Dead letters stay until they are discarded: a removed stage's failures are still somebody's.
                return Ok(Finish::Done);
            }
            Err(Error::Gone) => return Ok(Finish::Done),
            Err(e) => return Err(e.into()),
        }
        self.stats.forget(&topic);
        record.draining.remove(stage);
        record.born.remove(stage);
        if catalog.put_swarm(found.version, record).await?.is_err() {
            // It stays in `kept`; whoever changed the record looks again.
            return Ok(Finish::Done);
        }
        live.kept.remove(stage);
        Ok(Finish::Done)
    }

    /// Dead letters were discarded: removed stages that only they kept may go.
    ///
    /// # Errors
    /// When backend or catalog cannot be written.
    pub async fn discarded(self: &Arc<Self>, id: &SwarmId) -> anyhow::Result<()> {
        // They may have been all that an end waited for.
        self.seams.rest.ring(id.path());
        let kept: Vec<StageName> = {
            let fleet = self.fleet.lock().await;
            let live = fleet.swarms.get(&id.path()).filter(|live| live.id == *id);
            live.map(|l| l.kept.iter().cloned().collect()).unwrap_or_default()
        };
        for stage in kept {
            if matches!(self.finish(id, &stage).await?, Finish::NotYet) {
                self.settle(&id.path()).await?;
            }
        }
        Ok(())
    }
}
