//! What nodes that share a store ask each other: counts of stages and lines of logs, which each has of its own. Every node answers, whatever
//! its roles, for Bees run where no Beekeeper is. Asking is in `ask.rs`.

pub mod ask;

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, stream};
use skep_model::limits::AUDIT_PAGE_MAX;
use skep_model::name::{StageName, TenantId};
use skep_model::scope::{SwarmId, SwarmPath};
use skep_model::swarm::Swarm;
use skep_proto::v1;
use skep_proto::v1::peer_server::{Peer, PeerServer};
use skep_proto::v1::said_reply::{Live, What};
use skep_stage::StageState;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::audit::{Audit, Entry};
use crate::logs::Kept;
use crate::stats::Stats;
use crate::supervisor::Supervisor;

/// Log lines that wait for a slow reader, a node.
const FOLLOW_LINES_MAX: usize = 16;

/// What was said on a node, oldest first: what is kept, [`What::Live`], what follows.
pub type Said = Pin<Box<dyn Stream<Item = Result<What, Status>> + Send>>;

/// What a node knows by itself.
#[derive(Clone)]
pub struct Here {
    pub supervisor: Arc<Supervisor>,
    pub stats: Arc<Stats>,
    pub audit: Arc<Audit>,
    /// What this node is called.
    pub name: String,
    /// Ends the streams that would keep a stopping node waiting.
    pub stop: CancellationToken,
}

impl Here {
    #[must_use]
    pub fn service(self) -> PeerServer<Self> {
        PeerServer::new(self)
    }

    /// What this node counted of stages that did anything here.
    #[must_use]
    pub fn counts(&self, id: &SwarmId, swarm: &Swarm) -> Vec<v1::StageCounts> {
        let counted = swarm.stages.iter().map(|stage| {
            let numbers = self.stats.numbers(&id.topic(&stage.name));
            v1::StageCounts {
                stage: stage.name.to_string(),
                processed: numbers.processed,
                failed: numbers.failed,
                batches: numbers.batches,
                busy_us: numbers.busy_us,
                held_up: numbers.held_up as u64,
                troubled: matches!(numbers.state, Some(StageState::Troubled { .. })),
                state: numbers.state.map(|state| state.to_string()).unwrap_or_default(),
                last_error: numbers.last_error.unwrap_or_default(),
            }
        });
        counted
            .filter(|c| c.batches > 0 || c.held_up > 0 || !c.last_error.is_empty())
            .collect()
    }

    /// What Bees of a Swarm, or of one of its stages, said on this node; `tail` 0: all that is kept.
    #[must_use]
    pub fn said(&self, id: &SwarmId, stage: Option<StageName>, tail: usize, follow: bool) -> Said {
        let (kept, mut live) = self.stats.logs.read(id, stage.as_ref(), tail);
        let past = stream::iter(kept.into_iter().map(|kept| Ok(What::Line(entry(kept)))))
            .chain(stream::once(async { Ok(What::Live(Live {})) }));
        if !follow {
            return Box::pin(past);
        }
        let (id, stop) = (id.clone(), self.stop.clone());
        let (tell, told) = mpsc::channel(FOLLOW_LINES_MAX);
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
                    Err(RecvError::Lagged(missed)) => {
                        remark(format!("{missed} lines were not shown: this reader is too slow"))
                    }
                    Err(RecvError::Closed) => return,
                };
                if tell.send(Ok(What::Line(line))).await.is_err() {
                    return;
                }
            }
        });
        Box::pin(past.chain(ReceiverStream::new(told)))
    }

    /// A page of what was recorded here.
    ///
    /// # Errors
    /// A name that is none, or files that cannot be read.
    pub async fn recorded(&self, asked: v1::RecordedRequest) -> Result<v1::RecordedReply, Status> {
        let tenant = tenant(&asked.tenant)?;
        let audit = Arc::clone(&self.audit);
        let read = move || audit.read(tenant.as_ref(), asked.since_ms, &asked.after, AUDIT_PAGE_MAX);
        let page = tokio::task::spawn_blocking(read).await;
        let page = page.map_err(|e| Status::internal(e.to_string()))?;
        let page = page.map_err(|e| Status::unavailable(format!("{e:#}")))?;
        let entries = page.entries.into_iter();
        Ok(v1::RecordedReply {
            entries: entries.map(|(book, entry)| record(&self.name, book, entry)).collect(),
            after: page.after,
            more: page.more,
        })
    }

    /// Whether what was recorded here is whole.
    ///
    /// # Errors
    /// As [`Self::recorded`].
    pub async fn sound(&self, asked: v1::SoundRequest) -> Result<Vec<v1::AuditBook>, Status> {
        let tenant = tenant(&asked.tenant)?;
        let known = asked.known.into_iter().filter(|book| book.node == self.name);
        let known = known.map(|book| (book.book, (book.last_seq, book.head))).collect();
        let audit = Arc::clone(&self.audit);
        let books = tokio::task::spawn_blocking(move || audit.verify(tenant.as_ref(), &known)).await;
        let books = books.map_err(|e| Status::internal(e.to_string()))?;
        let books = books.map_err(|e| Status::unavailable(format!("{e:#}")))?;
        let told = books.into_iter().map(|(book, sound)| v1::AuditBook {
            node: self.name.clone(),
            book,
            first_seq: sound.first_seq,
            last_seq: sound.last_seq,
            head: sound.head,
            trouble: sound.trouble.unwrap_or_default(),
        });
        Ok(told.collect())
    }

    /// A Swarm by its path, as nodes write it to each other.
    async fn find(&self, name: &str) -> Result<(SwarmId, Swarm), Status> {
        let path: SwarmPath = name.parse().map_err(|e| Status::invalid_argument(format!("{e}")))?;
        let catalog = self.supervisor.catalogs.of(path.tenant());
        let unread = |e: anyhow::Error| Status::unavailable(format!("{e:#}"));
        let Some(found) = catalog.swarm(path.name()).await.map_err(unread)? else {
            return Err(Status::not_found(format!("no Swarm `{path}`")));
        };
        let id = found.record.id(catalog.scope()).map_err(unread)?;
        Ok((id, found.record.swarm))
    }
}

#[tonic::async_trait]
impl Peer for Here {
    async fn counts(&self, request: Request<v1::CountsRequest>) -> Result<Response<v1::CountsReply>, Status> {
        let (id, swarm) = self.find(&request.into_inner().swarm).await?;
        let stages = Here::counts(self, &id, &swarm);
        Ok(Response::new(v1::CountsReply { stages }))
    }

    async fn recorded(&self, request: Request<v1::RecordedRequest>) -> Result<Response<v1::RecordedReply>, Status> {
        Here::recorded(self, request.into_inner()).await.map(Response::new)
    }

    async fn sound(&self, request: Request<v1::SoundRequest>) -> Result<Response<v1::SoundReply>, Status> {
        let books = Here::sound(self, request.into_inner()).await?;
        Ok(Response::new(v1::SoundReply { books }))
    }

    type SaidStream = Pin<Box<dyn Stream<Item = Result<v1::SaidReply, Status>> + Send>>;

    async fn said(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::SaidStream>, Status> {
        let asked = request.into_inner();
        let (id, _) = self.find(&asked.swarm).await?;
        let stage = match asked.stage.as_str() {
            "" => None,
            stage => Some(stage.parse().map_err(|e| Status::invalid_argument(format!("{e}")))?),
        };
        let said = Here::said(self, &id, stage, asked.tail as usize, asked.follow);
        Ok(Response::new(Box::pin(
            said.map(|what| what.map(|what| v1::SaidReply { what: Some(what) })),
        )))
    }
}

/// Empty: of all tenants.
fn tenant(name: &str) -> Result<Option<TenantId>, Status> {
    match name {
        "" => Ok(None),
        name => name
            .parse()
            .map(Some)
            .map_err(|e| Status::invalid_argument(format!("{e}"))),
    }
}

fn record(node: &str, book: String, entry: Entry) -> v1::AuditEntry {
    let objects = entry.objects.into_iter();
    v1::AuditEntry {
        node: node.to_owned(),
        book,
        seq: entry.seq,
        at_ms: entry.at_ms,
        kind: entry.kind.as_str().to_owned(),
        asked_seq: entry.of.unwrap_or(0),
        token: entry.token.unwrap_or_default(),
        token_name: entry.token_name.unwrap_or_default(),
        tenant: entry.tenant.unwrap_or_default(),
        role: entry.role.map(|role| role.to_string()).unwrap_or_default(),
        method: entry.method,
        objects: objects.map(|(what, name)| v1::AuditObject { what, name }).collect(),
        from: entry.from,
        outcome: entry.outcome,
        times: entry.times,
        note: entry.note,
    }
}

/// A line of the platform's own among those of Bees.
#[must_use]
pub fn remark(text: String) -> v1::LogEntry {
    v1::LogEntry {
        level: "warn".to_owned(),
        context: "skep".to_owned(),
        text,
        ..v1::LogEntry::default()
    }
}

fn entry(kept: Kept) -> v1::LogEntry {
    v1::LogEntry {
        at_ms: kept.at_ms,
        stage: kept.topic.stage().to_string(),
        level: kept.line.level.as_str().to_owned(),
        context: kept.line.context,
        text: kept.line.text,
        message: kept.message.map(|m| m.to_string()).unwrap_or_default(),
        node: String::new(),
    }
}
