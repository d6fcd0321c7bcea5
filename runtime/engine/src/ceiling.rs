//! What one instance may take of the host: memory, tables, instances. What the host keeps for it counts as memory of its own.

use wasmtime::ResourceLimiter;

use crate::settings::TABLE_ELEMENTS_MAX;

/// Core instances, tables and memories of one store. The pool has its own bounds; these hold without it too.
const INSTANCES_MAX: usize = 200;
const TABLES_MAX: usize = 60;
const MEMORIES_MAX: usize = 4;

pub(crate) struct Ceiling {
    /// Bytes, all memories of the instance together.
    max: usize,
    used: usize,
    /// Bytes that the host keeps for the guest, in tensors.
    held: usize,
    /// What the guest asked for in vain: a later trap is its consequence.
    refused: Option<usize>,
}

impl Ceiling {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            used: 0,
            held: 0,
            refused: None,
        }
    }

    pub(crate) fn refused(&self) -> Option<usize> {
        self.refused
    }

    /// How much of the limit is in use.
    pub(crate) fn percent(&self) -> usize {
        (self.used + self.held).saturating_mul(100) / self.max.max(1)
    }

    pub(crate) fn used(&self) -> u64 {
        self.used as u64
    }

    /// Counts what the host keeps for the guest, if there is room for it.
    pub(crate) fn hold(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.max.saturating_sub(self.used).saturating_sub(self.held);
        if fits {
            self.held += bytes;
        }
        fits
    }

    pub(crate) fn release(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }
}

impl ResourceLimiter for Ceiling {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let wanted = self.used.saturating_add(desired.saturating_sub(current));
        if wanted > self.max.saturating_sub(self.held) {
            self.refused = Some(wanted);
            return Ok(false);
        }
        // Counted even if the growth fails after all: that errs to the safe side, and ends with the instance.
        self.used = wanted;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired as u64 <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}
