//! The ceiling under a Gateway, and the Gateway under the same load: one client code measures both, in one run.
//!
//! ```text
//! echo_ceiling                                    a raw tonic echo in a process of its own, as a node is
//! echo_ceiling --target http://HOST:PORT --subject hello-world     the same load on a node
//!   --seconds N   of each measure, 2 unless given
//!   --bytes N     of a payload, 200 unless given
//! ```
//! Prints one JSON object: `p50_us` and `p99_us` at concurrency 1, `unary_per_s` at 64, `stream_per_s` with 64 × 16 in flight.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _};
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use skep_proto::v1::gateway_server::{Gateway, GatewayServer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

const CALLERS: usize = 64;
const STREAM_WINDOW: usize = 1_024;

/// What tonic alone can do with the Gateway's own messages.
struct Echo;

fn echo(call: v1::RequestCall) -> v1::Reply {
    v1::Reply {
        id: call.id,
        result: Some(v1::reply::Result::Response(call.payload)),
        ..v1::Reply::default()
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Gateway for Echo {
    async fn request(&self, request: Request<v1::RequestCall>) -> Result<Response<v1::Reply>, Status> {
        Ok(Response::new(echo(request.into_inner())))
    }

    type RequestsStream = Answers<v1::Reply>;

    async fn requests(
        &self,
        request: Request<Streaming<v1::RequestCall>>,
    ) -> Result<Response<Self::RequestsStream>, Status> {
        Ok(Response::new(Box::pin(request.into_inner().map(|call| call.map(echo)))))
    }

    async fn submit(&self, _: Request<v1::SubmitCall>) -> Result<Response<v1::SubmitReply>, Status> {
        Err(Status::unimplemented("an echo takes no submits"))
    }

    type RequestStreamStream = tokio_stream::Empty<Result<v1::StreamPart, Status>>;

    async fn request_stream(&self, _: Request<v1::RequestCall>) -> Result<Response<Self::RequestStreamStream>, Status> {
        Err(Status::unimplemented("not measured here"))
    }

    type SubmitStreamStream = Answers<v1::SubmitAck>;

    async fn submit_stream(
        &self,
        _: Request<Streaming<v1::SubmitFrame>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        Err(Status::unimplemented("an echo takes no submits"))
    }
}

struct Load {
    client: GatewayClient<Channel>,
    call: v1::RequestCall,
    time: Duration,
}

impl Load {
    /// Latencies at concurrency 1, sorted.
    async fn alone(&self) -> Result<Vec<Duration>, Status> {
        let mut client = self.client.clone();
        let mut took = Vec::new();
        let until = Instant::now() + self.time;
        while Instant::now() < until {
            let start = Instant::now();
            client.request(self.call.clone()).await?;
            took.push(start.elapsed());
        }
        took.sort_unstable();
        Ok(took)
    }

    /// Calls a second by [`CALLERS`] callers on one connection.
    async fn together(&self) -> Result<f64, Box<dyn Error>> {
        let done = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let until = start + self.time;
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (mut client, call, done) = (self.client.clone(), self.call.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    while Instant::now() < until {
                        client.request(call.clone()).await?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, Status>(())
                })
            })
            .collect();
        for caller in callers {
            caller.await??;
        }
        Ok(rate(done.load(Ordering::Relaxed), start))
    }

    /// Messages a second on one stream.
    async fn streamed(&self) -> Result<f64, Box<dyn Error>> {
        let (calls, outgoing) = mpsc::unbounded_channel();
        let window = Arc::new(Semaphore::new(STREAM_WINDOW));
        let mut client = self.client.clone();
        let start = Instant::now();
        let until = start + self.time;
        let sender = {
            let (window, call) = (Arc::clone(&window), self.call.clone());
            tokio::spawn(async move {
                let mut id = 0;
                while Instant::now() < until {
                    // In bulk, as a pipelining client has them.
                    let Ok(places) = window.acquire_many(64).await else {
                        return;
                    };
                    places.forget();
                    for _ in 0..64 {
                        id += 1;
                        if calls.send(v1::RequestCall { id, ..call.clone() }).is_err() {
                            return;
                        }
                    }
                }
            })
        };
        let mut replies = client
            .requests(UnboundedReceiverStream::new(outgoing))
            .await?
            .into_inner();
        let mut done = 0;
        while let Some(reply) = replies.message().await? {
            if let Some(v1::reply::Result::Failure(failure)) = reply.result {
                return Err(format!("{}: {}", failure.reason, failure.message).into());
            }
            done += 1;
            window.add_permits(1);
        }
        sender.await?;
        Ok(rate(done, start))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(done: u64, start: Instant) -> f64 {
    (done as f64 / start.elapsed().as_secs_f64()).round()
}

fn micros(took: &[Duration], percent: usize) -> u128 {
    took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)))
        .map_or(0, Duration::as_micros)
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut target = None;
    let mut subject = "echo".to_owned();
    let (mut seconds, mut bytes) = (2_u64, 200_usize);
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().is_some_and(|flag| flag == ECHO) {
        return serve_echo().await;
    }
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--target" => target = Some(value),
            "--subject" => subject = value,
            "--seconds" => seconds = value.parse()?,
            "--bytes" => bytes = value.parse()?,
            _ => return Err(format!("no flag {flag}; there are --target, --subject, --seconds, --bytes").into()),
        }
    }
    let of = if target.is_some() { "node" } else { "echo" };
    let mut server = None;
    let url = match target {
        Some(url) => url,
        None => {
            let child = Child::start()?;
            let url = child.url.clone();
            server = Some(child);
            url
        }
    };
    let channel = Endpoint::from_shared(url)?
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .connect()
        .await?;
    // A JSON string, so that Bees that expect JSON can be measured too.
    let payload = format!("\"{}\"", "x".repeat(bytes.saturating_sub(2)));
    let load = Load {
        client: GatewayClient::new(channel),
        call: v1::RequestCall {
            subject,
            payload: payload.into(),
            ..v1::RequestCall::default()
        },
        time: Duration::from_secs(seconds),
    };
    // Warm: connection, caches, prepared instances.
    for _ in 0..200 {
        load.client.clone().request(load.call.clone()).await?;
    }
    let alone = load.alone().await?;
    let together = load.together().await?;
    let streamed = load.streamed().await?;
    let report = serde_json::json!({
        "of": of,
        "bytes": bytes,
        "p50_us": u64::try_from(micros(&alone, 50))?,
        "p99_us": u64::try_from(micros(&alone, 99))?,
        "unary_per_s": together,
        "stream_per_s": streamed,
    });
    println!("{report}");
    drop(server);
    Ok(())
}

/// Runs the echo alone; used by this program itself.
const ECHO: &str = "--echo";

async fn serve_echo() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    Server::builder()
        .add_service(GatewayServer::new(Echo))
        // The builder's own `tcp_nodelay` has no effect on a listener that is handed in.
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

/// The echo's process, which ends with this one.
struct Child {
    process: std::process::Child,
    url: String,
}

impl Child {
    fn start() -> Result<Self, Box<dyn Error>> {
        let mut process = std::process::Command::new(std::env::current_exe()?)
            .arg(ECHO)
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let mut url = String::new();
        let out = process.stdout.take().ok_or("the echo has no output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut url)?;
        Ok(Self {
            process,
            url: url.trim().to_owned(),
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
