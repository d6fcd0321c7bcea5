//! Secrets of the tenant.

use std::fmt;

/// A secret's value. It is not shown by `{:?}`, and the node takes it out of log lines and errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub(crate) fn new(value: Vec<u8>) -> Self {
        Self(value)
    }

    /// As it was set.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a secret cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretError {
    /// The manifest does not grant it: add it to the Bee's `secrets: [...]`.
    NotGranted(String),
    /// It is granted, and the tenant has none of that name: `skep secret set NAME`.
    Missing(String),
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted(name) => write!(
                f,
                "the secret `{name}` is not granted: add it to the Bee's `secrets: [...]` in the manifest"
            ),
            Self::Missing(name) => write!(f, "there is no secret `{name}`: set it with `skep secret set {name}`"),
        }
    }
}

impl std::error::Error for SecretError {}
