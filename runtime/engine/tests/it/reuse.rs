use std::time::Duration;

use skep_engine::{BeeSettings, CompilerLimits, Engine, Settings};
use skep_model::id::Digest;
use skep_model::swarm::Instances;

use crate::zoo::{answers, batch, bee, compiler, message, plain, settings, trap, wasm};

fn pooled(calls: u32, age_s: u32) -> BeeSettings {
    BeeSettings {
        instances: Instances::Pooled { calls, age_s },
        ..plain()
    }
}

async fn count(bee: &skep_engine::Bee) -> String {
    answers(bee.process(batch(vec![message(1, "x")])).await).remove(0)
}

#[tokio::test]
async fn nothing_leaks_from_batch_to_batch() {
    let fresh = bee("static", plain()).await;
    for _ in 0..20 {
        assert_eq!(count(&fresh).await, "0");
    }
}

#[tokio::test]
async fn instances_are_prepared_ahead_and_go_when_idle() {
    let fresh = bee("static", plain()).await;
    assert_eq!(fresh.spares(), 0);
    count(&fresh).await;
    wait_for(|| fresh.spares() > 0).await;
    wait_for(|| fresh.spares() == 0).await;
    assert_eq!(count(&fresh).await, "0");
}

/// An engine that takes every instance for one that is slow to make.
async fn slow(name: &str, instances: Instances, config: &[(&str, &str)]) -> skep_engine::Bee {
    let settings = Settings {
        slow_to_make: Duration::ZERO,
        spare_idle: Duration::from_secs(60),
        ..settings()
    };
    let wasm = wasm();
    let digest = Digest::of(&wasm);
    let artifact = compiler(CompilerLimits::default()).compile(wasm).await.unwrap();
    let module = Engine::new(settings).unwrap().load(digest, artifact).await.unwrap();
    let config = config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let settings = BeeSettings {
        config,
        instances,
        ..plain()
    };
    module.bee(&name.parse().unwrap(), settings).unwrap()
}

#[tokio::test]
async fn what_is_prepared_is_warmed_and_nobody_can_tell_by_more_than_the_time() {
    let named = slow("named", Instances::Fresh, &[]).await;
    // The first is made where the call waits for it: a turn of the guest more would be waited for as well.
    assert_eq!(count(&named).await, "0");
    wait_for(|| named.spares() == 2).await;
    let processed = named.process(batch(vec![message(1, "x")])).await;
    assert_eq!(processed.log, [], "what it said while nobody called is nobody's");
    assert_eq!(answers(processed), ["1"]);

    let random = slow("random", Instances::Fresh, &[]).await;
    let cold = count(&random).await;
    wait_for(|| random.spares() == 2).await;
    assert_eq!(count(&random).await, cold);
}

/// What follows its call is short, so it happens on the thread of the call, before the next call of the same caller.
#[tokio::test]
async fn a_pooled_instance_is_there_for_the_next_call_however_slowly_it_was_made() {
    let warm = slow(
        "static",
        Instances::Pooled {
            calls: 1_000,
            age_s: 60,
        },
        &[],
    )
    .await;
    for n in 0..100 {
        assert_eq!(count(&warm).await, n.to_string());
    }
}

#[tokio::test]
async fn what_cannot_be_warmed_is_made_for_each_call() {
    let sour = slow("static", Instances::Fresh, &[("sour", "")]).await;
    for _ in 0..5 {
        assert_eq!(count(&sour).await, "0");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(sour.spares(), 0);
    }
}

async fn wait_for(what: impl Fn() -> bool) {
    for _ in 0..500 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen within 5 s");
}

#[tokio::test]
async fn a_pooled_instance_is_used_again_until_its_calls_are_up() {
    let warm = bee("static", pooled(3, 60)).await;
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(count(&warm).await);
        // It is put back just after the answer.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(seen, ["0", "1", "2", "0", "1", "2", "0"]);
}

#[tokio::test]
async fn a_pooled_instance_grows_old() {
    let warm = bee("static", pooled(1_000, 0)).await;
    assert_eq!(count(&warm).await, "0");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(count(&warm).await, "0");
    assert_eq!(warm.spares(), 0);
}

#[tokio::test]
async fn a_trap_ends_a_pooled_instance() {
    let warm = bee("panic", pooled(1_000, 60)).await;
    for _ in 0..3 {
        trap(warm.process(batch(vec![message(1, "x")])).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(warm.spares(), 0);
    }
}

#[tokio::test]
async fn a_reused_instance_starts_with_a_blank_sense_and_log() {
    let warm = bee("log", pooled(1_000, 60)).await;
    for _ in 0..3 {
        let processed = warm.process(batch(vec![message(1, "x")])).await;
        assert_eq!(processed.log.len(), 3);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
