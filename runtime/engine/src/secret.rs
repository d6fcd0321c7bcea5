//! Secrets on their way to a Bee, and out of all that it says.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

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
#[derive(Debug, Default)]
pub struct Granted {
    /// `None`: it may, and there is none of that name.
    values: BTreeMap<String, Option<SecretValue>>,
    /// What is looked for in all that the Bee says, the longest first: one may be part of another. Each line of a value by itself,
    /// because a Bee says lines.
    marks: Vec<(String, String)>,
}

impl Granted {
    #[must_use]
    pub fn new(values: BTreeMap<String, Option<SecretValue>>) -> Self {
        let mut marks = Vec::new();
        for (name, value) in &values {
            let Some(value) = value else { continue };
            let text = String::from_utf8_lossy(value.expose());
            for line in text.lines().map(str::trim) {
                if line.len() >= SECRET_REDACTED_BYTES_MIN {
                    marks.push((line.to_owned(), format!("[secret {name}]")));
                }
            }
        }
        marks.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        marks.dedup_by(|(a, _), (b, _)| a == b);
        Self { values, marks }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Option<&SecretValue>> {
        self.values.get(name).map(Option::as_ref)
    }

    /// The text without any of the values, each replaced by its name.
    pub(crate) fn redact(&self, text: &mut String) {
        for (value, name) in &self.marks {
            if text.contains(value.as_str()) {
                *text = text.replace(value.as_str(), name);
            }
        }
    }

    /// Bytes of the longest of what is looked for.
    pub(crate) fn longest(&self) -> usize {
        self.marks.first().map_or(0, |(value, _)| value.len())
    }

    /// Whether anything is looked for.
    pub(crate) fn redacts(&self) -> bool {
        !self.marks.is_empty()
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        use zeroize::Zeroize as _;
        for (value, _) in &mut self.marks {
            value.zeroize();
        }
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
}
