//! A long stream of messages under one session.

use std::collections::VecDeque;
use std::time::Duration;

use futures::FutureExt as _;
use prost::Message as _;
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::gateway::Wire;
use crate::{Error, Kind, Message, Outcome, retry};

/// A frame is sent when it holds this many messages or bytes.
const FRAME_MESSAGES: usize = 1_000;
const FRAME_BYTES: usize = 256 << 10;
/// Kept for resending until they are durable; [`SubmitStream::send`] waits at either bound.
const KEPT_MESSAGES: usize = 100_000;
const KEPT_BYTES: usize = 16 << 20;
/// Frames between this side and the connection.
const FRAMES_WAITING: usize = 8;
/// How long a stream is tried anew without a single acknowledgement.
const RESUME_FOR: Duration = Duration::from_secs(60);

/// Sends messages in frames and keeps what is not durable yet, so that a broken connection loses and repeats nothing.
///
/// Call [`Self::finish`]: what is dropped before may or may not have been sent.
pub struct SubmitStream {
    client: GatewayClient<Wire>,
    subject: String,
    session: [u8; 16],
    traceparent: Option<String>,
    link: Option<Link>,
    /// All messages up to this sequence are durable. The session's first message is 1.
    durable: u64,
    /// The last sequence sent on `link`.
    sent: u64,
    /// The last sequence whose fate an earlier link left open.
    doubtful: u64,
    /// A failure that came in while nobody waited for one.
    heard: Option<Error>,
    /// The messages from `durable + 1` on.
    kept: VecDeque<v1::OutMessage>,
    kept_bytes: usize,
    unsent_bytes: usize,
    resume_for: Duration,
    retry_if: Option<RetryIf>,
}

/// What a finished stream did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// The last durable sequence: the number of messages of a new session.
    pub durable: u64,
}

type RetryIf = Box<dyn Fn(&Error) -> bool + Send + Sync>;

struct Link {
    frames: mpsc::Sender<v1::SubmitFrame>,
    acks: Streaming<v1::SubmitAck>,
}

impl SubmitStream {
    pub(crate) fn new(client: GatewayClient<Wire>, subject: String) -> Self {
        let mut session = [0; 16];
        // Two sessions of one name would lose each other's messages: without random numbers there is no session.
        getrandom::fill(&mut session).expect("the operating system gives random bytes");
        Self {
            client,
            subject,
            session,
            traceparent: None,
            link: None,
            durable: 0,
            sent: 0,
            doubtful: 0,
            heard: None,
            kept: VecDeque::new(),
            kept_bytes: 0,
            unsent_bytes: 0,
            resume_for: RESUME_FOR,
            retry_if: None,
        }
    }

    /// How long the stream is tried anew without a single acknowledgement; a minute by default.
    #[must_use]
    pub fn resume_for(mut self, time: Duration) -> Self {
        self.resume_for = time;
        self
    }

    /// Asked at each failure after which the stream would be tried anew: whether it shall be. A place to tell people who wait.
    #[must_use]
    pub fn retry_if(mut self, ask: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.retry_if = Some(Box::new(ask));
        self
    }

    /// Goes on with a session of an earlier process: `durable` is the last sequence it saw acknowledged, and the next message
    /// sent is `durable + 1`. To be set before the first message.
    #[must_use]
    pub fn resume(mut self, session: [u8; 16], durable: u64) -> Self {
        self.session = session;
        self.durable = durable;
        self.sent = durable;
        self
    }

    #[must_use]
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// To be kept, with [`Self::durable`], by who wants to resume in another process.
    #[must_use]
    pub fn session(&self) -> [u8; 16] {
        self.session
    }

    /// All messages up to this sequence are durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The sequence of the last message given to [`Self::send`].
    #[must_use]
    pub fn last(&self) -> u64 {
        self.durable + self.kept.len() as u64
    }

    /// Adds a message; returns its sequence. It leaves with its frame, at the latest with [`Self::flush`].
    ///
    /// # Errors
    /// What the node refused for good, or a connection that cannot be made again. The message stays kept: a later call tries on.
    pub async fn send(&mut self, message: impl Into<Message>) -> Result<u64, Error> {
        let message = v1::OutMessage::from(message.into());
        let bytes = message.encoded_len();
        while self.kept.len() >= KEPT_MESSAGES || (self.kept_bytes + bytes > KEPT_BYTES && !self.kept.is_empty()) {
            self.advance().await?;
        }
        self.kept.push_back(message);
        self.kept_bytes += bytes;
        self.unsent_bytes += bytes;
        let sequence = self.last();
        if self.unsent() >= FRAME_MESSAGES || self.unsent_bytes >= FRAME_BYTES {
            self.recovering(async |this| this.push_frames().await).await?;
            self.take_acks();
        }
        Ok(sequence)
    }

    /// Sends what is kept and waits until all of it is durable. Returns the last durable sequence.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn flush(&mut self) -> Result<u64, Error> {
        while !self.kept.is_empty() {
            self.advance().await?;
        }
        Ok(self.durable)
    }

    /// Flushes and ends the stream.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn finish(mut self) -> Result<Summary, Error> {
        let durable = self.flush().await?;
        Ok(Summary { durable })
    }

    fn unsent(&self) -> usize {
        usize::try_from(self.last() - self.sent).unwrap_or(usize::MAX)
    }

    /// Everything kept is sent, and at least one more acknowledgement comes in.
    async fn advance(&mut self) -> Result<(), Error> {
        self.recovering(async |this| {
            this.push_frames().await?;
            let link = this.link.as_mut().ok_or_else(Error::broken)?;
            let ack = link.acks.message().await?.ok_or_else(Error::broken)?;
            this.settle(ack)
        })
        .await
    }

    /// Runs a step; after a failure that passes, connects anew and goes on after the last durable message.
    async fn recovering(&mut self, mut step: impl AsyncFnMut(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        let mut until = Instant::now() + self.resume_for;
        let mut attempt = 1;
        loop {
            let before = self.durable;
            let stepped = match self.heard.take() {
                None => step(self).await,
                Some(failure) => Err(failure),
            };
            let Err(error) = stepped else { return Ok(()) };
            let error = self.unlink(error);
            if self.durable > before {
                until = Instant::now() + self.resume_for;
                attempt = 1;
            }
            // A session makes repeats harmless, so an unknown outcome may be tried again too.
            if !retry::may(&error, true) || Instant::now() >= until {
                return Err(error);
            }
            if self.retry_if.as_ref().is_some_and(|ask| !ask(&error)) {
                return Err(error);
            }
            attempt += 1;
            let left = until.saturating_duration_since(Instant::now());
            sleep(retry::pause(Some(&error), attempt).min(left)).await;
        }
    }

    /// Gives the link up. What it carried may be durable unless the failure says that it is not; and if it says so, that holds
    /// for this link only.
    fn unlink(&mut self, mut error: Error) -> Error {
        if error.outcome == Outcome::Unknown {
            self.doubtful = self.doubtful.max(self.sent);
        }
        if error.outcome == Outcome::NotDone && self.doubtful > self.durable {
            error.outcome = Outcome::Unknown;
        }
        self.link = None;
        self.rewind();
        error
    }

    fn rewind(&mut self) {
        self.sent = self.durable;
        self.unsent_bytes = self.kept_bytes;
    }

    async fn push_frames(&mut self) -> Result<(), Error> {
        while self.unsent() > 0 {
            if self.link.is_none() {
                self.link = Some(self.open().await?);
                self.rewind();
            }
            let Some(link) = &self.link else {
                return Err(Error::broken());
            };
            let frames = link.frames.clone();
            // Reserved first: cancelled here, nothing was taken.
            let Ok(place) = frames.reserve_owned().await else {
                // The node ended the stream: it may have said why.
                return Err(self.last_word().await.unwrap_or_else(Error::broken));
            };
            let from = usize::try_from(self.sent - self.durable).unwrap_or(usize::MAX);
            let mut messages = Vec::new();
            let mut bytes = 0;
            for message in self.kept.range(from..).take(FRAME_MESSAGES) {
                let size = message.encoded_len();
                if bytes + size > FRAME_BYTES && !messages.is_empty() {
                    break;
                }
                bytes += size;
                messages.push(message.clone());
            }
            let first = self.sent + 1;
            let opens = from == 0;
            self.sent += messages.len() as u64;
            self.unsent_bytes = self.unsent_bytes.saturating_sub(bytes);
            place.send(v1::SubmitFrame {
                subject: if opens { self.subject.clone() } else { String::new() },
                session: if opens {
                    self.session.to_vec().into()
                } else {
                    bytes::Bytes::new()
                },
                first,
                messages,
                traceparent: if opens { self.traceparent.clone() } else { None },
            });
        }
        Ok(())
    }

    async fn open(&self) -> Result<Link, Error> {
        let (frames, outgoing) = mpsc::channel(FRAMES_WAITING);
        let acks = self
            .client
            .clone()
            .submit_stream(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        Ok(Link { frames, acks })
    }

    async fn last_word(&mut self) -> Option<Error> {
        loop {
            let ack = self.link.as_mut()?.acks.message().await;
            match ack {
                Ok(Some(ack)) => {
                    if let Err(error) = self.settle(ack) {
                        return Some(error);
                    }
                }
                Ok(None) => return None,
                Err(status) => return Some(status.into()),
            }
        }
    }

    /// Takes acknowledgements that are there already. A failure among them is the next step's, with its hint.
    fn take_acks(&mut self) {
        while let Some(link) = &mut self.link
            && let Some(next) = link.acks.message().now_or_never()
        {
            let settled = match next {
                Ok(Some(ack)) => self.settle(ack),
                Ok(None) => Err(Error::broken()),
                Err(status) => Err(status.into()),
            };
            if let Err(failure) = settled {
                let failure = self.unlink(failure);
                self.heard = Some(failure);
            }
        }
    }

    fn settle(&mut self, ack: v1::SubmitAck) -> Result<(), Error> {
        if ack.durable > self.last() {
            return Err(Error::new(
                Kind::Internal,
                Outcome::Unknown,
                format!(
                    "the node acknowledged sequence {}, but only {} were sent",
                    ack.durable,
                    self.last()
                ),
            ));
        }
        while self.durable < ack.durable {
            if let Some(message) = self.kept.pop_front() {
                self.kept_bytes -= message.encoded_len();
            }
            self.durable += 1;
        }
        self.sent = self.sent.max(self.durable);
        match ack.failure {
            None => Ok(()),
            Some(failure) => Err(failure.into()),
        }
    }
}
