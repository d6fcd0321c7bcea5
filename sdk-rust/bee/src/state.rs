//! State of the current message's key.

use std::fmt;
use std::marker::PhantomData;

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

    /// One value of this name and of type `T`, kept as JSON.
    ///
    /// ```
    /// # fn bee(swarm: &mut skep::Swarm) -> Result<(), skep::StateError> {
    /// let mut state = swarm.state();
    /// let last = state.value::<String>("last").set(&"hello".to_owned())?;
    /// let seen = state.value::<u32>("seen").update(|seen| seen.unwrap_or(0) + 1)?;
    /// # Ok(()) }
    /// ```
    pub fn value<T>(&mut self, name: &str) -> StateValue<'_, T> {
        StateValue {
            state: State { swarm: self.swarm },
            name: name.to_owned(),
            of: PhantomData,
        }
    }

    /// Adds to a number, which is 0 where there is none, and returns the sum.
    ///
    /// # Errors
    /// See [`StateError`]; [`StateError::Json`] if the value is no whole number, or the sum too large. On an error nothing is written.
    pub fn add(&mut self, name: &str, by: i64) -> Result<i64, StateError> {
        let sum = self.get_json::<i64>(name)?.unwrap_or(0).checked_add(by);
        let sum = sum.ok_or_else(|| StateError::Json {
            name: name.to_owned(),
            detail: "the sum does not fit in 64 bits".to_owned(),
        })?;
        self.put_json(name, &sum)?;
        Ok(sum)
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

/// One value of a type, by [`State::value`].
#[derive(Debug)]
pub struct StateValue<'a, T> {
    state: State<'a>,
    name: String,
    of: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> StateValue<'_, T> {
    /// `None` where there is none.
    ///
    /// # Errors
    /// As [`State::get_json`].
    pub fn get(&self) -> Result<Option<T>, StateError> {
        self.state.get_json(&self.name)
    }

    /// # Errors
    /// As [`State::put_json`].
    pub fn set(&mut self, value: &T) -> Result<(), StateError> {
        self.state.put_json(&self.name, value)
    }

    /// Sets it to what `with` makes of it, and returns that.
    ///
    /// # Errors
    /// As [`State::get_json`] and [`State::put_json`].
    pub fn update(&mut self, with: impl FnOnce(Option<T>) -> T) -> Result<T, StateError> {
        let value = with(self.get()?);
        self.set(&value)?;
        Ok(value)
    }

    /// # Errors
    /// As [`State::delete`].
    pub fn delete(&mut self) -> Result<(), StateError> {
        self.state.delete(&self.name)
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
    /// The key holds as many values or bytes, or the stage as many keys or bytes, as it may.
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
            Self::Quota => f.write_str(
                "this key, or its whole stage, holds as much state as it may: delete values that are not needed, or raise \
                 `state: { keys, bytes }` in the manifest",
            ),
            Self::Json { name, detail } => write!(f, "the value `{name}` in state: {detail}"),
        }
    }
}

impl std::error::Error for StateError {}
