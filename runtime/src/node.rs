//! A node: builds its parts in order and stops them in reverse.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use skep_engine::apart::Processes;
use skep_engine::{ArtifactCache, Compiler, Engine};
use skep_gateway::RouteTable;
use skep_inference::Threads;
use skep_inference::backend::{self, Choice};
use skep_inference::limits::MODELS_BYTES_DEFAULT;
use skep_inference::shelf::{self, Shelf};
use skep_model::env::{Clock, Entropy, OsEntropy, SystemClock};
use skep_model::id::NodeId;
use skep_model::limits::{MODULES_BYTES_DEFAULT, UPLOAD_MS};
use skep_model::name::{NodeLabel, TenantId};
use skep_model::span::{NoSpans, SpanSink};
use skep_stage::{Observer, Seams};
use skep_topic::Backend;
use skep_topic::embedded::Embedded;
use skep_topic::redis::{Redis, Severity, probe};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{self, Registry};
use crate::admin::{self, Admin};
use crate::audit::Audit;
use crate::beekeeper::{self, Desk};
use crate::catalog::Catalogs;
use crate::clock::StoreClock;
use crate::edges::Edges;
use crate::level::Build;
use crate::logs::LogKeep;
use crate::members::{self, Member, Members};
use crate::mirror::Mirror;
use crate::models::{Lookout, ModelMetrics, Near, NodeModels};
use crate::oidc::{self, OidcSettings};
use crate::owner;
use crate::peer::Here;
use crate::peer::ask::Asking;
use crate::secrets::{KeyPlace, Keys, Vault};
use crate::settings::{self, ArtifactSettings, BackendSettings, Roles};
use crate::spans::OtlpSpans;
use crate::stats::Stats;
use crate::store::{Access, ModuleStore};
use crate::supervisor::{ModuleMetrics, Modules, Supervisor};
use crate::tls::{Tls, TlsFiles};
use crate::usage::Usage;

/// How long a stopping node waits for calls under way.
const GRACE: Duration = Duration::from_secs(10);

/// What a user may set. Plain data.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Everything that the node keeps.
    pub data: PathBuf,
    /// The doors: gRPC and HTTP on one port. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Metrics and health; `None` for no admin port.
    pub admin: Option<SocketAddr>,
    /// Share of calls without a trace of their own that are traced.
    pub sample_ratio: f64,
    /// How long an upload may take beside its bytes.
    pub upload: Duration,
    /// The program that compiles modules when it is called with `compile-module`, and runs a tenant's Bees with `run-tenant`: this one.
    pub compiler: PathBuf,
    /// Where topics are.
    pub backend: BackendSettings,
    /// Where modules are.
    pub artifacts: ArtifactSettings,
    pub roles: Roles,
    /// What the operator says of it, for tenants that are pinned.
    pub labels: BTreeSet<NodeLabel>,
    /// What the node is called among others.
    pub node_name: String,
    /// `None`: in the clear.
    pub tls: Option<TlsFiles>,
    /// Where the first operator's token is, or is to be written.
    pub bootstrap_token: Option<PathBuf>,
    /// Whose tokens let in beside the platform's own.
    pub oidc: Option<OidcSettings>,
    /// What secrets are sealed with, where the store is shared.
    pub secrets_key_file: Option<PathBuf>,
    /// Also where others may listen in, or come in.
    pub allow_insecure: bool,
    pub models: ModelSettings,
    /// What modules in memory may take together.
    pub module_memory_bytes: u64,
}

/// How a node runs models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    pub backend: Choice,
    /// Where libonnxruntime is.
    pub library: Option<PathBuf>,
    /// 0: half of the cores.
    pub threads: usize,
    /// What loaded models may take together.
    pub memory_bytes: u64,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            backend: Choice::Auto,
            library: None,
            threads: 0,
            memory_bytes: MODELS_BYTES_DEFAULT,
        }
    }
}

impl ModelSettings {
    /// Threads that run models, so many runs at once.
    #[must_use]
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => Threads::usual(std::thread::available_parallelism().map_or(1, usize::from)),
            some => some,
        }
    }

    /// What runs models. A run of ONNX Runtime has one thread: several runs go on beside each other.
    ///
    /// # Errors
    /// The library that is named cannot be used.
    pub fn open(&self) -> Result<Arc<dyn skep_inference::Backend>, String> {
        backend::choose(self.backend, self.library.as_deref(), 1)
    }
}

impl NodeSettings {
    /// Loopback, a free port, no admin port, 1 % of calls traced.
    ///
    /// # Errors
    /// When the path of the running program is not to be had.
    pub fn local(data: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            data,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: None,
            sample_ratio: 0.01,
            upload: Duration::from_millis(UPLOAD_MS),
            compiler: std::env::current_exe().context("find this program's own file")?,
            backend: BackendSettings::Embedded,
            artifacts: ArtifactSettings::Own,
            roles: Roles::ALL,
            labels: BTreeSet::new(),
            node_name: "local".to_owned(),
            tls: None,
            bootstrap_token: None,
            oidc: None,
            secrets_key_file: None,
            allow_insecure: false,
            models: ModelSettings::default(),
            module_memory_bytes: MODULES_BYTES_DEFAULT,
        })
    }
}

impl NodeSettings {
    /// Where the keys are that seal secrets.
    #[must_use]
    pub fn key_place(&self) -> KeyPlace {
        match (&self.secrets_key_file, &self.backend) {
            (Some(file), _) => KeyPlace::File(file.clone()),
            (None, BackendSettings::Embedded) => KeyPlace::Own(self.data.join("secrets.key")),
            (None, BackendSettings::Redis(_)) => KeyPlace::Nowhere,
        }
    }

    /// That of the embedded backend.
    pub(crate) fn topics(&self) -> PathBuf {
        self.data.join("topics")
    }

    /// Another node uses the data folder now. Changes nothing.
    #[must_use]
    pub fn in_use(&self) -> bool {
        if self.backend == BackendSettings::Embedded {
            return skep_topic::embedded::is_free(&self.topics()).is_err();
        }
        let file = std::fs::File::open(self.data.join(LOCK));
        file.is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
    }
}

/// The file in the data folder that whoever uses it has locked, where the store is elsewhere.
const LOCK: &str = "lock";

/// A running node.
pub struct Node {
    listen: SocketAddr,
    scheme: &'static str,
    admin: Option<SocketAddr>,
    backend: Arc<dyn Backend>,
    /// Held for as long as the node uses the data folder; the embedded backend has one of its own.
    _lock: Option<std::fs::File>,
    members: Arc<Members>,
    supervisor: Arc<Supervisor>,
    usage: Arc<Usage>,
    following: TaskTracker,
    model_threads: Arc<Threads>,
    spans: Option<Arc<OtlpSpans>>,
    stop: CancellationToken,
    /// Until it has ended.
    doors: Option<JoinHandle<std::io::Result<()>>>,
    admin_task: Option<JoinHandle<std::io::Result<()>>>,
}

impl Node {
    /// Opens the data folder, brings up every Swarm of the catalog and opens the doors.
    ///
    /// # Errors
    /// When the folder is in use or written by a newer skep, a port is taken, and so on: with the remedy.
    pub async fn start(settings: NodeSettings) -> anyhow::Result<Self> {
        let machine: Arc<dyn Clock> = Arc::new(SystemClock);
        let store_clock = Arc::new(StoreClock::default());
        let clock: Arc<dyn Clock> = Arc::clone(&store_clock) as Arc<dyn Clock>;
        let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
        // Ports first: they fail most often, and before anything was touched.
        let topics = settings.topics();
        let listener = bind(settings.listen, "--listen", &topics).await?;
        let admin_listener = match settings.admin {
            Some(address) => Some(bind(address, "--admin", &topics).await?),
            None => None,
        };
        let tls = settings.tls.clone().map(Tls::load).transpose()?;
        make_private(&settings.data)?;
        let listen = listener.local_addr()?;
        let me = NodeId::random(entropy.as_ref());
        let (backend, lock) = open(&settings, &topics, me, &machine, &entropy).await?;
        let about = about(&settings, listen, machine.as_ref());
        let (members, workers) = Members::join(me, Arc::clone(&backend), about, store_clock).await?;
        let store = ModuleStore::open(
            &settings.artifacts,
            &settings.data,
            TenantId::default_tenant(),
            Access::of_environment(),
        )
        .await?;
        if let Some(place) = store.shared() {
            let name = members.name();
            owner::take(place, backend.as_ref(), entropy.as_ref(), name, clock.now_ms()).await?;
        }
        let engine = Engine::new(skep_engine::Settings::new(settings.data.join("cache")))?;
        let seats = engine.seats();
        // The key lies apart from what it authenticates: who can write the cache cannot make it true.
        let cache =
            ArtifactCache::open(&engine, &settings.data.join("artifact.key")).context("open the artifact cache")?;
        let cache = Arc::new(cache);
        let limits = engine.settings().compiler;
        let compiler =
            Compiler::new(settings.compiler.clone(), vec!["compile-module".into()], limits).with(Arc::clone(&cache));
        let spans = OtlpSpans::from_env()?.map(Arc::new);
        let sink: Arc<dyn SpanSink> = match &spans {
            Some(spans) => Arc::clone(spans) as Arc<dyn SpanSink>,
            None => Arc::new(NoSpans),
        };
        let logs = Arc::new(LogKeep::default());
        let stats = Arc::new(Stats::new(Arc::clone(&clock), Arc::clone(&logs)));
        let seams = Arc::new(Seams {
            backend: Arc::clone(&backend),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            observer: Arc::clone(&stats) as Arc<dyn Observer>,
            spans: Arc::clone(&sink),
            workers: workers.clone(),
            seats,
            rest: Arc::default(),
        });
        let (routes, table) = watch::channel(Arc::new(RouteTable::default()));
        let mirror = store
            .shared()
            .and_then(|place| Mirror::new(place.clone(), Arc::clone(&backend), Arc::clone(&members)));
        let catalogs = Catalogs::new(Arc::clone(&backend), mirror);
        let audit = Audit::open(&settings.data, Arc::clone(&clock)).context("open the audit")?;
        audit.note(&format!("skep {} starts", Build::current().version));
        let registry = Registry::new(catalogs.clone(), Arc::clone(&clock), Arc::clone(&entropy));
        let vault = Vault::new(
            catalogs.clone(),
            Keys::read(settings.key_place(), Arc::clone(&entropy))?,
        );
        let processes = Processes::new(settings.compiler.clone(), vec!["run-tenant".into()], engine.settings());
        let processes = processes.context("start a thread for processes of tenants")?;
        let modules = Modules::new(
            store.clone(),
            engine,
            compiler,
            cache,
            processes,
            settings.module_memory_bytes,
        );
        stats.collect(Box::new(ModuleMetrics(Arc::clone(&modules))));
        let works = settings.roles.worker;
        let quotas = Arc::clone(&registry.quotas);
        let model_threads = Threads::start(settings.models.threads()).context("start threads for models")?;
        let shelf = Shelf::new(
            settings.models.open().map_err(anyhow::Error::msg)?,
            Arc::clone(&model_threads),
            shelf::Settings {
                budget_bytes: settings.models.memory_bytes,
                ..shelf::Settings::default()
            },
        );
        stats.collect(Box::new(ModelMetrics(Arc::clone(&shelf))));
        let models = NodeModels::new(catalogs.clone(), store.models(), shelf);
        let lookout = Lookout::new(
            settings.compiler.clone(),
            settings.models.backend,
            settings.models.library.clone(),
        );
        let held = (vault, Arc::clone(&quotas), Arc::clone(&models));
        let supervisor = Supervisor::new(
            catalogs.clone(),
            modules,
            held,
            seams,
            Arc::clone(&stats),
            routes,
            works,
        );
        members.begin(&supervisor).await?;
        supervisor.mend();
        supervisor.watch_ends();
        supervisor.tidy();
        if let Some(file) = &settings.bootstrap_token {
            if members.level() < access::LEVEL {
                anyhow::bail!(tokens_too_new(members.level()));
            }
            registry.bootstrap_from(file).await?;
            audit.note("the token in the file of --bootstrap-token is an operator's, unless it was revoked");
        }
        registry.refresh().await.context("read who may come in")?;
        refuse_insecure(&settings, listen, registry.door.is_open())?;
        let identities = settings.oidc.as_ref().map(oidc::Reader::new).transpose()?;
        if let Some(reader) = &identities {
            if registry.door.is_open() {
                anyhow::bail!(
                    "an OpenID provider is named, and as long as no token was ever made everybody may do everything: give --bootstrap-token \
                     FILE, into which the first operator's token is written"
                );
            }
            registry.door.trust(Arc::clone(reader.provider()));
        }

        let stop = CancellationToken::new();
        let following = TaskTracker::new();
        following.spawn(Arc::clone(&registry).follow(Arc::clone(&members), stop.clone()));
        members.follow(&supervisor, &following, &stop);
        following.spawn(Arc::clone(&audit).follow(stop.clone()));
        if let Some(reader) = identities {
            following.spawn(reader.follow(stop.clone()));
        }
        let usage = Usage::new(catalogs.clone(), Arc::clone(&quotas), me, Arc::clone(&clock));
        following.spawn(Arc::clone(&usage).follow(stop.clone()));
        following.spawn(quotas.follow(Arc::clone(&members), catalogs, Arc::clone(&backend), stop.clone()));
        if let Some(tls) = &tls {
            following.spawn(Arc::clone(tls).follow(stop.clone()));
        }
        let core = skep_gateway::Core::new(
            Arc::clone(&backend),
            table,
            Arc::clone(&clock),
            Arc::clone(&entropy),
            sink,
            skep_gateway::Settings {
                sample_ratio: settings.sample_ratio,
                node: me,
                takes_calls: settings.roles.gateway,
                ..skep_gateway::Settings::default()
            },
        );
        let here = Here {
            supervisor: Arc::clone(&supervisor),
            stats: Arc::clone(&stats),
            audit: Arc::clone(&audit),
            name: members.name().to_owned(),
            stop: stop.clone(),
        };
        let edges = Edges::new(
            supervisor.catalogs.clone(),
            Arc::clone(&supervisor.vault),
            Arc::clone(&supervisor.modules),
            Arc::clone(&backend),
            (Arc::clone(&clock), Arc::clone(&entropy)),
            Arc::clone(&audit),
            Arc::clone(&registry.quotas),
            Arc::clone(&members),
            &settings.data,
            stop.clone(),
        )?;
        let desk = Desk::new(beekeeper::Parts {
            node: me,
            members: Arc::clone(&members),
            backend_name: settings.backend.to_string(),
            supervisor: Arc::clone(&supervisor),
            backend: Arc::clone(&backend),
            stores: store,
            here: here.clone(),
            asking: Asking {
                door: Arc::clone(&registry.door),
                tls: tls.clone(),
            },
            registry: Arc::clone(&registry),
            edges,
            lookout,
            clock: Arc::clone(&clock),
            entropy,
            data: settings.data.display().to_string(),
            started_ms: clock.now_ms(),
            upload: settings.upload,
            stop: stop.clone(),
        });
        following.spawn(tell_readiness(Arc::clone(&core), members.leaving(), stop.clone()));
        following.close();
        let mut services = tonic::service::Routes::new(here.service());
        if settings.roles.beekeeper {
            services = services
                .add_service(desk.clone().access())
                .add_service(desk.clone().secrets())
                .add_service(desk.clone().audit())
                .add_service(desk.clone().models())
                .add_service(desk.clone().edges())
                .add_service(desk.service());
        }
        let entrance = skep_gateway::Entrance {
            listener,
            door: Arc::clone(&registry.door),
            witness: Some(audit),
            models: Some(Arc::new(Near { models, workers })),
            tls: tls.as_ref().map(|tls| tls.server()),
        };
        let doors = tokio::spawn(skep_gateway::serve(
            entrance,
            core,
            services,
            stop.clone().cancelled_owned(),
            GRACE,
        ));
        let admin = admin_listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let admin_task = admin_listener.map(|listener| {
            let admin = Admin {
                backend: Arc::clone(&backend),
                stats,
                supervisor: Arc::clone(&supervisor),
            };
            tokio::spawn(admin::serve(listener, admin, stop.clone()))
        });
        Ok(Self {
            listen,
            scheme: scheme(&settings),
            admin,
            backend,
            _lock: lock,
            members,
            supervisor,
            usage,
            following,
            model_threads,
            spans,
            stop,
            doors: Some(doors),
            admin_task,
        })
    }

    /// `http://HOST:PORT` of the doors, or `https://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.listen)
    }

    #[must_use]
    pub fn admin_url(&self) -> Option<String> {
        self.admin.map(|a| format!("http://{a}"))
    }

    #[must_use]
    pub fn counters(&self) -> skep_topic::Counters {
        self.backend.counters()
    }

    /// Waits until the doors close by themselves, which they do only when something is wrong.
    pub async fn failed(&mut self) -> anyhow::Error {
        let members = Arc::clone(&self.members);
        let Some(doors) = &mut self.doors else {
            return std::future::pending().await;
        };
        let ended = tokio::select! {
            ended = doors => ended,
            why = members.outgrown() => return anyhow::anyhow!(why),
        };
        self.doors = None;
        match ended {
            Ok(Ok(())) => anyhow::anyhow!("the doors closed"),
            Ok(Err(e)) => anyhow::Error::new(e).context("the doors closed"),
            Err(e) => anyhow::Error::new(e).context("the doors closed"),
        }
    }

    /// Refuses new calls, lets those under way end (bounded), stops the stages, makes everything durable and closes.
    ///
    /// # Errors
    /// The first of what went wrong on the way; the store is closed whatever it was.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.members.announce().await;
        self.stop.cancel();
        let doors = match self.doors {
            Some(doors) => ended(doors.await).context("the doors"),
            None => Ok(()),
        };
        self.supervisor.stop().await;
        // After whoever calls models.
        self.model_threads.stop();
        self.following.wait().await;
        // After the last Bee: what it used counts.
        if let Err(error) = self.usage.write().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "what was used since the last minute is not counted"
            );
        }
        self.members.leave().await;
        let admin = match self.admin_task {
            Some(mut task) => match tokio::time::timeout(GRACE, &mut task).await {
                Ok(end) => ended(end).context("the admin port"),
                // Somebody holds a connection open; nothing depends on it.
                Err(_) => {
                    task.abort();
                    Ok(())
                }
            },
            None => Ok(()),
        };
        let store = self.backend.close().await.context("close the store");
        let spans = match self.spans {
            Some(spans) => tokio::task::spawn_blocking(move || spans.shutdown())
                .await
                .map(|_| ())
                .context("send the last spans"),
            None => Ok(()),
        };
        // The store's word first: it is about users' data.
        for part in [&store, &doors, &admin, &spans] {
            if let Err(e) = part {
                tracing::error!(error = format!("{e:#}"), "the node did not stop cleanly");
            }
        }
        store.and(doors).and(admin).and(spans)
    }
}

/// Opens the store; the second is the lock on the data folder, where the store does not lie in it.
async fn open(
    settings: &NodeSettings,
    topics: &Path,
    me: NodeId,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
) -> anyhow::Result<(Arc<dyn Backend>, Option<std::fs::File>)> {
    match &settings.backend {
        BackendSettings::Embedded => {
            let store = Embedded::open(topics, Arc::clone(clock), Arc::clone(entropy))?;
            Ok((store, None))
        }
        BackendSettings::Redis(redis) => {
            let lock = lock(&settings.data)?;
            if topics.exists() {
                anyhow::bail!(
                    "{} holds topics of a node with the embedded backend, which Redis would not see: give this node another --data",
                    settings.data.display()
                );
            }
            let options = redis.options(me.0);
            let store = Redis::open(options.clone(), Arc::clone(entropy)).await?;
            let (findings, survives) = probe(&options).await?;
            tracing::info!(redis = options.shown(), "an acknowledged submit: {survives}");
            for finding in findings.iter().filter(|f| f.severity != Severity::Fine) {
                tracing::warn!(remedy = finding.remedy, "{}", finding.what);
            }
            Ok((store, Some(lock)))
        }
    }
}

fn scheme(settings: &NodeSettings) -> &'static str {
    if settings.tls.is_some() { "https" } else { "http" }
}

/// Why there can be no tokens yet.
pub(crate) fn tokens_too_new(level: u32) -> String {
    format!(
        "tokens need every node at level {}, and the store is at {level}: an older skep would let everybody in. Upgrade all nodes, wait a \
         minute, then try again",
        access::LEVEL
    )
}

/// What is missing where other machines reach the node: it would be open, or in the clear.
pub(crate) fn insecure(tls: bool, listen: SocketAddr, open: bool) -> Option<String> {
    if listen.ip().is_loopback() || (tls && !open) {
        return None;
    }
    let mut missing = Vec::new();
    if !tls {
        missing.push("TLS: give --tls-cert FILE and --tls-key FILE (`skep certs dev` makes some to try it with)");
    }
    if open {
        missing.push("tokens: give --bootstrap-token FILE, into which the first operator's token is written");
    }
    Some(missing.join("; and "))
}

/// What is reached from other machines is neither open nor in the clear, unless that is wanted.
fn refuse_insecure(settings: &NodeSettings, listen: SocketAddr, open: bool) -> anyhow::Result<()> {
    let Some(missing) = insecure(settings.tls.is_some(), listen, open) else {
        return Ok(());
    };
    if settings.allow_insecure {
        tracing::warn!("{listen} is reached from other machines, without {missing}");
        return Ok(());
    }
    anyhow::bail!(
        "{listen} is reached from other machines, without {missing}. Or listen on 127.0.0.1; or, where nobody else can reach it or something \
         in front of it does all that, give --allow-insecure"
    )
}

fn lock(data: &Path) -> anyhow::Result<std::fs::File> {
    let path = data.join(LOCK);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!(
            "another skep uses the data folder {}: stop it, or give this one another --data",
            data.display()
        ),
        Err(std::fs::TryLockError::Error(e)) => Err(e).with_context(|| format!("lock {}", path.display())),
    }
}

fn about(settings: &NodeSettings, listen: SocketAddr, clock: &dyn Clock) -> Member {
    let scheme = scheme(settings);
    let url = match listen.ip() {
        // Reachable at every address: by the machine's name, then.
        ip if ip.is_unspecified() => format!("{scheme}://{}:{}", settings::machine(), listen.port()),
        _ => format!("{scheme}://{listen}"),
    };
    // The default name says the port, which may have been left to the system.
    let name = if settings.node_name == settings::default_name(settings.listen) {
        settings::default_name(listen)
    } else {
        settings.node_name.clone()
    };
    let mut common = BTreeMap::new();
    if let BackendSettings::Redis(redis) = &settings.backend {
        common.insert("gate".to_owned(), format!("{:?}", redis.gate));
        common.insert("artifacts".to_owned(), settings.artifacts.to_string());
    }
    members::about(name, url, (settings.roles, settings.labels.clone()), clock, common)
}

/// A node that is to leave says so to whoever balances load, and serves what comes all the same.
async fn tell_readiness(core: Arc<skep_gateway::Core>, mut leaving: watch::Receiver<bool>, stop: CancellationToken) {
    loop {
        core.set_ready(!*leaving.borrow_and_update());
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leaving.changed() => if changed.is_err() { return },
        }
    }
}

fn ended(end: Result<std::io::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    Ok(end??)
}

pub(crate) async fn bind(address: SocketAddr, flag: &str, topics: &Path) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        // The same node started twice meets its own port first; another port would not help it.
        if let Err(held) = skep_topic::embedded::is_free(topics) {
            return held.into();
        }
        let remedy = match e.kind() {
            std::io::ErrorKind::AddrInUse => "another program listens there; choose another port, or 0 for a free one",
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            std::io::ErrorKind::PermissionDenied => "ports under 1024 need a privilege; choose a higher one",
            _ => "choose another address",
        };
        anyhow::anyhow!("cannot listen on {address} ({flag}): {e}: {remedy}")
    })
}

/// The folder holds users' data and native code: nobody else's business.
fn make_private(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the data folder {}", dir.display()))?;
    let found = std::fs::metadata(dir).with_context(|| format!("cannot look at the data folder {}", dir.display()))?;
    let open = found.permissions().mode() & 0o077 != 0;
    // A folder of others, or one with other things in it such as /tmp, is not ours to close.
    let ours = found.uid() == rustix::process::geteuid().as_raw()
        && (dir.join("topics").exists() || std::fs::read_dir(dir).is_ok_and(|mut files| files.next().is_none()));
    if open && ours {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot make the data folder {} private", dir.display()))?;
    } else if open {
        tracing::warn!(dir = %dir.display(), "others may read the data folder: give skep one of its own, with mode 0700");
    }
    Ok(())
}
