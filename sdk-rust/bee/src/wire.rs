//! The types that cross the boundary, and the host behind it.
//!
//! In a module they are those that the bindings generate from `wit/`; natively they are their mirror, so that the rest
//! of the crate is written and tested once. The public types wrap these without adding a field: what came in or goes
//! out is moved, never copied.

#[cfg(target_arch = "wasm32")]
pub use crate::export::{
    Host, describe,
    models::Tensor,
    predict,
    types::{Disposition, Due, Emit, Failure, Input, Message, Outcome, PartOf},
};
#[cfg(not(target_arch = "wasm32"))]
pub use {
    crate::dev::Host,
    crate::model::native::{describe, predict},
    mirror::*,
};

#[cfg(not(target_arch = "wasm32"))]
mod mirror {
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Message {
        pub uid: Vec<u8>,
        pub key: Option<String>,
        pub headers: Vec<(String, String)>,
        pub payload: Vec<u8>,
        pub accepted_ms: u64,
        pub attempt: u32,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Due {
        pub uid: Vec<u8>,
        pub key: String,
        pub name: String,
        pub at_ms: u64,
        pub attempt: u32,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct PartOf {
        pub source: String,
        pub value: Message,
    }

    #[derive(Debug)]
    pub enum Input {
        One(Message),
        Timer(Due),
        Joined(Vec<PartOf>),
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Emit {
        pub to: Option<String>,
        pub key: Option<String>,
        pub headers: Vec<(String, String)>,
        pub payload: Vec<u8>,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Failure {
        pub reason: String,
        pub detail: String,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Disposition {
        Done,
        RetryAfter(u64),
        Reject(String),
        Fail(Failure),
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Tensor {
        pub kind: String,
        pub shape: Vec<u64>,
        pub data: Vec<u8>,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Outcome {
        pub publish: Vec<Emit>,
        pub respond: Vec<Vec<u8>>,
        pub disposition: Disposition,
    }
}
