//! The connections to the servers: made, checked, given up after an error, and made anew with backoff.
//!
//! All operations on a server share one multiplexed connection, whose commands coalesce; a second one carries the waits for replicas,
//! which would hold up everything behind them. Each thread with a runtime of its own, where partitions have their owners, gets one more
//! for its scripts. All are made and given up together, and only if they lead to the same server. Nothing depends on the order of
//! commands of two connections: an operation is sent when the one it follows was answered.
//!
//! There is one server, or those that lead in a cluster. A command goes to whoever serves its key's slot, once: the library's own client
//! for clusters would send it again after a broken connection, where nobody knows whether it was done. What a server certainly refused,
//! since the slot is elsewhere or on its way, is sent again for a while. Redirections are not followed to a server that a slot is still on
//! its way to (ASK): scripts would find a part of their keys there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::{Client, Cmd, RedisResult, Value};
use skep_model::env::Entropy;
use skep_model::limits;
use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, OnceCell};

use super::fault::{self, After};
use super::names;
use super::options::RedisOptions;
use super::places::Places;
use super::reach::{client, reach};
use super::reply::text;
use super::scripts::Script;
use super::slots::{self, Range, SLOTS};
use crate::Error;

/// One working pair of connections.
#[derive(Clone)]
pub(super) struct Pair {
    pub main: MultiplexedConnection,
    pub gate: MultiplexedConnection,
    /// Another one when the pair leads to another server, or to one that started anew: what was written before may be missing there.
    pub history: u64,
    /// Which pair it is, 0 before it is in use.
    pub number: u64,
    pub address: Arc<str>,
    /// Which server process and replication history it is.
    pub identity: Arc<str>,
    /// Connections of runtimes that are not the store's.
    pub near: Arc<Near>,
}

/// A runtime's own connections beside `main`, at most one each, made at the first script that is run there; `None` where that failed.
/// Owners of partitions live on the threads that run guests: an answer that arrives on the very thread that waits for it saves
/// waking two, there and back.
pub(super) type Near = Mutex<HashMap<runtime::Id, Arc<OnceCell<Option<MultiplexedConnection>>>>>;

/// A server that leads.
pub(super) struct Server {
    pub pair: Option<Pair>,
    /// Of the last pair.
    pub identity: Arc<str>,
    pub history: u64,
    /// Why there is none.
    pub why: String,
}

#[derive(Default)]
pub(super) struct State {
    pub servers: BTreeMap<String, Server>,
    /// Sorted; one range where it is no cluster.
    pub slots: Vec<Range>,
    /// Why there is no server.
    pub why: String,
    /// The store is not the one it was: nothing is served until somebody looked.
    lost: Option<String>,
    pub closed: bool,
    pub histories: u64,
    pub numbers: u64,
    /// Histories in which something was written that nothing waited for since: one of the past is told of once.
    written: BTreeSet<u64>,
}

/// Who serves a slot.
fn leader(ranges: &[Range], slot: usize) -> Option<&str> {
    let after = ranges.partition_point(|range| range.first <= slot);
    let range = ranges[..after].last().filter(|range| slot <= range.last)?;
    Some(&range.leader)
}

/// All that lead at one moment, as far as they are reached.
pub(super) struct Pairs {
    pub ranges: Vec<Range>,
    pub pairs: BTreeMap<String, Pair>,
}

impl Pairs {
    pub fn pair(&self, key: &str) -> Option<&Pair> {
        self.pairs.get(leader(&self.ranges, slots::slot(key.as_bytes()))?)
    }

    pub fn main(&self, key: &str) -> Option<MultiplexedConnection> {
        self.pair(key).map(|pair| pair.main.clone())
    }

    pub fn mains(&self) -> impl Iterator<Item = MultiplexedConnection> {
        self.pairs.values().map(|pair| pair.main.clone())
    }

    pub fn all(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.values()
    }
}

pub(super) struct Link {
    pub options: RedisOptions,
    pub places: Places,
    pub(super) entropy: Arc<dyn Entropy>,
    state: Mutex<State>,
    pub(super) broken: Notify,
    /// The store's identity, once known.
    pub(super) store: Mutex<Option<String>>,
    /// The runtime that drives `main` connections.
    home: Option<runtime::Id>,
}

/// How long a command waits for a slot to arrive.
struct Patience {
    until: Instant,
    wait: u64,
}

impl Patience {
    fn new() -> Self {
        Self {
            until: Instant::now() + Duration::from_millis(limits::REDIS_MOVING_MS),
            wait: limits::REDIS_MOVING_FIRST_MS,
        }
    }

    /// Whether to send again.
    async fn is_left(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(self.wait)).await;
        self.wait = (self.wait * 2).min(limits::RECONNECT_FIRST_MS);
        true
    }
}

fn all_of(answer: RedisResult<Vec<Value>>) -> RedisResult<Vec<Value>> {
    answer.and_then(|values| values.into_iter().map(Value::extract_error).collect())
}

impl Link {
    pub fn new(options: RedisOptions, entropy: Arc<dyn Entropy>) -> Result<Arc<Self>, Error> {
        let places = options.places()?;
        Ok(Arc::new(Self {
            options,
            places,
            entropy,
            state: Mutex::default(),
            broken: Notify::new(),
            store: Mutex::default(),
            home: Handle::try_current().ok().map(|handle| handle.id()),
        }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client of one that leads, another one from time to time.
    pub fn client(&self) -> Result<Client, Error> {
        let leaders: Vec<String> = self.state().servers.keys().cloned().collect();
        let address = match leaders.len() {
            0 => self.places.addresses.first().cloned().unwrap_or_default(),
            n => leaders[usize::from(self.entropy.bits128()[0]) % n].clone(),
        };
        client(&self.options, &self.places.url(&address))
    }

    fn usable(state: &State) -> Result<(), Error> {
        if state.closed {
            return Err(Error::Unavailable("the store is closed".to_owned()));
        }
        match &state.lost {
            Some(lost) => Err(Error::Unavailable(lost.clone())),
            None => Ok(()),
        }
    }

    /// The pair to use now for a slot.
    fn pair_of(&self, slot: usize) -> Result<Pair, Error> {
        let state = self.state();
        Self::usable(&state)?;
        match leader(&state.slots, slot).and_then(|address| state.servers.get(address)) {
            Some(server) => match &server.pair {
                Some(pair) => Ok(pair.clone()),
                None => Err(Error::Unavailable(server.why.clone())),
            },
            None => Err(Error::Unavailable(if state.why.is_empty() {
                format!(
                    "Redis at {}: nobody serves slot {slot} of the cluster",
                    self.options.shown()
                )
            } else {
                state.why.clone()
            })),
        }
    }

    /// Those of all servers, or why one is not reached.
    pub fn pairs(&self) -> Result<Pairs, Error> {
        let state = self.state();
        Self::usable(&state)?;
        let pairs: BTreeMap<String, Pair> = state
            .servers
            .iter()
            .filter_map(|(address, server)| Some((address.clone(), server.pair.clone()?)))
            .collect();
        if pairs.is_empty() {
            let why = state.servers.values().next().map(|server| server.why.clone());
            return Err(Error::Unavailable(why.unwrap_or_else(|| state.why.clone())));
        }
        Ok(Pairs {
            ranges: state.slots.clone(),
            pairs,
        })
    }

    /// The pair that leads to where a history goes on. `None`: it ended.
    pub fn pair_in(&self, history: u64) -> Result<Option<Pair>, Error> {
        let state = self.state();
        Self::usable(&state)?;
        let Some(server) = state.servers.values().find(|server| server.history == history) else {
            return Ok(None);
        };
        match &server.pair {
            Some(pair) => Ok(Some(pair.clone())),
            None => Err(Error::Unavailable(server.why.clone())),
        }
    }

    /// The history of a key's server.
    pub fn history_of(&self, key: &str) -> u64 {
        let state = self.state();
        let server = leader(&state.slots, slots::slot(key.as_bytes())).and_then(|address| state.servers.get(address));
        server.map_or(0, |server| server.history)
    }

    pub fn histories(&self) -> Vec<u64> {
        self.state().servers.values().map(|server| server.history).collect()
    }

    pub fn wrote(&self, history: u64) {
        self.state().written.insert(history);
    }

    /// One of the histories in which this node wrote ended, and nobody was told yet.
    pub fn ended(&self) -> bool {
        let mut state = self.state();
        let now: BTreeSet<u64> = state.servers.values().map(|server| server.history).collect();
        let before = state.written.len();
        state.written.retain(|history| now.contains(history));
        state.written.len() < before
    }

    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.servers.clear();
        self.broken.notify_one();
    }

    /// Gives a pair up, if it is still the current one.
    pub fn give_up(&self, pair: &Pair, why: &str) {
        let mut state = self.state();
        if let Some(server) = state.servers.get_mut(&*pair.address)
            && server.pair.as_ref().is_some_and(|p| p.number == pair.number)
        {
            server.pair = None;
            why.clone_into(&mut server.why);
            self.broken.notify_one();
        }
    }

    /// The store is not what it was.
    pub fn lose(&self, why: String) {
        tracing::error!("{why}");
        self.state().lost = Some(why);
    }

    pub(super) async fn load(&self, conn: &mut MultiplexedConnection, script: Script) -> Result<(), Error> {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script.source());
        let digest = self.ask(conn, &load).await?;
        script.learn(text(digest)?);
        Ok(())
    }

    pub(super) async fn ask(&self, conn: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, Error> {
        let answer = conn.req_packed_command(command).await;
        let answer = answer.and_then(Value::extract_error);
        answer.map_err(|e| Error::Unavailable(reach(&self.options, &e)))
    }

    /// Whether a command certainly was not done because its slot is elsewhere, or on its way, and may be sent again.
    async fn moves(&self, error: &redis::RedisError, patience: &mut Patience) -> bool {
        match error.code() {
            Some("MOVED") => self.broken.notify_one(),
            Some("ASK" | "TRYAGAIN") => {}
            _ => return false,
        }
        self.places.cluster && patience.is_left().await
    }

    /// Sends a command that changes nothing or may be repeated.
    pub async fn send(&self, command: &Cmd) -> Result<Value, Error> {
        let slot = slots::slot(slots::key_of(command));
        let mut patience = Patience::new();
        loop {
            let mut pair = self.pair_of(slot)?;
            let answer = pair.main.req_packed_command(command).await;
            let answer = answer.and_then(Value::extract_error);
            if let Err(e) = &answer
                && self.moves(e, &mut patience).await
            {
                continue;
            }
            return self.sorted(&pair, answer);
        }
    }

    /// Several such commands, in their order where one server serves them.
    pub async fn send_all(&self, pipe: &redis::Pipeline) -> Result<Vec<Value>, Error> {
        let mut parts: Vec<(Pair, redis::Pipeline, Vec<usize>)> = Vec::new();
        let mut count = 0;
        for (i, command) in pipe.cmd_iter().enumerate() {
            count += 1;
            let pair = self.pair_of(slots::slot(slots::key_of(command)))?;
            let at = parts.iter().position(|(p, _, _)| p.number == pair.number);
            let at = at.unwrap_or_else(|| {
                parts.push((pair, redis::pipe(), Vec::new()));
                parts.len() - 1
            });
            parts[at].1.add_command(command.clone());
            parts[at].2.push(i);
        }
        let mut out = vec![Value::Nil; count];
        for (pair, pipe, places) in parts {
            let values = self.send_to(&pair, &pipe, places.len()).await?;
            for (i, value) in places.into_iter().zip(values) {
                out[i] = value;
            }
        }
        Ok(out)
    }

    /// Sends to one server, whatever the keys.
    pub async fn send_to(&self, pair: &Pair, pipe: &redis::Pipeline, count: usize) -> Result<Vec<Value>, Error> {
        let answer = pair.main.clone().req_packed_commands(pipe, 0, count).await;
        self.sorted(pair, all_of(answer))
    }

    fn sorted<T>(&self, pair: &Pair, answer: RedisResult<T>) -> Result<T, Error> {
        answer.map_err(|e| {
            let (error, after) = fault::sort(&e, &self.options);
            if after == After::Replace {
                self.give_up(pair, &error.to_string());
            }
            error
        })
    }

    /// The connection to run scripts on from here.
    async fn nearest(&self, pair: &Pair) -> MultiplexedConnection {
        let Some(here) = Handle::try_current().ok().map(|handle| handle.id()) else {
            return pair.main.clone();
        };
        if self.home.is_none_or(|home| home == here) {
            return pair.main.clone();
        }
        let cell = {
            let mut near = pair.near.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(near.entry(here).or_default())
        };
        let own = cell.get_or_init(|| self.another_to(pair)).await;
        own.clone().unwrap_or_else(|| pair.main.clone())
    }

    /// Runs a script; `command` is its EVALSHA. Returns the history that it was written in.
    pub async fn run(&self, script: Script, command: &Cmd) -> Result<(Value, u64), Error> {
        let slot = slots::slot(slots::key_of(command));
        let mut patience = Patience::new();
        let mut loaded = false;
        loop {
            let pair = self.pair_of(slot)?;
            let mut conn = self.nearest(&pair).await;
            let answer = conn.req_packed_command(command).await;
            let answer = answer.and_then(Value::extract_error);
            if let Err(e) = &answer {
                if !loaded && fault::sort(e, &self.options).1 == After::Load {
                    // The server forgot its scripts, so it did nothing.
                    self.load(&mut conn, script).await?;
                    loaded = true;
                    continue;
                }
                if self.moves(e, &mut patience).await {
                    continue;
                }
            }
            let history = pair.history;
            return self.sorted(&pair, answer).map(|value| (value, history));
        }
    }

    /// Runs a script and a read right behind it. Not as a transaction: a full server refuses to queue one.
    pub async fn run_and_read(&self, script: Script, command: &Cmd, read: &Cmd) -> Result<(Value, Value), Error> {
        let slot = slots::slot(slots::key_of(command));
        let mut patience = Patience::new();
        let mut pipe = redis::pipe();
        pipe.add_command(command.clone()).add_command(read.clone());
        let mut loaded = false;
        loop {
            let pair = self.pair_of(slot)?;
            let mut conn = self.nearest(&pair).await;
            let answer = all_of(conn.req_packed_commands(&pipe, 0, 2).await);
            if let Err(e) = &answer {
                if !loaded && fault::sort(e, &self.options).1 == After::Load {
                    self.load(&mut conn, script).await?;
                    loaded = true;
                    continue;
                }
                if self.moves(e, &mut patience).await {
                    continue;
                }
            }
            let mut both = self.sorted(&pair, answer)?;
            let second = both.pop().unwrap_or(Value::Nil);
            return Ok((both.pop().unwrap_or(Value::Nil), second));
        }
    }

    /// Whether a key lies with the server of `pair`.
    pub fn serves(&self, pair: &Pair, key: &str) -> bool {
        leader(&self.state().slots, slots::slot(key.as_bytes())) == Some(&*pair.address)
    }

    /// A key that the server of `pair` serves, to write to before a wait for its replicas.
    pub fn gate_key(&self, pair: &Pair) -> String {
        if !self.places.cluster {
            return names::GATE.to_owned();
        }
        let mut keys = (0..SLOTS).map(names::gate);
        let key = keys.find(|key| self.serves(pair, key));
        key.unwrap_or_else(|| names::GATE.to_owned())
    }
}
