//! Tensors as typed contents of gRPC: a list of numbers in the one field that a type has.

use skep_model::oip::OipError;
use skep_model::tensor::{Tensor, TensorType};
use skep_proto::inference::InferTensorContents;

/// # Errors
/// Elements in the field of another type, or out of the type's range; as many as the shape does not say.
pub(super) fn read(
    name: &str,
    kind: TensorType,
    shape: Vec<u64>,
    contents: InferTensorContents,
) -> Result<Tensor, OipError> {
    let bad = |why: String| OipError::Invalid(format!("input {name:?}: {why}"));
    let used = used(&contents);
    let Some(own) = field(kind) else {
        return Err(bad(format!(
            "there are no typed contents of {kind}: send it in raw_input_contents"
        )));
    };
    if let Some(other) = used.iter().find(|field| **field != own) {
        return Err(bad(format!(
            "elements of {kind} are in {other}: expected them in {own}"
        )));
    }
    let out_of_range = |value: &dyn std::fmt::Display| bad(format!("{value} is no {kind}"));
    macro_rules! narrow {
        ($list:expr, $type:ty) => {{
            let mut bytes = Vec::with_capacity($list.len() * size_of::<$type>());
            for value in $list {
                let value = <$type>::try_from(value).map_err(|_| out_of_range(&value))?;
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            bytes
        }};
    }
    macro_rules! plain {
        ($list:expr) => {
            $list.into_iter().flat_map(|value| value.to_le_bytes()).collect()
        };
    }
    let bytes: Vec<u8> = match kind {
        TensorType::Bool => contents.bool_contents.into_iter().map(u8::from).collect(),
        TensorType::I8 => narrow!(contents.int_contents, i8),
        TensorType::I16 => narrow!(contents.int_contents, i16),
        TensorType::I32 => plain!(contents.int_contents),
        TensorType::I64 => plain!(contents.int64_contents),
        TensorType::U8 => narrow!(contents.uint_contents, u8),
        TensorType::U16 => narrow!(contents.uint_contents, u16),
        TensorType::U32 => plain!(contents.uint_contents),
        TensorType::U64 => plain!(contents.uint64_contents),
        TensorType::Fp32 => plain!(contents.fp32_contents),
        TensorType::Fp64 => plain!(contents.fp64_contents),
        TensorType::Bytes => {
            let elements = contents.bytes_contents.iter().map(|element| &element[..]);
            return Tensor::from_contents(shape, elements).map_err(|error| bad(error.to_string()));
        }
        // They have no field, see above.
        TensorType::Fp16 | TensorType::Bf16 => Vec::new(),
    };
    Tensor::new(kind, shape, bytes.into()).map_err(|error| bad(error.to_string()))
}

/// `None`: this type has no field.
pub(super) fn write(tensor: &Tensor) -> Option<InferTensorContents> {
    let mut contents = InferTensorContents::default();
    let bytes = &tensor.bytes()[..];
    macro_rules! list {
        ($type:ty) => {
            list!($type, $type)
        };
        ($type:ty, $wide:ty) => {{
            let (elements, _) = bytes.as_chunks();
            elements
                .iter()
                .map(|element| <$wide>::from(<$type>::from_le_bytes(*element)))
                .collect()
        }};
    }
    match tensor.kind() {
        TensorType::Bool => contents.bool_contents = bytes.iter().map(|byte| *byte != 0).collect(),
        TensorType::I8 => contents.int_contents = list!(i8, i32),
        TensorType::I16 => contents.int_contents = list!(i16, i32),
        TensorType::I32 => contents.int_contents = list!(i32),
        TensorType::I64 => contents.int64_contents = list!(i64),
        TensorType::U8 => contents.uint_contents = list!(u8, u32),
        TensorType::U16 => contents.uint_contents = list!(u16, u32),
        TensorType::U32 => contents.uint_contents = list!(u32),
        TensorType::U64 => contents.uint64_contents = list!(u64),
        TensorType::Fp32 => contents.fp32_contents = list!(f32),
        TensorType::Fp64 => contents.fp64_contents = list!(f64),
        TensorType::Bytes => {
            let whole = tensor.bytes();
            contents.bytes_contents = tensor.contents().map(|element| whole.slice_ref(element)).collect();
        }
        TensorType::Fp16 | TensorType::Bf16 => return None,
    }
    Some(contents)
}

fn field(kind: TensorType) -> Option<&'static str> {
    Some(match kind {
        TensorType::Bool => "bool_contents",
        TensorType::I8 | TensorType::I16 | TensorType::I32 => "int_contents",
        TensorType::I64 => "int64_contents",
        TensorType::U8 | TensorType::U16 | TensorType::U32 => "uint_contents",
        TensorType::U64 => "uint64_contents",
        TensorType::Fp32 => "fp32_contents",
        TensorType::Fp64 => "fp64_contents",
        TensorType::Bytes => "bytes_contents",
        TensorType::Fp16 | TensorType::Bf16 => return None,
    })
}

fn used(contents: &InferTensorContents) -> Vec<&'static str> {
    let all = [
        ("bool_contents", contents.bool_contents.is_empty()),
        ("int_contents", contents.int_contents.is_empty()),
        ("int64_contents", contents.int64_contents.is_empty()),
        ("uint_contents", contents.uint_contents.is_empty()),
        ("uint64_contents", contents.uint64_contents.is_empty()),
        ("fp32_contents", contents.fp32_contents.is_empty()),
        ("fp64_contents", contents.fp64_contents.is_empty()),
        ("bytes_contents", contents.bytes_contents.is_empty()),
    ];
    all.into_iter()
        .filter(|(_, empty)| !empty)
        .map(|(name, _)| name)
        .collect()
}
