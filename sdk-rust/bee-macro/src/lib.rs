//! The attribute `#[skep::bee]`. Use it through the crate `skep-bee` (library name `skep`), which documents it.
//!
//! The function stays as it was written, so that tests call it as a plain function; beside it the attribute puts one
//! registration. What can be said about a wrong signature is said here, in the user's words and at the user's line,
//! because the type checker would only speak of an adapter that the user never wrote.

#![forbid(unsafe_code)]

mod attribute;
mod expand;
mod signature;

/// Registers a function as a Bee of this module.
///
/// ```ignore
/// #[skep::bee]
/// fn hello(swarm: &mut Swarm, message: Message) -> skep::Result { Ok(()) }
///
/// #[skep::bee(name = "word-count", timer = on_timer)]
/// fn count(swarm: &mut Swarm, message: Message) {}
///
/// #[skep::bee(batch)]
/// fn score(swarm: &mut Swarm, messages: Vec<Message>) -> skep::Result { Ok(()) }
///
/// #[skep::bee]
/// fn vote(swarm: &mut Swarm, parts: Joined) -> skep::Result { Ok(()) }
/// ```
///
/// A function of `Joined` takes what a join brings together: `input: { join: [a, b] }`.
///
/// Options, separated by commas:
/// - `name = "…"`: the Bee's name, a DNS label. Default: the function's name with `-` for `_`.
/// - `timer = path`: the function `(swarm: &mut Swarm, timer: Timer)` that runs when a timer of this Bee fires.
///   Without it a timer fails with a reason that says so.
/// - `batch`: the function takes all messages of a batch, `(swarm: &mut Swarm, messages: Vec<Message>)`.
///
/// The function returns nothing or a `Result` whose error converts into `skep::Error`.
#[proc_macro_attribute]
pub fn bee(args: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand::expand(args.into(), item.into()).into()
}
