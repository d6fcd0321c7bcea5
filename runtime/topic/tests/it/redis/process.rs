//! A Redis server of a test's own, started and killed by pid. The whole-system tests use this very file.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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

    #[allow(dead_code, reason = "not by all who use this file")]
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
