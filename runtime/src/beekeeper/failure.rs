//! How the Beekeeper says no.

use tonic::{Code, Status};

use crate::store::Trouble;
use crate::supervisor::Refused;

pub(super) fn invalid(e: impl std::fmt::Display) -> Status {
    Status::invalid_argument(e.to_string())
}

pub(super) fn internal(e: anyhow::Error) -> Status {
    if let Some(e) = e.downcast_ref::<skep_topic::Error>() {
        return topic_error(e.clone());
    }
    if let Some(trouble) = e.downcast_ref::<Trouble>() {
        tracing::warn!(%trouble, "the module store cannot be used");
        return Status::unavailable(trouble.to_string());
    }
    tracing::error!(error = format!("{e:#}"), "Beekeeper call failed");
    Status::internal(format!("{e:#}"))
}

pub(super) fn topic_error(e: skep_topic::Error) -> Status {
    let code = match &e {
        skep_topic::Error::Unavailable(_) => Code::Unavailable,
        skep_topic::Error::Unknown(_) => Code::Unknown,
        skep_topic::Error::Gone => Code::NotFound,
        skep_topic::Error::TooLarge(_) => Code::InvalidArgument,
        _ => Code::Internal,
    };
    Status::new(code, e.to_string())
}

/// A refused upload is the uploader's to mend; a compiler that could not run is ours.
pub(super) fn refused(e: &Refused) -> Status {
    let status = match e {
        Refused::Compile(e) if e.code.is_permanent() => Status::invalid_argument(e.to_string()),
        Refused::Compile(_) => Status::unavailable(e.to_string()),
        Refused::Load(skep_engine::Error::Artifact(_) | skep_engine::Error::TooBig(_)) => {
            Status::invalid_argument(e.to_string())
        }
        Refused::Load(skep_engine::Error::Apart(_)) => Status::unavailable(e.to_string()),
        Refused::Load(_) => Status::invalid_argument(e.to_string()),
    };
    let code = match e {
        Refused::Compile(e) => e.code.as_str(),
        Refused::Load(_) => "not-loadable",
    };
    let mut status = status;
    if let Ok(code) = code.parse() {
        status.metadata_mut().insert("skep-reason", code);
    }
    status
}
