//! The ceiling of durability: SQLite in the same mode (WAL, `synchronous=FULL`), with nothing but the rows.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

pub struct Raw {
    db: Connection,
    next: i64,
    payload: Vec<u8>,
}

impl Raw {
    pub fn open(file: &Path, frame_bytes: usize) -> anyhow::Result<Self> {
        let db = Connection::open(file)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.execute_batch(
            "CREATE TABLE frame(id INTEGER PRIMARY KEY, body BLOB);
             CREATE TABLE place(id INTEGER PRIMARY KEY, cursor INTEGER);
             INSERT INTO place VALUES (1, 0);",
        )?;
        Ok(Self {
            db,
            next: 0,
            payload: vec![7; frame_bytes],
        })
    }

    /// One transaction of `frames`: append each.
    pub fn append(&mut self, frames: usize) -> anyhow::Result<()> {
        let tx = self.db.transaction()?;
        {
            let mut insert = tx.prepare_cached("INSERT INTO frame VALUES (?1, ?2)")?;
            for _ in 0..frames {
                self.next += 1;
                insert.execute(params![self.next, self.payload])?;
            }
        }
        tx.commit()?;
        Ok(())
    }

    /// One transaction of `frames`: read each, delete it, insert its successor, move the cursor. What one stage does at the least.
    pub fn pass(&mut self, frames: usize) -> anyhow::Result<()> {
        let tx = self.db.transaction()?;
        {
            let mut read = tx.prepare_cached("SELECT id, body FROM frame ORDER BY id LIMIT 1")?;
            let mut delete = tx.prepare_cached("DELETE FROM frame WHERE id = ?1")?;
            let mut insert = tx.prepare_cached("INSERT INTO frame VALUES (?1, ?2)")?;
            let mut place = tx.prepare_cached("UPDATE place SET cursor = ?1 WHERE id = 1")?;
            for _ in 0..frames {
                let (id, body): (i64, Vec<u8>) = read.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                delete.execute([id])?;
                self.next += 1;
                insert.execute(params![self.next, body])?;
                place.execute([id])?;
            }
        }
        tx.commit()?;
        Ok(())
    }
}

/// Times of single commits of one small frame.
pub fn commits(dir: &Path, span: Duration) -> anyhow::Result<Vec<Duration>> {
    let mut raw = Raw::open(&dir.join("raw-commit.db"), 240)?;
    raw.append(1)?;
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < span {
        let at = Instant::now();
        raw.pass(1)?;
        times.push(at.elapsed());
    }
    Ok(times)
}

/// Messages a second of appends, in frames of `frame` messages of `bytes`, `group` frames a transaction.
pub fn appends(dir: &Path, frame: usize, bytes: usize, group: usize, span: Duration) -> anyhow::Result<f64> {
    let mut raw = Raw::open(&dir.join("raw-append.db"), frame * bytes)?;
    let (mut frames, began) = (0usize, Instant::now());
    while began.elapsed() < span {
        raw.append(group)?;
        frames += group;
    }
    Ok((frames * frame) as f64 / began.elapsed().as_secs_f64())
}

/// Messages a second of one hop (read, delete, insert, move), likewise.
pub fn hops(dir: &Path, frame: usize, bytes: usize, group: usize, span: Duration) -> anyhow::Result<f64> {
    let mut raw = Raw::open(&dir.join("raw-hop.db"), frame * bytes)?;
    raw.append(group)?;
    let (mut frames, began) = (0usize, Instant::now());
    while began.elapsed() < span {
        raw.pass(group)?;
        frames += group;
    }
    Ok((frames * frame) as f64 / began.elapsed().as_secs_f64())
}
