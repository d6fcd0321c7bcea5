//! The audit at a running node: who did what and who was refused, what survives a kill, and what a look at a changed file tells.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use skep_proto::v1;
use tonic::Code;

use crate::access::{ORDERS, with};
use crate::cluster::{Cluster, in_step_as};
use crate::node::{Node, SOON, Start, test_bees, upload};

const VALUE: &str = "sk-never-recorded-0123456789";

fn records(node: &Node, token: &str, args: &[&str]) -> Vec<Value> {
    let args = [&["audit", "list", "-o", "json"], args].concat();
    let text = node.cli_ok_as(token, &args);
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// Method, kind and outcome of each.
fn told(records: &[Value]) -> Vec<String> {
    let text = |record: &Value, name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let line = |r: &Value| format!("{} {} {}", text(r, "method"), text(r, "kind"), text(r, "outcome"));
    records.iter().map(line).collect()
}

fn set_secret(node: &Node, token: &str) {
    let mut child = node
        .command(&["secret", "set", "api-key"])
        .env("SKEP_TOKEN", token)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("skep");
    child.stdin.take().unwrap().write_all(VALUE.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn whole(folder: &Path) -> String {
    let mut text = String::new();
    for book in std::fs::read_dir(folder.join("audit")).unwrap() {
        for file in std::fs::read_dir(book.unwrap().path()).unwrap() {
            text.push_str(&std::fs::read_to_string(file.unwrap().path()).unwrap());
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_what_is_recorded_survives_a_kill_and_shows_tampering() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Start::new(&data).start();
    let operator = node.bootstrap();
    let admin = node.token(&operator, "acme", "admin");
    let deploy = node.cli_ok_as(
        &operator,
        &[
            "token", "create", "--tenant", "acme", "--role", "deploy", "--name", "ci",
        ],
    );
    let invoke = node.token(&operator, "acme", "invoke");
    let other = node.token(&operator, "globex", "admin");
    set_secret(&node, &admin);
    let parts = upload("test-bees", "v1", test_bees(), test_bees().len() as u64, "");
    let mut keeper = node.keeper().await;
    let pushed = keeper
        .push_module(with(&deploy, tokio_stream::iter(parts)))
        .await
        .unwrap();
    let apply = |manifest: &str| v1::ApplySwarmRequest {
        manifest: manifest.replace("module: test-bees", "module: \"test-bees:v1\""),
        ..v1::ApplySwarmRequest::default()
    };
    keeper.apply_swarm(with(&deploy, apply(ORDERS))).await.unwrap();
    let refused = keeper
        .apply_swarm(with(&deploy, apply("name: x\nbees: 7")))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let forbidden = keeper.apply_swarm(with(&invoke, apply(ORDERS))).await.unwrap_err();
    assert_eq!(forbidden.code(), Code::PermissionDenied);
    for _ in 0..50 {
        let stranger = keeper.list_swarms(with("skep_nobody", v1::ListSwarmsRequest {})).await;
        assert_eq!(stranger.unwrap_err().code(), Code::Unauthenticated);
    }
    // Killed at once: what was answered is recorded.
    node.kill();
    let text = whole(&data);
    assert!(!text.contains(VALUE) && !text.contains(operator.split('_').nth(2).unwrap()));

    let node = Start::new(&data).start();
    let mut acme = records(&node, &admin, &[]);
    // By whatever millisecond.
    acme.sort_by_key(|record| record["kind"] == "denied");
    assert_eq!(
        told(&acme),
        [
            "Secrets/SetSecret asked ",
            "Secrets/SetSecret ended ok",
            "Beekeeper/PushModule asked ",
            "Beekeeper/PushModule ended ok",
            "Beekeeper/ApplySwarm asked ",
            "Beekeeper/ApplySwarm ended ok",
            "Beekeeper/ApplySwarm asked ",
            "Beekeeper/ApplySwarm ended INVALID_ARGUMENT",
            "Beekeeper/ApplySwarm denied forbidden",
        ]
    );
    let push = &acme[3];
    assert_eq!(push["objects"]["module"], "test-bees");
    assert_eq!(push["objects"]["digest"], pushed.into_inner().digest);
    assert_eq!(
        (&push["token_name"], &push["role"], &push["tenant"]),
        (&"ci".into(), &"deploy".into(), &"acme".into())
    );
    assert_eq!(push["token"], deploy.split('_').nth(1).unwrap());
    assert!(push["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(
        (&acme[5]["objects"]["swarm"], &acme[5]["objects"]["revision"]),
        (&"orders".into(), &"1".into())
    );
    // Others' are not to be had, by whatever name, and not every role reads.
    assert_eq!(told(&records(&node, &other, &[])), [""; 0]);
    assert!(
        !node
            .cli_as(&other, &["audit", "list", "--tenant", "acme"])
            .status
            .success()
    );
    assert_eq!(node.cli_as(&deploy, &["audit", "list"]).status.code(), Some(3));
    let platform = records(&node, &operator, &[]);
    let methods = told(&platform);
    for method in [
        "Access/Bootstrap ended ok",
        "Access/CreateTenant ended ok",
        "Access/CreateToken ended ok",
        " node ",
    ] {
        assert!(methods.iter().any(|m| m == method), "{method}: {methods:#?}");
    }
    assert_eq!(
        methods
            .iter()
            .filter(|m| *m == "Beekeeper/ListSwarms denied unauthenticated")
            .count(),
        1
    );
    let people = node.cli_ok_as(&admin, &["audit", "list", "--since", "1h"]);
    assert!(
        people.contains("(ci) deploy of acme · Beekeeper/PushModule") && !people.contains("no outcome"),
        "{people}"
    );

    let heads = dir.path().join("heads.json");
    std::fs::write(&heads, node.cli_ok_as(&operator, &["audit", "verify", "-o", "json"])).unwrap();
    let heads = heads.to_str().unwrap();
    node.cli_ok_as(&operator, &["audit", "verify", "--heads", heads]);
    let file = data.join("audit/tenant-acme/0000000000000001.log");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"ok\"", "\"no\"", 1)).unwrap();
    let broken = node.cli_as(&operator, &["audit", "verify", "--heads", heads]);
    let said = String::from_utf8_lossy(&broken.stdout).into_owned();
    assert!(
        broken.status.code() == Some(1) && said.contains("line 2: the record was changed"),
        "{said}"
    );
    std::fs::write(&file, text).unwrap();
    node.cli_ok_as(&admin, &["audit", "verify"]);
    node.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_recorded_is_not_done() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let admin = node.token(&operator, "acme", "admin");
    std::fs::write(dir.path().join("audit/tenant-acme"), b"").unwrap();
    let refused = node.cli_as(&admin, &["token", "create", "--role", "read"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(7) && said.contains("cannot be recorded"),
        "{said}"
    );
    assert_eq!(
        node.cli_ok_as(&operator, &["token", "list", "--tenant", "acme", "-o", "json"])
            .matches("\"id\"")
            .count(),
        1
    );
    node.stop();
}

/// Each node records what was asked of it; whoever asks is told of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_records_of_two_nodes_are_read_at_either() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.start(1), cluster.start(2));
    let operator = a.bootstrap();
    let until = std::time::Instant::now() + SOON;
    while !b.cli_as(&operator, &["whoami"]).status.success() {
        assert!(
            std::time::Instant::now() < until,
            "the other node did not hear of the token"
        );
    }
    in_step_as(&b, 2, &operator).await;
    a.cli_ok_as(&operator, &["tenant", "create", "acme"]);
    b.cli_ok_as(&operator, &["tenant", "create", "globex"]);
    let until = std::time::Instant::now() + SOON;
    for node in [&a, &b] {
        loop {
            let made: Vec<String> = records(node, &operator, &[])
                .iter()
                .filter(|r| r["method"] == "Access/CreateTenant" && r["kind"] == "ended")
                .map(|r| {
                    format!(
                        "{}@{}",
                        r["objects"]["tenant"].as_str().unwrap(),
                        r["node"].as_str().unwrap()
                    )
                })
                .collect();
            if made == ["acme@n1", "globex@n2"] {
                break;
            }
            assert!(std::time::Instant::now() < until, "{made:?}");
        }
        let verified = node.cli_ok_as(&operator, &["audit", "verify"]);
        assert!(verified.matches("whole").count() >= 2, "{verified}");
    }
}
