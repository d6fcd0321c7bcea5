//! One live instance of a module, and one call of it.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use skep_model::id::Digest;
use skep_model::limits::EPOCH_TICK_MS;
use skep_model::predict::ModelAccess;
use skep_model::step::{Batch, Disposition, Outcome, Processed};
use wasmtime::component::{ComponentExportIndex, Func, InstancePre, TypedFunc};
use wasmtime::{Store, error::Context as _};

use crate::abi::{BeeResult, InputParam, OutcomeResult};
use crate::effects::Effects;
use crate::egress::Egress;
use crate::host::{HOSTCALL_BYTES_MAX, Host};
use crate::log::Log;
use crate::outside::Outside;
use crate::places::SparePlace;
use crate::secret::Granted;
use crate::ticker::Ticker;
use crate::turns::Turn;
use crate::verdict::{self, Failure, Limits};

pub(crate) type Process<'a> = TypedFunc<(&'a str, &'a [InputParam<'a>]), (Vec<OutcomeResult>,)>;
pub(crate) type Bees = TypedFunc<(), (Vec<BeeResult>,)>;

/// Waits shorter than this are the timer's own.
const FORGIVEN_LEAST: Duration = Duration::from_millis(1);

/// A module ready to be instantiated, its exports found and their types checked.
pub(crate) struct Code {
    pub(crate) pre: InstancePre<Host>,
    pub(crate) process: ComponentExportIndex,
    pub(crate) bees: ComponentExportIndex,
    /// What `pre` runs too; held so that the next module finds it.
    pub(crate) _libraries: Option<Arc<crate::engine::Libraries>>,
}

/// The time that one call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    pub(crate) cpu_ms: u64,
    pub(crate) wall_ms: u64,
}

impl Time {
    pub(crate) fn ticks(self) -> u64 {
        // One more: a call begins between two ticks.
        (self.cpu_ms / EPOCH_TICK_MS).max(1) + 1
    }
}

/// One call of a Bee, and what it may use.
pub(crate) struct Call<'a> {
    pub(crate) bee: &'a str,
    pub(crate) batch: Batch,
    /// State and timers.
    pub(crate) state: bool,
    pub(crate) secrets: Arc<Granted>,
    /// Where they are not the stage's own.
    pub(crate) http: Option<Arc<Egress>>,
    pub(crate) models: Option<Arc<ModelAccess>>,
}

pub(crate) struct Instance {
    store: Store<Host>,
    process: Func,
    bees: Func,
    /// CPU time of its making, and of its warming.
    pub(crate) cost: Duration,
    pub(crate) made: Instant,
    pub(crate) used: Instant,
    pub(crate) calls: u32,
    /// While it waits for a call. None while it runs on a permit of the call.
    pub(crate) place: Option<SparePlace>,
}

impl Instance {
    /// Instantiates; the module's start code runs, under the same limits as a call.
    pub(crate) async fn make(
        code: &Code,
        host: Host,
        ticker: &Ticker,
        time: Time,
        mut turn: Turn,
    ) -> Result<Self, (Failure, Store<Host>)> {
        let mut store = host.into_store(code.pre.engine(), time.ticks());
        let outside = store.data().outside.clone();
        let running = ticker.run();
        let made = guarded(time, &mut turn, &outside, code.pre.instantiate_async(&mut store)).await;
        drop(running);
        let found = made.and_then(|instance| {
            let mut export = |index| instance.get_func(&mut store, index);
            let both = export(code.process).zip(export(code.bees));
            both.context("an export is gone").map_err(Failure::Wasm)
        });
        match found {
            Ok((process, bees)) => {
                let now = Instant::now();
                Ok(Self {
                    store,
                    process,
                    bees,
                    cost: turn.used(),
                    made: now,
                    used: now,
                    calls: 0,
                    place: None,
                })
            }
            Err(failure) => Err((failure, store)),
        }
    }

    /// Lets the guest run before anybody waits for it, by asking once more for its Bees' names: what it touches then is not copied,
    /// page by page, in its first call. `false`: it failed, and the instance is spoilt.
    pub(crate) async fn warm(&mut self, stage: Digest, ticker: &Ticker, time: Time, mut turn: Turn) -> bool {
        // SAFETY: as in `call`.
        let bees: Bees = unsafe { TypedFunc::new_unchecked(self.bees) };
        let host = self.store.data_mut();
        host.ticks = 0;
        host.ticks_max = time.ticks();
        let outside = host.outside.clone();
        self.store.set_epoch_deadline(1);
        let running = ticker.run();
        let named = guarded(time, &mut turn, &outside, bees.call_async(&mut self.store, ())).await;
        drop(running);
        self.cost += turn.used();
        // It said that to nobody: no message was there.
        let _ = self.store.data().log.take();
        self.restart(stage);
        named.is_ok()
    }

    /// Calls the Bee. After a trap the instance is spoilt: the second value says whether it may be used again.
    pub(crate) async fn call(
        &mut self,
        call: Call<'_>,
        ticker: &Ticker,
        time: Time,
        mut turn: Turn,
    ) -> (Processed, bool) {
        self.calls += 1;
        let Call {
            bee,
            mut batch,
            state,
            secrets,
            http,
            models,
        } = call;
        let parts = batch.parts.take();
        let effects = Effects::new(batch, state, HOSTCALL_BYTES_MAX);
        let inputs = Arc::clone(effects.inputs());
        let host = self.store.data_mut();
        host.effects = effects;
        host.parts = parts;
        host.http.begin_call(http);
        if models.is_some() {
            host.models = models;
        }
        host.log.set_secrets(Arc::clone(&secrets));
        host.secrets = Arc::clone(&secrets);
        host.ticks = 0;
        host.ticks_max = time.ticks();
        let outside = host.outside.clone();
        self.store.set_epoch_deadline(1);

        let outcomes = {
            let params: Vec<InputParam<'_>> = inputs.iter().map(InputParam::from).collect();
            // SAFETY: `Code` is made only after a typed lookup of this same export of this same component succeeded
            // with this same type (see `Module::load`).
            let process: Process<'_> = unsafe { TypedFunc::new_unchecked(self.process) };
            let running = ticker.run();
            let called = process.call_async(&mut self.store, (bee, &params));
            let outcomes = guarded(time, &mut turn, &outside, called).await;
            drop(running);
            outcomes
        };
        let host = self.store.data_mut();
        host.http.end_call();
        host.parts = None;
        host.secrets = Arc::default();
        let effects = std::mem::take(&mut host.effects);
        let result = outcomes.and_then(|(outcomes,)| {
            let mut outcomes: Vec<Outcome> = outcomes.into_iter().map(Outcome::from).collect();
            if secrets.redacts() {
                outcomes.iter_mut().for_each(|outcome| redact(outcome, &secrets));
            }
            effects.finish(outcomes).map_err(Failure::Violation)
        });
        self.used = Instant::now();
        match result {
            Ok(steps) => {
                let said = self.store.data().log.take();
                let processed = Processed {
                    result: Ok(steps),
                    log: said.lines,
                };
                (processed, true)
            }
            Err(failure) => (failed(failure, self.store.data(), time), false),
        }
    }

    /// Memory that the guest has grown to, in percent of its limit.
    pub(crate) fn memory_percent(&self) -> usize {
        self.store.data().ceiling.percent()
    }

    /// Bytes that its memories have grown to.
    pub(crate) fn memory(&self) -> u64 {
        self.store.data().ceiling.used()
    }

    /// Before the next call of an instance in which the guest ran.
    pub(crate) fn restart(&mut self, stage: Digest) {
        let host = self.store.data();
        host.sense.restart(stage);
        host.log.set_input(None);
    }
}

/// Why a message failed is read by operators: no secret may be in it. What is published is the Bee's own affair.
fn redact(outcome: &mut Outcome, secrets: &Granted) {
    match &mut outcome.disposition {
        Disposition::Done | Disposition::RetryAfter(_) => {}
        Disposition::Reject(why) => secrets.redact(why),
        Disposition::Fail { reason, detail } => {
            secrets.redact(reason);
            secrets.redact(detail);
        }
    }
}

/// What a call that failed left.
pub(crate) fn failed(failure: Failure, host: &Host, time: Time) -> Processed {
    if let Failure::HostPanic(message) = &failure {
        tracing::error!(message, "a host call panicked: this is a defect of skep");
    }
    let said = Log::take(&host.log);
    let limits = Limits {
        cpu_ms: time.cpu_ms,
        wall_ms: time.wall_ms,
        ceiling: &host.ceiling,
    };
    Processed {
        result: Err(verdict::trap(failure, &limits, said.stderr)),
        log: said.lines,
    }
}

/// Runs a call of the guest, a turn after the other, until it ends, its wall time is over, or one of our host calls panics. What it waits
/// for its turns is not its time; what it waits for outside of them is.
pub(crate) async fn guarded<T>(
    time: Time,
    turn: &mut Turn,
    outside: &Outside,
    call: impl Future<Output = wasmtime::Result<T>>,
) -> Result<T, Failure> {
    let mut call = pin!(call);
    let mut end = pin!(tokio::time::sleep(Duration::from_millis(time.wall_ms)));
    let mut forgiven = Duration::ZERO;
    let mut awaited = None;
    std::future::poll_fn(|cx| {
        loop {
            if let Some(work) = &mut awaited {
                match caught(|| Future::poll(std::pin::Pin::as_mut(work), cx)) {
                    Poll::Ready(Ok(())) => awaited = None,
                    Poll::Ready(Err(panic)) => return Poll::Ready(Err(panic)),
                    Poll::Pending => {}
                }
            }
            // A guest that waits has no use for a turn.
            if awaited.is_none() {
                let polled = turn.poll(cx, |cx| {
                    match caught(|| call.as_mut().poll(cx).map_err(Failure::Wasm)) {
                        Poll::Ready(done) => Poll::Ready(done.and_then(|done| done)),
                        Poll::Pending => Poll::Pending,
                    }
                });
                if polled.is_ready() {
                    return polled;
                }
            }
            while end.as_mut().poll(cx).is_ready() {
                let waited = turn.waited();
                if waited.saturating_sub(forgiven) < FORGIVEN_LEAST {
                    return Poll::Ready(Err(Failure::TimedOut {
                        computing: turn.computes(),
                        outside: awaited.is_some(),
                    }));
                }
                let later = end.deadline() + (waited - forgiven);
                forgiven = waited;
                end.as_mut().reset(later);
            }
            if awaited.is_some() {
                return Poll::Pending;
            }
            awaited = outside.begin(|| end.deadline().into_std() + turn.waited().saturating_sub(forgiven));
            if awaited.is_none() {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Polls, and makes a panic of ours a failure.
fn caught<T>(poll: impl FnOnce() -> Poll<T>) -> Poll<Result<T, Failure>> {
    match std::panic::catch_unwind(AssertUnwindSafe(poll)) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(Failure::HostPanic(message(&*panic)))),
    }
}

/// The text of a panic.
pub(crate) fn message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}
