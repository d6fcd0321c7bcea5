//! Over gRPC.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use prost::Message;
use skep_gateway::Settings;
use skep_model::limits::CALL_BYTES_MAX;
use skep_model::tensor::TensorType;
use skep_proto::inference as proto;
use skep_proto::inference::infer_parameter::ParameterChoice;
use skep_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use skep_proto::inference::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};
use tokio::io::AsyncWriteExt as _;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::models;
use crate::fixture::{Node, close, quiet};
use crate::frames;
use crate::models::digest;

async fn channel(node: &Node) -> Channel {
    Endpoint::from_shared(node.url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap()
}

fn path(method: &str) -> PathAndQuery {
    format!("/inference.GRPCInferenceService/{method}").parse().unwrap()
}

async fn unary<Q, A>(channel: &Channel, method: &str, request: Request<Q>) -> Result<A, Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    grpc.unary(request, path(method), codec)
        .await
        .map(tonic::Response::into_inner)
}

async fn infer(channel: &Channel, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
    unary(channel, "ModelInfer", Request::new(request)).await
}

fn input(name: &str, kind: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: kind.into(),
        shape: shape.to_vec(),
        ..Default::default()
    }
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn double(values: &[f32]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "double".into(),
        id: "7".into(),
        inputs: vec![input("x", "FP32", &[values.len() as i64 / 2, 2])],
        raw_input_contents: vec![f32s(values).into()],
        ..Default::default()
    }
}

fn outputs(names: &[&str]) -> Vec<InferRequestedOutputTensor> {
    let output = |name: &&str| InferRequestedOutputTensor {
        name: (*name).into(),
        ..Default::default()
    };
    names.iter().map(output).collect()
}

fn parameter(name: &str, value: ParameterChoice) -> HashMap<String, InferParameter> {
    let parameter_choice = Some(value);
    HashMap::from([(name.to_owned(), InferParameter { parameter_choice })])
}

#[tokio::test]
async fn the_server_and_its_models_say_what_they_are() {
    let (node, _) = models(Settings::default()).await;
    let channel = channel(&node).await;
    let live: proto::ServerLiveResponse = unary(&channel, "ServerLive", Request::new(proto::ServerLiveRequest {}))
        .await
        .unwrap();
    let ready: proto::ServerReadyResponse = unary(&channel, "ServerReady", Request::new(proto::ServerReadyRequest {}))
        .await
        .unwrap();
    assert!(live.live && ready.ready);
    let server: proto::ServerMetadataResponse = unary(
        &channel,
        "ServerMetadata",
        Request::new(proto::ServerMetadataRequest {}),
    )
    .await
    .unwrap();
    assert_eq!(
        (server.name.as_str(), server.extensions),
        ("skep", vec![String::from("binary_tensor_data")])
    );
    let metadata = |name: &str, version: &str| {
        let (name, version) = (name.to_owned(), version.to_owned());
        unary::<_, proto::ModelMetadataResponse>(
            &channel,
            "ModelMetadata",
            Request::new(proto::ModelMetadataRequest { name, version }),
        )
    };
    let double = metadata("double", "v1").await.unwrap();
    assert_eq!(double.versions, ["latest", "v1", &digest("double")]);
    assert_eq!(
        (double.inputs[0].datatype.as_str(), &double.inputs[0].shape[..]),
        ("FP32", &[-1, 2][..])
    );
    assert_eq!(double.outputs.len(), 2);
    assert_eq!(metadata("subject.echo", "").await.unwrap().platform, "skep-swarm");
    assert_eq!(metadata("nothing", "").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        metadata("double", "No").await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let ready = |name: &str| {
        let name = name.to_owned();
        let asked = proto::ModelReadyRequest {
            name,
            version: String::new(),
        };
        unary::<_, proto::ModelReadyResponse>(&channel, "ModelReady", Request::new(asked))
    };
    for (name, wanted) in [
        ("double", true),
        ("subject.echo", true),
        ("subject.paused", false),
        ("unloadable", false),
        ("nothing", false),
        ("N N", false),
    ] {
        assert_eq!(ready(name).await.unwrap().ready, wanted, "{name}");
    }
    let index = |ready| {
        let asked = proto::RepositoryIndexRequest {
            repository_name: String::new(),
            ready,
        };
        unary::<_, proto::RepositoryIndexResponse>(&channel, "RepositoryIndex", Request::new(asked))
    };
    let (all, some) = (index(false).await.unwrap().models, index(true).await.unwrap().models);
    assert!(
        all.iter()
            .any(|entry| entry.name == "double" && entry.state == "READY" && entry.version == "latest")
    );
    assert!(
        all.iter()
            .any(|entry| entry.name == "subject.leaving" && entry.state == "UNAVAILABLE" && !entry.reason.is_empty())
    );
    assert!(some.len() < all.len() && some.iter().all(|entry| entry.state == "READY"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_called_raw_and_typed() {
    let (node, _) = models(Settings::default()).await;
    let channel = channel(&node).await;
    let answer = infer(&channel, double(&[1.0, 2.0, 3.0, f32::INFINITY])).await.unwrap();
    assert_eq!((answer.model_name.as_str(), answer.id.as_str()), ("double", "7"));
    assert_eq!(answer.model_version, digest("double"));
    assert_eq!(answer.outputs[0].shape, [2, 2]);
    assert_eq!(answer.raw_output_contents[0], f32s(&[2.0, 4.0, 6.0, f32::INFINITY]));
    let answer = infer(
        &channel,
        ModelInferRequest {
            outputs: outputs(&["sum"]),
            model_version: "v1".into(),
            raw_input_contents: Vec::new(),
            inputs: vec![InferInputTensor {
                contents: Some(InferTensorContents {
                    fp32_contents: vec![1.0, 2.0],
                    ..Default::default()
                }),
                ..input("x", "FP32", &[1, 2])
            }],
            ..double(&[1.0, 2.0])
        },
    )
    .await
    .unwrap();
    assert!(answer.raw_output_contents.is_empty() && answer.outputs.len() == 1);
    assert_eq!(answer.outputs[0].contents.as_ref().unwrap().int64_contents, [6]);
    // Every type, typed where there is a field for it.
    let contents = |field: &str| {
        let mut contents = InferTensorContents::default();
        match field {
            "BOOL" => contents.bool_contents = vec![true, false],
            "INT8" | "INT16" | "INT32" => contents.int_contents = vec![-3, 5],
            "INT64" => contents.int64_contents = vec![i64::MIN, 5],
            "UINT8" | "UINT16" | "UINT32" => contents.uint_contents = vec![3, 5],
            "UINT64" => contents.uint64_contents = vec![u64::MAX, 5],
            "FP32" => contents.fp32_contents = vec![0.5, f32::INFINITY],
            "FP64" => contents.fp64_contents = vec![0.1, -5.0],
            "BYTES" => contents.bytes_contents = vec![b"\xff\0"[..].into(), b""[..].into()],
            _ => return None,
        }
        Some(contents)
    };
    for kind in TensorType::ALL {
        let name = kind.name();
        let request = ModelInferRequest {
            model_name: format!("echo-{}", name.to_lowercase()),
            inputs: vec![InferInputTensor {
                contents: contents(name),
                ..input("x", name, &[2])
            }],
            ..Default::default()
        };
        if contents(name).is_none() {
            let error = infer(&channel, request.clone()).await.unwrap_err();
            assert!(error.message().contains("raw_input_contents"), "{error:?}");
            let raw = vec![vec![1, 2, 3, 4].into()];
            let answer = infer(
                &channel,
                ModelInferRequest {
                    raw_input_contents: raw.clone(),
                    ..request
                },
            )
            .await
            .unwrap();
            assert_eq!(answer.raw_output_contents, raw);
            continue;
        }
        let answer = infer(&channel, request).await.unwrap();
        assert_eq!(
            (answer.outputs[0].datatype.as_str(), &answer.outputs[0].contents),
            (name, &contents(name))
        );
    }
    // Large, near the bound.
    let rows = 15 << 20;
    let large = ModelInferRequest {
        model_name: "echo-fp32".into(),
        inputs: vec![input("x", "FP32", &[rows])],
        raw_input_contents: vec![vec![7; 4 * rows as usize].into()],
        ..Default::default()
    };
    let answer = infer(&channel, large).await.unwrap();
    assert_eq!(answer.raw_output_contents[0].len(), 4 * rows as usize);
    drop(answer);
    quiet(&node).await;
    assert_eq!(node.core.admit().bytes(), 0);
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let (node, fake) = models(Settings::default()).await;
    let channel = channel(&node).await;
    let good = || double(&[1.0, 2.0]);
    let named = |name: &str| ModelInferRequest {
        model_name: name.into(),
        inputs: vec![input("x", "FP32", &[1])],
        raw_input_contents: vec![f32s(&[1.0]).into()],
        ..Default::default()
    };
    let with = |input: InferInputTensor, raw: &[u8]| ModelInferRequest {
        inputs: vec![input],
        raw_input_contents: vec![raw.to_vec().into()],
        ..good()
    };
    let typed = |kind: &str, contents: InferTensorContents| ModelInferRequest {
        model_name: format!("echo-{}", kind.to_lowercase()),
        inputs: vec![InferInputTensor {
            contents: Some(contents),
            ..input("x", kind, &[1])
        }],
        ..Default::default()
    };
    let ints = |value| InferTensorContents {
        int_contents: vec![value],
        ..Default::default()
    };
    for (request, code, says) in [
        (named("nothing"), Code::NotFound, "no model `nothing:latest`"),
        (named("secret"), Code::NotFound, "no model `secret:latest`"),
        (named(""), Code::NotFound, "no model ``"),
        (named(&"x".repeat(10_000)), Code::NotFound, "no model `xxx"),
        (named("subject.nothing"), Code::NotFound, "no subject"),
        (named("broken"), Code::FailedPrecondition, "zero"),
        (named("busy"), Code::ResourceExhausted, "memory"),
        (named("unloadable"), Code::FailedPrecondition, "operator"),
        (
            with(input("x", "FP32", &[1, 2]), &[0; 7]),
            Code::InvalidArgument,
            "has 8 bytes, but 7 were given",
        ),
        (
            with(input("x", "FP32", &[-1, 2]), &[0; 8]),
            Code::InvalidArgument,
            "negative",
        ),
        (
            with(input("x", "FP32", &[i64::MAX, 2]), &[0; 8]),
            Code::InvalidArgument,
            "more than 67108864 bytes",
        ),
        (
            with(input("x", "FLOAT", &[1, 2]), &[0; 8]),
            Code::InvalidArgument,
            "unknown tensor type",
        ),
        (
            with(input("z", "FP32", &[1, 2]), &[0; 8]),
            Code::InvalidArgument,
            "there is no input \"z\"",
        ),
        (
            with(input("", "FP32", &[1, 2]), &[0; 8]),
            Code::InvalidArgument,
            "name has 0 bytes",
        ),
        (
            with(input("x", "FP32", &[1; 99]), &[0; 8]),
            Code::InvalidArgument,
            "99 dimensions",
        ),
        (
            ModelInferRequest {
                raw_input_contents: vec![f32s(&[1.0, 2.0]).into(), f32s(&[1.0]).into()],
                ..good()
            },
            Code::InvalidArgument,
            "1 inputs and 2 raw_input_contents",
        ),
        (
            ModelInferRequest {
                inputs: vec![input("x", "FP32", &[1, 2]); 2],
                raw_input_contents: vec![f32s(&[1.0, 2.0]).into(); 2],
                ..good()
            },
            Code::InvalidArgument,
            "twice",
        ),
        (
            with(
                InferInputTensor {
                    contents: Some(ints(1)),
                    ..input("x", "FP32", &[1, 2])
                },
                &[0; 8],
            ),
            Code::InvalidArgument,
            "both contents and raw",
        ),
        (
            typed("FP32", ints(1)),
            Code::InvalidArgument,
            "expected them in fp32_contents",
        ),
        (typed("INT8", ints(300)), Code::InvalidArgument, "300 is no INT8"),
        (
            typed("INT32", InferTensorContents::default()),
            Code::InvalidArgument,
            "but 0 were given",
        ),
        (
            ModelInferRequest {
                outputs: outputs(&["y", "z"]),
                ..good()
            },
            Code::InvalidArgument,
            "there is no output \"z\"",
        ),
        (
            ModelInferRequest {
                outputs: outputs(&["y", "y"]),
                ..good()
            },
            Code::InvalidArgument,
            "twice",
        ),
        (
            ModelInferRequest {
                parameters: parameter("sequence_id", ParameterChoice::Int64Param(3)),
                ..good()
            },
            Code::Unimplemented,
            "sequence_id",
        ),
        (
            with(
                InferInputTensor {
                    parameters: parameter("shared_memory_region", ParameterChoice::StringParam("r".into())),
                    ..input("x", "FP32", &[1, 2])
                },
                &[],
            ),
            Code::Unimplemented,
            "shared memory",
        ),
        (
            ModelInferRequest {
                parameters: (0..65)
                    .map(|at| (format!("p{at}"), InferParameter::default()))
                    .collect(),
                ..good()
            },
            Code::InvalidArgument,
            "65 parameters",
        ),
        (
            ModelInferRequest {
                inputs: vec![InferInputTensor::default(); 5_000],
                ..good()
            },
            Code::InvalidArgument,
            "more than the 4096 fields",
        ),
        (
            ModelInferRequest {
                id: "x".repeat(5 << 20),
                ..good()
            },
            Code::InvalidArgument,
            "beside raw_input_contents",
        ),
    ] {
        let error = infer(&channel, request).await.expect_err(says);
        assert_eq!(error.code(), code, "{says}: {error:?}");
        assert!(error.message().contains(says), "{says}: {}", error.message());
    }
    let too_large = ModelInferRequest {
        raw_input_contents: vec![vec![0; CALL_BYTES_MAX].into()],
        ..good()
    };
    assert_eq!(infer(&channel, too_large).await.unwrap_err().code(), Code::OutOfRange);
    // What is not served says so, and why.
    for (method, says) in [
        ("SystemSharedMemoryStatus", "shared memory"),
        ("CudaSharedMemoryRegister", "shared memory"),
        ("ModelConfig", "configuration"),
        ("ModelStatistics", "statistics"),
        ("RepositoryModelLoad", "loaded"),
        ("TraceSetting", "traces"),
        ("LogSettings", "logs"),
        ("Nothing", "no method"),
    ] {
        let error = unary::<_, proto::ServerLiveResponse>(&channel, method, Request::new(proto::ServerLiveRequest {}))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{method}");
        assert!(error.message().contains(says), "{method}: {}", error.message());
    }
    // Deadlines, by metadata and by parameter.
    let mut request = Request::new(named("slow"));
    request.set_timeout(Duration::from_millis(60));
    let error = unary::<_, ModelInferResponse>(&channel, "ModelInfer", request)
        .await
        .unwrap_err();
    assert!(
        matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{error:?}"
    );
    let slow = ModelInferRequest {
        parameters: parameter("timeout", ParameterChoice::Uint64Param(50_000)),
        ..named("slow")
    };
    assert_eq!(infer(&channel, slow).await.unwrap_err().code(), Code::DeadlineExceeded);
    quiet(&node).await;
    assert_eq!((fake.running.load(Ordering::SeqCst), node.core.admit().bytes()), (0, 0));
}

#[tokio::test]
async fn a_swarm_is_called_by_its_subject() {
    let (node, _) = models(Settings::default()).await;
    let channel = channel(&node).await;
    let ask = |raw: bool| ModelInferRequest {
        model_name: "subject.echo".into(),
        id: "5".into(),
        parameters: parameter("p", ParameterChoice::DoubleParam(0.5)),
        inputs: vec![InferInputTensor {
            contents: (!raw).then(|| InferTensorContents {
                int_contents: vec![1, 2],
                ..Default::default()
            }),
            ..input("x", "INT32", &[2])
        }],
        raw_input_contents: if raw {
            vec![vec![1, 0, 0, 0, 2, 0, 0, 0].into()]
        } else {
            Vec::new()
        },
        ..Default::default()
    };
    let answer = infer(&channel, ask(false)).await.unwrap();
    assert_eq!((answer.model_name.as_str(), answer.id.as_str()), ("subject.echo", "5"));
    assert_eq!(answer.outputs[0].name, "response");
    let sent = &answer.outputs[0].contents.as_ref().unwrap().bytes_contents[0];
    assert_eq!(
        std::str::from_utf8(sent).unwrap(),
        r#"{"id":"5","parameters":{"p":0.5},"inputs":[{"name":"x","datatype":"INT32","shape":[2],"data":[1,2]}]}"#
    );
    let answer = infer(&channel, ask(true)).await.unwrap();
    let sent = &answer.raw_output_contents[0];
    assert!(sent.ends_with(&[1, 0, 0, 0, 2, 0, 0, 0]) && sent[4..].starts_with(br#"{"id":"5""#));
    let mut request = Request::new(ask(true));
    request
        .metadata_mut()
        .insert("skep-header-show-headers", "1".parse().unwrap());
    let answer: ModelInferResponse = unary(&channel, "ModelInfer", request).await.unwrap();
    let shown = String::from_utf8_lossy(&answer.raw_output_contents[0]).into_owned();
    assert!(
        shown.contains("inference-header-content-length") && shown.contains("application/octet-stream"),
        "{shown}"
    );
    // NaN has no word in JSON: the message goes in binary.
    let nan = ModelInferRequest {
        model_name: "subject.echo".into(),
        inputs: vec![InferInputTensor {
            contents: Some(InferTensorContents {
                fp32_contents: vec![f32::NAN],
                ..Default::default()
            }),
            ..input("x", "FP32", &[1])
        }],
        ..Default::default()
    };
    assert!(infer(&channel, nan).await.is_ok());
    let large = ModelInferRequest {
        inputs: vec![input("x", "INT8", &[300_000])],
        raw_input_contents: vec![vec![0; 300_000].into()],
        ..ask(true)
    };
    let error = infer(&channel, large).await.unwrap_err();
    assert!(error.message().contains("262144"), "{error:?}");
    let judged = ModelInferRequest {
        model_name: "subject.silent".into(),
        parameters: parameter("timeout", ParameterChoice::Int64Param(30_000)),
        ..ask(true)
    };
    assert_eq!(
        infer(&channel, judged).await.unwrap_err().code(),
        Code::DeadlineExceeded
    );
}

async fn stream(
    channel: &Channel,
    requests: impl futures::Stream<Item = ModelInferRequest> + Send + 'static,
) -> Result<tonic::Streaming<proto::ModelStreamInferResponse>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::default();
    let answers = grpc
        .streaming(Request::new(requests), path("ModelStreamInfer"), codec)
        .await;
    answers.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_answers_in_order_and_goes_on_after_a_failure() {
    let (node, _) = models(Settings::default()).await;
    let channel = channel(&node).await;
    let requests = futures::stream::iter((0..500u32).map(|at| ModelInferRequest {
        id: at.to_string(),
        model_name: if at == 100 { "broken" } else { "double" }.into(),
        inputs: vec![input("x", "FP32", if at == 100 { &[2] } else { &[1, 2] })],
        ..double(&[at as f32, 1.0])
    }));
    let mut answers = stream(&channel, requests).await.unwrap();
    for at in 0..500u32 {
        let answer = answers.next().await.unwrap().unwrap();
        let response = answer.infer_response.unwrap();
        assert_eq!(response.id, at.to_string());
        if at == 100 {
            assert!(answer.error_message.contains("zero"));
        } else {
            assert_eq!(answer.error_message, "");
            assert_eq!(response.raw_output_contents[0], f32s(&[2.0 * at as f32, 2.0]));
        }
    }
    assert!(answers.next().await.is_none());
    quiet(&node).await;
    // It ends when the node stops, and says so.
    let (send, requests) = futures::channel::mpsc::unbounded();
    send.unbounded_send(double(&[1.0, 2.0])).unwrap();
    let mut answers = stream(&channel, requests).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().error_message, "");
    node.stop.cancel();
    let end = tokio::time::timeout(Duration::from_secs(2), answers.next())
        .await
        .expect("it goes on");
    assert_eq!(end.unwrap().unwrap_err().code(), Code::Unavailable);
    drop(send);
}

#[tokio::test]
async fn who_only_announces_a_large_message_takes_its_own_tenants_room() {
    let (node, _) = models(Settings {
        body_timeout_ms: 1_500,
        ..Settings::default()
    })
    .await;
    let [ours, acme] = close(&node, ["default", "acme"]);
    let mut sockets = Vec::new();
    for at in 0..20 {
        let mut socket = frames::connect(node.address, 65_535).await;
        let mut all = frames::head_of(1, "/inference.GRPCInferenceService/ModelInfer", Some(&ours));
        let mut head = vec![0];
        head.extend((60_u32 << 20).to_be_bytes());
        head.extend([0x3a; 3]);
        all.extend(frames::frame(frames::DATA, 0, 1, &head));
        socket.write_all(&all).await.unwrap();
        sockets.push(socket);
        if at == 0 {
            for _ in 0..500 {
                if node.core.admit().bytes() > 60 << 20 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(node.core.admit().bytes() > 60 << 20, "counted before it came");
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let held = node.core.admit().bytes();
    assert!(held <= 256 << 20, "{held}");
    // Another tenant is let in all the while.
    let mut request = Request::new(ModelInferRequest {
        model_name: "secret".into(),
        inputs: vec![input("x", "FP32", &[1])],
        raw_input_contents: vec![f32s(&[1.0]).into()],
        ..Default::default()
    });
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {acme}").parse().unwrap());
    let answer: ModelInferResponse = unary(&channel(&node).await, "ModelInfer", request).await.unwrap();
    assert_eq!(answer.raw_output_contents.len(), 1);
    // They are given up in time, though nobody hangs up.
    for _ in 0..500 {
        if node.core.admit().bytes() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} bytes are still taken", node.core.admit().bytes());
}

#[tokio::test]
async fn nobody_comes_in_without_a_token() {
    let (node, _) = models(Settings::default()).await;
    let [_] = close(&node, ["default"]);
    let channel = channel(&node).await;
    let live: proto::ServerLiveResponse = unary(&channel, "ServerLive", Request::new(proto::ServerLiveRequest {}))
        .await
        .unwrap();
    assert!(live.live);
    assert_eq!(
        infer(&channel, double(&[1.0, 2.0])).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    let error = stream(&channel, futures::stream::iter([double(&[1.0, 2.0])]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
}
