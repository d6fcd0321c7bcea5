//! Holding a Swarm or a stage, and letting it go on. What is held stands in the catalog, so every node follows.

use std::collections::BTreeSet;

use skep_proto::v1;
use skep_proto::v1::hold_swarm_request::Hold as Wanted;
use tonic::{Response, Status};

use super::failure::{internal, invalid};
use super::views::stage_of;
use super::{Keeper, Reply};
use crate::catalog::{Hold, RACES_MAX};

impl Keeper {
    pub(super) async fn hold(&self, asked: v1::HoldSwarmRequest) -> Reply<v1::HoldSwarmReply> {
        let wanted = asked.hold();
        let _writes = self.supervisor.writes.lock().await;
        for _ in 0..RACES_MAX {
            let (name, found, _) = self.find(&asked.swarm).await?;
            let mut record = found.record;
            if record.deleting {
                return Err(Status::failed_precondition(format!("Swarm `{name}` is being deleted")));
            }
            let before = (record.hold, record.paused.clone());
            match (stage_of(&name, &record, &asked.stage)?, wanted) {
                (_, Wanted::Unspecified) => return Err(invalid("say what to hold it in: none, draining or paused")),
                (None, Wanted::None) => {
                    record.hold = None;
                    record.paused = BTreeSet::new();
                }
                (None, Wanted::Draining) if !record.paused.is_empty() => {
                    let paused: Vec<&str> = record.paused.iter().map(|stage| stage.as_str()).collect();
                    return Err(Status::failed_precondition(format!(
                        "Swarm `{name}` cannot drain while a stage of it is paused: resume {}",
                        paused.join(", ")
                    )));
                }
                (None, Wanted::Draining) => record.hold = Some(Hold::Draining),
                (None, Wanted::Paused) => record.hold = Some(Hold::Paused),
                (Some(_), Wanted::Draining) => {
                    return Err(invalid("a stage is paused or runs; a whole Swarm can be drained"));
                }
                (Some(stage), _) if record.hold.is_some() => {
                    return Err(Status::failed_precondition(format!(
                        "Swarm `{name}` is held as a whole: resume it before its stage `{stage}`"
                    )));
                }
                (Some(stage), Wanted::None) => {
                    record.paused.remove(&stage);
                }
                (Some(stage), Wanted::Paused) => {
                    record.paused.insert(stage);
                }
            }
            let stages = record.swarm.stages.iter().map(|stage| &stage.name);
            let paused = stages
                .filter(|stage| record.is_paused(stage))
                .map(ToString::to_string)
                .collect();
            let already = before == (record.hold, record.paused.clone());
            if already
                || self
                    .catalog
                    .put_swarm(found.version, &record)
                    .await
                    .map_err(internal)?
                    .is_ok()
            {
                self.supervisor.settle(&self.path(&name)).await.map_err(internal)?;
                return Ok(Response::new(v1::HoldSwarmReply { already, paused }));
            }
        }
        Err(Status::aborted("others write to the catalog all the time: try again"))
    }
}
