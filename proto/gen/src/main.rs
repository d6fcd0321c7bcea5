//! Generates `proto/src/gen` from `proto/skep/v1/*.proto` with pure-Rust tools, so that nobody installs protoc.
//!
//! `ci/gen` runs it; `ci/check` runs it again and fails if the tree changed.

use std::path::Path;

use anyhow::Context as _;
use prost::Message as _;

fn main() -> anyhow::Result<()> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("proto/gen has a parent")?;
    let out = proto.join("src/gen");
    std::fs::create_dir_all(&out)?;
    let files = [
        "skep/v1/gateway.proto",
        "skep/v1/beekeeper.proto",
        "skep/v1/peer.proto",
        "skep/v1/access.proto",
        "skep/v1/secrets.proto",
        "skep/v1/audit.proto",
        "skep/v1/models.proto",
    ];
    let set = protox::compile(files, [proto]).context("compile proto/skep/v1")?;
    // Reflection serves this; without source info it is a tenth of the size.
    let mut bare = set.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    std::fs::write(out.join("descriptor.bin"), bare.encode_to_vec())?;
    tonic_prost_build::configure()
        .out_dir(&out)
        .bytes(".skep.v1")
        .compile_fds(set)
        .context("generate Rust")?;
    Ok(())
}
