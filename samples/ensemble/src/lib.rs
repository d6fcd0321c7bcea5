//! An ensemble: three Bees judge a text, each in its own way, and `vote` weighs what they say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skep::{Error, Joined, Message, Swarm};

#[derive(Deserialize)]
struct Text {
    text: String,
}

/// How sure a model is that the text is spam, from 0 to 1.
#[derive(Serialize, Deserialize)]
struct Judgement {
    spam: f64,
}

const LURES: [&str; 6] = ["free", "winner", "prize", "urgent", "credit", "click"];

/// By words that promise something.
#[skep::bee]
fn words(swarm: &mut Swarm, message: Message) -> skep::Result {
    let Text { text } = message.json()?;
    if text.trim().is_empty() {
        return Err(Error::reject("there is no word in the text"));
    }
    let text = text.to_lowercase();
    let found = LURES.iter().filter(|lure| text.contains(*lure)).count();
    swarm.publish_json(&Judgement {
        spam: (found as f64 / 3.0).min(1.0),
    })?;
    Ok(())
}

/// By how loud it is: capitals and exclamation marks.
#[skep::bee]
fn shape(swarm: &mut Swarm, message: Message) -> skep::Result {
    let Text { text } = message.json()?;
    let loud = text.chars().filter(|c| c.is_uppercase() || *c == '!').count();
    let all = text.chars().filter(|c| !c.is_whitespace()).count().max(1);
    swarm.publish_json(&Judgement {
        spam: (2.0 * loud as f64 / all as f64).min(1.0),
    })?;
    Ok(())
}

/// By where it wants you to go.
#[skep::bee]
fn links(swarm: &mut Swarm, message: Message) -> skep::Result {
    let Text { text } = message.json()?;
    let links = text.matches("http://").count() + text.matches("https://").count();
    swarm.publish_json(&Judgement {
        spam: (links as f64 / 2.0).min(1.0),
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Answer<'a> {
    verdict: &'a str,
    spam: f64,
    by: BTreeMap<String, f64>,
}

/// The weighted mean of those that are there; the weights are in the manifest.
#[skep::bee]
fn vote(swarm: &mut Swarm, parts: Joined) -> skep::Result {
    let (mut sum, mut weights, mut by) = (0.0, 0.0, BTreeMap::new());
    for (model, message) in parts {
        let Judgement { spam } = message.json()?;
        let weight: f64 = swarm.config(&model)?.and_then(|w| w.parse().ok()).unwrap_or(1.0);
        sum += weight * spam;
        weights += weight;
        by.insert(model, round(spam));
    }
    let spam = sum / weights;
    let verdict = if spam >= 0.5 { "spam" } else { "fine" };
    swarm.respond_json(&Answer {
        verdict,
        spam: round(spam),
        by,
    })?;
    Ok(())
}

fn round(share: f64) -> f64 {
    (share * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use skep::DevSwarm;

    use super::*;

    fn said(spam: f64) -> Message {
        Message::from_json(&Judgement { spam }).unwrap()
    }

    #[test]
    fn the_weights_decide() {
        let mut swarm = DevSwarm::new().with_config("words", "3");
        let parts = Joined::new([("words", said(1.0)), ("shape", said(0.0)), ("links", said(0.0))]);
        vote(&mut swarm, parts).unwrap();
        assert_eq!(
            swarm.responded()[0].text(),
            r#"{"verdict":"spam","spam":0.6,"by":{"links":0.0,"shape":0.0,"words":1.0}}"#
        );
    }

    #[test]
    fn it_answers_for_those_that_came() {
        let mut swarm = DevSwarm::new();
        vote(&mut swarm, Joined::new([("shape", said(0.25))])).unwrap();
        assert_eq!(
            swarm.responded()[0].text(),
            r#"{"verdict":"fine","spam":0.25,"by":{"shape":0.25}}"#
        );
    }
}
