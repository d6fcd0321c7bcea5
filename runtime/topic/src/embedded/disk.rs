//! The data folder: the lock that proves ownership, and the space held back for a full disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use skep_model::limits::{RESERVE_BYTES_MAX, WAL_BYTES};

use super::OpenError;

/// Held for as long as the store is open; the system releases it however the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

/// Explicitly, because a process being started by another thread holds a copy of the handle until it runs its own program.
impl Drop for Lock {
    fn drop(&mut self) {
        // Closing does the same a moment later.
        let _ = self.file.unlock();
    }
}

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("lock");
        let io = |source| OpenError::Folder {
            dir: dir.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Only for the message, so a failure to read it does not matter.
                let _ = file.take(32).read_to_string(&mut pid);
                return Err(OpenError::InUse {
                    dir: dir.to_owned(),
                    pid: pid.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { file })
    }
}

/// A file whose only use is to be deleted.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    pub(super) fn of(dir: &Path) -> Self {
        let of_fs = rustix::fs::statvfs(dir).map_or(0, |fs| fs.f_blocks.saturating_mul(fs.f_frsize) / 8);
        Self {
            path: dir.join("reserve"),
            bytes: RESERVE_BYTES_MAX.min(of_fs),
        }
    }

    /// How large the write-ahead log may grow: folding it into a full disk's database may need as much again, and what drains
    /// afterwards needs some too. So the reserve is worth four of them.
    pub(super) fn wal_bytes(&self) -> u64 {
        (self.bytes / 4).clamp(256 << 10, WAL_BYTES as u64)
    }

    /// Makes it, with real blocks. Returns whether it stands.
    pub(super) fn hold(&self) -> bool {
        if self.path.metadata().is_ok_and(|m| m.len() == self.bytes) {
            return true;
        }
        let made = File::create(&self.path).is_ok_and(|file| {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.bytes.max(1)).is_ok()
        });
        if !made {
            self.free();
        }
        made
    }

    pub(super) fn free(&self) {
        // Absent is what is wanted.
        let _ = std::fs::remove_file(&self.path);
    }
}
