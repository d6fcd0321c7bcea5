//! Deletions: one task a Swarm's life, which every caller that asks for it watches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_model::scope::SwarmId;
use skep_proto::v1;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::internal;
use crate::supervisor::{Remains, Supervisor};

/// How often a drain looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was asked for, by all callers together: the longest time, and whether the rest may go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub until: Instant,
    pub discard: bool,
}

/// How far it is; the last one has an end.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub remaining: u64,
    pub end: Option<Result<v1::DeleteSwarmProgress, Status>>,
}

struct Deletion {
    order: watch::Sender<Order>,
    told: watch::Receiver<Told>,
}

/// The deletions under way on this node: at most one a Swarm.
#[derive(Clone, Default)]
pub(super) struct Deletions(Arc<Mutex<HashMap<SwarmId, Deletion>>>);

impl Deletions {
    fn lock(&self) -> MutexGuard<'_, HashMap<SwarmId, Deletion>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a deletion, or joins the one under way and adds to its order. A caller that goes away leaves it going.
    pub fn start_or_join(&self, supervisor: &Arc<Supervisor>, id: &SwarmId, asked: Order) -> watch::Receiver<Told> {
        let mut under_way = self.lock();
        if let Some(deletion) = under_way.get(id) {
            deletion.order.send_modify(|order| {
                order.until = order.until.max(asked.until);
                order.discard |= asked.discard;
            });
            return deletion.told.clone();
        }
        let order = watch::Sender::new(asked);
        let (tell, told) = watch::channel(Told::default());
        let work = Work {
            supervisor: Arc::clone(supervisor),
            id: id.clone(),
            order: order.subscribe(),
            tell,
            all: self.clone(),
        };
        tokio::spawn(work.run());
        let told_too = told.clone();
        under_way.insert(id.clone(), Deletion { order, told });
        told_too
    }
}

struct Work {
    supervisor: Arc<Supervisor>,
    id: SwarmId,
    order: watch::Receiver<Order>,
    tell: watch::Sender<Told>,
    all: Deletions,
}

impl Work {
    async fn run(mut self) {
        // Also when this task ends in a way that nobody foresaw: the next call may begin anew.
        let _gone = Forget(self.all.clone(), self.id.clone());
        loop {
            let end = self.attempt().await;
            {
                // Under the lock, so that nobody joins a deletion that has made up its mind.
                let mut under_way = self.all.lock();
                let done = matches!(&end, Ok(progress) if progress.done);
                if !done && self.order.has_changed().unwrap_or(false) {
                    continue;
                }
                under_way.remove(&self.id);
            }
            self.tell.send_modify(|told| told.end = Some(end));
            return;
        }
    }

    async fn attempt(&mut self) -> Result<v1::DeleteSwarmProgress, Status> {
        loop {
            let order = *self.order.borrow_and_update();
            let found = self.supervisor.remains(&self.id).await.map_err(internal)?;
            self.tell
                .send_if_modified(|told| std::mem::replace(&mut told.remaining, found.work()) != found.work());
            if order.discard {
                if self.supervisor.remove(&self.id, false).await.map_err(internal)? {
                    return Ok(done(found));
                }
            } else if found.work() == 0 && found.dead == 0 {
                // The backend looks again in the very step that removes: nothing that arrived in between is lost.
                if self.supervisor.remove(&self.id, true).await.map_err(internal)? {
                    return Ok(done(found));
                }
            } else if found.work() == 0 || Instant::now() >= order.until {
                return Ok(remains(&self.id, found));
            }
            if !order.discard && Instant::now() >= order.until {
                let found = self.supervisor.remains(&self.id).await.map_err(internal)?;
                return Ok(remains(&self.id, found));
            }
            tokio::select! {
                () = sleep_until(Instant::now() + LOOK_EVERY) => {}
                _ = self.order.changed() => {}
            }
        }
    }
}

struct Forget(Deletions, SwarmId);

impl Drop for Forget {
    fn drop(&mut self) {
        // Only if it was not taken out before: another may have begun since.
        if std::thread::panicking() {
            self.0.lock().remove(&self.1);
        }
    }
}

fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn remains(id: &SwarmId, found: Remains) -> v1::DeleteSwarmProgress {
    let name = id.name();
    let mut what = vec![count(found.messages, "message"), count(found.dead, "dead letter")];
    if found.calls > 0 {
        what.push(count(found.calls, "call") + " under way");
    }
    if found.timers > 0 {
        what.push(count(found.timers, "timer"));
    }
    v1::DeleteSwarmProgress {
        remaining: found.work(),
        done: false,
        note: format!(
            "{} remain; Swarm `{name}` takes no new input. Wait and delete again, or drop them with \
             `skep delete {name} --discard`",
            what.join(" and ")
        ),
    }
}

fn done(found: Remains) -> v1::DeleteSwarmProgress {
    let mut what = Vec::new();
    if found.messages + found.calls + found.dead > 0 {
        what.push(format!(
            "{} and {} were discarded",
            count(found.messages + found.calls, "message"),
            count(found.dead, "dead letter")
        ));
    }
    if found.timers > 0 {
        what.push(format!("{} went with the state", count(found.timers, "timer")));
    }
    v1::DeleteSwarmProgress {
        remaining: 0,
        done: true,
        note: what.join("; "),
    }
}
