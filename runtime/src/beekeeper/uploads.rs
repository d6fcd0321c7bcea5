//! Receiving a module: whole, in memory, checked against what was announced. Nothing is parsed here.

use std::time::Duration;

use bytes::BytesMut;
use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::limits::{UPLOAD_BYTES_MAX, UPLOAD_BYTES_PER_S_MIN};
use skep_model::name::{ModuleName, Tag};
use skep_proto::v1;
use skep_proto::v1::push_module_request::Part;
use tonic::{Status, Streaming};

use super::failure::invalid;

/// How long an upload may pause between two chunks.
const IDLE: Duration = Duration::from_secs(30);

pub(super) struct Upload {
    pub name: ModuleName,
    pub tag: Tag,
    pub digest: Digest,
    pub bytes: Bytes,
}

struct Announced {
    name: ModuleName,
    tag: Tag,
    /// Unknown: none.
    size: Option<usize>,
    digest: Option<Digest>,
}

/// # Errors
/// What is wrong with the upload, or that it took too long: a slow client does not keep its place.
pub(super) async fn receive(mut stream: Streaming<v1::PushModuleRequest>, base: Duration) -> Result<Upload, Status> {
    let first = tokio::time::timeout(IDLE, stream.message())
        .await
        .map_err(|_| paused())??;
    let announced = match first.and_then(|message| message.part) {
        Some(Part::Header(head)) => announced(head)?,
        Some(Part::Chunk(_)) => return Err(invalid("the first part of an upload is its header")),
        None => return Err(invalid("an empty upload")),
    };
    let size = announced.size.unwrap_or(UPLOAD_BYTES_MAX) as u64;
    let limit = base + Duration::from_secs(size / UPLOAD_BYTES_PER_S_MIN);
    let bytes = tokio::time::timeout(limit, chunks(&mut stream, announced.size))
        .await
        .map_err(|_| {
            Status::deadline_exceeded(format!(
                "the upload took more than {} s: nothing was stored; push over a faster connection",
                limit.as_secs()
            ))
        })??;
    if let Some(size) = announced.size
        && size != bytes.len()
    {
        return Err(invalid(format!(
            "truncated: {size} bytes were announced and {} came; nothing was stored: push again",
            bytes.len()
        )));
    }
    let digest = Digest::of(&bytes);
    if let Some(announced) = announced.digest
        && announced != digest
    {
        return Err(invalid(format!(
            "wrong digest: {announced} was announced, the bytes have {digest}; nothing was stored: push again"
        )));
    }
    Ok(Upload {
        name: announced.name,
        tag: announced.tag,
        digest,
        bytes,
    })
}

/// All of the header is checked before the first byte is taken.
fn announced(head: v1::PushHeader) -> Result<Announced, Status> {
    if head.size > UPLOAD_BYTES_MAX as u64 {
        return Err(too_large(head.size));
    }
    let tag = if head.tag.is_empty() { "latest" } else { &head.tag };
    let digest = match head.digest.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|e| invalid(format!("digest: {e}")))?),
    };
    Ok(Announced {
        name: head.name.parse().map_err(|e| invalid(format!("module name: {e}")))?,
        tag: tag.parse().map_err(|e| invalid(format!("tag: {e}")))?,
        size: usize::try_from(head.size).ok().filter(|size| *size > 0),
        digest,
    })
}

async fn chunks(stream: &mut Streaming<v1::PushModuleRequest>, size: Option<usize>) -> Result<Bytes, Status> {
    // Once: growing by doubling would hold the bytes up to three times.
    let mut bytes = BytesMut::with_capacity(size.unwrap_or_default());
    let most = size.unwrap_or(UPLOAD_BYTES_MAX);
    loop {
        let next = tokio::time::timeout(IDLE, stream.message())
            .await
            .map_err(|_| paused())??;
        let Some(message) = next else { return Ok(bytes.freeze()) };
        match message.part {
            Some(Part::Header(_)) => return Err(invalid("a second header in one upload")),
            Some(Part::Chunk(chunk)) if bytes.len() + chunk.len() > UPLOAD_BYTES_MAX => {
                return Err(too_large((bytes.len() + chunk.len()) as u64));
            }
            Some(Part::Chunk(chunk)) if bytes.len() + chunk.len() > most => {
                return Err(invalid(format!(
                    "{most} bytes were announced and more came; nothing was stored: push again"
                )));
            }
            Some(Part::Chunk(chunk)) => bytes.extend_from_slice(&chunk),
            None => return Err(invalid("a part that is neither header nor chunk")),
        }
    }
}

fn paused() -> Status {
    Status::deadline_exceeded("the upload paused for more than 30 s: nothing was stored")
}

fn too_large(size: u64) -> Status {
    invalid(format!(
        "the module has {size} bytes or more, at most {UPLOAD_BYTES_MAX} are taken"
    ))
}
