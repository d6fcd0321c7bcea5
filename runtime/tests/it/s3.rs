//! Modules on S3, against moto's server: conditional creates, parts, damage, refusals, outages.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::name::TenantId;
use skep_node::settings::ArtifactSettings;
use skep_node::store::{Access, ModuleStore, Place, Put, probe};

use crate::node::{SOON, Start, apply, push, request, response, test_bees};

/// The server looks who it is and not whether the signature is right.
const OWNER: &str = "authorization: AWS4-HMAC-SHA256 Credential=somebody/20260101/us-east-1/s3/aws4_request, \
                     SignedHeaders=host, Signature=0";
const SECRET: &str = "hush-and-not-a-word";

/// A server of a test's own, with an empty bucket `bees`.
pub struct S3 {
    pub port: u16,
    child: Child,
}

impl S3 {
    pub fn start() -> Self {
        Self::start_at(free_port(), &[])
    }

    pub fn start_at(port: u16, env: &[(&str, &str)]) -> Self {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools/moto/bin/moto_server");
        assert!(
            program.exists(),
            "there is no S3 server at {}: run `ci/tools moto`",
            program.display()
        );
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { port, child };
        let until = Instant::now() + SOON;
        while !server.send("PUT", "/bees", b"").contains("200 OK") {
            assert!(Instant::now() < until, "the S3 server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// One request as of the bucket's owner; the head of the answer and what comes with it.
    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> String {
        let Ok(mut conn) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return String::new();
        };
        let _ = conn.set_read_timeout(Some(SOON));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\n{OWNER}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.port,
            body.len()
        );
        let mut answer = Vec::new();
        let done = conn.write_all(head.as_bytes()).and_then(|()| conn.write_all(body));
        if done.and_then(|()| conn.read_to_end(&mut answer).map(|_| ())).is_err() {
            return String::new();
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn env(&self) -> Vec<(&'static str, String)> {
        environment(&format!("http://127.0.0.1:{}", self.port))
    }

    fn access(&self) -> Access {
        self.env().into_iter().map(|(n, v)| (n.to_owned(), v)).collect()
    }

    async fn store(&self, data: &Path) -> ModuleStore {
        let opened = ModuleStore::open(&place("bees"), data, TenantId::default_tenant(), self.access()).await;
        opened.expect("the store opens")
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

pub fn environment(endpoint: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", endpoint.to_owned()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "somebody".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
    ]
}

fn place(bucket: &str) -> ArtifactSettings {
    ArtifactSettings::S3 {
        bucket: bucket.to_owned(),
        prefix: "prod/eu".to_owned(),
    }
}

/// Bytes that do not repeat, as compiled code.
fn component(len: usize, seed: u64) -> (Digest, Bytes) {
    let mut x = seed | 1;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect();
    (Digest::of(&bytes), bytes.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_create_one_is_told_so_and_all_find_it() {
    let server = S3::start();
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let (digest, bytes) = component(64 << 10, 2 * round + 7);
        let mut racing = Vec::new();
        for node in 0..16 {
            let store = server.store(&dir.path().join(format!("{round}-{node}"))).await;
            let bytes = bytes.clone();
            racing.push(tokio::spawn(async move { store.put(&digest, bytes).await.unwrap() }));
        }
        let mut puts = Vec::new();
        for put in racing {
            puts.push(put.await.unwrap());
        }
        assert_eq!(puts.iter().filter(|p| **p == Put::Created).count(), 1, "{puts:?}");
        assert!(!puts.contains(&Put::Replaced), "{puts:?}");
        let other = server.store(&dir.path().join("other")).await;
        assert_eq!(other.get(&digest).await.unwrap(), bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_module_goes_in_parts_and_comes_back_whole() {
    let server = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let (digest, bytes) = component((20 << 20) + 123, 3);
    let one = server.store(&dir.path().join("1")).await;
    assert_eq!(one.put(&digest, bytes.clone()).await.unwrap(), Put::Created);
    let head = server.send(
        "HEAD",
        &format!("/bees/prod/eu/modules/default/{}", digest.to_hex()),
        b"",
    );
    // S3's mark of an object in three parts.
    assert!(head.contains("-3\""), "{head}");
    let two = server.store(&dir.path().join("2")).await;
    assert_eq!(two.get(&digest).await.unwrap(), bytes);
    assert_eq!(two.put(&digest, bytes.clone()).await.unwrap(), Put::Known);
    one.remove(&digest).await.unwrap();
    one.remove(&digest).await.unwrap();
    let gone = one.get(&digest).await.unwrap_err().to_string();
    assert!(gone.contains("push it again"), "{gone}");
    // The other's copy names the same bytes, whoever removed them here.
    assert_eq!(two.get(&digest).await.unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_there_is_told_and_mended_by_the_next_push() {
    let server = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let (digest, bytes) = component(100_000, 5);
    let one = server.store(&dir.path().join("1")).await;
    one.put(&digest, bytes.clone()).await.unwrap();
    let object = format!("/bees/prod/eu/modules/default/{}", digest.to_hex());
    for (n, damage) in [&bytes[..bytes.len() - 1], b"", &vec![0; bytes.len()]]
        .into_iter()
        .enumerate()
    {
        let put = server.send("PUT", &object, damage);
        assert!(put.contains("200 OK"), "{put}");
        let other = server.store(&dir.path().join(format!("other-{n}"))).await;
        let told = other.get(&digest).await.unwrap_err().to_string();
        assert!(told.contains("damaged") && told.contains("push it again"), "{told}");
        assert_eq!(one.get(&digest).await.unwrap(), bytes, "its copy is whole");
        assert_eq!(one.put(&digest, bytes.clone()).await.unwrap(), Put::Replaced);
        assert_eq!(other.get(&digest).await.unwrap(), bytes);
    }
    // A copy that rots is fetched again.
    let copy = dir.path().join("1/module-copies").join(digest.to_hex());
    std::fs::write(&copy, b"rotten").unwrap();
    assert_eq!(one.get(&digest).await.unwrap(), bytes);
    assert_eq!(std::fs::read(&copy).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_in_time_and_leaves_nothing_half() {
    let mut server = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let store = server.store(dir.path()).await;
    let (kept, kept_bytes) = component(100_000, 1);
    store.put(&kept, kept_bytes.clone()).await.unwrap();
    // It dies while the parts are on their way.
    let (digest, bytes) = component(60 << 20, 9);
    let upload = tokio::spawn({
        let (store, bytes) = (store.clone(), bytes.clone());
        async move { store.put(&digest, bytes).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    server.kill();
    let began = Instant::now();
    let told = upload.await.unwrap().expect_err("the server is dead").to_string();
    assert!(told.contains("s3://bees/prod/eu") && !told.contains(SECRET), "{told}");
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    // What this node has, it has.
    assert_eq!(store.get(&kept).await.unwrap(), kept_bytes);
    let told = store.remove(&digest).await.unwrap_err().to_string();
    assert!(told.contains("nobody listens there"), "{told}");
    // It is back, and has forgotten everything: no half module is there, and a push stores it whole.
    let server = S3::start_at(server.port, &[]);
    let told = store.get(&digest).await.unwrap_err().to_string();
    assert!(told.contains("not in the module store"), "{told}");
    assert_eq!(store.put(&digest, bytes.clone()).await.unwrap(), Put::Created);
    let other = server.store(&dir.path().join("other")).await;
    assert_eq!(other.get(&digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_probe_leaves_nothing_behind() {
    let server = S3::start();
    let place = Place::open(&place("bees"), Path::new("/nowhere"), server.access()).unwrap();
    let took = probe(&place).await.unwrap();
    assert!(took.create > Duration::ZERO && took.delete > Duration::ZERO, "{took:?}");
    let list = server.send("GET", "/bees?list-type=2", b"");
    assert!(list.contains("<KeyCount>0<"), "{list}");
}

#[test]
fn a_store_that_cannot_be_used_is_refused_at_the_start() {
    let server = S3::start();
    let closed = S3::start_at(free_port(), &[("INITIAL_NO_AUTH_ACTION_COUNT", "1")]);
    // Takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let with = |name: &'static str, value: &str| {
        let mut env = server.env();
        env.retain(|(n, _)| *n != name);
        env.push((name, value.to_owned()));
        env
    };
    let mut hanging = environment(&silent);
    hanging.push(("AWS_READ_TIMEOUT", "1 s".to_owned()));
    let nowhere = environment("http://127.0.0.1:1");
    for (bucket, env, what, remedy) in [
        ("other", server.env(), "there is no such bucket", "make it"),
        ("bees", nowhere, "nobody listens there", "AWS_ENDPOINT_URL"),
        ("bees", hanging, "no answer in time", "AWS_ENDPOINT_URL"),
        (
            "bees",
            closed.env(),
            "the credentials are not accepted",
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            "bees",
            with("AWS_ALLOW_HTTP", "false"),
            "plain HTTP is not allowed",
            "AWS_ALLOW_HTTP",
        ),
        (
            "bees",
            with("AWS_ENDPOINT_URL", &format!("https://127.0.0.1:{}", server.port)),
            "TLS does not come about",
            "http:// does not",
        ),
        (
            "bees",
            with("AWS_ENDPOINT_URL", "http://no.such.host.invalid"),
            "there is no such host",
            "AWS_ENDPOINT_URL",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let mut start = Start::new(dir.path()).env("SKEP_ARTIFACTS", format!("s3://{bucket}/prod"));
        start.env.extend(env);
        let told = start.try_start().map(|_| ()).expect_err("it starts");
        assert!(told.contains(what) && told.contains(remedy), "{what}: {told}");
        assert!(!told.contains(SECRET), "{told}");
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{what}: {:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_cache_finds_its_modules_on_s3() {
    const ECHO: &str = "
name: echo-swarm
bees:
  - { name: echo, module: test-bees, input: { gateway: echo-it } }
";
    let server = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let mut start = Start::new(dir.path()).env("SKEP_ARTIFACTS", "s3://bees/prod");
        start.env.extend(server.env());
        start.start()
    };
    let node = start();
    push(&mut node.keeper().await, "test-bees", "latest", test_bees())
        .await
        .unwrap();
    apply(&mut node.keeper().await, ECHO).await.unwrap();
    assert!(!dir.path().join("modules").exists(), "they are elsewhere");
    node.kill();
    for lost in ["cache", "module-copies"] {
        std::fs::remove_dir_all(dir.path().join(lost)).unwrap();
    }
    let node = start();
    let answer = request(&mut node.gateway().await, "echo-it", "from afar")
        .await
        .unwrap();
    assert_eq!(response(&answer), "from afar");
    assert!(!node.stderr().contains(SECRET), "{}", node.stderr());
    node.cli_ok(&["delete", "echo-swarm"]);
    node.cli_ok(&["delete-module", "test-bees"]);
    let list = server.send("GET", "/bees?list-type=2", b"");
    // The mark of whose it is stays.
    assert!(list.contains("<KeyCount>1<") && list.contains("prod/owner"), "{list}");
    drop(node);

    // Another platform in the same place would take these modules for its own leftovers.
    let other = tempfile::tempdir().unwrap();
    let second = || {
        let mut start = Start::new(other.path()).env("SKEP_ARTIFACTS", "s3://bees/prod");
        start.env.extend(server.env());
        start.try_start()
    };
    let why = second().err().expect("it is refused");
    assert!(
        why.contains("s3://bees/prod holds the modules of another platform")
            && why.contains("delete the object `owner`"),
        "{why}"
    );
    // On purpose, as it says.
    server.send("DELETE", "/bees/prod/owner", b"");
    drop(second().expect("it starts"));
}
