//! The durable backend against the reference: one random sequence of operations, the same answers.

use std::sync::Arc;

use bytes::Bytes;
use skep_model::env::{Entropy, SeededEntropy};
use skep_model::id::{CommitId, Digest, RequestId, Token, Uid};
use skep_model::limits::LEASE_TTL_MS;
use skep_model::message::{Reply, ReplyResult, Request};
use skep_topic::conformance::actors::{World, finished, output};
use skep_topic::conformance::{Harness, Stop};
use skep_topic::{
    Call, Commit, Fetched, Gate, Lease, Once, Parked, Publish, Retry, Span, StatePut, TopicSpec, Want, Work,
};

use crate::harness::{NOW, OnDisk, OnMemory};

/// The two stores and one owner's view, which must be the same for both.
pub struct Pair {
    memory: World,
    disk: World,
    /// Leases on the second store outlive a kill: time takes them, not the restart.
    keeps_leases: bool,
    chance: SeededEntropy,
    topics: [Arc<TopicSpec>; 2],
    views: Vec<View>,
    sent: Vec<(usize, [Arc<Commit>; 2])>,
}

#[derive(Clone)]
struct View {
    lease: Lease,
    claim: skep_topic::Claim,
}

/// Frame uids are drawn by each store, and a frame's proof is its own business.
fn comparable(mut fetched: Fetched) -> Fetched {
    for unread in &mut fetched.messages {
        unread.entry_uid = Uid::default();
    }
    fetched
}

macro_rules! both {
    ($pair:ident, $backend:ident => $call:expr) => {{
        let on_memory = {
            let $backend = $pair.memory.backend();
            $call.await
        };
        let on_disk = {
            let $backend = $pair.disk.backend();
            $call.await
        };
        assert_eq!(on_disk, on_memory, "line {}", line!());
        on_disk
    }};
}

impl Pair {
    pub fn new(seed: u64, disk: Box<dyn Harness>, keeps_leases: bool) -> Self {
        let memory = World::new(Box::new(OnMemory::new(1)));
        let topics = [memory.bounded("a", 2, 40, 6), memory.bounded("b", 1, 30, 3)];
        Self {
            disk: World::new(disk),
            keeps_leases,
            memory,
            chance: SeededEntropy::new(seed),
            topics,
            views: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn below(&self, n: usize) -> usize {
        usize::try_from(self.chance.next_u64() % n as u64).unwrap()
    }

    fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn uid(&self) -> Uid {
        Uid(self.chance.bits128())
    }

    fn key(&self) -> String {
        format!("k{}", self.below(4))
    }

    fn message(&self) -> skep_model::message::Message {
        let mut message = self.memory.message(None, &"x".repeat(self.below(30)));
        message.uid = self.uid();
        if !self.one_in(3) {
            message.key = Some(self.key());
        }
        if self.one_in(4) {
            message.request = Some(Request {
                id: RequestId(self.chance.bits128()),
                deadline_ms: 1,
                keyed: true,
                share: 0,
                streams: false,
            });
        }
        message
    }

    fn once(&self) -> Once {
        let expires_ms = NOW + self.below(20_000) as u64;
        match self.below(4) {
            0 => Once::Key {
                subject: "door".parse().unwrap(),
                key: format!("i{}", self.below(6)),
                fingerprint: Digest([u8::try_from(self.below(2)).unwrap(); 32]),
                expires_ms,
            },
            1 => Once::Session {
                id: Uid([u8::try_from(self.below(2)).unwrap(); 16]),
                first: self.below(12) as u64,
                again_max: [u64::MAX, u64::MAX, 0, 1][self.below(4)],
                expires_ms,
            },
            _ => Once::No,
        }
    }

    async fn publish(&mut self) {
        let calls: Vec<Call> = (0..1 + self.below(3))
            .map(|_| {
                let count = self.below(4);
                let first = self.below(2);
                let to = self.topics[first..=self.below(2).max(first)].iter();
                let to = to.map(|spec| (Arc::clone(spec), (0..count).map(|_| self.message()).collect()));
                Call {
                    to: to.collect(),
                    once: self.once(),
                }
            })
            .collect();
        let gate = if self.one_in(2) { Gate::Durable } else { Gate::Appended };
        let swarm = self.memory.swarm.clone();
        both!(self, backend => backend.publish(Publish { swarm: swarm.clone(), calls: calls.clone(), gate })).unwrap();
    }

    async fn claim(&mut self) {
        let topic = Arc::clone(&self.topics[self.below(2)]);
        let index = u16::try_from(self.below(4)).unwrap();
        let lease = Lease {
            partition: topic.id.partition(index),
            token: Token(self.chance.bits128()),
        };
        let claim = both!(self, backend => backend.claim(&topic, index, lease.token, 900));
        if let Ok(Ok(claim)) = claim {
            self.views.push(View { lease, claim });
        }
    }

    async fn work(&mut self) {
        if self.views.is_empty() {
            return;
        }
        let which = self.below(self.views.len());
        let view = self.views[which].clone();
        let want = Want {
            from: view.claim.cursor,
            base: view.claim.last,
            messages: 1 + u32::try_from(self.below(6)).unwrap(),
            bytes: 1 + self.below(200) as u64,
            state: true,
            state_bytes: self.below(30) as u64,
            timers_max: u64::MAX,
        };
        let fetch = async |world: &World| world.backend().fetch(&view.lease, want).await;
        let (on_memory, on_disk) = (fetch(&self.memory).await, fetch(&self.disk).await);
        assert_eq!(on_disk.clone().map(comparable), on_memory.clone().map(comparable));
        let (Ok(on_memory), Ok(on_disk)) = (on_memory, on_disk) else {
            self.views.swap_remove(which);
            return;
        };
        let commit = self.process(&view, &on_memory);
        let mut twin = commit.clone();
        if let Some(span) = &mut twin.span {
            let last = on_disk.messages.iter().find(|u| u.after == span.to).unwrap();
            span.last_entry_uid = last.entry_uid;
        }
        self.send(which, [commit.into(), twin.into()]).await;
    }

    async fn send(&mut self, which: usize, commits: [Arc<Commit>; 2]) {
        let Some(view) = self.views.get(which).cloned() else {
            return;
        };
        let memory = self.memory.backend().commit(&view.lease, commits[0].clone()).await;
        let disk = self.disk.backend().commit(&view.lease, commits[1].clone()).await;
        assert_eq!(disk, memory);
        if memory == Ok(skep_topic::Committed::Ok) {
            let claim = &mut self.views[which].claim;
            claim.seq += 1;
            claim.last = commits[0].id;
            claim.cursor = commits[0].span.map_or(claim.cursor, |s| s.to);
        }
        self.sent.push((which, commits));
        if self.sent.len() > 8 {
            self.sent.remove(0);
        }
    }

    fn process(&self, view: &View, fetched: &Fetched) -> Commit {
        let at = view.claim.clone();
        let topic = view.lease.partition.topic();
        let own = self.topics.iter().find(|spec| spec.id == *topic).expect("one of two");
        let own = Arc::clone(own);
        let mut commit = Commit::empty(own, CommitId(self.chance.bits128()), at.seq, at.last);
        for unread in &fetched.messages[..self.below(fetched.messages.len() + 1)] {
            commit.span = Some(Span {
                from: at.cursor,
                to: unread.after,
                last_entry: unread.entry,
                last_entry_uid: unread.entry_uid,
            });
            let message = &unread.message;
            let lane = message.key.clone().unwrap_or_else(|| message.uid.to_string());
            let held = fetched.held.contains(&lane) || commit.park.iter().any(|p| p.lane == lane);
            if held || self.one_in(4) {
                commit.park.push(Parked {
                    uid: self.uid(),
                    lane,
                    work: Work::Message(message.clone()),
                    attempts: u32::from(!held),
                    due_ms: fetched.now_ms + self.below(800) as u64,
                    cause: "c".to_owned(),
                });
            } else if self.one_in(6) {
                commit.dead.push(self.letter(Work::Message(message.clone())));
            } else if topic.stage().as_str() == "a" {
                commit.outputs.push(output(&self.topics[1], self.message()));
            }
            if let Some(request) = &message.request {
                commit.replies.push(Reply {
                    request: request.id,
                    result: ReplyResult::Response(message.payload.clone()),
                    hops: Vec::new(),
                });
            }
        }
        for parked in &fetched.retries {
            match self.below(3) {
                0 => {}
                1 => commit.retries.push(finished(parked)),
                _ => commit.retries.push(Retry {
                    uid: parked.uid,
                    lane: parked.lane.clone(),
                    again: Some(Parked {
                        uid: self.uid(),
                        attempts: parked.attempts + 1,
                        due_ms: fetched.now_ms + self.below(800) as u64,
                        ..parked.clone()
                    }),
                }),
            }
        }
        commit.timers = fetched.timers[..self.below(fetched.timers.len() + 1)].to_vec();
        for _ in 0..self.below(3) {
            let mut timer = self.memory.timer(&self.key(), &format!("t{}", self.below(3)), 0);
            timer.uid = self.uid();
            timer.at_ms = (!self.one_in(4)).then(|| fetched.now_ms + self.below(900) as u64);
            commit.set_timers.push(timer);
        }
        for _ in 0..self.below(3) {
            commit.state.push(StatePut {
                key: self.key(),
                name: format!("n{}", self.below(3)),
                value: (!self.one_in(4)).then(|| Bytes::from(vec![7; self.below(9)])),
            });
        }
        // Sometimes wrong in one way.
        match self.below(16) {
            0 => commit.seq += 1,
            1 => commit.base = CommitId(self.chance.bits128()),
            2 => {
                if let Some(timer) = commit.timers.first_mut() {
                    timer.uid = self.uid();
                }
            }
            3 => {
                if let Some(retry) = commit.retries.first_mut() {
                    retry.uid = self.uid();
                }
            }
            _ => {}
        }
        commit
    }

    fn letter(&self, work: Work) -> skep_topic::DeadLetter {
        self.memory.letter(work)
    }

    /// Another number of partitions, or a step of an owner at its seal.
    async fn rescale(&mut self) {
        let id = CommitId(self.chance.bits128());
        let which = self.below(2);
        if self.one_in(3) {
            let mut spec = TopicSpec::clone(&self.topics[which]);
            spec.partitions = 1 + u16::try_from(self.below(4)).unwrap();
            both!(self, backend => backend.rescale(&spec, id)).unwrap();
        } else if !self.views.is_empty() {
            let which = self.below(self.views.len());
            let view = self.views[which].clone();
            let (lease, base) = (&view.lease, view.claim.last);
            if both!(self, backend => backend.hand_over(lease, base, id)).is_ok() {
                self.views[which].claim.last = id;
            }
        }
        let topic = self.topics[which].id.clone();
        both!(self, backend => backend.layout(&topic)).unwrap();
    }

    async fn look(&mut self) {
        let swarm = self.memory.swarm.clone();
        both!(self, backend => backend.status(&swarm)).unwrap();
        let letters = both!(self, backend => backend.dead_letters(&swarm, None, 0, 100)).unwrap();
        let (topic, key) = (self.topics[self.below(2)].id.clone(), self.key());
        both!(self, backend => backend.state(&topic, &key)).unwrap();
        both!(self, backend => backend.state_size(&topic)).unwrap();
        if self.one_in(3)
            && !letters.is_empty()
            && let letter = &letters[self.below(letters.len())]
            && let Work::Message(message) = &letter.letter.work
        {
            let which = self.below(2);
            let call = Call {
                to: vec![(Arc::clone(&self.topics[which]), vec![message.clone()])],
                once: Once::Letter {
                    id: letter.id,
                    timer: None,
                },
            };
            let calls = vec![call.clone(), call];
            let gate = Gate::Durable;
            both!(self, backend => backend.publish(Publish { swarm: swarm.clone(), calls: calls.clone(), gate }))
                .unwrap();
        } else if self.one_in(3) && !letters.is_empty() {
            let id = letters[self.below(letters.len())].id;
            both!(self, backend => backend.discard_dead_letters(&swarm, &[id, 7_777])).unwrap();
        }
    }

    async fn catalog(&mut self) {
        let key = format!("c/{}", self.below(3));
        let expect = self.below(3) as u64;
        if self.one_in(4) {
            both!(self, backend => backend.catalog_delete(&key, expect))
                .unwrap()
                .ok();
        } else {
            both!(self, backend => backend.catalog_put(&key, expect, Bytes::from_static(b"v")))
                .unwrap()
                .ok();
        }
        both!(self, backend => backend.catalog_list("c/")).unwrap();
    }

    pub async fn step(&mut self) {
        match self.below(20) {
            0..5 => self.publish().await,
            5..7 => self.claim().await,
            7..13 => self.work().await,
            13 if !self.sent.is_empty() => {
                let (which, commits) = self.sent[self.below(self.sent.len())].clone();
                self.send(which, commits).await;
            }
            14 => {
                let ms = self.below(900) as u64;
                self.memory.harness.advance(ms).await;
                self.disk.harness.advance(ms).await;
            }
            15 if self.one_in(3) => {
                self.memory.harness.advance(LEASE_TTL_MS).await;
                self.disk.harness.advance(LEASE_TTL_MS).await;
            }
            16 if self.one_in(2) => self.rescale().await,
            16 => self.catalog().await,
            17 if !self.views.is_empty() => {
                let lease = self.views[self.below(self.views.len())].lease.clone();
                if self.one_in(2) {
                    both!(self, backend => backend.renew(&lease, 700)).ok();
                } else {
                    both!(self, backend => backend.release(&lease)).unwrap();
                }
            }
            18 if self.one_in(6) => {
                self.disk.backend().flushed().await.unwrap();
                self.disk.harness.reopen(Stop::Kill).await;
                if self.keeps_leases {
                    self.memory.harness.advance(LEASE_TTL_MS).await;
                } else {
                    self.memory.harness.reopen(Stop::Kill).await;
                }
                self.views.clear();
                self.sent.clear();
            }
            _ => self.look().await,
        }
    }
}

#[tokio::test]
async fn embedded_answers_as_memory_does() {
    for seed in 0..12 {
        let mut pair = Pair::new(seed, Box::new(OnDisk::new(2)), false);
        for _ in 0..400 {
            pair.step().await;
        }
    }
}
