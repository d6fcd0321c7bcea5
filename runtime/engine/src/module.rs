//! A loaded module and the Bees that it names.

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_model::id::Digest;
use skep_model::limits;
use skep_model::name::BeeName;
use skep_model::step::Trap;

use crate::bee::{Bee, BeeSettings};
use crate::engine::{Engine, Mapped};
use crate::error::Error;
use crate::host::{HANDLER, Host, SENDS_HTTP};
use crate::instance::{Bees, Code, Process, Time, failed, guarded};
use crate::time::Sense;
use crate::turns::Turn;
use crate::verdict::Failure;

/// What a module may use to say its Bees' names.
const BEES_TIME: Time = Time {
    cpu_ms: 1_000,
    wall_ms: 5_000,
};
const BEES_MEMORY_BYTES: usize = 64 << 20;

/// A compiled module in this process. Cheap to clone.
#[derive(Clone)]
pub struct Module {
    engine: Arc<Engine>,
    digest: Digest,
    code: Arc<Code>,
    bees: Arc<[BeeName]>,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module")
            .field("digest", &self.digest)
            .field("bees", &self.bees)
            .finish()
    }
}

impl Module {
    /// Reads the Bees' names by calling the module in a limited instance. Runs on a guest thread.
    pub(crate) async fn open(engine: Arc<Engine>, digest: Digest, mapped: Mapped) -> Result<Self, Error> {
        let Mapped { pre, libraries } = mapped;
        let missing = |what: &str| Error::Export(format!("`{what}` is missing"));
        let component = pre.component();
        let handler = component
            .get_export_index(None, HANDLER)
            .ok_or_else(|| missing(HANDLER))?;
        let code = Code {
            process: component
                .get_export_index(Some(&handler), "process")
                .ok_or_else(|| missing("process"))?,
            bees: component
                .get_export_index(Some(&handler), "bees")
                .ok_or_else(|| missing("bees"))?,
            pre,
            _libraries: libraries,
        };
        let bees = names(&engine, &code, digest).await?;
        Ok(Self {
            engine,
            digest,
            code: Arc::new(code),
            bees: bees.into(),
        })
    }

    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// In the module's order.
    #[must_use]
    pub fn bees(&self) -> &[BeeName] {
        &self.bees
    }

    /// Whether it imports what sends HTTP requests.
    #[must_use]
    pub fn sends_http(&self) -> bool {
        let component = self.code.pre.component();
        let component_type = component.component_type();
        let mut imports = component_type.imports(component.engine());
        imports.any(|(name, _)| name.starts_with(SENDS_HTTP))
    }

    /// The Bee `name`, to be run as `settings` say.
    ///
    /// # Errors
    /// No such Bee, or a setting outside what the engine can give.
    pub fn bee(&self, name: &BeeName, settings: BeeSettings) -> Result<Bee, Error> {
        if !self.bees.contains(name) {
            let has: Vec<&str> = self.bees.iter().map(BeeName::as_str).collect();
            return Err(Error::NoSuchBee {
                name: name.clone(),
                has: has.join(", "),
            });
        }
        settings.check(self.engine.settings())?;
        Ok(Bee::new(
            Arc::clone(&self.engine),
            Arc::clone(&self.code),
            name.clone(),
            settings,
        ))
    }
}

async fn names(engine: &Engine, code: &Code, digest: Digest) -> Result<Vec<BeeName>, Error> {
    let host = Host::new(
        digest,
        Sense::new(digest, None),
        BEES_MEMORY_BYTES.min(engine.settings().memory_bytes_max),
        Arc::default(),
        None,
        None,
    );
    let mut store = host.into_store(code.pre.engine(), BEES_TIME.ticks());
    // Nobody's: it is done once a module and node.
    let turn = || Turn::new(&Arc::default(), &Arc::default());
    let running = engine.ticker().run();
    let outside = store.data().outside.clone();
    let instance = guarded(BEES_TIME, &mut turn(), &outside, code.pre.instantiate_async(&mut store)).await;
    let instance = instance.map_err(|failure| ended(failure, store.data()))?;
    // This check of both types is what `Instance::call` relies upon.
    let bees: Bees = instance
        .get_typed_func(&mut store, code.bees)
        .map_err(|e| Error::Export(format!("`bees`: {}", e.root_cause())))?;
    let _: Process<'_> = instance
        .get_typed_func(&mut store, code.process)
        .map_err(|e| Error::Export(format!("`process`: {}", e.root_cause())))?;
    let named = guarded(BEES_TIME, &mut turn(), &outside, bees.call_async(&mut store, ())).await;
    drop(running);
    let (named,) = named.map_err(|failure| ended(failure, store.data()))?;
    checked(named.into_iter().map(|bee| bee.name).collect())
}

/// What a module said its Bees' names are.
///
/// # Errors
/// It named none, too many, one twice, or one badly.
pub(crate) fn checked(named: Vec<String>) -> Result<Vec<BeeName>, Error> {
    if named.is_empty() {
        return Err(Error::NoBees);
    }
    if named.len() > limits::BEES_PER_MODULE_MAX {
        return Err(Error::TooManyBees(named.len()));
    }
    let mut seen = BTreeSet::new();
    let mut names = Vec::with_capacity(named.len());
    for name in named {
        let name: BeeName = name.parse()?;
        if !seen.insert(name.clone()) {
            return Err(Error::TwiceNamed(name));
        }
        names.push(name);
    }
    Ok(names)
}

fn ended(failure: Failure, host: &Host) -> Error {
    match failed(failure, host, BEES_TIME).result {
        Err(Trap { kind, detail, .. }) => Error::Bees(format!("{kind}: {detail}")),
        // `failed` always gives a trap.
        Ok(_) => Error::Bees("it ended without a cause".into()),
    }
}
