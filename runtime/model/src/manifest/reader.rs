//! Reading typed values out of a tree of nodes. A wrong value becomes a mistake and `None`, and reading goes on.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::fields::Shape;
use super::mistake::{Mistake, did_you_mean, nearest, quoted, shown};
use super::node::{Data, Node, Place};
use super::units;
use crate::limits;
use crate::name::BadName;

/// Where mistakes are gathered.
#[derive(Default)]
pub(super) struct Report {
    mistakes: RefCell<Vec<Mistake>>,
}

impl Report {
    pub fn add(&self, place: Place, path: &str, message: impl Into<String>, hint: Option<String>) {
        let mut mistakes = self.mistakes.borrow_mut();
        // Enough for the count in the last line to be honest about any manifest that a person wrote.
        if mistakes.len() < 100 * limits::MISTAKES_MAX {
            mistakes.push(Mistake {
                line: place.line,
                column: place.column,
                path: path.to_owned(),
                message: message.into(),
                hint,
            });
        }
    }

    pub fn into_list(self) -> Vec<Mistake> {
        self.mistakes.into_inner()
    }
}

/// A node and the way to it.
#[derive(Clone)]
pub(super) struct Value<'a> {
    pub report: &'a Report,
    pub node: &'a Node,
    pub path: String,
}

impl<'a> Value<'a> {
    pub fn mistake(&self, message: impl Into<String>, hint: Option<&str>) {
        self.report
            .add(self.node.place, &self.path, message, hint.map(str::to_owned));
    }

    fn expected(&self, what: &str, hint: Option<String>) {
        let message = format!("expected {what}, found {}", self.node.kind());
        self.report.add(self.node.place, &self.path, message, hint);
    }

    pub fn text(&self) -> Option<&'a str> {
        if let Data::Text(text) = &self.node.data {
            return Some(text);
        }
        let hint = self
            .node
            .written()
            .map(|w| format!("put it in quotes: \"{}\"", shown(&w)));
        self.expected("text", hint);
        None
    }

    pub fn bool(&self) -> Option<bool> {
        if let Data::Bool(value) = self.node.data {
            return Some(value);
        }
        self.expected("true or false", Some("write it without quotes".to_owned()));
        None
    }

    pub fn name<T: FromStr<Err = BadName>>(&self) -> Option<T> {
        let text = self.text()?;
        match text.parse() {
            Ok(name) => Some(name),
            Err(BadName::NotALabel(_)) => {
                let hint = like_a_label(text).map(|l| format!("write `{l}`"));
                let message = format!(
                    "{} is not a name: use a-z, 0-9 and `-`, first and last a letter or digit",
                    quoted(text)
                );
                self.report.add(self.node.place, &self.path, message, hint);
                None
            }
            Err(e) => {
                self.mistake(e.to_string(), None);
                None
            }
        }
    }

    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let listed = choices
            .iter()
            .map(|(name, _)| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(" or ");
        let Data::Text(text) = &self.node.data else {
            self.expected(&listed, None);
            return None;
        };
        let found = choices.iter().find(|(name, _)| name == text).map(|(_, value)| *value);
        if found.is_none() {
            self.expected(&listed, did_you_mean(text, choices.iter().map(|(name, _)| *name)));
        }
        found
    }

    pub fn int<T: TryFrom<i128>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        let Data::Int(int, _) = self.node.data else {
            self.expected("a whole number", Some(format!("{} to {}", range.start(), range.end())));
            return None;
        };
        self.in_range(int, &range, |n| n.to_string())?;
        T::try_from(int).ok()
    }

    /// Milliseconds.
    pub fn duration(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let ms = match &self.node.data {
            Data::Int(int, _) => *int,
            Data::Text(text) if let Some(ms) = units::duration_ms(text) => i128::from(ms),
            _ => {
                let hint = "write `500ms`, `30s`, `2m`, `1h`, `30d` or milliseconds as a whole number";
                self.expected("a duration", Some(hint.to_owned()));
                return None;
            }
        };
        self.in_range(ms, &range, units::show_duration)
    }

    pub fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let bytes = match &self.node.data {
            Data::Int(int, _) => *int,
            Data::Text(text) if let Some(bytes) = units::size_bytes(text) => i128::from(bytes),
            _ => {
                let hint = "write `64MiB`, `512KiB`, `1GiB` or bytes as a whole number";
                self.expected("a size", Some(hint.to_owned()));
                return None;
            }
        };
        self.in_range(bytes, &range, units::show_size)
    }

    fn in_range<S: Display>(&self, value: i128, range: &RangeInclusive<u64>, show: impl Fn(u64) -> S) -> Option<u64> {
        match u64::try_from(value) {
            Ok(value) if range.contains(&value) => Some(value),
            _ => {
                let shown_value = self.node.written().unwrap_or_default();
                let message = format!(
                    "{} is out of bounds: {} to {}",
                    quoted(&shown_value),
                    show(*range.start()),
                    show(*range.end())
                );
                self.mistake(message, None);
                None
            }
        }
    }

    pub fn list(&self) -> Option<Vec<Value<'a>>> {
        let Data::List(items) = &self.node.data else {
            self.expected(
                "a list",
                Some("write `[a, b]`, or lines that begin with `- `".to_owned()),
            );
            return None;
        };
        Some(self.items(items))
    }

    pub fn items(&self, items: &'a [Node]) -> Vec<Value<'a>> {
        let item = |(i, node)| Value {
            report: self.report,
            node,
            path: format!("{}[{i}]", self.path),
        };
        items.iter().enumerate().map(item).collect()
    }

    fn child(&self, key: &str, node: &'a Node) -> Value<'a> {
        let path = if self.path.is_empty() {
            shown(key)
        } else {
            format!("{}.{}", self.path, shown(key))
        };
        Value {
            report: self.report,
            node,
            path,
        }
    }

    /// The pairs of a mapping: keys are text, each is given once, `<<` merges what an alias stands for.
    pub fn pairs(&self) -> Option<Vec<(&'a str, Place, Value<'a>)>> {
        let Data::Map(pairs) = &self.node.data else {
            self.expected(
                "a mapping",
                Some("write lines like `name: value`, or `{ name: value }`".to_owned()),
            );
            return None;
        };
        let mut out: Vec<(&'a str, Place, Value<'a>)> = Vec::new();
        let mut merged: Vec<Value<'a>> = Vec::new();
        for (key, node) in pairs {
            let Data::Text(name) = &key.data else {
                let message = format!("a field's name must be text, found {}", key.kind());
                let hint = key.written().map(|w| format!("put it in quotes: \"{}\"", shown(&w)));
                self.report.add(key.place, &self.path, message, hint);
                continue;
            };
            let value = self.child(name, node);
            if name == "<<" {
                match &node.data {
                    Data::List(items) => merged.extend(value.items(items)),
                    _ => merged.push(value),
                }
            } else if let Some((_, first, _)) = out.iter().find(|(n, ..)| n == name) {
                let message = format!("given twice, first at {}:{}", first.line, first.column);
                self.report
                    .add(key.place, &value.path, message, Some("keep one of them".to_owned()));
            } else {
                out.push((name, key.place, value));
            }
        }
        for map in merged {
            for (name, place, value) in map.pairs().unwrap_or_default() {
                if !out.iter().any(|(n, ..)| *n == name) {
                    out.push((
                        name,
                        place,
                        Value {
                            path: self.child(name, value.node).path,
                            ..value
                        },
                    ));
                }
            }
        }
        Some(out)
    }

    /// The fields of a mapping of a known shape.
    pub fn fields(&self, shape: &'static Shape) -> Option<Fields<'a>> {
        let (mut found, mut meant) = (Vec::new(), Vec::new());
        for (name, place, value) in self.pairs()? {
            if shape.fields.contains(&name) {
                found.push((name, place, value));
                continue;
            }
            let hint = match nearest(name, shape.fields.iter().copied()) {
                Some(near) => {
                    meant.push(near);
                    format!("did you mean `{near}`?")
                }
                None => format!("{} has: {}", shape.what, shape.fields.join(", ")),
            };
            self.report.add(place, &value.path, "unknown field", Some(hint));
        }
        Some(Fields {
            of: self.clone(),
            shape,
            found,
            meant,
        })
    }
}

/// The known fields that a mapping holds.
pub(super) struct Fields<'a> {
    pub of: Value<'a>,
    shape: &'static Shape,
    found: Vec<(&'a str, Place, Value<'a>)>,
    /// Fields that an unknown one was probably meant to be.
    meant: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        debug_assert!(
            self.shape.fields.contains(&name),
            "`{name}` is not in the table of {}",
            self.shape.what
        );
        self.found.iter().find(|(n, ..)| *n == name).map(|(.., value)| value)
    }

    /// Where the field's name stands.
    pub fn place(&self, name: &str) -> Place {
        self.found
            .iter()
            .find(|(n, ..)| *n == name)
            .map_or(self.of.node.place, |(_, place, _)| *place)
    }

    pub fn required(&self, name: &str, hint: &str) -> Option<&Value<'a>> {
        self.required_or(name, &format!("`{name}` is missing"), hint)
    }

    /// A field that must be there, with what to say when it is not. A misspelt one is reported already, once is enough.
    pub fn required_or(&self, name: &str, message: &str, hint: &str) -> Option<&Value<'a>> {
        let value = self.get(name);
        if value.is_none() && !self.meant.contains(&name) {
            self.of.mistake(message, Some(hint));
        }
        value
    }

    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.found.iter().map(|(name, ..)| *name)
    }
}

/// The label that a text would be with its letters made small and its separators made dashes.
fn like_a_label(text: &str) -> Option<String> {
    let label: String = text
        .chars()
        .take(crate::name::NAME_BYTES_MAX + 1)
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let label = label.trim_matches('-');
    let fits = label.parse::<crate::name::StageName>().is_ok() && text.is_ascii();
    fits.then(|| label.to_owned())
}
