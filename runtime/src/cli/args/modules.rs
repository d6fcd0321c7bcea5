//! Modules: pushed, signed, tried and deleted.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use skep_model::name::{ModelRef, SecretName};

use super::{duration, header, pointer};

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
