//! `/health`, `/ready`, `/metrics` and `/version` of a server role. Off unless asked for.

use anyhow::Context as _;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// How often old samples of histograms are folded together, so that they do not pile up
/// when nobody asks for metrics.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What the pages tell; updated by the role that is served.
#[derive(Clone, Default, Debug)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says whether the role does its work now.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Pages {
    readiness: Readiness,
    metrics: PrometheusHandle,
}

/// Serves the pages at `address` until the process ends.
pub async fn start(address: &str, readiness: Readiness) -> anyhow::Result<AbortHandle> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve HTTP at {address}: choose another address with --http"))?;
    let metrics = PrometheusBuilder::new().install_recorder().context("metrics cannot be collected")?;
    let upkeep = metrics.clone();
    let pages = Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/version", get(version))
        .with_state(Pages { readiness, metrics });
    let serving = async move {
        let upkeep = async {
            let mut interval = tokio::time::interval(UPKEEP_EVERY);
            loop {
                interval.tick().await;
                upkeep.run_upkeep();
            }
        };
        let serve = async { axum::serve(listener, pages).await };
        tokio::select! {
            () = upkeep => {}
            served = serve => if let Err(error) = served {
                tracing::error!(%error, "HTTP is no longer served");
            },
        }
    };
    Ok(tokio::spawn(serving).abort_handle())
}

async fn health() -> &'static str {
    "ok\n"
}

async fn ready(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    if pages.readiness.get() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn metrics_page(State(pages): State<Pages>) -> String {
    pages.metrics.render()
}

async fn version() -> Json<Value> {
    Json(json!({ "name": "ebla", "version": crate::cli::VERSION }))
}
