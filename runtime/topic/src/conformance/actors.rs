//! Publishers and owners, as a suite needs them.

use std::sync::Arc;

use bytes::Bytes;
use skep_model::env::SeededEntropy;
use skep_model::id::{CommitId, Digest, Incarnation, RequestId, Token, Uid};
use skep_model::message::{Message, Request};
use skep_model::name::{StageName, TenantId};
use skep_model::scope::{Scope, SwarmId};
use skep_model::swarm::Bound;

use super::Harness;
use crate::{
    Backend, Call, CallResult, Claim, Commit, Committed, Cursor, DeadLetter, Error, Fetched, Gate, Held, Lease, Once,
    Output, Parked, Publish, Retry, Span, StatePut, TimerDue, TimerSet, TopicSpec, Want, Work,
};

/// A store with one Swarm on it.
pub struct World {
    pub harness: Box<dyn Harness>,
    pub swarm: SwarmId,
    pub entropy: SeededEntropy,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("swarm", &self.swarm)
            .finish_non_exhaustive()
    }
}

/// A name that is known to be one.
#[must_use]
pub fn stage(name: &str) -> StageName {
    name.parse().expect("a name")
}

/// A result of the backend, with its error as a reason.
pub trait Reason<T> {
    /// # Errors
    /// The error, in words.
    fn why(self) -> Result<T, String>;
}

impl<T, E: std::fmt::Debug> Reason<T> for Result<T, E> {
    fn why(self) -> Result<T, String> {
        self.map_err(|e| format!("unexpected {e:?}"))
    }
}

impl World {
    #[must_use]
    pub fn new(harness: Box<dyn Harness>) -> Self {
        let scope = Scope::of(TenantId::default_tenant());
        Self {
            harness,
            swarm: scope.swarm(&"suite".parse().expect("a name"), Incarnation([7; 16])),
            // Another than a store is made with, or their ids meet.
            entropy: SeededEntropy::new(0xbee),
        }
    }

    #[must_use]
    pub fn backend(&self) -> Arc<dyn Backend> {
        self.harness.backend()
    }

    #[must_use]
    pub fn spec(&self, name: &str, partitions: u16) -> Arc<TopicSpec> {
        self.bounded(name, partitions, 1_000, 100)
    }

    #[must_use]
    pub fn bounded(&self, name: &str, partitions: u16, inbox: u64, dead: u64) -> Arc<TopicSpec> {
        let bytes = 1 << 20;
        Arc::new(TopicSpec {
            id: self.swarm.topic(&stage(name)),
            born: 1,
            partitions,
            inbox: Bound { messages: inbox, bytes },
            dead_letters: Bound { messages: dead, bytes },
        })
    }

    /// The same stage, removed and made anew.
    #[must_use]
    pub fn reborn(&self, spec: &Arc<TopicSpec>, born: u64) -> Arc<TopicSpec> {
        let mut spec = TopicSpec::clone(spec);
        spec.born = born;
        Arc::new(spec)
    }

    #[must_use]
    pub fn uid(&self) -> Uid {
        Uid::random(&self.entropy)
    }

    #[must_use]
    pub fn message(&self, key: Option<&str>, payload: &str) -> Message {
        Message {
            uid: self.uid(),
            key: key.map(str::to_owned),
            headers: Vec::new(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            accepted_ms: 1,
            request: None,
            trace: None,
            lineage: None,
            hops: Vec::new(),
        }
    }

    #[must_use]
    pub fn request(&self, payload: &str, keyed: bool) -> (RequestId, Message) {
        let id = RequestId::random(&self.entropy);
        let mut message = self.message(None, payload);
        message.request = Some(Request {
            id,
            deadline_ms: u64::MAX / 4,
            keyed,
            share: 0,
            streams: false,
        });
        (id, message)
    }

    /// # Errors
    /// As [`Backend::publish`], in words.
    pub async fn calls(&self, calls: Vec<Call>) -> Result<Vec<CallResult>, String> {
        let publish = Publish {
            swarm: self.swarm.clone(),
            calls,
            gate: Gate::Durable,
        };
        self.backend().publish(publish).await.why()
    }

    /// # Errors
    /// As [`Backend::publish`], in words.
    pub async fn call(&self, to: &Arc<TopicSpec>, messages: Vec<Message>, once: Once) -> Result<CallResult, String> {
        let to = vec![(Arc::clone(to), messages)];
        let results = self.calls(vec![Call { to, once }]).await?;
        results.into_iter().next().ok_or("no result for a call".to_owned())
    }

    /// Publishes one call that must be taken.
    ///
    /// # Errors
    /// If it is not.
    pub async fn put(&self, to: &Arc<TopicSpec>, messages: Vec<Message>) -> Result<(), String> {
        self.call(to, messages, Once::No).await?.map(|_| ()).why()
    }

    /// Publishes words under one key.
    ///
    /// # Errors
    /// If they are not taken.
    pub async fn words(&self, to: &Arc<TopicSpec>, key: Option<&str>, words: &[&str]) -> Result<(), String> {
        let messages = words.iter().map(|w| self.message(key, w)).collect();
        self.put(to, messages).await
    }

    /// # Errors
    /// If the partition is held, or the backend fails.
    pub async fn own(&self, spec: &Arc<TopicSpec>, index: u16) -> Result<Owner, String> {
        self.try_own(spec, index, 1_000)
            .await?
            .map_err(|held| format!("unexpected {held:?}"))
    }

    /// # Errors
    /// If the backend fails.
    pub async fn try_own(&self, spec: &Arc<TopicSpec>, index: u16, ttl: u64) -> Result<Result<Owner, Held>, String> {
        let lease = Lease {
            partition: spec.id.partition(index),
            token: Token::random(&self.entropy),
        };
        let claim = self.backend().claim(spec, index, lease.token, ttl).await.why()?;
        Ok(claim.map(|claim| Owner {
            backend: self.backend(),
            spec: Arc::clone(spec),
            lease,
            claim,
        }))
    }

    /// Moves the clock past every lease of this suite.
    pub async fn let_leases_end(&self) {
        self.harness.advance(skep_model::limits::LEASE_TTL_MS + 1_000).await;
    }

    /// An empty commit on top of what an owner knows.
    #[must_use]
    pub fn commit(&self, owner: &Owner) -> Commit {
        let id = CommitId::random(&self.entropy);
        Commit::empty(Arc::clone(&owner.spec), id, owner.claim.seq, owner.claim.last)
    }

    /// A commit that consumes the first `count` messages of a fetch.
    #[must_use]
    pub fn consuming(&self, owner: &Owner, fetched: &Fetched, count: usize) -> Commit {
        let mut commit = self.commit(owner);
        if let Some(last) = count.checked_sub(1).and_then(|i| fetched.messages.get(i)) {
            commit.span = Some(Span {
                from: owner.claim.cursor,
                to: last.after,
                last_entry: last.entry,
                last_entry_uid: last.entry_uid,
            });
        }
        commit
    }

    #[must_use]
    pub fn parked(&self, message: &Message, attempts: u32, due_ms: u64) -> Parked {
        Parked {
            uid: self.uid(),
            lane: message.key.clone().unwrap_or_else(|| message.uid.to_string()),
            work: Work::Message(message.clone()),
            attempts,
            due_ms,
            cause: "said so".to_owned(),
        }
    }

    #[must_use]
    pub fn letter(&self, work: Work) -> DeadLetter {
        DeadLetter {
            work,
            attempts: 5,
            reason: "fail".to_owned(),
            detail: "no".to_owned(),
            stderr: String::new(),
            module: Digest([3; 32]),
            at_ms: 9,
        }
    }

    #[must_use]
    pub fn timer(&self, key: &str, name: &str, at_ms: u64) -> TimerSet {
        TimerSet {
            key: key.to_owned(),
            name: name.to_owned(),
            at_ms: Some(at_ms),
            uid: self.uid(),
        }
    }
}

/// The owner of a partition and what it believes.
#[derive(Clone)]
pub struct Owner {
    pub backend: Arc<dyn Backend>,
    pub spec: Arc<TopicSpec>,
    pub lease: Lease,
    pub claim: Claim,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner")
            .field("lease", &self.lease)
            .field("claim", &self.claim)
            .finish_non_exhaustive()
    }
}

impl Owner {
    #[must_use]
    pub fn want(&self, messages: u32) -> Want {
        Want {
            from: self.claim.cursor,
            base: self.claim.last,
            messages,
            bytes: 1 << 20,
            state: true,
            state_bytes: 1 << 20,
            timers_max: u64::MAX,
        }
    }

    /// # Errors
    /// As [`Backend::fetch`], in words.
    pub async fn fetch(&self, messages: u32) -> Result<Fetched, String> {
        self.backend.fetch(&self.lease, self.want(messages)).await.why()
    }

    /// Sends a commit and believes it when it is taken.
    ///
    /// # Errors
    /// As [`Backend::commit`].
    pub async fn send(&mut self, commit: Commit) -> Result<Committed, Error> {
        let (id, span) = (commit.id, commit.span);
        let answer = self.backend.commit(&self.lease, Arc::new(commit)).await?;
        self.claim.seq += 1;
        self.claim.last = id;
        if let Some(span) = span {
            self.claim.cursor = span.to;
        }
        Ok(answer)
    }

    /// Sends a commit that must be taken.
    ///
    /// # Errors
    /// If it is not, in words.
    pub async fn must(&mut self, commit: Commit) -> Result<(), String> {
        match self.send(commit).await {
            Ok(Committed::Ok) => Ok(()),
            other => Err(format!("a sound commit got {other:?}")),
        }
    }

    /// The payloads that come after the cursor.
    ///
    /// # Errors
    /// As [`Backend::fetch`], in words.
    pub async fn payloads(&self) -> Result<Vec<String>, String> {
        let fetched = self.fetch(1_000).await?;
        Ok(fetched.messages.iter().map(|u| text(&u.message)).collect())
    }
}

/// A payload as text.
#[must_use]
pub fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

/// The retry that ends a parked entry.
#[must_use]
pub fn finished(parked: &Parked) -> Retry {
    Retry {
        uid: parked.uid,
        lane: parked.lane.clone(),
        again: None,
    }
}

#[must_use]
pub fn output(to: &Arc<TopicSpec>, message: Message) -> Output {
    Output {
        to: Arc::clone(to),
        message,
    }
}

#[must_use]
pub fn put(key: &str, name: &str, value: &str) -> StatePut {
    StatePut {
        key: key.to_owned(),
        name: name.to_owned(),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    }
}

/// The place before a partition's first message.
pub const START: Cursor = Cursor { entry: 0, index: 0 };

/// A timer that fired, as work.
#[must_use]
pub fn timer_work(timer: &TimerDue) -> Work {
    Work::Timer {
        uid: timer.uid,
        key: timer.key.clone(),
        name: timer.name.clone(),
        at_ms: timer.at_ms,
    }
}
