//! Compiled artifacts on disk. They are native code, so each carries a MAC under a key that only this node has, and
//! nothing is loaded that does not verify.
//!
//! A file is `magic (8) | mac (32) | digest of the code it shares, or zeros (32) | artifact`. The MAC covers engine fingerprint,
//! module digest, that other digest, length and artifact, so a file copied to another name, node or version does not verify either. A file is copied into a sealed memory file
//! while it is read for the MAC: nobody can swap it between check and use. That costs one pass over the bytes (SHA-256,
//! well under a millisecond for a Rust Bee, some 30 ms for a Python one) and the artifact's size in memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use skep_model::id::Digest;

use crate::artifact::{Artifact, Sealed, Shared, memory_file, seal};
use crate::engine::Engine;

const MAGIC: &[u8; 8] = b"skepart2";
const MAC_BYTES: usize = 32;
const DIGEST_BYTES: usize = 32;
const HEAD_BYTES: u64 = (MAGIC.len() + MAC_BYTES + DIGEST_BYTES) as u64;
const SUFFIX: &str = "skepc";
const CHUNK_BYTES: usize = 256 << 10;

/// What a file is the native code of.
#[derive(Debug, Clone, Copy)]
enum Of {
    Module,
    Code,
}

/// Of a module that shares no code.
const NOTHING: Digest = Digest([0; DIGEST_BYTES]);

/// The node's own store of compiled modules. Methods block on disk: call them off the async threads.
#[derive(Debug)]
pub struct ArtifactCache {
    dir: PathBuf,
    key: [u8; 32],
    fingerprint: [u8; 32],
    bytes_max: u64,
    artifact_bytes_max: u64,
    refused: AtomicU64,
}

impl ArtifactCache {
    /// Opens the cache of `engine` in its `cache_dir`, with the key in `key_file`, which should lie in another private
    /// folder of the node. Makes folder (0700) and key (0600) where they are missing.
    ///
    /// # Errors
    /// The folder or the key can be read by others, or the disk fails.
    pub fn open(engine: &Engine, key_file: &Path) -> io::Result<Self> {
        let settings = engine.settings();
        let dir = settings.cache_dir.clone();
        if !dir.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        }
        private(&dir, 0o700)?;
        Ok(Self {
            key: key(key_file)?,
            dir,
            fingerprint: engine.fingerprint(),
            bytes_max: settings.cache_bytes,
            artifact_bytes_max: settings.compiler.artifact_bytes,
            refused: AtomicU64::new(0),
        })
    }

    /// Files that did not verify since the start. Each was deleted.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The artifact of a module, if this node has compiled it for this engine. A file that does not verify is deleted
    /// and counted, and the answer is `None`: compile again.
    ///
    /// # Errors
    /// The disk fails.
    pub fn get(&self, digest: Digest) -> io::Result<Option<Artifact>> {
        let Some((own, shares)) = self.read(Of::Module, digest)? else {
            return Ok(None);
        };
        if shares == NOTHING {
            return Ok(Some(Artifact::new(own, None)));
        }
        // Gone where room was made: what needs it is compiled again too.
        let code = self.code(shares)?;
        Ok(code.map(|code| Artifact::new(own, Some(code))))
    }

    /// Whether there is a file of a module. Whether it verifies is found when it is read.
    #[must_use]
    pub fn has(&self, digest: Digest) -> bool {
        self.path(Of::Module, digest).exists()
    }

    /// Code that modules share, by the digest of its WebAssembly.
    pub(crate) fn code(&self, digest: Digest) -> io::Result<Option<Shared>> {
        let found = self.read(Of::Code, digest)?;
        Ok(found.map(|(native, _)| Shared {
            digest,
            native: Arc::new(native),
        }))
    }

    /// A file's artifact, and the digest of the code that it shares.
    fn read(&self, of: Of, digest: Digest) -> io::Result<Option<(Sealed, Digest)>> {
        let path = self.path(of, digest);
        // Not through a link: the file must be ours.
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if let Some(verified) = self.verified(&mut file, of, digest)? {
            // Says that it is in use; the oldest go first.
            let _ = file.set_modified(SystemTime::now());
            return Ok(Some(verified));
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(path = %path.display(), "a compiled module did not verify; it is deleted and will be compiled again");
        fs::remove_file(&path)?;
        Ok(None)
    }

    fn verified(&self, file: &mut File, of: Of, digest: Digest) -> io::Result<Option<(Sealed, Digest)>> {
        let meta = file.metadata()?;
        let len = match meta.len().checked_sub(HEAD_BYTES) {
            Some(len) if meta.is_file() && len > 0 && len <= self.artifact_bytes_max => len,
            _ => return Ok(None),
        };
        let mut magic = [0; MAGIC.len()];
        let mut stored = [0; MAC_BYTES];
        let mut shares = NOTHING;
        if file
            .read_exact(&mut magic)
            .and_then(|()| file.read_exact(&mut stored))
            .and_then(|()| file.read_exact(&mut shares.0))
            .is_err()
            || &magic != MAGIC
        {
            return Ok(None);
        }
        let mut mac = self.mac(of, digest, shares, len);
        let mut copy = memory_file("skep-artifact")?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut left = len;
        while left > 0 {
            let want = usize::try_from(left.min(CHUNK_BYTES as u64)).unwrap_or(CHUNK_BYTES);
            let got = file.read(&mut chunk[..want])?;
            if got == 0 {
                return Ok(None);
            }
            mac.update(&chunk[..got]);
            copy.write_all(&chunk[..got])?;
            left -= got as u64;
        }
        // Compares in constant time.
        if mac.verify_slice(&stored).is_err() {
            return Ok(None);
        }
        Ok(Some((seal(copy)?, shares)))
    }

    /// Keeps an artifact, then makes room by deleting the ones that were not used for longest. A file that others hold
    /// is replaced whole, so a reader sees the old or the new one.
    ///
    /// # Errors
    /// The disk fails or is full.
    pub fn put(&self, digest: Digest, artifact: &Artifact) -> io::Result<()> {
        let mut shares = NOTHING;
        if let Some(code) = artifact.code() {
            shares = code.digest;
            if !self.path(Of::Code, shares).exists() {
                self.write(Of::Code, shares, NOTHING, &code.native)?;
            }
        }
        self.write(Of::Module, digest, shares, artifact.own())?;
        self.evict()
    }

    fn write(&self, of: Of, digest: Digest, shares: Digest, artifact: &Sealed) -> io::Result<()> {
        let mut mac = self.mac(of, digest, shares, artifact.len());
        let mut source = artifact.open()?;
        let mut temporary = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(&self.dir)?;
        let file = temporary.as_file_mut();
        file.write_all(MAGIC)?;
        file.write_all(&[0; MAC_BYTES])?;
        file.write_all(&shares.0)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let got = source.read(&mut chunk)?;
            if got == 0 {
                break;
            }
            mac.update(&chunk[..got]);
            file.write_all(&chunk[..got])?;
        }
        let tag = mac.finalize().into_bytes();
        std::os::unix::fs::FileExt::write_all_at(file, &tag, MAGIC.len() as u64)?;
        // No flush: a file that a crash tears does not verify and is made again.
        temporary.persist(self.path(of, digest)).map_err(|e| e.error)?;
        Ok(())
    }

    fn evict(&self) -> io::Result<()> {
        let mut files = Vec::new();
        let mut total = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_none_or(|e| e != SUFFIX) {
                continue;
            }
            // Another process may have deleted it just now.
            let Ok(meta) = entry.metadata() else { continue };
            total += meta.len();
            files.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), path));
        }
        files.sort();
        // The newest stays, whatever its size: it is about to be used.
        for (_, len, path) in files.iter().take(files.len().saturating_sub(1)) {
            if total <= self.bytes_max {
                break;
            }
            fs::remove_file(path)?;
            total -= len;
        }
        Ok(())
    }

    fn mac(&self, of: Of, digest: Digest, shares: Digest, len: u64) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(match of {
            Of::Module => b"skep artifact 2".as_slice(),
            Of::Code => b"skep shared code 2",
        });
        mac.update(&self.fingerprint);
        mac.update(&digest.0);
        mac.update(&shares.0);
        mac.update(&len.to_le_bytes());
        mac
    }

    fn path(&self, of: Of, digest: Digest) -> PathBuf {
        let engine = Digest(self.fingerprint).short();
        let of = match of {
            Of::Module => "",
            Of::Code => "code-",
        };
        self.dir.join(format!("{of}{}-{engine}.{SUFFIX}", digest.to_hex()))
    }
}

fn key(path: &Path) -> io::Result<[u8; 32]> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty() && !d.exists()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(io::Error::other)?;
            file.write_all(&key)?;
            file.sync_all()?;
            Ok(key)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            private(path, 0o600)?;
            let bytes = fs::read(path)?;
            bytes.as_slice().try_into().map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "the artifact key {} has {} bytes, not 32; delete it, and modules will be compiled again",
                        path.display(),
                        bytes.len()
                    ),
                )
            })
        }
        Err(e) => Err(e),
    }
}

/// Refuses what others may read or write.
fn private(path: &Path, mode: u32) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?.mode() & 0o777;
    if found & !mode == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{} has mode {found:o}, but compiled modules must be private; run `chmod {mode:o} {}`",
            path.display(),
            path.display()
        ),
    ))
}
