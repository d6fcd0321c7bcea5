//! Reading `when`, `choose`, `otherwise`, `exit` and `skip`.

use super::bee::{header_name, json_pointer};
use super::fields::CONDITION;
use super::mistake::quoted;
use super::node::Data;
use super::reader::{Fields, Value};
use crate::condition::{Condition, Decimal, Field, Scalar, Take, Test};
use crate::limits::{CONDITION_DEPTH_MAX, CONDITION_TESTS_MAX};

/// Which messages an input takes; what was wrong is reported.
pub(super) fn take(input: &Fields<'_>) -> Take {
    let said: Vec<&str> = input
        .names()
        .filter(|n| ["when", "choose", "otherwise"].contains(n))
        .collect();
    if let [first, second, ..] = said.as_slice() {
        input.of.mistake(
            format!("both `{first}` and `{second}`"),
            Some("an input takes messages by one of them"),
        );
        return Take::All;
    }
    if let Some(when) = input.get("when") {
        return read(when).map_or(Take::All, Take::When);
    }
    if let Some(choose) = input.get("choose") {
        return read(choose).map_or(Take::All, Take::Choose);
    }
    match input.get("otherwise") {
        None => Take::All,
        Some(value) => {
            if value.bool() == Some(false) {
                value.mistake("`otherwise` is either true or not there", Some("leave it out"));
            }
            Take::Otherwise
        }
    }
}

pub(super) fn read(value: &Value<'_>) -> Option<Condition> {
    let mut left = CONDITION_TESTS_MAX;
    let read = at_depth(value, CONDITION_DEPTH_MAX, &mut left);
    if read.is_some() && left == 0 {
        value.mistake(
            format!("a condition of more than {CONDITION_TESTS_MAX} tests"),
            Some("let a Bee decide, and publish to named outputs"),
        );
    }
    read
}

fn at_depth(value: &Value<'_>, depth: usize, left: &mut usize) -> Option<Condition> {
    if depth == 0 {
        value.mistake(
            format!("conditions lie more than {CONDITION_DEPTH_MAX} deep"),
            Some("let a Bee decide, and publish to named outputs"),
        );
        return None;
    }
    let fields = value.fields(&CONDITION)?;
    const FORMS: [&str; 5] = ["header", "json", "all", "any", "not"];
    let forms: Vec<&str> = fields.names().filter(|n| FORMS.contains(n)).collect();
    let form = match forms.as_slice() {
        [one] => *one,
        [] => {
            value.mistake(
                "says nothing of what it looks at",
                Some("give `header: NAME` or `json: /pointer` with a test, or `all`, `any` or `not`"),
            );
            return None;
        }
        [first, second, ..] => {
            value.mistake(
                format!("both `{first}` and `{second}`"),
                Some("join conditions with `all: [...]` or `any: [...]`"),
            );
            return None;
        }
    };
    let of = fields.get(form)?;
    let field = match form {
        "header" => Field::Header(header_name(of, of.text()?)?),
        "json" => Field::Json(json_pointer(of, of.text()?)?),
        _ => {
            if let Some(test) = fields.names().find(|n| !FORMS.contains(n)) {
                fields.get(test)?.mistake(
                    format!("`{test}` tests one field, and `{form}` is none"),
                    Some("move it into a condition with `header` or `json`"),
                );
            }
            if form == "not" {
                return at_depth(of, depth - 1, left).map(|c| Condition::Not(Box::new(c)));
            }
            let items = of.list()?;
            if items.is_empty() {
                of.mistake("an empty list of conditions", Some("list at least one"));
                return None;
            }
            let read: Vec<Option<Condition>> = items.iter().map(|item| at_depth(item, depth - 1, left)).collect();
            let list = read.into_iter().collect::<Option<Vec<_>>>()?;
            return Some(if form == "all" {
                Condition::All(list)
            } else {
                Condition::Any(list)
            });
        }
    };
    let names: Vec<&str> = fields.names().filter(|n| *n != form).collect();
    if names.is_empty() {
        value.mistake(
            format!("no test of the {form}"),
            Some("add `exists`, `is`, `in`, `starts_with`, `above`, `at_least`, `below` or `at_most`"),
        );
        return None;
    }
    *left = left.saturating_sub(names.len());
    // Each is read whatever the others said.
    let tests: Vec<Option<Test>> = names
        .into_iter()
        .map(|name| fields.get(name).and_then(|value| test(name, value, left)))
        .collect();
    let tests = tests.into_iter().collect::<Option<Vec<_>>>()?;
    Some(Condition::Field { field, tests })
}

fn test(name: &str, value: &Value<'_>, left: &mut usize) -> Option<Test> {
    Some(match name {
        "exists" => Test::Exists(value.bool()?),
        "is" => Test::Is(scalar(value)?),
        "in" => {
            let items = value.list()?;
            if items.is_empty() {
                value.mistake("an empty list: nothing is in it", Some("list at least one value"));
                return None;
            }
            *left = left.saturating_sub(items.len());
            let read: Vec<Option<Scalar>> = items.iter().map(scalar).collect();
            Test::In(read.into_iter().collect::<Option<Vec<_>>>()?)
        }
        "starts_with" => Test::StartsWith(value.text()?.to_owned()),
        "above" => Test::Above(number(value)?),
        "at_least" => Test::AtLeast(number(value)?),
        "below" => Test::Below(number(value)?),
        _ => Test::AtMost(number(value)?),
    })
}

fn scalar(value: &Value<'_>) -> Option<Scalar> {
    match &value.node.data {
        Data::Nothing => Some(Scalar::Nothing),
        Data::Bool(bool) => Some(Scalar::Bool(*bool)),
        Data::Text(text) => Some(Scalar::Text(text.clone())),
        Data::Int(..) | Data::Float(_) => number(value).map(Scalar::Number),
        Data::List(_) | Data::Map(_) => {
            value.mistake(
                format!(
                    "expected text, a number, true, false or null, found {}",
                    value.node.kind()
                ),
                None,
            );
            None
        }
    }
}

fn number(value: &Value<'_>) -> Option<Decimal> {
    let number = match &value.node.data {
        Data::Int(int, _) => i64::try_from(*int)
            .map(serde_json::Number::from)
            .or_else(|_| u64::try_from(*int).map(serde_json::Number::from))
            .ok(),
        // YAML's `.5`, `1.` and `+1.5` are no JSON: by value.
        Data::Float(text) => text.parse().ok().and_then(serde_json::Number::from_f64),
        _ => {
            value.mistake(
                format!("expected a number, found {}", value.node.kind()),
                Some("write it without quotes, like `0.5`"),
            );
            return None;
        }
    };
    if number.is_none() {
        let written = value.node.written().unwrap_or_default();
        value.mistake(format!("{} is not a number that JSON can hold", quoted(&written)), None);
    }
    number.map(Decimal)
}
