//! Tensors as models take and give them, and what a model says that it takes and gives.
//!
//! Names of types are those of the Open Inference Protocol v2. A tensor is its bytes, little-endian, row-major, without gaps, so that it goes
//! from a socket to a model and back without being looked at. Only `BYTES` has elements of any length: each is its length, four bytes
//! little-endian, then its content, as in the protocol's binary form.

use std::fmt;
use std::str::FromStr;

use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

use crate::limits::{TENSOR_BYTES_MAX, TENSOR_RANK_MAX};

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TensorType {
    Bool,
    #[serde(rename = "UINT8")]
    U8,
    #[serde(rename = "UINT16")]
    U16,
    #[serde(rename = "UINT32")]
    U32,
    #[serde(rename = "UINT64")]
    U64,
    #[serde(rename = "INT8")]
    I8,
    #[serde(rename = "INT16")]
    I16,
    #[serde(rename = "INT32")]
    I32,
    #[serde(rename = "INT64")]
    I64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

/// What is wrong with a tensor, or with the tensors of a call.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TensorError {
    #[error(
        "unknown tensor type {0:?}: use one of BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64, BYTES"
    )]
    Type(String),
    #[error("a tensor of {got} dimensions: {TENSOR_RANK_MAX} are allowed")]
    Rank { got: usize },
    #[error(
        "a tensor of shape {shape} has more than {TENSOR_BYTES_MAX} bytes: make it smaller, or send fewer rows at once"
    )]
    TooLarge { shape: Shape },
    #[error("a tensor of type {kind} and shape {shape} has {expected} bytes, but {got} were given")]
    Length {
        kind: TensorType,
        shape: Shape,
        expected: usize,
        got: usize,
    },
    #[error("element {at} of a tensor of type BYTES and shape {shape} is broken: {why}")]
    Element { shape: Shape, at: usize, why: &'static str },
    #[error("the data of a tensor of type {kind} and shape {shape}: {why}")]
    Json {
        kind: TensorType,
        shape: Shape,
        why: String,
    },
    #[error("input {name:?} is missing: expected {expected}")]
    Missing { name: String, expected: String },
    #[error("there is no input {name:?}: the inputs are {known}")]
    Unknown { name: String, known: String },
    #[error("input {name:?} is given twice")]
    Twice { name: String },
    #[error("input {name:?} is {got}: expected {expected}")]
    Mismatch {
        name: String,
        expected: String,
        got: String,
    },
    #[error("input {name:?} is {got}: a dimension of zero leaves nothing to work on; send at least one row")]
    Empty { name: String, got: String },
    #[error("input {name:?} has {got} rows, but input {other:?} has {rows}: all inputs of a call have as many")]
    Rows {
        name: String,
        got: u64,
        other: String,
        rows: u64,
    },
}

/// The shape of a tensor, as errors write it: `[1, 784]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape(pub Vec<u64>);

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl TensorType {
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The name in the Open Inference Protocol v2.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "UINT8",
            Self::U16 => "UINT16",
            Self::U32 => "UINT32",
            Self::U64 => "UINT64",
            Self::I8 => "INT8",
            Self::I16 => "INT16",
            Self::I32 => "INT32",
            Self::I64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// The name in `wasi:nn/tensor@0.2.0-rc-2024-10-28`, which has seven types. A guest sees no tensor of another.
    #[must_use]
    pub fn wasi_nn(self) -> Option<&'static str> {
        match self {
            Self::Fp16 => Some("FP16"),
            Self::Fp32 => Some("FP32"),
            Self::Fp64 => Some("FP64"),
            Self::Bf16 => Some("BF16"),
            Self::U8 => Some("U8"),
            Self::I32 => Some("I32"),
            Self::I64 => Some("I64"),
            _ => None,
        }
    }

    /// Bytes of one element; none of `BYTES`, where they differ.
    #[must_use]
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::U8 | Self::I8 => Some(1),
            Self::U16 | Self::I16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::U32 | Self::I32 | Self::Fp32 => Some(4),
            Self::U64 | Self::I64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TensorType {
    type Err = TensorError;

    fn from_str(text: &str) -> Result<Self, TensorError> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == text);
        known.ok_or_else(|| TensorError::Type(text.chars().take(32).collect()))
    }
}

/// One tensor, whose bytes are as many as its type and shape say: there is no other.
///
/// A dimension may be zero (a model may find nothing); a call's inputs may not, see [`Signature::check`]. No dimensions: a single element.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    kind: TensorType,
    shape: Vec<u64>,
    bytes: Bytes,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}, {} bytes", self.kind, self.shape, self.bytes.len())
    }
}

/// How many elements a shape has, within what a tensor may have.
fn elements(kind: TensorType, shape: &[u64]) -> Result<usize, TensorError> {
    if shape.len() > TENSOR_RANK_MAX {
        return Err(TensorError::Rank { got: shape.len() });
    }
    // An element of BYTES has a length at least. Zero anywhere makes none, however large the other dimensions are: these are
    // checked all the same, since backends multiply strides.
    let size = kind.size().unwrap_or(4) as u64;
    let bytes = shape.iter().try_fold(size, |all, dim| all.checked_mul((*dim).max(1)));
    match bytes {
        Some(bytes) if bytes <= TENSOR_BYTES_MAX as u64 => {
            Ok(if shape.contains(&0) { 0 } else { (bytes / size) as usize })
        }
        _ => Err(TensorError::TooLarge {
            shape: Shape(shape.to_vec()),
        }),
    }
}

impl Tensor {
    /// # Errors
    /// Too many dimensions or bytes, or not as many bytes as type and shape say. Elements of `BYTES` are all looked at.
    pub fn new(kind: TensorType, shape: Vec<u64>, bytes: Bytes) -> Result<Self, TensorError> {
        let elements = elements(kind, &shape)?;
        match kind.size() {
            Some(size) if bytes.len() != elements * size => {
                let expected = elements * size;
                return Err(TensorError::Length {
                    kind,
                    shape: Shape(shape),
                    expected,
                    got: bytes.len(),
                });
            }
            Some(_) => {}
            None => {
                if bytes.len() > TENSOR_BYTES_MAX {
                    return Err(TensorError::TooLarge { shape: Shape(shape) });
                }
                check_elements(&shape, elements, &bytes)?;
            }
        }
        Ok(Self { kind, shape, bytes })
    }

    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_f32(shape: Vec<u64>, values: &[f32]) -> Result<Self, TensorError> {
        Self::new(
            TensorType::Fp32,
            shape,
            values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        )
    }

    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_i64(shape: Vec<u64>, values: &[i64]) -> Result<Self, TensorError> {
        Self::new(
            TensorType::I64,
            shape,
            values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        )
    }

    /// Elements of `BYTES`.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_contents<'a>(shape: Vec<u64>, values: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, TensorError> {
        let mut bytes = BytesMut::new();
        for value in values {
            if value.len() + bytes.len() > TENSOR_BYTES_MAX {
                return Err(TensorError::TooLarge { shape: Shape(shape) });
            }
            bytes.put_u32_le(value.len() as u32);
            bytes.put_slice(value);
        }
        Self::new(TensorType::Bytes, shape, bytes.freeze())
    }

    #[must_use]
    pub fn kind(&self) -> TensorType {
        self.kind
    }

    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Elements, little-endian, row-major.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// How many elements there are.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product::<u64>() as usize
    }

    /// The first dimension: how many rows a batch has. One of a tensor without dimensions.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The elements as numbers, if they are FP32: for tests and for the ensemble's arithmetic. Bytes need not be aligned.
    #[must_use]
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        (self.kind == TensorType::Fp32).then(|| numbers(&self.bytes, f32::from_le_bytes).collect())
    }

    #[must_use]
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        (self.kind == TensorType::I64).then(|| numbers(&self.bytes, i64::from_le_bytes).collect())
    }

    /// Contents of a tensor of `BYTES`, in order; none of another type.
    pub fn contents(&self) -> impl Iterator<Item = &[u8]> {
        contents(if self.kind == TensorType::Bytes {
            &self.bytes
        } else {
            &[]
        })
    }

    /// Rows `from..from + rows` of the first dimension, sharing the bytes of this tensor.
    ///
    /// # Errors
    /// Elements that are no rows of this tensor: it has no dimensions, or fewer rows.
    pub fn slice(&self, from: u64, rows: u64) -> Result<Self, TensorError> {
        let end = from.checked_add(rows);
        if self.shape.is_empty() || end.is_none_or(|end| end > self.rows()) {
            let got = format!("rows {from} to {}", from.saturating_add(rows));
            let expected = format!("{} {}", self.kind, Shape(self.shape.clone()));
            return Err(TensorError::Mismatch {
                name: String::from("rows"),
                expected,
                got,
            });
        }
        let mut shape = self.shape.clone();
        shape[0] = rows;
        let bytes = match self.kind.size() {
            Some(size) => {
                let row = size * self.shape[1..].iter().product::<u64>() as usize;
                self.bytes.slice(from as usize * row..(from + rows) as usize * row)
            }
            None => {
                let row = self.shape[1..].iter().product::<u64>() as usize;
                let length = |elements: usize, at: usize| {
                    let mut at = at;
                    for _ in 0..elements {
                        at += 4 + element_length(&self.bytes, at);
                    }
                    at
                };
                let start = length(from as usize * row, 0);
                self.bytes.slice(start..length(rows as usize * row, start))
            }
        };
        Ok(Self {
            kind: self.kind,
            shape,
            bytes,
        })
    }

    /// Tensors of one type, equal but for the first dimension, as one. A single one is itself, without a copy.
    ///
    /// # Errors
    /// They are not equal, there are none, or together they are too large.
    pub fn join(parts: &[&Self]) -> Result<Self, TensorError> {
        let Some((first, rest)) = parts.split_first() else {
            return Err(TensorError::Missing {
                name: String::from("rows"),
                expected: String::from("one tensor at least"),
            });
        };
        if rest.is_empty() {
            return Ok((*first).clone());
        }
        let mut shape = first.shape.clone();
        let mut length = first.bytes.len();
        for part in rest {
            if part.kind != first.kind || first.shape.is_empty() || part.shape.get(1..) != first.shape.get(1..) {
                return Err(TensorError::Mismatch {
                    name: String::from("rows"),
                    expected: format!("{} {}", first.kind, Shape(first.shape.clone())),
                    got: format!("{} {}", part.kind, Shape(part.shape.clone())),
                });
            }
            shape[0] = shape[0].saturating_add(part.shape[0]);
            length = length.saturating_add(part.bytes.len());
        }
        elements(first.kind, &shape)?;
        if length > TENSOR_BYTES_MAX {
            return Err(TensorError::TooLarge { shape: Shape(shape) });
        }
        let mut bytes = BytesMut::with_capacity(length);
        for part in parts {
            bytes.put_slice(&part.bytes);
        }
        Ok(Self {
            kind: first.kind,
            shape,
            bytes: bytes.freeze(),
        })
    }

    /// What the Open Inference Protocol calls `data`: a list of the elements, flat and row-major, or nested as the shape says.
    /// `from` is anything that serde reads, so JSON text is read into bytes without a tree between them.
    ///
    /// Numbers must be in the type's range; fractions are taken for floating-point types only, which round as usual. BOOL takes
    /// `true`, `false`, `1` and `0`; BYTES takes text. JSON has no word for NaN and infinities, and fractions of FP64 are read to within a unit
    /// in their last place: send tensors in binary where that counts.
    ///
    /// # Errors
    /// As [`Tensor::new`]; and what was found where something else was expected.
    pub fn from_data<'de, D: Deserializer<'de>>(
        kind: TensorType,
        shape: Vec<u64>,
        from: D,
    ) -> Result<Self, TensorError> {
        let expected = elements(kind, &shape)?;
        let mut into = Data {
            kind,
            shape: &shape,
            expected,
            found: 0,
            nested: None,
            bytes: BytesMut::new(),
        };
        // What is expected comes from the caller too: memory is taken as elements arrive, beyond a first small part.
        into.bytes.reserve((expected * kind.size().unwrap_or(8)).min(64 << 10));
        let read = Level {
            data: &mut into,
            depth: 0,
        }
        .deserialize(from)
        .map_err(|error| error.to_string());
        let read = read.and_then(|()| match into.found {
            found if found == expected => Ok(into.bytes.freeze()),
            found => Err(format!("{found} elements, expected {expected}")),
        });
        match read {
            Ok(bytes) => Self::new(kind, shape, bytes),
            Err(why) => Err(TensorError::Json {
                kind,
                shape: Shape(shape),
                why,
            }),
        }
    }

    /// This tensor's elements, flat, as `data` of the Open Inference Protocol. Serializing fails on NaN and infinities, for which JSON
    /// has no word, and on contents of BYTES that are not UTF-8; better than a `null` that reads as a result.
    #[must_use]
    pub fn data(&self) -> TensorData<'_> {
        TensorData {
            kind: self.kind,
            shape: &self.shape,
            bytes: &self.bytes,
            nested: false,
        }
    }

    /// The same as lists in lists, as the shape says; without dimensions, the element itself.
    #[must_use]
    pub fn nested(&self) -> TensorData<'_> {
        TensorData {
            nested: true,
            ..self.data()
        }
    }
}

fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |chunk| read(*chunk))
}

/// Contents of elements of `BYTES`.
fn contents(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk()?;
        let (content, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = tail;
        Some(content)
    })
}

fn element_length(bytes: &[u8], at: usize) -> usize {
    let length = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>);
    length.map_or(0, |length| u32::from_le_bytes(*length) as usize)
}

fn check_elements(shape: &[u64], elements: usize, mut bytes: &[u8]) -> Result<(), TensorError> {
    let broken = |at, why| TensorError::Element {
        shape: Shape(shape.to_vec()),
        at,
        why,
    };
    for at in 0..elements {
        let (length, rest) = bytes
            .split_first_chunk()
            .ok_or_else(|| broken(at, "its length of four bytes is missing"))?;
        let length = u32::from_le_bytes(*length) as usize;
        bytes = rest
            .get(length..)
            .ok_or_else(|| broken(at, "it is shorter than its length says"))?;
    }
    if bytes.is_empty() {
        Ok(())
    } else {
        Err(broken(elements, "there is more than the shape says"))
    }
}

/// Elements on their way from a list into bytes.
struct Data<'a> {
    kind: TensorType,
    shape: &'a [u64],
    expected: usize,
    found: usize,
    /// Whether the list is nested: known from its first element.
    nested: Option<bool>,
    bytes: BytesMut,
}

/// One list, or one element, at a depth of the data.
struct Level<'a, 'b> {
    data: &'a mut Data<'b>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl Level<'_, '_> {
    fn element<E: serde::de::Error>(
        self,
        put: impl FnOnce(&mut BytesMut, TensorType) -> bool,
        what: impl fmt::Display,
    ) -> Result<(), E> {
        let data = self.data;
        let nested = self.depth > 1;
        // A list of one dimension is flat and nested alike.
        match data.nested {
            _ if self.depth == 0 => return Err(E::custom("expected a list")),
            None => data.nested = Some(nested),
            Some(was) if was != nested => {
                return Err(E::custom(
                    "elements and lists beside each other: expected one or the other",
                ));
            }
            Some(_) => {}
        }
        if nested && self.depth != data.shape.len() {
            return Err(E::custom(format!(
                "lists {} deep: expected {} or a flat list",
                self.depth,
                data.shape.len()
            )));
        }
        if data.found == data.expected {
            return Err(E::custom(format!("more than {} elements", data.expected)));
        }
        if !put(&mut data.bytes, data.kind) {
            return Err(E::custom(format!(
                "element {}, {what}, is no {}",
                data.found, data.kind
            )));
        }
        data.found += 1;
        Ok(())
    }
}

impl<'de> Visitor<'de> for Level<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}, flat or nested", self.data.kind)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let rank = self.data.shape.len();
        if self.depth >= rank.max(1) {
            return Err(A::Error::custom(format!("lists more than {} deep", rank.max(1))));
        }
        let mut entries = 0;
        while list
            .next_element_seed(Level {
                data: &mut *self.data,
                depth: self.depth + 1,
            })?
            .is_some()
        {
            entries += 1;
        }
        // How long each list of nested data must be; a flat one is counted at the end.
        if self.data.nested == Some(true) && self.data.shape.get(self.depth) != Some(&entries) {
            let expected = self.data.shape.get(self.depth).copied().unwrap_or(0);
            return Err(A::Error::custom(format!(
                "a list of {entries} in dimension {}, expected {expected}",
                self.depth
            )));
        }
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.element(
            |bytes, kind| {
                kind == TensorType::Bool && {
                    bytes.put_u8(u8::from(value));
                    true
                }
            },
            value,
        )
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.element(|bytes, kind| put_whole(bytes, kind, i128::from(value)), value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.element(|bytes, kind| put_whole(bytes, kind, i128::from(value)), value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.element(|bytes, kind| put_fraction(bytes, kind, value), value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        if value.len() > TENSOR_BYTES_MAX - self.data.bytes.len().min(TENSOR_BYTES_MAX) {
            return Err(E::custom(format!("more than {TENSOR_BYTES_MAX} bytes")));
        }
        self.element(
            |bytes, kind| {
                let taken = kind == TensorType::Bytes;
                if taken {
                    bytes.put_u32_le(value.len() as u32);
                    bytes.put_slice(value.as_bytes());
                }
                taken
            },
            "a text",
        )
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.element(|_, _| false, "null")
    }
}

fn put_whole(bytes: &mut BytesMut, kind: TensorType, value: i128) -> bool {
    macro_rules! put {
        ($type:ty) => {
            match <$type>::try_from(value) {
                Ok(value) => bytes.put_slice(&value.to_le_bytes()),
                Err(_) => return false,
            }
        };
    }
    match kind {
        TensorType::Bool if (0..=1).contains(&value) => bytes.put_u8(value as u8),
        TensorType::Bool | TensorType::Bytes => return false,
        TensorType::U8 => put!(u8),
        TensorType::U16 => put!(u16),
        TensorType::U32 => put!(u32),
        TensorType::U64 => put!(u64),
        TensorType::I8 => put!(i8),
        TensorType::I16 => put!(i16),
        TensorType::I32 => put!(i32),
        TensorType::I64 => put!(i64),
        TensorType::Fp64 => bytes.put_f64_le(value as f64),
        TensorType::Fp32 => bytes.put_f32_le(value as f32),
        TensorType::Fp16 | TensorType::Bf16 => return put_fraction(bytes, kind, value as f64),
    }
    true
}

/// A number that is too large for the type would become an infinity: it is refused.
fn put_fraction(bytes: &mut BytesMut, kind: TensorType, value: f64) -> bool {
    match kind {
        TensorType::Fp64 => bytes.put_f64_le(value),
        TensorType::Fp32 if (value as f32).is_finite() => bytes.put_f32_le(value as f32),
        TensorType::Fp16 if f16::from_f64(value).is_finite() => bytes.put_slice(&f16::from_f64(value).to_le_bytes()),
        TensorType::Bf16 if bf16::from_f64(value).is_finite() => bytes.put_slice(&bf16::from_f64(value).to_le_bytes()),
        // 3.0 is how some write whole numbers.
        _ if value.fract() == 0.0 && value.abs() <= 2f64.powi(53) && kind.size().is_some() && !is_float(kind) => {
            return put_whole(bytes, kind, value as i128);
        }
        _ => return false,
    }
    true
}

fn is_float(kind: TensorType) -> bool {
    matches!(
        kind,
        TensorType::Fp16 | TensorType::Bf16 | TensorType::Fp32 | TensorType::Fp64
    )
}

/// A tensor's elements, to be serialized: see [`Tensor::data`] and [`Tensor::nested`].
#[derive(Debug, Clone, Copy)]
pub struct TensorData<'a> {
    kind: TensorType,
    shape: &'a [u64],
    bytes: &'a [u8],
    nested: bool,
}

impl TensorData<'_> {
    fn put_all<P: Put>(&self, into: &mut P) -> Result<(), P::Error> {
        macro_rules! whole {
            ($type:ty) => {
                for value in numbers(self.bytes, <$type>::from_le_bytes) {
                    into.put(&value)?;
                }
            };
        }
        macro_rules! fraction {
            ($type:ty, $as:ty) => {
                for (at, value) in numbers(self.bytes, <$type>::from_le_bytes).enumerate() {
                    let value = <$as>::from(value);
                    if !value.is_finite() {
                        return Err(P::Error::custom(format!(
                            "element {at} is {value}, for which JSON has no word: ask for binary data"
                        )));
                    }
                    into.put(&value)?;
                }
            };
        }
        match self.kind {
            TensorType::Bool => {
                for value in self.bytes {
                    into.put(&(*value != 0))?;
                }
            }
            TensorType::U8 => whole!(u8),
            TensorType::U16 => whole!(u16),
            TensorType::U32 => whole!(u32),
            TensorType::U64 => whole!(u64),
            TensorType::I8 => whole!(i8),
            TensorType::I16 => whole!(i16),
            TensorType::I32 => whole!(i32),
            TensorType::I64 => whole!(i64),
            TensorType::Fp16 => fraction!(f16, f32),
            TensorType::Bf16 => fraction!(bf16, f32),
            TensorType::Fp32 => fraction!(f32, f32),
            TensorType::Fp64 => fraction!(f64, f64),
            TensorType::Bytes => {
                for (at, content) in contents(self.bytes).enumerate() {
                    let text = std::str::from_utf8(content)
                        .map_err(|_| P::Error::custom(format!("element {at} is not UTF-8: ask for binary data")))?;
                    into.put(text)?;
                }
            }
        }
        Ok(())
    }
}

impl Serialize for TensorData<'_> {
    fn serialize<S: Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
        match self.shape {
            [] if self.nested => {
                let mut one = One {
                    into: Some(into),
                    done: None,
                };
                self.put_all(&mut one)?;
                one.done.ok_or_else(|| S::Error::custom("a tensor without its element"))
            }
            [rows, row @ ..] if self.nested && !row.is_empty() => {
                let elements = row.iter().product::<u64>() as usize;
                let mut list = into.serialize_seq(Some(*rows as usize))?;
                let mut rest = self.bytes;
                for _ in 0..*rows {
                    let length = self.kind.size().map_or_else(
                        || (0..elements).fold(0, |at, _| at + 4 + element_length(rest, at)),
                        |size| size * elements,
                    );
                    let (bytes, tail) = rest.split_at(length);
                    rest = tail;
                    list.serialize_element(&Self {
                        shape: row,
                        bytes,
                        ..*self
                    })?;
                }
                list.end()
            }
            _ => {
                let mut list = Listed(into.serialize_seq(Some(self.shape.iter().product::<u64>() as usize))?);
                self.put_all(&mut list)?;
                list.0.end()
            }
        }
    }
}

/// Where elements are serialized to, one by one.
trait Put {
    type Error: serde::ser::Error;
    fn put<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Self::Error>;
}

struct Listed<L>(L);

impl<L: SerializeSeq> Put for Listed<L> {
    type Error = L::Error;

    fn put<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), L::Error> {
        self.0.serialize_element(value)
    }
}

/// A single element without a list around it.
struct One<S: Serializer> {
    into: Option<S>,
    done: Option<S::Ok>,
}

impl<S: Serializer> Put for One<S> {
    type Error = S::Error;

    fn put<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        let into = self.into.take();
        let into = into.ok_or_else(|| S::Error::custom("more than one element"))?;
        self.done = Some(value.serialize(into)?);
        Ok(())
    }
}

/// One input or output of a model. A dimension that is `None` takes any size from one up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub name: String,
    pub kind: TensorType,
    pub shape: Vec<Option<u64>>,
}

impl Port {
    /// The shape as the Open Inference Protocol writes it: −1 for any size.
    #[must_use]
    pub fn dims(&self) -> Vec<i64> {
        self.shape
            .iter()
            .map(|dim| dim.map_or(-1, |dim| i64::try_from(dim).unwrap_or(i64::MAX)))
            .collect()
    }

    /// Whether a tensor of this type and shape fits here.
    #[must_use]
    pub fn fits(&self, kind: TensorType, shape: &[u64]) -> bool {
        let same = |(want, got): (&Option<u64>, &u64)| want.is_none_or(|want| want == *got);
        self.kind == kind && self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(same)
    }
}

/// `FP32 [any, 784]`.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self
            .shape
            .iter()
            .map(|dim| dim.map_or_else(|| String::from("any"), |dim| dim.to_string()))
            .collect();
        write!(f, "{} [{}]", self.kind, dims.join(", "))
    }
}

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

impl Signature {
    /// Whether calls can be put together by rows: each input and each output has a first dimension of any size.
    ///
    /// That a model treats rows each for itself cannot be read from its signature. It holds for what trainers export with a free first
    /// dimension; who has a model where it does not turns batching off.
    #[must_use]
    pub fn batchable(&self) -> bool {
        let free = |port: &Port| port.shape.first() == Some(&None);
        !self.inputs.is_empty()
            && !self.outputs.is_empty()
            && self.inputs.iter().all(free)
            && self.outputs.iter().all(free)
    }

    /// That a call gives each input once, of the right type and shape, and nothing else; in any order. Where calls can be put together, all
    /// inputs must have as many rows. Answers how many: one where the model takes no batches.
    ///
    /// # Errors
    /// The first input that is wrong, by name, with what was expected and what was given.
    pub fn check(&self, inputs: &[(String, Tensor)]) -> Result<u64, TensorError> {
        for (at, (name, tensor)) in inputs.iter().enumerate() {
            let Some(port) = self.inputs.iter().find(|port| port.name == *name) else {
                let known: Vec<&str> = self.inputs.iter().map(|port| port.name.as_str()).collect();
                return Err(TensorError::Unknown {
                    name: name.clone(),
                    known: known.join(", "),
                });
            };
            // Few, and on the path of every call: a set would cost more.
            if inputs[..at].iter().any(|(other, _)| other == name) {
                return Err(TensorError::Twice { name: name.clone() });
            }
            let got = || format!("{} {}", tensor.kind, Shape(tensor.shape.clone()));
            if !port.fits(tensor.kind, &tensor.shape) {
                return Err(TensorError::Mismatch {
                    name: name.clone(),
                    expected: port.to_string(),
                    got: got(),
                });
            }
            if tensor.shape.contains(&0) {
                return Err(TensorError::Empty {
                    name: name.clone(),
                    got: got(),
                });
            }
        }
        if let Some(port) = self
            .inputs
            .iter()
            .find(|port| inputs.iter().all(|(name, _)| *name != port.name))
        {
            return Err(TensorError::Missing {
                name: port.name.clone(),
                expected: port.to_string(),
            });
        }
        if !self.batchable() {
            return Ok(1);
        }
        let Some((first, rest)) = inputs.split_first() else {
            return Ok(1);
        };
        let rows = first.1.rows();
        match rest.iter().find(|(_, tensor)| tensor.rows() != rows) {
            Some((name, tensor)) => Err(TensorError::Rows {
                name: name.clone(),
                got: tensor.rows(),
                other: first.0.clone(),
                rows,
            }),
            None => Ok(rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(kind: TensorType, shape: &[u64], text: &str) -> Result<Tensor, TensorError> {
        Tensor::from_data(kind, shape.to_vec(), &mut serde_json::Deserializer::from_str(text))
    }

    fn port(name: &str, kind: TensorType, shape: &[Option<u64>]) -> Port {
        Port {
            name: name.into(),
            kind,
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn names_go_both_ways() {
        for kind in TensorType::ALL {
            assert_eq!(kind.name().parse::<TensorType>().unwrap(), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert!("fp32".parse::<TensorType>().unwrap_err().to_string().contains("FP32"));
        assert_eq!(
            TensorType::ALL.iter().filter(|kind| kind.wasi_nn().is_some()).count(),
            7
        );
    }

    #[test]
    fn bytes_must_be_as_many_as_the_shape_says() {
        let made = |shape: &[u64], length| Tensor::new(TensorType::Fp32, shape.to_vec(), Bytes::from(vec![0; length]));
        assert!(made(&[2, 3], 24).is_ok());
        assert!(made(&[], 4).is_ok(), "no dimensions: one element");
        assert_eq!(made(&[0, 3], 0).unwrap().elements(), 0);
        assert!(matches!(
            made(&[2, 3], 20),
            Err(TensorError::Length {
                expected: 24,
                got: 20,
                ..
            })
        ));
        assert!(matches!(made(&[u64::MAX, 2], 8), Err(TensorError::TooLarge { .. })));
        assert!(matches!(made(&[u64::MAX, 0], 0), Err(TensorError::TooLarge { .. })));
        assert!(matches!(made(&[1 << 40], 4), Err(TensorError::TooLarge { .. })));
        assert!(matches!(made(&[1; 99], 4), Err(TensorError::Rank { got: 99 })));
    }

    #[test]
    fn contents_are_all_looked_at() {
        let two = Tensor::from_contents(vec![2], [&b"ab"[..], b""]).unwrap();
        assert_eq!(two.contents().collect::<Vec<_>>(), [&b"ab"[..], b""]);
        let made = |bytes: &'static [u8]| Tensor::new(TensorType::Bytes, vec![1], Bytes::from_static(bytes));
        assert!(made(b"\x01\0\0\0x").is_ok());
        for broken in [
            &b""[..],
            b"\x01\0\0",
            b"\x02\0\0\0x",
            b"\xff\xff\xff\xffx",
            b"\x01\0\0\0xy",
        ] {
            assert!(matches!(made(broken), Err(TensorError::Element { .. })), "{broken:?}");
        }
    }

    #[test]
    fn data_is_flat_or_nested() {
        let flat = json(TensorType::Fp32, &[2, 2], "[1, 2.5, -3e2, 4]").unwrap();
        assert_eq!(flat.to_f32().unwrap(), [1.0, 2.5, -300.0, 4.0]);
        assert_eq!(json(TensorType::Fp32, &[2, 2], "[[1, 2.5], [-3e2, 4]]").unwrap(), flat);
        let text = json(TensorType::Bytes, &[2], r#"["a", "ü"]"#).unwrap();
        assert_eq!(text.contents().collect::<Vec<_>>(), ["a".as_bytes(), "ü".as_bytes()]);
        assert_eq!(
            json(TensorType::Bool, &[3], "[true, 0, 1]").unwrap().bytes()[..],
            [1, 0, 1]
        );
        assert_eq!(
            json(TensorType::I64, &[1], "[9007199254740993]")
                .unwrap()
                .to_i64()
                .unwrap(),
            [9_007_199_254_740_993]
        );
        assert_eq!(json(TensorType::Fp32, &[0, 3], "[]").unwrap().elements(), 0);
        for (kind, shape, text, says) in [
            (TensorType::Fp32, &[2, 2][..], "[1, 2, 3]", "3 elements, expected 4"),
            (TensorType::Fp32, &[2, 2], "[1, 2, 3, 4, 5]", "more than 4"),
            (
                TensorType::Fp32,
                &[2, 2],
                "[[1, 2, 3], [4]]",
                "a list of 3 in dimension 1, expected 2",
            ),
            (TensorType::Fp32, &[2, 2], "[[[1, 2], [3, 4]]]", "more than 2 deep"),
            (TensorType::Fp32, &[2, 2], "[1, [2, 3], 4]", "beside each other"),
            (TensorType::Fp32, &[2, 1, 1], "[[1], [2]]", "2 deep"),
            (TensorType::Fp32, &[1], "5", "expected a list"),
            (TensorType::Fp32, &[1], "[\"x\"]", "is no FP32"),
            (TensorType::Fp32, &[1], "[null]", "null"),
            (TensorType::Fp32, &[1], "[NaN]", "expected value"),
            (TensorType::Fp32, &[1], "[1e39]", "is no FP32"),
            (TensorType::Fp16, &[1], "[70000]", "is no FP16"),
            (TensorType::U8, &[2], "[255, 256]", "element 1, 256, is no UINT8"),
            (TensorType::U64, &[1], "[-1]", "is no UINT64"),
            (TensorType::I32, &[1], "[1.5]", "is no INT32"),
            (TensorType::Bool, &[1], "[2]", "is no BOOL"),
            (TensorType::Bytes, &[1], "[1]", "is no BYTES"),
            (TensorType::Fp32, &[1], "[1", "EOF"),
            (TensorType::Fp32, &[1], "{}", "expected a list"),
        ] {
            let error = json(kind, shape, text).expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(json(TensorType::Fp32, &[1], &"[".repeat(100_000)).is_err());
    }

    #[test]
    fn json_has_no_word_for_nan() {
        let tensor = Tensor::from_f32(vec![2], &[1.0, f32::NAN]).unwrap();
        let error = serde_json::to_string(&tensor.data()).unwrap_err().to_string();
        assert!(error.contains("element 1") && error.contains("binary"), "{error}");
        let odd = Tensor::from_contents(vec![1], [&b"\xff"[..]]).unwrap();
        assert!(
            serde_json::to_string(&odd.data())
                .unwrap_err()
                .to_string()
                .contains("UTF-8")
        );
    }

    #[test]
    fn nested_data_is_written_as_the_shape_says() {
        let nested = |tensor: &Tensor| serde_json::to_string(&tensor.nested()).unwrap();
        let numbers = |shape: &[u64], values: &[i64]| nested(&Tensor::from_i64(shape.to_vec(), values).unwrap());
        assert_eq!(numbers(&[2, 3], &[1, 2, 3, 4, 5, 6]), "[[1,2,3],[4,5,6]]");
        assert_eq!(numbers(&[1, 2, 1], &[1, 2]), "[[[1],[2]]]");
        assert_eq!(numbers(&[2], &[1, 2]), "[1,2]");
        assert_eq!(numbers(&[], &[7]), "7");
        assert_eq!(numbers(&[2, 0], &[]), "[[],[]]");
        let text = Tensor::from_contents(vec![2, 2], [&b"a"[..], b"", b"bc", b"d"]).unwrap();
        assert_eq!(nested(&text), r#"[["a",""],["bc","d"]]"#);
    }

    #[test]
    fn a_call_is_checked_by_name_type_and_shape() {
        let signature = Signature {
            inputs: vec![
                port("image", TensorType::Fp32, &[None, Some(4)]),
                port("mask", TensorType::Bool, &[None]),
            ],
            outputs: vec![port("class", TensorType::I64, &[None])],
        };
        assert!(signature.batchable());
        let image = |shape: &[u64]| {
            (
                String::from("image"),
                Tensor::from_f32(shape.to_vec(), &vec![0.0; shape.iter().product::<u64>() as usize]).unwrap(),
            )
        };
        let mask = |rows: u64| {
            (
                String::from("mask"),
                Tensor::new(TensorType::Bool, vec![rows], vec![1; rows as usize].into()).unwrap(),
            )
        };
        assert_eq!(signature.check(&[image(&[3, 4]), mask(3)]).unwrap(), 3);
        assert_eq!(signature.check(&[mask(1), image(&[1, 4])]).unwrap(), 1);
        let says = |inputs: &[(String, Tensor)]| signature.check(inputs).unwrap_err().to_string();
        assert_eq!(
            says(&[image(&[3, 5]), mask(3)]),
            "input \"image\" is FP32 [3, 5]: expected FP32 [any, 4]"
        );
        assert!(says(&[image(&[4]), mask(1)]).contains("FP32 [4]: expected FP32 [any, 4]"));
        assert!(says(&[(String::from("image"), mask(3).1)]).contains("BOOL [3]"));
        assert!(says(&[image(&[0, 4]), mask(1)]).contains("zero"));
        assert!(says(&[image(&[3, 4]), mask(2)]).contains("2 rows"));
        assert!(says(&[image(&[3, 4])]).contains("\"mask\" is missing"));
        assert!(says(&[image(&[3, 4]), image(&[3, 4])]).contains("twice"));
        assert!(says(&[(String::from("im"), mask(1).1)]).contains("the inputs are image, mask"));
        assert!(says(&[]).contains("missing"));
    }

    fn any_tensor() -> impl Strategy<Value = Tensor> {
        let shape = prop::collection::vec(0u64..5, 0..4);
        (0usize..TensorType::ALL.len(), shape, any::<u64>()).prop_map(|(kind, shape, seed)| {
            let kind = TensorType::ALL[kind];
            let elements = shape.iter().product::<u64>();
            let number = |at: u64| (seed.wrapping_mul(at + 1) % 100).to_string();
            let text: Vec<String> = (0..elements)
                .map(|at| match kind {
                    TensorType::Bytes => format!("\"{}\"", "x".repeat(number(at).len())),
                    TensorType::Bool => String::from("true"),
                    _ => number(at),
                })
                .collect();
            json(kind, &shape, &format!("[{}]", text.join(","))).unwrap()
        })
    }

    proptest! {
        #[test]
        fn data_goes_both_ways(tensor in any_tensor()) {
            let text = serde_json::to_string(&tensor.data()).unwrap();
            prop_assert_eq!(&json(tensor.kind(), tensor.shape(), &text).unwrap(), &tensor);
            let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
            let nested = serde_json::to_string(&tensor.nested()).unwrap();
            if tensor.shape().is_empty() {
                prop_assert_eq!(format!("[{nested}]"), text.clone());
            } else if !tensor.shape().contains(&0) {
                prop_assert_eq!(&json(tensor.kind(), tensor.shape(), &nested).unwrap(), &tensor);
                prop_assert_eq!(nested.starts_with("[["), tensor.shape().len() > 1);
            }
            prop_assert_eq!(Tensor::from_data(tensor.kind(), tensor.shape().to_vec(), &tree).unwrap(), tensor);
        }

        #[test]
        fn rows_that_are_cut_join_again(tensor in any_tensor(), at in 0u64..5) {
            prop_assume!(!tensor.shape().is_empty());
            let at = at.min(tensor.rows());
            let parts = [tensor.slice(0, at).unwrap(), tensor.slice(at, tensor.rows() - at).unwrap()];
            prop_assert_eq!(Tensor::join(&[&parts[0], &parts[1]]).unwrap(), tensor.clone());
            prop_assert!(tensor.slice(at, tensor.rows() + 1).is_err());
            prop_assert!(tensor.slice(1, u64::MAX).is_err());
        }

        #[test]
        fn no_data_panics(text in "[\\[\\], 0-9.eE\"a-z-]{0,60}", kind in 0usize..14, shape in prop::collection::vec(0u64..4, 0..3)) {
            let _ = json(TensorType::ALL[kind], &shape, &text);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), shape in prop::collection::vec(any::<u64>(), 0..4), small in 0u64..6) {
            let bytes = Bytes::from(bytes);
            for shape in [shape, vec![small]] {
                for kind in TensorType::ALL {
                    if let Ok(tensor) = Tensor::new(kind, shape.clone(), bytes.clone()) {
                        prop_assert!(serde_json::to_string(&tensor.data()).is_ok_and(|text| !text.is_empty()) || tensor.elements() > 0);
                    }
                }
            }
        }
    }
}
