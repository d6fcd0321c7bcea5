use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use skep_model::id::{CommitId, Digest, RequestId, Uid};
use skep_model::message::{Hop, Lap, Lineage, Message, Reply, ReplyResult, Request, TraceContext};
use skep_model::name::StageName;

use super::*;
use crate::{Cursor, DeadLetter, Parked, TimerDue, Work};

fn stage() -> impl Strategy<Value = StageName> {
    "[a-z0-9]{1,12}".prop_map(|s| s.parse().expect("a label"))
}

fn hop() -> impl Strategy<Value = Hop> {
    (stage(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(stage, started_us, took_us, batch)| Hop {
        stage,
        started_us,
        took_us,
        batch,
    })
}

prop_compose! {
    fn message()(
        uid in any::<[u8; 16]>(),
        key in proptest::option::of(".{0,20}"),
        headers in proptest::collection::vec((".{0,8}", ".{0,8}"), 0..3),
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        accepted_ms in any::<u64>(),
        request in proptest::option::of((any::<[u8; 16]>(), any::<u64>(), any::<bool>())),
        trace in proptest::option::of((any::<[u8; 16]>(), any::<[u8; 8]>(), any::<bool>())),
        lineage in proptest::option::of((any::<[u8; 16]>(), stage(), any::<[u8; 32]>())),
        hops in proptest::collection::vec(hop(), 0..3),
    ) -> Message {
        Message {
            uid: Uid(uid),
            key,
            headers,
            payload: payload.into(),
            accepted_ms,
            request: request.map(|(id, deadline_ms, keyed)| Request { id: RequestId(id), deadline_ms, keyed, share: deadline_ms / 2, streams: deadline_ms % 3 == 1 }),
            trace: trace.map(|(trace_id, span_id, sampled)| TraceContext { trace_id, span_id, sampled }),
            lineage: lineage.map(|(parent, stage, module)| Lineage { parent: Uid(parent), stage, module: Digest(module), origin: Uid(if accepted_ms % 2 == 0 { parent } else { uid }), laps: laps(accepted_ms) }),
            hops,
        }
    }
}

fn laps(n: u64) -> Vec<Lap> {
    let lap = |i: u64| Lap {
        from: format!("from-{i}").parse().unwrap(),
        to: "to".parse().unwrap(),
        times: u32::try_from(n >> 40).unwrap() + u32::try_from(i).unwrap(),
    };
    (0..n % 3).map(lap).collect()
}

fn work() -> impl Strategy<Value = Work> {
    prop_oneof![
        message().prop_map(Work::Message),
        (any::<[u8; 16]>(), ".{0,9}", ".{0,9}", any::<u64>()).prop_map(|(uid, key, name, at_ms)| Work::Timer {
            uid: Uid(uid),
            key,
            name,
            at_ms
        }),
    ]
}

fn result() -> impl Strategy<Value = ReplyResult> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..50).prop_map(|b| ReplyResult::Response(b.into())),
        (stage(), ".{0,9}", ".{0,9}", any::<Option<u64>>()).prop_map(|(stage, reason, detail, dead_letter)| {
            ReplyResult::Failed {
                stage,
                reason,
                detail,
                dead_letter,
            }
        }),
        stage().prop_map(|stage| ReplyResult::Expired { stage }),
        stage().prop_map(|stage| ReplyResult::Overloaded { stage }),
        (stage(), any::<[u8; 16]>(), any::<u64>()).prop_map(|(stage, by, share)| ReplyResult::Returned {
            stage,
            by: Uid(by),
            share
        }),
    ]
}

fn parked() -> impl Strategy<Value = Parked> {
    let ids = (any::<[u8; 16]>(), any::<u32>(), any::<u64>());
    (ids, ".{0,9}", work(), ".{0,9}").prop_map(|((uid, attempts, due_ms), lane, work, cause)| Parked {
        uid: Uid(uid),
        lane,
        work,
        attempts,
        due_ms,
        cause,
    })
}

fn piece() -> impl Strategy<Value = Piece> {
    let place = || (stage(), 0..256u16);
    let numbers = || (any::<u64>(), any::<u64>());
    let bytes = || proptest::collection::vec(any::<u8>(), 0..50);
    let reply = (any::<[u8; 16]>(), result()).prop_map(|(request, result)| Reply {
        request: RequestId(request),
        result,
        hops: Vec::new(),
    });
    prop_oneof![
        (place(), numbers(), any::<u16>()).prop_map(|((stage, partitions), (born, generation), former)| Piece::Topic {
            stage,
            layout: Layout {
                born,
                partitions,
                former,
                generation
            },
        }),
        (
            place(),
            any::<u32>(),
            proptest::option::of((any::<[u8; 16]>(), 1..u32::MAX)),
            any::<bool>()
        )
            .prop_map(|((stage, index), unclean, marked, sealed)| {
                let marked = marked.map(|(uid, times)| (Uid(uid), times));
                Piece::Partition {
                    stage,
                    index,
                    unclean,
                    marked,
                    sealed,
                }
            }),
        (place(), any::<bool>(), proptest::collection::vec(message(), 0..4)).prop_map(
            |((stage, index), behind, messages)| Piece::Messages {
                stage,
                index,
                behind,
                messages
            }
        ),
        (place(), parked()).prop_map(|((stage, index), parked)| Piece::Parked { stage, index, parked }),
        (place(), any::<[u8; 16]>(), ".{0,9}", ".{0,9}", any::<u64>()).prop_map(
            |((stage, index), uid, key, name, at_ms)| {
                let timer = TimerDue {
                    uid: Uid(uid),
                    key,
                    name,
                    at_ms,
                };
                Piece::Timer { stage, index, timer }
            }
        ),
        (stage(), ".{0,9}", ".{0,9}", bytes()).prop_map(|(stage, key, name, value)| Piece::State {
            stage,
            key,
            name,
            value: value.into(),
        }),
        (stage(), work(), numbers(), any::<[u8; 32]>()).prop_map(|(stage, work, (id, at_ms), module)| {
            let letter = DeadLetter {
                work,
                attempts: 3,
                reason: "fail".to_owned(),
                detail: String::new(),
                stderr: "said".to_owned(),
                module: Digest(module),
                at_ms,
            };
            Piece::DeadLetter { stage, id, letter }
        }),
        (
            ".{0,9}",
            any::<[u8; 32]>(),
            any::<Option<[u8; 16]>>(),
            any::<u64>(),
            proptest::option::of(reply)
        )
            .prop_map(|(key, fingerprint, request, expires_ms, reply)| Piece::Key {
                subject: "door".parse().expect("a subject"),
                key,
                fingerprint: Digest(fingerprint),
                request: request.map(RequestId),
                expires_ms,
                reply,
            }),
        (any::<[u8; 16]>(), numbers()).prop_map(|(id, (high, expires_ms))| Piece::Session {
            id: Uid(id),
            high,
            expires_ms,
        }),
        (stage(), any::<u64>()).prop_map(|(stage, born)| Piece::Removed { stage, born }),
    ]
}

fn frame(messages: &[Message]) -> Bytes {
    let mut run = Run::default();
    messages.iter().for_each(|m| run.push(m));
    let mut frame = FrameBuilder::default();
    run.pieces(0).for_each(|(bytes, size)| frame.push(bytes, size));
    frame.finish()
}

proptest! {
    #[test]
    fn frames_go_both_ways_and_are_what_prost_writes(messages in proptest::collection::vec(message(), 0..6)) {
        let record = frame(&messages);
        let as_prost = wire::Frame { messages: messages.iter().map(wire::Message::from).collect() };
        prop_assert_eq!(&record[HEAD..], &as_prost.encode_to_vec()[..]);
        prop_assert_eq!(decode_frame(record).unwrap(), messages);
    }

    #[test]
    fn parked_entries_go_both_ways(uid in any::<[u8; 16]>(), lane in ".{0,9}", work in work(), attempts: u32, due_ms: u64, cause in ".{0,9}") {
        let parked = Parked { uid: Uid(uid), lane, work, attempts, due_ms, cause };
        prop_assert_eq!(decode_parked(encode_parked(&parked).into()).unwrap(), parked);
    }

    #[test]
    fn timers_go_both_ways(uid in any::<[u8; 16]>(), key in ".{0,9}", name in ".{0,9}", at_ms: u64) {
        let timer = TimerDue { uid: Uid(uid), key, name, at_ms };
        prop_assert_eq!(decode_timer(encode_timer(&timer).into()).unwrap(), timer);
    }

    #[test]
    fn dead_letters_go_both_ways(work in work(), attempts: u32, text in ".{0,9}", module in any::<[u8; 32]>(), at_ms: u64) {
        let letter = DeadLetter {
            work, attempts, reason: text.clone(), detail: text.clone(), stderr: text, module: Digest(module), at_ms,
        };
        prop_assert_eq!(decode_dead_letter(encode_dead_letter(&letter).into()).unwrap(), letter);
    }

    #[test]
    fn replies_go_both_ways(request in any::<[u8; 16]>(), result in result(), hops in proptest::collection::vec(hop(), 0..3)) {
        let reply = Reply { request: RequestId(request), result, hops };
        prop_assert_eq!(decode_reply(encode_reply(&reply).into()).unwrap(), reply);
    }

    #[test]
    fn partitions_go_both_ways(
        seq: u64, last in any::<[u8; 16]>(), entry: u64, index: u32, unclean: u32,
        marked in proptest::option::of((any::<[u8; 16]>(), 1..u32::MAX)),
    ) {
        let marked = marked.map(|(uid, times)| (Uid(uid), times));
        let partition = Partition { seq, last: CommitId(last), cursor: Cursor { entry, index }, unclean, marked, seal: marked.map(|(_, n)| u64::from(n)) };
        prop_assert_eq!(decode_partition(encode_partition(&partition).into()).unwrap(), partition);
    }

    #[test]
    fn pieces_go_both_ways(piece in piece()) {
        prop_assert_eq!(decode_piece(encode_piece(&piece).into()).unwrap(), piece);
    }

    #[test]
    fn a_flipped_bit_in_a_piece_is_an_error(piece in piece(), at: prop::sample::Index, bit in 0..8u32) {
        let mut record = encode_piece(&piece);
        let at = at.index(record.len());
        record[at] ^= 1 << bit;
        prop_assert!(matches!(decode_piece(record.into()), Err(Error::Corrupt(_))));
    }

    #[test]
    fn a_flipped_bit_is_an_error(messages in proptest::collection::vec(message(), 1..4), at: prop::sample::Index, bit in 0..8u32) {
        let mut record = frame(&messages).to_vec();
        let at = at.index(record.len());
        record[at] ^= 1 << bit;
        prop_assert!(matches!(decode_frame(record.into()), Err(Error::Corrupt(_))));
    }

    #[test]
    fn a_cut_record_is_an_error(messages in proptest::collection::vec(message(), 1..4), at: prop::sample::Index) {
        let record = frame(&messages);
        let cut = record.slice(..at.index(record.len()));
        prop_assert!(decode_frame(cut).is_err());
    }

    /// Also behind a sound head, so that the checksum is not what saves the decoders.
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for kind in [Kind::Frame, Kind::Parked, Kind::Timer, Kind::DeadLetter, Kind::Reply, Kind::Partition, Kind::Piece] {
            for record in [Bytes::from(bytes.clone()), Bytes::from(seal(kind, &bytes))] {
                let _ = decode_frame(record.clone());
                let _ = decode_parked(record.clone());
                let _ = decode_timer(record.clone());
                let _ = decode_dead_letter(record.clone());
                let _ = decode_reply(record.clone());
                let _ = decode_piece(record.clone());
                let _ = decode_partition(record);
            }
        }
    }
}

#[test]
fn a_newer_format_says_to_upgrade() {
    let mut record = seal(Kind::State, b"x");
    record[0] = FORMAT + 1;
    let why = unseal(Kind::State, record.into()).unwrap_err().to_string();
    assert!(
        why.contains("state value: format 2, this skep reads up to 1: upgrade"),
        "{why}"
    );
}

#[test]
fn a_record_of_another_kind_is_damage() {
    assert!(unseal(Kind::Catalog, seal(Kind::State, b"x").into()).is_err());
    assert_eq!(&unseal(Kind::State, seal(Kind::State, b"x").into()).unwrap()[..], b"x");
}

#[test]
fn payloads_are_slices_of_the_record() {
    let payload = Bytes::from(vec![7; 10_000]);
    let record = frame(&[full(payload)]);
    let messages = decode_frame(record.clone()).unwrap();
    let within = record.as_ptr_range();
    assert!(within.contains(&messages[0].payload.as_ptr()), "the payload was copied");
}

/// A message with every field set.
fn full(payload: Bytes) -> Message {
    let stage: StageName = "before".parse().unwrap();
    Message {
        uid: Uid([1; 16]),
        key: Some("key".to_owned()),
        headers: vec![("a".to_owned(), "b".to_owned()), (String::new(), "é".to_owned())],
        payload,
        accepted_ms: 1_700_000_000_000,
        request: Some(Request {
            id: RequestId([2; 16]),
            deadline_ms: 1_700_000_030_000,
            keyed: true,
            share: 0,
            streams: false,
        }),
        trace: Some(TraceContext {
            trace_id: [3; 16],
            span_id: [4; 8],
            sampled: true,
        }),
        lineage: Some(Lineage {
            parent: Uid([5; 16]),
            stage: stage.clone(),
            module: Digest([6; 32]),
            origin: Uid([5; 16]),
            laps: Vec::new(),
        }),
        hops: vec![Hop {
            stage,
            started_us: 10,
            took_us: 20,
            batch: 30,
        }],
    }
}

fn small() -> Message {
    Message {
        uid: Uid([9; 16]),
        key: None,
        headers: Vec::new(),
        payload: Bytes::new(),
        accepted_ms: 0,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    }
}

/// Decodes the golden file of format 1 and writes it again: what earlier versions stored stays readable, byte for byte.
fn golden<T: PartialEq + std::fmt::Debug>(
    name: &str,
    value: &T,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(Bytes) -> Result<T, Error>,
) {
    let path = format!("{}/tests/golden/{name}.bin", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("SKEP_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, encode(value)).unwrap();
    }
    let stored = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}; set SKEP_WRITE_GOLDEN=1 to write it"));
    let decoded = decode(stored.clone().into()).unwrap();
    assert_eq!(&decoded, value, "{name} reads differently");
    assert!(
        encode(&decoded) == stored,
        "{name} is written differently: raise FORMAT and read both"
    );
}

fn pieces(payload: &Bytes) -> [(&'static str, Piece); 10] {
    let stage: StageName = "stage".parse().unwrap();
    let index = 3;
    let (uid, key, name) = (Uid([8; 16]), "key".to_owned(), "name".to_owned());
    let timer = TimerDue {
        uid,
        key: key.clone(),
        name: name.clone(),
        at_ms: 7,
    };
    let work = Work::Message(full(payload.clone()));
    let letter = DeadLetter {
        work: work.clone(),
        attempts: 5,
        reason: "fail".to_owned(),
        detail: "it failed".to_owned(),
        stderr: "panicked".to_owned(),
        module: Digest([6; 32]),
        at_ms: 11,
    };
    let parked = Parked {
        uid,
        lane: key.clone(),
        work,
        attempts: 2,
        due_ms: 9,
        cause: "trap".to_owned(),
    };
    let layout = Layout {
        born: 7,
        partitions: 16,
        former: 4,
        generation: 2,
    };
    let reply = Reply {
        request: RequestId([2; 16]),
        result: ReplyResult::Response(payload.clone()),
        hops: Vec::new(),
    };
    [
        (
            "topic",
            Piece::Topic {
                stage: stage.clone(),
                layout,
            },
        ),
        (
            "partition",
            Piece::Partition {
                stage: stage.clone(),
                index,
                unclean: 1,
                marked: Some((uid, 2)),
                sealed: true,
            },
        ),
        (
            "messages",
            Piece::Messages {
                stage: stage.clone(),
                index,
                behind: true,
                messages: vec![full(payload.clone()), small()],
            },
        ),
        (
            "parked",
            Piece::Parked {
                stage: stage.clone(),
                index,
                parked,
            },
        ),
        (
            "timer",
            Piece::Timer {
                stage: stage.clone(),
                index,
                timer,
            },
        ),
        (
            "state",
            Piece::State {
                stage: stage.clone(),
                key: key.clone(),
                name,
                value: payload.clone(),
            },
        ),
        (
            "dead-letter",
            Piece::DeadLetter {
                stage: stage.clone(),
                id: 4,
                letter,
            },
        ),
        (
            "key",
            Piece::Key {
                subject: "door".parse().unwrap(),
                key,
                fingerprint: Digest([5; 32]),
                request: Some(RequestId([2; 16])),
                expires_ms: 12,
                reply: Some(reply),
            },
        ),
        (
            "session",
            Piece::Session {
                id: uid,
                high: 13,
                expires_ms: 14,
            },
        ),
        ("removed", Piece::Removed { stage, born: 15 }),
    ]
}

#[test]
fn golden_files_read_and_write_as_ever() {
    let payload = Bytes::from_static(b"payload\0\xff");
    let message = full(payload.clone());
    let timer = TimerDue {
        uid: Uid([8; 16]),
        key: "key".to_owned(),
        name: "timer".to_owned(),
        at_ms: 7,
    };
    let messages = vec![message.clone(), small()];
    golden("frame", &messages, |m| frame(m).to_vec(), decode_frame);
    let mut round = messages.clone();
    round[0].lineage.as_mut().unwrap().laps = laps(2);
    golden("frame-laps", &round, |m| frame(m).to_vec(), decode_frame);
    let parked = Parked {
        uid: Uid([7; 16]),
        lane: "key".to_owned(),
        work: Work::Message(message.clone()),
        attempts: 2,
        due_ms: 9,
        cause: "trap".to_owned(),
    };
    golden("parked", &parked, encode_parked, decode_parked);
    golden("timer", &timer, encode_timer, decode_timer);
    let letter = DeadLetter {
        work: Work::Timer {
            uid: timer.uid,
            key: timer.key,
            name: timer.name,
            at_ms: timer.at_ms,
        },
        attempts: 5,
        reason: "fail".to_owned(),
        detail: "it failed".to_owned(),
        stderr: "panicked".to_owned(),
        module: Digest([6; 32]),
        at_ms: 11,
    };
    golden("dead-letter", &letter, encode_dead_letter, decode_dead_letter);
    let reply = Reply {
        request: RequestId([2; 16]),
        result: ReplyResult::Failed {
            stage: "before".parse().unwrap(),
            reason: "fail".to_owned(),
            detail: "it failed".to_owned(),
            dead_letter: Some(3),
        },
        hops: message.hops,
    };
    golden("reply", &reply, encode_reply, decode_reply);
    let partition = Partition {
        seq: 5,
        last: CommitId([4; 16]),
        cursor: Cursor { entry: 6, index: 7 },
        unclean: 1,
        marked: None,
        seal: None,
    };
    golden("partition", &partition, encode_partition, decode_partition);
    let marked = Partition {
        marked: Some((Uid([9; 16]), 2)),
        ..partition
    };
    let sealed = Partition {
        seal: Some(8),
        ..marked.clone()
    };
    golden("partition-sealed", &sealed, encode_partition, decode_partition);
    golden("partition-marked", &marked, encode_partition, decode_partition);
    let layout = Layout {
        born: 7,
        partitions: 16,
        former: 4,
        generation: 2,
    };
    golden("layout", &layout, encode_layout, decode_layout);
    let write = |value: Option<&Bytes>| StateWrite {
        topic: 3,
        key: "key".to_owned(),
        name: "name".to_owned(),
        value: value.cloned(),
    };
    let writes = vec![write(Some(&payload)), write(Some(&Bytes::new())), write(None)];
    golden("journal", &writes, |w| journal(w), decode_journal);
    for (name, piece) in pieces(&payload) {
        golden(&format!("piece-{name}"), &piece, encode_piece, decode_piece);
    }
    let raw = |kind: Kind| (move |v: &Bytes| seal(kind, v), move |r: Bytes| unseal(kind, r));
    let (write, read) = raw(Kind::State);
    golden("state", &payload, write, read);
    let (write, read) = raw(Kind::Catalog);
    golden("catalog", &payload, write, read);
}

fn journal(writes: &[StateWrite]) -> Vec<u8> {
    let mut body = JournalBody::default();
    for write in writes {
        let put = StatePut {
            key: write.key.clone(),
            name: write.name.clone(),
            value: write.value.clone(),
        };
        body.push(write.topic, &put);
    }
    body.finish()
}

proptest! {
    #[test]
    fn a_journal_that_grows_write_by_write_is_what_the_library_makes_of_all(
        writes in proptest::collection::vec(
            (any::<i64>(), ".{0,5}", ".{0,200}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200))),
            1..20,
        ),
    ) {
        let one = |(topic, key, name, value): &(i64, String, String, Option<Vec<u8>>)| StateWrite {
            topic: *topic,
            key: key.clone(),
            name: name.clone(),
            value: value.clone().map(Bytes::from),
        };
        let writes: Vec<StateWrite> = writes.iter().map(one).collect();
        let record = journal(&writes);
        let plain = wire::Journal {
            writes: writes
                .iter()
                .map(|w| wire::StateWrite { topic: w.topic, key: w.key.clone(), name: w.name.clone(), value: w.value.clone() })
                .collect(),
        };
        prop_assert_eq!(&record[HEAD..], plain.encode_to_vec());
        prop_assert_eq!(decode_journal(Bytes::from(record)).unwrap(), writes);
    }
}

fn frame_of(messages: &[Message]) -> Bytes {
    let mut run = Run::default();
    messages.iter().for_each(|message| run.push(message));
    let mut frame = FrameBuilder::default();
    run.pieces(0).for_each(|(encoded, size)| frame.push(encoded, size));
    frame.finish()
}

const MOST: Lists = Lists {
    messages: 10,
    entries: 64,
    laps: 8,
};

/// Each costs two bytes on the wire, and counts for nothing in any bound.
#[test]
fn lists_of_nothing_are_seen_before_they_are_in_memory() {
    let bare = Message {
        uid: Uid([7; 16]),
        key: None,
        headers: Vec::new(),
        payload: Bytes::new(),
        accepted_ms: 0,
        request: None,
        trace: None,
        lineage: None,
        hops: Vec::new(),
    };
    let many = |headers: usize| Message {
        headers: vec![(String::new(), String::new()); headers],
        ..bare.clone()
    };
    assert_eq!(frame_is_within(&frame_of(&[many(64)]), MOST), Ok(true));
    assert_eq!(frame_is_within(&frame_of(&[many(1), many(100_000)]), MOST), Ok(false));
    let messages = vec![bare.clone(); 11];
    assert_eq!(frame_is_within(&frame_of(&messages), MOST), Ok(false));
    let hop = Hop {
        stage: "s".parse().unwrap(),
        started_us: 0,
        took_us: 0,
        batch: 0,
    };
    let hops = Message {
        hops: vec![hop; 100_000],
        ..bare.clone()
    };
    assert_eq!(frame_is_within(&frame_of(&[hops]), MOST), Ok(false));
    let round = Message {
        lineage: Some(Lineage {
            parent: Uid([1; 16]),
            stage: "s".parse().unwrap(),
            module: Digest([0; 32]),
            origin: Uid([1; 16]),
            laps: laps(2).into_iter().cycle().take(100_000).collect(),
        }),
        ..bare
    };
    assert_eq!(frame_is_within(&frame_of(&[round]), MOST), Ok(false));
}

proptest! {
    #[test]
    fn whatever_a_frame_is_it_is_counted_or_refused(messages in proptest::collection::vec(message(), 0..5), cut in any::<prop::sample::Index>(), to in any::<u8>()) {
        let whole = frame_of(&messages);
        prop_assert_eq!(frame_is_within(&whole, MOST), Ok(true));
        // Damage that the checksum vouches for: what a stranger may write.
        let mut body = whole[HEAD..].to_vec();
        if !body.is_empty() {
            let at = cut.index(body.len());
            body[at] = to;
            body.truncate(body.len() - usize::from(to) % 7 % body.len());
        }
        let changed = Bytes::from(seal(Kind::Frame, &body));
        if decode_frame(changed.clone()).is_ok() {
            prop_assert!(frame_is_within(&changed, MOST).is_ok());
        }
    }
}
