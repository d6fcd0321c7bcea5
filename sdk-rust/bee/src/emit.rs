//! What a Bee publishes.

use serde::Serialize;

use crate::message::Message;
use crate::wire;

/// The bytes of a message. Text, byte vectors, JSON values and received messages convert into one, owned ones without
/// a copy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// `value` as JSON.
    ///
    /// # Errors
    /// If `value` has no JSON form, e.g. a map whose keys are not strings.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::to_vec(value).map(Self)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, moved out.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The bytes as text, for tests.
    ///
    /// # Panics
    /// If they are not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.0).expect("the payload is UTF-8 text")
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl<const N: usize> From<[u8; N]> for Payload {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes.to_vec())
    }
}

impl<const N: usize> From<&[u8; N]> for Payload {
    fn from(bytes: &[u8; N]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<serde_json::Value> for Payload {
    fn from(value: serde_json::Value) -> Self {
        Self(value.to_string().into_bytes())
    }
}

/// The message's payload, passed on as it is.
impl From<Message> for Payload {
    fn from(message: Message) -> Self {
        Self(message.into_payload())
    }
}

/// One message to publish, for what [`Swarm::publish`](crate::Swarm::publish) does not say: key, headers, output.
///
/// ```
/// # use skep::Emit;
/// let emit = Emit::new("42").key("answers").header("kind", "number").to("even");
/// ```
#[derive(Debug, Clone)]
pub struct Emit(pub(crate) wire::Emit);

impl Emit {
    /// A message with this payload, without key and headers, to every unnamed output.
    #[must_use]
    pub fn new(payload: impl Into<Payload>) -> Self {
        Self(wire::Emit {
            to: None,
            key: None,
            headers: Vec::new(),
            payload: payload.into().0,
        })
    }

    /// A message with `value` as JSON.
    ///
    /// # Errors
    /// If `value` has no JSON form, e.g. a map whose keys are not strings.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        Payload::json(value).map(Self::new)
    }

    /// Sets the key. A stage with `key: message` orders by it and keeps state for it.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.0.key = Some(key.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.headers.push((name.into(), value.into()));
        self
    }

    /// Sends it to this named output only.
    #[must_use]
    pub fn to(mut self, output: impl Into<String>) -> Self {
        self.0.to = Some(output.into());
        self
    }

    /// The named output, if one was set.
    #[must_use]
    pub fn output(&self) -> Option<&str> {
        self.0.to.as_deref()
    }

    /// The key that was set.
    #[must_use]
    pub fn message_key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// All headers.
    #[must_use]
    pub fn headers(&self) -> &[(String, String)] {
        &self.0.headers
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.0.payload
    }

    /// The payload as text, for tests.
    ///
    /// # Panics
    /// If it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.0.payload).expect("the payload is UTF-8 text")
    }
}
