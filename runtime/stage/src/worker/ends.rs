//! Telling a partition's keys that nothing more comes for them.
//!
//! An owner that is told so lists the stage's keys, page by page, whenever it has nothing else to do, and sets a timer for each key of its
//! own that has not ended. The timers are then worked off as any others are, before the next page: so what waits is bounded, and a
//! kill loses the place in the list and nothing else. Keys are set again from the beginning then; those that were told meanwhile are passed over by
//! `decide/ends.rs`.
//!
//! The commit that sets them names its base as every commit does, so an owner that lost the partition, or one that missed a rescale, sets
//! none.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use skep_model::id::{CommitId, Uid};
use skep_model::limits::END_TOLD_MAX;
use skep_model::swarm::{END, Ends};
use skep_topic::{Commit, Error, TimerSet, TopicStatus, key_group, partition_of_group};

use super::{Ended, Owner, Plan, Position, ended};
use crate::decide::has_ended;

/// Where the list goes on.
pub(super) struct Place {
    /// By which it was begun.
    plan: Weak<Plan>,
    /// As the page before said.
    after: String,
    /// The owner was told once more meanwhile: from the beginning again, behind the end. Not at once, or a long list would have none.
    again: bool,
}

impl Place {
    fn first(plan: Weak<Plan>) -> Self {
        Self {
            plan,
            after: String::new(),
            again: false,
        }
    }
}

impl Owner {
    /// Goes on with the list, if the owner is to. `true`: timers were set, for `now_ms` of the store's clock.
    pub(super) async fn tell_end(&mut self, plan: &Arc<Plan>, at: &mut Position, now_ms: u64) -> Result<bool, Ended> {
        if self.telling.has_changed().unwrap_or(false) {
            let by = self.telling.borrow_and_update().clone();
            self.told_to = Some(match self.told_to.take() {
                Some(place) if place.plan.ptr_eq(&by) => Place { again: true, ..place },
                _ => Place::first(by),
            });
        }
        // By another plan something may come again.
        let current = |place: &Place| place.plan.ptr_eq(&Arc::downgrade(plan));
        let Some(mut place) = self.told_to.take().filter(current) else {
            return Ok(false);
        };
        if plan.stage.ends != Some(Ends::Told) {
            return Ok(false);
        }
        let topic = self.partition.topic().clone();
        // A rescale that begins behind this look gives the partition another last commit, so that this one's is refused.
        let partitions = match self.seams.backend.layout(&topic).await.map_err(ended)? {
            Some(layout) if !layout.rescaling => layout.partitions,
            // Whoever waits for the end asks again.
            _ => return Ok(false),
        };
        // An end that waits for another attempt has left no mark yet: told anew it would fail anew, behind its own dead letter. Only this
        // owner parks what is its own, so none of that comes in between.
        let waits = |status: &TopicStatus| status.topic == topic && status.parked > 0;
        let statuses = self.seams.backend.status(topic.swarm()).await.map_err(ended)?;
        if statuses.iter().any(waits) {
            self.told_to = Some(place);
            return Ok(false);
        }
        // A page may have a key twice, and so may two.
        let mut keys = BTreeSet::new();
        let mut whole = false;
        while keys.len() < END_TOLD_MAX && !whole {
            let page = match self.seams.backend.state_page(&topic, &place.after).await {
                Ok(page) => page,
                // A store that came back from an older state may not know the place.
                Err(Error::TooLarge(_)) => return Ok(false),
                Err(e) => return Err(ended(e)),
            };
            let own = |key: &str| partition_of_group(key_group(key), partitions) == self.partition.index();
            let open = page
                .keys
                .into_iter()
                .filter(|(key, values)| !has_ended(values) && own(key));
            keys.extend(open.map(|(key, _)| key));
            match page.next {
                Some(next) => place.after = next,
                // At once: left for later, it would tell what a message that comes behind the end makes live again.
                None if place.again => place = Place::first(place.plan),
                None => whole = true,
            }
            self.prolong(&at.lease).await?;
        }
        self.told_to = (!whole).then_some(place);
        if keys.is_empty() {
            return Ok(false);
        }
        let entropy = self.seams.entropy.as_ref();
        let mut commit = Commit::empty(Arc::clone(&plan.topic), CommitId::random(entropy), at.seq, at.last);
        commit.set_timers.extend(keys.into_iter().map(|key| TimerSet {
            key,
            name: END.to_owned(),
            at_ms: Some(now_ms),
            uid: Uid::random(entropy),
        }));
        let (id, commit) = (commit.id, Arc::new(commit));
        self.commit(plan, at, &commit).await?;
        at.seq += 1;
        at.last = id;
        Ok(true)
    }
}
