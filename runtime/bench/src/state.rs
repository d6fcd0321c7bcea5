//! Keyed state: many keys in use at once, and many more that lie on disk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use skep_proto::v1;

use crate::load;
use crate::node::{self, Server};
use crate::report::{MESSAGES, PAYLOAD_BYTES, ROUNDS, Row, SENT_FRAME, count, middle};

const HOT_KEYS: u64 = 100_000;
pub(crate) const MANY_KEYS: u64 = 10_000_000;
const INBOX: &str = "inbox: { messages: 1000000, bytes: 512MiB }";

async fn serving(binaries: &Path, wasm: &[u8], data: &Path) -> anyhow::Result<Server> {
    let skep = Server::skep(&binaries.join("skep"), data)?;
    let mut keeper = skep.keeper().await?;
    node::push(&mut keeper, "test-bees", wasm).await?;
    let manifest = format!(
        "name: sink\nbees:\n  - {{ name: tally, module: test-bees, input: {{ gateway: sink }}, key: message, state: true, {INBOX} }}\n"
    );
    node::apply(&mut keeper, &manifest).await?;
    Ok(skep)
}

pub async fn hot(binaries: &Path, wasm: &[u8], dir: &Path) -> anyhow::Result<Row> {
    let skep = serving(binaries, wasm, &dir.join("hot")).await?;
    let mut keeper = skep.keeper().await?;
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let mut rates = Vec::new();
    // The first is not counted: it makes the keys.
    for round in 0..=ROUNDS {
        let began = Instant::now();
        let session = u8::try_from(round + 1)?;
        load::submit(&skep.url, "sink", &payload, HOT_KEYS, MESSAGES, SENT_FRAME, session).await?;
        let ended = node::processed(&mut keeper, "sink", MESSAGES * (round as u64 + 1)).await?;
        if round > 0 {
            rates.push(MESSAGES as f64 / ended.duration_since(began).as_secs_f64());
        }
    }
    let rate = middle(&mut rates);
    Ok(Row {
        measure: "keyed state with 100,000 hot keys, messages a second",
        ours: format!("{} (RSS {:.0} MB)", count(rate), skep.rss_mb()?),
        ceiling: "–".to_owned(),
        ratio: "–".to_owned(),
        goal: "≥ 100 k",
        met: rate >= 100_000.0,
    })
}

/// As many keys as said, each with a count; then the node is killed and comes back.
pub async fn many(binaries: &Path, wasm: &[u8], dir: &Path, keys: u64) -> anyhow::Result<Vec<Row>> {
    let data = dir.join("many");
    let skep = serving(binaries, wasm, &data).await?;
    let mut keeper = skep.keeper().await?;
    let began = Instant::now();
    load::submit(&skep.url, "sink", &Bytes::from_static(b"x"), keys, keys, SENT_FRAME, 1).await?;
    let took = node::processed(&mut keeper, "sink", keys).await?.duration_since(began);
    let rss = skep.rss_mb()?;
    let asked = Instant::now();
    let call = v1::DescribeSwarmRequest {
        name: "sink".to_owned(),
        count_keys: true,
    };
    let told = keeper.describe_swarm(call).await?.into_inner();
    let counted = asked.elapsed();
    anyhow::ensure!(told.stages.first().context("a stage")?.keys == keys, "{told:?}");
    drop(skep);
    let began = Instant::now();
    let skep = Server::skep(&binaries.join("skep"), &data)?;
    load::submit(&skep.url, "sink", &Bytes::from_static(b"x"), keys, 1, 1, 2).await?;
    node::processed(&mut skep.keeper().await?, "sink", 1).await?;
    let back = began.elapsed();
    let file = std::fs::metadata(data.join("topics/skep.db"))?.len();
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
            "ten million keys: RSS",
            format!(
                "{rss:.0} MB for {} keys ({} new keys a second, {:.0} bytes of file each)",
                count(keys as f64),
                count(keys as f64 / took.as_secs_f64()),
                file as f64 / keys as f64,
            ),
            "≤ 500 MB",
            rss <= 500.0,
        ),
        row(
            "… from a start after kill -9 until a message of them is processed",
            format!("{} ms", back.as_millis()),
            "≤ 3 s",
            back <= Duration::from_secs(3),
        ),
        row("… counting them", format!("{} ms", counted.as_millis()), "–", true),
    ])
}
