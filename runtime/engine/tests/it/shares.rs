//! What tenants have of an engine beside each other: guest time, places, memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use skep_engine::{BeeSettings, CompilerLimits, Engine, Module, Settings, Share};
use skep_model::id::Digest;
use skep_model::quota::{Limits, Quota};
use skep_model::step::TrapKind;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::zoo::{batch, compiler, message, plain, scratch, wasm};

/// Held by each test here: two that keep all processors busy tell nothing of either.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn hive(name: &str, threads: usize) -> Module {
    let engine = Engine::new(Settings {
        running: 16,
        spare: 4,
        threads,
        ..Settings::new(scratch().join(name))
    });
    let wasm = wasm();
    let digest = Digest::of(&wasm);
    let artifact = compiler(CompilerLimits::default()).compile(wasm).await.unwrap();
    engine.unwrap().load(digest, artifact).await.unwrap()
}

fn tenant(limits: &[(Quota, u64)]) -> Arc<Share> {
    let (share, mut all) = (Share::default(), Limits::default());
    limits.iter().for_each(|(quota, value)| all.set(*quota, Some(*value)));
    share.limit(&all);
    Arc::new(share)
}

fn settings(share: &Arc<Share>, cpu_ms: u64) -> BeeSettings {
    BeeSettings {
        cpu_ms,
        wall_ms: 60_000,
        share: Arc::clone(share),
        ..plain()
    }
}

/// Callers of a Bee, each again and again until it is stopped.
fn busy(
    hive: &Module,
    name: &str,
    settings: &BeeSettings,
    callers: usize,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<u64>> {
    let one = |_| {
        let (bee, stop) = (
            hive.bee(&name.parse().unwrap(), settings.clone()).unwrap(),
            Arc::clone(stop),
        );
        tokio::spawn(async move {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                let _ = bee.process(batch(vec![message(1, "hi")])).await;
                calls += 1;
            }
            calls
        })
    };
    (0..callers).map(one).collect()
}

async fn end(stop: &AtomicBool, callers: Vec<JoinHandle<u64>>) -> u64 {
    stop.store(true, Ordering::Relaxed);
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_busy_tenants_have_guest_time_by_their_weights() {
    let _alone = ALONE.lock().await;
    let hive = hive("weights", 2).await;
    let (one, three) = (tenant(&[]), tenant(&[(Quota::Weight, 3)]));
    let stop = Arc::default();
    // Whoever calls more gets no more by that.
    let mut callers = busy(&hive, "loop", &settings(&one, 60), 12, &stop);
    callers.extend(busy(&hive, "loop", &settings(&three, 60), 4, &stop));
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Other tests have the processors too, now and then one of them for long: then one thread's guests have more time than the other's.
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let before = (one.used().cpu_ns(), three.used().cpu_ns());
        tokio::time::sleep(Duration::from_secs(3)).await;
        let used = (one.used().cpu_ns() - before.0, three.used().cpu_ns() - before.1);
        ratios.push(used.1 * 100 / used.0.max(1));
        if ratios.last().is_some_and(|ratio| (255..=345).contains(ratio)) {
            break;
        }
    }
    end(&stop, callers).await;
    assert!(
        ratios.last().is_some_and(|ratio| (255..=345).contains(ratio)),
        "1 to so many hundredths: {ratios:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_holds_and_who_waits_for_it_does_not_run_out_of_time() {
    let _alone = ALONE.lock().await;
    let hive = hive("caps", 2).await;
    let share = tenant(&[(Quota::Cpu, 100)]);
    let stop = Arc::default();
    let began = Instant::now();
    let callers = busy(&hive, "loop", &settings(&share, 60), 4, &stop);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (used, most) = (share.used().cpu_ns(), began.elapsed().as_nanos() / 10);
    // A burst, and a turn on each thread.
    assert!(u128::from(used) < most + 60_000_000, "{used} of {most}");
    assert!(used > 10_000_000, "{used}");
    end(&stop, callers).await;
    // Of 150 ms, at a tenth of a core: its wall time of 400 ms is its own.
    let settings = BeeSettings {
        cpu_ms: 150,
        wall_ms: 400,
        ..settings(&share, 150)
    };
    let bee = hive.bee(&"loop".parse().unwrap(), settings).unwrap();
    let began = Instant::now();
    let trap = bee.process(batch(vec![message(1, "hi")])).await.result.unwrap_err();
    assert_eq!(trap.kind, TrapKind::CpuTime, "{trap}");
    assert!(began.elapsed() > Duration::from_millis(600), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_s_worst_takes_no_call_of_another() {
    let _alone = ALONE.lock().await;
    let hive = hive("worst", 2).await;
    let (bad, good) = (tenant(&[(Quota::Instances, 6), (Quota::Memory, 96 << 20)]), tenant(&[]));
    let stop = Arc::default();
    let mut callers = Vec::new();
    for attack in [
        "loop",
        "bomb",
        "recurse",
        "stderr-flood",
        "log-flood",
        "huge-output",
        "many-outcomes",
        "wide-outputs",
        "handles",
        "big-random",
        "panic",
        "sleep",
    ] {
        let settings = BeeSettings {
            wall_ms: 200,
            ..settings(&bad, 100)
        };
        callers.extend(busy(&hive, attack, &settings, 3, &stop));
    }
    let bee = hive.bee(&"echo".parse().unwrap(), settings(&good, 1_000)).unwrap();
    let until = Instant::now() + Duration::from_secs(4);
    let (mut calls, mut most) = (0, (0, 0));
    while Instant::now() < until {
        let processed = bee.process(batch(vec![message(1, "hi")])).await;
        processed
            .result
            .expect("what another tenant does is no trouble of this one");
        calls += 1;
        let live = bad.live();
        most = (most.0.max(live.0), most.1.max(live.1));
    }
    assert!(calls > 50, "{calls}");
    assert!(most.0 <= 6 && most.1 <= 96 << 20, "{most:?}");
    assert!(end(&stop, callers).await > 12);
    assert!(bad.used().cpu_ns() > 0 && bad.used().byte_ms() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_while_it_waits_for_its_turn_leaves_it_to_others() {
    let _alone = ALONE.lock().await;
    let hive = hive("gone", 1).await;
    let (one, two) = (tenant(&[]), tenant(&[]));
    let stop = Arc::default();
    let callers = busy(&hive, "loop", &settings(&one, 40), 3, &stop);
    let bee = hive.bee(&"loop".parse().unwrap(), settings(&two, 1_000)).unwrap();
    let began = Instant::now();
    let mut n = 0;
    // Until the others have made some calls to the end: they have their turns, whoever goes away.
    while n < 60 || one.used().cpu_ns() < 5 * 40_000_000 {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{n}, {}",
            one.used().cpu_ns()
        );
        let call = bee.process(batch(vec![message(1, "hi")]));
        let _ = tokio::time::timeout(Duration::from_millis(n % 25), call).await;
        n += 1;
    }
    let bee = hive.bee(&"echo".parse().unwrap(), settings(&two, 1_000)).unwrap();
    for _ in 0..20 {
        bee.process(batch(vec![message(1, "hi")]))
            .await
            .result
            .expect("its turn comes");
    }
    assert!(end(&stop, callers).await > 3);
}
