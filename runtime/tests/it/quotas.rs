//! What tenants are limited to, at running nodes: who goes over its limits is told so, and nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep_proto::v1;
use skep_proto::v1::access_client::AccessClient;
use tonic::{Code, Status};

use crate::access::{apply_as, ask_as, push_as, with};
use crate::cluster::{Cluster, in_step_as};
use crate::node::{Node, SOON, Start, test_bees};

const ECHO: &str = "
name: echoes
bees:
  - { name: rascal, module: test-bees, input: { gateway: echo }, retry: { attempts: 1 } }
";

/// A tenant with its limits, its Bees pushed and `manifest` applied. Returns a token of it.
async fn tenant(node: &Node, operator: &str, name: &str, limits: &[&str], manifest: &str) -> String {
    let create = [&["tenant", "create", name], limits].concat();
    node.cli_ok_as(operator, &create);
    let token = node.token(operator, name, "admin");
    push_as(node, &token, "test-bees").await.expect("push");
    apply_as(node, &token, manifest).await.expect("apply");
    token
}

async fn say(node: &Node, token: &str, payload: &str) -> Result<(), Status> {
    let call = v1::RequestCall {
        subject: "echo".to_owned(),
        payload: payload.as_bytes().to_vec().into(),
        timeout_ms: 20_000,
        ..v1::RequestCall::default()
    };
    node.gateway().await.request(with(token, call)).await.map(drop)
}

async fn submit(node: &Node, token: &str, messages: usize, bytes: usize) -> Result<v1::SubmitReply, Status> {
    let message = v1::OutMessage {
        payload: vec![b'x'; bytes].into(),
        ..v1::OutMessage::default()
    };
    let call = v1::SubmitCall {
        subject: "echo".to_owned(),
        messages: vec![message; messages],
        ..v1::SubmitCall::default()
    };
    let sent = node.gateway().await.submit(with(token, call)).await;
    sent.map(tonic::Response::into_inner)
}

/// It names the limit, the tenant and its own number, says that nothing was done, and nothing of anybody else.
fn is_over(status: &Status, limit: &str, most: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let text = status.message();
    assert!(
        text.contains("`acme`") && text.contains(&format!("`{limit}` of {most}")),
        "{text}"
    );
    assert!(!text.contains("globex"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_set_shown_changed_and_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    node.cli_ok_as(
        &operator,
        &[
            "tenant", "create", "acme", "--rate", "1000/s", "--cpu", "0.5", "--memory", "256MiB",
        ],
    );
    let shown = node.cli_ok_as(&operator, &["tenant", "show", "acme"]);
    for part in ["1000/s", "0.5", "256MiB", "log-rate", "storage"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    node.cli_ok_as(
        &operator,
        &["tenant", "set", "acme", "--rate", "none", "--weight", "3", "--cpu", "2"],
    );
    let json = node.cli_ok_as(&operator, &["tenant", "show", "acme", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let limits = serde_json::json!({ "cpu": 2_000, "memory": 256 << 20, "weight": 3 });
    assert_eq!(json["tenants"][0]["limits"], limits);
    assert_eq!(json["tenants"][0]["used"]["storage"], 0);
    // A tenant's own admin sees its own, and of others not even that they are there; lesser roles nothing.
    node.cli_ok_as(&operator, &["tenant", "create", "globex"]);
    let token = |role| node.cli_ok_as(&operator, &["token", "create", "--tenant", "acme", "--role", role]);
    let admin = token("admin").trim().to_owned();
    let own = node.cli_ok_as(&admin, &["tenant", "show", "acme", "-o", "json"]);
    let own: serde_json::Value = serde_json::from_str(&own).unwrap();
    assert_eq!(own["tenants"][0]["limits"], limits);
    let listed = node.cli_ok_as(&admin, &["tenant", "list"]);
    assert!(
        listed.contains("acme") && !listed.contains("globex") && !listed.contains("default"),
        "{listed}"
    );
    let says = |who: &str, name: &str| {
        let refused = node.cli_as(who, &["tenant", "show", name]);
        assert!(!refused.status.success());
        String::from_utf8_lossy(&refused.stderr).replace(name, "…")
    };
    assert_eq!(says(&admin, "globex"), says(&admin, "nobody"));
    assert!(says(token("deploy").trim(), "acme").contains("`admin`"));
    // Nonsense: at the command line by its flag, at the door by its name.
    for (flag, value) in [
        ("--rate", "0/s"),
        ("--memory", "1"),
        ("--cpu", "lots"),
        ("--storage", "99999999999GiB"),
    ] {
        let refused = node.cli_as(&operator, &["tenant", "set", "acme", flag, value]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(flag), "{said}");
    }
    let limit = |name: &str, value| v1::Limit {
        name: name.to_owned(),
        value,
    };
    let set = async |name: &str, limits: Vec<v1::Limit>, unlimited: &[&str]| {
        let call = v1::SetTenantRequest {
            name: name.to_owned(),
            limits,
            unlimited: unlimited.iter().map(ToString::to_string).collect(),
            ..v1::SetTenantRequest::default()
        };
        let mut access = AccessClient::new(node.channel().await);
        access.set_tenant(with(&operator, call)).await.map(drop)
    };
    for (name, limits, unlimited, code, part) in [
        ("acme", vec![limit("rate", 0)], &[][..], Code::InvalidArgument, "`rate`"),
        (
            "acme",
            vec![limit("cpu", u64::MAX)],
            &[],
            Code::InvalidArgument,
            "`cpu`",
        ),
        (
            "acme",
            vec![limit("\u{1b}[31m", 1)],
            &[],
            Code::InvalidArgument,
            "no limit",
        ),
        (
            "acme",
            vec![limit("rate", 1), limit("rate", 2)],
            &[],
            Code::InvalidArgument,
            "twice",
        ),
        (
            "acme",
            vec![limit("rate", 1)],
            &["rate"],
            Code::InvalidArgument,
            "twice",
        ),
        (
            "acme",
            vec![],
            &[],
            Code::InvalidArgument,
            "neither a limit, an isolation, a signer nor nodes",
        ),
        ("default", vec![limit("rate", 1)], &[], Code::InvalidArgument, "default"),
        ("nobody", vec![limit("rate", 1)], &[], Code::NotFound, "nobody"),
    ] {
        let refused = set(name, limits, unlimited).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(part), "{refused:?}");
    }
    // Nobody but an operator, and not its own admin either.
    let admin = node.token(&operator, "acme", "admin");
    let refused = node.cli_as(&admin, &["tenant", "set", "acme", "--rate", "none"]);
    assert_ne!(refused.status.code(), Some(0));
    // They are there after a restart.
    assert!(node.stop().success());
    node = Start::new(dir.path()).start();
    assert!(
        node.cli_ok_as(&operator, &["tenant", "show", "acme"])
            .contains("256MiB")
    );
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_over_its_limits_is_told_so_and_another_tenant_loses_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(Start::new(dir.path()).start());
    let operator = node.bootstrap();
    let limits = ["--rate", "50/s", "--concurrency", "4", "--storage", "64KiB"];
    let acme = tenant(&node, &operator, "acme", &limits, ECHO).await;
    let globex = tenant(&node, &operator, "globex", &[], ECHO).await;
    // The other one, all the while.
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let beside = tokio::spawn({
        let (node, done, asked) = (Arc::clone(&node), Arc::clone(&done), Arc::clone(&asked));
        async move {
            while !done.load(Ordering::Relaxed) {
                say(&node, &globex, "hello")
                    .await
                    .expect("another tenant's limits are not this one's");
                asked.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // More at once than it may have.
    let slow = (0..12).map(|_| say(&node, &acme, "slow"));
    let answers = futures::future::join_all(slow).await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(refused.len() >= 6, "{}", refused.len());
    refused.iter().for_each(|status| is_over(status, "concurrency", "4"));
    // More a second.
    let (mut came, mut late) = (0_u32, 0_u32);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        match say(&node, &acme, "hello").await {
            Ok(()) => came += 1,
            Err(status) => {
                is_over(&status, "rate", "50/s");
                late += 1;
            }
        }
    }
    let most = 50.0 * began.elapsed().as_secs_f64() + 5.0 + 1.0;
    assert!(
        f64::from(came) <= most && came > 20,
        "{came} came in, {most} may; {late} did not"
    );
    // One submit of many is as many.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        submit(&node, &acme, 100, 1).await.map(|reply| reply.accepted).ok(),
        Some(100)
    );
    is_over(&submit(&node, &acme, 1, 1).await.unwrap_err(), "rate", "50/s");
    tokio::time::sleep(Duration::from_millis(2_300)).await;
    // What is to lie in its topics.
    node.cli_ok_as(&acme, &["pause", "echoes"]);
    let mut kept = 0;
    let full = loop {
        match submit(&node, &acme, 1, 10_000).await {
            Ok(_) => kept += 1,
            Err(status) => break status,
        }
        assert!(kept <= 7, "more than it may keep");
        tokio::time::sleep(Duration::from_millis(60)).await;
    };
    is_over(&full, "storage", "64KiB");
    let shown = node.cli_ok_as(&operator, &["tenant", "show", "acme", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let has = shown["tenants"][0]["used"]["storage"].as_u64().unwrap();
    assert!((1..=64 << 10).contains(&has), "{has}");
    // Worked off, there is room again.
    node.cli_ok_as(&acme, &["resume", "echoes"]);
    let until = Instant::now() + SOON;
    while submit(&node, &acme, 1, 10_000).await.is_err() {
        assert!(Instant::now() < until, "no room");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Other limits hold at once.
    node.cli_ok_as(&operator, &["tenant", "set", "acme", "--rate", "none"]);
    for _ in 0..200 {
        say(&node, &acme, "hello").await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    beside.await.expect("no request was lost");
    assert!(asked.load(Ordering::Relaxed) > 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modules_have_a_bound_and_what_is_there_already_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let most = test_bees().len() + test_bees().len() / 2;
    node.cli_ok_as(
        &operator,
        &["tenant", "create", "acme", "--modules", &format!("{most}B")],
    );
    let token = node.token(&operator, "acme", "deploy");
    push_as(&node, &token, "one").await.unwrap();
    // The same bytes under another name.
    push_as(&node, &token, "two").await.unwrap();
    let bytes = crate::node::hello_world();
    let small = most - test_bees().len();
    let other = crate::node::upload("three", "latest", bytes, bytes.len() as u64, "");
    let pushed = node
        .keeper()
        .await
        .push_module(with(&token, tokio_stream::iter(other)))
        .await;
    assert!(bytes.len() > small, "a fixture that does not fit");
    is_over(&pushed.unwrap_err(), "modules", &format!("{most}B"));
}

/// Nodes tell each other what was offered to them, and each takes its part: over all it is the tenant's rate, wherever its calls come in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_one_over_several_nodes() {
    const RATE: u64 = 40;
    let cluster = Cluster::new();
    let nodes = [Arc::new(cluster.start(1)), Arc::new(cluster.start(2))];
    let operator = nodes[0].bootstrap();
    let acme = tenant(&nodes[0], &operator, "acme", &["--rate", &format!("{RATE}/s")], ECHO).await;
    in_step_as(&nodes[0], 2, &operator).await;
    let until = Instant::now() + SOON;
    while ask_as(&nodes[1], &acme, "echo", "").await.is_err() {
        assert!(Instant::now() < until, "the second node does not serve it");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (came, counting) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let stop = Arc::new(AtomicBool::new(false));
    // One gets far more than the other.
    let mut callers = Vec::new();
    for (node, pause_ms) in [(0, 4), (0, 4), (1, 60)] {
        let (node, token) = (Arc::clone(&nodes[node]), acme.clone());
        let (came, counting, stop) = (Arc::clone(&came), Arc::clone(&counting), Arc::clone(&stop));
        callers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if say(&node, &token, "hello").await.is_ok() && counting.load(Ordering::Relaxed) {
                    came.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            }
        }));
    }
    // Until each has heard of the other.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let began = Instant::now();
    counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    counting.store(false, Ordering::Relaxed);
    let seconds = began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (rate, wanted) = (came.load(Ordering::Relaxed) as f64 / seconds, RATE as f64);
    assert!(
        (rate / wanted - 1.0).abs() <= 0.1,
        "{rate:.1} a second came in of {wanted}"
    );
}

const ATTACKED: &str = "
name: attacks
bees:
  - { name: rascal, module: test-bees, input: { gateway: echo }, retry: { attempts: 1 }, timeout: 500ms, memory: 32MiB }
  - { name: hoard, module: test-bees, key: message, state: true, input: { gateway: hoard }, retry: { attempts: 1 } }
";

/// Loops, bombs and floods of a tenant within its limits: another one loses no request, and each is told what it used, and nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_s_worst_takes_no_request_of_another_and_all_of_it_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Arc::new(Start::new(dir.path()).start());
    let operator = node.bootstrap();
    let limits = [
        "--cpu",
        "0.5",
        "--memory",
        "128MiB",
        "--instances",
        "4",
        "--log-rate",
        "20/s",
        "--state",
        "100KiB",
    ];
    let acme = tenant(&node, &operator, "acme", &limits, ATTACKED).await;
    let globex = tenant(&node, &operator, "globex", &[], ECHO).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut attackers = Vec::new();
    for attack in ["loop", "loop", "memory", "stack", "stderr", "output", "panic", "sleep"] {
        let (node, acme, done) = (Arc::clone(&node), acme.clone(), Arc::clone(&done));
        attackers.push(tokio::spawn(async move {
            let mut tried = 0;
            while !done.load(Ordering::Relaxed) {
                let _ = say(&node, &acme, attack).await;
                tried += 1;
            }
            tried
        }));
    }
    let (began, mut asked) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(6) {
        say(&node, &globex, "hello").await.expect("it loses no request");
        asked += 1;
    }
    done.store(true, Ordering::Relaxed);
    for attacker in attackers {
        assert!(attacker.await.unwrap() > 0);
    }
    assert!(asked > 20, "{asked}");
    // What it said too much is told in a line.
    let said = node.cli_ok_as(&acme, &["logs", "attacks"]);
    assert!(
        said.contains("log lines were dropped: tenant `acme`") && said.contains("20/s"),
        "{said}"
    );
    // State over the limit is refused to the Bee, as its stage's own bound is.
    for n in 0..30 {
        let call = v1::RequestCall {
            subject: "hoard".to_owned(),
            payload: vec![b'x'; 10_000].into(),
            key: Some(format!("k{n}")),
            timeout_ms: 5_000,
            ..v1::RequestCall::default()
        };
        // It has no answer but this: whether it was kept is told by the sum.
        let _ = node.gateway().await.request(with(&acme, call)).await;
    }
    let shown = node.cli_ok_as(&operator, &["tenant", "show", "acme", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let kept = shown["tenants"][0]["used"]["state"].as_u64().unwrap();
    assert!((50_000..=100 << 10).contains(&kept), "{kept}");
    let stopped = Arc::into_inner(node).expect("nobody else holds it").stop();
    assert!(stopped.success());
    node = Arc::new(Start::new(dir.path()).start());
    let used = |token: &str, args: &[&str]| -> Vec<serde_json::Value> {
        let json = node.cli_ok_as(token, &[&["usage", "-o", "json"], args].concat());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["used"].as_array().unwrap().clone()
    };
    let all = used(&operator, &[]);
    let find = |tenant: &str, bee: Option<&str>| {
        let found = all
            .iter()
            .find(|used| used["tenant"] == tenant && used["bee"] == serde_json::json!(bee));
        found.unwrap_or_else(|| panic!("{tenant} {bee:?}: {all:?}")).clone()
    };
    assert!(find("acme", Some("attacks/rascal"))["cpu_us"].as_u64().unwrap() > 500_000);
    assert!(find("acme", Some("attacks/rascal"))["memory_byte_ms"].as_u64().unwrap() > 0);
    assert!(find("globex", Some("echoes/rascal"))["messages"].as_u64().unwrap() >= asked);
    assert!(find("globex", None)["bytes_in"].as_u64().unwrap() >= 5 * asked);
    assert!(find("globex", None)["bytes_out"].as_u64().unwrap() >= 5 * asked);
    let own = used(&globex, &[]);
    assert!(
        !own.is_empty() && own.iter().all(|used| used["tenant"] == "globex"),
        "{own:?}"
    );
    assert!(used(&globex, &["--tenant", "acme"]).is_empty());
    assert_eq!(used(&operator, &["--tenant", "globex", "--since", "1d"]), own);
}
