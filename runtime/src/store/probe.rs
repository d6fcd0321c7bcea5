//! Tries out a store with an object of its own.

use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions};
use skep_model::Bytes;
use skep_model::env::{Entropy as _, OsEntropy};
use skep_model::limits::STORE_PROBE_MS;

use super::{Place, Trouble};

/// How long each took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probe {
    pub create: Duration,
    /// To create it again, which must fail.
    pub refuse: Duration,
    pub read: Duration,
    pub delete: Duration,
}

/// Creates an object, fails to create it again, reads it and deletes it.
///
/// # Errors
/// The first that does not work, with the remedy.
pub async fn probe(place: &Place) -> Result<Probe, Trouble> {
    let patience = Duration::from_millis(STORE_PROBE_MS);
    match tokio::time::timeout(patience, tried(place)).await {
        Ok(probe) => probe,
        Err(_) => Err(super::trouble::silent(&place.settings, &place.access, patience)),
    }
}

async fn tried(place: &Place) -> Result<Probe, Trouble> {
    let name = OsEntropy.bits128().map(|b| format!("{b:02x}")).concat();
    let path = Path::from_iter(["probe", &name]);
    let mut probe = Probe::default();
    let mut began = Instant::now();
    let mut lap = || std::mem::replace(&mut began, Instant::now()).elapsed();
    create(place, &path, "first")
        .await
        .map_err(|e| place.trouble("create an object", &e))?;
    probe.create = lap();
    let again = create(place, &path, "second").await;
    probe.refuse = lap();
    let rest = async {
        match again {
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {}
            Ok(()) => return Err(unconditional(place)),
            Err(e @ object_store::Error::NotImplemented { .. }) => {
                tracing::debug!(error = %e, "no conditional create");
                return Err(unconditional(place));
            }
            Err(e) => return Err(place.trouble("create an object that exists", &e)),
        }
        let told = |e: object_store::Error| place.trouble("read an object", &e);
        let found = place.store.get(&path).await.map_err(told)?;
        if found.bytes().await.map_err(told)? != "first" {
            return Err(unconditional(place));
        }
        Ok(())
    };
    let rest = rest.await;
    probe.read = lap();
    let deleted = place.store.delete(&path).await;
    rest?;
    deleted.map_err(|e| place.trouble("delete an object", &e))?;
    probe.delete = lap();
    Ok(probe)
}

async fn create(place: &Place, path: &Path, content: &'static str) -> Result<(), object_store::Error> {
    let create = PutOptions::from(PutMode::Create);
    let put = place
        .store
        .put_opts(path, Bytes::from_static(content.as_bytes()).into(), create);
    put.await.map(|_| ())
}

/// Two nodes that make the same thing at once would not hear of each other.
fn unconditional(place: &Place) -> Trouble {
    Trouble {
        what: format!(
            "the store at {} overwrites what it is asked to create only",
            place.settings
        ),
        remedy: "use one with conditional writes (If-None-Match): Amazon S3, MinIO, Ceph and others have them"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use object_store::memory::InMemory;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
        PutPayload, PutResult, Result,
    };

    use super::*;
    use crate::settings::ArtifactSettings;

    /// As servers are that do not know the condition: it is ignored.
    #[derive(Debug)]
    struct Heedless(InMemory);

    impl std::fmt::Display for Heedless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("heedless")
        }
    }

    #[async_trait]
    impl ObjectStore for Heedless {
        async fn put_opts(&self, path: &Path, payload: PutPayload, _: PutOptions) -> Result<PutResult> {
            self.0.put_opts(path, payload, PutOptions::default()).await
        }
        async fn put_multipart_opts(
            &self,
            path: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(path, options).await
        }
        async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
            self.0.get_opts(path, options).await
        }
        fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(paths)
        }
        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.0.list(prefix)
        }
        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }
        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    #[tokio::test]
    async fn a_store_without_conditional_create_is_refused() {
        let place = |store: Arc<dyn ObjectStore>| Place {
            store,
            settings: ArtifactSettings::S3 {
                bucket: "bees".to_owned(),
                prefix: String::new(),
            },
            access: Arc::default(),
        };
        probe(&place(Arc::new(InMemory::new()))).await.unwrap();
        let told = probe(&place(Arc::new(Heedless(InMemory::new())))).await.unwrap_err();
        assert!(told.what.contains("s3://bees overwrites"), "{told}");
        assert!(told.remedy.contains("If-None-Match"), "{told}");
    }
}
