//! A life as pieces, read slice by slice while it stays as it is.
//!
//! A script *holds* the life: publishes and commits are refused, certainly not done, until it is let go or the holder says nothing for
//! [`limits::BACKUP_HOLD_MS`]. Owners keep their leases meanwhile and send their commits again. One script that reads all would hold up
//! everybody on the server for as long; a copy of the keys would need their memory twice.
//!
//! Whoever passes a hold that has run out takes it away, so a reader that finds its own hold at the end knows that nobody wrote in between,
//! whatever the server's clock did.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use redis::{Cmd, Value};
use skep_model::id::{CommitId, Digest, RequestId, Token, Uid};
use skep_model::limits;
use skep_model::name::StageName;
use skep_model::scope::SwarmId;
use tokio::sync::mpsc;

use super::fetch::{Frames, range};
use super::reply::{Said, bytes, list, number, text};
use super::scripts::Script;
use super::{Core, names, publish, state};
use crate::record::{self, Layout, Piece, message_bytes};
use crate::{Cursor, Error, Pieces, Unread, Want};

struct Topic {
    stage: StageName,
    layout: Layout,
    parts: Vec<Part>,
}

struct Part {
    index: u16,
    appended: u64,
    consumed: u64,
    cursor: Cursor,
    unclean: u32,
    seal: Option<u64>,
    marked: Option<(Uid, u32)>,
}

/// All that is small, as it was when the hold began.
struct Sketch {
    topics: Vec<Topic>,
    removed: Vec<(StageName, u64)>,
    subjects: Vec<String>,
}

struct Reader {
    core: Arc<Core>,
    swarm: SwarmId,
    token: Token,
    said: Instant,
    out: mpsc::Sender<Result<Piece, Error>>,
}

/// Why a reader ends early.
enum End {
    Unwanted,
    Error(Error),
}

impl From<Error> for End {
    fn from(e: Error) -> Self {
        Self::Error(e)
    }
}

pub(super) async fn export(core: &Arc<Core>, swarm: &SwarmId) -> Result<Pieces, Error> {
    let (out, pieces) = mpsc::channel(limits::EXPORT_PIECES_MAX);
    let mut reader = Reader {
        core: Arc::clone(core),
        swarm: swarm.clone(),
        token: Token::random(&*core.entropy),
        said: Instant::now(),
        out,
    };
    let mut said = reader.hold(true).await?;
    match said.word.as_str() {
        "OK" => {}
        "NONE" => return Ok(futures::stream::empty().boxed()),
        "BUSY" => {
            return Err(Error::Unavailable(format!(
                "another backup reads {swarm}: try again when it is done"
            )));
        }
        _ => return Err(said.refusal()),
    }
    tokio::spawn(async move {
        let ended = match reader.begin(&mut said).await {
            Ok(sketch) => reader.read(sketch).await,
            Err(e) => Err(e.into()),
        };
        let kept = reader.let_go().await;
        let error = match (ended, kept) {
            (Err(End::Unwanted), _) | (Ok(()), Ok(())) => return,
            // What was deleted, or written to, underneath looks like damage.
            (Ok(()) | Err(End::Error(Error::Corrupt(_))), Err(e)) | (Err(End::Error(e)), _) => e,
        };
        let _ = reader.out.send(Err(error)).await;
    });
    let next = |mut pieces: mpsc::Receiver<_>| async move { pieces.recv().await.map(|piece| (piece, pieces)) };
    Ok(futures::stream::unfold(pieces, next).boxed())
}

fn stage(name: &str) -> Result<StageName, Error> {
    name.parse()
        .map_err(|_| Error::Corrupt(format!("`{name}` is not a stage's name")))
}

fn small<T: TryFrom<u64>>(value: Value) -> Result<T, Error> {
    T::try_from(number(value)?).map_err(|_| Error::Corrupt("a count is too large".to_owned()))
}

/// The items of a hash or list as pairs.
fn pairs(value: Value) -> Result<Vec<(Value, Value)>, Error> {
    if let Value::Map(pairs) = value {
        return Ok(pairs);
    }
    let mut items = list(value)?.into_iter();
    let mut out = Vec::with_capacity(items.len() / 2);
    while let (Some(first), Some(second)) = (items.next(), items.next()) {
        out.push((first, second));
    }
    Ok(out)
}

fn cut(mut record: Bytes, head: usize) -> Result<Bytes, Error> {
    if record.len() < head {
        return Err(Error::Corrupt("a record is cut off".to_owned()));
    }
    record.advance(head);
    Ok(record)
}

fn missing(what: &str) -> Error {
    Error::Corrupt(format!(
        "{what} is missing: a key was deleted or lost; restore the store from a copy"
    ))
}

impl Reader {
    async fn hold(&mut self, first: bool) -> Result<Said, Error> {
        let mut args = self.core.args(Script::Hold, &names::meta(&self.swarm));
        args.bytes(&self.token.0).num(limits::BACKUP_HOLD_MS).flag(first);
        let said = self.core.write(Script::Hold, &args).await;
        self.said = Instant::now();
        Ok(said.map_err(super::fault::of_a_look)?.0)
    }

    /// Whether it was held all the time, durably at that.
    async fn let_go(&self) -> Result<(), Error> {
        let mut args = self.core.args(Script::LetGo, &names::meta(&self.swarm));
        args.bytes(&self.token.0);
        let (mut said, _) = self
            .core
            .write(Script::LetGo, &args)
            .await
            .map_err(super::fault::of_a_look)?;
        if said.word != "OK" {
            return Err(said.refusal());
        }
        self.core.safe_now().await.map_err(super::fault::of_a_look)
    }

    /// A read under the hold.
    async fn read_value(&mut self, command: &Cmd) -> Result<Value, Error> {
        if self.said.elapsed() > Duration::from_millis(limits::BACKUP_HOLD_MS / 8) {
            let mut said = self.hold(false).await?;
            if said.word != "OK" {
                return Err(said.refusal());
            }
        }
        let answer = self.core.link.send(command).await;
        answer.map_err(super::fault::of_a_look)
    }

    fn key(&self, rest: &str) -> String {
        names::life(&self.swarm) + rest
    }

    async fn put(&self, piece: Piece) -> Result<(), End> {
        self.out.send(Ok(piece)).await.map_err(|_| End::Unwanted)
    }

    async fn begin(&self, said: &mut Said) -> Result<Sketch, Error> {
        let mut topics = Vec::new();
        for topic in said.list()? {
            let mut topic = list(topic)?.into_iter();
            let mut next = || topic.next().unwrap_or(Value::Nil);
            let (name, layout, parts) = (text(next())?, bytes(next())?, list(next())?);
            let mut parts = parts.into_iter().map(part).collect::<Result<Vec<_>, _>>()?;
            parts.sort_by_key(|part| part.index);
            topics.push(Topic {
                stage: stage(&name)?,
                layout: packed_layout(layout)?,
                parts,
            });
        }
        topics.sort_by(|a, b| a.stage.cmp(&b.stage));
        let mut removed = Vec::new();
        for (name, born) in pairs(said.next()?)? {
            removed.push((stage(&text(name)?)?, number(born)?));
        }
        let subjects = said.list()?.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
        Ok(Sketch {
            topics,
            removed,
            subjects,
        })
    }

    async fn read(&mut self, sketch: Sketch) -> Result<(), End> {
        for topic in sketch.topics {
            let Topic { stage, layout, parts } = topic;
            self.put(Piece::Topic {
                stage: stage.clone(),
                layout,
            })
            .await?;
            for part in parts {
                self.partition(&stage, &part).await?;
            }
            for bucket in 0..limits::STATE_BUCKETS {
                self.state(&stage, bucket).await?;
            }
            self.dead_letters(&stage).await?;
        }
        for subject in sketch.subjects {
            self.keys(&subject).await?;
        }
        self.sessions().await?;
        for (stage, born) in sketch.removed {
            self.put(Piece::Removed { stage, born }).await?;
        }
        Ok(())
    }

    async fn partition(&mut self, stage: &StageName, part: &Part) -> Result<(), End> {
        self.put(Piece::Partition {
            stage: stage.clone(),
            index: part.index,
            unclean: part.unclean,
            marked: part.marked,
            sealed: part.seal.is_some(),
        })
        .await?;
        self.messages(stage, part).await?;
        let place = format!("{stage}:{}", part.index);
        let (order, records) = (self.key(&format!("kl:{place}")), self.key(&format!("k:{place}")));
        let mut from = 0;
        while let Some(found) = self
            .ranked(&order, &records, from, limits::LETTERS_PAGE_MAX, |member| {
                member.slice(member.len().saturating_sub(8)..)
            })
            .await?
        {
            from += found.len() as u64;
            for (_, record) in found {
                self.put(Piece::Parked {
                    stage: stage.clone(),
                    index: part.index,
                    parked: record::decode_parked(cut(record, 32)?)?,
                })
                .await?;
            }
        }
        let (order, records) = (self.key(&format!("td:{place}")), self.key(&format!("tm:{place}")));
        let mut from = 0;
        while let Some(found) = self
            .ranked(&order, &records, from, limits::BACKUP_SLICE_MAX.into(), Bytes::clone)
            .await?
        {
            from += found.len() as u64;
            for (_, record) in found {
                self.put(Piece::Timer {
                    stage: stage.clone(),
                    index: part.index,
                    timer: record::decode_timer(cut(record, 28)?)?,
                })
                .await?;
            }
        }
        Ok(())
    }

    async fn messages(&mut self, stage: &StageName, part: &Part) -> Result<(), End> {
        let stream = names::inbox(&self.swarm.topic(stage).partition(part.index));
        let (mut from, mut consumed) = (part.cursor, part.consumed);
        while consumed < part.appended {
            let mut frames = Frames::new(Want {
                from,
                base: CommitId::NONE,
                messages: limits::EXPORT_MESSAGES_MAX,
                bytes: limits::FRAME_BYTES_MAX as u64,
                state: false,
                state_bytes: 0,
                timers_max: u64::MAX,
            });
            frames.expect(consumed);
            while !frames.enough() && frames.given() < part.appended - consumed {
                let before = frames.given();
                let read = self
                    .read_value(&range(&stream, frames.next_entry(), limits::EXPORT_ENTRIES_MAX))
                    .await?;
                frames.take(list(read)?)?;
                if frames.given() == before {
                    return Err(frames.missing().into());
                }
            }
            let Some(last) = frames.out.last() else {
                return Err(frames.missing().into());
            };
            from = last.after;
            consumed += frames.out.len() as u64;
            for (behind, messages) in runs(frames.out, part.seal) {
                self.put(Piece::Messages {
                    stage: stage.clone(),
                    index: part.index,
                    behind,
                    messages,
                })
                .await?;
            }
        }
        Ok(())
    }

    /// A slice of a sorted set with the records that its members name; `None` behind the last.
    async fn ranked(
        &mut self,
        order: &str,
        records: &str,
        from: u64,
        most: u64,
        field: impl Fn(&Bytes) -> Bytes,
    ) -> Result<Option<Vec<(Bytes, Bytes)>>, Error> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(order).arg(from).arg(from + most - 1);
        let members = list(self.read_value(&command).await?)?;
        if members.is_empty() {
            return Ok(None);
        }
        let members = members.into_iter().map(bytes).collect::<Result<Vec<_>, _>>()?;
        let mut command = redis::cmd("HMGET");
        command.arg(records);
        for member in &members {
            command.arg(&field(member)[..]);
        }
        let found = list(self.read_value(&command).await?)?;
        let mut out = Vec::with_capacity(members.len());
        for (member, record) in members.into_iter().zip(found) {
            if record == Value::Nil {
                return Err(missing("what waits"));
            }
            out.push((member, bytes(record)?));
        }
        Ok(Some(out))
    }

    /// A scan may name a key twice. It names each one, since nothing is written.
    async fn state(&mut self, stage: &StageName, bucket: u16) -> Result<(), End> {
        let bucket = self.key(&format!("st:{stage}:{bucket}"));
        let mut at = "0".to_owned();
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(&bucket).arg(&at).arg("COUNT").arg(limits::BACKUP_SLICE_MAX);
            let mut page = list(self.read_value(&command).await?)?.into_iter();
            at = text(page.next().unwrap_or(Value::Nil))?;
            for (key, blob) in pairs(page.next().unwrap_or(Value::Nil))? {
                let (key, blob) = (text(key)?, bytes(blob)?);
                let stored = match blob.strip_prefix(b"s") {
                    None => Value::BulkString(blob.to_vec()),
                    Some(id) => {
                        let mut command = redis::cmd("HGETALL");
                        command.arg([self.key("s:").as_bytes(), id].concat());
                        self.read_value(&command).await?
                    }
                };
                for (name, value) in state::values(stored)? {
                    self.put(Piece::State {
                        stage: stage.clone(),
                        key: key.clone(),
                        name,
                        value,
                    })
                    .await?;
                }
            }
            if at == "0" {
                return Ok(());
            }
        }
    }

    async fn dead_letters(&mut self, stage: &StageName) -> Result<(), End> {
        let stream = self.key(&format!("d:{stage}"));
        let mut after = "-".to_owned();
        loop {
            let mut command = redis::cmd("XRANGE");
            command
                .arg(&stream)
                .arg(&after)
                .arg("+")
                .arg("COUNT")
                .arg(limits::LETTERS_PAGE_MAX);
            let page = list(self.read_value(&command).await?)?;
            if page.is_empty() {
                return Ok(());
            }
            for entry in page {
                let mut entry = list(entry)?.into_iter();
                let id = text(entry.next().unwrap_or(Value::Nil))?;
                let fields = list(entry.next().unwrap_or(Value::Nil))?;
                let body = fields.into_iter().nth(1).unwrap_or(Value::Nil);
                let number = id.split('-').next().and_then(|id| id.parse().ok());
                self.put(Piece::DeadLetter {
                    stage: stage.clone(),
                    id: number.ok_or_else(|| Error::Corrupt(format!("`{id}` is not a dead letter's id")))?,
                    letter: record::decode_dead_letter(bytes(body)?)?,
                })
                .await?;
                after = format!("({id}");
            }
        }
    }

    async fn keys(&mut self, subject: &str) -> Result<(), End> {
        let (order, records) = (self.key(&format!("dx:{subject}")), self.key(&format!("dd:{subject}")));
        let mut from = 0;
        while let Some(found) = self
            .ranked(&order, &records, from, limits::LETTERS_PAGE_MAX, Bytes::clone)
            .await?
        {
            from += found.len() as u64;
            for (key, mut record) in found {
                if record.len() < 64 {
                    return Err(Error::Corrupt("an idempotency key's record is cut off".to_owned()).into());
                }
                let (mut fingerprint, mut request) = ([0; 32], [0; 16]);
                record.copy_to_slice(&mut fingerprint);
                record.copy_to_slice(&mut request);
                let expires_ms = record.get_u64_le();
                let request = RequestId(request);
                self.put(Piece::Key {
                    subject: subject
                        .parse()
                        .map_err(|_| Error::Corrupt(format!("`{subject}` is not a subject")))?,
                    key: text(Value::BulkString(key.to_vec()))?,
                    fingerprint: Digest(fingerprint),
                    request: (request != RequestId::default()).then_some(request),
                    expires_ms,
                    reply: match record.len() {
                        8 => None,
                        _ => Some(publish::decode_reply(record)?),
                    },
                })
                .await?;
            }
        }
        Ok(())
    }

    async fn sessions(&mut self) -> Result<(), End> {
        let (order, records) = (self.key("sx"), self.key("se"));
        let mut from = 0;
        while let Some(found) = self
            .ranked(&order, &records, from, limits::BACKUP_SLICE_MAX.into(), Bytes::clone)
            .await?
        {
            from += found.len() as u64;
            for (id, mut record) in found {
                let damaged = || Error::Corrupt("a session's record is cut off".to_owned());
                let id: [u8; 16] = id[..].try_into().map_err(|_| damaged())?;
                if record.len() < 16 {
                    return Err(damaged().into());
                }
                self.put(Piece::Session {
                    id: Uid(id),
                    high: record.get_u64_le(),
                    expires_ms: record.get_u64_le(),
                })
                .await?;
            }
        }
        Ok(())
    }
}

fn packed_layout(mut packed: Bytes) -> Result<Layout, Error> {
    if packed.is_empty() {
        // It was claimed by an earlier skep and not used since.
        return Ok(Layout::default());
    }
    if packed.len() < 28 {
        return Err(Error::Corrupt("a topic's layout is cut off".to_owned()));
    }
    let (born, generation) = (packed.get_u64_le(), packed.get_u64_le());
    let partitions = packed.get_u32_le();
    packed.advance(4);
    let count = |n: u32| u16::try_from(n).map_err(|_| Error::Corrupt("a topic has too many partitions".to_owned()));
    Ok(Layout {
        born,
        generation,
        partitions: count(partitions)?,
        former: count(packed.get_u32_le())?,
    })
}

fn part(value: Value) -> Result<Part, Error> {
    let mut row = list(value)?.into_iter();
    let mut next = || row.next().unwrap_or(Value::Nil);
    let (index, appended) = (small(next())?, number(next())?);
    let cursor = Cursor {
        entry: number(next())?,
        index: small(next())?,
    };
    let (consumed, unclean) = (number(next())?, small(next())?);
    let seal = text(next())?;
    let uid = bytes(next())?;
    let marks: u32 = small(next())?;
    Ok(Part {
        index,
        appended,
        consumed,
        cursor,
        unclean,
        seal: match seal.as_str() {
            "" => None,
            seal => Some(
                seal.parse()
                    .map_err(|_| Error::Corrupt("a seal is no number".to_owned()))?,
            ),
        },
        marked: match uid[..].try_into() {
            Ok(uid) if marks > 0 => Some((Uid(uid), marks)),
            _ => None,
        },
    })
}

/// Messages as frames take them, and apart what came after a seal.
fn runs(messages: Vec<Unread>, seal: Option<u64>) -> Vec<(bool, Vec<skep_model::message::Message>)> {
    let mut out: Vec<(bool, Vec<_>)> = Vec::new();
    let mut size = 0;
    for Unread { message, entry, .. } in messages {
        let behind = seal.is_some_and(|seal| entry >= seal);
        let bytes = message_bytes(&message);
        match out.last_mut() {
            Some((same, run))
                if *same == behind
                    && run.len() < limits::FRAME_MESSAGES_MAX
                    && size + bytes <= limits::FRAME_BYTES_MAX as u64 =>
            {
                size += bytes;
                run.push(message);
            }
            _ => {
                size = bytes;
                out.push((behind, vec![message]));
            }
        }
    }
    out
}
