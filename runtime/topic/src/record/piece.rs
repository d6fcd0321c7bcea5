//! Pieces of a Swarm's life: what a backup carries from any store to any other. They say what is there and nothing of where it lay.

use bytes::Bytes;
use skep_model::id::{Digest, RequestId, Uid};
use skep_model::message::{Message, Reply};
use skep_model::name::{StageName, Subject};

use super::wire::{self, halves, join};
use super::{Kind, Layout, message_bytes, seal_message, senseless, unseal_message};
use crate::{DeadLetter, Error, Parked, TimerDue, Work};

type What = &'static str;

/// One piece. A topic comes before all else of its stage, a partition before what is in it, dead letters before keys.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Topic {
        stage: StageName,
        layout: Layout,
    },
    Partition {
        stage: StageName,
        index: u16,
        unclean: u32,
        marked: Option<(Uid, u32)>,
        /// A rescale is under way, and this partition has not handed over yet.
        sealed: bool,
    },
    /// Unread messages of one partition, in order; no more than a frame takes.
    Messages {
        stage: StageName,
        index: u16,
        /// They came after the rescale that is under way.
        behind: bool,
        messages: Vec<Message>,
    },
    /// In the order of its lane.
    Parked {
        stage: StageName,
        index: u16,
        parked: Parked,
    },
    Timer {
        stage: StageName,
        index: u16,
        timer: TimerDue,
    },
    /// May come twice, then the same.
    State {
        stage: StageName,
        key: String,
        name: String,
        value: Bytes,
    },
    /// In the order of their ids.
    DeadLetter {
        stage: StageName,
        id: u64,
        letter: DeadLetter,
    },
    Key {
        subject: Subject,
        key: String,
        fingerprint: Digest,
        request: Option<RequestId>,
        expires_ms: u64,
        reply: Option<Reply>,
    },
    Session {
        id: Uid,
        high: u64,
        expires_ms: u64,
    },
    /// A stage that was removed, and which birth of it was last.
    Removed {
        stage: StageName,
        born: u64,
    },
}

impl Piece {
    /// About what it weighs, for bounds on what is under way.
    #[must_use]
    pub fn weight(&self) -> usize {
        let bytes = |message: &Message| usize::try_from(message_bytes(message)).unwrap_or(usize::MAX);
        let work = |work: &Work| match work {
            Work::Message(message) => bytes(message),
            Work::Timer { key, name, .. } => key.len() + name.len(),
        };
        let inside = match self {
            Self::Messages { messages, .. } => messages.iter().map(|m| bytes(m) + 64).sum(),
            Self::Parked { parked, .. } => work(&parked.work) + parked.cause.len(),
            Self::Timer { timer, .. } => timer.key.len() + timer.name.len(),
            Self::State { key, name, value, .. } => key.len() + name.len() + value.len(),
            Self::DeadLetter { letter, .. } => work(&letter.work) + letter.detail.len() + letter.stderr.len(),
            Self::Key { key, reply, .. } => key.len() + reply.as_ref().map_or(0, |r| super::encode_reply(r).len()),
            Self::Topic { .. } | Self::Partition { .. } | Self::Session { .. } | Self::Removed { .. } => 0,
        };
        inside + 128
    }
}

#[must_use]
pub fn encode_piece(piece: &Piece) -> Vec<u8> {
    seal_message(
        Kind::Piece,
        &WirePiece {
            any: Some(piece.into()),
        },
    )
}

/// # Errors
/// [`Error::Corrupt`]: a newer format, or damage.
pub fn decode_piece(record: Bytes) -> Result<Piece, Error> {
    let piece: WirePiece = unseal_message(Kind::Piece, record)?;
    match piece.any {
        // A kind that a later skep knows.
        None => Err(Error::Corrupt(
            "backup: a piece that this skep does not know: upgrade".to_owned(),
        )),
        Some(any) => any.into_model().map_err(|what| senseless(Kind::Piece, what)),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct WirePiece {
    #[prost(oneof = "Any", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    any: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Any {
    #[prost(message, tag = "1")]
    Topic(Topic),
    #[prost(message, tag = "2")]
    Partition(Partition),
    #[prost(message, tag = "3")]
    Messages(Messages),
    #[prost(message, tag = "4")]
    Parked(InPartition),
    #[prost(message, tag = "5")]
    Timer(InPartition),
    #[prost(message, tag = "6")]
    State(State),
    #[prost(message, tag = "7")]
    DeadLetter(Letter),
    #[prost(message, tag = "8")]
    Key(Key),
    #[prost(message, tag = "9")]
    Session(Session),
    #[prost(message, tag = "10")]
    Removed(Removed),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Topic {
    #[prost(string, tag = "1")]
    stage: String,
    #[prost(message, optional, tag = "2")]
    layout: Option<wire::Layout>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Partition {
    #[prost(string, tag = "1")]
    stage: String,
    #[prost(uint32, tag = "2")]
    index: u32,
    #[prost(uint32, tag = "3")]
    unclean: u32,
    #[prost(fixed64, tag = "4")]
    marked_hi: u64,
    #[prost(fixed64, tag = "5")]
    marked_lo: u64,
    /// 0: no mark.
    #[prost(uint32, tag = "6")]
    marks: u32,
    #[prost(bool, tag = "7")]
    sealed: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Messages {
    #[prost(string, tag = "1")]
    stage: String,
    #[prost(uint32, tag = "2")]
    index: u32,
    #[prost(bool, tag = "3")]
    behind: bool,
    #[prost(message, repeated, tag = "4")]
    messages: Vec<wire::Message>,
}

/// Something that waits in a partition.
#[derive(Clone, PartialEq, prost::Message)]
struct InPartition {
    #[prost(string, tag = "1")]
    stage: String,
    #[prost(uint32, tag = "2")]
    index: u32,
    #[prost(message, optional, tag = "3")]
    parked: Option<wire::Parked>,
    #[prost(message, optional, tag = "4")]
    timer: Option<wire::Timer>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(string, tag = "1")]
    stage: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(bytes = "bytes", tag = "4")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Letter {
    #[prost(string, tag = "1")]
    stage: String,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(message, optional, tag = "3")]
    letter: Option<wire::DeadLetter>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Key {
    #[prost(string, tag = "1")]
    subject: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(bytes = "bytes", tag = "3")]
    fingerprint: Bytes,
    /// Empty: none.
    #[prost(bytes = "bytes", tag = "4")]
    request: Bytes,
    #[prost(uint64, tag = "5")]
    expires_ms: u64,
    #[prost(message, optional, tag = "6")]
    reply: Option<wire::Reply>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Session {
    #[prost(fixed64, tag = "1")]
    id_hi: u64,
    #[prost(fixed64, tag = "2")]
    id_lo: u64,
    #[prost(uint64, tag = "3")]
    high: u64,
    #[prost(uint64, tag = "4")]
    expires_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Removed {
    #[prost(string, tag = "1")]
    stage: String,
    #[prost(uint64, tag = "2")]
    born: u64,
}

impl From<&Piece> for Any {
    fn from(piece: &Piece) -> Self {
        match piece {
            Piece::Topic { stage, layout } => Self::Topic(Topic {
                stage: stage.to_string(),
                layout: Some(layout.into()),
            }),
            Piece::Partition {
                stage,
                index,
                unclean,
                marked,
                sealed,
            } => {
                let (uid, marks) = marked.unwrap_or_default();
                let (marked_hi, marked_lo) = halves(&uid.0);
                Self::Partition(Partition {
                    stage: stage.to_string(),
                    index: (*index).into(),
                    unclean: *unclean,
                    marked_hi,
                    marked_lo,
                    marks,
                    sealed: *sealed,
                })
            }
            Piece::Messages {
                stage,
                index,
                behind,
                messages,
            } => Self::Messages(Messages {
                stage: stage.to_string(),
                index: (*index).into(),
                behind: *behind,
                messages: messages.iter().map(wire::Message::from).collect(),
            }),
            Piece::Parked { stage, index, parked } => Self::Parked(InPartition {
                stage: stage.to_string(),
                index: (*index).into(),
                parked: Some(parked.into()),
                timer: None,
            }),
            Piece::Timer { stage, index, timer } => Self::Timer(InPartition {
                stage: stage.to_string(),
                index: (*index).into(),
                parked: None,
                timer: Some(timer.into()),
            }),
            Piece::State {
                stage,
                key,
                name,
                value,
            } => Self::State(State {
                stage: stage.to_string(),
                key: key.clone(),
                name: name.clone(),
                value: value.clone(),
            }),
            Piece::DeadLetter { stage, id, letter } => Self::DeadLetter(Letter {
                stage: stage.to_string(),
                id: *id,
                letter: Some(letter.into()),
            }),
            Piece::Key {
                subject,
                key,
                fingerprint,
                request,
                expires_ms,
                reply,
            } => Self::Key(Key {
                subject: subject.to_string(),
                key: key.clone(),
                fingerprint: Bytes::copy_from_slice(&fingerprint.0),
                request: request.map_or_else(Bytes::new, |r| Bytes::copy_from_slice(&r.0)),
                expires_ms: *expires_ms,
                reply: reply.as_ref().map(wire::Reply::from),
            }),
            Piece::Session { id, high, expires_ms } => {
                let (id_hi, id_lo) = halves(&id.0);
                Self::Session(Session {
                    id_hi,
                    id_lo,
                    high: *high,
                    expires_ms: *expires_ms,
                })
            }
            Piece::Removed { stage, born } => Self::Removed(Removed {
                stage: stage.to_string(),
                born: *born,
            }),
        }
    }
}

fn stage(name: &str) -> Result<StageName, What> {
    name.parse().map_err(|_| "a stage's name is not a name")
}

fn index(index: u32) -> Result<u16, What> {
    u16::try_from(index)
        .ok()
        .filter(|index| *index < skep_model::limits::PARTITIONS_MAX)
        .ok_or("a partition's number is too large")
}

impl Any {
    fn into_model(self) -> Result<Piece, What> {
        Ok(match self {
            Self::Topic(t) => Piece::Topic {
                stage: stage(&t.stage)?,
                layout: t.layout.ok_or("a topic without layout")?.into_model()?,
            },
            Self::Partition(p) => Piece::Partition {
                stage: stage(&p.stage)?,
                index: index(p.index)?,
                unclean: p.unclean,
                marked: (p.marks > 0).then(|| (Uid(join(p.marked_hi, p.marked_lo)), p.marks)),
                sealed: p.sealed,
            },
            Self::Messages(m) => Piece::Messages {
                stage: stage(&m.stage)?,
                index: index(m.index)?,
                behind: m.behind,
                messages: {
                    let mut seen = None;
                    let messages = m.messages.into_iter().map(|m| m.into_model(&mut seen));
                    messages.collect::<Result<_, _>>()?
                },
            },
            Self::Parked(p) => Piece::Parked {
                stage: stage(&p.stage)?,
                index: index(p.index)?,
                parked: p.parked.ok_or("nothing is parked")?.into_model()?,
            },
            Self::Timer(t) => Piece::Timer {
                stage: stage(&t.stage)?,
                index: index(t.index)?,
                timer: t.timer.ok_or("no timer")?.into_model()?,
            },
            Self::State(s) => Piece::State {
                stage: stage(&s.stage)?,
                key: s.key,
                name: s.name,
                value: s.value,
            },
            Self::DeadLetter(l) => Piece::DeadLetter {
                stage: stage(&l.stage)?,
                id: l.id,
                letter: l.letter.ok_or("no letter")?.into_model()?,
            },
            Self::Key(k) => Piece::Key {
                subject: k.subject.parse().map_err(|_| "a subject is none")?,
                key: k.key,
                fingerprint: k.fingerprint[..]
                    .try_into()
                    .map(Digest)
                    .map_err(|_| "a fingerprint has not 32 bytes")?,
                request: match k.request.len() {
                    0 => None,
                    _ => Some(RequestId(
                        k.request[..]
                            .try_into()
                            .map_err(|_| "a request's id has not 16 bytes")?,
                    )),
                },
                expires_ms: k.expires_ms,
                reply: k.reply.map(wire::Reply::into_model).transpose()?,
            },
            Self::Session(s) => Piece::Session {
                id: Uid(join(s.id_hi, s.id_lo)),
                high: s.high,
                expires_ms: s.expires_ms,
            },
            Self::Removed(r) => Piece::Removed {
                stage: stage(&r.stage)?,
                born: r.born,
            },
        })
    }
}
