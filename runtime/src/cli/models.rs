//! `model`.

use std::path::Path;

use serde_json::{Value, json};
use skep_inference::limits::MODEL_BYTES_MAX;
use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::limits::UPLOAD_CHUNK_BYTES;
use skep_model::name::{ModelName, ModelRef, Tag, Version};
use skep_proto::v1;
use skep_proto::v1::push_model_request::Part;

use super::args::{self, ModelCommand};
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::files;
use super::output::{Printer, size, time};
use super::progress::Progress;

pub async fn run(args: args::Model, node: &str, out: Printer) -> Outcome {
    match args.what {
        ModelCommand::Push {
            file,
            name,
            tag,
            batching,
        } => push(&file, name, &tag, &batching, node, out).await,
        ModelCommand::List => list(node, out).await,
        ModelCommand::Show { name } => show(&name, node, out).await,
        ModelCommand::Tag { version, tag } => move_tag(&version, tag, node, out).await,
        ModelCommand::Delete { name, force } => delete(&name, force, node, out).await,
        ModelCommand::Batching { name, batching } => {
            let request = v1::SetBatchingRequest {
                name,
                batching: Some(told(&batching)),
            };
            let model = connect::models(node).await?.set_batching(request).await?.into_inner();
            if out.json() {
                return out.document(&as_json(&model));
            }
            out.line(&format!("{}: {}", model.name, batching_shown(model.batching.as_ref())))
        }
    }
}

fn told(given: &args::Batching) -> v1::Batching {
    let wait = given.wait.unwrap_or_default().as_micros();
    v1::Batching {
        off: given.no_batching,
        max_rows: given.rows.unwrap_or_default(),
        max_wait_us: u32::try_from(wait).unwrap_or(u32::MAX),
        together: given.with_other_tenants,
    }
}

fn refused(what: &str, e: &skep_model::name::BadName, remedy: &str) -> Failure {
    Failure::new(Exit::Refused, format!("the model's {what}: {e}")).remedy(remedy)
}

async fn push(
    file: &Path,
    name: Option<String>,
    tag: &str,
    batching: &args::Batching,
    node: &str,
    out: Printer,
) -> Outcome {
    let stem = || {
        file.file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default()
            .replace('_', "-")
    };
    let name = name.unwrap_or_else(stem);
    name.parse::<ModelName>()
        .map_err(|e| refused("name", &e, "give another with --name"))?;
    tag.parse::<Tag>()
        .map_err(|e| refused("tag", &e, "give another with --tag"))?;
    let bytes = Bytes::from(read(file).await?);
    let says =
        batching.no_batching || batching.with_other_tenants || batching.rows.is_some() || batching.wait.is_some();
    let progress = if out.json() {
        Progress::silent()
    } else {
        Progress::stderr()
    };
    let reply = upload(node, &name, tag, bytes, says.then(|| told(batching)), progress).await?;
    let version = reply.version.unwrap_or_default();
    if out.json() {
        return out.document(&json!({
            "name": name, "tag": tag, "version": version_json(&version), "known": reply.known, "replaced": reply.replaced,
            "looked_at_ms": reply.looked_at_ms, "changes": reply.changes,
        }));
    }
    out.line(&format!("{name}:{tag} is {}", version.digest))?;
    for (side, tensors) in [("input", &version.inputs), ("output", &version.outputs)] {
        for tensor in tensors {
            out.line(&format!("{side} {}", port(tensor)))?;
        }
    }
    for change in &reply.changes {
        out.line(&format!("! {change}"))?;
    }
    if !version.granted.is_empty() && !reply.known {
        out.line(&format!("{} call it from now on", version.granted.join(", ")))?;
    }
    Ok(())
}

/// Pushes a model, and shows that it is done.
pub async fn upload(
    node: &str,
    name: &str,
    tag: &str,
    bytes: Bytes,
    batching: Option<v1::Batching>,
    progress: Progress,
) -> Outcome<v1::PushModelReply> {
    let header = v1::ModelHeader {
        name: name.to_owned(),
        tag: tag.to_owned(),
        digest: Digest::of(&bytes).to_hex(),
        size: bytes.len() as u64,
        batching,
    };
    let step = progress.step(format!("push {name}:{tag}"));
    step.note(&format!(
        "{}, looked at and run once on the node",
        size(bytes.len() as u64)
    ));
    let chunks = (0..bytes.len()).step_by(UPLOAD_CHUNK_BYTES).map(move |from| {
        let to = (from + UPLOAD_CHUNK_BYTES).min(bytes.len());
        Part::Chunk(bytes.slice(from..to))
    });
    let parts = std::iter::once(Part::Header(header)).chain(chunks);
    let requests = tokio_stream::iter(parts.map(|part| v1::PushModelRequest { part: Some(part) }));
    let reply = connect::models(node).await?.push_model(requests).await?.into_inner();
    step.done(&match reply.known {
        true => "the node has it already".to_owned(),
        false => format!("looked at in {} ms", reply.looked_at_ms),
    });
    Ok(reply)
}

/// A model's file, refused when it cannot be one.
pub async fn read(file: &Path) -> Outcome<Vec<u8>> {
    let unreadable = |e: std::io::Error| files::unreadable(file, &e);
    let found = tokio::fs::metadata(file).await.map_err(unreadable)?;
    if found.is_dir() {
        return Err(unreadable(std::io::ErrorKind::IsADirectory.into()).remedy("name the .onnx file"));
    }
    if found.len() > MODEL_BYTES_MAX as u64 {
        let message = format!(
            "{} has {} bytes, a model at most {MODEL_BYTES_MAX}",
            file.display(),
            found.len()
        );
        return Err(Failure::new(Exit::Refused, message).remedy("quantise it, or export it with smaller weights"));
    }
    tokio::fs::read(file).await.map_err(unreadable)
}

/// `x FP32 [any, 64]`
fn port(tensor: &v1::Tensor) -> String {
    let dims: Vec<String> = tensor
        .shape
        .iter()
        .map(|dim| if *dim < 0 { "any".to_owned() } else { dim.to_string() })
        .collect();
    format!("{} {} [{}]", tensor.name, tensor.datatype, dims.join(", "))
}

fn ports(tensors: &[v1::Tensor]) -> String {
    tensors.iter().map(port).collect::<Vec<_>>().join("; ")
}

fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}

fn batching_shown(batching: Option<&v1::Batching>) -> String {
    match batching {
        None => String::new(),
        Some(v1::Batching { off: true, .. }) => "each call is a run of its own".to_owned(),
        Some(batching) => {
            let wait = match batching.max_wait_us {
                0 => "no call is made to wait".to_owned(),
                us => format!("a call waits for others for {} ms at most", f64::from(us) / 1_000.0),
            };
            let whose = match batching.together {
                true => " of all tenants that chose so",
                false => "",
            };
            format!("up to {} rows{whose} in a run, {wait}", batching.max_rows)
        }
    }
}

async fn list(node: &str, out: Printer) -> Outcome {
    let request = v1::ListModelsRequest::default();
    let reply = connect::models(node).await?.list_models(request).await?.into_inner();
    if out.json() {
        let models: Vec<Value> = reply.models.iter().map(as_json).collect();
        return out.document(&json!({ "backend": reply.backend, "models": models }));
    }
    if reply.models.is_empty() {
        return out.line("no models yet: upload one with `skep model push FILE.onnx --name NAME`");
    }
    let rows = reply.models.iter().flat_map(|model| {
        model.versions.iter().map(move |version| {
            vec![
                model.name.clone(),
                version.tags.join(", "),
                ports(&version.inputs),
                ports(&version.outputs),
                short(&version.digest),
                size(version.size),
                time(version.pushed_ms),
                version.granted.join(", "),
            ]
        })
    });
    out.table(
        &[
            "MODEL",
            "TAGS",
            "INPUTS",
            "OUTPUTS",
            "DIGEST",
            "SIZE",
            "PUSHED",
            "GRANTED TO",
        ],
        rows.collect(),
    )
}

async fn show(name: &str, node: &str, out: Printer) -> Outcome {
    let wanted: ModelRef = name
        .parse()
        .map_err(|e| refused("name", &e, "write NAME or NAME:TAG"))?;
    let request = v1::ListModelsRequest {
        name: wanted.name.to_string(),
    };
    let reply = connect::models(node).await?.list_models(request).await?.into_inner();
    let Some(mut model) = reply.models.into_iter().next() else {
        return Err(Failure::new(Exit::NotFound, format!("no model `{}`", wanted.name)));
    };
    if name.contains([':', '@']) {
        let tags: Vec<String> = model.versions.iter().flat_map(|v| v.tags.clone()).collect();
        model.versions.retain(|version| match &wanted.version {
            Version::Tag(tag) => version.tags.iter().any(|t| t == tag.as_str()),
            Version::Digest(digest) => version.digest == digest.to_string(),
        });
        if model.versions.is_empty() {
            let message = format!("model `{}` has no version `{}`", wanted.name, wanted.version);
            return Err(Failure::new(Exit::NotFound, message).remedy(format!("it has the tags {}", tags.join(", "))));
        }
    }
    if out.json() {
        return out.document(&as_json(&model));
    }
    out.line(&format!("{}: {}", model.name, batching_shown(model.batching.as_ref())))?;
    for version in &model.versions {
        let tags = match version.tags.as_slice() {
            [] => "no tag".to_owned(),
            some => some.join(", "),
        };
        out.line(&format!(
            "\n{} ({tags}), {}, pushed {}",
            version.digest,
            size(version.size),
            time(version.pushed_ms)
        ))?;
        for (side, tensors) in [("input ", &version.inputs), ("output", &version.outputs)] {
            for tensor in tensors {
                out.line(&format!("  {side} {}", port(tensor)))?;
            }
        }
        let rows = match version.batchable {
            true => "calls of it are put together by rows",
            false => "each call of it is a run of its own",
        };
        out.line(&format!(
            "  ONNX operators of version {}, {} nodes, {} of weights{}",
            version.opset,
            version.nodes,
            size(version.weights),
            if version.producer.is_empty() {
                String::new()
            } else {
                format!(", made by {}", version.producer)
            }
        ))?;
        let loaded = if version.loaded { "in memory" } else { "not in memory" };
        out.line(&format!(
            "  {rows}; {loaded} on this node, which runs models with {}",
            reply.backend
        ))?;
        if !version.granted.is_empty() {
            out.line(&format!("  granted to {}", version.granted.join(", ")))?;
        }
    }
    Ok(())
}

async fn move_tag(version: &str, tag: String, node: &str, out: Printer) -> Outcome {
    let wanted: ModelRef = version
        .parse()
        .map_err(|e| refused("version", &e, "write NAME:TAG or NAME@sha256:DIGEST"))?;
    let request = v1::TagModelRequest {
        name: wanted.name.to_string(),
        tag: tag.clone(),
        version: wanted.version.to_string(),
    };
    let reply = connect::models(node).await?.tag_model(request).await?.into_inner();
    if out.json() {
        return out.document(&json!({
            "name": wanted.name.as_str(), "tag": tag, "digest": reply.digest, "replaced": reply.replaced,
        }));
    }
    out.line(&format!("{}:{tag} is {}", wanted.name, reply.digest))?;
    if !reply.replaced.is_empty() && reply.replaced != reply.digest {
        let back = format!("skep model tag {}@{} {tag}", wanted.name, reply.replaced);
        out.line(&format!("back to what it was: `{back}`"))?;
    }
    Ok(())
}

async fn delete(typed: &str, force: bool, node: &str, out: Printer) -> Outcome {
    let (name, tag) = typed.split_once(':').unwrap_or((typed, ""));
    if typed.contains('@') || typed.ends_with(':') {
        return Err(
            Failure::new(Exit::Usage, format!("`{typed}` does not name one tag of a model"))
                .remedy("write NAME:TAG, or NAME for all of it"),
        );
    }
    let request = v1::DeleteModelRequest {
        name: name.to_owned(),
        tag: tag.to_owned(),
        force,
    };
    let reply = connect::models(node).await?.delete_model(request).await?.into_inner();
    if out.json() {
        return out.document(&json!({ "name": name, "removed_tags": reply.removed_tags, "removed": reply.removed }));
    }
    let tags = reply.removed_tags.join(", ");
    out.line(&match reply.removed.len() as u64 {
        0 => format!("removed the tag {name}:{tags}; what it named has other tags, or a Swarm names it by its digest"),
        n => format!(
            "removed {name}: {tags}; {} of its files gone",
            crate::wording::count(n, "version")
        ),
    })
}

fn tensors_json(tensors: &[v1::Tensor]) -> Vec<Value> {
    let tensors = tensors.iter();
    tensors
        .map(|t| json!({ "name": t.name, "datatype": t.datatype, "shape": t.shape }))
        .collect()
}

fn version_json(version: &v1::ModelVersion) -> Value {
    json!({
        "digest": version.digest, "tags": version.tags, "size": version.size, "pushed_ms": version.pushed_ms,
        "inputs": tensors_json(&version.inputs), "outputs": tensors_json(&version.outputs), "opset": version.opset,
        "producer": version.producer, "nodes": version.nodes, "weights": version.weights, "batchable": version.batchable,
        "loaded": version.loaded, "granted": version.granted,
    })
}

fn as_json(model: &v1::Model) -> Value {
    let batching = model.batching.unwrap_or_default();
    json!({
        "name": model.name,
        "batching": { "off": batching.off, "max_rows": batching.max_rows, "max_wait_us": batching.max_wait_us, "together": batching.together },
        "versions": model.versions.iter().map(version_json).collect::<Vec<_>>(),
    })
}
