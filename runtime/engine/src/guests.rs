//! The threads that run guest code, and nothing else does.
//!
//! Each has a runtime of its own instead of sharing a work-stealing one: a call is handed to the thread with the fewest
//! calls and stays there. That saves waking a second thread at each call to look for work (5 us of 11 for the way there
//! and back, measured on two cores), which is a good part of what a call costs.
//!
//! Whoever calls Bees one after the other does best to live here itself (see [`crate::Engine::seats`]): a call from one of these
//! threads runs where it is made, and nobody is woken for it (a wake-up costs 30 to 50 us on a virtual machine, a small guest 60).

use std::cell::RefCell;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Stack of a guest thread. Guests have stacks of their own; this one is for what the host does with modules and values.
pub(crate) const THREAD_STACK_BYTES: usize = 4 << 20;
/// Guests yield once an epoch_tick, so polls can be rare: new calls are looked for at each, timers at every fourth.
const POLLS_PER_CALL_CHECK: u32 = 1;
const POLLS_PER_TIMER_CHECK: u32 = 4;

pub(crate) struct Guests {
    /// At least one.
    threads: Vec<Thread>,
}

thread_local! {
    /// The load of the guest thread that this is.
    static HERE: RefCell<Option<Arc<AtomicUsize>>> = const { RefCell::new(None) };
}

struct Thread {
    handle: Handle,
    load: Arc<AtomicUsize>,
    /// The thread ends when this is dropped.
    _stop: oneshot::Sender<()>,
}

/// Counts a task, also one that is aborted or panics.
pub(crate) struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Guests {
    pub(crate) fn start(count: usize) -> std::io::Result<Self> {
        let threads = (0..count.max(1)).map(Thread::start).collect::<Result<_, _>>()?;
        Ok(Self { threads })
    }

    /// Runs a task on the least busy thread. The thread counts as busy until the task drops its [`Load`].
    pub(crate) fn spawn<T, F>(&self, task: impl FnOnce(Load) -> F) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let thread = self.least_busy();
        thread.load.fetch_add(1, Ordering::Relaxed);
        thread.handle.spawn(task(Load(Arc::clone(&thread.load))))
    }

    /// Counts a call on the calling thread, if that is one of these and none is less busy.
    pub(crate) fn here(&self) -> Option<Load> {
        let best = self.least_busy();
        HERE.with_borrow(|here| {
            let load = here.as_ref()?;
            if load.load(Ordering::Relaxed) > best.load.load(Ordering::Relaxed) {
                return None;
            }
            // Of this engine: a process may hold two.
            self.threads.iter().find(|thread| Arc::ptr_eq(&thread.load, load))?;
            load.fetch_add(1, Ordering::Relaxed);
            Some(Load(Arc::clone(load)))
        })
    }

    /// Runs a task on a thread that has nothing to do and is not the calling one; gives it back where there is none. The thread counts as
    /// busy until the task ends.
    pub(crate) fn spawn_aside<F>(&self, task: F) -> Result<(), F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mine =
            |thread: &&Thread| HERE.with_borrow(|here| here.as_ref().is_some_and(|h| Arc::ptr_eq(h, &thread.load)));
        // Two that ask at once may take the same: then one waits for the other, as both would have here.
        let idle = |thread: &&Thread| thread.load.load(Ordering::Relaxed) == 0 && !mine(thread);
        let Some(thread) = self.threads.iter().find(idle) else {
            return Err(task);
        };
        thread.load.fetch_add(1, Ordering::Relaxed);
        let load = Load(Arc::clone(&thread.load));
        thread.handle.spawn(async move {
            task.await;
            drop(load);
        });
        Ok(())
    }

    pub(crate) fn handles(&self) -> Vec<Handle> {
        self.threads.iter().map(|thread| thread.handle.clone()).collect()
    }

    /// The first among equals: calls that come one after the other stay on one thread, and its caches.
    fn least_busy(&self) -> &Thread {
        let mut best = &self.threads[0];
        for thread in &self.threads {
            let load = thread.load.load(Ordering::Relaxed);
            if load == 0 {
                return thread;
            }
            if load < best.load.load(Ordering::Relaxed) {
                best = thread;
            }
        }
        best
    }
}

impl Thread {
    fn start(index: usize) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .global_queue_interval(POLLS_PER_CALL_CHECK)
            .event_interval(POLLS_PER_TIMER_CHECK)
            .thread_name("skep-load")
            .thread_stack_size(THREAD_STACK_BYTES)
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let load = Arc::new(AtomicUsize::new(0));
        let own = Arc::clone(&load);
        std::thread::Builder::new()
            .name(format!("skep-guest-{index}"))
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || {
                HERE.set(Some(own));
                // Ends with an error when the sender goes: that is the signal.
                let _ = runtime.block_on(pin!(stopped));
                // Not waiting for a module that is still being mapped.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            load,
            _stop: stop,
        })
    }
}
