//! Tenants, tokens and roles at a running node: what each may, and what an attacker gets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use skep_model::access::Role;
use skep_proto::v1;
use skep_proto::v1::access_client::AccessClient;
use skep_proto::v1::peer_client::PeerClient;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::cluster::{Cluster, in_step_as};
use crate::node::{Node, SKEP, SOON, Start, test_bees, upload};

/// Two Swarms of the same names as any other tenant may have.
pub const ORDERS: &str = "
name: orders
bees:
  - { name: count, module: test-bees, bee: effect, key: message, state: true, input: { gateway: orders } }
";
const HUSH: &str = "
name: hush
bees:
  - { name: rascal, module: test-bees, input: { gateway: hush }, retry: { attempts: 1 } }
";

const SPOKEN: &str = "
name: spoken
bees:
  - { name: parrot, module: test-bees, input: { gateway: spoken }, timeout: 60s }
";

/// A message that shows a token.
pub fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let shown = format!("Bearer {token}").parse().expect("ASCII");
    request.metadata_mut().insert("authorization", shown);
    request
}

impl Node {
    /// The CLI, with a token.
    pub fn cli_as(&self, token: &str, args: &[&str]) -> Output {
        Command::new(SKEP)
            .args(args)
            .env("SKEP_NODE", &self.url)
            .env("SKEP_TOKEN", token)
            .stdin(Stdio::null())
            .output()
            .expect("run skep")
    }

    /// It must succeed. Returns stdout.
    pub fn cli_ok_as(&self, token: &str, args: &[&str]) -> String {
        let output = self.cli_as(token, args);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "skep {args:?}: {}\n{err}", output.status);
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    /// The first operator's token, as somebody on this machine makes it.
    pub fn bootstrap(&self) -> String {
        self.cli_ok(&["token", "bootstrap"]).trim().to_owned()
    }

    /// A token for a tenant, which is made if it is not there.
    pub fn token(&self, operator: &str, tenant: &str, role: &str) -> String {
        if tenant != "default" {
            self.cli_as(operator, &["tenant", "create", tenant]);
        }
        self.cli_ok_as(operator, &["token", "create", "--tenant", tenant, "--role", role])
    }
}

pub async fn push_as(node: &Node, token: &str, name: &str) -> Result<v1::PushModuleReply, Status> {
    let wasm = test_bees();
    let parts = upload(name, "latest", wasm, wasm.len() as u64, "");
    let pushed = node
        .keeper()
        .await
        .push_module(with(token, tokio_stream::iter(parts)))
        .await;
    pushed.map(tonic::Response::into_inner)
}

pub async fn apply_as(node: &Node, token: &str, manifest: &str) -> Result<v1::ApplySwarmReply, Status> {
    let call = v1::ApplySwarmRequest {
        manifest: manifest.to_owned(),
        ..v1::ApplySwarmRequest::default()
    };
    let applied = node.keeper().await.apply_swarm(with(token, call)).await;
    applied.map(tonic::Response::into_inner)
}

pub async fn ask_as(node: &Node, token: &str, subject: &str, key: &str) -> Result<String, Status> {
    let call = v1::RequestCall {
        subject: subject.to_owned(),
        payload: b"x".to_vec().into(),
        key: Some(key.to_owned()),
        ..v1::RequestCall::default()
    };
    let reply = node.gateway().await.request(with(token, call)).await?.into_inner();
    Ok(crate::node::response(&reply))
}

fn id(token: &str) -> &str {
    token.split('_').nth(1).expect("an id")
}

/// What a plain HTTP client is told.
fn http(node: &Node, path: &str, headers: &[&str]) -> (u16, String) {
    let mut stream = TcpStream::connect(node.url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut text = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1\r\n");
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    text.push_str("\r\nx");
    // A refusal may come before all is sent.
    let _ = stream.write_all(text.as_bytes());
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let all = String::from_utf8_lossy(&all).into_owned();
    let status = all.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, all.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_share_a_node_and_see_nothing_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let (acme, globex, third) = (
        node.token(&operator, "acme", "admin"),
        node.token(&operator, "globex", "admin"),
        node.token(&operator, "third", "admin"),
    );
    let digest = push_as(&node, &acme, "test-bees").await.unwrap().digest;
    let other = push_as(&node, &globex, "test-bees").await.unwrap();
    assert!(!other.known, "that somebody else has it is nobody's business");
    for token in [&acme, &globex] {
        apply_as(&node, token, ORDERS).await.unwrap();
    }
    apply_as(&node, &acme, HUSH).await.unwrap();
    for (token, times) in [(&acme, 3), (&globex, 1)] {
        for n in 1..=times {
            assert_eq!(ask_as(&node, token, "orders", "k").await.unwrap(), n.to_string());
        }
    }
    let submitted = node.cli_as(&acme, &["submit", "hush", "fail"]);
    assert!(submitted.status.success());
    let until = Instant::now() + SOON;
    while !node
        .cli_ok_as(&acme, &["dlq", "hush", "list", "-o", "json"])
        .contains("\"id\"")
    {
        assert!(Instant::now() < until, "no dead letter");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What each of them sees.
    assert!(node.cli_ok_as(&acme, &["swarms"]).contains("hush"));
    assert!(!node.cli_ok_as(&globex, &["swarms"]).contains("hush"));
    let bees = node.cli_ok_as(&globex, &["bees", "-o", "json"]);
    assert!(bees.contains("orders") && !bees.contains("hush"), "{bees}");
    assert!(node.cli_ok_as(&third, &["bees"]).contains("no modules yet"));
    // A name that another has is answered as one that nobody has.
    for (args, name) in [
        (&["describe", "NAME"][..], "hush"),
        (&["logs", "NAME"], "hush"),
        (&["dlq", "NAME"], "hush"),
        (&["dlq", "NAME", "show", "1"], "hush"),
        (&["state", "NAME", "rascal", "k"], "hush"),
        (&["delete", "NAME", "--discard"], "hush"),
        (&["pause", "NAME"], "hush"),
        (&["scale", "NAME/count", "--partitions", "2"], "orders"),
        (&["request", "NAME", "x"], "orders"),
        (&["submit", "NAME", "x"], "orders"),
        (&["delete-module", "NAME"], "test-bees"),
    ] {
        let told = |name: &str| {
            let args: Vec<String> = args.iter().map(|arg| arg.replace("NAME", name)).collect();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = node.cli_as(&third, &args);
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code(), err.replace(name, "NAME"))
        };
        let (of_others, of_nobody) = (told(name), told("nowhere"));
        assert_eq!(of_others, of_nobody, "{args:?}");
        assert_eq!(of_others.0, Some(4), "{args:?}: {}", of_others.1);
    }
    // Nor by a digest, nor by a path.
    for module in [
        format!("test-bees@{digest}"),
        format!("mine@{digest}"),
        "acme/test-bees".to_owned(),
    ] {
        let manifest = ORDERS.replace("module: test-bees", &format!("module: \"{module}\""));
        let refused = apply_as(&node, &third, &manifest).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    for odd in [
        "acme/orders",
        "../acme/orders",
        "..",
        "acme%2Forders",
        "{acme}",
        "orders\u{0}",
        "оrders",
        "*",
        "acme:orders",
    ] {
        let mut keeper = node.keeper().await;
        let described = keeper.describe_swarm(with(
            &third,
            v1::DescribeSwarmRequest {
                name: odd.to_owned(),
                count_keys: false,
            },
        ));
        assert_eq!(described.await.unwrap_err().code(), Code::InvalidArgument, "{odd}");
        let asked = ask_as(&node, &third, odd, "k").await.unwrap_err();
        assert!(
            matches!(asked.code(), Code::NotFound | Code::InvalidArgument),
            "{odd}: {asked}"
        );
    }
    // The tokens of others are not there either.
    let unknown = node.cli_as(&globex, &["token", "revoke", "0123456789ab"]);
    for args in [["token", "revoke", id(&acme)], ["token", "rotate", id(&operator)]] {
        let told = node.cli_as(&globex, &args);
        assert_eq!(
            (told.status.code(), &told.stderr),
            (Some(4), &unknown.stderr),
            "{args:?}"
        );
    }
    assert!(!node.cli_ok_as(&globex, &["token", "list"]).contains(id(&acme)));
    for tenant in ["acme", "nowhere"] {
        let told = node.cli_as(&globex, &["token", "create", "--tenant", tenant, "--role", "read"]);
        assert_eq!(told.status.code(), Some(4));
    }
    assert_eq!(
        node.cli_as(&globex, &["token", "create", "--role", "operator"])
            .status
            .code(),
        Some(3)
    );
    assert_eq!(node.cli_as(&globex, &["nodes"]).status.code(), Some(3));
    // Whom the numbers are of.
    let metrics = reqwest_text(&format!("{}/metrics", node.admin));
    for tenant in ["acme", "globex"] {
        assert!(
            metrics.contains(&format!("tenant=\"{tenant}\",swarm=\"orders\"")),
            "{metrics}"
        );
    }
    // All of it is there after a start, and closed.
    assert!(node.stop().success());
    node = Start::new(dir.path()).start();
    assert_eq!(ask_as(&node, &globex, "orders", "k").await.unwrap(), "2");
    assert_eq!(node.cli(&["swarms"]).status.code(), Some(3));
    // A tenant goes with all that it has, and no other.
    let refused = node.cli_as(&operator, &["tenant", "delete", "acme"]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("2 Swarms, 1 module and 0 models"));
    assert_eq!(ask_as(&node, &acme, "orders", "k").await.unwrap(), "4");
    node.cli_ok_as(&operator, &["tenant", "delete", "acme", "--purge"]);
    assert_eq!(
        ask_as(&node, &acme, "orders", "k").await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert_eq!(ask_as(&node, &globex, "orders", "k").await.unwrap(), "3");
    let again = node.token(&operator, "acme", "admin");
    assert!(node.cli_ok_as(&again, &["swarms"]).contains("no Swarms yet"));
    push_as(&node, &again, "test-bees").await.unwrap();
    apply_as(&node, &again, ORDERS).await.unwrap();
    assert_eq!(
        ask_as(&node, &again, "orders", "k").await.unwrap(),
        "1",
        "nothing of the former one is left"
    );
}

pub fn reqwest_text(url: &str) -> String {
    let address = url.trim_start_matches("http://").split('/').next().unwrap().to_owned();
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all
}

/// An empty message to a method, whatever it takes.
async fn call_empty(node: &Node, path: &str, token: Option<&str>) -> Code {
    let mut grpc = tonic::client::Grpc::new(node.channel().await);
    grpc.ready().await.expect("ready");
    let request = match token {
        Some(token) => with(token, ()),
        None => Request::new(()),
    };
    let path = path.parse().expect("a path");
    let answered = tokio::time::timeout(SOON, grpc.unary(request, path, ProstCodec::<(), ()>::default())).await;
    match answered.expect("an answer") {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_takes_who_may_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let tokens = Role::ALL.map(|role| match role {
        Role::Operator => operator.clone(),
        role => node.token(&operator, "acme", role.as_str()),
    });
    let set = FileDescriptorSet::decode(skep_proto::DESCRIPTOR).unwrap();
    let mut tried = 0;
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let need = skep_gateway::door::needs::listed(&path).expect("listed").need;
                if need == skep_gateway::door::needs::Need::Nothing {
                    // Edges' own calls: a secret or a proof in the message stands for a token, and this one has none.
                    assert!(path.starts_with("/skep.v1.Edges/"), "{path}");
                    let code = call_empty(&node, &path, None).await;
                    assert!(
                        matches!(code, Code::FailedPrecondition | Code::InvalidArgument),
                        "{path}: {code:?}"
                    );
                    tried += 1;
                    continue;
                }
                assert_eq!(call_empty(&node, &path, None).await, Code::Unauthenticated, "{path}");
                for (role, token) in Role::ALL.into_iter().zip(&tokens) {
                    use skep_gateway::door::needs::Need;
                    let code = call_empty(&node, &path, Some(token)).await;
                    match need {
                        Need::Node => assert_eq!(code, Code::Unauthenticated, "{path} {role}"),
                        Need::Role(needed) if !role.covers(needed) => {
                            assert_eq!(code, Code::PermissionDenied, "{path} {role}");
                        }
                        _ => assert!(
                            !matches!(code, Code::PermissionDenied | Code::Unauthenticated),
                            "{path} {role}: {code}"
                        ),
                    }
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 150, "{tried}");
    // A method that is not there is nobody's but the operator's.
    let unknown = "/skep.v1.Beekeeper/Nothing";
    assert_eq!(
        call_empty(&node, unknown, Some(&tokens[3])).await,
        Code::PermissionDenied
    );
    assert_eq!(call_empty(&node, unknown, Some(&operator)).await, Code::Unimplemented);
    // Where the node keeps things is not for tenants.
    let told = node
        .keeper()
        .await
        .node(with(&tokens[1], v1::NodeRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert!(told.data.is_empty() && told.backend.is_empty() && !told.version.is_empty());
    // Health is everybody's.
    assert_eq!(call_empty(&node, "/grpc.health.v1.Health/Check", None).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_token_gets_one_answer() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let revoked = node.token(&operator, "acme", "invoke");
    node.cli_ok_as(&operator, &["token", "revoke", id(&revoked)]);
    let short = node.cli_ok_as(
        &operator,
        &["token", "create", "--tenant", "acme", "--role", "invoke", "--ttl", "1s"],
    );
    let good = node.token(&operator, "acme", "invoke");
    assert_eq!(
        http(&node, "/v1/orders", &[&format!("authorization: Bearer {good}")]).0,
        404
    );
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let (status, text) = http(&node, "/v1/orders", &[]);
    assert_eq!(status, 401, "{text}");
    let mut bad = vec![
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Basic {good}"),
        format!("bearer  {good}"),
        good.clone(),
        format!("Bearer {revoked}"),
        format!("Bearer {short}"),
        format!("Bearer {}", good.to_uppercase()),
        format!("Bearer {good}\u{430}"),
        format!("Bearer {}", &good[..good.len() - 1]),
        format!("Bearer {good}, Bearer {good}"),
        "Bearer ../../etc/passwd".to_owned(),
        "Bearer skep_000000000000_{}_00000000".to_owned(),
        format!("Skep-Node 0:{}", "0".repeat(64)),
    ];
    // Forged: every tenth digit is another.
    for at in (5..good.len()).step_by(10) {
        let mut forged = good.clone().into_bytes();
        forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
        bad.push(format!("Bearer {}", String::from_utf8(forged).unwrap()));
    }
    for value in &bad {
        let answer = http(&node, "/v1/orders", &[&format!("authorization: {value}")]);
        assert_eq!(answer, (401, text.clone()), "{value}");
    }
    let twice = format!("authorization: Bearer {good}");
    assert_eq!(http(&node, "/v1/orders", &[&twice, &twice]), (401, text.clone()));
    // A megabyte is not read to its end.
    let (status, _) = http(
        &node,
        "/v1/orders",
        &[&format!("authorization: Bearer {}", "x".repeat(1 << 20))],
    );
    assert!(matches!(status, 0 | 400 | 431), "{status}");
    // Unknown paths and methods are closed as well; health is not.
    for path in ["/", "/v2/orders", "/metrics", "/v1", "//v1/orders"] {
        assert_eq!(http(&node, path, &[]).0, 401, "{path}");
    }
    assert_eq!(
        http(&node, "/v1/orders", &[&format!("authorization: Bearer {good}")]).0,
        404
    );
    assert_eq!(http(&node, "/healthz", &[]).0, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_with_their_token() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let deploy = node.token(&operator, "acme", "deploy");
    push_as(&node, &deploy, "test-bees").await.unwrap();
    apply_as(&node, &deploy, ORDERS).await.unwrap();
    apply_as(&node, &deploy, SPOKEN).await.unwrap();
    let (read, invoke, stays) = (
        node.token(&operator, "acme", "read"),
        node.token(&operator, "acme", "invoke"),
        node.token(&operator, "acme", "invoke"),
    );
    let logs = v1::LogsRequest {
        swarm: "orders".to_owned(),
        follow: true,
        ..v1::LogsRequest::default()
    };
    let mut logs = node.keeper().await.logs(with(&read, logs)).await.unwrap().into_inner();
    let mut calls = Vec::new();
    for token in [&invoke, &stays] {
        let (send, calling) = tokio::sync::mpsc::channel(4);
        let stream = tokio_stream::wrappers::ReceiverStream::new(calling);
        let answers = node
            .gateway()
            .await
            .requests(with(token, stream))
            .await
            .unwrap()
            .into_inner();
        calls.push((send, answers));
    }
    let call = |id| v1::RequestCall {
        id,
        subject: "orders".to_owned(),
        key: Some("k".to_owned()),
        ..v1::RequestCall::default()
    };
    for (send, answers) in &mut calls {
        send.send(call(1)).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().id, 1);
    }
    node.cli_ok_as(&operator, &["token", "revoke", id(&read)]);
    let ended = tokio::time::timeout(SOON, logs.message()).await.expect("it ends");
    assert_eq!(ended.unwrap_err().code(), Code::Unauthenticated);
    // Rotated: the former secret is good for a second more.
    let next = node.cli_ok_as(&operator, &["token", "rotate", id(&invoke), "--grace", "1s"]);
    assert!(ask_as(&node, &next, "orders", "k").await.is_ok());
    assert!(ask_as(&node, &invoke, "orders", "k").await.is_ok());
    let (_send, answers) = &mut calls[0];
    let ended = tokio::time::timeout(SOON, answers.message()).await.expect("it ends");
    assert_eq!(ended.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(
        ask_as(&node, &invoke, "orders", "k").await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert!(ask_as(&node, &next, "orders", "k").await.is_ok());
    // Another's goes on.
    let (send, answers) = &mut calls[1];
    send.send(call(2)).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().id, 2);
    // Server-sent events break off in the middle.
    let events = node.token(&operator, "acme", "invoke");
    let mut socket = TcpStream::connect(node.url.trim_start_matches("http://")).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let body = r#"{"parts":3000,"sleep_ms":20}"#;
    let head = format!(
        "POST /v1/spoken HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nskep-timeout-ms: 60000\r\nauthorization: Bearer {events}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut first = [0; 16];
    socket.read_exact(&mut first).unwrap();
    assert!(
        first.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&first)
    );
    node.cli_ok_as(&operator, &["token", "revoke", id(&events)]);
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("data: 0;") && !rest.contains("event: "), "{rest}");
    // Rotated without grace, the former ends at once.
    let last = node.cli_ok_as(&operator, &["token", "rotate", id(&next)]);
    assert_eq!(
        ask_as(&node, &next, "orders", "k").await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert!(ask_as(&node, &last, "orders", "k").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_token_is_made_once_and_the_last_operator_stays() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    assert!(node.cli_ok(&["whoami"]).contains("no token was ever made"));
    // Nothing to be had by tenants as long as everybody may do everything.
    assert_eq!(node.cli(&["tenant", "create", "acme"]).status.code(), Some(5));
    assert_eq!(node.cli(&["token", "create", "--role", "read"]).status.code(), Some(5));
    let mut at_once = Vec::new();
    for _ in 0..8 {
        let channel = node.channel().await;
        at_once.push(tokio::spawn(async move {
            AccessClient::new(channel).bootstrap(v1::BootstrapRequest {}).await
        }));
    }
    let mut made = Vec::new();
    for one in at_once {
        match one.await.unwrap() {
            Ok(token) => made.push(token.into_inner().text),
            Err(e) => assert!(
                matches!(e.code(), Code::FailedPrecondition | Code::Unauthenticated),
                "{e}"
            ),
        }
    }
    assert_eq!(made.len(), 1, "one of them");
    let operator = &made[0];
    assert!(node.cli_ok_as(operator, &["whoami"]).contains("operator"));
    let last = node.cli_as(operator, &["token", "revoke", id(operator)]);
    assert_eq!(last.status.code(), Some(5));
    let rotated = node.cli_ok_as(operator, &["token", "rotate", id(operator)]);
    assert_eq!(node.cli_as(operator, &["whoami"]).status.code(), Some(3));
    let second = node.cli_ok_as(&rotated, &["token", "create", "--role", "operator", "--name", "second"]);
    node.cli_ok_as(&second, &["token", "revoke", id(operator)]);
    assert_eq!(node.cli_as(&rotated, &["whoami"]).status.code(), Some(3));
    assert!(node.cli_ok_as(&second, &["token", "list"]).contains("second"));
    // Words that are none.
    for args in [
        &["tenant", "create", "../x"][..],
        &["tenant", "create", "{acme}"],
        &["tenant", "create", "аcme"],
        &["token", "create", "--role", "root"],
        &["token", "create", "--role", "operator", "--tenant", "acme"],
        &["tenant", "delete", "default"],
    ] {
        assert_eq!(node.cli_as(&second, args).status.code(), Some(3), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_holds_all_tenants_and_no_token() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = from.path().join("all.skep").display().to_string();
    let node = Start::new(&from.path().join("data")).start();
    let operator = node.bootstrap();
    for tenant in ["acme", "globex"] {
        let token = node.token(&operator, tenant, "deploy");
        push_as(&node, &token, "test-bees").await.unwrap();
        apply_as(&node, &token, ORDERS).await.unwrap();
        ask_as(&node, &token, "orders", tenant).await.unwrap();
    }
    let acme = node.token(&operator, "acme", "deploy");
    assert_eq!(node.cli_as(&acme, &["backup", &file]).status.code(), Some(3));
    node.cli_ok_as(&operator, &["backup", &file]);
    let held = std::fs::read(&file).unwrap();
    let hidden = acme.split('_').nth(2).unwrap().as_bytes();
    assert!(!held.windows(hidden.len()).any(|w| w == hidden));
    assert!(!held.windows(6).any(|w| w == b"token/"));
    let other = Start::new(to.path()).start();
    let second = other.bootstrap();
    other.cli_ok_as(&second, &["restore", &file]);
    for tenant in ["acme", "globex"] {
        let token = other.cli_ok_as(&second, &["token", "create", "--tenant", tenant, "--role", "deploy"]);
        assert_eq!(ask_as(&other, &token, "orders", tenant).await.unwrap(), "2");
        let strange = if tenant == "acme" { "globex" } else { "acme" };
        assert_eq!(ask_as(&other, &token, "orders", strange).await.unwrap(), "1");
    }
    assert_eq!(
        ask_as(&other, &acme, "orders", "acme").await.unwrap_err().code(),
        Code::Unauthenticated
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_makes_and_revokes_the_others_hear() {
    let cluster = Cluster::new();
    let nodes = [cluster.start(1), cluster.start(2)];
    let operator = nodes[0].bootstrap();
    let soon = async |what: &str, node: &Node, token: &str, args: &[&str], code: i32| {
        let until = Instant::now() + SOON;
        while node.cli_as(token, args).status.code() != Some(code) {
            assert!(Instant::now() < until, "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the door closes", &nodes[1], &operator, &["whoami"], 0).await;
    assert_eq!(nodes[1].cli(&["swarms"]).status.code(), Some(3));
    let deploy = nodes[0].token(&operator, "acme", "deploy");
    soon("it is known", &nodes[1], &deploy, &["swarms"], 0).await;
    push_as(&nodes[0], &deploy, "test-bees").await.unwrap();
    apply_as(&nodes[0], &deploy, ORDERS).await.unwrap();
    in_step_as(&nodes[1], 2, &operator).await;
    for n in 1..=4 {
        let token = &deploy;
        let asked = ask_as(&nodes[n % 2], token, "orders", "k").await.unwrap();
        assert_eq!(asked, n.to_string());
    }
    // Both are asked what they counted, and know each other.
    for node in &nodes {
        let call = v1::DescribeSwarmRequest {
            name: "orders".to_owned(),
            count_keys: false,
        };
        let told = node
            .keeper()
            .await
            .describe_swarm(with(&deploy, call))
            .await
            .unwrap()
            .into_inner();
        assert!(told.missing.is_empty(), "{:?}", told.missing);
        assert_eq!(told.stages[0].processed, 4);
        // Nobody else is told.
        let call = v1::CountsRequest {
            swarm: "acme/orders".to_owned(),
        };
        for request in [Request::new(call.clone()), with(&operator, call)] {
            let refused = PeerClient::new(node.channel().await).counts(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated);
        }
    }
    nodes[0].cli_ok_as(&operator, &["token", "revoke", id(&deploy)]);
    soon("it is revoked", &nodes[1], &deploy, &["swarms"], 3).await;
    for node in nodes {
        assert!(node.stop().success());
    }
}
