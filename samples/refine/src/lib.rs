//! A loop: `improve` makes a guess at a square root better, `judge` says whether it is good enough, or sends it round again.

use serde::{Deserialize, Serialize};
use skep::{Emit, Error, Message, Swarm};

#[derive(Serialize, Deserialize)]
struct Guess {
    of: f64,
    /// How far the guess's square may be off, at most.
    within: f64,
    #[serde(default)]
    guess: Option<f64>,
    /// The node counts as well, and ends what goes round for ever; this is for who asked.
    #[serde(default)]
    rounds: u32,
}

#[derive(Serialize)]
struct Answer {
    root: f64,
    rounds: u32,
}

/// One of Newton's steps.
#[skep::bee]
fn improve(swarm: &mut Swarm, message: Message) -> skep::Result {
    let question: Guess = message.json()?;
    if question.of <= 0.0 {
        return Err(Error::reject("a root of something above 0, please"));
    }
    let last = question.guess.unwrap_or(question.of);
    swarm.publish_json(&Guess {
        guess: Some((last + question.of / last) / 2.0),
        rounds: question.rounds + 1,
        ..question
    })?;
    Ok(())
}

#[skep::bee]
fn judge(swarm: &mut Swarm, message: Message) -> skep::Result {
    let Guess {
        of,
        within,
        guess,
        rounds,
    } = message.json()?;
    let root = guess.ok_or_else(|| Error::reject("nobody guessed"))?;
    if (root * root - of).abs() < within {
        swarm.respond_json(&Answer { root, rounds })?;
    } else {
        swarm.emit(Emit::new(message.into_payload()).to("again"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use skep::DevSwarm;

    use super::*;

    fn judged(text: &str) -> DevSwarm {
        let mut swarm = DevSwarm::new();
        judge(&mut swarm, Message::new(text)).unwrap();
        swarm
    }

    #[test]
    fn a_good_guess_is_the_answer_and_a_poor_one_goes_round_again() {
        let good = judged(r#"{"of": 9, "within": 0.1, "guess": 3.001, "rounds": 4}"#);
        assert_eq!(good.responded()[0].text(), r#"{"root":3.001,"rounds":4}"#);
        let poor = judged(r#"{"of": 9, "within": 0.1, "guess": 4, "rounds": 1}"#);
        assert!(poor.responded().is_empty());
        assert_eq!(poor.published()[0].output(), Some("again"));
    }

    #[test]
    fn each_round_is_nearer() {
        let mut swarm = DevSwarm::new();
        improve(&mut swarm, Message::new(r#"{"of": 9, "within": 0.1}"#)).unwrap();
        let next: Guess = serde_json::from_slice(swarm.published()[0].payload()).unwrap();
        assert_eq!((next.guess, next.rounds), (Some(5.0), 1));
    }
}
