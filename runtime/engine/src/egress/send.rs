//! One request on a connection of its own: looked up, connected, sent, and its answer given on within bounds.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use skep_model::egress::{Host, Scheme};
use skep_model::limits::{
    HTTP_ADDRESSES_MAX, HTTP_ANSWER_BYTES_MAX, HTTP_ANSWER_HEADERS_BYTES_MAX, HTTP_ANSWER_HEADERS_MAX, HTTP_CONNECT_MS,
    HTTP_QUIET_MS, HTTP_SENT_BYTES_MAX,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::{Egress, Io, Line, NODE, Refusal, Target, within};

pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Held as long as a connection is.
struct Places {
    _call: OwnedSemaphorePermit,
    _beside: OfNode,
}

/// The places of it that are not its call's.
pub(super) struct OfNode {
    _stage: OwnedSemaphorePermit,
    _node: Line,
}

impl OfNode {
    pub(super) async fn take(egress: &Egress, by: Instant) -> Result<Self, Refusal> {
        Ok(Self {
            _stage: free(by, &egress.connections, "this Bee").await?,
            _node: timeout_at(by, NODE.take(&egress.share))
                .await
                .map_err(|_| crowded("this node, or this tenant on it,"))?,
        })
    }
}

pub(super) async fn send(
    egress: Arc<Egress>,
    target: Target,
    mut request: Request<WasiBody>,
    options: RequestOptions,
    call: OwnedSemaphorePermit,
    end: CancellationToken,
) -> Result<(Response<WasiBody>, Io), Refusal> {
    let by = Instant::now() + within(options.connect_timeout, HTTP_CONNECT_MS);
    let late = || Refusal::new(Error::ConnectionTimeout, "no connection in time".to_owned());
    let places = Places {
        _call: call,
        _beside: OfNode::take(&egress, by).await?,
    };
    let wire = timeout_at(by, connect(&egress, &target)).await.map_err(|_| late())??;
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(HTTP_ANSWER_HEADERS_BYTES_MAX)
        .max_headers(HTTP_ANSWER_HEADERS_MAX);
    let shaken = timeout_at(by, builder.handshake(TokioIo::new(wire))).await;
    let (mut sender, connection) = shaken.map_err(|_| late())?.map_err(|e| broken(&e))?;
    // The host is in the header, which is the URL's and not the guest's.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let path = path.parse::<Uri>();
    *request.uri_mut() = path.map_err(|_| Refusal::new(Error::HttpRequestUriInvalid, "its path is none".to_owned()))?;
    let request = request.map(|body| Sending { body, bytes: 0 }.boxed_unsync());
    let first = within(options.first_byte_timeout, HTTP_QUIET_MS);
    let quiet = within(options.between_bytes_timeout, HTTP_QUIET_MS);
    let mut connection = Box::pin(connection);
    let mut over = false;
    let response = {
        let mut answer = std::pin::pin!(timeout(first, sender.send_request(request)));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                // What it ended with is in the answer.
                _ = connection.as_mut(), if !over => over = true,
            }
        }
    };
    let silent = |_| {
        Refusal::new(
            Error::ConnectionReadTimeout,
            format!("no answer within {} ms", first.as_millis()),
        )
    };
    let response = response.map_err(silent)?.map_err(|e| broken(&e))?;
    let ended = end.clone();
    let io = async move {
        let _places = places;
        if !over {
            tokio::select! {
                () = ended.cancelled() => {}
                // Its trouble is told by the body.
                _ = connection => {}
            }
        }
        Ok(())
    };
    let response = response.map(|body| {
        let receiving = Receiving {
            body,
            bytes: 0,
            quiet,
            until: Box::pin(tokio::time::sleep(quiet)),
            end: Box::pin(end.cancelled_owned()),
        };
        receiving.boxed_unsync()
    });
    Ok((response, Box::new(io)))
}

async fn free(by: Instant, places: &Arc<Semaphore>, whose: &str) -> Result<OwnedSemaphorePermit, Refusal> {
    let place = timeout_at(by, Arc::clone(places).acquire_owned()).await;
    place.ok().and_then(Result::ok).ok_or_else(|| crowded(whose))
}

fn crowded(whose: &str) -> Refusal {
    let words = format!("{whose} has too many requests under way, and none ended in time");
    Refusal::new(Error::ConnectionLimitReached, words)
}

fn broken(e: &hyper::Error) -> Refusal {
    let error = match e {
        e if e.is_timeout() => Error::HttpResponseTimeout,
        e if e.is_parse_too_large() => {
            Error::HttpResponseHeaderSectionSize(u32::try_from(HTTP_ANSWER_HEADERS_BYTES_MAX).ok())
        }
        e if e.is_incomplete_message() => Error::HttpResponseIncomplete,
        e if e.is_body_write_aborted() || e.is_user() => Error::HttpRequestBodySize(None),
        _ => Error::HttpProtocolError,
    };
    let mut words = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(next) = cause {
        words.push_str(&format!(": {next}"));
        cause = next.source();
    }
    Refusal::new(error, words)
}

async fn connect(egress: &Egress, target: &Target) -> Result<Box<dyn Wire>, Refusal> {
    let Some(dialler) = &egress.dialler else {
        return connect_here(egress, target).await;
    };
    let host = target.host.to_string();
    let socket = dialler.dial(target.scheme, &host, target.port).await?;
    Ok(Box::new(socket))
}

/// To one of the addresses that were looked at, in their order.
pub(super) async fn connect_here(egress: &Egress, target: &Target) -> Result<Box<dyn Wire>, Refusal> {
    let addresses = egress.addresses(&target.host).await?;
    let mut stream = None;
    let mut last = None;
    for address in addresses.iter().take(HTTP_ADDRESSES_MAX) {
        match TcpStream::connect(SocketAddr::new(*address, target.port)).await {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(e) => last = Some(e),
        }
    }
    let Some(stream) = stream else {
        let last = last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
        let error = match last.kind() {
            io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
            io::ErrorKind::TimedOut => Error::ConnectionTimeout,
            _ => Error::DestinationUnavailable,
        };
        return Err(Refusal::new(error, last.to_string()));
    };
    // Requests are small, and somebody waits for each.
    let _ = stream.set_nodelay(true);
    if target.scheme == Scheme::Http {
        return Ok(Box::new(stream));
    }
    let name = match &target.host {
        Host::Name(name) => ServerName::try_from(name.clone()).ok(),
        Host::Address(address) => Some(ServerName::IpAddress((*address).into())),
    };
    let name = name.ok_or_else(|| {
        Refusal::new(
            Error::HttpRequestUriInvalid,
            "its host has no certificate's name".to_owned(),
        )
    })?;
    let tls = egress.tls().await?;
    match TlsConnector::from(tls).connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(e) => {
            let inner = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let error = match inner {
                Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
                _ => Error::TlsProtocolError,
            };
            Err(Refusal::new(
                error,
                format!("TLS: {e}; who is trusted is the system's choice, or SSL_CERT_FILE's"),
            ))
        }
    }
}

/// What a guest sends, within its bound.
struct Sending {
    body: WasiBody,
    bytes: usize,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.bytes = self.bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if self.bytes > HTTP_SENT_BYTES_MAX {
                return Poll::Ready(Some(Err(Error::HttpRequestBodySize(Some(HTTP_SENT_BYTES_MAX as u64)))));
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer, within its bounds of bytes and silence, and no longer than the call.
struct Receiving {
    body: Incoming,
    bytes: usize,
    quiet: Duration,
    until: Pin<Box<Sleep>>,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Error::ConnectionTerminated)));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.bytes = self.bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
                if self.bytes > HTTP_ANSWER_BYTES_MAX {
                    return Poll::Ready(Some(Err(Error::HttpResponseBodySize(Some(
                        HTTP_ANSWER_BYTES_MAX as u64,
                    )))));
                }
                let quiet = self.quiet;
                self.until.as_mut().reset(Instant::now() + quiet);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(e))) => Poll::Ready(Some(Err(broken(&e).error))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match self.until.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Egress {
    /// As the machine trusts, or SSL_CERT_FILE says. Read once.
    async fn tls(&self) -> Result<Arc<rustls::ClientConfig>, Refusal> {
        if let Some(tls) = TLS.get() {
            return Ok(Arc::clone(tls));
        }
        let read = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
        let mut roots = rustls::RootCertStore::empty();
        let found = read.map(|read| read.certs).unwrap_or_default();
        roots.add_parsable_certificates(found);
        if roots.is_empty() {
            return Err(Refusal::new(
                Error::TlsCertificateError,
                "this machine trusts nobody: install its certificates (ca-certificates), or set SSL_CERT_FILE for the node".to_owned(),
            ));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let made = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = made.map_err(|e| Refusal::new(Error::ConfigurationError, e.to_string()))?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok(Arc::clone(TLS.get_or_init(|| Arc::new(config))))
    }
}

static TLS: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
