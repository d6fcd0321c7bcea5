//! Libraries of components are linked, compiled apart, and kept for all that were made of them.

use std::sync::Arc;

use skep_engine::{ArtifactCache, BeeSettings, CompilerLimits, Engine, Settings};
use skep_model::Bytes;
use skep_model::id::Digest;

use crate::guests::Language;
use crate::zoo::{answers, batch, compiler, message, settings, wasm};

/// The same Bees as another upload: with a custom section more.
fn another(component: &Bytes) -> Bytes {
    let mut bytes = component.to_vec();
    bytes.extend([0, 3, 2, b'n', b'x']);
    bytes.into()
}

/// CPython takes several times as much, all else of a Bee far less.
fn tight() -> CompilerLimits {
    CompilerLimits {
        cpu_s: 4,
        wall_s: 600,
        ..CompilerLimits::default()
    }
}

fn patient() -> CompilerLimits {
    CompilerLimits {
        wall_s: 600,
        ..CompilerLimits::default()
    }
}

#[tokio::test]
async fn python_is_compiled_once_for_all_bees_in_it() {
    let Some(first) = Language::Python.wasm() else { return };
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(Settings {
        cache_dir: dir.path().join("cache"),
        running: 4,
        spare: 4,
        ..settings()
    })
    .unwrap();
    let open = || Arc::new(ArtifactCache::open(&engine, &dir.path().join("key")).unwrap());
    let cache = open();
    let artifact = compiler(patient())
        .with(Arc::clone(&cache))
        .compile(first.clone())
        .await
        .unwrap();
    let (code, len) = artifact.shared().expect("it has libraries");
    assert!(
        len > artifact.len(),
        "most of it is shared: {len} of {}",
        len + artifact.len()
    );

    // Nobody has put it there yet.
    let second = another(&first);
    assert!(
        compiler(tight())
            .with(Arc::clone(&cache))
            .compile(second.clone())
            .await
            .is_err()
    );
    cache.put(Digest::of(&first), &artifact).unwrap();
    // As after a restart.
    let cache = open();
    let again = compiler(tight())
        .with(Arc::clone(&cache))
        .compile(second.clone())
        .await
        .unwrap();
    assert_eq!(again.shared(), Some((code, len)));
    cache.put(Digest::of(&second), &again).unwrap();

    // Both run, from the cache, side by side.
    for upload in [&first, &second] {
        let artifact = cache.get(Digest::of(upload)).unwrap().expect("it is there");
        let module = engine.load(Digest::of(upload), artifact).await.unwrap();
        let bee = module
            .bee(&"echo".parse().unwrap(), BeeSettings::plain(Digest::of(upload)))
            .unwrap();
        assert_eq!(answers(bee.process(batch(vec![message(1, "x")])).await), ["x"]);
    }

    // Code that is gone, or was changed, is compiled again with what needs it; nothing runs on it.
    let files = || {
        std::fs::read_dir(dir.path().join("cache"))
            .unwrap()
            .map(|e| e.unwrap().path())
    };
    let [shared] = files()
        .filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("code-"))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let mut bytes = std::fs::read(&shared).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shared, bytes).unwrap();
    assert!(cache.get(Digest::of(&first)).unwrap().is_none());
    assert_eq!(cache.refused(), 1);
    assert!(!shared.exists());
    assert!(cache.get(Digest::of(&second)).unwrap().is_none());
    assert!(compiler(tight()).with(cache).compile(second).await.is_err());
}

#[tokio::test]
async fn code_under_another_name_is_refused() {
    let Some(component) = Language::Python.wasm() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(Settings {
        cache_dir: dir.path().join("cache"),
        running: 2,
        spare: 2,
        ..settings()
    })
    .unwrap();
    let cache = ArtifactCache::open(&engine, &dir.path().join("key")).unwrap();
    let artifact = compiler(patient()).compile(component.clone()).await.unwrap();
    cache.put(Digest::of(&component), &artifact).unwrap();
    let files = || {
        std::fs::read_dir(dir.path().join("cache"))
            .unwrap()
            .map(|e| e.unwrap().path())
    };
    let code = files()
        .find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("code-"))
        .unwrap();
    let own = files().find(|p| p != &code).unwrap();
    // A module's file is no code of libraries, and the other way round.
    std::fs::copy(&own, &code).unwrap();
    assert!(cache.get(Digest::of(&component)).unwrap().is_none());
    cache.put(Digest::of(&component), &artifact).unwrap();
    std::fs::copy(&code, &own).unwrap();
    assert!(cache.get(Digest::of(&component)).unwrap().is_none());
    assert_eq!(cache.refused(), 2);
}

#[tokio::test]
async fn a_component_without_libraries_shares_nothing() {
    let artifact = compiler(CompilerLimits::default()).compile(wasm()).await.unwrap();
    assert_eq!(artifact.shared(), None);
}
