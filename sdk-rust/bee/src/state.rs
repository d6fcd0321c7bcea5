//! State of the current message's key.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::swarm::Swarm;

/// Named values that belong to the key of the current message. Reads see what was written before, and all writes are
/// committed with the message, or not at all. Needs `key:` and `state: true` in the manifest.
#[derive(Debug)]
pub struct State<'a> {
    pub(crate) swarm: &'a mut Swarm,
}

impl State<'_> {
    /// The value of this name.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.swarm.host.state_get(name)
    }

    /// The value of this name, from JSON.
    ///
    /// # Errors
    /// See [`StateError`]; [`StateError::Json`] if the value has another form.
    pub fn get_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        match self.get(name)? {
            None => Ok(None),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| StateError::json(name, &error)),
        }
    }

    /// Sets the value of this name.
    ///
    /// # Errors
    /// See [`StateError`]. On an error nothing is written.
    pub fn put(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), StateError> {
        self.swarm.wrote = true;
        self.swarm.host.state_put(name, value.as_ref())
    }

    /// Sets the value of this name, as JSON.
    ///
    /// # Errors
    /// See [`StateError`]; [`StateError::Json`] if `value` has no JSON form. On an error nothing is written.
    pub fn put_json<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), StateError> {
        let bytes = serde_json::to_vec(value).map_err(|error| StateError::json(name, &error))?;
        self.put(name, bytes)
    }

    /// Removes the value of this name; to remove one that is not there is no error.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn delete(&mut self, name: &str) -> Result<(), StateError> {
        self.swarm.wrote = true;
        self.swarm.host.state_delete(name)
    }
}

/// Why state could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// The message has no key, or the stage has no state.
    Unkeyed,
    /// There is no current message.
    NoStep,
    /// The value or its name has more bytes than this.
    TooLarge(u64),
    /// The key holds as many values, or the tenant as many bytes, as it may.
    Quota,
    /// The value is not JSON of the expected form.
    Json {
        /// The value's name.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
}

impl StateError {
    fn json(name: &str, error: &serde_json::Error) -> Self {
        Self::Json {
            name: name.to_owned(),
            detail: error.to_string(),
        }
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unkeyed => f.write_str(
                "this message has no key to keep state for: set `key:` and `state: true` at the stage in the manifest \
                 (in a test: `DevSwarm::keyed`, or a message with a key through `deliver`)",
            ),
            Self::NoStep => f.write_str("there is no current message: use state while a Bee runs"),
            Self::TooLarge(max) => write!(
                f,
                "a value in state has at most {max} bytes: split it over several names"
            ),
            Self::Quota => f.write_str("this key holds as much state as it may: delete values that are not needed"),
            Self::Json { name, detail } => write!(f, "the value `{name}` in state: {detail}"),
        }
    }
}

impl std::error::Error for StateError {}
