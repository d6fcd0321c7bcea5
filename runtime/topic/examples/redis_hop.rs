//! The Redis backend against the raw packed hop on the same server, in the same run.
//!
//! ```text
//! cargo run --release -p skep-topic --example redis_hop -- redis://127.0.0.1:6379/9 [SECONDS]
//! ```
//! The database must be empty or a skep store's; what the run makes in it is removed at the end. Prints one JSON object a row: messages a
//! second, and CPU microseconds a message of the server. The raw hop reads an entry, deletes it, appends its like to the next stream
//! and moves a cursor, in one script, with the payloads as one blob that nobody takes apart. Ours reads, decodes, encodes and commits
//! with every check; `keyed` counts each message in the state of one of 10 000 keys besides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use skep_model::env::{Entropy, OsEntropy};
use skep_model::id::{CommitId, Incarnation, Token, Uid};
use skep_model::message::Message;
use skep_model::name::TenantId;
use skep_model::scope::Scope;
use skep_model::swarm::Bound;
use skep_topic::redis::{Redis, RedisOptions};
use skep_topic::{Backend, Call, Commit, Gate, Lease, Once, Output, Publish, Span, StatePut, TopicSpec, Want};

const PAYLOAD: usize = 200;
const KEYS: u64 = 10_000;

/// Messages a frame, and owners at work at once.
const SHAPES: [(usize, u16); 4] = [(64, 1), (64, 4), (256, 1), (256, 4)];

struct Measured {
    messages_per_s: f64,
    server_us: f64,
}

/// CPU seconds that the server has used.
async fn server_cpu(conn: &mut MultiplexedConnection) -> f64 {
    let info: String = redis::cmd("INFO").arg("cpu").query_async(conn).await.unwrap();
    let used = info.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name == "used_cpu_sys" || name == "used_cpu_user").then(|| value.trim().parse::<f64>().unwrap_or(0.0))
    });
    used.sum()
}

const RAW: &str = "
    local entry = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', 1)[1]
    redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2])
    redis.call('XADD', KEYS[1], ARGV[3], 'b', ARGV[4])
    redis.call('HSET', KEYS[2], 'cursor', ARGV[2])
    return entry[2][2]";

async fn raw(url: &str, per_frame: usize, owners: u16, each: Duration) -> Measured {
    let client = redis::Client::open(url).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let sha: String = redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(RAW)
        .query_async(&mut conn)
        .await
        .unwrap();
    let blob = vec![7u8; per_frame * (PAYLOAD + 40)];
    let mut tasks = Vec::new();
    let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (began, before) = (Instant::now(), server_cpu(&mut conn).await);
    for owner in 0..owners {
        let (stream, hash) = (format!("sk:raw:{owner}"), format!("sk:raw:cursor:{owner}"));
        let (mut conn, sha, blob) = (conn.clone(), sha.clone(), blob.clone());
        let (stop, moved) = (Arc::clone(&stop), Arc::clone(&moved));
        tasks.push(tokio::spawn(async move {
            let _: String = redis::cmd("XADD")
                .arg(&stream)
                .arg("1-0")
                .arg("b")
                .arg(&blob)
                .query_async(&mut conn)
                .await
                .unwrap();
            let mut at = 1u64;
            let mut body = blob;
            while !stop.load(Ordering::Relaxed) {
                let mut hop = redis::cmd("EVALSHA");
                hop.arg(&sha).arg(2).arg(&stream).arg(&hash);
                hop.arg(format!("{at}-0"))
                    .arg(format!("{}-0", at + 1))
                    .arg(format!("{}-0", at + 1))
                    .arg(&body);
                body = hop.query_async(&mut conn).await.unwrap();
                at += 1;
                moved.fetch_add(per_frame as u64, Ordering::Relaxed);
            }
            let _: () = redis::cmd("UNLINK")
                .arg(&stream)
                .arg(&hash)
                .query_async(&mut conn)
                .await
                .unwrap();
        }));
    }
    tokio::time::sleep(each).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    measured(&moved, began, before, &mut conn).await
}

async fn measured(moved: &AtomicU64, began: Instant, before: f64, conn: &mut MultiplexedConnection) -> Measured {
    let messages = moved.load(Ordering::Relaxed).max(1) as f64;
    Measured {
        messages_per_s: messages / began.elapsed().as_secs_f64(),
        server_us: (server_cpu(conn).await - before) * 1e6 / messages,
    }
}

fn message(key: Option<String>) -> Message {
    Message {
        uid: Uid(OsEntropy.bits128()),
        key,
        headers: Vec::new(),
        payload: Bytes::from(vec![7; PAYLOAD]),
        accepted_ms: 1_700_000_000_000,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    }
}

/// Each owner moves the messages of its partition to the partition itself, forever.
async fn owner(
    store: Arc<Redis>,
    spec: Arc<TopicSpec>,
    index: u16,
    per_frame: usize,
    keyed: bool,
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
) {
    let lease = Lease {
        partition: spec.id.partition(index),
        token: Token(OsEntropy.bits128()),
    };
    let mut claim = store.claim(&spec, index, lease.token, 60_000).await.unwrap().unwrap();
    while !stop.load(Ordering::Relaxed) {
        let want = Want {
            from: claim.cursor,
            base: claim.last,
            messages: u32::try_from(per_frame).unwrap(),
            bytes: 1 << 20,
            state: keyed,
            state_bytes: 1 << 20,
        };
        let fetched = store.fetch(&lease, want).await.unwrap();
        let last = fetched.messages.last().expect("as many as there were");
        let span = Span {
            from: claim.cursor,
            to: last.after,
            last_entry: last.entry,
            last_entry_uid: last.entry_uid,
        };
        let count = fetched.messages.len() as u64;
        let mut commit = Commit::empty(Arc::clone(&spec), CommitId(OsEntropy.bits128()), claim.seq, claim.last);
        commit.span = Some(span);
        if keyed {
            let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
            for unread in &fetched.messages {
                let key = unread.message.key.as_deref().expect("all are keyed");
                let stored = fetched.state[key]
                    .get("n")
                    .map_or(0, |v| u64::from_le_bytes(v[..].try_into().unwrap()));
                *counts.entry(key).or_insert(stored) += 1;
            }
            let puts = counts.into_iter().map(|(key, n)| StatePut {
                key: key.to_owned(),
                name: "n".to_owned(),
                value: Some(Bytes::copy_from_slice(&n.to_le_bytes())),
            });
            commit.state = puts.collect();
        }
        let outputs = fetched.messages.into_iter().map(|u| Output {
            to: Arc::clone(&spec),
            message: u.message,
        });
        commit.outputs = outputs.collect();
        (claim.seq, claim.last, claim.cursor) = (claim.seq + 1, commit.id, span.to);
        store.commit(&lease, Arc::new(commit)).await.unwrap();
        moved.fetch_add(count, Ordering::Relaxed);
    }
}

async fn ours(url: &str, per_frame: usize, owners: u16, keyed: bool, each: Duration) -> Measured {
    let options = RedisOptions::new(url, [1; 8]);
    let store = Redis::open(options, Arc::new(OsEntropy)).await.unwrap();
    let scope = Scope::of(TenantId::default_tenant());
    let swarm = scope.swarm(&"hop".parse().unwrap(), Incarnation(OsEntropy.bits128()));
    let bound = Bound {
        messages: 1 << 40,
        bytes: 1 << 50,
    };
    let spec = Arc::new(TopicSpec {
        id: swarm.topic(&"a".parse().unwrap()),
        born: 1,
        partitions: owners,
        inbox: bound,
        dead_letters: bound,
    });
    // Enough keyed messages that a batch is full; loose ones stay where they are, in one partition each.
    for index in 0..owners {
        let mut messages = Vec::new();
        let mut i = 0u64;
        let frames = if keyed {
            KEYS as usize / usize::from(owners)
        } else {
            per_frame
        };
        while messages.len() < frames {
            let key = format!("key-{i}");
            i += 1;
            if spec.partition_of_key(&key) == index {
                messages.push(message(Some(if keyed || messages.is_empty() {
                    key
                } else {
                    messages_key(&messages)
                })));
            }
        }
        for part in messages.chunks(per_frame) {
            let publish = Publish {
                swarm: swarm.clone(),
                calls: vec![Call {
                    to: vec![(Arc::clone(&spec), part.to_vec())],
                    once: Once::No,
                }],
                gate: Gate::Durable,
            };
            store.publish(publish).await.unwrap();
        }
    }
    let client = redis::Client::open(url).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (began, before) = (Instant::now(), server_cpu(&mut conn).await);
    let tasks: Vec<_> = (0..owners)
        .map(|index| {
            let (store, spec) = (Arc::clone(&store), Arc::clone(&spec));
            tokio::spawn(owner(
                store,
                spec,
                index,
                per_frame,
                keyed,
                Arc::clone(&stop),
                Arc::clone(&moved),
            ))
        })
        .collect();
    tokio::time::sleep(each).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let measured = measured(&moved, began, before, &mut conn).await;
    store.remove_swarm(&swarm, false).await.unwrap();
    store.close().await.unwrap();
    measured
}

fn messages_key(messages: &[Message]) -> String {
    messages[0].key.clone().unwrap_or_default()
}

fn json(m: &Measured) -> String {
    format!(
        r#"{{"messages_per_s": {:.0}, "server_us_per_message": {:.2}}}"#,
        m.messages_per_s, m.server_us
    )
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let Some(url) = args.next() else {
        eprintln!("usage: redis_hop URL [SECONDS]");
        std::process::exit(2);
    };
    let seconds = args.next().and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let each = Duration::from_secs_f64(seconds);
    for (per_frame, owners) in SHAPES {
        let stateless = ours(&url, per_frame, owners, false, each).await;
        let raw = raw(&url, per_frame, owners, each).await;
        let keyed = ours(&url, per_frame, owners, true, each).await;
        println!(
            r#"{{"messages_a_frame": {per_frame}, "owners": {owners}, "ratio": {:.2}, "keyed_ratio": {:.2},
 "raw": {}, "stateless": {}, "keyed": {}}}"#,
            stateless.messages_per_s / raw.messages_per_s,
            keyed.messages_per_s / raw.messages_per_s,
            json(&raw),
            json(&stateless),
            json(&keyed)
        );
    }
}
