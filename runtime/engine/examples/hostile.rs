//! Components with other code, compiled and run beside an honest one: `cargo run --release --example hostile -- MODULE.wasm BEE COUNT [SEED]`.
//!
//! Each is MODULE with some bytes of its core modules' code changed, kept if it still validates: other constants and operators, so addresses,
//! lengths and numbers of any size, loops without an end, and lies about what a call returned. It takes an upload's way, through the confined
//! compiler, is asked for its Bees, and each is called within small limits. Between them BEE of the honest MODULE is called, and must
//! answer as it did before: else, or should a host call panic, this ends with an error. A seed replays a run.
//!
//! Prints how the uploads and the calls ended.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_engine::{Bee, BeeSettings, Compiler, CompilerLimits, Engine, Settings};
use skep_model::Bytes;
use skep_model::id::{Digest, Uid};
use skep_model::message::Message;
use skep_model::name::BeeName;
use skep_model::step::{Batch, Input, Step, TrapKind};
use wasmparser::{Parser, Payload, Validator};

const PAYLOAD: &[u8] = b"{\"name\":\"you\"}";
/// Bytes that are changed: few, or nothing would be valid.
const CHANGES_MAX: u64 = 6;
/// The honest Bee is called after so many of the others.
const HONEST_EVERY: u64 = 50;
/// What calls of the others may take.
const CPU_MS: u64 = 20;
const WALL_MS: u64 = 200;
const MEMORY_BYTES: usize = 16 << 20;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Where the bodies of functions lie.
fn bodies(wasm: &[u8]) -> Vec<Range<usize>> {
    let payloads = Parser::new(0).parse_all(wasm).filter_map(Result::ok);
    let bodies = payloads.filter_map(|payload| match payload {
        Payload::CodeSectionEntry(body) => Some(body.range()),
        _ => None,
    });
    bodies.collect()
}

/// One that is valid and other than `wasm`.
fn other(wasm: &[u8], bodies: &[Range<usize>], chance: &mut Chance) -> Vec<u8> {
    loop {
        let mut bytes = wasm.to_vec();
        for _ in 0..=chance.below(CHANGES_MAX) {
            let body = &bodies[chance.below(bodies.len() as u64) as usize];
            let at = body.start + chance.below(body.len() as u64) as usize;
            bytes[at] = match chance.below(3) {
                // A bit: mostly another constant or a neighbour of the operator.
                0 => bytes[at] ^ (1 << chance.below(8)),
                // A byte from elsewhere in the code.
                1 => bytes[body.start + chance.below(body.len() as u64) as usize],
                _ => chance.below(256) as u8,
            };
        }
        if bytes != wasm && Validator::new().validate_all(&bytes).is_ok() {
            return bytes;
        }
    }
}

async fn call(bee: &Bee) -> Result<Vec<Step>, TrapKind> {
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
    processed.await.result.map_err(|trap| {
        // The host's own fault is what is looked for, but for a place that nobody gave.
        assert!(!trap.detail.contains("panicked: "), "{trap}");
        trap.kind
    })
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(name), Some(count)) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: hostile MODULE.wasm BEE COUNT [SEED]");
        std::process::exit(2);
    };
    let count: u64 = count.parse().expect("COUNT is a number");
    let seed: u64 = args.next().map_or(1, |seed| seed.parse().expect("SEED is a number"));
    let wasm = std::fs::read(&path).expect("the module can be read");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let engine = Engine::new(Settings::new(dir.path().join("cache"))).expect("the engine");
    let child = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.parent()?.join("skep-compile-child")))
        .expect("the path of the compiler process");
    let compiler = Compiler::new(child, Vec::new(), CompilerLimits::default());
    let name: BeeName = name.parse().expect("a name");
    runtime.block_on(run(&engine, &compiler, &wasm, &name, (count, seed)));
}

async fn run(engine: &Arc<Engine>, compiler: &Compiler, wasm: &[u8], name: &BeeName, (count, seed): (u64, u64)) {
    let admit = async |bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        let artifact = compiler
            .compile(bytes.into())
            .await
            .map_err(|_| "refused by the compiler")?;
        engine.load(digest, artifact).await.map_err(|_| "refused for its Bees")
    };
    let honest = admit(wasm.to_vec()).await.expect("the module is accepted");
    let honest = honest
        .bee(name, BeeSettings::plain(honest.digest()))
        .expect("it has the Bee");
    let answer = call(&honest).await.expect("the honest Bee answers");
    let bodies = bodies(wasm);
    let mut chance = Chance(seed);
    let (mut uploads, mut calls) = (BTreeMap::<&str, u64>::new(), BTreeMap::<&str, u64>::new());
    let (began, mut slowest) = (Instant::now(), Duration::ZERO);
    for n in 1..=count {
        let admitted = admit(other(wasm, &bodies, &mut chance)).await;
        *uploads
            .entry(admitted.as_ref().err().unwrap_or(&"accepted"))
            .or_default() += 1;
        if let Ok(module) = admitted {
            let settings = BeeSettings {
                cpu_ms: CPU_MS,
                wall_ms: WALL_MS,
                memory_bytes: MEMORY_BYTES,
                ..BeeSettings::plain(module.digest())
            };
            for name in module.bees() {
                let bee = module.bee(name, settings.clone()).expect("a Bee that the module names");
                let ended = match call(&bee).await {
                    Ok(_) => "an answer",
                    Err(kind) => kind.as_str(),
                };
                *calls.entry(ended).or_default() += 1;
            }
        }
        if n % HONEST_EVERY == 0 {
            let asked = Instant::now();
            assert_eq!(call(&honest).await.as_ref(), Ok(&answer), "after {n} of seed {seed}");
            slowest = slowest.max(asked.elapsed());
            eprintln!("{n} after {:.0} s", began.elapsed().as_secs_f64());
        }
    }
    println!(
        "{count} components, seed {seed}, in {:.0} s",
        began.elapsed().as_secs_f64()
    );
    println!("  uploads: {uploads:?}");
    println!("  calls: {calls:?}");
    println!(
        "  the honest Bee answered the same {} times, the slowest in {slowest:?}",
        count / HONEST_EVERY
    );
}
