//! Appends from doors.

use std::sync::Arc;

use bytes::Bytes;
use redis::Value;
use skep_model::env::Entropy;
use skep_model::id::{CommitId, RequestId};
use skep_model::limits;
use skep_model::message::{Reply, ReplyResult};

use super::args::{Args, Bundle, Positions};
use super::commit::{timer_member, timer_record};
use super::reply::{bytes, list, number, text};
use super::{Core, names};
use crate::{Accepted, Call, CallResult, Error, Once, Publish, Refused, TopicSpec, record};

/// What the store remembers of a reply: the id of its dead letter, which only the commit knew, and the reply.
pub(super) fn decode_reply(stored: Bytes) -> Result<Reply, Error> {
    let damaged = || Error::Corrupt("a stored reply is cut off".to_owned());
    let letter: [u8; 8] = stored.get(..8).and_then(|b| b.try_into().ok()).ok_or_else(damaged)?;
    let mut reply = record::decode_reply(stored.slice(8..))?;
    name_letter(&mut reply, u64::from_le_bytes(letter));
    Ok(reply)
}

pub(super) fn name_letter(reply: &mut Reply, letter: u64) {
    if let ReplyResult::Failed { dead_letter, .. } = &mut reply.result
        && dead_letter.is_none()
        && letter > 0
    {
        *dead_letter = Some(letter);
    }
}

/// The request that a call carries, if it is one.
pub(super) fn request_of(call: &Call) -> Option<RequestId> {
    let mut messages = call.to.iter().flat_map(|(_, messages)| messages);
    messages.find_map(|m| m.request).map(|r| r.id)
}

/// The twelve bytes that all new frames of one script share; a counter makes them a uid.
pub(super) fn fresh(entropy: &dyn Entropy) -> [u8; 12] {
    let mut out = [0; 12];
    out.copy_from_slice(&entropy.bits128()[..12]);
    out
}

/// Partitions as `1,5,7,`.
pub(super) fn listed(partitions: &[u16]) -> String {
    partitions.iter().map(|p| format!("{p},")).collect()
}

pub(super) fn command(redis: &Core, publish: &Publish) -> Result<Args, Error> {
    let mut args = redis.args(super::scripts::Script::Publish, &names::meta(&publish.swarm));
    args.bytes(&redis.link.options.node).bytes(&fresh(&*redis.entropy));
    args.num(limits::FRAME_MESSAGES_MAX)
        .num(limits::FRAME_BYTES_MAX)
        .num(limits::FRAME_SPLIT_BYTES);
    args.num(limits::INBOX_GATEWAY_PERCENT)
        .num(limits::DEDUP_KEYS_MAX)
        .num(limits::REPLY_BYTES_MAX)
        .num(limits::SESSIONS_MAX)
        .num(limits::EXPIRED_ROWS_MAX);
    let mut topics: Vec<(Arc<TopicSpec>, bool, Vec<u16>)> = Vec::new();
    let mut calls = Vec::with_capacity(publish.calls.len());
    for call in &publish.calls {
        let request = request_of(call);
        let mut bundles = Vec::with_capacity(call.to.len());
        for (spec, messages) in &call.to {
            // Calls of one publish may come from before and behind another revision: where they differ, in the number of partitions above all, each
            // is held against the store as what it was made for.
            let told = redis.told(spec);
            let at = match topics.iter().position(|(known, ..)| *known == told) {
                Some(at) => at,
                None => {
                    topics.push((Arc::clone(&told), false, Vec::new()));
                    topics.len() - 1
                }
            };
            let mut bundle = Bundle::new(told);
            messages.iter().for_each(|message| bundle.push(message));
            if let Once::Letter { timer: Some(timer), .. } = &call.once {
                let place = bundle.to.partition_of_key(&timer.key);
                topics[at].2.push(place);
            }
            topics[at].1 |= bundle.is_loose();
            topics[at].2.extend(bundle.partitions());
            bundles.push((at, bundle));
        }
        calls.push((&call.once, request, bundles));
    }
    args.num(topics.len());
    for (spec, loose, partitions) in &topics {
        args.text(spec.id.stage().as_str())
            .num(spec.born)
            .num(spec.inbox.messages)
            .num(spec.inbox.bytes)
            .num(spec.partitions)
            .flag(*loose)
            .text(&listed(partitions));
    }
    args.num(calls.len());
    for (once, request, bundles) in calls {
        let mut positions = Positions::Empty;
        match once {
            Once::No => {
                args.bytes(b"-");
            }
            Once::Key {
                subject,
                key,
                fingerprint,
                expires_ms,
            } => {
                args.bytes(b"k").text(subject.as_str()).text(key);
                args.bytes(&fingerprint.0)
                    .bytes(&request.unwrap_or_default().0)
                    .num(*expires_ms);
            }
            Once::Session {
                id,
                first,
                again_max,
                expires_ms,
            } => {
                args.bytes(b"s")
                    .bytes(&id.0)
                    .num(*first)
                    .num(*again_max)
                    .num(*expires_ms);
                positions = Positions::Written;
            }
            Once::Letter { id, timer } => {
                args.bytes(b"l").num(*id).flag(timer.is_some());
                if let Some(timer) = timer {
                    let place = bundles[0].1.to.partition_of_key(&timer.key);
                    args.num(place).bytes(&timer_member(&timer.key, &timer.name));
                    args.num(timer.at_ms).bytes(&timer_record(timer));
                    args.bytes(&CommitId::random(&*redis.entropy).0);
                }
            }
        }
        args.num(bundles.iter().map(|(_, b)| b.len()).max().unwrap_or(0));
        args.num(bundles.len());
        for (at, bundle) in bundles {
            args.num(at + 1).num(bundle.len());
            bundle.write(&mut args, positions);
        }
    }
    Ok(args)
}

/// The answer to one call.
pub(super) fn answer(value: Value) -> Result<CallResult, Error> {
    let mut items = list(value)?.into_iter();
    let mut next = || items.next().unwrap_or(Value::Nil);
    Ok(match text(next())?.as_str() {
        "A" => Ok(Accepted::Appended {
            skipped: number(next())?,
        }),
        "D" => {
            let request = RequestId(super::reply::id(next())?);
            let letter = number(next())?;
            let stored = bytes(next())?;
            let reply = if stored.is_empty() {
                None
            } else {
                let mut reply = record::decode_reply(stored)?;
                name_letter(&mut reply, letter);
                Some(reply)
            };
            Ok(Accepted::Duplicate {
                request: (request != RequestId::default()).then_some(request),
                reply,
            })
        }
        "R" => Err(Refused::KeyReused),
        "L" => Err(Refused::NoLetter),
        "W" => Err(Refused::TimerSet),
        word @ ("F" | "T" | "X" | "B") => {
            let word = word.to_owned();
            let name = text(next())?;
            let odd = |_| Error::Corrupt(format!("`{name}` is not a name"));
            if word == "F" {
                Err(Refused::Full {
                    stage: name.parse().map_err(odd)?,
                })
            } else if word == "B" {
                Err(Refused::Rescaling {
                    stage: name.parse().map_err(odd)?,
                })
            } else if word == "X" {
                Err(Refused::StageGone {
                    stage: name.parse().map_err(odd)?,
                })
            } else {
                Err(Refused::TooManyKeys {
                    subject: name
                        .parse()
                        .map_err(|_| Error::Corrupt(format!("`{name}` is not a subject")))?,
                })
            }
        }
        // The first number is the caller's own, known to it only.
        "G" => Err(Refused::SessionGap {
            high: number(next())?,
            first: 0,
        }),
        "H" => Err(Refused::SessionAhead {
            high: number(next())?,
            first: 0,
        }),
        other => return Err(Error::Corrupt(format!("a publish answered `{other}`"))),
    })
}
