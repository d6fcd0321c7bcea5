//! Keys. All of one Swarm's life stand under one hash tag, so that they live in one slot.

use skep_model::id::Incarnation;
use skep_model::scope::{PartitionId, Scope, SwarmId};

/// Which store this is.
pub(super) const STORE: &str = "sk:store";
/// Every life that has keys.
pub(super) const LIVES: &str = "sk:lives";
/// Lives that are gone, oldest first.
pub(super) const GONE: &str = "sk:gone";
/// Lives that were being restored, or are not used yet since.
pub(super) const IMPORTS: &str = "sk:imports";
/// Desired state.
pub(super) const CATALOG: &str = "sk:{catalog}";
/// Another number after each write to it.
pub(super) const CATALOG_NUMBER: &str = "sk:{catalog}:n";
/// Where catalog writes are told.
pub(super) const CATALOG_BELL: &str = "sk:{catalog}:bell";
/// Written before each wait for replicas, so that the wait covers all that came before.
pub(super) const GATE: &str = "sk:{gate}";
/// In a cluster, which store the catalog belongs to.
pub(super) const CATALOG_MARK: &str = "sk:{catalog}:store";

/// The same in a cluster: some number lies with each server.
pub(super) fn gate(number: usize) -> String {
    format!("sk:{{gate-{number}}}")
}

/// `tenant/swarm/incarnation`: none of them holds a `/` or a brace.
pub(super) fn tag(swarm: &SwarmId) -> String {
    swarm.to_string()
}

pub(super) fn swarm_of(tag: &str) -> Option<SwarmId> {
    let mut parts = tag.split('/');
    let (tenant, name, incarnation) = (parts.next()?, parts.next()?, parts.next()?);
    let incarnation: Incarnation = incarnation.parse().ok()?;
    if parts.next().is_some() {
        return None;
    }
    Some(Scope::of(tenant.parse().ok()?).swarm(&name.parse().ok()?, incarnation))
}

/// The first key of a life's scripts, from which they make the others.
pub(super) fn meta(swarm: &SwarmId) -> String {
    format!("sk:{{{swarm}}}:m")
}

/// What begins every key of a life.
pub(super) fn life(swarm: &SwarmId) -> String {
    format!("sk:{{{swarm}}}:")
}

pub(super) fn inbox(partition: &PartitionId) -> String {
    let topic = partition.topic();
    format!("sk:{{{}}}:in:{}:{}", topic.swarm(), topic.stage(), partition.index())
}

pub(super) fn ready(tag: &str) -> String {
    format!("sk:{{{tag}}}:ready")
}

pub(super) fn bell(tag: &str) -> String {
    format!("sk:{{{tag}}}:bell")
}

/// The channel on which a node gets its callers' replies.
pub(super) fn node(node: &[u8]) -> String {
    let hex: String = node.iter().map(|b| format!("{b:02x}")).collect();
    format!("sk:node:{hex}")
}

/// … and parts of their replies, and words about those that it sends.
pub(super) fn parts(node: &[u8]) -> String {
    let hex: String = node.iter().map(|b| format!("{b:02x}")).collect();
    format!("sk:parts:{hex}")
}

/// A lane or a timer's key, so that what begins with it sorts together and nothing else does: NUL is escaped, and ends it.
pub(super) fn ended(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 1);
    for byte in text.bytes() {
        out.push(byte);
        if byte == 0 {
            // Never a byte of UTF-8, so no other text continues this way.
            out.push(0xff);
        }
    }
    out.push(0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_goes_both_ways() {
        let swarm = Scope::of("acme".parse().unwrap()).swarm(&"orders".parse().unwrap(), Incarnation([7; 16]));
        assert_eq!(swarm_of(&tag(&swarm)), Some(swarm));
        for bad in ["", "a", "a/b", "a/b/zz", "a/b/07070707070707070707070707070707/c"] {
            assert_eq!(swarm_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_ended_text_begins_with_another() {
        let texts = ["", "a", "ab", "a\0", "a\0b", "\0", "é"];
        for (i, a) in texts.iter().enumerate() {
            for (j, b) in texts.iter().enumerate() {
                let mut stop = ended(a);
                stop.push(0xff);
                // A member is the text and a name or a number, which never begins with 0xff.
                let member = [ended(b), b"x".to_vec()].concat();
                let inside = ended(a) <= member && member < stop;
                assert_eq!(inside, i == j, "{a:?} {b:?}");
            }
        }
    }
}
