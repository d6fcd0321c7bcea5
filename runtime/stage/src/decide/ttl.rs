//! Values that go by themselves.
//!
//! A key of a stage with a TTL has one value more, which no Bee sees: when each of the others was refreshed last. It is written by the
//! commit that refreshes them, so both are always of one moment. One timer a key, set to when the first of them may go, brings the key
//! back to its owner, who deletes what is over in a normal commit: nothing is ever scanned, and a key that nobody touches any more
//! leaves nothing behind. Values are hidden from the moment that their time is over, collected or not.
//!
//! - The timer is not moved with each write: it may fire early, and is set anew then.
//! - The times are the store's clock, as a fetch reads it.

use std::collections::{BTreeMap, HashMap};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use skep_model::env::Entropy;
use skep_model::id::Uid;
use skep_model::step::StateMap;
use skep_model::swarm::{END, Refresh, Ttl};
use skep_topic::{StatePut, TimerSet};

/// The name of that value, and of the timer. Refused to Bees.
pub(crate) const NAME: &str = "\0ttl";
/// Values deleted by one commit of a key, so that it has room for what the Bee does; the others follow.
const DELETED_MAX: usize = 64;
const FORMAT: u8 = 1;

/// The ages of one key's values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ages {
    /// When the key's timer is due; 0: there is none.
    timer_ms: u64,
    /// When each value was refreshed.
    each: BTreeMap<String, u64>,
}

impl Ages {
    /// What cannot be read counts as not there: its values are young again.
    fn read(mut stored: Bytes) -> Option<Self> {
        if stored.len() < 9 || stored.get_u8() != FORMAT {
            return None;
        }
        let mut ages = Self {
            timer_ms: stored.get_u64_le(),
            each: BTreeMap::new(),
        };
        while !stored.is_empty() {
            if stored.len() < 10 {
                return None;
            }
            let (at, name) = (stored.get_u64_le(), usize::from(stored.get_u16_le()));
            if stored.len() < name {
                return None;
            }
            let name = String::from_utf8(stored.split_to(name).to_vec()).ok()?;
            ages.each.insert(name, at);
        }
        Some(ages)
    }

    fn written(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(9 + entries(self.each.keys()));
        out.put_u8(FORMAT);
        out.put_u64_le(self.timer_ms);
        for (name, at) in &self.each {
            out.put_u64_le(*at);
            out.put_u16_le(u16::try_from(name.len()).unwrap_or(u16::MAX));
            out.extend_from_slice(name.as_bytes());
        }
        out.freeze()
    }
}

fn entries<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    names.map(|name| 10 + name.len()).sum()
}

/// The keys of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Book {
    keys: HashMap<String, Aged>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Aged {
    ages: Ages,
    /// Over, and still stored.
    over: BTreeMap<String, u64>,
    /// There is a value of ages.
    stored: bool,
    /// Its key is to be written.
    touched: bool,
}

/// Takes the ages out of a key's values, and what is over.
fn split(values: &mut BTreeMap<String, Bytes>, ttl: Option<Ttl>, now_ms: u64) -> Aged {
    let stored = values.remove(NAME);
    let mut aged = Aged {
        stored: stored.is_some(),
        ages: stored.and_then(Ages::read).unwrap_or_default(),
        ..Aged::default()
    };
    let Some(ttl) = ttl else { return aged };
    aged.ages.each.retain(|name, _| values.contains_key(name));
    for name in values.keys() {
        if !aged.ages.each.contains_key(name) {
            // From before the stage had a TTL.
            aged.ages.each.insert(name.clone(), now_ms);
        }
    }
    let (over, young) = std::mem::take(&mut aged.ages.each)
        .into_iter()
        .partition(|(_, at)| at.saturating_add(ttl.ms) <= now_ms);
    aged.over = over;
    aged.ages.each = young;
    values.retain(|name, _| !aged.over.contains_key(name));
    aged
}

/// What a Bee would see of a key's stored values.
pub fn visible(values: &mut BTreeMap<String, Bytes>, ttl: Option<Ttl>, now_ms: u64) {
    split(values, ttl, now_ms);
    values.remove(END);
}

/// What sets one key to these values, whatever is stored of it: writes, and where the stage has a TTL the ages that go with them.
#[must_use]
pub fn replaced(
    key: &str,
    stored: BTreeMap<String, Bytes>,
    values: BTreeMap<String, Bytes>,
    ttl: Option<Ttl>,
    now_ms: u64,
    entropy: &dyn Entropy,
) -> (Vec<StatePut>, Vec<TimerSet>) {
    let put = |name: String, value| StatePut {
        key: key.to_owned(),
        name,
        value,
    };
    let mut state: StateMap = [(key.to_owned(), stored)].into();
    let mut book = Book::open(&mut state, ttl, now_ms);
    let former = state.remove(key).into_iter().flatten();
    let gone = former.filter(|(name, _)| !values.contains_key(name));
    let mut puts: Vec<StatePut> = gone.map(|(name, _)| put(name, None)).collect();
    puts.extend(values.into_iter().map(|(name, value)| put(name, Some(value))));
    match ttl {
        Some(ttl) => book.touch(key, &puts, false, ttl, now_ms),
        None => book.swept(key),
    }
    let (aged, timers) = book.close(ttl, now_ms, entropy);
    puts.extend(aged);
    (puts, timers)
}

impl Book {
    /// Takes from the state what is not the Bee's.
    pub(super) fn open(state: &mut StateMap, ttl: Option<Ttl>, now_ms: u64) -> Self {
        let mut book = Self::default();
        for (key, values) in state {
            if ttl.is_some() || values.contains_key(NAME) {
                book.keys.insert(key.clone(), split(values, ttl, now_ms));
            }
        }
        book
    }

    /// Bytes that an item of the key may add to the commit.
    pub(super) fn cost(&self, key: &str, puts: &[StatePut]) -> usize {
        let puts: usize = puts.iter().map(|put| 10 + put.name.len()).sum();
        let aged = self.keys.get(key);
        let known = aged.map_or(0, |aged| {
            let over = aged.over.keys().take(DELETED_MAX);
            entries(aged.ages.each.keys())
                + entries(aged.over.keys())
                + over.map(|name| key.len() + name.len()).sum::<usize>()
        });
        key.len() + NAME.len() + 9 + puts + known
    }

    /// An input of the key was done with these writes. `given`: the Bee had it.
    pub(super) fn touch(&mut self, key: &str, puts: &[StatePut], given: bool, ttl: Ttl, now_ms: u64) {
        let reads = given && ttl.refresh == Refresh::Read;
        if puts.is_empty() && !(reads && self.keys.get(key).is_some_and(|aged| !aged.ages.each.is_empty())) {
            return;
        }
        if !self.keys.contains_key(key) {
            self.keys.insert(key.to_owned(), Aged::default());
        }
        let Some(aged) = self.keys.get_mut(key) else { return };
        aged.touched = true;
        if reads {
            aged.ages.each.values_mut().for_each(|at| *at = now_ms);
        }
        for put in puts {
            aged.over.remove(&put.name);
            if put.value.is_none() {
                aged.ages.each.remove(&put.name);
            } else if let Some(at) = aged.ages.each.get_mut(&put.name) {
                *at = now_ms;
            } else {
                aged.ages.each.insert(put.name.clone(), now_ms);
            }
        }
    }

    /// The key's timer fired.
    pub(super) fn swept(&mut self, key: &str) {
        if let Some(aged) = self.keys.get_mut(key) {
            aged.ages.timer_ms = 0;
            aged.touched = true;
        }
    }

    /// What the commit does to the keys besides, after what their inputs did.
    pub(super) fn close(self, ttl: Option<Ttl>, now_ms: u64, entropy: &dyn Entropy) -> (Vec<StatePut>, Vec<TimerSet>) {
        let (mut puts, mut timers) = (Vec::new(), Vec::new());
        let mut keys: Vec<(String, Aged)> = self.keys.into_iter().filter(|(_, aged)| aged.touched).collect();
        // One batch makes one commit, whatever the order of a map.
        keys.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (key, mut aged) in keys {
            let mut put = |name: String, value| {
                puts.push(StatePut {
                    key: key.clone(),
                    name,
                    value,
                });
            };
            let mut timer = |at_ms| {
                timers.push(TimerSet {
                    key: key.clone(),
                    name: NAME.to_owned(),
                    at_ms,
                    uid: Uid::random(entropy),
                });
            };
            let Some(ttl) = ttl else {
                // The stage has none any more: its values stay.
                if aged.stored {
                    put(NAME.to_owned(), None);
                }
                continue;
            };
            let mut over = aged.over.into_iter();
            for (name, _) in over.by_ref().take(DELETED_MAX) {
                put(name, None);
            }
            let first = aged.ages.each.values().min().map(|at| at.saturating_add(ttl.ms));
            let left = aged.ages.each.len();
            aged.ages.each.extend(over);
            let due = if aged.ages.each.len() > left {
                Some(now_ms)
            } else {
                first
            };
            let pending = aged.ages.timer_ms > now_ms;
            match due {
                None => {
                    if aged.stored {
                        put(NAME.to_owned(), None);
                    }
                    if pending {
                        timer(None);
                    }
                }
                Some(due) => {
                    if !pending || aged.ages.timer_ms > due {
                        timer(Some(due));
                        aged.ages.timer_ms = due;
                    }
                    put(NAME.to_owned(), Some(aged.ages.written()));
                }
            }
        }
        (puts, timers)
    }
}

#[cfg(test)]
mod tests;
