//! What tenants are limited to, told to whoever keeps them to it on this node; what they have and use.
//!
//! ```text
//!   tenant/NAME (catalog) ──tell──► Account ──► its purse (doors), its share (engine)
//!   beats ──► who offers how much at which node ──► this node's part of each rate
//!   store ──► bytes in topics and state
//! ```
//! A rate is the tenant's over all nodes. Each node says with its heartbeat how much each limited tenant offered to it of late, and takes the
//! part of the rate that it has of the offers of all. So there is nobody to ask on a call's way, nothing to give back, and a node that dies is
//! forgotten with its heartbeat. Until a node has heard of what changed, about two seconds, the parts are those of before.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use skep_engine::Share;
use skep_gateway::purse::Purse;
use skep_model::limits::QUOTA_DEMANDS_MAX;
use skep_model::name::TenantId;
use skep_model::quota::{Limits, Quota};
use skep_model::step::{Batch, LogLevel, LogLine, Processed, Step};
use skep_topic::Backend;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalogs;
use crate::isolation::Isolation;
use crate::members::Members;
use crate::usage::{Amounts, BeeMeter};

/// How often a tenant's offers are measured and its bytes are counted. As often as nodes beat.
const LOOK: Duration = Duration::from_millis(1_000);
/// The part of each rate that is for nodes to which nothing was offered yet, all together.
const FLOOR: f64 = 0.04;

/// One tenant, as this node keeps it to its limits.
#[derive(Debug)]
pub struct Account {
    pub purse: Arc<Purse>,
    pub share: Arc<Share>,
    /// Of its Bees that run here, or did: `SWARM/STAGE`.
    meters: Mutex<BTreeMap<String, Arc<BeeMeter>>>,
    /// Whether there is any limit: who has none pays for none.
    limited: AtomicBool,
    /// Its Bees run in a process of its own.
    apart: AtomicBool,
    now: Mutex<Now>,
}

/// Log lines that a tenant may keep now, and those that it was refused.
#[derive(Debug, Default)]
struct Voice {
    /// Thousandths of lines: a second's worth at most.
    left: u64,
    at: Option<Instant>,
    dropped: u64,
    said: Option<Instant>,
}

impl Voice {
    /// How many of `lines` may stay at `rate` a second; what is to be said of those that were dropped, once a second at most.
    fn admit(&mut self, lines: usize, rate: u64, now: Instant) -> (usize, Option<u64>) {
        let most = rate.saturating_mul(1_000);
        let passed = self.at.map_or(Duration::from_secs(1), |at| now.duration_since(at));
        let gained = u64::try_from(passed.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_mul(rate);
        self.left = self.left.saturating_add(gained).min(most);
        self.at = Some(now);
        let stay = lines.min(usize::try_from(self.left / 1_000).unwrap_or(usize::MAX));
        self.left -= stay as u64 * 1_000;
        self.dropped += (lines - stay) as u64;
        let due = self
            .said
            .is_none_or(|said| now.duration_since(said) >= Duration::from_secs(1));
        if self.dropped == 0 || !due {
            return (stay, None);
        }
        self.said = Some(now);
        (stay, Some(std::mem::take(&mut self.dropped)))
    }
}

/// The keys of a batch's inputs, and the sizes of what they had.
#[derive(Debug)]
pub(crate) struct Before {
    keys: Vec<Option<String>>,
    sizes: HashMap<String, BTreeMap<String, usize>>,
}

impl Before {
    fn of(batch: &Batch) -> Self {
        let sizes = batch.state.iter().map(|(key, values)| {
            let sizes = values.iter().map(|(name, value)| (name.clone(), value.len()));
            (key.clone(), sizes.collect())
        });
        Self {
            keys: batch
                .inputs
                .iter()
                .map(|input| input.key().map(str::to_owned))
                .collect(),
            sizes: sizes.collect(),
        }
    }

    /// Bytes that its steps add to what is kept; below zero: what they free. What is written over what was there adds only what it is longer.
    /// A key counts with its first value and goes with its last, as stores count it.
    fn growth(mut self, steps: &[Step]) -> i64 {
        let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut grown = 0;
        for (key, step) in self.keys.iter().zip(steps) {
            let Some(key) = key else { continue };
            if step.state.is_empty() {
                continue;
            }
            let values = self.sizes.entry(key.clone()).or_default();
            let there = !values.is_empty();
            for write in &step.state {
                let had = match &write.value {
                    Some(value) => {
                        grown += signed(write.name.len() + value.len());
                        values.insert(write.name.clone(), value.len())
                    }
                    None => values.remove(&write.name),
                };
                grown -= had.map_or(0, |had| signed(write.name.len() + had));
            }
            grown += (i64::from(!values.is_empty()) - i64::from(there)) * signed(key.len());
        }
        grown
    }
}

#[derive(Debug, Default)]
struct Now {
    voice: Voice,
    limits: Limits,
    /// This node's part of the rate, as of the last look; `None`: there was none since the tenant has a rate.
    part: Option<f64>,
    /// Offered until the last look, and a second since then.
    offered: u64,
    demand: f64,
    storage: u64,
    state: u64,
}

impl Account {
    fn new(tenant: &TenantId) -> Arc<Self> {
        Arc::new(Self {
            purse: Arc::new(Purse::new(tenant.clone())),
            share: Arc::default(),
            meters: Mutex::default(),
            limited: AtomicBool::new(false),
            apart: AtomicBool::new(false),
            now: Mutex::default(),
        })
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meters(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<BeeMeter>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for every revision of a stage.
    pub fn meter(&self, bee: &str) -> Arc<BeeMeter> {
        let mut meters = self.meters();
        Arc::clone(meters.entry(bee.to_owned()).or_default())
    }

    /// What each of its Bees used here, and under no name the tenant itself. Bees that are gone are named once more.
    pub(crate) fn used(&self) -> Vec<(String, Amounts)> {
        let mut meters = self.meters();
        let mut all: Vec<_> = meters
            .iter()
            .map(|(bee, meter)| (bee.clone(), meter.amounts()))
            .collect();
        meters.retain(|_, meter| Arc::strong_count(meter) > 1);
        all.push((String::new(), Amounts::of(&self.purse, &self.share)));
        all
    }

    /// Where its Bees run. Asked at each call, so that a change counts from the next batch on.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        match self.apart.load(Ordering::Relaxed) {
            false => Isolation::Shared,
            true => Isolation::Process,
        }
    }

    pub(crate) fn isolate(&self, isolation: Isolation) {
        self.apart.store(isolation == Isolation::Process, Ordering::Relaxed);
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        self.now().limits.clone()
    }

    /// Bytes of state that its Bees may add: as it was counted last, less what they wrote since.
    #[must_use]
    pub fn state_room(&self) -> u64 {
        if !self.limited.load(Ordering::Relaxed) {
            return u64::MAX;
        }
        let now = self.now();
        let most = now.limits.get(Quota::State);
        most.map_or(u64::MAX, |most| most.saturating_sub(now.state))
    }

    /// What a batch starts from, as far as [`Self::note`] needs it.
    #[must_use]
    pub(crate) fn before(&self, batch: &Batch) -> Option<Before> {
        let counted = self.limited.load(Ordering::Relaxed) && self.now().limits.get(Quota::State).is_some();
        counted.then(|| Before::of(batch))
    }

    /// What a batch wrote, and what it may say: log lines over the tenant's rate are dropped, which one line tells.
    pub(crate) fn note(&self, before: Option<Before>, processed: &mut Processed) {
        if !self.limited.load(Ordering::Relaxed) {
            return;
        }
        let mut now = self.now();
        if let Some(before) = before {
            now.state = now
                .state
                .saturating_add_signed(before.growth(processed.result.as_deref().unwrap_or_default()));
        }
        let Some(rate) = now.limits.get(Quota::LogRate) else {
            return;
        };
        if processed.log.is_empty() {
            return;
        }
        let (stay, dropped) = now.voice.admit(processed.log.len(), rate, Instant::now());
        drop(now);
        processed.log.truncate(stay);
        if let Some(dropped) = dropped {
            processed.log.push(LogLine {
                level: LogLevel::Warn,
                context: "skep".to_owned(),
                text: format!(
                    "{dropped} log lines were dropped: tenant `{}` has reached its limit `{}` of {}",
                    self.purse.tenant(),
                    Quota::LogRate,
                    Quota::LogRate.show(rate),
                ),
                input: None,
            });
        }
    }

    /// Messages a second that were offered to this node of late.
    #[must_use]
    pub fn rate(&self) -> u64 {
        whole(self.now().demand)
    }
}

/// All tenants' accounts on this node.
#[derive(Debug, Default)]
pub struct Quotas {
    accounts: RwLock<HashMap<TenantId, Arc<Account>>>,
    /// Nodes with doors beside this one, as of the last look.
    others: AtomicUsize,
}

impl Quotas {
    /// A tenant that nothing was told of has no limits.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> Arc<Account> {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = accounts.get(tenant) {
            return Arc::clone(found);
        }
        drop(accounts);
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        let made = accounts.entry(tenant.clone()).or_insert_with(|| Account::new(tenant));
        Arc::clone(made)
    }

    /// Where a tenant's Bees run, as far as this node was told.
    #[must_use]
    pub fn isolation(&self, tenant: &TenantId) -> Isolation {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        accounts
            .get(tenant)
            .map(|account| account.isolation())
            .unwrap_or_default()
    }

    pub(crate) fn all(&self) -> Vec<(TenantId, Arc<Account>)> {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = accounts.iter().map(|(t, a)| (t.clone(), Arc::clone(a))).collect();
        drop(accounts);
        // All nodes leave out the same ones where there are too many to tell of.
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// What the catalog says now.
    pub fn tell<'a>(&self, tenants: impl IntoIterator<Item = (&'a TenantId, &'a Limits, Isolation)>) {
        let told = tenants
            .into_iter()
            .map(|(tenant, limits, isolation)| (tenant, (limits, isolation)));
        let told: BTreeMap<&TenantId, (&Limits, Isolation)> = told.collect();
        for tenant in told.keys() {
            let _ = self.of(tenant);
        }
        for (tenant, account) in self.all() {
            let (limits, isolation) = match told.get(&tenant) {
                Some((limits, isolation)) => ((*limits).clone(), *isolation),
                // What is left of one that went stays where it was.
                None => (Limits::default(), account.isolation()),
            };
            account.isolate(isolation);
            let mut now = account.now();
            if now.limits != limits {
                account.limited.store(!limits.is_empty(), Ordering::Relaxed);
                now.limits = limits;
                // The part that it had; where nothing is known of it yet, an equal one, so that all nodes together let in one rate from
                // the first call on.
                let equal = 1.0 / as_f64(self.others.load(Ordering::Relaxed) as u64 + 1);
                account.purse.limit(&now.limits, now.part.unwrap_or(equal));
                account.share.limit(&now.limits);
            }
        }
        // A tenant that went and that nothing here refers to.
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|tenant, account| {
            let held =
                Arc::strong_count(account) + Arc::strong_count(&account.purse) + Arc::strong_count(&account.share);
            told.contains_key(tenant) || held > 3
        });
    }

    /// When its tenants were made: another of the same name is another tenant.
    pub fn bear<'a>(&self, tenants: impl IntoIterator<Item = (&'a TenantId, u64)>) {
        for (tenant, created_ms) in tenants {
            self.of(tenant).share.bear(created_ms);
        }
    }

    /// Messages a second that tenants with a rate offered to this node since the last call.
    fn measure(&self, passed: Duration) -> BTreeMap<String, u64> {
        let mut demands = BTreeMap::new();
        for (tenant, account) in self.all() {
            let mut now = account.now();
            let offered = account.purse.traffic().offered;
            let since = offered - std::mem::replace(&mut now.offered, offered);
            now.demand = smooth(now.demand, since, passed);
            let Some(rate) = now.limits.get(Quota::Rate) else {
                continue;
            };
            // More than all of it is no claim to more: who tries again and again must not take from those who wait.
            now.demand = now.demand.min(as_f64(rate));
            let demand = whole(now.demand);
            if demand > 0 && demands.len() < QUOTA_DEMANDS_MAX {
                demands.insert(tenant.to_string(), demand);
            }
        }
        demands
    }

    /// Takes this node's part of each rate, by what the others were offered.
    fn share(&self, others: &[BTreeMap<String, u64>]) {
        self.others.store(others.len(), Ordering::Relaxed);
        for (tenant, account) in self.all() {
            let mut now = account.now();
            if now.limits.get(Quota::Rate).is_none() {
                now.part = None;
                continue;
            }
            let elsewhere = others
                .iter()
                .map(|d| d.get(tenant.as_str()).copied().unwrap_or(0))
                .sum();
            let part = part(now.demand, elsewhere, others.len());
            now.part = Some(part);
            account.purse.limit(&now.limits, part);
        }
    }

    /// Counts what the limited tenants keep.
    async fn count(&self, catalogs: &Catalogs, backend: &dyn Backend) {
        for (tenant, account) in self.all() {
            let limits = account.limits();
            if limits.get(Quota::Storage).or(limits.get(Quota::State)).is_some() {
                let kept = match kept(catalogs, backend, &tenant).await {
                    Ok(kept) => kept,
                    // One tenant's trouble stops nobody else's count.
                    Err(error) => {
                        tracing::debug!(%tenant, error = format!("{error:#}"), "what a tenant keeps is not counted for now");
                        continue;
                    }
                };
                let mut now = account.now();
                (now.storage, now.state) = (kept.storage, kept.state);
                account.purse.note_stored(kept.storage);
            }
        }
    }

    /// Keeps parts and counts in step, until `stop`.
    pub async fn follow(
        self: Arc<Self>,
        members: Arc<Members>,
        catalogs: Catalogs,
        backend: Arc<dyn Backend>,
        stop: CancellationToken,
    ) {
        let work = async {
            let mut last = Instant::now();
            let others = || -> Vec<_> {
                let others = members.others().into_iter();
                others
                    .filter(|n| n.member.takes_calls())
                    .map(|n| n.member.demands)
                    .collect()
            };
            self.share(&others());
            loop {
                tokio::time::sleep(LOOK).await;
                let passed = std::mem::replace(&mut last, Instant::now()).elapsed();
                members.say_demands(self.measure(passed));
                self.share(&others());
                self.count(&catalogs, backend.as_ref()).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }
}

/// Half of it is of the last look.
fn smooth(before: f64, since: u64, passed: Duration) -> f64 {
    let latest = as_f64(since) / passed.as_secs_f64().max(0.001);
    f64::midpoint(before, latest)
}

/// This node's part of a rate: as its offers are to those of all, and a little for whoever is offered none yet.
fn part(own: f64, elsewhere: u64, others: usize) -> f64 {
    let all = own + as_f64(elsewhere);
    let nodes = as_f64(others as u64 + 1);
    if all < 1.0 {
        return 1.0 / nodes;
    }
    if others == 0 {
        return 1.0;
    }
    (1.0 - FLOOR) * own / all + FLOOR / nodes
}

#[expect(clippy::cast_precision_loss, reason = "rates are far under 2^52")]
fn as_f64(n: u64) -> f64 {
    n as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and rates are far under 2^52"
)]
fn whole(n: f64) -> u64 {
    n.round() as u64
}

/// What a tenant has in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// In topics: unread, to be retried, dead letters.
    pub storage: u64,
    pub state: u64,
    /// And models.
    pub modules: u64,
}

/// # Errors
/// When the store cannot be read.
pub async fn kept(catalogs: &Catalogs, backend: &dyn Backend, tenant: &TenantId) -> anyhow::Result<Kept> {
    let catalog = catalogs.of(tenant);
    let mut kept = Kept::default();
    for record in catalog.swarms().await?.into_values() {
        let id = record.id(catalog.scope())?;
        // A Swarm that goes meanwhile keeps nothing.
        let topics = match backend.status(&id).await {
            Ok(topics) => topics,
            Err(skep_topic::Error::Gone) => continue,
            Err(e) => return Err(e.into()),
        };
        for topic in topics {
            kept.storage += topic.unread_bytes + topic.parked_bytes + topic.dead_bytes;
        }
        let draining = record.draining.keys();
        for stage in record.swarm.stages.iter().map(|stage| &stage.name).chain(draining) {
            kept.state += match backend.state_size(&id.topic(stage)).await {
                Ok(size) => size.bytes,
                Err(skep_topic::Error::Gone) => 0,
                Err(e) => return Err(e.into()),
            };
        }
    }
    for module in catalog.modules().await?.into_values() {
        kept.modules += module.versions.values().map(|version| version.size).sum::<u64>();
    }
    for model in catalog.models().await?.into_values() {
        kept.modules += model.versions.values().map(|version| version.size).sum::<u64>();
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use skep_model::Bytes;
    use skep_model::id::Uid;
    use skep_model::step::{Disposition, Due, Input, Outcome, StateWrite};

    use super::*;

    fn limits(quota: Quota, value: u64) -> Limits {
        let mut limits = Limits::default();
        limits.set(quota, Some(value));
        limits
    }

    /// Nodes that hear of each other's offers as of the beat before, and clients that try again at once when they are refused: what comes in
    /// over all nodes is the rate, within a tenth, however the offers are spread and move.
    #[test]
    fn nodes_share_a_rate_by_what_is_offered_to_each() {
        const RATE: f64 = 1_000.0;
        let mut seed = 0x5eed_u64;
        let mut random = move || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            as_f64(seed >> 40) / as_f64(1 << 24)
        };
        for nodes in [1_usize, 2, 3, 8] {
            for round in 0..20 {
                // Some nodes get nothing, some far more than the rate.
                let offers: Vec<f64> = (0..nodes)
                    .map(|_| if random() < 0.3 { 0.0 } else { random() * 3.0 * RATE })
                    .collect();
                let (mut demands, mut said) = (vec![0.0; nodes], vec![0_u64; nodes]);
                let mut came = 0.0;
                for second in 0..10 {
                    let heard = said.clone();
                    let mut now = 0.0;
                    for node in 0..nodes {
                        let elsewhere = heard.iter().sum::<u64>() - heard[node];
                        let own = RATE * part(demands[node], elsewhere, nodes - 1);
                        now += own.min(offers[node]);
                        let jitter = 0.95 + 0.1 * random();
                        let offered = whole(offers[node] * jitter);
                        demands[node] = smooth(demands[node], offered, Duration::from_secs(1)).min(RATE);
                        said[node] = whole(demands[node]);
                    }
                    if second >= 4 {
                        came += now / 6.0;
                    }
                }
                let wanted = offers.iter().sum::<f64>().min(RATE);
                let right = (came - wanted).abs() <= 0.1 * wanted + 1.0;
                assert!(
                    right,
                    "{nodes} nodes, round {round}: {came} of {wanted}, offered {offers:?}"
                );
            }
        }
    }

    #[test]
    fn log_lines_over_the_rate_are_dropped_counted_and_told_once_a_second() {
        let (mut voice, begin) = (Voice::default(), Instant::now());
        let (mut stayed, mut dropped, mut told) = (0, 0, 0);
        for ms in 0..10_000_u64 {
            let (stay, said) = voice.admit(3, 100, begin + Duration::from_millis(ms));
            stayed += stay;
            if let Some(lines) = said {
                told += 1;
                dropped += lines;
            }
        }
        assert!((1_000..=1_100).contains(&stayed), "{stayed}");
        assert!((9..=11).contains(&told), "{told}");
        assert_eq!(stayed as u64 + dropped + voice.dropped, 30_000);
        // Who says little is heard.
        let (mut voice, later) = (Voice::default(), begin + Duration::from_secs(100));
        for second in 0..100 {
            assert_eq!(
                voice.admit(50, 100, later + Duration::from_millis(second * 500)),
                (50, None)
            );
        }
    }

    #[test]
    fn a_tenant_s_account_is_one_and_goes_with_it() {
        let quotas = Quotas::default();
        let [acme, globex]: [TenantId; 2] = ["acme", "globex"].map(|name| name.parse().unwrap());
        quotas.tell([
            (&acme, &limits(Quota::Rate, 5), Isolation::Shared),
            (&globex, &Limits::default(), Isolation::Shared),
        ]);
        let held = quotas.of(&acme);
        assert!(Arc::ptr_eq(&held, &quotas.of(&acme)));
        assert_eq!(held.limits().get(Quota::Rate), Some(5));
        quotas.tell([]);
        assert!(
            held.limits().is_empty(),
            "who still holds it is not limited by what is no more"
        );
        assert!(Arc::ptr_eq(&held, &quotas.of(&acme)));
        drop(held);
        quotas.tell([]);
        assert!(quotas.all().is_empty());
    }

    #[test]
    fn what_is_offered_is_measured_for_those_that_have_a_rate() {
        let quotas = Quotas::default();
        let [acme, globex]: [TenantId; 2] = ["acme", "globex"].map(|name| name.parse().unwrap());
        quotas.tell([
            (&acme, &limits(Quota::Rate, 50), Isolation::Shared),
            (&globex, &Limits::default(), Isolation::Shared),
        ]);
        assert!(quotas.measure(Duration::from_secs(1)).is_empty());
        quotas.of(&acme).now().demand = 40.0;
        assert_eq!(quotas.measure(Duration::from_secs(1)), [("acme".to_owned(), 20)].into());
    }

    #[test]
    fn what_is_written_over_adds_only_what_it_is_longer() {
        let message = |key: &str| {
            Input::Timer(Due {
                uid: Uid([0; 16]),
                key: key.to_owned(),
                name: "t".to_owned(),
                at_ms: 0,
                attempt: 1,
            })
        };
        let step = |writes: &[(&str, Option<&'static str>)]| Step {
            outcome: Outcome {
                publish: Vec::new(),
                respond: Vec::new(),
                disposition: Disposition::Done,
            },
            state: (writes.iter())
                .map(|(name, value)| StateWrite {
                    name: (*name).to_owned(),
                    value: value.map(|value| Bytes::from_static(value.as_bytes())),
                })
                .collect(),
            timers: Vec::new(),
        };
        let held = [("k".to_owned(), [("n".to_owned(), Bytes::from_static(b"1234"))].into())];
        let grows = |keys: &[&str], steps: &[Step]| {
            let batch = Batch {
                inputs: keys.iter().map(|key| message(key)).collect(),
                state: held.clone().into(),
                ..Batch::default()
            };
            Before::of(&batch).growth(steps)
        };
        assert_eq!(grows(&["k"], &[step(&[("n", Some("5678"))])]), 0, "as long as before");
        assert_eq!(
            grows(&["k", "k"], &[step(&[("n", Some("56"))]), step(&[("n", Some("5678"))])]),
            0
        );
        assert_eq!(grows(&["k"], &[step(&[("n", Some("567890"))])]), 2);
        assert_eq!(
            grows(&["k"], &[step(&[("n", None)])]),
            -6,
            "the last value takes its key along"
        );
        assert_eq!(grows(&["k"], &[step(&[("n", None), ("n", Some("5678"))])]), 0);
        assert_eq!(
            grows(&["new"], &[step(&[("n", Some("1"))])]),
            5,
            "a key counts with its first value"
        );
        assert_eq!(grows(&["new"], &[step(&[("n", None)])]), 0);
        assert_eq!(grows(&["k"], &[]), 0);
    }

    #[test]
    fn a_limit_that_is_new_is_parted_from_the_first_call_on() {
        let quotas = Quotas::default();
        let acme: TenantId = "acme".parse().unwrap();
        // Four nodes, of which this is one.
        quotas.share(&[BTreeMap::new(), BTreeMap::new(), BTreeMap::new()]);
        quotas.tell([(&acme, &limits(Quota::Rate, 1_000), Isolation::Shared)]);
        let parted = |quotas: &Quotas| {
            let purse = Arc::clone(&quotas.of(&acme).purse);
            purse.part_of_rate()
        };
        assert_eq!(parted(&quotas), Some(250));
        quotas.of(&acme).now().demand = 1_000.0;
        quotas.share(&[BTreeMap::new(), BTreeMap::new(), BTreeMap::new()]);
        assert_eq!(parted(&quotas), Some(970));
        // Another limit keeps the part that it has.
        quotas.tell([(&acme, &limits(Quota::Rate, 100), Isolation::Shared)]);
        assert_eq!(parted(&quotas), Some(97));
        quotas.tell([(&acme, &Limits::default(), Isolation::Shared)]);
        assert_eq!(parted(&quotas), None);
    }
}
