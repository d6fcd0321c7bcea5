//! The parts of a batch, added up into its commit.

use std::collections::HashSet;
use std::sync::Arc;

use skep_topic::{Commit, Cursor, Output, Retry, Span, StatePut, TimerSet, TopicSpec};

use super::{Part, Source, Stamp};

pub(super) struct Sum {
    commit: Commit,
    from: Cursor,
}

impl Sum {
    pub(super) fn new(own: Arc<TopicSpec>, stamp: Stamp) -> Self {
        Self {
            commit: Commit::empty(own, stamp.id, stamp.seq, stamp.base),
            from: stamp.from,
        }
    }

    /// Timers that are set anew, before what the items themselves do to them.
    pub(super) fn hurry(&mut self, timers: impl Iterator<Item = TimerSet>) {
        self.commit.set_timers.extend(timers);
    }

    pub(super) fn add(&mut self, source: &Source, part: Part<'_>) {
        let commit = &mut self.commit;
        match source {
            Source::Message(unread) => {
                commit.span = Some(Span {
                    from: self.from,
                    to: unread.after,
                    last_entry: unread.entry,
                    last_entry_uid: unread.entry_uid,
                });
                commit.park.extend(part.park);
            }
            Source::Timer(due) => {
                commit.timers.push(due.clone());
                commit.park.extend(part.park);
            }
            Source::Retry(parked) => commit.retries.push(Retry {
                uid: parked.uid,
                lane: parked.lane.clone(),
                again: part.park,
            }),
        }
        commit
            .outputs
            .extend(part.outputs.into_iter().map(|(to, message)| Output {
                to: Arc::clone(&to.topic),
                message,
            }));
        commit.replies.extend(part.replies);
        commit.returned.extend(part.returned);
        commit.dead.extend(part.dead);
        commit.state.extend(part.state);
        commit.set_timers.extend(part.timers);
    }

    /// What becomes of values by their age, after what the items did.
    pub(super) fn age(&mut self, state: Vec<StatePut>, timers: Vec<TimerSet>) {
        self.commit.state.extend(state);
        self.commit.set_timers.extend(timers);
    }

    pub(super) fn into_commit(self) -> Commit {
        let mut commit = self.commit;
        keep_last(&mut commit.state, |put| (&put.key, &put.name));
        keep_last(&mut commit.set_timers, |set| (&set.key, &set.name));
        commit
    }
}

/// The last write of each key and name, so a hot key costs one row a commit.
fn keep_last<T>(writes: &mut Vec<T>, named: impl Fn(&T) -> (&str, &str)) {
    if writes.len() < 2 {
        return;
    }
    let mut later = HashSet::with_capacity(writes.len());
    let last: Vec<bool> = writes.iter().rev().map(|write| later.insert(named(write))).collect();
    let mut last = last.into_iter().rev();
    writes.retain(|_| last.next().unwrap_or(true));
}
