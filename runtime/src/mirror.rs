//! Desired state once more, beside the modules: so that a Redis that comes back from an older state, by a failover to a replica that was
//! behind or from a copy, cannot bring back what was revoked.
//!
//! ```text
//!   catalog write ──► Redis (its sequence rises) ──gate──► catalog/<sequence> in the module store ──► the answer
//!   the catalog changed ──► newest copy, then Redis: is Redis behind, or another at the same place? ──► the copy's records are written again
//! ```
//! A copy has all records, and is created once: its name is the place in the catalog's history that it is of, so two histories meet
//! there. Copies are read before Redis is, and written after it, so in one history Redis is never behind. Where it is, the copy wins: it is
//! younger, and what a copy holds was perhaps acknowledged. Any node does it, and all may at once: each record is compared and set.
//!
//! What only nodes tell each other (wishes to leave, a restore under way) is not mirrored: it is nobody's after a failover.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::limits::{MIRROR_COPIES_KEPT, MIRROR_COPY_BYTES_MAX};
use skep_topic::{Backend, CatalogChange, CatalogRecord};

use crate::catalog::RACES_MAX;
use crate::members::Members;
use crate::store::Place;

/// Of what a copy is made. One that an earlier skep made says nothing of it, and is of [`FIRST`].
const MIRRORED: [&str; 10] = [
    "module/", "model/", "swarm/", "level", "tenant/", "token/", "access", "secret/", "edge/", "hub-key",
];
const FIRST: [&str; 7] = ["module/", "swarm/", "level", "tenant/", "token/", "access", "secret/"];
const FORMAT: u32 = 1;
/// The store's level from which on all nodes do this.
const LEVEL: u32 = 2;
const FOLDER: &str = "catalog";

pub struct Mirror {
    place: Place,
    backend: Arc<dyn Backend>,
    members: Arc<Members>,
    /// The furthest place in the catalog's history that this node saw a copy of.
    seen: AtomicU64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Copy {
    format: u32,
    /// The catalog's number.
    number: u64,
    /// What it is a copy of, by the beginnings of keys: of anything else it does not say that it is gone.
    #[serde(default = "first")]
    kinds: Vec<String>,
    /// By key. Catalog records are JSON.
    records: BTreeMap<String, String>,
}

fn first() -> Vec<String> {
    FIRST.map(str::to_owned).to_vec()
}

/// Before a copy, so that bytes that are not whole are not taken for one.
const DIGEST_BYTES: usize = 32;

impl Copy {
    fn encode(&self) -> anyhow::Result<Bytes> {
        let body = serde_json::to_vec(self)?;
        let mut out = Digest::of(&body).0.to_vec();
        out.extend_from_slice(&body);
        Ok(Bytes::from(out))
    }

    fn decode(name: &str, bytes: &[u8]) -> anyhow::Result<Self> {
        let damaged = || format!("the catalog's copy `{FOLDER}/{name}` in the module store is damaged");
        let Some((digest, body)) = bytes.split_at_checked(DIGEST_BYTES) else {
            bail!(damaged())
        };
        if Digest::of(body).0 != digest {
            bail!(damaged());
        }
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(body).with_context(damaged)?;
        if head.format > FORMAT {
            bail!(
                "the catalog's copy `{FOLDER}/{name}` has format {}, this skep reads up to {FORMAT}: a newer skep wrote it; upgrade this one",
                head.format
            );
        }
        serde_json::from_slice(body).with_context(damaged)
    }
}

impl Copy {
    /// What makes the catalog's `found` what the copy says.
    fn brought_back(&self, found: &BTreeMap<String, CatalogRecord>) -> Vec<CatalogChange> {
        let mut changes = Vec::new();
        for (key, value) in &self.records {
            let now = found.get(key);
            if now.is_none_or(|record| record.value != value.as_bytes()) {
                changes.push(CatalogChange {
                    key: key.clone(),
                    expect: now.map_or(0, |record| record.version),
                    value: Some(Bytes::from(value.clone().into_bytes())),
                });
            }
        }
        let told = |key: &String| self.kinds.iter().any(|kind| key.starts_with(kind.as_str()));
        let gone = found
            .iter()
            .filter(|(key, _)| told(key) && !self.records.contains_key(*key));
        changes.extend(gone.map(|(key, record)| CatalogChange {
            key: key.clone(),
            expect: record.version,
            value: None,
        }));
        changes
    }
}

/// Where a copy stands to the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    Same,
    /// Something was written since.
    Behind,
    /// The catalog lost what the copy has, or went another way from before it on.
    Ahead,
}

fn stand(copy: Option<(u64, u64)>, catalog: (u64, u64)) -> Stand {
    match copy {
        None => Stand::Behind,
        Some(copy) if copy == catalog => Stand::Same,
        Some((sequence, _)) if sequence < catalog.0 => Stand::Behind,
        Some(_) => Stand::Ahead,
    }
}

impl Mirror {
    /// `None`: this store's catalog cannot lose its end.
    #[must_use]
    pub fn new(place: Place, backend: Arc<dyn Backend>, members: Arc<Members>) -> Option<Arc<Self>> {
        backend.catalog_place(0)?;
        Some(Arc::new(Self {
            place,
            backend,
            members,
            seen: AtomicU64::new(0),
        }))
    }

    fn place_of(&self, number: u64) -> u64 {
        self.backend.catalog_place(number).unwrap_or(0)
    }

    /// Whether the catalog is certainly one that was taken back, by what this node saw itself.
    #[must_use]
    pub fn is_behind(&self, number: u64) -> bool {
        self.place_of(number) < self.seen.load(Ordering::Relaxed)
    }

    /// Copies what is in the catalog, if that is newer than the newest copy; writes back what is in the copy, if the catalog lost it.
    ///
    /// # Errors
    /// When the catalog or the module store cannot be read or written. Asking again is safe.
    pub async fn keep(&self) -> anyhow::Result<()> {
        // Nodes below that level write to the catalog and do not copy it.
        if self.members.level() < LEVEL {
            return Ok(());
        }
        for _ in 0..RACES_MAX {
            let newest = self.newest().await?;
            let Some((number, records)) = self.catalog().await? else {
                continue;
            };
            let here = (self.place_of(number), number);
            let copy = newest.as_ref().map(|(sequence, copy)| (*sequence, copy.number));
            if let Some((sequence, _)) = copy {
                self.seen.fetch_max(sequence, Ordering::Relaxed);
            }
            match (stand(copy, here), newest) {
                (Stand::Same, _) => return Ok(()),
                (Stand::Ahead, Some((sequence, copy))) => self.write_back((sequence, here.0), &copy, &records).await?,
                _ if here.0 == 0 => return Ok(()),
                _ => {
                    let values = records.into_iter().map(|(key, record)| {
                        let text = String::from_utf8(record.value.to_vec());
                        Ok((key, text.context("a catalog record is no text")?))
                    });
                    let copy = Copy {
                        format: FORMAT,
                        number,
                        kinds: MIRRORED.map(str::to_owned).to_vec(),
                        records: values.collect::<anyhow::Result<_>>()?,
                    };
                    // Who comes second looks whose it is.
                    if self.place.create(&name(here.0), copy.encode()?).await? {
                        self.seen.fetch_max(here.0, Ordering::Relaxed);
                        self.forget_old(here.0).await;
                        return Ok(());
                    }
                }
            }
        }
        bail!("the catalog is being changed by too many at once: try again")
    }

    /// The catalog and its number. `None`: it changed while it was read.
    async fn catalog(&self) -> anyhow::Result<Option<(u64, BTreeMap<String, CatalogRecord>)>> {
        let number = self.backend.catalog_number().await?;
        let mut records = BTreeMap::new();
        for prefix in MIRRORED {
            records.extend(self.backend.catalog_list(prefix).await?);
        }
        Ok((self.backend.catalog_number().await? == number).then_some((number, records)))
    }

    async fn newest(&self) -> anyhow::Result<Option<(u64, Copy)>> {
        let mut names = self.place.list(FOLDER).await?;
        names.sort_unstable();
        // One that another node removes meanwhile has a newer one behind it.
        while let Some(name) = names.pop() {
            let sequence: u64 = name.parse().with_context(|| {
                format!("`{FOLDER}/{name}` in the module store is not a copy of the catalog: remove it")
            })?;
            let most = MIRROR_COPY_BYTES_MAX;
            if let Some(bytes) = self.place.read(&format!("{FOLDER}/{name}"), most).await? {
                return Ok(Some((sequence, Copy::decode(&name, &bytes)?)));
            }
        }
        Ok(None)
    }

    async fn write_back(
        &self,
        (sequence, here): (u64, u64),
        copy: &Copy,
        found: &BTreeMap<String, CatalogRecord>,
    ) -> anyhow::Result<()> {
        tracing::error!(
            lost = sequence.saturating_sub(here),
            "the store came back from an older state: what was applied, pushed and deleted since is written to the catalog again"
        );
        let changes = copy.brought_back(found);
        // Together, so that nobody takes a half for the whole. Whoever was first is looked at again.
        let _ = self.backend.catalog_replace(sequence, &changes).await?;
        Ok(())
    }

    /// Copies that nobody needs any more; one that stays for now goes with the next.
    async fn forget_old(&self, newest: u64) {
        let Ok(mut names) = self.place.list(FOLDER).await else {
            return;
        };
        names.sort_unstable();
        names.retain(|name| name.parse::<u64>().is_ok_and(|n| n < newest));
        let keep = MIRROR_COPIES_KEPT.saturating_sub(1);
        for name in names.iter().rev().skip(keep) {
            if let Err(error) = self.place.remove(&format!("{FOLDER}/{name}")).await {
                tracing::debug!(%error, "an old copy of the catalog stays for now");
            }
        }
    }
}

/// So wide that names sort as numbers do.
fn name(sequence: u64) -> String {
    format!("{FOLDER}/{sequence:020}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_takes_back_what_was_lost_and_deletes_only_what_it_knows_of() {
        let record = |version, text: &str| CatalogRecord {
            version,
            value: Bytes::from(text.to_owned().into_bytes()),
        };
        let found = BTreeMap::from([
            ("swarm/default/old".to_owned(), record(3, "{}")),
            ("edge/default/revoked".to_owned(), record(4, "{}")),
            ("model/default/m".to_owned(), record(5, "{}")),
            ("tenant/acme".to_owned(), record(6, "{}")),
        ]);
        let text = r#"{"format":1,"number":9,"records":{"tenant/acme":"{\"new\":1}","token/1":"{}"}}"#;
        let copy: Copy = serde_json::from_str(text).unwrap();
        let keys = |copy: &Copy| -> Vec<(String, u64, bool)> {
            let changes = copy.brought_back(&found).into_iter();
            changes.map(|c| (c.key, c.expect, c.value.is_some())).collect()
        };
        let put = [("tenant/acme".to_owned(), 6, true), ("token/1".to_owned(), 0, true)];
        let gone = ("swarm/default/old".to_owned(), 3, false);
        // An earlier skep's: it knew of neither models nor edges.
        assert_eq!(keys(&copy), [&put[..], std::slice::from_ref(&gone)].concat());
        let own = Copy {
            kinds: MIRRORED.map(str::to_owned).to_vec(),
            ..copy
        };
        let revoked = ("edge/default/revoked".to_owned(), 4, false);
        let model = ("model/default/m".to_owned(), 5, false);
        assert_eq!(keys(&own), [&put[..], &[revoked, model, gone]].concat());
    }

    #[test]
    fn a_catalog_that_is_behind_or_elsewhere_is_told_from_one_that_went_on() {
        assert_eq!(stand(None, (3, 30)), Stand::Behind);
        assert_eq!(stand(Some((3, 30)), (3, 30)), Stand::Same);
        assert_eq!(stand(Some((3, 30)), (4, 41)), Stand::Behind);
        assert_eq!(stand(Some((3, 30)), (2, 29)), Stand::Ahead);
        assert_eq!(stand(Some((3, 30)), (3, 31)), Stand::Ahead, "another history");
    }

    #[test]
    fn a_copy_that_is_not_whole_is_refused() {
        let copy = Copy {
            format: FORMAT,
            number: 7,
            kinds: first(),
            records: [("level".to_owned(), "{}".to_owned())].into(),
        };
        let bytes = copy.encode().unwrap();
        assert_eq!(Copy::decode("1", &bytes).unwrap(), copy);
        for at in 0..bytes.len() {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert!(Copy::decode("1", &bad).is_err(), "bit at {at}");
            assert!(Copy::decode("1", &bytes[..at]).is_err(), "cut at {at}");
        }
        let newer = Copy { format: 2, ..copy }.encode().unwrap();
        assert!(Copy::decode("1", &newer).unwrap_err().to_string().contains("format 2"));
    }
}
