//! Tensors as plain JSON, for those who have a model and no protocol: `{"x": [[1, 2], [3, 4]]}` by the names of the inputs, or the value alone
//! where the model has one input. Types come from the model's signature, shapes from the lists.
//!
//! A single row may be sent without the dimension of the batch: `{"x": [1, 2]}` to a model that takes `[any, 2]`.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeMap};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::{OipError, too_much_json, write_json};
use crate::limits::{CALL_JSON_BYTES_MAX, TENSOR_RANK_MAX};
use crate::predict::Tensors;
use crate::tensor::{Port, Signature, Tensor};

/// Reads inputs for a model.
///
/// # Errors
/// What is wrong, by input, with what was expected.
pub fn read(json: &[u8], signature: &Signature) -> Result<Tensors, OipError> {
    if json.len() > CALL_JSON_BYTES_MAX {
        return Err(too_much_json(json.len()));
    }
    let bad = |error: serde_json::Error| OipError::Invalid(format!("the message is no JSON for this model: {error}"));
    let inputs = if json.trim_ascii_start().first() == Some(&b'{') {
        let mut from = serde_json::Deserializer::from_slice(json);
        let named = from.deserialize_map(Named(signature)).map_err(bad)?;
        from.end().map_err(bad)?;
        named
    } else {
        let value: &RawValue = serde_json::from_slice(json).map_err(bad)?;
        match &signature.inputs[..] {
            [only] => vec![(only, value)],
            several => {
                let names: Vec<String> = several.iter().map(|port| format!("{:?}: …", port.name)).collect();
                return Err(OipError::Invalid(format!(
                    "this model has {} inputs: send an object {{{}}}",
                    several.len(),
                    names.join(", ")
                )));
            }
        }
    };
    let tensors = inputs
        .into_iter()
        .map(|(port, value)| Ok((port.name.clone(), tensor(port, value.get())?)))
        .collect::<Result<Tensors, OipError>>()?;
    signature.check(&tensors)?;
    Ok(tensors)
}

/// Writes outputs by name, in lists as their shapes say; a tensor without dimensions as its element.
///
/// # Errors
/// Too large; NaN, an infinity or text that is no UTF-8, for which JSON has no word.
pub fn write(outputs: &Tensors) -> Result<Vec<u8>, OipError> {
    struct Out<'a>(&'a Tensors);

    impl Serialize for Out<'_> {
        fn serialize<S: Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
            let mut map = into.serialize_map(Some(self.0.len()))?;
            for (name, tensor) in self.0 {
                map.serialize_entry(name, &tensor.nested())
                    .map_err(|error| S::Error::custom(format!("output {name:?}: {error}")))?;
            }
            map.end()
        }
    }

    write_json(&Out(outputs))
}

/// The inputs of an object.
struct Named<'s>(&'s Signature);

impl<'s, 'de> Visitor<'de> for Named<'s> {
    type Value = Vec<(&'s Port, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of inputs by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found: Self::Value = Vec::with_capacity(self.0.inputs.len());
        while let Some(name) = map.next_key::<String>()? {
            let Some(port) = self.0.inputs.iter().find(|port| port.name == name) else {
                let known: Vec<&str> = self.0.inputs.iter().map(|port| port.name.as_str()).collect();
                let name: String = name.chars().take(64).collect();
                return Err(A::Error::custom(format!(
                    "there is no input {name:?}: the inputs are {}",
                    known.join(", ")
                )));
            };
            if found.iter().any(|(other, _)| other.name == name) {
                return Err(A::Error::custom(format!("input {name:?} is given twice")));
            }
            found.push((port, map.next_value()?));
        }
        Ok(found)
    }
}

fn tensor(port: &Port, json: &str) -> Result<Tensor, OipError> {
    let wrong = |why: &dyn fmt::Display| OipError::Invalid(format!("input {:?}: {why}", port.name));
    let mut shape = Vec::new();
    let measured = Measure {
        shape: &mut shape,
        depth: 0,
    }
    .deserialize(&mut serde_json::Deserializer::from_str(json));
    measured.map_err(|error| wrong(&error))?;
    let data = |json: &str, shape: Vec<u64>| {
        let from = &mut serde_json::Deserializer::from_str(json);
        Tensor::from_data(port.kind, shape, from).map_err(|error| OipError::of_tensor("input", &port.name, &error))
    };
    let tensor = if shape.is_empty() {
        // An element without a list around it.
        data(&format!("[{json}]"), Vec::new())?
    } else {
        data(json, shape)?
    };
    let one_row = matches!(port.shape.first(), Some(None | Some(1))) && tensor.shape().len() + 1 == port.shape.len();
    if !one_row {
        return Ok(tensor);
    }
    let shape = std::iter::once(1).chain(tensor.shape().iter().copied()).collect();
    Ok(Tensor::new(port.kind, shape, tensor.into_bytes())?)
}

/// How long lists are, from the first of each depth: whether the others are alike is found when they are read.
struct Measure<'a> {
    shape: &'a mut Vec<u64>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Measure<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Measure<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers, texts, or lists of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if self.depth == TENSOR_RANK_MAX {
            return Err(A::Error::custom(format!("lists more than {TENSOR_RANK_MAX} deep")));
        }
        self.shape.push(0);
        let below = Measure {
            shape: &mut *self.shape,
            depth: self.depth + 1,
        };
        let mut entries = 0;
        if list.next_element_seed(below)?.is_some() {
            entries = 1;
            while list.next_element::<IgnoredAny>()?.is_some() {
                entries += 1;
            }
        }
        self.shape[self.depth] = entries;
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::TensorType;

    fn signature(inputs: &[(&str, TensorType, &[Option<u64>])]) -> Signature {
        let port = |(name, kind, shape): &(&str, TensorType, &[Option<u64>])| Port {
            name: (*name).to_owned(),
            kind: *kind,
            shape: shape.to_vec(),
        };
        Signature {
            inputs: inputs.iter().map(port).collect(),
            outputs: vec![port(&("y", TensorType::Fp32, &[None]))],
        }
    }

    fn shapes(tensors: &Tensors) -> Vec<(&str, &[u64])> {
        tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.shape()))
            .collect()
    }

    #[test]
    fn inputs_are_read_by_name_or_alone() {
        let one = signature(&[("x", TensorType::Fp32, &[None, Some(2)])]);
        let rows = read(b"{\"x\": [[1, 2], [3, 4.5]]}", &one).unwrap();
        assert_eq!(rows[0].1.to_f32().unwrap(), [1.0, 2.0, 3.0, 4.5]);
        assert_eq!(read(b" [[1, 2], [3, 4.5]] ", &one).unwrap(), rows);
        let row = read(b"[1, 2]", &one).unwrap();
        assert_eq!(shapes(&row), [("x", &[1, 2][..])]);
        assert_eq!(read(b"{\"x\": [1, 2]}", &one).unwrap(), row);

        let scalars = signature(&[("n", TensorType::I64, &[None]), ("s", TensorType::Bytes, &[])]);
        let read_scalars = read(b"{\"s\": \"text\", \"n\": 7}", &scalars).unwrap();
        assert_eq!(shapes(&read_scalars), [("s", &[][..]), ("n", &[1][..])]);
        assert_eq!(read_scalars[0].1.contents().collect::<Vec<_>>(), [b"text"]);
        let fixed = signature(&[("x", TensorType::U8, &[Some(1), Some(3)])]);
        assert_eq!(shapes(&read(b"[1, 2, 3]", &fixed).unwrap()), [("x", &[1, 3][..])]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let one = signature(&[("x", TensorType::Fp32, &[None, Some(2)])]);
        let two = signature(&[("a", TensorType::Fp32, &[None]), ("b", TensorType::Fp32, &[None])]);
        for (signature, json, says) in [
            (&one, &b""[..], "no JSON"),
            (&one, b"{", "no JSON"),
            (&one, b"{\"x\": [[1, 2]]} 5", "trailing"),
            (&one, b"[[1, 2]] 5", "trailing"),
            (&one, b"{}", "\"x\" is missing"),
            (&one, b"{\"y\": 1}", "there is no input \"y\": the inputs are x"),
            (&one, b"{\"x\": [1, 2], \"x\": [1, 2]}", "twice"),
            (&one, b"{\"x\": {\"a\": 1}}", "input \"x\""),
            (&one, b"{\"x\": null}", "input \"x\""),
            (
                &one,
                b"{\"x\": [[1, 2], [3]]}",
                "a list of 1 in dimension 1, expected 2",
            ),
            (&one, b"{\"x\": [[1, 2], 3]}", "beside each other"),
            (&one, b"{\"x\": [[\"a\", 2]]}", "is no FP32"),
            (&one, b"[1, 2, 3]", "FP32 [1, 3]: expected FP32 [any, 2]"),
            (&one, b"[]", "expected FP32 [any, 2]"),
            (&one, b"7", "FP32 []: expected FP32 [any, 2]"),
            (&one, b"[[[1, 2]]]", "FP32 [1, 1, 2]"),
            (&one, b"[\xff]", "no JSON"),
            (&two, b"[1]", "this model has 2 inputs"),
            (&two, b"{\"a\": [1, 2], \"b\": [1]}", "rows"),
        ] {
            let error = read(json, signature).unwrap_err().to_string();
            assert!(error.contains(says), "{}: {error}", String::from_utf8_lossy(json));
        }
        let deep = "[".repeat(100_000);
        assert!(read(deep.as_bytes(), &one).is_err());
        let deep = format!("{}{}", "[".repeat(9), "]".repeat(9));
        assert!(
            read(deep.as_bytes(), &one)
                .unwrap_err()
                .to_string()
                .contains("more than 8 deep")
        );
        let large = vec![b' '; CALL_JSON_BYTES_MAX + 1];
        assert!(matches!(read(&large, &one), Err(OipError::TooLarge(_))));
    }

    #[test]
    fn outputs_are_written_by_name() {
        let outputs = vec![
            (
                String::from("y"),
                Tensor::from_f32(vec![2, 2], &[1.0, 0.5, -2.0, 0.0]).unwrap(),
            ),
            (String::from("n"), Tensor::from_i64(vec![], &[3]).unwrap()),
        ];
        assert_eq!(write(&outputs).unwrap(), b"{\"y\":[[1.0,0.5],[-2.0,0.0]],\"n\":3}");
        let nan = vec![(String::from("y"), Tensor::from_f32(vec![1], &[f32::NAN]).unwrap())];
        assert!(
            write(&nan)
                .unwrap_err()
                .to_string()
                .starts_with("output \"y\": element 0 is NaN")
        );
        let large = Tensor::new(TensorType::U8, vec![9 << 20], vec![9; 9 << 20].into()).unwrap();
        assert!(matches!(
            write(&vec![(String::from("y"), large)]),
            Err(OipError::TooLarge(_))
        ));
    }

    proptest! {
        #[test]
        fn no_message_panics(json in "[\\[\\]{}:, 0-9.\"xy-]{0,60}") {
            let one = signature(&[("x", TensorType::Fp32, &[None, None])]);
            if let Ok(tensors) = read(json.as_bytes(), &one) {
                prop_assert!(one.check(&tensors).is_ok());
            }
        }

        #[test]
        fn what_is_written_is_read(rows in 1u64..4, columns in 1u64..4, seed in any::<i64>()) {
            let values: Vec<i64> = (0..rows * columns).map(|at| seed.wrapping_mul(at as i64 + 1)).collect();
            let tensors = vec![(String::from("x"), Tensor::from_i64(vec![rows, columns], &values).unwrap())];
            let one = signature(&[("x", TensorType::I64, &[None, None])]);
            prop_assert_eq!(read(&write(&tensors).unwrap(), &one).unwrap(), tensors);
        }
    }
}
