//! From one build to the next, node by node: what a build can write, and what a store may hold.
//!
//! A build has a *level*, and so has a store, in its catalog. A build of level n works on stores of the levels n and n − 1, beside nodes of
//! the levels n − 1, n and n + 1, and writes nothing that the store's level does not allow. Once all nodes that are there have reached a
//! higher level, and a while has passed, they raise the store's. It never falls, and a node below it is refused.
//!
//! A build's level rises when something in it must not meet the build before: a record in another format, or a thing that a manifest may
//! say. The latter are listed here as [`Feature`]s, by whose names an apply is refused as long as the store is too low.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_model::Bytes;
use skep_model::swarm::Swarm;
use skep_topic::Backend;

/// The level of a store that says none: it was last written by a skep that knew of no levels.
pub const FIRST: u32 = 1;
/// How long all nodes must have been at a level before the store gets it. One that starts meanwhile is heard of within it, and a
/// rolling upgrade that is to be taken back can be until then.
pub const SETTLES: Duration = Duration::from_secs(10);
/// The catalog's record of it.
const KEY: &str = "level";

/// Something that a manifest may say since some level.
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    /// As users know it.
    pub name: &'static str,
    pub level: u32,
    pub used: fn(&Swarm) -> bool,
}

/// This program.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    pub version: &'static str,
    pub level: u32,
    pub features: &'static [Feature],
}

/// As it is released. A level has its reason here:
/// - 2: catalog writes are mirrored beside the modules, which only helps where every node does so. Loops: a node that knows of none would
///   forget the count that ends them. Secrets: it would run a Bee without what it is granted. Tokens and tenants: a node that knows of none would let everybody in.
const RELEASED: Build = Build {
    version: env!("CARGO_PKG_VERSION"),
    level: 2,
    features: &[
        Feature {
            name: "loop",
            level: 2,
            used: Swarm::loops,
        },
        Feature {
            name: "secrets",
            level: 2,
            used: Swarm::reads_secrets,
        },
        Feature {
            name: "http",
            level: 2,
            used: Swarm::sends_http,
        },
        Feature {
            name: "models",
            level: 2,
            used: Swarm::calls_models,
        },
        Feature {
            name: "place",
            level: 2,
            used: Swarm::is_split,
        },
        Feature {
            name: "built-in stages",
            level: 2,
            used: Swarm::has_builtins,
        },
        Feature {
            name: "ends",
            level: 2,
            used: Swarm::ends,
        },
    ],
};

static BUILD: OnceLock<Build> = OnceLock::new();

impl Build {
    /// What runs.
    #[must_use]
    pub fn current() -> Self {
        *BUILD.get_or_init(|| RELEASED)
    }

    /// Makes this process another build, for tests of upgrades. Only before anything asked.
    ///
    /// # Errors
    /// The build of this process is settled.
    pub fn pretend(version: &'static str, features: &'static [Feature]) -> Result<(), &'static str> {
        let next = Self {
            version,
            level: RELEASED.level + 1,
            features,
        };
        BUILD
            .set(next)
            .map_err(|_| "the build of this process is settled already")
    }

    /// What of a Swarm a store of `level` does not allow.
    #[must_use]
    pub fn too_new(&self, swarm: &Swarm, level: u32) -> Vec<&'static Feature> {
        let used = self.features.iter().filter(|f| f.level > level && (f.used)(swarm));
        used.collect()
    }

    /// Whether this build may work on a store of `level`; why not, else.
    #[must_use]
    pub fn refuses(&self, level: u32) -> Option<String> {
        let Self {
            version, level: own, ..
        } = self;
        if level > *own {
            return Some(format!(
                "the store is at level {level} and this skep {version} at level {own}: newer nodes wrote what it cannot read; \
                 upgrade this node"
            ));
        }
        (level + 1 < *own).then(|| {
            format!(
                "the store is at level {level} and this skep {version} at level {own}, which reads one level back: upgrade all nodes \
                 to a skep of level {} first, and let it run for a minute",
                level + 1
            )
        })
    }

    /// Whether this build may work beside a node of `level`; what is wrong, else.
    #[must_use]
    pub fn avoids(&self, level: u32) -> Option<&'static str> {
        if level > self.level + 1 {
            Some("is more than one level ahead of it: upgrade this node to a skep between the two first")
        } else if level + 1 < self.level {
            Some("is more than one level behind it: upgrade that node first, to a skep between the two")
        } else {
            None
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    level: u32,
    /// Which skep raised it, for people.
    by: String,
}

/// The store's level.
///
/// # Errors
/// When the store cannot be read, or says what no skep says.
pub async fn of_store(backend: &dyn Backend) -> anyhow::Result<u32> {
    Ok(stored(backend).await?.1)
}

async fn stored(backend: &dyn Backend) -> anyhow::Result<(u64, u32)> {
    let found = backend.catalog_list(KEY).await?;
    let Some((_, found)) = found.into_iter().find(|(key, _)| key == KEY) else {
        return Ok((0, FIRST));
    };
    let record: Record = serde_json::from_slice(&found.value).context(
        "the store's level in the catalog cannot be read: it is damaged, or a newer skep wrote it; upgrade this one",
    )?;
    if record.level < FIRST {
        bail!(
            "the store's level in the catalog is {}, which no skep writes",
            record.level
        );
    }
    Ok((found.version, record.level))
}

/// Raises the store's level. Nothing is done where it is as high already.
///
/// # Errors
/// When the store cannot be reached.
pub async fn raise(backend: &dyn Backend, level: u32) -> anyhow::Result<()> {
    let (version, now) = stored(backend).await?;
    if now >= level {
        return Ok(());
    }
    let by = format!("skep {}", Build::current().version);
    let record = serde_json::to_vec(&Record { level, by })?;
    // Whoever was first wrote the same, or will be asked again.
    if backend.catalog_put(KEY, version, Bytes::from(record)).await?.is_ok() {
        tracing::info!(
            level,
            "every node has reached this level, and the store has it now: nodes below it cannot join any more"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skep_model::env::{ManualClock, SeededEntropy};
    use skep_topic::memory::Memory;

    use super::*;

    const THIRD: Build = Build {
        version: "x",
        level: 3,
        features: &[Feature {
            name: "many partitions",
            level: 3,
            used: |swarm| swarm.stages.iter().any(|stage| stage.partitions > 4),
        }],
    };

    #[test]
    fn a_build_reads_one_level_back_and_stands_beside_one_on_either_side() {
        let refused = |level| THIRD.refuses(level).unwrap_or_default();
        assert_eq!(THIRD.refuses(3), None);
        assert_eq!(THIRD.refuses(2), None);
        assert!(refused(4).contains("upgrade this node"), "{}", refused(4));
        assert!(refused(1).contains("level 2 first"), "{}", refused(1));
        assert_eq!([2, 3, 4].map(|level| THIRD.avoids(level)), [None; 3]);
        assert!(THIRD.avoids(5).is_some() && THIRD.avoids(1).is_some());
    }

    #[tokio::test]
    async fn a_store_s_level_rises_and_never_falls() {
        let backend = Memory::new(Arc::new(ManualClock::at(1)), Arc::new(SeededEntropy::new(1)));
        assert_eq!(of_store(backend.as_ref()).await.unwrap(), FIRST);
        raise(backend.as_ref(), 3).await.unwrap();
        raise(backend.as_ref(), 2).await.unwrap();
        assert_eq!(of_store(backend.as_ref()).await.unwrap(), 3);
        let (key, record) = backend.catalog_list(KEY).await.unwrap().remove(0);
        let odd = Bytes::from_static(b"{\"newer\":1}");
        backend.catalog_put(&key, record.version, odd).await.unwrap().unwrap();
        let why = format!("{:#}", of_store(backend.as_ref()).await.unwrap_err());
        assert!(why.contains("upgrade"), "{why}");
    }
}
