//! Frames: runs of messages stored as one record.
//!
//! A frame's body is a repeated field, which is the concatenation of its elements. So messages are encoded once, by whoever
//! brings them, and the writer only joins the pieces and adds head and checksum. The encoder writes from borrowed messages; that
//! its bytes are those of the prost structs is a test.

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use prost::encoding::{self, WireType, encode_key, encode_varint, encoded_len_varint};
use skep_model::message::{Hop, Lineage, Message};

use super::wire::{self, halves};
use super::{HEAD, Kind, finish, senseless, unseal};
use crate::Error;

/// What a message counts for in bounds: key, headers and payload.
#[must_use]
pub fn message_bytes(message: &Message) -> u64 {
    let headers: usize = message.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
    (message.key.as_ref().map_or(0, String::len) + headers + message.payload.len()) as u64
}

/// Messages for one place, encoded.
#[derive(Debug, Clone, Default)]
pub struct Run {
    bytes: Vec<u8>,
    /// For each message: where its encoding ends, and what it counts for.
    marks: Vec<(u32, u32)>,
    scratch: Vec<u8>,
}

impl Run {
    pub fn push(&mut self, message: &Message) {
        self.scratch.clear();
        encode_message(message, &mut self.scratch);
        encode_key(1, WireType::LengthDelimited, &mut self.bytes);
        encode_varint(self.scratch.len() as u64, &mut self.bytes);
        self.bytes.extend_from_slice(&self.scratch);
        let end = u32::try_from(self.bytes.len()).expect("a run is far below 4 GiB: doors bound a call");
        self.marks
            .push((end, u32::try_from(message_bytes(message)).unwrap_or(u32::MAX)));
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// The encoding and the size of each message from `from` on.
    pub fn pieces(&self, from: usize) -> impl Iterator<Item = (&[u8], u64)> {
        (from..self.marks.len()).map(|i| {
            let start = if i == 0 { 0 } else { self.marks[i - 1].0 as usize };
            let (end, size) = self.marks[i];
            (&self.bytes[start..end as usize], u64::from(size))
        })
    }
}

/// Joins encoded messages to a frame.
#[derive(Debug)]
pub struct FrameBuilder {
    buf: Vec<u8>,
    messages: u32,
    size: u64,
}

impl Default for FrameBuilder {
    fn default() -> Self {
        Self {
            buf: vec![0; HEAD],
            messages: 0,
            size: 0,
        }
    }
}

impl FrameBuilder {
    pub fn push(&mut self, encoded: &[u8], size: u64) {
        self.buf.extend_from_slice(encoded);
        self.messages += 1;
        self.size += size;
    }

    #[must_use]
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// What its messages count for.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    #[must_use]
    pub fn finish(mut self) -> Bytes {
        finish(Kind::Frame, &mut self.buf);
        self.buf.into()
    }
}

/// The messages of a frame. Payloads are slices of `record`.
///
/// # Errors
/// [`Error::Corrupt`]: a newer format, or damage.
pub fn decode_frame(record: Bytes) -> Result<Vec<Message>, Error> {
    let frame =
        wire::Frame::decode(unseal(Kind::Frame, record)?).map_err(|e| senseless(Kind::Frame, &e.to_string()))?;
    let mut stage = None;
    frame
        .messages
        .into_iter()
        .map(|m| m.into_model(&mut stage))
        .collect::<Result<_, _>>()
        .map_err(|what| senseless(Kind::Frame, what))
}

/// What a frame of a stranger may have in each message: lists whose entries may be empty cost nothing on the wire, and much in memory.
#[derive(Debug, Clone, Copy)]
pub struct Lists {
    pub messages: usize,
    /// Headers and hops of one message, together.
    pub entries: usize,
    /// Circles that one message went round in.
    pub laps: usize,
}

/// Counts what a frame holds before anything is allocated for it. `Ok(false)`: more than that. What else is wrong with it, [`decode_frame`] finds.
///
/// # Errors
/// [`Error::Corrupt`]: a newer format, or damage.
pub fn frame_is_within(record: &Bytes, most: Lists) -> Result<bool, Error> {
    /// Single fields of a message, each of which a stranger may repeat.
    const OTHERS: usize = 32;
    let mut frame = unseal(Kind::Frame, record.clone())?;
    let mut messages = 0;
    while frame.has_remaining() {
        let Some((tag, mut message)) = field(&mut frame)? else {
            continue;
        };
        if tag != 1 {
            continue;
        }
        messages += 1;
        let (mut fields, mut laps) = (0, 0);
        while message.has_remaining() {
            fields += 1;
            if let Some((9, mut lineage)) = field(&mut message)? {
                while lineage.has_remaining() {
                    laps += 1;
                    field(&mut lineage)?;
                }
            }
            if fields > most.entries + OTHERS || laps > most.laps + OTHERS {
                return Ok(false);
            }
        }
        if messages > most.messages {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes one field off: its tag and bytes, if it has a length.
fn field(from: &mut Bytes) -> Result<Option<(u32, Bytes)>, Error> {
    let bad = |what: prost::DecodeError| senseless(Kind::Frame, &what.to_string());
    let (tag, kind) = encoding::decode_key(from).map_err(bad)?;
    if kind != WireType::LengthDelimited {
        encoding::skip_field(kind, tag, from, encoding::DecodeContext::default()).map_err(bad)?;
        return Ok(None);
    }
    let length = encoding::decode_varint(from).map_err(bad)?;
    match usize::try_from(length)
        .ok()
        .filter(|length| *length <= from.remaining())
    {
        Some(length) => Ok(Some((tag, from.split_to(length)))),
        None => Err(senseless(Kind::Frame, "a field is longer than what it is in")),
    }
}

fn put(tag: u32, value: &[u8], buf: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, buf);
    encode_varint(value.len() as u64, buf);
    buf.extend_from_slice(value);
}

/// As prost: what is empty is left out.
fn put_some(tag: u32, value: &[u8], buf: &mut Vec<u8>) {
    if !value.is_empty() {
        put(tag, value, buf);
    }
}

fn some_len(value: &[u8]) -> usize {
    if value.is_empty() {
        0
    } else {
        // Tags below 16 take one byte.
        1 + encoded_len_varint(value.len() as u64) + value.len()
    }
}

fn put_fixed(tag: u32, value: u64, buf: &mut Vec<u8>) {
    if value != 0 {
        encoding::fixed64::encode(tag, &value, buf);
    }
}

fn fixed_len(value: u64) -> usize {
    if value == 0 { 0 } else { 9 }
}

fn put_uint(tag: u32, value: u64, buf: &mut Vec<u8>) {
    if value != 0 {
        encoding::uint64::encode(tag, &value, buf);
    }
}

fn uint_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

fn put_nested(tag: u32, len: usize, buf: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, buf);
    encode_varint(len as u64, buf);
}

fn encode_message(m: &Message, buf: &mut Vec<u8>) {
    let (hi, lo) = halves(&m.uid.0);
    put_fixed(1, hi, buf);
    put_fixed(2, lo, buf);
    if let Some(key) = &m.key {
        put(3, key.as_bytes(), buf);
    }
    for (name, value) in &m.headers {
        put_nested(4, some_len(name.as_bytes()) + some_len(value.as_bytes()), buf);
        put_some(1, name.as_bytes(), buf);
        put_some(2, value.as_bytes(), buf);
    }
    put_some(5, &m.payload, buf);
    put_uint(6, m.accepted_ms, buf);
    if let Some(request) = &m.request {
        encoding::message::encode(7, &wire::Request::from(request), buf);
    }
    if let Some(trace) = &m.trace {
        encoding::message::encode(8, &wire::Trace::from(trace), buf);
    }
    if let Some(lineage) = &m.lineage {
        encode_lineage(lineage, buf);
    }
    for hop in &m.hops {
        encode_hop(hop, buf);
    }
}

fn encode_lineage(l: &Lineage, buf: &mut Vec<u8>) {
    let (hi, lo) = halves(&l.parent.0);
    let (origin_hi, origin_lo) = wire::origin(l);
    let stage = l.stage.as_str().as_bytes();
    let uids: usize = [hi, lo, origin_hi, origin_lo].into_iter().map(fixed_len).sum();
    let laps: Vec<wire::Lap> = l.laps.iter().map(wire::Lap::from).collect();
    let laps_len = encoding::message::encoded_len_repeated(7, &laps);
    put_nested(9, uids + some_len(stage) + some_len(&l.module.0) + laps_len, buf);
    put_fixed(1, hi, buf);
    put_fixed(2, lo, buf);
    put_some(3, stage, buf);
    put_some(4, &l.module.0, buf);
    put_fixed(5, origin_hi, buf);
    put_fixed(6, origin_lo, buf);
    encoding::message::encode_repeated(7, &laps, buf);
}

fn encode_hop(h: &Hop, buf: &mut Vec<u8>) {
    let stage = h.stage.as_str().as_bytes();
    let batch = u64::from(h.batch);
    put_nested(
        10,
        some_len(stage) + uint_len(h.started_us) + uint_len(h.took_us) + uint_len(batch),
        buf,
    );
    put_some(1, stage, buf);
    put_uint(2, h.started_us, buf);
    put_uint(3, h.took_us, buf);
    put_uint(4, batch, buf);
}
