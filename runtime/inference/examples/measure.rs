//! `cargo run --release -p skep-inference --example measure -- FILE.onnx…`: every model on every backend there is.
//! Set ORT_DYLIB_PATH to the path of libonnxruntime.so to have ONNX Runtime beside tract.

use std::path::Path;

use bytes::Bytes;
use skep_inference::backend::onnxruntime::{OnnxRuntime, PATH_VARIABLE};
use skep_inference::backend::tract::Tract;
use skep_inference::measure::{Question, measure};
use skep_inference::{Backend, Threads};

/// As the node's binary has it: the system's allocator gives large blocks back to the system after each run, which costs as much as small models.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cores = std::thread::available_parallelism()?.get();
    let threads = Threads::usual(cores);
    let questions = [1, 4].map(|tenants| Question {
        threads,
        tenants,
        ..Question::default()
    });
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(Tract::new())];
    if let Some(path) = std::env::var_os(PATH_VARIABLE) {
        backends.push(Box::new(OnnxRuntime::open(Path::new(&path), threads)?));
    }
    for path in std::env::args().skip(1) {
        let bytes = Bytes::from(std::fs::read(&path)?);
        for backend in &backends {
            for question in &questions {
                println!("{}", measure(&path, &**backend, &bytes, question)?);
            }
        }
    }
    Ok(())
}
