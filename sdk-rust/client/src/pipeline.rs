//! Many requests on one stream.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::gateway::Wire;
use crate::gateway::{Request, Via};
use crate::{Error, Kind, Outcome, Response, WINDOW_MAX};

/// A handle to one stream of requests. Cheap to clone; all clones share the stream and its window of [`WINDOW_MAX`]. A broken
/// stream is opened anew by the next request.
#[derive(Clone)]
pub struct Requests {
    of: Arc<Shared>,
}

struct Shared {
    client: GatewayClient<Wire>,
    window: Semaphore,
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    next_id: AtomicU64,
}

/// One stream, as long as it lives.
struct Link {
    /// Unbounded by type; the window bounds it.
    calls: mpsc::UnboundedSender<v1::RequestCall>,
    /// None once the stream ended.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<v1::Reply>>>>,
    /// Closes with the last handle, which ends the stream and with it, on the node, whatever is under way.
    _alive: oneshot::Sender<()>,
}

impl Requests {
    pub(crate) fn client(&self) -> GatewayClient<Wire> {
        self.of.client.clone()
    }

    pub(crate) fn new(client: GatewayClient<Wire>) -> Self {
        Self {
            of: Arc::new(Shared {
                client,
                window: Semaphore::new(WINDOW_MAX),
                link: tokio::sync::Mutex::new(None),
                next_id: AtomicU64::new(1),
            }),
        }
    }

    /// A request: await it, with options in between. Dropped, its answer is dropped too.
    pub fn request(&self, subject: impl Into<String>, payload: impl Into<Bytes>) -> Request {
        Request::new(Via::Stream(self.clone()), subject.into(), payload.into())
    }

    pub(crate) async fn once(&self, mut call: v1::RequestCall) -> Result<Response, Error> {
        let _place = self.of.window.acquire().await.map_err(|_| Error::broken())?;
        let link = self.link().await?;
        let id = self.of.next_id.fetch_add(1, Ordering::Relaxed);
        call.id = id;
        let (tx, rx) = oneshot::channel();
        match link.lock().as_mut() {
            Some(waiting) => waiting.insert(id, tx),
            None => return Err(never_sent()),
        };
        // From here on the registration goes with this call, however it ends.
        let _leave = Leave { link: &link, id };
        link.calls.send(call).map_err(|_| never_sent())?;
        Response::of(rx.await.map_err(|_| Error::broken())?)
    }

    async fn link(&self) -> Result<Arc<Link>, Error> {
        let mut slot = self.of.link.lock().await;
        if let Some(link) = slot.as_ref()
            && link.lock().is_some()
        {
            return Ok(Arc::clone(link));
        }
        let (calls, outgoing) = mpsc::unbounded_channel();
        let replies = self
            .of
            .client
            .clone()
            .requests(UnboundedReceiverStream::new(outgoing))
            .await
            // No call was sent on it yet.
            .map_err(|status| Error {
                outcome: Outcome::NotDone,
                ..Error::from(status)
            })?
            .into_inner();
        let (alive, ended) = oneshot::channel();
        let link = Arc::new(Link {
            calls,
            waiting: Mutex::new(Some(HashMap::new())),
            _alive: alive,
        });
        tokio::spawn(hand_out(Arc::downgrade(&link), replies, ended));
        *slot = Some(Arc::clone(&link));
        Ok(link)
    }
}

fn never_sent() -> Error {
    Error::new(Kind::Unavailable, Outcome::NotDone, "the stream to the node had ended")
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<v1::Reply>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn hand_out(link: std::sync::Weak<Link>, mut replies: Streaming<v1::Reply>, mut ended: oneshot::Receiver<()>) {
    loop {
        let next = tokio::select! {
            biased;
            next = replies.message() => next,
            _ = &mut ended => return,
        };
        let Ok(Some(reply)) = next else { break };
        let Some(link) = link.upgrade() else { return };
        let waiter = link.lock().as_mut().and_then(|waiting| waiting.remove(&reply.id));
        if let Some(waiter) = waiter {
            // Whoever asked may have gone.
            let _ = waiter.send(reply);
        }
    }
    if let Some(link) = link.upgrade() {
        // Dropping the senders tells everybody who waits.
        link.lock().take();
    }
}

struct Leave<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.link.lock().as_mut() {
            waiting.remove(&self.id);
        }
    }
}
