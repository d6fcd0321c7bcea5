//! What each feature of a Swarm costs: the same messages through a plain stage and through one that uses the feature, by turns.

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;

use crate::load;
use crate::node::{self, Server};
use crate::report::{PAYLOAD_BYTES, ROUNDS, Row, SENT_FRAME, count, middle};

const MESSAGES: u64 = 50_000;
const KEYS: u64 = 10_000;
const INBOX: &str = "inbox: { messages: 1000000, bytes: 512MiB }";

/// A feature, and the stages that use it, of which the last sees every message once. `I` stands for the large inbox.
const FEATURES: [(&str, &str, &str); 9] = [
    (
        "plain",
        "the plain hop: one stage, no key",
        "{ name: pass, module: b, input: { gateway: plain }, I }",
    ),
    (
        "keyed",
        "… with a key",
        "{ name: last, module: b, bee: pass, input: { gateway: keyed }, key: message, I }",
    ),
    (
        "state",
        "… a key and a count in state",
        "{ name: tally, module: b, input: { gateway: state }, key: message, state: true, I }",
    ),
    (
        "aged",
        "… a key and a count that goes after a day",
        "{ name: tally, module: b, input: { gateway: aged }, key: message, state: { ttl: 1d }, I }",
    ),
    (
        "budget",
        "… with a retry budget",
        "{ name: pass, module: b, input: { gateway: budget }, retry: { budget: { percent: 20 } }, I }",
    ),
    (
        "hops",
        "two stages",
        "{ name: first, module: b, bee: pass, input: { gateway: hops }, I }
  - { name: last, module: b, bee: pass, input: { bee: first }, I }",
    ),
    (
        "branch",
        "two stages, a condition between them",
        "{ name: first, module: b, bee: pass, input: { gateway: branch }, I }
  - { name: last, module: b, bee: pass, input: { bee: first, when: { header: kind, exists: false } }, I }",
    ),
    (
        "fan",
        "one stage to two, and both to one",
        "{ name: first, module: b, bee: pass, input: { gateway: fan }, key: message, I }
  - { name: left, module: b, bee: pass, input: { bee: first }, key: message, I }
  - { name: right, module: b, bee: pass, input: { bee: first }, key: message, I }
  - { name: last, module: b, bee: tally, input: [{ bee: left }, { bee: right }], key: message, state: true, I }",
    ),
    (
        "meet",
        "one stage to two, and both to a join",
        "{ name: first, module: b, bee: pass, input: { gateway: meet }, key: message, I }
  - { name: left, module: b, bee: pass, input: { bee: first }, key: message, I }
  - { name: right, module: b, bee: pass, input: { bee: first }, key: message, I }
  - { name: last, module: b, bee: both, input: { join: [left, right], within: 10m }, I }",
    ),
];

pub async fn measure(binaries: &Path, wasm: &[u8], dir: &Path) -> anyhow::Result<Vec<Row>> {
    let skep = Server::skep(&binaries.join("skep"), &dir.join("features"))?;
    let mut keeper = skep.keeper().await?;
    node::push(&mut keeper, "b", wasm).await?;
    for (name, _, stages) in FEATURES {
        let manifest = format!("name: {name}\nbees:\n  - {}\n", stages.replace('I', INBOX));
        node::apply(&mut keeper, &manifest).await?;
    }
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let mut rates = [const { Vec::new() }; FEATURES.len()];
    let mut spent = [const { Vec::new() }; FEATURES.len()];
    for round in 0..ROUNDS {
        for (at, (name, ..)) in FEATURES.iter().enumerate() {
            let cpu = skep.cpu()?;
            let began = Instant::now();
            let session = u8::try_from(round + 1)?;
            load::submit(&skep.url, name, &payload, KEYS, MESSAGES, SENT_FRAME, session).await?;
            // Of a fan-out, both copies.
            let copies = if *name == "fan" { 2 } else { 1 };
            let ended = node::processed(&mut keeper, name, copies * MESSAGES * (round as u64 + 1)).await?;
            rates[at].push(MESSAGES as f64 / ended.duration_since(began).as_secs_f64());
            spent[at].push((skep.cpu()? - cpu).as_secs_f64() / MESSAGES as f64 * 1e6);
        }
    }
    let middles: Vec<(f64, f64)> = rates
        .iter_mut()
        .zip(&mut spent)
        .map(|(rates, spent)| (middle(rates), middle(spent)))
        .collect();
    let (plain, plain_cpu) = middles[0];
    let rows = FEATURES.iter().zip(&middles).map(|((_, measure, _), (rate, cpu))| Row {
        measure,
        ours: format!("{} messages a second, {cpu:.1} us of CPU each", count(*rate)),
        ceiling: format!("{} and {plain_cpu:.1} us, the plain hop", count(plain)),
        ratio: format!("{:.2} ×, CPU {:.2} ×", rate / plain, cpu / plain_cpu),
        goal: "–",
        met: true,
    });
    Ok(rows.collect())
}
