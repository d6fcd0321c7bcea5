//! Calls of models. The first byte chooses: a call or an answer, with its length of JSON; or plain JSON, by one of a few signatures.

use bytes::Bytes;
use skep_model::limits::{CALL_TENSORS_MAX, TENSOR_NAME_BYTES_MAX, TENSOR_RANK_MAX};
use skep_model::oip::{self, Body, Request, Response, plain};
use skep_model::predict::Tensors;
use skep_model::tensor::{Port, Signature, Tensor, TensorType};

pub fn run(bytes: &[u8]) -> bool {
    let Some((choice, rest)) = bytes.split_first() else {
        return false;
    };
    match choice % 4 {
        0 => split(rest).is_some_and(|(length, body)| request(&body, length)),
        1 => split(rest).is_some_and(|(length, body)| response(&body, length)),
        2 => from_json(rest),
        _ => raw(choice >> 2, rest),
    }
}

/// Two bytes say how much of the rest is JSON; the highest number: nothing is said.
fn split(bytes: &[u8]) -> Option<(Option<usize>, Bytes)> {
    let (length, body) = bytes.split_first_chunk::<2>()?;
    let length = u16::from_le_bytes(*length);
    let length = (length != u16::MAX).then_some(usize::from(length));
    Some((length, Bytes::copy_from_slice(body)))
}

fn request(body: &Bytes, length: Option<usize>) -> bool {
    let json = length.map_or(&body[..], |length| &body[..length.min(body.len())]);
    let told = oip::is_request(json);
    let Ok(read) = Request::read(body, length) else {
        return false;
    };
    assert!(
        told || read.inputs.is_empty(),
        "a call with tensors that is not told for one"
    );
    tensors(&read.inputs);
    assert!(read.outputs.len() <= CALL_TENSORS_MAX);
    let _ = read.timeout_ms();
    // All in binary can always be said; as JSON only what JSON has words for.
    let again = |body: Body| Request::read(&body.bytes, body.json_length);
    let written = read.write(|_| true).expect("every call can be said in binary");
    same(&again(written).expect("what was written is read").inputs, &read.inputs);
    if let Ok(written) = read.write(|_| false) {
        let back = again(written).expect("what was written is read");
        assert_eq!(
            (&back.id, &back.parameters, &back.outputs, back.binary_all),
            (&read.id, &read.parameters, &read.outputs, read.binary_all)
        );
        near(&back.inputs, &read.inputs);
    }
    true
}

fn response(body: &Bytes, length: Option<usize>) -> bool {
    let Ok(read) = Response::read(body, length) else {
        return false;
    };
    tensors(&read.outputs);
    let written = read.write(|_| true).expect("every answer can be said in binary");
    let back = Response::read(&written.bytes, written.json_length).expect("what was written is read");
    assert_eq!(
        (&back.model, &back.version, &back.id),
        (&read.model, &read.version, &read.id)
    );
    assert_eq!(back.parameters, read.parameters);
    same(&back.outputs, &read.outputs);
    true
}

fn from_json(json: &[u8]) -> bool {
    let mut read_any = false;
    for kind in TensorType::ALL {
        let port = |name: &str, shape: &[Option<u64>]| Port {
            name: name.to_owned(),
            kind,
            shape: shape.to_vec(),
        };
        for inputs in [
            vec![port("x", &[None, Some(2)])],
            vec![port("x", &[None]), port("y", &[None, None])],
        ] {
            let signature = Signature {
                outputs: inputs.clone(),
                inputs,
            };
            let Ok(read) = plain::read(json, &signature) else {
                continue;
            };
            read_any = true;
            tensors(&read);
            signature.check(&read).expect("what was read fits the signature");
            if let Ok(written) = plain::write(&read) {
                serde_json::from_slice::<serde_json::Value>(&written).expect("what was written is JSON");
            }
        }
    }
    read_any
}

/// A tensor of a type, from its shape and bytes: rows cut apart are put together again.
fn raw(kind: u8, bytes: &[u8]) -> bool {
    let kind = TensorType::ALL[usize::from(kind) % TensorType::ALL.len()];
    let Some((rank, mut rest)) = bytes.split_first() else {
        return false;
    };
    let mut shape = Vec::new();
    for _ in 0..rank % 12 {
        let Some((dim, tail)) = rest.split_first_chunk::<8>() else {
            return false;
        };
        shape.push(u64::from_le_bytes(*dim));
        rest = tail;
    }
    let Ok(tensor) = Tensor::new(kind, shape, Bytes::copy_from_slice(rest)) else {
        return false;
    };
    tensors(&vec![("x".to_owned(), tensor.clone())]);
    if tensor.shape().is_empty() || tensor.rows() > 1 << 20 {
        return true;
    }
    let half = tensor.rows() / 2;
    let first = tensor.slice(0, half).expect("rows that there are");
    let second = tensor.slice(half, tensor.rows() - half).expect("rows that there are");
    assert_eq!(Tensor::join(&[&first, &second]).expect("rows of one tensor"), tensor);
    assert!(
        tensor.slice(half, tensor.rows() - half + 1).is_err(),
        "more rows than there are"
    );
    true
}

/// The bounds of what was let in.
fn tensors(all: &Tensors) {
    assert!(all.len() <= CALL_TENSORS_MAX);
    for (name, tensor) in all {
        assert!(!name.is_empty() && name.len() <= TENSOR_NAME_BYTES_MAX && tensor.shape().len() <= TENSOR_RANK_MAX);
        match tensor.kind().size() {
            Some(size) => assert_eq!(tensor.elements() * size, tensor.bytes().len()),
            None => assert_eq!(tensor.contents().count(), tensor.elements()),
        }
    }
}

fn same(one: &Tensors, other: &Tensors) {
    assert_eq!(one, other, "written and read again it is another");
}

/// As JSON: floating-point numbers to within a unit in their last place, all else as it was.
fn near(one: &Tensors, other: &Tensors) {
    assert_eq!(one.len(), other.len());
    for ((name, a), (other_name, b)) in one.iter().zip(other) {
        assert_eq!((name, a.kind(), a.shape()), (other_name, b.kind(), b.shape()));
        let close = |size: usize, close: fn(&[u8], &[u8]) -> bool| {
            let mut pairs = a.bytes().chunks_exact(size).zip(b.bytes().chunks_exact(size));
            assert!(pairs.all(|(a, b)| close(a, b)), "{a:?} {b:?}");
        };
        match a.kind() {
            TensorType::Fp64 => close(8, |a, b| bits64(a).abs_diff(bits64(b)) <= 1),
            TensorType::Fp32 => close(4, |a, b| bits32(a).abs_diff(bits32(b)) <= 1),
            TensorType::Fp16 | TensorType::Bf16 => close(2, |a, b| bits16(a).abs_diff(bits16(b)) <= 1),
            _ => assert_eq!(a, b),
        }
    }
}

fn bits64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn bits32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

fn bits16(bytes: &[u8]) -> u16 {
    u16::from_le_bytes(bytes.try_into().expect("two bytes"))
}
