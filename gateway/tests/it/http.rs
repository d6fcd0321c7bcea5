//! HTTP/JSON.

use skep_gateway::Settings;
use skep_model::limits::PAYLOAD_BYTES_MAX;

use crate::fixture::{http, node};

#[tokio::test]
async fn a_request_is_its_body_and_the_answer_too() {
    let node = node(Settings {
        sample_ratio: 1.0,
        ..Settings::default()
    })
    .await;
    let json = http(&node, "POST /v1/echo", &[], br#"{"name":"Bee"}"#).await;
    assert_eq!((json.status, json.body.as_str()), (200, r#"{"name":"Bee"}"#));
    for want in [
        "content-type: application/json",
        "skep-outcome: done",
        "skep-trace-id: ",
        "x-content-type-options: nosniff",
    ] {
        assert!(json.head.contains(want), "{want} in {}", json.head);
    }
    let text = http(&node, "POST /v1/echo", &[], b"true story").await;
    assert!(
        text.head.contains("content-type: application/octet-stream"),
        "{}",
        text.head
    );
    let durable = http(&node, "POST /v1/durable?idempotency-key=a", &[], b"1").await;
    assert_eq!((durable.status, durable.body.as_str()), (200, "1"));
    let reused = http(&node, "POST /v1/durable", &[("idempotency-key", "a")], b"2").await;
    assert_eq!(reused.status, 422, "{}", reused.body);
    let late = http(&node, "POST /v1/silent", &[("skep-timeout-ms", "30")], b"2").await;
    assert_eq!(late.status, 504, "{}", late.body);
    assert!(late.body.contains(r#""outcome":"not-done""#), "{}", late.body);
}

#[tokio::test]
async fn failures_are_problems_with_a_remedy() {
    let node = node(Settings::default()).await;
    let json = ("content-type", "application/json");
    let too_large = vec![b'x'; PAYLOAD_BYTES_MAX + 1];
    for (request, headers, body, status, says) in [
        ("POST /v1/nothing", vec![], &b"x"[..], 404, "durable, echo"),
        ("POST /v1/echo:fly", vec![], b"x", 404, ":submit"),
        ("POST /elsewhere", vec![], b"x", 404, "POST /v1/SUBJECT"),
        ("GET /v1/echo", vec![], b"", 405, "POST only"),
        ("POST /v1/echo", vec![json], b"{", 400, "application/json"),
        ("POST /v1/echo", vec![json], b"\"\xff\"", 400, "utf-8"),
        (
            "POST /v1/echo",
            vec![("skep-timeout-ms", "soon")],
            b"x",
            400,
            "milliseconds",
        ),
        ("POST /v1/echo", vec![("skep-key", "\u{e9}")], b"x", 200, "x"),
        ("POST /v1/echo", vec![], &too_large, 413, "262144"),
        ("POST /v1/keyed", vec![], b"{}", 400, "/user"),
        ("POST /v1/leaving", vec![], b"{}", 503, "deleted"),
        ("POST /v1/paused", vec![], b"{}", 503, "a submit is kept until then"),
        ("POST /v1/draining", vec![], b"{}", 503, "being drained"),
        ("POST /v1/draining:submit", vec![], b"{}", 503, "being drained"),
        ("POST /v1/echo?skep-timeout-ms=x", vec![], b"{}", 400, "query"),
    ] {
        let answer = http(&node, request, &headers, body).await;
        assert_eq!(answer.status, status, "{request}: {}", answer.body);
        assert!(answer.body.contains(says), "{request}: {}", answer.body);
        if status != 200 {
            assert!(
                answer.head.contains("application/problem+json"),
                "{request}: {}",
                answer.head
            );
        }
    }
    let method = http(&node, "GET /v1/echo", &[], b"").await;
    assert!(method.head.contains("allow: POST"), "{}", method.head);
}

#[tokio::test]
async fn submits_are_accepted_one_or_a_line_each() {
    let node = node(Settings::default()).await;
    let one = http(&node, "POST /v1/keyed:submit", &[], br#"{"user":"a"}"#).await;
    assert_eq!(
        (one.status, one.body.as_str()),
        (202, r#"{"accepted":1,"duplicate":false}"#)
    );
    let lines = [("content-type", "application/x-ndjson")];
    let body = b"{\"user\":\"a\"}\n\n{\"user\":\"b\"}\r\n{\"user\":3}";
    let many = http(&node, "POST /v1/keyed:submit", &lines, body).await;
    assert_eq!(
        (many.status, many.body.as_str()),
        (202, r#"{"accepted":3,"duplicate":false}"#)
    );
    assert_eq!(node.unread("keyed").await, 4);
    // Nobody reads there just now, so nobody would answer; what is submitted is kept.
    let kept = http(&node, "POST /v1/paused:submit", &[], b"{}").await;
    assert_eq!((kept.status, node.unread("paused").await), (202, 1), "{}", kept.body);
    let bad = http(&node, "POST /v1/keyed:submit", &lines, b"{\"user\":\"a\"}\n{").await;
    assert_eq!(bad.status, 400);
    assert!(bad.body.contains("line 2"), "{}", bad.body);
    let keyless = http(&node, "POST /v1/keyed:submit", &lines, b"{\"user\":\"a\"}\n{}").await;
    assert!(keyless.body.contains("message 2"), "{}", keyless.body);
    let none = http(&node, "POST /v1/keyed:submit", &lines, b"\n").await;
    assert_eq!(none.status, 400);
    // All or nothing: no line of a refused body was taken.
    assert_eq!(node.unread("keyed").await, 4);
    // A call that starts below the bound is taken whole; the next one is not.
    let most = http(&node, "POST /v1/tiny:submit", &lines, "1\n".repeat(9).as_bytes()).await;
    assert_eq!(most.status, 202, "{}", most.body);
    let full = http(&node, "POST /v1/tiny:submit", &lines, b"1").await;
    assert_eq!(full.status, 429, "{}", full.body);
}

#[tokio::test]
async fn probes() {
    let node = node(Settings::default()).await;
    assert_eq!(http(&node, "GET /healthz", &[], b"").await.status, 200);
    assert_eq!(http(&node, "GET /readyz", &[], b"").await.status, 200);
    node.core.set_ready(false);
    assert_eq!(http(&node, "GET /readyz", &[], b"").await.status, 503);
    assert_eq!(http(&node, "GET /healthz", &[], b"").await.status, 200);
}

#[tokio::test]
async fn a_header_that_is_repeated_is_kept_whole_or_refused() {
    let node = node(Settings::default()).await;
    // A message may have several headers of one name; a call has one key.
    for name in ["skep-key", "idempotency-key", "skep-timeout-ms"] {
        let twice = http(&node, "POST /v1/echo", &[(name, "1"), (name, "2")], b"x").await;
        assert_eq!(twice.status, 400, "{}", twice.body);
        assert!(twice.body.contains("more than once"), "{}", twice.body);
    }
    let key = ("idempotency-key", "k");
    let headers = |b| [key, ("skep-header-a", "1"), ("skep-header-a", b)];
    assert_eq!(http(&node, "POST /v1/durable", &headers("2"), b"x").await.status, 200);
    assert_eq!(http(&node, "POST /v1/durable", &headers("2"), b"x").await.status, 200);
    let other = http(&node, "POST /v1/durable", &headers("3"), b"x").await;
    assert_eq!(
        other.status, 422,
        "the second value is part of the call: {}",
        other.body
    );
}

#[tokio::test]
async fn many_lines_under_a_large_head_are_refused_before_they_are_copied() {
    let node = node(Settings::default()).await;
    let large = "h".repeat(8 << 10);
    let lines = [
        ("content-type", "application/x-ndjson"),
        ("skep-header-a", large.as_str()),
    ];
    let most = http(&node, "POST /v1/silent:submit", &lines, "1\n".repeat(10_000).as_bytes()).await;
    assert_eq!(most.status, 413, "{}", most.body);
    assert!(most.body.contains("split it"), "{}", most.body);
    let many = http(
        &node,
        "POST /v1/silent:submit",
        &lines[..1],
        "1\n".repeat(10_001).as_bytes(),
    )
    .await;
    assert_eq!(many.status, 413, "{}", many.body);
    let few = http(&node, "POST /v1/silent:submit", &lines, "1\n".repeat(200).as_bytes()).await;
    assert_eq!(few.status, 202, "{}", few.body);
    assert_eq!(node.unread("silent").await, 200);
}
