//! What may be typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use skep_model::quota::{BadQuota, Quota};

use skep_model::name::{ModelRef, SecretName};

use super::failure::EXIT_CODES;
use crate::settings::{Hidden, Inference, Layer, LogFormat};

pub const NODE_DEFAULT: &str = "http://127.0.0.1:4020";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Yellow.on_default().bold())
    .usage(AnsiColor::Yellow.on_default().bold())
    .literal(AnsiColor::Green.on_default());

/// Real-time pipelines of sandboxed WebAssembly Bees, in one binary.
#[derive(Debug, Parser)]
#[command(name = "skep", version, styles = STYLES, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The node to talk to; that of `skep login`, or http://127.0.0.1:4020, by default
    #[arg(long, global = true, env = "SKEP_NODE", value_name = "URL")]
    pub node: Option<String>,
    /// Tables for people, JSON for programs (streams: one JSON line an item)
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = When::Auto)]
    pub color: When,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs; a failure is JSON too, on stderr
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Graph {
    /// For Markdown that draws it
    Mermaid,
    /// For Graphviz
    Dot,
    /// For a browser
    Svg,
}

impl From<Graph> for skep_model::drawing::Picture {
    fn from(graph: Graph) -> Self {
        match graph {
            Graph::Mermaid => Self::Mermaid,
            Graph::Dot => Self::Dot,
            Graph::Svg => Self::Svg,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node in the foreground
    Serve(Box<Serve>),
    /// Look at what a node would start on: Redis, object store, data folder; and say what an acknowledged submit survives there
    Doctor(Box<Stores>),
    /// See it work: build sample Bees, start a node, apply two Swarms, call them
    Demo,
    /// The limited process in which a node checks and compiles an upload
    #[command(name = "compile-module", hide = true)]
    CompileModule,
    /// The limited process in which a node looks at a model that was uploaded
    #[command(name = "inspect-model", hide = true)]
    InspectModel,
    /// The limited process in which a node runs the Bees of one tenant
    #[command(name = "run-tenant", hide = true)]
    RunTenant {
        /// The node's process
        parent: u32,
    },

    /// Upload a module (a WebAssembly component with Bees)
    Push(Push),
    /// Make a Swarm as its manifest says, showing what changes
    Apply(Apply),
    /// Make a Swarm of a dataflow in Python, and start its sources
    Deploy(Deploy),
    /// Call a subject and wait for the response
    Request(Box<Request>),
    /// Append messages to a subject; returns once they are durable
    Submit(Box<Submit>),

    /// List modules and their Bees
    Bees,
    /// List Swarms
    Swarms,
    /// Show a Swarm's stages
    Describe {
        /// Its name; `skep swarms` lists them
        swarm: String,
        /// Draw it instead
        #[arg(long, value_name = "FORM")]
        graph: Option<Graph>,
    },
    /// Show what a Swarm's Bees logged
    Logs(Logs),
    /// Look at dead letters, try them on another version, put them back, drop them
    Dlq(Dlq),
    /// Show, list, export or import what a stage keeps by key
    State(State),
    /// Stop a Swarm or one of its stages from reading; what comes for it waits
    Pause(Pause),
    /// Let a paused Swarm or stage go on
    Resume(Resume),
    /// Change a stage's partitions or concurrency while messages flow
    Scale(Scale),
    /// List the nodes that share a store, and what each owns
    Nodes,
    /// Have a node give up what it owns, so that it can be stopped
    Drain(Drain),
    /// Delete a Swarm once it is drained
    Delete(Delete),
    /// Write everything that a platform keeps into one file, while it serves
    Backup(Backup),
    /// Bring a backup into an empty platform, of whatever store
    Restore(Restore),
    /// Remove a module, or one of its tags
    DeleteModule(DeleteModule),

    /// Log in at a node: its URL and the token are kept for all commands
    Login(Login),
    /// Forget what `login` kept
    Logout,
    /// Show who you are to the node
    Whoami,
    /// Make, list and delete tenants, who see nothing of each other
    Tenant(Tenant),
    /// Make keys, and sign modules with them
    Signer(Signer),
    /// Show what tenants used: CPU time, memory, messages and bytes, by Bee
    Usage(Usage),
    /// Make, list, revoke and rotate tokens
    Token(Token),
    /// Upload, list, tag and delete models
    Model(Model),
    /// Set, list and delete secrets that Bees may read
    Secret(Secret),
    /// Show who changed what and who was refused, and whether those records are whole
    Audit(Audit),
    /// Make certificates to try TLS with
    Certs(Certs),

    /// Build, serve and apply the project in a folder, again at each edit
    Up(Up),
    /// Write a new Bee project
    New(New),
    /// Run a Bee over the lines of stdin, without a node
    Filter(Box<Filter>),
    /// Check a manifest without a node
    Check {
        /// The manifest; `-` reads stdin
        #[arg(default_value = "swarm.yaml")]
        file: PathBuf,
        /// Draw it, if there is no mistake
        #[arg(long, value_name = "FORM")]
        graph: Option<Graph>,
    },
    /// Print the manifest's JSON Schema, for editors
    Schema,
    /// Print a completion script for a shell
    Completions {
        /// Which one
        shell: Shell,
    },
    /// Print the version, and the node's if one answers
    Version,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The token is read from stdin unless --token is given. URL and token are kept in ~/.config/skep/login.json, which only you may read;
SKEP_NODE, SKEP_TOKEN and SKEP_CA go before them.

Examples:
  skep login https://bees.example.org:4020 < token
  skep login https://localhost:4020 --ca certs/ca.pem")]
pub struct Login {
    /// https://HOST:PORT, or http:// on this machine
    pub url: String,
    /// The token; `-` reads stdin, as no --token does
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Who signed the node's certificate (PEM), where the system does not know
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Tenant {
    #[command(subcommand)]
    pub what: TenantCommand,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A Bee calls what its manifest grants: `models: [digits]`. A tag means what it means at the time of a call, so moving one takes effect at once;
calls under way end on the version that they began with.

Examples:
  skep model push digits.onnx --name digits --tag v2
  skep model show digits
  skep model tag digits:v2 latest
  skep model batching digits --rows 32 --wait 2ms")]
pub struct Model {
    #[command(subcommand)]
    pub what: ModelCommand,
}

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Upload a model (an ONNX file)
    Push {
        /// The .onnx file
        file: PathBuf,
        /// The model's name; by default the file's, with `_` as `-`
        #[arg(long)]
        name: Option<String>,
        /// What names this version
        #[arg(long, default_value = "latest")]
        tag: String,
        #[command(flatten)]
        batching: Batching,
    },
    /// List the models
    List,
    /// Show a model's inputs, outputs and versions
    Show {
        /// NAME, or NAME:TAG for one version
        name: String,
    },
    /// Make a tag mean a version, or make a new one
    Tag {
        /// The version: NAME:TAG or NAME@sha256:DIGEST
        version: String,
        /// The tag
        tag: String,
    },
    /// Delete a model, or one tag of it with the version that only it names
    Delete {
        /// NAME for all of it, or NAME:TAG
        name: String,
        /// Even if a Swarm is granted it
        #[arg(long)]
        force: bool,
    },
    /// Say how concurrent calls of a model become one run
    Batching {
        /// Which model
        name: String,
        #[command(flatten)]
        batching: Batching,
    },
}

/// How calls of a model are put together.
#[derive(Debug, Clone, Args)]
pub struct Batching {
    /// Rows of one run, at most; 64 by default
    #[arg(long, value_name = "N")]
    pub rows: Option<u32>,
    /// How long a call may be made to wait for others while the model is idle; not at all by default
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub wait: Option<Duration>,
    /// Each call is a run of its own
    #[arg(long, conflicts_with_all = ["rows", "wait", "with_other_tenants"])]
    pub no_batching: bool,
    /// Calls of other tenants that pushed the same bytes and chose this and the same numbers may be in one run with yours. A model that was made for it
    /// could carry your rows into their answers: choose it for models whose origin you trust
    #[arg(long)]
    pub with_other_tenants: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A Bee reads what its manifest grants: `secrets: [api-key]`. No command shows a value.

Examples:
  skep secret set api-key < key.txt
  skep secret list
  skep secret delete api-key")]
pub struct Secret {
    #[command(subcommand)]
    pub what: SecretCommand,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  skep audit list --since 24h
  skep audit list --follow -o json >> audit.jsonl
  skep audit verify -o json > heads.json
  skep audit verify --heads heads.json")]
pub struct Audit {
    #[command(subcommand)]
    pub what: AuditCommand,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Show the records of all nodes, oldest first
    List {
        /// Only those of this last time: `24h`, `7d`
        #[arg(long, value_parser = duration, value_name = "TIME")]
        since: Option<Duration>,
        /// Only what this tenant's people did
        #[arg(long)]
        tenant: Option<String>,
        /// Then those that come
        #[arg(short, long)]
        follow: bool,
    },
    /// Read every record and tell the first that was changed, removed, put in or cut off
    Verify {
        /// What an earlier `audit verify -o json` wrote: the chains must still have those records
        #[arg(long, value_name = "FILE")]
        heads: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Set one, or give it a new value, from stdin or a file; one line end at the end of it is left out
    Set {
        /// a-z, 0-9 and `-`
        name: String,
        /// Read the value from here, as it is
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List names and who is granted them
    List,
    /// Delete one
    Delete {
        /// Its name
        name: String,
        /// Also while a Swarm is granted it: its Bees find it missing
        #[arg(long)]
        force: bool,
    },
    /// Seal all tenants' secrets with the first key of --secrets-key-file
    Reseal,
}

#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Make one
    Create {
        /// a-z, 0-9 and `-`
        name: String,
        #[command(flatten)]
        limits: Limits,
        /// Run it on nodes that have this label, which then run nobody else; `any` by default
        #[arg(long, value_name = "KEY=VALUE")]
        nodes: Option<String>,
        /// Where its Bees run on each node: in the node's process beside those of others, or in a process of their own
        #[arg(long, value_enum, default_value = "shared")]
        isolation: Isolation,
    },
    /// Give one other limits, signers, nodes or another isolation; `none` takes a limit away, what is not named stays
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        limits: Limits,
        /// Where its Bees run on each node; a change counts from the next batch on
        #[arg(long, value_enum)]
        isolation: Option<Isolation>,
        /// Take modules of this public key, and with that signed ones only; may be repeated
        #[arg(long, value_name = "ed25519:…")]
        signer: Vec<String>,
        /// Take modules of this key no more; may be repeated. What runs goes on
        #[arg(long, value_name = "ed25519:…")]
        no_signer: Vec<String>,
        /// Run it on nodes that have this label, which then run nobody else; `any`: on all that are for nobody in particular
        #[arg(long, value_name = "KEY=VALUE")]
        nodes: Option<String>,
    },
    /// List them with what they have
    List,
    /// Show one with its limits and what it has of them
    Show {
        /// Its name
        name: String,
    },
    /// Delete one; its tokens end at once
    Delete {
        /// Its name
        name: String,
        /// With all that it has: Swarms, their messages and state, and modules
        #[arg(long)]
        purge: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    /// In the node's process, in sandboxes of their own
    Shared,
    /// In a process of the tenant's own on each node
    Process,
}

impl From<Isolation> for crate::isolation::Isolation {
    fn from(isolation: Isolation) -> Self {
        match isolation {
            Isolation::Shared => Self::Shared,
            Isolation::Process => Self::Process,
        }
    }
}

/// What a tenant may have; without a limit it has what the node has.
#[derive(Debug, Args)]
pub struct Limits {
    /// Memory that its live instances may grow to together, on each node: `256MiB`
    #[arg(long, value_parser = |t: &str| amount(Quota::Memory, t), value_name = "SIZE")]
    pub memory: Option<Amount>,
    /// Its live instances, on each node
    #[arg(long, value_parser = |t: &str| amount(Quota::Instances, t), value_name = "N")]
    pub instances: Option<Amount>,
    /// Cores that its Bees may use, on each node: `0.5`
    #[arg(long, value_parser = |t: &str| amount(Quota::Cpu, t), value_name = "CORES")]
    pub cpu: Option<Amount>,
    /// Its part of a busy node's time beside other tenants', 1 to 1000; 1 by default
    #[arg(long, value_parser = |t: &str| amount(Quota::Weight, t), value_name = "N")]
    pub weight: Option<Amount>,
    /// Messages that it may send, over all nodes: `1000/s`
    #[arg(long, value_parser = |t: &str| amount(Quota::Rate, t), value_name = "N/s")]
    pub rate: Option<Amount>,
    /// Its calls under way, on each node
    #[arg(long, value_parser = |t: &str| amount(Quota::Concurrency, t), value_name = "N")]
    pub concurrency: Option<Amount>,
    /// Bytes of its calls under way, on each node
    #[arg(long, value_parser = |t: &str| amount(Quota::InFlight, t), value_name = "SIZE")]
    pub in_flight: Option<Amount>,
    /// What its topics may hold, dead letters included
    #[arg(long, value_parser = |t: &str| amount(Quota::Storage, t), value_name = "SIZE")]
    pub storage: Option<Amount>,
    /// What its keyed state may hold
    #[arg(long, value_parser = |t: &str| amount(Quota::State, t), value_name = "SIZE")]
    pub state: Option<Amount>,
    /// What its modules may hold
    #[arg(long, value_parser = |t: &str| amount(Quota::Modules, t), value_name = "SIZE")]
    pub modules: Option<Amount>,
    /// Lines that its Bees may log, on each node: `100/s`
    #[arg(long, value_parser = |t: &str| amount(Quota::LogRate, t), value_name = "N/s")]
    pub log_rate: Option<Amount>,
}

/// A limit, or that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub Option<u64>);

fn amount(quota: Quota, text: &str) -> Result<Amount, BadQuota> {
    match text {
        "none" => Ok(Amount(None)),
        text => quota.parse(text).map(|value| Amount(Some(value))),
    }
}

impl Limits {
    /// Those that were given.
    pub fn given(&self) -> Vec<(Quota, Option<u64>)> {
        let all = [
            (Quota::Memory, self.memory),
            (Quota::Instances, self.instances),
            (Quota::Cpu, self.cpu),
            (Quota::Weight, self.weight),
            (Quota::Rate, self.rate),
            (Quota::Concurrency, self.concurrency),
            (Quota::InFlight, self.in_flight),
            (Quota::Storage, self.storage),
            (Quota::State, self.state),
            (Quota::Modules, self.modules),
            (Quota::LogRate, self.log_rate),
        ];
        let given = all.into_iter().filter_map(|(quota, amount)| Some((quota, amount?.0)));
        given.collect()
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  skep usage
  skep usage --tenant acme --since 30d -o json")]
pub struct Usage {
    /// Only this tenant's; an operator sees all by default, everybody else their own
    #[arg(long)]
    pub tenant: Option<String>,
    /// From so long ago on, in whole days (UTC): `30d`; by default all that is kept
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub since: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Roles: `invoke` calls subjects; `read` looks at everything of its tenant, payloads included; `deploy` does both and changes what runs;
`admin` also makes and revokes the tenant's tokens; `operator`, of no tenant, makes tenants and looks after nodes and backups.

Examples:
  skep token bootstrap > operator.token
  skep token create --tenant acme --role deploy --ttl 30d --name ci
  skep token rotate 0123456789ab --grace 1h
  skep token revoke 0123456789ab")]
pub struct Token {
    #[command(subcommand)]
    pub what: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make the first operator's token; from then on every call needs one
    Bootstrap,
    /// Make one; it is shown once
    Create {
        /// Whose it is; by default your own tenant's
        #[arg(long)]
        tenant: Option<String>,
        /// What it may do: invoke, read, deploy, admin or operator
        #[arg(long)]
        role: String,
        /// How long it is good: `30d`, `12h`; without an end by default
        #[arg(long, value_parser = duration, value_name = "TIME")]
        ttl: Option<Duration>,
        /// What it is for, for people
        #[arg(long)]
        name: Option<String>,
    },
    /// List those that you may see, without their secrets
    List {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
    },
    /// End one, with the streams that were opened by it
    Revoke {
        /// Its id, as the list has it
        id: String,
    },
    /// Give one a new secret; it is shown once
    Rotate {
        /// Its id, as the list has it
        id: String,
        /// How long the former secret stays good; it ends at once by default
        #[arg(long, value_parser = duration, value_name = "TIME")]
        grace: Option<Duration>,
    },
    /// Write a token that nobody knows yet, for the file of `skep serve --bootstrap-token`
    Generate,
}

#[derive(Debug, Args)]
pub struct Certs {
    #[command(subcommand)]
    pub what: CertsCommand,
}

#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// A root of your own, a node's certificate and a client's
    Dev {
        /// The folder to write into
        #[arg(default_value = "certs")]
        dir: PathBuf,
        /// Another name or address of the node; may be repeated
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct Drain {
    /// The node's name or id; `skep nodes` lists them
    #[arg(value_name = "NODE")]
    pub name: String,
    /// Take it back into service
    #[arg(long)]
    pub undo: bool,
    /// How long to wait until it owns nothing; it goes on after that
    #[arg(long, value_parser = duration, default_value = "30s", value_name = "TIME")]
    pub timeout: Duration,
}

/// Where a node keeps things.
#[derive(Debug, Args)]
#[command(after_help = "\
It exits with 1 when a node would not start on what it finds. Nothing is changed, but for an object that is made and deleted in
the object store to try it.

Examples:
  skep doctor --config /etc/skep.toml
  skep doctor --backend redis://127.0.0.1:6379 --gate wait:1 --artifacts s3://bees/prod -o json")]
pub struct Stores {
    /// Settings in TOML: the names of the flags are its keys. A flag goes before its variable, that before the file
    #[arg(long, env = "SKEP_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Everything that the node itself keeps
    #[arg(long, env = "SKEP_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where topics are: `embedded` (in --data, the default), redis://HOST:PORT or rediss:// with TLS; of several addresses with commas
    /// between them the one that leads; redis+cluster:// for a cluster. A password belongs into the variable or the file
    #[arg(long, env = "SKEP_BACKEND", hide_env_values = true, value_name = "URL")]
    pub backend: Option<Hidden>,
    /// What an acknowledgement waits for on Redis: `none` (the default), `wait:N` (N replicas have it), `waitaof:N` (the server's
    /// disk and N replicas' have it)
    #[arg(long, env = "SKEP_GATE", hide_env_values = true, value_name = "GATE")]
    pub gate: Option<String>,
    /// Where modules are: s3://BUCKET/PREFIX (credentials by AWS_*), or a folder that all nodes share; --data by default
    #[arg(long, env = "SKEP_ARTIFACTS", hide_env_values = true, value_name = "URL")]
    pub artifacts: Option<Hidden>,
    /// What runs models; auto by default
    #[arg(long, env = "SKEP_INFERENCE", hide_env_values = true, value_enum)]
    pub inference: Option<Inference>,
    /// The library of ONNX Runtime, libonnxruntime.so.*: faster than what is built in for large models
    #[arg(long, env = "SKEP_ONNXRUNTIME", hide_env_values = true, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
    /// Threads that run models; half of the cores by default
    #[arg(long, env = "SKEP_MODEL_THREADS", hide_env_values = true, value_name = "N")]
    pub model_threads: Option<usize>,
    /// What loaded models may take together; 2GiB by default. The one used longest ago goes first
    #[arg(long, env = "SKEP_MODEL_MEMORY", hide_env_values = true, value_name = "SIZE")]
    pub model_memory: Option<String>,
    /// What modules in memory may take together; 512MiB by default. Beyond that the one called longest ago goes, and the next call loads it
    #[arg(long, env = "SKEP_MODULE_MEMORY", hide_env_values = true, value_name = "SIZE")]
    pub module_memory: Option<String>,
}

impl Stores {
    /// What was typed or stands in the environment, and the file that says the rest.
    #[must_use]
    pub fn layer(self) -> (Option<PathBuf>, Layer) {
        let layer = Layer {
            data: self.data,
            backend: self.backend,
            gate: self.gate,
            artifacts: self.artifacts,
            inference: self.inference,
            onnxruntime: self.onnxruntime,
            model_threads: self.model_threads,
            model_memory: self.model_memory,
            module_memory: self.module_memory,
            ..Layer::default()
        };
        (self.config, layer)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  skep serve --data ./data
  skep serve --data ./data --backend redis://127.0.0.1:6379 --artifacts s3://bees/prod
  skep serve --config /etc/skep.toml --roles gateway,beekeeper")]
pub struct Serve {
    #[command(flatten)]
    pub stores: Stores,
    /// gRPC and HTTP; port 0 takes a free one. 127.0.0.1:4020 by default
    #[arg(long, env = "SKEP_LISTEN", hide_env_values = true, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Metrics and health; 127.0.0.1:4021 by default
    #[arg(long, env = "SKEP_ADMIN", hide_env_values = true, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// No metrics and health
    #[arg(long, env = "SKEP_NO_ADMIN", hide_env_values = true)]
    pub no_admin: bool,
    /// What the node does, some of gateway, worker, beekeeper; all by default
    #[arg(
        long,
        env = "SKEP_ROLES",
        hide_env_values = true,
        value_name = "ROLES",
        value_delimiter = ','
    )]
    pub roles: Option<Vec<String>>,
    /// What the node is called among others; the machine's name by default
    #[arg(long, env = "SKEP_NODE_NAME", hide_env_values = true, value_name = "NAME")]
    pub node_name: Option<String>,
    /// What to say of the node, for tenants that are pinned to a label; may be repeated
    #[arg(
        long,
        env = "SKEP_LABEL",
        hide_env_values = true,
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    pub label: Option<Vec<String>>,
    /// The node's certificate (PEM), with what is between it and its root: the port speaks TLS
    #[arg(
        long,
        env = "SKEP_TLS_CERT",
        hide_env_values = true,
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The key of --tls-cert (PEM)
    #[arg(
        long,
        env = "SKEP_TLS_KEY",
        hide_env_values = true,
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
    /// Let in only clients whose certificate these signed (PEM)
    #[arg(long, env = "SKEP_CLIENT_CA", hide_env_values = true, value_name = "FILE")]
    pub client_ca: Option<PathBuf>,
    /// Who signed the other nodes' certificates (PEM); by default --client-ca, or whom the system trusts
    #[arg(long, env = "SKEP_TLS_CA", hide_env_values = true, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The file with an operator's token; it is written unless it, or another such token, is there
    #[arg(long, env = "SKEP_BOOTSTRAP_TOKEN", hide_env_values = true, value_name = "FILE")]
    pub bootstrap_token: Option<PathBuf>,
    /// The OpenID provider whose tokens let in beside the platform's own, as it names itself (`iss`)
    #[arg(long, env = "SKEP_OIDC_ISSUER", hide_env_values = true, value_name = "URL")]
    pub oidc_issuer: Option<String>,
    /// What such a token must be for (`aud`)
    #[arg(long, env = "SKEP_OIDC_AUDIENCE", hide_env_values = true, value_name = "NAME")]
    pub oidc_audience: Option<String>,
    /// Who signed the provider's certificate (PEM); by default whom the system trusts
    #[arg(long, env = "SKEP_OIDC_CA", hide_env_values = true, value_name = "FILE")]
    pub oidc_ca: Option<PathBuf>,
    /// The claim that names the tenant, or a JSON pointer to it; `tenant` by default
    #[arg(long, env = "SKEP_OIDC_TENANT_CLAIM", hide_env_values = true, value_name = "CLAIM")]
    pub oidc_tenant_claim: Option<String>,
    /// What a value of that claim means; without any, the tenant of that name, but never default. May be given again
    #[arg(long, env = "SKEP_OIDC_TENANT", hide_env_values = true, value_name = "VALUE=TENANT")]
    pub oidc_tenant: Option<Vec<String>>,
    /// The claim that names the role, or has a list of which one does, or a JSON pointer to it; `roles` by default
    #[arg(long, env = "SKEP_OIDC_ROLE_CLAIM", hide_env_values = true, value_name = "CLAIM")]
    pub oidc_role_claim: Option<String>,
    /// What a value of that claim means; without any, the role of that name, but never operator. May be given again
    #[arg(long, env = "SKEP_OIDC_ROLE", hide_env_values = true, value_name = "VALUE=ROLE")]
    pub oidc_role: Option<Vec<String>>,
    /// The keys that seal secrets, 64 hex digits a line, the newest first; the same on every node of a store. Made in the data folder where the
    /// store is this node's own
    #[arg(long, env = "SKEP_SECRETS_KEY_FILE", hide_env_values = true, value_name = "FILE")]
    pub secrets_key_file: Option<PathBuf>,
    /// Listen where other machines can reach it even without TLS or tokens
    #[arg(long, env = "SKEP_ALLOW_INSECURE", hide_env_values = true)]
    pub allow_insecure: bool,
    /// How the node's own log is written on stderr; text by default
    #[arg(long, env = "SKEP_LOG_FORMAT", hide_env_values = true, value_enum)]
    pub log_format: Option<LogFormat>,
    /// Share of calls that are traced, 0 to 1; 0.01 by default
    #[arg(long, env = "SKEP_SAMPLE_RATIO", hide_env_values = true, value_parser = ratio, value_name = "RATIO")]
    pub sample_ratio: Option<f64>,
    /// How long an upload may take beside its bytes, for tests that cannot wait
    #[arg(long, hide = true, value_parser = duration)]
    pub upload_timeout: Option<Duration>,
}

impl Serve {
    /// What was typed or stands in the environment, and the file that says the rest.
    #[must_use]
    pub fn layer(self) -> (Option<PathBuf>, Layer) {
        let (config, stores) = self.stores.layer();
        let layer = Layer {
            listen: self.listen,
            admin: self.admin,
            no_admin: self.no_admin,
            roles: self.roles,
            node_name: self.node_name,
            label: self.label,
            log_format: self.log_format,
            sample_ratio: self.sample_ratio,
            tls_cert: self.tls_cert,
            tls_key: self.tls_key,
            client_ca: self.client_ca,
            tls_ca: self.tls_ca,
            bootstrap_token: self.bootstrap_token,
            oidc_issuer: self.oidc_issuer,
            oidc_audience: self.oidc_audience,
            oidc_ca: self.oidc_ca,
            oidc_tenant_claim: self.oidc_tenant_claim,
            oidc_tenant: self.oidc_tenant,
            oidc_role_claim: self.oidc_role_claim,
            oidc_role: self.oidc_role,
            secrets_key_file: self.secrets_key_file,
            allow_insecure: self.allow_insecure,
            ..stores
        };
        (config, layer)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  skep push target/wasm32-wasip2/release/hello_world.wasm --name hello
  skep push hello.py")]
pub struct Push {
    /// The component, as `cargo build --target wasm32-wasip2` writes it; or a Python file, which is built by `skep-py`
    pub file: PathBuf,
    /// The module's name; by default the file's, with `_` as `-`
    #[arg(long)]
    pub name: Option<String>,
    /// What manifests may follow
    #[arg(long, default_value = "latest")]
    pub tag: String,
    #[command(flatten)]
    pub signature: SignedBy,
}

/// Who says that a module is theirs; a tenant with signers takes no other.
#[derive(Debug, Clone, Default, Args)]
pub struct SignedBy {
    /// Sign it with this key, as `skep signer new` makes one
    #[arg(long, value_name = "FILE", env = "SKEP_SIGN_KEY")]
    pub sign_key: Option<PathBuf>,
    /// Its signature, as `skep signer sign` prints one where the key is
    #[arg(long, value_name = "ed25519:…")]
    pub signature: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Where a tenant has signers, it takes modules that one of them signed, and no others:
  skep signer new release.key
  skep tenant set acme --signer ed25519:…
  skep push hello.wasm --sign-key release.key
Or sign where the key is, and push elsewhere:
  skep signer sign release.key hello.wasm
  skep push hello.wasm --signature ed25519:…")]
pub struct Signer {
    #[command(subcommand)]
    pub what: SignerCommand,
}

#[derive(Debug, Subcommand)]
pub enum SignerCommand {
    /// Make a key; its file is secret, what is printed is public
    New {
        /// The file to write: PKCS #8 in PEM, readable by you only
        file: PathBuf,
    },
    /// Print the public key of one
    Show {
        /// Its file
        file: PathBuf,
    },
    /// Print the signature of a module
    Sign {
        /// The key's file
        key: PathBuf,
        /// The component
        module: PathBuf,
        /// The name that it will be pushed under; by default the file's, with `_` as `-`
        #[arg(long)]
        name: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
On a terminal it asks before it changes a running Swarm; elsewhere it goes ahead. What would lose keyed state is refused in
either case, unless --discard-state is given.

Examples:
  skep apply swarm.yaml --dry-run
  render-manifest | skep apply - --yes")]
pub struct Apply {
    /// The manifest; `-` reads stdin
    #[arg(default_value = "swarm.yaml")]
    pub file: PathBuf,
    /// Only show what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before a running Swarm is changed
    #[arg(short, long)]
    pub yes: bool,
    /// Let the keyed state of removed stages go
    #[arg(long)]
    pub discard_state: bool,
    /// Let stages change their number of partitions, while messages flow
    #[arg(long)]
    pub rescale: bool,
    /// Let Bees of a Swarm that is there have what they had not: all that the manifest says, or only `--grant=http:HOST`, `--grant=secret:NAME`
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub grant: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each stage of the flow is a Bee of one module, and the Swarm has the flow's name. A flow that was deployed before is changed as `apply` changes
a Swarm: what is not the same step any more is shown, and refused where its state would be lost. Sources go on where they are.

Examples:
  skep deploy orders.py
  skep deploy 'shop/orders.py:make(days=7)' --yes
  skep deploy orders.py --manifest > swarm.yaml")]
pub struct Deploy {
    /// FILE[:FLOW]: a Python file, and the flow's name in it, `flow` unless given, or a call that makes it
    pub flow: String,
    /// Only print the manifest that would be applied
    #[arg(long)]
    pub manifest: bool,
    /// Do not ask before a running Swarm is changed
    #[arg(short, long)]
    pub yes: bool,
    /// Let the state of steps go that the flow has no more
    #[arg(long)]
    pub discard_state: bool,
    /// Let `import bytewax` mean `skep.dataflow`, for scripts written for Bytewax
    #[arg(long)]
    pub bytewax: bool,
    #[command(flatten)]
    pub signature: SignedBy,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Modules, Swarms, and of each Swarm what is unread, waits or is dead-lettered, keyed state, timers, and how repeated calls are
recognised: each Swarm as at one moment. Nothing stops but, on Redis, each Swarm while it is read.

Examples:
  skep backup /backups/skep-$(date +%F)
  skep backup - | ssh other 'cat > skep.backup'")]
pub struct Backup {
    /// Where to; `-` writes to stdout. It appears once it is whole, in the place of a former one
    pub file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The node's catalog must be empty. A file that is not whole and sound is refused, and nothing is written. Interrupted, it is given
again: no Swarm serves before all is there.

Examples:
  skep restore /backups/skep-2026-11-21
  skep restore --node http://new:4020 - < skep.backup")]
pub struct Restore {
    /// What `skep backup` wrote; `-` reads stdin
    pub file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A paused stage keeps what is sent to it in its inbox; doors refuse when that is full. A Swarm that is paused as a whole also refuses
requests at once, for nobody would answer them; what is submitted is kept. Timers fire when it goes on.

Examples:
  skep pause orders/bill
  skep pause orders
  skep pause orders --drain")]
pub struct Pause {
    /// SWARM, or SWARM/BEE for one stage
    #[arg(value_name = "SWARM[/BEE]")]
    pub what: String,
    /// Close the doors first and let it work off all that it has
    #[arg(long)]
    pub drain: bool,
    /// How long to let it drain; after that it drains on, with its doors closed
    #[arg(long, value_parser = duration, default_value = "60s", requires = "drain")]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct Resume {
    /// SWARM for all of it, or SWARM/BEE for one stage
    #[arg(value_name = "SWARM[/BEE]")]
    pub what: String,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("number").required(true).multiple(true))]
pub struct Scale {
    /// SWARM/BEE
    #[arg(value_name = "SWARM/BEE")]
    pub stage: String,
    /// How many partitions it has, and so how many batches of it run at once; keys move with their order and state
    #[arg(long, value_name = "N", group = "number")]
    pub partitions: Option<u16>,
    /// How many batches run at once for requests that need no durability
    #[arg(long, value_name = "N", group = "number")]
    pub concurrency: Option<u16>,
    /// Only show what would change
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A response that is text is printed with a newline at its end; --raw prints its very bytes.

Examples:
  skep request hello-world '{\"name\": \"Bee\"}'
  skep request thumbnail --file photo.jpg --raw > small.jpg
  skep request order - --idempotency-key order-17 < order.json")]
pub struct Request {
    /// What the Swarm is called by: the `gateway` of its manifest
    pub subject: String,
    /// What to send; `-` reads stdin
    pub payload: Option<String>,
    /// Send a file's content; `-` reads stdin
    #[arg(short, long, conflicts_with = "payload", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The message's key, for stages with `key: message`
    #[arg(long)]
    pub key: Option<String>,
    /// A header of the message; may be repeated
    #[arg(long = "header", value_parser = header, value_name = "NAME=VALUE")]
    pub headers: Vec<(String, String)>,
    /// How long to wait: `500ms`, `30s`, `2m`
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
    /// A repeated call with the same key takes effect once and gets the same response
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Show the stages passed and their times
    #[arg(long)]
    pub trace: bool,
    /// Print the response's very bytes, without a newline at the end
    #[arg(long, conflicts_with = "trace")]
    pub raw: bool,
    /// Print parts of the response as the Bee makes them
    #[arg(long, conflicts_with_all = ["idempotency_key", "trace"])]
    pub stream: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each line of a file or of stdin is a message, also an empty one. When the connection breaks, the messages that are not durable
yet are sent again, and take effect once.

Examples:
  skep submit hello-world '{\"name\": \"a\"}' '{\"name\": \"b\"}'
  skep submit orders --file orders.ndjson --key-json /customer --skip-empty
  tail -f events.log | skep submit events -")]
pub struct Submit {
    /// What the Swarm is called by: the `gateway` of its manifest
    pub subject: String,
    /// The messages; `-` reads stdin, a line a message
    #[arg(required_unless_present = "file")]
    pub payloads: Vec<String>,
    /// A file with a line a message, empty lines included; `-` reads stdin
    #[arg(short, long, conflicts_with = "payloads", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The key of every message
    #[arg(long, conflicts_with = "key_json")]
    pub key: Option<String>,
    /// Take each message's key from its JSON, by pointer
    #[arg(long, value_name = "/POINTER", value_parser = pointer)]
    pub key_json: Option<String>,
    /// A header of every message; may be repeated
    #[arg(long = "header", value_parser = header, value_name = "NAME=VALUE")]
    pub headers: Vec<(String, String)>,
    /// Send no message for an empty line
    #[arg(long)]
    pub skip_empty: bool,
    /// How long to try again, without a single message getting through, when the node cannot be reached
    #[arg(long, value_parser = duration, default_value = "60s", value_name = "TIME")]
    pub retry_for: Duration,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// The Swarm's name
    pub swarm: String,
    /// Only this stage
    pub stage: Option<String>,
    /// Go on with new lines as they come
    #[arg(short, long)]
    pub follow: bool,
    /// The last so many lines; 0: all that are kept
    #[arg(short = 'n', long, default_value_t = 0)]
    pub tail: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  skep dlq orders
  skep dlq orders list --reason trap --since 2h
  skep dlq orders show 17
  skep dlq orders try 17 --module orders:v2
  skep dlq orders redrive 17 18
  skep dlq orders redrive --all --stage count
  skep dlq orders export > letters.jsonl
  skep dlq orders discard --all --until 168h")]
pub struct Dlq {
    /// The Swarm's name
    pub swarm: String,
    /// What to do; lists them by default
    #[command(subcommand)]
    pub what: Option<DlqCommand>,
}

#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead letters (the default)
    List {
        #[command(flatten)]
        which: Which,
        /// Only those after this id
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// At most so many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one with its payload, cause and what the Bee wrote to stderr
    Show {
        /// Its id, as the list has it
        id: u64,
    },
    /// Run the Bee on one and show what it would do; nothing of that happens
    Try {
        /// Its id, as the list has it
        id: u64,
        /// Another version: NAME, NAME:TAG or NAME@sha256:…; the one that the stage runs by default
        #[arg(long)]
        module: Option<String>,
    },
    /// Put dead letters back into their stages' inboxes, each once
    Redrive(Letters),
    /// Write them as JSON, one a line
    Export {
        #[command(flatten)]
        which: Which,
    },
    /// Drop dead letters for good
    Discard(Letters),
}

/// Which dead letters; all of these must fit.
#[derive(Debug, Clone, Default, Args)]
pub struct Which {
    /// Only this stage
    #[arg(long)]
    pub stage: Option<String>,
    /// Only this cause: `fail`, `reject`, `trap`, `cpu-time`…
    #[arg(long)]
    pub reason: Option<String>,
    /// Only this key
    #[arg(long)]
    pub key: Option<String>,
    /// Only of this module: a digest, or how it begins
    #[arg(long, value_name = "DIGEST")]
    pub module: Option<String>,
    /// Only those set aside within this time
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub since: Option<Duration>,
    /// Only those set aside longer ago than this time
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub until: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct Letters {
    /// Their ids
    #[arg(required_unless_present = "all")]
    pub ids: Vec<u64>,
    /// All of the Swarm's that fit the other options
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
    #[command(flatten)]
    pub which: Which,
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
An export is one line of JSON a key: {\"key\": K, \"values\": {NAME: {\"json\": …} or {\"text\": …} or {\"base64\": …}}}. An import sets each
key as a whole, of a stage that is paused; to import the same file again is safe.

Examples:
  skep state orders bill customer-7
  skep state list orders/bill --prefix customer-
  skep state export orders/bill > bill.ndjson
  skep pause orders/bill && skep state import orders/bill bill.ndjson && skep resume orders/bill"
)]
pub struct State {
    #[command(subcommand)]
    pub what: Option<StateCommand>,
    #[command(flatten)]
    pub one: Option<StateOf>,
}

#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Show one key, as `skep state SWARM STAGE KEY` does
    Get(StateOf),
    /// List keys with their values
    List(StateList),
    /// Write all keys, or some, to a file that `import` takes
    Export(StateExport),
    /// Set the keys of a file in a stage that is paused
    Import(StateImport),
}

#[derive(Debug, Args)]
pub struct StateOf {
    /// The Swarm's name
    pub swarm: String,
    /// The stage that keeps it
    pub stage: String,
    /// The key, as the stage's `key` takes it from a message
    pub key: String,
}

#[derive(Debug, Args)]
pub struct StateList {
    /// SWARM/BEE
    #[arg(value_name = "SWARM/BEE", value_parser = stage_of)]
    pub what: StageOf,
    /// Only keys that begin so
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// At most so many keys
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,
    /// Where an earlier list ended, as it says itself
    #[arg(long, default_value = "")]
    pub after: String,
}

#[derive(Debug, Args)]
pub struct StateExport {
    /// SWARM/BEE
    #[arg(value_name = "SWARM/BEE", value_parser = stage_of)]
    pub what: StageOf,
    /// Only keys that begin so
    #[arg(long, default_value = "", conflicts_with = "key")]
    pub prefix: String,
    /// Only this key
    #[arg(long)]
    pub key: Option<String>,
    /// The file to write, once it is whole; `-` is stdout
    #[arg(long, default_value = "-")]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct StateImport {
    /// SWARM/BEE
    #[arg(value_name = "SWARM/BEE", value_parser = stage_of)]
    pub what: StageOf,
    /// What `skep state export` wrote; `-` is stdin
    pub file: PathBuf,
}

/// A stage of a Swarm, as one word.
#[derive(Debug, Clone)]
pub struct StageOf {
    pub swarm: String,
    pub stage: String,
}

fn stage_of(text: &str) -> Result<StageOf, String> {
    let split = text
        .split_once('/')
        .filter(|(swarm, stage)| !swarm.is_empty() && !stage.is_empty());
    let (swarm, stage) = split.ok_or("write SWARM/BEE")?;
    Ok(StageOf {
        swarm: swarm.to_owned(),
        stage: stage.to_owned(),
    })
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  skep delete-module hello:v1
  skep delete-module hello")]
pub struct DeleteModule {
    /// NAME for all of it, NAME:TAG for one tag
    #[arg(value_name = "NAME[:TAG]")]
    pub name: String,
    /// Only this tag
    #[arg(long)]
    pub tag: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A Swarm takes no input while it drains. One that does not drain in time, or that has dead letters, keyed state or timers, is not
deleted and serves on, unless --discard is given.")]
pub struct Delete {
    /// The Swarm's name
    pub swarm: String,
    /// How long to let it drain
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
    /// Delete it with all that it has: messages, dead letters, keyed state and timers
    #[arg(long)]
    pub discard: bool,
}

#[derive(Debug, Args)]
pub struct Up {
    /// The folder with swarm.yaml and the Bees' crates and Python files
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Where the embedded node listens
    #[arg(long, default_value = "127.0.0.1:4020", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Build and apply once, do not watch; the node given by --node must run
    #[arg(long)]
    pub once: bool,
    /// Let the keyed state of stages go that an edit of the manifest removes
    #[arg(long)]
    pub discard_state: bool,
    /// Sign what is pushed with this key
    #[arg(long, value_name = "FILE", env = "SKEP_SIGN_KEY")]
    pub sign_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct New {
    /// Names package, module, Swarm and subject
    pub name: String,
    /// The folder to make; by default the name
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each line is a message. What the Bee publishes and responds is printed, a line each, in the order of the input; what fails is told on
stderr with its line, and the exit code is 1. The very component runs, with the limits of a stage; its state lasts while the filter
runs, timers do not fire.

Examples:
  skep filter hello.wasm --bee hello < lines.txt > out.txt
  skep filter hello.py --key-json /user -o json < events.ndjson
  tail -f access.log | skep filter parse.wasm")]
pub struct Filter {
    /// The component, or a Python file, which is built by `skep-py`
    pub module: PathBuf,
    /// Which of its Bees, where it has several
    #[arg(long, value_name = "NAME")]
    pub bee: Option<String>,
    /// The key of every message
    #[arg(long, conflicts_with = "key_json")]
    pub key: Option<String>,
    /// Take each message's key from its JSON, by pointer
    #[arg(long, value_name = "/POINTER", value_parser = pointer)]
    pub key_json: Option<String>,
    /// A value of the stage's `config:`; may be repeated
    #[arg(long, value_parser = header, value_name = "NAME=VALUE")]
    pub config: Vec<(String, String)>,
    /// A secret that the Bee may read, its value from a file; may be repeated
    #[arg(long, value_parser = secret_file, value_name = "NAME=FILE")]
    pub secret: Vec<(SecretName, PathBuf)>,
    /// A model that the Bee may call, from its file; may be repeated
    #[arg(long, value_parser = model_file, value_name = "NAME=FILE.onnx")]
    pub model: Vec<(ModelRef, PathBuf)>,
    /// Each line is a message as JSON: `payload` or `hex`, and `key`, `headers`, `accepted_ms`, `attempt`
    #[arg(long)]
    pub messages: bool,
    /// Messages of one call of the Bee, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: Option<u32>,
    /// A new instance for each batch, as stages have it by default, instead of one that is kept
    #[arg(long)]
    pub fresh: bool,
    /// How long one call may take
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// Neither progress nor what the Bee logs
    #[arg(short, long)]
    pub quiet: bool,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("a number from 0 to 1".to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

fn secret_file(text: &str) -> Result<(SecretName, PathBuf), String> {
    let (name, file) = header(text).map_err(|_| "write NAME=FILE".to_owned())?;
    let name = name.parse().map_err(|e| format!("{e}"))?;
    Ok((name, file.into()))
}

fn model_file(text: &str) -> Result<(ModelRef, PathBuf), String> {
    let (name, file) = header(text).map_err(|_| "write NAME=FILE.onnx".to_owned())?;
    let name = name.parse().map_err(|e| format!("{e}"))?;
    Ok((name, file.into()))
}

fn pointer(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("a JSON pointer (RFC 6901) starts with `/`, like /customer/id".to_owned())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: Option<u64> = text[..end].parse().ok();
    let unit_ms = match &text[end..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    match number.and_then(|n| n.checked_mul(unit_ms)) {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err("write `500ms`, `30s`, `2m` or `1h`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_read_as_the_readme_writes_them() {
        for line in [
            "skep serve --data d",
            "skep serve --data d --backend redis://h:6379/1 --gate waitaof:1 --artifacts s3://bucket/p --roles gateway,worker",
            "skep doctor --backend redis://h --gate wait:1 -o json",
            "skep serve --config skep.toml --node-name a --no-admin",
            "skep push hello.wasm --name hello --tag v1",
            "skep apply swarm.yaml --dry-run",
            "skep apply --grant --grant=http:api.example.com swarm.yaml",
            "skep apply",
            "skep request hello-world {} --header a=b --timeout 500ms --trace",
            "skep submit hello-world --file lines.txt",
            "skep submit hello-world a b c -o json",
            "skep logs s stage -f --tail 3",
            "skep audit list --since 24h --tenant acme -f",
            "skep audit verify --heads heads.json",
            "skep dlq s",
            "skep dlq s list --stage a",
            "skep dlq s show 7",
            "skep dlq s discard 7 8",
            "skep dlq s discard --all",
            "skep dlq s discard --all --until 24h --reason reject",
            "skep dlq s try 7 --module b:v2",
            "skep dlq s redrive 7 8",
            "skep dlq s redrive --all --stage a --key k --module ab12 --since 2h",
            "skep dlq s export --stage a",
            "skep state s stage key",
            "skep state get s stage key",
            "skep state list s/b --prefix k --limit 5 --after 0+k",
            "skep state export s/b --key k --file /tmp/x",
            "skep state import s/b -",
            "skep delete s --timeout 2m --discard",
            "skep pause s",
            "skep pause s/b",
            "skep pause s --drain --timeout 2m",
            "skep resume s/b",
            "skep --node http://h:1 swarms",
            "skep up samples/hello-world",
            "skep new bee --path /tmp/x",
            "skep completions bash",
            "skep apply - --discard-state --yes",
            "skep check -",
            "skep request s --file - --raw",
            "skep submit s - --skip-empty --retry-for 5s",
            "skep delete-module hello:v1",
            "skep compile-module",
            "skep run-tenant 1",
            "skep tenant create a --isolation process",
            "skep tenant set a --isolation shared",
            "skep push hello.py",
            "skep filter hello.wasm --bee hello --key-json /user --config a=b",
            "skep filter hello.py --messages --batch 1 --fresh --timeout 5s -o json",
            "skep backup all.skep",
            "skep backup -",
            "skep restore - -o json",
            "skep serve --data d --listen 0.0.0.0:4020 --tls-cert a --tls-key b --client-ca c --bootstrap-token t",
            "skep serve --data d --oidc-issuer https://id --oidc-audience a --oidc-role ops=operator --oidc-role dev=deploy --oidc-ca f",
            "skep login https://h:1 --ca ca.pem",
            "skep whoami",
            "skep logout",
            "skep tenant create acme",
            "skep tenant create acme --memory 256MiB --cpu 0.5 --weight 3 --rate 1000/s --concurrency 40 --storage 1GiB --log-rate 100/s",
            "skep tenant set acme --rate none --state 1GiB --modules 200MiB --in-flight 16MiB --instances 8",
            "skep tenant delete acme --purge",
            "skep usage --tenant acme --since 30d -o json",
            "skep token create --tenant acme --role deploy --ttl 30d --name ci",
            "skep token rotate 0123456789ab --grace 1h",
            "skep token bootstrap",
            "skep certs dev certs --host bees.example.org",
        ] {
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn everything_that_may_be_typed_is_explained() {
        fn look(command: &clap::Command, path: &str, mute: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            if command.get_about().is_none() {
                mute.push(path.clone());
            }
            for arg in command.get_arguments().filter(|a| !a.is_hide_set()) {
                if arg.get_help().is_none() {
                    mute.push(format!("{path} {}", arg.get_id()));
                }
            }
            command.get_subcommands().for_each(|inner| look(inner, &path, mute));
        }
        let mut command = Cli::command();
        command.build();
        let mut mute = Vec::new();
        look(&command, "", &mut mute);
        assert!(mute.is_empty(), "no help text: {mute:#?}");
        for main in [
            "serve",
            "doctor",
            "push",
            "apply",
            "deploy",
            "request",
            "submit",
            "dlq",
            "delete-module",
            "filter",
        ] {
            let help = command.find_subcommand(main).unwrap().get_after_help();
            assert!(help.is_some_and(|h| h.to_string().contains("Example")), "{main}");
        }
    }

    #[test]
    fn what_is_not_meant_is_refused_as_usage() {
        for line in [
            "skep",
            "skep serve --data d --sample-ratio 2",
            "skep request",
            "skep request s --header nope",
            "skep request s --timeout 30",
            "skep submit s",
            "skep submit s a --file f",
            "skep submit s a --key-json id",
            "skep dlq s discard",
            "skep dlq s redrive",
            "skep dlq s redrive 7 --all",
            "skep dlq s try",
            "skep pause s --timeout 2m",
            "skep nonsense",
            "skep tenant create acme --rate 1000",
            "skep tenant create acme --memory 0MiB",
            "skep tenant set acme --cpu -1",
            "skep tenant set acme --weight 3x",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
