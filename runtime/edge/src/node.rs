//! An edge at work: its parts, started in order and stopped in reverse.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use skep_engine::Engine;
use skep_gateway::{Door, Entrance, RouteTable};
use skep_model::env::{Clock, Entropy, OsEntropy, SystemClock};
use skep_model::id::NodeId;
use skep_model::scope::{Scope, TopicId};
use skep_model::span::NoSpans;
use skep_model::step::{LogLevel, LogLine};
use skep_proto::v1;
use skep_stage::{BatchReport, Observer, Seams, StageState, Workers};
use skep_topic::Backend;
use skep_topic::embedded::Embedded;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::code::Shelf;
use crate::home::{Home, Identity};
use crate::limits::{CALL_AGAIN_MAX_MS, REPORT_EVERY_MS, REPORT_SELDOM_MS, STOP_MS};
use crate::link::Link;
use crate::orders::{Orders, Signed};
use crate::stages::Stages;

/// Calls of Bees under way at once, and instances that wait warm: an edge has little memory, and its address space may be bounded too.
const RUNNING: u32 = 16;
const SPARE: u32 = 8;
/// The wait before code that could not be fetched is asked for again.
const CODE_AGAIN: Duration = Duration::from_secs(5);

/// … and before code that came and was refused is.
const REFUSED_AGAIN: Duration = Duration::from_secs(600);

/// What a user may set.
#[derive(Debug, Clone)]
pub struct Settings {
    pub data: PathBuf,
    /// gRPC and HTTP on one port.
    pub listen: SocketAddr,
    /// Also where others reach it: the door asks nobody who they are.
    pub allow_insecure: bool,
    /// Threads that run Bees; 0: one a core.
    pub threads: usize,
}

/// A running edge.
pub struct Edge {
    pub listen: SocketAddr,
    backend: Arc<Embedded>,
    stop: CancellationToken,
    doors: JoinHandle<std::io::Result<()>>,
    following: JoinHandle<()>,
    link: JoinHandle<()>,
}

impl Edge {
    /// Starts with the last orders that it kept, whether the hub is there or not.
    ///
    /// # Errors
    /// The folder is no edge's, is in use or was written by a newer version; a port is taken: with the remedy.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        if !settings.listen.ip().is_loopback() && !settings.allow_insecure {
            bail!(
                "{} is reached from other machines, and an edge's door asks nobody who they are: listen on 127.0.0.1, or give --allow-insecure \
                 where nobody else can reach it",
                settings.listen
            );
        }
        let home = Home::open(&settings.data)?;
        let (identity, key) = (home.identity()?, home.key()?);
        let edge = identity.id()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
        let backend = Embedded::open(&home.topics(), Arc::clone(&clock), Arc::clone(&entropy))?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .with_context(|| format!("listen on {}: choose another address with --listen", settings.listen))?;
        let listen = listener.local_addr()?;
        let engine = Engine::new(skep_engine::Settings {
            running: RUNNING,
            spare: SPARE,
            memory_bytes_max: skep_model::limits::EDGE_BEE_BYTES_MAX,
            threads: settings.threads,
            ..skep_engine::Settings::new(home.code())
        })?;
        let shelf = Shelf::open(&home.code(), identity.hub_key)?;
        let me = NodeId::random(entropy.as_ref());
        let seams = Arc::new(Seams {
            backend: Arc::clone(&backend) as Arc<dyn Backend>,
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            observer: Arc::new(Logs),
            spans: Arc::new(NoSpans),
            workers: Workers::alone(me),
            seats: engine.seats(),
            rest: Arc::default(),
        });
        let follows = watch::Sender::new(0);
        let link = Link::new(identity.clone(), key, Arc::clone(&entropy), follows.subscribe());
        let (routes, table) = watch::channel(Arc::new(RouteTable::default()));
        let mut stages = Stages::new(
            edge,
            home.clone(),
            engine,
            shelf.clone(),
            seams,
            Arc::clone(&link),
            routes,
        );
        // With nothing but what is on this disk.
        let mut follower = Follower {
            home,
            identity,
            shelf,
            link: Arc::clone(&link),
            follows,
            trouble: None,
        };
        let scope = Scope::of(follower.identity.tenant.parse().context("the tenant in edge.json")?);
        if let Err(error) = stages.hand_over_what_waits(&scope) {
            follower.note(&error.context("what waits for the hub"));
        }
        match follower.home.orders(&follower.identity) {
            Ok(Some(orders)) => follower.begin(&mut stages, &orders).await,
            Ok(None) => tracing::info!("no orders yet: the hub gives them"),
            Err(error) => follower.note(&error.context("the orders on disk")),
        }
        let stop = CancellationToken::new();
        let core = skep_gateway::Core::new(
            Arc::clone(&backend) as Arc<dyn Backend>,
            table,
            Arc::clone(&clock),
            Arc::clone(&entropy),
            Arc::new(NoSpans),
            skep_gateway::Settings {
                sample_ratio: 0.0,
                node: me,
                ..skep_gateway::Settings::default()
            },
        );
        core.set_ready(true);
        let entrance = Entrance {
            listener,
            door: Door::open(clock),
            witness: None,
            models: None,
            tls: None,
        };
        let doors = tokio::spawn(skep_gateway::serve(
            entrance,
            core,
            tonic::service::Routes::default(),
            stop.clone().cancelled_owned(),
            Duration::from_millis(STOP_MS),
        ));
        let calls = tokio::spawn(Arc::clone(&link).run(stop.clone()));
        let following = tokio::spawn(follower.run(stages, stop.clone()));
        Ok(Self {
            listen,
            backend,
            stop,
            doors,
            following,
            link: calls,
        })
    }

    /// Lets calls under way end, stops the stages, makes everything durable and closes.
    ///
    /// # Errors
    /// The store could not be closed cleanly. Nothing is lost by that: it looks at everything when it opens.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        let _ = self.doors.await;
        let _ = self.following.await;
        let _ = self.link.await;
        self.backend.close().await.context("close the store")
    }
}

/// Takes orders and follows them.
struct Follower {
    home: Home,
    identity: Identity,
    shelf: Shelf,
    link: Arc<Link>,
    follows: watch::Sender<u64>,
    trouble: Option<String>,
}

impl Follower {
    /// With the orders on disk. What cannot be followed for want of code is fetched once the hub is there.
    async fn begin(&mut self, stages: &mut Stages, orders: &Orders) {
        // Older ones are refused from here on, whatever becomes of these.
        self.follows.send_replace(orders.revision);
        let followed = async {
            let ready = stages.prepare(orders).await?;
            stages.follow(orders, ready).await
        };
        match followed.await {
            Ok(()) => tracing::info!(
                revision = orders.revision,
                swarms = orders.swarms.len(),
                "follows its orders"
            ),
            Err(error) => self.note(&error.context("the orders on disk cannot be followed; waiting for the hub")),
        }
    }

    fn note(&mut self, error: &anyhow::Error) {
        let why = format!("{error:#}");
        if self.trouble.as_ref() != Some(&why) {
            tracing::error!("{why}");
        }
        self.trouble = Some(why);
    }

    async fn run(mut self, mut stages: Stages, stop: CancellationToken) {
        let (mut orders, mut up) = (self.link.orders(), self.link.up());
        let mut told = v1::EdgeReport::default();
        let mut again: Option<Duration> = None;
        let mut report_ms = REPORT_EVERY_MS;
        loop {
            let attached = up.borrow_and_update().is_some();
            // Wakes nobody while the hub is away.
            let report = async {
                match attached {
                    true => sleep(Duration::from_millis(report_ms)).await,
                    false => std::future::pending().await,
                }
            };
            let retry = async {
                match again {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            let look = tokio::select! {
                () = stop.cancelled() => break,
                changed = orders.changed() => changed.is_ok(),
                _ = up.changed() => {
                    // A hub that was away hears everything anew.
                    told = v1::EdgeReport::default();
                    again.is_some()
                }
                () = retry => true,
                () = report => false,
            };
            if look {
                let signed = orders.borrow_and_update().clone();
                if let Some(signed) = signed {
                    let took = tokio::select! {
                        () = stop.cancelled() => break,
                        took = self.take(&mut stages, &signed) => took,
                    };
                    again = match took {
                        Ok(()) => {
                            self.trouble = None;
                            None
                        }
                        Err(error) => {
                            self.note(&error);
                            let wait = again.map_or(CODE_AGAIN, |wait| wait * 2);
                            // What came whole and is not what it should be comes no better in a minute; other orders are looked at at once.
                            let refused = error.downcast_ref::<skep_engine::signed::Refused>().is_some();
                            Some(if refused {
                                REFUSED_AGAIN
                            } else {
                                wait.min(Duration::from_millis(2 * CALL_AGAIN_MAX_MS))
                            })
                        }
                    };
                }
            }
            let session = up.borrow().clone();
            if let Some(session) = session {
                let mut report = stages.report().await;
                report.follows = *self.follows.borrow();
                let troubles = self.trouble.as_deref().into_iter().chain(stages.unmet());
                report.trouble = troubles.collect::<Vec<_>>().join("; ");
                // Where nothing happens it looks seldom: each look wakes the machine.
                report_ms = (report_ms * 2).min(REPORT_SELDOM_MS);
                if report != told {
                    session.report(report.clone()).await;
                    told = report;
                    report_ms = REPORT_EVERY_MS;
                }
            }
        }
        stages.stop().await;
    }

    /// Orders that came: their code is fetched first, then they are kept, then followed. So whatever is on disk can be followed without the hub.
    async fn take(&mut self, stages: &mut Stages, signed: &Signed) -> anyhow::Result<()> {
        let follows = *self.follows.borrow();
        let orders = signed.read(&self.identity.hub_key, &self.identity.id()?, follows)?;
        for code in orders.code() {
            let shelf = self.shelf.clone();
            // Verified here once more: a file of another processor or of a changed disk is fetched anew.
            let good = tokio::task::spawn_blocking(move || shelf.has(code) && shelf.get(code).is_ok()).await?;
            if !good {
                let session = self
                    .link
                    .up()
                    .borrow()
                    .clone()
                    .context("the connection ended before all code was here")?;
                session.fetch(&self.shelf, code).await?;
            }
        }
        // Only what can be followed takes the place of what is followed, also on disk.
        let ready = stages.prepare(&orders).await?;
        self.home.keep_orders(signed)?;
        self.follows.send_replace(orders.revision);
        stages.follow(&orders, ready).await?;
        let (shelf, wanted) = (self.shelf.clone(), orders.code());
        if let Err(error) = tokio::task::spawn_blocking(move || shelf.keep_only(&wanted)).await? {
            tracing::warn!(error = format!("{error:#}"), "cannot tidy the folder of code");
        }
        tracing::info!(
            revision = orders.revision,
            swarms = orders.swarms.len(),
            "follows new orders"
        );
        Ok(())
    }
}

/// What Bees and stages say, to the log.
struct Logs;

impl Observer for Logs {
    fn batch(&self, topic: &TopicId, report: BatchReport<'_>) {
        for (_, line) in report.log {
            said(topic, line);
        }
        if let Some(error) = report.error {
            tracing::warn!(swarm = %topic.swarm().name(), stage = %topic.stage(), failed = report.failed, error, "a Bee failed");
        }
    }

    fn state(&self, topic: &TopicId, _: Option<u16>, state: StageState) {
        if state != StageState::Running {
            tracing::warn!(swarm = %topic.swarm().name(), stage = %topic.stage(), %state, "a stage waits");
        }
    }
}

fn said(topic: &TopicId, line: &LogLine) {
    let (swarm, stage, text) = (topic.swarm().name(), topic.stage(), &line.text);
    match line.level {
        LogLevel::Error | LogLevel::Critical => tracing::error!(%swarm, %stage, "{text}"),
        LogLevel::Warn => tracing::warn!(%swarm, %stage, "{text}"),
        LogLevel::Info => tracing::info!(%swarm, %stage, "{text}"),
        LogLevel::Trace | LogLevel::Debug => tracing::debug!(%swarm, %stage, "{text}"),
    }
}
