//! What a stage is told to do, made by the node from a Swarm's revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_model::condition::{Condition, Facts};
use skep_model::id::Digest;
use skep_model::message::Message;
use skep_model::name::StageName;
#[cfg(doc)]
use skep_model::swarm::Bound;
use skep_model::swarm::{KeySource, Reader, Stage};
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
    /// What a message from a Gateway must be for this stage; `None`: nothing. Those of a stream lie in every inbox that its subject
    /// feeds, for its sequence numbers are kept per inbox; who does not take one drops it here.
    pub door: Option<Condition>,
    /// The Swarm can end: whoever looks for that wants to know when a partition has nothing to do.
    pub bounded: bool,
}

/// What becomes of a message instead of its Bee's being called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bypass {
    /// It was not for this stage.
    Turn,
    /// It answers its caller as it is.
    Exit,
    /// It goes to the readers of what is published to no name, as it is.
    Skip,
}

/// A stage downstream.
#[derive(Debug, Clone)]
pub struct Destination {
    pub stage: StageName,
    pub topic: Arc<TopicSpec>,
    /// Where that stage takes the key from.
    pub key: Option<KeySource>,
    pub lane: Arc<Lane>,
    /// What a message must be for it; `None`: nothing.
    pub when: Option<Condition>,
    /// It closes a circle: how often a message may go there. `topic` then has the room of [`Bound::of_loops`].
    pub laps: Option<u32>,
}

/// Where a stage is reached.
#[derive(Clone)]
pub struct End {
    pub topic: Arc<TopicSpec>,
    pub lane: Arc<Lane>,
    pub key: Option<KeySource>,
}

/// All stages of a Swarm, those that are reached elsewhere included.
pub type Ends = BTreeMap<StageName, End>;

/// Who reads what `stage` publishes: to no name, and to each name.
#[must_use]
pub fn destinations(
    stage: &StageName,
    readers: &[Reader],
    ends: &Ends,
) -> (Vec<Destination>, BTreeMap<String, Vec<Destination>>) {
    let (mut unnamed, mut named) = (Vec::new(), BTreeMap::<String, Vec<Destination>>::new());
    for reader in readers {
        let Some(end) = ends.get(&reader.stage) else {
            tracing::error!(%stage, reader = %reader.stage, "a reader of a stage is not there; what is published to it is lost");
            continue;
        };
        // An address of its own, which does not count as a writer's: what goes round in a removed circle is looked after by who removes it.
        let topic = reader.laps.map_or_else(
            || Arc::clone(&end.topic),
            |_| {
                Arc::new(TopicSpec {
                    inbox: end.topic.inbox.of_loops(),
                    ..TopicSpec::clone(&end.topic)
                })
            },
        );
        let destination = Destination {
            stage: reader.stage.clone(),
            topic,
            key: end.key.clone(),
            lane: Arc::clone(&end.lane),
            when: reader.when.clone(),
            laps: reader.laps,
        };
        match &reader.output {
            None => unnamed.push(destination),
            Some(output) => named.entry(output.to_string()).or_default().push(destination),
        }
    }
    (unnamed, named)
}

impl Plan {
    /// Everybody downstream.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.unnamed.iter().chain(self.named.values().flatten())
    }

    /// Whether what goes to a stage goes back to it.
    #[must_use]
    pub fn goes_back_to(&self, stage: &StageName) -> bool {
        self.destinations().any(|to| to.laps.is_some() && to.stage == *stage)
    }

    /// No condition stands between a message and the Bee.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.door.is_none() && self.stage.exit.is_none() && self.stage.skip.is_none()
    }

    /// By the conditions of the manifest. `None`: the Bee is called.
    #[must_use]
    pub fn bypass(&self, message: &Message) -> Option<Bypass> {
        if self.takes_all() {
            return None;
        }
        let (door, exit, skip) = (self.door.as_ref(), self.stage.exit.as_ref(), self.stage.skip.as_ref());
        let facts = Facts::new(&message.headers, &message.payload);
        // What a stage published has a parent.
        if message.lineage.is_none() && door.is_some_and(|door| !door.holds(&facts)) {
            Some(Bypass::Turn)
        } else if exit.is_some_and(|exit| exit.holds(&facts)) {
            Some(Bypass::Exit)
        } else if skip.is_some_and(|skip| skip.holds(&facts)) {
            Some(Bypass::Skip)
        } else {
            None
        }
    }

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
