//! A node: builds its parts in order and stops them in reverse.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use skep_engine::{ArtifactCache, Compiler, Engine};
use skep_gateway::RouteTable;
use skep_model::env::{Clock, Entropy, OsEntropy, SystemClock};
use skep_model::limits::UPLOAD_MS;
use skep_model::name::TenantId;
use skep_model::scope::Scope;
use skep_model::span::{NoSpans, SpanSink};
use skep_stage::{Observer, Seams};
use skep_topic::Backend;
use skep_topic::embedded::Embedded;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::beekeeper::{self, Keeper};
use crate::catalog::Catalog;
use crate::logs::LogKeep;
use crate::settings::{ArtifactSettings, BackendSettings, Roles};
use crate::spans::OtlpSpans;
use crate::stats::Stats;
use crate::store::ModuleStore;
use crate::supervisor::{Modules, Supervisor};

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
    /// The program that compiles modules when it is called with `compile-module`: this one.
    pub compiler: PathBuf,
    /// Where topics are.
    pub backend: BackendSettings,
    /// Where modules are.
    pub artifacts: ArtifactSettings,
    pub roles: Roles,
    /// What the node is called among others.
    pub node_name: String,
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
            node_name: "local".to_owned(),
        })
    }
}

/// A running node.
pub struct Node {
    listen: SocketAddr,
    admin: Option<SocketAddr>,
    backend: Arc<Embedded>,
    supervisor: Arc<Supervisor>,
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
        anyhow::ensure!(
            settings.backend == BackendSettings::Embedded && settings.artifacts == ArtifactSettings::Own,
            "not wired"
        );
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
        // Ports first: they fail most often, and before anything was touched.
        let topics = settings.data.join("topics");
        let listener = bind(settings.listen, "--listen", &topics).await?;
        let admin_listener = match settings.admin {
            Some(address) => Some(bind(address, "--admin", &topics).await?),
            None => None,
        };
        make_private(&settings.data)?;
        let backend = Embedded::open(&topics, Arc::clone(&clock), Arc::clone(&entropy))?;
        let tenant = TenantId::default_tenant();
        let store = ModuleStore::local(&settings.data.join("modules"), tenant.clone())?;
        let engine = Engine::new(skep_engine::Settings::new(settings.data.join("cache")))?;
        // The key lies apart from what it authenticates: who can write the cache cannot make it true.
        let cache =
            ArtifactCache::open(&engine, &settings.data.join("artifact.key")).context("open the artifact cache")?;
        let limits = engine.settings().compiler;
        let compiler = Compiler::new(settings.compiler.clone(), vec!["compile-module".into()], limits);
        let spans = OtlpSpans::from_env()?.map(Arc::new);
        let sink: Arc<dyn SpanSink> = match &spans {
            Some(spans) => Arc::clone(spans) as Arc<dyn SpanSink>,
            None => Arc::new(NoSpans),
        };
        let logs = Arc::new(LogKeep::default());
        let stats = Arc::new(Stats::new(Arc::clone(&clock), Arc::clone(&logs)));
        let seams = Arc::new(Seams {
            backend: Arc::clone(&backend) as Arc<dyn Backend>,
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            observer: Arc::clone(&stats) as Arc<dyn Observer>,
            spans: Arc::clone(&sink),
        });
        let (routes, table) = watch::channel(Arc::new(RouteTable::default()));
        let catalog = Catalog::new(Arc::clone(&backend) as Arc<dyn Backend>, Scope::of(tenant));
        let modules = Modules::new(store.clone(), engine, compiler, Arc::new(cache));
        let supervisor = Supervisor::new(catalog, modules, seams, Arc::clone(&stats), routes);
        supervisor.sweep().await?;
        supervisor.reconcile().await?;
        supervisor.mend();

        let stop = CancellationToken::new();
        let core = skep_gateway::Core::new(
            Arc::clone(&backend) as Arc<dyn Backend>,
            table,
            Arc::clone(&clock),
            Arc::clone(&entropy),
            sink,
            skep_gateway::Settings {
                sample_ratio: settings.sample_ratio,
                ..skep_gateway::Settings::default()
            },
        );
        let listen = listener.local_addr()?;
        let keeper = Keeper::new(beekeeper::Parts {
            supervisor: Arc::clone(&supervisor),
            backend: Arc::clone(&backend) as Arc<dyn Backend>,
            store,
            stats: Arc::clone(&stats),
            clock: Arc::clone(&clock),
            entropy,
            data: settings.data.display().to_string(),
            started_ms: clock.now_ms(),
            upload: settings.upload,
            stop: stop.clone(),
        });
        let doors = tokio::spawn(skep_gateway::serve(
            listener,
            core,
            keeper.routes(),
            stop.clone().cancelled_owned(),
            GRACE,
        ));
        let admin = admin_listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let admin_task = admin_listener.map(|listener| {
            let admin = Admin {
                backend: Arc::clone(&backend) as Arc<dyn Backend>,
                stats,
                supervisor: Arc::clone(&supervisor),
            };
            tokio::spawn(admin::serve(listener, admin, stop.clone()))
        });
        Ok(Self {
            listen,
            admin,
            backend,
            supervisor,
            spans,
            stop,
            doors: Some(doors),
            admin_task,
        })
    }

    /// `http://HOST:PORT` of the doors.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
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
        let Some(doors) = &mut self.doors else {
            return std::future::pending().await;
        };
        let ended = doors.await;
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
        self.stop.cancel();
        let doors = match self.doors {
            Some(doors) => ended(doors.await).context("the doors"),
            None => Ok(()),
        };
        self.supervisor.stop().await;
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

fn ended(end: Result<std::io::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    Ok(end??)
}

async fn bind(address: SocketAddr, flag: &str, topics: &Path) -> anyhow::Result<TcpListener> {
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
