//! How batches, steps, tensors and the like are written.
//!
//! Of a message only what a Bee sees is sent: who waits for it, its trace and where it came from stay in the node.

use bytes::Bytes;
use skep_model::egress::{HttpGrant, Scheme};
use skep_model::error::ErrorKind;
use skep_model::message::Message;
use skep_model::part::NoPart;
use skep_model::predict::{ModelVersion, PredictError};
use skep_model::step::{
    Disposition, Due, Emit, Input, Joined, LogLevel, LogLine, Outcome, StateWrite, Step, TimerWrite, Trap, TrapKind,
};
use skep_model::tensor::{Port, Signature, Tensor, TensorType};

use super::codec::{Broken, Reader, Wire, fields};
use crate::egress::{DialCause, DialError};

/// Values of a fixed list, by their place in it.
macro_rules! listed {
    ($type:ty: $($value:expr),* $(,)?) => {
        impl Wire for $type {
            fn put(&self, to: &mut Vec<u8>) {
                let all = [$($value),*];
                // Every value is in the list; a test goes through them.
                let at = all.iter().position(|value| value == self).unwrap_or(0);
                to.push(u8::try_from(at).unwrap_or(u8::MAX));
            }

            fn take(from: &mut Reader) -> Result<Self, Broken> {
                let all = [$($value),*];
                let at = usize::from(u8::take(from)?);
                all.get(at).copied().ok_or(Broken("a value of no list"))
            }
        }
    };
}

listed!(LogLevel: Self::Trace, Self::Debug, Self::Info, Self::Warn, Self::Error, Self::Critical);
// What ends a message without a run is the node's to say.
listed!(TrapKind: Self::Host, Self::Trap, Self::CpuTime, Self::WallTime, Self::Memory, Self::Output, Self::Contract);
listed!(Scheme: Self::Http, Self::Https);
listed!(ErrorKind: Self::Internal, Self::Invalid, Self::NotFound, Self::Conflict, Self::Overloaded, Self::DeadlineExceeded, Self::Unavailable,
    Self::Rejected, Self::Failed, Self::Unauthenticated, Self::Forbidden);
listed!(DialCause: Self::Other, Self::Dns, Self::NoAddress, Self::Prohibited, Self::Refused, Self::TimedOut, Self::Unreachable, Self::BadHost,
    Self::Certificate, Self::Tls, Self::Denied, Self::Crowded, Self::Configuration);

fields!(Due {
    uid,
    key,
    name,
    at_ms,
    attempt
});
fields!(Joined { uid, parts, attempt });
fields!(Emit {
    to,
    key,
    headers,
    payload
});
fields!(Outcome {
    publish,
    respond,
    disposition
});
fields!(Step { outcome, state, timers });
fields!(StateWrite { name, value });
fields!(TimerWrite { name, at_ms });
fields!(Trap { kind, detail, stderr });
fields!(LogLine {
    level,
    context,
    text,
    input
});
fields!(PredictError { kind, text });
fields!(Port { name, kind, shape });
fields!(Signature { inputs, outputs });
fields!(ModelVersion {
    name,
    digest,
    tags,
    signature
});
fields!(DialError { cause, words });

impl Wire for usize {
    fn put(&self, to: &mut Vec<u8>) {
        (*self as u64).put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Self::try_from(u64::take(from)?).map_err(|_| Broken("a number that is too large"))
    }
}

impl Wire for Message {
    fn put(&self, to: &mut Vec<u8>) {
        self.uid.put(to);
        self.key.put(to);
        self.headers.put(to);
        self.payload.put(to);
        self.accepted_ms.put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(Self {
            uid: Wire::take(from)?,
            key: Wire::take(from)?,
            headers: Wire::take(from)?,
            payload: Wire::take(from)?,
            accepted_ms: Wire::take(from)?,
            request: None,
            trace: None,
            lineage: None,
            hops: Vec::new(),
        })
    }
}

impl Wire for Input {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Message { message, attempt } => {
                to.push(0);
                message.put(to);
                attempt.put(to);
            }
            Self::Timer(due) => {
                to.push(1);
                due.put(to);
            }
            Self::Joined(joined) => {
                to.push(2);
                joined.put(to);
            }
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(match u8::take(from)? {
            0 => Self::Message {
                message: Wire::take(from)?,
                attempt: Wire::take(from)?,
            },
            1 => Self::Timer(Wire::take(from)?),
            2 => Self::Joined(Wire::take(from)?),
            _ => return Err(Broken("an input of no kind")),
        })
    }
}

impl Wire for Disposition {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Done => to.push(0),
            Self::RetryAfter(ms) => {
                to.push(1);
                ms.put(to);
            }
            Self::Reject(reason) => {
                to.push(2);
                reason.put(to);
            }
            Self::Fail { reason, detail } => {
                to.push(3);
                reason.put(to);
                detail.put(to);
            }
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(match u8::take(from)? {
            0 => Self::Done,
            1 => Self::RetryAfter(Wire::take(from)?),
            2 => Self::Reject(Wire::take(from)?),
            3 => Self::Fail {
                reason: Wire::take(from)?,
                detail: Wire::take(from)?,
            },
            _ => return Err(Broken("a disposition of no kind")),
        })
    }
}

impl Wire for NoPart {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::NoCaller => to.push(0),
            Self::Closed => to.push(1),
            Self::TooLarge(max) => {
                to.push(2);
                max.put(to);
            }
            Self::TooMuch(max) => {
                to.push(3);
                max.put(to);
            }
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(match u8::take(from)? {
            0 => Self::NoCaller,
            1 => Self::Closed,
            2 => Self::TooLarge(Wire::take(from)?),
            3 => Self::TooMuch(Wire::take(from)?),
            _ => return Err(Broken("a refusal of no kind")),
        })
    }
}

impl Wire for TensorType {
    fn put(&self, to: &mut Vec<u8>) {
        self.name().to_owned().put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        String::take(from)?.parse().map_err(|_| Broken("a tensor of no type"))
    }
}

impl Wire for Tensor {
    fn put(&self, to: &mut Vec<u8>) {
        self.kind().put(to);
        self.shape().to_vec().put(to);
        self.bytes().put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        let (kind, shape, bytes) = (Wire::take(from)?, Wire::take(from)?, Bytes::take(from)?);
        Self::new(kind, shape, bytes).map_err(|_| Broken("a tensor that is none"))
    }
}

impl Wire for HttpGrant {
    fn put(&self, to: &mut Vec<u8>) {
        self.scheme.put(to);
        self.below.put(to);
        self.host.to_string().put(to);
        self.port.put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(Self {
            scheme: Wire::take(from)?,
            below: Wire::take(from)?,
            host: String::take(from)?.parse().map_err(|_| Broken("a host that is none"))?,
            port: Wire::take(from)?,
        })
    }
}
