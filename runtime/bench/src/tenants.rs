//! Tenants beside each other: what the worst of one costs another, guest time by weights, and what tokens, TLS and limits cost a call. For
//! `skep-bench tenants`, and in the report.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::load;
use crate::node::Server;
use crate::report::{PAYLOAD_BYTES, ROUNDS, Row, SPAN, count, middle, us};

const WINDOW: usize = 64;
/// Of the tenant that does its worst.
const WITHIN: &[&str] = &[
    "--cpu",
    "0.5",
    "--memory",
    "256MiB",
    "--instances",
    "8",
    "--rate",
    "2000/s",
    "--concurrency",
    "64",
    "--log-rate",
    "100/s",
];
/// Limits that are far away: what it costs to have them.
const FAR: &[&str] = &[
    "--rate",
    "10000000/s",
    "--concurrency",
    "100000",
    "--in-flight",
    "1GiB",
    "--cpu",
    "64",
    "--log-rate",
    "1000/s",
];

const SWARMS: &str = "
name: echo
bees:
  - { name: echo, module: test-bees, input: { gateway: echo } }
---
name: rascal
bees:
  - { name: rascal, module: test-bees, input: { gateway: rascal }, retry: { attempts: 1 }, timeout: 500ms, memory: 32MiB, partitions: 4, batch: { messages: 1 } }
---
name: spin
bees:
  - { name: spin, module: test-bees, bee: rascal, input: { gateway: spin }, retry: { attempts: 1 }, timeout: 50ms, memory: 32MiB, partitions: 4, batch: { messages: 1 } }
";

/// A node and whoever calls it.
struct Site {
    server: Server,
    skep: PathBuf,
    ca: Option<PathBuf>,
    operator: String,
}

impl Site {
    fn start(binaries: &Path, dir: &Path, tls: bool) -> anyhow::Result<Self> {
        let skep = binaries.join("skep");
        std::fs::create_dir_all(dir)?;
        let (mut env, mut ca) = (Vec::new(), None);
        let certs = dir.join("certs");
        let at = |name: &str| certs.join(name).display().to_string();
        let (cert, key) = (at("node.pem"), at("node.key"));
        if tls {
            let made = Command::new(&skep)
                .args(["certs", "dev"])
                .arg(&certs)
                .args(["--host", "127.0.0.1"])
                .output()?;
            if !made.status.success() {
                bail!("certs dev: {}", String::from_utf8_lossy(&made.stderr));
            }
            env = vec![("SKEP_TLS_CERT", cert.as_str()), ("SKEP_TLS_KEY", key.as_str())];
            ca = Some(certs.join("ca.pem"));
        }
        let server = Server::skep_with(&skep, &dir.join("data"), &env)?;
        let mut site = Self {
            server,
            skep,
            ca,
            operator: String::new(),
        };
        site.operator = site.cli("", &["token", "bootstrap"])?;
        Ok(site)
    }

    fn cli(&self, token: &str, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.skep);
        command
            .args(args)
            .env("SKEP_NODE", &self.server.url)
            .env("SKEP_TOKEN", token);
        if token.is_empty() {
            command.env_remove("SKEP_TOKEN");
        }
        if let Some(ca) = &self.ca {
            command.env("SKEP_CA", ca);
        }
        let out = command.output()?;
        if !out.status.success() {
            bail!("skep {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(String::from_utf8(out.stdout)?.trim().to_owned())
    }

    /// A tenant with its Swarms; its token.
    fn tenant(&self, name: &str, limits: &[&str], bees: &Path) -> anyhow::Result<String> {
        self.cli(&self.operator, &[&["tenant", "create", name], limits].concat())?;
        let token = self.cli(
            &self.operator,
            &["token", "create", "--tenant", name, "--role", "deploy"],
        )?;
        let wasm = bees.display().to_string();
        self.cli(&token, &["push", &wasm, "--name", "test-bees"])?;
        let dir = tempfile::tempdir()?;
        for (n, manifest) in SWARMS.split("---").enumerate() {
            let file = dir.path().join(format!("{n}.yaml"));
            std::fs::write(&file, manifest)?;
            self.cli(&token, &["apply", &file.display().to_string(), "--yes"])?;
        }
        Ok(token)
    }

    async fn gateway(&self) -> anyhow::Result<GatewayClient<Channel>> {
        let Some(ca) = &self.ca else {
            return load::connect(&self.server.url).await;
        };
        let root = Certificate::from_pem(std::fs::read(ca)?);
        let endpoint = Endpoint::from_shared(self.server.url.clone())?
            .tcp_nodelay(true)
            .tls_config(ClientTlsConfig::new().ca_certificate(root))?;
        Ok(GatewayClient::new(endpoint.connect().await?))
    }
}

fn with<T>(token: &str, message: T) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse()?);
    }
    Ok(request)
}

fn call(subject: &str, payload: &Bytes, id: u64) -> v1::RequestCall {
    v1::RequestCall {
        id,
        subject: subject.to_owned(),
        payload: payload.clone(),
        ..v1::RequestCall::default()
    }
}

/// The time of each call, one after the other. None may fail.
async fn one_by_one(site: &Site, token: &str, span: Duration) -> anyhow::Result<Vec<Duration>> {
    let mut gateway = site.gateway().await?;
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let (began, mut times) = (Instant::now(), Vec::new());
    while began.elapsed() < span {
        let at = Instant::now();
        gateway
            .request(with(token, call("echo", &payload, 0))?)
            .await
            .context("a request was lost")?;
        times.push(at.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn p99(times: &[Duration]) -> Duration {
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// Again and again, whatever is answered.
async fn attack(
    site: &Site,
    token: &str,
    subject: &str,
    payload: &'static str,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut gateway = site.gateway().await?;
    let payload = Bytes::from_static(payload.as_bytes());
    while !stop.load(Ordering::Relaxed) {
        let _ = gateway.request(with(token, call(subject, &payload, 0))?).await;
    }
    Ok(())
}

/// Calls a second, with a window of them under way.
async fn pipelined(site: &Site, token: &str, span: Duration) -> anyhow::Result<f64> {
    let mut gateway = site.gateway().await?;
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let (tx, rx) = mpsc::channel(WINDOW);
    let room = Arc::new(Semaphore::new(WINDOW));
    let (feed, began) = (Arc::clone(&room), Instant::now());
    let feeder = tokio::spawn(async move {
        let mut id = 0;
        while began.elapsed() < span {
            let Ok(permit) = feed.acquire().await else { return };
            permit.forget();
            id += 1;
            if tx.send(call("echo", &payload, id)).await.is_err() {
                return;
            }
        }
    });
    let mut replies = gateway
        .requests(with(token, ReceiverStream::new(rx))?)
        .await?
        .into_inner();
    let mut got = 0_u64;
    while let Some(reply) = replies.message().await? {
        if !matches!(reply.result, Some(v1::reply::Result::Response(_))) {
            bail!("not a response: {:?}", reply.result);
        }
        got += 1;
        room.add_permits(1);
    }
    feeder.await?;
    Ok(got as f64 / began.elapsed().as_secs_f64())
}

pub async fn measure(binaries: &Path, bees: &Path, dir: &Path) -> anyhow::Result<Vec<Row>> {
    let site = Arc::new(Site::start(binaries, &dir.join("tenants"), false)?);
    let mut rows = vec![worst(&site, bees).await?];
    drop(site);
    rows.push(weights(binaries, bees, dir).await?);
    rows.push(cost(binaries, bees, dir).await?);
    Ok(rows)
}

/// Where attackers call from: a thread that gives way to all others, for they would be on other machines. What the node does for them costs
/// it as ever.
fn elsewhere() -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().on_thread_start(|| {
        // Of this thread only: on Linux each has its own.
        let _ = rustix::process::setpriority_process(None, 19);
    });
    Ok(builder.build()?)
}

async fn worst(site: &Arc<Site>, bees: &Path) -> anyhow::Result<Row> {
    let good = site.tenant("good", &[], bees)?;
    let bad = site.tenant("bad", WITHIN, bees)?;
    let (mut alone, mut beside, mut calls) = (Vec::new(), Vec::new(), 0);
    let elsewhere = elsewhere()?;
    one_by_one(site, &good, SPAN).await?;
    for _ in 0..ROUNDS {
        alone.push(p99(&one_by_one(site, &good, 2 * SPAN).await?));
        let stop = Arc::new(AtomicBool::new(false));
        let attacks = [
            "loop", "loop", "loop", "loop", "memory", "stack", "stderr", "output", "panic",
        ];
        let subjects = attacks
            .map(|attack| ("rascal", attack))
            .into_iter()
            .chain([("echo", "flood"); 8]);
        let attackers: Vec<_> = subjects
            .map(|(subject, payload)| {
                let (site, bad, stop) = (Arc::clone(site), bad.clone(), Arc::clone(&stop));
                elsewhere.spawn(async move { attack(&site, &bad, subject, payload, &stop).await })
            })
            .collect();
        tokio::time::sleep(SPAN).await;
        let times = one_by_one(site, &good, 2 * SPAN).await?;
        calls += times.len();
        beside.push(p99(&times));
        stop.store(true, Ordering::Relaxed);
        for attacker in attackers {
            attacker.await??;
        }
        tokio::time::sleep(SPAN).await;
    }
    elsewhere.shutdown_background();
    let (alone, beside) = (load::median(&mut alone)?, load::median(&mut beside)?);
    let ratio = beside.as_secs_f64() / alone.as_secs_f64();
    Ok(Row {
        measure: "request p99 of a tenant while another does its worst within its limits",
        ours: us(beside),
        ceiling: format!("{} alone; {calls} requests, none lost", us(alone)),
        ratio: format!("{ratio:.2} ×"),
        goal: "≤ 1.5 ×",
        met: ratio <= 1.5,
    })
}

/// CPU time of a tenant's Bees, as a node wrote it down when it stopped.
fn cpu_us(site: &Site, tenant: &str) -> anyhow::Result<f64> {
    let used = site.cli(&site.operator, &["usage", "--tenant", tenant, "-o", "json"])?;
    let used: serde_json::Value = serde_json::from_str(&used)?;
    let all = used["used"].as_array().context("used")?;
    let own = all
        .iter()
        .find(|used| used["bee"].is_null())
        .context("the tenant's own line")?;
    own["cpu_us"].as_f64().context("cpu_us")
}

/// A node of its own a round, stopped to read what it wrote down. Calls end soon, as those under way at the stop are as many of each tenant and
/// run to their ends: with calls of 500 ms these alone would make 1 : 2.5 of 1 : 3, as reckoned.
async fn weighed(binaries: &Path, bees: &Path, dir: &Path) -> anyhow::Result<f64> {
    let site = Arc::new(Site::start(binaries, dir, false)?);
    let tenants = [("light", "1"), ("heavy", "3")];
    let mut tokens = Vec::new();
    for (name, weight) in tenants {
        tokens.push(site.tenant(name, &["--weight", weight], bees)?);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut attackers = Vec::new();
    for token in tokens.iter().flat_map(|token| std::iter::repeat_n(token, 8)) {
        let (site, token, stop) = (Arc::clone(&site), token.clone(), Arc::clone(&stop));
        attackers.push(tokio::spawn(async move {
            attack(&site, &token, "spin", "loop", &stop).await
        }));
    }
    tokio::time::sleep(4 * SPAN).await;
    // At once, so that neither has a time of its own at the end.
    attackers.iter().for_each(tokio::task::JoinHandle::abort);
    for attacker in attackers {
        let _ = attacker.await;
    }
    let site = Arc::into_inner(site).context("nobody else holds it")?;
    site.server.stop()?;
    let again = Site {
        server: Server::skep(&site.skep, &dir.join("data"))?,
        skep: site.skep,
        ca: None,
        operator: site.operator,
    };
    Ok(cpu_us(&again, "heavy")? / cpu_us(&again, "light")?)
}

async fn weights(binaries: &Path, bees: &Path, dir: &Path) -> anyhow::Result<Row> {
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        ratios.push(weighed(binaries, bees, &dir.join(format!("weights-{round}"))).await?);
    }
    let ratio = middle(&mut ratios);
    Ok(Row {
        measure: "guest CPU of two busy tenants with weights 1 : 3",
        ours: format!("1 : {ratio:.2}"),
        ceiling: "1 : 3".to_owned(),
        ratio: format!("{:.2} ×", ratio / 3.0),
        goal: "within 10 %",
        met: (ratio / 3.0 - 1.0).abs() <= 0.1,
    })
}

async fn cost(binaries: &Path, bees: &Path, dir: &Path) -> anyhow::Result<Row> {
    let bare = Server::skep(&binaries.join("skep"), &dir.join("bare"))?;
    let mut keeper = bare.keeper().await?;
    crate::node::push(&mut keeper, "test-bees", &std::fs::read(bees)?).await?;
    for manifest in SWARMS.split("---") {
        crate::node::apply(&mut keeper, manifest).await?;
    }
    let bare = Site {
        server: bare,
        skep: binaries.join("skep"),
        ca: None,
        operator: String::new(),
    };
    let guarded = Site::start(binaries, &dir.join("guarded"), true)?;
    let token = guarded.tenant("acme", FAR, bees)?;
    let (mut without, mut all) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(pipelined(&bare, "", SPAN).await?);
        all.push(pipelined(&guarded, &token, SPAN).await?);
    }
    let (without, all) = (middle(&mut without), middle(&mut all));
    let ratio = all / without;
    Ok(Row {
        measure: "requests/s, 64 in flight, with a token, TLS and limits",
        ours: count(all),
        ceiling: format!("{} with none of them", count(without)),
        ratio: format!("{ratio:.2} ×"),
        goal: "≥ 0.85 ×",
        met: ratio >= 0.85,
    })
}

/// A tenant in the node's process and one with a process of its own, by turns: prints, for `skep-bench isolation`.
pub async fn isolation(binaries: &Path, bees: &Path) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(binaries)?;
    let site = Site::start(binaries, dir.path(), false)?;
    let shared = site.tenant("shared", &[], bees)?;
    let before = site.server.rss_mb()?;
    let apart = site.tenant("apart", &["--isolation", "process"], bees)?;
    let tokens = [&shared, &apart];
    let (mut alone, mut many) = ([vec![], vec![]], [vec![], vec![]]);
    for _ in 0..ROUNDS {
        for (at, token) in tokens.iter().enumerate() {
            let times = one_by_one(&site, token, SPAN).await?;
            alone[at].push(times[times.len() / 2].as_secs_f64() * 1e6);
            many[at].push(pipelined(&site, token, SPAN).await?);
        }
    }
    let [near, far] = alone.map(|mut all| middle(&mut all));
    println!(
        "a request, p50: {near:.0} us in the node's process, {far:.0} us in the tenant's own: {:.2} ×",
        far / near
    );
    let [near, far] = many.map(|mut all| middle(&mut all));
    println!(
        "requests/s, {WINDOW} in flight: {} and {}: {:.2} ×",
        count(near),
        count(far),
        far / near
    );
    let pid = pid_of(&site)?;
    let [rss, pss] =
        [("status", "VmRSS:"), ("smaps_rollup", "Pss:")].map(|(file, name)| crate::node::proc_mb(&pid, file, name));
    println!(
        "its process: {:.0} MB resident, {:.0} MB of them its own (PSS); the node had {before:.0} MB",
        rss?, pss?
    );
    let mut firsts = Vec::new();
    for _ in 0..ROUNDS {
        Command::new("kill").args(["-9", &pid_of(&site)?]).status()?;
        // Its end is seen at once; the next call starts another.
        tokio::time::sleep(Duration::from_secs(2)).await;
        firsts.push(one_by_one(&site, &apart, Duration::from_millis(50)).await?[0].as_secs_f64() * 1e3);
    }
    println!(
        "the first call, which starts the process and loads the module: {:.1} ms",
        middle(&mut firsts)
    );
    Ok(())
}

fn pid_of(site: &Site) -> anyhow::Result<String> {
    let shown = site.cli(&site.operator, &["tenant", "show", "apart", "-o", "json"])?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let pid = shown["tenants"][0]["process_id"].as_u64().context("its process")?;
    Ok(pid.to_string())
}
