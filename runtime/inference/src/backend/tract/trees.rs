//! Ensembles of trees, instead of tract's.
//!
//! tract 0.23.9 gives class 0 for every row where two classes share one score, as scikit-learn's forests, XGBoost and LightGBM are exported;
//! it has no regressor; it follows a tree whose nodes form a circle for ever; and one row of 25 trees takes it 108 µs. Here a tree is
//! checked when it is loaded and then followed by index.
//!
//! Source: `TreeEnsembleClassifier` and `TreeEnsembleRegressor` of ai.onnx.ml, versions 1 and 3. Where the text leaves open
//! what two classes with one score mean, ONNX Runtime's reading is taken (`tree_ensemble_aggregator.h`): with weights that are all zero or
//! more the score is the probability of the second class, which wins above one half; else its sign decides.

use std::collections::HashSet;
use std::sync::Arc;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core;

pub fn register(operators: &mut OnnxOpRegister) {
    operators.insert("TreeEnsembleClassifier", classifier);
    operators.insert("TreeEnsembleRegressor", regressor);
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    AtMost,
    Below,
    AtLeast,
    Above,
    Equal,
    NotEqual,
    Leaf,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    value: f32,
    feature: u32,
    /// Of a leaf: where its weights begin and end.
    yes: u32,
    no: u32,
    mode: Mode,
    missing_is_yes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum After {
    Nothing,
    Softmax,
    Logistic,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

#[derive(Debug, Clone)]
enum Labels {
    Numbers(Vec<i64>),
    Texts(Vec<String>),
}

#[derive(Debug)]
struct Forest {
    roots: Vec<u32>,
    nodes: Vec<Node>,
    /// Which score, and by how much.
    weights: Vec<(u32, f32)>,
    scores: usize,
    features: usize,
    base: Vec<f32>,
    after: After,
    aggregate: Aggregate,
    /// None: a regressor.
    labels: Option<Labels>,
    /// Two classes that share one score; whether all its weights are zero or more.
    binary: Option<bool>,
}

/// The operator, as tract analyses and runs it.
#[derive(Debug, Clone)]
struct Trees(Arc<Forest>);

/// Two are the same if they came from the same node.
impl PartialEq for Trees {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Trees {}

fn classifier(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let numbers: Option<Vec<i64>> = node.get_attr_opt_vec("classlabels_int64s")?;
    let texts: Option<Vec<String>> = node.get_attr_opt_vec("classlabels_strings")?;
    let labels = match (numbers, texts) {
        (Some(numbers), None) => Labels::Numbers(numbers),
        (None, Some(texts)) => Labels::Texts(texts),
        _ => bail!("its classes are to be numbers or texts, one of the two"),
    };
    let classes = match &labels {
        Labels::Numbers(numbers) => numbers.len(),
        Labels::Texts(texts) => texts.len(),
    };
    ensure!(classes >= 2, "two classes at least are needed, and there are {classes}");
    let mut forest = forest(node, "class", classes)?;
    if classes == 2 {
        let one = forest.weights.first().map(|(score, _)| *score);
        if forest.weights.iter().any(|(score, _)| Some(*score) != one) || forest.base.len() > 1 {
            bail!(
                "two classes with a score each are read in different ways by different runtimes: export it with one score for both"
            );
        }
        forest.binary = Some(forest.weights.iter().all(|(_, weight)| *weight >= 0.0));
        forest.weights.iter_mut().for_each(|(score, _)| *score = 0);
    } else {
        ensure!(
            forest.base.is_empty() || forest.base.len() == classes,
            "base_values are to be one for each class"
        );
    }
    forest.labels = Some(labels);
    Ok((expand(Trees(Arc::new(forest))), vec![]))
}

fn regressor(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let targets: i64 = node.get_attr_opt("n_targets")?.unwrap_or(1);
    let targets = usize::try_from(targets)
        .ok()
        .filter(|targets| (1..=100_000).contains(targets))
        .context("n_targets is to be 1 to 100000")?;
    let mut forest = forest(node, "target", targets)?;
    ensure!(
        forest.base.is_empty() || forest.base.len() == targets,
        "base_values are to be one for each target"
    );
    forest.aggregate = match node.get_attr_opt::<&str>("aggregate_function")?.unwrap_or("SUM") {
        "SUM" => Aggregate::Sum,
        "AVERAGE" => Aggregate::Average,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => bail!("aggregate_function {other:?} is unknown"),
    };
    Ok((expand(Trees(Arc::new(forest))), vec![]))
}

/// Which node of which tree something is about.
type Place = (i64, i64);

fn places(node: &NodeProto, trees: &str, ids: &str) -> TractResult<Vec<Place>> {
    let trees = node.get_attr_slice::<i64>(trees)?;
    let ids = node.get_attr_slice::<i64>(ids)?;
    ensure!(
        trees.len() == ids.len(),
        "its lists of trees and nodes are not of one length"
    );
    Ok(trees.iter().copied().zip(ids.iter().copied()).collect())
}

fn forest(node: &NodeProto, leaf: &str, scores: usize) -> TractResult<Forest> {
    for attribute in &node.attribute {
        ensure!(
            !attribute.name.ends_with("_as_tensor"),
            "its numbers are tensors (doubles), which is not supported: export it with floats"
        );
    }
    let places = places_of_nodes(node)?;
    let number = places.len();
    let same = |length: usize, what: &str| {
        ensure!(
            length == number,
            "{what} has {length} entries, where there are {number} nodes"
        );
        Ok(())
    };
    let features = node.get_attr_slice::<i64>("nodes_featureids")?;
    let values: Vec<f32> = node.get_attr_vec("nodes_values")?;
    let yes = node.get_attr_slice::<i64>("nodes_truenodeids")?;
    let no = node.get_attr_slice::<i64>("nodes_falsenodeids")?;
    let modes: Vec<&str> = node.get_attr_vec("nodes_modes")?;
    let missing = node
        .get_attr_opt_slice::<i64>("nodes_missing_value_tracks_true")?
        .unwrap_or(&[]);
    for (length, what) in [
        (features.len(), "nodes_featureids"),
        (values.len(), "nodes_values"),
        (yes.len(), "nodes_truenodeids"),
        (no.len(), "nodes_falsenodeids"),
        (modes.len(), "nodes_modes"),
    ] {
        same(length, what)?;
    }
    if !missing.is_empty() {
        same(missing.len(), "nodes_missing_value_tracks_true")?;
    }
    let at: HashMap<Place, u32> = places.iter().copied().zip(0..).collect();
    ensure!(at.len() == number, "two of its nodes have one number");
    // What leaves give, by leaf.
    let leaves = self::places(node, &format!("{leaf}_treeids"), &format!("{leaf}_nodeids"))?;
    let targets = node.get_attr_slice::<i64>(&format!("{leaf}_ids"))?;
    let given: Vec<f32> = node.get_attr_vec(&format!("{leaf}_weights"))?;
    ensure!(
        leaves.len() == targets.len() && leaves.len() == given.len(),
        "its lists of weights are not of one length"
    );
    let mut weights_of: Vec<(u32, u32, f32)> = Vec::with_capacity(leaves.len());
    for ((place, target), weight) in leaves.iter().zip(targets).zip(given) {
        let leaf = at.get(place).with_context(|| {
            format!(
                "a weight is for node {} of tree {}, which is not there",
                place.1, place.0
            )
        })?;
        let target = u32::try_from(*target).ok().filter(|target| (*target as usize) < scores);
        weights_of.push((
            *leaf,
            target.context("a weight is for a class or target that is not there")?,
            weight,
        ));
    }
    weights_of.sort_by_key(|(leaf, target, _)| (*leaf, *target));
    let mut nodes = Vec::with_capacity(number);
    let mut parents = vec![0u32; number];
    for (index, (tree, _)) in places.iter().enumerate() {
        let mode = match modes[index] {
            "BRANCH_LEQ" => Mode::AtMost,
            "BRANCH_LT" => Mode::Below,
            "BRANCH_GTE" => Mode::AtLeast,
            "BRANCH_GT" => Mode::Above,
            "BRANCH_EQ" => Mode::Equal,
            "BRANCH_NEQ" => Mode::NotEqual,
            "LEAF" => Mode::Leaf,
            other => bail!("nodes of mode {other:?} are not supported"),
        };
        let feature = u32::try_from(features[index])
            .ok()
            .filter(|feature| *feature < 1 << 24 || mode == Mode::Leaf);
        let (yes, no) = if mode == Mode::Leaf {
            let from = weights_of.partition_point(|(leaf, _, _)| (*leaf as usize) < index);
            let to = weights_of.partition_point(|(leaf, _, _)| *leaf as usize <= index);
            (from as u32, to as u32)
        } else {
            let child = |id: i64| {
                at.get(&(*tree, id))
                    .copied()
                    .with_context(|| format!("node {id} of tree {tree} is not there"))
            };
            let (yes, no) = (child(yes[index])?, child(no[index])?);
            parents[yes as usize] += 1;
            parents[no as usize] += 1;
            (yes, no)
        };
        nodes.push(Node {
            value: values[index],
            feature: if mode == Mode::Leaf {
                0
            } else {
                feature.context("a feature has a number that cannot be")?
            },
            yes,
            no,
            mode,
            missing_is_yes: missing.get(index).is_some_and(|missing| *missing != 0),
        });
    }
    // Each tree begins at the node that comes first. If no node has two parents, and that one none, it ends wherever it is followed.
    let mut roots: Vec<u32> = Vec::new();
    let mut begun = HashSet::new();
    for (index, (tree, _)) in places.iter().enumerate() {
        if begun.insert(*tree) {
            roots.push(index as u32);
        }
    }
    let rooted = roots.iter().all(|root| parents[*root as usize] == 0);
    ensure!(
        rooted && parents.iter().all(|parents| *parents <= 1),
        "its trees are none: a node comes after itself, or after two others"
    );
    let features = nodes.iter().map(|node| node.feature as usize + 1).max().unwrap_or(0);
    let after = match node.get_attr_opt::<&str>("post_transform")?.unwrap_or("NONE") {
        "NONE" => After::Nothing,
        "SOFTMAX" => After::Softmax,
        "LOGISTIC" => After::Logistic,
        other => bail!("post_transform {other:?} is not supported"),
    };
    Ok(Forest {
        roots,
        nodes,
        weights: weights_of
            .into_iter()
            .map(|(_, target, weight)| (target, weight))
            .collect(),
        scores,
        features,
        base: node.get_attr_opt_vec("base_values")?.unwrap_or_default(),
        after,
        aggregate: Aggregate::Sum,
        labels: None,
        binary: None,
    })
}

fn places_of_nodes(node: &NodeProto) -> TractResult<Vec<Place>> {
    let places = places(node, "nodes_treeids", "nodes_nodeids")?;
    ensure!(
        !places.is_empty() && places.len() < u32::MAX as usize,
        "it has no nodes"
    );
    Ok(places)
}

impl Forest {
    /// The weights of the leaf that a row ends at.
    fn leaf(&self, root: u32, row: &[f32]) -> &[(u32, f32)] {
        let mut node = &self.nodes[root as usize];
        while node.mode != Mode::Leaf {
            let value = row[node.feature as usize];
            let yes = match node.mode {
                Mode::AtMost => value <= node.value,
                Mode::Below => value < node.value,
                Mode::AtLeast => value >= node.value,
                Mode::Above => value > node.value,
                Mode::Equal => value == node.value,
                Mode::NotEqual => value != node.value,
                Mode::Leaf => true,
            };
            let yes = yes || (node.missing_is_yes && value.is_nan());
            node = &self.nodes[if yes { node.yes } else { node.no } as usize];
        }
        &self.weights[node.yes as usize..node.no as usize]
    }

    /// The scores of one row, as they leave; and which class won. `met`: whether any leaf had a weight for the score.
    fn row(&self, row: &[f32], scores: &mut [f32], met: &mut [bool]) -> usize {
        scores.fill(0.0);
        met.fill(false);
        for root in &self.roots {
            for (target, weight) in self.leaf(*root, row) {
                let (score, met) = (&mut scores[*target as usize], &mut met[*target as usize]);
                *score = match self.aggregate {
                    Aggregate::Min if *met => score.min(*weight),
                    Aggregate::Max if *met => score.max(*weight),
                    Aggregate::Min | Aggregate::Max => *weight,
                    Aggregate::Sum | Aggregate::Average => *score + *weight,
                };
                *met = true;
            }
        }
        if self.aggregate == Aggregate::Average {
            scores.iter_mut().for_each(|score| *score /= self.roots.len() as f32);
        }
        for (score, base) in scores.iter_mut().zip(&self.base) {
            *score += base;
        }
        let winner = match self.binary {
            Some(all_positive) => {
                let score = scores[0];
                let probability = all_positive && self.after != After::Logistic;
                (scores[0], scores[1]) = (if probability { 1.0 - score } else { -score }, score);
                usize::from(score > if all_positive { 0.5 } else { 0.0 })
            }
            // Of equals the first.
            None => (1..scores.len()).fold(0, |best, at| if scores[at] > scores[best] { at } else { best }),
        };
        match self.after {
            After::Nothing => {}
            // Of one score for two classes there is no softmax.
            After::Softmax if self.binary.is_some() => {}
            After::Logistic => scores
                .iter_mut()
                .for_each(|score| *score = 1.0 / (1.0 + (-*score).exp())),
            After::Softmax => {
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                scores.iter_mut().for_each(|score| *score = (*score - most).exp());
                let sum: f32 = scores.iter().sum();
                scores.iter_mut().for_each(|score| *score /= sum);
            }
        }
        winner
    }
}

impl Expansion for Trees {
    fn name(&self) -> StaticName {
        "TreeEnsemble".into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(if self.0.labels.is_some() { 2 } else { 1 })
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, self.nboutputs()?)?;
        let scores = &outputs[outputs.len() - 1];
        s.equals(&inputs[0].rank, 2)?;
        s.equals(&scores.datum_type, f32::datum_type())?;
        s.equals(&scores.rank, 2)?;
        s.equals(&scores.shape[0], &inputs[0].shape[0])?;
        s.equals(&scores.shape[1], self.0.scores.to_dim())?;
        if let Some(labels) = &self.0.labels {
            s.equals(&outputs[0].datum_type, labels.kind())?;
            s.equals(&outputs[0].rank, 1)?;
            s.equals(&outputs[0].shape[0], &inputs[0].shape[0])?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let mut rows = inputs[0];
        if model.outlet_fact(rows)?.datum_type != f32::datum_type() {
            let cast = tract_core::ops::cast::cast(f32::datum_type());
            rows = model.wire_node(format!("{prefix}.to_f32"), cast, &[rows])?[0];
        }
        model.wire_node(prefix, self.clone(), &[rows])
    }
}

impl Labels {
    fn kind(&self) -> DatumType {
        match self {
            Self::Numbers(_) => i64::datum_type(),
            Self::Texts(_) => String::datum_type(),
        }
    }
}

impl Op for Trees {
    fn name(&self) -> StaticName {
        "TreeEnsemble".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Trees {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        ensure!(input.rank() == 2, "trees take rows and features");
        let (rows, width) = (input.shape()[0], input.shape()[1]);
        ensure!(
            width >= self.0.features,
            "trees ask for feature {}, and a row has {width}",
            self.0.features.saturating_sub(1)
        );
        let values = input.try_as_plain_ram()?;
        let values = values.as_slice::<f32>()?;
        let mut all = Tensor::zero::<f32>(&[rows, self.0.scores])?;
        let mut winners = Vec::with_capacity(rows);
        let mut met = vec![false; self.0.scores];
        {
            let mut plain = all.try_as_plain_ram_mut()?;
            let scores = plain.as_slice_mut::<f32>()?;
            for at in 0..rows {
                let scores = &mut scores[at * self.0.scores..][..self.0.scores];
                winners.push(self.0.row(&values[at * width..][..width], scores, &mut met));
            }
        }
        Ok(match &self.0.labels {
            None => tvec!(all.into_tvalue()),
            Some(Labels::Numbers(labels)) => {
                let chosen: Vec<i64> = winners.into_iter().map(|winner| labels[winner]).collect();
                tvec!(tensor1(&chosen).into_tvalue(), all.into_tvalue())
            }
            Some(Labels::Texts(labels)) => {
                let chosen: Vec<String> = winners.into_iter().map(|winner| labels[winner].clone()).collect();
                tvec!(tensor1(&chosen).into_tvalue(), all.into_tvalue())
            }
        })
    }
}

impl TypedOp for Trees {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs[0].rank() == 2, "trees take rows and features");
        let rows = inputs[0].shape[0].clone();
        let scores = f32::fact(&[rows.clone(), self.0.scores.to_dim()]);
        Ok(match &self.0.labels {
            None => tvec!(scores),
            Some(labels) => tvec!(labels.kind().fact(&[rows]), scores),
        })
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use prost::Message as _;
    use serde::Deserialize;
    use skep_model::tensor::{Tensor as Values, TensorType};
    use tract_onnx::pb;

    use crate::backend::tract::Tract;
    use crate::{Limits, Model};

    #[derive(Deserialize)]
    struct Expected {
        shape: Vec<u64>,
        data: Vec<Option<f32>>,
        outputs: Vec<Output>,
    }

    #[derive(Deserialize)]
    struct Output {
        shape: Vec<u64>,
        data: Vec<serde_json::Value>,
    }

    fn file(name: &str) -> Vec<u8> {
        let path = format!("{}/tests/models/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn load(bytes: Vec<u8>) -> Result<Model, crate::Refusal> {
        Model::load(&Tract::new(), &Bytes::from(bytes), &Limits::default())
    }

    /// Every kind of tree that converters write, and every way to compare, is as ONNX Runtime has it.
    #[test]
    fn trees_and_scalers_answer_as_onnx_runtime_does() {
        let all: BTreeMap<String, Expected> = serde_json::from_slice(&file("expected.json")).unwrap();
        assert!(all.len() >= 20);
        for (name, expected) in all {
            let model = load(file(&format!("{name}.onnx"))).unwrap_or_else(|error| panic!("{name}: {error}"));
            let values: Vec<f32> = expected.data.iter().map(|value| value.unwrap_or(f32::NAN)).collect();
            let input = Values::from_f32(expected.shape.clone(), &values).unwrap();
            let answer = model
                .run(&[(String::from("x"), input)])
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(answer.len(), expected.outputs.len(), "{name}");
            for ((output, got), want) in answer.iter().zip(&expected.outputs) {
                assert_eq!(got.shape(), want.shape, "{name}, {output}");
                match got.kind() {
                    TensorType::Fp32 => {
                        for (at, (got, want)) in got.to_f32().unwrap().iter().zip(&want.data).enumerate() {
                            let want = want.as_f64().unwrap() as f32;
                            let far = (got - want).abs();
                            assert!(
                                far <= 2e-6 * (1.0 + want.abs()),
                                "{name}, {output}, element {at}: {got}, expected {want}"
                            );
                        }
                    }
                    TensorType::I64 => {
                        let want: Vec<i64> = want.data.iter().map(|value| value.as_i64().unwrap()).collect();
                        assert_eq!(got.to_i64().unwrap(), want, "{name}, {output}");
                    }
                    TensorType::Bytes => {
                        let want: Vec<&[u8]> = want
                            .data
                            .iter()
                            .map(|value| value.as_str().unwrap().as_bytes())
                            .collect();
                        assert_eq!(got.contents().collect::<Vec<_>>(), want, "{name}, {output}");
                    }
                    other => panic!("{name}, {output}: {other}"),
                }
            }
        }
    }

    fn changed(change: impl FnOnce(&mut pb::NodeProto)) -> Result<Model, crate::Refusal> {
        let mut model = pb::ModelProto::decode(&*file("modes-0.onnx")).unwrap();
        change(&mut model.graph.as_mut().unwrap().node[0]);
        load(model.encode_to_vec())
    }

    fn ints<'a>(node: &'a mut pb::NodeProto, name: &str) -> &'a mut Vec<i64> {
        &mut node
            .attribute
            .iter_mut()
            .find(|attribute| attribute.name == name)
            .unwrap()
            .ints
    }

    #[test]
    fn trees_that_are_none_are_refused() {
        type Change = fn(&mut pb::NodeProto);
        let cases: [(&str, Change); 9] = [
            ("comes after itself", |node| ints(node, "nodes_truenodeids")[1] = 0),
            ("comes after itself", |node| ints(node, "nodes_truenodeids")[1] = 1),
            ("after two others", |node| ints(node, "nodes_truenodeids")[2] = 4),
            ("node 77 of tree 0 is not there", |node| {
                ints(node, "nodes_falsenodeids")[0] = 77
            }),
            ("nodes_featureids has 6 entries", |node| {
                ints(node, "nodes_featureids").pop();
            }),
            ("a feature has a number", |node| ints(node, "nodes_featureids")[0] = -1),
            ("two of its nodes", |node| ints(node, "nodes_nodeids")[6] = 5),
            ("target that is not there", |node| ints(node, "target_ids")[0] = 9),
            ("a weight is for node 99", |node| ints(node, "target_nodeids")[0] = 99),
        ];
        assert!(changed(|_| ()).is_ok());
        for (says, change) in cases {
            let error = changed(change).expect_err(says).to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
        // A feature that no row has is found when the first row comes: at load.
        let error = changed(|node| ints(node, "nodes_featureids")[0] = 5)
            .unwrap_err()
            .to_string();
        assert!(error.contains("feature 5"), "{error}");
    }
}
