//! The audit: who asked this node for a change, what came of it, and who was refused.
//!
//! ```text
//!   DATA/audit/platform/…     what operators did, and what the node did to itself
//!   DATA/audit/denied/…       refusals of all tenants: a flood of them drives out only others of them
//!   DATA/audit/tenant-NAME/…  what a tenant's people did: one tenant cannot drive out what another did
//! ```
//! Each is a [`Book`]: a chain by hashes of its own, on this node alone, for there is no coordinator whom all would have to ask before
//! anything is done, and a store that is away must keep no record from being made. So a node's loss takes its records with it, unless they
//! were copied (`skep audit list --follow`), and who owns the machine can write a new chain: what they cannot do is make it end in the same
//! hash as the one that `skep audit verify` told before.

mod book;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use skep_gateway::door::{Deed, Witness};
use skep_model::access::Role;
use skep_model::env::Clock;
use skep_model::limits::{AUDIT_DENIED_KINDS_MAX, AUDIT_DENIED_WINDOW_MS};
use skep_model::name::TenantId;
use tokio_util::sync::CancellationToken;

pub use book::{Book, Entry, Kind, Sound};

const PLATFORM: &str = "platform";
const DENIED: &str = "denied";
const TENANT: &str = "tenant-";
/// Kinds of refusals that are told apart of one tenant's people in a window.
const KINDS_OF_TENANT_MAX: usize = AUDIT_DENIED_KINDS_MAX / 4;
/// Pages of records held while books are read one after the other.
const READ_AHEAD_PAGES: usize = 8;
/// How often what was written is made durable, and windows are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// This node's records.
pub struct Audit {
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    books: HashMap<String, Book>,
    /// Refusals of the window that began then.
    window_ms: u64,
    denied: HashMap<Denied, Counted>,
    strangers: Kinds,
    /// Of tenants and operators whose tokens are good and may not do what they tried: strangers, of whom there may be any number, do not
    /// drive them out.
    known: HashMap<String, Kinds>,
}

/// How many kinds of refusals are told apart, and how many refusals came beyond those that may be.
#[derive(Debug, Default)]
struct Kinds {
    told: usize,
    others: u64,
}

/// What one record of refusals stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Denied {
    by: Option<String>,
    method: String,
    why: String,
    /// Of IPv6 the network: whoever has one has all of its addresses.
    from: IpAddr,
}

struct Counted {
    entry: Entry,
    /// Those after the first, which was written at once.
    more: u64,
}

impl Audit {
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(data: &Path, clock: Arc<dyn Clock>) -> anyhow::Result<Arc<Self>> {
        let folder = data.join("audit");
        let mut inner = Inner::default();
        make(&folder)?;
        for found in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let name = found?.file_name().to_string_lossy().into_owned();
            let known = [PLATFORM, DENIED].contains(&name.as_str())
                || name.strip_prefix(TENANT).is_some_and(|t| t.parse::<TenantId>().is_ok());
            if known {
                let book = Book::open(&folder.join(&name), clock.now_ms())?;
                tracing::info!(book = name, seq = book.seq(), head = book.head(), "audit goes on");
                inner.books.insert(name, book);
            }
        }
        Ok(Arc::new(Self {
            folder,
            clock,
            inner: Mutex::new(inner),
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, inner: &mut Inner, name: &str, entry: Entry) -> anyhow::Result<u64> {
        let book = match inner.books.entry(name.to_owned()) {
            std::collections::hash_map::Entry::Occupied(book) => book.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Book::open(&self.folder.join(name), self.clock.now_ms())?)
            }
        };
        book.append(entry)
    }

    /// The node says something of itself.
    pub fn note(&self, note: &str) {
        let entry = Entry {
            note: note.to_owned(),
            ..Entry::new(Kind::Node, self.clock.now_ms())
        };
        let written = self.write(&mut self.lock(), PLATFORM, entry);
        complain(written.map(|_| ()));
    }

    /// Makes durable what was written, and tells of refusals that were counted, until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(LOOK) => {}
            }
            let this = Arc::clone(&self);
            let _ = tokio::task::spawn_blocking(move || this.look(false)).await;
        }
        let _ = tokio::task::spawn_blocking(move || self.look(true)).await;
    }

    fn look(&self, last: bool) {
        let now_ms = self.clock.now_ms();
        let dirty: Vec<(String, PathBuf)> = {
            let mut inner = self.lock();
            let over = now_ms.saturating_sub(inner.window_ms) >= AUDIT_DENIED_WINDOW_MS || now_ms < inner.window_ms;
            if last || over {
                complain(self.settle(&mut inner, now_ms));
            }
            let books = inner.books.iter_mut();
            books
                .filter_map(|(name, book)| Some((name.clone(), book.unsynced()?)))
                .collect()
        };
        // Not under the lock: a call waits for it.
        for (book, path) in dirty {
            let synced = std::fs::File::open(&path).and_then(|file| file.sync_data());
            if let Err(error) = synced {
                tracing::error!(book, %error, "records of the audit are not durable yet");
            }
        }
    }

    /// A record for each kind of refusal that came more than once, and a new window.
    fn settle(&self, inner: &mut Inner, now_ms: u64) -> anyhow::Result<()> {
        inner.window_ms = now_ms;
        let strangers = std::mem::take(&mut inner.strangers);
        let known = std::mem::take(&mut inner.known);
        let mut counted: Vec<Counted> = std::mem::take(&mut inner.denied)
            .into_values()
            .filter(|c| c.more > 0)
            .collect();
        counted.sort_by_key(|c| c.entry.at_ms);
        for Counted { entry, more } in counted {
            let summary = Entry {
                at_ms: now_ms,
                times: more,
                note: "as many more since the first".to_owned(),
                ..entry
            };
            self.write(inner, DENIED, summary)?;
        }
        let mut beyond: Vec<_> = known.into_iter().map(|(tenant, kinds)| (Some(tenant), kinds)).collect();
        beyond.sort_by(|(a, _), (b, _)| a.cmp(b));
        beyond.push((None, strangers));
        for (tenant, kinds) in beyond.into_iter().filter(|(_, kinds)| kinds.others > 0) {
            let most = most_kinds(tenant.is_some());
            let summary = Entry {
                times: kinds.others,
                tenant,
                note: format!("refusals beyond the {most} kinds that are told apart"),
                ..Entry::new(Kind::Denied, now_ms)
            };
            self.write(inner, DENIED, summary)?;
        }
        Ok(())
    }

    /// The books that a reader may see; `None`: an operator, all of them.
    fn names(&self, tenant: Option<&TenantId>) -> Vec<String> {
        let inner = self.lock();
        let mut names: Vec<String> = match tenant {
            None => inner.books.keys().cloned().collect(),
            Some(tenant) => [format!("{TENANT}{tenant}"), DENIED.to_owned()]
                .into_iter()
                .filter(|name| inner.books.contains_key(name))
                .collect(),
        };
        names.sort();
        names
    }

    /// Records by time, with their book, from `since_ms` on and after what `after` says was read of each book, at most `most`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(
        &self,
        tenant: Option<&TenantId>,
        since_ms: u64,
        after: &HashMap<String, u64>,
        most: usize,
    ) -> anyhow::Result<Page> {
        let mut all: Vec<Placed> = Vec::new();
        let mut next = after.clone();
        let mut cut: HashSet<String> = HashSet::new();
        for name in self.names(tenant) {
            let Some(reader) = self.lock().books.get(&name).map(Book::reader) else {
                continue;
            };
            let from = after.get(&name).copied().unwrap_or(0);
            if from >= reader.seq() {
                continue;
            }
            let fits = |entry: &Entry| {
                entry.at_ms >= since_ms
                    && (name != DENIED || tenant.is_none_or(|tenant| entry.tenant.as_deref() == Some(tenant.as_str())))
            };
            let (entries, more) = reader.page(from, most, fits)?;
            next.insert(name.clone(), reader.seq());
            if more {
                cut.insert(name.clone());
            }
            // The book's order holds where the clock was set back.
            let mut time = 0;
            all.extend(entries.into_iter().map(|entry| {
                time = entry.at_ms.max(time);
                (time, name.clone(), entry)
            }));
            if all.len() > READ_AHEAD_PAGES * most {
                shorten(&mut all, most, &mut cut);
            }
        }
        shorten(&mut all, most, &mut cut);
        for name in &cut {
            let read = all
                .iter()
                .filter(|(_, of, _)| of == name)
                .map(|(.., entry)| entry.seq)
                .max();
            next.insert(name.clone(), read.or_else(|| after.get(name).copied()).unwrap_or(0));
        }
        Ok(Page {
            entries: all.into_iter().map(|(_, name, entry)| (name, entry)).collect(),
            after: next,
            more: !cut.is_empty(),
        })
    }

    /// Whether the chains are whole. `known`: by book, the number and the hash of a record that was told before.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn verify(
        &self,
        tenant: Option<&TenantId>,
        known: &HashMap<String, (u64, String)>,
    ) -> anyhow::Result<Vec<(String, Sound)>> {
        let mut out = Vec::new();
        let names = self.names(tenant);
        // The refusals are those of all tenants.
        let names = names.iter().filter(|name| tenant.is_none() || *name != DENIED);
        for name in names.clone() {
            let Some(reader) = self.lock().books.get(name).map(Book::reader) else {
                continue;
            };
            let known = known.get(name).map(|(seq, head)| (*seq, head.as_str()));
            let mut sound = reader.verify(known)?;
            // An old file may have gone while they were read.
            if sound.trouble.is_some()
                && let Some(reader) = self.lock().books.get(name).map(Book::reader)
            {
                sound = reader.verify(known)?;
            }
            out.push((name.clone(), sound));
        }
        let own = tenant.map(|tenant| format!("{TENANT}{tenant}"));
        for (name, (seq, _)) in known {
            let may = own.as_ref().is_none_or(|own| own == name);
            if may && *seq > 0 && !names.clone().any(|there| there == name) {
                let sound = Sound {
                    first_seq: 0,
                    last_seq: 0,
                    head: String::new(),
                    trouble: Some(format!("the whole book is gone; it had {seq} records")),
                };
                out.push((name.clone(), sound));
            }
        }
        Ok(out)
    }
}

/// A record with its place in time and its book.
type Placed = (u64, String, Entry);

/// Some records, and where the next ones begin.
pub struct Page {
    pub entries: Vec<(String, Entry)>,
    pub after: HashMap<String, u64>,
    pub more: bool,
}

/// The first so many by time; books whose records went are noted.
fn shorten(all: &mut Vec<Placed>, most: usize, cut: &mut HashSet<String>) {
    all.sort_by_key(|(time, ..)| *time);
    cut.extend(all.drain(most.min(all.len())..).map(|(_, name, _)| name));
}

impl Witness for Audit {
    fn asked(&self, deed: &Deed) -> Result<u64, String> {
        let entry = entry(Kind::Asked, deed, self.clock.now_ms());
        self.write(&mut self.lock(), &whose(deed), entry)
            .map_err(|e| format!("{e:#}"))
    }

    fn ended(&self, deed: &Deed, asked: Option<u64>, outcome: &str) {
        let entry = Entry {
            of: asked,
            outcome: outcome.to_owned(),
            ..entry(Kind::Ended, deed, self.clock.now_ms())
        };
        complain(self.write(&mut self.lock(), &whose(deed), entry).map(|_| ()));
    }

    fn denied(&self, deed: &Deed, why: &str) {
        let now_ms = self.clock.now_ms();
        let kind = Denied {
            by: deed.who.as_ref().and_then(|who| who.caller.by.shown()),
            method: deed.method.clone(),
            why: why.to_owned(),
            from: network(deed.from.ip()),
        };
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.window_ms == 0 {
            inner.window_ms = now_ms;
        }
        if let Some(counted) = inner.denied.get_mut(&kind) {
            counted.more += 1;
            return;
        }
        let whose = deed.who.as_ref().map(|who| who.caller.scope.tenant().to_string());
        let most = most_kinds(whose.is_some());
        let kinds = match whose {
            Some(tenant) => inner.known.entry(tenant).or_default(),
            None => &mut inner.strangers,
        };
        if kinds.told >= most {
            kinds.others += 1;
            return;
        }
        kinds.told += 1;
        let entry = Entry {
            outcome: why.to_owned(),
            ..entry(Kind::Denied, deed, now_ms)
        };
        let first = entry.clone();
        inner.denied.insert(kind, Counted { entry, more: 0 });
        complain(self.write(inner, DENIED, first).map(|_| ()));
    }
}

/// A refusal stays one, and what was done is done, whether it can be recorded or not: who operates the node hears of it.
fn complain(written: anyhow::Result<()>) {
    if let Err(error) = written {
        tracing::error!(error = format!("{error:#}"), "the audit misses a record");
    }
}

/// Of strangers together, or of one tenant's people.
fn most_kinds(known: bool) -> usize {
    if known {
        KINDS_OF_TENANT_MAX
    } else {
        AUDIT_DENIED_KINDS_MAX
    }
}

fn whose(deed: &Deed) -> String {
    match &deed.who {
        Some(who) if who.caller.role != Role::Operator => format!("{TENANT}{}", who.caller.scope.tenant()),
        _ => PLATFORM.to_owned(),
    }
}

fn entry(kind: Kind, deed: &Deed, now_ms: u64) -> Entry {
    let caller = deed.who.as_ref().map(|who| &who.caller);
    let name = deed.who.as_ref().map(|who| who.name.to_string());
    Entry {
        token: caller.and_then(|c| c.by.shown()),
        token_name: name.filter(|name| !name.is_empty()),
        tenant: caller.map(|c| c.scope.tenant().to_string()),
        role: caller.map(|c| c.role),
        method: deed.method.clone(),
        objects: deed
            .objects
            .iter()
            .map(|(what, name)| ((*what).to_owned(), name.clone()))
            .collect(),
        from: deed.from.to_string(),
        ..Entry::new(kind, now_ms)
    }
}

fn network(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 64))),
        },
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn make(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("make {}", folder.display()))
}

#[cfg(test)]
mod tests;
