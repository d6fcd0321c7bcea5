//! Dead letters.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;

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
