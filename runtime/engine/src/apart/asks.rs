//! In the tenant's process: what a call asks the node for, over its own socket.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use skep_model::egress::Scheme;
use skep_model::error::ErrorKind;
use skep_model::limits::{APART_TENSORS_BYTES_MAX, TENSOR_NAME_BYTES_MAX};
use skep_model::name::{ModelRef, TenantId};
use skep_model::part::{NoPart, Parts};
use skep_model::predict::{Later, ModelVersion, Models, PredictError, Tensors};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::messages::{Answer, Ask};
use crate::egress::{DialCause, DialError, Dialler};

/// What the node answered, and the socket that came with it.
type Answered = (Answer, Option<OwnedFd>);

/// One call's way to the node. Ends with the call: who asks later is told that nobody answers.
#[derive(Clone)]
pub(super) struct Asks {
    out: mpsc::UnboundedSender<(u32, Ask)>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    last: u32,
    all: HashMap<u32, oneshot::Sender<Answered>>,
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asks")
    }
}

/// Forgets what nobody waits for any more.
struct Asked<'a>(&'a Asks, u32);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.waiting().all.remove(&self.1);
    }
}

impl Asks {
    /// And where what is asked comes out. There are as many as a guest waits for: few, of which each has its bound.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<(u32, Ask)>) {
        let (out, asked) = mpsc::unbounded_channel();
        let waiting = Arc::default();
        (Self { out, waiting }, asked)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's answer is here. Whoever asked may have gone.
    pub(super) fn answer(&self, number: u32, answer: Answer, socket: Option<OwnedFd>) {
        if let Some(asked) = self.waiting().all.remove(&number) {
            let _ = asked.send((answer, socket));
        }
    }

    async fn ask(&self, ask: Ask) -> Option<Answered> {
        let (done, answered) = oneshot::channel();
        let number = {
            let mut waiting = self.waiting();
            waiting.last = waiting.last.wrapping_add(1);
            let number = waiting.last;
            waiting.all.insert(number, done);
            number
        };
        let _forget = Asked(self, number);
        self.out.send((number, ask)).ok()?;
        answered.await.ok()
    }
}

impl Parts for Asks {
    fn part(&self, input: usize, data: Bytes) -> Pin<Box<dyn Future<Output = Result<(), NoPart>> + Send + '_>> {
        Box::pin(async move {
            let input = u32::try_from(input).unwrap_or(u32::MAX);
            match self.ask(Ask::Part { input, data }).await {
                Some((Answer::Part(taken), _)) => taken,
                _ => Err(NoPart::Closed),
            }
        })
    }
}

fn gone() -> PredictError {
    PredictError::new(ErrorKind::Unavailable, "the call has ended")
}

impl Models for Asks {
    fn find<'a>(&'a self, _: &'a TenantId, model: &'a ModelRef) -> Later<'a, Arc<ModelVersion>> {
        Box::pin(async move {
            match self.ask(Ask::Find(model.clone())).await {
                Some((Answer::Found(found), _)) => found.map(Arc::new),
                _ => Err(gone()),
            }
        })
    }

    fn list<'a>(&'a self, _: &'a TenantId) -> Later<'a, Vec<Arc<ModelVersion>>> {
        // Bees cannot ask for that.
        Box::pin(std::future::ready(Err(gone())))
    }

    fn load<'a>(&'a self, _: &'a TenantId, _: &'a ModelVersion) -> Later<'a, ()> {
        Box::pin(std::future::ready(Err(gone())))
    }

    fn predict<'a>(
        &'a self,
        _: &'a TenantId,
        model: &'a ModelVersion,
        inputs: Tensors,
        deadline: Option<Instant>,
    ) -> Later<'a, Tensors> {
        Box::pin(async move {
            let bytes = |(name, tensor): &(String, skep_model::tensor::Tensor)| {
                name.len() + tensor.bytes().len() + TENSOR_NAME_BYTES_MAX
            };
            let total: usize = inputs.iter().map(bytes).sum();
            if total > APART_TENSORS_BYTES_MAX - (1 << 20) {
                return Err(PredictError::new(
                    ErrorKind::Invalid,
                    format!(
                        "the inputs have {total} bytes, and a call of a Bee in a process of its own takes {} at most: send fewer rows at once",
                        APART_TENSORS_BYTES_MAX - (1 << 20)
                    ),
                ));
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()).as_millis());
            let ask = Ask::Predict {
                name: model.name.clone(),
                digest: model.digest,
                inputs,
                within_ms: left.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            };
            match self.ask(ask).await {
                Some((Answer::Predicted(predicted), _)) => predicted,
                _ => Err(gone()),
            }
        })
    }
}

#[async_trait]
impl Dialler for Asks {
    async fn dial(&self, scheme: Scheme, host: &str, port: u16) -> Result<UnixStream, DialError> {
        let failed = |words: &str| DialError {
            cause: DialCause::Other,
            words: words.to_owned(),
        };
        let host = host.to_owned();
        let Some((Answer::Dialled(dialled), socket)) = self.ask(Ask::Dial { scheme, host, port }).await else {
            return Err(failed("the call has ended"));
        };
        dialled?;
        let socket = socket.ok_or_else(|| failed("no socket came with the answer"))?;
        let socket = StdStream::from(socket);
        let made = socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket));
        made.map_err(|e| failed(&e.to_string()))
    }
}
