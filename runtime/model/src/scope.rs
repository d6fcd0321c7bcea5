//! What one tenant may name. A topic's name can be made from a scope only, so no raw string reaches a backend.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::id::Incarnation;
use crate::name::{BadName, StageName, SwarmName, TenantId};

/// The unit of isolation, held by every call after the door that turned its credential into one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    tenant: TenantId,
}

impl Scope {
    /// Doors (Gateway, Beekeeper) and the node's own reconciliation are the only callers.
    #[must_use]
    pub fn of(tenant: TenantId) -> Self {
        Self { tenant }
    }

    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    #[must_use]
    pub fn path(&self, name: &SwarmName) -> SwarmPath {
        SwarmPath {
            tenant: self.tenant.clone(),
            name: name.clone(),
        }
    }

    #[must_use]
    pub fn swarm(&self, name: &SwarmName, incarnation: Incarnation) -> SwarmId {
        SwarmId(Arc::new(SwarmParts {
            tenant: self.tenant.clone(),
            name: name.clone(),
            incarnation,
        }))
    }
}

/// A Swarm's name with its tenant's: what tells it from every other of a store at one time.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SwarmPath {
    tenant: TenantId,
    name: SwarmName,
}

impl SwarmPath {
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    #[must_use]
    pub fn name(&self) -> &SwarmName {
        &self.name
    }
}

/// The default tenant goes without saying: so it was written before there were others.
impl fmt::Display for SwarmPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tenant == TenantId::default_tenant() {
            true => fmt::Display::fmt(&self.name, f),
            false => write!(f, "{}/{}", self.tenant, self.name),
        }
    }
}

impl FromStr for SwarmPath {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let (tenant, name) = match text.split_once('/') {
            Some((tenant, name)) => (tenant.parse()?, name),
            None => (TenantId::default_tenant(), text),
        };
        let name = name.parse()?;
        Ok(Self { tenant, name })
    }
}

/// One life of a Swarm: tenant, name, incarnation. All its rows or keys live and roll back together (a *slot*).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SwarmId(Arc<SwarmParts>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct SwarmParts {
    tenant: TenantId,
    name: SwarmName,
    incarnation: Incarnation,
}

impl SwarmId {
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.0.tenant
    }

    #[must_use]
    pub fn name(&self) -> &SwarmName {
        &self.0.name
    }

    #[must_use]
    pub fn path(&self) -> SwarmPath {
        SwarmPath {
            tenant: self.0.tenant.clone(),
            name: self.0.name.clone(),
        }
    }

    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.0.incarnation
    }

    #[must_use]
    pub fn topic(&self, stage: &StageName) -> TopicId {
        TopicId {
            swarm: self.clone(),
            stage: stage.clone(),
        }
    }
}

impl fmt::Display for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.0.tenant, self.0.name, self.0.incarnation)
    }
}

impl fmt::Debug for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The inbox of one stage.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId {
    swarm: SwarmId,
    stage: StageName,
}

impl TopicId {
    #[must_use]
    pub fn swarm(&self) -> &SwarmId {
        &self.swarm
    }

    #[must_use]
    pub fn stage(&self) -> &StageName {
        &self.stage
    }

    #[must_use]
    pub fn partition(&self, index: u16) -> PartitionId {
        PartitionId {
            topic: self.clone(),
            index,
        }
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.swarm, self.stage)
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A topic's unit of ownership.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId {
    topic: TopicId,
    index: u16,
}

impl PartitionId {
    #[must_use]
    pub fn topic(&self) -> &TopicId {
        &self.topic
    }

    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.index)
    }
}

impl fmt::Debug for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
