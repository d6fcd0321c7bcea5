//! TLS at the doors, clients' certificates, logins that are kept, and what is refused to listen.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use skep_client::{Gateway, Kind, Login};

use crate::access::ORDERS;
use crate::node::{Node, SKEP, Start, root};

pub fn made(dir: &Path) {
    let output = Command::new(SKEP).args(["certs", "dev"]).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", err(&output));
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The CLI of a user with a home of their own.
fn user(home: &Path, stdin: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut child = Command::new(SKEP)
        .args(args)
        .env_remove("SKEP_NODE")
        .env_remove("SKEP_TOKEN")
        .env("XDG_CONFIG_HOME", home)
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

pub fn with_tls(dir: &Path) -> Start {
    let at = |name: &str| dir.join("certs").join(name).display().to_string();
    Start::new(&dir.join("data"))
        .env("SKEP_TLS_CERT", at("node.pem"))
        .env("SKEP_TLS_KEY", at("node.key"))
        .env("SKEP_BOOTSTRAP_TOKEN", dir.join("operator.token").display().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_over_tls_is_kept_and_serves_all_commands() {
    let dir = tempfile::tempdir().unwrap();
    let (certs, home) = (dir.path().join("certs"), dir.path().join("home"));
    made(&certs);
    // Nothing is overwritten.
    let again = Command::new(SKEP).args(["certs", "dev"]).arg(&certs).output().unwrap();
    assert_eq!(again.status.code(), Some(5));
    let node: Node = with_tls(dir.path()).start();
    assert!(node.url.starts_with("https://"), "{}", node.url);
    let ca = certs.join("ca.pem").display().to_string();
    let token = text(&dir.path().join("operator.token"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("operator.token")), 0o600);
    assert_eq!(mode(&certs.join("node.key")), 0o600);

    // Without the root nobody is believed, and nothing is kept.
    let strange = user(&home, &token, &["login", &node.url], &[]);
    assert!(!strange.status.success());
    assert!(!home.join("skep/login.json").exists());
    let wrong = user(&home, &token[..40], &["login", &node.url, "--ca", &ca], &[]);
    assert_eq!(wrong.status.code(), Some(2), "{}", err(&wrong));
    let login = user(&home, &token, &["login", &node.url, "--ca", &ca], &[]);
    assert!(login.status.success(), "{}", err(&login));
    let kept = home.join("skep/login.json");
    assert_eq!((mode(&kept), mode(kept.parent().unwrap())), (0o600, 0o700));
    let who = user(&home, "", &["whoami"], &[]);
    assert!(
        String::from_utf8_lossy(&who.stdout).contains("operator"),
        "{}",
        err(&who)
    );
    let sample = root().join("samples/hello-world/swarm.yaml").display().to_string();
    let push = user(&home, "", &["bees"], &[]);
    assert!(push.status.success(), "{}", err(&push));
    let checked = user(&home, "", &["apply", &sample, "--dry-run"], &[]);
    assert_eq!(
        checked.status.code(),
        Some(3),
        "the module is not there: {}",
        err(&checked)
    );
    // A variable goes before the file, and another node is not shown the token.
    let denied = user(&home, "", &["swarms"], &[("SKEP_TOKEN", "skep_x")]);
    assert_eq!(denied.status.code(), Some(2), "{}", err(&denied));
    let open = Start::new(&dir.path().join("other")).start();
    let other = user(&home, "", &["whoami"], &[("SKEP_NODE", &open.url)]);
    assert!(String::from_utf8_lossy(&other.stdout).contains("no token was ever made"));
    // Others could read it.
    std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = user(&home, "", &["swarms"], &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(err(&refused).contains("others may read"), "{}", err(&refused));
    assert!(user(&home, "", &["logout"], &[]).status.success());
    assert!(!kept.exists());

    // The client for programs.
    let login = Login::default().token(&token).unwrap().ca(text(&certs.join("ca.pem")));
    let gateway = Gateway::connect_with(node.url.clone(), login).await.unwrap();
    assert_eq!(gateway.request("orders", "x").await.unwrap_err().kind, Kind::NotFound);
    let stranger = Login::default().ca(text(&certs.join("ca.pem")));
    let gateway = Gateway::connect_with(node.url.clone(), stranger).await.unwrap();
    assert_eq!(gateway.request("orders", "x").await.unwrap_err().kind, Kind::Denied);
    // Plain HTTP at a port with TLS, and noise.
    for noise in [
        &b"GET /healthz HTTP/1.1\r\n\r\n"[..],
        &[0; 1 << 16],
        b"\x16\x03\x01\xff\xff",
    ] {
        let mut stream = TcpStream::connect(node.url.trim_start_matches("https://")).unwrap();
        let _ = stream.write_all(noise);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        assert!(!String::from_utf8_lossy(&all).contains("HTTP/1.1 200"));
    }
    let login = Login::default().token(&token).unwrap().ca(text(&certs.join("ca.pem")));
    assert!(Gateway::connect_with(node.url.clone(), login).await.is_ok());
    assert!(ORDERS.contains("orders"));
    assert!(node.stop().success());
    // The file is not made again, and its token is good after a start.
    let node = with_tls(dir.path()).start();
    let env = [
        ("SKEP_NODE", node.url.as_str()),
        ("SKEP_TOKEN", token.trim()),
        ("SKEP_CA", ca.as_str()),
    ];
    assert!(user(&home, "", &["nodes"], &env).status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_without_a_certificate_stay_outside() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    made(&certs);
    made(&dir.path().join("strangers"));
    let at = |name: &str| certs.join(name).display().to_string();
    let node = with_tls(dir.path()).env("SKEP_CLIENT_CA", at("ca.pem")).start();
    let token = text(&dir.path().join("operator.token"));
    let asked = |env: &[(&str, &str)]| {
        let mut all = vec![("SKEP_NODE", node.url.as_str()), ("SKEP_TOKEN", token.trim())];
        let ca = at("ca.pem");
        all.push(("SKEP_CA", &ca));
        all.extend_from_slice(env);
        user(dir.path(), "", &["nodes"], &all)
    };
    assert!(!asked(&[]).status.success());
    let strange = dir.path().join("strangers");
    let (cert, key) = (
        strange.join("client.pem").display().to_string(),
        strange.join("client.key").display().to_string(),
    );
    assert!(
        !asked(&[("SKEP_CLIENT_CERT", &cert), ("SKEP_CLIENT_KEY", &key)])
            .status
            .success()
    );
    let (cert, key) = (at("client.pem"), at("client.key"));
    let known = asked(&[("SKEP_CLIENT_CERT", &cert), ("SKEP_CLIENT_KEY", &key)]);
    assert!(known.status.success(), "{}", err(&known));
    assert!(node.stop().success());
}

/// What `skep serve` says when it starts on every address: its first line, or why it does not.
fn everywhere(data: &Path, args: &[&str]) -> Result<String, String> {
    let mut child = Command::new(SKEP)
        .args(["serve", "--listen", "0.0.0.0:0", "--no-admin", "--data"])
        .arg(data)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    if first.is_empty() {
        return Err(err(&child.wait_with_output().unwrap()));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    Ok(first)
}

#[test]
fn what_others_can_reach_needs_tls_and_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    made(&certs);
    let (data, file) = (
        dir.path().join("data"),
        dir.path().join("operator.token").display().to_string(),
    );
    let (cert, key) = (
        certs.join("node.pem").display().to_string(),
        certs.join("node.key").display().to_string(),
    );
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    let tokens = ["--bootstrap-token", &file];
    let bare = everywhere(&data, &[]).unwrap_err();
    assert!(
        bare.contains("--tls-cert") && bare.contains("--bootstrap-token"),
        "{bare}"
    );
    assert!(everywhere(&data, &tls).unwrap_err().contains("--bootstrap-token"));
    assert!(everywhere(&data, &tokens).unwrap_err().contains("--tls-cert"));
    let all = [&tls[..], &tokens].concat();
    assert!(everywhere(&data, &all).unwrap().contains("https://"));
    // The tokens are there now, whatever the flags say.
    assert!(everywhere(&data, &tls).unwrap().contains("https://"));
    assert!(
        everywhere(&dir.path().join("forced"), &["--allow-insecure"])
            .unwrap()
            .contains("http://")
    );
    for halves in [&tls[..2], &["--client-ca", &cert]] {
        assert!(everywhere(&data, halves).is_err());
    }
    // A file that holds something else is not overwritten.
    std::fs::write(dir.path().join("note"), "not a token").unwrap();
    let note = dir.path().join("note").display().to_string();
    let refused = everywhere(
        &dir.path().join("new"),
        &[&tls[..], &["--bootstrap-token", &note]].concat(),
    )
    .unwrap_err();
    assert!(refused.contains("holds no token"), "{refused}");
    assert_eq!(std::fs::read_to_string(&note).unwrap(), "not a token");
}
