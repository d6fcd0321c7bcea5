//! What tests build while they run, beside themselves.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder that this test binary was built into.
pub fn target() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    // target/release/deps/NAME
    exe.ancestors().nth(3).map(Path::to_owned).unwrap()
}

/// A component of `tests/guests`, built when it is stale.
pub fn guest(name: &str) -> Vec<u8> {
    let guests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/guests");
    let out = target().join("engine-guests");
    let build = || {
        Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "--target", "wasm32-wasip2"])
            .current_dir(&guests)
            .env("CARGO_TARGET_DIR", &out)
            .env_remove("RUSTFLAGS")
            .status()
            .expect("cargo runs")
            .success()
    };
    if !build() {
        let added = Command::new("rustup").args(["target", "add", "wasm32-wasip2"]).status();
        assert!(added.is_ok_and(|s| s.success()), "cannot add the target wasm32-wasip2");
        assert!(build(), "the guests do not build");
    }
    std::fs::read(out.join(format!("wasm32-wasip2/release/{name}.wasm"))).unwrap()
}
