//! The data folder: in use, newer, damaged, full.

use std::sync::Arc;

use bytes::Bytes;
use skep_model::env::{Clock, Entropy, ManualClock, SeededEntropy};
use skep_topic::Backend;
use skep_topic::conformance::actors::{World, text};
use skep_topic::embedded::{Embedded, OpenError};

use crate::harness::OnDisk;

fn open(dir: &std::path::Path) -> Result<Arc<Embedded>, OpenError> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(1));
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(1));
    Embedded::open(dir, clock, entropy)
}

fn sql(dir: &std::path::Path, statement: &str) {
    let conn = rusqlite::Connection::open(dir.join("skep.db")).unwrap();
    conn.execute_batch(statement).unwrap();
}

#[tokio::test]
async fn a_folder_in_use_names_who_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let why = open(dir.path()).unwrap_err().to_string();
    assert!(why.contains("in use by another skep"), "{why}");
    assert!(why.contains(&format!("pid {}", std::process::id())), "{why}");
    first.close().await.unwrap();
    let second = open(dir.path()).unwrap();
    assert!(second.was_clean());
    drop(second);
    assert!(!open(dir.path()).unwrap().was_clean(), "without a close it is a crash");
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.close().await.unwrap();
    let why = store.flushed().await.unwrap_err().to_string();
    assert!(why.contains("closed"), "{why}");
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    sql(dir.path(), "UPDATE meta SET value = 1000 WHERE name = 'schema'");
    let why = open(dir.path()).unwrap_err().to_string();
    assert!(why.contains("schema 1000") && why.contains("upgrade"), "{why}");
}

#[tokio::test]
async fn folders_of_earlier_schemas_are_read_and_go_on() {
    goes_on(1, include_str!("../golden/schema-1.sql"), "100, 100").await;
    goes_on(2, include_str!("../golden/schema-2.sql"), "").await;
}

async fn goes_on(schema: u32, tables: &str, more: &str) {
    let mut disk = OnDisk::new(1);
    drop(disk.embedded.take());
    let dir = disk.dir.path();
    std::fs::remove_file(dir.join("skep.db")).unwrap();
    sql(
        dir,
        "PRAGMA page_size = 8192; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;",
    );
    sql(dir, tables);
    let more = if more.is_empty() {
        String::new()
    } else {
        format!(", {more}")
    };
    sql(
        dir,
        &format!(
            "INSERT INTO meta VALUES ('schema', {schema}), ('store', x'01'), ('clean', 1);
             INSERT INTO swarm VALUES (1, 'default', 'suite', x'07070707070707070707070707070707');
             INSERT INTO topic VALUES (1, 1, 'a'{more});"
        ),
    );
    let conn = rusqlite::Connection::open(dir.join("skep.db")).unwrap();
    let value = skep_topic::record::seal(skep_topic::record::Kind::State, b"kept");
    conn.execute(
        "INSERT INTO state VALUES (1, ?1, 'k', 'n', ?2)",
        rusqlite::params![skep_topic::key_group("k"), value],
    )
    .unwrap();
    drop(conn);
    disk.open();
    let world = World::new(Box::new(disk));
    let spec = world.spec("a", 1);
    assert_eq!(world.backend().state(&spec.id, "k").await.unwrap()["n"], b"kept"[..]);
    world.words(&spec, Some("k"), &["1"]).await.unwrap();
    let owner = world.own(&spec, 0).await.unwrap();
    assert_eq!(owner.payloads().await.unwrap(), ["1"]);
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("skep.db"), "nonsense ".repeat(1_000)).unwrap();
    let why = open(dir.path()).unwrap_err().to_string();
    assert!(why.contains("skep.db") && why.contains("not a skep database"), "{why}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let why = open(&file.join("under")).unwrap_err().to_string();
    assert!(why.contains("under"), "{why}");
}

#[tokio::test]
async fn damage_and_newer_records_are_errors_and_nothing_else_is_lost() {
    let mut disk = OnDisk::new(1);
    let store = Arc::clone(disk.store());
    store
        .catalog_put("a", 0, Bytes::from_static(b"1"))
        .await
        .unwrap()
        .unwrap();
    store
        .catalog_put("b", 0, Bytes::from_static(b"1"))
        .await
        .unwrap()
        .unwrap();
    store
        .catalog_put("d", 0, Bytes::from_static(b"1"))
        .await
        .unwrap()
        .unwrap();
    store.close().await.unwrap();
    drop(store);
    drop(disk.embedded.take());
    sql(
        disk.dir.path(),
        "UPDATE catalog SET value = CAST(x'0100000000' || 'x' AS BLOB) WHERE key = 'a'",
    );
    sql(
        disk.dir.path(),
        "UPDATE catalog SET value = CAST(x'0200000000' || 'x' AS BLOB) WHERE key = 'b'",
    );
    sql(disk.dir.path(), "UPDATE catalog SET value = 'text' WHERE key = 'd'");
    disk.open();
    let world = World::new(Box::new(disk));
    let owner = world.own(&world.spec("a", 1), 0).await.unwrap();
    let store = world.backend();
    let why = store.catalog_list("a").await.unwrap_err().to_string();
    assert!(why.contains("checksum"), "{why}");
    let why = store.catalog_list("b").await.unwrap_err().to_string();
    assert!(why.contains("format 2, this skep reads up to 1: upgrade"), "{why}");
    let why = store.catalog_list("d").await.unwrap_err().to_string();
    assert!(why.contains("damaged"), "{why}");
    // The store itself goes on, and leases with it.
    owner.fetch(1).await.unwrap();
    store
        .catalog_put("c", 0, Bytes::from_static(b"1"))
        .await
        .unwrap()
        .unwrap();
    store.catalog_list("c").await.unwrap();
}

#[tokio::test]
async fn an_idle_store_writes_nothing() {
    let disk = OnDisk::new(1);
    let store = Arc::clone(disk.store());
    store
        .catalog_put("a", 0, Bytes::from_static(b"1"))
        .await
        .unwrap()
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let (flushes, bytes) = (store.counters().flushes, files(disk.dir.path()));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    store.catalog_list("").await.unwrap();
    store.flushed().await.unwrap();
    assert_eq!((store.counters().flushes, files(disk.dir.path())), (flushes, bytes));
}

/// Name, length and time of last change of each file.
fn files(dir: &std::path::Path) -> Vec<(std::ffi::OsString, u64, std::time::SystemTime)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            (entry.file_name(), meta.len(), meta.modified().unwrap())
        })
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_full_disk_refuses_publishes_and_lets_work_drain() {
    let mut world = World::new(Box::new(OnDisk::new(1)));
    let spec = world.bounded("a", 1, 1_000_000, 100);
    let Some(small) = SmallDisk::mount() else {
        eprintln!("skipped: a small tmpfs cannot be mounted here");
        return;
    };
    let mut disk = OnDisk::new(1);
    disk.embedded = Some(open(small.path()).unwrap());
    world.harness = Box::new(disk);
    let mut taken: Vec<String> = Vec::new();
    let mut refused = 0;
    for i in 0..400 {
        let word = format!("{i} {}", "x".repeat(60 << 10));
        let call = world
            .call(&wide(&spec), vec![world.message(None, &word)], skep_topic::Once::No)
            .await;
        match call {
            Ok(Ok(_)) => taken.push(word),
            Ok(Err(e)) => panic!("{e}"),
            Err(e) => {
                assert!(
                    e.contains("Unavailable") && e.contains("is full: free some space"),
                    "{e}"
                );
                refused += 1;
            }
        }
        if refused > 3 {
            break;
        }
    }
    assert!(
        refused > 0 && !taken.is_empty(),
        "{} taken, {refused} refused",
        taken.len()
    );
    let mut owner = world.own(&spec, 0).await.unwrap();
    let mut drained = Vec::new();
    loop {
        let fetched = owner.fetch(8).await.unwrap();
        if fetched.messages.is_empty() {
            break;
        }
        drained.extend(fetched.messages.iter().map(|u| text(&u.message)));
        let commit = world.consuming(&owner, &fetched, fetched.messages.len());
        owner.must(commit).await.unwrap();
        world.backend().flushed().await.unwrap();
    }
    assert!(drained == taken, "{} taken, {} drained", taken.len(), drained.len());
    // There is room again, which the store finds by itself.
    for _ in 0..40 {
        if world.words(&wide(&spec), None, &["again"]).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("publishes are refused although there is room");
}

fn wide(spec: &skep_topic::TopicSpec) -> Arc<skep_topic::TopicSpec> {
    let mut spec = spec.clone();
    spec.inbox.bytes = 1 << 40;
    Arc::new(spec)
}

/// A file system of 16 MiB, gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().ok()?;
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then_some(Self(dir))
    }

    fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}
