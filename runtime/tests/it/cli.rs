//! What people and scripts meet at the command line: texts, exit codes, JSON, pages.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use skep_proto::v1;

use crate::lifecycle::{messages, node_with_bees, quiet, submit};
use crate::node::{Node, SKEP, SOON, apply, drained, request};

const ECHO: &str = "
name: echo-swarm
bees:
  - { name: echo, module: test-bees, input: { gateway: echo-it } }
";

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn with_stdin(node: &Node, args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(SKEP)
        .args(args)
        .env("SKEP_NODE", &node.url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_not_there_are_told_with_the_likely_one() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    apply(&mut node.keeper().await, ECHO).await.unwrap();
    for (args, meant) in [
        (&["request", "ehco-it", "x"][..], "did you mean `echo-it`?"),
        (&["submit", "echo", "x"], "did you mean `echo-it`?"),
        (&["describe", "echo-swrm"], "did you mean `echo-swarm`?"),
        (&["logs", "echo-swarm", "ecco"], "did you mean `echo`?"),
        (&["state", "echo-swarm", "eho", "k"], "did you mean `echo`?"),
        (&["delete-module", "test-bes"], "did you mean `test-bees`?"),
        (&["delete-module", "test-bees:lates"], "did you mean `latest`?"),
        (&["delete-module", "quite-other"], "there are: test-bees"),
        (&["describe", "quite-other"], "there are: echo-swarm"),
    ] {
        let told = node.cli(args);
        assert_eq!(told.status.code(), Some(4), "{args:?}: {}", err(&told));
        assert!(err(&told).contains(meant), "{args:?}: {}", err(&told));
    }
    let in_use = node.cli(&["delete-module", "test-bees:latest"]);
    assert_eq!(in_use.status.code(), Some(5), "{}", err(&in_use));
    node.cli_ok(&["delete", "echo-swarm"]);
    assert!(node.cli_ok(&["delete-module", "test-bees:latest"]).contains("latest"));
    assert!(node.cli_ok(&["bees"]).contains("no modules yet"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_json_where_json_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    apply(&mut node.keeper().await, ECHO).await.unwrap();
    let error = |args: &[&str]| {
        let told = node.cli(args);
        let parsed: serde_json::Value =
            serde_json::from_slice(&told.stderr).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", err(&told)));
        assert_eq!(parsed["error"]["exit"], told.status.code().unwrap(), "{args:?}");
        parsed["error"].clone()
    };
    let absent = error(&["describe", "nobody", "-o", "json"]);
    assert_eq!(
        (&absent["code"], &absent["retry"]),
        (&"not-found".into(), &"no".into()),
        "{absent}"
    );
    let refused = error(&["request", "nobody", "x", "-o", "json"]);
    assert_eq!(
        (&refused["code"], &refused["outcome"]),
        (&"not-found".into(), &"not-done".into()),
        "{refused}"
    );
    let away = error(&["--node", "http://127.0.0.1:1", "swarms", "--output=json"]);
    assert_eq!(
        (&away["code"], &away["retry"]),
        (&"unavailable".into(), &"safe".into()),
        "{away}"
    );
    assert_eq!(away["message"], "no node answers at http://127.0.0.1:1");
    let usage = error(&["request", "--nonsense", "-o", "json"]);
    assert_eq!(usage["code"], "usage", "{usage}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_stdin_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let missing = dir.path().join("missing");
    let (folder, missing) = (dir.path().to_str().unwrap(), missing.to_str().unwrap());
    for (file, code) in [(folder, 3), (missing, 4)] {
        for args in [
            &["apply", file][..],
            &["check", file],
            &["push", file, "--name", "x"],
            &["request", "echo-it", "--file", file],
            &["submit", "echo-it", "--file", file],
        ] {
            let told = node.cli(args);
            assert_eq!(told.status.code(), Some(code), "{args:?}: {}", err(&told));
            assert!(err(&told).contains(file), "{args:?}: {}", err(&told));
        }
    }
    let checked = with_stdin(&node, &["check", "-"], ECHO.as_bytes());
    assert!(
        checked.status.success() && out(&checked).contains("stdin: Swarm `echo-swarm`, 1 Bee,"),
        "{}",
        out(&checked)
    );
    let wrong = with_stdin(&node, &["apply", "-"], b"name: Wrong Name\n");
    assert!(
        wrong.status.code() == Some(3) && err(&wrong).contains("stdin:1:7"),
        "{}",
        err(&wrong)
    );
    let applied = with_stdin(&node, &["apply", "-"], ECHO.as_bytes());
    assert!(applied.status.success(), "{}", err(&applied));

    // Text ends in a newline, once; with --raw, and where it is no text, the bytes are the Bee's.
    for (payload, raw, answer) in [
        (b"hi".as_slice(), false, b"hi\n".as_slice()),
        (b"hi\n", false, b"hi\n"),
        (b"hi", true, b"hi"),
        (&[0xff, 0x00], false, &[0xff, 0x00]),
    ] {
        let mut args = vec!["request", "echo-it", "-"];
        args.extend(raw.then_some("--raw"));
        let told = with_stdin(&node, &args, payload);
        assert_eq!(told.stdout, answer, "{payload:?}: {}", err(&told));
    }
    for (args, durable) in [
        (&["submit", "echo-it", "-"][..], 3),
        (&["submit", "echo-it", "-", "--skip-empty"], 2),
    ] {
        let told = with_stdin(&node, args, b"a\n\nb\n");
        let text = err(&told);
        assert!(text.contains(&format!("{durable} messages are durable")), "{text}");
    }
    assert!(err(&node.cli(&["submit", "echo-it", "x"])).contains("1 message is durable"));
    let described = node.cli_ok(&["describe", "echo-swarm"]);
    let lines: Vec<&str> = described.lines().collect();
    let header = lines.iter().position(|l| l.starts_with("STAGE")).expect("a header");
    for (column, cell) in [("MODULE", "test-bees"), ("BEE", "echo"), ("INPUT", "gateway echo-it")] {
        let at = lines[header].find(&format!(" {column}")).expect(column) + 1;
        assert!(lines[header + 1][at..].starts_with(cell), "{column}: {described}");
    }
}

const KEEPS: &str = "
name: keeps
bees:
  - { name: hoard, module: test-bees, input: { gateway: hoard }, key: message, state: true }
  - { name: rascal, module: test-bees, input: { gateway: rascal }, retry: { attempts: 1 } }
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_longer_than_one_reply_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    apply(&mut keeper, KEEPS).await.unwrap();
    let mut gateway = node.gateway().await;
    // More than 3 MiB under one key.
    let value = "v".repeat(250 << 10);
    for i in 0..14 {
        let call = v1::SubmitCall {
            subject: "hoard".to_owned(),
            messages: vec![v1::OutMessage {
                payload: value.clone().into(),
                key: Some("k".to_owned()),
                headers: vec![v1::Header {
                    name: "name".to_owned(),
                    value: format!("n{i:02}"),
                }],
            }],
            ..v1::SubmitCall::default()
        };
        gateway.submit(call).await.unwrap();
    }
    drained(&mut keeper, "keeps").await;
    let one = v1::GetStateRequest {
        swarm: "keeps".to_owned(),
        stage: "hoard".to_owned(),
        key: "k".to_owned(),
        after: String::new(),
    };
    let first = keeper.get_state(one).await.unwrap().into_inner();
    assert!(first.more && first.values.len() < 14, "{}", first.values.len());
    let text = node.cli_ok(&["state", "keeps", "hoard", "k", "-o", "json"]);
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    let values = state["values"].as_object().unwrap();
    assert_eq!(values.len(), 14);
    assert!(values.values().all(|v| v.as_str() == Some(&value)));

    // More dead letters than one reply lists.
    let rejected = messages(0, 1_100, "reject");
    submit(&mut gateway, "rascal", &rejected).await;
    quiet(&mut keeper, "keeps").await;
    let listed = |args: &[&str]| {
        let mut all = vec!["dlq", "keeps", "list", "-o", "json"];
        all.extend(args);
        let parsed: serde_json::Value = serde_json::from_str(&node.cli_ok(&all)).unwrap();
        let letters = parsed["letters"].as_array().unwrap();
        letters.iter().map(|l| l["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let ids = listed(&["--limit", "5000"]);
    assert_eq!(ids.len(), 1_100);
    assert!(ids.is_sorted());
    assert_eq!(listed(&["--limit", "7"]), ids[..7]);
    assert_eq!(listed(&["--limit", "7", "--after", &ids[6].to_string()]), ids[7..14]);
    let table = node.cli(&["dlq", "keeps", "list", "--limit", "2"]);
    assert_eq!(out(&table).lines().count(), 3, "{}", out(&table));
    assert!(err(&table).contains(&format!("--after {}", ids[1])), "{}", err(&table));
    let told = node.cli_ok(&["dlq", "keeps", "discard", &ids[0].to_string()]);
    assert!(told.contains("discarded 1"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_whose_node_goes_away_says_so_and_gives_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    apply(&mut node.keeper().await, ECHO).await.unwrap();
    assert!(request(&mut node.gateway().await, "echo-it", "x").await.is_ok());
    let mut child = Command::new(SKEP)
        .args(["submit", "echo-it", "-", "--retry-for", "2s"])
        .env("SKEP_NODE", &node.url)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"first\n").unwrap();
    // Until the first is durable, so that the connection is there when the node goes.
    let until = Instant::now() + SOON;
    let mut keeper = node.keeper().await;
    loop {
        let call = v1::DescribeSwarmRequest {
            name: "echo-swarm".to_owned(),
            count_keys: false,
        };
        let told = keeper.describe_swarm(call).await.unwrap().into_inner();
        if told.stages[0].processed >= 2 {
            break;
        }
        assert!(Instant::now() < until, "{told:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.kill();
    stdin.write_all(b"second\n").unwrap();
    let began = Instant::now();
    let told = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
        .await
        .unwrap();
    drop(stdin);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let text = err(&told);
    assert!(
        text.contains("trying again for up to 2 s (1 message durable)"),
        "{text}"
    );
    // What was on its way when the node went may have been taken; if nothing was, it was not.
    match told.status.code() {
        Some(7) => assert!(text.contains("no node answers at http://127.0.0.1:"), "{text}"),
        Some(9) => assert!(text.contains("broke before the answer came"), "{text}"),
        other => panic!("{other:?}: {text}"),
    }
    assert!(
        !text.contains("transport error") && !text.contains("tcp connect"),
        "{text}"
    );
}
