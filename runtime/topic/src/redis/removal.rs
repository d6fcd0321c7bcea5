//! Deletion. A life is marked as gone first, which is what everybody sees; its keys follow, and its name leaves the list of lives last:
//! a node that dies between finds the life there and removes it again.

use skep_model::limits;
use skep_model::scope::SwarmId;

use super::reply::text;
use super::scripts::Script;
use super::{Core, names};
use crate::{Error, TopicSpec};

/// Takes one topic away, as it was born; with its life, however it was. `false`: there is something in it.
pub(super) async fn topic(core: &Core, swarm: &SwarmId, stage: &str, born: Option<u64>) -> Result<bool, Error> {
    let mut args = core.args(Script::RemoveTopic, &names::meta(swarm));
    args.bytes(&core.link.options.node)
        .text(stage)
        .num(limits::STATE_BUCKETS)
        .flag(born.is_none())
        .num(born.unwrap_or(0))
        .num(limits::REMOVED_STAGES_MAX);
    let (mut said, _) = core.write_alive(swarm, Script::RemoveTopic, &args).await?;
    match said.word.as_str() {
        "OK" => {}
        "KEPT" => return Ok(false),
        _ => return Err(said.refusal()),
    }
    // Keys of large states, in slices, so that others are not held up.
    loop {
        let mut args = core.args(Script::Sweep, &names::meta(swarm));
        args.num(limits::REDIS_SWEEP_MAX);
        let (mut said, _) = core.write(Script::Sweep, &args).await?;
        if said.number()? == 0 {
            return Ok(true);
        }
    }
}

pub(super) async fn remove_topic(core: &Core, spec: &TopicSpec) -> Result<bool, Error> {
    let id = &spec.id;
    if !topic(core, id.swarm(), id.stage().as_str(), Some(spec.born)).await? {
        return Ok(false);
    }
    core.cache.forget_if(|topic| topic == id);
    super::lock(&core.layouts).remove(id);
    core.bells.ring_topic(id);
    core.safe_at(&names::meta(id.swarm())).await?;
    Ok(true)
}

pub(super) async fn remove_swarm(core: &Core, swarm: &SwarmId, if_empty: bool) -> Result<bool, Error> {
    let mut args = core.args(Script::ForgetSwarm, &names::meta(swarm));
    args.bytes(&core.link.options.node).flag(if_empty);
    let (mut said, _) = core.write(Script::ForgetSwarm, &args).await?;
    match said.word.as_str() {
        "OK" => {}
        "KEPT" => return Ok(false),
        _ => return Err(said.refusal()),
    }
    core.bells.forget(swarm);
    for stage in said.list()? {
        topic(core, swarm, &text(stage)?, None).await?;
    }
    let args = core.args(Script::EndLife, &names::meta(swarm));
    core.write(Script::EndLife, &args).await?;
    let tag = names::tag(swarm);
    // One who removes it twice remembers it twice, which only shortens the memory.
    let mut pipe = redis::pipe();
    pipe.cmd("SREM").arg(names::LIVES).arg(&tag);
    pipe.cmd("RPUSH").arg(names::GONE).arg(&tag);
    pipe.cmd("LLEN").arg(names::GONE);
    let answer = core.link.send_all(&pipe).await?;
    let was_there = matches!(answer.first(), Some(redis::Value::Int(1)));
    let kept = match answer.last() {
        Some(redis::Value::Int(n)) => u64::try_from(*n).unwrap_or(0),
        _ => 0,
    };
    let mut extra = kept.saturating_sub(limits::GONE_SWARMS_MAX);
    if !was_there {
        // It was remembered before.
        let mut pop = redis::cmd("RPOP");
        pop.arg(names::GONE);
        core.link.send(&pop).await?;
        extra = 0;
    }
    for _ in 0..extra {
        let mut pop = redis::cmd("LPOP");
        pop.arg(names::GONE);
        if let Ok(tag) = text(core.link.send(&pop).await?)
            && let Some(old) = names::swarm_of(&tag)
        {
            let mut del = redis::cmd("UNLINK");
            del.arg(names::meta(&old));
            core.link.send(&del).await?;
        }
    }
    core.forget_life(swarm);
    core.safe_at(&names::meta(swarm)).await?;
    core.safe_at(names::LIVES).await?;
    Ok(true)
}

pub(super) async fn discard_dead_letters(core: &Core, swarm: &SwarmId, ids: &[u64]) -> Result<u64, Error> {
    let mut discarded = 0;
    for ids in ids.chunks(limits::REDIS_SWEEP_MAX) {
        let mut args = core.args(Script::Discard, &names::meta(swarm));
        args.bytes(&core.link.options.node).num(ids.len());
        for id in ids {
            args.num(*id);
        }
        let (mut said, _) = core.write(Script::Discard, &args).await?;
        if said.word != "OK" {
            return Err(said.refusal());
        }
        discarded += said.number()?;
        for stage in said.list()? {
            if let Ok(stage) = text(stage)?.parse() {
                core.bells.ring_room(&swarm.topic(&stage));
            }
        }
    }
    core.safe_at(&names::meta(swarm)).await?;
    Ok(discarded)
}
