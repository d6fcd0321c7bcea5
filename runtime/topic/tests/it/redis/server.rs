//! The backend on a Redis server of a test's own, as the suite wants it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use skep_model::env::{Clock, ManualClock, SeededEntropy};
use skep_model::limits::LEASE_TTL_MS;
use skep_topic::Backend;
use skep_topic::conformance::{Harness, Stop};
use skep_topic::guard::Guard;
use skep_topic::redis::{Redis, RedisOptions, StoreClock};

pub use super::process::{ALWAYS, Server, free_port};

pub async fn open(url: &str, node: u8, clock: &StoreClock) -> Arc<Redis> {
    let mut options = RedisOptions::new(url, [node; 8]);
    options.clock = clock.clone();
    open_as(options).await.expect("the store opens")
}

pub async fn open_as(options: RedisOptions) -> Result<Arc<Redis>, skep_topic::Error> {
    let seed = u64::from(options.node[0]) << 32 | u64::from(std::process::id());
    Redis::open(options, Arc::new(SeededEntropy::new(seed))).await
}

/// Tries until it holds.
pub async fn soon(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < until, "it never came about: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One backend on a server of its own.
pub struct OnRedis {
    pub server: Server,
    pub ahead: Arc<AtomicU64>,
    manual: Option<Arc<ManualClock>>,
    pub redis: Option<Arc<Redis>>,
    without: Option<Guard>,
    opened: u8,
}

impl OnRedis {
    pub async fn new(without: Option<Guard>) -> Self {
        let mut on = Self {
            server: Server::start(ALWAYS),
            ahead: Arc::default(),
            manual: None,
            redis: None,
            without,
            opened: 0,
        };
        on.open().await;
        on
    }

    /// One whose clock stands still unless it is moved.
    pub async fn at(now_ms: u64) -> Self {
        let mut on = Self {
            server: Server::start(ALWAYS),
            ahead: Arc::default(),
            manual: Some(Arc::new(ManualClock::at(now_ms))),
            redis: None,
            without: None,
            opened: 0,
        };
        on.open().await;
        on
    }

    pub fn clock(&self) -> StoreClock {
        if let Some(clock) = &self.manual {
            return StoreClock::Manual(Arc::clone(clock) as Arc<dyn Clock>);
        }
        StoreClock::Ahead(Arc::clone(&self.ahead))
    }

    async fn open(&mut self) {
        // Another life of the node: its random numbers are others.
        self.opened += 1;
        let redis = open(&self.server.url(), self.opened, &self.clock()).await;
        if let Some(guard) = self.without {
            redis.guards().remove(guard);
        }
        self.redis = Some(redis);
    }
}

#[async_trait]
impl Harness for OnRedis {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(self.redis.as_ref().expect("it is open")) as Arc<dyn Backend>
    }

    async fn advance(&self, ms: u64) {
        match &self.manual {
            Some(clock) => clock.advance(ms),
            None => {
                self.ahead.fetch_add(ms, Ordering::SeqCst);
            }
        }
    }

    async fn reopen(&mut self, stop: Stop) -> bool {
        let redis = self.redis.take().expect("it is open");
        if stop == Stop::Clean {
            redis.close().await.expect("it closes");
        } else {
            self.server.kill();
            self.server.run();
            // Leases outlive the node here; others wait until they have run out.
            self.advance(LEASE_TTL_MS).await;
        }
        drop(redis);
        self.open().await;
        true
    }
}
