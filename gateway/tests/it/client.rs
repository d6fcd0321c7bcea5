//! What the client makes of what a node says, and of nodes that say it in a row.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skep_client::{Gateway, Kind, Outcome};
use skep_proto::v1;
use skep_proto::v1::gateway_server::{self, GatewayServer};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};

/// One answer a call, in order, and when each call came.
#[derive(Clone, Default)]
struct Script {
    say: Arc<Mutex<VecDeque<Say>>>,
    came: Arc<Mutex<Vec<Instant>>>,
}

#[derive(Clone)]
enum Say {
    Yes,
    Refuse(Status),
    /// A failure within a stream, after the stream's first frame.
    Fail(v1::Failure),
    /// A stream that breaks off after its first frame.
    Break,
}

impl Script {
    fn next(&self) -> Say {
        self.came.lock().unwrap().push(Instant::now());
        self.say
            .lock()
            .unwrap()
            .pop_front()
            .expect("no more calls than planned")
    }

    fn gaps(&self) -> Vec<Duration> {
        self.came.lock().unwrap().windows(2).map(|w| w[1] - w[0]).collect()
    }
}

#[tonic::async_trait]
impl gateway_server::Gateway for Script {
    async fn request(&self, _: Request<v1::RequestCall>) -> Result<Response<v1::Reply>, Status> {
        match self.next() {
            Say::Refuse(status) => Err(status),
            _ => Ok(Response::new(v1::Reply {
                result: Some(v1::reply::Result::Response("yes".into())),
                ..Default::default()
            })),
        }
    }

    type RequestsStream = ReceiverStream<Result<v1::Reply, Status>>;

    async fn requests(&self, _: Request<Streaming<v1::RequestCall>>) -> Result<Response<Self::RequestsStream>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn submit(&self, _: Request<v1::SubmitCall>) -> Result<Response<v1::SubmitReply>, Status> {
        match self.next() {
            Say::Refuse(status) => Err(status),
            _ => Ok(Response::new(v1::SubmitReply::default())),
        }
    }

    type RequestStreamStream = tokio_stream::Empty<Result<v1::StreamPart, Status>>;

    /// Ends without an end.
    async fn request_stream(&self, _: Request<v1::RequestCall>) -> Result<Response<Self::RequestStreamStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    type SubmitStreamStream = ReceiverStream<Result<v1::SubmitAck, Status>>;

    async fn submit_stream(
        &self,
        frames: Request<Streaming<v1::SubmitFrame>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        let say = self.next();
        if let Say::Refuse(status) = say {
            return Err(status);
        }
        let mut frames = frames.into_inner();
        let (acks, answer) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                let ack = match &say {
                    Say::Fail(failure) => v1::SubmitAck {
                        durable: frame.first - 1,
                        failure: Some(failure.clone()),
                    },
                    Say::Break => {
                        let _ = acks.send(Err(Status::unavailable("cut"))).await;
                        return;
                    }
                    _ => v1::SubmitAck {
                        durable: frame.first + frame.messages.len() as u64 - 1,
                        failure: None,
                    },
                };
                let last = ack.failure.is_some();
                if acks.send(Ok(ack)).await.is_err() {
                    return;
                }
                // It said its last word, and does not hurry to hang up.
                while last && let Ok(Some(_)) = frames.message().await {}
            }
        });
        Ok(Response::new(ReceiverStream::new(answer)))
    }
}

async fn client(say: impl IntoIterator<Item = Say>) -> (Gateway, Script) {
    let script = Script {
        say: Arc::new(Mutex::new(say.into_iter().collect())),
        ..Script::default()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(GatewayServer::new(script.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (Gateway::connect(url).await.unwrap(), script)
}

fn refusal(code: Code, outcome: &'static str, pushback: Option<&'static str>) -> Say {
    let mut status = Status::new(code, "scripted");
    status.metadata_mut().insert("skep-outcome", outcome.parse().unwrap());
    if let Some(ms) = pushback {
        status
            .metadata_mut()
            .insert("grpc-retry-pushback-ms", ms.parse().unwrap());
    }
    Say::Refuse(status)
}

fn full(retry_after_ms: u64) -> Say {
    Say::Fail(v1::Failure {
        code: Code::ResourceExhausted as i32,
        outcome: v1::Outcome::NotDone.into(),
        retry_after_ms,
        ..Default::default()
    })
}

#[tokio::test]
async fn a_stream_that_ends_without_an_end_is_an_unknown_outcome() {
    let (gateway, _) = client([]).await;
    let mut parts = gateway.request("x", "").stream().await.unwrap();
    let e = parts.next().await.unwrap_err();
    assert!(e.outcome == Outcome::Unknown && e.kind == Kind::Unavailable, "{e:?}");
    assert!(parts.response().is_none());
}

#[tokio::test]
async fn hints_are_obeyed_by_calls_and_streams() {
    let hint = Duration::from_millis(400);
    let overloaded = |pushback| refusal(Code::ResourceExhausted, "not-done", Some(pushback));

    let (gateway, script) = client([overloaded("400"), Say::Yes]).await;
    gateway.request("x", "").await.unwrap();
    assert!(script.gaps()[0] >= hint, "{:?}", script.gaps());

    let (gateway, script) = client([overloaded("-1")]).await;
    let e = gateway.request("x", "").await.unwrap_err();
    assert!(e.no_retry && e.kind == Kind::Overloaded, "{e:?}");
    assert_eq!(script.gaps().len(), 0);
    let (gateway, _) = client([overloaded("-1")]).await;
    assert!(
        gateway
            .submit("x", ["a"])
            .idempotency_key("k")
            .await
            .unwrap_err()
            .no_retry
    );

    // A stream that is refused when it is opened, or at a frame.
    let (gateway, script) = client([overloaded("400"), full(400), Say::Yes]).await;
    let mut stream = gateway.submit_stream("x");
    stream.send("a").await.unwrap();
    assert_eq!(stream.finish().await.unwrap().durable, 1);
    assert!(script.gaps().iter().all(|gap| *gap >= hint), "{:?}", script.gaps());

    let (gateway, script) = client([overloaded("-1")]).await;
    let mut stream = gateway.submit_stream("x");
    stream.send("a").await.unwrap();
    let e = stream.flush().await.unwrap_err();
    assert!(e.no_retry && e.kind == Kind::Overloaded, "{e:?}");
    assert_eq!(script.gaps().len(), 0);
}

#[tokio::test]
async fn a_hint_that_comes_while_sending_is_obeyed_too() {
    let (gateway, script) = client([full(400), Say::Yes]).await;
    let mut stream = gateway.submit_stream("x");
    // Frames leave by themselves here, and the refusal of the first is found by a later one.
    for i in 0..5_000 {
        stream.send(i.to_string()).await.unwrap();
        if i == 1_500 {
            // The first frame has left, and its refusal comes in before the second one leaves.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert_eq!(stream.finish().await.unwrap().durable, 5_000);
    assert!(script.gaps()[0] >= Duration::from_millis(400), "{:?}", script.gaps());
}

#[tokio::test]
async fn what_one_attempt_left_open_no_later_refusal_closes() {
    let unknown = || refusal(Code::Unavailable, "unknown", None);
    let refused = || refusal(Code::NotFound, "not-done", None);

    let (gateway, _) = client([unknown(), refused()]).await;
    let e = gateway.request("x", "").idempotency_key("k").await.unwrap_err();
    assert_eq!((e.kind, e.outcome), (Kind::NotFound, Outcome::Unknown), "{e:?}");
    let (gateway, _) = client([unknown(), refused()]).await;
    let e = gateway.submit("x", ["a"]).idempotency_key("k").await.unwrap_err();
    assert_eq!((e.kind, e.outcome), (Kind::NotFound, Outcome::Unknown), "{e:?}");
    // Without a key an unknown outcome is the end of it.
    let (gateway, script) = client([unknown()]).await;
    assert_eq!(gateway.submit("x", ["a"]).await.unwrap_err().outcome, Outcome::Unknown);
    assert_eq!(script.gaps().len(), 0);

    let (gateway, _) = client([Say::Break, refused()]).await;
    let mut stream = gateway.submit_stream("x");
    stream.send("a").await.unwrap();
    let e = stream.flush().await.unwrap_err();
    assert_eq!((e.kind, e.outcome), (Kind::NotFound, Outcome::Unknown), "{e:?}");
    // Nothing was under way on the stream that broke: certainly not done.
    let (gateway, _) = client([refused()]).await;
    let mut stream = gateway.submit_stream("x");
    stream.send("a").await.unwrap();
    assert_eq!(stream.flush().await.unwrap_err().outcome, Outcome::NotDone);
}
