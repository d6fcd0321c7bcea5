//! `skep doctor`: the findings as a table, worst news in the exit code.

use serde_json::json;
use skep_topic::redis::Severity;

use super::args::Stores;
use super::failure::{Exit, Failure, Outcome};
use super::output::Printer;
use crate::doctor::examine;
use crate::settings::resolve;
use crate::store::Access;
use crate::wording::count;

pub async fn run(args: Stores, seen: Option<String>, out: Printer) -> Outcome {
    let (file, flags) = args.layer();
    let mut settings = resolve(flags, file.as_deref())?;
    settings.warnings.extend(seen);
    let report = examine(&settings, Access::of_environment()).await;
    let (refused, warned) = (report.count(Severity::Refuse), report.count(Severity::Warn));
    if out.json() {
        let found: Vec<_> = report
            .found
            .iter()
            .map(|f| {
                json!({
                    "part": f.part, "severity": word(f.finding.severity), "what": f.finding.what, "remedy": f.finding.remedy,
                })
            })
            .collect();
        out.document(&json!({
            "backend": settings.backend.to_string(), "artifacts": settings.artifacts.to_string(), "findings": found,
            "survives": report.survives, "starts": refused == 0,
        }))?;
    } else {
        let rows = report.found.iter().map(|f| {
            let told = word(f.finding.severity).to_owned();
            vec![
                told,
                f.part.to_owned(),
                f.finding.what.clone(),
                f.finding.remedy.clone(),
            ]
        });
        out.table(&["", "PART", "FOUND", "REMEDY"], rows.collect())?;
        if let Some(survives) = &report.survives {
            out.line(&format!("\nAn acknowledged submit: {survives}."))?;
        }
    }
    match refused {
        0 => Ok(()),
        _ => {
            let warnings = if warned > 0 {
                format!(", and {}", count(warned as u64, "warning"))
            } else {
                String::new()
            };
            let message = format!(
                "a node does not start on this: {}{warnings}",
                count(refused as u64, "error")
            );
            Err(Failure::new(Exit::Failed, message).remedy("do what the table says beside each"))
        }
    }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Fine => "ok",
        Severity::Warn => "warning",
        Severity::Refuse => "error",
    }
}
