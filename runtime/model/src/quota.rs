//! What a tenant may have: its limits, how people write them, and what each is counted over.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::{
    MEMORY_BYTES_MIN, PAYLOAD_BYTES_MAX, QUOTA_BYTES_MAX, QUOTA_COUNT_MAX, QUOTA_CPU_MAX, QUOTA_CPU_MIN,
    QUOTA_RATE_MAX, QUOTA_WEIGHT_MAX,
};
use crate::manifest::units::{show_size, size_bytes};

/// One thing that a tenant may be limited in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quota {
    /// Bytes that its live instances may grow to together, on each node.
    Memory,
    /// Its live instances, on each node.
    Instances,
    /// Thousandths of a core that its Bees may use, on each node.
    Cpu,
    /// Its part of a busy node's guest time, beside the weights of other tenants. Not a limit: 1 where it is not said.
    Weight,
    /// Messages a second that it may send, over all nodes.
    Rate,
    /// Its calls under way, on each node.
    Concurrency,
    /// Their bytes, on each node.
    InFlight,
    /// Bytes in its topics: what waits, what is to be retried, dead letters.
    Storage,
    /// Bytes of its keyed state.
    State,
    /// Bytes of its modules and models.
    Modules,
    /// Lines a second that its Bees may log, on each node.
    LogRate,
}

/// How an amount is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Count,
    Cores,
    PerSecond,
}

impl Quota {
    pub const ALL: [Self; 11] = [
        Self::Memory,
        Self::Instances,
        Self::Cpu,
        Self::Weight,
        Self::Rate,
        Self::Concurrency,
        Self::InFlight,
        Self::Storage,
        Self::State,
        Self::Modules,
        Self::LogRate,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Instances => "instances",
            Self::Cpu => "cpu",
            Self::Weight => "weight",
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
            Self::InFlight => "in-flight",
            Self::Storage => "storage",
            Self::State => "state",
            Self::Modules => "modules",
            Self::LogRate => "log-rate",
        }
    }

    fn unit(self) -> Unit {
        match self {
            Self::Memory | Self::InFlight | Self::Storage | Self::State | Self::Modules => Unit::Bytes,
            Self::Instances | Self::Concurrency | Self::Weight => Unit::Count,
            Self::Cpu => Unit::Cores,
            Self::Rate | Self::LogRate => Unit::PerSecond,
        }
    }

    /// The least and the most that mean anything: a limit under which nothing at all could be done is a slip.
    fn range(self) -> (u64, u64) {
        match self {
            Self::Memory => (MEMORY_BYTES_MIN as u64, QUOTA_BYTES_MAX),
            // One message of the largest size must fit.
            Self::InFlight => (PAYLOAD_BYTES_MAX as u64, QUOTA_BYTES_MAX),
            Self::Storage | Self::State | Self::Modules => (1, QUOTA_BYTES_MAX),
            Self::Instances | Self::Concurrency => (1, QUOTA_COUNT_MAX),
            Self::Weight => (1, QUOTA_WEIGHT_MAX),
            Self::Cpu => (QUOTA_CPU_MIN, QUOTA_CPU_MAX),
            Self::Rate | Self::LogRate => (1, QUOTA_RATE_MAX),
        }
    }

    /// As people write it: `256MiB`, `0.5`, `1000/s`, `40`.
    ///
    /// # Errors
    /// Another unit, none, more than it can be, or nothing.
    pub fn parse(self, text: &str) -> Result<u64, BadQuota> {
        let value = match self.unit() {
            Unit::Bytes => size_bytes(text),
            Unit::Count => whole(text),
            Unit::PerSecond => text.strip_suffix("/s").and_then(whole),
            Unit::Cores => thousandths(text),
        };
        let why = match self.unit() {
            Unit::Bytes => "write a size with its unit: `256MiB`, `1GiB`",
            Unit::Count => "write a whole number: `40`",
            Unit::PerSecond => "write a whole number a second: `1000/s`",
            Unit::Cores => "write cores with at most three places: `0.5`, `2`",
        };
        let value = value.ok_or_else(|| BadQuota::Unreadable {
            quota: self,
            text: text.chars().take(64).collect(),
            why,
        })?;
        self.check(value)
    }

    /// # Errors
    /// Under the least or over the most that it can be.
    pub fn check(self, value: u64) -> Result<u64, BadQuota> {
        let (least, most) = self.range();
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(BadQuota::OutOfBounds {
            quota: self,
            text: self.show(value),
            least: self.show(least),
            most: self.show(most),
        })
    }

    /// As [`Quota::parse`] reads it.
    #[must_use]
    pub fn show(self, value: u64) -> String {
        match self.unit() {
            Unit::Bytes => show_size(value),
            Unit::Count => value.to_string(),
            Unit::PerSecond => format!("{value}/s"),
            Unit::Cores => {
                let places = format!("{}.{:03}", value / 1_000, value % 1_000);
                places.trim_end_matches('0').trim_end_matches('.').to_owned()
            }
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Quota {
    type Err = BadQuota;

    fn from_str(text: &str) -> Result<Self, BadQuota> {
        let found = Self::ALL.into_iter().find(|quota| quota.as_str() == text);
        found.ok_or_else(|| BadQuota::Unknown(text.chars().take(64).collect()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQuota {
    #[error("`{text}` is no `{quota}`: {why}")]
    Unreadable {
        quota: Quota,
        text: String,
        why: &'static str,
    },
    #[error("`{quota}` of {text} is out of bounds: {least} to {most}")]
    OutOfBounds {
        quota: Quota,
        text: String,
        least: String,
        most: String,
    },
    #[error("tenants have no limit `{0}`")]
    Unknown(String),
}

/// Digits only: no sign, no space, no point.
fn whole(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

fn thousandths(text: &str) -> Option<u64> {
    let (cores, places) = text.split_once('.').unwrap_or((text, "0"));
    if places.is_empty() || places.len() > 3 {
        return None;
    }
    let part = whole(places)? * 10_u64.pow(3 - u32::try_from(places.len()).ok()?);
    whole(cores)?.checked_mul(1_000)?.checked_add(part)
}

/// What a tenant is limited to. What is not said is not limited but by what the node has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Limits(BTreeMap<Quota, u64>);

impl Limits {
    #[must_use]
    pub fn get(&self, quota: Quota) -> Option<u64> {
        self.0.get(&quota).copied()
    }

    /// `None` takes the limit away.
    pub fn set(&mut self, quota: Quota, value: Option<u64>) {
        match value {
            Some(value) => self.0.insert(quota, value),
            None => self.0.remove(&quota),
        };
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Quota, u64)> {
        self.0.iter().map(|(quota, value)| (*quota, *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_go_both_ways() {
        for (quota, text, value) in [
            (Quota::Memory, "256MiB", 256 << 20),
            (Quota::Storage, "1GiB", 1 << 30),
            (Quota::Cpu, "0.5", 500),
            (Quota::Cpu, "2", 2_000),
            (Quota::Cpu, "0.125", 125),
            (Quota::Weight, "3", 3),
            (Quota::Rate, "1000/s", 1_000),
            (Quota::LogRate, "1/s", 1),
            (Quota::Concurrency, "40", 40),
        ] {
            assert_eq!(quota.parse(text), Ok(value), "{text}");
            assert_eq!(quota.show(value), text);
        }
        for quota in Quota::ALL {
            assert_eq!(quota.as_str().parse(), Ok(quota));
            let stored = serde_json::to_string(&quota).unwrap();
            assert_eq!(
                stored,
                format!("\"{quota}\""),
                "the record has the name that people know"
            );
        }
    }

    #[test]
    fn what_is_no_amount_is_refused_and_says_which_and_how() {
        let bad = [
            (
                Quota::Memory,
                &["", "256", "MiB", "-1MiB", "1.5MiB", "1 parsec", "0MiB", "4KiB"][..],
            ),
            (
                Quota::Storage,
                &["0B", "99999999999999999999GiB", "18446744073709551615TiB", "2048TiB"],
            ),
            (
                Quota::Cpu,
                &[
                    "",
                    ".",
                    ".5",
                    "1.",
                    "0",
                    "0.0001",
                    "0.0",
                    "-1",
                    "1e3",
                    "½",
                    "99999999999999999999",
                    "0.5 ",
                ],
            ),
            (Quota::Weight, &["0", "1001", "+3", "3x", "3.0", " 3"]),
            (
                Quota::Rate,
                &["1000", "0/s", "/s", "1/m", "-1/s", "1 /s", "1/s/s", "1000000001/s"],
            ),
            (Quota::Concurrency, &["0", "none", "1000001", "18446744073709551616"]),
            (Quota::InFlight, &["1B"]),
        ];
        for (quota, texts) in bad {
            for text in texts {
                let why = quota.parse(text).unwrap_err().to_string();
                assert!(
                    why.contains(&format!("`{quota}`")) && !why.contains('\n'),
                    "{text}: {why}"
                );
            }
        }
        assert!(Quota::Rate.check(0).is_err() && "cpus".parse::<Quota>().is_err());
        let huge = "9".repeat(10_000);
        assert!(Quota::Rate.parse(&huge).unwrap_err().to_string().len() < 200);
    }
}
