//! The first operator's token, by either of two ways:
//! - by a call to a node whose door is open, where whoever calls may do everything anyhow;
//! - from a file that is named to `skep serve`, for nodes that are reached from elsewhere and so never have an open door. Who starts nodes
//!   owns the platform, so this is also the way back once every operator's token was lost or ran out.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use skep_model::access::{Role, Secret, TokenId};
use skep_model::limits::CREDENTIAL_FILE_BYTES_MAX;

use super::{ACCESS, ClosedRecord, Registry, TokenRecord};

impl Registry {
    /// The first token of all, and the door is closed.
    ///
    /// # Errors
    /// When the catalog cannot be written. `None`: it was closed already.
    pub async fn bootstrap(&self) -> anyhow::Result<Option<(TokenId, TokenRecord, String)>> {
        if self.catalogs.get::<ClosedRecord>(ACCESS).await?.is_some() {
            return Ok(None);
        }
        // Before the door closes: a crash between the two must not leave a closed door and nobody with a key.
        let made = self.create(self.operator("bootstrap")).await?;
        if !self.shut().await? {
            if let Some(found) = self.tokens().await?.remove(&made.0) {
                self.remove(made.0, found.version).await?;
            }
            return Ok(None);
        }
        // The token is told whatever comes now: there is no other copy of it, and `follow` looks again.
        if let Err(error) = self.refresh().await {
            tracing::warn!(error = format!("{error:#}"), "who may come in is not read for now");
        }
        Ok(Some(made))
    }

    pub(super) fn operator(&self, name: &str) -> TokenRecord {
        TokenRecord {
            tenant: None,
            role: Role::Operator,
            name: name.to_owned(),
            hash: String::new(),
            created_ms: self.now_ms(),
            expires_ms: None,
            made_by: None,
            former: None,
            from_file: false,
        }
    }

    /// `false`: it was shut by somebody else.
    async fn shut(&self) -> anyhow::Result<bool> {
        let record = ClosedRecord {
            closed_ms: self.now_ms(),
        };
        Ok(self.catalogs.put(ACCESS, 0, None, &record).await?.is_ok())
    }

    /// The token in `file` is an operator's, unless it was revoked or ran out. A file that is not there is written, with a fresh one, unless
    /// some operator's token is good.
    ///
    /// # Errors
    /// The file cannot be read or written, holds no token, or one that is no longer good where no other is; the catalog cannot be written.
    pub async fn bootstrap_from(&self, file: &Path) -> anyhow::Result<()> {
        let now_ms = self.now_ms();
        let tokens = self.tokens().await?;
        let good = |token: &TokenRecord| token.role == Role::Operator && token.is_live(now_ms);
        let others = tokens.values().any(|token| good(&token.record));
        if let Some((secret, made)) = self.in_file(file, !others)? {
            let hash = secret.hash().to_string();
            match tokens.get(&secret.id).map(|found| &found.record) {
                Some(known) if good(known) && known.hash == hash => {}
                Some(_) if others => tracing::warn!(
                    file = %file.display(),
                    "the token in this file was revoked, rotated or ran out: put another there, or leave --bootstrap-token out"
                ),
                Some(_) => bail!(
                    "the token in {} was revoked, rotated or ran out, and there is no other operator's: put one there that `skep token generate` \
                     made",
                    file.display()
                ),
                None => {
                    let record = TokenRecord {
                        hash,
                        from_file: true,
                        ..self.operator("bootstrap file")
                    };
                    if !self.put(secret.id, 0, &record).await? {
                        tracing::debug!("another node made the operator's token known at the same time");
                    }
                    tracing::info!(
                        file = %file.display(), id = %secret.id, written = made,
                        "an operator's token is in this file: log in with it, and keep it as you would a key"
                    );
                }
            }
        }
        // Also where tokens are there and the door was not closed: a crash came in between.
        self.shut().await?;
        self.refresh().await
    }

    /// The token of a file, and whether it was written just now. `None`: it is not there, and need not be.
    fn in_file(&self, path: &Path, needed: bool) -> anyhow::Result<Option<(Secret, bool)>> {
        let named = || format!("the file {} of --bootstrap-token", path.display());
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound && !needed => return Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let secret = Secret::random(TokenId::random(self.entropy.as_ref()), self.entropy.as_ref());
                let mut new = std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .with_context(named)?;
                writeln!(new, "{}", secret.text()).with_context(named)?;
                new.sync_all().with_context(named)?;
                return Ok(Some((secret, true)));
            }
            Err(e) => return Err(e).with_context(named),
        };
        if file.metadata().with_context(named)?.permissions().mode() & 0o077 != 0 {
            tracing::warn!("others may read {}: chmod 600 {}", named(), path.display());
        }
        let mut text = String::new();
        file.take(CREDENTIAL_FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .with_context(named)?;
        match Secret::parse(text.trim()) {
            Some(secret) => Ok(Some((secret, false))),
            None => bail!(
                "{} holds no token: remove it, and one is written; or put one there that `skep token generate` made",
                named()
            ),
        }
    }
}
