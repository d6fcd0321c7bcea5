//! A call of a model, and its answer, as the Open Inference Protocol v2 writes them over HTTP: JSON, and behind it the tensors that are
//! sent in binary, in the order in which the JSON names them (the protocol's binary tensor data extension).
//!
//! ```text
//!   {"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}]}  ‖  16 bytes
//!   └──────────────── as many bytes as Inference-Header-Content-Length says ────────────────────┘
//! ```
//! The same bytes are a message's payload where a Swarm is called by the protocol, so a stage reads what the door wrote. Binary tensors share the
//! body's memory. Sources: the Open Inference Protocol's `rest` specification and Triton's `extension_binary_data`.
//!
//! Fields and parameters that are not known here are passed over, as the protocol asks; those that would change what a call means are refused
//! ([`OipError::Unsupported`]).

pub mod plain;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::limits::{
    CALL_BYTES_MAX, CALL_JSON_BYTES_MAX, CALL_PARAMETERS_MAX, CALL_TENSORS_MAX, TENSOR_NAME_BYTES_MAX, TENSOR_RANK_MAX,
};
use crate::predict::Tensors;
use crate::tensor::{Tensor, TensorData, TensorError, TensorType};

/// The HTTP header that says how many bytes of a body are JSON, where tensors in binary follow. As a message's header it is written the same.
pub const JSON_LENGTH_HEADER: &str = "inference-header-content-length";

/// Parameters of the binary tensor data extension.
const BINARY_SIZE: &str = "binary_data_size";
const BINARY: &str = "binary_data";
const BINARY_ALL: &str = "binary_data_output";
/// Of Triton's schedule policy extension: microseconds.
const TIMEOUT: &str = "timeout";

/// What is wrong with a call or an answer. The texts are for whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OipError {
    /// To be mended.
    #[error("{0}")]
    Invalid(String),
    /// A bound is passed.
    #[error("{0}")]
    TooLarge(String),
    /// Allowed by the protocol or one of its extensions, and not done here.
    #[error("{0}")]
    Unsupported(String),
}

impl OipError {
    fn of_tensor(what: &str, name: &str, error: &TensorError) -> Self {
        let text = format!("{what} {name:?}: {error}");
        match error {
            TensorError::TooLarge { .. } => Self::TooLarge(text),
            _ => Self::Invalid(text),
        }
    }
}

impl From<TensorError> for OipError {
    fn from(error: TensorError) -> Self {
        match error {
            TensorError::TooLarge { .. } => Self::TooLarge(error.to_string()),
            _ => Self::Invalid(error.to_string()),
        }
    }
}

/// A parameter of a call or a tensor. The protocol has no others; lists, objects and `null` are passed over.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Parameter {
    Bool(bool),
    Int(i64),
    /// Beyond what `Int` holds.
    Unsigned(u64),
    Float(f64),
    Text(String),
}

/// By name.
pub type Parameters = BTreeMap<String, Parameter>;

/// A body, and how much of it is JSON: all where nothing is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub bytes: Bytes,
    /// The value of [`JSON_LENGTH_HEADER`].
    pub json_length: Option<usize>,
}

/// An output that a call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub name: String,
    /// In binary, or not; `None`: as the call says for all.
    pub binary: Option<bool>,
}

/// A call.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Request {
    /// Given back with the answer; empty: none.
    pub id: String,
    /// All but those of the binary tensor data extension.
    pub parameters: Parameters,
    pub inputs: Tensors,
    /// Empty: all that there are.
    pub outputs: Vec<Wanted>,
    /// Outputs in binary where nothing is said of one.
    pub binary_all: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Response {
    /// The model's name, or what was called in its place; empty where a Bee wrote the answer and left it out.
    pub model: String,
    /// Empty: none.
    pub version: String,
    /// Empty: none.
    pub id: String,
    pub parameters: Parameters,
    pub outputs: Tensors,
}

// ------------------------------------------------------------------------------------------------------------- in

#[derive(Deserialize)]
struct RequestHead<'a> {
    id: Option<String>,
    #[serde(default, deserialize_with = "parameters")]
    parameters: Parameters,
    #[serde(borrow, deserialize_with = "few")]
    inputs: Vec<TensorHead<'a>>,
    #[serde(default, deserialize_with = "few")]
    outputs: Vec<WantedHead>,
}

#[derive(Deserialize)]
struct ResponseHead<'a> {
    model_name: Option<String>,
    model_version: Option<String>,
    id: Option<String>,
    #[serde(default, deserialize_with = "parameters")]
    parameters: Parameters,
    #[serde(borrow, deserialize_with = "few")]
    outputs: Vec<TensorHead<'a>>,
}

#[derive(Deserialize)]
struct TensorHead<'a> {
    name: String,
    datatype: String,
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    #[serde(default, deserialize_with = "parameters")]
    parameters: Parameters,
    /// Read once type and shape are known, wherever they stand.
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WantedHead {
    name: String,
    #[serde(default, deserialize_with = "parameters")]
    parameters: Parameters,
}

impl Request {
    /// Reads a body. `json_length`: what [`JSON_LENGTH_HEADER`] says; without it all of the body is JSON.
    ///
    /// # Errors
    /// [`OipError`], for the caller.
    pub fn read(body: &Bytes, json_length: Option<usize>) -> Result<Self, OipError> {
        bound(body)?;
        let json = match json_length {
            Some(length) => body.get(..length).ok_or_else(|| beyond(length, body.len()))?,
            None => body,
        };
        if json.len() > CALL_JSON_BYTES_MAX {
            return Err(too_much_json(json.len()));
        }
        let mut head: RequestHead<'_> = serde_json::from_slice(json).map_err(|error| {
            let hint = if json_length.is_none() && error.to_string().starts_with("trailing characters") {
                "; where tensors in binary follow the JSON, the header Inference-Header-Content-Length says how long the JSON is"
            } else {
                ""
            };
            OipError::Invalid(format!("the request is no JSON of an inference request: {error}{hint}"))
        })?;
        refuse_call_extensions(&head.parameters)?;
        let binary_all = flag("the request", BINARY_ALL, head.parameters.remove(BINARY_ALL))?.unwrap_or(false);
        let inputs = tensors("input", head.inputs, body, json.len())?;
        let mut outputs: Vec<Wanted> = Vec::with_capacity(head.outputs.len());
        for mut wanted in head.outputs {
            let name = checked_name("output", wanted.name)?;
            let what = format!("output {name:?}");
            refuse_tensor_extensions(&what, &wanted.parameters)?;
            if outputs.iter().any(|other| other.name == name) {
                return Err(OipError::Invalid(format!("output {name:?} is asked for twice")));
            }
            let binary = flag(&what, BINARY, wanted.parameters.remove(BINARY))?;
            outputs.push(Wanted { name, binary });
        }
        Ok(Self {
            id: head.id.unwrap_or_default(),
            parameters: head.parameters,
            inputs,
            outputs,
            binary_all,
        })
    }

    /// Whether the caller takes an output in binary.
    #[must_use]
    pub fn binary(&self, output: &str) -> bool {
        let own = self.outputs.iter().find(|wanted| wanted.name == output);
        own.and_then(|wanted| wanted.binary).unwrap_or(self.binary_all)
    }

    /// Of a model's outputs those that are asked for, in that order.
    ///
    /// # Errors
    /// Another is asked for than there is.
    pub fn select(&self, mut outputs: Tensors) -> Result<Tensors, OipError> {
        if self.outputs.is_empty() {
            return Ok(outputs);
        }
        self.check_outputs(outputs.iter().map(|(name, _)| name.as_str()))?;
        let mut selected = Tensors::with_capacity(self.outputs.len());
        for wanted in &self.outputs {
            // Each is asked for once, so none is missed.
            if let Some(at) = outputs.iter().position(|(name, _)| *name == wanted.name) {
                selected.push(outputs.swap_remove(at));
            }
        }
        Ok(selected)
    }

    /// That no other outputs are asked for than there are: to be asked before the work is done.
    ///
    /// # Errors
    /// The first that there is not.
    pub fn check_outputs<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Result<(), OipError> {
        let unknown = self
            .outputs
            .iter()
            .find(|wanted| !known.clone().any(|name| name == wanted.name));
        match unknown {
            None => Ok(()),
            Some(wanted) => {
                let known: Vec<&str> = known.collect();
                Err(OipError::Invalid(format!(
                    "there is no output {:?}: the outputs are {}",
                    wanted.name,
                    known.join(", ")
                )))
            }
        }
    }

    /// How long the caller waits, in milliseconds, rounded up: the parameter `timeout` is in microseconds, and 0 says nothing.
    ///
    /// # Errors
    /// It is no number of microseconds.
    pub fn timeout_ms(&self) -> Result<Option<u64>, OipError> {
        let us = match self.parameters.get(TIMEOUT) {
            None => return Ok(None),
            Some(Parameter::Int(us)) => u64::try_from(*us).ok(),
            Some(Parameter::Unsigned(us)) => Some(*us),
            Some(_) => None,
        };
        let us = us.ok_or_else(|| {
            OipError::Invalid(String::from(
                "the parameter \"timeout\" is no whole number of microseconds from 0 up",
            ))
        })?;
        Ok((us > 0).then(|| us.div_ceil(1_000)))
    }

    /// Writes a body: inputs in binary as `binary` says by name, the others as JSON.
    ///
    /// # Errors
    /// Too large; or an input that JSON cannot say, which names it.
    pub fn write(&self, binary: impl Fn(&str) -> bool) -> Result<Body, OipError> {
        let mut parameters = self.parameters.clone();
        if self.binary_all {
            parameters.insert(BINARY_ALL.to_owned(), Parameter::Bool(true));
        }
        let outputs = self.outputs.iter().map(|wanted| WantedOut {
            name: &wanted.name,
            parameters: wanted.binary.map(|binary| BinaryOut { binary_data: binary }),
        });
        let out = RequestOut {
            id: &self.id,
            parameters,
            inputs: heads("input", &self.inputs, &binary),
            outputs: outputs.collect(),
        };
        write(&out, &self.inputs, binary)
    }
}

impl Response {
    /// Reads a body. Without `json_length` the JSON ends where its object does, and what is left is binary: so a Bee's response, which
    /// has no headers, is read too.
    ///
    /// # Errors
    /// [`OipError`], for whoever wrote the answer.
    pub fn read(body: &Bytes, json_length: Option<usize>) -> Result<Self, OipError> {
        bound(body)?;
        let most = match json_length {
            Some(length) if length > body.len() => return Err(beyond(length, body.len())),
            Some(length) => length,
            None => body.len().min(CALL_JSON_BYTES_MAX),
        };
        if most > CALL_JSON_BYTES_MAX {
            return Err(too_much_json(most));
        }
        let bad = |error: &dyn fmt::Display| {
            OipError::Invalid(format!("the response is no JSON of an inference response: {error}"))
        };
        let mut values = serde_json::Deserializer::from_slice(&body[..most]).into_iter::<ResponseHead<'_>>();
        let head = match values.next() {
            Some(Ok(head)) => head,
            Some(Err(error)) if error.is_eof() && most < body.len() && json_length.is_none() => {
                return Err(too_much_json(body.len()));
            }
            Some(Err(error)) => return Err(bad(&error)),
            None => return Err(bad(&"it is empty")),
        };
        let end = json_length.unwrap_or(values.byte_offset());
        let rest = &body[values.byte_offset()..end];
        if !rest.trim_ascii().is_empty() {
            return Err(bad(&"there is more behind its JSON than the length of the JSON says"));
        }
        Ok(Self {
            model: head.model_name.unwrap_or_default(),
            version: head.model_version.unwrap_or_default(),
            id: head.id.unwrap_or_default(),
            parameters: head.parameters,
            outputs: tensors("output", head.outputs, body, end)?,
        })
    }

    /// Writes a body: outputs in binary as `binary` says by name, the others as JSON.
    ///
    /// # Errors
    /// As [`Request::write`].
    pub fn write(&self, binary: impl Fn(&str) -> bool) -> Result<Body, OipError> {
        let out = ResponseOut {
            model_name: &self.model,
            model_version: &self.version,
            id: &self.id,
            parameters: &self.parameters,
            outputs: heads("output", &self.outputs, &binary),
        };
        write(&out, &self.outputs, binary)
    }
}

/// Whether JSON is meant as an inference request: an object whose `inputs` are a list of objects. Plain JSON ([`plain`]) has none, whatever
/// the inputs of a model are called. Whether it is a good one is told by [`Request::read`].
#[must_use]
pub fn is_request(json: &[u8]) -> bool {
    lists(json, "inputs").is_some_and(|first| first == Some(b'{'))
}

/// Whether a response is meant as an inference response: as [`is_request`], with `outputs`, which may be empty. Binary data may follow.
#[must_use]
pub fn is_response(response: &[u8]) -> bool {
    lists(response, "outputs").is_some_and(|first| matches!(first, Some(b'{' | b']')))
}

/// The first byte in the list that an object has by a name. None where it has no list there.
fn lists(json: &[u8], key: &'static str) -> Option<Option<u8>> {
    struct Find(&'static str);

    impl<'de> Visitor<'de> for Find {
        type Value = Option<Option<u8>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an object with a list `{}`", self.0)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(name) = map.next_key::<String>()? {
                if name != self.0 {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                let value = map.next_value::<&RawValue>()?.get();
                let list = value.strip_prefix('[').map(str::trim_start);
                found = list.map(|list| list.bytes().next());
            }
            Ok(found)
        }
    }

    if json.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let mut from = serde_json::Deserializer::from_slice(json);
    from.deserialize_map(Find(key)).ok().flatten()
}

fn bound(body: &Bytes) -> Result<(), OipError> {
    if body.len() > CALL_BYTES_MAX {
        return Err(OipError::TooLarge(format!(
            "the body has {} bytes, at most {CALL_BYTES_MAX} are allowed: send fewer rows at once",
            body.len()
        )));
    }
    Ok(())
}

fn beyond(length: usize, body: usize) -> OipError {
    OipError::Invalid(format!(
        "the header Inference-Header-Content-Length says that {length} bytes are JSON, but the body has {body}"
    ))
}

fn too_much_json(bytes: usize) -> OipError {
    OipError::TooLarge(format!(
        "{bytes} bytes of JSON, at most {CALL_JSON_BYTES_MAX} are allowed: send the tensors in binary, or fewer rows at once"
    ))
}

/// A tensor's name, if it may be one. `what`: `input` or `output`.
///
/// # Errors
/// It is empty or too long.
pub fn checked_name(what: &str, name: String) -> Result<String, OipError> {
    if name.is_empty() || name.len() > TENSOR_NAME_BYTES_MAX {
        return Err(OipError::Invalid(format!(
            "an {what}'s name has {} bytes: from 1 to {TENSOR_NAME_BYTES_MAX} are allowed",
            name.len()
        )));
    }
    Ok(name)
}

/// That a call asks for no sequence: its parameters.
///
/// # Errors
/// [`OipError::Unsupported`].
pub fn refuse_call_extensions(parameters: &Parameters) -> Result<(), OipError> {
    for name in ["sequence_id", "sequence_start", "sequence_end"] {
        match parameters.get(name) {
            // What clients send where nobody asked for a sequence.
            None | Some(Parameter::Int(0) | Parameter::Bool(false)) => {}
            Some(Parameter::Text(text)) if text.is_empty() => {}
            Some(_) => {
                return Err(OipError::Unsupported(format!(
                    "the parameter {name:?} is not supported: calls of a model are independent; state is kept by a stage with a `key`"
                )));
            }
        }
    }
    Ok(())
}

/// That a tensor is what it is called: neither in shared memory nor a classification. `what` names it in the error.
///
/// # Errors
/// [`OipError::Unsupported`].
pub fn refuse_tensor_extensions(what: &str, parameters: &Parameters) -> Result<(), OipError> {
    let unsupported = |why: &str| Err(OipError::Unsupported(format!("{what}: {why}")));
    if parameters.keys().any(|name| name.starts_with("shared_memory_")) {
        return unsupported("shared memory is not supported: send the tensor, in binary where it is large");
    }
    match parameters.get("classification") {
        None | Some(Parameter::Int(0)) => Ok(()),
        Some(_) => unsupported("classification is not supported: take the tensor and sort it"),
    }
}

fn flag(what: &str, name: &str, value: Option<Parameter>) -> Result<Option<bool>, OipError> {
    match value {
        None => Ok(None),
        Some(Parameter::Bool(value)) => Ok(Some(value)),
        Some(_) => Err(OipError::Invalid(format!(
            "{what}: the parameter {name:?} is neither true nor false"
        ))),
    }
}

/// Tensors as their heads say, those in binary from `at` on, one behind the other, to the end of the body.
fn tensors(what: &str, heads: Vec<TensorHead<'_>>, body: &Bytes, mut at: usize) -> Result<Tensors, OipError> {
    let mut read = Tensors::with_capacity(heads.len());
    let mut names = std::collections::HashSet::with_capacity(heads.len());
    for head in heads {
        let name = checked_name(what, head.name)?;
        let wrong = |why: &str| Err(OipError::Invalid(format!("{what} {name:?} {why}")));
        let bad = |error: TensorError| OipError::of_tensor(what, &name, &error);
        if !names.insert(name.clone()) {
            return wrong("is given twice");
        }
        refuse_tensor_extensions(&format!("{what} {name:?}"), &head.parameters)?;
        let kind: TensorType = head.datatype.parse().map_err(bad)?;
        let size = match head.parameters.get(BINARY_SIZE) {
            None => None,
            Some(Parameter::Int(size)) if *size >= 0 => Some(usize::try_from(*size).unwrap_or(usize::MAX)),
            Some(_) => return wrong("has a parameter \"binary_data_size\" that is no whole number from 0 up"),
        };
        let tensor = match (size, head.data) {
            (Some(_), Some(_)) => return wrong("has both `data` and \"binary_data_size\": expected one of them"),
            (None, None) => return wrong("has no `data`, and no parameter \"binary_data_size\""),
            (None, Some(data)) => Tensor::from_data(kind, head.shape, data).map_err(bad)?,
            (Some(size), None) => {
                let left = body.len() - at;
                if size > left {
                    return wrong(&format!(
                        "has a binary size of {size} bytes, but only {left} are left of the body behind its JSON and the tensors before"
                    ));
                }
                let tensor = Tensor::new(kind, head.shape, body.slice(at..at + size)).map_err(bad)?;
                at += size;
                tensor
            }
        };
        read.push((name, tensor));
    }
    let rest = &body[at..];
    // Text may end in a newline; binary data is counted to the byte.
    let binary = read.iter().any(|(_, tensor)| shares(tensor.bytes(), body));
    if rest.is_empty() || (!binary && rest.trim_ascii().is_empty()) {
        Ok(read)
    } else {
        Err(OipError::Invalid(format!(
            "{} bytes are left of the body behind the last {what}: the binary sizes do not add up to it",
            rest.len()
        )))
    }
}

/// Whether these bytes lie in a body.
fn shares(bytes: &Bytes, body: &Bytes) -> bool {
    !bytes.is_empty() && body.as_ptr_range().contains(&bytes.as_ptr())
}

/// A list of no more entries than a call may have; `null` and nothing are an empty one.
fn few<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    list(from, CALL_TENSORS_MAX)
}

fn shape<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
    list(from, TENSOR_RANK_MAX)
}

fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D, most: usize) -> Result<Vec<T>, D::Error> {
    struct Few<T>(usize, PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Few<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {}", self.0)
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                if all.len() == self.0 {
                    return Err(A::Error::custom(format!(
                        "a list of more than the {} that are allowed",
                        self.0
                    )));
                }
                all.push(one);
            }
            Ok(all)
        }
    }

    from.deserialize_any(Few(most, PhantomData))
}

fn parameters<'de, D: Deserializer<'de>>(from: D) -> Result<Parameters, D::Error> {
    struct All;

    impl<'de> Visitor<'de> for All {
        type Value = Parameters;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of parameters")
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Parameters, E> {
            Ok(Parameters::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
            let mut all = Parameters::new();
            while let Some((name, Read(value))) = map.next_entry::<String, Read>()? {
                let Some(value) = value else { continue };
                if all.len() == CALL_PARAMETERS_MAX {
                    return Err(A::Error::custom(format!(
                        "more than the {CALL_PARAMETERS_MAX} parameters that are allowed"
                    )));
                }
                if all.insert(name.clone(), value).is_some() {
                    return Err(A::Error::custom(format!("the parameter {name:?} is given twice")));
                }
            }
            Ok(all)
        }
    }

    /// A parameter, or something else.
    struct Read(Option<Parameter>);

    impl<'de> Deserialize<'de> for Read {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_any(One).map(Self)
        }
    }

    struct One;

    impl<'de> Visitor<'de> for One {
        type Value = Option<Parameter>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a parameter")
        }

        fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
            Ok(Some(Parameter::Bool(value)))
        }

        fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
            Ok(Some(Parameter::Int(value)))
        }

        fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
            Ok(Some(
                i64::try_from(value).map_or(Parameter::Unsigned(value), Parameter::Int),
            ))
        }

        fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
            Ok(Some(Parameter::Float(value)))
        }

        fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
            Ok(Some(Parameter::Text(value.to_owned())))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    }

    from.deserialize_any(All)
}

// ------------------------------------------------------------------------------------------------------------ out

#[derive(Serialize)]
struct RequestOut<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    parameters: Parameters,
    inputs: Vec<TensorOut<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<WantedOut<'a>>,
}

#[derive(Serialize)]
struct ResponseOut<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    model_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    model_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    parameters: &'a Parameters,
    outputs: Vec<TensorOut<'a>>,
}

#[derive(Serialize)]
struct TensorOut<'a> {
    name: &'a str,
    datatype: TensorType,
    shape: &'a [u64],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<SizeOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<DataOut<'a>>,
}

#[derive(Serialize)]
struct SizeOut {
    binary_data_size: usize,
}

#[derive(Serialize)]
struct WantedOut<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinaryOut>,
}

#[derive(Serialize)]
struct BinaryOut {
    binary_data: bool,
}

/// Data whose failure says which tensor it is of.
struct DataOut<'a> {
    what: &'static str,
    name: &'a str,
    data: TensorData<'a>,
}

impl Serialize for DataOut<'_> {
    fn serialize<S: Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
        let named = |error| S::Error::custom(format!("{} {:?}: {error}", self.what, self.name));
        self.data.serialize(into).map_err(named)
    }
}

fn heads<'a>(what: &'static str, tensors: &'a Tensors, binary: &impl Fn(&str) -> bool) -> Vec<TensorOut<'a>> {
    let head = |(name, tensor): &'a (String, Tensor)| {
        let binary = binary(name);
        TensorOut {
            name,
            datatype: tensor.kind(),
            shape: tensor.shape(),
            parameters: binary.then(|| SizeOut {
                binary_data_size: tensor.bytes().len(),
            }),
            data: (!binary).then(|| DataOut {
                what,
                name,
                data: tensor.data(),
            }),
        }
    };
    tensors.iter().map(head).collect()
}

fn write(out: &impl Serialize, tensors: &Tensors, binary: impl Fn(&str) -> bool) -> Result<Body, OipError> {
    let behind: Vec<&Bytes> = tensors
        .iter()
        .filter(|(name, _)| binary(name))
        .map(|(_, tensor)| tensor.bytes())
        .collect();
    let length: usize = behind.iter().map(|bytes| bytes.len()).sum();
    let mut into = write_json(out)?;
    let json_length = into.len();
    if json_length.saturating_add(length) > CALL_BYTES_MAX {
        return Err(OipError::TooLarge(format!(
            "{} bytes of tensors in one body, at most {CALL_BYTES_MAX} are allowed: ask for fewer rows or outputs at once",
            json_length.saturating_add(length)
        )));
    }
    into.reserve_exact(length);
    for bytes in &behind {
        into.extend_from_slice(bytes);
    }
    Ok(Body {
        bytes: into.into(),
        json_length: (!behind.is_empty()).then_some(json_length),
    })
}

/// JSON, up to its bound.
fn write_json(out: &impl Serialize) -> Result<Vec<u8>, OipError> {
    let mut into = Bounded {
        bytes: Vec::new(),
        over: false,
    };
    match serde_json::to_writer(&mut into, out) {
        Ok(()) => Ok(into.bytes),
        Err(_) if into.over => Err(OipError::TooLarge(format!(
            "more than the {CALL_JSON_BYTES_MAX} bytes of JSON that are allowed: ask for binary data, or for fewer rows at once"
        ))),
        Err(error) => Err(OipError::Invalid(error.to_string())),
    }
}

struct Bounded {
    bytes: Vec<u8>,
    over: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > CALL_JSON_BYTES_MAX - self.bytes.len() {
            self.over = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
