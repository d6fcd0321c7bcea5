//! What a Bee acts on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::emit::{Emit, Payload};
use crate::error::Error;
use crate::reply::ReplyError;
use crate::secret::{Secret, SecretError};
use crate::state::State;
use crate::timer::Timers;
use crate::wire;

/// The Swarm as one Bee sees it: where it publishes and responds, and where its state, timers and configuration are.
///
/// Effects are recorded, not done: the node commits them together with the current message, once. In a native test a
/// [`DevSwarm`](crate::DevSwarm) stands for it.
#[derive(Debug, Default)]
pub struct Swarm {
    pub(crate) publish: Vec<Emit>,
    pub(crate) respond: Vec<Payload>,
    pub(crate) failure: Option<Error>,
    /// Whether the host holds writes of the current input, which an error has to undo.
    pub(crate) wrote: bool,
    pub(crate) current: Input,
    pub(crate) batch: Batch,
    pub(crate) host: wire::Host,
}

/// What is known of the current input.
#[derive(Debug, Default, Clone)]
pub(crate) struct Input {
    /// Its place in the call.
    pub index: u32,
    pub attempt: u32,
    pub now_ms: u64,
    /// Only natively: a module's host knows it.
    pub key: Option<String>,
}

/// Where a batch Bee stands. Empty for all others.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub inputs: Vec<Input>,
    pub position: usize,
    pub outcomes: Vec<wire::Outcome>,
}

impl Swarm {
    /// Publishes to every stage that reads this Bee's unnamed output.
    pub fn publish(&mut self, payload: impl Into<Payload>) {
        self.emit(Emit::new(payload));
    }

    /// Publishes `value` as JSON.
    ///
    /// # Errors
    /// If `value` has no JSON form, e.g. a map whose keys are not strings.
    pub fn publish_json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), serde_json::Error> {
        self.publish(Payload::json(value)?);
        Ok(())
    }

    /// Publishes to the stages that read this named output. One that no stage reads drops the message.
    pub fn publish_to(&mut self, output: impl Into<String>, payload: impl Into<Payload>) {
        self.emit(Emit::new(payload).to(output));
    }

    /// Publishes a message with key, headers or a named output.
    pub fn emit(&mut self, emit: Emit) {
        self.publish.push(emit);
    }

    /// Answers the caller, if one waits; a submitted message has none, and the answer is dropped.
    pub fn respond(&mut self, payload: impl Into<Payload>) {
        self.respond.push(payload.into());
    }

    /// Answers the caller with `value` as JSON.
    ///
    /// # Errors
    /// If `value` has no JSON form, e.g. a map whose keys are not strings.
    pub fn respond_json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), serde_json::Error> {
        self.respond(Payload::json(value)?);
        Ok(())
    }

    /// Sends a part of a streamed response to the caller now, and waits while the caller's window is full.
    ///
    /// Unlike everything else here this is not an effect that a commit decides on: after the first part the message is
    /// never run again. If the Bee then fails, that is the end of it; if its node dies, the caller is told that the
    /// outcome is unknown. A caller that takes no parts gets them joined, where the Bee responds and publishes nothing.
    ///
    /// # Errors
    /// See [`ReplyError`]. `?` is right for a caller that went away: what is left need not be done.
    pub fn reply_part(&mut self, data: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        self.host.reply_part(data.as_ref())
    }

    /// State of the current message's key.
    pub fn state(&mut self) -> State<'_> {
        State { swarm: self }
    }

    /// Timers of the current message's key.
    pub fn timers(&mut self) -> Timers<'_> {
        Timers { swarm: self }
    }

    /// The value of `name` under `config:` of the stage in the manifest.
    ///
    /// # Errors
    /// If the node cannot read its configuration now; another attempt may.
    pub fn config(&self, name: &str) -> crate::Result<Option<String>> {
        self.host.config(name)
    }

    /// The newest value of a secret that the manifest grants with `secrets: [NAME]`. Ask each time rather than keep it: a new value
    /// counts from the next batch on.
    ///
    /// # Errors
    /// See [`SecretError`]. `?` lets the message be tried again, when the secret may be there.
    pub fn secret(&self, name: &str) -> Result<Secret, SecretError> {
        self.host.secret(name).map(Secret::new)
    }

    /// Which attempt at the current message this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.current.attempt
    }

    /// The current message's time, in milliseconds since the Unix epoch: when skep accepted it; for a timer, when it
    /// was due. The same at each attempt.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.current.now_ms
    }

    /// As [`now_ms`](Self::now_ms), as a point in time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.current.now_ms)
    }

    /// Fails the current message and no other. It is what returning an error does; a batch Bee says it so that it can
    /// go on with the next message.
    pub fn fail(&mut self, error: impl Into<Error>) {
        self.failure = Some(error.into());
    }

    /// In a batch Bee: makes the message at this index of `messages` the current one. From here on effects, state,
    /// clock and [`fail`](Self::fail) are that message's. A batch begins at index 0.
    ///
    /// An error that the function returns fails the current message and all after it.
    ///
    /// ```
    /// # use skep::{Message, Swarm};
    /// #[skep::bee(batch)]
    /// fn upper(swarm: &mut Swarm, messages: Vec<Message>) {
    ///     for (index, message) in messages.into_iter().enumerate() {
    ///         swarm.at(index);
    ///         match message.text() {
    ///             Ok(text) => swarm.publish(text.to_uppercase()),
    ///             Err(error) => swarm.fail(error),
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// # Panics
    /// If the index is below the current one, because what came before is settled already; or if there is no such
    /// message.
    pub fn at(&mut self, index: usize) {
        let position = self.batch.position;
        assert!(
            index >= position,
            "`at({index})` after `at({position})`: go through a batch upwards"
        );
        if self.batch.inputs.is_empty() {
            // A plain call in a test: there is no batch to keep apart.
            self.batch.position = index;
            return;
        }
        let count = self.batch.inputs.len();
        assert!(index < count, "`at({index})`: this batch has {count} messages");
        if index > position {
            self.settle_batch_until(index);
            self.begin_at(index);
        }
    }
}
