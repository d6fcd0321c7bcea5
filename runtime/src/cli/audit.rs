//! `audit`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use skep_model::limits::CONFIG_FILE_BYTES_MAX;
use skep_proto::v1;

use super::args::{self, AuditCommand};
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::output::{Paint, Printer, shown, time};

/// What an earlier verification told: a line or two a tenant and node.
const HEADS_BYTES_MAX: u64 = 64 * CONFIG_FILE_BYTES_MAX as u64;

pub async fn run(args: args::Audit, node: &str, out: Printer) -> Outcome {
    match args.what {
        AuditCommand::List { since, tenant, follow } => list(since, tenant, follow, node, out).await,
        AuditCommand::Verify { heads } => verify(heads.as_deref(), node, out).await,
    }
}

async fn list(
    since: Option<std::time::Duration>,
    tenant: Option<String>,
    follow: bool,
    node: &str,
    out: Printer,
) -> Outcome {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = since.map_or(0, |since| now.saturating_sub(since).as_millis());
    let request = v1::ListAuditRequest {
        since_ms: u64::try_from(since).unwrap_or(u64::MAX),
        tenant: tenant.unwrap_or_default(),
        follow,
    };
    let mut entries = connect::audit(node).await?.list_audit(request).await?.into_inner();
    // Asked for, and not known to have ended.
    let mut open: BTreeMap<(u64, String, String, u64), v1::AuditEntry> = BTreeMap::new();
    while let Some(entry) = entries.message().await? {
        if out.json() {
            out.item(&document(&entry))?;
            continue;
        }
        match entry.kind.as_str() {
            "asked" if follow => {}
            "asked" => {
                open.insert((entry.at_ms, entry.node.clone(), entry.book.clone(), entry.seq), entry);
            }
            "ended" => {
                open.retain(|(_, node, book, seq), _| {
                    (*node != entry.node || *book != entry.book) || *seq != entry.asked_seq
                });
                line(&entry, &out)?;
            }
            _ => line(&entry, &out)?,
        }
    }
    for entry in open.values() {
        line(entry, &out)?;
    }
    Ok(())
}

fn line(entry: &v1::AuditEntry, out: &Printer) -> Outcome {
    let at = out.paint(Paint::Dim, &time(entry.at_ms));
    let who = match (entry.token.as_str(), entry.token_name.as_str()) {
        ("", _) if entry.role.is_empty() => String::new(),
        ("", _) => "nobody's token".to_owned(),
        (id, "") => id.to_owned(),
        (id, name) => format!("{id} ({})", shown(name)),
    };
    let of = match (entry.role.as_str(), entry.tenant.as_str()) {
        ("", _) => String::new(),
        ("operator", _) => " operator".to_owned(),
        (role, tenant) => format!(" {role} of {tenant}"),
    };
    let (paint, outcome) = match (entry.kind.as_str(), entry.outcome.as_str()) {
        ("asked", _) => (Paint::Yellow, "no outcome: under way, or its node stopped"),
        (_, "ok") => (Paint::Green, "ok"),
        ("node" | "rotated", _) => (Paint::Dim, entry.kind.as_str()),
        (kind, "") => (Paint::Red, kind),
        (_, outcome) => (Paint::Red, outcome),
    };
    let objects: String = entry
        .objects
        .iter()
        .map(|object| format!(" {}={}", object.what, shown(&object.name)))
        .collect();
    let mut text = format!("{at} {}", out.paint(paint, &shown(outcome)));
    for part in [format!("{who}{of}"), format!("{}{objects}", entry.method)] {
        if !part.trim().is_empty() {
            text.push_str(&format!(" · {}", part.trim()));
        }
    }
    if !entry.from.is_empty() {
        text.push_str(&format!(" · from {}", entry.from));
    }
    if entry.times > 1 || entry.note.starts_with("as many") {
        text.push_str(&format!(" · {} times", entry.times));
    }
    if !entry.note.is_empty() {
        text.push_str(&format!(" · {}", shown(&entry.note)));
    }
    out.line(&format!(
        "{text} {}",
        out.paint(Paint::Dim, &format!("@{}", shown(&entry.node)))
    ))
}

fn document(entry: &v1::AuditEntry) -> Value {
    let objects: serde_json::Map<String, Value> = entry
        .objects
        .iter()
        .map(|object| (object.what.clone(), object.name.clone().into()))
        .collect();
    json!({
        "node": entry.node, "book": entry.book, "seq": entry.seq, "at_ms": entry.at_ms, "kind": entry.kind, "asked_seq": entry.asked_seq,
        "token": entry.token, "token_name": entry.token_name, "tenant": entry.tenant, "role": entry.role, "method": entry.method,
        "objects": objects, "from": entry.from, "outcome": entry.outcome, "times": entry.times, "note": entry.note,
    })
}

async fn verify(heads: Option<&Path>, node: &str, out: Printer) -> Outcome {
    let known = heads.map(read).transpose()?.unwrap_or_default();
    let request = v1::VerifyAuditRequest { known };
    let reply = connect::audit(node).await?.verify_audit(request).await?.into_inner();
    let broken = reply.books.iter().filter(|book| !book.trouble.is_empty()).count();
    if out.json() {
        let books = reply.books.iter().map(|book| {
            json!({
                "node": book.node, "book": book.book, "first_seq": book.first_seq, "last_seq": book.last_seq, "head": book.head,
                "trouble": book.trouble,
            })
        });
        let missing = reply
            .missing
            .iter()
            .map(|node| json!({ "node": node.node, "why": node.why }));
        out.document(&json!({ "books": books.collect::<Vec<_>>(), "missing": missing.collect::<Vec<_>>() }))?;
    } else {
        let rows = reply.books.iter().map(|book| {
            let records = format!("{}–{}", book.first_seq, book.last_seq);
            let trouble = if book.trouble.is_empty() {
                "whole"
            } else {
                &book.trouble
            };
            vec![
                book.node.clone(),
                book.book.clone(),
                records,
                book.head.chars().take(16).collect(),
                trouble.to_owned(),
            ]
        });
        let missing = reply.missing.iter().map(|node| {
            let mut row = vec![String::new(); 5];
            (row[0], row[4]) = (node.node.clone(), node.why.clone());
            row
        });
        out.table_of_lines(&["NODE", "BOOK", "RECORDS", "HEAD", ""], rows.chain(missing).collect())?;
    }
    if broken > 0 {
        return Err(Failure::new(
            Exit::Failed,
            format!("not whole: {broken} of the audit's chains"),
        ));
    }
    if !reply.missing.is_empty() {
        let nodes: Vec<&str> = reply.missing.iter().map(|node| node.node.as_str()).collect();
        return Err(Failure::new(
            Exit::Unavailable,
            format!("not verified: {}", nodes.join(", ")),
        ));
    }
    Ok(())
}

/// What `skep audit verify -o json` wrote.
fn read(path: &Path) -> Result<Vec<v1::AuditBook>, Failure> {
    let bad = |why: String| Failure::new(Exit::Usage, format!("{}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?.len();
    if size > HEADS_BYTES_MAX {
        return Err(bad(format!("it has more than {HEADS_BYTES_MAX} bytes")));
    }
    let text = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let books = value["books"].as_array();
    let books = books.ok_or_else(|| bad("it is not what `skep audit verify -o json` wrote".to_owned()))?;
    let read = books.iter().map(|book| {
        Some(v1::AuditBook {
            node: book["node"].as_str()?.to_owned(),
            book: book["book"].as_str()?.to_owned(),
            last_seq: book["last_seq"].as_u64()?,
            head: book["head"].as_str()?.to_owned(),
            ..v1::AuditBook::default()
        })
    });
    read.collect::<Option<Vec<_>>>()
        .ok_or_else(|| bad("a book has no node, name, number or hash".to_owned()))
}
