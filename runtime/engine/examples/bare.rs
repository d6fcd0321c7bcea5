//! Measures what the engine adds to wasmtime: a bare loop with the same settings, against `Bee::process`.
//!
//! `cargo run --release --example bare -- MODULE.wasm BEE [CALLS [THREADS]]` prints nanoseconds a call as JSON. The Bee should do next to
//! nothing. `fresh` calls follow at once, `spaced` ones leave the engine time to prepare. Ours are made where a node's stages
//! make them: on a thread that runs guests. All are measured in turns, several times, and the medians are printed.

use std::time::{Duration, Instant};

use skep_engine::{Bee, BeeSettings, Compiler, CompilerLimits, Engine, Settings, config};
use skep_model::Bytes;
use skep_model::id::{Digest, Uid};
use skep_model::message::Message;
use skep_model::name::BeeName;
use skep_model::step::{Batch, Input};
use skep_model::swarm::Instances;
use wasmtime::component::{Component, HasSelf, Linker, ResourceTable};
use wasmtime::{Store, StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

const ROUNDS: usize = 7;
/// Between calls that do not follow at once, so that the next instance is ready.
const SPACE: Duration = Duration::from_micros(300);
const PAYLOAD: &[u8] = &[b'x'; 100];

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../proto/wit",
        world: "module",
        exports: { default: async },
    });
}

use bindings::skep::bee::{models, reply, secrets, state, step, timers, types};
use bindings::wasi::config::store;
use bindings::wasi::logging::logging;

struct Host {
    wasi: WasiCtx,
    table: ResourceTable,
    limits: StoreLimits,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl types::Host for Host {}

impl step::Host for Host {
    fn begin(&mut self, _: u32) {}
    fn abandon(&mut self, _: u32) {}
}

impl state::Host for Host {
    fn get(&mut self, _: String) -> Result<Option<Vec<u8>>, state::Error> {
        Ok(None)
    }
    fn put(&mut self, _: String, _: Vec<u8>) -> Result<(), state::Error> {
        Ok(())
    }
    fn delete(&mut self, _: String) -> Result<(), state::Error> {
        Ok(())
    }
}

impl timers::Host for Host {
    fn set(&mut self, _: String, _: u64) -> Result<(), timers::Error> {
        Ok(())
    }
    fn cancel(&mut self, _: String) -> Result<(), timers::Error> {
        Ok(())
    }
}

impl reply::Host for Host {
    fn part(&mut self, _: Vec<u8>) -> Result<(), reply::Error> {
        Ok(())
    }
}

impl secrets::Host for Host {
    fn get(&mut self, _: String) -> Result<Vec<u8>, secrets::Error> {
        Err(secrets::Error::NotGranted)
    }
}

impl models::Host for Host {
    fn describe(&mut self, _: String) -> Result<models::Signature, models::Error> {
        Err(no_models())
    }
    fn predict(
        &mut self,
        _: String,
        _: Vec<(String, models::Tensor)>,
    ) -> Result<Vec<(String, models::Tensor)>, models::Error> {
        Err(no_models())
    }
}

fn no_models() -> models::Error {
    models::Error {
        kind: models::Trouble::NotGranted,
        text: String::new(),
    }
}

impl store::Host for Host {
    fn get(&mut self, _: String) -> Result<Option<String>, store::Error> {
        Ok(None)
    }
    fn get_all(&mut self) -> Result<Vec<(String, String)>, store::Error> {
        Ok(Vec::new())
    }
}

impl logging::Host for Host {
    fn log(&mut self, _: logging::Level, _: String, _: String) {}
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(name)) = (args.next(), args.next()) else {
        eprintln!("usage: bare MODULE.wasm BEE [CALLS [THREADS]]");
        std::process::exit(2);
    };
    let calls: u32 = args.next().map_or(2_000, |n| n.parse().expect("CALLS is a number"));
    let wasm = Bytes::from(std::fs::read(&path).expect("the module can be read"));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut settings = Settings::new(dir.path().join("cache"));
    if let Some(threads) = args.next() {
        settings.threads = threads.parse().expect("THREADS is a number");
    }

    // As a node has one for its I/O.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");

    let bare_engine = wasmtime::Engine::new(&config(&settings)).expect("an engine");
    let component = Component::new(&bare_engine, &wasm).expect("the module compiles");
    let mut linker = Linker::<Host>::new(&bare_engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).expect("WASI links");
    bindings::Module::add_to_linker::<_, HasSelf<_>>(&mut linker, |host| host).expect("the world links");
    let pre = linker.instantiate_pre(&component).expect("the module links");
    let pre = bindings::ModulePre::new(pre).expect("the module exports the handler");
    let ticking = bare_engine.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(10));
            ticking.increment_epoch();
        }
    });

    let engine = Engine::new(settings).expect("the engine");
    let child = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.parent()?.join("skep-compile-child")))
        .expect("the path of the compiler process");
    let compiler = Compiler::new(child, Vec::new(), CompilerLimits::default());
    let name: BeeName = name.parse().expect("a name");
    let (fresh, pooled) = runtime.block_on(async {
        let digest = Digest::of(&wasm);
        let artifact = compiler.compile(wasm.clone()).await.expect("the module compiles");
        let module = engine.load(digest, artifact).await.expect("the module loads");
        let plain = BeeSettings::plain(digest);
        let warm = BeeSettings {
            instances: Instances::Pooled {
                calls: 1_000_000,
                age_s: 3_600,
            },
            ..plain.clone()
        };
        (
            module.bee(&name, plain).expect("the Bee"),
            module.bee(&name, warm).expect("the Bee"),
        )
    });

    let seat = engine.seats().swap_remove(0);
    let mut results = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let (engine, pre, bee) = (&bare_engine, pre.clone(), name.clone());
        runtime.block_on(async move {
            for _ in 0..calls {
                bare(engine, &pre, bee.as_str()).await;
            }
        });
        results[0].push(each(start, calls));
        let bee = fresh.clone();
        let spaced = async move {
            let mut took = Duration::ZERO;
            for _ in 0..calls / 10 {
                let start = Instant::now();
                ours(&bee).await;
                took += start.elapsed();
                tokio::time::sleep(SPACE).await;
            }
            took
        };
        let spaced = runtime
            .block_on(seat.spawn(spaced))
            .expect("calls that follow with space");
        results[3].push(spaced.as_nanos() / u128::from((calls / 10).max(1)));
        for (bee, to) in [(&fresh, 1), (&pooled, 2)] {
            let bee = bee.clone();
            let start = Instant::now();
            let called = seat.spawn(async move {
                for _ in 0..calls {
                    ours(&bee).await;
                    // As a stage does at the latest when it has no more input; what a call leaves is cleared away then.
                    tokio::task::yield_now().await;
                }
            });
            runtime.block_on(called).expect("calls that follow at once");
            results[to].push(each(start, calls));
        }
    }
    let [bare, fresh, pooled, spaced] = results.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    println!(
        "{{\"bare_ns\": {bare}, \"fresh_ns\": {fresh}, \"pooled_ns\": {pooled}, \"spaced_ns\": {spaced}, \"fresh_to_bare\": {:.2}}}",
        fresh as f64 / bare as f64
    );
}

fn each(start: Instant, calls: u32) -> u128 {
    start.elapsed().as_nanos() / u128::from(calls.max(1))
}

async fn bare(engine: &wasmtime::Engine, pre: &bindings::ModulePre<Host>, bee: &str) {
    let host = Host {
        wasi: WasiCtx::builder().build(),
        table: ResourceTable::new(),
        limits: StoreLimitsBuilder::new().memory_size(256 << 20).build(),
    };
    let mut store = Store::new(engine, host);
    store.limiter(|host| &mut host.limits);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    let instance = pre.instantiate_async(&mut store).await.expect("it is instantiated");
    let input = bindings::exports::skep::bee::handler::Input::One(types::Message {
        uid: vec![1; 16],
        key: None,
        headers: Vec::new(),
        payload: PAYLOAD.to_vec(),
        accepted_ms: 1,
        attempt: 1,
    });
    let handler = instance.skep_bee_handler();
    let outcomes = handler
        .call_process(&mut store, bee, &[input])
        .await
        .expect("it answers");
    assert_eq!(outcomes.len(), 1);
}

async fn ours(bee: &Bee) {
    let message = Message {
        uid: Uid([1; 16]),
        key: None,
        headers: Vec::new(),
        payload: Bytes::from_static(PAYLOAD),
        accepted_ms: 1,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    };
    let inputs = vec![Input::Message { message, attempt: 1 }];
    let processed = bee.process(Batch {
        inputs,
        ..Batch::default()
    });
    assert_eq!(processed.await.result.expect("it answers").len(), 1);
}
