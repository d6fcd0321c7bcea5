//! The file of a backup: everything that a platform keeps, in a form that no store has for itself.
//!
//! ```text
//!   "skepback"  Head  { Life Piece… LifeEnd }…  { File Chunk… }…  Record…  End
//!
//!   each:  kind: u8   length: u32   crc32: u32 of number, kind and body   body
//! ```
//! A frame's number, counted from 0, is in its checksum and nowhere else: one that is missing, repeated or moved is damage. The end
//! counts what came before it, so a file that was cut off says so. Integers are little endian.

mod reader;
mod writer;

use serde::{Deserialize, Serialize};
use skep_model::scope::SwarmId;
use skep_proto::v1;
use skep_topic::record::Piece;

pub use reader::{At, Bad, Contents, FileAt, LifeAt, Reader, scan};
pub use writer::Writer;

pub const MAGIC: [u8; 8] = *b"skepback";
/// Newer is refused.
pub const FORMAT: u32 = 1;
/// Bytes before a frame's body.
const HEAD_BYTES: usize = 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Head`] as JSON.
    Head = 1,
    /// `tenant/swarm/incarnation`.
    Life = 2,
    /// [`skep_topic::record::encode_piece`].
    Piece = 3,
    LifeEnd = 4,
    /// The digest of a component or a model, 32 bytes, and its length, 8. Records say which it is, and whose.
    File = 5,
    Chunk = 6,
    /// A catalog record: the key's length in two bytes, the key, the value.
    Record = 7,
    /// [`Counts`] as JSON.
    End = 8,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        const ALL: [Kind; 8] = [
            Kind::Head,
            Kind::Life,
            Kind::Piece,
            Kind::LifeEnd,
            Kind::File,
            Kind::Chunk,
            Kind::Record,
            Kind::End,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub format: u32,
    /// Tells this backup from any other.
    pub id: String,
    pub taken_ms: u64,
    /// Of the skep that took it.
    pub version: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub lives: u64,
    pub pieces: u64,
    #[serde(rename = "modules")]
    pub files: u64,
    pub records: u64,
}

/// What is in a life, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub unread: u64,
    pub parked: u64,
    pub timers: u64,
    pub dead: u64,
    pub keys: u64,
    pub calls: u64,
    last: Option<(String, String)>,
}

impl Tally {
    pub fn add(&mut self, piece: &Piece) {
        match piece {
            Piece::Messages { messages, .. } => self.unread += messages.len() as u64,
            Piece::Parked { .. } => self.parked += 1,
            Piece::Timer { .. } => self.timers += 1,
            Piece::DeadLetter { .. } => self.dead += 1,
            Piece::Key { .. } | Piece::Session { .. } => self.calls += 1,
            // The values of a key come together.
            Piece::State { stage, key, .. } => {
                let same = |(s, k): &(String, String)| *s == stage.as_str() && k == key;
                if !self.last.as_ref().is_some_and(same) {
                    self.keys += 1;
                    self.last = Some((stage.to_string(), key.clone()));
                }
            }
            Piece::Topic { .. } | Piece::Partition { .. } | Piece::Removed { .. } => {}
        }
    }

    #[must_use]
    pub fn told(&self, swarm: &SwarmId, revision: u64) -> v1::BackupSwarm {
        v1::BackupSwarm {
            name: swarm.path().to_string(),
            revision,
            unread: self.unread,
            parked: self.parked,
            timers: self.timers,
            dead: self.dead,
            keys: self.keys,
            calls: self.calls,
        }
    }
}
