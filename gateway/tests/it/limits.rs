//! Clients that mean no good.

use std::time::{Duration, Instant};

use prost::Message as _;
use skep_client::{Gateway, Login};
use skep_gateway::Settings;
use skep_proto::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fixture::{Node, close, node, quiet};
use crate::frames;

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

/// Floods a connection. True: the node said ENHANCE_YOUR_CALM and ended it within the time.
async fn flooded(node: &Node, burst: impl Fn(u32) -> Vec<u8>) -> bool {
    let (mut read, mut write) = frames::connect(node.address, 65_535).await.into_split();
    let flood = async move {
        for round in 0..200_u32 {
            let all: Vec<u8> = (0..100).flat_map(|i| burst(2 * (100 * round + i) + 1)).collect();
            if write.write_all(&all).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        // Not closed from here: who ends the connection is what is asked.
        std::future::pending::<()>().await;
    };
    let ended = async move {
        let mut calm = false;
        while let Some((kind, _, _, payload)) = frames::next(&mut read).await {
            calm |= kind == frames::GOAWAY && payload[4..8] == 11_u32.to_be_bytes();
        }
        calm
    };
    let both = async {
        tokio::pin!(ended);
        tokio::select! {
            biased;
            calm = &mut ended => calm,
            () = flood => ended.await,
        }
    };
    tokio::time::timeout(Duration::from_secs(5), both)
        .await
        .unwrap_or(false)
}

#[tokio::test]
async fn floods_of_resets_end_their_connection_only() {
    let node = node(Settings::default()).await;
    let gateway = Gateway::connect(&node.url).await.unwrap();
    const CALL: &str = "/skep.v1.Gateway/Request";
    let cancel = 8_u32.to_be_bytes();
    // Rapid reset: streams that are opened and cancelled at once.
    let rapid = flooded(&node, |stream| {
        [
            frames::head(stream, CALL),
            frames::frame(frames::RST_STREAM, 0, stream, &cancel),
        ]
        .concat()
    });
    assert!(rapid.await, "rapid reset goes on");
    assert_eq!(gateway.request("echo", "x").await.unwrap().text(), "x");
    // Made you reset: streams that the node itself must reset, here for a window that overflows.
    let made = flooded(&node, |stream| {
        [
            frames::head(stream, CALL),
            frames::frame(frames::WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes()),
        ]
        .concat()
    });
    assert!(made.await, "made-you-reset goes on");
    assert_eq!(gateway.request("echo", "x").await.unwrap().text(), "x");
    quiet(&node).await;
    assert_eq!(node.core.admit().bytes(), 0);
}

#[tokio::test]
async fn slow_bodies_are_cut_off() {
    let node = node(Settings {
        body_timeout_ms: 300,
        ..Settings::default()
    })
    .await;
    let soon = Duration::from_secs(3);
    // HTTP/1: nothing of the body, and a part of it.
    for part in ["", "half of"] {
        let mut socket = TcpStream::connect(node.address).await.unwrap();
        let head =
            format!("POST /v1/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 20\r\n\r\n{part}");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(soon, socket.read_to_string(&mut answer))
            .await
            .expect("an answer in time")
            .unwrap();
        assert!(answer.contains(" 504 ") && answer.contains("slow-body"), "{answer}");
    }
    // gRPC: a unary call without its message; a message that stops halfway, also on a stream.
    for (path, part) in [
        ("/skep.v1.Gateway/Request", &b""[..]),
        ("/skep.v1.Gateway/Request", b"\0\0\0\0\x09half"),
        ("/skep.v1.Gateway/Requests", b"\0\0\0\0\x09half"),
        ("/skep.v1.Gateway/SubmitStream", b"\0\0"),
    ] {
        let mut socket = frames::connect(node.address, 65_535).await;
        let began = Instant::now();
        let mut call = frames::head(1, path);
        call.extend(frames::frame(frames::DATA, 0, 1, part));
        socket.write_all(&call).await.unwrap();
        let ended = async {
            while let Some((kind, flags, stream, _)) = frames::next(&mut socket).await {
                let end = kind == frames::RST_STREAM || flags & frames::END_STREAM != 0;
                if stream == 1 && kind != frames::DATA && end {
                    return;
                }
            }
        };
        tokio::time::timeout(soon, ended)
            .await
            .unwrap_or_else(|_| panic!("{path} waits for the rest of {part:?}"));
        assert!(began.elapsed() >= Duration::from_millis(250), "{path} {part:?}");
    }
    // A stream that is silent between messages is not slow.
    let mut socket = frames::connect(node.address, 65_535).await;
    socket
        .write_all(&frames::head(1, "/skep.v1.Gateway/Requests"))
        .await
        .unwrap();
    let ended = async {
        while let Some((kind, flags, stream, _)) = frames::next(&mut socket).await {
            if stream == 1 && (kind == frames::RST_STREAM || flags & frames::END_STREAM != 0) {
                return;
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(800), ended).await.is_err());
    drop(socket);
    quiet(&node).await;
}

const ROOM: usize = 2 << 20;
const PIECE: usize = 200 << 10;

/// What one tenant's clients may keep of it.
const ITS: usize = ROOM * 4 / 5;

async fn settled(node: &Node) -> usize {
    let mut before = usize::MAX;
    loop {
        let bytes = node.core.admit().bytes();
        if bytes == before {
            return bytes;
        }
        before = bytes;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

#[tokio::test]
async fn what_arrives_is_bounded_before_it_is_a_call() {
    let node = node(Settings {
        in_flight_bytes: ROOM,
        ..Settings::default()
    })
    .await;
    // Bodies that lack their last byte: over HTTP/1, over gRPC.
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(node.address).await.unwrap();
        let head = format!(
            "POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            PIECE + 1
        );
        let _ = socket.write_all(head.as_bytes()).await;
        let _ = socket.write_all(&vec![b'x'; PIECE]).await;
        open.push(socket);
    }
    let http = settled(&node).await;
    assert!((ITS - PIECE..=ITS + PIECE).contains(&http), "{http}");
    open.clear();
    quiet(&node).await;
    assert_eq!(settled(&node).await, 0);

    let mut socket = frames::connect(node.address, 65_535).await;
    for i in 0..15 {
        let stream = 2 * i + 1;
        let mut call = frames::head(stream, "/skep.v1.Gateway/Request");
        let mut whole = frames::message(stream, &vec![0; PIECE]);
        // The last frame is held back.
        whole.truncate(whole.len() / (9 + (16 << 10)) * (9 + (16 << 10)));
        call.extend(whole);
        socket.write_all(&call).await.unwrap();
    }
    let grpc = settled(&node).await;
    assert!((ITS - PIECE..=ITS + PIECE).contains(&grpc), "{grpc}");
    let gateway = Gateway::connect(&node.url).await.unwrap();
    let full = gateway
        .request("echo", vec![b'x'; PIECE])
        .timeout(Duration::from_millis(80))
        .await;
    assert_eq!(full.unwrap_err().reason, "tenant-share");
    drop(socket);
    assert_eq!(settled(&node).await, 0);
    assert!(gateway.request("echo", vec![b'x'; PIECE]).await.is_ok());
}

#[tokio::test]
async fn answers_that_nobody_takes_are_bounded() {
    let node = node(Settings {
        in_flight_bytes: ROOM,
        ..Settings::default()
    })
    .await;
    let call = v1::RequestCall {
        subject: "echo".into(),
        payload: vec![b'x'; PIECE].into(),
        ..Default::default()
    }
    .encode_to_vec();
    // A client that lets nothing through, and one that lets a byte through.
    for (window, path) in [
        (0, "/skep.v1.Gateway/Request"),
        (1, "/skep.v1.Gateway/Request"),
        (1, "/skep.v1.Gateway/Requests"),
    ] {
        let mut socket = frames::connect(node.address, window).await;
        for i in 0..30 {
            let stream = 2 * i + 1;
            let all = [frames::head(stream, path), frames::message(stream, &call)].concat();
            socket.write_all(&all).await.unwrap();
        }
        let held = settled(&node).await;
        assert!((ROOM / 2..=ROOM + 2 * PIECE).contains(&held), "{window} {path}: {held}");
        drop(socket);
        quiet(&node).await;
        assert_eq!(settled(&node).await, 0, "{window} {path}");
    }
    // One that reads goes on as if nothing had been.
    let gateway = Gateway::connect(&node.url).await.unwrap();
    for _ in 0..30 {
        assert!(gateway.request("echo", vec![b'x'; PIECE]).await.is_ok());
    }
}

/// What a client of one tenant that sends or reads slowly, on as many streams as it may, leaves to another tenant: room.
#[tokio::test]
async fn one_tenant_s_slow_clients_take_nothing_from_another() {
    let node = node(Settings {
        in_flight_bytes: ROOM,
        ..Settings::default()
    })
    .await;
    let [hostile, honest, none] = close(&node, ["acme", "zeta", "homeless"]);
    let login = Login::default().token(&honest).unwrap();
    let good = Gateway::connect_with(node.url.clone(), login).await.unwrap();
    let serves = async |what: &str| {
        for _ in 0..10 {
            let answer = good.request("echo", vec![b'x'; PIECE]).timeout(Duration::from_secs(5));
            let answer = answer.await.unwrap_or_else(|e| panic!("beside {what}: {e}"));
            assert_eq!(answer.text().len(), PIECE);
        }
    };
    // The last byte of each never comes.
    let mut uploads = frames::connect(node.address, 65_535).await;
    for i in 0..15 {
        let stream = 2 * i + 1;
        let mut call = frames::head_of(stream, "/skep.v1.Gateway/Request", Some(&hostile));
        let mut whole = frames::message(stream, &vec![0; PIECE]);
        whole.truncate(whole.len() / (9 + (16 << 10)) * (9 + (16 << 10)));
        call.extend(whole);
        uploads.write_all(&call).await.unwrap();
    }
    let mut posts = Vec::new();
    for _ in 0..15 {
        let mut socket = TcpStream::connect(node.address).await.unwrap();
        let head = format!(
            "POST /v1/echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {hostile}\r\ncontent-length: {}\r\n\r\n",
            PIECE + 1
        );
        let _ = socket.write_all(head.as_bytes()).await;
        let _ = socket.write_all(&vec![b'x'; PIECE]).await;
        posts.push(socket);
    }
    let held = settled(&node).await;
    assert!((ITS - PIECE..=ITS + PIECE).contains(&held), "{held}");
    serves("slow uploads").await;
    let login = Login::default().token(&hostile).unwrap();
    let own = Gateway::connect_with(node.url.clone(), login).await.unwrap();
    let refused = own
        .request("echo", vec![b'x'; PIECE])
        .timeout(Duration::from_millis(80))
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason, "tenant-share");
    assert!(
        refused.message.contains("`acme`") && !refused.message.contains("zeta"),
        "{refused}"
    );
    drop((uploads, posts));
    assert_eq!(settled(&node).await, 0);

    // Answers that nobody reads: many small calls that ask for much are not needed, an echo does.
    let call = v1::RequestCall {
        subject: "echo".into(),
        payload: vec![b'x'; PIECE].into(),
        ..Default::default()
    }
    .encode_to_vec();
    for path in ["/skep.v1.Gateway/Request", "/skep.v1.Gateway/Requests"] {
        let mut readers = Vec::new();
        for _ in 0..3 {
            let mut socket = frames::connect(node.address, 1).await;
            for i in 0..10 {
                let stream = 2 * i + 1;
                let head = frames::head_of(stream, path, Some(&hostile));
                socket
                    .write_all(&[head, frames::message(stream, &call)].concat())
                    .await
                    .unwrap();
            }
            readers.push(socket);
        }
        let held = settled(&node).await;
        assert!(held >= ROOM / 2, "{path}: {held}");
        serves("answers that nobody reads").await;
        drop(readers);
        quiet(&node).await;
        assert_eq!(settled(&node).await, 0, "{path}");
    }

    // Whose tenant has nothing to call here is bounded with all of that kind, and named.
    let mut socket = TcpStream::connect(node.address).await.unwrap();
    let body = vec![b'x'; PIECE];
    let head = format!(
        "POST /v1/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {none}\r\ncontent-length: {PIECE}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let _ = socket.write_all(&body).await;
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer).await;
    assert!(answer.contains(" 404 "), "{answer}");
    assert_eq!(settled(&node).await, 0);
}
