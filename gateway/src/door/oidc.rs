//! Tokens of an OpenID provider, beside the platform's own: whom they let in, and as what. No I/O: whoever reads the provider's keys tells the
//! [`Provider`] of them.
//!
//! ```text
//!   token ─► signed by a key of the provider's? for us? still good? (`keys`) ─► claims ─► tenant and role (`Mapping`)
//!               └─ a key that is not known: asked for once more, at most every few seconds, while few wait
//! ```

pub mod keys;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use skep_model::access::{Identity, Role};
use skep_model::limits::{
    OIDC_KNOWN_MAX, OIDC_ROLES_MAX, OIDC_SUBJECT_BYTES_MAX, OIDC_WAIT_MS, OIDC_WAITERS_MAX, TOKEN_NAME_BYTES_MAX,
};
use skep_model::name::TenantId;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use keys::{Keys, Refused, Rules, Verified};

/// What the claims of a token mean here.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// The claim that names the tenant.
    pub tenant_claim: Claim,
    /// The claim that names the role, or a list of which one does.
    pub role_claim: Claim,
    /// What a value of the tenant's claim means. Empty: the tenant of that name, but never the default one, which has to be said.
    pub tenants: BTreeMap<String, TenantId>,
    /// What a value of the role's claim means. Empty: the role of that name, but never an operator's, which has to be said.
    pub roles: BTreeMap<String, Role>,
}

/// Where a claim stands: its name, or a JSON pointer (RFC 6901) to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim(String);

impl Claim {
    /// `None`: it is empty.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    fn of<'a>(&self, claims: &'a serde_json::Map<String, Value>) -> Option<&'a Value> {
        match self.0.strip_prefix('/') {
            // The first step is a claim, since the map is no value by itself.
            Some(path) => {
                let (first, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
                claims.get(&first.replace("~1", "/").replace("~0", "~"))?.pointer(rest)
            }
            None => claims.get(&self.0),
        }
    }
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Somebody whom the provider knows, and whom the claims say nothing of that means something here. Told to them, since they are who they say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    #[error("the token's claim `{0}` names no tenant of this platform")]
    Tenant(String),
    #[error(
        "the token's claim `{0}` names no role: a token gives one of invoke, read, deploy and admin, or what the node's operator mapped"
    )]
    Role(String),
    #[error("the token is bound to a key of its holder's (`cnf`), for which nobody is asked here: get one that is not")]
    Bound,
    #[error("the token's claim `sub` is not 1 to {OIDC_SUBJECT_BYTES_MAX} characters that can be shown")]
    Subject,
}

impl Mapping {
    /// Who it is, by the claims of a token that is what it says.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub fn identity(&self, verified: &Verified) -> Result<(Identity, TenantId, Role), NoPlace> {
        let claims = &verified.claims;
        // Taken as it is, one that was stolen would be as good as with the key (RFC 7800).
        if claims.contains_key("cnf") {
            return Err(NoPlace::Bound);
        }
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        if subject.is_empty() || subject.len() > OIDC_SUBJECT_BYTES_MAX || subject.chars().any(char::is_control) {
            return Err(NoPlace::Subject);
        }
        let role = self
            .role(claims)
            .ok_or_else(|| NoPlace::Role(self.role_claim.to_string()))?;
        let tenant = match role {
            // Of no tenant, as an operator's token is.
            Role::Operator => TenantId::default_tenant(),
            _ => self
                .tenant(claims)
                .ok_or_else(|| NoPlace::Tenant(self.tenant_claim.to_string()))?,
        };
        // For people: many providers make subjects that say nothing to them.
        let name = ["preferred_username", "email"]
            .into_iter()
            .find_map(|claim| claims.get(claim)?.as_str());
        let name = name.filter(|name| name.len() <= TOKEN_NAME_BYTES_MAX && !name.chars().any(char::is_control));
        let identity = Identity {
            subject: subject.to_owned(),
            name: name.unwrap_or_default().to_owned(),
            until_ms: verified.until_ms,
        };
        Ok((identity, tenant, role))
    }

    fn tenant(&self, claims: &serde_json::Map<String, Value>) -> Option<TenantId> {
        // One, or it would be for the order of a list to say whose data is meant.
        let text = self.tenant_claim.of(claims)?.as_str()?;
        if self.tenants.is_empty() {
            // Every tenant that an operator made is somebody's at the provider too; this one is there by itself, and its name free for whoever
            // takes it there. It has no limits, and its Bees reach the operator's own network.
            return text.parse().ok().filter(|named| *named != TenantId::default_tenant());
        }
        self.tenants.get(text).cloned()
    }

    /// The most that any value gives.
    fn role(&self, claims: &serde_json::Map<String, Value>) -> Option<Role> {
        let one = |text: &str| match self.roles.is_empty() {
            true => text.parse().ok().filter(|role| *role != Role::Operator),
            false => self.roles.get(text).copied(),
        };
        let named: Vec<Role> = match self.role_claim.of(claims)? {
            Value::String(text) => one(text).into_iter().collect(),
            Value::Array(all) => all
                .iter()
                .take(OIDC_ROLES_MAX)
                .filter_map(|v| one(v.as_str()?))
                .collect(),
            _ => Vec::new(),
        };
        // Of two that do not cover each other (invoke and read) the first.
        let most = |best: Role, other: Role| if other.covers(best) { other } else { best };
        named.into_iter().reduce(most)
    }
}

/// What a token says here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub identity: Arc<Identity>,
    pub tenant: TenantId,
    pub role: Role,
    /// Called when the provider drops the key that the token is signed by: what was begun with it ends.
    pub dropped: CancellationToken,
}

/// Why a token lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unlet {
    /// It is no good token.
    Bad(Refused),
    /// Nobody can tell yet: its key is not among those that were read last.
    Unsure,
    /// Good, and of no use here.
    NoPlace(NoPlace),
}

/// The provider's keys could not be read, so nobody can tell whether a token is good; or too many wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotRead;

/// A reading of the provider's keys, counted.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    number: u64,
    good: bool,
}

/// A provider, with the keys that it had when they were read last.
pub struct Provider {
    rules: Rules,
    mapping: Mapping,
    keys: RwLock<Arc<Keys>>,
    /// Tokens that were looked at, by their digest: checking a signature costs more than a call. Emptied when it is full, and with the keys.
    known: Mutex<HashMap<[u8; 32], Known>>,
    readings: watch::Sender<Reading>,
    /// Readings that were begun.
    begun: AtomicU64,
    wanted: Notify,
    waiters: Semaphore,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl Provider {
    #[must_use]
    pub fn new(rules: Rules, mapping: Mapping) -> Arc<Self> {
        Arc::new(Self {
            rules,
            mapping,
            keys: RwLock::default(),
            known: Mutex::default(),
            readings: watch::Sender::default(),
            begun: AtomicU64::new(0),
            wanted: Notify::new(),
            waiters: Semaphore::new(OIDC_WAITERS_MAX),
        })
    }

    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.rules.issuer
    }

    /// A reading begins, which [`Provider::read`] or [`Provider::unread`] ends.
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// These are its keys now, and no others: what a key signed that is not among them is not good any more, and what was begun with it ends.
    pub fn read(&self, keys: Keys) {
        self.set(keys);
        self.readings.send_modify(|reading| {
            *reading = Reading {
                number: reading.number + 1,
                good: true,
            };
        });
    }

    /// Its keys could not be read: those from before stay.
    pub fn unread(&self) {
        self.readings.send_modify(|reading| {
            *reading = Reading {
                number: reading.number + 1,
                good: false,
            };
        });
    }

    /// Its keys could not be read for so long that none is taken any more.
    pub fn forget(&self) {
        self.set(Keys::default());
    }

    fn set(&self, keys: Keys) {
        {
            let mut now = self.keys.write().unwrap_or_else(PoisonError::into_inner);
            *now = Arc::new(keys.after(&now));
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Until somebody shows a token of a key that is not known.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whom a token lets in.
    ///
    /// # Errors
    /// [`Unlet`].
    pub fn look(&self, token: &str, now_ms: u64) -> Result<Known, Unlet> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let known = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&digest)
            .cloned();
        if let Some(known) = known.filter(|known| keys::is_live(known.identity.until_ms, now_ms)) {
            return Ok(known);
        }
        let keys = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        let verified = keys
            .verify(token, &self.rules, now_ms)
            .map_err(|refused| match refused {
                Refused::UnknownKey(_) => Unlet::Unsure,
                refused => Unlet::Bad(refused),
            })?;
        let (identity, tenant, role) = self.mapping.identity(&verified).map_err(Unlet::NoPlace)?;
        let known = Known {
            identity: Arc::new(identity),
            tenant,
            role,
            dropped: verified.dropped,
        };
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Not under other keys than it was held against.
        if Arc::ptr_eq(&keys, &self.keys.read().unwrap_or_else(PoisonError::into_inner)) {
            if all.len() >= OIDC_KNOWN_MAX {
                all.clear();
            }
            all.insert(digest, known.clone());
        }
        Ok(known)
    }

    /// Asks for the keys to be read once more, and waits until they are, by a reading that begins now or later.
    ///
    /// # Errors
    /// [`NotRead`].
    pub async fn fresh(&self) -> Result<(), NotRead> {
        let _waiting = self.waiters.try_acquire().map_err(|_| NotRead)?;
        let mut readings = self.readings.subscribe();
        // One that is under way may have been answered before there was the key.
        let begun = self.begun.load(Ordering::Relaxed);
        self.wanted.notify_one();
        let read = readings.wait_for(|reading| reading.number > begun);
        match tokio::time::timeout(Duration::from_millis(OIDC_WAIT_MS), read).await {
            Ok(Ok(reading)) if reading.good => Ok(()),
            _ => Err(NotRead),
        }
    }
}

#[cfg(test)]
mod tests;
