//! The doors from outside, over real sockets.

mod fixture;
mod grpc;
mod http;
mod limits;
mod submit;
