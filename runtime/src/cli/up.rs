//! `up`: build, serve, apply, watch; an edit is live in seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::manifest;
use skep_model::name::{ModelRef, ModuleRef, Version};
use skep_model::swarm::Swarm;

use super::args::{self, NODE_DEFAULT};
use super::build::{self, Built};
use super::edits::Edits;
use super::failure::{Exit, Failure, Outcome};
use super::models;
use super::modules;
use super::output::Printer;
use super::progress::Progress;
use super::python;
use super::swarms;
use crate::node::{Node, NodeSettings};

const MANIFEST: &str = "swarm.yaml";

pub async fn run(args: args::Up, node: &str, out: Printer) -> Outcome {
    let dir = args.dir.clone();
    if !dir.join(MANIFEST).is_file() {
        return Err(
            Failure::new(Exit::NotFound, format!("no {MANIFEST} in {}", dir.display()))
                .remedy("name a folder with one; `skep new NAME` makes it"),
        );
    }
    let progress = Progress::stderr();
    let mut project = Project::new(dir, args.discard_state, args.sign_key);
    // A manifest with mistakes is not worth a build.
    project.read_manifest()?;
    let own = if node == NODE_DEFAULT && !args.once {
        Some(())
    } else {
        None
    };
    // From before the build on: an edit in its middle counts.
    let mut edits = Edits::of(&project.dir)?;
    project.watch_sources(&mut edits).await;
    let built = project.build(&progress).await?;
    let Some(()) = own else {
        project.bring(node, built, &progress, out).await?;
        project.say_how_to_call(node, &progress);
        if args.once {
            return Ok(());
        }
        progress.say("watching; Ctrl-C stops, the node goes on");
        return project.watch(edits, node, &progress, out).await;
    };
    let embedded = start(&project.dir, args.listen, &progress).await?;
    let url = embedded.url();
    // Whatever happens now, the node is stopped in order.
    let ended = async {
        project.bring(&url, built, &progress, out).await?;
        project.say_how_to_call(&url, &progress);
        progress.say("watching; Ctrl-C stops");
        project.watch(edits, &url, &progress, out).await
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
    /// Whether an edit may remove stages with their state.
    discard_state: bool,
    signed_by: args::SignedBy,
}

impl Project {
    fn new(dir: PathBuf, discard_state: bool, sign_key: Option<PathBuf>) -> Self {
        Self {
            dir,
            discard_state,
            signed_by: args::SignedBy {
                sign_key,
                signature: None,
            },
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

    /// Builds what is in the folder, and the Python files elsewhere that the manifest names.
    async fn build(&self, progress: &Progress) -> Outcome<Vec<Built>> {
        let named: BTreeSet<PathBuf> = self
            .swarm
            .iter()
            .flat_map(|swarm| &swarm.stages)
            .filter(|stage| stage.builtin.is_none())
            .map(|stage| self.dir.join(stage.module.as_str()))
            .filter(|path| python::is_python(path))
            .collect();
        let here = python::bees_in(&self.dir);
        for path in &named {
            let same = |one: &PathBuf| one.canonicalize().ok() == path.canonicalize().ok();
            if !here.iter().any(same) {
                python::build(path, &python::kept(path), progress).await?;
            }
        }
        if !named.is_empty() && here.is_empty() && !build::has_crates(&self.dir) {
            return Ok(Vec::new());
        }
        Ok(build::build_bees(&self.dir, progress).await?)
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
            modules::upload(node, &push.name, &push.tag, bytes, &self.signed_by, *progress).await?;
            self.pushed.insert(reference, digest);
            pushed = true;
        }
        for (model, file) in models_here(swarm, &self.dir) {
            let Version::Tag(tag) = &model.version else { continue };
            let bytes = Bytes::from(models::read(&file).await?);
            let digest = Digest::of(&bytes);
            let reference = format!("model {model}");
            if self.pushed.get(&reference) == Some(&digest) {
                continue;
            }
            // What its tag names is asked at each call: nothing is applied for it, unless the Swarm is new.
            models::upload(node, model.name.as_str(), tag.as_str(), bytes, None, *progress).await?;
            self.pushed.insert(reference, digest);
        }
        let local = |path: &str| plan.paths.get(path).cloned();
        let file = self.dir.join(MANIFEST);
        let text = manifest::replace_modules(&self.text, local).map_err(|m| swarms::mistakes(&file, &m.to_string()))?;
        // A Swarm runs what its tags named when it was applied, so a new module needs an apply as a new manifest does.
        if pushed || text != self.applied {
            let how = swarms::How {
                discard_state: self.discard_state,
                // Nothing is lost by it.
                rescale: true,
                // Who edits the manifest is who applies it; what is gained is among the changes that are shown.
                grant_all: true,
                ..swarms::How::default()
            };
            let reply = swarms::send(node, &file, &text, how).await?;
            for line in swarms::lines_of(&reply, out) {
                progress.say(&line);
            }
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

    /// Watches what the Bees are built of by path too, wherever that lies; an edit may have added to it. Asked before a build, so
    /// that an edit in its middle counts, it may fail for want of what the build fetches.
    async fn watch_sources(&self, edits: &mut Edits) -> Option<anyhow::Error> {
        let sources = build::sources(&self.dir).await;
        sources.and_then(|sources| edits.watch_too(&sources)).err()
    }

    /// Until Ctrl-C. What fails is shown, and the old version goes on serving.
    async fn watch(&mut self, mut edits: Edits, node: &str, progress: &Progress, out: Printer) -> Outcome {
        loop {
            // Again, for now everything that it is built of was fetched.
            if let Some(e) = self.watch_sources(&mut edits).await {
                progress.say(&format!("only {} is watched: {e:#}", self.dir.display()));
            }
            tokio::select! {
                _ = tokio::signal::ctrl_c() => return Ok(()),
                () = edits.next() => {}
            }
            progress.say("edited");
            let again = async {
                self.read_manifest()?;
                self.watch_sources(&mut edits).await;
                let built = self.build(progress).await?;
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
        }
    }
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

/// The models that the manifest names and that lie in the folder, as NAME.onnx or models/NAME.onnx. Others may be on the node; if not, apply
/// says so.
fn models_here(swarm: &Swarm, dir: &Path) -> BTreeMap<ModelRef, PathBuf> {
    let named: BTreeSet<&ModelRef> = swarm.stages.iter().flat_map(|stage| &stage.models).collect();
    let file = |model: &ModelRef| {
        let file = format!("{}.onnx", model.name);
        let places = [dir.join(&file), dir.join("models").join(&file)];
        places.into_iter().find(|place| place.is_file())
    };
    let found = named
        .into_iter()
        .filter_map(|model| Some((model.clone(), file(model)?)));
    found.collect()
}

/// Which of the built components are which of the manifest's modules.
fn plan(swarm: &Swarm, built: &[Built], dir: &Path) -> Outcome<Plan> {
    let mut plan = Plan::default();
    let of_modules = swarm.stages.iter().filter(|stage| stage.builtin.is_none());
    let written: BTreeSet<&str> = of_modules.map(|stage| stage.module.as_str()).collect();
    let names: BTreeSet<String> = written
        .iter()
        .filter_map(|m| m.parse::<ModuleRef>().ok())
        .map(|m| m.name.to_string())
        .collect();
    for module in written {
        let Ok(reference) = module.parse::<ModuleRef>() else {
            let path = dir.join(module);
            let stem = path
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
                // The build made it of what the manifest names.
                wasm: if python::is_python(&path) {
                    python::kept(&path)
                } else {
                    path
                },
            });
            continue;
        };
        // A digest names bytes that are on the node already.
        let Version::Tag(tag) = &reference.version else {
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

    #[test]
    fn models_that_lie_in_the_folder_are_pushed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("models")).unwrap();
        std::fs::write(dir.path().join("near.onnx"), "x").unwrap();
        std::fs::write(dir.path().join("models/deep.onnx"), "x").unwrap();
        let text = "name: s\nbees:\n  - { name: a, module: m, models: [near, far, 'deep:v2'], input: { gateway: g } }\n\
                    \x20 - { name: b, model: deep, input: { bee: a } }\n";
        let swarm = manifest::parse_local(text).unwrap();
        let found: Vec<String> = models_here(&swarm, dir.path())
            .keys()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["deep:latest", "deep:v2", "near:latest"]);
    }

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
}
