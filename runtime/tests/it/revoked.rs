//! A Redis that comes back from an older state does not bring back what was revoked since.

use std::time::{Duration, Instant};

use skep_proto::v1;

use crate::cluster::{CALLS, in_step};
use crate::kills::prepare;
use crate::node::{Node, SOON, Start, apply, request};
use crate::redis_server::{ALWAYS, Server};
use crate::replaced::{start, until};

const LATER: &str = "
name: later
bees:
  - { name: echo, module: test-bees, input: { gateway: later } }
";

fn follow(replica: &Server, leader: &Server) {
    replica.cli(&["REPLICAOF", "127.0.0.1", &leader.port.to_string()]);
    let place = |server: &Server| server.cli(&["GET", "sk:{catalog}:n"]);
    until("the replica is in step", || {
        replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
            && leader.cli(&["INFO", "replication"]).contains("state=online")
            && place(replica) == place(leader)
    });
}

async fn swarms(node: &Node) -> Option<Vec<String>> {
    let mut keeper = node.keeper().await;
    let told = keeper.list_swarms(v1::ListSwarmsRequest {}).await.ok()?;
    Some(told.into_inner().swarms.into_iter().map(|s| s.name).collect())
}

/// A replica stops following; then a Swarm is deleted and another applied; then the replica leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_stays_deleted_when_a_replica_that_was_behind_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let quick = [ALWAYS, &["--repl-diskless-sync-delay", "0"]].concat();
    let mut leads = Server::start(&quick);
    let (behind, copy) = (Server::start(&quick), Server::start(&quick));
    let backend = format!("redis://127.0.0.1:{},127.0.0.1:{}", leads.port, behind.port);
    follow(&behind, &leads);
    let nodes = [
        start(dir.path(), &backend, "none", 1),
        start(dir.path(), &backend, "none", 2),
    ];
    prepare(&nodes[0]).await;
    apply(&mut nodes[0].keeper().await, CALLS).await.expect("apply");
    in_step(&nodes[1], 2).await;
    for replica in [&behind, &copy] {
        follow(replica, &leads);
        replica.cli(&["REPLICAOF", "NO", "ONE"]);
    }
    nodes[1].cli_ok(&["delete", "calls"]);
    apply(&mut nodes[1].keeper().await, LATER).await.expect("apply");
    leads.kill();
    let wanted = ["later".to_owned(), "ledger".to_owned()];
    let end = Instant::now() + SOON;
    for node in &nodes {
        while swarms(node).await.as_deref() != Some(&wanted) {
            assert!(Instant::now() < end, "{:?}", swarms(node).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    in_step(&nodes[0], 2).await;
    for node in &nodes {
        assert_eq!(swarms(node).await.as_deref(), Some(&wanted[..]), "for good");
        let gone = request(&mut node.gateway().await, "effect", "x").await.unwrap_err();
        assert_eq!(gone.code(), tonic::Code::NotFound, "{gone}");
    }
    assert!(
        nodes
            .iter()
            .any(|node| node.stderr().contains("came back from an older state"))
    );
    let [first, second] = nodes;
    assert!(second.stop().success());
    assert!(first.stop().success());

    // The same of a store that was copied then, before anything else is done on it.
    let data = dir.path().join("node-3");
    let node = Start::new(&data)
        .env("SKEP_BACKEND", copy.url())
        .env("SKEP_ARTIFACTS", dir.path().join("artifacts").display().to_string())
        .start();
    assert_eq!(swarms(&node).await.as_deref(), Some(&wanted[..]));
    assert!(node.stop().success());
}
