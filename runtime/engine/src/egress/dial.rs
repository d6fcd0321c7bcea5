//! Connections for Bees that run in another process: that one speaks HTTP, and the node alone looks at names and addresses, connects, and does
//! TLS. What a process that was taken over gains is to say anything at all, within these bounds, to the hosts that its tenant's Bee was granted.

use std::fmt;
use std::io;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use skep_model::egress::{Host, HttpGrant, Scheme};
use skep_model::limits::{
    HTTP_ANSWER_BYTES_MAX, HTTP_ANSWER_HEADERS_BYTES_MAX, HTTP_CONNECT_MS, HTTP_HEADERS_BYTES_MAX_OUT,
    HTTP_SENT_BYTES_MAX,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use wasmtime_wasi_http::Error;

use super::send::{OfNode, Wire, connect_here};
use super::{Egress, Refusal, SystemResolver, Target};
use crate::share::Share;

/// What frames of HTTP/1.1 may add to bytes that are counted whole: chunks of a few bytes each.
const FRAMING: usize = 4;
const PIECE_BYTES: usize = 16 << 10;

/// Connects for somebody who may not.
#[async_trait]
pub(crate) trait Dialler: fmt::Debug + Send + Sync {
    async fn dial(&self, scheme: Scheme, host: &str, port: u16) -> Result<UnixStream, DialError>;
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DialError {
    pub(crate) cause: DialCause,
    pub(crate) words: String,
}

/// Of what `wasi:http` can say, what a connection can fail with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DialCause {
    Other,
    Dns,
    NoAddress,
    Prohibited,
    Refused,
    TimedOut,
    Unreachable,
    BadHost,
    Certificate,
    Tls,
    Denied,
    Crowded,
    Configuration,
}

impl DialCause {
    fn of(error: &Error) -> Self {
        match error {
            Error::DnsError { .. } => Self::Dns,
            Error::DestinationNotFound => Self::NoAddress,
            Error::DestinationIpProhibited => Self::Prohibited,
            Error::ConnectionRefused => Self::Refused,
            Error::ConnectionTimeout => Self::TimedOut,
            Error::DestinationUnavailable => Self::Unreachable,
            Error::HttpRequestUriInvalid => Self::BadHost,
            Error::TlsCertificateError => Self::Certificate,
            Error::TlsProtocolError => Self::Tls,
            Error::HttpRequestDenied => Self::Denied,
            Error::ConnectionLimitReached => Self::Crowded,
            Error::ConfigurationError => Self::Configuration,
            _ => Self::Other,
        }
    }

    fn error(self) -> Error {
        match self {
            Self::Other => Error::InternalError(None),
            Self::Dns => Error::DnsError {
                rcode: None,
                info_code: None,
            },
            Self::NoAddress => Error::DestinationNotFound,
            Self::Prohibited => Error::DestinationIpProhibited,
            Self::Refused => Error::ConnectionRefused,
            Self::TimedOut => Error::ConnectionTimeout,
            Self::Unreachable => Error::DestinationUnavailable,
            Self::BadHost => Error::HttpRequestUriInvalid,
            Self::Certificate => Error::TlsCertificateError,
            Self::Tls => Error::TlsProtocolError,
            Self::Denied => Error::HttpRequestDenied,
            Self::Crowded => Error::ConnectionLimitReached,
            Self::Configuration => Error::ConfigurationError,
        }
    }
}

impl From<DialError> for Refusal {
    fn from(DialError { cause, words }: DialError) -> Self {
        Self::new(cause.error(), words)
    }
}

impl From<Refusal> for DialError {
    fn from(Refusal { error, words }: Refusal) -> Self {
        Self {
            cause: DialCause::of(&error),
            words,
        }
    }
}

impl Egress {
    /// Of a Bee that runs here and may not connect: what is listed is checked here too, so that it is told as anywhere, and by `dialler` once more.
    pub(crate) fn through(grants: Vec<HttpGrant>, dialler: Arc<dyn Dialler>) -> Arc<Self> {
        let mut made = Self::parts(grants, false, Arc::new(SystemResolver), Arc::<Share>::default());
        made.dialler = Some(dialler);
        Arc::new(made)
    }

    pub(crate) fn grants(&self) -> &[HttpGrant] {
        &self.grants
    }

    /// A connection for another process, where one is granted: `host` is what that one said.
    pub(crate) async fn dial(self: &Arc<Self>, scheme: Scheme, host: &str, port: u16) -> Result<Dialled, DialError> {
        let host = Host::from_str(host).map_err(|e| DialError {
            cause: DialCause::BadHost,
            words: e.to_string(),
        })?;
        let target = Target { scheme, host, port };
        if !self.allows(&target) {
            return Err(DialError {
                cause: DialCause::Denied,
                words: format!("the manifest does not list {target}"),
            });
        }
        let by = Instant::now() + Duration::from_millis(HTTP_CONNECT_MS);
        let places = OfNode::take(self, by).await?;
        let wire = timeout_at(by, connect_here(self, &target)).await;
        let wire = wire.map_err(|_| Refusal::new(Error::ConnectionTimeout, "no connection in time".to_owned()))??;
        Ok(Dialled { wire, places })
    }
}

/// A connection that was made for another process.
pub(crate) struct Dialled {
    wire: Box<dyn Wire>,
    places: OfNode,
}

impl Dialled {
    /// Carries what that one says and hears, until both are done, or one said more than any honest one would.
    pub(crate) async fn carry(self, socket: UnixStream) {
        let Self { wire, places } = self;
        let _places = places;
        let (mut hear, mut say) = tokio::io::split(wire);
        let (mut from, mut to) = socket.into_split();
        // Requests of one connection: one, as `send` has it.
        let sent = HTTP_SENT_BYTES_MAX * FRAMING + 2 * HTTP_HEADERS_BYTES_MAX_OUT;
        let heard = HTTP_ANSWER_BYTES_MAX * FRAMING + 2 * HTTP_ANSWER_HEADERS_BYTES_MAX;
        // The end of the answer is the end. That of what is said is not, unless it cannot be said any more, or was too much.
        let out = async {
            if copy(&mut from, &mut say, sent).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = out => {}
            _ = copy(&mut hear, &mut to, heard) => {}
        }
    }
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), most: usize) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut left = most;
    loop {
        let read = from.read(&mut piece).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        left = left.checked_sub(read).ok_or(io::ErrorKind::FileTooLarge)?;
        to.write_all(&piece[..read]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// An address that answers whatever it is told with `answer` pieces of 64 KiB.
    fn server(answer: usize) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut said = [0; 5];
                    if stream.read_exact(&mut said).is_ok() {
                        let _ = stream.write_all(&said);
                        for _ in 0..answer {
                            if stream.write_all(&[b'x'; 64 << 10]).is_err() {
                                break;
                            }
                        }
                    }
                });
            }
        });
        port
    }

    fn egress(port: u16) -> Arc<Egress> {
        let grant = format!("http://127.0.0.1:{port}").parse().unwrap();
        Egress::new(vec![grant], true, Arc::new(SystemResolver), Arc::default())
    }

    #[tokio::test]
    async fn a_connection_carries_both_ways_to_where_it_is_granted_and_no_further() {
        let port = server(1);
        let egress = egress(port);
        let dialled = egress.dial(Scheme::Http, "127.0.0.1", port).await.unwrap();
        let (own, mut its) = UnixStream::pair().unwrap();
        let carried = tokio::spawn(dialled.carry(own));
        its.write_all(b"hello").await.unwrap();
        let mut heard = Vec::new();
        its.read_to_end(&mut heard).await.unwrap();
        assert_eq!((&heard[..5], heard.len()), (&b"hello"[..], 5 + (64 << 10)));
        carried.await.unwrap();
        assert_eq!(
            egress.connections.available_permits(),
            skep_model::limits::HTTP_PER_STAGE_MAX
        );

        for (scheme, host, at, cause) in [
            (Scheme::Http, "127.0.0.1", port.wrapping_add(1), DialCause::Denied),
            (Scheme::Https, "127.0.0.1", port, DialCause::Denied),
            (Scheme::Http, "localhost", port, DialCause::Denied),
            (Scheme::Http, "169.254.169.254", 80, DialCause::Denied),
            (Scheme::Http, "2130706433", port, DialCause::BadHost),
            (Scheme::Http, "127.0.0.1/../x", port, DialCause::BadHost),
        ] {
            let refused = egress.dial(scheme, host, at).await.err().map(|e| e.cause);
            assert_eq!(refused, Some(cause), "{host}");
        }
        // Of a tenant that is not the operator's own, what is listed must be public too.
        let grant = format!("http://127.0.0.1:{port}").parse().unwrap();
        let strangers = Egress::new(vec![grant], false, Arc::new(SystemResolver), Arc::default());
        let refused = strangers.dial(Scheme::Http, "127.0.0.1", port).await.err();
        assert_eq!(refused.map(|e| e.cause), Some(DialCause::Prohibited));
    }

    #[tokio::test]
    async fn what_is_heard_has_a_bound() {
        let most = HTTP_ANSWER_BYTES_MAX * FRAMING + 2 * HTTP_ANSWER_HEADERS_BYTES_MAX;
        let port = server(2 * most / (64 << 10));
        let dialled = egress(port).dial(Scheme::Http, "127.0.0.1", port).await.unwrap();
        let (own, mut its) = UnixStream::pair().unwrap();
        let carried = tokio::spawn(dialled.carry(own));
        its.write_all(b"hello").await.unwrap();
        let mut piece = vec![0; 64 << 10];
        let mut heard = 0;
        while let Ok(read @ 1..) = its.read(&mut piece).await {
            heard += read;
        }
        assert!((most - PIECE_BYTES..=most).contains(&heard), "{heard} of {most}");
        carried.await.unwrap();
    }
}
