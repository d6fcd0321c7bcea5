//! What an uploaded model is, found without running it and almost without memory.
//!
//! [`inspect`] walks the file as it lies. It keeps names (borrowed) and counts, so it takes a small multiple of the file at worst, and
//! refuses what a backend could be led astray by: files outside, operators that are not ONNX's, tensors whose bytes are not what their shape
//! says, values that nothing makes, graphs too deep. **It is meant to run in a confined process**, as every look at an upload does;
//! [`crate::prove`] is the second step there and loads and runs what was found. A node that holds a model which passed both
//! repeats exactly that, so it meets nothing that the confined process has not met.
//!
//! Fields and their numbers are those of `onnx.proto3` (onnx/onnx, IR version 11).

mod wire;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use skep_model::limits::{TENSOR_NAME_BYTES_MAX, TENSOR_RANK_MAX};
use skep_model::tensor::{Port, Signature, TensorType};
use thiserror::Error;

use crate::limits::{Limits, MODEL_NAME_BYTES_MAX, OPSET_MAX, OPSET_MIN, OPSET_ML_MAX, PORTS_MAX};
use wire::{Fields, Value};

/// What is known of a model from its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    pub signature: Signature,
    /// The version of ONNX's operators.
    pub opset: u64,
    /// Who made it, as it says itself: name and version, cut to 128 characters. It may be empty.
    pub producer: String,
    /// Bytes of the tensors that it carries.
    pub weights_bytes: u64,
    /// Nodes of all graphs.
    pub nodes: usize,
    /// Whether the signature lets calls be put together by rows. That rows do not depend on each other is tried at load.
    pub batchable: bool,
    /// The first node whose output is as large as a *value* says that is not part of the model. Who calls the model would choose
    /// how much memory it takes, so only a backend that bounds shapes otherwise loads it.
    pub grows: Option<String>,
    /// The first node that divides whole numbers by what may be 0 or -1. A processor that is asked for 1/0, or for the least number
    /// over -1, ends the process, and who calls the model would choose that; so only a backend that checks loads it.
    #[serde(default)]
    pub divides: Option<String>,
}

/// Why a model is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    #[error("this is no ONNX model: {0}. Push the .onnx file itself, neither compressed nor in another format")]
    NotOnnx(String),
    #[error("the model is broken: {0}. Export it anew, and try onnx.checker.check_model on it")]
    Broken(String),
    #[error("the model has {what}: {got}, of which {max} are allowed")]
    TooMuch { what: &'static str, got: u64, max: u64 },
    #[error(
        "tensor {0:?} is kept in another file: a model is one file. Save it with onnx.save_model(model, path, save_as_external_data=False)"
    )]
    External(String),
    #[error(
        "node {node:?} uses operator {operator:?} of {domain:?}, which is not ONNX's own: export the model with standard operators only"
    )]
    Custom {
        node: String,
        operator: String,
        domain: String,
    },
    #[error(
        "the model is made for version {got} of {domain}; {min} to {max} are supported: export it with target_opset={max}, or convert it"
    )]
    Opset {
        domain: &'static str,
        got: u64,
        min: u64,
        max: u64,
    },
    #[error("the model has {0}, which is not supported here: {1}")]
    Unsupported(&'static str, &'static str),
    #[error("{side} {name:?}: {why}")]
    Port {
        side: &'static str,
        name: String,
        why: &'static str,
    },
    #[error("no backend of this node has operator {operator:?}, which node {node:?} uses")]
    Operator { node: String, operator: String },
    #[error("the model cannot be prepared: {0}")]
    Load(String),
    #[error("the model cannot be run: {0}")]
    Run(String),
}

/// What a model is. The module's documentation says where this should run, and what comes after it.
///
/// # Errors
/// The first thing for which the model is refused.
pub fn inspect(bytes: &[u8], limits: &Limits) -> Result<Described, Refusal> {
    if bytes.len() > limits.bytes {
        return Err(Refusal::TooMuch {
            what: "bytes",
            got: bytes.len() as u64,
            max: limits.bytes as u64,
        });
    }
    if bytes.is_empty() {
        return Err(Refusal::NotOnnx(String::from("it is empty")));
    }
    let mut walk = Walk {
        limits,
        unpacked: 0,
        nodes: 0,
        tensors: 0,
        attributes: 0,
        weights: 0,
        grows: None,
        divides: None,
        scopes: Vec::new(),
    };
    walk.model(bytes)
}

/// For a fuzzer: any bytes, nothing but an answer.
pub fn fuzz(bytes: &[u8]) {
    let _ = inspect(bytes, &Limits::default());
}

/// What was met on the way.
struct Walk<'l, 'a> {
    limits: &'l Limits,
    unpacked: u64,
    nodes: usize,
    tensors: usize,
    attributes: usize,
    weights: u64,
    grows: Option<String>,
    divides: Option<String>,
    /// Values that can be named, of this graph and those around it.
    scopes: Vec<Scope<'a>>,
}

#[derive(Default)]
struct Scope<'a> {
    values: HashSet<&'a str>,
    /// Those of them that are part of the model.
    constants: HashSet<&'a str>,
    /// Those that certainly have fractions.
    fractions: HashSet<&'a str>,
    /// Those that are part of the model, whole, and neither 0 nor -1 anywhere.
    divisors: HashSet<&'a str>,
}

/// A tensor that the model carries.
struct Carried<'a> {
    name: &'a str,
    kind: u64,
    /// See [`Scope::divisors`].
    divisor: bool,
}

/// What is looked at of the attributes of a node.
#[derive(Default)]
struct Attributes<'a> {
    graphs: Vec<&'a [u8]>,
    /// What `Cast` makes, and of a `Constant`'s tensor.
    to: Option<u64>,
    kind: Option<u64>,
    divisor: bool,
}

/// What one message takes when it is unpacked, about: the largest, a node, has some 200 bytes beside what it points to.
const MESSAGE_BYTES: u64 = 256;
const TEXT_BYTES: u64 = 24;
const NUMBER_BYTES: u64 = 8;

/// None where any size will do.
type Dims = Vec<Option<u64>>;

/// One value of a graph.
struct ValueInfo<'a> {
    name: &'a str,
    /// None: a type other than tensors.
    kind: Option<u64>,
    shape: Option<Dims>,
}

impl<'a> Walk<'_, 'a> {
    fn model(&mut self, bytes: &'a [u8]) -> Result<Described, Refusal> {
        let mut fields = Fields::new("the model", bytes);
        let (mut producer, mut version) = ("", "");
        let (mut graph, mut ir, mut opset, mut ml) = (None, 0, None, None);
        while let Some((number, value)) = fields.next().map_err(not_onnx)? {
            match number {
                1 => {
                    fields.once(number)?;
                    ir = fields.number(value)?;
                }
                2 | 3 | 4 | 6 => {
                    fields.once(number)?;
                    let text = fields.text(value).map_err(not_onnx)?;
                    match number {
                        2 => producer = text,
                        3 => version = text,
                        _ => {}
                    }
                }
                5 => fields.once(number)?,
                7 => {
                    fields.once(number)?;
                    graph = Some(fields.bytes(value).map_err(not_onnx)?);
                }
                8 => {
                    self.unpack(MESSAGE_BYTES)?;
                    let (domain, of) = operators(fields.bytes(value)?)?;
                    match domain {
                        "" | "ai.onnx" => opset = Some(opset.map_or(of, |other: u64| other.max(of))),
                        "ai.onnx.ml" => ml = Some(ml.map_or(of, |other: u64| other.max(of))),
                        // Tools name domains that no node uses.
                        _ => {}
                    }
                }
                14 => self.unpack(MESSAGE_BYTES)?,
                20 => return Err(Refusal::Unsupported("training information", "export it for inference")),
                25 => {
                    return Err(Refusal::Unsupported(
                        "functions of its own",
                        "inline them with onnx.inliner.inline_local_functions",
                    ));
                }
                _ => {}
            }
        }
        // A text or an image may by chance be fields; a version and a graph it will not have.
        let Some(graph) = graph else {
            return Err(Refusal::NotOnnx(String::from("there is no graph in it")));
        };
        if !(3..=13).contains(&ir) {
            return Err(Refusal::NotOnnx(format!(
                "its format is version {ir}, where 3 to 13 are known"
            )));
        }
        for (domain, got, max) in [("ai.onnx", opset, OPSET_MAX), ("ai.onnx.ml", ml, OPSET_ML_MAX)] {
            let min = if domain == "ai.onnx" { OPSET_MIN } else { 1 };
            if let Some(got) = got.filter(|got| !(min..=max).contains(got)) {
                return Err(Refusal::Opset { domain, got, min, max });
            }
        }
        let Some(opset) = opset.or(ml.map(|_| OPSET_MIN)) else {
            return Err(Refusal::Broken(String::from(
                "it does not say which version of ONNX's operators it uses",
            )));
        };
        let signature = self.graph(graph, 0)?;
        let mut made_by = producer.to_owned();
        if !version.is_empty() {
            made_by.push(' ');
            made_by.push_str(version);
        }
        Ok(Described {
            batchable: signature.batchable(),
            signature,
            opset,
            producer: made_by.chars().filter(|c| !c.is_control()).take(128).collect(),
            weights_bytes: self.weights,
            nodes: self.nodes,
            grows: self.grows.take(),
            divides: self.divides.take(),
        })
    }

    fn unpack(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.unpacked = self.unpacked.saturating_add(bytes);
        let max = self.limits.unpacked_bytes;
        if self.unpacked > max {
            return Err(Refusal::TooMuch {
                what: "bytes when it is unpacked",
                got: self.unpacked,
                max,
            });
        }
        Ok(())
    }

    fn name(&mut self, fields: &Fields<'a>, value: Value<'a>) -> Result<&'a str, Refusal> {
        let name = fields.text(value)?;
        self.unpack(TEXT_BYTES + name.len() as u64)?;
        if name.len() > MODEL_NAME_BYTES_MAX {
            let got = name.len() as u64;
            return Err(Refusal::TooMuch {
                what: "a name of so many bytes",
                got,
                max: MODEL_NAME_BYTES_MAX as u64,
            });
        }
        Ok(name)
    }

    /// Initializers and inputs first, wherever they lie, then nodes, which may name what came before them only.
    fn graph(&mut self, bytes: &'a [u8], depth: usize) -> Result<Signature, Refusal> {
        if depth >= self.limits.graphs_deep {
            let max = self.limits.graphs_deep as u64;
            return Err(Refusal::TooMuch {
                what: "graphs inside each other",
                got: depth as u64 + 1,
                max,
            });
        }
        self.unpack(MESSAGE_BYTES)?;
        self.scopes.push(Scope::default());
        let (mut inputs, mut outputs, mut constants) = (Vec::new(), Vec::new(), HashSet::new());
        let mut fields = Fields::new("a graph", bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                5 => {
                    let carried = self.tensor(fields.bytes(value)?)?;
                    if carried.name.is_empty() || !constants.insert(carried.name) {
                        return Err(Refusal::Broken(format!(
                            "its initializer {:?} has no name of its own",
                            cut(carried.name)
                        )));
                    }
                    self.scope().carries(carried.name, carried.kind, carried.divisor);
                }
                11 => inputs.push(self.value_info(fields.bytes(value)?)?),
                12 => outputs.push(self.value_info(fields.bytes(value)?)?),
                13 => {
                    self.value_info(fields.bytes(value)?)?;
                }
                15 => return Err(Refusal::Unsupported("sparse tensors", "export it with dense ones")),
                2 | 10 => {
                    fields.once(number)?;
                    fields.text(value)?;
                }
                14 => self.unpack(MESSAGE_BYTES)?,
                1 => {
                    fields.bytes(value)?;
                }
                _ => {}
            }
            // Before IR 4 initializers were inputs too, so that many lie there.
            let ports = (inputs.len().saturating_sub(constants.len())).max(outputs.len());
            if ports > self.limits.tensors {
                return Err(Refusal::TooMuch {
                    what: "inputs or outputs",
                    got: ports as u64,
                    max: PORTS_MAX as u64,
                });
            }
        }
        inputs.retain(|input: &ValueInfo<'_>| !constants.contains(input.name));
        let scope = self.scope();
        scope.values.extend(&constants);
        scope.constants = constants;
        for input in &inputs {
            if input.name.is_empty() || !self.scope().values.insert(input.name) {
                return Err(Refusal::Broken(format!(
                    "its input {:?} has no name of its own",
                    cut(input.name)
                )));
            }
            if input.kind.is_some_and(fraction) {
                self.scope().fractions.insert(input.name);
            }
        }
        let mut fields = Fields::new("a graph", bytes);
        while let Some((number, value)) = fields.next()? {
            if number == 1 {
                self.node(fields.bytes(value)?, depth)?;
            }
        }
        for output in &outputs {
            // An output of an inner graph may be a value of the graph around it.
            if !self.known(output.name) {
                return Err(Refusal::Broken(format!(
                    "nothing makes its output {:?}",
                    cut(output.name)
                )));
            }
        }
        self.scopes.pop();
        if depth > 0 {
            return Ok(Signature {
                inputs: Vec::new(),
                outputs: Vec::new(),
            });
        }
        Ok(Signature {
            inputs: ports("input", inputs)?,
            outputs: ports("output", outputs)?,
        })
    }

    fn scope(&mut self) -> &mut Scope<'a> {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    fn known(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| scope.values.contains(name))
    }

    /// The innermost graph that has the name says what it is.
    fn of(&self, name: &str) -> Option<&Scope<'a>> {
        self.scopes.iter().rev().find(|scope| scope.values.contains(name))
    }

    fn constant(&self, name: &str) -> bool {
        self.of(name).is_some_and(|scope| scope.constants.contains(name))
    }

    fn fraction(&self, name: &str) -> bool {
        self.of(name).is_some_and(|scope| scope.fractions.contains(name))
    }

    fn node(&mut self, bytes: &'a [u8], depth: usize) -> Result<(), Refusal> {
        self.unpack(MESSAGE_BYTES)?;
        self.nodes += 1;
        if self.nodes > self.limits.nodes {
            return Err(Refusal::TooMuch {
                what: "nodes",
                got: self.nodes as u64,
                max: self.limits.nodes as u64,
            });
        }
        let mut fields = Fields::new("a node", bytes);
        let (mut name, mut operator, mut domain) = ("", "", "");
        let (mut inputs, mut outputs, mut attributes) = (Vec::new(), Vec::new(), Attributes::default());
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => inputs.push(self.name(&fields, value)?),
                2 => outputs.push(self.name(&fields, value)?),
                3 | 4 | 7 => {
                    fields.once(number)?;
                    let text = self.name(&fields, value)?;
                    match number {
                        3 => name = text,
                        4 => operator = text,
                        _ => domain = text,
                    }
                }
                5 => self.attribute(fields.bytes(value)?, &mut attributes)?,
                6 => {
                    fields.once(number)?;
                    fields.text(value)?;
                }
                _ => {}
            }
        }
        let called = if name.is_empty() {
            outputs.first().copied().unwrap_or(operator)
        } else {
            name
        };
        if !matches!(domain, "" | "ai.onnx" | "ai.onnx.ml") {
            return Err(Refusal::Custom {
                node: cut(called),
                operator: cut(operator),
                domain: cut(domain),
            });
        }
        if operator.is_empty() {
            return Err(Refusal::Broken(format!("its node {:?} has no operator", cut(called))));
        }
        for input in &inputs {
            // An empty name: an input that may be left out, and is.
            if !input.is_empty() && !self.known(input) {
                let why = format!(
                    "node {:?} takes {:?}, which nothing before it makes",
                    cut(called),
                    cut(input)
                );
                return Err(Refusal::Broken(why));
            }
        }
        if self.grows.is_none() && self.chosen_by_caller(operator, &inputs) {
            self.grows = Some(format!("{} ({})", cut(called), cut(operator)));
        }
        if self.divides.is_none() && self.divided_by_caller(operator, &inputs) {
            self.divides = Some(format!("{} ({})", cut(called), cut(operator)));
        }
        let fractions = self.makes_fractions(domain, operator, &inputs, &attributes);
        for graph in attributes.graphs {
            self.graph(graph, depth + 1)?;
        }
        for (at, output) in outputs.iter().enumerate().filter(|(_, output)| !output.is_empty()) {
            if !self.scope().values.insert(output) {
                return Err(Refusal::Broken(format!("two nodes make {:?}", cut(output))));
            }
            // A cast or another shape of what the model carries is still what it carries.
            let carried =
                operator == "Constant" || (passes_on(operator) && inputs.iter().all(|input| self.constant(input)));
            if carried {
                self.scope().constants.insert(output);
            }
            if at == 0 && fractions {
                self.scope().fractions.insert(output);
            }
            if operator == "Constant" && attributes.divisor {
                self.scope().divisors.insert(output);
            }
        }
        Ok(())
    }

    /// Whether this is a division of whole numbers by what may be 0 or -1. Both sides are of one type, so one that is known is enough.
    fn divided_by_caller(&self, operator: &str, inputs: &[&str]) -> bool {
        let safe = |name: &&str| self.of(name).is_some_and(|scope| scope.divisors.contains(name));
        matches!(operator, "Div" | "Mod")
            && !inputs.iter().any(|input| self.fraction(input))
            && !inputs.get(1).is_some_and(safe)
    }

    /// Whether the first output of a node certainly has fractions. What is not known is taken for whole.
    fn makes_fractions(&self, domain: &str, operator: &str, inputs: &[&str], attributes: &Attributes<'_>) -> bool {
        let input = |at: usize| inputs.get(at).is_some_and(|input| self.fraction(input));
        match (domain, operator) {
            ("ai.onnx.ml", _) => false,
            (_, "Constant") => attributes.kind.is_some_and(fraction),
            (_, "Cast") => attributes.to.is_some_and(fraction),
            // Defined for numbers with fractions only.
            (
                _,
                "Exp" | "Log" | "Sqrt" | "Sigmoid" | "Tanh" | "Softmax" | "LogSoftmax" | "Erf" | "Conv"
                | "BatchNormalization",
            ) => true,
            (_, "AveragePool" | "GlobalAveragePool" | "LayerNormalization" | "Gelu" | "Softplus" | "Reciprocal") => {
                true
            }
            // Both sides, or all, are of one type, which is also that of what comes out.
            (
                _,
                "Add" | "Sub" | "Mul" | "Div" | "Mod" | "MatMul" | "Gemm" | "Max" | "Min" | "Sum" | "Mean" | "Concat",
            ) => (0..inputs.len()).any(input),
            (_, "Where") => input(1) || input(2),
            (
                _,
                "Relu" | "LeakyRelu" | "PRelu" | "Clip" | "Abs" | "Neg" | "Pow" | "Floor" | "Ceil" | "Round" | "Sign",
            ) => input(0),
            (_, "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2") => {
                input(0)
            }
            (
                _,
                "Expand" | "Tile" | "Pad" | "Flatten" | "Dropout" | "MaxPool" | "GlobalMaxPool" | "Split"
                | "GatherElements",
            ) => input(0),
            (_, other) => passes_on(other) && input(0),
        }
    }

    /// Whether this operator's output is as large as a value says, and that value is not part of the model.
    fn chosen_by_caller(&self, operator: &str, inputs: &[&str]) -> bool {
        let free = |at: usize| {
            inputs
                .get(at)
                .is_some_and(|input| !input.is_empty() && !self.constant(input))
        };
        match operator {
            "ConstantOfShape" | "BlackmanWindow" | "HannWindow" | "HammingWindow" => free(0),
            "Expand" | "Tile" | "Pad" | "Upsample" | "OneHot" | "CenterCropPad" | "AffineGrid" | "Col2Im" => free(1),
            "Range" | "Resize" | "MelWeightMatrix" => (0..5).any(|at| free(at) && !(operator == "Resize" && at == 0)),
            "MaxUnpool" => free(2),
            // How often it runs is a value, and what each round gives is kept.
            "Loop" => true,
            _ => false,
        }
    }

    fn attribute(&mut self, bytes: &'a [u8], of: &mut Attributes<'a>) -> Result<(), Refusal> {
        self.unpack(MESSAGE_BYTES)?;
        self.attributes += 1;
        if self.attributes > self.limits.attributes {
            let max = self.limits.attributes as u64;
            return Err(Refusal::TooMuch {
                what: "attributes",
                got: self.attributes as u64,
                max,
            });
        }
        let mut fields = Fields::new("an attribute", bytes);
        let (mut name, mut whole) = ("", None);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    fields.once(number)?;
                    name = self.name(&fields, value)?;
                }
                3 => {
                    fields.once(number)?;
                    whole = Some(fields.number(value)?);
                }
                2 | 20 => fields.once(number)?,
                4 => {
                    fields.once(number)?;
                    let bytes = fields.bytes(value)?;
                    self.unpack(bytes.len() as u64)?;
                }
                5 => {
                    fields.once(number)?;
                    let carried = self.tensor(fields.bytes(value)?)?;
                    of.kind = Some(carried.kind);
                    of.divisor = carried.divisor;
                }
                6 => {
                    fields.once(number)?;
                    of.graphs.push(fields.bytes(value)?);
                }
                7 | 8 => {
                    let numbers = fields.numbers(value, if number == 7 { 4 } else { 0 })?;
                    self.unpack(NUMBER_BYTES * numbers as u64)?;
                }
                9 => {
                    let length = fields.bytes(value)?.len();
                    self.unpack(TEXT_BYTES + length as u64)?;
                }
                10 => {
                    self.tensor(fields.bytes(value)?)?;
                }
                11 => of.graphs.push(fields.bytes(value)?),
                13 => {
                    fields.once(number)?;
                    fields.text(value)?;
                }
                14 | 15 => {
                    return Err(Refusal::Unsupported(
                        "attributes that are types",
                        "export it without optional values",
                    ));
                }
                22 | 23 => return Err(Refusal::Unsupported("sparse tensors", "export it with dense ones")),
                21 => {
                    return Err(Refusal::Unsupported(
                        "functions of its own",
                        "inline them with onnx.inliner.inline_local_functions",
                    ));
                }
                _ => {}
            }
        }
        if name == "to" {
            of.to = whole;
        }
        Ok(())
    }

    /// A tensor that the model carries: its bytes must be what its shape says, here, not in a file.
    fn tensor(&mut self, bytes: &'a [u8]) -> Result<Carried<'a>, Refusal> {
        self.unpack(MESSAGE_BYTES)?;
        self.tensors += 1;
        if self.tensors > self.limits.tensors {
            return Err(Refusal::TooMuch {
                what: "tensors",
                got: self.tensors as u64,
                max: self.limits.tensors as u64,
            });
        }
        let mut fields = Fields::new("a tensor", bytes);
        let (mut name, mut kind, mut elements, mut rank) = ("", 0, Some(1u64), 0usize);
        let (mut raw, mut typed, mut typed_field) = (None, 0u64, 0);
        let (mut external, mut data) = (false, None);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    fields.each(value, |dim| {
                        rank += 1;
                        // A negative dimension is a large one here.
                        elements = elements.and_then(|all| all.checked_mul(dim));
                        if rank > TENSOR_RANK_MAX {
                            return Err(Refusal::TooMuch {
                                what: "a tensor of so many dimensions",
                                got: rank as u64,
                                max: TENSOR_RANK_MAX as u64,
                            });
                        }
                        Ok(())
                    })?;
                    self.unpack(NUMBER_BYTES)?;
                }
                2 => {
                    fields.once(number)?;
                    kind = fields.number(value)?;
                }
                4 | 5 | 7 | 10 | 11 => {
                    let size = match number {
                        4 => 4,
                        10 => 8,
                        _ => 0,
                    };
                    let numbers = fields.numbers(value, size)? as u64;
                    self.unpack(NUMBER_BYTES * numbers)?;
                    typed += numbers;
                    if typed_field != 0 && typed_field != number {
                        return Err(Refusal::Broken(format!("tensor {:?} has data of two kinds", cut(name))));
                    }
                    typed_field = number;
                }
                6 => {
                    let length = fields.bytes(value)?.len();
                    self.unpack(TEXT_BYTES + length as u64)?;
                    typed += 1;
                    typed_field = number;
                }
                8 => {
                    fields.once(number)?;
                    name = self.name(&fields, value)?;
                }
                9 => {
                    fields.once(number)?;
                    let bytes = fields.bytes(value)?;
                    self.unpack(bytes.len() as u64)?;
                    raw = Some(bytes.len() as u64);
                    data = Some(bytes);
                }
                12 => {
                    fields.once(number)?;
                    fields.text(value)?;
                }
                13 => external = true,
                14 => {
                    fields.once(number)?;
                    external |= fields.number(value)? != 0;
                }
                3 => return Err(Refusal::Unsupported("tensors in segments", "export it anew")),
                _ => {}
            }
        }
        if external {
            return Err(Refusal::External(cut(name)));
        }
        let Some((size, field)) = element(kind) else {
            return Err(Refusal::Broken(format!(
                "tensor {:?} has elements of kind {kind}, which is unknown here",
                cut(name)
            )));
        };
        let elements = elements.filter(|elements| {
            elements
                .checked_mul(size)
                .is_some_and(|all| all <= self.limits.bytes as u64)
        });
        let Some(elements) = elements else {
            return Err(Refusal::Broken(format!(
                "tensor {:?} says that it is larger than a whole model may be",
                cut(name)
            )));
        };
        let fits = match raw {
            Some(raw) => typed == 0 && kind != STRING && raw == elements * size,
            None => typed == elements && (typed_field == field || elements == 0),
        };
        if !fits {
            let got = raw.map_or_else(|| format!("{typed} elements"), |raw| format!("{raw} bytes"));
            let why = format!(
                "tensor {:?} has {got}, but its shape says {elements} elements of {size} bytes",
                cut(name)
            );
            return Err(Refusal::Broken(why));
        }
        self.weights = self.weights.saturating_add(elements * size);
        Ok(Carried {
            name,
            kind,
            divisor: data.is_some_and(|data| divides_safely(kind, data)),
        })
    }

    fn value_info(&mut self, bytes: &'a [u8]) -> Result<ValueInfo<'a>, Refusal> {
        self.unpack(MESSAGE_BYTES)?;
        let mut fields = Fields::new("a value", bytes);
        let mut info = ValueInfo {
            name: "",
            kind: None,
            shape: None,
        };
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    fields.once(number)?;
                    info.name = self.name(&fields, value)?;
                }
                2 => {
                    fields.once(number)?;
                    self.unpack(MESSAGE_BYTES)?;
                    let mut kinds = Fields::new("a type", fields.bytes(value)?);
                    while let Some((number, value)) = kinds.next()? {
                        // 6 is a comment on it; all others are types, of which it is one.
                        if number == 6 {
                            continue;
                        }
                        kinds.once(0)?;
                        if number == 1 {
                            let (kind, shape) = self.tensor_type(kinds.bytes(value)?)?;
                            info.kind = Some(kind);
                            info.shape = shape;
                        } else {
                            // Sequences and maps nest, and a backend reads them by calling itself.
                            return Err(Refusal::Port {
                                side: "value",
                                name: cut(info.name),
                                why: "it is no tensor but a map, a list or optional; from scikit-learn, convert with options={'zipmap': False}",
                            });
                        }
                    }
                }
                3 => {
                    fields.once(number)?;
                    fields.text(value)?;
                }
                _ => {}
            }
        }
        Ok(info)
    }

    fn tensor_type(&mut self, bytes: &'a [u8]) -> Result<(u64, Option<Dims>), Refusal> {
        let mut fields = Fields::new("a tensor's type", bytes);
        let (mut kind, mut shape) = (0, None);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    fields.once(number)?;
                    kind = fields.number(value)?;
                }
                2 => {
                    fields.once(number)?;
                    let mut dims = Vec::new();
                    let mut all = Fields::new("a shape", fields.bytes(value)?);
                    while let Some((number, value)) = all.next()? {
                        if number == 1 {
                            self.unpack(MESSAGE_BYTES)?;
                            dims.push(self.dimension(all.bytes(value)?)?);
                            if dims.len() > TENSOR_RANK_MAX {
                                let got = dims.len() as u64;
                                return Err(Refusal::TooMuch {
                                    what: "a value of so many dimensions",
                                    got,
                                    max: TENSOR_RANK_MAX as u64,
                                });
                            }
                        }
                    }
                    shape = Some(dims);
                }
                _ => {}
            }
        }
        Ok((kind, shape))
    }

    /// A size, or none where any will do.
    fn dimension(&mut self, bytes: &'a [u8]) -> Result<Option<u64>, Refusal> {
        let mut fields = Fields::new("a dimension", bytes);
        let mut size = None;
        while let Some((number, value)) = fields.next()? {
            match number {
                1 | 2 => fields.once(0)?,
                _ => continue,
            }
            if number == 1 {
                let dim = fields.number(value)?;
                if dim > i64::MAX as u64 {
                    return Err(fields.broken("is negative: leave it without a value where any size will do"));
                }
                size = Some(dim);
            } else {
                self.name(&fields, value)?;
            }
        }
        Ok(size)
    }
}

impl<'a> Scope<'a> {
    fn carries(&mut self, name: &'a str, kind: u64, divisor: bool) {
        if fraction(kind) {
            self.fractions.insert(name);
        } else if divisor {
            self.divisors.insert(name);
        }
    }
}

/// Whether a kind of elements has fractions.
fn fraction(kind: u64) -> bool {
    matches!(
        tensor_type(kind),
        Some(TensorType::Fp32 | TensorType::Fp64 | TensorType::Fp16 | TensorType::Bf16)
    )
}

/// Whether whole numbers, as they lie in the file, can divide whatever there is.
fn divides_safely(kind: u64, data: &[u8]) -> bool {
    fn all<const N: usize>(data: &[u8]) -> bool {
        let (numbers, rest) = data.as_chunks::<N>();
        !numbers.is_empty() && rest.is_empty() && numbers.iter().all(|n| *n != [0; N] && *n != [0xff; N])
    }
    match tensor_type(kind) {
        Some(TensorType::I64 | TensorType::U64) => all::<8>(data),
        Some(TensorType::I32 | TensorType::U32) => all::<4>(data),
        _ => false,
    }
}

/// Operators that only give what they take another form.
fn passes_on(operator: &str) -> bool {
    matches!(
        operator,
        "Cast" | "Identity" | "Unsqueeze" | "Squeeze" | "Reshape" | "Concat" | "Slice" | "Gather" | "Transpose"
    )
}

fn operators(bytes: &[u8]) -> Result<(&str, u64), Refusal> {
    let mut fields = Fields::new("a set of operators", bytes);
    let (mut domain, mut version) = ("", 0);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => {
                fields.once(number)?;
                domain = fields.text(value)?;
            }
            2 => {
                fields.once(number)?;
                version = fields.number(value)?;
            }
            _ => {}
        }
    }
    Ok((domain, version))
}

/// Trouble with the outermost fields: it is something else altogether.
fn not_onnx(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Broken(why) => Refusal::NotOnnx(why),
        other => other,
    }
}

/// The inputs or outputs of the model.
fn ports(side: &'static str, values: Vec<ValueInfo<'_>>) -> Result<Vec<Port>, Refusal> {
    if values.len() > PORTS_MAX || (values.is_empty() && side == "output") {
        return Err(match values.len() {
            0 => Refusal::Broken(String::from("it has no output")),
            got => Refusal::TooMuch {
                what: "inputs or outputs",
                got: got as u64,
                max: PORTS_MAX as u64,
            },
        });
    }
    let mut names = HashSet::new();
    let mut made = Vec::with_capacity(values.len());
    for value in values {
        let refused = |why| Refusal::Port {
            side,
            name: cut(value.name),
            why,
        };
        if value.name.is_empty() || value.name.len() > TENSOR_NAME_BYTES_MAX || value.name.chars().any(char::is_control)
        {
            return Err(refused("a name has 1 to 256 bytes, and no control characters"));
        }
        if !names.insert(value.name) {
            return Err(refused("there are two of this name"));
        }
        let kind = value
            .kind
            .and_then(tensor_type)
            .ok_or_else(|| refused("its elements are of a kind that is not supported here"))?;
        let shape = value
            .shape
            .ok_or_else(|| refused("it says no shape; onnx.shape_inference.infer_shapes adds what is missing"))?;
        if shape.contains(&Some(0)) {
            return Err(refused(
                "a dimension is zero; leave it without a value where any size will do",
            ));
        }
        made.push(Port {
            name: value.name.to_owned(),
            kind,
            shape,
        });
    }
    Ok(made)
}

const STRING: u64 = 8;

/// ONNX's kinds of elements as the ones of tensors here.
fn tensor_type(kind: u64) -> Option<TensorType> {
    Some(match kind {
        1 => TensorType::Fp32,
        2 => TensorType::U8,
        3 => TensorType::I8,
        4 => TensorType::U16,
        5 => TensorType::I16,
        6 => TensorType::I32,
        7 => TensorType::I64,
        STRING => TensorType::Bytes,
        9 => TensorType::Bool,
        10 => TensorType::Fp16,
        11 => TensorType::Fp64,
        12 => TensorType::U32,
        13 => TensorType::U64,
        16 => TensorType::Bf16,
        _ => return None,
    })
}

/// Bytes of an element of a tensor that the model carries, and the field that has them where they are not raw.
fn element(kind: u64) -> Option<(u64, u32)> {
    Some(match tensor_type(kind)? {
        TensorType::Fp32 => (4, 4),
        TensorType::Fp64 => (8, 10),
        TensorType::I64 => (8, 7),
        TensorType::U64 => (8, 11),
        TensorType::U32 => (4, 11),
        TensorType::Bytes => (1, 6),
        kind => (kind.size()? as u64, 5),
    })
}

/// What a model says of itself, for a message: short, and without what a terminal obeys.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(96).collect()
}

#[cfg(test)]
mod tests;
