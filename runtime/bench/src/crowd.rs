//! Answers in parts, more load than a Bee can bear, and two subjects on one node: for `skep-bench crowd`, and in the report.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use skep_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::echo::PART_BYTES;
use crate::load;
use crate::node::{self, Server};
use crate::report::{PAYLOAD_BYTES, ROUNDS, Row, SPAN, count, middle, us};

const PARTS: u64 = 2_000;
/// What is offered, in times of what the Bee can do.
const OVER: f64 = 5.0;
/// Calls that are sent at a time, so that a generator on two cores keeps its rate.
const TICK: Duration = Duration::from_millis(5);

const SWARMS: &str = "
name: spoken
bees:
  - { name: parrot, module: test-bees, input: { gateway: spoken } }
---
name: kept
bees:
  - { name: parrot, module: test-bees, input: { gateway: kept }, key: message, state: true }
---
name: nap
bees:
  - { name: nap, module: test-bees, input: { gateway: nap }, batch: { messages: 1 } }
---
name: echo
bees:
  - { name: echo, module: test-bees, input: { gateway: echo } }
";

/// `parts`: of `parts`, `overload`, `fairness`; none is all.
pub async fn measure(
    binaries: &Path,
    wasm: &[u8],
    dir: &Path,
    echo: &Server,
    parts: &[&str],
) -> anyhow::Result<Vec<Row>> {
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let skep = Server::skep(&binaries.join("skep"), &dir.join("crowd"))?;
    let mut keeper = skep.keeper().await?;
    node::push(&mut keeper, "test-bees", wasm).await?;
    for manifest in SWARMS.split("---") {
        node::apply(&mut keeper, manifest).await?;
    }
    let mut rows = Vec::new();
    if wanted("parts") {
        rows.extend(streamed(echo, &skep).await?);
    }
    if wanted("overload") {
        rows.extend(overload(&skep).await?);
    }
    if wanted("fairness") {
        rows.push(fairness(&skep).await?);
    }
    Ok(rows)
}

// ---------------------------------------------------------------------------------------------------------- parts

/// One stream of parts: until the first, and parts a second.
async fn stream(url: &str, subject: &str, payload: String) -> anyhow::Result<(Duration, f64)> {
    let mut gateway = load::connect(url).await?;
    let began = Instant::now();
    let call = v1::RequestCall {
        subject: subject.to_owned(),
        payload: payload.into(),
        key: Some("k".to_owned()),
        ..v1::RequestCall::default()
    };
    let mut parts = gateway.request_stream(call).await?.into_inner();
    let (mut first, mut seen) = (None, 0u64);
    while let Some(part) = parts.message().await? {
        first.get_or_insert_with(|| began.elapsed());
        seen += u64::from(matches!(part.kind, Some(v1::stream_part::Kind::Part(_))));
    }
    if seen != PARTS {
        bail!("{seen} parts of {PARTS}");
    }
    Ok((first.context("a part")?, seen as f64 / began.elapsed().as_secs_f64()))
}

async fn streamed(echo: &Server, skep: &Server) -> anyhow::Result<Vec<Row>> {
    let ask = format!(r#"{{"parts":{PARTS},"bytes":{PART_BYTES}}}"#);
    let mut firsts: [Vec<Duration>; 3] = Default::default();
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        let sides = [
            (&echo.url, "raw", PARTS.to_string()),
            (&skep.url, "spoken", ask.clone()),
            (&skep.url, "kept", ask.clone()),
        ];
        for (i, (url, subject, payload)) in sides.into_iter().enumerate() {
            let (first, rate) = stream(url, subject, payload).await?;
            firsts[i].push(first);
            rates[i].push(rate);
        }
    }
    let [raw, lane, kept] = &mut rates;
    let (raw, lane, kept) = (middle(raw), middle(lane), middle(kept));
    let [first_raw, first_lane, first_kept] = &mut firsts;
    let first = (
        load::median(first_raw)?,
        load::median(first_lane)?,
        load::median(first_kept)?,
    );
    let row = |measure, ours: f64, first: Duration, first_raw: Duration| Row {
        measure,
        ours: format!("{} parts/s, the first after {}", count(ours), us(first)),
        ceiling: format!("{} raw tonic stream, {}", count(raw), us(first_raw)),
        ratio: format!("{:.2} ×", ours / raw),
        goal: "–",
        met: true,
    };
    Ok(vec![
        row("answer in parts, one caller, in memory", lane, first.1, first.0),
        row("answer in parts, one caller, durable and keyed", kept, first.2, first.0),
    ])
}

// ------------------------------------------------------------------------------------------------------- overload

#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    refused: Mutex<Vec<Duration>>,
    hints: AtomicU64,
}

/// Offers `rate` calls a second on one stream, whatever comes back.
async fn offer(url: &str, subject: &str, rate: f64, span: Duration) -> anyhow::Result<(f64, Vec<Duration>, u64)> {
    let mut gateway = load::connect(url).await?;
    let (tx, rx) = mpsc::channel(65_536);
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let seen = Arc::new(Seen::default());
    let sent: Arc<Mutex<HashMap<u64, Instant>>> = Arc::default();
    let (times, subject) = (Arc::clone(&sent), subject.to_owned());
    let began = Instant::now();
    let feeder = tokio::spawn(async move {
        let mut id = 0u64;
        while began.elapsed() < span {
            let due = (began.elapsed().as_secs_f64() * rate) as u64;
            while id < due {
                id += 1;
                times
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(id, Instant::now());
                let call = v1::RequestCall {
                    id,
                    subject: subject.clone(),
                    payload: payload.clone(),
                    ..v1::RequestCall::default()
                };
                if tx.send(call).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(TICK).await;
        }
    });
    let mut replies = gateway.requests(ReceiverStream::new(rx)).await?.into_inner();
    let mut end = None;
    while let Some(reply) = replies.message().await? {
        let took = sent.lock().unwrap_or_else(PoisonError::into_inner).remove(&reply.id);
        match reply.result {
            // What is answered after the load has ended does not count.
            Some(v1::reply::Result::Response(_)) if began.elapsed() <= span => {
                seen.answered.fetch_add(1, Ordering::Relaxed);
            }
            Some(v1::reply::Result::Response(_)) => {}
            Some(v1::reply::Result::Failure(failure)) if failure.code == tonic::Code::ResourceExhausted as i32 => {
                seen.hints
                    .fetch_add(u64::from(failure.retry_after_ms > 0), Ordering::Relaxed);
                let took = took.context("a call that was sent")?.elapsed();
                seen.refused.lock().unwrap_or_else(PoisonError::into_inner).push(took);
            }
            other => bail!("{other:?}"),
        }
        end = Some(Instant::now());
    }
    feeder.await?;
    end.context("no answer at all")?;
    let refused = std::mem::take(&mut *seen.refused.lock().unwrap_or_else(PoisonError::into_inner));
    let answered = seen.answered.load(Ordering::Relaxed) as f64 / span.as_secs_f64();
    Ok((answered, refused, seen.hints.load(Ordering::Relaxed)))
}

async fn overload(skep: &Server) -> anyhow::Result<Vec<Row>> {
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let span = 2 * SPAN;
    let (mut peaks, mut goods, mut refused, mut hints) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let peak = load::pipelined(&skep.url, "nap", &payload, 64, SPAN).await?;
        let (good, late, hinted) = offer(&skep.url, "nap", OVER * peak, span).await?;
        peaks.push(peak);
        goods.push(good);
        refused.extend(late);
        hints += hinted;
    }
    let (peak, good) = (middle(&mut peaks), middle(&mut goods));
    refused.sort_unstable();
    let at = |share: f64| {
        refused
            .get((refused.len() as f64 * share) as usize)
            .copied()
            .unwrap_or_default()
    };
    let (p50, p99) = (at(0.5), at(0.99));
    Ok(vec![
        Row {
            measure: "goodput at 5 × the load that a Bee can bear",
            ours: format!("{} answers/s", count(good)),
            ceiling: format!("{} at its peak", count(peak)),
            ratio: format!("{:.2} ×", good / peak),
            goal: "≥ 0.9 ×",
            met: good / peak >= 0.9,
        },
        Row {
            measure: "… until a refusal, p99",
            ours: us(p99),
            ceiling: format!("{} p50, {} refusals, {hints} with a hint", us(p50), refused.len()),
            ratio: "–".to_owned(),
            goal: "≤ 10 ms",
            met: !refused.is_empty() && p99 <= Duration::from_millis(10),
        },
    ])
}

// ------------------------------------------------------------------------------------------------------- fairness

async fn fairness(skep: &Server) -> anyhow::Result<Row> {
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(load::median(
            &mut load::one_by_one(&skep.url, "echo", &payload, 0, SPAN).await?,
        )?);
        let peak = load::pipelined(&skep.url, "nap", &payload, 64, SPAN / 2).await?;
        let ended = Arc::new(AtomicBool::new(false));
        let (url, done) = (skep.url.clone(), Arc::clone(&ended));
        let flood = tokio::spawn(async move {
            let flooded = offer(&url, "nap", OVER * peak, 2 * SPAN).await;
            done.store(true, Ordering::SeqCst);
            flooded.map(|_| ())
        });
        // Until it is full.
        tokio::time::sleep(SPAN / 2).await;
        beside.push(load::median(
            &mut load::one_by_one(&skep.url, "echo", &payload, 0, SPAN).await?,
        )?);
        if ended.load(Ordering::SeqCst) {
            bail!("the flood was over too soon");
        }
        flood.await??;
    }
    let (alone, beside) = (load::median(&mut alone)?, load::median(&mut beside)?);
    Ok(Row {
        measure: "request p50 of one subject while another is flooded at 5 ×",
        ours: us(beside),
        ceiling: format!("{} alone", us(alone)),
        ratio: format!("{:.2} ×", beside.as_secs_f64() / alone.as_secs_f64()),
        goal: "–",
        met: true,
    })
}
