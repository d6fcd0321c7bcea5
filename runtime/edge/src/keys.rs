//! Keys of hubs and edges: Ed25519 (RFC 8032). Each signature says what it is for, so that none can stand for another.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

/// The public half of a key.
pub type Public = [u8; 32];

/// The private half, in memory.
pub struct Key(Ed25519KeyPair);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// A fresh one, as PKCS#8 (RFC 8410), to be kept.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate() -> anyhow::Result<Zeroizing<Vec<u8>>> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("the system gives no random numbers for a key"))?;
        Ok(Zeroizing::new(made.as_ref().to_vec()))
    }

    /// # Errors
    /// They are no such key.
    pub fn read(pkcs8: &[u8]) -> anyhow::Result<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|e| anyhow::anyhow!("not an Ed25519 key: {e}"))?;
        Ok(Self(pair))
    }

    /// A key in a file that nobody else may read.
    ///
    /// # Errors
    /// It is not there, others may read it, or it is no key.
    pub fn open(file: &Path) -> anyhow::Result<Self> {
        let shown = file.display();
        let meta = fs::metadata(file).with_context(|| format!("read the key {shown}"))?;
        if meta.permissions().mode() & 0o077 != 0 {
            bail!("{shown} can be read by others than its owner: `chmod 600 {shown}`");
        }
        let bytes = Zeroizing::new(fs::read(file).with_context(|| format!("read the key {shown}"))?);
        Self::read(&bytes).with_context(|| format!("{shown} holds no key"))
    }

    /// Keeps a key in a file that is not there yet.
    ///
    /// # Errors
    /// It is there, or the disk fails.
    pub fn keep(pkcs8: &[u8], file: &Path) -> anyhow::Result<()> {
        let what = || format!("write the key {}", file.display());
        let mut new = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .with_context(what)?;
        new.write_all(pkcs8).and_then(|()| new.sync_all()).with_context(what)
    }

    #[must_use]
    pub fn public(&self) -> Public {
        self.0
            .public_key()
            .as_ref()
            .try_into()
            .expect("an Ed25519 key has 32 bytes")
    }

    #[must_use]
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0
            .sign(bytes)
            .as_ref()
            .try_into()
            .expect("an Ed25519 signature has 64 bytes")
    }
}

/// Whether `signature` is of these bytes by the key with this public half.
#[must_use]
pub fn verifies(public: &Public, bytes: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public)
        .verify(bytes, signature)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_key_is_the_same_and_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("edge.key");
        let made = Key::generate().unwrap();
        Key::keep(&made, &file).unwrap();
        let key = Key::open(&file).unwrap();
        assert_eq!(key.public(), Key::read(&made).unwrap().public());
        let signature = key.sign(b"so it is");
        assert!(verifies(&key.public(), b"so it is", &signature));
        assert!(!verifies(&key.public(), b"so it is not", &signature));
        assert!(!verifies(&key.public(), b"so it is", &signature[..63]));
        assert!(Key::keep(&made, &file).is_err(), "never over another one");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let open = Key::open(&file).unwrap_err().to_string();
        assert!(open.contains("chmod 600"), "{open}");
    }

    #[test]
    fn what_is_no_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("edge.key");
        Key::keep(b"nothing of the kind", &file).unwrap();
        let error = format!("{:#}", Key::open(&file).unwrap_err());
        assert!(error.contains("edge.key holds no key"), "{error}");
    }
}
