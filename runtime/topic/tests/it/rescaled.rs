//! A store whose topic gets other numbers of partitions all the time, killed at random and in the middle of each step.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use skep_model::env::{Entropy, OsEntropy, SeededEntropy};
use skep_model::id::{CommitId, Token, Uid};
use skep_topic::{
    Backend, Commit, Error, Fetched, Lease, Output, Parked, Retry, Span, StatePut, TopicSpec, Want, Work,
};

use crate::kills::{DIR, FROM, PUBLISHERS, acks, look, next, number, open, publisher, spec, start_as, swarm};

pub const MOST: u16 = 16;

fn fresh() -> CommitId {
    CommitId(OsEntropy.bits128())
}

/// Owns a partition whenever there is one: every fifth message waits once, and those behind it with it.
pub async fn owner(store: Arc<dyn Backend>, index: u16) {
    loop {
        let lease = Lease {
            partition: spec("a").id.partition(index),
            token: Token(OsEntropy.bits128()),
        };
        if let Ok(Ok(claim)) = store.claim(&spec("a"), index, lease.token, 60_000).await {
            let (mut seq, mut last, mut cursor) = (claim.seq, claim.last, claim.cursor);
            loop {
                let want = Want {
                    from: cursor,
                    base: last,
                    messages: 8,
                    bytes: 1 << 20,
                    state: true,
                    state_bytes: 1 << 20,
                    timers_max: u64::MAX,
                };
                let Ok(fetched) = store.fetch(&lease, want).await else {
                    break;
                };
                if fetched.at_seal {
                    let id = fresh();
                    if store.hand_over(&lease, last, id).await.is_err() {
                        break;
                    }
                    last = id;
                } else if fetched.messages.is_empty() && fetched.retries.is_empty() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                } else {
                    let commit = work(&fetched, Commit::empty(spec("a"), fresh(), seq, last), cursor);
                    let (id, to) = (commit.id, commit.span.map(|span| span.to));
                    if store.commit(&lease, Arc::new(commit)).await.is_err() {
                        break;
                    }
                    (seq, last, cursor) = (seq + 1, id, to.unwrap_or(cursor));
                }
            }
            let _ = store.release(&lease).await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn work(fetched: &Fetched, mut commit: Commit, cursor: skep_topic::Cursor) -> Commit {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut done = Vec::new();
    for parked in &fetched.retries {
        let Work::Message(message) = &parked.work else { continue };
        done.push(message.clone());
        commit.retries.push(Retry {
            uid: parked.uid,
            lane: parked.lane.clone(),
            again: None,
        });
    }
    let mut held: HashSet<String> = fetched.held.clone();
    for unread in &fetched.messages {
        commit.span = Some(Span {
            from: cursor,
            to: unread.after,
            last_entry: unread.entry,
            last_entry_uid: unread.entry_uid,
        });
        let key = unread.message.key.clone().unwrap_or_default();
        let waits = number(&unread.message).is_multiple_of(5);
        if !waits && !held.contains(&key) {
            done.push(unread.message.clone());
            continue;
        }
        commit.park.push(Parked {
            uid: Uid(OsEntropy.bits128()),
            lane: key.clone(),
            work: Work::Message(unread.message.clone()),
            attempts: u32::from(held.insert(key)),
            due_ms: fetched.now_ms + 3,
            cause: "waits".to_owned(),
        });
    }
    for message in done {
        let key = message.key.clone().unwrap_or_default();
        let state = fetched.state.get(&key).and_then(|values| values.get("n"));
        *counts
            .entry(key)
            .or_insert_with(|| state.map_or(0, |n| String::from_utf8_lossy(n).parse().unwrap())) += 1;
        commit.outputs.push(Output {
            to: spec("sink"),
            message,
        });
    }
    for (key, count) in counts {
        commit.state.push(StatePut {
            key,
            name: "n".to_owned(),
            value: Some(Bytes::from(count.to_string())),
        });
    }
    commit
}

pub async fn rescaler(store: Arc<dyn Backend>) {
    for partitions in [4, 16, 8, 1].into_iter().cycle() {
        let mut to = TopicSpec::clone(&spec("a"));
        to.partitions = partitions;
        while store.rescale(&to, fresh()).await == Ok(skep_topic::Rescaled::Busy) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
}

/// Not a test of its own: what the killed process runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let from = std::env::var(FROM).unwrap().parse().unwrap();
    let store = open(Path::new(&dir));
    for index in 0..MOST {
        tokio::spawn(owner(Arc::clone(&store) as Arc<dyn Backend>, index));
    }
    tokio::spawn(rescaler(Arc::clone(&store) as Arc<dyn Backend>));
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|which| tokio::spawn(publisher(Arc::clone(&store), which, from)))
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
}

/// Works off what is left, and looks at what came out.
async fn judge(dir: &Path, acked: &[u64]) -> Result<(), String> {
    let store: Arc<dyn Backend> = open(dir);
    let owners: Vec<_> = (0..MOST)
        .map(|index| tokio::spawn(owner(Arc::clone(&store), index)))
        .collect();
    drained(&*store).await?;
    for owner in owners {
        owner.abort();
        let _ = owner.await;
    }
    found(&*store, acked).await
}

/// Waits until all is worked off.
pub async fn drained(store: &dyn Backend) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let status = match store.status(&swarm()).await {
            Err(Error::Gone) => return Err("it is gone".to_owned()),
            status => status.map_err(|e| e.to_string())?,
        };
        let a = status.iter().find(|topic| topic.topic == spec("a").id);
        let sealed = store.layout(&spec("a").id).await.map_err(|e| e.to_string())?;
        if a.is_none_or(|a| a.unread + a.parked == 0) && sealed.is_none_or(|layout| !layout.rescaling) {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(20) {
            return Err(format!("it does not drain: {a:?} {sealed:?}"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What came out: all, once, in the order of its key, and counted.
pub async fn found(store: &dyn Backend, acked: &[u64]) -> Result<(), String> {
    let out = look(store, "sink").await;
    let set: HashSet<u64> = out.iter().copied().collect();
    if set.len() != out.len() {
        return Err("something is there twice".to_owned());
    }
    if let Some(lost) = acked.iter().find(|number| !set.contains(number)) {
        return Err(format!("{lost} was acknowledged and is lost"));
    }
    for which in 0..PUBLISHERS {
        let of_key: Vec<u64> = out.iter().copied().filter(|n| n % PUBLISHERS == which).collect();
        if !of_key.is_sorted() {
            return Err(format!("the order of k{which} is broken: {of_key:?}"));
        }
        let state = store.state(&spec("a").id, &format!("k{which}")).await.unwrap();
        let counted: usize = state
            .get("n")
            .map_or(0, |n| String::from_utf8_lossy(n).parse().unwrap());
        if counted != of_key.len() {
            return Err(format!("k{which} counted {counted} of {}", of_key.len()));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_partitions_change_nothing_is_lost_or_out_of_order() {
    let dir = tempfile::tempdir().unwrap();
    let chance = SeededEntropy::new(std::process::id().into());
    let (mut acked, mut from) = (Vec::new(), 1);
    for round in 0..8 {
        let point = match round {
            2 => Some("inside-rescale=abort@3"),
            4 => Some("inside-hand-over=abort@5"),
            6 => Some("inside-hand-over=abort@12"),
            _ => None,
        };
        let after = point
            .is_none()
            .then(|| Duration::from_millis(80 + chance.next_u64() % 200));
        let child = start_as("rescaled::child", dir.path(), from, point, false);
        acked.extend(acks(child, after));
        from = next(from, &acked);
        judge(dir.path(), &acked).await.unwrap();
    }
    assert!(acked.len() > 50, "only {} were acknowledged", acked.len());
    let store = open(dir.path());
    let layout = store.layout(&spec("a").id).await.unwrap().unwrap();
    assert!(layout.generation > 8, "{layout:?}");
}
