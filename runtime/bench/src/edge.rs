//! An edge and its hub: what the edge costs a small machine that has nothing to do, how fast it starts, and what waits there being handed over.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use skep_proto::v1;
use skep_proto::v1::edges_client::EdgesClient;

use crate::load;
use crate::node::{self, Server};
use crate::report::{ROUNDS, Row, SENT_FRAME, count};

/// Bees whose code the edge has when it starts.
const BEES: usize = 20;
/// How long an idle edge is watched.
const IDLE: Duration = Duration::from_secs(60);
/// Handed over at once: a third of an hour at one a millisecond. More would say the same and take an hour.
const MESSAGES: u64 = 1_000_000;
/// A sensor's reading.
const READING_BYTES: usize = 60;
const KEYS: u64 = 1_000;

/// The program as it is handed out, where `SKEP_EDGE_BIN` names it; else the one beside the others, which has a compiler that it does not use.
pub fn program(binaries: &Path) -> PathBuf {
    std::env::var_os("SKEP_EDGE_BIN").map_or_else(|| binaries.join("skep-edge"), PathBuf::from)
}

fn manifest() -> String {
    let many = (0..BEES)
        .map(|n| format!("  - {{ name: b{n}, module: test-bees, bee: echo, input: {{ gateway: b{n} }}, place: {{ label: site=bench }} }}\n"));
    format!("name: many\nbees:\n{}", many.collect::<String>())
}

const MILL: &str = "
name: mill
bees:
  - name: near
    module: test-bees
    bee: pass
    input: { gateway: mill }
    key: message
    inbox: { messages: 10000000, bytes: 4GiB }
    place: { label: site=bench, outbox: 8GiB }
  - { name: far, module: test-bees, bee: tally, input: { bee: near }, key: message, state: true, inbox: { messages: 1000000, bytes: 512MiB } }
";

struct Edge {
    hub: PathBuf,
    data: PathBuf,
    program: PathBuf,
}

impl Edge {
    fn start(&self) -> anyhow::Result<Server> {
        let mut command = Command::new(&self.program);
        command
            .args(["run", "--listen", "127.0.0.1:0", "--data"])
            .arg(&self.data);
        Server::spawn(&mut command, "listening on ")
    }

    fn enroll(&self, hub: &Server) -> anyhow::Result<()> {
        let invited = Command::new(&self.hub)
            .args(["edge", "enroll", "bench", "--label", "site=bench"])
            .env("SKEP_NODE", &hub.url)
            .output()?;
        ensure!(invited.status.success(), "{}", String::from_utf8_lossy(&invited.stderr));
        let line = String::from_utf8(invited.stdout)?;
        let enrolled = Command::new(&self.program)
            .args(["enroll", line.trim(), "--data"])
            .arg(&self.data)
            .output()?;
        ensure!(
            enrolled.status.success(),
            "{}",
            String::from_utf8_lossy(&enrolled.stderr)
        );
        Ok(())
    }
}

/// Until the edge follows what it was told last.
async fn follows(hub: &Server, stages: usize) -> anyhow::Result<v1::Edge> {
    let mut edges = EdgesClient::connect(hub.url.clone()).await?;
    for _ in 0..1_200 {
        let list = edges.list_edges(v1::ListEdgesRequest {}).await?.into_inner();
        let edge = list.edges.into_iter().next().context("an edge")?;
        if edge.follows == edge.revision && edge.runs.len() == stages {
            return Ok(edge);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the edge does not follow its orders")
}

pub async fn measure(binaries: &Path, wasm: &[u8], dir: &Path) -> anyhow::Result<Vec<Row>> {
    let (skep, at_hub) = (binaries.join("skep"), dir.join("hub"));
    let edge = Edge {
        hub: skep.clone(),
        data: dir.join("edge"),
        program: program(binaries),
    };
    let size = std::fs::metadata(&edge.program)
        .with_context(|| format!("{} is not built", edge.program.display()))?
        .len() as f64
        / 1e6;
    let hub = Server::skep(&skep, &at_hub)?;
    let mut keeper = hub.keeper().await?;
    node::push(&mut keeper, "test-bees", wasm).await?;
    node::apply(&mut keeper, &manifest()).await?;
    edge.enroll(&hub)?;
    let up = edge.start()?;
    follows(&hub, BEES).await?;
    up.stop()?;

    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let up = edge.start()?;
        let mut gateway = load::connect(&up.url).await?;
        let call = v1::RequestCall {
            subject: format!("b{}", BEES - 1),
            payload: Bytes::from_static(b"hi"),
            ..v1::RequestCall::default()
        };
        gateway.request(call).await.context("the first call")?;
        starts.push(began.elapsed());
        up.stop()?;
    }
    let start = load::median(&mut starts)?.as_secs_f64() * 1e3;

    // Attached, with nothing to do.
    let up = edge.start()?;
    follows(&hub, BEES).await?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (written, woken, cpu) = (up.written_bytes()?, up.woken()?, up.cpu()?);
    tokio::time::sleep(IDLE).await;
    let minutes = IDLE.as_secs_f64() / 60.0;
    let written = (up.written_bytes()? - written) / minutes;
    let woken = (up.woken()? - woken) / IDLE.as_secs_f64();
    let cpu = (up.cpu()? - cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let rss = up.rss_mb()?;
    up.stop()?;

    // The hub goes away, and comes back to all that gathered meanwhile.
    node::apply(&mut keeper, MILL).await?;
    let up = edge.start()?;
    follows(&hub, BEES + 1).await?;
    drop(keeper);
    let address = hub.url.trim_start_matches("http://").to_owned();
    hub.stop()?;
    let reading = Bytes::from(vec![b'x'; READING_BYTES]);
    let offline = load::submit(&up.url, "mill", &reading, KEYS, MESSAGES, SENT_FRAME, 1).await?;
    let offline = offline.messages as f64 / offline.took.as_secs_f64();
    let hub = Server::skep_at(&skep, &at_hub, &[], &address)?;
    let began = Instant::now();
    let mut keeper = hub.keeper().await?;
    let ended = node::processed(&mut keeper, "mill", MESSAGES).await?;
    let handed = MESSAGES as f64 / ended.duration_since(began).as_secs_f64();
    // It tells how it fares every few seconds.
    let mut equal = false;
    for _ in 0..60 {
        let told = follows(&hub, BEES + 1).await?;
        let waiting = told.waiting.first().context("an outbox")?;
        equal = (waiting.messages, waiting.handed_over, waiting.dropped) == (0, MESSAGES, 0);
        if equal {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let peak = up.peak_mb()?;
    // The same straight to the hub, by its own door.
    let direct = "name: direct\nbees:\n  - { name: far, module: test-bees, bee: tally, input: { gateway: direct }, key: message, state: true, inbox: { messages: 1000000, bytes: 512MiB } }\n";
    node::apply(&mut keeper, direct).await?;
    let began = Instant::now();
    load::submit(&hub.url, "direct", &reading, KEYS, MESSAGES, SENT_FRAME, 1).await?;
    let ended = node::processed(&mut keeper, "direct", MESSAGES).await?;
    let straight = MESSAGES as f64 / ended.duration_since(began).as_secs_f64();
    up.stop()?;

    let row = |measure, ours: String, ceiling: &str, ratio: String, goal, met| Row {
        measure,
        ours,
        ceiling: ceiling.to_owned(),
        ratio,
        goal,
        met,
    };
    let none = || "–".to_owned();
    Ok(vec![
        row(
            "`skep-edge`, one static file",
            format!("{size:.1} MB"),
            "–",
            none(),
            "≤ 8 MB",
            size <= 8.0,
        ),
        row(
            "idle edge of 20 Bees, attached: memory (RSS)",
            format!("{rss:.1} MB"),
            "–",
            none(),
            "≤ 10 MB",
            rss <= 10.0,
        ),
        row(
            "… bytes written to disk a minute",
            format!("{written:.0}"),
            "–",
            none(),
            "0",
            written == 0.0,
        ),
        row(
            "… times a second that a thread of it wakes",
            format!("{woken:.1} ({cpu:.2} % of a core)"),
            "–",
            none(),
            "≤ 2",
            woken <= 2.0,
        ),
        row(
            "start of an edge with 20 Bees on disk, until the last has answered a call",
            format!("{start:.0} ms"),
            "–",
            none(),
            "≤ 100 ms",
            start <= 100.0,
        ),
        row(
            "taken by the edge's door while its hub is away, durable, through a Bee into the outbox, messages a second",
            count(offline),
            "–",
            none(),
            "–",
            true,
        ),
        row(
            if equal {
                "1,000,000 messages handed over once the hub is back, worked off there, each once; messages a second"
            } else {
                "**not all of** 1,000,000 messages handed over once the hub is back"
            },
            count(handed),
            &format!("{} streamed straight to the hub's door", count(straight)),
            format!("{:.2} ×", handed / straight),
            "≥ 20,000",
            equal && handed >= 20_000.0,
        ),
        row(
            "… the edge's largest memory in all of that",
            format!("{peak:.0} MB"),
            "–",
            none(),
            "≤ 64 MB",
            peak <= 64.0,
        ),
    ])
}
