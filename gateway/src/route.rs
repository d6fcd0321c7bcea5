//! Which subject feeds what.

use std::collections::HashMap;
use std::sync::Arc;

use skep_model::condition::{Condition, Facts};
use skep_model::name::{StageName, Subject, TenantId};
use skep_model::scope::SwarmId;
use skep_model::swarm::KeySource;
use skep_topic::TopicSpec;
use skep_topic::lane::Lane;

use crate::admit::Load;
use crate::purse::Purse;

/// Every subject of every tenant. Immutable: a change is a new table, and a call sees one table from start to end. A copy shares what tenants
/// have, so a change of one makes no other's routes anew.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    tenants: HashMap<TenantId, Arc<HashMap<String, Arc<Route>>>>,
    /// Of tenants that have something else to call, as a model.
    purses: HashMap<TenantId, Arc<Purse>>,
}

/// Where a subject's messages go.
#[derive(Debug, Clone)]
pub struct Route {
    pub swarm: SwarmId,
    pub subject: Subject,
    /// The stages that the subject feeds, at least one.
    pub feeds: Vec<Feed>,
    /// No stage on the path keeps anything, so a request without idempotency key may travel in memory.
    pub pure: bool,
    pub open: Open,
    /// What it has under way; the same in the next table.
    pub load: Arc<Load>,
    /// What its tenant may have, and has; the same for all subjects of the tenant.
    pub purse: Arc<Purse>,
}

/// What a Swarm lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Open {
    #[default]
    Yes,
    /// It is paused: what is submitted waits, and nobody would answer a request.
    Paused,
    /// It works off what it has, to be paused then.
    Draining,
    Deleting,
}

#[derive(Debug, Clone)]
pub struct Feed {
    pub topic: Arc<TopicSpec>,
    pub stage: StageName,
    pub key: Option<KeySource>,
    /// Set on every feed of a pure route, on none of another.
    pub lane: Option<Arc<Lane>>,
    /// What a message must be for it; `None`: nothing.
    pub when: Option<Condition>,
}

impl Feed {
    #[must_use]
    pub fn takes(&self, facts: &Facts<'_>) -> bool {
        self.when.as_ref().is_none_or(|when| when.holds(facts))
    }
}

impl RouteTable {
    /// All that a tenant has from now on. A subject feeds one Swarm: of two routes for one subject the later stays.
    pub fn put(&mut self, tenant: &TenantId, routes: impl IntoIterator<Item = Arc<Route>>) {
        let named = routes
            .into_iter()
            .map(|route| (route.subject.as_str().to_owned(), route));
        let own: HashMap<_, _> = named.collect();
        if own.is_empty() {
            self.tenants.remove(tenant);
        } else {
            self.tenants.insert(tenant.clone(), Arc::new(own));
        }
    }

    #[must_use]
    pub fn get(&self, tenant: &TenantId, subject: &str) -> Option<&Arc<Route>> {
        self.tenants.get(tenant)?.get(subject)
    }

    /// All tenants that may be called without a subject, for they have models. Purses: the same as in their routes.
    pub fn welcome(&mut self, tenants: impl IntoIterator<Item = (TenantId, Arc<Purse>)>) {
        self.purses = tenants.into_iter().collect();
    }

    /// What a tenant may have, where it has a subject or is welcome without: the same for all of them.
    #[must_use]
    pub fn purse(&self, tenant: &TenantId) -> Option<&Arc<Purse>> {
        let of_routes = self.tenants.get(tenant).and_then(|routes| routes.values().next());
        of_routes.map(|route| &route.purse).or_else(|| self.purses.get(tenant))
    }

    /// A tenant's own subjects, sorted.
    #[must_use]
    pub fn subjects(&self, tenant: &TenantId) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .tenants
            .get(tenant)
            .into_iter()
            .flat_map(|routes| routes.keys().map(String::as_str))
            .collect();
        names.sort_unstable();
        names
    }
}

impl Route {
    /// The lanes of all feeds, if a request may travel in memory.
    #[must_use]
    pub fn lanes(&self) -> Option<impl Iterator<Item = (&Feed, &Arc<Lane>)>> {
        let all = self.pure && !self.feeds.is_empty() && self.feeds.iter().all(|f| f.lane.is_some());
        all.then(|| self.feeds.iter().filter_map(|f| f.lane.as_ref().map(|lane| (f, lane))))
    }
}
