//! How an owner goes about batches that end in a trap: smaller ones, and patience with the host.

use std::time::Duration;

use skep_model::id::Uid;

/// Batches that must end well before the next ones are twice as large, after one trapped. So a Bee that is too slow for its batch
/// size works at half of it most of the time, instead of at its time limit every other time.
const GROW_AFTER: u32 = 8;
/// The wait after a trouble of the host, doubling, and its bound.
const HOST_WAIT_MS: u64 = 200;
const HOST_WAIT_MS_MAX: u64 = 30_000;
/// Troubles of the host with one and the same single message after which it is set aside, so that it cannot hold its partition for
/// ever. By then more than a minute has passed, so a node that is only short of something does not empty its inbox.
const HOST_TROUBLES_MAX: u32 = 10;

/// How many items a batch may take: halved by a trap until the poison one is alone, doubled again by what ends well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchCap {
    size: usize,
    /// Successes before it doubles, this time …
    left: u32,
    /// … and each time after.
    every: u32,
    /// The partition's last owner died, and what it had under way is not passed yet.
    marks: bool,
}

impl BatchCap {
    /// The stage's own batch size is the only bound.
    pub(crate) fn none() -> Self {
        Self {
            size: usize::MAX,
            left: 1,
            every: 1,
            marks: false,
        }
    }

    /// Suspect mode: after a crash what was under way, a batch at most, goes one by one under an attempt mark, so that a message
    /// which kills its host is alone when it does, and known when it has done so again.
    pub(crate) fn suspect(batch: u32) -> Self {
        Self {
            size: 1,
            left: batch.max(1),
            every: 1,
            marks: true,
        }
    }

    /// Whether inputs run under an attempt mark.
    pub(crate) fn suspects(self) -> bool {
        self.marks && self.size == 1
    }

    pub(crate) fn size(self) -> usize {
        self.size
    }

    /// A batch of `inputs`, two or more, ended in a trap.
    pub(crate) fn trapped(&mut self, inputs: usize) {
        *self = Self {
            size: (inputs / 2).max(1),
            left: GROW_AFTER,
            every: GROW_AFTER,
            marks: false,
        };
    }

    /// The host failed with a batch of several: its fault or one message's, which one at a time will show.
    pub(crate) fn alone(&mut self) {
        *self = Self {
            size: 1,
            left: 1,
            every: 1,
            marks: self.marks,
        };
    }

    /// The culprit ran alone and is out of the way, so there is no reason left to grow slowly. Suspicion stays: what only traps
    /// is not what killed the host.
    pub(crate) fn found(&mut self) {
        if self.every > 1 {
            self.every = 1;
            self.left = 1;
        }
    }

    pub(crate) fn passed(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.size = self.size.saturating_mul(2);
            self.left = self.every;
            self.marks = false;
        }
    }
}

/// Troubles of the host in a row.
#[derive(Debug, Default)]
pub(crate) struct HostTroubles {
    in_a_row: u32,
    alone: Option<Uid>,
    with_it: u32,
}

impl HostTroubles {
    /// Another one, with this single message. How long to wait before the next try, or `None` when the message is to be set aside.
    pub(crate) fn wait(&mut self, alone: Uid) -> Option<Duration> {
        if self.alone.replace(alone) != Some(alone) {
            self.with_it = 0;
        }
        self.with_it += 1;
        // Over all messages: where the host fails with each of them the waits stay long, and few are set aside.
        let doubled = HOST_WAIT_MS.saturating_mul(1u64.checked_shl(self.in_a_row).unwrap_or(u64::MAX));
        self.in_a_row = self.in_a_row.saturating_add(1);
        (self.with_it < HOST_TROUBLES_MAX).then(|| Duration::from_millis(doubled.min(HOST_WAIT_MS_MAX)))
    }

    /// The host did its part.
    pub(crate) fn over(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_halves_until_the_culprit_is_alone_and_then_batches_grow_at_once() {
        let mut cap = BatchCap::none();
        let mut sizes = Vec::new();
        let mut inputs = 256;
        while inputs > 1 {
            cap.trapped(inputs);
            inputs = cap.size();
            sizes.push(inputs);
        }
        assert_eq!(sizes, [128, 64, 32, 16, 8, 4, 2, 1]);
        cap.found();
        for size in [2, 4, 8] {
            cap.passed();
            assert_eq!(cap.size(), size);
        }
    }

    #[test]
    fn without_a_culprit_batches_grow_slowly() {
        let mut cap = BatchCap::none();
        cap.trapped(256);
        for _ in 1..GROW_AFTER {
            cap.passed();
        }
        assert_eq!(cap.size(), 128);
        cap.passed();
        assert_eq!(cap.size(), 256);
    }

    #[test]
    fn a_suspect_batch_goes_one_by_one() {
        let mut cap = BatchCap::suspect(3);
        cap.found();
        for size in [1, 1, 2, 4] {
            cap.passed();
            assert_eq!(cap.size(), size);
        }
    }

    #[test]
    fn the_host_is_borne_with_for_a_bounded_time_and_its_waits_double() {
        let mut troubles = HostTroubles::default();
        let (first, second) = (Uid([1; 16]), Uid([2; 16]));
        let waits: Vec<u64> = std::iter::from_fn(|| troubles.wait(first))
            .map(|w| u64::try_from(w.as_millis()).unwrap())
            .collect();
        assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000]);
        assert_eq!(
            troubles.wait(second),
            Some(Duration::from_millis(HOST_WAIT_MS_MAX)),
            "the next one has patience of its own, and the waits stay long"
        );
        troubles.over();
        assert_eq!(troubles.wait(second), Some(Duration::from_millis(HOST_WAIT_MS)));
    }
}
