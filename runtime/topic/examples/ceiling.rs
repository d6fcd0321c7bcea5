//! The embedded backend against the raw ceiling: SQLite with `synchronous=FULL`, the same frames and the same grouping.
//!
//! ```text
//! cargo run --release -p skep-topic --example ceiling -- DIR [SECONDS]
//! ```
//! DIR should be on the disk that matters, not on tmpfs. Prints one JSON object: messages a second, flushes, and CPU microseconds
//! a message, for each grouping. A round of both loops reads a frame, deletes it, inserts its like and moves the cursor.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::{Connection, params};
use skep_model::env::{Entropy, OsEntropy, SystemClock};
use skep_model::id::{CommitId, Incarnation, Token, Uid};
use skep_model::message::Message;
use skep_model::name::TenantId;
use skep_model::scope::Scope;
use skep_model::swarm::Bound;
use skep_topic::embedded::Embedded;
use skep_topic::{Backend, Call, Commit, Gate, Lease, Once, Output, Publish, Span, TopicSpec, Want};

const PAYLOAD: usize = 200;

/// Messages a frame, and frames a transaction: for us, owners at work at once.
const GROUPINGS: [(usize, usize); 4] = [(64, 1), (64, 8), (64, 32), (256, 8)];

#[derive(Debug)]
struct Measured {
    messages_per_s: f64,
    flushes: u64,
    cpu_us_per_message: f64,
}

fn cpu() -> Duration {
    // utime and stime of this process, in ticks of 10 ms, which is fine over seconds.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|t| t.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

fn measured(messages: u64, flushes: u64, began: Instant, cpu_before: Duration) -> Measured {
    let messages = messages.max(1) as f64;
    Measured {
        messages_per_s: messages / began.elapsed().as_secs_f64(),
        flushes,
        cpu_us_per_message: (cpu().saturating_sub(cpu_before)).as_secs_f64() * 1e6 / messages,
    }
}

fn raw(dir: &Path, per_frame: usize, frames: usize, for_how_long: Duration) -> rusqlite::Result<Measured> {
    let conn = Connection::open(dir.join("raw.db"))?;
    conn.execute_batch(
        "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 2048;
         CREATE TABLE frame (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
         CREATE TABLE part (id INTEGER PRIMARY KEY, cursor INTEGER NOT NULL);",
    )?;
    let body = vec![7u8; per_frame * (PAYLOAD + 40)];
    for part in 0..frames {
        conn.execute("INSERT INTO frame VALUES (?1, ?2)", params![(part as i64) << 40, body])?;
        conn.execute("INSERT INTO part VALUES (?1, 0)", [part as i64])?;
    }
    let (began, before, mut rounds) = (Instant::now(), cpu(), 0u64);
    let mut cursor = 0i64;
    while began.elapsed() < for_how_long {
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for part in 0..frames as i64 {
            let id = part << 40 | cursor;
            let body: Vec<u8> = conn
                .prepare_cached("SELECT body FROM frame WHERE id = ?1")?
                .query_row([id], |r| r.get(0))?;
            conn.prepare_cached("DELETE FROM frame WHERE id = ?1")?.execute([id])?;
            conn.prepare_cached("INSERT INTO frame VALUES (?1, ?2)")?
                .execute(params![id + 1, body])?;
            conn.prepare_cached("UPDATE part SET cursor = ?2 WHERE id = ?1")?
                .execute([part, cursor + 1])?;
        }
        conn.prepare_cached("COMMIT")?.execute([])?;
        cursor += 1;
        rounds += 1;
    }
    Ok(measured(rounds * (per_frame * frames) as u64, rounds, began, before))
}

fn message(key: String) -> Message {
    Message {
        uid: Uid(OsEntropy.bits128()),
        key: Some(key),
        headers: Vec::new(),
        payload: Bytes::from(vec![7; PAYLOAD]),
        accepted_ms: 1_700_000_000_000,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    }
}

/// Each owner moves the frame of its partition to the partition itself, forever: what it reads it writes again.
async fn owner(
    store: Arc<Embedded>,
    spec: Arc<TopicSpec>,
    index: u16,
    per_frame: usize,
    gated: bool,
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
            state: false,
            state_bytes: 0,
            timers_max: u64::MAX,
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
        commit.outputs = fetched
            .messages
            .into_iter()
            .map(|u| Output {
                to: Arc::clone(&spec),
                message: u.message,
            })
            .collect();
        (claim.seq, claim.last, claim.cursor) = (claim.seq + 1, commit.id, span.to);
        store.commit(&lease, Arc::new(commit)).await.unwrap();
        if gated {
            store.flushed().await.unwrap();
        }
        moved.fetch_add(count, Ordering::Relaxed);
    }
}

/// `gated`: each owner waits for its flush before it goes on, as the raw loop does; else only the disk's pace counts.
async fn ours(dir: &Path, per_frame: usize, owners: usize, gated: bool, for_how_long: Duration) -> Measured {
    let name = format!("ours-{per_frame}-{owners}-{gated}");
    let store = Embedded::open(&dir.join(name), Arc::new(SystemClock), Arc::new(OsEntropy)).unwrap();
    let swarm = Scope::of(TenantId::default_tenant()).swarm(&"ceiling".parse().unwrap(), Incarnation([1; 16]));
    let bound = Bound {
        messages: 1 << 40,
        bytes: 1 << 50,
    };
    let spec = Arc::new(TopicSpec {
        id: swarm.topic(&"a".parse().unwrap()),
        born: 1,
        partitions: u16::try_from(owners).unwrap(),
        inbox: bound,
        dead_letters: bound,
    });
    for index in 0..spec.partitions {
        let key = (0..)
            .map(|i| format!("k{i}"))
            .find(|k| spec.partition_of_key(k) == index)
            .unwrap();
        let messages = (0..per_frame).map(|_| message(key.clone())).collect();
        let publish = Publish {
            swarm: swarm.clone(),
            calls: vec![Call {
                to: vec![(Arc::clone(&spec), messages)],
                once: Once::No,
            }],
            gate: Gate::Durable,
        };
        store.publish(publish).await.unwrap();
    }
    let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (began, before, flushed) = (Instant::now(), cpu(), store.counters().flushes);
    let owners: Vec<_> = (0..spec.partitions)
        .map(|index| {
            let (store, spec) = (Arc::clone(&store), Arc::clone(&spec));
            tokio::spawn(owner(
                store,
                spec,
                index,
                per_frame,
                gated,
                Arc::clone(&stop),
                Arc::clone(&moved),
            ))
        })
        .collect();
    tokio::time::sleep(for_how_long).await;
    stop.store(true, Ordering::Relaxed);
    for owner in owners {
        owner.await.unwrap();
    }
    let flushes = store.counters().flushes - flushed;
    let result = measured(moved.load(Ordering::Relaxed), flushes, began, before);
    store.close().await.unwrap();
    result
}

fn json(m: &Measured) -> String {
    format!(
        r#"{{"messages_per_s": {:.0}, "flushes": {}, "cpu_us_per_message": {:.2}}}"#,
        m.messages_per_s, m.flushes, m.cpu_us_per_message
    )
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args_os().skip(1);
    let Some(dir) = args.next() else {
        eprintln!("usage: ceiling DIR [SECONDS]");
        std::process::exit(2);
    };
    let seconds = args.next().and_then(|s| s.to_str()?.parse().ok()).unwrap_or(2.0);
    let each = Duration::from_secs_f64(seconds);
    let mut rows = Vec::new();
    for (per_frame, frames) in GROUPINGS {
        let here = Path::new(&dir).join(format!("ceiling-{}-{per_frame}-{frames}", std::process::id()));
        std::fs::create_dir_all(&here).expect("the folder can be made");
        let raw = raw(&here, per_frame, frames, each).expect("SQLite works here");
        let gated = ours(&here, per_frame, frames, true, each).await;
        let free = ours(&here, per_frame, frames, false, each).await;
        rows.push(format!(
            r#"  {{"messages_a_frame": {per_frame}, "frames_a_transaction": {frames}, "ratio": {:.2},
   "raw": {}, "embedded": {}, "embedded_ungated": {}}}"#,
            gated.messages_per_s / raw.messages_per_s,
            json(&raw),
            json(&gated),
            json(&free)
        ));
        std::fs::remove_dir_all(&here).expect("the folder can be removed");
    }
    println!("[\n{}\n]", rows.join(",\n"));
}
