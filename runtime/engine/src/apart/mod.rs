//! Processes of tenants: all Bees of one tenant, and no other's, in a process of their own.
//!
//! ```text
//!   stage ─► ApartBee ─► Process ══ socket, one a call at once ══► guest.rs ─► Bee ─► instance
//!            (call.rs)      │                                                    │
//!            parts, models, connections, secrets ◄───── asks of the call ◄───────┘
//!                           └══ socket of orders ══► child.rs        limits, pings; what was used
//! ```
//! A batch goes in and its effects come out as data, so a process in between is felt in nothing but time. The process is hostile from the
//! node's view: it may have been taken over by a Bee. It has no key, no file, no store and no network; native code comes to it in sealed
//! memory files. What it says is bounded as it is read ([`codec`], [`link`]) and looked at as a guest's answer is ([`check`]); one that says
//! what none would is killed.
//!
//! The sockets carry frames of our own and not gRPC: a call takes one of them for itself, so its loss is the call's end, in both directions, the
//! kernel's buffers are its flow control, and two wake-ups are its cost.

mod asks;
mod bee;
mod call;
mod check;
mod child;
mod codec;
mod guest;
#[cfg(test)]
mod hostile;
mod link;
mod messages;
mod process;
mod processes;
mod values;

pub use crate::confined::tenant::missing;
pub use bee::{ApartBee, Codes};
pub use child::child_main;
pub use processes::{Counts, Processes};
