//! The models that a node has in memory: each once, by its digest, whoever calls it.
//!
//! A model is loaded at its first call and goes when others need its memory, the one used longest ago first. While somebody holds a
//! [`Lease`] it stays; so calls in flight end on the version that they began with, whatever a tag says by then.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use skep_model::id::Digest;
use tokio::sync::watch;

use crate::backend::{Backend, InferError, Model};
use crate::batch::{Batcher, Bounds, Policy, Reading};
use crate::inspect::Refusal;
use crate::limits::{LOAD_WAITERS_MAX, Limits, MODELS_BYTES_DEFAULT, REFUSALS_KEPT_MAX};
use crate::threads::{Again, Threads, Work};

/// What a shelf may use.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Memory of all models together, as backends estimate it.
    pub budget_bytes: u64,
    pub limits: Limits,
    pub bounds: Bounds,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            budget_bytes: MODELS_BYTES_DEFAULT,
            limits: Limits::default(),
            bounds: Bounds::default(),
        }
    }
}

/// The models of a node.
pub struct Shelf {
    backend: Arc<dyn Backend>,
    threads: Arc<Threads>,
    settings: Settings,
    state: Mutex<State>,
}

struct State {
    models: HashMap<Digest, Entry>,
    /// Refusals depend on the file and the backend alone: they are not asked for twice.
    refusals: HashMap<Digest, Refusal>,
    /// Counts uses: the order of last use.
    uses: u64,
    /// Memory of what is loaded, and what loads under way may need.
    bytes: u64,
    waiters: usize,
    counts: Counts,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    loads: u64,
    evictions: u64,
    failures: u64,
    load_time: Duration,
}

enum Entry {
    /// Whoever comes meanwhile waits for the same load.
    Loading(watch::Receiver<Option<Result<(), InferError>>>),
    Ready {
        batcher: Arc<Batcher>,
        bytes: u64,
        last_use: u64,
        held: Arc<()>,
    },
}

/// The right to call a model, which stays in memory meanwhile. Derefs to its [`Batcher`].
#[derive(Clone)]
pub struct Lease {
    batcher: Arc<Batcher>,
    /// One for the shelf, and one for each lease.
    _held: Arc<()>,
}

impl Deref for Lease {
    type Target = Arc<Batcher>;

    fn deref(&self) -> &Arc<Batcher> {
        &self.batcher
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.batcher.fmt(f)
    }
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} models on {}", self.lock().models.len(), self.backend.name())
    }
}

/// What a node's models have and had, as plain numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct ShelfReading {
    pub backend: &'static str,
    pub budget_bytes: u64,
    /// Of what is loaded and what is being loaded.
    pub bytes: u64,
    pub loads: u64,
    pub evictions: u64,
    pub failures: u64,
    pub load_time: Duration,
    pub models: Vec<ModelReading>,
}

/// One loaded model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelReading {
    pub digest: Digest,
    pub bytes: u64,
    pub waiting_rows: usize,
    pub waiting_bytes: usize,
    pub calls: Reading,
}

impl Shelf {
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, threads: Arc<Threads>, settings: Settings) -> Arc<Self> {
        let counts = Counts::default();
        let state = State {
            models: HashMap::new(),
            refusals: HashMap::new(),
            uses: 0,
            bytes: 0,
            waiters: 0,
            counts,
        };
        Arc::new(Self {
            backend,
            threads,
            settings,
            state: Mutex::new(state),
        })
    }

    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The model, if it is loaded: without waiting, for threads that cannot, and for the common case.
    #[must_use]
    pub fn loaded(&self, digest: Digest) -> Option<Lease> {
        let mut state = self.lock();
        let panicked = match state.models.get(&digest) {
            Some(Entry::Ready { batcher, .. }) => batcher.model().panicked().is_some(),
            _ => return None,
        };
        if panicked {
            let gone = state.remove(digest);
            drop(state);
            drop(gone);
            return None;
        }
        state.uses += 1;
        let uses = state.uses;
        match state.models.get_mut(&digest) {
            Some(Entry::Ready {
                batcher,
                last_use,
                held,
                ..
            }) => {
                *last_use = uses;
                Some(Lease {
                    batcher: Arc::clone(batcher),
                    _held: Arc::clone(held),
                })
            }
            _ => None,
        }
    }

    /// The model, loaded now if it is not. `read` brings its file, whose digest its caller has checked; it is called once however many ask
    /// at a time, and goes on if they go away. `policy` holds from now on, for all who call the model.
    ///
    /// Loads run on the threads of models, where runs of others wait for them; so a node has as many of both at once as it has threads.
    ///
    /// # Errors
    /// It cannot be read or is refused; there is no room beside models that are in use; too many wait.
    pub async fn model<R, F>(self: &Arc<Self>, digest: Digest, policy: Policy, read: R) -> Result<Lease, InferError>
    where
        R: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Bytes, String>> + Send + 'static,
    {
        let mut read = Some(read);
        loop {
            if let Some(lease) = self.loaded(digest) {
                if lease.policy() != policy.clamped() {
                    lease.set_policy(policy);
                }
                return Ok(lease);
            }
            let begun = self.begin(digest)?;
            let _waits = Waits(self);
            let mut watched = match begun {
                Begin::Wait(watched) => watched,
                Begin::Load(done, watched) => {
                    let Some(read) = read.take() else {
                        // It was loaded for this call and is gone already: there is no room for it beside others. The entry goes, so that
                        // the next call tries anew.
                        let error = self.over_budget(0);
                        let guard = Loading {
                            shelf: self,
                            digest,
                            done: Some(done),
                        };
                        guard.end(Err(error.clone()));
                        return Err(error);
                    };
                    let shelf = Arc::clone(self);
                    tokio::spawn(async move {
                        let guard = Loading {
                            shelf: &shelf,
                            digest,
                            done: Some(done),
                        };
                        let ended = shelf.load(digest, policy, read()).await;
                        guard.end(ended);
                    });
                    watched
                }
            };
            match watched.wait_for(Option::is_some).await.map(|ended| ended.clone()) {
                Ok(Some(Ok(()))) => {}
                Ok(Some(Err(error))) => return Err(error),
                Ok(None) | Err(_) => return Err(InferError::Stopping),
            }
        }
    }

    /// Lets go of a model that was deleted. Who holds a lease keeps it as long.
    pub fn forget(&self, digest: Digest) {
        let mut state = self.lock();
        state.refusals.remove(&digest);
        let gone = if matches!(state.models.get(&digest), Some(Entry::Ready { .. })) {
            state.remove(digest)
        } else {
            None
        };
        drop(state);
        drop(gone);
    }

    #[must_use]
    pub fn stats(&self) -> ShelfReading {
        let state = self.lock();
        let mut models: Vec<ModelReading> = state
            .models
            .iter()
            .filter_map(|(digest, entry)| match entry {
                Entry::Ready { batcher, bytes, .. } => {
                    let (waiting_rows, waiting_bytes) = batcher.waiting();
                    Some(ModelReading {
                        digest: *digest,
                        bytes: *bytes,
                        waiting_rows,
                        waiting_bytes,
                        calls: batcher.stats(),
                    })
                }
                Entry::Loading(_) => None,
            })
            .collect();
        models.sort_by_key(|model| model.digest);
        ShelfReading {
            backend: self.backend.name(),
            budget_bytes: self.settings.budget_bytes,
            bytes: state.bytes,
            loads: state.counts.loads,
            evictions: state.counts.evictions,
            failures: state.counts.failures,
            load_time: state.counts.load_time,
            models,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over_budget(&self, need: u64) -> InferError {
        InferError::OverBudget {
            need,
            budget: self.settings.budget_bytes,
            in_use: self.lock().bytes,
        }
    }

    fn begin(&self, digest: Digest) -> Result<Begin, InferError> {
        let mut state = self.lock();
        if let Some(refusal) = state.refusals.get(&digest) {
            return Err(InferError::Refused(refusal.clone()));
        }
        if state.waiters >= LOAD_WAITERS_MAX {
            return Err(InferError::Loading { calls: state.waiters });
        }
        let begin = match state.models.get(&digest) {
            Some(Entry::Loading(watched)) => Begin::Wait(watched.clone()),
            // It became ready a moment ago.
            Some(Entry::Ready { .. }) => Begin::Wait(watch::channel(Some(Ok(()))).1),
            None => {
                let (done, watched) = watch::channel(None);
                state.models.insert(digest, Entry::Loading(watched.clone()));
                Begin::Load(done, watched)
            }
        };
        state.waiters += 1;
        Ok(begin)
    }

    async fn load<F>(self: &Arc<Self>, digest: Digest, policy: Policy, read: F) -> Result<(), InferError>
    where
        F: Future<Output = Result<Bytes, String>> + Send,
    {
        let bytes = read.await.map_err(InferError::Unreadable)?;
        // Before it is loaded nobody knows what it takes: three times its file is more than most do.
        let guess = 3 * bytes.len() as u64;
        let evicted = self.reserve(guess)?;
        drop(evicted);
        let reserved = Reserved {
            shelf: self,
            bytes: guess,
        };
        let (reply, answer) = tokio::sync::oneshot::channel();
        let work = Arc::new(Load {
            backend: Arc::clone(&self.backend),
            limits: self.settings.limits.clone(),
            what: Mutex::new(Some((bytes, reply))),
        });
        let begun = Instant::now();
        self.threads.ask(work);
        let model = answer.await.map_err(|_| InferError::Stopping)?;
        let model = model.inspect_err(|refusal| {
            let mut state = self.lock();
            // What happens to go does not matter: it is asked for once more.
            if state.refusals.len() >= REFUSALS_KEPT_MAX
                && let Some(any) = state.refusals.keys().next().copied()
            {
                state.refusals.remove(&any);
            }
            state.refusals.insert(digest, refusal.clone());
        })?;
        let need = model.memory_bytes();
        drop(reserved);
        let evicted = self.reserve(need)?;
        drop(evicted);
        let batcher = Batcher::new(model, policy, self.settings.bounds, Arc::clone(&self.threads));
        let mut state = self.lock();
        state.counts.loads += 1;
        state.counts.load_time += begun.elapsed();
        state.uses += 1;
        let ready = Entry::Ready {
            batcher,
            bytes: need,
            last_use: state.uses,
            held: Arc::new(()),
        };
        let before = state.models.insert(digest, ready);
        drop(state);
        drop(before);
        Ok(())
    }

    /// Makes room for so much. Answers what went, to be dropped where no lock is held.
    fn reserve(&self, need: u64) -> Result<Vec<Entry>, InferError> {
        let budget = self.settings.budget_bytes;
        let mut state = self.lock();
        let idle = |entry: &Entry| match entry {
            Entry::Ready {
                bytes, last_use, held, ..
            } if Arc::strong_count(held) == 1 => Some((*last_use, *bytes)),
            _ => None,
        };
        let mut evictable: Vec<(u64, u64, Digest)> = state
            .models
            .iter()
            .filter_map(|(digest, entry)| idle(entry).map(|(last, bytes)| (last, bytes, *digest)))
            .collect();
        let in_use = state.bytes - evictable.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
        if in_use.saturating_add(need) > budget {
            return Err(InferError::OverBudget { need, budget, in_use });
        }
        evictable.sort_unstable();
        let mut gone = Vec::new();
        for (_, _, digest) in evictable {
            if state.bytes.saturating_add(need) <= budget {
                break;
            }
            gone.extend(state.remove(digest));
            state.counts.evictions += 1;
        }
        state.bytes += need;
        Ok(gone)
    }
}

impl State {
    fn remove(&mut self, digest: Digest) -> Option<Entry> {
        let entry = self.models.remove(&digest)?;
        if let Entry::Ready { bytes, .. } = &entry {
            self.bytes -= bytes;
        }
        Some(entry)
    }
}

enum Begin {
    Wait(watch::Receiver<Option<Result<(), InferError>>>),
    Load(
        watch::Sender<Option<Result<(), InferError>>>,
        watch::Receiver<Option<Result<(), InferError>>>,
    ),
}

/// Memory that a load under way may need, given back when it is known what it does.
struct Reserved<'a> {
    shelf: &'a Shelf,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.shelf.lock().bytes -= self.bytes;
    }
}

struct Waits<'a>(&'a Shelf);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.lock().waiters -= 1;
    }
}

/// A load that ends without a word (its task was dropped, as the process ends) leaves no entry behind.
struct Loading<'a> {
    shelf: &'a Shelf,
    digest: Digest,
    done: Option<watch::Sender<Option<Result<(), InferError>>>>,
}

impl Loading<'_> {
    fn end(mut self, ended: Result<(), InferError>) {
        if ended.is_err() {
            self.fail();
        }
        if let Some(done) = self.done.take() {
            done.send_replace(Some(ended));
        }
    }

    fn fail(&self) {
        let mut state = self.shelf.lock();
        state.counts.failures += 1;
        if matches!(state.models.get(&self.digest), Some(Entry::Loading(_))) {
            state.models.remove(&self.digest);
        }
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if self.done.is_some() {
            self.fail();
        }
    }
}

type Loaded = Result<Model, Refusal>;

/// One load, on a thread of models: preparing takes time, and stack.
struct Load {
    backend: Arc<dyn Backend>,
    limits: Limits,
    what: Mutex<Option<(Bytes, tokio::sync::oneshot::Sender<Loaded>)>>,
}

impl Load {
    fn take(&self) -> Option<(Bytes, tokio::sync::oneshot::Sender<Loaded>)> {
        self.what.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Work for Load {
    fn work(self: Arc<Self>) -> Again {
        if let Some((bytes, reply)) = self.take() {
            let model = Model::load(&*self.backend, &bytes, &self.limits);
            // Nobody waits any more if the process ends.
            let _ = reply.send(model);
        }
        Again::No
    }

    fn stopped(&self) {
        drop(self.take());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use skep_model::tensor::Tensor;

    use super::*;
    use crate::backend::tract::Tract;
    use crate::{Subject, sample};

    fn shelf(budget_bytes: u64) -> Arc<Shelf> {
        let settings = Settings {
            budget_bytes,
            ..Settings::default()
        };
        Shelf::new(Arc::new(Tract::new()), Threads::start(1).unwrap(), settings)
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    async fn get(shelf: &Arc<Shelf>, name: &'static str) -> Result<Lease, InferError> {
        shelf
            .model(digest(name), Policy::default(), move || async move {
                Ok(sample::read(name))
            })
            .await
    }

    async fn works(lease: &Lease) {
        let port = &lease.model().signature().inputs[0];
        let shape: Vec<u64> = port.shape.iter().map(|dim| dim.unwrap_or(1)).collect();
        let zeros = vec![0.0; shape.iter().product::<u64>() as usize];
        let inputs = vec![(port.name.clone(), Tensor::from_f32(shape, &zeros).unwrap())];
        assert_eq!(lease.infer(Subject::named("a"), inputs, None).await.unwrap().len(), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_model_is_read_once_however_many_ask() {
        let (shelf, reads) = (shelf(MODELS_BYTES_DEFAULT), Arc::new(AtomicUsize::new(0)));
        assert!(shelf.loaded(digest("iris")).is_none());
        let asks: Vec<_> = (0..20)
            .map(|_| {
                let (shelf, reads) = (Arc::clone(&shelf), Arc::clone(&reads));
                tokio::spawn(async move {
                    let read = move || async move {
                        reads.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Ok(sample::read("iris"))
                    };
                    shelf.model(digest("iris"), Policy::default(), read).await
                })
            })
            .collect();
        for ask in asks {
            works(&ask.await.unwrap().unwrap()).await;
        }
        assert_eq!(reads.load(Ordering::SeqCst), 1);
        let stats = shelf.stats();
        assert_eq!(
            (stats.loads, stats.models.len(), stats.models[0].calls.calls),
            (1, 1, 20)
        );
        assert_eq!(shelf.lock().waiters, 0);
        assert!(shelf.loaded(digest("iris")).is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_gives_up_does_not_end_the_load() {
        let shelf = shelf(MODELS_BYTES_DEFAULT);
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(40)).await;
            Ok(sample::read("iris"))
        };
        let asked = shelf.model(digest("iris"), Policy::default(), slow);
        assert!(tokio::time::timeout(Duration::from_millis(5), asked).await.is_err());
        let never = || async { panic!("it is read already") };
        works(&shelf.model(digest("iris"), Policy::default(), never).await.unwrap()).await;
        assert_eq!((shelf.stats().loads, shelf.lock().waiters), (1, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memory_is_bounded_and_the_one_used_longest_ago_goes() {
        // The large one needs some 2.5 MB while it is loaded; small ones next to nothing.
        let shelf = shelf(2_600_000);
        let iris = get(&shelf, "iris").await.unwrap();
        drop(get(&shelf, "wine").await.unwrap());
        drop(get(&shelf, "digits-mlp").await.unwrap());
        drop(get(&shelf, "cancer-mlp").await.unwrap());
        let stats = shelf.stats();
        assert!(stats.bytes <= stats.budget_bytes);
        assert_eq!(stats.bytes, stats.models.iter().map(|model| model.bytes).sum::<u64>());
        let lease = get(&shelf, "digits-mlp").await.unwrap();
        // In use, it does not go for another of its kind.
        let again = shelf
            .model(digest("other"), Policy::default(), || async {
                Ok(sample::read("digits-mlp"))
            })
            .await;
        assert!(
            matches!(again, Err(InferError::OverBudget { budget: 2_600_000, .. })),
            "{again:?}"
        );
        works(&lease).await;
        drop(lease);
        let other = shelf
            .model(digest("other"), Policy::default(), || async {
                Ok(sample::read("digits-mlp"))
            })
            .await
            .unwrap();
        assert!(shelf.loaded(digest("digits-mlp")).is_none(), "it went");
        assert!(shelf.loaded(digest("iris")).is_some(), "it is in use");
        assert!(shelf.stats().evictions >= 1);
        works(&other).await;
        works(&iris).await;
        let tiny = self::shelf(100);
        assert!(matches!(get(&tiny, "iris").await, Err(InferError::OverBudget { need, .. }) if need > 100));
        assert_eq!(tiny.stats().bytes, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_cannot_be_had_says_why() {
        let shelf = shelf(MODELS_BYTES_DEFAULT);
        let gone = || async { Err(String::from("the store does not answer")) };
        let error = shelf.model(digest("iris"), Policy::default(), gone).await.unwrap_err();
        assert_eq!(error, InferError::Unreadable(String::from("the store does not answer")));
        // That may be better now.
        works(&get(&shelf, "iris").await.unwrap()).await;
        let reads = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let reads = Arc::clone(&reads);
            let read = move || async move {
                reads.fetch_add(1, Ordering::SeqCst);
                Ok(Bytes::from_static(b"no model"))
            };
            let error = shelf.model(digest("text"), Policy::default(), read).await.unwrap_err();
            assert!(matches!(error, InferError::Refused(Refusal::NotOnnx(_))), "{error}");
        }
        assert_eq!(reads.load(Ordering::SeqCst), 1, "a refusal is remembered");
        shelf.forget(digest("text"));
        shelf.forget(digest("iris"));
        assert!(shelf.loaded(digest("iris")).is_none());
        assert_eq!(shelf.stats().bytes, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_policy_is_the_latest_that_was_said() {
        let shelf = shelf(MODELS_BYTES_DEFAULT);
        drop(get(&shelf, "iris").await.unwrap());
        let never = || async { panic!("it is loaded") };
        let lease = shelf.model(digest("iris"), Policy::off(), never).await.unwrap();
        assert!(lease.policy().off);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn threads_that_stop_end_loads() {
        let shelf = shelf(MODELS_BYTES_DEFAULT);
        let lease = get(&shelf, "iris").await.unwrap();
        let threads = Arc::clone(&shelf.threads);
        tokio::task::spawn_blocking(move || threads.stop()).await.unwrap();
        assert_eq!(get(&shelf, "wine").await.unwrap_err(), InferError::Stopping);
        assert_eq!(shelf.lock().waiters, 0);
        drop(lease);
    }
}
