//! Receiving a module or a model: whole, in memory, checked against what was announced. Nothing is parsed here.

use std::time::Duration;

use bytes::BytesMut;
use skep_inference::limits::MODEL_BYTES_MAX;
use skep_model::Bytes;
use skep_model::id::Digest;
use skep_model::limits::{MODEL_UPLOAD_BYTES_PER_S_MIN, UPLOAD_BYTES_MAX, UPLOAD_BYTES_PER_S_MIN};
use skep_model::name::{BadName, Tag};
use skep_proto::v1;
use tonic::{Status, Streaming};

use super::failure::invalid;

/// How long an upload may pause between two chunks.
const IDLE: Duration = Duration::from_secs(30);

/// A file that arrived, and what its header said of it.
pub(super) struct Upload<H> {
    pub header: H,
    pub digest: Digest,
    pub bytes: Bytes,
}

/// A message of the stream.
pub(super) enum Part<H> {
    Header(H),
    Chunk(Bytes),
}

/// The messages of an upload.
pub(super) trait Message: Sized {
    type Header: Header;

    /// `None`: neither header nor chunk.
    fn part(self) -> Option<Part<Self::Header>>;
}

/// What is announced before the first byte.
pub(super) trait Header {
    /// What the file is.
    const NOUN: &'static str;
    /// Bytes of the largest.
    const MOST: usize;
    /// What a client has to send in a second: it holds a place of few.
    const BYTES_PER_S_MIN: u64;

    /// 0: unknown.
    fn size(&self) -> u64;
    /// Lower-case hex; empty: unknown.
    fn digest(&self) -> &str;
    /// Whether the name is one.
    fn name(&self) -> Result<(), BadName>;
    /// Empty: `latest`.
    fn tag(&self) -> &str;
}

impl Message for v1::PushModuleRequest {
    type Header = v1::PushHeader;

    fn part(self) -> Option<Part<v1::PushHeader>> {
        Some(match self.part? {
            v1::push_module_request::Part::Header(header) => Part::Header(header),
            v1::push_module_request::Part::Chunk(chunk) => Part::Chunk(chunk),
        })
    }
}

impl Header for v1::PushHeader {
    const NOUN: &'static str = "module";
    const MOST: usize = UPLOAD_BYTES_MAX;
    const BYTES_PER_S_MIN: u64 = UPLOAD_BYTES_PER_S_MIN;

    fn size(&self) -> u64 {
        self.size
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn name(&self) -> Result<(), BadName> {
        self.name.parse::<skep_model::name::ModuleName>().map(drop)
    }

    fn tag(&self) -> &str {
        &self.tag
    }
}

impl Message for v1::PushModelRequest {
    type Header = v1::ModelHeader;

    fn part(self) -> Option<Part<v1::ModelHeader>> {
        Some(match self.part? {
            v1::push_model_request::Part::Header(header) => Part::Header(header),
            v1::push_model_request::Part::Chunk(chunk) => Part::Chunk(chunk),
        })
    }
}

impl Header for v1::ModelHeader {
    const NOUN: &'static str = "model";
    const MOST: usize = MODEL_BYTES_MAX;
    const BYTES_PER_S_MIN: u64 = MODEL_UPLOAD_BYTES_PER_S_MIN;

    fn size(&self) -> u64 {
        self.size
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn name(&self) -> Result<(), BadName> {
        self.name.parse::<skep_model::name::ModelName>().map(drop)
    }

    fn tag(&self) -> &str {
        &self.tag
    }
}

/// The tag that a header means.
pub(super) fn tag(header: &impl Header) -> Result<Tag, Status> {
    let tag = if header.tag().is_empty() {
        "latest"
    } else {
        header.tag()
    };
    tag.parse().map_err(|e| invalid(format!("tag: {e}")))
}

/// # Errors
/// What is wrong with the upload, or that it took too long: a slow client does not keep its place.
pub(super) async fn receive<M: Message>(mut stream: Streaming<M>, base: Duration) -> Result<Upload<M::Header>, Status> {
    let first = tokio::time::timeout(IDLE, stream.message())
        .await
        .map_err(|_| paused())??;
    let header = match first.and_then(Message::part) {
        Some(Part::Header(header)) => header,
        Some(Part::Chunk(_)) => return Err(invalid("the first part of an upload is its header")),
        None => return Err(invalid("an empty upload")),
    };
    let (size, announced) = announced(&header)?;
    let most = M::Header::MOST;
    let limit = base + Duration::from_secs(size.unwrap_or(most) as u64 / M::Header::BYTES_PER_S_MIN);
    let bytes = tokio::time::timeout(limit, chunks(&mut stream, size))
        .await
        .map_err(|_| {
            Status::deadline_exceeded(format!(
                "the upload took more than {} s: nothing was stored; push over a faster connection",
                limit.as_secs()
            ))
        })??;
    if let Some(size) = size
        && size != bytes.len()
    {
        return Err(invalid(format!(
            "truncated: {size} bytes were announced and {} came; nothing was stored: push again",
            bytes.len()
        )));
    }
    let digest = Digest::of(&bytes);
    if let Some(announced) = announced
        && announced != digest
    {
        return Err(invalid(format!(
            "wrong digest: {announced} was announced, the bytes have {digest}; nothing was stored: push again"
        )));
    }
    Ok(Upload { header, digest, bytes })
}

/// All of the header is checked before the first byte is taken. Answers size and digest, where they are announced.
fn announced<H: Header>(header: &H) -> Result<(Option<usize>, Option<Digest>), Status> {
    if header.size() > H::MOST as u64 {
        return Err(too_large::<H>(header.size()));
    }
    tag(header)?;
    let digest = match header.digest() {
        "" => None,
        text => Some(text.parse().map_err(|e| invalid(format!("digest: {e}")))?),
    };
    header.name().map_err(|e| invalid(format!("{} name: {e}", H::NOUN)))?;
    Ok((usize::try_from(header.size()).ok().filter(|size| *size > 0), digest))
}

async fn chunks<M: Message>(stream: &mut Streaming<M>, size: Option<usize>) -> Result<Bytes, Status> {
    // Once: growing by doubling would hold the bytes up to three times.
    let mut bytes = BytesMut::with_capacity(size.unwrap_or_default());
    let largest = M::Header::MOST;
    let most = size.unwrap_or(largest);
    loop {
        let next = tokio::time::timeout(IDLE, stream.message())
            .await
            .map_err(|_| paused())??;
        let Some(message) = next else { return Ok(bytes.freeze()) };
        match message.part() {
            Some(Part::Header(_)) => return Err(invalid("a second header in one upload")),
            Some(Part::Chunk(chunk)) if bytes.len() + chunk.len() > largest => {
                return Err(too_large::<M::Header>((bytes.len() + chunk.len()) as u64));
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

fn too_large<H: Header>(size: u64) -> Status {
    invalid(format!(
        "the {} has {size} bytes or more, at most {} are taken",
        H::NOUN,
        H::MOST
    ))
}
