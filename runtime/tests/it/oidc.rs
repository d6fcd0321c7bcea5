//! Tokens of an OpenID provider at a running node: `oidc-provider`, as it is, and whatever an attacker makes of its tokens.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use skep_model::limits::{OIDC_REFRESH_LEAST_MS, OIDC_TOKEN_BYTES_MAX, OIDC_WAITERS_MAX};
use skep_proto::v1;
use skep_proto::v1::access_client::AccessClient;
use tonic::{Code, Status};

use crate::access::{ORDERS, apply_as, ask_as, push_as, with};
use crate::node::{Node, SOON, Start};

/// A provider of a test's own.
struct Provider {
    issuer: String,
    port: u16,
    child: Child,
}

impl Provider {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// With the files of a certificate and its key: by TLS.
    fn start_with(tls: &[&Path]) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools/oidc");
        let program = folder.join("provider.js");
        assert!(
            program.exists(),
            "there is no OpenID provider at {}: run `ci/tools oidc`",
            program.display()
        );
        // Seen once: two that started at the same moment on a busy machine stood still before their first line, all threads waiting for each other.
        for _ in 0..3 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut child = Command::new("node")
                .arg(&program)
                .arg(port.to_string())
                .args(tls)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("run node");
            let out = child.stdout.take().unwrap();
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut line = String::new();
                let read = BufReader::new(out).read_line(&mut line);
                let _ = tell.send(read.map(|_| line));
            });
            if let Ok(line) = told.recv_timeout(SOON) {
                let issuer = line.expect("the provider's first line").trim().to_owned();
                assert!(!issuer.is_empty(), "the provider ended at once");
                return Self { issuer, port, child };
            }
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
        panic!("the provider does not start");
    }

    /// One call in the clear. What was answered, without its head.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let mut conn = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nhost: 127.0.0.1:{}\r\n{headers}content-length: {length}\r\n\r\n",
            self.port
        );
        conn.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        conn.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").expect("a whole answer").1.to_owned()
    }

    /// A token of this algorithm; what is said of it is a form's fields.
    fn token(&self, algorithm: &str, fields: &str) -> String {
        let client = base64::engine::general_purpose::STANDARD.encode("ci:secret");
        let headers = format!("authorization: Basic {client}\r\ncontent-type: application/x-www-form-urlencoded\r\n");
        let body = format!("grant_type=client_credentials&scope={algorithm}&{fields}");
        let answer = self.send("POST", "/token", &headers, &body);
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
        answer["access_token"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    /// Signs by a new key from now on, and drops all others.
    fn rotate(&self, algorithm: &str) {
        self.send("POST", "/keys/ONLY", "", algorithm);
    }

    fn readings(&self) -> u64 {
        self.send("GET", "/readings", "", "").parse().unwrap()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn trusting(dir: &Path, issuer: &str) -> Start {
    Start::new(&dir.join("data"))
        .env("SKEP_BOOTSTRAP_TOKEN", dir.join("operator.token").display().to_string())
        .env("SKEP_OIDC_ISSUER", issuer)
        .env("SKEP_OIDC_AUDIENCE", "skep")
}

fn operator(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("operator.token"))
        .unwrap()
        .trim()
        .to_owned()
}

async fn who(node: &Node, token: &str) -> Result<v1::WhoAmIReply, Status> {
    let mut access = AccessClient::new(node.channel().await);
    let reply = access.who_am_i(with(token, v1::WhoAmIRequest {})).await;
    reply.map(tonic::Response::into_inner)
}

/// The code with which somebody is not let in.
async fn refused(node: &Node, token: &str) -> Code {
    who(node, token).await.expect_err("it is let in").code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_provider_let_in_by_their_claims() {
    let dir = tempfile::tempdir().unwrap();
    let provider = Provider::start();
    let node = trusting(dir.path(), &provider.issuer)
        .env("SKEP_OIDC_ROLE_CLAIM", "/roles")
        .start();
    let operator = operator(dir.path());
    node.cli_ok_as(&operator, &["tenant", "create", "acme"]);
    node.cli_ok_as(&operator, &["tenant", "create", "zeta"]);

    // Whoever deploys does it with every algorithm; whoever calls sees the own tenant only.
    let deploy = provider.token("ES256", "tenant=acme&roles=staff%20deploy");
    push_as(&node, &deploy, "test-bees").await.unwrap();
    apply_as(&node, &deploy, ORDERS).await.unwrap();
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let invoke = provider.token(algorithm, "tenant=acme&roles=invoke");
        ask_as(&node, &invoke, "orders", "k").await.unwrap();
        let who = who(&node, &invoke).await.unwrap();
        assert_eq!(
            (who.open, who.tenant.as_str(), who.role.as_str()),
            (false, "acme", "invoke")
        );
        let identity = who.identity.unwrap();
        assert_eq!((identity.subject.as_str(), identity.name.as_str()), ("ci", "a client"));
        assert!(who.token.is_none() && identity.expires_ms > 0);
    }
    let other = provider.token("RS256", "tenant=zeta&roles=invoke");
    assert_eq!(
        ask_as(&node, &other, "orders", "k").await.unwrap_err().code(),
        Code::NotFound
    );
    let read = provider.token("RS256", "tenant=acme&roles=read");
    assert_eq!(
        ask_as(&node, &read, "orders", "k").await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        push_as(&node, &read, "test-bees").await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // Of no tenant that there is, of none at all, without a role, and an operator whom nobody here has mapped.
    for (fields, said) in [
        ("tenant=nobody&roles=invoke", "skep tenant create"),
        ("roles=invoke", "`tenant`"),
        ("tenant=default&roles=admin", "`tenant`"),
        ("tenant=acme", "`/roles`"),
        ("tenant=acme&roles=operator", "`/roles`"),
    ] {
        let status = who(&node, &provider.token("RS256", fields)).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains(said), "{fields}: {status}");
    }
    // Beside the platform's own tokens; and such a token may make others.
    let own = node.token(&operator, "acme", "invoke");
    ask_as(&node, &own, "orders", "k").await.unwrap();
    let admin = provider.token("RS256", "tenant=acme&roles=admin");
    node.cli_ok_as(&admin, &["token", "create", "--role", "read", "--name", "by-oidc"]);
    let list = node.cli_ok_as(&admin, &["token", "list", "-o", "json"]);
    assert!(list.contains("oidc:ci"), "who made it: {list}");

    // As people see it: whoami, a login that is kept, the audit.
    let shown = node.cli_ok_as(&deploy, &["whoami"]);
    assert!(
        shown.contains("tenant acme, role deploy, by OpenID subject ci (a client), until "),
        "{shown}"
    );
    let shown: Value = serde_json::from_str(&node.cli_ok_as(&deploy, &["whoami", "-o", "json"])).unwrap();
    assert_eq!(
        (&shown["identity"]["subject"], &shown["token"]),
        (&json!("ci"), &Value::Null)
    );
    let mut login = node.command(&["login", &node.url]);
    login
        .env("XDG_CONFIG_HOME", dir.path())
        .env_remove("SKEP_TOKEN")
        .stdin(Stdio::piped());
    let mut login = login.stdout(Stdio::null()).spawn().unwrap();
    login.stdin.take().unwrap().write_all(deploy.as_bytes()).unwrap();
    assert!(login.wait().unwrap().success());
    let mut whoami = node.command(&["whoami"]);
    let kept = whoami
        .env("XDG_CONFIG_HOME", dir.path())
        .env_remove("SKEP_TOKEN")
        .env_remove("SKEP_NODE")
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&kept.stdout).contains("OpenID subject ci"),
        "{kept:?}"
    );
    let audit = node.cli_ok_as(&operator, &["audit", "list", "--tenant", "acme"]);
    assert!(
        audit.contains("oidc:ci (a client)") && audit.contains("ApplySwarm"),
        "{audit}"
    );
    // Nothing of a token is said anywhere.
    assert!(!audit.contains(&deploy[..40]) && !node.stderr().contains(&deploy[..40]));

    // A tenant that goes takes its people with it.
    node.cli_ok_as(&operator, &["tenant", "delete", "zeta"]);
    assert_eq!(refused(&node, &other).await, Code::PermissionDenied);
}

/// Header and claims, of a token.
fn parts(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| BASE64.decode(part).unwrap());
    let mut part = || serde_json::from_slice(&parts.next().unwrap()).unwrap();
    (part(), part())
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!(
        "{}.{}",
        BASE64.encode(header.to_string()),
        BASE64.encode(claims.to_string())
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_tokens_let_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let (provider, stranger) = (Provider::start(), Provider::start());
    let node = trusting(dir.path(), &provider.issuer)
        .env("SKEP_OIDC_ROLE", "ops=operator")
        .start();
    let good = provider.token("RS256", "roles=ops");
    assert_eq!(who(&node, &good).await.unwrap().role, "operator");
    let (header, claims) = parts(&good);
    let signature = good.rsplit_once('.').unwrap().1;
    let keys: Value = serde_json::from_str(&provider.send("GET", "/jwks", "", "")).unwrap();
    let rsa = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .find(|key| key["kty"] == "RSA")
        .unwrap();

    let with_alg = |alg: &str| json!({ "alg": alg, "kid": header["kid"], "typ": "at+jwt" });
    let mut forged = vec![
        ("no signature", format!("{}.", unsigned(&with_alg("none"), &claims))),
        (
            "none, in capitals",
            format!("{}.{signature}", unsigned(&with_alg("NONE"), &claims)),
        ),
        (
            "another algorithm of the same key",
            format!("{}.{signature}", unsigned(&with_alg("RS512"), &claims)),
        ),
        (
            "an algorithm of another kind of key",
            format!("{}.{signature}", unsigned(&with_alg("ES256"), &claims)),
        ),
        (
            "another's signature",
            format!(
                "{}.{}",
                unsigned(&header, &claims),
                stranger.token("RS256", "roles=ops").rsplit_once('.').unwrap().1
            ),
        ),
        (
            "for another audience",
            provider.token("RS256", "roles=ops&audience=other"),
        ),
        ("cut", good[..good.len() - 9].to_owned()),
        ("two of it", format!("{good}.{good}")),
        ("long", format!("{good}{}", "A".repeat(OIDC_TOKEN_BYTES_MAX))),
    ];
    // What everybody can read of the key, as a secret: the modulus, as bytes and as text.
    for (what, secret) in [
        (
            "HS256 by the public key",
            BASE64.decode(rsa["n"].as_str().unwrap()).unwrap(),
        ),
        ("HS256 by its text", rsa["n"].as_str().unwrap().as_bytes().to_vec()),
        ("HS256 by nothing", Vec::new()),
    ] {
        let message = unsigned(&with_alg("HS256"), &claims);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
        let tag = ring::hmac::sign(&key, message.as_bytes());
        forged.push((what, format!("{message}.{}", BASE64.encode(tag))));
    }
    for (claim, value) in [
        ("roles", json!(["ops", "x"])),
        ("exp", json!(4_000_000_000u64)),
        ("sub", json!("ann")),
        ("iss", json!(stranger.issuer)),
    ] {
        let mut other = claims.clone();
        other[claim] = value;
        forged.push((claim, format!("{}.{signature}", unsigned(&header, &other))));
    }
    for (what, token) in forged {
        assert_eq!(refused(&node, &token).await, Code::Unauthenticated, "{what}");
        assert_eq!(
            ask_as(&node, &token, "orders", "k").await.unwrap_err().code(),
            Code::Unauthenticated,
            "{what}"
        );
    }
    // A key of the token's own choosing, and where to find one: neither is looked at.
    let mut own = with_alg("RS256");
    own["jwk"] = rsa.clone();
    own["jku"] = json!(format!("{}/jwks", stranger.issuer));
    assert_eq!(
        refused(&node, &format!("{}.{signature}", unsigned(&own, &claims))).await,
        Code::Unauthenticated
    );
    assert_eq!(stranger.readings(), 0, "the node asked whom a token named");
    // Beyond what headers may have, the connection's own bound holds.
    assert!(who(&node, &"A".repeat(64 << 10)).await.is_err());
    assert_eq!(who(&node, &good).await.unwrap().role, "operator");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_read_anew_for_who_needs_them_and_no_more_often_than_that() {
    let dir = tempfile::tempdir().unwrap();
    let mut provider = Provider::start();
    let stranger = Provider::start();
    let issuer = provider.issuer.clone();
    let start = || trusting(dir.path(), &issuer).env("SKEP_OIDC_TENANT", "default=default");
    let node = start().start();
    let before = provider.token("RS256", "tenant=default&roles=read");
    assert_eq!(who(&node, &before).await.unwrap().role, "read");

    // The first token of a new key comes in, and the former key is gone.
    provider.rotate("RS256");
    let after = provider.token("RS256", "tenant=default&roles=read");
    assert_eq!(who(&node, &after).await.unwrap().role, "read");
    assert_eq!(refused(&node, &before).await, Code::Unauthenticated);

    // A flood of keys that nobody has: some wait for the keys, the others are told at once, and the provider hears of it every few seconds at most.
    let (readings, since) = (provider.readings(), Instant::now());
    let unknown = stranger.token("RS256", "tenant=default&roles=admin");
    let (_, claims) = parts(&unknown);
    let channel = node.channel().await;
    let flood: Vec<_> = (0..OIDC_WAITERS_MAX + 100)
        .map(|n| {
            let header = json!({ "alg": "RS256", "kid": format!("k{n}") });
            let token = format!("{}.{}", unsigned(&header, &claims), unknown.rsplit_once('.').unwrap().1);
            let mut access = AccessClient::new(channel.clone());
            tokio::spawn(async move { access.who_am_i(with(&token, v1::WhoAmIRequest {})).await.map(drop) })
        })
        .collect();
    // Whoever has a good token notices nothing of it.
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(who(&node, &after).await.unwrap().role, "read");
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    }
    let mut codes = [0, 0];
    for call in flood {
        match call.await.unwrap().unwrap_err().code() {
            Code::Unauthenticated => codes[0] += 1,
            Code::Unavailable => codes[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        codes[0] > 0 && codes[0] + codes[1] == OIDC_WAITERS_MAX + 100,
        "{codes:?}"
    );
    let read = provider.readings() - readings;
    let most = since.elapsed().as_millis() / u128::from(OIDC_REFRESH_LEAST_MS) + 1;
    assert!(u128::from(read) <= most, "{read} readings, at most {most}");

    // The provider is gone: what is known goes on, what is not cannot be told.
    provider.child.kill().unwrap();
    provider.child.wait().unwrap();
    assert_eq!(refused(&node, &unknown).await, Code::Unavailable);
    assert_eq!(who(&node, &after).await.unwrap().role, "read");
    // A node that starts without it serves the platform's own tokens.
    node.stop();
    let node = start().start();
    assert_eq!(refused(&node, &after).await, Code::Unavailable);
    assert_eq!(who(&node, &operator(dir.path())).await.unwrap().role, "operator");
    assert!(
        node.stderr().contains("cannot read the OpenID provider's keys"),
        "{}",
        node.stderr()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_is_read_by_tls_whom_a_file_says_and_settings_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    crate::tls::made(&certs);
    let provider = Provider::start_with(&[&certs.join("node.pem"), &certs.join("node.key")]);
    assert!(provider.issuer.starts_with("https://"));
    // No token of it is to be had here without TLS of our own: that its keys were read is told by the log.
    let ca = certs.join("ca.pem").display().to_string();
    for (env, said) in [
        (Some(ca), "read the OpenID provider's keys"),
        (None, "cannot read the OpenID provider's keys"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let start = trusting(folder.path(), &provider.issuer);
        let node = match env {
            Some(ca) => start.env("SKEP_OIDC_CA", ca).start(),
            None => start.start(),
        };
        let until = Instant::now() + SOON;
        while !node.stderr().contains(said) {
            assert!(Instant::now() < until, "{said}: {}", node.stderr());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    let fails = |start: Start, said: &str| {
        let why = start.try_start().err().expect("it starts");
        assert!(why.contains(said), "{said}: {why}");
    };
    let open = || Start::new(&dir.path().join("open"));
    // An open door beside a provider would be no door.
    fails(
        open()
            .env("SKEP_OIDC_ISSUER", &provider.issuer)
            .env("SKEP_OIDC_AUDIENCE", "skep"),
        "--bootstrap-token",
    );
    fails(open().env("SKEP_OIDC_ISSUER", &provider.issuer), "by halves");
    fails(open().env("SKEP_OIDC_AUDIENCE", "skep"), "by halves");
    fails(trusting(dir.path(), "http://id.example.com"), "https://");
    fails(
        trusting(dir.path(), &provider.issuer).env("SKEP_OIDC_ROLE", "ops=boss"),
        "ops=boss",
    );
    fails(
        trusting(dir.path(), &provider.issuer).env("SKEP_OIDC_CA", "/nowhere.pem"),
        "/nowhere.pem",
    );
}
