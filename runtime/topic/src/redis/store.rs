//! Whether what is connected is our store: looked at when a connection is made, and once a second.

use std::sync::PoisonError;

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::{Cmd, Value};

use super::gate;
use super::link::{Link, Pairs};
use super::names;
use super::reach::reach;
use super::reply::{list, some_text, text};
use crate::Error;

/// The format of the store's keys. A newer one is refused.
pub(super) const FORMAT: u64 = 1;

/// Asks for the store's identity and format.
fn name() -> Cmd {
    let mut get = redis::cmd("HMGET");
    get.arg(names::STORE).arg("id").arg("format");
    get
}

/// Asks for the mark of desired state.
fn mark() -> Cmd {
    let mut get = redis::cmd("GET");
    get.arg(names::CATALOG_MARK);
    get
}

impl Link {
    fn known(&self) -> Option<String> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn store_id(&self) -> String {
        self.known().unwrap_or_default()
    }

    fn foreign(&self, why: String) -> Error {
        if self.known().is_some() {
            self.lose(why.clone());
        }
        Error::Corrupt(why)
    }

    fn another(&self, id: &str, known: &str) -> Error {
        let at = self.options.shown();
        self.foreign(format!(
            "Redis at {at} holds another skep store than before ({id}, not {known}): was it restored or swapped? \
             Point skep at the right one, or restart the nodes to accept this one"
        ))
    }

    fn gone(&self, known: &str) -> Error {
        let at = self.options.shown();
        self.foreign(format!(
            "Redis at {at} lost the store {known}: it is empty or was flushed (FLUSHALL, a restart without its \
             append-only file, an empty failover). Restore its data, or restart the nodes to begin with nothing"
        ))
    }

    /// Checks that this is our store; an empty database becomes one when this process has seen none before.
    pub(super) async fn identify(&self, pairs: &Pairs) -> Result<(), Error> {
        let known = self.known();
        if let (Some(conn), Some(known)) = (&mut pairs.main(names::STORE), &known)
            && let Some(found) = self.unless_moving(conn, &name()).await?
        {
            self.same(self.name_in(found)?, known)?;
        }
        // The servers of a cluster lose their data one by one: desired state has a mark of its own.
        if self.places.cluster
            && let (Some(conn), Some(known)) = (&mut pairs.main(names::CATALOG), &known)
            && let Some(found) = self.unless_moving(conn, &mark()).await?
        {
            self.same(some_text(found), known)?;
        }
        if known.is_some() {
            return Ok(());
        }
        let id = self.first_look(pairs).await?;
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        Ok(())
    }

    fn same(&self, found: Option<String>, known: &str) -> Result<(), Error> {
        match found {
            Some(id) if id == known => Ok(()),
            Some(id) => Err(self.another(&id, known)),
            None => Err(self.gone(known)),
        }
    }

    /// `None`: the key's slot went to another server, or is on its way. That is no trouble of this one; who serves the slot is asked the
    /// next time, in a second at the latest.
    async fn unless_moving(&self, conn: &mut MultiplexedConnection, command: &Cmd) -> Result<Option<Value>, Error> {
        let answer = conn.req_packed_command(command).await;
        match answer.and_then(Value::extract_error) {
            Ok(value) => Ok(Some(value)),
            Err(e) if self.places.cluster && matches!(e.code(), Some("MOVED" | "ASK" | "TRYAGAIN")) => Ok(None),
            Err(e) => Err(Error::Unavailable(reach(&self.options, &e))),
        }
    }

    /// The store's identity, if there is one that this skep reads.
    async fn named(&self, conn: &mut MultiplexedConnection) -> Result<Option<String>, Error> {
        self.name_in(self.ask(conn, &name()).await?)
    }

    fn name_in(&self, found: Value) -> Result<Option<String>, Error> {
        let mut found = list(found)?.into_iter().map(some_text);
        let (id, format) = (found.next().flatten(), found.next().flatten());
        if let Some(format) = format.and_then(|f| f.parse::<u64>().ok())
            && format > FORMAT
        {
            return Err(self.foreign(format!(
                "Redis at {} has store format {format}, this skep reads {FORMAT}: upgrade skep",
                self.options.shown()
            )));
        }
        Ok(id)
    }

    async fn marked(&self, conn: &mut MultiplexedConnection) -> Result<Option<String>, Error> {
        Ok(some_text(self.ask(conn, &mark()).await?))
    }

    /// This process has seen no store yet.
    async fn first_look(&self, pairs: &Pairs) -> Result<String, Error> {
        let at = self.options.shown();
        let unserved = || Error::Unavailable(format!("Redis at {at}: a part of the cluster is not reached"));
        let mut store = pairs.main(names::STORE).ok_or_else(unserved)?;
        let mut catalog = pairs.main(names::CATALOG).ok_or_else(unserved)?;
        let mark = if self.places.cluster {
            self.marked(&mut catalog).await?
        } else {
            None
        };
        if let Some(id) = self.named(&mut store).await? {
            if self.places.cluster && mark.as_ref() != Some(&id) {
                return Err(Error::Corrupt(format!(
                    "the cluster at {at} holds the skep store {id} without its catalog: the server that kept it lost its data. \
                     Restore it"
                )));
            }
            return self.settle(pairs, id).await;
        }
        let mut keys = 0;
        for mut conn in pairs.mains() {
            keys += match self.ask(&mut conn, &redis::cmd("DBSIZE")).await? {
                Value::Int(n) => n,
                _ => 0,
            };
        }
        // Another node may have made the store since, or begun to.
        let begun = mark.is_some() || (self.places.cluster && self.marked(&mut catalog).await?.is_some());
        if keys > i64::from(begun) && self.named(&mut store).await?.is_none() {
            return Err(Error::Corrupt(format!(
                "Redis at {at} holds {keys} keys and no skep store: it serves another program, or lost the key \
                 `{}`. Give skep a server or a database of its own (redis://host:port/1)",
                names::STORE
            )));
        }
        let mut fresh = skep_model::id::Uid(self.entropy.bits128()).to_string();
        if self.places.cluster {
            // First of all, so that a store has it whenever it has a name.
            let mut set = redis::cmd("SETNX");
            set.arg(names::CATALOG_MARK).arg(&fresh);
            self.ask(&mut catalog, &set).await?;
            fresh = self.marked(&mut catalog).await?.ok_or_else(unserved)?;
        }
        let mut set = redis::cmd("HSETNX");
        set.arg(names::STORE).arg("id").arg(fresh);
        self.ask(&mut store, &set).await?;
        // Another node may have been first.
        let mut get = redis::cmd("HGET");
        get.arg(names::STORE).arg("id");
        let id = text(self.ask(&mut store, &get).await?)?;
        self.settle(pairs, id).await
    }

    /// A store's name is safe before anybody uses it: a server that is replaced by a replica that never had the name would be taken for one
    /// that lost all. The format is written behind it, so where that stands the name is safe.
    async fn settle(&self, pairs: &Pairs, id: String) -> Result<String, Error> {
        let at = self.options.shown();
        let unserved = || Error::Unavailable(format!("Redis at {at}: a part of the cluster is not reached"));
        let mut store = pairs.main(names::STORE).ok_or_else(unserved)?;
        let mut format = redis::cmd("HGET");
        format.arg(names::STORE).arg("format");
        if some_text(self.ask(&mut store, &format).await?).is_some() {
            return Ok(id);
        }
        // Written again as they are: only a write can be waited for.
        let mut name = redis::cmd("HSET");
        name.arg(names::STORE).arg("id").arg(&id);
        let mut writes = vec![(names::STORE, name)];
        if self.places.cluster {
            let mut mark = redis::cmd("SET");
            mark.arg(names::CATALOG_MARK).arg(&id);
            writes.push((names::CATALOG, mark));
        }
        for (key, write) in writes {
            let mut gate = pairs.pair(key).ok_or_else(unserved)?.gate.clone();
            let safe = gate::safe(&self.options, &mut gate, write).await;
            safe.map_err(|why| Error::Unavailable(format!("Redis at {at}: the store's name is not safe yet: {why}")))?;
        }
        let mut set = redis::cmd("HSETNX");
        set.arg(names::STORE).arg("format").arg(FORMAT);
        self.ask(&mut store, &set).await?;
        Ok(id)
    }

    /// Looks again whether this is our store.
    pub async fn check(&self) -> Result<(), Error> {
        let pairs = self.pairs()?;
        match self.identify(&pairs).await {
            Err(Error::Unavailable(why)) => {
                for key in [names::STORE, names::CATALOG] {
                    if let Some(pair) = pairs.pair(key) {
                        self.give_up(pair, &why);
                    }
                }
                Err(Error::Unavailable(why))
            }
            other => other,
        }
    }
}
