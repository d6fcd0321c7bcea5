//! The Beekeeper: uploads, applies, deletions, logs and dead letters, over gRPC. This file is the service; what it does is in
//! the files beside.

mod access;
mod applies;
mod audits;
mod backups;
mod deletion;
mod edges;
mod failure;
mod letters;
mod logs;
mod models;
mod modules;
mod nodes;
mod pauses;
mod restores;
mod secrets;
mod state;
mod tenants;
mod tokens;
mod trials;
mod uploads;
mod views;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use skep_gateway::door;
use skep_model::access::{Caller, Role};
use skep_model::env::{Clock, Entropy};
use skep_model::id::NodeId;
use skep_model::limits::{MANIFEST_BYTES_MAX, SECRET_BYTES_MAX};
use skep_model::name::SwarmName;
use skep_model::scope::{SwarmId, SwarmPath};
use skep_proto::v1;
use skep_proto::v1::access_server::AccessServer;
use skep_proto::v1::audit_server::AuditServer;
use skep_proto::v1::beekeeper_server::{Beekeeper, BeekeeperServer};
use skep_proto::v1::models_server::ModelsServer;
use skep_proto::v1::secrets_server::SecretsServer;
use skep_topic::Backend;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::access::Registry;
use crate::catalog::{Catalog, SwarmRecord, Versioned};
use crate::edges::Edges;
use crate::level::Build;
use crate::members::Members;
use crate::models::Lookout;
use crate::peer::Here;
use crate::peer::ask::Asking;
use crate::store::ModuleStore;
use crate::supervisor::Supervisor;
use crate::wording::instead;
use deletion::Deletions;
use failure::{internal, invalid};

/// Uploads received at once: each may hold [`UPLOAD_BYTES_MAX`] in memory.
const UPLOADS_MAX: usize = 4;

static UPLOADS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(UPLOADS_MAX);

/// A Beekeeper as one caller meets it: what it reads and writes is of the caller's tenant.
#[derive(Clone)]
pub struct Keeper {
    parts: Arc<Parts>,
    deletions: Deletions,
    caller: Caller,
    catalog: Catalog,
    store: ModuleStore,
}

impl std::ops::Deref for Keeper {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// The service: every call is turned over to the [`Keeper`] of its caller, whom the door knows.
#[derive(Clone)]
pub struct Desk {
    parts: Arc<Parts>,
    deletions: Deletions,
}

impl Desk {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            parts: Arc::new(parts),
            deletions: Deletions::default(),
        }
    }

    #[must_use]
    pub fn service(self) -> BeekeeperServer<Self> {
        BeekeeperServer::new(self).max_decoding_message_size(MANIFEST_BYTES_MAX + (64 << 10))
    }

    /// Tenants and tokens.
    #[must_use]
    pub fn access(self) -> AccessServer<Self> {
        AccessServer::new(self)
    }

    #[must_use]
    pub fn secrets(self) -> SecretsServer<Self> {
        SecretsServer::new(self).max_decoding_message_size(SECRET_BYTES_MAX + (4 << 10))
    }

    #[must_use]
    pub fn models(self) -> ModelsServer<Self> {
        ModelsServer::new(self)
    }

    #[must_use]
    pub fn audit(self) -> AuditServer<Self> {
        AuditServer::new(self)
    }

    fn of<T>(&self, request: &Request<T>) -> Result<Keeper, Status> {
        let caller = door::caller(request.extensions()).map_err(|e| skep_gateway::error::status(&e, false))?;
        Ok(self.keeper(caller))
    }

    fn keeper(&self, caller: Caller) -> Keeper {
        Keeper {
            parts: Arc::clone(&self.parts),
            deletions: self.deletions.clone(),
            catalog: self.parts.supervisor.catalogs.of(caller.scope.tenant()),
            store: self.parts.stores.of(caller.scope.tenant()),
            caller,
        }
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
    /// Of whatever tenant: [`ModuleStore::of`].
    pub stores: ModuleStore,
    pub here: Here,
    pub asking: Asking,
    pub registry: Arc<Registry>,
    pub edges: Arc<Edges>,
    pub lookout: Lookout,
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
    fn path(&self, name: &SwarmName) -> SwarmPath {
        self.catalog.scope().path(name)
    }

    async fn find(&self, name: &str) -> Result<(SwarmName, Versioned<SwarmRecord>, SwarmId), Status> {
        let name: SwarmName = name.parse().map_err(invalid)?;
        let Some(found) = self.catalog.swarm(&name).await.map_err(internal)? else {
            return Err(self.no_such_swarm(&name).await);
        };
        let id = found.record.id(self.catalog.scope()).map_err(internal)?;
        Ok((name, found, id))
    }

    async fn no_such_swarm(&self, name: &SwarmName) -> Status {
        let known = self.catalog.swarms().await.unwrap_or_default();
        let names: Vec<&str> = known.keys().map(SwarmName::as_str).collect();
        let hint = instead(name.as_str(), &names, "there is none yet: apply one");
        Status::not_found(format!("no Swarm `{name}`; {hint}"))
    }
}

type Reply<T> = Result<Response<T>, Status>;
type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Beekeeper for Desk {
    async fn push_module(&self, request: Request<Streaming<v1::PushModuleRequest>>) -> Reply<v1::PushModuleReply> {
        let place = UPLOADS.try_acquire().map_err(|_| {
            Status::resource_exhausted(format!(
                "{UPLOADS_MAX} uploads are under way, no more fit: try again soon"
            ))
        })?;
        let this = self.of(&request)?;
        let upload = uploads::receive(request.into_inner(), this.upload).await?;
        detached(async move {
            let _place = place;
            this.push(upload).await
        })
        .await
    }

    async fn list_modules(&self, request: Request<v1::ListModulesRequest>) -> Reply<v1::ListModulesReply> {
        let modules = self.of(&request)?.modules().await?;
        Ok(Response::new(v1::ListModulesReply { modules }))
    }

    async fn delete_module(&self, request: Request<v1::DeleteModuleRequest>) -> Reply<v1::DeleteModuleReply> {
        let this = self.of(&request)?;
        detached(async move { this.remove_module(request.into_inner()).await }).await
    }

    async fn apply_swarm(&self, request: Request<v1::ApplySwarmRequest>) -> Reply<v1::ApplySwarmReply> {
        let this = self.of(&request)?;
        detached(async move { this.apply(request.into_inner()).await }).await
    }

    async fn scale_stage(&self, request: Request<v1::ScaleStageRequest>) -> Reply<v1::ApplySwarmReply> {
        let this = self.of(&request)?;
        detached(async move { this.scale(request.into_inner()).await }).await
    }

    async fn hold_swarm(&self, request: Request<v1::HoldSwarmRequest>) -> Reply<v1::HoldSwarmReply> {
        let this = self.of(&request)?;
        detached(async move { this.hold(request.into_inner()).await }).await
    }

    async fn list_swarms(&self, request: Request<v1::ListSwarmsRequest>) -> Reply<v1::ListSwarmsReply> {
        let swarms = self.of(&request)?.swarms().await?;
        Ok(Response::new(v1::ListSwarmsReply { swarms }))
    }

    async fn describe_swarm(&self, request: Request<v1::DescribeSwarmRequest>) -> Reply<v1::DescribeSwarmReply> {
        let this = self.of(&request)?;
        let v1::DescribeSwarmRequest { name, count_keys } = request.into_inner();
        this.describe(&name, count_keys).await
    }

    type DeleteSwarmStream = Out<v1::DeleteSwarmProgress>;

    async fn delete_swarm(&self, request: Request<v1::DeleteSwarmRequest>) -> Reply<Self::DeleteSwarmStream> {
        let this = self.of(&request)?;
        let told = detached(async move { this.begin_deletion(request.into_inner()).await }).await?;
        Ok(Response::new(deletion::progress(told, self.parts.stop.clone())))
    }

    type LogsStream = Out<v1::LogEntry>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Reply<Self::LogsStream> {
        self.of(&request)?.log_lines(request.into_inner()).await
    }

    async fn list_dead_letters(&self, request: Request<v1::ListDeadLettersRequest>) -> Reply<v1::ListDeadLettersReply> {
        self.of(&request)?.dead_letters(request.into_inner()).await
    }

    async fn discard_dead_letters(
        &self,
        request: Request<v1::DiscardDeadLettersRequest>,
    ) -> Reply<v1::DiscardDeadLettersReply> {
        self.of(&request)?.discard(request.into_inner()).await
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<v1::RedriveDeadLettersRequest>,
    ) -> Reply<v1::RedriveDeadLettersReply> {
        let this = self.of(&request)?;
        detached(async move { this.redrive(request.into_inner()).await }).await
    }

    async fn try_dead_letter(&self, request: Request<v1::TryDeadLetterRequest>) -> Reply<v1::TryDeadLetterReply> {
        self.of(&request)?.try_letter(request.into_inner()).await
    }

    async fn get_state(&self, request: Request<v1::GetStateRequest>) -> Reply<v1::GetStateReply> {
        self.of(&request)?.state_of(request.into_inner()).await
    }

    type ListStateStream = Out<v1::ListStateReply>;

    async fn list_state(&self, request: Request<v1::ListStateRequest>) -> Reply<Self::ListStateStream> {
        self.of(&request)?.state_pages(request.into_inner()).await
    }

    async fn import_state(&self, request: Request<Streaming<v1::ImportStateRequest>>) -> Reply<v1::ImportStateReply> {
        self.of(&request)?.take_state(request.into_inner()).await
    }

    async fn node(&self, request: Request<v1::NodeRequest>) -> Reply<v1::NodeReply> {
        let this = self.of(&request)?;
        let mut reply = v1::NodeReply {
            version: Build::current().version.to_owned(),
            ..v1::NodeReply::default()
        };
        // Where it keeps things and how busy it is, all tenants together, is the operator's business.
        if this.caller.role.covers(Role::Operator) {
            let counters = this.backend.counters();
            reply.started_ms = this.started_ms;
            reply.data.clone_from(&this.data);
            reply.backend.clone_from(&this.backend_name);
            reply.flushes = counters.flushes;
            reply.commits = counters.commits;
        }
        Ok(Response::new(reply))
    }

    async fn list_nodes(&self, request: Request<v1::ListNodesRequest>) -> Reply<v1::ListNodesReply> {
        let nodes = self.of(&request)?.nodes().await?;
        Ok(Response::new(v1::ListNodesReply { nodes }))
    }

    type BackupStream = Out<v1::BackupReply>;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Reply<Self::BackupStream> {
        self.of(&request)?.backup()
    }

    async fn restore(&self, request: Request<Streaming<v1::RestoreRequest>>) -> Reply<v1::BackupContents> {
        self.of(&request)?.restore(request.into_inner()).await
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Reply<v1::DrainNodeReply> {
        let this = self.of(&request)?;
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
