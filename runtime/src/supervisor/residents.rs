//! Modules in memory: loaded by the first call of a Bee, and let go when nobody called one for a while or when others need the room.
//!
//! ```text
//!   stage ──► StageBee (its Bee, while the module is here) ──► Resident (the module) ◄── Residents (all of them, within a budget)
//! ```
//! `Residents` alone decides what goes. A call under way keeps what it uses until it ends, so letting go is never felt but as the next
//! load: a file read, its MAC checked, and its code mapped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use skep_engine::{BeeSettings, Module};
use skep_model::id::Digest;
use skep_model::limits::{MODULE_BESIDE_BYTES, MODULE_IDLE_MS};
use skep_model::name::{BeeName, TenantId};
use skep_model::step::{Batch, Processed, Trap, TrapKind};
use skep_stage::Bee;

use super::modules::Modules;

/// A module in memory.
pub struct Resident {
    pub module: Module,
    bytes: u64,
    /// When it was called last, in ms since the list began.
    used_ms: AtomicU64,
    /// Stages that have Bees of it; `None` once it was let go.
    holders: Mutex<Option<Vec<Weak<Held>>>>,
}

/// What a stage has of its module.
type Held = Mutex<Option<(Arc<Resident>, skep_engine::Bee)>>;

impl Resident {
    /// Gives a stage its Bee to keep, for as long as the module stays; not at all when that is over.
    fn give(self: &Arc<Self>, held: &Arc<Held>, bee: skep_engine::Bee) {
        // Not given back before the Bee is there: whoever lets go takes the list, and then what is in it.
        let mut holders = lock(&self.holders);
        let Some(list) = &mut *holders else { return };
        list.retain(|holder| holder.strong_count() > 0);
        list.push(Arc::downgrade(held));
        *lock(held) = Some((Arc::clone(self), bee));
    }

    /// Takes it from the stages that have it.
    fn let_go(self: &Arc<Self>) {
        let holders = lock(&self.holders).take();
        for held in holders.into_iter().flatten().filter_map(|holder| holder.upgrade()) {
            let mut held = lock(&held);
            if held.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of, self)) {
                let bee = held.take();
                drop(held);
                // Its spare instances go with it.
                drop(bee);
            }
        }
    }
}

/// What is counted of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many there are now, and what they take together.
    pub modules: u64,
    pub bytes: u64,
    pub budget_bytes: u64,
    pub loads: u64,
    /// Let go because of the budget.
    pub evictions: u64,
    /// Let go because nobody called them.
    pub idle: u64,
}

/// Every module that this node has in memory.
pub struct Residents {
    began: Instant,
    budget_bytes: u64,
    all: Mutex<HashMap<Digest, Arc<Resident>>>,
    loads: AtomicU64,
    evictions: AtomicU64,
    idle: AtomicU64,
}

impl Residents {
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            began: Instant::now(),
            budget_bytes,
            all: Mutex::default(),
            loads: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            idle: AtomicU64::new(0),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn used(&self, resident: &Resident) {
        resident.used_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub fn get(&self, digest: Digest) -> Option<Arc<Resident>> {
        let found = lock(&self.all).get(&digest).cloned()?;
        self.used(&found);
        Some(found)
    }

    pub fn has(&self, digest: Digest) -> bool {
        lock(&self.all).contains_key(&digest)
    }

    /// `code_bytes`: of its native code, without what it shares with other modules.
    pub fn put(&self, digest: Digest, module: Module, code_bytes: u64) -> Arc<Resident> {
        let mut all = lock(&self.all);
        // Two loads of one module at once: the first one kept serves both.
        if let Some(first) = all.get(&digest) {
            return Arc::clone(first);
        }
        self.loads.fetch_add(1, Ordering::Relaxed);
        let resident = Arc::new(Resident {
            module,
            bytes: code_bytes.saturating_add(MODULE_BESIDE_BYTES),
            used_ms: AtomicU64::new(self.now_ms()),
            holders: Mutex::new(Some(Vec::new())),
        });
        all.insert(digest, Arc::clone(&resident));
        let gone = excess(&listed(&all), self.budget_bytes, digest);
        self.evictions.fetch_add(gone.len() as u64, Ordering::Relaxed);
        let gone: Vec<_> = gone.iter().filter_map(|digest| all.remove(digest)).collect();
        drop(all);
        gone.iter().for_each(Resident::let_go);
        resident
    }

    /// Lets go what nobody called of late.
    pub fn sweep(&self) {
        let before_ms = self.now_ms().saturating_sub(MODULE_IDLE_MS);
        let mut all = lock(&self.all);
        let gone: Vec<_> = all
            .extract_if(|_, resident| resident.used_ms.load(Ordering::Relaxed) < before_ms)
            .map(|(_, resident)| resident)
            .collect();
        if all.capacity() > 4 * all.len() + 64 {
            all.shrink_to_fit();
        }
        drop(all);
        self.idle.fetch_add(gone.len() as u64, Ordering::Relaxed);
        gone.iter().for_each(Resident::let_go);
    }

    pub fn counts(&self) -> Counts {
        let all = lock(&self.all);
        Counts {
            modules: all.len() as u64,
            bytes: all.values().map(|resident| resident.bytes).sum(),
            budget_bytes: self.budget_bytes,
            loads: self.loads.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            idle: self.idle.load(Ordering::Relaxed),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A module: which, how many bytes, and when it was called last.
type Listed = (Digest, u64, u64);

fn listed(all: &HashMap<Digest, Arc<Resident>>) -> Vec<Listed> {
    let each = all.iter();
    each.map(|(digest, resident)| (*digest, resident.bytes, resident.used_ms.load(Ordering::Relaxed)))
        .collect()
}

/// What has to go so that the rest fits: those that were called longest ago, and never `newest`, which is about to be.
fn excess(all: &[Listed], budget_bytes: u64, newest: Digest) -> Vec<Digest> {
    let mut bytes: u64 = all.iter().map(|(_, bytes, _)| bytes).sum();
    if bytes <= budget_bytes {
        return Vec::new();
    }
    let mut oldest: Vec<&Listed> = all.iter().filter(|(digest, ..)| *digest != newest).collect();
    oldest.sort_unstable_by_key(|(digest, _, used_ms)| (*used_ms, digest.0));
    let mut gone = Vec::new();
    for (digest, its, _) in oldest {
        if bytes <= budget_bytes {
            break;
        }
        bytes -= its;
        gone.push(*digest);
    }
    gone
}

/// A stage's Bee, whose module is loaded by its first call and may be let go between calls.
pub struct StageBee {
    modules: Arc<Modules>,
    tenant: TenantId,
    digest: Digest,
    name: BeeName,
    settings: BeeSettings,
    held: Arc<Held>,
    /// Calls that come while the module is loaded wait for that one load.
    loading: tokio::sync::Mutex<()>,
}

impl StageBee {
    pub fn new(modules: Arc<Modules>, tenant: TenantId, name: BeeName, settings: BeeSettings) -> Self {
        Self {
            modules,
            tenant,
            digest: settings.stage_digest,
            name,
            settings,
            held: Arc::default(),
            loading: tokio::sync::Mutex::default(),
        }
    }

    fn here(&self) -> Option<skep_engine::Bee> {
        let held = lock(&self.held);
        let (resident, bee) = held.as_ref()?;
        self.modules.residents().used(resident);
        Some(bee.clone())
    }

    /// Its tenant's Bees run elsewhere: the module goes once no other stage has it.
    pub fn let_go(&self) {
        let held = lock(&self.held).take();
        // Its spare instances go with it, and nobody waits for that under the lock.
        drop(held);
    }

    async fn load(&self) -> anyhow::Result<skep_engine::Bee> {
        let _one = self.loading.lock().await;
        if let Some(bee) = self.here() {
            return Ok(bee);
        }
        let resident = self.modules.load(&self.tenant, self.digest).await?;
        let bee = resident.module.bee(&self.name, self.settings.clone())?;
        resident.give(&self.held, bee.clone());
        Ok(bee)
    }
}

#[async_trait]
impl Bee for StageBee {
    async fn process(&self, batch: Batch) -> Processed {
        let bee = match self.here() {
            Some(bee) => bee,
            None => match self.load().await {
                Ok(bee) => bee,
                Err(e) => {
                    return Processed {
                        result: Err(Trap {
                            kind: TrapKind::Host,
                            detail: format!("its module cannot be loaded: {e:#}"),
                            stderr: String::new(),
                        }),
                        log: Vec::new(),
                    };
                }
            },
        };
        bee.process(batch).await
    }
}

/// How often idle modules are looked for.
pub const SWEEP_EVERY: Duration = Duration::from_millis(MODULE_IDLE_MS / 8);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_goes_was_called_longest_ago_and_is_no_more_than_must_be(
            bytes in prop::collection::vec((1_u64..100, 0_u64..20), 1..40),
            budget_bytes in 0_u64..1_000,
            newest in any::<prop::sample::Index>(),
        ) {
            let all: Vec<Listed> = (0_u8..)
                .zip(&bytes)
                .map(|(n, (bytes, used_ms))| (Digest([n; 32]), *bytes, *used_ms))
                .collect();
            let newest = all[newest.index(all.len())].0;
            let gone = excess(&all, budget_bytes, newest);
            let stays = |digest: &Digest| !gone.contains(digest);
            prop_assert!(stays(&newest));
            let left: Vec<&Listed> = all.iter().filter(|(digest, ..)| stays(digest)).collect();
            let total: u64 = left.iter().map(|(_, bytes, _)| bytes).sum();
            prop_assert!(total <= budget_bytes || left.len() == 1);
            let went: Vec<&Listed> = gone.iter().filter_map(|digest| all.iter().find(|(d, ..)| d == digest)).collect();
            for (_, _, used_ms) in &went {
                prop_assert!(left.iter().all(|(digest, _, kept_ms)| digest == &newest || kept_ms >= used_ms));
            }
            // The last one that went had to.
            if let Some((_, last, _)) = went.last() {
                prop_assert!(total + last > budget_bytes);
            }
        }
    }
}
