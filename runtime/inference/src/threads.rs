//! The threads that run models. How many is configured, so that models and guests share the cores by choice.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::limits::{THREAD_STACK_BYTES, THREADS_MAX};

/// Something that threads can be asked to do. The queue is as long as there are such things, since each asks at most once at a time
/// (see [`Threads::ask`]): a model, or the load of one.
pub(crate) trait Work: Send + Sync {
    /// Does a piece of the work. Answers when to come back, if at all.
    fn work(self: Arc<Self>) -> Again;

    /// It will not be done any more: the threads stop. May come more than once.
    fn stopped(&self);
}

pub(crate) enum Again {
    /// There is more: after what others asked for meanwhile.
    Now,
    At(Instant),
    /// When it asks.
    No,
}

/// A fixed number of threads, and as many runs at once: one on a caller's own thread counts too.
pub struct Threads {
    shared: Arc<Shared>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    number: usize,
}

struct State {
    ready: VecDeque<Arc<dyn Work>>,
    later: BinaryHeap<Later>,
    later_next: u64,
    /// Runs under way, on these threads or a caller's.
    active: usize,
    stopping: bool,
}

/// The earliest first; of equal ones the first that came.
struct Later {
    at: Reverse<(Instant, u64)>,
    work: Arc<dyn Work>,
}

impl PartialEq for Later {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Later {}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Later {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} threads for models", self.shared.number)
    }
}

impl Threads {
    /// # Errors
    /// The system gives no threads.
    pub fn start(number: usize) -> std::io::Result<Arc<Self>> {
        let number = number.clamp(1, THREADS_MAX);
        let state = State {
            ready: VecDeque::new(),
            later: BinaryHeap::new(),
            later_next: 0,
            active: 0,
            stopping: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            number,
        });
        let started = Self {
            shared,
            handles: Mutex::new(Vec::new()),
        };
        for at in 0..number {
            let shared = Arc::clone(&started.shared);
            let thread = std::thread::Builder::new()
                .name(format!("model-{at}"))
                .stack_size(THREAD_STACK_BYTES);
            let handle = thread.spawn(move || shared.serve())?;
            started
                .handles
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(handle);
        }
        Ok(Arc::new(started))
    }

    /// One for two cores: the other serves guests and connections.
    #[must_use]
    pub fn usual(cores: usize) -> usize {
        (cores / 2).clamp(1, THREADS_MAX)
    }

    #[must_use]
    pub fn number(&self) -> usize {
        self.shared.number
    }

    /// That `work` is done soon. Whoever calls it sees to it that it is not asked for twice at a time.
    pub(crate) fn ask(&self, work: Arc<dyn Work>) {
        let mut state = self.shared.lock();
        if state.stopping {
            drop(state);
            work.stopped();
            return;
        }
        state.ready.push_back(work);
        if state.active < self.shared.number {
            self.shared.changed.notify_one();
        }
    }

    /// A run on the caller's own thread, if nothing waits for one. It ends when the permit goes.
    pub(crate) fn permit(&self) -> Option<Permit> {
        let mut state = self.shared.lock();
        let free = state.active < self.shared.number && state.ready.is_empty() && !state.stopping;
        free.then(|| {
            state.active += 1;
            Permit {
                of: Arc::clone(&self.shared),
            }
        })
    }

    /// Runs under way end; nothing new begins.
    pub fn stop(&self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        let left: Vec<_> = state.ready.drain(..).collect();
        let later: Vec<_> = state.later.drain().collect();
        drop(state);
        // Outside of the lock: it may be the last that holds a model.
        left.into_iter()
            .chain(later.into_iter().map(|later| later.work))
            .for_each(|work| work.stopped());
        self.shared.changed.notify_all();
        let handles: Vec<_> = self
            .handles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .collect();
        let own = std::thread::current().id();
        for handle in handles.into_iter().filter(|handle| handle.thread().id() != own) {
            // A thread ends by itself; what a backend throws is caught before.
            let _ = handle.join();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) struct Permit {
    of: Arc<Shared>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        state.active -= 1;
        if !state.ready.is_empty() {
            self.of.changed.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if state.stopping {
                return;
            }
            let now = Instant::now();
            while state.later.peek().is_some_and(|later| later.at.0.0 <= now) {
                if let Some(later) = state.later.pop() {
                    state.ready.push_back(later.work);
                }
            }
            if state.active < self.number
                && let Some(work) = state.ready.pop_front()
            {
                state.active += 1;
                if state.active < self.number && !state.ready.is_empty() {
                    self.changed.notify_one();
                }
                drop(state);
                let again = Arc::clone(&work).work();
                state = self.lock();
                state.active -= 1;
                if state.stopping {
                    drop(state);
                    work.stopped();
                    state = self.lock();
                } else {
                    match again {
                        Again::Now => state.ready.push_back(work),
                        Again::At(at) => {
                            let number = state.later_next;
                            state.later_next += 1;
                            state.later.push(Later {
                                at: Reverse((at, number)),
                                work,
                            });
                        }
                        Again::No => {
                            // It may be the last that holds a model, whose memory is not given back under the lock.
                            drop(state);
                            drop(work);
                            state = self.lock();
                        }
                    }
                }
                continue;
            }
            // Timers are looked at only where a run could begin: else whoever ends one looks.
            let next = state.later.peek().map(|later| later.at.0.0);
            state = match next {
                Some(at) => {
                    let wait = at.saturating_duration_since(now);
                    self.changed
                        .wait_timeout(state, wait)
                        .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}
