//! What may be typed, and here the commands themselves; what each takes is in the file of its subject.

mod access;
mod calls;
mod edges;
mod letters;
mod models;
mod modules;
mod records;
mod serve;
mod state;
mod swarms;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use access::*;
pub use calls::*;
pub use edges::*;
pub use letters::*;
pub use models::*;
pub use modules::*;
pub use records::*;
pub use serve::*;
pub use state::*;
pub use swarms::*;

use super::failure::EXIT_CODES;

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
    /// Look at this program, this machine and what a node would start on
    #[command(name = "self")]
    Own(Own),
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
    /// Enrol, list and revoke edges: machines that run stages far from here
    Edge(Edge),
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

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("a number from 0 to 1".to_owned()),
    }
}

/// As `sha256sum` writes it, in either case; kept in lower case.
fn sha256(text: &str) -> Result<String, String> {
    match text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("64 hex digits, as `sha256sum` prints them".to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
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
mod tests;
