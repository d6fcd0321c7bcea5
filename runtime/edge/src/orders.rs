//! What a hub wants an edge to run, as data under the hub's signature.
//!
//! Orders have a revision, which only rises; an edge takes none that is lower than what it follows. So neither an old module nor an old Swarm can
//! be brought back by who has recorded the hub's words, or stands between the two. They never run out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use skep_model::id::{Digest, Incarnation};
use skep_model::name::{NodeLabel, StageName, TenantId};
use skep_model::scope::{Scope, SwarmId};
use skep_model::swarm::Swarm;

use crate::keys::{Key, Public, verifies};
use crate::limits::{ORDERS_BYTES_MAX, STAGES_MAX};

/// What this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
const PURPOSE: &[u8] = b"skep edge orders 1\n";

/// All that an edge does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    pub format: u32,
    /// Of the edge, hex: orders for another are not taken.
    pub edge: String,
    pub tenant: String,
    pub revision: u64,
    /// Rises when the hub's operator goes on knowingly after a loss: what waits is counted anew from there.
    pub epoch: u64,
    pub swarms: Vec<SwarmOrder>,
    /// Lives of Swarms that the edge had a part of and that are no more, as `NAME@INCARNATION`: what is empty of them goes for good.
    #[serde(default)]
    pub gone: BTreeSet<String>,
    /// What waits here and is to be let go of; each is done once.
    #[serde(default)]
    pub discards: Vec<Discard>,
}

/// What an operator lets go of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discard {
    /// Rises.
    pub id: u64,
    /// As the edge's reports name it.
    pub what: String,
    /// The first message only.
    pub first: bool,
}

/// What becomes of calls from clients here. As at the hub's own door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoorOrder {
    #[default]
    Open,
    /// What is submitted waits.
    Paused,
    /// What is there is worked off, and nothing new comes in.
    Draining,
    Deleting,
}

/// One Swarm's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmOrder {
    /// The whole of it: what is published here is addressed to stages of the hub, too.
    pub swarm: Swarm,
    /// Hex.
    pub incarnation: String,
    /// Of the Swarm, at the hub.
    pub revision: u64,
    pub born: BTreeMap<StageName, u64>,
    /// The stages that run here.
    pub here: BTreeSet<StageName>,
    /// Of each of those.
    pub code: BTreeMap<StageName, CodeOrder>,
    /// Those of them that stand still.
    pub paused: BTreeSet<StageName>,
    pub door: DoorOrder,
}

/// Which code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CodeOrder {
    pub module: Digest,
    /// Of the native code for this edge's processor.
    pub native: Digest,
}

impl CodeOrder {
    /// The file of it, at the hub and at the edge. By both digests: modules that differ in what no code comes of are compiled to the same.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}-{}.skepe", self.module.to_hex(), self.native.to_hex())
    }
}

/// Why orders are not taken. What the edge follows stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the orders are not signed by the hub that this edge was enrolled with")]
    Forged,
    #[error(
        "the orders have format {0}, and this program reads up to {FORMAT}: bring hub and edge to the same version"
    )]
    Newer(u32),
    #[error("the orders cannot be read: {0}; bring hub and edge to the same version")]
    Form(String),
    #[error(
        "the orders are for another edge: two were enrolled with one folder, or the hub was restored; enrol this edge again"
    )]
    OtherEdge,
    #[error(
        "the hub's orders have revision {found}, and this edge follows {follows}: the hub was restored from an older backup; after a look at what it \
         lost, `skep edge resume NAME` there goes on"
    )]
    Older { found: u64, follows: u64 },
    #[error("the orders are larger than {ORDERS_BYTES_MAX} bytes, or name more than {STAGES_MAX} stages")]
    TooLarge,
}

impl Orders {
    /// As they are kept and sent.
    ///
    /// # Errors
    /// There is too much in them for an edge.
    pub fn sign(&self, key: &Key) -> Result<Signed, Refused> {
        let orders = serde_json::to_vec(self).map_err(|e| Refused::Form(e.to_string()))?;
        let stages: usize = self.swarms.iter().map(|s| s.here.len()).sum();
        if orders.len() > ORDERS_BYTES_MAX || stages > STAGES_MAX {
            return Err(Refused::TooLarge);
        }
        let signature = key.sign(&[PURPOSE, &orders].concat()).to_vec();
        Ok(Signed { orders, signature })
    }

    /// Every artifact that they need.
    #[must_use]
    pub fn code(&self) -> BTreeSet<CodeOrder> {
        let of = |s: &SwarmOrder| s.code.values().copied().collect::<Vec<_>>();
        self.swarms.iter().flat_map(of).collect()
    }

    /// # Errors
    /// Only if a hub wrote what is no name.
    pub fn scope(&self) -> Result<Scope, Refused> {
        let tenant: TenantId = self
            .tenant
            .parse()
            .map_err(|e| Refused::Form(format!("the tenant: {e}")))?;
        Ok(Scope::of(tenant))
    }
}

impl SwarmOrder {
    /// # Errors
    /// Only if a hub wrote what is no incarnation.
    pub fn id(&self, scope: &Scope) -> Result<SwarmId, Refused> {
        let incarnation: Incarnation = self
            .incarnation
            .parse()
            .map_err(|_| Refused::Form("the incarnation of a Swarm".to_owned()))?;
        Ok(scope.swarm(&self.swarm.name, incarnation))
    }

    /// Stages of the hub that read what stages here publish.
    #[must_use]
    pub fn beyond(&self) -> BTreeSet<StageName> {
        let readers = self.here.iter().flat_map(|stage| self.swarm.readers(stage));
        readers
            .map(|reader| reader.stage)
            .filter(|stage| !self.here.contains(stage))
            .collect()
    }
}

/// Orders as bytes, with the hub's signature of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub orders: Vec<u8>,
    pub signature: Vec<u8>,
}

impl Signed {
    /// What they say, if they are this hub's to this edge and no step back. `follows`: the revision that it follows, 0 for none; the same one is
    /// taken again.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn read(&self, hub: &Public, edge: &[u8; 16], follows: u64) -> Result<Orders, Refused> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        if self.orders.len() > ORDERS_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        if !verifies(hub, &[PURPOSE, &self.orders].concat(), &self.signature) {
            return Err(Refused::Forged);
        }
        let form = |e: serde_json::Error| Refused::Form(e.to_string());
        let head: Head = serde_json::from_slice(&self.orders).map_err(form)?;
        if head.format > FORMAT {
            return Err(Refused::Newer(head.format));
        }
        let orders: Orders = serde_json::from_slice(&self.orders).map_err(form)?;
        if orders.edge != hex(edge) {
            return Err(Refused::OtherEdge);
        }
        if orders.revision < follows {
            return Err(Refused::Older {
                found: orders.revision,
                follows,
            });
        }
        if orders.swarms.iter().map(|s| s.here.len()).sum::<usize>() > STAGES_MAX {
            return Err(Refused::TooLarge);
        }
        let scope = orders.scope()?;
        for order in &orders.swarms {
            order.id(&scope)?;
            for stage in &order.here {
                let named = order.swarm.stage(stage).is_some() && order.code.contains_key(stage);
                if !named {
                    return Err(Refused::Form(format!(
                        "stage `{stage}` has no code, or is none of its Swarm's"
                    )));
                }
            }
        }
        Ok(orders)
    }
}

/// Of an edge's id.
#[must_use]
pub fn hex(id: &[u8; 16]) -> String {
    Incarnation(*id).to_string()
}

/// Whether a stage that is placed at `label` runs on an edge with these labels.
#[must_use]
pub fn fits(label: &NodeLabel, labels: &BTreeSet<NodeLabel>) -> bool {
    labels.contains(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::read(&Key::generate().unwrap()).unwrap()
    }

    fn orders(revision: u64) -> Orders {
        Orders {
            format: FORMAT,
            edge: hex(&[5; 16]),
            tenant: "default".into(),
            revision,
            epoch: 0,
            swarms: Vec::new(),
            gone: BTreeSet::new(),
            discards: Vec::new(),
        }
    }

    #[test]
    fn orders_of_the_hub_are_read_and_the_same_revision_is_taken_again() {
        let hub = key();
        let signed = orders(7).sign(&hub).unwrap();
        assert_eq!(signed.read(&hub.public(), &[5; 16], 0), Ok(orders(7)));
        assert_eq!(signed.read(&hub.public(), &[5; 16], 7), Ok(orders(7)));
    }

    #[test]
    fn no_step_back() {
        let hub = key();
        let signed = orders(7).sign(&hub).unwrap();
        let refused = signed.read(&hub.public(), &[5; 16], 8).unwrap_err();
        assert_eq!(refused, Refused::Older { found: 7, follows: 8 });
        assert!(refused.to_string().contains("skep edge resume"), "{refused}");
    }

    #[test]
    fn orders_of_another_hub_or_for_another_edge_are_not_taken() {
        let hub = key();
        let signed = orders(7).sign(&hub).unwrap();
        assert_eq!(signed.read(&key().public(), &[5; 16], 0), Err(Refused::Forged));
        assert_eq!(signed.read(&hub.public(), &[6; 16], 0), Err(Refused::OtherEdge));
        let mut changed = signed.clone();
        *changed.orders.last_mut().unwrap() ^= 1;
        assert_eq!(changed.read(&hub.public(), &[5; 16], 0), Err(Refused::Forged));
        let mut cut = signed;
        cut.signature.pop();
        assert_eq!(cut.read(&hub.public(), &[5; 16], 0), Err(Refused::Forged));
    }

    #[test]
    fn a_newer_form_says_so_whatever_else_is_in_it() {
        let hub = key();
        let text = br#"{"format":2,"all":"else"}"#.to_vec();
        let signature = hub.sign(&[PURPOSE, &text].concat()).to_vec();
        let signed = Signed {
            orders: text,
            signature,
        };
        assert_eq!(signed.read(&hub.public(), &[5; 16], 0), Err(Refused::Newer(2)));
        let odd = b"[1".to_vec();
        let signature = hub.sign(&[PURPOSE, &odd].concat()).to_vec();
        let read = Signed { orders: odd, signature }.read(&hub.public(), &[5; 16], 0);
        assert!(matches!(read, Err(Refused::Form(_))), "{read:?}");
    }
}
