//! `logs`.

use serde_json::json;
use skep_proto::v1;

use super::args;
use super::connect;
use super::failure::Outcome;
use super::output::{Paint, Printer, shown, time};

pub async fn logs(args: args::Logs, node: &str, out: Printer) -> Outcome {
    let request = v1::LogsRequest {
        swarm: args.swarm,
        stage: args.stage.unwrap_or_default(),
        follow: args.follow,
        tail: args.tail,
    };
    let mut entries = connect::beekeeper(node).await?.logs(request).await?.into_inner();
    while let Some(entry) = entries.message().await? {
        if out.json() {
            out.item(&json!({
                "at_ms": entry.at_ms, "stage": entry.stage, "level": entry.level, "context": entry.context,
                "text": entry.text, "message": entry.message, "node": entry.node,
            }))?;
            continue;
        }
        let paint = match entry.level.as_str() {
            "error" | "critical" => Paint::Red,
            "warn" => Paint::Yellow,
            "info" => Paint::Green,
            _ => Paint::Dim,
        };
        let level = out.paint(paint, &format!("{:5}", entry.level));
        let at = out.paint(Paint::Dim, &time(entry.at_ms));
        let by = match (entry.stage.as_str(), entry.node.as_str()) {
            // The platform's own remark.
            ("", _) => entry.context,
            (stage, "") => stage.to_owned(),
            (stage, node) => format!("{stage}@{}", shown(node)),
        };
        out.line(&format!("{at} {level} {by}: {}", shown(entry.text.trim_end())))?;
    }
    Ok(())
}
