//! The benchmark report: each figure of ours beside the raw ceiling, measured in the same run, as a ratio.
//!
//! `ci/bench` builds everything, runs this, and writes `docs/benchmarks.md`. Nothing here asserts: it measures.
//!
//! - [`echo`]: the raw tonic server that does nothing but echo, in a process of its own like the node.
//! - [`load`]: one load generator for both.
//! - [`sqlite`]: the raw SQLite loops.
//! - [`redis`]: nodes on a Redis, and the raw loops on the same server.
//! - [`inference`]: servers of the Open Inference Protocol beside each other.
//! - [`node`]: starts and feeds a node.
//! - [`edge`]: an edge and its hub.
//! - [`features`]: what each feature of a Swarm costs.
//! - [`crowd`]: answers in parts, overload, fairness between subjects.
//! - [`python`]: Bees in Python beside the same in Rust, for `ci/bench python`.
//! - [`state`]: many keys.
//! - [`many`]: many tenants that do nothing.
//! - [`tenants`]: tenants beside each other, and what keeping them apart costs.
//! - [`versus`]: two builds beside each other.
//! - [`report`]: runs all of it and writes the table.

mod crowd;
mod echo;
mod edge;
mod features;
mod inference;
mod load;
mod many;
mod node;
mod python;
mod redis;
mod report;
mod sqlite;
mod state;
mod tenants;
mod versus;

use anyhow::bail;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["echo-server"] => echo::serve(),
        ["report", bin, bees, out] => report::run(bin.as_ref(), bees.as_ref(), out.as_ref()),
        ["redis", bin, bees, parts @ ..] => report::redis_only(bin.as_ref(), bees.as_ref(), parts),
        ["crowd", bin, bees, parts @ ..] => report::crowd_only(bin.as_ref(), bees.as_ref(), parts),
        ["features", bin, bees] => report::features_only(bin.as_ref(), bees.as_ref()),
        ["streams", bin, bees] => report::streams_only(bin.as_ref(), bees.as_ref()),
        ["state", bin, bees] => report::state_only(bin.as_ref(), bees.as_ref(), state::MANY_KEYS),
        ["state", bin, bees, keys] => report::state_only(bin.as_ref(), bees.as_ref(), keys.parse()?),
        ["tenants", bin, bees] => report::tenants_only(bin.as_ref(), bees.as_ref()),
        ["edge", bin, bees] => report::edge_only(bin.as_ref(), bees.as_ref()),
        ["isolation", bin, bees] => report::isolation_only(bin.as_ref(), bees.as_ref()),
        ["many", bin, wasm, bee, tenants, bees] => {
            report::many_only(bin.as_ref(), wasm.as_ref(), bee, tenants.parse()?, bees.parse()?)
        }
        ["versus", old, new, bees] => report::versus([old.as_ref(), new.as_ref()], bees.as_ref()),
        ["inference", model, input, columns, servers @ ..] => inference::run(model, input, columns, servers),
        ["python", bin, python, rust] => python::run(bin.as_ref(), python.as_ref(), rust.as_ref()),
        _ => bail!("usage: skep-bench report FOLDER_OF_BINARIES TEST_BEES_WASM OUT.md (use ci/bench)"),
    }
}
