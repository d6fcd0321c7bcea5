//! Who is there, and that the catalog changed.

use std::time::Duration;

use bytes::Bytes;
use skep_model::id::NodeId;
use skep_model::limits::{NODE_RECORD_BYTES_MAX, NODES_MAX};

use super::actors::{Reason, World};
use super::{Harness, Verdict, holds, refused, same};
use crate::{Bell, Error, Pulse};

fn seen(pulse: &Pulse) -> Vec<(u8, &[u8], u64)> {
    let nodes = pulse.nodes.iter();
    nodes.map(|b| (b.node.0[0], &b.record[..], b.left_ms)).collect()
}

fn node(n: u8) -> NodeId {
    NodeId([n; 8])
}

pub(super) async fn nodes_are_seen_while_they_beat(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let backend = world.backend();
    let record = |text: &'static str| Bytes::from_static(text.as_bytes());
    let first = backend.beat(node(2), record("b"), 60_000).await.why()?;
    same!(seen(&first), [(2, &b"b"[..], 60_000)], "alone");
    holds!(first.now_ms > 1_000_000_000_000, "the store's clock");
    world.harness.advance(20_000).await;
    let second = backend.beat(node(1), record("a\0\n"), 20_000).await.why()?;
    let (one, two) = (&second.nodes[0], &second.nodes[1]);
    same!(
        (one.node, &one.record[..], one.left_ms),
        (node(1), &b"a\0\n"[..], 20_000),
        "by id"
    );
    holds!(
        two.node == node(2) && two.left_ms <= 40_000 && two.left_ms > 20_000,
        "time goes by"
    );
    holds!(second.now_ms >= first.now_ms + 20_000, "the clock goes on");
    // The newest record counts; another's silence ends it.
    world.harness.advance(21_000).await;
    let third = backend.beat(node(2), record(""), 10_000).await.why()?;
    same!(seen(&third), [(2, &b""[..], 10_000)], "the other went away");
    backend.beat(node(1), record("back"), 90_000).await.why()?;
    backend.leave(node(2)).await.why()?;
    backend.leave(node(3)).await.why()?;
    let last = backend.beat(node(1), record("back"), 90_000).await.why()?;
    same!(seen(&last), [(1, &b"back"[..], 90_000)], "one left");
    Ok(())
}

pub(super) async fn beats_are_bounded(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let backend = world.backend();
    let large = |more: usize| Bytes::from(vec![7; NODE_RECORD_BYTES_MAX + more]);
    refused!(
        backend.beat(node(1), large(1), 1_000).await,
        Error::TooLarge(_),
        "a record that is too large"
    );
    same!(
        backend.beat(node(1), large(0), 1).await.why()?.nodes.len(),
        1,
        "the largest"
    );
    world.harness.advance(1_000).await;
    let numbered = |n: usize| NodeId((n as u64).to_be_bytes());
    for n in 0..NODES_MAX {
        let ttl = if n == 0 { 100_000 } else { 500_000 };
        backend.beat(numbered(n), Bytes::new(), ttl).await.why()?;
    }
    refused!(
        backend.beat(numbered(NODES_MAX), Bytes::new(), 1_000).await,
        Error::Unavailable(_),
        "one too many"
    );
    let pulse = backend.beat(numbered(5), Bytes::new(), 500_000).await.why()?;
    same!(pulse.nodes.len(), NODES_MAX, "those who are there go on");
    world.harness.advance(100_000).await;
    let pulse = backend.beat(numbered(NODES_MAX), Bytes::new(), 1_000).await.why()?;
    same!(pulse.nodes.len(), NODES_MAX, "the place of one that went away");
    Ok(())
}

async fn rings(bell: &Bell) -> bool {
    tokio::time::timeout(Duration::from_secs(5), bell.notified())
        .await
        .is_ok()
}

pub(super) async fn catalog_writes_are_told(harness: Box<dyn Harness>) -> Verdict {
    let world = World::new(harness);
    let backend = world.backend();
    let bell = backend.catalog_bell();
    let number = async || {
        let pulse = backend.beat(node(1), Bytes::new(), 1_000_000).await.why();
        pulse.map(|p| p.catalog)
    };
    let empty = number().await?;
    same!(number().await?, empty, "nothing was written");
    backend
        .catalog_put("swarm/a", 0, Bytes::from_static(b"1"))
        .await
        .why()?
        .why()?;
    holds!(rings(&bell).await, "a write rings");
    let made = number().await?;
    holds!(made != empty, "a record was made");
    backend
        .catalog_put("swarm/a", 1, Bytes::from_static(b"2"))
        .await
        .why()?
        .why()?;
    holds!(rings(&bell).await, "another write rings");
    let changed = number().await?;
    holds!(changed != made && changed != empty, "it was changed");
    let late = backend.catalog_put("swarm/a", 1, Bytes::new()).await.why()?;
    same!(late, Err(2), "a late write");
    let late = backend.catalog_delete("swarm/a", 1).await.why()?;
    same!(late, Err(2), "a late deletion");
    same!(number().await?, changed, "refused writes are none");
    backend.catalog_delete("swarm/a", 2).await.why()?.why()?;
    holds!(rings(&bell).await, "a deletion rings");
    let gone = number().await?;
    holds!(gone != changed && gone != made && gone != empty, "it was deleted");
    Ok(())
}
