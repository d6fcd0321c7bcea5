//! Places for instances: how many calls run at once, whose, and with how much memory between them. More wait, in the order in which they
//! came, but that one for which there is no room lets others by.
//!
//! A tenant takes one as long as it has fewer than [`BESIDE`] times what is free: alone it may have all but a fifth, and however many flood a
//! node, one that just comes finds a place.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_model::limits::GUEST_CALLS_WAITING_MAX;
use tokio::sync::oneshot;

use crate::share::Share;

const BESIDE: u64 = 4;

pub(crate) struct Places {
    state: Mutex<State>,
    /// That one tenant may have.
    each: u64,
}

struct State {
    free: u64,
    spare: u64,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    share: Arc<Share>,
    memory: u64,
    tell: oneshot::Sender<Place>,
}

/// A call's, given back when dropped.
pub(crate) struct Place(Option<Held>);

/// That of an instance which waits for a call.
pub(crate) struct SparePlace(Option<Held>);

struct Held {
    of: Arc<Places>,
    share: Arc<Share>,
    memory: u64,
}

impl Places {
    pub(crate) fn new(places: u32, each: u32, spare: u32) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: places.into(),
                spare: spare.into(),
                waiting: VecDeque::new(),
            }),
            each: each.into(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a call whose instance may grow to so much. `None`: so many wait that no more can.
    pub(crate) async fn take(self: &Arc<Self>, share: &Arc<Share>, memory: u64) -> Option<Place> {
        let told = {
            let mut state = self.state();
            if let Some(place) = self.try_take(&mut state, share, memory) {
                return Some(place);
            }
            if state.waiting.len() >= GUEST_CALLS_WAITING_MAX {
                return None;
            }
            let (tell, told) = oneshot::channel();
            let share = Arc::clone(share);
            state.waiting.push_back(Waiter { share, memory, tell });
            told
        };
        told.await.ok()
    }

    fn try_take(self: &Arc<Self>, state: &mut State, share: &Arc<Share>, memory: u64) -> Option<Place> {
        let (own, has) = share.called();
        let room = own
            < self
                .each
                .min(BESIDE * state.free)
                .min(share.instances_max.load(Ordering::Relaxed));
        // One instance is always let in: it is given no more than its tenant may have.
        let fits = own == 0 || has.saturating_add(memory) <= share.memory_max.load(Ordering::Relaxed);
        if !room || !fits {
            return None;
        }
        state.free -= 1;
        share.instances.store(own + 1, Ordering::Relaxed);
        share.memory.store(has + memory, Ordering::Relaxed);
        Some(Place(Some(Held {
            of: Arc::clone(self),
            share: Arc::clone(share),
            memory,
        })))
    }

    /// A place for an instance that waits for a call, if its tenant is not at its limits: a call never waits for an idle instance.
    pub(crate) fn spare(self: &Arc<Self>, share: &Arc<Share>, memory: u64) -> Option<SparePlace> {
        let mut state = self.state();
        let ((own, has), (spares, spare_memory)) = (share.live(), share.spared());
        let most = share.memory_max.load(Ordering::Relaxed);
        let within = own < share.instances_max.load(Ordering::Relaxed) && has.saturating_add(memory) <= most;
        if spares >= BESIDE * state.spare || !within {
            return None;
        }
        state.spare -= 1;
        share.spares.store(spares + 1, Ordering::Relaxed);
        share.spare_memory.store(spare_memory + memory, Ordering::Relaxed);
        drop(state);
        Some(SparePlace(Some(Held {
            of: Arc::clone(self),
            share: Arc::clone(share),
            memory,
        })))
    }

    /// Somebody gave a place back.
    fn look(self: &Arc<Self>) {
        // Told without the lock: a place that nobody takes any more comes back by its drop.
        let mut given = Vec::new();
        {
            let mut state = self.state();
            let mut at = 0;
            while at < state.waiting.len() && state.free > 0 {
                let (share, memory) = (Arc::clone(&state.waiting[at].share), state.waiting[at].memory);
                if state.waiting[at].tell.is_closed() {
                    state.waiting.remove(at);
                } else if let Some(place) = self.try_take(&mut state, &share, memory) {
                    if let Some(waiter) = state.waiting.remove(at) {
                        given.push((waiter.tell, place));
                    }
                } else {
                    at += 1;
                }
            }
        }
        for (tell, place) in given {
            let _ = tell.send(place);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(Held { of, share, memory }) = self.0.take() else {
            return;
        };
        let waiting = {
            let mut state = of.state();
            state.free += 1;
            let (own, has) = share.called();
            share.instances.store(own - 1, Ordering::Relaxed);
            share.memory.store(has - memory, Ordering::Relaxed);
            !state.waiting.is_empty()
        };
        if waiting {
            of.look();
        }
    }
}

impl Drop for SparePlace {
    fn drop(&mut self) {
        let Some(Held { of, share, memory }) = self.0.take() else {
            return;
        };
        let mut state = of.state();
        state.spare += 1;
        let (spares, spare_memory) = share.spared();
        share.spares.store(spares - 1, Ordering::Relaxed);
        share.spare_memory.store(spare_memory - memory, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use skep_model::quota::{Limits, Quota};

    use super::*;

    fn limited(limits: &[(Quota, u64)]) -> Arc<Share> {
        let (share, mut all) = (Share::default(), Limits::default());
        limits.iter().for_each(|(quota, value)| all.set(*quota, Some(*value)));
        share.limit(&all);
        Arc::new(share)
    }

    async fn fill(places: &Arc<Places>, share: &Arc<Share>, memory: u64) -> Vec<Place> {
        let mut held = Vec::new();
        while let Some(place) = {
            let mut state = places.state();
            places.try_take(&mut state, share, memory)
        } {
            held.push(place);
        }
        held
    }

    #[tokio::test]
    async fn one_tenant_alone_has_all_that_it_ever_had_and_another_finds_room() {
        let places = Places::new(160, 128, 0);
        let (one, two, three) = (limited(&[]), limited(&[]), limited(&[]));
        let first = fill(&places, &one, 0).await;
        assert_eq!(first.len(), 128);
        let second = fill(&places, &two, 0).await;
        assert!(
            second.len() > 20 && !fill(&places, &three, 0).await.is_empty(),
            "{}",
            second.len()
        );
        drop((first, second));
        assert_eq!((one.live(), two.live(), places.state().free), ((0, 0), (0, 0), 160));
    }

    #[tokio::test]
    async fn a_tenant_at_its_limit_waits_and_others_go_by() {
        let places = Places::new(16, 16, 4);
        let (few, small, other) = (
            limited(&[(Quota::Instances, 2)]),
            limited(&[(Quota::Memory, 64 << 20)]),
            limited(&[]),
        );
        let mut held = fill(&places, &few, 0).await;
        assert_eq!(held.len(), 2);
        assert!(places.spare(&few, 0).is_none(), "a spare would be one more");
        let waits = tokio::spawn({
            let (places, few) = (Arc::clone(&places), Arc::clone(&few));
            async move { places.take(&few, 0).await }
        });
        let gone = tokio::spawn({
            let (places, few) = (Arc::clone(&places), Arc::clone(&few));
            async move { places.take(&few, 0).await }
        });
        while places.state().waiting.len() < 2 {
            tokio::task::yield_now().await;
        }
        gone.abort();
        let _ = gone.await;
        let beside = places.take(&other, 0).await;
        assert!(beside.is_some() && !waits.is_finished());
        held.pop();
        assert!(waits.await.unwrap().is_some());
        // By memory; one alone is always let in.
        assert_eq!(fill(&places, &small, 32 << 20).await.len(), 2);
        assert_eq!(fill(&places, &small, 512 << 20).await.len(), 1);
        drop((held, beside));
        let state = places.state();
        assert_eq!((state.free, state.waiting.len()), (16, 0));
    }
}
