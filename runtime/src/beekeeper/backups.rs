//! Taking a backup: each life is copied to this node's disk first, so that a Swarm never waits for whoever fetches the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use futures::StreamExt as _;
use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::limits::{BACKUP_TRIES_MAX, UPLOAD_CHUNK_BYTES};
use skep_model::name::TenantId;
use skep_model::scope::{Scope, SwarmId, SwarmPath};
use skep_proto::v1;
use skep_proto::v1::backup_reply::Part;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::failure::{internal, topic_error};
use super::{Keeper, Out, Reply};
use crate::backup::{FORMAT, Head, Tally, Writer};
use crate::catalog::{Read, read};
use crate::store::ModuleStore;

/// One at a time: each needs disk and holds Swarms still on Redis.
static BACKUPS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(1);

/// Chunks that wait for the client.
const CHUNKS_READY: usize = 4;

/// A file on its way out.
struct Outgoing {
    keeper: Keeper,
    to: mpsc::Sender<Result<v1::BackupReply, Status>>,
    writer: Writer,
    /// Frames that are not sent yet.
    ready: Vec<u8>,
    bytes: u64,
}

/// Nobody takes the file any more, or it cannot be made.
enum End {
    Unwanted,
    Failed(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

impl From<std::io::Error> for End {
    fn from(e: std::io::Error) -> Self {
        Self::Failed(on_disk(&e))
    }
}

pub(super) fn on_disk(e: &std::io::Error) -> Status {
    Status::unavailable(format!(
        "the node cannot keep a copy in its data folder: {e}; it needs as much free disk as the largest Swarm"
    ))
}

impl Keeper {
    pub(super) fn backup(&self) -> Reply<Out<v1::BackupReply>> {
        let place = BACKUPS.try_acquire().map_err(|_| {
            Status::resource_exhausted("another backup is taken from this node: try again when it is done")
        })?;
        let (to, chunks) = mpsc::channel(CHUNKS_READY);
        let mut outgoing = Outgoing {
            keeper: self.clone(),
            to: to.clone(),
            writer: Writer::default(),
            ready: Vec::new(),
            bytes: 0,
        };
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let _place = place;
            let ended = tokio::select! {
                () = stop.cancelled() => Err(End::Failed(Status::unavailable("the node stops: the backup is not whole"))),
                () = to.closed() => Err(End::Unwanted),
                ended = outgoing.all() => ended,
            };
            if let Err(End::Failed(status)) = ended {
                let _ = to.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }
}

impl Outgoing {
    async fn all(&mut self) -> Result<(), End> {
        let keeper = self.keeper.clone();
        let catalogs = &keeper.supervisor.catalogs;
        let head = Head {
            format: FORMAT,
            id: skep_model::id::Uid::random(keeper.entropy.as_ref()).to_string(),
            taken_ms: keeper.clock.now_ms(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.writer.begin(&head, &mut self.ready);
        let mut contents = v1::BackupContents {
            taken_ms: head.taken_ms,
            version: head.version,
            ..v1::BackupContents::default()
        };
        let mut records = Vec::new();
        // Tenants, and not their tokens: one that was revoked since would be valid again.
        for (key, record) in catalogs.stored_tenants().await.map_err(internal)? {
            records.push((key, record.value));
        }
        // Sealed as they are: the key is not among them.
        for (key, record) in keeper.supervisor.vault.stored().await.map_err(internal)? {
            records.push((key, record.value));
        }
        // With the key by which edges know the hub, sealed as well: without both, what waits at an edge could not be handed over after a restore.
        for (key, record) in keeper.edges.stored().await.map_err(internal)? {
            records.push((key, record.value));
        }
        // Each with a tenant that has it.
        let mut digests: BTreeMap<String, TenantId> = BTreeMap::new();
        for path in catalogs.swarms().await.map_err(internal)?.into_keys() {
            // It may have been deleted meanwhile.
            if let Some(copied) = self.swarm(&path).await? {
                let of = |hex| (hex, path.tenant().clone());
                digests.extend(copied.digests.into_iter().map(of));
                records.push((copied.key, copied.record));
                contents.swarms.push(copied.told);
            }
        }
        // After the Swarms, whose modules are kept as long as they are used.
        for (key, record) in catalogs.stored_modules().await.map_err(internal)? {
            if let Read::Module(tenant, _, module) = read(&key, &record.value).map_err(internal)? {
                let of = |hex| (hex, tenant.clone());
                digests.extend(module.versions.into_keys().map(of));
            }
            records.push((key, record.value));
        }
        let mut models: BTreeMap<String, TenantId> = BTreeMap::new();
        for (key, record) in catalogs.stored_models().await.map_err(internal)? {
            if let Read::Model(tenant, _, model) = read(&key, &record.value).map_err(internal)? {
                let of = |hex| (hex, tenant.clone());
                models.extend(model.versions.into_keys().map(of));
            }
            records.push((key, record.value));
        }
        for (hex, tenant) in digests {
            self.file(&hex, &keeper.stores.of(&tenant)).await?;
            contents.modules += 1;
        }
        for (hex, tenant) in models {
            self.file(&hex, &keeper.stores.of(&tenant).models()).await?;
            contents.models += 1;
        }
        for (key, value) in records {
            self.writer.record(&key, &value, &mut self.ready);
            self.send(false).await?;
        }
        self.writer.end(&mut self.ready);
        self.send(true).await?;
        contents.bytes = self.bytes;
        self.put(Part::Contents(contents)).await
    }

    /// A component, or a model.
    async fn file(&mut self, hex: &str, store: &ModuleStore) -> Result<(), End> {
        let digest: Digest = hex
            .parse()
            .map_err(|_| Status::internal(format!("the catalog names a file `{hex}`")))?;
        let bytes = store.get(&digest).await.map_err(internal)?;
        self.writer.file(digest, bytes.len(), &mut self.ready);
        for chunk in bytes.chunks(UPLOAD_CHUNK_BYTES) {
            self.writer.chunk(chunk, &mut self.ready);
            self.send(false).await?;
        }
        Ok(())
    }

    async fn put(&self, part: Part) -> Result<(), End> {
        let reply = v1::BackupReply { part: Some(part) };
        self.to.send(Ok(reply)).await.map_err(|_| End::Unwanted)
    }

    /// Whole chunks, or all that is ready.
    async fn send(&mut self, all: bool) -> Result<(), End> {
        while self.ready.len() >= UPLOAD_CHUNK_BYTES || (all && !self.ready.is_empty()) {
            let rest = self.ready.split_off(self.ready.len().min(UPLOAD_CHUNK_BYTES));
            let chunk = Bytes::from(std::mem::replace(&mut self.ready, rest));
            self.bytes += chunk.len() as u64;
            self.put(Part::Chunk(chunk)).await?;
        }
        Ok(())
    }

    /// A Swarm's life, and the record that was its record all the time.
    async fn swarm(&mut self, path: &SwarmPath) -> Result<Option<Copied>, End> {
        let keeper = self.keeper.clone();
        let catalog = keeper.supervisor.catalogs.of(path.tenant());
        let mut why = String::new();
        for _ in 0..BACKUP_TRIES_MAX {
            let Some((key, found)) = catalog.stored_swarm(path.name()).await.map_err(internal)? else {
                return Ok(None);
            };
            let Read::Swarm(tenant, record) = read(&key, &found.value).map_err(internal)? else {
                return Ok(None);
            };
            let id = record.id(&Scope::of(tenant)).map_err(internal)?;
            let mut writer = self.writer.clone();
            let (file, tally) = match keeper.copy(&id, &mut writer).await {
                Ok(copied) => copied,
                // It is being deleted.
                Err(CopyEnd::Topic(skep_topic::Error::Gone)) => return Ok(None),
                Err(CopyEnd::Topic(e @ skep_topic::Error::Stale)) => {
                    why = e.to_string();
                    continue;
                }
                Err(CopyEnd::Topic(e)) => return Err(topic_error(e).into()),
                Err(CopyEnd::Disk(e)) => return Err(e.into()),
            };
            let again = catalog.stored_swarm(path.name()).await.map_err(internal)?;
            if again.is_none_or(|(_, again)| again.version != found.version) {
                "it was applied, or changed by itself, meanwhile".clone_into(&mut why);
                continue;
            }
            self.writer = writer;
            self.copied(file).await?;
            return Ok(Some(Copied {
                key,
                digests: record.digests().map(str::to_owned).collect(),
                told: tally.told(&id, record.revision),
                record: found.value,
            }));
        }
        Err(Status::aborted(format!(
            "Swarm `{path}` does not stand still for a copy: {why}; try again"
        ))
        .into())
    }

    /// What was put on disk follows.
    async fn copied(&mut self, file: Arc<File>) -> Result<(), End> {
        let mut at = 0;
        loop {
            let from = Arc::clone(&file);
            let read = tokio::task::spawn_blocking(move || {
                let mut buf = vec![0; UPLOAD_CHUNK_BYTES];
                let n = from.read_at(&mut buf, at)?;
                buf.truncate(n);
                std::io::Result::Ok(buf)
            });
            let some = read.await.map_err(|e| Status::internal(e.to_string()))??;
            if some.is_empty() {
                return Ok(());
            }
            at += some.len() as u64;
            self.ready.extend_from_slice(&some);
            self.send(false).await?;
        }
    }
}

/// A Swarm that is in the file, but for its record.
struct Copied {
    key: String,
    record: Bytes,
    digests: Vec<String>,
    told: v1::BackupSwarm,
}

enum CopyEnd {
    Topic(skep_topic::Error),
    Disk(std::io::Error),
}

impl Keeper {
    /// A file that goes with its handle, in the data folder.
    pub(super) async fn spool(&self) -> std::io::Result<File> {
        let data = self.data.clone();
        let made = tokio::task::spawn_blocking(move || tempfile::tempfile_in(data));
        made.await.map_err(std::io::Error::other)?
    }

    async fn copy(&self, id: &SwarmId, writer: &mut Writer) -> Result<(Arc<File>, Tally), CopyEnd> {
        let file = Arc::new(self.spool().await.map_err(CopyEnd::Disk)?);
        let (mut tally, mut ready, mut at) = (Tally::default(), Vec::new(), 0);
        writer.life(id, &mut ready);
        let mut pieces = self.backend.export(id).await.map_err(CopyEnd::Topic)?;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(CopyEnd::Topic)?;
            tally.add(&piece);
            writer.piece(&piece, &mut ready);
            if ready.len() >= UPLOAD_CHUNK_BYTES {
                at = keep(&file, std::mem::take(&mut ready), at)
                    .await
                    .map_err(CopyEnd::Disk)?;
            }
        }
        writer.life_end(&mut ready);
        keep(&file, ready, at).await.map_err(CopyEnd::Disk)?;
        Ok((file, tally))
    }
}

/// Writes at a place; returns what lies behind.
pub(super) async fn keep(file: &Arc<File>, bytes: Vec<u8>, at: u64) -> std::io::Result<u64> {
    let file = Arc::clone(file);
    let written = tokio::task::spawn_blocking(move || {
        file.write_all_at(&bytes, at)?;
        Ok(at + bytes.len() as u64)
    });
    written.await.map_err(std::io::Error::other)?
}
