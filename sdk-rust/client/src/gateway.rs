//! The connection, single requests and submits.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tokio::time::{Instant, timeout_at};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::message::headers;
use crate::pipeline::Requests;
use crate::{Error, Kind, Login, Message, Outcome, Parts, Response, SubmitStream, TIMEOUT_DEFAULT, retry};

/// A channel that shows who calls.
pub(crate) type Wire = InterceptedService<Channel, Login>;

/// Requests under way from which on further ones share a stream: a call there costs a fraction of one of its own.
const PIPELINE_FROM: usize = 8;
/// What the network may take beyond the deadline that the node keeps, so that its answer, which says more, comes first.
const SLACK: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The largest message either way: a full submit and its framing.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// A connection to a node. Cheap to clone; connects again by itself.
#[derive(Clone)]
pub struct Gateway {
    wire: Wire,
    under_way: Arc<AtomicUsize>,
    shared: Requests,
}

impl Gateway {
    /// Connects to `http://HOST:PORT`.
    ///
    /// # Errors
    /// A URL that is none; a node that cannot be reached.
    pub async fn connect(url: impl Into<String>) -> Result<Self, Error> {
        Self::connect_with(url, Login::default()).await
    }

    /// As [`Self::connect`], to a node that wants to know who comes: `https://HOST:PORT` and a token.
    ///
    /// # Errors
    /// As that; and where the login cannot be used with this URL.
    pub async fn connect_with(url: impl Into<String>, login: Login) -> Result<Self, Error> {
        let url = url.into();
        let channel = login.endpoint(endpoint(&url)?)?.connect().await.map_err(|e| {
            Error::new(
                Kind::Unavailable,
                Outcome::NotDone,
                format!("cannot reach {url}: {}", whole(&e)),
            )
        })?;
        Ok(Self::over_with(channel, login))
    }

    /// As [`Self::connect`], but connects at the first call. Needs a tokio runtime.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn connect_lazy(url: impl Into<String>) -> Result<Self, Error> {
        Self::connect_lazy_with(url, Login::default())
    }

    /// As [`Self::connect_with`], but connects at the first call. Needs a tokio runtime.
    ///
    /// # Errors
    /// A URL that is none; a login that cannot be used with it.
    pub fn connect_lazy_with(url: impl Into<String>, login: Login) -> Result<Self, Error> {
        let endpoint = login.endpoint(endpoint(&url.into())?)?;
        Ok(Self::over_with(endpoint.connect_lazy(), login))
    }

    /// Over a channel with settings of your own.
    #[must_use]
    pub fn over(channel: Channel) -> Self {
        Self::over_with(channel, Login::default())
    }

    /// Over a channel with settings of your own, showing a login's token.
    #[must_use]
    pub fn over_with(channel: Channel, login: Login) -> Self {
        let wire = InterceptedService::new(channel, login);
        Self {
            shared: Requests::new(client(&wire)),
            under_way: Arc::default(),
            wire,
        }
    }

    /// A request: await it, with options in between.
    pub fn request(&self, subject: impl Into<String>, payload: impl Into<Bytes>) -> Request {
        Request::new(Via::Either(self.clone()), subject.into(), payload.into())
    }

    /// A stream of its own for many requests at once.
    #[must_use]
    pub fn requests(&self) -> Requests {
        Requests::new(client(&self.wire))
    }

    /// Appends messages, all or none: await it. Answered once they are durable.
    pub fn submit<M: Into<Message>>(
        &self,
        subject: impl Into<String>,
        messages: impl IntoIterator<Item = M>,
    ) -> Submit {
        Submit {
            client: client(&self.wire),
            call: v1::SubmitCall {
                subject: subject.into(),
                messages: messages.into_iter().map(|m| m.into().into()).collect(),
                idempotency_key: None,
                traceparent: None,
            },
            timeout: TIMEOUT_DEFAULT,
        }
    }

    /// A long stream of messages under a session, which is resumed when the connection breaks.
    pub fn submit_stream(&self, subject: impl Into<String>) -> SubmitStream {
        SubmitStream::new(client(&self.wire), subject.into())
    }

    async fn once(&self, call: v1::RequestCall) -> Result<Response, Error> {
        let count = Count::up(&self.under_way);
        if count.others >= PIPELINE_FROM {
            return self.shared.once(call).await;
        }
        Response::of(client(&self.wire).request(call).await?.into_inner())
    }
}

fn endpoint(url: &str) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| {
        Error::new(
            Kind::Invalid,
            Outcome::NotDone,
            format!("`{url}` is no URL ({e}): use http://HOST:PORT or https://HOST:PORT"),
        )
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20))
}

/// An error with its causes: tonic's own text is only "transport error".
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}

fn client(wire: &Wire) -> GatewayClient<Wire> {
    GatewayClient::new(wire.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

struct Count {
    of: Arc<AtomicUsize>,
    others: usize,
}

impl Count {
    fn up(of: &Arc<AtomicUsize>) -> Self {
        Self {
            others: of.fetch_add(1, Ordering::Relaxed),
            of: Arc::clone(of),
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.of.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a request travels.
pub(crate) enum Via {
    /// Alone, or on the shared stream under load.
    Either(Gateway),
    Stream(Requests),
}

/// A request to be awaited.
#[must_use = "a request is sent when it is awaited"]
pub struct Request {
    via: Via,
    call: v1::RequestCall,
    timeout: Duration,
}

impl Request {
    pub(crate) fn new(via: Via, subject: String, payload: Bytes) -> Self {
        Self {
            via,
            call: v1::RequestCall {
                subject,
                payload,
                ..v1::RequestCall::default()
            },
            timeout: TIMEOUT_DEFAULT,
        }
    }

    /// For stages with `key: message`.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.call.key = Some(key.into());
        self
    }

    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.call.headers.push(v1::Header {
            name: name.into(),
            value: value.into(),
        });
        self
    }

    pub fn headers(mut self, all: impl IntoIterator<Item = (String, String)>) -> Self {
        self.call.headers.extend(headers(all.into_iter().collect()));
        self
    }

    /// All attempts together. Work whose deadline passed is not begun.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Repeated with the same key and payload, the call takes effect once and gets the same reply.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.call.idempotency_key = Some(key.into());
        self
    }

    /// W3C Trace Context of the caller.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.call.traceparent = Some(traceparent.into());
        self
    }

    /// Sends the request and takes the response in parts, as they are made. It is sent once: parts are not kept, so an idempotency key is
    /// refused.
    ///
    /// # Errors
    /// A node that cannot be reached, or that refuses the call.
    pub async fn stream(self) -> Result<Parts, Error> {
        let client = match self.via {
            Via::Either(gateway) => client(&gateway.wire),
            Via::Stream(stream) => stream.client(),
        };
        Parts::open(client, self.call, self.timeout, SLACK).await
    }

    async fn run(self) -> Result<Response, Error> {
        let Self { via, mut call, timeout } = self;
        let until = Instant::now() + timeout;
        let keyed = call.idempotency_key.is_some();
        let mut attempt = 1;
        let mut all = retry::Attempts::default();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: 0 would mean the node's default.
            call.timeout_ms = u64::try_from(left.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
            if call.timeout_ms == 0 {
                return Err(all.told(Error::deadline(Outcome::NotDone)));
            }
            let sent = call.clone();
            let answer = timeout_at(until + SLACK, async {
                match &via {
                    Via::Either(gateway) => gateway.once(sent).await,
                    Via::Stream(stream) => stream.once(sent).await,
                }
            });
            let error = match answer.await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => all.told(error),
                Err(_) => return Err(Error::deadline(Outcome::Unknown)),
            };
            attempt += 1;
            let pause = retry::pause(Some(&error), attempt);
            if attempt > retry::ATTEMPTS_MAX || !retry::may(&error, keyed) || Instant::now() + pause >= until {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

impl IntoFuture for Request {
    type Output = Result<Response, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// Messages to be appended, to be awaited.
#[must_use = "messages are sent when this is awaited"]
pub struct Submit {
    client: GatewayClient<Wire>,
    call: v1::SubmitCall,
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Submitted {
    /// Messages made durable by this call.
    pub accepted: u64,
    /// The call was recognised as a repeat: what it asks for was durable before.
    pub duplicate: bool,
}

impl Submit {
    /// Repeated with the same key and messages, the call takes effect once.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.call.idempotency_key = Some(key.into());
        self
    }

    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.call.traceparent = Some(traceparent.into());
        self
    }

    /// All attempts together.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(mut self) -> Result<Submitted, Error> {
        let until = Instant::now() + self.timeout;
        let keyed = self.call.idempotency_key.is_some();
        let mut attempt = 1;
        let mut all = retry::Attempts::default();
        loop {
            let error = match timeout_at(until, self.client.submit(self.call.clone())).await {
                Ok(Ok(reply)) => {
                    let reply = reply.into_inner();
                    return Ok(Submitted {
                        accepted: reply.accepted,
                        duplicate: reply.duplicate,
                    });
                }
                Ok(Err(status)) => all.told(Error::from(status)),
                Err(_) => return Err(Error::deadline(Outcome::Unknown)),
            };
            attempt += 1;
            let pause = retry::pause(Some(&error), attempt);
            if attempt > retry::ATTEMPTS_MAX || !retry::may(&error, keyed) || Instant::now() + pause >= until {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

impl IntoFuture for Submit {
    type Output = Result<Submitted, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
