//! What a Bee may call. WASI 0.2 is linked whole but empty: no files, no sockets, no environment, no arguments.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::id::Digest;
use skep_model::part::{NoPart, Parts};
use skep_model::predict::ModelAccess;
use skep_model::step::LogLevel;
use wasmtime::component::{Linker, LinkerInstance, ResourceTable};
use wasmtime::{Store, StoreContextMut, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtxView, WasiHttpView};

use crate::abi::{ConfigError, Level, ReplyError, SecretError, StateError, TimerError};
use crate::ceiling::Ceiling;
use crate::effects::{Effects, Fault, Refusal, TooMuchWritten};
use crate::egress::{Egress, Outgoing};
use crate::log::{Log, Standard, Stream};
use crate::outside::Outside;
use crate::secret::Granted;
use crate::time::{Sense, insecure_seed};

/// Handles to host resources that one instance may hold.
const HANDLES_MAX: usize = 10_000;
/// Bytes that one host call, or the return of a call, may bring from guest to host. Charged before they are copied.
pub(crate) const HOSTCALL_BYTES_MAX: usize = 4 << 20;
/// Random bytes in one call.
const RANDOM_BYTES_MAX: u64 = 64 << 10;

/// The interfaces that an upload may import: package, interface, and the versions that fit.
pub(crate) const OFFERED: &[(&str, &[&str], Versions)] = &[
    (
        "skep:bee",
        &["types", "step", "state", "timers", "reply", "secrets", "models"],
        Versions::Exactly("0.1.0"),
    ),
    ("wasi:http", &["types", "outgoing-handler"], Versions::Wasi02),
    (
        "wasi:nn",
        &["errors", "tensor", "graph", "inference"],
        Versions::Exactly("0.2.0-rc-2024-10-28"),
    ),
    ("wasi:config", &["store"], Versions::Exactly("0.2.0-rc.1")),
    ("wasi:logging", &["logging"], Versions::Exactly("0.1.0-draft")),
    (
        "wasi:cli",
        &[
            "environment",
            "exit",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
        Versions::Wasi02,
    ),
    ("wasi:clocks", &["monotonic-clock", "wall-clock"], Versions::Wasi02),
    ("wasi:filesystem", &["types", "preopens"], Versions::Wasi02),
    ("wasi:io", &["error", "poll", "streams"], Versions::Wasi02),
    (
        "wasi:random",
        &["random", "insecure", "insecure-seed"],
        Versions::Wasi02,
    ),
    (
        "wasi:sockets",
        &[
            "instance-network",
            "ip-name-lookup",
            "network",
            "tcp",
            "tcp-create-socket",
            "udp",
            "udp-create-socket",
        ],
        Versions::Wasi02,
    ),
];

pub(crate) enum Versions {
    Exactly(&'static str),
    /// 0.2.0 and its releases.
    Wasi02,
}

impl Versions {
    pub(crate) fn fit(&self, version: &str) -> bool {
        match self {
            Self::Exactly(v) => version == *v,
            Self::Wasi02 => version
                .strip_prefix("0.2.")
                .is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit())),
        }
    }
}

/// Of the offered, what a manifest has to grant.
pub(crate) const SENDS_HTTP: &str = "wasi:http/outgoing-handler@";

/// The export that makes a component a module of Bees.
pub(crate) const HANDLER: &str = "skep:bee/handler@0.1.0";

/// What lives in the store of one instance.
pub(crate) struct Host {
    wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    pub(crate) ceiling: Ceiling,
    pub(crate) log: Log,
    pub(crate) sense: Sense,
    pub(crate) effects: Effects,
    pub(crate) http: Outgoing,
    pub(crate) models: Option<Arc<ModelAccess>>,
    pub(crate) outside: Outside,
    /// Objects of `wasi:nn` that the guest holds.
    pub(crate) nn_held: usize,
    config: Arc<BTreeMap<String, String>>,
    /// Of the present call.
    pub(crate) secrets: Arc<Granted>,
    /// Where parts of responses go in the present call.
    pub(crate) parts: Option<Arc<dyn Parts>>,
    /// epoch_ticks that the present call has used, and may use.
    pub(crate) ticks: u64,
    pub(crate) ticks_max: u64,
}

impl Host {
    pub(crate) fn new(
        stage: Digest,
        sense: Sense,
        memory_bytes: usize,
        config: Arc<BTreeMap<String, String>>,
        http: Option<Arc<Egress>>,
        models: Option<Arc<ModelAccess>>,
    ) -> Self {
        let log = Log::default();
        let stream = |stream| Standard {
            log: log.clone(),
            stream,
        };
        let wasi = WasiCtx::builder()
            .stdout(stream(Stream::Stdout))
            .stderr(stream(Stream::Stderr))
            .wall_clock(sense.clone())
            .monotonic_clock(sense.clone())
            .secure_random(sense.clone())
            .insecure_random(sense.clone())
            .insecure_random_seed(insecure_seed(stage))
            .max_random_size(RANDOM_BYTES_MAX)
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        Self {
            wasi,
            table,
            ceiling: Ceiling::new(memory_bytes),
            http: Outgoing::new(http, log.clone()),
            models,
            outside: Outside::default(),
            nn_held: 0,
            log,
            sense,
            effects: Effects::default(),
            config,
            secrets: Arc::default(),
            parts: None,
            ticks: 0,
            ticks_max: 0,
        }
    }

    /// A store with every bound set. `ticks_max` epoch_ticks may pass until [`Host::ticks`] is reset.
    pub(crate) fn into_store(mut self, engine: &wasmtime::Engine, ticks_max: u64) -> Store<Self> {
        self.ticks_max = ticks_max;
        let mut store = Store::new(engine, self);
        store.limiter(|host| &mut host.ceiling);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.set_max_component_handles(HANDLES_MAX);
        store.set_epoch_deadline(1);
        // At each tick others get their turn.
        store.epoch_deadline_callback(|mut store| {
            let host = store.data_mut();
            host.ticks = crate::turns::yields();
            Ok(if host.ticks > host.ticks_max {
                UpdateDeadline::Interrupt
            } else {
                UpdateDeadline::Yield(1)
            })
        });
        store
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.http.hooks,
            table: &mut self.table,
            ctx: &mut self.http.ctx,
        }
    }
}

/// Everything that is offered, and nothing else.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    step(&mut linker.instance("skep:bee/step@0.1.0")?)?;
    state(&mut linker.instance("skep:bee/state@0.1.0")?)?;
    timers(&mut linker.instance("skep:bee/timers@0.1.0")?)?;
    reply(&mut linker.instance("skep:bee/reply@0.1.0")?)?;
    secrets(&mut linker.instance("skep:bee/secrets@0.1.0")?)?;
    crate::models::link(&mut linker.instance("skep:bee/models@0.1.0")?)?;
    crate::nn::link(&mut linker)?;
    config(&mut linker.instance("wasi:config/store@0.2.0-rc.1")?)?;
    logging(&mut linker.instance("wasi:logging/logging@0.1.0-draft")?)?;
    Ok(linker)
}

type Context<'a> = StoreContextMut<'a, Host>;

fn step(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    to.func_wrap("begin", |mut store: Context<'_>, (index,): (u32,)| {
        let host = store.data_mut();
        let input = host.effects.begin(index)?;
        host.sense.begin(input.uid(), input.clock_ms());
        let uid = input.uid();
        host.http.begin_input(uid);
        host.log.set_input(Some(index));
        Ok(())
    })?;
    to.func_wrap("abandon", |mut store: Context<'_>, (index,): (u32,)| {
        store.data_mut().effects.abandon(index)?;
        Ok(())
    })
}

/// What `state.get` gives.
type Got = Result<Option<Vec<u8>>, StateError>;

fn state(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    to.func_wrap("get", |store: Context<'_>, (name,): (String,)| {
        let got: Got = match store.data().effects.get(&name) {
            Ok(value) => Ok(value.map(|v| v.to_vec())),
            Err(refusal) => Err(refusal.into()),
        };
        Ok((got,))
    })?;
    to.func_wrap("put", |mut store: Context<'_>, (name, value): (String, Vec<u8>)| {
        told::<StateError>(store.data_mut().effects.write(name, Some(value)))
    })?;
    to.func_wrap("delete", |mut store: Context<'_>, (name,): (String,)| {
        told::<StateError>(store.data_mut().effects.write(name, None))
    })
}

fn timers(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    to.func_wrap("set", |mut store: Context<'_>, (name, at_ms): (String, u64)| {
        told::<TimerError>(store.data_mut().effects.timer(name, Some(at_ms)))
    })?;
    to.func_wrap("cancel", |mut store: Context<'_>, (name,): (String,)| {
        told::<TimerError>(store.data_mut().effects.timer(name, None))
    })
}

fn reply(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    to.func_wrap_async("part", |store: Context<'_>, (data,): (Vec<u8>,)| {
        let current = store.data().effects.current();
        let parts = store.data().parts.clone();
        Box::new(async move {
            let said = match (current, parts) {
                (None, _) => return Ok((Err(ReplyError::NoStep),)),
                (_, None) => Err(NoPart::NoCaller),
                (Some(input), Some(parts)) => parts.part(input, data.into()).await,
            };
            Ok((match said {
                Ok(()) => Ok(()),
                Err(NoPart::NoCaller) => Err(ReplyError::NoCaller),
                Err(NoPart::Closed) => Err(ReplyError::Closed),
                Err(NoPart::TooLarge(max)) => Err(ReplyError::TooLarge(max)),
                Err(NoPart::TooMuch(max)) => return Err(TooMuchWritten::parts(max).into()),
            },))
        })
    })
}

/// What `secrets.get` gives.
type Secret = Result<Vec<u8>, SecretError>;

fn secrets(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    to.func_wrap("get", |store: Context<'_>, (name,): (String,)| {
        let got: Secret = match store.data().secrets.get(&name) {
            Some(Some(value)) => Ok(value.expose().to_vec()),
            Some(None) => Err(SecretError::Missing),
            None => Err(SecretError::NotGranted),
        };
        Ok((got,))
    })
}

fn config(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    to.func_wrap("get", |store: Context<'_>, (name,): (String,)| {
        #[cfg(test)]
        crate::planted::strike(&name);
        Ok((Ok::<_, ConfigError>(store.data().config.get(&name).cloned()),))
    })?;
    to.func_wrap("get-all", |store: Context<'_>, (): ()| {
        let all: Vec<(String, String)> = store
            .data()
            .config
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        Ok((Ok::<_, ConfigError>(all),))
    })
}

fn logging(to: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    to.func_wrap(
        "log",
        |store: Context<'_>, (level, context, text): (Level, String, String)| {
            store.data().log.line(level.into(), &context, &text);
            Ok(())
        },
    )
}

/// A refusal is told to the guest; a fault ends the call.
fn told<E: From<Refusal>>(done: Result<(), Fault>) -> wasmtime::Result<(Result<(), E>,)> {
    match done {
        Ok(()) => Ok((Ok(()),)),
        Err(Fault::Refused(refusal)) => Ok((Err(refusal.into()),)),
        Err(Fault::TooMuch(fault)) => Err(fault.into()),
    }
}

impl From<Refusal> for StateError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unkeyed => Self::Unkeyed,
            Refusal::NoStep => Self::NoStep,
            Refusal::TooLarge(max) => Self::TooLarge(max),
            Refusal::Quota => Self::Quota,
        }
    }
}

impl From<Refusal> for TimerError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unkeyed => Self::Unkeyed,
            Refusal::NoStep => Self::NoStep,
            // Timers have no values, so only a name can be too large; the WIT has no case for it.
            Refusal::TooLarge(_) | Refusal::Quota => Self::Quota,
        }
    }
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Trace => Self::Trace,
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warn => Self::Warn,
            Level::Error => Self::Error,
            Level::Critical => Self::Critical,
        }
    }
}
