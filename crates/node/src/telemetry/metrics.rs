//! The HTTP server of a process: `/metrics`, Prometheus text of one registry, and `/healthz`, which answers as long as the
//! process does.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `GET /metrics` and `GET /healthz` until `stop`.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(async || "ok\n"))
        .with_state(registry);
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
}

async fn scrape(State(registry): State<Registry>) -> Response {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&registry.gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use crate::telemetry::metrics_registry::check_document;
    use crate::telemetry::{process, trace};
    use crate::tls;

    #[test]
    fn the_document_has_what_every_process_measures() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let all =
            [tls::CONNECTIONS_CATALOGUE, tls::FILES_CATALOGUE, trace::CATALOGUE, process::CATALOGUE].concat();
        check_document(&docs, "every process", &all).unwrap();
    }
}
