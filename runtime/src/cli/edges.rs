//! `edge`.

use serde_json::{Value, json};
use skep_edge::enrol::is_open;
use skep_edge::line::Line;
use skep_proto::v1;

use super::args::{self, EdgeCommand};
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::output::{Printer, shown as plain, time};
use crate::wording::count;

pub async fn run(args: args::Edge, node: &str, out: Printer) -> Outcome {
    match args.what {
        EdgeCommand::Enroll {
            name,
            label,
            hub,
            allow_insecure,
        } => {
            let hub = hub.unwrap_or_else(|| node.to_owned());
            if is_open(&hub) && !allow_insecure {
                let what = format!(
                    "an edge would call {hub} without TLS, and whoever stands between could read and forge what it hands over: serve with \
                     `--tls-cert` and give `--hub https://…`, or give --allow-insecure where nobody else is on that network"
                );
                return Err(Failure::new(Exit::Usage, what));
            }
            let request = v1::InviteEdgeRequest { name, labels: label };
            let invited = connect::edges(node).await?.invite_edge(request).await?.into_inner();
            let key = invited.hub_key.as_ref().try_into();
            let line = Line {
                hub: hub.clone(),
                tenant: invited.tenant,
                name: invited.name.clone(),
                hub_key: key.map_err(|_| Failure::new(Exit::Internal, "the node gave no key of a hub".to_owned()))?,
                secret: invited.secret,
            }
            .to_string();
            if out.json() {
                return out.document(&json!({ "name": invited.name, "line": line, "expires_ms": invited.expires_ms }));
            }
            out.line(&line)?;
            if !is_open(&hub) && hub.starts_with("http://") {
                eprintln!("only edges on this very machine reach {hub}: for others say where it is, with --hub");
            }
            eprintln!(
                "run this on the machine, once, before {}: skep-edge enroll LINE --data DIR",
                time(invited.expires_ms)
            );
            Ok(())
        }
        EdgeCommand::List => {
            let edges = all(node).await?;
            if out.json() {
                return out.document(&json!({ "edges": edges.iter().map(shown).collect::<Vec<_>>() }));
            }
            let rows = edges.iter().map(|edge| {
                let waiting = edge.waiting.iter().fold(0_u64, |sum, w| sum.saturating_add(w.messages));
                vec![
                    edge.name.clone(),
                    edge.labels.join(", "),
                    state(edge).to_owned(),
                    seen(edge),
                    format!("{}/{}", edge.follows, edge.revision),
                    waiting.to_string(),
                    plain(&edge.trouble),
                ]
            });
            let head = ["EDGE", "LABELS", "STATE", "SEEN", "ORDERS", "WAITING", "TROUBLE"];
            out.table_of_lines(&head, rows.collect())
        }
        EdgeCommand::Status { name } => {
            let edges = all(node).await?;
            let Some(edge) = edges.iter().find(|edge| edge.name == name) else {
                let what = format!("no edge `{name}`: look at `skep edge list`");
                return Err(Failure::new(Exit::NotFound, what));
            };
            if out.json() {
                return out.document(&shown(edge));
            }
            out.line(&format!("edge       {} ({})", edge.name, state(edge)))?;
            out.line(&format!("labels     {}", edge.labels.join(", ")))?;
            out.line(&format!("seen       {}", seen(edge)))?;
            out.line(&format!("version    {}", plain(&edge.version)))?;
            out.line(&format!("processor  {}", plain(&edge.target)))?;
            out.line(&format!(
                "orders     follows revision {}, given {}",
                edge.follows, edge.revision
            ))?;
            out.line(&format!("runs       {}", plain(&edge.runs.join(", "))))?;
            if !edge.trouble.is_empty() {
                out.line(&format!("trouble    {}", plain(&edge.trouble)))?;
            }
            for w in &edge.waiting {
                let mut line = format!(
                    "waiting    {} for {}, {} bytes; {} handed over, {} dropped",
                    count(w.messages, "message"),
                    plain(&w.stage),
                    w.bytes,
                    w.handed_over,
                    w.dropped
                );
                if !w.trouble.is_empty() {
                    line += &format!("; {}", plain(&w.trouble));
                }
                out.line(&line)?;
            }
            for w in edge.inboxes.iter().filter(|w| w.messages > 0) {
                out.line(&format!(
                    "inbox      {} in {}",
                    count(w.messages, "message"),
                    plain(&w.stage)
                ))?;
            }
            Ok(())
        }
        EdgeCommand::Revoke { name } => {
            let request = v1::RevokeEdgeRequest { name: name.clone() };
            connect::edges(node).await?.revoke_edge(request).await?;
            out.line(&format!(
                "edge {name} is revoked: it hands over nothing more, and gets no orders"
            ))
        }
        EdgeCommand::Label { name, label } => {
            let request = v1::LabelEdgeRequest {
                name: name.clone(),
                labels: label,
            };
            connect::edges(node).await?.label_edge(request).await?;
            out.line(&format!("edge {name} has these labels from now on"))
        }
        EdgeCommand::Discard { name, what, first } => {
            let request = v1::DiscardAtEdgeRequest {
                name: name.clone(),
                what: what.clone(),
                first,
            };
            connect::edges(node).await?.discard_at_edge(request).await?;
            let which = if first { "the first message" } else { "what waits there" };
            out.line(&format!(
                "edge {name} lets go of {which} for {what} once it hears of it"
            ))
        }
        EdgeCommand::Resume { name } => {
            let request = v1::ResumeEdgeRequest { name: name.clone() };
            let resumed = connect::edges(node).await?.resume_edge(request).await?.into_inner();
            if out.json() {
                return out.document(&json!({ "name": name, "revision": resumed.revision }));
            }
            out.line(&format!(
                "edge {name} goes on, with orders above revision {}",
                resumed.revision
            ))
        }
    }
}

async fn all(node: &str) -> Outcome<Vec<v1::Edge>> {
    let list = connect::edges(node).await?.list_edges(v1::ListEdgesRequest {}).await?;
    Ok(list.into_inner().edges)
}

fn state(edge: &v1::Edge) -> &'static str {
    match edge {
        edge if edge.attached => "attached",
        edge if edge.invited => "invited",
        _ => "away",
    }
}

fn seen(edge: &v1::Edge) -> String {
    match edge.seen_ms {
        0 => "never".to_owned(),
        ms => time(ms),
    }
}

fn shown(edge: &v1::Edge) -> Value {
    let waiting = edge.waiting.iter().map(|w| {
        json!({
            "stage": w.stage, "messages": w.messages, "bytes": w.bytes, "handed_over": w.handed_over, "dropped": w.dropped, "trouble": w.trouble,
        })
    });
    let inboxes = edge.inboxes.iter().map(|w| (w.stage.clone(), w.messages.into()));
    json!({
        "name": edge.name, "labels": edge.labels, "state": state(edge), "enrolled_ms": edge.enrolled_ms, "seen_ms": edge.seen_ms,
        "target": edge.target, "version": edge.version, "revision": edge.revision, "follows": edge.follows, "trouble": edge.trouble,
        "runs": edge.runs, "waiting": waiting.collect::<Vec<_>>(), "inboxes": inboxes.collect::<serde_json::Map<_, _>>(),
    })
}
