//! Loops: how often a message went round, and what ends it.
//!
//! A circle of stages whose inboxes are all full could wait for itself. Whoever waits in such a circle is waited for as well, so its own
//! inbox is full; and one of them waits to send back by a loop, for without loops there is no circle. That one gives up: see
//! [`is_jammed`]. Everybody else waits for room as ever.

use skep_model::message::Lap;
use skep_model::name::StageName;
use skep_model::swarm::Bound;
use skep_topic::TopicStatus;

use super::Origin;
use crate::plan::Destination;

/// Why a message may not go back: the reason of its dead letter, and what to tell people.
type Refused = (&'static str, String);

/// The counts that what goes from `from` to `to` carries.
pub(super) fn passed(
    from: &StageName,
    origin: &Origin<'_>,
    to: &Destination,
    closed: &[StageName],
) -> Result<Vec<Lap>, Refused> {
    let mut laps = so_far(origin);
    let Some(most) = to.laps else { return Ok(laps) };
    let at = laps.iter().position(|lap| lap.from == *from && lap.to == to.stage);
    let at = at.unwrap_or_else(|| {
        laps.push(Lap {
            from: from.clone(),
            to: to.stage.clone(),
            times: 0,
        });
        laps.len() - 1
    });
    // The bound may have been lowered meanwhile.
    if laps[at].times >= most {
        return Err((
            "loop-bound",
            format!(
                "it went from `{from}` back to `{}` {} times, and `loop: {most}` allows no more",
                to.stage, laps[at].times
            ),
        ));
    }
    if closed.contains(&to.stage) {
        return Err((
            "loop-full",
            format!(
                "it was to go from `{from}` back to `{}`, and the inboxes of both are full: each would wait for the other",
                to.stage
            ),
        ));
    }
    laps[at].times += 1;
    Ok(laps)
}

/// What a join makes came round as often as the one of its parts that did most.
fn so_far(origin: &Origin<'_>) -> Vec<Lap> {
    let parts = origin.joined.into_iter().flat_map(|gathered| &gathered.parts);
    let mut messages = parts.map(|(_, message)| message).chain(origin.message);
    let laps =
        |message: &skep_model::message::Message| message.lineage.as_ref().map_or_else(Vec::new, |l| l.laps.clone());
    let mut out = messages.next().map_or_else(Vec::new, laps);
    for lap in messages.flat_map(|message| message.lineage.iter().flat_map(|l| &l.laps)) {
        match out
            .iter_mut()
            .find(|known| known.from == lap.from && known.to == lap.to)
        {
            Some(known) => known.times = known.times.max(lap.times),
            None => out.push(lap.clone()),
        }
    }
    out
}

/// Whether a stage that finds no room where it would send back by a loop is to give up, rather than wait: its own inbox is full, so that
/// others may wait for it.
pub(crate) fn is_jammed(own: &TopicStatus, bound: Bound) -> bool {
    own.unread + own.parked >= bound.messages || own.unread_bytes + own.parked_bytes >= bound.bytes
}
