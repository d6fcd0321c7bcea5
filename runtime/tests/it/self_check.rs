//! `skep self check` on machines that can run a node, and under what keeps one from it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::node::{SKEP, Start};

fn run(args: &[&str]) -> Output {
    Command::new(SKEP).args(["self", "check"]).args(args).output().unwrap()
}

/// The exit code, the report, and all that was said.
fn looked(told: &Output) -> (i32, Value, String) {
    let all = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
    let report = serde_json::from_slice(&told.stdout).unwrap_or_else(|e| panic!("{e}: {all}"));
    (told.status.code().unwrap(), report, all)
}

fn check(args: &[&str]) -> (i32, Value, String) {
    looked(&run(&[args, &["-o", "json"]].concat()))
}

fn has(report: &Value, part: &str, severity: &str, words: &[&str]) -> bool {
    report["findings"].as_array().unwrap().iter().any(|f| {
        let text = format!("{} {}", f["what"], f["remedy"]);
        f["part"] == part && f["severity"] == severity && words.iter().all(|word| text.contains(word))
    })
}

fn own_digest() -> String {
    let digest = Sha256::digest(std::fs::read(SKEP).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_machine_that_runs_nodes_is_told_so_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let named = [
        "--data",
        data.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--no-admin",
    ];
    let (code, report, all) = check(&named);
    assert_eq!((code, &report["runs"]), (0, &Value::Bool(true)), "{all}");
    assert_eq!(report["sha256"], own_digest(), "{all}");
    assert!(
        has(&report, "kernel", "ok", &["a compiler process limits itself"]),
        "{all}"
    );
    assert!(has(&report, "kernel", "ok", &["native code runs"]), "{all}");
    assert!(
        has(&report, "ports", "ok", &["is free"]) && has(&report, "clock", "ok", &["UTC"]),
        "{all}"
    );
    assert!(has(&report, "data", "ok", &["will be made"]) && !data.exists(), "{all}");
    assert!(
        report["survives"].as_str().unwrap().contains("durable on this disk"),
        "{all}"
    );
    // A folder that is there is left as it was too.
    std::fs::create_dir(&data).unwrap();
    assert_eq!(check(&named).0, 0);
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    // People read lines.
    let told = run(&named);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    assert!(lines.len() > 10, "{text}");
    for line in lines {
        assert!(
            ["ok    ", "warn  ", "fail  "].iter().any(|word| line.starts_with(word)),
            "{line}"
        );
    }
}

#[test]
fn another_program_than_was_expected_is_told() {
    let own = own_digest();
    let (code, report, all) = check(&["--sha256", &own.to_uppercase()]);
    assert_eq!(
        (code, has(&report, "program", "ok", &["as expected"])),
        (0, true),
        "{all}"
    );
    let other = "0".repeat(64);
    let (code, report, all) = check(&["--sha256", &other]);
    assert_eq!(
        (code, has(&report, "program", "fail", &[&own, &other, "do not run"])),
        (1, true),
        "{all}"
    );
    assert_eq!(report["survives"], Value::Null, "{all}");
    for odd in ["", "0", &own[1..], &format!("{own}0"), &"g".repeat(64), "é"] {
        let told = run(&["--sha256", odd]);
        let said = String::from_utf8_lossy(&told.stderr).into_owned();
        assert_eq!(
            (told.status.code(), said.contains("64 hex digits") || odd.is_empty()),
            (Some(2), true),
            "{said}"
        );
    }
}

#[test]
fn a_node_that_runs_is_not_disturbed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let listen = format!("127.0.0.1:{}", node.port());
    let (code, report, all) = check(&[
        "--data",
        dir.path().to_str().unwrap(),
        "--listen",
        &listen,
        "--no-admin",
    ]);
    assert_eq!(
        (code, has(&report, "ports", "warn", &["a node runs on"])),
        (0, true),
        "{all}"
    );
    let told = Command::new(SKEP)
        .args(["--node", &node.url, "swarms"])
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    // Once it has ended, the same settings are free.
    drop(node);
    let (code, report, all) = check(&[
        "--data",
        dir.path().to_str().unwrap(),
        "--listen",
        &listen,
        "--no-admin",
    ]);
    assert_eq!((code, has(&report, "ports", "ok", &[&listen])), (0, true), "{all}");
}

#[test]
fn what_keeps_a_node_from_running_is_told_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let (code, report, all) = check(&["--data", data, "--listen", &taken, "--no-admin"]);
    assert_eq!(
        (
            code,
            has(&report, "ports", "fail", &[&taken, "another program listens"])
        ),
        (1, true),
        "{all}"
    );
    let (code, report, all) = check(&["--data", data, "--listen", "0.0.0.0:0", "--no-admin"]);
    assert_eq!(
        (
            code,
            has(&report, "tls", "fail", &["without TLS", "--tls-cert", "127.0.0.1"])
        ),
        (1, true),
        "{all}"
    );
    let gone = dir.path().join("gone.pem");
    let gone = gone.to_str().unwrap();
    let (code, report, all) = check(&[
        "--data",
        data,
        "--listen",
        "127.0.0.1:0",
        "--no-admin",
        "--tls-cert",
        gone,
        "--tls-key",
        gone,
    ]);
    assert_eq!(
        (code, has(&report, "tls", "fail", &["cannot read", gone])),
        (1, true),
        "{all}"
    );
    // A password is not repeated, and a warning says where it was typed.
    let (code, report, all) = check(&[
        "--data",
        data,
        "--listen",
        "127.0.0.1:0",
        "--no-admin",
        "--backend",
        "redis://:hush@127.0.0.1:1",
    ]);
    assert_eq!((code, all.contains("hush")), (1, false), "{all}");
    assert!(
        has(&report, "backend", "fail", &["nobody listens"]) && has(&report, "settings", "warn", &["`ps`"]),
        "{all}"
    );
    // Settings that cannot be are no findings, but a wrong command line or file.
    let file = dir.path().join("skep.toml");
    std::fs::write(&file, "lisen = \"127.0.0.1:0\"\n").unwrap();
    for args in [
        &["--config", file.to_str().unwrap()][..],
        &["--gate", "wait:1"],
        &["--config", "/nonexistent"],
        &["--listen", "here"],
    ] {
        let told = run(args);
        assert_eq!(
            (told.status.code(), told.stdout.as_slice()),
            (Some(2), &b""[..]),
            "{args:?}: {told:?}"
        );
    }
}

/// With limits of the shell's own words in front of it.
fn under(limits: &str, data: &Path) -> (i32, Value, String) {
    let line = format!("{limits} && exec \"$0\" self check --data \"$1\" --listen 127.0.0.1:0 --no-admin -o json");
    looked(&Command::new("sh").args(["-c", &line, SKEP]).arg(data).output().unwrap())
}

#[test]
fn limits_of_the_machine_are_felt() {
    let dir = tempfile::tempdir().unwrap();
    // Too little address space for the pool of instances.
    let (code, report, all) = under("ulimit -v 4000000", dir.path());
    assert_eq!(
        (code, has(&report, "kernel", "fail", &["no address space", "ulimit -v"])),
        (1, true),
        "{all}"
    );
    let (code, report, all) = under("ulimit -n 256", dir.path());
    assert_eq!(
        (code, has(&report, "limits", "warn", &["256 open files", "LimitNOFILE"])),
        (0, true),
        "{all}"
    );
}
