//! Who may do what: roles, the tokens that prove them, and what a node keeps of a token.
//!
//! ```text
//!   skep_0123456789ab_<64 hex digits>_<8 hex digits>
//!        id            secret          checksum
//! ```
//! The id is no secret: lists and errors show it. The secret has 256 random bits, so a plain SHA-256 of it is kept and no slow hash: there is
//! nothing to guess. The checksum lets a scanner of source code tell a token from noise without asking anybody.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::env::Entropy;
use crate::id::NotHex;
use crate::scope::Scope;

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Calls subjects of its tenant.
    Invoke,
    /// Looks at what its tenant has, payloads included.
    Read,
    /// Both, and changes what its tenant runs.
    Deploy,
    /// That, and the tokens of its tenant.
    Admin,
    /// The platform: tenants, all tokens, nodes, backups; and an admin of the default tenant.
    Operator,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Invoke, Self::Read, Self::Deploy, Self::Admin, Self::Operator];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
            Self::Operator => "operator",
        }
    }

    /// Whether this role is enough where `needed` is.
    #[must_use]
    pub fn covers(self, needed: Self) -> bool {
        match self {
            // Who may call need not see what others sent, nor the other way round.
            Self::Invoke | Self::Read => self == needed,
            Self::Deploy => matches!(needed, Self::Invoke | Self::Read | Self::Deploy),
            Self::Admin => needed != Self::Operator,
            Self::Operator => true,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no role: there are invoke, read, deploy, admin and operator")]
pub struct NoRole(String);

impl FromStr for Role {
    type Err = NoRole;

    fn from_str(text: &str) -> Result<Self, NoRole> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| NoRole(text.chars().take(64).collect()))
    }
}

/// Names a token; not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId([u8; 6]);

impl TokenId {
    #[must_use]
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut id = [0; 6];
        id.copy_from_slice(&entropy.bits128()[..6]);
        Self(id)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, &self.0)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, &self.0)
    }
}

impl FromStr for TokenId {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Self, NotHex> {
        from_hex(text).map(Self).ok_or(NotHex)
    }
}

/// A token as its owner holds it. Neither shown nor compared; [`Secret::text`] is for the one who is given it.
#[derive(Clone)]
pub struct Secret {
    pub id: TokenId,
    bits: [u8; 32],
}

const PREFIX: &str = "skep_";
/// Of a whole token, in bytes.
pub const TOKEN_BYTES: usize = 5 + 12 + 1 + 64 + 1 + 8;

impl Secret {
    #[must_use]
    pub fn random(id: TokenId, entropy: &dyn Entropy) -> Self {
        let mut bits = [0; 32];
        bits[..16].copy_from_slice(&entropy.bits128());
        bits[16..].copy_from_slice(&entropy.bits128());
        Self { id, bits }
    }

    #[must_use]
    pub fn text(&self) -> String {
        let body = format!("{PREFIX}{}_{}", self.id, Hex(&self.bits));
        format!("{body}_{}", checksum(&body))
    }

    /// `None`: it is no token, or was mistyped. Nothing was asked of anybody yet.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != TOKEN_BYTES || !text.is_ascii() || !text.starts_with(PREFIX) {
            return None;
        }
        let (body, sum) = text.split_at(TOKEN_BYTES - 9);
        let (id, bits) = body[PREFIX.len()..].split_once('_')?;
        let secret = Self {
            id: TokenId(from_hex(id)?),
            bits: from_hex(bits)?,
        };
        (sum[1..] == checksum(body) && sum.starts_with('_')).then_some(secret)
    }

    #[must_use]
    pub fn hash(&self) -> SecretHash {
        let mut hash = Sha256::new();
        hash.update(b"skep token 1");
        hash.update(self.id.0);
        hash.update(self.bits);
        SecretHash(hash.finalize().into())
    }
}

/// What is kept of a token.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// In a time that does not depend on where they differ.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, &self.0)
    }
}

impl FromStr for SecretHash {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Self, NotHex> {
        from_hex(text).map(Self).ok_or(NotHex)
    }
}

/// Who calls, as the door found out. Held by every call behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub scope: Scope,
    pub role: Role,
    pub by: By,
}

/// What somebody showed to come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// Nobody has to show anything here.
    Nothing,
    /// A token of the platform's own.
    Token(TokenId),
    /// A token of the OpenID provider that the operator trusts.
    Identity(Arc<Identity>),
}

impl By {
    /// The id of a token of the platform's own.
    #[must_use]
    pub fn token(&self) -> Option<TokenId> {
        match self {
            Self::Token(id) => Some(*id),
            Self::Nothing | Self::Identity(_) => None,
        }
    }

    /// As records name it: a token's id, or `oidc:SUBJECT`. Nothing: `None`.
    #[must_use]
    pub fn shown(&self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Token(id) => Some(id.to_string()),
            Self::Identity(identity) => Some(format!("oidc:{}", identity.subject)),
        }
    }
}

/// Whom the OpenID provider says somebody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The provider's own name for them, which stays the same (`sub`).
    pub subject: String,
    /// What people call them; it may be empty.
    pub name: String,
    /// When the token runs out, ms since 1970.
    pub until_ms: u64,
}

/// What nodes of one store prove to each other by. It lies in the store, as all that it protects does.
#[derive(Clone)]
pub struct PeerKey([u8; 32]);

/// How far two nodes' clocks may be apart; a proof that was overheard is of use for so long, to ask the same thing again.
pub const PEER_PROOF_MS: u64 = 60_000;

impl PeerKey {
    #[must_use]
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bits = [0; 32];
        bits[..16].copy_from_slice(&entropy.bits128());
        bits[16..].copy_from_slice(&entropy.bits128());
        Self(bits)
    }

    /// As the store keeps it.
    #[must_use]
    pub fn to_hex(&self) -> String {
        Hex(&self.0).to_string()
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        from_hex(text).map(Self)
    }

    /// `MILLISECONDS:HEX`, for one method.
    #[must_use]
    pub fn proof(&self, path: &str, now_ms: u64) -> String {
        let tag: [u8; 32] = self.mac(path, now_ms).finalize().into_bytes().into();
        format!("{now_ms}:{}", Hex(&tag))
    }

    #[must_use]
    pub fn proves(&self, proof: &str, path: &str, now_ms: u64) -> bool {
        let Some((at_ms, tag)) = proof.split_once(':') else {
            return false;
        };
        let (Ok(at_ms), Some(tag)) = (at_ms.parse::<u64>(), from_hex::<32>(tag)) else {
            return false;
        };
        at_ms.abs_diff(now_ms) <= PEER_PROOF_MS && self.mac(path, at_ms).verify_slice(&tag).is_ok()
    }

    fn mac(&self, path: &str, at_ms: u64) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key of any length");
        mac.update(b"skep peer 1");
        mac.update(&at_ms.to_le_bytes());
        mac.update(path.as_bytes());
        mac
    }
}

fn checksum(body: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(b"skep token checksum 1");
    hash.update(body.as_bytes());
    Hex(&hash.finalize()[..4]).to_string()
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, self.0)
    }
}

fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

/// Lower case only: a token has one spelling.
fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SeededEntropy;

    #[test]
    fn a_token_reads_as_it_was_written_and_no_other_way() {
        let entropy = SeededEntropy::new(1);
        let secret = Secret::random(TokenId::random(&entropy), &entropy);
        let text = secret.text();
        assert_eq!(text.len(), TOKEN_BYTES);
        let back = Secret::parse(&text).unwrap();
        assert_eq!(back.id, secret.id);
        assert!(back.hash().is(&secret.hash()));
        // Every flipped bit, every cut, every letter's case.
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bad = text.clone().into_bytes();
                bad[at] ^= 1 << bit;
                if let Ok(bad) = String::from_utf8(bad) {
                    assert!(Secret::parse(&bad).is_none(), "{bad}");
                }
            }
            assert!(Secret::parse(&text[..at]).is_none());
        }
        for bad in [
            "",
            "skep_",
            &text.to_uppercase(),
            &format!("{text} "),
            &"é".repeat(TOKEN_BYTES / 2),
        ] {
            assert!(Secret::parse(bad).is_none(), "{bad}");
        }
        // Well formed, and another's.
        let other = Secret::random(secret.id, &entropy);
        assert!(!other.hash().is(&secret.hash()));
        let kept: SecretHash = secret.hash().to_string().parse().unwrap();
        assert!(kept.is(&secret.hash()));
    }

    #[test]
    fn what_each_role_may() {
        let covers = |role: Role| Role::ALL.map(|needed| role.covers(needed));
        assert_eq!(covers(Role::Invoke), [true, false, false, false, false]);
        assert_eq!(covers(Role::Read), [false, true, false, false, false]);
        assert_eq!(covers(Role::Deploy), [true, true, true, false, false]);
        assert_eq!(covers(Role::Admin), [true, true, true, true, false]);
        assert_eq!(covers(Role::Operator), [true; 5]);
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert!("Operator".parse::<Role>().is_err());
    }

    #[test]
    fn a_node_s_proof_is_for_one_method_one_key_and_a_while() {
        let entropy = SeededEntropy::new(1);
        let (key, other) = (PeerKey::random(&entropy), PeerKey::random(&entropy));
        let proof = key.proof("/a", 1_000_000);
        assert!(key.proves(&proof, "/a", 1_000_000 + PEER_PROOF_MS));
        assert!(!key.proves(&proof, "/a", 1_000_001 + PEER_PROOF_MS));
        assert!(!key.proves(&proof, "/b", 1_000_000));
        assert!(!other.proves(&proof, "/a", 1_000_000));
        assert!(PeerKey::parse(&key.to_hex()).unwrap().proves(&proof, "/a", 1_000_000));
        let moved = proof.replacen("1000000", "1000001", 1);
        for bad in ["", ":", "1000000:", &moved, &proof[..proof.len() - 1]] {
            assert!(!key.proves(bad, "/a", 1_000_000), "{bad}");
        }
    }
}
