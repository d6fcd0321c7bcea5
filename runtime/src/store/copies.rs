//! Copies of components that lie in a remote store: verified when read, bounded, the longest unused go first.
//!
//! When a copy was last used is the time of its file, so that it survives the node. Methods block on disk.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use skep_model::Bytes;
use skep_model::id::Digest;

/// A file that is being written begins so.
const NEW: &str = ".new-";

pub(super) struct Copies {
    dir: PathBuf,
    bytes_max: u64,
}

impl Copies {
    pub fn open(dir: PathBuf, bytes_max: u64) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let copies = Self { dir, bytes_max };
        for entry in fs::read_dir(&copies.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(NEW) {
                fs::remove_file(entry.path())?;
            }
        }
        copies.make_room()?;
        Ok(copies)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.to_hex())
    }

    /// `None` also for a damaged one, which is deleted. `most`: bytes of the largest that can be.
    pub fn get(&self, digest: Digest, most: u64) -> io::Result<Option<Bytes>> {
        let file = match File::open(self.path(digest)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        (&file).take(most + 1).read_to_end(&mut bytes)?;
        if Digest::of(&bytes) != digest {
            tracing::warn!(%digest, "a copy is damaged; it is fetched again");
            self.remove(digest)?;
            return Ok(None);
        }
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(bytes.into()))
    }

    /// Whole or not at all. Not flushed: what a power cut leaves of it does not verify.
    pub fn put(&self, digest: Digest, bytes: &Bytes) -> io::Result<()> {
        let mut new = tempfile::Builder::new().prefix(NEW).tempfile_in(&self.dir)?;
        new.write_all(bytes)?;
        new.persist(self.path(digest)).map_err(|e| e.error)?;
        self.make_room()
    }

    pub fn remove(&self, digest: Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn make_room(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Somebody else may have made room at the same time.
            if let Ok(meta) = entry.metadata()
                && !entry.file_name().to_string_lossy().starts_with(NEW)
            {
                files.push((meta.modified()?, meta.len(), entry.path()));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if total <= self.bytes_max {
                break;
            }
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => total -= len,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn component(n: u8) -> (Digest, Bytes) {
        let bytes = Bytes::from(vec![n; 100]);
        (Digest::of(&bytes), bytes)
    }

    #[test]
    fn the_longest_unused_go_first_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |copies: &Copies, digest, age_s| {
            let file = File::open(copies.path(digest)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age_s))
                .unwrap();
        };
        let copies = Copies::open(dir.path().join("copies"), 300).unwrap();
        let all: Vec<_> = (0..4).map(component).collect();
        for (i, (digest, bytes)) in all.iter().take(3).enumerate() {
            copies.put(*digest, bytes).unwrap();
            at(&copies, *digest, 100 - i as u64);
        }
        // The oldest is used, so the second is the oldest now.
        assert!(copies.get(all[0].0, 1_000).unwrap().is_some());
        fs::write(dir.path().join("copies/.new-left"), b"half").unwrap();
        drop(copies);
        let copies = Copies::open(dir.path().join("copies"), 300).unwrap();
        assert!(!dir.path().join("copies/.new-left").exists());
        copies.put(all[3].0, &all[3].1).unwrap();
        let there = |copies: &Copies| -> Vec<bool> {
            all.iter()
                .map(|(d, _)| copies.get(*d, 1_000).unwrap().is_some())
                .collect()
        };
        assert_eq!(there(&copies), [true, false, true, true]);
        drop(copies);
        // A smaller bound holds from the start.
        let copies = Copies::open(dir.path().join("copies"), 100).unwrap();
        assert_eq!(there(&copies).iter().filter(|t| **t).count(), 1);
    }

    #[test]
    fn a_damaged_copy_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(dir.path().to_owned(), 300).unwrap();
        let (digest, bytes) = component(1);
        for damage in [&b"other"[..], b""] {
            copies.put(digest, &bytes).unwrap();
            assert_eq!(copies.get(digest, 1_000).unwrap(), Some(bytes.clone()));
            fs::write(copies.path(digest), damage).unwrap();
            assert_eq!(copies.get(digest, 1_000).unwrap(), None);
            assert!(!copies.path(digest).exists());
        }
        copies.remove(digest).unwrap();
    }
}
