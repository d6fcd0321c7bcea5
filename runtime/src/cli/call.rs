//! `request` and `submit`, through the client SDK.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use skep_client::{Error, Hop, Kind, Message};
use skep_model::env::{Entropy as _, OsEntropy};
use skep_model::limits::PAYLOAD_BYTES_MAX;
use skep_proto::v1;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;
use tonic::Code;

use super::args;
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::modules::unreadable;
use super::output::{Paint, Printer, hex, payload_json};
use super::progress::Progress;

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
    let response = request.await.map_err(|e| failed(e, &args.subject))?;
    if out.json() {
        let mut document = json!({ "response": payload_json(&response.payload), "trace_id": response.trace_id });
        if args.trace {
            document["hops"] = response.hops.iter().map(hop).collect();
        }
        return out.document(&document);
    }
    out.bytes(&response.payload)?;
    if std::io::stdout().is_terminal() && !response.payload.ends_with(b"\n") {
        out.line("")?;
    }
    if args.trace {
        show_hops(&response.hops, response.trace_id.as_deref(), out);
    }
    Ok(())
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

/// A failed call. `subject` is for the remedy.
fn failed(error: Error, subject: &str) -> Failure {
    let code = match error.kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict => Code::AlreadyExists,
        Kind::Overloaded => Code::ResourceExhausted,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Unavailable => Code::Unavailable,
        Kind::Failed => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    let outcome = match error.outcome {
        skep_client::Outcome::Done => v1::Outcome::Done,
        skep_client::Outcome::NotDone => v1::Outcome::NotDone,
        skep_client::Outcome::Unknown => v1::Outcome::Unknown,
    };
    let mut failure = Failure::of_call(code, outcome, &error.message);
    if !error.reason.is_empty() && !error.message.contains(&error.reason) {
        failure.message = format!("{} ({})", error.message, error.reason);
    }
    match (error.dead_letter, error.retry_after, error.kind) {
        (Some(id), ..) => failure.remedy(format!("the message is kept: `skep dlq SWARM show {id}`")),
        (None, Some(after), _) => failure.remedy(format!("try again in {} ms", after.as_millis())),
        (None, None, Kind::NotFound) => failure.remedy(format!("look for the subject `{subject}` in `skep swarms`")),
        (None, None, Kind::Invalid) => Failure {
            remedy: None,
            ..failure
        },
        _ => failure,
    }
}

fn traceparent() -> String {
    let [trace, span] = [OsEntropy.bits128(), OsEntropy.bits128()];
    format!("00-{}-{}-01", hex(&trace), hex(&span[..8]))
}

fn payload(text: Option<String>, file: Option<&Path>) -> Outcome<Vec<u8>> {
    let mut payload = Vec::new();
    // One more than fits, to see that it does not.
    let bound = PAYLOAD_BYTES_MAX as u64 + 1;
    match (text, file) {
        (Some(text), _) if text == "-" => {
            std::io::stdin().lock().take(bound).read_to_end(&mut payload)?;
        }
        (Some(text), _) => payload = text.into_bytes(),
        (None, Some(file)) => {
            let read = std::fs::File::open(file).and_then(|f| f.take(bound).read_to_end(&mut payload));
            read.map_err(|e| unreadable(file, &e))?;
        }
        (None, None) => {}
    }
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(too_large("the payload"));
    }
    Ok(payload)
}

fn too_large(what: &str) -> Failure {
    Failure::new(Exit::Refused, format!("{what} has more than {PAYLOAD_BYTES_MAX} bytes"))
        .remedy("split it, or keep it in object storage and send its name")
}

/// Messages read ahead of the window of the stream.
const MESSAGES_AHEAD: usize = 64;
/// Input that pauses for so long is sent as it is, so that `tail -f … | skep submit … -` is live.
const PAUSE: Duration = Duration::from_millis(100);

pub async fn submit(args: args::Submit, node: &str, out: Printer) -> Outcome {
    let source = match (&args.file, args.payloads.as_slice()) {
        (Some(file), _) if file.as_os_str() == "-" => Source::lines(tokio::io::stdin()),
        (Some(file), _) => Source::lines(tokio::fs::File::open(file).await.map_err(|e| unreadable(file, &e))?),
        (None, [one]) if one == "-" => Source::lines(tokio::io::stdin()),
        (None, _) => Source::Given(args.payloads.clone().into_iter()),
    };
    let template = Template {
        headers: args.headers,
        key: args.key,
        key_json: args.key_json,
    };
    let gateway = connect::gateway(node).await?;
    let (sender, messages) = mpsc::channel(MESSAGES_AHEAD);
    let reader = tokio::spawn(read_messages(source, template, sender));
    let progress = if out.json() {
        Progress::silent()
    } else {
        Progress::stderr()
    };
    let step = progress.step(format!("submit to {}", args.subject));
    let mut durable = 0;
    let ended = tokio::select! {
        ended = send_all(&gateway, &args.subject, messages, &mut durable, &step) => ended,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Failed, "interrupted")),
    };
    reader.abort();
    // A reader that did not come to its end was stopped by what ended the stream, which says more.
    let ended = ended.and(reader.await.unwrap_or(Ok(())));
    if out.json() {
        out.item(&json!({ "durable": durable }))?;
    }
    match ended {
        Ok(()) => {
            step.done(&format!("{durable} messages are durable"));
            Ok(())
        }
        Err(failure) => {
            drop(step);
            let message = format!("{}\n  {durable} messages are durable", failure.message);
            let failure = Failure { message, ..failure };
            if durable == 0 {
                return Err(failure);
            }
            // "A retry is safe" would be about the last frame only; the file as a whole must not be sent again.
            Err(failure.remedy(format!(
                "submit the rest, e.g. `tail -n +{} FILE`; if the connection broke, some messages after those may have been taken too",
                durable + 1
            )))
        }
    }
}

/// Sends under one session until the messages end; `durable` counts also when it fails.
async fn send_all(
    gateway: &skep_client::Gateway,
    subject: &str,
    mut messages: mpsc::Receiver<Message>,
    durable: &mut u64,
    step: &super::progress::Step,
) -> Outcome {
    let mut stream = gateway.submit_stream(subject);
    let mut waiting = false;
    loop {
        let next = if waiting {
            tokio::time::timeout(PAUSE, messages.recv()).await
        } else {
            Ok(messages.recv().await)
        };
        match next {
            Ok(Some(message)) => {
                waiting = true;
                stream.send(message).await.map_err(|e| failed(e, subject))?;
                *durable = stream.durable();
                step.note(&format!("{durable} durable"));
            }
            ended => {
                *durable = stream.flush().await.map_err(|e| failed(e, subject))?;
                step.note(&format!("{durable} durable"));
                if matches!(ended, Ok(None)) {
                    return Ok(());
                }
                waiting = false;
            }
        }
    }
}

enum Source {
    Lines(Box<dyn AsyncBufRead + Send + Unpin>),
    Given(std::vec::IntoIter<String>),
}

impl Source {
    fn lines(from: impl tokio::io::AsyncRead + Send + Unpin + 'static) -> Self {
        Self::Lines(Box::new(BufReader::with_capacity(256 << 10, from)))
    }

    /// The next message, `None` at the end.
    async fn next(&mut self, number: u64) -> Outcome<Option<Vec<u8>>> {
        let reader = match self {
            Self::Given(payloads) => {
                let Some(payload) = payloads.next() else {
                    return Ok(None);
                };
                if payload.len() > PAYLOAD_BYTES_MAX {
                    return Err(too_large(&format!("message {number}")));
                }
                return Ok(Some(payload.into_bytes()));
            }
            Self::Lines(reader) => reader,
        };
        let mut line = Vec::new();
        // With `\r\n`, and one more to see that it does not fit.
        let read = reader
            .take(PAYLOAD_BYTES_MAX as u64 + 3)
            .read_until(b'\n', &mut line)
            .await?;
        if read == 0 {
            return Ok(None);
        }
        if line.ends_with(b"\n") {
            line.pop();
            if line.ends_with(b"\r") {
                line.pop();
            }
        }
        if line.len() > PAYLOAD_BYTES_MAX {
            return Err(too_large(&format!("line {number}")));
        }
        Ok(Some(line))
    }
}

/// What every message of a submit has.
struct Template {
    headers: Vec<(String, String)>,
    key: Option<String>,
    key_json: Option<String>,
}

impl Template {
    fn message(&self, payload: Vec<u8>, number: u64) -> Outcome<Message> {
        let key = match &self.key_json {
            None => self.key.clone(),
            Some(pointer) => Some(key_at(&payload, pointer).ok_or_else(|| {
                Failure::new(
                    Exit::Refused,
                    format!("message {number} has no text, number or boolean at `{pointer}`"),
                )
                .remedy("mend it, or leave --key-json out")
            })?),
        };
        let mut message = Message::new(payload);
        for (name, value) in &self.headers {
            message = message.header(name, value);
        }
        Ok(match key {
            Some(key) => message.key(key),
            None => message,
        })
    }
}

fn key_at(payload: &[u8], pointer: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(payload).ok()?;
    match document.pointer(pointer)? {
        serde_json::Value::String(text) => Some(text.clone()),
        value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => Some(value.to_string()),
        _ => None,
    }
}

/// Reads until the source ends, a message is bad, or nobody takes them any more.
async fn read_messages(mut source: Source, template: Template, messages: mpsc::Sender<Message>) -> Outcome {
    let mut number = 1;
    while let Some(payload) = source.next(number).await? {
        if messages.send(template.message(payload, number)?).await.is_err() {
            break;
        }
        number += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn messages_of(text: &'static str, template: Template) -> (Outcome, Vec<Message>) {
        let (tx, mut rx) = mpsc::channel(1_000);
        let result = read_messages(Source::lines(text.as_bytes()), template, tx).await;
        let mut messages = Vec::new();
        while let Some(message) = rx.recv().await {
            messages.push(message);
        }
        (result, messages)
    }

    fn plain() -> Template {
        Template {
            headers: Vec::new(),
            key: None,
            key_json: None,
        }
    }

    #[tokio::test]
    async fn a_line_is_a_message() {
        let (read, messages) = messages_of("a\r\nb\n\nd", plain()).await;
        read.unwrap();
        assert_eq!(messages, ["a", "b", "", "d"].map(Message::new));
    }

    #[tokio::test]
    async fn a_bad_line_stops_with_its_number_after_what_was_good() {
        let template = Template {
            key_json: Some("/k".into()),
            ..plain()
        };
        let (read, messages) = messages_of("{\"k\": 1}\n{}\n", template).await;
        let failure = read.unwrap_err();
        assert!(failure.message.contains("message 2"), "{failure}");
        assert_eq!(messages, [Message::new("{\"k\": 1}").key("1")]);
        let long: &'static str = "x".repeat(PAYLOAD_BYTES_MAX + 10).leak();
        let (read, _) = messages_of(long, plain()).await;
        assert!(read.unwrap_err().message.contains("line 1 has more than 262144 bytes"));
    }

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
        let failure = failed(error, "s");
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(
            failure.to_string(),
            "error: stage `a` gave up (trap)\n  remedy: the message is kept: `skep dlq SWARM show 7`"
        );
    }
}
