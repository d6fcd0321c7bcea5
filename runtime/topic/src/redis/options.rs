//! How to reach a Redis, and what an acknowledgement waits for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use skep_model::env::Clock;

use super::places::Places;
use crate::Error;

/// What must hold before anything leaves that depends on a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    /// The server's answer. Enough with `appendfsync always`: Redis flushes before it answers.
    #[default]
    None,
    /// So many replicas have it in memory. Must cover every replica that may be promoted.
    Wait { replicas: u32, timeout_ms: u64 },
    /// So many append-only files have it on disk: this server's (0 or 1) and its replicas'. Redis 7.2 or newer.
    WaitAof { local: u32, replicas: u32, timeout_ms: u64 },
}

/// The clock that leases, due times and expiries go by.
#[derive(Clone, Default)]
pub enum StoreClock {
    /// The server's, so that node clocks do not matter.
    #[default]
    Server,
    /// The server's and some milliseconds, for tests.
    Ahead(Arc<AtomicU64>),
    /// Another one, for tests that compare two stores.
    Manual(Arc<dyn Clock>),
}

impl StoreClock {
    /// As the scripts take it.
    pub(super) fn argument(&self) -> String {
        match self {
            Self::Server => "0".to_owned(),
            Self::Ahead(ms) => ms.load(Ordering::SeqCst).to_string(),
            Self::Manual(clock) => format!("={}", clock.now_ms()),
        }
    }
}

/// How to reach the store.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://[user:password@]host:port/[db]`, or `rediss://` for TLS. Several addresses with commas between them: whichever leads.
    /// `redis+cluster://` and one or more of a cluster's servers.
    pub url: String,
    /// This node: the first half of the request ids that its Gateway makes, so that replies find their way home.
    pub node: [u8; 8],
    pub gate: Gate,
    /// How long a command may take. Well above a large commit behind a background save; after it the outcome is unknown.
    pub response_timeout: Duration,
    pub connect_timeout: Duration,
    #[doc(hidden)]
    pub clock: StoreClock,
}

impl RedisOptions {
    #[must_use]
    pub fn new(url: impl Into<String>, node: [u8; 8]) -> Self {
        Self {
            url: url.into(),
            node,
            gate: Gate::None,
            response_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            clock: StoreClock::Server,
        }
    }

    /// The addresses that the URL names.
    pub(super) fn places(&self) -> Result<Places, Error> {
        Places::of(&self.url, userinfo(&self.url).map(|(_, info)| info))
    }

    /// The address without its password, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.url)
    }

    /// Takes the password out of what a library says.
    pub(super) fn scrub(&self, text: &str) -> String {
        let text = text.replace(&self.url, &self.shown());
        match secret(&self.url) {
            Some(secret) => text.replace(secret, "***"),
            None => text,
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("url", &self.shown())
            .field("gate", &self.gate)
            .finish_non_exhaustive()
    }
}

/// What stands before the last `@` of the authority: user and password.
fn userinfo(url: &str) -> Option<(usize, &str)> {
    let start = url.find("://")? + 3;
    let authority = url[start..].split(['/', '?', '#']).next().unwrap_or("");
    // A password may hold a `/` that nobody escaped: then everything before the last `@` is secret.
    let end = match authority.rfind('@') {
        Some(at) => at,
        None => url[start..].rfind('@')?,
    };
    Some((start, &url[start..start + end]))
}

fn secret(url: &str) -> Option<&str> {
    let (_, info) = userinfo(url)?;
    let password = info.split_once(':').map_or(info, |(_, password)| password);
    (!password.is_empty()).then_some(password)
}

fn shown(url: &str) -> String {
    let Some((start, info)) = userinfo(url) else {
        return url.to_owned();
    };
    let user = info.split_once(':').map_or("", |(user, _)| user);
    let colon = if info.contains(':') { ":" } else { "" };
    format!("{}{user}{colon}***{}", &url[..start], &url[start + info.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_never_show() {
        for (url, expected) in [
            ("redis://127.0.0.1:6379/2", "redis://127.0.0.1:6379/2"),
            ("redis://:hush@host/0", "redis://:***@host/0"),
            ("rediss://bee:hush@host:1", "rediss://bee:***@host:1"),
            ("redis://bee:hu@sh@host", "redis://bee:***@host"),
            ("redis://bee:hu/sh@host/1", "redis://bee:***@host/1"),
            ("redis://hush@host", "redis://***@host"),
            ("redis+cluster://:hush@h:1,i:2", "redis+cluster://:***@h:1,i:2"),
        ] {
            let options = RedisOptions::new(url, [0; 8]);
            assert_eq!(options.shown(), expected);
            assert!(!format!("{options:?}").contains("hush"), "{options:?}");
            let said = options.scrub(&format!("cannot reach {url}"));
            assert_eq!(said, format!("cannot reach {expected}"));
            if let Some(secret) = secret(url) {
                assert_eq!(options.scrub(&format!("`{secret}` is wrong")), "`***` is wrong");
            }
        }
    }
}
