//! Clients that mean no good.

use std::time::{Duration, Instant};

use skep_client::Gateway;
use skep_gateway::Settings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fixture::node;

#[tokio::test]
async fn slow_headers_are_cut_off_and_others_do_not_notice() {
    let node = node(Settings {
        header_timeout_ms: 300,
        ..Settings::default()
    })
    .await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    // Silent; half a preface of HTTP/2; half a head of HTTP/1; the same, slowly.
    for start in ["", "PRI * HT", "POST /v1/echo HTTP/1.1\r\nhost: x\r\nx-a: "] {
        let mut socket = TcpStream::connect(node.address).await.unwrap();
        socket.write_all(start.as_bytes()).await.unwrap();
        let began = Instant::now();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut rest))
            .await
            .unwrap_or_else(|_| panic!("still connected after {start:?}"));
        assert!(began.elapsed() < Duration::from_secs(2), "{start:?}");
        assert_eq!(gateway.request("echo", "x").await.unwrap().text(), "x");
    }
}

#[tokio::test]
async fn connections_are_bounded() {
    let node = node(Settings {
        connections: 2,
        header_timeout_ms: 400,
        ..Settings::default()
    })
    .await;
    let _a = TcpStream::connect(node.address).await.unwrap();
    let _b = TcpStream::connect(node.address).await.unwrap();
    // The third waits until the silent ones are cut off.
    let began = Instant::now();
    let answer = crate::fixture::http(&node, "GET /healthz", &[], b"").await;
    assert_eq!(answer.status, 200);
    assert!(began.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let node = node(Settings::default()).await;
    let mut socket = TcpStream::connect(node.address).await.unwrap();
    let head = format!(
        "GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n",
        "y".repeat(64 << 10)
    );
    let _ = socket.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.contains(" 431 "), "{answer}");
}

#[tokio::test]
async fn what_is_no_call_ends_the_stream_and_nothing_else() {
    let node = node(Settings::default()).await;
    let answer = crate::fixture::http(
        &node,
        "POST /skep.v1.Gateway/Request",
        &[("content-type", "application/grpc")],
        b"\x00\xff\xff\xff\xffgarbage",
    )
    .await;
    assert_eq!(answer.status, 200, "gRPC says it in the trailers");
    let gateway = Gateway::connect(&node.url).await.unwrap();
    assert_eq!(gateway.request("echo", "x").await.unwrap().text(), "x");
}
