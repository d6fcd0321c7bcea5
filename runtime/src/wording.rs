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

/// `2026-11-21 05:27:08.123` (UTC).
#[must_use]
pub fn time(ms: u64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    // Days to a date: Howard Hinnant's civil_from_days, for days after 1970.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03}",
        in_day / 3_600_000,
        in_day / 60_000 % 60,
        in_day / 1_000 % 60,
        in_day % 1_000
    )
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
