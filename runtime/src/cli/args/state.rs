//! State of keys.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
