//! A life goes from any backend to any other and is the same.

use std::sync::Arc;

use skep_topic::conformance::actors::World;
use skep_topic::conformance::backups::{Image, fill, pieces, stream};
use skep_topic::conformance::{Harness, Stop};
use skep_topic::record::{decode_piece, encode_piece};

use crate::harness::{OnDisk, OnMemory};
use crate::redis::OnRedis;

async fn store(which: usize) -> Box<dyn Harness> {
    match which {
        0 => Box::new(OnMemory::new(7)),
        1 => Box::new(OnDisk::new(7)),
        _ => Box::new(OnRedis::at(crate::harness::NOW).await),
    }
}

#[tokio::test]
async fn from_each_backend_to_each() {
    for from in 0..3 {
        let world = World::new(store(from).await);
        fill(&world).await.unwrap();
        let taken = pieces(&*world.backend(), &world.swarm).await.unwrap();
        for to in 0..3 {
            let mut other = World::new(store(to).await);
            // As a file carries them.
            let carried = taken
                .iter()
                .map(|piece| decode_piece(encode_piece(piece).into()).unwrap());
            let carried: Vec<_> = carried.collect();
            assert_eq!(carried, taken);
            assert!(other.backend().import(&other.swarm, stream(carried)).await.unwrap());
            let there = pieces(&*other.backend(), &other.swarm).await.unwrap();
            assert_eq!(Image::of(&there), Image::of(&taken), "{from} to {to}");
            let status = [world.backend(), other.backend()].map(|backend| {
                let swarm = world.swarm.clone();
                async move { backend.status(&swarm).await.unwrap() }
            });
            let [before, after] = status;
            assert_eq!(before.await, after.await, "{from} to {to}");
            // It is on disk.
            other.harness.reopen(Stop::Clean).await;
            let backend: Arc<_> = other.backend();
            let again = pieces(&*backend, &other.swarm).await.unwrap();
            assert_eq!(Image::of(&again), Image::of(&taken), "{from} to {to}, opened again");
        }
    }
}
