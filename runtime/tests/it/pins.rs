//! Tenants that are pinned to nodes with a label, and nodes that are for them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use skep_proto::v1;

use crate::access::{apply_as, push_as, with};
use crate::cluster::{Cluster, in_step_as};
use crate::node::{Node, SOON, response};

const COUNTS: &str = "
name: counts
bees:
  - { name: count, module: test-bees, bee: effect, key: message, state: true, partitions: 32, input: { gateway: counts } }
";

/// So many that each node owns some of their partitions, as likely as can be.
const KEYS: u32 = 48;

async fn ask(node: &Node, token: &str, key: u32) -> String {
    let call = v1::RequestCall {
        subject: "counts".to_owned(),
        payload: b"x".to_vec().into(),
        key: Some(key.to_string()),
        ..v1::RequestCall::default()
    };
    let replied = node.gateway().await.request(with(token, call)).await;
    response(&replied.unwrap_or_else(|e| panic!("key {key}: {e}")).into_inner())
}

/// A call of each key, which is its `n`-th.
async fn round(node: &Node, token: &str, n: u32) {
    for key in 0..KEYS {
        assert_eq!(ask(node, token, key).await, n.to_string(), "key {key}");
    }
}

/// Until these nodes own partitions of a Swarm, and no others.
async fn until_owned(node: &Node, operator: &str, swarm: &str, wanted: &[&str]) {
    let until = Instant::now() + SOON;
    loop {
        let mut keeper = node.keeper().await;
        let listed = keeper.list_nodes(with(operator, v1::ListNodesRequest {})).await;
        let nodes = listed.expect("nodes").into_inner().nodes;
        let mut owners = BTreeSet::new();
        for of in &nodes {
            for owned in of.owned.iter().filter(|owned| owned.swarm == swarm) {
                owners.insert(of.name.as_str());
                assert!(!owned.partitions.is_empty());
            }
        }
        if owners == wanted.iter().copied().collect() {
            return;
        }
        assert!(
            Instant::now() < until,
            "{swarm} is owned by {owners:?}, not {wanted:?}: {nodes:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_tenant_runs_on_its_nodes_and_nobody_else_does() {
    let cluster = Cluster::new();
    let own = || cluster.prepared(2).env("SKEP_LABEL", "pool=acme,zone=a");
    let first = cluster.start(1);
    let second = own().start();
    let third = cluster.start(3);
    let operator = first.bootstrap();
    let tokens = ["acme", "globex"].map(|tenant| first.token(&operator, tenant, "deploy"));
    in_step_as(&first, 3, &operator).await;
    for token in &tokens {
        push_as(&first, token, "test-bees").await.unwrap();
        apply_as(&first, token, COUNTS).await.unwrap();
    }
    in_step_as(&first, 3, &operator).await;
    let [acme, globex] = &tokens;
    let everywhere = ["n1", "n2", "n3"];
    round(&first, acme, 1).await;
    round(&third, globex, 1).await;
    for swarm in ["acme/counts", "globex/counts"] {
        until_owned(&first, &operator, swarm, &everywhere).await;
    }

    // Pinned while calls come: each is answered, none twice.
    let pin = first.cli_ok_as(&operator, &["tenant", "set", "acme", "--nodes", "pool=acme"]);
    assert!(pin.contains("pool=acme"), "{pin}");
    round(&first, acme, 2).await;
    round(&second, globex, 2).await;
    until_owned(&first, &operator, "acme/counts", &["n2"]).await;
    until_owned(&first, &operator, "globex/counts", &["n1", "n3"]).await;
    round(&third, acme, 3).await;
    round(&second, globex, 3).await;
    let shown = first.cli_ok_as(&operator, &["nodes"]);
    assert!(shown.contains("pool=acme zone=a"), "{shown}");

    // Its only node goes: nobody takes its work, and it is told why. The others go on.
    assert!(second.stop().success());
    in_step_as(&first, 2, &operator).await;
    let submit = v1::SubmitCall {
        subject: "counts".to_owned(),
        messages: vec![v1::OutMessage {
            payload: b"x".to_vec().into(),
            key: Some("0".to_owned()),
            ..v1::OutMessage::default()
        }],
        ..v1::SubmitCall::default()
    };
    first.gateway().await.submit(with(acme, submit)).await.expect("submit");
    until_owned(&first, &operator, "acme/counts", &[]).await;
    until_owned(&first, &operator, "globex/counts", &["n1", "n3"]).await;
    round(&first, globex, 4).await;
    let waits = first.cli_ok_as(acme, &["swarms"]);
    assert!(waits.contains("no node here has the label pool=acme"), "{waits}");

    // It comes back, and what waited is done.
    let second = own().start();
    in_step_as(&first, 3, &operator).await;
    until_owned(&first, &operator, "acme/counts", &["n2"]).await;
    assert_eq!(ask(&first, acme, 0).await, "5");

    // And free again.
    first.cli_ok_as(&operator, &["tenant", "set", "acme", "--nodes", "any"]);
    in_step_as(&first, 3, &operator).await;
    assert_eq!(ask(&third, acme, 0).await, "6");
    round(&third, globex, 5).await;
    until_owned(&first, &operator, "globex/counts", &everywhere).await;

    for bad in ["acme", "=acme", "pool=", "pool=a b", "pool=a=b", "POOL=a"] {
        let refused = first.cli_as(&operator, &["tenant", "set", "acme", "--nodes", bad]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && told.contains("KEY=VALUE"), "{bad}: {told}");
    }
    let refused = cluster.prepared(4).env("SKEP_LABEL", "pool").try_start().err().unwrap();
    assert!(
        refused.contains("`label`") && refused.contains("KEY=VALUE"),
        "{refused}"
    );
    for node in [first, second, third] {
        assert!(node.stop().success());
    }
}
