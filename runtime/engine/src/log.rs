//! What a Bee says: `wasi:logging`, stdout and stderr, in the order said, bounded, safe to print.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::secret::Granted;
use bytes::Bytes;
use skep_model::limits;
use skep_model::step::{LogLevel, LogLine};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// Bytes of a logging context kept.
pub(crate) const CONTEXT_BYTES_MAX: usize = 256;
/// What a write may bring at once. wasmtime-wasi allocates this much on a guest's word.
const PERMIT_BYTES: usize = 64 << 10;

/// Shared by the host calls and the two standard streams of one instance.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    lines: Vec<LogLine>,
    bytes: usize,
    dropped_lines: u64,
    dropped_bytes: u64,
    /// Unfinished lines.
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// The end of all that went to stderr, raw, and whether there was more.
    tail: Vec<u8>,
    tail_cut: bool,
    input: Option<u32>,
    /// What may be in no line.
    secrets: Arc<Granted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// What one call left.
pub(crate) struct Said {
    pub(crate) lines: Vec<LogLine>,
    /// The end of stderr, escaped except for its line ends.
    pub(crate) stderr: String,
}

impl Log {
    fn book(&self) -> MutexGuard<'_, Book> {
        // A book is sound at every step, whoever panicked beside it.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn set_input(&self, input: Option<u32>) {
        self.book().input = input;
    }

    /// Until the end of the call.
    pub(crate) fn set_secrets(&self, secrets: Arc<Granted>) {
        self.book().secrets = secrets;
    }

    pub(crate) fn line(&self, level: LogLevel, context: &str, text: &str) {
        self.book().push(level, context, text.as_bytes());
    }

    fn write(&self, stream: Stream, bytes: &[u8]) {
        self.book().write(stream, bytes);
    }

    /// Ends the call: unfinished lines are finished, drops are told, and the book is blank for the next call.
    pub(crate) fn take(&self) -> Said {
        let mut book = std::mem::take(&mut *self.book());
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(book.pending(stream));
            if !rest.is_empty() {
                book.finish(stream, &rest);
            }
        }
        if book.dropped_lines > 0 {
            let text = format!(
                "{} more log lines ({} bytes) of this call were dropped: a call may log {} lines and {} bytes",
                book.dropped_lines,
                book.dropped_bytes,
                limits::LOG_LINES_PER_CALL_MAX,
                limits::LOG_BYTES_PER_CALL_MAX
            );
            book.lines.push(LogLine {
                level: LogLevel::Warn,
                context: "skep".into(),
                text,
                input: None,
            });
        }
        let mut stderr = String::new();
        let mut tail = String::from_utf8_lossy(&book.tail).into_owned();
        if book.secrets.redacts() {
            // The first line may begin in the middle of a value.
            if book.tail_cut {
                tail.drain(..tail.find('\n').map_or(tail.len(), |end| end + 1));
            }
            book.secrets.redact(&mut tail);
        }
        for (i, line) in tail.split('\n').enumerate() {
            if i > 0 {
                stderr.push('\n');
            }
            escape(line, usize::MAX, &mut stderr);
        }
        Said {
            lines: book.lines,
            stderr,
        }
    }
}

impl Book {
    fn pending(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stderr {
            let keep = &bytes[bytes.len().saturating_sub(limits::STDERR_BYTES_MAX)..];
            let excess = (self.tail.len() + keep.len()).saturating_sub(limits::STDERR_BYTES_MAX);
            self.tail_cut |= excess > 0 || keep.len() < bytes.len();
            self.tail.drain(..excess.min(self.tail.len()));
            self.tail.extend_from_slice(keep);
        }
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = &after[1..];
            let mut whole = std::mem::take(self.pending(stream));
            if whole.is_empty() {
                self.finish(stream, line);
            } else {
                whole.extend_from_slice(&line[..line.len().min(limits::LOG_LINE_BYTES_MAX + self.beyond())]);
                self.finish(stream, &whole);
            }
        }
        // A byte more than a line may have, so that the cut is seen and marked.
        let most = limits::LOG_LINE_BYTES_MAX + self.beyond() + 1;
        let pending = self.pending(stream);
        let room = most.saturating_sub(pending.len());
        pending.extend_from_slice(&rest[..rest.len().min(room)]);
    }

    /// What is read of a line beyond what is kept: a value that the cut falls into has to be seen whole.
    fn beyond(&self) -> usize {
        if self.secrets.redacts() {
            limits::SECRET_BYTES_MAX
        } else {
            0
        }
    }

    fn finish(&mut self, stream: Stream, line: &[u8]) {
        match stream {
            Stream::Stdout => self.push(LogLevel::Info, "stdout", line),
            Stream::Stderr => self.push(LogLevel::Warn, "stderr", line),
        }
    }

    fn push(&mut self, level: LogLevel, context: &str, text: &[u8]) {
        if self.lines.len() >= limits::LOG_LINES_PER_CALL_MAX || self.bytes >= limits::LOG_BYTES_PER_CALL_MAX {
            self.dropped_lines += 1;
            self.dropped_bytes += text.len() as u64;
            return;
        }
        let room = limits::LOG_LINE_BYTES_MAX.min(limits::LOG_BYTES_PER_CALL_MAX - self.bytes);
        // No escape makes text shorter, so what lies past the room need not be decoded.
        let head = &text[..text.len().min(room + 4 + self.beyond())];
        let cut = head.len() < text.len() || head.len() > limits::LOG_LINE_BYTES_MAX;
        let mut head = String::from_utf8_lossy(head).into_owned();
        let mut context = context.to_owned();
        if self.secrets.redacts() {
            self.secrets.redact(&mut head);
            // Its end may be the beginning of a value, and so much shorter now that it would be kept.
            if cut {
                let sure = head.len().saturating_sub(self.secrets.longest());
                head.truncate(head.floor_char_boundary(sure));
            }
            self.secrets.redact(&mut context);
        }
        let mut line = LogLine {
            level,
            context: String::new(),
            text: String::new(),
            input: self.input,
        };
        escape(&context, CONTEXT_BYTES_MAX, &mut line.context);
        escape(&head, room, &mut line.text);
        self.bytes += line.text.len() + line.context.len();
        self.lines.push(line);
    }
}

/// Appends `text` with control characters escaped, so that no terminal obeys it; cut at `max` bytes with a mark.
pub(crate) fn escape(text: &str, max: usize, out: &mut String) {
    const MARK: &str = "…";
    let start = out.len();
    // Where a mark still fits.
    let mut last_fit = start;
    for c in text.chars() {
        // Besides the C0 and C1 controls: what turns the reading direction, or ends a line to some readers.
        let plain = !(c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
        if plain {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
        let len = out.len() - start;
        if len > max {
            out.truncate(last_fit);
            if max >= MARK.len() {
                out.push_str(MARK);
            }
            return;
        }
        if len + MARK.len() <= max {
            last_fit = out.len();
        }
    }
}

/// A standard stream of the guest.
pub(crate) struct Standard {
    pub(crate) log: Log,
    pub(crate) stream: Stream,
}

impl IsTerminal for Standard {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Standard {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this form, and it is not linked. What goes there is not seen.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Self {
            log: self.log.clone(),
            stream: self.stream,
        })
    }
}

#[async_trait::async_trait]
impl Pollable for Standard {
    async fn ready(&mut self) {}
}

impl OutputStream for Standard {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > PERMIT_BYTES {
            return Err(StreamError::trap("wrote more to a standard stream than was permitted"));
        }
        self.log.write(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_escaped_cut_and_counted() {
        let log = Log::default();
        log.write(Stream::Stdout, b"one\ntw");
        log.write(Stream::Stderr, b"err");
        log.set_input(Some(3));
        log.write(Stream::Stdout, b"o\x1b[0m\n");
        log.line(LogLevel::Error, "ctx\n", "a\u{202e}b");
        let said = log.take();
        let texts: Vec<_> = said.lines.iter().map(|l| (l.text.as_str(), l.input)).collect();
        assert_eq!(
            texts,
            [
                ("one", None),
                ("two\\u{1b}[0m", Some(3)),
                ("a\\u{202e}b", Some(3)),
                ("err", Some(3))
            ]
        );
        assert_eq!(said.lines[2].context, "ctx\\n");
        assert_eq!(said.stderr, "err");

        log.line(LogLevel::Info, "", &"é".repeat(limits::LOG_LINE_BYTES_MAX));
        log.write(Stream::Stdout, &vec![b'x'; 1 << 20]);
        for _ in 0..2_000 {
            log.line(LogLevel::Info, "", "again");
        }
        let said = log.take();
        assert!(said.lines.iter().all(|l| l.text.len() <= limits::LOG_LINE_BYTES_MAX));
        assert!(said.lines[0].text.ends_with('…'));
        assert!(
            said.lines.len() <= limits::LOG_LINES_PER_CALL_MAX + 2,
            "{}",
            said.lines.len()
        );
        assert!(said.lines.last().unwrap().text.contains("were dropped"));
    }

    #[test]
    fn no_secret_is_in_any_line_nor_in_what_a_cut_leaves() {
        let secret = "s3cr3t-".repeat(8);
        let value = crate::secret::SecretValue::new(secret.clone().into_bytes());
        let granted = Arc::new(Granted::new([("api".to_owned(), Some(value))].into()));
        let log = Log::default();
        log.set_secrets(Arc::clone(&granted));
        // In two writes; across the cut of a line; in a context.
        log.write(Stream::Stdout, format!("key={}", &secret[..9]).as_bytes());
        log.write(Stream::Stdout, format!("{}!\n", &secret[9..]).as_bytes());
        log.write(
            Stream::Stdout,
            format!("{}{secret}\n", "x".repeat(limits::LOG_LINE_BYTES_MAX - 20)).as_bytes(),
        );
        log.line(
            LogLevel::Info,
            &secret,
            &format!("{}{secret}", "y".repeat(limits::LOG_LINE_BYTES_MAX - 20)),
        );
        log.write(Stream::Stdout, secret.repeat(2_000).as_bytes());
        log.write(Stream::Stdout, b"\n");
        log.line(LogLevel::Info, "", &secret.repeat(2_000));
        for _ in 0..limits::STDERR_BYTES_MAX / 10 {
            log.write(Stream::Stderr, format!("{secret}\n").as_bytes());
        }
        let said = log.take();
        assert_eq!(said.lines[0].text, "key=[secret api]!");
        let all = said
            .lines
            .iter()
            .flat_map(|line| [&line.text, &line.context])
            .chain([&said.stderr]);
        for text in all {
            assert!(!text.contains("s3cr3t"), "{text}");
        }
        // What another call says is not looked at for them.
        log.line(LogLevel::Info, "", &secret);
        assert_eq!(log.take().lines[0].text, secret);
    }

    #[test]
    fn stderr_keeps_its_end() {
        let log = Log::default();
        for i in 0..10_000 {
            log.write(Stream::Stderr, format!("line {i}\n").as_bytes());
        }
        let said = log.take();
        assert!(said.stderr.len() <= limits::STDERR_BYTES_MAX);
        assert!(said.stderr.ends_with("line 9999\n"));
    }
}
