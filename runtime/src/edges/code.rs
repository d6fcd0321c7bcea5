//! Modules as native code for edges' processors: compiled when one first needs it, signed, and kept on disk.

use std::collections::HashMap;
use std::fs;
use std::io::{BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use skep_edge::keys::Key;
use skep_edge::limits::ARTIFACT_BYTES_MAX;
use skep_edge::orders::CodeOrder;
use skep_engine::signed::Expected;
use skep_engine::{Target, signed};
use skep_model::id::Digest;
use skep_model::name::TenantId;
use tokio::time::Instant;

use crate::supervisor::Modules;

/// Bytes of them on disk; the oldest go.
const KEPT_BYTES: u64 = 2 << 30;
/// The wait before what could not be compiled is compiled again.
const FAILED_FOR: Duration = Duration::from_secs(10);

/// A module for a kind of processor.
pub(super) type Of = (Digest, Target);

/// What there is, by module and target.
pub(super) struct Codes {
    dir: PathBuf,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    /// On disk, and by this hub's key.
    good: HashMap<Of, Digest>,
    /// On disk by what it says of itself: an earlier run's, and nobody has looked at it yet.
    found: HashMap<Of, Digest>,
    /// One compile for all who ask for the same at once.
    turns: HashMap<Of, Arc<tokio::sync::Mutex<()>>>,
    failed: HashMap<Of, (Instant, String)>,
}

impl Codes {
    pub(super) fn open(dir: &Path) -> anyhow::Result<Arc<Self>> {
        if !dir.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .with_context(|| format!("make the folder {}", dir.display()))?;
        }
        let mut all = All::default();
        for entry in fs::read_dir(dir).with_context(|| format!("read the folder {}", dir.display()))? {
            let path = entry?.path();
            let about = fs::File::open(&path)
                .ok()
                .and_then(|mut file| signed::about(&mut file).ok());
            let Some((module, target, native)) = about else {
                continue;
            };
            let named = CodeOrder { module, native }.file_name();
            if path.file_name().is_some_and(|name| name == named.as_str()) {
                all.found.insert((module, target), native);
            }
        }
        Ok(Arc::new(Self {
            dir: dir.to_owned(),
            all: Mutex::new(all),
        }))
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest of a module's native code for a target, if it is at hand.
    pub(super) fn known(&self, of: &Of) -> Option<Digest> {
        let native = self.all().good.get(of).copied();
        let at = |native: &Digest| CodeOrder {
            module: of.0,
            native: *native,
        };
        native.filter(|native| self.file(at(native)).exists())
    }

    /// A signed artifact.
    pub(super) fn file(&self, code: CodeOrder) -> PathBuf {
        self.dir.join(code.file_name())
    }

    /// The same, compiled and signed if need be. Who asks may go away: the work goes on, and the next finds it done. An edge on a slow link would
    /// otherwise end the compiler each time it calls anew.
    pub(super) async fn of(
        self: &Arc<Self>,
        modules: &Arc<Modules>,
        tenant: &TenantId,
        of: Of,
        key: &Arc<Key>,
    ) -> anyhow::Result<Digest> {
        if let Some(native) = self.known(&of) {
            return Ok(native);
        }
        let (this, modules) = (Arc::clone(self), Arc::clone(modules));
        let (tenant, key) = (tenant.clone(), Arc::clone(key));
        tokio::spawn(async move { this.make(&modules, &tenant, of, key).await }).await?
    }

    async fn make(&self, modules: &Modules, tenant: &TenantId, of: Of, key: Arc<Key>) -> anyhow::Result<Digest> {
        let turn = Arc::clone(self.all().turns.entry(of.clone()).or_default());
        let _turn = turn.lock().await;
        if let Some(native) = self.known(&of) {
            return Ok(native);
        }
        let found = self.all().found.remove(&of);
        if let Some(native) = found
            && self.is_good(&of, native, &key).await
        {
            self.all().good.insert(of, native);
            return Ok(native);
        }
        if let Some((at, why)) = self.all().failed.get(&of).cloned()
            && at.elapsed() < FAILED_FOR
        {
            bail!(why);
        }
        let made = self.compile(modules, tenant, &of, key).await;
        let mut all = self.all();
        all.turns.remove(&of);
        match &made {
            Ok(native) => {
                all.failed.remove(&of);
                all.good.insert(of, *native);
            }
            Err(error) => {
                all.failed
                    .insert(of, (Instant::now(), format!("{error:#}; tried again soon")));
            }
        }
        made
    }

    /// Whether what an earlier run left is whole, and signed by the key that this hub has now: it may have been restored since.
    async fn is_good(&self, (module, target): &Of, native: Digest, key: &Key) -> bool {
        let of = CodeOrder {
            module: *module,
            native,
        };
        let (path, target, hub) = (self.file(of), target.clone(), key.public());
        let expected = Expected {
            module: *module,
            native,
            bytes_max: ARTIFACT_BYTES_MAX,
        };
        let looked = tokio::task::spawn_blocking(move || {
            let open = fs::File::open(&path).map_err(signed::Refused::Io);
            let read = open.and_then(|file| signed::open(&mut BufReader::new(file), &hub, expected, &target));
            read.map(drop)
                .inspect_err(|_| drop(fs::remove_file(&path)))
                .map_err(|why| why.to_string())
        });
        match looked.await {
            Ok(Ok(())) => true,
            Ok(Err(why)) => {
                tracing::info!(%native, why, "code for edges that an earlier run left is made anew");
                false
            }
            Err(_) => false,
        }
    }

    async fn compile(
        &self,
        modules: &Modules,
        tenant: &TenantId,
        (module, target): &Of,
        key: Arc<Key>,
    ) -> anyhow::Result<Digest> {
        let artifact = modules.compiled_for(tenant, *module, target).await?;
        if artifact.len() > ARTIFACT_BYTES_MAX {
            bail!(
                "its native code has {} bytes, and an edge takes up to {ARTIFACT_BYTES_MAX}: make the module smaller, or place it at the hub",
                artifact.len()
            );
        }
        let (dir, module, target) = (self.dir.clone(), *module, target.clone());
        tokio::task::spawn_blocking(move || {
            let native = signed::digest(&artifact)?;
            let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&dir)?;
            let mut out = std::io::BufWriter::new(file.as_file_mut());
            signed::write(&artifact, module, &target, |bytes| key.sign(bytes), &mut out)?;
            out.flush()?;
            drop(out);
            // Else its end may be lost with the power, and its name stay.
            file.as_file().sync_all()?;
            file.persist(dir.join(CodeOrder { module, native }.file_name()))
                .map_err(|e| e.error)?;
            make_room(&dir)?;
            std::io::Result::Ok(native)
        })
        .await?
        .context("keep the code for edges")
    }
}

/// The oldest go first; the newest stays, whatever its size. What an edge asks for and is gone is compiled again with its next orders.
fn make_room(dir: &Path) -> std::io::Result<()> {
    let mut files = Vec::new();
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        total += meta.len();
        files.push((meta.modified()?, meta.len(), entry.path()));
    }
    files.sort();
    for (_, len, path) in files.iter().take(files.len().saturating_sub(1)) {
        if total <= KEPT_BYTES {
            break;
        }
        fs::remove_file(path)?;
        total -= len;
    }
    Ok(())
}
