//! What users send, and what comes back.

use bytes::Bytes;

use crate::id::{Digest, RequestId, Uid};
use crate::name::StageName;

/// One message, as it lies in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub uid: Uid,
    /// Decides the partition and holds order and state. Set at the door by the first stage's `key:`, or by the Bee that published.
    pub key: Option<String>,
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
    /// When the door took it (or the parent of its parents), ms since the Unix epoch. A Bee's clock shows this.
    pub accepted_ms: u64,
    /// Set while a caller waits for an answer.
    pub request: Option<Request>,
    pub trace: Option<TraceContext>,
    /// Where it comes from; none for what a client sent.
    pub lineage: Option<Lineage>,
    /// The stages passed so far and their times: only kept when `trace` is sampled.
    pub hops: Vec<Hop>,
}

impl Message {
    /// A caller waits who takes parts of the response.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.request.is_some_and(|request| request.streams)
    }

    /// The message that a client sent and from which this one comes: itself, if no Bee made it.
    #[must_use]
    pub fn origin(&self) -> Uid {
        self.lineage.as_ref().map_or(self.uid, |lineage| lineage.origin)
    }
}

/// A caller that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub id: RequestId,
    /// Work whose deadline passed is not done. Ms since the Unix epoch.
    pub deadline_ms: u64,
    /// The call carried an idempotency key, so its reply is stored for the key's window.
    pub keyed: bool,
    /// This message's share of the request's credit, of [`Self::WHOLE`]. A branch that ends without an answer gives its share back:
    /// when all of it is back, nobody is left who might answer. 0: not counted, and nothing is ever given back for it.
    pub share: u64,
    /// The caller takes parts of the response while a Bee works; any other gets them joined. See [`crate::part`].
    pub streams: bool,
}

impl Request {
    /// The credit that a request sets out with.
    pub const WHOLE: u64 = 1 << 62;
}

/// A credit split among `n` messages, as evenly as whole numbers go. Where there is too little for all, none gets any: they are not
/// counted any more, for one without a share might live when all shares are back.
pub fn shares(credit: u64, n: usize) -> impl Iterator<Item = u64> {
    let n = n as u64;
    let (each, rest) = (credit.checked_div(n).unwrap_or(0), credit.checked_rem(n).unwrap_or(0));
    let counted = u64::from(each > 0);
    (0..n).map(move |i| (each + u64::from(i < rest)) * counted)
}

/// W3C Trace Context, level 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub sampled: bool,
}

impl TraceContext {
    /// Reads `00-<32 hex>-<16 hex>-<2 hex>`. Anything else is ignored by the standard's rule, hence `None`.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version.len() != 2 || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let hex =
            |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !hex(version, 2) || !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok()?.to_be_bytes();
        let span_id = u64::from_str_radix(span, 16).ok()?.to_be_bytes();
        let flags = u8::from_str_radix(flags, 16).ok()?;
        if trace_id == [0; 16] || span_id == [0; 8] {
            return None;
        }
        Some(Self {
            trace_id,
            span_id,
            sampled: flags & 1 == 1,
        })
    }

    #[must_use]
    pub fn to_traceparent(&self) -> String {
        format!(
            "00-{:032x}-{:016x}-{:02x}",
            u128::from_be_bytes(self.trace_id),
            u64::from_be_bytes(self.span_id),
            u8::from(self.sampled)
        )
    }
}

/// Which message and which code made this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    pub parent: Uid,
    pub stage: StageName,
    pub module: Digest,
    /// The message that a client sent, and from which this one comes.
    pub origin: Uid,
    /// How often it, or what it came of, went by which loop. At most one each of the Swarm's.
    pub laps: Vec<Lap>,
}

/// How often a message went back from one stage to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lap {
    pub from: StageName,
    pub to: StageName,
    pub times: u32,
}

/// One stage that a message passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    pub stage: StageName,
    /// When its batch started, microseconds since the Unix epoch. The door tells it relative to the call's arrival.
    pub started_us: u64,
    /// Microseconds that the batch took in the Bee.
    pub took_us: u64,
    /// Messages in that batch.
    pub batch: u32,
}

/// What a caller gets, once what it says is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub request: RequestId,
    pub result: ReplyResult,
    pub hops: Vec<Hop>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyResult {
    Response(Bytes),
    /// Done, with an error: the message was dead-lettered. `dead_letter` is absent on the in-memory lane, which keeps none.
    Failed {
        stage: StageName,
        reason: String,
        detail: String,
        dead_letter: Option<u64>,
    },
    /// The deadline passed before a stage began: certainly not done by that stage.
    Expired {
        stage: StageName,
    },
    /// Refused before anything happened, e.g. a full lane.
    Overloaded {
        stage: StageName,
    },
    /// No answer but a notice to the caller's node: a branch ended without one, at this message, and gives back its share of the credit.
    Returned {
        stage: StageName,
        by: Uid,
        share: u64,
    },
}

impl ReplyResult {
    /// Every branch of the request ended, the last at `stage`, and none answered.
    #[must_use]
    pub fn no_response(stage: StageName) -> Self {
        Self::Failed {
            stage,
            reason: NO_RESPONSE.to_owned(),
            detail: "every branch of the request ended without an answer".to_owned(),
            dead_letter: None,
        }
    }
}

/// The reason of a request's failure where nobody is left who might answer it.
pub const NO_RESPONSE: &str = "no-response";
/// The reason of a streamed request's failure whose stage ended between two parts: perhaps done, and not run again.
pub const INTERRUPTED: &str = "interrupted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_round_trip_and_refusals() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = TraceContext::parse(text).unwrap();
        assert!(trace.sampled);
        assert_eq!(trace.to_traceparent(), text);
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }
}
