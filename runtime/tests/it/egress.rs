//! Requests that Bees send: where the manifest lets them, over TLS, seen again at another attempt, and nowhere else.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skep_proto::v1;
use tonic::Code;

use crate::access::with;
use crate::node::{Node, SOON, Start, apply, push, request, response, test_bees_http, upload};
use crate::tls::{made, with_tls};

fn manifest(bee: &str, grants: &str) -> String {
    format!(
        "name: out\nbees:\n  - {{ name: {bee}, module: test-bees-http, input: {{ gateway: out }}, retry: {{ attempts: 2 }}{grants} }}\n"
    )
}

/// Answers every request with its path, and keeps the heads.
fn server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heads);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || answer(stream, &kept));
        }
    });
    (port, heads)
}

fn answer(mut stream: TcpStream, kept: &Mutex<Vec<String>>) {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut head = Vec::new();
    let mut some = [0; 4_096];
    loop {
        let text = String::from_utf8_lossy(&head).to_lowercase();
        let length = text
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
        if let Some(at) = text.find("\r\n\r\n")
            && head.len() >= at + 4 + length.unwrap_or(0)
        {
            break;
        }
        match stream.read(&mut some) {
            Ok(n @ 1..) => head.extend_from_slice(&some[..n]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
    let body = format!("{path} {body}");
    let status = if path == "/moved" {
        "302 Found\r\nlocation: http://127.0.0.1:1/"
    } else {
        "200 OK"
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    kept.lock().unwrap().push(text);
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
}

async fn fetch(node: &Node, what: &str) -> String {
    let reply = request(&mut node.gateway().await, "out", what.as_bytes()).await;
    reply.map_or_else(
        |status| format!("refused: {}", status.message()),
        |reply| response(&reply),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bee_reaches_what_its_manifest_lists_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "test-bees-http", "latest", test_bees_http())
        .await
        .unwrap();
    let refused = apply(&mut keeper, &manifest("fetch", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("Bee `fetch`") && refused.message().contains("`http: [api.example.com]`"),
        "{refused}"
    );

    let ((port, heads), (other, unasked)) = (server(), server());
    let grants = format!(", http: ['http://127.0.0.1:{port}']");
    apply(&mut keeper, &manifest("fetch", &grants)).await.unwrap();
    let at = format!("http://127.0.0.1:{port}");
    assert_eq!(fetch(&node, &format!("GET {at}/a?b=c")).await, "200 text/plain /a?b=c ");
    assert_eq!(
        fetch(&node, &format!("POST {at}/b hello there")).await,
        "200 text/plain /b hello there"
    );
    assert_eq!(fetch(&node, &format!("GET {at}/moved")).await, "302 text/plain /moved ");
    let head = heads.lock().unwrap()[1].to_lowercase();
    assert!(
        head.contains(&format!("host: 127.0.0.1:{port}\r\n")) && head.contains("x-from: a bee\r\n"),
        "{head}"
    );
    assert!(
        head.contains("idempotency-key: ") && head.contains("content-length: 11\r\n"),
        "{head}"
    );
    for url in [
        format!("http://127.0.0.1:{other}/"),
        format!("http://localhost:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
    ] {
        assert_eq!(
            fetch(&node, &format!("GET {url}")).await,
            "error http-request-denied",
            "{url}"
        );
    }
    assert_eq!(
        fetch(&node, &format!("GET http://2130706433:{port}/")).await,
        "error http-request-uri-invalid"
    );
    assert!(unasked.lock().unwrap().is_empty());
    let said = node.cli_ok(&["logs", "out"]);
    assert!(
        said.contains("http: GET http://169.254.169.254: the manifest does not list"),
        "{said}"
    );

    // Another Bee of it is not granted what the first one is, unless that is said.
    let file = dir.path().join("swarm.yaml");
    std::fs::write(&file, manifest("twice", &grants)).unwrap();
    let file = file.to_str().unwrap();
    let said = |grant: &str| {
        let output = node.cli(&["apply", grant, file]);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, why) = said("--yes");
    let gained = format!("Bee `twice`: http:http://127.0.0.1:{port}");
    assert!(
        code == Some(5) && why.contains(&gained) && why.contains("--grant"),
        "{code:?} {why}"
    );
    assert!(said("--grant=http:api.example.com").1.contains(&gained));
    assert_eq!(said("--grant=all").0, Some(3), "it is neither a host nor a secret");
    assert!(node.cli_ok(&["apply", "--dry-run", file]).contains("http"));
    let (code, why) = said(&format!("--grant=http:http://127.0.0.1:{port}"));
    assert_eq!(code, Some(0), "{why}");

    // An attempt that fails sends again, and says that it is the same.
    heads.lock().unwrap().clear();
    let failed = fetch(&node, &format!("{at}/charge")).await;
    assert!(failed.starts_with("refused: "), "{failed}");
    let key = |head: &String| {
        head.lines()
            .find(|line| line.starts_with("idempotency-key: "))
            .map(str::to_owned)
    };
    let until = Instant::now() + SOON;
    while heads.lock().unwrap().len() < 2 {
        assert!(Instant::now() < until, "{:?}", heads.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let keys: Vec<_> = heads.lock().unwrap().iter().map(key).collect();
    assert!(keys.len() == 2 && keys[0].is_some() && keys[0] == keys[1], "{keys:?}");
    // A trial sends nothing.
    let letters = node.cli_ok(&["dlq", "out", "list", "-o", "json"]);
    let letters: serde_json::Value = serde_json::from_str(&letters).expect("JSON");
    let id = letters["letters"][0]["id"].to_string();
    let tried = node.cli(&["dlq", "out", "try", &id]);
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&tried.stdout),
        String::from_utf8_lossy(&tried.stderr)
    );
    assert!(
        letters["letters"][0]["id"].is_u64() && !said.contains("no dead letter"),
        "{letters}: {said}"
    );
    assert_eq!(heads.lock().unwrap().len(), 2);
    node.stop();
}

/// Whoever is given a tenant is not given the operator's network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_s_bee_does_not_reach_the_operator_s_network() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let operator = node.bootstrap();
    let (port, heads) = server();
    for isolation in ["shared", "process"] {
        let token = node.token(&operator, isolation, "deploy");
        node.cli_ok_as(&operator, &["tenant", "set", isolation, "--isolation", isolation]);
        is_kept_in(&node, &token, port).await;
        assert!(heads.lock().unwrap().is_empty(), "{isolation}");
    }
    node.stop();
}

async fn is_kept_in(node: &Node, acme: &str, port: u16) {
    let wasm = test_bees_http();
    let parts = upload("test-bees-http", "latest", wasm, wasm.len() as u64, "");
    let mut keeper = node.keeper().await;
    keeper.push_module(with(acme, tokio_stream::iter(parts))).await.unwrap();
    let grants = format!(", http: ['http://127.0.0.1:{port}', 'http://localhost:{port}', 'http://169.254.169.254']");
    let call = v1::ApplySwarmRequest {
        manifest: manifest("fetch", &grants),
        ..v1::ApplySwarmRequest::default()
    };
    keeper.apply_swarm(with(acme, call)).await.unwrap();
    for host in [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        "169.254.169.254".to_owned(),
    ] {
        let call = v1::RequestCall {
            subject: "out".to_owned(),
            payload: format!("GET http://{host}/").into_bytes().into(),
            ..v1::RequestCall::default()
        };
        let reply = node
            .gateway()
            .await
            .request(with(acme, call))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(response(&reply), "error destination-ip-prohibited", "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_for_the_name_and_by_whom_the_machine_trusts() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    made(&certs);
    let far = with_tls(dir.path()).start();
    let port = far.port();
    let ca = certs.join("ca.pem").display().to_string();
    for (trusts, answer) in [
        (ca.clone(), "200"),
        (
            certs.join("none.pem").display().to_string(),
            "error tls-certificate-error",
        ),
    ] {
        let data = dir.path().join(format!("data-{}", answer.len()));
        let node = Start::new(&data).env("SSL_CERT_FILE", trusts).start();
        let mut keeper = node.keeper().await;
        push(&mut keeper, "test-bees-http", "latest", test_bees_http())
            .await
            .unwrap();
        let grants = format!(", http: ['https://localhost:{port}']");
        apply(&mut keeper, &manifest("fetch", &grants)).await.unwrap();
        let told = fetch(&node, &format!("GET https://localhost:{port}/healthz")).await;
        assert!(told.starts_with(answer), "{told}");
        node.stop();
    }
    far.stop();
}
