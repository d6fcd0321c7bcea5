//! A hub and its edges where something is wrong: folders that were put back, hostile edges, what is taken away while an edge is offline, keys that
//! change, and hubs that were restored.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_edge::hello::{About, Greeting};
use skep_edge::home::Home;
use skep_edge::line::Line;
use skep_engine::Target;
use skep_model::id::{Digest, Uid};
use skep_model::message::{Hop, Message};
use skep_proto::v1;
use skep_proto::v1::delivered::Outcome;
use skep_proto::v1::edge_says::Said as EdgeSaid;
use skep_proto::v1::edges_client::EdgesClient;
use skep_proto::v1::hub_says::Said as HubSaid;
use skep_topic::record::{FrameBuilder, Run};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::edge::{Edge, answers, copy_dir, enrolled, hub_with, line, narrow, offer_from, soon, status, times};
use crate::node::{Node, SOON, Start, apply, connect, push, test_bees};

/// Until all of `e1` to `e{to}` took effect at the hub, each once.
async fn each_once(hub: &Node, to: u64) {
    let until = Instant::now() + SOON;
    for i in 1..=to {
        loop {
            match times(hub, i).await.as_deref() {
                Some("1") => break,
                Some(more) => panic!("e{i} took effect {more} times"),
                None => assert!(
                    Instant::now() < until,
                    "e{i} of {to} did not arrive: {}",
                    status(hub, "mill-1")
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The hub at a port, again.
fn again(at_hub: &Path, port: u16) -> Node {
    Start {
        port,
        ..Start::new(at_hub)
    }
    .start()
}

fn waiting(told: &Value) -> Vec<(String, u64)> {
    let all = told["waiting"].as_array().into_iter().flatten();
    let of = |w: &Value| {
        (
            w["stage"].as_str().unwrap_or_default().to_owned(),
            w["messages"].as_u64().unwrap_or(0),
        )
    };
    all.map(of).collect()
}

/// What came since the copy has numbers that mean other messages to the hub.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edges_folder_that_was_put_back_is_found_out_and_loses_nothing() {
    let (at_hub, at_edge, copy) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let hub = hub_with(at_hub.path(), 0, &narrow("refuse")).await;
    enrolled(&hub, "mill-1", at_edge.path());
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("follows new orders").await;
    // What was said of an earlier trouble is no word about a later one.
    hub.cli_ok(&["edge", "resume", "mill-1"]);
    soon(
        || status(&hub, "mill-1")["follows"] == 3,
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    assert_eq!(offer_from(&edge, 1, 40).await, 40);
    each_once(&hub, 40).await;
    assert!(edge.stop().success());
    copy_dir(at_edge.path(), copy.path());
    let edge = Edge::start(at_edge.path(), 0);
    assert_eq!(offer_from(&edge, 41, 60).await, 60);
    each_once(&hub, 60).await;
    assert!(edge.stop().success());
    std::fs::remove_dir_all(at_edge.path()).unwrap();
    copy_dir(copy.path(), at_edge.path());
    // Slowly, so that each is a batch of its own; and a restart in the middle, which must not make it forget what it found.
    let edge = Edge::start(at_edge.path(), 0);
    for i in 61..=64 {
        assert_eq!(offer_from(&edge, i, i).await, i);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    edge.says("its folder is a copy, or was put back").await;
    edge.kill();
    let edge = Edge::start(at_edge.path(), 0);
    assert_eq!(offer_from(&edge, 65, 80).await, 80);
    edge.says("its folder is a copy, or was put back").await;
    soon(
        || {
            let told = status(&hub, "mill-1");
            let why = told["waiting"][0]["trouble"].as_str().unwrap_or_default().to_owned();
            waiting(&told) == [("effects/effect".to_owned(), 20)] && why.contains("put back")
        },
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    assert_eq!(times(&hub, 61).await, None, "not taken for another message");
    hub.cli_ok(&["edge", "resume", "mill-1"]);
    each_once(&hub, 80).await;
    soon(
        || waiting(&status(&hub, "mill-1")) == [("effects/effect".to_owned(), 0)],
        || status(&hub, "mill-1").to_string(),
    )
    .await;
}

/// Other labels, and a Swarm that goes: what an edge took is handed over, or told until somebody lets go of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_at_an_edge_is_not_forgotten_with_its_label_or_its_swarm() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = hub_with(at_hub.path(), 0, &narrow("refuse")).await;
    let port = hub.port();
    enrolled(&hub, "mill-1", at_edge.path());
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("follows new orders").await;
    assert!(hub.stop().success());
    assert_eq!(offer_from(&edge, 1, 30).await, 30);
    assert!(edge.stop().success());
    let hub = again(at_hub.path(), port);
    // It is away and may hold something: nobody takes the ground from under it unasked.
    for (args, says) in [
        (
            &["delete", "effects"][..],
            "edge `mill-1` is away, and may have messages for it",
        ),
        (&["edge", "label", "mill-9", "--label", "site=farm"], "no edge `mill-9`"),
        (&["edge", "discard", "mill-1", "effects"], "SWARM/STAGE"),
    ] {
        let refused = hub.cli(args);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(says), "{args:?}: {said}");
    }
    let whole = narrow("refuse");
    let (less, _) = whole.split_once("  - name: effect\n").unwrap();
    let refused = apply(&mut hub.keeper().await, less).await.unwrap_err();
    assert!(refused.message().contains("may have messages for it"), "{refused}");
    // Another line for the same name changes nothing for who is there.
    line(&hub, "mill-1");
    hub.cli_ok(&["edge", "label", "mill-1", "--label", "site=farm"]);
    let edge = Edge::start(at_edge.path(), 0);
    each_once(&hub, 30).await;
    soon(
        || {
            let told = status(&hub, "mill-1");
            told["labels"][0] == "site=farm" && told["runs"] == json!([]) && told["follows"] == told["revision"]
        },
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    // Back, and away again with something that nobody will take.
    hub.cli_ok(&["edge", "label", "mill-1", "--label", "site=mill"]);
    soon(
        || status(&hub, "mill-1")["runs"] == json!(["effects/pass"]),
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    assert_eq!(offer_from(&edge, 31, 35).await, 35);
    each_once(&hub, 35).await;
    // The same again, with nothing waiting meanwhile.
    for label in ["site=farm", "site=mill"] {
        hub.cli_ok(&["edge", "label", "mill-1", "--label", label]);
        let runs = if label == "site=farm" {
            json!([])
        } else {
            json!(["effects/pass"])
        };
        soon(
            || status(&hub, "mill-1")["runs"] == runs,
            || status(&hub, "mill-1").to_string(),
        )
        .await;
    }
    assert_eq!(offer_from(&edge, 36, 40).await, 40);
    each_once(&hub, 40).await;
    assert!(hub.stop().success());
    assert_eq!(offer_from(&edge, 41, 60).await, 60);
    assert!(edge.stop().success());
    let hub = again(at_hub.path(), port);
    hub.cli_ok(&["delete", "effects", "--discard"]);
    let edge = Edge::start(at_edge.path(), 0);
    let left = || {
        let told = waiting(&status(&hub, "mill-1"));
        told.into_iter()
            .find(|(what, _)| what.starts_with("effects@") && what.ends_with("/effect"))
    };
    soon(
        || left().is_some_and(|(_, n)| n == 20),
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    let (what, _) = left().unwrap();
    soon(
        || {
            status(&hub, "mill-1")
                .to_string()
                .contains("takes nothing for this stage any more")
        },
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    // Also over a restart.
    edge.kill();
    let edge = Edge::start(at_edge.path(), 0);
    soon(
        || left().is_some_and(|(_, n)| n == 20),
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    hub.cli_ok(&["edge", "discard", "mill-1", &what, "--first"]);
    soon(
        || left().is_some_and(|(_, n)| n == 19),
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    hub.cli_ok(&["edge", "discard", "mill-1", &what]);
    soon(
        || waiting(&status(&hub, "mill-1")).is_empty(),
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    // What was said once holds for what waited then, and for nothing that comes by the same name.
    apply(&mut hub.keeper().await, &narrow("refuse")).await.expect("apply");
    soon(
        || status(&hub, "mill-1")["runs"] == json!(["effects/pass"]),
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    assert_eq!(offer_from(&edge, 1, 10).await, 10);
    each_once(&hub, 10).await;
}

/// What edges have is counted before it is taken away, and waited for while it goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_waits_for_what_its_edges_took() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = hub_with(at_hub.path(), 0, &narrow("refuse")).await;
    enrolled(&hub, "mill-1", at_edge.path());
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("follows new orders").await;
    hub.cli_ok(&["pause", "effects/pass"]);
    soon(
        || {
            let told = status(&hub, "mill-1");
            told["follows"] == told["revision"] && told["revision"] == 2
        },
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    assert_eq!(offer_from(&edge, 1, 50).await, 50);
    soon(
        || status(&hub, "mill-1")["inboxes"]["effects/pass"] == 50,
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    let refused = hub.cli(&["delete", "effects"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("edge `mill-1` has 50 messages for it"),
        "{said}"
    );
    hub.cli_ok(&["resume", "effects/pass"]);
    each_once(&hub, 50).await;
    // State is no work, and would keep it there.
    let state = hub.cli(&["delete", "effects"]);
    assert!(!state.status.success(), "{}", String::from_utf8_lossy(&state.stderr));
    hub.cli_ok(&["delete", "effects", "--discard"]);
    // Of a Swarm without state nothing is lost by a deletion in the very moment in which messages come.
    apply(&mut hub.keeper().await, PASSING).await.expect("apply");
    let runs = || status(&hub, "mill-1")["runs"] == json!(["passing/near"]);
    soon(runs, || status(&hub, "mill-1").to_string()).await;
    let mut gateway = edge.gateway().await;
    let call = v1::SubmitCall {
        subject: "passing".to_owned(),
        messages: vec![
            v1::OutMessage {
                payload: b"hi".to_vec().into(),
                ..v1::OutMessage::default()
            };
            500
        ],
        ..v1::SubmitCall::default()
    };
    gateway.submit(call).await.expect("submit");
    let until = Instant::now() + SOON;
    while !hub.cli(&["delete", "passing"]).status.success() {
        assert!(Instant::now() < until, "{}", status(&hub, "mill-1"));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(waiting(&status(&hub, "mill-1")), [], "nothing came too late");
}

const PASSING: &str = "
name: passing
bees:
  - name: near
    module: test-bees
    bee: pass
    input: { gateway: passing }
    place: { label: site=mill }
  - name: far
    module: test-bees
    bee: pass
    input: { bee: near }
";

/// The vault's key changes as docs/secrets.md says it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hubs_key_is_sealed_anew_with_the_secrets() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = hub_with(at_hub.path(), 0, &narrow("refuse")).await;
    let port = hub.port();
    enrolled(&hub, "mill-1", at_edge.path());
    assert!(hub.stop().success());
    let file = at_hub.path().join("secrets.key");
    let old = std::fs::read_to_string(&file).unwrap();
    let new = "ab".repeat(32);
    std::fs::write(&file, format!("{new}\n{old}")).unwrap();
    let hub = again(at_hub.path(), port);
    assert!(hub.cli_ok(&["secret", "reseal"]).contains("1 "));
    assert!(hub.stop().success());
    std::fs::write(&file, new).unwrap();
    let hub = again(at_hub.path(), port);
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("follows new orders").await;
    assert_eq!(offer_from(&edge, 1, 5).await, 5);
    each_once(&hub, 5).await;
}

/// The edge goes on with the hub that came out of a backup: the same key, its record, the marks of what was taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_brings_the_edges_back_with_all_else() {
    let (at_hub, at_new, at_edge) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let hub = hub_with(at_hub.path(), 0, &narrow("refuse")).await;
    let port = hub.port();
    enrolled(&hub, "mill-1", at_edge.path());
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("follows new orders").await;
    assert_eq!(offer_from(&edge, 1, 20).await, 20);
    each_once(&hub, 20).await;
    let backup = at_new.path().join("backup");
    hub.cli_ok(&["backup", backup.to_str().unwrap()]);
    assert!(hub.stop().success());
    assert_eq!(offer_from(&edge, 21, 30).await, 30);
    // The key is kept apart from the backup, as the secrets' is.
    let data = at_new.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::copy(at_hub.path().join("secrets.key"), data.join("secrets.key")).unwrap();
    let hub = again(&data, port);
    hub.cli_ok(&["restore", backup.to_str().unwrap()]);
    each_once(&hub, 30).await;
    assert_eq!(status(&hub, "mill-1")["state"], "attached");
}

/// A module that does not compile keeps new orders back, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_swarm_that_cannot_be_compiled_keeps_no_messages_of_others_waiting() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = hub_with(at_hub.path(), 0, &narrow("refuse")).await;
    enrolled(&hub, "mill-1", at_edge.path());
    let edge = Edge::start(at_edge.path(), 0);
    edge.says("follows new orders").await;
    // The same code under another digest: a custom section more.
    let other = [test_bees(), &[0, 2, 1, b'x'][..]].concat();
    let digest = Digest::of(&other).to_hex();
    let mut keeper = hub.keeper().await;
    push(&mut keeper, "other-bees", "latest", &other).await.expect("push");
    let mut files = walk(at_hub.path());
    files.retain(|file| file.to_string_lossy().contains(&digest));
    assert!(!files.is_empty(), "no file of module {digest}");
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let second = "name: echo\nbees:\n  - name: echo\n    module: other-bees\n    input: { gateway: echo }\n    place: { label: site=mill }\n";
    apply(&mut keeper, second).await.expect("apply");
    soon(
        || {
            status(&hub, "mill-1")["trouble"]
                .as_str()
                .is_some_and(|t| t.contains("stage `echo` of Swarm `echo` cannot be compiled"))
        },
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    assert_eq!(offer_from(&edge, 1, 10).await, 10);
    each_once(&hub, 10).await;
    // Also for a connection that begins now.
    edge.kill();
    let edge = Edge::start(at_edge.path(), 0);
    assert_eq!(offer_from(&edge, 11, 20).await, 20);
    each_once(&hub, 20).await;
    push(&mut keeper, "other-bees", "latest", &other)
        .await
        .expect("push again");
    let until = Duration::from_secs(90);
    tokio::time::timeout(until, answers(&edge, "echo"))
        .await
        .expect("it is compiled in the end");
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => out.extend(walk(&path)),
            false => out.push(path),
        }
    }
    out
}

/// An edge that is written by somebody else.
struct ByHand {
    says: mpsc::Sender<v1::EdgeSays>,
    heard: Streaming<v1::HubSays>,
    number: u64,
}

impl ByHand {
    /// Attached to the hub as who lives in the folder, or why not.
    async fn attach(hub: &Node, dir: &Path, change: impl FnOnce(&mut v1::Proof)) -> Result<Self, tonic::Status> {
        let home = Home::open(dir).unwrap();
        let (identity, key) = (home.identity().unwrap(), home.key().unwrap());
        let mut client = EdgesClient::new(connect(&hub.url).await).max_encoding_message_size(8 << 20);
        let (says, words) = mpsc::channel(16);
        let edge = identity.id().unwrap();
        let of_edge = [3; 16];
        let say = |said| v1::EdgeSays { said: Some(said) };
        let hello = v1::Hello {
            edge: edge.to_vec().into(),
            nonce: of_edge.to_vec().into(),
            tenant: identity.tenant.clone(),
            name: identity.name.clone(),
        };
        says.send(say(EdgeSaid::Hello(hello))).await.unwrap();
        let mut heard = client.attach(ReceiverStream::new(words)).await?.into_inner();
        let Some(HubSaid::Challenge(challenge)) = heard.message().await?.and_then(|m| m.said) else {
            panic!("no challenge");
        };
        let greeting = Greeting {
            edge,
            of_edge,
            of_hub: challenge.nonce.as_ref().try_into().unwrap(),
        };
        let target = serde_json::to_string(&Target::host()).unwrap();
        let about = About {
            version: "by hand",
            target: &target,
            follows: 0,
        };
        let mut proof = v1::Proof {
            signature: greeting.signed_by_edge(&key, &about).to_vec().into(),
            version: about.version.to_owned(),
            target: target.clone(),
            revision: 0,
        };
        change(&mut proof);
        says.send(say(EdgeSaid::Proof(proof))).await.unwrap();
        let mut this = Self { says, heard, number: 0 };
        this.hear().await?;
        Ok(this)
    }

    async fn hear(&mut self) -> Result<HubSaid, tonic::Status> {
        let heard = tokio::time::timeout(SOON, self.heard.message())
            .await
            .expect("the hub says nothing")?;
        heard
            .and_then(|m| m.said)
            .ok_or_else(|| tonic::Status::cancelled("the hub ended the connection"))
    }

    async fn deliver(&mut self, what: v1::Deliver) -> Result<v1::Delivered, tonic::Status> {
        self.number += 1;
        let what = v1::Deliver {
            number: self.number,
            ..what
        };
        let _ = self
            .says
            .send(v1::EdgeSays {
                said: Some(EdgeSaid::Deliver(what)),
            })
            .await;
        loop {
            if let HubSaid::Delivered(said) = self.hear().await? {
                assert_eq!(said.number, self.number);
                return Ok(said);
            }
        }
    }
}

fn frame(messages: &[Message]) -> skep_model::Bytes {
    let mut run = Run::default();
    messages.iter().for_each(|message| run.push(message));
    let mut frame = FrameBuilder::default();
    run.pieces(0).for_each(|(encoded, size)| frame.push(encoded, size));
    frame.finish()
}

fn message(id: &str) -> Message {
    Message {
        uid: Uid(*Digest::of(id.as_bytes()).0.first_chunk().unwrap()),
        key: Some(id.to_owned()),
        headers: Vec::new(),
        payload: json!({ "id": id }).to_string().into(),
        accepted_ms: u64::MAX,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_edge_is_answered_in_words_and_takes_nothing_from_anybody() {
    let (at_hub, at_edge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = hub_with(at_hub.path(), 0, &narrow("refuse")).await;
    let invited: Line = line(&hub, "mill-1").parse().unwrap();
    skep_edge::enrol::enroll(at_edge.path(), &invited, None, false)
        .await
        .unwrap();
    // The same machine may ask again, since the answer may be lost; another may not.
    std::fs::remove_file(at_edge.path().join("edge.json")).unwrap();
    skep_edge::enrol::enroll(at_edge.path(), &invited, None, false)
        .await
        .unwrap();
    let thief = tempfile::tempdir().unwrap();
    let stolen = skep_edge::enrol::enroll(thief.path(), &invited, None, false)
        .await
        .unwrap_err();
    assert!(stolen.to_string().contains("no such invitation"), "{stolen}");

    // What it says of itself is signed, and not believed beyond measure.
    for (change, says) in [
        (
            (|proof: &mut v1::Proof| proof.revision = 1) as fn(&mut v1::Proof),
            "knows no such edge",
        ),
        (|proof| proof.version.push('!'), "knows no such edge"),
        (|proof| proof.signature = vec![0; 64].into(), "knows no such edge"),
        (|proof| proof.target = "{}".to_owned(), "knows no such edge"),
    ] {
        let refused = ByHand::attach(&hub, at_edge.path(), change)
            .await
            .err()
            .expect("refused");
        assert!(refused.message().contains(says), "{refused}");
    }
    let mut edge = ByHand::attach(&hub, at_edge.path(), |_| {}).await.unwrap();
    let orders = loop {
        if let HubSaid::Orders(orders) = edge.hear().await.unwrap()
            && !orders.orders.is_empty()
        {
            break serde_json::from_slice::<Value>(&orders.orders).unwrap();
        }
    };
    let incarnation: skep_model::id::Incarnation =
        orders["swarms"][0]["incarnation"].as_str().unwrap().parse().unwrap();
    let deliver = |frame: skep_model::Bytes, session: u8, first: u64| v1::Deliver {
        number: 0,
        swarm: "effects".to_owned(),
        incarnation: incarnation.0.to_vec().into(),
        stage: "effect".to_owned(),
        session: vec![session; 16].into(),
        first,
        frame,
    };
    let many = |headers: usize| Message {
        headers: vec![(String::new(), String::new()); headers],
        ..message("many")
    };
    let hop = Hop {
        stage: "s".parse().unwrap(),
        started_us: 0,
        took_us: 0,
        batch: 0,
    };
    let far = Message {
        hops: vec![hop; 100_000],
        ..message("far")
    };
    let keyless = Message {
        key: None,
        ..message("e1")
    };
    let good = || frame(&[message("e1")]);
    let mut damaged = good().to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    for (what, outcome, says) in [
        (deliver(frame(&[many(1_000_000)]), 1, 1), Outcome::Refused, "lists more"),
        (
            deliver(frame(&[many(65)]), 1, 1),
            Outcome::Refused,
            "65 headers, at most 64",
        ),
        (deliver(frame(&[far]), 1, 1), Outcome::Refused, "lists more"),
        (
            deliver(frame(&vec![message("n"); 1_001]), 1, 1),
            Outcome::Refused,
            "lists more",
        ),
        (deliver(frame(&[keyless]), 1, 1), Outcome::Refused, "has no key"),
        (deliver(damaged.into(), 1, 1), Outcome::Refused, "damaged"),
        (deliver(vec![0].into(), 1, 1), Outcome::Refused, "damaged"),
        (deliver(good(), 1, 0), Outcome::Refused, "numbered from 1"),
        (deliver(good(), 1, 2), Outcome::Gap, "missing"),
        (
            v1::Deliver {
                session: vec![1; 3].into(),
                ..deliver(good(), 1, 1)
            },
            Outcome::Refused,
            "16 bytes",
        ),
        (
            // A stage that runs at edges is no door of the hub's.
            v1::Deliver {
                stage: "pass".to_owned(),
                ..deliver(good(), 1, 1)
            },
            Outcome::Gone,
            "no stage `pass`",
        ),
        // How far it is: nothing of it is there.
        (deliver(Vec::new().into(), 1, 2), Outcome::Gap, "from 0 to 2"),
        (deliver(good(), 1, 1), Outcome::Taken, ""),
        (deliver(good(), 1, 1), Outcome::Ahead, "a copy"),
        (deliver(Vec::new().into(), 1, 3), Outcome::Gap, "from 1 to 3"),
        (deliver(Vec::new().into(), 1, 2), Outcome::Ahead, ""),
    ] {
        let what = match outcome {
            // The catalog is read at most once a second for those.
            Outcome::Gone => {
                tokio::time::sleep(Duration::from_millis(1_100)).await;
                what
            }
            _ => what,
        };
        let said = edge.deliver(what).await.unwrap();
        assert_eq!(said.outcome(), outcome, "{said:?}");
        assert!(said.detail.contains(says), "{says}: {said:?}");
    }
    // A clock that is wrong by ages came with it, and is not the hub's from now on.
    each_once(&hub, 1).await;
    // Code that its orders do not name.
    let wanted = v1::WantCode {
        module: Digest::of(b"another tenant's module").to_hex(),
        native: Digest::of(b"another tenant's").to_hex(),
        from: 0,
    };
    edge.says
        .send(v1::EdgeSays {
            said: Some(EdgeSaid::WantCode(wanted)),
        })
        .await
        .unwrap();
    let HubSaid::Code(code) = edge.hear().await.unwrap() else {
        panic!("code")
    };
    assert!(code.refused.contains("orders do not name it"), "{code:?}");
    // What it says of itself is shown, and obeyed by no terminal.
    let report = v1::EdgeReport {
        trouble: format!("\u{1b}[2J{}", "x".repeat(100_000)),
        runs: vec!["y".repeat(1_000); 10],
        waiting: vec![
            v1::Waiting {
                stage: "z".repeat(1_000),
                messages: u64::MAX,
                ..v1::Waiting::default()
            };
            3
        ],
        follows: u64::MAX,
        inboxes: Vec::new(),
    };
    edge.says
        .send(v1::EdgeSays {
            said: Some(EdgeSaid::Report(report)),
        })
        .await
        .unwrap();
    soon(
        || {
            status(&hub, "mill-1")["runs"][0]
                .as_str()
                .is_some_and(|run| run.len() == 300)
        },
        || status(&hub, "mill-1").to_string(),
    )
    .await;
    let shown = hub.cli_ok(&["edge", "list"]) + &hub.cli_ok(&["edge", "status", "mill-1"]);
    assert!(!shown.contains('\u{1b}') && shown.len() < 20_000, "{shown}");
    // Something that nobody says.
    let twice = EdgeSaid::Hello(v1::Hello::default());
    edge.says.send(v1::EdgeSays { said: Some(twice) }).await.unwrap();
    let ended = edge.deliver(deliver(good(), 2, 1)).await.unwrap_err();
    assert!(ended.message().contains("said already"), "{ended}");
}
