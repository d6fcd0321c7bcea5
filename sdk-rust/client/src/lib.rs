//! Calls Swarms from Rust programs, over gRPC.
//!
//! ```no_run
//! # async fn example() -> Result<(), skep_client::Error> {
//! use skep_client::Gateway;
//!
//! let gateway = Gateway::connect("http://127.0.0.1:4020").await?;
//!
//! // One request. Options go in between.
//! let answer = gateway.request("hello-world", r#"{"name":"Bee"}"#).await?;
//! println!("{}", answer.text());
//! gateway
//!     .request("orders", "{}")
//!     .key("customer-7")
//!     .timeout(std::time::Duration::from_secs(2))
//!     .idempotency_key("order-123") // repeated, it takes effect once
//!     .await?;
//!
//! // An answer in parts, as the Bee makes them.
//! let mut parts = gateway.request("chat", "Tell me of bees").stream().await?;
//! while let Some(part) = parts.next().await? {
//!     print!("{}", String::from_utf8_lossy(&part));
//! }
//!
//! // Many at once on one stream.
//! let requests = gateway.requests();
//! let ten = (0..10).map(|i| requests.request("hello-world", i.to_string()).into_future());
//! let answers = futures::future::join_all(ten).await;
//!
//! // Messages that nobody waits for: durable once this returns.
//! gateway.submit("lines", ["first", "second"]).await?;
//!
//! // A long stream, resumed by itself when the connection breaks.
//! let mut lines = gateway.submit_stream("lines");
//! for line in ["a", "b", "c"] {
//!     lines.send(line).await?;
//! }
//! let done = lines.finish().await?;
//! assert_eq!(done.durable, 3);
//! # let _ = answers;
//! # Ok(())
//! # }
//! ```
//!
//! A node that wants a token, and speaks TLS:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use skep_client::{Gateway, Login};
//!
//! let login = Login::default()
//!     .token(&std::env::var("SKEP_TOKEN")?)?
//!     .ca(std::fs::read("ca.pem")?);
//! let gateway = Gateway::connect_with("https://bees.example.org:4020", login).await?;
//! # let _ = gateway;
//! # Ok(())
//! # }
//! ```
//!
//! Every [`Error`] says whether the work was done ([`Outcome`]). The client itself repeats only what was certainly not done, or
//! what carries an idempotency key, and only within the deadline.

mod error;
mod gateway;
mod login;
mod message;
mod parts;
mod pipeline;
mod retry;
mod submit;

pub use error::{Error, Kind, Outcome};
pub use gateway::{Gateway, Request, Submit, Submitted};
pub use login::Login;
pub use message::{Hop, Message, Response};

/// A [`Message`] on its way out.
pub type Outgoing = Message;
pub use parts::Parts;
pub use pipeline::Requests;
pub use submit::{SubmitStream, Summary};

/// Deadline of a request that sets none.
pub const TIMEOUT_DEFAULT: std::time::Duration = std::time::Duration::from_secs(30);
/// Requests under way on one pipelined stream; further ones wait.
pub const WINDOW_MAX: usize = 4_096;
