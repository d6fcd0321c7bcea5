//! What needs no node: `check`, `schema`, `completions`; and `version`, which asks one if it is there.

use std::path::Path;
use std::time::Duration;

use clap::CommandFactory as _;
use clap_complete::Shell;
use serde_json::json;
use skep_model::{drawing, manifest};
use skep_proto::v1;

use super::args::{Cli, Graph};
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::files;
use super::output::Printer;
use super::swarms;
use crate::wording::count;

pub fn check(file: &Path, graph: Option<Graph>, out: Printer) -> Outcome {
    let text = swarms::read(file)?;
    // Paths are right in a manifest for `skep up`; `apply` refuses them.
    match manifest::parse_local(&text) {
        Ok(swarm) if let Some(graph) = graph => out.bytes(drawing::draw(&swarm, graph.into()).as_bytes()),
        Ok(swarm) if out.json() => {
            out.document(&json!({ "swarm": swarm.name.as_str(), "stages": swarm.stages.len(), "mistakes": [] }))
        }
        Ok(swarm) => {
            let subjects: Vec<String> = swarm.subjects().iter().map(ToString::to_string).collect();
            let (name, stages) = (&swarm.name, swarm.stages.len());
            out.line(&format!(
                "{}: Swarm `{name}`, {}, called as {}",
                files::name(file),
                count(stages as u64, "Bee"),
                subjects.join(", ")
            ))
        }
        Err(mistakes) => {
            if out.json() {
                let list: Vec<_> = mistakes
                    .0
                    .iter()
                    .map(|m| {
                        json!({ "line": m.line, "column": m.column, "path": m.path, "message": m.message, "hint": m.hint })
                    })
                    .collect();
                out.document(&json!({ "mistakes": list }))?;
            }
            let lines = mistakes.in_file(&files::name(file)).to_string();
            let found = count(mistakes.0.len() as u64, "mistake");
            let message = format!("{found} in the manifest\n  {}", lines.replace('\n', "\n  "));
            Err(Failure::new(Exit::Refused, message).remedy("mend the lines above"))
        }
    }
}

pub fn schema(out: Printer) -> Outcome {
    out.document(&manifest::json_schema())
}

pub fn completions(shell: Shell, out: Printer) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "skep", &mut script);
    out.bytes(&script)
}

pub async fn version(node: &str, out: Printer) -> Outcome {
    /// Long enough for a node next door; whoever asks for a version does not want to wait for one that is not there.
    const PATIENCE: Duration = Duration::from_secs(1);
    let ask = async {
        let reply = connect::beekeeper(node).await?.node(v1::NodeRequest {}).await?;
        Ok::<_, Failure>(reply.into_inner())
    };
    let found = tokio::time::timeout(PATIENCE, ask).await.ok().and_then(Result::ok);
    let own = env!("CARGO_PKG_VERSION");
    if out.json() {
        let node = found.map(|n| {
            json!({
                "url": node, "version": n.version, "started_ms": n.started_ms, "data": n.data, "backend": n.backend,
                "flushes": n.flushes, "commits": n.commits,
            })
        });
        return out.document(&json!({ "version": own, "node": node }));
    }
    out.line(&format!("skep {own}"))?;
    match found {
        Some(n) => out.line(&format!(
            "node {} at {node}: {} backend, data in {}",
            n.version, n.backend, n.data
        )),
        None => out.line(&format!("no node answers at {node}")),
    }
}
