//! The Beekeeper: uploads, applies, deletions, logs and dead letters, over gRPC. This file is the service; what it does is in
//! the files beside.

mod applies;
mod backups;
mod deletion;
mod failure;
mod letters;
mod logs;
mod modules;
mod nodes;
mod pauses;
mod restores;
mod state;
mod trials;
mod uploads;
mod views;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use skep_model::env::{Clock, Entropy};
use skep_model::id::NodeId;
use skep_model::limits::MANIFEST_BYTES_MAX;
use skep_model::name::SwarmName;
use skep_model::scope::SwarmId;
use skep_proto::v1;
use skep_proto::v1::beekeeper_server::{Beekeeper, BeekeeperServer};
use skep_topic::Backend;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::{SwarmRecord, Versioned};
use crate::level::Build;
use crate::members::Members;
use crate::peer::Here;
use crate::store::ModuleStore;
use crate::supervisor::Supervisor;
use crate::wording::instead;
use deletion::Deletions;
use failure::{internal, invalid};

/// Uploads received at once: each may hold [`UPLOAD_BYTES_MAX`] in memory.
const UPLOADS_MAX: usize = 4;

static UPLOADS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(UPLOADS_MAX);

#[derive(Clone)]
pub struct Keeper(Arc<Parts>, Deletions);

impl std::ops::Deref for Keeper {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What a Beekeeper works with.
pub struct Parts {
    pub node: NodeId,
    pub members: Arc<Members>,
    /// As `skep version` shows it.
    pub backend_name: String,
    pub supervisor: Arc<Supervisor>,
    pub backend: Arc<dyn Backend>,
    pub store: ModuleStore,
    pub here: Here,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub data: String,
    pub started_ms: u64,
    /// How long an upload may take beside its bytes: [`skep_model::limits::UPLOAD_MS`] unless a test is in a hurry.
    pub upload: Duration,
    /// Ends the streams that would keep a stopping node waiting.
    pub stop: CancellationToken,
}

impl Keeper {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts), Deletions::default())
    }

    #[must_use]
    pub fn service(self) -> BeekeeperServer<Self> {
        BeekeeperServer::new(self).max_decoding_message_size(MANIFEST_BYTES_MAX + (64 << 10))
    }

    async fn find(&self, name: &str) -> Result<(SwarmName, Versioned<SwarmRecord>, SwarmId), Status> {
        let name: SwarmName = name.parse().map_err(invalid)?;
        let Some(found) = self.supervisor.catalog.swarm(&name).await.map_err(internal)? else {
            return Err(self.no_such_swarm(&name).await);
        };
        let id = found.record.id(self.supervisor.catalog.scope()).map_err(internal)?;
        Ok((name, found, id))
    }

    async fn no_such_swarm(&self, name: &SwarmName) -> Status {
        let known = self.supervisor.catalog.swarms().await.unwrap_or_default();
        let names: Vec<&str> = known.keys().map(SwarmName::as_str).collect();
        let hint = instead(name.as_str(), &names, "there is none yet: apply one");
        Status::not_found(format!("no Swarm `{name}`; {hint}"))
    }
}

type Reply<T> = Result<Response<T>, Status>;
type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Beekeeper for Keeper {
    async fn push_module(&self, request: Request<Streaming<v1::PushModuleRequest>>) -> Reply<v1::PushModuleReply> {
        let place = UPLOADS.try_acquire().map_err(|_| {
            Status::resource_exhausted(format!(
                "{UPLOADS_MAX} uploads are under way, no more fit: try again soon"
            ))
        })?;
        let upload = uploads::receive(request.into_inner(), self.upload).await?;
        let this = self.clone();
        detached(async move {
            let _place = place;
            this.push(upload).await
        })
        .await
    }

    async fn list_modules(&self, _: Request<v1::ListModulesRequest>) -> Reply<v1::ListModulesReply> {
        let modules = self.modules().await?;
        Ok(Response::new(v1::ListModulesReply { modules }))
    }

    async fn delete_module(&self, request: Request<v1::DeleteModuleRequest>) -> Reply<v1::DeleteModuleReply> {
        let this = self.clone();
        detached(async move { this.remove_module(request.into_inner()).await }).await
    }

    async fn apply_swarm(&self, request: Request<v1::ApplySwarmRequest>) -> Reply<v1::ApplySwarmReply> {
        let this = self.clone();
        detached(async move { this.apply(request.into_inner()).await }).await
    }

    async fn scale_stage(&self, request: Request<v1::ScaleStageRequest>) -> Reply<v1::ApplySwarmReply> {
        let this = self.clone();
        detached(async move { this.scale(request.into_inner()).await }).await
    }

    async fn hold_swarm(&self, request: Request<v1::HoldSwarmRequest>) -> Reply<v1::HoldSwarmReply> {
        let this = self.clone();
        detached(async move { this.hold(request.into_inner()).await }).await
    }

    async fn list_swarms(&self, _: Request<v1::ListSwarmsRequest>) -> Reply<v1::ListSwarmsReply> {
        let swarms = self.swarms().await?;
        Ok(Response::new(v1::ListSwarmsReply { swarms }))
    }

    async fn describe_swarm(&self, request: Request<v1::DescribeSwarmRequest>) -> Reply<v1::DescribeSwarmReply> {
        let v1::DescribeSwarmRequest { name, count_keys } = request.into_inner();
        self.describe(&name, count_keys).await
    }

    type DeleteSwarmStream = Out<v1::DeleteSwarmProgress>;

    async fn delete_swarm(&self, request: Request<v1::DeleteSwarmRequest>) -> Reply<Self::DeleteSwarmStream> {
        let asked = request.into_inner();
        let this = self.clone();
        let told = detached(async move { this.begin_deletion(asked).await }).await?;
        Ok(Response::new(deletion::progress(told, self.stop.clone())))
    }

    type LogsStream = Out<v1::LogEntry>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Reply<Self::LogsStream> {
        self.log_lines(request.into_inner()).await
    }

    async fn list_dead_letters(&self, request: Request<v1::ListDeadLettersRequest>) -> Reply<v1::ListDeadLettersReply> {
        self.dead_letters(request.into_inner()).await
    }

    async fn discard_dead_letters(
        &self,
        request: Request<v1::DiscardDeadLettersRequest>,
    ) -> Reply<v1::DiscardDeadLettersReply> {
        self.discard(request.into_inner()).await
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<v1::RedriveDeadLettersRequest>,
    ) -> Reply<v1::RedriveDeadLettersReply> {
        let this = self.clone();
        detached(async move { this.redrive(request.into_inner()).await }).await
    }

    async fn try_dead_letter(&self, request: Request<v1::TryDeadLetterRequest>) -> Reply<v1::TryDeadLetterReply> {
        self.try_letter(request.into_inner()).await
    }

    async fn get_state(&self, request: Request<v1::GetStateRequest>) -> Reply<v1::GetStateReply> {
        self.state_of(request.into_inner()).await
    }

    type ListStateStream = Out<v1::ListStateReply>;

    async fn list_state(&self, request: Request<v1::ListStateRequest>) -> Reply<Self::ListStateStream> {
        self.state_pages(request.into_inner()).await
    }

    async fn import_state(&self, request: Request<Streaming<v1::ImportStateRequest>>) -> Reply<v1::ImportStateReply> {
        self.take_state(request.into_inner()).await
    }

    async fn node(&self, _: Request<v1::NodeRequest>) -> Reply<v1::NodeReply> {
        let counters = self.backend.counters();
        Ok(Response::new(v1::NodeReply {
            version: Build::current().version.to_owned(),
            started_ms: self.started_ms,
            data: self.data.clone(),
            backend: self.backend_name.clone(),
            flushes: counters.flushes,
            commits: counters.commits,
        }))
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Reply<v1::ListNodesReply> {
        let nodes = self.nodes().await?;
        Ok(Response::new(v1::ListNodesReply { nodes }))
    }

    type BackupStream = Out<v1::BackupReply>;

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Reply<Self::BackupStream> {
        Keeper::backup(self)
    }

    async fn restore(&self, request: Request<Streaming<v1::RestoreRequest>>) -> Reply<v1::BackupContents> {
        Keeper::restore(self, request.into_inner()).await
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Reply<v1::DrainNodeReply> {
        let this = self.clone();
        detached(async move { this.tell_node(request.into_inner()).await }).await
    }
}

/// Runs to its end although the caller may go away: what is stored also takes effect.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(e) => Err(Status::internal(format!("the call ended without an answer: {e}"))),
    }
}
