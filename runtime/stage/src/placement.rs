//! Which node should own a partition. A hint only: the claim decides, so nodes that disagree for a while lose time and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skep_model::id::{Digest, NodeId};
use skep_model::name::{NodeLabel, TenantId};
use skep_model::scope::PartitionId;
use tokio::sync::watch;

/// How long a node leaves a partition with work to the one that should own it, before it takes it itself. Far above a claim and far
/// below a lease.
pub(crate) const YIELD: Duration = Duration::from_millis(300);

/// The nodes that work, as this one knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    pub me: NodeId,
    /// Everyone, me included unless I am to leave.
    pub all: Vec<NodeId>,
    pub pins: Pins,
}

/// Which nodes are for whom. A tenant that is pinned to a label runs on nodes that have it, and nobody else runs there: those nodes are
/// for the tenants that are pinned to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// Nodes without labels need not be in it.
    pub labels: BTreeMap<NodeId, BTreeSet<NodeLabel>>,
    pub tenants: BTreeMap<TenantId, NodeLabel>,
}

impl Pins {
    /// Whether a node runs what a tenant has.
    #[must_use]
    pub fn fits(&self, node: &NodeId, tenant: &TenantId) -> bool {
        if self.tenants.is_empty() {
            return true;
        }
        let none = BTreeSet::new();
        let labels = self.labels.get(node).unwrap_or(&none);
        match self.tenants.get(tenant) {
            Some(pinned) => labels.contains(pinned),
            None => !self.tenants.values().any(|taken| labels.contains(taken)),
        }
    }
}

/// What a node is to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It should own it.
    Home,
    /// Another should.
    Guest,
    /// It is to leave, or it is not for this tenant: it owns nothing.
    Away,
}

impl Workers {
    /// One node that is alone.
    #[must_use]
    pub fn alone(me: NodeId) -> watch::Receiver<Arc<Self>> {
        let alone = Self {
            me,
            all: vec![me],
            pins: Pins::default(),
        };
        watch::Sender::new(Arc::new(alone)).subscribe()
    }

    /// Rendezvous hashing (Thaler and Ravishankar, 1996): the node with the highest hash of node and partition. Where a node comes
    /// or goes only its own partitions move.
    #[must_use]
    pub fn place(&self, partition: &PartitionId) -> Place {
        let tenant = partition.topic().swarm().tenant();
        if !self.all.contains(&self.me) || !self.pins.fits(&self.me, tenant) {
            return Place::Away;
        }
        if self.all.len() == 1 {
            return Place::Home;
        }
        let name = partition.to_string();
        let weight = |node: &NodeId| {
            let mut bytes = node.0.to_vec();
            bytes.extend_from_slice(name.as_bytes());
            (Digest::of(&bytes).0, *node)
        };
        let candidates = self.all.iter().filter(|node| self.pins.fits(node, tenant));
        match candidates.max_by_key(|node| weight(node)) {
            Some(best) if *best == self.me => Place::Home,
            _ => Place::Guest,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skep_model::id::Incarnation;
    use skep_model::name::TenantId;
    use skep_model::scope::Scope;

    use super::*;

    fn partition(index: u16) -> PartitionId {
        let swarm = Scope::of(TenantId::default_tenant()).swarm(&"s".parse().unwrap(), Incarnation([7; 16]));
        swarm.topic(&"stage".parse().unwrap()).partition(index)
    }

    fn home(all: &[NodeId], index: u16) -> Option<NodeId> {
        homes_of(all, &Pins::default(), index)
    }

    fn homes_of(all: &[NodeId], pins: &Pins, index: u16) -> Option<NodeId> {
        let of = |me| Workers {
            me,
            all: all.to_vec(),
            pins: pins.clone(),
        };
        let mut homes = all.iter().filter(|me| of(**me).place(&partition(index)) == Place::Home);
        let home = homes.next().copied();
        assert_eq!(homes.next(), None, "two think that they should own it");
        home
    }

    proptest! {
        #[test]
        fn every_partition_has_one_home_and_moves_only_when_its_node_goes(
            ids in proptest::collection::btree_set(any::<[u8; 8]>(), 2..6),
        ) {
            let all: Vec<NodeId> = ids.into_iter().map(NodeId).collect();
            let (gone, rest) = all.split_first().unwrap();
            for index in 0..64 {
                let before = home(&all, index);
                prop_assert!(before.is_some());
                let after = home(rest, index);
                prop_assert!(after == before || before == Some(*gone));
            }
        }
    }

    #[test]
    fn partitions_are_shared_about_evenly() {
        let all: Vec<NodeId> = (0..4).map(|n| NodeId([n; 8])).collect();
        let mut counts = [0; 4];
        for index in 0..1_000 {
            counts[usize::from(home(&all, index).unwrap().0[0])] += 1;
        }
        assert!(counts.iter().all(|n| (200..300).contains(n)), "{counts:?}");
    }

    #[test]
    fn a_node_that_is_to_leave_owns_nothing() {
        let workers = Workers {
            me: NodeId([1; 8]),
            all: vec![NodeId([2; 8])],
            pins: Pins::default(),
        };
        assert_eq!(workers.place(&partition(0)), Place::Away);
    }

    #[test]
    fn a_pinned_tenant_and_its_nodes_have_each_other_and_nobody_else() {
        let all: Vec<NodeId> = (0..4).map(|n| NodeId([n; 8])).collect();
        let label = |text: &str| text.parse::<NodeLabel>().unwrap();
        let mut pins = Pins {
            labels: BTreeMap::from([
                (all[0], BTreeSet::from([label("pool=acme"), label("zone=a")])),
                (all[1], BTreeSet::from([label("zone=a")])),
            ]),
            tenants: BTreeMap::from([("acme".parse().unwrap(), label("pool=acme"))]),
        };
        // The partitions here are the default tenant's, which is not pinned.
        for index in 0..64 {
            let home = homes_of(&all, &pins, index).unwrap();
            assert_ne!(home, all[0], "a node that is for acme took somebody else's");
        }
        assert!(pins.fits(&all[0], &"acme".parse().unwrap()));
        assert!(!pins.fits(&all[1], &"acme".parse().unwrap()), "another label");
        assert!(!pins.fits(&all[3], &"acme".parse().unwrap()), "no label");
        pins.tenants.insert(TenantId::default_tenant(), label("zone=a"));
        for index in 0..64 {
            let home = homes_of(&all, &pins, index).unwrap();
            assert!(
                all[..2].contains(&home),
                "a node takes all tenants that are pinned to one of its labels"
            );
        }
        pins.tenants.insert(TenantId::default_tenant(), label("zone=b"));
        assert_eq!(homes_of(&all, &pins, 0), None, "nobody has the label");
    }
}
