//! A language model as small as one can be: it has seen ten sentences, and says word for word what may follow. Each word leaves as it is
//! made, as the tokens of a large model would.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skep::{Message, Swarm};

const CORPUS: &str = include_str!("corpus.txt");
const TOKENS_DEFAULT: usize = 32;

#[derive(Deserialize)]
struct Ask {
    prompt: String,
}

/// What is said once all is said.
#[derive(Serialize)]
struct Usage {
    tokens: usize,
}

/// Word to the words that follow it, as often as they do.
fn model() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut follows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in CORPUS.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        for pair in words.windows(2) {
            follows.entry(pair[0]).or_default().push(pair[1]);
        }
    }
    follows
}

/// The same prompt gives the same words: chance is a sum over it.
fn next_number(seed: &mut u64) -> usize {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*seed >> 33).unwrap_or(0)
}

#[skep::bee]
fn chat(swarm: &mut Swarm, message: Message) -> skep::Result {
    let Ask { prompt } = message.json()?;
    let most = match swarm.config("tokens")? {
        Some(most) => most.parse()?,
        None => TOKENS_DEFAULT,
    };
    let model = model();
    let known = prompt.split_whitespace().rev().find(|word| model.contains_key(word));
    let mut word = known.unwrap_or("The");
    let mut seed = prompt
        .bytes()
        .fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let mut tokens = 0;
    while tokens < most {
        let said = match (tokens, word) {
            (0, word) => word.to_owned(),
            (_, ".") => ".".to_owned(),
            (_, word) => format!(" {word}"),
        };
        // Leaves now. An error means that the caller hung up: the rest need not be said.
        swarm.reply_part(said)?;
        tokens += 1;
        let Some(after) = model.get(word) else { break };
        word = after[next_number(&mut seed) % after.len()];
    }
    swarm.respond(serde_json::to_string(&Usage { tokens })?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::DevSwarm;

    fn said(prompt: &str) -> (String, String) {
        let mut swarm = DevSwarm::new();
        chat(
            &mut swarm,
            Message::new(serde_json::json!({ "prompt": prompt }).to_string()),
        )
        .unwrap();
        let parts: Vec<String> = swarm
            .parts()
            .iter()
            .map(|p| String::from_utf8_lossy(p).into_owned())
            .collect();
        (parts.concat(), swarm.responded()[0].text().to_owned())
    }

    #[test]
    fn it_goes_on_from_the_last_word_that_it_knows() {
        let (text, usage) = said("Tell me of the honey please");
        assert!(text.starts_with("honey "), "{text}");
        assert!(usage.starts_with(r#"{"tokens":"#), "{usage}");
        assert_eq!(said("Tell me of the honey please").0, text, "the same again");
        assert!(said("?").0.starts_with("The "));
    }

    #[test]
    fn what_has_no_prompt_is_rejected() {
        let error = chat(&mut DevSwarm::new(), Message::new("{}")).unwrap_err();
        assert!(matches!(error.failure(), skep::Failure::Reject(_)), "{error}");
    }
}
