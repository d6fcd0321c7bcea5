//! The protocol over gRPC: `inference.GRPCInferenceService`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt as _;
use futures::future::{self, Either, Ready};
use futures::stream::BoxStream;
use skep_model::Bytes;
use skep_model::error::ErrorKind;
use skep_model::limits::{CALL_BYTES_MAX, CALL_PARAMETERS_MAX, CALL_TENSORS_MAX};
use skep_model::oip::{self, OipError, Parameter, Parameters, Wanted};
use skep_model::predict::Tensors;
use skep_model::scope::Scope;
use skep_model::tensor::{Port, Tensor, TensorType};
use skep_proto::inference as proto;
use skep_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use skep_proto::inference::infer_parameter::ParameterChoice;
use skep_proto::inference::model_infer_request::InferInputTensor;
use skep_proto::inference::model_infer_response::InferOutputTensor;
use skep_proto::inference::model_metadata_response::TensorMetadata;
use skep_proto::inference::repository_index_response::ModelIndex;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::{
    EXTENSIONS, Found, MODEL_PLATFORM, Oip, SERVER, SUBJECT, SWARM_PLATFORM, Target, bytes_of, contents, of_oip,
    unsupported,
};
use crate::body::{Bounded, Held};
use crate::call::CallError;
use crate::error;
use crate::grpc::{grpc_timeout_ms, scope, sooner, unknown_method};
use crate::http::{Options, Said};

const SERVICE: &str = "/inference.GRPCInferenceService/";

/// The methods that take one message.
const UNARY: &[&str] = &[
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
    "/inference.GRPCInferenceService/ServerMetadata",
    "/inference.GRPCInferenceService/ModelMetadata",
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/RepositoryIndex",
];
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// The service, within the bounds of the node.
#[must_use]
pub(crate) fn service(oip: &Arc<Oip>) -> Known<Bounded<GrpcInferenceServiceServer<Door>>> {
    let server = GrpcInferenceServiceServer::new(Door(Arc::clone(oip)))
        .max_decoding_message_size(CALL_BYTES_MAX)
        .max_encoding_message_size(CALL_BYTES_MAX);
    Known(Bounded::new(server, &oip.core, UNARY).announced(CALL_BYTES_MAX))
}

/// Says of methods that are not served why they are not: the generated server has no words.
#[derive(Clone)]
pub(crate) struct Known<S>(S);

impl<S: NamedService> NamedService for Known<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Result<http::Response<Body>, Infallible>;

impl<S> Service<http::Request<Body>> for Known<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Answer>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if path == STREAM || UNARY.contains(&path) {
            return Either::Right(self.0.call(request));
        }
        let method = path.strip_prefix(SERVICE).unwrap_or_default();
        let status = match unsupported(method) {
            Some(why) => error::status(&why, false),
            None => unknown_method(path),
        };
        Either::Left(future::ready(Ok(status.into_http())))
    }
}

pub(crate) struct Door(Arc<Oip>);

#[tonic::async_trait]
impl GrpcInferenceService for Door {
    async fn server_live(
        &self,
        _: Request<proto::ServerLiveRequest>,
    ) -> Result<Response<proto::ServerLiveResponse>, Status> {
        Ok(Response::new(proto::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<proto::ServerReadyRequest>,
    ) -> Result<Response<proto::ServerReadyResponse>, Status> {
        let ready = self.0.core.is_ready();
        Ok(Response::new(proto::ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<proto::ModelReadyRequest>,
    ) -> Result<Response<proto::ModelReadyResponse>, Status> {
        let scope = scope(request.extensions())?;
        let (metadata, _, call) = request.into_parts();
        let done = async {
            let said = said(metadata)?;
            let target = Target::parse(&call.name, &call.version)?;
            self.0.ready(&scope, target, &said).await
        };
        let done = match done.await {
            // Clients ask again and again until it is there.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            done => done,
        };
        let ready = done.map_err(|e: CallError| error::status(&e, false))?;
        Ok(Response::new(proto::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<proto::ServerMetadataRequest>,
    ) -> Result<Response<proto::ServerMetadataResponse>, Status> {
        Ok(Response::new(proto::ServerMetadataResponse {
            name: SERVER.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<proto::ModelMetadataRequest>,
    ) -> Result<Response<proto::ModelMetadataResponse>, Status> {
        let scope = scope(request.extensions())?;
        let call = request.into_inner();
        let done = async { self.0.find(&scope, Target::parse(&call.name, &call.version)?).await };
        let found = done.await.map_err(|e| error::status(&e, false))?;
        let ports = |ports: &[Port]| -> Vec<TensorMetadata> {
            let port = |port: &Port| TensorMetadata {
                name: port.name.clone(),
                datatype: port.kind.name().to_owned(),
                shape: port.dims(),
            };
            ports.iter().map(port).collect()
        };
        Ok(Response::new(match found {
            Found::Model(callee) => proto::ModelMetadataResponse {
                name: callee.model.name.to_string(),
                versions: callee.versions(),
                platform: MODEL_PLATFORM.to_owned(),
                inputs: ports(&callee.model.signature.inputs),
                outputs: ports(&callee.model.signature.outputs),
            },
            Found::Subject(name) => proto::ModelMetadataResponse {
                name: format!("{SUBJECT}{name}"),
                platform: SWARM_PLATFORM.to_owned(),
                ..Default::default()
            },
        }))
    }

    async fn model_infer(
        &self,
        request: Request<proto::ModelInferRequest>,
    ) -> Result<Response<proto::ModelInferResponse>, Status> {
        let scope = scope(request.extensions())?;
        let (metadata, _, call) = request.into_parts();
        let keyed = metadata.contains_key("idempotency-key");
        let answer = infer(&self.0, &scope, metadata, call).await;
        let (answer, bytes) = answer.map_err(|e| error::status(&e, keyed))?;
        let mut response = Response::new(answer);
        response.extensions_mut().insert(Held::new(&self.0.core, &scope, bytes));
        Ok(response)
    }

    type ModelStreamInferStream = BoxStream<'static, Result<proto::ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<proto::ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let scope = scope(request.extensions())?;
        let (mut metadata, _, calls) = request.into_parts();
        // Of the stream, not of a call in it.
        metadata.remove("grpc-timeout");
        let held = Held::frames(&self.0.core, &scope);
        let oip = Arc::clone(&self.0);
        // One call after the other, and the next is read once its answer was taken: so a stream holds one call and one answer.
        let answers = futures::stream::unfold(Some((oip, scope, metadata, calls)), |state| async move {
            let (oip, scope, metadata, mut calls) = state?;
            let call = tokio::select! {
                biased;
                () = oip.core.stopping().cancelled() => {
                    let stopping = crate::core::outcome::stopping(skep_model::error::Certainty::NotDone);
                    return Some((Err(error::status(&stopping, false)), None));
                }
                call = calls.message() => call,
            };
            let call = match call {
                Ok(Some(call)) => call,
                Ok(None) => return None,
                Err(broken) => return Some((Err(broken), None)),
            };
            let id = call.id.clone();
            let answer = match infer(&oip, &scope, metadata.clone(), call).await {
                Ok((answer, _)) => proto::ModelStreamInferResponse {
                    error_message: String::new(),
                    infer_response: Some(answer),
                },
                // The stream goes on: the id says which of its calls it is.
                Err(e) => proto::ModelStreamInferResponse {
                    error_message: e.message,
                    infer_response: Some(proto::ModelInferResponse {
                        id,
                        ..Default::default()
                    }),
                },
            };
            Some((Ok(answer), Some((oip, scope, metadata, calls))))
        });
        let mut response = Response::new(answers.boxed());
        response.extensions_mut().insert(held);
        Ok(response)
    }

    async fn repository_index(
        &self,
        request: Request<proto::RepositoryIndexRequest>,
    ) -> Result<Response<proto::RepositoryIndexResponse>, Status> {
        let scope = scope(request.extensions())?;
        let entries = self.0.index(&scope, request.get_ref().ready).await;
        let entries = entries.map_err(|e| error::status(&e, false))?;
        let models = entries.into_iter().map(|entry| ModelIndex {
            name: entry.name,
            version: entry.version,
            state: if entry.closed.is_none() { "READY" } else { "UNAVAILABLE" }.to_owned(),
            reason: entry.closed.unwrap_or_default().to_owned(),
        });
        Ok(Response::new(proto::RepositoryIndexResponse {
            models: models.collect(),
        }))
    }
}

/// One call, and the bytes of its answer.
async fn infer(
    oip: &Oip,
    scope: &Scope,
    metadata: MetadataMap,
    call: proto::ModelInferRequest,
) -> Result<(proto::ModelInferResponse, usize), CallError> {
    let target = Target::parse(&call.model_name, &call.model_version)?;
    let said = said(metadata)?;
    let found = oip.find(scope, target).await?;
    let raw = !call.raw_input_contents.is_empty();
    let mut request = read(call).map_err(of_oip)?;
    match found {
        Found::Model(callee) => {
            let mut visit = oip.visit(&callee, bytes_of(&request.inputs), &said)?;
            let response = oip.predict(scope, &callee, &mut visit, &said, &mut request).await;
            let written = response.and_then(|response| write(response, raw).map_err(of_oip));
            oip.core.leave(visit, written, |(_, bytes)| *bytes)
        }
        Found::Subject(subject) => {
            // What came raw goes raw. What came typed goes as JSON where it has words for it.
            let body = if raw {
                request.write(|_| true)
            } else {
                request.write(|_| false).or_else(|_| request.write(|_| true))
            };
            let body = body.map_err(of_oip)?;
            let (response, _) = oip.ask(scope, subject, said, &request, body).await?;
            write(response, raw).map_err(|e| super::done(of_oip(e)))
        }
    }
}

/// What the metadata say of a call: the same words as the headers of HTTP, and gRPC's own deadline.
fn said(metadata: MetadataMap) -> Result<Said, CallError> {
    let grpc_timeout = grpc_timeout_ms(&metadata);
    let mut said = Said::read(&metadata.into_headers(), Options::default())?;
    said.timeout_ms = sooner(said.timeout_ms, grpc_timeout);
    Ok(said)
}

fn read(call: proto::ModelInferRequest) -> Result<oip::Request, OipError> {
    let parameters = parameters("the request", call.parameters)?;
    oip::refuse_call_extensions(&parameters)?;
    if call.inputs.len().max(call.outputs.len()) > CALL_TENSORS_MAX {
        return Err(OipError::Invalid(format!(
            "the request has {} inputs and asks for {} outputs: {CALL_TENSORS_MAX} of each are allowed",
            call.inputs.len(),
            call.outputs.len()
        )));
    }
    let raw = call.raw_input_contents;
    if !raw.is_empty() && raw.len() != call.inputs.len() {
        return Err(OipError::Invalid(format!(
            "{} inputs and {} raw_input_contents: expected one for each input, or none",
            call.inputs.len(),
            raw.len()
        )));
    }
    let mut raw = raw.into_iter();
    let mut inputs = Tensors::with_capacity(call.inputs.len());
    let mut names = std::collections::HashSet::with_capacity(call.inputs.len());
    for input in call.inputs {
        let (name, tensor) = read_input(input, raw.next())?;
        if !names.insert(name.clone()) {
            return Err(OipError::Invalid(format!("input {name:?} is given twice")));
        }
        inputs.push((name, tensor));
    }
    let mut outputs: Vec<Wanted> = Vec::with_capacity(call.outputs.len());
    for output in call.outputs {
        let name = oip::checked_name("output", output.name)?;
        let what = format!("output {name:?}");
        oip::refuse_tensor_extensions(&what, &self::parameters(&what, output.parameters)?)?;
        if outputs.iter().any(|other| other.name == name) {
            return Err(OipError::Invalid(format!("output {name:?} is asked for twice")));
        }
        outputs.push(Wanted { name, binary: None });
    }
    Ok(oip::Request {
        id: call.id,
        parameters,
        inputs,
        outputs,
        binary_all: false,
    })
}

fn read_input(input: InferInputTensor, raw: Option<Bytes>) -> Result<(String, Tensor), OipError> {
    let name = oip::checked_name("input", input.name)?;
    let what = format!("input {name:?}");
    let bad = |why: &dyn std::fmt::Display| OipError::Invalid(format!("{what}: {why}"));
    oip::refuse_tensor_extensions(&what, &parameters(&what, input.parameters)?)?;
    let kind: TensorType = input.datatype.parse().map_err(|e| bad(&e))?;
    let shape: Result<Vec<u64>, _> = input.shape.iter().map(|dim| u64::try_from(*dim)).collect();
    let shape = shape.map_err(|_| bad(&format!("a negative dimension in its shape {:?}", input.shape)))?;
    let tensor = match (raw, input.contents) {
        (Some(_), Some(contents)) if contents != proto::InferTensorContents::default() => {
            return Err(bad(
                &"it has both contents and raw_input_contents: expected one of them",
            ));
        }
        (Some(raw), _) => Tensor::new(kind, shape, raw).map_err(|e| bad(&e))?,
        (None, contents) => contents::read(&name, kind, shape, contents.unwrap_or_default())?,
    };
    Ok((name, tensor))
}

fn parameters(what: &str, parameters: HashMap<String, proto::InferParameter>) -> Result<Parameters, OipError> {
    if parameters.len() > CALL_PARAMETERS_MAX {
        return Err(OipError::Invalid(format!(
            "{what} has {} parameters: {CALL_PARAMETERS_MAX} are allowed",
            parameters.len()
        )));
    }
    let read = parameters.into_iter().filter_map(|(name, parameter)| {
        let value = match parameter.parameter_choice? {
            ParameterChoice::BoolParam(value) => Parameter::Bool(value),
            ParameterChoice::Int64Param(value) => Parameter::Int(value),
            ParameterChoice::Uint64Param(value) => {
                i64::try_from(value).map_or(Parameter::Unsigned(value), Parameter::Int)
            }
            ParameterChoice::DoubleParam(value) => Parameter::Float(value),
            ParameterChoice::StringParam(value) => Parameter::Text(value),
        };
        Some((name, value))
    });
    Ok(read.collect())
}

/// `raw`: as the call was. Types without typed contents make all of the answer raw, for the protocol has one or the other.
fn write(response: oip::Response, raw: bool) -> Result<(proto::ModelInferResponse, usize), OipError> {
    let bytes = bytes_of(&response.outputs);
    // Names and shapes are small beside what is left.
    if bytes > CALL_BYTES_MAX - (512 << 10) {
        return Err(OipError::TooLarge(format!(
            "{bytes} bytes of tensors in one answer, at most {CALL_BYTES_MAX} are allowed: ask for fewer rows or outputs at once"
        )));
    }
    let typed: Option<Vec<_>> = match raw {
        true => None,
        false => response
            .outputs
            .iter()
            .map(|(_, tensor)| contents::write(tensor))
            .collect(),
    };
    let mut typed = typed.map(Vec::into_iter);
    let parameters = response.parameters.into_iter().map(|(name, value)| {
        let choice = match value {
            Parameter::Bool(value) => ParameterChoice::BoolParam(value),
            Parameter::Int(value) => ParameterChoice::Int64Param(value),
            Parameter::Unsigned(value) => ParameterChoice::Uint64Param(value),
            Parameter::Float(value) => ParameterChoice::DoubleParam(value),
            Parameter::Text(value) => ParameterChoice::StringParam(value),
        };
        let parameter_choice = Some(choice);
        (name, proto::InferParameter { parameter_choice })
    });
    let mut answer = proto::ModelInferResponse {
        model_name: response.model,
        model_version: response.version,
        id: response.id,
        parameters: parameters.collect(),
        ..Default::default()
    };
    for (name, tensor) in response.outputs {
        answer.outputs.push(InferOutputTensor {
            name,
            datatype: tensor.kind().name().to_owned(),
            // A tensor's dimensions are bounded by its bytes.
            shape: tensor
                .shape()
                .iter()
                .map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX))
                .collect(),
            parameters: HashMap::new(),
            contents: typed.as_mut().and_then(Iterator::next),
        });
        if typed.is_none() {
            answer.raw_output_contents.push(tensor.into_bytes());
        }
    }
    Ok((answer, bytes))
}
