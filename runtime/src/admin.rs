//! The admin port: metrics and health for operators. Loopback by default, apart from the doors that users reach.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use skep_model::scope::Scope;
use skep_topic::Backend;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::stats::Stats;
use crate::supervisor::Supervisor;

#[derive(Clone)]
pub struct Admin {
    pub backend: Arc<dyn Backend>,
    pub stats: Arc<Stats>,
    pub supervisor: Arc<Supervisor>,
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken) -> std::io::Result<()> {
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(admin);
    axum::serve(listener, app)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let mut topics = Vec::new();
    let swarms = match admin.supervisor.catalogs.swarms().await {
        Ok(swarms) => swarms,
        Err(e) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{e:#}\n")).into_response(),
    };
    for (path, record) in &swarms {
        if let Ok(id) = record.id(&Scope::of(path.tenant().clone()))
            && let Ok(status) = admin.backend.status(&id).await
        {
            topics.extend(status);
        }
    }
    let text = admin
        .stats
        .text(admin.backend.counters(), admin.backend.waiters().late(), &topics);
    let kind = [(
        header::CONTENT_TYPE,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )];
    (kind, text).into_response()
}
