//! A backup holds a life still: for as long as it says so, and not a moment longer than it may.

use std::sync::Arc;

use futures::StreamExt as _;
use skep_model::limits::BACKUP_HOLD_MS;
use skep_topic::conformance::actors::World;
use skep_topic::conformance::backups::fill;
use skep_topic::{Backend as _, Error};

use super::server::{OnRedis, open};

async fn raw(port: u16, command: &redis::Cmd) -> redis::Value {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    command.query_async(&mut conn).await.unwrap()
}

fn meta(world: &World) -> String {
    format!("sk:{{{}}}:m", world.swarm)
}

#[tokio::test]
async fn a_backup_that_died_frees_the_life_and_owners_stay_owners() {
    let on = OnRedis::at(crate::harness::NOW).await;
    let port = on.server.port;
    let world = World::new(Box::new(on));
    let spec = world.spec("a", 1);
    world.words(&spec, Some("k"), &["1"]).await.unwrap();
    let mut owner = world.own(&spec, 0).await.unwrap();
    let fetched = owner.fetch(9).await.unwrap();
    let mut held = (crate::harness::NOW + BACKUP_HOLD_MS).to_le_bytes().to_vec();
    held.extend_from_slice(&[7; 16]);
    raw(port, redis::cmd("HSET").arg(meta(&world)).arg("held").arg(held)).await;
    let commit = world.consuming(&owner, &fetched, 1);
    for _ in 0..8 {
        // Longer than its lease without these.
        assert!(matches!(owner.send(commit.clone()).await, Err(Error::Unavailable(_))));
        world.harness.advance(BACKUP_HOLD_MS / 10).await;
        assert!(
            world.try_own(&spec, 0, 1_000).await.unwrap().is_err(),
            "it has an owner"
        );
    }
    let shed = world.words(&spec, Some("k"), &["2"]).await;
    assert!(shed.is_err_and(|e| e.contains("Unavailable")));
    let busy = world.backend().export(&world.swarm).await.map(|_| ());
    assert!(matches!(busy, Err(Error::Unavailable(why)) if why.contains("another backup")));
    world.harness.advance(BACKUP_HOLD_MS / 5).await;
    owner.must(commit).await.unwrap();
    let left = raw(port, redis::cmd("HEXISTS").arg(meta(&world)).arg("held")).await;
    assert_eq!(left, redis::Value::Int(0), "whoever passes takes it away");
    world.words(&spec, Some("k"), &["2"]).await.unwrap();
}

#[tokio::test]
async fn a_copy_whose_hold_was_lost_is_worth_nothing_and_the_next_is_whole() {
    let on = OnRedis::new(None).await;
    let port = on.server.port;
    let second = open(&on.server.url(), 200, &on.clock()).await;
    let world = World::new(Box::new(on));
    fill(&world).await.unwrap();
    let mut pieces = world.backend().export(&world.swarm).await.unwrap();
    assert!(pieces.next().await.unwrap().is_ok());
    let busy = second.export(&world.swarm).await.map(|_| ());
    assert!(matches!(busy, Err(Error::Unavailable(_))), "another node's");
    raw(port, redis::cmd("HDEL").arg(meta(&world)).arg("held")).await;
    let mut last = None;
    while let Some(piece) = pieces.next().await {
        last = Some(piece);
    }
    assert!(
        matches!(last, Some(Err(Error::Stale))),
        "it must not pass for whole: {last:?}"
    );
    // One that nobody reads to its end lets go.
    let dropped = Arc::clone(&second).export(&world.swarm).await.unwrap();
    drop(dropped);
    super::server::soon("it lets go", async || second.export(&world.swarm).await.is_ok()).await;
}
