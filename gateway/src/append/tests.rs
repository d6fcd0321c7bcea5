use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use skep_model::Bytes;
use skep_model::env::OsEntropy;
use skep_model::id::{Incarnation, Uid};
use skep_model::message::Message;
use skep_model::name::{StageName, TenantId};
use skep_model::scope::Scope;
use skep_model::swarm::Bound;
use skep_topic::{Once, TopicSpec};
use tokio::sync::{Semaphore, mpsc};

use super::*;

fn swarm() -> SwarmId {
    Scope::of(TenantId::default_tenant()).swarm(&"s".parse().unwrap(), Incarnation::random(&OsEntropy))
}

fn call(swarm: &SwarmId, name: u64, bytes: usize) -> Call {
    let stage: StageName = "first".parse().unwrap();
    let wide = Bound {
        messages: 1_000,
        bytes: 1 << 20,
    };
    let topic = Arc::new(TopicSpec {
        id: swarm.topic(&stage),
        born: 1,
        partitions: 1,
        inbox: wide,
        dead_letters: wide,
    });
    let message = Message {
        uid: Uid([1; 16]),
        key: Some(name.to_string()),
        headers: Vec::new(),
        payload: Bytes::from(vec![0; bytes]),
        accepted_ms: 0,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    };
    Call {
        to: vec![(topic, vec![message])],
        once: Once::No,
    }
}

fn name(call: &Call) -> u64 {
    call.to[0].1[0].key.as_deref().unwrap().parse().unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Tells of each group that it got, and answers one for each permit that the test adds.
fn scripted() -> (Arc<Append>, mpsc::UnboundedReceiver<Vec<u64>>, Arc<Semaphore>) {
    let (told, groups) = mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let append = Append::over(Box::new(move |publish: Publish| {
        let (told, gate) = (told.clone(), Arc::clone(&gate));
        Box::pin(async move {
            let _ = told.send(publish.calls.iter().map(name).collect());
            gate.acquire().await.unwrap().forget();
            Ok(vec![Ok(Accepted::Appended { skipped: 0 }); publish.calls.len()])
        })
    }));
    (append, groups, go)
}

async fn next(groups: &mut mpsc::UnboundedReceiver<Vec<u64>>) -> Vec<u64> {
    let group = tokio::time::timeout(Duration::from_secs(10), groups.recv()).await;
    group.expect("somebody leads").unwrap()
}

#[test]
fn groups_keep_the_order_and_both_bounds_and_are_as_large_as_these_allow() {
    // A fixed sequence of sizes: empty, small, a quarter of a group, more than a group.
    let sizes = [0, 10, APPEND_GROUP_BYTES_MAX / 4, 100, APPEND_GROUP_BYTES_MAX + 1];
    let mut random = 1_u64;
    for round in 0..20_u64 {
        let swarm = swarm();
        let mut line = Line::default();
        let mut kept = Vec::new();
        let mut expected = VecDeque::new();
        for i in 0..3_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round + 1);
            // Large ones are rare, so that both bounds get their turn.
            let size = match random >> 33 {
                n if n % 2_000 == 0 => sizes[4],
                n if n % 500 == 0 => sizes[2],
                n => sizes[(n % 2) as usize],
            };
            let pending = line.push(call(&swarm, i, size));
            // Every seventh caller goes away.
            if random >> 40 & 7 != 0 {
                kept.push(pending);
                expected.push_back((i, size));
            }
        }
        loop {
            let group = line.group();
            if group.is_empty() {
                break;
            }
            let mut bytes = 0;
            for (call, _) in &group {
                let (i, size) = expected.pop_front().expect("no more than was kept");
                assert_eq!(name(call), i, "in order, none withdrawn, none twice");
                bytes += size;
            }
            assert!(group.len() <= APPEND_GROUP_CALLS_MAX);
            assert!(
                bytes <= APPEND_GROUP_BYTES_MAX || group.len() == 1,
                "{bytes} in {}",
                group.len()
            );
            if let Some((_, next)) = expected.front() {
                let full = group.len() == APPEND_GROUP_CALLS_MAX || bytes + next > APPEND_GROUP_BYTES_MAX;
                assert!(
                    full,
                    "{} calls of {bytes} bytes, and {next} more would fit",
                    group.len()
                );
            }
        }
        assert!(expected.is_empty());
    }
}

#[test]
fn who_goes_away_leaves_nothing_behind() {
    let swarm = swarm();
    let mut line = Line::default();
    let stays = line.push(call(&swarm, 0, 10));
    for i in 1..10_000 {
        let gone = line.push(call(&swarm, i, 1_000));
        let weak = Arc::downgrade(&gone.call);
        drop(gone);
        let left = weak.upgrade().is_some_and(|call| locked(&call).is_some());
        assert!(!left, "the call outlives its caller");
    }
    assert!(line.queued.len() <= SWEEP_MIN, "{} places are kept", line.queued.len());
    assert_eq!(line.group().len(), 1);
    drop(stays);
}

#[tokio::test]
async fn a_leader_that_goes_away_leaves_the_others_their_answers() {
    let (append, mut groups, go) = scripted();
    let swarm = swarm();
    let lead = tokio::spawn({
        let (append, swarm) = (Arc::clone(&append), swarm.clone());
        async move { append.call(&swarm, Gate::Durable, call(&swarm, 0, 1), soon()).await }
    });
    assert_eq!(next(&mut groups).await, [0]);
    let others: Vec<_> = (1..=3)
        .map(|i| append.queue(&swarm, Gate::Durable, call(&swarm, i, 1)))
        .collect();
    lead.abort();
    assert!(lead.await.unwrap_err().is_cancelled());
    assert_eq!(next(&mut groups).await, [1, 2, 3], "somebody leads on");
    go.add_permits(1);
    for other in others {
        assert_eq!(other.wait(soon()).await, Ok(Accepted::Appended { skipped: 0 }));
    }
    // The slot is idle again: the next one leads.
    while append.busy() > 0 {
        tokio::task::yield_now().await;
    }
    go.add_permits(1);
    let next = append.call(&swarm, Gate::Durable, call(&swarm, 4, 1), soon()).await;
    assert!(next.is_ok());
}

#[tokio::test]
async fn a_deadline_tells_what_was_sent_from_what_was_not() {
    let (append, mut groups, go) = scripted();
    let swarm = swarm();
    let at = |ms| Instant::now() + Duration::from_millis(ms);
    let sent = append.queue(&swarm, Gate::Durable, call(&swarm, 0, 1));
    assert_eq!(next(&mut groups).await, [0]);
    let unsent = append.queue(&swarm, Gate::Durable, call(&swarm, 1, 1));
    let later = append.queue(&swarm, Gate::Durable, call(&swarm, 2, 1));
    assert_eq!(sent.wait(at(10)).await, Err(Failed::Expired { sent: true }));
    assert_eq!(unsent.wait(at(10)).await, Err(Failed::Expired { sent: false }));
    go.add_permits(2);
    assert!(later.wait(soon()).await.is_ok());
    assert_eq!(next(&mut groups).await, [2], "what expired unsent is never sent");
}

#[tokio::test]
async fn a_backend_that_panics_or_answers_too_little_leaves_nobody_waiting() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let append = Append::over(Box::new(move |publish: Publish| {
        let nth = count.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            tokio::task::yield_now().await;
            assert!(nth > 0, "a planted panic");
            Ok(vec![Ok(Accepted::Appended { skipped: 0 }); publish.calls.len() - 1])
        })
    }));
    let swarm = swarm();
    for _ in 0..2 {
        let pending = append.queue(&swarm, Gate::Appended, call(&swarm, 0, 1));
        let failed = pending.wait(soon()).await;
        assert!(matches!(failed, Err(Failed::Backend(Error::Unknown(_)))), "{failed:?}");
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}
