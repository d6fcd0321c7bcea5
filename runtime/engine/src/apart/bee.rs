//! A stage's Bee that runs in its tenant's process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use skep_model::id::Digest;
use skep_model::limits::{APART_ANSWER_BYTES_MAX, APART_FOUND_MAX, APART_START_MS};
use skep_model::name::{BeeName, ModelName, TenantId};
use skep_model::predict::ModelVersion;
use skep_model::step::{Batch, Processed, Trap, TrapKind};
use skep_model::swarm::{GuestClock, Instances};

use super::messages::{ToGuest, ToHost, Told};
use super::processes::Processes;
use crate::artifact::Artifact;
use crate::bee::BeeSettings;
use crate::error::Error;
use crate::share::Share;

/// Where native code of modules is to be had: memory files that nobody can change any more.
#[async_trait]
pub trait Codes: Send + Sync + 'static {
    /// A tenant's module.
    ///
    /// # Errors
    /// Why there is none: in words.
    async fn code(&self, tenant: &TenantId, digest: Digest) -> Result<Artifact, String>;
}

/// One stage's. As [`crate::Bee`] is to a stage: a batch goes in, its effects come out.
pub struct ApartBee {
    pub(super) processes: Arc<Processes>,
    pub(super) codes: Arc<dyn Codes>,
    pub(super) tenant: TenantId,
    /// By which processes know it.
    pub(super) id: u64,
    pub(super) told: Told,
    pub(super) settings: BeeSettings,
    /// Models that it may call by digest, because they were found for it.
    pub(super) found: Mutex<HashMap<(ModelName, Digest), Arc<ModelVersion>>>,
}

impl ApartBee {
    #[must_use]
    pub fn new(
        processes: Arc<Processes>,
        codes: Arc<dyn Codes>,
        tenant: TenantId,
        module: Digest,
        name: BeeName,
        settings: BeeSettings,
    ) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let told = Told {
            module,
            name,
            memory_bytes: settings.memory_bytes as u64,
            cpu_ms: settings.cpu_ms,
            wall_ms: settings.wall_ms,
            keyed: settings.keyed,
            state: settings.state,
            config: settings.config.clone(),
            real_clock: settings.clock == GuestClock::Real,
            pooled: match settings.instances {
                Instances::Fresh => None,
                Instances::Pooled { calls, age_s } => Some((calls, age_s)),
            },
            stage_digest: settings.stage_digest,
            http: settings.http.as_ref().map(|egress| egress.grants().to_vec()),
            models: settings
                .models
                .as_ref()
                .map(|access| access.granted.iter().cloned().collect()),
        };
        Self {
            processes,
            codes,
            tenant,
            id: LAST.fetch_add(1, Ordering::Relaxed),
            told,
            settings,
            found: Mutex::default(),
        }
    }

    /// Calls the Bee once, with all inputs. Dropping the future stops the guest.
    pub async fn process(&self, batch: Batch) -> Processed {
        match Box::pin(self.call(batch)).await {
            Ok(processed) => processed,
            Err(why) => Processed {
                result: Err(Trap {
                    kind: TrapKind::Host,
                    detail: format!("the tenant's own process: {why}"),
                    stderr: String::new(),
                }),
                log: Vec::new(),
            },
        }
    }

    /// A version that was found may be called until others have taken its place.
    pub(super) fn remember(&self, version: &Arc<ModelVersion>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= APART_FOUND_MAX {
            found.clear();
        }
        found.insert((version.name.clone(), version.digest), Arc::clone(version));
    }

    pub(super) fn known(&self, name: &ModelName, digest: Digest) -> Option<Arc<ModelVersion>> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(&(name.clone(), digest)).cloned()
    }
}

impl Processes {
    /// Reads the names of a module's Bees in the tenant's process, and whether the module sends requests.
    ///
    /// # Errors
    /// The module is no module of Bees, or there is no process to ask.
    pub async fn look(
        self: &Arc<Self>,
        tenant: &TenantId,
        share: &Arc<Share>,
        digest: Digest,
        artifact: &Artifact,
    ) -> Result<(Vec<BeeName>, bool), Error> {
        let process = self.of(tenant, share).await.map_err(Error::Apart)?;
        let asked = async {
            let _busy = process.busy();
            let _place = process.calls.acquire().await.map_err(std::io::Error::other)?;
            let mut link = process.link(APART_ANSWER_BYTES_MAX)?;
            link.put(&ToGuest::Look(digest), Vec::new())?;
            let mut coded = false;
            loop {
                match link.next().await? {
                    Some(ToHost::NeedCode(wanted)) if wanted == digest && !std::mem::replace(&mut coded, true) => {
                        let code = process.hand(digest, artifact);
                        let shared = code.shared().map(|(digest, _)| digest);
                        link.put(&ToGuest::Code { shared }, code.hand_over()?)?;
                    }
                    Some(ToHost::Looked(looked)) => {
                        process.give_back(link);
                        return Ok(looked);
                    }
                    None => return Err(std::io::Error::other("it died")),
                    Some(_) => {
                        process.kill("it answered what it was not asked");
                        return Err(std::io::Error::other("it broke the rules of talking to the node"));
                    }
                }
            }
        };
        let within = Duration::from_millis(APART_START_MS);
        let looked = tokio::time::timeout(within, asked).await;
        let looked =
            looked.map_err(|_| Error::Apart(format!("it said nothing of the module for {APART_START_MS} ms")))?;
        let (names, sends_http) = looked
            .map_err(|e: std::io::Error| {
                // A frame that is none is no accident.
                if e.kind() == std::io::ErrorKind::Other {
                    process.kill(e.to_string());
                }
                Error::Apart(e.to_string())
            })?
            .map_err(|said| {
                let mut words = String::new();
                crate::log::escape(&said, crate::verdict::DETAIL_BYTES_MAX, &mut words);
                Error::Told(words)
            })?;
        Ok((crate::module::checked(names)?, sends_http))
    }
}
