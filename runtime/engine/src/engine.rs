//! The engine: wasmtime, its pool, the threads that run guests, and the clockwork that bounds them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest as _, Sha256};
use skep_model::id::Digest;
use tokio::runtime::Handle;
use wasmtime::component::{Component, InstancePre, Linker};

use crate::artifact::{Artifact, CODE, Shared};
use crate::bee;
use crate::error::Error;
use crate::guests::Guests;
use crate::host::{Host, linker};
use crate::module::Module;
use crate::places::Places;
use crate::settings::{Settings, config};
use crate::share::Share;
use crate::ticker::Ticker;

/// Each loaded module holds a file (its memory image), so the usual 1024 would stop a node at a thousand modules.
pub const OPEN_FILES_WANTED: u64 = 1 << 16;

/// One a process. Idle it costs nothing but the address space of its pool.
pub struct Engine {
    wasm: wasmtime::Engine,
    linker: Linker<Host>,
    settings: Settings,
    fingerprint: [u8; 32],
    ticker: Ticker,
    /// Guest code runs here and nowhere else, so that a busy guest never delays I/O.
    guests: Guests,
    places: Arc<Places>,
    watched: Mutex<Watched>,
    /// Code that loaded modules share. As long as one of them is loaded.
    shared: Mutex<HashMap<Digest, Weak<Libraries>>>,
}

/// Code of libraries, as this process has it mapped.
pub(crate) struct Libraries(wasmtime::Module);

/// A module in this process.
pub(crate) struct Mapped {
    pub(crate) pre: InstancePre<Host>,
    pub(crate) libraries: Option<Arc<Libraries>>,
}

fn unfit(e: wasmtime::Error) -> Error {
    let text = format!("{e:#}");
    if text.contains("exceeds") || text.contains("limit") {
        Error::TooBig(text)
    } else {
        Error::Artifact(text)
    }
}

#[derive(Default)]
struct Watched {
    bees: Vec<Weak<bee::Inner>>,
    /// A task looks after them.
    tended: bool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts an engine: reserves the pool's address space and starts the guest threads. Raises the process's limit of
    /// open files as far as it may.
    ///
    /// # Errors
    /// The machine does not give the address space or the threads.
    pub fn new(settings: Settings) -> Result<Arc<Self>, Error> {
        raise_open_files();
        let start = |e: wasmtime::Error| Error::Start(format!("{e:#}"));
        let wasm = wasmtime::Engine::new(&config(&settings)).map_err(start)?;
        let linker = linker(&wasm).map_err(start)?;
        let ticker = Ticker::start(wasm.clone())?;
        let guests = Guests::start(settings.thread_count())?;
        Ok(Arc::new(Self {
            fingerprint: fingerprint(&wasm),
            linker,
            ticker,
            guests,
            places: Places::new(settings.places(), settings.running, settings.spare),
            watched: Mutex::default(),
            shared: Mutex::default(),
            settings,
            wasm,
        }))
    }

    /// Makes native code of a function, maps it and calls it in an instance of the pool: whether this process may do so at all.
    ///
    /// # Errors
    /// What the machine refused, as memory that is written first and run afterwards where something in front of it forbids that.
    #[cfg(feature = "compiler")]
    pub async fn try_code(&self) -> Result<(), String> {
        /// `(module (func (export "f") (result i32) i32.const 42))`
        const MODULE: &[u8] = b"\0asm\x01\0\0\0\x01\x05\x01\x60\0\x01\x7f\x03\x02\x01\0\x07\x05\x01\x01f\0\0\x0a\x06\x01\x04\0\x41\x2a\x0b";
        let refused = |e: wasmtime::Error| format!("{e:#}");
        let module = wasmtime::Module::new(&self.wasm, MODULE).map_err(refused)?;
        let mut store = wasmtime::Store::new(&self.wasm, ());
        store.set_epoch_deadline(u64::MAX / 2);
        let instance = wasmtime::Instance::new_async(&mut store, &module, &[])
            .await
            .map_err(refused)?;
        let called = instance.get_typed_func::<(), i32>(&mut store, "f").map_err(refused)?;
        match called.call_async(&mut store, ()).await.map_err(refused)? {
            42 => Ok(()),
            other => Err(format!("a function gave {other}, not 42")),
        }
    }

    /// Maps a compiled module into the process and reads the names of its Bees.
    ///
    /// # Errors
    /// The artifact is of another version or configuration, does not fit a slot, or its Bees are badly named.
    pub async fn load(self: &Arc<Self>, digest: Digest, artifact: Artifact) -> Result<Module, Error> {
        let engine = Arc::clone(self);
        // A Python module takes milliseconds to map, and the names are read by guest code: neither on the caller's thread.
        let loading = self.guests().spawn(|load| async move {
            let _load = load;
            let inside = Arc::clone(&engine);
            let mapped = match inside.settings.threads_fixed {
                true => inside.map(&artifact)?,
                false => {
                    let mapped = tokio::task::spawn_blocking(move || inside.map(&artifact)).await;
                    mapped.map_err(|e| Error::Artifact(format!("loading was interrupted: {e}")))??
                }
            };
            Box::pin(Module::open(engine, digest, mapped)).await
        });
        loading
            .await
            .unwrap_or_else(|e| Err(Error::Artifact(format!("loading was interrupted: {e}"))))
    }

    fn map(&self, artifact: &Artifact) -> Result<Mapped, Error> {
        let broken = |e: wasmtime::Error| Error::Artifact(format!("{e:#}"));
        // SAFETY: an `Artifact` comes from our compiler process, from the cache after its MAC was verified, or from our hub after its
        // signature was; and it is sealed: the bytes that were verified are the bytes that are mapped.
        let component = unsafe { Component::deserialize_file(&self.wasm, artifact.own().path()) }.map_err(unfit)?;
        let Some(code) = artifact.code() else {
            let pre = self.linker.instantiate_pre(&component).map_err(broken)?;
            return Ok(Mapped { pre, libraries: None });
        };
        let libraries = self.libraries(code)?;
        let mut linker = self.linker.clone();
        linker.root().module(CODE, &libraries.0).map_err(broken)?;
        let pre = linker.instantiate_pre(&component).map_err(broken)?;
        Ok(Mapped {
            pre,
            libraries: Some(libraries),
        })
    }

    /// Code that modules share, mapped once.
    fn libraries(&self, code: &Shared) -> Result<Arc<Libraries>, Error> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(libraries) = shared.get(&code.digest).and_then(Weak::upgrade) {
            return Ok(libraries);
        }
        shared.retain(|_, libraries| libraries.strong_count() > 0);
        // SAFETY: as in `map`.
        let module = unsafe { wasmtime::Module::deserialize_file(&self.wasm, code.native.path()) }.map_err(unfit)?;
        let libraries = Arc::new(Libraries(module));
        shared.insert(code.digest, Arc::downgrade(&libraries));
        Ok(libraries)
    }

    /// Names the code that this engine's compiler makes: an artifact of another fingerprint does not fit.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The runtimes of the guest threads, one a thread. A task that lives on one of them and calls a Bee has it run right there, so
    /// that a batch wakes no other thread. Such a task must not block, and waits while a guest on its thread computes, for an
    /// epoch_tick at a time.
    #[must_use]
    pub fn seats(&self) -> Vec<Handle> {
        self.guests.handles()
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.ticker
    }

    pub(crate) fn places(&self) -> &Arc<Places> {
        &self.places
    }

    /// Drops the spares of a tenant's Bees: it is at its limits, and what is called goes before what waits to be.
    pub(crate) fn evict(&self, share: &Arc<Share>) {
        let bees = self.watched.lock().unwrap_or_else(PoisonError::into_inner).bees.clone();
        for bee in bees.iter().filter_map(Weak::upgrade).filter(|bee| bee.is_of(share)) {
            bee.drop_idle(Duration::ZERO);
        }
    }

    pub(crate) fn guests(&self) -> &Guests {
        &self.guests
    }

    /// Sees to it that a Bee's spares go when they are idle. The task that does it ends with the last spare.
    pub(crate) fn watch(self: &Arc<Self>, bee: Weak<bee::Inner>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.bees.push(bee);
        if !std::mem::replace(&mut watched.tended, true) {
            let idle = self.settings.spare_idle;
            let engine = Arc::downgrade(self);
            // It sleeps nearly always: no load.
            self.guests().spawn(|_| tend(engine, idle));
        }
    }
}

async fn tend(engine: Weak<Engine>, idle: Duration) {
    loop {
        tokio::time::sleep((idle / 2).max(Duration::from_millis(10))).await;
        let Some(engine) = engine.upgrade() else { return };
        // Not under the lock: dropping instances takes a while, and a Bee dropped here drops its spares.
        let bees = {
            let mut watched = engine.watched.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut watched.bees)
        };
        let mut kept = Vec::new();
        for weak in bees {
            if let Some(bee) = weak.upgrade()
                && bee.drop_idle(idle)
            {
                kept.push(weak);
            }
        }
        let mut watched = engine.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.bees.append(&mut kept);
        if watched.bees.is_empty() {
            watched.tended = false;
            return;
        }
    }
}

/// How components are cut before they are compiled. Another number where code that was cut before does not fit any more.
const CUT: &[u8] = b"libraries apart 1";

/// SHA-256 of all that decides whether code fits this engine. One without a compiler can't say what code its settings would make: it goes by its own
/// words for them, and wasmtime compares the settings that are written in the code with its own.
#[cfg(not(feature = "compiler"))]
pub(crate) fn fingerprint(_: &wasmtime::Engine) -> [u8; 32] {
    let mut sha = Sha256::new();
    sha.update(crate::target::TERMS);
    sha.update(CUT);
    sha.finalize().into()
}

/// SHA-256 of all that decides whether code fits this engine.
#[cfg(feature = "compiler")]
pub(crate) fn fingerprint(engine: &wasmtime::Engine) -> [u8; 32] {
    use std::hash::{Hash as _, Hasher};

    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }

        fn finish(&self) -> u64 {
            0
        }
    }
    let mut sha = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut sha);
    sha.0.update(CUT);
    sha.0.finalize().into()
}

fn raise_open_files() {
    let now = getrlimit(Resource::Nofile);
    let Some(current) = now.current else { return };
    let wanted = now.maximum.map_or(OPEN_FILES_WANTED, |max| max.min(OPEN_FILES_WANTED));
    if current >= wanted {
        return;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: now.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current, "cannot raise the limit of open files; each loaded module needs one");
    }
}
