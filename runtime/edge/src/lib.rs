//! An edge: a node without a compiler, a catalog or tenants, that runs some stages of one tenant's Swarms where memory, power and the network are
//! scarce, and hands over what other stages read to its *hub*, any full node.
//!
//! ```text
//!   orders, signed code ──────► stages at the edge ──► outbox (a durable topic) ──► hub's topics
//!   hub (skep)          Attach  own door, own store    forwarder, numbered          taken once
//! ```
//! What hub and edge agree on is in [`keys`], [`hello`], [`line`] and [`orders`], which the hub uses too. The edge itself:
//! - [`home`]: its folder; [`enrol`]: how it gets its hub's word.
//! - [`link`]: the one connection, and its proofs; all else is told and heard over it.
//! - [`code`]: signed artifacts on disk.
//! - [`stages`]: what the orders say, as stages at work and routes of the door.
//! - [`outbox`]: what waits for the hub, and is handed over once.
//! - [`node`]: all of it, started in order and stopped in reverse.
//!
//! An edge asks no clock whether it may do something: orders and code are good until there are newer ones, so a clock that is wrong by years, or a
//! hub that is away for as long, stops nothing. (TLS has its own opinion of dates.)

pub mod code;
pub mod enrol;
pub mod hello;
pub mod home;
pub mod keys;
pub mod limits;
pub mod line;
pub mod link;
pub mod node;
pub mod orders;
pub mod outbox;
pub mod stages;
