//! Appends from doors. Messages are encoded by the caller; the writer decides, joins and inserts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_model::id::Uid;
use skep_model::limits;
use skep_model::message::Message;
use skep_model::scope::{SwarmId, TopicId};

use super::letter;
use super::store::{Fault, Store};
use super::window::{self, Key};
use super::writer::Answer;
use crate::guard::Guard;
use crate::record::{FrameBuilder, Run};
use crate::{
    Accepted, CallResult, Error, Gate, Once, Publish, Refused, TimerDue, TopicSpec, failpoint, key_group,
    partition_of_group,
};

/// Messages for one topic, encoded, in order.
#[derive(Debug)]
pub(super) struct Bundle {
    pub to: Arc<TopicSpec>,
    run: Run,
    /// The key group of each message. `None`: wherever the inbox is shortest.
    groups: Vec<Option<u16>>,
}

impl Bundle {
    pub fn new(to: Arc<TopicSpec>) -> Self {
        Self {
            to,
            run: Run::default(),
            groups: Vec::new(),
        }
    }

    pub fn push(&mut self, message: &Message) {
        self.groups.push(message.key.as_deref().map(key_group));
        self.run.push(message);
    }
}

#[derive(Debug)]
struct PreparedCall {
    to: Vec<Bundle>,
    messages: u64,
    once: PreparedOnce,
}

#[derive(Debug)]
enum PreparedOnce {
    No,
    Key(Key),
    Session {
        id: Uid,
        first: u64,
        again_max: u64,
        expires_ms: u64,
    },
    Letter {
        id: u64,
        timer: Option<TimerDue>,
    },
}

/// A publish, encoded.
#[derive(Debug)]
pub(super) struct Prepared {
    swarm: SwarmId,
    calls: Vec<PreparedCall>,
    gate: Gate,
}

impl From<Publish> for Prepared {
    fn from(publish: Publish) -> Self {
        let calls = publish.calls.into_iter().map(|call| {
            let request = call
                .to
                .iter()
                .flat_map(|(_, messages)| messages)
                .find_map(|m| m.request)
                .map(|r| r.id);
            let mut longest = 0;
            let mut bundles = Vec::with_capacity(call.to.len());
            for (spec, messages) in call.to {
                longest = longest.max(messages.len() as u64);
                let mut bundle = Bundle::new(spec);
                messages.iter().for_each(|message| bundle.push(message));
                bundles.push(bundle);
            }
            let once = match call.once {
                Once::No => PreparedOnce::No,
                Once::Key {
                    subject,
                    key,
                    fingerprint,
                    expires_ms,
                } => PreparedOnce::Key(Key {
                    subject,
                    key,
                    fingerprint,
                    request,
                    expires_ms,
                }),
                Once::Session {
                    id,
                    first,
                    again_max,
                    expires_ms,
                } => PreparedOnce::Session {
                    id,
                    first,
                    again_max,
                    expires_ms,
                },
                Once::Letter { id, timer } => PreparedOnce::Letter { id, timer },
            };
            PreparedCall {
                to: bundles,
                messages: longest,
                once,
            }
        });
        Self {
            swarm: publish.swarm,
            calls: calls.collect(),
            gate: publish.gate,
        }
    }
}

/// Frames being filled, one a partition touched.
#[derive(Debug, Default)]
pub(super) struct Filling {
    frames: Vec<(TopicId, u16, FrameBuilder)>,
    /// Where a topic's messages without key go in this operation: together, so that they share a frame.
    loose: Vec<(TopicId, u16)>,
}

impl Filling {
    /// Adds all but the first `skip` messages of a bundle. The topic's row must exist.
    pub fn add(&mut self, store: &mut Store, bundle: &Bundle, skip: u64) -> Result<(), Fault> {
        let id = &bundle.to.id;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(bundle.groups.len());
        let partitions = store.topics[id].layout.partitions;
        // Neighbours mostly share their place.
        let mut last: Option<(Option<u16>, usize)> = None;
        for (group, (encoded, size)) in bundle.groups[skip..].iter().zip(bundle.run.pieces(skip)) {
            let place = group.map(|group| partition_of_group(group, partitions));
            let at = match last {
                Some((former, at)) if former == place => at,
                _ => self.frame_at(store, bundle, place),
            };
            last = Some((place, at));
            let (_, index, frame) = &mut self.frames[at];
            let many = frame.messages() as usize >= limits::FRAME_MESSAGES_MAX;
            if many || (frame.messages() > 0 && frame.size() + size > limits::FRAME_BYTES_MAX as u64) {
                let (index, full) = (*index, std::mem::take(frame));
                store.append(id, index, full)?;
            }
            self.frames[at].2.push(encoded, size);
        }
        Ok(())
    }

    /// The frame for a place, begun if there is none.
    fn frame_at(&mut self, store: &Store, bundle: &Bundle, place: Option<u16>) -> usize {
        let id = &bundle.to.id;
        let index = match place {
            Some(index) => index,
            None => match self.loose.iter().find(|(t, _)| t == id) {
                Some((_, index)) => *index,
                None => {
                    let index = store.topics[id].shortest();
                    self.loose.push((id.clone(), index));
                    index
                }
            },
        };
        match self.frames.iter().position(|(t, p, _)| *p == index && t == id) {
            Some(at) => at,
            None => {
                self.frames.push((id.clone(), index, FrameBuilder::default()));
                self.frames.len() - 1
            }
        }
    }

    pub fn finish(self, store: &mut Store) -> Result<(), Fault> {
        for (id, index, frame) in self.frames {
            if frame.messages() > 0 {
                store.append(&id, index, frame)?;
            }
        }
        Ok(())
    }

    /// What is in frames that are not appended yet, for the bounds.
    pub fn pending(&self, id: &TopicId) -> (u64, u64) {
        let of_topic = self.frames.iter().filter(|(t, ..)| t == id);
        of_topic.fold((0, 0), |(n, bytes), (_, _, f)| {
            (n + u64::from(f.messages()), bytes + f.size())
        })
    }
}

pub(super) fn room_on_disk(store: &mut Store) -> Result<Answer<()>, Fault> {
    if store.shared.disk_full.load(Ordering::Relaxed) {
        let dir = store.dir.display();
        return Err(Error::Unavailable(format!(
            "the disk under {dir} is full: free some space; queued work keeps draining"
        ))
        .into());
    }
    Answer::now(())
}

pub(super) fn publish(store: &mut Store, publish: &Prepared) -> Result<Answer<Vec<CallResult>>, Fault> {
    let mut filling = Filling::default();
    let mut results = Vec::with_capacity(publish.calls.len());
    // Whoever is told of an earlier call must not be told of one that a crash may take back.
    let mut gated = publish.gate == Gate::Durable;
    if store.gone.contains(&publish.swarm) {
        results.resize(publish.calls.len(), Err(Refused::Gone));
        return Answer::now(results);
    }
    store.adopt(&publish.swarm)?;
    for call in &publish.calls {
        let result = one(store, &mut filling, &publish.swarm, call)?;
        gated |= matches!(result, Ok(Accepted::Duplicate { .. }));
        if result.is_err() {
            store.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
        results.push(result);
    }
    filling.finish(store)?;
    failpoint::hit("inside-publish");
    store.shared.publishes.fetch_add(1, Ordering::Relaxed);
    Ok(Answer { value: results, gated })
}

fn one(store: &mut Store, filling: &mut Filling, swarm: &SwarmId, call: &PreparedCall) -> Result<CallResult, Fault> {
    let dedup = store.guards.on(Guard::Dedup);
    let (mut skip, mut mark) = (0, 0);
    match &call.once {
        PreparedOnce::No => {}
        PreparedOnce::Key(key) if dedup => {
            if let Some(known) = window::look(store, swarm, key)? {
                return Ok(known);
            }
        }
        PreparedOnce::Session {
            id, first, again_max, ..
        } if dedup => {
            let high = window::high(store, swarm, *id)?;
            // Numbers count from 1, so that a mark of 0 says "nothing yet".
            if *first == 0 || *first > high + 1 {
                return Ok(Err(Refused::SessionGap { high, first: *first }));
            }
            skip = (high + 1 - first).min(call.messages);
            if skip > *again_max {
                return Ok(Err(Refused::SessionAhead { high, first: *first }));
            }
            mark = high.max(first + call.messages - 1);
        }
        PreparedOnce::Letter { id, timer } => {
            if let Err(refused) = letter::there(store, &call.to[0].to, *id, timer.as_ref())? {
                return Ok(Err(refused));
            }
        }
        PreparedOnce::Key(_) | PreparedOnce::Session { .. } => {}
    }
    if skip < call.messages {
        for bundle in &call.to {
            if bundle.groups.is_empty() {
                continue;
            }
            let id = &bundle.to.id;
            if store.is_removed(&bundle.to) {
                return Ok(Err(Refused::StageGone {
                    stage: id.stage().clone(),
                }));
            }
            if let Some(full) = full_for_door(store, filling, &bundle.to) {
                store.topics.get_mut(id).expect("it is full").refused_inbox = Some(full);
                return Ok(Err(Refused::Full {
                    stage: id.stage().clone(),
                }));
            }
        }
        for bundle in &call.to {
            store.topic(&bundle.to)?;
            filling.add(store, bundle, skip)?;
        }
    }
    match &call.once {
        PreparedOnce::Key(key) if dedup => window::remember(store, swarm, key)?,
        PreparedOnce::Session { id, expires_ms, .. } if dedup => {
            window::set_high(store, swarm, *id, mark, *expires_ms)?;
        }
        PreparedOnce::Letter { id, timer } => letter::back(store, &call.to[0].to, *id, timer.as_ref())?,
        _ => {}
    }
    Ok(Ok(Accepted::Appended { skipped: skip }))
}

/// The bound that refuses a door, counting what this operation is about to append.
fn full_for_door(store: &Store, filling: &Filling, spec: &TopicSpec) -> Option<skep_model::swarm::Bound> {
    let topic = store.topics.get(&spec.id)?;
    let (messages, bytes) = filling.pending(&spec.id);
    let reached = |have: u64, max: u64| have * 100 >= max * limits::INBOX_GATEWAY_PERCENT;
    let full = reached(topic.unread + topic.parked + messages, spec.inbox.messages)
        || reached(topic.unread_bytes + topic.parked_bytes + bytes, spec.inbox.bytes);
    full.then_some(spec.inbox)
}
