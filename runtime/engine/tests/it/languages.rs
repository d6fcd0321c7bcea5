//! Bees in Python and JavaScript: the same tests for both.

use std::time::{Duration, Instant};

use skep_engine::{Bee, BeeSettings};
use skep_model::limits;
use skep_model::step::{Disposition, Processed, StateWrite, TrapKind};
use skep_model::swarm::Instances;

use crate::guests::{self, Language};
use crate::zoo::{answers, batch, keyed, message, stage, stateful, steps, trap};

/// As many warm instances as one Bee keeps.
const POOLED_PER_BEE_MAX: usize = 16;

macro_rules! both {
    ($($test:ident),* $(,)?) => {
        mod python {
            $(#[tokio::test] async fn $test() { super::with(super::Language::Python, super::$test).await; })*
            #[tokio::test]
            #[ignore = "measures"]
            async fn figures() { super::with(super::Language::Python, super::figures).await; }
        }
        mod javascript {
            $(#[tokio::test] async fn $test() { super::with(super::Language::JavaScript, super::$test).await; })*
            #[tokio::test]
            #[ignore = "measures"]
            async fn figures() { super::with(super::Language::JavaScript, super::figures).await; }
        }
    };
}

both!(
    it_names_its_bees,
    a_whole_batch_comes_back_in_order,
    each_input_has_its_own_disposition,
    an_instance_is_fresh_for_each_batch,
    a_pooled_instance_is_used_again,
    state_is_read_and_written,
    an_exception_says_what_it_said,
    an_endless_loop_ends,
    a_memory_bomb_meets_its_limit,
    who_catches_the_lack_of_memory_goes_on,
    all_places_of_a_node_at_once,
);

async fn with<F: Future<Output = ()>>(language: Language, test: impl FnOnce(Language) -> F) {
    if language.module().await.is_some() {
        test(language).await;
    }
}

/// As a manifest has it that says nothing.
fn usual() -> BeeSettings {
    BeeSettings::plain(stage())
}

fn pooled() -> BeeSettings {
    BeeSettings {
        instances: Instances::Pooled { calls: 100, age_s: 60 },
        ..usual()
    }
}

async fn it_names_its_bees(language: Language) {
    let module = language.module().await.unwrap();
    let names: Vec<_> = module.bees().iter().map(|b| b.as_str()).collect();
    assert_eq!(names[..3], ["echo", "choosy", "count"]);
}

async fn a_whole_batch_comes_back_in_order(language: Language) {
    let count = u8::try_from(limits::BATCH_MESSAGES_DEFAULT - 1).unwrap();
    let inputs = (0..=count).map(|n| message(n, vec![n; 100])).collect();
    let steps = steps(language.bee("echo", usual()).await.process(batch(inputs)).await);
    assert_eq!(steps.len(), limits::BATCH_MESSAGES_DEFAULT as usize);
    for (n, step) in (0..=count).zip(steps) {
        let payload = vec![n; 100];
        assert_eq!(step.outcome.respond, [payload.as_slice()]);
        let [emit] = &step.outcome.publish[..] else {
            panic!("one output")
        };
        assert_eq!(emit.payload, payload);
        assert_eq!(emit.headers, [("h".to_owned(), n.to_string())]);
        assert_eq!((&emit.to, &emit.key), (&None, &None));
    }
}

async fn each_input_has_its_own_disposition(language: Language) {
    let inputs = ["a", "reject", "later", "fail", "b"].map(|p| message(1, p)).to_vec();
    let steps = steps(language.bee("choosy", usual()).await.process(batch(inputs)).await);
    let found: Vec<_> = steps.into_iter().map(|s| s.outcome.disposition).collect();
    let [
        Disposition::Done,
        Disposition::Reject(reason),
        Disposition::RetryAfter(1500),
        Disposition::Fail { reason: broke, detail },
        Disposition::Done,
    ] = &found[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!((reason.as_str(), broke.as_str()), ("not today", "it broke"));
    assert!(detail.starts_with("in "), "{detail}");
}

async fn count(bee: &Bee, inputs: u8) -> Vec<String> {
    let inputs = (0..inputs).map(|n| message(n, "")).collect();
    answers(bee.process(batch(inputs)).await)
}

async fn an_instance_is_fresh_for_each_batch(language: Language) {
    let fresh = language.bee("static", usual()).await;
    for _ in 0..5 {
        assert_eq!(count(&fresh, 3).await, ["0", "1", "2"]);
    }
}

async fn a_pooled_instance_is_used_again(language: Language) {
    let warm = language.bee("static", pooled()).await;
    for n in 0..5 {
        assert_eq!(count(&warm, 1).await, [n.to_string()]);
        put_back(&warm, 1).await;
    }
}

/// An instance is put back just after its answer.
async fn put_back(bee: &Bee, spares: usize) {
    let start = Instant::now();
    while bee.spares() < spares {
        assert!(start.elapsed() < Duration::from_secs(60), "{} spares", bee.spares());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn state_is_read_and_written(language: Language) {
    let stateful = || BeeSettings {
        memory_bytes: usual().memory_bytes,
        ..stateful()
    };
    let inputs = vec![keyed(1, "a", ""), keyed(2, "b", ""), keyed(3, "a", "")];
    let steps = steps(language.bee("count", stateful()).await.process(batch(inputs)).await);
    let value = |v: &'static str| StateWrite {
        name: "n".into(),
        value: Some(v.into()),
    };
    let written: Vec<_> = steps.into_iter().map(|s| s.state).collect();
    assert_eq!(written, [[value("1")], [value("1")], [value("2")]]);

    let forgot = language
        .bee("forget", stateful())
        .await
        .process(batch(vec![keyed(1, "a", "")]))
        .await;
    assert!(["None", "undefined"].contains(&answers(forgot)[0].as_str()));
    let refused = language
        .bee("too-large", stateful())
        .await
        .process(batch(vec![keyed(1, "a", "")]))
        .await;
    let text = answers(refused).remove(0);
    assert!(
        ["Error_TooLarge 262144", "too-large 262144"].contains(&text.as_str()),
        "{text}"
    );
}

async fn an_exception_says_what_it_said(language: Language) {
    for settings in [usual(), pooled()] {
        let thrower = language.bee("throw", settings).await;
        let trap = trap(thrower.process(batch(vec![message(1, "hi")])).await);
        assert_eq!(trap.kind, TrapKind::Trap, "{trap}");
        assert!(
            trap.detail.contains("the hive is on fire: hi"),
            "{trap}\n{}",
            trap.stderr
        );
        assert!(trap.stderr.contains("the hive is on fire: hi"), "{}", trap.stderr);
        assert_eq!(
            answers(
                language
                    .bee("echo", usual())
                    .await
                    .process(batch(vec![message(1, "hi")]))
                    .await
            ),
            ["hi"]
        );
    }
}

async fn an_endless_loop_ends(language: Language) {
    let settings = BeeSettings { cpu_ms: 300, ..usual() };
    let trap = trap(
        language
            .bee("loop", settings)
            .await
            .process(batch(vec![message(1, "")]))
            .await,
    );
    assert_eq!(trap.kind, TrapKind::CpuTime, "{trap}");
}

async fn a_memory_bomb_meets_its_limit(language: Language) {
    for mib in [64, 256] {
        let settings = BeeSettings {
            memory_bytes: mib << 20,
            ..usual()
        };
        let trap = trap(
            language
                .bee("bomb", settings)
                .await
                .process(batch(vec![message(1, "")]))
                .await,
        );
        assert_eq!(trap.kind, TrapKind::Memory, "{mib}: {trap}\n{}", trap.stderr);
        assert!(trap.detail.contains(&(mib << 20).to_string()), "{trap}");
    }
    assert_eq!(count(&language.bee("static", usual()).await, 1).await, ["0"]);
}

async fn who_catches_the_lack_of_memory_goes_on(language: Language) {
    let settings = BeeSettings {
        memory_bytes: 64 << 20,
        ..pooled()
    };
    let survivor = language.bee("survivor", settings).await;
    let answer = answers(survivor.process(batch(vec![message(1, "")])).await).remove(0);
    let mebibytes: usize = answer.strip_suffix(" MiB").unwrap().parse().unwrap();
    assert!((8..64).contains(&mebibytes), "{answer}");
    // Memory never shrinks inside, so the instance is not kept.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(survivor.spares(), 0);
}

/// As many instances as the pool was made for: every place to run is taken, and every spare.
async fn all_places_of_a_node_at_once(language: Language) {
    // Not the engine that the other tests use at the same time.
    let engine = guests::start();
    let (running, spare) = (engine.settings().running as usize, engine.settings().spare as usize);
    // One tenant's: a fifth stays free for others. As many Bees as that fills.
    let spare = spare * 4 / 5 / POOLED_PER_BEE_MAX * POOLED_PER_BEE_MAX;
    assert!(spare > 0);
    let module = language.load(&engine).await;
    let bee = |name: &str, settings| module.bee(&name.parse().unwrap(), settings).unwrap();
    let before = resident();
    // Each holds its instance for longer than the others need to start, for at each tick it yields to them.
    let mut warm = Vec::new();
    while warm.iter().map(Bee::spares).sum::<usize>() < spare {
        let bee = bee("work", pooled());
        for processed in at_once(&bee, POOLED_PER_BEE_MAX, "500000").await {
            steps(processed);
        }
        put_back(&bee, POOLED_PER_BEE_MAX).await;
        warm.push(bee);
    }
    let looping = bee(
        "loop",
        BeeSettings {
            wall_ms: 4_000,
            ..usual()
        },
    );
    let looked = tokio::spawn(async {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        resident()
    });
    for processed in at_once(&looping, running, "").await {
        let trap = trap(processed);
        assert!(matches!(trap.kind, TrapKind::CpuTime | TrapKind::WallTime), "{trap}");
    }
    let each = (looked.await.unwrap() - before) / (running + spare);
    assert!(each < 16 << 20, "{each} bytes of memory an instance");
    eprintln!("{} KiB resident an instance, {} at once", each >> 10, running + spare);
}

/// Calls in tasks of their own, with one message each.
async fn at_once(bee: &Bee, calls: usize, payload: &'static str) -> Vec<Processed> {
    let tasks: Vec<_> = (0..calls)
        .map(|_| {
            let bee = bee.clone();
            tokio::spawn(async move { bee.process(batch(vec![message(1, payload)])).await })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await.unwrap());
    }
    all
}

/// Memory that this process has of its own, bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// What the calls cost, printed: `cargo test --release -p skep-engine --test it -- --ignored --nocapture figures`.
async fn figures(language: Language) {
    const CALLS: u32 = 300;
    for (what, settings) in [("fresh", usual()), ("pooled", pooled())] {
        for inputs in [1u8, 64] {
            let bee = language.bee("echo", settings.clone()).await;
            let inputs: Vec<_> = (0..inputs).map(|n| message(n, vec![n; 100])).collect();
            let mut took = Vec::new();
            for _ in 0..CALLS {
                let start = Instant::now();
                steps(bee.process(batch(inputs.clone())).await);
                took.push(start.elapsed());
            }
            took.sort();
            let median = took[took.len() / 2];
            eprintln!("{:?}: {what}, {} messages a call: {median:?}", language, inputs.len());
        }
    }
}
