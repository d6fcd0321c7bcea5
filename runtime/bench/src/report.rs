//! Runs every measure and writes the table. The rounds of a pair alternate, ours and the ceiling's, so that a machine whose speed
//! drifts drifts for both; the figure is the median of the rounds.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;

use crate::load;
use crate::node::{self, Server};
use crate::sqlite;

pub(crate) const ROUNDS: usize = 5;
/// Messages of one streamed round.
pub(crate) const MESSAGES: u64 = 200_000;
pub(crate) const SPAN: Duration = Duration::from_millis(1_500);
pub(crate) const PAYLOAD_BYTES: usize = 200;
/// What a stored message of 200 bytes takes with its key and uid.
pub(crate) const STORED_BYTES: usize = 240;
/// Messages in one frame of the submit.
pub(crate) const SENT_FRAME: u64 = 256;
/// Messages in one row: a frame of the submit is split over the four partitions.
const ROW: usize = 64;

const SWARMS: &str = "
name: echo
bees:
  - { name: echo, module: test-bees, input: { gateway: echo } }
---
name: effects
bees:
  - { name: effect, module: test-bees, input: { gateway: effects }, key: message, state: true }
---
name: sink
bees:
  - { name: tally, module: test-bees, input: { gateway: sink }, key: message, state: true, inbox: { messages: 1000000, bytes: 512MiB } }
---
name: two-stages
bees:
  - { name: pass, module: test-bees, input: { gateway: two-stages }, key: message, inbox: { messages: 1000000, bytes: 512MiB } }
  - { name: tally, module: test-bees, input: { bee: pass }, key: message, state: true, inbox: { messages: 1000000, bytes: 512MiB } }
";

pub(crate) struct Row {
    pub measure: &'static str,
    pub ours: String,
    pub ceiling: String,
    pub ratio: String,
    pub goal: &'static str,
    pub met: bool,
}

pub fn run(binaries: &Path, bees: &Path, out: &Path) -> anyhow::Result<()> {
    let wasm = std::fs::read(bees).with_context(|| format!("read {}", bees.display()))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let rows = runtime.block_on(measure(binaries, &wasm, bees))?;
    let features = runtime.block_on(measure_features(binaries, &wasm))?;
    let on_redis = runtime.block_on(measure_redis(binaries, &wasm, &[]))?;
    let tenants = runtime.block_on(measure_tenants(binaries, bees))?;
    let edge = runtime.block_on(measure_edge(binaries, &wasm))?;
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `ci/bench`. Each figure of ours stands beside the raw ceiling, measured in the same run on the same machine with the\n\
         same load generator; look at the ratios, for absolute times wander with the machine. Release build, data folder on disk.\n\n",
    );
    writeln!(text, "Machine: {}\n", machine())?;
    text.push_str(&table(&rows)?);
    writeln!(
        text,
        "\nMedians of {ROUNDS} alternating rounds of {:.1} s, payload {PAYLOAD_BYTES} bytes. Ceilings: a tonic server that echoes the same messages; SQLite in WAL mode \
         with `synchronous=FULL` and rows of {ROW} messages of {STORED_BYTES} bytes, as many a transaction as the node grouped in the same round; wasmtime with the node's settings and a host that does nothing.",
        SPAN.as_secs_f64()
    )?;
    text.push_str(
        "\n## What features cost\n\nThe same keyed messages of 200 bytes, streamed and durable, through a plain stage and through what uses the feature, all on one node, by turns.\n\n",
    );
    text.push_str(&table(&features)?);
    writeln!(
        text,
        "\n## On Redis\n\nA node and a Redis of the run's own on this machine, rounds in turns as above. The machine's load average afterwards: {}.\n",
        load_average()
    )?;
    text.push_str(&table(&on_redis)?);
    text.push_str("\n## Tenants\n\nOn one node, rounds in turns as above.\n\n");
    text.push_str(&table(&tenants)?);
    text.push_str("\n## Edges\n\nAn edge and its hub on this machine.\n\n");
    text.push_str(&table(&edge)?);
    print!("{text}");
    std::fs::write(out, text).with_context(|| format!("write {}", out.display()))
}

fn table(rows: &[Row]) -> anyhow::Result<String> {
    let mut text =
        String::from("| measure | ours | ceiling | ratio | goal | |\n| --- | --- | --- | --- | --- | --- |\n");
    for row in rows {
        let mark = match (row.goal, row.met) {
            ("–", _) => "",
            (_, true) => "met",
            (_, false) => "**missed**",
        };
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {mark} |",
            row.measure, row.ours, row.ceiling, row.ratio, row.goal
        )?;
    }
    Ok(text)
}

async fn measure_tenants(binaries: &Path, bees: &Path) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
    crate::tenants::measure(binaries, bees, dir.path()).await
}

async fn measure_edge(binaries: &Path, wasm: &[u8]) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
    crate::edge::measure(binaries, wasm, dir.path()).await
}

async fn measure_redis(binaries: &Path, wasm: &[u8], parts: &[&str]) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
    let echo = Server::echo()?;
    crate::redis::measure(binaries, wasm, dir.path(), &echo, parts).await
}

async fn measure_features(binaries: &Path, wasm: &[u8]) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
    crate::features::measure(binaries, wasm, dir.path()).await
}

/// What features cost, alone.
pub fn features_only(binaries: &Path, bees: &Path) -> anyhow::Result<()> {
    let rows = tokio::runtime::Runtime::new()?.block_on(measure_features(binaries, &std::fs::read(bees)?))?;
    print!("{}\nload average {}\n", table(&rows)?, load_average());
    Ok(())
}

/// The rows on Redis alone, or some of them, for a developer who works on them.
pub fn redis_only(binaries: &Path, bees: &Path, parts: &[&str]) -> anyhow::Result<()> {
    let rows = tokio::runtime::Runtime::new()?.block_on(measure_redis(binaries, &std::fs::read(bees)?, parts))?;
    print!("{}\nload average {}\n", table(&rows)?, load_average());
    Ok(())
}

/// The rows of answers in parts, of overload and of fairness alone, or some of them.
pub fn crowd_only(binaries: &Path, bees: &Path, parts: &[&str]) -> anyhow::Result<()> {
    let wasm = std::fs::read(bees)?;
    let rows = tokio::runtime::Runtime::new()?.block_on(async {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
        crate::crowd::measure(binaries, &wasm, dir.path(), &Server::echo()?, parts).await
    })?;
    print!("{}\nload average {}\n", table(&rows)?, load_average());
    Ok(())
}

pub fn versus(builds: [&Path; 2], bees: &Path) -> anyhow::Result<()> {
    let wasm = std::fs::read(bees)?;
    let rows = tokio::runtime::Runtime::new()?.block_on(async {
        let dir = tempfile::tempdir_in(bees.parent().context("a file in a folder")?)?;
        crate::versus::measure(builds, &wasm, dir.path()).await
    })?;
    print!("{}\nload average {}\n", table(&rows)?, load_average());
    Ok(())
}

pub fn tenants_only(binaries: &Path, bees: &Path) -> anyhow::Result<()> {
    let rows = tokio::runtime::Runtime::new()?.block_on(measure_tenants(binaries, bees))?;
    print!("{}\nload average {}\n", table(&rows)?, load_average());
    Ok(())
}

pub fn edge_only(binaries: &Path, bees: &Path) -> anyhow::Result<()> {
    let rows = tokio::runtime::Runtime::new()?.block_on(measure_edge(binaries, &std::fs::read(bees)?))?;
    print!("{}\nload average {}\n", table(&rows)?, load_average());
    Ok(())
}

pub fn isolation_only(binaries: &Path, bees: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(crate::tenants::isolation(binaries, bees))?;
    println!("load average {}", load_average());
    Ok(())
}

pub fn many_only(binaries: &Path, wasm: &Path, bee: &str, tenants: usize, bees: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(crate::many::measure(&binaries.join("skep"), wasm, bee, tenants, bees))?;
    println!("load average {}", load_average());
    Ok(())
}

/// The two rows of streams alone, for a developer who works on them.
pub fn streams_only(binaries: &Path, bees: &Path) -> anyhow::Result<()> {
    let wasm = std::fs::read(bees)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let rows = runtime.block_on(async {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
        let skep = Server::skep(&binaries.join("skep"), &dir.path().join("data"))?;
        let mut keeper = skep.keeper().await?;
        node::push(&mut keeper, "test-bees", &wasm).await?;
        for manifest in SWARMS.split("---") {
            node::apply(&mut keeper, manifest).await?;
        }
        streams(&skep, &Bytes::from(vec![b'x'; PAYLOAD_BYTES]), dir.path()).await
    })?;
    for row in rows {
        println!("{}: {}; {}; {}", row.measure, row.ours, row.ceiling, row.ratio);
    }
    Ok(())
}

/// The rows of keyed state alone, with fewer keys if one likes; of none only the hot ones.
pub fn state_only(binaries: &Path, bees: &Path, keys: u64) -> anyhow::Result<()> {
    let wasm = std::fs::read(bees)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let rows = runtime.block_on(async {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
        let mut rows = vec![crate::state::hot(binaries, &wasm, dir.path()).await?];
        if keys > 0 {
            rows.extend(crate::state::many(binaries, &wasm, dir.path(), keys).await?);
        }
        anyhow::Ok(rows)
    })?;
    print!("{}\nload average {}\n", table(&rows)?, load_average());
    Ok(())
}

async fn measure(binaries: &Path, wasm: &[u8], bees: &Path) -> anyhow::Result<Vec<Row>> {
    // Beside the binaries, which are on a disk; /tmp may be in memory.
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
    let mut rows = Vec::new();
    let echo = Server::echo()?;
    let skep = Server::skep(&binaries.join("skep"), &dir.path().join("data"))?;
    let mut keeper = skep.keeper().await?;
    node::push(&mut keeper, "test-bees", wasm).await?;
    for manifest in SWARMS.split("---") {
        node::apply(&mut keeper, manifest).await?;
    }
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    // Warm both: first calls open connections and fill caches.
    load::unary(&echo.url, "echo", &payload, 8, SPAN / 4).await?;
    load::unary(&skep.url, "echo", &payload, 8, SPAN / 4).await?;

    rows.push(one_by_one(&echo, &skep, &payload).await?);
    rows.extend(throughput(&echo, &skep, &payload).await?);
    rows.push(durable_request(&echo, &skep, &payload, dir.path()).await?);
    rows.push(instances(binaries, bees)?);
    rows.extend(streams(&skep, &payload, dir.path()).await?);
    drop(skep);
    rows.push(crate::state::hot(binaries, wasm, dir.path()).await?);
    rows.extend(crate::state::many(binaries, wasm, dir.path(), crate::state::MANY_KEYS).await?);
    rows.extend(crate::crowd::measure(binaries, wasm, dir.path(), &echo, &[]).await?);
    rows.push(first_answer(binaries, wasm, dir.path()).await?);
    rows.extend(idle(binaries, wasm, dir.path()).await?);
    Ok(rows)
}

async fn one_by_one(echo: &Server, skep: &Server, payload: &Bytes) -> anyhow::Result<Row> {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.push(load::median(
            &mut load::one_by_one(&echo.url, "echo", payload, 0, SPAN).await?,
        )?);
        ours.push(load::median(
            &mut load::one_by_one(&skep.url, "echo", payload, 0, SPAN).await?,
        )?);
    }
    let (ours, raw) = (load::median(&mut ours)?, load::median(&mut raw)?);
    let ratio = ours.as_secs_f64() / raw.as_secs_f64();
    Ok(Row {
        measure: "request p50, one Bee of a pure Swarm, one caller",
        ours: us(ours),
        ceiling: format!("{} raw tonic echo", us(raw)),
        ratio: format!("{ratio:.2} ×"),
        goal: "≤ 3.0 ×",
        met: ratio <= 3.0,
    })
}

async fn throughput(echo: &Server, skep: &Server, payload: &Bytes) -> anyhow::Result<Vec<Row>> {
    let (mut unary, mut raw_unary, mut piped, mut raw_piped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw_unary.push(load::unary(&echo.url, "echo", payload, 64, SPAN).await?);
        unary.push(load::unary(&skep.url, "echo", payload, 64, SPAN).await?);
        raw_piped.push(load::pipelined(&echo.url, "echo", payload, 1_024, SPAN).await?);
        piped.push(load::pipelined(&skep.url, "echo", payload, 1_024, SPAN).await?);
    }
    let (unary, raw_unary) = (middle(&mut unary), middle(&mut raw_unary));
    let (piped, raw_piped) = (middle(&mut piped), middle(&mut raw_piped));
    Ok(vec![
        Row {
            measure: "requests a second, the same, 64 callers, unary",
            ours: count(unary),
            ceiling: format!("{} raw tonic echo", count(raw_unary)),
            ratio: format!("{:.2} ×", unary / raw_unary),
            goal: "≥ 0.5 ×",
            met: unary / raw_unary >= 0.5,
        },
        Row {
            measure: "requests a second, the same, pipelined on one stream",
            ours: count(piped),
            ceiling: format!("{} raw tonic stream", count(raw_piped)),
            ratio: format!("{:.2} ×", piped / raw_piped),
            goal: "≥ 0.1 ×",
            met: piped / raw_piped >= 0.1,
        },
        Row {
            measure: "… against our own unary",
            ours: count(piped),
            ceiling: format!("{} our unary", count(unary)),
            ratio: format!("{:.2} ×", piped / unary),
            goal: "≥ 3 ×",
            met: piped / unary >= 3.0,
        },
    ])
}

async fn durable_request(echo: &Server, skep: &Server, payload: &Bytes, dir: &Path) -> anyhow::Result<Row> {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let place = dir.join(format!("commits-{round}"));
        std::fs::create_dir(&place)?;
        let commit = load::median(&mut sqlite::commits(&place, SPAN)?)?;
        let reply = load::median(&mut load::one_by_one(&echo.url, "echo", payload, 0, SPAN / 2).await?)?;
        raw.push(commit + reply);
        ours.push(load::median(
            &mut load::one_by_one(&skep.url, "effects", payload, 100, SPAN).await?,
        )?);
    }
    let (ours, raw) = (load::median(&mut ours)?, load::median(&mut raw)?);
    let ratio = ours.as_secs_f64() / raw.as_secs_f64();
    Ok(Row {
        measure: "durable, stateful request p50, one caller",
        ours: us(ours),
        ceiling: format!("{} one SQLite FULL commit + echo", us(raw)),
        ratio: format!("{ratio:.2} ×"),
        goal: "≤ 1.5 ×",
        met: ratio <= 1.5,
    })
}

/// `runtime/engine/examples/bare.rs` measures both sides in one process, in turns.
fn instances(binaries: &Path, bees: &Path) -> anyhow::Result<Row> {
    let output = Command::new(binaries.join("examples/bare"))
        .arg(bees)
        .args(["echo", "2000", "1"])
        .output()?;
    ensure!(
        output.status.success(),
        "examples/bare: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).context("examples/bare prints JSON")?;
    let number = |name: &str| {
        told[name]
            .as_f64()
            .with_context(|| format!("examples/bare tells {name}: {told}"))
    };
    let (bare, fresh) = (number("bare_ns")?, number("fresh_ns")?);
    Ok(Row {
        measure: "fresh instance + call + drop",
        ours: format!("{:.1} us", fresh / 1e3),
        ceiling: format!("{:.1} us bare wasmtime loop", bare / 1e3),
        ratio: format!("{:.2} ×", fresh / bare),
        goal: "≤ 1.3 ×",
        met: fresh / bare <= 1.3,
    })
}

async fn streams(skep: &Server, payload: &Bytes, dir: &Path) -> anyhow::Result<Vec<Row>> {
    let mut keeper = skep.keeper().await?;
    let (mut submits, mut flows, mut appends, mut hops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut flush_submit, mut flush_flow) = (0, 0);
    for round in 0..ROUNDS {
        let place = dir.join(format!("streams-{round}"));
        std::fs::create_dir(&place)?;
        let session = u8::try_from(round + 1)?;
        let before = node::flushes(&mut keeper).await?;
        let done = load::submit(&skep.url, "sink", payload, 1_000, MESSAGES, SENT_FRAME, session).await?;
        flush_submit = node::flushes(&mut keeper).await? - before;
        submits.push(done.messages as f64 / done.took.as_secs_f64());
        node::processed(&mut keeper, "sink", MESSAGES * (round as u64 + 1)).await?;
        appends.push(sqlite::appends(&place, ROW, STORED_BYTES, grouped(flush_submit), SPAN)?);

        let before = node::flushes(&mut keeper).await?;
        let began = Instant::now();
        load::submit(&skep.url, "two-stages", payload, 1_000, MESSAGES, SENT_FRAME, session).await?;
        let ended = node::processed(&mut keeper, "two-stages", MESSAGES * (round as u64 + 1)).await?;
        flush_flow = node::flushes(&mut keeper).await? - before;
        flows.push(MESSAGES as f64 / ended.duration_since(began).as_secs_f64());
        hops.push(sqlite::hops(&place, ROW, STORED_BYTES, grouped(flush_flow), SPAN)?);
    }
    let (submit, append) = (middle(&mut submits), middle(&mut appends));
    let (flow, hop) = (middle(&mut flows), middle(&mut hops));
    Ok(vec![
        Row {
            measure: "streaming durable submit, messages a second",
            ours: format!("{} ({flush_submit} flushes for {MESSAGES})", count(submit)),
            ceiling: format!("{} raw SQLite FULL appends", count(append)),
            ratio: format!("{:.2} ×", submit / append),
            goal: "≥ 0.4 ×",
            met: submit / append >= 0.4,
        },
        Row {
            measure: "through a keyed Swarm of two stages, the second counting in state, durable, messages a second",
            ours: format!("{} ({flush_flow} flushes for {MESSAGES})", count(flow)),
            ceiling: format!("{} raw SQLite FULL hops", count(hop)),
            ratio: format!("{:.2} ×", flow / hop),
            goal: "≥ 0.2 ×",
            met: flow / hop >= 0.2,
        },
    ])
}

/// Rows a transaction of the raw loop: as many as the node's writer grouped in the run just before.
fn grouped(flushes: u64) -> usize {
    usize::try_from(MESSAGES / flushes.max(1)).map_or(1, |messages| (messages / ROW).max(1))
}

async fn first_answer(binaries: &Path, wasm: &[u8], dir: &Path) -> anyhow::Result<Row> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        // A node that has never seen the module, so that it compiles.
        let skep = Server::skep(&binaries.join("skep"), &dir.join(format!("first-{round}")))?;
        let mut keeper = skep.keeper().await?;
        let began = Instant::now();
        node::push(&mut keeper, "test-bees", wasm).await?;
        node::apply(&mut keeper, SWARMS.split("---").next().context("a manifest")?).await?;
        load::one_by_one(&skep.url, "echo", &Bytes::from_static(b"x"), 0, Duration::from_nanos(1)).await?;
        times.push(began.elapsed());
    }
    let took = load::median(&mut times)?;
    Ok(Row {
        measure: "upload to first answer",
        ours: format!("{} ms for {} KB", took.as_millis(), wasm.len() / 1_000),
        ceiling: "–".to_owned(),
        ratio: "–".to_owned(),
        goal: "≤ 1 s for 200 KB",
        met: took <= Duration::from_secs(1),
    })
}

async fn idle(binaries: &Path, wasm: &[u8], dir: &Path) -> anyhow::Result<Vec<Row>> {
    let skep = Server::skep(&binaries.join("skep"), &dir.join("idle"))?;
    let mut keeper = skep.keeper().await?;
    node::push(&mut keeper, "test-bees", wasm).await?;
    for manifest in SWARMS.split("---") {
        node::apply(&mut keeper, manifest).await?;
    }
    drop(keeper);
    // What the start still writes and frees is not idling.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (cpu, written) = (skep.cpu()?, skep.written_bytes()?);
    let span = Duration::from_secs(60);
    tokio::time::sleep(span).await;
    let share = (skep.cpu()? - cpu).as_secs_f64() / span.as_secs_f64() * 100.0;
    let written = skep.written_bytes()? - written;
    let rss = skep.rss_mb()?;
    let size = std::fs::metadata(binaries.join("skep"))?.len() as f64 / f64::from(1 << 20);
    let row = |measure, ours: String, goal, met| Row {
        measure,
        ours,
        ceiling: "–".to_owned(),
        ratio: "–".to_owned(),
        goal,
        met,
    };
    Ok(vec![
        row(
            "idle node with four Swarms: RSS",
            format!("{rss:.1} MB"),
            "≤ 40 MB",
            rss <= 40.0,
        ),
        row(
            "… disk writes in a minute",
            format!("{written:.0} bytes"),
            "0",
            written == 0.0,
        ),
        row("… CPU", format!("{share:.3} % of a core"), "< 0.1 %", share < 0.1),
        row("binary, stripped", format!("{size:.1} MB"), "≤ 40 MB", size <= 40.0),
    ])
}

pub(crate) fn middle(list: &mut [f64]) -> f64 {
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn us(d: Duration) -> String {
    format!("{} us", d.as_micros())
}

pub(crate) fn count(n: f64) -> String {
    if n >= 1e6 {
        format!("{:.2} M", n / 1e6)
    } else {
        format!("{:.1} k", n / 1e3)
    }
}

fn load_average() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("?").to_owned()
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name").and_then(|l| l.split(": ").nth(1)))
        .unwrap_or("unknown CPU")
        .to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cores} cores ({model}), load average {} at the end of the run",
        load_average()
    )
}
