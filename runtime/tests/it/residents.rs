//! Modules in memory: loaded by the first call, let go for others, loaded again.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::access::reqwest_text;
use crate::node::{Node, SOON, Start, apply, push, request, response, test_bees};

const MODULES: usize = 6;

/// The same component with other bytes: a custom section at its end, which means nothing and is in the digest.
fn another(name: &str) -> Vec<u8> {
    let mut bytes = test_bees().to_vec();
    // All lengths are below 128, so that each is one byte of LEB128.
    bytes.extend([0, u8::try_from(name.len()).unwrap() + 2, 1, b'n']);
    bytes.extend(name.as_bytes());
    bytes
}

fn manifest() -> String {
    let stages =
        (0..MODULES).map(|n| format!("  - {{ name: s{n}, module: m{n}, bee: echo, input: {{ gateway: s{n} }} }}\n"));
    format!("name: many\nbees:\n{}", stages.collect::<String>())
}

fn start(data: &Path, memory: &str) -> Node {
    Start::new(data).env("SKEP_MODULE_MEMORY", memory).start()
}

/// A number on the metrics page.
fn metric(node: &Node, name: &str) -> u64 {
    let page = reqwest_text(&format!("{}/metrics", node.admin));
    let line = page.lines().find(|line| line.split(' ').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn call(node: &Node, stage: usize) -> String {
    let called = request(&mut node.gateway().await, &format!("s{stage}"), r#"{"name":"you"}"#).await;
    response(&called.unwrap_or_else(|e| panic!("stage {stage}: {e}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modules_are_loaded_by_the_first_call_and_go_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), "512MiB");
    let mut keeper = node.keeper().await;
    for n in 0..MODULES {
        let name = format!("m{n}");
        push(&mut keeper, &name, "latest", &another(&name)).await.unwrap();
    }
    apply(&mut keeper, &manifest()).await.unwrap();
    let answer = call(&node, 0).await;
    assert_eq!(
        metric(&node, "skep_modules_loads_total"),
        MODULES as u64,
        "by their uploads"
    );
    let each = metric(&node, "skep_modules_memory_bytes") / MODULES as u64;
    assert!(node.stop().success());

    // A node that starts loads nothing, and many first calls of one Bee load it once.
    let node = start(dir.path(), "512MiB");
    assert_eq!(metric(&node, "skep_modules_loaded"), 0);
    let mut calls = JoinSet::new();
    for _ in 0..32 {
        let mut gateway = node.gateway().await;
        calls.spawn(async move { response(&request(&mut gateway, "s0", r#"{"name":"you"}"#).await.unwrap()) });
    }
    let answers: BTreeSet<String> = calls.join_all().await.into_iter().collect();
    assert_eq!(answers, BTreeSet::from([answer.clone()]));
    assert_eq!(metric(&node, "skep_modules_loads_total"), 1);
    assert!(node.stop().success());

    // Room for two and a half: those that were called longest ago go, under calls of all of them at once, and every call is answered.
    let room = each * 5 / 2;
    let node = start(dir.path(), &format!("{}KiB", room >> 10));
    let mut calls = JoinSet::new();
    for caller in 0..4_usize {
        let mut gateway = node.gateway().await;
        calls.spawn(async move {
            for n in 0..60 {
                let subject = format!("s{}", (n * 7 + caller) % MODULES);
                let called = request(&mut gateway, &subject, r#"{"name":"you"}"#).await;
                response(&called.unwrap_or_else(|e| panic!("{subject}: {e}")));
            }
        });
    }
    calls.join_all().await;
    assert!(metric(&node, "skep_modules_evictions_total") > 4);
    assert!(metric(&node, "skep_modules_memory_bytes") <= room);
    assert_eq!(metric(&node, "skep_modules_loaded"), 2);
    assert!(node.stop().success());
}

/// What is found damaged by the first call is compiled again, and what cannot be had then is a node's trouble, not the message's: it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_while_nobody_calls_is_found_by_the_first_call() {
    let dir = tempfile::tempdir().unwrap();
    let first = Start::new(dir.path()).start();
    let mut keeper = first.keeper().await;
    for n in 0..MODULES {
        let name = format!("m{n}");
        push(&mut keeper, &name, "latest", &another(&name)).await.unwrap();
    }
    apply(&mut keeper, &manifest()).await.unwrap();
    assert!(first.stop().success());

    let node = Start::new(dir.path()).start();
    for file in std::fs::read_dir(dir.path().join("cache")).unwrap() {
        let file = file.unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    call(&node, 0).await;

    let modules = dir.path().join("modules/modules/default");
    for file in std::fs::read_dir(&modules).unwrap() {
        std::fs::write(file.unwrap().path(), b"damaged").unwrap();
    }
    let mut gateway = node.gateway().await;
    let call_1 = tokio::spawn(async move { request(&mut gateway, "s1", r#"{"name":"you"}"#).await });
    let until = Instant::now() + SOON;
    while !node.stderr().contains("a module cannot be loaded") {
        assert!(Instant::now() < until && !call_1.is_finished(), "{}", node.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The bytes come back, as they do with a store that was away.
    push(&mut node.keeper().await, "m1", "latest", &another("m1"))
        .await
        .unwrap();
    response(&call_1.await.unwrap().unwrap());
    assert!(node.stop().success());
}
