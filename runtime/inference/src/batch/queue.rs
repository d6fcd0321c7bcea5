//! Which calls run together, and when: decided purely. Nothing here knows a thread or a clock.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use serde::{Deserialize, Serialize};

use crate::limits::{BATCH_ROWS_DEFAULT, BATCH_ROWS_MAX, BATCH_WAIT_US_MAX, QUEUE_BYTES_MAX, QUEUE_ROWS_MAX};

/// How calls of one model are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Rows of one run. A single call may have more; it is run alone then.
    pub max_rows: usize,
    /// How long a call may be made to wait for others while the model is idle, in microseconds. With 0, the default, nothing is added:
    /// calls meet while a run is under way, which is when there are many.
    pub max_wait_us: u64,
    /// Each call is a run of its own, as with a model whose rows depend on each other.
    pub off: bool,
    /// Rows of several subjects may be in one run: all of them chose so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub together: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_rows: BATCH_ROWS_DEFAULT,
            max_wait_us: 0,
            off: false,
            together: false,
        }
    }
}

impl Policy {
    #[must_use]
    pub fn off() -> Self {
        Self {
            off: true,
            ..Self::default()
        }
    }

    /// Within what a policy may say.
    #[must_use]
    pub fn clamped(self) -> Self {
        Self {
            max_rows: self.max_rows.clamp(1, BATCH_ROWS_MAX),
            max_wait_us: self.max_wait_us.min(BATCH_WAIT_US_MAX),
            off: self.off,
            together: self.together,
        }
    }
}

/// What may wait for one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub rows: usize,
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            rows: QUEUE_ROWS_MAX,
            bytes: QUEUE_BYTES_MAX,
        }
    }
}

/// One call, as far as the decision goes. Times are microseconds since any moment.
#[derive(Debug)]
pub struct Call<T> {
    /// Between subjects (tenants) rows are shared evenly.
    pub subject: u64,
    pub rows: usize,
    pub bytes: usize,
    /// Calls of different groups do not run together: their shapes differ beside the rows.
    pub group: u64,
    pub deadline_us: Option<u64>,
    pub what: T,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Run these together, and say so to [`Queue::ended`]. Never empty.
    Run(Vec<T>),
    /// Look again then, or when something comes or ends.
    At(u64),
    /// Nothing until something comes or ends.
    Nothing,
}

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T> {
    pub what: T,
    pub rows: usize,
    pub bytes: usize,
    pub bounds: Bounds,
}

/// Numbers that are counted here, and subjects, which are the results of a keyed hash already: nobody can choose them to fall together.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // 2⁶⁴ over the golden ratio: neighbours go far apart (Knuth, volume 3, 6.4).
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

type Map<V> = HashMap<u64, V, BuildHasherDefault<Spread>>;

struct Entry<T> {
    call: Call<T>,
    /// When it must not be made to wait for others any more.
    due_us: u64,
}

#[derive(Default)]
struct Lane {
    calls: VecDeque<u64>,
    /// Rows that this subject was given, in a measure that all share: who comes anew begins where those are who wait.
    served: u64,
}

/// The calls that wait for one model.
///
/// Subjects take turns by rows (start-time fair queueing: the subject that was given least comes next), so that one with a thousand calls and
/// one with two are served alike while both wait. Within a subject calls go in order. Invariant: `rows` and `bytes` are the sums over
/// `entries`; each entry is in exactly one lane; a lane without calls is not kept.
pub struct Queue<T> {
    policy: Policy,
    bounds: Bounds,
    /// Runs that may be under way at once, and are.
    runs_max: usize,
    runs: usize,
    entries: Map<Entry<T>>,
    lanes: Map<Lane>,
    /// Subjects that wait, by what they were given.
    order: BTreeSet<(u64, u64)>,
    /// Subjects that do not wait but were given more than others who do: they begin from there if they come back soon.
    ahead: Map<u64>,
    due: BTreeSet<(u64, u64)>,
    deadlines: BTreeSet<(u64, u64)>,
    rows: usize,
    bytes: usize,
    next_id: u64,
    /// What the subject that was served last had been given before.
    now_served: u64,
}

impl<T> Queue<T> {
    #[must_use]
    pub fn new(policy: Policy, bounds: Bounds, runs_max: usize) -> Self {
        Self {
            policy: policy.clamped(),
            bounds,
            runs_max: runs_max.max(1),
            runs: 0,
            entries: Map::default(),
            lanes: Map::default(),
            order: BTreeSet::new(),
            ahead: Map::default(),
            due: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            rows: 0,
            bytes: 0,
            next_id: 0,
            now_served: 0,
        }
    }

    /// From the next decision on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy.clamped();
    }

    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Rows and bytes that wait.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        (self.rows, self.bytes)
    }

    /// A call that needs not wait: there is none before it, a run may begin, and nothing is to be gained by waiting. It counts as a
    /// run, to be told to [`Queue::ended`].
    pub fn begin_at_once(&mut self) -> bool {
        let at_once =
            self.entries.is_empty() && self.runs < self.runs_max && (self.policy.off || self.policy.max_wait_us == 0);
        self.runs += usize::from(at_once);
        at_once
    }

    /// Answers a number by which it can be taken out again.
    ///
    /// # Errors
    /// More rows or bytes would wait than may. A call alone is always taken, so that none is refused forever.
    pub fn push(&mut self, call: Call<T>, now_us: u64) -> Result<u64, Full<T>> {
        let rows = self.rows.saturating_add(call.rows);
        let bytes = self.bytes.saturating_add(call.bytes);
        if !self.entries.is_empty() && (rows > self.bounds.rows || bytes > self.bounds.bytes) {
            return Err(Full {
                what: call.what,
                rows: self.rows,
                bytes: self.bytes,
                bounds: self.bounds,
            });
        }
        self.rows = rows;
        self.bytes = bytes;
        let id = self.next_id;
        self.next_id += 1;
        let wait = if self.policy.off { 0 } else { self.policy.max_wait_us };
        // One that has a deadline needs some of its time to run.
        let patience = call
            .deadline_us
            .map_or(u64::MAX, |deadline| deadline.saturating_sub(now_us) / 2);
        let due_us = now_us.saturating_add(wait.min(patience));
        self.due.insert((due_us, id));
        if let Some(deadline) = call.deadline_us {
            self.deadlines.insert((deadline, id));
        }
        let lane = self.lanes.entry(call.subject).or_default();
        if lane.calls.is_empty() {
            lane.served = self.ahead.remove(&call.subject).unwrap_or(0).max(self.now_served);
            self.order.insert((lane.served, call.subject));
        }
        lane.calls.push_back(id);
        self.entries.insert(id, Entry { call, due_us });
        Ok(id)
    }

    /// Takes a call out again: whoever made it does not wait any more. None: it runs, or has ended.
    pub fn take(&mut self, id: u64) -> Option<T> {
        let entry = self.entries.remove(&id)?;
        self.due.remove(&(entry.due_us, id));
        if let Some(deadline) = entry.call.deadline_us {
            self.deadlines.remove(&(deadline, id));
        }
        self.rows -= entry.call.rows;
        self.bytes -= entry.call.bytes;
        let subject = entry.call.subject;
        if let Some(lane) = self.lanes.get_mut(&subject) {
            // Mostly it is the first; the whole lane is looked through only for one that gives up.
            if lane.calls.front() == Some(&id) {
                lane.calls.pop_front();
            } else {
                lane.calls.retain(|other| *other != id);
            }
            if lane.calls.is_empty() {
                self.order.remove(&(lane.served, subject));
                if lane.served > self.now_served {
                    self.ahead.insert(subject, lane.served);
                }
                self.lanes.remove(&subject);
            }
        }
        // Where nobody waits nobody was kept waiting by anybody.
        if self.entries.is_empty() {
            self.ahead.clear();
        }
        Some(entry.call.what)
    }

    /// Takes out what passed its deadline: it is answered so, and never run.
    pub fn expired(&mut self, now_us: u64) -> Vec<T> {
        let mut gone = Vec::new();
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now_us {
                break;
            }
            gone.extend(self.take(id));
        }
        gone
    }

    /// A run that [`Queue::next`] or [`Queue::begin_at_once`] began has ended.
    pub fn ended(&mut self) {
        self.runs = self.runs.saturating_sub(1);
    }

    /// When [`Queue::next`] would run something, if nothing came or ended until then.
    #[must_use]
    pub fn wants(&self, now_us: u64) -> Option<u64> {
        let (due, _) = self.due.first().filter(|_| self.runs < self.runs_max)?;
        Some(if self.rows >= self.policy.max_rows {
            now_us
        } else {
            (*due).max(now_us)
        })
    }

    /// Everything that waits, as the threads stop.
    pub fn drain(&mut self) -> Vec<T> {
        let ids: Vec<u64> = self.entries.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// What to do at this moment. [`Queue::expired`] comes first, or what has expired is run.
    pub fn next(&mut self, now_us: u64) -> Next<T> {
        match self.wants(now_us) {
            Some(due) if due > now_us => return Next::At(due),
            Some(_) => {}
            None => return Next::Nothing,
        }
        let batch = self.pick();
        if batch.is_empty() {
            return Next::Nothing;
        }
        self.runs += 1;
        Next::Run(batch)
    }

    /// The fairest head decides the group; then heads of that group, the fairest first, as long as they fit.
    fn pick(&mut self) -> Vec<T> {
        let mut batch = Vec::new();
        let mut left = self.policy.max_rows;
        let mut group = None;
        // Subjects whose first call does not fit here keep their place for the next run.
        let mut from = None;
        loop {
            let next = match from {
                None => self.order.first().copied(),
                Some(after) => self
                    .order
                    .range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded))
                    .next()
                    .copied(),
            };
            let Some((served, subject)) = next else { break };
            let Some(lane) = self.lanes.get_mut(&subject) else {
                break;
            };
            let Some(id) = lane.calls.front().copied() else { break };
            let Some(entry) = self.entries.get(&id) else { break };
            let rows = entry.call.rows;
            let first = batch.is_empty();
            if !first && (Some(entry.call.group) != group || rows > left) {
                from = Some((served, subject));
                continue;
            }
            group = Some(entry.call.group);
            left = left.saturating_sub(rows);
            self.now_served = self.now_served.max(served);
            self.order.remove(&(served, subject));
            lane.served = served.saturating_add(rows as u64);
            self.order.insert((lane.served, subject));
            let Some(what) = self.take(id) else { break };
            batch.push(what);
            if left == 0 || self.policy.off {
                break;
            }
        }
        let now_served = self.now_served;
        self.ahead.retain(|_, served| *served > now_served);
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn call(subject: u64, rows: usize, what: usize) -> Call<usize> {
        Call {
            subject,
            rows,
            bytes: rows * 10,
            group: 0,
            deadline_us: None,
            what,
        }
    }

    fn queue(policy: Policy) -> Queue<usize> {
        Queue::new(
            policy,
            Bounds {
                rows: 100,
                bytes: 1_000_000,
            },
            1,
        )
    }

    #[test]
    fn a_lone_call_runs_at_once_and_others_meet_meanwhile() {
        let mut queue = queue(Policy::default());
        assert!(queue.begin_at_once());
        assert!(!queue.begin_at_once(), "one run at a time");
        for what in 0..3 {
            queue.push(call(1, 2, what), 0).unwrap();
        }
        assert_eq!(queue.next(0), Next::Nothing, "the first run is under way");
        queue.ended();
        assert!(!queue.begin_at_once(), "who waits comes first");
        assert_eq!(queue.next(0), Next::Run(vec![0, 1, 2]));
        queue.ended();
        assert_eq!(queue.next(0), Next::Nothing);
        assert!(queue.begin_at_once());
    }

    #[test]
    fn a_wait_ends_by_time_by_rows_or_by_a_deadline() {
        let waits = Policy {
            max_rows: 4,
            max_wait_us: 100,
            off: false,
            together: false,
        };
        let mut queue = queue(waits);
        assert!(!queue.begin_at_once());
        queue.push(call(1, 1, 0), 10).unwrap();
        assert_eq!(queue.next(10), Next::At(110));
        queue.push(call(1, 1, 1), 50).unwrap();
        assert_eq!(queue.next(109), Next::At(110));
        assert_eq!(queue.next(110), Next::Run(vec![0, 1]));
        queue.ended();
        (2..6).for_each(|what| drop(queue.push(call(1, 1, what), 200)));
        assert_eq!(queue.next(200), Next::Run(vec![2, 3, 4, 5]));
        queue.ended();
        queue
            .push(
                Call {
                    deadline_us: Some(340),
                    ..call(1, 1, 6)
                },
                300,
            )
            .unwrap();
        assert_eq!(queue.next(300), Next::At(320), "half of its time is left to run");
        assert_eq!(queue.expired(339), Vec::<usize>::new());
        assert_eq!(queue.expired(340), vec![6]);
        assert_eq!(queue.waiting(), (0, 0));
    }

    #[test]
    fn off_means_one_call_a_run() {
        let mut queue = queue(Policy::off());
        (0..3).for_each(|what| drop(queue.push(call(1, 1, what), 0)));
        for what in 0..3 {
            assert_eq!(queue.next(0), Next::Run(vec![what]));
            queue.ended();
        }
    }

    #[test]
    fn groups_and_sizes_that_do_not_fit_wait_for_the_next_run() {
        let mut queue = queue(Policy {
            max_rows: 4,
            ..Policy::default()
        });
        queue.push(call(1, 2, 0), 0).unwrap();
        queue
            .push(
                Call {
                    group: 9,
                    ..call(2, 1, 1)
                },
                0,
            )
            .unwrap();
        queue.push(call(3, 3, 2), 0).unwrap();
        queue.push(call(4, 2, 3), 0).unwrap();
        queue.push(call(5, 50, 4), 0).unwrap();
        let mut runs = Vec::new();
        while let Next::Run(batch) = queue.next(0) {
            runs.push(batch);
            queue.ended();
        }
        assert_eq!(runs, [vec![0, 3], vec![1], vec![2], vec![4]]);
    }

    #[test]
    fn what_waits_is_bounded_but_a_call_alone_is_taken() {
        let mut queue = queue(Policy::default());
        queue.push(call(1, 5_000, 0), 0).unwrap();
        let full = queue.push(call(1, 1, 1), 0).unwrap_err();
        assert_eq!((full.what, full.rows, full.bytes), (1, 5_000, 50_000));
        assert_eq!(queue.next(0), Next::Run(vec![0]));
        queue.push(call(1, 100, 2), 0).unwrap();
        assert!(queue.push(call(1, 1, 3), 0).is_err());
        let mut tight = Queue::new(Policy::default(), Bounds { rows: 100, bytes: 25 }, 1);
        tight.push(call(1, 2, 0), 0).unwrap();
        assert!(tight.push(call(1, 1, 1), 0).is_err(), "30 bytes of 25");
    }

    #[test]
    fn a_flood_of_one_subject_does_not_keep_another_waiting() {
        let mut queue = Queue::new(
            Policy {
                max_rows: 8,
                ..Policy::default()
            },
            Bounds {
                rows: 10_000,
                bytes: usize::MAX,
            },
            1,
        );
        (0..1_000).for_each(|what| drop(queue.push(call(1, 1, what), 0)));
        assert!(matches!(queue.next(0), Next::Run(_)));
        queue.ended();
        (2_000..2_004).for_each(|what| drop(queue.push(call(2, 1, what), 0)));
        let Next::Run(batch) = queue.next(0) else { panic!() };
        assert_eq!(batch.iter().filter(|what| **what >= 2_000).count(), 4, "{batch:?}");
    }

    /// A subject that comes back each time its call was run has no more than one that always waits.
    #[test]
    fn coming_back_gives_no_advantage() {
        let mut queue = Queue::new(
            Policy {
                max_rows: 4,
                ..Policy::default()
            },
            Bounds {
                rows: 10_000,
                bytes: usize::MAX,
            },
            1,
        );
        (0..4_000).for_each(|what| drop(queue.push(call(1, 1, what), 0)));
        let (mut steady, mut returning) = (0, 0);
        for _ in 0..200 {
            if !queue.lanes.contains_key(&2) {
                queue.push(call(2, 4, 9_999), 0).unwrap();
            }
            let Next::Run(batch) = queue.next(0) else { panic!() };
            returning += 4 * batch.iter().filter(|what| **what == 9_999).count();
            steady += batch.iter().filter(|what| **what != 9_999).count();
            queue.ended();
        }
        assert!(
            (returning as i64 - steady as i64).abs() <= 8,
            "{returning} and {steady}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        /// Any schedule of calls, runs, gifts of time and changes of mind: each call ends once, in order, on time, and with its like.
        #[test]
        fn each_call_ends_once(seed: u64, max_rows in 1usize..20, wait in 0u64..200, off: bool, runs_max in 1usize..4) {
            let mut random = SmallRng::seed_from_u64(seed);
            let policy = Policy { max_rows, max_wait_us: wait, off, together: false };
            let bounds = Bounds { rows: 40, bytes: 600 };
            let mut queue: Queue<usize> = Queue::new(policy, bounds, runs_max);
            // Of each call: subject, rows, group, deadline.
            let mut calls: Vec<(u64, usize, u64, Option<u64>)> = Vec::new();
            let mut ids = HashMap::new();
            let (mut open, mut ended) = (HashSet::new(), HashSet::new());
            let mut last_of: HashMap<u64, usize> = HashMap::new();
            let (mut now, mut under_way) = (0u64, 0usize);
            for step in 0..300 {
                let closing = step >= 250;
                match random.random_range(0..10) {
                    0..=4 if !closing => {
                        let rows = random.random_range(1..8);
                        let deadline = random.random_bool(0.3).then(|| now + random.random_range(0..300));
                        let (subject, group) = (random.random_range(0..5), random.random_range(0..2));
                        let what = calls.len();
                        calls.push((subject, rows, group, deadline));
                        match queue.push(Call { subject, rows, bytes: rows * 10, group, deadline_us: deadline, what }, now) {
                            Ok(id) => { ids.insert(what, id); open.insert(what); }
                            Err(full) => {
                                prop_assert!(full.rows + rows > bounds.rows || full.bytes + rows * 10 > bounds.bytes);
                                ended.insert(what);
                            }
                        }
                    }
                    5 if !closing => {
                        let some = open.iter().min().copied();
                        if let Some(what) = some {
                            prop_assert_eq!(queue.take(ids[&what]), Some(what));
                            prop_assert_eq!(queue.take(ids[&what]), None);
                            open.remove(&what);
                            ended.insert(what);
                        }
                    }
                    6 => now += random.random_range(0..100),
                    7 if !closing && queue.begin_at_once() => {
                        prop_assert!(open.is_empty() && (off || wait == 0));
                        under_way += 1;
                    }
                    _ if under_way > 0 => { queue.ended(); under_way -= 1; }
                    _ => {}
                }
                for what in queue.expired(now) {
                    prop_assert!(calls[what].3.is_some_and(|deadline| deadline <= now));
                    prop_assert!(open.remove(&what) && ended.insert(what));
                }
                loop {
                    match queue.next(now) {
                        Next::Run(batch) => {
                            under_way += 1;
                            prop_assert!(under_way <= runs_max && !batch.is_empty());
                            prop_assert!(batch.len() == 1 || batch.iter().map(|what| calls[*what].1).sum::<usize>() <= max_rows);
                            prop_assert!(!off || batch.len() == 1);
                            prop_assert!(batch.iter().all(|what| calls[*what].2 == calls[batch[0]].2), "one group");
                            for what in batch {
                                prop_assert!(calls[what].3.is_none_or(|deadline| deadline > now), "run after its deadline");
                                prop_assert!(open.remove(&what) && ended.insert(what));
                                let before = last_of.insert(calls[what].0, what);
                                prop_assert!(before.is_none_or(|before| before < what), "a subject's calls keep their order");
                            }
                        }
                        Next::At(then) => {
                            prop_assert!(then > now && then <= now + wait && !open.is_empty());
                            break;
                        }
                        Next::Nothing => {
                            prop_assert!(open.is_empty() || under_way == runs_max, "work and room, and nothing is done");
                            break;
                        }
                    }
                }
                let rows: usize = open.iter().map(|what| calls[*what].1).sum();
                prop_assert_eq!(queue.waiting(), (rows, rows * 10));
                prop_assert!(queue.ahead.len() <= 5 && queue.lanes.len() <= open.len());
            }
            now += 1_000;
            while under_way > 0 || !open.is_empty() {
                if under_way > 0 { queue.ended(); under_way -= 1; }
                queue.expired(now).into_iter().for_each(|what| { open.remove(&what); ended.insert(what); });
                while let Next::Run(batch) = queue.next(now) {
                    under_way += 1;
                    batch.into_iter().for_each(|what| { open.remove(&what); ended.insert(what); });
                }
            }
            prop_assert_eq!(ended.len(), calls.len());
            prop_assert_eq!(queue.waiting(), (0, 0));
            prop_assert!(queue.lanes.is_empty() && queue.due.is_empty() && queue.deadlines.is_empty() && queue.order.is_empty());
        }
    }
}
