//! Write **Bees** for skep: small functions that take a message and publish, respond and keep state. A module of Bees
//! is built for `wasm32-wasip2` by plain cargo and runs sandboxed inside a Swarm.
//!
//! ```
//! use skep::{Message, Swarm};
//!
//! #[skep::bee]
//! fn hello(swarm: &mut Swarm, message: Message) -> skep::Result {
//!     let name = message.json::<serde_json::Value>()?["name"].as_str().unwrap_or("world").to_owned();
//!     swarm.publish(format!("Hello {name}"));
//!     Ok(())
//! }
//!
//! // A Bee is a plain function: a test calls it with a `DevSwarm`, which records what the Bee did.
//! # #[cfg(not(target_arch = "wasm32"))] {
//! use skep::DevSwarm;
//!
//! let mut swarm = DevSwarm::new();
//! hello(&mut swarm, Message::new(r#"{"name":"Bee"}"#)).unwrap();
//! assert_eq!(swarm.published()[0].text(), "Hello Bee");
//! # }
//! ```
//!
//! The crate type of a module is `cdylib`, and `cargo build --release --target wasm32-wasip2` builds it. Nothing else is
//! needed: the attribute registers the function, this crate exports what the node calls, and what a Bee does not use is
//! not imported. With `opt-level = "s"`, `lto = true`, `codegen-units = 1` and `strip = true` in `[profile.release]`
//! the Bee above is a module of about 100 KB.
//!
//! # What a Bee's effects mean
//! Nothing happens while a Bee runs. What it publishes and responds, its state and its timers are committed together
//! with the message that caused them, once. A returned error drops all of them for this message and for no other; the
//! error also says what comes next: see [`Error`].
//!
//! # What a Bee may use
//! Its clock stands still at the time at which the message was accepted, and its random numbers are seeded by the
//! message, so that a repeated attempt computes the same. There are no files, no sockets and no environment unless
//! the manifest grants them. Logging goes through the crate [`log`], at level `info` and above until the Bee calls
//! [`log::set_max_level`]. A panic ends the instance: the node then runs the messages of the batch one by one, and the
//! one that panics again is retried and at last dead-lettered with the panic's message.

#![warn(missing_docs)]

#[cfg(not(target_arch = "wasm32"))]
mod dev;
mod emit;
mod error;
#[cfg(target_arch = "wasm32")]
mod export;
pub mod http;
mod joined;
mod message;
pub mod model;
mod process;
mod registry;
mod reply;
mod secret;
mod state;
mod swarm;
mod timer;
pub mod window;
mod wire;

#[cfg(not(target_arch = "wasm32"))]
pub use dev::DevSwarm;
pub use emit::{Emit, Payload};
pub use error::{Error, Failure};
pub use joined::Joined;
pub use log;
pub use message::{Message, Uid};
pub use model::{Model, ModelError, ModelErrorKind, Tensor, model};
pub use reply::ReplyError;
pub use secret::{Secret, SecretError};
pub use skep_bee_macro::bee;
pub use state::{State, StateError, StateValue};
pub use swarm::Swarm;
pub use timer::{Timer, TimerError, Timers};

/// What a Bee returns.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// What `#[skep::bee]` expands to; not part of the API.
#[doc(hidden)]
pub mod __private {
    pub use crate::error::IntoResult;
    pub use crate::registry::Bee;
    pub use inventory::submit;
}
