//! The doors by which bytes of others come in, each as one function of bytes. A fuzzer feeds them without end (`ci/fuzz`); the test beside
//! them feeds the committed corpora, and each of those with bytes changed, on every run of all tests.
//!
//! A target says more than that nothing panics: what is written is read back as it was, what is accepted keeps the bounds, and no input takes more
//! memory than [`Target::memory_max`].
//!
//! | target | door |
//! | --- | --- |
//! | `model` | an uploaded ONNX file |
//! | `tensor` | calls of models as JSON and binary tensors, and plain JSON |
//! | `manifest` | a Swarm's manifest |
//! | `units` | sizes, durations, names, references, hosts, limits, `traceparent` |
//! | `frame` | every record that a store or a backup holds |
//! | `token` | tokens, the platform's own and an OpenID provider's, its keys, and proofs between nodes |
//! | `http` | a connection: HTTP/1.1 and HTTP/2, all services behind it |
//! | `grpc` | the frames and messages of every method |
//! | `component` | an uploaded component, up to the compiler |

#[cfg(feature = "engine")]
mod component;
mod frame;
pub mod grpc;
mod http;
mod manifest;
pub mod memory;
#[cfg(feature = "inference")]
mod model;
mod tensor;
mod token;
mod units;

/// One door.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Feeds it. Whether it let the bytes in.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that are longer are passed over, in bytes: what matters is short, and a fuzzer learns more from many.
    pub input_max: usize,
    /// Bytes that one input may take on its thread at once, beside what was there before. Some four times what the corpora take.
    pub memory_max: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    #[cfg(feature = "inference")]
    Target {
        name: "model",
        run: model::run,
        input_max: 64 << 10,
        memory_max: 4 << 20,
    },
    Target {
        name: "tensor",
        run: tensor::run,
        input_max: 16 << 10,
        memory_max: 8 << 20,
    },
    Target {
        name: "manifest",
        run: manifest::run,
        input_max: 8 << 10,
        memory_max: 16 << 20,
    },
    Target {
        name: "units",
        run: units::run,
        input_max: 1 << 10,
        memory_max: 256 << 10,
    },
    Target {
        name: "frame",
        run: frame::run,
        input_max: 16 << 10,
        memory_max: 8 << 20,
    },
    Target {
        name: "token",
        run: token::run,
        input_max: 4 << 10,
        memory_max: 256 << 10,
    },
    Target {
        name: "http",
        run: http::run,
        input_max: 16 << 10,
        memory_max: 16 << 20,
    },
    Target {
        name: "grpc",
        run: grpc::run,
        input_max: 16 << 10,
        memory_max: 8 << 20,
    },
    #[cfg(feature = "engine")]
    Target {
        name: "component",
        run: component::run,
        input_max: 64 << 10,
        memory_max: 32 << 20,
    },
];

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// Feeds one input and holds it against the bound of memory, which counts where [`memory::Counted`] is the allocator. Whether the door let it in.
    ///
    /// # Panics
    /// Something is wrong with the door.
    pub fn feed(&self, bytes: &[u8]) -> bool {
        if bytes.len() > self.input_max {
            return false;
        }
        let (taken, accepted) = memory::peak(|| (self.run)(bytes));
        assert!(
            taken <= self.memory_max,
            "{}: {} bytes took {taken} bytes of memory, at most {} are allowed",
            self.name,
            bytes.len(),
            self.memory_max
        );
        accepted
    }
}

/// A program for libFuzzer that feeds the target of this name.
#[macro_export]
macro_rules! fuzz {
    ($name:literal) => {
        #[global_allocator]
        static COUNTED: $crate::memory::Counted = $crate::memory::Counted;

        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            $crate::target($name).expect("a target of this name").feed(bytes);
        });
    };
}
