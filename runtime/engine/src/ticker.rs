//! The epoch_tick: a thread that advances wasmtime's epoch while guest code runs, and sleeps for good when none does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use skep_model::limits::{EPOCH_TICK_CROWDED_US, EPOCH_TICK_MS};

use crate::turns::CROWDED;

/// Ticks that go on after the last call, so that a busy node need not wake the thread at each call.
const LINGER_TICKS: u32 = 50;
/// Short ticks that go on after a guest computed beside another tenant's: 10 s of guests that run, so that who calls now and then finds them.
const CROWDED_TICKS: u32 = 20_000;

/// The shortest that the kernel gives.
const TICK_SLICE_NS: u64 = 100_000;

pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
    join: Option<JoinHandle<()>>,
}

struct Shared {
    running: AtomicUsize,
    asleep: AtomicBool,
    stop: AtomicBool,
}

/// While one lives, epochs advance.
pub(crate) struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ticker {
    pub(crate) fn start(engine: wasmtime::Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            running: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let inside = Arc::clone(&shared);
        let join = std::thread::Builder::new()
            .name("skep-epoch".into())
            .spawn(move || tick(&inside, &engine))?;
        Ok(Self {
            shared,
            thread: join.thread().clone(),
            join: Some(join),
        })
    }

    pub(crate) fn run(&self) -> Running {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        // The load keeps a busy node from writing a shared cache line at each call.
        if self.shared.asleep.load(Ordering::SeqCst) && self.shared.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        Running(Arc::clone(&self.shared))
    }

    #[cfg(test)]
    fn asleep(&self) -> bool {
        self.shared.asleep.load(Ordering::SeqCst)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.unpark();
        if let Some(join) = self.join.take() {
            // It has nothing to say, and it cannot panic.
            let _ = join.join();
        }
    }
}

/// Asks the kernel to let this thread run as soon as it wakes. A guest's thread that woke itself a moment ago keeps its core for the rest of a
/// time slice otherwise, some 3 ms, and a tick that waits for that comes ten times too late. Shorter slices preempt longer ones, at no
/// privilege, since Linux 6.12; earlier kernels take the call and change nothing.
fn ask_for_a_short_slice() {
    // SAFETY: all zeros are a valid value of this plain record.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of_val(&attr);
    // SAFETY: the record lives until both calls return, and has the size that is said; 0 is the calling thread. What fails changes nothing.
    unsafe {
        if libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) == 0 {
            attr.sched_runtime = TICK_SLICE_NS;
            libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0);
        }
    }
}

fn tick(shared: &Shared, engine: &wasmtime::Engine) {
    ask_for_a_short_slice();
    let (mut quiet, mut crowded) = (0, 0);
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.running.load(Ordering::SeqCst) > 0 {
            quiet = 0;
        } else {
            quiet += 1;
        }
        if quiet <= LINGER_TICKS {
            if CROWDED.swap(false, Ordering::Relaxed) {
                crowded = CROWDED_TICKS;
            }
            crowded = crowded.saturating_sub(1);
            let tick = if crowded > 0 {
                Duration::from_micros(EPOCH_TICK_CROWDED_US)
            } else {
                Duration::from_millis(EPOCH_TICK_MS)
            };
            std::thread::park_timeout(tick);
            engine.increment_epoch();
            continue;
        }
        // Say that we sleep, then look once more: a call that began between the two sees the flag and wakes us.
        shared.asleep.store(true, Ordering::SeqCst);
        while shared.asleep.load(Ordering::SeqCst)
            && shared.running.load(Ordering::SeqCst) == 0
            && !shared.stop.load(Ordering::SeqCst)
        {
            std::thread::park();
        }
        shared.asleep.store(false, Ordering::SeqCst);
        quiet = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sleeps_when_nothing_runs_and_wakes_for_a_call() {
        let ticker = Ticker::start(wasmtime::Engine::default()).unwrap();
        let wait = |asleep: bool| {
            for _ in 0..400 {
                if ticker.asleep() == asleep {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            panic!("asleep never became {asleep}");
        };
        wait(true);
        let running = ticker.run();
        wait(false);
        drop(running);
        wait(true);
    }
}
