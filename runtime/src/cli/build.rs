//! Building Bees: cargo, for wasm32-wasip2, with the target added when it is missing; and `skep-py` for those in Python.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Result, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::failure::{Exit, Failure};
use super::files;
use super::progress::{Progress, Step};
use super::python;

pub const TARGET: &str = "wasm32-wasip2";
/// Lines of cargo's output that a failed build shows.
const LINES_KEPT: usize = 200;
/// Crates looked for in a folder that is not one itself.
const CRATES_MAX: usize = 64;

/// A component that cargo made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The library's name, or the Python file's, with `_` as `-`: the module's name.
    pub name: String,
    pub wasm: PathBuf,
}

/// Builds the Bee crate in `dir`, or each crate in its folders when `dir` is none itself, and the Python files of `dir` with Bees.
///
/// # Errors
/// With what the compiler said, or the remedy when cargo or the target is missing.
pub async fn build_bees(dir: &Path, progress: &Progress) -> Result<Vec<Built>> {
    let (crates, scripts) = (crates_in(dir)?, python::bees_in(dir));
    if crates.is_empty() && scripts.is_empty() {
        let message = format!(
            "no Cargo.toml in {} or the folders in it, and no Python file there that registers a Bee",
            dir.display()
        );
        bail!(
            Failure::new(Exit::NotFound, message)
                .remedy("name a folder with Bees; `skep new NAME` makes one in Rust, `skep-py new NAME` one in Python")
        );
    }
    let mut built: Vec<Built> = Vec::new();
    for script in scripts {
        built.push(python::build(&script, &python::kept(&script), progress).await?);
    }
    for crate_dir in crates {
        ensure_target(&crate_dir, progress).await?;
        for one in build(&crate_dir, progress).await? {
            if !built.contains(&one) {
                built.push(one);
            }
        }
    }
    if built.is_empty() {
        let message = format!("{} was built, but no crate in it makes a component", dir.display());
        bail!(
            Failure::new(Exit::Refused, message)
                .remedy("add `[lib] crate-type = [\"cdylib\"]` to the Bee's Cargo.toml")
        );
    }
    Ok(built)
}

fn crates_in(dir: &Path) -> Result<Vec<PathBuf>> {
    if dir.join("Cargo.toml").is_file() {
        return Ok(vec![dir.to_owned()]);
    }
    let entries = std::fs::read_dir(dir).map_err(|e| files::unreadable(dir, &e))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.join("Cargo.toml").is_file())
        .collect();
    found.sort();
    found.truncate(CRATES_MAX);
    Ok(found)
}

#[must_use]
pub fn has_crates(dir: &Path) -> bool {
    crates_in(dir).is_ok_and(|crates| !crates.is_empty())
}

/// A command in `dir`, ended with us. Flags for the host's own code would break the guest's.
fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(dir)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

fn missing(program: &str, e: &std::io::Error) -> anyhow::Error {
    let failure = Failure::new(Exit::Failed, format!("cannot run `{program}`: {e}"));
    anyhow::Error::new(failure.remedy("install Rust as https://rustup.rs says, then try again"))
}

async fn ensure_target(dir: &Path, progress: &Progress) -> Result<()> {
    let rustc = command("rustc", dir)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .await;
    let rustc = rustc.map_err(|e| missing("rustc", &e))?;
    let libdir = String::from_utf8_lossy(&rustc.stdout);
    if rustc.status.success() && Path::new(libdir.trim()).is_dir() {
        return Ok(());
    }
    let step = progress.step(format!("add the Rust target {TARGET}"));
    let by_hand = format!("add the target {TARGET} to the Rust toolchain by hand, then try again");
    let rustup = command("rustup", dir)
        .args(["target", "add", TARGET])
        .output()
        .await
        .map_err(|e| {
            let message = format!("the Rust target {TARGET} is missing, and `rustup` cannot be run to add it: {e}");
            Failure::new(Exit::Failed, message).remedy(by_hand.clone())
        })?;
    if !rustup.status.success() {
        let said = String::from_utf8_lossy(&rustup.stderr);
        let message = format!("`rustup target add {TARGET}` failed:\n{}", said.trim_end());
        bail!(Failure::new(Exit::Failed, message).remedy(by_hand));
    }
    step.done("");
    Ok(())
}

async fn build(dir: &Path, progress: &Progress) -> Result<Vec<Built>> {
    let name = dir
        .canonicalize()
        .ok()
        .and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
    let step = progress.step(format!("build {}", name.unwrap_or_default()));
    let mut child = command("cargo", dir)
        .args([
            "build",
            "--release",
            "--target",
            TARGET,
            "--message-format",
            "json-render-diagnostics",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| missing("cargo", &e))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (built, said) = tokio::join!(artifacts(stdout), follow(stderr, &step));
    let status = child.wait().await?;
    if !status.success() {
        drop(step);
        let message = format!("the build of {} failed\n{}", dir.display(), said.join("\n"));
        bail!(Failure::new(Exit::Refused, message).remedy("mend what the compiler names above"));
    }
    step.done("");
    Ok(built)
}

/// The folders of all packages from paths that the Bees in `dir` are built of: an edit there is an edit of the Bees.
///
/// # Errors
/// When cargo cannot tell.
pub async fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = BTreeSet::new();
    for crate_dir in crates_in(dir)? {
        let metadata = command("cargo", &crate_dir)
            // A build came before, so nothing has to be fetched.
            .args([
                "metadata",
                "--format-version",
                "1",
                "--offline",
                "--filter-platform",
                TARGET,
            ])
            .output()
            .await
            .map_err(|e| missing("cargo", &e))?;
        if !metadata.status.success() {
            bail!(
                "`cargo metadata` failed:\n{}",
                String::from_utf8_lossy(&metadata.stderr).trim_end()
            );
        }
        found.extend(path_packages(&metadata.stdout)?);
    }
    Ok(found.into_iter().take(CRATES_MAX).collect())
}

fn path_packages(metadata: &[u8]) -> Result<Vec<PathBuf>> {
    let metadata: serde_json::Value = serde_json::from_slice(metadata)?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(packages
        .iter()
        .filter(|package| package["source"].is_null())
        .filter_map(|package| Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned()))
        .collect())
}

/// The components among cargo's messages, one JSON line each.
async fn artifacts(stdout: Option<tokio::process::ChildStdout>) -> Vec<Built> {
    let mut built = Vec::new();
    let Some(stdout) = stdout else { return built };
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        built.extend(artifact(&line));
    }
    built
}

fn artifact(line: &str) -> Option<Built> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let target = &message["target"];
    if !target["crate_types"].as_array()?.iter().any(|t| t == "cdylib") {
        return None;
    }
    let wasm = message["filenames"]
        .as_array()?
        .iter()
        .filter_map(|f| f.as_str())
        .find(|f| f.ends_with(".wasm"))?;
    Some(Built {
        name: target["name"].as_str()?.replace('_', "-"),
        wasm: PathBuf::from(wasm),
    })
}

/// Shows what cargo is at; keeps the end of what it said.
async fn follow(stderr: Option<tokio::process::ChildStderr>, step: &Step) -> Vec<String> {
    let mut kept = VecDeque::new();
    if let Some(stderr) = stderr {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            step.note(line.trim());
            // Progress is no news once a build has failed.
            if !["Compiling ", "Downloaded ", "Downloading ", "Locking "]
                .iter()
                .any(|p| line.trim_start().starts_with(p))
            {
                kept.push_back(line);
            }
            if kept.len() > LINES_KEPT {
                kept.pop_front();
            }
        }
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_found_among_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"word_count","crate_types":["cdylib"]},"filenames":["/t/word_count.wasm"]}"#;
        let built = artifact(line).unwrap();
        assert_eq!(
            (built.name.as_str(), built.wasm),
            ("word-count", PathBuf::from("/t/word_count.wasm"))
        );
        assert_eq!(artifact(&line.replace("cdylib", "lib")), None);
        assert_eq!(artifact(r#"{"reason":"build-finished"}"#), None);
        assert_eq!(artifact("not json"), None);
    }

    #[test]
    fn packages_from_paths_are_found_in_cargos_metadata() {
        let metadata = br#"{"packages":[
            {"name":"bee","source":null,"manifest_path":"/p/bee/Cargo.toml"},
            {"name":"serde","source":"registry+https://x","manifest_path":"/r/serde/Cargo.toml"}]}"#;
        assert_eq!(path_packages(metadata).unwrap(), [PathBuf::from("/p/bee")]);
        assert!(path_packages(b"{}").unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_folder_without_a_crate_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = build_bees(dir.path(), &Progress::silent()).await.unwrap_err();
        let failure = error.downcast::<Failure>().unwrap();
        assert_eq!(failure.exit, Exit::NotFound);
        assert!(failure.remedy.unwrap().contains("skep new"));
    }
}
