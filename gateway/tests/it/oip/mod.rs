//! The Open Inference Protocol, over both doors.

mod grpc;
mod rest;

use std::sync::Arc;

use skep_gateway::Settings;

use crate::fixture::{Node, node_with};
use crate::models::Fake;

async fn models(settings: Settings) -> (Node, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    (node_with(settings, Some(Arc::clone(&fake) as _)).await, fake)
}
