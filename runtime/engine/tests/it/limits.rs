use std::time::{Duration, Instant};

use skep_engine::BeeSettings;
use skep_model::limits;
use skep_model::step::TrapKind;

use crate::zoo::{answers, batch, bee, message, once, plain, steps, trap};

#[tokio::test]
async fn a_panic_says_what_it_said() {
    let trap = trap(once("panic", plain()).await);
    assert_eq!(trap.kind, TrapKind::Trap);
    assert!(trap.detail.starts_with("panicked at "), "{trap}");
    assert!(trap.detail.contains("the hive is on fire: hi"), "{trap}");
    assert!(trap.stderr.contains("the hive is on fire"), "{}", trap.stderr);
}

#[tokio::test]
async fn an_endless_loop_ends_by_cpu_time() {
    let settings = BeeSettings { cpu_ms: 200, ..plain() };
    let start = Instant::now();
    let trap = trap(once("loop", settings).await);
    assert_eq!(trap.kind, TrapKind::CpuTime, "{trap}");
    assert!(trap.detail.contains("200 ms"), "{trap}");
    let took = start.elapsed();
    assert!(
        took > Duration::from_millis(150) && took < Duration::from_secs(20),
        "{took:?}"
    );
}

#[tokio::test]
async fn where_both_limits_are_the_same_a_loop_is_still_told_from_a_sleep() {
    let settings = BeeSettings {
        cpu_ms: 300,
        wall_ms: 300,
        ..plain()
    };
    let slept = trap(once("sleep", settings.clone()).await);
    assert_eq!(slept.kind, TrapKind::WallTime, "{slept}");
    assert!(slept.detail.contains("300 ms"), "{slept}");
    let start = Instant::now();
    let looped = trap(once("loop", settings).await);
    assert!(
        matches!(looped.kind, TrapKind::CpuTime | TrapKind::WallTime),
        "{looped}"
    );
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn loops_on_every_thread_do_not_stop_the_others() {
    let settings = BeeSettings {
        cpu_ms: 600_000,
        wall_ms: 2_000,
        ..plain()
    };
    let busy = bee("loop", settings).await;
    let loops: Vec<_> = (0..6)
        .map(|n| {
            let busy = busy.clone();
            tokio::spawn(async move { busy.process(batch(vec![message(n, "")])).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    assert_eq!(answers(once("echo", plain()).await), ["hi"]);
    assert!(start.elapsed() < Duration::from_millis(1_500), "{:?}", start.elapsed());
    for one in loops {
        trap(one.await.unwrap());
    }
}

#[tokio::test]
async fn a_caller_who_leaves_stops_the_guest() {
    // All places but one taken by loops that nobody waits for any more.
    let busy = bee("loop", plain()).await;
    for n in 0..15 {
        let call = busy.process(batch(vec![message(n, "")]));
        assert!(tokio::time::timeout(Duration::from_millis(5), call).await.is_err());
    }
    let calls = (0..16).map(|_| async { answers(once("echo", plain()).await) });
    for call in calls {
        let answer = tokio::time::timeout(Duration::from_secs(10), call)
            .await
            .expect("places are free again");
        assert_eq!(answer, ["hi"]);
    }
}

#[tokio::test]
async fn a_memory_bomb_meets_its_limit() {
    let trap = trap(once("bomb", plain()).await);
    assert_eq!(trap.kind, TrapKind::Memory, "{trap}");
    assert!(trap.detail.contains(&(32 << 20).to_string()), "{trap}");
}

#[tokio::test]
async fn deep_recursion_ends_the_instance_only() {
    let trap = trap(once("recurse", plain()).await);
    assert_eq!(trap.kind, TrapKind::Trap, "{trap}");
    assert_eq!(answers(once("echo", plain()).await), ["hi"]);
}

#[tokio::test]
async fn an_exit_is_a_trap() {
    let trap = trap(once("exit", plain()).await);
    assert_eq!(trap.kind, TrapKind::Trap, "{trap}");
    assert!(trap.detail.contains("ended its program"), "{trap}");
}

#[tokio::test]
async fn a_flood_on_stderr_is_bounded_and_its_end_is_kept() {
    let processed = once("stderr-flood", plain()).await;
    let logged: usize = processed.log.iter().map(|l| l.text.len()).sum();
    assert!(logged <= limits::LOG_BYTES_PER_CALL_MAX + 1_024, "{logged}");
    let trap = trap(processed);
    assert!(trap.stderr.len() <= limits::STDERR_BYTES_MAX);
    assert!(trap.detail.contains("after the flood"), "{trap}");
}

#[tokio::test]
async fn a_gigabyte_of_output_costs_the_host_nothing() {
    let roomy = BeeSettings {
        memory_bytes: 256 << 20,
        ..plain()
    };
    for name in ["huge-output", "many-outcomes"] {
        let trap = trap(once(name, roomy.clone()).await);
        assert_eq!(trap.kind, TrapKind::Output, "{name}: {trap}");
    }
    // Many small ones are the stage's to judge, message by message.
    let steps = steps(once("wide-outputs", roomy).await);
    assert_eq!(steps[0].outcome.publish.len(), limits::EMITS_MAX + 1);
}

#[tokio::test]
async fn random_bytes_and_handles_are_bounded() {
    for name in ["big-random", "handles"] {
        let trap = trap(once(name, plain()).await);
        assert_eq!(trap.kind, TrapKind::Trap, "{name}: {trap}");
    }
}
