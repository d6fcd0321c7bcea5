//! Faults of what is around the nodes: a link that carries one way, clocks that are wrong, a disk of Redis that is full. All while a client
//! streams; every message is checked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use skep_proto::v1;

use crate::cluster::{CALLS, Cluster, in_step};
use crate::kills::{check, prepare, stream};
use crate::node::{Node, apply, drained, response};
use crate::proxy::Proxy;
use crate::redis_server::Server;

/// A client streams up to `to` in the middle of `trouble`, beginning again where it was told that all is durable.
async fn streamed(gate: &Node, durable: &mut u64, to: u64, trouble: impl Future<Output = ()>) {
    let mut gateway = gate.gateway().await;
    let streaming = async {
        while *durable < to {
            let from = *durable + 1;
            stream(&mut gateway, from, to, durable).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::join!(streaming, trouble);
}

async fn nothing_is_left(node: &Node) {
    let told = drained(&mut node.keeper().await, "ledger").await;
    assert_eq!(told.stages.iter().map(|s| s.dead).sum::<u64>(), 0);
}

/// For longer than a lease and than a heartbeat lasts, so that the others take over; then what was on its way arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_carries_one_way_loses_and_repeats_nothing() {
    let cluster = Cluster::new();
    let gate = cluster.start(1);
    let proxy = Proxy::to(cluster.redis.port).await;
    let far = cluster.prepared(2).env("SKEP_BACKEND", proxy.url()).start();
    prepare(&gate).await;
    in_step(&gate, 2).await;
    let (mut durable, mut to) = (0, 0);
    for round in 0..4u64 {
        to += 4_000;
        streamed(&gate, &mut durable, to, async {
            tokio::time::sleep(Duration::from_millis(40 + round * 37)).await;
            if round % 2 == 0 {
                proxy.hold_replies();
            } else {
                proxy.hold_requests();
            }
            tokio::time::sleep(Duration::from_millis(4_500)).await;
            proxy.pass();
        })
        .await;
    }
    assert_eq!(check(&gate, durable, durable).await, to);
    nothing_is_left(&gate).await;
    in_step(&gate, 2).await;
    assert!(far.stop().success());
    assert!(gate.stop().success());
}

/// The library, or why there is none.
fn faketime() -> Result<PathBuf, String> {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools");
    if let Ok(why) = std::fs::read_to_string(tools.join("faketime.absent")) {
        return Err(why);
    }
    let library = tools.join("faketime/libfaketime.so.1");
    assert!(
        library.exists(),
        "there is no {}: run `ci/tools faketime`",
        library.display()
    );
    Ok(library)
}

/// One node's clock is an hour ahead and runs fast, another's an hour behind: leases, deadlines and due times go by the store's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_are_an_hour_off_change_nothing() {
    let library = match faketime() {
        Ok(library) => library,
        Err(why) => return eprintln!("SKIPPED: no clock is shifted: {why}"),
    };
    let cluster = Cluster::new();
    let shifted = |node: u8, by: &str| {
        cluster
            .prepared(node)
            .env("LD_PRELOAD", library.display().to_string())
            .env("FAKETIME", by)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .start()
    };
    let (gate, mut behind) = (shifted(1, "+1h x1.1"), Some(shifted(2, "-1h")));
    prepare(&gate).await;
    apply(&mut gate.keeper().await, CALLS).await.expect("apply");
    let told = in_step(&gate, 2).await;
    let apart = told[0].started_ms.abs_diff(told[1].started_ms);
    assert!(
        apart > 7_000_000,
        "the clocks are {apart} ms apart, so nothing is tested"
    );
    let (mut durable, mut to) = (0, 0);
    for round in 0..2u8 {
        to += 4_000;
        streamed(&gate, &mut durable, to, async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            behind.take().expect("it runs").kill();
            behind = Some(shifted(10 + round, "-1h"));
        })
        .await;
    }
    // A deadline is kept whoever's clock the call came in by.
    let behind = behind.expect("it runs");
    for node in [&gate, &behind] {
        for n in 0..8 {
            let call = v1::RequestCall {
                subject: "effect".to_owned(),
                payload: b"x".to_vec().into(),
                key: Some(format!("{}-{n}", node.port())),
                timeout_ms: 30_000,
                ..v1::RequestCall::default()
            };
            let reply = node.gateway().await.request(call).await.expect("in time");
            assert_eq!(response(&reply.into_inner()), "1");
        }
    }
    assert_eq!(check(&gate, durable, durable).await, to);
    nothing_is_left(&gate).await;
    assert!(behind.stop().success());
    assert!(gate.stop().success());
}

/// A small file system of a test's own.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(megabytes: u32) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "skep-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(done) if done.status.success() => Ok(Self(dir)),
            Ok(done) => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Redis cannot write its append-only file any more: it takes no writes, and the nodes wait. With room again they go on by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_redis_loses_and_repeats_nothing() {
    let small = match Small::mount(48) {
        Ok(small) => small,
        Err(why) => return eprintln!("SKIPPED: no disk is full: a tmpfs cannot be mounted ({why}); run it as root"),
    };
    let dir = small.0.path().to_str().expect("UTF-8");
    let mut cluster = Cluster::new();
    // The last `--dir` counts.
    let everysec = ["--appendonly", "yes", "--appendfsync", "everysec", "--dir", dir];
    cluster.redis = Server::start(&[&everysec[..], &["--auto-aof-rewrite-percentage", "0"]].concat());
    let (gate, other) = (cluster.start(1), cluster.start(2));
    prepare(&gate).await;
    in_step(&gate, 2).await;
    let (mut durable, mut to) = (0, 0);
    for round in 0..2u64 {
        to += 4_000;
        let redis = &cluster.redis;
        streamed(&gate, &mut durable, to, async {
            tokio::time::sleep(Duration::from_millis(50 + round * 30)).await;
            let filler = small.0.path().join("filler");
            let full = Command::new("dd")
                .args(["if=/dev/zero", "bs=64k", &format!("of={}", filler.display())])
                .output()
                .expect("dd");
            assert!(!full.status.success(), "the disk is not full");
            let until = std::time::Instant::now() + crate::node::SOON;
            while !redis
                .cli(&["INFO", "persistence"])
                .contains("aof_last_write_status:err")
            {
                assert!(
                    std::time::Instant::now() < until,
                    "Redis does not notice that its disk is full"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            std::fs::remove_file(filler).expect("make room");
        })
        .await;
    }
    assert_eq!(check(&gate, durable, durable).await, to);
    nothing_is_left(&gate).await;
    for node in [other, gate] {
        assert!(node.stop().success());
    }
}
