//! `nodes`, `drain`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_proto::v1;

use super::args;
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::output::{Printer, shown, time};
use crate::wording::count;

/// How often `drain` looks whether the node owns nothing any more.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub async fn list(node: &str, out: Printer) -> Outcome {
    let nodes = all(node).await?;
    if out.json() {
        return out.document(&json!({ "nodes": nodes.iter().map(as_json).collect::<Vec<_>>() }));
    }
    let rows = nodes.iter().map(|n| {
        let partitions: usize = n.owned.iter().map(|o| o.partitions.len()).sum();
        let mut state = state(n).to_owned();
        if n.behind {
            state.push_str(", catching up");
        }
        let here = if n.here { " (here)" } else { "" };
        vec![
            format!("{}{here}", shown(&n.name)),
            n.id.clone(),
            state,
            n.version.clone(),
            n.roles.join(","),
            n.url.clone(),
            time(n.started_ms),
            format!(
                "{:.1} s ago",
                f64::from(u32::try_from(n.silent_ms).unwrap_or(u32::MAX)) / 1_000.0
            ),
            partitions.to_string(),
        ]
    });
    let rows = rows.collect();
    out.table_of_lines(
        &[
            "NAME", "ID", "STATE", "VERSION", "ROLES", "URL", "STARTED", "HEARD", "OWNS",
        ],
        rows,
    )?;
    let labelled: Vec<_> = nodes.iter().filter(|n| !n.labels.is_empty()).collect();
    if !labelled.is_empty() {
        out.line("")?;
        let rows = labelled.iter().map(|n| vec![shown(&n.name), n.labels.join(" ")]);
        out.table_of_lines(&["NAME", "LABELS"], rows.collect())?;
    }
    for n in nodes.iter().filter(|n| !n.owned.is_empty()) {
        out.line("")?;
        out.line(&format!("{} owns", shown(&n.name)))?;
        let rows = n.owned.iter().map(|o| {
            let partitions: Vec<String> = o.partitions.iter().map(u32::to_string).collect();
            vec![
                format!("{}/{}", o.swarm, o.stage),
                partitions.join(" "),
                o.waiting.to_string(),
            ]
        });
        out.table_of_lines(&["STAGE", "PARTITIONS", "WAITING IN ALL"], rows.collect())?;
    }
    Ok(())
}

pub async fn drain(args: args::Drain, node: &str, out: Printer) -> Outcome {
    let request = v1::DrainNodeRequest {
        node: args.name.clone(),
        undo: args.undo,
    };
    let id = connect::beekeeper(node)
        .await?
        .drain_node(request)
        .await?
        .into_inner()
        .id;
    let until = Instant::now() + args.timeout;
    let wanted = !args.undo;
    loop {
        let found = all(node).await?.into_iter().find(|n| n.id == id);
        let Some(found) = found else {
            return Err(Failure::new(
                Exit::NotFound,
                format!("node {id} is gone: it stopped, or was not heard of lately"),
            ));
        };
        let drains = found.state() == v1::node_info::State::Draining;
        let owns: usize = found.owned.iter().map(|o| o.partitions.len()).sum();
        if drains == wanted && (args.undo || owns == 0) {
            return if out.json() {
                out.document(&as_json(&found))
            } else if args.undo {
                out.line(&format!("{} is back in service", shown(&found.name)))
            } else {
                out.line(&format!(
                    "{} owns nothing any more: it can be stopped",
                    shown(&found.name)
                ))
            };
        }
        if Instant::now() > until {
            return Err(Failure::new(
                Exit::Deadline,
                format!(
                    "{} was told, and still owns {} after {} s",
                    shown(&found.name),
                    count(owns as u64, "partition"),
                    args.timeout.as_secs()
                ),
            )
            .remedy("look again with `skep nodes`, or take it back with `skep drain --undo`"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn all(node: &str) -> Result<Vec<v1::NodeInfo>, Failure> {
    let reply = connect::beekeeper(node)
        .await?
        .list_nodes(v1::ListNodesRequest {})
        .await?;
    Ok(reply.into_inner().nodes)
}

fn state(n: &v1::NodeInfo) -> &'static str {
    match n.state() {
        v1::node_info::State::Draining => "draining",
        _ => "serving",
    }
}

fn as_json(n: &v1::NodeInfo) -> Value {
    json!({
        "id": n.id, "name": n.name, "version": n.version, "url": n.url, "roles": n.roles, "labels": n.labels, "state": state(n),
        "started_ms": n.started_ms, "silent_ms": n.silent_ms, "here": n.here, "behind": n.behind,
        "owned": n.owned.iter().map(|o| json!({
            "swarm": o.swarm, "stage": o.stage, "partitions": o.partitions, "waiting": o.waiting,
        })).collect::<Vec<_>>(),
    })
}
