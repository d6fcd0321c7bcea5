use std::collections::BTreeMap;

use super::*;
use crate::{DevSwarm, Message};

const KEY: &str = "k";

/// One value: when it happened, when it came, what it is.
type Event = (u64, u64, u64);

/// What was given out, in order, and what was late.
#[derive(Debug, Default, PartialEq)]
struct Told {
    closed: Vec<(u64, u64, Vec<u64>)>,
    late: Vec<u64>,
}

impl Told {
    fn take(&mut self, closed: Vec<Closed<Vec<u64>>>) {
        for mut window in closed {
            window.value.sort_unstable();
            self.closed.push((window.start_ms, window.end_ms, window.value));
        }
    }
}

/// Through the SDK, with every timer that falls due between two values.
fn told(windows: Windows, events: &[Event], end_ms: u64) -> (Told, DevSwarm) {
    let mut dev = DevSwarm::new();
    let mut all = Told::default();
    for (at, clock, value) in events {
        fire(windows, &mut dev, clock.saturating_sub(1), &mut all);
        let message = Message::new(value.to_string()).with_key(KEY).with_accepted_ms(*clock);
        dev.deliver(
            |swarm: &mut Swarm, _: Message| -> crate::Result {
                let seen = windows.add(swarm, *at, |list: &mut Vec<u64>| list.push(*value))?;
                all.take(seen.closed);
                if seen.late {
                    all.late.push(*value);
                }
                Ok(())
            },
            message,
        )
        .unwrap();
    }
    fire(windows, &mut dev, end_ms, &mut all);
    (all, dev)
}

fn fire(windows: Windows, dev: &mut DevSwarm, until: u64, all: &mut Told) {
    dev.fire_until(until, |swarm: &mut Swarm, timer: Timer| -> crate::Result {
        all.take(windows.on_timer::<Vec<u64>>(swarm, &timer)?);
        Ok(())
    })
    .unwrap();
}

/// The rules once more, by looking at everything at each millisecond that matters.
fn naive(windows: Windows, events: &[Event], end_ms: u64) -> Told {
    let mut all = Told::default();
    let mut open: BTreeMap<(u64, u64), Vec<u64>> = BTreeMap::new();
    let (mut ahead, mut mark) = (None::<i64>, 0i64);
    let mut at = 0;
    for clock in 0..=end_ms {
        let close = |open: &mut BTreeMap<(u64, u64), Vec<u64>>, mark: i64, all: &mut Told| {
            let mut over: Vec<_> = open.keys().copied().filter(|(_, end)| *end as i64 <= mark).collect();
            over.sort_by_key(|(start, end)| (*end, *start));
            for window in over {
                let mut values = open.remove(&window).unwrap();
                values.sort_unstable();
                all.closed.push((window.0, window.1, values));
            }
        };
        while let Some((when, came, value)) = events.get(at).copied().filter(|(_, came, _)| *came == clock) {
            let _ = came;
            at += 1;
            ahead = Some(ahead.unwrap_or(i64::MIN).max(when as i64 - clock as i64));
            mark = mark.max(clock as i64 + ahead.unwrap() - windows.wait_ms as i64);
            close(&mut open, mark, &mut all);
            let mut late = true;
            match windows.form {
                Form::Fixed { size_ms, every_ms } => {
                    for start in (0..=when).filter(|s| s % every_ms == 0 && s + size_ms > when) {
                        if (start + size_ms) as i64 > mark {
                            late = false;
                            open.entry((start, start + size_ms)).or_default().push(value);
                        }
                    }
                }
                Form::Session { gap_ms } => {
                    let own = (when, when + gap_ms);
                    let touched: Vec<_> = open.keys().copied().filter(|(s, e)| when < *e && *s < own.1).collect();
                    if !touched.is_empty() || own.1 as i64 > mark {
                        late = false;
                        let mut whole = (own, vec![value]);
                        for other in touched {
                            whole.0 = (whole.0.0.min(other.0), whole.0.1.max(other.1));
                            whole.1.extend(open.remove(&other).unwrap());
                        }
                        open.insert(whole.0, whole.1);
                    }
                }
            }
            if late {
                all.late.push(value);
            }
        }
        if let Some(ahead) = ahead {
            mark = mark.max(clock as i64 + ahead - windows.wait_ms as i64);
            close(&mut open, mark, &mut all);
        }
    }
    all
}

/// The generator of Knuth's MMIX: tests need no better one.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[test]
fn random_streams_give_what_a_naive_model_gives() {
    for seed in 0..600 {
        let mut chance = Chance(seed);
        let unit = 1 + chance.below(20);
        let form = match chance.below(3) {
            0 => Windows::tumbling(Duration::from_millis(5 * unit)),
            1 => Windows::sliding(Duration::from_millis(6 * unit), Duration::from_millis(2 * unit)),
            _ => Windows::session(Duration::from_millis(4 * unit)),
        };
        let wait = chance.below(4) * unit;
        let windows = form
            .wait(Duration::from_millis(wait))
            .remember(Duration::from_secs(3_600));
        let mut clock = 1_000;
        let events: Vec<Event> = (0..40)
            .map(|value| {
                clock += 1 + chance.below(3 * unit);
                // Mostly a little late, sometimes much, sometimes ahead.
                let at = match chance.below(10) {
                    0 => clock - chance.below(30 * unit).min(clock),
                    1 => clock + chance.below(2 * unit),
                    _ => clock - chance.below(3 * unit),
                };
                (at, clock, value)
            })
            .collect();
        let end = clock + 200 * unit;
        let (sdk, _) = told(windows, &events, end);
        assert_eq!(sdk, naive(windows, &events, end), "seed {seed}: {windows:?} {events:?}");
        // Each value is somewhere.
        if !matches!(windows.form, Form::Fixed { size_ms, every_ms } if size_ms != every_ms) {
            let counted: usize = sdk.closed.iter().map(|(_, _, values)| values.len()).sum();
            assert_eq!(counted + sdk.late.len(), events.len(), "seed {seed}");
        }
    }
}

#[test]
fn nothing_is_left_of_a_key_that_falls_silent() {
    let windows = Windows::session(Duration::from_millis(10)).remember(Duration::from_millis(500));
    let events = [(100, 100, 1), (105, 106, 2), (300, 301, 3)];
    let (sdk, mut dev) = told(windows, &events, 700);
    assert_eq!(sdk.closed, [(100, 115, vec![1, 2]), (300, 310, vec![3])]);
    assert_eq!(dev.pending_timers().len(), 1, "it is remembered");
    assert!(dev.stored(KEY, "window/main").is_some());
    let mut all = Told::default();
    fire(windows, &mut dev, 2_000, &mut all);
    assert_eq!(all, Told::default());
    assert!(dev.pending_timers().is_empty());
    assert_eq!(dev.state_names(KEY), Vec::<&str>::new());
}

#[test]
fn what_is_open_is_all_that_is_kept() {
    let windows = Windows::tumbling(Duration::from_millis(10));
    let (_, dev) = told(windows, &[(5, 1_000, 1), (15, 1_010, 2), (25, 1_020, 3)], 1_020);
    assert_eq!(dev.state_names(KEY), ["window/main", "window/main/20"]);
}

#[test]
fn a_wrong_clock_is_rejected_where_that_is_asked_for() {
    let windows = Windows::tumbling(Duration::from_millis(10)).ahead(Duration::from_millis(50));
    let mut dev = DevSwarm::new();
    let mut add = |at: u64| {
        let message = Message::new("").with_key(KEY).with_accepted_ms(1_000);
        dev.deliver(
            |swarm: &mut Swarm, _: Message| -> crate::Result {
                windows.add(swarm, at, |n: &mut u64| *n += 1).map(|_| ())
            },
            message,
        )
    };
    assert!(add(1_050).is_ok());
    let refused = add(1_051).unwrap_err();
    assert!(
        matches!(refused.failure(), crate::Failure::Reject(why) if why.contains("51 ms ahead")),
        "{refused}"
    );
    assert!(add(u64::MAX).is_err());
}

#[test]
fn too_many_open_windows_are_a_named_failure_and_absurd_times_no_panic() {
    let windows = Windows::tumbling(Duration::from_millis(1)).wait(Duration::from_secs(100));
    let events: Vec<Event> = (0..OPEN_MAX as u64).map(|i| (10_000 + i, 20_000, i)).collect();
    let (_, mut dev) = told(windows, &events, 20_000);
    let mut add = |at: u64| {
        let message = Message::new("").with_key(KEY).with_accepted_ms(20_000);
        dev.deliver(
            |swarm: &mut Swarm, _: Message| -> crate::Result {
                windows.add(swarm, at, |n: &mut Vec<u64>| n.push(1)).map(|_| ())
            },
            message,
        )
    };
    let refused = add(9_000).unwrap_err();
    assert!(
        matches!(refused.failure(), crate::Failure::Fail { reason, .. } if reason == "windows"),
        "{refused}"
    );
    assert!(add(u64::MAX).is_ok(), "it closes all others");
    assert!(add(0).is_ok());
    for form in [
        Windows::session(Duration::MAX),
        Windows::tumbling(Duration::MAX),
        Windows::sliding(Duration::from_secs(9), Duration::from_millis(10)),
    ] {
        let (sdk, _) = told(form, &[(u64::MAX, 5, 1), (0, 6, 2), (7, 7, 3)], 10);
        // Each is counted, late, or waits for the end of time.
        let counted: usize = sdk.closed.iter().map(|(_, _, values)| values.len()).sum();
        assert!(counted + sdk.late.len() >= 2, "{form:?}: {sdk:?}");
    }
}
