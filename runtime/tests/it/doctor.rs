//! `skep doctor` before servers that a node should not start on, and before good ones.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{SKEP, SOON};
use crate::s3::{S3, environment};

const ALWAYS: &[&str] = &["--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "1gb"];

struct Redis {
    port: u16,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Redis {
    fn start(args: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
            ])
            .arg(dir.path())
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is on the path: run `ci/tools redis`");
        let server = Self { port, child, _dir: dir };
        let until = Instant::now() + SOON;
        while !["+PONG", "-NOAU"].iter().any(|a| server.ask("PING").starts_with(a)) {
            assert!(Instant::now() < until, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn ask(&self, command: &str) -> String {
        let Ok(mut conn) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return String::new();
        };
        let _ = conn.set_read_timeout(Some(Duration::from_secs(2)));
        let mut answer = [0; 4096];
        match conn
            .write_all(format!("{command}\r\n").as_bytes())
            .and_then(|()| conn.read(&mut answer))
        {
            Ok(n) => String::from_utf8_lossy(&answer[..n]).into_owned(),
            Err(_) => String::new(),
        }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit code, the report, and all that was said.
fn doctor(args: &[&str], env: &[(&str, String)]) -> (i32, Value, String) {
    let told = Command::new(SKEP)
        .args(["doctor", "-o", "json"])
        .args(args)
        .envs(env.iter().map(|(n, v)| (n, v)))
        .output()
        .unwrap();
    let all = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
    assert!(!all.contains("hush"), "{all}");
    let report = serde_json::from_slice(&told.stdout).unwrap_or_else(|e| panic!("{e}: {all}"));
    (told.status.code().unwrap(), report, all)
}

fn survives(report: &Value) -> &str {
    report["survives"].as_str().unwrap_or_default()
}

fn has(report: &Value, severity: &str, words: &[&str]) -> bool {
    report["findings"].as_array().unwrap().iter().any(|f| {
        let text = format!("{} {}", f["what"], f["remedy"]);
        f["severity"] == severity && words.iter().all(|word| text.contains(word))
    })
}

#[test]
fn every_bad_redis_is_told_with_its_remedy() {
    let locked = Redis::start(&["--requirepass", "hush-hush"]);
    let evicting = Redis::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let plain = Redis::start(ALWAYS);
    let foreign = Redis::start(ALWAYS);
    foreign.ask("SET celery 1");
    let leader = Redis::start(ALWAYS);
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &leader.port.to_string()]);
    let wrong = format!("redis://:hush-not@127.0.0.1:{}", locked.port);
    let tls = format!("rediss://127.0.0.1:{}", plain.port);
    let nobody = "redis://127.0.0.1:1".to_owned();
    for (url, gate, words) in [
        (&locked.url(), "none", &["password", "redis://:PASSWORD@host"][..]),
        (&wrong, "none", &["wrong"]),
        (&tls, "none", &["TLS"]),
        (&nobody, "none", &["nobody listens"]),
        (&evicting.url(), "none", &["allkeys-lru", "noeviction"]),
        (&foreign.url(), "none", &["another program", "/1"]),
        (&replica.url(), "none", &["is a replica", "leads"]),
        (
            &plain.url(),
            "wait:1",
            &["waits for 1 replicas and 0", "connect the replicas"],
        ),
    ] {
        let env = [("SKEP_BACKEND", url.clone()), ("SKEP_GATE", gate.to_owned())];
        let (code, report, all) = doctor(&[], &env);
        assert_eq!(code, 1, "{all}");
        assert!(has(&report, "error", words), "{words:?}: {all}");
        assert_eq!(report["survives"], Value::Null, "{all}");
        assert_eq!(report["starts"], false, "{all}");
    }
    // Nothing was written to any of them.
    assert!(plain.ask("DBSIZE").starts_with(":0"), "{}", plain.ask("DBSIZE"));
}

#[test]
fn what_an_acknowledged_submit_survives_is_told() {
    for (args, code, words, expected) in [
        (ALWAYS, 0, &[][..], "durable on one server"),
        (
            &["--appendonly", "yes", "--appendfsync", "everysec"],
            0,
            &["maxmemory is not set"],
            "a power cut takes about the last two seconds",
        ),
        (
            &["--appendonly", "no"],
            0,
            &["no append-only file", "appendonly yes"],
            "nothing:",
        ),
    ] {
        let server = Redis::start(args);
        let (found, report, all) = doctor(&["--backend", &server.url()], &[]);
        assert_eq!(found, code, "{all}");
        assert!(survives(&report).contains(expected), "{all}");
        assert!(words.is_empty() || has(&report, "warning", words), "{all}");
        assert!(
            has(&report, "ok", &["answers in"]) && has(&report, "ok", &["its clock is this machine's"]),
            "{all}"
        );
    }
    let leader = Redis::start(ALWAYS);
    let _replica = Redis::start(&["--replicaof", "127.0.0.1", &leader.port.to_string()]);
    let until = Instant::now() + SOON;
    while !leader.ask("INFO replication").contains("connected_slaves:1") {
        assert!(Instant::now() < until, "the replica does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (code, report, all) = doctor(&["--backend", &leader.url(), "--gate", "wait:1"], &[]);
    assert_eq!(code, 0, "{all}");
    assert!(survives(&report).contains("survives the loss of one server"), "{all}");
    let (_, report, all) = doctor(&["--backend", &leader.url()], &[]);
    assert!(has(&report, "warning", &["1 replicas and no gate"]), "{all}");
}

#[test]
fn settings_store_and_folder_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let (code, report, all) = doctor(&["--data", data], &[]);
    assert_eq!(code, 0, "{all}");
    assert!(survives(&report).contains("durable on this disk"), "{all}");
    assert!(
        has(&report, "ok", &["will be made", "flush"]) && !Path::new(data).exists(),
        "{all}"
    );
    let (code, report, all) = doctor(&["--data", "/proc/skep"], &[]);
    assert_eq!(
        (code, has(&report, "error", &["cannot write", "--data"])),
        (1, true),
        "{all}"
    );

    let server = S3::start();
    let (code, report, all) = doctor(&["--artifacts", "s3://bees/prod"], &server.env());
    assert_eq!(code, 0, "{all}");
    assert!(
        has(&report, "ok", &["s3://bees/prod", "refuses a second create"]),
        "{all}"
    );
    let (code, report, all) = doctor(&["--artifacts", "s3://other"], &server.env());
    assert_eq!(
        (code, has(&report, "error", &["no such bucket", "make it"])),
        (1, true),
        "{all}"
    );
    let (code, report, all) = doctor(&["--artifacts", "s3://bees"], &environment("http://127.0.0.1:1"));
    assert_eq!((code, has(&report, "error", &["nobody listens"])), (1, true), "{all}");

    // A file, and a password where everybody sees it.
    let redis = Redis::start(&["--requirepass", "hush-hush", "--appendonly", "yes"]);
    let file = dir.path().join("skep.toml");
    let url = format!("redis://:hush-hush@127.0.0.1:{}", redis.port);
    std::fs::write(&file, format!("backend = \"{url}\"\nartifacts = \"{data}\"\n")).unwrap();
    let file = file.to_str().unwrap();
    let (code, report, all) = doctor(&["--config", file], &[]);
    assert_eq!(code, 0, "{all}");
    assert!(has(&report, "warning", &["others may read it", "chmod 600"]), "{all}");
    let (_, report, all) = doctor(&["--backend", &url], &[]);
    assert!(has(&report, "warning", &["`ps`", "SKEP_BACKEND"]), "{all}");
    // People read a table.
    let told = Command::new(SKEP).args(["doctor", "--config", file]).output().unwrap();
    let text = String::from_utf8_lossy(&told.stdout);
    assert!(
        text.contains("REMEDY") && text.contains("An acknowledged submit: survives kill -9"),
        "{text}"
    );
}
