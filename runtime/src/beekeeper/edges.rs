//! The service of edges: invitations and lists for people, and the edges' own two calls.

use std::collections::BTreeSet;
use std::time::Duration;

use skep_edge::limits::{ARRIVING_BYTES_MAX, HAND_OVER_FRAME_BYTES_MAX, HAND_OVER_MS, LINK_BYTES_A_SECOND_MIN};
use skep_gateway::Bounded;
use skep_model::name::NodeLabel;
use skep_proto::v1;
use skep_proto::v1::edges_server::{Edges, EdgesServer};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::failure::{internal, invalid};
use super::{Desk, Keeper, Reply, detached};
use crate::edges::{EdgeRecord, Refused, SeenRecord, WaitingRecord};

impl Desk {
    #[must_use]
    pub fn edges(self) -> Bounded<EdgesServer<Self>> {
        let most = HAND_OVER_FRAME_BYTES_MAX + (64 << 10);
        let server = EdgesServer::new(self).max_decoding_message_size(most);
        // An edge's first words come from whoever likes to say them.
        let patience = Duration::from_millis(HAND_OVER_MS);
        Bounded::apart(
            server,
            (ARRIVING_BYTES_MAX, most),
            (patience, LINK_BYTES_A_SECOND_MIN as u32),
            &["/skep.v1.Edges/Enroll"],
        )
    }
}

#[tonic::async_trait]
impl Edges for Desk {
    async fn invite_edge(&self, request: Request<v1::InviteEdgeRequest>) -> Reply<v1::Invitation> {
        let this = self.of(&request)?;
        detached(async move { this.invite(request.into_inner()).await.map(Response::new) }).await
    }

    async fn list_edges(&self, request: Request<v1::ListEdgesRequest>) -> Reply<v1::ListEdgesReply> {
        let this = self.of(&request)?;
        let all = this.edges.list(this.catalog.tenant()).await.map_err(internal)?;
        let edges = all.into_iter().map(told).collect();
        Ok(Response::new(v1::ListEdgesReply { edges }))
    }

    async fn revoke_edge(&self, request: Request<v1::RevokeEdgeRequest>) -> Reply<v1::RevokeEdgeReply> {
        let this = self.of(&request)?;
        detached(async move {
            let name = request.into_inner().name;
            match this
                .edges
                .revoke(this.catalog.tenant(), &name)
                .await
                .map_err(internal)?
            {
                true => Ok(Response::new(v1::RevokeEdgeReply {})),
                false => Err(Status::not_found(format!("no edge `{name}`: look at `skep edge list`"))),
            }
        })
        .await
    }

    async fn resume_edge(&self, request: Request<v1::ResumeEdgeRequest>) -> Reply<v1::ResumeEdgeReply> {
        let this = self.of(&request)?;
        detached(async move {
            let name = request.into_inner().name;
            let revision = this.edges.resume(this.catalog.tenant(), &name).await.map_err(refused)?;
            Ok(Response::new(v1::ResumeEdgeReply { revision }))
        })
        .await
    }

    async fn label_edge(&self, request: Request<v1::LabelEdgeRequest>) -> Reply<v1::LabelEdgeReply> {
        let this = self.of(&request)?;
        detached(async move {
            let v1::LabelEdgeRequest { name, labels } = request.into_inner();
            let labels = read_labels(&labels)?;
            let done = this.edges.label(this.catalog.tenant(), &name, &labels).await;
            done.map_err(refused)?;
            Ok(Response::new(v1::LabelEdgeReply {}))
        })
        .await
    }

    async fn discard_at_edge(&self, request: Request<v1::DiscardAtEdgeRequest>) -> Reply<v1::DiscardAtEdgeReply> {
        let this = self.of(&request)?;
        detached(async move {
            let v1::DiscardAtEdgeRequest { name, what, first } = request.into_inner();
            let done = this.edges.discard(this.catalog.tenant(), &name, &what, first).await;
            done.map_err(refused)?;
            Ok(Response::new(v1::DiscardAtEdgeReply {}))
        })
        .await
    }

    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Reply<v1::Enrolled> {
        let edges = std::sync::Arc::clone(&self.parts.edges);
        detached(async move {
            let v1::EnrollRequest {
                tenant,
                name,
                secret,
                edge_key,
            } = request.into_inner();
            let (edge, signature) = edges.enrol(&tenant, &name, &secret, &edge_key).await.map_err(refused)?;
            Ok(Response::new(v1::Enrolled {
                edge: edge.to_vec().into(),
                signature: signature.to_vec().into(),
            }))
        })
        .await
    }

    type AttachStream = ReceiverStream<Result<v1::HubSays, Status>>;

    async fn attach(&self, request: Request<Streaming<v1::EdgeSays>>) -> Reply<Self::AttachStream> {
        let words = self.parts.edges.attach(request.into_inner());
        Ok(Response::new(ReceiverStream::new(words)))
    }
}

impl Keeper {
    async fn invite(&self, asked: v1::InviteEdgeRequest) -> Result<v1::Invitation, Status> {
        let labels = read_labels(&asked.labels)?;
        let tenant = self.catalog.tenant();
        let (record, secret, hub) = self.edges.invite(tenant, &asked.name, labels).await.map_err(refused)?;
        Ok(v1::Invitation {
            name: asked.name,
            tenant: tenant.to_string(),
            hub_key: hub.to_vec().into(),
            secret,
            expires_ms: record.invitation.map(|i| i.expires_ms).unwrap_or_default(),
        })
    }
}

fn read_labels(labels: &[String]) -> Result<BTreeSet<NodeLabel>, Status> {
    let read: Result<_, _> = labels.iter().map(|label| label.parse()).collect();
    read.map_err(invalid)
}

fn told((name, record, seen): (String, EdgeRecord, SeenRecord)) -> v1::Edge {
    let waiting = |all: Vec<WaitingRecord>| {
        let all = all.into_iter().map(|w| v1::Waiting {
            stage: w.stage,
            messages: w.messages,
            bytes: w.bytes,
            handed_over: w.handed_over,
            dropped: w.dropped,
            trouble: w.trouble,
        });
        all.collect()
    };
    v1::Edge {
        name,
        labels: record.labels.iter().map(ToString::to_string).collect(),
        invited: record.key.is_none(),
        invited_ms: record.invited_ms,
        enrolled_ms: record.enrolled_ms,
        seen_ms: seen.seen_ms,
        attached: seen.attached,
        target: seen.target.map(|target| target.to_string()).unwrap_or_default(),
        version: seen.version,
        revision: record.revision,
        follows: seen.follows,
        trouble: [seen.no_orders, seen.trouble]
            .into_iter()
            .filter(|t| !t.is_empty())
            .collect::<Vec<_>>()
            .join("; "),
        waiting: waiting(seen.waiting),
        inboxes: waiting(seen.inboxes),
        runs: seen.runs,
    }
}

fn refused(error: anyhow::Error) -> Status {
    match error.downcast::<Refused>() {
        Ok(refused) => Status::failed_precondition(refused.0),
        Err(error) => internal(error),
    }
}
