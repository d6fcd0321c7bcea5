//! The reference backend: the contract in plain collections, for tests and simulation.
//!
//! It keeps one history, as every backend does, and can be made to lose the end of it: [`Memory::mark`] names a point,
//! [`Memory::rollback`] returns to it, unless something that left depends on what came after. [`Memory::restart`] is the crash of
//! a node that keeps its disk.

mod backup;
mod commit;
mod publish;
mod rescale;
mod store;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use skep_model::env::{Clock, Entropy};
use skep_model::id::{CommitId, NodeId, Token, Uid};
use skep_model::limits;
use skep_model::name::StageName;
use skep_model::scope::{PartitionId, SwarmId, TopicId};
use tokio::sync::Notify;

use self::store::{Rings, Store, With};
use crate::guard::{Guard, Guards};
use crate::{
    Accepted, Backend, Bell, CallResult, CatalogRecord, Claim, Commit, Committed, Counters, Error, Fetched, Gate, Held,
    Layout, Lease, Parked, Pieces, Publish, Pulse, Rescaled, StatePage, StateSize, StoredDeadLetter, TimerDue,
    TopicSpec, TopicStatus, Waiters, Want,
};

/// A point of the history.
#[derive(Debug, Clone)]
pub struct Mark {
    store: Store,
    applied: u64,
}

/// Something that left depends on what a rollback would take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what came after the mark has been promised to somebody")]
pub struct Promised;

#[derive(Debug, Default)]
struct Inner {
    store: Store,
    /// Writes so far, and how many of them something that left depends on.
    applied: u64,
    released: u64,
    closed: bool,
    counters: Counters,
}

/// The reference backend.
pub struct Memory {
    inner: Mutex<Inner>,
    bells: Mutex<HashMap<PartitionId, Bell>>,
    rooms: Mutex<HashMap<TopicId, Bell>>,
    catalog: Bell,
    waiters: Arc<Waiters>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    guards: Arc<Guards>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            bells: Mutex::default(),
            rooms: Mutex::default(),
            catalog: Bell::default(),
            waiters: Arc::default(),
            clock,
            entropy,
            guards: Arc::default(),
        })
    }

    /// Which guards stand; only test builds can take one away.
    #[must_use]
    pub fn guards(&self) -> &Arc<Guards> {
        &self.guards
    }

    /// Names this point of the history.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let inner = lock(&self.inner);
        Mark {
            store: inner.store.clone(),
            applied: inner.applied,
        }
    }

    /// Loses everything after the mark, leases included, as a failover does.
    ///
    /// # Errors
    /// [`Promised`] when the gate released something since: no honest store loses that.
    pub fn rollback(&self, mark: &Mark) -> Result<(), Promised> {
        let mut inner = lock(&self.inner);
        if mark.applied < inner.released {
            return Err(Promised);
        }
        inner.store = mark.store.clone();
        inner.applied = mark.applied;
        Ok(())
    }

    /// A node's crash and start on the same disk: leases are gone, every partition is unclean.
    pub fn restart(&self) {
        let mut inner = lock(&self.inner);
        inner.store.crashed = true;
        for life in inner.store.lives.values_mut() {
            for part in life.topics.values_mut().flat_map(|t| t.parts.values_mut()) {
                part.crash();
            }
        }
    }

    /// An operator takes a parked message away, which writes a fresh last commit id.
    pub fn take_parked(&self, partition: &PartitionId, uid: Uid) -> Option<Parked> {
        let mut inner = lock(&self.inner);
        inner.applied += 1;
        let with = self.with();
        inner.store.part_mut(partition)?.take_parked(uid, &with)
    }

    /// An operator cancels a timer, which writes a fresh last commit id.
    pub fn take_timer(&self, partition: &PartitionId, key: &str, name: &str) -> Option<TimerDue> {
        let mut inner = lock(&self.inner);
        inner.applied += 1;
        let with = self.with();
        let part = inner.store.part_mut(partition)?;
        let timer = part.timers.remove(&(key.to_owned(), name.to_owned()))?;
        part.chain(&with);
        Some(timer)
    }

    /// What waits in a partition: parked entries in their order, and timers.
    #[must_use]
    pub fn waiting(&self, partition: &PartitionId) -> (Vec<Parked>, Vec<TimerDue>) {
        let mut inner = lock(&self.inner);
        let Some(part) = inner.store.part_mut(partition) else {
            return (Vec::new(), Vec::new());
        };
        let parked = part.parked.iter().map(|slot| slot.parked.clone());
        (parked.collect(), part.timers.values().cloned().collect())
    }

    fn with(&self) -> With<'_> {
        With {
            now: self.clock.now_ms(),
            entropy: &*self.entropy,
            guards: &self.guards,
        }
    }

    fn open(&self) -> Result<MutexGuard<'_, Inner>, Error> {
        let inner = lock(&self.inner);
        if inner.closed {
            return Err(Error::Unavailable("the store is closed".to_owned()));
        }
        Ok(inner)
    }

    /// Something that depends on all writes so far leaves.
    fn release_all(&self, inner: &mut Inner) {
        if self.guards.on(Guard::Gate) {
            inner.released = inner.applied;
        }
    }

    fn ring(&self, rings: Rings) {
        for partition in rings.bells {
            self.bell(&partition).notify_one();
        }
        for topic in rings.rooms {
            let bell = self.room(&topic);
            bell.notify_waiters();
            bell.notify_one();
        }
        for reply in rings.replies {
            self.waiters.deliver(reply);
        }
    }

    /// Wakes the owners of what is gone, so that they learn it.
    fn ring_gone(&self, gone: impl Fn(&TopicId) -> bool) {
        for (_, bell) in lock(&self.bells)
            .iter()
            .filter(|(partition, _)| gone(partition.topic()))
        {
            bell.notify_one();
        }
        for (_, bell) in lock(&self.rooms).iter().filter(|(topic, _)| gone(topic)) {
            bell.notify_waiters();
        }
    }

    /// Whether the catalog is what somebody decided on.
    fn catalog_is(&self, inner: &Inner, seen: Option<u64>) -> bool {
        seen.is_none_or(|seen| seen == inner.store.catalog_number) || !self.guards.on(Guard::Seen)
    }

    /// The catalog was written.
    fn catalog_written(&self, inner: &mut Inner) {
        let bits = self.entropy.bits128();
        inner.store.catalog_number = bits.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte));
        inner.applied += 1;
        self.catalog.notify_waiters();
        self.catalog.notify_one();
    }

    fn live(inner: &Inner, swarm: &SwarmId) -> Result<(), Error> {
        if inner.store.gone.contains(swarm) {
            Err(Error::Gone)
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Backend for Memory {
    async fn publish(&self, publish: Publish) -> Result<Vec<CallResult>, Error> {
        let mut rings = Rings::default();
        let results = {
            let mut inner = self.open()?;
            inner.store.adopt(&publish.swarm)?;
            let results = inner
                .store
                .publish(&publish.swarm, publish.calls, &self.with(), &mut rings);
            inner.applied += 1;
            inner.counters.publishes += 1;
            let repeats = results.iter().any(|r| matches!(r, Ok(Accepted::Duplicate { .. })));
            if publish.gate == Gate::Durable || repeats {
                self.release_all(&mut inner);
            }
            results
        };
        self.ring(rings);
        Ok(results)
    }

    async fn claim(
        &self,
        topic: &TopicSpec,
        partition: u16,
        token: Token,
        ttl_ms: u64,
    ) -> Result<Result<Claim, Held>, Error> {
        let mut inner = self.open()?;
        inner.applied += 1;
        inner.store.claim(topic, partition, token, ttl_ms, &self.with())
    }

    async fn renew(&self, lease: &Lease, ttl_ms: u64) -> Result<(), Error> {
        let until = self.clock.now_ms() + ttl_ms;
        self.open()?.store.set_lease(lease, Some(until))
    }

    async fn release(&self, lease: &Lease) -> Result<(), Error> {
        // Another's by now: nothing to do.
        let _ = self.open()?.store.set_lease(lease, None);
        Ok(())
    }

    async fn fetch(&self, lease: &Lease, want: Want) -> Result<Fetched, Error> {
        self.open()?.store.fetch(lease, want, &self.with())
    }

    async fn commit(&self, lease: &Lease, commit: Arc<Commit>) -> Result<Committed, Error> {
        let mut rings = Rings::default();
        let result = {
            let mut inner = self.open()?;
            let result = inner
                .store
                .commit(lease, Arc::unwrap_or_clone(commit), &self.with(), &mut rings);
            match &result {
                Ok(Committed::Ok) => {
                    inner.applied += 1;
                    inner.counters.commits += 1;
                    if !rings.replies.is_empty() {
                        self.release_all(&mut inner);
                    }
                }
                Ok(Committed::Done) => {}
                Err(_) => inner.counters.refused += 1,
            }
            result
        };
        self.ring(rings);
        result
    }

    async fn mark(&self, lease: &Lease, uid: Uid) -> Result<u32, Error> {
        let mut inner = self.open()?;
        let times = inner.store.mark(lease, uid)?;
        inner.applied += 1;
        self.release_all(&mut inner);
        Ok(times)
    }

    async fn rescale(&self, topic: &TopicSpec, id: CommitId) -> Result<Rescaled, Error> {
        let mut rings = Rings::default();
        let result = {
            let mut inner = self.open()?;
            let result = inner.store.rescale(topic, id, &self.with(), &mut rings);
            inner.applied += 1;
            self.release_all(&mut inner);
            result
        };
        self.ring(rings);
        result
    }

    async fn hand_over(&self, lease: &Lease, base: CommitId, id: CommitId) -> Result<(), Error> {
        let mut rings = Rings::default();
        {
            let mut inner = self.open()?;
            inner.store.hand_over(lease, base, id, &self.with(), &mut rings)?;
            inner.applied += 1;
        }
        self.ring(rings);
        Ok(())
    }

    async fn layout(&self, topic: &TopicId) -> Result<Option<Layout>, Error> {
        let inner = self.open()?;
        Self::live(&inner, topic.swarm())?;
        let topic = inner.store.topic(topic);
        Ok(topic.map(|topic| Layout {
            partitions: topic.partitions,
            generation: topic.generation,
            rescaling: topic.rescaling(),
            owners: topic.owners(),
        }))
    }

    async fn flushed(&self) -> Result<(), Error> {
        let mut inner = self.open()?;
        inner.counters.flushes += 1;
        self.release_all(&mut inner);
        Ok(())
    }

    fn bell(&self, partition: &PartitionId) -> Bell {
        Arc::clone(
            lock(&self.bells)
                .entry(partition.clone())
                .or_insert_with(|| Arc::new(Notify::new())),
        )
    }

    fn room(&self, topic: &TopicId) -> Bell {
        Arc::clone(
            lock(&self.rooms)
                .entry(topic.clone())
                .or_insert_with(|| Arc::new(Notify::new())),
        )
    }

    fn waiters(&self) -> &Arc<Waiters> {
        &self.waiters
    }

    fn scan_every_ms(&self) -> u64 {
        limits::LEASE_TTL_MS
    }

    async fn status(&self, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error> {
        let inner = self.open()?;
        Self::live(&inner, swarm)?;
        Ok(inner.store.status(swarm))
    }

    async fn durable_status(&self, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error> {
        // A store that was killed in between refuses the second.
        let status = self.status(swarm).await?;
        self.flushed().await?;
        Ok(status)
    }

    async fn state_page(&self, topic: &TopicId, after: &str) -> Result<StatePage, Error> {
        let inner = self.open()?;
        Ok(inner
            .store
            .topic(topic)
            .map(|t| t.state_page(after))
            .unwrap_or_default())
    }

    async fn state_size(&self, topic: &TopicId) -> Result<StateSize, Error> {
        let inner = self.open()?;
        Ok(inner
            .store
            .topic(topic)
            .map(store::Topic::state_size)
            .unwrap_or_default())
    }

    async fn lives(&self) -> Result<Vec<SwarmId>, Error> {
        let inner = self.open()?;
        let lives = inner.store.lives.keys();
        Ok(lives
            .filter(|life| !inner.store.aside.contains_key(life))
            .cloned()
            .collect())
    }

    async fn remove_swarm(&self, swarm: &SwarmId, if_empty: bool) -> Result<bool, Error> {
        let mut inner = self.open()?;
        let mut topics = inner.store.status(swarm).into_iter();
        if if_empty && topics.any(|t| t.unread + t.parked + t.dead > 0) {
            return Ok(false);
        }
        inner.store.lives.remove(swarm);
        inner.store.aside.remove(swarm);
        inner.store.gone.insert(swarm.clone());
        inner.applied += 1;
        self.release_all(&mut inner);
        self.ring_gone(|topic| topic.swarm() == swarm);
        Ok(true)
    }

    async fn remove_topic(&self, topic: &TopicSpec) -> Result<bool, Error> {
        let mut inner = self.open()?;
        Self::live(&inner, topic.id.swarm())?;
        if !inner.store.remove_topic(topic) {
            return Ok(false);
        }
        inner.applied += 1;
        self.release_all(&mut inner);
        self.ring_gone(|id| *id == topic.id);
        Ok(true)
    }

    async fn export(&self, swarm: &SwarmId) -> Result<Pieces, Error> {
        let mut inner = self.open()?;
        Self::live(&inner, swarm)?;
        self.release_all(&mut inner);
        let life = inner.store.lives.get(swarm).cloned().unwrap_or_default();
        Ok(futures::stream::iter(life.pieces().map(Ok).collect::<Vec<_>>()).boxed())
    }

    async fn import(&self, swarm: &SwarmId, mut pieces: Pieces) -> Result<bool, Error> {
        let bits = self.entropy.bits128();
        let number = u64::from_le_bytes(bits[..8].try_into().expect("eight"));
        if !self.open()?.store.begin_import(swarm, number)? {
            return Ok(false);
        }
        let mut offset = None;
        while let Some(piece) = pieces.next().await {
            let mut inner = self.open()?;
            inner.applied += 1;
            inner.store.import(swarm, number, &mut offset, piece?, &self.with())?;
        }
        let mut inner = self.open()?;
        inner.store.end_import(swarm, number)?;
        inner.applied += 1;
        self.release_all(&mut inner);
        Ok(true)
    }

    async fn imports(&self) -> Result<Vec<SwarmId>, Error> {
        Ok(self.open()?.store.aside.keys().cloned().collect())
    }

    async fn discard_import(&self, swarm: &SwarmId) -> Result<(), Error> {
        let mut inner = self.open()?;
        inner.store.discard_import(swarm);
        inner.applied += 1;
        self.release_all(&mut inner);
        Ok(())
    }

    async fn state(&self, topic: &TopicId, key: &str) -> Result<HashMap<String, Bytes>, Error> {
        let mut inner = self.open()?;
        Self::live(&inner, topic.swarm())?;
        self.release_all(&mut inner);
        let values = inner.store.topic_mut(topic).and_then(|t| t.state.get(key)).cloned();
        Ok(values.unwrap_or_default().into_iter().collect())
    }

    async fn dead_letters(
        &self,
        swarm: &SwarmId,
        stage: Option<&StageName>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredDeadLetter>, Error> {
        let mut inner = self.open()?;
        Self::live(&inner, swarm)?;
        self.release_all(&mut inner);
        let Some(life) = inner.store.lives.get(swarm) else {
            return Ok(Vec::new());
        };
        let topics = life.topics.iter().filter(|(name, _)| stage.is_none_or(|s| *name == s));
        let letters = topics.flat_map(|(name, topic)| {
            topic.dead.iter().map(|(id, letter)| StoredDeadLetter {
                id: *id,
                topic: swarm.topic(name),
                letter: letter.clone(),
            })
        });
        let mut letters: Vec<_> = letters.filter(|l| l.id > after).collect();
        letters.sort_by_key(|l| l.id);
        letters.truncate(limit as usize);
        Ok(letters)
    }

    async fn discard_dead_letters(&self, swarm: &SwarmId, ids: &[u64]) -> Result<u64, Error> {
        let mut rings = Rings::default();
        let mut discarded = 0;
        {
            let mut inner = self.open()?;
            Self::live(&inner, swarm)?;
            if let Some(life) = inner.store.lives.get_mut(swarm) {
                for (stage, topic) in &mut life.topics {
                    let before = topic.dead.len();
                    topic.dead.retain(|id, _| !ids.contains(id));
                    discarded += (before - topic.dead.len()) as u64;
                    if topic.frees() {
                        rings.rooms.push(swarm.topic(stage));
                    }
                }
            }
            inner.applied += 1;
            self.release_all(&mut inner);
        }
        self.ring(rings);
        Ok(discarded)
    }

    async fn catalog_put_if(
        &self,
        key: &str,
        expect: u64,
        seen: Option<u64>,
        value: Bytes,
    ) -> Result<Result<u64, u64>, Error> {
        let mut inner = self.open()?;
        let current = inner.store.catalog.get(key).map_or(0, |r| r.version);
        self.release_all(&mut inner);
        if current != expect || !self.catalog_is(&inner, seen) {
            return Ok(Err(current));
        }
        let version = current + 1;
        inner
            .store
            .catalog
            .insert(key.to_owned(), CatalogRecord { version, value });
        self.catalog_written(&mut inner);
        self.release_all(&mut inner);
        Ok(Ok(version))
    }

    async fn catalog_list(&self, prefix: &str) -> Result<Vec<(String, CatalogRecord)>, Error> {
        let mut inner = self.open()?;
        self.release_all(&mut inner);
        let records = inner.store.catalog.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(records.map(|(key, record)| (key.clone(), record.clone())).collect())
    }

    async fn catalog_delete_if(&self, key: &str, expect: u64, seen: Option<u64>) -> Result<Result<(), u64>, Error> {
        let mut inner = self.open()?;
        let current = inner.store.catalog.get(key).map_or(0, |r| r.version);
        let done = current == expect && self.catalog_is(&inner, seen);
        if done && inner.store.catalog.remove(key).is_some() {
            self.catalog_written(&mut inner);
        }
        self.release_all(&mut inner);
        Ok(if done { Ok(()) } else { Err(current) })
    }

    async fn catalog_number(&self) -> Result<u64, Error> {
        Ok(self.open()?.store.catalog_number)
    }

    fn catalog_bell(&self) -> Bell {
        Arc::clone(&self.catalog)
    }

    async fn beat(&self, node: NodeId, record: Bytes, ttl_ms: u64) -> Result<Pulse, Error> {
        let mut inner = self.open()?;
        let now_ms = self.clock.now_ms();
        Ok(Pulse {
            nodes: inner.store.beats.beat(node, record, ttl_ms, now_ms)?,
            catalog: inner.store.catalog_number,
            now_ms,
        })
    }

    async fn leave(&self, node: NodeId) -> Result<(), Error> {
        self.open()?.store.beats.leave(node);
        Ok(())
    }

    fn counters(&self) -> Counters {
        lock(&self.inner).counters
    }

    async fn close(&self) -> Result<(), Error> {
        let mut inner = self.open()?;
        self.release_all(&mut inner);
        inner.closed = true;
        Ok(())
    }
}
