//! Each attempt is made in a process of its own: this test binary, run again for the one test `attempt`.

use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};

use super::*;

const ATTEMPT: &str = "SKEP_TEST_TENANT_ATTEMPT";

/// The errno of a system call, 0 if it succeeded.
fn call(number: libc::c_long, arguments: [i64; 6]) -> i32 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the attempts below pass null pointers, pointers to live values, and plain numbers; what is mapped is never touched.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => io::Error::last_os_error().raw_os_error().unwrap(),
        _ => 0,
    }
}

fn map(flags: i32) -> i32 {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_ANONYMOUS;
    call(libc::SYS_mmap, [0, 4_096, protection.into(), flags.into(), -1, 0])
}

/// The errno of one attempt, with a socket that the process had before.
fn tried(what: &str, socket: &UnixStream) -> i32 {
    let own: i64 = std::process::id().into();
    let parent: i64 = std::os::unix::process::parent_id().into();
    let file: i64 = socket.as_raw_fd().into();
    let command = |command: i32, value: i64| call(libc::SYS_fcntl, [file, command.into(), value, 0, 0, 0]);
    let byte = 7_u8;
    let send = |flags: i32| {
        call(
            libc::SYS_sendto,
            [file, (&raw const byte) as i64, 1, flags.into(), 0, 0],
        )
    };
    match what {
        "nothing" => 0,
        "thread" => match std::thread::Builder::new().spawn(|| ()) {
            Ok(_) => 0,
            Err(e) => e.raw_os_error().unwrap(),
        },
        "process" => call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0, 0]),
        "own-memory" => map(libc::MAP_PRIVATE),
        "shared-memory" => map(libc::MAP_SHARED),
        "checked-shared-memory" => map(libc::MAP_SHARED_VALIDATE),
        "memory-file" => call(libc::SYS_memfd_create, [c"x".as_ptr() as i64, 0, 0, 0, 0, 0]),
        "new-epoll" => call(libc::SYS_epoll_create1, [0; 6]),
        "new-event" => call(libc::SYS_eventfd2, [0; 6]),
        "another-descriptor" => call(libc::SYS_dup, [file, 0, 0, 0, 0, 0]),
        "huge-memory" => map(libc::MAP_PRIVATE | libc::MAP_HUGETLB),
        "give-back-memory" => call(libc::SYS_madvise, [0, 0, libc::MADV_DONTNEED.into(), 0, 0, 0]),
        "poison" => call(libc::SYS_madvise, [0, 0, libc::MADV_HWPOISON.into(), 0, 0, 0]),
        "take-offline" => call(libc::SYS_madvise, [0, 0, libc::MADV_SOFT_OFFLINE.into(), 0, 0, 0]),
        "open" => match std::fs::File::open("/proc/self/status") {
            Ok(_) => 0,
            Err(e) => e.raw_os_error().unwrap(),
        },
        "flags" => command(libc::F_GETFL, 0),
        "copy" => command(libc::F_DUPFD_CLOEXEC, 0),
        "set-owner" => command(libc::F_SETOWN, parent),
        "set-owner-of-a-group" => command(15, (&raw const byte) as i64),
        "set-signal" => command(10, libc::SIGKILL.into()),
        "lease" => command(libc::F_SETLEASE, libc::F_RDLCK.into()),
        "room-of-a-pipe" => command(libc::F_SETPIPE_SZ, 1 << 20),
        "asynchronous" => call(libc::SYS_ioctl, [file, 0x5452, (&raw const byte) as i64, 0, 0, 0]),
        "say" => send(libc::MSG_DONTWAIT),
        "say-out-of-band" => send(libc::MSG_OOB),
        "option" => call(
            libc::SYS_setsockopt,
            [file, libc::SOL_SOCKET.into(), libc::SO_SNDBUF.into(), 0, 0, 0],
        ),
        "ask-option" => call(
            libc::SYS_getsockopt,
            [file, libc::SOL_SOCKET.into(), libc::SO_PEERCRED.into(), 0, 0, 0],
        ),
        "limit" => call(libc::SYS_prlimit64, [0, 0, 0, 0, 0, 0]),
        "dumpable" => call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0, 0, 0]),
        "send-descriptors" => call(libc::SYS_sendmsg, [file, 0, 0, 0, 0, 0]),
        "socket" => call(
            libc::SYS_socket,
            [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0],
        ),
        "socket-pair" => call(
            libc::SYS_socketpair,
            [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0],
        ),
        "kill-parent" => call(libc::SYS_kill, [parent, 0, 0, 0, 0, 0]),
        "kill-thread-of-parent" => call(libc::SYS_tgkill, [parent, parent, 0, 0, 0, 0]),
        "read-parent" => call(libc::SYS_process_vm_readv, [parent, 0, 0, 0, 0, 0]),
        "take-descriptor" => call(libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0, 0]),
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), parent, 0, 0, 0, 0]),
        "execute" => call(libc::SYS_execve, [0, 0, 0, 0, 0, 0]),
        "signal-itself" => call(libc::SYS_tgkill, [own, own, 0, 0, 0, 0]),
        other => panic!("no attempt is named {other}"),
    }
}

/// The body of the process that makes an attempt; not a test.
#[test]
#[ignore = "run by the tests beside it, in a process of its own"]
fn attempt() {
    let what = std::env::var(ATTEMPT).expect("run by the tests beside it");
    let (socket, _other) = UnixStream::pair().unwrap();
    confine(std::os::unix::process::parent_id()).unwrap();
    forbid().unwrap();
    let errno = tried(&what, &socket);
    // SAFETY: it does not return, and nothing in this process needs to be put in order.
    unsafe { libc::_exit(errno) }
}

fn run(what: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "confined::tenant::tests::attempt",
            "--ignored",
            "--nocapture",
        ])
        .env(ATTEMPT, what)
        .stdout(Stdio::null());
    command.status().unwrap()
}

/// Says so where the kernel cannot confine a tenant: nothing of one runs there either.
fn able() -> bool {
    if let Some(missing) = missing() {
        use std::io::Write as _;
        let _ = writeln!(io::stderr(), "SKIPPED: this kernel has {missing}");
        return false;
    }
    true
}

#[test]
fn a_tenants_process_can_do_what_it_needs() {
    if !able() {
        return;
    }
    for what in [
        "nothing",
        "own-memory",
        "give-back-memory",
        "flags",
        "copy",
        "say",
        "signal-itself",
    ] {
        let status = run(what);
        assert_eq!(status.code(), Some(0), "{what}: {status}");
    }
}

#[test]
fn a_tenants_process_can_do_nothing_else() {
    if !able() {
        return;
    }
    for what in [
        "thread",
        "process",
        "shared-memory",
        "checked-shared-memory",
        "huge-memory",
        "poison",
        "take-offline",
        "new-epoll",
        "new-event",
        "another-descriptor",
        "set-owner",
        "set-owner-of-a-group",
        "set-signal",
        "lease",
        "room-of-a-pipe",
        "asynchronous",
        "say-out-of-band",
        "option",
        "ask-option",
        "limit",
        "dumpable",
    ] {
        let status = run(what);
        assert_eq!(status.code(), Some(libc::EPERM), "{what}: {status}");
    }
    assert_eq!(run("memory-file").code(), Some(libc::ENOSYS));
    // Landlock's.
    assert_eq!(run("open").code(), Some(libc::EACCES));
    for what in [
        "send-descriptors",
        "socket",
        "socket-pair",
        "kill-parent",
        "kill-thread-of-parent",
        "read-parent",
        "take-descriptor",
        "ptrace",
        "execute",
    ] {
        let status = run(what);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{what}: {status}");
    }
}
