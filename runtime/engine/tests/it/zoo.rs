//! The zoo: a module with one Bee for each behaviour, built once by cargo, compiled once by the real compiler process.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use skep_engine::{Bee, BeeSettings, Compiler, CompilerLimits, Engine, Module, Settings};
use skep_model::Bytes;
use skep_model::id::{Digest, Uid};
use skep_model::message::Message;
use skep_model::step::{Batch, Due, Input, Processed, Step, Trap};
use tokio::sync::OnceCell;

use crate::built;

pub const CHILD: &str = env!("CARGO_BIN_EXE_skep-compile-child");

/// The zoo's component, built when it is stale.
pub fn wasm() -> Bytes {
    static WASM: OnceLock<Bytes> = OnceLock::new();
    WASM.get_or_init(|| built::guest("zoo").into()).clone()
}

pub fn compiler(limits: CompilerLimits) -> Compiler {
    Compiler::new(CHILD.into(), Vec::new(), limits)
}

/// A folder that goes with the process.
pub fn scratch() -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().unwrap()).path().to_owned()
}

pub fn settings() -> Settings {
    Settings {
        running: 16,
        spare: 8,
        spare_idle: Duration::from_millis(400),
        ..Settings::new(scratch().join("cache"))
    }
}

pub fn engine() -> Arc<Engine> {
    static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();
    Arc::clone(ENGINE.get_or_init(|| Engine::new(settings()).unwrap()))
}

pub async fn module() -> Module {
    static MODULE: OnceCell<Module> = OnceCell::const_new();
    MODULE
        .get_or_init(|| async {
            let wasm = wasm();
            let digest = Digest::of(&wasm);
            let artifact = compiler(CompilerLimits::default()).compile(wasm).await.unwrap();
            engine().load(digest, artifact).await.unwrap()
        })
        .await
        .clone()
}

pub fn stage() -> Digest {
    Digest::of(b"stage")
}

/// Without key, with limits that suit a test.
pub fn plain() -> BeeSettings {
    BeeSettings {
        memory_bytes: 32 << 20,
        ..BeeSettings::plain(stage())
    }
}

/// With key, state and timers.
pub fn stateful() -> BeeSettings {
    BeeSettings {
        keyed: true,
        state: true,
        ..plain()
    }
}

pub async fn bee(name: &str, settings: BeeSettings) -> Bee {
    module().await.bee(&name.parse().unwrap(), settings).unwrap()
}

pub fn message(n: u8, payload: impl Into<Bytes>) -> Input {
    Input::Message {
        message: Message {
            uid: Uid([n; 16]),
            key: None,
            headers: vec![("h".into(), n.to_string())],
            payload: payload.into(),
            accepted_ms: 1_700_000_000_000 + u64::from(n),
            request: None,
            trace: None,
            lineage: None,
            hops: Vec::new(),
        },
        attempt: 1,
    }
}

pub fn keyed(n: u8, key: &str, payload: &'static str) -> Input {
    let mut input = message(n, payload);
    if let Input::Message { message, .. } = &mut input {
        message.key = Some(key.to_owned());
    }
    input
}

pub fn due(n: u8, key: &str, name: &str, at_ms: u64) -> Input {
    Input::Timer(Due {
        uid: Uid([n; 16]),
        key: key.into(),
        name: name.into(),
        at_ms,
        attempt: 2,
    })
}

pub fn batch(inputs: Vec<Input>) -> Batch {
    Batch {
        inputs,
        ..Batch::default()
    }
}

/// One call with one small message.
pub async fn once(name: &str, settings: BeeSettings) -> Processed {
    bee(name, settings).await.process(batch(vec![message(1, "hi")])).await
}

pub fn steps(processed: Processed) -> Vec<Step> {
    match processed.result {
        Ok(steps) => steps,
        Err(trap) => panic!("{trap}\n{}", trap.stderr),
    }
}

pub fn trap(processed: Processed) -> Trap {
    processed.result.expect_err("a trap")
}

/// The one response of each step, as text.
pub fn answers(processed: Processed) -> Vec<String> {
    steps(processed)
        .into_iter()
        .map(|step| {
            let [answer] = step.outcome.respond.try_into().unwrap();
            String::from_utf8(answer.to_vec()).unwrap()
        })
        .collect()
}
