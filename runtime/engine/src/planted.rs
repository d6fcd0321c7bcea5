//! A defect of ours, planted in a host call: only in this crate's own unit tests is it compiled at all.

use std::sync::Arc;

use skep_model::Bytes;
use skep_model::id::{Digest, Uid};
use skep_model::message::Message;
use skep_model::step::{Batch, Input, Processed, TrapKind};
use skep_model::swarm::Instances;

use crate::artifact::{Artifact, Sealed};
use crate::settings::compiler_config;
use crate::{Bee, BeeSettings, Engine, Module, Settings};

#[path = "../tests/it/built.rs"]
mod built;

/// Called by the host call that the zoo's Bee `host-panic` makes.
pub(crate) fn strike(name: &str) {
    assert_ne!(name, "planted: panic", "the queen is gone");
}

/// Trusted, so it need not go to a process of its own.
async fn module(engine: &Arc<Engine>) -> Module {
    let wasm = built::guest("zoo");
    let compiler = wasmtime::Engine::new(&compiler_config()).unwrap();
    let code = compiler.precompile_component(&wasm).unwrap();
    let artifact = Artifact::new(Sealed::of("zoo", &code).unwrap(), None);
    engine.load(Digest::of(&wasm), artifact).await.unwrap()
}

async fn call(bee: &Bee) -> Processed {
    let message = Message {
        uid: Uid([1; 16]),
        key: Some("k".into()),
        headers: Vec::new(),
        payload: Bytes::from_static(b"hi"),
        accepted_ms: 0,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    };
    let input = Input::Message { message, attempt: 1 };
    let inputs = vec![input];
    bee.process(Batch {
        inputs,
        ..Batch::default()
    })
    .await
}

#[tokio::test]
async fn a_panic_of_the_host_ends_the_instance_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let engine = Engine::new(Settings {
        running: 2,
        spare: 2,
        threads: 1,
        ..Settings::new(scratch.path().join("cache"))
    })
    .unwrap();
    let module = module(&engine).await;
    let bee = |name: &str, instances| {
        let settings = BeeSettings {
            keyed: true,
            state: true,
            instances,
            ..BeeSettings::plain(Digest::of(b"stage"))
        };
        module.bee(&name.parse().unwrap(), settings).unwrap()
    };
    let pooled = Instances::Pooled { calls: 100, age_s: 60 };
    let sound = bee("static", pooled);
    // A call that is under way on the same thread meanwhile.
    let slow = bee("sleep", Instances::Fresh);
    let sleeping = tokio::spawn(async move { call(&slow).await });

    // More often than there are places: each must come back.
    for n in 0..6 {
        let struck = bee("host-panic", pooled);
        let trap = call(&struck).await.result.expect_err("the panic");
        assert_eq!(trap.kind, TrapKind::Host, "{trap}");
        assert!(trap.detail.contains("the queen is gone"), "{trap}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert_eq!(struck.spares(), 0, "the instance is gone");

        let steps = call(&sound).await.result.unwrap();
        assert_eq!(steps[0].outcome.respond, [n.to_string()], "the warm instance goes on");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!sleeping.is_finished());
    sleeping.abort();
}
