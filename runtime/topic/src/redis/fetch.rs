//! One consistent read: a script that checks, and the messages right behind it, outside of a script because a script pays for each byte
//! that it sees. Each frame says how much came before it, so that nothing can be missing or moved between the two. Another script follows
//! where keys matter and their state is not remembered. Keys lie inside of frames, which only a node takes apart. The second script proves token and base
//! again, so what it loads belongs to what the first read.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::{Buf, Bytes};
use redis::{Cmd, Value};

use super::cache::Values;
use super::reply::{Said, bytes, list, number, text};
use super::scripts::Script;
use super::{Core, names, state};
use crate::guard::Guard;
use crate::record::{self, message_bytes};
use crate::{Cursor, Error, Fetched, Lease, StateSize, Unread, Want};
use skep_model::id::Uid;
use skep_model::limits;

pub(super) async fn fetch(redis: &Core, lease: &Lease, want: Want) -> Result<Fetched, Error> {
    match once(redis, lease, want).await {
        // Another owner may have consumed between the script and the read: then the script refuses now. Else it is damage.
        Err(Error::Corrupt(_)) => once(redis, lease, want).await,
        other => other,
    }
}

async fn once(redis: &Core, lease: &Lease, want: Want) -> Result<Fetched, Error> {
    let topic = lease.partition.topic();
    let mut args = redis.owner_args(Script::Fetch, &lease.partition);
    args.bytes(&lease.token.0)
        .bytes(&want.base.0)
        .num(want.from.entry)
        .num(want.from.index)
        .num(want.messages)
        .num(want.bytes)
        // Exact in Lua's numbers, and more than there can be.
        .num(want.timers_max.min(1 << 53));
    let stream = names::inbox(&lease.partition);
    // As many entries as the last read says that it takes; more are asked for if that was too few.
    let mut frames = Frames::new(want);
    let count = entries(frames_for(frames.want.messages, redis.cache.frame(&lease.partition)));
    let (answer, first) = redis
        .look_and_read(Script::Fetch, &args, &range(&stream, want.from.entry, count))
        .await?;
    let mut said = Said::of(answer)?;
    if let word @ ("SEAL" | "WAIT") = said.word.as_str() {
        return Ok(Fetched {
            at_seal: word == "SEAL",
            now_ms: said.number()?,
            ..Fetched::default()
        });
    }
    if said.word != "OK" {
        return Err(said.refusal());
    }
    let now_ms = said.number()?;
    let parked = said.number()?;
    let next_due = said.text()?;
    let (consumed, appended, foreign) = (said.number()?, said.number()?, said.number()?);
    frames.until = said.text()?.parse().unwrap_or(u64::MAX);
    frames.expect(consumed);
    frames.take(list(first)?)?;
    while !frames.enough() && frames.given() < appended.saturating_sub(consumed) {
        let before = frames.given();
        let left = want.messages.saturating_sub(u32::try_from(before).unwrap_or(u32::MAX));
        let count = entries(frames_for(left, frames.average()));
        let more = redis.link.send(&range(&stream, frames.next_entry(), count)).await;
        frames.take(list(more.map_err(super::fault::of_a_look)?)?)?;
        if frames.given() == before {
            return Err(frames.missing());
        }
    }
    redis.cache.set_frame(&lease.partition, frames.average());
    let mut fetched = Fetched {
        now_ms,
        next_due_ms: next_due.parse().ok(),
        messages: frames.out,
        ..Fetched::default()
    };
    for item in said.list()? {
        fetched.retries.push(record::decode_parked(bytes(item)?)?);
    }
    for item in said.list()? {
        fetched.timers.push(record::decode_timer(bytes(item)?)?);
    }
    for item in said.list()? {
        fetched.early.push(record::decode_timer(bytes(item)?)?);
    }
    if want.state {
        fetched.state_size = StateSize {
            keys: said.number()?,
            bytes: said.number()?,
        };
    }
    let hold = parked > 0 && redis.guards.on(Guard::Hold);
    if hold || want.state {
        second_half(redis, lease, want, (hold, foreign), &mut fetched)
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
    (hold, foreign): (bool, u64),
    fetched: &mut Fetched,
) -> Result<(), Error> {
    let mut lanes: Vec<&str> = Vec::new();
    if hold {
        lanes = fetched
            .messages
            .iter()
            .filter_map(|u| u.message.key.as_deref())
            .collect();
        lanes.sort_unstable();
        lanes.dedup();
    }
    let mut loaded: HashMap<String, Values> = HashMap::new();
    let mut missing: Vec<&str> = Vec::new();
    if want.state {
        // Each key once, in the order in which inputs are given: where the state gets too much, the rest of them is not.
        let of_retries = fetched.retries.iter().filter_map(|p| p.work.key());
        let of_timers = fetched.timers.iter().map(|t| t.key.as_str());
        let of_messages = fetched.messages.iter().filter_map(|u| u.message.key.as_deref());
        let mut seen = HashSet::new();
        let keys = of_retries.chain(of_timers).chain(of_messages);
        let keys: Vec<&str> = keys.filter(|key| seen.insert(*key)).collect();
        let known = redis.cache.known(&lease.partition, (want.base, foreign), &keys);
        missing = keys.into_iter().filter(|key| !known.contains_key(key)).collect();
        loaded.extend(known.into_iter().map(|(key, values)| (key.to_owned(), values)));
    }
    let mut held = Vec::new();
    if !lanes.is_empty() || !missing.is_empty() {
        let mut args = redis.owner_args(Script::State, &lease.partition);
        args.bytes(&lease.token.0).bytes(&want.base.0).num(want.state_bytes);
        args.num(lanes.len());
        for lane in &lanes {
            args.bytes(&names::ended(lane));
        }
        let mut buckets: BTreeMap<u16, Vec<(usize, &str)>> = BTreeMap::new();
        for (at, key) in (1..).zip(&missing) {
            buckets.entry(state::bucket(key)).or_default().push((at, key));
        }
        args.num(buckets.len());
        for (bucket, keys) in &buckets {
            args.num(*bucket).num(keys.len());
            for (at, key) in keys {
                args.text(key).num(*at);
            }
        }
        let mut said = redis.look(Script::State, &args).await?;
        if said.word != "OK" {
            return Err(said.refusal());
        }
        for (lane, found) in lanes.iter().zip(said.list()?) {
            if number(found)? > 0 {
                held.push((*lane).to_owned());
            }
        }
        let mut learned = Vec::new();
        for (key, stored) in missing.iter().zip(said.list()?) {
            let shared = matches!(stored, Value::BulkString(_));
            let values = state::values(stored)?;
            // A large key's own hash is never written whole, so it is not remembered.
            if shared {
                learned.push(((*key).to_owned(), values.clone()));
            }
            loaded.insert((*key).to_owned(), values);
        }
        redis
            .cache
            .learn(&lease.partition, (want.base, foreign), learned.into_iter());
    }
    fetched.held.extend(held);
    if want.state {
        // The script stops where this does at the latest: it counts the same bytes, of fewer keys.
        let missing = || Error::Corrupt("a key's state was not loaded".to_owned());
        fetched.load_state(want.state_bytes, |key| loaded.remove(key).ok_or_else(missing))?;
    }
    Ok(())
}

fn frames_for(messages: u32, a_frame: u32) -> u32 {
    messages.div_ceil(a_frame.max(1))
}

/// A frame is one entry or two.
fn entries(frames: u32) -> u32 {
    frames.saturating_mul(2).clamp(2, limits::REDIS_READ_ENTRIES_MAX)
}

pub(super) fn range(stream: &str, from_entry: u64, count: u32) -> Cmd {
    let mut command = redis::cmd("XRANGE");
    command.arg(stream).arg(format!("{}-0", from_entry + 1)).arg("+");
    command.arg("COUNT").arg(count);
    command
}

/// Puts frames together from entries, and proves that none is missing between them.
pub(super) struct Frames {
    want: Want,
    pub out: Vec<Unread>,
    size: u64,
    /// How many messages came before the next frame, once known.
    before: Option<u64>,
    /// Messages of whole frames so far, beyond the cursor, and how many frames they are.
    given: u64,
    frames: u32,
    next: u64,
    /// The seal of a topic that gets another number of partitions.
    until: u64,
    full: bool,
    /// A frame whose messages are in the entry behind.
    open: Option<Head>,
}

struct Head {
    entry: u64,
    uid: Uid,
    before: u64,
    count: u32,
    parts: Vec<Skipped>,
}

/// Of a part's messages, how many are skipped and how many count.
type Skipped = (u32, u32);

impl Frames {
    pub fn new(want: Want) -> Self {
        Self {
            want,
            out: Vec::new(),
            size: 0,
            before: None,
            given: 0,
            frames: 0,
            next: want.from.entry,
            until: u64::MAX,
            full: false,
            open: None,
        }
    }

    pub fn expect(&mut self, consumed: u64) {
        self.before = Some(consumed);
    }

    pub fn enough(&self) -> bool {
        self.full || self.out.len() >= self.want.messages as usize
    }

    pub fn given(&self) -> u64 {
        self.given
    }

    pub fn next_entry(&self) -> u64 {
        self.next
    }

    fn average(&self) -> u32 {
        u32::try_from(self.given / u64::from(self.frames.max(1)))
            .unwrap_or(u32::MAX)
            .max(1)
    }

    pub fn missing(&self) -> Error {
        Error::Corrupt(format!(
            "entry {} of the inbox is missing: a key was deleted or lost; restore the store from a copy",
            self.next
        ))
    }

    pub fn take(&mut self, entries: Vec<Value>) -> Result<(), Error> {
        for entry in entries {
            if self.enough() {
                break;
            }
            let mut entry = list(entry)?.into_iter();
            let id = text(entry.next().unwrap_or(Value::Nil))?;
            let mut fields = list(entry.next().unwrap_or(Value::Nil))?.into_iter();
            let mut next = || {
                let _ = fields.next();
                fields.next().unwrap_or(Value::Nil)
            };
            let (number, second) = entry_of(&id)?;
            if number >= self.until {
                break;
            }
            if second {
                if let Some(head) = self.open.take_if(|head| head.entry == number) {
                    let bodies: Vec<Value> = head.parts.iter().map(|_| next()).collect();
                    self.frame(&head, bodies)?;
                }
                continue;
            }
            let uid = Uid(super::reply::id(next())?);
            let mut meta = bytes(next())?;
            let (before, count, parts) = head(&mut meta)?;
            let head = Head {
                entry: number,
                uid,
                before,
                count,
                parts,
            };
            let sums = head.parts.len();
            (0..sums).for_each(|_| drop(next()));
            let bodies: Vec<Value> = head.parts.iter().map(|_| next()).collect();
            if bodies.contains(&Value::Nil) {
                self.open = Some(head);
            } else {
                self.frame(&head, bodies)?;
            }
        }
        self.open = None;
        Ok(())
    }

    fn frame(&mut self, head: &Head, bodies: Vec<Value>) -> Result<(), Error> {
        let from = self.want.from;
        let skipped = if head.entry == from.entry { from.index } else { 0 };
        // Nothing between two frames may be missing.
        if self
            .before
            .is_some_and(|before| before != head.before + u64::from(skipped))
        {
            return Err(self.missing());
        }
        self.before = Some(head.before + u64::from(head.count));
        self.given += u64::from(head.count.saturating_sub(skipped));
        self.frames += 1;
        self.next = head.entry + 1;
        let mut index = 0;
        for ((skip, _), body) in head.parts.iter().zip(bodies) {
            for message in record::decode_frame(bytes(body)?)?.into_iter().skip(*skip as usize) {
                let place = Cursor {
                    entry: head.entry,
                    index,
                };
                index += 1;
                if place < from {
                    continue;
                }
                self.size += message_bytes(&message);
                let many = self.out.len() >= self.want.messages as usize;
                if many || (self.size > self.want.bytes && !self.out.is_empty()) {
                    self.full = true;
                    return Ok(());
                }
                let after = if index == head.count {
                    Cursor {
                        entry: head.entry + 1,
                        index: 0,
                    }
                } else {
                    Cursor {
                        entry: head.entry,
                        index,
                    }
                };
                self.out.push(Unread {
                    message,
                    after,
                    entry: head.entry,
                    entry_uid: head.uid,
                });
            }
        }
        Ok(())
    }
}

/// `17-0` is entry 16, `17-1` what of it stands apart: a stream's ids begin at 1.
fn entry_of(stream_id: &str) -> Result<(u64, bool), Error> {
    let odd = || Error::Corrupt(format!("`{stream_id}` is not an entry of ours"));
    let (entry, second) = stream_id.split_once('-').ok_or_else(odd)?;
    let entry = entry
        .parse::<u64>()
        .ok()
        .and_then(|e| e.checked_sub(1))
        .ok_or_else(odd)?;
    Ok((entry, second == "1"))
}

/// How many messages came before a frame, how many it has, and of each part how many are skipped and how many there are.
fn head(meta: &mut Bytes) -> Result<(u64, u32, Vec<Skipped>), Error> {
    let cut = || Error::Corrupt("a frame's head is cut off".to_owned());
    if meta.len() < 28 {
        return Err(cut());
    }
    let before = meta.get_u64_le();
    meta.advance(8);
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
    Ok((before, count, parts.collect()))
}
