//! Tenants: made, listed, taken away with all that they have.

use std::collections::BTreeSet;

use skep_model::access::{By, Caller, Role};
use skep_model::limits::TENANTS_MAX;
use skep_model::name::{NodeLabel, TenantId};
use skep_model::quota::{Limits, Quota};
use skep_model::scope::Scope;
use skep_proto::v1;
use tonic::Status;

use super::failure::{internal, invalid};
use super::{Desk, Keeper};
use crate::catalog::{RACES_MAX, TenantRecord, Versioned};
use crate::isolation::Isolation;
use crate::quotas::kept;
use crate::signatures::{PublicKey, Signers};
use crate::usage;
use crate::wording::{count, instead};

impl Keeper {
    pub(super) async fn make_tenant(&self, asked: v1::CreateTenantRequest) -> Result<v1::Tenant, Status> {
        self.closed()?;
        let tenant: TenantId = asked.name.parse().map_err(invalid)?;
        let limits = changed(Limits::default(), &asked.limits, &[])?;
        let isolation = isolation(&asked.isolation)?.unwrap_or_default();
        let there = || Status::already_exists(format!("there is a tenant `{tenant}` already"));
        if tenant == TenantId::default_tenant() {
            return Err(there());
        }
        let catalogs = &self.supervisor.catalogs;
        if catalogs.tenants().await.map_err(internal)?.len() >= TENANTS_MAX {
            return Err(Status::resource_exhausted(format!(
                "there are {TENANTS_MAX} tenants, no more fit: delete one"
            )));
        }
        let record = TenantRecord {
            created_ms: self.registry.now_ms(),
            deleting: false,
            limits,
            signers: Signers::default(),
            nodes: pinned(&asked.nodes)?,
            isolation,
        };
        match catalogs.put_tenant(&tenant, 0, &record).await.map_err(internal)? {
            Ok(_) => {
                self.registry.refresh().await.map_err(internal)?;
                self.told(&tenant, &record).await
            }
            Err(_) => Err(there()),
        }
    }

    /// Other limits: this node keeps to them at once, the others with their next look at the catalog. Other signers count everywhere at once.
    pub(super) async fn limit_tenant(&self, asked: v1::SetTenantRequest) -> Result<v1::Tenant, Status> {
        let tenant: TenantId = asked.name.parse().map_err(invalid)?;
        if tenant == TenantId::default_tenant() {
            return Err(invalid(
                "the default tenant is the operator's own and has no limits: make a tenant to limit it",
            ));
        }
        let keys = |texts: &[String]| {
            texts
                .iter()
                .map(|text| text.parse())
                .collect::<Result<Vec<PublicKey>, _>>()
        };
        let add = keys(&asked.add_signers).map_err(invalid)?;
        let remove = keys(&asked.remove_signers).map_err(invalid)?;
        let isolation = isolation(&asked.isolation)?;
        if asked.limits.is_empty()
            && asked.unlimited.is_empty()
            && add.is_empty()
            && remove.is_empty()
            && isolation.is_none()
            && asked.nodes.is_none()
        {
            return Err(invalid("neither a limit, an isolation, a signer nor nodes are named"));
        }
        if let Some(both) = add.iter().find(|key| remove.contains(key)) {
            return Err(invalid(format!("{both} is to be added and removed")));
        }
        for _ in 0..RACES_MAX {
            let Some(mut found) = self.supervisor.catalogs.tenant(&tenant).await.map_err(internal)? else {
                self.tenants(tenant.as_str()).await?;
                continue;
            };
            found.record.limits = changed(found.record.limits, &asked.limits, &asked.unlimited)?;
            found.record.isolation = isolation.unwrap_or(found.record.isolation);
            let signers = found.record.signers.change(&add, &remove);
            signers.map_err(|why| invalid(format!("tenant `{tenant}`: {why}")))?;
            if let Some(nodes) = &asked.nodes {
                found.record.nodes = pinned(nodes)?;
            }
            let catalogs = &self.supervisor.catalogs;
            let put = catalogs.put_tenant(&tenant, found.version, &found.record).await;
            if put.map_err(internal)?.is_ok() {
                self.registry.refresh().await.map_err(internal)?;
                return self.told(&tenant, &found.record).await;
            }
        }
        Err(Status::aborted(format!(
            "tenant `{tenant}` is being changed by too many at once: try again"
        )))
    }

    async fn told(&self, tenant: &TenantId, record: &TenantRecord) -> Result<v1::Tenant, Status> {
        let catalog = self.supervisor.catalogs.of(tenant);
        let tokens = self.registry.tokens().await.map_err(internal)?;
        let own = tokens
            .values()
            .filter(|found| found.record.tenant.as_ref() == Some(tenant));
        Ok(v1::Tenant {
            name: tenant.to_string(),
            created_ms: record.created_ms,
            deleting: record.deleting,
            swarms: catalog.swarms().await.map_err(internal)?.len() as u64,
            modules: catalog.modules().await.map_err(internal)?.len() as u64,
            models: catalog.models().await.map_err(internal)?.len() as u64,
            tokens: own.count() as u64,
            limits: record
                .limits
                .iter()
                .map(|(quota, value)| amount(quota, value))
                .collect(),
            used: Vec::new(),
            signers: record.signers.iter().map(ToString::to_string).collect(),
            nodes: record.nodes.as_ref().map(ToString::to_string).unwrap_or_default(),
            isolation: record.isolation.to_string(),
            process_id: 0,
        })
    }

    /// What it has of all that can be limited.
    async fn used(&self, tenant: &TenantId) -> Result<Vec<v1::Limit>, Status> {
        let kept = kept(&self.supervisor.catalogs, self.backend.as_ref(), tenant).await;
        let kept = kept.map_err(internal)?;
        let account = self.registry.quotas.of(tenant);
        let (calls, bytes) = account.purse.in_flight();
        let (instances, memory) = account.share.live();
        Ok(vec![
            amount(Quota::Memory, memory),
            amount(Quota::Instances, instances),
            amount(Quota::Rate, account.rate()),
            amount(Quota::Concurrency, calls as u64),
            amount(Quota::InFlight, bytes as u64),
            amount(Quota::Storage, kept.storage),
            amount(Quota::State, kept.state),
            amount(Quota::Modules, kept.modules),
        ])
    }

    /// What tenants used: all for an operator, its own for anybody else.
    pub(super) async fn usage(&self, asked: v1::UsageRequest) -> Result<Vec<v1::Used>, Status> {
        let own = self.catalog.tenant();
        let wanted = match asked.tenant.as_str() {
            "" if self.caller.role == Role::Operator => None,
            "" => Some(own.clone()),
            name => Some(name.parse::<TenantId>().map_err(invalid)?),
        };
        // As of one that nobody has.
        if let Some(tenant) = &wanted
            && tenant != own
            && self.caller.role != Role::Operator
        {
            return Ok(Vec::new());
        }
        let since = asked.since_ms / usage::DAY_MS;
        let used = usage::read(&self.supervisor.catalogs, wanted.as_ref(), since).await;
        let used = used
            .map_err(internal)?
            .into_iter()
            .map(|((tenant, bee), amounts)| v1::Used {
                tenant,
                bee,
                cpu_us: amounts.cpu_us,
                memory_byte_ms: amounts.byte_ms,
                messages: amounts.messages,
                bytes_in: amounts.bytes_in,
                bytes_out: amounts.bytes_out,
            });
        Ok(used.collect())
    }

    /// One tenant, or all; the default one comes first and was not made. Who is no operator sees the own one: another is as one that nobody
    /// has.
    pub(super) async fn tenants(&self, name: &str) -> Result<Vec<v1::Tenant>, Status> {
        let default = TenantId::default_tenant();
        let always = TenantRecord {
            created_ms: 0,
            deleting: false,
            limits: Limits::default(),
            signers: Signers::default(),
            nodes: None,
            isolation: Isolation::default(),
        };
        let mut all = vec![(default, always)];
        let made = self.supervisor.catalogs.tenants().await.map_err(internal)?;
        all.extend(made.into_iter().map(|(tenant, found)| (tenant, found.record)));
        if self.caller.role != Role::Operator {
            all.retain(|(tenant, _)| tenant == self.catalog.tenant());
        }
        if !name.is_empty() {
            let names: Vec<&str> = all.iter().map(|(tenant, _)| tenant.as_str()).collect();
            if !names.contains(&name) {
                let shown: String = name.chars().take(64).collect();
                return Err(Status::not_found(format!(
                    "no tenant `{shown}`; {}",
                    instead(&shown, &names, "")
                )));
            }
            all.retain(|(tenant, _)| tenant.as_str() == name);
        }
        let mut out = Vec::new();
        for (tenant, record) in all {
            let mut told = self.told(&tenant, &record).await?;
            if !name.is_empty() {
                told.used = self.used(&tenant).await?;
                let processes = self.supervisor.modules.processes();
                told.process_id = processes.pid(&tenant).unwrap_or(0);
            }
            out.push(told);
        }
        Ok(out)
    }

    /// Nobody comes in any more, then all goes, and the record last: interrupted, it is asked for again.
    pub(super) async fn remove_tenant(
        &self,
        desk: &Desk,
        asked: v1::DeleteTenantRequest,
    ) -> Result<v1::Tenant, Status> {
        let tenant: TenantId = asked.name.parse().map_err(invalid)?;
        if tenant == TenantId::default_tenant() {
            return Err(invalid("the default tenant is always there: delete what it has"));
        }
        let catalogs = &self.supervisor.catalogs;
        let (mut found, told) = self.out_of_service(&tenant, asked.purge).await?;
        let theirs = desk.keeper(Caller {
            scope: Scope::of(tenant.clone()),
            role: Role::Admin,
            by: By::Nothing,
        });
        for _ in 0..RACES_MAX {
            let seen = catalogs.number().await.map_err(internal)?;
            if asked.purge {
                theirs.purge().await?;
            } else if !theirs.has_nothing().await? {
                // A call that was under way brought something in between.
                found.record.deleting = false;
                let _ = catalogs
                    .put_tenant(&tenant, found.version, &found.record)
                    .await
                    .map_err(internal)?;
                self.registry.refresh().await.map_err(internal)?;
                return Err(not_empty(&self.told(&tenant, &found.record).await?));
            }
            let tokens = self.registry.tokens().await.map_err(internal)?;
            let own = tokens
                .into_iter()
                .filter(|(_, t)| t.record.tenant.as_ref() == Some(&tenant));
            let mut left = self.supervisor.vault.forget(&tenant).await.map_err(internal)?;
            // Else they would be those of the next tenant of that name.
            left |= self.edges.forget(&tenant).await.map_err(internal)?;
            for (id, token) in own {
                left = true;
                let _ = self.registry.remove(id, token.version).await.map_err(internal)?;
            }
            if left || !theirs.has_nothing().await? {
                continue;
            }
            let gone = catalogs
                .delete_tenant(&tenant, found.version, seen)
                .await
                .map_err(internal)?;
            if gone.is_ok() {
                self.supervisor.modules.processes().end(&tenant);
                self.registry.refresh().await.map_err(internal)?;
                return Ok(told);
            }
        }
        Err(Status::aborted(format!(
            "tenant `{tenant}` is out of service, and the catalog is being changed by too many at once: delete it again"
        )))
    }

    /// Marks it, so that its tokens end everywhere.
    async fn out_of_service(
        &self,
        tenant: &TenantId,
        purge: bool,
    ) -> Result<(Versioned<TenantRecord>, v1::Tenant), Status> {
        let catalogs = &self.supervisor.catalogs;
        for _ in 0..RACES_MAX {
            let Some(mut found) = catalogs.tenant(tenant).await.map_err(internal)? else {
                self.tenants(tenant.as_str()).await?;
                continue;
            };
            let told = self.told(tenant, &found.record).await?;
            if !purge && told.swarms + told.modules + told.models > 0 {
                return Err(not_empty(&told));
            }
            found.record.deleting = true;
            if let Ok(version) = catalogs
                .put_tenant(tenant, found.version, &found.record)
                .await
                .map_err(internal)?
            {
                found.version = version;
                self.registry.refresh().await.map_err(internal)?;
                return Ok((found, told));
            }
        }
        Err(Status::aborted(format!(
            "tenant `{tenant}` is being changed by too many at once: try again"
        )))
    }

    async fn has_nothing(&self) -> Result<bool, Status> {
        let catalog = &self.catalog;
        Ok(catalog.swarms().await.map_err(internal)?.is_empty()
            && catalog.modules().await.map_err(internal)?.is_empty()
            && catalog.models().await.map_err(internal)?.is_empty())
    }

    /// Everything that its own deletions would take, with what Swarms keep.
    async fn purge(&self) -> Result<(), Status> {
        for name in self.catalog.swarms().await.map_err(internal)?.into_keys() {
            let asked = v1::DeleteSwarmRequest {
                name: name.to_string(),
                discard: true,
                ..v1::DeleteSwarmRequest::default()
            };
            let mut told = match self.begin_deletion(asked).await {
                Ok(told) => told,
                // Somebody else's deletion ended meanwhile.
                Err(gone) if gone.code() == tonic::Code::NotFound => continue,
                Err(e) => return Err(e),
            };
            loop {
                if let Some(end) = told.borrow_and_update().end.clone() {
                    end?;
                    break;
                }
                if told.changed().await.is_err() {
                    return Err(Status::unavailable(
                        "a deletion ended without a word: delete the tenant again",
                    ));
                }
            }
        }
        for name in self.catalog.modules().await.map_err(internal)?.into_keys() {
            let emptied = self.catalog.change_module(&name, |record, _| {
                record.tags.clear();
                Ok(std::mem::take(&mut record.versions).into_keys().collect())
            });
            let dropped = emptied.await.map_err(internal)?;
            let _writes = self.supervisor.writes.lock().await;
            self.drop_bytes(dropped).await?;
        }
        for name in self.catalog.models().await.map_err(internal)?.into_keys() {
            let emptied = self.catalog.change_model(&name, |record, _| {
                record.tags.clear();
                Ok(std::mem::take(&mut record.versions).into_keys().collect())
            });
            let dropped = emptied.await.map_err(internal)?;
            let _writes = self.supervisor.writes.lock().await;
            self.drop_model_bytes(dropped).await?;
        }
        Ok(())
    }
}

/// `limits` with others set, and others taken away. One that is named twice is a slip.
fn pinned(text: &str) -> Result<Option<NodeLabel>, Status> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(invalid),
    }
}

fn changed(mut limits: Limits, set: &[v1::Limit], unset: &[String]) -> Result<Limits, Status> {
    let mut named = BTreeSet::new();
    let set = set.iter().map(|limit| (&limit.name, Some(limit.value)));
    for (name, value) in set.chain(unset.iter().map(|name| (name, None))) {
        let quota: Quota = name.parse().map_err(invalid)?;
        if !named.insert(quota) {
            return Err(invalid(format!("the limit `{quota}` is named twice")));
        }
        let value = value.map(|value| quota.check(value)).transpose().map_err(invalid)?;
        limits.set(quota, value);
    }
    Ok(limits)
}

/// `None`: as it is.
fn isolation(asked: &str) -> Result<Option<Isolation>, Status> {
    (!asked.is_empty()).then(|| asked.parse()).transpose().map_err(invalid)
}

fn amount(quota: Quota, value: u64) -> v1::Limit {
    v1::Limit {
        name: quota.to_string(),
        value,
    }
}

fn not_empty(told: &v1::Tenant) -> Status {
    Status::failed_precondition(format!(
        "tenant `{}` has {}, {} and {}: delete them first, or give --purge to delete it with all that it has, messages and state included",
        told.name,
        count(told.swarms, "Swarm"),
        count(told.modules, "module"),
        count(told.models, "model"),
    ))
}
