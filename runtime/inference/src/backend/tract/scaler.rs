//! `Scaler` of ai.onnx.ml, which tract has not, and which every pipeline of scikit-learn with a StandardScaler or MinMaxScaler has.
//!
//! Source: ai.onnx.ml, version 1: `(x - offset) * scale`, either of them one number for all features or one for each; the output is FP32.

use std::sync::Arc;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core;

pub fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Scaler", scaler);
}

/// Each of one row, so that it goes over rows.
#[derive(Debug, Clone, Hash, PartialEq, Eq)]
struct Scaler {
    offset: Arc<Tensor>,
    scale: Arc<Tensor>,
}

fn scaler(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let row = |name: &str| {
        let numbers: Vec<f32> = node.get_attr_vec(name)?;
        ensure!(!numbers.is_empty(), "{name} is empty");
        Ok(tensor1(&numbers).broadcast_into_rank(2)?.into_arc_tensor())
    };
    Ok((
        expand(Scaler {
            offset: row("offset")?,
            scale: row("scale")?,
        }),
        vec![],
    ))
}

impl Expansion for Scaler {
    fn name(&self) -> StaticName {
        "Scaler".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].rank, 2)?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].shape, &inputs[0].shape)?;
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let features = model.outlet_fact(inputs[0])?.shape[1].clone();
        for (row, name) in [(&self.offset, "offset"), (&self.scale, "scale")] {
            let length = row.len();
            ensure!(
                length == 1 || features == length.to_dim(),
                "{name} has {length} numbers, where there are {features} features"
            );
        }
        let mut rows = inputs[0];
        if model.outlet_fact(rows)?.datum_type != f32::datum_type() {
            let cast = tract_core::ops::cast::cast(f32::datum_type());
            rows = model.wire_node(format!("{prefix}.to_f32"), cast, &[rows])?[0];
        }
        let offset = model.add_const(format!("{prefix}.offset"), Arc::clone(&self.offset))?;
        let scale = model.add_const(format!("{prefix}.scale"), Arc::clone(&self.scale))?;
        let moved = model.wire_node(format!("{prefix}.moved"), tract_core::ops::math::sub(), &[rows, offset])?[0];
        model.wire_node(prefix, tract_core::ops::math::mul(), &[moved, scale])
    }
}
