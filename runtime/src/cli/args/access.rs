//! Who may do what, and how much: tenants, tokens, secrets, certificates.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use skep_model::quota::{BadQuota, Quota};

use super::duration;

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
A Bee reads what its manifest grants: `secrets: [api-key]`. No command shows a value.

Examples:
  skep secret set api-key < key.txt
  skep secret list
  skep secret delete api-key")]
pub struct Secret {
    #[command(subcommand)]
    pub what: SecretCommand,
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
