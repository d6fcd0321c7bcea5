//! Timers of the current message's key.

use std::fmt;
use std::time::Duration;

use crate::message::Uid;
use crate::swarm::Swarm;
use crate::wire;

/// A timer that fired: what a Bee's timer function is given.
///
/// ```
/// use skep::{Message, Swarm, Timer};
///
/// #[skep::bee(timer = on_timer)]
/// fn session(swarm: &mut Swarm, _message: Message) -> skep::Result {
///     swarm.timers().after("expire", std::time::Duration::from_secs(60))?;
///     Ok(())
/// }
///
/// fn on_timer(swarm: &mut Swarm, timer: Timer) -> skep::Result {
///     swarm.publish(format!("{} {}", timer.key(), timer.name()));
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Timer(pub(crate) wire::Due);

impl Timer {
    /// A timer of this key and name, due at `at_ms` (milliseconds since the Unix epoch), for tests.
    #[must_use]
    pub fn new(key: impl Into<String>, name: impl Into<String>, at_ms: u64) -> Self {
        Self(wire::Due {
            uid: vec![0; 16],
            key: key.into(),
            name: name.into(),
            at_ms,
            attempt: 1,
        })
    }

    /// The name of this firing: the same at each attempt.
    #[must_use]
    pub fn uid(&self) -> Uid {
        Uid::from_wire(&self.0.uid)
    }

    /// The key that the timer belongs to.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// The name under which it was set.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// When it was due, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn at_ms(&self) -> u64 {
        self.0.at_ms
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }
}

/// Timers that belong to the key of the current message. They are set and cancelled with the message's commit, or not
/// at all. Needs `key:` and `state: true` in the manifest.
#[derive(Debug)]
pub struct Timers<'a> {
    pub(crate) swarm: &'a mut Swarm,
}

impl Timers<'_> {
    /// Sets a timer to `at_ms`, in milliseconds since the Unix epoch; the same name replaces. A past time fires soon.
    ///
    /// # Errors
    /// See [`TimerError`].
    pub fn set(&mut self, name: &str, at_ms: u64) -> Result<(), TimerError> {
        self.swarm.wrote = true;
        self.swarm.host.timer_set(name, at_ms)
    }

    /// Sets a timer to `wait` after [`Swarm::now_ms`]; the same name replaces.
    ///
    /// # Errors
    /// See [`TimerError`].
    pub fn after(&mut self, name: &str, wait: Duration) -> Result<(), TimerError> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.set(name, self.swarm.now_ms().saturating_add(wait_ms))
    }

    /// Cancels a timer; to cancel one that is not set is no error.
    ///
    /// # Errors
    /// See [`TimerError`].
    pub fn cancel(&mut self, name: &str) -> Result<(), TimerError> {
        self.swarm.wrote = true;
        self.swarm.host.timer_cancel(name)
    }
}

/// Why a timer could not be set or cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimerError {
    /// The message has no key, or the stage has no state.
    Unkeyed,
    /// There is no current message.
    NoStep,
    /// The key has as many timers as it may.
    Quota,
}

impl fmt::Display for TimerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unkeyed => {
                "this message has no key to set a timer for: set `key:` and `state: true` at the stage in the manifest \
                 (in a test: `DevSwarm::keyed`, or a message with a key through `deliver`)"
            }
            Self::NoStep => "there is no current message: use timers while a Bee runs",
            Self::Quota => "this key has as many timers as it may: cancel one, or reuse its name",
        })
    }
}

impl std::error::Error for TimerError {}
