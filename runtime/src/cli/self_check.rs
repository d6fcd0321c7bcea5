//! `skep self check`: a line a finding, worst news in the exit code.

use std::time::SystemTime;

use serde_json::json;
use skep_topic::redis::Severity;

use super::args::SelfCheck;
use super::failure::{Exit, Failure, Outcome};
use super::output::{Paint, Printer, shown};
use crate::level::Build;
use crate::machine::{self, Program};
use crate::settings::resolve;
use crate::store::Access;
use crate::wording::count;

pub async fn run(args: SelfCheck, seen: Option<String>, out: Printer) -> Outcome {
    let (file, flags) = args.serve.layer();
    let mut settings = resolve(flags, file.as_deref())?;
    settings.warnings.extend(seen);
    let program = Program::running()?;
    let report = machine::examine(
        &settings,
        &program,
        args.sha256.as_deref(),
        SystemTime::now(),
        Access::of_environment(),
    )
    .await;
    let (failed, warned) = (report.count(Severity::Refuse), report.count(Severity::Warn));
    if out.json() {
        let findings = report.found.iter().map(|f| {
            let (severity, _) = word(f.finding.severity);
            json!({ "part": f.part, "severity": severity, "what": f.finding.what, "remedy": f.finding.remedy })
        });
        out.document(&json!({
            "version": Build::current().version, "program": program.path, "sha256": program.sha256,
            "findings": findings.collect::<Vec<_>>(), "survives": report.survives, "runs": failed == 0,
        }))?;
    } else {
        for found in &report.found {
            let (word, paint) = word(found.finding.severity);
            let remedy = match found.finding.remedy.as_str() {
                "" => String::new(),
                remedy => format!(" — {remedy}"),
            };
            let line = format!("{:<9}  {}{remedy}", found.part, found.finding.what);
            out.line(&format!(
                "{}  {}",
                out.paint(paint, &format!("{word:<4}")),
                shown(&line)
            ))?;
        }
        if let Some(survives) = &report.survives {
            out.line(&format!("\nAn acknowledged submit: {survives}."))?;
        }
    }
    if failed == 0 {
        return Ok(());
    }
    let warnings = match warned {
        0 => String::new(),
        some => format!(", and {}", count(some as u64, "warning")),
    };
    let message = format!(
        "a node does not run here as it should: {}{warnings}",
        count(failed as u64, "failure")
    );
    Err(Failure::new(Exit::Failed, message).remedy("do what is said behind each `fail`"))
}

fn word(severity: Severity) -> (&'static str, Paint) {
    match severity {
        Severity::Fine => ("ok", Paint::Green),
        Severity::Warn => ("warn", Paint::Yellow),
        Severity::Refuse => ("fail", Paint::Red),
    }
}
