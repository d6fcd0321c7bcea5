//! The loop that owns a partition: claim, then fetch → process → decide → commit until there is nothing left, then release.
//!
//! One task a partition is the only owner of that partition's cursor on this node. It holds a lease only while there is work (and
//! [`IDLE_MS`] after it), so an idle stage costs nothing but a sleeping task. Commits are answered when they are applied, not when
//! they are durable: whoever builds on one is rolled back with it, and what leaves is gated in the backend.

mod ends;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use skep_model::env::{Clock, Entropy};
use skep_model::id::{CommitId, Token, Uid};
use skep_model::limits::{CRASH_WAIT_MS, CRASH_WAIT_MS_MAX, FETCH_STATE_BYTES_MAX, LEASE_TTL_MS};
use skep_model::message::TraceContext;
use skep_model::name::StageName;
use skep_model::scope::{PartitionId, TopicId};
use skep_model::span::{SpanKind, SpanRecord, SpanSink};
use skep_model::step::{Batch, Input, LogLine, Processed, Step, Trap, TrapKind};
use skep_topic::lane::Lane;
use skep_topic::{Backend, Bell, Commit, Cursor, Error, Fetched, Lease, Room, Want, failpoint};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::caution::{BatchCap, HostTroubles};
use crate::decide::{Decision, Ran, Stamp, arrange, decide, is_jammed};
use crate::lane::Consumer;
use crate::observe::{BatchReport, Observer, StageState};
use crate::parts::{Callers, Told, begun, in_vain};
use crate::placement::{Place, Workers, YIELD};
use crate::plan::Plan;
use crate::rest::Rest;

/// How long an owner keeps its lease without work. Under the lease's time to live, so idling needs no renewal.
const IDLE_MS: u64 = 1_000;
/// How long batches under way may go on when a stage stops. Then they are dropped: nothing of them was committed.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(5);
/// The wait after a trouble of the backend, before it is tried again.
pub(crate) const TROUBLE: Duration = Duration::from_millis(200);
/// How long a node keeps a partition that another should own, and that left it alone. Long enough that the giving back costs little,
/// should the other be unable to work on it.
const GUEST_MS: u64 = 2_000;
/// The longest wait of an owner that loses its partition again and again, until it gets a newer plan.
const LOST_MS_MAX: u64 = 1_000;
/// How long an owner waits for room before it asks again although no bell rang.
const ROOM_MS: u64 = 1_000;

/// What a stage is built from.
pub struct Seams {
    pub backend: Arc<dyn Backend>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub observer: Arc<dyn Observer>,
    pub spans: Arc<dyn SpanSink>,
    /// Who else works, and thereby which partitions are to be owned here.
    pub workers: watch::Receiver<Arc<Workers>>,
    /// The runtimes of the threads that run Bees. Owners and drains live there, so that a batch goes from fetch to commit without
    /// waking another thread. Empty: all live on the runtime that starts the stage.
    pub seats: Vec<Handle>,
    /// Rung when a partition of a Swarm that can end has nothing to do.
    pub rest: Arc<Rest>,
}

impl Seams {
    /// The same number is the same seat. Stages begin at different ones, so that a node of many small Swarms uses all.
    pub(crate) fn seat<'a>(&'a self, topic: &TopicId, number: usize, otherwise: &'a Handle) -> &'a Handle {
        let mut hasher = DefaultHasher::new();
        topic.hash(&mut hasher);
        let start = usize::try_from(hasher.finish() >> 32).unwrap_or(0);
        match self.seats.len() {
            0 => otherwise,
            seats => &self.seats[start.wrapping_add(number) % seats],
        }
    }
}

/// A stage at work on this node.
pub struct Running {
    plan: watch::Sender<Arc<Plan>>,
    paused: watch::Sender<bool>,
    lane: Arc<Lane>,
    /// What the lane wakes.
    _consumer: Arc<Consumer>,
    budget: Arc<Mutex<Budget>>,
    seams: Arc<Seams>,
    stop: CancellationToken,
    tasks: TaskTracker,
    owned: Owned,
    /// Partitions that have an owner's task here.
    owners: Mutex<u16>,
    /// The plan by which the stage's keys are to be told that nothing more comes. Weak: a plan that is kept counts as a writer to those
    /// downstream.
    telling: watch::Sender<Weak<Plan>>,
}

/// The partitions that are owned here at this moment.
type Owned = Arc<Mutex<BTreeSet<u16>>>;

impl Running {
    /// Partitions whose lease this node holds now.
    #[must_use]
    pub fn owned(&self) -> Vec<u16> {
        self.owned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect()
    }

    /// Replaces the plan. Batches under way end on the old one.
    pub fn replan(&self, plan: Arc<Plan>) {
        let partitions = plan.topic.partitions;
        self.plan.send_replace(plan);
        self.own(partitions);
        // It may allow more batches at once than are under way.
        self.lane.ring();
    }

    /// Tells the stage's keys that nothing more comes for them, as far as their partitions are owned here. For whoever knows that it is so:
    /// all that the stage reads from has ended, and nothing was unread, parked or dead-lettered since. It holds for the plan of this
    /// moment: with a newer one something may come again.
    pub fn tell_end(&self) {
        self.telling.send_replace(Arc::downgrade(&self.plan()));
    }

    /// Stops reading after the batches under way, or goes on. What comes meanwhile waits in the inbox, and timers until then.
    pub fn pause(&self, paused: bool) {
        self.paused
            .send_if_modified(|now| std::mem::replace(now, paused) != paused);
    }

    /// Starts owners for the first `partitions` partitions that have none. While a topic gets another number of partitions, those need
    /// owners that were before as well as those that are: see [`skep_topic::Layout::owners`]. One whose partition is no more waits
    /// for a plan by which it is.
    pub fn own(&self, partitions: u16) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        for index in *owners..partitions {
            let owner = Owner {
                partition: self.plan.borrow().topic.id.partition(index),
                plans: self.plan.subscribe(),
                paused: self.paused.subscribe(),
                workers: self.seams.workers.clone(),
                place: None,
                owned: Arc::clone(&self.owned),
                seams: Arc::clone(&self.seams),
                stop: self.stop.clone(),
                cap: BatchCap::none(),
                host: HostTroubles::default(),
                unwell: false,
                lost: 0,
                marked: None,
                alone: None,
                closed: Vec::new(),
                budget: Arc::clone(&self.budget),
                telling: self.telling.subscribe(),
                told_to: None,
            };
            let here = Handle::current();
            let seat = self.seams.seat(owner.partition.topic(), index.into(), &here);
            self.tasks.spawn_on(owner.run(), seat);
        }
        *owners = partitions.max(*owners);
    }

    #[must_use]
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.borrow())
    }

    /// Ends after the batches under way, or [`STOP_GRACE`], with their leases released. What is on the lane is answered as not done.
    pub async fn stop(self) {
        self.stop.cancel();
        crate::lane::turn_away(&self.lane, &self.plan.borrow(), &self.seams);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Starts the owners of all partitions and the consumer of the stage's lane. `paused`: from the first moment, so that a restart reads
/// nothing of what was held before it. Must be called within a tokio runtime.
#[must_use]
pub fn start(plan: Arc<Plan>, lane: &Arc<Lane>, seams: &Arc<Seams>, paused: bool) -> Running {
    let (plans, budget) = (watch::Sender::new(Arc::clone(&plan)), Arc::<Mutex<Budget>>::default());
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let consumer = crate::lane::consume(lane, plans.subscribe(), Arc::clone(&budget), seams, &stop, &tasks);
    let running = Running {
        plan: plans,
        paused: watch::Sender::new(paused),
        lane: Arc::clone(lane),
        _consumer: consumer,
        budget,
        seams: Arc::clone(seams),
        stop,
        tasks,
        owned: Owned::default(),
        owners: Mutex::new(0),
        telling: watch::Sender::new(Weak::new()),
    };
    running.own(plan.topic.partitions);
    running
}

struct Owner {
    partition: PartitionId,
    plans: watch::Receiver<Arc<Plan>>,
    /// By an operator.
    paused: watch::Receiver<bool>,
    workers: watch::Receiver<Arc<Workers>>,
    /// What was worked out of `workers` last.
    place: Option<Place>,
    owned: Owned,
    seams: Arc<Seams>,
    stop: CancellationToken,
    cap: BatchCap,
    host: HostTroubles,
    /// Whether the last that was told of this partition is that it is paused or troubled.
    unwell: bool,
    /// How often in a row it lost the partition before it could commit anything.
    lost: u32,
    /// The attempt marks in a row that this owner made, and outlived.
    marked: Option<(Uid, u32)>,
    /// The attempt mark that the claim found: that input was alone in a crash.
    alone: Option<(Uid, u32)>,
    /// Where the next batch may not send back to: the last one found a circle that waits for itself.
    closed: Vec<StageName>,
    /// Of the whole stage on this node.
    budget: Arc<Mutex<Budget>>,
    telling: watch::Receiver<Weak<Plan>>,
    /// How far the list of keys is that are told of their end.
    told_to: Option<ends::Place>,
}

/// Where an owner stands between two commits.
struct Position {
    lease: Lease,
    seq: u64,
    last: CommitId,
    cursor: Cursor,
}

/// Why an owner gave its partition up.
enum Ended {
    /// Nothing to do until a bell, or until this time by the store's clock.
    Idle {
        wait_ms: u64,
    },
    /// Somebody else holds it.
    Held {
        ms_left: u64,
    },
    /// Fenced, stale or input gone: everything known is dropped; claim anew.
    Lost,
    Trouble {
        why: String,
        wait: Duration,
    },
    Gone,
    Stopped,
}

impl Owner {
    async fn run(mut self) {
        let bell = self.seams.backend.bell(&self.partition);
        let scan_ms = self.seams.backend.scan_every_ms();
        loop {
            if *self.paused.borrow_and_update() {
                let why = "by an operator".to_owned();
                self.tell(StageState::Paused { why });
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    on = self.paused.wait_for(|paused| !paused) => if on.is_err() { return },
                }
                self.well();
            }
            match self.place() {
                Place::Home => {}
                Place::Guest => tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    // Perhaps it is this node's now.
                    () = changed(self.workers.clone()) => continue,
                    () = sleep(YIELD) => {}
                },
                Place::Away => tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    () = changed(self.workers.clone()) => continue,
                },
            }
            let ended = self.own().await;
            // Nothing can be told before the lease is free.
            let held = matches!(ended, Ended::Held { .. });
            let wait_ms = match ended {
                Ended::Stopped => return,
                // For good with its Swarm, which stops this; a stage may come back with a newer plan, a partition with a rescale.
                Ended::Gone => {
                    let again = async {
                        tokio::select! {
                            () = bell.notified() => {}
                            () = sleep(Duration::from_millis(scan_ms)) => {}
                        }
                    };
                    if !self.replanned(again).await {
                        return;
                    }
                    continue;
                }
                Ended::Idle { wait_ms } => wait_ms.min(scan_ms),
                Ended::Held { ms_left } => ms_left.max(1),
                Ended::Lost => {
                    let again = self.lost;
                    self.lost = again.saturating_add(1);
                    if again > 0 {
                        // What is refused again and again is refused to an old plan: the same work would be done for nothing.
                        let wait = Duration::from_millis((1 << again.min(10)).min(LOST_MS_MAX));
                        if !self.replanned(sleep(wait)).await {
                            return;
                        }
                        continue;
                    }
                    1
                }
                Ended::Trouble { why, wait } => {
                    tracing::warn!(partition = %self.partition, %why, "stage is troubled, trying again");
                    self.tell(StageState::Troubled { why });
                    // Whatever arrives meanwhile: no bell may cut a backoff short.
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return,
                        () = sleep(wait) => continue,
                    }
                }
            };
            self.well();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = bell.notified() => {}
                () = changed(self.workers.clone()) => {}
                () = asked(self.telling.clone()), if !held => {}
                () = sleep(Duration::from_millis(wait_ms)) => {}
            }
        }
    }

    /// What this node is to the partition, by the newest that it knows of the others.
    fn place(&mut self) -> Place {
        match self.place {
            Some(place) if !self.workers.has_changed().unwrap_or(false) => place,
            _ => {
                let place = self.workers.borrow_and_update().place(&self.partition);
                *self.place.insert(place)
            }
        }
    }

    fn note(&self, owns: bool) {
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        if owns {
            owned.insert(self.partition.index());
        } else {
            owned.remove(&self.partition.index());
        }
    }

    /// Waits for a newer plan, and no longer than said. `false`: it stops.
    async fn replanned(&mut self, patience: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = patience => true,
            changed = self.plans.changed() => changed.is_ok(),
        }
    }

    /// That the partition is held up.
    fn tell(&mut self, state: StageState) {
        self.unwell = true;
        self.tell_observer(state);
    }

    fn tell_observer(&self, state: StageState) {
        let partition = &self.partition;
        self.seams
            .observer
            .state(partition.topic(), Some(partition.index()), state);
    }

    /// What held it up is over.
    fn well(&mut self) {
        if std::mem::take(&mut self.unwell) {
            self.tell_observer(StageState::Running);
        }
    }

    /// From claim to release.
    async fn own(&mut self) -> Ended {
        let backend = &self.seams.backend;
        let token = Token::random(self.seams.entropy.as_ref());
        let topic = Arc::clone(&self.plans.borrow_and_update().topic);
        let claim = match backend.claim(&topic, self.partition.index(), token, LEASE_TTL_MS).await {
            Ok(Ok(claim)) => claim,
            Ok(Err(held)) => return Ended::Held { ms_left: held.ms_left },
            Err(e) => return ended(e),
        };
        let mut at = Position {
            lease: Lease {
                partition: self.partition.clone(),
                token,
            },
            seq: claim.seq,
            last: claim.last,
            cursor: claim.cursor,
        };
        self.alone = claim.marked;
        if claim.unclean > 0 {
            self.cap = BatchCap::suspect(self.plans.borrow().stage.batch.messages);
        }
        self.note(true);
        let ended = self.work(&mut at).await;
        self.note(false);
        // Also what it lost: where the lease is still its own, nobody need wait for its end, and nobody is to blame.
        if let Err(e) = self.seams.backend.release(&at.lease).await {
            tracing::debug!(partition = %self.partition, error = %e, "release failed; the lease will run out");
        }
        ended
    }

    async fn work(&mut self, at: &mut Position) -> Ended {
        let bell = self.seams.backend.bell(&self.partition);
        let (since, came) = (Instant::now(), self.place);
        let mut drained = false;
        loop {
            if self.stop.is_cancelled() {
                return Ended::Stopped;
            }
            if *self.paused.borrow() {
                return Ended::Idle { wait_ms: 1 };
            }
            let place = self.place();
            let over = since.elapsed() > Duration::from_millis(GUEST_MS);
            if place == Place::Away || (place == Place::Guest && (came != self.place || over)) {
                // Another is to have it: it hears of the release.
                return Ended::Idle { wait_ms: 1 };
            }
            let plan = Arc::clone(&self.plans.borrow_and_update());
            let want = Want {
                from: at.cursor,
                base: at.last,
                messages: u32::try_from(self.cap.size())
                    .map_or(plan.stage.batch.messages, |cap| cap.min(plan.stage.batch.messages)),
                bytes: plan.stage.batch.bytes,
                state: plan.stage.state,
                state_bytes: FETCH_STATE_BYTES_MAX,
                timers_max: plan.stage.join.map_or(u64::MAX, |join| {
                    join.pending.div_ceil(u64::from(plan.topic.partitions.max(1)))
                }),
            };
            let mut fetched = match std::mem::take(&mut drained) {
                // What came since has rung.
                true => Fetched::default(),
                false => match self.seams.backend.fetch(&at.lease, want).await {
                    Ok(fetched) => fetched,
                    Err(e) => return ended(e),
                },
            };
            if fetched.at_seal {
                // The topic gets another number of partitions: what waits here goes to those that own its keys.
                let id = CommitId::random(self.seams.entropy.as_ref());
                match self.seams.backend.hand_over(&at.lease, at.last, id).await {
                    Ok(()) => at.last = id,
                    Err(e) => return ended(e),
                }
                continue;
            }
            fetched.keep(self.cap.size());
            fetched.keep_streams_alone();
            if fetched.is_empty() {
                self.well();
                match self.tell_end(&plan, at, fetched.now_ms).await {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(ended) => return ended,
                }
                if plan.bounded {
                    self.seams.rest.ring(self.partition.topic().swarm().path());
                }
                let due_ms = fetched
                    .next_due_ms
                    .map_or(u64::MAX, |due| due.saturating_sub(fetched.now_ms).max(1));
                if place != Place::Home {
                    return Ended::Idle { wait_ms: due_ms };
                }
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return Ended::Stopped,
                    () = bell.notified() => continue,
                    () = changed(self.workers.clone()) => continue,
                    () = asked(self.telling.clone()) => continue,
                    () = sleep(Duration::from_millis(due_ms.min(IDLE_MS))) => {
                        if due_ms <= IDLE_MS { continue }
                        return Ended::Idle { wait_ms: due_ms.saturating_sub(IDLE_MS) };
                    }
                }
            }
            let before = at.last;
            // On the heap, and gone after it: a node has four owners a stage, of which nearly all wait, and a batch's data is most of such a task.
            if let Err(ended) = Box::pin(self.batch(&plan, at, fetched)).await {
                return ended;
            }
            // A batch that trapped was not committed: it is there still.
            drained = at.last != before && self.seams.backend.drained(&at.lease, at.last);
        }
    }

    async fn batch(&mut self, plan: &Arc<Plan>, at: &mut Position, fetched: Fetched) -> Result<(), Ended> {
        let (mut taken, mut batch) = arrange(plan, fetched, |request| {
            self.seams.backend.waiters().is_cancelled(request.id)
        });
        taken.closed = std::mem::take(&mut self.closed);
        let inputs = batch.inputs.len();
        let began = Instant::now();
        let started_us = self.seams.clock.now_us();
        let span = span_of(&batch.inputs, self.seams.entropy.as_ref());
        let links = links_of(&batch.inputs, span.as_ref().map(|(own, _)| own));
        let mut trapped = true;
        let mut told = Told::Nothing;
        let (steps, log) = if inputs == 0 {
            (Vec::new(), Vec::new())
        } else {
            let uids: Vec<Uid> = batch.inputs.iter().map(Input::uid).collect();
            let not_run = match self.interrupted(&uids) {
                Some(trap) => Some(trap),
                None => self.crashed(at, &uids, plan.stage.retry.crashes).await?,
            };
            let processed = match not_run {
                Some(trap) => Processed {
                    result: Err(trap),
                    log: Vec::new(),
                },
                None => {
                    let callers = Callers::of(&self.seams.backend, Some(&at.lease), &batch.inputs);
                    batch.parts = callers.clone().map(|callers| callers as _);
                    let (processed, what) = self.process(plan, at, batch, callers).await?;
                    told = what;
                    processed
                }
            };
            if in_vain(told, &processed) {
                taken.give_up();
            }
            let log = with_uids(processed.log, &uids);
            match processed.result {
                Ok(steps) => {
                    self.host.over();
                    trapped = false;
                    (steps.into_iter().map(Ok).collect(), log)
                }
                Err(trap) if inputs > 1 => {
                    tracing::debug!(partition = %self.partition, inputs, %trap, "batch trapped, going on with smaller ones");
                    self.report(began, 0, 0, &log, None);
                    if trap.kind == TrapKind::Host {
                        self.cap.alone();
                    } else {
                        self.cap.trapped(inputs);
                    }
                    return Ok(());
                }
                Err(trap) => {
                    if trap.kind == TrapKind::Host {
                        if let Some(wait) = self.host.wait(uids[0]) {
                            self.report(began, 0, 0, &log, None);
                            let why = trap.to_string();
                            return Err(Ended::Trouble { why, wait });
                        }
                    } else {
                        self.host.over();
                    }
                    (vec![Err::<Step, Trap>(trap)], log)
                }
            }
        };
        let ran = Ran {
            started_us,
            took_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            batch: u32::try_from(inputs).unwrap_or(u32::MAX),
            span: span.as_ref().map(|(own, _)| *own),
            parts_left: told != Told::Nothing,
        };
        let stamp = Stamp {
            id: CommitId::random(self.seams.entropy.as_ref()),
            seq: at.seq,
            base: at.last,
            from: at.cursor,
        };
        let decision = match plan.stage.retry.budget {
            None => decide(plan, &taken, steps, stamp, ran, self.seams.entropy.as_ref()),
            Some(rule) => {
                // Over the whole decision, so that no two owners spend the same.
                let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
                let now_ms = self.seams.clock.now_ms();
                taken.retries = Some(budget.left(rule, now_ms));
                let decision = decide(plan, &taken, steps, stamp, ran, self.seams.entropy.as_ref());
                budget.note(now_ms, decision.first, decision.retried);
                decision
            }
        };
        if decision.consumed == 0 && decision.commit.set_timers.is_empty() {
            return Err(trouble("the engine returned no step for the first input".to_owned()));
        }
        let dead = decision.commit.dead.len();
        let (to, id) = (decision.commit.span.map(|s| s.to), decision.commit.id);
        if !self.commit(plan, at, &decision.commit).await? {
            return Ok(());
        }
        self.marked = None;
        self.lost = 0;
        at.seq += 1;
        at.last = id;
        at.cursor = to.unwrap_or(at.cursor);
        if inputs > 0 {
            if trapped {
                self.cap.found();
            } else {
                self.cap.passed();
            }
        }
        self.well();
        self.span(plan, span, links, ran, decision.error.as_deref());
        self.report(began, inputs, dead, &log, Some(&decision));
        Ok(())
    }

    /// The last owner's attempt at this input sent parts of its response and did not come to its end: it is not run again.
    fn interrupted(&self, uids: &[Uid]) -> Option<Trap> {
        let (marked, _) = self.alone?;
        let [uid] = *uids else { return None };
        (marked == begun(uid)).then(|| Trap {
            kind: TrapKind::Interrupted,
            detail: "its stage stopped between two parts of the response: what was done is not known, and it is not run again".to_owned(),
            stderr: String::new(),
        })
    }

    /// In suspect mode an attempt mark is made durable before the input runs alone. A crash loses every other count, so this one
    /// tells when it is the input that kills its host: then it is not run again.
    async fn crashed(&mut self, at: &Position, uids: &[Uid], crashes: u32) -> Result<Option<Trap>, Ended> {
        let [uid] = *uids else { return Ok(None) };
        if !self.cap.suspects() {
            return Ok(None);
        }
        if let Some((_, times)) = self.alone.take().filter(|(last, _)| *last == uid) {
            let wait = CRASH_WAIT_MS.saturating_mul(u64::from(times)).min(CRASH_WAIT_MS_MAX);
            self.hold_back(at, Duration::from_millis(wait)).await?;
        }
        let marks = self.seams.backend.mark(&at.lease, uid).await.map_err(ended)?;
        // Marks of this very owner are no crashes: it lives.
        let own = self
            .marked
            .filter(|(last, _)| *last == uid)
            .map_or(0, |(_, times)| times);
        self.marked = Some((uid, own + 1));
        let others = marks.saturating_sub(own);
        Ok((others >= crashes).then(|| Trap {
            kind: TrapKind::Crash,
            detail: format!("the node died {others} times while it ran this input"),
            stderr: String::new(),
        }))
    }

    /// Waits with the lease in hand.
    async fn hold_back(&self, at: &Position, wait: Duration) -> Result<(), Ended> {
        let over = sleep(wait);
        tokio::pin!(over);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Ended::Stopped),
                () = &mut over => return Ok(()),
                () = sleep(Duration::from_millis(LEASE_TTL_MS / 3)) => self.prolong(&at.lease).await?,
            }
        }
    }

    /// Runs the Bee, prolonging the lease meanwhile.
    async fn process(
        &self,
        plan: &Plan,
        at: &Position,
        batch: Batch,
        callers: Option<Arc<Callers>>,
    ) -> Result<(Processed, Told), Ended> {
        if failpoint::armed() {
            for key in batch.inputs.iter().filter_map(Input::key) {
                failpoint::hit(&format!("input-{key}"));
            }
        }
        let work = async {
            let mut processed = plan.bee.process(batch).await;
            let told = match callers {
                Some(callers) => callers.end(&mut processed).await,
                None => Told::Nothing,
            };
            (processed, told)
        };
        let grace = async {
            self.stop.cancelled().await;
            sleep(STOP_GRACE).await;
        };
        tokio::pin!(work, grace);
        loop {
            tokio::select! {
                biased;
                processed = &mut work => return Ok(processed),
                () = &mut grace => return Err(Ended::Stopped),
                () = sleep(Duration::from_millis(LEASE_TTL_MS / 3)) => self.prolong(&at.lease).await?,
            }
        }
    }

    /// Sends one commit until it has an answer. The same id each time, so a repeat is recognised. `false`: it would wait for itself, and
    /// was given up.
    async fn commit(&mut self, plan: &Plan, at: &Position, commit: &Arc<Commit>) -> Result<bool, Ended> {
        let seams = Arc::clone(&self.seams);
        let backend = &seams.backend;
        let mut room: Option<Bell> = None;
        loop {
            // Made before the call that may be refused, so that no ring falls between the two.
            let rung = room.take().map(Notify::notified_owned);
            match backend.commit(&at.lease, Arc::clone(commit)).await {
                Ok(_) => return Ok(true),
                Err(Error::Full { stage, what }) => {
                    self.prolong(&at.lease).await?;
                    if what == Room::Inbox && plan.goes_back_to(&stage) && self.jammed(plan).await {
                        self.closed.push(stage);
                        return Ok(false);
                    }
                    self.tell(StageState::Paused {
                        why: format!("the {what} of stage `{stage}` is full"),
                    });
                    room = Some(backend.room(&self.partition.topic().swarm().topic(&stage)));
                    let Some(rung) = rung else { continue };
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return Err(Ended::Stopped),
                        () = rung => {}
                        () = sleep(Duration::from_millis(ROOM_MS)) => {}
                    }
                }
                Err(e @ (Error::Unavailable(_) | Error::Unknown(_))) => {
                    self.tell(StageState::Troubled { why: e.to_string() });
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return Err(Ended::Stopped),
                        () = sleep(TROUBLE) => {}
                    }
                }
                Err(e) => return Err(ended(e)),
            }
        }
    }

    /// Whether others may wait for this stage while it waits. A backend that cannot say is asked again with the commit.
    async fn jammed(&self, plan: &Plan) -> bool {
        let own = self.partition.topic();
        match self.seams.backend.status(own.swarm()).await {
            Ok(topics) => topics
                .iter()
                .any(|topic| topic.topic == *own && is_jammed(topic, plan.stage.inbox)),
            Err(_) => false,
        }
    }

    /// A lost lease ends the work: its commit would be refused. A backend that cannot say does not.
    async fn prolong(&self, lease: &Lease) -> Result<(), Ended> {
        match self.seams.backend.renew(lease, LEASE_TTL_MS).await {
            Ok(()) | Err(Error::Unavailable(_) | Error::Unknown(_)) => Ok(()),
            Err(e) => Err(ended(e)),
        }
    }

    fn span(
        &self,
        plan: &Plan,
        span: Option<(TraceContext, TraceContext)>,
        links: Vec<TraceContext>,
        ran: Ran,
        error: Option<&str>,
    ) {
        let Some((own, parent)) = span else { return };
        self.seams
            .spans
            .record(span_record(plan, own, parent, links, ran, error));
    }

    fn report(
        &self,
        began: Instant,
        inputs: usize,
        dead: usize,
        log: &[(Option<Uid>, LogLine)],
        decision: Option<&Decision>,
    ) {
        self.seams.observer.batch(
            self.partition.topic(),
            BatchReport {
                inputs,
                done: decision.map_or(0, |d| d.done),
                failed: decision.map_or(0, |d| d.failed),
                dead,
                took: began.elapsed(),
                log,
                error: decision.and_then(|d| d.error.as_deref()),
            },
        );
    }
}

pub(crate) fn span_record(
    plan: &Plan,
    own: TraceContext,
    parent: TraceContext,
    links: Vec<TraceContext>,
    ran: Ran,
    error: Option<&str>,
) -> SpanRecord {
    SpanRecord {
        context: own,
        parent: Some(parent.span_id),
        links,
        name: format!("process {}", plan.stage.name),
        kind: SpanKind::Consumer,
        start_us: ran.started_us,
        end_us: ran.started_us.saturating_add(ran.took_us),
        attributes: vec![
            ("skep.swarm", plan.topic.id.swarm().name().to_string()),
            ("skep.stage", plan.stage.name.to_string()),
            ("skep.bee", plan.stage.bee.to_string()),
            ("skep.module", plan.module.to_string()),
            ("messaging.batch.message_count", ran.batch.to_string()),
        ],
        error: error.map(str::to_owned),
    }
}

fn ended(error: Error) -> Ended {
    match error {
        Error::Fenced | Error::Stale | Error::InputGone => Ended::Lost,
        Error::Gone => Ended::Gone,
        other => trouble(other.to_string()),
    }
}

/// Never, once nobody is left to say so.
///
/// On a copy, so that the news stays unseen until `place` looks at it.
async fn changed(mut workers: watch::Receiver<Arc<Workers>>) {
    if workers.changed().await.is_err() {
        std::future::pending().await
    }
}

/// As [`changed`], of the end: the news stays unseen until the owner takes it up.
async fn asked(mut telling: watch::Receiver<Weak<Plan>>) {
    if telling.changed().await.is_err() {
        std::future::pending().await
    }
}

fn trouble(why: String) -> Ended {
    Ended::Trouble { why, wait: TROUBLE }
}

/// The batch's own span and its parent: the first sampled message's.
pub(crate) fn span_of(inputs: &[Input], entropy: &dyn Entropy) -> Option<(TraceContext, TraceContext)> {
    let parent = inputs
        .iter()
        .flat_map(Input::messages)
        .find_map(|message| message.trace.filter(|t| t.sampled))?;
    let mut span_id = [0; 8];
    span_id.copy_from_slice(&entropy.bits128()[..8]);
    Some((TraceContext { span_id, ..parent }, parent))
}

/// The other traces of the batch; at most 128, the standard's default bound on links.
pub(crate) fn links_of(inputs: &[Input], own: Option<&TraceContext>) -> Vec<TraceContext> {
    let Some(own) = own else { return Vec::new() };
    inputs
        .iter()
        .flat_map(Input::messages)
        .filter_map(|message| message.trace.filter(|t| t.sampled && t.trace_id != own.trace_id))
        .take(128)
        .collect()
}

pub(crate) fn with_uids(log: Vec<LogLine>, uids: &[Uid]) -> Vec<(Option<Uid>, LogLine)> {
    log.into_iter()
        .map(|line| {
            let uid = line.input.and_then(|i| uids.get(i as usize).copied());
            (uid, line)
        })
        .collect()
}
