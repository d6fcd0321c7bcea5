//! The service of the audit: what all nodes recorded, as one stream in the order of time, and whether it is whole.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use futures::future::join_all;
use skep_model::access::Role;
use skep_model::limits::{AUDIT_LISTS_MAX, AUDIT_PAGE_MAX, AUDIT_READS_MAX};
use skep_model::name::TenantId;
use skep_proto::v1;
use skep_proto::v1::audit_server::Audit;
use tokio::sync::mpsc;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::failure::internal;
use super::{Desk, Keeper, Out, Reply};
use crate::members::Heard;
use crate::peer::ask;

/// Taken while files are read, never while a client is waited for.
static READS: Semaphore = Semaphore::const_new(AUDIT_READS_MAX);
/// Lists that tenants have open. Operators' are not among them: no tenant keeps an operator out.
static OPEN: Semaphore = Semaphore::const_new(AUDIT_LISTS_MAX);
/// Records that wait for a slow client.
const ENTRIES_MAX: usize = 16;
/// How often a follower looks what came.
const LOOK: Duration = Duration::from_millis(1_000);

fn opened(role: Role) -> Result<Option<SemaphorePermit<'static>>, Status> {
    if role == Role::Operator {
        return Ok(None);
    }
    OPEN.try_acquire().map(Some).map_err(|_| {
        Status::resource_exhausted(format!(
            "{AUDIT_LISTS_MAX} lists of the audit are open on this node, no more fit: try again, or at another node"
        ))
    })
}

#[tonic::async_trait]
impl Audit for Desk {
    type ListAuditStream = Out<v1::AuditEntry>;

    async fn list_audit(&self, request: Request<v1::ListAuditRequest>) -> Reply<Self::ListAuditStream> {
        let this = self.of(&request)?;
        let asked = request.into_inner();
        let tenant = this.readable(&asked.tenant).await?;
        let since_ms = asked.since_ms.max(this.born_ms(tenant.as_ref()).await?);
        let permit = opened(this.caller.role)?;
        let (tell, told) = mpsc::channel(ENTRIES_MAX);
        let gathering = Gathering {
            tenant: tenant.map(|tenant| tenant.to_string()).unwrap_or_default(),
            since_ms,
            follow: asked.follow,
            keeper: this,
            tell,
            sources: Vec::new(),
        };
        tokio::spawn(async move {
            let _permit = permit;
            let (stop, unheard) = (gathering.keeper.stop.clone(), gathering.tell.clone());
            tokio::select! {
                () = stop.cancelled() => {}
                () = unheard.closed() => {}
                _ = gathering.run() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }

    async fn verify_audit(&self, request: Request<v1::VerifyAuditRequest>) -> Reply<v1::VerifyAuditReply> {
        let this = self.of(&request)?;
        let asked = request.into_inner();
        let tenant = this.readable("").await?;
        let _turn = READS.acquire().await.map_err(|e| internal(e.into()))?;
        let tenant = tenant.map(|tenant| tenant.to_string()).unwrap_or_default();
        let asked = v1::SoundRequest {
            tenant,
            known: asked.known,
        };
        let mut reply = v1::VerifyAuditReply {
            books: this.here.sound(asked.clone()).await?,
            missing: Vec::new(),
        };
        let others = this.members.others();
        let told = join_all(
            others
                .iter()
                .map(async |node| (node, ask::sound(&this.asking, node, asked.clone()).await)),
        );
        for (node, told) in told.await {
            match told {
                Ok(books) => reply.books.extend(books),
                Err(why) => reply.missing.push(v1::MissingBooks {
                    node: node.member.name.clone(),
                    why,
                }),
            }
        }
        // Of nodes that are not there: a chain that was told before and that nobody has any more.
        for known in asked.known {
            let answered = reply.books.iter().any(|book| book.node == known.node)
                || reply.missing.iter().any(|node| node.node == known.node)
                || known.node == this.members.name();
            if !answered {
                reply.missing.push(v1::MissingBooks {
                    node: known.node,
                    why: format!(
                        "it is not there, and had {} records of `{}`",
                        known.last_seq, known.book
                    ),
                });
            }
        }
        Ok(Response::new(reply))
    }
}

impl Keeper {
    /// Whose records this caller asks for; `None`: all.
    async fn readable(&self, asked: &str) -> Result<Option<TenantId>, Status> {
        match (self.caller.role, asked) {
            (Role::Operator, "") => Ok(None),
            (_, "") => Ok(Some(self.caller.scope.tenant().clone())),
            // What was taken away has left its records.
            (Role::Operator, name) => name.parse().map(Some).map_err(super::failure::invalid),
            (_, name) => self.visible_tenant(name).await.map(Some),
        }
    }

    /// Since when a tenant is: what was recorded of an earlier one of its name is the operator's to read.
    async fn born_ms(&self, tenant: Option<&TenantId>) -> Result<u64, Status> {
        match tenant.filter(|_| self.caller.role != Role::Operator) {
            None => Ok(0),
            Some(tenant) => {
                let found = self.registry.catalogs.tenant(tenant).await.map_err(internal)?;
                Ok(found.map_or(0, |found| found.record.created_ms))
            }
        }
    }
}

/// The client is gone.
struct Unheard;

/// One node's records, page by page.
struct Source {
    /// `None`: this node.
    node: Option<Heard>,
    after: HashMap<String, u64>,
    page: VecDeque<v1::AuditEntry>,
    more: bool,
    silent: bool,
}

impl Source {
    fn of(node: Option<Heard>) -> Self {
        Self {
            node,
            after: HashMap::new(),
            page: VecDeque::new(),
            more: true,
            silent: false,
        }
    }

    fn is(&self, node: &Heard) -> bool {
        self.node.as_ref().is_some_and(|own| own.id == node.id)
    }
}

struct Gathering {
    keeper: Keeper,
    tenant: String,
    since_ms: u64,
    follow: bool,
    tell: mpsc::Sender<Result<v1::AuditEntry, Status>>,
    sources: Vec<Source>,
}

impl Gathering {
    async fn run(mut self) -> Result<(), Unheard> {
        self.sources.push(Source::of(None));
        loop {
            let others = self.keeper.members.others();
            self.sources
                .retain(|source| source.node.is_none() || others.iter().any(|node| source.is(node)));
            for node in others {
                if !self.sources.iter().any(|source| source.is(&node)) {
                    self.sources.push(Source::of(Some(node)));
                }
            }
            for at in 0..self.sources.len() {
                self.fill(at).await?;
            }
            while let Some(at) = self.oldest() {
                if let Some(entry) = self.sources[at].page.pop_front() {
                    self.tell.send(Ok(entry)).await.map_err(|_| Unheard)?;
                }
                if self.sources[at].page.is_empty() && self.sources[at].more {
                    self.fill(at).await?;
                }
            }
            if !self.follow {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn oldest(&self) -> Option<usize> {
        let heads = self.sources.iter().enumerate();
        let heads = heads.filter_map(|(at, source)| Some((source.page.front()?.at_ms, at)));
        heads.min().map(|(_, at)| at)
    }

    async fn fill(&mut self, at: usize) -> Result<(), Unheard> {
        let _turn = READS.acquire().await.map_err(|_| Unheard)?;
        let source = &mut self.sources[at];
        let asked = v1::RecordedRequest {
            since_ms: self.since_ms,
            tenant: self.tenant.clone(),
            after: source.after.clone(),
        };
        let told = match &source.node {
            None => self.keeper.here.recorded(asked).await.map_err(|e| ask::words(&e)),
            Some(node) => ask::recorded(&self.keeper.asking, node, asked).await,
        };
        match told {
            Ok(reply) => {
                (source.page, source.after) = (reply.entries.into(), reply.after);
                (source.more, source.silent) = (reply.more, false);
                Ok(())
            }
            Err(why) => {
                source.more = false;
                if std::mem::replace(&mut source.silent, true) {
                    return Ok(());
                }
                let name = source
                    .node
                    .as_ref()
                    .map_or(self.keeper.members.name(), |node| node.member.name.as_str());
                let missing = v1::AuditEntry {
                    node: name.to_owned(),
                    at_ms: self.keeper.clock.now_ms(),
                    kind: "missing".to_owned(),
                    note: format!("what node `{name}` recorded is missing: {why}"),
                    ..v1::AuditEntry::default()
                };
                self.tell.send(Ok(missing)).await.map_err(|_| Unheard)
            }
        }
    }
}

const _: () = assert!(AUDIT_PAGE_MAX * skep_model::limits::AUDIT_RECORD_BYTES_MAX <= 3 << 20);
