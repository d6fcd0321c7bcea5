//! Reading a Bee that is built in: `model: NAME`, or `type: …`.

use std::collections::{BTreeMap, BTreeSet};

use super::bee::{Input, Source};
use super::mistake::{did_you_mean, quoted};
use super::node::Data;
use super::reader::{Fields, Value};
use crate::limits;
use crate::name::ModelRef;
use crate::swarm::Builtin;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Model,
    Batch,
    Respond,
    WeightedAverage,
}

const TYPES: [(&str, Type); 4] = [
    ("model", Type::Model),
    ("batch", Type::Batch),
    ("respond", Type::Respond),
    ("weighted-average", Type::WeightedAverage),
];

/// What only a module's Bee has.
const OF_MODULES: [&str; 10] = [
    "module",
    "bee",
    "state",
    "instances",
    "memory",
    "config",
    "secrets",
    "http",
    "models",
    "clock",
];

/// What goes with one type only.
const OF_TYPES: [(&str, Type); 4] = [
    ("model", Type::Model),
    ("size", Type::Batch),
    ("wait", Type::Batch),
    ("weights", Type::WeightedAverage),
];

/// Whether a Bee says that it is built in.
pub(super) fn is(fields: &Fields<'_>) -> bool {
    fields.get("type").is_some() || fields.get("model").is_some()
}

/// What of a built-in stage a Bee of a module cannot have.
pub(super) fn none(fields: &Fields<'_>) {
    for (name, _) in OF_TYPES {
        if let Some(value) = fields.get(name) {
            value.mistake(format!("`{name}` goes with a built-in `type`"), Some("leave it out"));
        }
    }
}

/// What it is. Each mistake is reported.
pub(super) fn read(fields: &Fields<'_>, inputs: &[Input<'_>], joins: bool) -> Option<Builtin> {
    for name in OF_MODULES {
        if let Some(value) = fields.get(name) {
            value.mistake(
                format!("`{name}` beside a built-in type"),
                Some("leave it out: what is built in runs no module"),
            );
        }
    }
    let kind = match fields.get("type") {
        Some(value) => kind(value)?,
        None => Type::Model,
    };
    for (name, of) in OF_TYPES {
        if of != kind
            && let Some(value) = fields.get(name)
        {
            let goes = TYPES.iter().find(|(_, kind)| *kind == of).map_or("", |(name, _)| *name);
            value.mistake(format!("`{name}` goes with `type: {goes}`"), Some("leave it out"));
        }
    }
    if joins != (kind == Type::WeightedAverage)
        && let Some(value) = fields.get("input")
    {
        let (message, hint) = match joins {
            true => (
                "this type takes one message at a time",
                "give the join to a Bee of its own, or to `type: weighted-average`",
            ),
            false => (
                "a weighted average is of the sides of a join",
                "write `input: { join: [a, b] }`",
            ),
        };
        value.mistake(message, Some(hint));
    }
    if kind != Type::Batch
        && let Some(value) = fields.get("key")
    {
        value.mistake("this type keeps nothing by key", Some("leave it out"));
    }
    match kind {
        Type::Model => model(fields),
        Type::Respond => Some(Builtin::Respond),
        Type::Batch => {
            let size = fields
                .required("size", "how many messages it puts together: `size: 100`")
                .and_then(|v| v.int(1..=u64::from(limits::GATHER_SIZE_MAX)));
            let wait = fields.get("wait").map(|v| v.duration(1..=limits::GATHER_WAIT_MS_MAX));
            Some(Builtin::Batch {
                size: size?,
                wait_ms: wait.unwrap_or(Some(limits::GATHER_WAIT_MS_DEFAULT))?,
            })
        }
        Type::WeightedAverage => {
            let weights = fields.get("weights").map(|value| weights(value, inputs));
            Some(Builtin::WeightedAverage {
                weights: weights.unwrap_or_else(|| Some(BTreeMap::new()))?,
            })
        }
    }
}

fn kind(value: &Value<'_>) -> Option<Type> {
    let text = value.text()?;
    // As the ancestor called it.
    let wanted = if text == "weighted-average-ensemble" {
        "weighted-average"
    } else {
        text
    };
    let found = TYPES.iter().find(|(name, _)| *name == wanted);
    if found.is_none() {
        let names = TYPES.iter().map(|(name, _)| *name);
        let hint = did_you_mean(text, names.clone()).unwrap_or_else(|| match text {
            "python" | "rust" => "leave `type` out, and name the Bee's module: `module: NAME`".to_owned(),
            _ => format!("there are: {}", names.collect::<Vec<_>>().join(", ")),
        });
        value.mistake(format!("{} is no built-in type", quoted(text)), Some(&hint));
    }
    found.map(|(_, kind)| *kind)
}

fn model(fields: &Fields<'_>) -> Option<Builtin> {
    let value = fields.required("model", "which model it calls: `model: NAME`")?;
    let text = value.text()?;
    match text.parse::<ModelRef>() {
        Ok(model) => Some(Builtin::Model(model)),
        Err(e) => {
            value.mistake(
                e.to_string(),
                Some("write `digits`, `digits:v1` or `digits@sha256:DIGEST`"),
            );
            None
        }
    }
}

/// The models that a built-in stage calls.
pub(super) fn models(builtin: &Builtin) -> BTreeSet<ModelRef> {
    match builtin {
        Builtin::Model(model) => BTreeSet::from([model.clone()]),
        _ => BTreeSet::new(),
    }
}

/// Thousandths, by side.
fn weights(value: &Value<'_>, inputs: &[Input<'_>]) -> Option<BTreeMap<String, u32>> {
    let sides: Vec<&str> = inputs
        .iter()
        .map(|input| match &input.source {
            Source::Gateway(subject) => subject.as_str(),
            Source::Bee { label, .. } | Source::Either(label) => *label,
        })
        .collect();
    let mut out = BTreeMap::new();
    for (name, _, weight) in value.pairs()? {
        if !sides.contains(&name) {
            let hint =
                did_you_mean(name, sides.iter().copied()).unwrap_or_else(|| format!("it joins: {}", sides.join(", ")));
            weight.mistake(format!("{} is no side of this join", quoted(name)), Some(&hint));
            continue;
        }
        match thousandths(&weight) {
            Some(thousandths) => {
                out.insert(name.to_owned(), thousandths);
            }
            None => weight.mistake(
                "expected a weight",
                Some("write a number from 0.001 to 1000 with at most three places"),
            ),
        }
    }
    Some(out)
}

fn thousandths(value: &Value<'_>) -> Option<u32> {
    let (whole, places) = match &value.node.data {
        Data::Int(_, text) => (text.as_str(), ""),
        Data::Float(text) => text.split_once('.')?,
        _ => return None,
    };
    if places.len() > 3 || !places.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let places: u32 = format!("{places:0<3}").parse().ok()?;
    let whole: u32 = whole.parse().ok()?;
    let all = whole.checked_mul(1_000)?.checked_add(places)?;
    (1..=1_000_000).contains(&all).then_some(all)
}
