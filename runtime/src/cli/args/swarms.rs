//! Swarms and their stages, from a file to the end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{SignedBy, duration};

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
