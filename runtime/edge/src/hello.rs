//! What hub and edge sign for each other when a connection begins. Each proves its key over a number that the other has just made, so nothing
//! that was heard before can be said again, and no clock is asked.

use crate::keys::{Key, Public, verifies};

/// Bytes of a number that is used once.
pub const NONCE_BYTES: usize = 16;

/// The two numbers of one connection, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    pub edge: [u8; 16],
    pub of_edge: [u8; NONCE_BYTES],
    pub of_hub: [u8; NONCE_BYTES],
}

/// What an edge says of itself as it proves its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About<'a> {
    pub version: &'a str,
    /// JSON.
    pub target: &'a str,
    /// The revision of its orders.
    pub follows: u64,
}

impl About<'_> {
    fn words(&self) -> Vec<u8> {
        let mut words = self.follows.to_le_bytes().to_vec();
        for text in [self.version, self.target] {
            words.extend((text.len() as u64).to_le_bytes());
            words.extend(text.as_bytes());
        }
        words
    }
}

impl Greeting {
    fn words(&self, who: &str) -> Vec<u8> {
        let mut words = format!("skep {who} hello 1\n").into_bytes();
        words.extend(self.edge);
        words.extend(self.of_edge);
        words.extend(self.of_hub);
        words
    }

    #[must_use]
    pub fn signed_by_hub(&self, key: &Key) -> [u8; 64] {
        key.sign(&self.words("hub"))
    }

    #[must_use]
    pub fn signed_by_edge(&self, key: &Key, about: &About<'_>) -> [u8; 64] {
        key.sign(&[self.words("edge"), about.words()].concat())
    }

    #[must_use]
    pub fn is_by_hub(&self, key: &Public, signature: &[u8]) -> bool {
        verifies(key, &self.words("hub"), signature)
    }

    #[must_use]
    pub fn is_by_edge(&self, key: &Public, about: &About<'_>, signature: &[u8]) -> bool {
        verifies(key, &[self.words("edge"), about.words()].concat(), signature)
    }
}

/// What a hub signs when it takes an edge in.
#[must_use]
pub fn enrolled(tenant: &str, name: &str, edge: &[u8; 16], key: &Public) -> Vec<u8> {
    // No name has a line break.
    let mut words = format!("skep edge enrolled 1\n{tenant}\n{name}\n").into_bytes();
    words.extend(edge);
    words.extend(key);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proof_stands_for_another() {
        let (hub, edge) = (Key::generate().unwrap(), Key::generate().unwrap());
        let (hub, edge) = (Key::read(&hub).unwrap(), Key::read(&edge).unwrap());
        let greeting = Greeting {
            edge: [1; 16],
            of_edge: [2; 16],
            of_hub: [3; 16],
        };
        let about = About {
            version: "1",
            target: "{}",
            follows: 7,
        };
        let by_hub = greeting.signed_by_hub(&hub);
        let by_edge = greeting.signed_by_edge(&edge, &about);
        assert!(greeting.is_by_hub(&hub.public(), &by_hub));
        assert!(greeting.is_by_edge(&edge.public(), &about, &by_edge));
        // The other side's words, another connection's numbers, another edge's name, another key.
        assert!(!greeting.is_by_edge(&hub.public(), &about, &by_hub));
        assert!(!greeting.is_by_hub(&edge.public(), &by_edge));
        assert!(!greeting.is_by_hub(&edge.public(), &by_hub));
        let later = Greeting {
            of_hub: [4; 16],
            ..greeting
        };
        assert!(!later.is_by_edge(&edge.public(), &about, &by_edge));
        let other = Greeting {
            edge: [9; 16],
            ..greeting
        };
        assert!(!other.is_by_edge(&edge.public(), &about, &by_edge));
        // What it says of itself is not for others to change on the way, nor to move from one field into the next.
        for changed in [
            About { follows: 8, ..about },
            About {
                version: "1{",
                target: "}",
                ..about
            },
            About { target: "{} ", ..about },
        ] {
            assert!(!greeting.is_by_edge(&edge.public(), &changed, &by_edge));
        }
    }
}
