//! What is to leave waits here until the writes before it are safe. All that wait share one question to the server.
//!
//! `WAIT` and `WAITAOF` speak of the writes of the connection that asks. The commits went over another one, so each question writes
//! first: replication has one order, and an offset after ours is after everything that was answered before we asked. (A `WAIT` on a
//! connection that wrote nothing would be answered at once, whatever the replicas have.)

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::Value;
use redis::aio::ConnectionLike as _;
use tokio::sync::{Notify, oneshot};

use super::link::Link;
use super::names;
use super::options::Gate;
use super::reply::number;
use crate::Error;

type Waiting = (u64, oneshot::Sender<Result<(), Error>>);

/// Bounded by use: an operation, or a commit's replies, waits here at most once.
#[derive(Default)]
pub(super) struct Gatekeeper {
    queue: Mutex<Vec<Waiting>>,
    come: Notify,
    pub flushes: AtomicU64,
}

impl Gatekeeper {
    /// Returns once all that was written in `history` before this call is safe.
    pub async fn pass(&self, link: &Link, history: u64) -> Result<(), Error> {
        if link.options.gate == Gate::None {
            return Ok(());
        }
        let (send, answer) = oneshot::channel();
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((history, send));
        self.come.notify_one();
        answer.await.unwrap_or_else(|_| {
            Err(Error::Unknown(
                "the store was closed before the write was safe".to_owned(),
            ))
        })
    }

    /// Asks for all that wait, again and again.
    pub async fn keep(self: Arc<Self>, link: Arc<Link>) {
        loop {
            self.come.notified().await;
            let waiting = std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner));
            if waiting.is_empty() {
                continue;
            }
            let asked = ask(&link).await;
            self.flushes.fetch_add(1, Ordering::Relaxed);
            for (history, send) in waiting {
                let verdict = match &asked {
                    Ok(now) if *now == history => Ok(()),
                    Ok(_) => Err(Error::Unknown(
                        "the server was replaced before the write was safe".to_owned(),
                    )),
                    Err(why) => Err(Error::Unknown(why.clone())),
                };
                // Whoever asked may have gone.
                let _ = send.send(verdict);
            }
        }
    }
}

/// One write and one wait. Returns the history that they hold for.
async fn ask(link: &Link) -> Result<u64, String> {
    let mut pair = link.pair().map_err(|e| e.to_string())?;
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(names::GATE).arg(1);
    let (needed, timeout) = match link.options.gate {
        Gate::None => return Ok(pair.history),
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
    let patience = Duration::from_millis(timeout) + link.options.response_timeout;
    let answer = tokio::time::timeout(patience, pair.gate.req_packed_commands(&pipe, 0, 2)).await;
    let answer = answer.map(|a| {
        a.and_then(|values| {
            values
                .into_iter()
                .map(Value::extract_error)
                .collect::<Result<Vec<_>, _>>()
        })
    });
    let mut answer = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => {
            let why = super::fault::sort(&e, &link.options).0.to_string();
            link.give_up(&pair, &why);
            return Err(why);
        }
        Err(_) => {
            let why = "no answer to a wait for replicas".to_owned();
            link.give_up(&pair, &why);
            return Err(why);
        }
    };
    let have = match answer.pop() {
        Some(Value::Array(counts)) => {
            let mut counts = counts.into_iter().map(|v| number(v).unwrap_or(0));
            (counts.next().unwrap_or(0), counts.next().unwrap_or(0))
        }
        Some(other) => (0, number(other).map_err(|e| e.to_string())?),
        None => return Err("no answer to a wait for replicas".to_owned()),
    };
    if have.0 < u64::from(needed.0) || have.1 < u64::from(needed.1) {
        return Err(format!(
            "written, but only {} of {} replicas have it after {timeout} ms",
            have.1, needed.1
        ));
    }
    Ok(pair.history)
}
