//! One chain of records, in files of its own.
//!
//! ```text
//!   0000000000000001.log      the first record's number; of several files, the oldest go when there are too many
//!   HASH {"seq":7,"prev":"<hash of 6>","at_ms":…}      a line a record: HASH is the SHA-256 of what follows it
//! ```

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use skep_model::access::Role;
use skep_model::limits::{AUDIT_FILE_BYTES, AUDIT_FILES_MAX, AUDIT_RECORD_BYTES_MAX};

/// What the first record of a chain builds on.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const HASH_HEX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Asked,
    Ended,
    Denied,
    /// What the node did by itself.
    Node,
    /// Older files went.
    Rotated,
    /// A record that was not written to its end went.
    Repaired,
}

impl Kind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Ended => "ended",
            Self::Denied => "denied",
            Self::Node => "node",
            Self::Rotated => "rotated",
            Self::Repaired => "repaired",
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub seq: u64,
    pub prev: String,
    pub at_ms: u64,
    pub kind: Kind,
    /// Of `ended`: the record that says it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub outcome: String,
    pub times: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Of `rotated`: the oldest record that stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_from: Option<u64>,
}

impl Entry {
    #[must_use]
    pub fn new(kind: Kind, at_ms: u64) -> Self {
        Self {
            seq: 0,
            prev: String::new(),
            at_ms,
            kind,
            of: None,
            token: None,
            token_name: None,
            tenant: None,
            role: None,
            method: String::new(),
            objects: BTreeMap::new(),
            from: String::new(),
            outcome: String::new(),
            times: 1,
            note: String::new(),
            kept_from: None,
        }
    }
}

/// A chain that grows.
pub struct Book {
    folder: PathBuf,
    seq: u64,
    head: String,
    /// The file that grows, and its bytes.
    last: PathBuf,
    bytes: u64,
    synced: bool,
}

impl Book {
    /// Goes on where the last record ends. What a crash left of a record that was being written is cut off, and said.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn open(folder: &Path, now_ms: u64) -> anyhow::Result<Self> {
        super::make(folder)?;
        let mut book = Self {
            folder: folder.to_owned(),
            seq: 0,
            head: NOTHING.to_owned(),
            last: file(folder, 1),
            bytes: 0,
            synced: true,
        };
        let mut files = files(folder)?;
        let (mut torn, mut is_last) = (0, true);
        // A crash, or a full disk, may leave the last file without a record: the chain's end is in the one before.
        while let Some((first, path)) = files.pop() {
            let text = read(&path)?;
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if std::mem::take(&mut is_last) {
                torn = text.len() - whole;
                (book.last, book.bytes) = (path.clone(), whole as u64);
                if torn > 0 {
                    let cut = OpenOptions::new().write(true).open(&path);
                    let cut = cut.and_then(|file| file.set_len(whole as u64));
                    cut.with_context(|| format!("cut {}", path.display()))?;
                }
            }
            let lines = text[..whole]
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty());
            let Some(line) = lines.clone().next_back() else {
                continue;
            };
            match parse(line) {
                Some((hash, entry)) => (book.seq, book.head) = (entry.seq, hash),
                // It goes on all the same; that the chain breaks here is what a verification tells.
                None => book.seq = first - 1 + lines.count() as u64,
            }
            break;
        }
        if torn > 0 {
            let note = format!("{torn} bytes of a record that was not written to its end were cut off");
            book.append(Entry {
                note,
                ..Entry::new(Kind::Repaired, now_ms)
            })?;
        }
        Ok(book)
    }

    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    #[must_use]
    pub fn head(&self) -> &str {
        &self.head
    }

    /// Writes a record behind the others. It survives the process from here on, and the machine once it is synced.
    ///
    /// # Errors
    /// It cannot be written; the chain is as it was.
    pub fn append(&mut self, entry: Entry) -> anyhow::Result<u64> {
        if self.bytes >= AUDIT_FILE_BYTES {
            self.turn(entry.at_ms)?;
        }
        self.put(entry)
    }

    fn put(&mut self, mut entry: Entry) -> anyhow::Result<u64> {
        entry.seq = self.seq + 1;
        entry.prev.clone_from(&self.head);
        let mut text = serde_json::to_string(&entry)?;
        if text.len() > AUDIT_RECORD_BYTES_MAX {
            // Names come from whoever asks.
            entry.objects.clear();
            entry.note = "what it names is too long to be recorded".to_owned();
            text = serde_json::to_string(&entry)?;
        }
        let hash = hash(text.as_bytes());
        let line = format!("{hash} {text}\n");
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.last);
        let mut file = opened.with_context(|| format!("open {}", self.last.display()))?;
        if let Err(e) = file.write_all(line.as_bytes()) {
            // A full disk may have taken a part.
            let _ = file.set_len(self.bytes);
            return Err(e).with_context(|| format!("write {}", self.last.display()));
        }
        self.bytes += line.len() as u64;
        (self.seq, self.head, self.synced) = (entry.seq, hash, false);
        Ok(self.seq)
    }

    /// A new file, and the oldest go. That they go is recorded before they do, so that nobody else can take them away unnoticed.
    fn turn(&mut self, now_ms: u64) -> anyhow::Result<()> {
        let mut files = files(&self.folder)?;
        // The record is of no use in the file that it tells of.
        let next = file(&self.folder, self.seq + 1);
        files.push((self.seq + 1, next.clone()));
        if let Ok(old) = File::open(&self.last) {
            old.sync_data()
                .with_context(|| format!("sync {}", self.last.display()))?;
        }
        (self.last, self.bytes) = (next, 0);
        let gone = files.len().saturating_sub(AUDIT_FILES_MAX);
        let kept_from = files[gone].0;
        self.put(Entry {
            note: format!("a new file; records before {kept_from} are no longer kept"),
            kept_from: Some(kept_from),
            ..Entry::new(Kind::Rotated, now_ms)
        })?;
        tracing::info!(file = %self.last.display(), seq = self.seq, head = self.head, "audit has a new file");
        for (_, path) in &files[..gone] {
            std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// The file to be made durable, if there is anything new in it.
    pub fn unsynced(&mut self) -> Option<PathBuf> {
        (!std::mem::replace(&mut self.synced, true)).then(|| self.last.clone())
    }

    /// What is read of it now, while it may grow.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader {
            folder: self.folder.clone(),
            seq: self.seq,
            head: self.head.clone(),
        }
    }
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sound {
    pub first_seq: u64,
    pub last_seq: u64,
    pub head: String,
    /// The first record that is wrong.
    pub trouble: Option<String>,
}

/// A book as it was at one moment.
pub struct Reader {
    folder: PathBuf,
    seq: u64,
    head: String,
}

impl Reader {
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Records after number `after` that fit, in order. `true`: there may be more. What cannot be read is passed over: [`Self::verify`] tells
    /// of it.
    pub fn page(&self, after: u64, most: usize, fits: impl Fn(&Entry) -> bool) -> anyhow::Result<(Vec<Entry>, bool)> {
        let mut out = Vec::new();
        let files = files(&self.folder)?;
        for (at, (_, path)) in files.iter().enumerate() {
            // All of it is before.
            if files.get(at + 1).is_some_and(|(next, _)| *next <= after + 1) {
                continue;
            }
            for line in lines(path)? {
                let Some((_, entry)) = parse(&line?) else { continue };
                if entry.seq <= after || entry.seq > self.seq || !fits(&entry) {
                    continue;
                }
                if out.len() == most {
                    return Ok((out, true));
                }
                out.push(entry);
            }
        }
        Ok((out, false))
    }

    /// Reads every record. `known`: the number and the hash of one that was told before.
    pub fn verify(&self, known: Option<(u64, &str)>) -> anyhow::Result<Sound> {
        let mut sound = Sound {
            first_seq: 0,
            last_seq: 0,
            head: NOTHING.to_owned(),
            trouble: None,
        };
        let mut kept_from = 1;
        'files: for (_, path) in files(&self.folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for (number, line) in lines(&path)?.enumerate() {
                // What was written after this look began.
                if sound.last_seq >= self.seq {
                    break 'files;
                }
                let place = format!("{name}, line {}", number + 1);
                let Some((hash, entry)) = parse(&line?) else {
                    sound.trouble = Some(format!(
                        "{place}: the record was changed: its hash is not that of what it says"
                    ));
                    break 'files;
                };
                if sound.first_seq == 0 {
                    sound.first_seq = entry.seq;
                } else if entry.seq != sound.last_seq + 1 {
                    sound.trouble = Some(match entry.seq > sound.last_seq {
                        true => format!(
                            "{place}: records {} to {} were removed",
                            sound.last_seq + 1,
                            entry.seq - 1
                        ),
                        false => format!("{place}: record {} is out of order", entry.seq),
                    });
                    break 'files;
                } else if entry.prev != sound.head {
                    sound.trouble = Some(format!(
                        "{place}: record {} does not build on the one before, which was replaced or put in",
                        entry.seq
                    ));
                    break 'files;
                }
                if known.is_some_and(|(seq, head)| seq == entry.seq && head != hash) {
                    sound.trouble = Some(format!(
                        "{place}: record {} is not the one that was told before",
                        entry.seq
                    ));
                    break 'files;
                }
                kept_from = entry.kept_from.unwrap_or(kept_from);
                (sound.last_seq, sound.head) = (entry.seq, hash);
            }
        }
        if sound.trouble.is_none() {
            if sound.first_seq > kept_from {
                let last = sound.first_seq - 1;
                sound.trouble = Some(format!("records {kept_from} to {last} were removed at the beginning"));
            } else if sound.last_seq < self.seq {
                let missing = self.seq - sound.last_seq;
                sound.trouble = Some(format!("the last {missing} of {} records were cut off", self.seq));
            } else if let Some((seq, _)) = known.filter(|(seq, _)| *seq > sound.last_seq) {
                sound.trouble = Some(format!(
                    "records {} to {seq}, which were told before, were cut off",
                    sound.last_seq + 1
                ));
            } else if sound.head != self.head {
                sound.trouble = Some(format!("record {} is not the one that was written", self.seq));
            }
        }
        Ok(sound)
    }
}

fn file(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:016}.log"))
}

/// The files in order, each with the number of its first record.
fn files(folder: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    let mut out = Vec::new();
    for found in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = found?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let first = name.strip_suffix(".log").and_then(|number| number.parse::<u64>().ok());
        if let Some(first) = first.filter(|first| *first > 0) {
            out.push((first, path));
        }
    }
    out.sort();
    Ok(out)
}

/// All of a file: none is longer than its bound and a record.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = File::open(path).and_then(|file| file.take(2 * AUDIT_FILE_BYTES).read_to_end(&mut text));
    file.with_context(|| format!("read {}", path.display()))?;
    Ok(text)
}

/// The lines of a file, none longer than a record may be.
fn lines(path: &Path) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Vec<u8>>> + use<>> {
    let shown = path.display().to_string();
    let mut from = match File::open(path) {
        Ok(file) => Some(BufReader::new(file)),
        // It was the oldest, and went meanwhile.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => bail!("read {shown}: {e}"),
    };
    Ok(std::iter::from_fn(move || {
        let reader = from.as_mut()?;
        let mut line = Vec::new();
        let most = (AUDIT_RECORD_BYTES_MAX + HASH_HEX + 2) as u64;
        match reader.by_ref().take(most).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(e) => {
                from = None;
                Some(Err(anyhow::anyhow!("read {shown}: {e}")))
            }
        }
    }))
}

/// A record whose hash is that of what it says.
fn parse(line: &[u8]) -> Option<(String, Entry)> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let (said, rest) = line.split_at_checked(HASH_HEX)?;
    let text = rest.strip_prefix(b" ")?;
    let hash = hash(text);
    (hash.as_bytes() == said).then_some(())?;
    Some((hash, serde_json::from_slice(text).ok()?))
}

fn hash(text: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(HASH_HEX);
    for byte in Sha256::digest(text) {
        let _ = write!(out, "{byte:02x}");
    }
    out
}
