//! `up`: build, serve, apply, watch; an edit is live in seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use skep_model::id::Digest;
use skep_model::manifest;
use skep_model::name::{ModuleRef, ModuleVersion};
use skep_model::swarm::Swarm;
use tokio::sync::mpsc;

use super::args::{self, NODE_DEFAULT};
use super::build::{self, Built};
use super::failure::{Exit, Failure, Outcome};
use super::modules;
use super::output::Printer;
use super::progress::Progress;
use super::swarms;
use crate::node::{Node, NodeSettings};

const MANIFEST: &str = "swarm.yaml";
/// Editors write a file in several steps.
const QUIET: Duration = Duration::from_millis(250);
/// Folders whose changes are the tools' own.
const IGNORED: [&str; 5] = ["target", ".skep", ".git", "node_modules", "__pycache__"];

pub async fn run(args: args::Up, node: &str, out: Printer) -> Outcome {
    let dir = args.dir.clone();
    if !dir.join(MANIFEST).is_file() {
        return Err(
            Failure::new(Exit::NotFound, format!("no {MANIFEST} in {}", dir.display()))
                .remedy("name a folder with one; `skep new NAME` makes it"),
        );
    }
    let progress = Progress::stderr();
    let mut project = Project::new(dir);
    // A manifest with mistakes is not worth a build.
    project.read_manifest()?;
    let own = if node == NODE_DEFAULT && !args.once {
        Some(())
    } else {
        None
    };
    let built = build::build_bees(&project.dir, &progress).await?;
    let Some(()) = own else {
        project.bring(node, built, &progress, out).await?;
        project.say_how_to_call(node, &progress);
        if args.once {
            return Ok(());
        }
        progress.say("watching; Ctrl-C stops, the node goes on");
        return project.watch(node, &progress, out).await;
    };
    let embedded = start(&project.dir, args.listen, &progress).await?;
    let url = embedded.url();
    // Whatever happens now, the node is stopped in order.
    let ended = async {
        project.bring(&url, built, &progress, out).await?;
        project.say_how_to_call(&url, &progress);
        progress.say("watching; Ctrl-C stops");
        project.watch(&url, &progress, out).await
    };
    let ended = ended.await;
    progress.say("stopping");
    embedded.stop().await?;
    ended
}

async fn start(dir: &Path, listen: SocketAddr, progress: &Progress) -> anyhow::Result<Node> {
    let mut settings = NodeSettings::local(dir.join(".skep"))?;
    settings.listen = listen;
    settings.sample_ratio = 1.0;
    // The usual port may be another node's; a free one does as well, said loudly below.
    if listen.to_string() == NODE_DEFAULT.trim_start_matches("http://") && std::net::TcpListener::bind(listen).is_err()
    {
        settings.listen.set_port(0);
        progress.say(&format!("{listen} is taken: a free port is used"));
    }
    let step = progress.step("start a node");
    let node = Node::start(settings).await?;
    step.done(&node.url());
    Ok(node)
}

struct Project {
    dir: PathBuf,
    swarm: Option<Swarm>,
    text: String,
    /// What was pushed last under each `name:tag`.
    pushed: BTreeMap<String, Digest>,
    applied: String,
}

impl Project {
    fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            swarm: None,
            text: String::new(),
            pushed: BTreeMap::new(),
            applied: String::new(),
        }
    }

    fn read_manifest(&mut self) -> Outcome {
        let file = self.dir.join(MANIFEST);
        self.text = swarms::read(&file)?;
        let swarm = manifest::parse_local(&self.text).map_err(|m| swarms::mistakes(&file, &m.to_string()))?;
        self.swarm = Some(swarm);
        Ok(())
    }

    /// Pushes what changed, then applies.
    async fn bring(&mut self, node: &str, built: Vec<Built>, progress: &Progress, out: Printer) -> Outcome {
        let Some(swarm) = &self.swarm else { return Ok(()) };
        let plan = plan(swarm, &built, &self.dir)?;
        let mut pushed = false;
        for push in &plan.pushes {
            let bytes = modules::read(&push.wasm).await?;
            let digest = Digest::of(&bytes);
            let reference = format!("{}:{}", push.name, push.tag);
            if self.pushed.get(&reference) == Some(&digest) {
                continue;
            }
            modules::upload(node, &push.name, &push.tag, bytes, *progress).await?;
            self.pushed.insert(reference, digest);
            pushed = true;
        }
        let local = |path: &str| plan.paths.get(path).cloned();
        let file = self.dir.join(MANIFEST);
        let text = manifest::replace_modules(&self.text, local).map_err(|m| swarms::mistakes(&file, &m.to_string()))?;
        // A Swarm runs what its tags named when it was applied, so a new module needs an apply as a new manifest does.
        if pushed || text != self.applied {
            let reply = swarms::send(node, &file, &text, false, 0).await?;
            swarms::show_changes(&reply, out)?;
            self.applied = text;
        }
        Ok(())
    }

    fn say_how_to_call(&self, node: &str, progress: &Progress) {
        let Some(swarm) = &self.swarm else { return };
        let flag = if node == NODE_DEFAULT {
            String::new()
        } else {
            format!(" --node {node}")
        };
        for subject in swarm.subjects() {
            progress.say(&format!(
                "call it:  skep request {subject} '{{\"name\": \"Bee\"}}'{flag}"
            ));
            progress.say(&format!(
                "          curl -d '{{\"name\": \"Bee\"}}' {node}/v1/{subject}"
            ));
        }
        progress.say(&format!("logs:     skep logs {} -f{flag}", swarm.name));
    }

    /// Until Ctrl-C. What fails is shown, and the old version goes on serving.
    async fn watch(&mut self, node: &str, progress: &Progress, out: Printer) -> Outcome {
        // One waiting change is as good as many.
        let (changed, mut changes) = mpsc::channel::<()>(1);
        let dir = self
            .dir
            .canonicalize()
            .with_context(|| format!("find {}", self.dir.display()))?;
        let root = dir.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Ok(event) = event
                && !event.kind.is_access()
                && event.paths.iter().any(|p| matters(&root, p))
            {
                let _ = changed.try_send(());
            }
        })
        .context("watch for edits")?;
        let mut watched = BTreeSet::new();
        watch_folders(&mut watcher, &dir, &mut watched)?;
        loop {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => return Ok(()),
                _ = changes.recv() => {}
            }
            // Wait until it has been quiet for a while.
            while tokio::time::timeout(QUIET, changes.recv()).await.is_ok() {}
            progress.say("edited");
            let again = async {
                self.read_manifest()?;
                let built = build::build_bees(&self.dir, progress).await?;
                self.bring(node, built, progress, out).await
            };
            let ended = tokio::select! {
                _ = tokio::signal::ctrl_c() => return Ok(()),
                ended = again => ended,
            };
            match ended {
                Ok(()) => progress.say("live"),
                Err(failure) if failure.exit == Exit::Ok => return Err(failure),
                Err(failure) => progress.say(&format!("{failure}\nthe version before goes on serving")),
            }
            // A new folder of sources is watched from now on.
            watch_folders(&mut watcher, &dir, &mut watched)?;
        }
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

#[derive(Debug, PartialEq, Eq)]
struct Push {
    name: String,
    tag: String,
    wasm: PathBuf,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    pushes: Vec<Push>,
    /// What stands in the manifest instead of each path.
    paths: BTreeMap<String, String>,
}

/// Which of the built components are which of the manifest's modules.
fn plan(swarm: &Swarm, built: &[Built], dir: &Path) -> Outcome<Plan> {
    let mut plan = Plan::default();
    let written: BTreeSet<&str> = swarm.stages.iter().map(|s| s.module.as_str()).collect();
    let names: BTreeSet<String> = written
        .iter()
        .filter_map(|m| m.parse::<ModuleRef>().ok())
        .map(|m| m.name.to_string())
        .collect();
    for module in written {
        let Ok(reference) = module.parse::<ModuleRef>() else {
            let wasm = dir.join(module);
            let stem = wasm
                .file_stem()
                .and_then(|s| s.to_str())
                .unwrap_or_default()
                .replace('_', "-")
                .to_lowercase();
            let name = stem.parse::<skep_model::name::ModuleName>().map_err(|e| {
                Failure::new(Exit::Refused, format!("`{module}` does not name a module: {e}")).remedy("rename the file")
            })?;
            plan.paths.insert(module.to_owned(), name.to_string());
            plan.pushes.push(Push {
                name: name.to_string(),
                tag: "latest".to_owned(),
                wasm,
            });
            continue;
        };
        // A digest names bytes that are on the node already.
        let ModuleVersion::Tag(tag) = &reference.version else {
            continue;
        };
        let same = built.iter().find(|b| b.name == reference.name.as_str());
        let only = || match built {
            [one] if names.len() == 1 => Some(one),
            _ => None,
        };
        // One that is not built here may be on the node; if not, apply says so with its place in the manifest.
        if let Some(found) = same.or_else(only) {
            plan.pushes.push(Push {
                name: reference.name.to_string(),
                tag: tag.to_string(),
                wasm: found.wasm.clone(),
            });
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swarm(modules: &[&str]) -> Swarm {
        let bees: Vec<String> = modules
            .iter()
            .enumerate()
            .map(|(i, m)| format!("  - {{ name: b{i}, module: '{m}', input: {{ gateway: g }} }}\n"))
            .collect();
        manifest::parse_local(&format!("name: s\nbees:\n{}", bees.concat())).unwrap()
    }

    fn built(names: &[&str]) -> Vec<Built> {
        names
            .iter()
            .map(|n| Built {
                name: (*n).to_owned(),
                wasm: PathBuf::from(format!("/t/{n}.wasm")),
            })
            .collect()
    }

    fn pushed(modules: &[&str], crates: &[&str]) -> Vec<String> {
        let plan = plan(&swarm(modules), &built(crates), Path::new("d")).unwrap();
        plan.pushes
            .iter()
            .map(|p| format!("{}:{}={}", p.name, p.tag, p.wasm.display()))
            .collect()
    }

    #[test]
    fn modules_are_matched_by_name_and_a_single_one_by_being_single() {
        assert_eq!(
            pushed(&["hello", "hello"], &["hello-world"]),
            ["hello:latest=/t/hello-world.wasm"]
        );
        assert_eq!(
            pushed(&["a:v1", "b"], &["a", "b"]),
            ["a:v1=/t/a.wasm", "b:latest=/t/b.wasm"]
        );
        assert_eq!(pushed(&["a", "z"], &["a", "b"]), ["a:latest=/t/a.wasm"]);
        let digest = format!("a@{}", Digest::of(b""));
        assert!(pushed(&[&digest], &["a"]).is_empty());
        let local = plan(&swarm(&["./x/My_Bee.wasm"]), &built(&["a"]), Path::new("d")).unwrap();
        assert_eq!(local.paths["./x/My_Bee.wasm"], "my-bee");
        assert_eq!(local.pushes[0].wasm, Path::new("d/./x/My_Bee.wasm"));
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
