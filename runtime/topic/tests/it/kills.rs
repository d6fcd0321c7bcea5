//! A process with a store, killed at random moments and at named points: what it acknowledged is there, once.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep_model::env::{Clock, Entropy, OsEntropy, SeededEntropy, SystemClock};
use skep_model::id::{CommitId, Incarnation, Token, Uid};
use skep_model::message::Message;
use skep_model::name::TenantId;
use skep_model::scope::{Scope, SwarmId};
use skep_model::swarm::Bound;
use skep_topic::embedded::Embedded;
use skep_topic::guard::Guard;
use skep_topic::{Backend, Call, Commit, Gate, Lease, Once, Output, Publish, Span, StatePut, TopicSpec, Want};

pub const DIR: &str = "SKEP_TEST_DIR";
pub const FROM: &str = "SKEP_TEST_FROM";
const BUG: &str = "SKEP_TEST_PLANTED_BUG";
pub const PUBLISHERS: u64 = 4;

pub fn open(dir: &Path) -> Arc<Embedded> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    Embedded::open(dir, clock, entropy).expect("the folder opens")
}

pub fn swarm() -> SwarmId {
    Scope::of(TenantId::default_tenant()).swarm(&"killed".parse().unwrap(), Incarnation([1; 16]))
}

pub fn spec(name: &str) -> Arc<TopicSpec> {
    let bound = Bound {
        messages: 1 << 30,
        bytes: 1 << 40,
    };
    Arc::new(TopicSpec {
        id: swarm().topic(&name.parse().unwrap()),
        born: 1,
        partitions: 1,
        inbox: bound,
        dead_letters: bound,
    })
}

pub fn message(number: u64) -> Message {
    Message {
        uid: Uid(u128::from(number).to_be_bytes()),
        key: Some(format!("k{}", number % PUBLISHERS)),
        headers: Vec::new(),
        payload: Bytes::from(number.to_string()),
        accepted_ms: 0,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    }
}

pub fn number(message: &Message) -> u64 {
    std::str::from_utf8(&message.payload).unwrap().parse().unwrap()
}

/// Publishes number after number, one key a publisher, and says which are acknowledged.
pub async fn publisher(store: Arc<Embedded>, which: u64, from: u64) {
    for i in from.. {
        let number = i * PUBLISHERS + which;
        let publish = Publish {
            swarm: swarm(),
            calls: vec![Call {
                to: vec![(spec("a"), vec![message(number)])],
                once: Once::No,
            }],
            gate: Gate::Durable,
        };
        let results = store.publish(publish).await.expect("published");
        assert!(results[0].is_ok(), "{results:?}");
        let mut out = std::io::stdout().lock();
        writeln!(out, "ack {number}").expect("the parent listens");
        out.flush().expect("the parent listens");
    }
}

/// Moves everything from `a` to `sink`, counting each key in its state.
async fn owner(store: Arc<Embedded>) {
    let lease = Lease {
        partition: spec("a").id.partition(0),
        token: Token(OsEntropy.bits128()),
    };
    let mut claim = store.claim(&spec("a"), 0, lease.token, 60_000).await.unwrap().unwrap();
    let sink = spec("sink");
    loop {
        let want = Want {
            from: claim.cursor,
            base: claim.last,
            messages: 16,
            bytes: 1 << 20,
            state: true,
            state_bytes: 1 << 20,
            timers_max: u64::MAX,
        };
        let fetched = store.fetch(&lease, want).await.unwrap();
        let Some(last) = fetched.messages.last() else {
            store.bell(&lease.partition).notified().await;
            continue;
        };
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for unread in &fetched.messages {
            let key = unread.message.key.clone().unwrap();
            let stored = fetched.state[&key].get("n").map_or(0, |v| count(v));
            *counts.entry(key).or_insert(stored) += 1;
        }
        let mut commit = Commit::empty(spec("a"), CommitId(OsEntropy.bits128()), claim.seq, claim.last);
        commit.span = Some(Span {
            from: claim.cursor,
            to: last.after,
            last_entry: last.entry,
            last_entry_uid: last.entry_uid,
        });
        commit.outputs = fetched
            .messages
            .iter()
            .map(|u| Output {
                to: Arc::clone(&sink),
                message: u.message.clone(),
            })
            .collect();
        commit.state = counts
            .into_iter()
            .map(|(key, n)| StatePut {
                key,
                name: "n".to_owned(),
                value: Some(Bytes::copy_from_slice(&n.to_be_bytes())),
            })
            .collect();
        let (id, to) = (commit.id, last.after);
        store.commit(&lease, Arc::new(commit)).await.unwrap();
        claim.seq += 1;
        claim.last = id;
        claim.cursor = to;
    }
}

fn count(value: &[u8]) -> u64 {
    u64::from_be_bytes(value.try_into().unwrap())
}

/// Not a test of its own: what the killed process runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let from = std::env::var(FROM).unwrap().parse().unwrap();
    let store = open(Path::new(&dir));
    if std::env::var_os(BUG).is_some() {
        store.guards().remove(Guard::Gate);
    }
    tokio::spawn(owner(Arc::clone(&store)));
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|which| tokio::spawn(publisher(Arc::clone(&store), which, from)))
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
}

fn start(dir: &Path, from: u64, failpoint: Option<&str>, bug: bool) -> Child {
    start_as("kills::child", dir, from, failpoint, bug)
}

pub fn start_as(test: &str, dir: &Path, from: u64, failpoint: Option<&str>, bug: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(FROM, from.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some(failpoint) = failpoint {
        command.env("SKEP_FAILPOINT", failpoint);
    }
    if bug {
        command.env(BUG, "1");
    }
    command.spawn().unwrap()
}

/// Reads acknowledgements until the child is dead; kills it after `after`, if given.
pub fn acks(mut child: Child, after: Option<Duration>) -> Vec<u64> {
    let out = BufReader::new(child.stdout.take().unwrap());
    let killer = std::thread::spawn(move || {
        if let Some(after) = after {
            std::thread::sleep(after);
            let _ = child.kill();
        }
        child.wait().unwrap()
    });
    let acked = out
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| line.strip_prefix("ack ")?.parse().ok())
        .collect();
    let status = killer.join().unwrap();
    assert!(!status.success(), "the child was to die");
    acked
}

/// What is in a partition, and how many entries a key's state counts.
pub async fn look(store: &dyn Backend, name: &str) -> Vec<u64> {
    let lease = Lease {
        partition: spec(name).id.partition(0),
        token: Token(OsEntropy.bits128()),
    };
    let claim = store.claim(&spec(name), 0, lease.token, 60_000).await.unwrap().unwrap();
    let want = Want {
        from: claim.cursor,
        base: claim.last,
        messages: u32::MAX,
        bytes: u64::MAX,
        state: false,
        state_bytes: 0,
        timers_max: u64::MAX,
    };
    let fetched = store.fetch(&lease, want).await.unwrap();
    store.release(&lease).await.unwrap();
    fetched.messages.iter().map(|u| number(&u.message)).collect()
}

/// The first thing that is wrong with a store, given all that was ever acknowledged.
async fn judge(dir: &Path, acked: &[u64]) -> Result<(), String> {
    let store = open(dir);
    let (unread, applied) = (look(&*store, "a").await, look(&*store, "sink").await);
    let mut found: BTreeMap<u64, u32> = BTreeMap::new();
    for number in unread.iter().chain(&applied) {
        *found.entry(*number).or_default() += 1;
    }
    if let Some((number, times)) = found.iter().find(|(_, times)| **times != 1) {
        return Err(format!("{number} is there {times} times"));
    }
    if let Some(lost) = acked.iter().find(|number| !found.contains_key(number)) {
        return Err(format!("{lost} was acknowledged and is lost"));
    }
    for which in 0..PUBLISHERS {
        let of_key: Vec<u64> = applied.iter().copied().filter(|n| n % PUBLISHERS == which).collect();
        if !of_key.is_sorted() {
            return Err(format!("the order of k{which} is broken"));
        }
        let state = store.state(&spec("a").id, &format!("k{which}")).await.unwrap();
        let counted = state.get("n").map_or(0, |v| count(v));
        if counted != of_key.len() as u64 {
            return Err(format!("k{which} counted {counted} of {}", of_key.len()));
        }
    }
    Ok(())
}

/// The number to go on from after a run that began at `from`: past everything that was ever sent. A run that was killed before its
/// first acknowledgement may have sent all the same.
pub fn next(from: u64, acked: &[u64]) -> u64 {
    acked.iter().max().map_or(1, |n| n / PUBLISHERS).max(from) + 100
}

#[tokio::test]
async fn killed_at_random_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let chance = SeededEntropy::new(std::process::id().into());
    let (mut acked, mut from) = (Vec::new(), 1);
    for _ in 0..10 {
        let after = Duration::from_millis(60 + chance.next_u64() % 150);
        acked.extend(acks(start(dir.path(), from, None, false), Some(after)));
        from = next(from, &acked);
        judge(dir.path(), &acked).await.unwrap();
    }
    assert!(acked.len() > 50, "only {} were acknowledged", acked.len());
}

#[tokio::test]
async fn killed_at_each_point_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut acked, mut from) = (Vec::new(), 1);
    for point in [
        "before-apply=abort@40",
        "inside-publish=abort@15",
        "after-apply-before-flush=abort@12",
        "after-flush-before-ack=abort@12",
    ] {
        acked.extend(acks(start(dir.path(), from, Some(point), false), None));
        from = next(from, &acked);
        judge(dir.path(), &acked).await.unwrap();
    }
    assert!(!acked.is_empty());
}

#[tokio::test]
async fn an_ack_before_the_flush_is_caught() {
    let dir = tempfile::tempdir().unwrap();
    let child = start(dir.path(), 1, Some("after-apply-before-flush=abort@12+200"), true);
    let acked = acks(child, None);
    let why = judge(dir.path(), &acked)
        .await
        .expect_err("the planted bug went unnoticed");
    assert!(why.contains("was acknowledged and is lost"), "{why}");
}
