//! A hub and its edges: the two real programs, and kills of both.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tonic::transport::Channel;

use crate::kills::{check, stream};
use crate::node::{Node, SKEP, SOON, Start, apply, connect, push, request, response, state, test_bees};

/// What comes to edges with `site=mill` is passed on there, and takes effect at the hub.
const SPLIT: &str = "
name: ledger
bees:
  - name: pass
    module: test-bees
    input: { gateway: ledger }
    key: json:/key
    retry: { crashes: 1000 }
    place: { label: site=mill }
  - name: ledger
    module: test-bees
    input: { bee: pass }
    key: json:/key
    state: true
    batch: { messages: 32 }
    retry: { crashes: 1000 }
  - name: effect
    module: test-bees
    input: { bee: ledger }
    key: message
    state: true
    batch: { messages: 64 }
    retry: { crashes: 1000 }
";

const ECHO: &str = "
name: echo
bees:
  - name: echo
    module: test-bees
    input: { gateway: echo }
    place: { label: site=mill }
";

/// Beside `skep`, or what SKEP_EDGE_BIN names: a build without compiler, perhaps.
fn program() -> PathBuf {
    let beside = || Path::new(SKEP).with_file_name("skep-edge");
    let program = std::env::var_os("SKEP_EDGE_BIN").map_or_else(beside, PathBuf::from);
    assert!(
        program.exists(),
        "{} is not built: cargo build --release -p skep-edge",
        program.display()
    );
    program
}

pub struct Edge {
    child: Child,
    url: String,
    stderr: Arc<Mutex<String>>,
}

impl Edge {
    pub fn start(data: &Path, port: u16) -> Self {
        Self::start_in(data, port, &[])
    }

    fn start_in(data: &Path, port: u16, env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(program())
            .args(["run", "--listen", &format!("127.0.0.1:{port}"), "--data"])
            .arg(data)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start skep-edge");
        let stderr = Arc::new(Mutex::new(String::new()));
        let (mut err, keep) = (child.stderr.take().expect("piped"), Arc::clone(&stderr));
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = err.read(&mut chunk) {
                let mut kept = keep.lock().expect("reader");
                kept.push_str(&String::from_utf8_lossy(&chunk[..n]));
                kept.truncate(1 << 20);
            }
        });
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("read stdout");
        let url = line.trim().strip_prefix("listening on ").map(str::to_owned);
        let url = url.unwrap_or_else(|| panic!("the edge did not start: {}", stderr.lock().expect("stderr")));
        Self { child, url, stderr }
    }

    pub fn said(&self) -> String {
        self.stderr.lock().expect("stderr").clone()
    }

    fn port(&self) -> u16 {
        self.url
            .rsplit(':')
            .next()
            .and_then(|p| p.parse().ok())
            .expect("a port")
    }

    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    pub fn stop(mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
        self.child.wait().expect("wait")
    }

    pub async fn gateway(&self) -> GatewayClient<Channel> {
        GatewayClient::new(connect(&self.url).await)
    }

    /// Until it says so.
    pub async fn says(&self, what: &str) {
        soon(
            || self.said().contains(what),
            || format!("the edge did not say `{what}`: {}", self.said()),
        )
        .await;
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- edge {} said:\n{}", self.url, self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn soon(mut done: impl FnMut() -> bool, what: impl Fn() -> String) {
    let until = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < until, "{}", what());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn enroll(data: &Path, line: &str) -> Output {
    Command::new(program())
        .args(["enroll", line, "--data"])
        .arg(data)
        .output()
        .expect("run skep-edge")
}

pub fn line(hub: &Node, name: &str) -> String {
    hub.cli_ok(&["edge", "enroll", name, "--label", "site=mill"])
        .trim()
        .to_owned()
}

pub fn status(hub: &Node, name: &str) -> Value {
    serde_json::from_str(&hub.cli_ok(&["edge", "status", name, "-o", "json"])).expect("JSON")
}

pub async fn hub_with(data: &Path, port: u16, manifest: &str) -> Node {
    let hub = Start {
        port,
        ..Start::new(data)
    }
    .start();
    let mut keeper = hub.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    apply(&mut keeper, manifest).await.expect("apply");
    hub
}

pub fn enrolled(hub: &Node, name: &str, data: &Path) {
    let done = enroll(data, &line(hub, name));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// A request at the edge's own door is answered as soon as the stage is there.
pub async fn answers(edge: &Edge, subject: &str) {
    let mut gateway = edge.gateway().await;
    let until = Instant::now() + SOON;
    loop {
        match request(&mut gateway, subject, "hi").await {
            Ok(reply) => return assert_eq!(response(&reply), "hi"),
            Err(e) => assert!(Instant::now() < until, "{e}: {}", edge.said()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_enrols_once_runs_what_is_placed_there_and_goes_on_without_its_hub() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = hub_with(at_hub.path(), 0, ECHO).await;
    // At the hub nobody answers for it.
    let refused = request(&mut hub.gateway().await, "echo", "hi").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound, "{refused}");
    let line = line(&hub, "mill-1");
    let done = enroll(at_edge.path(), &line);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let edge = Edge::start(at_edge.path(), 0);
    answers(&edge, "echo").await;
    soon(
        || status(&hub, "mill-1")["follows"] == 1,
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    let told = status(&hub, "mill-1");
    assert_eq!(
        (told["state"].as_str(), told["runs"][0].as_str()),
        (Some("attached"), Some("echo/echo")),
        "{told}"
    );

    // The line is used up, and a folder is one edge's.
    let other = tempfile::tempdir().unwrap();
    let again = enroll(other.path(), &line);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("no such invitation"), "{said}");
    let twice = enroll(at_edge.path(), &line);
    let said = String::from_utf8_lossy(&twice.stderr).into_owned();
    assert!(
        !twice.status.success() && said.contains("is the folder of edge `mill-1`"),
        "{said}"
    );

    // Offline: as it was, also after a restart.
    let port = hub.port();
    assert!(hub.stop().success());
    answers(&edge, "echo").await;
    assert!(edge.stop().success());
    let edge = Edge::start(at_edge.path(), 0);
    answers(&edge, "echo").await;

    // What changed meanwhile waits at the hub.
    let hub = Start {
        port,
        ..Start::new(at_hub.path())
    }
    .start();
    let mut keeper = hub.keeper().await;
    apply(&mut keeper, &ECHO.replace("gateway: echo", "gateway: sound"))
        .await
        .expect("apply");
    answers(&edge, "sound").await;
    let gone = request(&mut edge.gateway().await, "echo", "hi").await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound, "{gone}");

    // Revoked, it is told nothing more, and goes on as it was.
    hub.cli_ok(&["edge", "revoke", "mill-1"]);
    edge.says("was revoked").await;
    answers(&edge, "sound").await;
    let list: Value = serde_json::from_str(&hub.cli_ok(&["edge", "list", "-o", "json"])).expect("JSON");
    assert_eq!(list["edges"].as_array().map(Vec::len), Some(0), "{list}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_placed_is_refused_with_the_place_and_the_remedy() {
    let at_hub = tempfile::tempdir().unwrap();
    let hub = hub_with(at_hub.path(), 0, SPLIT).await;
    let mut keeper = hub.keeper().await;
    for (from, to, says) in [
        (
            "input: { bee: pass }\n    key: json:/key\n    state: true\n    batch: { messages: 32 }",
            "input: { gateway: other }\n    key: json:/key\n    state: true\n    batch: { messages: 32 }\n  - name: back\n    module: test-bees\n    bee: pass\n    \
             input: { bee: ledger }\n    place: { label: site=mill }",
            "reads from `ledger`, which runs at the hub",
        ),
        (
            "input: { bee: pass }\n    key: json:/key",
            "input: { bee: pass }\n    place: { label: site=farm }\n    key: json:/key",
            "which runs on edges with site=mill",
        ),
        (
            "input: { bee: pass }",
            "input: [{ bee: pass }, { gateway: ledger }]",
            "also feeds `ledger`",
        ),
        ("label: site=mill", "label: mill", "`mill`"),
        ("label: site=mill", "label: site=mill, outbox: 1", "outbox"),
        ("label: site=mill", "label: site=mill, when_full: shrug", "shrug"),
        (
            "    place: {",
            "    http: [api.example.com]\n    place: {",
            "`http` on a Bee that runs on edges",
        ),
    ] {
        let changed = SPLIT.replace(from, to);
        assert_ne!(changed, SPLIT, "{from}");
        let refused = apply(&mut keeper, &changed).await.unwrap_err();
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    // Not moved under what it keeps, either.
    let moved = apply(&mut keeper, &SPLIT.replace("site=mill", "site=farm"))
        .await
        .unwrap_err();
    assert!(
        moved.message().contains("moving it from edges with site=mill"),
        "{moved}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_on_the_edges_disk_that_was_changed_is_not_run_but_fetched_anew() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = hub_with(at_hub.path(), 0, ECHO).await;
    enrolled(&hub, "mill-1", at_edge.path());
    let edge = Edge::start(at_edge.path(), 0);
    answers(&edge, "echo").await;
    assert!(edge.stop().success());
    let files = std::fs::read_dir(at_edge.path().join("code")).unwrap();
    let file = files
        .map(|f| f.unwrap().path())
        .find(|f| f.extension().is_some_and(|e| e == "skepe"))
        .expect("code");
    let good = std::fs::read(&file).unwrap();
    let port = hub.port();
    assert!(hub.stop().success());
    for (what, bad) in [
        ("cut short", good[..good.len() - 7].to_vec()),
        ("changed or damaged", {
            let mut bad = good.clone();
            let last = bad.len() - 9;
            bad[last] ^= 1;
            bad
        }),
        ("not by the key of the hub", {
            let mut bad = good.clone();
            bad[40] ^= 1;
            bad
        }),
    ] {
        std::fs::write(&file, &bad).unwrap();
        // The hub is away: nothing runs that nobody vouches for.
        let edge = Edge::start(at_edge.path(), 0);
        edge.says(what).await;
        assert!(request(&mut edge.gateway().await, "echo", "hi").await.is_err());
        assert!(edge.stop().success());
    }
    let hub = Start {
        port,
        ..Start::new(at_hub.path())
    }
    .start();
    let edge = Edge::start(at_edge.path(), 0);
    answers(&edge, "echo").await;
    assert_eq!(std::fs::read(&file).unwrap(), good, "the same code again");
    drop(hub);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_hub_at_the_same_address_is_told_nothing() {
    let (at_hub, at_other, at_edge) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let hub = hub_with(at_hub.path(), 0, ECHO).await;
    enrolled(&hub, "mill-1", at_edge.path());
    let line_of_first = line(&hub, "mill-2");
    let port = hub.port();
    assert!(hub.stop().success());
    let other = hub_with(at_other.path(), port, ECHO).await;
    // It has edges of its own, and so a key.
    line(&other, "mill-1");
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("has another key than the hub").await;
    let refused = enroll(&at_other.path().join("none"), &line_of_first);
    assert!(!refused.status.success());
    drop(other);
}

/// A hub whose folder is put back as it was earlier.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_restored_from_an_older_copy_says_so_on_both_sides_and_goes_on_knowingly() {
    let (at_hub, at_edge, copy) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let hub = hub_with(at_hub.path(), 0, SPLIT).await;
    let port = hub.port();
    enrolled(&hub, "mill-1", at_edge.path());
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("follows new orders").await;
    let mut durable = 0;
    while durable < 100 {
        let from = durable + 1;
        stream(&mut edge.gateway().await, from, 100, &mut durable).await;
    }
    arrived(&hub, 100).await;
    assert!(hub.stop().success());
    copy_dir(at_hub.path(), copy.path());
    let hub = Start {
        port,
        ..Start::new(at_hub.path())
    }
    .start();
    while durable < 300 {
        let from = durable + 1;
        stream(&mut edge.gateway().await, from, 300, &mut durable).await;
    }
    arrived(&hub, 300).await;
    apply(&mut hub.keeper().await, &format!("{SPLIT}    timeout: 9s\n"))
        .await
        .expect("apply");
    soon(
        || status(&hub, "mill-1")["follows"] == 2,
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    assert!(hub.stop().success());
    std::fs::remove_dir_all(at_hub.path()).unwrap();
    copy_dir(copy.path(), at_hub.path());

    let hub = Start {
        port,
        ..Start::new(at_hub.path())
    }
    .start();
    while durable < 400 {
        let from = durable + 1;
        stream(&mut edge.gateway().await, from, 400, &mut durable).await;
    }
    edge.says("the hub has lost messages that it had acknowledged").await;
    soon(
        || {
            status(&hub, "mill-1")["trouble"]
                .as_str()
                .is_some_and(|t| t.contains("restored from an older backup"))
        },
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    // 101 to 300 are lost with the hub's disk: of each key the ledger refuses what comes after, once the operator goes on.
    hub.cli_ok(&["edge", "resume", "mill-1"]);
    soon(
        || {
            let told = status(&hub, "mill-1");
            told["follows"] == told["revision"]
                && told["waiting"][0]["messages"] == 0
                && told["waiting"][0]["handed_over"] == 400
        },
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    let call = v1::ListDeadLettersRequest {
        swarm: "ledger".to_owned(),
        limit: 1_000,
        ..v1::ListDeadLettersRequest::default()
    };
    let mut keeper = hub.keeper().await;
    let letters = keeper
        .list_dead_letters(call)
        .await
        .expect("dead letters")
        .into_inner()
        .letters;
    // Each of the last hundred came, once: entries 61 to 80 of five keys, after the twentieth.
    let mut came: Vec<&str> = letters.iter().map(|letter| letter.detail.as_str()).collect();
    came.sort_unstable();
    came.dedup();
    assert_eq!((letters.len(), came.len()), (100, 100), "{came:?}");
    assert!(came.iter().all(|detail| detail.ends_with(" after 20")), "{came:?}");
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let into = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &into);
        } else {
            std::fs::copy(entry.path(), into).unwrap();
        }
    }
}

/// The last of `sent` messages took effect at the hub.
async fn arrived(hub: &Node, sent: u64) {
    let id = format!("e{sent}");
    let mut keeper = hub.keeper().await;
    let until = Instant::now() + 2 * SOON;
    while !state(&mut keeper, "ledger", "effect", &id).await.contains_key("times") {
        assert!(Instant::now() < until, "{id} did not arrive: {}", status(hub, "mill-1"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// kill -9 of the edge, of the hub, and of both, in the middle of the hand-over; every acknowledged message takes effect at the hub once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_side_is_killed_each_message_takes_effect_at_the_hub_once() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = hub_with(at_hub.path(), 0, SPLIT).await;
    let hub_port = hub.port();
    enrolled(&hub, "mill-1", at_edge.path());
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("follows new orders").await;
    let edge_port = edge.port();
    let rounds: u64 = std::env::var("SKEP_TEST_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    let (mut hub, mut edge) = (Some(hub), Some(edge));
    let (mut durable, mut sent) = (0, 0);
    for round in 0..rounds {
        let mut up = edge.take().unwrap_or_else(|| Edge::start(at_edge.path(), edge_port));
        let here = hub.take().unwrap_or_else(|| {
            Start {
                port: hub_port,
                ..Start::new(at_hub.path())
            }
            .start()
        });
        let mut gateway = up.gateway().await;
        let to = durable + 2_000;
        sent = sent.max(to);
        // Not random, so that a failure repeats: from before the two have met to the middle of the hand-over.
        let pause = Duration::from_millis(100 + round * 37 % 900);
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(pause);
            match round % 3 {
                0 => {
                    up.kill();
                    (Some(here), None)
                }
                1 => {
                    here.kill();
                    // What comes now waits.
                    std::thread::sleep(pause / 2);
                    up.child.kill().expect("kill");
                    up.child.wait().expect("wait");
                    (None, None)
                }
                _ => {
                    here.kill();
                    (None, Some(up))
                }
            }
        });
        while durable < to && !killer.is_finished() {
            let from = durable + 1;
            stream(&mut gateway, from, to, &mut durable).await;
        }
        (hub, edge) = killer.await.unwrap();
    }
    let hub = hub.unwrap_or_else(|| {
        Start {
            port: hub_port,
            ..Start::new(at_hub.path())
        }
        .start()
    });
    let edge = edge.unwrap_or_else(|| Edge::start(at_edge.path(), edge_port));
    // What was sent and not acknowledged may have been taken.
    let to = sent + 100;
    while durable < to {
        let from = durable + 1;
        stream(&mut edge.gateway().await, from, to, &mut durable).await;
    }
    arrived(&hub, to).await;
    assert_eq!(check(&hub, to, to).await, to);
    eprintln!("{rounds} rounds of kills, {to} messages, each once");
}

/// Little may wait at the edge, and messages are large.
pub fn narrow(when_full: &str) -> String {
    format!(
        "
name: effects
bees:
  - name: pass
    module: test-bees
    input: {{ gateway: effects }}
    inbox: {{ messages: 200, bytes: 1MiB }}
    place: {{ label: site=mill, outbox: 1MiB, when_full: {when_full} }}
  - name: effect
    module: test-bees
    input: {{ bee: pass }}
    key: json:/id
    state: true
"
    )
}

async fn offer(edge: &Edge, to: u64) -> u64 {
    offer_from(edge, 1, to).await
}

/// Offers messages one by one to an edge whose hub is away, until `to` or until it refuses. Returns the last that it took.
pub async fn offer_from(edge: &Edge, from: u64, to: u64) -> u64 {
    let mut gateway = edge.gateway().await;
    for i in from..=to {
        let call = v1::SubmitCall {
            subject: "effects".to_owned(),
            messages: vec![v1::OutMessage {
                payload: serde_json::json!({ "id": format!("e{i}"), "fill": "x".repeat(8_000) })
                    .to_string()
                    .into(),
                ..v1::OutMessage::default()
            }],
            ..v1::SubmitCall::default()
        };
        if let Err(refused) = gateway.submit(call).await {
            assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
            return i - 1;
        }
    }
    to
}

pub async fn times(hub: &Node, i: u64) -> Option<String> {
    state(&mut hub.keeper().await, "effects", "effect", &format!("e{i}"))
        .await
        .remove("times")
}

/// The hub goes away, `what` happens, and it is back.
async fn hub_away_while<T>(
    at_hub: &Path,
    at_edge: &Path,
    when_full: &str,
    what: impl AsyncFnOnce(&Edge) -> T,
) -> (Node, Edge, T) {
    let hub = hub_with(at_hub, 0, &narrow(when_full)).await;
    let port = hub.port();
    enrolled(&hub, "mill-1", at_edge);
    let edge = Edge::start(at_edge, 0);
    edge.says("follows new orders").await;
    assert!(hub.stop().success());
    edge.says("trying again").await;
    let done = what(&edge).await;
    let hub = Start {
        port,
        ..Start::new(at_hub)
    }
    .start();
    (hub, edge, done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_outbox_refuses_at_the_door_and_all_that_was_taken_arrives_once() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (hub, edge, took) = hub_away_while(at_hub.path(), at_edge.path(), "refuse", async |edge: &Edge| {
        offer(edge, 2_000).await
    })
    .await;
    assert!(
        (100..2_000).contains(&took),
        "1 MiB of outbox and 1 MiB of inbox hold some hundred messages of 8 kB: {took}"
    );
    soon(
        || {
            let told = status(&hub, "mill-1");
            told["waiting"][0]["handed_over"] == took && told["waiting"][0]["dropped"] == 0
        },
        || format!("{took}: {}", status(&hub, "mill-1")),
    )
    .await;
    crate::node::drained(&mut hub.keeper().await, "effects").await;
    for i in 1..=took {
        assert_eq!(times(&hub, i).await.as_deref(), Some("1"), "e{i} of {took}");
    }
    assert_eq!(times(&hub, took + 1).await, None, "refused is not taken");
    assert!(edge.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_that_drops_the_oldest_counts_them_and_hands_over_the_newest_once() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    const SENT: u64 = 1_000;
    let (hub, edge, took) = hub_away_while(at_hub.path(), at_edge.path(), "drop-oldest", async |edge: &Edge| {
        let mut took = 0;
        let until = Instant::now() + SOON;
        // Full for a moment: it drops as fast as it can.
        while took < SENT {
            assert!(Instant::now() < until, "it does not make room: {}", edge.said());
            took = offer_from(edge, took + 1, SENT).await;
        }
        edge.says("the oldest messages for the hub were dropped").await;
        took
    })
    .await;
    assert_eq!(took, SENT);
    let counted = |told: &Value| {
        let of = |what: &str| told["waiting"][0][what].as_u64().unwrap_or(0);
        (of("messages"), of("handed_over"), of("dropped"))
    };
    soon(
        || {
            let (waiting, handed_over, dropped) = counted(&status(&hub, "mill-1"));
            waiting == 0 && handed_over > 0 && handed_over + dropped == SENT
        },
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    let (_, handed_over, dropped) = counted(&status(&hub, "mill-1"));
    crate::node::drained(&mut hub.keeper().await, "effects").await;
    let mut arrived = 0;
    for i in 1..=SENT {
        match times(&hub, i).await.as_deref() {
            None => {}
            Some("1") => arrived += 1,
            Some(more) => panic!("e{i} took effect {more} times"),
        }
    }
    assert_eq!(arrived, handed_over, "{dropped} were dropped");
    assert_eq!(times(&hub, SENT).await.as_deref(), Some("1"), "the newest is there");
    assert_eq!(times(&hub, 1).await, None, "the oldest is not");
    assert!(edge.stop().success());
}

/// samples/mill: readings at a site whose hub is away for the middle of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mill_sample_says_what_it_should() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sample = crate::node::root().join("samples/mill");
    let read = |name: &str| std::fs::read_to_string(sample.join(name)).unwrap();
    let hub = Start::new(at_hub.path()).start();
    let port = hub.port();
    let mut keeper = hub.keeper().await;
    push(&mut keeper, "mill", "latest", crate::node::mill())
        .await
        .expect("push");
    apply(&mut keeper, &read("swarm.yaml")).await.expect("apply");
    enrolled(&hub, "mill-1", at_edge.path());
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("follows new orders").await;
    let (readings, expected) = (read("readings.jsonl"), read("expected.jsonl"));
    let readings: Vec<&str> = readings.lines().collect();
    let (mut gateway, mut hub) = (edge.gateway().await, Some(hub));
    for (n, some) in readings.chunks(100).enumerate() {
        match n {
            1 => assert!(hub.take().expect("a hub").stop().success()),
            4 => {
                let again = Start {
                    port,
                    ..Start::new(at_hub.path())
                };
                hub = Some(again.start());
            }
            _ => {}
        }
        let messages = some.iter().map(|reading| v1::OutMessage {
            payload: (*reading).to_owned().into(),
            ..v1::OutMessage::default()
        });
        let call = v1::SubmitCall {
            subject: "readings".to_owned(),
            messages: messages.collect(),
            ..v1::SubmitCall::default()
        };
        gateway.submit(call).await.expect("submit");
    }
    let hub = hub.expect("a hub");
    let mut keeper = hub.keeper().await;
    for line in expected.lines() {
        let whole: Value = serde_json::from_str(line).expect("JSON");
        let sensor = whole["sensor"].as_str().expect("a sensor");
        let until = Instant::now() + SOON;
        loop {
            let kept = state(&mut keeper, "mill", "totals", sensor).await;
            let total = kept
                .get("total")
                .map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
            if total.as_ref() == Some(&whole["total"]) {
                break;
            }
            assert!(
                Instant::now() < until,
                "{sensor}: {total:?}, and not {}",
                whole["total"]
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
