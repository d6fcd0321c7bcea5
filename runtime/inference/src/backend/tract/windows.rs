//! Windows over images whose size the caller chooses: one that is larger than its image is refused, never read beyond it.

use bytes::Bytes;
use skep_model::tensor::Tensor;

use super::Tract;
use crate::{InferError, Limits, Model};

fn load(name: &str) -> Model {
    let path = format!("{}/tests/models/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
    let bytes = Bytes::from(std::fs::read(path).unwrap());
    Model::load(&Tract::new(), &bytes, &Limits::default()).unwrap()
}

fn run(model: &Model, shape: &[u64]) -> Result<Vec<u64>, InferError> {
    let zeros = vec![1.0; shape.iter().product::<u64>() as usize];
    let inputs = vec![("x".to_owned(), Tensor::from_f32(shape.to_vec(), &zeros).unwrap())];
    model.run(&inputs).map(|outputs| outputs[0].1.shape().to_vec())
}

/// A constant of which a call's size says how much is left, under a window of 4 × 4. Both sides of what came out were −1, and the process died.
#[test]
fn a_window_over_less_than_itself_is_refused() {
    let model = load("window");
    let mut refused = 0;
    for size in 1..40 {
        match run(&model, &[size]) {
            Ok(_) => {}
            Err(InferError::Failed(why)) => {
                assert!(why.contains("too small"), "{size}: {why}");
                refused += 1;
            }
            Err(other) => panic!("{size}: {other}"),
        }
    }
    assert!(refused > 0 && model.panicked().is_none());
}

/// Ordinary models of vision, whose smallest image is not one pixel.
#[test]
fn images_of_any_size_from_the_window_s_on_are_taken() {
    for name in ["conv", "pool"] {
        let model = load(name);
        for (side, fits) in [(1, false), (2, false), (3, true), (8, true), (33, true)] {
            let said = run(&model, &[1, 1, side, side]);
            assert_eq!(said.is_ok(), fits, "{name} {side}: {said:?}");
        }
        assert!(model.panicked().is_none());
    }
}
