//! Windows over event time: values of a key, gathered by when they happened.
//!
//! ```
//! use std::time::Duration;
//! use skep::window::Windows;
//! use skep::{Message, Swarm, Timer};
//!
//! const MINUTES: Windows = Windows::tumbling(Duration::from_secs(60)).wait(Duration::from_secs(5));
//!
//! #[skep::bee(timer = close)]
//! fn count(swarm: &mut Swarm, message: Message) -> skep::Result {
//!     let at_ms: u64 = message.text()?.parse()?;
//!     let seen = MINUTES.add(swarm, at_ms, |count: &mut u64| *count += 1)?;
//!     for window in seen.closed {
//!         swarm.publish(format!("{} {}", window.start_ms, window.value));
//!     }
//!     if seen.late {
//!         swarm.publish_to("late", message.into_payload());
//!     }
//!     Ok(())
//! }
//!
//! fn close(swarm: &mut Swarm, timer: Timer) -> skep::Result {
//!     for window in MINUTES.on_timer::<u64>(swarm, &timer)? {
//!         swarm.publish(format!("{} {}", window.start_ms, window.value));
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # When a window closes
//! Each key has a *watermark*: the event time up to which no more is expected. It is the latest event time seen, less
//! [`wait`](Windows::wait), and it runs on with the clock while nothing comes, so that the last window of a key that falls
//! silent closes too (a timer sees to it; nothing polls). A window closes once, when the watermark reaches its end. What
//! comes for a window that closed is *late*: it is given back, and counted nowhere.
//!
//! The clock is [`Swarm::now_ms`]: when a message was accepted, when a timer was due. So a repeated attempt decides the
//! same, and a test drives it ([`DevSwarm::fire_until`](crate::DevSwarm::fire_until)). It also means that a stage that was
//! down for longer than `wait` may close windows before it has worked off what waits in its inbox: choose `wait` for the
//! pauses that you expect.
//!
//! # What it keeps
//! In the key's state, one value a window and one for the set, all named `window/…`. Closed windows are deleted with the
//! commit that gives them out, and the last value goes when the key was silent for [`remember`](Windows::remember).
//!
//! The model is Akidau et al., *The Dataflow Model* (VLDB 2015), with watermarks a key, as Bytewax's event clock has them.

mod book;
#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests;

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::swarm::Swarm;
use crate::timer::Timer;
use book::Book;

/// Open windows of one key in one set: each is a value in its state, of which a node keeps 1,000.
const OPEN_MAX: usize = 900;
/// How long a silent key is remembered unless [`Windows::remember`] says otherwise: one hour.
const REMEMBER_MS: u64 = 3_600_000;

/// A set of windows: their form, how long they wait, and a name. Cheap; make it a `const`.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    form: Form,
    wait_ms: u64,
    remember_ms: u64,
    ahead_ms: u64,
    name: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    /// `[n * every, n * every + size)` for each n.
    Fixed { size_ms: u64, every_ms: u64 },
    /// From the first event to `gap` after the last.
    Session { gap_ms: u64 },
}

/// What windows gather.
///
/// Sums and lists are, and whatever of yours says how two become one.
pub trait Gather: Default + Serialize + DeserializeOwned {
    /// Takes in `later`: a value between two sessions made them one. Windows of fixed size never do this.
    fn merge(&mut self, later: Self);
}

macro_rules! sums {
    ($($number:ty),+) => {
        $(impl Gather for $number {
            fn merge(&mut self, later: Self) {
                *self += later;
            }
        })+
    };
}
sums!(u32, u64, usize, i32, i64, f32, f64);

impl<T: Serialize + DeserializeOwned> Gather for Vec<T> {
    fn merge(&mut self, later: Self) {
        self.extend(later);
    }
}

/// A window that closed, with what it gathered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed<A> {
    /// Its first millisecond, since the Unix epoch.
    pub start_ms: u64,
    /// The first millisecond behind it.
    pub end_ms: u64,
    /// What it gathered.
    pub value: A,
}

/// What came of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen<A> {
    /// Windows that this value's time closed, by their end.
    pub closed: Vec<Closed<A>>,
    /// Every window that it belongs to had closed before: it is counted nowhere. The usual thing is to publish it to an
    /// output of its own.
    pub late: bool,
}

impl Windows {
    /// Windows side by side, aligned to the Unix epoch.
    ///
    /// # Panics
    /// If `size` is under a millisecond; at compile time in a `const`.
    #[must_use]
    pub const fn tumbling(size: Duration) -> Self {
        Self::sliding(size, size)
    }

    /// Windows of `size`, one beginning at each multiple of `every`, so that each value is in `size / every` of them.
    ///
    /// # Panics
    /// If `every` is under a millisecond or above `size`, or a value would be in more than 900 windows; at compile time in a
    /// `const`.
    #[must_use]
    pub const fn sliding(size: Duration, every: Duration) -> Self {
        let (size_ms, every_ms) = (ms(size), ms(every));
        assert!(every_ms > 0, "windows last a millisecond or more");
        assert!(
            every_ms <= size_ms,
            "`every` is at most `size`, or values fall between windows"
        );
        assert!(
            size_ms.div_ceil(every_ms) <= OPEN_MAX as u64,
            "a value is in at most 900 windows: choose a larger `every`"
        );
        Self::of(Form::Fixed { size_ms, every_ms })
    }

    /// Windows that last until nothing came for `gap`.
    ///
    /// # Panics
    /// If `gap` is under a millisecond; at compile time in a `const`.
    #[must_use]
    pub const fn session(gap: Duration) -> Self {
        let gap_ms = ms(gap);
        assert!(gap_ms > 0, "a gap is a millisecond or more");
        Self::of(Form::Session { gap_ms })
    }

    const fn of(form: Form) -> Self {
        Self {
            form,
            wait_ms: 0,
            remember_ms: REMEMBER_MS,
            ahead_ms: u64::MAX,
            name: "main",
        }
    }

    /// How much later than others of its key a value may come and still count. None by default.
    #[must_use]
    pub const fn wait(mut self, wait: Duration) -> Self {
        self.wait_ms = ms(wait);
        self
    }

    /// How long after its last window closed a silent key's watermark is kept, an hour by default. What comes after that
    /// is not seen as late, whatever its time.
    #[must_use]
    pub const fn remember(mut self, time: Duration) -> Self {
        self.remember_ms = ms(time);
        self
    }

    /// How far ahead of the clock a value's time may be; what is further is rejected. Without it one value from a device whose
    /// clock is wrong makes all others of its key late.
    #[must_use]
    pub const fn ahead(mut self, most: Duration) -> Self {
        self.ahead_ms = ms(most);
        self
    }

    /// Tells several sets of one Bee apart.
    #[must_use]
    pub const fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Gathers something that happened at `at_ms` into each open window that it belongs to, by `gather`, and gives out what
    /// closed.
    ///
    /// # Errors
    /// Of state and timers, above all without `key:` and `state: true` in the manifest; a reject beyond [`ahead`](Self::ahead); `windows` where the key has as many open
    /// windows as it may.
    pub fn add<A: Gather>(&self, swarm: &mut Swarm, at_ms: u64, gather: impl FnMut(&mut A)) -> crate::Result<Seen<A>> {
        if at_ms > swarm.now_ms().saturating_add(self.ahead_ms) {
            return Err(Error::reject(format!(
                "event time {at_ms} is {} ms ahead of the clock, at most {} may be",
                at_ms - swarm.now_ms(),
                self.ahead_ms
            )));
        }
        let at_ms = at_ms.min(TIME_MAX);
        let mut book = Book::read(self, swarm)?;
        let closed = book.advance(swarm, Some(at_ms))?;
        let late = book.gather(swarm, at_ms, gather)?;
        book.write(swarm)?;
        Ok(Seen { closed, late })
    }

    /// Gives out what closed because its time has come. Nothing for a timer of somebody else, so that several sets and
    /// timers of your own share one function.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn on_timer<A: Gather>(&self, swarm: &mut Swarm, timer: &Timer) -> crate::Result<Vec<Closed<A>>> {
        if timer.name() != self.timer() {
            return Ok(Vec::new());
        }
        let mut book = Book::read(self, swarm)?;
        book.fired();
        let closed = book.advance(swarm, None)?;
        book.write(swarm)?;
        Ok(closed)
    }

    /// The windows that a value of this time belongs to, of fixed size, by their start.
    fn around(&self, at_ms: u64) -> Vec<(u64, u64)> {
        let Form::Fixed { size_ms, every_ms } = self.form else {
            return Vec::new();
        };
        let last = at_ms - at_ms % every_ms;
        // The first windows since the epoch are cut off.
        let mut starts: Vec<u64> = std::iter::successors(Some(last), |start| start.checked_sub(every_ms))
            .take_while(|start| start.saturating_add(size_ms) > at_ms)
            .collect();
        starts.reverse();
        starts.into_iter().map(|s| (s, end_of(s, size_ms))).collect()
    }

    fn timer(&self) -> String {
        format!("window/{}", self.name)
    }
}

/// The end of time: whatever is later, or lasts longer, ends here.
const TIME_MAX: u64 = i64::MAX as u64;

fn end_of(start_ms: u64, lasts_ms: u64) -> u64 {
    start_ms.saturating_add(lasts_ms).min(TIME_MAX)
}

const fn ms(time: Duration) -> u64 {
    let ms = time.as_millis();
    if ms > u64::MAX as u128 { u64::MAX } else { ms as u64 }
}

fn too_many() -> Error {
    Error::fail(
        "windows",
        format!("this key has {OPEN_MAX} open windows: choose larger ones, or a shorter `wait`"),
    )
}
