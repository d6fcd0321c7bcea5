//! Real components of other languages: made once by their own tools, kept beside the build, compiled by the real compiler
//! process.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use skep_engine::{Artifact, Bee, BeeSettings, CompilerLimits, Engine, Module, Settings};
use skep_model::Bytes;
use skep_model::id::Digest;
use tokio::sync::OnceCell;

use crate::built::target;
use crate::zoo::{compiler, scratch};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Python,
    JavaScript,
}

use Language::{JavaScript, Python};

impl Language {
    fn name(self) -> &'static str {
        match self {
            Python => "python",
            JavaScript => "javascript",
        }
    }

    fn sources(self) -> PathBuf {
        root().join("runtime/engine/tests/guests").join(self.name())
    }

    /// None, said loudly, where the tools cannot be had.
    pub fn wasm(self) -> Option<Bytes> {
        static WASM: [OnceLock<Option<Bytes>>; 2] = [OnceLock::new(), OnceLock::new()];
        WASM[self as usize].get_or_init(|| self.built()).clone()
    }

    fn built(self) -> Option<Bytes> {
        static TOOLS: OnceLock<PathBuf> = OnceLock::new();
        let tools = TOOLS.get_or_init(|| {
            let installed = Command::new(root().join("ci/tools"))
                .arg("guests")
                .env("CARGO_TARGET_DIR", target())
                .status();
            assert!(installed.is_ok_and(|s| s.success()), "ci/tools failed");
            target().join("tools")
        });
        if let Ok(why) = std::fs::read_to_string(tools.join(format!("{}.absent", self.name()))) {
            // Not by a macro, whose output the test harness would swallow.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no test of {self:?} components. {why}");
            return None;
        }
        let kept = target().join("engine-guests");
        std::fs::create_dir_all(&kept).unwrap();
        let component = kept.join(format!("{}-{}.wasm", self.name(), self.stamp()));
        if !component.exists() {
            let copies = tempfile::tempdir_in(&kept).unwrap();
            let made = self.make(tools, copies.path());
            // In one step: another run may be at it too.
            std::fs::rename(made, &component).unwrap();
        }
        Some(std::fs::read(component).unwrap().into())
    }

    /// Of everything that the component is made of, the tools' versions included.
    fn stamp(self) -> String {
        let mut all = Vec::new();
        for folder in [root().join("proto/wit"), self.sources()] {
            gather(&folder, &mut all);
        }
        Digest::of(&all).to_string().replace(':', "-")
    }

    /// Works on copies: the tools leave files beside what they read.
    fn make(self, tools: &Path, copies: &Path) -> PathBuf {
        for file in std::fs::read_dir(self.sources()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copies.join(file.file_name())).unwrap();
        }
        let out = copies.join("bees.wasm");
        let wit = root().join("proto/wit");
        let mut command = match self {
            Python => {
                let mut command = Command::new(tools.join("python/bin/componentize-py"));
                command
                    .arg("-d")
                    .arg(wit)
                    .args(["-q", "-w", "module", "componentize", "bees", "-p", ".", "-o"]);
                command.arg(&out);
                command
            }
            JavaScript => {
                let mut command = Command::new("node");
                command
                    .arg("build.mjs")
                    .arg(tools.join("javascript"))
                    .arg(wit)
                    .arg(&out);
                command
            }
        };
        let made = command.current_dir(copies).status().expect("the tool runs");
        assert!(made.success(), "the {self:?} component is not made");
        out
    }

    /// The component's digest and code. None as for [`Language::wasm`].
    async fn artifact(self) -> Option<(Digest, Artifact)> {
        static MADE: [OnceCell<Option<(Digest, Artifact)>>; 2] = [OnceCell::const_new(), OnceCell::const_new()];
        let made = MADE[self as usize].get_or_init(|| async {
            let wasm = tokio::task::spawn_blocking(move || self.wasm()).await.unwrap()?;
            let digest = Digest::of(&wasm);
            // A node's limits, but for the wall clock: it shows how busy the machine is.
            let limits = CompilerLimits {
                wall_s: 600,
                ..CompilerLimits::default()
            };
            let artifact = compiler(limits).compile(wasm).await.unwrap();
            Some((digest, artifact))
        });
        made.await.clone()
    }

    /// The module in an engine that all tests share. None as for [`Language::wasm`].
    pub async fn module(self) -> Option<Module> {
        static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();
        static MODULES: [OnceCell<Option<Module>>; 2] = [OnceCell::const_new(), OnceCell::const_new()];
        let module = MODULES[self as usize].get_or_init(|| async {
            let (digest, artifact) = self.artifact().await?;
            Some(ENGINE.get_or_init(start).load(digest, artifact).await.unwrap())
        });
        module.await.clone()
    }

    pub async fn load(self, engine: &Arc<Engine>) -> Module {
        let (digest, artifact) = self.artifact().await.unwrap();
        engine.load(digest, artifact).await.unwrap()
    }

    pub async fn bee(self, name: &str, settings: BeeSettings) -> Bee {
        let module = self.module().await.unwrap();
        module.bee(&name.parse().unwrap(), settings).unwrap()
    }
}

/// An engine with the knobs that a node has: what the other tests use is smaller.
pub fn start() -> Arc<Engine> {
    Engine::new(Settings::new(scratch().join("cache"))).unwrap()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn gather(folder: &Path, all: &mut Vec<u8>) {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            gather(&path, all);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            all.extend(path.file_name().unwrap().as_encoded_bytes());
            all.extend(bytes.len().to_le_bytes());
            all.extend(bytes);
        }
    }
}
