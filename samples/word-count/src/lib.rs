//! Counts words in a stream of lines, exactly once each, and answers how often a word was seen.
//!
//! ```text
//! lines ─► word-count ─► split ──word: n──┐
//!                                         ├─► count: one number a word, in state
//! a word ─► count-of ──► ask ──op: get────┘     └─► answer
//! ```

use std::collections::BTreeMap;

use skep::{Emit, Message, Swarm};

/// The name of the count in the state of each word.
const COUNT: &str = "count";

/// A line of text: each of its words once, with how often it stands there.
#[skep::bee]
fn split(swarm: &mut Swarm, message: Message) -> skep::Result {
    let line = message.text()?.to_lowercase();
    let mut counts = BTreeMap::<&str, u64>::new();
    for word in words(&line) {
        *counts.entry(word).or_default() += 1;
    }
    for (word, count) in counts {
        swarm.emit(Emit::new(count.to_string()).key(word));
    }
    Ok(())
}

/// A word, as a request: passed on to whoever holds its count.
#[skep::bee]
fn ask(swarm: &mut Swarm, message: Message) -> skep::Result {
    let text = message.text()?.to_lowercase();
    let mut words = words(&text);
    let (Some(word), None) = (words.next(), words.next()) else {
        return Err(skep::Error::reject("ask for one word, such as `bee`"));
    };
    swarm.emit(Emit::new("").key(word).header("op", "get"));
    Ok(())
}

/// Keyed by the word: adds to its count, or answers with it.
#[skep::bee]
fn count(swarm: &mut Swarm, message: Message) -> skep::Result {
    let count: u64 = swarm.state().get_json(COUNT)?.unwrap_or(0);
    if message.header("op") == Some("get") {
        swarm.respond(count.to_string());
    } else {
        let more: u64 = message.json()?;
        swarm.state().put_json(COUNT, &(count + more))?;
    }
    Ok(())
}

/// Runs of letters and digits, with apostrophes between them: `it's` is one word, `'tis` is `tis`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|word| word.trim_matches('\''))
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::{DevSwarm, Failure};

    #[test]
    fn a_line_becomes_its_words_each_once() {
        let mut swarm = DevSwarm::new();
        split(&mut swarm, Message::new("To be, or not to be: 'tis the lion's.")).unwrap();
        let found: Vec<_> = swarm
            .published()
            .iter()
            .map(|e| (e.message_key().unwrap(), e.text()))
            .collect();
        let expected = [
            ("be", "2"),
            ("lion's", "1"),
            ("not", "1"),
            ("or", "1"),
            ("the", "1"),
            ("tis", "1"),
            ("to", "2"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn counts_add_up_and_are_told() {
        let mut swarm = DevSwarm::new();
        for line in ["the bee", "The BEE and the hive", ""] {
            split(&mut swarm, Message::new(line)).unwrap();
        }
        ask(&mut swarm, Message::new(" The\n")).unwrap();
        ask(&mut swarm, Message::new("wasp")).unwrap();
        for emit in swarm.take_published() {
            swarm.deliver(count, emit.into()).unwrap();
        }
        let told: Vec<_> = swarm.responded().iter().map(skep::Payload::text).collect();
        assert_eq!(told, ["3", "0"]);
        assert_eq!(swarm.stored("bee", COUNT), Some(b"2".as_slice()));
    }

    #[test]
    fn the_book_has_the_expected_counts() {
        let mut swarm = DevSwarm::new();
        for line in include_str!("../book.txt").lines() {
            swarm.deliver(split, Message::new(line)).unwrap();
        }
        for emit in swarm.take_published() {
            swarm.deliver(count, emit.into()).unwrap();
        }
        let expected = include_str!("../expected.tsv")
            .lines()
            .map(|line| line.split_once('\t').unwrap());
        for (word, times) in expected.filter(|(word, _)| !word.starts_with('(')) {
            assert_eq!(swarm.stored(word, COUNT), Some(times.as_bytes()), "{word}");
        }
    }

    #[test]
    fn only_one_word_can_be_asked_for() {
        for text in ["", "  ", "two words", "'"] {
            let error = ask(&mut DevSwarm::new(), Message::new(text)).unwrap_err();
            assert!(matches!(error.failure(), Failure::Reject(_)), "{error}");
        }
    }
}
