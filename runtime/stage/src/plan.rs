//! What a stage is told to do, made by the node from a Swarm's revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::id::Digest;
use skep_model::name::StageName;
use skep_model::swarm::{KeySource, Stage};
use skep_topic::TopicSpec;
use skep_topic::lane::Lane;

use crate::bee::Bee;

/// One revision of one stage. A batch runs the plan that was current at its fetch.
pub struct Plan {
    pub stage: Stage,
    pub topic: Arc<TopicSpec>,
    pub module: Digest,
    pub bee: Arc<dyn Bee>,
    /// Who reads what is published to no name.
    pub unnamed: Vec<Destination>,
    /// Who reads what is published to a named output.
    pub named: BTreeMap<String, Vec<Destination>>,
}

/// A stage downstream.
#[derive(Debug, Clone)]
pub struct Destination {
    pub stage: StageName,
    pub topic: Arc<TopicSpec>,
    /// Where that stage takes the key from.
    pub key: Option<KeySource>,
    pub lane: Arc<Lane>,
}

impl Plan {
    /// The readers of an output. A name that the manifest does not mention is a mistake of the Bee or of the manifest.
    ///
    /// # Errors
    /// The reason for the message's failure.
    pub fn readers(&self, to: Option<&str>) -> Result<&[Destination], String> {
        match to {
            None => Ok(&self.unnamed),
            Some(name) => self.named.get(name).map(Vec::as_slice).ok_or_else(|| {
                format!(
                    "stage `{}` published to output `{name}`, which no Bee of the Swarm reads: add `output: {name}` to an input",
                    self.stage.name
                )
            }),
        }
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("stage", &self.stage)
            .field("module", &self.module)
            .finish_non_exhaustive()
    }
}
