//! The nodes that share a store, as operators see them.

use std::collections::BTreeMap;

use skep_model::id::NodeId;
use skep_model::scope::{Scope, SwarmPath};
use skep_proto::v1;
use tonic::{Response, Status};

use super::failure::internal;
use super::{Keeper, Reply};
use crate::members::Heard;
use crate::wording::instead;

impl Keeper {
    pub(super) async fn nodes(&self) -> Result<Vec<v1::NodeInfo>, Status> {
        let (all, catalog) = self.members.all(&self.supervisor).await.map_err(internal)?;
        let waiting = self.waiting().await?;
        let shown = all.into_iter().map(|heard| {
            let member = heard.member;
            let owned = member.owned.iter().map(|(at, partitions)| {
                // The path of another tenant's Swarm has a slash of its own.
                let (swarm, stage) = at.rsplit_once('/').unwrap_or((at, ""));
                v1::OwnedStage {
                    swarm: swarm.to_owned(),
                    stage: stage.to_owned(),
                    partitions: partitions.iter().map(|p| u32::from(*p)).collect(),
                    waiting: waiting.get(at).copied().unwrap_or(0),
                }
            });
            v1::NodeInfo {
                id: heard.id.to_string(),
                name: member.name,
                version: member.version,
                url: member.url,
                roles: member.roles,
                state: match member.draining {
                    true => v1::node_info::State::Draining,
                    false => v1::node_info::State::Serving,
                }
                .into(),
                started_ms: member.started_ms,
                silent_ms: heard.silent_ms,
                here: heard.id == self.node,
                owned: owned.collect(),
                labels: member.labels.iter().map(ToString::to_string).collect(),
                behind: member.catalog != catalog,
            }
        });
        Ok(shown.collect())
    }

    /// Unread and parked messages by `swarm/stage`.
    async fn waiting(&self) -> Result<BTreeMap<String, u64>, Status> {
        let mut waiting = BTreeMap::new();
        for (path, record) in self.supervisor.catalogs.swarms().await.map_err(internal)? {
            let id = record.id(&Scope::of(path.tenant().clone())).map_err(internal)?;
            for topic in super::views::depths(self.backend.as_ref(), &id).await? {
                waiting.insert(at(&path, &topic.topic), topic.unread + topic.parked);
            }
        }
        Ok(waiting)
    }

    pub(super) async fn tell_node(&self, asked: v1::DrainNodeRequest) -> Reply<v1::DrainNodeReply> {
        let (all, _) = self.members.all(&self.supervisor).await.map_err(internal)?;
        let id = find(&all, &asked.node)?;
        let others = all.iter().any(|n| n.id != id && !n.member.draining && n.member.works());
        if !asked.undo && !others {
            return Err(Status::failed_precondition(
                "no other node would run its Bees: start one first, or stop this node, which keeps everything",
            ));
        }
        self.members.ask(id, !asked.undo).await.map_err(internal)?;
        Ok(Response::new(v1::DrainNodeReply { id: id.to_string() }))
    }
}

fn at(swarm: &SwarmPath, topic: &skep_model::scope::TopicId) -> String {
    format!("{swarm}/{}", topic.stage())
}

/// By id, or by a name that only one has.
fn find(all: &[Heard], wanted: &str) -> Result<NodeId, Status> {
    if let Ok(id) = wanted.parse::<NodeId>()
        && all.iter().any(|n| n.id == id)
    {
        return Ok(id);
    }
    let mut named = all.iter().filter(|n| n.member.name == wanted).map(|n| n.id);
    match (named.next(), named.next()) {
        (Some(id), None) => Ok(id),
        (Some(first), Some(second)) => Err(Status::failed_precondition(format!(
            "several nodes are named `{wanted}`: say the id, as {first} or {second}"
        ))),
        (None, _) => {
            let names: Vec<&str> = all.iter().map(|n| n.member.name.as_str()).collect();
            let hint = instead(wanted, &names, "no node is alive");
            Err(Status::not_found(format!("no node `{wanted}`; {hint}")))
        }
    }
}
