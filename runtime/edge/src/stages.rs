//! Orders as stages at work, outboxes, and routes of the door.
//!
//! All that orders need is made ready before anything changes, so orders that cannot be followed change nothing. What they no longer name stops
//! after its batches under way. What waits for the hub is handed over all the same, and what lies in an inbox stays and is told: nobody said that it
//! may go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use skep_engine::{Bee, BeeSettings, Engine, Module};
use skep_gateway::{Feed, Open, Route, RouteTable};
use skep_model::id::CommitId;
use skep_model::name::{StageName, TenantId};
use skep_model::scope::{Scope, SwarmId, TopicId};
use skep_model::step::{Batch, Processed};
use skep_model::swarm::{Bound, Stage, WhenFull};
use skep_proto::v1;
use skep_stage::plan::{End, Ends, destinations};
use skep_stage::{Plan, Running, Seams};
use skep_topic::lane::Lane;
use skep_topic::{Error, Rescaled, TopicSpec, TopicStatus};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::code::Shelf;
use crate::home::{Home, OutboxAt, Outboxes};
use crate::limits::OUTBOX_MESSAGES_MAX;
use crate::link::Link;
use crate::orders::{CodeOrder, Discard, DoorOrder, Orders, SwarmOrder};
use crate::outbox::{Known, Outbox};

/// What runs here.
pub struct Stages {
    edge: [u8; 16],
    home: Home,
    engine: Arc<Engine>,
    shelf: Shelf,
    seams: Arc<Seams>,
    link: Arc<Link>,
    routes: watch::Sender<Arc<RouteTable>>,
    epoch: watch::Sender<u64>,
    modules: HashMap<CodeOrder, Module>,
    running: HashMap<TopicId, At>,
    outboxes: HashMap<TopicId, Out>,
    lives: Vec<SwarmId>,
    tasks: TaskTracker,
    /// What an operator said and could not be done, for the hub.
    unmet: Option<String>,
}

/// A stage at work.
struct At {
    running: Running,
    lane: Arc<Lane>,
    topic: Arc<TopicSpec>,
}

/// What waits for one stage of the hub.
struct Out {
    topic: Arc<TopicSpec>,
    lane: Arc<Lane>,
    full: watch::Sender<WhenFull>,
    known: Arc<Mutex<Known>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Orders whose code is loaded and whose stages have what they ask for.
pub struct Ready {
    modules: HashMap<CodeOrder, Module>,
    bees: BTreeMap<(usize, StageName), ReadyBee>,
    outboxes: Outboxes,
}

/// The engine's Bee as a stage calls it.
struct EdgeBee(Bee);

#[tonic::async_trait]
impl skep_stage::Bee for EdgeBee {
    async fn process(&self, batch: Batch) -> Processed {
        self.0.process(batch).await
    }
}

/// A stage that is ready to run.
type ReadyBee = (Arc<dyn skep_stage::Bee>, CodeOrder);

impl Stages {
    #[must_use]
    pub fn new(
        edge: [u8; 16],
        home: Home,
        engine: Arc<Engine>,
        shelf: Shelf,
        seams: Arc<Seams>,
        link: Arc<Link>,
        routes: watch::Sender<Arc<RouteTable>>,
    ) -> Self {
        Self {
            edge,
            home,
            engine,
            shelf,
            seams,
            link,
            routes,
            epoch: watch::Sender::new(0),
            modules: HashMap::new(),
            running: HashMap::new(),
            outboxes: HashMap::new(),
            lives: Vec::new(),
            tasks: TaskTracker::new(),
            unmet: None,
        }
    }

    /// Makes ready all that orders need. Nothing changes by it.
    ///
    /// # Errors
    /// Some code is missing or not good, a stage asks for what this machine does not give, or the disk fails.
    pub async fn prepare(&self, orders: &Orders) -> anyhow::Result<Ready> {
        let scope = orders.scope()?;
        let mut modules = HashMap::new();
        for code in orders.code() {
            let module = match self.modules.get(&code) {
                Some(module) => module.clone(),
                None => {
                    let shelf = self.shelf.clone();
                    let artifact = tokio::task::spawn_blocking(move || shelf.get(code)).await??;
                    let loaded = self.engine.load(code.module, artifact).await;
                    loaded.with_context(|| format!("module {}", code.module))?
                }
            };
            modules.insert(code, module);
        }
        let mut bees: BTreeMap<(usize, StageName), ReadyBee> = BTreeMap::new();
        let mut outboxes = self.home.outboxes()?;
        let before = outboxes.clone();
        for (n, order) in orders.swarms.iter().enumerate() {
            for name in &order.here {
                let bee = bee(order, name, &modules)
                    .with_context(|| format!("stage `{name}` of Swarm `{}`", order.swarm.name))?;
                bees.insert((n, name.clone()), bee);
            }
            let id = order.id(&scope)?;
            for stage in order.beyond() {
                let at = OutboxAt {
                    swarm: id.name().clone(),
                    incarnation: order.incarnation.clone(),
                    born: order.born.get(&stage).copied().unwrap_or(0),
                    bytes: outbox(order, &stage).0,
                    stage,
                };
                let same = |known: &&mut OutboxAt| {
                    known.swarm == at.swarm && known.incarnation == at.incarnation && known.stage == at.stage
                };
                match outboxes.all.iter_mut().find(same) {
                    Some(known) => *known = at,
                    None => outboxes.all.push(at),
                }
            }
        }
        // Before anything may come into one: whatever becomes of these orders, it is known what it is.
        if outboxes != before {
            self.home.keep_outboxes(&outboxes)?;
        }
        Ok(Ready {
            modules,
            bees,
            outboxes,
        })
    }

    /// Follows orders that are ready. What of it fails is told, and tried again with the next.
    ///
    /// # Errors
    /// Only if the orders name what is no name.
    pub async fn follow(&mut self, orders: &Orders, ready: Ready) -> anyhow::Result<()> {
        let scope = orders.scope()?;
        let Ready {
            modules,
            mut bees,
            mut outboxes,
        } = ready;
        self.epoch
            .send_if_modified(|epoch| std::mem::replace(epoch, orders.epoch) != orders.epoch);
        let mut routes = Vec::new();
        let mut kept = Vec::new();
        self.lives.clear();
        for order in &orders.swarms {
            self.lives.push(order.id(&scope)?);
        }
        let of = &|at: &OutboxAt| -> anyhow::Result<SwarmId> { Ok(scope.swarm(&at.swarm, at.incarnation.parse()?)) };
        self.let_go(&orders.discards, &mut outboxes, of).await;
        for (n, order) in orders.swarms.iter().enumerate() {
            let id = order.id(&scope)?;
            let ends = self.ends(&id, order);
            for name in &order.here {
                let (Some(bee), Some(stage)) = (bees.remove(&(n, name.clone())), order.swarm.stage(name)) else {
                    continue;
                };
                self.run(&id, order, stage, bee, &ends);
                kept.push(id.topic(name));
            }
            self.hand_over(&id, order, &ends);
            kept.extend(order.beyond().iter().map(|stage| id.topic(stage)));
            add_routes(&mut routes, &id, order, &ends, &self.routes.borrow());
        }
        let mut table = RouteTable::default();
        // Whoever comes to this door is the one tenant.
        table.put(&TenantId::default_tenant(), routes);
        // The door first: nothing new comes to what ends.
        self.routes.send_replace(Arc::new(table));
        let mut ending = JoinSet::new();
        for (_, at) in self.running.extract_if(|topic, _| !kept.contains(topic)) {
            ending.spawn(at.running.stop());
        }
        // They may publish until they have stopped.
        ending.join_all().await;
        self.go_on_with_the_rest(&kept, &mut outboxes, of).await;
        self.tidy(orders, &outboxes, of).await;
        self.modules = modules;
        self.scale().await;
        Ok(())
    }

    /// What waits for the hub though no orders name it any more was taken all the same, and is handed over: the hub says whether it still takes it.
    async fn go_on_with_the_rest(
        &mut self,
        kept: &[TopicId],
        outboxes: &mut Outboxes,
        of: impl Fn(&OutboxAt) -> anyhow::Result<SwarmId>,
    ) {
        let before = outboxes.clone();
        let mut stay = Vec::new();
        for at in std::mem::take(&mut outboxes.all) {
            let Ok(life) = of(&at) else { continue };
            let topic = life.topic(&at.stage);
            if kept.contains(&topic) {
                stay.push(at);
                continue;
            }
            let unread = match self.seams.backend.status(&life).await {
                Ok(all) => all.iter().find(|s| s.topic == topic).map_or(0, |s| s.unread),
                Err(Error::Gone) => 0,
                Err(_) => 1,
            };
            let spec = Arc::new(rest(&life, &at));
            if unread == 0 {
                if let Some(out) = self.outboxes.remove(&topic) {
                    out.stop.cancel();
                    let _ = out.task.await;
                }
                // Its topic stays, and so does its life: the same may come back with the next label.
                continue;
            }
            if !self.outboxes.contains_key(&topic) {
                self.begin(&spec, &Lane::new(), WhenFull::Refuse);
            }
            tracing::info!(swarm = %at.swarm, stage = %at.stage, messages = unread, "no orders name this outbox any more; what waits in it is handed over");
            stay.push(at);
        }
        outboxes.all = stay;
        if *outboxes != before
            && let Err(error) = self.home.keep_outboxes(outboxes)
        {
            tracing::warn!(
                error = format!("{error:#}"),
                "cannot write down which outboxes are left"
            );
        }
    }

    /// What is left of lives that are no more for good, and holds nothing that anybody took.
    async fn tidy(&self, orders: &Orders, outboxes: &Outboxes, of: impl Fn(&OutboxAt) -> anyhow::Result<SwarmId>) {
        let waits: BTreeSet<SwarmId> = outboxes.all.iter().filter_map(|at| of(at).ok()).collect();
        let Ok(lives) = self.seams.backend.lives().await else {
            return;
        };
        for life in lives {
            let named = orders.gone.contains(&format!("{}@{}", life.name(), life.incarnation()));
            if !named || self.lives.contains(&life) || waits.contains(&life) {
                continue;
            }
            let holds = |all: Vec<TopicStatus>| all.iter().any(|s| s.unread + s.parked + s.timers + s.dead > 0);
            if self.seams.backend.status(&life).await.is_ok_and(|all| !holds(all))
                && let Err(error) = self.seams.backend.remove_swarm(&life, true).await
            {
                tracing::debug!(swarm = %life.name(), %error, "what is left of it stays");
            }
        }
    }

    /// Does what an operator said of what waits here.
    async fn let_go(
        &mut self,
        discards: &[Discard],
        outboxes: &mut Outboxes,
        of: impl Fn(&OutboxAt) -> anyhow::Result<SwarmId>,
    ) {
        self.unmet = None;
        for discard in discards {
            if discard.id <= outboxes.discarded {
                continue;
            }
            let mut done = Ok(0);
            for at in &outboxes.all {
                let Ok(life) = of(at) else { continue };
                if self.shown(&life, &at.stage) != discard.what {
                    continue;
                }
                if let Some(out) = self.outboxes.remove(&life.topic(&at.stage)) {
                    out.stop.cancel();
                    let _ = out.task.await;
                }
                done = self
                    .outbox(&Arc::new(rest(&life, at)), WhenFull::Refuse)
                    .0
                    .discard(discard)
                    .await;
            }
            // An inbox goes with its life, and that only where nothing else of it is here: no other stage loses by it what nobody named.
            match self.left_over().await {
                Ok(left) => {
                    let known: Vec<TopicId> = outboxes
                        .all
                        .iter()
                        .filter_map(|at| Some(of(at).ok()?.topic(&at.stage)))
                        .collect();
                    let inboxes: Vec<&TopicId> = left
                        .iter()
                        .map(|s| &s.topic)
                        .filter(|topic| !known.contains(topic))
                        .collect();
                    for topic in &inboxes {
                        let life = topic.swarm();
                        let whole = format!("{}@{}/*", life.name(), life.incarnation());
                        if discard.first || (self.shown(life, topic.stage()) != discard.what && whole != discard.what) {
                            continue;
                        }
                        let alone =
                            inboxes.iter().filter(|other| other.swarm() == life).count() == 1 || whole == discard.what;
                        let waits = left.iter().any(|s| s.topic.swarm() == life && known.contains(&s.topic));
                        if self.lives.contains(life) || waits || !alone {
                            self.unmet = Some(format!(
                                "{} was not let go of, since others of its Swarm run or wait here: `{whole}` names all of a Swarm that is gone",
                                discard.what
                            ));
                        } else if let Err(error) = self.seams.backend.remove_swarm(life, false).await {
                            done = Err(error);
                        }
                    }
                }
                Err(error) => done = Err(error),
            }
            match done {
                Ok(gone) => {
                    tracing::warn!(
                        what = discard.what,
                        messages = gone,
                        "let go of what waited, as the hub's operator said"
                    );
                    outboxes.discarded = discard.id;
                    if let Err(error) = self.home.keep_outboxes(outboxes) {
                        tracing::warn!(error = format!("{error:#}"), "cannot write down what was let go of");
                    }
                }
                // Not this one nor those behind it: the next orders, or the next start.
                Err(error) => {
                    tracing::error!(what = discard.what, %error, "cannot let go of it; tried again with the next orders");
                    self.unmet = Some(format!("{} was not let go of: {error}; say it again", discard.what));
                    return;
                }
            }
        }
    }

    /// As reports name what waits.
    fn shown(&self, life: &SwarmId, stage: &StageName) -> String {
        match self.lives.contains(life) {
            true => format!("{}/{stage}", life.name()),
            false => format!("{}@{}/{stage}", life.name(), life.incarnation()),
        }
    }

    /// Inboxes of what runs here no more.
    async fn left_over(&self) -> Result<Vec<TopicStatus>, Error> {
        let mut left = Vec::new();
        for life in self.seams.backend.lives().await? {
            let all = self.seams.backend.status(&life).await?;
            left.extend(all.into_iter().filter(|status| {
                let holds = status.unread + status.parked + status.timers + status.dead > 0;
                holds && !self.running.contains_key(&status.topic) && !self.outboxes.contains_key(&status.topic)
            }));
        }
        Ok(left)
    }

    /// Where each stage is reached: those here by their topics, those of the hub by their outboxes.
    fn ends(&self, id: &SwarmId, order: &SwarmOrder) -> Ends {
        let beyond = order.beyond();
        let stages = order
            .swarm
            .stages
            .iter()
            .filter(|s| order.here.contains(&s.name) || beyond.contains(&s.name));
        let mut ends = Ends::new();
        for stage in stages {
            let mut spec = TopicSpec {
                id: id.topic(&stage.name),
                born: order.born.get(&stage.name).copied().unwrap_or(0),
                partitions: stage.partitions,
                inbox: stage.inbox,
                dead_letters: stage.dead_letters,
            };
            let mut before = self.running.get(&spec.id).map(|at| (&at.topic, &at.lane));
            if beyond.contains(&stage.name) {
                // In order, as it was published: the hub parts it.
                spec.partitions = 1;
                spec.inbox = Bound {
                    messages: OUTBOX_MESSAGES_MAX,
                    bytes: outbox(order, &stage.name).0,
                };
                before = self.outboxes.get(&spec.id).map(|out| (&out.topic, &out.lane));
            }
            let end = End {
                topic: match before {
                    Some((topic, _)) if **topic == spec => Arc::clone(topic),
                    _ => Arc::new(spec),
                },
                lane: before.map_or_else(Lane::new, |(_, lane)| Arc::clone(lane)),
                key: stage.key.clone(),
            };
            ends.insert(stage.name.clone(), end);
        }
        ends
    }

    fn run(&mut self, id: &SwarmId, order: &SwarmOrder, stage: &Stage, (bee, code): ReadyBee, ends: &Ends) {
        let end = &ends[&stage.name];
        let (unnamed, named) = destinations(&stage.name, &order.swarm.readers(&stage.name), ends);
        let plan = Arc::new(Plan {
            stage: stage.clone(),
            topic: Arc::clone(&end.topic),
            module: code.module,
            bee,
            unnamed,
            named,
            door: order.swarm.door(stage),
            // A Swarm that is split has no end: `placed::check` of the manifest.
            bounded: false,
        });
        match self.running.get_mut(&id.topic(&stage.name)) {
            Some(at) => {
                at.running.replan(plan);
                at.running.pause(order.paused.contains(&stage.name));
                at.topic = Arc::clone(&end.topic);
            }
            None => {
                let at = At {
                    running: skep_stage::start(plan, &end.lane, &self.seams, order.paused.contains(&stage.name)),
                    lane: Arc::clone(&end.lane),
                    topic: Arc::clone(&end.topic),
                };
                self.running.insert(id.topic(&stage.name), at);
            }
        }
    }

    fn hand_over(&mut self, id: &SwarmId, order: &SwarmOrder, ends: &Ends) {
        for stage in order.beyond() {
            let (_, when_full) = outbox(order, &stage);
            let Some(end) = ends.get(&stage) else { continue };
            if let Some(out) = self.outboxes.get_mut(&id.topic(&stage)) {
                if Arc::ptr_eq(&out.topic, &end.topic) {
                    out.full.send_replace(when_full);
                    continue;
                }
                // Of another size now: begun anew, once the one before has let go of it.
                out.stop.cancel();
            }
            self.begin(&end.topic, &end.lane, when_full);
        }
    }

    fn outbox(&self, topic: &Arc<TopicSpec>, when_full: WhenFull) -> (Outbox, watch::Sender<WhenFull>) {
        let full = watch::Sender::new(when_full);
        let outbox = Outbox::new(
            Arc::clone(topic),
            self.edge,
            full.subscribe(),
            self.epoch.subscribe(),
            (Arc::clone(&self.seams.backend), Arc::clone(&self.seams.entropy)),
            self.link.up(),
        );
        (outbox, full)
    }

    fn begin(&mut self, topic: &Arc<TopicSpec>, lane: &Arc<Lane>, when_full: WhenFull) {
        let (outbox, full) = self.outbox(topic, when_full);
        let stop = CancellationToken::new();
        let out = Out {
            topic: Arc::clone(topic),
            lane: Arc::clone(lane),
            full,
            known: outbox.known(),
            task: self.tasks.spawn(outbox.run(stop.clone())),
            stop,
        };
        self.outboxes.insert(topic.id.clone(), out);
    }

    /// Topics get as many partitions as the orders say.
    async fn scale(&self) {
        for at in self.running.values() {
            if let Err(error) = scale(at, &self.seams).await {
                tracing::error!(stage = %at.topic.id.stage(), %error, "cannot give it its number of partitions; tried again with the next orders");
            }
        }
    }

    /// Begins to hand over what waits, whatever becomes of the orders: for a start.
    ///
    /// # Errors
    /// What is known of outboxes cannot be read.
    pub fn hand_over_what_waits(&mut self, tenant: &Scope) -> anyhow::Result<()> {
        for at in self.home.outboxes()?.all {
            let life = tenant.swarm(&at.swarm, at.incarnation.parse()?);
            self.begin(&Arc::new(rest(&life, &at)), &Lane::new(), WhenFull::Refuse);
        }
        Ok(())
    }

    /// What could not be done of what an operator said.
    #[must_use]
    pub fn unmet(&self) -> Option<&str> {
        self.unmet.as_deref()
    }

    /// For the hub: what runs, and what waits.
    pub async fn report(&self) -> v1::EdgeReport {
        let backend = &self.seams.backend;
        let (mut waiting, mut inboxes) = (Vec::new(), Vec::new());
        let lives: BTreeSet<&SwarmId> = self
            .outboxes
            .keys()
            .chain(self.running.keys())
            .map(TopicId::swarm)
            .collect();
        for life in lives {
            // All of a life at one moment: what goes from an inbox to an outbox meanwhile is seen in one of them.
            let Ok(all) = backend.status(life).await else {
                continue;
            };
            for status in all {
                let stage = self.shown(life, status.topic.stage());
                if let Some(out) = self.outboxes.get(&status.topic) {
                    let known = out.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    waiting.push(v1::Waiting {
                        stage,
                        messages: status.unread,
                        bytes: status.unread_bytes,
                        handed_over: known.counts.handed_over,
                        dropped: known.counts.dropped,
                        trouble: known.trouble.unwrap_or_default(),
                    });
                } else if self.running.contains_key(&status.topic) {
                    inboxes.push(v1::Waiting {
                        stage,
                        messages: status.unread + status.parked + status.timers,
                        bytes: status.unread_bytes + status.parked_bytes,
                        ..v1::Waiting::default()
                    });
                }
            }
        }
        for status in self.left_over().await.unwrap_or_default() {
            waiting.push(v1::Waiting {
                stage: self.shown(status.topic.swarm(), status.topic.stage()),
                messages: status.unread + status.parked,
                bytes: status.unread_bytes + status.parked_bytes,
                trouble: "this stage runs here no more: place it here again, and it goes on".to_owned(),
                ..v1::Waiting::default()
            });
        }
        let mut runs: Vec<String> = self
            .running
            .keys()
            .map(|topic| format!("{}/{}", topic.swarm().name(), topic.stage()))
            .collect();
        runs.sort();
        waiting.sort_by(|a, b| a.stage.cmp(&b.stage));
        inboxes.sort_by(|a, b| a.stage.cmp(&b.stage));
        v1::EdgeReport {
            waiting,
            runs,
            inboxes,
            ..v1::EdgeReport::default()
        }
    }

    /// Stops everything, after the batches under way.
    pub async fn stop(self) {
        self.routes.send_replace(Arc::new(RouteTable::default()));
        for out in self.outboxes.values() {
            out.stop.cancel();
        }
        for at in self.running.into_values() {
            self.tasks.spawn(at.running.stop());
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A stage's Bee, with the settings that the manifest gives it.
fn bee(order: &SwarmOrder, name: &StageName, modules: &HashMap<CodeOrder, Module>) -> anyhow::Result<ReadyBee> {
    let stage = order.swarm.stage(name).context("the Swarm has no such stage")?;
    let code = *order.code.get(name).context("the orders name no code")?;
    let module = modules.get(&code).context("its code was not loaded")?;
    if stage.builtin.is_some() || !stage.secrets.is_empty() || !stage.http.is_empty() || !stage.models.is_empty() {
        bail!("it asks for what this version of skep-edge does not have: bring it to the version of the hub");
    }
    let bee = module.bee(&stage.bee, BeeSettings::of(stage, code.module))?;
    Ok((Arc::new(EdgeBee(bee)), code))
}

/// The address of an outbox by what is known of it without its Swarm.
fn rest(life: &SwarmId, at: &OutboxAt) -> TopicSpec {
    TopicSpec {
        id: life.topic(&at.stage),
        born: at.born,
        partitions: 1,
        inbox: Bound {
            messages: OUTBOX_MESSAGES_MAX,
            bytes: at.bytes,
        },
        dead_letters: Bound { messages: 0, bytes: 0 },
    }
}

/// What may wait for a stage of the hub: the most that any stage here grants it; nothing is dropped unless all of them say so.
fn outbox(order: &SwarmOrder, reader: &StageName) -> (u64, WhenFull) {
    let feeds = |stage: &&StageName| order.swarm.readers(stage).iter().any(|r| r.stage == *reader);
    let placed: Vec<_> = order
        .here
        .iter()
        .filter(feeds)
        .filter_map(|stage| order.swarm.stage(stage)?.place.as_ref())
        .collect();
    let bytes = placed.iter().map(|p| p.outbox_bytes).max();
    let drop = !placed.is_empty() && placed.iter().all(|p| p.when_full == WhenFull::DropOldest);
    (
        bytes.unwrap_or(skep_model::limits::OUTBOX_BYTES_DEFAULT),
        if drop { WhenFull::DropOldest } else { WhenFull::Refuse },
    )
}

/// Subjects that feed stages here, under the one tenant that whoever comes to this door is.
fn add_routes(routes: &mut Vec<Arc<Route>>, id: &SwarmId, order: &SwarmOrder, ends: &Ends, before: &RouteTable) {
    let here = TenantId::default_tenant();
    for subject in order.swarm.subjects() {
        let fed = order.swarm.fed_by(&subject);
        let feeds: Vec<Feed> = fed
            .into_iter()
            .filter(|(stage, _)| order.here.contains(&stage.name))
            .filter_map(|(stage, when)| {
                let end = ends.get(&stage.name)?;
                Some(Feed {
                    topic: Arc::clone(&end.topic),
                    stage: stage.name.clone(),
                    key: stage.key.clone(),
                    lane: None,
                    when,
                })
            })
            .collect();
        if feeds.is_empty() {
            continue;
        }
        let was = before.get(&here, subject.as_str());
        let route = Route {
            swarm: id.clone(),
            subject,
            feeds,
            pure: false,
            open: match order.door {
                DoorOrder::Open => Open::Yes,
                DoorOrder::Paused => Open::Paused,
                DoorOrder::Draining => Open::Draining,
                DoorOrder::Deleting => Open::Deleting,
            },
            load: was.map(|route| Arc::clone(&route.load)).unwrap_or_default(),
            purse: was.map(|route| Arc::clone(&route.purse)).unwrap_or_default(),
        };
        routes.push(Arc::new(route));
    }
}

async fn scale(at: &At, seams: &Seams) -> Result<(), Error> {
    let backend = &seams.backend;
    let layout = match backend.layout(&at.topic.id).await {
        Ok(Some(layout)) => layout,
        Ok(None) | Err(Error::Gone) => return Ok(()),
        Err(e) => return Err(e),
    };
    if layout.partitions != at.topic.partitions {
        let id = CommitId::random(seams.entropy.as_ref());
        match backend.rescale(&at.topic, id).await? {
            Rescaled::Begun | Rescaled::Already => {}
            Rescaled::Busy => return Err(Error::Unavailable("an earlier rescale is under way".to_owned())),
        }
    }
    at.running.own(layout.owners.max(at.topic.partitions));
    Ok(())
}
