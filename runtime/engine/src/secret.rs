//! Secrets on their way to a Bee, and out of all that it says.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use skep_model::limits::SECRET_REDACTED_BYTES_MIN;
use zeroize::Zeroizing;

/// A secret's value. It shows itself to nobody, and its memory is wiped when it goes.
#[derive(Clone)]
pub struct SecretValue(Arc<Zeroizing<Vec<u8>>>);

impl SecretValue {
    #[must_use]
    pub fn new(value: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(value)))
    }

    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where a stage's secrets come from. Asked at each call, so that a new value counts from the next one on, without another apply.
pub trait Secrets: fmt::Debug + Send + Sync + 'static {
    fn granted(&self) -> Arc<Granted>;
}

/// What one Bee may read.
#[derive(Default)]
pub struct Granted {
    /// `None`: it may, and there is none of that name.
    values: BTreeMap<String, Option<SecretValue>>,
    marks: Option<Marks>,
}

/// What is looked for in all that the Bee says: each line of a value by itself, because a Bee says lines.
struct Marks {
    lines: AhoCorasick,
    /// What stands in place of each.
    names: Vec<String>,
    longest: usize,
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Granted").field(&self.values).finish()
    }
}

impl Granted {
    #[must_use]
    pub fn new(values: BTreeMap<String, Option<SecretValue>>) -> Self {
        let mut lines = Vec::new();
        let mut names = Vec::new();
        for (name, value) in &values {
            let Some(value) = value else { continue };
            let text = Zeroizing::new(String::from_utf8_lossy(value.expose()).into_owned());
            for line in text.lines().map(str::trim) {
                if line.len() >= SECRET_REDACTED_BYTES_MIN {
                    lines.push(Zeroizing::new(line.to_owned()));
                    names.push(format!("[secret {name}]"));
                }
            }
        }
        let longest = lines.iter().map(|line| line.len()).max().unwrap_or(0);
        let made = AhoCorasick::builder()
            // One may be part of another.
            .match_kind(MatchKind::LeftmostLongest)
            // In proportion to the values, which are bounded; an automaton of another kind is larger.
            .kind(Some(AhoCorasickKind::NoncontiguousNFA))
            .build(lines.iter().map(|line| line.as_bytes()));
        let marks = match made {
            Ok(lines) if longest > 0 => Some(Marks { lines, names, longest }),
            _ => None,
        };
        Self { values, marks }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, Option<&SecretValue>)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_ref()))
    }

    pub(crate) fn get(&self, name: &str) -> Option<Option<&SecretValue>> {
        self.values.get(name).map(Option::as_ref)
    }

    /// The text without any of the values, each replaced by its name. In one pass, in which nothing that was put in is looked at again: a
    /// value may be part of a name, and text that grew at each value would have no bound.
    pub(crate) fn redact(&self, text: &mut String) {
        if let Some(marks) = &self.marks
            && marks.lines.is_match(text.as_bytes())
        {
            *text = marks.lines.replace_all(text, &marks.names);
        }
    }

    /// Bytes of the longest of what is looked for.
    pub(crate) fn longest(&self) -> usize {
        self.marks.as_ref().map_or(0, |marks| marks.longest)
    }

    /// Whether anything is looked for.
    pub(crate) fn redacts(&self) -> bool {
        self.marks.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_a_value_goes_and_the_longest_first() {
        let value = |text: &str| Some(SecretValue::new(text.as_bytes().to_vec()));
        let granted = Granted::new(BTreeMap::from([
            ("short".to_owned(), value("abc")),
            ("token".to_owned(), value("sk-12345")),
            ("longer".to_owned(), value("sk-12345-and-more")),
            ("pem".to_owned(), value("-----BEGIN-----\nMIIEabcdef\n-----END-----\n")),
            ("gone".to_owned(), None),
        ]));
        let mut text = "abc sk-12345-and-more, sk-12345sk-12345; MIIEabcdef".to_owned();
        granted.redact(&mut text);
        assert_eq!(text, "abc [secret longer], [secret token][secret token]; [secret pem]");
        assert!(granted.get("gone").is_some_and(|value| value.is_none()) && granted.get("other").is_none());
        assert_eq!(
            format!("{:?}", granted.get("token")),
            "Some(Some([secret]))",
            "it shows itself to nobody"
        );
    }

    #[test]
    fn values_that_are_in_names_let_no_text_grow_beyond_one_name_a_value() {
        let value = |text: &str| Some(SecretValue::new(text.as_bytes().to_vec()));
        let letters = ["aaaaaa", "bbbbbb", "cccccc", "dddddd", "eeeeee", "ffffff"];
        let named = |at: usize| [letters[(at + 1) % letters.len()]; 9].join("-");
        let granted = Granted::new((0..letters.len()).map(|at| (named(at), value(letters[at]))).collect());
        let mut text = "aaaaaa".repeat(5_000);
        granted.redact(&mut text);
        assert_eq!(text, format!("[secret {}]", named(0)).repeat(5_000));
    }
}
