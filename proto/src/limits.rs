//! What one message of the Open Inference Protocol may be made of: it may be as large as tensors are, and what is decoded of small fields takes
//! many times their size.

/// Fields of a message, each entry of a list among them: some for each of 1 024 inputs.
pub const FIELDS_MAX: usize = 4 << 10;
/// Bytes of a message beside those of raw tensors. What is made of them in memory is up to sixteen times as large.
pub const FIELDS_BYTES_MAX: usize = 4 << 20;
