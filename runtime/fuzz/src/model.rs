//! The first look at an uploaded ONNX file.

use skep_inference::limits::{Limits, MODEL_NAME_BYTES_MAX, OPSET_MAX, OPSET_MIN, PORTS_MAX};
use skep_inference::{Refusal, inspect};
use skep_model::limits::{TENSOR_NAME_BYTES_MAX, TENSOR_RANK_MAX};

pub fn run(bytes: &[u8]) -> bool {
    let limits = Limits::default();
    let found = match inspect(bytes, &limits) {
        Ok(found) => found,
        Err(refusal) => {
            // It goes to whoever uploaded, and into the audit.
            let text = refusal.to_string();
            assert!(!text.is_empty() && text.len() < 4 * MODEL_NAME_BYTES_MAX, "{text}");
            if let Refusal::TooMuch { got, max, .. } = refusal {
                assert!(got > max, "{got} are not more than {max}");
            }
            return false;
        }
    };
    let signature = &found.signature;
    assert!(found.nodes <= limits.nodes && (OPSET_MIN..=OPSET_MAX).contains(&found.opset));
    assert!(found.weights_bytes <= bytes.len() as u64, "more weights than file");
    assert!(!signature.outputs.is_empty() && found.producer.chars().count() <= 128);
    for ports in [&signature.inputs, &signature.outputs] {
        assert!(ports.len() <= PORTS_MAX);
        for (at, port) in ports.iter().enumerate() {
            assert!(!port.name.is_empty() && port.name.len() <= TENSOR_NAME_BYTES_MAX);
            assert!(port.shape.len() <= TENSOR_RANK_MAX && !port.shape.contains(&Some(0)));
            assert!(
                ports[..at].iter().all(|other| other.name != port.name),
                "two of one name"
            );
        }
    }
    assert_eq!(found.batchable, signature.batchable());
    assert_eq!(
        inspect(bytes, &limits).as_ref(),
        Ok(&found),
        "another answer to the same file"
    );
    true
}
