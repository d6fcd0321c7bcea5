//! A Swarm for native tests.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use crate::emit::{Emit, Payload};
use crate::joined::Joined;
use crate::message::Message;
use crate::model::{ModelError, Outputs, Tensor, native};
use crate::reply::ReplyError;
use crate::secret::SecretError;
use crate::state::StateError;
use crate::swarm::{Input, Swarm};
use crate::timer::{Timer, TimerError};
use crate::{process, registry, wire};

/// Longest value in state, in bytes, as on a node; so that a test finds what a node would refuse.
const STATE_VALUE_BYTES_MAX: usize = 256 << 10;
/// Longest name of a value in state.
const STATE_NAME_BYTES_MAX: usize = 256;
/// Named values of one key.
const STATE_NAMES_MAX: usize = 1_000;
/// All of one key's state, names and values.
const STATE_KEY_BYTES_MAX: usize = 4 << 20;
/// One part of a response.
const PART_BYTES_MAX: usize = 256 << 10;
/// Pending timers of one key.
const TIMERS_PER_KEY_MAX: usize = 1_000;

/// A [`Swarm`] that records what a Bee did and keeps state, timers and configuration in memory.
///
/// A Bee is called as the plain function that it is:
/// ```
/// # use skep::{DevSwarm, Message, Swarm};
/// # fn hello(swarm: &mut Swarm, message: Message) -> skep::Result {
/// #     swarm.publish(format!("Hello {}", message.text()?));
/// #     Ok(())
/// # }
/// let mut swarm = DevSwarm::new();
/// hello(&mut swarm, Message::new("Bee")).unwrap();
/// assert_eq!(swarm.published()[0].text(), "Hello Bee");
/// ```
/// [`deliver`](Self::deliver) does more, and does it as a node would: state and timers belong to the message's key,
/// clock and attempt are the message's, and an error drops the effects of that message.
/// ```
/// # use skep::{DevSwarm, Message, Swarm};
/// # fn count(swarm: &mut Swarm, _message: Message) -> skep::Result {
/// #     let mut state = swarm.state();
/// #     let count = state.get_json::<u64>("count")?.unwrap_or(0) + 1;
/// #     state.put_json("count", &count)?;
/// #     Ok(())
/// # }
/// let mut swarm = DevSwarm::new();
/// swarm.deliver(count, Message::new("").with_key("bee")).unwrap();
/// swarm.deliver(count, Message::new("").with_key("bee")).unwrap();
/// assert_eq!(swarm.stored("bee", "count"), Some(b"2".as_slice()));
/// ```
#[derive(Debug, Default)]
pub struct DevSwarm {
    swarm: Swarm,
    models: Vec<native::Registered>,
}

impl DevSwarm {
    /// An empty Swarm. Its current message has no key, so there is no state in a plain call.
    #[must_use]
    pub fn new() -> Self {
        let mut dev = Self::default();
        dev.swarm.current.attempt = 1;
        dev
    }

    /// An empty Swarm for plain calls of a keyed Bee: its current message has this key.
    #[must_use]
    pub fn keyed(key: impl Into<String>) -> Self {
        let mut dev = Self::new();
        dev.swarm.host.key = Some(key.into());
        dev
    }

    /// Sets a value of `config:`.
    #[must_use]
    pub fn with_config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.swarm.host.config.insert(name.into(), value.into());
        self
    }

    /// Sets a secret, and grants it.
    #[must_use]
    pub fn with_secret(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.swarm.host.secrets.insert(name.into(), value.into());
        self
    }

    /// Grants a model to whatever runs on this thread as long as this `DevSwarm` lives: a function of the inputs, which answers the outputs.
    /// ```
    /// # use skep::{DevSwarm, Tensor};
    /// let swarm = DevSwarm::new().with_model("digits", |inputs| {
    ///     assert_eq!(inputs.get("image")?.shape(), [1, 784]);
    ///     Ok(vec![("label".to_owned(), Tensor::i64([1], &[7]))])
    /// });
    /// # let image = Tensor::f32([1, 784], &[0.0; 784]);
    /// # assert_eq!(skep::model("digits")?.predict([("image", image)])?.get("label")?.i64s()?, [7]);
    /// # Ok::<(), skep::ModelError>(())
    /// ```
    #[must_use]
    pub fn with_model(
        mut self,
        name: impl Into<String>,
        function: impl Fn(&Outputs) -> Result<Vec<(String, Tensor)>, ModelError> + 'static,
    ) -> Self {
        self.models.push(native::register(name.into(), Rc::new(function)));
        self
    }

    /// Stores a value in the state of `key`.
    pub fn store(&mut self, key: impl Into<String>, name: impl Into<String>, value: impl Into<Payload>) {
        self.swarm
            .host
            .kept
            .state
            .entry(key.into())
            .or_default()
            .insert(name.into(), value.into().into_bytes());
    }

    /// Gives a message to a Bee as a node would: see the type's documentation.
    ///
    /// # Errors
    /// What the Bee returned. What it did for this message is then dropped.
    pub fn deliver<R: crate::__private::IntoResult>(
        &mut self,
        bee: impl FnOnce(&mut Swarm, Message) -> R,
        message: Message,
    ) -> crate::Result {
        let input = Input {
            index: 0,
            attempt: message.attempt(),
            now_ms: message.accepted_ms(),
            key: message.key().map(str::to_owned),
        };
        self.step(input, |swarm| bee(swarm, message).into_result())
    }

    /// Fires every timer that is due at `until_ms` (milliseconds since the Unix epoch), in order, those included that a
    /// firing sets. Gives back how many fired.
    ///
    /// # Errors
    /// The first error that the function returned. What it did for that timer is dropped, and the timer stays set.
    pub fn fire_until<R: crate::__private::IntoResult>(
        &mut self,
        until_ms: u64,
        mut on_timer: impl FnMut(&mut Swarm, Timer) -> R,
    ) -> crate::Result<usize> {
        let mut fired = 0;
        loop {
            let due = self
                .pending_timers()
                .into_iter()
                .filter(|timer| timer.at_ms() <= until_ms);
            let Some(timer) = due.min_by_key(Timer::at_ms) else {
                return Ok(fired);
            };
            let key = timer.key().to_owned();
            let input = Input {
                index: 0,
                attempt: 1,
                now_ms: timer.at_ms(),
                key: Some(key.clone()),
            };
            self.step(input, |swarm| {
                // Before the function runs, so that it may set the same name anew.
                swarm.host.timer_cancel(timer.name())?;
                swarm.wrote = true;
                on_timer(swarm, timer).into_result()
            })?;
            fired += 1;
        }
    }

    /// Gives a batch to the Bee that is registered under this name, as a node would: one result a message, in order.
    /// What each did is recorded, or dropped with its error.
    ///
    /// ```
    /// # use skep::{DevSwarm, Message, Swarm};
    /// #[skep::bee]
    /// fn parse(swarm: &mut Swarm, message: Message) -> skep::Result {
    ///     swarm.publish_json(&message.text()?.parse::<u64>()?)?;
    ///     Ok(())
    /// }
    ///
    /// let mut swarm = DevSwarm::new();
    /// let results = swarm.run("parse", vec![Message::new("1"), Message::new("x"), Message::new("3")]);
    /// assert!(results[0].is_ok() && results[1].is_err() && results[2].is_ok());
    /// assert_eq!(swarm.published().len(), 2);
    /// ```
    pub fn run(&mut self, bee: &str, messages: Vec<Message>) -> Vec<crate::Result> {
        self.process(
            bee,
            messages
                .into_iter()
                .map(|message| wire::Input::One(message.0))
                .collect(),
        )
    }

    /// Fires a timer at the Bee that is registered under this name, as a node would.
    ///
    /// # Errors
    /// What the Bee's timer function returned; or that it has none.
    pub fn run_timer(&mut self, bee: &str, timer: Timer) -> crate::Result {
        self.process(bee, vec![wire::Input::Timer(timer.0)])
            .pop()
            .unwrap_or(Ok(()))
    }

    /// Hands what a join brought together to the Bee that is registered under this name, as a node would.
    ///
    /// # Errors
    /// What the Bee returned; or that it takes messages one by one.
    pub fn run_joined(&mut self, bee: &str, parts: Joined) -> crate::Result {
        self.process(bee, vec![wire::Input::Joined(parts.0)])
            .pop()
            .unwrap_or(Ok(()))
    }

    fn process(&mut self, bee: &str, inputs: Vec<wire::Input>) -> Vec<crate::Result> {
        let recorded = (self.take_published(), self.take_responded());
        let outcomes = process::process(bee, inputs, &mut self.swarm);
        (self.swarm.publish, self.swarm.respond) = recorded;
        let record = |outcome: wire::Outcome| {
            self.swarm.publish.extend(outcome.publish.into_iter().map(Emit));
            self.swarm
                .respond
                .extend(outcome.respond.into_iter().map(Payload::from));
            crate::Error::from_wire(outcome.disposition).map_or(Ok(()), Err)
        };
        outcomes.into_iter().map(record).collect()
    }

    /// The names of all registered Bees, sorted.
    ///
    /// # Panics
    /// If two have the same name.
    #[must_use]
    pub fn bees() -> Vec<&'static str> {
        registry::names()
    }

    fn step(&mut self, input: Input, f: impl FnOnce(&mut Swarm) -> crate::Result) -> crate::Result {
        let before = (self.swarm.publish.len(), self.swarm.respond.len());
        let swarm = &mut self.swarm;
        swarm.begin(input);
        let result = f(swarm);
        let result = swarm.failure.take().map_or(result, Err);
        if result.is_err() {
            swarm.publish.truncate(before.0);
            swarm.respond.truncate(before.1);
            swarm.host.abandon(swarm.current.index);
        }
        result
    }

    /// What was published, in order.
    #[must_use]
    pub fn published(&self) -> &[Emit] {
        &self.swarm.publish
    }

    /// What was published, taken out: to be given to the next Bee.
    #[must_use]
    pub fn take_published(&mut self) -> Vec<Emit> {
        std::mem::take(&mut self.swarm.publish)
    }

    /// What was responded, in order.
    #[must_use]
    pub fn responded(&self) -> &[Payload] {
        &self.swarm.respond
    }

    /// What was responded, taken out.
    #[must_use]
    pub fn take_responded(&mut self) -> Vec<Payload> {
        std::mem::take(&mut self.swarm.respond)
    }

    /// The parts that were sent by [`Swarm::reply_part`], in order.
    #[must_use]
    pub fn parts(&self) -> &[Vec<u8>] {
        &self.swarm.host.parts
    }

    /// A value in the state of `key`.
    #[must_use]
    pub fn stored(&self, key: &str, name: &str) -> Option<&[u8]> {
        self.swarm.host.kept.state.get(key)?.get(name).map(Vec::as_slice)
    }

    /// The names of all values in the state of `key`, sorted.
    #[must_use]
    pub fn state_names(&self, key: &str) -> Vec<&str> {
        let values = self.swarm.host.kept.state.get(key);
        values.map_or_else(Vec::new, |values| values.keys().map(String::as_str).collect())
    }

    /// The timers that are set, by key and name.
    #[must_use]
    pub fn pending_timers(&self) -> Vec<Timer> {
        let timers = &self.swarm.host.kept.timers;
        timers
            .iter()
            .flat_map(|(key, timers)| timers.iter().map(move |(name, at_ms)| Timer::new(key, name, *at_ms)))
            .collect()
    }

    /// The failure that a plain call marked by [`Swarm::fail`], taken out.
    #[must_use]
    pub fn take_failure(&mut self) -> Option<crate::Error> {
        self.swarm.failure.take()
    }
}

impl Deref for DevSwarm {
    type Target = Swarm;

    fn deref(&self) -> &Swarm {
        &self.swarm
    }
}

impl DerefMut for DevSwarm {
    fn deref_mut(&mut self) -> &mut Swarm {
        &mut self.swarm
    }
}

/// The node's side of a Swarm, in memory.
#[derive(Debug, Default)]
pub struct Host {
    key: Option<String>,
    kept: Kept,
    /// What the current key had when the current input began: an input can write to no other key.
    before: Before,
    config: BTreeMap<String, String>,
    secrets: BTreeMap<String, Vec<u8>>,
    parts: Vec<Vec<u8>>,
}

/// Key to (name to value).
#[derive(Debug, Default)]
struct Kept {
    state: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    timers: BTreeMap<String, BTreeMap<String, u64>>,
}

#[derive(Debug, Default)]
struct Before {
    state: BTreeMap<String, Vec<u8>>,
    timers: BTreeMap<String, u64>,
}

impl Host {
    pub fn begin(&mut self, _index: u32, key: Option<&str>) {
        self.key = key.map(str::to_owned);
        self.before = key.map_or_else(Before::default, |key| Before {
            state: self.kept.state.get(key).cloned().unwrap_or_default(),
            timers: self.kept.timers.get(key).cloned().unwrap_or_default(),
        });
    }

    pub fn abandon(&mut self, _index: u32) {
        let Some(key) = &self.key else { return };
        let before = std::mem::take(&mut self.before);
        self.kept.state.insert(key.clone(), before.state);
        self.kept.timers.insert(key.clone(), before.timers);
    }

    fn state(&mut self) -> Result<&mut BTreeMap<String, Vec<u8>>, StateError> {
        let key = self.key.as_ref().ok_or(StateError::Unkeyed)?;
        Ok(self.kept.state.entry(key.clone()).or_default())
    }

    fn timers(&mut self) -> Result<&mut BTreeMap<String, u64>, TimerError> {
        let key = self.key.as_ref().ok_or(TimerError::Unkeyed)?;
        Ok(self.kept.timers.entry(key.clone()).or_default())
    }

    pub fn state_get(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let key = self.key.as_ref().ok_or(StateError::Unkeyed)?;
        Ok(self.kept.state.get(key).and_then(|values| values.get(name)).cloned())
    }

    pub fn state_put(&mut self, name: &str, value: &[u8]) -> Result<(), StateError> {
        let values = self.state()?;
        for (bytes, max) in [(name.len(), STATE_NAME_BYTES_MAX), (value.len(), STATE_VALUE_BYTES_MAX)] {
            if bytes > max {
                return Err(StateError::TooLarge(max as u64));
            }
        }
        if values.len() >= STATE_NAMES_MAX && !values.contains_key(name) {
            return Err(StateError::Quota);
        }
        let others = values.iter().filter(|(n, _)| *n != name);
        let held: usize = others.map(|(n, v)| n.len() + v.len()).sum();
        if held + name.len() + value.len() > STATE_KEY_BYTES_MAX {
            return Err(StateError::Quota);
        }
        values.insert(name.to_owned(), value.to_vec());
        Ok(())
    }

    pub fn state_delete(&mut self, name: &str) -> Result<(), StateError> {
        self.state()?.remove(name);
        Ok(())
    }

    pub fn timer_set(&mut self, name: &str, at_ms: u64) -> Result<(), TimerError> {
        let timers = self.timers()?;
        if timers.len() >= TIMERS_PER_KEY_MAX && !timers.contains_key(name) {
            return Err(TimerError::Quota);
        }
        timers.insert(name.to_owned(), at_ms);
        Ok(())
    }

    pub fn timer_cancel(&mut self, name: &str) -> Result<(), TimerError> {
        self.timers()?.remove(name);
        Ok(())
    }

    pub fn reply_part(&mut self, data: &[u8]) -> Result<(), ReplyError> {
        if data.len() > PART_BYTES_MAX {
            return Err(ReplyError::TooLarge(PART_BYTES_MAX as u64));
        }
        self.parts.push(data.to_vec());
        Ok(())
    }

    pub fn secret(&self, name: &str) -> Result<Vec<u8>, SecretError> {
        let value = self.secrets.get(name).cloned();
        value.ok_or_else(|| SecretError::NotGranted(name.to_owned()))
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the module's host can fail to read its configuration"
    )]
    pub fn config(&self, name: &str) -> crate::Result<Option<String>> {
        Ok(self.config.get(name).cloned())
    }
}
