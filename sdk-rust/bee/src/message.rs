//! What a Bee is given.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::emit::{Emit, Payload};
use crate::error::Error;
use crate::wire;

/// The name of a message for ever: the same at each attempt, so it serves as an idempotency key towards the outside.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid([u8; 16]);

impl Uid {
    /// The sixteen bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The node sends sixteen bytes; another length would be its defect, and is made visible as zeros.
    pub(crate) fn from_wire(bytes: &[u8]) -> Self {
        Self(bytes.try_into().unwrap_or_default())
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One message, owned: its payload can be moved out.
#[derive(Debug, Clone)]
pub struct Message(pub(crate) wire::Message);

impl Message {
    /// A message with this payload, for tests: uid zero, no key, accepted at the Unix epoch, first attempt.
    #[must_use]
    pub fn new(payload: impl Into<Payload>) -> Self {
        Self(wire::Message {
            uid: vec![0; 16],
            key: None,
            headers: Vec::new(),
            payload: payload.into().into_bytes(),
            accepted_ms: 0,
            attempt: 1,
        })
    }

    /// A message whose payload is `value` as JSON, for tests.
    ///
    /// # Errors
    /// If `value` has no JSON form, e.g. a map whose keys are not strings.
    pub fn from_json<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::to_vec(value).map(Self::new)
    }

    /// The same message with this key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.0.key = Some(key.into());
        self
    }

    /// The same message with this header added.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.headers.push((name.into(), value.into()));
        self
    }

    /// The same message with this uid.
    #[must_use]
    pub fn with_uid(mut self, uid: [u8; 16]) -> Self {
        self.0.uid = uid.to_vec();
        self
    }

    /// The same message, accepted at this time, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn with_accepted_ms(mut self, accepted_ms: u64) -> Self {
        self.0.accepted_ms = accepted_ms;
        self
    }

    /// The same message at this attempt, from 1.
    #[must_use]
    pub fn with_attempt(mut self, attempt: u32) -> Self {
        self.0.attempt = attempt;
        self
    }

    /// Its name: the same at each attempt.
    #[must_use]
    pub fn uid(&self) -> Uid {
        Uid::from_wire(&self.0.uid)
    }

    /// The key, in a keyed stage or if its publisher set one.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// All headers, in the order in which they were set; a name may occur more than once.
    #[must_use]
    pub fn headers(&self) -> &[(String, String)] {
        &self.0.headers
    }

    /// The first header of this name. Names are compared without regard to ASCII case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.0
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.0.payload
    }

    /// The payload, moved out.
    #[must_use]
    pub fn into_payload(self) -> Vec<u8> {
        self.0.payload
    }

    /// The payload as text.
    ///
    /// # Errors
    /// Rejects the message if the payload is not UTF-8: another attempt would find the same bytes.
    pub fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.0.payload)
            .map_err(|error| Error::reject(format!("the payload is not UTF-8 text: {error}")))
    }

    /// The payload as JSON.
    ///
    /// # Errors
    /// Rejects the message if the payload is not JSON of this form: another attempt would find the same bytes.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.0.payload)
            .map_err(|error| Error::reject(format!("the payload is not the JSON that this Bee takes: {error}")))
    }

    /// When skep accepted the message, or that message from which it descends; in milliseconds since the Unix epoch.
    #[must_use]
    pub fn accepted_ms(&self) -> u64 {
        self.0.accepted_ms
    }

    /// When skep accepted the message, or that message from which it descends.
    #[must_use]
    pub fn accepted_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.accepted_ms)
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }
}

/// What one Bee published, as the next receives it: lets a test drive two Bees in a row.
impl From<Emit> for Message {
    fn from(emit: Emit) -> Self {
        let mut message = Self::new(emit.0.payload);
        message.0.key = emit.0.key;
        message.0.headers = emit.0.headers;
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_set() {
        let message = Message::new("{\"a\":1}")
            .with_key("k")
            .with_header("Op", "get")
            .with_header("op", "second")
            .with_uid([0xab; 16])
            .with_accepted_ms(1_500)
            .with_attempt(3);
        assert_eq!(message.key(), Some("k"));
        assert_eq!(message.header("op"), Some("get"));
        assert_eq!(message.header("none"), None);
        assert_eq!(message.headers().len(), 2);
        assert_eq!(message.uid().to_string(), "ab".repeat(16));
        assert_eq!(message.accepted_at(), UNIX_EPOCH + Duration::from_millis(1_500));
        assert_eq!(message.attempt(), 3);
        assert_eq!(message.json::<serde_json::Value>().unwrap()["a"], 1);
        assert_eq!(message.text().unwrap(), "{\"a\":1}");
        assert_eq!(message.into_payload(), b"{\"a\":1}");
    }

    #[test]
    fn a_payload_of_the_wrong_form_is_rejected_because_it_stays_wrong() {
        use crate::Failure;
        let is_reject = |error: Error| matches!(error.failure(), Failure::Reject(_));
        assert!(is_reject(Message::new("{").json::<serde_json::Value>().unwrap_err()));
        assert!(is_reject(Message::new([0xff_u8, 0xfe]).text().unwrap_err()));
    }
}
