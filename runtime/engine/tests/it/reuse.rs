use std::time::Duration;

use skep_engine::BeeSettings;
use skep_model::swarm::Instances;

use crate::zoo::{answers, batch, bee, message, plain, trap};

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
