//! The doors from outside, over real sockets.

mod client;
mod fixture;
mod frames;
mod grpc;
mod http;
mod limits;
mod models;
mod oip;
mod submit;
