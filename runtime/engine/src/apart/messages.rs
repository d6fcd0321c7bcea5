//! What the node and a tenant's process say to each other.
//!
//! ```text
//! control (one a process)    node ─► Order          process ─► News
//! call (one a call at once)  node ─► ToGuest        process ─► ToHost
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use skep_model::egress::{HttpGrant, Scheme};
use skep_model::id::{Digest, Uid};
use skep_model::message::Message;
use skep_model::name::{BeeName, ModelName, ModelRef, TenantId};
use skep_model::part::NoPart;
use skep_model::predict::{ModelVersion, PredictError, Tensors};
use skep_model::step::{Batch, Input, LogLine, StateRoom, Step, Trap};
use skep_model::swarm::{GuestClock, Instances};

use super::codec::{Broken, Reader, Wire, fields, put_length, spelled};
use crate::egress::DialError;

/// What a process is told first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) tenant: TenantId,
    /// Threads that run guest code.
    pub(super) threads: u32,
    pub(super) running: u32,
    pub(super) spare: u32,
    pub(super) memory_bytes_max: u64,
    pub(super) modules_bytes: u64,
    pub(super) idle_ms: u64,
    pub(super) limits: [u64; 4],
}
fields!(Hello {
    tenant,
    threads,
    running,
    spare,
    memory_bytes_max,
    modules_bytes,
    idle_ms,
    limits
});

pub(super) enum Order {
    Hello(Hello),
    /// With its socket.
    Call,
    /// See `Share::told`.
    Limits([u64; 4]),
    Ping(u64),
}

pub(super) enum News {
    /// It is confined and has its engine.
    Ready,
    Pong(u64),
    /// What Bees used since the last time, and what lives now.
    Used {
        bees: Vec<Used>,
        instances: u64,
        memory: u64,
    },
}

pub(super) struct Used {
    pub(super) bee: u64,
    pub(super) cpu_ns: u64,
    pub(super) byte_ms: u64,
}
fields!(Used { bee, cpu_ns, byte_ms });

/// How a Bee is run, for as long as the process keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) module: Digest,
    pub(super) name: BeeName,
    pub(super) memory_bytes: u64,
    pub(super) cpu_ms: u64,
    pub(super) wall_ms: u64,
    pub(super) keyed: bool,
    pub(super) state: bool,
    pub(super) config: BTreeMap<String, String>,
    pub(super) real_clock: bool,
    /// Calls and age, s, of a warm instance; `None`: fresh ones.
    pub(super) pooled: Option<(u32, u32)>,
    pub(super) stage_digest: Digest,
    pub(super) http: Option<Vec<HttpGrant>>,
    pub(super) models: Option<Vec<ModelRef>>,
}
fields!(Told {
    module,
    name,
    memory_bytes,
    cpu_ms,
    wall_ms,
    keyed,
    state,
    config,
    real_clock,
    pooled,
    stage_digest,
    http,
    models,
});

impl Told {
    pub(super) fn clock(&self) -> GuestClock {
        if self.real_clock {
            GuestClock::Real
        } else {
            GuestClock::Recorded
        }
    }

    pub(super) fn instances(&self) -> Instances {
        self.pooled
            .map_or(Instances::Fresh, |(calls, age_s)| Instances::Pooled { calls, age_s })
    }
}

/// One call as the node writes it, without a copy of the batch.
pub(super) struct CallOut<'a> {
    pub(super) bee: u64,
    pub(super) secrets: &'a [(&'a str, Option<&'a [u8]>)],
    pub(super) batch: &'a Batch,
}

pub(super) struct CallIn {
    pub(super) bee: u64,
    pub(super) secrets: BTreeMap<String, Option<Vec<u8>>>,
    /// Its parts are asked of the node where `parts`.
    pub(super) batch: Batch,
    pub(super) parts: bool,
}

pub(super) enum ToGuest {
    Call(Box<CallIn>),
    /// The Bee that was asked for.
    Bee(Box<Told>),
    /// The module that was asked for, and what it shares with others; each with its memory file.
    Code {
        shared: Option<Digest>,
    },
    /// To read a module's names.
    Look(Digest),
    Answer(u32, Answer),
}

pub(super) enum Answer {
    Part(Result<(), NoPart>),
    Found(Result<ModelVersion, PredictError>),
    Predicted(Result<Tensors, PredictError>),
    /// With the connection's socket, where there is one.
    Dialled(Result<(), DialError>),
}

pub(super) enum ToHost {
    NeedBee,
    NeedCode(Digest),
    Ask(u32, Ask),
    Done(Box<Done>),
    /// The Bees' names, and whether the module sends requests; or why it cannot be loaded.
    Looked(Result<(Vec<String>, bool), String>),
}

pub(super) enum Ask {
    Part {
        input: u32,
        data: Bytes,
    },
    Find(ModelRef),
    /// A version that was found, and how many milliseconds the call has left.
    Predict {
        name: ModelName,
        digest: Digest,
        inputs: Tensors,
        within_ms: Option<u64>,
    },
    Dial {
        scheme: Scheme,
        host: String,
        port: u16,
    },
}

pub(super) struct Done {
    pub(super) result: Result<Vec<Step>, Trap>,
    pub(super) log: Vec<LogLine>,
}
fields!(Done { result, log });

spelled!(TenantId, BeeName, ModelName, ModelRef);

impl Wire for Digest {
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Wire::take(from).map(Self)
    }
}

impl Wire for Uid {
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Wire::take(from).map(Self)
    }
}

fn no<T>() -> Result<T, Broken> {
    Err(Broken("a message of no kind"))
}

impl Wire for Order {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => {
                to.push(0);
                hello.put(to);
            }
            Self::Call => to.push(1),
            Self::Limits(limits) => {
                to.push(2);
                limits.put(to);
            }
            Self::Ping(number) => {
                to.push(3);
                number.put(to);
            }
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        match u8::take(from)? {
            0 => Ok(Self::Hello(Wire::take(from)?)),
            1 => Ok(Self::Call),
            2 => Ok(Self::Limits(Wire::take(from)?)),
            3 => Ok(Self::Ping(Wire::take(from)?)),
            _ => no(),
        }
    }
}

impl Wire for [u64; 4] {
    fn put(&self, to: &mut Vec<u8>) {
        self.iter().for_each(|number| number.put(to));
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok([
            Wire::take(from)?,
            Wire::take(from)?,
            Wire::take(from)?,
            Wire::take(from)?,
        ])
    }
}

impl Wire for News {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Ready => to.push(0),
            Self::Pong(number) => {
                to.push(1);
                number.put(to);
            }
            Self::Used {
                bees,
                instances,
                memory,
            } => {
                to.push(2);
                bees.put(to);
                instances.put(to);
                memory.put(to);
            }
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        match u8::take(from)? {
            0 => Ok(Self::Ready),
            1 => Ok(Self::Pong(Wire::take(from)?)),
            2 => Ok(Self::Used {
                bees: Wire::take(from)?,
                instances: Wire::take(from)?,
                memory: Wire::take(from)?,
            }),
            _ => no(),
        }
    }
}

impl Wire for CallOut<'_> {
    fn put(&self, to: &mut Vec<u8>) {
        to.push(0);
        self.bee.put(to);
        put_length(self.secrets.len(), to);
        for (name, value) in self.secrets {
            super::codec::put_bytes(name.as_bytes(), to);
            value.is_some().put(to);
            if let Some(value) = value {
                super::codec::put_bytes(value, to);
            }
        }
        self.batch.inputs.put(to);
        put_length(self.batch.state.len(), to);
        for (key, values) in &self.batch.state {
            key.put(to);
            values.put(to);
        }
        self.batch.room.keys.put(to);
        self.batch.room.bytes.put(to);
        self.batch.parts.is_some().put(to);
    }

    fn take(_: &mut Reader) -> Result<Self, Broken> {
        no()
    }
}

impl CallOut<'_> {
    /// About how many bytes it takes; never too few.
    pub(super) fn size(&self) -> usize {
        let secrets = self
            .secrets
            .iter()
            .map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len) + 16);
        let state = self.batch.state.iter().map(|(key, values)| {
            let values = values.iter().map(|(name, value)| name.len() + value.len() + 16);
            key.len() + 16 + values.sum::<usize>()
        });
        let message = |message: &Message| {
            let headers = message
                .headers
                .iter()
                .map(|(name, value)| name.len() + value.len() + 16);
            message.payload.len() + message.key.as_ref().map_or(0, String::len) + headers.sum::<usize>() + 128
        };
        let inputs = self.batch.inputs.iter().map(|input| match input {
            Input::Message { message: it, .. } => message(it),
            Input::Timer(due) => due.key.len() + due.name.len() + 64,
            Input::Joined(joined) => {
                64 + joined
                    .parts
                    .iter()
                    .map(|(side, it)| side.len() + 16 + message(it))
                    .sum::<usize>()
            }
        });
        128 + secrets.sum::<usize>() + state.sum::<usize>() + inputs.sum::<usize>()
    }
}

fn call_in(from: &mut Reader) -> Result<CallIn, Broken> {
    let bee = Wire::take(from)?;
    let secrets = Vec::<(String, Option<Bytes>)>::take(from)?;
    let secrets = secrets
        .into_iter()
        .map(|(name, value)| (name, value.map(|value| value.to_vec())));
    Ok(CallIn {
        bee,
        secrets: secrets.collect(),
        batch: Batch {
            inputs: Wire::take(from)?,
            state: Vec::<(String, BTreeMap<String, Bytes>)>::take(from)?
                .into_iter()
                .collect(),
            room: StateRoom {
                keys: Wire::take(from)?,
                bytes: Wire::take(from)?,
            },
            parts: None,
        },
        parts: Wire::take(from)?,
    })
}

/// [`ToGuest::Call`] is written as [`CallOut`].
impl Wire for ToGuest {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Call(_) => {}
            Self::Bee(told) => {
                to.push(1);
                told.put(to);
            }
            Self::Code { shared } => {
                to.push(2);
                shared.put(to);
            }
            Self::Look(digest) => {
                to.push(3);
                digest.put(to);
            }
            Self::Answer(number, answer) => {
                to.push(4);
                number.put(to);
                match answer {
                    Answer::Part(taken) => {
                        to.push(0);
                        taken.put(to);
                    }
                    Answer::Found(found) => {
                        to.push(1);
                        found.put(to);
                    }
                    Answer::Predicted(predicted) => {
                        to.push(2);
                        predicted.put(to);
                    }
                    Answer::Dialled(dialled) => {
                        to.push(3);
                        dialled.put(to);
                    }
                }
            }
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(match u8::take(from)? {
            0 => Self::Call(Box::new(call_in(from)?)),
            1 => Self::Bee(Box::new(Wire::take(from)?)),
            2 => Self::Code {
                shared: Wire::take(from)?,
            },
            3 => Self::Look(Wire::take(from)?),
            4 => {
                let number = Wire::take(from)?;
                let answer = match u8::take(from)? {
                    0 => Answer::Part(Wire::take(from)?),
                    1 => Answer::Found(Wire::take(from)?),
                    2 => Answer::Predicted(Wire::take(from)?),
                    3 => Answer::Dialled(Wire::take(from)?),
                    _ => return no(),
                };
                Self::Answer(number, answer)
            }
            _ => return no(),
        })
    }
}

impl Wire for ToHost {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::NeedBee => to.push(0),
            Self::NeedCode(digest) => {
                to.push(1);
                digest.put(to);
            }
            Self::Ask(number, ask) => {
                to.push(2);
                number.put(to);
                ask.put(to);
            }
            Self::Done(done) => {
                to.push(3);
                done.put(to);
            }
            Self::Looked(looked) => {
                to.push(4);
                looked.put(to);
            }
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(match u8::take(from)? {
            0 => Self::NeedBee,
            1 => Self::NeedCode(Wire::take(from)?),
            2 => Self::Ask(Wire::take(from)?, Wire::take(from)?),
            3 => Self::Done(Box::new(Wire::take(from)?)),
            4 => Self::Looked(Wire::take(from)?),
            _ => return no(),
        })
    }
}

impl Wire for Ask {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Part { input, data } => {
                to.push(0);
                input.put(to);
                data.put(to);
            }
            Self::Find(model) => {
                to.push(1);
                model.put(to);
            }
            Self::Predict {
                name,
                digest,
                inputs,
                within_ms,
            } => {
                to.push(2);
                name.put(to);
                digest.put(to);
                inputs.put(to);
                within_ms.put(to);
            }
            Self::Dial { scheme, host, port } => {
                to.push(3);
                scheme.put(to);
                host.put(to);
                port.put(to);
            }
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(match u8::take(from)? {
            0 => Self::Part {
                input: Wire::take(from)?,
                data: Wire::take(from)?,
            },
            1 => Self::Find(Wire::take(from)?),
            2 => Self::Predict {
                name: Wire::take(from)?,
                digest: Wire::take(from)?,
                inputs: Wire::take(from)?,
                within_ms: Wire::take(from)?,
            },
            3 => Self::Dial {
                scheme: Wire::take(from)?,
                host: Wire::take(from)?,
                port: Wire::take(from)?,
            },
            _ => return no(),
        })
    }
}

#[cfg(test)]
mod tests;
