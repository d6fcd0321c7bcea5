//! Secrets: read by whom they are granted to, new values without another apply, in no log, error, dead letter, store or reply of the platform.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tonic::transport::Channel;

use crate::node::{Node, SOON, Start, apply, drained, push, request, response, test_bees};
use crate::redis_server::{ALWAYS, Server};

const FIRST: &str = "sk-first-0123456789";
const SECOND: &str = "sk-second-9876543210";

const SWARM: &str = "
name: talk
bees:
  - { name: gossip, module: test-bees, input: { gateway: talk }, secrets: [api-key], instances: pooled, retry: { attempts: 1 } }
";

/// `skep secret set`, with the value on stdin.
fn set(node: &Node, name: &str, value: &[u8]) -> (bool, String) {
    let mut child = node
        .command(&["secret", "set", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("skep");
    // It may have refused before it read all.
    let _ = child.stdin.take().expect("stdin").write_all(value);
    let out = child.wait_with_output().expect("skep ends");
    let said = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&said).into_owned())
}

async fn told(gateway: &mut GatewayClient<Channel>, what: &str) -> Result<String, String> {
    match request(gateway, "talk", what.as_bytes()).await {
        Ok(reply) => Ok(response(&reply)),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// Until this node's Bees read it.
async fn reads(gateway: &mut GatewayClient<Channel>, value: &str) {
    let until = Instant::now() + SOON;
    loop {
        let seen = told(gateway, "tell").await;
        if seen.as_deref() == Ok(value) {
            return;
        }
        assert!(Instant::now() < until, "{seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// No file below has it.
fn nowhere_in(folder: &Path, value: &str) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            nowhere_in(&path, value);
        } else if let Ok(bytes) = std::fs::read(&path) {
            let found = bytes.windows(value.len()).any(|window| window == value.as_bytes());
            assert!(!found, "{} has the secret", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_read_where_it_is_granted_and_said_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Start::new(&data).start();
    let (mut keeper, mut gateway) = (node.keeper().await, node.gateway().await);
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    let refused = apply(&mut keeper, SWARM).await.unwrap_err();
    assert!(refused.message().contains("skep secret set api-key"), "{refused}");
    let (done, said) = set(&node, "api-key", format!("{FIRST}\n").as_bytes());
    assert!(done && said.contains("version 1"), "{said}");
    apply(&mut keeper, SWARM).await.unwrap();
    assert_eq!(
        told(&mut gateway, "tell").await.as_deref(),
        Ok(FIRST),
        "its response is the Bee's own affair"
    );
    // A new value without another apply, in a pooled instance too.
    let (done, said) = set(&node, "api-key", SECOND.as_bytes());
    assert!(
        done && said.contains("version 2") && said.contains("talk/gossip"),
        "{said}"
    );
    assert_eq!(told(&mut gateway, "tell").await.as_deref(), Ok(SECOND));
    for what in ["fail", "reject", "panic"] {
        let why = told(&mut gateway, what).await.unwrap_err();
        assert!(!why.contains("sk-second"), "{why}");
    }
    let other = told(&mut gateway, "read db").await.unwrap_err();
    assert!(other.contains("not granted"), "{other}");
    let logs = node.cli_ok(&["logs", "talk"]);
    assert!(
        logs.contains("the key is [secret api-key], shown as Secret(..)"),
        "{logs}"
    );
    assert!(
        logs.contains("on stdout: [secret api-key]") && logs.contains("on stderr: [secret api-key]"),
        "{logs}"
    );
    // What is asked for in memory leaves no letter.
    node.cli_ok(&["submit", "talk", "fail"]);
    drained(&mut keeper, "talk").await;
    let letters = node.cli_ok(&["dlq", "talk", "list", "-o", "json"]);
    assert!(letters.contains("refused [secret api-key]"), "{letters}");
    let id = letters
        .split("\"id\":")
        .nth(1)
        .and_then(|rest| rest.split([',', '}']).next())
        .unwrap()
        .trim()
        .to_owned();
    let tried = node.cli_ok(&["dlq", "talk", "try", &id]);
    for text in [
        &logs,
        &letters,
        &tried,
        &node.cli_ok(&["describe", "talk"]),
        &node.cli_ok(&["secret", "list"]),
    ] {
        assert!(!text.contains("sk-first") && !text.contains("sk-second"), "{text}");
    }
    let gone = node.cli(&["secret", "delete", "api-key"]);
    let why = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(!gone.status.success() && why.contains("talk/gossip"), "{why}");
    node.cli_ok(&["secret", "delete", "api-key", "--force"]);
    let missing = told(&mut gateway, "tell").await.unwrap_err();
    assert!(missing.contains("there is no secret `api-key`"), "{missing}");
    set(&node, "api-key", FIRST.as_bytes());
    assert_eq!(told(&mut gateway, "tell").await.as_deref(), Ok(FIRST));
    drained(&mut keeper, "talk").await;
    // It is there after a crash, and in no file; responses that were stored are the Bee's own.
    node.kill();
    for value in [FIRST, SECOND] {
        nowhere_in(&data, value);
    }
    let node = Start::new(&data).start();
    assert_eq!(told(&mut node.gateway().await, "tell").await.as_deref(), Ok(FIRST));
    // Without the key it is named, and nothing else stops.
    node.kill();
    std::fs::rename(data.join("secrets.key"), dir.path().join("kept")).unwrap();
    let node = Start::new(&data).start();
    let list = node.cli_ok(&["secret", "list"]);
    assert!(list.contains("which this node does not have"), "{list}");
    assert!(told(&mut node.gateway().await, "tell").await.is_err());
    node.kill();
    std::fs::rename(dir.path().join("kept"), data.join("secrets.key")).unwrap();
    let node = Start::new(&data).start();
    assert_eq!(told(&mut node.gateway().await, "tell").await.as_deref(), Ok(FIRST));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_secrets_are_refused_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(&dir.path().join("data")).start();
    for (name, value, why) in [
        ("Api_Key", b"x".to_vec(), "is not a name"),
        ("..", b"x".to_vec(), "is not a name"),
        ("a/b", b"x".to_vec(), "is not a name"),
        ("empty", b"\n".to_vec(), "empty secret"),
        ("huge", vec![b'x'; 1 << 20], "at most 16384 bytes"),
    ] {
        let (done, said) = set(&node, name, &value);
        assert!(!done && said.contains(why), "{name}: {said}");
    }
    // Past what the CLI lets through.
    let mut client = v1::secrets_client::SecretsClient::new(node.channel().await);
    let call = v1::SetSecretRequest {
        name: "huge".to_owned(),
        value: vec![b'x'; (16 << 10) + 1].into(),
    };
    let refused = client.set_secret(call).await.unwrap_err();
    assert!(refused.message().contains("at most 16384 bytes"), "{refused}");
    let gone = node.cli(&["secret", "delete", "nobody"]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no secret `nobody`"));
    // Bytes that are no text.
    let (done, said) = set(&node, "binary", &[0, 255, 10, 13]);
    assert!(done, "{said}");
    assert!(node.cli_ok(&["secret", "list"]).contains("binary"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_of_a_store_reads_what_one_was_told_and_needs_the_key() {
    let redis = Server::start(ALWAYS);
    let dir = tempfile::tempdir().unwrap();
    let (keys, artifacts) = (dir.path().join("keys"), dir.path().join("artifacts"));
    let start = |number: u8, keyed: bool| {
        let start = Start::new(&dir.path().join(format!("data-{number}")))
            .env("SKEP_BACKEND", redis.url())
            .env("SKEP_ARTIFACTS", artifacts.to_str().unwrap());
        match keyed {
            true => start.env("SKEP_SECRETS_KEY_FILE", keys.to_str().unwrap()).start(),
            false => start.start(),
        }
    };
    let keyless = start(1, false);
    let (done, said) = set(&keyless, "api-key", FIRST.as_bytes());
    assert!(!done && said.contains("--secrets-key-file"), "{said}");
    keyless.stop();
    let old = "0f".repeat(32);
    let write = |text: &str| {
        std::fs::write(&keys, text).unwrap();
        std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    };
    write(&old);
    let (one, two) = (start(1, true), start(2, true));
    let mut keeper = one.keeper().await;
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    assert!(set(&one, "api-key", FIRST.as_bytes()).0);
    // At the other node, whatever it has heard so far.
    apply(&mut two.keeper().await, SWARM).await.unwrap();
    let (mut at_one, mut at_two) = (one.gateway().await, two.gateway().await);
    reads(&mut at_one, FIRST).await;
    reads(&mut at_two, FIRST).await;
    assert!(set(&two, "api-key", SECOND.as_bytes()).0);
    reads(&mut at_one, SECOND).await;
    reads(&mut at_two, SECOND).await;
    // Another key, one node after the other; the former goes once all is sealed with the new one.
    one.stop();
    two.stop();
    write(&format!("{}\n{old}\n", "ab".repeat(32)));
    let (one, two) = (start(1, true), start(2, true));
    assert!(one.cli_ok(&["secret", "reseal"]).contains("1 secret"));
    assert!(two.cli_ok(&["secret", "reseal"]).contains("0 secrets"));
    one.stop();
    two.stop();
    write(&"ab".repeat(32));
    let one = start(1, true);
    reads(&mut one.gateway().await, SECOND).await;
    let seen = redis.cli(&["--scan"]);
    for key in seen.lines() {
        let kept = redis.cli(&["DUMP", key]);
        assert!(!kept.contains("sk-second"), "{key}");
    }
}
