//! Signed modules: who may say that a module is theirs.
//!
//! A signature is Ed25519 (RFC 8032) over a fixed text that has the module's name and the sha256 of its bytes: neither another module's
//! signature nor the same bytes under another name pass. A tenant that has signers takes modules signed by one of them only; see
//! [`Signers::check`] for where that is asked.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use skep_model::id::Digest;
use skep_model::name::ModuleName;
use thiserror::Error;

/// Keys of one tenant, and signatures that are kept of one version of a module.
pub const SIGNERS_MAX: usize = 16;
const KIND: &str = "ed25519";
const KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;

/// A public key, as text `ed25519:` and 43 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; KEY_BYTES]);

/// What one key says of one module, as text: the key's, `:`, and 86 characters of base64url.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signature {
    pub key: PublicKey,
    bytes: [u8; SIGNATURE_BYTES],
}

/// What is wrong with a key or a signature.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadSignature {
    #[error("a public key is written `ed25519:` and 43 characters of base64url; `skep signer show FILE` prints one")]
    Key,
    #[error("a signature is written `ed25519:KEY:SIGNATURE`; `skep signer sign` prints one")]
    Text,
    #[error("the signature by {key} is not of this module: it is of other bytes, or of another name than `{name}`")]
    Wrong { key: PublicKey, name: String },
    #[error("{0}")]
    File(String),
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KIND}:{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = BadSignature;

    fn from_str(text: &str) -> Result<Self, BadSignature> {
        let key = text.strip_prefix(KIND).and_then(|rest| rest.strip_prefix(':'));
        key.and_then(decoded).map(Self).ok_or(BadSignature::Key)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, URL_SAFE_NO_PAD.encode(self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Signature {
    type Err = BadSignature;

    fn from_str(text: &str) -> Result<Self, BadSignature> {
        let (key, bytes) = text.rsplit_once(':').ok_or(BadSignature::Text)?;
        Ok(Self {
            key: key.parse().map_err(|_| BadSignature::Text)?,
            bytes: decoded(bytes).ok_or(BadSignature::Text)?,
        })
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = BadSignature;

            fn try_from(text: String) -> Result<Self, BadSignature> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(this: $type) -> Self {
                this.to_string()
            }
        }
    };
}
as_text!(PublicKey);
as_text!(Signature);

/// One spelling only: base64 that decodes to the same bytes by other characters is refused by the engine.
fn decoded<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Before any of it is decoded.
    (text.len() <= 2 * N).then_some(())?;
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// What is signed. The first line keeps it apart from all else that a key may sign.
fn signed(name: &ModuleName, digest: &Digest) -> String {
    format!("skep module 1\n{name}\n{}\n", digest.to_hex())
}

impl Signature {
    /// # Errors
    /// It is not of these bytes under this name.
    pub fn verify(&self, name: &ModuleName, digest: &Digest) -> Result<(), BadSignature> {
        let key = UnparsedPublicKey::new(&ED25519, self.key.0);
        let wrong = |_| BadSignature::Wrong {
            key: self.key,
            name: name.to_string(),
        };
        key.verify(signed(name, digest).as_bytes(), &self.bytes).map_err(wrong)
    }
}

/// The keys whose modules a tenant takes. None: it takes any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signers(BTreeSet<PublicKey>);

impl Signers {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.iter()
    }

    /// # Errors
    /// There are too many, or one that is to go is not there.
    pub fn change(&mut self, add: &[PublicKey], remove: &[PublicKey]) -> Result<(), String> {
        for key in remove {
            if !self.0.remove(key) {
                return Err(format!("{key} is no signer of it"));
            }
        }
        self.0.extend(add);
        if self.0.len() > SIGNERS_MAX {
            return Err(format!("{} signers, of which {SIGNERS_MAX} are allowed", self.0.len()));
        }
        Ok(())
    }

    /// Whether a version of a module may be used: as it is pushed, as a Swarm is applied that runs it, and as it is tried on a dead
    /// letter. A Swarm that runs goes on when a key is taken away: stopping it is a decision of its own.
    ///
    /// # Errors
    /// Why not, for whoever pushes or applies.
    pub fn check(&self, name: &ModuleName, digest: &Digest, signatures: &[Signature]) -> Result<(), String> {
        if self.is_empty() {
            return Ok(());
        }
        // What is kept was verified as it came; a store that somebody else wrote to is not believed.
        let by_signer = |signature: &&Signature| self.0.contains(&signature.key);
        if signatures
            .iter()
            .filter(by_signer)
            .any(|signature| signature.verify(name, digest).is_ok())
        {
            return Ok(());
        }
        let has = match signatures {
            [] => "has no signature".to_owned(),
            some => {
                let keys: Vec<String> = some.iter().map(|signature| signature.key.to_string()).collect();
                format!("is signed by {}, which is none of them", keys.join(" and "))
            }
        };
        Err(format!(
            "the tenant takes modules that one of its signers signed, and `{name}` ({}) {has}: push it with --sign-key",
            &digest.to_hex()[..12]
        ))
    }
}

/// A private key.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the private key of {}", self.public())
    }
}

impl SigningKey {
    /// A new one as the text of its file: PKCS #8 in PEM, as OpenSSL reads it too.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn make() -> Result<(Self, String), BadSignature> {
        let failed = |_| BadSignature::File("the system gives no random numbers".to_owned());
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(failed)?;
        let encoded = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = (0..encoded.len())
            .step_by(64)
            .map(|at| &encoded[at..(at + 64).min(encoded.len())])
            .collect();
        let text = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            lines.join("\n")
        );
        Ok((Self::parse(text.as_bytes())?, text))
    }

    /// # Errors
    /// It is no private key of Ed25519 in PEM.
    pub fn parse(pem: &[u8]) -> Result<Self, BadSignature> {
        let none = || {
            BadSignature::File(
                "no private key of Ed25519 in PEM: `skep signer new FILE` makes one, `openssl genpkey -algorithm ed25519` too".to_owned(),
            )
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| none())?;
        // OpenSSL writes the first version of PKCS #8, which leaves the public key out.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).map_err(|_| none())?;
        Ok(Self(pair))
    }

    /// # Errors
    /// The file cannot be read, or has no key.
    pub fn read(file: &Path) -> Result<Self, BadSignature> {
        let bytes =
            std::fs::read(file).map_err(|e| BadSignature::File(format!("cannot read {}: {e}", file.display())))?;
        Self::parse(&bytes).map_err(|e| BadSignature::File(format!("{}: {e}", file.display())))
    }

    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut key = [0; KEY_BYTES];
        // Of one length, always.
        key.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(key)
    }

    #[must_use]
    pub fn sign(&self, name: &ModuleName, digest: &Digest) -> Signature {
        let mut bytes = [0; SIGNATURE_BYTES];
        bytes.copy_from_slice(self.0.sign(signed(name, digest).as_bytes()).as_ref());
        Signature {
            key: self.public(),
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ModuleName {
        text.parse().unwrap()
    }

    #[test]
    fn a_signature_is_of_one_name_and_one_digest() {
        let (key, text) = SigningKey::make().unwrap();
        assert_eq!(SigningKey::parse(text.as_bytes()).unwrap().public(), key.public());
        let (digest, other) = (Digest::of(b"a"), Digest::of(b"b"));
        let signature = key.sign(&name("hello"), &digest);
        let again: Signature = signature.to_string().parse().unwrap();
        assert_eq!(again, signature);
        again.verify(&name("hello"), &digest).unwrap();
        for (name, digest) in [(name("hello"), other), (name("hell"), digest), (name("other"), digest)] {
            assert!(again.verify(&name, &digest).is_err());
        }
        // Another's key in front of it.
        let mut forged = signature.clone();
        forged.key = SigningKey::make().unwrap().0.public();
        assert!(forged.verify(&name("hello"), &digest).is_err());
    }

    /// PKCS #8 of version 1, as `openssl genpkey` writes it.
    #[test]
    fn a_key_of_openssl_is_read() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbGJeL5+7jDFbjmUmEcTzmcQ2m6xfw7\n-----END PRIVATE KEY-----\n";
        let key = SigningKey::parse(pem.as_bytes()).unwrap();
        let digest = Digest::of(b"x");
        key.sign(&name("m"), &digest).verify(&name("m"), &digest).unwrap();
    }

    #[test]
    fn signers_take_what_one_of_them_signed() {
        let (one, two, stranger) = (
            SigningKey::make().unwrap().0,
            SigningKey::make().unwrap().0,
            SigningKey::make().unwrap().0,
        );
        let digest = Digest::of(b"a");
        let sign = |key: &SigningKey| key.sign(&name("m"), &digest);
        let mut signers = Signers::default();
        signers.check(&name("m"), &digest, &[]).unwrap();
        signers.change(&[one.public(), two.public()], &[]).unwrap();
        assert!(
            signers
                .check(&name("m"), &digest, &[])
                .unwrap_err()
                .contains("has no signature")
        );
        let by_stranger = signers.check(&name("m"), &digest, &[sign(&stranger)]).unwrap_err();
        assert!(by_stranger.contains("none of them"), "{by_stranger}");
        signers
            .check(&name("m"), &digest, &[sign(&stranger), sign(&two)])
            .unwrap();
        // What a store has under a signer's name and is not the signer's.
        let mut forged = sign(&stranger);
        forged.key = one.public();
        assert!(signers.check(&name("m"), &digest, &[forged]).is_err());
        signers.change(&[], &[two.public()]).unwrap();
        assert!(signers.check(&name("m"), &digest, &[sign(&two)]).is_err());
        assert!(signers.change(&[], &[two.public()]).is_err());
        let many: Vec<PublicKey> = (0..SIGNERS_MAX as u8 + 1).map(|at| PublicKey([at; 32])).collect();
        assert!(signers.clone().change(&many, &[]).is_err());
    }

    #[test]
    fn texts_that_are_no_keys_are_refused() {
        let key = SigningKey::make().unwrap().0.public().to_string();
        let almost = key.replace("ed25519", "ed448");
        for wrong in [
            "",
            "ed25519:",
            "ed25519",
            &almost,
            &key[..key.len() - 1],
            &format!("{key}="),
            &format!("{key}A"),
            &"x".repeat(100_000),
        ] {
            assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
            assert!(wrong.parse::<Signature>().is_err(), "{wrong}");
        }
        for wrong in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "\u{0}",
        ] {
            assert!(SigningKey::parse(wrong.as_bytes()).is_err());
        }
    }
}
