//! Reading `join`.

use super::bee::{Input, Source, input, key};
use super::fields::INPUT;
use super::mistake::quoted;
use super::node::Data;
use super::reader::{Fields, Value};
use crate::condition::Take;
use crate::limits;
use crate::swarm::{Join, KeySource, Missing};

/// What else an input with `join` may say.
pub(super) const FIELDS: [&str; 4] = ["by", "within", "missing", "pending"];

/// An input's fields, if it is a join.
pub(super) fn of<'a>(value: &Value<'a>) -> Option<Fields<'a>> {
    let Data::Map(pairs) = &value.node.data else {
        return None;
    };
    let joins = pairs
        .iter()
        .any(|(k, _)| matches!(&k.data, Data::Text(t) if t == "join"));
    joins.then(|| value.fields(&INPUT)).flatten()
}

/// The sides go to `out`. What was wrong is reported, and the defaults stand for it.
pub(super) fn read<'a>(fields: &Fields<'a>, out: &mut Vec<Input<'a>>) -> (KeySource, Join) {
    if let Some(other) = fields.names().find(|n| *n != "join" && !FIELDS.contains(n)) {
        fields.of.mistake(
            format!("both `join` and `{other}`"),
            Some("conditions and outputs go with each side: `join: [a, { bee: b, output: x }]`"),
        );
    }
    sides(fields, out);
    let by = fields.get("by").and_then(|value| match value.text()? {
        "origin" => Some(KeySource::Origin),
        known if known == "message" || known.starts_with("header:") || known.starts_with("json:") => key(value),
        other => {
            value.mistake(
                format!("{} tells nothing of what belongs together", quoted(other)),
                Some("write `origin`, `message`, `header:NAME` or `json:/pointer`"),
            );
            None
        }
    });
    let within_ms = fields
        .get("within")
        .and_then(|v| v.duration(1..=limits::JOIN_WITHIN_MS_MAX));
    let missing = fields.get("missing").and_then(|v| {
        v.choice(&[
            ("fail", Missing::Fail),
            ("partial", Missing::Partial),
            ("drop", Missing::Drop),
        ])
    });
    let pending = fields.get("pending").and_then(|v| v.int(1..=limits::JOIN_PENDING_MAX));
    let join = Join {
        within_ms: within_ms.unwrap_or(limits::JOIN_WITHIN_MS_DEFAULT),
        missing: missing.unwrap_or_default(),
        pending: pending.unwrap_or(limits::JOIN_PENDING_DEFAULT),
    };
    (by.unwrap_or(KeySource::Origin), join)
}

fn sides<'a>(fields: &Fields<'a>, out: &mut Vec<Input<'a>>) {
    let Some(list) = fields.get("join") else { return };
    let Some(items) = list.list() else { return };
    if items.len() < 2 {
        list.mistake(
            format!("a join of {}", if items.is_empty() { "nothing" } else { "one" }),
            Some("list the Bees that it waits for, two at least; one alone is `input: { bee: NAME }`"),
        );
    }
    if items.len() > limits::JOIN_SIDES_MAX {
        list.mistake(
            format!("a join of {}, at most {} can be", items.len(), limits::JOIN_SIDES_MAX),
            Some("join some of them first, and what comes of it with the rest"),
        );
    }
    for item in items.iter().take(limits::JOIN_SIDES_MAX) {
        match &item.node.data {
            Data::Map(pairs) => {
                let nested = |(k, _): &(_, _)| {
                    let k: &super::node::Node = k;
                    matches!(&k.data, Data::Text(t) if t == "join" || t == "stack")
                };
                if pairs.iter().any(nested) {
                    item.mistake(
                        "a join or stack inside a join",
                        Some("give it a Bee of its own, and name that Bee here"),
                    );
                } else {
                    let before = out.len();
                    input(item, out);
                    for side in &out[before..] {
                        if let Some((at, _)) = &side.laps {
                            at.mistake(
                                "a loop as a side of a join",
                                Some("what goes round would wait for what does not: give the loop to a Bee before the join"),
                            );
                        }
                    }
                }
            }
            _ => {
                if let Some(label) = item.text() {
                    out.push(Input {
                        value: item.clone(),
                        source: Source::Bee { label, output: None },
                        take: Take::All,
                        laps: None,
                    });
                }
            }
        }
    }
}

/// What a Bee that joins cannot have.
pub(super) fn alone(bee: &Fields<'_>) {
    let cases = [
        (
            "key",
            "what a join matches by is its key",
            "leave it out; write `by: …` beside `join`",
        ),
        (
            "order",
            "a join keeps the order of what belongs together",
            "leave it out",
        ),
        (
            "exit",
            "`exit` looks at one message, and a join has several",
            "put it on a Bee before or after",
        ),
        (
            "skip",
            "`skip` looks at one message, and a join has several",
            "put it on a Bee before or after",
        ),
    ];
    for (name, message, hint) in cases {
        if let Some(value) = bee.get(name) {
            value.mistake(message, Some(hint));
        }
    }
    if let Some(value) = bee.get("state")
        && (matches!(value.node.data, Data::Map(_)) || value.bool() == Some(true))
    {
        value.mistake(
            "the state of a join is its waiting parts",
            Some("leave it out; a Bee that reads from this one may keep state"),
        );
    }
}
