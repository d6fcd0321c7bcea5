//! Every persisted record: a format version, a checksum and a prost body.
//!
//! ```text
//!   byte 0       1..5                     5..
//!   format = 1   crc32 (little endian)    body
//! ```
//! The checksum covers the kind of the record too, so a record read from the wrong place is damage and not data. A newer format
//! is refused with a message that says so; nothing in here panics on any bytes.

mod frame;
mod piece;
mod wire;

use bytes::{Buf, Bytes};
use skep_model::id::{CommitId, Uid};
use skep_model::message::Reply;

use crate::{Cursor, DeadLetter, Error, Parked, StatePut, TimerDue};

pub use frame::{FrameBuilder, Lists, Run, decode_frame, frame_is_within, message_bytes};
pub use piece::{Piece, decode_piece, encode_piece};

/// The format that this skep writes, and the newest that it reads.
pub const FORMAT: u8 = 1;

/// Bytes before the body.
pub(crate) const HEAD: usize = 5;

/// What a record is. The numbers are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Frame = 1,
    Parked = 2,
    Timer = 3,
    DeadLetter = 4,
    Reply = 5,
    Partition = 6,
    State = 7,
    Catalog = 8,
    Journal = 9,
    Layout = 10,
    Piece = 11,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Parked => "parked message",
            Self::Timer => "timer",
            Self::DeadLetter => "dead letter",
            Self::Reply => "stored reply",
            Self::Partition => "partition",
            Self::State => "state value",
            Self::Catalog => "catalog record",
            Self::Journal => "journal of state",
            Self::Layout => "topic's layout",
            Self::Piece => "piece of a backup",
        }
    }
}

/// A partition's row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Partition {
    pub seq: u64,
    pub last: CommitId,
    pub cursor: Cursor,
    pub unclean: u32,
    /// The attempt mark and how often in a row. Not a format of its own: a skep that does not know it forgets a suspicion.
    pub marked: Option<(Uid, u32)>,
    /// Entries from here on came after the rescale that is under way.
    pub seal: Option<u64>,
}

/// A topic's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// The latest birth of its stage that somebody used it as.
    pub born: u64,
    /// 0 in what an earlier schema left: the first use says.
    pub partitions: u16,
    /// Partitions before the last rescale.
    pub former: u16,
    pub generation: u64,
}

/// A write of state, as the journal of the embedded backend holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateWrite {
    /// The row of its topic.
    pub topic: i64,
    pub key: String,
    pub name: String,
    /// `None` deletes.
    pub value: Option<Bytes>,
}

/// A journal row in the making: each write goes in as it happens, so that none is copied to wait for the flush.
#[derive(Debug, Default)]
pub struct JournalBody(Vec<u8>);

impl JournalBody {
    pub fn push(&mut self, topic: i64, put: &StatePut) {
        if self.0.is_empty() {
            self.0.extend_from_slice(&[0; HEAD]);
        }
        wire::push_write(&mut self.0, topic, put);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The record.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        finish(Kind::Journal, &mut self.0);
        self.0
    }
}

/// # Errors
/// [`Error::Corrupt`]: a newer format, or damage.
pub fn decode_journal(record: Bytes) -> Result<Vec<StateWrite>, Error> {
    Ok(unseal_message::<wire::Journal>(Kind::Journal, record)?.into_model())
}

fn checksum(kind: Kind, body: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&[kind as u8, FORMAT]);
    hash.update(body);
    hash.finalize()
}

/// Writes the head into the space left for it at the start of `record`.
fn finish(kind: Kind, record: &mut [u8]) {
    let (head, body) = record.split_at_mut(HEAD);
    head[0] = FORMAT;
    head[1..].copy_from_slice(&checksum(kind, body).to_le_bytes());
}

/// Wraps raw bytes (a state value, a catalog record).
#[must_use]
pub fn seal(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD + body.len());
    record.extend_from_slice(&[0; HEAD]);
    record.extend_from_slice(body);
    finish(kind, &mut record);
    record
}

fn seal_message(kind: Kind, body: &impl prost::Message) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD + body.encoded_len());
    record.extend_from_slice(&[0; HEAD]);
    body.encode_raw(&mut record);
    finish(kind, &mut record);
    record
}

/// The body of a record, a slice of it.
///
/// # Errors
/// [`Error::Corrupt`]: a newer format, or damage.
pub fn unseal(kind: Kind, mut record: Bytes) -> Result<Bytes, Error> {
    let damaged = |what: &str| Error::Corrupt(format!("{}: {what}", kind.name()));
    let format = *record.first().ok_or_else(|| damaged("empty"))?;
    if format > FORMAT {
        return Err(damaged(&format!(
            "format {format}, this skep reads up to {FORMAT}: upgrade"
        )));
    }
    if format == 0 || record.len() < HEAD {
        return Err(damaged("not a record"));
    }
    record.advance(1);
    let stored = record.get_u32_le();
    if stored != checksum(kind, &record) {
        return Err(damaged("the checksum does not match: the disk or the file is damaged"));
    }
    Ok(record)
}

fn unseal_message<M: prost::Message + Default>(kind: Kind, record: Bytes) -> Result<M, Error> {
    M::decode(unseal(kind, record)?).map_err(|e| Error::Corrupt(format!("{}: {e}", kind.name())))
}

/// A value that the checksum vouches for but that makes no sense: written by a defect, not by a disk.
fn senseless(kind: Kind, what: &str) -> Error {
    Error::Corrupt(format!("{}: {what}", kind.name()))
}

macro_rules! record {
    ($encode:ident, $decode:ident, $kind:expr, $wire:ty, $model:ty) => {
        #[must_use]
        pub fn $encode(value: &$model) -> Vec<u8> {
            seal_message($kind, &<$wire>::from(value))
        }

        /// # Errors
        /// [`Error::Corrupt`]: a newer format, or damage.
        pub fn $decode(record: Bytes) -> Result<$model, Error> {
            unseal_message::<$wire>($kind, record)?
                .into_model()
                .map_err(|what| senseless($kind, what))
        }
    };
}

record!(encode_parked, decode_parked, Kind::Parked, wire::Parked, Parked);
record!(encode_timer, decode_timer, Kind::Timer, wire::Timer, TimerDue);
record!(
    encode_dead_letter,
    decode_dead_letter,
    Kind::DeadLetter,
    wire::DeadLetter,
    DeadLetter
);
record!(encode_reply, decode_reply, Kind::Reply, wire::Reply, Reply);
record!(encode_layout, decode_layout, Kind::Layout, wire::Layout, Layout);
record!(
    encode_partition,
    decode_partition,
    Kind::Partition,
    wire::Partition,
    Partition
);

#[cfg(test)]
mod tests;
