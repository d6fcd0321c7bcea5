//! What a server is like, in words: for `open`, which refuses what cannot work, and for people who ask.

use redis::aio::ConnectionLike as _;
use redis::{AsyncConnectionConfig, Value};

use super::link::{Link, client, reach};
use super::options::{Gate, RedisOptions};
use super::reply::text;
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

/// What an acknowledged submit survives under the settings found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

async fn settings(options: &RedisOptions) -> Result<Settings, Error> {
    let unreached = |e: redis::RedisError| Error::Unavailable(reach(options, &e));
    let client = client(options)?;
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(options.response_timeout))
        .set_connection_timeout(Some(options.connect_timeout));
    let conn = client.get_multiplexed_async_connection_with_config(&config).await;
    let mut conn = conn.map_err(unreached)?;
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
    })
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
    if s.cluster {
        say(
            Severity::Refuse,
            "cluster mode is on, which this skep does not speak yet".to_owned(),
            "use a server with cluster-enabled no, with replicas if you like",
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

/// Looks at a server.
///
/// # Errors
/// [`Error::Unavailable`]: it is not reached, with the remedy.
pub async fn probe(options: &RedisOptions) -> Result<(Vec<Finding>, Survives), Error> {
    Ok(judge(&settings(options).await?, options.gate))
}

/// Refuses a server on which skep must not start.
pub(super) async fn fit(link: &Link) -> Result<(), Error> {
    let (findings, _) = probe(&link.options).await?;
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
