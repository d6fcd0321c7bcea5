//! `filter`: a Bee over lines, without a node. The same engine, the same component, the same limits as a stage.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};
use skep_engine::{ArtifactCache, Bee, BeeSettings, Compiler, Engine, Granted, Module, SecretValue, Secrets, Settings};
use skep_model::Bytes;
use skep_model::env::{Clock as _, SystemClock};
use skep_model::id::{Digest, Uid};
use skep_model::limits::{BATCH_MESSAGES_DEFAULT, PAYLOAD_BYTES_MAX, SECRETS_PER_STAGE_MAX};
use skep_model::message::Message;
use skep_model::name::{BeeName, SecretName};
use skep_model::step::{Batch, Disposition, Input, LogLevel, LogLine, Outcome as Done, StateMap, Step};
use skep_model::swarm::Instances;
use tokio::sync::mpsc;

use super::args;
use super::failure::{Exit, Failure, Outcome};
use super::file_models;
use super::modules;
use super::output::{Printer, payload_json};
use super::progress::Progress;
use super::python;
use crate::wording::count;

/// A line of `--messages`: a payload as JSON text or in hex, and what comes with it.
const LINE_BYTES_MAX: usize = 4 * PAYLOAD_BYTES_MAX;

pub async fn run(args: args::Filter, out: Printer) -> Outcome {
    let progress = if out.json() || args.quiet {
        Progress::silent()
    } else {
        Progress::stderr()
    };
    let wasm = component(&args.module, &progress).await?;
    let module = load(wasm, &progress).await?;
    let name = bee_name(&module, args.bee.as_deref())?;
    let mut settings = BeeSettings {
        keyed: true,
        state: true,
        config: args.config.iter().cloned().collect(),
        secrets: given(&args.secret)?,
        models: file_models::given(&args.model).await?,
        instances: Instances::Pooled {
            calls: u32::MAX,
            age_s: u32::MAX,
        },
        ..BeeSettings::plain(module.digest())
    };
    if args.fresh {
        settings.instances = Instances::Fresh;
    }
    if let Some(timeout) = args.timeout {
        settings.cpu_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        settings.wall_ms = settings.cpu_ms;
    }
    let bee = module
        .bee(&name, settings)
        .map_err(|e| Failure::new(Exit::Usage, e.to_string()))?;
    let filter = Filter {
        bee,
        state: StateMap::new(),
        lines: 0,
        failed: 0,
        out: Vec::new(),
        json: out.json(),
        quiet: args.quiet,
    };
    filter.all(&args).await
}

/// What a stage's `secrets:` grants, of files.
fn given(files: &[(SecretName, PathBuf)]) -> Outcome<Option<Arc<dyn Secrets>>> {
    if files.is_empty() {
        return Ok(None);
    }
    if files.len() > SECRETS_PER_STAGE_MAX {
        let what = format!("{} secrets; a Bee has at most {SECRETS_PER_STAGE_MAX}", files.len());
        return Err(Failure::new(Exit::Usage, what));
    }
    let mut values = BTreeMap::new();
    for (name, file) in files {
        let value = SecretValue::new(super::secrets::value(Some(file))?);
        if values.insert(name.to_string(), Some(value)).is_some() {
            let what = format!("the secret `{name}` is given twice");
            return Err(Failure::new(Exit::Usage, what));
        }
    }
    Ok(Some(Arc::new(Files(Arc::new(Granted::new(values))))))
}

#[derive(Debug)]
struct Files(Arc<Granted>);

impl Secrets for Files {
    fn granted(&self) -> Arc<Granted> {
        Arc::clone(&self.0)
    }
}

struct Filter {
    bee: Bee,
    /// Of all keys so far: what a stage's store would keep.
    state: StateMap,
    lines: u64,
    failed: u64,
    /// What the batch under way has printed.
    out: Vec<u8>,
    json: bool,
    quiet: bool,
}

impl Filter {
    async fn all(mut self, args: &args::Filter) -> Outcome {
        let (sender, mut lines) = mpsc::channel(BATCH_MESSAGES_DEFAULT as usize);
        // Stdin blocks. Nobody joins the thread: it may wait for a line that never comes.
        std::thread::spawn(move || read_lines(&sender));
        let most = args.batch.unwrap_or(BATCH_MESSAGES_DEFAULT).max(1) as usize;
        loop {
            let mut batch = Vec::new();
            // What is there goes: a line that comes alone, as from `tail -f`, is answered alone.
            if lines.recv_many(&mut batch, most).await == 0 {
                break;
            }
            let mut inputs = Vec::with_capacity(batch.len());
            for line in batch {
                self.lines += 1;
                inputs.push(self.input(line?, args)?);
            }
            self.batch(inputs).await?;
            // Once for a batch: a write for each line would be most of the work.
            written(&std::mem::take(&mut self.out))?;
        }
        match self.failed {
            0 => Ok(()),
            n => Err(Failure::new(
                Exit::Failed,
                format!("{} of {} failed", n, count(self.lines, "message")),
            )
            .remedy("each is named above with its line")),
        }
    }

    fn input(&self, line: Vec<u8>, args: &args::Filter) -> Outcome<Input> {
        let bad = |why: String| Failure::new(Exit::Refused, format!("line {}: {why}", self.lines));
        let mut given = if args.messages {
            serde_json::from_slice::<Given>(&line).map_err(|e| bad(format!("not a message: {e}")))?
        } else {
            Given {
                bytes: Some(line),
                ..Given::default()
            }
        };
        let payload = given.payload().map_err(&bad)?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(bad(format!(
                "{} bytes; a payload has at most {PAYLOAD_BYTES_MAX}",
                payload.len()
            )));
        }
        let key = match (&args.key, &args.key_json) {
            _ if given.key.is_some() => given.key,
            (Some(key), _) => Some(key.clone()),
            (None, Some(pointer)) => {
                let value: Value = serde_json::from_slice(&payload).map_err(|e| bad(format!("not JSON: {e}")))?;
                match value.pointer(pointer) {
                    Some(Value::String(text)) => Some(text.clone()),
                    Some(other) => Some(other.to_string()),
                    None => return Err(bad(format!("there is no {pointer} in it"))),
                }
            }
            (None, None) => None,
        };
        let mut uid = [0; 16];
        uid[8..].copy_from_slice(&self.lines.to_be_bytes());
        Ok(Input::Message {
            message: Message {
                uid: Uid(uid),
                key,
                headers: given.headers,
                payload: Bytes::from(payload),
                accepted_ms: given.accepted_ms.unwrap_or_else(|| SystemClock.now_ms()),
                request: None,
                trace: None,
                lineage: None,
                hops: Vec::new(),
            },
            attempt: given.attempt.unwrap_or(1).max(1),
        })
    }

    async fn batch(&mut self, inputs: Vec<Input>) -> Outcome {
        let first = self.lines - inputs.len() as u64 + 1;
        let alone = inputs.len() == 1;
        let processed = self.bee.process(self.with_state(inputs.clone())).await;
        match processed.result {
            Ok(steps) => {
                self.say(&processed.log, first);
                for (line, (input, step)) in (first..).zip(inputs.iter().zip(steps)) {
                    self.ended(line, input, step);
                }
            }
            Err(trap) if alone => {
                self.say(&processed.log, first);
                let why = format!("{trap}");
                self.failed += 1;
                if self.json {
                    self.print(&json!({
                        "line": first, "ended": "trap", "reason": trap.kind.to_string(), "detail": trap.detail,
                        "stderr": trap.stderr, "publish": [], "respond": [],
                    }));
                } else {
                    eprintln!("line {first}: {why}");
                }
            }
            // One of them did it. Each runs alone, as a stage would have it in the end.
            Err(_) => {
                for (line, input) in (first..).zip(inputs) {
                    let lines = std::mem::replace(&mut self.lines, line);
                    Box::pin(self.batch(vec![input])).await?;
                    self.lines = lines;
                }
            }
        }
        Ok(())
    }

    fn with_state(&self, inputs: Vec<Input>) -> Batch {
        // Once a key: a batch of one key would else copy all its state once a message.
        let mut state: StateMap = HashMap::new();
        for key in inputs.iter().filter_map(Input::key) {
            if !state.contains_key(key)
                && let Some(values) = self.state.get(key)
            {
                state.insert(key.to_owned(), values.clone());
            }
        }
        Batch {
            inputs,
            state,
            ..Batch::default()
        }
    }

    fn ended(&mut self, line: u64, input: &Input, step: Step) {
        if let Some(key) = input.key() {
            let values: &mut BTreeMap<_, _> = self.state.entry(key.to_owned()).or_default();
            for write in step.state {
                match write.value {
                    Some(value) => values.insert(write.name, value),
                    None => values.remove(&write.name),
                };
            }
        }
        let done = step.outcome;
        if done.disposition != Disposition::Done {
            self.failed += 1;
        }
        if self.json {
            let timers: Vec<_> = step
                .timers
                .iter()
                .map(|t| json!({ "name": t.name, "at_ms": t.at_ms }))
                .collect();
            let mut document = document(line, &done);
            document["timers"] = timers.into();
            return self.print(&document);
        }
        match &done.disposition {
            Disposition::Done => {}
            Disposition::RetryAfter(ms) => eprintln!("line {line}: wants another attempt after {ms} ms"),
            Disposition::Reject(reason) => eprintln!("line {line}: rejected: {reason}"),
            Disposition::Fail { reason, detail } if detail.starts_with(reason.as_str()) => {
                eprintln!("line {line}: {detail}")
            }
            Disposition::Fail { reason, detail } => eprintln!("line {line}: {reason}: {detail}"),
        }
        for payload in done.publish.iter().map(|e| &e.payload).chain(&done.respond) {
            self.out.extend_from_slice(payload);
            self.out.push(b'\n');
        }
    }

    fn print(&mut self, document: &Value) {
        self.out.extend_from_slice(format!("{document}\n").as_bytes());
    }

    fn say(&self, log: &[LogLine], first: u64) {
        if self.quiet {
            return;
        }
        for line in log {
            // What failed is told with its line anyway.
            if line.level == LogLevel::Error && line.context == "skep" {
                continue;
            }
            let at = line
                .input
                .map_or(String::new(), |i| format!("line {}: ", first + u64::from(i)));
            eprintln!("{at}{} {}: {}", line.level.as_str(), line.context, line.text);
        }
    }
}

fn document(line: u64, done: &Done) -> Value {
    let (ended, about, detail) = match &done.disposition {
        Disposition::Done => ("done", String::new(), ""),
        Disposition::RetryAfter(ms) => ("retry", ms.to_string(), ""),
        Disposition::Reject(reason) => ("reject", reason.clone(), ""),
        Disposition::Fail { reason, detail } => ("fail", reason.clone(), detail.as_str()),
    };
    let publish: Vec<Value> = done
        .publish
        .iter()
        .map(|e| {
            json!({ "payload": payload_json(&e.payload), "hex": hex(&e.payload), "to": e.to, "key": e.key, "headers": e.headers })
        })
        .collect();
    let respond: Vec<Value> = done
        .respond
        .iter()
        .map(|r| json!({ "payload": payload_json(r), "hex": hex(r) }))
        .collect();
    json!({ "line": line, "ended": ended, "reason": about, "detail": detail, "publish": publish, "respond": respond })
}

/// A message of `--messages`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    /// Text as it is, anything else as JSON.
    payload: Option<Value>,
    hex: Option<String>,
    #[serde(skip)]
    bytes: Option<Vec<u8>>,
    key: Option<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    accepted_ms: Option<u64>,
    attempt: Option<u32>,
}

impl Given {
    fn payload(&mut self) -> Result<Vec<u8>, String> {
        match (self.bytes.take(), self.hex.take(), self.payload.take()) {
            (Some(bytes), _, _) => Ok(bytes),
            (None, Some(hex), None) => unhex(&hex).ok_or_else(|| "`hex` is not hex".to_owned()),
            (None, None, Some(Value::String(text))) => Ok(text.into_bytes()),
            (None, None, Some(value)) => Ok(value.to_string().into_bytes()),
            _ => Err("a message has `payload` or `hex`".to_owned()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, b| {
            let _ = write!(text, "{b:02x}");
            text
        })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok())
        .collect()
}

fn read_lines(to: &mpsc::Sender<Outcome<Vec<u8>>>) {
    let mut stdin = std::io::stdin().lock();
    let mut number = 0_u64;
    loop {
        let mut line = Vec::new();
        let bound = LINE_BYTES_MAX as u64 + 1;
        let read = stdin.by_ref().take(bound).read_until(b'\n', &mut line);
        number += 1;
        let line = match read {
            Ok(0) => return,
            Ok(n) if n as u64 == bound => Err(Failure::new(
                Exit::Refused,
                format!("line {number} has more than {LINE_BYTES_MAX} bytes"),
            )),
            Ok(_) => {
                line.pop_if(|end| *end == b'\n');
                Ok(line)
            }
            Err(e) => Err(Failure::new(Exit::Failed, format!("cannot read stdin: {e}"))),
        };
        let last = line.is_err();
        if to.blocking_send(line).is_err() || last {
            return;
        }
    }
}

fn written(bytes: &[u8]) -> Outcome {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        Err(e) => Err(Failure::new(Exit::Failed, format!("cannot write to stdout: {e}"))),
    }
}

/// The component: the file itself, or what is made of a Python file.
async fn component(file: &Path, progress: &Progress) -> Outcome<Vec<u8>> {
    if !python::is_python(file) {
        return modules::read(file).await;
    }
    let room = tempfile::tempdir().map_err(|e| Failure::new(Exit::Failed, format!("cannot make a folder: {e}")))?;
    let built = python::build(file, &room.path().join("bee.wasm"), progress).await?;
    modules::read(&built.wasm).await
}

/// Compiled by the limited process that a node uses too, once for each component.
async fn load(wasm: Vec<u8>, progress: &Progress) -> Outcome<Module> {
    let digest = Digest::of(&wasm);
    let root = cache_dir();
    let engine = Engine::new(Settings::new(root.join("cache"))).context("start the engine")?;
    let cache =
        ArtifactCache::open(&engine, &root.join("artifact.key")).with_context(|| format!("open {}", root.display()))?;
    let cache = Arc::new(cache);
    let artifact = match cache.get(digest).context("read the cache")? {
        Some(artifact) => artifact,
        None => {
            let step = progress.step("compile");
            let program = std::env::current_exe().context("find this program")?;
            let compiler = Compiler::new(program, vec!["compile-module".into()], engine.settings().compiler)
                .with(Arc::clone(&cache));
            let artifact = compiler.compile(Bytes::from(wasm)).await.map_err(refused)?;
            // It saves time, nothing else.
            let _ = cache.put(digest, &artifact);
            step.done("");
            artifact
        }
    };
    engine.load(digest, artifact).await.map_err(refused)
}

fn refused(e: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Refused, e.to_string())
}

fn cache_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("SKEP_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("skep")))
        .or_else(|| Some(set("HOME")?.join(".cache/skep")))
        .unwrap_or_else(|| std::env::temp_dir().join("skep"))
        .join("filter")
}

fn bee_name(module: &Module, wanted: Option<&str>) -> Outcome<BeeName> {
    let names: Vec<&str> = module.bees().iter().map(BeeName::as_str).collect();
    let has = names.join(", ");
    match (wanted, module.bees()) {
        (Some(wanted), bees) => bees.iter().find(|b| b.as_str() == wanted).cloned().ok_or_else(|| {
            Failure::new(
                Exit::NotFound,
                format!("there is no Bee `{wanted}` in the module; it has: {has}"),
            )
        }),
        (None, [only]) => Ok(only.clone()),
        (None, _) => {
            Err(Failure::new(Exit::Usage, format!("the module has several Bees: {has}")).remedy("name one with --bee"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_written() {
        let read = |text: &str| {
            let mut given: Given = serde_json::from_str(text).map_err(|e| e.to_string())?;
            given.payload()
        };
        assert_eq!(read(r#"{"payload": "a b", "key": "k"}"#).unwrap(), b"a b");
        assert_eq!(read(r#"{"payload": {"a": 1}}"#).unwrap(), b"{\"a\":1}");
        assert_eq!(read(r#"{"hex": "00ff"}"#).unwrap(), [0, 255]);
        assert!(read(r#"{"hex": "0"}"#).is_err());
        assert!(read(r#"{"hex": "zz"}"#).is_err());
        assert!(read(r#"{"hex": "00", "payload": 1}"#).is_err());
        assert!(read(r#"{"key": "k"}"#).is_err());
        assert!(read(r#"{"payload": 1, "kye": "k"}"#).is_err());
        assert_eq!(unhex(&hex(b"\x00\x7f\xff")).unwrap(), b"\x00\x7f\xff");
    }
}
