//! Which system calls a compiler may make, or a tenant's process, once it is confined.
//!
//! Three filters, of which the strictest answer counts: what a compiler needs is allowed and everything else fails with
//! EPERM, so that a call that some library makes on the side costs an honest compile nothing; what only somebody who has
//! taken the process over asks for ends it at once.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Memory, signals to itself, clocks, and descriptors that are open already. [`needed_only`] allows others in part.
const ALLOWED: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    // Its answer comes from a filter of its own: see `not_there`.
    libc::SYS_clone3,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
];

/// What a process that runs Bees needs beside it: to wait for sockets that it has, to say something on them, and to hear what brings descriptors.
/// It can make no socket, and nothing else of which a user has only so many: watches of new epolls, descriptors that are sent (`sendmsg`). What its
/// runtimes need of these is there before. [`needed_only`] allows some in part.
const OF_TENANTS: &[c_long] = &[
    libc::SYS_epoll_ctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
];

/// Of its open files: copies that an `execve` would close, flags, and seals. Not whom the kernel tells of what happens to them (`F_SETOWN` and
/// `F_SETSIG` with `O_ASYNC`): that would be a signal of its choice to any process of this user.
const FILE_COMMANDS: &[i32] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GET_SEALS,
    libc::F_ADD_SEALS,
];

/// Whom a filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A process that looks at an upload and ends.
    Look,
    /// One that runs a tenant's Bees.
    Tenant,
}

/// No library asks for these on the side: a program, another process, the network, the machine, or more rights.
const DEADLY: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_userfaultfd,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Whether this kernel has filters at all. One that has them and does not give them is no reason to go without.
pub(super) fn offered() -> bool {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: it reads four bytes behind a pointer that is valid, and changes nothing.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    let none = [Some(libc::ENOSYS), Some(libc::EINVAL)];
    answer == 0 || !none.contains(&io::Error::last_os_error().raw_os_error())
}

/// For all threads of the process, those to come included, and for good.
pub(super) fn restrict(whom: For) -> Result<(), Error> {
    // The list comes last: it does not allow another filter. All are made before the first is in force.
    let filters = [not_there(whom)?, without_attack(whom)?, needed_only(whom)?];
    filters.iter().try_for_each(|filter| apply_filter_all_threads(filter))
}

fn program(rules: Rules, matched: SeccompAction, other: SeccompAction) -> Result<BpfProgram, Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, other, matched, arch)?.try_into()?)
}

/// `clone3` hides its flags from filters, so it is not there. The C library then takes `clone`. In a tenant's process there are no memory files
/// either: what is written to one is in memory, and counted nowhere. The engine then takes images of memories from the module's own file.
fn not_there(whom: For) -> Result<BpfProgram, Error> {
    let mut rules: Rules = [(libc::SYS_clone3, Vec::new())].into();
    if whom == For::Tenant {
        rules.insert(libc::SYS_memfd_create, Vec::new());
    }
    program(rules, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow)
}

fn without_attack(whom: For) -> Result<BpfProgram, Error> {
    let deadly = DEADLY
        .iter()
        .filter(|call| whom == For::Look || !OF_TENANTS.contains(call));
    let mut rules: Rules = deadly.map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_tgkill, vec![when(0, Len::Dword, Op::Ne, own_pid())?]);
    program(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn needed_only(whom: For) -> Result<BpfProgram, Error> {
    // Threads, not processes, and in the namespaces that there are.
    const NAMESPACES: i32 = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
    let looked_at = thread | u64::from(NAMESPACES.cast_unsigned());

    let mut rules: Rules = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    if whom == For::Tenant {
        rules.extend(OF_TENANTS.iter().map(|call| (*call, Vec::new())));
        // Memory files are mapped by their names under /proc, and Landlock lets through no other. Nothing is opened for writing.
        let reading = (libc::O_RDONLY | libc::O_CLOEXEC).cast_unsigned().into();
        rules.insert(libc::SYS_openat, vec![when(2, Len::Dword, Op::Eq, reading)?]);
        // How the C library asks for the size of what is open. It could ask for that of a path too: that there is a file, not what is in it.
        let open = libc::AT_EMPTY_PATH.cast_unsigned().into();
        rules.insert(libc::SYS_newfstatat, vec![when(3, Len::Dword, Op::Eq, open)?]);
        // How a socket is told not to block.
        rules.insert(libc::SYS_ioctl, vec![when(1, Len::Dword, Op::Eq, libc::FIONBIO)?]);
        // How one says that it failed.
        let error = libc::SO_ERROR.cast_unsigned().into();
        rules.insert(libc::SYS_getsockopt, vec![when(2, Len::Dword, Op::Eq, error)?]);
        // Not out of band: such a byte is no part of the stream, and is handled apart in kernels that had flaws there.
        let out_of_band = u64::from(libc::MSG_OOB.cast_unsigned());
        for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_recvfrom, 3), (libc::SYS_recvmsg, 2)] {
            rules.insert(call, vec![when(flags, Len::Dword, Op::MaskedEq(out_of_band), 0)?]);
        }
        // What is shared, or in huge pages, is counted as nobody's. Its threads are there before this filter is: it needs no more, and could have any number.
        let uncounted = u64::from((libc::MAP_SHARED | libc::MAP_HUGETLB).cast_unsigned());
        rules.insert(libc::SYS_mmap, vec![when(3, Len::Dword, Op::MaskedEq(uncounted), 0)?]);
        // Its answer comes from a filter of its own: see `not_there`.
        rules.insert(libc::SYS_memfd_create, Vec::new());
    } else {
        // The images of memories: files without a name.
        for call in [libc::SYS_mmap, libc::SYS_memfd_create, libc::SYS_ftruncate] {
            rules.insert(call, Vec::new());
        }
        let of_thread = when(0, Len::Qword, Op::MaskedEq(looked_at), thread)?;
        rules.insert(libc::SYS_clone, vec![of_thread]);
    }
    // Not that pages of the machine are broken, by which they would be taken out of use.
    let poison = [libc::MADV_HWPOISON, libc::MADV_SOFT_OFFLINE];
    let conditions = poison.map(|advice| SeccompCondition::new(2, Len::Dword, Op::Ne, advice.cast_unsigned().into()));
    let conditions = conditions.into_iter().collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_madvise, vec![SeccompRule::new(conditions)?]);
    let command = |command: &i32| when(1, Len::Dword, Op::Eq, command.cast_unsigned().into());
    let commands = FILE_COMMANDS.iter().map(command).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_fcntl, commands);
    // How a process that aborts ends itself.
    rules.insert(libc::SYS_tgkill, vec![when(0, Len::Dword, Op::Eq, own_pid())?]);
    let name = libc::PR_SET_NAME.cast_unsigned().into();
    rules.insert(libc::SYS_prctl, vec![when(0, Len::Dword, Op::Eq, name)?]);
    program(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32))
}

fn when(argument: u8, len: Len, op: Op, value: u64) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(
        argument, len, op, value,
    )?])?)
}

fn own_pid() -> u64 {
    std::process::id().into()
}
