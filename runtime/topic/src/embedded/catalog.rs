//! Desired state: compare-and-set on a version a record.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use rusqlite::{OptionalExtension, params};

use super::store::{Fault, Store, db, un};
use super::writer::Answer;
use crate::CatalogRecord;
use crate::guard::Guard;
use crate::record::{self, Kind};

fn version(store: &Store, key: &str) -> Result<u64, Fault> {
    let found: Option<i64> = store
        .conn
        .prepare_cached("SELECT version FROM catalog WHERE key = ?1")?
        .query_row([key], |r| r.get(0))
        .optional()?;
    Ok(found.map_or(0, un))
}

/// Whether the catalog is what somebody decided on. Only the writer changes the number, and this runs there.
fn is(store: &Store, seen: Option<u64>) -> bool {
    let number = store.shared.catalog_number.load(Ordering::Relaxed);
    seen.is_none_or(|seen| seen == number) || !store.guards.on(Guard::Seen)
}

pub(super) fn put(
    store: &mut Store,
    key: &str,
    expect: u64,
    seen: Option<u64>,
    value: &[u8],
) -> Result<Answer<Result<u64, u64>>, Fault> {
    let current = version(store, key)?;
    if current != expect || !is(store, seen) {
        return Answer::gated(Err(current));
    }
    store.begin()?;
    store.grew(value.len());
    store
        .conn
        .prepare_cached("INSERT OR REPLACE INTO catalog (key, version, value) VALUES (?1, ?2, ?3)")?
        .execute(params![key, db(current + 1), record::seal(Kind::Catalog, value)])?;
    store.shared.catalog_written();
    Answer::gated(Ok(current + 1))
}

pub(super) fn list(store: &mut Store, prefix: &str) -> Result<Answer<Vec<(String, CatalogRecord)>>, Fault> {
    // A range and not LIKE: names may hold its wildcards. No UTF-8 text sorts above this end.
    let mut end = prefix.as_bytes().to_vec();
    end.push(0xff);
    let mut query = store.conn.prepare_cached(
        "SELECT key, version, value FROM catalog WHERE key >= ?1 AND CAST(key AS BLOB) < ?2 ORDER BY key",
    )?;
    let mut rows = query.query(params![prefix, end])?;
    let mut out = Vec::new();
    while let Some(r) = rows.next()? {
        let value = record::unseal(Kind::Catalog, Bytes::from(r.get::<_, Vec<u8>>(2)?))?;
        let version = un(r.get(1)?);
        out.push((r.get(0)?, CatalogRecord { version, value }));
    }
    Answer::gated(out)
}

pub(super) fn delete(
    store: &mut Store,
    key: &str,
    expect: u64,
    seen: Option<u64>,
) -> Result<Answer<Result<(), u64>>, Fault> {
    let current = version(store, key)?;
    if current != expect || !is(store, seen) {
        return Answer::gated(Err(current));
    }
    if current != 0 {
        store.begin()?;
        store.conn.execute("DELETE FROM catalog WHERE key = ?1", [key])?;
        store.shared.catalog_written();
    }
    Answer::gated(Ok(()))
}
