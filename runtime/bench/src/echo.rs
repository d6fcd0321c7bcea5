//! The ceiling of the doors: tonic with nothing behind it, speaking the very messages of the Gateway.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use skep_proto::v1;
use skep_proto::v1::gateway_server::{Gateway, GatewayServer};
use tonic::{Request, Response, Status, Streaming};

struct Echo;

/// One part of a streamed answer: a word or two of a language model, in its wrapping.
pub const PART_BYTES: usize = 64;

fn reply(call: v1::RequestCall) -> v1::Reply {
    v1::Reply {
        id: call.id,
        result: Some(v1::reply::Result::Response(call.payload)),
        ..v1::Reply::default()
    }
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Gateway for Echo {
    async fn request(&self, call: Request<v1::RequestCall>) -> Result<Response<v1::Reply>, Status> {
        Ok(Response::new(reply(call.into_inner())))
    }

    type RequestsStream = Out<v1::Reply>;

    async fn requests(
        &self,
        calls: Request<Streaming<v1::RequestCall>>,
    ) -> Result<Response<Self::RequestsStream>, Status> {
        Ok(Response::new(Box::pin(calls.into_inner().map(|call| call.map(reply)))))
    }

    async fn submit(&self, _: Request<v1::SubmitCall>) -> Result<Response<v1::SubmitReply>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    type RequestStreamStream = Out<v1::StreamPart>;

    /// As many parts as the payload says, all the same.
    async fn request_stream(
        &self,
        request: Request<v1::RequestCall>,
    ) -> Result<Response<Self::RequestStreamStream>, Status> {
        let text = String::from_utf8_lossy(&request.get_ref().payload).into_owned();
        let count: u64 = text.parse().map_err(|_| Status::invalid_argument("not a number"))?;
        let part = |kind| Ok(v1::StreamPart { kind: Some(kind) });
        let parts = (0..count).map(move |_| part(v1::stream_part::Kind::Part(vec![b'.'; PART_BYTES].into())));
        let end = v1::stream_part::Kind::End(v1::StreamEnd {
            parts: count,
            ..v1::StreamEnd::default()
        });
        let all = parts.chain(std::iter::once(part(end)));
        Ok(Response::new(Box::pin(futures::stream::iter(all))))
    }

    type SubmitStreamStream = Out<v1::SubmitAck>;

    async fn submit_stream(
        &self,
        _: Request<Streaming<v1::SubmitFrame>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        Err(Status::unimplemented("an echo"))
    }
}

/// Serves on a free port until killed; prints `serves URL`.
pub fn serve() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("serves http://{}", listener.local_addr()?);
        tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .add_service(GatewayServer::new(Echo))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener))
            .await?;
        Ok(())
    })
}
