//! Another number of partitions. What nodes believe of it is put right by the store: a script that writes says what is true, and the same is
//! sent again, grouped by that.

use std::sync::Arc;

use bytes::Buf as _;
use redis::Value;
use skep_model::id::CommitId;
use skep_model::limits;
use skep_model::scope::{SwarmId, TopicId};

use super::args::Args;
use super::reply::{Said, bytes, list, number, text};
use super::scripts::Script;
use super::{Core, lock, names};
use crate::{Error, Layout, Lease, Rescaled, TopicSpec, key_group, partition_of_group, partition_of_work, record};

impl Core {
    /// How many partitions a topic has, as far as this node was told.
    pub fn partitions(&self, spec: &TopicSpec) -> u16 {
        lock(&self.layouts).get(&spec.id).copied().unwrap_or(spec.partitions)
    }

    /// The same, as a topic.
    pub fn told(&self, spec: &Arc<TopicSpec>) -> Arc<TopicSpec> {
        let partitions = self.partitions(spec);
        if partitions == spec.partitions {
            return Arc::clone(spec);
        }
        let mut spec = TopicSpec::clone(spec);
        spec.partitions = partitions;
        Arc::new(spec)
    }

    fn learn(&self, id: &TopicId, partitions: u16) {
        lock(&self.layouts).insert(id.clone(), partitions);
    }

    /// A script that writes, made anew while it says that what it was made from is wrong about partitions.
    pub async fn write_as_told(
        &self,
        swarm: &SwarmId,
        script: Script,
        mut make: impl FnMut() -> Result<Args, Error>,
    ) -> Result<(Said, u64), Error> {
        for _ in 0..limits::LAYOUT_TRIES_MAX {
            let args = make()?;
            let (mut said, history) = self.write_alive(swarm, script, &args).await?;
            if said.word != "LAYOUT" {
                return Ok((said, history));
            }
            let mut pairs = said.list()?.into_iter();
            while let (Some(stage), Some(count)) = (pairs.next(), pairs.next()) {
                let stage = text(stage)?;
                let stage = stage
                    .parse()
                    .map_err(|_| Error::Corrupt(format!("`{stage}` is not a stage's name")))?;
                self.learn(&swarm.topic(&stage), count_of(count)?);
            }
        }
        Err(Error::Unavailable(
            "a topic's partitions change all the time".to_owned(),
        ))
    }
}

fn count_of(value: Value) -> Result<u16, Error> {
    let count = number(value)?;
    u16::try_from(count)
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| Error::Corrupt(format!("a topic has {count} partitions")))
}

pub(super) async fn rescale(core: &Core, spec: &TopicSpec, id: CommitId) -> Result<Rescaled, Error> {
    let swarm = spec.id.swarm();
    let mut args = core.args(Script::Rescale, &names::meta(swarm));
    args.bytes(&core.link.options.node)
        .text(spec.id.stage().as_str())
        .num(spec.born)
        .num(spec.partitions)
        .bytes(&id.0);
    let (mut said, history) = core.write_alive(swarm, Script::Rescale, &args).await?;
    let done = match said.word.as_str() {
        "OK" => Rescaled::Begun,
        "SAME" => Rescaled::Already,
        "BUSY" => Rescaled::Busy,
        _ => return Err(said.refusal()),
    };
    if done != Rescaled::Busy {
        core.learn(&spec.id, spec.partitions);
    }
    if done == Rescaled::Begun {
        core.cache.forget_if(|topic| *topic == spec.id);
        ring(core, &spec.id, said.number()?);
    }
    core.safe(history).await?;
    Ok(done)
}

fn ring(core: &Core, topic: &TopicId, all: u64) {
    for index in 0..u16::try_from(all).unwrap_or(u16::MAX) {
        core.bells.ring(&topic.partition(index));
    }
}

pub(super) async fn layout(core: &Core, id: &TopicId) -> Result<Option<Layout>, Error> {
    let mut args = core.args(Script::Layout, &names::meta(id.swarm()));
    args.text(id.stage().as_str());
    let mut said = core.look(Script::Layout, &args).await?;
    match said.word.as_str() {
        "OK" => {}
        "NONE" => return Ok(None),
        _ => return Err(said.refusal()),
    }
    let generation = said.number()?;
    let partitions = count_of(said.next()?)?;
    let rescaling = said.number()? > 0;
    let former = u16::try_from(said.number()?).unwrap_or(u16::MAX);
    Ok(Some(Layout {
        partitions,
        generation,
        rescaling,
        owners: if rescaling { partitions.max(former) } else { partitions },
    }))
}

/// Where things go, and how many stay.
#[derive(Default)]
struct Moves {
    moves: Vec<(bytes::Bytes, u16)>,
    stay: u64,
    last: bool,
}

impl Moves {
    /// `place` says where a record goes.
    fn of(rows: Vec<Value>, own: u16, place: impl Fn(bytes::Bytes) -> Result<u16, Error>) -> Result<Self, Error> {
        let mut moves = Self {
            last: rows.len() < limits::HAND_OVER_MAX,
            ..Self::default()
        };
        for row in rows {
            let mut row = list(row)?.into_iter();
            let mut next = || row.next().unwrap_or(Value::Nil);
            let (member, record) = (bytes(next())?, bytes(next())?);
            match place(record)? {
                index if index == own => moves.stay += 1,
                index => moves.moves.push((member, index)),
            }
        }
        Ok(moves)
    }

    fn write(&self, args: &mut Args) {
        args.num(self.moves.len());
        for (member, index) in &self.moves {
            args.bytes(member).num(*index);
        }
    }
}

/// The body of a stored record, behind what scripts look at.
fn body(mut record: bytes::Bytes, head: usize) -> Result<bytes::Bytes, Error> {
    if record.len() < head {
        return Err(Error::Corrupt("what waits in an inbox is cut off".to_owned()));
    }
    record.advance(head);
    Ok(record)
}

pub(super) async fn hand_over(core: &Core, lease: &Lease, base: CommitId, id: CommitId) -> Result<(), Error> {
    let own = lease.partition.index();
    let mut args = core.owner_args(Script::Waiting, &lease.partition);
    args.bytes(&lease.token.0)
        .bytes(&base.0)
        .bytes(&id.0)
        .num(limits::HAND_OVER_MAX);
    let mut said = core.look(Script::Waiting, &args).await?;
    match said.word.as_str() {
        "OK" => {}
        "DONE" => return Ok(()),
        _ => return Err(said.refusal()),
    }
    let partitions = count_of(said.next()?)?;
    let parked = Moves::of(said.list()?, own, |record| {
        let parked = record::decode_parked(body(record, 32)?)?;
        Ok(partition_of_work(&parked.work, partitions, own))
    })?;
    let timers = Moves::of(said.list()?, own, |record| {
        let timer = record::decode_timer(body(record, 28)?)?;
        Ok(partition_of_group(key_group(&timer.key), partitions))
    })?;
    // What stays or goes was seen at this base, which the script proves again.
    let mut args = core.owner_args(Script::HandOver, &lease.partition);
    args.bytes(&core.link.options.node)
        .bytes(&lease.token.0)
        .bytes(&base.0)
        .bytes(&id.0)
        .num(limits::LEASE_TTL_MS);
    parked.write(&mut args);
    timers.write(&mut args);
    args.num(parked.stay).num(timers.stay).flag(parked.last && timers.last);
    core.cache.forget(&lease.partition);
    let (mut said, _) = core.write(Script::HandOver, &args).await?;
    if said.word != "OK" {
        return Err(said.refusal());
    }
    let topic = lease.partition.topic();
    for (_, index) in parked.moves.iter().chain(&timers.moves) {
        core.bells.ring(&topic.partition(*index));
    }
    ring(core, topic, said.number()?);
    core.bells.ring(&lease.partition);
    Ok(())
}
