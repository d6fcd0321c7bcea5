//! Against a naive model: each value with the time of its last refresh.

use std::sync::Arc;

use proptest::prelude::*;
use skep_model::env::{Clock, ManualClock, SeededEntropy};
use skep_model::id::{CommitId, Token};
use skep_model::message::Message;
use skep_model::step::{Disposition, Input, StateWrite, Step};
use skep_model::swarm::{KeySource, Order};
use skep_topic::embedded::Embedded;
use skep_topic::memory::Memory;
use skep_topic::{Backend, Call, Gate, Lease, Once, Publish, Want};

use super::super::tests::{RAN, done, message, plan_of, with};
use super::super::{Stamp, arrange, decide};
use super::*;
use crate::plan::Plan;

const TTL: u64 = 100;

#[derive(Debug, Clone)]
struct Deed {
    key: u8,
    /// Names; `None` deletes.
    writes: Vec<(u8, Option<u8>)>,
    /// The first attempt fails.
    fails: bool,
    wait_ms: u64,
}

fn deed() -> impl Strategy<Value = Deed> {
    (
        0..3u8,
        proptest::collection::vec((0..3u8, proptest::option::weighted(0.8, any::<u8>())), 0..3),
        proptest::bool::weighted(0.1),
        0..60u64,
    )
        .prop_map(|(key, writes, fails, wait_ms)| Deed {
            key,
            writes,
            fails,
            wait_ms,
        })
}

/// Value and time by key and name.
type Model = HashMap<String, BTreeMap<String, (Bytes, u64)>>;

struct World {
    backend: Arc<dyn Backend>,
    clock: Arc<ManualClock>,
    rng: SeededEntropy,
    plan: Plan,
    deeds: Vec<Deed>,
    model: Model,
    refresh: Refresh,
}

impl World {
    fn seen(&self, key: &str) -> BTreeMap<String, Bytes> {
        let now = self.clock.now_ms();
        let values = self.model.get(key).into_iter().flatten();
        values
            .filter(|(_, (_, at))| at + TTL > now)
            .map(|(name, (value, _))| (name.clone(), value.clone()))
            .collect()
    }

    async fn send(&self, n: usize) {
        let key = format!("k{}", self.deeds[n].key);
        let mut message: Message = message(u8::try_from(n).unwrap(), Some(&key));
        message.uid = Uid::random(&self.rng);
        let publish = Publish {
            swarm: self.plan.topic.id.swarm().clone(),
            calls: vec![Call {
                to: vec![(Arc::clone(&self.plan.topic), vec![message])],
                once: Once::No,
            }],
            gate: Gate::Appended,
        };
        self.backend.publish(publish).await.unwrap()[0].clone().unwrap();
    }

    /// What the Bee does with an input.
    fn step(&self, input: &Input) -> Step {
        let Input::Message { message, attempt } = input else {
            panic!("no timer is the Bee's");
        };
        let deed = &self.deeds[usize::from(message.payload[0])];
        if deed.fails && *attempt == 1 {
            return with(Disposition::RetryAfter(30));
        }
        let mut step = done(Vec::new());
        step.state = deed.writes.iter().map(write).collect();
        step
    }

    /// Everything that there is to do now. Returns whether there was anything.
    async fn work(&mut self, messages: u32) -> bool {
        let token = Token::random(&self.rng);
        let claim = self
            .backend
            .claim(&self.plan.topic, 0, token, 10_000)
            .await
            .unwrap()
            .unwrap();
        let lease = Lease {
            partition: self.plan.topic.id.partition(0),
            token,
        };
        let want = Want {
            from: claim.cursor,
            base: claim.last,
            messages,
            bytes: 1 << 20,
            state: true,
            state_bytes: 1 << 20,
            timers_max: u64::MAX,
        };
        let fetched = self.backend.fetch(&lease, want).await.unwrap();
        let any = !fetched.is_empty();
        if any {
            let (taken, batch) = arrange(&self.plan, fetched, |_| false);
            for (key, values) in &batch.state {
                assert_eq!(
                    values,
                    &self.seen(key),
                    "what the Bee sees of {key} at {}",
                    self.clock.now_ms()
                );
            }
            let steps: Vec<_> = batch.inputs.iter().map(|input| Ok(self.step(input))).collect();
            let stamp = Stamp {
                id: CommitId::random(&self.rng),
                seq: claim.seq,
                base: claim.last,
                from: claim.cursor,
            };
            let inputs = batch.inputs;
            let decision = decide(&self.plan, &taken, steps, stamp, RAN, &self.rng);
            let parked = |uid| {
                let commit = &decision.commit;
                let again = commit.retries.iter().filter_map(|r| r.again.as_ref());
                commit.park.iter().chain(again).any(|p| p.work.uid() == uid)
            };
            for input in inputs.iter().filter(|input| !parked(input.uid())) {
                self.model_takes(input);
            }
            self.backend.commit(&lease, decision.commit).await.unwrap();
        }
        self.backend.release(&lease).await.unwrap();
        any
    }

    fn model_takes(&mut self, input: &Input) {
        let now = self.clock.now_ms();
        let values = self.model.entry(input.key().unwrap().to_owned()).or_default();
        values.retain(|_, (_, at)| *at + TTL > now);
        if self.refresh == Refresh::Read {
            values.values_mut().for_each(|(_, at)| *at = now);
        }
        let Input::Message { message, .. } = input else { return };
        for put in self.deeds[usize::from(message.payload[0])].writes.iter().map(write) {
            match put.value {
                Some(value) => values.insert(put.name, (value, now)),
                None => values.remove(&put.name),
            };
        }
    }
}

fn write((name, value): &(u8, Option<u8>)) -> StateWrite {
    StateWrite {
        name: format!("n{name}"),
        value: value.map(|v| Bytes::from(vec![v; usize::from(v % 5)])),
    }
}

async fn run(backend: Arc<dyn Backend>, clock: Arc<ManualClock>, deeds: Vec<Deed>, refresh: Refresh, seed: u64) {
    let mut plan = plan_of(Some(KeySource::Message), Order::Hold, Vec::new());
    plan.stage.keep.ttl = Some(Ttl { ms: TTL, refresh });
    let mut world = World {
        backend,
        clock,
        rng: SeededEntropy::new(seed),
        plan,
        deeds,
        model: Model::new(),
        refresh,
    };
    for n in 0..world.deeds.len() {
        world.clock.advance(world.deeds[n].wait_ms);
        world.send(n).await;
        // Sometimes late, sometimes not all of it.
        if !world.deeds[n].wait_ms.is_multiple_of(3) {
            world.work(1 + u32::try_from(world.deeds[n].wait_ms % 4).unwrap()).await;
        }
    }
    // A TTL's length and no message more: all of it is gone, and nothing is left that would fire.
    for _ in 0..40 {
        while world.work(2).await {}
        world.clock.advance(20);
    }
    let topic = world.plan.topic.id.clone();
    let size = world.backend.state_size(&topic).await.unwrap();
    let status = world.backend.status(topic.swarm()).await.unwrap();
    assert_eq!((size.keys, size.bytes), (0, 0));
    assert!(
        status.iter().all(|s| s.timers + s.parked + s.unread + s.dead == 0),
        "{status:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn values_go_when_a_naive_model_says_so(
        deeds in proptest::collection::vec(deed(), 1..40),
        reads in any::<bool>(),
        on_disk in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let refresh = if reads { Refresh::Read } else { Refresh::Write };
        let clock = Arc::new(ManualClock::at(1_000));
        let entropy = Arc::new(SeededEntropy::new(seed));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            if on_disk {
                let dir = tempfile::tempdir().unwrap();
                let store = Embedded::open(dir.path(), clock.clone(), entropy).unwrap();
                run(store, clock, deeds, refresh, seed).await;
            } else {
                let store = Memory::new(clock.clone(), entropy);
                run(store, clock, deeds, refresh, seed).await;
            }
        });
    }
}

#[test]
fn ages_go_both_ways_and_damage_is_no_crash() {
    let ages = Ages {
        timer_ms: 7,
        each: [("a".to_owned(), 1), ("é\0".to_owned(), u64::MAX), (String::new(), 0)].into(),
    };
    let written = ages.written();
    assert_eq!(Ages::read(written.clone()), Some(ages));
    for cut in 0..written.len() {
        // Whole entries are all that is ever read.
        assert!(
            Ages::read(written.slice(..cut)).is_none_or(|ages| ages.each.len() < 3),
            "{cut}"
        );
    }
    assert_eq!(Ages::read(Bytes::from_static(b"\x02aaaaaaaa")), None, "a later format");
}

#[test]
fn many_values_go_in_several_commits() {
    let values = |n: usize| (0..n).map(|i| (format!("{i:04}"), Bytes::from_static(b"v")));
    let mut state: StateMap = [("k".to_owned(), values(3 * DELETED_MAX).collect())].into();
    let ttl = Ttl {
        ms: TTL,
        refresh: Refresh::Write,
    };
    let rng = SeededEntropy::new(1);
    // Seen first: they are young.
    let mut book = Book::open(&mut state, Some(ttl), 1_000);
    assert_eq!(state["k"].len(), 3 * DELETED_MAX);
    book.swept("k");
    let (puts, timers) = book.close(Some(ttl), 1_000, &rng);
    assert_eq!((puts.len(), timers.len(), timers[0].at_ms), (1, 1, Some(1_000 + TTL)));
    let mut stored: BTreeMap<String, Bytes> = values(3 * DELETED_MAX).collect();
    stored.extend(puts.into_iter().filter_map(|put| Some((put.name, put.value?))));
    for round in (0..3usize).rev() {
        let mut state: StateMap = [("k".to_owned(), stored.clone())].into();
        let mut book = Book::open(&mut state, Some(ttl), 1_000 + TTL);
        assert!(state["k"].is_empty(), "none is seen");
        book.swept("k");
        let (puts, timers) = book.close(Some(ttl), 1_000 + TTL, &rng);
        assert_eq!(timers.len(), usize::from(round > 0), "the next follow at once");
        for put in puts {
            match put.value {
                Some(value) => stored.insert(put.name, value),
                None => stored.remove(&put.name),
            };
        }
        assert_eq!(stored.len(), round * DELETED_MAX + usize::from(round > 0));
    }
}

#[test]
fn without_a_ttl_any_more_values_stay_and_ages_go() {
    let ttl = Ttl {
        ms: TTL,
        refresh: Refresh::Write,
    };
    let mut state: StateMap = [("k".to_owned(), [("a".to_owned(), Bytes::from_static(b"v"))].into())].into();
    let rng = SeededEntropy::new(1);
    let mut book = Book::open(&mut state, Some(ttl), 0);
    book.swept("k");
    let (puts, _) = book.close(Some(ttl), 0, &rng);
    let ages = puts[0].value.clone().unwrap();
    state.get_mut("k").unwrap().insert(NAME.to_owned(), ages);
    let mut book = Book::open(&mut state, None, 10 * TTL);
    assert_eq!(
        state["k"].keys().collect::<Vec<_>>(),
        ["a"],
        "it is seen, its age is not"
    );
    book.swept("k");
    let (puts, timers) = book.close(None, 10 * TTL, &rng);
    assert!(timers.is_empty() && puts.len() == 1 && puts[0].name == NAME && puts[0].value.is_none());
}
