//! What people look at. Answers are gated, so that nobody is shown what a failover may take back; all but counts, which are asked for often.

use std::collections::HashMap;

use bytes::Bytes;
use redis::Value;
use skep_model::limits;
use skep_model::name::StageName;
use skep_model::scope::{SwarmId, TopicId};

use super::reply::{bytes, list, number, text};
use super::scripts::Script;
use super::{Core, names, state};
use crate::record::{self, Kind};
use crate::{CatalogRecord, Error, StatePage, StateSize, StoredDeadLetter, TopicStatus};

fn stage(name: &str) -> Result<StageName, Error> {
    name.parse()
        .map_err(|_| Error::Corrupt(format!("`{name}` is not a stage's name")))
}

pub(super) async fn status(core: &Core, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error> {
    let args = core.args(Script::Status, &names::meta(swarm));
    let mut said = core.look(Script::Status, &args).await?;
    if said.word != "OK" {
        return Err(said.refusal());
    }
    let mut out = Vec::new();
    for row in said.list()? {
        let mut row = list(row)?.into_iter();
        let mut next = || row.next().unwrap_or(Value::Nil);
        let topic = swarm.topic(&stage(&text(next())?)?);
        let mut count = || number(next());
        let (unread, unread_bytes, parked, parked_bytes) = (count()?, count()?, count()?, count()?);
        let (timers, dead, dead_bytes) = (count()?, count()?, count()?);
        out.push(TopicStatus {
            topic,
            unread,
            unread_bytes,
            parked,
            parked_bytes,
            timers,
            dead,
            dead_bytes,
        });
    }
    out.sort_by(|a, b| a.topic.cmp(&b.topic));
    Ok(out)
}

pub(super) async fn durable_status(core: &Core, swarm: &SwarmId) -> Result<Vec<TopicStatus>, Error> {
    // From before it is read: of one that ended meanwhile it may say what is no more.
    let history = core.link.history_of(&names::meta(swarm));
    let status = status(core, swarm).await?;
    core.safe_to_show(history).await?;
    Ok(status)
}

pub(super) async fn state_size(core: &Core, topic: &TopicId) -> Result<StateSize, Error> {
    let mut args = core.args(Script::Keys, &names::meta(topic.swarm()));
    args.text(topic.stage().as_str()).num(limits::STATE_BUCKETS);
    let mut said = core.look(Script::Keys, &args).await?;
    Ok(StateSize {
        keys: said.number()?,
        bytes: said.number()?,
    })
}

/// Bucket by bucket, each from the place where the server's own scan stands.
pub(super) async fn state_page(core: &Core, topic: &TopicId, after: &str) -> Result<StatePage, Error> {
    let bad = || {
        Error::TooLarge(format!(
            "`{after}` is no place in the state: take what the page before said"
        ))
    };
    let (mut bucket, mut cursor) = match after {
        "" => (0, 0),
        _ => {
            let (bucket, cursor) = after.split_once(':').ok_or_else(bad)?;
            let parsed = bucket.parse().ok().zip(cursor.parse().ok());
            parsed
                .filter(|(bucket, _): &(u16, u64)| *bucket < limits::STATE_BUCKETS)
                .ok_or_else(bad)?
        }
    };
    let life = names::life(topic.swarm());
    let history = core.link.history_of(&names::meta(topic.swarm()));
    let mut page = StatePage::default();
    loop {
        let mut command = redis::cmd("HSCAN");
        let place = format!("{life}st:{}:{bucket}", topic.stage());
        command.arg(place).arg(cursor).arg("COUNT").arg(limits::STATE_PAGE_KEYS);
        let answer = core.link.send(&command).await.map_err(super::fault::of_a_look)?;
        let mut answer = list(answer)?.into_iter();
        let mut next = || answer.next().unwrap_or(Value::Nil);
        cursor = text(next())?
            .parse()
            .map_err(|_| Error::Corrupt("a scan without a cursor".to_owned()))?;
        let mut fields = list(next())?.into_iter();
        while let (Some(key), Some(stored)) = (fields.next(), fields.next()) {
            let mut stored = bytes(stored)?;
            let found = if stored.first() == Some(&b's') {
                // Too large for its bucket. It may be gone by now.
                let mut command = redis::cmd("HGETALL");
                command.arg(format!("{life}s:{}", String::from_utf8_lossy(&stored.split_off(1))));
                state::values(core.link.send(&command).await.map_err(super::fault::of_a_look)?)?
            } else {
                state::values(Value::BulkString(stored.to_vec()))?
            };
            if !found.is_empty() {
                page.keys.push((text(key)?, found));
            }
        }
        if cursor == 0 {
            bucket += 1;
        }
        page.next = (bucket < limits::STATE_BUCKETS).then(|| format!("{bucket}:{cursor}"));
        // One scan's answer is a page; where nothing came of it, there is another.
        if page.next.is_none() || !page.keys.is_empty() {
            core.safe_to_show(history).await?;
            return Ok(page);
        }
    }
}

pub(super) async fn state_of(core: &Core, topic: &TopicId, key: &str) -> Result<HashMap<String, Bytes>, Error> {
    let meta = names::meta(topic.swarm());
    let history = core.link.history_of(&meta);
    let mut args = core.args(Script::StateOf, &meta);
    args.text(topic.stage().as_str()).num(state::bucket(key)).text(key);
    let mut said = core.look(Script::StateOf, &args).await?;
    if said.word != "OK" {
        return Err(said.refusal());
    }
    let found = state::values(said.next()?)?;
    core.safe_to_show(history).await?;
    Ok(found.into_iter().collect())
}

/// In pages, so that no answer of the server is large.
pub(super) async fn dead_letters(
    core: &Core,
    swarm: &SwarmId,
    only: Option<&StageName>,
    mut after: u64,
    limit: u32,
) -> Result<Vec<StoredDeadLetter>, Error> {
    let history = core.link.history_of(&names::meta(swarm));
    let mut out = Vec::new();
    while (out.len() as u64) < u64::from(limit) {
        let page = (u64::from(limit) - out.len() as u64).min(limits::LETTERS_PAGE_MAX);
        let mut args = core.args(Script::Letters, &names::meta(swarm));
        args.text(only.map_or("", StageName::as_str)).num(after).num(page);
        let mut said = core.look(Script::Letters, &args).await?;
        if said.word != "OK" {
            return Err(said.refusal());
        }
        let mut found = Vec::new();
        for row in said.list()? {
            let mut row = list(row)?.into_iter();
            let mut next = || row.next().unwrap_or(Value::Nil);
            found.push(StoredDeadLetter {
                id: number(next())?,
                topic: swarm.topic(&stage(&text(next())?)?),
                letter: record::decode_dead_letter(bytes(next())?)?,
            });
        }
        // Each stage brought a page of its own: only the first of all of them are surely the next ones.
        found.sort_by_key(|letter| letter.id);
        found.truncate(usize::try_from(page).unwrap_or(usize::MAX));
        let Some(last) = found.last() else { break };
        after = last.id;
        out.extend(found);
    }
    core.safe_to_show(history).await?;
    Ok(out)
}

pub(super) async fn catalog_list(core: &Core, prefix: &str) -> Result<Vec<(String, CatalogRecord)>, Error> {
    let history = core.link.history_of(names::CATALOG);
    let mut command = redis::cmd("HGETALL");
    command.arg(names::CATALOG);
    let items = core.link.send(&command).await.map_err(super::fault::of_a_look)?;
    let mut items = match items {
        Value::Map(pairs) => pairs.into_iter().flat_map(|(k, v)| [k, v]).collect(),
        other => list(other)?,
    }
    .into_iter();
    let mut out = Vec::new();
    while let (Some(key), Some(stored)) = (items.next(), items.next()) {
        let key = text(key)?;
        if !key.starts_with(prefix) {
            continue;
        }
        let stored = bytes(stored)?;
        let version: [u8; 8] = stored
            .get(..8)
            .and_then(|b| b.try_into().ok())
            .ok_or_else(|| Error::Corrupt(format!("catalog record `{key}` is cut off")))?;
        let value = record::unseal(Kind::Catalog, stored.slice(8..))?;
        let version = u64::from_le_bytes(version);
        out.push((key, CatalogRecord { version, value }));
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    core.safe_to_show(history).await?;
    Ok(out)
}

/// Ungated: one that a failover takes back is nobody's any more, so a write that names it is refused.
pub(super) async fn catalog_number(core: &Core) -> Result<u64, Error> {
    let mut command = redis::cmd("GET");
    command.arg(names::CATALOG_NUMBER);
    match core.link.send(&command).await.map_err(super::fault::of_a_look)? {
        Value::Nil => Ok(0),
        value => number(value),
    }
}

pub(super) async fn lives(core: &Core) -> Result<Vec<SwarmId>, Error> {
    let history = core.link.history_of(names::LIVES);
    // Of those that a restore made, only what somebody uses. Looked at before as well: one that is discarded meanwhile, to be made
    // anew, would be taken for the life of a Swarm that is gone.
    let mut aside = super::import::imports(core).await?;
    let mut out = members(core, names::LIVES).await?;
    aside.extend(super::import::imports(core).await?);
    out.retain(|life| !aside.contains(life));
    core.safe_to_show(history).await?;
    Ok(out)
}

/// A set of lives.
pub(super) async fn members(core: &Core, key: &str) -> Result<Vec<SwarmId>, Error> {
    let mut command = redis::cmd("SMEMBERS");
    command.arg(key);
    let found = core.link.send(&command).await.map_err(super::fault::of_a_look)?;
    let found = match found {
        Value::Set(items) => items,
        other => list(other)?,
    };
    let mut out = Vec::new();
    for tag in found {
        let tag = text(tag)?;
        out.push(names::swarm_of(&tag).ok_or_else(|| Error::Corrupt(format!("`{tag}` is not a Swarm's life")))?);
    }
    out.sort();
    Ok(out)
}
