//! What operators look at: Swarms, state.

use std::collections::BTreeMap;

use skep_model::limits::KEEPER_REPLY_BYTES_MAX;
use skep_model::name::{StageName, SwarmName};
use skep_model::scope::SwarmId;
use skep_model::swarm::{Stage, Swarm};
use skep_proto::v1;
use skep_stage::decide::visible;
use skep_topic::{Backend, StateSize};
use tonic::{Response, Status};

use super::failure::{internal, invalid, topic_error};
use super::{Keeper, Reply};
use crate::catalog::{Hold, SwarmRecord};
use crate::peer::ask;
use crate::wording::instead;

impl Keeper {
    async fn summary(&self, name: &SwarmName, record: &SwarmRecord) -> v1::SwarmSummary {
        let topics = match record.id(self.catalog.scope()) {
            Ok(id) => self.backend.status(&id).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let status = if record.deleting {
            "deleting".to_owned()
        } else if record.ended_ms.is_some() {
            "ended".to_owned()
        } else if let Some(trouble) = self.supervisor.trouble(&self.path(name)) {
            format!("degraded: {trouble}")
        } else if let Some(why) = self.supervisor.homeless(self.catalog.tenant()) {
            format!("degraded: {why}")
        } else if let Some(hold) = record.hold {
            match hold {
                Hold::Draining => "draining".to_owned(),
                Hold::Paused => "paused".to_owned(),
            }
        } else if !record.paused.is_empty() {
            let paused: Vec<&str> = record.paused.iter().map(|stage| stage.as_str()).collect();
            format!("running, but for {}", paused.join(", "))
        } else {
            "running".to_owned()
        };
        v1::SwarmSummary {
            name: name.to_string(),
            revision: record.revision,
            stages: record.swarm.stages.len() as u64,
            subjects: record.swarm.subjects().iter().map(ToString::to_string).collect(),
            status,
            created_ms: record.created_ms,
            applied_ms: record.applied_ms,
            unread: topics.iter().map(|t| t.unread + t.parked).sum(),
            dead: topics.iter().map(|t| t.dead).sum(),
        }
    }

    pub(super) async fn swarms(&self) -> Result<Vec<v1::SwarmSummary>, Status> {
        let mut swarms = Vec::new();
        for (name, record) in self.catalog.swarms().await.map_err(internal)? {
            swarms.push(self.summary(&name, &record).await);
        }
        Ok(swarms)
    }

    pub(super) async fn describe(&self, name: &str, count_keys: bool) -> Reply<v1::DescribeSwarmReply> {
        let (name, found, id) = self.find(name).await?;
        let record = found.record;
        let topics = depths(self.backend.as_ref(), &id).await?;
        let mut sizes = BTreeMap::new();
        for stage in record.swarm.stages.iter().filter(|s| count_keys && s.state) {
            let size = self.backend.state_size(&id.topic(&stage.name)).await;
            sizes.insert(stage.name.clone(), size.unwrap_or_default());
        }
        let (theirs, missing) = ask::counts(&self.asking, &self.members.others(), &id.path()).await;
        let counted: Vec<v1::StageCounts> = self.here.counts(&id, &record.swarm).into_iter().chain(theirs).collect();
        let stages = record
            .swarm
            .stages
            .iter()
            .map(|stage| {
                let topic = id.topic(&stage.name);
                let depth = topics.iter().find(|t| t.topic == topic);
                let counts = together(&counted, stage.name.as_str());
                let size = sizes.get(&stage.name).copied().unwrap_or_default();
                v1::StageStatus {
                    name: stage.name.to_string(),
                    module: stage.module.clone(),
                    digest: format!("sha256:{}", record.modules.get(&stage.name).map_or("", String::as_str)),
                    bee: stage.bee.to_string(),
                    inputs: stage.inputs.iter().map(|i| i.shown(".")).collect(),
                    partitions: u64::from(stage.partitions),
                    unread: depth.map_or(0, |d| d.unread),
                    parked: depth.map_or(0, |d| d.parked),
                    timers: depth.map_or(0, |d| d.timers),
                    dead: depth.map_or(0, |d| d.dead),
                    keys: size.keys,
                    processed: counts.processed,
                    failed: counts.failed,
                    batches: counts.batches,
                    busy_us: counts.busy_us,
                    status: match counts.held_up {
                        _ if record.is_paused(&stage.name) => "paused: by an operator".to_owned(),
                        0 if record.ended_ms.is_some() => "ended".to_owned(),
                        0 => full(stage, size)
                            .or_else(|| self.supervisor.ending(&id.path(), record.revision, &stage.name))
                            .unwrap_or_else(|| "ok".to_owned()),
                        1 => counts.state,
                        more => format!("{} ({more} partitions)", counts.state),
                    },
                    last_error: counts.last_error,
                    pure: on_pure_path(&record.swarm, stage),
                }
            })
            .collect();
        Ok(Response::new(v1::DescribeSwarmReply {
            summary: Some(self.summary(&name, &record).await),
            manifest: record.manifest,
            stages,
            missing,
        }))
    }

    pub(super) async fn state_of(&self, asked: v1::GetStateRequest) -> Reply<v1::GetStateReply> {
        let (name, found, id) = self.find(&asked.swarm).await?;
        let Some(stage) = stage_of(&name, &found.record, &asked.stage)? else {
            return Err(invalid("name a stage"));
        };
        let topic = id.topic(&stage);
        let stored = self.backend.state(&topic, &asked.key).await.map_err(topic_error)?;
        let mut seen = stored.into_iter().collect();
        let ttl = found.record.swarm.stage(&stage).and_then(|stage| stage.keep.ttl);
        visible(&mut seen, ttl, self.clock.now_ms());
        let mut values: Vec<v1::StateValue> = seen
            .into_iter()
            .map(|(name, value)| v1::StateValue { name, value })
            .collect();
        values.sort_by(|a, b| a.name.cmp(&b.name));
        if !asked.after.is_empty() {
            values.retain(|v| v.name > asked.after);
        }
        let mut bytes = 0;
        let fits = values
            .iter()
            .position(|v| {
                bytes += v.name.len() + v.value.len() + 16;
                bytes > KEEPER_REPLY_BYTES_MAX
            })
            // One always goes, so that whoever pages gets on.
            .map_or(values.len(), |at| at.max(1));
        let more = fits < values.len();
        values.truncate(fits);
        Ok(Response::new(v1::GetStateReply { values, more }))
    }
}

/// What all nodes counted of a stage: trouble says more than a pause, and one last error stands for all.
fn together(counted: &[v1::StageCounts], stage: &str) -> v1::StageCounts {
    let of = counted.iter().filter(|c| c.stage == stage);
    of.fold(v1::StageCounts::default(), |all, one| {
        let (worse, better) = match one.troubled && !all.troubled {
            true => (one, &all),
            false => (&all, one),
        };
        let first = |a: &str, b: &str| if a.is_empty() { b.to_owned() } else { a.to_owned() };
        v1::StageCounts {
            stage: stage.to_owned(),
            processed: all.processed + one.processed,
            failed: all.failed + one.failed,
            batches: all.batches + one.batches,
            busy_us: all.busy_us + one.busy_us,
            held_up: all.held_up + one.held_up,
            state: first(&worse.state, &better.state),
            troubled: worse.troubled,
            last_error: first(&all.last_error, &one.last_error),
        }
    })
}

/// That a stage's state has no room for more, which its Bee is told of when it puts some.
fn full(stage: &Stage, size: StateSize) -> Option<String> {
    let keep = stage.keep;
    if size.keys >= keep.keys {
        let (is, max) = (size.keys, keep.keys);
        Some(format!(
            "state full: {is} keys, at most {max} may be (`state: {{ keys: … }}`)"
        ))
    } else if size.bytes >= keep.bytes {
        let (is, max) = (size.bytes, keep.bytes);
        Some(format!(
            "state full: {is} bytes, at most {max} may be (`state: {{ bytes: … }}`)"
        ))
    } else {
        None
    }
}

pub(super) async fn depths(backend: &dyn Backend, id: &SwarmId) -> Result<Vec<skep_topic::TopicStatus>, Status> {
    match backend.status(id).await {
        // Deleted, but for its record.
        Err(skep_topic::Error::Gone) => Ok(Vec::new()),
        other => other.map_err(topic_error),
    }
}

fn on_pure_path(swarm: &Swarm, stage: &Stage) -> bool {
    swarm
        .subjects()
        .iter()
        .any(|subject| swarm.pure(subject) && swarm.reachable(subject).iter().any(|s| s.name == stage.name))
}

pub(super) fn stage_of(swarm: &SwarmName, record: &SwarmRecord, name: &str) -> Result<Option<StageName>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    let name: StageName = name.parse().map_err(invalid)?;
    if record.swarm.stage(&name).is_none() {
        let stages: Vec<&str> = record.swarm.stages.iter().map(|s| s.name.as_str()).collect();
        let hint = instead(name.as_str(), &stages, "it has none");
        return Err(Status::not_found(format!(
            "Swarm `{swarm}` has no stage `{name}`; {hint}"
        )));
    }
    Ok(Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_nodes_add_up_and_the_worst_is_told() {
        let one = |stage: &str, processed, held_up, state: &str, troubled, last_error: &str| v1::StageCounts {
            stage: stage.to_owned(),
            processed,
            held_up,
            state: state.to_owned(),
            troubled,
            last_error: last_error.to_owned(),
            ..v1::StageCounts::default()
        };
        let all = [
            one("a", 1, 0, "", false, ""),
            one("b", 10, 1, "troubled: x", true, ""),
            one("a", 2, 2, "paused: full", false, "first"),
            one("a", 4, 1, "troubled: down", true, "second"),
        ];
        let a = together(&all, "a");
        assert_eq!((a.processed, a.held_up, a.state.as_str()), (7, 3, "troubled: down"));
        assert_eq!(a.last_error, "first");
        assert_eq!(together(&all, "c").processed, 0);
    }
}
