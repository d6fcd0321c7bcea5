//! What lies on the server: nothing is left behind, and large state has its own place.

use std::sync::Arc;

use futures::StreamExt as _;
use skep_model::id::Incarnation;
use skep_model::name::TenantId;
use skep_model::scope::Scope;
use skep_topic::conformance::actors::{World, put};
use skep_topic::conformance::backups::{fill, pieces, stream};
use skep_topic::redis::Redis;
use skep_topic::{Backend as _, Commit, Error, StatePut, Work};

use super::server::OnRedis;

async fn keys(port: u16) -> Vec<String> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query_async(&mut conn).await.unwrap();
    // A request's id is no text.
    let mut keys: Vec<String> = keys.iter().map(|k| String::from_utf8_lossy(k).into_owned()).collect();
    keys.sort();
    keys
}

fn world(on: OnRedis) -> (World, Arc<Redis>, u16) {
    let (store, port) = (Arc::clone(on.redis.as_ref().unwrap()), on.server.port);
    (World::new(Box::new(on)), store, port)
}

fn large(commit: &mut Commit, key: &str, values: usize) {
    let value = "v".repeat(1_500);
    for i in 0..values {
        commit.state.push(put(key, &format!("n{i}"), &value));
    }
}

fn delete(key: &str, name: &str) -> StatePut {
    StatePut {
        key: key.to_owned(),
        name: name.to_owned(),
        value: None,
    }
}

#[tokio::test]
async fn large_state_moves_out_and_goes_when_it_is_deleted() {
    let (world, store, port) = world(OnRedis::new(None).await);
    let spec = world.spec("a", 1);
    let mut owner = world.own(&spec, 0).await.unwrap();
    let before = keys(port).await;
    let own_hash = |keys: &[String]| keys.iter().filter(|k| k.contains(":s:")).count();
    let mut commit = world.commit(&owner);
    commit.state.push(put("k", "n0", "small"));
    commit.state.push(put("other", "n", "1"));
    owner.must(commit).await.unwrap();
    assert_eq!(own_hash(&keys(port).await), 0);
    let mut commit = world.commit(&owner);
    large(&mut commit, "k", 10);
    owner.must(commit).await.unwrap();
    assert_eq!(own_hash(&keys(port).await), 1, "too large for its bucket");
    let mut commit = world.commit(&owner);
    commit.state = vec![put("k", "n3", "changed"), delete("k", "n4"), put("k", "new", "")];
    owner.must(commit).await.unwrap();
    let state = store.state(&spec.id, "k").await.unwrap();
    assert_eq!(state.len(), 10);
    assert_eq!(state["n3"], b"changed"[..]);
    assert_eq!(state["new"], b""[..]);
    assert!(!state.contains_key("n4"));
    world.words(&spec, Some("k"), &["1"]).await.unwrap();
    world.words(&spec, Some("other"), &["2"]).await.unwrap();
    let fetched = owner.fetch(9).await.unwrap();
    assert_eq!(fetched.state["k"].len(), 10, "an owner sees it all");
    assert_eq!(fetched.state["other"]["n"], b"1"[..]);
    let mut want = owner.want(9);
    want.state_bytes = 10_000;
    let fetched = owner.backend.fetch(&owner.lease, want).await.unwrap();
    assert_eq!(fetched.messages.len(), 1, "its bytes count");
    assert_eq!(store.state_size(&spec.id).await.unwrap().keys, 2);
    let mut commit = world.commit(&owner);
    commit.state = state.keys().map(|name| delete("k", name)).collect();
    commit.state.push(delete("other", "n"));
    owner.must(commit).await.unwrap();
    assert!(store.state(&spec.id, "k").await.unwrap().is_empty());
    assert_eq!(store.state_size(&spec.id).await.unwrap().keys, 0);
    let after = keys(port).await;
    let extra: Vec<_> = after
        .iter()
        .filter(|k| !before.contains(k) && !k.contains(":in:") && !k.ends_with(":ready"))
        .collect();
    assert!(extra.is_empty(), "left behind: {extra:?}");
}

#[tokio::test]
async fn nothing_of_a_removed_swarm_is_left_but_its_name() {
    let (world, store, port) = world(OnRedis::new(None).await);
    let before = keys(port).await;
    let (spec, sink) = (world.spec("a", 3), world.spec("b", 2));
    for key in ["k", "l", "m", "n", "o", "p"] {
        world.words(&spec, Some(key), &["1", "2", "3"]).await.unwrap();
    }
    for index in 0..3 {
        let mut owner = world.own(&spec, index).await.unwrap();
        let fetched = owner.fetch(9).await.unwrap();
        let mut commit = world.consuming(&owner, &fetched, fetched.messages.len().saturating_sub(1));
        for unread in &fetched.messages {
            commit.park.push(world.parked(&unread.message, 1, 0));
            commit.dead.push(world.letter(Work::Message(unread.message.clone())));
        }
        commit
            .outputs
            .push(skep_topic::conformance::actors::output(&sink, world.message(None, "x")));
        commit.set_timers.push(world.timer("k", "t", 0));
        large(&mut commit, &format!("large{index}"), 10);
        commit.state.push(put("small", "n", "1"));
        commit.replies.push(skep_model::message::Reply {
            request: skep_model::id::RequestId([index.try_into().unwrap(); 16]),
            result: skep_model::message::ReplyResult::Response(bytes::Bytes::new()),
            hops: Vec::new(),
        });
        owner.must(commit).await.unwrap();
    }
    let (_, message) = world.request("1", true);
    for (i, once) in [
        skep_topic::Once::Key {
            subject: "door".parse().unwrap(),
            key: "x".to_owned(),
            fingerprint: skep_model::id::Digest([1; 32]),
            expires_ms: u64::MAX / 4,
        },
        skep_topic::Once::Session {
            id: world.uid(),
            first: 1,
            again_max: u64::MAX,
            expires_ms: u64::MAX / 4,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let mut message = message.clone();
        message.key = Some(i.to_string());
        world.call(&spec, vec![message], once).await.unwrap().unwrap();
    }
    let kinds = |keys: &[String]| -> std::collections::BTreeSet<String> {
        let kind = |k: &String| {
            k.rsplit_once('}')
                .and_then(|(_, rest)| rest.split(':').nth(1).map(str::to_owned))
        };
        keys.iter().filter_map(kind).collect()
    };
    let busy = kinds(&keys(port).await);
    let all = [
        "d", "dd", "dr", "dx", "in", "k", "kd", "kl", "m", "p", "ready", "rp", "s", "se", "st", "subjects", "sx", "t",
        "td", "tm", "topics",
    ];
    for kind in all {
        assert!(busy.contains(kind), "{kind} is not there: {busy:?}");
    }
    assert!(store.remove_swarm(&world.swarm, false).await.unwrap());
    let meta = format!("sk:{{{}}}:m", world.swarm);
    let left: Vec<String> = keys(port).await;
    let extra: Vec<&String> = left
        .iter()
        // Replies for other nodes go by themselves, half a minute later.
        .filter(|k| !before.contains(k) && **k != meta && *k != "sk:gone" && !k.contains(":rp:"))
        .collect();
    assert!(extra.is_empty(), "left behind: {extra:?}");
}

#[tokio::test]
async fn an_empty_inbox_keeps_no_messages() {
    let (world, store, port) = world(OnRedis::new(None).await);
    let spec = world.spec("a", 1);
    for i in 0..20 {
        let words: Vec<String> = (0..5).map(|w| format!("{i}-{w}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        world.words(&spec, None, &words).await.unwrap();
    }
    let mut owner = world.own(&spec, 0).await.unwrap();
    let mut seen = 0;
    loop {
        let fetched = owner.fetch(7).await.unwrap();
        if fetched.messages.is_empty() {
            break;
        }
        seen += fetched.messages.len();
        owner
            .must(world.consuming(&owner, &fetched, fetched.messages.len()))
            .await
            .unwrap();
        let status = store.status(&world.swarm).await.unwrap();
        assert_eq!(status[0].unread, 100 - seen as u64);
    }
    assert_eq!(seen, 100);
    let status = store.status(&world.swarm).await.unwrap();
    assert_eq!((status[0].unread, status[0].unread_bytes), (0, 0));
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let mut conn = client.get_multiplexed_async_connection().await.unwrap();
    let inbox = format!("sk:{{{}}}:in:a:0", world.swarm);
    let left: u64 = redis::cmd("XLEN").arg(inbox).query_async(&mut conn).await.unwrap();
    assert_eq!(left, 0, "consumed entries are deleted");
    let ready = format!("sk:{{{}}}:ready", world.swarm);
    let left: u64 = redis::cmd("ZCARD").arg(ready).query_async(&mut conn).await.unwrap();
    assert_eq!(left, 0, "nothing is ready");
}

#[tokio::test]
async fn nothing_of_a_discarded_import_is_left() {
    let (world, store, port) = world(OnRedis::new(None).await);
    fill(&world).await.unwrap();
    let mut taken = pieces(&*store, &world.swarm).await.unwrap();
    let before = keys(port).await;
    let scope = Scope::of(TenantId::default_tenant());
    let copy = scope.swarm(&"copy".parse().unwrap(), Incarnation([9; 16]));
    assert!(store.import(&copy, stream(taken.clone())).await.unwrap());
    let added = keys(port).await.len() - before.len();
    assert!(added + 1 >= before.len() / 2, "a life has as many keys: {added}");
    store.discard_import(&copy).await.unwrap();
    assert_eq!(keys(port).await, before);
    // Nor of one that was cut off.
    taken.truncate(taken.len() / 2);
    let cut = taken
        .into_iter()
        .map(Ok)
        .chain([Err(Error::Unavailable("cut".to_owned()))]);
    let cut: Vec<_> = cut.collect();
    assert!(store.import(&copy, futures::stream::iter(cut).boxed()).await.is_err());
    store.discard_import(&copy).await.unwrap();
    assert_eq!(keys(port).await, before);
}
