//! HTTP/2 by hand, for what no well-behaved client does.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
/// Its payload is the last stream and the cause.
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut all = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    all.extend([kind, flags]);
    all.extend(stream.to_be_bytes());
    all.extend(payload);
    all
}

/// The head of a gRPC call, without compression.
pub fn head(stream: u32, path: &str) -> Vec<u8> {
    head_of(stream, path, None)
}

/// The same of somebody with a token.
pub fn head_of(stream: u32, path: &str, token: Option<&str>) -> Vec<u8> {
    let mut block = Vec::new();
    let bearer = token.map(|token| format!("Bearer {token}"));
    let bearer = bearer.as_deref().map(|bearer| ("authorization", bearer));
    let plain = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in plain.into_iter().chain(bearer) {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// A gRPC message cut into frames, the last of which ends the stream.
pub fn message(stream: u32, body: &[u8]) -> Vec<u8> {
    let mut whole = vec![0];
    whole.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    whole.extend(body);
    let pieces: Vec<_> = whole.chunks(16 << 10).collect();
    let last = pieces.len() - 1;
    let mut all = Vec::new();
    for (i, piece) in pieces.into_iter().enumerate() {
        all.extend(frame(DATA, if i == last { END_STREAM } else { 0 }, stream, piece));
    }
    all
}

/// Connects. `window`: what the node may send ahead on a stream.
pub async fn connect(address: SocketAddr, window: u32) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut setting = 4_u16.to_be_bytes().to_vec();
    setting.extend(window.to_be_bytes());
    let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    start.extend(frame(SETTINGS, 0, 0, &setting));
    socket.write_all(&start).await.unwrap();
    while next(&mut socket).await.expect("settings").0 != SETTINGS {}
    socket.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
    socket
}

/// The next frame: kind, flags, stream, payload. None: the connection has ended.
pub async fn next(socket: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    socket.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    socket.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Some((head[3], head[4], stream, payload))
}
