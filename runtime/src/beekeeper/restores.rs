//! Bringing a backup back.
//!
//! ```text
//!   receive ──► look at all of it ──► lives, set aside ──► components ──► modules' records ──► `whole` ──► Swarms' records
//! ```
//! Nothing is written before the whole file was seen to be sound. A record in the catalog says that a restore is under way: nobody else
//! begins one, and whoever comes after a crash knows what was left. Before `whole` the next one throws that away and begins anew; after it
//! the same backup only brings the rest of the Swarms in service.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use skep_model::limits::{BACKUP_BYTES_MAX, EXPORT_PIECES_MAX, RESTORE_PAUSE_MS};
use skep_model::name::TenantId;
use skep_model::scope::{Scope, SwarmPath};
use skep_proto::v1;
use skep_topic::{Error, Pieces, failpoint};
use tokio::sync::mpsc;
use tonic::{Response, Status, Streaming};

use super::backups::{keep, on_disk};
use super::failure::{internal, invalid, topic_error};
use super::{Keeper, Reply, detached};
use crate::backup::{At, Bad, Contents, LifeAt, Reader, scan};
use crate::catalog::{Read, Restoring, SwarmRecord, read};
use crate::wording::count;

static RESTORES: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(1);

fn bad(e: &Bad) -> Status {
    match e {
        Bad::Io(e) => on_disk(e),
        e => invalid(format!("{e}; nothing was restored")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Bad> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| bad(&e))
}

/// The file, its contents, and the record that says that it is restored.
struct Restore {
    file: Arc<File>,
    contents: Contents,
    record: Restoring,
    version: u64,
}

impl Keeper {
    pub(super) async fn restore(&self, stream: Streaming<v1::RestoreRequest>) -> Reply<v1::BackupContents> {
        let place = RESTORES
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("another restore is under way on this node: wait for its end"))?;
        // Before the file travels.
        self.is_empty().await?;
        let file = self.receive(stream).await?;
        let this = self.clone();
        detached(async move {
            let _place = place;
            this.bring_back(file).await
        })
        .await
    }

    async fn receive(&self, mut stream: Streaming<v1::RestoreRequest>) -> Result<Arc<File>, Status> {
        let file = Arc::new(self.spool().await.map_err(|e| on_disk(&e))?);
        let mut at = 0;
        loop {
            let next = tokio::select! {
                () = self.stop.cancelled() => return Err(Status::unavailable("the node stops: nothing was restored")),
                next = tokio::time::timeout(Duration::from_millis(RESTORE_PAUSE_MS), stream.message()) => next,
            };
            let next = next.map_err(|_| {
                Status::deadline_exceeded(format!(
                    "the backup paused for more than {} s: nothing was restored",
                    RESTORE_PAUSE_MS / 1_000
                ))
            })??;
            let Some(v1::RestoreRequest { chunk }) = next else {
                return Ok(file);
            };
            if at + chunk.len() as u64 > BACKUP_BYTES_MAX {
                return Err(invalid(format!("a backup has at most {BACKUP_BYTES_MAX} bytes")));
            }
            at = keep(&file, chunk.into(), at).await.map_err(|e| on_disk(&e))?;
        }
    }

    /// Whether there is nothing that a restore could meet, but for what an interrupted one left.
    async fn is_empty(&self) -> Result<(), Status> {
        let catalog = &self.catalog;
        let left = catalog.restoring().await.map_err(internal)?;
        let catalogs = &self.supervisor.catalogs;
        let (swarms, modules, models) = (
            catalogs.swarms().await.map_err(internal)?.len(),
            catalogs.modules().await.map_err(internal)?.len(),
            catalogs.models().await.map_err(internal)?.len(),
        );
        let theirs = match left {
            None => swarms + modules + models == 0,
            Some(left) => swarms == 0 || left.record.whole,
        };
        if theirs {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this platform is not empty: it has {}, {} and {}; restore into one that is: `skep serve` with another --data or another \
             Redis database, or delete them with `skep delete`, `skep delete-module` and `skep model delete`",
            count(swarms as u64, "Swarm"),
            count(modules as u64, "module"),
            count(models as u64, "model"),
        )))
    }

    async fn bring_back(&self, file: Arc<File>) -> Reply<v1::BackupContents> {
        let from = Arc::clone(&file);
        let contents = blocking(move || {
            scan(&from, |key, value| {
                read(key, value).map(|_| ()).map_err(|e| format!("{e:#}"))
            })
        })
        .await?;
        let named = |tenant: &TenantId| {
            contents
                .records
                .iter()
                .any(|(key, _)| *key == format!("tenant/{tenant}"))
        };
        let strange = contents.lives.iter().find(|life| {
            let tenant = life.swarm.tenant();
            *tenant != TenantId::default_tenant() && !named(tenant)
        });
        if let Some(life) = strange {
            return Err(invalid(format!(
                "the backup has a Swarm of a tenant that is not in it: {}",
                life.swarm
            )));
        }
        self.is_empty().await?;
        let mut restore = self.begin(file, contents).await?;
        let done = if restore.record.whole {
            Ok(())
        } else {
            self.fill(&mut restore).await
        };
        if let Err(why) = done {
            self.give_up(&restore).await;
            return Err(why);
        }
        self.serve(restore).await.map(Response::new)
    }

    /// Says that this restore is under way.
    async fn begin(&self, file: Arc<File>, contents: Contents) -> Result<Restore, Status> {
        let catalog = &self.catalog;
        let mut record = Restoring {
            node: self.node.to_string(),
            backup: contents.head.id.clone(),
            whole: false,
        };
        let mut expect = 0;
        if let Some(left) = catalog.restoring().await.map_err(internal)? {
            let (alive, _) = self.members.all(&self.supervisor).await.map_err(internal)?;
            let other = left.record.node != record.node;
            if other && alive.iter().any(|node| node.id.to_string() == left.record.node) {
                return Err(Status::failed_precondition(format!(
                    "node {} restores a backup: wait for its end; if that node died, try again in some seconds",
                    left.record.node
                )));
            }
            if left.record.whole && left.record.backup != record.backup {
                return Err(Status::failed_precondition(
                    "a restore of another backup was interrupted when all was there: give that one again, which ends it",
                ));
            }
            expect = left.version;
            record.whole = left.record.whole;
        }
        let version = catalog.put_restoring(expect, &record).await.map_err(internal)?;
        let version = version.map_err(|_| Status::aborted("another restore began at the same time: try again"))?;
        Ok(Restore {
            file,
            contents,
            record,
            version,
        })
    }

    /// Brings everything back that is not in anybody's sight.
    async fn fill(&self, restore: &mut Restore) -> Result<(), Status> {
        let (catalog, catalogs) = (&self.catalog, &self.supervisor.catalogs);
        for left in self.backend.imports().await.map_err(topic_error)? {
            self.backend.discard_import(&left).await.map_err(topic_error)?;
        }
        for life in &restore.contents.lives {
            let pieces = pieces(&restore.file, life);
            match self.backend.import(&life.swarm, pieces).await {
                Ok(true) => {}
                Ok(false) => {
                    return Err(Status::failed_precondition(format!(
                        "the store has data of Swarm `{}` already: restore into an empty store",
                        life.swarm.path()
                    )));
                }
                Err(Error::Gone) => {
                    return Err(Status::failed_precondition(format!(
                        "this very Swarm `{}` was deleted in this store, which remembers that: restore into another store",
                        life.swarm.path()
                    )));
                }
                Err(e) => return Err(topic_error(e)),
            }
            failpoint::hit("in-restore");
        }
        // Each tenant keeps its own copy.
        let mut owners: BTreeMap<String, BTreeSet<TenantId>> = BTreeMap::new();
        let mut model_owners: BTreeMap<String, BTreeSet<TenantId>> = BTreeMap::new();
        for (key, at) in &restore.contents.records {
            let (tenant, digests) = match restore.read(key, *at).await? {
                Read::Swarm(tenant, record) => (tenant, record.digests().map(str::to_owned).collect::<Vec<_>>()),
                Read::Module(tenant, _, record) => (tenant, record.versions.into_keys().collect()),
                Read::Model(tenant, _, record) => {
                    for hex in record.versions.into_keys() {
                        model_owners.entry(hex).or_default().insert(tenant.clone());
                    }
                    continue;
                }
                Read::Tenant(..) | Read::Secret(..) | Read::Edge(..) | Read::HubKey(..) => continue,
            };
            for hex in digests {
                owners.entry(hex).or_default().insert(tenant.clone());
            }
        }
        for found in &restore.contents.files {
            let (file, at) = (Arc::clone(&restore.file), found.at);
            let of = found.clone();
            let bytes = blocking(move || Reader::new(&file, at).file(&of)).await?;
            let hex = found.digest.to_hex();
            let modules = owners.get(&hex).into_iter().flatten();
            let models = model_owners.get(&hex).into_iter().flatten();
            let stores = modules
                .map(|tenant| self.stores.of(tenant))
                .chain(models.map(|tenant| self.stores.of(tenant).models()));
            for store in stores {
                store.put(&found.digest, bytes.clone()).await.map_err(internal)?;
            }
        }
        let _writes = self.supervisor.writes.lock().await;
        self.is_empty().await?;
        for (key, at) in &restore.contents.records {
            match restore.read(key, *at).await? {
                Read::Tenant(tenant, record) => {
                    // One that is there already stays as it is.
                    let _ = catalogs.put_tenant(&tenant, 0, &record).await.map_err(internal)?;
                }
                Read::Module(tenant, name, record) => {
                    let restored = catalogs.of(&tenant).restore_module(&name, &record).await;
                    restored.map_err(internal)?;
                }
                Read::Model(tenant, name, record) => {
                    let restored = catalogs.of(&tenant).restore_model(&name, &record).await;
                    restored.map_err(internal)?;
                }
                Read::Secret(tenant, name, record) => {
                    let restored = self.supervisor.vault.restore(&tenant, &name, &record).await;
                    restored.map_err(internal)?;
                }
                Read::Edge(tenant, name, record) => {
                    let restored = self.edges.restore(&tenant, &name, &record).await;
                    restored.map_err(internal)?;
                }
                Read::HubKey(record) => {
                    let restored = self.supervisor.vault.restore_hub_key(&record).await;
                    restored.map_err(internal)?;
                }
                Read::Swarm(..) => {}
            }
        }
        restore.record.whole = true;
        let put = catalog.put_restoring(restore.version, &restore.record).await;
        restore.version = put
            .map_err(internal)?
            .map_err(|_| Status::aborted("another restore took over: look at its end"))?;
        Ok(())
    }

    /// Nobody saw anything of it: what is there is thrown away, as far as the stores answer. The next restore looks again.
    async fn give_up(&self, restore: &Restore) {
        for life in &restore.contents.lives {
            if let Err(error) = self.backend.discard_import(&life.swarm).await {
                tracing::warn!(%error, swarm = %life.swarm, "what was restored of it stays until the next restore");
                return;
            }
        }
        // Modules' records are written last, and stay with their bytes: another restore overwrites them.
        let catalogs = &self.supervisor.catalogs;
        let (modules, models) = (catalogs.modules().await, catalogs.models().await);
        if modules.is_ok_and(|modules| modules.is_empty())
            && models.is_ok_and(|models| models.is_empty())
            && let Err(error) = self.catalog.delete_restoring(restore.version).await
        {
            tracing::warn!(
                error = format!("{error:#}"),
                "the mark of a restore stays until the next one"
            );
        }
    }

    /// One Swarm after the other comes in service.
    async fn serve(&self, restore: Restore) -> Result<v1::BackupContents, Status> {
        let catalog = &self.catalog;
        let models = restore.models().await?;
        let mut told = v1::BackupContents {
            taken_ms: restore.contents.head.taken_ms,
            version: restore.contents.head.version.clone(),
            modules: restore.contents.files.len() as u64 - models,
            models,
            bytes: restore.contents.bytes,
            ..v1::BackupContents::default()
        };
        let mut paths: Vec<SwarmPath> = Vec::new();
        {
            let _writes = self.supervisor.writes.lock().await;
            for (key, at) in &restore.contents.records {
                let Read::Swarm(tenant, mut record) = restore.read(key, *at).await? else {
                    continue;
                };
                // Whoever deleted it is not here: it serves.
                record.deleting = false;
                record.deleted_by = None;
                self.put_in_service(&tenant, &record).await?;
                failpoint::hit("in-service");
                let id = record.id(&Scope::of(tenant)).map_err(internal)?;
                if let Some(life) = restore.contents.lives.iter().find(|life| life.swarm == id) {
                    told.swarms.push(life.tally.told(&id, record.revision));
                }
                paths.push(id.path());
            }
        }
        for path in paths {
            self.supervisor.settle(&path).await.map_err(internal)?;
        }
        let gone = catalog.delete_restoring(restore.version).await.map_err(internal)?;
        if gone.is_err() {
            tracing::warn!("another restore of the same backup ends at the same time");
        }
        Ok(told)
    }

    async fn put_in_service(&self, tenant: &TenantId, record: &SwarmRecord) -> Result<(), Status> {
        let catalog = self.supervisor.catalogs.of(tenant);
        if catalog.put_swarm(0, record).await.map_err(internal)?.is_ok() {
            return Ok(());
        }
        let found = catalog.swarm(&record.swarm.name).await.map_err(internal)?;
        if found.is_some_and(|found| found.record.incarnation == record.incarnation) {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "Swarm `{name}` was applied meanwhile: delete it, and give the same backup again to bring the rest in service",
            name = record.swarm.name
        )))
    }
}

impl Restore {
    /// How many of its files are models.
    async fn models(&self) -> Result<u64, Status> {
        let mut digests = BTreeSet::new();
        for (key, at) in &self.contents.records {
            if key.starts_with("model/")
                && let Read::Model(_, _, record) = self.read(key, *at).await?
            {
                digests.extend(record.versions.into_keys());
            }
        }
        Ok((digests.len() as u64).min(self.contents.files.len() as u64))
    }

    async fn read(&self, key: &str, at: At) -> Result<Read, Status> {
        let file = Arc::clone(&self.file);
        let (_, value) = blocking(move || Reader::new(&file, at).record()).await?;
        read(key, &value).map_err(internal)
    }
}

/// A life's pieces, read ahead a little.
fn pieces(file: &Arc<File>, life: &LifeAt) -> Pieces {
    let (send, pieces) = mpsc::channel(EXPORT_PIECES_MAX);
    let mut reader = Reader::new(file, life.at);
    tokio::task::spawn_blocking(move || {
        loop {
            let piece = match reader.piece() {
                Ok(Some(piece)) => Ok(piece),
                Ok(None) => return,
                // It was sound a moment ago.
                Err(e) => Err(Error::Unavailable(e.to_string())),
            };
            let last = piece.is_err();
            if send.blocking_send(piece).is_err() || last {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(pieces).boxed()
}
