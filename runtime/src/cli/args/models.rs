//! Models.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;

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
