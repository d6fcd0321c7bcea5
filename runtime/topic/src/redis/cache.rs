//! What an owner remembers of a partition between its batches: the state of keys, and how large frames are.
//!
//! State is that of one commit, the last that the owner knows. It serves a read or a commit that names this very commit as its base,
//! which the store checks besides; whatever else happens to a partition writes another last commit id, and what is here is dropped. A
//! commit may also write state of a key that is another partition's: the topic counts those, and what is here holds for one count only.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use skep_model::id::CommitId;
use skep_model::limits;
use skep_model::scope::{PartitionId, TopicId};

use crate::{Commit, StatePut, TopicSpec};

/// A commit, and the topic's count of commits that wrote state of other partitions' keys.
pub(super) type At = (CommitId, u64);

/// One key's values.
pub(super) type Values = BTreeMap<String, Bytes>;

#[derive(Debug, Default)]
struct Part {
    base: At,
    keys: HashMap<String, Values>,
    bytes: usize,
    /// Which keys are this partition's, as the last commit told. Only those are remembered: others' may change underneath.
    of: Option<Arc<TopicSpec>>,
    /// Messages a frame in the last read.
    frame: u32,
    /// The commit that left nothing to read.
    drained: Option<CommitId>,
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    parts: HashMap<PartitionId, Part>,
    bytes: usize,
}

/// About what a key takes here.
fn weight(key: &str, values: &Values) -> usize {
    let inside: usize = values.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    key.len() + inside + 96
}

pub(super) fn apply(values: &mut Values, name: &str, value: Option<&Bytes>) {
    match value {
        Some(value) => values.insert(name.to_owned(), value.clone()),
        None => values.remove(name),
    };
}

impl Inner {
    fn clear(&mut self, partition: &PartitionId) {
        if let Some(part) = self.parts.get_mut(partition) {
            self.bytes -= part.bytes;
            part.bytes = 0;
            part.keys.clear();
        }
    }

    fn part(&mut self, partition: &PartitionId) -> &mut Part {
        if !self.parts.contains_key(partition) {
            self.parts.insert(partition.clone(), Part::default());
        }
        self.parts.get_mut(partition).expect("made above")
    }
}

impl Cache {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn frame(&self, partition: &PartitionId) -> u32 {
        self.inner().parts.get(partition).map_or(1, |p| p.frame.max(1))
    }

    pub fn set_frame(&self, partition: &PartitionId, messages: u32) {
        self.inner().part(partition).frame = messages;
    }

    pub fn set_drained(&self, partition: &PartitionId, last: CommitId) {
        self.inner().part(partition).drained = Some(last);
    }

    pub fn is_drained(&self, partition: &PartitionId, last: CommitId) -> bool {
        let inner = self.inner();
        inner
            .parts
            .get(partition)
            .is_some_and(|part| part.drained == Some(last))
    }

    /// What is known of keys at `base`.
    pub fn known<'a>(&self, partition: &PartitionId, base: At, keys: &[&'a str]) -> HashMap<&'a str, Values> {
        let inner = self.inner();
        let Some(part) = inner.parts.get(partition).filter(|p| p.base == base) else {
            return HashMap::new();
        };
        let found = keys.iter().filter_map(|key| Some((*key, part.keys.get(*key)?.clone())));
        found.collect()
    }

    /// The count that goes with what is known at `base`.
    pub fn foreign(&self, partition: &PartitionId, base: CommitId) -> Option<u64> {
        let inner = self.inner();
        let part = inner.parts.get(partition)?;
        (part.base.0 == base && !part.keys.is_empty()).then_some(part.base.1)
    }

    /// Learns keys as they are at `base`.
    pub fn learn(&self, partition: &PartitionId, base: At, keys: impl Iterator<Item = (String, Values)>) {
        let mut inner = self.inner();
        if inner.part(partition).base != base {
            inner.clear(partition);
            inner.part(partition).base = base;
        }
        let Some(of) = inner.part(partition).of.clone() else {
            return;
        };
        for (key, values) in keys.filter(|(key, _)| of.partition_of_key(key) == partition.index()) {
            let weight = weight(&key, &values);
            if inner.bytes + weight > limits::STATE_KNOWN_BYTES_MAX {
                // It begins anew with what comes next; others keep theirs.
                inner.clear(partition);
                return;
            }
            let part = inner.part(partition);
            let former = part.keys.insert(key.clone(), values);
            let former = former.map_or(0, |values| self::weight(&key, &values));
            part.bytes = part.bytes + weight - former;
            inner.bytes = inner.bytes + weight - former;
        }
    }

    /// A commit was applied: what was known at its base is now known at it.
    pub fn advance(&self, partition: &PartitionId, commit: &Commit, of: Arc<TopicSpec>) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        if inner
            .part(partition)
            .of
            .as_ref()
            .is_none_or(|known| known.partitions != of.partitions)
        {
            inner.clear(partition);
            inner.part(partition).of = Some(of);
        }
        let Some(part) = inner.parts.get_mut(partition).filter(|p| p.base.0 == commit.base) else {
            return;
        };
        part.base.0 = commit.id;
        for StatePut { key, name, value } in &commit.state {
            let Some(values) = part.keys.get_mut(key) else { continue };
            let before = weight(key, values);
            apply(values, name, value.as_ref());
            let after = weight(key, values);
            part.bytes = part.bytes + after - before;
            inner.bytes = inner.bytes + after - before;
        }
        let large = commit.state.iter().map(|put| put.key.as_str());
        for key in large {
            if part
                .keys
                .get(key)
                .is_some_and(|values| weight(key, values) > limits::STATE_INLINE_BYTES_MAX)
                && let Some(values) = part.keys.remove(key)
            {
                // It may have moved to a hash of its own, which is not written whole.
                let weight = weight(key, &values);
                part.bytes -= weight;
                inner.bytes -= weight;
            }
        }
    }

    pub fn forget(&self, partition: &PartitionId) {
        let mut inner = self.inner();
        inner.clear(partition);
        inner.parts.remove(partition);
    }

    pub fn forget_if(&self, gone: impl Fn(&TopicId) -> bool) {
        let mut inner = self.inner();
        let all: Vec<PartitionId> = inner.parts.keys().filter(|p| gone(p.topic())).cloned().collect();
        for partition in all {
            inner.clear(&partition);
            inner.parts.remove(&partition);
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_model::id::Incarnation;
    use skep_model::name::TenantId;
    use skep_model::scope::Scope;
    use skep_model::swarm::Bound;

    use super::*;

    fn topic() -> Arc<TopicSpec> {
        let swarm = Scope::of(TenantId::default_tenant()).swarm(&"s".parse().unwrap(), Incarnation([1; 16]));
        let bound = Bound { messages: 1, bytes: 1 };
        Arc::new(TopicSpec {
            id: swarm.topic(&"a".parse().unwrap()),
            born: 1,
            partitions: 1,
            inbox: bound,
            dead_letters: bound,
        })
    }

    fn values(value: &'static str) -> Values {
        [("n".to_owned(), Bytes::from_static(value.as_bytes()))].into()
    }

    #[test]
    fn what_is_known_holds_for_its_base_only() {
        let (cache, topic) = (Cache::default(), topic());
        let partition = topic.id.partition(0);
        let [first, second, other] = [1, 2, 3].map(|n| (CommitId([n; 16]), 7));
        let begin = Commit::empty(Arc::clone(&topic), first.0, 0, CommitId::NONE);
        cache.learn(&partition, first, [("k".to_owned(), values("1"))].into_iter());
        assert!(cache.known(&partition, first, &["k"]).is_empty(), "whose key is it?");
        cache.advance(&partition, &begin, Arc::clone(&topic));
        cache.learn(&partition, first, [("k".to_owned(), values("1"))].into_iter());
        assert_eq!(cache.known(&partition, first, &["k", "l"]), [("k", values("1"))].into());
        assert!(cache.known(&partition, other, &["k"]).is_empty());
        let mut commit = Commit::empty(Arc::clone(&topic), second.0, 1, first.0);
        for (key, value) in [("k", "2"), ("unknown", "3")] {
            commit.state.push(StatePut {
                key: key.to_owned(),
                name: "n".to_owned(),
                value: Some(Bytes::from_static(value.as_bytes())),
            });
        }
        cache.advance(&partition, &commit, Arc::clone(&topic));
        assert!(cache.known(&partition, first, &["k"]).is_empty());
        assert!(
            cache.known(&partition, (second.0, 8), &["k"]).is_empty(),
            "another partition wrote"
        );
        let expected = [("k", values("2"))].into();
        assert_eq!(cache.known(&partition, second, &["k", "unknown"]), expected);
        // The same again, or one that builds on something else, changes nothing.
        cache.advance(&partition, &commit, Arc::clone(&topic));
        assert_eq!(cache.known(&partition, second, &["k"]), expected);
        // Another base: all is forgotten.
        cache.learn(&partition, other, [("l".to_owned(), values("4"))].into_iter());
        assert!(cache.known(&partition, other, &["k"]).is_empty());
    }

    #[test]
    fn it_counts_what_it_holds() {
        let (cache, topic) = (Cache::default(), topic());
        let partition = topic.id.partition(0);
        cache.advance(
            &partition,
            &Commit::empty(Arc::clone(&topic), CommitId::NONE, 0, CommitId::NONE),
            Arc::clone(&topic),
        );
        for n in 0..100u8 {
            let keys = (0..50).map(|k| (format!("k{k}"), values("123456")));
            cache.learn(&partition, (CommitId([n / 10; 16]), 0), keys);
        }
        let sum = |inner: &Inner| -> usize { inner.parts[&partition].keys.iter().map(|(k, v)| weight(k, v)).sum() };
        let held = cache.inner().bytes;
        assert_eq!(held, sum(&cache.inner()));
        cache.forget(&partition);
        assert_eq!(cache.inner().bytes, 0);
    }
}
