//! Generated Swarms on the reference backend, under traps, retries, rejects, kills and repeated commits, held against a naive reading
//! of what is promised: every message is settled once in each stage that it reaches, a key keeps its order, a join brings together
//! what a plain map would, every request is answered before its deadline, by whoever may still answer it, a message goes round as often
//! as its loops allow, and inboxes that are nearly always full never wait for each other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use proptest::prelude::*;
use skep_model::env::{ManualClock, SeededEntropy};
use skep_model::id::{Digest, Incarnation, RequestId, Token};
use skep_model::limits::LEASE_TTL_MS;
use skep_model::message::NO_RESPONSE;
use skep_model::name::TenantId;
use skep_model::scope::{Scope, SwarmId};
use skep_model::step::{Disposition, Emit, Outcome};
use skep_model::swarm::{Bound, InputSource, Join, KeySource, Missing, Stage, StageInput};
use skep_topic::lane::Lane;
use skep_topic::memory::Memory;
use skep_topic::{Backend, Call, Error, Gate, Lease, Once, Publish, Refused, TopicSpec, Waiter, Want};

use super::tests::{NoBee, bound, stage};
use super::*;

/// The memory backend never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the memory backend waited"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Came(Uid),
    Ended,
}

struct Sim {
    rng: SeededEntropy,
    clock: Arc<ManualClock>,
    memory: Arc<Memory>,
    swarm: SwarmId,
    plans: Vec<Plan>,
    /// Stages that a client's messages reach.
    fed: Vec<usize>,
    /// What each stage got, and what was settled there, in order, by key.
    arrived: HashMap<(usize, String), Vec<Uid>>,
    settled: HashMap<(usize, String), Vec<Event>>,
    times: HashMap<(usize, Uid), u32>,
    /// From which side a message came.
    sides: HashMap<Uid, String>,
    joined: HashMap<(usize, String), Vec<Vec<Uid>>>,
    waiting: Vec<(RequestId, Waiter)>,
    responded: HashSet<RequestId>,
    trapped: HashSet<usize>,
    deaths: u64,
    /// How often each message came by which loop, as its parents tell. The same message to two stages took two ways.
    laps: HashMap<(Uid, usize), BTreeMap<(StageName, StageName), u32>>,
    rounds: u64,
    /// Where a stage may not send back to in its next batch.
    closed: HashMap<usize, Vec<StageName>>,
    jams: u64,
    ends: BTreeMap<&'static str, u64>,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let rng = SeededEntropy::new(seed);
        let clock = Arc::new(ManualClock::at(1_000_000));
        let memory = Memory::new(
            Arc::clone(&clock) as Arc<dyn skep_model::env::Clock>,
            Arc::new(SeededEntropy::new(seed ^ 1)),
        );
        let swarm = Scope::of(TenantId::default_tenant()).swarm(&"w".parse().unwrap(), Incarnation([1; 16]));
        let count = 2 + pick(&rng, 5);
        let room = [6, 1_000][pick(&rng, 2)];
        let mut stages: Vec<Stage> = Vec::new();
        for i in 0..count {
            let mut inputs: Vec<InputSource> = Vec::new();
            if i == 0 || pick(&rng, 4) == 0 {
                inputs.push(InputSource::Gateway("g".parse().unwrap()));
            }
            for earlier in 0..i {
                if pick(&rng, 2) == 0 {
                    inputs.push(InputSource::Bee {
                        stage: format!("s{earlier}").parse().unwrap(),
                        output: None,
                    });
                }
            }
            if inputs.is_empty() {
                inputs.push(InputSource::Bee {
                    stage: format!("s{}", i - 1).parse().unwrap(),
                    output: None,
                });
            }
            let join = (inputs.len() > 1 && pick(&rng, 2) == 0).then(|| Join {
                within_ms: 5_000,
                missing: [Missing::Fail, Missing::Partial, Missing::Drop][pick(&rng, 3)],
                pending: [2, 1_000][pick(&rng, 2)],
            });
            let key = match (join, pick(&rng, 3)) {
                (Some(_), 0 | 1) => Some(KeySource::Origin),
                (None, 0) => None,
                _ => Some(KeySource::Message),
            };
            let order = if join.is_none() && pick(&rng, 4) == 0 {
                Order::Relaxed
            } else {
                Order::Hold
            };
            stages.push(Stage {
                name: format!("s{i}").parse().unwrap(),
                inputs: inputs
                    .into_iter()
                    .map(|source| StageInput {
                        source,
                        take: skep_model::condition::Take::All,
                        laps: None,
                    })
                    .collect(),
                inbox: Bound {
                    messages: room,
                    ..bound()
                },
                join,
                ..stage(key, order)
            });
        }
        add_loops(&rng, &mut stages);
        let spec = |name: &StageName, laps: Option<u32>| {
            let inbox = stages[0].inbox;
            Arc::new(TopicSpec {
                id: swarm.topic(name),
                born: 1,
                partitions: 1,
                inbox: laps.map_or(inbox, |_| inbox.of_loops()),
                dead_letters: Bound {
                    messages: 1_000_000,
                    bytes: 1 << 30,
                },
            })
        };
        let reads = |stage: &Stage, from: &InputSource| stage.inputs.iter().any(|i| i.source == *from);
        let plan = |stage: &Stage| {
            let from = InputSource::Bee {
                stage: stage.name.clone(),
                output: None,
            };
            let readers = stages.iter().filter(|s| reads(s, &from));
            Plan {
                topic: spec(&stage.name, None),
                module: Digest::of(b"m"),
                bee: Arc::new(NoBee),
                unnamed: readers
                    .map(|reader| {
                        let laps = reader.inputs.iter().find(|i| i.source == from).and_then(|i| i.laps);
                        Destination {
                            stage: reader.name.clone(),
                            topic: spec(&reader.name, laps),
                            key: reader.key.clone(),
                            lane: Lane::new(),
                            when: None,
                            laps,
                        }
                    })
                    .collect(),
                named: BTreeMap::new(),
                door: None,
                bounded: false,
                stage: stage.clone(),
            }
        };
        let door = InputSource::Gateway("g".parse().unwrap());
        Self {
            fed: (0..count).filter(|i| reads(&stages[*i], &door)).collect(),
            plans: stages.iter().map(plan).collect(),
            rng,
            clock,
            memory,
            swarm,
            arrived: HashMap::new(),
            settled: HashMap::new(),
            times: HashMap::new(),
            sides: HashMap::new(),
            joined: HashMap::new(),
            waiting: Vec::new(),
            responded: HashSet::new(),
            trapped: HashSet::new(),
            deaths: 0,
            laps: HashMap::new(),
            rounds: 0,
            closed: HashMap::new(),
            jams: 0,
            ends: BTreeMap::new(),
        }
    }

    fn index(&self, name: &StageName) -> usize {
        name.as_str()[1..].parse().unwrap()
    }

    /// Whether there was room.
    fn send(&mut self) -> bool {
        let uid = Uid::random(&self.rng);
        let request = (pick(&self.rng, 3) > 0).then_some(RequestId(uid.0));
        let waiter = request.map(|id| (id, self.memory.waiters().wait(id)));
        let key = format!("k{}", pick(&self.rng, 3));
        let shares: Vec<u64> = skep_model::message::shares(Request::WHOLE, self.fed.len()).collect();
        let to = self.fed.iter().zip(shares).map(|(stage, share)| {
            let plan = &self.plans[*stage];
            let message = Message {
                uid,
                key: match &plan.stage.key {
                    None => None,
                    Some(KeySource::Origin) => Some(uid.to_string()),
                    Some(KeySource::All) => Some("all".to_owned()),
                    Some(_) => Some(key.clone()),
                },
                headers: Vec::new(),
                payload: Bytes::from_static(b"x"),
                accepted_ms: 1,
                request: request.map(|id| Request {
                    id,
                    deadline_ms: u64::MAX,
                    keyed: false,
                    streams: false,
                    share,
                }),
                trace: None,
                lineage: None,
                hops: Vec::new(),
            };
            (Arc::clone(&plan.topic), vec![message])
        });
        let to: Vec<_> = to.collect();
        let call = Call {
            to: to.clone(),
            once: Once::No,
        };
        let done = now(self.memory.publish(Publish {
            swarm: self.swarm.clone(),
            calls: vec![call],
            gate: Gate::Appended,
        }));
        if let Err(refused) = &done.unwrap()[0] {
            assert!(matches!(refused, Refused::Full { .. }), "{refused}");
            return false;
        }
        self.waiting.extend(waiter);
        for (topic, messages) in &to {
            self.arrive(&topic.id.stage().clone(), &messages[0]);
        }
        true
    }

    fn arrive(&mut self, stage: &StageName, message: &Message) {
        let side = message.lineage.as_ref().map_or("g".to_owned(), |l| l.stage.to_string());
        // The same uid to several stages comes from one side.
        self.sides.insert(message.uid, side);
        let key = message.key.clone().unwrap_or_default();
        self.arrived
            .entry((self.index(stage), key))
            .or_default()
            .push(message.uid);
    }

    /// What the Bee of a stage does with an input, the same each time.
    fn act(stage: usize, input: &Input) -> Result<Step, Trap> {
        let bits = input.uid().child("act", u32::try_from(stage).unwrap()).0;
        let emit = |n: u8| Emit {
            to: None,
            key: Some(format!("k{}", bits[1] % 3)),
            headers: Vec::new(),
            payload: Bytes::from(vec![n]),
        };
        let step = |publish: Vec<Emit>, respond: bool, disposition| {
            Ok(Step {
                outcome: Outcome {
                    publish,
                    respond: if respond {
                        vec![Bytes::from_static(b"r")]
                    } else {
                        Vec::new()
                    },
                    disposition,
                },
                state: Vec::new(),
                timers: Vec::new(),
            })
        };
        let failed = || Disposition::Fail {
            reason: "no".to_owned(),
            detail: String::new(),
        };
        match bits[0] % 16 {
            0..=5 => step(vec![emit(1)], false, Disposition::Done),
            6 => step(vec![emit(1), emit(2), emit(3)], false, Disposition::Done),
            7 | 8 => step(Vec::new(), false, Disposition::Done),
            9 => step(Vec::new(), true, Disposition::Done),
            10 => step(vec![emit(1)], true, Disposition::Done),
            11 => step(Vec::new(), false, Disposition::Reject("no".to_owned())),
            12 if input.attempt() < 3 => step(Vec::new(), false, failed()),
            13 => step(Vec::new(), false, failed()),
            14 => Err(Trap {
                kind: TrapKind::Trap,
                detail: "as ever".to_owned(),
                stderr: String::new(),
            }),
            15 if input.attempt() < 2 => step(Vec::new(), false, Disposition::RetryAfter(300)),
            _ => step(vec![emit(1)], false, Disposition::Done),
        }
    }

    /// One owner's turn on a stage. Whether there was anything to do.
    fn turn(&mut self, stage: usize) -> bool {
        let topic = Arc::clone(&self.plans[stage].topic);
        let token = Token::random(&self.rng);
        let claim = match now(self.memory.claim(&topic, 0, token, LEASE_TTL_MS)).unwrap() {
            Ok(claim) => claim,
            // Of an owner that died.
            Err(held) => {
                self.clock.advance(held.ms_left);
                return true;
            }
        };
        let lease = Lease {
            partition: topic.id.partition(0),
            token,
        };
        let (mut seq, mut last, mut cursor) = (claim.seq, claim.last, claim.cursor);
        let mut worked = false;
        for _ in 0..4 {
            let plan = &self.plans[stage];
            let messages = if self.trapped.remove(&stage) {
                1
            } else {
                1 + pick(&self.rng, 6)
            };
            let want = Want {
                from: cursor,
                base: last,
                messages: u32::try_from(messages).unwrap(),
                bytes: 1 << 20,
                state: plan.stage.state,
                state_bytes: 1 << 20,
                timers_max: plan.stage.join.map_or(u64::MAX, |join| join.pending),
            };
            let mut fetched = now(self.memory.fetch(&lease, want)).unwrap();
            fetched.keep(messages);
            if fetched.is_empty() {
                break;
            }
            worked = true;
            let (mut taken, batch) = arrange(plan, fetched, |_| false);
            taken.closed = self.closed.remove(&stage).unwrap_or_default();
            let mut steps: Vec<_> = batch.inputs.iter().map(|input| Self::act(stage, input)).collect();
            if steps.len() > 1 && steps.iter().any(Result::is_err) {
                self.trapped.insert(stage);
                continue;
            }
            // An engine that returns too little leaves the rest for later.
            if steps.len() > 1 && pick(&self.rng, 8) == 0 {
                steps.pop();
            }
            let stamp = Stamp {
                id: CommitId::random(&self.rng),
                seq,
                base: last,
                from: cursor,
            };
            let ran = Ran {
                started_us: 0,
                took_us: 0,
                batch: 1,
                parts_left: false,
                span: None,
            };
            let decision = decide(plan, &taken, steps, stamp, ran, &self.rng);
            if decision.consumed == 0 && decision.commit.set_timers.is_empty() {
                continue;
            }
            if pick(&self.rng, 8) == 0 {
                self.deaths += 1;
                return true;
            }
            match now(self.memory.commit(&lease, Arc::clone(&decision.commit))) {
                Ok(_) => {}
                // Whoever waits may as well do it over.
                Err(Error::Full { stage: full, .. }) => {
                    let status = now(self.memory.status(&self.swarm)).unwrap();
                    let own = status.iter().find(|t| t.topic == topic.id).unwrap();
                    if plan.goes_back_to(&full) && is_jammed(own, plan.stage.inbox) {
                        self.jams += 1;
                        self.closed.entry(stage).or_default().push(full);
                    }
                    break;
                }
                Err(e) => panic!("{e}"),
            }
            self.note(stage, &taken, &decision);
            if pick(&self.rng, 8) == 0 {
                now(self.memory.commit(&lease, Arc::clone(&decision.commit))).unwrap();
            }
            if pick(&self.rng, 8) == 0 {
                self.deaths += 1;
                return true;
            }
            seq += 1;
            last = decision.commit.id;
            cursor = decision.commit.span.map_or(cursor, |span| span.to);
        }
        now(self.memory.release(&lease)).unwrap();
        worked
    }

    fn note(&mut self, stage: usize, taken: &Taken, decision: &Decision) {
        let commit = &decision.commit;
        for item in &taken.items[..decision.consumed] {
            let origin = Origin::of(&item.source);
            let again = commit.retries.iter().filter_map(|r| r.again.as_ref());
            if commit.park.iter().chain(again).any(|p| p.work.uid() == origin.uid) {
                continue;
            }
            let at = (stage, origin.key().unwrap_or_default().to_owned());
            let event = match origin.message {
                Some(message) => {
                    *self.times.entry((stage, message.uid)).or_default() += 1;
                    Event::Came(message.uid)
                }
                None => Event::Ended,
            };
            self.settled.entry(at.clone()).or_default().push(event);
            if let Some(gathered) = &item.join
                && !gathered.waits()
            {
                let mut uids: Vec<Uid> = gathered.parts.iter().map(|(_, m)| m.uid).collect();
                uids.sort_unstable();
                if !uids.is_empty() {
                    self.joined.entry(at).or_default().push(uids);
                }
            }
        }
        // What each output may have come of.
        let mut sources: HashMap<Uid, Vec<Uid>> = HashMap::new();
        for item in &taken.items[..decision.consumed] {
            let parts = item
                .join
                .iter()
                .flat_map(|gathered| gathered.parts.iter().map(|(_, m)| m.uid));
            let uid = Origin::of(&item.source).uid;
            sources.entry(uid).or_insert_with(|| parts.chain([uid]).collect());
        }
        for output in &commit.outputs {
            let (from, to) = (&self.plans[stage].stage.name, output.to.id.stage());
            let mut laps: BTreeMap<(StageName, StageName), u32> = BTreeMap::new();
            let lineage = output.message.lineage.as_ref().unwrap();
            for source in &sources[&lineage.parent] {
                for (edge, times) in self.laps.get(&(*source, stage)).into_iter().flatten() {
                    let known = laps.entry(edge.clone()).or_default();
                    *known = (*times).max(*known);
                }
            }
            if let Some(most) = self.plans[stage].destinations().find(|d| d.stage == *to).unwrap().laps {
                let times = laps.entry((from.clone(), to.clone())).or_default();
                *times += 1;
                assert!(*times <= most, "{from} to {to}: {times} of {most}");
                self.rounds += 1;
            }
            let carried = lineage.laps.iter().map(|l| ((l.from.clone(), l.to.clone()), l.times));
            assert_eq!(carried.collect::<BTreeMap<_, _>>(), laps);
            self.laps.insert((output.message.uid, self.index(to)), laps);
        }
        for letter in &commit.dead {
            for known in ["loop-bound", "loop-full"] {
                if letter.reason == known {
                    *self.ends.entry(known).or_default() += 1;
                }
            }
        }
        for output in &commit.outputs {
            self.arrive(&output.to.id.stage().clone(), &output.message);
        }
        for reply in &commit.replies {
            if matches!(reply.result, ReplyResult::Response(_)) {
                self.responded.insert(reply.request);
            }
        }
    }

    /// What a plain map makes of the events of one key.
    fn naive(&self, stage: &Stage, events: &[Event]) -> Vec<Vec<Uid>> {
        let mut parts: BTreeMap<&str, Uid> = BTreeMap::new();
        let mut out = Vec::new();
        for event in events {
            let over = match event {
                Event::Came(uid) => {
                    parts.insert(&self.sides[uid], *uid);
                    parts.len() == stage.inputs.len()
                }
                Event::Ended => true,
            };
            if over {
                let mut uids: Vec<Uid> = std::mem::take(&mut parts).into_values().collect();
                uids.sort_unstable();
                if !uids.is_empty() {
                    out.push(uids);
                }
            }
        }
        assert!(parts.is_empty(), "nothing waits at the end");
        out
    }

    fn check(&mut self) {
        for ((stage, key), arrived) in &self.arrived {
            for uid in arrived {
                assert_eq!(self.times.get(&(*stage, *uid)), Some(&1), "s{stage} {key} {uid}");
            }
            let plan = &self.plans[*stage];
            let settled = self.settled[&(*stage, key.clone())].clone();
            if plan.stage.key.is_some() && plan.stage.order == Order::Hold {
                let came: Vec<Uid> = settled
                    .iter()
                    .filter_map(|event| match event {
                        Event::Came(uid) => Some(*uid),
                        Event::Ended => None,
                    })
                    .collect();
                assert_eq!(&came, arrived, "s{stage} {key}: the order of its key");
            }
            if plan.stage.join.is_some() {
                let joined = self.joined.get(&(*stage, key.clone())).cloned().unwrap_or_default();
                assert_eq!(joined, self.naive(&plan.stage, &settled), "s{stage} {key}");
            }
        }
        let arrived: usize = self.arrived.values().map(Vec::len).sum();
        assert_eq!(arrived, self.times.len(), "nothing was settled that did not come");
        for (id, waiter) in self.waiting.drain(..) {
            let Poll::Ready(reply) = pin!(waiter).poll(&mut Context::from_waker(Waker::noop())) else {
                panic!("request {id} has no answer though nothing is left");
            };
            let result = reply.unwrap().result;
            let gave_up = matches!(&result, ReplyResult::Failed { reason, .. } if reason == NO_RESPONSE);
            assert!(
                !(gave_up && self.responded.contains(&id)),
                "{id} was given up too early"
            );
        }
        for status in now(self.memory.status(&self.swarm)).unwrap() {
            assert_eq!((status.unread, status.parked, status.timers), (0, 0, 0), "{status:?}");
        }
    }
}

/// Some ways back, to a stage that joins nothing from one that its messages reach.
fn add_loops(rng: &SeededEntropy, stages: &mut [Stage]) {
    let leads = |stages: &[Stage], from: usize, to: usize| {
        let mut reached = vec![from];
        for later in from + 1..stages.len() {
            let from_reached = |i: &StageInput| match &i.source {
                InputSource::Bee { stage, .. } => reached.iter().any(|r| stages[*r].name == *stage),
                InputSource::Gateway(_) => false,
            };
            if stages[later].inputs.iter().any(from_reached) {
                reached.push(later);
            }
        }
        reached.contains(&to)
    };
    for _ in 0..pick(rng, 3) {
        let to = pick(rng, stages.len());
        let from = to + pick(rng, stages.len() - to);
        let source = InputSource::Bee {
            stage: stages[from].name.clone(),
            output: None,
        };
        if stages[to].join.is_none() && leads(stages, to, from) && stages[to].inputs.iter().all(|i| i.source != source)
        {
            let laps = Some(1 + u32::try_from(pick(rng, 3)).unwrap());
            stages[to].inputs.push(StageInput {
                source,
                take: skep_model::condition::Take::All,
                laps,
            });
        }
    }
}

fn pick(rng: &SeededEntropy, n: usize) -> usize {
    usize::try_from(rng.next_u64() % n as u64).unwrap()
}

fn run(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    let messages = 5 + pick(&sim.rng, 30);
    let mut sent = 0;
    let mut quiet = 0;
    for round in 0.. {
        assert!(round < 200_000, "it does not come to rest");
        if sent < messages && pick(&sim.rng, 2) == 0 {
            sent += usize::from(sim.send());
        }
        let stage = pick(&sim.rng, sim.plans.len());
        if sim.turn(stage) {
            quiet = 0;
        } else {
            quiet += 1;
            sim.clock.advance(if sent < messages { 20 } else { 250 });
        }
        if pick(&sim.rng, 100) == 0 {
            sim.memory.restart();
        }
        // Longer than any wait of a join or a retry.
        if sent == messages && quiet > 40 * sim.plans.len() {
            break;
        }
    }
    sim.check();
    sim
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn generated_swarms_keep_what_is_promised(seed in any::<u64>()) {
        run(seed);
    }
}

#[test]
fn the_generated_swarms_do_what_they_are_to_test() {
    let (mut joins, mut deaths, mut requests, mut rounds, mut jams) = (0, 0, 0, 0, 0);
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..60 {
        let sim = run(seed);
        joins += sim.joined.values().flatten().filter(|parts| parts.len() > 1).count();
        deaths += sim.deaths;
        requests += sim.responded.len();
        rounds += sim.rounds;
        jams += sim.jams;
        for (reason, times) in sim.ends {
            *ends.entry(reason).or_default() += times;
        }
    }
    assert!(rounds > 500 && jams > 5 && ends.len() == 2, "{rounds} {jams} {ends:?}");
    assert!(
        joins > 60 && deaths > 100 && requests > 100,
        "{joins} {deaths} {requests}"
    );
}
