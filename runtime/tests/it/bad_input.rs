//! Bad input at every door: a clear error that names the place and the remedy, and nothing that was stored before is lost.

use std::time::Duration;

use skep_proto::v1;
use tonic::Code;

use crate::node::{Node, Start, apply, connect, drained, hello_world, push, request, response, test_bees, upload};

async fn node_with_bees(dir: &std::path::Path) -> Node {
    let node = Start::new(dir).start();
    push(&mut node.keeper().await, "test-bees", "latest", test_bees())
        .await
        .expect("push");
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_are_not_bees() {
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "hello", "v1", hello_world()).await.expect("push");

    // The hostile corpus itself (bombs and the like) is the engine's tests'; here is what the door adds.
    let core_module = b"\0asm\x01\0\0\0".to_vec();
    let cut = hello_world()[..hello_world().len() / 2].to_vec();
    for (what, bytes, word) in [
        ("not Wasm", b"#!/bin/sh\necho hello\n".to_vec(), "WebAssembly"),
        ("text form", b"(component)".to_vec(), "binary"),
        ("a core module", core_module, "component"),
        (
            "a component without the export",
            b"\0asm\x0d\0\x01\0".to_vec(),
            "skep:bee/handler",
        ),
        ("truncated inside", cut, ""),
        ("empty", Vec::new(), ""),
    ] {
        let refused = push(&mut keeper, "bad", "v1", &bytes).await.expect_err(what);
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
        assert!(
            refused.message().to_lowercase().contains(&word.to_lowercase()),
            "{what}: {refused}"
        );
    }
    let size = hello_world().len() as u64;
    for (what, parts, word) in [
        (
            "truncated on the way",
            upload("bad", "v1", hello_world(), size + 1, ""),
            "truncated",
        ),
        (
            "wrong digest",
            upload("bad", "v1", hello_world(), size, &"0".repeat(64)),
            "wrong digest",
        ),
        (
            "digest that is none",
            upload("bad", "v1", hello_world(), size, "zz"),
            "digest",
        ),
        (
            "announced too large",
            upload("bad", "v1", hello_world(), 65 << 20, ""),
            "at most",
        ),
        (
            "bad name",
            upload("Bad_Name", "v1", hello_world(), size, ""),
            "DNS label",
        ),
        ("bad tag", upload("bad", "V 1", hello_world(), size, ""), "tag"),
        (
            "no header",
            upload("bad", "v1", hello_world(), size, "").split_off(1),
            "header",
        ),
        ("nothing", Vec::new(), "empty"),
    ] {
        let refused = keeper.push_module(tokio_stream::iter(parts)).await.expect_err(what);
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
        assert!(refused.message().contains(word), "{what}: {refused}");
    }
    // More bytes than fit, unannounced.
    let mut parts = upload("bad", "v1", b"", 0, "");
    let chunk = v1::PushModuleRequest {
        part: Some(v1::push_module_request::Part::Chunk(vec![0; 1 << 20].into())),
    };
    parts.extend(std::iter::repeat_n(chunk, 65));
    let refused = keeper
        .push_module(tokio_stream::iter(parts))
        .await
        .expect_err("too large");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");

    // Two uploads of the same tag at once: both succeed, one of them has the tag, both digests are there.
    let (mut one, mut two) = (node.keeper().await, node.keeper().await);
    let (a, b) = tokio::join!(
        push(&mut one, "race", "v1", hello_world()),
        push(&mut two, "race", "v1", test_bees())
    );
    let (a, b) = (a.expect("one"), b.expect("two"));
    let modules = keeper
        .list_modules(v1::ListModulesRequest {})
        .await
        .unwrap()
        .into_inner()
        .modules;
    let race: Vec<_> = modules.iter().filter(|m| m.name == "race").collect();
    assert_eq!(race.len(), 2, "{race:?}");
    let tagged: Vec<_> = race.iter().filter(|m| m.tags == ["v1"]).collect();
    assert_eq!(tagged.len(), 1, "{race:?}");
    assert!(tagged[0].digest == a.digest || tagged[0].digest == b.digest);
    assert!(
        modules.iter().any(|m| m.name == "hello") && !modules.iter().any(|m| m.name == "bad"),
        "{modules:?}"
    );
}

/// A client that trickles does not keep one of the few places for uploads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_takes_too_long_is_ended_and_gives_its_place_back() {
    // Built before anything is timed.
    hello_world();
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path()).arg("--upload-timeout").arg("1s").start();
    let mut slow = Vec::new();
    // As many as there are places.
    for _ in 0..4 {
        let mut keeper = node.keeper().await;
        slow.push(tokio::spawn(async move {
            let mut parts = upload("slow", "v1", &hello_world()[..64], 64, "");
            let header = parts.remove(0);
            let trickle = futures::stream::unfold((Some(header), 0), |(header, at)| async move {
                if let Some(header) = header {
                    return Some((header, (None, at)));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                let byte = hello_world()[at..=at].to_vec();
                let part = v1::push_module_request::Part::Chunk(byte.into());
                Some((v1::PushModuleRequest { part: Some(part) }, (None, at + 1)))
            });
            keeper.push_module(trickle).await
        }));
    }
    for ended in slow {
        let refused = tokio::time::timeout(crate::node::SOON, ended)
            .await
            .expect("it is ended")
            .unwrap()
            .unwrap_err();
        assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
        assert!(refused.message().contains("nothing was stored"), "{refused}");
    }
    let mut keeper = node.keeper().await;
    push(&mut keeper, "hello", "v1", hello_world())
        .await
        .expect("a place is free");
    let modules = keeper
        .list_modules(v1::ListModulesRequest {})
        .await
        .unwrap()
        .into_inner()
        .modules;
    assert_eq!(modules.len(), 1, "{modules:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_with_mistakes_are_told_all_at_once_with_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    let manifest = "name: Wrong Name
bees:
  - name: a
    module: test-bees
    bee: nobody
    inputs: { gateway: x }
    input: { bee: b }
  - name: b
    module: no-such-module
    input: { bee: a }
    state: yes please
  - name: b
    module: test-bees
    bee: echo
    input: { gateway: x }
";
    let refused = apply(&mut keeper, manifest).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let text = refused.message();
    for mistake in ["1:7", "nobody", "inputs", "no-such-module", "state", "12:"] {
        assert!(text.contains(mistake), "`{mistake}` is not in:\n{text}");
    }
    for (what, manifest) in [
        ("not YAML", "name: [unclosed"),
        ("another type", "just text"),
        ("empty", ""),
        (
            "a cycle",
            "name: c\nbees:\n  - { name: a, module: test-bees, bee: echo, input: { bee: b } }\n  - { name: b, module: test-bees, bee: echo, input: { bee: a } }\n",
        ),
    ] {
        let refused = apply(&mut keeper, manifest).await.expect_err(what);
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
    }
    let huge = format!("name: x\n# {}", "x".repeat(1 << 20));
    let refused = apply(&mut keeper, &huge).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(
        keeper
            .list_swarms(v1::ListSwarmsRequest {})
            .await
            .unwrap()
            .into_inner()
            .swarms
            .is_empty()
    );
}

const RASCAL: &str = "
name: rascal
bees:
  - name: rascal
    module: test-bees
    input: { gateway: rascal }
    timeout: 1s
    memory: 32MiB
    retry: { attempts: 1 }
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bees_that_misbehave_end_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    apply(&mut keeper, RASCAL).await.unwrap();
    let mut gateway = node.gateway().await;
    // On the lane: the caller gets the cause.
    for (payload, reason, word) in [
        ("panic", "trap", "the rascal panicked as it was told"),
        ("loop", "cpu-time", ""),
        ("sleep", "wall-time", ""),
        ("memory", "", "memory"),
        ("stack", "trap", ""),
        ("output", "", ""),
        ("fail", "told-to", "the payload said so"),
        ("reject", "reject", "the payload said so"),
    ] {
        let failed = request(&mut gateway, "rascal", payload).await.expect_err(payload);
        // Rejected, the message is wrong; failed, the work is.
        let code = if reason == "reject" {
            Code::InvalidArgument
        } else {
            Code::FailedPrecondition
        };
        assert_eq!(failed.code(), code, "{payload}: {failed:?}");
        let told = failed
            .metadata()
            .get("skep-reason")
            .map(|v| v.to_str().unwrap().to_owned())
            .unwrap_or_default();
        assert!(told.contains(reason), "{payload}: {told}: {failed:?}");
        assert!(failed.message().contains(word), "{payload}: {failed:?}");
        assert_eq!(failed.metadata().get("skep-outcome").unwrap(), "done", "{payload}");
    }
    assert_eq!(
        response(&request(&mut gateway, "rascal", "stderr").await.unwrap()),
        "stderr"
    );

    // Submitted: the poison ones are dead letters with their cause, their neighbours are done.
    let messages = ["fine", "panic", "fine", "reject", "fine"].map(|text| v1::OutMessage {
        payload: text.into(),
        ..v1::OutMessage::default()
    });
    let call = v1::SubmitCall {
        subject: "rascal".to_owned(),
        messages: messages.into(),
        ..v1::SubmitCall::default()
    };
    assert_eq!(gateway.submit(call).await.unwrap().into_inner().accepted, 5);
    drained(&mut keeper, "rascal").await;
    let call = v1::ListDeadLettersRequest {
        swarm: "rascal".to_owned(),
        ..v1::ListDeadLettersRequest::default()
    };
    let letters = keeper.list_dead_letters(call).await.unwrap().into_inner().letters;
    let told: Vec<_> = letters
        .iter()
        .map(|l| (l.reason.as_str(), l.payload.as_ref()))
        .collect();
    assert_eq!(told.len(), 2, "{letters:?}");
    assert!(
        told.contains(&("trap", b"panic".as_slice())) && told.contains(&("reject", b"reject".as_slice())),
        "{told:?}"
    );
    assert!(
        letters
            .iter()
            .any(|l| l.stderr.contains("panicked") || l.detail.contains("panicked")),
        "{letters:?}"
    );
    let describe = node.cli_ok(&["dlq", "rascal"]);
    assert!(describe.contains("trap"), "{describe}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_cannot_be_served() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let mut keeper = node.keeper().await;
    apply(&mut keeper, RASCAL).await.unwrap();
    let mut gateway = node.gateway().await;
    let unknown = request(&mut gateway, "nobody", "x").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("rascal"), "names what there is: {unknown}");
    let large = request(&mut gateway, "rascal", vec![b'x'; (256 << 10) + 1])
        .await
        .unwrap_err();
    assert_eq!(large.code(), Code::InvalidArgument, "{large}");
    assert!(large.message().contains("262144"), "{large}");

    // A deadline that passes while the Bee works, and a caller that goes away: the node stays whole.
    let call = v1::RequestCall {
        subject: "rascal".to_owned(),
        payload: "sleep".into(),
        timeout_ms: 100,
        ..v1::RequestCall::default()
    };
    let late = gateway.request(call.clone()).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    let mut other = node.gateway().await;
    let cancelled = tokio::spawn(async move { other.request(call).await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    cancelled.abort();
    assert_eq!(
        response(&request(&mut gateway, "rascal", "fine").await.unwrap()),
        "fine"
    );

    let describe = node.cli(&["describe", "no-such-swarm"]);
    assert_eq!(describe.status.code(), Some(4));
    let unreachable = std::process::Command::new(crate::node::SKEP)
        .args(["--node", "http://127.0.0.1:1", "swarms"])
        .output()
        .unwrap();
    assert_eq!(unreachable.status.code(), Some(7));
    assert!(
        String::from_utf8_lossy(&unreachable.stderr).contains("skep serve"),
        "names the remedy"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_start_says_why_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_bees(dir.path()).await;
    let Err(told) = Start::new(dir.path()).try_start() else {
        panic!("two nodes in one data folder")
    };
    assert!(told.contains("in use"), "{told}");
    // Also where its port is taken too, as when the same node is started twice.
    let Err(told) = (Start {
        port: node.port(),
        ..Start::new(dir.path())
    })
    .try_start() else {
        panic!("one node twice")
    };
    assert!(told.contains("in use") && !told.contains("another program"), "{told}");
    let other = tempfile::tempdir().unwrap();
    let Err(told) = (Start {
        port: node.port(),
        ..Start::new(other.path())
    })
    .try_start() else {
        panic!("two nodes on one port")
    };
    assert!(told.contains("another program listens there"), "{told}");
    apply(&mut node.keeper().await, RASCAL).await.unwrap();
    assert!(node.stop().success());

    // A damaged artifact is compiled again; a damaged module is a degraded Swarm with the remedy, and the node is up.
    for file in std::fs::read_dir(dir.path().join("cache")).unwrap() {
        let file = file.unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let node = Start::new(dir.path()).start();
    assert_eq!(
        response(&request(&mut node.gateway().await, "rascal", "fine").await.unwrap()),
        "fine"
    );
    assert!(node.stop().success());
    let modules = dir.path().join("modules/modules/default");
    let file = std::fs::read_dir(&modules).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, b"damaged").unwrap();
    std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
    let node = Start::new(dir.path()).start();
    let mut keeper = node.keeper().await;
    let swarms = keeper
        .list_swarms(v1::ListSwarmsRequest {})
        .await
        .unwrap()
        .into_inner()
        .swarms;
    assert!(
        swarms[0].status.contains("damaged") && swarms[0].status.contains("push it again"),
        "{swarms:?}"
    );
    push(&mut keeper, "test-bees", "latest", test_bees()).await.unwrap();
    assert!(node.stop().success());
    let node = Start::new(dir.path()).start();
    assert_eq!(
        response(&request(&mut node.gateway().await, "rascal", "fine").await.unwrap()),
        "fine"
    );
    drop(connect(&node.url).await);
}
