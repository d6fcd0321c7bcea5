//! `state`: one key, lists, files.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead as _, Read as _, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use skep_model::limits::{STATE_LINE_BYTES_MAX, STATE_PAGE_BYTES, STATE_PAGE_KEYS};
use skep_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::args::{self, StateCommand};
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::files;
use super::output::{Printer, payload_json, payload_text, shown};
use super::progress::Progress;
use crate::wording::count;

pub async fn run(args: args::State, node: &str, out: Printer) -> Outcome {
    match (args.what, args.one) {
        (None, Some(one)) | (Some(StateCommand::Get(one)), _) => get(one, node, out).await,
        (Some(StateCommand::List(args)), _) => list(args, node, out).await,
        (Some(StateCommand::Export(args)), _) => export(args, node, out).await,
        (Some(StateCommand::Import(args)), _) => import(args, node, out).await,
        (None, None) => Err(Failure::new(Exit::Usage, "name a key: skep state SWARM STAGE KEY")),
    }
}

/// One key's values, in as many pages as they take.
async fn values_of(node: &str, swarm: &str, stage: &str, key: &str) -> Outcome<Vec<v1::StateValue>> {
    let mut beekeeper = connect::beekeeper(node).await?;
    let mut values: Vec<v1::StateValue> = Vec::new();
    loop {
        let request = v1::GetStateRequest {
            swarm: swarm.to_owned(),
            stage: stage.to_owned(),
            key: key.to_owned(),
            after: values.last().map(|v| v.name.clone()).unwrap_or_default(),
        };
        let page = beekeeper.get_state(request).await?.into_inner();
        values.extend(page.values);
        if !page.more {
            return Ok(values);
        }
    }
}

async fn get(args: args::StateOf, node: &str, out: Printer) -> Outcome {
    let key = args.key;
    let values = values_of(node, &args.swarm, &args.stage, &key).await?;
    if out.json() {
        return out.document(&json!({ "key": key, "values": shown_values(&values) }));
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

fn shown_values(values: &[v1::StateValue]) -> Value {
    let each = values.iter().map(|v| (v.name.clone(), payload_json(&v.value)));
    Value::Object(each.collect())
}

fn asked(what: args::StageOf, prefix: String, limit: u64, after: String) -> v1::ListStateRequest {
    v1::ListStateRequest {
        swarm: what.swarm,
        stage: what.stage,
        prefix,
        limit,
        after,
    }
}

async fn list(args: args::StateList, node: &str, out: Printer) -> Outcome {
    let request = asked(args.what, args.prefix, args.limit, args.after);
    let mut pages = connect::beekeeper(node).await?.list_state(request).await?.into_inner();
    let (mut rows, mut next) = (Vec::new(), String::new());
    while let Some(page) = pages.message().await? {
        next = page.next;
        for entry in page.entries {
            if out.json() {
                out.item(&json!({ "key": entry.key, "values": shown_values(&entry.values) }))?;
                continue;
            }
            let values = entry.values.iter();
            let values: Vec<String> = values
                .map(|v| format!("{}={}", shown(&v.name), payload_text(&v.value)))
                .collect();
            rows.push(vec![shown(&entry.key), values.join(" ")]);
        }
    }
    if !out.json() {
        if rows.is_empty() {
            out.line("no such keys")?;
        } else {
            out.table_of_lines(&["KEY", "VALUES"], rows)?;
        }
    }
    if !next.is_empty() {
        eprintln!("there may be more: --after '{}'", shown(&next));
    }
    Ok(())
}

// -------------------------------------------------------------------------------------------------------- files

/// A value so that exactly its bytes come back.
fn form(bytes: &[u8]) -> Value {
    if let Ok(value) = serde_json::from_slice::<Value>(bytes)
        && serde_json::to_vec(&value).is_ok_and(|again| again == bytes)
    {
        return json!({ "json": value });
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

fn line_of(key: &str, values: &[v1::StateValue]) -> Outcome<Vec<u8>> {
    let values: serde_json::Map<String, Value> = values.iter().map(|v| (v.name.clone(), form(&v.value))).collect();
    let mut line = serde_json::to_vec(&json!({ "key": key, "values": values }))
        .map_err(|e| Failure::new(Exit::Failed, format!("key `{}`: {e}", shown(key))))?;
    line.push(b'\n');
    Ok(line)
}

/// Where an export goes: a file takes its place only when it is whole.
enum Sink {
    Stdout(Printer),
    File(tempfile::NamedTempFile),
}

impl Sink {
    fn write(&mut self, line: &[u8]) -> Outcome {
        match self {
            Self::Stdout(out) => out.bytes(line),
            Self::File(file) => file.write_all(line).map_err(|e| unwritten(&e)),
        }
    }
}

fn unwritten(e: &dyn fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("cannot write the export: {e}"))
}

async fn export(args: args::StateExport, node: &str, out: Printer) -> Outcome {
    let mut sink = if files::is_stdin(&args.file) {
        Sink::Stdout(out)
    } else {
        let folder = args.file.parent().filter(|p| !p.as_os_str().is_empty());
        let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")));
        Sink::File(file.map_err(|e| unwritten(&e))?)
    };
    let mut keys = 0u64;
    if let Some(key) = &args.key {
        let values = values_of(node, &args.what.swarm, &args.what.stage, key).await?;
        if !values.is_empty() {
            sink.write(&line_of(key, &values)?)?;
            keys += 1;
        }
    } else {
        let request = asked(args.what, args.prefix, 0, String::new());
        let mut pages = connect::beekeeper(node).await?.list_state(request).await?.into_inner();
        while let Some(page) = pages.message().await? {
            for entry in page.entries {
                sink.write(&line_of(&entry.key, &entry.values)?)?;
                keys += 1;
            }
        }
    }
    if let Sink::File(file) = sink {
        file.as_file().sync_all().map_err(|e| unwritten(&e))?;
        file.persist(&args.file).map_err(|e| unwritten(&e.error))?;
        return out.line(&format!("{} written to {}", count(keys, "key"), args.file.display()));
    }
    Ok(())
}

/// One line of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    values: Values,
}

struct Values(BTreeMap<String, Vec<u8>>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of values by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
                let mut out = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let bytes = bytes_of(map.next_value::<Form>()?).map_err(A::Error::custom)?;
                    if out.insert(name.clone(), bytes).is_some() {
                        return Err(A::Error::custom(format_args!("the value `{name}` is given twice")));
                    }
                }
                Ok(Values(out))
            }
        }
        from.deserialize_map(Each)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    Json(Value),
    Text(String),
    Base64(String),
}

fn bytes_of(form: Form) -> Result<Vec<u8>, String> {
    match form {
        Form::Json(value) => serde_json::to_vec(&value).map_err(|e| e.to_string()),
        Form::Text(text) => Ok(text.into_bytes()),
        Form::Base64(text) => STANDARD.decode(text).map_err(|e| format!("not base64: {e}")),
    }
}

/// The lines of a file, one after another; each error names its place.
struct Lines {
    name: String,
    from: Box<dyn std::io::BufRead + Send>,
    at: u64,
}

impl Lines {
    fn open(file: &Path) -> Outcome<Self> {
        let from: Box<dyn std::io::BufRead + Send> = if files::is_stdin(file) {
            Box::new(std::io::BufReader::new(std::io::stdin()))
        } else {
            Box::new(std::io::BufReader::new(files::open(file)?))
        };
        Ok(Self {
            name: files::name(file),
            from,
            at: 0,
        })
    }

    fn wrong(&self, column: usize, why: &str) -> Failure {
        let place = format!("{}:{}:{column}", self.name, self.at);
        Failure::new(Exit::Refused, format!("{place}: {why}")).remedy(
            "a line is one key: {\"key\": \"k\", \"values\": {\"name\": {\"json\": 1}}}, with `json`, `text` or `base64`",
        )
    }

    fn next(&mut self) -> Outcome<Option<v1::StateEntry>> {
        loop {
            self.at += 1;
            let mut line = Vec::new();
            let most = STATE_LINE_BYTES_MAX as u64 + 1;
            let read = self.from.by_ref().take(most).read_until(b'\n', &mut line);
            read.map_err(|e| Failure::new(Exit::Failed, format!("cannot read {}: {e}", self.name)))?;
            if line.is_empty() {
                return Ok(None);
            }
            if line.len() as u64 >= most {
                return Err(self.wrong(1, &format!("the line has more than {STATE_LINE_BYTES_MAX} bytes")));
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let found: Line = serde_json::from_slice(&line).map_err(|e| {
                let why = e.to_string();
                let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why);
                self.wrong(e.column().max(1), why)
            })?;
            let values = found.values.0.into_iter();
            return Ok(Some(v1::StateEntry {
                key: found.key,
                values: values
                    .map(|(name, value)| v1::StateValue {
                        name,
                        value: value.into(),
                    })
                    .collect(),
            }));
        }
    }
}

fn weight(entry: &v1::StateEntry) -> usize {
    let values = entry.values.iter().map(|v| v.name.len() + v.value.len() + 16);
    entry.key.len() + values.sum::<usize>()
}

async fn import(args: args::StateImport, node: &str, out: Printer) -> Outcome {
    // A file is looked at as a whole before any of it is sent; a stream cannot be.
    if !files::is_stdin(&args.file) {
        let mut lines = Lines::open(&args.file)?;
        while lines.next()?.is_some() {}
    }
    let mut beekeeper = connect::beekeeper(node).await?;
    let progress = if out.json() {
        Progress::silent()
    } else {
        Progress::stderr()
    };
    let step = progress.step(format!("import into {}/{}", args.what.swarm, args.what.stage));
    let (to, parts) = mpsc::channel(2);
    let mut lines = Lines::open(&args.file)?;
    let what = args.what;
    // Reading blocks: a thread of its own, which ends when nobody takes its parts.
    let reader = tokio::task::spawn_blocking(move || -> Outcome {
        let mut part = v1::ImportStateRequest {
            swarm: what.swarm,
            stage: what.stage,
            entries: Vec::new(),
        };
        let mut bytes = 0;
        loop {
            let next = lines.next()?;
            let last = next.is_none();
            if let Some(entry) = next {
                bytes += weight(&entry);
                part.entries.push(entry);
            }
            if last || part.entries.len() >= STATE_PAGE_KEYS as usize || bytes >= STATE_PAGE_BYTES / 2 {
                bytes = 0;
                if to.blocking_send(std::mem::take(&mut part)).is_err() || last {
                    return Ok(());
                }
            }
        }
    });
    let reply = beekeeper.import_state(ReceiverStream::new(parts)).await;
    let read = reader
        .await
        .map_err(|e| Failure::new(Exit::Failed, format!("the import ended: {e}")))?;
    let keys = match (read, reply) {
        // The stream ended where the file is wrong.
        (Err(wrong), Ok(reply)) => {
            let keys = reply.into_inner().keys;
            let before = format!(
                "{} before it were set; mend it and import all again",
                count(keys, "key")
            );
            return Err(Failure::new(Exit::Refused, format!("{}; {before}", wrong.message)));
        }
        // Nothing of it was sent.
        (Err(wrong), Err(_)) => return Err(wrong),
        (Ok(()), reply) => reply?.into_inner().keys,
    };
    step.done(&count(keys, "key"));
    if out.json() {
        return out.document(&json!({ "keys": keys }));
    }
    out.line(&format!("{} set", count(keys, "key")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Lines {
        Lines {
            name: "f".to_owned(),
            from: Box::new(std::io::Cursor::new(text.to_vec())),
            at: 0,
        }
    }

    #[test]
    fn what_is_exported_is_imported_to_the_byte() {
        let values: Vec<v1::StateValue> = [
            &b"1"[..],
            b"",
            b"{\"a\":1}",
            b"{ \"a\": 1 }",
            b"1.0",
            b"1e400",
            b"\"text\"",
            b"plain",
            b"\xff\x00",
            b"{\"a\":1,\"a\":2}",
            b"123456789012345678901234567890",
        ]
        .iter()
        .enumerate()
        .map(|(n, value)| v1::StateValue {
            name: format!("n{n:02}\u{e9}\n"),
            value: value.to_vec().into(),
        })
        .collect();
        let line = line_of("k\"\n\0", &values).unwrap();
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        let mut read = lines(&line);
        let entry = read.next().unwrap().unwrap();
        assert_eq!((entry.key.as_str(), entry.values), ("k\"\n\0", values));
        assert!(read.next().unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_with_a_file_has_its_place() {
        let good = "{\"key\":\"a\",\"values\":{}}\n";
        for (line, place, why) in [
            ("nonsense", "f:2:", "expected"),
            ("{\"key\":\"a\"}", "f:2:", "missing field `values`"),
            ("{\"key\":7,\"values\":{}}", "f:2:8", "expected a string"),
            (
                "{\"key\":\"a\",\"values\":{},\"more\":1}",
                "f:2:",
                "unknown field `more`",
            ),
            ("{\"key\":\"a\",\"values\":{\"n\":1}}", "f:2:", "expected"),
            (
                "{\"key\":\"a\",\"values\":{\"n\":{\"base64\":\"*\"}}}",
                "f:2:",
                "not base64",
            ),
            (
                "{\"key\":\"a\",\"values\":{\"n\":{\"hex\":\"00\"}}}",
                "f:2:",
                "unknown variant `hex`",
            ),
            (
                "{\"key\":\"a\",\"values\":{\"n\":{\"json\":1},\"n\":{\"json\":1}}}",
                "f:2:",
                "`n` is given twice",
            ),
            ("{\"key\":\"a\",\"values\":{", "f:2:", "EOF"),
            ("{\"key\":\"a\",\"values\":{}} {}", "f:2:", "trailing characters"),
            ("\u{0}", "f:2:1", "expected value"),
        ] {
            let mut read = lines(format!("{good}{line}\n").as_bytes());
            assert!(read.next().unwrap().is_some());
            let wrong = read.next().expect_err(line).message;
            assert!(wrong.starts_with(place) && wrong.contains(why), "{line}: {wrong}");
        }
        let huge = [good.as_bytes(), &vec![b' '; STATE_LINE_BYTES_MAX + 1]].concat();
        let mut read = lines(&huge);
        assert!(read.next().unwrap().is_some());
        assert!(read.next().unwrap_err().message.contains("more than"));
        let mut deep = lines(format!("{good}{}", "[".repeat(100_000)).as_bytes());
        assert!(deep.next().unwrap().is_some() && deep.next().is_err());
    }
}
