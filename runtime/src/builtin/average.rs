//! The weighted mean of what several models gave for one message.
//!
//! Each side of the join says its outputs by name, as plain JSON (`{"probabilities": [[0.1, 0.9]]}`) or as an inference response of the Open
//! Inference Protocol. Outputs of fractions that every side has, in the same shape, are averaged; others (class labels, mostly, whose mean
//! means nothing) are left out. The answer is plain JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};
use skep_model::limits::TENSOR_RANK_MAX;
use skep_model::oip::{self, Response, plain};
use skep_model::step::{Input, Outcome};

use super::{Exit, reject};

/// What one side says, by output.
type Outputs = Map<String, Value>;

pub(super) fn average(input: &Input, weights: &BTreeMap<String, u32>, exit: Exit) -> Outcome {
    let Input::Joined(joined) = input else {
        return reject("a built-in weighted average takes the sides of a join only");
    };
    let mut sides = Vec::new();
    for (name, message) in &joined.parts {
        let weight = weights.get(name).copied().unwrap_or(1_000);
        match read(&message.payload) {
            Ok(outputs) => sides.push((name.as_str(), f64::from(weight), outputs)),
            Err(why) => return reject(format!("what `{name}` gave: {why}")),
        }
    }
    match mean(&sides) {
        Ok(mean) => exit.outcome(Vec::new(), Value::Object(mean).to_string().into()),
        Err(why) => reject(why),
    }
}

fn read(payload: &skep_model::Bytes) -> Result<Outputs, String> {
    let told = |e: &dyn std::fmt::Display| format!("no outputs of a model: {e}");
    let plain = match oip::is_response(payload) {
        true => {
            let response = Response::read(payload, None).map_err(|e| told(&e))?;
            plain::write(&response.outputs).map_err(|e| told(&e))?
        }
        false => payload.to_vec(),
    };
    match serde_json::from_slice(&plain) {
        Ok(Value::Object(outputs)) => Ok(outputs),
        Ok(_) => Err("an object with the model's outputs by name was expected".to_owned()),
        Err(e) => Err(told(&e)),
    }
}

fn mean(sides: &[(&str, f64, Outputs)]) -> Result<Outputs, String> {
    let Some(((_, _, first), rest)) = sides.split_first() else {
        return Err("there is nothing to average".to_owned());
    };
    let all: f64 = sides.iter().map(|(_, weight, _)| weight).sum();
    let mut out = Outputs::new();
    for name in first.keys() {
        let of_all: Option<Vec<&Value>> = sides.iter().map(|(.., outputs)| outputs.get(name)).collect();
        let Some(values) = of_all else { continue };
        if !values.iter().any(|value| has_fractions(value, TENSOR_RANK_MAX)) {
            continue;
        }
        let mut sum = scaled(values[0], sides[0].1 / all, TENSOR_RANK_MAX)
            .ok_or_else(|| format!("output {name:?} of `{}` holds something else than numbers", sides[0].0))?;
        for (value, (side, weight, _)) in values[1..].iter().zip(rest) {
            add(&mut sum, value, weight / all).ok_or_else(|| {
                format!(
                    "output {name:?} of `{side}` has another shape than that of `{}`, or holds something else than numbers",
                    sides[0].0
                )
            })?;
        }
        out.insert(name.clone(), sum);
    }
    match out.is_empty() {
        true => Err(
            "no output of fractions comes from every side of the join: give each model an output of the same name"
                .to_owned(),
        ),
        false => Ok(out),
    }
}

/// JSON has one kind of numbers. What models give as fractions is written with a point or an exponent, `1.0` and not `1`.
fn has_fractions(value: &Value, depth: usize) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) if depth > 0 => items.iter().any(|item| has_fractions(item, depth - 1)),
        _ => false,
    }
}

fn number(value: f64) -> Option<Value> {
    Number::from_f64(value).map(Value::Number)
}

fn scaled(value: &Value, by: f64, depth: usize) -> Option<Value> {
    match value {
        Value::Number(n) => number(n.as_f64()? * by),
        Value::Array(items) if depth > 0 => {
            let items: Option<Vec<Value>> = items.iter().map(|item| scaled(item, by, depth - 1)).collect();
            items.map(Value::Array)
        }
        _ => None,
    }
}

/// Adds so much of `value` to what is there, which bounds how deep this goes.
fn add(to: &mut Value, value: &Value, by: f64) -> Option<()> {
    match (to, value) {
        (to @ Value::Number(_), Value::Number(n)) => {
            *to = number(to.as_f64()? + n.as_f64()? * by)?;
            Some(())
        }
        (Value::Array(to), Value::Array(items)) if to.len() == items.len() => {
            to.iter_mut().zip(items).try_for_each(|(to, item)| add(to, item, by))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn averaged(sides: &[(&str, f64, &str)]) -> Result<String, String> {
        let read: Result<Vec<_>, String> = sides
            .iter()
            .map(|(name, weight, json)| Ok((*name, *weight, read(&json.as_bytes().to_vec().into())?)))
            .collect();
        mean(&read?).map(|out| Value::Object(out).to_string())
    }

    #[test]
    fn fractions_of_all_sides_are_averaged_and_labels_are_not() {
        let mean = averaged(&[
            ("a", 1_000.0, r#"{"label":[1],"p":[[0.0,1.0]],"mine":[0.5]}"#),
            ("b", 3_000.0, r#"{"label":[0],"p":[[0.5,0.5]]}"#),
        ]);
        assert_eq!(mean.unwrap(), r#"{"p":[[0.375,0.625]]}"#);
    }

    #[test]
    fn responses_of_the_protocol_are_sides_too() {
        let mean = averaged(&[
            (
                "a",
                1_000.0,
                r#"{"model_name":"m","outputs":[{"name":"p","datatype":"FP32","shape":[1,2],"data":[1.0,0.0]}]}"#,
            ),
            ("b", 1_000.0, r#"{"p":[[0.5,0.5]]}"#),
        ]);
        assert_eq!(mean.unwrap(), r#"{"p":[[0.75,0.25]]}"#);
    }

    #[test]
    fn what_cannot_be_averaged_is_told() {
        let cases = [
            (["[1.0]", r#"{"p":[1.0]}"#], "by name was expected"),
            (["no", r#"{"p":[1.0]}"#], "no outputs of a model"),
            ([r#"{"p":[1.0]}"#, r#"{"q":[1.0]}"#], "same name"),
            ([r#"{"p":[1]}"#, r#"{"p":[2]}"#], "no output of fractions"),
            ([r#"{"p":[1.0]}"#, r#"{"p":[1.0,2.0]}"#], "another shape"),
            ([r#"{"p":[1.0]}"#, r#"{"p":["x"]}"#], "another shape"),
            (
                [r#"{"p":["x", 1.0]}"#, r#"{"p":[1.0, 1.0]}"#],
                "something else than numbers",
            ),
            ([r#"{"p":[1e308]}"#, r#"{"p":[1e309]}"#], "no outputs"),
        ];
        for ([a, b], says) in cases {
            let told = averaged(&[("a", 1_000.0, a), ("b", 1_000.0, b)]).unwrap_err();
            assert!(told.contains(says), "{a} {b}: {told}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!(r#"{{"p":{}1.0{}}}"#, "[".repeat(60), "]".repeat(60));
        assert!(averaged(&[("a", 1.0, &deep), ("b", 1.0, &deep)]).is_err());
    }
}
