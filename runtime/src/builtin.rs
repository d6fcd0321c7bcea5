//! Stages that run no module: they stand where a Bee does and give the same outcomes.
//!
//! What one gives goes to the stage's readers, or answers the caller where the stage has none: see [`Exit`].

mod average;
mod gather;
mod model;

use std::sync::Arc;

use async_trait::async_trait;
use skep_model::Bytes;
use skep_model::env::Clock;
use skep_model::name::TenantId;
use skep_model::predict::Models;
use skep_model::step::{Batch, Disposition, Emit, Input, Outcome, Processed, Step};
use skep_model::swarm::{Builtin, Stage};
use skep_stage::Bee;

/// What is built in, bound to one stage.
pub struct BuiltinBee {
    what: Builtin,
    exit: Exit,
    tenant: TenantId,
    timeout_ms: u64,
    models: Arc<dyn Models>,
    clock: Arc<dyn Clock>,
}

/// Where goes what a built-in stage gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Readers,
    Caller,
}

impl Exit {
    fn outcome(self, headers: Vec<(String, String)>, payload: Bytes) -> Outcome {
        let mut outcome = done();
        match self {
            Self::Readers => outcome.publish.push(Emit {
                to: None,
                key: None,
                headers,
                payload,
            }),
            Self::Caller => outcome.respond.push(payload),
        }
        outcome
    }
}

fn done() -> Outcome {
    Outcome {
        publish: Vec::new(),
        respond: Vec::new(),
        disposition: Disposition::Done,
    }
}

fn ended(disposition: Disposition) -> Outcome {
    Outcome { disposition, ..done() }
}

/// It is the message's fault, or that of who sent it: no other try will do better.
fn reject(why: impl Into<String>) -> Outcome {
    ended(Disposition::Reject(why.into()))
}

fn step(outcome: Outcome) -> Step {
    Step {
        outcome,
        state: Vec::new(),
        timers: Vec::new(),
    }
}

impl BuiltinBee {
    /// `None`: the stage runs a module. `read`: somebody reads what it gives.
    #[must_use]
    pub fn of(
        stage: &Stage,
        tenant: &TenantId,
        read: bool,
        models: Arc<dyn Models>,
        clock: Arc<dyn Clock>,
    ) -> Option<Self> {
        Some(Self {
            what: stage.builtin.clone()?,
            exit: if read { Exit::Readers } else { Exit::Caller },
            tenant: tenant.clone(),
            timeout_ms: stage.timeout_ms,
            models,
            clock,
        })
    }
}

#[async_trait]
impl Bee for BuiltinBee {
    async fn process(&self, batch: Batch) -> Processed {
        let steps = match &self.what {
            Builtin::Model(model) => model::call(self, model, &batch).await.into_iter().map(step).collect(),
            Builtin::Batch { size, wait_ms } => gather::gather(&batch, *size, *wait_ms, self.exit),
            Builtin::Respond => batch.inputs.iter().map(respond).map(step).collect(),
            Builtin::WeightedAverage { weights } => {
                let averaged = batch
                    .inputs
                    .iter()
                    .map(|input| average::average(input, weights, self.exit));
                averaged.map(step).collect()
            }
        };
        Processed {
            result: Ok(steps),
            log: Vec::new(),
        }
    }
}

fn respond(input: &Input) -> Outcome {
    match input {
        Input::Message { message, .. } => Exit::Caller.outcome(Vec::new(), message.payload.clone()),
        Input::Timer(_) | Input::Joined(_) => reject("a built-in `respond` answers messages only"),
    }
}
