//! The Open Inference Protocol v2 kind: models of the caller's tenant by name, and its Swarms as `subject.NAME`. Names have no dots, so neither
//! hides the other.
//!
//! ```text
//!   http (REST) ─┐                 ┌─ NAME ─────────► Models: a model of the node
//!                ├─► Oip: one call ┤
//!   grpc ────────┘                 └─ subject.NAME ─► Core::request: the REST body is the message, and the response is read back
//! ```
//! A call of a model is let in as a message is: it counts among the calls and bytes of its tenant, and pays its rate. It has no effects, so whatever
//! fails is safe to repeat. What another tenant has is answered as what nobody has.

mod contents;
pub(crate) mod grpc;
pub(crate) mod http;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use skep_model::Bytes;
use skep_model::error::{Certainty, ErrorKind};
use skep_model::limits::REQUEST_DEADLINE_MS_DEFAULT;
use skep_model::name::{ModelName, ModelRef, NAME_BYTES_MAX, TenantId, Version};
use skep_model::oip::{self, OipError, Request, Response};
use skep_model::predict::{Later, ModelVersion, Models, PredictError, Tensors};
use skep_model::scope::Scope;
use skep_model::tensor::Tensor;
use tokio::time::Instant;

use crate::admit::Load;
use crate::call::{Answer, CallError, RequestCall, UNSUPPORTED};
use crate::core::outcome;
use crate::core::{Core, Visit};
use crate::http::Said;
use crate::purse::Purse;
use crate::route::Open;

/// In front of a subject where a model is named.
const SUBJECT: &str = "subject.";
/// The output that holds a response which is no inference response.
const RESPONSE: &str = "response";
/// What models are, in the protocol's words: framework and format.
const MODEL_PLATFORM: &str = "onnx_onnxv1";
const SWARM_PLATFORM: &str = "skep-swarm";
/// Of the server, as its metadata has them.
const SERVER: &str = "skep";
const EXTENSIONS: [&str; 1] = ["binary_tensor_data"];
/// Loads that may be remembered before those that nobody holds are let go.
const LOADS_SWEPT_AT: usize = 256;

/// The one core of both doors.
pub(crate) struct Oip {
    core: Arc<Core>,
    /// `None`: this node has none.
    models: Option<Arc<dyn Models>>,
    /// What each model has under way, as long as it has anything.
    loads: Mutex<HashMap<(TenantId, ModelName), Weak<Load>>>,
}

/// What is called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Model(ModelRef),
    Subject(String),
}

/// What is called, once it is found.
pub(crate) enum Found {
    Model(Callee),
    /// A subject that takes requests now.
    Subject(String),
}

/// A model, and who pays for its calls.
pub(crate) struct Callee {
    model: Arc<ModelVersion>,
    purse: Arc<Purse>,
    load: Arc<Load>,
}

/// One line of the index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    name: String,
    version: String,
    /// `None`: it takes calls.
    closed: Option<&'static str>,
}

impl Target {
    /// # Errors
    /// A version that there cannot be; a name that no model can have is answered as one that none has.
    fn parse(name: &str, version: &str) -> Result<Self, CallError> {
        if let Some(subject) = name.strip_prefix(SUBJECT) {
            if !version.is_empty() {
                return Err(CallError::invalid(
                    "bad-version",
                    "a Swarm has no versions: leave the version out",
                ));
            }
            return Ok(Self::Subject(subject.to_owned()));
        }
        let bad = || {
            let version: String = version.chars().take(NAME_BYTES_MAX + 16).collect();
            CallError::invalid(
                "bad-version",
                format!("`{version}` is no version: use a tag, `sha256:` and 64 hex digits, or none for `latest`"),
            )
        };
        let version = match version.strip_prefix("sha256:") {
            Some(digest) => Version::Digest(digest.parse().map_err(|_| bad())?),
            None if version.is_empty() => Version::default(),
            None => Version::Tag(version.parse().map_err(|_| bad())?),
        };
        let name = name.parse().map_err(|_| unknown_model(name))?;
        Ok(Self::Model(ModelRef { name, version }))
    }
}

impl Oip {
    pub(crate) fn new(core: Arc<Core>, models: Option<Arc<dyn Models>>) -> Arc<Self> {
        Arc::new(Self {
            core,
            models,
            loads: Mutex::default(),
        })
    }

    /// # Errors
    /// It is not there, or takes no calls now.
    async fn find(&self, scope: &Scope, target: Target) -> Result<Found, CallError> {
        let model = match target {
            Target::Subject(subject) => {
                self.core.route(scope, &subject, true)?;
                return Ok(Found::Subject(subject));
            }
            Target::Model(model) => model,
        };
        self.core.takes_calls()?;
        let Some(models) = &self.models else {
            return Err(unknown_model(model.name.as_str()));
        };
        let model = within(soon(), models.find(scope.tenant(), &model)).await?;
        // The table of routes tells of a tenant's first model a moment after the model is there.
        let purse = self.core.purse(scope).ok_or_else(|| {
            CallError::not_done(
                ErrorKind::Unavailable,
                "not-yet",
                "this node has not heard yet that your tenant has models: try again",
            )
        })?;
        let load = self.load(scope.tenant(), &model.name);
        Ok(Found::Model(Callee { model, purse, load }))
    }

    fn load(&self, tenant: &TenantId, model: &ModelName) -> Arc<Load> {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        if loads.len() >= LOADS_SWEPT_AT {
            loads.retain(|_, load| load.strong_count() > 0);
        }
        let known = loads.entry((tenant.clone(), model.clone())).or_default();
        known.upgrade().unwrap_or_else(|| {
            let load = Arc::default();
            *known = Arc::downgrade(&load);
            load
        })
    }

    fn visit(&self, callee: &Callee, bytes: usize, said: &Said) -> Result<Visit, CallError> {
        let model = || ("skep.model", callee.model.name.to_string());
        self.core.visit(&callee.purse, &callee.load, bytes, said.trace, model)
    }

    /// Calls a model. Its inputs are taken out of the request.
    async fn predict(
        &self,
        scope: &Scope,
        callee: &Callee,
        visit: &mut Visit,
        said: &Said,
        request: &mut Request,
    ) -> Result<Response, CallError> {
        let model = &callee.model;
        let until = visit.until(timeout_ms(said, request)?)?;
        let known = model.signature.outputs.iter().map(|port| port.name.as_str());
        request.check_outputs(known).map_err(of_oip)?;
        let inputs = std::mem::take(&mut request.inputs);
        visit.cover(bytes_of(&inputs));
        let Some(models) = &self.models else {
            return Err(unknown_model(model.name.as_str()));
        };
        let called = models.predict(scope.tenant(), model, inputs, Some(until.into_std()));
        let outputs = request.select(within(until, called).await?).map_err(of_oip)?;
        visit.cover(bytes_of(&outputs));
        Ok(Response {
            model: model.name.to_string(),
            version: model.digest.to_string(),
            id: request.id.clone(),
            parameters: oip::Parameters::new(),
            outputs,
        })
    }

    /// Calls a Swarm. `body`: the request, as the message has it.
    async fn ask(
        &self,
        scope: &Scope,
        subject: String,
        said: Said,
        request: &Request,
        body: oip::Body,
    ) -> Result<(Response, Answer), CallError> {
        let own = ["content-type", oip::JSON_LENGTH_HEADER];
        let mut headers: Vec<(String, String)> = (said.headers.iter())
            .filter(|(name, _)| !own.contains(&name.as_str()))
            .cloned()
            .collect();
        let kind = match body.json_length {
            None => "application/json",
            Some(_) => "application/octet-stream",
        };
        headers.push(("content-type".to_owned(), kind.to_owned()));
        if let Some(length) = body.json_length {
            headers.push((oip::JSON_LENGTH_HEADER.to_owned(), length.to_string()));
        }
        let name = format!("{SUBJECT}{subject}");
        let call = RequestCall {
            subject,
            payload: body.bytes,
            headers,
            timeout_ms: timeout_ms(&said, request)?,
            key: said.key,
            idempotency_key: said.idempotency_key,
            trace: said.trace,
            streams: false,
        };
        let answer = self.core.request(scope, call).await?;
        let mut response = read_back(&answer.response).map_err(done)?;
        response.outputs = request.select(response.outputs).map_err(|error| done(of_oip(error)))?;
        (response.model, response.id) = (name, request.id.clone());
        Ok((response, answer))
    }

    /// Whether it would take a call; a model is loaded for it.
    ///
    /// # Errors
    /// It is not there, or nobody can tell now.
    async fn ready(&self, scope: &Scope, target: Target, said: &Said) -> Result<bool, CallError> {
        let callee = match self.find(scope, target).await {
            Ok(Found::Subject(_)) => return Ok(true),
            Err(closed) if closed.kind == ErrorKind::Unavailable => return Ok(false),
            Err(error) => return Err(error),
            Ok(Found::Model(callee)) => callee,
        };
        let Some(models) = &self.models else { return Ok(false) };
        let visit = self.visit(&callee, 0, said)?;
        let until = visit.until(said.timeout_ms)?;
        let loaded = within(until, models.load(scope.tenant(), &callee.model)).await;
        let loaded = match loaded {
            // What cannot be loaded, or not now.
            Err(error)
                if matches!(
                    error.kind,
                    ErrorKind::Failed | ErrorKind::Unavailable | ErrorKind::Overloaded
                ) =>
            {
                Ok(false)
            }
            loaded => loaded.map(|()| true),
        };
        self.core.leave(visit, loaded, |_| 0)
    }

    /// The models of a tenant, then its subjects.
    async fn index(&self, scope: &Scope, ready_only: bool) -> Result<Vec<Entry>, CallError> {
        self.core.takes_calls()?;
        let models = match &self.models {
            Some(models) => within(soon(), models.list(scope.tenant())).await?,
            None => Vec::new(),
        };
        let models = models.iter().map(|model| Entry {
            name: model.name.to_string(),
            version: (model.tags.iter().find(|tag| *tag == "latest"))
                .cloned()
                .unwrap_or_else(|| model.digest.to_string()),
            closed: None,
        });
        let subjects = self.core.subjects(scope).into_iter().map(|(name, open)| Entry {
            name: format!("{SUBJECT}{name}"),
            version: String::new(),
            closed: match open {
                Open::Yes => None,
                Open::Paused => Some("it is paused"),
                Open::Draining => Some("it is being drained"),
                Open::Deleting => Some("it is being deleted"),
            },
        });
        let all = models.chain(subjects);
        Ok(all.filter(|entry| !ready_only || entry.closed.is_none()).collect())
    }
}

impl Callee {
    /// What this version may be called by.
    fn versions(&self) -> Vec<String> {
        let digest = std::iter::once(self.model.digest.to_string());
        self.model.tags.iter().cloned().chain(digest).collect()
    }
}

/// A Swarm's response as its Bees wrote it: an inference response, or anything else as one output.
fn read_back(response: &Bytes) -> Result<Response, CallError> {
    if oip::is_response(response) {
        return Response::read(response, None).map_err(|error| {
            CallError::not_done(
                ErrorKind::Failed,
                "bad-response",
                format!("the Swarm's response looks like an inference response and is none: {error}"),
            )
        });
    }
    let whole = Tensor::from_contents(vec![1], [&response[..]]);
    let whole = whole.map_err(|error| of_oip(error.into()))?;
    Ok(Response {
        outputs: vec![(RESPONSE.to_owned(), whole)],
        ..Response::default()
    })
}

/// The Swarm did its work, so nothing that fails after it makes it undone.
fn done(error: CallError) -> CallError {
    error.with_certainty(Certainty::Done)
}

/// For questions that load nothing.
fn soon() -> Instant {
    Instant::now() + Duration::from_millis(REQUEST_DEADLINE_MS_DEFAULT)
}

async fn within<T>(until: Instant, later: Later<'_, T>) -> Result<T, CallError> {
    match tokio::time::timeout_at(until, later).await {
        Ok(done) => done.map_err(of_predict),
        Err(_) => Err(outcome::expired(Certainty::NotDone)),
    }
}

/// As the header, the protocol's parameter, or gRPC says; the soonest.
fn timeout_ms(said: &Said, request: &Request) -> Result<Option<u64>, CallError> {
    let asked = request.timeout_ms().map_err(of_oip)?;
    Ok(crate::grpc::sooner(said.timeout_ms, asked))
}

fn bytes_of(tensors: &Tensors) -> usize {
    tensors.iter().map(|(_, tensor)| tensor.bytes().len()).sum()
}

fn of_oip(error: OipError) -> CallError {
    match error {
        OipError::Invalid(text) => CallError::invalid("bad-inference", text),
        OipError::TooLarge(text) => CallError::too_large(text),
        OipError::Unsupported(text) => CallError::invalid(UNSUPPORTED, text),
    }
}

fn of_predict(error: PredictError) -> CallError {
    let (kind, reason) = match error.kind {
        ErrorKind::NotFound => (ErrorKind::NotFound, UNKNOWN_MODEL),
        ErrorKind::Invalid => (ErrorKind::Invalid, "bad-inference"),
        ErrorKind::Overloaded => (ErrorKind::Overloaded, "model-busy"),
        ErrorKind::DeadlineExceeded => (ErrorKind::DeadlineExceeded, "deadline"),
        ErrorKind::Unavailable => (ErrorKind::Unavailable, "model-unavailable"),
        ErrorKind::Failed => (ErrorKind::Failed, "model-failed"),
        // It cannot be loaded, whatever is sent: nothing that the caller could mend.
        ErrorKind::Rejected | ErrorKind::Conflict => (ErrorKind::Failed, "model-rejected"),
        ErrorKind::Unauthenticated | ErrorKind::Forbidden => (error.kind, "forbidden"),
        ErrorKind::Internal => (ErrorKind::Internal, "internal"),
    };
    CallError::not_done(kind, reason, error.text)
}

const UNKNOWN_MODEL: &str = "unknown-model";

fn unknown_model(name: &str) -> CallError {
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    CallError::not_done(
        ErrorKind::NotFound,
        UNKNOWN_MODEL,
        format!("no model `{shown}`; a Swarm is called as `{SUBJECT}NAME`, by its subject"),
    )
}

/// What clients of Triton may ask for beyond the protocol, and what there is in its place. `asked`: a path's word or a method's name.
fn unsupported(asked: &str) -> Option<CallError> {
    let asked = asked.to_ascii_lowercase();
    let why = match asked.as_str() {
        "config" | "modelconfig" => {
            "there is no configuration of Triton's here: the metadata say what a model takes and gives"
        }
        "stats" | "modelstatistics" => "statistics are not served here: see the node's metrics and `skep usage`",
        "trace" | "tracesetting" => "traces are set for the node, by who runs it",
        "logging" | "logsettings" => "logs are set for the node, by who runs it",
        "load" | "unload" | "repositorymodelload" | "repositorymodelunload" => {
            "models are not loaded or unloaded by hand: a call loads what it needs"
        }
        _ if asked.starts_with("systemsharedmemory") || asked.starts_with("cudasharedmemory") => {
            "shared memory is not supported: send tensors with the call, in binary"
        }
        _ => return None,
    };
    Some(CallError::invalid(UNSUPPORTED, why))
}
