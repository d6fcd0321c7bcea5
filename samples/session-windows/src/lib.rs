//! Motion sensors to visits: session windows by room, over event time.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use skep::window::{Closed, Gather, Windows};
use skep::{Emit, Message, Swarm, Timer};

/// A visit ends when nothing moved for two seconds. Sensors may report up to a second late; one whose clock is a day ahead
/// would close all visits of its room, so its reports are rejected.
const VISITS: Windows = Windows::session(Duration::from_secs(2))
    .wait(Duration::from_secs(1))
    .ahead(Duration::from_secs(86_400));

#[derive(Deserialize)]
struct Motion {
    /// When it moved, in milliseconds since the Unix epoch.
    at: u64,
    strength: f64,
}

/// What is gathered of a visit.
#[derive(Default, Serialize, Deserialize)]
struct Moves {
    moves: u64,
    strongest: f64,
}

impl Gather for Moves {
    fn merge(&mut self, later: Self) {
        self.moves += later.moves;
        self.strongest = self.strongest.max(later.strongest);
    }
}

#[derive(Serialize)]
struct Visit<'a> {
    room: &'a str,
    from: u64,
    to: u64,
    moves: u64,
    strongest: f64,
}

#[skep::bee(timer = quiet)]
fn visits(swarm: &mut Swarm, message: Message) -> skep::Result {
    let motion: Motion = message.json()?;
    let room = message.key().unwrap_or_default().to_owned();
    let seen = VISITS.add(swarm, motion.at, |visit: &mut Moves| {
        visit.moves += 1;
        visit.strongest = visit.strongest.max(motion.strength);
    })?;
    publish(swarm, &room, seen.closed)?;
    if seen.late {
        swarm.emit(Emit::new(message.into_payload()).to("late").key(room));
    }
    Ok(())
}

/// Nothing moved in a room for a while.
fn quiet(swarm: &mut Swarm, timer: Timer) -> skep::Result {
    let closed = VISITS.on_timer::<Moves>(swarm, &timer)?;
    publish(swarm, timer.key(), closed)
}

fn publish(swarm: &mut Swarm, room: &str, closed: Vec<Closed<Moves>>) -> skep::Result {
    for visit in closed {
        let value = Visit {
            room,
            from: visit.start_ms,
            to: visit.end_ms,
            moves: visit.value.moves,
            strongest: visit.value.strongest,
        };
        swarm.emit(Emit::json(&value)?.key(room));
    }
    Ok(())
}

/// Keeps what it got, in order, under `1`, `2`…
#[skep::bee]
fn log(swarm: &mut Swarm, message: Message) -> skep::Result {
    let count = swarm.state().get_json::<u64>("count")?.unwrap_or(0) + 1;
    swarm.state().put_json("count", &count)?;
    swarm.state().put(&count.to_string(), message.payload())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::DevSwarm;

    #[test]
    fn a_pause_ends_a_visit_and_silence_the_last() {
        let mut swarm = DevSwarm::new();
        for at in [10_000, 11_500, 20_000] {
            let motion = format!(r#"{{"room": "hall", "at": {at}, "strength": 0.5}}"#);
            let message = Message::new(motion).with_key("hall").with_accepted_ms(at);
            swarm.deliver(visits, message).unwrap();
        }
        assert_eq!(swarm.published().len(), 1);
        assert!(
            swarm.published()[0]
                .text()
                .contains(r#""from":10000,"to":13500,"moves":2"#)
        );
        assert_eq!(swarm.fire_until(23_000, quiet).unwrap(), 1);
        assert!(
            swarm.published()[1]
                .text()
                .contains(r#""from":20000,"to":22000,"moves":1"#)
        );
    }
}
