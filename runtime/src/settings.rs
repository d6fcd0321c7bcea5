//! What a node is told: by flag, environment variable, file or default, in this order. Each flag is a key of the file.
//!
//! A backend's URL may hold a password. It is kept in types that do not show it, and no message repeats it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use skep_inference::backend::Choice;
use skep_inference::limits::THREADS_MAX;
use skep_model::limits::{
    CONFIG_FILE_BYTES_MAX, GATE_TIMEOUT_MS, MODULES_BYTES_DEFAULT, NODE_LABELS_MAX, NODE_NAME_BYTES_MAX, REPLICAS_MAX,
    UPLOAD_MS,
};
use skep_model::manifest::units::size_bytes;
use skep_model::name::NodeLabel;
use skep_topic::redis::{Gate, RedisOptions};

use crate::node::{ModelSettings, NodeSettings};
use crate::oidc::OidcSettings;
use crate::tls::TlsFiles;
use crate::wording::instead;

mod file;

pub const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4020);
pub const ADMIN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4021);
pub const SAMPLE_RATIO_DEFAULT: f64 = 0.01;

/// Where topics are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BackendSettings {
    /// On this node's disk.
    #[default]
    Embedded,
    Redis(RedisSettings),
}

/// A Redis and what an acknowledgement waits for there.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// With its password: for the connection and nobody else.
    pub url: String,
    pub gate: Gate,
}

impl RedisSettings {
    /// As the backend takes it.
    #[must_use]
    pub fn options(&self, node: [u8; 8]) -> RedisOptions {
        let mut options = RedisOptions::new(self.url.clone(), node);
        options.gate = self.gate;
        options
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings")
            .field("url", &without_password(&self.url))
            .field("gate", &self.gate)
            .finish()
    }
}

impl fmt::Display for BackendSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Redis(redis) => f.write_str(&without_password(&redis.url)),
        }
    }
}

/// Where modules are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ArtifactSettings {
    /// In the data folder.
    #[default]
    Own,
    /// In a folder, which nodes may share.
    Folder(PathBuf),
    S3 {
        bucket: String,
        /// Without a slash at either end; empty for none.
        prefix: String,
    },
}

impl fmt::Display for ArtifactSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("the data folder"),
            Self::Folder(dir) => write!(f, "file://{}", dir.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// What a node does. At least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Takes calls.
    pub gateway: bool,
    /// Runs Bees.
    pub worker: bool,
    /// Takes uploads, applies and questions.
    pub beekeeper: bool,
}

impl Roles {
    pub const ALL: Self = Self {
        gateway: true,
        worker: true,
        beekeeper: true,
    };
}

impl Default for Roles {
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.gateway, "gateway"),
            (self.worker, "worker"),
            (self.beekeeper, "beekeeper"),
        ];
        let names: Vec<&str> = all.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        f.write_str(&names.join(","))
    }
}

/// How the node's own log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    /// A JSON line an event
    Json,
}

/// What runs models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Inference {
    /// ONNX Runtime, if its library is named; else tract
    #[default]
    Auto,
    /// In skep itself
    Tract,
    /// The library that --onnxruntime names
    Onnxruntime,
}

/// What models, or modules, may take at least, and at most, for a slip to be told.
const MEMORY_MIN: u64 = 1 << 20;
const MEMORY_MAX: u64 = 1 << 40;

/// A word that may be secret: it is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl FromStr for Hidden {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// What one place says: flags and environment, or the file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Layer {
    pub data: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    #[serde(default)]
    pub no_admin: bool,
    pub log_format: Option<LogFormat>,
    pub sample_ratio: Option<f64>,
    pub backend: Option<Hidden>,
    pub gate: Option<String>,
    pub artifacts: Option<Hidden>,
    pub roles: Option<Vec<String>>,
    pub node_name: Option<String>,
    pub label: Option<Vec<String>>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub client_ca: Option<PathBuf>,
    pub tls_ca: Option<PathBuf>,
    pub bootstrap_token: Option<PathBuf>,
    pub oidc_issuer: Option<String>,
    pub oidc_audience: Option<String>,
    pub oidc_ca: Option<PathBuf>,
    pub oidc_tenant_claim: Option<String>,
    pub oidc_tenant: Option<Vec<String>>,
    pub oidc_role_claim: Option<String>,
    pub oidc_role: Option<Vec<String>>,
    pub secrets_key_file: Option<PathBuf>,
    #[serde(default)]
    pub allow_insecure: bool,
    pub inference: Option<Inference>,
    pub onnxruntime: Option<PathBuf>,
    pub model_threads: Option<usize>,
    pub model_memory: Option<String>,
    pub module_memory: Option<String>,
}

/// The keys of [`Layer`]; a test compares.
const KEYS: [&str; 31] = [
    "data",
    "listen",
    "admin",
    "no-admin",
    "log-format",
    "sample-ratio",
    "backend",
    "gate",
    "artifacts",
    "roles",
    "node-name",
    "label",
    "tls-cert",
    "tls-key",
    "client-ca",
    "tls-ca",
    "bootstrap-token",
    "oidc-issuer",
    "oidc-audience",
    "oidc-ca",
    "oidc-tenant-claim",
    "oidc-tenant",
    "oidc-role-claim",
    "oidc-role",
    "secrets-key-file",
    "allow-insecure",
    "inference",
    "onnxruntime",
    "model-threads",
    "model-memory",
    "module-memory",
];

impl Layer {
    /// What `self` leaves open, `below` says.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            data: self.data.or(below.data),
            listen: self.listen.or(below.listen),
            // An address here is more than "none" there.
            no_admin: self.no_admin || (self.admin.is_none() && below.no_admin),
            admin: self.admin.or(below.admin),
            log_format: self.log_format.or(below.log_format),
            sample_ratio: self.sample_ratio.or(below.sample_ratio),
            // A gate belongs to the backend that it was written beside.
            gate: match (self.gate, &self.backend) {
                (Some(gate), _) => Some(gate),
                (None, Some(Hidden(backend))) if backend == EMBEDDED => None,
                (None, _) => below.gate,
            },
            backend: self.backend.or(below.backend),
            artifacts: self.artifacts.or(below.artifacts),
            roles: self.roles.or(below.roles),
            node_name: self.node_name.or(below.node_name),
            label: self.label.or(below.label),
            tls_cert: self.tls_cert.or(below.tls_cert),
            tls_key: self.tls_key.or(below.tls_key),
            client_ca: self.client_ca.or(below.client_ca),
            tls_ca: self.tls_ca.or(below.tls_ca),
            bootstrap_token: self.bootstrap_token.or(below.bootstrap_token),
            oidc_issuer: self.oidc_issuer.or(below.oidc_issuer),
            oidc_audience: self.oidc_audience.or(below.oidc_audience),
            oidc_ca: self.oidc_ca.or(below.oidc_ca),
            oidc_tenant_claim: self.oidc_tenant_claim.or(below.oidc_tenant_claim),
            oidc_tenant: self.oidc_tenant.or(below.oidc_tenant),
            oidc_role_claim: self.oidc_role_claim.or(below.oidc_role_claim),
            oidc_role: self.oidc_role.or(below.oidc_role),
            secrets_key_file: self.secrets_key_file.or(below.secrets_key_file),
            allow_insecure: self.allow_insecure || below.allow_insecure,
            inference: self.inference.or(below.inference),
            onnxruntime: self.onnxruntime.or(below.onnxruntime),
            model_threads: self.model_threads.or(below.model_threads),
            model_memory: self.model_memory.or(below.model_memory),
            module_memory: self.module_memory.or(below.module_memory),
        }
    }
}

/// A setting that cannot be, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Wrong {
    pub what: String,
    pub remedy: String,
}

fn wrong<T>(what: impl Into<String>, remedy: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        what: what.into(),
        remedy: remedy.into(),
    })
}

/// All settings of `skep serve`, read.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `None` only where a command can do without.
    pub data: Option<PathBuf>,
    pub listen: SocketAddr,
    pub admin: Option<SocketAddr>,
    pub log_format: LogFormat,
    pub sample_ratio: f64,
    pub backend: BackendSettings,
    pub artifacts: ArtifactSettings,
    pub roles: Roles,
    pub node_name: String,
    pub labels: BTreeSet<NodeLabel>,
    pub tls: Option<TlsFiles>,
    pub bootstrap_token: Option<PathBuf>,
    /// Whose tokens let in beside the platform's own.
    pub oidc: Option<OidcSettings>,
    pub secrets_key_file: Option<PathBuf>,
    pub allow_insecure: bool,
    pub models: ModelSettings,
    /// What modules in memory may take together.
    pub module_memory_bytes: u64,
    /// What is allowed and not good.
    pub warnings: Vec<String>,
}

/// Puts flags (with what the environment says) over the file's settings and those over the defaults.
///
/// # Errors
/// The first setting that cannot be.
pub fn resolve(flags: Layer, file: Option<&Path>) -> Result<Settings, Wrong> {
    let mut warnings = Vec::new();
    let below = match file {
        Some(path) => file::read(path, &mut warnings)?,
        None => Layer::default(),
    };
    let mut layer = flags.over(below);
    let oidc = oidc(&mut layer)?;
    let sample_ratio = layer.sample_ratio.unwrap_or(SAMPLE_RATIO_DEFAULT);
    if !(0.0..=1.0).contains(&sample_ratio) {
        return wrong("`sample-ratio` is not from 0 to 1", "give a share, such as 0.01");
    }
    let listen = layer.listen.unwrap_or(LISTEN_DEFAULT);
    let backend = backend(layer.backend.as_ref(), layer.gate.as_deref())?;
    let artifacts = match &layer.artifacts {
        Some(Hidden(text)) => artifacts(text)?,
        None => ArtifactSettings::Own,
    };
    if matches!(backend, BackendSettings::Redis(_)) && artifacts == ArtifactSettings::Own {
        warnings.push(
            "modules are kept in this node's data folder: other nodes on this Redis cannot run what is pushed here; \
             give all of them the same --artifacts"
                .to_owned(),
        );
    }
    Ok(Settings {
        data: layer.data,
        listen,
        admin: (!layer.no_admin).then(|| layer.admin.unwrap_or(ADMIN_DEFAULT)),
        log_format: layer.log_format.unwrap_or_default(),
        sample_ratio,
        backend,
        artifacts,
        roles: layer.roles.as_deref().map_or(Ok(Roles::ALL), roles)?,
        node_name: match layer.node_name {
            Some(name) => node_name(name)?,
            None => default_name(listen),
        },
        tls: match (layer.tls_cert, layer.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles {
                cert,
                key,
                client_ca: layer.client_ca,
                ca: layer.tls_ca,
            }),
            (None, None) if layer.client_ca.is_none() && layer.tls_ca.is_none() => None,
            _ => {
                return wrong(
                    "TLS is given by halves",
                    "give both `tls-cert` and `tls-key`; `client-ca` and `tls-ca` go with them",
                );
            }
        },
        labels: labels(&layer.label.unwrap_or_default())?,
        bootstrap_token: layer.bootstrap_token,
        oidc,
        secrets_key_file: layer.secrets_key_file,
        allow_insecure: layer.allow_insecure,
        models: models(
            layer.inference,
            layer.onnxruntime,
            layer.model_threads,
            layer.model_memory.as_deref(),
        )?,
        module_memory_bytes: memory_of("module-memory", layer.module_memory.as_deref(), MODULES_BYTES_DEFAULT)?,
        warnings,
    })
}

impl Settings {
    /// As the node takes them.
    ///
    /// # Errors
    /// No data folder was named, or this program's own file is not found.
    pub fn node(self, upload: Option<Duration>) -> anyhow::Result<NodeSettings> {
        let Some(data) = self.data else {
            return Err(Wrong {
                what: "no data folder is named".to_owned(),
                remedy: "give --data DIR, set SKEP_DATA, or write `data` into the file".to_owned(),
            }
            .into());
        };
        Ok(NodeSettings {
            listen: self.listen,
            admin: self.admin,
            sample_ratio: self.sample_ratio,
            upload: upload.unwrap_or(Duration::from_millis(UPLOAD_MS)),
            backend: self.backend,
            artifacts: self.artifacts,
            roles: self.roles,
            node_name: self.node_name,
            labels: self.labels,
            tls: self.tls,
            bootstrap_token: self.bootstrap_token,
            oidc: self.oidc,
            secrets_key_file: self.secrets_key_file,
            allow_insecure: self.allow_insecure,
            models: self.models,
            module_memory_bytes: self.module_memory_bytes,
            ..NodeSettings::local(data)?
        })
    }
}

/// A provider, or none.
fn oidc(layer: &mut Layer) -> Result<Option<OidcSettings>, Wrong> {
    let settings = OidcSettings {
        issuer: layer.oidc_issuer.take().unwrap_or_default(),
        audience: layer.oidc_audience.take().unwrap_or_default(),
        ca: layer.oidc_ca.take(),
        tenant_claim: layer.oidc_tenant_claim.take(),
        role_claim: layer.oidc_role_claim.take(),
        tenants: layer.oidc_tenant.take().unwrap_or_default(),
        roles: layer.oidc_role.take().unwrap_or_default(),
    };
    if settings == OidcSettings::default() {
        return Ok(None);
    }
    if settings.issuer.is_empty() || settings.audience.is_empty() {
        return wrong(
            "the OpenID provider is given by halves",
            "give both `oidc-issuer` and `oidc-audience`; the other `oidc-…` go with them",
        );
    }
    if let Err(why) = settings.read() {
        return wrong(why, "see `skep serve --help`, or docs/tenants.md");
    }
    Ok(Some(settings))
}

fn models(
    inference: Option<Inference>,
    library: Option<PathBuf>,
    threads: Option<usize>,
    memory: Option<&str>,
) -> Result<ModelSettings, Wrong> {
    let default = ModelSettings::default();
    let backend = match inference.unwrap_or_default() {
        Inference::Auto => Choice::Auto,
        Inference::Tract => Choice::Tract,
        Inference::Onnxruntime => Choice::OnnxRuntime,
    };
    match (backend, &library) {
        (Choice::Tract, Some(path)) => {
            return wrong(
                format!("`inference` is tract, and `onnxruntime` names {}", path.display()),
                "leave one out",
            );
        }
        (Choice::OnnxRuntime, None) => {
            return wrong(
                "`inference` is onnxruntime, and no library is named",
                "name it with `onnxruntime`: the file libonnxruntime.so.*, as the Python package onnxruntime carries it",
            );
        }
        _ => {}
    }
    // The process that looks at uploads works elsewhere.
    let library = match library.map(std::path::absolute).transpose() {
        Ok(library) => library,
        Err(e) => return wrong(format!("`onnxruntime`: {e}"), "give the file's whole path"),
    };
    let threads = threads.unwrap_or(default.threads);
    if threads > THREADS_MAX {
        return wrong(
            format!("`model-threads` is {threads}"),
            &*format!("give at most {THREADS_MAX}, or 0 for half of the cores"),
        );
    }
    let memory_bytes = memory_of("model-memory", memory, default.memory_bytes)?;
    Ok(ModelSettings {
        backend,
        library,
        threads,
        memory_bytes,
    })
}

fn memory_of(key: &str, text: Option<&str>, default: u64) -> Result<u64, Wrong> {
    let Some(text) = text else { return Ok(default) };
    match size_bytes(text) {
        Some(bytes) if (MEMORY_MIN..=MEMORY_MAX).contains(&bytes) => Ok(bytes),
        _ => wrong(
            format!("`{key}` is `{text}`"),
            "give a size with its unit, from 1MiB to 1024GiB: `512MiB`, `2GiB`",
        ),
    }
}

const EMBEDDED: &str = "embedded";

/// A URL without its password, for messages.
#[must_use]
pub fn without_password(url: &str) -> String {
    RedisOptions::new(url, [0; 8]).shown()
}

/// Whether a URL holds a password, which everybody on the machine sees when it is typed.
#[must_use]
pub fn has_password(url: &str) -> bool {
    without_password(url) != url
}

fn backend(url: Option<&Hidden>, gate: Option<&str>) -> Result<BackendSettings, Wrong> {
    let how = "write `embedded`, or redis://[user:password@]host:port/[db] (rediss:// for TLS; redis+cluster:// for a Redis Cluster; \
               several addresses with commas between them)";
    let schemes = ["redis://", "rediss://", "redis+cluster://", "rediss+cluster://"];
    let url = url.map_or(EMBEDDED, |Hidden(url)| url.trim());
    let gate = gate.map_or(Ok(Gate::None), parse_gate)?;
    if url == EMBEDDED {
        if gate != Gate::None {
            return wrong(
                "a gate is for Redis, and the backend is embedded",
                "leave --gate out, or give --backend redis://…",
            );
        }
        return Ok(BackendSettings::Embedded);
    }
    let shown = without_password(url);
    let Some(rest) = schemes.iter().find_map(|s| shown.strip_prefix(s)) else {
        return wrong(format!("`{shown}` is no backend"), how);
    };
    let host = rest.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || host.starts_with(['/', ':', '?']) {
        return wrong(format!("`{shown}` names no host"), how);
    }
    Ok(BackendSettings::Redis(RedisSettings {
        url: url.to_owned(),
        gate,
    }))
}

/// `none`, `wait:N` or `waitaof:N`, N being replicas.
fn parse_gate(text: &str) -> Result<Gate, Wrong> {
    let replicas = |n: &str| n.parse::<u32>().ok().filter(|n| *n <= REPLICAS_MAX);
    let parsed = match text.split_once(':') {
        None if text == "none" => Some(Gate::None),
        Some(("wait", n)) => replicas(n).filter(|n| *n > 0).map(|replicas| Gate::Wait {
            replicas,
            timeout_ms: GATE_TIMEOUT_MS,
        }),
        Some(("waitaof", n)) => replicas(n).map(|replicas| Gate::WaitAof {
            local: 1,
            replicas,
            timeout_ms: GATE_TIMEOUT_MS,
        }),
        _ => None,
    };
    match parsed {
        Some(gate) => Ok(gate),
        None => wrong(
            format!("`{text}` is no gate"),
            "write `none`, `wait:N` (N replicas have it, at least 1) or `waitaof:N` (on this server's disk and on N replicas', from 0)",
        ),
    }
}

fn artifacts(text: &str) -> Result<ArtifactSettings, Wrong> {
    let how = "write s3://bucket/prefix, file:///folder, or a folder";
    let shown = without_password(text);
    if let Some(path) = text.strip_prefix("file://") {
        if !path.starts_with('/') {
            return wrong(
                format!("`{shown}` names no folder of this machine"),
                "write file:///folder",
            );
        }
        return Ok(ArtifactSettings::Folder(PathBuf::from(path)));
    }
    if let Some(rest) = text.strip_prefix("s3://") {
        if rest.contains('@') {
            return wrong(
                "the artifacts' URL holds credentials",
                "write s3://bucket/prefix, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            );
        }
        if rest.contains(['?', '#']) {
            return wrong(
                format!("`{shown}` has options"),
                "set endpoint and region by AWS_ENDPOINT_URL and AWS_REGION",
            );
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
        let fits = (3..=63).contains(&bucket.len())
            && bucket
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        if !fits {
            return wrong(
                format!("`{shown}`: `{bucket}` is no bucket's name"),
                "3 to 63 lower-case letters, digits, `-` and `.`",
            );
        }
        return Ok(ArtifactSettings::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
        });
    }
    if text.contains("://") || text.trim().is_empty() {
        return wrong(format!("`{shown}` is no place for artifacts"), how);
    }
    Ok(ArtifactSettings::Folder(PathBuf::from(text)))
}

fn roles(names: &[String]) -> Result<Roles, Wrong> {
    let mut roles = Roles {
        gateway: false,
        worker: false,
        beekeeper: false,
    };
    for name in names.iter().map(|n| n.trim()) {
        match name {
            "gateway" => roles.gateway = true,
            "worker" => roles.worker = true,
            "beekeeper" => roles.beekeeper = true,
            _ => {
                return wrong(
                    format!("`{name}` is no role"),
                    instead(name, &["gateway", "worker", "beekeeper"], ""),
                );
            }
        }
    }
    if names.is_empty() {
        return wrong(
            "no roles are named",
            "name some of gateway, worker, beekeeper, or leave it out for all",
        );
    }
    Ok(roles)
}

fn labels(texts: &[String]) -> Result<BTreeSet<NodeLabel>, Wrong> {
    let mut labels = BTreeSet::new();
    for text in texts {
        match text.parse() {
            Ok(label) => labels.insert(label),
            Err(e) => return wrong(format!("`label`: {e}"), "write KEY=VALUE: `pool=acme`"),
        };
    }
    if labels.len() > NODE_LABELS_MAX {
        return wrong(
            format!("the node has {} labels", labels.len()),
            format!("give it at most {NODE_LABELS_MAX}"),
        );
    }
    Ok(labels)
}

fn node_name(name: String) -> Result<String, Wrong> {
    let fits = (1..=NODE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits {
        return Ok(name);
    }
    wrong(
        format!("`{}` is no node's name", name.escape_debug()),
        format!("1 to {NODE_NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`"),
    )
}

/// The machine's own name; empty where there is none.
#[must_use]
pub fn machine() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim().to_owned()
}

/// The machine's name, with the port where it is not the usual one: several nodes of one machine differ in it.
#[must_use]
pub fn default_name(listen: SocketAddr) -> String {
    let mut name: String = machine()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(NODE_NAME_BYTES_MAX - 6)
        .collect();
    if name.is_empty() {
        name.push_str("node");
    }
    if listen.port() != LISTEN_DEFAULT.port() {
        name.push_str(&format!("-{}", listen.port()));
    }
    name
}

#[cfg(test)]
mod tests;
