//! Models, as the manifest grants them.
//!
//! ```no_run
//! # use skep::{Message, Swarm, Tensor};
//! #[skep::bee]
//! fn classify(swarm: &mut Swarm, message: Message) -> skep::Result {
//!     let pixels: Vec<f32> = message.json()?;
//!     let digits = skep::model("digits")?;
//!     let answer = digits.predict([("image", Tensor::f32([1, 784], &pixels))])?;
//!     swarm.respond_json(&answer.get("label")?.i64s()?)?;
//!     Ok(())
//! }
//! ```
//! ```yaml
//!     models: [digits]
//! ```
//! The Bee waits for the answer, and calls of others run beside it; where many call a small model at once, they run together. What a model takes
//! counts for the stage's timeout, not for its CPU time. A prediction has no effects: an attempt that runs again asks again, and may be
//! answered by a newer version.

use std::fmt;

use crate::wire;

/// The model that the manifest lists under `models:` by this name: an entry as it is written there, or the bare name of its only entry of
/// that model.
///
/// # Errors
/// It is not granted, or there is none. [`ModelErrorKind::NoStep`]: no message is being handled, as in what runs before `main` would.
pub fn model(name: impl Into<String>) -> Result<Model, ModelError> {
    let name = name.into();
    let signature = wire::describe(&name)?;
    Ok(Model { name, signature })
}

/// A model that may be called. It is asked for by its name at each call: when its tag moves, the next call meets the newer version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    name: String,
    signature: Signature,
}

impl Model {
    /// As it was asked for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it takes and gives.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Calls it with its inputs by name, in any order. One call hands over 4 MiB at most: send more rows in parts.
    ///
    /// # Errors
    /// See [`ModelErrorKind`]. By `?` a message whose inputs do not fit is rejected; any other fails, and the stage's policy decides: another
    /// attempt after a while, at last a dead letter.
    pub fn predict<N: Into<String>>(
        &self,
        inputs: impl IntoIterator<Item = (N, Tensor)>,
    ) -> Result<Outputs, ModelError> {
        let inputs: Vec<_> = inputs
            .into_iter()
            .map(|(name, tensor)| (name.into(), tensor.0))
            .collect();
        let bytes: usize = inputs.iter().map(|(name, tensor)| name.len() + tensor.data.len()).sum();
        if bytes > INPUT_BYTES_MAX {
            return Err(ModelError::new(
                ModelErrorKind::Invalid,
                format!(
                    "model `{}` is given {bytes} bytes at once, and one call hands over {INPUT_BYTES_MAX} at most: send the rows in parts",
                    self.name
                ),
            ));
        }
        let all = wire::predict(&self.name, &inputs)?;
        Ok(Outputs {
            model: self.name.clone(),
            all: all.into_iter().map(|(name, tensor)| (name, Tensor(tensor))).collect(),
        })
    }

    /// Calls a model that has one input, whatever its name.
    ///
    /// # Errors
    /// As [`Model::predict`]; and it has several.
    pub fn predict_one(&self, input: Tensor) -> Result<Outputs, ModelError> {
        match &self.signature.inputs[..] {
            [only] => self.predict([(only.name.as_str(), input)]),
            // A test's closure says nothing of its inputs.
            [] => self.predict([("input", input)]),
            several => {
                let names: Vec<&str> = several.iter().map(|port| port.name.as_str()).collect();
                Err(ModelError::new(
                    ModelErrorKind::Invalid,
                    format!(
                        "model `{}` has the inputs {}: name each, with `predict`",
                        self.name,
                        names.join(", ")
                    ),
                ))
            }
        }
    }
}

/// Bytes that one call hands over: what a node takes at once (4 MiB), without what goes along.
const INPUT_BYTES_MAX: usize = (4 << 20) - (64 << 10);

/// What a model takes and gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signature {
    /// In the model's order.
    pub inputs: Vec<Port>,
    /// In the model's order.
    pub outputs: Vec<Port>,
}

/// One input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name in the model.
    pub name: String,
    /// The type of its elements.
    pub kind: Kind,
    /// `None`: any size. The first dimension is that of rows, mostly.
    pub shape: Vec<Option<u64>>,
}

macro_rules! kinds {
    ($($kind:ident $name:literal $size:literal $what:literal;)*) => {
        /// The type of a tensor's elements, by its name in the Open Inference Protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Kind {
            $(#[doc = $what] $kind,)*
        }

        impl Kind {
            const ALL: &[(Self, &'static str, usize)] = &[$((Self::$kind, $name, $size),)*];
        }
    };
}

kinds! {
    Bool "BOOL" 1 "A byte each, 0 or 1.";
    U8 "UINT8" 1 "`u8`";
    U16 "UINT16" 2 "`u16`";
    U32 "UINT32" 4 "`u32`";
    U64 "UINT64" 8 "`u64`";
    I8 "INT8" 1 "`i8`";
    I16 "INT16" 2 "`i16`";
    I32 "INT32" 4 "`i32`";
    I64 "INT64" 8 "`i64`";
    F16 "FP16" 2 "Half precision.";
    Bf16 "BF16" 2 "The upper half of an `f32`.";
    F32 "FP32" 4 "`f32`";
    F64 "FP64" 8 "`f64`";
    Bytes "BYTES" 0 "Of any length, such as texts: four bytes of length, little-endian, then the content.";
}

impl Kind {
    /// As manifests, errors and the protocol write it: `FP32`, `INT64`, `BYTES`…
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(kind, ..)| *kind == self)
            .map_or("", |(_, name, _)| name)
    }

    /// The type of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known, _)| *known == name)
            .map(|(kind, ..)| *kind)
    }

    /// Bytes of one element; none of [`Kind::Bytes`].
    #[must_use]
    pub fn size(self) -> Option<usize> {
        Self::ALL
            .iter()
            .find(|(kind, ..)| *kind == self)
            .map(|(.., size)| *size)
            .filter(|size| *size > 0)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Elements of one type in a shape, row by row. Whether they are as many as the shape says is checked when a model gets them.
#[derive(Clone)]
pub struct Tensor(pub(crate) wire::Tensor);

/// By its bytes: NaN is equal to the same NaN.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind == other.0.kind && self.0.shape == other.0.shape && self.0.data == other.0.data
    }
}

impl Eq for Tensor {}

macro_rules! numbers {
    ($($make:ident $read:ident $type:ty, $kind:ident;)*) => {
        impl Tensor {
            $(
                #[doc = concat!("Of `", stringify!($type), "`.")]
                #[must_use]
                pub fn $make(shape: impl Into<Vec<u64>>, values: &[$type]) -> Self {
                    // In this form the compiler makes it one copy: WebAssembly is little-endian.
                    let mut data = vec![0; std::mem::size_of_val(values)];
                    let (chunks, _) = data.as_chunks_mut();
                    chunks.iter_mut().zip(values).for_each(|(chunk, value)| *chunk = value.to_le_bytes());
                    Self::new(Kind::$kind, shape, data)
                }

                #[doc = concat!("Its elements as `", stringify!($type), "`, row by row.")]
                ///
                /// # Errors
                /// They are of another type.
                pub fn $read(&self) -> Result<Vec<$type>, ModelError> {
                    self.expect(Kind::$kind)?;
                    let (chunks, _) = self.0.data.as_chunks();
                    Ok(chunks.iter().map(|chunk| <$type>::from_le_bytes(*chunk)).collect())
                }
            )*
        }
    };
}

numbers! {
    f32 f32s f32, F32;
    f64 f64s f64, F64;
    i64 i64s i64, I64;
    i32 i32s i32, I32;
    u8 u8s u8, U8;
}

impl Tensor {
    /// Of any type, from bytes: little-endian, row by row, without gaps; see [`Kind::Bytes`] for that one.
    #[must_use]
    pub fn new(kind: Kind, shape: impl Into<Vec<u64>>, data: Vec<u8>) -> Self {
        Self(wire::Tensor {
            kind: kind.name().to_owned(),
            shape: shape.into(),
            data,
        })
    }

    /// Of booleans.
    #[must_use]
    pub fn bools(shape: impl Into<Vec<u64>>, values: &[bool]) -> Self {
        Self::new(Kind::Bool, shape, values.iter().map(|value| u8::from(*value)).collect())
    }

    /// Of texts, or of bytes of any length.
    #[must_use]
    pub fn texts<T: AsRef<[u8]>>(shape: impl Into<Vec<u64>>, values: impl IntoIterator<Item = T>) -> Self {
        let mut data = Vec::new();
        for value in values {
            let value = value.as_ref();
            // Longer ones are no tensor that a node takes.
            data.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
            data.extend_from_slice(value);
        }
        Self::new(Kind::Bytes, shape, data)
    }

    /// The type of its elements.
    ///
    /// # Errors
    /// It is one that this SDK does not know.
    pub fn kind(&self) -> Result<Kind, ModelError> {
        Kind::named(&self.0.kind).ok_or_else(|| {
            ModelError::new(
                ModelErrorKind::Invalid,
                format!("unknown tensor type {:?}", self.0.kind),
            )
        })
    }

    /// How many elements there are in each dimension.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.0.shape
    }

    /// Its elements as bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.0.data
    }

    /// Its elements as booleans.
    ///
    /// # Errors
    /// They are of another type.
    pub fn to_bools(&self) -> Result<Vec<bool>, ModelError> {
        self.expect(Kind::Bool)?;
        Ok(self.0.data.iter().map(|value| *value != 0).collect())
    }

    /// Its elements as texts.
    ///
    /// # Errors
    /// They are of another type, or one is not UTF-8.
    pub fn to_texts(&self) -> Result<Vec<String>, ModelError> {
        self.expect(Kind::Bytes)?;
        let mut rest = &self.0.data[..];
        let mut texts = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk() {
            let cut = tail.split_at_checked(u32::from_le_bytes(*length) as usize);
            let broken = |why| ModelError::new(ModelErrorKind::Invalid, format!("element {} {why}", texts.len()));
            let (text, tail) = cut.ok_or_else(|| broken("is shorter than its length says"))?;
            let text = std::str::from_utf8(text).map_err(|_| broken("is not UTF-8: read `data`"))?;
            texts.push(text.to_owned());
            rest = tail;
        }
        Ok(texts)
    }

    fn expect(&self, kind: Kind) -> Result<(), ModelError> {
        if self.0.kind == kind.name() {
            return Ok(());
        }
        Err(ModelError::new(
            ModelErrorKind::Invalid,
            format!(
                "the tensor is {} {:?}, and was read as {kind}",
                self.0.kind, self.0.shape
            ),
        ))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}, {} bytes", self.0.kind, self.0.shape, self.0.data.len())
    }
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    model: String,
    all: Vec<(String, Tensor)>,
}

impl Outputs {
    /// The output of this name.
    ///
    /// # Errors
    /// The model has none of that name; the error says which it has.
    pub fn get(&self, name: &str) -> Result<&Tensor, ModelError> {
        let found = self.all.iter().find(|(known, _)| known == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| {
            let names: Vec<&str> = self.all.iter().map(|(name, _)| name.as_str()).collect();
            ModelError::new(
                ModelErrorKind::Invalid,
                format!(
                    "model `{}` has no output {name:?}: it has {}",
                    self.model,
                    names.join(", ")
                ),
            )
        })
    }

    /// All of them, in the model's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.all.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

impl IntoIterator for Outputs {
    type Item = (String, Tensor);
    type IntoIter = std::vec::IntoIter<(String, Tensor)>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.into_iter()
    }
}

/// Why there is no prediction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelError {
    kind: ModelErrorKind,
    text: String,
}

/// What kind of trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelErrorKind {
    /// The manifest does not list it: add it to the Bee's `models: [...]`.
    NotGranted,
    /// It is listed, and the tenant has none of that name now.
    NotFound,
    /// What was given does not fit; the text says what would.
    Invalid,
    /// Too many calls, or no memory for the model now.
    Busy,
    /// No answer within what was left of the stage's timeout.
    Timeout,
    /// The model cannot be had now.
    Unavailable,
    /// The model itself failed.
    Failed,
    /// No message is being handled.
    NoStep,
}

impl ModelError {
    /// For a test's model.
    #[must_use]
    pub fn new(kind: ModelErrorKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    /// What kind of trouble it is.
    #[must_use]
    pub fn kind(&self) -> ModelErrorKind {
        self.kind
    }

    /// Whether the same call may succeed a little later.
    #[must_use]
    pub fn passes(&self) -> bool {
        use ModelErrorKind::{Busy, Timeout, Unavailable};
        matches!(self.kind, Busy | Timeout | Unavailable)
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What does not fit stays wrong: the message is rejected, as one that cannot be read. All else fails it, with the reason `model` or, if it may
/// pass, `model-busy`. Only for the sake of this difference is a [`ModelError`] no `std::error::Error`, of which each fails.
impl From<ModelError> for crate::Error {
    fn from(error: ModelError) -> Self {
        match error.kind {
            ModelErrorKind::Invalid => Self::reject(error.text),
            _ if error.passes() => Self::fail("model-busy", error.text),
            _ => Self::fail("model", error.text),
        }
    }
}

/// What stands for models where there is no node: closures, of the thread whose [`DevSwarm`](crate::DevSwarm) has them.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod native {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::fmt;
    use std::rc::Rc;

    use super::{ModelError, ModelErrorKind, Outputs, Signature, Tensor};
    use crate::wire;

    type Function = Rc<dyn Fn(&Outputs) -> Result<Vec<(String, Tensor)>, ModelError>>;

    thread_local! {
        static MODELS: RefCell<BTreeMap<String, Function>> = RefCell::default();
    }

    /// Removes the model when it is dropped.
    pub(crate) struct Registered {
        name: String,
        function: Function,
    }

    impl fmt::Debug for Registered {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.name)
        }
    }

    impl Drop for Registered {
        fn drop(&mut self) {
            // The thread may be ending; and a later one of this name stays.
            let _ = MODELS.try_with(|models| {
                let mut models = models.borrow_mut();
                if models
                    .get(&self.name)
                    .is_some_and(|known| Rc::ptr_eq(known, &self.function))
                {
                    models.remove(&self.name);
                }
            });
        }
    }

    pub(crate) fn register(name: String, function: Function) -> Registered {
        MODELS.with_borrow_mut(|models| models.insert(name.clone(), Rc::clone(&function)));
        Registered { name, function }
    }

    fn find(name: &str) -> Result<Function, ModelError> {
        MODELS.with_borrow(|models| models.get(name).cloned()).ok_or_else(|| {
            ModelError::new(
                ModelErrorKind::NotGranted,
                format!(
                    "model {name:?} is not there: models are a node's; in a test give one with `DevSwarm::with_model`"
                ),
            )
        })
    }

    pub fn describe(name: &str) -> Result<Signature, ModelError> {
        find(name).map(|_| Signature::default())
    }

    pub fn predict(name: &str, inputs: &[(String, wire::Tensor)]) -> Result<Vec<(String, wire::Tensor)>, ModelError> {
        let function = find(name)?;
        let all: Vec<_> = inputs
            .iter()
            .map(|(name, tensor)| (name.clone(), Tensor(tensor.clone())))
            .collect();
        for (name, tensor) in &all {
            // As a node does.
            let elements = tensor.shape().iter().try_fold(1u64, |all, dim| all.checked_mul(*dim));
            let expected = tensor
                .kind()?
                .size()
                .map(|size| elements.and_then(|all| all.checked_mul(size as u64)));
            if expected.is_some_and(|expected| expected != Some(tensor.data().len() as u64)) {
                return Err(ModelError::new(
                    ModelErrorKind::Invalid,
                    format!(
                        "input {name:?}: a tensor of type {} and shape {:?} has {} bytes, but {} were given",
                        tensor.0.kind,
                        tensor.shape(),
                        expected
                            .flatten()
                            .map_or_else(|| String::from("too many"), |bytes| bytes.to_string()),
                        tensor.data().len()
                    ),
                ));
            }
        }
        let inputs = Outputs {
            model: name.to_owned(),
            all,
        };
        let outputs = function(&inputs)?;
        Ok(outputs.into_iter().map(|(name, tensor)| (name, tensor.0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DevSwarm;

    #[test]
    fn elements_go_both_ways() {
        assert_eq!(Tensor::f32([2], &[1.5, f32::MIN]).f32s().unwrap(), [1.5, f32::MIN]);
        assert_eq!(Tensor::f64([1], &[-0.1]).f64s().unwrap(), [-0.1]);
        assert_eq!(Tensor::i64([2, 1], &[i64::MIN, 3]).i64s().unwrap(), [i64::MIN, 3]);
        assert_eq!(Tensor::i32([1], &[7]).i32s().unwrap(), [7]);
        assert_eq!(Tensor::u8([2], &[0, 255]).u8s().unwrap(), [0, 255]);
        assert_eq!(Tensor::bools([2], &[true, false]).to_bools().unwrap(), [true, false]);
        assert_eq!(Tensor::texts([3], ["a", "", "ü"]).to_texts().unwrap(), ["a", "", "ü"]);
        assert!(Tensor::f32([1], &[f32::NAN]).f32s().unwrap()[0].is_nan());
        let wrong = Tensor::f32([1], &[1.0]).i64s().unwrap_err();
        assert_eq!(wrong.to_string(), "the tensor is FP32 [1], and was read as INT64");
        for broken in [&b"\x05\0\0\0ab"[..], b"\x01\0\0\0\xff"] {
            assert!(Tensor::new(Kind::Bytes, [1], broken.to_vec()).to_texts().is_err());
        }
    }

    #[test]
    fn what_does_not_fit_is_rejected_and_all_else_fails() {
        let ends = |kind| crate::Error::from(ModelError::new(kind, "why"));
        assert_eq!(ends(ModelErrorKind::Invalid), crate::Error::reject("why"));
        for kind in [
            ModelErrorKind::Busy,
            ModelErrorKind::Timeout,
            ModelErrorKind::Unavailable,
        ] {
            assert_eq!(ends(kind), crate::Error::fail("model-busy", "why"));
        }
        for kind in [
            ModelErrorKind::NotGranted,
            ModelErrorKind::NotFound,
            ModelErrorKind::Failed,
            ModelErrorKind::NoStep,
        ] {
            assert_eq!(ends(kind), crate::Error::fail("model", "why"));
        }
    }

    #[test]
    fn every_kind_has_a_name_and_a_size() {
        for (kind, name, _) in Kind::ALL {
            assert_eq!((Kind::named(name), kind.to_string()), (Some(*kind), (*name).to_owned()));
        }
        assert_eq!(
            (Kind::F16.size(), Kind::Bytes.size(), Kind::named("fp32")),
            (Some(2), None, None)
        );
    }

    fn doubling(inputs: &Outputs) -> Result<Vec<(String, Tensor)>, ModelError> {
        let x = inputs.get("x")?;
        let doubled: Vec<f32> = x.f32s()?.iter().map(|x| 2.0 * x).collect();
        Ok(vec![(String::from("y"), Tensor::f32(x.shape(), &doubled))])
    }

    #[test]
    fn a_dev_swarm_s_models_are_closures_and_go_with_it() {
        let swarm = DevSwarm::new().with_model("double", doubling);
        let double = model("double").unwrap();
        assert_eq!(
            double
                .predict([("x", Tensor::f32([1, 2], &[1.0, 2.0]))])
                .unwrap()
                .get("y")
                .unwrap()
                .f32s()
                .unwrap(),
            [2.0, 4.0]
        );
        let missing = double.predict_one(Tensor::f32([1], &[1.0])).unwrap_err();
        assert_eq!(missing.to_string(), "model `double` has no output \"x\": it has input");
        for (tensor, says) in [
            (Tensor::f32([3], &[1.0]), "has 12 bytes, but 4 were given"),
            (Tensor::f32([u64::MAX, 2], &[1.0]), "has too many bytes"),
            (Tensor::u8([5 << 20], &vec![0; 5 << 20]), "hands over 4128768 at most"),
        ] {
            let wrong = double.predict([("x", tensor)]).unwrap_err();
            assert!(wrong.kind() == ModelErrorKind::Invalid && !wrong.passes(), "{wrong}");
            assert!(wrong.to_string().contains(says), "{wrong}");
        }
        let other = DevSwarm::new().with_model("double", |_: &Outputs| {
            Err(ModelError::new(ModelErrorKind::Busy, "busy"))
        });
        drop(swarm);
        assert!(double.predict_one(Tensor::f32([1], &[1.0])).unwrap_err().passes());
        drop(other);
        let gone = model("double").unwrap_err();
        assert!(
            gone.kind() == ModelErrorKind::NotGranted && gone.to_string().contains("DevSwarm::with_model"),
            "{gone}"
        );
        assert!(double.predict_one(Tensor::f32([1], &[1.0])).is_err());
    }
}
