use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::zoo::CHILD;

/// Each thread's value of a field of its status.
fn field(child: &Child, name: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok())
        .filter_map(|status| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().to_owned())
        })
        .collect()
}

/// The unit tests of the crate try the doors; this one sees that they are shut in time.
#[test]
fn the_compiler_is_confined_before_it_has_seen_a_byte() {
    if field_of_self("Seccomp_filters").is_none() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this kernel has no seccomp filters");
        return;
    }
    let mut child = Command::new(CHILD)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    // Main thread and worker, which waits for the upload.
    while field(&child, "Seccomp_filters").len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    // This process may be filtered itself.
    let filters: u32 = field_of_self("Seccomp_filters").unwrap().parse().unwrap();
    assert_eq!(field(&child, "Seccomp"), ["2", "2"]);
    assert_eq!(
        field(&child, "Seccomp_filters"),
        [(filters + 3).to_string(), (filters + 3).to_string()]
    );
    assert_eq!(field(&child, "NoNewPrivs"), ["1", "1"]);
    drop(child.stdin.take());
    assert!(!child.wait().unwrap().success(), "nothing is no component");
}

fn field_of_self(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}
