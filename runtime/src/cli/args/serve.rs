//! What a node is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{duration, ratio, sha256};
use crate::settings::{Hidden, Inference, Layer, LogFormat};

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

#[derive(Debug, Args)]
pub struct Own {
    #[command(subcommand)]
    pub what: OwnCommand,
}

#[derive(Debug, Subcommand)]
pub enum OwnCommand {
    /// Say whether this machine can run a node with these settings: those of `skep serve`
    Check(Box<SelfCheck>),
}

#[derive(Debug, Args)]
#[command(after_help = "\
It exits with 1 when a node would not run here. Nothing is changed, but for an object that is made and deleted in the object store to
try it. Run it as the user that the node will run as: `runuser -u skep -- skep self check --config /etc/skep/skep.toml`.

Examples:
  skep self check --data ./data
  skep self check --config /etc/skep/skep.toml --sha256 9f86d08…
  skep self check --data ./data --backend redis://127.0.0.1:6379 -o json")]
pub struct SelfCheck {
    #[command(flatten)]
    pub serve: Serve,
    /// What the SHA-256 of this program should be, as a release's SHA256SUMS says of the binary itself
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: Option<String>,
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
