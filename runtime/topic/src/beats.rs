//! Who is there: nodes that said so not long ago.

use std::collections::BTreeMap;

use bytes::Bytes;
use skep_model::id::NodeId;
use skep_model::limits;

use crate::{Beat, Error};

/// Checks a node's record.
pub(crate) fn fits(record: &Bytes) -> Result<(), Error> {
    if record.len() > limits::NODE_RECORD_BYTES_MAX {
        return Err(Error::TooLarge(format!(
            "a node's record is {} bytes, at most {} may be",
            record.len(),
            limits::NODE_RECORD_BYTES_MAX
        )));
    }
    Ok(())
}

pub(crate) fn too_many() -> Error {
    Error::Unavailable(format!("{} nodes share this store, no more may", limits::NODES_MAX))
}

/// Beats of a store that lies in one process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beats {
    /// Records, and until when they hold.
    nodes: BTreeMap<NodeId, (Bytes, u64)>,
}

impl Beats {
    pub fn beat(&mut self, node: NodeId, record: Bytes, ttl_ms: u64, now: u64) -> Result<Vec<Beat>, Error> {
        fits(&record)?;
        self.nodes.retain(|_, (_, until)| *until > now);
        if self.nodes.len() >= limits::NODES_MAX && !self.nodes.contains_key(&node) {
            return Err(too_many());
        }
        self.nodes.insert(node, (record, now.saturating_add(ttl_ms)));
        let beats = self.nodes.iter().map(|(node, (record, until))| Beat {
            node: *node,
            record: record.clone(),
            left_ms: until - now,
        });
        Ok(beats.collect())
    }

    pub fn leave(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }
}
