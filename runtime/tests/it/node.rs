//! A node under test: starts the real binary, talks to it, kills it by pid.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use skep_proto::v1::beekeeper_client::BeekeeperClient;
use skep_proto::v1::gateway_client::GatewayClient;
use skep_proto::v1::{self, push_module_request::Part};
use tonic::transport::Channel;

pub const SKEP: &str = env!("CARGO_BIN_EXE_skep");

/// How long anything that should happen soon may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

pub struct Node {
    child: Child,
    pub url: String,
    pub admin: String,
    stderr: Arc<Mutex<String>>,
}

pub struct Start {
    /// This build, unless another is to run.
    pub program: PathBuf,
    pub data: PathBuf,
    /// 0: a free one.
    pub port: u16,
    pub env: Vec<(&'static str, String)>,
    pub args: Vec<&'static str>,
}

impl Start {
    pub fn new(data: &Path) -> Self {
        Self {
            program: SKEP.into(),
            data: data.to_owned(),
            port: 0,
            env: Vec::new(),
            args: Vec::new(),
        }
    }

    pub fn arg(mut self, arg: &'static str) -> Self {
        self.args.push(arg);
        self
    }

    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// The node, or what it said when it ended instead.
    pub fn try_start(self) -> Result<Node, String> {
        let mut child = Command::new(self.program)
            .args(["serve", "--data"])
            .arg(self.data)
            .args([
                "--listen",
                &format!("127.0.0.1:{}", self.port),
                "--admin",
                "127.0.0.1:0",
            ])
            .args(self.args)
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start skep");
        let stderr = Arc::new(Mutex::new(String::new()));
        let mut err = child.stderr.take().expect("piped");
        let keep = Arc::clone(&stderr);
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = err.read(&mut chunk) {
                let mut kept = keep.lock().expect("reader");
                kept.push_str(&String::from_utf8_lossy(&chunk[..n]));
                // Bounded: the beginning says why a start failed.
                kept.truncate(1 << 20);
            }
        });
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let (mut url, mut admin) = (None, None);
        loop {
            let mut line = String::new();
            if out.read_line(&mut line).expect("read stdout") == 0 {
                let status = child.wait().expect("wait");
                let _ = reader.join();
                return Err(format!("{status}: {}", stderr.lock().expect("stderr")));
            }
            if let Some(at) = line.find("serves ") {
                url = Some(line[at + 7..].trim().to_owned());
            } else if let Some(rest) = line.strip_prefix("metrics ") {
                admin = Some(rest.trim().trim_end_matches("/metrics").to_owned());
            } else if line.starts_with("data ") {
                break;
            }
        }
        // Keep the pipe open and empty.
        std::thread::spawn(move || {
            let mut rest = String::new();
            let _ = out.read_to_string(&mut rest);
        });
        Ok(Node {
            child,
            url: url.expect("a `serves` line"),
            admin: admin.expect("a `metrics` line"),
            stderr,
        })
    }

    pub fn start(self) -> Node {
        self.try_start()
            .unwrap_or_else(|e| panic!("the node did not start: {e}"))
    }
}

impl Node {
    pub fn port(&self) -> u16 {
        self.url
            .rsplit(':')
            .next()
            .and_then(|p| p.parse().ok())
            .expect("a port")
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("stderr").clone()
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Waits until it ends by itself, e.g. at a failpoint.
    pub fn wait_for_end(&mut self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        while Instant::now() < until {
            if self.child.try_wait().expect("wait").is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// SIGTERM, and the exit status that follows.
    pub fn stop(mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
        let until = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < until, "the node did not stop: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub async fn channel(&self) -> Channel {
        connect(&self.url).await
    }

    pub async fn keeper(&self) -> BeekeeperClient<Channel> {
        BeekeeperClient::new(self.channel().await)
    }

    pub async fn gateway(&self) -> GatewayClient<Channel> {
        GatewayClient::new(self.channel().await)
    }

    /// This binary's CLI, at the node.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(SKEP);
        command.args(args).env("SKEP_NODE", &self.url).stdin(Stdio::null());
        command
    }

    /// Runs it.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("run skep")
    }

    /// Like [`Node::cli`], and it must succeed. Returns stdout.
    pub fn cli_ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        assert!(
            output.status.success(),
            "skep {args:?}: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}", self.url, self.stderr());
        }
        // By pid, and only our own child; it may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn connect(url: &str) -> Channel {
    let until = Instant::now() + SOON;
    loop {
        match Channel::from_shared(url.to_owned()).expect("a URL").connect().await {
            Ok(channel) => return channel,
            Err(e) => assert!(Instant::now() < until, "connect {url}: {e}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn push(
    keeper: &mut BeekeeperClient<Channel>,
    name: &str,
    tag: &str,
    wasm: &[u8],
) -> Result<v1::PushModuleReply, tonic::Status> {
    let parts = upload(name, tag, wasm, wasm.len() as u64, "");
    keeper
        .push_module(tokio_stream::iter(parts))
        .await
        .map(tonic::Response::into_inner)
}

/// The parts of an upload, with what its header announces.
pub fn upload(name: &str, tag: &str, wasm: &[u8], size: u64, digest: &str) -> Vec<v1::PushModuleRequest> {
    let header = v1::PushHeader {
        name: name.to_owned(),
        tag: tag.to_owned(),
        digest: digest.to_owned(),
        size,
        signature: String::new(),
    };
    let mut parts = vec![v1::PushModuleRequest {
        part: Some(Part::Header(header)),
    }];
    parts.extend(wasm.chunks(256 << 10).map(|chunk| v1::PushModuleRequest {
        part: Some(Part::Chunk(chunk.to_vec().into())),
    }));
    parts
}

pub async fn apply(
    keeper: &mut BeekeeperClient<Channel>,
    manifest: &str,
) -> Result<v1::ApplySwarmReply, tonic::Status> {
    let call = v1::ApplySwarmRequest {
        manifest: manifest.to_owned(),
        ..v1::ApplySwarmRequest::default()
    };
    keeper.apply_swarm(call).await.map(tonic::Response::into_inner)
}

pub async fn request(
    gateway: &mut GatewayClient<Channel>,
    subject: &str,
    payload: impl Into<Vec<u8>>,
) -> Result<v1::Reply, tonic::Status> {
    let call = v1::RequestCall {
        subject: subject.to_owned(),
        payload: payload.into().into(),
        ..v1::RequestCall::default()
    };
    gateway.request(call).await.map(tonic::Response::into_inner)
}

pub fn response(reply: &v1::Reply) -> String {
    match &reply.result {
        Some(v1::reply::Result::Response(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("not a response: {other:?}"),
    }
}

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("runtime/ has a parent")
        .to_owned()
}

/// `runtime/tests/bees`, built once per test run.
pub fn test_bees() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build(&root().join("runtime/tests/bees"), "test_bees"))
}

/// `runtime/tests/bees-http`, built once per test run.
pub fn test_bees_http() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build(&root().join("runtime/tests/bees-http"), "test_bees_http"))
}

/// A sample, built once per test run.
pub fn hello_world() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build(&root().join("samples/hello-world"), "hello_world"))
}

/// A sample, built once per test run.
pub fn streaming_tokens() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build(&root().join("samples/streaming-tokens"), "streaming_tokens"))
}

/// A sample, built once per test run.
pub fn fraud_scoring() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build(&root().join("samples/fraud-scoring"), "fraud_scoring"))
}

/// A sample, built once per test run.
pub fn mill() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build(&root().join("samples/mill"), "mill"))
}

/// A sample, built once per test run.
pub fn session_windows() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build(&root().join("samples/session-windows"), "session_windows"))
}

/// Both versions of a sample's module, built once per test run.
pub fn totals() -> &'static [Vec<u8>; 2] {
    static WASM: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    let version = |dir: &str, name: &str| build(&root().join("samples/redrive").join(dir), name);
    WASM.get_or_init(|| [version("v1", "totals_v1"), version("v2", "totals_v2")])
}

/// A sample, built once per test run.
pub fn ensemble() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build(&root().join("samples/ensemble"), "ensemble"))
}

/// A sample, built once per test run.
pub fn refine() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build(&root().join("samples/refine"), "refine"))
}

fn build(dir: &Path, name: &str) -> Vec<u8> {
    let target = root().join("target/bees");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--quiet",
            "--release",
            "--target",
            "wasm32-wasip2",
            "--target-dir",
        ])
        .arg(&target)
        .current_dir(dir)
        // Cargo tells its tests of the host's build; the guest's is another one.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("run cargo");
    assert!(
        status.success(),
        "building {} for wasm32-wasip2; `ci/tools` adds the target",
        dir.display()
    );
    std::fs::read(target.join("wasm32-wasip2/release").join(format!("{name}.wasm"))).expect("the built module")
}

/// Waits until a Swarm has nothing unread and nothing parked.
pub async fn drained(keeper: &mut BeekeeperClient<Channel>, swarm: &str) -> v1::DescribeSwarmReply {
    let until = Instant::now() + SOON;
    loop {
        let call = v1::DescribeSwarmRequest {
            name: swarm.to_owned(),
            count_keys: true,
        };
        let told = keeper.describe_swarm(call).await.expect("describe").into_inner();
        if told.stages.iter().all(|s| s.unread + s.parked == 0) {
            return told;
        }
        assert!(Instant::now() < until, "{swarm} does not drain: {:?}", told.stages);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn state(
    keeper: &mut BeekeeperClient<Channel>,
    swarm: &str,
    stage: &str,
    key: &str,
) -> std::collections::BTreeMap<String, String> {
    let call = v1::GetStateRequest {
        swarm: swarm.to_owned(),
        stage: stage.to_owned(),
        key: key.to_owned(),
        after: String::new(),
    };
    let reply = keeper.get_state(call).await.expect("state").into_inner();
    reply
        .values
        .into_iter()
        .map(|v| (v.name, String::from_utf8_lossy(&v.value).into_owned()))
        .collect()
}
