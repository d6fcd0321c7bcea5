//! Parts of a response, sent while a Bee works.
//!
//! All else that a Bee does is a value until the host commits; a part leaves at once. So before the first of an input leaves, its owner
//! makes a mark durable, and a marked input is never run again. Parts for a caller who does not stream are a value like all else: they
//! are gathered, and joined they are the response where the Bee makes no other.

use std::fmt::Debug;
use std::pin::Pin;

use bytes::Bytes;

/// Takes the parts of responses of one batch.
pub trait Parts: Debug + Send + Sync {
    /// One of the input with this index. Ends when the caller's window has room for the next.
    fn part(&self, input: usize, data: Bytes) -> Pin<Box<dyn Future<Output = Result<(), NoPart>> + Send + '_>>;
}

/// Why a part was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPart {
    /// Nobody waits for an answer to this input.
    NoCaller,
    /// The caller went away, or its call ended.
    Closed,
    /// The bound, bytes.
    TooLarge(u64),
    /// All inputs of the batch together said more than this many bytes: smaller batches may go through.
    TooMuch(usize),
}
