//! The host: one binary, `skep`, on a laptop, an edge node and a cluster.
//!
//! ```text
//!   cli ─► serve ─► node ─► supervisor ─► stages ─► engine
//!                    ├────► gateway (doors) ─► topics
//!                    └────► beekeeper ─► catalog, store
//! ```
//! This library exists so that integration tests and `main.rs` share one build; nothing outside the workspace uses it.

pub mod access;
pub mod admin;
pub mod audit;
pub mod backup;
pub mod beekeeper;
pub mod builtin;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod demo;
pub mod doctor;
pub mod edges;
pub mod isolation;
pub mod level;
pub mod logs;
pub mod machine;
pub mod members;
pub mod mirror;
pub mod models;
pub mod node;
pub mod oidc;
pub mod owner;
pub mod peer;
pub mod quotas;
pub mod secrets;
pub mod serve;
pub mod settings;
pub mod signatures;
pub mod spans;
pub mod stats;
pub mod store;
pub mod supervisor;
pub mod tls;
pub mod usage;
pub mod wording;
