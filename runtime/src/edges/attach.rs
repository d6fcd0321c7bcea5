//! One edge's connection, from its first word to its end.

use std::collections::{BTreeSet, HashSet};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use skep_edge::hello::{self, Greeting, NONCE_BYTES};
use skep_edge::keys::Public;
use skep_edge::limits::{
    ATTACH_EVERY_MS, CODE_PART_BYTES, GREETING_MS, HAND_OVER_MESSAGES, REVISION_MAX, SAID_NAME_BYTES_MAX,
    SAID_TROUBLE_BYTES_MAX, SESSIONS_MAX, TARGETS_MAX, WORDS_AHEAD,
};
use skep_edge::orders::{CodeOrder, Orders};
use skep_engine::Target;
use skep_model::Bytes;
use skep_model::id::{Digest, Incarnation, Uid};
use skep_model::limits::{HEADERS_BYTES_MAX, HEADERS_MAX, HOPS_MAX, KEY_BYTES_MAX, PAYLOAD_BYTES_MAX, STAGES_MAX};
use skep_model::message::Message;
use skep_model::name::TenantId;
use skep_proto::v1;
use skep_proto::v1::delivered::Outcome;
use skep_proto::v1::edge_says::Said as EdgeSaid;
use skep_proto::v1::hub_says::Said as HubSaid;
use skep_topic::record::{Lists, decode_frame, frame_is_within, message_bytes};
use skep_topic::{Accepted, Call, Error, Gate, Once, Publish, Refused as NotTaken};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Came, DoorOf, Doors, EdgeName, EdgeRecord, Edges, Live, SeenRecord, WaitingRecord, seen_path};
use crate::catalog::Versioned;

/// How often what an edge says of itself is written down, at most.
const SEEN_EVERY: Duration = Duration::from_secs(300);
/// … and at most, though it comes and goes.
const SEEN_AT_MOST: Duration = Duration::from_secs(10);
/// How often the catalog is looked at although nothing was heard of it.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// … and though an edge names a stage that is not known.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Frames of one tenant's edges that are decoded and appended at once: what is decoded takes several times its bytes.
const FRAMES_AT_ONCE: usize = 4;
/// What a message of an edge may list: an entry may be empty, and costs memory all the same.
const LISTS: Lists = Lists {
    messages: HAND_OVER_MESSAGES as usize,
    entries: HEADERS_MAX + HOPS_MAX,
    laps: STAGES_MAX,
};
/// How long the hub remembers what it has taken of an edge, ms: a century. By age it would forget an edge that was away for long.
const REMEMBERED_MS: u64 = 100 * 366 * 24 * 3_600_000;

pub type Words = mpsc::Receiver<Result<v1::HubSays, Status>>;

impl Edges {
    /// Serves a connection. The first words are read here: no place is given before the edge has proven who it is.
    pub fn attach(self: &Arc<Self>, said: Streaming<v1::EdgeSays>) -> Words {
        let (says, words) = mpsc::channel(WORDS_AHEAD);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let stop = this.stop.clone();
            let served = tokio::select! {
                () = stop.cancelled() => Ok(()),
                served = this.serve(said, &says) => served,
            };
            if let Err(status) = served {
                let _ = says.send(Err(status)).await;
            }
        });
        words
    }

    async fn serve(
        self: &Arc<Self>,
        mut said: Streaming<v1::EdgeSays>,
        says: &mpsc::Sender<Result<v1::HubSays, Status>>,
    ) -> Result<(), Status> {
        let greeting = self
            .greeting
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("too many edges come at once: try again soon"))?;
        let met = timeout(Duration::from_millis(GREETING_MS), self.meet(&mut said, says))
            .await
            .map_err(|_| Status::deadline_exceeded("no proof came in time"))??;
        drop(greeting);
        let _place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("this node has as many edges as it takes: call another"))?;
        let (name, record, target, seen) = met;
        {
            let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
            let now = tokio::time::Instant::now();
            came.retain(|_, came| came.at.elapsed() < SEEN_AT_MOST);
            let before = came.get(&name).copied();
            if before.is_some_and(|came| came.at.elapsed() < Duration::from_millis(ATTACH_EVERY_MS)) {
                return Err(Status::resource_exhausted(
                    "the edge was here a moment ago: call less often",
                ));
            }
            let written = before.and_then(|came| came.written);
            came.insert(name.clone(), Came { at: now, written });
        }
        let frames = {
            let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
            // Those of tenants that have no edge here any more.
            frames.retain(|_, at| Arc::strong_count(at) > 1);
            let at = frames.entry(name.0.clone());
            Arc::clone(at.or_insert_with(|| Arc::new(Semaphore::new(FRAMES_AT_ONCE))))
        };
        let follows = seen.follows;
        let number = {
            static NUMBER: AtomicU64 = AtomicU64::new(1);
            NUMBER.fetch_add(1, Ordering::Relaxed)
        };
        let end = CancellationToken::new();
        let live = Live {
            number,
            end: end.clone(),
            seen,
        };
        // A connection whose other end has gone without a word lasts until it is asked; the new one counts.
        if let Some(before) = self.live().insert(name.clone(), live) {
            before.end.cancel();
        }
        tracing::info!(tenant = %name.0, edge = name.1, "an edge is attached");
        self.write_seen(&name, number).await;
        let mut attached = Attached {
            edges: Arc::clone(self),
            id: record.id,
            name: name.clone(),
            number,
            target,
            says: says.clone(),
            doors: Arc::default(),
            follows,
            given: 0,
            code: BTreeSet::new(),
            looked: tokio::time::Instant::now(),
            compiling: None,
            sessions: HashSet::new(),
            frames,
            sending: Arc::new(Semaphore::new(1)),
        };
        let served = tokio::select! {
            () = end.cancelled() => Err(Status::unauthenticated("the edge was revoked, enrolled anew, or has another connection")),
            served = attached.serve(&mut said) => served,
        };
        if let Some(live) = self.live().get_mut(&name).filter(|live| live.number == number) {
            live.seen.attached = false;
        }
        self.write_seen(&name, number).await;
        self.live().retain(|of, live| *of != name || live.number != number);
        tracing::info!(tenant = %name.0, edge = name.1, "an edge is gone");
        served
    }

    /// Both proofs.
    async fn meet(
        &self,
        said: &mut Streaming<v1::EdgeSays>,
        says: &mpsc::Sender<Result<v1::HubSays, Status>>,
    ) -> Result<(EdgeName, EdgeRecord, Target, SeenRecord), Status> {
        let odd = || Status::invalid_argument("an edge says hello first, and then proves who it is");
        let Some(EdgeSaid::Hello(hello)) = heard(said).await? else {
            return Err(odd());
        };
        let (edge, of_edge) = (
            bytes(&hello.edge).ok_or_else(odd)?,
            bytes(&hello.nonce).ok_or_else(odd)?,
        );
        let of_hub: [u8; NONCE_BYTES] = self.entropy.bits128();
        let greeting = Greeting { edge, of_edge, of_hub };
        let key = self.key().await.map_err(|e| Status::unavailable(format!("{e:#}")))?;
        let challenge = v1::Challenge {
            nonce: of_hub.to_vec().into(),
            signature: greeting.signed_by_hub(&key).to_vec().into(),
        };
        say(says, HubSaid::Challenge(challenge)).await?;
        let Some(EdgeSaid::Proof(proof)) = heard(said).await? else {
            return Err(odd());
        };
        let unknown = || {
            Status::unauthenticated(
                "this hub knows no such edge: it was revoked or enrolled anew, or the hub was restored without it",
            )
        };
        let tenant: TenantId = hello.tenant.parse().map_err(|_| unknown())?;
        let name = super::named(&hello.name).map_err(|_| unknown())?;
        let found = self
            .catalogs
            .get::<EdgeRecord>(&super::path(&tenant, &name))
            .await
            .map_err(internal)?;
        let record = found
            .map(|found| found.record)
            .filter(|record| record.id == skep_edge::orders::hex(&edge));
        let record = record.ok_or_else(unknown)?;
        let public = record
            .key
            .as_ref()
            .and_then(|hex| hex.parse::<Digest>().ok())
            .ok_or_else(unknown)?;
        let public: Public = public.0;
        let about = hello::About {
            version: &proof.version,
            target: &proof.target,
            follows: proof.revision,
        };
        if !greeting.is_by_edge(&public, &about, &proof.signature) {
            return Err(unknown());
        }
        if proof.revision > REVISION_MAX {
            return Err(Status::invalid_argument(
                "no orders ever had the revision that this edge says it follows",
            ));
        }
        let target: Target = serde_json::from_str(&proof.target).map_err(|e| {
            Status::invalid_argument(format!(
                "the edge's processor cannot be read: {e}; bring hub and edge to the same version"
            ))
        })?;
        let follows = proof.revision;
        let changed = self
            .change(&tenant, &name, |record| {
                if !record.targets.contains(&target) {
                    if record.targets.len() >= TARGETS_MAX {
                        return false;
                    }
                    record.targets.push(target.clone());
                }
                // Of more than was ever given it may speak, and is told so; nothing is written for it.
                record.follows = record.follows.max(follows.min(record.revision));
                true
            })
            .await;
        if changed.map_err(internal)? == Some(false) {
            return Err(Status::failed_precondition(format!(
                "this edge was {TARGETS_MAX} kinds of machine already: enrol each machine for itself"
            )));
        }
        let seen = SeenRecord {
            seen_ms: self.clock.now_ms(),
            node: self.members.me.to_string(),
            attached: true,
            target: Some(target.clone()),
            version: proof.version.chars().take(64).collect(),
            follows,
            ..SeenRecord::default()
        };
        Ok(((tenant, name), record, target, seen))
    }

    /// Best effort: it is for people.
    async fn write_seen(&self, name: &EdgeName, number: u64) {
        let Some(seen) = self
            .live()
            .get(name)
            .filter(|live| live.number == number)
            .map(|live| live.seen.clone())
        else {
            return;
        };
        {
            let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
            let now = tokio::time::Instant::now();
            let entry = came.entry(name.clone()).or_insert(Came { at: now, written: None });
            if entry.written.is_some_and(|at| at.elapsed() < SEEN_AT_MOST) {
                return;
            }
            (entry.at, entry.written) = (now, Some(now));
        }
        let key = seen_path(&name.0, &name.1);
        let write = async {
            let found = self.catalogs.get::<SeenRecord>(&key).await?;
            let expect = found.as_ref().map_or(0, |found: &Versioned<SeenRecord>| found.version);
            if found.is_some_and(|found| found.record == seen) {
                return Ok(());
            }
            // Revoked meanwhile, it leaves nothing.
            if self
                .catalogs
                .get::<EdgeRecord>(&super::path(&name.0, &name.1))
                .await?
                .is_some()
            {
                let _ = self.catalogs.put_passing(&key, expect, &seen).await?;
            }
            anyhow::Ok(())
        };
        if let Err(error) = write.await {
            tracing::debug!(
                edge = name.1,
                error = format!("{error:#}"),
                "cannot write down what an edge said"
            );
        }
    }
}

/// An edge that has proven who it is.
struct Attached {
    edges: Arc<Edges>,
    /// Hex.
    id: String,
    name: EdgeName,
    number: u64,
    target: Target,
    says: mpsc::Sender<Result<v1::HubSays, Status>>,
    doors: Arc<Doors>,
    /// What it said as it came.
    follows: u64,
    /// The revision that was given last on this connection.
    given: u64,
    /// The code that those orders name: it may have no other.
    code: BTreeSet<CodeOrder>,
    /// When the catalog was read last.
    looked: tokio::time::Instant,
    /// Code that its next orders need.
    compiling: Option<JoinHandle<anyhow::Result<()>>>,
    /// Sequences that it counted in.
    sessions: HashSet<Uid>,
    frames: Arc<Semaphore>,
    sending: Arc<Semaphore>,
}

impl Attached {
    async fn serve(&mut self, said: &mut Streaming<v1::EdgeSays>) -> Result<(), Status> {
        // The edge takes the first word as the sign that its proof was taken.
        say(&self.says, HubSaid::Orders(v1::SignedOrders::default())).await?;
        let mut beats = self.edges.members.beats();
        let mut number = *beats.borrow_and_update();
        let mut noted = tokio::time::Instant::now();
        let mut unwritten = false;
        self.look().await?;
        loop {
            let compiled = async {
                match &mut self.compiling {
                    Some(work) => work.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                word = heard(said) => match word? {
                    None => return Ok(()),
                    Some(EdgeSaid::Deliver(deliver)) => self.deliver(deliver).await?,
                    Some(EdgeSaid::WantCode(wanted)) => self.send_code(wanted).await?,
                    Some(EdgeSaid::Report(report)) => {
                        self.note(report);
                        unwritten = true;
                    }
                    Some(EdgeSaid::Hello(_) | EdgeSaid::Proof(_)) => {
                        return Err(Status::invalid_argument("who it is was said already"));
                    }
                },
                done = compiled => {
                    self.compiling = None;
                    match done.map_err(internal)? {
                        Ok(()) => self.look().await?,
                        Err(error) => self.no_orders(&error),
                    }
                }
                changed = beats.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    // It beats whether anything was written or not.
                    let now = *beats.borrow_and_update();
                    if std::mem::replace(&mut number, now) != now {
                        self.look().await?;
                    }
                }
                () = sleep_until(self.looked + LOOK_EVERY) => self.look().await?,
            }
            if unwritten && noted.elapsed() >= SEEN_EVERY {
                self.edges.write_seen(&self.name, self.number).await;
                noted = tokio::time::Instant::now();
                unwritten = false;
            }
        }
    }

    fn seen(&self, change: impl FnOnce(&mut SeenRecord)) {
        let mut live = self.edges.live();
        if let Some(live) = live.get_mut(&self.name).filter(|live| live.number == self.number) {
            change(&mut live.seen);
        }
    }

    fn no_orders(&self, error: &anyhow::Error) {
        let why = format!("{error:#}");
        self.seen(|seen| {
            if seen.no_orders != why {
                tracing::warn!(edge = self.name.1, why, "an edge gets no new orders");
            }
            seen.no_orders = why;
        });
    }

    /// Gives orders, if there are others. Whatever keeps them back is told, and keeps nothing else: the edge goes on with those that it has.
    async fn look(&mut self) -> Result<(), Status> {
        match self.due().await {
            Ok(orders) => {
                if self.compiling.is_none() {
                    self.seen(|seen| seen.no_orders.clear());
                }
                let Some(orders) = orders else { return Ok(()) };
                let key = self.edges.key().await.map_err(internal)?;
                let signed = match orders.sign(&key) {
                    Ok(signed) => signed,
                    Err(error) => {
                        self.no_orders(&error.into());
                        return Ok(());
                    }
                };
                self.given = orders.revision;
                self.code = orders.code();
                let orders = v1::SignedOrders {
                    orders: signed.orders.into(),
                    signature: signed.signature.into(),
                };
                say(&self.says, HubSaid::Orders(orders)).await?;
                // What its stages publish may come from here on.
                self.doors().await.map_err(internal)
            }
            Err(error) => {
                if error.downcast_ref::<Status>().is_some() {
                    return Err(error.downcast().unwrap_or_else(internal));
                }
                self.no_orders(&error);
                Ok(())
            }
        }
    }

    async fn record(&self) -> anyhow::Result<EdgeRecord> {
        let (tenant, name) = &self.name;
        let key = super::path(tenant, name);
        let found = self.edges.catalogs.get::<EdgeRecord>(&key).await?;
        match found.map(|found| found.record).filter(|record| record.id == self.id) {
            Some(record) => Ok(record),
            None => bail!(Status::unauthenticated("the edge was revoked or enrolled anew")),
        }
    }

    /// What it may hand over, anew.
    async fn doors(&mut self) -> anyhow::Result<()> {
        self.looked = tokio::time::Instant::now();
        let record = self.record().await?;
        let swarms = self.edges.swarms_of(&self.name.0).await?;
        self.doors = Arc::new(self.edges.doors(&self.name.0, &record, &swarms)?);
        Ok(())
    }

    /// What it is to do, if that is new and its code is at hand. Else the compiler is asked, beside all that goes on here.
    async fn due(&mut self) -> anyhow::Result<Option<Orders>> {
        self.looked = tokio::time::Instant::now();
        let record = self.record().await?;
        let swarms = self.edges.swarms_of(&self.name.0).await?;
        // First: what waits is taken whatever becomes of the orders.
        self.doors = Arc::new(self.edges.doors(&self.name.0, &record, &swarms)?);
        let found = self.edges.orders(&self.name, &record, &self.target, &swarms).await?;
        let Some(orders) = found else {
            if self.compiling.is_none() {
                let wanted = Edges::wanted(&record, &self.target, &swarms)?;
                let (edges, tenant) = (Arc::clone(&self.edges), self.name.0.clone());
                self.compiling = Some(tokio::spawn(async move { edges.compile(&tenant, wanted).await }));
            }
            return Ok(None);
        };
        if orders.revision < record.follows.max(self.follows) {
            bail!(
                "the edge follows orders of revision {}, and this hub is at {}: it was restored from an older backup; after a look at what was lost, \
                 `skep edge resume {}` goes on",
                record.follows.max(self.follows),
                orders.revision,
                self.name.1
            );
        }
        Ok((orders.revision > self.given).then_some(orders))
    }

    fn note(&self, report: v1::EdgeReport) {
        let now_ms = self.edges.clock.now_ms();
        self.seen(|seen| {
            seen.seen_ms = now_ms;
            seen.follows = report.follows;
            seen.trouble = cut(report.trouble, SAID_TROUBLE_BYTES_MAX);
            let runs = report.runs.into_iter().take(skep_edge::limits::STAGES_MAX);
            seen.runs = runs.map(|name| cut(name, SAID_NAME_BYTES_MAX)).collect();
            let read = |all: Vec<v1::Waiting>| -> Vec<WaitingRecord> {
                let all = all.into_iter().take(skep_edge::limits::STAGES_MAX);
                all.map(|w| WaitingRecord {
                    stage: cut(w.stage, SAID_NAME_BYTES_MAX),
                    messages: w.messages,
                    bytes: w.bytes,
                    handed_over: w.handed_over,
                    dropped: w.dropped,
                    trouble: cut(w.trouble, SAID_TROUBLE_BYTES_MAX),
                })
                .collect()
            };
            seen.waiting = read(report.waiting);
            seen.inboxes = read(report.inboxes);
        });
    }

    /// Appends a frame and says when it is durable. Frames of several outboxes may be under way at once; of one, the edge waits for each.
    async fn deliver(&mut self, what: v1::Deliver) -> Result<(), Status> {
        let place = Arc::clone(&self.frames).acquire_owned().await.map_err(internal)?;
        let key = (
            what.swarm.parse().ok(),
            bytes::<16>(&what.incarnation).map(Incarnation),
            what.stage.parse().ok(),
        );
        let (Some(swarm), Some(incarnation), Some(stage)) = key else {
            return Err(Status::invalid_argument("what is handed over names no stage"));
        };
        let at = (swarm, incarnation, stage);
        let look = self.looked.elapsed() >= LOOK_AGAIN;
        if !self.doors.contains_key(&at) && look {
            // A stage that has just come. Not at each of a flood: it reads all of the tenant's Swarms.
            if let Err(error) = self.doors().await {
                if error.downcast_ref::<Status>().is_some() {
                    return Err(error.downcast().unwrap_or_else(internal));
                }
                return self
                    .answer(what.number, (Outcome::Later, format!("{error:#}"), 0))
                    .await;
            }
        }
        let Some(session) = self.session(&what.session) else {
            let why = format!("an edge counts in {SESSIONS_MAX} sequences of 16 bytes each at most: restart it");
            return self.answer(what.number, (Outcome::Refused, why, 0)).await;
        };
        let door = self.doors.get(&at).cloned();
        let (edges, says, tenant) = (Arc::clone(&self.edges), self.says.clone(), self.name.0.clone());
        tokio::spawn(async move {
            let number = what.number;
            let said = match door {
                Some(door) => edges.take(&tenant, &door, session, what).await,
                None if !look => (Outcome::Later, "the stage is not known yet".to_owned(), 0),
                None => (
                    Outcome::Gone,
                    format!(
                        "Swarm `{}` has no stage `{}` any more that takes what an edge hands over; `skep edge discard` lets go of it",
                        at.0, at.2
                    ),
                    0,
                ),
            };
            // Not while it waits for an edge that reads nothing: the others of its tenant go on.
            drop(place);
            let _ = say(&says, delivered(number, said)).await;
        });
        Ok(())
    }

    async fn answer(&self, number: u64, said: Said) -> Result<(), Status> {
        say(&self.says, delivered(number, said)).await
    }

    /// The sequence as the store knows it: no edge can name another's, nor a client's.
    fn session(&mut self, said: &[u8]) -> Option<Uid> {
        if said.len() != 16 {
            return None;
        }
        let mut sha = Sha256::new();
        sha.update(b"skep session of an edge 1\n");
        sha.update(self.id.as_bytes());
        sha.update(said);
        let id = Uid(sha.finalize()[..16].try_into().ok()?);
        let room = self.sessions.len() < SESSIONS_MAX || self.sessions.contains(&id);
        room.then(|| {
            self.sessions.insert(id);
            id
        })
    }

    /// Sends an artifact, part by part.
    async fn send_code(&mut self, wanted: v1::WantCode) -> Result<(), Status> {
        let (Ok(module), Ok(native)) = (wanted.module.parse(), wanted.native.parse()) else {
            return Err(Status::invalid_argument("no digest of a module and its code"));
        };
        let code = CodeOrder { module, native };
        let Ok(turn) = Arc::clone(&self.sending).try_acquire_owned() else {
            return Err(Status::invalid_argument("one artifact at a time"));
        };
        if !self.code.contains(&code) {
            let refused = v1::Code {
                native: wanted.native,
                refused: "this edge's orders do not name it".to_owned(),
                ..v1::Code::default()
            };
            return say(&self.says, HubSaid::Code(refused)).await;
        }
        let (file, says) = (self.edges.codes.file(code), self.says.clone());
        tokio::spawn(async move {
            let _turn = turn;
            let part = |at: u64, part: Vec<u8>, last, refused: String| {
                HubSaid::Code(v1::Code {
                    native: wanted.native.clone(),
                    at,
                    part: part.into(),
                    last,
                    refused,
                })
            };
            let sent = async {
                let mut open =
                    std::fs::File::open(&file).context("it is not kept any more; the next orders make it again")?;
                // A connection that broke in the middle of it goes on from there.
                let length = open.metadata()?.len();
                let from = if wanted.from < length { wanted.from } else { 0 };
                open.seek(SeekFrom::Start(from))?;
                let mut left = length - from;
                let mut at = from;
                while left > 0 {
                    let take = left.min(CODE_PART_BYTES as u64);
                    let (back, bytes) = tokio::task::spawn_blocking(move || {
                        let mut bytes = Vec::new();
                        (&mut open).take(take).read_to_end(&mut bytes)?;
                        std::io::Result::Ok((open, bytes))
                    })
                    .await??;
                    open = back;
                    left = left
                        .checked_sub(bytes.len() as u64)
                        .filter(|_| !bytes.is_empty())
                        .context("it got shorter")?;
                    let here = at;
                    at += bytes.len() as u64;
                    if say(&says, part(here, bytes, left == 0, String::new())).await.is_err() {
                        break;
                    }
                }
                anyhow::Ok(())
            };
            if let Err(error) = sent.await {
                let _ = say(&says, part(0, Vec::new(), false, format!("{error:#}"))).await;
            }
        });
        Ok(())
    }
}

/// What is told of a frame: what became of it, why, and how far the session is.
type Said = (Outcome, String, u64);

fn delivered(number: u64, (outcome, detail, mark): Said) -> HubSaid {
    HubSaid::Delivered(v1::Delivered {
        number,
        outcome: outcome.into(),
        detail,
        mark,
    })
}

/// Of a stranger's words.
fn cut(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].to_owned()
}

/// A frame's messages, if they are what an edge may hand over. The wire is counted before anything is decoded, and each message is asked what the
/// door and a stage's commit ask: else one could lie in a topic that has no weight there, and much in memory.
fn read_frame(frame: Bytes, now_ms: u64) -> Result<Vec<Message>, String> {
    let damaged = |_| "the frame is damaged, or of a newer form: bring hub and edge to the same version".to_owned();
    if !frame_is_within(&frame, LISTS).map_err(damaged)? {
        return Err("the frame lists more than messages may have".to_owned());
    }
    let mut messages = decode_frame(frame).map_err(damaged)?;
    if messages.is_empty() {
        return Err(format!("a frame has 1 to {HAND_OVER_MESSAGES} messages"));
    }
    for message in &mut messages {
        let headers: usize = message
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        let bounds = [
            ("bytes of payload", message.payload.len(), PAYLOAD_BYTES_MAX),
            (
                "bytes of key",
                message.key.as_ref().map_or(0, String::len),
                KEY_BYTES_MAX,
            ),
            ("headers", message.headers.len(), HEADERS_MAX),
            ("bytes of headers", headers, HEADERS_BYTES_MAX),
        ];
        if let Some((what, found, max)) = bounds.into_iter().find(|(_, found, max)| found > max) {
            return Err(format!("a message has {found} {what}, at most {max} are allowed"));
        }
        // Nobody waits for an answer here; and where it was at the edge is told by that machine's clock.
        message.request = None;
        message.hops.clear();
        // An edge's clock may be wrong by years. Ahead of this one it would hold back timers and windows here for as long.
        message.accepted_ms = message.accepted_ms.min(now_ms);
    }
    Ok(messages)
}

impl Edges {
    /// Messages of an edge into a topic, each once.
    async fn take(&self, tenant: &TenantId, door: &DoorOf, session: Uid, what: v1::Deliver) -> Said {
        let spec = &door.topic;
        let refused = |why: &str| (Outcome::Refused, why.to_owned(), 0);
        if what.first == 0 {
            return refused("messages are numbered from 1");
        }
        let (frame, now_ms) = (what.frame, self.clock.now_ms());
        // Without one it asks how far the session is. Nothing is appended then.
        let messages = match frame.is_empty() {
            true => Ok(Vec::new()),
            false => read_frame(frame, now_ms),
        };
        let messages = match messages {
            Ok(messages) => messages,
            Err(why) => return refused(&why),
        };
        if door.keyed && messages.iter().any(|message| message.key.is_none()) {
            return refused("a message has no key, and the stage goes by keys");
        }
        let bytes = messages.iter().map(message_bytes).sum::<u64>();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        // As a client's: over a limit they wait where they are.
        let purse = Arc::clone(&self.quotas.of(tenant).purse);
        let n = messages.len() as u64;
        if n > 0
            && let Err(over) = purse.pass(n, bytes)
        {
            return (Outcome::Later, over.message, 0);
        }
        let publish = Publish {
            swarm: spec.id.swarm().clone(),
            calls: vec![Call {
                to: vec![(Arc::clone(spec), messages)],
                once: Once::Session {
                    id: session,
                    first: what.first,
                    again_max: 0,
                    expires_ms: now_ms.saturating_add(REMEMBERED_MS),
                },
            }],
            gate: Gate::Durable,
        };
        let said = match self.backend.publish(publish).await {
            Ok(mut results) => match results.pop() {
                Some(Ok(Accepted::Appended { .. })) if n > 0 => (Outcome::Taken, String::new(), 0),
                // Such a number was taken, and nothing was asked but that.
                Some(Ok(Accepted::Appended { .. })) => (Outcome::Ahead, String::new(), 0),
                Some(Ok(Accepted::Duplicate { .. })) | None => refused("the store answered another question"),
                Some(Err(why @ NotTaken::SessionGap { high, .. })) => (Outcome::Gap, why.to_string(), high),
                Some(Err(why @ NotTaken::SessionAhead { .. })) => (Outcome::Ahead, why.to_string(), 0),
                Some(Err(why @ (NotTaken::Full { .. } | NotTaken::Rescaling { .. }))) => {
                    (Outcome::Later, why.to_string(), 0)
                }
                Some(Err(why @ (NotTaken::StageGone { .. } | NotTaken::Gone))) => (Outcome::Gone, why.to_string(), 0),
                Some(Err(why)) => (Outcome::Refused, why.to_string(), 0),
            },
            Err(Error::Gone) => (Outcome::Gone, "the Swarm is gone".to_owned(), 0),
            Err(error @ (Error::TooLarge(_) | Error::Corrupt(_))) => (Outcome::Refused, error.to_string(), 0),
            Err(error) => (Outcome::Later, error.to_string(), 0),
        };
        if n > 0 && said.0 != Outcome::Taken {
            // What waits and is offered each second is paid once it is taken.
            purse.put_back(n, bytes);
        }
        said
    }
}

async fn say(to: &mpsc::Sender<Result<v1::HubSays, Status>>, said: HubSaid) -> Result<(), Status> {
    let gone = |_| Status::cancelled("the edge is gone");
    to.send(Ok(v1::HubSays { said: Some(said) })).await.map_err(gone)
}

async fn heard(from: &mut Streaming<v1::EdgeSays>) -> Result<Option<EdgeSaid>, Status> {
    loop {
        match from.message().await? {
            None => return Ok(None),
            // What a newer edge may say and this hub does not know.
            Some(v1::EdgeSays { said: None }) => {}
            Some(v1::EdgeSays { said }) => return Ok(said),
        }
    }
}

fn bytes<const N: usize>(from: &[u8]) -> Option<[u8; N]> {
    from.try_into().ok()
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("{error:#}"))
}
