//! Rows on a Redis server that the run starts itself: nodes that share it beside what the same server does raw, in the same rounds.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use skep_proto::v1;

use crate::load;
use crate::node::{self, Server};
use crate::report::{MESSAGES, PAYLOAD_BYTES, ROUNDS, Row, SENT_FRAME, SPAN, STORED_BYTES, count, middle, us};

/// Messages of a raw entry: what a frame of the submit, split over eight partitions, brings at a time.
const ENTRY: usize = (SENT_FRAME / 8) as usize;
const KEYS: u64 = 10_000;
/// Deaths and hand-overs: the worst of so many stands for the 99th percentile.
const DEATHS: usize = 20;
const IDLE_SWARMS: u64 = 200;

const SWARMS: &str = "
name: effects
bees:
  - { name: effect, module: test-bees, input: { gateway: effects }, key: message, state: true }
---
name: pass
bees:
  - { name: pass, module: test-bees, input: { gateway: pass }, inbox: { messages: 1000000, bytes: 512MiB } }
---
name: sink
bees:
  - { name: tally, module: test-bees, input: { gateway: sink }, key: message, state: true, inbox: { messages: 1000000, bytes: 512MiB } }
";

/// A server of the run's own, killed by pid at its end.
struct Redis {
    child: Child,
    url: String,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Redis {
    async fn start(dir: &Path, args: &[&str]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let port = free_port()?;
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
            ])
            .arg("--dir")
            .arg(dir)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("redis-server is not on the path: ci/tools redis")?;
        let redis = Self {
            child,
            url: format!("redis://127.0.0.1:{port}"),
        };
        let until = Instant::now() + Duration::from_secs(10);
        while redis.conn().await.is_err() {
            ensure!(Instant::now() < until, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(redis)
    }

    async fn conn(&self) -> anyhow::Result<MultiplexedConnection> {
        let client = ::redis::Client::open(self.url.as_str())?;
        // The library's own default, half a second, is shorter than a blocking read.
        let config = ::redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    async fn info(&self, section: &str, name: &str) -> anyhow::Result<f64> {
        Ok(self.told(section, name).await?.parse()?)
    }

    async fn told(&self, section: &str, name: &str) -> anyhow::Result<String> {
        let info: String = ::redis::cmd("INFO")
            .arg(section)
            .query_async(&mut self.conn().await?)
            .await?;
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let found = line.with_context(|| format!("INFO {section} tells {name}"))?;
        Ok(found.trim().to_owned())
    }

    async fn cpu(&self) -> anyhow::Result<f64> {
        Ok(self.info("cpu", "used_cpu_sys").await? + self.info("cpu", "used_cpu_user").await?)
    }
}

/// Where the run's binaries, modules and data are.
struct Place<'a> {
    skep: PathBuf,
    wasm: &'a [u8],
    dir: &'a Path,
}

impl Place<'_> {
    fn node(&self, redis: &Redis, name: &str, more: &[(&str, &str)]) -> anyhow::Result<Server> {
        // A platform has a module store of its own.
        let port = redis.url.rsplit(':').next().context("a port")?;
        let artifacts = self.dir.join(format!("artifacts-{port}")).display().to_string();
        let mut env = vec![
            ("SKEP_BACKEND", redis.url.as_str()),
            ("SKEP_ARTIFACTS", &artifacts),
            ("SKEP_NODE_NAME", name),
        ];
        env.extend(more);
        Server::skep_with(&self.skep, &self.dir.join(name), &env)
    }

    async fn prepare(&self, node: &Server) -> anyhow::Result<()> {
        let mut keeper = node.keeper().await?;
        node::push(&mut keeper, "test-bees", self.wasm).await?;
        for manifest in SWARMS.split("---") {
            node::apply(&mut keeper, manifest).await?;
        }
        Ok(())
    }
}

/// `parts`: of `request`, `stream`, `gate`, `owners`, `memory`, `idle`; none is all.
pub(crate) async fn measure(
    binaries: &Path,
    wasm: &[u8],
    dir: &Path,
    echo: &Server,
    parts: &[&str],
) -> anyhow::Result<Vec<Row>> {
    let dir = dir.join("redis");
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let place = Place {
        skep: binaries.join("skep"),
        wasm,
        dir: &dir,
    };
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let (mut rows, mut streamed) = (Vec::new(), Vec::new());
    for fsync in ["everysec", "always"] {
        let redis = Redis::start(&dir.join(fsync), &["--appendfsync", fsync]).await?;
        let node = place.node(&redis, fsync, &[])?;
        place.prepare(&node).await?;
        if wanted("request") {
            rows.push(request(&redis, &node, echo, &payload, fsync).await?);
        }
        if fsync == "everysec" && wanted("stream") {
            streamed = streams(&redis, &node, &payload).await?;
        }
    }
    if wanted("gate") {
        rows.push(gated(&place, echo, &payload).await?);
    }
    rows.extend(streamed);
    if wanted("owners") {
        rows.extend(owners_change(&place).await?);
    }
    if wanted("memory") {
        rows.push(memory(&place, &payload).await?);
        rows.push(state_memory(&place).await?);
    }
    if wanted("idle") {
        rows.push(idle(&place).await?);
    }
    Ok(rows)
}

// ------------------------------------------------------------------------------------------------------- requests

/// There and back over two streams, each read by one who waits for it.
async fn round_trips(redis: &Redis, payload: &Bytes, span: Duration) -> anyhow::Result<Vec<Duration>> {
    async fn read(conn: &mut MultiplexedConnection, stream: &str, after: &str) -> anyhow::Result<Option<String>> {
        let mut read = ::redis::cmd("XREAD");
        read.arg("COUNT")
            .arg(1)
            .arg("BLOCK")
            .arg(200)
            .arg("STREAMS")
            .arg(stream)
            .arg(after);
        // By stream, its entries: id and fields.
        type Found = Vec<(String, Vec<(String, Vec<Vec<u8>>)>)>;
        let found: Option<Found> = read.query_async(conn).await?;
        let entries = found.into_iter().flatten().flat_map(|(_, entries)| entries);
        Ok(entries.map(|(id, _)| id).next())
    }
    async fn add(conn: &mut MultiplexedConnection, stream: &str, payload: &Bytes) -> anyhow::Result<()> {
        let mut add = ::redis::cmd("XADD");
        add.arg(stream)
            .arg("MAXLEN")
            .arg("~")
            .arg(100)
            .arg("*")
            .arg("b")
            .arg(&payload[..]);
        let _: String = add.query_async(conn).await?;
        Ok(())
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (mut there, mut back) = (redis.conn().await?, redis.conn().await?);
    let worker = tokio::spawn({
        let (stop, payload) = (Arc::clone(&stop), payload.clone());
        async move {
            let mut at = "0".to_owned();
            while !stop.load(Ordering::Relaxed) {
                if let Some(id) = read(&mut there, "sk:raw:there", &at).await? {
                    at = id;
                    add(&mut back, "sk:raw:back", &payload).await?;
                }
            }
            anyhow::Ok(())
        }
    });
    let (mut writes, mut reads) = (redis.conn().await?, redis.conn().await?);
    let (mut times, mut at) = (Vec::new(), "0".to_owned());
    let began = Instant::now();
    while began.elapsed() < span {
        let sent = Instant::now();
        add(&mut writes, "sk:raw:there", payload).await?;
        at = loop {
            if let Some(id) = read(&mut reads, "sk:raw:back", &at).await? {
                break id;
            }
        };
        times.push(sent.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    worker.await??;
    let _: () = ::redis::cmd("UNLINK")
        .arg("sk:raw:there")
        .arg("sk:raw:back")
        .query_async(&mut writes)
        .await?;
    Ok(times)
}

async fn request(redis: &Redis, node: &Server, echo: &Server, payload: &Bytes, fsync: &str) -> anyhow::Result<Row> {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    load::one_by_one(&node.url, "effects", payload, 100, SPAN / 2).await?;
    for _ in 0..ROUNDS {
        let trip = load::median(&mut round_trips(redis, payload, SPAN).await?)?;
        let reply = load::median(&mut load::one_by_one(&echo.url, "echo", payload, 0, SPAN / 2).await?)?;
        raw.push(trip + reply);
        ours.push(load::median(
            &mut load::one_by_one(&node.url, "effects", payload, 100, SPAN).await?,
        )?);
    }
    let (ours, raw) = (load::median(&mut ours)?, load::median(&mut raw)?);
    let ratio = ours.as_secs_f64() / raw.as_secs_f64();
    let everysec = fsync == "everysec";
    Ok(Row {
        measure: match fsync {
            "everysec" => "stateful request p50, one caller, everysec, no gate",
            "always" => "… appendfsync always",
            _ => "… a replica, and the WAIT gate for it",
        },
        ours: us(ours),
        ceiling: format!("{} raw round trip over two streams + echo", us(raw)),
        ratio: format!("{ratio:.2} ×"),
        goal: if everysec { "≤ 2.0 ×" } else { "–" },
        met: !everysec || ratio <= 2.0,
    })
}

/// A replica of its own, which every reply waits for.
async fn gated(place: &Place<'_>, echo: &Server, payload: &Bytes) -> anyhow::Result<Row> {
    let leads = Redis::start(&place.dir.join("leads"), &["--appendfsync", "everysec"]).await?;
    let port = leads.url.rsplit(':').next().context("a port")?.to_owned();
    let follows = ["--appendfsync", "everysec", "--replicaof", "127.0.0.1", &port];
    let replica = Redis::start(&place.dir.join("follows"), &follows).await?;
    let until = Instant::now() + Duration::from_secs(20);
    while replica.told("replication", "master_link_status").await? != "up" {
        ensure!(Instant::now() < until, "the replica does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let node = place.node(&leads, "gated", &[("SKEP_GATE", "wait:1")])?;
    place.prepare(&node).await?;
    request(&leads, &node, echo, payload, "wait").await
}

// -------------------------------------------------------------------------------------------------------- streams

/// Reads an entry, deletes it, appends its like and moves a cursor, in one script; nobody takes the payloads apart.
const HOP: &str = "
    local entry = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', 1)[1]
    redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2])
    redis.call('XADD', KEYS[1], ARGV[2], 'b', ARGV[3])
    redis.call('HSET', KEYS[2], 'cursor', ARGV[2])
    return entry[2][2]";

/// Messages a second of four who hop at once.
async fn hops(redis: &Redis, span: Duration) -> anyhow::Result<f64> {
    let mut conn = redis.conn().await?;
    let sha: String = ::redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(HOP)
        .query_async(&mut conn)
        .await?;
    let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for owner in 0..4 {
        let (mut conn, sha) = (conn.clone(), sha.clone());
        let (stop, moved) = (Arc::clone(&stop), Arc::clone(&moved));
        tasks.push(tokio::spawn(async move {
            let (stream, hash) = (format!("sk:raw:{owner}"), format!("sk:raw:cursor:{owner}"));
            let mut body = vec![7u8; ENTRY * STORED_BYTES];
            let mut add = ::redis::cmd("XADD");
            add.arg(&stream).arg("1-0").arg("b").arg(&body);
            let _: String = add.query_async(&mut conn).await?;
            let mut at = 1u64;
            while !stop.load(Ordering::Relaxed) {
                let mut hop = ::redis::cmd("EVALSHA");
                hop.arg(&sha).arg(2).arg(&stream).arg(&hash);
                hop.arg(format!("{at}-0")).arg(format!("{}-0", at + 1)).arg(&body);
                body = hop.query_async(&mut conn).await?;
                at += 1;
                moved.fetch_add(ENTRY as u64, Ordering::Relaxed);
            }
            let _: () = ::redis::cmd("UNLINK")
                .arg(&stream)
                .arg(&hash)
                .query_async(&mut conn)
                .await?;
            anyhow::Ok(())
        }));
    }
    tokio::time::sleep(span).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    Ok(moved.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// CPU seconds of all who take part. They say more than the clock does when others use the machine too.
struct Spent {
    node: f64,
    redis: f64,
    load: f64,
}

impl Spent {
    async fn so_far(node: &Server, redis: &Redis) -> anyhow::Result<Self> {
        Ok(Self {
            node: node.cpu()?.as_secs_f64(),
            redis: redis.cpu().await?,
            load: node::cpu_of("self")?.as_secs_f64(),
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            node: self.node - before.node,
            redis: self.redis - before.redis,
            load: self.load - before.load,
        }
    }

    /// In words, over rounds of [`MESSAGES`].
    fn a_message(rounds: &[Self]) -> String {
        let each = |part: fn(&Self) -> f64| {
            let mut rounds: Vec<f64> = rounds.iter().map(part).collect();
            middle(&mut rounds) / MESSAGES as f64 * 1e6
        };
        let (node, redis, load) = (each(|s| s.node), each(|s| s.redis), each(|s| s.load));
        format!("CPU a message: node {node:.1} us, Redis {redis:.1}, client {load:.1}")
    }
}

async fn streams(redis: &Redis, node: &Server, payload: &Bytes) -> anyhow::Result<Vec<Row>> {
    let mut keeper = node.keeper().await?;
    let (mut passes, mut tallies, mut raws) = (Vec::new(), Vec::new(), Vec::new());
    let (mut passing, mut tallying) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let session = u8::try_from(round + 1)?;
        raws.push(hops(redis, SPAN).await?);
        for (subject, keys, rates, spent) in [
            ("pass", 0, &mut passes, &mut passing),
            ("sink", KEYS, &mut tallies, &mut tallying),
        ] {
            let before = Spent::so_far(node, redis).await?;
            let began = Instant::now();
            load::submit(&node.url, subject, payload, keys, MESSAGES, SENT_FRAME, session).await?;
            let ended = node::processed(&mut keeper, subject, MESSAGES * (round as u64 + 1)).await?;
            rates.push(MESSAGES as f64 / ended.duration_since(began).as_secs_f64());
            spent.push(Spent::so_far(node, redis).await?.since(&before));
        }
    }
    let (pass, tally, raw) = (middle(&mut passes), middle(&mut tallies), middle(&mut raws));
    Ok(vec![
        Row {
            measure: "streamed through one stateless stage, messages a second",
            ours: format!("{} ({})", count(pass), Spent::a_message(&passing)),
            ceiling: format!("{} raw packed hops, {ENTRY} a batch", count(raw)),
            ratio: format!("{:.2} ×", pass / raw),
            goal: "≥ 0.6 ×",
            met: pass / raw >= 0.6,
        },
        Row {
            measure: "keyed counting stage, 10,000 keys, messages a second",
            ours: format!("{} ({})", count(tally), Spent::a_message(&tallying)),
            ceiling: "–".to_owned(),
            ratio: "–".to_owned(),
            goal: "≥ 150 k",
            met: tally >= 150_000.0,
        },
    ])
}

// ----------------------------------------------------------------------------------------------------- ownership

/// Calls keys of every partition, and returns how long it took until each had been answered.
async fn until_served(url: &str, payload: &Bytes) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let gateway = load::connect(url).await?;
    let calls = (0..64).map(|n| {
        let (mut gateway, payload) = (gateway.clone(), payload.clone());
        async move {
            loop {
                let call = v1::RequestCall {
                    subject: "effects".to_owned(),
                    payload: payload.clone(),
                    key: Some(format!("k{n}")),
                    ..v1::RequestCall::default()
                };
                match gateway.request(call).await {
                    Ok(_) => return,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        }
    });
    futures::future::join_all(calls).await;
    Ok(began.elapsed())
}

async fn owners_change(place: &Place<'_>) -> anyhow::Result<Vec<Row>> {
    let payload = Bytes::from_static(b"x");
    let redis = Redis::start(&place.dir.join("owners"), &["--appendfsync", "everysec"]).await?;
    let stays = place.node(&redis, "stays", &[])?;
    place.prepare(&stays).await?;
    let (mut deaths, mut hand_overs) = (Vec::new(), Vec::new());
    for round in 0..DEATHS {
        let name = format!("goes-{round}");
        let goes = place.node(&redis, &name, &[])?;
        shared(&stays, 2).await?;
        until_served(&stays.url, &payload).await?;
        if round % 2 == 0 {
            // The node's own gateway goes as well; the calls come in at the other.
            drop(goes);
            deaths.push(until_served(&stays.url, &payload).await?);
            shared(&stays, 1).await?;
            continue;
        }
        // The longest of the calls that run while the partitions go over.
        let stop = Arc::new(AtomicBool::new(false));
        let calling = tokio::spawn({
            let (url, payload, stop) = (stays.url.clone(), payload.clone(), Arc::clone(&stop));
            async move {
                let mut longest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    longest = longest.max(until_served(&url, &payload).await?);
                }
                anyhow::Ok(longest)
            }
        });
        let drained = Command::new(&place.skep)
            .args(["drain", &name])
            .env("SKEP_NODE", &stays.url)
            .output()?;
        if !drained.status.success() {
            bail!("skep drain: {}", String::from_utf8_lossy(&drained.stderr));
        }
        stop.store(true, Ordering::Relaxed);
        hand_overs.push(calling.await??);
        drop(goes);
        shared(&stays, 1).await?;
    }
    let worst = |list: &[Duration]| list.iter().copied().max().unwrap_or_default();
    let (death, hand_over) = (worst(&deaths), worst(&hand_overs));
    let row = |measure, ours: String, goal, met| Row {
        measure,
        ours,
        ceiling: "–".to_owned(),
        ratio: "–".to_owned(),
        goal,
        met,
    };
    Ok(vec![
        row(
            "from kill -9 of a node until all its partitions are served again, worst of 10",
            format!("{} ms", death.as_millis()),
            "≤ 3 s",
            death <= Duration::from_secs(3),
        ),
        row(
            "longest 64 calls during a planned hand-over, worst of 10",
            format!("{} ms", hand_over.as_millis()),
            "≤ 100 ms",
            hand_over <= Duration::from_millis(100),
        ),
    ])
}

/// Until so many nodes are there and none is behind.
async fn shared(node: &Server, nodes: usize) -> anyhow::Result<()> {
    let mut keeper = node.keeper().await?;
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let all = keeper.list_nodes(v1::ListNodesRequest {}).await?.into_inner().nodes;
        if all.len() == nodes && all.iter().all(|n| !n.behind) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{} nodes instead of {nodes}", all.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// --------------------------------------------------------------------------------------------------- use of Redis

async fn memory(place: &Place<'_>, payload: &Bytes) -> anyhow::Result<Row> {
    let redis = Redis::start(&place.dir.join("memory"), &["--appendfsync", "everysec"]).await?;
    // Nobody works: what is submitted lies in its topic.
    let node = place.node(&redis, "doors", &[("SKEP_ROLES", "gateway,beekeeper")])?;
    place.prepare(&node).await?;
    let before = redis.info("memory", "used_memory").await?;
    load::submit(&node.url, "sink", payload, KEYS, MESSAGES, SENT_FRAME, 1).await?;
    let each = (redis.info("memory", "used_memory").await? - before) / MESSAGES as f64;
    let ratio = each / PAYLOAD_BYTES as f64;
    Ok(Row {
        measure: "memory of Redis, a keyed message of 200 bytes in a topic",
        ours: format!("{each:.0} bytes"),
        ceiling: format!("{PAYLOAD_BYTES} bytes of payload"),
        ratio: format!("{ratio:.2} ×"),
        goal: "≤ 1.5 ×",
        met: ratio <= 1.5,
    })
}

/// Keys that hold a count, without and with a TTL.
async fn state_memory(place: &Place<'_>) -> anyhow::Result<Row> {
    const KEYS: u64 = 200_000;
    let redis = Redis::start(&place.dir.join("state"), &["--appendfsync", "everysec"]).await?;
    let node = place.node(&redis, "keeper", &[])?;
    place.prepare(&node).await?;
    let mut keeper = node.keeper().await?;
    let inbox = "inbox: { messages: 1000000, bytes: 512MiB }";
    let manifest = format!(
        "name: aged\nbees:\n  - {{ name: tally, module: test-bees, input: {{ gateway: aged }}, key: message, state: {{ ttl: 30d }}, {inbox} }}\n"
    );
    node::apply(&mut keeper, &manifest).await?;
    let mut each = Vec::new();
    for swarm in ["sink", "aged"] {
        let before = redis.info("memory", "used_memory").await?;
        load::submit(&node.url, swarm, &Bytes::from_static(b"x"), KEYS, KEYS, SENT_FRAME, 1).await?;
        node::processed(&mut keeper, swarm, KEYS).await?;
        // What the answers and the log still hold is given back.
        tokio::time::sleep(Duration::from_secs(2)).await;
        each.push((redis.info("memory", "used_memory").await? - before) / KEYS as f64);
    }
    Ok(Row {
        measure: "memory of Redis, a key with one count in keyed state",
        ours: format!("{:.0} bytes, with a TTL {:.0}", each[0], each[1]),
        ceiling: "–".to_owned(),
        ratio: "–".to_owned(),
        goal: "–",
        met: true,
    })
}

/// The part of a core that an idle server uses, in percent.
async fn share(redis: &Redis) -> anyhow::Result<f64> {
    // What came before still settles.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let span = Duration::from_secs(20);
    let before = redis.cpu().await?;
    tokio::time::sleep(span).await;
    Ok((redis.cpu().await? - before) / span.as_secs_f64() * 100.0)
}

async fn idle(place: &Place<'_>) -> anyhow::Result<Row> {
    let redis = Redis::start(&place.dir.join("idle"), &["--appendfsync", "everysec"]).await?;
    let node = place.node(&redis, "idles", &[])?;
    place.prepare(&node).await?;
    // Beats and looks cost the same however many Swarms there are.
    let alone = share(&redis).await?;
    let mut keeper = node.keeper().await?;
    for n in 0..IDLE_SWARMS {
        let manifest = format!(
            "name: idle-{n}\nbees:\n  - {{ name: effect, module: test-bees, input: {{ gateway: idle-{n} }}, key: message, state: true }}\n"
        );
        node::apply(&mut keeper, &manifest).await?;
    }
    let many = share(&redis).await?;
    let scaled = alone + (many - alone) * 1_000.0 / IDLE_SWARMS as f64;
    Ok(Row {
        measure: "CPU of Redis for 1,000 idle Swarms",
        ours: format!("{scaled:.2} % of a core ({alone:.2} % for 3, {many:.2} % for {IDLE_SWARMS} more, scaled)"),
        ceiling: "–".to_owned(),
        ratio: "–".to_owned(),
        goal: "< 1 %",
        met: scaled < 1.0,
    })
}
