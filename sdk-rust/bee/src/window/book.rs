//! What is kept of one key's windows, and the rules.

use serde::{Deserialize, Serialize};

use super::{Closed, Form, Gather, OPEN_MAX, TIME_MAX, Windows, end_of, too_many};
use crate::swarm::Swarm;

/// From when, and until before when.
type Span = (u64, u64);

/// What is known of a key, as it stands in its state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// How far event time was ahead of the clock at most; below 0: behind. The watermark is the clock, and this, less the wait, so
    /// one number says when each window closes while nothing comes.
    ahead: i64,
    /// The highest watermark so far: the clock of several doors may step back a little, a watermark may not.
    mark: u64,
    /// When the timer is set to.
    timer: Option<u64>,
    /// Open windows, by start.
    open: Vec<Span>,
}

pub(super) struct Book<'w> {
    windows: &'w Windows,
    /// `None`: the key is new, or was forgotten.
    before: Option<Kept>,
    now: Option<Kept>,
}

impl<'w> Book<'w> {
    pub fn read(windows: &'w Windows, swarm: &mut Swarm) -> crate::Result<Self> {
        let before: Option<Kept> = swarm.state().get_json(&windows.timer())?;
        Ok(Self {
            windows,
            now: before.clone(),
            before,
        })
    }

    /// The timer is not set any more.
    pub fn fired(&mut self) {
        if let Some(now) = &mut self.now {
            now.timer = None;
        }
    }

    fn value(&self, start: u64) -> String {
        format!("window/{}/{start}", self.windows.name)
    }

    /// Moves the watermark on, by the clock and by an event if there is one, and closes what it reaches.
    pub fn advance<A: Gather>(&mut self, swarm: &mut Swarm, event_ms: Option<u64>) -> crate::Result<Vec<Closed<A>>> {
        let clock = swarm.now_ms();
        let Some(now) = (match event_ms {
            Some(at) => {
                let ahead = signed(at).saturating_sub(signed(clock));
                let now = self.now.get_or_insert_with(|| Kept {
                    ahead,
                    ..Kept::default()
                });
                now.ahead = now.ahead.max(ahead);
                Some(now)
            }
            None => self.now.as_mut(),
        }) else {
            return Ok(Vec::new());
        };
        // In this order, so that nothing is cut off where an event lies at the end of time.
        let reached = signed(clock)
            .saturating_sub(signed(self.windows.wait_ms))
            .saturating_add(now.ahead);
        now.mark = now.mark.max(u64::try_from(reached).unwrap_or(0));
        let mark = now.mark;
        let (mut over, open): (Vec<_>, Vec<_>) = now.open.iter().partition(|(_, end)| *end <= mark);
        now.open = open;
        over.sort_by_key(|(start, end)| (*end, *start));
        let mut closed = Vec::with_capacity(over.len());
        for (start_ms, end_ms) in over {
            let name = self.value(start_ms);
            closed.push(Closed {
                start_ms,
                end_ms,
                value: swarm.state().get_json(&name)?.unwrap_or_default(),
            });
            swarm.state().delete(&name)?;
        }
        Ok(closed)
    }

    /// Gathers into the open windows that a value belongs to. Returns whether there is none: it is late.
    pub fn gather<A: Gather>(
        &mut self,
        swarm: &mut Swarm,
        at_ms: u64,
        mut gather: impl FnMut(&mut A),
    ) -> crate::Result<bool> {
        let mark = self.now.as_ref().map_or(0, |now| now.mark);
        let wanted = match self.windows.form {
            Form::Fixed { .. } => self.windows.around(at_ms),
            Form::Session { gap_ms } => Vec::from_iter(self.session::<A>(swarm, at_ms, gap_ms, mark)?),
        };
        let mut late = true;
        for (start, end) in wanted {
            if end <= mark {
                continue;
            }
            late = false;
            let name = self.value(start);
            let mut state = swarm.state();
            let mut value: A = state.get_json(&name)?.unwrap_or_default();
            gather(&mut value);
            state.put_json(&name, &value)?;
            let Some(now) = &mut self.now else { continue };
            if let Err(at) = now.open.binary_search(&(start, end)) {
                if now.open.len() >= OPEN_MAX {
                    return Err(too_many());
                }
                now.open.insert(at, (start, end));
            }
        }
        Ok(late)
    }

    /// The session that a value belongs to, made of all that it touches. `None`: it would have closed already.
    fn session<A: Gather>(
        &mut self,
        swarm: &mut Swarm,
        at_ms: u64,
        gap_ms: u64,
        mark: u64,
    ) -> crate::Result<Option<Span>> {
        let behind = end_of(at_ms, gap_ms);
        let Some(now) = &mut self.now else { return Ok(None) };
        let (touched, others): (Vec<Span>, Vec<Span>) = now
            .open
            .iter()
            .partition(|(start, end)| at_ms < *end && *start < behind);
        let (Some(first), Some(last)) = (touched.first().copied(), touched.last().copied()) else {
            return Ok((behind > mark).then_some((at_ms, behind)));
        };
        let session = (first.0.min(at_ms), last.1.max(behind));
        now.open = others;
        let place = now.open.partition_point(|other| *other < session);
        now.open.insert(place, session);
        // One that only lasts longer stays where it is.
        if touched.len() > 1 || first.0 != session.0 {
            let mut whole = A::default();
            for (start, _) in touched {
                let name = self.value(start);
                let value = swarm.state().get_json::<A>(&name)?;
                swarm.state().delete(&name)?;
                if let Some(value) = value {
                    whole.merge(value);
                }
            }
            let name = self.value(session.0);
            swarm.state().put_json(&name, &whole)?;
        }
        Ok(Some(session))
    }

    /// Keeps what is known, and sets the timer for what closes next while nothing comes; without open windows, for the time at which
    /// the key is forgotten.
    pub fn write(mut self, swarm: &mut Swarm) -> crate::Result {
        let name = self.windows.timer();
        let clock = swarm.now_ms();
        let was_silent = |kept: &Kept| kept.open.is_empty();
        if let Some(now) = &mut self.now {
            let next = now.open.iter().map(|(_, end)| *end).min();
            let due = match next {
                Some(end) => signed(end)
                    .saturating_sub(now.ahead)
                    .saturating_add(signed(self.windows.wait_ms)),
                None => signed(clock).saturating_add(signed(self.windows.remember_ms)),
            };
            let due = u64::try_from(due).unwrap_or(0);
            // The timer of a silent key fired: it is forgotten.
            if next.is_none() && now.timer.is_none() && self.before.as_ref().is_some_and(was_silent) {
                swarm.state().delete(&name)?;
                return Ok(());
            }
            if now.timer != Some(due) {
                swarm.timers().set(&name, due)?;
                now.timer = Some(due);
            }
            if self.before.as_ref() != Some(now) {
                swarm.state().put_json(&name, now)?;
            }
        }
        Ok(())
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms.min(TIME_MAX)).unwrap_or(i64::MAX)
}
