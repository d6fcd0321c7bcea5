//! The cache of compiled artifacts.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_engine::{Artifact, ArtifactCache, CompilerLimits, Engine, Settings};
use skep_model::id::Digest;

use crate::zoo::{compiler, settings, wasm};

/// What stands before the native code.
const HEAD_BYTES: u64 = 72;

struct Place {
    dir: tempfile::TempDir,
    engine: Arc<Engine>,
    artifact: Artifact,
    digest: Digest,
}

impl Place {
    async fn new(cache_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(Settings {
            cache_dir: dir.path().join("cache"),
            cache_bytes,
            running: 2,
            spare: 2,
            ..settings()
        });
        Self {
            engine: engine.unwrap(),
            artifact: compiler(CompilerLimits::default()).compile(wasm()).await.unwrap(),
            digest: Digest::of(&wasm()),
            dir,
        }
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("private/key")
    }

    fn open(&self) -> ArtifactCache {
        ArtifactCache::open(&self.engine, &self.key()).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path().join("cache")).unwrap();
        entries.map(|e| e.unwrap().path()).collect()
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn what_was_put_is_got_also_after_a_restart_and_runs() {
    let place = Place::new(1 << 30).await;
    assert!(place.open().get(place.digest).unwrap().is_none());
    place.open().put(place.digest, &place.artifact).unwrap();
    let again = place.open();
    let artifact = again.get(place.digest).unwrap().expect("it is there");
    assert_eq!(artifact.len(), place.artifact.len());
    let module = place.engine.load(place.digest, artifact).await.unwrap();
    assert!(!module.bees().is_empty());
    assert_eq!(again.refused(), 0);
    assert_eq!(mode(&place.dir.path().join("cache")), 0o700);
    assert_eq!(mode(&place.key()), 0o600);
    assert_eq!(mode(&place.files()[0]), 0o600);
}

#[tokio::test]
async fn a_changed_file_is_refused_deleted_and_counted() {
    let place = Place::new(1 << 30).await;
    let cache = place.open();
    let len = place.artifact.len() + HEAD_BYTES;
    // In the magic, the MAC, the digest of what is shared, the first and the last byte of the code, and in between.
    for (n, at) in [0, 8, 39, 40, 71, HEAD_BYTES, len / 2, len - 1].into_iter().enumerate() {
        cache.put(place.digest, &place.artifact).unwrap();
        let [path] = place.files().try_into().unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        assert!(cache.get(place.digest).unwrap().is_none(), "byte {at}");
        assert_eq!(cache.refused(), n as u64 + 1);
        assert!(place.files().is_empty());
    }
}

#[tokio::test]
async fn a_truncated_empty_or_longer_file_is_refused() {
    let place = Place::new(1 << 30).await;
    let cache = place.open();
    let len = place.artifact.len() + HEAD_BYTES;
    for size in [0, 10, 40, HEAD_BYTES, HEAD_BYTES + 1, len - 1, len + 1] {
        cache.put(place.digest, &place.artifact).unwrap();
        let [path] = place.files().try_into().unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(size)
            .unwrap();
        assert!(cache.get(place.digest).unwrap().is_none(), "{size}");
    }
    assert_eq!(cache.refused(), 7);
}

#[tokio::test]
async fn a_file_from_elsewhere_is_refused() {
    let place = Place::new(1 << 30).await;
    let cache = place.open();
    cache.put(place.digest, &place.artifact).unwrap();
    // Under the name of another module.
    let other = Digest::of(b"another module");
    let [path] = place.files().try_into().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let renamed = path.with_file_name(name.replace(&place.digest.to_hex(), &other.to_hex()));
    std::fs::copy(&path, &renamed).unwrap();
    assert!(cache.get(other).unwrap().is_none());
    // From another node: another key.
    let stranger = Place::new(1 << 30).await;
    let foreign = stranger.open();
    foreign.put(stranger.digest, &stranger.artifact).unwrap();
    std::fs::copy(&stranger.files()[0], &path).unwrap();
    assert!(cache.get(place.digest).unwrap().is_none());
    // A link is no file of ours.
    std::os::unix::fs::symlink(&stranger.files()[0], &path).unwrap();
    assert!(cache.get(place.digest).is_err());
    assert_eq!(cache.refused(), 2);
}

#[tokio::test]
async fn the_cache_is_bounded_and_the_one_unused_for_longest_goes() {
    let one = Place::new(1 << 30).await.artifact.len();
    let place = Place::new(2 * one + one / 2).await;
    let cache = place.open();
    let digest = |n: u8| Digest::of(&[n]);
    for n in 0..2 {
        cache.put(digest(n), &place.artifact).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // The first is used, so the second is the older one.
    assert!(cache.get(digest(0)).unwrap().is_some());
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    cache.put(digest(2), &place.artifact).unwrap();
    assert_eq!(place.files().len(), 2);
    assert!(cache.get(digest(0)).unwrap().is_some());
    assert!(cache.get(digest(1)).unwrap().is_none());
    assert_eq!(cache.refused(), 0);
}

#[tokio::test]
async fn a_key_or_folder_that_others_can_read_is_refused() {
    let place = Place::new(1 << 30).await;
    drop(place.open());
    for path in [place.key(), place.dir.path().join("cache")] {
        let good = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let error = ArtifactCache::open(&place.engine, &place.key()).unwrap_err();
        assert!(error.to_string().contains("chmod"), "{error}");
        std::fs::set_permissions(&path, good).unwrap();
    }
}
