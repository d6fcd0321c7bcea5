//! `logs`, `dlq`, `state`.

use serde_json::{Value, json};
use skep_proto::v1;
use skep_proto::v1::beekeeper_client::BeekeeperClient;
use tonic::transport::Channel;

use super::args::{self, DlqCommand};
use super::connect;
use super::failure::{Exit, Failure, Outcome};
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
                "text": entry.text, "message": entry.message,
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
        out.line(&format!(
            "{at} {level} {}: {}",
            entry.stage,
            shown(entry.text.trim_end())
        ))?;
    }
    Ok(())
}

/// One page of `discard --all`.
const PAGE: u32 = 500;

pub async fn dlq(args: args::Dlq, node: &str, out: Printer) -> Outcome {
    let mut beekeeper = connect::beekeeper(node).await?;
    let swarm = args.swarm;
    let default = DlqCommand::List {
        stage: None,
        after: 0,
        limit: 100,
    };
    match args.what.unwrap_or(default) {
        DlqCommand::List { stage, after, limit } => {
            let letters = listed(&mut beekeeper, &swarm, &stage.unwrap_or_default(), after, limit).await?;
            if out.json() {
                return out.document(&json!({ "letters": letters.iter().map(letter).collect::<Vec<_>>() }));
            }
            if letters.is_empty() {
                return out.line("no dead letters");
            }
            let rows = letters.iter().map(|l| {
                let detail = l.detail.lines().next().unwrap_or_default().to_owned();
                let attempts = l.attempts.to_string();
                vec![
                    l.id.to_string(),
                    l.stage.clone(),
                    time(l.at_ms),
                    attempts,
                    l.reason.clone(),
                    detail,
                ]
            });
            out.table_of_lines(&["ID", "STAGE", "AT", "ATTEMPTS", "REASON", "DETAIL"], rows.collect())?;
            if let Some(last) = letters.last().filter(|_| letters.len() as u64 >= u64::from(limit)) {
                // On stderr: it is about the list, not in it.
                eprintln!("there may be more: `skep dlq {swarm} list --after {}`", last.id);
            }
            Ok(())
        }
        DlqCommand::Show { id } => {
            let request = v1::ListDeadLettersRequest {
                swarm: swarm.clone(),
                stage: String::new(),
                after: id.saturating_sub(1),
                limit: 1,
            };
            let letters = beekeeper.list_dead_letters(request).await?.into_inner().letters;
            let found = letters.into_iter().find(|l| l.id == id).ok_or_else(|| {
                Failure::new(Exit::NotFound, format!("Swarm `{swarm}` has no dead letter {id}"))
                    .remedy(format!("list them with `skep dlq {swarm}`"))
            })?;
            if out.json() {
                out.document(&letter(&found))
            } else {
                show(&found, out)
            }
        }
        DlqCommand::Discard { ids, all } => {
            let mut discarded = 0;
            if all {
                loop {
                    let request = v1::ListDeadLettersRequest {
                        swarm: swarm.clone(),
                        stage: String::new(),
                        after: 0,
                        limit: PAGE,
                    };
                    let letters = beekeeper.list_dead_letters(request).await?.into_inner().letters;
                    let ids: Vec<u64> = letters.iter().map(|l| l.id).collect();
                    let request = v1::DiscardDeadLettersRequest {
                        swarm: swarm.clone(),
                        ids,
                    };
                    let page = if letters.is_empty() {
                        0
                    } else {
                        beekeeper.discard_dead_letters(request).await?.into_inner().discarded
                    };
                    discarded += page;
                    // None went: another did it meanwhile, or there are no more.
                    if page == 0 {
                        break;
                    }
                }
            } else {
                let asked = ids.len() as u64;
                let request = v1::DiscardDeadLettersRequest {
                    swarm: swarm.clone(),
                    ids,
                };
                discarded = beekeeper.discard_dead_letters(request).await?.into_inner().discarded;
                if discarded < asked {
                    let message = format!("discarded {discarded} of {asked}: the others are not there");
                    return Err(
                        Failure::new(Exit::NotFound, message).remedy(format!("list them with `skep dlq {swarm}`"))
                    );
                }
            }
            if out.json() {
                return out.document(&json!({ "discarded": discarded }));
            }
            out.line(&format!("discarded {discarded}"))
        }
    }
}

/// Up to `limit`, over as many replies as that takes.
async fn listed(
    beekeeper: &mut BeekeeperClient<Channel>,
    swarm: &str,
    stage: &str,
    mut after: u64,
    limit: u32,
) -> Outcome<Vec<v1::DeadLetter>> {
    let mut letters: Vec<v1::DeadLetter> = Vec::new();
    loop {
        let left = limit.saturating_sub(u32::try_from(letters.len()).unwrap_or(u32::MAX));
        if left == 0 {
            return Ok(letters);
        }
        let request = v1::ListDeadLettersRequest {
            swarm: swarm.to_owned(),
            stage: stage.to_owned(),
            after,
            limit: left,
        };
        let page = beekeeper.list_dead_letters(request).await?.into_inner().letters;
        let Some(last) = page.last() else { return Ok(letters) };
        after = last.id;
        letters.extend(page);
    }
}

fn letter(l: &v1::DeadLetter) -> Value {
    json!({
        "id": l.id, "stage": l.stage, "reason": l.reason, "detail": l.detail, "stderr": l.stderr, "attempts": l.attempts,
        "at_ms": l.at_ms, "message": l.message, "key": l.key, "payload": payload_json(&l.payload),
        "headers": l.headers.iter().map(|h| json!({ "name": h.name, "value": h.value })).collect::<Vec<_>>(),
        "module": l.module, "trace_id": l.trace_id,
    })
}

fn show(l: &v1::DeadLetter, out: Printer) -> Outcome {
    let headers: Vec<String> = l.headers.iter().map(|h| format!("{}={}", h.name, h.value)).collect();
    for (name, value) in [
        ("dead letter", l.id.to_string()),
        ("stage", l.stage.clone()),
        ("at", time(l.at_ms)),
        ("reason", l.reason.clone()),
        ("detail", l.detail.clone()),
        ("attempts", l.attempts.to_string()),
        ("module", l.module.clone()),
        ("message", l.message.clone()),
        ("trace", l.trace_id.clone()),
        ("key", l.key.clone().unwrap_or_default()),
        ("headers", headers.join(", ")),
        ("payload", payload_text(&l.payload)),
        ("stderr", l.stderr.clone()),
    ] {
        if !value.is_empty() {
            out.line(&format!("{name:11} {}", shown(value.trim_end())))?;
        }
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
