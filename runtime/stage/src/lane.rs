//! The in-memory path: requests on pure Swarms.
//!
//! Same Bee, same rules for outcomes, no cursor and no lease. Failures are tried again in memory within the caller's deadline,
//! then the caller gets the cause. What is not the Bee's fault (a trouble of the host, a lane without room, a stage that stops) is
//! answered as overload: not done, safe to retry. A lane keeps no order: a pure Swarm has no state that could tell.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skep_model::id::Uid;
use skep_model::message::{Message, Reply, ReplyResult, Request};
use skep_model::step::{Batch, Input, LogLine, Processed, Step, Trap, TrapKind};
use skep_topic::lane::{Lane, Travelling};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::decide::{Again, Failure, Origin, Part, Ran, effects, passed, retry_at, spent};
use crate::observe::{BatchReport, StageState};
use crate::parts::{Callers, Told, in_vain};
use crate::plan::Plan;
use crate::worker::{STOP_GRACE, Seams, links_of, span_of, span_record, with_uids};

/// Makes this stage the lane's consumer: each push starts a drain unless `concurrency` of them are under way.
pub(crate) fn consume(
    lane: &Arc<Lane>,
    plans: watch::Receiver<Arc<Plan>>,
    budget: Arc<Mutex<Budget>>,
    seams: &Arc<Seams>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Arc<Consumer> {
    let consumer = Arc::new(Consumer {
        lane: Arc::downgrade(lane),
        plans,
        budget,
        seams: Arc::clone(seams),
        stop: stop.clone(),
        runtime: Handle::current(),
        tasks: tasks.clone(),
        under_way: AtomicUsize::new(0),
        paused: AtomicBool::new(false),
    });
    // Weak: a plan has the lanes of readers, so where a Swarm goes round a lane would keep itself.
    let weak = Arc::downgrade(&consumer);
    lane.on_ready(move || {
        if let Some(consumer) = weak.upgrade() {
            consumer.wake();
        }
    });
    consumer
}

/// Closes the lane of a stage that stops: whoever waits on it may try again, perhaps at another node.
pub(crate) fn turn_away(lane: &Lane, plan: &Plan, seams: &Seams) {
    for request in lane.close().into_iter().filter_map(|t| t.message.request) {
        seams.backend.waiters().deliver(Reply {
            request: request.id,
            result: ReplyResult::Overloaded {
                stage: plan.stage.name.clone(),
            },
            hops: Vec::new(),
        });
    }
}

type Log = Vec<(Option<Uid>, LogLine)>;

fn logged(taken: &[Travelling], log: Vec<LogLine>) -> Log {
    let uids: Vec<Uid> = taken.iter().map(|t| t.message.uid).collect();
    with_uids(log, &uids)
}

pub(crate) struct Consumer {
    /// Weak: it lives as long as its stage runs, a lane as long as anybody may write to it.
    lane: std::sync::Weak<Lane>,
    plans: watch::Receiver<Arc<Plan>>,
    /// Of the whole stage on this node.
    budget: Arc<Mutex<Budget>>,
    seams: Arc<Seams>,
    stop: CancellationToken,
    runtime: Handle,
    tasks: TaskTracker,
    /// Drains at work; as many as the plan of the moment allows.
    under_way: AtomicUsize,
    /// Whether the last that was told is that a lane downstream is full.
    paused: AtomicBool,
}

/// The right to drain. Given back when dropped, however the drain ends.
struct Turn(Arc<Consumer>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Consumer {
    fn concurrency(&self) -> usize {
        usize::from(self.plans.borrow().stage.concurrency.max(1))
    }

    /// And how many there were.
    fn turn(self: &Arc<Self>) -> Option<(Turn, usize)> {
        let most = self.concurrency();
        self.under_way
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < most).then_some(n + 1))
            .ok()
            .map(|others| (Turn(Arc::clone(self)), others))
    }

    fn wake(self: &Arc<Self>) {
        if let Some((turn, others)) = self.turn() {
            let this = Arc::clone(self);
            let topic = self.plans.borrow().topic.id.clone();
            let seat = self.seams.seat(&topic, others, &self.runtime);
            self.tasks.spawn_on(
                async move {
                    let turn = turn;
                    this.drain().await;
                    drop(turn);
                    // Something may have been pushed after the last look and before the turn was given back.
                    if this.lane.upgrade().is_some_and(|lane| !lane.is_empty()) && !this.stop.is_cancelled() {
                        this.wake();
                    }
                },
                seat,
            );
        }
    }

    async fn drain(self: &Arc<Self>) {
        while let Some(lane) = self.lane.upgrade() {
            // A new plan may allow fewer at once.
            if self.stop.is_cancelled() || self.under_way.load(Ordering::SeqCst) > self.concurrency() {
                return;
            }
            let plan = Arc::clone(&self.plans.borrow());
            let taken = lane.take(plan.stage.batch.messages as usize, plan.stage.batch.bytes);
            if taken.is_empty() {
                return;
            }
            if !lane.is_empty() {
                // Or more.
                self.wake();
            }
            self.bounded(&plan, taken).await;
        }
    }

    /// One batch, dropped when the stage stops and the grace is over: nothing of it was kept, so its callers may try again.
    async fn bounded(self: &Arc<Self>, plan: &Arc<Plan>, taken: Vec<Travelling>) {
        let callers: Vec<Option<Request>> = taken.iter().map(|t| t.message.request).collect();
        let grace = async {
            self.stop.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            biased;
            () = self.batch(plan, taken) => {}
            () = grace => {
                for request in callers.into_iter().flatten() {
                    self.refuse(request, plan);
                }
            }
        }
    }

    async fn batch(self: &Arc<Self>, plan: &Arc<Plan>, taken: Vec<Travelling>) {
        if plan.stage.state {
            // An apply made the stage stateful while requests were on their way in memory, where there is no state.
            for request in taken.into_iter().filter_map(|t| t.message.request) {
                self.refuse(request, plan);
            }
            return;
        }
        let now_ms = self.seams.clock.now_ms();
        let (taken, gone): (Vec<_>, Vec<_>) = taken.into_iter().partition(|t| self.wanted(&t.message, now_ms));
        for late in gone {
            self.expire(&late.message, plan);
        }
        let began = Instant::now();
        let (mut taken, mut by, mut steps) = (taken, Vec::new(), Vec::new());
        if !plan.takes_all() {
            let mut asked = Vec::with_capacity(taken.len());
            for travelling in taken {
                match plan.bypass(&travelling.message) {
                    None => asked.push(travelling),
                    Some(how) => {
                        steps.push(Ok(passed(&travelling.message, how)));
                        by.push(travelling);
                    }
                }
            }
            taken = asked;
        }
        if !by.is_empty() {
            self.settle(plan, by, steps, began, Told::Nothing, &Log::new());
        }
        if taken.is_empty() {
            return;
        }
        let (processed, told) = self.process(plan, &taken).await;
        if in_vain(told, &processed) {
            for late in taken {
                self.expire(&late.message, plan);
            }
            return;
        }
        let log = logged(&taken, processed.log);
        match processed.result {
            Ok(steps) => self.settle(plan, taken, steps.into_iter().map(Ok).collect(), began, told, &log),
            // One by one would not help the host.
            Err(trap) if taken.len() == 1 || trap.kind == TrapKind::Host => {
                let steps = taken.iter().map(|_| Err(trap.clone())).collect();
                self.settle(plan, taken, steps, began, told, &log);
            }
            Err(_) => self.one_by_one(plan, taken, began, log).await,
        }
    }

    /// After a trap: the poison one fails alone, its neighbours go on.
    async fn one_by_one(self: &Arc<Self>, plan: &Arc<Plan>, taken: Vec<Travelling>, began: Instant, mut log: Log) {
        let mut ran = Vec::with_capacity(taken.len());
        let mut steps = Vec::with_capacity(taken.len());
        for one in taken {
            // An endless loop costs its whole time limit each: nobody waits for the rest for ever.
            if self.stop.is_cancelled() {
                if let Some(request) = one.message.request {
                    self.refuse(request, plan);
                }
                continue;
            }
            if !self.wanted(&one.message, self.seams.clock.now_ms()) {
                self.expire(&one.message, plan);
                continue;
            }
            // One of several, so no part of it leaves.
            let (alone, _) = self.process(plan, std::slice::from_ref(&one)).await;
            log.extend(logged(std::slice::from_ref(&one), alone.log));
            steps.push(match alone.result {
                Ok(mut alone) if alone.len() == 1 => Ok(alone.remove(0)),
                Ok(_) => Err(Trap {
                    kind: TrapKind::Contract,
                    detail: "not one outcome for one input".to_owned(),
                    stderr: String::new(),
                }),
                Err(trap) => Err(trap),
            });
            ran.push(one);
        }
        self.settle(plan, ran, steps, began, Told::Nothing, &log);
    }

    /// Work whose deadline passed, or whose caller went away, is not done.
    fn wanted(&self, message: &Message, now_ms: u64) -> bool {
        message
            .request
            .is_some_and(|r| r.deadline_ms >= now_ms && self.seams.backend.waiters().is_waiting(r.id))
    }

    async fn process(&self, plan: &Plan, taken: &[Travelling]) -> (Processed, Told) {
        let inputs: Vec<Input> = taken
            .iter()
            .map(|t| Input::Message {
                message: t.message.clone(),
                attempt: t.attempts + 1,
            })
            .collect();
        let callers = Callers::of(&self.seams.backend, None, &inputs);
        let mut processed = plan
            .bee
            .process(Batch {
                inputs,
                parts: callers.clone().map(|callers| callers as _),
                ..Batch::default()
            })
            .await;
        let told = match callers {
            Some(callers) => callers.end(&mut processed).await,
            None => Told::Nothing,
        };
        (processed, told)
    }

    fn settle(
        self: &Arc<Self>,
        plan: &Arc<Plan>,
        taken: Vec<Travelling>,
        steps: Vec<Result<Step, Trap>>,
        began: Instant,
        told: Told,
        log: &[(Option<Uid>, LogLine)],
    ) {
        let took = began.elapsed();
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let inputs: Vec<Input> = if taken.iter().any(|t| t.message.trace.is_some_and(|c| c.sampled)) {
            taken
                .iter()
                .map(|t| Input::Message {
                    message: t.message.clone(),
                    attempt: 1,
                })
                .collect()
        } else {
            Vec::new()
        };
        self.note(plan, taken.iter().filter(|t| t.attempts == 0).count());
        let span = span_of(&inputs, self.seams.entropy.as_ref());
        let ran = Ran {
            started_us: self.seams.clock.now_us().saturating_sub(took_us),
            took_us,
            batch: u32::try_from(taken.len()).unwrap_or(u32::MAX),
            span: span.map(|(own, _)| own),
            parts_left: told != Told::Nothing,
        };
        let (count, mut done, mut failed, mut dead, mut error) = (taken.len(), 0, 0, 0, None::<String>);
        for (travelling, step) in taken.into_iter().zip(steps) {
            let origin = Origin::message(&travelling.message, travelling.attempts + 1);
            // A lane without room turns its caller away, and nobody waits.
            match effects(plan, &origin, step, ran, &[], self.seams.entropy.as_ref()) {
                Ok(part) => {
                    done += 1;
                    self.apply(plan, part);
                }
                Err(mut failure) => {
                    if ran.parts_left {
                        failure.again = Again::Never;
                    }
                    failed += 1;
                    error.get_or_insert_with(|| format!("{}: {}", failure.reason, failure.detail));
                    dead += usize::from(self.failed(plan, travelling, failure));
                }
            }
        }
        if let Some((own, parent)) = span {
            let links = links_of(&inputs, Some(&own));
            self.seams
                .spans
                .record(span_record(plan, own, parent, links, ran, error.as_deref()));
        }
        self.seams.observer.batch(
            &plan.topic.id,
            BatchReport {
                inputs: count,
                done,
                failed,
                dead,
                took,
                log,
                error: error.as_deref(),
            },
        );
    }

    fn apply(&self, plan: &Plan, part: Part<'_>) {
        for reply in part.replies.into_iter().chain(part.returned) {
            self.seams.backend.waiters().deliver(reply);
        }
        for (to, message) in part.outputs {
            let request = message.request;
            if to.lane.push(Travelling { message, attempts: 0 }).is_ok() {
                if self.paused.swap(false, Ordering::Relaxed) {
                    self.seams.observer.state(&plan.topic.id, None, StageState::Running);
                }
                continue;
            }
            self.paused.store(true, Ordering::Relaxed);
            self.seams.observer.state(
                &plan.topic.id,
                None,
                StageState::Paused {
                    why: format!("the in-memory lane of stage `{}` is full", to.stage),
                },
            );
            if let Some(request) = request {
                self.seams.backend.waiters().deliver(Reply {
                    request: request.id,
                    result: ReplyResult::Overloaded {
                        stage: to.stage.clone(),
                    },
                    hops: Vec::new(),
                });
            }
        }
    }

    /// Another attempt within the deadline, or the cause to the caller. Returns whether the caller got the cause.
    fn failed(self: &Arc<Self>, plan: &Arc<Plan>, travelling: Travelling, mut failure: Failure) -> bool {
        let now_ms = self.seams.clock.now_ms();
        let attempts = travelling.attempts + 1;
        let Some(request) = travelling.message.request else {
            return false;
        };
        let due_ms = retry_at(
            &plan.stage.retry,
            attempts,
            failure.again,
            now_ms,
            self.seams.entropy.as_ref(),
        );
        if let Some(due_ms) = due_ms.filter(|due| *due < request.deadline_ms) {
            // What is not the Bee's fault costs nothing.
            if failure.reason == TrapKind::Host.as_str() || self.may_retry(plan) {
                let wait = Duration::from_millis(due_ms.saturating_sub(now_ms));
                self.again(plan, Travelling { attempts, ..travelling }, request, wait);
                return false;
            }
            failure = spent(failure);
        }
        if failure.reason == TrapKind::Host.as_str() {
            // Not the Bee's fault, and nothing was done.
            self.refuse(request, plan);
            return false;
        }
        self.answer(
            &travelling.message,
            ReplyResult::Failed {
                stage: plan.stage.name.clone(),
                reason: failure.reason,
                detail: failure.detail,
                dead_letter: None,
            },
        );
        true
    }

    /// Inputs that came for the first time.
    fn note(&self, plan: &Plan, first: usize) {
        if plan.stage.retry.budget.is_some() {
            let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
            budget.note(self.seams.clock.now_ms(), first as u64, 0);
        }
    }

    /// By the stage's budget, of which this retry is taken.
    fn may_retry(&self, plan: &Plan) -> bool {
        let Some(rule) = plan.stage.retry.budget else {
            return true;
        };
        let now_ms = self.seams.clock.now_ms();
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let may = budget.left(rule, now_ms) > 0;
        budget.note(now_ms, 0, may.into());
        may
    }

    /// A retry sleeps in its place on the lane. Where there is none, or the stage stops meanwhile, its caller is told to try again.
    fn again(self: &Arc<Self>, plan: &Arc<Plan>, travelling: Travelling, request: Request, wait: Duration) {
        let Some(Ok(asleep)) = self.lane.upgrade().map(|lane| lane.sleep(travelling)) else {
            return self.refuse(request, plan);
        };
        let (this, plan) = (Arc::clone(self), Arc::clone(plan));
        self.tasks.spawn_on(
            async move {
                let awake = tokio::select! {
                    biased;
                    () = this.stop.cancelled() => false,
                    () = tokio::time::sleep(wait) => asleep.wake().is_ok(),
                };
                if !awake {
                    this.refuse(request, &plan);
                }
            },
            &self.runtime,
        );
    }

    /// Certainly not done.
    fn refuse(&self, request: Request, plan: &Plan) {
        self.seams.backend.waiters().deliver(Reply {
            request: request.id,
            result: ReplyResult::Overloaded {
                stage: plan.stage.name.clone(),
            },
            hops: Vec::new(),
        });
    }

    fn expire(&self, message: &Message, plan: &Plan) {
        self.answer(
            message,
            ReplyResult::Expired {
                stage: plan.stage.name.clone(),
            },
        );
    }

    fn answer(&self, message: &Message, result: ReplyResult) {
        if let Some(request) = message.request {
            self.seams.backend.waiters().deliver(Reply {
                request: request.id,
                result,
                hops: message.hops.clone(),
            });
        }
    }
}
