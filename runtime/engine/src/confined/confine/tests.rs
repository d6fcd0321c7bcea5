//! Each attempt is made in a process of its own: this test binary, run again for the one test `attempt`.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};

use super::*;

const ATTEMPT: &str = "SKEP_TEST_ATTEMPT";
const FREE: &str = "SKEP_TEST_UNCONFINED";
const SIGSYS: i32 = libc::SIGSYS;
const CONFINED_WITHOUT: i32 = 101;
const REFUSED: i32 = 102;

/// The errno of a system call, 0 if it succeeded.
fn call(number: libc::c_long, arguments: [i64; 4]) -> i32 {
    let [a, b, c, d] = arguments;
    // SAFETY: the attempts below pass null pointers, pointers to live strings, and plain numbers.
    let answer = unsafe { libc::syscall(number, a, b, c, d) };
    if answer >= 0 { 0 } else { errno() }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap()
}

fn opens(path: &str) -> i32 {
    match std::fs::File::open(path) {
        Ok(_) => 0,
        Err(e) => e.raw_os_error().unwrap(),
    }
}

fn forks() -> i32 {
    // SAFETY: the child, should there be one, does nothing but end.
    match unsafe { libc::fork() } {
        0 => end(0),
        -1 => errno(),
        _ => 0,
    }
}

/// Runs a shell that succeeds, if it may.
fn executes() -> i32 {
    let arguments = [
        c"/bin/sh".as_ptr(),
        c"-c".as_ptr(),
        c"exit 0".as_ptr(),
        std::ptr::null(),
    ];
    // SAFETY: path, arguments and environment are terminated as they must be.
    unsafe { libc::execve(arguments[0], arguments.as_ptr(), arguments[3..].as_ptr()) };
    errno()
}

fn end(code: i32) -> ! {
    // SAFETY: it does not return, and nothing in this process needs to be put in order.
    unsafe { libc::_exit(code) }
}

fn parent() -> i64 {
    std::os::unix::process::parent_id().into()
}

/// The errno of one attempt.
fn tried(what: &str) -> i32 {
    let own: i64 = std::process::id().into();
    match what {
        "nothing" => 0,
        "open" => opens("/proc/self/status"),
        "create" => std::fs::File::create(std::env::temp_dir().join(format!("skep-confined-{own}")))
            .map_or_else(|e| e.raw_os_error().unwrap(), |_| 0),
        "stat" => std::fs::metadata("/").map_or_else(|e| e.raw_os_error().unwrap(), |_| 0),
        "thread" => std::thread::Builder::new()
            .name("named".into())
            .spawn(|| opens("/proc/self/status"))
            .unwrap()
            .join()
            .unwrap(),
        "fork" => forks(),
        "namespace" => call(libc::SYS_clone, [(libc::CLONE_NEWUSER | libc::SIGCHLD).into(), 0, 0, 0]),
        "set-owner" => call(libc::SYS_fcntl, [2, libc::F_SETOWN.into(), parent(), 0]),
        "set-signal" => call(libc::SYS_fcntl, [2, 10, libc::SIGKILL.into(), 0]),
        "clone3" => call(libc::SYS_clone3, [0; 4]),
        "filter" => call(libc::SYS_seccomp, [i64::from(libc::SECCOMP_SET_MODE_FILTER), 0, 0, 0]),
        "dumpable" => call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0]),
        "limit" => call(libc::SYS_prlimit64, [0, 0, 0, 0]),
        "abort" => std::process::abort(),
        "execve" => executes(),
        "kill-parent" => call(libc::SYS_kill, [parent(), 0, 0, 0]),
        "tgkill-parent" => call(libc::SYS_tgkill, [parent(), parent(), 0, 0]),
        "socket" => call(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0]),
        "unix-socket" => call(libc::SYS_socket, [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0]),
        "connect" => call(libc::SYS_connect, [0; 4]),
        "bind" => call(libc::SYS_bind, [0; 4]),
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0, 0]),
        "read-parent" => call(libc::SYS_process_vm_readv, [parent(), 0, 0, 0]),
        "io-uring" => call(libc::SYS_io_uring_setup, [1, 0, 0, 0]),
        "by-handle" => call(libc::SYS_open_by_handle_at, [0; 4]),
        "bpf" => call(libc::SYS_bpf, [0; 4]),
        "keyctl" => call(libc::SYS_keyctl, [0; 4]),
        "mount" => call(libc::SYS_mount, [0; 4]),
        "unshare" => call(libc::SYS_unshare, [0; 4]),
        other => panic!("no attempt is named {other}"),
    }
}

/// The body of the process that makes an attempt; not a test.
#[test]
#[ignore = "run by the tests beside it, in a process of its own"]
fn attempt() {
    let what = std::env::var(ATTEMPT).expect("run by the tests beside it");
    if let Some(errno) = what.strip_prefix("kernel-answers-") {
        answer_filters_with(errno.parse().unwrap());
        end(match (confine(&Bounds::default()), missing()) {
            (Ok(()), Some(_)) => CONFINED_WITHOUT,
            (Err(e), None) if e.to_string().contains("takes no filter") => REFUSED,
            (Ok(()), None) => 0,
            (_, _) => 1,
        });
    }
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (older, what) = match what.strip_prefix("older-") {
        Some(rest) => (true, rest.to_owned()),
        None => (false, what),
    };
    // A thread that was there before: it must be confined as well.
    let before = std::thread::spawn(move || gone.recv().map(|()| tried(&what)));
    if !older {
        drop(go);
        before.join().unwrap().unwrap_err();
        confine_unless_free();
        end(tried(&std::env::var(ATTEMPT).unwrap()));
    }
    confine_unless_free();
    go.send(()).unwrap();
    end(before.join().unwrap().unwrap());
}

/// As a kernel would that has no filters, or gives none.
fn answer_filters_with(errno: u32) {
    use seccompiler::{SeccompAction, SeccompFilter};
    let filter = SeccompFilter::new(
        [(libc::SYS_seccomp, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter_all_threads(&program).unwrap();
}

fn confine_unless_free() {
    if std::env::var_os(FREE).is_none() {
        confine(&Bounds::default()).unwrap();
    }
}

fn run(what: &str, free: bool) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "confined::confine::tests::attempt",
            "--ignored",
            "--nocapture",
        ])
        .env(ATTEMPT, what)
        .stdout(std::process::Stdio::null());
    if free {
        command.env(FREE, "1");
    }
    command.status().unwrap()
}

/// Not by a macro, whose output the test harness would swallow.
fn say(what: &str) {
    use std::io::Write as _;
    let _ = writeln!(io::stderr(), "{what}");
}

/// Says so where the kernel has no filters: there is nothing to test there.
fn filters() -> bool {
    let offered = syscalls::offered();
    if !offered {
        say("SKIPPED: this kernel has no seccomp filters");
    }
    offered
}

#[test]
fn what_is_asked_for_on_the_side_fails() {
    if !filters() {
        return;
    }
    for what in [
        "open",
        "create",
        "stat",
        "thread",
        "fork",
        "namespace",
        "filter",
        "dumpable",
        "limit",
        "set-owner",
        "set-signal",
        "older-open",
        "older-fork",
    ] {
        let status = run(what, false);
        assert_eq!(status.code(), Some(libc::EPERM), "{what}: {status}");
    }
    assert_eq!(run("clone3", false).code(), Some(libc::ENOSYS));
    assert_eq!(run("nothing", false).code(), Some(0));
    assert_eq!(run("abort", false).signal(), Some(libc::SIGABRT));
}

#[test]
fn what_only_an_attacker_asks_for_ends_the_process() {
    if !filters() {
        return;
    }
    for what in [
        "execve",
        "kill-parent",
        "tgkill-parent",
        "socket",
        "unix-socket",
        "connect",
        "bind",
        "ptrace",
        "read-parent",
        "io-uring",
        "by-handle",
        "bpf",
        "keyctl",
        "mount",
        "unshare",
        "older-socket",
        "older-execve",
    ] {
        let status = run(what, false);
        assert_eq!(status.signal(), Some(SIGSYS), "{what}: {status}");
    }
}

/// That the attempts fail for the confinement and nothing else.
#[test]
fn the_attempts_succeed_without_confinement() {
    for what in [
        "open",
        "stat",
        "thread",
        "fork",
        "execve",
        "kill-parent",
        "socket",
        "unix-socket",
        "older-open",
        "older-fork",
        "older-socket",
    ] {
        let status = run(what, true);
        assert_eq!(status.code(), Some(0), "{what}: {status}");
    }
}

#[test]
fn without_a_filter_nothing_is_compiled_unless_the_kernel_has_none() {
    if !filters() {
        return;
    }
    for (errno, end) in [
        (libc::EPERM, REFUSED),
        (libc::ENOMEM, REFUSED),
        (libc::ENOSYS, CONFINED_WITHOUT),
        (libc::EINVAL, CONFINED_WITHOUT),
    ] {
        let status = run(&format!("kernel-answers-{errno}"), false);
        assert_eq!(status.code(), Some(end), "{errno}: {status}");
    }
}

/// Landlock alone, on a thread: a second lock behind the filter of system calls.
#[test]
fn a_thread_that_is_shut_in_opens_no_file_and_connects_nowhere() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::net::TcpStream::connect(address).unwrap();
    let inside = std::thread::spawn(move || {
        let status = shut_in().unwrap();
        (
            status,
            opens("/proc/self/status"),
            std::net::TcpStream::connect(address),
        )
    });
    let (status, opened, connected) = inside.join().unwrap();
    match status {
        RulesetStatus::NotEnforced => {
            say("SKIPPED: this kernel has no Landlock, or it was not chosen at boot");
            return;
        }
        // Files are there from the first version, TCP from the fourth.
        RulesetStatus::PartiallyEnforced => say("SKIPPED for TCP: this kernel's Landlock is an old one"),
        RulesetStatus::FullyEnforced => {
            assert_eq!(connected.unwrap_err().raw_os_error(), Some(libc::EACCES));
        }
    }
    assert_eq!(opened, libc::EACCES);
}
