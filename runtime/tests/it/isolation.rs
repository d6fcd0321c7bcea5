//! Tenants with processes of their own: they work as any other, nothing of theirs is in the node's process, and what becomes of the process
//! is nobody else's trouble.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use skep_proto::v1;
use tonic::{Code, Status};

use crate::access::{apply_as, push_as, with};
use crate::kills::{LEDGER, message};
use crate::node::{Node, SOON, Start, root, streaming_tokens, upload};

const ECHO: &str = "
name: echoes
bees:
  - { name: rascal, module: test-bees, input: { gateway: echo }, timeout: 2s, memory: 64MiB, retry: { attempts: 1 } }
";
const COUNT: &str = "
name: counts
bees:
  - { name: effect, module: test-bees, key: message, state: true, input: { gateway: count } }
";
const TALK: &str = "
name: talk
bees:
  - { name: gossip, module: test-bees, input: { gateway: talk }, secrets: [api-key], instances: pooled, retry: { attempts: 1 } }
";
const TOKENS: &str = "
name: spoken
bees:
  - { name: parrot, module: test-bees, input: { gateway: spoken } }
";
const DIGITS: &str = "
name: digits
bees:
  - { name: infer, module: test-bees, input: { gateway: digits }, models: [digits], retry: { attempts: 1 } }
";
const PARTIES: &[&str] = &[ECHO, COUNT, TALK, TOKENS, DIGITS];

/// A tenant with its Bees, and a token of it.
async fn tenant(node: &Node, operator: &str, name: &str, options: &[&str], manifests: &[&str]) -> String {
    node.cli_ok_as(operator, &[&["tenant", "create", name], options].concat());
    let token = node.token(operator, name, "admin");
    push_as(node, &token, "test-bees").await.expect("push");
    for manifest in manifests {
        apply_as(node, &token, manifest).await.expect("apply");
    }
    token
}

async fn ask(node: &Node, token: &str, subject: &str, payload: impl Into<Vec<u8>>) -> Result<Vec<u8>, Status> {
    let call = v1::RequestCall {
        subject: subject.to_owned(),
        payload: payload.into().into(),
        timeout_ms: 60_000,
        key: (subject == "count").then(|| "k".to_owned()),
        ..v1::RequestCall::default()
    };
    let reply = node.gateway().await.request(with(token, call)).await?.into_inner();
    match reply.result {
        Some(v1::reply::Result::Response(bytes)) => Ok(bytes.to_vec()),
        other => panic!("not a response: {other:?}"),
    }
}

async fn says(node: &Node, token: &str, subject: &str, payload: &str) -> String {
    let answer = ask(node, token, subject, payload).await;
    String::from_utf8(answer.unwrap_or_else(|e| panic!("{payload}: {e}"))).unwrap()
}

/// The tenant's process on a node, where there is one.
fn process(node: &Node, operator: &str, name: &str) -> Option<i32> {
    let shown = node.cli_ok_as(operator, &["tenant", "show", name, "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let id = shown["tenants"][0]["process_id"].as_i64()?;
    Some(i32::try_from(id).unwrap())
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).expect("a signal to the tenant's process");
}

fn is_there(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains('Z'))
}

async fn goes(pid: i32, within: Duration) {
    let until = Instant::now() + within;
    while is_there(pid) {
        assert!(Instant::now() < until, "process {pid} is there still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the kernel tells of a process. A tenant's process lets nobody look into it but who may look into any.
fn peek(path: &str) -> Option<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("SKIPPED: {path} is for root alone");
            None
        }
        Err(e) => panic!("{path}: {e}"),
    }
}

/// Native code of modules that a process has mapped.
fn code(pid: i32) -> Option<usize> {
    let maps = peek(&format!("/proc/{pid}/maps"))?;
    Some(count_code(&maps))
}

fn count_code(maps: &str) -> usize {
    maps.lines()
        .filter(|line| line.contains("skep-artifact") && line.contains("r-xp"))
        .count()
}

fn picture(row: f32) -> Vec<u8> {
    let values = std::iter::repeat_n(row, 784).flat_map(f32::to_le_bytes);
    2_u32.to_le_bytes().into_iter().chain(values).collect()
}

async fn parts(node: &Node, token: &str, payload: &str) -> usize {
    let login = skep_client::Login::default().token(token).unwrap();
    let gateway = skep_client::Gateway::connect_with(node.url.clone(), login)
        .await
        .unwrap();
    let mut parts = gateway
        .request("spoken", payload.to_owned())
        .timeout(SOON)
        .stream()
        .await
        .unwrap();
    let mut count = 0;
    while let Some(part) = parts.next().await.unwrap() {
        assert!(part.starts_with(format!("{count};").as_bytes()));
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_with_a_process_of_its_own_works_as_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let options = ["--isolation", "process", "--memory", "512MiB"];
    let acme = tenant(&node, &operator, "acme", &options, &[]).await;
    // Reading the names of a module's Bees runs it, so that too is done there.
    let first = process(&node, &operator, "acme").expect("a process since the push");
    assert_eq!(code(node.pid()), Some(0));
    assert!(code(first).is_none_or(|count| count > 0));
    let digits = root().join("samples/models/digits-mlp.onnx");
    node.cli_ok_as(&acme, &["model", "push", digits.to_str().unwrap(), "--name", "digits"]);
    secret(&node, &acme, "sk-first-0123456789");
    for manifest in PARTIES {
        apply_as(&node, &acme, manifest).await.expect("apply");
    }

    assert_eq!(says(&node, &acme, "echo", "hello").await, "hello");
    for count in 1..4 {
        assert_eq!(says(&node, &acme, "count", "k").await, count.to_string());
    }
    assert_eq!(parts(&node, &acme, r#"{"parts":200,"bytes":20000}"#).await, 200);
    assert_eq!(says(&node, &acme, "talk", "tell").await, "sk-first-0123456789");
    secret(&node, &acme, "sk-second-9876543210");
    let until = Instant::now() + SOON;
    while says(&node, &acme, "talk", "tell").await != "sk-second-9876543210" {
        assert!(Instant::now() < until, "the new value does not come");
    }
    let told = ask(&node, &acme, "talk", "fail").await.unwrap_err();
    assert!(format!("{told:?}").contains("[secret api-key]"), "{told:?}");
    let labels = ask(&node, &acme, "digits", picture(0.5)).await.unwrap();
    assert!(labels.starts_with(b"["), "{labels:?}");

    // What is wrong with a Bee is told as ever, and ends nothing but its instance.
    for (what, cause) in [
        ("panic", "panicked as it was told"),
        ("memory", "memory"),
        ("loop", "CPU time"),
        ("sleep", "2000 ms"),
        ("stack", "out of bounds"),
        ("output", "bytes"),
        ("stderr", ""),
        ("fail", "told-to"),
    ] {
        let ended = ask(&node, &acme, "echo", what).await;
        match ended {
            Err(status) => assert!(format!("{status:?}").contains(cause), "{what}: {status:?}"),
            Ok(answer) => assert_eq!((what, answer.as_slice()), ("stderr", &b"stderr"[..])),
        }
    }
    assert_eq!(says(&node, &acme, "echo", "again").await, "again");
    assert_eq!(
        process(&node, &operator, "acme"),
        Some(first),
        "it is the same process all along"
    );
    assert_eq!(code(node.pid()), Some(0), "the node never mapped its code");

    // A newer module under the same name.
    let mut keeper = node.keeper().await;
    let newer = streaming_tokens();
    let pushed = upload("test-bees", "v2", newer, newer.len() as u64, "");
    keeper
        .push_module(with(&acme, tokio_stream::iter(pushed)))
        .await
        .expect("another module");

    // It is limited, and what it used is counted.
    shut_in(first, dir.path());
    let shown = node.cli_ok_as(&operator, &["tenant", "show", "acme"]);
    assert!(shown.contains(&format!("process of their own, {first} on")), "{shown}");
    assert!(node.cli_ok_as(&operator, &["tenant", "list"]).contains("process"));
    node = restarted(node, dir.path());
    let used = node.cli_ok_as(&operator, &["usage", "--tenant", "acme", "-o", "json"]);
    let used: serde_json::Value = serde_json::from_str(&used).unwrap();
    let of = |bee: &str, what: &str| {
        let all = used["used"].as_array().unwrap();
        let row = all
            .iter()
            .find(|row| row["bee"] == bee)
            .unwrap_or_else(|| panic!("{bee}: {used}"));
        row[what].as_u64().unwrap()
    };
    assert!(
        of("echoes/rascal", "cpu_us") > 300_000,
        "the loop ran for two seconds, if not alone: {used}"
    );
    assert!(of("echoes/rascal", "memory_byte_ms") > 0, "{used}");
}

/// Stops it, so that it writes down what was used, and starts it anew.
fn restarted(node: Node, data: &std::path::Path) -> Node {
    assert!(node.stop().success());
    Start::new(data).start()
}

fn secret(node: &Node, token: &str, value: &str) {
    use std::io::Write as _;
    let mut child = node
        .command(&["secret", "set", "api-key"])
        .env("SKEP_TOKEN", token)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("skep");
    child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// What a process of a tenant has, as the kernel tells it.
fn shut_in(pid: i32, data: &std::path::Path) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [
        "Seccomp:\t2",
        "NoNewPrivs:\t1",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let filters = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp_filters:\t")?.parse::<u32>().ok());
    assert!(filters.is_some_and(|count| count >= 3), "{status}");
    assert_eq!(
        peek(&format!("/proc/{pid}/environ")).unwrap_or_default(),
        "",
        "its environment"
    );
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.contains("Max open files            2048"), "{limits}");
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500");
    let opened = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    for entry in opened.flatten() {
        let Ok(to) = std::fs::read_link(entry.path()) else {
            continue;
        };
        let to = to.to_string_lossy().into_owned();
        let known = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/null"];
        assert!(known.iter().any(|known| to.starts_with(known)), "it has {to} open");
        assert!(!to.contains(&*data.to_string_lossy()), "{to}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_under_load_loses_and_doubles_nothing() {
    const MESSAGES: u64 = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let acme = tenant(&node, &operator, "acme", &["--isolation", "process"], &[LEDGER]).await;
    let globex = tenant(&node, &operator, "globex", &[], &[ECHO]).await;
    let sent = AtomicBool::new(false);
    let killer = async {
        let mut killed = BTreeSet::new();
        while !sent.load(Ordering::Relaxed) {
            if let Some(pid) = process(&node, &operator, "acme").filter(|pid| !killed.contains(pid)) {
                signal(pid, Signal::KILL);
                killed.insert(pid);
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        killed.len()
    };
    let sender = async {
        submit(&node, &acme, 1, MESSAGES).await;
        sent.store(true, Ordering::Relaxed);
    };
    let neighbour = async {
        for n in 0..50 {
            assert_eq!(says(&node, &globex, "echo", &n.to_string()).await, n.to_string());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (killed, (), ()) = tokio::join!(killer, sender, neighbour);
    assert!(killed >= 3, "{killed}");
    exactly_once(&node, &acme, MESSAGES).await;
    assert!(node.stderr().contains("a tenant's process died"), "{}", node.stderr());
}

async fn submit(node: &Node, token: &str, first: u64, last: u64) {
    for from in (first..=last).step_by(50) {
        let call = v1::SubmitCall {
            subject: "ledger".to_owned(),
            messages: (from..from + 50).map(message).collect(),
            ..v1::SubmitCall::default()
        };
        node.gateway().await.submit(with(token, call)).await.expect("submit");
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

/// Each message took effect once, in the order of its key.
async fn exactly_once(node: &Node, token: &str, messages: u64) {
    let mut keeper = node.keeper().await;
    let until = Instant::now() + 3 * SOON;
    loop {
        let call = v1::DescribeSwarmRequest {
            name: "ledger".to_owned(),
            count_keys: true,
        };
        let told = keeper.describe_swarm(with(token, call)).await.unwrap().into_inner();
        if told.stages.iter().all(|stage| stage.unread + stage.parked == 0) {
            let dead: u64 = told.stages.iter().map(|stage| stage.dead).sum();
            assert_eq!(dead, 0, "{:?}", told.stages);
            break;
        }
        assert!(Instant::now() < until, "it does not drain: {:?}", told.stages);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for i in 1..=messages {
        let call = v1::GetStateRequest {
            swarm: "ledger".to_owned(),
            stage: "effect".to_owned(),
            key: format!("e{i}"),
            after: String::new(),
        };
        let values = keeper.get_state(with(token, call)).await.unwrap().into_inner().values;
        assert_eq!(values.len(), 1, "e{i}");
        assert_eq!(&values[0].value[..], b"1", "e{i} took effect as often");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_isolation_counts_from_the_next_batch_on_and_loses_nothing() {
    const MESSAGES: u64 = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let acme = tenant(&node, &operator, "acme", &[], &[LEDGER]).await;
    let changes = async {
        for turn in 0..6 {
            let to = ["process", "shared"][turn % 2];
            node.cli_ok_as(&operator, &["tenant", "set", "acme", "--isolation", to]);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        node.cli_ok_as(&operator, &["tenant", "set", "acme", "--isolation", "process"]);
    };
    tokio::join!(changes, submit(&node, &acme, 1, MESSAGES));
    submit(&node, &acme, MESSAGES + 1, MESSAGES + 50).await;
    exactly_once(&node, &acme, MESSAGES + 50).await;
    let pid = process(&node, &operator, "acme").expect("it has one at the end");
    node.cli_ok_as(&operator, &["tenant", "set", "acme", "--isolation", "shared"]);
    goes(pid, SOON).await;
    let refused = node.cli_as(&operator, &["tenant", "set", "default", "--isolation", "process"]);
    assert!(!refused.status.success());
    let refused = node.cli_as(&operator, &["tenant", "set", "acme", "--isolation", "vm"]);
    assert!(!refused.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_stopped_hangs_nobody_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let acme = tenant(&node, &operator, "acme", &["--isolation", "process"], &[ECHO, COUNT]).await;
    let globex = tenant(&node, &operator, "globex", &["--isolation", "process"], &[ECHO]).await;
    assert_eq!(says(&node, &acme, "count", "k").await, "1");
    assert_eq!(says(&node, &globex, "echo", "there").await, "there");
    let pid = process(&node, &operator, "acme").unwrap();
    let other = process(&node, &operator, "globex").unwrap();
    assert_ne!(pid, other, "each has its own");
    signal(pid, Signal::STOP);
    let waits = says(&node, &acme, "count", "k");
    let neighbour = async {
        for n in 0..40 {
            let began = Instant::now();
            assert_eq!(says(&node, &globex, "echo", &n.to_string()).await, n.to_string());
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (counted, ()) = tokio::join!(waits, neighbour);
    assert_eq!(counted, "2", "in another process, and once");
    goes(pid, SOON).await;
    assert_ne!(process(&node, &operator, "acme").unwrap(), pid);
    assert_eq!(process(&node, &operator, "globex"), Some(other));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_with_its_tenant_and_with_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let acme = tenant(&node, &operator, "acme", &["--isolation", "process"], &[ECHO]).await;
    assert_eq!(says(&node, &acme, "echo", "hello").await, "hello");
    let pid = process(&node, &operator, "acme").unwrap();
    node.cli_ok_as(&operator, &["tenant", "delete", "acme", "--purge"]);
    goes(pid, SOON).await;
    let gone = ask(&node, &acme, "echo", "hello").await.unwrap_err();
    assert_eq!(gone.code(), Code::Unauthenticated);

    // One of a tenant of the same name is another one.
    let acme = tenant(&node, &operator, "acme", &["--isolation", "process"], &[ECHO]).await;
    assert_eq!(says(&node, &acme, "echo", "hello").await, "hello");
    let next = process(&node, &operator, "acme").unwrap();
    assert!(next != pid && is_there(next));
    assert!(node.stop().success());
    goes(next, Duration::from_secs(5)).await;

    // Killed, the node takes it along.
    let node = Start::new(dir.path()).start();
    assert_eq!(
        process(&node, &operator, "acme"),
        None,
        "it is started by the first call"
    );
    assert_eq!(says(&node, &acme, "echo", "hello").await, "hello");
    assert_eq!(code(node.pid()), Some(0));
    let last = process(&node, &operator, "acme").unwrap();
    node.kill();
    goes(last, Duration::from_secs(5)).await;
}
