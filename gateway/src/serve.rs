//! One port for gRPC and HTTP, with bounds on what a connection may cost before it has asked for anything.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use skep_model::limits::{
    GATEWAY_MESSAGE_BYTES_MAX, HTTP_HEADERS_BYTES_MAX, HTTP2_RESETS_MAX, HTTP2_STREAMS_MAX, KEEP_ALIVE_EVERY_MS,
    KEEP_ALIVE_TIMEOUT_MS,
};
use skep_model::predict::Models;
use skep_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use skep_proto::v1::gateway_server::GatewayServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::door::{Door, Guarded, Witness};
use crate::oip::Oip;
use crate::{grpc, http, oip};

/// After a failed accept, e.g. for want of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The preface of HTTP/2; every HTTP/1.1 request is longer.
const PREFACE_BYTES: usize = 24;
/// Window of one connection: what a client may send ahead of us over all its streams.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Window of one stream.
const STREAM_WINDOW: u32 = 1 << 20;

/// Where clients come in.
pub struct Entrance {
    pub listener: TcpListener,
    pub door: Arc<Door>,
    /// Who keeps records of what was changed and refused; `None`: nobody.
    pub witness: Option<Arc<dyn Witness>>,
    /// The node's models; `None`: it has none.
    pub models: Option<Arc<dyn Models>>,
    /// With certificates as they are now; `None`: in the clear.
    pub tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
}

/// All that is behind a port, whatever brings its connections.
pub struct Port {
    app: Guarded,
    builder: auto::Builder<TokioExecutor>,
    header_timeout: Duration,
    health: tonic_health::server::HealthReporter,
}

impl Port {
    /// `extra` is served beside the Gateway's own services.
    ///
    /// # Errors
    /// A descriptor set that cannot be read: a defect, found at start.
    pub async fn new(
        core: &Arc<Core>,
        door: Arc<Door>,
        witness: Option<Arc<dyn Witness>>,
        models: Option<Arc<dyn Models>>,
        extra: tonic::service::Routes,
    ) -> io::Result<Self> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<GatewayServer<grpc::Door>>().await;
        health
            .set_serving::<GrpcInferenceServiceServer<oip::grpc::Door>>()
            .await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(skep_proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(skep_proto::INFERENCE_DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(io::Error::other)?;
        let oip = Oip::new(Arc::clone(core), models);
        let app: Router = extra
            .add_service(grpc::service(core))
            .add_service(oip::grpc::service(&oip))
            .add_service(health_service)
            .add_service(reflection)
            .prepare()
            .into_axum_router()
            .reset_fallback()
            .merge(http::router(core))
            .merge(oip::http::router(&oip))
            .fallback(http::unknown_path);
        let header_timeout_ms = core.settings().header_timeout_ms;
        Ok(Self {
            app: Guarded::new(app, door, witness),
            builder: limits(header_timeout_ms),
            header_timeout: Duration::from_millis(header_timeout_ms),
            health,
        })
    }

    /// Serves one connection to its end. `from`: its other end; `closing`: what is under way may end, and nothing new begins.
    pub async fn connection<S>(&self, stream: S, from: SocketAddr, closing: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        one(&self.builder, stream, self.app.of(from), self.header_timeout, closing).await;
    }
}

/// Serves until `shutdown`, then lets what is under way end within `grace`. `extra` is served on the same port.
///
/// # Errors
/// A listener without a local address, or a descriptor set that cannot be read: defects, found at start.
pub async fn serve(
    at: Entrance,
    core: Arc<Core>,
    extra: tonic::service::Routes,
    shutdown: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> io::Result<()> {
    let Entrance {
        listener,
        door,
        witness,
        models,
        tls,
    } = at;
    let port = Arc::new(Port::new(&core, door, witness, models, extra).await?);
    let closing = CancellationToken::new();
    let permits = Arc::new(Semaphore::new(core.settings().connections));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            // At the bound further clients wait in the listener's backlog, which the kernel bounds.
            accepted = accept(&listener, &permits) => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (stream, from, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (port, closing) = (Arc::clone(&port), closing.clone());
        let acceptor = tls.as_ref().map(|now| TlsAcceptor::from(Arc::clone(&now.borrow())));
        connections.spawn(async move {
            let _permit = permit;
            let Some(acceptor) = acceptor else {
                return port.connection(stream, from, closing).await;
            };
            // Whoever says nothing, or another language, is gone in time.
            match tokio::time::timeout(port.header_timeout, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => port.connection(stream, from, closing).await,
                Ok(Err(error)) => tracing::debug!(%error, "a client and this node did not agree on TLS"),
                Err(_) => {}
            }
        });
    }
    drop(listener);
    let health = &port.health;
    health.set_not_serving::<GatewayServer<grpc::Door>>().await;
    health
        .set_not_serving::<GrpcInferenceServiceServer<oip::grpc::Door>>()
        .await;
    core.stopping().cancel();
    closing.cancel();
    let ended = tokio::time::timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!(left = connections.len(), "closing connections that did not end in time");
        connections.shutdown().await;
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, from) = listener.accept().await?;
    // Answers are small and somebody waits for each.
    stream.set_nodelay(true)?;
    Ok((stream, from, permit))
}

fn limits(header_timeout_ms: u64) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(header_timeout_ms))
        .max_buf_size(HTTP_HEADERS_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_header_list_size(HTTP_HEADERS_BYTES_MAX)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_send_buf_size(GATEWAY_MESSAGE_BYTES_MAX)
        .keep_alive_interval(Duration::from_millis(KEEP_ALIVE_EVERY_MS))
        .keep_alive_timeout(Duration::from_millis(KEEP_ALIVE_TIMEOUT_MS))
        // The answers to rapid reset (CVE-2023-44487) and to its mirror image, made-you-reset (CVE-2025-8671).
        .max_pending_accept_reset_streams(HTTP2_RESETS_MAX)
        .max_local_error_reset_streams(HTTP2_RESETS_MAX);
    builder
}

async fn one<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    builder: &auto::Builder<TokioExecutor>,
    stream: S,
    app: Guarded,
    header_timeout: Duration,
    closing: CancellationToken,
) {
    let seen = Arc::new(AtomicUsize::new(0));
    let io = TokioIo::new(Counted {
        stream,
        seen: Arc::clone(&seen),
    });
    let connection = builder.serve_connection(io, TowerToHyperService::new(app));
    tokio::pin!(connection);
    // The header timeout starts only once the protocol is known: until then this one holds.
    let silent = tokio::time::sleep(header_timeout);
    tokio::pin!(silent);
    let (mut spoke, mut told) = (false, false);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                }
                return;
            }
            () = &mut silent, if !spoke => {
                if seen.load(Ordering::Relaxed) < PREFACE_BYTES {
                    return;
                }
                spoke = true;
            }
            () = closing.cancelled(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Counts what was read.
struct Counted<S> {
    stream: S,
    seen: Arc<AtomicUsize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.seen.fetch_add(buf.filled().len() - before, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
