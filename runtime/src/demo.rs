//! `skep demo`: builds the samples, starts a node, and runs both samples on real input, over the same doors that users have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::stream::{FuturesUnordered, StreamExt as _};
use skep_client::Gateway;
use skep_model::limits::UPLOAD_CHUNK_BYTES;
use skep_proto::v1::beekeeper_client::BeekeeperClient;
use skep_proto::v1::{self, push_module_request::Part};
use tonic::transport::Channel;

use crate::cli::build::build_bees;
use crate::cli::progress::Progress;
use crate::node::{Node, NodeSettings};

/// Questions under way at once when the counts are read back.
const ASK_AT_ONCE: usize = 256;
/// How long the word count may take on a slow machine.
const COUNTED_WITHIN: Duration = Duration::from_secs(300);

/// Runs the demo; an error means that something that it promises did not happen.
pub async fn run() -> anyhow::Result<()> {
    let progress = &Progress::stderr();
    let samples = samples()?;
    say("1. building the sample Bees for wasm32-wasip2");
    let hello = one(build_bees(&samples.join("hello-world"), progress).await?)?;
    let words = one(build_bees(&samples.join("word-count"), progress).await?)?;

    let data = tempfile::Builder::new()
        .prefix("skep-demo-")
        .tempdir()
        .context("make a temporary folder")?;
    say("2. starting a node on the embedded backend");
    let node = Node::start(NodeSettings {
        sample_ratio: 1.0,
        ..NodeSettings::local(data.path().join("data"))?
    })
    .await?;
    println!("   {} with its data in {}", node.url(), data.path().display());
    let result = play(&node, &samples, &hello, &words).await;
    let counters = node.counters();
    let stopped = node.stop().await;
    result?;
    stopped?;
    println!(
        "   the node made {} commits durable with {} flushes of the disk",
        counters.commits, counters.flushes
    );
    say("all of it worked. Next: `skep serve --data DIR`, or `skep up samples/hello-world` and edit the Bee");
    Ok(())
}

async fn play(node: &Node, samples: &Path, hello: &Path, words: &Path) -> anyhow::Result<()> {
    let mut keeper = BeekeeperClient::connect(node.url()).await.context("reach the node")?;
    say("3. uploading the modules over gRPC");
    push(&mut keeper, "hello", hello).await?;
    push(&mut keeper, "word-count", words).await?;
    say("4. applying the Swarms");
    apply(&mut keeper, &samples.join("hello-world/swarm.yaml")).await?;
    apply(&mut keeper, &samples.join("word-count/swarm.yaml")).await?;

    let gateway = Gateway::connect(node.url()).await?;
    say("5. hello-world: requests, each answered by two sandboxed Bees");
    for name in ["Bee", "World", "Höðr"] {
        greet(&gateway, name).await?;
    }
    let lines = std::fs::read_to_string(samples.join("hello-world/lines.txt")).context("read lines.txt")?;
    let messages: Vec<String> = lines.lines().map(str::to_owned).collect();
    let submitted = gateway.submit("hello-world", messages).await?;
    println!(
        "   submitted {} more, durable, without waiting for their answers",
        submitted.accepted
    );

    say("6. word-count: a book as a stream, counted exactly once by a keyed Bee");
    count_words(&mut keeper, &gateway, &samples.join("word-count/book.txt")).await
}

async fn greet(gateway: &Gateway, name: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    let payload = serde_json::json!({ "name": name }).to_string();
    let answer = gateway.request("hello-world", payload).await?;
    let took = began.elapsed();
    println!("   {} in {}", answer.text(), micros(took));
    let expected = format!("Hello {name}, and goodbye!");
    ensure!(
        answer.text().contains(&expected),
        "expected `{expected}`, got `{}`",
        answer.text()
    );
    for hop in &answer.hops {
        println!(
            "      {:>8} after {:>8}, took {:>8}",
            hop.stage,
            micros(hop.started),
            micros(hop.took)
        );
    }
    ensure!(
        answer.hops.len() == 2,
        "expected the path over two Bees, got {:?}",
        answer.hops
    );
    if let Some(trace) = &answer.trace_id {
        println!("      trace {trace}");
    }
    Ok(())
}

async fn count_words(keeper: &mut BeekeeperClient<Channel>, gateway: &Gateway, book: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(book).with_context(|| format!("read {}", book.display()))?;
    let plain = plain_count(&text);
    let began = Instant::now();
    let mut stream = gateway.submit_stream("word-count");
    for line in text.lines() {
        stream.send(line.to_owned()).await?;
    }
    let durable = stream.finish().await?.durable;
    let submitted = began.elapsed();
    let emitted = drained(keeper, "word-count", began + COUNTED_WITHIN).await?;
    let counted = began.elapsed();
    println!(
        "   {durable} lines ({} KB) durable in {submitted:.2?}; {emitted} keyed updates done after {counted:.2?}",
        text.len() / 1_000
    );

    // Every word is asked for, by as many callers at once as fit.
    let mut asked = plain.keys();
    let ask = |word: &String| {
        let (gateway, word) = (gateway.clone(), word.clone());
        async move {
            let answer = gateway.request("count-of", word.clone()).await;
            (word, answer)
        }
    };
    let mut under_way: FuturesUnordered<_> = asked.by_ref().take(ASK_AT_ONCE).map(ask).collect();
    let mut right = 0usize;
    while let Some((word, answer)) = under_way.next().await {
        let answer = answer.with_context(|| format!("ask for `{word}`"))?;
        let answer = answer.text();
        let expected = plain[&word].to_string();
        ensure!(
            answer == expected,
            "`{word}`: the Swarm counted {answer}, a plain count gives {expected}"
        );
        right += 1;
        under_way.extend(asked.next().map(ask));
    }
    ensure!(right == plain.len(), "{right} of {} words were answered", plain.len());
    let mut most: Vec<(&String, &u64)> = plain.iter().collect();
    most.sort_by_key(|(word, count)| (std::cmp::Reverse(**count), (*word).clone()));
    let top: Vec<String> = most
        .iter()
        .take(5)
        .map(|(word, count)| format!("{word} {count}"))
        .collect();
    println!(
        "   all {right} words agree with a plain count; most frequent: {}",
        top.join(", ")
    );
    Ok(())
}

/// What the Swarm must agree with: the same rule for words, no Swarm.
fn plain_count(text: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for word in text
        .to_lowercase()
        .split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|w| w.trim_matches('\''))
        .filter(|w| !w.is_empty())
    {
        *counts.entry(word.to_owned()).or_default() += 1;
    }
    counts
}

/// Waits until nothing is unread or parked; returns how many messages the last stage processed.
async fn drained(keeper: &mut BeekeeperClient<Channel>, swarm: &str, until: Instant) -> anyhow::Result<u64> {
    loop {
        let call = v1::DescribeSwarmRequest {
            name: swarm.to_owned(),
            count_keys: false,
        };
        let told = keeper.describe_swarm(call).await?.into_inner();
        if told.stages.iter().all(|s| s.unread + s.parked == 0) {
            let dead: u64 = told.stages.iter().map(|s| s.dead).sum();
            ensure!(dead == 0, "{dead} messages were dead-lettered: {:?}", told.stages);
            return Ok(told.stages.last().map_or(0, |s| s.processed));
        }
        if Instant::now() > until {
            bail!("`{swarm}` is not done: {:?}", told.stages);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn push(keeper: &mut BeekeeperClient<Channel>, name: &str, wasm: &Path) -> anyhow::Result<()> {
    let bytes = tokio::fs::read(wasm)
        .await
        .with_context(|| format!("read {}", wasm.display()))?;
    let began = Instant::now();
    let header = v1::PushHeader {
        name: name.to_owned(),
        // The manifests of the samples name no tag, which means this one.
        tag: "latest".to_owned(),
        digest: skep_model::id::Digest::of(&bytes).to_hex(),
        size: bytes.len() as u64,
        signature: String::new(),
    };
    let mut parts = vec![v1::PushModuleRequest {
        part: Some(Part::Header(header)),
    }];
    let bytes = bytes::Bytes::from(bytes);
    let size = bytes.len();
    for at in (0..size).step_by(UPLOAD_CHUNK_BYTES) {
        let chunk = bytes.slice(at..size.min(at + UPLOAD_CHUNK_BYTES));
        parts.push(v1::PushModuleRequest {
            part: Some(Part::Chunk(chunk)),
        });
    }
    let reply = keeper.push_module(futures::stream::iter(parts)).await?.into_inner();
    println!(
        "   {name}: {} KB, {}, Bees {}; checked and compiled in {} ms, uploaded in {:.0?}",
        size / 1_000,
        &reply.digest[..19.min(reply.digest.len())],
        reply.bees.join(", "),
        reply.compile_ms,
        began.elapsed()
    );
    Ok(())
}

async fn apply(keeper: &mut BeekeeperClient<Channel>, manifest: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(manifest).with_context(|| format!("read {}", manifest.display()))?;
    let call = v1::ApplySwarmRequest {
        manifest: text,
        ..v1::ApplySwarmRequest::default()
    };
    let reply = keeper.apply_swarm(call).await?.into_inner();
    println!(
        "   {} revision {}: {} changes",
        reply.swarm,
        reply.revision,
        reply.changes.len()
    );
    Ok(())
}

/// The samples beside this source tree: where cargo says that it is, or above the current folder.
fn samples() -> anyhow::Result<PathBuf> {
    let mut from: Vec<PathBuf> = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    from.extend(std::env::current_dir());
    for start in from {
        for dir in start.ancestors() {
            let samples = dir.join("samples");
            if samples.join("hello-world/swarm.yaml").is_file() {
                return Ok(samples);
            }
        }
    }
    bail!("the demo builds the folder samples/ of skep's source tree and does not find it: run it from there")
}

fn one(built: Vec<crate::cli::build::Built>) -> anyhow::Result<PathBuf> {
    match <[_; 1]>::try_from(built) {
        Ok([only]) => Ok(only.wasm),
        Err(many) => bail!("expected one module, built {}", many.len()),
    }
}

fn micros(d: Duration) -> String {
    let us = d.as_micros();
    if us < 10_000 {
        format!("{us} us")
    } else {
        format!("{} ms", us / 1_000)
    }
}

fn say(text: &str) {
    println!("\n{text}");
}
