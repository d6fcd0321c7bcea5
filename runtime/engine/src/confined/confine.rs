//! The process limits itself before it looks at a byte of the upload.

use std::io;

use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetStatus, Scope};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{Bounds, syscalls};

/// Standard streams, and room for what the runtime and allocator open.
const OPEN_FILES_MAX: u64 = 16;

/// Limits this process for good: memory, CPU time, files, network, system calls. To be called first, by a process that was started for it.
///
/// # Errors
/// A limit was not taken. Nothing may be looked at then: end with [`super::UNCONFINED_STATUS`].
pub fn confine(bounds: &Bounds) -> io::Result<()> {
    let set = |resource, max: u64| {
        let limit = Rlimit {
            current: Some(max),
            maximum: Some(max),
        };
        setrlimit(resource, limit).map_err(io::Error::from)
    };
    set(Resource::Core, 0)?;
    set(Resource::As, bounds.memory_bytes)?;
    // The soft limit's signal tells why; the hard one would be a bare kill.
    let cpu = Rlimit {
        current: Some(bounds.cpu_s),
        maximum: Some(bounds.cpu_s + 1),
    };
    setrlimit(Resource::Cpu, cpu)?;
    set(Resource::Nofile, OPEN_FILES_MAX)?;
    // The answer goes to a memory file, which this bounds as well.
    set(Resource::Fsize, bounds.answer_bytes)?;
    // Best effort: the limits above make a busy compiler harmless, what follows makes a broken one so.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let _ = rustix::process::nice(5);
    let _ = shut_in();
    // Last, for it allows none of the above; and not best effort. Where the kernel has none, the node says so.
    if syscalls::offered() {
        syscalls::restrict(syscalls::For::Look)
            .map_err(|e| io::Error::other(format!("the kernel takes no filter of system calls: {e}")))?;
    }
    Ok(())
}

/// What this kernel cannot do for the confinement, for the node to tell.
#[must_use]
pub fn missing() -> Option<&'static str> {
    (!syscalls::offered()).then_some(
        "this kernel has no seccomp filters: a compiler that an upload takes over is held by Landlock and limits only",
    )
}

/// No file can be opened and no connection made from here on, by this thread and those that it starts. Kernels without
/// Landlock, or with an older one, do what they can.
fn shut_in() -> Result<RulesetStatus, landlock::RulesetError> {
    let done = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    Ok(done.ruleset)
}

#[cfg(test)]
mod tests;
