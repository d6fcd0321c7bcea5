//! `logs`, `state`.

use serde_json::{Value, json};
use skep_proto::v1;

use super::args;
use super::connect;
use super::failure::Outcome;
use super::output::{Paint, Printer, payload_json, payload_text, shown, time};

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

pub async fn state(args: args::State, node: &str, out: Printer) -> Outcome {
    let key = args.key;
    let mut beekeeper = connect::beekeeper(node).await?;
    let mut values: Vec<v1::StateValue> = Vec::new();
    loop {
        let request = v1::GetStateRequest {
            swarm: args.swarm.clone(),
            stage: args.stage.clone(),
            key: key.clone(),
            after: values.last().map(|v| v.name.clone()).unwrap_or_default(),
        };
        let page = beekeeper.get_state(request).await?.into_inner();
        values.extend(page.values);
        if !page.more {
            break;
        }
    }
    if out.json() {
        let values: serde_json::Map<String, Value> = values
            .iter()
            .map(|v| (v.name.clone(), payload_json(&v.value)))
            .collect();
        return out.document(&json!({ "key": key, "values": values }));
    }
    if values.is_empty() {
        return out.line(&format!("nothing is kept for key `{}`", shown(&key)));
    }
    out.table(
        &["NAME", "VALUE"],
        values
            .iter()
            .map(|v| vec![v.name.clone(), payload_text(&v.value)])
            .collect(),
    )
}
