//! Whose turn it is on a guest thread. Guests of a thread share it by turns of at most an epoch_tick; where more than one tenant wants
//! one, the next is who has used the least guest time by its weight (start-time fair queueing, over all threads of the process).
//!
//! Guest time is the thread's CPU clock around each turn. Not ticks: most calls are far shorter than one, and a tick also passes while the
//! machine is busy elsewhere; nobody is to pay for that. It costs two system calls a turn, about half a microsecond.
//!
//! A thread with one tenant has no queue: a call that comes runs. With several, each call that is ready stands in line with those of its
//! tenant, and one at a time is let go. It is woken for that, so its task goes behind all that can run on the thread, and what these bring is
//! in line too when it is its turn: then it is looked once more who has used the least.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use skep_model::limits::EPOCH_TICK_MS;
use tokio::time::Sleep;

use crate::share::{Meter, Share};

/// Turns after which a thread on which a second tenant had none counts as one tenant's again.
const ALONE_AFTER: u32 = 64;
/// A call that was let go and does not come (its task waits for something else) loses its turn. Those in line look so often.
const STALE: Duration = Duration::from_millis(2 * EPOCH_TICK_MS);

/// A guest computes where calls of another tenant come. Read and cleared by the ticker, which ticks faster then.
pub(crate) static CROWDED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
    /// The guest gave its turn back, and wants another.
    static YIELDED: Cell<bool> = const { Cell::new(false) };
    /// What the present call used before this turn, and the thread's clock when the turn began.
    static TURN: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// To be called where the guest yields. Returns the CPU time of the call so far, in epoch_ticks.
pub(crate) fn yields() -> u64 {
    YIELDED.set(true);
    let (before, began) = TURN.get();
    (before + cpu_ns().saturating_sub(began)) / (EPOCH_TICK_MS * 1_000_000)
}

fn cpu_ns() -> u64 {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `at` is a timespec that lives until the call returns; the clock is there on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut at) };
    u64::try_from(at.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(at.tv_nsec).unwrap_or(0)
}

/// Since the first look.
fn now_ns() -> u64 {
    static BORN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BORN.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Default)]
struct Turns {
    /// Those that are ready, a line a tenant; none is empty.
    lines: Vec<Line>,
    next: Option<Next>,
    tickets: u64,
    /// Whose turn was the last, by address, and how many more to count the thread as shared.
    last: usize,
    shared: u32,
}

struct Line {
    share: Arc<Share>,
    calls: VecDeque<(u64, Waker)>,
}

/// Who was let go.
struct Next {
    ticket: u64,
    share: Arc<Share>,
    since: Instant,
}

impl Turns {
    fn stand_in_line(&mut self, share: &Arc<Share>, waker: &Waker) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        self.put(share, ticket, waker, false);
        ticket
    }

    fn put(&mut self, share: &Arc<Share>, ticket: u64, waker: &Waker, front: bool) {
        let at = self.lines.iter().position(|line| Arc::ptr_eq(&line.share, share));
        let at = at.unwrap_or_else(|| {
            share.catch_up();
            self.lines.push(Line {
                share: Arc::clone(share),
                calls: VecDeque::new(),
            });
            self.lines.len() - 1
        });
        let call = (ticket, waker.clone());
        if front {
            self.lines[at].calls.push_front(call);
        } else {
            self.lines[at].calls.push_back(call);
        }
        if self.lines.len() > 1 || self.next.as_ref().is_some_and(|next| !Arc::ptr_eq(&next.share, share)) {
            CROWDED.store(true, Ordering::Relaxed);
        }
    }

    fn least(&self) -> Option<usize> {
        (0..self.lines.len()).min_by_key(|at| self.lines[*at].share.spent())
    }

    /// Lets somebody go, unless somebody was.
    fn advance(&mut self) {
        if self.next.as_ref().is_some_and(|next| next.since.elapsed() < STALE) {
            return;
        }
        // Who did not come stands in line anew when it does.
        self.next = None;
        let Some(at) = self.least() else { return };
        let Some((ticket, waker)) = self.lines[at].calls.pop_front() else {
            return;
        };
        let share = Arc::clone(&self.lines[at].share);
        if self.lines[at].calls.is_empty() {
            self.lines.swap_remove(at);
        }
        self.next = Some(Next {
            ticket,
            share,
            since: Instant::now(),
        });
        waker.wake();
    }

    /// Whether the call may have a turn now; else it stands in line.
    fn may(&mut self, share: &Arc<Share>, ticket: &mut Option<u64>, waker: &Waker) -> bool {
        let me = Arc::as_ptr(share) as usize;
        let Some(mine) = *ticket else {
            let nobody = self.lines.is_empty() && self.next.is_none();
            if nobody && self.shared == 0 && (self.last == me || self.last == 0) {
                return true;
            }
            *ticket = Some(self.stand_in_line(share, waker));
            self.advance();
            return false;
        };
        if self.next.as_ref().is_some_and(|next| next.ticket == mine) {
            let less = self
                .least()
                .is_some_and(|at| self.lines[at].share.spent() < share.spent());
            self.next = None;
            if !less {
                *ticket = None;
                return true;
            }
            self.put(share, mine, waker, true);
            self.advance();
            return false;
        }
        let mut lines = self.lines.iter_mut().flat_map(|line| line.calls.iter_mut());
        match lines.find(|call| call.0 == mine) {
            Some(call) => call.1.clone_from(waker),
            None => *ticket = Some(self.stand_in_line(share, waker)),
        }
        self.advance();
        false
    }

    fn ended(&mut self, share: &Arc<Share>) {
        let me = Arc::as_ptr(share) as usize;
        if self.last == me {
            self.shared = self.shared.saturating_sub(1);
        } else {
            if self.last != 0 {
                self.shared = ALONE_AFTER;
            }
            self.last = me;
        }
        self.advance();
    }

    fn leave(&mut self, ticket: u64) {
        if self.next.as_ref().is_some_and(|next| next.ticket == ticket) {
            self.next = None;
        }
        for line in &mut self.lines {
            line.calls.retain(|call| call.0 != ticket);
        }
        self.lines.retain(|line| !line.calls.is_empty());
        self.advance();
    }
}

/// One call's turns.
pub(crate) struct Turn {
    share: Arc<Share>,
    meter: Arc<Meter>,
    ticket: Option<u64>,
    used_ns: u64,
    /// Its last turn ended because it was over, not because the guest waits for something.
    computes: bool,
    /// Since when it waits for a turn or for its cap.
    since: Option<Instant>,
    waited: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Turn {
    pub(crate) fn new(share: &Arc<Share>, meter: &Arc<Meter>) -> Self {
        Self {
            share: Arc::clone(share),
            meter: Arc::clone(meter),
            ticket: None,
            used_ns: 0,
            computes: false,
            since: None,
            waited: Duration::ZERO,
            alarm: None,
        }
    }

    /// CPU time of its guest so far.
    pub(crate) fn used(&self) -> Duration {
        Duration::from_nanos(self.used_ns)
    }

    /// How long it waited for others. That is no time of its own.
    pub(crate) fn waited(&self) -> Duration {
        self.waited + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(crate) fn computes(&self) -> bool {
        self.computes
    }

    /// Polls the guest if it is its turn. Its task is woken when it is.
    pub(crate) fn poll<T>(&mut self, cx: &mut Context<'_>, guest: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        if self.ticket.is_none()
            && let Some(wait) = self.share.over_cap(now_ns)
        {
            return self.wait(cx, wait);
        }
        let may = TURNS.with_borrow_mut(|turns| turns.may(&self.share, &mut self.ticket, cx.waker()));
        if !may {
            return self.wait(cx, STALE);
        }
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
            self.alarm = None;
        }
        self.share.catch_up();
        let began = cpu_ns();
        TURN.set((self.used_ns, began));
        self.computes = false;
        YIELDED.set(false);
        let polled = guest(cx);
        let took = cpu_ns().saturating_sub(began);
        self.used_ns += took;
        self.meter.ran(took);
        self.share
            .charge(took, if self.share.is_capped() { now_ns() } else { 0 });
        TURNS.with_borrow_mut(|turns| {
            self.computes = YIELDED.take() && polled.is_pending();
            // Who is over its cap waits for that first. The guest's yield has woken its task.
            if self.computes && self.share.over_cap(now_ns).is_none() {
                self.ticket = Some(turns.stand_in_line(&self.share, cx.waker()));
            }
            turns.ended(&self.share);
            // Also where nobody is in line: one that goes to wait for its cap leaves none, and the others came while it had its turn.
            if self.computes && turns.shared > 0 {
                CROWDED.store(true, Ordering::Relaxed);
            }
        });
        polled
    }

    /// Until it is woken, and no longer than said.
    fn wait<T>(&mut self, cx: &mut Context<'_>, no_longer: Duration) -> Poll<T> {
        self.since.get_or_insert_with(Instant::now);
        let mut alarm = Box::pin(tokio::time::sleep(no_longer));
        if alarm.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.alarm = Some(alarm);
        Poll::Pending
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            // The thread may be ending.
            let _ = TURNS.try_with(|turns| turns.borrow_mut().leave(ticket));
        }
    }
}
