//! A Redis server of a test's own, and the backend on it as the suite wants it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
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
use tempfile::TempDir;

/// What a server is started with, beside port and folder.
pub const ALWAYS: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

pub struct Server {
    pub port: u16,
    pub dir: TempDir,
    args: Vec<String>,
    child: Option<Child>,
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        let mut server = Self {
            port: free_port(),
            dir: tempfile::tempdir().expect("a temporary folder"),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            child: None,
        };
        server.run();
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().expect("it runs").id()).expect("a process id")
    }

    /// Starts it on what it kept.
    pub fn run(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is on the path");
        self.child = Some(child);
        let until = Instant::now() + Duration::from_secs(10);
        // One that wants a password is up as well.
        while !matches!(self.cli(&["PING"]).get(..4), Some("PONG" | "NOAU")) {
            assert!(Instant::now() < until, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// One command by a client of its own; the answer's raw text without its first type byte.
    pub fn cli(&self, command: &[&str]) -> String {
        use std::io::{Read as _, Write as _};
        let Ok(mut conn) = std::net::TcpStream::connect(("127.0.0.1", self.port)) else {
            return String::new();
        };
        let _ = conn.set_read_timeout(Some(Duration::from_secs(2)));
        let mut out = format!("*{}\r\n", command.len());
        for word in command {
            out.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let mut buf = vec![0; 1 << 16];
        if conn.write_all(out.as_bytes()).is_err() {
            return String::new();
        }
        let n = conn.read(&mut buf).unwrap_or(0);
        String::from_utf8_lossy(buf.get(1..n).unwrap_or_default()).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

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
    let until = Instant::now() + Duration::from_secs(15);
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
