//! Parts of responses while a batch works.
//!
//! Of an input whose caller takes parts, which is alone in its batch, they leave at once, and a mark is durable before the first. What all
//! others say is gathered: joined, it is the response of an input whose Bee ends well without any other effect for its caller.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use skep_model::id::Uid;
use skep_model::limits::{GATHERED_BATCH_BYTES_MAX, GATHERED_BYTES_MAX, PART_BYTES_MAX};
use skep_model::message::Request;
use skep_model::part::{NoPart, Parts};
use skep_model::step::{Disposition, Input, Processed};
use skep_topic::parts::{Hung, Speaker};
use skep_topic::{Backend, Error, Lease};
use tokio::time::sleep;

use crate::worker::TROUBLE;

/// What is marked instead of the input when a part of its response is about to leave: the same mark as for an attempt, and another name.
pub(crate) fn begun(input: Uid) -> Uid {
    input.child("part", 0)
}

/// What became of the parts of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// None left.
    Nothing,
    Some,
    /// Some left, and then the caller did.
    HungUp,
}

pub(crate) struct Callers {
    backend: Arc<dyn Backend>,
    /// Of the partition, where marks are kept. A lane keeps nothing, for nothing of it is ever run again by others.
    lease: Option<Lease>,
    who: Vec<Who>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum Who {
    Nobody,
    Gathers,
    Streams(Request, Uid),
}

#[derive(Default)]
struct State {
    gathered: BTreeMap<usize, Vec<u8>>,
    gathered_bytes: usize,
    speaker: Option<Arc<dyn Speaker>>,
    hung: bool,
}

impl std::fmt::Debug for Callers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Callers")
            .field("who", &self.who)
            .finish_non_exhaustive()
    }
}

impl Callers {
    /// `None`: no caller waits for any of them.
    pub(crate) fn of(backend: &Arc<dyn Backend>, lease: Option<&Lease>, inputs: &[Input]) -> Option<Arc<Self>> {
        let waits = |input: &Input| input.messages().any(|m| m.request.is_some());
        if !inputs.iter().any(waits) {
            return None;
        }
        let who = inputs.iter().map(|input| match input {
            Input::Message { message, .. } => match message.request {
                Some(request) if request.streams && inputs.len() == 1 => Who::Streams(request, message.uid),
                Some(_) => Who::Gathers,
                None => Who::Nobody,
            },
            _ if waits(input) => Who::Gathers,
            _ => Who::Nobody,
        });
        Some(Arc::new(Self {
            backend: Arc::clone(backend),
            lease: lease.cloned(),
            who: who.collect(),
            state: Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gather(&self, input: usize, data: &[u8]) -> Result<(), NoPart> {
        let mut state = self.state();
        let State {
            gathered,
            gathered_bytes,
            ..
        } = &mut *state;
        let own = gathered.entry(input).or_default();
        if own.len() + data.len() > GATHERED_BYTES_MAX {
            return Err(NoPart::TooLarge(GATHERED_BYTES_MAX as u64));
        }
        *gathered_bytes += data.len();
        if *gathered_bytes > GATHERED_BATCH_BYTES_MAX {
            return Err(NoPart::TooMuch(GATHERED_BATCH_BYTES_MAX));
        }
        own.extend_from_slice(data);
        Ok(())
    }

    async fn live(&self, request: Request, uid: Uid, data: Bytes) -> Result<(), NoPart> {
        if data.len() > PART_BYTES_MAX {
            return Err(NoPart::TooLarge(PART_BYTES_MAX as u64));
        }
        let (speaker, hung) = {
            let state = self.state();
            (state.speaker.clone(), state.hung)
        };
        let said = match speaker {
            _ if hung => Err(Hung),
            Some(speaker) => speaker.say(data).await,
            None => match self.mark(uid).await {
                Ok(()) => {
                    let speaker = self.backend.speaker(request.id, uid);
                    self.state().speaker = Some(Arc::clone(&speaker));
                    speaker.say(data).await
                }
                // The partition is another's, who will find no mark: nothing has left.
                Err(_) => Err(Hung),
            },
        };
        said.map_err(|Hung| {
            self.state().hung = true;
            NoPart::Closed
        })
    }

    async fn mark(&self, uid: Uid) -> Result<(), Error> {
        let Some(lease) = &self.lease else { return Ok(()) };
        loop {
            match self.backend.mark(lease, begun(uid)).await {
                Ok(_) => return Ok(()),
                // Bounded by the Bee's time.
                Err(Error::Unavailable(_) | Error::Unknown(_)) => sleep(TROUBLE).await,
                Err(e) => return Err(e),
            }
        }
    }

    /// Once the Bee has ended: what is on its way to a caller has arrived, and what was gathered is in the steps.
    pub(crate) async fn end(&self, processed: &mut Processed) -> Told {
        let (speaker, gathered) = {
            let mut state = self.state();
            (state.speaker.clone(), std::mem::take(&mut state.gathered))
        };
        if let Ok(steps) = &mut processed.result {
            for (input, joined) in gathered {
                let Some(step) = steps.get_mut(input) else { continue };
                let outcome = &mut step.outcome;
                if outcome.disposition == Disposition::Done && outcome.publish.is_empty() && outcome.respond.is_empty()
                {
                    outcome.respond.push(joined.into());
                }
            }
        }
        let Some(speaker) = speaker else {
            return if self.state().hung { Told::HungUp } else { Told::Nothing };
        };
        if self.state().hung || speaker.all_heard().await.is_err() {
            return Told::HungUp;
        }
        Told::Some
    }
}

impl Parts for Callers {
    fn part(&self, input: usize, data: Bytes) -> Pin<Box<dyn Future<Output = Result<(), NoPart>> + Send + '_>> {
        Box::pin(async move {
            match self.who.get(input) {
                Some(Who::Gathers) => self.gather(input, &data),
                Some(Who::Streams(request, uid)) => self.live(*request, *uid, data).await,
                Some(Who::Nobody) | None => Err(NoPart::NoCaller),
            }
        })
    }
}

/// Whether the caller hung up on a Bee that then did not end well: that is no failure, for nobody is left to be told.
pub(crate) fn in_vain(told: Told, processed: &Processed) -> bool {
    let done = |p: &Processed| match &p.result {
        Ok(steps) => steps.iter().all(|step| step.outcome.disposition == Disposition::Done),
        Err(_) => false,
    };
    told == Told::HungUp && !done(processed)
}
