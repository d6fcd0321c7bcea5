//! Keys are told the end of their stream once, however often their owners are asked to tell them, and whatever happens meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep_model::id::CommitId;
use skep_model::step::{Disposition, Emit, Input, StateWrite, Step, Trap};
use skep_model::swarm::{END, Ends};
use skep_stage::Plan;
use skep_topic::{Rescaled, TopicSpec};
use tokio::time::sleep;

use super::{World, append, outcome, payload, plan, reader, run};

const KEYS: usize = 3_000;

fn names() -> impl Iterator<Item = String> {
    (0..KEYS).map(|n| format!("k{n}"))
}

/// Keeps what came for a key; at its end tells the next stage of it, and forgets every second key.
fn told(spec: &Arc<TopicSpec>, next: &Arc<TopicSpec>) -> Arc<Plan> {
    let bee = |input: &Input, batch: &skep_model::step::Batch| -> Result<Step, Trap> {
        let key = input.key().unwrap_or_default().to_owned();
        let Input::Timer(due) = input else {
            return Ok(append(input, batch));
        };
        assert_eq!(due.name, END);
        let list = batch.state[&key]["list"].clone();
        let emit = Emit {
            to: None,
            key: Some(key.clone()),
            headers: Vec::new(),
            payload: Bytes::from([b"end of ", &list[..]].concat()),
        };
        let mut step = outcome(vec![emit], Vec::new(), Disposition::Done);
        if key.ends_with(['0', '2', '4', '6', '8']) {
            step.state.push(StateWrite {
                name: "list".to_owned(),
                value: None,
            });
        }
        // Now and then it fails at first.
        if key.ends_with('7') && due.attempt == 1 {
            step = outcome(
                Vec::new(),
                Vec::new(),
                Disposition::Fail {
                    reason: "no".to_owned(),
                    detail: "not yet".to_owned(),
                },
            );
        }
        Ok(step)
    };
    let mut of = Arc::try_unwrap(plan(spec, true, vec![reader(next)], Duration::ZERO, bee)).unwrap();
    of.stage.ends = Some(Ends::Told);
    of.stage.batch.messages = 256;
    of.bounded = true;
    Arc::new(of)
}

fn collecting(spec: &Arc<TopicSpec>) -> Arc<Plan> {
    plan(spec, true, vec![], Duration::ZERO, |input, batch| {
        assert!(!payload(input).is_empty());
        Ok(append(input, batch))
    })
}

/// What stands where the ends were sent to: each once, behind all that came before it.
async fn each_once(world: &World, next: &TopicSpec) {
    for key in names() {
        let found = world.state(next, &key, "list").await;
        assert_eq!(found.as_deref(), Some("end of 1 2  "), "{key}");
    }
}

async fn all_told(world: &World, of: &TopicSpec) -> bool {
    let mut after = String::new();
    loop {
        let page = world.backend.state_page(&of.id, &after).await.unwrap();
        if page.keys.iter().any(|(_, values)| !values.contains_key(END)) {
            return false;
        }
        match page.next {
            Some(next) => after = next,
            None => {
                let status = world.backend.durable_status(&world.swarm).await.unwrap();
                return status.iter().all(|t| t.unread + t.parked + t.timers + t.dead == 0);
            }
        }
    }
}

async fn come_to_the_end(world: &World, first: &Arc<TopicSpec>, ask: impl Fn()) {
    for _ in 0..3_000 {
        ask();
        if all_told(world, first).await {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("not all are told: {:?}", world.backend.status(&world.swarm).await);
}

async fn filled(world: &World) -> (Arc<TopicSpec>, Arc<TopicSpec>) {
    let (first, next) = (world.spec("first", 100_000), world.spec("next", 100_000));
    for n in ["1", "2"] {
        world
            .publish(&first, names().map(|key| world.message(&key, n)).collect())
            .await;
    }
    (first, next)
}

async fn once_however_often(world: World) {
    let (first, next) = filled(&world).await;
    let (running, _lane) = run(&world, told(&first, &next));
    let (behind, _lane) = run(&world, collecting(&next));
    world.drained().await;
    assert!(world.state(&next, "k0", "list").await.is_none(), "nobody was told");
    come_to_the_end(&world, &first, || running.tell_end()).await;
    each_once(&world, &next).await;
    let size = world.backend.state_size(&first.id).await.unwrap();
    assert_eq!(
        size.keys,
        KEYS as u64 / 2,
        "nothing is left of those that were forgotten"
    );
    // Asked once more, nothing is found.
    running.tell_end();
    sleep(Duration::from_millis(200)).await;
    each_once(&world, &next).await;
    // What comes behind the end makes its key live again, and it has another end.
    world.publish(&first, vec![world.message("k1", "3")]).await;
    world.drained().await;
    assert!(!all_told(&world, &first).await);
    come_to_the_end(&world, &first, || running.tell_end()).await;
    let found = world.state(&next, "k1", "list").await;
    assert_eq!(found.as_deref(), Some("end of 1 2  end of 1 2 3  "));
    running.stop().await;
    behind.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_is_told_once_however_often_its_owner_is_asked() {
    once_however_often(World::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_is_told_once_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    once_however_often(World::on_disk(dir.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_is_told_once_while_owners_come_and_go_and_partitions_change() {
    let world = World::new();
    let (first, next) = filled(&world).await;
    let (behind, _lane) = run(&world, collecting(&next));
    let (running, _lane) = run(&world, told(&first, &next));
    world.drained().await;
    running.tell_end();
    sleep(Duration::from_millis(5)).await;
    running.stop().await;
    // Another number of partitions, in the middle of it.
    let other = Arc::new(TopicSpec {
        partitions: 5,
        ..TopicSpec::clone(&first)
    });
    let (running, _lane) = run(&world, told(&other, &next));
    running.own(5);
    let id = CommitId([9; 16]);
    assert_eq!(world.backend.rescale(&other, id).await.unwrap(), Rescaled::Begun);
    for _ in 0..3 {
        running.tell_end();
        sleep(Duration::from_millis(3)).await;
        // A newer plan of the same: what was asked for under the former one is asked for again.
        running.replan(told(&other, &next));
    }
    come_to_the_end(&world, &first, || running.tell_end()).await;
    each_once(&world, &next).await;
    running.stop().await;
    behind.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_says_nothing_of_an_end_tells_none_and_a_partition_at_rest_says_so() {
    let world = World::new();
    let (first, next) = filled(&world).await;
    let mut of = Arc::try_unwrap(told(&first, &next)).unwrap();
    of.stage.ends = None;
    let (running, _lane) = run(&world, Arc::new(of));
    world.drained().await;
    running.tell_end();
    tokio::time::timeout(Duration::from_secs(10), world.seams.rest.rung())
        .await
        .expect("a partition of a Swarm that can end tells when it has nothing to do");
    sleep(Duration::from_millis(100)).await;
    let status = world.backend.status(&world.swarm).await.unwrap();
    let kept: BTreeMap<_, _> = status.iter().map(|t| (t.topic.stage().to_string(), t.timers)).collect();
    assert_eq!(kept["first"], 0);
    running.stop().await;
}
