//! Signed artifacts on disk, one file each, named by what they are. Verified whenever one is loaded, not when it came: what
//! lies on a disk may have been changed since.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use skep_engine::signed::{self, Expected};
use skep_engine::{Artifact, Target};

use crate::keys::Public;
use crate::limits::{ARTIFACT_BYTES_MAX, ARTIFACT_HEAD_BYTES_MAX};
use crate::orders::CodeOrder;

/// The folder of them. Methods block on disk.
#[derive(Debug, Clone)]
pub struct Shelf {
    dir: PathBuf,
    hub: Public,
    host: Target,
}

impl Shelf {
    /// # Errors
    /// The folder cannot be made.
    pub fn open(dir: &Path, hub: Public) -> anyhow::Result<Self> {
        if !dir.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .with_context(|| format!("make the folder {}", dir.display()))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            hub,
            host: Target::host(),
        })
    }

    fn path(&self, code: CodeOrder) -> PathBuf {
        self.dir.join(code.file_name())
    }

    /// Whether there is a file of that name. Whether it is good is found when it is loaded.
    #[must_use]
    pub fn has(&self, code: CodeOrder) -> bool {
        self.path(code).exists()
    }

    /// An artifact, verified. One that is not good is deleted, so that it is fetched again.
    ///
    /// # Errors
    /// It is not there, or is not what the hub said: which, and why.
    pub fn get(&self, code: CodeOrder) -> anyhow::Result<Artifact> {
        let path = self.path(code);
        let file = File::open(&path).with_context(|| format!("the code of module {}", code.module))?;
        match self.verified(file, code) {
            Ok(artifact) => Ok(artifact),
            Err(why) => {
                if !matches!(why, signed::Refused::Io(_)) {
                    let _ = fs::remove_file(&path);
                }
                Err(why).with_context(|| format!("the code of module {}, {}", code.module, path.display()))
            }
        }
    }

    fn verified(&self, file: File, code: CodeOrder) -> Result<Artifact, signed::Refused> {
        let expected = Expected {
            module: code.module,
            native: code.native,
            bytes_max: ARTIFACT_BYTES_MAX,
        };
        signed::open(&mut BufReader::new(file), &self.hub, expected, &self.host)
    }

    /// A file that an artifact is written into as it comes, with what came of it before a connection broke.
    ///
    /// # Errors
    /// The disk fails.
    pub fn begin(&self, code: CodeOrder) -> anyhow::Result<Coming> {
        let during = self.dir.join(format!(".{}.new", code.file_name()));
        let file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&during)
            .with_context(|| format!("write {}", during.display()))?;
        let bytes = file.metadata()?.len();
        Ok(Coming { during, file, bytes })
    }

    /// Takes one that came whole, if it is what the hub said.
    ///
    /// # Errors
    /// It is not: which, and why. Nothing of it is kept.
    pub fn take(&self, coming: Coming, code: CodeOrder) -> anyhow::Result<()> {
        let Coming { during, file, .. } = coming;
        let done = (|| {
            file.sync_all()?;
            self.verified(File::open(&during)?, code)
                .with_context(|| format!("the code of module {}", code.module))?;
            fs::rename(&during, self.path(code))?;
            File::open(&self.dir)?.sync_all()?;
            Ok(())
        })();
        if done.is_err() {
            let _ = fs::remove_file(&during);
        }
        done
    }

    /// Deletes what no orders name any more, and what came in part.
    ///
    /// # Errors
    /// The disk fails.
    pub fn keep_only(&self, wanted: &BTreeSet<CodeOrder>) -> anyhow::Result<()> {
        let names: BTreeSet<PathBuf> = wanted.iter().map(|code| self.path(*code)).collect();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if !names.contains(&path)
                && let Err(e) = fs::remove_file(&path)
                && e.kind() != ErrorKind::NotFound
            {
                return Err(e).with_context(|| format!("delete {}", path.display()));
            }
        }
        Ok(())
    }
}

/// An artifact on its way.
#[derive(Debug)]
pub struct Coming {
    during: PathBuf,
    file: File,
    bytes: u64,
}

impl Coming {
    /// How much of it is there.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The part that begins at `at`. What begins at 0 begins anew: the hub has another file of that name than the one that was begun.
    ///
    /// # Errors
    /// It is too large, or none that follows; or the disk fails or is full.
    pub fn add(&mut self, at: u64, part: &[u8]) -> anyhow::Result<()> {
        if at == 0 && self.bytes > 0 {
            self.file.set_len(0)?;
            self.bytes = 0;
        }
        if at != self.bytes {
            bail!("the hub sends the part at {at} where the one at {} is next", self.bytes);
        }
        self.bytes += part.len() as u64;
        if self.bytes > ARTIFACT_BYTES_MAX + ARTIFACT_HEAD_BYTES_MAX {
            bail!("the hub sends an artifact of more than {ARTIFACT_BYTES_MAX} bytes");
        }
        self.file
            .write_all(part)
            .with_context(|| format!("write {}", self.during.display()))
    }
}
