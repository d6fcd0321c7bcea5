//! Bells on this node: rung by what this node does at once, by what others do through the server.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_model::scope::{PartitionId, SwarmId, TopicId};
use tokio::sync::Notify;

use super::names;
use crate::Bell;

/// One bell a partition and one a topic, kept while their Swarm lives.
#[derive(Debug, Default)]
pub(super) struct Bells {
    inner: Mutex<Inner>,
    /// A Swarm was asked for that the listener does not hear yet.
    pub wanted: Notify,
    catalog: Bell,
}

#[derive(Debug, Default)]
struct Inner {
    bells: HashMap<PartitionId, Bell>,
    rooms: HashMap<TopicId, Bell>,
    /// By hash tag.
    swarms: HashMap<String, SwarmId>,
}

fn ring_all(bell: &Bell) {
    bell.notify_waiters();
    // For one who was refused and has not begun to wait yet.
    bell.notify_one();
}

impl Bells {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, inner: &mut Inner, swarm: &SwarmId) {
        let tag = names::tag(swarm);
        if inner.swarms.insert(tag, swarm.clone()).is_none() {
            self.wanted.notify_one();
        }
    }

    pub fn bell(&self, partition: &PartitionId) -> Bell {
        let mut inner = self.inner();
        if let Some(bell) = inner.bells.get(partition) {
            return Arc::clone(bell);
        }
        self.want(&mut inner, partition.topic().swarm());
        let bell = Arc::new(Notify::new());
        inner.bells.insert(partition.clone(), Arc::clone(&bell));
        bell
    }

    pub fn room(&self, topic: &TopicId) -> Bell {
        let mut inner = self.inner();
        if let Some(bell) = inner.rooms.get(topic) {
            return Arc::clone(bell);
        }
        self.want(&mut inner, topic.swarm());
        let bell = Arc::new(Notify::new());
        inner.rooms.insert(topic.clone(), Arc::clone(&bell));
        bell
    }

    pub fn catalog(&self) -> Bell {
        Arc::clone(&self.catalog)
    }

    pub fn ring_catalog(&self) {
        ring_all(&self.catalog);
    }

    /// The Swarms that somebody here listens for, by tag.
    pub fn tags(&self) -> HashSet<String> {
        self.inner().swarms.keys().cloned().collect()
    }

    pub fn swarm(&self, tag: &str) -> Option<SwarmId> {
        self.inner().swarms.get(tag).cloned()
    }

    /// Rings one that is there; nobody waits for one that is not, and whoever comes looks first.
    pub fn ring(&self, partition: &PartitionId) {
        let mut inner = self.inner();
        match inner.bells.get(partition) {
            Some(bell) => bell.notify_one(),
            // An owner may be about to ask for it: it must find the ring.
            None => {
                let bell: Bell = Arc::new(Notify::new());
                bell.notify_one();
                if inner.swarms.contains_key(&names::tag(partition.topic().swarm())) {
                    inner.bells.insert(partition.clone(), bell);
                }
            }
        }
    }

    /// Rings `stage:partition` of a Swarm.
    pub fn ring_member(&self, swarm: &SwarmId, member: &str) {
        if let Some((stage, index)) = member.rsplit_once(':')
            && let (Ok(stage), Ok(index)) = (stage.parse(), index.parse())
        {
            self.ring(&swarm.topic(&stage).partition(index));
        }
    }

    pub fn ring_room(&self, topic: &TopicId) {
        if let Some(bell) = self.inner().rooms.get(topic) {
            ring_all(bell);
        }
    }

    /// Wakes the owners of a topic that is gone, so that they learn it. Their bells stay: the topic may begin anew.
    pub fn ring_topic(&self, topic: &TopicId) {
        let inner = self.inner();
        for (_, bell) in inner.bells.iter().filter(|(partition, _)| partition.topic() == topic) {
            bell.notify_one();
        }
    }

    /// Rings everything: some ring may have been lost.
    pub fn ring_everything(&self) {
        self.ring_catalog();
        let inner = self.inner();
        inner.bells.values().for_each(|bell| bell.notify_one());
        inner.rooms.values().for_each(ring_all);
    }

    /// Wakes whoever waits for anything of a life that is gone, and forgets its bells.
    pub fn forget(&self, swarm: &SwarmId) {
        let mut inner = self.inner();
        inner.swarms.remove(&names::tag(swarm));
        inner.bells.retain(|partition, bell| {
            let stays = partition.topic().swarm() != swarm;
            if !stays {
                bell.notify_one();
            }
            stays
        });
        inner.rooms.retain(|topic, bell| {
            let stays = topic.swarm() != swarm;
            if !stays {
                bell.notify_waiters();
            }
            stays
        });
        drop(inner);
        self.wanted.notify_one();
    }
}
