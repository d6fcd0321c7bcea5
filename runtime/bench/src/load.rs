//! One load generator for the raw echo and for a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

pub async fn connect(url: &str) -> anyhow::Result<GatewayClient<Channel>> {
    let channel = Endpoint::from_shared(url.to_owned())?
        .tcp_nodelay(true)
        .connect()
        .await?;
    Ok(GatewayClient::new(channel))
}

fn call(subject: &str, id: u64, payload: &Bytes, key: Option<String>) -> v1::RequestCall {
    v1::RequestCall {
        id,
        subject: subject.to_owned(),
        payload: payload.clone(),
        key,
        ..v1::RequestCall::default()
    }
}

fn check(reply: &v1::Reply) -> anyhow::Result<()> {
    match &reply.result {
        Some(v1::reply::Result::Response(_)) => Ok(()),
        other => bail!("not a response: {other:?}"),
    }
}

/// One call after another; each one's time.
pub async fn one_by_one(
    url: &str,
    subject: &str,
    payload: &Bytes,
    keys: u64,
    span: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let mut gateway = connect(url).await?;
    let mut times = Vec::new();
    let began = Instant::now();
    let mut i = 0;
    while began.elapsed() < span {
        i += 1;
        let key = (keys > 0).then(|| format!("k{}", i % keys));
        let at = Instant::now();
        let reply = gateway.request(call(subject, i, payload, key)).await?;
        times.push(at.elapsed());
        check(&reply.into_inner())?;
    }
    Ok(times)
}

/// `callers` at once on one connection; calls a second.
pub async fn unary(url: &str, subject: &str, payload: &Bytes, callers: u64, span: Duration) -> anyhow::Result<f64> {
    let gateway = connect(url).await?;
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for id in 0..callers {
        let (mut gateway, payload, subject, done) =
            (gateway.clone(), payload.clone(), subject.to_owned(), Arc::clone(&done));
        tasks.spawn(async move {
            while began.elapsed() < span {
                let reply = gateway.request(call(&subject, id, &payload, None)).await?;
                check(&reply.into_inner())?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// One stream with `window` calls under way; calls a second.
pub async fn pipelined(
    url: &str,
    subject: &str,
    payload: &Bytes,
    window: usize,
    span: Duration,
) -> anyhow::Result<f64> {
    let mut gateway = connect(url).await?;
    let (tx, rx) = mpsc::channel(window);
    let (subject, payload) = (subject.to_owned(), payload.clone());
    let began = Instant::now();
    let permits = Arc::new(tokio::sync::Semaphore::new(window));
    let feed = Arc::clone(&permits);
    let feeder = tokio::spawn(async move {
        let mut id = 0;
        while began.elapsed() < span {
            let Ok(permit) = feed.acquire().await else { return id };
            permit.forget();
            id += 1;
            if tx.send(call(&subject, id, &payload, None)).await.is_err() {
                return id;
            }
        }
        id
    });
    let mut replies = gateway.requests(ReceiverStream::new(rx)).await?.into_inner();
    let mut got = 0u64;
    while let Some(reply) = replies.message().await? {
        check(&reply)?;
        got += 1;
        permits.add_permits(1);
    }
    let sent = feeder.await?;
    if got != sent {
        bail!("{sent} calls were sent and {got} answered");
    }
    Ok(got as f64 / began.elapsed().as_secs_f64())
}

/// What a streamed submit did.
pub struct Streamed {
    pub messages: u64,
    /// Until the last acknowledgement.
    pub took: Duration,
}

/// Submits `messages` on one stream in frames of `frame`; ends at the last durable acknowledgement.
pub async fn submit(
    url: &str,
    subject: &str,
    payload: &Bytes,
    keys: u64,
    messages: u64,
    frame: u64,
    session: u8,
) -> anyhow::Result<Streamed> {
    let mut gateway = connect(url).await?;
    let mut durable = 0;
    let began = Instant::now();
    // A full inbox sheds; the session goes on from the last durable message, as the client SDK does.
    while durable < messages {
        let (tx, rx) = mpsc::channel(64);
        let (subject, payload) = (subject.to_owned(), payload.clone());
        let from = durable + 1;
        let feeder = tokio::spawn(async move {
            let mut first = from;
            while first <= messages {
                let until = (first + frame).min(messages + 1);
                let out = |i: u64| v1::OutMessage {
                    payload: payload.clone(),
                    key: (keys > 0).then(|| format!("k{}", i % keys)),
                    ..v1::OutMessage::default()
                };
                let begin = first == from;
                let frame = v1::SubmitFrame {
                    subject: if begin { subject.clone() } else { String::new() },
                    session: if begin { vec![session; 16].into() } else { Bytes::new() },
                    first,
                    messages: (first..until).map(out).collect(),
                    traceparent: None,
                };
                if tx.send(frame).await.is_err() {
                    return;
                }
                first = until;
            }
        });
        let mut acks = gateway.submit_stream(ReceiverStream::new(rx)).await?.into_inner();
        while let Some(ack) = acks.message().await? {
            durable = durable.max(ack.durable);
            if let Some(failure) = ack.failure {
                if failure.outcome() != v1::Outcome::NotDone {
                    bail!("submit: {failure:?}");
                }
                tokio::time::sleep(Duration::from_millis(failure.retry_after_ms.clamp(1, 50))).await;
                break;
            }
            if durable == messages {
                break;
            }
        }
        feeder.abort();
    }
    Ok(Streamed {
        messages,
        took: began.elapsed(),
    })
}

/// The middle one; the list is sorted by this.
pub fn median(times: &mut [Duration]) -> anyhow::Result<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("no call was made")
}
