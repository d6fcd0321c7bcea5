//! Edits of a project's sources, as `up` waits for them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// Editors write a file in several steps.
const QUIET: Duration = Duration::from_millis(250);
/// Folders whose changes are the tools' own.
const IGNORED: [&str; 5] = ["target", ".skep", ".git", "node_modules", "__pycache__"];

/// What is watched. An edit that comes while nobody waits is kept for whoever waits next.
pub struct Edits {
    watcher: RecommendedWatcher,
    roots: Roots,
    watched: BTreeSet<PathBuf>,
    changes: mpsc::Receiver<()>,
}

#[derive(Clone, Default)]
struct Roots(Arc<Mutex<Vec<PathBuf>>>);

impl Roots {
    fn lock(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Edits {
    /// # Errors
    /// When the folder cannot be watched.
    pub fn of(dir: &Path) -> anyhow::Result<Self> {
        // One waiting change is as good as many.
        let (changed, changes) = mpsc::channel::<()>(1);
        let roots = Roots::default();
        let known = roots.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let roots = known.lock();
            if let Ok(event) = event
                && !event.kind.is_access()
                && event.paths.iter().any(|p| roots.iter().any(|root| matters(root, p)))
            {
                let _ = changed.try_send(());
            }
        })
        .context("watch for edits")?;
        let mut edits = Self {
            watcher,
            roots,
            watched: BTreeSet::new(),
            changes,
        };
        edits.watch_too(&[dir.to_owned()])?;
        Ok(edits)
    }

    /// Watches these folders too, and new ones in those that are watched already.
    ///
    /// # Errors
    /// When one cannot be watched.
    pub fn watch_too(&mut self, folders: &[PathBuf]) -> anyhow::Result<()> {
        let roots = {
            let mut roots = self.roots.lock();
            for folder in folders {
                let folder = folder
                    .canonicalize()
                    .with_context(|| format!("find {}", folder.display()))?;
                if !roots.iter().any(|root| folder.starts_with(root)) {
                    roots.push(folder);
                }
            }
            roots.clone()
        };
        roots
            .iter()
            .try_for_each(|root| watch_folders(&mut self.watcher, root, &mut self.watched))
    }

    /// Returns after an edit, once it has been quiet for a while.
    pub async fn next(&mut self) {
        if self.changes.recv().await.is_none() {
            // The watcher lives as long as this does.
            std::future::pending::<()>().await;
        }
        while tokio::time::timeout(QUIET, self.changes.recv()).await.is_ok() {}
    }
}

/// Watches the folder and those in it that hold sources: `target` alone would cost thousands of watches.
fn watch_folders(watcher: &mut RecommendedWatcher, dir: &Path, watched: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    let watch = |watcher: &mut RecommendedWatcher, path: &Path, mode| {
        watcher
            .watch(path, mode)
            .with_context(|| format!("watch {}: raise fs.inotify.max_user_watches?", path.display()))
    };
    if watched.insert(dir.to_owned()) {
        watch(watcher, dir, RecursiveMode::NonRecursive)?;
    }
    for entry in std::fs::read_dir(dir)
        .with_context(|| format!("read {}", dir.display()))?
        .flatten()
    {
        let path = entry.path();
        if !path.is_dir() || !matters(dir, &path) || watched.contains(&path) {
            continue;
        }
        // A folder with a crate of its own has a `target` of its own.
        if path.join("Cargo.toml").is_file() {
            watch_folders(watcher, &path, watched)?;
        } else {
            watch(watcher, &path, RecursiveMode::Recursive)?;
            watched.insert(path);
        }
    }
    Ok(())
}

fn matters(root: &Path, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(root) else {
        return false;
    };
    let scratch = inside.file_name().and_then(|n| n.to_str()).is_some_and(|n| {
        n == "Cargo.lock"
            || n == "4913"
            || n.ends_with('~')
            || n.ends_with(".swp")
            || n.ends_with(".swx")
            || n.starts_with(".#")
    });
    !scratch
        && !inside
            .components()
            .any(|c| c.as_os_str().to_str().is_some_and(|c| IGNORED.contains(&c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_edit_before_the_wait_counts_and_so_does_one_of_a_folder_that_came_later() {
        let dir = tempfile::tempdir().unwrap();
        let (project, other) = (dir.path().join("project"), dir.path().join("other"));
        for folder in [&project, &other] {
            std::fs::create_dir_all(folder.join("src")).unwrap();
        }
        let mut edits = Edits::of(&project).unwrap();
        std::fs::write(project.join("src/lib.rs"), "1").unwrap();
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, edits.next()).await.expect("the edit");
        std::fs::write(other.join("src/lib.rs"), "1").unwrap();
        assert!(tokio::time::timeout(2 * QUIET, edits.next()).await.is_err());
        edits.watch_too(std::slice::from_ref(&other)).unwrap();
        std::fs::write(other.join("src/lib.rs"), "2").unwrap();
        tokio::time::timeout(patience, edits.next())
            .await
            .expect("the other's edit");
        std::fs::create_dir_all(project.join("target")).unwrap();
        std::fs::write(project.join("target/x"), "1").unwrap();
        assert!(tokio::time::timeout(2 * QUIET, edits.next()).await.is_err());
    }

    #[test]
    fn the_tools_own_files_do_not_matter() {
        let root = Path::new("/p");
        for path in ["/p/src/lib.rs", "/p/swarm.yaml", "/p/Cargo.toml", "/p/bee/src/lib.rs"] {
            assert!(matters(root, Path::new(path)), "{path}");
        }
        for path in [
            "/p/target/x",
            "/p/bee/target/x",
            "/p/.skep/topics",
            "/p/.git/index",
            "/p/src/lib.rs~",
            "/p/Cargo.lock",
            "/q/a",
        ] {
            assert!(!matters(root, Path::new(path)), "{path}");
        }
    }
}
