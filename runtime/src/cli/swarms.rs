//! `apply`, `swarms`, `describe`, `delete`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use skep_model::limits::MANIFEST_BYTES_MAX;
use skep_model::{drawing, manifest};
use skep_proto::v1;
use skep_proto::v1::change::Kind;
use tonic::Code;

use super::args;
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::files;
use super::output::{Paint, Printer, shown, time};
use super::progress::Progress;
use crate::wording::count;

pub async fn apply(args: args::Apply, node: &str, out: Printer) -> Outcome {
    let manifest = read(&args.file)?;
    let how = How {
        dry_run: true,
        expect: 0,
        discard_state: args.discard_state,
        rescale: args.rescale,
        grant_all: args.grant.iter().any(String::is_empty),
        grant: args.grant.iter().filter(|what| !what.is_empty()).cloned().collect(),
    };
    let plan = send(node, &args.file, &manifest, how.clone()).await?;
    if args.dry_run {
        return show(&plan, out);
    }
    // Not worth a question: the node refuses it, with what would be lost.
    let refused = !plan.lost_state.is_empty() && !args.discard_state;
    let changes_running = plan
        .changes
        .iter()
        .any(|c| matches!(c.kind(), Kind::Remove | Kind::Change));
    let may_ask = !files::is_stdin(&args.file)
        && std::io::stdin().is_terminal()
        && std::io::stderr().is_terminal()
        && !out.json();
    if changes_running && !args.yes && may_ask && !refused {
        show_changes(&plan, out)?;
        confirm(&format!("apply to running Swarm `{}`?", plan.swarm))?;
    }
    // The plan names the revision that it would make; apply over the one that it was made from.
    let expect = if plan.changes.is_empty() {
        plan.revision
    } else {
        plan.revision.saturating_sub(1)
    };
    let how = How {
        dry_run: false,
        expect,
        ..how
    };
    let reply = send(node, &args.file, &manifest, how).await?;
    show(&reply, out)
}

/// Other numbers for one stage.
pub async fn scale(args: args::Scale, node: &str, out: Printer) -> Outcome {
    let Some((swarm, stage)) = args.stage.split_once('/') else {
        return Err(Failure::new(Exit::Usage, format!("`{}` names no stage", args.stage))
            .remedy("write SWARM/BEE, as in `skep scale hello-world/count --partitions 8`"));
    };
    let call = v1::ScaleStageRequest {
        swarm: swarm.to_owned(),
        stage: stage.to_owned(),
        partitions: args.partitions.map(u32::from),
        concurrency: args.concurrency.map(u32::from),
        dry_run: args.dry_run,
    };
    let reply = connect::beekeeper(node).await?.scale_stage(call).await?.into_inner();
    show(&reply, out)?;
    if !args.dry_run && !reply.changes.is_empty() && !out.json() {
        eprintln!("write it into the manifest as well: the next apply of one that says otherwise takes it back");
    }
    Ok(())
}

/// Reads a manifest's text.
pub fn read(file: &Path) -> Outcome<String> {
    let bytes = files::read(file, MANIFEST_BYTES_MAX)
        .map_err(|failure| failure.remedy("name a manifest, as in `skep apply swarm.yaml`, or `-` for stdin"))?;
    let name = files::name(file);
    if bytes.len() > MANIFEST_BYTES_MAX {
        let message = format!("{name} has more than the {MANIFEST_BYTES_MAX} bytes that a manifest may have");
        return Err(Failure::new(Exit::Refused, message));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
        Failure::new(Exit::Refused, format!("{name}:{line}: not UTF-8 text"))
    })
}

/// How a manifest is applied.
#[derive(Debug, Clone, Default)]
pub struct How {
    pub dry_run: bool,
    /// The revision that it builds on; 0: any.
    pub expect: u64,
    pub discard_state: bool,
    pub rescale: bool,
    /// What Bees may have that they had not, or all of it.
    pub grant: Vec<String>,
    pub grant_all: bool,
}

/// Applies or plans; what the node refuses is shown with the file's own name.
pub async fn send(node: &str, file: &Path, manifest: &str, how: How) -> Outcome<v1::ApplySwarmReply> {
    let request = v1::ApplySwarmRequest {
        manifest: manifest.to_owned(),
        dry_run: how.dry_run,
        expect_revision: how.expect,
        discard_state: how.discard_state,
        rescale: how.rescale,
        grant: how.grant,
        grant_all: how.grant_all,
    };
    match connect::beekeeper(node).await?.apply_swarm(request).await {
        Ok(reply) => Ok(reply.into_inner()),
        Err(status) if status.code() == Code::InvalidArgument && status.message().starts_with("swarm.yaml:") => {
            Err(mistakes(file, status.message()))
        }
        Err(status) => Err(status.into()),
    }
}

/// A failure of which each line is a mistake in `file`.
pub fn mistakes(file: &Path, lines: &str) -> Failure {
    let name = files::name(file);
    let lines: Vec<String> = lines
        .lines()
        .map(|line| match line.strip_prefix("swarm.yaml:") {
            Some(rest) => format!("{name}:{rest}"),
            None => line.to_owned(),
        })
        .collect();
    let found = count(lines.len() as u64, "mistake");
    let message = format!("{found} in the manifest; nothing was applied\n  {}", lines.join("\n  "));
    Failure::new(Exit::Refused, message).remedy("mend the lines above; `skep check FILE` checks without a node")
}

fn show(reply: &v1::ApplySwarmReply, out: Printer) -> Outcome {
    if out.json() {
        let changes: Vec<Value> = reply
            .changes
            .iter()
            .map(|c| json!({ "kind": kind(c.kind()).0, "what": c.what, "before": c.before, "after": c.after }))
            .collect();
        let lost: Vec<Value> = reply
            .lost_state
            .iter()
            .map(|l| json!({ "stage": l.stage, "keys": l.keys, "waiting": l.waiting, "timers": l.timers }))
            .collect();
        return out.document(&json!({
            "swarm": reply.swarm, "revision": reply.revision, "dry_run": reply.dry_run, "changes": changes,
            "lost_state": lost,
        }));
    }
    show_changes(reply, out)?;
    if reply.dry_run && !reply.lost_state.is_empty() {
        out.line(&out.paint(
            Paint::Red,
            "keyed state would be lost: this takes `apply --discard-state`",
        ))?;
    }
    let (swarm, revision) = (&reply.swarm, reply.revision);
    out.line(&match (reply.changes.is_empty(), reply.dry_run) {
        (true, _) => format!("Swarm `{swarm}` is as the manifest says (revision {revision})"),
        (false, true) => format!("dry run: Swarm `{swarm}` would be at revision {revision}"),
        (false, false) => format!("Swarm `{swarm}` is at revision {revision}"),
    })
}

fn show_changes(reply: &v1::ApplySwarmReply, out: Printer) -> Outcome {
    lines_of(reply, out).iter().try_for_each(|line| out.line(line))
}

/// A line for each change.
pub fn lines_of(reply: &v1::ApplySwarmReply, out: Printer) -> Vec<String> {
    let line = |change: &v1::Change| {
        let (_, sign, paint) = kind(change.kind());
        let text = match (change.before.as_str(), change.after.as_str()) {
            ("", "") => change.what.clone(),
            ("", after) => format!("{}: {after}", change.what),
            (before, "") => format!("{}: {before}", change.what),
            (before, after) => format!("{}: {before} → {after}", change.what),
        };
        out.paint(paint, &format!("{sign} {}", shown(&text)))
    };
    reply.changes.iter().map(line).collect()
}

fn kind(kind: Kind) -> (&'static str, char, Paint) {
    match kind {
        Kind::Add => ("add", '+', Paint::Green),
        Kind::Remove => ("remove", '-', Paint::Red),
        Kind::Change | Kind::Unspecified => ("change", '~', Paint::Yellow),
    }
}

fn confirm(question: &str) -> Outcome {
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "not applied").remedy("answer `y`, or give --yes"))
}

fn summary(s: &v1::SwarmSummary) -> Value {
    json!({
        "name": s.name, "revision": s.revision, "stages": s.stages, "subjects": s.subjects, "status": s.status,
        "created_ms": s.created_ms, "applied_ms": s.applied_ms, "unread": s.unread, "dead": s.dead,
    })
}

fn painted_status(status: &str, out: Printer) -> String {
    let paint = match status {
        "running" | "ok" | "ended" => Paint::Green,
        s if s.starts_with("deleting") => Paint::Yellow,
        _ => Paint::Red,
    };
    out.paint(paint, &shown(status))
}

pub async fn list(node: &str, out: Printer) -> Outcome {
    let reply = connect::beekeeper(node)
        .await?
        .list_swarms(v1::ListSwarmsRequest {})
        .await?
        .into_inner();
    if out.json() {
        return out.document(&json!({ "swarms": reply.swarms.iter().map(summary).collect::<Vec<_>>() }));
    }
    if reply.swarms.is_empty() {
        return out.line("no Swarms yet: make one with `skep apply swarm.yaml`");
    }
    let rows = reply.swarms.iter().map(|s| {
        vec![
            s.name.clone(),
            s.status.clone(),
            s.revision.to_string(),
            s.stages.to_string(),
            s.subjects.join(", "),
            s.unread.to_string(),
            s.dead.to_string(),
            time(s.applied_ms),
        ]
    });
    out.table(
        &[
            "SWARM", "STATUS", "REVISION", "STAGES", "SUBJECTS", "UNREAD", "DEAD", "APPLIED",
        ],
        rows.collect(),
    )
}

pub async fn describe(name: String, graph: Option<args::Graph>, node: &str, out: Printer) -> Outcome {
    let request = v1::DescribeSwarmRequest {
        name,
        count_keys: graph.is_none(),
    };
    let reply = connect::beekeeper(node)
        .await?
        .describe_swarm(request)
        .await?
        .into_inner();
    if let Some(graph) = graph {
        let swarm = manifest::parse_local(&reply.manifest)
            .map_err(|e| Failure::new(Exit::Failed, format!("the stored manifest cannot be read: {e}")))?;
        return out.bytes(drawing::draw(&swarm, graph.into()).as_bytes());
    }
    let of = reply.summary.unwrap_or_default();
    if out.json() {
        let stages: Vec<Value> = reply
            .stages
            .iter()
            .map(|s| {
                json!({
                    "name": s.name, "module": s.module, "digest": s.digest, "bee": s.bee, "inputs": s.inputs,
                    "partitions": s.partitions, "unread": s.unread, "parked": s.parked, "timers": s.timers, "dead": s.dead,
                    "keys": s.keys, "processed": s.processed, "failed": s.failed, "batches": s.batches,
                    "busy_us": s.busy_us, "status": s.status, "last_error": s.last_error, "pure": s.pure,
                })
            })
            .collect();
        let missing: Vec<Value> = reply
            .missing
            .iter()
            .map(|n| json!({ "name": n.name, "why": n.why }))
            .collect();
        return out.document(
            &json!({ "swarm": summary(&of), "manifest": reply.manifest, "stages": stages, "missing": missing }),
        );
    }
    out.line(&format!(
        "Swarm     {}, revision {}, {}",
        of.name,
        of.revision,
        painted_status(&of.status, out)
    ))?;
    out.line(&format!("subjects  {}", of.subjects.join(", ")))?;
    out.line(&format!(
        "applied   {}, created {}\n",
        time(of.applied_ms),
        time(of.created_ms)
    ))?;
    let rows = reply.stages.iter().map(|s| {
        let each = s
            .busy_us
            .checked_div(s.processed)
            .map_or_else(|| "-".to_owned(), |us| format!("{us} us"));
        vec![
            s.name.clone(),
            s.module.clone(),
            s.bee.clone(),
            s.inputs.join(", "),
            s.unread.to_string(),
            s.parked.to_string(),
            s.dead.to_string(),
            s.keys.to_string(),
            s.processed.to_string(),
            s.failed.to_string(),
            each,
            s.status.clone(),
        ]
    });
    let header = [
        "STAGE",
        "MODULE",
        "BEE",
        "INPUT",
        "UNREAD",
        "PARKED",
        "DEAD",
        "KEYS",
        "PROCESSED",
        "FAILED",
        "EACH",
        "STATUS",
    ];
    out.table(&header, rows.collect())?;
    for node in &reply.missing {
        let told = format!(
            "\nwithout what node `{}` processed: {}",
            shown(&node.name),
            shown(&node.why)
        );
        out.line(&out.paint(Paint::Yellow, &told))?;
    }
    for stage in reply.stages.iter().filter(|s| !s.last_error.is_empty()) {
        out.line(&out.paint(
            Paint::Red,
            &format!("\n{}: last error: {}", stage.name, shown(&stage.last_error)),
        ))?;
    }
    Ok(())
}

pub async fn delete(args: args::Delete, node: &str, out: Printer) -> Outcome {
    let request = v1::DeleteSwarmRequest {
        name: args.swarm.clone(),
        timeout_ms: u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX),
        discard: args.discard,
    };
    let mut progress = connect::beekeeper(node)
        .await?
        .delete_swarm(request)
        .await?
        .into_inner();
    let shown_progress = if out.json() {
        Progress::silent()
    } else {
        Progress::stderr()
    };
    let step = shown_progress.step(format!("drain {}", args.swarm));
    let mut last = None;
    while let Some(now) = progress.message().await? {
        if out.json() {
            out.item(&json!({ "remaining": now.remaining, "done": now.done, "note": now.note }))?;
        }
        step.note(&format!("{} to go", count(now.remaining, "message")));
        last = Some(now);
    }
    match last {
        Some(last) if last.done => {
            step.done(&last.note);
            if out.json() {
                Ok(())
            } else {
                out.line(&format!("Swarm `{}` is deleted", args.swarm))
            }
        }
        Some(last) => {
            drop(step);
            // The note says what it still has and that it serves on; its last part is the remedy.
            let (message, remedy) = last.note.rsplit_once("; ").unwrap_or((&last.note, ""));
            let failure = Failure::new(Exit::Conflict, message);
            Err(if remedy.is_empty() {
                failure
            } else {
                failure.remedy(remedy)
            })
        }
        None => {
            Err(Failure::new(Exit::Unknown, "the node ended the call without a word").remedy("look at `skep swarms`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_carry_the_files_own_name() {
        let failure = mistakes(Path::new("a/my.yaml"), "swarm.yaml:1:2: x\nswarm.yaml:3:4: y");
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(
            failure.message,
            "2 mistakes in the manifest; nothing was applied\n  a/my.yaml:1:2: x\n  a/my.yaml:3:4: y"
        );
    }
}
