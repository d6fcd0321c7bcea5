//! Says which digit the model saw and how sure it is. What it is not sure of goes to the output `unsure`.

use serde::{Deserialize, Serialize};
use skep::{Error, Message, Swarm};

/// What the model gives for one picture: a row a picture.
#[derive(Deserialize)]
struct Answer {
    probabilities: Vec<Vec<f64>>,
}

#[derive(Serialize)]
struct Guess {
    digit: usize,
    /// From 0 to 1, in hundredths.
    sure: f64,
}

const NAMES: [&str; 10] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
];
/// Below it two digits are nearly alike; `config: { sure: … }` says another.
const SURE: f64 = 0.5;

fn in_words(digit: usize, sure: f64) -> String {
    let name = NAMES[digit];
    match sure {
        0.99.. => format!("certainly {name}"),
        0.9.. => format!("very likely {name}"),
        0.7.. => format!("probably {name}"),
        _ => format!("perhaps {name}"),
    }
}

#[skep::bee]
fn say(swarm: &mut Swarm, message: Message) -> skep::Result {
    let answer: Answer = message.json()?;
    let [row] = &answer.probabilities[..] else {
        return Err(Error::reject("one picture was expected"));
    };
    if row.len() != NAMES.len() || row.iter().any(|share| !(0.0..=1.0).contains(share)) {
        return Err(Error::reject(
            "the model did not give ten probabilities: is it one of digits?",
        ));
    }
    let said = swarm.config("sure")?.map_or(Ok(SURE), |text| text.parse());
    let Some(least) = said.ok().filter(|least| (0.0..=1.0).contains(least)) else {
        return Err(Error::fail("config", "`sure` is a number from 0 to 1, as in \"0.5\""));
    };
    let mut digits: Vec<usize> = (0..row.len()).collect();
    digits.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    let guess = |digit: usize| Guess {
        digit,
        sure: (row[digit] * 100.0).round() / 100.0,
    };
    let (first, second) = (digits[0], digits[1]);
    if row[first] < least {
        let say = format!("{} or {}, who knows", NAMES[first], NAMES[second]);
        let unsure = serde_json::json!({ "unsure": [guess(first), guess(second)], "say": say });
        swarm.publish_to("unsure", unsure.to_string());
    } else {
        let Guess { digit, sure } = guess(first);
        swarm.respond(serde_json::json!({ "digit": digit, "sure": sure, "say": in_words(digit, row[first]) }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use skep::DevSwarm;

    use super::*;

    /// What the model gives when two digits share all.
    fn row(first: (usize, f64), second: usize) -> Message {
        let mut shares = [0.0; 10];
        shares[first.0] = first.1;
        shares[second] = 1.0 - first.1;
        Message::new(serde_json::json!({ "label": [first.0], "probabilities": [shares] }).to_string())
    }

    #[test]
    fn how_sure_it_is_is_said_in_words() {
        let mut swarm = DevSwarm::new();
        for sure in [0.998, 0.95, 0.75, 0.51] {
            say(&mut swarm, row((7, sure), 1)).unwrap();
        }
        let said: Vec<&str> = swarm.responded().iter().map(|answer| answer.text()).collect();
        assert_eq!(
            said,
            [
                r#"{"digit":7,"say":"certainly seven","sure":1.0}"#,
                r#"{"digit":7,"say":"very likely seven","sure":0.95}"#,
                r#"{"digit":7,"say":"probably seven","sure":0.75}"#,
                r#"{"digit":7,"say":"perhaps seven","sure":0.51}"#,
            ]
        );
        assert!(swarm.published().is_empty());
    }

    #[test]
    fn what_is_unsure_goes_elsewhere_with_both_guesses() {
        let mut swarm = DevSwarm::new().with_config("sure", "0.7");
        say(&mut swarm, row((3, 0.6), 8)).unwrap();
        let sent = swarm.take_published();
        assert_eq!(sent[0].output(), Some("unsure"));
        assert_eq!(
            sent[0].text(),
            r#"{"say":"three or eight, who knows","unsure":[{"digit":3,"sure":0.6},{"digit":8,"sure":0.4}]}"#
        );
        assert!(swarm.responded().is_empty());
    }

    #[test]
    fn what_is_no_answer_of_the_model_is_refused() {
        let two = r#"{"probabilities":[[0.1],[0.9]]}"#;
        let three = r#"{"probabilities":[[0.2,0.3,0.5]]}"#;
        let huge = r#"{"probabilities":[[2,0,0,0,0,0,0,0,0,0]]}"#;
        for wrong in ["", "{}", r#"{"probabilities":[]}"#, two, three, huge] {
            let error = say(&mut DevSwarm::new(), Message::new(wrong)).unwrap_err();
            assert!(matches!(error.failure(), skep::Failure::Reject(_)), "{wrong}: {error}");
        }
        for wrong in ["half", "NaN", "50"] {
            let mut swarm = DevSwarm::new().with_config("sure", wrong);
            let error = say(&mut swarm, row((3, 0.6), 8)).unwrap_err();
            assert!(error.to_string().contains("a number from 0 to 1"), "{wrong}: {error}");
        }
    }
}
