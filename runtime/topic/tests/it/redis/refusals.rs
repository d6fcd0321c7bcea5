//! Servers on which skep must not start or not go on, and what it says then.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep_topic::conformance::actors::{World, output};
use skep_topic::redis::{Gate, RedisOptions, Severity, StoreClock, Survives, probe};
use skep_topic::{Backend as _, Call, Error, Once, Publish};

use super::server::{ALWAYS, OnRedis, Server, free_port, open, open_as, soon};

async fn why(url: &str) -> String {
    let mut options = RedisOptions::new(url, [1; 8]);
    options.connect_timeout = Duration::from_secs(2);
    options.response_timeout = Duration::from_secs(2);
    open_as(options).await.map(|_| ()).expect_err("it opens").to_string()
}

macro_rules! says {
    ($text:expr, $($part:expr),+) => {{
        let text = $text;
        $(assert!(text.contains($part), "`{}` is not in: {text}", $part);)+
    }};
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_the_remedy() {
    let port = free_port();
    says!(
        why(&format!("redis://127.0.0.1:{port}")).await,
        "nobody listens",
        "is Redis running"
    );
    says!(why("http://127.0.0.1").await, "redis://");
    let server = Server::start(&["--requirepass", "hush-hush"]);
    says!(why(&server.url()).await, "password", "redis://:PASSWORD@host");
    let wrong = format!("redis://:not-it@127.0.0.1:{}", server.port);
    let text = why(&wrong).await;
    says!(&text, "wrong");
    assert!(!text.contains("not-it"), "{text}");
    let right = format!("redis://:hush-hush@127.0.0.1:{}", server.port);
    let options = RedisOptions::new(&right, [1; 8]);
    let store = open_as(options).await.unwrap();
    assert!(!format!("{store:?}").contains("hush"), "{store:?}");
    // TLS to a server that speaks none.
    let server = Server::start(ALWAYS);
    says!(why(&format!("rediss://127.0.0.1:{}", server.port)).await, "TLS");
    let server = Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    says!(why(&server.url()).await, "allkeys-lru", "maxmemory-policy noeviction");
    let leader = Server::start(ALWAYS);
    let port = leader.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]);
    says!(why(&replica.url()).await, "replica", "leads");
    let server = Server::start(ALWAYS);
    let mut options = RedisOptions::new(server.url(), [1; 8]);
    options.gate = Gate::Wait {
        replicas: 2,
        timeout_ms: 100,
    };
    says!(
        open_as(options.clone()).await.unwrap_err().to_string(),
        "2 replicas",
        "0 are connected"
    );
    options.gate = Gate::WaitAof {
        local: 1,
        replicas: 0,
        timeout_ms: 100,
    };
    if server.cli(&["INFO", "server"]).contains("redis_version:7.0") {
        says!(open_as(options).await.unwrap_err().to_string(), "WAITAOF", "7.2");
    }
}

#[tokio::test]
async fn another_program_s_redis_is_refused() {
    let server = Server::start(ALWAYS);
    server.cli(&["SET", "celery", "1"]);
    says!(why(&server.url()).await, "another program", "/1");
    let store = open(&format!("{}/1", server.url()), 1, &StoreClock::Server).await;
    assert_eq!(store.lives().await.unwrap(), []);
    drop(store);
    // Our own keys without the store's identity are no better.
    let server = Server::start(ALWAYS);
    let store = open(&server.url(), 1, &StoreClock::Server).await;
    store.catalog_put("a", 0, Bytes::new()).await.unwrap().unwrap();
    drop(store);
    server.cli(&["DEL", "sk:store"]);
    says!(why(&server.url()).await, "sk:store");
    let server = Server::start(ALWAYS);
    drop(open(&server.url(), 1, &StoreClock::Server).await);
    server.cli(&["HSET", "sk:store", "format", "2"]);
    says!(why(&server.url()).await, "format 2", "upgrade");
}

#[tokio::test]
async fn a_flushed_store_is_an_alarm_and_not_an_empty_start() {
    let on = OnRedis::new(None).await;
    let store = Arc::clone(on.redis.as_ref().unwrap());
    let server_port = on.server.port;
    let flush = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", server_port)).unwrap();
        use std::io::{Read as _, Write as _};
        stream.write_all(b"FLUSHALL\r\n").unwrap();
        let mut answer = [0; 16];
        let _ = stream.read(&mut answer).unwrap();
    };
    let world = World::new(Box::new(on));
    let spec = world.spec("a", 1);
    world.words(&spec, None, &["1"]).await.unwrap();
    flush();
    // At the very next use, without waiting for the look once a second.
    let publish = Publish {
        swarm: world.swarm.clone(),
        calls: vec![Call {
            to: vec![(Arc::clone(&spec), vec![world.message(None, "2")])],
            once: Once::No,
        }],
        gate: skep_topic::Gate::Durable,
    };
    let refused = store.publish(publish.clone()).await.unwrap_err().to_string();
    says!(&refused, "lost the store", "FLUSHALL", "Restore");
    for _ in 0..3 {
        let claim = store.claim(&spec, 0, skep_model::id::Token([1; 16]), 1_000).await;
        assert!(
            matches!(claim, Err(Error::Unavailable(_) | Error::Corrupt(_))),
            "{claim:?}"
        );
        let put = store.catalog_put("a", 0, Bytes::new()).await;
        assert!(put.is_err(), "{put:?}");
    }
}

#[tokio::test]
async fn a_store_that_was_half_made_is_made_whole() {
    let server = Server::start(ALWAYS);
    // Whoever began died before the name was safe.
    server.cli(&["HSET", "sk:store", "id", "half"]);
    open_as(RedisOptions::new(server.url(), [1; 8])).await.unwrap();
    assert_eq!(server.cli(&["HGET", "sk:store", "id"]), "4\r\nhalf\r\n");
    assert_eq!(server.cli(&["HGET", "sk:store", "format"]), "1\r\n1\r\n");
}

#[tokio::test]
async fn a_lost_stream_is_damage_and_not_an_empty_inbox() {
    let on = OnRedis::new(None).await;
    let port = on.server.port;
    let world = World::new(Box::new(on));
    let spec = world.spec("a", 1);
    world.words(&spec, None, &["1", "2"]).await.unwrap();
    world.words(&spec, None, &["3"]).await.unwrap();
    let owner = world.own(&spec, 0).await.unwrap();
    let inbox = format!("sk:{{{}}}:in:a:0", world.swarm);
    let other = redis_cli(port, &["XDEL", &inbox, "1-0"]);
    assert!(other.contains('1'), "{other}");
    says!(owner.fetch(9).await.unwrap_err(), "missing", "restore");
    redis_cli(port, &["DEL", &inbox]);
    says!(owner.fetch(9).await.unwrap_err(), "missing", "restore");
}

fn redis_cli(port: u16, command: &[&str]) -> String {
    use std::io::{Read as _, Write as _};
    let mut conn = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut out = format!("*{}\r\n", command.len());
    for word in command {
        out.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    conn.write_all(out.as_bytes()).unwrap();
    let mut buf = [0; 4096];
    let n = conn.read(&mut buf).unwrap();
    String::from_utf8_lossy(&buf[..n]).into_owned()
}

#[tokio::test]
async fn a_full_server_drains_and_takes_nothing_new() {
    let on = OnRedis::new(None).await;
    let port = on.server.port;
    let store = Arc::clone(on.redis.as_ref().unwrap());
    let world = World::new(Box::new(on));
    let (spec, sink) = (world.spec("a", 1), world.spec("b", 1));
    for _ in 0..20 {
        world.words(&spec, None, &["x".repeat(20_000).as_str()]).await.unwrap();
    }
    let mut owner = world.own(&spec, 0).await.unwrap();
    let call = || Publish {
        swarm: world.swarm.clone(),
        calls: vec![Call {
            to: vec![(Arc::clone(&spec), vec![world.message(None, "more")])],
            once: Once::No,
        }],
        gate: skep_topic::Gate::Durable,
    };
    redis_cli(port, &["CONFIG", "SET", "maxmemory", "1mb"]);
    // Refused by the server at once, by the node itself after its next look.
    for _ in 0..2 {
        let refused = store.publish(call()).await;
        let Err(Error::Unavailable(why)) = refused else {
            panic!("{refused:?}")
        };
        says!(why, "maxmemory");
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    while !owner.payloads().await.unwrap().is_empty() {
        let fetched = owner.fetch(4).await.unwrap();
        let mut commit = world.consuming(&owner, &fetched, fetched.messages.len());
        commit.outputs.push(output(&sink, world.message(None, "out")));
        owner.must(commit).await.unwrap();
        owner.backend.renew(&owner.lease, 5_000).await.unwrap();
    }
    redis_cli(port, &["CONFIG", "SET", "maxmemory", "0"]);
    soon("new work is taken again", async || store.publish(call()).await.is_ok()).await;
}

#[tokio::test]
async fn the_probe_tells_what_an_acknowledgement_survives() {
    for (args, expected) in [
        (ALWAYS, Survives::OneServer),
        (
            &["--appendonly", "yes", "--appendfsync", "everysec"],
            Survives::ShortSuffixAtRisk,
        ),
        (&["--appendonly", "no"], Survives::Nothing),
    ] {
        let server = Server::start(args);
        let (findings, survives) = probe(&RedisOptions::new(server.url(), [1; 8])).await.unwrap();
        assert_eq!(survives, expected, "{findings:?}");
        assert!(findings.iter().all(|f| f.severity < Severity::Refuse), "{findings:?}");
    }
}
