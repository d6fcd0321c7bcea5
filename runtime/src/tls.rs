//! This node's certificate, who signed its clients' and the other nodes', and what becomes of them when the files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use skep_model::limits::CREDENTIAL_FILE_BYTES_MAX;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// How often the files are looked at: a certificate that is renewed in time is taken long before the old one ends.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Where certificates are, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The node's own, with what is between it and its root.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Who signed clients' certificates. With it a client without one is not let in.
    pub client_ca: Option<PathBuf>,
    /// Who signed the other nodes' certificates; by default who signed clients', or whom the system trusts.
    pub ca: Option<PathBuf>,
}

/// The files' content, to see that it changed.
#[derive(Clone, PartialEq, Eq)]
struct Pems {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
    ca: Option<Vec<u8>>,
}

pub struct Tls {
    files: TlsFiles,
    server: watch::Sender<Arc<ServerConfig>>,
    now: RwLock<Pems>,
}

impl Tls {
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn load(files: TlsFiles) -> anyhow::Result<Arc<Self>> {
        let pems = files.read()?;
        let server = pems.server(&files)?;
        warn_of_open_key(&files.key);
        Ok(Arc::new(Self {
            files,
            server: watch::Sender::new(Arc::new(server)),
            now: RwLock::new(pems),
        }))
    }

    /// What new connections are served with.
    #[must_use]
    pub fn server(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.server.subscribe()
    }

    /// How this node asks another: it shows the certificate that it serves with.
    #[must_use]
    pub fn client(&self) -> ClientTlsConfig {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        let config = ClientTlsConfig::new().identity(Identity::from_pem(&now.cert, &now.key));
        match now.ca.as_ref().or(now.client_ca.as_ref()) {
            Some(ca) => config.ca_certificate(Certificate::from_pem(ca)),
            None => config.with_native_roots(),
        }
    }

    /// Takes what the files say from now on; files that do not fit together, as in the middle of a renewal, change nothing.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn reload(&self) -> anyhow::Result<bool> {
        let pems = self.files.read()?;
        if *self.now.read().unwrap_or_else(PoisonError::into_inner) == pems {
            return Ok(false);
        }
        let server = pems.server(&self.files)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = pems;
        self.server.send_replace(Arc::new(server));
        Ok(true)
    }

    /// Follows the files until `stop`. Connections that are open go on with what they began with.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut troubled = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let this = Arc::clone(&self);
            let Ok(reloaded) = tokio::task::spawn_blocking(move || this.reload()).await else {
                continue;
            };
            match reloaded {
                Ok(true) => tracing::info!("the certificates changed, and new connections get the new ones"),
                Ok(false) => troubled = false,
                // Said once a trouble.
                Err(error) if !std::mem::replace(&mut troubled, true) => {
                    tracing::warn!(error = format!("{error:#}"), "the certificates stay as they were");
                }
                Err(_) => {}
            }
        }
    }
}

/// From when until when a certificate is good, in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    pub file: PathBuf,
    /// Whose it is, as it says itself.
    pub subject: String,
    /// The node's own, or one between it and its root; else one by which others are looked at.
    pub own: bool,
    pub from_s: i64,
    pub until_s: i64,
}

impl TlsFiles {
    /// The terms of all certificates in the files. A server is not told by its library that its own is over; its clients are.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn terms(&self) -> anyhow::Result<Vec<Term>> {
        let mut terms = Vec::new();
        let files = [
            (Some(&self.cert), true),
            (self.client_ca.as_ref(), false),
            (self.ca.as_ref(), false),
        ];
        for (path, own) in files.into_iter().filter_map(|(path, own)| Some((path?, own))) {
            for certificate in certificates(&read(path)?, path)? {
                let (_, certificate) = x509_parser::parse_x509_certificate(&certificate)
                    .map_err(|e| anyhow::anyhow!("{} holds something that is no certificate: {e}", path.display()))?;
                let validity = certificate.validity();
                terms.push(Term {
                    file: path.clone(),
                    subject: certificate.subject().to_string(),
                    own,
                    from_s: validity.not_before.timestamp(),
                    until_s: validity.not_after.timestamp(),
                });
            }
        }
        Ok(terms)
    }

    fn read(&self) -> anyhow::Result<Pems> {
        let some = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        Ok(Pems {
            cert: read(&self.cert)?,
            key: read(&self.key)?,
            client_ca: some(&self.client_ca)?,
            ca: some(&self.ca)?,
        })
    }
}

impl Pems {
    fn server(&self, files: &TlsFiles) -> anyhow::Result<ServerConfig> {
        let chain = certificates(&self.cert, &files.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|e| anyhow::anyhow!("{} holds no private key in PEM: {e}", files.key.display()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(pem), Some(path)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem, path)? {
                    roots
                        .add(certificate)
                        .with_context(|| format!("a certificate in {}", path.display()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .with_context(|| format!("the certificates in {}", path.display()))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).with_context(|| {
            format!(
                "{} and {} do not fit together",
                files.cert.display(),
                files.key.display()
            )
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// How something else than a node is asked: whom the system trusts, or the certificates in a file, is trusted.
///
/// # Errors
/// Which file cannot be used, and why.
pub fn client(ca: Option<&Path>) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(&read(path)?, path)? {
                roots
                    .add(certificate)
                    .with_context(|| format!("a certificate in {}", path.display()))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                tracing::warn!("this system trusts no certificates: name some by --oidc-ca");
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn certificates(pem: &[u8], path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| anyhow::anyhow!("{} holds no certificates in PEM: {e}", path.display()))?;
    if found.is_empty() {
        bail!("{} holds no certificate in PEM", path.display());
    }
    Ok(found)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;
    let named = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).with_context(named)?;
    file.take(CREDENTIAL_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .with_context(named)?;
    if bytes.len() as u64 > CREDENTIAL_FILE_BYTES_MAX {
        bail!("{} is larger than any certificate or key", path.display());
    }
    Ok(bytes)
}

fn warn_of_open_key(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o007 != 0) {
        tracing::warn!(
            "everybody on this machine may read the key {}: chmod 600 it",
            path.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::certs;

    #[test]
    fn certificates_are_taken_anew_and_halves_of_two_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for made in [&one, &two] {
            certs::make(made, &[]).unwrap();
        }
        let at = |name: &str| one.join(name);
        let tls = Tls::load(TlsFiles {
            cert: at("node.pem"),
            key: at("node.key"),
            client_ca: Some(at("ca.pem")),
            ca: None,
        })
        .unwrap();
        let first = tls.server().borrow().clone();
        assert!(!tls.reload().unwrap(), "nothing changed");
        // A certificate whose key did not come yet.
        std::fs::copy(two.join("node.pem"), at("node.pem")).unwrap();
        let why = format!("{:#}", tls.reload().unwrap_err());
        assert!(why.contains("do not fit together"), "{why}");
        assert!(Arc::ptr_eq(&first, &tls.server().borrow()));
        std::fs::copy(two.join("node.key"), at("node.key")).unwrap();
        assert!(tls.reload().unwrap());
        assert!(!Arc::ptr_eq(&first, &tls.server().borrow()));
    }

    #[test]
    fn a_file_that_is_none_is_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        certs::make(dir.path(), &[]).unwrap();
        let at = |name: &str| dir.path().join(name);
        let empty = at("empty");
        std::fs::write(&empty, b"").unwrap();
        for (cert, key, named) in [
            (at("gone"), at("node.key"), "gone"),
            (empty.clone(), at("node.key"), "empty"),
            (at("node.pem"), empty.clone(), "empty"),
            (at("node.pem"), at("client.key"), "do not fit"),
            (dir.path().to_owned(), at("node.key"), "cannot read"),
        ] {
            let files = TlsFiles {
                cert,
                key,
                client_ca: None,
                ca: None,
            };
            let why = format!("{:#}", Tls::load(files).err().unwrap());
            assert!(why.contains(named), "{why}");
        }
    }
}
