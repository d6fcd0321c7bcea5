//! The connection to the hub: one stream, that begins with a proof by each side and then carries everything.
//!
//! One stream and not a call a purpose: what was proven holds for all that is said on it and for nothing else, no second credential exists that
//! could be taken, and its end is the end of all of it. The edge calls, always: it may stand behind whatever lets nobody in.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use skep_engine::Target;
use skep_model::env::Entropy;
use skep_proto::v1;
use skep_proto::v1::edge_says::Said as EdgeSaid;
use skep_proto::v1::edges_client::EdgesClient;
use skep_proto::v1::hub_says::Said as HubSaid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::code::Shelf;
use crate::enrol::{endpoint, unreached};
use crate::hello::{About, Greeting, NONCE_BYTES};
use crate::home::Identity;
use crate::keys::Key;
use crate::limits::{
    CALL_AGAIN_FIRST_MS, CALL_AGAIN_MAX_MS, CODE_PART_MS, CODE_PARTS_AHEAD, GREETING_MS, HAND_OVER_FRAME_BYTES_MAX,
    HAND_OVER_MS, LINK_BYTES_A_SECOND_MIN, ORDERS_BYTES_MAX, WORDS_AHEAD,
};
use crate::orders::{CodeOrder, Signed};

/// As the hub is told.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a connection hears, for others.
pub struct Link {
    identity: Identity,
    key: Key,
    entropy: Arc<dyn Entropy>,
    /// The connection, while there is one.
    up: watch::Sender<Option<Arc<Session>>>,
    /// The last orders that came; nobody has looked at them yet.
    orders: watch::Sender<Option<Signed>>,
    /// Of the orders that are followed, for the hub to know.
    follows: watch::Receiver<u64>,
    /// Why there is no connection.
    trouble: watch::Sender<Option<String>>,
}

/// A connection on which both sides have proven who they are.
pub struct Session {
    /// Another for each connection of this run.
    pub(crate) number: u64,
    says: mpsc::Sender<v1::EdgeSays>,
    asked: Mutex<Asked>,
    asking: AtomicU64,
    end: CancellationToken,
}

#[derive(Default)]
struct Asked {
    deliveries: HashMap<u64, oneshot::Sender<v1::Delivered>>,
    /// One artifact at a time.
    code: Option<(String, mpsc::Sender<v1::Code>)>,
}

/// The connection ended before the answer came. What was asked may have been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection to the hub ended")]
pub struct Ended;

impl Link {
    #[must_use]
    pub fn new(identity: Identity, key: Key, entropy: Arc<dyn Entropy>, follows: watch::Receiver<u64>) -> Arc<Self> {
        Arc::new(Self {
            identity,
            key,
            entropy,
            up: watch::Sender::new(None),
            orders: watch::Sender::new(None),
            follows,
            trouble: watch::Sender::new(None),
        })
    }

    /// The connection, whenever there is one.
    #[must_use]
    pub fn up(&self) -> watch::Receiver<Option<Arc<Session>>> {
        self.up.subscribe()
    }

    /// Orders as they come.
    #[must_use]
    pub fn orders(&self) -> watch::Receiver<Option<Signed>> {
        self.orders.subscribe()
    }

    /// Why there is no connection now.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Calls the hub, again and again, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut wait_ms = CALL_AGAIN_FIRST_MS;
        while !stop.is_cancelled() {
            let ended = tokio::select! {
                () = stop.cancelled() => break,
                ended = self.attach(&mut wait_ms) => ended,
            };
            self.up.send_if_modified(|up| {
                up.take().is_some_and(|session| {
                    session.end.cancel();
                    true
                })
            });
            let why = match ended {
                Ok(()) => "the hub ended the connection".to_owned(),
                Err(e) => format!("{e:#}"),
            };
            let new = self.trouble.send_replace(Some(why.clone()));
            if new.as_ref() != Some(&why) {
                tracing::warn!("{why}; trying again, and going on meanwhile");
            }
            let chance = u64::from(self.entropy.bits128()[0]) * (wait_ms / 4) / 256;
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(Duration::from_millis(wait_ms + chance)) => {}
            }
            wait_ms = (wait_ms * 2).min(CALL_AGAIN_MAX_MS);
        }
        if let Some(session) = self.up.send_replace(None) {
            session.end.cancel();
        }
    }

    /// One connection, to its end.
    async fn attach(&self, wait_ms: &mut u64) -> anyhow::Result<()> {
        let hub = &self.identity.hub;
        let channel = endpoint(hub, self.identity.ca.as_deref())?
            .connect()
            .await
            .map_err(|e| unreached(hub, &e))?;
        let most = ORDERS_BYTES_MAX.max(HAND_OVER_FRAME_BYTES_MAX) + (64 << 10);
        let mut client = EdgesClient::new(channel)
            .max_decoding_message_size(most)
            .max_encoding_message_size(most);
        let (says, words) = mpsc::channel(WORDS_AHEAD);
        let greeting = async {
            let edge = self.identity.id()?;
            let of_edge: [u8; NONCE_BYTES] = self.entropy.bits128();
            say(
                &says,
                EdgeSaid::Hello(v1::Hello {
                    edge: edge.to_vec().into(),
                    nonce: of_edge.to_vec().into(),
                    tenant: self.identity.tenant.clone(),
                    name: self.identity.name.clone(),
                }),
            )
            .await?;
            let mut heard = client
                .attach(ReceiverStream::new(words))
                .await
                .map_err(refused)?
                .into_inner();
            let Some(HubSaid::Challenge(challenge)) = hear(&mut heard).await? else {
                bail!("{hub} is no hub: it does not prove who it is");
            };
            let of_hub = challenge.nonce.as_ref().try_into().ok();
            let greeting = Greeting {
                edge,
                of_edge,
                of_hub: of_hub
                    .context("the hub's number has another length: bring hub and edge to the same version")?,
            };
            if !greeting.is_by_hub(&self.identity.hub_key, &challenge.signature) {
                bail!(
                    "{hub} has another key than the hub that this edge was enrolled with: it is another hub, or somebody stands between; nothing was \
                     told to it. If its key is gone for good, enrol anew in another folder"
                );
            }
            let target = serde_json::to_string(&Target::host())?;
            let about = About {
                version: VERSION,
                target: &target,
                follows: *self.follows.borrow(),
            };
            say(
                &says,
                EdgeSaid::Proof(v1::Proof {
                    signature: greeting.signed_by_edge(&self.key, &about).to_vec().into(),
                    version: VERSION.to_owned(),
                    revision: about.follows,
                    target: target.clone(),
                }),
            )
            .await?;
            anyhow::Ok(heard)
        };
        let mut heard = timeout(Duration::from_millis(GREETING_MS), greeting)
            .await
            .map_err(|_| anyhow::anyhow!("the hub {hub} did not answer within {} s", GREETING_MS / 1_000))??;
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let session = Arc::new(Session {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            says,
            asked: Mutex::default(),
            asking: AtomicU64::new(1),
            end: CancellationToken::new(),
        });
        // The hub speaks first now, which shows that it has taken the proof.
        let mut proven = false;
        loop {
            let said = tokio::select! {
                said = hear(&mut heard) => said?,
                () = session.end.cancelled() => return Ok(()),
            };
            let Some(said) = said else { return Ok(()) };
            match said {
                HubSaid::Challenge(_) => {}
                HubSaid::Orders(v1::SignedOrders { orders, signature }) => {
                    if !orders.is_empty() {
                        self.orders.send_replace(Some(Signed {
                            orders: orders.to_vec(),
                            signature: signature.to_vec(),
                        }));
                    }
                }
                HubSaid::Code(part) => session.code_came(part).await,
                HubSaid::Delivered(delivered) => session.answered(delivered),
            }
            if !std::mem::replace(&mut proven, true) {
                *wait_ms = CALL_AGAIN_FIRST_MS;
                self.trouble.send_replace(None);
                self.up.send_replace(Some(Arc::clone(&session)));
                tracing::info!(%hub, "attached to the hub");
            }
        }
    }
}

impl Session {
    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it: the link calls again.
    pub fn give_up(&self) {
        self.end.cancel();
    }

    /// Until it has ended.
    pub async fn ended(&self) {
        self.end.cancelled().await;
    }

    /// Hands over a frame of messages, and waits for the hub's word.
    ///
    /// # Errors
    /// The connection ended, or the hub did not answer in time, by which it ends: the messages may be there or not.
    pub async fn deliver(&self, mut what: v1::Deliver) -> Result<v1::Delivered, Ended> {
        let number = self.asking.fetch_add(1, Ordering::Relaxed);
        what.number = number;
        let (answer, answered) = oneshot::channel();
        self.asked().deliveries.insert(number, answer);
        // A slow link is no dead one: whether anybody is there is asked beside it.
        let wait_ms = HAND_OVER_MS + what.frame.len() as u64 * 1_000 / LINK_BYTES_A_SECOND_MIN;
        let asked = async {
            say(&self.says, EdgeSaid::Deliver(what)).await.ok()?;
            answered.await.ok()
        };
        let said = tokio::select! {
            said = timeout(Duration::from_millis(wait_ms), asked) => said.ok().flatten(),
            () = self.end.cancelled() => None,
        };
        self.asked().deliveries.remove(&number);
        said.ok_or_else(|| {
            self.end.cancel();
            Ended
        })
    }

    fn answered(&self, delivered: v1::Delivered) {
        if let Some(answer) = self.asked().deliveries.remove(&delivered.number) {
            let _ = answer.send(delivered);
        }
    }

    async fn code_came(&self, part: v1::Code) {
        let wanted = |(native, _): &&(String, _)| *native == part.native;
        let to = self.asked().code.as_ref().filter(wanted).map(|(_, to)| to.clone());
        if let Some(to) = to {
            // Who waited may have given up.
            let _ = to.send(part).await;
        }
    }

    /// How it fares here.
    pub async fn report(&self, report: v1::EdgeReport) {
        let _ = say(&self.says, EdgeSaid::Report(report)).await;
    }

    /// Fetches an artifact and puts it on the shelf. One at a time.
    ///
    /// # Errors
    /// The connection ended, the hub has none, or what came is not what it should be.
    pub async fn fetch(&self, shelf: &Shelf, code: CodeOrder) -> anyhow::Result<()> {
        let native = code.native.to_hex();
        let (to, mut parts) = mpsc::channel::<v1::Code>(CODE_PARTS_AHEAD);
        self.asked().code = Some((native.clone(), to));
        let begun = shelf.begin(code)?;
        say(
            &self.says,
            EdgeSaid::WantCode(v1::WantCode {
                module: code.module.to_hex(),
                native,
                from: begun.bytes(),
            }),
        )
        .await?;
        let mut coming = Some(begun);
        loop {
            let part = tokio::select! {
                part = timeout(Duration::from_millis(CODE_PART_MS), parts.recv()) => part.context("the hub sends no code")?,
                () = self.end.cancelled() => bail!(Ended),
            };
            let part = part.context(Ended)?;
            if !part.refused.is_empty() {
                bail!("the hub has no code of module {}: {}", code.module, part.refused);
            }
            let mut file = coming.take().context("a part behind the last")?;
            let shelf = shelf.clone();
            // Disks are slow, and verifying reads it all.
            coming = tokio::task::spawn_blocking(move || {
                file.add(part.at, &part.part)?;
                if part.last {
                    shelf.take(file, code)?;
                    return anyhow::Ok(None);
                }
                Ok(Some(file))
            })
            .await??;
            if coming.is_none() {
                return Ok(());
            }
        }
    }
}

async fn say(to: &mpsc::Sender<v1::EdgeSays>, said: EdgeSaid) -> Result<(), Ended> {
    to.send(v1::EdgeSays { said: Some(said) }).await.map_err(|_| Ended)
}

async fn hear(from: &mut Streaming<v1::HubSays>) -> anyhow::Result<Option<HubSaid>> {
    loop {
        match from.message().await.map_err(refused)? {
            None => return Ok(None),
            // What a newer hub may say and this edge does not know.
            Some(v1::HubSays { said: None }) => {}
            Some(v1::HubSays { said }) => return Ok(said),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        // What the transport says is no word of the hub's.
        _ if std::error::Error::source(&status).is_some() => {
            anyhow::anyhow!("the connection to the hub broke: {}", status.message())
        }
        tonic::Code::Unimplemented => {
            anyhow::anyhow!("the hub knows no edges: bring it to the version of this edge, {VERSION}, or a later one")
        }
        _ => anyhow::anyhow!("the hub says: {}", status.message()),
    }
}
