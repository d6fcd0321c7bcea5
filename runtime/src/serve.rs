//! `skep serve`: a node in the foreground.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::node::{Node, NodeSettings};

/// What `skep serve` takes.
#[derive(Debug, Clone)]
pub struct ServeArgs {
    pub data: PathBuf,
    pub listen: SocketAddr,
    pub admin: Option<SocketAddr>,
    pub sample_ratio: f64,
}

/// Serves until SIGINT or SIGTERM, then stops in order. A second signal ends at once.
///
/// # Errors
/// What keeps the node from starting, with its remedy.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let settings = NodeSettings {
        listen: args.listen,
        admin: args.admin,
        sample_ratio: args.sample_ratio,
        ..NodeSettings::local(args.data.clone())?
    };
    let node = Node::start(settings).await?;
    // Programs that start a node read these lines: one fact a line, flushed before the first call is answered.
    println!("skep {} serves {}", env!("CARGO_PKG_VERSION"), node.url());
    if let Some(admin) = node.admin_url() {
        println!("metrics {admin}/metrics");
    }
    println!("data {}", args.data.display());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("stopping: calls under way end first; once more to stop at once");
    tokio::select! {
        stopped = node.stop() => stopped,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}
