//! The program's own doors: what is typed, and its folder. With a hub it is tested in `runtime/tests/it/edge.rs`.

use std::path::Path;
use std::process::{Command, Output};

use skep_edge::line::Line;

fn edge(data: &Path, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_skep-edge"))
        .args(args)
        .env("SKEP_EDGE_DATA", data)
        .output()
        .expect("run skep-edge");
    (
        status.code(),
        String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned(),
    )
}

fn line(hub: &str) -> String {
    let line = Line {
        hub: hub.to_owned(),
        tenant: "default".to_owned(),
        name: "mill-1".to_owned(),
        hub_key: [7; 32],
        secret: "s".to_owned(),
    };
    line.to_string()
}

#[test]
fn a_wrong_command_line_says_what_is_right() {
    let dir = tempfile::tempdir().unwrap();
    for (args, code, says) in [
        (&[][..], 2, "skep-edge enroll LINE"),
        (&["--frobnicate"], 2, "--frobnicate"),
        (&["run", "--listen", "here"], 2, "here"),
        (&["dance"], 1, "`dance` is no command"),
        (&["enroll"], 1, "takes one LINE"),
        (&["enroll", "mill-1"], 1, "begins with `skep-edge-1.`"),
        (&["enroll", "skep-edge-1.AAAA"], 1, "cut short or mistyped"),
        (&["enroll", &line("http://192.0.2.1:7700")], 1, "without TLS"),
        (&["run", "--listen", "0.0.0.0:0"], 1, "asks nobody who they are"),
        (&["run"], 1, "enrol it first"),
        (&["status"], 1, "enrol it first"),
    ] {
        let (status, said) = edge(dir.path(), args);
        assert_eq!(status, Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
    let (status, said) = edge(dir.path(), &["--help"]);
    assert!(status == Some(0) && said.contains("skep-edge run"), "{said}");
    assert_eq!(edge(dir.path(), &["version"]).0, Some(0));
}

#[test]
fn a_hub_that_cannot_be_reached_leaves_nothing_behind_but_the_key() {
    let dir = tempfile::tempdir().unwrap();
    for (hub, says) in [
        ("http://127.0.0.1:1", "cannot be reached"),
        ("https://127.0.0.1:1", "cannot be reached"),
        ("no address", "is no address of a hub"),
    ] {
        let (status, said) = edge(dir.path(), &["enroll", &line(hub)]);
        assert!(status == Some(1) && said.contains(says), "{hub}: {said}");
        let files = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name());
        assert_eq!(files.collect::<Vec<_>>(), ["edge.key"]);
    }
}
