use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use skep_model::tensor::Signature;

use super::*;
use crate::backend::{Backend, Loaded, Model, RunError};
use crate::inspect::{Described, Refusal};
use crate::limits::Limits;
use crate::sample;

/// Doubles its input, one row a number; -1 fails, -2 panics, and runs wait while `hold` says so.
#[derive(Debug, Default)]
struct Double {
    hold: Arc<AtomicBool>,
    runs: Arc<Mutex<Vec<u64>>>,
    beside: Arc<AtomicUsize>,
}

struct Loading {
    of: Double,
    signature: Signature,
}

impl Backend for Double {
    fn name(&self) -> &'static str {
        "double"
    }

    fn version(&self) -> String {
        String::from("1")
    }

    fn load(&self, _: &Bytes, described: &Described, _: &Limits) -> Result<Box<dyn Loaded>, Refusal> {
        let of = Self {
            hold: Arc::clone(&self.hold),
            runs: Arc::clone(&self.runs),
            beside: Arc::clone(&self.beside),
        };
        Ok(Box::new(Loading {
            of,
            signature: described.signature.clone(),
        }))
    }
}

impl Loaded for Loading {
    fn run(&self, inputs: &[&Tensor], until: Instant) -> Result<Vec<Tensor>, RunError> {
        assert_eq!(self.of.beside.fetch_add(1, Ordering::SeqCst), 0, "one run at a time");
        self.of.runs.lock().unwrap().push(inputs[0].rows());
        while self.of.hold.load(Ordering::SeqCst) && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.of.beside.fetch_sub(1, Ordering::SeqCst);
        let numbers = inputs[0].to_f32().unwrap();
        assert!(!numbers.contains(&-2.0), "a number that it cannot bear");
        if numbers.contains(&-1.0) {
            return Err(String::from("a number that it does not like").into());
        }
        if Instant::now() >= until {
            return Err(RunError::Late);
        }
        assert_eq!(self.signature.outputs.len(), 1);
        let doubled: Vec<f32> = numbers.iter().map(|number| number * 2.0).collect();
        Ok(vec![Tensor::from_f32(inputs[0].shape().to_vec(), &doubled).unwrap()])
    }

    fn memory_bytes(&self) -> u64 {
        1
    }

    fn parallel(&self) -> bool {
        false
    }
}

fn batcher(policy: Policy, bounds: Bounds) -> (Double, Arc<Batcher>) {
    let double = Double::default();
    let bytes = sample::graph(
        &[("Relu", &["x"], &["y"])],
        ("x", 1, &[None, None]),
        ("y", 1, &[None, None]),
    );
    let model = Model::load(&double, &bytes, &Limits::default()).unwrap();
    assert!(model.batchable());
    double.runs.lock().unwrap().clear();
    (double, Batcher::new(model, policy, bounds, Threads::start(1).unwrap()))
}

fn rows(numbers: &[f32]) -> Named {
    vec![(
        String::from("x"),
        Tensor::from_f32(vec![numbers.len() as u64, 1], numbers).unwrap(),
    )]
}

fn numbers(answer: &Answer) -> Vec<f32> {
    answer.as_ref().unwrap()[0].1.to_f32().unwrap()
}

fn one() -> Subject {
    Subject::named("one")
}

async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..5_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it did not come to be");
}

/// Holds the model with a first call, lets `calls` gather behind it, then lets go. Answers what they were told.
async fn gathered(double: &Double, batcher: &Arc<Batcher>, calls: Vec<Named>) -> Vec<Answer> {
    gathered_of(double, batcher, calls.into_iter().map(|call| (one(), call)).collect()).await
}

async fn gathered_of(double: &Double, batcher: &Arc<Batcher>, calls: Vec<(Subject, Named)>) -> Vec<Answer> {
    double.hold.store(true, Ordering::SeqCst);
    let first = {
        let batcher = Arc::clone(batcher);
        std::thread::spawn(move || batcher.infer_blocking(one(), rows(&[7.0]), None))
    };
    until(|| !double.runs.lock().unwrap().is_empty()).await;
    let mut waiting = Vec::new();
    let mut expected = 0;
    for (subject, call) in calls {
        expected += call[0].1.rows() as usize;
        let batcher = Arc::clone(batcher);
        waiting.push(tokio::spawn({
            let batcher = Arc::clone(&batcher);
            async move { batcher.infer(subject, call, None).await }
        }));
        until(|| batcher.waiting().0 == expected).await;
    }
    double.hold.store(false, Ordering::SeqCst);
    let mut answers = Vec::new();
    for call in waiting {
        answers.push(call.await.unwrap());
    }
    assert_eq!(numbers(&first.join().unwrap()), [14.0]);
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_call_runs_on_its_own_thread() {
    let (double, batcher) = batcher(Policy::default(), Bounds::default());
    assert_eq!(
        numbers(&batcher.infer(one(), rows(&[1.0, 2.0]), None).await),
        [2.0, 4.0]
    );
    assert_eq!(numbers(&batcher.infer_blocking(one(), rows(&[3.0]), None)), [6.0]);
    assert_eq!(*double.runs.lock().unwrap(), [2, 1]);
    let stats = batcher.stats();
    assert_eq!(
        (stats.calls, stats.runs, stats.run_rows.sum, stats.failed),
        (2, 2, 3, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_meanwhile_is_one_run() {
    let (double, batcher) = batcher(Policy::default(), Bounds::default());
    let answers = gathered(&double, &batcher, vec![rows(&[1.0]), rows(&[2.0, 3.0]), rows(&[4.0])]).await;
    let all: Vec<Vec<f32>> = answers.iter().map(numbers).collect();
    assert_eq!(all, [vec![2.0], vec![4.0, 6.0], vec![8.0]]);
    assert_eq!(*double.runs.lock().unwrap(), [1, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_two_tenants_are_never_in_one_run() {
    let (double, batcher) = batcher(Policy::default(), Bounds::default());
    let two = || Subject::named("two");
    let calls = vec![
        (one(), rows(&[1.0])),
        (two(), rows(&[10.0, 20.0, 30.0])),
        (one(), rows(&[2.0])),
        (two(), rows(&[40.0, 50.0])),
    ];
    let answers = gathered_of(&double, &batcher, calls).await;
    assert_eq!(numbers(&answers[2]), [4.0]);
    assert_eq!(numbers(&answers[3]), [80.0, 100.0]);
    let mut runs = double.runs.lock().unwrap().clone();
    runs.sort_unstable();
    assert_eq!(runs, [1, 2, 5], "the first alone, then each tenant's together");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_tenants_that_chose_so_are_one_run() {
    let policy = Policy {
        together: true,
        ..Policy::default()
    };
    let (double, batcher) = batcher(policy, Bounds::default());
    let two = || Subject::named("two");
    let calls = vec![
        (one(), rows(&[1.0])),
        (two(), rows(&[10.0, 20.0, 30.0])),
        (one(), rows(&[2.0])),
        (two(), rows(&[40.0, 50.0])),
    ];
    let answers = gathered_of(&double, &batcher, calls).await;
    assert_eq!(numbers(&answers[1]), [20.0, 40.0, 60.0]);
    assert_eq!(numbers(&answers[2]), [4.0]);
    assert_eq!(
        *double.runs.lock().unwrap(),
        [1, 7],
        "the first alone, then all that came meanwhile"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_shapes_are_other_runs() {
    let (double, batcher) = batcher(Policy::default(), Bounds::default());
    let wide = vec![(String::from("x"), Tensor::from_f32(vec![1, 2], &[5.0, 6.0]).unwrap())];
    let answers = gathered(&double, &batcher, vec![rows(&[1.0]), wide, rows(&[2.0])]).await;
    assert_eq!(numbers(&answers[1]), [10.0, 12.0]);
    assert_eq!(answers[1].as_ref().unwrap()[0].1.shape(), [1, 2]);
    assert_eq!(numbers(&answers[2]), [4.0]);
    let mut runs = double.runs.lock().unwrap().clone();
    runs.sort_unstable();
    assert_eq!(
        runs,
        [1, 1, 1, 1],
        "a subject's calls keep their order, so the two alike do not meet"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_poison_fails() {
    for (poison, panics) in [(-1.0, false), (-2.0, true)] {
        let (double, batcher) = batcher(Policy::default(), Bounds::default());
        let answers = gathered(&double, &batcher, vec![rows(&[1.0]), rows(&[poison]), rows(&[3.0])]).await;
        assert_eq!(numbers(&answers[0]), [2.0]);
        assert_eq!(numbers(&answers[2]), [6.0]);
        assert_eq!(
            matches!(answers[1], Err(InferError::Panicked(_))),
            panics,
            "{:?}",
            answers[1]
        );
        assert_eq!(matches!(answers[1], Err(InferError::Failed(_))), !panics);
        assert_eq!(batcher.model().panicked().is_some(), panics);
        // After a panic it is to be loaded anew.
        assert_eq!(batcher.infer(one(), rows(&[1.0]), None).await.is_err(), panics);
        assert_eq!(batcher.stats().failed, if panics { 2 } else { 1 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_fails_alone_and_first() {
    let (double, batcher) = batcher(Policy::default(), Bounds::default());
    let wrong = vec![(String::from("x"), Tensor::from_i64(vec![1, 1], &[1]).unwrap())];
    assert!(matches!(
        batcher.infer(one(), wrong, None).await,
        Err(InferError::Input(_))
    ));
    let many = vec![(
        String::from("x"),
        Tensor::from_f32(vec![5_000, 1], &[0.0; 5_000]).unwrap(),
    )];
    assert!(matches!(
        batcher.infer(one(), many, None).await,
        Err(InferError::Rows { rows: 5_000, .. })
    ));
    assert!(double.runs.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_end_a_wait_and_nothing_is_run_for_them() {
    let (double, batcher) = batcher(Policy::default(), Bounds::default());
    double.hold.store(true, Ordering::SeqCst);
    let first = tokio::task::spawn_blocking({
        let batcher = Arc::clone(&batcher);
        move || batcher.infer_blocking(one(), rows(&[7.0]), None)
    });
    until(|| !double.runs.lock().unwrap().is_empty()).await;
    let soon = || Some(Instant::now() + Duration::from_millis(20));
    assert_eq!(
        batcher.infer(one(), rows(&[1.0]), soon()).await,
        Err(InferError::Deadline)
    );
    let blocking = tokio::task::spawn_blocking({
        let batcher = Arc::clone(&batcher);
        move || batcher.infer_blocking(one(), rows(&[1.0]), soon())
    });
    assert_eq!(blocking.await.unwrap(), Err(InferError::Deadline));
    assert_eq!(
        batcher.infer(one(), rows(&[1.0]), Some(Instant::now())).await,
        Err(InferError::Deadline)
    );
    // A call whose future is dropped goes as well.
    let dropped = tokio::time::timeout(Duration::from_millis(5), batcher.infer(one(), rows(&[1.0]), None)).await;
    assert!(dropped.is_err());
    assert_eq!(batcher.waiting(), (0, 0));
    double.hold.store(false, Ordering::SeqCst);
    assert_eq!(numbers(&first.await.unwrap()), [14.0]);
    assert_eq!(*double.runs.lock().unwrap(), [1]);
    assert_eq!(batcher.stats().expired, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_how_full() {
    let (double, batcher) = batcher(Policy::default(), Bounds { rows: 2, bytes: 1_000 });
    double.hold.store(true, Ordering::SeqCst);
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let batcher = Arc::clone(&batcher);
            tokio::task::spawn_blocking(move || batcher.infer_blocking(one(), rows(&[1.0]), None))
        })
        .collect();
    until(|| batcher.waiting().0 == 2).await;
    let busy = batcher.infer(one(), rows(&[1.0]), None).await;
    assert_eq!(
        busy,
        Err(InferError::Busy {
            waiting_rows: 2,
            waiting_bytes: 8,
            max_rows: 2,
            max_bytes: 1_000
        })
    );
    double.hold.store(false, Ordering::SeqCst);
    for call in calls {
        assert_eq!(numbers(&call.await.unwrap()), [2.0]);
    }
    assert_eq!(batcher.stats().busy, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_waits_gathers_and_a_policy_that_is_off_does_not() {
    let (double, batcher) = batcher(
        Policy {
            max_rows: 8,
            max_wait_us: 50_000,
            off: false,
            together: false,
        },
        Bounds::default(),
    );
    let call = |number: f32| {
        let batcher = Arc::clone(&batcher);
        tokio::spawn(async move { batcher.infer(one(), rows(&[number]), None).await })
    };
    let calls: Vec<_> = (0..3).map(|at| call(at as f32)).collect();
    for (at, call) in calls.into_iter().enumerate() {
        assert_eq!(numbers(&call.await.unwrap()), [2.0 * at as f32]);
    }
    assert_eq!(*double.runs.lock().unwrap(), [3]);
    batcher.set_policy(Policy::off());
    double.runs.lock().unwrap().clear();
    let answers = gathered(&double, &batcher, vec![rows(&[1.0]), rows(&[2.0])]).await;
    assert_eq!(answers.iter().map(numbers).collect::<Vec<_>>(), [[2.0], [4.0]]);
    assert_eq!(*double.runs.lock().unwrap(), [1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_stop_leave_nobody_waiting() {
    let (double, batcher) = batcher(Policy::default(), Bounds::default());
    double.hold.store(true, Ordering::SeqCst);
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let batcher = Arc::clone(&batcher);
            tokio::task::spawn_blocking(move || batcher.infer_blocking(one(), rows(&[1.0]), None))
        })
        .collect();
    until(|| batcher.waiting().0 == 3).await;
    let stop = tokio::task::spawn_blocking({
        let threads = Arc::clone(&batcher.threads);
        move || threads.stop()
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    double.hold.store(false, Ordering::SeqCst);
    stop.await.unwrap();
    let mut stopped = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => assert_eq!(answer[0].1.to_f32().unwrap(), [2.0]),
            Err(error) => {
                assert_eq!(error, InferError::Stopping);
                stopped += 1;
            }
        }
    }
    assert_eq!(stopped, 3);
    assert_eq!(
        batcher.infer_blocking(one(), rows(&[1.0]), None),
        Err(InferError::Stopping)
    );
}

/// Many callers, real threads, real model: each gets its own answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_each_get_their_own() {
    let backend = crate::backend::tract::Tract::new();
    let model = Model::load(&backend, &sample::read("digits-mlp"), &Limits::default()).unwrap();
    let batcher = Batcher::new(model, Policy::default(), Bounds::default(), Threads::start(2).unwrap());
    let expected = Arc::new(
        sample::expected()
            .into_iter()
            .find(|(name, _)| *name == "digits-mlp")
            .unwrap()
            .1,
    );
    let mut callers = Vec::new();
    for caller in 0..32u64 {
        let (batcher, expected) = (Arc::clone(&batcher), Arc::clone(&expected));
        callers.push(tokio::spawn(async move {
            let subject = Subject::named(&format!("tenant-{}", caller % 3));
            for round in 0..50 {
                let (from, rows) = ((caller + round) % 3, 1 + (caller + round) % 2);
                let rows = rows.min(3 - from);
                let input = expected.tensor().slice(from, rows).unwrap();
                let answer = batcher
                    .infer(subject, vec![(expected.input.clone(), input)], None)
                    .await
                    .unwrap();
                assert_eq!(
                    answer[0].1.to_i64().unwrap(),
                    expected.label[from as usize..(from + rows) as usize]
                );
                tokio::task::yield_now().await;
            }
        }));
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let stats = batcher.stats();
    assert_eq!((stats.calls, stats.failed), (1_600, 0));
    assert_eq!(stats.queue_us.counts.iter().sum::<u64>(), 1_600);
    assert_eq!(batcher.waiting(), (0, 0));
}
