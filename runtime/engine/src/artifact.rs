//! Bytes in a sealed memory file: once sealed nobody can change them, so what was verified is what is used.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// The native code of one module, as our compiler process made it. Cheap to clone.
///
/// The only ways to get one are [`crate::Compiler::compile`] and [`crate::ArtifactCache::get`], because loading runs
/// these bytes with the rights of the process.
#[derive(Debug, Clone)]
pub struct Artifact(Arc<Sealed>);

impl Artifact {
    pub(crate) fn new(sealed: Sealed) -> Self {
        Self(Arc::new(sealed))
    }

    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no artifact is empty")]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// A name under which this process can open the bytes.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path()
    }

    pub(crate) fn open(&self) -> io::Result<File> {
        File::open(self.path())
    }
}

/// A memory file that can no longer change.
#[derive(Debug)]
pub(crate) struct Sealed {
    file: File,
    len: u64,
}

impl Sealed {
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// A descriptor of its own, reading from the start.
    pub(crate) fn reader(&self) -> io::Result<OwnedFd> {
        File::open(self.path()).map(OwnedFd::from)
    }

    pub(crate) fn of(name: &str, bytes: &[u8]) -> io::Result<Self> {
        let mut file = memory_file(name)?;
        file.write_all(bytes)?;
        seal(file)
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

/// An empty memory file. `name` is for people who look into `/proc`.
pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    Ok(File::from(fd))
}

/// Fails while anyone has the file mapped for writing.
pub(crate) fn seal(file: File) -> io::Result<Sealed> {
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    let len = file.metadata()?.len();
    Ok(Sealed { file, len })
}
