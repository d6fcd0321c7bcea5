//! Topics on Redis 7.0 or newer (or what speaks like it), for nodes that share them.
//!
//! # Keys
//!
//! `T` is `sk:{tenant/swarm/incarnation}`: all of one life lies in one slot and rolls back together. Scripts make the names from it.
//!
//! | key | what | made | gone | bound |
//! |---|---|---|---|---|
//! | `sk:store` | hash: the store's identity and format | first open | never | 1 |
//! | `sk:lives` | set of lives that have keys | a life's first use | end of `remove_swarm` | the catalog's |
//! | `sk:imports` | set of lives that a restore made | begin of an import | looked at after the life's first use, or its removal | the Swarms of a backup |
//! | `sk:gone` | list of removed lives | `remove_swarm` | when `GONE_SWARMS_MAX` newer ones exist | `GONE_SWARMS_MAX` |
//! | `sk:{catalog}` | hash: desired state, version and record | catalog write | catalog delete | the catalog's |
//! | `sk:{catalog}:n`, `sk:{catalog}:seq` | the catalog's number, another after each write: how many there were (`seq`), and 21 bits of chance | first catalog write | never | 2 |
//! | `sk:{catalog}:nodes` | hash: nodes that are there, until when, and their records | beat | `leave`, or a later beat of another | `NODES_MAX` |
//! | `sk:{catalog}:store` | in a cluster: the store's identity once more, for the server that holds the catalog | first open | never | 1 |
//! | `sk:{gate}`, in a cluster `sk:{gate-<n>}` | written before each wait for replicas | first gate | never | 1 a server |
//! | `T:m` | hash: store id, `gone`, counters of dead letters and large states; `held` by a backup until when, `aside` since a restore | a life's first use | with its place in `sk:gone` | 1 a life |
//! | `T:topics` | set of stages | first message or claim | `remove_topic` | stages |
//! | `T:x` | hash: removed stages, and which birth of them was last | `remove_topic` | end of `remove_swarm`, or as the earliest of too many | `REMOVED_STAGES_MAX` |
//! | `T:t:<stage>` | hash: the topic's counters, its layout, the append side of each partition | first message or claim | `remove_topic` | 256 partitions |
//! | `T:p:<stage>:<p>` | hash: lease, sequence, last commit, cursor, seal | first claim | `remove_topic` | 256 a topic |
//! | `T:in:<stage>:<p>` | stream: a frame is an entry, id `<entry + 1>-0`; of a large one the messages stand behind it in `-1` | append | trimmed to the cursor by commits | the inbox |
//! | `T:k:`, `T:kl:`, `T:kd:<stage>:<p>` | parked entries; their order by lane; heads of lanes by due time | commit | commit that ends them | the inbox |
//! | `T:tm:`, `T:td:<stage>:<p>` | timers by key and name; by due time | commit | commit that consumes or cancels | timers a key |
//! | `T:st:<stage>:<bucket>` | hash: state, a field a key | commit | commit that deletes it, `remove_topic` | what the Bees keep |
//! | `T:s:<id>`, `T:sx:<stage>`, `T:trash` | a large key's state; which there are; which are to go | commit | as state | as state |
//! | `T:d:<stage>` | stream: dead letters, id `<id>-0` | commit | discard, `remove_topic` | the stage's dead letters |
//! | `T:dd:`, `T:dx:<subject>`, `T:dr`, `T:dm`, `T:subjects` | idempotency keys with replies; by expiry; by request; reply bytes | keyed call | expiry, collected by later publishes | `DEDUP_KEYS_MAX`, `REPLY_BYTES_MAX` a subject |
//! | `T:se`, `T:sx` | sessions' high-water marks; by expiry | streaming submit | expiry, collected by later publishes | `SESSIONS_MAX` a Swarm |
//! | `T:rp:<request>` | a reply whose caller waits on another node | commit | fetched, or `REPLY_KEPT_MS` (the only key with a time to live) | calls under way |
//! | `T:ready` | partitions with work, by when | append, commit | commit that leaves nothing | partitions |
//! | channels `T:bell`, `sk:{catalog}:bell`, `sk:node:<id>`, `sk:parts:<id>` | bells of a life; of the catalog; replies for a node's callers; parts of replies, and what became of them | | | not kept |
//!
//! # In a cluster
//!
//! A life is one slot, so one server has all of it, and each command goes to the server of its key (`link`). Each server has a history of
//! its own: what leaves waits on the server where it was written. While a slot moves its lives stand still, for scripts must find all of
//! their keys or none (`scripts/head.lua`). Bells go by plain pub/sub, which every server of a cluster passes on.
//!
//! # Why it is so
//!
//! - **One entry a frame**, packed by whoever brings the messages; the script joins parts without looking into them. Entry numbers are
//!   ours, contiguous in a partition. Each frame knows how much came before it, so a commit counts what it consumes by looking at one
//!   entry, and a read notices a missing one.
//! - **State is a field a key** in few hashes (`state`): a batch's keys are read and written by one variadic call a bucket. A
//!   changelog with snapshots would write less, but needs an owner that holds everything; here any node may take over at once.
//! - **One script a commit** with all checks before the first write: Redis does not roll back.
//! - **Bells are hints.** Appends ring by pub/sub; once a second each node asks `T:ready` of the Swarms that it listens for.
//! - **The server's clock decides** leases, due times and expiries; no lease is a key's time to live.

mod args;
mod beats;
mod bells;
mod cache;
mod commit;
mod export;
mod fault;
mod fetch;
mod gate;
mod import;
mod leaders;
mod link;
mod names;
mod options;
mod parts;
mod places;
mod probe;
mod publish;
mod reach;
mod removal;
mod reply;
mod rescale;
mod scripts;
mod slots;
mod state;
mod store;
mod views;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use skep_model::env::Entropy;
use skep_model::id::{CommitId, NodeId, RequestId, Token, Uid};
use skep_model::limits;
use skep_model::message::Reply;
use skep_model::name::StageName;
use skep_model::scope::{PartitionId, SwarmId, TopicId};

use self::args::Args;
use self::bells::Bells;
use self::cache::Cache;
use self::gate::Gatekeeper;
use self::link::Link;
use self::reply::{Said, number, text};
use self::scripts::Script;
use crate::guard::{Guard, Guards};
use crate::parts::Speaker;
use crate::record::{self, Kind};
use crate::{
    Accepted, Backend, Bell, CallResult, CatalogChange, CatalogRecord, Claim, Commit, Committed, Counters, Cursor,
    Error, Fetched, Held, Layout, Lease, Once, Pieces, Publish, Pulse, Refused, Rescaled, Room, StatePage, StateSize,
    StoredDeadLetter, TopicSpec, TopicStatus, Waiters, Want,
};

/// Low bits of the catalog's number, as `scripts/seen.lua` makes it: together with the place, what Lua's numbers hold.
const CATALOG_CHANCE_BITS: u32 = 21;

pub use options::{Gate, RedisOptions, StoreClock};
pub use probe::{Finding, Severity, Survives, probe};

/// What operations and the tasks beside them share.
struct Core {
    link: Arc<Link>,
    /// Of whoever opened the store: commits may come from threads that run guests, which should not wait for a gate.
    runtime: tokio::runtime::Handle,
    bells: Bells,
    cache: Cache,
    gate: Arc<Gatekeeper>,
    waiters: Arc<Waiters>,
    entropy: Arc<dyn Entropy>,
    guards: Arc<Guards>,
    /// Partitions of topics as the store told them, where that is not what some writer believes. Bounded by the stages of all Swarms.
    layouts: Mutex<HashMap<TopicId, u16>>,
    /// Lives that this process knows to be registered, and in which history it last saw them: another history may have begun before them.
    lives: Mutex<HashMap<SwarmId, u64>>,
    /// Partitions claimed here and not given back, so that a close leaves none behind. Bounded by the partitions of all Swarms.
    claimed: Mutex<HashMap<PartitionId, Token>>,
    /// Requests whose callers wait here, and where their replies will lie. Bounded by the Gateway's admission.
    awaited: Mutex<HashMap<RequestId, (SwarmId, Instant)>>,
    /// Parts on their way to callers of other nodes. Bounded by the Bees that work here.
    speakers: Mutex<HashMap<(RequestId, Uid), Arc<parts::Sent>>>,
    memory_percent: AtomicU64,
    commits: AtomicU64,
    publishes: AtomicU64,
    refused: AtomicU64,
}

/// The backend. Dropping it without [`Backend::close`] is as a crash of its node: leases run out.
pub struct Redis {
    core: Arc<Core>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("options", &self.core.link.options)
            .finish_non_exhaustive()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// The arguments that every script takes first.
    fn args(&self, script: Script, key: &str) -> Args {
        let mut args = Args::new(script, key);
        args.text(&self.link.options.clock.argument());
        args.text(&self.removed_guards());
        args.flag(self.link.places.cluster);
        args
    }

    /// … and every script of a partition's owner.
    fn owner_args(&self, script: Script, partition: &PartitionId) -> Args {
        let topic = partition.topic();
        let mut args = self.args(script, &names::meta(topic.swarm()));
        args.text(topic.stage().as_str()).num(partition.index());
        args
    }

    /// … and every script that writes to the catalog.
    fn catalog_args(&self, script: Script) -> Args {
        let mut args = self.args(script, names::CATALOG);
        // As many bits as the script has room for.
        let fresh = u64::from_le_bytes(NodeId::random(&*self.entropy).0) >> (64 - CATALOG_CHANCE_BITS);
        args.bytes(&self.link.options.node).num(fresh);
        args
    }

    /// Letters of guards that a test took away; the scripts know them by these.
    fn removed_guards(&self) -> String {
        const LETTERS: [(Guard, char); 18] = [
            (Guard::Token, 't'),
            (Guard::Seq, 's'),
            (Guard::Base, 'b'),
            (Guard::Cursor, 'c'),
            (Guard::EntryUid, 'e'),
            (Guard::TimerUid, 'i'),
            (Guard::RetryUid, 'r'),
            (Guard::InPlace, 'p'),
            (Guard::Wake, 'w'),
            (Guard::Room, 'm'),
            (Guard::Dedup, 'd'),
            (Guard::Letter, 'x'),
            (Guard::Birth, 'n'),
            (Guard::Seal, 'l'),
            (Guard::HandOver, 'o'),
            (Guard::Seen, 'a'),
            (Guard::Slot, 'k'),
            (Guard::Still, 'h'),
        ];
        let removed = LETTERS.iter().filter(|(guard, _)| !self.guards.on(*guard));
        removed.map(|(_, letter)| *letter).collect()
    }

    /// A script that changes nothing.
    async fn look(&self, script: Script, args: &Args) -> Result<Said, Error> {
        let answer = self.link.run(script, &args.command).await;
        let (value, _) = answer.map_err(fault::of_a_look)?;
        Said::of(value)
    }

    /// A script that changes nothing, and a read behind it.
    async fn look_and_read(
        &self,
        script: Script,
        args: &Args,
        read: &redis::Cmd,
    ) -> Result<(redis::Value, redis::Value), Error> {
        let answer = self.link.run_and_read(script, &args.command, read).await;
        answer.map_err(fault::of_a_look)
    }

    /// A script that writes. Returns the history that it wrote in.
    async fn write(&self, script: Script, args: &Args) -> Result<(Said, u64), Error> {
        let (value, history) = self.link.run(script, &args.command).await?;
        self.link.wrote(history);
        Ok((Said::of(value)?, history))
    }

    /// The same, for a script that a life's first use meets: it makes the life known and asks again.
    async fn write_alive(&self, swarm: &SwarmId, script: Script, args: &Args) -> Result<(Said, u64), Error> {
        // Looked at before the question is asked: others may make the life known while it is under way.
        let known = lock(&self.lives).get(swarm).copied();
        let answer = self.write(script, args).await?;
        if answer.0.word != "NEW" {
            if known.is_some_and(|history| history != answer.1) {
                lock(&self.lives).insert(swarm.clone(), answer.1);
            }
            return Ok(answer);
        }
        self.register(swarm, known == Some(answer.1)).await?;
        let answer = self.write(script, args).await?;
        if answer.0.word == "NEW" {
            return Err(Error::Unavailable("a Swarm's first key vanished at once".to_owned()));
        }
        Ok(answer)
    }

    /// `known`: it was registered in this very history before the store said that it is new. In one that a failover began, a life may be
    /// new although it was known: it came after what the new primary had. That is a lost suffix, as of all else there, and no sign of a flush.
    async fn register(&self, swarm: &SwarmId, known: bool) -> Result<(), Error> {
        // A life without its first key may also be one that was flushed away.
        self.link.check().await?;
        if known {
            let why = format!(
                "Redis at {} lost the keys of {swarm}: they were deleted or flushed",
                self.link.options.shown()
            );
            self.link.lose(why.clone());
            return Err(Error::Corrupt(why));
        }
        let mut add = redis::cmd("SADD");
        add.arg(names::LIVES).arg(names::tag(swarm));
        self.link.send(&add).await?;
        let mut args = self.args(Script::Register, &names::meta(swarm));
        args.text(&self.link.store_id());
        let (mut said, history) = self.write(Script::Register, &args).await?;
        if said.word != "OK" {
            return Err(said.refusal());
        }
        lock(&self.lives).insert(swarm.clone(), history);
        Ok(())
    }

    fn forget_life(&self, swarm: &SwarmId) {
        self.cache.forget_if(|topic| topic.swarm() == swarm);
        lock(&self.layouts).retain(|topic, _| topic.swarm() != swarm);
        lock(&self.claimed).retain(|partition, _| partition.topic().swarm() != swarm);
        lock(&self.lives).remove(swarm);
    }

    fn awaited(&self) -> MutexGuard<'_, HashMap<RequestId, (SwarmId, Instant)>> {
        lock(&self.awaited)
    }

    /// A number below `below`, to spread what would come at once.
    fn chance(&self, below: u64) -> u64 {
        u64::from(self.entropy.bits128()[0]) * below / 256
    }

    /// Waits until all is safe that was written so far where a key lies, whoever wrote it.
    async fn safe_at(&self, key: &str) -> Result<(), Error> {
        self.nothing_ended()?;
        self.safe(self.link.history_of(key)).await
    }

    /// … and everywhere.
    async fn safe_now(&self) -> Result<(), Error> {
        self.nothing_ended()?;
        let all = self.link.histories().into_iter().map(|history| self.safe(history));
        futures::future::try_join_all(all).await?;
        Ok(())
    }

    /// Waits until what was read is safe. `history` is from before it was read: one that ended meanwhile may take it back.
    async fn safe_to_show(&self, history: u64) -> Result<(), Error> {
        self.safe(history).await.map_err(fault::of_a_look)
    }

    /// Said once: what follows is of the new history.
    fn nothing_ended(&self) -> Result<(), Error> {
        let gated = self.guards.on(Guard::Gate) && self.link.options.gate != Gate::None;
        if gated && self.link.ended() {
            return Err(Error::Unknown(gate::REPLACED.to_owned()));
        }
        Ok(())
    }

    async fn safe(&self, history: u64) -> Result<(), Error> {
        if self.guards.on(Guard::Gate) {
            self.gate.pass(&self.link, history).await
        } else {
            Ok(())
        }
    }

    /// Hands a reply to its caller here. Returns whether there was one.
    fn answer(&self, reply: Reply) -> bool {
        let request = reply.request;
        let found = self.waiters.deliver(reply);
        // A share of its credit that comes back mostly leaves it waiting.
        if !self.waiters.is_waiting(request) {
            self.awaited().remove(&request);
        }
        found
    }

    /// A reply that another node pushed.
    fn delivered(&self, payload: &[u8]) {
        match publish::decode_reply(Bytes::copy_from_slice(payload)) {
            Ok(reply) => {
                self.answer(reply);
            }
            Err(error) => tracing::warn!(%error, "a pushed reply cannot be read"),
        }
    }

    /// Replies leave after the gate: to callers here, and to the nodes where others wait.
    async fn release(&self, replies: Vec<(Reply, u64)>, history: u64) {
        if let Err(error) = self.safe(history).await {
            // Their callers are told of an unknown outcome when they run out of patience; a repeated commit brings them again.
            tracing::warn!(%error, "replies are held back");
            return;
        }
        let mut pipe = redis::pipe();
        let mut pushes = 0u32;
        for (reply, letter) in replies {
            let request = reply.request;
            let mut named = reply.clone();
            publish::name_letter(&mut named, letter);
            if !self.answer(named) && request.0[..8] != self.link.options.node {
                let mut payload = letter.to_le_bytes().to_vec();
                payload.extend_from_slice(&record::encode_reply(&reply));
                pipe.cmd("PUBLISH").arg(names::node(&request.0[..8])).arg(payload);
                pushes += 1;
            }
        }
        if pushes > 0
            && let Err(error) = self.link.send_all(&pipe).await
        {
            tracing::debug!(%error, "a push of replies was lost; their nodes will look for them");
        }
    }
}

impl Redis {
    /// Connects, checks that the server is fit and the store ours, and begins to listen.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: not reached or not fit, with the remedy. [`Error::Corrupt`]: it is not our store.
    pub async fn open(options: RedisOptions, entropy: Arc<dyn Entropy>) -> Result<Arc<Self>, Error> {
        let link = Link::new(options, Arc::clone(&entropy))?;
        probe::fit(&link).await?;
        link.establish().await?;
        let core = Arc::new(Core {
            link: Arc::clone(&link),
            runtime: tokio::runtime::Handle::current(),
            bells: Bells::default(),
            cache: Cache::default(),
            gate: Arc::default(),
            waiters: Arc::default(),
            entropy,
            guards: Arc::default(),
            layouts: Mutex::default(),
            lives: Mutex::default(),
            claimed: Mutex::default(),
            awaited: Mutex::default(),
            speakers: Mutex::default(),
            memory_percent: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            publishes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let tasks = vec![
            tokio::spawn(link.keep()),
            tokio::spawn(watch::listen(Arc::clone(&core))),
            tokio::spawn(watch::tick(Arc::clone(&core))),
            tokio::spawn(parts::tell(Arc::clone(&core))),
        ];
        Ok(Arc::new(Self { core, tasks }))
    }

    /// Which guards stand; only test builds can take one away.
    #[must_use]
    pub fn guards(&self) -> &Arc<Guards> {
        &self.core.guards
    }
}

#[async_trait]
impl Backend for Redis {
    async fn publish(&self, publish: Publish) -> Result<Vec<CallResult>, Error> {
        let core = &self.core;
        let percent = core.memory_percent.load(Ordering::Relaxed);
        if percent >= limits::REDIS_MEMORY_PERCENT {
            return Err(Error::Unavailable(format!(
                "Redis is at {percent} % of its maxmemory: new work is refused while queued work drains; raise maxmemory"
            )));
        }
        let swarm = publish.swarm.clone();
        let gated = publish.gate == crate::Gate::Durable;
        let firsts: Vec<u64> = publish
            .calls
            .iter()
            .map(|call| match call.once {
                Once::Session { first, .. } => first,
                _ => 0,
            })
            .collect();
        let requests: Vec<RequestId> = publish.calls.iter().filter_map(publish::request_of).collect();
        let make = || publish::command(core, &publish);
        let (mut said, history) = match core.write_as_told(&swarm, Script::Publish, make).await {
            Err(Error::Gone) => return Ok(vec![Err(Refused::Gone); firsts.len()]),
            other => other?,
        };
        match said.word.as_str() {
            "OK" => {}
            "GONE" => return Ok(vec![Err(Refused::Gone); firsts.len()]),
            _ => return Err(said.refusal()),
        }
        let mut results = Vec::with_capacity(firsts.len());
        for (value, own_first) in said.list()?.into_iter().zip(firsts) {
            let mut result = publish::answer(value)?;
            if let Err(Refused::SessionGap { first, .. } | Refused::SessionAhead { first, .. }) = &mut result {
                *first = own_first;
            }
            results.push(result);
        }
        for member in said.list()? {
            core.bells.ring_member(&swarm, &text(member)?);
        }
        for stage in said.list()? {
            if let Ok(stage) = text(stage)?.parse() {
                core.bells.ring_room(&swarm.topic(&stage));
            }
        }
        core.publishes.fetch_add(1, Ordering::Relaxed);
        let refused = results.iter().filter(|r| r.is_err()).count() as u64;
        core.refused.fetch_add(refused, Ordering::Relaxed);
        let mut repeated = false;
        {
            let mut awaited = core.awaited();
            for request in requests.into_iter().filter(|r| core.waiters.is_waiting(*r)) {
                awaited.insert(request, (swarm.clone(), Instant::now()));
            }
            for result in &results {
                if let Ok(Accepted::Duplicate { request, reply }) = result {
                    repeated = true;
                    if let (Some(request), None) = (request, reply) {
                        awaited.insert(*request, (swarm.clone(), Instant::now()));
                    }
                }
            }
        }
        // Whoever is told of an earlier call must not be told of one that a failover may take back.
        if gated || repeated {
            core.safe(history).await?;
        }
        Ok(results)
    }

    async fn claim(
        &self,
        topic: &TopicSpec,
        partition: u16,
        token: Token,
        ttl_ms: u64,
    ) -> Result<Result<Claim, Held>, Error> {
        let partition = topic.id.partition(partition);
        let mut args = self.core.owner_args(Script::Claim, &partition);
        args.bytes(&token.0).num(ttl_ms).num(topic.born).num(topic.partitions);
        let swarm = partition.topic().swarm();
        let (mut said, _) = self.core.write_alive(swarm, Script::Claim, &args).await?;
        match said.word.as_str() {
            "OK" => {}
            "HELD" => {
                return Ok(Err(Held {
                    ms_left: said.number()?,
                }));
            }
            _ => return Err(said.refusal()),
        }
        let seq = said.number()?;
        let last = skep_model::id::CommitId(reply::id(said.next()?)?);
        let cursor = Cursor {
            entry: said.number()?,
            index: u32::try_from(said.number()?).unwrap_or(u32::MAX),
        };
        let unclean = u32::try_from(said.number()?).unwrap_or(u32::MAX);
        let uid = Uid(reply::id(said.next()?)?);
        let times = u32::try_from(said.number()?).unwrap_or(u32::MAX);
        lock(&self.core.claimed).insert(partition, token);
        Ok(Ok(Claim {
            seq,
            last,
            cursor,
            unclean,
            marked: (times > 0).then_some((uid, times)),
        }))
    }

    async fn renew(&self, lease: &Lease, ttl_ms: u64) -> Result<(), Error> {
        let mut args = self.core.owner_args(Script::Renew, &lease.partition);
        args.bytes(&lease.token.0).num(ttl_ms);
        let (mut said, _) = self.core.write(Script::Renew, &args).await?;
        if said.word == "OK" { Ok(()) } else { Err(said.refusal()) }
    }

    async fn release(&self, lease: &Lease) -> Result<(), Error> {
        let mut args = self.core.owner_args(Script::Release, &lease.partition);
        args.bytes(&lease.token.0).bytes(&self.core.link.options.node);
        self.core.cache.forget(&lease.partition);
        self.core.write(Script::Release, &args).await?;
        let mut claimed = lock(&self.core.claimed);
        if claimed.get(&lease.partition) == Some(&lease.token) {
            claimed.remove(&lease.partition);
        }
        Ok(())
    }

    async fn fetch(&self, lease: &Lease, want: Want) -> Result<Fetched, Error> {
        fetch::fetch(&self.core, lease, want).await
    }

    async fn commit(&self, lease: &Lease, commit: Arc<Commit>) -> Result<Committed, Error> {
        let core = &self.core;
        let swarm = lease.partition.topic().swarm();
        let make = |remembering| commit::command(core, lease, &commit, remembering);
        let first = core.write_as_told(swarm, Script::Commit, || Ok(make(true)));
        let (mut said, mut history) = first.await?;
        if said.word == "AGAIN" {
            // Nothing was written: somebody else wrote state of this partition's keys.
            core.cache.forget(&lease.partition);
            let again = core.write_as_told(swarm, Script::Commit, || Ok(make(false)));
            (said, history) = again.await?;
        }
        let topic = lease.partition.topic();
        let done = match said.word.as_str() {
            "OK" => Committed::Ok,
            "DONE" => Committed::Done,
            word => {
                core.refused.fetch_add(1, Ordering::Relaxed);
                return Err(match word {
                    "FULL" => {
                        let stage = said.text()?;
                        let what = if said.text()? == "dead" {
                            Room::DeadLetters
                        } else {
                            Room::Inbox
                        };
                        let odd = |_| Error::Corrupt(format!("`{stage}` is not a stage's name"));
                        Error::Full {
                            stage: stage.parse().map_err(odd)?,
                            what,
                        }
                    }
                    "LARGE" => Error::TooLarge(format!(
                        "the effects of one commit are more than {} bytes",
                        limits::COMMIT_BYTES_MAX
                    )),
                    _ => said.refusal(),
                });
            }
        };
        core.cache.advance(&lease.partition, &commit, core.told(&commit.own));
        let first = said.number()?;
        if done == Committed::Ok {
            core.commits.fetch_add(1, Ordering::Relaxed);
            for member in said.list()? {
                core.bells.ring_member(topic.swarm(), &text(member)?);
            }
            if said.number()? > 0 {
                core.bells.ring_room(topic);
            }
            if said.number()? > 0 {
                core.bells.ring(&lease.partition);
            }
            if said.number()? == 0 {
                core.cache.set_drained(&lease.partition, commit.id);
            }
        }
        // Also when the answer to the first sending was lost: delivering twice finds nobody.
        if !(commit.replies.is_empty() && commit.returned.is_empty()) {
            let letters = commit::letters(&commit, first);
            let letter = |r: &Reply| {
                letters
                    .iter()
                    .find(|(id, _)| *id == r.request)
                    .map_or(0, |(_, letter)| *letter)
            };
            let mut replies: Vec<(Reply, u64)> = commit
                .replies
                .iter()
                .map(|r| (r.clone(), letter(r)))
                .chain(commit.returned.iter().map(|r| (r.clone(), 0)))
                .collect();
            if core.link.options.gate == Gate::None || !core.guards.on(Guard::Gate) {
                // Nothing to wait for: a caller here is woken from here, and only others' replies cost another task.
                let (here, elsewhere): (Vec<_>, Vec<_>) = replies
                    .into_iter()
                    .partition(|(reply, _)| core.waiters.is_waiting(reply.request));
                for (mut reply, letter) in here {
                    publish::name_letter(&mut reply, letter);
                    core.answer(reply);
                }
                if elsewhere.is_empty() {
                    return Ok(done);
                }
                replies = elsewhere;
            }
            let released = Arc::clone(core);
            // The owner goes on meanwhile; its next commit builds on this one and rolls back with it.
            core.runtime
                .spawn(async move { released.release(replies, history).await });
        }
        Ok(done)
    }

    fn drained(&self, lease: &Lease, last: CommitId) -> bool {
        self.core.cache.is_drained(&lease.partition, last)
    }

    async fn mark(&self, lease: &Lease, uid: Uid) -> Result<u32, Error> {
        let mut args = self.core.owner_args(Script::Mark, &lease.partition);
        args.bytes(&lease.token.0).bytes(&uid.0);
        let (mut said, history) = self.core.write(Script::Mark, &args).await?;
        if said.word != "OK" {
            return Err(said.refusal());
        }
        let times = u32::try_from(said.number()?).unwrap_or(u32::MAX);
        self.core.safe(history).await?;
        Ok(times)
    }

    async fn rescale(&self, topic: &TopicSpec, id: CommitId) -> Result<Rescaled, Error> {
        rescale::rescale(&self.core, topic, id).await
    }

    async fn hand_over(&self, lease: &Lease, base: CommitId, id: CommitId) -> Result<(), Error> {
        rescale::hand_over(&self.core, lease, base, id).await
    }

    async fn layout(&self, topic: &TopicId) -> Result<Option<Layout>, Error> {
        rescale::layout(&self.core, topic).await
    }

    async fn flushed(&self) -> Result<(), Error> {
        self.core.link.pairs()?;
        self.core.safe_now().await
    }

    fn bell(&self, partition: &PartitionId) -> Bell {
        self.core.bells.bell(partition)
    }

    fn room(&self, topic: &TopicId) -> Bell {
        self.core.bells.room(topic)
    }

    fn waiters(&self) -> &Arc<Waiters> {
        &self.core.waiters
    }

    fn speaker(&self, request: RequestId, source: Uid) -> Arc<dyn Speaker> {
        parts::speaker(&self.core, request, source)
    }

    fn scan_every_ms(&self) -> u64 {
        // The backend looks itself, once a second and Swarm, and rings; an owner's own scan is for what nobody thought of.
        30_000
    }

    async fn status(&self, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error> {
        views::status(&self.core, swarm).await
    }

    async fn durable_status(&self, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error> {
        views::durable_status(&self.core, swarm).await
    }

    fn history(&self, swarm: &SwarmId) -> u64 {
        self.core.link.history_of(&names::meta(swarm))
    }

    async fn state_page(&self, topic: &TopicId, after: &str) -> Result<StatePage, Error> {
        views::state_page(&self.core, topic, after).await
    }

    async fn state_size(&self, topic: &TopicId) -> Result<StateSize, Error> {
        views::state_size(&self.core, topic).await
    }

    async fn lives(&self) -> Result<Vec<SwarmId>, Error> {
        views::lives(&self.core).await
    }

    async fn remove_swarm(&self, swarm: &SwarmId, if_empty: bool) -> Result<bool, Error> {
        removal::remove_swarm(&self.core, swarm, if_empty).await
    }

    async fn remove_topic(&self, topic: &TopicSpec) -> Result<bool, Error> {
        removal::remove_topic(&self.core, topic).await
    }

    async fn export(&self, swarm: &SwarmId) -> Result<Pieces, Error> {
        export::export(&self.core, swarm).await
    }

    async fn import(&self, swarm: &SwarmId, pieces: Pieces) -> Result<bool, Error> {
        import::import(&self.core, swarm, pieces).await
    }

    async fn imports(&self) -> Result<Vec<SwarmId>, Error> {
        import::imports(&self.core).await
    }

    async fn discard_import(&self, swarm: &SwarmId) -> Result<(), Error> {
        import::discard(&self.core, swarm).await
    }

    async fn state(&self, topic: &TopicId, key: &str) -> Result<HashMap<String, Bytes>, Error> {
        views::state_of(&self.core, topic, key).await
    }

    async fn dead_letters(
        &self,
        swarm: &SwarmId,
        stage: Option<&StageName>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredDeadLetter>, Error> {
        views::dead_letters(&self.core, swarm, stage, after, limit).await
    }

    async fn discard_dead_letters(&self, swarm: &SwarmId, ids: &[u64]) -> Result<u64, Error> {
        removal::discard_dead_letters(&self.core, swarm, ids).await
    }

    async fn catalog_put_if(
        &self,
        key: &str,
        expect: u64,
        seen: Option<u64>,
        value: Bytes,
    ) -> Result<Result<u64, u64>, Error> {
        let mut args = self.core.catalog_args(Script::CatalogPut);
        args.text(key).num(expect).text(&number_seen(seen));
        args.bytes(&record::seal(Kind::Catalog, &value));
        catalog(&self.core, Script::CatalogPut, &args).await
    }

    async fn catalog_list(&self, prefix: &str) -> Result<Vec<(String, CatalogRecord)>, Error> {
        views::catalog_list(&self.core, prefix).await
    }

    async fn catalog_delete_if(&self, key: &str, expect: u64, seen: Option<u64>) -> Result<Result<(), u64>, Error> {
        let mut args = self.core.catalog_args(Script::CatalogDelete);
        args.text(key).num(expect).text(&number_seen(seen));
        let done = catalog(&self.core, Script::CatalogDelete, &args).await?;
        Ok(done.map(|_| ()))
    }

    fn catalog_place(&self, number: u64) -> Option<u64> {
        Some(number >> CATALOG_CHANCE_BITS)
    }

    async fn catalog_replace(&self, above: u64, changes: &[CatalogChange]) -> Result<bool, Error> {
        let mut args = self.core.catalog_args(Script::CatalogReplace);
        args.num(above).num(changes.len());
        for change in changes {
            args.text(&change.key).num(change.expect).flag(change.value.is_some());
            if let Some(value) = &change.value {
                args.bytes(&record::seal(Kind::Catalog, value));
            }
        }
        let (said, history) = self.core.write(Script::CatalogReplace, &args).await?;
        let done = said.word == "OK";
        if done {
            self.core.bells.ring_catalog();
        }
        self.core.safe(history).await?;
        Ok(done)
    }

    async fn catalog_number(&self) -> Result<u64, Error> {
        views::catalog_number(&self.core).await
    }

    fn catalog_bell(&self) -> Bell {
        self.core.bells.catalog()
    }

    async fn beat(&self, node: NodeId, record: Bytes, ttl_ms: u64) -> Result<Pulse, Error> {
        beats::beat(&self.core, node, &record, ttl_ms).await
    }

    async fn leave(&self, node: NodeId) -> Result<(), Error> {
        beats::leave(&self.core, node).await
    }

    fn counters(&self) -> Counters {
        Counters {
            commits: self.core.commits.load(Ordering::Relaxed),
            publishes: self.core.publishes.load(Ordering::Relaxed),
            flushes: self.core.gate.flushes.load(Ordering::Relaxed),
            refused: self.core.refused.load(Ordering::Relaxed),
        }
    }

    async fn close(&self) -> Result<(), Error> {
        // Others need not wait until these leases run out.
        let claimed = std::mem::take(&mut *lock(&self.core.claimed));
        for (partition, token) in claimed {
            if self.release(&Lease { partition, token }).await.is_err() {
                break;
            }
        }
        // Whoever waited for something in a history that ended was told.
        self.core.link.ended();
        let flushed = self.flushed().await;
        self.core.link.close();
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        flushed
    }
}

/// As the scripts take it: they compare text, for their numbers do not hold so many bits.
fn number_seen(seen: Option<u64>) -> String {
    seen.map_or_else(String::new, |seen| seen.to_string())
}

/// A compare-and-set of the catalog, gated either way: whoever lost is told of what is there.
async fn catalog(core: &Core, script: Script, args: &Args) -> Result<Result<u64, u64>, Error> {
    let (mut said, history) = core.write(script, args).await?;
    let version = number(said.next()?)?;
    // Also after a delete of what is not there: a look too many.
    if said.word == "OK" {
        core.bells.ring_catalog();
    }
    core.safe(history).await?;
    Ok(if said.word == "OK" { Ok(version) } else { Err(version) })
}
