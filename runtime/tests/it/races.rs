//! Two nodes decide at the same moment, each by what it reads of a catalog that the other writes.

use skep_proto::v1;

use crate::cluster::{Cluster, in_step};
use crate::node::{Node, apply, push, test_bees};

const ROUNDS: u32 = 12;

fn swarm(name: &str, subject: &str, module: &str) -> String {
    format!(
        "
name: {name}
bees:
  - name: echo
    module: {module}
    input: {{ gateway: {subject} }}
"
    )
}

async fn two(cluster: &Cluster) -> (Node, Node) {
    let (first, second) = (cluster.start(1), cluster.start(2));
    push(&mut first.keeper().await, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    in_step(&first, 2).await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_swarms_that_claim_a_subject_at_two_nodes_at_once_one_is_refused() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    for round in 0..ROUNDS {
        let (mut a, mut b) = (first.keeper().await, second.keeper().await);
        let subject = format!("s{round}");
        let (one, other) = (format!("a{round}"), format!("b{round}"));
        let (one, other) = (swarm(&one, &subject, "test-bees"), swarm(&other, &subject, "test-bees"));
        let (one, other) = tokio::join!(apply(&mut a, &one), apply(&mut b, &other));
        let refused = match (one, other) {
            (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
            (Ok(_), Ok(_)) => panic!("round {round}: both feed `{subject}`"),
            (Err(one), Err(other)) => panic!("round {round}: {one}; {other}"),
        };
        assert_eq!(refused.code(), tonic::Code::AlreadyExists, "{refused}");
        // Different subjects disturb nobody, though each write makes the other decide again.
        let (one, other) = (
            swarm(&format!("c{round}"), &format!("c{round}"), "test-bees"),
            swarm(&format!("d{round}"), &format!("d{round}"), "test-bees"),
        );
        let (one, other) = tokio::join!(apply(&mut a, &one), apply(&mut b, &other));
        one.expect("apply");
        other.expect("apply");
    }
    for node in [first, second] {
        assert!(node.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_is_not_taken_away_under_an_apply_at_another_node() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    for round in 0..ROUNDS {
        let (mut a, mut b) = (first.keeper().await, second.keeper().await);
        let module = format!("m{round}");
        push(&mut a, &module, "latest", test_bees()).await.expect("push");
        let manifest = swarm(&format!("a{round}"), &format!("s{round}"), &module);
        let removal = b.delete_module(v1::DeleteModuleRequest {
            name: module.clone(),
            tag: String::new(),
        });
        let (applied, removed) = tokio::join!(apply(&mut a, &manifest), removal);
        assert!(
            applied.is_ok() != removed.is_ok(),
            "round {round}: applied {applied:?}, removed {removed:?}"
        );
    }
    for node in [first, second] {
        assert!(node.stop().success());
    }
}
