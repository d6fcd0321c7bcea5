//! Many calls in one step of the backend: what arrives while the previous append of a slot is under way goes together.
//!
//! No timer takes part. A lone call goes out at once; under load the time of one append gathers the next group, so groups grow
//! exactly as far as the disk is slow.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Waiting calls by slot and gate; a slot is listed only while an append of it is under way. Bounded by admission.
pub struct Append {
    backend: Arc<dyn Backend>,
    slots: Mutex<HashMap<SlotKey, VecDeque<Queued>>>,
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

struct Queued {
    call: Call,
    bytes: usize,
    /// Who sets it first decides: the group takes the call, or its caller withdraws it.
    claimed: Arc<AtomicBool>,
    done: oneshot::Sender<Done>,
}

enum Turn {
    Lead(Call),
    Wait(Pending),
}

/// A call that waits for its group. Dropping it withdraws what was not sent yet.
pub struct Pending {
    claimed: Arc<AtomicBool>,
    done: oneshot::Receiver<Done>,
}

impl Append {
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self {
            backend,
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
                idle.insert(VecDeque::new());
                Turn::Lead(call)
            }
            Entry::Occupied(mut busy) => Turn::Wait(enqueue(busy.get_mut(), call)),
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
        match tokio::time::timeout_at(until, self.backend.publish(publish)).await {
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
            Entry::Occupied(mut busy) => enqueue(busy.get_mut(), call),
            Entry::Vacant(idle) => {
                let pending = enqueue(idle.insert(VecDeque::new()), call);
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
    fn next_group(&self, key: &SlotKey) -> Option<Vec<Queued>> {
        let mut slots = self.lock();
        let queue = slots.get_mut(key)?;
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.front() {
            if group.len() >= APPEND_GROUP_CALLS_MAX
                || (bytes + next.bytes > APPEND_GROUP_BYTES_MAX && !group.is_empty())
            {
                break;
            }
            let next = queue.pop_front().expect("there is a front");
            if !next.claimed.swap(true, Ordering::AcqRel) {
                bytes += next.bytes;
                group.push(next);
            }
        }
        if group.is_empty() {
            slots.remove(key);
            return None;
        }
        Some(group)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SlotKey, VecDeque<Queued>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn enqueue(queue: &mut VecDeque<Queued>, call: Call) -> Pending {
    let (tx, rx) = oneshot::channel();
    let claimed = Arc::new(AtomicBool::new(false));
    queue.push_back(Queued {
        bytes: weight(&call),
        call,
        claimed: Arc::clone(&claimed),
        done: tx,
    });
    Pending { claimed, done: rx }
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
            let (calls, waiting): (Vec<_>, Vec<_>) = group.into_iter().map(|q| (q.call, q.done)).unzip();
            let publish = Publish {
                swarm: self.key.swarm.clone(),
                calls,
                gate: self.key.gate(),
            };
            let answer = self.of.backend.publish(publish).await;
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
            if slots.get(&self.key).is_none_or(VecDeque::is_empty) {
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
                sent: self.claimed.swap(true, Ordering::AcqRel),
            }),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.claimed.store(true, Ordering::Release);
    }
}
