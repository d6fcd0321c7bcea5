//! One trace from the Gateway through every stage, received over OTLP by a collector of ten lines.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

use crate::node::{Start, apply, hello_world, push, root};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        call: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = call
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|r| r.scope_spans)
            .flat_map(|s| s.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sampled_call_is_one_trace_over_gateway_and_stages() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    let dir = tempfile::tempdir().unwrap();
    let node = Start::new(dir.path())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .start();
    let mut keeper = node.keeper().await;
    push(&mut keeper, "hello", "latest", hello_world()).await.unwrap();
    let manifest = std::fs::read_to_string(root().join("samples/hello-world/swarm.yaml")).unwrap();
    apply(&mut keeper, &manifest).await.unwrap();
    let gateway = skep_client::Gateway::connect(&node.url).await.unwrap();
    let ask = |sampled: &str| {
        gateway.request("hello-world", r#"{"name":"Bee"}"#).traceparent(format!(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{sampled}"
        ))
    };
    ask("00").await.unwrap();
    let answer = ask("01").await.unwrap();
    assert_eq!(answer.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    drop((gateway, keeper));
    // A stop sends what is queued.
    assert!(node.stop().success());

    let spans = collector.0.lock().unwrap().clone();
    let named = |name: &str| {
        let found: Vec<&Span> = spans.iter().filter(|s| s.name == name).collect();
        assert_eq!(
            found.len(),
            1,
            "`{name}` among {:?}",
            spans.iter().map(|s| &s.name).collect::<Vec<_>>()
        );
        found[0]
    };
    let (door, hello, goodbye) = (
        named("gateway request"),
        named("process hello"),
        named("process goodbye"),
    );
    for span in [door, hello, goodbye] {
        assert_eq!(
            span.trace_id,
            0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()
        );
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    assert_eq!(
        door.parent_span_id,
        0x00f0_67aa_0ba9_02b7_u64.to_be_bytes(),
        "the caller's span"
    );
    assert_eq!(hello.parent_span_id, door.span_id);
    assert_eq!(goodbye.parent_span_id, hello.span_id);
    assert!(hello.attributes.iter().any(|a| a.key == "skep.stage"));
    serving.abort();
}
