//! What is to leave waits here until the writes before it are safe. All that wait share one question to the server.
//!
//! `WAIT` and `WAITAOF` speak of the writes of the connection that asks. The commits went over another one, so each question writes
//! first: replication has one order, and an offset after ours is after everything that was answered before we asked. (A `WAIT` on a
//! connection that wrote nothing would be answered at once, whatever the replicas have.)

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::Value;
use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use tokio::sync::oneshot;

use super::link::Link;
use super::options::{Gate, RedisOptions};
use super::reply::number;
use crate::Error;

type Waiting = oneshot::Sender<Result<(), Error>>;

pub(super) const REPLACED: &str = "the server was replaced before the write was safe";

/// Who waits, by history, which is of one server: servers are asked at the same time. A history is there while somebody asks for it.
/// Bounded by use: an operation, or a commit's replies, waits here at most once.
#[derive(Default)]
pub(super) struct Gatekeeper {
    queues: Mutex<HashMap<u64, Vec<Waiting>>>,
    pub flushes: AtomicU64,
}

impl Gatekeeper {
    fn queues(&self) -> MutexGuard<'_, HashMap<u64, Vec<Waiting>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once all that was written in `history` before this call is safe.
    pub async fn pass(self: &Arc<Self>, link: &Arc<Link>, history: u64) -> Result<(), Error> {
        if link.options.gate == Gate::None {
            return Ok(());
        }
        let (send, answer) = oneshot::channel();
        let first = {
            let mut queues = self.queues();
            let first = !queues.contains_key(&history);
            queues.entry(history).or_default().push(send);
            first
        };
        if first {
            tokio::spawn(Arc::clone(self).serve(Arc::clone(link), history));
        }
        answer.await.unwrap_or_else(|_| {
            Err(Error::Unknown(
                "the store was closed before the write was safe".to_owned(),
            ))
        })
    }

    /// Asks for all that wait, again and again while there are any.
    async fn serve(self: Arc<Self>, link: Arc<Link>, history: u64) {
        loop {
            let waiting = {
                let mut queues = self.queues();
                let waiting = queues.get_mut(&history).map(std::mem::take).unwrap_or_default();
                if waiting.is_empty() {
                    queues.remove(&history);
                    return;
                }
                waiting
            };
            let verdict = ask(&link, history).await.map_err(Error::Unknown);
            self.flushes.fetch_add(1, Ordering::Relaxed);
            for send in waiting {
                // Whoever asked may have gone.
                let _ = send.send(verdict.clone());
            }
        }
    }
}

/// One write and one wait.
async fn ask(link: &Link, history: u64) -> Result<(), String> {
    let pair = link.pair_in(history).map_err(|e| e.to_string())?;
    let mut pair = pair.ok_or_else(|| REPLACED.to_owned())?;
    let mut write = redis::cmd("SET");
    write.arg(link.gate_key(&pair)).arg(1);
    safe(&link.options, &mut pair.gate, write).await.map_err(|why| {
        if let Unsafe::Broken(broken) = &why {
            link.give_up(&pair, broken);
        }
        why.to_string()
    })
}

/// Why a write is not known to be safe.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsafe {
    /// The connection is of no more use.
    #[error("{0}")]
    Broken(String),
    #[error("{0}")]
    Alone(String),
}

/// Writes, and returns once this write and all that the server answered before are safe.
pub(super) async fn safe(
    options: &RedisOptions,
    conn: &mut MultiplexedConnection,
    write: redis::Cmd,
) -> Result<(), Unsafe> {
    let mut pipe = redis::pipe();
    pipe.add_command(write);
    let (needed, timeout) = match options.gate {
        Gate::None => return Ok(()),
        Gate::Wait { replicas, timeout_ms } => {
            pipe.cmd("WAIT").arg(replicas).arg(timeout_ms);
            ((0, replicas), timeout_ms)
        }
        Gate::WaitAof {
            local,
            replicas,
            timeout_ms,
        } => {
            pipe.cmd("WAITAOF").arg(local).arg(replicas).arg(timeout_ms);
            ((local, replicas), timeout_ms)
        }
    };
    let patience = Duration::from_millis(timeout) + options.response_timeout;
    let silent = || Unsafe::Broken("no answer to a wait for replicas".to_owned());
    let answer = tokio::time::timeout(patience, conn.req_packed_commands(&pipe, 0, 2)).await;
    let answer = answer.map_err(|_| silent())?;
    let answer: Result<Vec<_>, _> = answer.and_then(|values| values.into_iter().map(Value::extract_error).collect());
    let mut answer = answer.map_err(|e| Unsafe::Broken(super::fault::sort(&e, options).0.to_string()))?;
    let have = match answer.pop() {
        Some(Value::Array(counts)) => {
            let mut counts = counts.into_iter().map(|v| number(v).unwrap_or(0));
            (counts.next().unwrap_or(0), counts.next().unwrap_or(0))
        }
        Some(other) => (0, number(other).map_err(|e| Unsafe::Alone(e.to_string()))?),
        None => return Err(silent()),
    };
    if have.0 < u64::from(needed.0) || have.1 < u64::from(needed.1) {
        return Err(Unsafe::Alone(format!(
            "written, but only {} of {} replicas have it after {timeout} ms",
            have.1, needed.1
        )));
    }
    Ok(())
}
