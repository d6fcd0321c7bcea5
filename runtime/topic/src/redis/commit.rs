//! Lays a commit out for its script. What the script does with it is in `scripts/commit.lua`.
//!
//! Calls: a commit costs one stream append a destination partition (and frame), two hash writes a destination topic, two calls a
//! bucket of state, and about ten beside; parked messages, timers and dead letters come on top where there are any. So 256 keyed
//! messages that count something, from one of eight partitions to eight others, are about 50 calls.

use std::collections::HashMap;

use bytes::Bytes;
use skep_model::id::RequestId;
use skep_model::limits;
use skep_model::message::{Reply, ReplyResult};

use super::args::{Args, Bundle, Positions};
use super::publish::{fresh, listed};
use super::scripts::Script;
use super::{Core, names, state};
use crate::record::{self, message_bytes};
use crate::{Commit, Lease, Parked, Work};

/// Bytes that count for a commit's bound.
fn effects(commit: &Commit) -> u64 {
    let outputs: u64 = commit.outputs.iter().map(|o| message_bytes(&o.message)).sum();
    let state = commit.state.iter();
    let state = state.map(|p| p.key.len() + p.name.len() + p.value.as_ref().map_or(0, Bytes::len));
    let replies = commit.replies.iter().map(|r| match &r.result {
        ReplyResult::Response(body) => body.len(),
        _ => 0,
    });
    outputs + state.chain(replies).sum::<usize>() as u64
}

/// A parked entry as stored: uid, when it is due once it is first, what it counts for, the record.
pub(super) fn parked_record(parked: &Parked) -> (u64, Vec<u8>) {
    let due = if parked.attempts == 0 { 0 } else { parked.due_ms };
    let bytes = match &parked.work {
        Work::Message(message) => message_bytes(message),
        Work::Timer { key, name, .. } => (key.len() + name.len()) as u64,
    };
    let body = record::encode_parked(parked);
    let mut out = Vec::with_capacity(32 + body.len());
    out.extend_from_slice(&parked.uid.0);
    out.extend_from_slice(&due.to_le_bytes());
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(&body);
    (due, out)
}

/// Where a timer stands: its key, ended, and its name.
pub(super) fn timer_member(key: &str, name: &str) -> Vec<u8> {
    let mut member = names::ended(key);
    member.extend_from_slice(name.as_bytes());
    member
}

/// A timer as stored: uid, when it is due, the length of its lane in its member, the record.
pub(super) fn timer_record(timer: &crate::TimerDue) -> Vec<u8> {
    let lane = names::ended(&timer.key).len();
    let mut record = Vec::new();
    record.extend_from_slice(&timer.uid.0);
    record.extend_from_slice(&timer.at_ms.to_le_bytes());
    record.extend_from_slice(&u32::try_from(lane).unwrap_or(u32::MAX).to_le_bytes());
    record.extend_from_slice(&record::encode_timer(timer));
    record
}

/// Whether a reply's caller waits elsewhere.
pub(super) fn is_remote(redis: &Core, request: RequestId) -> bool {
    request.0[..8] != redis.link.options.node && !redis.waiters.is_waiting(request)
}

/// `remembering`: write keys whole where the owner remembers what the base holds.
pub(super) fn command(redis: &Core, lease: &Lease, commit: &Commit, remembering: bool) -> Args {
    let topic = lease.partition.topic();
    let mut args = redis.args(Script::Commit, &names::meta(topic.swarm()));
    // The lease's part of every owner's script.
    args.text(topic.stage().as_str()).num(lease.partition.index());
    args.bytes(&redis.link.options.node).bytes(&fresh(&*redis.entropy));
    args.num(limits::FRAME_MESSAGES_MAX)
        .num(limits::FRAME_BYTES_MAX)
        .num(limits::FRAME_SPLIT_BYTES);
    args.bytes(&lease.token.0)
        .num(commit.seq)
        .bytes(&commit.id.0)
        .bytes(&commit.base.0)
        .num(limits::LEASE_TTL_MS);
    let dead = commit.own.dead_letters;
    args.num(dead.messages).num(dead.bytes);
    args.flag(effects(commit) > limits::COMMIT_BYTES_MAX as u64);
    let foreign = redis
        .cache
        .foreign(&lease.partition, commit.base)
        .filter(|_| remembering);
    let known = foreign.map_or_else(HashMap::new, |foreign| {
        let keys: Vec<&str> = commit.state.iter().map(|put| put.key.as_str()).collect();
        redis.cache.known(&lease.partition, (commit.base, foreign), &keys)
    });
    match foreign.filter(|_| !known.is_empty()) {
        Some(foreign) => args.num(foreign),
        None => args.bytes(b""),
    };
    let told = redis.told(&commit.own);
    let own = |key: &str| told.partition_of_key(key) == lease.partition.index();
    args.flag(commit.state.iter().any(|put| !own(&put.key)))
        .num(told.partitions);
    match &commit.span {
        None => {
            args.flag(false);
        }
        Some(span) => {
            args.flag(true);
            for cursor in [span.from, span.to] {
                args.num(cursor.entry).num(cursor.index);
            }
            args.num(span.last_entry).bytes(&span.last_entry_uid.0);
        }
    }
    args.num(commit.timers.len());
    for timer in &commit.timers {
        args.bytes(&timer_member(&timer.key, &timer.name)).bytes(&timer.uid.0);
    }
    args.num(commit.retries.len());
    for retry in &commit.retries {
        args.bytes(&names::ended(&retry.lane)).bytes(&retry.uid.0);
        args.flag(retry.again.is_some());
        if let Some(again) = &retry.again {
            let (due, record) = parked_record(again);
            args.num(due).bytes(&record);
        }
    }
    args.num(commit.park.len());
    for parked in &commit.park {
        let (due, record) = parked_record(parked);
        args.bytes(&names::ended(&parked.lane)).num(due).bytes(&record);
    }
    outputs(redis, &mut args, commit);
    set_timers(&mut args, commit);
    state::write_puts(&mut args, &commit.state, &known);
    args.num(commit.dead.len());
    for letter in &commit.dead {
        args.bytes(&record::encode_dead_letter(letter));
        match &letter.work {
            Work::Message(message) => match &message.request {
                Some(request) => args.bytes(&request.id.0),
                None => args.bytes(b""),
            },
            Work::Timer { .. } => args.bytes(b""),
        };
    }
    args.num(commit.replies.len());
    for reply in &commit.replies {
        let keep = if is_remote(redis, reply.request) {
            limits::REPLY_KEPT_MS
        } else {
            0
        };
        args.bytes(&reply.request.0).flag(wants_letter(reply)).num(keep);
        args.bytes(&record::encode_reply(reply));
    }
    args
}

fn wants_letter(reply: &Reply) -> bool {
    matches!(&reply.result, ReplyResult::Failed { dead_letter: None, .. })
}

fn outputs(redis: &Core, args: &mut Args, commit: &Commit) {
    let mut bundles: Vec<Bundle> = Vec::new();
    for output in &commit.outputs {
        let at = match bundles.iter().position(|b| b.to.id == output.to.id) {
            Some(at) => at,
            None => {
                bundles.push(Bundle::new(redis.told(&output.to)));
                bundles.len() - 1
            }
        };
        bundles[at].push(&output.message);
    }
    args.num(bundles.len());
    for bundle in bundles {
        args.text(bundle.to.id.stage().as_str())
            .num(bundle.to.born)
            .num(bundle.to.inbox.messages)
            .num(bundle.to.inbox.bytes)
            .num(bundle.to.partitions)
            .flag(bundle.is_loose())
            .text(&listed(&bundle.partitions()));
        bundle.write(args, Positions::None);
    }
}

/// The last of a name wins, so that the script may take all at once.
fn set_timers(args: &mut Args, commit: &Commit) {
    let mut sets: Vec<(Vec<u8>, &crate::TimerSet)> = Vec::new();
    for set in &commit.set_timers {
        let member = timer_member(&set.key, &set.name);
        match sets.iter_mut().find(|(m, _)| *m == member) {
            Some((_, former)) => *former = set,
            None => sets.push((member, set)),
        }
    }
    args.num(sets.len());
    for (member, set) in sets {
        args.bytes(&member);
        let Some(at_ms) = set.at_ms else {
            args.bytes(b"");
            continue;
        };
        args.num(at_ms);
        args.bytes(&timer_record(&crate::TimerDue {
            uid: set.uid,
            key: set.key.clone(),
            name: set.name.clone(),
            at_ms,
        }));
    }
}

/// The id of each dead letter that answers a request, given the first.
pub(super) fn letters(commit: &Commit, first: u64) -> Vec<(RequestId, u64)> {
    let letters = (first..).zip(&commit.dead);
    let letters = letters.filter_map(|(id, letter)| match &letter.work {
        Work::Message(message) => Some((message.request?.id, id)),
        Work::Timer { .. } => None,
    });
    letters.collect()
}
