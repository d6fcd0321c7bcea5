//! `push`, `bees`, `delete-module`.

use std::path::Path;

use serde_json::json;
use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::limits::{UPLOAD_BYTES_MAX, UPLOAD_CHUNK_BYTES};
use skep_model::name::{ModuleName, Tag};
use skep_proto::v1;
use skep_proto::v1::push_module_request::Part;

use super::args;
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::files;
use super::output::{Printer, size, time};
use super::progress::Progress;
use super::python;
use super::signers;
use crate::wording::count;

pub async fn push(args: args::Push, node: &str, out: Printer) -> Outcome {
    let name = match args.name {
        Some(name) => name,
        None => name_of(&args.file)?,
    };
    let progress = if out.json() {
        Progress::silent()
    } else {
        Progress::stderr()
    };
    let bytes = if python::is_python(&args.file) {
        let room = tempfile::tempdir().map_err(|e| Failure::new(Exit::Failed, format!("cannot make a folder: {e}")))?;
        let built = python::build(&args.file, &room.path().join("bee.wasm"), &progress).await?;
        read(&built.wasm).await?
    } else {
        read(&args.file).await?
    };
    let reply = upload(node, &name, &args.tag, bytes, &args.signature, progress).await?;
    if out.json() {
        return out.document(&json!({
            "name": name, "tag": args.tag, "digest": reply.digest, "bees": reply.bees, "known": reply.known,
            "replaced": reply.replaced, "compile_ms": reply.compile_ms,
            "followers": reply.followers, "needs": reply.needs, "new_needs": reply.new_needs,
        }));
    }
    out.line(&format!("{name}:{} is {}", args.tag, reply.digest))?;
    out.line(&format!("Bees: {}", reply.bees.join(", ")))?;
    if reply.new_needs.iter().any(|need| need == "http") {
        let before = if reply.replaced.is_empty() {
            ""
        } else {
            ", which the one before did not"
        };
        out.line(&format!(
            "+ it sends HTTP requests{before}: its Bees are applied where their manifest lists hosts, `http: [...]`"
        ))?;
    }
    if !reply.followers.is_empty() && !reply.known {
        let followers = reply.followers.join(", ");
        out.line(&format!(
            "apply again, for these Swarms name the tag and run what they ran: {followers}"
        ))?;
    }
    Ok(())
}

/// Uploads a component under a name and tag, showing progress.
pub async fn upload(
    node: &str,
    name: &str,
    tag: &str,
    bytes: Vec<u8>,
    signed_by: &args::SignedBy,
    progress: Progress,
) -> Outcome<v1::PushModuleReply> {
    let bad =
        |what: &str, e: skep_model::name::BadName| Failure::new(Exit::Refused, format!("the module's {what}: {e}"));
    let module: ModuleName = name
        .parse()
        .map_err(|e| bad("name", e).remedy("give another with --name"))?;
    tag.parse::<Tag>()
        .map_err(|e| bad("tag", e).remedy("give another with --tag"))?;
    let digest = Digest::of(&bytes);
    let signature = signers::signature(signed_by, &module, &digest)?;
    let mut beekeeper = connect::beekeeper(node).await?;
    let header = v1::PushHeader {
        name: name.to_owned(),
        tag: tag.to_owned(),
        digest: digest.to_hex(),
        size: bytes.len() as u64,
        signature: signature.unwrap_or_default(),
    };
    let step = progress.step(format!("push {name}:{tag}"));
    step.note(&format!(
        "{}, checked and compiled on the node",
        size(bytes.len() as u64)
    ));
    let bytes = Bytes::from(bytes);
    let chunks = (0..bytes.len()).step_by(UPLOAD_CHUNK_BYTES).map(move |from| {
        let to = (from + UPLOAD_CHUNK_BYTES).min(bytes.len());
        Part::Chunk(bytes.slice(from..to))
    });
    let parts = std::iter::once(Part::Header(header)).chain(chunks);
    let requests = tokio_stream::iter(parts.map(|part| v1::PushModuleRequest { part: Some(part) }));
    let reply = beekeeper.push_module(requests).await?.into_inner();
    step.done(&if reply.known {
        "the node has it already".to_owned()
    } else {
        let bees = count(reply.bees.len() as u64, "Bee");
        format!("{bees}, compiled in {} ms", reply.compile_ms)
    });
    Ok(reply)
}

/// A module's file, refused when it cannot be one.
pub async fn read(file: &Path) -> Outcome<Vec<u8>> {
    let unreadable = |e: std::io::Error| files::unreadable(file, &e);
    let found = tokio::fs::metadata(file).await.map_err(unreadable)?;
    if found.is_dir() {
        return Err(
            unreadable(std::io::ErrorKind::IsADirectory.into()).remedy("name the .wasm file, or use `skep up DIR`")
        );
    }
    if found.len() > UPLOAD_BYTES_MAX as u64 {
        let message = format!(
            "{} has {} bytes, a module at most {UPLOAD_BYTES_MAX}",
            file.display(),
            found.len()
        );
        return Err(Failure::new(Exit::Refused, message).remedy("build with --release and `strip = true`"));
    }
    let bytes = tokio::fs::read(file).await.map_err(unreadable)?;
    if !bytes.starts_with(b"\0asm") {
        return Err(
            Failure::new(Exit::Refused, format!("{} is not WebAssembly", file.display()))
                .remedy("build one with `cargo build --release --target wasm32-wasip2`, or name a .py file"),
        );
    }
    Ok(bytes)
}

pub fn name_of(file: &Path) -> Outcome<String> {
    let stem = file
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default()
        .replace('_', "-");
    match stem.parse::<ModuleName>() {
        Ok(name) => Ok(name.to_string()),
        Err(e) => Err(
            Failure::new(Exit::Usage, format!("the file's name does not name a module: {e}"))
                .remedy("give --name NAME"),
        ),
    }
}

pub async fn list(node: &str, out: Printer) -> Outcome {
    let reply = connect::beekeeper(node)
        .await?
        .list_modules(v1::ListModulesRequest {})
        .await?
        .into_inner();
    if out.json() {
        let modules: Vec<_> = reply
            .modules
            .iter()
            .map(|m| {
                json!({
                    "name": m.name, "digest": m.digest, "tags": m.tags, "bees": m.bees, "size": m.size,
                    "pushed_ms": m.pushed_ms, "used_by": m.used_by, "signed_by": m.signed_by,
                })
            })
            .collect();
        return out.document(&json!({ "modules": modules }));
    }
    if reply.modules.is_empty() {
        return out.line("no modules yet: upload one with `skep push FILE --name NAME`");
    }
    let short = |digest: &str| {
        digest
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect::<String>()
    };
    let rows = reply.modules.iter().map(|m| {
        vec![
            m.name.clone(),
            m.tags.join(", "),
            m.bees.join(", "),
            short(&m.digest),
            size(m.size),
            time(m.pushed_ms),
            m.used_by.join(", "),
        ]
    });
    out.table(
        &["MODULE", "TAGS", "BEES", "DIGEST", "SIZE", "PUSHED", "USED BY"],
        rows.collect(),
    )
}

/// `NAME` or `NAME:TAG`, and what `--tag` says.
fn name_and_tag(typed: &str, tag: Option<String>) -> Outcome<(String, String)> {
    match (typed.split_once(':'), tag) {
        (None, tag) => Ok((typed.to_owned(), tag.unwrap_or_default())),
        (Some((name, tag)), None) if !tag.is_empty() => Ok((name.to_owned(), tag.to_owned())),
        _ => Err(
            Failure::new(Exit::Usage, format!("`{typed}` does not name one tag of a module"))
                .remedy("write NAME:TAG, or NAME for all of it"),
        ),
    }
}

pub async fn delete(args: args::DeleteModule, node: &str, out: Printer) -> Outcome {
    let (name, tag) = name_and_tag(&args.name, args.tag)?;
    let request = v1::DeleteModuleRequest {
        name: name.clone(),
        tag,
    };
    let reply = connect::beekeeper(node)
        .await?
        .delete_module(request)
        .await?
        .into_inner();
    if out.json() {
        return out.document(&json!({ "name": name, "removed_tags": reply.removed_tags }));
    }
    out.line(&format!("removed {name}: {}", reply.removed_tags.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_named_once() {
        let read = |typed: &str, tag: Option<&str>| name_and_tag(typed, tag.map(str::to_owned));
        for (typed, tag, expected) in [
            ("hello", None, ("hello", "")),
            ("hello:v1", None, ("hello", "v1")),
            ("hello", Some("v1"), ("hello", "v1")),
        ] {
            let (name, tag) = read(typed, tag).unwrap();
            assert_eq!((name.as_str(), tag.as_str()), expected);
        }
        for (typed, tag) in [("hello:v1", Some("v2")), ("hello:", None)] {
            assert_eq!(read(typed, tag).unwrap_err().exit, Exit::Usage, "{typed}");
        }
    }
}
