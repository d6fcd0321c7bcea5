//! Arguments of scripts, laid out flat in the order in which the scripts take them.

use std::collections::HashMap;
use std::sync::Arc;

use redis::Cmd;
use skep_model::limits;
use skep_model::message::Message;

use super::scripts::Script;
use crate::TopicSpec;
use crate::record::{FrameBuilder, Run};

/// An EVALSHA under construction.
pub(super) struct Args {
    pub command: Cmd,
    pub count: usize,
}

impl Args {
    pub fn new(script: Script, key: &str) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.digest()).arg(1).arg(key);
        Self { command, count: 0 }
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.command.arg(bytes);
        self.count += 1;
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub fn num(&mut self, n: impl TryInto<u64>) -> &mut Self {
        let n: u64 = n.try_into().unwrap_or(u64::MAX);
        self.command.arg(n);
        self.count += 1;
        self
    }

    pub fn flag(&mut self, flag: bool) -> &mut Self {
        self.bytes(if flag { b"1" } else { b"0" })
    }
}

/// Messages that a caller brings for one partition, sealed as one record.
struct Part {
    frame: FrameBuilder,
    /// Running sums of the messages' sizes; left out for a single one, whose border is the part's.
    sums: Vec<u8>,
    /// The place of each in the caller's own list, for calls of which a part may be a repeat.
    positions: Vec<u8>,
}

/// A caller's messages for one topic, grouped by partition. Encoding happens at the caller, so that the server only joins.
pub(super) struct Bundle {
    pub to: Arc<TopicSpec>,
    run: Run,
    places: Vec<Option<u16>>,
}

impl Bundle {
    pub fn new(to: Arc<TopicSpec>) -> Self {
        Self {
            to,
            run: Run::default(),
            places: Vec::new(),
        }
    }

    pub fn push(&mut self, message: &Message) {
        self.places
            .push(message.key.as_deref().map(|key| self.to.partition_of_key(key)));
        self.run.push(message);
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_loose(&self) -> bool {
        self.places.contains(&None)
    }

    /// The partitions of keyed messages.
    pub fn partitions(&self) -> Vec<u16> {
        let mut out: Vec<u16> = self.places.iter().filter_map(|p| *p).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// Count, then for each part: place, messages, bytes, sums, positions if wanted, record.
    pub fn write(self, args: &mut Args, positions: Positions) {
        let mut parts: Vec<(Option<u16>, Part)> = Vec::new();
        let mut open: HashMap<Option<u16>, usize> = HashMap::new();
        // Neighbours mostly share their place.
        let mut last: Option<(Option<u16>, usize)> = None;
        for (i, (place, (encoded, size))) in self.places.iter().zip(self.run.pieces(0)).enumerate() {
            // Messages without key may join keyed ones in a partition: there they keep the caller's order.
            if last.is_some_and(|(former, _)| former.is_none() != place.is_none()) {
                open.clear();
                last = None;
            }
            let at = match last {
                Some((former, at)) if former == *place => Some(at),
                _ => open.get(place).copied(),
            };
            let fits = |at: &usize| {
                let frame = &parts[*at].1.frame;
                (frame.messages() as usize) < limits::FRAME_MESSAGES_MAX
                    && frame.size() + size <= limits::FRAME_BYTES_MAX as u64
            };
            let at = at.filter(fits).unwrap_or_else(|| {
                let part = Part {
                    frame: FrameBuilder::default(),
                    sums: Vec::new(),
                    positions: Vec::new(),
                };
                parts.push((*place, part));
                open.insert(*place, parts.len() - 1);
                parts.len() - 1
            });
            last = Some((*place, at));
            let part = &mut parts[at].1;
            part.frame.push(encoded, size);
            let sum = u32::try_from(part.frame.size()).unwrap_or(u32::MAX);
            part.sums.extend_from_slice(&sum.to_le_bytes());
            if positions == Positions::Written {
                let position = u32::try_from(i).unwrap_or(u32::MAX);
                part.positions.extend_from_slice(&position.to_le_bytes());
            }
        }
        args.num(parts.len());
        for (place, part) in parts {
            match place {
                Some(place) => args.num(place),
                None => args.bytes(b""),
            };
            args.num(part.frame.messages()).num(part.frame.size());
            let single = part.frame.messages() == 1;
            args.bytes(if single { b"" } else { &part.sums });
            if positions != Positions::None {
                args.bytes(&part.positions);
            }
            args.bytes(&part.frame.finish());
        }
    }
}

/// Whether parts say where their messages stood in the caller's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Positions {
    /// There is no such argument.
    None,
    Empty,
    Written,
}
