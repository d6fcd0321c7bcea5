//! One consistent read, in one script, or two where keys matter: keys lie inside of frames, which only a node takes apart. The second
//! proves token and base again, so what it loads belongs to what the first read.

use std::collections::{BTreeMap, HashMap};

use bytes::{Buf, Bytes};
use redis::Value;

use super::reply::{bytes, id, list, number, text};
use super::scripts::Script;
use super::{Core, names, state};
use crate::guard::Guard;
use crate::record::{self, message_bytes};
use crate::{Cursor, Error, Fetched, Lease, Unread, Want};
use skep_model::id::Uid;

pub(super) async fn fetch(redis: &Core, lease: &Lease, want: Want) -> Result<Fetched, Error> {
    let topic = lease.partition.topic();
    let mut args = redis.owner_args(Script::Fetch, &lease.partition);
    args.bytes(&lease.token.0)
        .bytes(&want.base.0)
        .num(want.from.entry)
        .num(want.from.index)
        .num(want.messages)
        .num(want.bytes);
    let mut said = redis.look(Script::Fetch, &args).await?;
    if said.word != "OK" {
        return Err(said.refusal());
    }
    let now_ms = said.number()?;
    let parked = said.number()?;
    let next_due = said.text()?;
    let mut fetched = Fetched {
        now_ms,
        next_due_ms: next_due.parse().ok(),
        messages: unread(said.list()?, want)?,
        ..Fetched::default()
    };
    for item in said.list()? {
        fetched.retries.push(record::decode_parked(bytes(item)?)?);
    }
    for item in said.list()? {
        fetched.timers.push(record::decode_timer(bytes(item)?)?);
    }
    let hold = parked > 0 && redis.guards.on(Guard::Hold);
    if hold || want.state {
        second_half(redis, lease, want, hold, &mut fetched)
            .await
            .map_err(|e| match e {
                Error::Corrupt(what) => Error::Corrupt(format!("{topic}: {what}")),
                other => other,
            })?;
    }
    Ok(fetched)
}

async fn second_half(
    redis: &Core,
    lease: &Lease,
    want: Want,
    hold: bool,
    fetched: &mut Fetched,
) -> Result<(), Error> {
    let mut lanes: Vec<&str> = Vec::new();
    if hold {
        lanes = fetched.messages.iter().filter_map(|u| u.message.key.as_deref()).collect();
        lanes.sort_unstable();
        lanes.dedup();
    }
    // Each key once, in the order in which inputs are given: where the state gets too much, the rest of them is not.
    let mut keys: Vec<&str> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    if want.state {
        let of_retries = fetched.retries.iter().filter_map(|p| p.work.key());
        let of_timers = fetched.timers.iter().map(|t| t.key.as_str());
        let of_messages = fetched.messages.iter().filter_map(|u| u.message.key.as_deref());
        for key in of_retries.chain(of_timers).chain(of_messages) {
            places.entry(key).or_insert_with(|| {
                keys.push(key);
                keys.len()
            });
        }
    }
    if lanes.is_empty() && keys.is_empty() {
        return Ok(());
    }
    let mut args = redis.owner_args(Script::State, &lease.partition);
    args.bytes(&lease.token.0).bytes(&want.base.0).num(want.state_bytes);
    args.num(lanes.len());
    for lane in &lanes {
        args.bytes(&names::ended(lane));
    }
    let mut buckets: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for key in &keys {
        buckets.entry(state::bucket(key)).or_default().push(key);
    }
    args.num(buckets.len());
    for (bucket, of_bucket) in &buckets {
        args.num(*bucket).num(of_bucket.len());
        for key in of_bucket {
            args.text(key).num(places[key]);
        }
    }
    let mut said = redis.look(Script::State, &args).await?;
    if said.word != "OK" {
        return Err(said.refusal());
    }
    let mut held = Vec::new();
    for (lane, found) in lanes.iter().zip(said.list()?) {
        if number(found)? > 0 {
            held.push((*lane).to_owned());
        }
    }
    let mut loaded = HashMap::new();
    for (key, blob) in keys.iter().zip(said.list()?) {
        loaded.insert((*key).to_owned(), state::values(blob)?);
    }
    fetched.held.extend(held);
    if want.state {
        // The script stops where this does: it counts the same bytes.
        let missing = || Error::Corrupt("a key's state was not loaded".to_owned());
        fetched.load_state(want.state_bytes, |key| loaded.remove(key).ok_or_else(missing))?;
    }
    Ok(())
}

/// The messages of frames after the cursor, as many as wanted.
fn unread(frames: Vec<Value>, want: Want) -> Result<Vec<Unread>, Error> {
    let mut out: Vec<Unread> = Vec::new();
    let mut size = 0;
    for frame in frames {
        let mut items = list(frame)?.into_iter();
        let mut next = || items.next().unwrap_or(Value::Nil);
        let entry = entry_of(&text(next())?)?;
        let entry_uid = Uid(id(next())?);
        let mut meta = bytes(next())?;
        let (count, parts) = head(&mut meta)?;
        let mut index = 0;
        for (skip, _) in parts {
            let messages = record::decode_frame(bytes(next())?)?;
            for message in messages.into_iter().skip(skip as usize) {
                let place = Cursor { entry, index };
                index += 1;
                if place < want.from {
                    continue;
                }
                size += message_bytes(&message);
                if out.len() >= want.messages as usize || (size > want.bytes && !out.is_empty()) {
                    return Ok(out);
                }
                let after = if index == count {
                    Cursor {
                        entry: entry + 1,
                        index: 0,
                    }
                } else {
                    Cursor { entry, index }
                };
                out.push(Unread {
                    message,
                    after,
                    entry,
                    entry_uid,
                });
            }
        }
    }
    Ok(out)
}

/// `17-0` is entry 16: a stream's ids begin at 1.
fn entry_of(stream_id: &str) -> Result<u64, Error> {
    let odd = || Error::Corrupt(format!("`{stream_id}` is not an entry of ours"));
    let (entry, _) = stream_id.split_once('-').ok_or_else(odd)?;
    entry.parse::<u64>().ok().and_then(|e| e.checked_sub(1)).ok_or_else(odd)
}

/// A frame's messages, and of each part how many are skipped and how many there are.
fn head(meta: &mut Bytes) -> Result<(u32, Vec<(u32, u32)>), Error> {
    let cut = || Error::Corrupt("a frame's head is cut off".to_owned());
    if meta.len() < 28 {
        return Err(cut());
    }
    meta.advance(16);
    let count = meta.get_u32_le();
    meta.advance(4);
    let parts = meta.get_u32_le();
    if meta.len() != parts as usize * 12 {
        return Err(cut());
    }
    let parts = (0..parts).map(|_| {
        let part = (meta.get_u32_le(), meta.get_u32_le());
        meta.advance(4);
        part
    });
    Ok((count, parts.collect()))
}
