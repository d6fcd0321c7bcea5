//! Dead letters as a workbench: listed by what they are, tried on another version, put back once each.

use std::time::{Duration, Instant};

use serde_json::Value;
use skep_proto::v1;
use skep_proto::v1::beekeeper_client::BeekeeperClient;
use tonic::transport::Channel;

use crate::node::{Node, SOON, Start, apply, drained, push, root, state, test_bees, totals};
use crate::redis_server::{ALWAYS, Server};

fn json(node: &Node, args: &[&str]) -> Value {
    let mut all = args.to_vec();
    all.extend(["-o", "json"]);
    serde_json::from_str(&node.cli_ok(&all)).unwrap()
}

async fn number(keeper: &mut BeekeeperClient<Channel>, stage: &str, customer: &str, name: &str) -> Option<f64> {
    let values = state(keeper, "orders", stage, customer).await;
    values.get(name).map(|text| text.parse().unwrap())
}

/// The sample's README, command by command.
async fn walked(node: &Node) {
    let mut keeper = node.keeper().await;
    let [v1, v2] = totals();
    push(&mut keeper, "totals", "latest", v1).await.unwrap();
    let sample = root().join("samples/redrive");
    let manifest = std::fs::read_to_string(sample.join("swarm.yaml")).unwrap();
    apply(&mut keeper, &manifest).await.unwrap();
    let orders = sample.join("orders.jsonl");
    node.cli_ok(&["submit", "orders", "--file", orders.to_str().unwrap()]);
    drained(&mut keeper, "orders").await;

    let letters = json(node, &["dlq", "orders", "list"])["letters"].clone();
    let letters = letters.as_array().unwrap();
    assert_eq!(letters.len(), 4, "{letters:?}");
    for letter in letters {
        assert_eq!(
            (&letter["reason"], &letter["attempts"]),
            (&"trap".into(), &2.into()),
            "{letter}"
        );
        assert!(
            letter["stderr"].as_str().unwrap().contains("an amount is a number"),
            "{letter}"
        );
    }
    let first = letters[0]["id"].to_string();
    // Each condition takes some and leaves others.
    for (args, count) in [
        (&["--reason", "trap"][..], 4),
        (&["--reason", "reject"], 0),
        (&["--stage", "bill"], 0),
        (&["--key", letters[0]["key"].as_str().unwrap()], 2),
        (&["--module", &letters[0]["module"].as_str().unwrap()[..15]], 4),
        (&["--module", "ffff"], 0),
        (&["--since", "10m"], 4),
        (&["--until", "10m"], 0),
        (&["--after", &first], 3),
        (&["--limit", "2"], 2),
    ] {
        let mut all = vec!["dlq", "orders", "list"];
        all.extend(args);
        let found = json(node, &all)["letters"].as_array().unwrap().len();
        assert_eq!(found, count, "{args:?}");
    }
    let both = node.cli(&["dlq", "orders", "redrive", &first, "--reason", "trap"]);
    assert_eq!(both.status.code(), Some(2), "{both:?}");
    assert_eq!(node.cli_ok(&["dlq", "orders", "export"]).lines().count(), 4);

    // Tried, on what failed and on what is mended. Nothing happens.
    let before = [
        number(&mut keeper, "totals", "ann", "total").await,
        number(&mut keeper, "bill", "ann", "times").await,
    ];
    let tried = json(node, &["dlq", "orders", "try", &first]);
    assert_eq!(tried["outcome"], "trap", "{tried}");
    push(&mut keeper, "totals", "v2", v2).await.unwrap();
    let tried = json(node, &["dlq", "orders", "try", &first, "--module", "totals:v2"]);
    assert_eq!(
        (&tried["outcome"], &tried["publish"][0]["to"][0]),
        (&"done".into(), &"bill".into()),
        "{tried}"
    );
    assert_eq!(tried["state"][0]["name"], "total", "{tried}");
    let told = node.cli_ok(&["dlq", "orders", "try", &first, "--module", "totals:v2"]);
    assert!(
        told.contains("→ bill") && told.contains("nothing of this happened"),
        "{told}"
    );
    for (args, says) in [
        (&["999999"][..], "no dead letter 999999"),
        (&[&first, "--module", "totals:v9"], "push it first"),
        (&[&first, "--module", "//"], "is not a name"),
    ] {
        let mut all = vec!["dlq", "orders", "try"];
        all.extend(args);
        let refused = node.cli(&all);
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(says), "{args:?}: {said}");
    }
    drained(&mut keeper, "orders").await;
    let after = [
        number(&mut keeper, "totals", "ann", "total").await,
        number(&mut keeper, "bill", "ann", "times").await,
    ];
    assert_eq!(before, after, "a trial changed something");

    push(&mut keeper, "totals", "latest", v2).await.unwrap();
    apply(&mut keeper, &manifest).await.unwrap();
    // Two operators at once: each letter comes back once.
    let ids: Vec<u64> = letters.iter().map(|l| l["id"].as_u64().unwrap()).collect();
    let call = v1::RedriveDeadLettersRequest {
        swarm: "orders".to_owned(),
        ids: ids.clone(),
    };
    let mut other = node.keeper().await;
    let (one, two) = tokio::join!(
        keeper.redrive_dead_letters(call.clone()),
        other.redrive_dead_letters(call.clone())
    );
    let (one, two) = (one.unwrap().into_inner(), two.unwrap().into_inner());
    assert_eq!(
        (one.redriven + two.redriven, one.gone + two.gone),
        (4, 4),
        "{one:?} {two:?}"
    );
    drained(&mut keeper, "orders").await;
    for (customer, total) in [("ann", 275.0), ("bob", 237.5), ("cyd", 250.0), ("dan", 262.5)] {
        assert_eq!(
            number(&mut keeper, "totals", customer, "total").await,
            Some(total),
            "{customer}"
        );
        assert_eq!(
            number(&mut keeper, "bill", customer, "times").await,
            Some(10.0),
            "{customer}"
        );
    }
    assert_eq!(json(node, &["dlq", "orders", "redrive", "--all"])["redriven"], 0);
    let gone = node.cli(&["dlq", "orders", "redrive", &first]);
    assert_eq!(gone.status.code(), Some(4), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_redrive_sample_goes_as_its_readme_says() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    walked(&node).await;
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_come_back_on_redis() {
    let redis = Server::start(ALWAYS);
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data"))
        .env("SKEP_BACKEND", redis.url())
        .env("SKEP_ARTIFACTS", dir.path().join("artifacts").to_str().unwrap())
        .start();
    walked(&node).await;
    assert!(node.stop().success());
}

/// The node is killed again and again while hundreds come back through an inbox that is too small for them: each takes effect once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_that_is_cut_off_goes_on_and_nothing_takes_effect_twice() {
    const LETTERS: usize = 600;
    let swarm = |bee: &str| {
        format!(
            "
name: back
bees:
  - name: work
    module: test-bees
    bee: {bee}
    input: {{ gateway: back }}
    key: message
    state: true
    inbox: {{ messages: 100 }}
    retry: {{ attempts: 1 }}
"
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    // Every one is rejected: it is no entry of a ledger.
    apply(&mut keeper, &swarm("ledger")).await.unwrap();
    let lines: String = (0..LETTERS).map(|n| format!("{{\"id\": \"m{n}\"}}\n")).collect();
    let file = dir.path().join("lines");
    std::fs::write(&file, lines).unwrap();
    node.cli_ok(&["submit", "back", "--file", file.to_str().unwrap(), "--key-json", "/id"]);
    drained(&mut keeper, "back").await;
    let asked = || v1::ListDeadLettersRequest {
        swarm: "back".to_owned(),
        limit: 1_000,
        brief: true,
        ..v1::ListDeadLettersRequest::default()
    };
    let letters = keeper.list_dead_letters(asked()).await.unwrap().into_inner().letters;
    assert_eq!(letters.len(), LETTERS);
    apply(&mut keeper, &swarm("effect")).await.unwrap();
    for pause in [40, 90, 160] {
        let cut = tokio::time::timeout(
            Duration::from_millis(pause),
            keeper.redrive_dead_letters(v1::RedriveDeadLettersRequest {
                swarm: "back".to_owned(),
                ids: letters.iter().map(|l| l.id).collect(),
            }),
        )
        .await;
        drop(cut);
        node.kill();
        node = Start::new(dir.path()).start();
        keeper = node.keeper().await;
    }
    let until = Instant::now() + SOON;
    loop {
        // What does not fit is waited for, and told as `later` until then.
        let told = json(&node, &["dlq", "back", "redrive", "--all"]);
        assert!(told["left"].as_array().unwrap().is_empty(), "{told}");
        let left = keeper.list_dead_letters(asked()).await.unwrap().into_inner().letters;
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "{} are left", left.len());
    }
    drained(&mut keeper, "back").await;
    for n in 0..LETTERS {
        let times = state(&mut keeper, "back", "work", &format!("m{n}"))
            .await
            .remove("times");
        assert_eq!(times.as_deref(), Some("1"), "m{n}");
    }
    let too_many = v1::RedriveDeadLettersRequest {
        swarm: "back".to_owned(),
        ids: (0..2_000).collect(),
    };
    let refused = keeper.redrive_dead_letters(too_many).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    drop(keeper);
    assert!(node.stop().success());
}

/// A removed stage's letters stay where they are, and say why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_without_its_stage_is_left_and_told() {
    let manifest = |names: &[&str]| {
        let bees = names.iter().map(|name| {
            format!("  - {{ name: {name}, bee: rascal, module: test-bees, input: {{ gateway: {name} }}, retry: {{ attempts: 1 }} }}\n")
        });
        format!("name: two\nbees:\n{}", bees.collect::<String>())
    };
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    apply(&mut keeper, &manifest(&["one", "other"])).await.unwrap();
    node.cli_ok(&["submit", "one", "fail"]);
    drained(&mut keeper, "two").await;
    apply(&mut keeper, &manifest(&["other"])).await.unwrap();
    let left = node.cli(&["dlq", "two", "redrive", "--all"]);
    let said = String::from_utf8_lossy(&left.stderr).into_owned();
    assert!(
        !left.status.success() && said.contains("stage `one` was removed"),
        "{said}"
    );
    let tried = node.cli(&["dlq", "two", "try", "1"]);
    let said = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert!(
        !tried.status.success() && said.contains("stage `one` was removed"),
        "{said}"
    );
    apply(&mut keeper, &manifest(&["one", "other"])).await.unwrap();
    assert_eq!(json(&node, &["dlq", "two", "redrive", "--all"])["redriven"], 1);
    // It fails again: another letter.
    drained(&mut keeper, "two").await;
    assert_eq!(json(&node, &["dlq", "two"])["letters"].as_array().unwrap().len(), 1);
    drop(keeper);
    assert!(node.stop().success());
}
