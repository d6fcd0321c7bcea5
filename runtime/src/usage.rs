//! What tenants and their Bees used: the numbers for a bill.
//!
//! ```text
//!   meters (memory, each node) ──every minute, and when the node stops──► usage/DAY/NODE (catalog) ──read, summed──► `skep usage`
//! ```
//! A node has a record of its own a day, so nodes never write the same one, and one that starts begins a new one. What a killed node used since
//! its last write, at most [`USAGE_WRITE_MS`], is lost: a bill errs to the tenant's side.

use std::collections::{BTreeMap, HashMap};
use std::ops::{AddAssign, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use skep_engine::{Meter, Share};
use skep_gateway::purse::Purse;
use skep_model::env::Clock;
use skep_model::id::NodeId;
use skep_model::limits::{USAGE_DAYS_KEPT, USAGE_ENTRIES_MAX, USAGE_WRITE_MS};
use skep_model::name::TenantId;
use skep_model::step::{Batch, Input, Processed};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalogs;
use crate::quotas::Quotas;

pub const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
const USAGE: &str = "usage/";

/// What one Bee uses on this node, and takes and gives.
#[derive(Debug, Default)]
pub struct BeeMeter {
    pub engine: Arc<Meter>,
    inputs: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl BeeMeter {
    pub(crate) fn took(&self, batch: &Batch) {
        let messages = batch.inputs.iter().flat_map(Input::messages);
        let bytes: usize = messages.map(|message| message.payload.len()).sum();
        self.inputs.fetch_add(batch.inputs.len() as u64, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn gave(&self, processed: &Processed) {
        let steps = processed.result.as_deref().unwrap_or_default();
        let bytes: usize = steps
            .iter()
            .map(|step| {
                let published = step.outcome.publish.iter().map(|emit| emit.payload.len());
                let responded = step.outcome.respond.iter().map(|response| response.len());
                published.chain(responded).sum::<usize>()
            })
            .sum();
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn amounts(&self) -> Amounts {
        Amounts {
            cpu_us: self.engine.cpu_ns() / 1_000,
            byte_ms: self.engine.byte_ms(),
            messages: self.inputs.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    #[serde(default)]
    pub cpu_us: u64,
    #[serde(default)]
    pub byte_ms: u64,
    #[serde(default)]
    pub messages: u64,
    #[serde(default)]
    pub bytes_in: u64,
    #[serde(default)]
    pub bytes_out: u64,
}

impl Amounts {
    pub(crate) fn of(purse: &Purse, share: &Share) -> Self {
        let traffic = purse.traffic();
        Self {
            cpu_us: share.used().cpu_ns() / 1_000,
            byte_ms: share.used().byte_ms(),
            messages: traffic.messages,
            bytes_in: traffic.bytes_in,
            bytes_out: traffic.bytes_out,
        }
    }
}

impl AddAssign for Amounts {
    fn add_assign(&mut self, other: Self) {
        self.cpu_us = self.cpu_us.saturating_add(other.cpu_us);
        self.byte_ms = self.byte_ms.saturating_add(other.byte_ms);
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }
}

impl Sub for Amounts {
    type Output = Self;

    /// A counter that began anew counts from nothing.
    fn sub(self, before: Self) -> Self {
        let since = |now: u64, before: u64| if now >= before { now - before } else { now };
        Self {
            cpu_us: since(self.cpu_us, before.cpu_us),
            byte_ms: since(self.byte_ms, before.byte_ms),
            messages: since(self.messages, before.messages),
            bytes_in: since(self.bytes_in, before.bytes_in),
            bytes_out: since(self.bytes_out, before.bytes_out),
        }
    }
}

/// Tenant and Bee; without one, the tenant itself.
type Who = (String, String);

/// A node's day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DayRecord {
    /// By tenant, then by Bee.
    used: BTreeMap<String, BTreeMap<String, Amounts>>,
}

/// What this node writes down.
pub struct Usage {
    catalogs: Catalogs,
    quotas: Arc<Quotas>,
    me: NodeId,
    clock: Arc<dyn Clock>,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    day: u64,
    version: u64,
    entries: usize,
    record: DayRecord,
    /// As the meters stood when they were read last.
    read: HashMap<Who, Amounts>,
    written: bool,
}

impl Book {
    fn add(&mut self, who: Who, amounts: Amounts) {
        if amounts == Amounts::default() {
            return;
        }
        self.written = false;
        let (tenant, bee) = who;
        if let Some(at) = self.record.used.get_mut(&tenant).and_then(|bees| bees.get_mut(&bee)) {
            *at += amounts;
        } else if bee.is_empty() || self.entries < USAGE_ENTRIES_MAX {
            // A tenant as a whole is always counted: tenants are bounded, names of Bees are not.
            self.entries += 1;
            self.record.used.entry(tenant).or_default().insert(bee, amounts);
        }
    }
}

impl Usage {
    #[must_use]
    pub fn new(catalogs: Catalogs, quotas: Arc<Quotas>, me: NodeId, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            catalogs,
            quotas,
            me,
            clock,
            book: Mutex::default(),
        })
    }

    /// Writes down what was used since the last time, in the day that is now.
    ///
    /// # Errors
    /// When the catalog cannot be written: it is tried with the next.
    pub async fn write(&self) -> anyhow::Result<()> {
        let mut book = self.book.lock().await;
        let day = self.clock.now_ms() / DAY_MS;
        if book.day != day {
            // A day's last minutes belong to it, also when the store was away.
            self.put(&mut book).await?;
            let read = std::mem::take(&mut book.read);
            *book = Book {
                day,
                read,
                written: true,
                ..Book::default()
            };
            self.forget_old(day).await?;
        }
        let mut read = HashMap::new();
        for (tenant, account) in self.quotas.all() {
            for (bee, now) in account.used() {
                let who = (tenant.to_string(), bee);
                let before = book.read.get(&who).copied().unwrap_or_default();
                book.add(who.clone(), now - before);
                read.insert(who, now);
            }
        }
        book.read = read;
        self.put(&mut book).await
    }

    async fn put(&self, book: &mut Book) -> anyhow::Result<()> {
        if book.written || book.record.used.is_empty() {
            return Ok(());
        }
        let key = format!("{USAGE}{}/{}", book.day, self.me);
        match self.catalogs.put(&key, book.version, None, &book.record).await? {
            Ok(version) => {
                book.version = version;
                book.written = true;
                Ok(())
            }
            // Nobody else writes it: it was written, and the answer lost.
            Err(version) => {
                book.version = version;
                anyhow::bail!("the record of what was used is at version {version}: it is written with the next")
            }
        }
    }

    async fn forget_old(&self, day: u64) -> anyhow::Result<()> {
        for (name, found) in self.catalogs.list_each::<DayRecord>(USAGE).await? {
            let old = day_of(&name).is_some_and(|then| then.saturating_add(USAGE_DAYS_KEPT) < day);
            if let (true, Ok(found)) = (old, found) {
                // Another node may be first.
                let _ = self.catalogs.delete(&format!("{USAGE}{name}"), found.version).await?;
            }
        }
        Ok(())
    }

    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(USAGE_WRITE_MS)) => {}
            }
            if let Err(error) = self.write().await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "what was used is not written down, trying again"
                );
            }
        }
    }
}

fn day_of(name: &str) -> Option<u64> {
    name.split_once('/')?.0.parse().ok()
}

/// What was used from `day` on, summed over nodes and days: of one tenant, or of all.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn read(catalogs: &Catalogs, tenant: Option<&TenantId>, day: u64) -> anyhow::Result<BTreeMap<Who, Amounts>> {
    // All days' records of all nodes are in memory meanwhile: one reader at a time.
    static READS: Semaphore = Semaphore::const_new(1);
    let _turn = READS.acquire().await?;
    let mut sum: BTreeMap<Who, Amounts> = BTreeMap::new();
    for (name, found) in catalogs.list_each::<DayRecord>(USAGE).await? {
        if day_of(&name).is_none_or(|then| then < day) {
            continue;
        }
        let record = found.with_context(|| format!("the record `{USAGE}{name}`"))?.record;
        for (whose, bees) in record.used {
            if tenant.is_some_and(|tenant| tenant.as_str() != whose) {
                continue;
            }
            for (bee, amounts) in bees {
                *sum.entry((whose.clone(), bee)).or_default() += amounts;
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use skep_model::env::{ManualClock, SeededEntropy};
    use skep_topic::Backend;
    use skep_topic::memory::Memory;

    use super::*;

    #[tokio::test]
    async fn nodes_and_days_are_summed_and_old_days_are_forgotten() {
        let clock = Arc::new(ManualClock::at(10 * DAY_MS));
        let backend = Memory::new(Arc::clone(&clock) as Arc<dyn Clock>, Arc::new(SeededEntropy::new(1)));
        let catalogs = Catalogs::new(backend as Arc<dyn Backend>, None);
        let node = |id: u8| {
            let quotas = Arc::new(Quotas::default());
            let clock = Arc::clone(&clock) as Arc<dyn Clock>;
            (
                Usage::new(catalogs.clone(), Arc::clone(&quotas), NodeId([id; 8]), clock),
                quotas,
            )
        };
        let ((one, first), (two, second)) = (node(1), node(2));
        let [acme, globex]: [TenantId; 2] = ["acme", "globex"].map(|name| name.parse().unwrap());
        let meters = [
            first.of(&acme).meter("s/a"),
            second.of(&acme).meter("s/a"),
            second.of(&globex).meter("t/b"),
        ];
        for (n, meter) in (1..).zip(&meters) {
            meter.inputs.fetch_add(n, Ordering::Relaxed);
        }
        one.write().await.unwrap();
        two.write().await.unwrap();
        let messages = async |tenant: Option<&TenantId>, day| {
            let sum = read(&catalogs, tenant, day).await.unwrap();
            sum.into_iter()
                .map(|((_, bee), used)| (bee, used.messages))
                .collect::<Vec<_>>()
        };
        assert_eq!(messages(None, 0).await, [("s/a".to_owned(), 3), ("t/b".to_owned(), 3)]);
        assert_eq!(messages(Some(&globex), 0).await, [("t/b".to_owned(), 3)]);
        // Nothing new, nothing written; what is new is added, on its own day.
        let number = catalogs.number().await.unwrap();
        one.write().await.unwrap();
        assert_eq!(catalogs.number().await.unwrap(), number);
        clock.advance(DAY_MS);
        meters[0].inputs.fetch_add(10, Ordering::Relaxed);
        one.write().await.unwrap();
        assert_eq!(messages(Some(&acme), 0).await, [("s/a".to_owned(), 13)]);
        assert_eq!(messages(Some(&acme), 11).await, [("s/a".to_owned(), 10)]);
        assert!(messages(Some(&acme), 12).await.is_empty());
        // A Bee that went is not counted twice when its name comes back.
        drop(meters);
        one.write().await.unwrap();
        first.of(&acme).meter("s/a").inputs.fetch_add(1, Ordering::Relaxed);
        one.write().await.unwrap();
        assert_eq!(messages(Some(&acme), 11).await, [("s/a".to_owned(), 11)]);
        // However many Bees there are, their tenants are counted, each for itself.
        let mut book = Book::default();
        for n in 0..=USAGE_ENTRIES_MAX as u64 {
            let one = Amounts {
                messages: 1,
                ..Amounts::default()
            };
            book.add(("acme".to_owned(), format!("s/{n}")), one);
        }
        book.add(
            ("globex".to_owned(), String::new()),
            Amounts {
                messages: 7,
                ..Amounts::default()
            },
        );
        assert_eq!(book.record.used["acme"].len(), USAGE_ENTRIES_MAX);
        assert_eq!(book.record.used["globex"][""].messages, 7);
        clock.advance(USAGE_DAYS_KEPT * DAY_MS);
        one.write().await.unwrap();
        assert_eq!(
            messages(Some(&acme), 0).await,
            [("s/a".to_owned(), 11)],
            "it is of the oldest day that is kept"
        );
        clock.advance(DAY_MS);
        one.write().await.unwrap();
        assert!(messages(None, 0).await.is_empty());
    }
}
