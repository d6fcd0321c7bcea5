//! The suite on every backend of this crate, and what only a real process can show.

mod backups;
mod differential;
mod folder;
mod guards;
mod harness;
mod histories;
mod kills;
mod redis;
mod rescaled;
mod suite;
