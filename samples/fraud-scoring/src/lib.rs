//! Scores card payments by what the card did before. `score` keeps a profile of each card; the manifest's conditions send what it
//! publishes to one of three verdicts.

use serde::{Deserialize, Serialize};
use skep::{Message, Swarm};

#[derive(Deserialize)]
struct Payment {
    card: String,
    amount: f64,
    country: String,
    /// Seconds since the Unix epoch, as the terminal says.
    at: u64,
}

/// What is known of a card.
#[derive(Default, Serialize, Deserialize)]
struct Profile {
    payments: u64,
    /// Moving average of the amounts.
    usual: f64,
    country: String,
    at: u64,
}

#[derive(Serialize, Deserialize)]
struct Scored {
    card: String,
    amount: f64,
    /// From 0, as usual, to 1.
    score: f64,
    why: Vec<String>,
}

/// Of the moving average: the last ten payments or so count.
const MEMORY: f64 = 0.1;
/// Nobody flies to another country in less, seconds.
const TRAVEL_S: u64 = 3_600;

#[skep::bee]
fn score(swarm: &mut Swarm, message: Message) -> skep::Result {
    let payment: Payment = message.json()?;
    let mut profile: Profile = swarm.state().get_json("profile")?.unwrap_or_default();
    let (mut score, mut why) = (0.0, Vec::new());
    if profile.payments > 0 {
        if payment.amount > 5.0 * profile.usual {
            score += 0.5;
            why.push("five times the usual amount".to_owned());
        }
        if payment.country != profile.country {
            let soon = payment.at.saturating_sub(profile.at) < TRAVEL_S;
            score += if soon { 0.5 } else { 0.2 };
            why.push(format!("{} after {}", payment.country, profile.country));
        }
    } else if payment.amount > 1_000.0 {
        score += 0.5;
        why.push("a large first payment".to_owned());
    }
    profile.usual = if profile.payments == 0 {
        payment.amount
    } else {
        profile.usual + MEMORY * (payment.amount - profile.usual)
    };
    profile.payments += 1;
    profile.country = payment.country;
    profile.at = payment.at;
    swarm.state().put_json("profile", &profile)?;
    swarm.publish_json(&Scored {
        card: payment.card,
        amount: payment.amount,
        score,
        why,
    })?;
    Ok(())
}

/// Three stages run it, each with a word of its own in its `config`.
#[skep::bee]
fn verdict(swarm: &mut Swarm, message: Message) -> skep::Result {
    let word = swarm.config("verdict")?.unwrap_or_else(|| "approve".to_owned());
    // A payment that was not scored has no reasons.
    let why: Vec<String> = message.json::<Scored>().map(|scored| scored.why).unwrap_or_default();
    swarm.respond(serde_json::json!({ "verdict": word, "why": why }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::DevSwarm;

    fn pay(swarm: &mut DevSwarm, amount: f64, country: &str, at: u64) -> Scored {
        let payment = serde_json::json!({ "card": "c", "amount": amount, "country": country, "at": at });
        score(swarm, Message::new(payment.to_string()).with_key("c")).unwrap();
        serde_json::from_str(swarm.take_published().remove(0).text()).unwrap()
    }

    #[test]
    fn the_usual_scores_nothing_and_the_unusual_much() {
        let mut swarm = DevSwarm::keyed("c");
        assert_eq!(pay(&mut swarm, 20.0, "FR", 0).score, 0.0);
        assert_eq!(pay(&mut swarm, 25.0, "FR", 60).score, 0.0);
        assert_eq!(pay(&mut swarm, 500.0, "FR", 120).score, 0.5);
        let far = pay(&mut swarm, 900.0, "BR", 180);
        assert_eq!((far.score, far.why.len()), (1.0, 2));
        assert_eq!(pay(&mut swarm, 20.0, "FR", 180 + TRAVEL_S).score, 0.2);
    }

    #[test]
    fn a_verdict_says_its_word() {
        let mut swarm = DevSwarm::new().with_config("verdict", "block");
        verdict(&mut swarm, Message::new("not scored")).unwrap();
        assert_eq!(swarm.responded()[0].text(), r#"{"verdict":"block","why":[]}"#);
    }
}
