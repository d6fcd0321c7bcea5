//! The bodies of records as prost messages, and the way to and from the nouns.
//!
//! Ids of 128 bits are two `fixed64` (big endian halves): sixteen bytes on disk and no allocation.

use bytes::Bytes;
use skep_model::id::{CommitId, Digest, RequestId, Uid};
use skep_model::message as model;
use skep_model::name::StageName;

use crate::{Cursor, Work};

/// What makes no sense in a body.
type What = &'static str;

pub(super) fn halves(id: &[u8; 16]) -> (u64, u64) {
    let whole = u128::from_be_bytes(*id);
    ((whole >> 64) as u64, whole as u64)
}

pub(super) fn join(hi: u64, lo: u64) -> [u8; 16] {
    (u128::from(hi) << 64 | u128::from(lo)).to_be_bytes()
}

fn stage(name: &str) -> Result<StageName, What> {
    name.parse().map_err(|_| "a stage's name is not a name")
}

fn digest(bytes: &[u8]) -> Result<Digest, What> {
    bytes.try_into().map(Digest).map_err(|_| "a digest has not 32 bytes")
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Frame {
    #[prost(message, repeated, tag = "1")]
    pub messages: Vec<Message>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    #[prost(fixed64, tag = "1")]
    pub uid_hi: u64,
    #[prost(fixed64, tag = "2")]
    pub uid_lo: u64,
    #[prost(string, optional, tag = "3")]
    pub key: Option<String>,
    #[prost(message, repeated, tag = "4")]
    pub headers: Vec<Header>,
    #[prost(bytes = "bytes", tag = "5")]
    pub payload: Bytes,
    #[prost(uint64, tag = "6")]
    pub accepted_ms: u64,
    #[prost(message, optional, tag = "7")]
    pub request: Option<Request>,
    #[prost(message, optional, tag = "8")]
    pub trace: Option<Trace>,
    #[prost(message, optional, tag = "9")]
    pub lineage: Option<Lineage>,
    #[prost(message, repeated, tag = "10")]
    pub hops: Vec<Hop>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Header {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Request {
    #[prost(fixed64, tag = "1")]
    pub id_hi: u64,
    #[prost(fixed64, tag = "2")]
    pub id_lo: u64,
    #[prost(uint64, tag = "3")]
    pub deadline_ms: u64,
    #[prost(bool, tag = "4")]
    pub keyed: bool,
    #[prost(uint64, tag = "5")]
    pub share: u64,
    /// A skep that does not know it drops it: then the caller gets one response.
    #[prost(bool, tag = "6")]
    pub streams: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Trace {
    #[prost(fixed64, tag = "1")]
    pub trace_hi: u64,
    #[prost(fixed64, tag = "2")]
    pub trace_lo: u64,
    #[prost(fixed64, tag = "3")]
    pub span: u64,
    #[prost(bool, tag = "4")]
    pub sampled: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Lineage {
    #[prost(fixed64, tag = "1")]
    pub parent_hi: u64,
    #[prost(fixed64, tag = "2")]
    pub parent_lo: u64,
    #[prost(string, tag = "3")]
    pub stage: String,
    #[prost(bytes = "bytes", tag = "4")]
    pub module: Bytes,
    /// Both 0: the parent. So it is for what one Bee away from the door published, and in what a skep wrote that did not know it.
    #[prost(fixed64, tag = "5")]
    pub origin_hi: u64,
    #[prost(fixed64, tag = "6")]
    pub origin_lo: u64,
    #[prost(message, repeated, tag = "7")]
    pub laps: Vec<Lap>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Lap {
    #[prost(string, tag = "1")]
    pub from: String,
    #[prost(string, tag = "2")]
    pub to: String,
    #[prost(uint32, tag = "3")]
    pub times: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Hop {
    #[prost(string, tag = "1")]
    pub stage: String,
    #[prost(uint64, tag = "2")]
    pub started_us: u64,
    #[prost(uint64, tag = "3")]
    pub took_us: u64,
    #[prost(uint32, tag = "4")]
    pub batch: u32,
}

pub(super) fn origin(lineage: &model::Lineage) -> (u64, u64) {
    if lineage.origin == lineage.parent {
        (0, 0)
    } else {
        halves(&lineage.origin.0)
    }
}

impl From<&model::Request> for Request {
    fn from(r: &model::Request) -> Self {
        let (id_hi, id_lo) = halves(&r.id.0);
        Self {
            id_hi,
            id_lo,
            deadline_ms: r.deadline_ms,
            keyed: r.keyed,
            share: r.share,
            streams: r.streams,
        }
    }
}

impl From<&model::TraceContext> for Trace {
    fn from(t: &model::TraceContext) -> Self {
        let (trace_hi, trace_lo) = halves(&t.trace_id);
        Self {
            trace_hi,
            trace_lo,
            span: u64::from_be_bytes(t.span_id),
            sampled: t.sampled,
        }
    }
}

impl From<&model::Lap> for Lap {
    fn from(l: &model::Lap) -> Self {
        Self {
            from: l.from.as_str().to_owned(),
            to: l.to.as_str().to_owned(),
            times: l.times,
        }
    }
}

impl Lap {
    fn into_model(self) -> Result<model::Lap, What> {
        Ok(model::Lap {
            from: stage(&self.from)?,
            to: stage(&self.to)?,
            times: self.times,
        })
    }
}

impl From<&model::Hop> for Hop {
    fn from(h: &model::Hop) -> Self {
        Self {
            stage: h.stage.as_str().to_owned(),
            started_us: h.started_us,
            took_us: h.took_us,
            batch: h.batch,
        }
    }
}

impl Hop {
    fn into_model(self) -> Result<model::Hop, What> {
        Ok(model::Hop {
            stage: stage(&self.stage)?,
            started_us: self.started_us,
            took_us: self.took_us,
            batch: self.batch,
        })
    }
}

fn hops(hops: Vec<Hop>) -> Result<Vec<model::Hop>, What> {
    hops.into_iter().map(Hop::into_model).collect()
}

impl From<&model::Message> for Message {
    fn from(m: &model::Message) -> Self {
        let (uid_hi, uid_lo) = halves(&m.uid.0);
        Self {
            uid_hi,
            uid_lo,
            key: m.key.clone(),
            headers: m
                .headers
                .iter()
                .map(|(name, value)| Header {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect(),
            payload: m.payload.clone(),
            accepted_ms: m.accepted_ms,
            request: m.request.as_ref().map(Request::from),
            trace: m.trace.as_ref().map(Trace::from),
            lineage: m.lineage.as_ref().map(|l| {
                let (parent_hi, parent_lo) = halves(&l.parent.0);
                let (origin_hi, origin_lo) = origin(l);
                Lineage {
                    parent_hi,
                    parent_lo,
                    stage: l.stage.as_str().to_owned(),
                    module: Bytes::copy_from_slice(&l.module.0),
                    origin_hi,
                    origin_lo,
                    laps: l.laps.iter().map(Lap::from).collect(),
                }
            }),
            hops: m.hops.iter().map(Hop::from).collect(),
        }
    }
}

impl Message {
    /// `seen` remembers the last stage named: in one frame it is mostly the same.
    pub(super) fn into_model(self, seen: &mut Option<StageName>) -> Result<model::Message, What> {
        let lineage = match self.lineage {
            None => None,
            Some(l) => {
                let stage = match seen {
                    Some(name) if name.as_str() == l.stage => name.clone(),
                    _ => seen.insert(stage(&l.stage)?).clone(),
                };
                Some(model::Lineage {
                    parent: Uid(join(l.parent_hi, l.parent_lo)),
                    stage,
                    module: digest(&l.module)?,
                    origin: Uid(match (l.origin_hi, l.origin_lo) {
                        (0, 0) => join(l.parent_hi, l.parent_lo),
                        (hi, lo) => join(hi, lo),
                    }),
                    laps: l.laps.into_iter().map(Lap::into_model).collect::<Result<_, _>>()?,
                })
            }
        };
        Ok(model::Message {
            uid: Uid(join(self.uid_hi, self.uid_lo)),
            key: self.key,
            headers: self.headers.into_iter().map(|h| (h.name, h.value)).collect(),
            payload: self.payload,
            accepted_ms: self.accepted_ms,
            request: self.request.map(|r| model::Request {
                id: RequestId(join(r.id_hi, r.id_lo)),
                deadline_ms: r.deadline_ms,
                keyed: r.keyed,
                share: r.share,
                streams: r.streams,
            }),
            trace: self.trace.map(|t| model::TraceContext {
                trace_id: join(t.trace_hi, t.trace_lo),
                span_id: t.span.to_be_bytes(),
                sampled: t.sampled,
            }),
            lineage,
            hops: hops(self.hops)?,
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Timer {
    #[prost(fixed64, tag = "1")]
    pub uid_hi: u64,
    #[prost(fixed64, tag = "2")]
    pub uid_lo: u64,
    #[prost(string, tag = "3")]
    pub key: String,
    #[prost(string, tag = "4")]
    pub name: String,
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
}

impl From<&crate::TimerDue> for Timer {
    fn from(t: &crate::TimerDue) -> Self {
        let (uid_hi, uid_lo) = halves(&t.uid.0);
        Self {
            uid_hi,
            uid_lo,
            key: t.key.clone(),
            name: t.name.clone(),
            at_ms: t.at_ms,
        }
    }
}

impl Timer {
    pub(super) fn into_model(self) -> Result<crate::TimerDue, What> {
        Ok(crate::TimerDue {
            uid: Uid(join(self.uid_hi, self.uid_lo)),
            key: self.key,
            name: self.name,
            at_ms: self.at_ms,
        })
    }
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[expect(clippy::large_enum_variant, reason = "nearly all of it is messages")]
pub enum AnyWork {
    #[prost(message, tag = "1")]
    Message(Message),
    #[prost(message, tag = "2")]
    Timer(Timer),
}

fn work_of(work: &Work) -> AnyWork {
    match work {
        Work::Message(m) => AnyWork::Message(m.into()),
        Work::Timer { uid, key, name, at_ms } => {
            let (uid_hi, uid_lo) = halves(&uid.0);
            AnyWork::Timer(Timer {
                uid_hi,
                uid_lo,
                key: key.clone(),
                name: name.clone(),
                at_ms: *at_ms,
            })
        }
    }
}

fn work_into(work: Option<AnyWork>) -> Result<Work, What> {
    match work {
        None => Err("neither a message nor a timer"),
        Some(AnyWork::Message(m)) => Ok(Work::Message(m.into_model(&mut None)?)),
        Some(AnyWork::Timer(t)) => {
            let crate::TimerDue { uid, key, name, at_ms } = t.into_model()?;
            Ok(Work::Timer { uid, key, name, at_ms })
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Parked {
    #[prost(oneof = "AnyWork", tags = "1, 2")]
    pub work: Option<AnyWork>,
    #[prost(fixed64, tag = "3")]
    pub uid_hi: u64,
    #[prost(fixed64, tag = "4")]
    pub uid_lo: u64,
    #[prost(string, tag = "5")]
    pub lane: String,
    #[prost(uint32, tag = "6")]
    pub attempts: u32,
    #[prost(uint64, tag = "7")]
    pub due_ms: u64,
    #[prost(string, tag = "8")]
    pub cause: String,
}

impl From<&crate::Parked> for Parked {
    fn from(p: &crate::Parked) -> Self {
        let (uid_hi, uid_lo) = halves(&p.uid.0);
        Self {
            work: Some(work_of(&p.work)),
            uid_hi,
            uid_lo,
            lane: p.lane.clone(),
            attempts: p.attempts,
            due_ms: p.due_ms,
            cause: p.cause.clone(),
        }
    }
}

impl Parked {
    pub(super) fn into_model(self) -> Result<crate::Parked, What> {
        Ok(crate::Parked {
            uid: Uid(join(self.uid_hi, self.uid_lo)),
            lane: self.lane,
            work: work_into(self.work)?,
            attempts: self.attempts,
            due_ms: self.due_ms,
            cause: self.cause,
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeadLetter {
    #[prost(oneof = "AnyWork", tags = "1, 2")]
    pub work: Option<AnyWork>,
    #[prost(uint32, tag = "3")]
    pub attempts: u32,
    #[prost(string, tag = "4")]
    pub reason: String,
    #[prost(string, tag = "5")]
    pub detail: String,
    #[prost(string, tag = "6")]
    pub stderr: String,
    #[prost(bytes = "bytes", tag = "7")]
    pub module: Bytes,
    #[prost(uint64, tag = "8")]
    pub at_ms: u64,
}

impl From<&crate::DeadLetter> for DeadLetter {
    fn from(d: &crate::DeadLetter) -> Self {
        Self {
            work: Some(work_of(&d.work)),
            attempts: d.attempts,
            reason: d.reason.clone(),
            detail: d.detail.clone(),
            stderr: d.stderr.clone(),
            module: Bytes::copy_from_slice(&d.module.0),
            at_ms: d.at_ms,
        }
    }
}

impl DeadLetter {
    pub(super) fn into_model(self) -> Result<crate::DeadLetter, What> {
        Ok(crate::DeadLetter {
            work: work_into(self.work)?,
            attempts: self.attempts,
            reason: self.reason,
            detail: self.detail,
            stderr: self.stderr,
            module: digest(&self.module)?,
            at_ms: self.at_ms,
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Failed {
    #[prost(string, tag = "1")]
    pub stage: String,
    #[prost(string, tag = "2")]
    pub reason: String,
    #[prost(string, tag = "3")]
    pub detail: String,
    #[prost(uint64, optional, tag = "4")]
    pub dead_letter: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ReplyResult {
    #[prost(bytes = "bytes", tag = "1")]
    Response(Bytes),
    #[prost(message, tag = "2")]
    Failed(Failed),
    #[prost(string, tag = "3")]
    Expired(String),
    #[prost(string, tag = "4")]
    Overloaded(String),
    #[prost(message, tag = "8")]
    Returned(Returned),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Returned {
    #[prost(string, tag = "1")]
    pub stage: String,
    #[prost(fixed64, tag = "2")]
    pub by_hi: u64,
    #[prost(fixed64, tag = "3")]
    pub by_lo: u64,
    #[prost(uint64, tag = "4")]
    pub share: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    #[prost(oneof = "ReplyResult", tags = "1, 2, 3, 4, 8")]
    pub result: Option<ReplyResult>,
    #[prost(fixed64, tag = "5")]
    pub request_hi: u64,
    #[prost(fixed64, tag = "6")]
    pub request_lo: u64,
    #[prost(message, repeated, tag = "7")]
    pub hops: Vec<Hop>,
}

impl From<&model::Reply> for Reply {
    fn from(r: &model::Reply) -> Self {
        let (request_hi, request_lo) = halves(&r.request.0);
        Self {
            result: Some(match &r.result {
                model::ReplyResult::Response(bytes) => ReplyResult::Response(bytes.clone()),
                model::ReplyResult::Failed {
                    stage,
                    reason,
                    detail,
                    dead_letter,
                } => ReplyResult::Failed(Failed {
                    stage: stage.as_str().to_owned(),
                    reason: reason.clone(),
                    detail: detail.clone(),
                    dead_letter: *dead_letter,
                }),
                model::ReplyResult::Expired { stage } => ReplyResult::Expired(stage.as_str().to_owned()),
                model::ReplyResult::Overloaded { stage } => ReplyResult::Overloaded(stage.as_str().to_owned()),
                model::ReplyResult::Returned { stage, by, share } => {
                    let (by_hi, by_lo) = halves(&by.0);
                    ReplyResult::Returned(Returned {
                        stage: stage.as_str().to_owned(),
                        by_hi,
                        by_lo,
                        share: *share,
                    })
                }
            }),
            request_hi,
            request_lo,
            hops: r.hops.iter().map(Hop::from).collect(),
        }
    }
}

impl Reply {
    pub(super) fn into_model(self) -> Result<model::Reply, What> {
        let result = match self.result.ok_or("no result")? {
            ReplyResult::Response(bytes) => model::ReplyResult::Response(bytes),
            ReplyResult::Failed(f) => model::ReplyResult::Failed {
                stage: stage(&f.stage)?,
                reason: f.reason,
                detail: f.detail,
                dead_letter: f.dead_letter,
            },
            ReplyResult::Expired(name) => model::ReplyResult::Expired { stage: stage(&name)? },
            ReplyResult::Overloaded(name) => model::ReplyResult::Overloaded { stage: stage(&name)? },
            ReplyResult::Returned(r) => model::ReplyResult::Returned {
                stage: stage(&r.stage)?,
                by: Uid(join(r.by_hi, r.by_lo)),
                share: r.share,
            },
        };
        Ok(model::Reply {
            request: RequestId(join(self.request_hi, self.request_lo)),
            result,
            hops: hops(self.hops)?,
        })
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Partition {
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    #[prost(fixed64, tag = "2")]
    pub last_hi: u64,
    #[prost(fixed64, tag = "3")]
    pub last_lo: u64,
    #[prost(uint64, tag = "4")]
    pub entry: u64,
    #[prost(uint32, tag = "5")]
    pub index: u32,
    #[prost(uint32, tag = "6")]
    pub unclean: u32,
    #[prost(fixed64, tag = "7")]
    pub marked_hi: u64,
    #[prost(fixed64, tag = "8")]
    pub marked_lo: u64,
    /// 0: no mark.
    #[prost(uint32, tag = "9")]
    pub marks: u32,
    #[prost(uint64, optional, tag = "10")]
    pub seal: Option<u64>,
}

impl From<&super::Partition> for Partition {
    fn from(p: &super::Partition) -> Self {
        let (last_hi, last_lo) = halves(&p.last.0);
        let (marked, marks) = p.marked.unwrap_or_default();
        let (marked_hi, marked_lo) = halves(&marked.0);
        Self {
            marked_hi,
            marked_lo,
            marks,
            seal: p.seal,
            seq: p.seq,
            last_hi,
            last_lo,
            entry: p.cursor.entry,
            index: p.cursor.index,
            unclean: p.unclean,
        }
    }
}

impl Partition {
    pub(super) fn into_model(self) -> Result<super::Partition, What> {
        Ok(super::Partition {
            seq: self.seq,
            last: CommitId(join(self.last_hi, self.last_lo)),
            cursor: Cursor {
                entry: self.entry,
                index: self.index,
            },
            unclean: self.unclean,
            marked: (self.marks > 0).then(|| (Uid(join(self.marked_hi, self.marked_lo)), self.marks)),
            seal: self.seal,
        })
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Layout {
    #[prost(uint64, tag = "1")]
    pub born: u64,
    #[prost(uint32, tag = "2")]
    pub partitions: u32,
    #[prost(uint32, tag = "3")]
    pub former: u32,
    #[prost(uint64, tag = "4")]
    pub generation: u64,
}

impl From<&super::Layout> for Layout {
    fn from(layout: &super::Layout) -> Self {
        Self {
            born: layout.born,
            partitions: layout.partitions.into(),
            former: layout.former.into(),
            generation: layout.generation,
        }
    }
}

impl Layout {
    pub(super) fn into_model(self) -> Result<super::Layout, What> {
        let count = |n: u32| u16::try_from(n).map_err(|_| "too many partitions");
        Ok(super::Layout {
            born: self.born,
            partitions: count(self.partitions)?,
            former: count(self.former)?,
            generation: self.generation,
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Journal {
    #[prost(message, repeated, tag = "1")]
    pub writes: Vec<StateWrite>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StateWrite {
    #[prost(int64, tag = "1")]
    pub topic: i64,
    #[prost(string, tag = "2")]
    pub key: String,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub value: Option<Bytes>,
}

/// Appends a [`StateWrite`] to an encoded [`Journal`], from what it is made of.
pub(super) fn push_write(journal: &mut Vec<u8>, topic: i64, put: &crate::StatePut) {
    use prost::encoding::{WireType, bytes, encode_key, encode_varint, encoded_len_varint, int64, key_len, string};
    let length = |tag, bytes: usize| key_len(tag) + encoded_len_varint(bytes as u64) + bytes;
    let mut len = 0;
    // Proto3 leaves out what is as good as not there.
    if topic != 0 {
        len += int64::encoded_len(1, &topic);
    }
    if !put.key.is_empty() {
        len += length(2, put.key.len());
    }
    if !put.name.is_empty() {
        len += length(3, put.name.len());
    }
    if let Some(value) = &put.value {
        len += length(4, value.len());
    }
    encode_key(1, WireType::LengthDelimited, journal);
    encode_varint(len as u64, journal);
    if topic != 0 {
        int64::encode(1, &topic, journal);
    }
    if !put.key.is_empty() {
        string::encode(2, &put.key, journal);
    }
    if !put.name.is_empty() {
        string::encode(3, &put.name, journal);
    }
    if let Some(value) = &put.value {
        bytes::encode(4, value, journal);
    }
}

impl Journal {
    pub(super) fn into_model(self) -> Vec<super::StateWrite> {
        let writes = self.writes.into_iter().map(|w| super::StateWrite {
            topic: w.topic,
            key: w.key,
            name: w.name,
            value: w.value,
        });
        writes.collect()
    }
}
