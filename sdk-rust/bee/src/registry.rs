//! The Bees of this module.
//!
//! Each attribute submits its Bee in a constructor, so a user keeps no list that could be forgotten.

use crate::joined::Joined;
use crate::message::Message;
use crate::swarm::Swarm;
use crate::timer::Timer;

type OnMessage = fn(&mut Swarm, Message) -> crate::Result;
type OnBatch = fn(&mut Swarm, Vec<Message>) -> crate::Result;
type OnJoined = fn(&mut Swarm, Joined) -> crate::Result;
type OnTimer = fn(&mut Swarm, Timer) -> crate::Result;

/// One registered function.
#[derive(Debug, Clone, Copy)]
pub struct Bee {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    pub(crate) timer: Option<OnTimer>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    One(OnMessage),
    Batch(OnBatch),
    Joined(OnJoined),
}

impl Bee {
    /// A function of one message.
    #[must_use]
    pub const fn one(name: &'static str, on_message: OnMessage) -> Self {
        Self {
            name,
            form: Form::One(on_message),
            timer: None,
        }
    }

    /// A function of all messages of a batch.
    #[must_use]
    pub const fn batch(name: &'static str, on_batch: OnBatch) -> Self {
        Self {
            name,
            form: Form::Batch(on_batch),
            timer: None,
        }
    }

    /// A function of what a join brings together.
    #[must_use]
    pub const fn joined(name: &'static str, on_joined: OnJoined) -> Self {
        Self {
            name,
            form: Form::Joined(on_joined),
            timer: None,
        }
    }

    /// The same Bee with a function for its timers.
    #[must_use]
    pub const fn with_timer(mut self, on_timer: OnTimer) -> Self {
        self.timer = Some(on_timer);
        self
    }
}

inventory::collect!(Bee);

/// All names, sorted: constructors run in no promised order, and an upload should answer the same each time.
///
/// # Panics
/// If two Bees have one name. It runs at upload, so the module is refused with this message.
pub(crate) fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = inventory::iter::<Bee>.into_iter().map(|bee| bee.name).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        assert!(
            pair[0] != pair[1],
            "this module has two Bees of the name `{}`: rename one by `#[skep::bee(name = \"…\")]`",
            pair[0]
        );
    }
    names
}

pub(crate) fn find(name: &str) -> Option<&'static Bee> {
    inventory::iter::<Bee>.into_iter().find(|bee| bee.name == name)
}
