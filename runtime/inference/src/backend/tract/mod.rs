//! tract: ONNX in Rust. It is always there, needs no library, and reads no file.
//!
//! A model is analysed once with symbols for the sizes that a caller chooses, which shows how large each value is for any call. If
//! a size depended on what is *in* a tensor, a caller could make one of any size: such a model is refused by the node's name.
//!
//! Plans. Measured on the samples (one thread, Xeon): a plan that takes any number of rows runs 64 rows of the 784-256-10 net in 189 µs and of
//! the small convolutional net in 4.2 ms, one made for 64 rows exactly in 167 µs and 4.3 ms. But with one row the exact plan is
//! much better for convolutions, 59 µs against 86 µs. So there are two: one for a single row, the most common call, and one for any. Plans
//! for powers of two, padded, would cost a copy of the weights each and gain less than the padding loses. A model that cannot be
//! prepared with symbols gets exact plans as they are needed, [`PLANS_MAX`] at most.

mod scaler;
mod trees;
#[cfg(test)]
mod windows;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use half::f16;
use prost::Message;
use skep_model::tensor::{Tensor, TensorType};
use tract_onnx::model::Onnx;
use tract_onnx::pb;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cnn::{Conv, MaxPool, PaddingSpec, SumPool};
use tract_onnx::tract_core::plan::eval;
use tract_onnx::tract_hir::infer::{Factoid, InferenceFact};
use tract_onnx::tract_hir::internal::{SymbolValues, TractErrorContext, ensure};

use super::{Backend, Loaded, RunError, one_line};
use crate::inspect::{Described, Refusal};
use crate::limits::{Limits, PLANS_MAX};

type Plan = Arc<TypedRunnableModel>;
/// What each symbol is in one call.
type Chosen = Vec<(Symbol, i64)>;
type Values = Tensor;
type Inner = tract_onnx::prelude::Tensor;

/// The backend. It has no settings: a run uses the thread that it is called on.
pub struct Tract {
    onnx: Onnx,
}

impl std::fmt::Debug for Tract {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("tract")
    }
}

impl Default for Tract {
    fn default() -> Self {
        Self::new()
    }
}

impl Tract {
    #[must_use]
    pub fn new() -> Self {
        let mut onnx = tract_onnx::onnx();
        trees::register(&mut onnx.op_register);
        scaler::register(&mut onnx.op_register);
        Self { onnx }
    }

    fn unknown_operator(&self, graph: &pb::GraphProto) -> Option<Refusal> {
        graph.node.iter().find_map(|node| {
            if !self.onnx.op_register.0.contains_key(&node.op_type) {
                let name = [&node.name, &node.op_type].into_iter().find(|name| !name.is_empty());
                let node_name = name.cloned().unwrap_or_default();
                return Some(Refusal::Operator {
                    node: one_line(&node_name),
                    operator: one_line(&node.op_type),
                });
            }
            let inner = node
                .attribute
                .iter()
                .flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
            inner.into_iter().find_map(|graph| self.unknown_operator(graph))
        })
    }
}

impl Backend for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn version(&self) -> String {
        String::from(TRACT_VERSION)
    }

    fn load(&self, bytes: &Bytes, described: &Described, limits: &Limits) -> Result<Box<dyn Loaded>, Refusal> {
        let proto =
            pb::ModelProto::decode(bytes.clone()).map_err(|error| Refusal::Broken(one_line(&error.to_string())))?;
        if let Some(refusal) = proto.graph.as_ref().and_then(|graph| self.unknown_operator(graph)) {
            return Err(refusal);
        }
        // No folder is given, so a tensor in a file, which inspection refused, would be refused here too.
        let parsed = self.onnx.model_for_proto_model(&proto).map_err(load_error)?;
        drop(proto);
        let typed = with_symbols(parsed, described)
            .and_then(|model| model.into_typed()?.into_decluttered())
            .map_err(load_error)?;
        let sizes = Sizes::of(&typed, described)?;
        if sizes.least > limits.run_bytes {
            return Err(Refusal::TooMuch {
                what: "bytes in a run of one row",
                got: sizes.least,
                max: limits.run_bytes,
            });
        }
        let any = typed.clone().into_optimized().and_then(into_plan);
        let plans = match any {
            Ok(any) => {
                let one = described
                    .batchable
                    .then(|| sizes.all(1))
                    .map(|sizes| exact(&typed, &sizes).map_err(load_error))
                    .transpose()?;
                Plans::Any { any, one }
            }
            Err(_) => Plans::Exact {
                typed,
                made: Mutex::new(VecDeque::new()),
            },
        };
        let copies = match &plans {
            Plans::Any { one: Some(_), .. } => 2,
            Plans::Any { .. } => 1,
            Plans::Exact { .. } => 1 + PLANS_MAX as u64,
        };
        let outputs = described.signature.outputs.iter().map(|port| port.kind).collect();
        let memory = described
            .weights_bytes
            .saturating_mul(copies)
            .saturating_add(sizes.least);
        Ok(Box::new(Ready {
            plans,
            sizes,
            outputs,
            memory,
            run_bytes: limits.run_bytes,
        }))
    }
}

const TRACT_VERSION: &str = "0.23";

fn load_error(error: TractError) -> Refusal {
    Refusal::Load(one_line(&format!("{error:#}")))
}

fn into_plan(model: TypedModel) -> TractResult<Plan> {
    model.into_runnable()
}

/// A size without a name becomes a symbol of its own; but first dimensions without one are the rows, which all share.
fn with_symbols(mut model: InferenceModel, described: &Described) -> TractResult<InferenceModel> {
    for at in 0..model.inputs.len() {
        let fact = model.input_fact(at)?.clone();
        let outlet = model.input_outlets()?[at];
        let name = model.node(outlet.node).name.clone();
        let port = described.signature.inputs.iter().find(|port| port.name == name);
        let port = port.with_context(|| format!("input {name:?} is not the model's"))?;
        let kind = fact
            .datum_type
            .concretize()
            .with_context(|| format!("input {name:?} has no type"))?;
        let mut dims: TVec<TDim> = tvec!();
        for (axis, dim) in port.shape.iter().enumerate() {
            dims.push(match (dim, fact.shape.dim(axis).and_then(|dim| dim.concretize())) {
                (Some(dim), _) => i64::try_from(*dim)?.into(),
                (None, Some(named)) => named,
                (None, None) if axis == 0 => model.symbols.sym("skep_rows").into(),
                (None, None) => model.symbols.sym(&format!("skep_{at}_{axis}")).into(),
            });
        }
        model.set_input_fact(at, InferenceFact::dt_shape(kind, &*dims))?;
    }
    Ok(model)
}

fn exact(typed: &TypedModel, sizes: &[(Symbol, i64)]) -> TractResult<Plan> {
    let sizes: HashMap<Symbol, TDim> = sizes
        .iter()
        .map(|(symbol, size)| (symbol.clone(), (*size).into()))
        .collect();
    typed
        .set_symbols(&sizes)?
        .into_decluttered()?
        .into_optimized()
        .and_then(into_plan)
}

fn values_of(sizes: &[(Symbol, i64)]) -> SymbolValues {
    sizes.iter().fold(SymbolValues::default(), |values, (symbol, size)| {
        values.with(symbol, *size)
    })
}

/// How large a run is, for the sizes that a call chooses.
struct Sizes {
    /// Each input's dimensions, in the signature's order, and the input's place in tract's.
    inputs: Vec<(usize, TVec<TDim>)>,
    symbols: Vec<Symbol>,
    /// Bytes of all values that are not part of the model.
    total: TDim,
    /// … where there is one symbol and they grow evenly with it: at zero, and for each.
    even: Option<(u64, u64)>,
    /// With every size at one.
    least: u64,
    /// What must not be below zero in a run: dimensions that are computed, and what is left of an image behind a window. tract computes
    /// them without a look, and two negative ones make a positive number of bytes, and a read outside of memory.
    extents: Vec<TDim>,
}

/// What a window leaves of each axis that it goes along, where padding does not make it fit by itself.
fn left_by_window(model: &TypedModel, node: &TypedNode) -> Vec<TDim> {
    let op = node.op();
    let pool = op.downcast_ref::<Conv>().map(|conv| &conv.pool_spec);
    let pool = pool.or_else(|| op.downcast_ref::<MaxPool>().map(|pool| &pool.pool_spec));
    let pool = pool.or_else(|| op.downcast_ref::<SumPool>().map(|pool| &pool.pool_spec));
    let (Some(pool), Some(input)) = (pool, node.inputs.first()) else {
        return Vec::new();
    };
    let none = || vec![0; pool.kernel_shape.len()];
    let (before, after) = match &pool.padding {
        PaddingSpec::Explicit(before, after) | PaddingSpec::ExplicitOnnxPool(before, after, _) => {
            (before.to_vec(), after.to_vec())
        }
        PaddingSpec::Valid => (none(), none()),
        PaddingSpec::SameUpper | PaddingSpec::SameLower => return Vec::new(),
    };
    let Ok(fact) = model.outlet_fact(*input) else {
        return Vec::new();
    };
    let Ok(shape) = pool.data_format.shape(fact.shape.to_tvec()) else {
        return Vec::new();
    };
    let axes = shape.hw_dims().iter().enumerate();
    let left = axes.map(|(axis, size)| {
        let at = |list: &[usize], or: usize| list.get(axis).copied().unwrap_or(or);
        let dilation = pool.dilations.as_ref().map_or(1, |all| at(all, 1));
        let window = (at(&pool.kernel_shape, 1).max(1) - 1) * dilation + 1;
        size.clone() + at(&before, 0) + at(&after, 0) - window
    });
    left.collect()
}

impl Sizes {
    fn of(model: &TypedModel, described: &Described) -> Result<Self, Refusal> {
        let mut inputs = Vec::new();
        let mut symbols = HashSet::new();
        for port in &described.signature.inputs {
            let outlets = model.input_outlets().map_err(load_error)?;
            let found = outlets
                .iter()
                .position(|outlet| model.node(outlet.node).name == port.name);
            let at = found.ok_or_else(|| Refusal::Load(format!("tract has no input {:?}", port.name)))?;
            let dims: TVec<TDim> = model
                .input_fact(at)
                .map_err(load_error)?
                .shape
                .iter()
                .cloned()
                .collect();
            symbols.extend(dims.iter().flat_map(TDim::symbols));
            inputs.push((at, dims));
        }
        let mut total = TDim::from(0);
        let mut least = 0u64;
        let mut extents: Vec<TDim> = Vec::new();
        let mut extent = |dim: TDim| -> Result<(), Refusal> {
            match dim {
                TDim::Sym(_) => {}
                TDim::Val(size) if size >= 0 => {}
                TDim::Val(size) => {
                    return Err(Refusal::Load(format!("it has a tensor with a dimension of {size}")));
                }
                other if extents.contains(&other) => {}
                other => extents.push(other),
            }
            Ok(())
        };
        for node in model.nodes() {
            for left in left_by_window(model, node) {
                extent(left)?;
            }
            for output in &node.outputs {
                for dim in output.fact.shape.iter() {
                    extent(dim.clone())?;
                }
                // What is known beforehand is part of the model, and lies there already.
                if output.fact.konst.is_some() {
                    continue;
                }
                let unknown = output
                    .fact
                    .shape
                    .iter()
                    .flat_map(TDim::symbols)
                    .any(|symbol| !symbols.contains(&symbol));
                if unknown {
                    let (name, operator) = (one_line(&node.name), node.op().name());
                    return Err(Refusal::Load(format!(
                        "node {name:?} ({operator}) makes a tensor whose size depends on what is in another: a caller could choose any size"
                    )));
                }
                let volume = output.fact.shape.volume() * output.fact.datum_type.size_of().max(8);
                total += volume;
            }
        }
        let mut sizes = Self {
            inputs,
            symbols: symbols.into_iter().collect(),
            total,
            even: None,
            least: 0,
            extents,
        };
        if let [symbol] = &sizes.symbols[..] {
            let at = |size: i64| sizes.evaluated(&[(symbol.clone(), size)]);
            if let (Some(one), Some(two), Some(five)) = (at(1), at(2), at(5)) {
                let step = two.saturating_sub(one);
                if step.checked_mul(4).and_then(|more| more.checked_add(one)) == Some(five) && one >= step {
                    sizes.even = Some((one - step, step));
                }
            }
        }
        least += sizes.evaluated(&sizes.all(1)).unwrap_or(u64::MAX / 2);
        sizes.least = least;
        Ok(sizes)
    }

    fn all(&self, size: i64) -> Chosen {
        self.symbols.iter().map(|symbol| (symbol.clone(), size)).collect()
    }

    fn evaluated(&self, sizes: &[(Symbol, i64)]) -> Option<u64> {
        self.total
            .eval_to_i64(&values_of(sizes))
            .ok()
            .and_then(|bytes| u64::try_from(bytes).ok())
    }

    /// What the sizes of this call are, and how many bytes it takes.
    fn of_call(&self, inputs: &[&Values]) -> Result<(Chosen, u64), String> {
        let mut sizes: Chosen = Vec::with_capacity(self.symbols.len());
        for (tensor, (_, dims)) in inputs.iter().zip(&self.inputs) {
            for (got, dim) in tensor.shape().iter().zip(dims) {
                let TDim::Sym(symbol) = dim else { continue };
                let got = i64::try_from(*got).map_err(|_| String::from("a dimension is too large"))?;
                match sizes.iter().find(|(other, _)| other == symbol) {
                    Some((_, other)) if *other != got => {
                        return Err(format!("two dimensions that are {symbol} both are {other} and {got}"));
                    }
                    Some(_) => {}
                    None => sizes.push((symbol.clone(), got)),
                }
            }
        }
        if !self.extents.is_empty() {
            let values = values_of(&sizes);
            for extent in &self.extents {
                match extent.eval_to_i64(&values) {
                    Ok(size) if size >= 0 => {}
                    _ => {
                        return Err(String::from(
                            "an input is too small, or too large, for one of its operators",
                        ));
                    }
                }
            }
        }
        let bytes = match (self.even, &sizes[..]) {
            (Some((base, each)), [(_, size)]) => each.saturating_mul(*size as u64).saturating_add(base),
            _ => self
                .evaluated(&sizes)
                .ok_or("its values would be too large, or a size cannot be known")?,
        };
        Ok((sizes, bytes))
    }
}

enum Plans {
    Any {
        any: Plan,
        one: Option<Plan>,
    },
    Exact {
        typed: TypedModel,
        made: Mutex<VecDeque<(Chosen, Plan)>>,
    },
}

struct Ready {
    plans: Plans,
    sizes: Sizes,
    outputs: Vec<TensorType>,
    memory: u64,
    run_bytes: u64,
}

impl Ready {
    fn plan(&self, sizes: Chosen) -> Result<Plan, String> {
        match &self.plans {
            Plans::Any { one: Some(one), .. } if sizes.iter().all(|(_, size)| *size == 1) => Ok(Arc::clone(one)),
            Plans::Any { any, .. } => Ok(Arc::clone(any)),
            Plans::Exact { typed, made } => {
                let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                let found = made.iter().position(|(of, _)| *of == sizes);
                let plan = match found.and_then(|at| made.remove(at)) {
                    Some((_, plan)) => plan,
                    None => exact(typed, &sizes).map_err(|error| one_line(&format!("{error:#}")))?,
                };
                made.push_back((sizes, Arc::clone(&plan)));
                if made.len() > PLANS_MAX {
                    made.pop_front();
                }
                Ok(plan)
            }
        }
    }
}

impl Loaded for Ready {
    fn run(&self, inputs: &[&Values], until: Instant) -> Result<Vec<Values>, RunError> {
        let (sizes, bytes) = self.sizes.of_call(inputs)?;
        if bytes > self.run_bytes {
            return Err(format!(
                "its values would take {bytes} bytes, of which {} are allowed: send fewer rows",
                self.run_bytes
            )
            .into());
        }
        let plan = self.plan(sizes)?;
        let mut ordered: TVec<TValue> = tvec!();
        for at in 0..inputs.len() {
            let place = self
                .sizes
                .inputs
                .iter()
                .position(|(place, _)| *place == at)
                .ok_or_else(|| String::from("an input is missing"))?;
            ordered.push(to_tract(inputs[place])?.into_tvalue());
        }
        let failed = |error: TractError| one_line(&format!("{error:#}"));
        let mut late = false;
        let evaluated = plan
            .spawn()
            .map_err(failed)?
            .run_plan_with_eval(ordered, |context, state, node, inputs| {
                late |= Instant::now() >= until;
                ensure!(!late, "it is late");
                eval(context, state, node, inputs)
            });
        if late {
            return Err(RunError::Late);
        }
        let outputs = evaluated.map_err(failed)?;
        if outputs.len() != self.outputs.len() {
            return Err(format!("tract gave {} outputs, expected {}", outputs.len(), self.outputs.len()).into());
        }
        outputs
            .into_iter()
            .zip(&self.outputs)
            .map(|(output, kind)| from_tract(output, *kind).map_err(RunError::Failed))
            .collect()
    }

    fn memory_bytes(&self) -> u64 {
        self.memory
    }

    fn parallel(&self) -> bool {
        true
    }
}

fn datum(kind: TensorType) -> Option<DatumType> {
    Some(match kind {
        TensorType::Bool => DatumType::Bool,
        TensorType::U8 => DatumType::U8,
        TensorType::U16 => DatumType::U16,
        TensorType::U32 => DatumType::U32,
        TensorType::U64 => DatumType::U64,
        TensorType::I8 => DatumType::I8,
        TensorType::I16 => DatumType::I16,
        TensorType::I32 => DatumType::I32,
        TensorType::I64 => DatumType::I64,
        TensorType::Fp16 => DatumType::F16,
        TensorType::Fp32 => DatumType::F32,
        TensorType::Fp64 => DatumType::F64,
        TensorType::Bytes => DatumType::String,
        TensorType::Bf16 => return None,
    })
}

fn to_tract(tensor: &Values) -> Result<Inner, String> {
    let shape: TVec<usize> = tensor.shape().iter().map(|dim| *dim as usize).collect();
    let kind = datum(tensor.kind()).ok_or("BF16 is not supported by tract")?;
    let failed = |error: TractError| one_line(&error.to_string());
    match tensor.kind() {
        TensorType::Bytes => {
            let texts = tensor.contents().map(|content| String::from_utf8(content.to_vec()));
            let texts: Vec<String> = texts.collect::<Result<_, _>>().map_err(|_| "a text is not UTF-8")?;
            let array = tract_ndarray::ArrayD::from_shape_vec(&*shape, texts).map_err(|error| error.to_string())?;
            Ok(array.into())
        }
        TensorType::Bool => {
            let truths: Vec<bool> = tensor.bytes().iter().map(|byte| *byte != 0).collect();
            Inner::from_shape(&shape, &truths).map_err(failed)
        }
        // SAFETY: the tensor has as many bytes as its type and shape say (that is what a `Tensor` is), and every pattern of bits is
        // a value of these types: BOOL and BYTES are treated above.
        _ => unsafe { Inner::from_raw_dt(kind, &shape, tensor.bytes()) }.map_err(failed),
    }
}

/// Keeps what tract computed where it is.
struct Held(TValue);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// From so many bytes on an output is not copied; below, a copy is cheaper than keeping two allocations alive.
const KEPT_BYTES_MIN: usize = 4 << 10;

fn from_tract(value: TValue, kind: TensorType) -> Result<Values, String> {
    let wanted = datum(kind).ok_or("BF16 is not supported by tract")?;
    let shape: Vec<u64> = value.shape().iter().map(|dim| *dim as u64).collect();
    let failed = |error: TractError| one_line(&error.to_string());
    let made = if kind == TensorType::Bytes {
        let texts = value
            .try_as_plain_ram()
            .and_then(|plain| plain.as_slice::<String>())
            .map_err(failed)?;
        return Values::from_contents(shape, texts.iter().map(String::as_bytes)).map_err(|error| error.to_string());
    } else if value.datum_type() == wanted {
        if !value.is_plain_ram() {
            return Err(String::from("an output is in a form that tract keeps to itself"));
        }
        match value.as_bytes() {
            bytes if bytes.len() < KEPT_BYTES_MIN => Bytes::copy_from_slice(bytes),
            _ => Bytes::from_owner(Held(value)),
        }
    } else {
        // Whole numbers that may be sizes are symbols to tract, and other types are what it found better.
        let cast = value.cast_to_dt(wanted).map_err(failed)?;
        Bytes::copy_from_slice(cast.as_bytes())
    };
    debug_assert!(kind != TensorType::Fp16 || size_of::<f16>() == 2);
    Values::new(kind, shape, made).map_err(|error| error.to_string())
}
