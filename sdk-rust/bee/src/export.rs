//! What a module exports and imports. Only here does the crate know that it runs inside WebAssembly.
//!
//! The exports live in this crate and not in the user's: they survive into the user's `cdylib` because the linker keeps
//! exported symbols of every crate below it.

use std::sync::Once;

use crate::model::{Kind, ModelError, ModelErrorKind, Port, Signature};
use crate::process;
use crate::reply::ReplyError;
use crate::secret::SecretError;
use crate::state::StateError;
use crate::swarm::Swarm;
use crate::timer::TimerError;

/// Generated from `wit/`.
mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "skep:bee/module",
        generate_all,
    });
}

use bindings::exports::skep::bee::handler;
pub use bindings::skep::bee::{models, types};
use bindings::skep::bee::{reply, secrets, state, step, timers};
use bindings::wasi::config::store;
use bindings::wasi::logging::logging;

struct Module;

impl handler::Guest for Module {
    fn bees() -> Vec<handler::Bee> {
        crate::registry::names()
            .into_iter()
            .map(|name| handler::Bee { name: name.to_owned() })
            .collect()
    }

    fn process(bee: String, inputs: Vec<types::Input>) -> Vec<types::Outcome> {
        install_logger();
        process::process(&bee, inputs, &mut Swarm::default())
    }
}

bindings::export!(Module with_types_in bindings);

/// The host's imports. Without a field, and called directly: what a Bee does not use is not even imported.
#[derive(Debug, Default)]
pub struct Host;

impl Host {
    pub fn begin(&mut self, index: u32, _key: Option<&str>) {
        step::begin(index);
    }

    pub fn abandon(&mut self, index: u32) {
        step::abandon(index);
    }

    pub fn state_get(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        state::get(name).map_err(state_error)
    }

    pub fn state_put(&mut self, name: &str, value: &[u8]) -> Result<(), StateError> {
        state::put(name, value).map_err(state_error)
    }

    pub fn state_delete(&mut self, name: &str) -> Result<(), StateError> {
        state::delete(name).map_err(state_error)
    }

    pub fn timer_set(&mut self, name: &str, at_ms: u64) -> Result<(), TimerError> {
        timers::set(name, at_ms).map_err(timer_error)
    }

    pub fn timer_cancel(&mut self, name: &str) -> Result<(), TimerError> {
        timers::cancel(name).map_err(timer_error)
    }

    pub fn reply_part(&mut self, data: &[u8]) -> Result<(), ReplyError> {
        reply::part(data).map_err(|error| match error {
            reply::Error::NoCaller => ReplyError::NoCaller,
            reply::Error::NoStep => ReplyError::NoStep,
            reply::Error::Closed => ReplyError::Closed,
            reply::Error::TooLarge(max) => ReplyError::TooLarge(max),
        })
    }

    pub fn secret(&self, name: &str) -> Result<Vec<u8>, SecretError> {
        secrets::get(name).map_err(|error| match error {
            secrets::Error::NotGranted => SecretError::NotGranted(name.to_owned()),
            secrets::Error::Missing => SecretError::Missing(name.to_owned()),
        })
    }

    pub fn config(&self, name: &str) -> crate::Result<Option<String>> {
        store::get(name).map_err(|error| match error {
            store::Error::Upstream(why) | store::Error::Io(why) => {
                crate::Error::fail("config", format!("reading `{name}`: {why}"))
            }
        })
    }
}

/// Apart from [`Host`], which a Bee's function borrows: a model is called from wherever it is needed.
pub fn describe(name: &str) -> Result<Signature, ModelError> {
    let models::Signature { inputs, outputs } = models::describe(name).map_err(model_error)?;
    let port = |models::Port { name, kind, shape }| match Kind::named(&kind) {
        Some(kind) => Ok(Port { name, kind, shape }),
        None => Err(ModelError::new(
            ModelErrorKind::Invalid,
            format!("{name:?} of the model is of type {kind}, which this SDK does not know: build with a newer one"),
        )),
    };
    Ok(Signature {
        inputs: inputs.into_iter().map(port).collect::<Result<_, _>>()?,
        outputs: outputs.into_iter().map(port).collect::<Result<_, _>>()?,
    })
}

pub fn predict(name: &str, inputs: &[(String, models::Tensor)]) -> Result<Vec<(String, models::Tensor)>, ModelError> {
    models::predict(name, inputs).map_err(model_error)
}

fn model_error(models::Error { kind, text }: models::Error) -> ModelError {
    let kind = match kind {
        models::Trouble::NotGranted => ModelErrorKind::NotGranted,
        models::Trouble::NotFound => ModelErrorKind::NotFound,
        models::Trouble::Invalid => ModelErrorKind::Invalid,
        models::Trouble::Busy => ModelErrorKind::Busy,
        models::Trouble::Timeout => ModelErrorKind::Timeout,
        models::Trouble::Unavailable => ModelErrorKind::Unavailable,
        models::Trouble::Failed => ModelErrorKind::Failed,
        models::Trouble::NoStep => ModelErrorKind::NoStep,
    };
    ModelError::new(kind, text)
}

fn state_error(error: state::Error) -> StateError {
    match error {
        state::Error::Unkeyed => StateError::Unkeyed,
        state::Error::NoStep => StateError::NoStep,
        state::Error::TooLarge(max) => StateError::TooLarge(max),
        state::Error::Quota => StateError::Quota,
    }
}

fn timer_error(error: timers::Error) -> TimerError {
    match error {
        timers::Error::Unkeyed => TimerError::Unkeyed,
        timers::Error::NoStep => TimerError::NoStep,
        timers::Error::Quota => TimerError::Quota,
    }
}

/// The crate `log`, sent to the node, which keeps the lines by Bee and message.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = match record.level() {
            log::Level::Error => logging::Level::Error,
            log::Level::Warn => logging::Level::Warn,
            log::Level::Info => logging::Level::Info,
            log::Level::Debug => logging::Level::Debug,
            log::Level::Trace => logging::Level::Trace,
        };
        logging::log(level, record.target(), &record.args().to_string());
    }

    fn flush(&self) {}
}

/// Once an instance. A Bee that set its own logger before keeps it, and its level.
fn install_logger() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        if log::set_logger(&Logger).is_ok() {
            log::set_max_level(log::LevelFilter::Info);
        }
    });
}
