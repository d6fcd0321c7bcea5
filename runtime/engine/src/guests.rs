//! The threads that run guest code, and nothing else does.
//!
//! Each has a runtime of its own instead of sharing a work-stealing one: a call is handed to the thread with the fewest
//! calls and stays there. That saves waking a second thread at each call to look for work (5 us of 11 for the way there
//! and back, measured on two cores), which is a good part of what a call costs.

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
        std::thread::Builder::new()
            .name(format!("skep-guest-{index}"))
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || {
                // Ends with an error when the sender goes: that is the signal.
                let _ = runtime.block_on(pin!(stopped));
                // Not waiting for a module that is still being mapped.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            load: Arc::new(AtomicUsize::new(0)),
            _stop: stop,
        })
    }
}
