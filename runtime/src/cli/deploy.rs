//! `deploy`: a dataflow in Python becomes a Swarm of a node.
//!
//! The SDK makes a component and a manifest of it; both go the way of every module and Swarm. What is left is to start its sources, which
//! can be done any number of times: each partition's state says whether it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_client::{Kind, Message};
use skep_model::limits::PARTITIONS_DEFAULT_EMBEDDED;
use skep_proto::v1;
use tonic::Code;

use super::args;
use super::call::explained;
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::modules;
use super::output::Printer;
use super::progress::Progress;
use super::python;
use super::swarms;
use crate::wording::count;

/// Partitions that one submit starts.
const STARTS_AT_ONCE: usize = 1_000;
/// How long a node may take to serve the subjects of what was just applied.
const SUBJECT_WAIT: Duration = Duration::from_secs(10);
const SUBJECT_PAUSE: Duration = Duration::from_millis(100);

pub async fn run(args: args::Deploy, node: &str, out: Printer) -> Outcome {
    let progress = if out.json() {
        Progress::silent()
    } else {
        Progress::stderr()
    };
    let room = tempfile::tempdir().map_err(|e| Failure::new(Exit::Failed, format!("cannot make a folder: {e}")))?;
    let flow = python::flow(&args.flow, room.path(), args.bytewax, &progress).await?;
    for warning in &flow.warnings {
        eprintln!("warning: {warning}");
    }
    if args.manifest {
        return out.bytes(flow.manifest.as_bytes());
    }
    let text = with_partitions(&flow.manifest, &running(node, &flow.name).await?);
    let file = room.path().join("swarm.yaml");
    std::fs::write(&file, text)
        .map_err(|e| Failure::new(Exit::Failed, format!("cannot write {}: {e}", file.display())))?;
    let bytes = modules::read(&flow.wasm).await?;
    modules::upload(node, &flow.name, "latest", bytes, &args.signature, progress).await?;
    let apply = args::Apply {
        file,
        dry_run: false,
        yes: args.yes,
        discard_state: args.discard_state,
        rescale: false,
        grant: Vec::new(),
    };
    swarms::apply(apply, node, out).await?;
    start(node, &flow.starts, &progress).await?;
    if !out.json() {
        progress.say(&format!("logs:  skep logs {} -f", flow.name));
    }
    Ok(())
}

/// The partitions of each stage of the Swarm that a deploy would change, if there is one. Its manifest does not know what `skep scale` changed.
async fn running(node: &str, name: &str) -> Outcome<BTreeMap<String, u64>> {
    let request = v1::DescribeSwarmRequest {
        name: name.to_owned(),
        count_keys: false,
    };
    match connect::beekeeper(node).await?.describe_swarm(request).await {
        Ok(reply) => Ok(partitions(reply.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(BTreeMap::new()),
        Err(status) => Err(status.into()),
    }
}

fn partitions(reply: v1::DescribeSwarmReply) -> BTreeMap<String, u64> {
    reply.stages.into_iter().map(|s| (s.name, s.partitions)).collect()
}

/// The manifest with the partitions that `skep scale` gave to stages: a deploy is about what they do. Its lines are those that the SDK writes.
fn with_partitions(text: &str, running: &BTreeMap<String, u64>) -> String {
    let mut made = String::with_capacity(text.len());
    for line in text.lines() {
        made.push_str(line);
        made.push('\n');
        let stage = line.strip_prefix("  - name: ").and_then(|name| running.get(name));
        if let Some(partitions) = stage.filter(|n| **n != u64::from(PARTITIONS_DEFAULT_EMBEDDED)) {
            made.push_str(&format!("    partitions: {partitions}\n"));
        }
    }
    made
}

/// Tells each partition of each source to begin; to one that runs, or has ended, it says nothing new.
async fn start(node: &str, starts: &[(String, String)], progress: &Progress) -> Outcome {
    if starts.is_empty() {
        return Ok(());
    }
    let step = progress.step(format!("start {}", count(starts.len() as u64, "partition")));
    let gateway = connect::gateway(node).await?;
    let mut by_subject: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (subject, key) in starts {
        by_subject.entry(subject).or_default().push(key);
    }
    let until = tokio::time::Instant::now() + SUBJECT_WAIT;
    for (subject, keys) in by_subject {
        for some in keys.chunks(STARTS_AT_ONCE) {
            loop {
                let messages = some.iter().map(|key| Message::new("start").key(*key));
                match gateway.submit(subject, messages).await {
                    Ok(_) => break,
                    Err(e) if e.kind == Kind::NotFound && tokio::time::Instant::now() < until => {
                        tokio::time::sleep(SUBJECT_PAUSE).await;
                    }
                    Err(e) => {
                        let failure = explained(e, subject, node).await;
                        let message = format!(
                            "the Swarm is applied, but its sources were not started: {}",
                            failure.message
                        );
                        return Err(
                            Failure { message, ..failure }.remedy("deploy again: what runs already goes on as it is")
                        );
                    }
                }
            }
        }
    }
    step.done("");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_scaled_stays_so() {
        let text = "name: f\nbees:\n  - name: in\n    module: f\n    input: [{ gateway: f-in }]\n    key: message\n    state: true\n\
                    \x20 - name: count\n    module: f\n    input: [{ bee: in, output: count }]\n    key: message\n    state: true\n";
        let of = |name: &str, n: u64| BTreeMap::from([(name.to_owned(), n)]);
        let default = u64::from(PARTITIONS_DEFAULT_EMBEDDED);
        for none in [BTreeMap::new(), of("count", default), of("gone", 16)] {
            assert_eq!(with_partitions(text, &none), text);
        }
        let swarm = skep_model::manifest::parse_local(&with_partitions(text, &of("count", 16))).unwrap();
        let found: Vec<u16> = swarm.stages.iter().map(|stage| stage.partitions).collect();
        assert_eq!(found, [PARTITIONS_DEFAULT_EMBEDDED, 16]);
    }
}
