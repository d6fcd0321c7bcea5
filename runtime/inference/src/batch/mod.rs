//! Many calls of one model become one run.
//!
//! [`queue`] decides, purely; here are the calls, the runs and the clock. A call that finds the model idle runs on its own thread and pays two
//! locks. What comes meanwhile is put together and run by the model's threads, one run after another, so the more calls there are
//! the larger the runs. Nobody is made to wait for company unless the policy says so.

pub mod queue;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use skep_model::tensor::Tensor;
use tokio::sync::oneshot;

pub use queue::{Bounds, Policy};
pub use stats::{Counts, ROWS_BUCKETS, Reading, Stats, TIME_BUCKETS_US};

use crate::backend::{InferError, Model, Named};
use crate::limits::{BATCH_ROWS_MAX, INLINE_US_MAX, RUN_TIME_MAX};
use crate::threads::{Again, Permit, Threads, Work};
use queue::{Call, Next, Queue};

/// Between whom rows are shared evenly: a tenant, mostly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subject(u64);

impl Subject {
    /// Of a name. Two names that fell together, by a chance of 2⁻⁶⁴, would share one turn.
    #[must_use]
    pub fn named(name: &str) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(KEYS.hash_one(name))
    }
}

/// One model with its calls.
pub struct Batcher {
    model: Model,
    threads: Arc<Threads>,
    state: Mutex<State>,
    stats: Stats,
    /// Where the times of the queue begin.
    started: Instant,
    /// What one row takes, about, in nanoseconds: decides whether a run may be on a thread that has other things to do.
    row_ns: AtomicU64,
    groups: RandomState,
}

struct State {
    queue: Queue<Job>,
    /// Whether the threads were asked and have not come yet.
    asked: bool,
    /// When they come by themselves.
    timer_us: Option<u64>,
    stopped: bool,
}

/// One call on its way.
struct Job {
    inputs: Named,
    rows: u64,
    since: Instant,
    deadline: Option<Instant>,
    reply: Reply,
}

type Answer = Result<Named, InferError>;

enum Reply {
    Async(oneshot::Sender<Answer>),
    Blocking(mpsc::SyncSender<Answer>),
}

impl Reply {
    /// Whoever went away has no use for it.
    fn send(self, answer: Answer) {
        match self {
            Self::Async(to) => drop(to.send(answer)),
            Self::Blocking(to) => drop(to.send(answer)),
        }
    }
}

impl fmt::Debug for Batcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}", self.model, self.lock().queue.policy())
    }
}

impl Batcher {
    /// A model whose rows depend on each other is not batched, whatever the policy says; nor one that takes longer for rows together.
    #[must_use]
    pub fn new(model: Model, policy: Policy, bounds: Bounds, threads: Arc<Threads>) -> Arc<Self> {
        let runs_max = if model.parallel() { threads.number() } else { 1 };
        let policy = if model.batching_pays() { policy } else { Policy::off() };
        Arc::new(Self {
            row_ns: AtomicU64::new(u64::try_from(model.tried().as_nanos()).unwrap_or(u64::MAX)),
            model,
            threads,
            state: Mutex::new(State {
                queue: Queue::new(policy, bounds, runs_max),
                asked: false,
                timer_us: None,
                stopped: false,
            }),
            stats: Stats::default(),
            started: Instant::now(),
            groups: RandomState::new(),
        })
    }

    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    #[must_use]
    pub fn stats(&self) -> Reading {
        self.stats.read()
    }

    /// Rows and bytes that wait.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        self.lock().queue.waiting()
    }

    /// How calls are put together.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.lock().queue.policy()
    }

    /// From the next run on.
    pub fn set_policy(&self, policy: Policy) {
        if self.model.batching_pays() {
            self.lock().queue.set_policy(policy);
        }
    }

    /// Calls the model. Where it is idle and small (half a millisecond for all that waits) the run is right here; else this waits without holding
    /// a thread. (Handing joined runs to the model's threads, so that callers gather the next meanwhile, cost a quarter more CPU a call.)
    /// Before a run here others whose turn it is on this thread come first, once: so calls meet that one thread makes, and each
    /// of them would else be run before the next could begin. Dropped, a call is not run, unless it runs already.
    ///
    /// A call with a deadline needs a tokio runtime with its clock around it; one without needs no runtime.
    ///
    /// # Errors
    /// See [`InferError`]. An input that does not fit is found before anything waits, so no call fails for another's.
    pub async fn infer(self: &Arc<Self>, subject: Subject, inputs: Named, deadline: Option<Instant>) -> Answer {
        let rows = self.enter(&inputs, deadline)?;
        let began = self.short(rows) && self.lock().queue.begin_at_once();
        if began && self.lock().queue.policy().off {
            if let Some(permit) = self.threads.permit() {
                return self.run_here(&inputs, rows, deadline, permit);
            }
            self.ended();
        } else if began {
            let began = Began(Some(self));
            // As long as more come. Who is alone lets others come first once.
            let (mut came, most) = (0, self.lock().queue.policy().max_rows);
            loop {
                tokio::task::yield_now().await;
                let waiting = self.lock().queue.waiting().0;
                if waiting <= came || waiting >= most {
                    break;
                }
                came = waiting;
            }
            // Ends what was begun and begins anew, with what came meanwhile.
            began.end();
            if let Some(permit) = self.threads.permit() {
                let waiting = {
                    let mut state = self.lock();
                    if state.queue.begin_at_once() {
                        None
                    } else {
                        Some(state.queue.waiting().0 as u64)
                    }
                };
                let Some(waiting) = waiting else {
                    return self.run_here(&inputs, rows, deadline, permit);
                };
                if self.short(waiting + rows) {
                    let (reply, answer) = oneshot::channel();
                    let id = self.push(subject, (inputs, rows), deadline, Reply::Async(reply), false)?;
                    self.run_waiting(permit);
                    return self.answered(id, answer, deadline).await;
                }
            }
        }
        let (reply, answer) = oneshot::channel();
        let id = self.push(subject, (inputs, rows), deadline, Reply::Async(reply), true)?;
        self.answered(id, answer, deadline).await
    }

    async fn answered(&self, id: u64, mut answer: oneshot::Receiver<Answer>, deadline: Option<Instant>) -> Answer {
        let mut given_up = GivesUp { of: self, id: Some(id) };
        let stopping = |_| InferError::Stopping;
        // A run that was right here has answered already.
        if let Ok(answer) = answer.try_recv() {
            given_up.id = None;
            return answer;
        }
        let Some(deadline) = deadline else {
            let answer = answer.await;
            given_up.id = None;
            return answer.map_err(stopping)?;
        };
        match tokio::time::timeout_at(deadline.into(), &mut answer).await {
            Ok(answer) => {
                given_up.id = None;
                answer.map_err(stopping)?
            }
            Err(_) => Err(self.expire(given_up.id.take())),
        }
    }

    /// As [`Batcher::infer`], for threads that may block: whatever the model's size, it runs right here if nothing is before it.
    ///
    /// # Errors
    /// As [`Batcher::infer`].
    pub fn infer_blocking(self: &Arc<Self>, subject: Subject, inputs: Named, deadline: Option<Instant>) -> Answer {
        let rows = self.enter(&inputs, deadline)?;
        if self.lock().queue.begin_at_once() {
            if let Some(permit) = self.threads.permit() {
                return self.run_here(&inputs, rows, deadline, permit);
            }
            self.ended();
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let id = self.push(subject, (inputs, rows), deadline, Reply::Blocking(reply), true)?;
        let Some(deadline) = deadline else {
            return answer.recv().unwrap_or(Err(InferError::Stopping));
        };
        match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => answer,
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(InferError::Stopping),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(self.expire(Some(id))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    /// What must be true of a call before anything waits for it. Answers its rows.
    fn enter(&self, inputs: &Named, deadline: Option<Instant>) -> Result<u64, InferError> {
        let rows = self.model.check(inputs)?;
        if rows > BATCH_ROWS_MAX as u64 {
            return Err(InferError::Rows {
                rows,
                max: BATCH_ROWS_MAX as u64,
            });
        }
        self.stats.calls.fetch_add(1, Ordering::Relaxed);
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.stats.expired.fetch_add(1, Ordering::Relaxed);
            return Err(InferError::Deadline);
        }
        Ok(rows)
    }

    /// Whether so many rows may be run on a thread that has other things to do.
    fn short(&self, rows: u64) -> bool {
        self.row_ns.load(Ordering::Relaxed).saturating_mul(rows) <= INLINE_US_MAX * 1_000
    }

    fn run_here(self: &Arc<Self>, inputs: &Named, rows: u64, deadline: Option<Instant>, permit: Permit) -> Answer {
        let answer = self.run(inputs, rows, end(Instant::now(), deadline));
        drop(permit);
        self.stats.waited(Duration::ZERO);
        self.count(&answer);
        self.ended();
        answer
    }

    /// One run of what waits, on this thread.
    fn run_waiting(self: &Arc<Self>, permit: Permit) {
        let now_us = self.us(Instant::now());
        let mut state = self.lock();
        let expired = state.queue.expired(now_us);
        let next = state.queue.next(now_us);
        drop(state);
        self.expired(expired);
        if let Next::Run(batch) = next {
            self.execute(batch);
            drop(permit);
            self.ended();
        } else {
            drop(permit);
            let state = self.lock();
            self.ask(state, now_us);
        }
    }

    fn push(
        self: &Arc<Self>,
        subject: Subject,
        (inputs, rows): (Named, u64),
        deadline: Option<Instant>,
        reply: Reply,
        ask: bool,
    ) -> Result<u64, InferError> {
        let now = Instant::now();
        let now_us = self.us(now);
        let bytes = inputs.iter().map(|(_, tensor)| tensor.bytes().len()).sum();
        let group = self.group(subject, &inputs, self.policy().together);
        let what = Job {
            inputs,
            rows,
            since: now,
            deadline,
            reply,
        };
        let call = Call {
            subject: subject.0,
            rows: rows as usize,
            bytes,
            group,
            deadline_us: deadline.map(|at| self.us(at)),
            what,
        };
        let mut state = self.lock();
        if state.stopped {
            return Err(InferError::Stopping);
        }
        let pushed = state.queue.push(call, now_us);
        // What waits already is seen to, whether or not there is room for this one.
        if ask || pushed.is_err() {
            self.ask(state, now_us);
        } else {
            drop(state);
        }
        pushed.map_err(|full| {
            self.stats.busy.fetch_add(1, Ordering::Relaxed);
            InferError::Busy {
                waiting_rows: full.rows,
                waiting_bytes: full.bytes,
                max_rows: full.bounds.rows,
                max_bytes: full.bounds.bytes,
            }
        })
    }

    /// Asks the threads to come, if there is something for them that they do not know of.
    fn ask(self: &Arc<Self>, mut state: MutexGuard<'_, State>, now_us: u64) {
        let Some(at) = state.queue.wants(now_us) else { return };
        let known = state.asked || state.timer_us.is_some_and(|timer| timer <= at && at > now_us);
        if known {
            return;
        }
        state.asked = true;
        drop(state);
        self.threads.ask(Arc::clone(self) as Arc<dyn Work>);
    }

    fn ended(self: &Arc<Self>) {
        let mut state = self.lock();
        state.queue.ended();
        let now_us = self.us(Instant::now());
        self.ask(state, now_us);
    }

    /// Calls of other subjects are of other groups, unless the policy is to run them together, and calls whose shapes differ beside the rows.
    ///
    /// That a model's rows do not depend on each other is tried, not proven: a file that was made for it could carry one tenant's rows into
    /// another's answers, so rows of two tenants are in one run only where both chose that. Should two shapes fall together, they cannot be joined and run alone.
    fn group(&self, subject: Subject, inputs: &Named, together: bool) -> u64 {
        let subject = if together { Subject(0) } else { subject };
        let fixed = self
            .model
            .signature()
            .inputs
            .iter()
            .all(|port| port.shape.iter().skip(1).all(Option::is_some));
        if fixed {
            return subject.0;
        }
        let mut hasher = self.groups.build_hasher();
        subject.hash(&mut hasher);
        for port in &self.model.signature().inputs {
            let shape = inputs
                .iter()
                .find(|(name, _)| *name == port.name)
                .map(|(_, tensor)| tensor.shape().get(1..));
            shape.hash(&mut hasher);
        }
        hasher.finish()
    }

    fn expire(&self, id: Option<u64>) -> InferError {
        let job = id.and_then(|id| self.lock().queue.take(id));
        // One that is under way is counted when it ends.
        self.stats
            .expired
            .fetch_add(u64::from(job.is_some()), Ordering::Relaxed);
        InferError::Deadline
    }

    fn run(&self, inputs: &Named, rows: u64, until: Instant) -> Answer {
        let begun = Instant::now();
        let answer = self.model.run_checked(inputs, until);
        let took = begun.elapsed();
        self.stats.ran(rows, took);
        let each = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / rows.max(1);
        // An eighth of what is new: one run that was disturbed changes little.
        let before = self.row_ns.load(Ordering::Relaxed);
        self.row_ns.store(before - before / 8 + each / 8, Ordering::Relaxed);
        answer
    }

    fn count(&self, answer: &Answer) {
        self.stats
            .failed
            .fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
    }

    fn answer(&self, job: Job, answer: Answer) {
        self.count(&answer);
        job.reply.send(answer);
    }

    /// One run for all, until the last deadline of them. If it fails, each is run alone, so that only the one that it failed for fails; if it
    /// is late, all are.
    fn execute(&self, mut jobs: Vec<Job>) {
        let now = Instant::now();
        jobs.iter()
            .for_each(|job| self.stats.waited(now.saturating_duration_since(job.since)));
        if jobs.len() > 1 {
            match self.together(&jobs) {
                Some(Ok(answers)) => {
                    for (job, answer) in jobs.into_iter().zip(answers) {
                        self.answer(job, Ok(answer));
                    }
                    return;
                }
                Some(Err(late)) => {
                    jobs.into_iter().for_each(|job| self.answer(job, Err(late.clone())));
                    return;
                }
                None => {
                    for job in jobs {
                        let answer = self.run_alone(&job);
                        self.answer(job, answer);
                    }
                    return;
                }
            }
        }
        if let Some(job) = jobs.pop() {
            let answer = self.run(&job.inputs, job.rows, end(now, job.deadline));
            self.answer(job, answer);
        }
    }

    /// A model that panicked in a joined run gets to run the calls of that run, and then no more: most of them are well.
    fn run_alone(&self, job: &Job) -> Answer {
        let begun = Instant::now();
        let answer = self.model.run_once_more(&job.inputs, end(begun, job.deadline));
        self.stats.ran(job.rows, begun.elapsed());
        answer
    }

    /// None: they cannot be joined, or the run failed, or what came back cannot be parted. An error: it was late.
    fn together(&self, jobs: &[Job]) -> Option<Result<Vec<Named>, InferError>> {
        let now = Instant::now();
        let until = jobs.iter().map(|job| end(now, job.deadline)).max()?;
        let rows = jobs.iter().map(|job| job.rows).sum();
        let mut joined = Vec::with_capacity(self.model.signature().inputs.len());
        for port in &self.model.signature().inputs {
            let of = |job: &'_ Job| job.inputs.iter().position(|(name, _)| *name == port.name);
            let parts: Option<Vec<&Tensor>> = jobs.iter().map(|job| of(job).map(|at| &job.inputs[at].1)).collect();
            joined.push((port.name.clone(), Tensor::join(&parts?).ok()?));
        }
        let outputs = match self.run(&joined, rows, until) {
            Ok(outputs) => outputs,
            Err(InferError::Late) => return Some(Err(InferError::Late)),
            Err(_) => return None,
        };
        if outputs
            .iter()
            .any(|(_, tensor)| tensor.shape().is_empty() || tensor.rows() != rows)
        {
            return None;
        }
        let mut from = 0;
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let part = |(name, tensor): &(String, Tensor)| Some((name.clone(), tensor.slice(from, job.rows).ok()?));
            answers.push(outputs.iter().map(part).collect::<Option<Named>>()?);
            from += job.rows;
        }
        Some(Ok(answers))
    }
}

/// When a run has to end that begins now.
fn end(now: Instant, deadline: Option<Instant>) -> Instant {
    let most = now + RUN_TIME_MAX;
    deadline.map_or(most, |deadline| deadline.min(most))
}

/// A run that was begun for a call that lets others come first. Dropped with its call, it ends, and the threads see to what waits behind it.
struct Began<'a>(Option<&'a Arc<Batcher>>);

impl Began<'_> {
    /// It ends, and whoever says so sees to what waits.
    fn end(mut self) {
        if let Some(of) = self.0.take() {
            of.lock().queue.ended();
        }
    }
}

impl Drop for Began<'_> {
    fn drop(&mut self) {
        if let Some(of) = self.0 {
            of.ended();
        }
    }
}

/// Takes a call out of the queue if its future is dropped.
struct GivesUp<'a> {
    of: &'a Batcher,
    id: Option<u64>,
}

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let job = self.of.lock().queue.take(id);
            drop(job);
        }
    }
}

impl Work for Batcher {
    fn work(self: Arc<Self>) -> Again {
        let now = Instant::now();
        let now_us = self.us(now);
        let mut state = self.lock();
        state.asked = false;
        state.timer_us = state.timer_us.filter(|timer| *timer > now_us);
        let expired = state.queue.expired(now_us);
        let batch = match state.queue.next(now_us) {
            Next::Run(batch) => batch,
            Next::At(at) => {
                let again = self.come_back(&mut state, at);
                drop(state);
                self.expired(expired);
                return again;
            }
            Next::Nothing => {
                drop(state);
                self.expired(expired);
                return Again::No;
            }
        };
        // Where runs go beside each other another thread may have the next one.
        self.ask(state, now_us);
        self.expired(expired);
        self.execute(batch);
        let mut state = self.lock();
        state.queue.ended();
        let now_us = self.us(Instant::now());
        match state.queue.wants(now_us) {
            Some(at) if at <= now_us && !state.asked => {
                state.asked = true;
                Again::Now
            }
            Some(at) if at > now_us => self.come_back(&mut state, at),
            _ => Again::No,
        }
    }

    fn stopped(&self) {
        let mut state = self.lock();
        state.stopped = true;
        let left = state.queue.drain();
        drop(state);
        left.into_iter()
            .for_each(|job| self.answer(job, Err(InferError::Stopping)));
    }
}

impl Batcher {
    /// One timer is enough, if it is early enough.
    fn come_back(&self, state: &mut State, at_us: u64) -> Again {
        if state.timer_us.is_some_and(|timer| timer <= at_us) {
            return Again::No;
        }
        state.timer_us = Some(at_us);
        Again::At(self.started + Duration::from_micros(at_us))
    }

    fn expired(&self, jobs: Vec<Job>) {
        for job in jobs {
            self.stats.expired.fetch_add(1, Ordering::Relaxed);
            job.reply.send(Err(InferError::Deadline));
        }
    }
}
