//! Deletions: one task a Swarm's life, which every caller that asks for it watches.
//!
//! A deletion has two ends. Either the life is removed, or the deletion is withdrawn and the Swarm serves again; a stop of the node
//! in between is brought to one of them at the next start ([`Supervisor::sweep`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_model::scope::SwarmId;
use skep_proto::v1;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::failure::internal;
use super::{Keeper, Out};
use crate::edges::Edges;
use crate::supervisor::{Remains, Supervisor};
use crate::wording::count;

const DELETE_TIMEOUT_MS_DEFAULT: u64 = 30_000;
const DELETE_TIMEOUT_MS_MAX: u64 = 3_600_000;

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

impl Keeper {
    /// Checks, takes the Swarm out of service and begins, or joins the deletion that is under way.
    ///
    /// What no drain works off is found before anything is touched: such a Swarm never goes out of service.
    pub(super) async fn begin_deletion(&self, asked: v1::DeleteSwarmRequest) -> Result<watch::Receiver<Told>, Status> {
        let timeout_ms = match asked.timeout_ms {
            0 => DELETE_TIMEOUT_MS_DEFAULT,
            ms => ms.min(DELETE_TIMEOUT_MS_MAX),
        };
        let order = Order {
            until: Instant::now() + Duration::from_millis(timeout_ms),
            discard: asked.discard,
        };
        let (_, found, id) = self.find(&asked.name).await?;
        if !asked.discard && !found.record.deleting {
            let found = self.supervisor.remains_with_keys(&id).await.map_err(internal)?;
            if found.keeps() {
                let told = Told {
                    remaining: found.work(),
                    end: Some(Ok(remains(&id, found))),
                };
                return Ok(watch::Sender::new(told).subscribe());
            }
            let far = self.edges.may_hold(self.catalog.tenant(), &id, None).await;
            let far = far.map_err(internal)?;
            if !far.is_empty() {
                return Err(Status::failed_precondition(format!(
                    "Swarm `{}` has stages at edges: {}. Wait until `skep edge status` shows them attached and nothing waiting, or delete with \
                     --discard: nobody takes what is there then",
                    asked.name,
                    crate::edges::listed(&far)
                )));
            }
        }
        let _writes = self.supervisor.writes.lock().await;
        let (name, mut found, id) = self.find(&asked.name).await?;
        if !found.record.deleting {
            found.record.deleting = true;
            found.record.deleted_by = Some(self.node.to_string());
            let put = self.catalog.put_swarm(found.version, &found.record).await;
            if put.map_err(internal)?.is_err() {
                return Err(Status::aborted(format!(
                    "Swarm `{name}` was changed meanwhile: try again"
                )));
            }
        }
        if let Some(other) = found.record.deleted_by.filter(|by| *by != self.node.to_string()) {
            return Err(Status::failed_precondition(format!(
                "Swarm `{name}` is being deleted by node {other}: look at `skep swarms`, or ask that node"
            )));
        }
        // Still under the lock: a deletion that ends withdraws under it, so it cannot miss this order.
        Ok(self
            .deletions
            .start_or_join((&self.supervisor, &self.edges), &id, order))
    }
}

/// What a caller sees of a deletion. A number that a slow reader misses is replaced by the next.
pub(super) fn progress(told: watch::Receiver<Told>, stop: CancellationToken) -> Out<v1::DeleteSwarmProgress> {
    let stream = futures::stream::unfold(Some((told, None)), move |state| {
        let stop = stop.clone();
        async move {
            let (mut told, mut shown) = state?;
            loop {
                let now = told.borrow_and_update().clone();
                if let Some(end) = now.end {
                    return Some((end, None));
                }
                if shown != Some(now.remaining) {
                    shown = Some(now.remaining);
                    let progress = v1::DeleteSwarmProgress {
                        remaining: now.remaining,
                        ..v1::DeleteSwarmProgress::default()
                    };
                    return Some((Ok(progress), Some((told, shown))));
                }
                let left = tokio::select! {
                    changed = told.changed() => changed.is_err() && told.borrow().end.is_none(),
                    () = stop.cancelled() => true,
                };
                if left {
                    let status = Status::unavailable(
                        "the node stops before the Swarm is deleted: once the node is back it serves again; delete it again then",
                    );
                    return Some((Err(status), None));
                }
            }
        }
    });
    Box::pin(stream)
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
    pub fn start_or_join(
        &self,
        (supervisor, edges): (&Arc<Supervisor>, &Arc<Edges>),
        id: &SwarmId,
        asked: Order,
    ) -> watch::Receiver<Told> {
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
            edges: Arc::clone(edges),
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
    edges: Arc<Edges>,
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
            let done = matches!(&end, Ok(progress) if progress.done);
            // Callers mark the record and join under the same lock: nobody joins what is being withdrawn.
            let writes = self.supervisor.writes.lock().await;
            {
                let mut under_way = self.all.lock();
                if !done && self.order.has_changed().unwrap_or(false) {
                    continue;
                }
                under_way.remove(&self.id);
            }
            let end = if done { end } else { self.withdraw(writes, end).await };
            self.tell.send_modify(|told| told.end = Some(end));
            return;
        }
    }

    /// Nothing was removed, so the Swarm serves again before its caller is told.
    async fn withdraw(
        &self,
        writes: tokio::sync::MutexGuard<'_, ()>,
        end: Result<v1::DeleteSwarmProgress, Status>,
    ) -> Result<v1::DeleteSwarmProgress, Status> {
        let withdrawn = self.supervisor.withdraw_deletion(&self.id).await;
        drop(writes);
        let settled = match withdrawn {
            Ok(()) => self.supervisor.settle(&self.id.path()).await,
            Err(e) => Err(e),
        };
        match settled {
            Ok(()) => end,
            Err(e) => Err(Status::unavailable(format!(
                "Swarm `{name}` is neither deleted nor in service: {e:#}; delete it again, with --discard or without",
                name = self.id.name()
            ))),
        }
    }

    async fn attempt(&mut self) -> Result<v1::DeleteSwarmProgress, Status> {
        // Closes the routes; the stages go on and drain.
        self.supervisor.settle(&self.id.path()).await.map_err(internal)?;
        loop {
            let order = *self.order.borrow_and_update();
            let found = self.supervisor.remains(&self.id).await.map_err(internal)?;
            self.tell
                .send_if_modified(|told| std::mem::replace(&mut told.remaining, found.work()) != found.work());
            if order.discard {
                let found = self.supervisor.remains_with_keys(&self.id).await.map_err(internal)?;
                if self.supervisor.remove(&self.id, false).await.map_err(internal)? {
                    return Ok(done(found));
                }
            } else if found.work() == 0 && self.edges.are_drained(&self.id).await.map_err(internal)? {
                // Without work and without timers nothing runs that could write state after this look.
                let found = self.supervisor.remains_with_keys(&self.id).await.map_err(internal)?;
                if found.keeps() {
                    return Ok(remains(&self.id, found));
                }
                // The backend looks again in the very step that removes: nothing that arrived in between is lost.
                if found.work() == 0 && self.supervisor.remove(&self.id, true).await.map_err(internal)? {
                    return Ok(done(found));
                }
            }
            if !order.discard && Instant::now() >= order.until {
                let found = self.supervisor.remains_with_keys(&self.id).await.map_err(internal)?;
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

fn listed(found: Remains) -> String {
    let what = [
        (found.messages, count(found.messages, "message")),
        (found.calls, format!("{} under way", count(found.calls, "call"))),
        (found.dead, count(found.dead, "dead letter")),
        (found.keys, format!("the state of {}", count(found.keys, "key"))),
        (found.timers, count(found.timers, "timer")),
    ];
    let what: Vec<String> = what.into_iter().filter(|(n, _)| *n > 0).map(|(_, text)| text).collect();
    what.join(", ")
}

/// Why it was not deleted, and what to do.
fn remains(id: &SwarmId, found: Remains) -> v1::DeleteSwarmProgress {
    let name = id.name();
    let mut note = match listed(found) {
        // It was worked off while the answer was made.
        none if none.is_empty() => format!("Swarm `{name}` did not drain in time: it serves on; delete it again"),
        what => format!("Swarm `{name}` still has {what}: it was not deleted and serves on"),
    };
    if found.dead > 0 {
        note += &format!("; `skep dlq {name}` shows the dead letters");
    }
    v1::DeleteSwarmProgress {
        remaining: found.work(),
        done: false,
        note: format!("{note}; `skep delete {name} --discard` deletes it with all that it has"),
    }
}

fn done(found: Remains) -> v1::DeleteSwarmProgress {
    let what = listed(found);
    v1::DeleteSwarmProgress {
        remaining: 0,
        done: true,
        note: if what.is_empty() {
            what
        } else {
            format!("discarded: {what}")
        },
    }
}
