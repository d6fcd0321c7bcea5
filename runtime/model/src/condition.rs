//! Conditions on messages: which input a message takes, whether it passes a Bee by, whether it leaves.
//!
//! Plain data from the manifest, evaluated by the host; a Bee is not asked. A condition cannot fail: what a message does not have (a
//! header, a field of a payload that may not even be JSON) does not `exist`, and every other test of it is false.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// What must be true of a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// All the tests hold for one field.
    Field {
        field: Field,
        tests: Vec<Test>,
    },
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Field {
    /// The first header of this name, which is compared without regard to case. Its value is text; tests against a number read it as one.
    Header(String),
    /// A JSON pointer (RFC 6901) into the payload; empty: the whole of it.
    Json(String),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    Exists(bool),
    Is(Scalar),
    In(Vec<Scalar>),
    StartsWith(String),
    Above(Decimal),
    AtLeast(Decimal),
    Below(Decimal),
    AtMost(Decimal),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    Nothing,
    Bool(bool),
    Number(Decimal),
    Text(String),
}

/// A JSON number as it was written, so that conditions compare and serialize without rounding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub Number);

impl Decimal {
    /// By value. Whole numbers compare exactly; else both are taken as the nearest doubles, as JSON's other readers do.
    #[must_use]
    pub fn compare(&self, other: &Number) -> Option<Ordering> {
        match (whole(&self.0), whole(other)) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => self.0.as_f64()?.partial_cmp(&other.as_f64()?),
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Only so that inputs can be sorted: by text.
impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.to_string().cmp(&other.0.to_string())
    }
}

fn whole(number: &Number) -> Option<i128> {
    number
        .as_i64()
        .map(i128::from)
        .or_else(|| number.as_u64().map(i128::from))
}

/// A message as conditions see it. The payload is read as JSON at the first look into it, and once.
pub struct Facts<'a> {
    headers: &'a [(String, String)],
    payload: &'a Bytes,
    json: OnceCell<Option<Value>>,
}

impl<'a> Facts<'a> {
    #[must_use]
    pub fn new(headers: &'a [(String, String)], payload: &'a Bytes) -> Self {
        Self {
            headers,
            payload,
            json: OnceCell::new(),
        }
    }

    fn json(&self) -> Option<&Value> {
        self.json
            .get_or_init(|| serde_json::from_slice(self.payload).ok())
            .as_ref()
    }
}

/// What stands in a field.
#[derive(Clone, Copy)]
enum Found<'a> {
    Text(&'a str),
    Json(&'a Value),
}

impl Condition {
    #[must_use]
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|c| c.holds(facts)),
            Self::Any(any) => any.iter().any(|c| c.holds(facts)),
            Self::Not(not) => !not.holds(facts),
            Self::Field { field, tests } => {
                let found = match field {
                    Field::Header(name) => facts
                        .headers
                        .iter()
                        .find(|(n, _)| n.eq_ignore_ascii_case(name))
                        .map(|(_, value)| Found::Text(value)),
                    Field::Json(pointer) => facts.json().and_then(|json| json.pointer(pointer)).map(Found::Json),
                };
                tests.iter().all(|test| test.holds(found))
            }
        }
    }
}

impl Test {
    fn holds(&self, found: Option<Found<'_>>) -> bool {
        if let Self::Exists(wanted) = self {
            return found.is_some() == *wanted;
        }
        let Some(found) = found else { return false };
        let order = |limit: &Decimal| found.number().and_then(|n| limit.compare(&n)).map(Ordering::reverse);
        match self {
            Self::Exists(_) => true,
            Self::Is(scalar) => scalar.is(found),
            Self::In(scalars) => scalars.iter().any(|scalar| scalar.is(found)),
            Self::StartsWith(prefix) => found.text().is_some_and(|text| text.starts_with(prefix)),
            Self::Above(limit) => order(limit) == Some(Ordering::Greater),
            Self::AtLeast(limit) => matches!(order(limit), Some(Ordering::Greater | Ordering::Equal)),
            Self::Below(limit) => order(limit) == Some(Ordering::Less),
            Self::AtMost(limit) => matches!(order(limit), Some(Ordering::Less | Ordering::Equal)),
        }
    }
}

impl Scalar {
    fn is(&self, found: Found<'_>) -> bool {
        match (self, found) {
            (Self::Text(text), _) => found.text() == Some(text),
            (Self::Number(number), _) => found.number().and_then(|n| number.compare(&n)) == Some(Ordering::Equal),
            (Self::Bool(bool), Found::Json(json)) => json.as_bool() == Some(*bool),
            (Self::Bool(bool), Found::Text(text)) => text == bool.to_string(),
            (Self::Nothing, Found::Json(json)) => json.is_null(),
            (Self::Nothing, Found::Text(text)) => text.is_empty(),
        }
    }
}

impl<'a> Found<'a> {
    fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Json(json) => json.as_str(),
        }
    }

    fn number(self) -> Option<Number> {
        match self {
            // Text in JSON is no number; a header has nothing but text.
            Self::Text(text) => text.trim().parse().ok(),
            Self::Json(Value::Number(number)) => Some(number.clone()),
            Self::Json(_) => None,
        }
    }
}

/// Which messages of a source an input takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Take {
    #[default]
    All,
    /// Those for which it holds, whatever others take.
    When(Condition),
    /// Of all inputs of that source that choose, the first in the manifest whose condition holds takes the message alone.
    Choose(Condition),
    /// What none that has a condition took.
    Otherwise,
}

impl Take {
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }
}

/// The inputs of one source, in manifest order, each as one condition that needs to know nothing of the others. `None`: every message.
#[must_use]
pub fn resolve(takes: &[&Take]) -> Vec<Option<Condition>> {
    let not = |c: &Condition| Condition::Not(Box::new(c.clone()));
    let mut chosen: Vec<&Condition> = Vec::new();
    let mut out = Vec::with_capacity(takes.len());
    for take in takes {
        out.push(match take {
            Take::All => None,
            Take::When(when) => Some(when.clone()),
            Take::Choose(when) if chosen.is_empty() => {
                chosen.push(when);
                Some(when.clone())
            }
            Take::Choose(when) => {
                let earlier = chosen.iter().map(|c| not(c));
                let alone = Condition::All(earlier.chain([when.clone()]).collect());
                chosen.push(when);
                Some(alone)
            }
            Take::Otherwise => {
                let taken = takes.iter().filter_map(|take| match take {
                    Take::When(when) | Take::Choose(when) => Some(not(when)),
                    Take::All | Take::Otherwise => None,
                });
                Some(Condition::All(taken.collect()))
            }
        });
    }
    out
}

/// As the manifest writes it, in short: for a diff and for descriptions.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, word: &str, of: &[Self]| {
            write!(f, "{word} [")?;
            for (i, condition) in of.iter().enumerate() {
                write!(f, "{}{condition}", if i == 0 { "" } else { ", " })?;
            }
            f.write_str("]")
        };
        match self {
            Self::All(all) => list(f, "all", all),
            Self::Any(any) => list(f, "any", any),
            Self::Not(not) => write!(f, "not ({not})"),
            Self::Field { field, tests } => {
                match field {
                    Field::Header(name) => write!(f, "header:{name}")?,
                    Field::Json(pointer) => write!(f, "json:{pointer}")?,
                }
                for (i, test) in tests.iter().enumerate() {
                    write!(f, "{}{test}", if i == 0 { " " } else { " and " })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(true) => f.write_str("exists"),
            Self::Exists(false) => f.write_str("is missing"),
            Self::Is(scalar) => write!(f, "is {scalar}"),
            Self::In(scalars) => {
                f.write_str("in [")?;
                for (i, scalar) in scalars.iter().enumerate() {
                    write!(f, "{}{scalar}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::StartsWith(prefix) => write!(f, "starts with {prefix:?}"),
            Self::Above(n) => write!(f, "above {}", n.0),
            Self::AtLeast(n) => write!(f, "at least {}", n.0),
            Self::Below(n) => write!(f, "below {}", n.0),
            Self::AtMost(n) => write!(f, "at most {}", n.0),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("null"),
            Self::Bool(bool) => write!(f, "{bool}"),
            Self::Number(number) => write!(f, "{}", number.0),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl fmt::Display for Take {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::When(when) => write!(f, " when {when}"),
            Self::Choose(when) => write!(f, " choose {when}"),
            Self::Otherwise => f.write_str(" otherwise"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Decimal {
        Decimal(text.parse().unwrap())
    }

    fn json(pointer: &str, test: Test) -> Condition {
        Condition::Field {
            field: Field::Json(pointer.to_owned()),
            tests: vec![test],
        }
    }

    fn holds(condition: &Condition, headers: &[(&str, &str)], payload: &str) -> bool {
        let headers: Vec<_> = headers
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        condition.holds(&Facts::new(&headers, &payload))
    }

    #[test]
    fn tests_of_a_field() {
        let doc = r#"{"a": {"b": 5, "t": "text", "n": null, "yes": true, "big": 9007199254740993, "half": 0.5}}"#;
        let cases = [
            (json("/a/b", Test::Is(Scalar::Number(number("5")))), true),
            (json("/a/b", Test::Is(Scalar::Number(number("5.0")))), true),
            (json("/a/b", Test::Is(Scalar::Text("5".into()))), false),
            (json("/a/b", Test::Above(number("5"))), false),
            (json("/a/b", Test::AtLeast(number("5"))), true),
            (json("/a/b", Test::Below(number("5.1"))), true),
            (json("/a/b", Test::AtMost(number("4"))), false),
            (json("/a/half", Test::Above(number("0"))), true),
            (json("/a/t", Test::StartsWith("te".into())), true),
            (json("/a/t", Test::Above(number("0"))), false),
            (json("/a/n", Test::Is(Scalar::Nothing)), true),
            (json("/a/n", Test::Exists(true)), true),
            (json("/a/x", Test::Exists(false)), true),
            (json("/a/x", Test::Is(Scalar::Nothing)), false),
            (json("/a/yes", Test::Is(Scalar::Bool(true))), true),
            (
                json("/a/t", Test::In(vec![Scalar::Bool(true), Scalar::Text("text".into())])),
                true,
            ),
            // Whole numbers that no double can tell apart.
            (
                json("/a/big", Test::Is(Scalar::Number(number("9007199254740992")))),
                false,
            ),
        ];
        for (condition, wanted) in cases {
            assert_eq!(holds(&condition, &[], doc), wanted, "{condition}");
        }
    }

    #[test]
    fn what_is_not_json_has_no_fields() {
        for payload in ["", "not json", "{\"a\":", "\u{0}"] {
            assert!(holds(&json("/a", Test::Exists(false)), &[], payload));
            assert!(!holds(&json("/a", Test::Is(Scalar::Nothing)), &[], payload));
        }
        let deep = "[".repeat(100_000);
        assert!(
            !holds(&json("", Test::Exists(true)), &[], &deep),
            "no stack is spent on it"
        );
    }

    #[test]
    fn headers_are_text_and_read_as_numbers_where_one_is_asked_for() {
        let header = |test| Condition::Field {
            field: Field::Header("Tier".to_owned()),
            tests: vec![test],
        };
        let said = [("tier", "12"), ("tier", "99")];
        assert!(holds(&header(Test::Is(Scalar::Text("12".into()))), &said, ""));
        assert!(holds(&header(Test::Is(Scalar::Number(number("12")))), &said, ""));
        assert!(holds(&header(Test::Above(number("11.5"))), &said, ""));
        assert!(
            !holds(&header(Test::Above(number("12"))), &said, ""),
            "the first of a name counts"
        );
        assert!(holds(&header(Test::Exists(false)), &[], ""));
    }

    #[test]
    fn it_survives_the_catalog() {
        let condition = Condition::Any(vec![
            Condition::Not(Box::new(json(
                "/a",
                Test::In(vec![Scalar::Nothing, Scalar::Bool(false)]),
            ))),
            json("/b", Test::AtMost(number("1.50"))),
            json("/c", Test::Is(Scalar::Text("null".into()))),
        ]);
        let text = serde_json::to_string(&Take::Choose(condition.clone())).unwrap();
        assert_eq!(serde_json::from_str::<Take>(&text).unwrap(), Take::Choose(condition));
    }

    fn any_take() -> impl Strategy<Value = Take> {
        let when = (0..4_i64).prop_map(|n| json("/n", Test::AtLeast(Decimal(n.into()))));
        prop_oneof![
            Just(Take::All),
            when.clone().prop_map(Take::When),
            when.prop_map(Take::Choose),
            Just(Take::Otherwise),
        ]
    }

    proptest! {
        /// Against the words of `Take`, read literally.
        #[test]
        fn each_input_takes_what_its_words_say(takes in prop::collection::vec(any_take(), 0..6), n in -1..5_i64) {
            let payload = Bytes::from(format!("{{\"n\": {n}}}"));
            let facts = Facts::new(&[], &payload);
            let refs: Vec<&Take> = takes.iter().collect();
            let resolved = resolve(&refs);
            let got: Vec<bool> = resolved.iter().map(|c| c.as_ref().is_none_or(|c| c.holds(&facts))).collect();
            let first = takes.iter().position(|t| matches!(t, Take::Choose(c) if c.holds(&facts)));
            let with_condition = takes.iter().enumerate().any(|(i, t)| match t {
                Take::When(c) => c.holds(&facts),
                Take::Choose(_) => first == Some(i),
                Take::All | Take::Otherwise => false,
            });
            for (i, take) in takes.iter().enumerate() {
                let wanted = match take {
                    Take::All => true,
                    Take::When(c) => c.holds(&facts),
                    Take::Choose(_) => first == Some(i),
                    Take::Otherwise => !with_condition,
                };
                prop_assert_eq!(got[i], wanted);
            }
        }
    }
}
