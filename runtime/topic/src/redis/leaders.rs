//! Who leads: one server, one of several, or those of a cluster that have slots. Looked for at first, and whenever a connection broke or a
//! slot was found elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use redis::aio::MultiplexedConnection;
use skep_model::limits;

use super::link::{Link, Pair, Pairs, Server};
use super::options::Gate;
use super::reach::connect;
use super::reply::text;
use super::scripts::Script;
use super::slots::{self, Range, SLOTS};
use crate::Error;

impl Link {
    async fn connect(&self, address: &str, response: Duration) -> Result<MultiplexedConnection, Error> {
        connect(&self.options, &self.places.url(address), response).await
    }

    /// How long the answer of a gate may take.
    fn gate_timeout(&self) -> Duration {
        let wait = match self.options.gate {
            Gate::None => 0,
            Gate::Wait { timeout_ms, .. } | Gate::WaitAof { timeout_ms, .. } => timeout_ms,
        };
        self.options.response_timeout + Duration::from_millis(wait)
    }

    /// Finds out who leads, connects to whom there is no connection, and checks that it is our store.
    pub async fn establish(&self) -> Result<(), Error> {
        let ranges = self.leaders().await?;
        let leaders: BTreeSet<String> = ranges.iter().map(|range| range.leader.clone()).collect();
        let mut pairs: BTreeMap<String, Pair> = {
            let state = self.state();
            let servers = state.servers.iter().filter(|(address, _)| leaders.contains(*address));
            servers
                .filter_map(|(address, server)| Some((address.clone(), server.pair.clone()?)))
                .collect()
        };
        let missing: Vec<&String> = leaders.iter().filter(|a| !pairs.contains_key(*a)).collect();
        let made = join_all(missing.iter().map(|address| self.reach(address))).await;
        let mut failed = BTreeMap::new();
        for (address, made) in missing.into_iter().zip(made) {
            match made {
                Ok(pair) => {
                    pairs.insert(address.clone(), pair);
                }
                Err(e) => {
                    failed.insert(address.clone(), e.to_string());
                }
            }
        }
        if let (true, Some(why)) = (pairs.is_empty(), failed.values().next()) {
            return Err(Error::Unavailable(why.clone()));
        }
        let found = Pairs { ranges, pairs };
        self.identify(&found).await?;
        self.adopt(found, &leaders, &failed);
        match failed.into_values().next() {
            None => Ok(()),
            Some(why) => Err(Error::Unavailable(why)),
        }
    }

    fn adopt(&self, found: Pairs, leaders: &BTreeSet<String>, failed: &BTreeMap<String, String>) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.servers.retain(|address, _| leaders.contains(address));
        for (address, mut pair) in found.pairs {
            let known = state.servers.get(&address);
            if known.is_some_and(|server| server.pair.as_ref().is_some_and(|p| p.number == pair.number)) {
                continue;
            }
            let history = match known.filter(|server| server.identity == pair.identity) {
                Some(server) => server.history,
                None => {
                    state.histories += 1;
                    state.histories
                }
            };
            if pair.number == 0 {
                state.numbers += 1;
                (pair.number, pair.history) = (state.numbers, history);
                let server = Server {
                    identity: Arc::clone(&pair.identity),
                    history,
                    why: String::new(),
                    pair: Some(pair),
                };
                state.servers.insert(address, server);
            }
        }
        for (address, why) in failed {
            let unknown = || Server {
                pair: None,
                identity: Arc::from(""),
                history: 0,
                why: String::new(),
            };
            let server = state.servers.entry(address.clone()).or_insert_with(unknown);
            why.clone_into(&mut server.why);
        }
        state.slots = found.ranges;
        state.why.clear();
    }

    /// A pair to a server that leads, not yet in use.
    async fn reach(&self, address: &str) -> Result<Pair, Error> {
        let mut main = self.connect(address, self.options.response_timeout).await?;
        let mut gate = self.connect(address, self.gate_timeout()).await?;
        let identity = self.server_of(&mut main).await?;
        if identity != self.server_of(&mut gate).await? {
            return Err(Error::Unavailable(
                "two connections led to two servers: a failover is under way".to_owned(),
            ));
        }
        for script in Script::ALL {
            self.load(&mut main, *script).await?;
        }
        Ok(Pair {
            main,
            gate,
            history: 0,
            number: 0,
            address: Arc::from(address),
            identity: Arc::from(identity),
            near: Arc::default(),
        })
    }

    /// One more connection to a pair's server, driven by the caller's runtime. `None`: it cannot be had, or leads elsewhere by now.
    pub(super) async fn another_to(&self, pair: &Pair) -> Option<MultiplexedConnection> {
        let made = async {
            let mut conn = self.connect(&pair.address, self.options.response_timeout).await?;
            Ok::<_, Error>((self.server_of(&mut conn).await? == *pair.identity).then_some(conn))
        };
        made.await.unwrap_or_else(|error| {
            tracing::debug!(%error, "no connection of its own for a thread: it shares one");
            None
        })
    }

    /// Who leads, and which slots: of a cluster as one of its servers says.
    async fn leaders(&self) -> Result<Vec<Range>, Error> {
        if self.places.cluster {
            return self.cluster().await;
        }
        let address = match &self.places.addresses[..] {
            [only] => only.clone(),
            several => self.the_one_that_leads(several).await?,
        };
        Ok(vec![Range {
            first: 0,
            last: SLOTS - 1,
            leader: address,
        }])
    }

    async fn cluster(&self) -> Result<Vec<Range>, Error> {
        let mut places: Vec<String> = self.state().servers.keys().cloned().collect();
        places.extend(self.places.addresses.iter().cloned());
        let mut seen = BTreeSet::new();
        places.retain(|place| seen.insert(place.clone()));
        // One that was cut off from the others tells what was: the next try asks another first.
        let first = usize::from(self.entropy.bits128()[0]) % places.len().max(1);
        places.rotate_left(first);
        let mut why = Error::Unavailable(String::new());
        for place in &places {
            let asked = async {
                let mut conn = self.connect(place, self.options.connect_timeout).await?;
                let mut ask = redis::cmd("CLUSTER");
                ask.arg("SLOTS");
                let mut ranges = slots::ranges(self.ask(&mut conn, &ask).await?, place)?;
                ranges.sort_by_key(|range| range.first);
                if ranges.is_empty() {
                    let at = self.options.shown();
                    return Err(Error::Unavailable(format!(
                        "Redis at {at}: the cluster serves no slots"
                    )));
                }
                Ok(ranges)
            };
            match asked.await {
                Ok(ranges) => return Ok(ranges),
                Err(e) => why = e,
            }
        }
        Err(why)
    }

    /// Of several addresses one must lead. Of two that do, one was not told that it was replaced: what it takes would be lost.
    async fn the_one_that_leads(&self, several: &[String]) -> Result<String, Error> {
        let looks = several.iter().map(async |address| {
            let mut conn = self.connect(address, self.options.connect_timeout).await?;
            self.server_of(&mut conn).await
        });
        let mut leads = Vec::new();
        let mut why = None;
        for (address, found) in several.iter().zip(join_all(looks).await) {
            match found {
                Ok(_) => leads.push(address.clone()),
                Err(e) => why = why.or(Some(e)),
            }
        }
        match &leads[..] {
            [one] => Ok(one.clone()),
            [] => Err(why.unwrap_or_else(|| Error::Unavailable("no address of Redis is given".to_owned()))),
            [one, other, ..] => Err(Error::Unavailable(format!(
                "Redis at {one} and {other} both lead: make the one that was replaced a replica (REPLICAOF) before it takes writes"
            ))),
        }
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

    /// Looks anew who leads, and makes new pairs, whenever one was given up or a slot went elsewhere.
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
                    Err(e) => {
                        let mut state = self.state();
                        let why = e.to_string();
                        for server in state.servers.values_mut().filter(|server| server.pair.is_none()) {
                            server.why.clone_from(&why);
                        }
                        state.why = why;
                    }
                }
                // All nodes lose a server at once: they come back spread out.
                let spread = u64::from(self.entropy.bits128()[0]) * wait / 256;
                tokio::time::sleep(Duration::from_millis(wait / 2 + spread)).await;
                wait = (wait * 2).min(limits::RECONNECT_MAX_MS);
            }
        }
    }
}
