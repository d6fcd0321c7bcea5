//! Requests over gRPC.

use std::time::Duration;

use futures::future::join_all;
use skep_client::{Gateway, Kind, Outcome};
use skep_gateway::Settings;
use skep_model::limits::{PAYLOAD_BYTES_MAX, STREAM_WINDOW_MAX};
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;
use tonic_types::StatusExt as _;

use crate::fixture::{http, node, quiet};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unary_stream_and_durable_requests_are_answered() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    assert_eq!(gateway.request("echo", "one").await.unwrap().text(), "one");
    assert_eq!(gateway.request("durable", "two").await.unwrap().text(), "two");
    let requests = gateway.requests();
    let answers = join_all((0..2_000).map(|i| {
        let subject = if i % 4 == 0 { "durable" } else { "echo" };
        let request = requests.request(subject, i.to_string());
        async move { (i, request.await) }
    }))
    .await;
    for (i, answer) in answers {
        assert_eq!(answer.unwrap().text(), i.to_string());
    }
    quiet(&node).await;
}

#[tokio::test]
async fn wrong_calls_are_told_what_is_wrong() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();

    let e = gateway.request("nothing", "x").await.unwrap_err();
    assert_eq!(
        (e.kind, e.outcome, e.reason.as_str()),
        (Kind::NotFound, Outcome::NotDone, "unknown-subject")
    );
    assert!(e.message.contains("echo, judge, keyed"), "{}", e.message);

    let e = gateway
        .request("echo", vec![0; PAYLOAD_BYTES_MAX + 1])
        .await
        .unwrap_err();
    assert_eq!((e.kind, e.reason.as_str()), (Kind::Invalid, "too-large"));
    assert!(
        e.message.contains("262145") && e.message.contains("262144"),
        "{}",
        e.message
    );

    let e = gateway.request("echo", "x").key("k".repeat(2_000)).await.unwrap_err();
    assert!(e.message.contains("2000"), "{}", e.message);

    let e = gateway.request("keyed", r#"{"name":"x"}"#).await.unwrap_err();
    assert_eq!((e.kind, e.reason.as_str()), (Kind::Invalid, "bad-key"));
    assert!(
        e.message.contains("`first`") && e.message.contains("/user"),
        "{}",
        e.message
    );

    let e = gateway
        .request("leaving", "x")
        .timeout(Duration::from_millis(500))
        .await
        .unwrap_err();
    assert_eq!((e.kind, e.outcome), (Kind::Unavailable, Outcome::NotDone));

    let e = gateway
        .request("echo", "x")
        .timeout(Duration::from_secs(7_200))
        .await
        .unwrap_err();
    assert_eq!(e.reason, "bad-timeout");
}

#[tokio::test]
async fn a_deadline_ends_the_call_and_says_whether_it_was_done() {
    let node = node(Settings::default()).await;
    let mut client = GatewayClient::connect(node.url.clone()).await.unwrap();
    let call = |subject: &str, ms| v1::RequestCall {
        subject: subject.into(),
        timeout_ms: ms,
        payload: r#"{"user":"u"}"#.into(),
        ..Default::default()
    };
    let lane = client.request(call("silent", 50)).await.unwrap_err();
    assert_eq!(lane.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(lane.metadata().get("skep-outcome").unwrap(), "not-done");
    // `keyed` keeps state, and what was appended may run yet.
    let durable = client.request(call("keyed", 50)).await.unwrap_err();
    assert_eq!(durable.metadata().get("skep-outcome").unwrap(), "unknown");
    assert!(node.waiters().is_empty());

    let gateway = Gateway::connect(&node.url).await.unwrap();
    let stream = gateway.requests();
    let silent = stream.request("silent", "x").timeout(Duration::from_millis(50));
    let slower = stream.request("silent", "x").timeout(Duration::from_millis(120));
    let (a, b) = futures::future::join(silent.into_future(), slower.into_future()).await;
    assert_eq!(a.unwrap_err().outcome, Outcome::NotDone);
    assert_eq!(b.unwrap_err().kind, Kind::DeadlineExceeded);
    assert!(node.waiters().is_empty());

    let mut expired = tonic::Request::new(call("echo", 0));
    expired.metadata_mut().insert("grpc-timeout", "1n".parse().unwrap());
    let expired = client.request(expired).await.unwrap_err();
    // tonic's client watches the same header and says `Cancelled` when it is the quicker one.
    let code = expired.code();
    assert!(
        matches!(code, tonic::Code::DeadlineExceeded | tonic::Code::Cancelled),
        "{code:?}"
    );
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_its_place() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    for subject in ["silent", "keyed"] {
        let call = gateway.request(subject, r#"{"user":"u"}"#).into_future();
        assert!(tokio::time::timeout(Duration::from_millis(100), call).await.is_err());
        quiet(&node).await;
    }
    let requests = gateway.requests();
    let call = requests.request("silent", "x").into_future();
    assert!(tokio::time::timeout(Duration::from_millis(100), call).await.is_err());
    drop(requests);
    quiet(&node).await;
}

#[tokio::test]
async fn an_idempotency_key_makes_a_call_happen_once() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    let call = || gateway.request("durable", "pay").idempotency_key("k1");
    let both = join_all([call().into_future(), call().into_future(), call().into_future()]).await;
    for answer in both {
        assert_eq!(answer.unwrap().text(), "pay");
    }
    assert_eq!(call().await.unwrap().text(), "pay");
    let e = gateway
        .request("durable", "other")
        .idempotency_key("k1")
        .await
        .unwrap_err();
    assert_eq!((e.kind, e.reason.as_str()), (Kind::Conflict, "key-reused"));

    // Even on a pure Swarm a keyed call takes the durable path: nobody reads it here, so it is found there.
    let e = gateway
        .request("silent", "x")
        .idempotency_key("k2")
        .timeout(Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(e.outcome, Outcome::Unknown);
    assert_eq!(node.unread("silent").await, 1);
}

#[tokio::test]
async fn an_overloaded_node_refuses_with_hints() {
    let node = node(Settings {
        in_flight: 2,
        ..Settings::default()
    })
    .await;
    let mut client = GatewayClient::connect(node.url.clone()).await.unwrap();
    let call = |subject: &str| v1::RequestCall {
        subject: subject.into(),
        timeout_ms: 2_000,
        ..Default::default()
    };
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut client = client.clone();
            let call = call("silent");
            tokio::spawn(async move { client.request(call).await })
        })
        .collect();
    while node.core.admit().in_flight() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = client.request(call("echo")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "100");
    let details = status.get_error_details();
    assert_eq!(
        details.retry_info().unwrap().retry_delay,
        Some(Duration::from_millis(100))
    );
    assert_eq!(details.error_info().unwrap().reason, "in-flight");

    let plain = http(&node, "POST /v1/echo", &[], b"x").await;
    assert_eq!(plain.status, 429, "{}", plain.head);
    assert!(plain.head.contains("retry-after: 1"), "{}", plain.head);
    assert!(plain.body.contains("\"retry_after_ms\":100"), "{}", plain.body);
    let stream = Gateway::connect(&node.url).await.unwrap().requests();
    let refused = stream
        .request("echo", "x")
        .timeout(Duration::from_millis(60))
        .await
        .unwrap_err();
    assert_eq!((refused.kind, refused.outcome), (Kind::Overloaded, Outcome::NotDone));
    assert_eq!(refused.retry_after, Some(Duration::from_millis(100)));
    // Once there is room again, all doors are open, and a client that obeys the hint gets through.
    for task in held {
        task.abort();
    }
    quiet(&node).await;
    assert!(client.request(call("echo")).await.is_ok());
    assert_eq!(http(&node, "POST /v1/echo", &[], b"x").await.status, 200);
    assert_eq!(stream.request("echo", "x").await.unwrap().text(), "x");
    quiet(&node).await;
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let node = node(Settings::default()).await;
    let channel = tonic::transport::Endpoint::from_shared(node.url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let status = health
        .check(tonic_health::pb::HealthCheckRequest {
            service: "skep.v1.Gateway".into(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        status.status(),
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );

    use tonic_reflection::pb::v1 as pb;
    let mut reflection = pb::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let ask = pb::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(pb::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::iter([ask]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(pb::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer.message_response
    else {
        panic!("no list");
    };
    let names: Vec<_> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"skep.v1.Gateway"), "{names:?}");
}

#[tokio::test]
async fn a_stopping_node_answers_what_is_under_way_and_ends() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    let requests = gateway.requests();
    assert_eq!(requests.request("echo", "x").await.unwrap().text(), "x");
    node.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), node.served).await;
    assert!(ended.unwrap().unwrap().is_ok());
    assert!(!node.core.is_ready());
}

#[tokio::test]
async fn a_trace_comes_back_and_one_that_is_not_sampled_stays_so() {
    let node = node(Settings {
        sample_ratio: 0.0,
        ..Settings::default()
    })
    .await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let answer = gateway
        .request("echo", "x")
        .traceparent(format!("00-{trace}-00f067aa0ba902b7-01"))
        .await
        .unwrap();
    assert_eq!(answer.trace_id.as_deref(), Some(trace));
    assert_eq!(gateway.request("echo", "x").await.unwrap().trace_id, None);
}

#[tokio::test]
async fn a_bees_refusal_is_not_a_failure() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    let stream = gateway.requests();
    for (word, kind, dead_letter) in [("reject", Kind::Rejected, None), ("fail", Kind::Failed, Some(7))] {
        for request in [gateway.request("judge", word), stream.request("judge", word)] {
            let e = request.await.unwrap_err();
            assert_eq!((e.kind, e.outcome), (kind, Outcome::Done), "{e}");
            assert_eq!((e.reason.as_str(), e.dead_letter), (word, dead_letter));
        }
    }
    let mut client = GatewayClient::connect(node.url.clone()).await.unwrap();
    let mut call = async |word: &'static str| {
        let call = v1::RequestCall {
            subject: "judge".into(),
            payload: word.into(),
            ..Default::default()
        };
        client.request(call).await.unwrap_err()
    };
    for (word, code) in [
        ("reject", tonic::Code::InvalidArgument),
        ("fail", tonic::Code::FailedPrecondition),
    ] {
        let status = call(word).await;
        assert_eq!(status.code(), code);
        assert_eq!(status.metadata().get("skep-outcome").unwrap(), "done");
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
    }
    let rejected = http(&node, "POST /v1/judge", &[], b"reject").await;
    assert_eq!(rejected.status, 422, "{}", rejected.body);
    for says in [r#""outcome":"done""#, r#""reason":"reject""#, "rejected the message"] {
        assert!(rejected.body.contains(says), "{}", rejected.body);
    }
    let failed = http(&node, "POST /v1/judge", &[], b"fail").await;
    assert_eq!(failed.status, 500, "{}", failed.body);
    assert!(failed.body.contains(r#""dead_letter":7"#), "{}", failed.body);
}

#[tokio::test]
async fn however_much_a_bee_says_its_failure_arrives() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    // Three bytes a letter, and nine as gRPC writes it.
    let long = format!("fail{}", "€".repeat(60_000));
    let e = gateway.request("judge", long.clone()).await.unwrap_err();
    assert_eq!(
        (e.kind, e.outcome, e.dead_letter),
        (Kind::Failed, Outcome::Done, Some(7)),
        "{e}"
    );
    assert!(
        e.message.starts_with("stage `first` failed (fail): fail€€") && e.message.contains('…'),
        "{e}"
    );
    assert_eq!(http(&node, "POST /v1/judge", &[], long.as_bytes()).await.status, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_beyond_its_window_is_slowed_down_and_answered_to_the_last() {
    let node = node(Settings {
        in_flight: 10_000,
        ..Settings::default()
    })
    .await;
    let mut client = GatewayClient::connect(node.url.clone()).await.unwrap();
    // A lane holds as many as the window: only what is durable can go beyond.
    let calls = (0..6_000_u64).map(|id| v1::RequestCall {
        id,
        subject: "keyed".into(),
        payload: r#"{"user":"u"}"#.into(),
        timeout_ms: 1_500,
        ..Default::default()
    });
    let mut answers = client.requests(tokio_stream::iter(calls)).await.unwrap().into_inner();
    let mut most = 0;
    let mut answered = std::collections::HashSet::new();
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(Duration::from_millis(1)) => most = most.max(node.waiters().len()),
            answer = answers.message() => {
                let Some(answer) = answer.unwrap() else { break };
                let Some(v1::reply::Result::Failure(failure)) = answer.result else { panic!("nobody answers this") };
                assert_eq!(failure.outcome(), v1::Outcome::Unknown, "{failure:?}");
                assert!(answered.insert(answer.id), "answered twice");
            }
        }
        most = most.max(node.waiters().len());
        assert!(most <= STREAM_WINDOW_MAX, "{most} calls under way");
    }
    assert_eq!((answered.len(), most), (6_000, STREAM_WINDOW_MAX));
    quiet(&node).await;
}
