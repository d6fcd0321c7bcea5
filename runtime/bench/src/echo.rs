//! The ceiling of the doors: tonic with nothing behind it, speaking the very messages of the Gateway.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use skep_proto::v1;
use skep_proto::v1::gateway_server::{Gateway, GatewayServer};
use tonic::{Request, Response, Status, Streaming};

struct Echo;

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
