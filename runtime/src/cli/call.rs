//! `request`, through the client SDK; and how a failed call is told.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use skep_client::{Error, Hop, Kind};
use skep_model::env::{Entropy as _, OsEntropy};
use skep_model::limits::PAYLOAD_BYTES_MAX;
use skep_proto::v1;
use tonic::Code;

use super::args;
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::files;
use super::output::{Paint, Printer, hex, payload_json, payload_text};
use crate::wording::meant;

pub async fn request(args: args::Request, node: &str, out: Printer) -> Outcome {
    let payload = payload(args.payload, args.file.as_deref())?;
    let gateway = connect::gateway(node).await?;
    let mut request = gateway
        .request(&args.subject, payload)
        .headers(args.headers)
        .timeout(args.timeout);
    if let Some(key) = args.key {
        request = request.key(key);
    }
    if let Some(key) = args.idempotency_key {
        request = request.idempotency_key(key);
    }
    if args.trace {
        // A trace of our own, sampled, makes the node tell the hops.
        request = request.traceparent(traceparent());
    }
    if args.stream {
        return stream(request, &args.subject, args.raw, node, out).await;
    }
    let response = match request.await {
        Ok(response) => response,
        Err(e) => return Err(explained(e, &args.subject, node).await),
    };
    if out.json() {
        let mut document = json!({ "response": payload_json(&response.payload), "trace_id": response.trace_id });
        if args.trace {
            document["hops"] = response.hops.iter().map(hop).collect();
        }
        return out.document(&document);
    }
    if args.raw {
        return out.bytes(&response.payload);
    }
    out.bytes(&printed(&response.payload, std::io::stdout().is_terminal()))?;
    if args.trace {
        show_hops(&response.hops, response.trace_id.as_deref(), out);
    }
    Ok(())
}

/// Parts as they come. What a program reads are their very bytes, and nothing but them in raw form; for people a line of its own holds the
/// response behind them.
async fn stream(request: skep_client::Request, subject: &str, raw: bool, node: &str, out: Printer) -> Outcome {
    let mut parts = match request.stream().await {
        Ok(parts) => parts,
        Err(e) => return Err(explained(e, subject, node).await),
    };
    let terminal = !raw && std::io::stdout().is_terminal();
    let (mut count, mut open_line) = (0u64, false);
    loop {
        match parts.next().await {
            Ok(Some(part)) if out.json() => out.item(&json!({ "part": payload_json(&part) }))?,
            Ok(Some(part)) => {
                open_line = part.last().map_or(open_line, |last| *last != b'\n');
                if terminal {
                    out.bytes(payload_text(&part).as_bytes())?;
                } else {
                    out.bytes(&part)?;
                }
            }
            Ok(None) => break,
            Err(e) => {
                if open_line && terminal {
                    out.bytes(b"\n")?;
                }
                return Err(explained(e, subject, node).await);
            }
        }
        count += 1;
    }
    let response = parts.response();
    if out.json() {
        let response = response.map(|response| payload_json(&response.payload));
        return out.item(&json!({ "end": { "parts": count, "response": response } }));
    }
    if raw {
        return response.map_or(Ok(()), |response| out.bytes(&response.payload));
    }
    if open_line {
        out.bytes(b"\n")?;
    }
    response.map_or(Ok(()), |response| out.bytes(&printed(&response.payload, terminal)))
}

/// A response as it is printed unless its very bytes are asked for: text ends in a newline, and a terminal gets nothing that it
/// would obey. Other bytes stay as they are, for they go to a file or a program.
fn printed(payload: &[u8], terminal: bool) -> Vec<u8> {
    let text = std::str::from_utf8(payload).is_ok();
    let mut shown = if terminal {
        payload_text(payload).into_bytes()
    } else {
        payload.to_vec()
    };
    if (text || terminal) && !shown.ends_with(b"\n") {
        shown.push(b'\n');
    }
    shown
}

fn hop(hop: &Hop) -> serde_json::Value {
    json!({ "stage": hop.stage, "started_us": us(hop.started), "took_us": us(hop.took), "batch": hop.batch })
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// On stderr, so that stdout holds the response alone.
fn show_hops(hops: &[Hop], trace: Option<&str>, out: Printer) {
    for hop in hops {
        let line = format!(
            "  {} after {} us, took {} us, batch of {}",
            hop.stage,
            us(hop.started),
            us(hop.took),
            hop.batch
        );
        eprintln!("{}", out.paint(Paint::Dim, &line));
    }
    if let Some(trace) = trace {
        eprintln!("{}", out.paint(Paint::Dim, &format!("  trace {trace}")));
    }
}

/// How long a failed call's subject is looked up among those that there are.
const LOOK_UP: Duration = Duration::from_secs(1);

/// A failed call, and the subject that was probably meant.
pub async fn explained(error: Error, subject: &str, node: &str) -> Failure {
    let unknown = error.reason == "unknown-subject";
    let failure = failed(error, node);
    if !unknown {
        return failure;
    }
    let known = async {
        let swarms = connect::beekeeper(node)
            .await?
            .list_swarms(v1::ListSwarmsRequest {})
            .await?;
        let swarms = swarms.into_inner().swarms;
        Ok::<Vec<String>, Failure>(swarms.into_iter().flat_map(|s| s.subjects).collect())
    };
    let known = tokio::time::timeout(LOOK_UP, known).await;
    let known = known.ok().and_then(Result::ok).unwrap_or_default();
    match meant(subject, known.iter().map(String::as_str)) {
        Some(name) => failure.remedy(format!("did you mean `{name}`?")),
        None => failure.remedy("`skep swarms` lists the subjects"),
    }
}

fn failed(error: Error, node: &str) -> Failure {
    let code = match error.kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict => Code::AlreadyExists,
        Kind::Overloaded => Code::ResourceExhausted,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        // For programs it may come back, if the deletion is withdrawn; who types a command should look.
        Kind::Unavailable if error.reason == "deleting" => Code::FailedPrecondition,
        Kind::Unavailable => Code::Unavailable,
        Kind::Failed | Kind::Rejected => Code::FailedPrecondition,
        Kind::Denied if error.reason == "forbidden" => Code::PermissionDenied,
        Kind::Denied => Code::Unauthenticated,
        _ => Code::Internal,
    };
    let outcome = match error.outcome {
        skep_client::Outcome::Done => v1::Outcome::Done,
        skep_client::Outcome::NotDone => v1::Outcome::NotDone,
        skep_client::Outcome::Unknown => v1::Outcome::Unknown,
    };
    // Without a reason it is no answer of the node's: the connection's own words are about frames and sockets.
    if error.kind == Kind::Unavailable && error.reason.is_empty() {
        return match error.outcome {
            skep_client::Outcome::NotDone => Failure {
                outcome,
                ..connect::absent(node, None)
            },
            _ => Failure::of_call(
                code,
                outcome,
                &format!("the connection to {node} broke before the answer came"),
            ),
        };
    }
    let mut failure = Failure::of_call(code, outcome, &error.message);
    failure.dead_letter = error.dead_letter;
    failure.retry_after_ms = error
        .retry_after
        .map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
    if !error.reason.is_empty() && !error.message.contains(&error.reason) {
        failure.message = format!("{} ({})", error.message, error.reason);
    }
    match (error.dead_letter, failure.retry_after_ms, error.kind) {
        (Some(id), ..) => failure.remedy(format!("the message is kept: `skep dlq SWARM show {id}`")),
        (None, Some(ms), _) => failure.remedy(format!("try again in {ms} ms")),
        (None, None, Kind::Invalid) => Failure {
            remedy: None,
            ..failure
        },
        (None, None, _) if error.reason == "deleting" => {
            failure.remedy("`skep swarms` shows whether it is gone or serves again")
        }
        _ => failure,
    }
}

fn traceparent() -> String {
    let [trace, span] = [OsEntropy.bits128(), OsEntropy.bits128()];
    format!("00-{}-{}-01", hex(&trace), hex(&span[..8]))
}

fn payload(text: Option<String>, file: Option<&Path>) -> Outcome<Vec<u8>> {
    let payload = match (text, file) {
        (Some(text), _) if text == "-" => files::read(Path::new("-"), PAYLOAD_BYTES_MAX)?,
        (Some(text), _) => text.into_bytes(),
        (None, Some(file)) => files::read(file, PAYLOAD_BYTES_MAX)?,
        (None, None) => Vec::new(),
    };
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(too_large("the payload"));
    }
    Ok(payload)
}

pub fn too_large(what: &str) -> Failure {
    Failure::new(Exit::Refused, format!("{what} has more than {PAYLOAD_BYTES_MAX} bytes"))
        .remedy("split it, or keep it in object storage and send its name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_dead_letter() {
        let mut status = tonic::Status::failed_precondition("stage `a` gave up");
        for (name, value) in [
            ("skep-outcome", "done"),
            ("skep-reason", "trap"),
            ("skep-dead-letter", "7"),
        ] {
            status.metadata_mut().insert(name, value.parse().unwrap());
        }
        let error = Error::from(status);
        let failure = failed(error, "http://n:1");
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(
            failure.to_string(),
            "error: stage `a` gave up (trap)\n  remedy: the message is kept: `skep dlq SWARM show 7`"
        );
    }

    #[test]
    fn text_ends_in_a_newline_and_bytes_stay_as_they_are() {
        for (payload, terminal, shown) in [
            (b"hi".as_slice(), false, b"hi\n".as_slice()),
            (b"hi\n", false, b"hi\n"),
            (b"", false, b"\n"),
            (&[0xff, 0], false, &[0xff, 0]),
            (b"hi", true, b"hi\n"),
            (b"\x1b[2J", true, b"\\u{1b}[2J\n"),
            (&[0xff, 0], true, b"(2 bytes) ff00\n"),
        ] {
            assert_eq!(printed(payload, terminal), shown, "{payload:?} {terminal}");
        }
    }

    #[test]
    fn a_swarm_that_goes_is_a_conflict_and_an_absent_node_is_named() {
        let mut status = tonic::Status::unavailable("Swarm `s` takes no more input: it is being deleted");
        for (name, value) in [("skep-outcome", "not-done"), ("skep-reason", "deleting")] {
            status.metadata_mut().insert(name, value.parse().unwrap());
        }
        assert_eq!(failed(Error::from(status), "http://n:1").exit, Exit::Conflict);
        let broken = failed(Error::from(tonic::Status::unknown("h2 protocol error")), "http://n:1");
        assert_eq!(broken.exit, Exit::Unknown);
        assert_eq!(
            broken.message,
            "the connection to http://n:1 broke before the answer came"
        );
    }
}
