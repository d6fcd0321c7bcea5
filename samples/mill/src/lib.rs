//! Bearings of a mill: `watch` and `score` run on a small machine beside the saws, `totals` runs at the hub.

use serde::{Deserialize, Serialize};
use skep::{Message, Swarm};

#[derive(Deserialize)]
struct Reading {
    sensor: String,
    /// Seconds since the Unix epoch.
    at: u64,
    /// mm/s.
    vibration: f64,
    /// °C.
    temperature: f64,
}

/// What a quantity of a sensor usually is: moving mean and variance.
#[derive(Default, Clone, Copy, Serialize, Deserialize)]
struct Usual {
    mean: f64,
    variance: f64,
}

impl Usual {
    /// How many standard deviations `value` is above the mean; then it counts itself.
    fn above(&mut self, value: f64, seen: u64) -> f64 {
        if seen == 0 {
            self.mean = value;
            return 0.0;
        }
        let off = value - self.mean;
        let above = off / self.variance.sqrt().max(LEAST);
        // All readings count alike until there are as many as it remembers.
        let memory = MEMORY.max(1.0 / (seen + 1) as f64);
        self.mean += memory * off;
        self.variance += memory * (off * off - self.variance);
        above
    }
}

/// Of the moving averages: the last fifty readings or so count.
const MEMORY: f64 = 0.02;
/// A standard deviation below this is the sensor's own noise.
const LEAST: f64 = 0.1;
/// Readings until what is usual is known.
const SETTLES: u64 = 10;
/// What a sensor can show. Anything else is a broken wire.
const VIBRATION: std::ops::RangeInclusive<f64> = 0.0..=100.0;
const TEMPERATURE: std::ops::RangeInclusive<f64> = -40.0..=150.0;

#[derive(Default, Serialize, Deserialize)]
struct Sensor {
    seen: u64,
    vibration: Usual,
    temperature: Usual,
    /// Readings that no sensor makes.
    broken: u64,
}

#[derive(Serialize, Deserialize)]
struct Features {
    sensor: String,
    at: u64,
    /// As `train.py` has them.
    features: [f64; 3],
}

/// At the edge. Drops what no sensor shows, and what comes before the usual is known.
#[skep::bee]
fn watch(swarm: &mut Swarm, message: Message) -> skep::Result {
    let reading: Reading = message.json()?;
    let mut sensor: Sensor = swarm.state().get_json("sensor")?.unwrap_or_default();
    if !VIBRATION.contains(&reading.vibration) || !TEMPERATURE.contains(&reading.temperature) {
        sensor.broken += 1;
        swarm.state().put_json("sensor", &sensor)?;
        return Ok(());
    }
    let shakes = sensor.vibration.above(reading.vibration, sensor.seen);
    let hot = sensor.temperature.above(reading.temperature, sensor.seen);
    sensor.seen += 1;
    swarm.state().put_json("sensor", &sensor)?;
    if sensor.seen > SETTLES {
        swarm.publish_json(&Features {
            sensor: reading.sensor,
            at: reading.at,
            features: [shakes, hot, shakes.max(0.0) * hot.max(0.0)],
        })?;
    }
    Ok(())
}

/// A logistic regression, made by `train.py`.
#[derive(Deserialize)]
struct Model {
    weights: [f64; 3],
    bias: f64,
}

#[derive(Serialize, Deserialize)]
struct Scored {
    sensor: String,
    at: u64,
    /// How likely the bearing is worn, in thousandths.
    score: u32,
}

/// At the edge: the model lies in the module.
#[skep::bee]
fn score(swarm: &mut Swarm, message: Message) -> skep::Result {
    let Features { sensor, at, features } = message.json()?;
    let model: Model = serde_json::from_str(include_str!("../model.json"))?;
    let sum: f64 = model
        .weights
        .iter()
        .zip(features)
        .map(|(weight, feature)| weight * feature)
        .sum();
    let score = 1.0 / (1.0 + (-(model.bias + sum)).exp());
    swarm.publish_json(&Scored {
        sensor,
        at,
        score: (score * 1_000.0).round() as u32,
    })?;
    Ok(())
}

#[derive(Default, Serialize, Deserialize)]
struct Total {
    readings: u64,
    /// Those above `ALARM`.
    alarms: u64,
    /// Thousandths.
    highest: u32,
    highest_at: u64,
}

/// From here on somebody looks, thousandths.
const ALARM: u32 = 900;

/// At the hub: of all mills, by sensor.
#[skep::bee]
fn totals(swarm: &mut Swarm, message: Message) -> skep::Result {
    let scored: Scored = message.json()?;
    let mut total: Total = swarm.state().get_json("total")?.unwrap_or_default();
    total.readings += 1;
    total.alarms += u64::from(scored.score >= ALARM);
    if scored.score > total.highest {
        (total.highest, total.highest_at) = (scored.score, scored.at);
    }
    swarm.state().put_json("total", &total)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::DevSwarm;

    fn watched(swarm: &mut DevSwarm, at: u64, vibration: f64, temperature: f64) -> Option<Scored> {
        let reading =
            serde_json::json!({ "sensor": "saw-1", "at": at, "vibration": vibration, "temperature": temperature });
        watch(swarm, Message::new(reading.to_string()).with_key("saw-1")).unwrap();
        let features = swarm.take_published().pop()?;
        let mut far = DevSwarm::new();
        score(&mut far, Message::new(features.text().to_owned())).unwrap();
        serde_json::from_str(far.take_published().remove(0).text()).ok()
    }

    #[test]
    fn what_shakes_and_is_hot_scores_high_and_what_only_shakes_does_not() {
        let mut swarm = DevSwarm::keyed("saw-1");
        for at in 0..60 {
            let scored = watched(&mut swarm, at, 2.0 + 0.2 * (at % 3) as f64, 40.0 + (at % 4) as f64);
            assert_eq!(scored.is_some(), at >= SETTLES, "{at}");
            assert!(scored.is_none_or(|scored| scored.score < ALARM), "{at}");
        }
        let load = watched(&mut swarm, 60, 2.8, 41.0).unwrap();
        assert!(load.score < ALARM, "{}", load.score);
        let worn = watched(&mut swarm, 61, 3.2, 46.0).unwrap();
        assert!(worn.score >= ALARM, "{}", worn.score);
    }

    #[test]
    fn a_broken_wire_is_counted_and_goes_no_further() {
        let mut swarm = DevSwarm::keyed("saw-1");
        for at in 0..=SETTLES {
            assert!(watched(&mut swarm, at, 2.0, -273.0).is_none());
        }
        let sensor: Sensor = swarm.state().get_json("sensor").unwrap().unwrap();
        assert_eq!((sensor.seen, sensor.broken), (0, SETTLES + 1));
    }

    #[test]
    fn totals_keep_the_highest_and_count_alarms() {
        let mut swarm = DevSwarm::keyed("saw-1");
        for (at, score) in [(1, 100), (2, 950), (3, 920), (4, 10)] {
            let scored = serde_json::json!({ "sensor": "saw-1", "at": at, "score": score });
            totals(&mut swarm, Message::new(scored.to_string()).with_key("saw-1")).unwrap();
        }
        let total: Total = swarm.state().get_json("total").unwrap().unwrap();
        assert_eq!(
            (total.readings, total.alarms, total.highest, total.highest_at),
            (4, 2, 950, 2)
        );
    }
}
