//! Bytes in a sealed memory file: once sealed nobody can change them, so what was verified is what is used.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use skep_model::id::Digest;

/// How a module whose libraries were compiled apart names their code.
pub(crate) const CODE: &str = "code";

/// The native code of one module, as our compiler process made it, or a hub's. Cheap to clone.
///
/// The only ways to get one are the compiler (`Compiler::compile`), [`crate::ArtifactCache::get`] and [`crate::signed::open`], because loading
/// runs these bytes with the rights of the process.
#[derive(Debug, Clone)]
pub struct Artifact {
    own: Arc<Sealed>,
    /// The code of its libraries, where that was compiled apart.
    code: Option<Shared>,
}

/// Native code that several modules may use. Its digest is that of the WebAssembly that it was made of, and of nothing else.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) digest: Digest,
    pub(crate) native: Arc<Sealed>,
}

impl Artifact {
    pub(crate) fn new(own: Sealed, code: Option<Shared>) -> Self {
        Self {
            own: Arc::new(own),
            code,
        }
    }

    /// Of memory files that came from the node that started this process.
    ///
    /// # Errors
    /// One of them could still change.
    #[cfg(feature = "compiler")]
    pub(crate) fn received(own: OwnedFd, code: Option<(Digest, OwnedFd)>) -> io::Result<Self> {
        let code = match code {
            Some((digest, native)) => Some(Shared {
                digest,
                native: Arc::new(Sealed::received(native)?),
            }),
            None => None,
        };
        Ok(Self::new(Sealed::received(own)?, code))
    }

    /// The same, with the file of shared code that `other` has, where it is the same code: each reading of the cache makes a file of its own.
    #[cfg(feature = "compiler")]
    pub(crate) fn with_code_of(mut self, other: &Self) -> Self {
        if let (Some(own), Some(its)) = (&mut self.code, &other.code)
            && own.digest == its.digest
        {
            own.native = Arc::clone(&its.native);
        }
        self
    }

    /// For another process to have: its own code, and what it shares with others.
    #[cfg(feature = "compiler")]
    pub(crate) fn hand_over(&self) -> io::Result<Vec<OwnedFd>> {
        let shared = self.code.iter().map(|code| &code.native);
        std::iter::once(&self.own)
            .chain(shared)
            .map(|sealed| sealed.reader())
            .collect()
    }

    /// Bytes of native code, without what is shared with other modules.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no artifact is empty")]
    pub fn len(&self) -> u64 {
        self.own.len
    }

    /// What it shares with others: which code, and how many bytes.
    #[must_use]
    pub fn shared(&self) -> Option<(Digest, u64)> {
        self.code.as_ref().map(|code| (code.digest, code.native.len))
    }

    pub(crate) fn own(&self) -> &Sealed {
        &self.own
    }

    pub(crate) fn code(&self) -> Option<&Shared> {
        self.code.as_ref()
    }
}

/// A memory file that can no longer change.
#[derive(Debug)]
pub struct Sealed {
    file: File,
    len: u64,
}

impl Sealed {
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    #[cfg(feature = "compiler")]
    fn received(file: OwnedFd) -> io::Result<Self> {
        let seals = fcntl_get_seals(&file)?;
        if !seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK) {
            return Err(io::Error::other("a memory file that is not sealed"));
        }
        let file = File::from(file);
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    pub(crate) fn open(&self) -> io::Result<File> {
        File::open(self.path())
    }

    /// A descriptor of its own, reading from the start.
    #[cfg(feature = "compiler")]
    pub(crate) fn reader(&self) -> io::Result<OwnedFd> {
        self.open().map(OwnedFd::from)
    }

    #[cfg(any(test, feature = "compiler"))]
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
