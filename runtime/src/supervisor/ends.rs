//! When the streams of a Swarm have ended, stage by stage, and the Swarm at last.
//!
//! A life of a Swarm is one history: a commit takes its input, and puts what came of it where it goes, in one step. So one look at all of
//! its topics tells whether anything is on its way, and no message has to carry the end from stage to stage, nor anybody to count such
//! messages: a stage to which nothing can come any more, and in which nothing waits, has ended. `docs/ends.md` has the rules, and why they
//! are enough; `stage/model/end_of_stream.py` tries them on every order of events.
//!
//! Each node that runs the Swarm looks for itself, and keeps in memory what it found: a stage that has ended stays so as long as the revision
//! does. It tells its own owners to tell their keys (`Running::tell_end`). Nothing is believed that a failover may take back.
//!
//! A look is taken when some partition has nothing to do, never by the clock alone before the first end: while a stream goes on, it is one
//! look at the counters of its stage.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use skep_gateway::Open;
use skep_model::name::{StageName, TenantId};
use skep_model::scope::{SwarmId, SwarmPath, TopicId};
use skep_model::swarm::{END, Ends, InputSource, Stage, Swarm};
use skep_topic::{Error, TopicStatus};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Supervisor;
use crate::wording::count;

/// Between two looks: what comes to rest at once is looked at together.
const BETWEEN: Duration = Duration::from_millis(100);
/// Looks without a reason, where a stream has ended and others have not, or an end waits: a node may have died before it told, and who
/// decided may have told another.
const ANYWAY: Duration = Duration::from_secs(5);
/// Between two times that a stage's owners are asked to tell their keys.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How far a Swarm's end is, as this node knows it.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    revision: u64,
    /// Of the store, when this was begun.
    history: u64,
    /// The last look failed.
    unseen: bool,
    /// The catalog says that all of it has ended.
    over: bool,
    /// For good, in this revision.
    ended: BTreeSet<StageName>,
    /// Of stages that end by keys: so many of these, in their order, have said so.
    said: BTreeMap<StageName, usize>,
    /// What keeps a stage's end, for people.
    waits: BTreeMap<StageName, String>,
    told: BTreeMap<StageName, Instant>,
    /// Of these each key with state was told when it was looked at last.
    all_told: BTreeSet<StageName>,
}

impl Progress {
    fn has_begun(&self) -> bool {
        !self.over && (self.unseen || !self.ended.is_empty() || !self.waits.is_empty())
    }

    /// Says what keeps a stage's end where somebody has to decide.
    fn note_dead(&mut self, stage: &Stage, topics: &[TopicStatus]) {
        let dead = topics
            .iter()
            .find(|t| *t.topic.stage() == stage.name)
            .map_or(0, |t| t.dead);
        if dead == 0 {
            self.waits.remove(&stage.name);
            return;
        }
        let why = format!(
            "its end waits for {} to be redriven or discarded",
            count(dead, "dead letter")
        );
        self.waits.insert(stage.name.clone(), why);
    }
}

/// A Swarm that runs here and has not ended.
struct Candidate {
    id: SwarmId,
    revision: u64,
    swarm: Swarm,
}

/// Nothing that is read, tried again, or set aside until somebody decides.
fn is_still(topic: &TopicStatus) -> bool {
    topic.unread + topic.parked + topic.dead == 0
}

/// … and nothing that comes by itself.
fn is_inert(topic: &TopicStatus) -> bool {
    is_still(topic) && topic.timers == 0
}

/// Whether something holds of a stage's topic. A stage that nothing ever came to has none.
fn holds(topics: &[TopicStatus], stage: &Stage, what: fn(&TopicStatus) -> bool) -> bool {
    topics.iter().find(|t| *t.topic.stage() == stage.name).is_none_or(what)
}

impl Supervisor {
    /// Looks for ends until the node stops.
    pub fn watch_ends(self: &Arc<Self>) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = this.end.cancelled() => {}
                () = this.look_for_ends() => {}
            }
        });
    }

    async fn look_for_ends(self: &Arc<Self>) {
        let mut workers = self.seams.workers.clone();
        let mut anyway = interval(ANYWAY);
        anyway.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A tenant's Swarms one after the other, tenants beside each other: one whose stages keep very much holds up its own.
        let (mut looks, mut looked_at) = (JoinSet::new(), BTreeSet::new());
        let mut due: BTreeMap<TenantId, BTreeSet<SwarmPath>> = BTreeMap::new();
        loop {
            let came = tokio::select! {
                rung = self.seams.rest.rung() => rung,
                // Whoever is gone may have seen the last of it.
                Ok(()) = workers.changed() => self.fleet.lock().await.swarms.keys().cloned().collect(),
                _ = anyway.tick(), if self.progress().values().any(Progress::has_begun) => self.begun(),
                Some(tenant) = looks.join_next() => {
                    if let Ok(tenant) = tenant {
                        looked_at.remove(&tenant);
                    }
                    BTreeSet::new()
                }
            };
            for path in came {
                due.entry(path.tenant().clone()).or_default().insert(path);
            }
            let free: Vec<TenantId> = due
                .keys()
                .filter(|tenant| !looked_at.contains(*tenant))
                .cloned()
                .collect();
            for tenant in free {
                let paths = due.remove(&tenant).unwrap_or_default();
                let candidates = self.candidates(paths).await;
                if candidates.is_empty() {
                    continue;
                }
                looked_at.insert(tenant.clone());
                let this = Arc::clone(self);
                looks.spawn(async move {
                    sleep(BETWEEN).await;
                    for candidate in candidates {
                        this.look_at(&candidate).await;
                    }
                    tenant
                });
            }
        }
    }

    async fn look_at(&self, candidate: &Candidate) {
        let path = candidate.id.path();
        let mut known = self.progress_of(candidate);
        known.unseen = false;
        if let Err(e) = self.look_for_end(candidate, &mut known).await {
            known.unseen = true;
            tracing::debug!(swarm = %candidate.id, error = format!("{e:#}"), "cannot look whether it has ended; trying again");
        }
        self.progress().insert(path, known);
    }

    /// Swarms whose end has begun, or waits for somebody who may decide on another node.
    fn begun(&self) -> BTreeSet<SwarmPath> {
        let all = self.progress();
        let begun = all.iter().filter(|(_, known)| known.has_begun());
        begun.map(|(path, _)| path.clone()).collect()
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, HashMap<SwarmPath, Progress>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known so far, unless it is of another revision, or of a history that a failover may have cut.
    fn progress_of(&self, candidate: &Candidate) -> Progress {
        let history = self.seams.backend.history(&candidate.id);
        let same = |known: &&Progress| known.revision == candidate.revision && known.history == history;
        let found = self.progress().get(&candidate.id.path()).filter(same).cloned();
        found.unwrap_or_else(|| Progress {
            revision: candidate.revision,
            history,
            ..Progress::default()
        })
    }

    /// What is known here of a stage's end, if anything.
    #[must_use]
    pub fn ending(&self, path: &SwarmPath, revision: u64, stage: &StageName) -> Option<String> {
        let all = self.progress();
        let known = all.get(path).filter(|known| known.revision == revision)?;
        match known.ended.contains(stage) {
            true => Some("ended".to_owned()),
            false => known.waits.get(stage).cloned(),
        }
    }

    /// Those of `paths` that can end and have not.
    async fn candidates(&self, paths: BTreeSet<SwarmPath>) -> Vec<Candidate> {
        let fleet = self.fleet.lock().await;
        self.progress().retain(|path, known| {
            let live = fleet.swarms.get(path);
            known.over = live.is_some_and(|live| live.ended && live.revision == known.revision);
            live.is_some()
        });
        let going = paths
            .iter()
            .filter_map(|path| fleet.swarms.get(path))
            .filter(|live| live.swarm.bounded() && !live.ended && live.open != Open::Deleting);
        let found = going.map(|live| Candidate {
            id: live.id.clone(),
            revision: live.revision,
            swarm: live.swarm.clone(),
        });
        found.collect()
    }

    async fn look_for_end(&self, of: &Candidate, known: &mut Progress) -> anyhow::Result<()> {
        // Costs next to nothing, and a stream that goes on is seen by it.
        let glance = self.seams.backend.status(&of.id).await?;
        loop {
            let mut ready = Vec::new();
            for stage in &of.swarm.stages {
                // Before the look at the topics: what was sent before the end is in them.
                if !known.ended.contains(&stage.name) && self.gets_no_more(of, stage, known, &glance).await? {
                    ready.push(stage);
                }
            }
            if ready.is_empty() {
                break;
            }
            let ended = self.ended_of(of, ready, known).await?;
            if ended.is_empty() {
                break;
            }
            for stage in ended {
                tracing::info!(swarm = %of.id.path(), %stage, "its stream has ended");
                known.waits.remove(&stage);
                known.ended.insert(stage);
            }
        }
        if of.swarm.stages.iter().all(|stage| known.ended.contains(&stage.name)) {
            self.note_end(of).await?;
        }
        Ok(())
    }

    /// Whether no stage, and no Gateway, sends anything to this one any more.
    async fn gets_no_more(
        &self,
        of: &Candidate,
        stage: &Stage,
        known: &mut Progress,
        glance: &[TopicStatus],
    ) -> anyhow::Result<bool> {
        let Some(Ends::Keys(keys)) = &stage.ends else {
            return Ok(stage.inputs.iter().all(|input| match &input.source {
                InputSource::Gateway(_) => false,
                InputSource::Bee { stage, .. } => known.ended.contains(stage),
            }));
        };
        known.note_dead(stage, glance);
        if !holds(glance, stage, is_inert) {
            return Ok(false);
        }
        let said = known.said.entry(stage.name.clone()).or_default();
        let topic = of.id.topic(&stage.name);
        for key in keys.iter().skip(*said) {
            if !self.seams.backend.state(&topic, key).await?.contains_key(END) {
                return Ok(false);
            }
            *said += 1;
        }
        Ok(true)
    }

    /// Those of `ready`, to which nothing comes any more, in which there is nothing left, and whose keys were all told.
    async fn ended_of(
        &self,
        of: &Candidate,
        ready: Vec<&Stage>,
        known: &mut Progress,
    ) -> anyhow::Result<Vec<StageName>> {
        let backend = &self.seams.backend;
        // Durable, as the keys are that are shown behind it: each step here rests on the one before.
        let topics = backend.durable_status(&of.id).await?;
        if let Some(left) = topics.iter().find(|topic| of.is_left_behind(topic)) {
            let why = format!(
                "its end waits for what is left of the removed stage `{}`",
                left.topic.stage()
            );
            let waiting = ready.iter().map(|stage| (stage.name.clone(), why.clone()));
            known.waits.extend(waiting);
            return Ok(Vec::new());
        }
        let (mut open, mut told) = (Vec::new(), Vec::new());
        for stage in ready {
            known.note_dead(stage, &topics);
            if !holds(&topics, stage, is_still) {
                continue;
            }
            let inert = holds(&topics, stage, is_inert);
            // What its Bee waits for may be due in a year. Until then nothing is to be told, and the look reads all state.
            if !inert && known.all_told.contains(&stage.name) {
                continue;
            }
            if stage.ends == Some(Ends::Told) && self.has_open_key(&of.id.topic(&stage.name)).await? {
                known.all_told.remove(&stage.name);
                open.push(stage);
                continue;
            }
            known.all_told.insert(stage.name.clone());
            // A timer that came while the keys were listed may have given one state that had none when it was its turn.
            if inert {
                told.push(stage);
            }
        }
        open.retain(|stage| known.told.get(&stage.name).is_none_or(|at| at.elapsed() >= TELL_EVERY));
        if open.is_empty() && told.is_empty() {
            return Ok(Vec::new());
        }
        // Once more, behind the look at the keys: one may have been told meanwhile, and what came of it is there.
        let topics = backend.durable_status(&of.id).await?;
        // What still waits for its time goes when its key ends.
        for stage in open.into_iter().filter(|stage| holds(&topics, stage, is_still)) {
            known.told.insert(stage.name.clone(), Instant::now());
            self.tell_end(of, &stage.name).await;
        }
        let over = told.into_iter().filter(|stage| holds(&topics, stage, is_inert));
        Ok(over.map(|stage| stage.name.clone()).collect())
    }

    /// Whether some key has state and was not told.
    async fn has_open_key(&self, topic: &TopicId) -> anyhow::Result<bool> {
        let history = self.seams.backend.history(topic.swarm());
        let mut after = String::new();
        loop {
            let page = match self.seams.backend.state_page(topic, &after).await {
                Ok(page) => page,
                // A place that a failover took away: there is somebody to ask again.
                Err(Error::TooLarge(_)) => return Ok(true),
                Err(e) => return Err(e.into()),
            };
            if page.keys.iter().any(|(_, values)| !values.contains_key(END)) {
                return Ok(true);
            }
            match page.next {
                Some(next) => after = next,
                // A server that took over lists in another order, so its pages behind the former's first may miss a key.
                None => return Ok(self.seams.backend.history(topic.swarm()) != history),
            }
        }
    }

    async fn tell_end(&self, of: &Candidate, stage: &StageName) {
        let fleet = self.fleet.lock().await;
        let live = fleet.swarms.get(&of.id.path());
        if let Some(live) = live.filter(|live| live.id == of.id && live.revision == of.revision)
            && let Some(stage) = live.stages.get(stage)
        {
            stage.running.tell_end();
        }
    }

    /// Says in the catalog that all of the Swarm has ended. Another revision of it begins anew.
    async fn note_end(&self, of: &Candidate) -> anyhow::Result<()> {
        let _writes = self.writes.lock().await;
        let catalog = self.catalogs.of(of.id.tenant());
        let Some(mut found) = catalog.swarm(of.id.name()).await? else {
            return Ok(());
        };
        let same = found.record.is(&of.id) && found.record.revision == of.revision;
        if !same || found.record.deleting {
            return Ok(());
        }
        if found.record.ended_ms.is_none() {
            found.record.ended_ms = Some(self.seams.clock.now_ms());
            if catalog.put_swarm(found.version, &found.record).await?.is_err() {
                anyhow::bail!("the Swarm's record was changed meanwhile");
            }
            tracing::info!(swarm = %of.id.path(), "has ended");
        }
        let mut fleet = self.fleet.lock().await;
        if let Some(live) = fleet.swarms.get_mut(&of.id.path())
            && live.id == of.id
            && live.revision == of.revision
        {
            live.ended = true;
        }
        Ok(())
    }
}

impl Candidate {
    /// A removed stage that still has something, which may go to one of the others.
    fn is_left_behind(&self, topic: &TopicStatus) -> bool {
        self.swarm.stage(topic.topic.stage()).is_none() && !is_inert(topic)
    }
}
