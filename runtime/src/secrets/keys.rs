//! The keys that seal secrets, and where they come from.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};
use skep_engine::SecretValue;
use skep_model::env::Entropy;
use skep_model::name::{SecretName, TenantId};
use zeroize::Zeroizing;

use super::{Refused, SecretRecord};

const KEY_BYTES: usize = 32;
/// Keys in one file: the one in use, and some whose secrets are not all sealed anew.
const KEYS_MAX: usize = 8;

/// Where a node finds its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// A file that its operator gave; every node of a cluster needs the same keys.
    File(PathBuf),
    /// The node's own data folder, made when the first secret is set. For a store that no other node shares.
    Own(PathBuf),
    /// None was given, and the store is shared.
    Nowhere,
}

/// 64 hex digits a line: the first key seals, all open.
pub struct Keys {
    place: KeyPlace,
    ring: Mutex<Vec<Arc<Key>>>,
    entropy: Arc<dyn Entropy>,
}

struct Key {
    /// The first eight bytes of its SHA-256, hex.
    id: String,
    sealing: LessSafeKey,
}

impl Key {
    fn new(bytes: &[u8]) -> anyhow::Result<Arc<Self>> {
        let unbound =
            UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| anyhow::anyhow!("not {KEY_BYTES} bytes"))?;
        let id = hex(&Sha256::digest(bytes)[..8]);
        let sealing = LessSafeKey::new(unbound);
        Ok(Arc::new(Self { id, sealing }))
    }
}

impl Keys {
    /// # Errors
    /// The file is there and is not a list of keys, or others may read it.
    pub fn read(place: KeyPlace, entropy: Arc<dyn Entropy>) -> anyhow::Result<Self> {
        let ring = match &place {
            KeyPlace::File(path) => parse(path)?,
            KeyPlace::Own(path) if path.exists() => parse(path)?,
            KeyPlace::Own(_) | KeyPlace::Nowhere => Vec::new(),
        };
        Ok(Self {
            place,
            ring: Mutex::new(ring),
            entropy,
        })
    }

    fn newest(&self) -> anyhow::Result<Arc<Key>> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = ring.first() {
            return Ok(Arc::clone(first));
        }
        let KeyPlace::Own(path) = &self.place else {
            bail!(Refused(
                "this node has no key to seal secrets with: make one with `openssl rand -hex 32 > FILE`, readable by its owner only, and \
                 start every node of the cluster with `--secrets-key-file FILE`"
                    .to_owned()
            ));
        };
        // It may have been put back since the start.
        if !path.exists() {
            make(path, self.entropy.as_ref())?;
        }
        *ring = parse(path)?;
        ring.first().map(Arc::clone).context("a file of keys has one")
    }

    pub(super) fn is_newest(&self, record: &SecretRecord) -> anyhow::Result<bool> {
        Ok(self.newest()?.id == record.key)
    }

    pub(super) fn seal(
        &self,
        tenant: &TenantId,
        name: &SecretName,
        version: u64,
        set_ms: u64,
        value: &SecretValue,
    ) -> anyhow::Result<SecretRecord> {
        let key = self.newest()?;
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&self.entropy.bits128()[..NONCE_LEN]);
        let mut sealed = value.expose().to_vec();
        key.sealing
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound_to(tenant, name, version)),
                &mut sealed,
            )
            .map_err(|_| anyhow::anyhow!("the secret cannot be sealed"))?;
        let mut whole = nonce.to_vec();
        whole.append(&mut sealed);
        Ok(SecretRecord {
            version,
            set_ms,
            key: key.id.clone(),
            sealed: hex(&whole),
        })
    }

    pub(super) fn open(
        &self,
        tenant: &TenantId,
        name: &SecretName,
        record: &SecretRecord,
    ) -> anyhow::Result<SecretValue> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = ring.iter().find(|key| key.id == record.key).map(Arc::clone) else {
            bail!(
                "it was sealed with the key {}, which this node does not have: give it in `--secrets-key-file`, or set the secret again",
                record.key
            );
        };
        drop(ring);
        let damaged = "its record was changed by somebody who does not have the key: set it again";
        let mut whole = unhex(&record.sealed).context(damaged)?;
        if whole.len() < NONCE_LEN {
            bail!(damaged);
        }
        let mut sealed = whole.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&whole).map_err(|_| anyhow::anyhow!(damaged))?;
        let aad = Aad::from(bound_to(tenant, name, record.version));
        let length = match key.sealing.open_in_place(nonce, aad, &mut sealed) {
            Ok(value) => value.len(),
            Err(_) => bail!(damaged),
        };
        sealed.truncate(length);
        Ok(SecretValue::new(sealed))
    }
}

/// No name has a NUL or a slash.
fn bound_to(tenant: &TenantId, name: &SecretName, version: u64) -> Vec<u8> {
    format!("skep-secret-1\0{tenant}\0{name}\0{version}").into_bytes()
}

fn parse(path: &Path) -> anyhow::Result<Vec<Arc<Key>>> {
    let shown = path.display();
    let meta = fs::metadata(path).with_context(|| format!("the keys of secrets, {shown}"))?;
    if meta.permissions().mode() & 0o077 != 0 {
        bail!("{shown} can be read by others than its owner: `chmod 600 {shown}`");
    }
    let text = Zeroizing::new(fs::read_to_string(path).with_context(|| format!("the keys of secrets, {shown}"))?);
    let mut ring = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bytes = unhex(line).filter(|bytes| bytes.len() == KEY_BYTES).map(Zeroizing::new);
        let Some(bytes) = bytes else {
            bail!("{shown}:{number}: not a key: a line is 64 hex digits, as `openssl rand -hex 32` prints them");
        };
        ring.push(Key::new(&bytes)?);
    }
    if ring.is_empty() || ring.len() > KEYS_MAX {
        bail!("{shown} has {} keys: 1 to {KEYS_MAX} may be", ring.len());
    }
    Ok(ring)
}

/// Made whole or not at all: half a key would open nothing.
fn make(path: &Path, entropy: &dyn Entropy) -> anyhow::Result<()> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    bytes[..16].copy_from_slice(&entropy.bits128());
    bytes[16..].copy_from_slice(&entropy.bits128());
    let during = path.with_extension("new");
    let what = || format!("making the key of secrets, {}", path.display());
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&during);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&during)?;
        file.write_all(Zeroizing::new(hex(&*bytes)).as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        // Unlike a rename it replaces nothing.
        fs::hard_link(&during, path)?;
        fs::remove_file(&during)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().with_context(what)?;
    tracing::info!(
        path = %path.display(),
        "made the key that secrets are sealed with: a backup of the platform does not hold it, so keep a copy apart"
    );
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let digits = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok());
    digits.collect()
}

#[cfg(test)]
mod tests {
    use skep_model::env::OsEntropy;

    use super::*;

    fn names() -> (TenantId, SecretName) {
        (TenantId::default_tenant(), "api-key".parse().unwrap())
    }

    fn keys(path: &Path) -> Keys {
        Keys::read(KeyPlace::Own(path.to_owned()), Arc::new(OsEntropy)).unwrap()
    }

    #[test]
    fn a_secret_opens_in_its_own_place_only_and_a_changed_one_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(&dir.path().join("secrets.key"));
        let (tenant, name) = names();
        let value = SecretValue::new(b"s3cr3t".to_vec());
        let record = keys.seal(&tenant, &name, 3, 7, &value).unwrap();
        assert!(!record.sealed.contains(&hex(b"s3cr3t")));
        assert_eq!(keys.open(&tenant, &name, &record).unwrap().expose(), b"s3cr3t");
        let other: TenantId = "other".parse().unwrap();
        assert!(keys.open(&other, &name, &record).is_err());
        assert!(keys.open(&tenant, &"other".parse().unwrap(), &record).is_err());
        let older = SecretRecord {
            version: 2,
            ..record.clone()
        };
        assert!(keys.open(&tenant, &name, &older).is_err());
        for at in 0..record.sealed.len() {
            let mut sealed = record.sealed.clone().into_bytes();
            sealed[at] = if sealed[at] == b'0' { b'1' } else { b'0' };
            let sealed = String::from_utf8(sealed).unwrap();
            assert!(
                keys.open(
                    &tenant,
                    &name,
                    &SecretRecord {
                        sealed,
                        ..record.clone()
                    }
                )
                .is_err(),
                "{at}"
            );
        }
        for sealed in [
            String::new(),
            "0".to_owned(),
            "zz".to_owned(),
            "é".to_owned(),
            "00".to_owned(),
        ] {
            assert!(
                keys.open(
                    &tenant,
                    &name,
                    &SecretRecord {
                        sealed,
                        ..record.clone()
                    }
                )
                .is_err()
            );
        }
    }

    #[test]
    fn the_first_key_seals_and_all_of_them_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.key");
        let (tenant, name) = names();
        let old = keys(&path);
        let record = old
            .seal(&tenant, &name, 1, 0, &SecretValue::new(b"x".to_vec()))
            .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let first = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("# newest first\n{}\n{first}", "ab".repeat(32))).unwrap();
        let both = keys(&path);
        assert_eq!(both.open(&tenant, &name, &record).unwrap().expose(), b"x");
        assert!(!both.is_newest(&record).unwrap());
        assert!(
            both.is_newest(
                &both
                    .seal(&tenant, &name, 1, 0, &SecretValue::new(b"x".to_vec()))
                    .unwrap()
            )
            .unwrap()
        );
        fs::write(&path, "ab".repeat(32)).unwrap();
        let why = keys(&path).open(&tenant, &name, &record).unwrap_err().to_string();
        assert!(why.contains(&record.key) && why.contains("--secrets-key-file"), "{why}");
    }

    #[test]
    fn a_bad_file_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let read = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = Keys::read(KeyPlace::File(path.clone()), Arc::new(OsEntropy));
            read.err().map(|e| format!("{e:#}")).unwrap_or_default()
        };
        let good = "0f".repeat(32);
        assert_eq!(read(&good, 0o600), "");
        assert!(read(&good, 0o640).contains("chmod 600"));
        assert!(read("", 0o600).contains("has 0 keys"));
        assert!(read(&format!("{good}\nshort\n"), 0o600).contains("keys:2: not a key"));
        assert!(read(&format!("{good}\n").repeat(9), 0o600).contains("has 9 keys"));
        fs::remove_file(&path).unwrap();
        assert!(Keys::read(KeyPlace::File(path), Arc::new(OsEntropy)).is_err());
        let nowhere = Keys::read(KeyPlace::Nowhere, Arc::new(OsEntropy)).unwrap();
        let (tenant, name) = names();
        let why = nowhere
            .seal(&tenant, &name, 1, 0, &SecretValue::new(b"x".to_vec()))
            .unwrap_err();
        assert!(
            why.downcast_ref::<Refused>().is_some() && why.to_string().contains("--secrets-key-file"),
            "{why}"
        );
    }
}
