//! What is sent and what comes back.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use skep_proto::v1;

use crate::Error;

/// A message of a submit. Anything that is bytes is one without key or headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub payload: Bytes,
    pub key: Option<String>,
    pub headers: Vec<(String, String)>,
}

impl Message {
    #[must_use]
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            ..Self::default()
        }
    }

    /// For stages with `key: message`.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

macro_rules! from_bytes {
    ($($of:ty),*) => { $(
        impl From<$of> for Message {
            fn from(payload: $of) -> Self {
                Self::new(payload)
            }
        }
    )* };
}
from_bytes!(Bytes, Vec<u8>, String, &'static [u8], &'static str);

impl From<Message> for v1::OutMessage {
    fn from(message: Message) -> Self {
        Self {
            payload: message.payload,
            headers: headers(message.headers),
            key: message.key,
        }
    }
}

pub(crate) fn headers(headers: Vec<(String, String)>) -> Vec<v1::Header> {
    headers
        .into_iter()
        .map(|(name, value)| v1::Header { name, value })
        .collect()
}

pub(crate) fn hops(hops: Vec<v1::Hop>) -> Vec<Hop> {
    hops.into_iter()
        .map(|hop| Hop {
            stage: hop.stage,
            started: Duration::from_micros(hop.started_us),
            took: Duration::from_micros(hop.took_us),
            batch: hop.batch,
        })
        .collect()
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Response {
    pub payload: Bytes,
    /// The stages passed; only when the trace is sampled.
    pub hops: Vec<Hop>,
    /// 32 hexadecimal digits.
    pub trace_id: Option<String>,
}

/// One stage that the message passed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hop {
    pub stage: String,
    /// From the message's accept to the start of its batch.
    pub started: Duration,
    /// What the batch took in the Bee.
    pub took: Duration,
    /// Messages in that batch.
    pub batch: u32,
}

impl Response {
    /// The payload as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.payload)
    }

    pub(crate) fn of(reply: v1::Reply) -> Result<Self, Error> {
        match reply.result {
            Some(v1::reply::Result::Response(payload)) => Ok(Self {
                payload,
                hops: hops(reply.hops),
                trace_id: reply.trace_id,
            }),
            Some(v1::reply::Result::Failure(failure)) => Err(failure.into()),
            None => Err(Error::new(
                crate::Kind::Internal,
                crate::Outcome::Unknown,
                "the node sent a reply of a kind that this client does not know: update the client",
            )),
        }
    }
}
