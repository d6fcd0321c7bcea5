//! In the node: one call of a Bee in its tenant's process, and what that one asks meanwhile.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use skep_model::error::ErrorKind;
use skep_model::limits::{
    APART_ANSWER_BYTES_MAX, APART_ASKS_MAX, APART_TENSORS_BYTES_MAX, APART_WAIT_MS, APART_WAIT_STOPPING_MS,
    APART_WAITS_MAX, HTTP_PER_CALL_MAX, HTTP_REQUESTS_PER_CALL_MAX,
};
use skep_model::part::{NoPart, Parts};
use skep_model::predict::PredictError;
use skep_model::step::{Batch, Processed};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::bee::ApartBee;
use super::check;
use super::link::Link;
use super::messages::{Answer, Ask, CallOut, ToGuest, ToHost};
use super::process::Process;
use crate::egress::{DialCause, DialError};

/// What is to be answered, and what goes with it.
type Answered = (u32, Answer, Option<(OwnedFd, Carried)>);
type Asked<'a> = Pin<Box<dyn Future<Output = Answered> + Send + 'a>>;
/// A connection that was made, on its way.
type Carried = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is under way beside a call's frames. All of it ends with the call.
struct Beside<'a> {
    asked: FuturesUnordered<Asked<'a>>,
    /// What is asked, by its number, and whether it is something else than a connection.
    numbers: HashMap<u32, bool>,
    /// Connections that were asked for in this call.
    dials: usize,
    connections: JoinSet<()>,
}

impl Beside<'_> {
    /// # Errors
    /// What no honest process asks.
    fn admit(&mut self, number: u32, ask: &Ask, inputs: usize) -> Result<(), Broke> {
        let waits = !matches!(ask, Ask::Dial { .. });
        let nobody = matches!(ask, Ask::Part { input, .. } if *input as usize >= inputs);
        let waiting = self.numbers.values().filter(|waits| **waits).count();
        self.dials += usize::from(!waits);
        let much = self.numbers.len() >= APART_ASKS_MAX
            || (waits && waiting >= APART_WAITS_MAX)
            || self.dials > HTTP_REQUESTS_PER_CALL_MAX;
        if nobody || much || self.numbers.insert(number, waits).is_some() {
            return Err(Broke::Rules(
                "it asked for too much at once, or for no input".to_owned(),
            ));
        }
        Ok(())
    }
}

impl ApartBee {
    /// # Errors
    /// What happened instead of an answer; it is never the Bee's doing.
    pub(super) async fn call(&self, batch: Batch) -> Result<Processed, String> {
        let process = self.processes.of(&self.tenant, &self.settings.share).await?;
        let _busy = process.busy();
        let place = tokio::select! {
            place = process.calls.acquire() => place.map_err(|e| e.to_string())?,
            () = process.gone.cancelled() => return Err("it died".to_owned()),
        };
        let ended = tokio::select! {
            biased;
            ended = self.talk(&process, batch) => ended,
            () = process.gone.cancelled() => Err(Broke::Died),
            () = self.too_long() => Err(Broke::Rules(format!(
                "a call did not end, whose Bee has {} ms", self.settings.wall_ms
            ))),
        };
        drop(place);
        ended.map_err(|broke| match broke {
            Broke::Died => "it died while the call was under way".to_owned(),
            Broke::Rules(why) => {
                process.kill(why.clone());
                format!("it was killed: {why}")
            }
            Broke::Told(why) => why,
        })
    }

    /// The process keeps its guests' times; this one is for a process that does not. What a guest waits for its turns is not its time, and that
    /// may be long where its tenant's CPU is limited.
    async fn too_long(&self) {
        let own = Duration::from_millis(self.settings.wall_ms.max(self.settings.cpu_ms));
        let stopping = async {
            self.processes.stopping.cancelled().await;
            tokio::time::sleep(own + Duration::from_millis(APART_WAIT_STOPPING_MS)).await;
        };
        tokio::select! {
            () = tokio::time::sleep(own + Duration::from_millis(APART_WAIT_MS)) => {}
            () = stopping => {}
        }
    }

    async fn talk(&self, process: &Arc<Process>, batch: Batch) -> Result<Processed, Broke> {
        let frame = match self.settings.models {
            Some(_) => APART_TENSORS_BYTES_MAX,
            None => APART_ANSWER_BYTES_MAX,
        };
        let mut link = process.link(frame).map_err(Broke::told)?;
        let (parts, inputs) = (batch.parts.clone(), batch.inputs.len());
        let (mut told, mut coded) = (false, false);
        self.begin(&mut link, &batch)?;
        let mut beside = Beside {
            asked: FuturesUnordered::new(),
            numbers: HashMap::new(),
            dials: 0,
            connections: JoinSet::new(),
        };
        loop {
            let said = tokio::select! {
                biased;
                said = link.next::<ToHost>() => said,
                Some((number, answer, connection)) = beside.asked.next(), if !beside.asked.is_empty() => {
                    beside.numbers.remove(&number);
                    let (socket, carried) = connection.unzip();
                    if let Some(carried) = carried {
                        beside.connections.spawn(carried);
                    }
                    let answer = ToGuest::Answer(number, answer);
                    link.put(&answer, socket.into_iter().collect()).map_err(Broke::told)?;
                    continue;
                }
            };
            match said {
                // A frame that is none is no accident; the end of the socket is the process's.
                Err(e) if e.kind() == std::io::ErrorKind::Other => return Err(Broke::Rules(e.to_string())),
                Err(_) | Ok(None) => return Err(Broke::Died),
                Ok(Some(ToHost::NeedBee)) if !std::mem::replace(&mut told, true) => {
                    process.count(self.id, &self.settings.meter);
                    let told = ToGuest::Bee(Box::new(self.told.clone()));
                    link.put(&told, Vec::new()).map_err(Broke::told)?;
                }
                Ok(Some(ToHost::NeedCode(digest)))
                    if digest == self.told.module && !std::mem::replace(&mut coded, true) =>
                {
                    self.code(process, &mut link).await?;
                }
                Ok(Some(ToHost::Ask(number, ask))) => {
                    beside.admit(number, &ask, inputs)?;
                    while beside.connections.try_join_next().is_some() {}
                    // The last of a connection may still be under way when its request has ended, and the next one begins.
                    let crowded = beside.connections.len() >= 2 * HTTP_PER_CALL_MAX;
                    // Tensors are kept until they are answered.
                    let room = matches!(ask, Ask::Predict { .. }).then(|| link.room()).flatten();
                    let asked = self.asked(number, ask, parts.clone(), crowded);
                    beside.asked.push(Box::pin(async move {
                        let answered = asked.await;
                        drop(room);
                        answered
                    }));
                }
                Ok(Some(ToHost::Done(done))) => {
                    let granted = self.settings.keyed && self.settings.state;
                    let processed = check::processed(batch, granted, *done);
                    let processed = processed.map_err(|broken| Broke::Rules(format!("its answer has {broken}")))?;
                    drop(beside);
                    process.give_back(link);
                    return Ok(processed);
                }
                Ok(Some(ToHost::NeedBee | ToHost::NeedCode(_) | ToHost::Looked(_))) => {
                    return Err(Broke::Rules("it answered what it was not asked".to_owned()));
                }
            }
        }
    }

    fn begin(&self, link: &mut Link, batch: &Batch) -> Result<(), Broke> {
        // As they are now: a new value counts from the next call on.
        let granted = self.settings.secrets.as_ref().map(|secrets| secrets.granted());
        let secrets: Vec<_> = granted
            .iter()
            .flat_map(|granted| granted.values())
            .map(|(name, value)| (name, value.map(crate::SecretValue::expose)))
            .collect();
        let call = CallOut {
            bee: self.id,
            secrets: &secrets,
            batch,
        };
        let size = call.size();
        link.put_sized(&call, size, Vec::new()).map_err(Broke::told)
    }

    async fn code(&self, process: &Process, link: &mut Link) -> Result<(), Broke> {
        let code = match process.code(self.told.module) {
            Some(code) => code,
            None => {
                let code = self.codes.code(&self.tenant, self.told.module).await;
                let code = code.map_err(|e| Broke::Told(format!("its module cannot be loaded: {e}")))?;
                process.hand(self.told.module, &code)
            }
        };
        let shared = code.shared().map(|(digest, _)| digest);
        let files = code.hand_over().map_err(Broke::told)?;
        link.put(&ToGuest::Code { shared }, files).map_err(Broke::told)
    }

    fn asked(&self, number: u32, ask: Ask, parts: Option<Arc<dyn Parts>>, crowded: bool) -> Asked<'_> {
        Box::pin(async move {
            let answer = match ask {
                Ask::Part { input, data } => Answer::Part(match parts {
                    Some(parts) => parts.part(input as usize, data).await,
                    None => Err(NoPart::NoCaller),
                }),
                Ask::Find(_) | Ask::Predict { .. } => self.model(ask).await,
                Ask::Dial { scheme, host, port } => {
                    let refused = |cause, words: &str| DialError {
                        cause,
                        words: words.to_owned(),
                    };
                    let dialled = match &self.settings.http {
                        None => Err(refused(DialCause::Denied, "this Bee may send no requests")),
                        Some(_) if crowded => {
                            Err(refused(DialCause::Crowded, "a call has too many connections under way"))
                        }
                        Some(egress) => egress.dial(scheme, &host, port).await,
                    };
                    let carried = dialled.and_then(|dialled| {
                        let made = UnixStream::pair().and_then(|(own, its)| Ok((own, OwnedFd::from(its.into_std()?))));
                        let (own, its) = made.map_err(|e| refused(DialCause::Other, &e.to_string()))?;
                        Ok((its, Box::pin(dialled.carry(own)) as Carried))
                    });
                    return match carried {
                        Ok(carried) => (number, Answer::Dialled(Ok(())), Some(carried)),
                        Err(e) => (number, Answer::Dialled(Err(e)), None),
                    };
                }
            };
            (number, answer, None)
        })
    }

    /// Of what its stage lists, in its tenant, whatever is asked.
    async fn model(&self, ask: Ask) -> Answer {
        let forbidden = || PredictError::new(ErrorKind::Forbidden, "the model is not granted to this Bee");
        let Some(access) = &self.settings.models else {
            return match ask {
                Ask::Predict { .. } => Answer::Predicted(Err(forbidden())),
                _ => Answer::Found(Err(forbidden())),
            };
        };
        match ask {
            Ask::Find(model) if access.granted.contains(&model) => {
                let found = access.models.find(&access.tenant, &model).await;
                if let Ok(version) = &found {
                    self.remember(version);
                }
                Answer::Found(found.map(|version| version.as_ref().clone()))
            }
            Ask::Predict {
                name,
                digest,
                inputs,
                within_ms,
            } => {
                let Some(version) = self.known(&name, digest) else {
                    return Answer::Predicted(Err(PredictError::new(
                        ErrorKind::NotFound,
                        format!("`{name}` was found too long ago: look it up again"),
                    )));
                };
                let most = self.settings.wall_ms;
                let end = Instant::now() + Duration::from_millis(within_ms.unwrap_or(most).min(most));
                let mut run = pin!(access.models.predict(&access.tenant, &version, inputs, Some(end)));
                Answer::Predicted(run.as_mut().await)
            }
            _ => Answer::Found(Err(forbidden())),
        }
    }
}

/// Why a call came to no answer.
enum Broke {
    Died,
    /// What it did that no honest process does.
    Rules(String),
    /// Something of the node's.
    Told(String),
}

impl Broke {
    #[expect(clippy::needless_pass_by_value, reason = "what `map_err` gives")]
    fn told(e: std::io::Error) -> Self {
        match e.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => Self::Died,
            _ => Self::Told(e.to_string()),
        }
    }
}
