//! Many calls in one step of the backend: what arrives while the previous append of a slot is under way goes together.
//!
//! No timer takes part. A lone call goes out at once; under load the time of one append gathers the next group, so groups grow
//! exactly as far as the disk is slow.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use skep_model::limits::{APPEND_GROUP_BYTES_MAX, APPEND_GROUP_CALLS_MAX};
use skep_model::scope::SwarmId;
use skep_topic::{Accepted, Backend, Call, CallResult, Error, Gate, Publish, Refused};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Why an append failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    Refused(Refused),
    Backend(Error),
    /// The deadline passed. `sent`: the backend may have it all the same.
    Expired {
        sent: bool,
    },
}

type Done = Result<Accepted, Failed>;
type Published = BoxFuture<'static, Result<Vec<CallResult>, Error>>;
/// All that is used of a backend.
type PublishFn = Box<dyn Fn(Publish) -> Published + Send + Sync>;

/// Waiting calls by slot and gate; a slot is listed only while an append of it is under way. Bounded by admission: a call whose
/// caller went away is dropped at once, and its place soon after.
pub struct Append {
    publish: PublishFn,
    slots: Mutex<HashMap<SlotKey, Line>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SlotKey {
    swarm: SwarmId,
    durable: bool,
}

impl SlotKey {
    fn gate(&self) -> Gate {
        if self.durable { Gate::Durable } else { Gate::Appended }
    }
}

/// Calls in the order in which they came.
#[derive(Default)]
struct Line {
    queued: VecDeque<Queued>,
    /// At this length the places of withdrawn calls are given up.
    sweep_at: usize,
}

struct Queued {
    /// Who takes it first decides: the group sends the call, or its caller withdraws it.
    call: Arc<Mutex<Option<Call>>>,
    bytes: usize,
    done: oneshot::Sender<Done>,
}

enum Turn {
    Lead(Call),
    Wait(Pending),
}

/// A call that waits for its group. Dropping it withdraws what was not sent yet.
pub struct Pending {
    call: Arc<Mutex<Option<Call>>>,
    done: oneshot::Receiver<Done>,
}

impl Append {
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>) -> Arc<Self> {
        Self::over(Box::new(move |publish| {
            let backend = Arc::clone(&backend);
            Box::pin(async move { backend.publish(publish).await })
        }))
    }

    fn over(publish: PublishFn) -> Arc<Self> {
        Arc::new(Self {
            publish,
            slots: Mutex::default(),
        })
    }

    /// Appends one call. The first of an idle slot goes out in the caller's own task, which saves the hop.
    ///
    /// # Errors
    /// [`Failed`]; on [`Failed::Expired`] with `sent` false it is certainly not appended.
    pub async fn call(self: &Arc<Self>, swarm: &SwarmId, gate: Gate, call: Call, until: Instant) -> Done {
        let key = SlotKey {
            swarm: swarm.clone(),
            durable: gate == Gate::Durable,
        };
        let turn = match self.lock().entry(key.clone()) {
            Entry::Vacant(idle) => {
                idle.insert(Line::default());
                Turn::Lead(call)
            }
            Entry::Occupied(mut busy) => Turn::Wait(busy.get_mut().push(call)),
        };
        let call = match turn {
            Turn::Wait(pending) => return pending.wait(until).await,
            Turn::Lead(call) => call,
        };
        let _lead = Lead::new(self, key);
        let publish = Publish {
            swarm: swarm.clone(),
            calls: vec![call],
            gate,
        };
        match tokio::time::timeout_at(until, (self.publish)(publish)).await {
            Ok(answer) => results(answer, 1).pop().expect("one result for one call"),
            Err(_) => Err(Failed::Expired { sent: true }),
        }
    }

    /// Queues one call and returns at once: calls queued by one caller keep their order. A task of its own sends them, so
    /// progress does not depend on the caller's being polled.
    pub fn queue(self: &Arc<Self>, swarm: &SwarmId, gate: Gate, call: Call) -> Pending {
        let key = SlotKey {
            swarm: swarm.clone(),
            durable: gate == Gate::Durable,
        };
        let mut slots = self.lock();
        match slots.entry(key.clone()) {
            Entry::Occupied(mut busy) => busy.get_mut().push(call),
            Entry::Vacant(idle) => {
                let pending = idle.insert(Line::default()).push(call);
                drop(slots);
                // Its drop finds the queue filled and starts the task.
                drop(Lead::new(self, key));
                pending
            }
        }
    }

    /// Slots with an append under way.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.lock().len()
    }

    /// The next group of a slot; none ends the slot.
    fn next_group(&self, key: &SlotKey) -> Option<Vec<(Call, oneshot::Sender<Done>)>> {
        let mut slots = self.lock();
        let group = slots.get_mut(key)?.group();
        if group.is_empty() {
            slots.remove(key);
            return None;
        }
        Some(group)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SlotKey, Line>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn push(&mut self, call: Call) -> Pending {
        if self.queued.len() >= self.sweep_at {
            self.queued.retain(|q| locked(&q.call).is_some());
            self.sweep_at = (2 * self.queued.len()).max(SWEEP_MIN);
        }
        let (tx, rx) = oneshot::channel();
        let bytes = weight(&call);
        let call = Arc::new(Mutex::new(Some(call)));
        self.queued.push_back(Queued {
            call: Arc::clone(&call),
            bytes,
            done: tx,
        });
        Pending { call, done: rx }
    }

    /// As many of the first calls as one append may hold, at least one if there is any.
    fn group(&mut self) -> Vec<(Call, oneshot::Sender<Done>)> {
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.queued.front() {
            let over = group.len() >= APPEND_GROUP_CALLS_MAX || bytes + next.bytes > APPEND_GROUP_BYTES_MAX;
            if over && !group.is_empty() {
                break;
            }
            let next = self.queued.pop_front().expect("there is a front");
            let taken = locked(&next.call).take();
            if let Some(call) = taken {
                bytes += next.bytes;
                group.push((call, next.done));
            }
        }
        group
    }
}

/// Below it withdrawn places are not worth a sweep.
const SWEEP_MIN: usize = 64;

fn locked(call: &Mutex<Option<Call>>) -> MutexGuard<'_, Option<Call>> {
    call.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Payload and header bytes, over all destinations.
fn weight(call: &Call) -> usize {
    call.to
        .iter()
        .flat_map(|(_, messages)| messages)
        .map(|m| m.payload.len() + m.headers.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>())
        .sum()
}

/// The backend's answer for each of `calls` calls.
fn results(answer: Result<Vec<CallResult>, Error>, calls: usize) -> Vec<Done> {
    match answer {
        Ok(results) if results.len() == calls => results.into_iter().map(|r| r.map_err(Failed::Refused)).collect(),
        Ok(results) => {
            let error = Error::Unknown(format!("{} answers for {calls} calls", results.len()));
            vec![Err(Failed::Backend(error)); calls]
        }
        Err(error) => vec![Err(Failed::Backend(error)); calls],
    }
}

/// Who sends a slot's appends. Dropped, also by cancellation or panic, it hands over to a task if calls wait.
struct Lead {
    of: Arc<Append>,
    key: SlotKey,
    ended: bool,
}

impl Lead {
    fn new(of: &Arc<Append>, key: SlotKey) -> Self {
        Self {
            of: Arc::clone(of),
            key,
            ended: false,
        }
    }

    async fn drain(mut self) {
        while let Some(group) = self.of.next_group(&self.key) {
            let (calls, waiting): (Vec<_>, Vec<_>) = group.into_iter().unzip();
            let publish = Publish {
                swarm: self.key.swarm.clone(),
                calls,
                gate: self.key.gate(),
            };
            let answer = (self.of.publish)(publish).await;
            let results = results(answer, waiting.len());
            for (done, result) in waiting.into_iter().zip(results) {
                // A caller that went away is owed nothing.
                let _ = done.send(result);
            }
        }
        self.ended = true;
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        {
            let mut slots = self.of.lock();
            if slots.get(&self.key).is_none_or(|line| line.queued.is_empty()) {
                slots.remove(&self.key);
                return;
            }
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(Self::new(&self.of, self.key.clone()).drain());
            }
            // The process ends; the callers' channels close.
            Err(_) => {
                self.of.lock().remove(&self.key);
            }
        }
    }
}

impl Pending {
    /// # Errors
    /// As [`Append::call`].
    pub async fn wait(mut self, until: Instant) -> Done {
        match tokio::time::timeout_at(until, &mut self.done).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(Failed::Backend(Error::Unknown("the node is stopping".into()))),
            Err(_) => Err(Failed::Expired {
                sent: locked(&self.call).take().is_none(),
            }),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        locked(&self.call).take();
    }
}

#[cfg(test)]
mod tests;
