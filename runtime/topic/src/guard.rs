//! The guards of the protocol, which test-only builds (`planted-bugs`) can take away at run time to prove that the suite notices.

/// One check or rule. The words are the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Commit: the store's token is the owner's.
    Token,
    /// Commit: the store's sequence is the one the owner built on.
    Seq,
    /// Commit: the store's last commit id is the one the owner built on.
    Base,
    /// Any other operation that takes a timer or retry away writes a new last commit id.
    Chain,
    /// Commit: the span starts where the store's cursor stands.
    Cursor,
    /// Commit: the last consumed entry still exists, with its uid.
    EntryUid,
    TimerUid,
    RetryUid,
    /// A fetch names the lanes that must be held.
    Hold,
    /// A retry that fails again keeps its place in front of its lane.
    InPlace,
    /// When the first of a lane leaves, the next falls due.
    Wake,
    /// A commit to a full inbox is refused.
    Room,
    /// A call whose idempotency key or session number is known is not appended again.
    Dedup,
    /// A dead letter comes back only while it is there.
    Letter,
    /// Nothing is written to a stage as it was before its removal.
    Birth,
    /// Nothing behind a seal is read until all seals of its topic are passed.
    Seal,
    /// Timers go over with their keys when a topic gets another number of partitions.
    HandOver,
    /// A catalog write names what it was decided on, which is more than the record itself.
    Seen,
    /// Redis Cluster: a script does nothing in a slot that is on its way to another server.
    Slot,
    /// Nothing is written to a life while a backup reads it piece by piece.
    Still,
    /// Nothing leaves before it is durable.
    Gate,
}

/// Which guards stand. All, except in test-only builds.
#[derive(Debug, Default)]
pub struct Guards {
    #[cfg(any(test, feature = "planted-bugs"))]
    removed: std::sync::atomic::AtomicU32,
}

impl Guards {
    #[cfg(any(test, feature = "planted-bugs"))]
    pub fn remove(&self, guard: Guard) {
        self.removed
            .fetch_or(1 << guard as u32, std::sync::atomic::Ordering::SeqCst);
    }

    /// Whether a guard stands.
    #[must_use]
    #[cfg(any(test, feature = "planted-bugs"))]
    pub fn on(&self, guard: Guard) -> bool {
        self.removed.load(std::sync::atomic::Ordering::SeqCst) & (1 << guard as u32) == 0
    }

    /// Whether a guard stands.
    #[must_use]
    #[cfg(not(any(test, feature = "planted-bugs")))]
    pub const fn on(&self, _guard: Guard) -> bool {
        true
    }
}
