//! What is wrong with a manifest: where, what, and what to do about it.

use std::fmt;

use crate::limits;

/// One mistake. `line` and `column` count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    pub column: usize,
    /// Like `bees[1].retry.attempts`; empty for the manifest as a whole.
    pub path: String,
    pub message: String,
    pub hint: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Every mistake of one manifest, in order of place; at most [`limits::MISTAKES_MAX`], the last of which then says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

/// The file name that stands before each place where the real one is not known.
const FILE: &str = "swarm.yaml";

impl Mistakes {
    pub(super) fn sorted(mut list: Vec<Mistake>) -> Self {
        list.sort_by_key(|m| (m.line, m.column));
        list.dedup();
        if list.len() > limits::MISTAKES_MAX {
            let rest = list.len() - (limits::MISTAKES_MAX - 1);
            list.truncate(limits::MISTAKES_MAX);
            if let Some(last) = list.last_mut() {
                last.path = String::new();
                last.message = format!("here and below are {rest} more mistakes");
                last.hint = Some("mend those above first".to_owned());
            }
        }
        Self(list)
    }

    /// The same lines, with the name of the file that was read.
    #[must_use]
    pub fn in_file<'a>(&'a self, file: &'a str) -> impl fmt::Display + use<'a> {
        InFile { mistakes: self, file }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.in_file(FILE).fmt(f)
    }
}

impl std::error::Error for Mistakes {}

struct InFile<'a> {
    mistakes: &'a Mistakes,
    file: &'a str,
}

impl fmt::Display for InFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.mistakes.0.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{}:{mistake}", self.file)?;
        }
        Ok(())
    }
}

/// User's text as a message may show it: short, on one line, without control characters that a terminal would obey.
pub(super) fn quoted(text: &str) -> String {
    format!("`{}`", shown(text))
}

pub(super) fn shown(text: &str) -> String {
    const SHOWN_CHARS: usize = 60;
    let mut out: String = text
        .chars()
        .take(SHOWN_CHARS)
        .flat_map(|c| {
            let plain = !c.is_control() && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
            let escaped = (!plain).then(|| c.escape_default());
            plain.then_some(c).into_iter().chain(escaped.into_iter().flatten())
        })
        .collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        out.push('…');
    }
    out
}

/// The candidate that `text` was most likely meant to be.
pub(super) fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer texts than any name cost time and match nothing.
    if text.len() > 128 {
        return None;
    }
    candidates
        .map(|c| (distance(text, c), !c.starts_with(text), c))
        .filter(|(d, _, c)| *d > 0 && *d <= (c.chars().count().max(text.chars().count()) / 3).max(1))
        // Of several as near, one that was not typed to its end, then the first by name: the same manifest is told the same each time.
        .min()
        .map(|(.., c)| c)
}

pub(super) fn did_you_mean<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    nearest(text, candidates).map(|c| format!("did you mean `{c}`?"))
}

/// Edits between two texts: insert, remove, replace a character, or swap two neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["module", "name", "input"];
        assert_eq!(nearest("modul", known.into_iter()), Some("module"));
        assert_eq!(nearest("nmae", known.into_iter()), Some("name"));
        assert_eq!(nearest("imput", known.into_iter()), Some("input"));
        assert_eq!(nearest("zebra", known.into_iter()), None);
        assert_eq!(nearest("", known.into_iter()), None);
    }

    #[test]
    fn what_is_shown_is_short_and_harmless() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(shown(&"x".repeat(1_000)).chars().count(), 61);
    }
}
