//! The connections to the server: made, checked, given up after an error, and made anew with backoff.
//!
//! All operations share one multiplexed connection, whose commands coalesce; a second one carries the waits for replicas, which
//! would hold up everything behind them. The two are made and given up together, and only if they lead to the same server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Cmd, Value};
use skep_model::env::Entropy;
use skep_model::limits;
use tokio::sync::Notify;

use super::fault::{self, After};
use super::names;
use super::options::{Gate, RedisOptions};
use super::reply::text;
use super::scripts::Script;
use crate::Error;

/// The format of the store's keys. A newer one is refused.
pub(super) const FORMAT: u64 = 1;

/// One working pair of connections.
#[derive(Clone)]
pub(super) struct Pair {
    main: MultiplexedConnection,
    pub gate: MultiplexedConnection,
    /// Rises when the pair leads to another server, or to one that started anew: what was written before may be missing there.
    pub history: u64,
    number: u64,
}

#[derive(Default)]
struct State {
    pair: Option<Pair>,
    /// Why there is none.
    why: String,
    /// The store is not the one it was: nothing is served until somebody looked.
    lost: Option<String>,
    closed: bool,
    /// Which server process and replication history the last pair led to.
    server: String,
    history: u64,
    numbers: u64,
}

pub(super) struct Link {
    pub options: RedisOptions,
    client: Client,
    entropy: Arc<dyn Entropy>,
    state: Mutex<State>,
    broken: Notify,
    /// The store's identity, once known.
    store: Mutex<Option<String>>,
    /// The history of the last write that nothing waited for yet.
    pub written: AtomicU64,
}

/// The library's error in words, without the password.
pub(super) fn reach(options: &RedisOptions, error: &redis::RedisError) -> String {
    let at = options.shown();
    let text = options.scrub(&error.to_string());
    let hint = match error.code() {
        Some("NOAUTH") => "it wants a password: put it into the URL (redis://:PASSWORD@host)",
        Some("WRONGPASS") => "user name or password is wrong",
        Some("NOPERM") => "this user may not run what skep needs (ACL: allcommands on keys sk:*, channels sk:*)",
        Some("LOADING") => "it is loading its data: wait until it is done",
        _ if error.kind() == redis::ErrorKind::AuthenticationFailed => "user name or password is wrong or missing",
        _ if error.is_timeout() => "no answer: is it a Redis, is the port right, does it want TLS (rediss://)?",
        _ if text.contains("refused") => "nobody listens there: is Redis running, is the port right?",
        _ if text.contains("certificate")
            || text.contains("tls")
            || text.contains("TLS")
            || text.contains("corrupt message") =>
        {
            "TLS does not come about: rediss:// speaks TLS, redis:// does not, and the certificate must be trusted by this machine"
        }
        _ if error.is_connection_dropped() => {
            "it closed the connection: does it want TLS (rediss://), or refuse connections from here (protected-mode)?"
        }
        _ => "check the URL (redis://[user:password@]host:port/[db])",
    };
    format!("Redis at {at} cannot be used: {hint} ({text})")
}

/// The library's client: an address, nothing is sent yet.
pub(super) fn client(options: &RedisOptions) -> Result<Client, Error> {
    if options.url.starts_with("rediss:") {
        // The library takes the process's choice; whoever made one before is right.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    Client::open(options.url.as_str()).map_err(|e| Error::Unavailable(reach(options, &e)))
}

impl Link {
    pub fn new(options: RedisOptions, entropy: Arc<dyn Entropy>) -> Result<Arc<Self>, Error> {
        let client = client(&options)?;
        Ok(Arc::new(Self {
            options,
            client,
            entropy,
            state: Mutex::default(),
            broken: Notify::new(),
            store: Mutex::default(),
            written: AtomicU64::new(0),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The pair to use now.
    pub fn pair(&self) -> Result<Pair, Error> {
        let state = self.state();
        if state.closed {
            return Err(Error::Unavailable("the store is closed".to_owned()));
        }
        if let Some(lost) = &state.lost {
            return Err(Error::Unavailable(lost.clone()));
        }
        match &state.pair {
            Some(pair) => Ok(pair.clone()),
            None => Err(Error::Unavailable(state.why.clone())),
        }
    }

    pub fn history(&self) -> u64 {
        self.state().history
    }

    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.pair = None;
        self.broken.notify_one();
    }

    /// Gives a pair up, if it is still the current one.
    pub fn give_up(&self, pair: &Pair, why: &str) {
        let mut state = self.state();
        if state.pair.as_ref().is_some_and(|p| p.number == pair.number) {
            state.pair = None;
            state.why = why.to_owned();
            self.broken.notify_one();
        }
    }

    /// The store is not what it was.
    pub fn lose(&self, why: String) {
        tracing::error!("{why}");
        self.state().lost = Some(why);
    }

    fn config(&self, response: Duration) -> AsyncConnectionConfig {
        // The library's own default, half a second, is shorter than a busy server's answer.
        AsyncConnectionConfig::new()
            .set_response_timeout(Some(response))
            .set_connection_timeout(Some(self.options.connect_timeout))
    }

    async fn connect(&self, response: Duration) -> Result<MultiplexedConnection, Error> {
        let config = self.config(response);
        let found = self.client.get_multiplexed_async_connection_with_config(&config).await;
        found.map_err(|e| Error::Unavailable(reach(&self.options, &e)))
    }

    /// How long the answer of a gate may take.
    fn gate_timeout(&self) -> Duration {
        let wait = match self.options.gate {
            Gate::None => 0,
            Gate::Wait { timeout_ms, .. } | Gate::WaitAof { timeout_ms, .. } => timeout_ms,
        };
        self.options.response_timeout + Duration::from_millis(wait)
    }

    /// Connects once, and checks that it is our store.
    pub async fn establish(&self) -> Result<(), Error> {
        let mut main = self.connect(self.options.response_timeout).await?;
        let mut gate = self.connect(self.gate_timeout()).await?;
        let server = self.server_of(&mut main).await?;
        if server != self.server_of(&mut gate).await? {
            return Err(Error::Unavailable(
                "two connections led to two servers: a failover is under way".to_owned(),
            ));
        }
        self.identify(&mut main).await?;
        for script in Script::ALL {
            self.load(&mut main, *script).await?;
        }
        let mut state = self.state();
        if state.server != server {
            state.server = server;
            state.history += 1;
        }
        state.numbers += 1;
        state.pair = Some(Pair {
            main,
            gate,
            history: state.history,
            number: state.numbers,
        });
        Ok(())
    }

    async fn load(&self, conn: &mut MultiplexedConnection, script: Script) -> Result<(), Error> {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script.source());
        let digest = self.ask(conn, &load).await?;
        script.learn(text(digest)?);
        Ok(())
    }

    async fn ask(&self, conn: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, Error> {
        let answer = conn.req_packed_command(command).await;
        let answer = answer.and_then(Value::extract_error);
        answer.map_err(|e| Error::Unavailable(reach(&self.options, &e)))
    }

    /// Which process and which replication history answers.
    async fn server_of(&self, conn: &mut MultiplexedConnection) -> Result<String, Error> {
        let mut out = String::new();
        for section in ["server", "replication"] {
            let mut info = redis::cmd("INFO");
            info.arg(section);
            let info = text(self.ask(conn, &info).await?)?;
            for line in info.lines() {
                if line.starts_with("run_id:") || line.starts_with("master_replid:") {
                    out.push_str(line);
                    out.push(' ');
                }
                if line == "role:slave" {
                    let at = self.options.shown();
                    return Err(Error::Unavailable(format!(
                        "Redis at {at} is a replica: give the address of the server that leads"
                    )));
                }
            }
        }
        Ok(out)
    }

    /// Checks that this is our store; an empty database becomes one when this process has seen none before.
    async fn identify(&self, conn: &mut MultiplexedConnection) -> Result<(), Error> {
        let at = self.options.shown();
        let mut get = redis::cmd("HMGET");
        get.arg(names::STORE).arg("id").arg("format");
        let known = self.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = super::reply::list(self.ask(conn, &get).await?)?;
        let mut found = found.into_iter().map(super::reply::some_text);
        let (id, format) = (found.next().flatten(), found.next().flatten());
        let id = match (id, known) {
            (Some(id), Some(known)) if id != known => {
                return Err(self.foreign(format!(
                    "Redis at {at} holds another skep store than before ({id}, not {known}): was it restored or swapped? \
                     Point skep at the right one, or restart the nodes to accept this one"
                )));
            }
            (Some(id), _) => id,
            (None, Some(known)) => {
                return Err(self.foreign(format!(
                    "Redis at {at} lost the store {known}: it is empty or was flushed (FLUSHALL, a restart without its \
                     append-only file, an empty failover). Restore its data, or restart the nodes to begin with nothing"
                )));
            }
            (None, None) => {
                let keys = match self.ask(conn, &redis::cmd("DBSIZE")).await? {
                    Value::Int(n) => n,
                    _ => 0,
                };
                // Another node may have made the store since.
                let again = super::reply::list(self.ask(conn, &get).await?)?;
                let made = again.into_iter().next().and_then(super::reply::some_text);
                if keys > 0 && made.is_none() {
                    return Err(self.foreign(format!(
                        "Redis at {at} holds {keys} keys and no skep store: it serves another program, or lost the key \
                         `{}`. Give skep a server or a database of its own (redis://host:port/1)",
                        names::STORE
                    )));
                }
                let fresh = skep_model::id::Uid(self.entropy.bits128()).to_string();
                let mut set = redis::cmd("HSETNX");
                set.arg(names::STORE).arg("id").arg(&fresh);
                self.ask(conn, &set).await?;
                let mut set = redis::cmd("HSETNX");
                set.arg(names::STORE).arg("format").arg(FORMAT);
                self.ask(conn, &set).await?;
                // Another node may have been first.
                let mut get = redis::cmd("HGET");
                get.arg(names::STORE).arg("id");
                text(self.ask(conn, &get).await?)?
            }
        };
        if let Some(format) = format.and_then(|f| f.parse::<u64>().ok())
            && format > FORMAT
        {
            return Err(self.foreign(format!(
                "Redis at {at} has store format {format}, this skep reads {FORMAT}: upgrade skep"
            )));
        }
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        Ok(())
    }

    fn foreign(&self, why: String) -> Error {
        let opened = self.store.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if opened {
            self.lose(why.clone());
        }
        Error::Corrupt(why)
    }

    /// Looks again whether this is our store.
    pub async fn check(&self) -> Result<(), Error> {
        let mut pair = self.pair()?;
        match self.identify(&mut pair.main).await {
            Err(Error::Unavailable(why)) => {
                self.give_up(&pair, &why);
                Err(Error::Unavailable(why))
            }
            other => other,
        }
    }

    pub fn store_id(&self) -> String {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.clone().unwrap_or_default()
    }

    /// Makes a new pair whenever one was given up.
    pub async fn keep(self: Arc<Self>) {
        loop {
            self.broken.notified().await;
            let mut wait = limits::RECONNECT_FIRST_MS;
            loop {
                if self.state().closed {
                    return;
                }
                match self.establish().await {
                    Ok(()) => {
                        tracing::info!(redis = self.options.shown(), "connected again");
                        break;
                    }
                    Err(e) => self.state().why = e.to_string(),
                }
                // All nodes lose a server at once: they come back spread out.
                let spread = u64::from(self.entropy.bits128()[0]) * wait / 256;
                tokio::time::sleep(Duration::from_millis(wait / 2 + spread)).await;
                wait = (wait * 2).min(limits::RECONNECT_MAX_MS);
            }
        }
    }

    /// Sends a command that changes nothing or may be repeated, on the pair in use.
    pub async fn send(&self, command: &Cmd) -> Result<Value, Error> {
        let mut pair = self.pair()?;
        let answer = pair.main.req_packed_command(command).await;
        self.sorted(&pair, answer.and_then(Value::extract_error))
    }

    pub async fn send_all(&self, pipe: &redis::Pipeline, count: usize) -> Result<Vec<Value>, Error> {
        let mut pair = self.pair()?;
        let answer = pair.main.req_packed_commands(pipe, 0, count).await;
        let answer = answer.and_then(|values| values.into_iter().map(Value::extract_error).collect());
        self.sorted(&pair, answer)
    }

    fn sorted<T>(&self, pair: &Pair, answer: redis::RedisResult<T>) -> Result<T, Error> {
        answer.map_err(|e| {
            let (error, after) = fault::sort(&e, &self.options);
            if after == After::Replace {
                self.give_up(pair, &error.to_string());
            }
            error
        })
    }

    /// Runs a script; `command` is its EVALSHA. Returns the history that it was written in.
    pub async fn run(&self, script: Script, command: &Cmd) -> Result<(Value, u64), Error> {
        let mut pair = self.pair()?;
        let mut answer = pair
            .main
            .req_packed_command(command)
            .await
            .and_then(Value::extract_error);
        if let Err(e) = &answer
            && fault::sort(e, &self.options).1 == After::Load
        {
            // The server forgot its scripts, so it did nothing.
            self.load(&mut pair.main, script).await?;
            answer = pair
                .main
                .req_packed_command(command)
                .await
                .and_then(Value::extract_error);
        }
        let history = pair.history;
        self.sorted(&pair, answer).map(|value| (value, history))
    }

    /// Runs a script and a read right behind it. Not as a transaction: a full server refuses to queue one.
    pub async fn run_and_read(&self, script: Script, command: &Cmd, read: &Cmd) -> Result<(Value, Value), Error> {
        let mut pair = self.pair()?;
        let mut pipe = redis::pipe();
        pipe.add_command(command.clone()).add_command(read.clone());
        let mut loaded = false;
        loop {
            let answer = pair.main.req_packed_commands(&pipe, 0, 2).await;
            let answer = answer.and_then(|values| {
                values
                    .into_iter()
                    .map(Value::extract_error)
                    .collect::<Result<Vec<_>, _>>()
            });
            if let Err(e) = &answer
                && !loaded
                && fault::sort(e, &self.options).1 == After::Load
            {
                self.load(&mut pair.main, script).await?;
                loaded = true;
                continue;
            }
            let mut both = self.sorted(&pair, answer)?;
            let second = both.pop().unwrap_or(Value::Nil);
            return Ok((both.pop().unwrap_or(Value::Nil), second));
        }
    }

    pub fn wrote(&self, history: u64) {
        self.written.store(history, Ordering::SeqCst);
    }
}
