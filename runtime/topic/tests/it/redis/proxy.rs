//! A proxy between a node and its server, which cuts a connection where it hurts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PASS: u8 = 0;
/// The server gets the request and does it; its answer and the connection are lost.
const CUT_REPLIES: u8 = 1;
/// Nobody is let through.
const REFUSE: u8 = 2;
/// One way only, as behind a broken link: what the server is asked arrives and is done, what it answers stays on the way.
const HOLD_REPLIES: u8 = 3;
/// The other way.
const HOLD_REQUESTS: u8 = 4;

pub struct Proxy {
    pub port: u16,
    mode: Arc<AtomicU8>,
    cuts: Arc<AtomicU16>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (mode, cuts) = (Arc::new(AtomicU8::new(PASS)), Arc::new(AtomicU16::new(0)));
        let (m, c) = (Arc::clone(&mode), Arc::clone(&cuts));
        let task = tokio::spawn(async move {
            while let Ok((node, _)) = listener.accept().await {
                if m.load(Ordering::SeqCst) != REFUSE {
                    tokio::spawn(carry(node, server, Arc::clone(&m), Arc::clone(&c)));
                }
            }
        });
        Self { port, mode, cuts, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// From now on the next answer is lost, once.
    #[allow(dead_code, reason = "not by all who use this file")]
    pub fn cut_next_reply(&self) {
        self.mode.store(CUT_REPLIES, Ordering::SeqCst);
    }

    #[allow(dead_code, reason = "not by all who use this file")]
    pub fn refuse(&self) {
        self.mode.store(REFUSE, Ordering::SeqCst);
    }

    #[allow(dead_code, reason = "not by all who use this file")]
    pub fn hold_replies(&self) {
        self.mode.store(HOLD_REPLIES, Ordering::SeqCst);
    }

    #[allow(dead_code, reason = "not by all who use this file")]
    pub fn hold_requests(&self) {
        self.mode.store(HOLD_REQUESTS, Ordering::SeqCst);
    }

    pub fn pass(&self) {
        self.mode.store(PASS, Ordering::SeqCst);
    }

    #[allow(dead_code, reason = "not by all who use this file")]
    pub fn cuts(&self) -> u16 {
        self.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(node: TcpStream, server: u16, mode: Arc<AtomicU8>, cuts: Arc<AtomicU16>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return;
    };
    let (mut from_node, mut to_node) = node.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let way = Arc::clone(&mode);
    let requests = tokio::spawn(async move {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from_node.read(&mut buf).await {
            passes(&way, HOLD_REQUESTS).await;
            if to_server.write_all(&buf[..n]).await.is_err() {
                break;
            }
        }
    });
    let mut buf = vec![0; 64 << 10];
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(5));
    loop {
        tokio::select! {
            read = from_server.read(&mut buf) => {
                let Ok(n @ 1..) = read else { break };
                // The long answers are those to the look that a node takes once a second.
                if mode.load(Ordering::SeqCst) == CUT_REPLIES && n < 400
                    && mode.compare_exchange(CUT_REPLIES, PASS, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                    cuts.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                passes(&mode, HOLD_REPLIES).await;
                if to_node.write_all(&buf[..n]).await.is_err() {
                    break;
                }
            }
            _ = tick.tick() => {
                if mode.load(Ordering::SeqCst) == REFUSE {
                    break;
                }
            }
        }
    }
    requests.abort();
}

/// Until this way is open.
async fn passes(mode: &AtomicU8, held: u8) {
    while mode.load(Ordering::SeqCst) == held {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
