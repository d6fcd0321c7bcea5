//! Makes one module of the many that a component of shared libraries has.
//!
//! CPython comes as ten core modules that share a memory and a table and fill each other's imports. Each instance then links them anew:
//! thousands of imports, and a table of five thousand functions that is filled one by one, because a table of another module cannot be laid
//! out ahead. That is most of what a fresh instance costs. Here they are linked once:
//!
//! ```text
//! main (memory, data, table, globals, code) ┐       memory: the memory and its data
//! libc, libpython, … (code, elements)       ┘  ──►  code:   all else, with a table of its own that the compiler lays out
//! ```
//!
//! The code is the same, byte for byte, for all components that were made of the same libraries; only their memory differs. So it is
//! compiled apart, once for all of them; what is left, the *frame*, imports it.
//!
//! Nothing is guessed: where a component is not of the form that is understood here, it is left as it is. What comes out is validated like
//! every upload.

mod code;
mod emit;
mod outline;
mod plan;
#[cfg(test)]
mod tests;

use crate::artifact::CODE;
use outline::Outline;
use plan::Plan;

/// The custom section of a shared library.
const LIBRARY: &str = "dylink.0";
/// How the two modules name what they take.
const FROM: &str = "x";
const MEMORY: &str = "memory";

/// Why a component is left as it is. For people who look why.
type Left = &'static str;

/// A component with its libraries linked.
pub(super) struct Linked {
    /// The component; it imports the code.
    pub(super) frame: Vec<u8>,
    /// A core module.
    pub(super) code: Vec<u8>,
    /// A core module of the same form as the code, that does nothing.
    pub(super) stub: Vec<u8>,
}

/// Links the libraries of a component, or says why it is left as it is.
pub(super) fn link(component: &[u8]) -> Result<Linked, Left> {
    let outline = Outline::read(component)?;
    let plan = Plan::of(&outline)?;
    let code = plan.code(&outline)?;
    let frame = emit::emit(&outline, &plan, &code, &plan.memory(&outline))?;
    Ok(Linked {
        frame,
        code: code.module,
        stub: code.stub,
    })
}
