//! What a server is like, in words: for `open`, which refuses what cannot work, and for people who ask.

use std::time::{Duration, Instant};

use redis::Value;
use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use skep_model::env::{Clock as _, SystemClock};

use super::link::Link;
use super::names;
use super::options::{Gate, RedisOptions};
use super::reach::{self, reach};
use super::reply::{list, some_text, text};
use super::slots;
use super::store::FORMAT;
use crate::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Fine,
    /// It works, with less than one may expect.
    Warn,
    /// skep does not start on it.
    Refuse,
}

/// One thing found, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub what: String,
    /// Empty where nothing need be done.
    pub remedy: String,
}

/// What an acknowledged submit survives under the settings found, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Survives {
    /// `appendfsync always`, or a gate on the append-only file.
    OneServer,
    /// A gate that covers the replicas.
    LossOfOneServer,
    /// About two seconds are at risk in a power cut.
    ShortSuffixAtRisk,
    /// What replicas lag behind is at risk.
    BestEffort,
    /// All since the last snapshot is at risk.
    Nothing,
}

impl std::fmt::Display for Survives {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OneServer => "durable on one server: survives kill -9 and power cuts, is lost only with the disk",
            Self::LossOfOneServer => {
                "survives the loss of one server, if the replica that is promoted had acknowledged"
            }
            Self::ShortSuffixAtRisk => "survives kill -9 of Redis; a power cut takes about the last two seconds",
            Self::BestEffort => "best effort: a failover loses what the replicas lag behind",
            Self::Nothing => "nothing: a restart of Redis loses everything since its last snapshot",
        })
    }
}

/// Settings as far as the server tells them.
#[derive(Debug, Default)]
struct Settings {
    version: (u64, u64),
    policy: String,
    maxmemory: u64,
    aof: bool,
    fsync: Option<String>,
    replica: bool,
    replicas: u64,
    cluster: bool,
    write_failed: bool,
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

async fn settings(options: &RedisOptions, conn: &mut MultiplexedConnection) -> Result<Settings, Error> {
    let unreached = |e: redis::RedisError| Error::Unavailable(reach(options, &e));
    let info = conn
        .req_packed_command(&redis::cmd("INFO"))
        .await
        .and_then(Value::extract_error);
    let info = info.map_err(unreached)?;
    let info = text(info)?;
    let number = |name: &str| field(&info, name).and_then(|v| v.parse().ok()).unwrap_or(0);
    let version = field(&info, "redis_version").unwrap_or("0.0");
    let mut version = version.split('.').map(|n| n.parse().unwrap_or(0));
    let version = (version.next().unwrap_or(0), version.next().unwrap_or(0));
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg("appendfsync");
    // Hosted stores often refuse CONFIG.
    let fsync = match conn.req_packed_command(&get).await {
        Ok(Value::Array(mut pair)) if pair.len() == 2 => pair.pop().and_then(|v| text(v).ok()),
        Ok(Value::Map(mut pairs)) => pairs.pop().and_then(|(_, v)| text(v).ok()),
        _ => None,
    };
    Ok(Settings {
        version,
        policy: field(&info, "maxmemory_policy").unwrap_or("noeviction").to_owned(),
        maxmemory: number("maxmemory"),
        aof: number("aof_enabled") == 1,
        fsync,
        replica: field(&info, "role") == Some("slave"),
        replicas: number("connected_slaves"),
        cluster: number("cluster_enabled") == 1,
        write_failed: field(&info, "aof_last_write_status").is_some_and(|s| s != "ok"),
    })
}

/// What is looked at for people: how fast, whose clock, whose keys.
async fn look(options: &RedisOptions, conn: &mut MultiplexedConnection, s: &Settings) -> Result<Vec<Finding>, Error> {
    /// Median of so many.
    const PINGS: usize = 9;
    let mut ask = async |command: &redis::Cmd| {
        let answer = conn.req_packed_command(command).await;
        let answer = answer.and_then(Value::extract_error);
        answer.map_err(|e| Error::Unavailable(reach(options, &e)))
    };
    let mut took = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        ask(&redis::cmd("PING")).await?;
        took.push(began.elapsed());
    }
    took.sort();
    let mut out = vec![speed(took[PINGS / 2])];

    let before = SystemClock.now_ms();
    let answer = ask(&redis::cmd("TIME")).await?;
    let after = SystemClock.now_ms();
    let parts: Vec<u64> = list(answer)?
        .into_iter()
        .filter_map(|v| text(v).ok()?.parse().ok())
        .collect();
    if let [seconds, micros] = parts[..] {
        let theirs = seconds.saturating_mul(1_000).saturating_add(micros / 1_000);
        out.push(skew(before, after, theirs));
    }
    // In a cluster the store's name lies with one of them; who opens it looks there.
    if !s.cluster {
        let mut get = redis::cmd("HMGET");
        get.arg(names::STORE).arg("id").arg("format");
        let mut found = list(ask(&get).await?)?.into_iter().map(some_text);
        let (id, format) = (found.next().flatten(), found.next().flatten());
        let keys = match ask(&redis::cmd("DBSIZE")).await? {
            Value::Int(n) => u64::try_from(n).unwrap_or(0),
            _ => 0,
        };
        out.push(store(id.as_deref(), format.and_then(|f| f.parse().ok()), keys));
    }
    if s.aof && s.fsync.is_none() {
        out.push(finding(
            Severity::Warn,
            "it does not tell appendfsync (CONFIG is refused): everysec is assumed".to_owned(),
            "ask who runs it, or allow CONFIG GET",
        ));
    }
    if s.write_failed {
        out.push(finding(
            Severity::Refuse,
            "its last write to the append-only file failed".to_owned(),
            "look at its disk and its log",
        ));
    }
    Ok(out)
}

fn speed(median: Duration) -> Finding {
    let what = format!("answers in {:.2} ms", median.as_secs_f64() * 1e3);
    if median < Duration::from_millis(10) {
        return finding(Severity::Fine, what, "");
    }
    finding(
        Severity::Warn,
        format!("{what}: each step of a message waits for that"),
        "keep nodes and Redis in one place",
    )
}

/// The server's clock against this machine's, read before and after.
fn skew(before: u64, after: u64, theirs: u64) -> Finding {
    const FINE_MS: u64 = 500;
    let (ahead, by) = if theirs < before {
        ("ahead of", before - theirs)
    } else {
        ("behind", theirs.saturating_sub(after))
    };
    if by <= FINE_MS {
        return finding(Severity::Fine, "its clock is this machine's".to_owned(), "");
    }
    finding(
        Severity::Warn,
        format!("this machine's clock is {:.1} s {ahead} its clock", by as f64 / 1e3),
        "set the clocks of nodes and Redis by NTP: leases and deadlines go by the server's, logs by the nodes'",
    )
}

fn store(id: Option<&str>, format: Option<u64>, keys: u64) -> Finding {
    match (id, format) {
        (Some(_), Some(format)) if format > FORMAT => finding(
            Severity::Refuse,
            format!("its store has format {format}, this skep reads {FORMAT}"),
            "upgrade skep",
        ),
        (Some(id), _) => finding(Severity::Fine, format!("holds the skep store {id}, {keys} keys"), ""),
        (None, _) if keys == 0 => finding(Severity::Fine, "empty: the first node makes it a store".to_owned(), ""),
        (None, _) => finding(
            Severity::Refuse,
            format!(
                "holds {keys} keys and no skep store: it serves another program, or lost the key `{}`",
                names::STORE
            ),
            "give skep a server or a database of its own (redis://host:port/1)",
        ),
    }
}

fn finding(severity: Severity, what: String, remedy: &str) -> Finding {
    Finding {
        severity,
        what,
        remedy: remedy.to_owned(),
    }
}

fn judge(s: &Settings, gate: Gate) -> (Vec<Finding>, Survives) {
    let mut out = Vec::new();
    let mut say = |severity, what: String, remedy: &str| {
        out.push(Finding {
            severity,
            what,
            remedy: remedy.to_owned(),
        });
    };
    let (major, minor) = s.version;
    if major < 7 {
        say(
            Severity::Refuse,
            format!("version {major}.{minor} is too old"),
            "use Redis 7.0 or newer, or a store that speaks like it",
        );
    } else {
        say(Severity::Fine, format!("version {major}.{minor}"), "");
    }
    if s.replica {
        say(
            Severity::Refuse,
            "this server is a replica".to_owned(),
            "give the address of the server that leads",
        );
    }
    if s.policy != "noeviction" {
        say(
            Severity::Refuse,
            format!(
                "maxmemory-policy is {}: Redis would throw messages away when its memory is full",
                s.policy
            ),
            "CONFIG SET maxmemory-policy noeviction (and in redis.conf)",
        );
    }
    if s.maxmemory == 0 {
        say(
            Severity::Warn,
            "maxmemory is not set: a full machine kills Redis instead of refusing work".to_owned(),
            "set maxmemory to what the machine can spare",
        );
    }
    let always = s.aof && s.fsync.as_deref() == Some("always");
    if !s.aof {
        say(
            Severity::Warn,
            "there is no append-only file: a restart of Redis loses everything since its last snapshot".to_owned(),
            "CONFIG SET appendonly yes (and in redis.conf)",
        );
    } else if s.fsync.as_deref() == Some("no") {
        say(
            Severity::Warn,
            "appendfsync is no: the operating system flushes when it likes".to_owned(),
            "CONFIG SET appendfsync everysec, or always",
        );
    }
    let survives = match gate {
        Gate::WaitAof { .. } if s.version < (7, 2) => {
            say(
                Severity::Refuse,
                "the gate is WAITAOF, which came with Redis 7.2".to_owned(),
                "use appendfsync always without a gate, or a newer server",
            );
            Survives::Nothing
        }
        Gate::Wait { replicas, .. } | Gate::WaitAof { replicas, .. } if u64::from(replicas) > s.replicas => {
            say(
                Severity::Refuse,
                format!(
                    "the gate waits for {replicas} replicas and {} are connected",
                    s.replicas
                ),
                "connect the replicas, or lower the gate",
            );
            Survives::Nothing
        }
        Gate::Wait { replicas, .. } | Gate::WaitAof { replicas, .. } if replicas > 0 => {
            if u64::from(replicas) < s.replicas {
                say(
                    Severity::Warn,
                    format!(
                        "the gate waits for {replicas} of {} replicas: another may be promoted",
                        s.replicas
                    ),
                    "wait for all that may be promoted",
                );
            }
            Survives::LossOfOneServer
        }
        Gate::WaitAof { local, .. } if local > 0 && s.aof => Survives::OneServer,
        _ if s.replicas > 0 && !always => Survives::BestEffort,
        _ if always => Survives::OneServer,
        _ if s.aof => Survives::ShortSuffixAtRisk,
        _ => Survives::Nothing,
    };
    if s.replicas > 0 && gate == Gate::None {
        say(
            Severity::Warn,
            format!(
                "{} replicas and no gate: a failover loses what they lag behind",
                s.replicas
            ),
            "configure the gate to wait for all replicas that may be promoted",
        );
    }
    (out, survives)
}

/// One server, and what it is like.
type Looked = (String, MultiplexedConnection, Settings);

/// Those that serve, with their settings; and what is to be said of all of them together.
async fn servers(options: &RedisOptions) -> Result<(Vec<Looked>, Vec<Finding>), Error> {
    let places = options.places()?;
    let mut addresses = places.addresses.clone();
    let mut said = Vec::new();
    let connect = async |address: &str| {
        let mut conn = reach::connect(options, &places.url(address), options.response_timeout).await?;
        let settings = settings(options, &mut conn).await?;
        Ok((address.to_owned(), conn, settings))
    };
    if places.cluster {
        let mut why = Error::Unavailable(String::new());
        let mut found = None;
        for address in &addresses {
            match connect(address).await {
                Ok(looked) => {
                    found = Some(looked);
                    break;
                }
                Err(e) => why = e,
            }
        }
        let Some((address, mut conn, settings)) = found else {
            return Err(why);
        };
        if !settings.cluster {
            said.push(finding(
                Severity::Refuse,
                "it is no cluster".to_owned(),
                "write redis:// (or rediss://) without +cluster",
            ));
            return Ok((vec![(address, conn, settings)], said));
        }
        let (told, leaders) = cluster(options, &mut conn, &address).await?;
        said.extend(told);
        addresses = leaders;
    }
    let mut out: Vec<Looked> = Vec::new();
    for address in &addresses {
        match connect(address).await {
            Ok(looked) => out.push(looked),
            // The others of several addresses may serve.
            Err(e) if places.cluster || addresses.len() == 1 => return Err(e),
            Err(e) => said.push(finding(
                Severity::Warn,
                format!("{address} is not reached: {e}"),
                "start it, or take it out of the addresses",
            )),
        }
    }
    if !places.cluster && addresses.len() > 1 {
        let (leads, follow): (Vec<Looked>, Vec<Looked>) = out.into_iter().partition(|(_, _, s)| !s.replica);
        if leads.len() != 1 {
            said.push(finding(
                Severity::Refuse,
                format!("{} of {} addresses lead", leads.len(), addresses.len()),
                "make all but one replicas (REPLICAOF), or start the one that leads",
            ));
        }
        out = if leads.is_empty() { follow } else { leads };
    }
    if out.is_empty() {
        return Err(Error::Unavailable(said.pop().map_or_else(String::new, |f| f.what)));
    }
    for (address, _, settings) in &out {
        if settings.cluster && !places.cluster {
            said.push(finding(
                Severity::Refuse,
                format!("{address} is a server of a cluster"),
                "write redis+cluster:// (or rediss+cluster://)",
            ));
        }
    }
    Ok((out, said))
}

/// What a cluster says of itself, and who leads in it.
async fn cluster(
    options: &RedisOptions,
    conn: &mut MultiplexedConnection,
    address: &str,
) -> Result<(Vec<Finding>, Vec<String>), Error> {
    let mut ask = async |what: &str| {
        let answer = conn.req_packed_command(redis::cmd("CLUSTER").arg(what)).await;
        let answer = answer.and_then(Value::extract_error);
        answer.map_err(|e| Error::Unavailable(reach(options, &e)))
    };
    let info = text(ask("INFO").await?)?;
    let ranges = slots::ranges(ask("SLOTS").await?, address)?;
    let mut leaders: Vec<String> = ranges.iter().map(|range| range.leader.clone()).collect();
    leaders.sort();
    leaders.dedup();
    let served: usize = ranges.iter().map(|range| range.last - range.first + 1).sum();
    let state = field(&info, "cluster_state").unwrap_or("unknown");
    let told = format!(
        "a cluster, state {state}: {} servers lead, {served} of {} slots are served",
        leaders.len(),
        slots::SLOTS
    );
    let whole = state == "ok" && served == slots::SLOTS;
    let said = if whole {
        finding(Severity::Fine, told, "")
    } else {
        finding(
            Severity::Refuse,
            told,
            "look at CLUSTER NODES; start what is down, give all slots to somebody",
        )
    };
    Ok((vec![said], leaders))
}

/// Looks at a server, or those of a cluster.
///
/// # Errors
/// [`Error::Unavailable`]: it is not reached, with the remedy.
pub async fn probe(options: &RedisOptions) -> Result<(Vec<Finding>, Survives), Error> {
    let (servers, mut findings) = servers(options).await?;
    let many = servers.len() > 1;
    let mut least: Option<Survives> = None;
    for (address, mut conn, settings) in servers {
        let (mut found, survives) = judge(&settings, options.gate);
        found.extend(look(options, &mut conn, &settings).await?);
        if many {
            // Of several the one that keeps its data, and what is wrong.
            found.retain(|f| f.severity != Severity::Fine || f.what.starts_with("answers in"));
            found.iter_mut().for_each(|f| f.what = format!("{address}: {}", f.what));
        }
        findings.extend(found);
        least = Some(least.map_or(survives, |least| least.max(survives)));
    }
    Ok((findings, least.unwrap_or(Survives::Nothing)))
}

/// Refuses a server on which skep must not start.
pub(super) async fn fit(link: &Link) -> Result<(), Error> {
    let (servers, mut findings) = servers(&link.options).await?;
    for (_, _, settings) in &servers {
        findings.extend(judge(settings, link.options.gate).0);
    }
    let refused = findings.into_iter().find(|f| f.severity == Severity::Refuse);
    match refused {
        None => Ok(()),
        Some(f) => Err(Error::Unavailable(format!(
            "Redis at {} is not fit: {}; {}",
            link.options.shown(),
            f.what,
            f.remedy
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Settings {
        Settings {
            version: (7, 2),
            policy: "noeviction".to_owned(),
            maxmemory: 1,
            aof: true,
            fsync: Some("always".to_owned()),
            ..Settings::default()
        }
    }

    fn worst(s: &Settings, gate: Gate) -> (Severity, Survives) {
        let (findings, survives) = judge(s, gate);
        (
            findings.iter().map(|f| f.severity).max().unwrap_or(Severity::Fine),
            survives,
        )
    }

    #[test]
    fn clocks_keys_and_speed_are_told() {
        for (theirs, says) in [
            (10_000, "this machine's"),
            (10_100, "this machine's"),
            (9_600, "this machine's"),
            (70_100, "60.0 s behind"),
            (4_000, "6.0 s ahead of"),
        ] {
            let found = skew(10_000, 10_100, theirs);
            assert!(found.what.contains(says), "{theirs}: {found:?}");
            assert_eq!(found.remedy.is_empty(), found.severity == Severity::Fine);
        }
        assert_eq!(store(Some("x"), Some(FORMAT), 7).severity, Severity::Fine);
        assert_eq!(store(None, None, 0).severity, Severity::Fine);
        assert_eq!(store(None, None, 1).severity, Severity::Refuse);
        assert_eq!(store(Some("x"), Some(FORMAT + 1), 7).severity, Severity::Refuse);
        assert_eq!(speed(Duration::from_millis(1)).severity, Severity::Fine);
        assert_eq!(speed(Duration::from_millis(30)).severity, Severity::Warn);
    }

    #[test]
    fn settings_are_told_for_what_they_keep() {
        let wait = Gate::Wait {
            replicas: 1,
            timeout_ms: 1,
        };
        let aof = Gate::WaitAof {
            local: 1,
            replicas: 0,
            timeout_ms: 1,
        };
        let old = |f: fn(&mut Settings)| {
            let mut s = good();
            f(&mut s);
            s
        };
        let rows = [
            (good(), Gate::None, Severity::Fine, Survives::OneServer),
            (good(), aof, Severity::Fine, Survives::OneServer),
            (
                old(|s| s.version = (6, 2)),
                Gate::None,
                Severity::Refuse,
                Survives::OneServer,
            ),
            (old(|s| s.version = (7, 0)), aof, Severity::Refuse, Survives::Nothing),
            (
                old(|s| s.policy = "allkeys-lru".to_owned()),
                Gate::None,
                Severity::Refuse,
                Survives::OneServer,
            ),
            (
                old(|s| s.fsync = Some("everysec".to_owned())),
                Gate::None,
                Severity::Fine,
                Survives::ShortSuffixAtRisk,
            ),
            (old(|s| s.aof = false), Gate::None, Severity::Warn, Survives::Nothing),
            (good(), wait, Severity::Refuse, Survives::Nothing),
            (old(|s| s.replicas = 1), wait, Severity::Fine, Survives::LossOfOneServer),
            (old(|s| s.replicas = 2), wait, Severity::Warn, Survives::LossOfOneServer),
            (
                old(|s| {
                    s.replicas = 1;
                    s.fsync = Some("everysec".to_owned());
                }),
                Gate::None,
                Severity::Warn,
                Survives::BestEffort,
            ),
        ];
        for (i, (s, gate, severity, survives)) in rows.into_iter().enumerate() {
            assert_eq!(worst(&s, gate), (severity, survives), "row {i}");
        }
    }
}
