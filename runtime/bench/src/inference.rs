//! Servers of the Open Inference Protocol beside each other, in turns: one model, one row a call, over gRPC with raw tensors.
//!
//! `skep-bench inference MODEL INPUT COLUMNS NAME=http://HOST:PORT…`. Each server is started by whoever measures; `runtime/bench/python` has
//! MLServer with ONNX Runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use skep_proto::bounded::Codec;
use skep_proto::inference::model_infer_request::InferInputTensor;
use skep_proto::inference::{ModelInferRequest, ModelInferResponse};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

use crate::load;

const ROUNDS: usize = 3;
const SPAN: Duration = Duration::from_millis(2_000);
const CALLERS: usize = 64;

/// Prints one line a server.
///
/// # Errors
/// A server that does not answer, or answers wrong.
pub fn run(model: &str, input: &str, columns: &str, servers: &[&str]) -> anyhow::Result<()> {
    let columns: i64 = columns.parse().context("COLUMNS is a number")?;
    ensure!(
        columns > 0 && !servers.is_empty(),
        "at least one column and one server NAME=URL"
    );
    let request = ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: input.to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, columns],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![Bytes::from(1f32.to_le_bytes().repeat(usize::try_from(columns)?))],
        ..ModelInferRequest::default()
    };
    tokio::runtime::Runtime::new()?.block_on(measure(&request, servers))
}

async fn measure(request: &ModelInferRequest, servers: &[&str]) -> anyhow::Result<()> {
    let mut sides = Vec::new();
    for server in servers {
        let (name, url) = server.split_once('=').context("a server is NAME=URL")?;
        let channel = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect().await;
        let channel = channel.with_context(|| format!("connect to {name} at {url}"))?;
        many(&channel, request, SPAN / 4)
            .await
            .with_context(|| format!("call {name}"))?;
        sides.push((name, channel, Vec::new(), Vec::new()));
    }
    for _ in 0..ROUNDS {
        for (_, channel, alone, rates) in &mut sides {
            let mut times = Vec::new();
            let began = Instant::now();
            while began.elapsed() < SPAN / 2 {
                let at = Instant::now();
                infer(channel, request).await?;
                times.push(at.elapsed());
            }
            alone.push(load::median(&mut times)?);
            rates.push(many(channel, request, SPAN).await?);
        }
    }
    for (name, _, alone, rates) in &mut sides {
        rates.sort_by(f64::total_cmp);
        println!(
            "{name}: a call alone p50 {:.0} us, {:.0} calls/s from {CALLERS} callers",
            load::median(alone)?.as_secs_f64() * 1e6,
            rates[ROUNDS / 2]
        );
    }
    Ok(())
}

/// Callers on one connection, as one client has it; calls a second.
async fn many(channel: &Channel, request: &ModelInferRequest, span: Duration) -> anyhow::Result<f64> {
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let (channel, request, done) = (channel.clone(), request.clone(), Arc::clone(&done));
        tasks.spawn(async move {
            while began.elapsed() < span {
                infer(&channel, &request).await?;
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

async fn infer(channel: &Channel, request: &ModelInferRequest) -> anyhow::Result<()> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/inference.GRPCInferenceService/ModelInfer");
    let codec = Codec::<ModelInferRequest, ModelInferResponse>::default();
    let answer = grpc.unary(tonic::Request::new(request.clone()), path, codec).await?;
    ensure!(!answer.get_ref().outputs.is_empty(), "an answer without outputs");
    Ok(())
}
