//! Modules and models in object storage: content-addressed, created once, verified on every read.
//!
//! A folder of the node's own, a folder that nodes share, or S3 with local copies of what this node runs.

use std::path::Path as FsPath;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, WriteMultipart};
use skep_inference::limits::MODEL_BYTES_MAX;
use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::limits::{
    MODEL_COPIES_BYTES_MAX, MODULE_COPIES_BYTES_MAX, STORE_PART_BYTES, STORE_PARTS_AT_ONCE_MAX, UPLOAD_BYTES_MAX,
};
use skep_model::name::TenantId;

use crate::settings::ArtifactSettings;

mod copies;
mod probe;
mod trouble;

use copies::Copies;
pub use probe::{Probe, probe};
pub use trouble::{Access, Trouble};

/// What lies in a store, each kind in a folder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Module,
    Model,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Model => "model",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Module => "modules",
            Self::Model => "models",
        }
    }

    /// Bytes of the largest.
    fn most(self) -> u64 {
        match self {
            Self::Module => UPLOAD_BYTES_MAX as u64,
            Self::Model => MODEL_BYTES_MAX as u64,
        }
    }
}

/// A tenant's modules, or its models.
#[derive(Clone)]
pub struct ModuleStore {
    place: Place,
    tenant: TenantId,
    kind: Kind,
    /// Of what lies elsewhere.
    copies: Option<Arc<Copies>>,
    model_copies: Option<Arc<Copies>>,
}

/// An object store and what it is called.
#[derive(Clone)]
pub struct Place {
    store: Arc<dyn ObjectStore>,
    settings: ArtifactSettings,
    access: Arc<Access>,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Created,
    /// Whole.
    Known,
    /// It was there and damaged.
    Replaced,
}

impl Place {
    /// Nothing is asked of the store yet.
    ///
    /// # Errors
    /// The folder cannot be made, or the variables that S3 is configured by do not fit.
    pub fn open(settings: &ArtifactSettings, data: &FsPath, access: Access) -> Result<Self, Trouble> {
        let settings = settings.clone();
        let store: Arc<dyn ObjectStore> = match &settings {
            ArtifactSettings::Own => folder(&data.join("modules"))?,
            ArtifactSettings::Folder(dir) => folder(dir)?,
            ArtifactSettings::S3 { bucket, prefix } => {
                let s3 = trouble::s3(bucket, &access)?;
                match prefix.as_str() {
                    "" => Arc::new(s3),
                    prefix => Arc::new(PrefixStore::new(s3, prefix)),
                }
            }
        };
        let access = Arc::new(access);
        Ok(Self {
            store,
            settings,
            access,
        })
    }

    /// As the settings name it, without secrets.
    #[must_use]
    pub fn shown(&self) -> String {
        self.settings.to_string()
    }

    /// Creates an object. `false`: there is one.
    ///
    /// # Errors
    /// [`Trouble`]: it is not known to be there.
    pub async fn create(&self, name: &str, bytes: Bytes) -> Result<bool, Trouble> {
        let create = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&Path::from(name), bytes.into(), create).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(e) => Err(self.trouble("create an object", &e)),
        }
    }

    /// Names of what is in a folder.
    ///
    /// # Errors
    /// [`Trouble`]: the store does not answer.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, Trouble> {
        let found: Result<Vec<_>, _> = self.store.list(Some(&Path::from(folder))).try_collect().await;
        let found = found.map_err(|e| self.trouble("list objects", &e))?;
        let names = found.iter().filter_map(|meta| meta.location.filename());
        Ok(names.map(str::to_owned).collect())
    }

    /// `None`: it is not there.
    ///
    /// # Errors
    /// [`Trouble`]: the store does not answer, or the object is larger than that.
    pub async fn read(&self, name: &str, most: u64) -> Result<Option<Bytes>, Trouble> {
        let found = match self.store.get(&Path::from(name)).await {
            Ok(found) => found,
            Err(e @ object_store::Error::NotFound { .. }) if !trouble::no_bucket(&e) => return Ok(None),
            Err(e) => return Err(self.trouble("read an object", &e)),
        };
        if found.meta.size > most {
            return Err(Trouble {
                what: format!(
                    "`{name}` at {} has {} bytes, at most {most} are read",
                    self.shown(),
                    found.meta.size
                ),
                remedy: "something else than skep wrote it: give skep a prefix of its own".to_owned(),
            });
        }
        let bytes = found.bytes().await;
        bytes.map(Some).map_err(|e| self.trouble("read an object", &e))
    }

    /// Not an error when it is gone already.
    ///
    /// # Errors
    /// [`Trouble`]: it may be there still.
    pub async fn remove(&self, name: &str) -> Result<(), Trouble> {
        match self.store.delete(&Path::from(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.trouble("remove an object", &e)),
        }
    }

    fn remote(&self) -> bool {
        matches!(self.settings, ArtifactSettings::S3 { .. })
    }

    fn trouble(&self, doing: &str, e: &object_store::Error) -> Trouble {
        trouble::of(&self.settings, &self.access, doing, e)
    }
}

fn folder(dir: &FsPath) -> Result<Arc<dyn ObjectStore>, Trouble> {
    std::fs::create_dir_all(dir).map_err(|e| trouble::of_folder(dir, &e))?;
    let store = LocalFileSystem::new_with_prefix(dir).map_err(|e| Trouble {
        what: format!("cannot use the folder {}: {e}", dir.display()),
        remedy: "look at --artifacts".to_owned(),
    })?;
    Ok(Arc::new(store.with_fsync(true)))
}

impl ModuleStore {
    /// A folder on this machine, made if it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn local(dir: &FsPath, tenant: TenantId) -> anyhow::Result<Self> {
        let place = Place {
            store: folder(dir)?,
            settings: ArtifactSettings::Folder(dir.to_owned()),
            access: Arc::default(),
        };
        Ok(Self {
            place,
            tenant,
            kind: Kind::Module,
            copies: None,
            model_copies: None,
        })
    }

    /// What the settings name. A store that others use is tried out first: it must be reached, let us read, write and delete, and
    /// refuse to create what exists.
    ///
    /// # Errors
    /// [`Trouble`]: what does not work, and the remedy.
    pub async fn open(
        settings: &ArtifactSettings,
        data: &FsPath,
        tenant: TenantId,
        access: Access,
    ) -> anyhow::Result<Self> {
        let place = Place::open(settings, data, access)?;
        if *settings != ArtifactSettings::Own {
            probe(&place).await?;
        }
        let copies = |folder: &str, most| match place.remote() {
            true => Copies::open(data.join(folder), most)
                .with_context(|| format!("open {folder}"))
                .map(|copies| Some(Arc::new(copies))),
            false => Ok(None),
        };
        let (modules, models) = (
            copies("module-copies", MODULE_COPIES_BYTES_MAX)?,
            copies("model-copies", MODEL_COPIES_BYTES_MAX)?,
        );
        Ok(Self {
            place,
            tenant,
            kind: Kind::Module,
            copies: modules,
            model_copies: models,
        })
    }

    /// The tenant's models instead of its modules.
    #[must_use]
    pub fn models(&self) -> Self {
        Self {
            kind: Kind::Model,
            ..self.clone()
        }
    }

    fn copies(&self) -> Option<&Arc<Copies>> {
        match self.kind {
            Kind::Module => self.copies.as_ref(),
            Kind::Model => self.model_copies.as_ref(),
        }
    }

    fn trouble(&self, doing: &str, e: &object_store::Error) -> Trouble {
        self.place.trouble(&format!("{doing} the {}", self.kind.noun()), e)
    }

    /// The same for another tenant. Copies on disk are named by digest and shared: they are read for a tenant whose records name it.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> Self {
        Self {
            tenant: tenant.clone(),
            ..self.clone()
        }
    }

    /// The place, where it is not this node's alone.
    #[must_use]
    pub fn shared(&self) -> Option<&Place> {
        (self.place.settings != ArtifactSettings::Own).then_some(&self.place)
    }

    fn path(&self, digest: &Digest) -> Path {
        Path::from_iter([self.kind.folder(), self.tenant.as_str(), &digest.to_hex()])
    }

    /// Stores a file under its digest. Whoever comes second finds it there. A damaged copy is replaced.
    ///
    /// # Errors
    /// [`Trouble`]: it is not known to be stored. Storing it again is safe.
    pub async fn put(&self, digest: &Digest, bytes: Bytes) -> anyhow::Result<Put> {
        let created = self.create(digest, bytes.clone()).await?;
        let put = if created {
            Put::Created
        } else if self.fetch(digest).await.is_ok() {
            Put::Known
        } else {
            self.write(digest, bytes.clone()).await?;
            Put::Replaced
        };
        self.copy(*digest, bytes).await;
        Ok(put)
    }

    /// Whether it was not there.
    async fn create(&self, digest: &Digest, bytes: Bytes) -> anyhow::Result<bool> {
        let path = self.path(digest);
        if self.in_parts(&bytes) {
            // Parts have no such condition. Two that write at once write the same bytes, and each object is whole.
            if self.has(digest).await? {
                return Ok(false);
            }
            self.write(digest, bytes).await?;
            return Ok(true);
        }
        let create = PutOptions::from(PutMode::Create);
        match self.place.store.put_opts(&path, bytes.into(), create).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(e) => Err(self.trouble("store", &e).into()),
        }
    }

    fn in_parts(&self, bytes: &Bytes) -> bool {
        self.place.remote() && bytes.len() > STORE_PART_BYTES
    }

    /// Over whatever is there.
    async fn write(&self, digest: &Digest, bytes: Bytes) -> anyhow::Result<()> {
        let path = self.path(digest);
        let told = |e: object_store::Error| self.trouble("store", &e);
        if !self.in_parts(&bytes) {
            self.place.store.put(&path, bytes.into()).await.map_err(told)?;
            return Ok(());
        }
        let upload = self.place.store.put_multipart(&path).await.map_err(told)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, STORE_PART_BYTES);
        for start in (0..bytes.len()).step_by(STORE_PART_BYTES) {
            if let Err(e) = upload.wait_for_capacity(STORE_PARTS_AT_ONCE_MAX).await {
                // What is left of it costs room until it is aborted.
                let _ = upload.abort().await;
                return Err(told(e).into());
            }
            upload.put(bytes.slice(start..bytes.len().min(start + STORE_PART_BYTES)));
        }
        // Aborts by itself.
        upload.finish().await.map_err(told)?;
        Ok(())
    }

    /// # Errors
    /// When it is missing, or its bytes are not those that its digest names; [`Trouble`] when the store does not answer.
    pub async fn get(&self, digest: &Digest) -> anyhow::Result<Bytes> {
        if let Some(bytes) = self.copied(*digest).await {
            return Ok(bytes);
        }
        let bytes = self.fetch(digest).await?;
        self.copy(*digest, bytes.clone()).await;
        Ok(bytes)
    }

    /// Whether something is stored under the digest.
    ///
    /// # Errors
    /// [`Trouble`]: the store does not answer.
    pub async fn has(&self, digest: &Digest) -> anyhow::Result<bool> {
        match self.place.store.head(&self.path(digest)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.trouble("look for", &e).into()),
        }
    }

    /// From the store itself.
    async fn fetch(&self, digest: &Digest) -> anyhow::Result<Bytes> {
        let told = |e: object_store::Error| self.trouble("read", &e);
        let found = match self.place.store.get(&self.path(digest)).await {
            Ok(found) => found,
            Err(e @ object_store::Error::NotFound { .. }) if !trouble::no_bucket(&e) => {
                bail!(
                    "{} {digest} is not in the module store: push it again",
                    self.kind.noun()
                )
            }
            Err(e) => return Err(told(e).into()),
        };
        // What is larger than any upload is not read to find that out.
        let mut bytes = Vec::new();
        if found.meta.size <= self.kind.most() {
            bytes.reserve_exact(usize::try_from(found.meta.size)?);
            let mut stream = found.into_stream();
            while let Some(part) = stream.try_next().await.map_err(told)? {
                bytes.extend_from_slice(&part);
            }
        }
        let bytes = Bytes::from(bytes);
        if Digest::of(&bytes) != *digest {
            bail!(
                "{} {digest} is damaged in the module store: push it again",
                self.kind.noun()
            );
        }
        Ok(bytes)
    }

    /// Removes it; not an error when it is gone already.
    ///
    /// # Errors
    /// [`Trouble`]: it may be there still.
    pub async fn remove(&self, digest: &Digest) -> anyhow::Result<()> {
        if let Some(copies) = self.copies() {
            let (copies, digest) = (Arc::clone(copies), *digest);
            let _ = tokio::task::spawn_blocking(move || copies.remove(digest)).await;
        }
        match self.place.store.delete(&self.path(digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.trouble("remove", &e).into()),
        }
    }

    async fn copied(&self, digest: Digest) -> Option<Bytes> {
        let copies = Arc::clone(self.copies()?);
        let (noun, most) = (self.kind.noun(), self.kind.most());
        let found = tokio::task::spawn_blocking(move || copies.get(digest, most))
            .await
            .ok()?;
        found.unwrap_or_else(|e| {
            tracing::warn!(%digest, error = %e, "cannot read the copy of a {noun}");
            None
        })
    }

    /// A copy saves a download, nothing else: without one the module is fetched again.
    async fn copy(&self, digest: Digest, bytes: Bytes) {
        let Some(copies) = self.copies().cloned() else {
            return;
        };
        let noun = self.kind.noun();
        let kept = tokio::task::spawn_blocking(move || copies.put(digest, &bytes)).await;
        if let Ok(Err(e)) = kept {
            tracing::warn!(%digest, error = %e, "cannot keep a copy of a {noun}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_read_is_what_the_digest_names() {
        let dir = tempfile::tempdir().unwrap();
        let store = ModuleStore::local(dir.path(), TenantId::default_tenant()).unwrap();
        let bytes = Bytes::from_static(b"\0asm module");
        let digest = Digest::of(&bytes);
        assert!(
            store
                .get(&digest)
                .await
                .unwrap_err()
                .to_string()
                .contains("push it again")
        );
        assert_eq!(store.put(&digest, bytes.clone()).await.unwrap(), Put::Created);
        assert_eq!(store.put(&digest, bytes.clone()).await.unwrap(), Put::Known);
        assert_eq!(store.get(&digest).await.unwrap(), bytes);

        let file = dir.path().join("modules/default").join(digest.to_hex());
        std::fs::write(&file, b"\0asm modulE").unwrap();
        assert!(store.get(&digest).await.unwrap_err().to_string().contains("damaged"));
        assert_eq!(store.put(&digest, bytes.clone()).await.unwrap(), Put::Replaced);
        assert_eq!(store.get(&digest).await.unwrap(), bytes);
        store.remove(&digest).await.unwrap();
        store.remove(&digest).await.unwrap();
        assert!(store.get(&digest).await.is_err());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_is_told_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let settings = ArtifactSettings::Folder(file.join("modules"));
        let opened = ModuleStore::open(&settings, dir.path(), TenantId::default_tenant(), Access::default()).await;
        let told = opened.err().unwrap().to_string();
        assert!(told.contains("file/modules") && told.contains("--artifacts"), "{told}");
        let settings = ArtifactSettings::Folder(dir.path().join("shared"));
        let store = ModuleStore::open(&settings, dir.path(), TenantId::default_tenant(), Access::default()).await;
        assert!(store.is_ok());
        // The probe leaves nothing behind.
        let left: Vec<_> = std::fs::read_dir(dir.path().join("shared/probe")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
