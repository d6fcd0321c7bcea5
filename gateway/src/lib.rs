//! Gateways: how clients reach Swarms.
//!
//! ```text
//!   grpc ─┐                       ┌─ pure, no idempotency key ──► lane (memory) ──┐
//!         ├─► door ─► core ─admit─┤                                               ├──► stages … reply ─► waiters ─► caller
//!   http ─┘                       └─ everything else ─► append (grouped) ─► topic ─┘
//! ```
//!
//! A Gateway meets a Swarm at its topics and nowhere else: it neither knows stages nor the engine.
//! - [`door`]: a credential becomes a scope and a role, in front of everything.
//! - [`call`]: what is asked and answered, as plain values; [`error`]: the one place that knows status codes.
//! - [`route`]: which subject feeds what; [`core`]: the calls; [`admit`]: how many at once; [`purse`]: what one tenant may have of it;
//!   [`append`]: many calls in one step; `body`: what is on its way in and out; `unread`: what
//!   nobody waited for.
//! - [`grpc`], [`pipeline`], [`session`]: the gRPC kind, its request stream and its submit stream; [`http`]: the HTTP/JSON kind.
//! - `oip`: the Open Inference Protocol v2 kind, over both; it reaches the node's models too.
//! - [`mod@serve`]: one port for both.

pub mod admit;
pub mod append;
mod body;
pub mod call;
pub mod core;
pub mod door;
pub mod error;
mod events;
pub mod grpc;
pub mod http;
mod oip;
mod pipeline;
pub mod purse;
pub mod route;
pub mod serve;
mod session;
mod unread;

pub use body::Bounded;
pub use call::{Answer, CallError, OutMessage, RequestCall, SubmitCall, Submitted};
pub use core::{Core, Settings};
pub use door::Door;
pub use route::{Feed, Open, Route, RouteTable};
pub use serve::{Entrance, Port, serve};

/// A way to reach a Swarm. Other kinds are one file each, over the same [`Core`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Grpc,
    Http,
    Oip,
}

impl Kind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Oip => "oip",
        }
    }
}
