//! A stage's Bee where its tenant's Bees run: in this process, or in one of the tenant's own.

use std::sync::Arc;

use async_trait::async_trait;
use skep_engine::BeeSettings;
use skep_engine::apart::{ApartBee, Codes};
use skep_model::name::{BeeName, TenantId};
use skep_model::step::{Batch, Processed};
use skep_stage::Bee;

use super::modules::Modules;
use super::residents::StageBee;
use crate::isolation::Isolation;
use crate::quotas::Account;

/// Asks at each batch, so a change of the tenant's isolation needs no new plan: what is under way ends where it began, and what comes next
/// runs in the other place.
pub struct TenantBee {
    shared: StageBee,
    apart: ApartBee,
    /// Its tenant's.
    account: Arc<Account>,
}

impl TenantBee {
    pub fn new(
        modules: &Arc<Modules>,
        account: Arc<Account>,
        tenant: &TenantId,
        name: &BeeName,
        settings: BeeSettings,
    ) -> Self {
        let apart = ApartBee::new(
            Arc::clone(modules.processes()),
            Arc::clone(modules) as Arc<dyn Codes>,
            tenant.clone(),
            settings.stage_digest,
            name.clone(),
            settings.clone(),
        );
        Self {
            shared: StageBee::new(Arc::clone(modules), tenant.clone(), name.clone(), settings),
            apart,
            account,
        }
    }
}

#[async_trait]
impl Bee for TenantBee {
    async fn process(&self, batch: Batch) -> Processed {
        match self.account.isolation() {
            Isolation::Shared => self.shared.process(batch).await,
            Isolation::Process => {
                self.shared.let_go();
                self.apart.process(batch).await
            }
        }
    }
}
