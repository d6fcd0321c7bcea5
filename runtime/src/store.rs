//! Modules in object storage: content-addressed, created once, verified on every read.

use std::path::Path as FsPath;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::name::TenantId;

#[derive(Clone)]
pub struct ModuleStore {
    store: Arc<dyn ObjectStore>,
    tenant: TenantId,
}

impl ModuleStore {
    /// A folder on this machine, made if it is missing.
    pub fn local(dir: &FsPath, tenant: TenantId) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let store = LocalFileSystem::new_with_prefix(dir).with_context(|| format!("open {}", dir.display()))?;
        Ok(Self {
            store: Arc::new(store.with_fsync(true)),
            tenant,
        })
    }

    fn path(&self, digest: &Digest) -> Path {
        Path::from_iter(["modules", self.tenant.as_str(), &digest.to_hex()])
    }

    /// Stores a component under its digest. Whoever comes second finds it there. A damaged copy is replaced.
    pub async fn put(&self, digest: &Digest, bytes: Bytes) -> anyhow::Result<()> {
        let path = self.path(digest);
        let create = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&path, bytes.clone().into(), create).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                if self.get(digest).await.is_err() {
                    self.store
                        .put(&path, bytes.into())
                        .await
                        .context("replace a damaged module")?;
                }
                Ok(())
            }
            Err(e) => Err(e).context("store the module"),
        }
    }

    /// # Errors
    /// When it is missing, or its bytes are not those that its digest names.
    pub async fn get(&self, digest: &Digest) -> anyhow::Result<Bytes> {
        let path = self.path(digest);
        let found = match self.store.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => {
                bail!("module {digest} is not in the module store: push it again")
            }
            Err(e) => return Err(e).context("read the module"),
        };
        let bytes = found.bytes().await.context("read the module")?;
        if Digest::of(&bytes) != *digest {
            bail!("module {digest} is damaged in the module store: push it again");
        }
        Ok(bytes)
    }

    /// Removes it; not an error when it is gone already.
    pub async fn remove(&self, digest: &Digest) -> anyhow::Result<()> {
        match self.store.delete(&self.path(digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(e).context("remove the module"),
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
        store.put(&digest, bytes.clone()).await.unwrap();
        store.put(&digest, bytes.clone()).await.unwrap();
        assert_eq!(store.get(&digest).await.unwrap(), bytes);

        let file = dir.path().join("modules/default").join(digest.to_hex());
        std::fs::write(&file, b"\0asm modulE").unwrap();
        assert!(store.get(&digest).await.unwrap_err().to_string().contains("damaged"));
        store.put(&digest, bytes.clone()).await.unwrap();
        assert_eq!(store.get(&digest).await.unwrap(), bytes);
        store.remove(&digest).await.unwrap();
        store.remove(&digest).await.unwrap();
        assert!(store.get(&digest).await.is_err());
    }
}
