//! `skep serve`: a node in the foreground.

use std::io::Write as _;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::level::Build;
use crate::node::{Node, NodeSettings};

/// Serves until SIGINT or SIGTERM, then stops in order. A second signal ends at once.
///
/// # Errors
/// What keeps the node from starting, with its remedy.
pub async fn run(settings: NodeSettings) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let data = settings.data.clone();
    let mut node = Node::start(settings).await?;
    // Programs that start a node read these lines: one fact a line, flushed before the first call is answered.
    say(format_args!("skep {} serves {}", Build::current().version, node.url()));
    if let Some(admin) = node.admin_url() {
        say(format_args!("metrics {admin}/metrics"));
    }
    say(format_args!("data {}", data.display()));
    let failure = tokio::select! {
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        failure = node.failed() => Some(failure),
    };
    // Whoever started us may have closed the pipe, which is no reason to end without a clean stop.
    let _ = writeln!(
        std::io::stderr(),
        "stopping: calls under way end first; once more to stop at once"
    );
    let stopped = tokio::select! {
        stopped = node.stop() => stopped,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    failure.map_or(stopped, Err)
}

/// Whoever reads may have gone, which is no reason to end.
fn say(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
