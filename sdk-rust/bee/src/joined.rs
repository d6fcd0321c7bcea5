//! What a join brings together.

use crate::message::Message;
use crate::wire;

/// One message of each side of a join, owned. In the manifest: `input: { join: [a, b] }`.
///
/// With `missing: partial` a side may be absent.
#[derive(Debug, Clone, Default)]
pub struct Joined(pub(crate) Vec<wire::PartOf>);

impl Joined {
    /// These messages, each with the name of its side, for tests.
    #[must_use]
    pub fn new<S: Into<String>>(parts: impl IntoIterator<Item = (S, Message)>) -> Self {
        let part = |(source, message): (S, Message)| wire::PartOf {
            source: source.into(),
            value: message.0,
        };
        Self(parts.into_iter().map(part).collect())
    }

    /// The message of the side of this name: a Bee's or a subject's.
    #[must_use]
    pub fn get(&self, side: &str) -> Option<Message> {
        let part = self.0.iter().find(|part| part.source == side);
        part.map(|part| Message(part.value.clone()))
    }

    /// How many sides are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none, which the node never sends.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Each side's name and message, in the manifest's order.
impl IntoIterator for Joined {
    type Item = (String, Message);
    type IntoIter = Parts;

    fn into_iter(self) -> Parts {
        Parts(self.0.into_iter())
    }
}

/// The sides of a [`Joined`], one by one.
#[derive(Debug)]
pub struct Parts(std::vec::IntoIter<wire::PartOf>);

impl Iterator for Parts {
    type Item = (String, Message);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|part| (part.source, Message(part.value)))
    }
}
