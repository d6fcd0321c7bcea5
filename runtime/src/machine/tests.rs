use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::*;
use crate::cli::certs;
use crate::settings::{Layer, resolve};

/// Severity and words of all that was found of a part.
fn said(report: &Report, part: &str) -> Vec<(Severity, String)> {
    let of = report.found.iter().filter(|found| found.part == part);
    of.map(|found| {
        (
            found.finding.severity,
            format!("{} — {}", found.finding.what, found.finding.remedy),
        )
    })
    .collect()
}

fn one(look: impl FnOnce(&mut Report)) -> (Severity, String) {
    let mut report = Report::default();
    look(&mut report);
    assert_eq!(report.found.len(), 1, "{report:?}");
    let finding = &report.found[0].finding;
    (finding.severity, format!("{} — {}", finding.what, finding.remedy))
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_program_is_known_by_its_bytes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // FIPS 180-4's example of one block.
    std::fs::write(file.path(), "abc").unwrap();
    let sha256 = digest(file.path()).unwrap();
    assert_eq!(
        sha256,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    let program = Program {
        path: "/usr/bin/skep".into(),
        sha256: sha256.clone(),
    };
    let (severity, text) = one(|report| told_program(&program, Some(&sha256), report));
    assert_eq!(
        (severity, text.contains("as expected")),
        (Severity::Fine, true),
        "{text}"
    );
    let (severity, text) = one(|report| told_program(&program, Some(&"0".repeat(64)), report));
    assert_eq!(
        (severity, text.contains("do not run")),
        (Severity::Refuse, true),
        "{text}"
    );
    let (severity, text) = one(|report| told_program(&program, None, report));
    assert_eq!((severity, text.contains(&sha256)), (Severity::Fine, true), "{text}");
}

#[test]
fn memory_is_that_of_the_smallest_group() {
    const INFO: &str = "MemTotal:        4194304 kB\nMemFree:  1 kB\n";
    const GIB: u64 = 1 << 30;
    let dir = tempfile::tempdir().unwrap();
    let (proc, groups) = (dir.path().join("proc"), dir.path().join("groups"));
    assert_eq!(Memory::of(&proc, &groups), None);
    write(&proc.join("meminfo"), INFO);
    let seen = |cgroup: &str| {
        write(&proc.join("self/cgroup"), cgroup);
        Memory::of(&proc, &groups).unwrap()
    };
    let of = |group| Memory { total: 4 * GIB, group };
    assert_eq!(seen("0::/\n"), of(None), "no files of groups at all");
    // Version 2: the least of a group and those above it.
    write(&groups.join("a/b/memory.max"), "max\n");
    write(&groups.join("a/memory.max"), "1073741824\n");
    assert_eq!(seen("0::/a/b\n"), of(Some(GIB)));
    write(&groups.join("a/b/memory.max"), "536870912\n");
    assert_eq!(seen("0::/a/b\n"), of(Some(GIB / 2)));
    assert_eq!(seen("0::/a/b/gone\n"), of(Some(GIB / 2)), "a path of another namespace");
    // Version 1, with its word for none.
    write(&groups.join("memory/c/memory.limit_in_bytes"), "9223372036854771712\n");
    assert_eq!(seen("5:cpu:/c\n4:memory:/c\n0::/\n"), of(None));
    write(&groups.join("memory/c/memory.limit_in_bytes"), "268435456\n");
    assert_eq!(seen("5:cpu:/c\n4:memory:/c\n0::/\n"), of(Some(GIB / 4)));
    // Whatever stands there instead is no reason to fail.
    for odd in ["", "\n", ":::", "0:", "nonsense", "0::", "4:memory:/../../../etc"] {
        assert_eq!(seen(odd).total, 4 * GIB, "{odd}");
    }
    write(&proc.join("meminfo"), "MemTotal: many kB\n");
    assert_eq!(Memory::of(&proc, &groups), None);
}

#[test]
fn memory_is_held_against_what_may_be_used() {
    let memory = |total: u64, group: Option<u64>| {
        let mib = |n: u64| n << 20;
        let memory = Memory {
            total: mib(total),
            group: group.map(mib),
        };
        one(|report| told_memory(Some(memory), mib(2_048), mib(512), report))
    };
    assert_eq!(memory(4_096, None), (Severity::Fine, "4096 MiB — ".to_owned()));
    let (severity, text) = memory(4_096, Some(1_024));
    assert_eq!(severity, Severity::Warn);
    assert!(
        text.contains("1024 MiB for this control group, of 4096 MiB") && text.contains("--model-memory"),
        "{text}"
    );
    let (severity, text) = memory(256, None);
    assert_eq!(
        (severity, text.contains("too little to compile")),
        (Severity::Warn, true),
        "{text}"
    );
    assert_eq!(one(|report| told_memory(None, 0, 0, report)).0, Severity::Warn);
}

#[test]
fn limits_pages_and_clocks() {
    assert_eq!(one(|r| open_files(None, r)).0, Severity::Fine);
    assert_eq!(one(|r| open_files(Some(OPEN_FILES_WANTED), r)).0, Severity::Fine);
    let (severity, text) = one(|r| open_files(Some(1_024), r));
    assert_eq!(
        (severity, text.contains("LimitNOFILE=")),
        (Severity::Warn, true),
        "{text}"
    );
    assert_eq!(
        [4 << 10, 16 << 10, 64 << 10, 128 << 10].map(|bytes| of_page(bytes).0),
        [Severity::Fine, Severity::Warn, Severity::Warn, Severity::Refuse]
    );
    let (severity, text) = one(|r| clock(UNIX_EPOCH, r));
    assert_eq!(
        (
            severity,
            text.contains("1970-01-01") || text.contains("before this program")
        ),
        (Severity::Refuse, true),
        "{text}"
    );
    assert_eq!(
        one(|r| clock(UNIX_EPOCH - Duration::from_secs(9), r)).0,
        Severity::Refuse
    );
    assert_eq!(
        one(|r| clock(at(YOUNGER_THAN_S + 1), r)),
        (Severity::Fine, "2026-11-01 00:00:01.000 UTC — ".to_owned())
    );
    assert_eq!(one(|r| clock(at(NO_LONGER_AFTER_S + 1), r)).0, Severity::Refuse);
    assert_eq!(one(|r| clock(at(u64::MAX >> 2), r)).0, Severity::Refuse);
}

#[tokio::test]
async fn what_a_node_does_works_here_and_what_is_said_otherwise_is_told() {
    let code = code_runs().await.unwrap();
    assert!(code.contains("native code runs"), "{code}");
    // Under a test the running program is no `skep`, so its compiler is tried by the tests of the binary. Here, what its answers mean.
    let error = |code| CompileError {
        code,
        message: "why".to_owned(),
    };
    assert!(refused(None).is_ok() && refused(Some(error(skep_engine::Code::NoExport))).is_ok());
    for code in [
        skep_engine::Code::Node,
        skep_engine::Code::CompilerKilled,
        skep_engine::Code::Timeout,
        skep_engine::Code::OutOfMemory,
    ] {
        let told = refused(Some(error(code))).unwrap_err();
        assert!(told.contains("nothing can be uploaded: why"), "{told}");
    }
}

#[test]
fn a_proc_that_hides_processes_is_seen() {
    for (mounts, expected) in [
        ("", false),
        ("proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n", false),
        ("proc /proc proc rw,relatime,hidepid=invisible 0 0\n", true),
        (
            "proc /proc proc rw,hidepid=2,gid=4 0 0\nproc /srv/proc proc rw 0 0\n",
            true,
        ),
        ("proc /proc proc rw,hidepid=0 0 0\n", false),
        ("proc /proc proc rw,hidepid=2 0 0\nproc /proc proc rw 0 0\n", false),
        ("proc /srv/proc proc rw,hidepid=2 0 0\n/proc\nproc /proc\n", false),
    ] {
        assert_eq!(hides_processes(mounts), expected, "{mounts}");
    }
}

fn settings(dir: &Path, change: impl FnOnce(&mut Layer)) -> NodeSettings {
    let mut layer = Layer {
        data: Some(dir.to_owned()),
        listen: Some("127.0.0.1:0".parse().unwrap()),
        no_admin: true,
        ..Layer::default()
    };
    change(&mut layer);
    resolve(layer, None).unwrap().node(None).unwrap()
}

#[test]
fn certificates_have_an_end_and_keys_an_owner() {
    let dir = tempfile::tempdir().unwrap();
    certs::make(dir.path(), &[]).unwrap();
    let file = |name: &str| dir.path().join(name);
    let files = TlsFiles {
        cert: file("node.pem"),
        key: file("node.key"),
        client_ca: Some(file("ca.pem")),
        ca: None,
    };
    let terms = files.terms().unwrap();
    assert_eq!(
        terms.iter().map(|term| term.own).collect::<Vec<_>>(),
        [true, false],
        "{terms:?}"
    );
    assert!(terms[0].subject.contains("skep node"), "{terms:?}");
    let until = u64::try_from(terms[0].until_s).unwrap();
    let looked = |now| {
        let mut report = Report::default();
        certificates(&files, now, &mut report);
        said(&report, TLS)
    };
    let now = SystemTime::now();
    assert!(
        looked(now).iter().all(|(severity, _)| *severity == Severity::Fine),
        "{:?}",
        looked(now)
    );
    assert!(
        looked(at(until - 86_400))
            .iter()
            .all(|(severity, _)| *severity == Severity::Warn)
    );
    let over = looked(at(until + 1));
    assert!(
        over[0].0 == Severity::Refuse && over[0].1.contains("ended on") && over[1].0 == Severity::Warn,
        "{over:?}"
    );
    let early = looked(UNIX_EPOCH);
    assert!(
        early[0].0 == Severity::Refuse && early[0].1.contains("begins on"),
        "{early:?}"
    );
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(
        looked(now)
            .iter()
            .any(|(severity, text)| *severity == Severity::Warn && text.contains("chmod 600"))
    );
    std::fs::write(&files.key, "no key").unwrap();
    assert!(
        matches!(looked(now).as_slice(), [(Severity::Refuse, text)] if text.contains("no private key")),
        "{:?}",
        looked(now)
    );

    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let keys_of = |settings: &NodeSettings| {
        let mut report = Report::default();
        keys(settings, &mut report);
        said(&report, KEYS)
    };
    let plain = settings(&data, |_| ());
    assert_eq!(keys_of(&plain)[0].0, Severity::Fine);
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0, "nothing was made");
    std::fs::write(data.join("artifact.key"), [0; 32]).unwrap();
    std::fs::set_permissions(data.join("artifact.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let found = keys_of(&plain);
    assert!(
        found[1].0 == Severity::Refuse && found[1].1.contains("chmod 600"),
        "{found:?}"
    );
    let gone = settings(&data, |layer| layer.secrets_key_file = Some(data.join("gone")));
    assert_eq!(keys_of(&gone)[0].0, Severity::Refuse);
}

#[test]
fn a_folder_of_somebody_else_and_one_in_use_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut report = Report::default();
    owner(dir.path(), &mut report);
    owner(&dir.path().join("gone"), &mut report);
    assert_eq!(report.found, Vec::new());
    // `/` is root's, and where root runs this it can give a folder away.
    let other = if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
        dir.path()
    } else {
        Path::new("/")
    };
    let (severity, text) = one(|report| owner(other, report));
    assert_eq!(
        (severity, text.contains("belongs to the user of number")),
        (Severity::Warn, true),
        "{text}"
    );

    // A store elsewhere: the folder has a lock of its own.
    let data = tempfile::tempdir().unwrap();
    let node = settings(data.path(), |layer| {
        layer.backend = Some("redis://127.0.0.1:1".parse().unwrap());
    });
    assert!(!node.in_use() && std::fs::read_dir(data.path()).unwrap().count() == 0);
    let lock = std::fs::File::create(data.path().join("lock")).unwrap();
    assert!(!node.in_use(), "nobody holds it");
    lock.lock().unwrap();
    assert!(node.in_use());
    drop(lock);
    assert!(!node.in_use());
}

#[tokio::test]
async fn ports_and_what_reaches_them() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let look = async |change: &dyn Fn(&mut Layer)| {
        let mut report = Report::default();
        of_settings(
            &settings(dir.path(), |layer| change(layer)),
            SystemTime::now(),
            &mut report,
        )
        .await;
        report
    };
    let free = look(&|_| ()).await;
    assert!(
        matches!(said(&free, PORTS).as_slice(), [(Severity::Fine, text)] if text.contains("is free")),
        "{free:?}"
    );
    assert_eq!((said(&free, TLS), said(&free, TOKENS)), (Vec::new(), Vec::new()));
    let address = taken.local_addr().unwrap();
    let busy = look(&|layer| layer.listen = Some(address)).await;
    assert!(
        matches!(said(&busy, PORTS).as_slice(), [(Severity::Refuse, text)] if text.contains("another program listens")),
        "{busy:?}"
    );
    // Reached from elsewhere, in the clear, without a token; then with leave.
    let open = |layer: &mut Layer| layer.listen = Some("0.0.0.0:0".parse().unwrap());
    let clear = look(&open).await;
    assert!(
        matches!(said(&clear, TLS).as_slice(), [(Severity::Refuse, text)] if text.contains("--tls-cert")),
        "{clear:?}"
    );
    assert_eq!(said(&clear, TOKENS)[0].0, Severity::Warn);
    let allowed = look(&|layer| {
        open(layer);
        layer.allow_insecure = true;
        layer.no_admin = false;
        layer.admin = Some("0.0.0.0:0".parse().unwrap());
    })
    .await;
    assert_eq!(said(&allowed, TLS)[0].0, Severity::Warn);
    assert!(
        said(&allowed, PORTS)
            .iter()
            .any(|(severity, text)| *severity == Severity::Warn && text.contains("metrics")),
        "{allowed:?}"
    );
}
