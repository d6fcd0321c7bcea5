//! Another number of partitions.

use skep_model::id::CommitId;
use skep_model::limits;

use super::store::{Part, Rings, Slot, Store, With};
use crate::guard::Guard;
use crate::{Error, Lease, Rescaled, TopicSpec, derived, key_group, partition_of_group, partition_of_work};

impl Store {
    pub fn rescale(
        &mut self,
        spec: &TopicSpec,
        id: CommitId,
        with: &With<'_>,
        rings: &mut Rings,
    ) -> Result<Rescaled, Error> {
        if self.gone.contains(spec.id.swarm()) || self.is_removed(spec, with.guards) {
            return Err(Error::Gone);
        }
        let topic = self.make_topic(spec);
        if topic.rescaling() {
            return Ok(Rescaled::Busy);
        }
        if topic.partitions == spec.partitions {
            return Ok(Rescaled::Already);
        }
        topic.former = std::mem::replace(&mut topic.partitions, spec.partitions);
        topic.generation += 1;
        for (index, part) in &mut topic.parts {
            part.last = derived(id, *index);
            if part.messages_and_bytes().0 > 0 || !part.parked.is_empty() || !part.timers.is_empty() {
                part.seal = Some(part.next_entry);
            }
        }
        let all = 0..topic.partitions.max(topic.former);
        rings.bells.extend(all.map(|index| spec.id.partition(index)));
        Ok(Rescaled::Begun)
    }

    pub fn hand_over(
        &mut self,
        lease: &Lease,
        base: CommitId,
        id: CommitId,
        with: &With<'_>,
        rings: &mut Rings,
    ) -> Result<(), Error> {
        let part = self.owned(lease)?;
        if part.last == id {
            return Ok(());
        }
        if part.last != base || part.seal.is_none_or(|seal| part.cursor.entry < seal) {
            return Err(Error::Stale);
        }
        let (own, crashed) = (lease.partition.index(), self.crashed);
        let topic_id = lease.partition.topic();
        let topic = self.topic_mut(topic_id).expect("owned");
        let partitions = topic.partitions;
        let part = topic.parts.get_mut(&own).expect("owned");
        part.last = id;
        part.lease = Some((lease.token, with.now + limits::LEASE_TTL_MS));
        let mut slots = Vec::new();
        let place = |slot: &Slot| partition_of_work(&slot.parked.work, partitions, own);
        while slots.len() < limits::HAND_OVER_MAX
            && let Some(at) = part.parked.iter().position(|slot| place(slot) != own)
        {
            slots.push(part.parked.remove(at));
        }
        let mut timers = Vec::new();
        let place_of_timer = |key: &str| partition_of_group(key_group(key), partitions);
        while timers.len() < limits::HAND_OVER_MAX
            && let Some(at) = part.timers.keys().find(|(key, _)| place_of_timer(key) != own).cloned()
        {
            let timer = part.timers.remove(&at).expect("just seen");
            timers.push((at, timer));
        }
        let more = part.parked.iter().any(|slot| place(slot) != own)
            || part.timers.keys().any(|(key, _)| place_of_timer(key) != own);
        if !more {
            part.seal = None;
        }
        for slot in slots {
            let index = place(&slot);
            let target = topic.parts.entry(index).or_insert_with(|| Part::unborn(crashed));
            target.last = derived(id, index);
            target.park(slot.parked);
            rings.bells.push(topic_id.partition(index));
        }
        for (at, timer) in timers {
            let index = place_of_timer(&at.0);
            let target = topic.parts.entry(index).or_insert_with(|| Part::unborn(crashed));
            target.last = derived(id, index);
            if with.guards.on(Guard::HandOver) {
                target.timers.insert(at, timer);
            }
            rings.bells.push(topic_id.partition(index));
        }
        if !topic.rescaling() {
            let all = 0..topic.partitions.max(topic.former);
            rings.bells.extend(all.map(|index| topic_id.partition(index)));
        }
        rings.bells.push(lease.partition.clone());
        Ok(())
    }
}
