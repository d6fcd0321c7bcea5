//! Keyed state as its operators meet it: values that go by themselves, a full stage, lists, exports and imports.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use skep_client::Outcome;
use skep_proto::v1;
use skep_proto::v1::beekeeper_client::BeekeeperClient;
use tonic::transport::Channel;

use crate::node::{Node, SOON, Start, apply, drained, push, state, test_bees};
use crate::redis_server::{ALWAYS, Server};

/// One node after another on the same store, killed by whoever drops one.
struct Place {
    dir: tempfile::TempDir,
    redis: Option<Server>,
}

impl Place {
    fn both() -> [Self; 2] {
        [None, Some(Server::start(ALWAYS))].map(|redis| Self {
            dir: tempfile::tempdir().unwrap(),
            redis,
        })
    }

    fn start(&self) -> Node {
        let mut start = Start::new(&self.dir.path().join("data"));
        if let Some(redis) = &self.redis {
            start = start
                .env("SKEP_BACKEND", redis.url())
                .env("SKEP_ARTIFACTS", self.dir.path().join("artifacts").to_str().unwrap());
        }
        start.start()
    }

    /// A node with these Swarms.
    async fn serving(&self, manifests: &str) -> (Node, BeekeeperClient<Channel>) {
        let node = self.start();
        let mut keeper = node.keeper().await;
        push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
        for manifest in manifests.split("---") {
            apply(&mut keeper, manifest).await.unwrap();
        }
        (node, keeper)
    }

    fn submit(&self, node: &Node, subject: &str, keys: impl Iterator<Item = usize>) {
        let file = self.dir.path().join("lines");
        let lines: String = keys.map(|n| format!("{{\"id\": \"k{n:04}\"}}\n")).collect();
        std::fs::write(&file, lines).unwrap();
        node.cli_ok(&["submit", subject, "--file", file.to_str().unwrap(), "--key-json", "/id"]);
    }
}

async fn stage(keeper: &mut BeekeeperClient<Channel>, swarm: &str) -> v1::StageStatus {
    let call = v1::DescribeSwarmRequest {
        name: swarm.to_owned(),
        count_keys: true,
    };
    let told = keeper.describe_swarm(call).await.unwrap().into_inner();
    told.stages.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_whose_time_is_over_are_never_read_and_go_although_nodes_die() {
    let manifest = "
name: aged
bees:
  - { name: tally, module: test-bees, input: { gateway: aged }, key: message, state: { ttl: 3s } }
";
    for place in Place::both() {
        let (mut node, mut keeper) = place.serving(manifest).await;
        // Paused, so that nothing is collected: what is over is stored, and nobody sees it.
        place.submit(&node, "aged", 0..50);
        drained(&mut keeper, "aged").await;
        let seen = state(&mut keeper, "aged", "tally", "k0007").await;
        assert_eq!(
            seen.iter().collect::<Vec<_>>(),
            [(&"count".to_owned(), &"1".to_owned())]
        );
        node.cli_ok(&["pause", "aged/tally"]);
        tokio::time::sleep(Duration::from_millis(3_100)).await;
        assert_eq!(stage(&mut keeper, "aged").await.keys, 50);
        assert!(state(&mut keeper, "aged", "tally", "k0007").await.is_empty());
        assert!(node.cli_ok(&["state", "list", "aged/tally"]).contains("no such keys"));
        node.cli_ok(&["resume", "aged/tally"]);
        // Killed while it collects, and while it counts anew.
        for round in 0..4u64 {
            place.submit(&node, "aged", 0..300);
            tokio::time::sleep(Duration::from_millis(700 * round)).await;
            node.kill();
            node = place.start();
        }
        keeper = node.keeper().await;
        let until = Instant::now() + SOON;
        loop {
            let now = stage(&mut keeper, "aged").await;
            if now.keys + now.timers + now.unread + now.parked == 0 {
                assert_eq!(now.dead, 0, "{now:?}");
                break;
            }
            assert!(Instant::now() < until, "something stays: {now:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // It counts from the beginning.
        place.submit(&node, "aged", 7..8);
        drained(&mut keeper, "aged").await;
        assert_eq!(state(&mut keeper, "aged", "tally", "k0007").await["count"], "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_stage_refuses_new_keys_by_name_and_goes_on_with_those_it_has() {
    let manifest = |keys: u64| {
        format!(
            "
name: small
bees:
  - {{ name: tally, module: test-bees, input: {{ gateway: small }}, key: message, state: {{ keys: {keys} }}, partitions: 1,
      retry: {{ attempts: 1 }} }}
"
        )
    };
    for place in Place::both() {
        let (node, mut keeper) = place.serving(&manifest(10)).await;
        place.submit(&node, "small", 0..12);
        drained(&mut keeper, "small").await;
        let now = stage(&mut keeper, "small").await;
        assert_eq!((now.keys, now.dead), (10, 2), "{now:?}");
        assert!(now.status.starts_with("state full: 10 keys, at most 10"), "{now:?}");
        let letters = node.cli_ok(&["dlq", "small", "list", "-o", "json"]);
        assert!(letters.contains("as much state as"), "{letters}");
        place.submit(&node, "small", 0..12);
        drained(&mut keeper, "small").await;
        let now = stage(&mut keeper, "small").await;
        assert_eq!((now.keys, now.dead), (10, 4), "those that were there count on: {now:?}");
        assert_eq!(state(&mut keeper, "small", "tally", "k0003").await["count"], "2");
        apply(&mut keeper, &manifest(12)).await.unwrap();
        node.cli_ok(&["dlq", "small", "redrive", "--all"]);
        let until = Instant::now() + SOON;
        while stage(&mut keeper, "small").await.keys < 12 {
            assert!(Instant::now() < until, "they come back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drained(&mut keeper, "small").await;
        assert_eq!(state(&mut keeper, "small", "tally", "k0011").await["count"], "2");
    }
}

/// The memory of Redis is what all Swarms on it share: new work is refused with the name of what is full, and what was taken before is
/// worked off, its state included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_whose_memory_is_full_refuses_new_work_by_name_and_loses_none() {
    let manifest = "
name: wide
bees:
  - { name: tally, module: test-bees, input: { gateway: wide }, key: message, state: true, inbox: { messages: 100000, bytes: 512MiB } }
";
    let [_, place] = Place::both();
    let (node, mut keeper) = place.serving(manifest).await;
    let redis = place.redis.as_ref().unwrap();
    node.cli_ok(&["pause", "wide"]);
    redis.cli(&["CONFIG", "SET", "maxmemory", "48mb"]);
    let gateway = skep_client::Gateway::connect(&node.url).await.unwrap();
    let payload = bytes::Bytes::from(vec![b'x'; 64 << 10]);
    let mut taken = 0u64;
    let refused = loop {
        let message = skep_client::Message::new(payload.clone()).key(format!("k{taken:05}"));
        match gateway.submit("wide", [message]).timeout(Duration::from_secs(2)).await {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
        assert!(taken < 2_000, "48 MB never get full");
    };
    assert_eq!(refused.outcome, Outcome::NotDone, "{refused}");
    assert!(refused.to_string().contains("maxmemory"), "{refused}");
    // What Redis counts falls a little when buffers of connections are given back, so some more may fit before the next is refused.
    let large = "x".repeat(64 << 10);
    let seen = loop {
        let seen = node.cli(&["submit", "wide", &large, "--key", &format!("m{taken:05}")]);
        if !seen.status.success() {
            break String::from_utf8_lossy(&seen.stderr).into_owned();
        }
        taken += 1;
        assert!(taken < 2_000, "48 MB never get full");
    };
    assert!(seen.contains("raise maxmemory"), "{seen}");
    // Fuller than full: what waits is worked off all the same.
    redis.cli(&["CONFIG", "SET", "maxmemory", "16mb"]);
    node.cli_ok(&["resume", "wide"]);
    drained(&mut keeper, "wide").await;
    let now = stage(&mut keeper, "wide").await;
    assert_eq!((now.keys, now.dead), (taken, 0), "{now:?}");
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let until = Instant::now() + SOON;
    while let Err(refused) = gateway
        .submit("wide", [skep_client::Message::new("m").key("k00000")])
        .timeout(Duration::from_secs(2))
        .await
    {
        assert!(Instant::now() < until, "with room again: {refused}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drained(&mut keeper, "wide").await;
    assert_eq!(state(&mut keeper, "wide", "tally", "k00000").await["count"], "2");
}

const COPIES: &str = "
name: from
bees:
  - { name: tally, module: test-bees, input: { gateway: from }, key: message, state: true }
---
name: to
bees:
  - { name: tally, module: test-bees, input: { gateway: to }, key: message, state: { ttl: 30d } }
";

fn lines(file: &Path) -> BTreeMap<String, serde_json::Value> {
    let text = std::fs::read_to_string(file).unwrap();
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        (line["key"].as_str().unwrap().to_owned(), line["values"].clone())
    };
    text.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_is_listed_exported_and_imported() {
    for place in Place::both() {
        let (mut node, mut keeper) = place.serving(COPIES).await;
        place.submit(&node, "from", 0..1_500);
        place.submit(&node, "from", 0..700);
        drained(&mut keeper, "from").await;
        // Page by page, as it is told to go on.
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let mut args = vec!["state", "list", "from/tally", "--limit", "400", "-o", "json"];
            if !after.is_empty() {
                args.extend(["--after", &after]);
            }
            let page = node.cli(&args);
            assert!(page.status.success(), "{page:?}");
            let text = String::from_utf8(page.stdout).unwrap();
            found.extend(
                text.lines()
                    .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()),
            );
            let told = String::from_utf8(page.stderr).unwrap();
            match told.split("--after '").nth(1) {
                Some(rest) => after = rest.split('\'').next().unwrap().to_owned(),
                None => break,
            }
        }
        let keys: std::collections::BTreeSet<&str> = found.iter().map(|line| line["key"].as_str().unwrap()).collect();
        assert_eq!((found.len(), keys.len()), (1_500, 1_500));
        let some = node.cli_ok(&["state", "list", "from/tally", "--prefix", "k00", "-o", "json"]);
        assert_eq!(some.lines().count(), 100);
        let wrong = node.cli(&["state", "list", "from/tally", "--after", "nonsense"]);
        assert_eq!(wrong.status.code(), Some(3), "{wrong:?}");

        let file = place.dir.path().join("state.ndjson");
        let file = file.to_str().unwrap();
        node.cli_ok(&["state", "export", "from/tally", "--file", file]);
        let exported = lines(Path::new(file));
        assert_eq!(exported.len(), 1_500);
        assert_eq!(exported["k0001"], serde_json::json!({ "count": { "json": 2 } }));
        let one = node.cli_ok(&["state", "export", "from/tally", "--key", "k0900"]);
        assert_eq!(one.trim(), "{\"key\":\"k0900\",\"values\":{\"count\":{\"json\":1}}}");

        let running = node.cli(&["state", "import", "to/tally", file]);
        assert_eq!(running.status.code(), Some(5), "{running:?}");
        assert!(
            String::from_utf8_lossy(&running.stderr).contains("skep pause to/tally"),
            "{running:?}"
        );
        node.cli_ok(&["pause", "to/tally"]);
        // A wrong line: nothing of the file is set.
        let broken = place.dir.path().join("broken.ndjson");
        let text = std::fs::read_to_string(file)
            .unwrap()
            .replacen("\"count\":{\"json\"", "\"count\":{\"jsom\"", 900);
        std::fs::write(&broken, text).unwrap();
        let refused = node.cli(&["state", "import", "to/tally", broken.to_str().unwrap()]);
        assert!(!refused.status.success());
        assert!(
            String::from_utf8_lossy(&refused.stderr).contains("broken.ndjson:1:"),
            "{refused:?}"
        );
        assert_eq!(stage(&mut keeper, "to").await.keys, 0);
        // The node dies in the middle; to import again is safe, whatever was set.
        let slow = std::process::Command::new(crate::node::SKEP)
            .args(["--node", &node.url, "state", "import", "to/tally", file])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        tokio::time::sleep(Duration::from_millis(60)).await;
        node.kill();
        slow.unwrap().wait().unwrap();
        node = place.start();
        keeper = node.keeper().await;
        for _ in 0..2 {
            assert!(
                node.cli_ok(&["state", "import", "to/tally", file])
                    .contains("1500 keys set")
            );
        }
        let again = place.dir.path().join("again.ndjson");
        node.cli_ok(&["state", "export", "to/tally", "--file", again.to_str().unwrap()]);
        assert_eq!(lines(&again), exported);
        let now = stage(&mut keeper, "to").await;
        assert_eq!((now.keys, now.timers), (1_500, 1_500), "each has its time: {now:?}");
        // Whole keys: what a file does not name of one goes.
        std::fs::write(&broken, "{\"key\":\"k0002\",\"values\":{\"other\":{\"text\":\"x\"}}}\n").unwrap();
        node.cli_ok(&["state", "import", "to/tally", broken.to_str().unwrap()]);
        let seen = state(&mut keeper, "to", "tally", "k0002").await;
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["other"]);
        node.cli_ok(&["resume", "to/tally"]);
        place.submit(&node, "to", 0..3);
        drained(&mut keeper, "to").await;
        for (key, count) in [("k0001", "3"), ("k0002", "1")] {
            assert_eq!(
                state(&mut keeper, "to", "tally", key).await["count"],
                count,
                "{key} counts on"
            );
        }
    }
}
