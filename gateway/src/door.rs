//! Where a credential becomes a scope and a role: the one door, in front of every service and path of the port.
//!
//! ```text
//!   request ─► what does its path need? (`needs`) ─► who asks? (authorization: Bearer …) ─► may they? ─► the call, with its [`Caller`]
//! ```
//! As long as no token was ever made, the door is open: everybody who reaches the port is the operator. Once it was closed it stays so.
//! Whoever keeps tokens tells the door of them ([`Door::close`]); it compares hashes, in memory, and asks nobody.

mod deed;
mod guard;
mod names;
pub mod needs;
mod scan;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use axum::http::Extensions;
use axum::http::header::{AUTHORIZATION, HeaderMap};
use skep_model::access::{Caller, PeerKey, Role, Secret, SecretHash, TokenId};
use skep_model::env::Clock;
use skep_model::error::ErrorKind;
use skep_model::limits::ACCESS_UNHEARD_MS;
use skep_model::name::TenantId;
use skep_model::scope::Scope;
use tokio_util::sync::CancellationToken;

use crate::call::CallError;
pub use deed::{Deed, Who, Witness};
pub(crate) use guard::Guarded;
use needs::Need;

const BEARER: &str = "bearer";
/// How a node shows another that both have one store: see [`PeerKey`].
const NODE: &str = "skep-node";

/// One secret by which somebody may come in. A token that was rotated has two for a while.
#[derive(Clone)]
pub struct Pass {
    pub hash: SecretHash,
    /// By the store's clock; `None`: until it is revoked.
    pub until_ms: Option<u64>,
    pub caller: Caller,
    /// What the token is called, for people.
    pub name: Arc<str>,
}

pub struct Door {
    clock: Arc<dyn Clock>,
    state: RwLock<Arc<State>>,
    /// When the store was heard of last, in ms since `born`.
    heard_ms: AtomicU64,
    born: Instant,
}

enum State {
    Open {
        /// Cancelled when the door closes: what came in without a token does not go on.
        end: CancellationToken,
    },
    Closed {
        guests: HashMap<TokenId, Vec<Guest>>,
        peers: PeerKey,
    },
}

struct Guest {
    pass: Pass,
    /// Cancelled when the pass is no longer good: ends what was begun with it.
    end: CancellationToken,
}

/// Who came in.
#[derive(Debug)]
struct Entered {
    caller: Option<Caller>,
    /// What the caller's token is called.
    name: Arc<str>,
    /// Until when: `None` for good.
    end: Option<CancellationToken>,
}

/// Who did not.
#[derive(Debug)]
struct Refused {
    why: CallError,
    /// `None`: nobody who showed a good token.
    who: Option<Box<Who>>,
}

impl From<CallError> for Refused {
    fn from(why: CallError) -> Self {
        Self { why, who: None }
    }
}

impl Door {
    #[must_use]
    pub fn open(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            state: RwLock::new(Arc::new(State::Open {
                end: CancellationToken::new(),
            })),
            heard_ms: AtomicU64::new(0),
            born: Instant::now(),
        })
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(*self.state(), State::Open { .. })
    }

    /// From now on these come in and nobody else. What was begun with a pass that is no longer among them ends.
    pub fn close(&self, passes: Vec<Pass>, peers: PeerKey) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut guests: HashMap<TokenId, Vec<Guest>> = HashMap::new();
        for pass in passes {
            let Some(id) = pass.caller.token else { continue };
            let before = match &**state {
                State::Closed { guests, .. } => guests.get(&id),
                State::Open { .. } => None,
            };
            // What lasts is told by its caller and hash: another date moves only its end.
            let end = before
                .into_iter()
                .flatten()
                .find(|guest| guest.pass.caller == pass.caller && guest.pass.hash.is(&pass.hash))
                .filter(|guest| !guest.end.is_cancelled())
                .map(|guest| guest.end.clone());
            let end = end.unwrap_or_default();
            guests.entry(id).or_default().push(Guest { pass, end });
        }
        if let State::Open { end } = &**state {
            end.cancel();
        }
        if let State::Closed { guests: before, .. } = &**state {
            for (id, gone) in before {
                let stays = |end: &Guest| {
                    let now = guests.get(id).into_iter().flatten();
                    now.into_iter()
                        .any(|guest| guest.pass.hash.is(&end.pass.hash) && guest.pass.caller == end.pass.caller)
                };
                for guest in gone.iter().filter(|guest| !stays(guest)) {
                    guest.end.cancel();
                }
            }
        }
        *state = Arc::new(State::Closed { guests, peers });
        drop(state);
        self.heard();
    }

    /// The store answered just now, so what this door knows is what holds.
    pub fn heard(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(now, Ordering::Relaxed);
    }

    fn is_stale(&self) -> bool {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        now.saturating_sub(self.heard_ms.load(Ordering::Relaxed)) > ACCESS_UNHEARD_MS
    }

    /// Ends what was begun with passes that ran out. To be called again and again. `true`: the store was not heard of for so long that
    /// everything ended, and [`Door::close`] must be called before anybody comes in again.
    pub fn expire(&self) -> bool {
        let state = self.state();
        let State::Closed { guests, .. } = &*state else {
            return false;
        };
        let (now_ms, stale) = (self.clock.now_ms(), self.is_stale());
        for guest in guests.values().flatten() {
            if stale || guest.pass.until_ms.is_some_and(|until| until <= now_ms) {
                guest.end.cancel();
            }
        }
        stale
    }

    /// What this node shows another before it asks by `path`. `None`: nothing has to be shown.
    #[must_use]
    pub fn proof(&self, path: &str) -> Option<String> {
        match &*self.state() {
            State::Open { .. } => None,
            State::Closed { peers, .. } => Some(format!("{NODE} {}", peers.proof(path, self.clock.now_ms()))),
        }
    }

    fn enter(&self, need: Need, path: &str, headers: &HeaderMap) -> Result<Entered, Refused> {
        let state = self.state();
        let (guests, peers) = match &*state {
            State::Open { end } => {
                return Ok(Entered {
                    caller: Some(everybody()),
                    name: Arc::default(),
                    end: Some(end.clone()),
                });
            }
            State::Closed { guests, peers } => (guests, peers),
        };
        if need == Need::Nothing {
            return Ok(Entered {
                caller: None,
                name: Arc::default(),
                end: None,
            });
        }
        let shown = shown(headers);
        if need == Need::Node {
            let proven = matches!(shown, Some((scheme, proof))
                if scheme.eq_ignore_ascii_case(NODE) && peers.proves(proof, path, self.clock.now_ms()));
            return match proven {
                true => Ok(Entered {
                    caller: None,
                    name: Arc::default(),
                    end: None,
                }),
                false => Err(unknown().into()),
            };
        }
        let secret = shown
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER))
            .and_then(|(_, text)| Secret::parse(text))
            .ok_or_else(unknown)?;
        let (hash, now_ms) = (secret.hash(), self.clock.now_ms());
        let guest = guests
            .get(&secret.id)
            .into_iter()
            .flatten()
            .find(|guest| guest.pass.hash.is(&hash) && guest.pass.until_ms.is_none_or(|until| now_ms < until))
            .ok_or_else(unknown)?;
        if self.is_stale() {
            return Err(CallError::not_done(
                ErrorKind::Unavailable,
                "unheard",
                "this node has not heard of its store for a while, so it cannot tell whose token is still good: try another node, or again \
                 later",
            )
            .into());
        }
        let caller = &guest.pass.caller;
        if let Need::Role(role) = need
            && !caller.role.covers(role)
        {
            let why = CallError::not_done(
                ErrorKind::Forbidden,
                "forbidden",
                format!(
                    "this needs a token with the role `{role}`, and this one has `{}`",
                    caller.role
                ),
            );
            let who = Some(Box::new(Who {
                caller: caller.clone(),
                name: Arc::clone(&guest.pass.name),
            }));
            return Err(Refused { why, who });
        }
        Ok(Entered {
            caller: Some(caller.clone()),
            name: Arc::clone(&guest.pass.name),
            end: Some(guest.end.clone()),
        })
    }
}

/// Scheme and credential. Two headers of the name are none.
fn shown(headers: &HeaderMap) -> Option<(&str, &str)> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let text = all.next()?.to_str().ok()?;
    if all.next().is_some() {
        return None;
    }
    text.split_once(' ')
}

/// One text for all that is not a good token: it says nothing of which tokens there are.
fn unknown() -> CallError {
    CallError::not_done(
        ErrorKind::Unauthenticated,
        "unauthenticated",
        "this needs a valid token: `skep login URL`, or SKEP_TOKEN, or the header `authorization: Bearer …`",
    )
}

/// Whoever reaches a port whose door is open.
fn everybody() -> Caller {
    Caller {
        scope: Scope::of(TenantId::default_tenant()),
        role: Role::Operator,
        token: None,
    }
}

/// Whom the door let in.
///
/// # Errors
/// Nobody: the call did not come by the door.
pub fn caller(extensions: &Extensions) -> Result<Caller, CallError> {
    extensions.get::<Caller>().cloned().ok_or_else(unknown)
}

/// The scope of whom the door let in.
///
/// # Errors
/// As [`caller`].
pub fn scope(extensions: &Extensions) -> Result<Scope, CallError> {
    caller(extensions).map(|caller| caller.scope)
}

#[cfg(test)]
mod tests;
