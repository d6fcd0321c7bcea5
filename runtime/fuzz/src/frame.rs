//! Every record that a store, a journal or a backup holds: what an owner reads when it takes over, and what a restore reads of a file of others.
//!
//! The first byte chooses the kind, and whether the rest is a whole record or a body, to which head and checksum are put: a fuzzer does not guess
//! checksums.

use std::fmt::Debug;

use skep_model::Bytes;
use skep_topic::Error;
use skep_topic::record::{
    FORMAT, FrameBuilder, Kind, Run, decode_dead_letter, decode_frame, decode_journal, decode_layout, decode_parked,
    decode_partition, decode_piece, decode_reply, decode_timer, encode_dead_letter, encode_layout, encode_parked,
    encode_partition, encode_piece, encode_reply, encode_timer, message_bytes, seal, unseal,
};

const KINDS: [Kind; 11] = [
    Kind::Frame,
    Kind::Parked,
    Kind::Timer,
    Kind::DeadLetter,
    Kind::Reply,
    Kind::Partition,
    Kind::State,
    Kind::Catalog,
    Kind::Journal,
    Kind::Layout,
    Kind::Piece,
];

pub fn run(bytes: &[u8]) -> bool {
    let Some((choice, rest)) = bytes.split_first() else {
        return false;
    };
    let kind = KINDS[usize::from(choice & 0x7f) % KINDS.len()];
    let record = if choice & 0x80 == 0 {
        Bytes::from(seal(kind, rest))
    } else {
        Bytes::copy_from_slice(rest)
    };
    match kind {
        Kind::Frame => frame(record),
        Kind::Parked => same(record, decode_parked, encode_parked),
        Kind::Timer => same(record, decode_timer, encode_timer),
        Kind::DeadLetter => same(record, decode_dead_letter, encode_dead_letter),
        Kind::Reply => same(record, decode_reply, encode_reply),
        Kind::Partition => same(record, decode_partition, encode_partition),
        Kind::Layout => same(record, decode_layout, encode_layout),
        Kind::Piece => {
            if let Ok(piece) = decode_piece(record.clone()) {
                // Counted before it is handed on.
                assert!(piece.weight() >= 128);
            }
            same(record, decode_piece, encode_piece)
        }
        Kind::Journal => decode_journal(record).is_ok(),
        Kind::State | Kind::Catalog => match unseal(kind, record.clone()) {
            Ok(body) => {
                assert_eq!((seal(kind, &body), record[0]), (record.to_vec(), FORMAT));
                true
            }
            Err(_) => false,
        },
    }
}

/// What is read, written and read again is the same.
fn same<T: PartialEq + Debug>(record: Bytes, decode: fn(Bytes) -> Result<T, Error>, encode: fn(&T) -> Vec<u8>) -> bool {
    let Ok(value) = decode(record) else { return false };
    let again = decode(encode(&value).into());
    assert!(
        again.as_ref().is_ok_and(|again| *again == value),
        "{value:?} became {again:?}"
    );
    true
}

fn frame(record: Bytes) -> bool {
    let Ok(messages) = decode_frame(record) else {
        return false;
    };
    let (mut run, mut frame, mut size) = (Run::default(), FrameBuilder::default(), 0);
    for message in &messages {
        run.push(message);
        size += message_bytes(message);
    }
    for (encoded, bytes) in run.pieces(0) {
        frame.push(encoded, bytes);
    }
    assert_eq!((run.len(), frame.size()), (messages.len(), size));
    let again = decode_frame(frame.finish());
    assert!(
        again.as_ref().is_ok_and(|again| *again == messages),
        "{messages:?} became {again:?}"
    );
    true
}
