//! Answers that come in parts.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

use crate::gateway::Wire;
use crate::message::hops;
use crate::{Error, Kind, Outcome, Response};

/// What a Bee sends of its response while it works. Dropped, it cancels the request. A part that is not taken holds up the Bee.
#[derive(Debug)]
pub struct Parts {
    stream: Streaming<v1::StreamPart>,
    until: Instant,
    end: Option<Option<Response>>,
}

impl Parts {
    pub(crate) async fn open(
        mut client: GatewayClient<Wire>,
        mut call: v1::RequestCall,
        timeout: Duration,
        slack: Duration,
    ) -> Result<Self, Error> {
        call.timeout_ms = u64::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
        if call.timeout_ms == 0 {
            return Err(Error::deadline(Outcome::NotDone));
        }
        let until = Instant::now() + timeout + slack;
        let stream = match timeout_at(until, client.request_stream(call)).await {
            Ok(stream) => stream?.into_inner(),
            Err(_) => return Err(Error::deadline(Outcome::Unknown)),
        };
        Ok(Self {
            stream,
            until,
            end: None,
        })
    }

    /// The next part; none once the answer is whole.
    ///
    /// # Errors
    /// How the request failed. Parts that came before stay true of an attempt that is not made again.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.end.is_some() {
            return Ok(None);
        }
        let message = match timeout_at(self.until, self.stream.message()).await {
            Ok(message) => message?,
            Err(_) => return Err(Error::deadline(Outcome::Unknown)),
        };
        match message.and_then(|part| part.kind) {
            Some(v1::stream_part::Kind::Part(part)) => Ok(Some(part)),
            Some(v1::stream_part::Kind::End(end)) => {
                self.end = Some(end.response.map(|payload| Response {
                    payload,
                    hops: hops(end.hops),
                    trace_id: end.trace_id,
                }));
                Ok(None)
            }
            None => Err(Error::new(
                Kind::Unavailable,
                Outcome::Unknown,
                "the stream ended before its answer was whole",
            )),
        }
    }

    /// What the Swarm responded behind the parts, once [`Self::next`] gave none.
    #[must_use]
    pub fn response(&self) -> Option<&Response> {
        self.end.as_ref()?.as_ref()
    }

    /// As a stream, for combinators.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        futures::stream::unfold(Some(self), |parts| async move {
            let mut parts = parts?;
            match parts.next().await {
                Ok(part) => Some((Ok(part?), Some(parts))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}
