//! The limits of a process that runs one tenant's Bees. What runs in it may be taken over by one of them; then it should find nothing but what
//! is that tenant's anyway.
//!
//! Unlike a compiler's it lives long, has threads, maps native code from memory files that it is handed, and talks over sockets that it was given.
//! So of its memory the kernel is told no bound: an engine's pool reserves terabytes of address space. The node looks at what is resident.

use std::io;
use std::io::Write as _;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetStatus,
    Scope,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit};

use super::syscalls;

/// Sockets of calls, of requests that Bees send, and files of modules.
/// What it was sent and does not read is in the kernel, about 200 KiB a socket.
const OPEN_FILES_MAX: u64 = 2_048;
/// Among processes of a machine that is out of memory: before the node, and before most of what else runs.
const OOM_SCORE: &[u8] = b"500";

/// What of that this kernel cannot do, so that no process of a tenant runs on it.
#[must_use]
pub fn missing() -> Option<&'static str> {
    // SAFETY: without attributes it makes nothing and tells a version.
    let landlock = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0_usize, 0_usize, 1_u32) };
    match (landlock >= 1, syscalls::offered()) {
        (true, true) => None,
        (false, _) => Some("no Landlock"),
        (_, false) => Some("no seccomp filters"),
    }
}

/// Nothing that the node had open is of use here, whatever forgot to close it.
pub(crate) fn close_others() {
    // SAFETY: nothing in this process has opened a descriptor above 2 yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}

/// Limits, but for system calls. To be called while the process has one thread, because Landlock holds for a thread and what it starts.
///
/// # Errors
/// A limit was not taken: nothing that a tenant made may be looked at.
pub(crate) fn confine(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if getppid().map(Pid::as_raw_pid) != i32::try_from(parent).ok() {
        return Err(io::Error::other("the node has ended"));
    }
    if let Ok(mut score) = std::fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj") {
        // A container may allow it or not; nothing else depends on it.
        let _ = score.write_all(OOM_SCORE);
    }
    let set = |resource, most: u64| {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit).map_err(io::Error::from)
    };
    set(Resource::Core, 0)?;
    let most = getrlimit(Resource::Nofile).maximum;
    set(
        Resource::Nofile,
        most.map_or(OPEN_FILES_MAX, |most| most.min(OPEN_FILES_MAX)),
    )?;
    // It writes none.
    set(Resource::Fsize, 0)?;
    // A little behind the node itself, which carries everybody's messages.
    let _ = rustix::process::nice(1);
    // No other process of this user may look into it: another tenant's, say.
    // SAFETY: it takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let status = shut_in().map_err(io::Error::other)?;
    drop_capabilities()?;
    if status == RulesetStatus::NotEnforced || !syscalls::offered() {
        return Err(io::Error::other(
            "this kernel has not both Landlock (since 5.13) and seccomp filters, without which a tenant's own process keeps nothing from it",
        ));
    }
    Ok(())
}

/// Of a node that root started, for good. What it needs to be limited is done before.
fn drop_capabilities() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`, and this process.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    // Effective, permitted and inheritable, twice 32 of each.
    let none = [0_u32; 6];
    for capability in 0..=63_u64 {
        // Fails for those that this kernel does not know, and without the right to, where there is nothing to drop.
        // SAFETY: it takes numbers only.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    // SAFETY: it reads a header and six numbers behind pointers that are valid.
    match unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// No file, no connection, no signal to others: each is asked for where the kernel knows it, and files must be.
fn shut_in() -> Result<RulesetStatus, landlock::RulesetError> {
    let done = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    Ok(done.ruleset)
}

/// System calls, for all threads that there are and for those to come.
///
/// # Errors
/// The kernel took no filter.
pub(crate) fn forbid() -> io::Result<()> {
    syscalls::restrict(syscalls::For::Tenant).map_err(|e| io::Error::other(e.to_string()))
}

#[cfg(test)]
mod tests;
