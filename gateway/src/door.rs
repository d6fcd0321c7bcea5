//! Where a credential becomes a scope and a role: the one door, in front of every service and path of the port.
//!
//! ```text
//!   request ─► what does its path need? (`needs`) ─► who asks? (authorization: Bearer …) ─► may they? ─► the call, with its [`Caller`]
//! ```
//! A token of the OpenID provider that the operator trusts is looked at by [`oidc`], once the door is closed.
//!
//! As long as no token was ever made, the door is open: everybody who reaches the port is the operator. Once it was closed it stays so.
//! Whoever keeps tokens tells the door of them ([`Door::close`]); it compares hashes, in memory, and asks nobody.

mod deed;
mod guard;
mod names;
pub mod needs;
pub mod oidc;
mod scan;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::http::Extensions;
use axum::http::header::{AUTHORIZATION, HeaderMap};
use skep_model::access::{By, Caller, PeerKey, Role, Secret, SecretHash, TokenId};
use skep_model::env::Clock;
use skep_model::error::ErrorKind;
use skep_model::limits::{ACCESS_UNHEARD_MS, OIDC_LEEWAY_MS};
use skep_model::name::TenantId;
use skep_model::scope::Scope;
use tokio_util::sync::CancellationToken;

use crate::call::CallError;
pub use deed::{Deed, Who, Witness};
pub(crate) use guard::Guarded;
use needs::Need;
use oidc::{Known, Provider, Unlet};

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
    /// Whose tokens let in beside the platform's own.
    provider: OnceLock<Arc<Provider>>,
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
        /// Those that there are, for who comes by a token of a provider. What was begun for one ends with it.
        tenants: HashMap<TenantId, CancellationToken>,
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
    end: Option<End>,
}

/// When what was begun ends.
#[derive(Debug, Clone)]
struct End {
    called: CancellationToken,
    /// A token of a provider says when it runs out, and nobody has to be asked again; but its key may be dropped before.
    vouched: Option<(Duration, CancellationToken)>,
}

impl From<CancellationToken> for End {
    fn from(called: CancellationToken) -> Self {
        Self { called, vouched: None }
    }
}

impl End {
    async fn come(self) {
        match self.vouched {
            None => self.called.cancelled().await,
            Some((after, dropped)) => tokio::select! {
                () = self.called.cancelled() => {}
                () = dropped.cancelled() => {}
                () = tokio::time::sleep(after) => {}
            },
        }
    }
}

/// Who did not.
#[derive(Debug)]
struct Refused {
    why: CallError,
    /// `None`: nobody who showed a good token.
    who: Option<Box<Who>>,
    /// Who could tell once its keys were read anew.
    unsure: Option<Arc<Provider>>,
}

impl From<CallError> for Refused {
    fn from(why: CallError) -> Self {
        Self {
            why,
            who: None,
            unsure: None,
        }
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
            provider: OnceLock::new(),
            heard_ms: AtomicU64::new(0),
            born: Instant::now(),
        })
    }

    /// From now on this provider's tokens let in too, where the door is closed. The first one stays.
    pub fn trust(&self, provider: Arc<Provider>) {
        let _ = self.provider.set(provider);
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(*self.state(), State::Open { .. })
    }

    /// From now on these come in and nobody else, but for whom a provider vouches for, of one of these tenants or the default one. What was begun with
    /// a pass, or for a tenant, that is no longer among them ends.
    pub fn close(&self, passes: Vec<Pass>, tenants: Vec<TenantId>, peers: PeerKey) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut guests: HashMap<TokenId, Vec<Guest>> = HashMap::new();
        for pass in passes {
            let Some(id) = pass.caller.by.token() else { continue };
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
        let mut stay: HashMap<TenantId, CancellationToken> = HashMap::new();
        for tenant in tenants.into_iter().chain([TenantId::default_tenant()]) {
            let before = match &**state {
                State::Closed { tenants, .. } => tenants.get(&tenant),
                State::Open { .. } => None,
            };
            let end = before.filter(|end| !end.is_cancelled()).cloned();
            stay.insert(tenant, end.unwrap_or_default());
        }
        let tenants = stay;
        if let State::Open { end } = &**state {
            end.cancel();
        }
        if let State::Closed {
            guests: before,
            tenants: former,
            ..
        } = &**state
        {
            for (_, gone) in former.iter().filter(|(tenant, _)| !tenants.contains_key(*tenant)) {
                gone.cancel();
            }
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
        *state = Arc::new(State::Closed { guests, tenants, peers });
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
        let State::Closed { guests, tenants, .. } = &*state else {
            return false;
        };
        let (now_ms, stale) = (self.clock.now_ms(), self.is_stale());
        for guest in guests.values().flatten() {
            if stale || guest.pass.until_ms.is_some_and(|until| until <= now_ms) {
                guest.end.cancel();
            }
        }
        if stale {
            tenants.values().for_each(CancellationToken::cancel);
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
        let (guests, tenants, peers) = match &*state {
            State::Open { end } => {
                return Ok(Entered {
                    caller: Some(everybody()),
                    name: Arc::default(),
                    end: Some(end.clone().into()),
                });
            }
            State::Closed { guests, tenants, peers } => (guests, tenants, peers),
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
        let (_, text) = shown
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER))
            .ok_or_else(unknown)?;
        let now_ms = self.clock.now_ms();
        let entered = match (Secret::parse(text), self.provider.get()) {
            (Some(secret), _) => {
                let hash = secret.hash();
                let guest = guests
                    .get(&secret.id)
                    .into_iter()
                    .flatten()
                    .find(|guest| guest.pass.hash.is(&hash) && guest.pass.until_ms.is_none_or(|until| now_ms < until))
                    .ok_or_else(unknown)?;
                Entered {
                    caller: Some(guest.pass.caller.clone()),
                    name: Arc::clone(&guest.pass.name),
                    end: Some(guest.end.clone().into()),
                }
            }
            (None, Some(provider)) => vouched(provider, text, tenants, now_ms)?,
            (None, None) => return Err(unknown().into()),
        };
        if self.is_stale() {
            return Err(CallError::not_done(
                ErrorKind::Unavailable,
                "unheard",
                "this node has not heard of its store for a while, so it cannot tell whose token is still good: try another node, or again \
                 later",
            )
            .into());
        }
        if let Need::Role(role) = need
            && let Some(caller) = &entered.caller
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
                name: Arc::clone(&entered.name),
            }));
            return Err(Refused { why, who, unsure: None });
        }
        Ok(entered)
    }
}

/// Whom a provider vouches for.
fn vouched(
    provider: &Arc<Provider>,
    token: &str,
    tenants: &HashMap<TenantId, CancellationToken>,
    now_ms: u64,
) -> Result<Entered, Refused> {
    let Known {
        identity,
        tenant,
        role,
        dropped,
    } = provider.look(token, now_ms).map_err(|unlet| match unlet {
        // Why is for the operator's eyes: to others it says what would be taken.
        Unlet::Bad(why) => {
            tracing::debug!(%why, "a token that is none of the platform's own lets nobody in");
            Refused::from(unknown())
        }
        Unlet::Unsure => Refused {
            unsure: Some(Arc::clone(provider)),
            ..Refused::from(unknown())
        },
        Unlet::NoPlace(why) => CallError::not_done(ErrorKind::Forbidden, "no-place", why.to_string()).into(),
    })?;
    let called = tenants.get(&tenant).ok_or_else(|| {
        let why = format!(
            "there is no tenant `{tenant}`, which the token names: an operator makes it with `skep tenant create`"
        );
        CallError::not_done(ErrorKind::Forbidden, "no-place", why)
    })?;
    let left_ms = identity.until_ms.saturating_add(OIDC_LEEWAY_MS).saturating_sub(now_ms);
    let name: Arc<str> = identity.name.as_str().into();
    Ok(Entered {
        caller: Some(Caller {
            scope: Scope::of(tenant),
            role,
            by: By::Identity(identity),
        }),
        name,
        end: Some(End {
            called: called.clone(),
            vouched: Some((Duration::from_millis(left_ms), dropped)),
        }),
    })
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
        by: By::Nothing,
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
