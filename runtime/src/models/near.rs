//! Models for whoever asks at the door: those of tenants that this node is for.

use std::sync::Arc;
use std::time::Instant;

use skep_model::error::ErrorKind;
use skep_model::name::{ModelRef, TenantId};
use skep_model::predict::{Later, ModelVersion, Models, PredictError, Tensors};
use skep_stage::Workers;
use tokio::sync::watch;

use super::NodeModels;

/// A model runs in the process that is asked, so one of a pinned tenant is refused elsewhere: there is no topic that would bring it there.
#[derive(Debug)]
pub struct Near {
    pub models: Arc<NodeModels>,
    pub workers: watch::Receiver<Arc<Workers>>,
}

impl Near {
    fn check(&self, tenant: &TenantId) -> Result<(), PredictError> {
        let workers = self.workers.borrow();
        if workers.pins.fits(&workers.me, tenant) {
            return Ok(());
        }
        let text = match workers.pins.tenants.get(tenant) {
            Some(label) => {
                format!("tenant `{tenant}` runs on nodes labelled {label}, and this one is not: ask one of those")
            }
            None => format!("this node is for other tenants than `{tenant}`: ask another node"),
        };
        Err(PredictError::new(ErrorKind::Unavailable, text))
    }
}

impl Models for Near {
    fn find<'a>(&'a self, tenant: &'a TenantId, model: &'a ModelRef) -> Later<'a, Arc<ModelVersion>> {
        match self.check(tenant) {
            Ok(()) => self.models.find(tenant, model),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }

    fn list<'a>(&'a self, tenant: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>> {
        self.models.list(tenant)
    }

    fn load<'a>(&'a self, tenant: &'a TenantId, model: &'a ModelVersion) -> Later<'a, ()> {
        match self.check(tenant) {
            Ok(()) => self.models.load(tenant, model),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }

    fn predict<'a>(
        &'a self,
        tenant: &'a TenantId,
        model: &'a ModelVersion,
        inputs: Tensors,
        deadline: Option<Instant>,
    ) -> Later<'a, Tensors> {
        match self.check(tenant) {
            Ok(()) => self.models.predict(tenant, model, inputs, deadline),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }
}
