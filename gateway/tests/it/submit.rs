//! Submits, single and streamed.

use skep_client::{Gateway, Kind, Message, Outcome};
use skep_gateway::Settings;
use skep_proto::v1;
use skep_proto::v1::gateway_client::GatewayClient;

use crate::fixture::node;

#[tokio::test]
async fn a_submit_is_durable_once() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    let done = gateway
        .submit("silent", ["a", "b", "c"])
        .idempotency_key("k")
        .await
        .unwrap();
    assert_eq!((done.accepted, done.duplicate), (3, false));
    let again = gateway
        .submit("silent", ["a", "b", "c"])
        .idempotency_key("k")
        .await
        .unwrap();
    assert_eq!((again.accepted, again.duplicate), (0, true));
    let other = gateway.submit("silent", ["a"]).idempotency_key("k").await.unwrap_err();
    assert_eq!(other.reason, "key-reused");
    assert_eq!(node.unread("silent").await, 3);
    let none = gateway.submit("silent", Vec::<Message>::new()).await.unwrap_err();
    assert_eq!(none.kind, Kind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_submits_at_once_all_arrive() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    let all = (0..500).map(|i| gateway.submit("silent", [i.to_string()]).into_future());
    for done in futures::future::join_all(all).await {
        assert_eq!(done.unwrap().accepted, 1);
    }
    assert_eq!(node.unread("silent").await, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_acknowledged_to_the_last() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    let mut stream = gateway.submit_stream("silent");
    for i in 0..25_000_u64 {
        assert_eq!(stream.send(i.to_string()).await.unwrap(), i + 1);
    }
    assert_eq!(stream.finish().await.unwrap().durable, 25_000);
    assert_eq!(node.unread("silent").await, 25_000);
}

#[tokio::test]
async fn a_session_recognises_repeats_and_refuses_gaps() {
    let node = node(Settings::default()).await;
    let mut client = GatewayClient::connect(node.url.clone()).await.unwrap();
    let frame = |first, count: u64| v1::SubmitFrame {
        subject: "silent".into(),
        session: vec![7; 16].into(),
        first,
        messages: (0..count)
            .map(|i| v1::OutMessage {
                payload: (first + i).to_string().into(),
                ..Default::default()
            })
            .collect(),
        traceparent: None,
    };
    let mut send = async |frames: Vec<v1::SubmitFrame>| {
        let mut acks = client
            .submit_stream(tokio_stream::iter(frames))
            .await
            .unwrap()
            .into_inner();
        let mut last = v1::SubmitAck::default();
        while let Some(ack) = acks.message().await.unwrap() {
            last = ack;
        }
        last
    };
    assert_eq!(send(vec![frame(1, 3), frame(4, 2)]).await.durable, 5);
    assert_eq!(node.unread("silent").await, 5);
    // The connection broke, the client knows of 3: it repeats from 4.
    assert_eq!(send(vec![frame(4, 2), frame(6, 1)]).await.durable, 6);
    assert_eq!(node.unread("silent").await, 6);
    let gap = send(vec![frame(9, 1), frame(10, 1)]).await;
    let failure = gap.failure.unwrap();
    assert_eq!(
        (failure.reason.as_str(), failure.outcome()),
        ("session-gap", v1::Outcome::NotDone)
    );
    let zero = send(vec![frame(0, 1)]).await.failure.unwrap();
    assert_eq!(zero.reason, "bad-sequence");
    let mut bad = frame(7, 1);
    bad.session = vec![1; 3].into();
    assert!(send(vec![bad]).await.failure.unwrap().message.contains("16 bytes"));
    let mut nowhere = frame(1, 1);
    nowhere.subject = "nothing".into();
    assert_eq!(send(vec![nowhere]).await.failure.unwrap().reason, "unknown-subject");
    assert_eq!(node.unread("silent").await, 6);
    crate::fixture::quiet(&node).await;
}

#[tokio::test]
async fn a_full_inbox_is_said_and_nothing_is_lost() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    for _ in 0..8 {
        gateway.submit("tiny", ["x"]).await.unwrap();
    }
    let full = gateway
        .submit("tiny", ["x"])
        .timeout(std::time::Duration::from_millis(200))
        .await
        .unwrap_err();
    assert_eq!((full.kind, full.outcome), (Kind::Overloaded, Outcome::NotDone));
    assert!(full.retry_after.is_some());
    assert_eq!(node.unread("tiny").await, 8);
}

#[tokio::test]
async fn a_stream_that_fills_the_node_by_itself_is_slowed_down_only() {
    let node = node(Settings {
        in_flight: 2,
        ..Settings::default()
    })
    .await;
    let mut client = GatewayClient::connect(node.url.clone()).await.unwrap();
    let frames = (0..50).map(|i| v1::SubmitFrame {
        subject: "silent".into(),
        session: vec![9; 16].into(),
        first: i + 1,
        messages: vec![v1::OutMessage::default()],
        traceparent: None,
    });
    let began = std::time::Instant::now();
    let mut acks = client
        .submit_stream(tokio_stream::iter(frames))
        .await
        .unwrap()
        .into_inner();
    let mut last = v1::SubmitAck::default();
    while let Some(ack) = acks.message().await.unwrap() {
        last = ack;
    }
    assert_eq!((last.durable, last.failure), (50, None));
    assert!(
        began.elapsed() < std::time::Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    crate::fixture::quiet(&node).await;
}
