//! Requests that a Bee sends over HTTP: only where its manifest lists, and only to addresses that were looked at.
//!
//! ```text
//!   request ─► listed? ─► its address, looked up once ─► each address looked at ─► a connection to one of these, and TLS for the name
//! ```
//! Nothing is looked up between the look and the connection, so a name that leads elsewhere a moment later changes nothing. Redirects are
//! answers like others: the Bee sees them, and what it asks for next is looked at anew. Everything ends with the call that began it.

mod dial;
mod send;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use skep_model::egress::{Host, HttpGrant, Reach, Scheme, is_home, reach};
use skep_model::id::Uid;
use skep_model::limits::{
    HTTP_HEADERS_BYTES_MAX_OUT, HTTP_LOOKUPS_PER_NODE_MAX, HTTP_LOOKUPS_PER_STAGE_MAX, HTTP_PER_CALL_MAX,
    HTTP_PER_NODE_MAX, HTTP_PER_STAGE_MAX, HTTP_REQUESTS_PER_CALL_MAX, HTTP_URL_BYTES_MAX,
};
use skep_model::step::LogLevel;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpHooks};

use crate::log::Log;
use crate::share::Share;

pub(crate) use dial::{DialCause, DialError, Dialler};

/// Connections of all Bees of this process.
static NODE: LazyLock<Arc<Lines>> = LazyLock::new(|| Lines::new(HTTP_PER_NODE_MAX, |share| &share.connections));
/// Names that are looked up for all of them.
static LOOKUPS: LazyLock<Arc<Lines>> = LazyLock::new(|| Lines::new(HTTP_LOOKUPS_PER_NODE_MAX, |share| &share.lookups));
/// How many times what is free of either one tenant may have, as of places for instances: some is left for others, however many it wants.
const BESIDE: u64 = 4;

/// How names become addresses.
#[async_trait]
pub trait Resolver: fmt::Debug + Send + Sync + 'static {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// As the machine does.
#[derive(Debug)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// What one stage may reach.
#[derive(Debug)]
pub struct Egress {
    grants: Vec<HttpGrant>,
    /// Whether what it lists may be private: not where tenants are strangers to whoever runs the network.
    private: bool,
    resolver: Arc<dyn Resolver>,
    /// Its tenant's.
    share: Arc<Share>,
    /// Whether an address is one of this machine.
    own: fn(IpAddr) -> bool,
    connections: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    /// Who connects, where this process may not.
    dialler: Option<Arc<dyn Dialler>>,
}

impl Egress {
    /// `private`: whether what is listed may be private. `share`: the tenant's, of whose Bees no one leaves nothing to other tenants.
    #[must_use]
    pub fn new(grants: Vec<HttpGrant>, private: bool, resolver: Arc<dyn Resolver>, share: Arc<Share>) -> Arc<Self> {
        Arc::new(Self::parts(grants, private, resolver, share))
    }

    fn parts(grants: Vec<HttpGrant>, private: bool, resolver: Arc<dyn Resolver>, share: Arc<Share>) -> Self {
        Self {
            grants,
            private,
            resolver,
            share,
            own: is_own,
            connections: Arc::new(Semaphore::new(HTTP_PER_STAGE_MAX)),
            lookups: Arc::new(Semaphore::new(HTTP_LOOKUPS_PER_STAGE_MAX)),
            dialler: None,
        }
    }

    fn allows(&self, target: &Target) -> bool {
        let mut grants = self.grants.iter();
        grants.any(|grant| grant.allows(target.scheme, &target.host, target.port))
    }

    /// Looks a name up, which counts until the system has answered: it cannot be told that nobody waits any more, and each lookup holds a
    /// thread meanwhile. A guest that gives up at once and asks for the next name gets no further than its stage's share.
    async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let closed = |e| io::Error::other(format!("{e}"));
        let own = Arc::clone(&self.lookups).acquire_owned().await.map_err(closed)?;
        let node = LOOKUPS.take(&self.share).await;
        let (resolver, name) = (Arc::clone(&self.resolver), name.to_owned());
        let looked = tokio::spawn(async move {
            let _permits = (own, node);
            resolver.resolve(&name).await
        });
        looked.await.map_err(io::Error::other)?
    }

    /// The addresses of a host that may be connected to.
    async fn addresses(&self, host: &Host) -> Result<Vec<IpAddr>, Refusal> {
        let (found, exact) = match host {
            Host::Address(address) => (vec![*address], true),
            Host::Name(name) => {
                let found = self.look_up(name).await;
                let found = found.map_err(|e| {
                    Refusal::new(
                        Error::DnsError {
                            rcode: None,
                            info_code: None,
                        },
                        format!("its name cannot be resolved: {e}"),
                    )
                })?;
                (found, false)
            }
        };
        if found.is_empty() {
            return Err(Refusal::new(
                Error::DestinationNotFound,
                "its name has no address".to_owned(),
            ));
        }
        let home = matches!(host, Host::Name(name) if is_home(name));
        // One bad address among good ones is a name that somebody plays with: none of it is used.
        for address in &found {
            let prohibited = |why: &str| {
                Err(Refusal::new(
                    Error::DestinationIpProhibited,
                    format!("it leads to {address}, {why}"),
                ))
            };
            match reach(*address) {
                // It may have been left open to this machine alone, as a metrics port is.
                Reach::Public if (self.own)(*address) && !(self.private && exact) => {
                    return prohibited(
                        "which is this machine's own: only Bees of the tenant `default`, the operator's own, reach such, where that \
                         address itself is listed",
                    );
                }
                Reach::Public => {}
                Reach::Never => return prohibited("where nobody can be reached"),
                Reach::Private | Reach::Link if !self.private => {
                    return prohibited(
                        "which is private: only Bees of the tenant `default`, the operator's own, reach such",
                    );
                }
                Reach::Private if exact || home => {}
                Reach::Link if exact => {}
                Reach::Private => {
                    return prohibited(
                        "which is private: list that address itself, or a name of one part or below .internal",
                    );
                }
                Reach::Link => return prohibited("which is of this link: list that address itself"),
            }
        }
        Ok(found)
    }
}

/// Whether an address is one of this machine: nothing else can be bound to. Where a system lets programs bind to any address, nothing is told
/// from that, and every address counts as another's.
fn is_own(address: IpAddr) -> bool {
    /// Of the block for documentation (RFC 5737), which no machine has.
    const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    static TELLS: LazyLock<bool> = LazyLock::new(|| UdpSocket::bind((NOBODY, 0)).is_err());
    *TELLS && UdpSocket::bind((address, 0)).is_ok()
}

/// A number of things of the whole process, in shares of tenants. Who finds none waits: there are few that wait, for each stage has a bound
/// of its own.
#[derive(Debug)]
struct Lines {
    free: Mutex<u64>,
    given_back: Notify,
    /// The tenant's counter of them.
    of: fn(&Share) -> &AtomicU64,
}

/// Given back when dropped.
#[derive(Debug)]
struct Line {
    of: Arc<Lines>,
    share: Arc<Share>,
}

impl Lines {
    fn new(all: usize, of: fn(&Share) -> &AtomicU64) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(all as u64),
            given_back: Notify::new(),
            of,
        })
    }

    fn free(&self) -> MutexGuard<'_, u64> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(self: &Arc<Self>, share: &Arc<Share>) -> Line {
        loop {
            let mut given_back = pin!(self.given_back.notified());
            // Before the look, or what comes back between both is missed.
            given_back.as_mut().enable();
            if let Some(line) = self.try_take(share) {
                return line;
            }
            given_back.await;
        }
    }

    fn try_take(self: &Arc<Self>, share: &Arc<Share>) -> Option<Line> {
        let mut free = self.free();
        let own = (self.of)(share).load(Ordering::Relaxed);
        if own >= BESIDE * *free {
            return None;
        }
        *free -= 1;
        (self.of)(share).store(own + 1, Ordering::Relaxed);
        drop(free);
        Some(Line {
            of: Arc::clone(self),
            share: Arc::clone(share),
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut free = self.of.free();
        *free += 1;
        (self.of.of)(&self.share).fetch_sub(1, Ordering::Relaxed);
        drop(free);
        self.of.given_back.notify_waiters();
    }
}

/// Why a request is not sent: as the guest is told, and in words for the log.
struct Refusal {
    error: Error,
    words: String,
}

impl Refusal {
    fn new(error: Error, words: String) -> Self {
        Self { error, words }
    }
}

/// What of HTTP lives in the store of one instance.
pub(crate) struct Outgoing {
    pub(crate) ctx: WasiHttpCtx,
    pub(crate) hooks: Hooks,
}

pub(crate) struct Hooks {
    egress: Option<Arc<Egress>>,
    log: Log,
    /// Ends what the present call began.
    end: CancellationToken,
    /// Places for connections of the present call.
    places: Arc<Semaphore>,
    requests: usize,
    /// The present input, and the requests that were sent for it.
    input: Option<(Uid, u32)>,
}

impl Outgoing {
    pub(crate) fn new(egress: Option<Arc<Egress>>, log: Log) -> Self {
        let mut ctx = WasiHttpCtx::new();
        ctx.set_field_size_limit(HTTP_HEADERS_BYTES_MAX_OUT);
        Self {
            ctx,
            hooks: Hooks {
                egress,
                log,
                end: CancellationToken::new(),
                places: Arc::new(Semaphore::new(0)),
                requests: 0,
                input: None,
            },
        }
    }

    /// A call begins. `egress`: where it is not the stage's own.
    pub(crate) fn begin_call(&mut self, egress: Option<Arc<Egress>>) {
        if egress.is_some() {
            self.hooks.egress = egress;
        }
        if self.hooks.egress.is_some() {
            self.hooks.end = CancellationToken::new();
            self.hooks.places = Arc::new(Semaphore::new(HTTP_PER_CALL_MAX));
            (self.hooks.requests, self.hooks.input) = (0, None);
        }
    }

    /// A call ends, and with it all that it began.
    pub(crate) fn end_call(&mut self) {
        self.hooks.end.cancel();
    }

    pub(crate) fn begin_input(&mut self, uid: Uid) {
        self.hooks.input = Some((uid, 0));
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.end_call();
    }
}

/// A request that may be sent.
struct Target {
    scheme: Scheme,
    host: Host,
    port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme.as_str(), self.host, self.port)
    }
}

impl Hooks {
    fn check<B>(&mut self, request: &hyper::Request<B>) -> Result<(Arc<Egress>, Target), Refusal> {
        let refuse = |error, words: &str| Err(Refusal::new(error, words.to_owned()));
        let uri = request.uri();
        let Some(egress) = &self.egress else {
            return refuse(
                Error::HttpRequestDenied,
                "this Bee may send none: list the hosts that it needs in its manifest, `http: [api.example.com]`",
            );
        };
        let Some(authority) = uri.authority() else {
            return refuse(Error::HttpRequestUriInvalid, "it names no host");
        };
        if authority.as_str().contains('@') {
            return refuse(
                Error::HttpRequestUriInvalid,
                "there is a user in its URL: send the header `authorization`",
            );
        }
        if uri.path_and_query().map_or(0, |path| path.as_str().len()) > HTTP_URL_BYTES_MAX {
            return refuse(Error::HttpRequestUriTooLong, "its URL is too long");
        }
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            _ => Scheme::Https,
        };
        let host = match authority.host().parse::<Host>() {
            Ok(host) => host,
            Err(e) => return refuse(Error::HttpRequestUriInvalid, &e.to_string()),
        };
        // Not as the library has it, for whom a port that is none is no port.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => scheme.port(),
            Some(rest) => {
                let number = rest
                    .strip_prefix(':')
                    .filter(|number| number.bytes().all(|b| b.is_ascii_digit()));
                match number
                    .and_then(|number| number.parse::<u16>().ok())
                    .filter(|number| *number > 0)
                {
                    Some(number) => number,
                    None => return refuse(Error::HttpRequestUriInvalid, "its port is none"),
                }
            }
            None => return refuse(Error::HttpRequestUriInvalid, "its host is none"),
        };
        let target = Target { scheme, host, port };
        if !egress.allows(&target) {
            return Err(Refusal::new(
                Error::HttpRequestDenied,
                format!("the manifest does not list {target}: add it to the Bee's `http:`"),
            ));
        }
        // A tunnel goes where nobody looks.
        if request.method() == hyper::Method::CONNECT {
            return refuse(Error::HttpRequestMethodInvalid, "CONNECT is not for Bees");
        }
        self.requests += 1;
        if self.requests > HTTP_REQUESTS_PER_CALL_MAX {
            return Err(Refusal::new(
                Error::ConnectionLimitReached,
                format!("a call of a Bee sends {HTTP_REQUESTS_PER_CALL_MAX} requests at most: take smaller batches"),
            ));
        }
        Ok((Arc::clone(egress), target))
    }

    /// The same at each attempt of the input, so that whoever gets a request twice can tell.
    fn mark<B>(&mut self, request: &mut hyper::Request<B>) {
        let safe = [hyper::Method::GET, hyper::Method::HEAD, hyper::Method::OPTIONS];
        let Some((uid, sent)) = &mut self.input else { return };
        let number = *sent;
        *sent += 1;
        if !safe.contains(request.method())
            && !request.headers().contains_key(IDEMPOTENCY_KEY)
            && let Ok(value) = format!("{uid}-{number}").parse()
        {
            request.headers_mut().insert(IDEMPOTENCY_KEY, value);
        }
    }
}

const IDEMPOTENCY_KEY: &str = "idempotency-key";

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Box<dyn Future<Output = Result<(hyper::Response<WasiBody>, Io), Error>> + Send>;

impl WasiHttpHooks for Hooks {
    fn send_request(&mut self, mut request: hyper::Request<WasiBody>, options: Option<RequestOptions>, _: Io) -> Sent {
        let shown = format!("{} {}", request.method(), place(request.uri()));
        let log = self.log.clone();
        let say = move |words: &str| log.line(LogLevel::Warn, "skep", &format!("http: {shown}: {words}"));
        let (egress, target) = match self.check(&request) {
            Ok(checked) => checked,
            Err(Refusal { error, words }) => {
                say(&words);
                return Box::new(std::future::ready(Err(error)));
            }
        };
        self.mark(&mut request);
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            say(&format!(
                "a call of a Bee has {HTTP_PER_CALL_MAX} requests under way at most: wait for one"
            ));
            return Box::new(std::future::ready(Err(Error::ConnectionLimitReached)));
        };
        let end = self.end.clone();
        Box::new(async move {
            let sent = send::send(egress, target, request, options.unwrap_or_default(), place, end.clone());
            let sent = tokio::select! {
                biased;
                () = end.cancelled() => Err(Refusal::new(Error::ConnectionTerminated, "its call has ended".to_owned())),
                sent = sent => sent,
            };
            sent.map_err(|Refusal { error, words }| {
                say(&words);
                error
            })
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        OUT_CHUNK_BYTES
    }
}

/// Bytes that a guest writes ahead of the network.
const OUT_CHUNK_BYTES: usize = 64 << 10;

/// A URL without its path, in which secrets are sent at times.
fn place(uri: &hyper::Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}://{host}", uri.scheme_str().unwrap_or("https"))
}

/// Time that a guest asks for, within what there is.
fn within(asked: Option<Duration>, most_ms: u64) -> Duration {
    let most = Duration::from_millis(most_ms);
    asked.map_or(most, |asked| asked.clamp(Duration::from_millis(1), most))
}

#[cfg(test)]
mod tests;
