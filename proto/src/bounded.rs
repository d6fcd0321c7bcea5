//! The codec of [`crate::inference`]: prost's, with a look at a message before it is decoded.
//!
//! A message may be as large as tensors are, and raw ones are taken from it without a copy. All else in it is decoded into memory of many times
//! its size: an empty entry of a list is two bytes on the wire, and some two hundred here. So what is not a raw tensor has bounds
//! of its own, which a pass over the outermost fields proves.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf as _;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::limits::{FIELDS_BYTES_MAX, FIELDS_MAX};

/// `ModelInferRequest.raw_input_contents`. No other message that is received has a field of that number.
const RAW: u64 = 7;

#[derive(Debug, Clone)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Bounded<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Bounded<U> {
        Bounded(ProstDecoder::default())
    }
}

#[derive(Debug)]
pub struct Bounded<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for Bounded<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // tonic hands over a whole message in one piece.
        let whole = message.chunk();
        if whole.len() < message.remaining() {
            return Err(Status::internal("a message in pieces"));
        }
        check(whole)?;
        self.0.decode(message)
    }
}

/// Looks at the outermost fields. What is no message of fields is left to the decoder, which refuses it.
fn check(mut rest: &[u8]) -> Result<(), Status> {
    let (mut fields, mut bytes) = (0, 0);
    while !rest.is_empty() {
        let before = rest.len();
        let Some(key) = varint(&mut rest) else { return Ok(()) };
        let length = match key & 7 {
            0 => {
                let Some(_) = varint(&mut rest) else { return Ok(()) };
                0
            }
            1 => 8,
            2 => match varint(&mut rest) {
                Some(length) => length,
                None => return Ok(()),
            },
            5 => 4,
            _ => return Ok(()),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(tail) = rest.get(length..) else { return Ok(()) };
        rest = tail;
        fields += 1;
        if key >> 3 != RAW || key & 7 != 2 {
            bytes += before - rest.len();
        }
        if fields > FIELDS_MAX {
            return Err(Status::invalid_argument(format!(
                "the message has more than the {FIELDS_MAX} fields that are allowed"
            )));
        }
        if bytes > FIELDS_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "the message has more than the {FIELDS_BYTES_MAX} bytes that are allowed beside raw_input_contents: send the tensors there"
            )));
        }
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for at in 0..10 {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::ModelInferRequest;
    use crate::inference::model_infer_request::InferInputTensor;

    fn refused(request: &ModelInferRequest) -> Option<String> {
        check(&request.encode_to_vec())
            .err()
            .map(|status| status.message().to_owned())
    }

    #[test]
    fn raw_tensors_may_be_large_and_all_else_may_not() {
        let mut request = ModelInferRequest {
            model_name: "m".into(),
            raw_input_contents: vec![vec![7; 16 << 20].into(); 4],
            ..Default::default()
        };
        assert_eq!(refused(&request), None);
        request.id = "x".repeat(FIELDS_BYTES_MAX);
        assert!(refused(&request).unwrap().contains("beside raw_input_contents"));
        for request in [
            ModelInferRequest {
                inputs: vec![InferInputTensor::default(); FIELDS_MAX + 1],
                ..Default::default()
            },
            ModelInferRequest {
                raw_input_contents: vec![Default::default(); FIELDS_MAX + 1],
                ..Default::default()
            },
        ] {
            assert!(refused(&request).unwrap().contains("fields"));
        }
    }

    #[test]
    fn what_is_broken_is_left_to_the_decoder() {
        for broken in [
            &b"\x80"[..],
            b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",
            b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x3a\x05x",
            b"\x0f",
            b"\x09\x01",
        ] {
            assert!(check(broken).is_ok());
            assert!(ModelInferRequest::decode(broken).is_err(), "{broken:?}");
        }
        // The widest number: its highest bit does not fall off.
        assert_eq!(
            varint(&mut &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..]),
            Some(u64::MAX)
        );
    }
}
