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
        self.run_with(&[]);
    }

    /// One that was replaced never leads again, not for a moment.
    #[allow(dead_code, reason = "not by all who use this file")]
    pub fn run_as_replica_of(&mut self, port: u16) {
        self.run_with(&["--replicaof", "127.0.0.1", &port.to_string()]);
    }

    fn run_with(&mut self, more: &[&str]) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.args)
            .args(more)
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
        let command: Vec<&[u8]> = command.iter().map(|word| word.as_bytes()).collect();
        String::from_utf8_lossy(&self.ask(&command)).into_owned()
    }

    fn ask(&self, command: &[&[u8]]) -> Vec<u8> {
        use std::io::{Read as _, Write as _};
        let Ok(mut conn) = std::net::TcpStream::connect(("127.0.0.1", self.port)) else {
            return Vec::new();
        };
        let _ = conn.set_read_timeout(Some(Duration::from_secs(2)));
        let mut out = format!("*{}\r\n", command.len()).into_bytes();
        for word in command {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
        let mut buf = vec![0; 1 << 16];
        if conn.write_all(&out).is_err() {
            return Vec::new();
        }
        let n = conn.read(&mut buf).unwrap_or(0);
        buf.get(1..n).unwrap_or_default().to_vec()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

const SLOTS: u16 = 16_384;

/// The servers of a Redis Cluster, of which the first ones lead.
#[allow(dead_code, reason = "not by all who use this file")]
pub struct Servers {
    pub servers: Vec<Server>,
    leaders: usize,
}

#[allow(dead_code, reason = "not by all who use this file")]
impl Servers {
    /// So many that lead, each with so many replicas.
    pub fn start(leaders: usize, replicas: usize, args: &[&str]) -> Self {
        let servers: Vec<Server> = (0..leaders * (1 + replicas))
            .map(|_| {
                let bus = free_port().to_string();
                let mut args = args.to_vec();
                args.extend(["--cluster-enabled", "yes", "--cluster-port", &bus]);
                args.extend([
                    "--cluster-node-timeout",
                    "1000",
                    "--cluster-replica-validity-factor",
                    "0",
                ]);
                args.extend(["--repl-diskless-sync-delay", "0"]);
                Server::start(&args)
            })
            .collect();
        let cluster = Self { servers, leaders };
        let share = SLOTS / u16::try_from(leaders).expect("few");
        for (i, server) in cluster.servers.iter().enumerate() {
            server.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
            if i < leaders {
                let first = u16::try_from(i).expect("few") * share;
                let last = if i + 1 == leaders { SLOTS - 1 } else { first + share - 1 };
                server.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            }
            let bus = server
                .args
                .iter()
                .skip_while(|a| *a != "--cluster-port")
                .nth(1)
                .expect("given");
            let port = server.port.to_string();
            cluster.servers[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]);
        }
        cluster.until("the cluster stands", |cluster| {
            cluster.servers.iter().all(|s| {
                let info = s.cli(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok")
                    && info.contains(&format!("cluster_known_nodes:{}", cluster.servers.len()))
            })
        });
        for (i, replica) in cluster.servers.iter().enumerate().skip(leaders) {
            replica.cli(&["CLUSTER", "REPLICATE", &cluster.id(i % leaders)]);
        }
        cluster.until("the replicas are in step", |cluster| {
            let follow = |s: &Server| s.cli(&["INFO", "replication"]).contains("master_link_status:up");
            cluster.servers[leaders..].iter().all(follow)
        });
        cluster
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            assert!(Instant::now() < until, "it never came about: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.servers.iter().map(|s| format!("127.0.0.1:{}", s.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    fn id(&self, which: usize) -> String {
        let said = self.servers[which].cli(&["CLUSTER", "MYID"]);
        said.lines().nth(1).unwrap_or_default().to_owned()
    }

    /// All that lead forget everything.
    pub fn flush(&self) {
        for server in &self.servers[..self.leaders] {
            server.cli(&["FLUSHALL"]);
        }
    }

    /// kill -9 of all, and up again; a server that starts in a cluster takes writes after a while.
    pub fn restart(&mut self) {
        for server in &mut self.servers {
            server.kill();
        }
        for server in &mut self.servers {
            server.run();
        }
        self.until("the cluster stands again", |cluster| {
            let stands = |s: &Server| s.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
            cluster.servers.iter().all(stands)
        });
    }

    /// Of the one life of a Swarm that there is.
    pub fn slot_of_swarm(&self, name: &str) -> u16 {
        let lives = |server: &Server| server.cli(&["SMEMBERS", "sk:lives"]);
        let all: String = self.servers.iter().map(lives).collect();
        let tag = all
            .lines()
            .find(|life| life.contains(&format!("/{name}/")))
            .expect("it lives");
        self.slot_of(&format!("sk:{{{}}}:m", tag.trim()))
    }

    pub fn slot_of(&self, key: &str) -> u16 {
        let said = self.servers[0].cli(&["CLUSTER", "KEYSLOT", key]);
        said.trim().parse().expect("a slot")
    }

    pub fn leader_of(&self, slot: u16) -> usize {
        self.leads(slot).expect("somebody serves it")
    }

    /// Who serves a slot, by its own word.
    pub fn leads(&self, slot: u16) -> Option<usize> {
        let own = |server: &Server| {
            let nodes = server.cli(&["CLUSTER", "NODES"]);
            let line = nodes
                .lines()
                .find(|l| l.contains("myself"))
                .unwrap_or_default()
                .to_owned();
            line.contains("master")
                && line.split(' ').skip(8).any(|range| {
                    let mut ends = range.split('-').map(|n| n.parse::<u16>().ok());
                    let first = ends.next().flatten();
                    let last = ends.next().map_or(first, |last| last);
                    first.is_some_and(|f| f <= slot) && last.is_some_and(|l| slot <= l)
                })
        };
        self.servers.iter().position(own)
    }

    /// Begins to move a slot, with one key.
    pub fn migrate_one(&self, slot: u16, to: usize, key: &str) {
        let from = &self.servers[self.leader_of(slot)];
        self.open_slot(slot, from, to);
        let port = self.servers[to].port.to_string();
        let said = from.cli(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
        assert!(said.starts_with("OK"), "{said}");
    }

    fn open_slot(&self, slot: u16, from: &Server, to: usize) {
        let slot = slot.to_string();
        let from_id = from.cli(&["CLUSTER", "MYID"]);
        let from_id = from_id.lines().nth(1).unwrap_or_default();
        self.servers[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", from_id]);
        from.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)]);
    }

    /// Moves a slot as `redis-cli --cluster reshard` does, key by key, with a pause between two keys. Returns how many went over.
    pub fn migrate(&self, slot: u16, to: usize, pause: Duration) -> usize {
        let from = &self.servers[self.leader_of(slot)];
        self.open_slot(slot, from, to);
        let (slot, to_id) = (slot.to_string(), self.id(to));
        let to = &self.servers[to];
        let mut moved = 0;
        loop {
            let answer = from.ask(&[b"CLUSTER", b"GETKEYSINSLOT", slot.as_bytes(), b"1"]);
            // `*1`, `$length`, the key, which may hold anything.
            let mut lines = answer.splitn(3, |b| *b == b'\n');
            let Some(key) = lines.nth(2).and_then(|key| key.strip_suffix(b"\r\n")) else {
                break;
            };
            let port = to.port.to_string();
            let said = from.ask(&[b"MIGRATE", b"127.0.0.1", port.as_bytes(), key, b"0", b"5000"]);
            assert!(
                said.starts_with(b"OK") || said.starts_with(b"NOKEY"),
                "{}",
                String::from_utf8_lossy(&said)
            );
            moved += 1;
            std::thread::sleep(pause);
        }
        for server in [to, from] {
            server.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        }
        moved
    }
}
