//! What can go wrong before a Bee runs. What goes wrong while it runs is a [`skep_model::step::Trap`].

use skep_model::name::{BadName, BeeName};

/// Why an engine or a module could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine does not give what the settings ask for.
    #[error(
        "cannot start the engine: {0}; lower `running` or `spare`, or raise the address space limit of the process"
    )]
    Start(String),
    #[error("cannot start the guest threads: {0}")]
    Threads(#[from] std::io::Error),
    /// Not made by this version with these settings. Compile again.
    #[error("the compiled artifact does not fit this engine: {0}; compile the module again")]
    Artifact(String),
    /// The module is sound but asks for more than an engine slot has.
    #[error("the module does not fit into an engine slot: {0}")]
    TooBig(String),
    /// The export is there but has another type.
    #[error("the export `skep:bee/handler@0.1.0` is not as the WIT package says: {0}; build against skep:bee@0.1.0")]
    Export(String),
    #[error("the module's `bees` export failed: {0}")]
    Bees(String),
    /// Of a tenant that has processes of its own.
    #[error("the tenant's own process: {0}")]
    Apart(String),
    /// What that one said of a module: in its words.
    #[error("{0}")]
    Told(String),
    #[error("the module names no Bee; register at least one")]
    NoBees,
    #[error("the module names {0} Bees, more than {max}", max = skep_model::limits::BEES_PER_MODULE_MAX)]
    TooManyBees(usize),
    #[error("the module names a Bee badly: {0}")]
    BadBeeName(#[from] BadName),
    #[error("the module names the Bee `{0}` twice")]
    TwiceNamed(BeeName),
    #[error("the module has no Bee `{name}`; it has: {has}")]
    NoSuchBee { name: BeeName, has: String },
    #[error("{what} is {found}, outside {min} to {max}")]
    BadSetting {
        what: &'static str,
        found: u64,
        min: u64,
        max: u64,
    },
}
