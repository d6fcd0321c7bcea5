//! Bees and dataflows in Python: `skep-py`, of the Python SDK, makes components of them. This finds it and says what it said.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use super::build::Built;
use super::failure::{Exit, Failure, Outcome};
use super::files;
use super::progress::Progress;

/// The version of the WIT package that this node takes; `skep-py` refuses to make another.
const WIT: &str = "0.1.0";
/// What marks a Python file as one with Bees.
const MARK: &str = "register_bee";
/// As much of a file is looked at.
const LOOKED_AT_BYTES_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 64;

#[must_use]
pub fn is_python(file: &Path) -> bool {
    file.extension().is_some_and(|e| e == "py")
}

/// The Python files in a folder that register Bees, its tests left out.
pub fn bees_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|path| is_python(path) && path.is_file() && !is_test(path) && says_mark(path))
        .collect();
    found.sort();
    found.truncate(FILES_MAX);
    found
}

fn is_test(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.starts_with("test_") || name.ends_with("_test.py") || name == "conftest.py" || name.starts_with('.')
}

fn says_mark(path: &Path) -> bool {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(LOOKED_AT_BYTES_MAX).read_to_end(&mut text));
    read.is_ok() && text.windows(MARK.len()).any(|w| w == MARK.as_bytes())
}

/// Where `up` keeps the component of a Python file: in a folder that it does not watch.
#[must_use]
pub fn kept(file: &Path) -> PathBuf {
    let dir = file.parent().unwrap_or_else(|| Path::new("."));
    let stem = file.file_stem().unwrap_or_default();
    dir.join(".skep/python").join(stem).with_extension("wasm")
}

/// Makes the component of a file, which the SDK does once for the same content.
pub async fn build(file: &Path, out: &Path, progress: &Progress) -> Outcome<Built> {
    if !file.is_file() {
        return Err(files::unreadable(file, &std::io::ErrorKind::NotFound.into()));
    }
    let name = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let step = progress.step(format!("build {}", file.display()));
    step.note("half a minute the first time");
    let said = run(
        &[
            OsStr::new("build"),
            file.as_os_str(),
            OsStr::new("--out"),
            out.as_os_str(),
        ],
        file,
    )
    .await?;
    step.done(if said["cached"] == true { "as built before" } else { "" });
    Ok(Built {
        name: name.replace('_', "-").to_lowercase(),
        wasm: out.to_owned(),
    })
}

/// A dataflow as a node takes it.
pub struct Flow {
    /// Of Swarm and module.
    pub name: String,
    pub wasm: PathBuf,
    pub manifest: String,
    /// Subject and key of each message that starts a partition of a source.
    pub starts: Vec<(String, String)>,
    /// What is otherwise than in the process of `python -m skep.run`.
    pub warnings: Vec<String>,
}

/// Makes component and manifest of a dataflow: `FILE[:FLOW]`.
pub async fn flow(given: &str, room: &Path, bytewax: bool, progress: &Progress) -> Outcome<Flow> {
    let (wasm, manifest) = (room.join("flow.wasm"), room.join("flow.yaml"));
    let step = progress.step(format!("build {given}"));
    step.note("half a minute the first time");
    let mut words: Vec<&OsStr> = vec![
        OsStr::new("flow"),
        OsStr::new(given),
        OsStr::new("--out"),
        wasm.as_os_str(),
    ];
    words.extend([OsStr::new("--manifest"), manifest.as_os_str()]);
    if bytewax {
        words.push(OsStr::new("--bytewax"));
    }
    let said = run(&words, Path::new(given)).await?;
    let read = std::fs::read_to_string(&manifest).map_err(|e| files::unreadable(&manifest, &e))?;
    step.done(if said["cached"] == true { "as built before" } else { "" });
    let flow = serde_json::from_value(said["name"].clone()).and_then(|name| {
        Ok(Flow {
            name,
            wasm,
            manifest: read,
            starts: serde_json::from_value(said["starts"].clone())?,
            warnings: serde_json::from_value(said["warnings"].clone())?,
        })
    });
    flow.map_err(|e| {
        Failure::new(
            Exit::Failed,
            format!("`skep-py flow` said what this `skep` does not understand: {e}"),
        )
        .remedy("install the `skep` package of this release again")
    })
}

async fn run(words: &[&OsStr], file: &Path) -> Outcome<Value> {
    let mut last = None;
    for called in candidates() {
        let (program, first) = called
            .split_first()
            .map(|(p, f)| (p.clone(), f.to_vec()))
            .unwrap_or_default();
        let ran = Command::new(&program)
            .args(&first)
            .args(words)
            .args(["--wit", WIT, "--json"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        let ran = match ran {
            Ok(ran) => ran,
            Err(e) => {
                last = Some(format!("`{program}`: {e}"));
                continue;
            }
        };
        let said = String::from_utf8_lossy(&ran.stderr);
        if ran.status.success()
            && let Ok(answer) = serde_json::from_slice(&ran.stdout)
        {
            return Ok(answer);
        }
        if let Some(failure) = said.lines().rev().find_map(refusal) {
            return Err(failure);
        }
        if said.contains("No module named skep") {
            last = Some(format!(
                "`{}`: the Python package `skep` is not there",
                called.join(" ")
            ));
            continue;
        }
        let message = format!("`{}` failed:\n{}", called.join(" "), said.trim_end());
        return Err(Failure::new(Exit::Failed, message).remedy("install the `skep` package of this release again"));
    }
    let message = format!(
        "{} is Python, and `skep-py`, which makes a component of it, cannot be run ({})",
        file.display(),
        last.unwrap_or_default()
    );
    Err(Failure::new(Exit::NotFound, message)
        .remedy("`pip install ./sdk-python-wasm` of the source tree; or name the program by SKEP_PY"))
}

/// How `skep-py` may be called, the best first.
fn candidates() -> Vec<Vec<String>> {
    if let Some(given) = std::env::var("SKEP_PY").ok().filter(|v| !v.is_empty()) {
        return vec![given.split(' ').map(str::to_owned).collect()];
    }
    let module = ["python3", "-m", "skep"].map(str::to_owned).to_vec();
    vec![vec!["skep-py".to_owned()], module]
}

/// `{"error": {"message", "remedy"}}`, as `skep-py --json` fails.
fn refusal(line: &str) -> Option<Failure> {
    let said: Value = serde_json::from_str(line).ok()?;
    let error = said.get("error")?;
    let failure = Failure::new(Exit::Refused, error["message"].as_str()?);
    Some(match error["remedy"].as_str() {
        Some(remedy) if !remedy.is_empty() => failure.remedy(remedy),
        _ => failure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_bees_are_found_and_their_tests_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("hello.py", "@register_bee(name=\"hello\")"),
            ("test_hello.py", "from skep import register_bee"),
            ("setup.py", "print()"),
            ("notes.txt", "register_bee"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        assert_eq!(bees_in(dir.path()), [dir.path().join("hello.py")]);
        assert!(bees_in(&dir.path().join("none")).is_empty());
        assert_eq!(kept(Path::new("a/my_bee.py")), Path::new("a/.skep/python/my_bee.wasm"));
    }

    #[test]
    fn what_the_builder_refuses_is_told_with_its_remedy() {
        let failure = refusal(r#"{"error": {"message": "hello.py:3: no", "remedy": "mend it"}}"#).unwrap();
        assert_eq!(
            (failure.exit, failure.message.as_str()),
            (Exit::Refused, "hello.py:3: no")
        );
        assert_eq!(failure.remedy.as_deref(), Some("mend it"));
        assert!(refusal("Traceback").is_none());
    }
}
