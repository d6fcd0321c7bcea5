//! Generates `proto/src/gen` from `proto/skep/v1/*.proto` and `proto/inference` with pure-Rust tools, so that nobody installs protoc.
//!
//! `ci/gen` runs it; `ci/check` runs it again and fails if the tree changed.

use std::path::Path;

use anyhow::Context as _;
use prost::Message as _;
use prost_types::FileDescriptorSet;

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
        "skep/v1/edges.proto",
    ];
    let set = compile(proto, &files, &out.join("descriptor.bin"))?;
    tonic_prost_build::configure()
        .out_dir(&out)
        .bytes(".skep.v1")
        .compile_fds(set)
        .context("generate Rust")?;
    // A door only: its clients are other people's.
    let set = compile(proto, &["inference/inference.proto"], &out.join("inference.bin"))?;
    tonic_prost_build::configure()
        .out_dir(&out)
        .bytes(".inference")
        .build_client(false)
        .codec_path("crate::bounded::Codec")
        .compile_fds(set)
        .context("generate Rust")?;
    Ok(())
}

/// Compiles, and writes what reflection serves; without source info it is a tenth of the size.
fn compile(proto: &Path, files: &[&str], descriptor: &Path) -> anyhow::Result<FileDescriptorSet> {
    let set = protox::compile(files, [proto]).with_context(|| format!("compile {}", files.join(", ")))?;
    let mut bare = set.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    std::fs::write(descriptor, bare.encode_to_vec())?;
    Ok(set)
}
