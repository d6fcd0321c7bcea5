//! Two nodes on one server while a topic gets other numbers of partitions all the time.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skep_topic::{Backend, Call, Gate, Once, Publish};

use super::server::{OnRedis, open};
use crate::kills::{PUBLISHERS, message, spec, swarm};
use crate::rescaled::{MOST, drained, found, owner, rescaler};

/// Each node publishes as it last heard, for a while; returns what was acknowledged.
async fn publish(nodes: &[Arc<dyn Backend>; 2], from: u64) -> Vec<u64> {
    let acked: Arc<Mutex<Vec<u64>>> = Arc::default();
    let publishers = (0..PUBLISHERS).map(|which| {
        let node = Arc::clone(&nodes[usize::try_from(which).unwrap() % 2]);
        let acked = Arc::clone(&acked);
        tokio::spawn(async move {
            let began = Instant::now();
            for i in from.. {
                if began.elapsed() > Duration::from_millis(1_500) {
                    return;
                }
                let number = i * PUBLISHERS + which;
                let publish = Publish {
                    swarm: swarm(),
                    calls: vec![Call {
                        to: vec![(spec("a"), vec![message(number)])],
                        once: Once::No,
                    }],
                    gate: Gate::Durable,
                };
                assert!(node.publish(publish).await.unwrap()[0].is_ok());
                acked.lock().unwrap().push(number);
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.unwrap();
    }
    let acked = acked.lock().unwrap();
    acked.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_change_under_two_nodes() {
    let on = OnRedis::new(None).await;
    let second = open(&on.server.url(), 200, &on.clock()).await;
    let first = Arc::clone(on.redis.as_ref().unwrap());
    let nodes: [Arc<dyn Backend>; 2] = [first, second];
    let mut tasks = Vec::new();
    for index in 0..MOST {
        // They take turns: whoever is told to look again gives the partition up.
        for node in &nodes {
            tasks.push(tokio::spawn(owner(Arc::clone(node), index)));
        }
    }
    let changes = tokio::spawn(rescaler(Arc::clone(&nodes[1])));
    let acked = publish(&nodes, 1).await;
    changes.abort();
    let _ = changes.await;
    drained(&*nodes[0]).await.unwrap();
    for task in tasks {
        task.abort();
        let _ = task.await;
    }
    // What they held is free again when its time is over.
    skep_topic::conformance::Harness::advance(&on, 100_000).await;
    found(&*nodes[0], &acked).await.unwrap();
    assert!(acked.len() > 100, "only {}", acked.len());
    let layout = nodes[0].layout(&spec("a").id).await.unwrap().unwrap();
    assert!(layout.generation > 4, "{layout:?}");
}
