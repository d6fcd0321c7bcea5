//! How things are said, by node and command line alike: counts, and what was probably meant.

/// `1 message`, `2 messages`.
#[must_use]
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The one of `known` that `typed` is most like, if it is like one at all.
#[must_use]
pub fn meant<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters wrong is a slip; more is another word.
    let most = (typed.chars().count() / 3).min(3);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= most || !typed.is_empty() && name.starts_with(typed))
        .min()
        .map(|(_, name)| name)
}

/// Names listed in one message.
const SHOWN_MAX: usize = 20;

/// What is there, after "no such thing": the likely one first, or all, or that there is none.
#[must_use]
pub fn instead(typed: &str, known: &[&str], none: &str) -> String {
    if let Some(name) = meant(typed, known.iter().copied()) {
        return format!("did you mean `{name}`?");
    }
    match known {
        [] => none.to_owned(),
        few if few.len() <= SHOWN_MAX => format!("there are: {}", few.join(", ")),
        many => format!(
            "there are: {}, and {} more",
            many[..SHOWN_MAX].join(", "),
            many.len() - SHOWN_MAX
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        assert_eq!(
            [0, 1, 2].map(|n| count(n, "dead letter")),
            ["0 dead letters", "1 dead letter", "2 dead letters"]
        );
    }

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["hello-world", "word-count", "a"];
        for (typed, expected) in [
            ("helo-world", Some("hello-world")),
            ("hello-wrold", Some("hello-world")),
            ("hello", Some("hello-world")),
            ("word_count", Some("word-count")),
            ("something-else", None),
            ("zz", None),
            ("", None),
        ] {
            assert_eq!(meant(typed, known), expected, "{typed}");
        }
        assert_eq!(instead("helo-world", &known, "none"), "did you mean `hello-world`?");
        assert_eq!(
            instead("x1y2", &known[..2], "none"),
            "there are: hello-world, word-count"
        );
        assert_eq!(instead("x", &[], "there is none yet"), "there is none yet");
    }
}
