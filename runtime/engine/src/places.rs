//! Places for instances: how many calls run at once, whose, and with how much memory between them. More wait, in the order in which they
//! came, but that one for which there is no room lets others by.
//!
//! Those that wait are kept by tenant and memory, so that a place given back costs as many looks as there are tenants and sizes, not calls:
//! of the same tenant and size the first that came is the only one that can be next.
//!
//! A tenant takes one as long as it has fewer than [`BESIDE`] times what is free: alone it may have all but a fifth, and however many flood a
//! node, one that just comes finds a place.

use std::collections::{BTreeMap, HashMap, VecDeque};
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
    /// By the address of the share, which the line keeps alive.
    waiting: HashMap<usize, Line>,
    /// Of all lines, those that went away meanwhile included.
    waiters: usize,
    /// The number of the next that waits.
    next: u64,
}

/// Those of one tenant.
struct Line {
    share: Arc<Share>,
    waiters: usize,
    by_memory: BTreeMap<u64, VecDeque<Waiter>>,
}

struct Waiter {
    number: u64,
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
                waiting: HashMap::new(),
                waiters: 0,
                next: 0,
            }),
            each: each.into(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a call whose instance may grow to so much. `None`: so many wait, of this tenant or of all, that no more can.
    pub(crate) async fn take(self: &Arc<Self>, share: &Arc<Share>, memory: u64) -> Option<Place> {
        let told = {
            let mut state = self.state();
            if let Some(place) = self.try_take(&mut state, share, memory) {
                return Some(place);
            }
            state.wait(share, memory)?
        };
        told.await.ok()
    }

    fn try_take(self: &Arc<Self>, state: &mut State, share: &Arc<Share>, memory: u64) -> Option<Place> {
        if !self.has_room(state.free, share, memory) {
            return None;
        }
        let (own, has) = share.called();
        state.free -= 1;
        share.instances.store(own + 1, Ordering::Relaxed);
        share.memory.store(has + memory, Ordering::Relaxed);
        Some(Place(Some(Held {
            of: Arc::clone(self),
            share: Arc::clone(share),
            memory,
        })))
    }

    fn has_room(&self, free: u64, share: &Share, memory: u64) -> bool {
        let (own, has) = share.called();
        let room = own
            < self
                .each
                .min(BESIDE * free)
                .min(share.instances_max.load(Ordering::Relaxed));
        // One instance is always let in: it is given no more than its tenant may have.
        room && (own == 0 || has.saturating_add(memory) <= share.memory_max.load(Ordering::Relaxed))
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
            while let Some((share, memory, tell)) =
                state.first(|free, share, memory| self.has_room(free, share, memory))
            {
                match self.try_take(&mut state, &share, memory) {
                    Some(place) => given.push((tell, place)),
                    // It had room a moment ago, under the same lock.
                    None => break,
                }
            }
        }
        for (tell, place) in given {
            let _ = tell.send(place);
        }
    }
}

impl State {
    /// `None`: too many wait.
    fn wait(&mut self, share: &Arc<Share>, memory: u64) -> Option<oneshot::Receiver<Place>> {
        let at = Arc::as_ptr(share).addr();
        if !self.may_wait(at) {
            // Some may have gone away, which nobody looked at.
            self.sweep();
            if !self.may_wait(at) {
                return None;
            }
        }
        let line = self.waiting.entry(at).or_insert_with(|| Line {
            share: Arc::clone(share),
            waiters: 0,
            by_memory: BTreeMap::new(),
        });
        let (tell, told) = oneshot::channel();
        let number = self.next;
        line.by_memory
            .entry(memory)
            .or_default()
            .push_back(Waiter { number, tell });
        line.waiters += 1;
        self.waiters += 1;
        self.next += 1;
        Some(told)
    }

    /// As of places: a tenant may have so many times what is free.
    fn may_wait(&self, at: usize) -> bool {
        let free = GUEST_CALLS_WAITING_MAX.saturating_sub(self.waiters);
        let own = self.waiting.get(&at).map_or(0, |line| line.waiters);
        let beside = usize::try_from(BESIDE).unwrap_or(usize::MAX);
        own < beside.saturating_mul(free)
    }

    /// Takes out the first of those for which there is room.
    fn first(
        &mut self,
        has_room: impl Fn(u64, &Share, u64) -> bool,
    ) -> Option<(Arc<Share>, u64, oneshot::Sender<Place>)> {
        if self.free == 0 {
            return None;
        }
        let mut first: Option<(u64, usize, u64)> = None;
        for (at, line) in &mut self.waiting {
            for (memory, queue) in &mut line.by_memory {
                if !has_room(self.free, &line.share, *memory) {
                    continue;
                }
                while queue.front().is_some_and(|waiter| waiter.tell.is_closed()) {
                    queue.pop_front();
                    line.waiters -= 1;
                    self.waiters -= 1;
                }
                if let Some(waiter) = queue.front()
                    && first.is_none_or(|(number, ..)| waiter.number < number)
                {
                    first = Some((waiter.number, *at, *memory));
                }
            }
        }
        let found = first.and_then(|(_, at, memory)| {
            let line = self.waiting.get_mut(&at)?;
            let waiter = line.by_memory.get_mut(&memory)?.pop_front()?;
            line.waiters -= 1;
            self.waiters -= 1;
            Some((Arc::clone(&line.share), memory, waiter.tell))
        });
        self.tidy();
        found
    }

    fn sweep(&mut self) {
        for line in self.waiting.values_mut() {
            for queue in line.by_memory.values_mut() {
                let before = queue.len();
                queue.retain(|waiter| !waiter.tell.is_closed());
                line.waiters -= before - queue.len();
                self.waiters -= before - queue.len();
            }
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        self.waiting.retain(|_, line| {
            line.by_memory.retain(|_, queue| !queue.is_empty());
            line.waiters > 0
        });
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
            state.waiters > 0
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
        while places.state().waiters < 2 {
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
        assert_eq!((state.free, state.waiters, state.waiting.len()), (16, 0, 0));
    }

    #[tokio::test]
    async fn they_come_in_turn_and_no_tenant_takes_all_room_to_wait() {
        let places = Places::new(2, 2, 0);
        let (many, other) = (limited(&[]), limited(&[]));
        let held = fill(&places, &many, 0).await;
        assert_eq!(held.len(), 2);
        let mut told = Vec::new();
        while let Some(receiver) = places.state().wait(&many, 7) {
            told.push(receiver);
        }
        assert_eq!(told.len(), GUEST_CALLS_WAITING_MAX / 5 * 4);
        assert!(
            places.take(&many, 7).await.is_none(),
            "refused at once, not when a place comes"
        );
        let mut late = places.state().wait(&other, 7).expect("others may still wait");
        // Those that went away make room without a place being given back.
        told.truncate(2);
        told.push(places.state().wait(&many, 9).unwrap());
        {
            let state = places.state();
            assert_eq!((state.waiters, state.waiting.len()), (4, 2));
        }
        let mut held = VecDeque::from(held);
        let mut came = Vec::new();
        for _ in 0..4 {
            held.pop_front();
            for (name, receiver) in [("first", 0), ("second", 1), ("third", 2)] {
                if let Ok(place) = told[receiver].try_recv() {
                    came.push(name);
                    held.push_back(place);
                }
            }
            if let Ok(place) = late.try_recv() {
                came.push("other");
                held.push_back(place);
            }
        }
        assert_eq!(came, ["first", "second", "other", "third"]);
        drop(held);
        let state = places.state();
        assert_eq!((state.free, state.waiters, state.waiting.len()), (2, 0, 0));
    }
}
