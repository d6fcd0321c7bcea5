//! An uploaded component, up to the compiler: what is counted before it, and the linking of its libraries.

use skep_engine::CompilerLimits;

pub fn run(bytes: &[u8]) -> bool {
    skep_engine::fuzz(bytes, &CompilerLimits::default())
}
