//! What operators look at: Swarms, logs, state.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use skep_model::limits::KEEPER_REPLY_BYTES_MAX;
use skep_model::name::{StageName, SwarmName};
use skep_model::scope::SwarmId;
use skep_model::swarm::{InputSource, Stage, StageInput, Swarm};
use skep_proto::v1;
use skep_topic::Backend;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tonic::{Response, Status};

use super::failure::{internal, invalid, topic_error};
use super::{Keeper, Out, Reply};
use crate::catalog::{Hold, SwarmRecord};
use crate::logs::Kept;
use crate::wording::instead;

/// Log lines that wait for a slow client.
const FOLLOW_LINES_MAX: usize = 16;

impl Keeper {
    async fn summary(&self, name: &SwarmName, record: &SwarmRecord) -> v1::SwarmSummary {
        let topics = match record.id(self.supervisor.catalog.scope()) {
            Ok(id) => self.backend.status(&id).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let status = if record.deleting {
            "deleting".to_owned()
        } else if let Some(trouble) = self.supervisor.trouble(name) {
            format!("degraded: {trouble}")
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
        for (name, record) in self.supervisor.catalog.swarms().await.map_err(internal)? {
            swarms.push(self.summary(&name, &record).await);
        }
        Ok(swarms)
    }

    pub(super) async fn describe(&self, name: &str, count_keys: bool) -> Reply<v1::DescribeSwarmReply> {
        let (name, found, id) = self.find(name).await?;
        let record = found.record;
        let topics = depths(self.backend.as_ref(), &id).await?;
        let mut keys = BTreeMap::new();
        for stage in record.swarm.stages.iter().filter(|s| count_keys && s.state) {
            let count = self.backend.keys(&id.topic(&stage.name)).await.unwrap_or_default();
            keys.insert(stage.name.clone(), count);
        }
        let stages = record
            .swarm
            .stages
            .iter()
            .map(|stage| {
                let topic = id.topic(&stage.name);
                let depth = topics.iter().find(|t| t.topic == topic);
                let numbers = self.stats.numbers(&topic);
                v1::StageStatus {
                    name: stage.name.to_string(),
                    module: stage.module.clone(),
                    digest: format!("sha256:{}", record.modules.get(&stage.name).map_or("", String::as_str)),
                    bee: stage.bee.to_string(),
                    inputs: stage.inputs.iter().map(input_text).collect(),
                    partitions: u64::from(stage.partitions),
                    unread: depth.map_or(0, |d| d.unread),
                    parked: depth.map_or(0, |d| d.parked),
                    timers: depth.map_or(0, |d| d.timers),
                    dead: depth.map_or(0, |d| d.dead),
                    keys: keys.get(&stage.name).copied().unwrap_or_default(),
                    processed: numbers.processed,
                    failed: numbers.failed,
                    batches: numbers.batches,
                    busy_us: numbers.busy_us,
                    status: match numbers.state {
                        _ if record.is_paused(&stage.name) => "paused: by an operator".to_owned(),
                        Some(state) if numbers.held_up > 1 => format!("{state} ({} partitions)", numbers.held_up),
                        Some(state) => state.to_string(),
                        None => "ok".to_owned(),
                    },
                    last_error: numbers.last_error.unwrap_or_default(),
                    pure: on_pure_path(&record.swarm, stage),
                }
            })
            .collect();
        Ok(Response::new(v1::DescribeSwarmReply {
            summary: Some(self.summary(&name, &record).await),
            manifest: record.manifest,
            stages,
        }))
    }

    pub(super) async fn log_lines(&self, asked: v1::LogsRequest) -> Reply<Out<v1::LogEntry>> {
        let (name, found, id) = self.find(&asked.swarm).await?;
        let stage = stage_of(&name, &found.record, &asked.stage)?;
        let (kept, mut live) = self.stats.logs.read(&id, stage.as_ref(), asked.tail as usize);
        let past = futures::stream::iter(kept.into_iter().map(|k| Ok(entry(k))));
        if !asked.follow {
            return Ok(Response::new(Box::pin(past)));
        }
        let stop = self.stop.clone();
        let (tell, follow) = mpsc::channel(FOLLOW_LINES_MAX);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    () = stop.cancelled() => return,
                    () = tell.closed() => return,
                    next = live.recv() => next,
                };
                let line = match next {
                    Ok(kept) if kept.topic.swarm() == &id && stage.as_ref().is_none_or(|s| s == kept.topic.stage()) => {
                        entry(kept)
                    }
                    Ok(_) => continue,
                    Err(RecvError::Lagged(missed)) => v1::LogEntry {
                        level: "warn".to_owned(),
                        context: "skep".to_owned(),
                        text: format!("{missed} lines were not shown: this reader is too slow"),
                        ..v1::LogEntry::default()
                    },
                    Err(RecvError::Closed) => return,
                };
                if tell.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        });
        let follow = tokio_stream::wrappers::ReceiverStream::new(follow);
        Ok(Response::new(Box::pin(past.chain(follow))))
    }

    pub(super) async fn state_of(&self, asked: v1::GetStateRequest) -> Reply<v1::GetStateReply> {
        let (name, found, id) = self.find(&asked.swarm).await?;
        let Some(stage) = stage_of(&name, &found.record, &asked.stage)? else {
            return Err(invalid("name a stage"));
        };
        let values = self
            .backend
            .state(&id.topic(&stage), &asked.key)
            .await
            .map_err(topic_error)?;
        let mut values: Vec<v1::StateValue> = values
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

fn input_text(input: &StageInput) -> String {
    let take = &input.take;
    match &input.source {
        InputSource::Gateway(subject) => format!("gateway {subject}{take}"),
        InputSource::Bee { stage, output: None } => format!("bee {stage}{take}"),
        InputSource::Bee {
            stage,
            output: Some(output),
        } => format!("bee {stage}.{output}{take}"),
    }
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

fn entry(kept: Kept) -> v1::LogEntry {
    v1::LogEntry {
        at_ms: kept.at_ms,
        stage: kept.topic.stage().to_string(),
        level: kept.line.level.as_str().to_owned(),
        context: kept.line.context,
        text: kept.line.text,
        message: kept.message.map(|m| m.to_string()).unwrap_or_default(),
    }
}
