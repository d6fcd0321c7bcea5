//! Frames, numbered.

use skep_model::id::Digest;
use skep_model::scope::SwarmId;
use skep_topic::record::{Piece, encode_piece};

use super::{Counts, Head, Kind, MAGIC};

/// Where a file stands. A copy of it is a point to return to.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    number: u64,
    counts: Counts,
}

pub(super) fn checksum(number: u64, kind: u8, body: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&number.to_le_bytes());
    hash.update(&[kind]);
    hash.update(body);
    hash.finalize()
}

impl Writer {
    /// Each appends to `out`.
    pub fn begin(&mut self, head: &Head, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        self.frame(Kind::Head, &serde_json::to_vec(head).expect("plain data"), out);
    }

    pub fn life(&mut self, swarm: &SwarmId, out: &mut Vec<u8>) {
        self.counts.lives += 1;
        self.frame(Kind::Life, swarm.to_string().as_bytes(), out);
    }

    pub fn piece(&mut self, piece: &Piece, out: &mut Vec<u8>) {
        self.counts.pieces += 1;
        self.frame(Kind::Piece, &encode_piece(piece), out);
    }

    pub fn life_end(&mut self, out: &mut Vec<u8>) {
        self.frame(Kind::LifeEnd, &[], out);
    }

    /// Its chunks follow.
    pub fn file(&mut self, digest: Digest, bytes: usize, out: &mut Vec<u8>) {
        self.counts.files += 1;
        let mut body = digest.0.to_vec();
        body.extend_from_slice(&(bytes as u64).to_le_bytes());
        self.frame(Kind::File, &body, out);
    }

    pub fn chunk(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        self.frame(Kind::Chunk, chunk, out);
    }

    pub fn record(&mut self, key: &str, value: &[u8], out: &mut Vec<u8>) {
        self.counts.records += 1;
        let mut body = Vec::with_capacity(2 + key.len() + value.len());
        body.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_le_bytes());
        body.extend_from_slice(key.as_bytes());
        body.extend_from_slice(value);
        self.frame(Kind::Record, &body, out);
    }

    pub fn end(&mut self, out: &mut Vec<u8>) {
        let counts = serde_json::to_vec(&self.counts).expect("plain data");
        self.frame(Kind::End, &counts, out);
    }

    fn frame(&mut self, kind: Kind, body: &[u8], out: &mut Vec<u8>) {
        out.push(kind as u8);
        out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&checksum(self.number, kind as u8, body).to_le_bytes());
        out.extend_from_slice(body);
        self.number += 1;
    }
}
