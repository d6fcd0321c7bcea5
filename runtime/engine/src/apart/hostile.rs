//! A tenant's process that was taken over, played by these tests: whatever it says, the call ends, and so does the process.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use skep_model::egress::Scheme;
use skep_model::id::{Digest, Uid};
use skep_model::limits::{
    APART_ASKS_MAX, APART_BACKOFF_FIRST_MS, APART_BESIDE_BYTES, APART_PROCESSES_MAX, APART_TOLD_BYTES_MAX,
    HTTP_PER_CALL_MAX, HTTP_REQUESTS_PER_CALL_MAX,
};
use skep_model::message::Message;
use skep_model::name::TenantId;
use skep_model::step::{Batch, Disposition, Input, Outcome, Processed, Step, TrapKind};

use super::codec::{Wire, written};
use super::link::{Bounds, Link, Room};
use super::messages::{Answer, Ask, Done, Hello, News, Order, ToGuest, ToHost};
use super::process::{Process, Start, streams};
use super::{ApartBee, Codes, Processes};
use crate::artifact::{Artifact, Sealed, Shared};
use crate::bee::BeeSettings;
use crate::settings::Settings;

struct NoCode;

#[async_trait]
impl Codes for NoCode {
    async fn code(&self, _: &TenantId, _: Digest) -> Result<Artifact, String> {
        Err("there is none".to_owned())
    }
}

/// A process that does nothing, and its end of the orders.
struct Impostor {
    processes: Arc<Processes>,
    process: Arc<Process>,
    orders: Link,
    bee: Arc<ApartBee>,
}

fn trusting() -> Bounds {
    Bounds {
        frame: APART_TOLD_BYTES_MAX,
        lists: APART_TOLD_BYTES_MAX,
        room: Room::endless(),
        queue: usize::MAX,
        descriptors: true,
    }
}

/// Processes that such a script makes: told so on its standard input, it is as good as any.
fn scripted(script: &str) -> Arc<Processes> {
    let ready: String = framed(&News::Ready)
        .iter()
        .map(|byte| format!("\\{byte:03o}"))
        .collect();
    let script = format!("ready() {{ printf '{ready}' >&0; }}; {script}");
    let engine = Settings::new(std::path::PathBuf::new());
    Processes::new("/bin/sh".into(), vec!["-c".into(), script.into()], &engine).unwrap()
}

fn is_there(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

impl Impostor {
    async fn new() -> Self {
        let mut idle = tokio::process::Command::new("sleep");
        idle.arg("600");
        Self::of(idle, 1 << 30).await
    }

    /// One that is such a program.
    async fn of(mut command: tokio::process::Command, memory_bytes: u64) -> Self {
        let engine = Settings::new(std::path::PathBuf::new());
        let processes = Processes::new("/nowhere".into(), Vec::new(), &engine).unwrap();
        let tenant: TenantId = "acme".parse().unwrap();
        let share = Arc::<crate::Share>::default();
        let (idle, _kept) = StdStream::pair().unwrap();
        streams(&mut command, idle);
        let (own, its) = StdStream::pair().unwrap();
        let start = Start {
            hello: Hello {
                tenant: tenant.clone(),
                threads: 1,
                running: 1,
                spare: 1,
                memory_bytes_max: 1,
                modules_bytes: 1,
                idle_ms: 1,
                limits: share.told(),
            },
            share: Arc::clone(&share),
            memory_bytes,
            place: Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap(),
        };
        let process = tokio::spawn(Process::new(command.spawn().unwrap(), own, start));
        let mut orders = Link::new(its, trusting()).unwrap();
        assert!(matches!(orders.next().await, Ok(Some(Order::Hello(_)))));
        orders.put(&News::Ready, Vec::new()).unwrap();
        let process = process.await.unwrap().unwrap();
        processes.adopt(&process);
        let settings = BeeSettings {
            share,
            wall_ms: 500,
            cpu_ms: 500,
            ..BeeSettings::plain(Digest([1; 32]))
        };
        let bee = ApartBee::new(
            Arc::clone(&processes),
            Arc::new(NoCode),
            tenant,
            Digest([1; 32]),
            "echo".parse().unwrap(),
            settings,
        );
        Self {
            processes,
            process,
            orders,
            bee: Arc::new(bee),
        }
    }

    /// A call, and its socket.
    async fn called(&mut self) -> (tokio::task::JoinHandle<Processed>, StdStream) {
        let bee = Arc::clone(&self.bee);
        let batch = Batch {
            inputs: vec![input()],
            ..Batch::default()
        };
        let call = tokio::spawn(async move { bee.process(batch).await });
        loop {
            match self.orders.next::<Order>().await.unwrap().unwrap() {
                Order::Call => break,
                Order::Ping(number) => self.orders.put(&News::Pong(number), Vec::new()).unwrap(),
                _ => {}
            }
        }
        let socket: OwnedFd = self.orders.descriptor().unwrap();
        (call, StdStream::from(socket))
    }
}

fn input() -> Input {
    Input::Message {
        message: Message {
            uid: Uid([1; 16]),
            key: None,
            headers: Vec::new(),
            payload: b"hello".as_slice().into(),
            accepted_ms: 1,
            request: None,
            trace: None,
            lineage: None,
            hops: Vec::new(),
        },
        attempt: 1,
    }
}

fn steps(count: usize) -> ToHost {
    let step = Step {
        outcome: Outcome {
            publish: Vec::new(),
            respond: Vec::new(),
            disposition: Disposition::Done,
        },
        state: Vec::new(),
        timers: Vec::new(),
    };
    let result = Ok(vec![step; count]);
    ToHost::Done(Box::new(Done {
        result,
        log: Vec::new(),
    }))
}

fn framed(said: &impl Wire) -> Vec<u8> {
    let body = written(said);
    [&u32::try_from(body.len()).unwrap().to_le_bytes()[..], &body].concat()
}

fn told(processed: Processed) -> String {
    let trap = processed.result.unwrap_err();
    assert_eq!(
        trap.kind,
        TrapKind::Host,
        "it is never the message's fault: {}",
        trap.detail
    );
    trap.detail
}

#[tokio::test]
async fn a_process_that_keeps_the_rules_is_believed() {
    let mut impostor = Impostor::new().await;
    let (call, socket) = impostor.called().await;
    let mut link = Link::new(socket, trusting()).unwrap();
    assert!(matches!(link.next().await, Ok(Some(ToGuest::Call(_)))));
    link.put(&ToHost::NeedBee, Vec::new()).unwrap();
    let Ok(Some(ToGuest::Bee(bee))) = link.next().await else {
        panic!("no Bee")
    };
    assert_eq!(bee.name.as_str(), "echo");
    link.put(&steps(1), Vec::new()).unwrap();
    assert_eq!(call.await.unwrap().result.unwrap().len(), 1);
    // The next call comes on the same socket.
    let bee = Arc::clone(&impostor.bee);
    let next = tokio::spawn(async move {
        let inputs = vec![input()];
        bee.process(Batch {
            inputs,
            ..Batch::default()
        })
        .await
    });
    assert!(matches!(link.next().await, Ok(Some(ToGuest::Call(_)))));
    link.put(&steps(1), Vec::new()).unwrap();
    assert!(next.await.unwrap().result.is_ok());
    assert!(!impostor.process.gone.is_cancelled());
    impostor.processes.stop().await;
    assert!(impostor.process.reaped.is_cancelled());
}

#[tokio::test]
async fn one_that_breaks_the_rules_is_killed_and_the_call_is_the_hosts() {
    let ask = |number| ToHost::Ask(number, Ask::Find("m".parse().unwrap()));
    let part = |input| {
        let data = b"x".as_slice().into();
        ToHost::Ask(1, Ask::Part { input, data })
    };
    let dial = |number| {
        let (scheme, host, port) = (Scheme::Http, "127.0.0.1".to_owned(), 1);
        ToHost::Ask(number, Ask::Dial { scheme, host, port })
    };
    let many: Vec<u8> = (0..2 * APART_ASKS_MAX).flat_map(|_| framed(&ask(1))).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no step", framed(&steps(0))),
        ("two steps", framed(&steps(2))),
        ("what a look answers", framed(&ToHost::Looked(Ok((Vec::new(), false))))),
        ("another's module", framed(&ToHost::NeedCode(Digest([9; 32])))),
        (
            "its settings twice",
            [framed(&ToHost::NeedBee), framed(&ToHost::NeedBee)].concat(),
        ),
        ("a part of no input", framed(&part(1))),
        ("the same number twice", many),
        (
            "three questions at once",
            (1..=3).flat_map(|number| framed(&ask(number))).collect(),
        ),
        (
            "more connections at once than a call may have",
            (1..=1 + HTTP_PER_CALL_MAX as u32 + 2)
                .flat_map(|number| framed(&dial(number)))
                .collect(),
        ),
        ("a frame of 4 GiB", vec![0xff; 64]),
        ("a frame of no kind", vec![1, 0, 0, 0, 99]),
        ("a list without end", vec![7, 0, 0, 0, 3, 1, 0xff, 0xff, 0xff, 0xff, 0]),
        ("bytes behind the end", {
            let mut frame = framed(&steps(1));
            frame.push(0);
            frame[0] += 1;
            frame
        }),
    ];
    for (what, bytes) in cases {
        let mut impostor = Impostor::new().await;
        let (call, mut socket) = impostor.called().await;
        socket.write_all(&bytes).unwrap();
        let detail = told(call.await.unwrap());
        assert!(detail.contains("killed"), "{what}: {detail}");
        let reaped = tokio::time::timeout(Duration::from_secs(10), impostor.process.reaped.cancelled()).await;
        assert!(reaped.is_ok(), "{what}: it lives");
        assert!(!impostor.process.ended_well(), "{what}");
    }
}

#[tokio::test]
async fn large_frames_have_a_bound_together_and_who_finds_no_room_waits() {
    let mut impostor = Impostor::new().await;
    let before = impostor.process.room.left();
    let mut calls = Vec::new();
    // Frames of 16 MiB that never come to their ends: as many as there is room for.
    let large = (16 << 20) - 1_024;
    for _ in 0..before / (16 << 20) {
        let (call, mut socket) = impostor.called().await;
        socket.write_all(&u32::try_from(large).unwrap().to_le_bytes()).unwrap();
        calls.push((call, socket));
    }
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while impostor.process.room.left() > 0 {
        assert!(
            std::time::Instant::now() < until,
            "{} left",
            impostor.process.room.left()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One more is not read beyond what the kernel keeps of it, ...
    let (waiting, socket) = impostor.called().await;
    socket.set_nonblocking(true).unwrap();
    let mut sent = (&socket).write(&u32::try_from(large).unwrap().to_le_bytes()).unwrap();
    let piece = vec![0; 64 << 10];
    let until = std::time::Instant::now() + Duration::from_secs(1);
    while std::time::Instant::now() < until {
        match (&socket).write(&piece) {
            Ok(more) => sent += more,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    assert!(sent < 2 << 20, "{sent} bytes were taken");
    assert!(!waiting.is_finished());
    // ... and a small one comes by.
    let (call, socket) = impostor.called().await;
    let mut link = Link::new(socket, trusting()).unwrap();
    assert!(matches!(link.next().await, Ok(Some(ToGuest::Call(_)))));
    link.put(&steps(1), Vec::new()).unwrap();
    assert!(call.await.unwrap().result.is_ok());
    // All of it goes with the process.
    impostor.process.kill("a test ends");
    for (call, _) in calls {
        told(call.await.unwrap());
    }
    told(waiting.await.unwrap());
    assert_eq!(impostor.process.room.left(), before);
}

#[tokio::test]
async fn one_that_dies_or_says_nothing_ends_the_call() {
    let mut impostor = Impostor::new().await;
    let (call, socket) = impostor.called().await;
    drop(socket);
    assert!(told(call.await.unwrap()).contains("died"));
    assert!(!impostor.process.gone.is_cancelled(), "a call may end so by itself");

    // Once the node stops, a call has its own time and a little more.
    let (call, _socket) = impostor.called().await;
    impostor.processes.stopping();
    let began = std::time::Instant::now();
    assert!(told(call.await.unwrap()).contains("did not end"));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

async fn reaped(process: &Process) {
    let reaped = tokio::time::timeout(Duration::from_secs(10), process.reaped.cancelled()).await;
    assert!(reaped.is_ok(), "it lives");
    assert!(!is_there(process.pid));
}

#[tokio::test]
async fn one_that_takes_no_orders_any_more_is_killed() {
    let impostor = Impostor::new().await;
    drop(impostor.orders);
    reaped(&impostor.process).await;
    impostor.processes.stop().await;
}

#[tokio::test]
async fn one_that_talks_of_itself_without_end_is_killed() {
    let mut impostor = Impostor::new().await;
    let news = || News::Used {
        bees: Vec::new(),
        instances: 0,
        memory: 0,
    };
    for _ in 0..1_000 {
        if impostor.orders.put(&news(), Vec::new()).is_err() {
            break;
        }
    }
    reaped(&impostor.process).await;
}

#[tokio::test]
async fn one_that_takes_more_memory_than_its_tenant_may_is_killed() {
    let mut greedy = tokio::process::Command::new("tail");
    // It keeps so much of what never ends.
    greedy.args(["-c", &(APART_BESIDE_BYTES + (64 << 20)).to_string(), "/dev/zero"]);
    let impostor = Impostor::of(greedy, 0).await;
    let gone = tokio::time::timeout(Duration::from_secs(60), impostor.process.reaped.cancelled()).await;
    assert!(gone.is_ok(), "it lives");
    assert!(!impostor.process.ended_well());
}

#[tokio::test]
async fn a_call_asks_for_so_many_connections_and_no_more() {
    let mut impostor = Impostor::new().await;
    let (call, socket) = impostor.called().await;
    let mut link = Link::new(socket, trusting()).unwrap();
    assert!(matches!(link.next().await, Ok(Some(ToGuest::Call(_)))));
    for number in 0..HTTP_REQUESTS_PER_CALL_MAX {
        let number = u32::try_from(number).unwrap();
        let (scheme, host, port) = (Scheme::Http, "127.0.0.1".to_owned(), 1);
        let ask = ToHost::Ask(number, Ask::Dial { scheme, host, port });
        link.put(&ask, Vec::new()).unwrap();
        let told = link.next::<ToGuest>().await.unwrap().unwrap();
        assert!(matches!(told, ToGuest::Answer(of, Answer::Dialled(Err(_))) if of == number));
    }
    let (scheme, host, port) = (Scheme::Http, "127.0.0.1".to_owned(), 1);
    link.put(&ToHost::Ask(u32::MAX, Ask::Dial { scheme, host, port }), Vec::new())
        .unwrap();
    assert!(told(call.await.unwrap()).contains("killed"));
    reaped(&impostor.process).await;
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_nothing_under_way() {
    let mut impostor = Impostor::new().await;
    let (call, socket) = impostor.called().await;
    let mut link = Link::new(socket, trusting()).unwrap();
    assert!(matches!(link.next().await, Ok(Some(ToGuest::Call(_)))));
    assert!(impostor.process.idle().is_none());
    call.abort();
    assert!(call.await.is_err());
    // The process hears of it by the end of its socket, and may be called again.
    assert!(matches!(link.next::<ToGuest>().await, Ok(None)));
    assert!(impostor.process.idle().is_some());
    let (call, socket) = impostor.called().await;
    let mut link = Link::new(socket, trusting()).unwrap();
    assert!(matches!(link.next().await, Ok(Some(ToGuest::Call(_)))));
    link.put(&steps(1), Vec::new()).unwrap();
    assert!(call.await.unwrap().result.is_ok());
}

#[tokio::test]
async fn one_that_lies_about_a_module_is_killed() {
    for said in [
        framed(&steps(1)),
        framed(&ToHost::NeedCode(Digest([9; 32]))),
        vec![0xff; 64],
        vec![1, 0, 0, 0, 99],
        framed(&ToHost::NeedCode(Digest([1; 32]))).repeat(2),
    ] {
        let mut impostor = Impostor::new().await;
        let processes = Arc::clone(&impostor.processes);
        let looking = tokio::spawn(async move {
            let artifact = Artifact::new(Sealed::of("code", b"none").unwrap(), None);
            let (tenant, share) = ("acme".parse().unwrap(), Arc::default());
            processes.look(&tenant, &share, Digest([1; 32]), &artifact).await
        });
        let Ok(Some(Order::Call)) = impostor.orders.next().await else {
            panic!("no call")
        };
        let mut socket = StdStream::from(impostor.orders.descriptor().unwrap());
        socket.write_all(&said).unwrap();
        let refused = looking.await.unwrap().unwrap_err();
        assert!(matches!(refused, crate::Error::Apart(_)), "{refused}");
        reaped(&impostor.process).await;
    }
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_any_more_is_the_next_callers() {
    let processes = scripted("sleep 0.3; ready; exec sleep 600");
    let tenant: TenantId = "acme".parse().unwrap();
    let share = Arc::<crate::Share>::default();
    let given_up = tokio::time::timeout(Duration::from_millis(50), processes.of(&tenant, &share)).await;
    assert!(given_up.is_err(), "it started too soon for this test");
    let process = processes.of(&tenant, &share).await.unwrap();
    assert_eq!((processes.counts().starts, processes.counts().processes), (1, 1));
    assert!(is_there(process.pid));
    processes.stop().await;
    assert!(!is_there(process.pid));
}

#[tokio::test]
async fn a_node_that_stops_leaves_none_that_is_being_started() {
    let processes = scripted("sleep 0.3; ready; exec sleep 600");
    let tenant: TenantId = "acme".parse().unwrap();
    let of = Arc::clone(&processes);
    let calling = tokio::spawn(async move { of.of(&tenant, &Arc::default()).await.map(|process| process.pid) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    processes.stop().await;
    assert_eq!(calling.await.unwrap(), Err("the node stops".to_owned()));
    assert_eq!(processes.counts().processes, 0);
}

#[tokio::test]
async fn one_that_cannot_start_is_not_tried_at_every_call() {
    let processes = scripted("exit 3");
    let tenant: TenantId = "acme".parse().unwrap();
    let share = Arc::<crate::Share>::default();
    let began = std::time::Instant::now();
    for _ in 0..4 {
        let refused = processes.of(&tenant, &share).await.err().unwrap();
        assert!(refused.contains("ended at its start"), "{refused}");
    }
    let waits = APART_BACKOFF_FIRST_MS * (1 + 2 + 4);
    assert!(began.elapsed() >= Duration::from_millis(waits), "{:?}", began.elapsed());
    assert_eq!(processes.counts().starts, 0);
}

#[tokio::test]
async fn a_node_has_so_many_and_the_one_longest_idle_makes_room() {
    let processes = scripted("ready; exec sleep 600");
    let share = Arc::<crate::Share>::default();
    let mut all = Vec::new();
    for at in 0..APART_PROCESSES_MAX {
        let tenant: TenantId = format!("tenant-{at}").parse().unwrap();
        all.push(processes.of(&tenant, &share).await.unwrap());
    }
    // All are busy: the next has to wait for its turn elsewhere.
    let busy: Vec<_> = all.iter().map(Process::busy).collect();
    let one_more: TenantId = "one-more".parse().unwrap();
    let refused = processes.of(&one_more, &share).await.err().unwrap();
    assert!(refused.contains("all are busy"), "{refused}");
    drop(busy);
    let second = all[1].busy();
    drop(second);
    // The second was called last; of the others any may go, and one does.
    processes.of(&one_more, &share).await.unwrap();
    let gone: Vec<_> = all.iter().filter(|process| process.gone.is_cancelled()).collect();
    assert_eq!(gone.len(), 1);
    assert!(gone[0].ended_well());
    processes.stop().await;
    assert!(all.iter().all(|process| !is_there(process.pid)));
}

#[tokio::test]
async fn one_that_answers_what_was_not_asked_is_killed() {
    let mut impostor = Impostor::new().await;
    impostor.orders.put(&News::Pong(0), Vec::new()).unwrap();
    reaped(&impostor.process).await;
}

#[tokio::test]
async fn a_tenant_that_was_made_anew_has_another_process() {
    let processes = scripted("ready; exec sleep 600");
    let tenant: TenantId = "acme".parse().unwrap();
    let share = Arc::<crate::Share>::default();
    share.bear(1);
    let first = processes.of(&tenant, &share).await.unwrap();
    assert_eq!(processes.of(&tenant, &share).await.unwrap().pid, first.pid);
    share.bear(2);
    let second = processes.of(&tenant, &share).await.unwrap();
    assert_ne!(first.pid, second.pid);
    reaped(&first).await;
    processes.stop().await;
}

#[tokio::test]
async fn many_that_start_at_once_are_no_more_than_a_node_may_have() {
    let processes = scripted("sleep 0.2; ready; exec sleep 600");
    let starts = (0..APART_PROCESSES_MAX + 8).map(|at| {
        let processes = Arc::clone(&processes);
        let tenant: TenantId = format!("tenant-{at}").parse().unwrap();
        tokio::spawn(async move { processes.of(&tenant, &Arc::default()).await.map(|process| process.pid) })
    });
    let started: Vec<_> = futures::future::join_all(starts).await;
    let pids: Vec<u32> = started
        .into_iter()
        .filter_map(|started| started.unwrap().ok())
        .collect();
    let there = pids.iter().filter(|pid| is_there(**pid)).count();
    assert!(pids.len() >= APART_PROCESSES_MAX, "{}", pids.len());
    assert!(there <= APART_PROCESSES_MAX, "{there}");
    processes.stop().await;
}

#[tokio::test]
async fn whoever_asks_for_code_again_has_the_same_file() {
    let impostor = Impostor::new().await;
    let read = |own: &[u8]| {
        let shared = Shared {
            digest: Digest([7; 32]),
            native: Arc::new(Sealed::of("shared", b"as each reading of the cache has it").unwrap()),
        };
        Artifact::new(Sealed::of("own", own).unwrap(), Some(shared))
    };
    let file = |code: &Artifact, at: usize| {
        let file = std::fs::File::from(code.hand_over().unwrap().remove(at));
        std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap())
    };
    let first = impostor.process.hand(Digest([1; 32]), &read(b"one"));
    let again = impostor.process.hand(Digest([1; 32]), &read(b"one"));
    assert_eq!((file(&first, 0), file(&first, 1)), (file(&again, 0), file(&again, 1)));
    let other = impostor.process.hand(Digest([2; 32]), &read(b"two"));
    assert_ne!(file(&first, 0), file(&other, 0));
    assert_eq!(file(&first, 1), file(&other, 1), "what they share is there once");
    assert!(impostor.process.code(Digest([2; 32])).is_some());
    assert!(!impostor.process.gone.is_cancelled());
    impostor.processes.stop().await;
}
