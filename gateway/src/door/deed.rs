//! What is recorded of a call that changes something, at the one place that all of them pass.
//!
//! ```text
//!   asked   before the first message reaches who carries it out: what cannot be recorded is not done
//!   ended   with its outcome, when the answer is whole, or when nobody waits for it any more
//!   denied  of whatever call: no good token, or not the role
//! ```

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use skep_model::Bytes;
use skep_model::access::Caller;
use tonic::{Code, Status};

use super::names;
use super::scan::{Object, Scan};

/// Who came in by a token: what a record says of them.
#[derive(Debug, Clone)]
pub struct Who {
    pub caller: Caller,
    /// What the token is called, for people.
    pub name: Arc<str>,
}

/// A call, as it is recorded.
#[derive(Debug, Clone)]
pub struct Deed {
    /// `None`: nobody who showed a good token.
    pub who: Option<Who>,
    /// `Beekeeper/ApplySwarm`.
    pub method: String,
    pub objects: Vec<Object>,
    pub from: SocketAddr,
}

/// Keeps the records.
pub trait Witness: Send + Sync + 'static {
    /// Somebody asks for a change. Returns the number of the record.
    ///
    /// # Errors
    /// It cannot be written; the call is refused.
    fn asked(&self, deed: &Deed) -> Result<u64, String>;
    fn ended(&self, deed: &Deed, asked: Option<u64>, outcome: &str);
    /// Called for each call that is refused: whoever keeps them bounds them.
    fn denied(&self, deed: &Deed, why: &str);
}

/// Every method's name without its package. What is no method of ours has one name, whatever was asked for: who floods a door chooses the paths.
pub(super) fn method(path: &str) -> String {
    match path.strip_prefix("/skep.v1.") {
        Some(method) if super::needs::listed(path).is_some() => method.to_owned(),
        _ if path.starts_with("/v1/") => "HTTP/v1".to_owned(),
        _ => "another path".to_owned(),
    }
}

/// A call under way.
pub(super) struct Act {
    witness: Arc<dyn Witness>,
    state: Mutex<State>,
}

struct State {
    deed: Deed,
    asked: Option<u64>,
    ended: bool,
    sent: Scan,
    answered: Scan,
}

impl Act {
    pub(super) fn new(witness: Arc<dyn Witness>, path: &str, who: Option<Who>, from: SocketAddr) -> Arc<Self> {
        let (sent, answered) = names::of(path);
        let deed = Deed {
            who,
            method: method(path),
            objects: Vec::new(),
            from,
        };
        Arc::new(Self {
            witness,
            state: Mutex::new(State {
                deed,
                asked: None,
                ended: false,
                sent: Scan::new(sent),
                answered: Scan::new(answered),
            }),
        })
    }

    /// A piece of the request, before it goes on.
    fn sends(&self, data: &[u8]) -> Result<(), Status> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.asked.is_some() || state.ended {
            return Ok(());
        }
        state.sent.pass(data);
        if !state.sent.is_done() {
            return Ok(());
        }
        state.deed.objects = state.sent.take();
        match self.witness.asked(&state.deed) {
            Ok(number) => {
                state.asked = Some(number);
                Ok(())
            }
            Err(why) => {
                state.ended = true;
                Err(Status::unavailable(format!(
                    "this changes something, and it cannot be recorded: {why}. Nothing was done: try again, or at another node"
                )))
            }
        }
    }

    fn answers(&self, data: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.ended && !state.answered.is_done() {
            state.answered.pass(data);
        }
    }

    fn ends(&self, outcome: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if state.ended {
            return;
        }
        state.ended = true;
        for (what, name) in state.answered.take() {
            if !state.deed.objects.iter().any(|(known, _)| *known == what) {
                state.deed.objects.push((what, name));
            }
        }
        self.witness.ended(&state.deed, state.asked, outcome);
    }

    fn told(&self, headers: &HeaderMap) {
        let status = headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
        match status {
            Some(Code::Ok) => self.ends("ok"),
            Some(code) => self.ends(&said(code)),
            None => {}
        }
    }

    pub(super) fn request(self: &Arc<Self>, body: Incoming) -> Body {
        Body::new(Sent {
            body,
            act: Arc::clone(self),
        })
    }

    pub(super) fn response(self: &Arc<Self>, response: Response<Body>) -> Response<Body> {
        if response.status().as_u16() != 200 {
            self.ends(&format!("HTTP {}", response.status().as_u16()));
        }
        self.told(response.headers());
        response.map(|body| {
            Body::new(Answered {
                body,
                act: Arc::clone(self),
            })
        })
    }
}

/// As in the protocol: `PERMISSION_DENIED`.
fn said(code: Code) -> String {
    let name = format!("{code:?}");
    let mut out = String::new();
    for (at, letter) in name.chars().enumerate() {
        if letter.is_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

impl Drop for Act {
    fn drop(&mut self) {
        let never = {
            let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            state.asked.is_none()
        };
        // It may have been done all the same: what is begun is carried out.
        self.ends(if never { "never sent" } else { "the caller left" });
    }
}

struct Sent {
    body: Incoming,
    act: Arc<Act>,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return Poll::Pending;
        };
        let frame = frame.map(|frame| frame.map_err(axum::Error::new));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(refused) = self.act.sends(data)
        {
            return Poll::Ready(Some(Err(axum::Error::new(refused))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Answered {
    body: Body,
    act: Arc<Act>,
}

impl http_body::Body for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return Poll::Pending;
        };
        if let Some(Ok(frame)) = &frame {
            match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => self.act.answers(data),
                (_, Some(trailers)) => self.act.told(trailers),
                _ => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_methods_have_the_names_of_the_protocol() {
        assert_eq!(said(Code::PermissionDenied), "PERMISSION_DENIED");
        assert_eq!(said(Code::Unavailable), "UNAVAILABLE");
        assert_eq!(method("/skep.v1.Beekeeper/ApplySwarm"), "Beekeeper/ApplySwarm");
        assert_eq!(method("/v1/orders"), "HTTP/v1");
        for odd in ["/skep.v1.Beekeeper/Nothing", "/skep.v1.", "/x", ""] {
            assert_eq!(method(odd), "another path");
        }
    }
}
