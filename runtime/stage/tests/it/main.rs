//! Stages over the reference backend (and, once, the embedded one), with plain functions as Bees.

mod ends;
mod loops;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use skep_model::env::{Clock, Entropy, SeededEntropy, SystemClock};
use skep_model::id::{CommitId, Digest, Incarnation, NodeId, RequestId, Uid};
use skep_model::message::{Message, ReplyResult, Request};
use skep_model::name::TenantId;
use skep_model::scope::{Scope, SwarmId, TopicId};
use skep_model::span::NoSpans;
use skep_model::step::{Batch, Disposition, Emit, Input, Outcome, Processed, StateWrite, Step, Trap, TrapKind};
use skep_model::swarm::{BatchPolicy, Bound, GuestClock, Instances, Keep, KeySource, Order, RetryPolicy, Stage};
use skep_stage::{BatchReport, Bee, Destination, Observer, Plan, Running, Seams, StageState, Workers, start};
use skep_topic::embedded::Embedded;
use skep_topic::lane::{Lane, Travelling};
use skep_topic::memory::Memory;
use skep_topic::{Backend, Call, Gate, Once, Publish, Rescaled, TopicSpec, TopicStatus, Waiter};

type Function = dyn Fn(&Input, &Batch) -> Result<Step, Trap> + Send + Sync;

/// A Bee that is a function of one input; the first trap is the batch's.
struct Plain(Box<Function>, Duration);

#[async_trait]
impl Bee for Plain {
    async fn process(&self, batch: Batch) -> Processed {
        tokio::time::sleep(self.1).await;
        let result = batch.inputs.iter().map(|input| (self.0)(input, &batch)).collect();
        Processed {
            result,
            log: Vec::new(),
        }
    }
}

#[derive(Default)]
struct Told(Mutex<Vec<StageState>>);

impl Observer for Told {
    fn batch(&self, _: &TopicId, _: BatchReport<'_>) {}
    fn state(&self, _: &TopicId, _: Option<u16>, state: StageState) {
        self.0.lock().unwrap().push(state);
    }
}

struct World {
    backend: Arc<dyn Backend>,
    /// The same, when it is the reference.
    memory: Option<Arc<Memory>>,
    seams: Arc<Seams>,
    told: Arc<Told>,
    swarm: SwarmId,
    entropy: Arc<SeededEntropy>,
}

impl World {
    fn new() -> Self {
        let entropy = Arc::new(SeededEntropy::new(7));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let memory = Memory::new(Arc::clone(&clock), Arc::clone(&entropy) as Arc<dyn Entropy>);
        let backend = Arc::clone(&memory) as Arc<dyn Backend>;
        Self {
            memory: Some(memory),
            ..Self::on(backend, clock, entropy)
        }
    }

    fn on_disk(dir: &std::path::Path) -> Self {
        let entropy = Arc::new(SeededEntropy::new(7));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let backend = Embedded::open(dir, Arc::clone(&clock), Arc::clone(&entropy) as Arc<dyn Entropy>).unwrap();
        Self::on(backend, clock, entropy)
    }

    fn on(backend: Arc<dyn Backend>, clock: Arc<dyn Clock>, entropy: Arc<SeededEntropy>) -> Self {
        let told = Arc::new(Told::default());
        let seams = Arc::new(Seams {
            backend: Arc::clone(&backend),
            clock,
            entropy: Arc::clone(&entropy) as Arc<dyn Entropy>,
            observer: Arc::clone(&told) as Arc<dyn Observer>,
            spans: Arc::new(NoSpans),
            workers: Workers::alone(NodeId([0; 8])),
            seats: Vec::new(),
            rest: Arc::default(),
        });
        let swarm = Scope::of(TenantId::default_tenant()).swarm(&"w".parse().unwrap(), Incarnation([1; 16]));
        Self {
            backend,
            memory: None,
            seams,
            told,
            swarm,
            entropy,
        }
    }

    fn spec(&self, name: &str, messages: u64) -> Arc<TopicSpec> {
        Arc::new(TopicSpec {
            id: self.swarm.topic(&name.parse().unwrap()),
            born: 1,
            partitions: 2,
            inbox: Bound {
                messages,
                bytes: 64 << 20,
            },
            dead_letters: Bound {
                messages: 1_000,
                bytes: 1 << 20,
            },
        })
    }

    fn message(&self, key: &str, payload: &str) -> Message {
        Message {
            uid: Uid::random(&*self.entropy),
            key: Some(key.to_owned()),
            headers: Vec::new(),
            payload: Bytes::from(payload.to_owned()),
            accepted_ms: SystemClock.now_ms(),
            request: None,
            trace: None,
            lineage: None,
            hops: Vec::new(),
        }
    }

    /// A message that somebody waits for.
    fn request(&self, payload: &str, deadline_ms: u64) -> (Message, Waiter) {
        let id = RequestId::random(&*self.entropy);
        let waiter = self.backend.waiters().wait(id);
        let request = Some(Request {
            id,
            deadline_ms: SystemClock.now_ms() + deadline_ms,
            keyed: false,
            share: 0,
            streams: false,
        });
        let message = Message {
            request,
            ..self.message("k", payload)
        };
        (message, waiter)
    }

    async fn publish(&self, to: &Arc<TopicSpec>, messages: Vec<Message>) {
        let publish = Publish {
            swarm: self.swarm.clone(),
            calls: vec![Call {
                to: vec![(Arc::clone(to), messages)],
                once: Once::No,
            }],
            gate: Gate::Durable,
        };
        self.backend.publish(publish).await.unwrap()[0].as_ref().unwrap();
    }

    async fn drained(&self) {
        for _ in 0..1_000 {
            let status = self.backend.status(&self.swarm).await.unwrap();
            if status.iter().all(|t| t.unread + t.parked == 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("does not drain: {:?}", self.backend.status(&self.swarm).await);
    }

    async fn state(&self, spec: &TopicSpec, key: &str, name: &str) -> Option<String> {
        let values = self.backend.state(&spec.id, key).await.unwrap();
        values.get(name).map(|v| String::from_utf8_lossy(v).into_owned())
    }
}

fn stage(spec: &TopicSpec, keyed: bool) -> Stage {
    Stage {
        name: spec.id.stage().clone(),
        module: "m".to_owned(),
        bee: "b".parse().unwrap(),
        inputs: Vec::new(),
        key: keyed.then_some(KeySource::Message),
        state: keyed,
        keep: Keep::default(),
        order: Order::Hold,
        retry: RetryPolicy {
            attempts: 3,
            first_ms: 5,
            max_ms: 20,
            ..RetryPolicy::default()
        },
        timeout_ms: 1_000,
        batch: BatchPolicy {
            messages: 16,
            bytes: 1 << 20,
        },
        partitions: spec.partitions,
        concurrency: 2,
        inbox: spec.inbox,
        dead_letters: spec.dead_letters,
        instances: Instances::Fresh,
        memory_bytes: 1 << 20,
        config: BTreeMap::new(),
        secrets: BTreeSet::new(),
        http: BTreeSet::new(),
        models: BTreeSet::new(),
        clock: GuestClock::Recorded,
        exit: None,
        skip: None,
        join: None,
        place: None,
        builtin: None,
        ends: None,
    }
}

fn plan(
    spec: &Arc<TopicSpec>,
    keyed: bool,
    readers: Vec<Destination>,
    takes: Duration,
    bee: impl Fn(&Input, &Batch) -> Result<Step, Trap> + Send + Sync + 'static,
) -> Arc<Plan> {
    Arc::new(Plan {
        stage: stage(spec, keyed),
        topic: Arc::clone(spec),
        module: Digest::of(b"m"),
        bee: Arc::new(Plain(Box::new(bee), takes)),
        unnamed: readers,
        named: BTreeMap::new(),
        door: None,
        bounded: false,
    })
}

fn reader(spec: &Arc<TopicSpec>) -> Destination {
    Destination {
        stage: spec.id.stage().clone(),
        topic: Arc::clone(spec),
        key: Some(KeySource::Message),
        lane: Lane::new(),
        when: None,
        laps: None,
    }
}

fn run(world: &World, plan: Arc<Plan>) -> (Running, Arc<Lane>) {
    let lane = Lane::new();
    (start(plan, &lane, &world.seams, false), lane)
}

fn outcome(publish: Vec<Emit>, respond: Vec<Bytes>, disposition: Disposition) -> Step {
    Step {
        outcome: Outcome {
            publish,
            respond,
            disposition,
        },
        state: Vec::new(),
        timers: Vec::new(),
    }
}

fn payload(input: &Input) -> String {
    match input {
        Input::Message { message, .. } => String::from_utf8_lossy(&message.payload).into_owned(),
        Input::Timer(due) => due.name.clone(),
        Input::Joined(joined) => joined
            .parts
            .iter()
            .map(|(side, m)| format!("{side}={}", String::from_utf8_lossy(&m.payload)))
            .collect::<Vec<_>>()
            .join("+"),
    }
}

fn trap(kind: TrapKind) -> Trap {
    Trap {
        kind,
        detail: "told to".to_owned(),
        stderr: "last words".to_owned(),
    }
}

/// Appends its payload to the list of its key. One batch sees the writes of the batch before; within a batch the engine would
/// overlay them, which this Bee does by looking at the inputs before.
fn append(input: &Input, batch: &Batch) -> Step {
    let key = input.key().unwrap_or_default();
    let mut list = batch
        .state
        .get(key)
        .and_then(|s| s.get("list"))
        .map_or_else(String::new, |v| String::from_utf8_lossy(v).into_owned());
    for earlier in &batch.inputs {
        if earlier.key() == Some(key) {
            list.push_str(&payload(earlier));
            list.push(' ');
        }
        if earlier.uid() == input.uid() {
            break;
        }
    }
    let mut step = outcome(Vec::new(), Vec::new(), Disposition::Done);
    step.state.push(StateWrite {
        name: "list".to_owned(),
        value: Some(Bytes::from(list)),
    });
    step
}

/// Five keys through two stages: each message once, in the order of its key. `disturb` is called between the publishes.
async fn two_stages(world: &World, mut disturb: impl FnMut()) {
    let (first, second) = (world.spec("first", 10_000), world.spec("second", 10_000));
    let (pass, _) = run(
        world,
        plan(
            &first,
            true,
            vec![reader(&second)],
            Duration::from_millis(1),
            |input, _| {
                let Input::Message { message, .. } = input else {
                    unreachable!("no timers are set")
                };
                let emit = Emit {
                    to: None,
                    key: message.key.clone(),
                    headers: Vec::new(),
                    payload: message.payload.clone(),
                };
                Ok(outcome(vec![emit], Vec::new(), Disposition::Done))
            },
        ),
    );
    let (list, _) = run(
        world,
        plan(&second, true, Vec::new(), Duration::from_millis(1), |input, batch| {
            Ok(append(input, batch))
        }),
    );
    for chunk in 0..10 {
        let messages = (0..50)
            .map(|i| world.message(&format!("k{}", i % 5), &format!("{}", chunk * 10 + i / 5)))
            .collect();
        world.publish(&first, messages).await;
        disturb();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.drained().await;
    let expected: String = (0..100).map(|n| format!("{n} ")).collect();
    for key in 0..5 {
        assert_eq!(
            world.state(&second, &format!("k{key}"), "list").await.as_deref(),
            Some(expected.as_str())
        );
    }
    pass.stop().await;
    list.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stages_keep_the_order_of_each_key_and_lose_nothing() {
    two_stages(&World::new(), || {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stages_do_so_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::on_disk(dir.path());
    two_stages(&world, || {}).await;
    world.backend.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_that_are_fenced_in_the_middle_apply_everything_once() {
    let world = World::new();
    let memory = world.memory.clone().unwrap();
    // Every lease is gone at once, so whatever is under way is refused, and the next claims find their partition suspect.
    two_stages(&world, || memory.restart()).await;
}

#[test]
fn a_message_that_kills_its_host_is_set_aside_after_three_crashes_and_its_neighbours_are_applied_once() {
    let world = World::new();
    let memory = world.memory.clone().unwrap();
    let spec = world.spec("s", 1_000);
    let outside = tokio::runtime::Runtime::new().unwrap();
    let words = ["1", "2", "3", "poison", "4", "5"];
    outside.block_on(world.publish(&spec, words.map(|word| world.message("k", word)).into()));
    let mut deaths = 0;
    loop {
        let (met, meets) = std::sync::mpsc::channel();
        let bee = move |input: &Input, batch: &Batch| {
            if payload(input) == "poison" {
                met.send(()).unwrap();
                loop {
                    std::thread::park();
                }
            }
            Ok(outcome_of(input, batch))
        };
        // Each life of the host is a runtime of its own, so that its end leaves what a crash leaves.
        let life = tokio::runtime::Runtime::new().unwrap();
        let started = life.block_on(async { run(&world, plan(&spec, true, Vec::new(), Duration::ZERO, bee)) });
        let drained = life.spawn({
            let (backend, swarm) = (Arc::clone(&world.backend), world.swarm.clone());
            async move {
                while backend
                    .status(&swarm)
                    .await
                    .unwrap()
                    .iter()
                    .any(|t| t.unread + t.parked > 0)
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        while !drained.is_finished() && meets.try_recv().is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let done = drained.is_finished();
        drop(started);
        life.shutdown_background();
        if done {
            break;
        }
        memory.restart();
        deaths += 1;
        assert!(deaths < 10, "it is never set aside");
    }
    assert_eq!(deaths, 3);
    outside.block_on(async {
        assert_eq!(world.state(&spec, "k", "list").await.as_deref(), Some("1 2 3 4 5 "));
        let dead = world.backend.dead_letters(&world.swarm, None, 0, 10).await.unwrap();
        let reasons: Vec<_> = dead.iter().map(|d| d.letter.reason.as_str()).collect();
        assert_eq!(reasons, ["crash"]);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_message_holds_its_key_until_it_is_set_aside_and_its_neighbours_go_on() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    // `flaky` works at the third attempt; `bad` never does; `poison` ends its instance, and so its whole batch.
    let (running, _) = run(
        &world,
        plan(&spec, true, Vec::new(), Duration::ZERO, |input, batch| {
            match payload(input).as_str() {
                "poison" => Err(trap(TrapKind::Trap)),
                "flaky" if input.attempt() < 3 => Ok(outcome(Vec::new(), Vec::new(), Disposition::RetryAfter(5))),
                "bad" => Ok(outcome(
                    Vec::new(),
                    Vec::new(),
                    Disposition::Fail {
                        reason: "bad".to_owned(),
                        detail: String::new(),
                    },
                )),
                _ => Ok(outcome_of(input, batch)),
            }
        }),
    );
    let messages = [
        ("a", "1"),
        ("a", "flaky"),
        ("a", "2"),
        ("b", "1"),
        ("b", "bad"),
        ("b", "2"),
        ("c", "1"),
        ("c", "poison"),
        ("c", "2"),
    ];
    world
        .publish(&spec, messages.map(|(k, p)| world.message(k, p)).into())
        .await;
    world.drained().await;
    assert_eq!(
        world.state(&spec, "a", "list").await.as_deref(),
        Some("1 flaky 2 "),
        "held, then in order"
    );
    assert_eq!(world.state(&spec, "b", "list").await.as_deref(), Some("1 2 "));
    assert_eq!(world.state(&spec, "c", "list").await.as_deref(), Some("1 2 "));
    let dead = world.backend.dead_letters(&world.swarm, None, 0, 10).await.unwrap();
    let mut told: Vec<_> = dead
        .iter()
        .map(|d| (d.letter.reason.as_str(), d.letter.attempts, d.letter.stderr.as_str()))
        .collect();
    told.sort_unstable();
    assert_eq!(told, [("bad", 3, ""), ("trap", 3, "last words")]);
    running.stop().await;
}

/// Like [`append`], but from the stored state only: what the engine's overlay shows after failed neighbours were abandoned.
fn outcome_of(input: &Input, batch: &Batch) -> Step {
    let failing = |text: &str| matches!(text, "bad" | "poison") || (text == "flaky" && input.attempt() < 3);
    let kept = Batch {
        inputs: batch
            .inputs
            .iter()
            .filter(|i| i.uid() == input.uid() || !failing(&payload(i)))
            .cloned()
            .collect(),
        state: batch.state.clone(),
        ..Batch::default()
    };
    append(input, &kept)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_inbox_pauses_the_stage_before_it_and_nothing_is_lost() {
    let world = World::new();
    let (first, second) = (world.spec("first", 1_000), world.spec("second", 8));
    let (pass, _) = run(
        &world,
        plan(&first, true, vec![reader(&second)], Duration::ZERO, |input, _| {
            let emit = Emit {
                to: None,
                key: input.key().map(str::to_owned),
                headers: Vec::new(),
                payload: Bytes::from(payload(input)),
            };
            Ok(outcome(vec![emit], Vec::new(), Disposition::Done))
        }),
    );
    let messages = (0..100)
        .map(|i| world.message(&format!("k{}", i % 3), &format!("{}", i / 3)))
        .collect();
    world.publish(&first, messages).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let paused = |s: &StageState| matches!(s, StageState::Paused { why } if why.contains("second"));
    assert!(
        world.told.0.lock().unwrap().iter().any(paused),
        "it says where it is stuck"
    );
    let (list, _) = run(
        &world,
        plan(&second, true, Vec::new(), Duration::ZERO, |input, batch| {
            Ok(append(input, batch))
        }),
    );
    world.drained().await;
    let expected: String = (0..33).map(|n| format!("{n} ")).collect();
    assert_eq!(world.state(&second, "k1", "list").await, Some(expected));
    assert_eq!(world.told.0.lock().unwrap().last(), Some(&StageState::Running));
    pass.stop().await;
    list.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lane_answers_retries_and_tells_the_cause() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    let (running, lane) = run(
        &world,
        plan(&spec, false, Vec::new(), Duration::ZERO, |input, _| {
            match payload(input).as_str() {
                "poison" => Err(trap(TrapKind::Trap)),
                "host" => Err(trap(TrapKind::Host)),
                "flaky" if input.attempt() < 3 => Ok(outcome(Vec::new(), Vec::new(), Disposition::RetryAfter(5))),
                text => Ok(outcome(
                    Vec::new(),
                    vec![Bytes::from(text.to_owned())],
                    Disposition::Done,
                )),
            }
        }),
    );
    let ask = |text: &str, deadline_ms: u64| {
        let (message, waiter) = world.request(text, deadline_ms);
        lane.push(Travelling { message, attempts: 0 }).unwrap();
        waiter
    };
    let (fine, flaky, poison, host) = (
        ask("fine", 5_000),
        ask("flaky", 5_000),
        ask("poison", 5_000),
        ask("host", 200),
    );
    assert_eq!(
        fine.await.unwrap().result,
        ReplyResult::Response(Bytes::from_static(b"fine"))
    );
    assert_eq!(
        flaky.await.unwrap().result,
        ReplyResult::Response(Bytes::from_static(b"flaky"))
    );
    let told = poison.await.unwrap().result;
    assert!(
        matches!(&told, ReplyResult::Failed { reason, dead_letter: None, .. } if reason == "trap"),
        "{told:?}"
    );
    let told = host.await.unwrap().result;
    assert!(
        matches!(told, ReplyResult::Overloaded { .. }),
        "not the Bee's fault, and not done: {told:?}"
    );
    running.stop().await;
    let id = RequestId::random(&*world.entropy);
    let request = Some(Request {
        id,
        deadline_ms: u64::MAX,
        keyed: false,
        share: 0,
        streams: false,
    });
    let message = Message {
        request,
        ..world.message("k", "late")
    };
    assert!(
        lane.push(Travelling { message, attempts: 0 }).is_err(),
        "a stopped stage takes nothing more"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_bounded_and_what_was_under_way_is_done_by_the_next_owner() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    let (slow, lane) = run(
        &world,
        plan(&spec, true, Vec::new(), Duration::from_secs(3_600), |input, batch| {
            Ok(append(input, batch))
        }),
    );
    world
        .publish(&spec, vec![world.message("k", "1"), world.message("k", "2")])
        .await;
    let id = RequestId::random(&*world.entropy);
    let waiter = world.backend.waiters().wait(id);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let request = Some(Request {
        id,
        deadline_ms: u64::MAX,
        keyed: false,
        share: 0,
        streams: false,
    });
    let message = Message {
        request,
        ..world.message("k", "x")
    };
    lane.push(Travelling { message, attempts: 0 }).unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(20), slow.stop()).await;
    assert!(stopped.is_ok(), "the grace bounds a stop");
    assert!(matches!(waiter.await.unwrap().result, ReplyResult::Overloaded { .. }));
    let (next, _) = run(
        &world,
        plan(&spec, true, Vec::new(), Duration::ZERO, |input, batch| {
            Ok(append(input, batch))
        }),
    );
    world.drained().await;
    assert_eq!(world.state(&spec, "k", "list").await.as_deref(), Some("1 2 "));
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bee_that_is_too_slow_for_its_batch_works_with_smaller_ones_and_the_poison_one_parks_alone() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    let single = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&single);
    let (running, _) = run(
        &world,
        plan(&spec, true, Vec::new(), Duration::ZERO, move |input, batch| {
            seen.fetch_add(usize::from(batch.inputs.len() == 1), Ordering::SeqCst);
            if batch.inputs.len() > 4 {
                return Err(trap(TrapKind::CpuTime));
            }
            match payload(input).as_str() {
                "poison" => Err(trap(TrapKind::Trap)),
                _ => Ok(outcome_of(input, batch)),
            }
        }),
    );
    let messages = (0..200)
        .map(|i| {
            let text = if i == 100 { "poison".to_owned() } else { i.to_string() };
            world.message("k", &text)
        })
        .collect();
    world.publish(&spec, messages).await;
    world.drained().await;
    let expected: String = (0..200).filter(|n| *n != 100).map(|n| format!("{n} ")).collect();
    assert_eq!(world.state(&spec, "k", "list").await, Some(expected));
    let dead = world.backend.dead_letters(&world.swarm, None, 0, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].letter.attempts), (1, 3));
    // What waited behind the poison one is released one at a time; before it, none had to go alone.
    assert!(single.load(Ordering::SeqCst) < 150, "{single:?} went alone");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trouble_of_the_host_costs_no_attempt_and_is_told_until_it_is_over() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    let left = AtomicUsize::new(3);
    let (running, _) = run(
        &world,
        plan(&spec, true, Vec::new(), Duration::ZERO, move |input, batch| {
            let troubled = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            assert_eq!(input.attempt(), 1);
            if troubled.is_ok() {
                Err(trap(TrapKind::Host))
            } else {
                Ok(append(input, batch))
            }
        }),
    );
    let messages = ["1", "2", "3"].map(|p| world.message("k", p));
    world.publish(&spec, messages.into()).await;
    world.drained().await;
    assert_eq!(world.state(&spec, "k", "list").await.as_deref(), Some("1 2 3 "));
    tokio::time::sleep(Duration::from_millis(20)).await;
    let told = world.told.0.lock().unwrap().clone();
    assert!(
        matches!(&told[0], StageState::Troubled { why } if why.contains("told to")),
        "{told:?}"
    );
    assert_eq!(
        told.iter().filter(|s| **s == StageState::Running).count(),
        1,
        "{told:?}"
    );
    assert_eq!(told.last(), Some(&StageState::Running));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_message_is_set_aside_learns_the_cause_and_the_dead_letter() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    let (running, _) = run(
        &world,
        plan(&spec, true, Vec::new(), Duration::ZERO, |_, _| {
            Ok(outcome(
                Vec::new(),
                Vec::new(),
                Disposition::Reject("not mine".to_owned()),
            ))
        }),
    );
    let (message, waiter) = world.request("x", 5_000);
    world.publish(&spec, vec![message]).await;
    let told = waiter.await.unwrap().result;
    let dead = world.backend.dead_letters(&world.swarm, None, 0, 10).await.unwrap();
    assert!(
        matches!(&told, ReplyResult::Failed { detail, dead_letter: Some(_), .. } if detail == "not mine"),
        "{told:?}"
    );
    assert_eq!(dead.len(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_plan_takes_over_between_two_batches() {
    let world = World::new();
    let (spec, old_end, new_end) = (
        world.spec("s", 10_000),
        world.spec("old", 10_000),
        world.spec("new", 10_000),
    );
    let pass = |to: &Arc<TopicSpec>| {
        plan(&spec, true, vec![reader(to)], Duration::from_millis(1), |input, _| {
            let emit = Emit {
                to: None,
                key: input.key().map(str::to_owned),
                headers: Vec::new(),
                payload: Bytes::from(payload(input)),
            };
            Ok(outcome(vec![emit], Vec::new(), Disposition::Done))
        })
    };
    let (running, _) = run(&world, pass(&old_end));
    let sent: Vec<Message> = (0..400).map(|i| world.message("k", &i.to_string())).collect();
    for (i, chunk) in sent.chunks(50).enumerate() {
        if i == 4 {
            running.replan(pass(&new_end));
        }
        world.publish(&spec, chunk.to_vec()).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let unread =
        |status: &[TopicStatus], spec: &TopicSpec| status.iter().find(|t| t.topic == spec.id).map_or(0, |t| t.unread);
    let mut status = Vec::new();
    for _ in 0..500 {
        status = world.backend.status(&world.swarm).await.unwrap();
        if unread(&status, &spec) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (old, new) = (unread(&status, &old_end), unread(&status, &new_end));
    assert_eq!(old + new, 400, "each message passed under one plan");
    assert!(old > 0 && new > 0, "{old} under the old one, {new} under the new one");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lane_does_not_do_what_nobody_waits_for_and_leaves_nobody_without_an_answer() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    let pure = |retry_after_ms: u64| {
        plan(&spec, false, Vec::new(), Duration::ZERO, move |_, _| {
            Ok(outcome(Vec::new(), Vec::new(), Disposition::RetryAfter(retry_after_ms)))
        })
    };
    let (running, lane) = run(&world, pure(60_000));
    let push = |message| lane.push(Travelling { message, attempts: 0 }).unwrap();

    let (mut late, expired) = world.request("late", 0);
    late.request.as_mut().unwrap().deadline_ms = SystemClock.now_ms() - 1;
    push(late);
    assert!(matches!(expired.await.unwrap().result, ReplyResult::Expired { .. }));

    let (impatient, cause) = world.request("impatient", 1_000);
    push(impatient);
    assert!(
        matches!(cause.await.unwrap().result, ReplyResult::Failed { reason, .. } if reason == "retry-after"),
        "the next attempt would come too late"
    );

    let (patient, asleep) = world.request("patient", 600_000);
    push(patient);
    tokio::time::timeout(Duration::from_secs(5), async {
        while (lane.len(), lane.is_empty()) != (1, true) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it sleeps in its place");

    running.replan(plan(&spec, true, Vec::new(), Duration::ZERO, |_, _| {
        panic!("a stateful stage runs nothing that came by the lane")
    }));
    let (strayed, refused) = world.request("strayed", 5_000);
    push(strayed);
    assert!(matches!(refused.await.unwrap().result, ReplyResult::Overloaded { .. }));

    running.stop().await;
    assert!(matches!(asleep.await.unwrap().result, ReplyResult::Overloaded { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_of_a_poison_request_go_on_alone_while_somebody_waits_for_them() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    let mut one_at_a_time = stage(&spec, false);
    one_at_a_time.concurrency = 1;
    let bee = |input: &Input, batch: &Batch| {
        if batch.inputs.len() > 1 {
            return Err(trap(TrapKind::CpuTime));
        }
        Ok(outcome(
            Vec::new(),
            vec![Bytes::from(payload(input))],
            Disposition::Done,
        ))
    };
    let (running, lane) = run(
        &world,
        Arc::new(Plan {
            stage: one_at_a_time,
            topic: Arc::clone(&spec),
            module: Digest::of(b"m"),
            bee: Arc::new(Plain(Box::new(bee), Duration::from_millis(100))),
            unnamed: Vec::new(),
            named: BTreeMap::new(),
            door: None,
            bounded: false,
        }),
    );
    let push = |(message, waiter): (Message, Waiter)| {
        lane.push(Travelling { message, attempts: 0 }).unwrap();
        waiter
    };
    let first = push(world.request("first", 5_000));
    while !lane.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // These two share a batch, which traps after the deadline of the second.
    let (patient, late) = (push(world.request("patient", 5_000)), push(world.request("late", 150)));
    assert!(matches!(first.await.unwrap().result, ReplyResult::Response(_)));
    assert!(matches!(late.await.unwrap().result, ReplyResult::Expired { .. }));
    assert!(matches!(patient.await.unwrap().result, ReplyResult::Response(_)));
    running.stop().await;
}

/// Read before each stage: what was asked for by one who hung up is consumed, and its Bee never sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_nobody_waits_for_is_left_undone() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    let (gone, hung_up) = world.request("gone", 60_000);
    let (wanted, waiter) = world.request("wanted", 60_000);
    let (mut keyed, retried) = world.request("keyed", 60_000);
    keyed.request = keyed.request.map(|r| Request { keyed: true, ..r });
    drop((hung_up, retried));
    world
        .publish(&spec, vec![gone, wanted, keyed, world.message("k", "submitted")])
        .await;
    let seen: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let sees = Arc::clone(&seen);
    let bee = move |input: &Input, _: &Batch| {
        sees.lock().unwrap().push(payload(input));
        Ok(outcome(
            Vec::new(),
            vec![Bytes::from(payload(input))],
            Disposition::Done,
        ))
    };
    let (running, _lane) = run(
        &world,
        Arc::new(Plan {
            stage: stage(&spec, false),
            topic: Arc::clone(&spec),
            module: Digest::of(b"m"),
            bee: Arc::new(Plain(Box::new(bee), Duration::ZERO)),
            unnamed: Vec::new(),
            named: BTreeMap::new(),
            door: None,
            bounded: false,
        }),
    );
    assert!(matches!(waiter.await.unwrap().result, ReplyResult::Response(_)));
    world.drained().await;
    running.stop().await;
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    assert_eq!(seen, ["keyed", "submitted", "wanted"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_plan_changes_how_many_batches_of_the_lane_are_under_way() {
    let world = World::new();
    let spec = world.spec("s", 1_000);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let with = |concurrency: u16| {
        let mut stage = stage(&spec, false);
        stage.concurrency = concurrency;
        stage.batch.messages = 1;
        Arc::new(Plan {
            stage,
            topic: Arc::clone(&spec),
            module: Digest::of(b"m"),
            bee: Arc::new(Counted {
                now: Arc::clone(&now),
                most: Arc::clone(&most),
            }),
            unnamed: Vec::new(),
            named: BTreeMap::new(),
            door: None,
            bounded: false,
        })
    };
    let (running, lane) = run(&world, with(1));
    for (concurrency, expected) in [(1, 1), (4, 4), (2, 2)] {
        running.replan(with(concurrency));
        most.store(0, Ordering::SeqCst);
        let waiters: Vec<_> = (0..24)
            .map(|_| {
                let (message, waiter) = world.request("x", 10_000);
                lane.push(Travelling { message, attempts: 0 }).unwrap();
                waiter
            })
            .collect();
        for waiter in waiters {
            assert!(matches!(waiter.await.unwrap().result, ReplyResult::Response(_)));
        }
        assert_eq!(most.load(Ordering::SeqCst), expected);
    }
    running.stop().await;
}

/// Answers after a while, and counts how many of it are at work.
struct Counted {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

#[async_trait]
impl Bee for Counted {
    async fn process(&self, batch: Batch) -> Processed {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        let answer = |_: &Input| outcome(Vec::new(), vec![Bytes::from_static(b"y")], Disposition::Done);
        Processed {
            result: Ok(batch.inputs.iter().map(answer).collect()),
            log: Vec::new(),
        }
    }
}

/// A node that has not heard that a reader was removed: its work is refused, which must not make it busy for nothing.
#[tokio::test]
async fn an_old_plan_waits_for_a_newer_one() {
    let world = World::new();
    let (first, second) = (world.spec("first", 100), world.spec("second", 100));
    assert!(world.backend.remove_topic(&second).await.unwrap());
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let to = |spec: &Arc<TopicSpec>| {
        let runs = Arc::clone(&runs);
        plan(&first, true, vec![reader(spec)], Duration::ZERO, move |_, _| {
            runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let emit = Emit {
                to: None,
                key: Some("k".to_owned()),
                headers: Vec::new(),
                payload: Bytes::from_static(b"x"),
            };
            Ok(outcome(vec![emit], Vec::new(), Disposition::Done))
        })
    };
    let (running, _) = run(&world, to(&second));
    world.publish(&first, vec![world.message("k", "1")]).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let tries = runs.load(std::sync::atomic::Ordering::SeqCst);
    assert!((2..20).contains(&tries), "{tries} runs in 700 ms");
    let newer = Arc::new(TopicSpec {
        born: 2,
        ..TopicSpec::clone(&second)
    });
    running.replan(to(&newer));
    let unread = async || {
        let status = world.backend.status(&world.swarm).await.unwrap();
        let of = |spec: &TopicSpec| status.iter().find(|t| t.topic == spec.id).map_or(0, |t| t.unread);
        (of(&first), of(&newer))
    };
    for _ in 0..200 {
        if unread().await == (0, 1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(unread().await, (0, 1), "the newer plan goes on at once");
    // Its own stage goes, and comes back with a newer plan.
    assert!(world.backend.remove_topic(&first).await.unwrap());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let back = Arc::new(TopicSpec {
        born: 3,
        ..TopicSpec::clone(&first)
    });
    let again = plan(&back, true, Vec::new(), Duration::ZERO, |_, _| {
        Ok(outcome(Vec::new(), Vec::new(), Disposition::Done))
    });
    running.replan(again);
    world.publish(&back, vec![world.message("k", "2")]).await;
    for _ in 0..200 {
        if unread().await == (0, 1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(unread().await, (0, 1), "its owners work again");
    running.stop().await;
}

/// Another number of partitions under load, twice: each message once, in the order of its key.
async fn rescaled(world: &World) {
    let spec = Arc::new(TopicSpec {
        partitions: 4,
        ..TopicSpec::clone(&world.spec("list", 100_000))
    });
    let with = |partitions: u16| {
        let spec = Arc::new(TopicSpec {
            partitions,
            ..TopicSpec::clone(&spec)
        });
        plan(&spec, true, Vec::new(), Duration::from_millis(1), |input, batch| {
            // Some fail once in a while, so that some wait while they go over.
            if payload(input).ends_with('7') && input.attempt() < 2 {
                return Ok(outcome(Vec::new(), Vec::new(), Disposition::RetryAfter(5)));
            }
            Ok(append(input, batch))
        })
    };
    let (running, _) = run(world, with(4));
    for chunk in 0..12 {
        let messages = (0..400)
            .map(|i| world.message(&format!("k{}", i % 40), &format!("{}", chunk * 10 + i / 40)))
            .collect();
        // Writers believe what they heard first.
        world.publish(&spec, messages).await;
        let partitions = match chunk {
            3 => 16,
            7 => 8,
            _ => continue,
        };
        let to = Arc::new(TopicSpec {
            partitions,
            ..TopicSpec::clone(&spec)
        });
        loop {
            let id = CommitId::random(&*world.entropy);
            match world.backend.rescale(&to, id).await.unwrap() {
                Rescaled::Begun => break,
                Rescaled::Busy => tokio::time::sleep(Duration::from_millis(5)).await,
                Rescaled::Already => panic!("it has another number"),
            }
        }
        running.replan(with(partitions));
        let layout = world.backend.layout(&spec.id).await.unwrap().unwrap();
        running.own(layout.owners);
    }
    world.drained().await;
    let expected: String = (0..120).map(|n| format!("{n} ")).collect();
    for key in 0..40 {
        let list = world.state(&spec, &format!("k{key}"), "list").await;
        assert_eq!(list.as_deref(), Some(&*expected), "k{key}");
    }
    let layout = world.backend.layout(&spec.id).await.unwrap().unwrap();
    assert_eq!((layout.partitions, layout.generation, layout.rescaling), (8, 2, false));
    running.stop().await;
}

#[tokio::test]
async fn partitions_change_under_load() {
    rescaled(&World::new()).await;
}

#[tokio::test]
async fn partitions_change_under_load_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    rescaled(&World::on_disk(dir.path())).await;
}
