//! Session windows on real nodes, with a kill in the middle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::node::{SOON, Start, apply, drained, push, root, session_windows, state};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_sample_sees_every_visit_once_although_its_node_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "session-windows", "latest", session_windows())
        .await
        .unwrap();
    let sample = root().join("samples/session-windows");
    let manifest = std::fs::read_to_string(sample.join("swarm.yaml")).unwrap();
    apply(&mut keeper, &manifest).await.unwrap();
    let motion = std::fs::read_to_string(sample.join("motion.jsonl")).unwrap();
    let lines: Vec<&str> = motion.lines().collect();
    let file = dir.path().join("part");
    // Between the second and the third round of visits, a minute apart by their own time: a restart takes less.
    let half = lines.iter().position(|line| line.contains("\"at\": 17800001")).unwrap();
    let (first, second) = lines.split_at(half);
    for part in [first, second] {
        std::fs::write(&file, part.join("\n")).unwrap();
        node.cli_ok(&["submit", "motion", "--file", file.to_str().unwrap()]);
        node.kill();
        node = Start::new(dir.path()).start();
    }
    keeper = node.keeper().await;
    let expected = std::fs::read_to_string(sample.join("expected.jsonl")).unwrap();
    let mut visits: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in expected.lines() {
        let visit: serde_json::Value = serde_json::from_str(line).unwrap();
        let of = visits.entry(visit["room"].as_str().unwrap().to_owned()).or_default();
        of.push(line.to_owned());
    }
    // Nothing moves any more: the last visits close by their timers.
    let until = Instant::now() + SOON;
    for (room, expected) in &visits {
        loop {
            let kept = state(&mut keeper, "session-windows", "log", room).await;
            let count: usize = kept.get("count").map_or(0, |n| n.parse().unwrap());
            if count >= expected.len() {
                let seen: Vec<&String> = (1..=count).map(|n| &kept[&n.to_string()]).collect();
                assert_eq!(seen, expected.iter().collect::<Vec<_>>(), "{room}");
                break;
            }
            assert!(
                Instant::now() < until,
                "{room} has {count} visits of {}",
                expected.len()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let told = drained(&mut keeper, "session-windows").await;
    assert!(told.stages.iter().all(|stage| stage.dead == 0), "{told:?}");
    for (room, late) in [("hall", 1), ("kitchen", 0), ("study", 1)] {
        let kept = state(&mut keeper, "session-windows", "late", room).await;
        assert_eq!(kept.get("count").map_or(0, |n| n.parse().unwrap()), late, "{room}");
        let open = state(&mut keeper, "session-windows", "visits", room).await;
        assert_eq!(
            open.keys().collect::<Vec<_>>(),
            ["window/main"],
            "nothing is left of closed windows"
        );
    }
    drop(keeper);
    assert!(node.stop().success());
}
