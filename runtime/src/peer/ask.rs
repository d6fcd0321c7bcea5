//! Asking the other nodes. Who does not answer in time is named; nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use skep_gateway::Door;
use skep_model::scope::SwarmPath;
use skep_proto::v1;
use skep_proto::v1::peer_client::PeerClient;
use tokio::time::timeout;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::Said;
use crate::members::Heard;
use crate::tls::Tls;

/// How long a node may take to be reached, and to answer or to go on. A stranger waits for the slowest: short.
const REACH: Duration = Duration::from_millis(1_000);
pub const ANSWER: Duration = Duration::from_millis(2_000);
/// How long a node may take to read all of its records.
const VERIFIED: Duration = Duration::from_secs(60);

/// How this node asks others.
#[derive(Clone)]
pub struct Asking {
    pub door: Arc<Door>,
    pub tls: Option<Arc<Tls>>,
}

impl Asking {
    /// With what shows the other that this one has the same store.
    fn shown<T>(&self, method: &str, call: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(call);
        if let Some(proof) = self.door.proof(&format!("/skep.v1.Peer/{method}")) {
            let proof = proof.parse().map_err(|_| Status::internal("a proof is plain text"))?;
            request.metadata_mut().insert("authorization", proof);
        }
        Ok(request)
    }
}

/// What each of `nodes` counted of a Swarm, and who did not say.
pub async fn counts(
    asking: &Asking,
    nodes: &[Heard],
    swarm: &SwarmPath,
) -> (Vec<v1::StageCounts>, Vec<v1::MissingNode>) {
    let asked = nodes.iter().map(async |node| {
        let answer = timeout(ANSWER, async {
            let call = v1::CountsRequest {
                swarm: swarm.to_string(),
            };
            let call = asking.shown("Counts", call)?;
            Ok(asking.reach(node).await?.counts(call).await?.into_inner().stages)
        });
        match answer.await.unwrap_or_else(|_| Err(late())) {
            Ok(stages) => Ok(stages),
            // It was deleted meanwhile.
            Err(why) if why.code() == Code::NotFound => Ok(Vec::new()),
            Err(why) => Err(v1::MissingNode {
                name: node.member.name.clone(),
                why: words(&why),
            }),
        }
    });
    let (mut all, mut missing) = (Vec::new(), Vec::new());
    for answer in join_all(asked).await {
        match answer {
            Ok(stages) => all.extend(stages),
            Err(node) => missing.push(node),
        }
    }
    (all, missing)
}

/// A page of what a node recorded.
///
/// # Errors
/// In words, when it cannot be asked.
pub async fn recorded(asking: &Asking, node: &Heard, asked: v1::RecordedRequest) -> Result<v1::RecordedReply, String> {
    let answer = timeout(ANSWER, async {
        let call = asking.shown("Recorded", asked)?;
        Ok(asking.reach(node).await?.recorded(call).await?.into_inner())
    });
    answer.await.unwrap_or_else(|_| Err(late())).map_err(|why| words(&why))
}

/// Whether what a node recorded is whole, which takes it a while to tell.
///
/// # Errors
/// In words, when it cannot be asked.
pub async fn sound(asking: &Asking, node: &Heard, asked: v1::SoundRequest) -> Result<Vec<v1::AuditBook>, String> {
    let answer = timeout(VERIFIED, async {
        let call = asking.shown("Sound", asked)?;
        Ok(asking.reach(node).await?.sound(call).await?.into_inner().books)
    });
    let late = || Status::deadline_exceeded(format!("it did not answer within {} s", VERIFIED.as_secs()));
    answer.await.unwrap_or_else(|_| Err(late())).map_err(|why| words(&why))
}

/// What was said on a node.
///
/// # Errors
/// In words, when it cannot be asked.
pub async fn said(asking: &Asking, node: &Heard, asked: v1::LogsRequest) -> Result<Said, String> {
    let opened = timeout(ANSWER, async {
        let call = asking.shown("Said", asked)?;
        Ok(asking.reach(node).await?.said(call).await?.into_inner())
    });
    let said = opened
        .await
        .unwrap_or_else(|_| Err(late()))
        .map_err(|why| words(&why))?;
    // An item of a kind that this build does not know is nothing to it.
    Ok(Box::pin(said.filter_map(async |item| match item {
        Ok(v1::SaidReply { what }) => what.map(Ok),
        Err(why) => Some(Err(why)),
    })))
}

impl Asking {
    async fn reach(&self, node: &Heard) -> Result<PeerClient<Channel>, Status> {
        let url = &node.member.url;
        let bad = |e: tonic::transport::Error| Status::unavailable(format!("its URL {url} cannot be used: {e}"));
        let mut endpoint = Endpoint::from_shared(url.clone()).map_err(bad)?;
        if url.starts_with("https://") {
            let tls = self.tls.as_ref().map(|tls| tls.client());
            let tls = tls.unwrap_or_else(|| ClientTlsConfig::new().with_native_roots());
            endpoint = endpoint.tls_config(tls).map_err(bad)?;
        }
        let channel = endpoint.connect_timeout(REACH).connect().await;
        let channel = channel.map_err(|_| Status::unavailable(format!("it cannot be reached at {url}")))?;
        Ok(PeerClient::new(channel))
    }
}

fn late() -> Status {
    Status::deadline_exceeded(format!("it did not answer within {} s", ANSWER.as_secs()))
}

/// Why a node did not answer.
#[must_use]
pub fn words(why: &Status) -> String {
    match why.code() {
        Code::Unimplemented => "it is of an older skep, which cannot be asked".to_owned(),
        _ => why.message().to_owned(),
    }
}
