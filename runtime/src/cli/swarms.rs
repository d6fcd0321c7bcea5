//! `apply`, `swarms`, `describe`, `delete`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use skep_model::limits::MANIFEST_BYTES_MAX;
use skep_proto::v1;
use skep_proto::v1::change::Kind;
use tonic::Code;

use super::args;
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::modules::unreadable;
use super::output::{Paint, Printer, shown, time};
use super::progress::Progress;

pub async fn apply(args: args::Apply, node: &str, out: Printer) -> Outcome {
    let manifest = read(&args.file)?;
    let plan = send(node, &args.file, &manifest, true, 0).await?;
    if args.dry_run {
        return show(&plan, out);
    }
    let changes_running = plan
        .changes
        .iter()
        .any(|c| matches!(c.kind(), Kind::Remove | Kind::Change));
    let may_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !out.json();
    if changes_running && !args.yes && may_ask {
        show_changes(&plan, out)?;
        confirm(&format!("apply to running Swarm `{}`?", plan.swarm))?;
    }
    // The plan names the revision that it would make; apply over the one that it was made from.
    let expect = if plan.changes.is_empty() {
        plan.revision
    } else {
        plan.revision.saturating_sub(1)
    };
    let reply = send(node, &args.file, &manifest, false, expect).await?;
    show(&reply, out)
}

/// Reads a manifest's text.
pub fn read(file: &Path) -> Outcome<String> {
    let bytes = std::fs::metadata(file).and_then(|found| {
        if found.len() > MANIFEST_BYTES_MAX as u64 {
            return Err(std::io::Error::other(format!(
                "{} bytes, at most {MANIFEST_BYTES_MAX} are taken",
                found.len()
            )));
        }
        std::fs::read(file)
    });
    let bytes = bytes.map_err(|e| unreadable(file, &e).remedy("name a manifest, as in `skep apply swarm.yaml`"))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
        Failure::new(Exit::Refused, format!("{}:{line}: not UTF-8 text", file.display()))
    })
}

/// Applies or plans; what the node refuses is shown with the file's own name.
pub async fn send(node: &str, file: &Path, manifest: &str, dry_run: bool, expect: u64) -> Outcome<v1::ApplySwarmReply> {
    let request = v1::ApplySwarmRequest {
        manifest: manifest.to_owned(),
        dry_run,
        expect_revision: expect,
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
    let name = file.display().to_string();
    let lines: Vec<String> = lines
        .lines()
        .map(|line| match line.strip_prefix("swarm.yaml:") {
            Some(rest) => format!("{name}:{rest}"),
            None => line.to_owned(),
        })
        .collect();
    let count = match lines.len() {
        1 => "1 mistake".to_owned(),
        n => format!("{n} mistakes"),
    };
    let message = format!("{count} in the manifest; nothing was applied\n  {}", lines.join("\n  "));
    Failure::new(Exit::Refused, message).remedy("mend the lines above; `skep check FILE` checks without a node")
}

fn show(reply: &v1::ApplySwarmReply, out: Printer) -> Outcome {
    if out.json() {
        let changes: Vec<Value> = reply
            .changes
            .iter()
            .map(|c| json!({ "kind": kind(c.kind()).0, "what": c.what, "before": c.before, "after": c.after }))
            .collect();
        return out.document(&json!({
            "swarm": reply.swarm, "revision": reply.revision, "dry_run": reply.dry_run, "changes": changes,
        }));
    }
    show_changes(reply, out)?;
    let (swarm, revision) = (&reply.swarm, reply.revision);
    out.line(&match (reply.changes.is_empty(), reply.dry_run) {
        (true, _) => format!("Swarm `{swarm}` is as the manifest says (revision {revision})"),
        (false, true) => format!("dry run: Swarm `{swarm}` would be at revision {revision}"),
        (false, false) => format!("Swarm `{swarm}` is at revision {revision}"),
    })
}

pub fn show_changes(reply: &v1::ApplySwarmReply, out: Printer) -> Outcome {
    for change in &reply.changes {
        let (_, sign, paint) = kind(change.kind());
        let text = match (change.before.as_str(), change.after.as_str()) {
            ("", "") => change.what.clone(),
            ("", after) => format!("{}: {after}", change.what),
            (before, "") => format!("{}: {before}", change.what),
            (before, after) => format!("{}: {before} → {after}", change.what),
        };
        out.line(&out.paint(paint, &format!("{sign} {}", shown(&text))))?;
    }
    Ok(())
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
        "running" | "ok" => Paint::Green,
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

pub async fn describe(name: String, node: &str, out: Printer) -> Outcome {
    let request = v1::DescribeSwarmRequest { name };
    let reply = connect::beekeeper(node)
        .await?
        .describe_swarm(request)
        .await?
        .into_inner();
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
        return out.document(&json!({ "swarm": summary(&of), "manifest": reply.manifest, "stages": stages }));
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
            format!("{} {}", s.module, s.bee),
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
        "MODULE BEE",
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
        step.note(&format!("{} messages remain", now.remaining));
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
            let message = if last.note.is_empty() {
                format!("{} messages remain", last.remaining)
            } else {
                last.note
            };
            Err(Failure::new(Exit::Conflict, message)
                .remedy("delete again to go on draining, or drop the rest with --discard"))
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
