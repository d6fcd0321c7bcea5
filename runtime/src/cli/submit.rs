//! `submit`: a line a message, through the client SDK's stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use skep_client::{Kind, Message};
use skep_model::limits::PAYLOAD_BYTES_MAX;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;

use super::args;
use super::call::{explained, too_large};
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::files;
use super::output::Printer;
use super::progress::Progress;
use crate::wording::count;

/// Messages read ahead of the window of the stream.
const MESSAGES_AHEAD: usize = 64;
/// Input that pauses for so long is sent as it is, so that `tail -f … | skep submit … -` is live.
const PAUSE: Duration = Duration::from_millis(100);

pub async fn submit(args: args::Submit, node: &str, out: Printer) -> Outcome {
    let source = match (&args.file, args.payloads.as_slice()) {
        (Some(file), _) if files::is_stdin(file) => Source::lines(tokio::io::stdin()),
        (Some(file), _) => Source::lines(tokio::fs::File::from_std(files::open(file)?)),
        (None, [one]) if one == "-" => Source::lines(tokio::io::stdin()),
        (None, _) => Source::Given(args.payloads.clone().into_iter()),
    };
    let template = Template {
        headers: args.headers,
        key: args.key,
        key_json: args.key_json,
        skip_empty: args.skip_empty,
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
    let voice = step.voice();
    let told_at = AtomicU64::new(u64::MAX);
    let reached = Arc::new(AtomicU64::new(0));
    let (patience, seen) = (args.retry_for, Arc::clone(&reached));
    let mut stream = gateway
        .submit_stream(&args.subject)
        .resume_for(patience)
        .retry_if(move |error| {
            // It may serve again, but who typed this should look.
            if error.reason == "deleting" {
                return false;
            }
            // Once for each time that it gets stuck. A full inbox is no news: it is how a slow Swarm sets the pace.
            let durable = seen.load(Ordering::Relaxed);
            let away = error.kind == Kind::Unavailable;
            if away && told_at.swap(durable, Ordering::Relaxed) != durable {
                let why = if error.reason.is_empty() {
                    "the connection broke"
                } else {
                    &error.message
                };
                voice.say(&format!(
                    "{why}: trying again for up to {} ({} durable)",
                    shown_duration(patience),
                    count(durable, "message")
                ));
            }
            true
        });
    let mut durable = 0;
    let ended = tokio::select! {
        ended = send_all(&mut stream, messages, &mut durable, &reached, &step) => ended.map_err(Stopped::Call),
        _ = tokio::signal::ctrl_c() => Err(Stopped::Interrupted),
    };
    drop(stream);
    let ended = match ended {
        Ok(()) => Ok(()),
        Err(Stopped::Interrupted) => Err(Failure::new(Exit::Failed, "interrupted")),
        Err(Stopped::Call(e)) => Err(explained(e, &args.subject, node).await),
    };
    reader.abort();
    // A reader that did not come to its end was stopped by what ended the stream, which says more.
    let ended = ended.and(reader.await.unwrap_or(Ok(())));
    if out.json() {
        out.item(&json!({ "durable": durable }))?;
    }
    match ended {
        Ok(()) => {
            step.done(&is_durable(durable));
            Ok(())
        }
        Err(failure) => {
            drop(step);
            let message = format!("{}\n  {}", failure.message, is_durable(durable));
            let failure = Failure { message, ..failure };
            if durable == 0 {
                return Err(match failure.exit {
                    Exit::Unknown => {
                        failure.remedy("some may have been taken: look at the effects before you send them again")
                    }
                    _ => failure,
                });
            }
            // "A retry is safe" would be about the last frame only; the file as a whole must not be sent again.
            Err(failure.remedy(format!(
                "submit the rest, e.g. `tail -n +{} FILE`; if the connection broke, some messages after those may have been taken too",
                durable + 1
            )))
        }
    }
}

enum Stopped {
    Interrupted,
    Call(skep_client::Error),
}

fn is_durable(durable: u64) -> String {
    let are = if durable == 1 { "is" } else { "are" };
    format!("{} {are} durable", count(durable, "message"))
}

fn shown_duration(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else {
        format!("{} ms", time.as_millis())
    }
}

/// Sends under one session until the messages end; `durable` counts also when it fails.
async fn send_all(
    stream: &mut skep_client::SubmitStream,
    mut messages: mpsc::Receiver<Message>,
    durable: &mut u64,
    reached: &AtomicU64,
    step: &super::progress::Step,
) -> Result<(), skep_client::Error> {
    let mut waiting = false;
    loop {
        let next = if waiting {
            tokio::time::timeout(PAUSE, messages.recv()).await
        } else {
            Ok(messages.recv().await)
        };
        let sent = match &next {
            Ok(Some(message)) => stream.send(message.clone()).await.map(|_| ()),
            _ => stream.flush().await.map(|_| ()),
        };
        *durable = stream.durable();
        reached.store(*durable, Ordering::Relaxed);
        step.note(&format!("{durable} durable"));
        sent?;
        match next {
            Ok(Some(_)) => waiting = true,
            Ok(None) => return Ok(()),
            Err(_) => waiting = false,
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
    skip_empty: bool,
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
        if payload.is_empty() && template.skip_empty {
            number += 1;
            continue;
        }
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
            skip_empty: false,
        }
    }

    #[tokio::test]
    async fn a_line_is_a_message() {
        let (read, messages) = messages_of("a\r\nb\n\nd", plain()).await;
        read.unwrap();
        assert_eq!(messages, ["a", "b", "", "d"].map(Message::new));
        let template = Template {
            skip_empty: true,
            ..plain()
        };
        let (read, messages) = messages_of("a\r\n\r\n\nb\n", template).await;
        read.unwrap();
        assert_eq!(messages, ["a", "b"].map(Message::new));
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
}
