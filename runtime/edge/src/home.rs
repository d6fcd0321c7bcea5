//! An edge's folder: who it is, whom it believes, what it follows.
//!
//! ```text
//! edge.json   who it is: written once, by enrolment      edge.key   its private key (0600)
//! orders      what it follows, with its signature        code/      signed artifacts        topics/   inboxes, state, outboxes
//! outboxes    which of those topics are outboxes, also of what no orders name any more
//! ```

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skep_model::name::{StageName, SwarmName};

use crate::keys::{Key, Public};
use crate::limits::ORDERS_BYTES_MAX;
use crate::orders::{Orders, Signed};

const FORMAT: u32 = 1;
const IDENTITY: &str = "edge.json";
const KEY: &str = "edge.key";
const ORDERS: &str = "orders";
const OUTBOXES: &str = "outboxes";
const ORDERS_MAGIC: &[u8; 8] = b"skepord1";
const SIGNATURE_BYTES: usize = 64;

/// Who an edge is, from its enrolment on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub format: u32,
    /// Where its hub is.
    pub hub: String,
    pub tenant: String,
    pub name: String,
    /// Hex.
    pub edge: String,
    #[serde(with = "crate::line::hex_key")]
    pub hub_key: Public,
    /// Certificates (PEM) that the hub's is looked at with, instead of the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

impl Identity {
    /// # Errors
    /// Only if the file was changed.
    pub fn id(&self) -> anyhow::Result<[u8; 16]> {
        let id: skep_model::id::Incarnation = self.edge.parse().map_err(|_| {
            anyhow::anyhow!("{IDENTITY}: `edge` is no id: restore the folder, or enrol anew in another one")
        })?;
        Ok(id.0)
    }
}

/// What an edge remembers beside its orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outboxes {
    pub format: u32,
    pub all: Vec<OutboxAt>,
    /// The highest [`crate::orders::Discard`] that was done.
    pub discarded: u64,
}

/// A topic that is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxAt {
    pub swarm: SwarmName,
    /// Hex.
    pub incarnation: String,
    pub stage: StageName,
    pub born: u64,
    pub bytes: u64,
}

impl Default for Outboxes {
    fn default() -> Self {
        Self {
            format: FORMAT,
            all: Vec::new(),
            discarded: 0,
        }
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Home {
    dir: PathBuf,
}

impl Home {
    /// # Errors
    /// It cannot be made.
    pub fn make(dir: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("make the folder {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// # Errors
    /// No edge lives there.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let home = Self { dir: dir.to_owned() };
        if !home.is_enrolled() {
            bail!(
                "{} is no edge's folder: enrol it first, with `skep-edge enroll LINE --data {}`",
                dir.display(),
                dir.display()
            );
        }
        Ok(home)
    }

    #[must_use]
    pub fn is_enrolled(&self) -> bool {
        self.dir.join(IDENTITY).exists()
    }

    #[must_use]
    pub fn topics(&self) -> PathBuf {
        self.dir.join("topics")
    }

    #[must_use]
    pub fn code(&self) -> PathBuf {
        self.dir.join("code")
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The private key; made where there is none. A key that was made and not enrolled is used by the next attempt.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn key(&self) -> anyhow::Result<Key> {
        let file = self.dir.join(KEY);
        if !file.exists() && !self.is_enrolled() {
            Key::keep(&Key::generate()?, &file)?;
        }
        Key::open(&file)
    }

    /// # Errors
    /// It cannot be read, or is of a newer form.
    pub fn identity(&self) -> anyhow::Result<Identity> {
        let file = self.dir.join(IDENTITY);
        let what = || format!("read {}", file.display());
        let text = fs::read(&file).with_context(what)?;
        let identity: Identity = serde_json::from_slice(&text).with_context(what)?;
        if identity.format > FORMAT {
            bail!(
                "{} has format {}, and this program reads up to {FORMAT}: run a newer skep-edge",
                file.display(),
                identity.format
            );
        }
        Ok(identity)
    }

    /// # Errors
    /// The disk fails.
    pub fn enrolled(&self, identity: &Identity) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(&Identity {
            format: FORMAT,
            ..identity.clone()
        })?;
        self.replace(IDENTITY, &text)
    }

    /// What it follows, as last kept. `None`: nothing yet.
    ///
    /// # Errors
    /// The file was changed, or is of a newer form.
    pub fn orders(&self, identity: &Identity) -> anyhow::Result<Option<Orders>> {
        let file = self.dir.join(ORDERS);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("read {}", file.display())),
        };
        let damaged = || format!("{}: delete it, and the hub gives its orders again", file.display());
        let body = bytes.strip_prefix(ORDERS_MAGIC).with_context(damaged)?;
        if body.len() < SIGNATURE_BYTES || body.len() > ORDERS_BYTES_MAX + SIGNATURE_BYTES {
            bail!(damaged());
        }
        let (signature, orders) = body.split_at(SIGNATURE_BYTES);
        let signed = Signed {
            orders: orders.to_vec(),
            signature: signature.to_vec(),
        };
        let read = signed
            .read(&identity.hub_key, &identity.id()?, 0)
            .with_context(damaged)?;
        Ok(Some(read))
    }

    /// Keeps orders durably: from now on older ones are refused, also after a restart.
    ///
    /// # Errors
    /// The disk fails or is full.
    pub fn keep_orders(&self, signed: &Signed) -> anyhow::Result<()> {
        let signature: &[u8; SIGNATURE_BYTES] = signed
            .signature
            .as_slice()
            .try_into()
            .context("a signature has 64 bytes")?;
        self.replace(ORDERS, &[ORDERS_MAGIC, signature.as_slice(), &signed.orders].concat())
    }

    /// As last kept.
    ///
    /// # Errors
    /// It cannot be read, or is of a newer form.
    pub fn outboxes(&self) -> anyhow::Result<Outboxes> {
        let file = self.dir.join(OUTBOXES);
        let what = || format!("read {}", file.display());
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Outboxes::default()),
            Err(e) => return Err(e).with_context(what),
        };
        let read: Outboxes = serde_json::from_slice(&text).with_context(what)?;
        if read.format > FORMAT {
            bail!(
                "{} has format {}, and this program reads up to {FORMAT}: run a newer skep-edge",
                file.display(),
                read.format
            );
        }
        Ok(read)
    }

    /// Keeps them durably: before anything may come into a new one.
    ///
    /// # Errors
    /// The disk fails or is full.
    pub fn keep_outboxes(&self, outboxes: &Outboxes) -> anyhow::Result<()> {
        self.replace(OUTBOXES, &serde_json::to_vec(outboxes)?)
    }

    /// A file as it was or as it is to be, whenever the power goes.
    fn replace(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let (file, during) = (self.dir.join(name), self.dir.join(format!(".{name}.new")));
        let write = || -> std::io::Result<()> {
            let mut new = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&during)?;
            new.write_all(bytes)?;
            new.sync_all()?;
            fs::rename(&during, &file)?;
            fs::File::open(&self.dir)?.sync_all()
        };
        write().with_context(|| format!("write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(hub: &Key) -> Identity {
        Identity {
            format: FORMAT,
            hub: "http://127.0.0.1:7600".into(),
            tenant: "default".into(),
            name: "mill-1".into(),
            edge: crate::orders::hex(&[5; 16]),
            hub_key: hub.public(),
            ca: None,
        }
    }

    fn orders(revision: u64) -> Orders {
        Orders {
            format: 1,
            edge: crate::orders::hex(&[5; 16]),
            tenant: "default".into(),
            revision,
            epoch: 0,
            swarms: Vec::new(),
            gone: std::collections::BTreeSet::new(),
            discards: Vec::new(),
        }
    }

    #[test]
    fn a_folder_tells_who_lives_there_and_what_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Key::read(&Key::generate().unwrap()).unwrap();
        let none = Home::open(dir.path()).unwrap_err().to_string();
        assert!(none.contains("skep-edge enroll LINE"), "{none}");
        let home = Home::make(dir.path()).unwrap();
        let first = home.key().unwrap().public();
        assert_eq!(
            home.key().unwrap().public(),
            first,
            "an attempt that failed leaves its key to the next"
        );
        home.enrolled(&identity(&hub)).unwrap();
        let home = Home::open(dir.path()).unwrap();
        let read = home.identity().unwrap();
        assert_eq!(read, identity(&hub));
        assert_eq!(home.orders(&read).unwrap(), None);
        home.keep_orders(&orders(3).sign(&hub).unwrap()).unwrap();
        home.keep_orders(&orders(4).sign(&hub).unwrap()).unwrap();
        assert_eq!(home.orders(&read).unwrap(), Some(orders(4)));
    }

    #[test]
    fn changed_orders_on_disk_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Key::read(&Key::generate().unwrap()).unwrap();
        let home = Home::make(dir.path()).unwrap();
        home.keep_orders(&orders(3).sign(&hub).unwrap()).unwrap();
        let file = dir.path().join(ORDERS);
        let good = fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            fs::write(&file, &bad).unwrap();
            let error = format!("{:#}", home.orders(&identity(&hub)).unwrap_err());
            assert!(error.contains("delete it"), "{at}: {error}");
        }
        for length in [0, 7, 8, 40, good.len() - 1] {
            fs::write(&file, &good[..length]).unwrap();
            assert!(home.orders(&identity(&hub)).is_err(), "{length}");
        }
    }
}
