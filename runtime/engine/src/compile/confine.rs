//! The child limits itself before it looks at a byte of the upload.

use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::settings::CompilerLimits;

/// Standard streams, and room for what the runtime and allocator open.
const OPEN_FILES_MAX: u64 = 16;

pub(super) fn confine(limits: &CompilerLimits) -> std::io::Result<()> {
    let set = |resource, max: u64| {
        let limit = Rlimit {
            current: Some(max),
            maximum: Some(max),
        };
        setrlimit(resource, limit).map_err(std::io::Error::from)
    };
    set(Resource::Core, 0)?;
    set(Resource::As, limits.memory_bytes)?;
    // The soft limit's signal tells why; the hard one would be a bare kill.
    let cpu = Rlimit {
        current: Some(limits.cpu_s),
        maximum: Some(limits.cpu_s + 1),
    };
    setrlimit(Resource::Cpu, cpu)?;
    set(Resource::Nofile, OPEN_FILES_MAX)?;
    // The artifact goes to a memory file, which this bounds as well.
    set(Resource::Fsize, limits.artifact_bytes)?;
    // Best effort, all of it: the limits above make a busy compiler harmless, what follows makes a broken one so.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let _ = rustix::process::nice(5);
    let _ = shut_in();
    Ok(())
}

/// No file can be opened and no connection made from here on, by this thread and those that it starts. Kernels without
/// Landlock, or with an older one, do what they can.
fn shut_in() -> Result<(), landlock::RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V5))?
        .create()?
        .restrict_self()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_shut_in_opens_no_file() {
        let opened = std::thread::spawn(|| {
            shut_in().unwrap();
            std::fs::File::open("/proc/self/status").is_ok()
        });
        let opened = opened.join().unwrap();
        let supported = std::fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|l| l.contains("landlock"));
        assert!(!supported || !opened);
    }
}
