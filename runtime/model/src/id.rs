//! Identities: 128-bit uids, tokens and commit ids, 64-bit nodes, sha256 digests.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::env::Entropy;

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        id! { $(#[$doc])* $name, 16 }
    };
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            #[must_use]
            pub fn random(entropy: &dyn Entropy) -> Self {
                let mut id = [0; $bytes];
                id.copy_from_slice(&entropy.bits128()[..$bytes]);
                Self(id)
            }

            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl FromStr for $name {
            type Err = NotHex;

            fn from_str(s: &str) -> Result<Self, NotHex> {
                parse_hex(s).map(Self)
            }
        }
    };
}

id128! {
    /// Names one message for ever. A child's is a hash of its parent's, so a repeated attempt makes the same children.
    Uid
}
id128! {
    /// The random value that proves a lease. Random, never counted: a rolled-back claim can never be issued again.
    Token
}
id128! {
    /// Names one commit. All zeros means that nothing was committed yet.
    CommitId
}
id128! {
    /// Random per creation of a Swarm, so that a Swarm deleted and made anew shares nothing with the old one.
    Incarnation
}
id128! {
    /// Joins a reply to the call that waits for it.
    RequestId
}
id! {
    /// A node from its start to its stop: one that starts again is another.
    NodeId, 8
}

impl CommitId {
    pub const NONE: Self = Self([0; 16]);
}

impl Uid {
    /// The uid of output `ordinal` of `stage` for this message: a hash, hence the same at each attempt.
    #[must_use]
    pub fn child(&self, stage: &str, ordinal: u32) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"skep uid 1");
        hash.update(self.0);
        hash.update((stage.len() as u64).to_le_bytes());
        hash.update(stage.as_bytes());
        hash.update(ordinal.to_le_bytes());
        let full = hash.finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&full[..16]);
        Self(short)
    }
}

/// A sha256 digest: the name of a module's bytes. As data it is its hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl TryFrom<String> for Digest {
    type Error = NotHex;

    fn try_from(text: String) -> Result<Self, NotHex> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_hex()
    }
}

impl Digest {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The first twelve hex digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_hex()[..12].to_owned()
    }

    #[must_use]
    pub fn to_hex(&self) -> String {
        use fmt::Write as _;
        let mut s = String::with_capacity(64);
        for b in self.0 {
            // Writing to a String cannot fail.
            let _ = write!(s, "{b:02x}");
        }
        s
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// With or without the `sha256:` in front.
impl FromStr for Digest {
    type Err = NotHex;

    fn from_str(s: &str) -> Result<Self, NotHex> {
        parse_hex(s.strip_prefix("sha256:").unwrap_or(s)).map(Self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the expected number of hexadecimal digits")]
pub struct NotHex;

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

fn parse_hex<const N: usize>(s: &str) -> Result<[u8; N], NotHex> {
    if s.len() != 2 * N || !s.is_ascii() {
        return Err(NotHex);
    }
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        let pair = &s[2 * i..2 * i + 2];
        // from_str_radix would take a sign.
        if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotHex);
        }
        *byte = u8::from_str_radix(pair, 16).map_err(|_| NotHex)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_the_same_at_each_attempt_and_differs_by_stage_and_ordinal() {
        let parent = Uid([7; 16]);
        assert_eq!(parent.child("a", 0), parent.child("a", 0));
        assert_ne!(parent.child("a", 0), parent.child("a", 1));
        assert_ne!(parent.child("a", 0), parent.child("b", 0));
        assert_ne!(parent.child("a", 0), Uid([8; 16]).child("a", 0));
    }

    #[test]
    fn hex_goes_both_ways_and_refuses_what_is_not_hex() {
        let uid = Uid([0xab; 16]);
        assert_eq!(uid.to_string().parse::<Uid>(), Ok(uid));
        let digest = Digest::of(b"bee");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert_eq!(digest.to_hex().parse::<Digest>(), Ok(digest));
        let node = NodeId([0x0f; 8]);
        assert_eq!(node.to_string(), "0f0f0f0f0f0f0f0f");
        assert_eq!(node.to_string().parse::<NodeId>(), Ok(node));
        assert!(uid.to_string().parse::<NodeId>().is_err());
        for bad in ["", "ab", "zz", &"é".repeat(16), &"+1".repeat(16)] {
            assert!(bad.parse::<Uid>().is_err(), "{bad}");
        }
    }
}
