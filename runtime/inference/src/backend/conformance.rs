//! What every backend must do; each runs this suite. Answers are held against those of ONNX Runtime in Python, which `train.py` wrote.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use skep_model::tensor::{Tensor, TensorType};

use super::onnxruntime::OnnxRuntime;
use super::tract::Tract;
use super::*;
use crate::sample;

/// How far an answer may be from the expected one: sums are done in another order. Probabilities, so it is absolute.
const TOLERANCE: f32 = 2e-6;

/// Where the tests find ONNX Runtime: the same variable as everybody. Without it that half of the suite says so and is left out.
fn onnxruntime() -> Option<OnnxRuntime> {
    let Some(path) = std::env::var_os(onnxruntime::PATH_VARIABLE) else {
        eprintln!("{} is not set: ONNX Runtime is not tested", onnxruntime::PATH_VARIABLE);
        return None;
    };
    Some(OnnxRuntime::open(Path::new(&path), 1).expect("the variable names a library"))
}

fn backends() -> Vec<Box<dyn Backend>> {
    let mut all: Vec<Box<dyn Backend>> = vec![Box::new(Tract::new())];
    if let Some(onnxruntime) = onnxruntime() {
        all.push(Box::new(onnxruntime));
    }
    all
}

fn load(backend: &dyn Backend, name: &str) -> Model {
    Model::load(backend, &sample::read(name), &Limits::default())
        .unwrap_or_else(|error| panic!("{name} on {}: {error}", backend.name()))
}

fn closest(got: &Tensor, want: &[f32]) -> f32 {
    let got = got.to_f32().expect("probabilities are FP32");
    assert_eq!(got.len(), want.len());
    got.iter()
        .zip(want)
        .map(|(got, want)| (got - want).abs())
        .fold(0.0, f32::max)
}

#[test]
fn samples_answer_as_expected() {
    for backend in backends() {
        for (name, expected) in sample::expected() {
            let model = load(&*backend, name);
            assert!(model.batchable(), "{name}");
            assert!(model.memory_bytes() >= model.described().weights_bytes);
            let answer = model.run(&[(expected.input.clone(), expected.tensor())]).unwrap();
            assert_eq!(answer[0].0, "label");
            assert_eq!(
                answer[0].1.to_i64().unwrap(),
                expected.label,
                "{name} on {}",
                backend.name()
            );
            let far = closest(&answer[1].1, &expected.probabilities);
            println!("{name} on {}: {far:e} from the expected", backend.name());
            assert!(far < TOLERANCE, "{name} on {}: {far}", backend.name());
        }
    }
}

#[test]
fn any_number_of_rows_gives_what_each_row_gives() {
    for backend in backends() {
        for (name, expected) in sample::expected() {
            let model = load(&*backend, name);
            let three = expected.tensor();
            for rows in [1, 2, 3, 7, 64, 100] {
                let parts: Vec<Tensor> = (0..rows).map(|row| three.slice(row % 3, 1).unwrap()).collect();
                let all = Tensor::join(&parts.iter().collect::<Vec<_>>()).unwrap();
                let answer = model.run(&[(expected.input.clone(), all)]).unwrap();
                for row in 0..rows {
                    let label = answer[0].1.slice(row, 1).unwrap().to_i64().unwrap();
                    assert_eq!(label[0], expected.label[(row % 3) as usize]);
                    let width = expected.probabilities.len() / 3;
                    let want = &expected.probabilities[(row % 3) as usize * width..][..width];
                    assert!(
                        closest(&answer[1].1.slice(row, 1).unwrap(), want) < TOLERANCE,
                        "{name} on {}, row {row} of {rows}",
                        backend.name()
                    );
                }
            }
        }
    }
}

#[test]
fn runs_on_many_threads_do_not_meet() {
    for backend in backends() {
        let model = Arc::new(load(&*backend, "digits-cnn"));
        let expected = sample::expected()
            .into_iter()
            .find(|(name, _)| *name == "digits-cnn")
            .unwrap()
            .1;
        std::thread::scope(|scope| {
            for at in 0..6u64 {
                let (model, expected) = (Arc::clone(&model), &expected);
                scope.spawn(move || {
                    for round in 0..50 {
                        let row = (at + round) % 3;
                        let input = vec![(expected.input.clone(), expected.tensor().slice(row, 1).unwrap())];
                        assert_eq!(
                            model.run(&input).unwrap()[0].1.to_i64().unwrap(),
                            [expected.label[row as usize]]
                        );
                    }
                });
            }
        });
    }
}

#[test]
fn what_does_not_fit_is_refused_and_harms_nothing() {
    for backend in backends() {
        let model = load(&*backend, "iris");
        let run = |name: &str, tensor: Tensor| {
            model
                .run(&[(name.to_owned(), tensor)])
                .map_err(|error| (error.kind(), error.to_string()))
        };
        for (name, tensor, says) in [
            (
                "features",
                Tensor::from_f32(vec![1, 5], &[0.0; 5]).unwrap(),
                "FP32 [1, 5]: expected FP32 [any, 4]",
            ),
            ("features", Tensor::from_f32(vec![4], &[0.0; 4]).unwrap(), "FP32 [4]"),
            ("features", Tensor::from_f32(vec![0, 4], &[]).unwrap(), "zero"),
            (
                "features",
                Tensor::from_i64(vec![1, 4], &[0; 4]).unwrap(),
                "INT64 [1, 4]",
            ),
            (
                "other",
                Tensor::from_f32(vec![1, 4], &[0.0; 4]).unwrap(),
                "the inputs are features",
            ),
        ] {
            let (kind, text) = run(name, tensor).unwrap_err();
            assert!(kind == ErrorKind::Invalid && text.contains(says), "{text}");
        }
        // Not a number is a number to a model; what it makes of it is its affair, and the next call is well.
        let odd = run(
            "features",
            Tensor::from_f32(vec![1, 4], &[f32::NAN, f32::INFINITY, -1e38, 0.0]).unwrap(),
        );
        assert!(odd.is_ok(), "{odd:?}");
        assert_eq!(
            run("features", Tensor::from_f32(vec![1, 4], &[5.1, 3.5, 1.4, 0.2]).unwrap()).unwrap()[0]
                .1
                .to_i64()
                .unwrap(),
            [0]
        );
    }
}

#[test]
fn a_run_that_would_take_too_much_is_not_begun() {
    let tight = Limits {
        run_bytes: 1 << 20,
        ..Limits::default()
    };
    for backend in backends() {
        let model = Model::load(&*backend, &sample::read("digits-cnn"), &tight).unwrap();
        let rows = |rows: u64| {
            model.run(&[(
                String::from("image"),
                Tensor::from_f32(vec![rows, 1, 28, 28], &vec![0.0; 784 * rows as usize]).unwrap(),
            )])
        };
        assert!(rows(1).is_ok());
        let refused = rows(400).unwrap_err().to_string();
        assert!(refused.contains("send fewer rows"), "{refused}");
    }
}

/// Each node doubles what it is given, forty times: 1.8 KB that would be 70 TB.
#[test]
fn a_model_that_swells_is_refused_before_it_is_run() {
    let names: Vec<String> = (0..=40).map(|at| format!("v{at}")).collect();
    let inputs: Vec<[&str; 2]> = names.iter().map(|name| [name.as_str(); 2]).collect();
    let outputs: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
    let nodes: Vec<(&str, &[&str], &[&str])> = (0..40)
        .map(|at| ("Double", &inputs[at][..], &outputs[at + 1][..]))
        .collect();
    let bytes = sample::graph(&nodes, ("v0", 1, &[None, Some(4)]), ("v40", 1, &[None, None]));
    let error = Model::load(&Tract::new(), &bytes, &Limits::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("bytes in a run of one row"), "{error}");
}

#[test]
fn a_model_whose_sizes_are_in_its_tensors_is_refused() {
    for backend in backends() {
        // INT64 [2] becomes a tensor of any size. What tract does not do at all it says itself.
        let bytes = sample::graph(
            &[("ConstantOfShape", &["s"], &["y"])],
            ("s", 7, &[Some(2)]),
            ("y", 1, &[None, None]),
        );
        let error = Model::load(&*backend, &bytes, &Limits::default())
            .unwrap_err()
            .to_string();
        let says = if backend.name() == "tract" {
            "shape input is variable"
        } else {
            "could choose any size"
        };
        assert!(error.contains(says), "{}: {error}", backend.name());
    }
    let bytes = sample::graph(
        &[("NonZero", &["x"], &["y"])],
        ("x", 1, &[None, Some(4)]),
        ("y", 7, &[Some(2), None]),
    );
    let error = Model::load(&Tract::new(), &bytes, &Limits::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"the NonZero\"") && error.contains("could choose any size"),
        "{error}"
    );
}

/// ONNX Runtime ends the process at 1/0 and at the least number over -1, so it is not given such a model; tract says what is wrong, each time.
#[test]
fn whole_numbers_divided_by_a_callers_end_no_process() {
    for (operator, kind) in [
        ("Div", TensorType::I64),
        ("Mod", TensorType::I64),
        ("Div", TensorType::I32),
    ] {
        let number = if kind == TensorType::I64 { 7 } else { 6 };
        // Sign makes 0 of 0, and -1 of the least number.
        let nodes: &[(&str, &[&str], &[&str])] = &[("Sign", &["x"], &["by"]), (operator, &["x", "by"], &["y"])];
        let bytes = sample::graph(nodes, ("x", number, &[None, Some(1)]), ("y", number, &[None, Some(1)]));
        for backend in backends() {
            let loaded = Model::load(&*backend, &bytes, &Limits::default());
            if backend.name() == "onnxruntime" {
                let error = loaded.unwrap_err().to_string();
                assert!(error.contains("divides whole numbers"), "{error}");
                continue;
            }
            // An answer or an error, at load as in a call, and the process goes on.
            let Ok(model) = loaded else { continue };
            for x in [0, if number == 7 { i64::MIN } else { i64::from(i32::MIN) }, 3] {
                let size = kind.size().unwrap();
                let x = Tensor::new(kind, vec![1, 1], Bytes::copy_from_slice(&x.to_le_bytes()[..size])).unwrap();
                let _ = model.run(&[(String::from("x"), x)]);
            }
        }
    }
}

/// Each of 40 operators takes some milliseconds: the run ends after the one that is under way.
#[test]
fn a_run_ends_at_its_deadline() {
    let names: Vec<String> = (0..=40).map(|at| format!("v{at}")).collect();
    let inputs: Vec<[&str; 2]> = names.iter().map(|name| [name.as_str(); 2]).collect();
    let outputs: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
    let nodes: Vec<(&str, &[&str], &[&str])> = (0..40)
        .map(|at| ("MatMul", &inputs[at][..], &outputs[at + 1][..]))
        .collect();
    let shape = &[Some(700), Some(700)];
    let bytes = sample::graph(&nodes, ("v0", 1, shape), ("v40", 1, shape));
    for backend in backends() {
        let model = Model::load(&*backend, &bytes, &Limits::default()).unwrap();
        let call = || vec![(String::from("v0"), made_up(TensorType::Fp32, vec![700, 700], 1))];
        let begun = Instant::now();
        model.run(&call()).unwrap();
        let whole = begun.elapsed();
        let begun = Instant::now();
        let late = model.run_checked(&call(), begun + whole / 10);
        assert_eq!(late, Err(InferError::Late), "{}", backend.name());
        assert!(begun.elapsed() < whole * 7 / 10, "{:?} of {whole:?}", begun.elapsed());
        assert!(model.panicked().is_none());
        model.run(&call()).unwrap();
    }
}

#[test]
fn operators_that_are_unknown_are_named() {
    for backend in backends() {
        let bytes = sample::graph(
            &[("Relu", &["x"], &["z"]), ("Frobnicate", &["z"], &["y"])],
            ("x", 1, &[None, Some(4)]),
            ("y", 1, &[None, Some(4)]),
        );
        let error = Model::load(&*backend, &bytes, &Limits::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("Frobnicate"), "{}: {error}", backend.name());
    }
}

#[test]
fn rows_that_depend_on_each_other_are_not_put_together() {
    for backend in backends() {
        // The mean of all rows is taken from each.
        let nodes: &[(&str, &[&str], &[&str])] = &[("GlobalMean", &["x"], &["m"]), ("Sub", &["x", "m"], &["y"])];
        let bytes = sample::graph(nodes, ("x", 1, &[None, Some(4)]), ("y", 1, &[None, Some(4)]));
        let model = Model::load(&*backend, &bytes, &Limits::default()).unwrap();
        assert!(
            model.signature().batchable() && !model.batchable(),
            "{}",
            backend.name()
        );
        let plain = sample::graph(
            &[("Relu", &["x"], &["y"])],
            ("x", 1, &[None, Some(4)]),
            ("y", 1, &[None, Some(4)]),
        );
        assert!(Model::load(&*backend, &plain, &Limits::default()).unwrap().batchable());
    }
}

#[test]
fn types_go_through_as_they_are() {
    for backend in backends() {
        for (kind, number) in [
            (TensorType::Fp32, 1),
            (TensorType::I64, 7),
            (TensorType::Fp64, 11),
            (TensorType::I32, 6),
            (TensorType::U8, 2),
            (TensorType::Bool, 9),
            (TensorType::Bytes, 8),
        ] {
            let bytes = sample::graph(
                &[("Identity", &["x"], &["y"])],
                ("x", number, &[None, Some(2)]),
                ("y", number, &[None, Some(2)]),
            );
            let model = Model::load(&*backend, &bytes, &Limits::default())
                .unwrap_or_else(|error| panic!("{kind} on {}: {error}", backend.name()));
            let given = made_up(kind, vec![3, 2], 5);
            // Bytes that do not lie where the processor likes them.
            let mut shifted = vec![0];
            shifted.extend_from_slice(given.bytes());
            let given = Tensor::new(kind, vec![3, 2], Bytes::from(shifted).slice(1..)).unwrap();
            let answer = model.run(&[(String::from("x"), given.clone())]).unwrap();
            assert_eq!(answer[0].1, given, "{kind} on {}", backend.name());
        }
    }
}

#[test]
fn mutated_models_end_in_an_answer() {
    use rand::{RngExt, SeedableRng};
    // Of tract only, and where inspection lets them through: a C++ library meets such files in a process of its own only.
    let backend = Tract::new();
    let mut random = rand::rngs::SmallRng::seed_from_u64(5);
    let (mut loaded, mut refused) = (0, 0);
    for round in 0..400 {
        let mut bytes = sample::read(if round % 2 == 0 { "iris" } else { "cancer-mlp" }).to_vec();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        match Model::load(&backend, &Bytes::from(bytes), &Limits::default()) {
            Ok(_) => loaded += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(loaded > 20 && refused > 20, "{loaded} loaded, {refused} refused");
}

/// A backend that does as it is told.
#[derive(Debug)]
struct Odd(&'static str);

struct OddModel(&'static str, Signature);

impl Backend for Odd {
    fn name(&self) -> &'static str {
        "odd"
    }

    fn version(&self) -> String {
        String::from("1")
    }

    fn load(&self, _: &Bytes, described: &Described, _: &Limits) -> Result<Box<dyn Loaded>, Refusal> {
        assert!(self.0 != "load", "it fell over\nwhile loading");
        Ok(Box::new(OddModel(self.0, described.signature.clone())))
    }
}

impl Loaded for OddModel {
    fn run(&self, inputs: &[&Tensor], _: Instant) -> Result<Vec<Tensor>, RunError> {
        let rows = inputs[0].rows();
        match self.0 {
            "run" => assert!(inputs[0].bytes()[0] == 0, "it fell over"),
            "count" => return Ok(Vec::new()),
            "shape" => return Ok(vec![made_up(TensorType::Fp32, vec![rows, 9], 1)]),
            _ => {}
        }
        Ok(self
            .1
            .outputs
            .iter()
            .map(|port| made_up(port.kind, vec![rows, 4], 1))
            .collect())
    }

    fn memory_bytes(&self) -> u64 {
        1
    }

    fn parallel(&self) -> bool {
        true
    }
}

#[test]
fn a_panic_ends_the_model_and_nothing_else() {
    let bytes = sample::graph(
        &[("Relu", &["x"], &["y"])],
        ("x", 1, &[None, Some(4)]),
        ("y", 1, &[None, Some(4)]),
    );
    let load = |how| Model::load(&Odd(how), &bytes, &Limits::default());
    assert_eq!(
        load("load").unwrap_err(),
        Refusal::Load(String::from("it fell over while loading"))
    );
    assert!(
        load("count")
            .unwrap_err()
            .to_string()
            .contains("0 outputs, where it has 1")
    );
    assert!(load("shape").unwrap_err().to_string().contains("\"y\" is FP32 [1, 9]"));
    let model = load("run");
    // It may panic on what was made up.
    let model = model.or_else(|_| load("")).unwrap();
    assert!(model.panicked().is_none());
    let model = Model {
        loaded: Box::new(OddModel("run", model.signature().clone())),
        ..model
    };
    let x = |first: u8| {
        vec![(
            String::from("x"),
            Tensor::from_f32(vec![1, 4], &[f32::from_bits(u32::from(first)), 0.0, 0.0, 0.0]).unwrap(),
        )]
    };
    assert!(model.run(&x(0)).is_ok());
    assert!(matches!(model.run(&x(1)), Err(InferError::Panicked(why)) if why == "it fell over"));
    assert!(
        matches!(model.run(&x(0)), Err(InferError::Panicked(_))),
        "it runs no more"
    );
    assert!(model.panicked().is_some());
}

#[test]
fn a_backend_is_chosen_or_it_is_said_why_not() {
    assert_eq!(choose(Choice::Auto, None, 1).unwrap().name(), "tract");
    assert_eq!(
        choose(Choice::Tract, Some(Path::new("/nowhere")), 1).unwrap().name(),
        "tract"
    );
    assert!(
        choose(Choice::Auto, Some(Path::new("/nowhere")), 1)
            .unwrap_err()
            .contains("/nowhere")
    );
    assert!(
        choose(Choice::OnnxRuntime, None, 1)
            .unwrap_err()
            .contains("no library is named")
    );
}

#[test]
fn a_library_that_is_none_is_refused() {
    let missing = OnnxRuntime::open(Path::new("/nowhere/libonnxruntime.so"), 1).unwrap_err();
    assert!(
        missing.contains("there is no file /nowhere/libonnxruntime.so"),
        "{missing}"
    );
}
