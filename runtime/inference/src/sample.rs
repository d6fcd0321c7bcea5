//! The sample models, and some that are made up, for tests.

use bytes::Bytes;
use serde::Deserialize;
use skep_model::tensor::Tensor;

pub const NAMES: [&str; 7] = [
    "digits-mlp",
    "digits-cnn",
    "iris",
    "wine",
    "cancer-linear",
    "cancer-forest",
    "cancer-mlp",
];

/// What ONNX Runtime in Python said to three rows of the test.
#[derive(Deserialize)]
pub struct Expected {
    pub input: String,
    pub shape: Vec<u64>,
    pub data: Vec<f32>,
    pub label: Vec<i64>,
    pub probabilities: Vec<f32>,
}

impl Expected {
    pub fn tensor(&self) -> Tensor {
        Tensor::from_f32(self.shape.clone(), &self.data).unwrap()
    }
}

fn file(name: &str) -> Vec<u8> {
    let path = format!("{}/../../samples/models/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn read(name: &str) -> Bytes {
    Bytes::from(file(&format!("{name}.onnx")))
}

pub fn all() -> Vec<(&'static str, Bytes)> {
    NAMES.into_iter().map(|name| (name, read(name))).collect()
}

pub fn expected() -> Vec<(&'static str, Expected)> {
    let mut all: std::collections::HashMap<String, Expected> = serde_json::from_slice(&file("expected.json")).unwrap();
    NAMES
        .into_iter()
        .map(|name| (name, all.remove(name).unwrap()))
        .collect()
}

type Value<'a> = (&'a str, i32, &'a [Option<u64>]);

/// A model of a few nodes. `GlobalMean` stands for the mean over the first axis and `Double` for a concatenation along the second, which take
/// an attribute.
pub fn graph(nodes: &[(&str, &[&str], &[&str])], input: Value<'_>, output: Value<'_>) -> Bytes {
    use prost::Message;
    use tract_onnx::pb;
    use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
    let value = |(name, kind, dims): Value<'_>| {
        let dim = |dim: &Option<u64>| Dimension {
            value: dim.map(|dim| dimension::Value::DimValue(dim as i64)),
            ..Dimension::default()
        };
        let shape = pb::TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        };
        let tensor = pb::type_proto::Tensor {
            elem_type: kind,
            shape: Some(shape),
        };
        let kind = pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(tensor)),
            ..pb::TypeProto::default()
        };
        pb::ValueInfoProto {
            name: name.into(),
            r#type: Some(kind),
            ..pb::ValueInfoProto::default()
        }
    };
    let texts = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
    let node = |(operator, inputs, outputs): &(&str, &[&str], &[&str])| {
        let (real, attribute) = match *operator {
            "GlobalMean" => {
                let axes = pb::AttributeProto {
                    name: "axes".into(),
                    ints: vec![0],
                    r#type: 7,
                    ..pb::AttributeProto::default()
                };
                ("ReduceMean", vec![axes])
            }
            "Double" => {
                let axis = pb::AttributeProto {
                    name: "axis".into(),
                    i: 1,
                    r#type: 2,
                    ..pb::AttributeProto::default()
                };
                ("Concat", vec![axis])
            }
            other => (other, Vec::new()),
        };
        pb::NodeProto {
            name: if matches!(*operator, "Double" | "MatMul") {
                format!("to {}", outputs[0])
            } else {
                format!("the {operator}")
            },
            op_type: real.into(),
            input: texts(inputs),
            output: texts(outputs),
            attribute,
            ..pb::NodeProto::default()
        }
    };
    let graph = pb::GraphProto {
        name: "made up".into(),
        node: nodes.iter().map(node).collect(),
        input: vec![value(input)],
        output: vec![value(output)],
        ..pb::GraphProto::default()
    };
    let opset = pb::OperatorSetIdProto {
        domain: String::new(),
        version: 15,
    };
    let model = pb::ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph),
        ..pb::ModelProto::default()
    };
    Bytes::from(model.encode_to_vec())
}
