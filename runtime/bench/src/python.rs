//! A Bee in Python beside the same in Rust, on one node, in turns.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;

use crate::load;
use crate::node::{self, Server};

const ROUNDS: usize = 3;
const SPAN: Duration = Duration::from_millis(1_500);
const PAYLOAD_BYTES: usize = 200;
const MESSAGES: u64 = 300_000;
/// As many warm instances as one Bee keeps.
const WARM: u64 = 16;

const SWARM: &str = "
name: SUBJECT
bees:
  - { name: one, module: MODULE, bee: BEE, input: { gateway: SUBJECT }, instances: HOW, concurrency: 16, inbox: { messages: 1000000, bytes: 512MiB }, batch: { messages: 256 } }
";

/// Prints one line a measure.
///
/// # Errors
/// What keeps a node from being measured.
pub fn run(binaries: &Path, python: &Path, rust: &Path) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(measure(binaries, python, rust))
}

async fn measure(binaries: &Path, python: &Path, rust: &Path) -> anyhow::Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
    let skep = Server::skep(&binaries.join("skep"), &dir.path().join("data"))?;
    let mut keeper = skep.keeper().await?;
    let component = read(python)?;
    let began = Instant::now();
    node::push(&mut keeper, "python", &component).await?;
    let pushed = began.elapsed();
    let payload = Bytes::from(vec![b'7'; PAYLOAD_BYTES]);
    for (subject, module, bee, how) in [
        ("python-fresh", "python", "echo", "fresh"),
        ("python-pooled", "python", "echo", "pooled"),
        ("rust-fresh", "rust", "echo", "fresh"),
        ("rust-pooled", "rust", "echo", "pooled"),
        ("pass", "python", "pass", "pooled"),
        ("pass-batch", "python", "pass-batch", "pooled"),
        ("pass-fresh", "python", "pass-batch", "fresh"),
    ] {
        if subject == "rust-fresh" {
            node::push(&mut keeper, "rust", &read(rust)?).await?;
        }
        let manifest = SWARM
            .replace("SUBJECT", subject)
            .replace("MODULE", module)
            .replace("BEE", bee)
            .replace("HOW", how);
        node::apply(&mut keeper, &manifest).await?;
        if subject == "python-fresh" {
            load::one_by_one(&skep.url, subject, &payload, 0, Duration::from_millis(1)).await?;
            println!(
                "upload of {:.1} MB to its first answer: {:.1} s, {:.1} s of it until it was accepted",
                component.len() as f64 / 1e6,
                began.elapsed().as_secs_f64(),
                pushed.as_secs_f64()
            );
        }
    }
    let subjects = ["python-fresh", "python-pooled", "rust-fresh", "rust-pooled"];
    let mut p50 = [const { Vec::new() }; 4];
    let mut saturated = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for (n, subject) in subjects.iter().enumerate() {
            load::unary(&skep.url, subject, &payload, 8, SPAN / 8).await?;
            p50[n].push(load::median(
                &mut load::one_by_one(&skep.url, subject, &payload, 0, SPAN).await?,
            )?);
            saturated[n].push(load::unary(&skep.url, subject, &payload, 64, SPAN).await?);
        }
    }
    for (n, subject) in subjects.iter().enumerate() {
        saturated[n].sort_by(f64::total_cmp);
        println!(
            "{subject}: request p50 {:.0} us, {:.0} requests/s from 64 callers",
            load::median(&mut p50[n])?.as_secs_f64() * 1e6,
            saturated[n][ROUNDS / 2]
        );
    }
    for subject in ["pass", "pass-batch", "pass-fresh"] {
        let mut rates = Vec::new();
        for round in 0..ROUNDS {
            let cpu = skep.cpu()?;
            let began = Instant::now();
            let session = u8::try_from(round + 1)?;
            load::submit(&skep.url, subject, &payload, 0, MESSAGES, 256, session).await?;
            let ended = node::processed(&mut keeper, subject, MESSAGES * (round as u64 + 1)).await?;
            let used = skep.cpu()? - cpu;
            rates.push((
                MESSAGES as f64 / (ended - began).as_secs_f64(),
                MESSAGES as f64 / used.as_secs_f64(),
            ));
        }
        rates.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (rate, per_core) = rates[ROUNDS / 2];
        println!("{subject}: {rate:.0} streamed messages/s, submit included; {per_core:.0} a second of the node's CPU");
    }
    // All else that was warm has gone by then.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let before = skep.pss_mb()?;
    load::unary(&skep.url, "python-pooled", &payload, 64, SPAN).await?;
    let after = skep.pss_mb()?;
    println!(
        "memory: {:.2} MB PSS for each of at most {WARM} warm instances ({before:.0} MB before, {after:.0} MB with them)",
        (after - before) / WARM as f64
    );
    Ok(())
}
