//! Backups of a node that works, brought back on another store; and whatever may be wrong with one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use skep_proto::v1;
use tempfile::TempDir;

use crate::kills::{SESSION, check, message, prepare, stream};
use crate::lifecycle::{messages, node_with_bees, submit, summary};
use crate::node::{Node, SKEP, SOON, Start, apply, drained, request, response, state};
use crate::redis_server::{ALWAYS, Server, Servers};

#[derive(Debug, Clone, Copy, PartialEq)]
enum On {
    Embedded,
    Redis,
    /// Several servers, each with a part of the Swarms.
    Cluster,
}

/// A platform that may be started again.
struct Place {
    dir: TempDir,
    redis: Option<Server>,
    cluster: Option<Servers>,
}

impl Place {
    fn new(on: On) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            redis: (on == On::Redis).then(|| Server::start(ALWAYS)),
            cluster: (on == On::Cluster).then(|| Servers::start(3, 0, ALWAYS)),
        }
    }

    fn start(&self, failpoint: &str) -> Node {
        let data = self.dir.path().join("data");
        let mut start = Start::new(&data);
        let shared = self.redis.as_ref().map(Server::url);
        if let Some(url) = shared.or(self.cluster.as_ref().map(Servers::url)) {
            let artifacts = self.dir.path().join("artifacts").display().to_string();
            start = start.env("SKEP_BACKEND", url).env("SKEP_ARTIFACTS", artifacts);
        }
        if !failpoint.is_empty() {
            start = start.env("SKEP_FAILPOINT", failpoint);
        }
        start.start()
    }
}

fn path(dir: &TempDir, name: &str) -> (PathBuf, String) {
    let path = dir.path().join(name);
    let text = path.display().to_string();
    (path, text)
}

/// What a session that goes on at `next` is told: the last message that the platform knows.
async fn gap(node: &Node, next: u64) -> u64 {
    let frame = v1::SubmitFrame {
        subject: "ledger".to_owned(),
        session: SESSION.to_vec().into(),
        first: next,
        messages: vec![message(next)],
        traceparent: None,
    };
    let mut gateway = node.gateway().await;
    let acks = gateway
        .submit_stream(tokio_stream::iter([frame]))
        .await
        .expect("stream");
    let ack = acks.into_inner().message().await.expect("ack").expect("an ack");
    let failure = ack.failure.expect("a gap");
    let told = failure.message;
    let high = told.split("jumps from ").nth(1).and_then(|t| t.split(' ').next());
    high.and_then(|high| high.parse().ok())
        .unwrap_or_else(|| panic!("no gap: {told}"))
}

/// A stream runs, a backup is taken in its middle, the platform is lost and brought back elsewhere: the stream goes on from the
/// backup's moment, and each message takes effect once.
async fn goes_on(from: On, to: On) {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = path(&dir, "all.skep");
    let source = Place::new(from);
    let node = source.start("");
    prepare(&node).await;
    let mut gateway = node.gateway().await;
    let mut durable = 0;
    stream(&mut gateway, 1, 1_000, &mut durable).await;
    let (url, target) = (node.url.clone(), file.clone());
    let taking = tokio::task::spawn_blocking(move || {
        let taken = Command::new(SKEP)
            .args(["backup", &target])
            .env("SKEP_NODE", url)
            .output()
            .unwrap();
        assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
        String::from_utf8(taken.stdout).unwrap()
    });
    let until = Instant::now() + SOON;
    let mut stop = 12_000;
    while durable < stop {
        // On Redis it may be told to come again while the backup reads.
        stream(&mut gateway, durable + 1, stop, &mut durable).await;
        assert!(Instant::now() < until, "the stream stands still at {durable}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = taking.await.unwrap();
    assert!(
        told.contains("ledger") && told.contains("1 Swarm, 1 module and 0 models"),
        "{told}"
    );
    stop += 500;
    while durable < stop {
        stream(&mut gateway, durable + 1, stop, &mut durable).await;
    }
    assert_eq!(check(&node, durable, durable).await, stop);
    node.kill();
    drop(source);

    let place = Place::new(to);
    let node = place.start("");
    let told = node.cli_ok(&["restore", &file]);
    assert!(
        told.contains("ledger") && told.contains("1 Swarm, 1 module and 0 models"),
        "{told}"
    );
    let high = gap(&node, durable + 1).await;
    assert!(
        (1_000..stop).contains(&high),
        "the backup's moment is {high} of {durable}"
    );
    assert_eq!(
        check(&node, high, high).await,
        high,
        "all up to the backup, and no more"
    );
    // What it was told was durable is sent again from there, under the same session.
    let mut gateway = node.gateway().await;
    let mut again = high;
    stream(&mut gateway, high + 1, stop, &mut again).await;
    assert_eq!(check(&node, stop, stop).await, stop);
    // It is on disk, and the platform is one like any other.
    assert!(node.stop().success());
    let node = place.start("");
    assert_eq!(check(&node, stop, stop).await, stop);
    let refused = node.cli(&["restore", &file]);
    assert_eq!(refused.status.code(), Some(5));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        why.contains("not empty: it has 1 Swarm, 1 module and 0 models"),
        "{why}"
    );
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_from_a_backup_on_another_node() {
    goes_on(On::Embedded, On::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_from_a_backup_of_an_edge_node_on_redis() {
    goes_on(On::Embedded, On::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_from_a_backup_of_redis_on_an_edge_node() {
    goes_on(On::Redis, On::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_from_a_backup_of_a_cluster_on_another_cluster() {
    goes_on(On::Cluster, On::Cluster).await;
}

const TWO: [&str; 2] = [
    "
name: counting
bees:
  - { name: effect, module: test-bees, input: { gateway: counting }, key: message, state: true }
",
    "
name: slow
bees:
  - { name: rascal, module: test-bees, input: { gateway: slow }, batch: { messages: 1 }, partitions: 1 }
",
];

/// Two Swarms: one with keyed state, one with megabytes unread.
async fn two(dir: &Path) -> Node {
    let node = node_with_bees(dir).await;
    let mut keeper = node.keeper().await;
    for manifest in TWO {
        apply(&mut keeper, manifest).await.unwrap();
    }
    let mut gateway = node.gateway().await;
    submit(&mut gateway, "counting", &messages(0, 50, "x")).await;
    drained(&mut keeper, "counting").await;
    let large = format!("slow{}", "x".repeat(200 << 10));
    for _ in 0..8 {
        submit(&mut gateway, "slow", &messages(0, 5, &large)).await;
    }
    node
}

async fn assert_empty(node: &Node) {
    let mut keeper = node.keeper().await;
    let swarms = keeper.list_swarms(v1::ListSwarmsRequest {}).await.unwrap().into_inner();
    assert!(swarms.swarms.is_empty(), "{swarms:?}");
    let modules = keeper
        .list_modules(v1::ListModulesRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(modules.modules.is_empty(), "{modules:?}");
}

async fn assert_both_serve(node: &Node) {
    let mut keeper = node.keeper().await;
    for key in ["k0", "k49"] {
        assert_eq!(state(&mut keeper, "counting", "effect", key).await["times"], "1");
    }
    submit(&mut node.gateway().await, "counting", &messages(0, 1, "x")).await;
    drained(&mut keeper, "counting").await;
    assert_eq!(state(&mut keeper, "counting", "effect", "k0").await["times"], "2");
    assert_eq!(summary(&mut keeper, "slow").await.unwrap().status, "running");
    drained(&mut keeper, "slow").await;
    let reply = request(&mut node.gateway().await, "slow", "y").await.unwrap();
    assert_eq!(response(&reply), "y");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_a_whole_backup_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (good, file) = path(&dir, "all.skep");
    let node = two(&dir.path().join("data")).await;
    node.cli_ok(&["backup", &file]);
    // A pipe that closes early is no backup.
    let mut child = Command::new(SKEP)
        .args(["backup", "-"])
        .env("SKEP_NODE", &node.url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    // Through a pipe it is the same to a byte's length: whoever takes one after the other gets each.
    let piped = node.cli(&["backup", "-"]);
    assert!(piped.status.success());
    let whole = std::fs::read(&good).unwrap();
    assert!(piped.stdout.starts_with(b"skepback"));
    node.kill();

    let place = Place::new(On::Embedded);
    let node = place.start("");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let mut longer = whole.clone();
    longer.extend_from_slice(b"more");
    for (name, bytes, why) in [
        ("cut", &whole[..whole.len() - 1], "cut off"),
        ("half", &whole[..whole.len() / 2], "cut off"),
        ("flipped", &flipped[..], "damaged"),
        ("longer", &longer[..], "damaged"),
        ("foreign", &b"PK\x03\x04 a zip file, say"[..], "not a backup"),
        ("empty", &b""[..], "not a backup"),
    ] {
        let (bad, text) = path(&dir, name);
        std::fs::write(&bad, bytes).unwrap();
        let refused = node.cli(&["restore", &text]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(3), "{name}: {told}");
        assert!(
            told.contains(why) && told.contains("nothing was restored"),
            "{name}: {told}"
        );
        assert_empty(&node).await;
    }
    let missing = node.cli(&["restore", "/nonexistent"]);
    assert_eq!(missing.status.code(), Some(4));
    // The good one is taken afterwards, from a pipe.
    let restored = Command::new(SKEP)
        .args(["restore", "-", "-o", "json"])
        .env("SKEP_NODE", &node.url)
        .stdin(std::fs::File::open(&good).unwrap())
        .output()
        .unwrap();
    assert!(
        restored.status.success(),
        "{}",
        String::from_utf8_lossy(&restored.stderr)
    );
    let told: serde_json::Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert_eq!(told["swarms"][0]["name"], "counting");
    assert_eq!(told["swarms"][0]["keys"], 50);
    assert_eq!(told["bytes"], whole.len());
    assert_both_serve(&node).await;
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_backup_at_a_time_and_a_client_that_goes_away_ends_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = path(&dir, "all.skep");
    let node = two(&dir.path().join("data")).await;
    // Nobody reads it, so it stays under way.
    let mut keeper = node.keeper().await;
    let first = keeper.backup(v1::BackupRequest {}).await.unwrap();
    let refused = node.cli(&["backup", &file]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    // The Swarms do not wait for whoever does not read.
    submit(&mut node.gateway().await, "counting", &messages(0, 1, "x")).await;
    drained(&mut node.keeper().await, "counting").await;
    drop((first, keeper));
    let until = Instant::now() + SOON;
    while !node.cli(&["backup", &file]).status.success() {
        assert!(Instant::now() < until, "the first backup does not end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(node.stop().success());
}

/// Dies at `failpoint` in the middle of a restore; returns the node that is started after it.
fn dies_while_restoring(place: &Place, failpoint: &str, file: &str) -> Node {
    let mut node = place.start(failpoint);
    let broken = node.cli(&["restore", file]);
    assert!(!broken.status.success(), "{broken:?}");
    assert!(node.wait_for_end(SOON), "it does not die");
    place.start("")
}

/// Until the former node counts as gone.
async fn restore_in_the_end(node: &Node, file: &str) {
    let until = Instant::now() + SOON;
    loop {
        let done = node.cli(&["restore", file]);
        if done.status.success() {
            return;
        }
        let why = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(why.contains("restores a backup") && Instant::now() < until, "{why}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_restore_serves_nothing_and_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = path(&dir, "all.skep");
    let (_, other) = path(&dir, "other.skep");
    let node = two(&dir.path().join("data")).await;
    node.cli_ok(&["backup", &file]);
    node.cli_ok(&["backup", &other]);
    node.kill();
    for on in [On::Embedded, On::Redis] {
        for nth in 1..=2 {
            let place = Place::new(on);
            let node = dies_while_restoring(&place, &format!("in-restore=abort@{nth}"), &file);
            assert_empty(&node).await;
            let dead = request(&mut node.gateway().await, "counting", "x").await;
            assert!(dead.is_err(), "half of it serves");
            // Another backup may be restored instead.
            let next = if nth == 1 { &file } else { &other };
            restore_in_the_end(&node, next).await;
            assert_both_serve(&node).await;
            assert!(node.stop().success());
        }
        // All is there, and one of two serves: the same backup ends it.
        let place = Place::new(on);
        let node = dies_while_restoring(&place, "in-service=abort@1", &file);
        let mut keeper = node.keeper().await;
        assert!(summary(&mut keeper, "counting").await.is_some());
        assert!(summary(&mut keeper, "slow").await.is_none());
        let until = Instant::now() + SOON;
        loop {
            let refused = node.cli(&["restore", &other]);
            assert_eq!(refused.status.code(), Some(5));
            let why = String::from_utf8_lossy(&refused.stderr).into_owned();
            if why.contains("give that one again") {
                break;
            }
            assert!(Instant::now() < until, "{why}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        restore_in_the_end(&node, &file).await;
        assert_both_serve(&node).await;
        assert!(node.stop().success());
    }
}
