//! What of a node a tenant's Bees share with those of others.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// The node's process, in sandboxes of their own.
    #[default]
    Shared,
    /// Nothing but the machine: on each node its Bees run in a process of the tenant's own.
    Process,
}

impl Isolation {
    pub const ALL: [Self; 2] = [Self::Shared, Self::Process];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Process => "process",
        }
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no isolation: there are `shared` and `process`")]
pub struct NoIsolation(String);

impl FromStr for Isolation {
    type Err = NoIsolation;

    fn from_str(text: &str) -> Result<Self, NoIsolation> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| NoIsolation(text.chars().take(32).collect()))
    }
}
