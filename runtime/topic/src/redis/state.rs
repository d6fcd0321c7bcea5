//! Keyed state as stored: one field a key in a bucket's hash, so that one call reads or writes a bucket's keys of a whole batch.
//!
//! A field holds every value of its key: `i`, then entries of (name's length, value's length, name, sealed value); or `s` and a number
//! once they are larger than [`limits::STATE_INLINE_BYTES_MAX`], with a hash of their own, so that a large key's write costs what it
//! changes. Buckets are runs of key groups: fixed for life, so that rescaling moves no state.

use std::collections::{BTreeMap, HashMap};

use bytes::{Buf, Bytes};
use redis::Value;
use skep_model::limits;

use super::args::Args;
use super::cache::{Values, apply};
use super::reply::{bytes, list, text};
use crate::record::{self, Kind};
use crate::{Error, StatePut, StateSize, key_group};

pub(super) fn bucket(key: &str) -> u16 {
    key_group(key) / (limits::KEY_GROUPS / limits::STATE_BUCKETS)
}

/// What a commit does to one key.
type Changes<'a> = Vec<(&'a str, Option<&'a Bytes>)>;

/// The state section of a commit: where it ends, the inline bound, then buckets with their keys. Of a key either all its values, if
/// the owner knows what the base holds, or what changes, for the script to merge.
pub(super) fn write_puts(args: &mut Args, puts: &[StatePut], known: &HashMap<&str, Values>) {
    let mut buckets: BTreeMap<u16, Vec<(&str, Changes<'_>)>> = BTreeMap::new();
    let mut places: HashMap<&str, (u16, usize)> = HashMap::new();
    for put in puts {
        let (bucket, at) = *places.entry(&put.key).or_insert_with(|| {
            let bucket = bucket(&put.key);
            let keys = buckets.entry(bucket).or_default();
            keys.push((&put.key, Vec::new()));
            (bucket, keys.len() - 1)
        });
        let names = &mut buckets.get_mut(&bucket).expect("made above")[at].1;
        // The last write of a name wins.
        match names.iter_mut().find(|(name, _)| *name == put.name) {
            Some((_, value)) => *value = put.value.as_ref(),
            None => names.push((&put.name, put.value.as_ref())),
        }
    }
    let mut section: Vec<Vec<u8>> = Vec::new();
    // Keys and bytes.
    let mut grown = (0i64, 0i64);
    for (bucket, keys) in &buckets {
        section.push(bucket.to_string().into());
        let (mut set, mut gone, mut merge) = (Vec::new(), Vec::new(), Vec::new());
        for (key, names) in keys {
            let Some((blob, before, after)) = known.get(key).and_then(|values| whole(key, values, names)) else {
                merge.push((key, names));
                continue;
            };
            grown.0 += signed(after.keys) - signed(before.keys);
            grown.1 += signed(after.bytes) - signed(before.bytes);
            if blob.is_empty() {
                gone.push(key.as_bytes().to_vec());
            } else {
                set.push((key.as_bytes().to_vec(), blob));
            }
        }
        section.push(set.len().to_string().into());
        section.extend(set.into_iter().flat_map(|(key, blob)| [key, blob]));
        section.push(gone.len().to_string().into());
        section.extend(gone);
        section.push(merge.len().to_string().into());
        for (key, names) in merge {
            section.push(key.as_bytes().to_vec());
            section.push(names.len().to_string().into());
            for (name, value) in names {
                section.push(name.as_bytes().to_vec());
                section.push(value.map_or_else(Vec::new, |value| entry(name, value)));
            }
        }
    }
    // The place of the argument behind this section, counting this one and the four that follow.
    args.num(args.count + 5 + section.len() + 1);
    args.num(limits::STATE_INLINE_BYTES_MAX)
        .text(&grown.0.to_string())
        .text(&grown.1.to_string())
        .num(buckets.len());
    for arg in section {
        args.bytes(&arg);
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A key's field after changes, with its size before and after; empty when nothing is left, `None` when it is too large for its bucket.
fn whole(key: &str, values: &Values, changes: &Changes<'_>) -> Option<(Vec<u8>, StateSize, StateSize)> {
    let before = StateSize::of(key, values);
    let mut values = values.clone();
    for (name, value) in changes {
        apply(&mut values, name, *value);
    }
    let after = StateSize::of(key, &values);
    if values.is_empty() {
        return Some((Vec::new(), before, after));
    }
    let mut blob = vec![b'i'];
    for (name, value) in &values {
        blob.extend_from_slice(&entry(name, value));
    }
    (blob.len() <= limits::STATE_INLINE_BYTES_MAX).then_some((blob, before, after))
}

fn entry(name: &str, value: &Bytes) -> Vec<u8> {
    let sealed = record::seal(Kind::State, value);
    let mut out = Vec::with_capacity(6 + name.len() + sealed.len());
    out.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(&u32::try_from(sealed.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&sealed);
    out
}

/// One key's values, from its field or its own hash.
pub(super) fn values(stored: Value) -> Result<Values, Error> {
    let cut = || Error::Corrupt("a key's state is cut off".to_owned());
    let mut out = Values::new();
    if let Value::Array(_) | Value::Map(_) = stored {
        let mut items = match stored {
            Value::Map(pairs) => pairs.into_iter().flat_map(|(k, v)| [k, v]).collect(),
            other => list(other)?,
        }
        .into_iter();
        while let (Some(name), Some(value)) = (items.next(), items.next()) {
            out.insert(text(name)?, record::unseal(Kind::State, bytes(value)?)?);
        }
        return Ok(out);
    }
    let mut blob = bytes(stored)?;
    if blob.is_empty() {
        return Ok(out);
    }
    if blob[0] != b'i' {
        return Err(Error::Corrupt("a key's state is of a newer format: upgrade".to_owned()));
    }
    blob.advance(1);
    while !blob.is_empty() {
        if blob.len() < 6 {
            return Err(cut());
        }
        let (name, value) = (usize::from(blob.get_u16_le()), blob.get_u32_le() as usize);
        if blob.len() < name + value {
            return Err(cut());
        }
        let name = String::from_utf8(blob.split_to(name).to_vec()).map_err(|_| cut())?;
        out.insert(name, record::unseal(Kind::State, blob.split_to(value))?);
    }
    Ok(out)
}
