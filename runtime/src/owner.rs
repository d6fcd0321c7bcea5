//! Whose the module store is. Two platforms in one prefix would take each other's modules for leftovers and delete them, so the first
//! marks the prefix as its own, and another is refused.

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_model::Bytes;
use skep_model::env::Entropy;
use skep_model::id::Uid;
use skep_model::limits::OWNER_MARK_BYTES_MAX;
use skep_topic::Backend;

use crate::store::Place;

/// The catalog's record of which platform it is, and the object that says whose the prefix is.
const IDENTITY: &str = "platform";
const MARK: &str = "owner";

#[derive(Serialize, Deserialize)]
struct Mark {
    format: u32,
    platform: String,
    /// Which node made it, and when, for people.
    node: String,
    made_ms: u64,
}

/// Makes the store this platform's, or finds that it is.
///
/// # Errors
/// It is another's, or cannot be told whose it is.
pub async fn take(
    place: &Place,
    backend: &dyn Backend,
    entropy: &dyn Entropy,
    node: &str,
    now_ms: u64,
) -> anyhow::Result<()> {
    let platform = identity(backend, entropy)
        .await
        .context("tell which platform this is")?;
    let mine = Mark {
        format: 1,
        platform,
        node: node.to_owned(),
        made_ms: now_ms,
    };
    let at = place.shown();
    for _ in 0..2 {
        let Some(found) = place.read(MARK, OWNER_MARK_BYTES_MAX).await? else {
            // Who comes second reads whose it is.
            if place.create(MARK, Bytes::from(serde_json::to_vec(&mine)?)).await? {
                return Ok(());
            }
            continue;
        };
        let mark: Mark = serde_json::from_slice(&found).with_context(|| {
            format!("the object `{MARK}` at {at} is not skep's: give skep a prefix of its own in --artifacts")
        })?;
        if mark.platform == mine.platform {
            return Ok(());
        }
        bail!(
            "{at} holds the modules of another platform (marked by node `{}`; its id is {}, this one's {}): each would delete what only the \
             other uses. Give this one a prefix of its own in --artifacts. If the other is gone for good, delete the object `{MARK}` and all \
             under `catalog/` there, and start again",
            mark.node,
            mark.platform,
            mine.platform
        );
    }
    bail!("the object `{MARK}` at {at} comes and goes: look at who else uses that prefix")
}

/// Which platform the topics and the catalog belong to.
async fn identity(backend: &dyn Backend, entropy: &dyn Entropy) -> anyhow::Result<String> {
    for _ in 0..2 {
        let found = backend.catalog_list(IDENTITY).await?;
        if let Some((_, record)) = found.into_iter().find(|(key, _)| key == IDENTITY) {
            return serde_json::from_slice(&record.value).context("the platform's id in the catalog is damaged");
        }
        let fresh = Uid(entropy.bits128()).to_string();
        // Another node may be first.
        let _ = backend
            .catalog_put(IDENTITY, 0, Bytes::from(serde_json::to_vec(&fresh)?))
            .await?;
    }
    bail!("the platform's id in the catalog comes and goes")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skep_model::env::{ManualClock, SeededEntropy};
    use skep_topic::memory::Memory;

    use super::*;
    use crate::settings::ArtifactSettings;
    use crate::store::Access;

    #[tokio::test]
    async fn a_prefix_is_one_platform_s() {
        let dir = tempfile::tempdir().unwrap();
        let settings = ArtifactSettings::Folder(dir.path().join("modules"));
        let place = Place::open(&settings, dir.path(), Access::default()).unwrap();
        let backend = |seed| Memory::new(Arc::new(ManualClock::at(1)), Arc::new(SeededEntropy::new(seed)));
        let (first, second) = (backend(1), backend(2));
        let (one, two) = (SeededEntropy::new(3), SeededEntropy::new(4));
        for _ in 0..2 {
            take(&place, first.as_ref(), &one, "a", 1).await.unwrap();
        }
        let why = take(&place, second.as_ref(), &two, "b", 2)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            why.contains("node `a`") && why.contains("delete the object `owner`"),
            "{why}"
        );
        // On purpose.
        place.remove(MARK).await.unwrap();
        take(&place, second.as_ref(), &two, "b", 2).await.unwrap();
        assert!(take(&place, first.as_ref(), &one, "a", 3).await.is_err());
        std::fs::write(dir.path().join("modules/owner"), b"a note").unwrap();
        let why = format!("{:#}", take(&place, second.as_ref(), &two, "b", 3).await.unwrap_err());
        assert!(why.contains("not skep's"), "{why}");
    }
}
